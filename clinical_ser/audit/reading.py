"""A log read through its database, as of its signed head.

The one idea: a reader stands on one head, so that records, proofs and checkpoint belong together. It believes what the database says; whoever must
not believe it asks `verifying`.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

from clinical_ser.audit.checkpoint import Checkpoint
from clinical_ser.audit.database import Database, StorageError
from clinical_ser.audit.events import MODEL, RECORD, TIME, Event, parse_payload, time_in
from clinical_ser.audit.merkle import Prover
from clinical_ser.audit.notes import VerifierKey
from clinical_ser.audit.records import Record
from clinical_ser.audit.tables import DatabaseTiles, head_of
from clinical_ser.audit.vault import Vault
from clinical_ser.errors import AuditSetupError, AuditTamperedError, AuditUnavailableError

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

    Raises
    ------
    AuditTamperedError
        The head has no valid signature.
    """

    def __init__(self, database: Database, verifiers: Iterable[VerifierKey], vault: Vault | None = None) -> None:
        self._database = database
        self._vault = vault
        with readable():
            self._note = head_of(database)
            self._head, _ = Checkpoint.open(self._note, verifiers)
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
        """The signed head, verbatim."""
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
        """Return the indices of the records about a subject, a result (`clinical-ser:result:…`) or a model (`clinical-ser:model:…`)."""
        if self._vault is None:
            return []
        names = [f"subject\n{name}", *([name] if name.startswith((RECORD, MODEL)) else [])]
        lookups = [self._vault.lookup(each) for each in names]
        with readable():
            rows = [row for lookup in lookups for row in self._database.query("SELECT idx FROM names WHERE lookup = ? ORDER BY idx", (lookup,))]
        return sorted({index for (index,) in rows if index < self.size})

    def cosigned(self) -> str:
        """Return the newest checkpoint that was kept, with the cosignatures that witnesses gave for it; the head where none was kept."""
        with readable():
            rows = self._database.query("SELECT size, note FROM checkpoints WHERE size <= ? ORDER BY size DESC LIMIT 1", (self.size,))
            if not rows:
                return self._note
            [(size, note)] = rows
            lines = self._database.query("SELECT line FROM cosignatures WHERE size = ? ORDER BY line", (size,))
        return str(note) + "".join(line for (line,) in lines)

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

    def tile(self, level: int, n: int) -> Sequence[bytes]:
        """Return the hashes of a tile of the tree, as far as they are there."""
        with readable():
            return self._tiles.tile(level, n)

    def leaves(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield leaves in their order, unopened."""
        with readable():
            for (leaf,) in self._database.stream("SELECT leaf FROM leaves WHERE idx >= ? AND idx < ? ORDER BY idx", (start, min(stop, self.size))):
                yield leaf

    def inclusion(self, index: int) -> list[bytes]:
        """Return the audit path of a record against the checkpoint; ValueError where there is none."""
        with readable():
            return self._prover.inclusion(index)

    def consistency(self, old: int, size: int | None = None) -> list[bytes]:
        """Return the proof that the checkpoint's tree, or that of `size` records, grew from one of `old`; ValueError where it is smaller."""
        with readable():
            return (self._prover if size is None else Prover(self._tiles, size)).consistency(old)

    def _record(self, index: int, leaf: bytes, subject: bytes | None, data: bytes | None) -> Record:
        event = Event.parse(leaf)
        if data is None:
            return Record(index, leaf, event, None, None, "erased")
        key = None if self._vault is None else self._vault.by_id(subject)
        if key is None:
            return Record(index, leaf, event, None, None, "sealed")
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
