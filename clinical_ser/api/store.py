"""Screenings that are kept: rows beside the records of the log, in the same database and the same transactions.

The one idea: what is personal in a row is sealed with the key of the person it is of, so that a row is there exactly when its record is, and an
erasure in the log, which destroys the key, takes what is kept here along.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from hashlib import sha256
from threading import Lock
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field

from clinical_ser.api.access import named_in
from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.database import Database, Statements
from clinical_ser.audit.events import RECORD, Actor, Hex32, Purpose, Review, ShortText, canonical
from clinical_ser.audit.log import AuditLog, Beside, Receipt
from clinical_ser.audit.reading import DatabaseReader, readable
from clinical_ser.audit.vault import SubjectKey, Vault, subject_name
from clinical_ser.models.reference import LONGEST_WORD
from clinical_ser.screening.result import ScreeningResult
from clinical_ser.strict import Strict

State = Literal["accepted", "running", "done", "failed"]

_TABLES = (
    "CREATE TABLE IF NOT EXISTS screenings (id TEXT PRIMARY KEY, tenant TEXT NOT NULL, subject {blob} NOT NULL, state TEXT NOT NULL, "
    "attempts {integer} NOT NULL, accepted {integer} NOT NULL, finished {integer}, model TEXT NOT NULL, same {blob}, result_of {blob}, "
    "record {integer}, about {blob} NOT NULL, outcome {blob}, reviews {blob})",
    "CREATE INDEX IF NOT EXISTS screenings_of_subject ON screenings (subject, finished)",
    "CREATE INDEX IF NOT EXISTS screenings_same ON screenings (same)",
    "CREATE INDEX IF NOT EXISTS screenings_result ON screenings (result_of)",
    "CREATE INDEX IF NOT EXISTS screenings_state ON screenings (state, accepted)",
    "CREATE TABLE IF NOT EXISTS repeats (lookup {blob} PRIMARY KEY, digest {blob} NOT NULL, screening TEXT NOT NULL, at {integer} NOT NULL)",
    "CREATE TABLE IF NOT EXISTS reviewed (one {integer} PRIMARY KEY, size {integer} NOT NULL)",
)
_COLUMNS = "id, tenant, subject, state, attempts, accepted, finished, record, about, outcome, reviews"
_UNFINISHED = "('accepted', 'running')"
_REVIEW = b'"kind":"review"'
_POOLED = 16
"""Connections that are kept open for reading."""


def _word(text: str) -> str:
    if not (text.strip() and text.isprintable()):
        raise ValueError("characters that print are expected")
    return text


Word = Annotated[str, Field(min_length=1, max_length=LONGEST_WORD), AfterValidator(_word)]


def _name(text: str) -> str:
    # As the trail looks it up, also where a site's name is put before it.
    return subject_name(_word(text))


def _past(day: date) -> date:
    if day > datetime.now(UTC).date() + timedelta(days=1):
        raise ValueError("a day that has come is expected")
    return day


class Metadata(Strict):
    """What is said of a recording when it is sent."""

    subject: Annotated[str, Field(min_length=1, max_length=200, examples=["MRN-0042"]), AfterValidator(_name)]
    """Whom it is of, as the site names the person; it is in the audit trail, sealed, and in no result."""
    model: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    sex: Literal["female", "male", "other"] | None = None
    age: Annotated[float, Field(ge=0, le=130)] | None = None
    prevalence: Annotated[float, Field(gt=0, lt=1)] | None = None
    start: Annotated[float, Field(ge=0)] | None = None
    end: Annotated[float, Field(gt=0)] | None = None
    task: Word | None = None
    device: Word | None = None
    language: Word | None = None
    recorded_on: Annotated[date, AfterValidator(_past)] | None = None
    timeline: bool = False
    explained: Word | None = None
    notice: ShortText | None = None
    """The version of the notice that the person was given."""
    purpose: Purpose = Purpose.TREATMENT

    def options(self) -> dict[str, Any]:
        """Return what `Screener.screen` is asked with."""
        return self.model_dump(mode="json", exclude={"subject", "model", "notice", "purpose"}, exclude_none=True)


class Order(Strict):
    """What was asked, and by whom: with a screening until it is erased, for those who may see it."""

    metadata: Metadata
    model: str
    actor: Actor
    body: Hex32
    """SHA-256 of the bytes that were sent."""
    size: int
    told_before: str | None = None
    """The version of the notice that the person had been given, as the trail has it."""
    spooled: Hex32 | None = None
    """The key of the recording that waits on the disk, encrypted, until it is answered."""

    @property
    def notice(self) -> str | None:
        """The version of the notice that the person was given last."""
        return self.metadata.notice or self.told_before


class Failure(Strict):
    """Why there is no result."""

    code: str
    detail: str


class Answer(Strict):
    """What is asked of a result again and again, so that it need not be read for that."""

    digest: Hex32
    model: Hex32
    """Of the result, and of the model that answered."""


@dataclass(frozen=True)
class Outcome:
    """What came of a screening: a result, as the JSON that it was checked from, or a reason.

    Attributes
    ----------
    json
        The result's.
    """

    answer: Answer | None = None
    json: bytes = b""
    failure: Failure | None = None

    @classmethod
    def of(cls, result: ScreeningResult, json: bytes) -> Self:
        """Return the outcome with a result, which this JSON is of."""
        return cls(Answer(digest=result.digest, model=result.model.digest), json)

    @cached_property
    def result(self) -> ScreeningResult | None:
        """The result, read."""
        return None if self.answer is None else ScreeningResult.model_validate_json(self.json)

    def encode(self) -> bytes:
        """Return its bytes: one line of JSON, and the result's."""
        return _Head(answer=self.answer, failure=self.failure).model_dump_json().encode() + b"\n" + self.json

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """Read what `encode` wrote."""
        line, _, json = raw.partition(b"\n")
        head = _Head.model_validate_json(line)
        return cls(head.answer, json, head.failure)


