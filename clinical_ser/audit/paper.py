"""A checkpoint on paper, signed in ink: the anchor that needs nobody outside of the house.

The one idea: a root hash that two persons compared and signed is compared again, years later, by typing it in: it came by no way of the log's.
"""

import base64
import contextlib
import textwrap

from clinical_ser.audit.checkpoint import Checkpoint
from clinical_ser.audit.merkle import HASH_BYTES
from clinical_ser.audit.notes import NoteSignature, parse_note
from clinical_ser.errors import AuditFormatError

_ROOT_HEX = 2 * HASH_BYTES
_SHEET_WIDTH = 78


def printed_checkpoint(note: str) -> str:
    """Return a sheet to print, sign by hand and lock away: what no machine can change afterwards.

    Parameters
    ----------
    note
        The signed checkpoint, which the caller opened with keys it trusts.

    Returns
    -------
    str
        Plain text of at most 78 columns, one page for a checkpoint with a handful of signatures.

    Raises
    ------
    AuditFormatError
        The note is no checkpoint.
    """
    text, signatures = parse_note(note)
    checkpoint = Checkpoint.parse(text)
    return _SHEET.format(
        origin=_wrapped(checkpoint.origin),
        size=checkpoint.size,
        root="\n".join(f"    {line}" for line in _groups_of_four(checkpoint.root)),
        base64=base64.b64encode(checkpoint.root).decode("ascii"),
        signatures="\n".join(_wrapped(_signer(signature)) for signature in signatures),
    )


def matches_printed(typed: str, checkpoint: Checkpoint) -> bool:
    """Tell whether a root hash typed from a sheet is that of a checkpoint.

    Parameters
    ----------
    typed
        The hash in hex, in either case, or in base64, where case matters; spaces and line ends anywhere.
    checkpoint
        What to compare with, opened with the log's key.

    Raises
    ------
    AuditFormatError
        What was typed is no whole hash: a mistake in typing, and no sign of another log.
    """
    return _typed_root(typed) == checkpoint.root


_SHEET = """\
CHECKPOINT OF AN AUDIT LOG, FOR SAFE KEEPING ON PAPER

Log (origin)
{origin}

Records in the log (tree size)
    {size}

Root hash over all of them (RFC 6962, SHA-256), in hex, to read aloud
{root}

The same root hash in base64, as the checkpoint file has it
    {base64}

Signatures on the checkpoint: who, and the key's id
{signatures}

How to use this sheet
    1. Now: run   clinical-ser audit verify --size {size} --printed "HASH"
       with the hash typed from this sheet (hex, blanks may stay), group by
       group: one person reads, one types.
    2. Both persons sign and date below. Keep the sheet where the people who
       run the log cannot reach it, and a copy in another place.
    3. Later: run the same command, typing from this sheet. If it does not
       match, records of that time were changed, removed or slipped in: leave
       everything as it is, and tell the person responsible for security.

I compared size and root hash with the verified checkpoint; they agree.

    Name ____________________________    Name ____________________________

    Signature _______________________    Signature _______________________

    Date and time ___________________    Date and time ___________________
"""


def _groups_of_four(root: bytes) -> list[str]:
    digits = root.hex()
    groups = [digits[start : start + 4] for start in range(0, len(digits), 4)]
    return ["  ".join(groups[start : start + 4]) for start in range(0, len(groups), 4)]


def _signer(signature: NoteSignature) -> str:
    return f"{signature.name}   {signature.key_id:08x}"


def _wrapped(line: str) -> str:
    return textwrap.fill(line, _SHEET_WIDTH, initial_indent="    ", subsequent_indent="      ", break_on_hyphens=False, replace_whitespace=False)


def _typed_root(typed: str) -> bytes:
    digits = "".join(typed.split())
    with contextlib.suppress(ValueError):
        if len(digits) == _ROOT_HEX:
            return bytes.fromhex(digits)
        root = base64.b64decode(digits, validate=True)
        if len(root) == HASH_BYTES:
            return root
    raise AuditFormatError(f"A root hash has {_ROOT_HEX} hex digits or 44 characters of base64; read the line again.")
