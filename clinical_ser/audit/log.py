"""The writer of a log: many callers, one thread that commits, one signed head a commit.

The one idea is group commit: whatever was asked for while the disk was busy with the last commit becomes the next one, so that a sync is paid once
for all who wait, and nobody is answered before the disk has it. A writer who stays for long lends the log between two commits to whoever waits to
write (`turns`), and reads it again when it comes back.
"""

import contextlib
import math
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from importlib.metadata import version
from typing import Any, Self

from clinical_ser.audit.checkpoint import Checkpoint
from clinical_ser.audit.database import Database, Statements, StorageError
from clinical_ser.audit.events import (
    MAX_LEAF_BYTES,
    MAX_PAYLOAD_BYTES,
    PAYLOADS,
    SCHEMA,
    TIME,
    Event,
    Flag,
    Outcome,
    Payload,
    Purpose,
    canonical,
    plain_json,
    time_in,
)
from clinical_ser.audit.keys import LogKeys
from clinical_ser.audit.merkle import EMPTY_ROOT, TILE_HEIGHT, TILE_WIDTH, Frontier, Prover, leaf_hash, perfect_root
from clinical_ser.audit.notes import VerifierKey, open_note, parse_note
from clinical_ser.audit.pin import Pin
from clinical_ser.audit.reading import DatabaseReader
from clinical_ser.audit.tables import DatabaseTiles, head_of
from clinical_ser.audit.vault import SALT_BYTES, SubjectKey, Vault, subject_name
from clinical_ser.errors import (
    AuditBusyError,
    AuditConflictError,
    AuditError,
    AuditFormatError,
    AuditTamperedError,
    AuditUnavailableError,
    WitnessError,
)

_LARGEST_BATCH = 512
_CLOCK_TOLERANCE = timedelta(seconds=1)
"""How far wall and monotonic clock may part between two records; NTP slews by 0.5 ms a second."""
_RETAIN_EVERY = 10_000
"""A checkpoint is kept after so many records, besides those that someone asked for."""
_LONGEST_QUEUE = 10_000
"""Requests that wait; at 5,000 a second those at the end wait for two."""
_MAX_INDEX = 2**53 - 1
_LOOKED_BACK = 64
"""Tiles that are looked through for the latest time when a log is opened."""
_LOOK_EVERY_S = 0.1
"""How often a writer who lends looks whether someone waits, and the least that it keeps the log between two loans."""
_FOR_NOTHING_S = 0.9
"""A loan that took so long and added nothing was taken by nobody (`turns` waits a second for a guest)."""
_LONGEST_PAUSE_S = 10.0
_SLICE_S = 1.0
"""How long a writer waits at a time to have its log back; in between it sees whether it was closed."""
_LAST_PATIENCE_S = 10.0
"""How long a writer that is closed waits to have its log back for those who still wait for a record."""
_DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Entry:
    """A record to be made.

    Attributes
    ----------
    payload
        What happened.
    subject
        Whom it is about, as the site knows the person; None for what is about nobody. Sealed payloads of one subject share a key.
    like
        In place of a subject: the index of a record about the same one. Its key has to be there.
    outcome, purpose
        How it ended, and why it was done.
    model
        Digest of the bundle it is about.
    supersedes
        Index of the record that this one amends.
    """

    payload: Payload
    subject: str | None = None
    like: int | None = None
    outcome: Outcome = Outcome.SUCCESS
    purpose: Purpose = Purpose.TREATMENT
    model: str | None = None
    supersedes: int | None = None

    def __post_init__(self) -> None:
        """Refuse here, in its caller's thread, what could be written into a leaf and not be read again: no log with such a leaf opens."""
        if PAYLOADS.get(self.payload.kind) is not type(self.payload):
            raise AuditFormatError(f"A record's payload is of one of these kinds: {', '.join(sorted(PAYLOADS))}.")
        if not (isinstance(self.outcome, Outcome) and isinstance(self.purpose, Purpose)):
            raise AuditFormatError("A record's outcome and purpose are an Outcome and a Purpose.")
        if self.model is not None and not _DIGEST.fullmatch(self.model):
            raise AuditFormatError("A record's model is not a bundle's digest: 64 hex digits, in lower case.")
        for index in (self.supersedes, self.like):
            if index is not None and not (type(index) is int and 0 <= index <= _MAX_INDEX):
                raise AuditFormatError("The record that another one supersedes, or is like, is named by its index.")
        if self.subject is not None:
            # As it is looked up: one that cannot be is refused here.
            subject_name(self.subject)
            if self.like is not None:
                raise AuditFormatError("A record has a subject, or is like another; not both.")


