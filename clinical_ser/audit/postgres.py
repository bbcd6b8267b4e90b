"""A log in PostgreSQL: the same tables, the server's own durability, one writer who holds an advisory lock.

The one idea: lock and transactions belong to one session, so that a writer who loses the one has lost the other; and what the server cannot promise
(an fsync that is switched off, a standby) is refused before the first record, not found out after a loss of power.

    database = "postgresql://audit_writer@db.example/audit?sslmode=verify-full&options=-csearch_path=ward7"

Each log has a schema, or a database, of its own. Leave the password to libpq's passfile (`~/.pgpass`) or to a client certificate. The writer needs a
session of the server: PgBouncer only in session mode, since in transaction mode the lock would stay with whoever comes next. Where a standby takes
over, an acknowledged record is safe if the standby has to confirm it (`synchronous_standby_names`); without, the head that is kept beside the keys
tells of an end that was lost.
"""

import contextlib
import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

from clinical_ser.audit.database import APPEND_ONLY, SCHEMA_VERSION, SEALED_ELSEWHERE, StorageError, create_tables
from clinical_ser.audit.turns import Turns
from clinical_ser.errors import AuditSetupError, AuditTamperedError, AuditUnavailableError

try:
    import psycopg
    from psycopg import errors
    from psycopg.conninfo import conninfo_to_dict, make_conninfo
    from psycopg.pq import TransactionStatus
except ImportError:
    raise AuditSetupError("An audit log in PostgreSQL needs the library psycopg: pip install 'clinical-ser[postgres]'.") from None

GRANTS = """\
-- Whoever ran `audit init` owns the tables; the service then connects as a role that can add records and cannot change them.
-- Run as the owner, with the log's schema first in the search_path, after: CREATE ROLE audit_writer LOGIN;
DO $$ BEGIN EXECUTE format('GRANT USAGE ON SCHEMA %I TO audit_writer', current_schema()); END $$;
GRANT SELECT, INSERT ON meta, leaves, tiles, head, checkpoints, cosignatures, sealed, names, requests TO audit_writer;
-- The signed head moves on with every commit; of an erased request, what it asked for is forgotten.
GRANT UPDATE ON head, requests TO audit_writer;
-- Erasure. Its last step, VACUUM FULL, is the owner's, to be run from time to time; from PostgreSQL 17 on it may be lent:
-- GRANT MAINTAIN ON sealed, names, requests TO audit_writer;
GRANT DELETE ON sealed, names, requests TO audit_writer;
-- What `clinical-ser serve` keeps beside the log. Its tables are made when the server first starts, as the owner; run this again after that.
DO $$ DECLARE kept text; BEGIN
FOREACH kept IN ARRAY ARRAY['screenings', 'repeats', 'reviewed'] LOOP
IF to_regclass(kept) IS NOT NULL THEN EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO audit_writer', kept); END IF;
END LOOP; END $$;
"""
"""SQL that makes a writer who may insert and not change; a reader needs SELECT alone."""

_OLDEST = 130_000
"""PostgreSQL 13: the first whose autovacuum visits tables that only ever grow."""
_DURABLE = {
    "synchronous_commit": "on",
    "fsync": "on",
    "full_page_writes": "on",
    # A failed fsync has to end in recovery from the write-ahead log: asked again, the kernel says that all is well (data_sync_retry's documentation).
    "data_sync_retry": "off",
}
_CONNECT = {
    "application_name": "clinical-ser audit",
    "connect_timeout": "10",
    "client_encoding": "UTF8",
    # A server whose machine is gone is noticed after a minute, not after the two hours of the kernel's default.
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}
"""What libpq is told where the URL says nothing else."""
_SESSION = {
    "lock_timeout": "5s",
    # Nobody's default may end a long verification, a reader's snapshot, or the session that holds the lock.
    "statement_timeout": "0",
    "transaction_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    # The same minute on the server's side, after which a lost writer's lock is free.
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "60000",
}
_ROLLED_BACK = (
    errors.DiskFull,
    errors.OutOfMemory,
    errors.LockNotAvailable,
    errors.DeadlockDetected,
    errors.SerializationFailure,
    errors.QueryCanceled,
    errors.InsufficientPrivilege,
)
"""After these a transaction is rolled back and the session goes on."""
_POLL_S = 0.05
_FETCHED = 100
"""Rows at a time: of the longest there can be, 100 MB."""
_ERASABLE = ("sealed", "names", "requests")