class _Head(Strict):
    answer: Answer | None
    failure: Failure | None


class Reviewed(Strict):
    """A clinician's decision, as the trail has it."""

    index: int
    decision: Literal["agreed", "overridden", "undecided"]
    reason: str
    name: str | None
    role: str
    """Of whoever decided: a clinician, or a record system (`service`) that passed on what became of a card."""
    time: str


@dataclass(frozen=True)
class Kept:
    """A screening, opened.

    Attributes
    ----------
    record
        The index of the record of its answer, or of its failure.
    """

    id: str
    tenant: str
    state: State
    attempts: int
    accepted_at: datetime
    finished_at: datetime | None
    order: Order
    outcome: Outcome
    record: int | None
    reviews: tuple[Reviewed, ...]

    @property
    def result(self) -> ScreeningResult | None:
        """The result, read; None where there is none."""
        return self.outcome.result

    @property
    def failure(self) -> Failure | None:
        """Why there is none, where it has ended without."""
        return self.outcome.failure

    @property
    def subject(self) -> str:
        """Whom it is of, as the site names the person."""
        return self.order.metadata.subject


class Readers:
    """Connections for reading, kept open: opening one costs more than most questions.

    Parameters
    ----------
    audit
        The log.
    log
        Its writer, which knows the keys, also those that a command has made since.
    """

    def __init__(self, audit: LogConfiguration, log: AuditLog) -> None:
        self._audit = audit
        self._log = log
        self._idle: list[tuple[Database, Vault]] = []
        self._lock = Lock()
        self._closed = False

    @contextmanager
    def lent(self) -> Iterator[tuple[Database, Vault]]:
        """Lend a connection and a vault to one thread; one that fails is not used again."""
        with self._lock:
            found = self._idle.pop() if self._idle else None
        if found is None:
            found = self._open()
        # What the vault found for the last one may have been erased since.
        found[1].forget()
        try:
            with readable():
                yield found
        except BaseException:
            _close(found)
            raise
        with self._lock:
            if keep := not self._closed and len(self._idle) < _POOLED:
                self._idle.append(found)
        if not keep:
            _close(found)

    @contextmanager
    def reader(self) -> Iterator[DatabaseReader]:
        """Lend a reader of the log as it is now."""
        with self.lent() as (database, vault), database.snapshot():
            yield DatabaseReader(database, self._log.verifiers, vault)

    def close(self) -> None:
        """Close all that are idle."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for each in idle:
            _close(each)

    def _open(self) -> tuple[Database, Vault]:
        vault = self._audit.open_vault()
        try:
            return self._audit.connect(), vault
        except BaseException:
            vault.close()
            raise


def _close(lent: tuple[Database, Vault]) -> None:
    with closing(lent[1]), closing(lent[0]):
        pass


class Store:
    """The screenings of an installation. Its methods wait for the disk: call them in a worker thread.

    Parameters
    ----------
    log
        The writer of the log in whose database they are.
    readers
        For reading.
    """

    def __init__(self, log: AuditLog, readers: Readers) -> None:
        self._log = log
        self._readers = readers
        self._taking_in = Lock()

    def prepare(self) -> None:
        """Make the tables, if they are not there."""
        with self._log.exclusively() as inside:
            for statement in _TABLES:
                inside.database.create_table(statement)
            if not inside.database.query("SELECT size FROM reviewed"):
                with inside.database.transaction():
                    inside.database.execute_many("INSERT INTO reviewed VALUES (1, ?)", [(0,)])

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def get(self, screening: str, tenant: str) -> Kept | None:
        """Return a screening of a tenant; None where there is none, or it was erased."""
        with self._readers.lent() as (database, vault):
            rows = database.query(f"SELECT {_COLUMNS} FROM screenings WHERE id = ? AND tenant = ?", (screening, tenant))  # noqa: S608
            return _opened(rows[0], vault) if rows else None

    def latest(self, tenant: str, subject: str, limit: int) -> list[Kept]:
        """Return the newest finished screenings of a person, who is named as the trail names them."""
        with self._readers.lent() as (database, vault):
            key = vault.find(subject)
            if key is None or key.id is None:
                return []
            select = f"SELECT {_COLUMNS} FROM screenings WHERE subject = ? AND tenant = ? AND state = 'done' ORDER BY finished DESC LIMIT ?"  # noqa: S608
            found = [_opened(row, vault) for row in database.query(select, (key.id, tenant, limit))]
            return [kept for kept in found if kept is not None]

    def same(self, lookup: str) -> str | None:
        """Return the newest finished screening of the same recording with the same model and options; see `same_as`."""
        with self._readers.lent() as (database, vault):
            select = "SELECT id FROM screenings WHERE same = ? AND state = 'done' ORDER BY finished DESC LIMIT 1"
            rows = database.query(select, (vault.lookup(lookup),))
            return rows[0][0] if rows else None

    def repeated(self, key: str) -> tuple[bytes, str] | None:
        """Return what binds the request that came with an idempotency key (`bound`), and the screening that it led to."""
        with self._readers.lent() as (database, vault):
            rows = database.query("SELECT digest, screening FROM repeats WHERE lookup = ?", (vault.lookup(key),))
            return (bytes(rows[0][0]), rows[0][1]) if rows else None

    def bound(self, digest: bytes) -> bytes:
        """Return what is kept of a request's digest: keyed, since what was sent could be guessed."""
        return self._log.lookup(f"request sent\n{digest.hex()}")

    def is_anothers(self, kept: Kept) -> bool:
        """Tell whether the same answer, of the same recording, is kept under another person of the same tenant."""
        if kept.outcome.answer is None:
            return False
        with self._readers.lent() as (database, vault):
            select = (
                "SELECT 1 FROM screenings WHERE result_of = ? AND tenant = ? AND subject <> (SELECT subject FROM screenings WHERE id = ?) LIMIT 1"
            )
            return bool(database.query(select, (vault.lookup(RECORD + kept.outcome.answer.digest), kept.tenant, kept.id)))

    def is_anothers_tenant(self, screening: str, tenant: str) -> bool:
        """Tell whether there is such a screening, of another tenant."""
        with self._readers.lent() as (database, _):
            return bool(database.query("SELECT 1 FROM screenings WHERE id = ? AND tenant <> ?", (screening, tenant)))

    def unfinished(self) -> list[Kept]:
        """Return accepted screenings that have no outcome, the oldest first."""
        with self._readers.lent() as (database, vault):
            select = f"SELECT {_COLUMNS} FROM screenings WHERE state IN {_UNFINISHED} ORDER BY accepted"  # noqa: S608
            found = [_opened(row, vault) for row in database.query(select)]
            return [kept for kept in found if kept is not None]

    # ── writing: rows for the transaction that has the record ───────────────────────────────────────────────────────────

    def answered(self, screening: str, tenant: str, order: Order, outcome: Outcome, repeat: tuple[str, bytes] | None, *, same: str) -> Beside:
        """Return the row of a screening that was answered at once."""
        now = _now()

        def rows(key: SubjectKey, receipts: Sequence[Receipt]) -> Statements:
            found = _outcome_columns(screening, key, outcome, receipts, self._log.lookup)
            sealed = _seal(key, screening, "about", order)
            state = "done" if outcome.answer else "failed"
            values = (screening, tenant, key.id, state, 1, now, now, order.model, self._log.lookup(same), *found[:2], sealed, found[2], None)
            return [(_INSERT, [values]), *self._repeat(repeat, screening, now)]

        return rows

    def accepted(self, screening: str, tenant: str, order: Order, repeat: tuple[str, bytes] | None, *, same: str) -> Beside:
        """Return the row of a screening that is answered later."""
        now = _now()

        def rows(key: SubjectKey, receipts: Sequence[Receipt]) -> Statements:
            sealed = _seal(key, screening, "about", order)
            lookup = self._log.lookup(same)
            values = (screening, tenant, key.id, "accepted", 0, now, None, order.model, lookup, None, receipts[-1].index, sealed, None, None)
            return [(_INSERT, [values]), *self._repeat(repeat, screening, now)]

        return rows

    def finished(self, kept: Kept, outcome: Outcome) -> Beside:
        """Return the change of an accepted screening that now has its outcome; the recording's key is forgotten with it.

        From now on it is the answer to the same recording asked of the model that answered, which need not be the one that did when it was accepted.
        """
        order, answer = kept.order, outcome.answer
        subject = named_in(kept.tenant, kept.subject)
        same = None if answer is None else same_as(kept.tenant, subject, order.body, answer.model, order.metadata)

        def rows(key: SubjectKey, receipts: Sequence[Receipt]) -> Statements:
            result_of, record, sealed = _outcome_columns(kept.id, key, outcome, receipts, self._log.lookup)
            about = _seal(key, kept.id, "about", kept.order.model_copy(update={"spooled": None}))
            state = "done" if outcome.answer else "failed"
            values = (state, _now(), result_of, record, about, sealed, same and self._log.lookup(same), kept.id)
            return [(_FINISH, [values])]

        return rows

    def started(self, kept: Kept) -> None:
        """Note, durably, that an accepted screening is worked on."""
        self._log.change([("UPDATE screenings SET state = 'running', attempts = attempts + 1 WHERE id = ? AND state = 'accepted'", [(kept.id,)])])

    def put_back(self) -> None:
        """Let those that were worked on when the server ended be worked on again."""
        self._log.change([(f"UPDATE screenings SET state = 'accepted' WHERE state IN {_UNFINISHED}", [()])])  # noqa: S608

    def give_back(self, screenings: Sequence[str]) -> None:
        """Let those that an orderly stop interrupts be worked on again, as if they had not been."""
        if screenings:
            statement = "UPDATE screenings SET state = 'accepted', attempts = attempts - 1 WHERE id = ? AND state = 'running'"
            self._log.change([(statement, [(each,) for each in screenings])])

    def expire(self, results: timedelta, repeats: timedelta) -> None:
        """Forget results and idempotency keys that are older."""
        now = datetime.now(UTC)
        self._log.change(
            [
                ("DELETE FROM screenings WHERE finished IS NOT NULL AND finished < ?", [(_micros(now - results),)]),
                ("DELETE FROM repeats WHERE at < ?", [(_micros(now - repeats),)]),
            ]
        )

    def _repeat(self, repeat: tuple[str, bytes] | None, screening: str, now: int) -> Statements:
        if repeat is None:
            return []
        key, digest = repeat
        insert = (
            "INSERT INTO repeats VALUES (?, ?, ?, ?) "
            "ON CONFLICT (lookup) DO UPDATE SET digest = excluded.digest, screening = excluded.screening, at = excluded.at"
        )
        return [(insert, [(self._log.lookup(key), self.bound(digest), screening, now)])]

    # ── reviews, whoever recorded them ──────────────────────────────────────────────────────────────────────────────────

    def take_in_reviews(self) -> int:
        """Read what was recorded since the last time, here or by a command, and note each review with its screening.

        Returns
        -------
        int
            How many screenings were reviewed.
        """
        # One after the other: each starts from what the last one noted.
        with self._taking_in:
            with self._readers.lent() as (database, vault):
                [(seen,)] = database.query("SELECT size FROM reviewed")
                with database.snapshot():
                    reader = DatabaseReader(database, self._log.verifiers, vault)
                    if reader.size <= seen:
                        return 0
                    places = [at for at, leaf in enumerate(reader.leaves(seen, reader.size), start=seen) if _REVIEW in leaf]
                    noted = _Noted(database, vault)
                    for at in places:
                        noted.add(reader, at)
                    size = reader.size
            self._log.change([*noted.rows(), ("UPDATE reviewed SET size = ?", [(size,)])])
            return len(noted)