@dataclass(frozen=True)
class Receipt:
    """A record that is durable.

    Attributes
    ----------
    index
        Its place in the log.
    event_id, time
        Of the event.
    repeated
        Whether it was there already, from an earlier request with the same idempotency key.
    """

    index: int
    event_id: str
    time: str
    repeated: bool = False


Beside = Callable[[SubjectKey, Sequence[Receipt]], Statements]
"""Returns what is to be written in one transaction with records, given the key of the last one's subject, and what the records' receipts will be. It
is called by the thread that commits, which waits for it."""


@dataclass(slots=True)
class _Request:
    """What one caller waits for: all of its entries, or none."""

    entries: Sequence[Entry]
    key: bytes | None
    also: Beside | None
    done: threading.Lock
    """Held until it is finished."""
    payloads: list[bytes] = field(default_factory=list)
    digest: bytes | None = None
    receipts: list[Receipt] | None = None
    error: AuditError | None = None
    finished: bool = False
    abandoned: bool = False
    """Its caller gave up waiting before it was looked at."""

    @classmethod
    def made(cls, entries: Sequence[Entry], key: bytes | None = None, also: Beside | None = None) -> Self:
        done = threading.Lock()
        done.acquire()
        return cls(entries, key, also, done)

    def finish(self, receipts: list[Receipt] | None = None, error: AuditError | None = None) -> None:
        if not self.finished:
            self.receipts, self.error, self.finished = receipts, error, True
            self.done.release()


@dataclass(frozen=True)
class Held:
    """What whoever writes holds, and a writer who lent it finds anew: records, and keys, may be others by then.

    Attributes
    ----------
    database
        Held by this writer alone.
    vault
        The keys of payloads.
    keys
        What signs heads.
    pin
        Where the newest head that was kept lies outside of the database.
    """

    database: Database
    vault: Vault
    keys: LogKeys
    pin: Pin | None = None

    def close(self) -> None:
        """Give it back. The vault first: whoever waits for the log's lock takes the vault's next, and does not wait for that."""
        self.vault.close()
        self.database.close()


@dataclass(frozen=True)
class Exclusive:
    """What `AuditLog.exclusively` lends: the writer's own database and vault, and a way to record while nobody else does."""

    database: Database
    vault: Vault
    record: Callable[..., list[Receipt]]
    verifiers: tuple[VerifierKey, ...]

    def reader(self) -> DatabaseReader:
        """Return a reader of the log as it is now."""
        return DatabaseReader(self.database, self.verifiers, self.vault)


@dataclass
class _Batch:
    """Rows of one commit, and the tree as it is after it."""

    tree: Frontier
    tile: list[bytes]
    latest: datetime
    previous: tuple[datetime, int] | None
    leaves: list[tuple[int, bytes, bytes]] = field(default_factory=list)
    sealed: list[tuple[int, bytes | None, bytes]] = field(default_factory=list)
    names: list[tuple[bytes, int]] = field(default_factory=list)
    tiles: list[tuple[int, int, bytes]] = field(default_factory=list)
    requests: list[tuple[bytes, int, int, bytes, bytes]] = field(default_factory=list)
    beside: list[tuple[str, Sequence[Sequence[Any]]]] = field(default_factory=list)
    answered: list[tuple[_Request, list[Receipt]]] = field(default_factory=list)

    def mark(self) -> tuple[Any, ...]:
        """Return what `undo` needs to take back what is added from now on."""
        lists = (self.leaves, self.sealed, self.names, self.tiles)
        return self.tree.copy(), list(self.tile), self.latest, self.previous, [(rows, len(rows)) for rows in lists]

    def undo(self, mark: tuple[Any, ...]) -> None:
        """Take back what was added since."""
        self.tree, self.tile, self.latest, self.previous, lengths = mark
        for rows, length in lengths:
            del rows[length:]