class PostgresDatabase:
    """One session. `connect` for readers, `create` and `take` for the writer."""

    types: ClassVar[Mapping[str, str]] = {"integer": "BIGINT", "blob": "BYTEA"}

    def __init__(self, connection: "psycopg.Connection[tuple[Any, ...]]") -> None:
        self._connection = connection
        self._turns: Turns | None = None
        self._numbers = itertools.count()
        self._abandoned: list[str] = []

    @classmethod
    def create(cls, url: str) -> Self:
        """Make the tables of a log in the schema that is first in the search path, and hold it as its writer.

        Raises
        ------
        AuditSetupError
            A log, or tables of the same names, are there already; there is no such schema, or no leave to make tables.
        AuditUnavailableError
            The server cannot be reached, or does not keep what it commits.
        """
        database = cls._open(url)
        with _opened(database):
            database._insist_on_durability()
            [(schema, there)] = database.query("SELECT current_schema(), to_regclass('meta') IS NOT NULL")
            if schema is None:
                raise AuditSetupError(
                    "The schema for the audit log is not there: CREATE SCHEMA makes one, options=-csearch_path=NAME in the URL names it."
                )
            if there:
                raise AuditSetupError(_EXISTS)
            database._enter(schema)
            database._hold(schema, wait_s=0)
            with database.transaction():
                create_tables(database)
                database._forbid_changes()
                database.query("INSERT INTO meta VALUES ('schema', ?)", (SCHEMA_VERSION,))
        return database

    @classmethod
    def take(cls, url: str, *, wait_s: float, returning: bool = False) -> Self:
        """Open the log as its one writer, or as the writer who lent it and is `returning`.

        Raises
        ------
        AuditBusyError
            Another session writes to it, and did so for `wait_s`.
        AuditSetupError
            There is no log, or the URL cannot be used.
        AuditUnavailableError
            The server cannot be reached, or does not keep what it commits.
        """
        database = cls._open(url)
        with _opened(database):
            database._insist_on_durability()
            database._hold(database._enter_log(), wait_s, returning=returning)
        return database

    @classmethod
    def connect(cls, url: str) -> Self:
        """Open the log for reading, on a standby too; a writer may go on beside."""
        database = cls._open(url)
        with _opened(database):
            database._enter_log()
            database._set({"default_transaction_read_only": "on"})
        return database

    @classmethod
    def _open(cls, url: str) -> Self:
        # libpq's texts repeat the URL, with host, user and what is malformed in it: they stay here.
        try:
            options: dict[str, Any] = {**_CONNECT, **conninfo_to_dict(url)}
        except (psycopg.Error, ValueError):
            raise AuditSetupError("The database's URL in the configuration is not one that PostgreSQL's library reads.") from None
        try:
            # Autocommit, since transactions are begun and ended by name.
            connection = psycopg.connect(make_conninfo("", **options), autocommit=True)
        except psycopg.Error as error:
            asked = error.pgconn is not None and error.pgconn.used_password
            hint = " It asked for a password and took none that it was given." if asked else ""
            raise AuditUnavailableError(
                f"The PostgreSQL server of the audit log cannot be reached, or does not let this user in; its own log says which.{hint}"
            ) from None
        database = cls(connection)
        with _opened(database):
            if connection.info.server_version < _OLDEST:
                raise AuditUnavailableError(f"The audit log needs PostgreSQL {_OLDEST // 10_000} or newer.")
            database._set(_SESSION)
        return database

    # ── what a Database does ────────────────────────────────────────────────────────────────────────────────────────────

    def create_table(self, statement: str) -> None:
        """Make a table, or an index of one."""
        asked = re.match(r"CREATE \w+ IF NOT EXISTS (\w+)", statement)
        # PostgreSQL refuses a role that may make no tables before it looks whether there is anything to make.
        if not (asked and self.has_table(asked[1])):
            self.query(statement.format(**self.types))

    def has_table(self, name: str) -> bool:
        """Tell whether the log's schema has a table, or an index, of this name."""
        return self.query("SELECT to_regclass(quote_ident(?)) IS NOT NULL", (name,)) == [(True,)]

    def query(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return all rows."""
        with self._failures():
            cursor = self._connection.execute(_worded(statement) if values else statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def stream(self, statement: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """Yield rows from a cursor of the server; outside of a transaction the server first writes them all down."""
        self._close_abandoned()
        name = f"stream_{next(self._numbers)}"
        hold = "WITH HOLD " if self._status is TransactionStatus.IDLE else ""
        self.query(f"DECLARE {name} NO SCROLL CURSOR {hold}FOR {statement}", values)
        try:
            while rows := self.query(f"FETCH {_FETCHED} FROM {name}"):
                yield from rows
        except GeneratorExit:
            # A generator is thrown away at any moment, in the middle of another statement of this session even: nothing is sent now.
            self._abandoned.append(name)
            raise
        self.query(f"CLOSE {name}")

    def execute_many(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run a statement for each row, without waiting for the server in between."""
        with self._failures(), self._connection.cursor() as cursor:
            cursor.executemany(_worded(statement), rows)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit durably at the end, or roll back."""
        self._begin("READ COMMITTED READ WRITE")
        try:
            yield
            with self._failures():
                tag = self._connection.execute("COMMIT").statusmessage
            # A transaction in which something failed is rolled back by COMMIT, and that is no error to the server.
            if tag != "COMMIT":
                raise StorageError("PostgreSQL rolled the transaction back", broken=True)
        finally:
            self._roll_back()

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Let all reads inside see one state, that of the first."""
        self._begin("REPEATABLE READ READ ONLY")
        try:
            yield
        finally:
            self._roll_back()

    def check(self) -> None:
        """Do nothing: comparing indexes with tables is `pg_amcheck`'s, which needs an extension and its owner's right."""

    def tidy(self, *, now: bool = False) -> None:
        """Do nothing: the server's checkpointer copies its write-ahead log by itself, and stops the server where a sync fails."""

    def settle(self) -> None:
        """Do nothing, likewise."""

    def scrub(self) -> None:
        """Write the tables that erasure deletes from anew, without what was deleted; nothing for a role that may not (`GRANTS`).

        This is thrift, not erasure. PostgreSQL keeps the sealed bytes of a deleted row where no statement reaches: in its write-ahead log until that
        is recycled, in the log's archive and every base backup until these expire, in standbys, and on blocks of the disk that it gave back. A
        subject is erased because the key that opens those bytes is destroyed, and that key never was in this database (`vault`).

        Raises
        ------
        StorageError
            Not broken: a reader still looks at the rows, or there is no space for the copy.
        """
        for table in (*_ERASABLE, *filter(self.has_table, SEALED_ELSEWHERE)):
            # To one who is not their owner VACUUM answers with a warning and goes on; autovacuum then frees the rows for new ones.
            self._rewrite(table)
        # What was deleted leaves the disk sooner; without the role pg_checkpoint it waits for the server's own.
        with contextlib.suppress(errors.InsufficientPrivilege), self._failures(let_through=errors.InsufficientPrivilege):
            self._connection.execute("CHECKPOINT")

    def is_wanted(self) -> bool:
        """Tell whether another session waits to become the writer."""
        return self._turns is not None and self._turns.is_wanted()

    def hand_over(self) -> None:
        """End the session when the next writer has begun, or nobody wants to any more."""
        if self._turns is not None:
            self._turns.hand_over()
        self.close()

    def close(self) -> None:
        """End the session; a writer's lock is free when this returns."""
        with contextlib.suppress(StorageError):
            self._roll_back()
            if self._turns is not None and not self._connection.closed:
                # By itself the server would free it a moment later, and whoever opens the log next would find it busy.
                self._turns.release()
        self._turns = None
        self._connection.close()

    # ── coming up ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _insist_on_durability(self) -> None:
        """Set what makes a commit durable, and read back what only the server's owner can set."""
        self._set({"synchronous_commit": "on"})
        found = dict(self.query("SELECT name, setting FROM pg_settings WHERE name = ANY(?)", (list(_DURABLE),)))
        for name, wanted in _DURABLE.items():
            if found.get(name) != wanted:
                raise AuditUnavailableError(f"The PostgreSQL server does not have {name}={wanted}, so that a record could be lost.")
        if self.query("SELECT pg_is_in_recovery()") != [(False,)]:
            raise AuditUnavailableError("The PostgreSQL server is a standby, which takes no records.")

    def _enter_log(self) -> str:
        """Return the schema of the log's tables, the only one in which names are looked up from now on."""
        found = self.query(
            "SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE pg_class.oid = to_regclass('meta')"
        )
        if not found:
            raise AuditSetupError("There is no audit log where the configuration says, or this user may not look into its schema.")
        self._enter(found[0][0])
        return str(found[0][0])

    def _enter(self, schema: str) -> None:
        self.query("SELECT set_config('search_path', quote_ident(?) || ', pg_temp', false)", (schema,))

    def _hold(self, schema: str, wait_s: float, *, returning: bool = False) -> None:
        """Become the writer; the lock ends with the session, however that ends."""
        writer, wanted, back = (_AdvisoryLock(self, f"{name}\n{schema}") for name in ("writer", "wanted", "back"))
        turns = Turns(writer, wanted, back, _POLL_S)
        turns.take(wait_s, returning=returning)
        self._turns = turns

    def _set(self, settings: dict[str, str]) -> None:
        """Set what this version of the server knows, for the session."""
        for name, value in settings.items():
            self.query("SELECT set_config(name, ?, false) FROM pg_settings WHERE name = ?", (value, name))

    def _forbid_changes(self) -> None:
        self.query("CREATE FUNCTION append_only() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'the log is append-only'; END $$")
        for table in APPEND_ONLY:
            self.query(
                f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION append_only()"
            )
            # Also in a session that replays changes from elsewhere.
            self.query(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {table}_append_only")

    # ── small things ────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _status(self) -> TransactionStatus:
        return self._connection.info.transaction_status

    def _begin(self, mode: str) -> None:
        # PostgreSQL answers a second BEGIN with no more than a warning, and what is inside would be committed with what is around it.
        if self._status in {TransactionStatus.INTRANS, TransactionStatus.INERROR}:
            raise StorageError("a transaction is open already", broken=True)
        self.query(f"BEGIN ISOLATION LEVEL {mode}")

    def _roll_back(self) -> None:
        """End a transaction that is open; where the session is gone, the server does."""
        if self._status is not TransactionStatus.IDLE:
            with contextlib.suppress(psycopg.Error):
                self._connection.execute("ROLLBACK")

    def _close_abandoned(self) -> None:
        names, self._abandoned = self._abandoned, []
        if names:
            # Those of a transaction that is over are closed already.
            for (name,) in self.query("SELECT name FROM pg_cursors WHERE name = ANY(?)", (names,)):
                self.query(f"CLOSE {name}")

    def _rewrite(self, table: str) -> None:
        details: list[str] = []

        def note(notice: errors.Diagnostic) -> None:
            # Read here: a notice is empty once its statement is over.
            details.append(notice.message_detail or "")

        self._connection.add_notice_handler(note)
        try:
            self.query(f"VACUUM (FULL, VERBOSE) {table}")
        finally:
            self._connection.remove_notice_handler(note)
        # "N dead row versions cannot be removed yet", in the server's language: an older snapshot still sees them.
        if any(re.match(r"\D*[1-9]", detail.partition("\n")[0]) for detail in details):
            raise StorageError(f"what was deleted from {table} could not be removed because someone is reading", broken=False)

    @contextlib.contextmanager
    def _failures(self, *, let_through: type[psycopg.Error] | tuple[type[psycopg.Error], ...] = ()) -> Iterator[None]:
        """Turn PostgreSQL's errors into ours, by their names: the texts hold values, and the address and user of the server."""
        try:
            yield
        except let_through:
            raise
        except (errors.DataCorrupted, errors.IndexCorrupted):
            raise AuditTamperedError("The audit log's database is damaged: PostgreSQL cannot read its pages. Restore it from a backup.") from None
        except errors.DuplicateTable:
            raise AuditSetupError(_EXISTS) from None
        except psycopg.Error as error:
            kept = isinstance(error, _ROLLED_BACK) and not self._connection.closed
            raise StorageError(self._reason(error), broken=not kept) from None

    def _reason(self, error: psycopg.Error) -> str:
        if isinstance(error, errors.DiskFull):
            return "no space is left"
        if isinstance(error, errors.UniqueViolation):
            return "another writer was here, whose records this one does not know"
        if self._connection.closed:
            return "the connection to PostgreSQL is lost"
        return f"PostgreSQL says {type(error).__name__}"


class _AdvisoryLock:
    """One of the server's advisory locks, held by the session."""

    def __init__(self, database: PostgresDatabase, name: str) -> None:
        self._database = database
        self._key = int.from_bytes(hashlib.sha256(b"clinical-ser audit " + name.encode()).digest()[:8], "big", signed=True)
        self._held: str | None = None

    def take(self, *, shared: bool = False) -> bool:
        kind = "_shared" if shared else ""
        got = self._database.query(f"SELECT pg_try_advisory_lock{kind}(?::bigint)", (self._key,)) == [(True,)]
        self._held = kind if got else None
        return got

    def release(self) -> None:
        if self._held is not None:
            self._database.query(f"SELECT pg_advisory_unlock{self._held}(?::bigint)", (self._key,))
            self._held = None


_EXISTS = "There are tables where the audit log should go, and a log is never overwritten. Give it a schema, or a database, of its own."


def _worded(statement: str) -> str:
    """Return a statement with the driver's placeholders."""
    return statement.replace("%", "%%").replace("?", "%s")


@contextlib.contextmanager
def _opened(database: PostgresDatabase) -> Iterator[None]:
    """Close what fails while it is opened: there is no log yet that could say more of it than that it is unavailable."""
    try:
        yield
    except BaseException as error:
        database.close()
        if isinstance(error, StorageError):
            raise AuditUnavailableError(f"The audit log cannot be opened: {error.reason}.") from None
        raise
