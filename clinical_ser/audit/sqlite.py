"""A log in one SQLite file: write-ahead log, every commit synced, one writer.

The one idea: SQLite's checkpoint, which copies the write-ahead log into the file, is never left to run by itself, because its errors are then lost:
of 39 injected failures of fdatasync, the six that hit an automatic checkpoint raised no error and appends went on.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from clinical_ser.atomic_folder import sync_folder
from clinical_ser.audit.database import APPEND_ONLY, SCHEMA_VERSION, StorageError, create_tables
from clinical_ser.audit.turns import Turns
from clinical_ser.errors import AuditSetupError, AuditTamperedError, AuditUnavailableError

_TIDY_ROWS = 4000
_TIDY_TRANSACTIONS = 500
"""After so many rows, or transactions, the write-ahead log is copied into the file: some megabytes either way."""
_CACHE_KIB = -65_536
"""Of pages (SQLite counts KiB below zero): names are scattered over their index, whose pages the default of 2 MiB reads again and again."""
_ROWS = 1024
"""Rows that are read ahead."""
_POLL_S = 0.02
_READ_BUSY_MS = 5000
_DAMAGED = "The audit log's file is damaged: SQLite cannot read its pages. Restore it from a backup."


class SqliteDatabase:
    """One connection to a log's file. `connect` for readers, `create` and `take` for the writer."""

    types: ClassVar[Mapping[str, str]] = {"integer": "INTEGER", "blob": "BLOB"}

    def __init__(self, connection: sqlite3.Connection, turns: Turns) -> None:
        self._connection = connection
        self._turns = turns
        self._rows = self._transactions = 0

    @classmethod
    def create_file(cls, path: Path) -> Self:
        """Make an empty file that only its owner may read, and hold it as its writer; AuditSetupError where one is there."""
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            raise AuditSetupError("There is a file where the audit log should go, and a log is never overwritten.") from None
        except OSError as error:
            raise AuditSetupError(f"The audit log cannot be made: {error.strerror}.") from None
        return cls.take(path, wait_s=0)

    @classmethod
    def create(cls, path: Path) -> Self:
        """Make the file with the tables of a log, and hold it as its writer; AuditSetupError where one is there."""
        database = cls.create_file(path)
        try:
            with database.transaction():
                create_tables(database)
                for table in APPEND_ONLY:
                    for action in ("UPDATE", "DELETE"):
                        database.query(
                            f"CREATE TRIGGER {table}_no_{action.lower()} BEFORE {action} ON {table} "
                            f"BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END"
                        )
                database.query("INSERT INTO meta VALUES ('schema', ?)", (SCHEMA_VERSION,))
        except StorageError as error:
            database.close()
            raise AuditSetupError(f"The audit log cannot be made: {error.reason}.") from None
        return database

    @classmethod
    def take(cls, path: Path, *, wait_s: float, returning: bool = False) -> Self:
        """Open the file as its one writer, or as the writer who lent it and is `returning`.

        Raises
        ------
        AuditBusyError
            Another process, or this one, writes to it, and did so for `wait_s`.
        AuditSetupError
            There is no log.
        AuditUnavailableError
            It cannot be opened durably.
        """
        _see_that_there_is_one(path)
        turns = Turns.beside(path, _POLL_S)
        turns.take(wait_s, returning=returning)
        connection = None
        try:
            connection = _connect(path, writable=True)
            _insist_on_durability(connection)
            # SQLite made the write-ahead log by now, and ignores it when the folder that names it cannot be synced.
            sync_folder(path.parent)
        except BaseException as error:
            if connection is not None:
                connection.close()
            turns.release()
            if isinstance(error, StorageError | OSError):
                reason = error.reason if isinstance(error, StorageError) else error.strerror
                raise AuditUnavailableError(f"The audit log cannot be opened durably: {reason}.") from None
            raise
        return cls(connection, turns)

    @classmethod
    def connect(cls, path: Path) -> Self:
        """Open the file for reading; a writer may go on beside."""
        return cls(_connect(path, writable=False), Turns.beside(path, _POLL_S))

    def create_table(self, statement: str) -> None:
        """Make a table, whose types are kept to, or an index of one."""
        self.query(statement.format(**self.types) + (" STRICT" if statement.startswith("CREATE TABLE") else ""))

    def has_table(self, name: str) -> bool:
        """Tell whether there is a table of this name."""
        return bool(self.query("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (name,)))

    def query(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return all rows."""
        with _failures():
            return self._connection.execute(statement, values).fetchall()

    def stream(self, statement: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """Yield rows without holding them all."""
        with _failures():
            cursor = self._connection.execute(statement, values)
            # Not the cursor itself: a generator that is dropped half-way would close it, which fails after the connection was closed.
            while rows := cursor.fetchmany(_ROWS):
                yield from rows

    def execute_many(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run a statement for each row."""
        with _failures():
            self._connection.executemany(statement, rows)
        self._rows += len(rows)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit durably at the end, or roll back."""
        with _failures():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        self._transactions += 1

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Let all reads inside see one state."""
        with _failures():
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    def check(self) -> None:
        """Have SQLite compare its indexes with its tables: what is found through one is not what is read in order."""
        if self.query("PRAGMA integrity_check(1)") != [("ok",)]:
            raise AuditTamperedError(_DAMAGED)

    def tidy(self, *, now: bool = False) -> None:
        """Copy the write-ahead log into the file when it is long, or now, as far as readers let it, and see that this went well."""
        if now or self._rows >= _TIDY_ROWS or self._transactions >= _TIDY_TRANSACTIONS:
            with _failures():
                self._checkpoint("PASSIVE")
            self._rows = self._transactions = 0

    def settle(self) -> None:
        """Copy all of the write-ahead log into the file, and empty it."""
        with _failures():
            self._checkpoint("TRUNCATE")

    def _checkpoint(self, mode: str) -> None:
        busy, log, copied = self._connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        # A reader may keep a passive checkpoint from finishing, which is no fault; a truncating one has to have done all.
        if mode == "TRUNCATE" and (busy or log != copied):
            raise StorageError("the write-ahead log could not be emptied because someone is reading", broken=False)

    def scrub(self) -> None:
        """Overwrite what was deleted in the file, and empty the write-ahead log."""
        with _failures():
            self._checkpoint("TRUNCATE")
            self._connection.execute("VACUUM")
            self._checkpoint("TRUNCATE")

    def is_wanted(self) -> bool:
        """Tell whether another process, or this one once more, waits to become the writer."""
        return self._turns.is_wanted()

    def hand_over(self) -> None:
        """Close it, with the errors told that SQLite's own last checkpoint would lose, and return when its next writer has it."""
        self.tidy(now=True)
        self._close_connection()
        self._turns.hand_over()

    def close(self) -> None:
        """Close the file; a writer's lock goes with it."""
        self._close_connection()
        self._turns.release()

    def _close_connection(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()


def _see_that_there_is_one(path: Path) -> None:
    if not path.is_file():
        raise AuditSetupError("There is no audit log where the configuration says.")


def _connect(path: Path, *, writable: bool) -> sqlite3.Connection:
    _see_that_there_is_one(path)
    with _failures():
        # An absolute path as a URI: `?` and `#` in a folder's name must stay part of it.
        uri = f"{path.absolute().as_uri()}?mode={'rw' if writable else 'ro'}"
        return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=_READ_BUSY_MS / 1000)


def _insist_on_durability(connection: sqlite3.Connection) -> None:
    """Set what makes a commit durable and a deletion thorough, and read it back."""
    wanted = {"journal_mode": "wal", "synchronous": 2, "wal_autocheckpoint": 0, "secure_delete": 1, "cache_size": _CACHE_KIB}
    names = {"synchronous": "FULL", "journal_mode": "WAL", "secure_delete": "ON"}
    with _failures():
        for pragma, value in wanted.items():
            connection.execute(f"PRAGMA {pragma}={names.get(pragma, value)}")
            got = connection.execute(f"PRAGMA {pragma}").fetchone()[0]
            if got != value:
                raise AuditUnavailableError(f"SQLite does not take {pragma}={names.get(pragma, value)} here, so that a record could be lost.")


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """Turn SQLite's errors into ours; their texts name tables and codes, never a path or a value."""
    try:
        yield
    except UnicodeDecodeError:
        # Python reads SQLite's message about a damaged schema, which quotes it.
        raise AuditTamperedError(_DAMAGED) from None
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        primary = code & 0xFF if code is not None else None
        if primary in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            raise AuditTamperedError(_DAMAGED) from None
        # No space, and a lock that did not come free, leave everything as it was; after anything else the disk is not known.
        kept = primary in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY}
        reason = "no space is left" if primary == sqlite3.SQLITE_FULL else f"SQLite says {getattr(error, 'sqlite_errorname', 'error')}"
        raise StorageError(reason, broken=not kept) from None