class AuditLog:
    """The one writer of a log. Use it as a context manager, or close it.

    Parameters
    ----------
    held
        The log's database, vault, keys and pin.
    reopen
        Takes them again, after an input/output error or a loan, waiting for so many seconds at most.
    lends
        Whether it steps aside between two commits for whoever waits to write. Those who ask it for records meanwhile wait.
    clock, monotonic_ns
        Wall time, and a clock that never goes back.

    Raises
    ------
    AuditTamperedError
        The head's signature does not fit, or the records do not fit the head.
    """

    def __init__(
        self,
        held: Held,
        *,
        reopen: Callable[[float], Held] | None = None,
        lends: bool = False,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._held = held
        self._reopen = reopen
        self._lends = lends and reopen is not None
        self._clock, self._monotonic_ns = clock, monotonic_ns
        self._run = os.urandom(16).hex()
        self._process = os.getpid()
        self._software = f"clinical-ser {version('clinical-ser')}"
        self._broken = False
        """What is open must not be used any more."""
        self._lent = False
        """It is broken because it was lent, and by no error."""
        self._pause_s = _LOOK_EVERY_S
        self._look_at = time.monotonic() + self._pause_s
        self._patient_until = math.inf
        self._closed = False
        self._committing = False
        self._waiting: deque[_Request] = deque()
        self._wake = threading.Condition(threading.Lock())
        self._exclusive = threading.RLock()
        self._inside: int | None = None
        """The thread that is in `exclusively`."""
        self._origin, self._note = held.keys.origin, ""
        self._tree, self._tile, self._pinned = Frontier(), list[bytes](), 0
        self._latest = datetime.min.replace(tzinfo=UTC)
        self._previous: tuple[datetime, int] | None = None
        self._load()
        self._thread = threading.Thread(target=self._serve, name="audit-writer", daemon=True)
        self._thread.start()

    # ── what callers ask ────────────────────────────────────────────────────────────────────────────────────────────────

    def append(self, payload: Payload, *, idempotency_key: str | None = None, timeout_s: float = 30.0, **about: Any) -> Receipt:
        """Record one event; see `record`. `about` are the other fields of `Entry`."""
        return self.record([Entry(payload, **about)], idempotency_key=idempotency_key, timeout_s=timeout_s)[0]

    def record(
        self, entries: Sequence[Entry], *, idempotency_key: str | None = None, timeout_s: float = 30.0, also: Beside | None = None
    ) -> list[Receipt]:
        """Record events in one commit, and return when they are on the disk.

        Parameters
        ----------
        entries
            In their order; they follow each other in the log.
        idempotency_key
            The caller's name for this request: asked again with it, after a crash say, the log answers with the records it has.
        timeout_s
            How long to wait for the disk. After it the records may still be made; ask again with the same key to know.
        also
            What else is written, or not, with the records: see `Beside` and `change`. It is not called for a request that was recorded before; an
            AuditError that it raises refuses this request alone.

        Raises
        ------
        AuditUnavailableError
            They could not be made durable, or too many wait already: whatever they were for must not go ahead.
        AuditConflictError
            The idempotency key was used for another content.
        AuditFormatError
            A payload is too long, or has no canonical form.
        """
        return self._asked(self._request(entries, idempotency_key, also), timeout_s)

    def change(self, statements: Statements, *, timeout_s: float = 30.0) -> None:
        """Write what lies beside the log, in tables of other rooms, durably, in one commit with what others wait for, and without a record.

        The statements must be such that no content of the database makes them fail (`ON CONFLICT` where a key may be there already): what the
        database refuses is refused to all who share the commit.

        Raises
        ------
        AuditUnavailableError
            It could not be made durable.
        """
        self._asked(_Request.made((), also=lambda *_: statements), timeout_s)

    def _asked(self, request: _Request, timeout_s: float) -> list[Receipt]:
        """Return when a request is on the disk."""
        self._see_that_it_is_mine()
        with self._wake:
            if self._closed:
                raise AuditUnavailableError("The audit log is closed.")
            if len(self._waiting) >= _LONGEST_QUEUE:
                raise AuditUnavailableError(f"{_LONGEST_QUEUE} requests wait for the audit log already; ask again later.")
            self._waiting.append(request)
            self._wake.notify()
        if not request.done.acquire(timeout=timeout_s):
            request.abandoned = True
            raise AuditUnavailableError(f"The audit log did not commit within {timeout_s:g} s; ask again with the same idempotency key.")
        if request.receipts is None:
            raise request.error or AuditUnavailableError("The audit log ended before it could commit.")
        return request.receipts

    def lookup(self, name: str) -> bytes:
        """Return what stands for a name in the log and beside it: see `Vault.lookup`."""
        return self._vault.lookup(name)

    @property
    def size(self) -> int:
        """Number of records."""
        return self._tree.size

    @property
    def checkpoint(self) -> str:
        """The signed head."""
        return self._note

    @property
    def verifiers(self) -> tuple[VerifierKey, ...]:
        """The keys, past and present, by which heads are verified."""
        return self._held.keys.verifiers

    @contextlib.contextmanager
    def exclusively(self, *, timeout_s: float = 30.0) -> Iterator[Exclusive]:
        """Keep others from committing meanwhile, for what has to see the log as it is and change what lies beside the records.

        Raises
        ------
        AuditUnavailableError
            It did not come free within `timeout_s`. Also where the database fails inside, or where the log itself, and not what is lent, is asked
            for a record.
        """
        with self._alone(timeout_s):
            self._inside = threading.get_ident()
            try:
                with self._noting():
                    yield Exclusive(self._database, self._vault, self._record_now, self.verifiers)
            finally:
                self._inside = None

    def _see_that_it_is_mine(self) -> None:
        if os.getpid() != self._process:
            # The thread that commits stayed in the parent, and a database's connection does not survive a fork.
            raise AuditUnavailableError("The audit log was opened before this process was forked; a process opens its own.")
        if self._inside == threading.get_ident():
            raise AuditUnavailableError("Inside of `exclusively` the log is asked through what that lends: this would wait for itself.")

    @contextlib.contextmanager
    def _alone(self, timeout_s: float = 30.0) -> Iterator[None]:
        """Hold the log, open and working, against the thread that commits, and against loans."""
        self._see_that_it_is_mine()
        deadline = time.monotonic() + timeout_s
        if not self._exclusive.acquire(timeout=timeout_s):
            raise AuditUnavailableError(f"The audit log did not come free within {timeout_s:g} s; ask again later.")
        try:
            if self._closed:
                raise AuditUnavailableError("The audit log is closed.")
            if self._broken:
                self._recover(deadline)
            yield
        finally:
            self._exclusive.release()

    def _record_now(self, entries: Sequence[Entry], idempotency_key: str | None = None, *, also: Beside | None = None) -> list[Receipt]:
        if self._broken:
            # To come back would be to let go of the log, and what was read of it inside may not hold any more.
            raise AuditUnavailableError("The audit log failed, and has to be asked once more from the beginning.")
        request = self._request(entries, idempotency_key, also)
        self._commit([request])
        if request.receipts is None:
            raise request.error or AuditUnavailableError("The audit log could not commit.")
        return request.receipts

    @property
    def _database(self) -> Database:
        return self._held.database

    @property
    def _vault(self) -> Vault:
        return self._held.vault

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        """Turn a failure of the database into ours, and remember it where the next commit must not go on with this connection."""
        with _unavailable():
            try:
                yield
            except StorageError as error:
                self._broken = self._broken or error.broken
                raise

    def retain(self) -> str:
        """Keep the head as it is now, for good, and return it: for what is handed out, witnessed or printed."""
        with self._alone():
            with self._noting(), self._database.transaction():
                self._keep_checkpoint()
            self._move_pin()
            return self._note

    def _move_pin(self) -> None:
        if self._held.pin:
            self._held.pin.keep(self._note)
            self._pinned = self._tree.size

    def add_cosignature(self, lines: str, witnesses: Sequence[VerifierKey]) -> int:
        """Keep what a witness gave for one of the checkpoints that were kept, and return that checkpoint's size.

        Parameters
        ----------
        lines
            Signature lines of a note.
        witnesses
            The keys by which the witness is known.

        Raises
        ------
        WitnessError
            They fit none of the checkpoints that were kept last.
        """
        with self.exclusively() as inside:
            for size, note in inside.database.query("SELECT size, note FROM checkpoints ORDER BY size DESC LIMIT 1000"):
                with contextlib.suppress(AuditFormatError, AuditTamperedError):
                    text, _ = parse_note(note)
                    fitting = open_note(f"{text}\n{lines}", witnesses).verified
                    rows = [(size, signature.line) for _, signature in fitting]
                    with inside.database.transaction():
                        inside.database.execute_many("INSERT INTO cosignatures VALUES (?, ?) ON CONFLICT (size, line) DO NOTHING", rows)
                    return int(size)
        raise WitnessError("The cosignature fits none of the checkpoints that were kept last, or these are not the witness's keys.")

    def close(self) -> None:
        """Finish what waits, keep the head, and give the log back."""
        self._see_that_it_is_mine()
        with self._wake:
            if self._closed:
                return
            self._closed = True
            # Were it lent just now: nobody waits for what nobody asked for.
            self._patient_until = time.monotonic() + (_LAST_PATIENCE_S if self._waiting or self._committing else 0)
            self._wake.notify()
        self._thread.join()
        with self._exclusive:
            try:
                if not self._broken:
                    self._move_pin()
                    self._tidy_up()
            finally:
                self._held.close()

    def _tidy_up(self) -> None:
        """Do, with its errors told, what the database would do by itself when it is closed; records are safe either way."""
        try:
            self._database.tidy(now=True)
        except StorageError as error:
            if error.broken:
                raise AuditUnavailableError(f"The audit log cannot be closed in order: {error.reason}. What was recorded is kept.") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ── the thread that commits ─────────────────────────────────────────────────────────────────────────────────────────

    def _serve(self) -> None:
        while True:
            with self._wake:
                if not self._waiting and not self._closed:
                    self._wake.wait(_LOOK_EVERY_S if self._lends else None)
                if self._closed and not self._waiting:
                    return
                taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), _LARGEST_BATCH))]
                self._committing = bool(taken)
            with self._exclusive:
                if taken:
                    # What nobody waits for any more is not made: its caller will ask again.
                    self._commit([request for request in taken if not request.abandoned])
                self._committing = False
                if self._lends and not self._closed and time.monotonic() >= self._look_at:
                    self._look()

    def _look(self) -> None:
        """Lend the log where it is wanted, and look again soon; less soon where whoever wanted it did not take it, as a process that was stopped."""
        size, began = self._tree.size, time.monotonic()
        self._lend_where_wanted()
        for_nothing = self._tree.size == size and time.monotonic() - began >= _FOR_NOTHING_S
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S) if for_nothing else _LOOK_EVERY_S
        self._look_at = time.monotonic() + self._pause_s

    def _commit(self, requests: list[_Request]) -> None:
        """Make one transaction of the requests; each is finished, one way or the other."""
        try:
            if self._broken:
                self._recover()
            batch = self._draft(requests)
            if batch.leaves or batch.beside:
                self._write(batch)
        except AuditError as error:
            _finish_all(requests, error)
        except StorageError as error:
            self._broken = self._broken or error.broken
            _finish_all(requests, AuditUnavailableError(f"The audit log cannot commit: {error.reason}. Nothing may go ahead without its record."))
        except BaseException as error:  # noqa: BLE001
            # A fault of ours: whoever waits must not wait for ever, nor those after; nothing is written on what may be wrong before it is read again.
            self._broken = True
            _finish_all(requests, AuditUnavailableError(f"The audit log failed for a reason that it does not know ({type(error).__name__})."))
        else:
            for request, receipts in batch.answered:
                request.finish(receipts)

    def _draft(self, requests: list[_Request]) -> _Batch:
        batch = _Batch(self._tree.copy(), list(self._tile), self._latest, self._previous)
        # Repeated requests first, so that a subject that was erased gets no new key by one.
        fresh = [request for request in requests if self._prepare(request) and not self._answer_again(batch, request)]
        keys = self._vault.keys_for(entry.subject for request in fresh for entry in request.entries if entry.subject is not None)
        drafted: dict[bytes, tuple[list[Receipt], bytes | None]] = {}
        for request in fresh:
            mark = batch.mark()
            try:
                known = drafted.get(request.key) if request.key is not None else None
                receipts = _same_again(request, *known) if known else self._add_all(batch, request, keys)
            except AuditError as error:
                # What is wrong with one request is no reason to refuse the others.
                batch.undo(mark)
                request.finish(error=error)
                continue
            if request.key is not None and request.digest is not None and not known:
                row = (request.key, receipts[0].index, receipts[-1].index, request.digest)
                batch.requests.append((*row, self._vault.request_mac(*row)))
                drafted[request.key] = (receipts, request.digest)
            batch.answered.append((request, receipts))
        return batch

    def _answer_again(self, batch: _Batch, request: _Request) -> bool:
        """Answer a request that was recorded before, one way or the other; False for a new one."""
        try:
            known = None if request.key is None else self._recorded(request.key, len(request.entries))
            if known is None:
                return False
            batch.answered.append((request, _same_again(request, *known)))
        except (AuditConflictError, AuditTamperedError) as error:
            request.finish(error=error)
        return True

    def _add_all(self, batch: _Batch, request: _Request, keys: Mapping[str, SubjectKey]) -> list[Receipt]:
        own = [self._key_of(entry, keys) for entry in request.entries]
        receipts = [self._add(batch, entry, raw, key) for entry, raw, key in zip(request.entries, request.payloads, own, strict=True)]
        if request.also:
            batch.beside += request.also(own[-1] if own else self._vault.log_key, receipts)
        return receipts

    def _key_of(self, entry: Entry, keys: Mapping[str, SubjectKey]) -> SubjectKey:
        if entry.subject is not None:
            return keys[entry.subject]
        if entry.like is None:
            return self._vault.log_key
        rows = self._database.query("SELECT subject FROM sealed WHERE idx = ?", (entry.like,))
        key = self._vault.by_id(rows[0][0]) if rows else None
        if key is None:
            raise AuditUnavailableError(f"Record {entry.like}, which this one is about, was erased; nothing more can be recorded with it.")
        return key

    def _add(self, batch: _Batch, entry: Entry, payload: bytes, key: SubjectKey) -> Receipt:
        event_id, salt, index = os.urandom(16).hex(), os.urandom(SALT_BYTES), batch.tree.size
        leaf, moment = self._leaf(batch, entry, event_id, salt + payload, key)
        digest = leaf_hash(leaf)
        batch.leaves.append((index, leaf, digest))
        batch.sealed.append((index, key.id, key.seal(event_id, salt, payload)))
        names = {self._vault.lookup(record) for record in entry.payload.records()}
        if key.id is not None:
            names.add(key.lookup)
        batch.names += [(name, index) for name in names]
        self._grow(batch, digest)
        return Receipt(index, event_id, moment)

    def _leaf(self, batch: _Batch, entry: Entry, event_id: str, committed: bytes, key: SubjectKey) -> tuple[bytes, str]:
        now, monotonic_ns = self._clock(), self._monotonic_ns()
        flags = list(entry.payload.flags())
        if now < batch.latest or _parted(batch.previous, now, monotonic_ns):
            flags.append(Flag.CLOCK_ANOMALY)
        batch.latest, batch.previous = max(now, batch.latest), (now, monotonic_ns)
        moment = now.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        leaf = plain_json(
            {
                "schema": SCHEMA,
                "id": event_id,
                "kind": entry.payload.kind,
                "version": entry.payload.version,
                "time": moment,
                "monotonic_ns": monotonic_ns,
                "run": self._run,
                "outcome": str(entry.outcome),
                "role": str(entry.payload.actor.role),
                "purpose": str(entry.purpose),
                "software": self._software,
                "model": entry.model,
                "commitment": sha256(committed).hexdigest(),
                "subject_tag": None if key.id is None else key.tag(event_id),
                "supersedes": entry.supersedes,
                "flags": [str(flag) for flag in flags],
            }
        )
        if len(leaf) > MAX_LEAF_BYTES:
            raise AuditFormatError(f"An event's leaf has {len(leaf)} bytes, and at most {MAX_LEAF_BYTES} fit.")
        return leaf, moment

    def _grow(self, batch: _Batch, digest: bytes) -> None:
        """Add a leaf's hash; where that fills tiles, add their roots to the tiles above."""
        batch.tree.append(digest)
        batch.tile.append(digest)
        level, row, size = 1, batch.tile, batch.tree.size
        while size % TILE_WIDTH == 0:
            size >>= TILE_HEIGHT
            batch.tiles.append((level, size - 1, perfect_root(row)))
            level += 1
            if size % TILE_WIDTH:
                break
            row = self._full_tile(batch, level - 1, size - TILE_WIDTH)
        if len(batch.tile) == TILE_WIDTH:
            batch.tile = []

    def _full_tile(self, batch: _Batch, level: int, first: int) -> list[bytes]:
        rows = self._database.query("SELECT hash FROM tiles WHERE level = ? AND n >= ? ORDER BY n", (level, first))
        return [digest for (digest,) in rows] + [digest for at, n, digest in batch.tiles if at == level and n >= first]

    def _write(self, batch: _Batch) -> None:
        size, note, database = batch.tree.size, self._note, self._database
        if batch.leaves:
            note = Checkpoint(self._origin, size, batch.tree.root).sign(self._held.keys.signers)
        with database.transaction():
            if batch.leaves:
                self._insert(batch, note)
            for statement, rows in batch.beside:
                database.execute_many(statement, rows)
        self._tree, self._tile, self._note = batch.tree, batch.tile, note
        self._latest, self._previous = batch.latest, batch.previous
        try:
            database.tidy()
        except StorageError as error:
            # The records are on the disk, and their callers are told so; the next ones wait for a database that works.
            self._broken = error.broken
        if size - self._pinned >= _RETAIN_EVERY:
            with contextlib.suppress(AuditUnavailableError):  # the next commit tries again, and `close` says so
                self._move_pin()

    def _insert(self, batch: _Batch, note: str) -> None:
        before, size, database = self._tree.size, batch.tree.size, self._database
        database.execute_many("INSERT INTO leaves VALUES (?, ?, ?)", batch.leaves)
        database.execute_many("INSERT INTO sealed VALUES (?, ?, ?)", batch.sealed)
        if batch.names:
            database.execute_many("INSERT INTO names VALUES (?, ?)", batch.names)
        if batch.tiles:
            database.execute_many("INSERT INTO tiles VALUES (?, ?, ?)", batch.tiles)
        if batch.requests:
            database.execute_many("INSERT INTO requests VALUES (?, ?, ?, ?, ?)", batch.requests)
        database.execute_many("UPDATE head SET size = ?, note = ?", [(size, note)])
        if size // _RETAIN_EVERY > before // _RETAIN_EVERY:
            database.execute_many("INSERT INTO checkpoints VALUES (?, ?) ON CONFLICT (size) DO NOTHING", [(size, note)])

    # ── coming up, lending, and coming back ─────────────────────────────────────────────────────────────────────────────

    def _load(self) -> None:
        """Read the head and the right edge of the tree, and see that they fit each other, what was kept outside, and what was here before."""
        with _unavailable():
            note = head_of(self._database)
            head, _ = Checkpoint.open(note, self._held.keys.verifiers, self._origin)
            tiles = DatabaseTiles(self._database)
            prover = Prover(tiles, head.size)
            [(leaves, last)] = self._database.query("SELECT COUNT(*), MAX(idx) FROM (SELECT idx FROM leaves ORDER BY idx DESC LIMIT 2) AS newest")
            try:
                tree = prover.frontier()
            except (IndexError, ValueError):
                raise AuditTamperedError(f"Records are missing: the signed head counts {head.size}.") from None
            if tree.root != head.root or (leaves and last != head.size - 1):
                raise AuditTamperedError(
                    f"The last records do not fit the signed head of {head.size}; `audit verify` says where they part. Nothing was written."
                )
            if self._held.pin:
                self._held.pin.check(head, prover.root)
            if head.size < self._tree.size or prover.root(self._tree.size) != self._tree.root:
                raise AuditTamperedError(f"The log has not grown from the {self._tree.size} records that it had here: it was exchanged or changed.")
            first = head.size // TILE_WIDTH * TILE_WIDTH
            recent = self._database.query("SELECT leaf FROM leaves WHERE idx >= ? ORDER BY idx", (first,))
            self._latest = self._latest_time(head.size)
        self._note, self._pinned = note, head.size
        self._tree, self._tile = tree, [leaf_hash(leaf) for (leaf,) in recent]

    def _latest_time(self, size: int) -> datetime:
        """Return the latest time of any record: that of the last one that was not flagged, or of a flagged one after it.

        It is not looked for beyond some 16,000 flagged records, for the sake of those who open the log every time.
        """
        latest = ""
        for end in range(size, max(0, size - _LOOKED_BACK * TILE_WIDTH), -TILE_WIDTH):
            for (leaf,) in self._database.query("SELECT leaf FROM leaves WHERE idx >= ? AND idx < ? ORDER BY idx DESC", (end - TILE_WIDTH, end)):
                latest = max(latest, time_in(leaf))
                if Flag.CLOCK_ANOMALY.encode() not in leaf:
                    return _moment(latest)
        return _moment(latest) if latest else datetime.min.replace(tzinfo=UTC)

    def _lend_where_wanted(self) -> None:
        """Step aside for whoever waits to write, and come back after; a log that cannot be had back is told to those who ask next."""
        try:
            if self._database.is_wanted():
                if self._broken:
                    with contextlib.suppress(AuditError):
                        self._recover()
                self._lend()
                self._recover()
        except AuditError:
            pass
        except BaseException as error:  # noqa: BLE001
            # As with a commit: this thread goes on, and the next request finds out what is the matter.
            self._broken = self._broken or not isinstance(error, StorageError) or error.broken

    def _lend(self) -> None:
        if not self._broken:
            with contextlib.suppress(AuditUnavailableError):
                self._move_pin()
        self._broken = True
        self._vault.close()
        self._database.hand_over()
        self._lent = True

    def _recover(self, deadline: float = math.inf) -> None:
        """Open the log again, after a loan, or after an error that left its state unknown, and read it anew.

        After an error the write-ahead log is emptied first: its pages that the failed sync left unwritten would otherwise stand before later commits
        and, after a loss of power, take them along.
        """
        if self._reopen is None:
            raise AuditUnavailableError("The audit log failed with an input/output error, and has to be opened again.")
        self._held.close()
        self._held = self._taken_again(self._reopen, deadline)
        if not self._lent:
            with _unavailable():
                self._database.settle()
        self._load()
        self._broken = self._lent = False

    def _taken_again(self, reopen: Callable[[float], Held], deadline: float) -> Held:
        """Return what the writer held; one who lends waits for it until the deadline, and no longer than someone asks for the log."""
        while True:
            try:
                return reopen(_SLICE_S if self._lends else 0)
            except AuditBusyError as error:
                if not self._lends or time.monotonic() >= min(deadline, self._patient_until):
                    raise AuditUnavailableError(f"The audit log cannot be opened again: {error}") from None

    # ── small things ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _request(self, entries: Sequence[Entry], idempotency_key: str | None, also: Beside | None = None) -> _Request:
        if not entries:
            raise AuditFormatError("A request to record holds no event.")
        key = None if idempotency_key is None else self._vault.lookup(f"request\n{idempotency_key}")
        return _Request.made(entries, key, also)

    def _prepare(self, request: _Request) -> bool:
        """Spell a request's payloads; False for one that is refused.

        Done by the thread that commits: were it the callers', that thread would wait for each of them in turn to let go of the interpreter.
        """
        entries = request.entries
        try:
            request.payloads = [_spelled(entry.payload) for entry in entries]
            if request.key is not None:
                about = [[e.subject, e.like, str(e.outcome), str(e.purpose), e.model, e.supersedes] for e in entries]
                request.digest = self._vault.digest(canonical(about) + b"".join(request.payloads))
        except AuditFormatError as error:
            request.finish(error=error)
        return not request.finished

    def _recorded(self, key: bytes, entries: int) -> tuple[list[Receipt], bytes | None] | None:
        """Return what was recorded under an idempotency key, a receipt an entry, and the digest of what was asked."""
        rows = self._database.query("SELECT idx, last, digest, mac FROM requests WHERE lookup = ?", (key,))
        if not rows:
            return None
        [(index, last, digest, mac)] = rows
        if mac != self._vault.request_mac(key, index, last, digest):
            raise AuditTamperedError("What the log knows of an earlier request with this idempotency key was changed; `audit verify` says more.")
        if last - index + 1 != entries:
            raise AuditConflictError("This idempotency key was used for another number of events; a new request needs a new key.")
        leaves = self._database.query("SELECT idx, leaf FROM leaves WHERE idx >= ? AND idx <= ? ORDER BY idx", (index, last))
        return [_receipt(at, leaf) for at, leaf in leaves], digest

    def _keep_checkpoint(self) -> None:
        self._database.execute_many("INSERT INTO checkpoints VALUES (?, ?) ON CONFLICT (size) DO NOTHING", [(self._tree.size, self._note)])