class _Reviews(Strict):
    reviews: tuple[Reviewed, ...] = ()


class _Noted:
    """Reviews beside their screenings, several of one screening together."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database, self._vault = database, vault
        self._found: dict[str, tuple[SubjectKey, _Reviews]] = {}

    def __len__(self) -> int:
        return len(self._found)

    def add(self, reader: DatabaseReader, index: int) -> None:
        """Add a review to each screening of its person with its result."""
        record = reader.record(index)
        told = record.payload
        if not isinstance(told, Review):
            return
        name = (told.signature.name if told.signature else None) or told.actor.name
        role = told.actor.role.value
        added = Reviewed(index=index, decision=told.decision, reason=told.reason, name=name, role=role, time=record.event.time)
        # A result's digest follows from the recording, which another person's screening, or another site's, may have too.
        [person] = reader.subjects_of([index])
        select = "SELECT id, subject, reviews FROM screenings WHERE result_of = ? AND subject = ?"
        for screening, subject, sealed in self._database.query(select, (self._vault.lookup(RECORD + told.result), person)):
            key = self._vault.by_id(bytes(subject))
            if key is None:
                continue
            before = self._found[screening][1] if screening in self._found else _reviews_in(key, screening, sealed)
            self._found[screening] = (key, _Reviews(reviews=(*(each for each in before.reviews if each.index != index), added)))

    def rows(self) -> Statements:
        """Return what is to be written."""
        update = "UPDATE screenings SET reviews = ? WHERE id = ?"
        return [(update, [(_seal(key, screening, "reviews", reviews), screening)]) for screening, (key, reviews) in self._found.items()]


_INSERT = "INSERT INTO screenings VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_FINISH = (
    "UPDATE screenings SET state = ?, finished = ?, result_of = ?, record = ?, about = ?, outcome = ?, same = ? "
    "WHERE id = ? AND state IN ('accepted', 'running')"
)


def same_as(tenant: str, subject: str, body: str, model_digest: str, metadata: Metadata) -> str:
    """Return what two requests have in common that must have one answer: person, bytes, model and options."""
    options = canonical({"options": metadata.options()})
    return f"same\n{tenant}\n{subject}\n{body}\n{model_digest}\n{sha256(options).hexdigest()}"


def _outcome_columns(
    screening: str, key: SubjectKey, outcome: Outcome, receipts: Sequence[Receipt], lookup: Callable[[str], bytes]
) -> tuple[bytes | None, int, bytes]:
    result_of = lookup(RECORD + outcome.answer.digest) if outcome.answer else None
    return result_of, receipts[-1].index, _seal(key, screening, "outcome", outcome.encode())


def _seal(key: SubjectKey, screening: str, what: str, content: Strict | bytes) -> bytes:
    raw = content if isinstance(content, bytes) else content.model_dump_json().encode()
    return key.seal(f"screening {screening} {what}", b"", raw)


def _open(key: SubjectKey, screening: str, what: str, sealed: bytes) -> bytes:
    return b"".join(key.open(f"screening {screening} {what}", sealed))


def _reviews_in(key: SubjectKey, screening: str, sealed: bytes | None) -> _Reviews:
    return _Reviews.model_validate_json(_open(key, screening, "reviews", bytes(sealed))) if sealed else _Reviews()


def _opened(row: tuple[Any, ...], vault: Vault) -> Kept | None:
    """Open a row; None where its person's key was destroyed meanwhile."""
    screening, tenant, subject, state, attempts, accepted, finished, record, about, sealed, reviews = row
    key = vault.by_id(bytes(subject))
    if key is None:
        return None
    outcome = Outcome.decode(_open(key, screening, "outcome", bytes(sealed))) if sealed else Outcome()
    told = _reviews_in(key, screening, reviews)
    return Kept(
        id=screening,
        tenant=tenant,
        state=state,
        attempts=attempts,
        accepted_at=_moment(accepted),
        finished_at=None if finished is None else _moment(finished),
        order=Order.model_validate_json(_open(key, screening, "about", bytes(about))),
        outcome=outcome,
        record=record,
        reviews=told.reviews,
    )


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _micros(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _now() -> int:
    return _micros(datetime.now(UTC))


def _moment(micros: int) -> datetime:
    return _EPOCH + timedelta(microseconds=micros)
