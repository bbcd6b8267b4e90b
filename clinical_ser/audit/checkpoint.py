"""Checkpoints: a log's name, size and root hash as a signed note (C2SP tlog-checkpoint v1).

Whoever holds one can hold the log to it. Others may cosign, but only the log itself can say what the log is: a checkpoint without
a signature by a key of the origin's name is refused, however many witnesses stand under it.
"""

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from clinical_ser.audit.merkle import EMPTY_ROOT, HASH_BYTES
from clinical_ser.audit.notes import Algorithm, Note, NoteSignature, NoteSigner, VerifierKey, decode_base64, open_note, sign_note
from clinical_ser.errors import AuditFormatError, AuditTamperedError

# The root of no leaves is the hash of no bytes (RFC 6962 section 2.1); another root at size 0 would be a promise that nobody can check.

_MAX_SIZE = 2**63 - 1
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f]")


@dataclass(frozen=True)
class Checkpoint:
    r"""What a log was at one time.

    Parameters
    ----------
    origin
        The log's name, one line.
    size
        How many leaves the tree has.
    root
        The RFC 6962 root hash over them, 32 bytes.
    extensions
        Further lines, as they are. Whether a signature covers them depends on its algorithm: see `open`.

    Raises
    ------
    AuditFormatError
        A part could not be written, or an empty tree has another root than the empty one.

    Examples
    --------
    >>> Checkpoint("example.com/log", 0, EMPTY_ROOT).text
    'example.com/log\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n'
    """

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if any(not line or _CONTROL.search(line) for line in (self.origin, *self.extensions)):
            raise AuditFormatError("A checkpoint's origin or an extension line is empty, or holds a control character.")
        if not 0 <= self.size <= _MAX_SIZE:
            raise AuditFormatError("A checkpoint's tree size is not between 0 and 2^63 - 1.")
        if len(self.root) != HASH_BYTES:
            raise AuditFormatError(f"A checkpoint's root hash has {HASH_BYTES} bytes, not {len(self.root)}.")
        if self.size == 0 and self.root != EMPTY_ROOT:
            raise AuditFormatError("A checkpoint of an empty tree has another root hash than that of an empty tree.")

    @property
    def text(self) -> str:
        """Return the note text that is signed."""
        lines = (self.origin, str(self.size), base64.b64encode(self.root).decode(), *self.extensions)
        return "".join(f"{line}\n" for line in lines)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a note text; AuditFormatError when it is not spelled as a checkpoint's is."""
        if not text.endswith("\n"):
            raise AuditFormatError("A checkpoint's text ends with a newline.")
        lines = text[:-1].split("\n")
        if len(lines) < 3:
            raise AuditFormatError("A checkpoint's text has at least three lines: origin, tree size, root hash.")
        origin, size, root, *extensions = lines
        return cls(origin, parse_decimal(size, "A checkpoint's tree size"), decode_base64(root, "A checkpoint's root hash"), tuple(extensions))

    def sign(self, signers: Sequence[NoteSigner], existing: Sequence[NoteSignature] = ()) -> str:
        """Return the signed note; see `sign_note`."""
        return sign_note(self.text, signers, existing)

    @classmethod
    def open(cls, note: str | bytes, keys: Iterable[VerifierKey], origin: str | None = None) -> tuple[Self, Note]:
        """Read a checkpoint that its log signed.

        Parameters
        ----------
        note
            The signed note.
        keys
            The log's keys, and those of witnesses whose cosignatures matter.
        origin
            The log that is meant. Leave it out only where every one of the keys is a log's: a witness's key could otherwise pass off a log
            of the witness's own name.

        Returns
        -------
        checkpoint
            What it says.
        note
            Who stands for it.

        Raises
        ------
        AuditFormatError
            It is no note, or its text no checkpoint.
        AuditTamperedError
            A known key's signature does not fit, the checkpoint is another log's, or the log has not signed it: not at all, or only with
            ML-DSA-44, which leaves extension lines out (tlog-cosignature), where there are some.
        """
        opened = open_note(note, keys)
        checkpoint = cls.parse(opened.text)
        if origin is not None and checkpoint.origin != origin:
            raise AuditTamperedError("The checkpoint is of another log than the one that was asked for.")
        if not any(checkpoint._is_covered_by(key) for key, _ in opened.verified):
            raise AuditTamperedError("No key of the log itself signed the whole checkpoint; cosignatures alone do not make one.")
        return checkpoint, opened

    def _is_covered_by(self, key: VerifierKey) -> bool:
        covers_extensions = key.algorithm is not Algorithm.ML_DSA_44_COSIGNATURE
        return key.name == self.origin and (covers_extensions or not self.extensions)


def parse_decimal(text: str, what: str) -> int:
    """Return a number from 0 to 2^63 - 1 in ASCII digits without leading zeroes; AuditFormatError names `what` otherwise."""
    if not _DECIMAL.fullmatch(text) or int(text) > _MAX_SIZE:
        raise AuditFormatError(f"{what} is not a decimal number from 0 to 2^63 - 1 without leading zeroes.")
    return int(text)
