"""What readers of a log see: a record with as much of it as they may open, and the few questions a log answers.

The one idea: exports, proofs and verification need no database, only these.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from clinical_ser.audit.events import Event, Payload


@dataclass(frozen=True)
class Record:
    """One record of the log.

    Attributes
    ----------
    index
        Its place in the tree, from 0.
    leaf
        The bytes that are in the tree: the event as canonical JSON.
    event
        The leaf, read.
    payload, salt
        What the leaf commits to, with the 32 bytes that were hashed before it; None where the state is not `open`.
    state
        `open`; `sealed` when this reader has no key for it; `erased` when a tombstone in the log says that it was destroyed.
    """

    index: int
    leaf: bytes
    event: Event
    payload: Payload | None
    salt: bytes | None
    state: Literal["open", "sealed", "erased"]


class LogReader(Protocol):
    """A log as of one checkpoint."""

    @property
    def origin(self) -> str:
        """The log's name."""

    @property
    def size(self) -> int:
        """Number of records that the checkpoint covers."""

    @property
    def checkpoint(self) -> str:
        """The signed note, verbatim."""

    def records(self, start: int = 0, stop: int | None = None) -> Iterator[Record]:
        """Yield records in their order, from `start` up to, not including, `stop`."""

    def named(self, name: str) -> list[int]:
        """Return the indices of the records about a subject, in their order."""

    def about(self, name: str) -> list[int]:
        """Return the indices of the records about a result (`clinical-ser:result:…`) or a model (`clinical-ser:model:…`), whosever they are."""

    def inclusion(self, index: int) -> list[bytes]:
        """Return the audit path of a record against the checkpoint."""

    def consistency(self, old: int) -> list[bytes]:
        """Return the proof that the checkpoint's tree grew from one of `old` records."""