def create_log(database: Database, keys: LogKeys) -> None:
    """Write the head of an empty log into new tables."""
    note = Checkpoint(keys.origin, 0, EMPTY_ROOT).sign(keys.signers)
    with _unavailable(), database.transaction():
        database.query("INSERT INTO meta VALUES ('origin', ?)", (keys.origin,))
        database.query("INSERT INTO head VALUES (1, 0, ?)", (note,))


def _moment(text: str) -> datetime:
    return datetime.strptime(text, TIME).replace(tzinfo=UTC)


def _spelled(payload: Payload) -> bytes:
    raw = payload.canonical()
    if len(raw) > MAX_PAYLOAD_BYTES:
        raise AuditFormatError(f"A payload has {len(raw)} bytes, and at most {MAX_PAYLOAD_BYTES} are taken.")
    return raw


def _receipt(index: int, leaf: bytes) -> Receipt:
    event = Event.parse(leaf)
    return Receipt(index, event.id, event.time, repeated=True)


def _same_again(request: _Request, receipts: list[Receipt], digest: bytes | None) -> list[Receipt]:
    """Return the receipts of the earlier request; AuditConflictError where it was another one. An erased one cannot be compared."""
    if digest is None:
        raise AuditConflictError("What was recorded under this idempotency key was erased; a new request needs a new key.")
    if digest != request.digest:
        raise AuditConflictError("This idempotency key was used for another content; a new request needs a new key.")
    return [replace(receipt, repeated=True) for receipt in receipts]


def _parted(previous: tuple[datetime, int] | None, now: datetime, monotonic_ns: int) -> bool:
    """Tell whether the wall clock went otherwise than the monotonic one since the last record of this run."""
    if previous is None:
        return False
    wall, monotonic = previous
    return abs((now - wall) - timedelta(microseconds=(monotonic_ns - monotonic) / 1000)) > _CLOCK_TOLERANCE


def _finish_all(requests: list[_Request], error: AuditError) -> None:
    for request in requests:
        request.finish(error=error)


@contextlib.contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except StorageError as error:
        raise AuditUnavailableError(f"The audit log cannot be used: {error.reason}.") from None
