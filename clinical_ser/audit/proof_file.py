"""Proof files: one record's index, its path to the root and the signed checkpoint, in one text that is checked offline (C2SP tlog-proof).

A file that reads well proves nothing yet: whoever uses it opens the checkpoint with keys they know, and walks the path with the record's hash.
"""

import base64
from dataclasses import dataclass
from typing import Self

from clinical_ser.audit.checkpoint import Checkpoint, parse_decimal
from clinical_ser.audit.merkle import HASH_BYTES
from clinical_ser.audit.notes import MAX_NOTE_BYTES, decode_base64, decode_text, parse_note
from clinical_ser.errors import AuditFormatError

# A tree of 2^63 leaves is 63 hashes deep.
MAX_PATH = 63
MAX_PROOF_BYTES = 4 * MAX_NOTE_BYTES

_HEADER = "c2sp.org/tlog-proof@v1"


@dataclass(frozen=True)
class ProofFile:
    """What a `.tlog-proof` file says.

    Parameters
    ----------
    index
        Which record of the log, from 0.
    path
        The hashes from the leaf's sibling up to the root's child, 32 bytes each (RFC 6962 section 2.1.1).
    checkpoint
        The whole signed note, as the log gave it out; nobody has checked its signatures yet.
    extra
        Bytes that came along. Nobody signed them.

    Raises
    ------
    AuditFormatError
        A part could not be written, or the index is not one of the checkpoint's tree.
    """

    index: int
    path: tuple[bytes, ...]
    checkpoint: str
    extra: bytes | None = None

    def __post_init__(self) -> None:
        if len(self.path) > MAX_PATH or any(len(node) != HASH_BYTES for node in self.path):
            raise AuditFormatError(f"A proof's path is at most {MAX_PATH} hashes of {HASH_BYTES} bytes.")
        if self.extra == b"":
            raise AuditFormatError("A proof without extra data has no line for it.")
        size = Checkpoint.parse(parse_note(self.checkpoint)[0]).size
        if not 0 <= self.index < size:
            raise AuditFormatError(f"A proof is about record {self.index}, and its checkpoint has {size} records.")

    @property
    def text(self) -> str:
        """Return the file's content."""
        extra = [] if self.extra is None else [f"extra {_base64(self.extra)}"]
        lines = [_HEADER, *extra, f"index {self.index}", *map(_base64, self.path)]
        return "".join(f"{line}\n" for line in lines) + "\n" + self.checkpoint

    @classmethod
    def parse(cls, text: str | bytes) -> Self:
        """Read a file's content; AuditFormatError when it is not in its one spelling."""
        # The lines before the checkpoint are not empty, so the first empty one is where it starts.
        head, _, checkpoint = decode_text(text, "A proof", MAX_PROOF_BYTES).partition("\n\n")
        header, *lines = head.split("\n")
        if header != _HEADER:
            raise AuditFormatError(f"A proof's first line is not {_HEADER}.")
        extra = decode_base64(_after("extra ", lines.pop(0)), "A proof's extra line") if lines and lines[0].startswith("extra ") else None
        if not lines:
            raise AuditFormatError("A proof has no index line.")
        index = parse_decimal(_after("index ", lines.pop(0)), "A proof's index")
        if len(lines) > MAX_PATH:
            raise AuditFormatError(f"A proof's path has {len(lines)} hashes; at most {MAX_PATH} can be.")
        return cls(index, tuple(decode_base64(line, "A proof's path") for line in lines), checkpoint, extra)


def _after(word: str, line: str) -> str:
    if not line.startswith(word):
        raise AuditFormatError(f"A proof has another line where the one that starts with {word.strip()!r} should be.")
    return line.removeprefix(word)


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
