"""A log read through its database, as of its signed head.

The one idea: a reader stands on one head, so that records, proofs and checkpoint belong together. It believes what the database says; whoever must
not believe it asks `verifying`.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import cached_property

from clinical_ser.audit.checkpoint import Checkpoint
from clinical_ser.audit.database import Database, StorageError
from clinical_ser.audit.events import TIME, Erasure, Event, parse_payload, time_in
from clinical_ser.audit.merkle import Prover
from clinical_ser.audit.notes import VerifierKey
from clinical_ser.audit.ranges import Ranges
from clinical_ser.audit.records import Record
from clinical_ser.audit.tables import DatabaseTiles, head_of
from clinical_ser.audit.vault import Vault
from clinical_ser.errors import AuditSetupError, AuditTamperedError, AuditUnavailableError

_TOMBSTONE = b'"kind":"erasure"'
_RECORDS = (
    "SELECT leaves.idx, leaf, subject, data FROM leaves LEFT JOIN sealed ON sealed.idx = leaves.idx "
    "WHERE leaves.idx >= ? AND leaves.idx < ? ORDER BY leaves.idx"
)


class DatabaseReader:
    """A LogReader over a database.

    Parameters
    ----------
    database
        A connection, which stays the caller's; in a snapshot of it, if others write meanwhile.
    verifiers
        The log's keys, past and present.
    vault
        The keys of payloads; None to read leaves alone.
    cosigned
        Stand on the newest checkpoint that a witness cosigned, and not on the head.

    Raises
    ------
    AuditTamperedError
        The head has no valid signature.
    AuditSetupError
        No checkpoint was cosigned.
    """

    def __init__(self, database: Database, verifiers: Iterable[VerifierKey], vault: Vault | None = None, *, cosigned: bool = False) -> None:
        self._database = database
        self._vault = vault
        keys = tuple(verifiers)
        with readable():
            self._note = head_of(database)
            self._head, _ = Checkpoint.open(self._note, keys)
            self._whole = self._head.size
            if cosigned:
                rows = database.query("SELECT note FROM checkpoints JOIN cosignatures USING (size) ORDER BY size DESC LIMIT 1")
                if not rows:
                    raise AuditSetupError("No checkpoint of this log was cosigned by a witness (`audit witness ask`).")
                self._note = rows[0][0]
                self._head, _ = Checkpoint.open(self._note, keys, self._head.origin)
            lines = database.query("SELECT line FROM cosignatures WHERE size = ? ORDER BY line", (self._head.size,))
            self._note += "".join(line for (line,) in lines)
            self._tiles = DatabaseTiles(database)
            self._prover = Prover(self._tiles, self._head.size)

    @property
    def origin(self) -> str:
        """The log's name."""
        return self._head.origin

    @property
    def size(self) -> int:
        """Number of records."""
        return self._head.size

    @property
    def root(self) -> bytes:
        """The head's root."""
        return self._head.root

    @property
    def checkpoint(self) -> str:
        """The signed head, verbatim, with the cosignatures that witnesses gave for it."""
        return self._note

    def records(self, start: int = 0, stop: int | None = None) -> Iterator[Record]:
        """Yield records in their order, opened where the vault has the key.

        Raises
        ------
        AuditTamperedError
            A payload does not fit its record, or one is gone that nobody erased.
        """
        end = self.size if stop is None else min(stop, self.size)
        with readable():
            for index, leaf, subject, data in self._database.stream(_RECORDS, (start, end)):
                yield self._record(index, leaf, subject, data)

    def record(self, index: int) -> Record:
        """Return one record; AuditTamperedError where the log lacks it."""
        for record in self.records(index, index + 1):
            return record
        raise AuditTamperedError(f"There is no record {index}; the log has records 0 to {self.size - 1}.")

    def named(self, name: str) -> list[int]:
        """Return the indices of the records about a subject, in their order; an answer that names no person has its own record for one."""
        return [] if self._vault is None else self._found(self._vault.subject_lookup(name))

    def about(self, name: str) -> list[int]:
        """Return the indices of the records about a result (`clinical-ser:result:…`) or a model (`clinical-ser:model:…`), whosever they are."""
        return [] if self._vault is None else self._found(self._vault.lookup(name))

    def _found(self, lookup: bytes) -> list[int]:
        with readable():
            rows = self._database.query("SELECT idx FROM names WHERE lookup = ? ORDER BY idx", (lookup,))
        return [index for (index,) in rows if index < self.size]

    @property
    def witnesses(self) -> int:
        """Number of cosignatures that are kept."""
        with readable():
            [(count,)] = self._database.query("SELECT COUNT(*) FROM cosignatures")
        return int(count)

    def between(self, since: datetime | None, until: datetime | None) -> tuple[int | None, int | None]:
        """Return the first record that is not before a moment, and the last that is not after one; None where there is no such bound.

        Raises
        ------
        AuditSetupError
            The log has no record in between.
        """
        if since is None and until is None:
            return None, None
        low = "" if since is None else since.astimezone(UTC).strftime(TIME)
        high = "~" if until is None else until.astimezone(UTC).strftime(TIME)
        within = [index for index, leaf in enumerate(self.leaves(0, self.size)) if low <= time_in(leaf) <= high]
        if not within:
            raise AuditSetupError("The log has no record between these days.")
        return within[0], within[-1]

    def kept_checkpoints(self) -> list[str]:
        """Return the checkpoints that were handed out, witnessed or anchored, the oldest first."""
        with readable():
            return [note for (note,) in self._database.query("SELECT note FROM checkpoints WHERE size <= ? ORDER BY size", (self.size,))]

    def subjects_of(self, indices: Iterable[int]) -> dict[bytes | None, list[int]]:
        """Group records by whom they are about, each subject under its random name; those whose payload is gone are left out."""
        grouped: dict[bytes | None, list[int]] = {}
        with readable():
            for index in indices:
                for (subject,) in self._database.query("SELECT subject FROM sealed WHERE idx = ?", (index,)):
                    grouped.setdefault(subject, []).append(index)
        return grouped

    def tile(self, level: int, n: int) -> Sequence[bytes]:
        """Return the hashes of a tile of the tree, as far as they are there."""
        with readable():
            return self._tiles.tile(level, n)

    def leaves(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield leaves in their order, unopened."""
        with readable():
            for (leaf,) in self._database.stream("SELECT leaf FROM leaves WHERE idx >= ? AND idx < ? ORDER BY idx", (start, min(stop, self.size))):
                yield leaf

    def root_at(self, size: int) -> bytes:
        """Return the root that the tree had at a size; ValueError where it is larger than the log."""
        if not 0 <= size <= self.size:
            raise ValueError(f"the log has {self.size} records, which is fewer than {size}")
        with readable():
            return self._prover.root(size)

    def inclusion(self, index: int) -> list[bytes]:
        """Return the audit path of a record against the checkpoint; ValueError where there is none."""
        with readable():
            return self._prover.inclusion(index)

    def consistency(self, old: int, size: int | None = None) -> list[bytes]:
        """Return the proof that the checkpoint's tree, or that of `size` records, grew from one of `old`; ValueError where it is smaller."""
        with readable():
            return (self._prover if size is None else Prover(self._tiles, size)).consistency(old)

    @cached_property
    def _erased(self) -> Ranges:
        """What the log's tombstones name; looked for once, where a payload is missing."""
        spans: list[str] = []
        # Up to the head, whichever checkpoint this reader stands on.
        leaves = self._database.stream("SELECT idx, leaf FROM leaves WHERE idx < ? ORDER BY idx", (self._whole,))
        for index in [index for index, leaf in leaves if _TOMBSTONE in leaf]:
            # Refused ones are filed under their persons, and erased nothing.
            own = "SELECT leaf, data FROM leaves JOIN sealed USING (idx) WHERE idx = ? AND subject IS NULL"
            [(leaf, sealed)] = self._database.query(own, (index,)) or [(b"", b"")]
            told = self._record(index, leaf, None, sealed).payload if sealed else None
            spans += [told.erased] if isinstance(told, Erasure) else []
        return Ranges.joined(map(Ranges.parse, spans))

    def _record(self, index: int, leaf: bytes, subject: bytes | None, data: bytes | None) -> Record:
        event = Event.parse(leaf)
        if self._vault is None:
            return Record(index, leaf, event, None, None, "sealed")
        key = None if data is None else self._vault.by_id(subject)
        if data is None or key is None:
            if index not in self._erased:
                raise AuditTamperedError(f"Record {index}: its payload, or the key to it, is gone, and no erasure says so.")
            return Record(index, leaf, event, None, None, "erased")
        try:
            salt, payload = key.open(event.id, data)
        except AuditTamperedError as error:
            raise AuditTamperedError(f"Record {index}: {error}.") from None
        return Record(index, leaf, event, parse_payload(payload), salt, "open")


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """Turn a failing database into the error that readers get."""
    try:
        yield
    except StorageError as error:
        raise AuditUnavailableError(f"The audit log cannot be read: {error.reason}.") from None
