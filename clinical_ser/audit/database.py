"""The tables of a log, and what a database has to do to hold them.

The one idea: all SQL is written once, in words that SQLite and PostgreSQL both understand; a database adds only how it connects, what it calls its
types, how it makes sure of durability, and how it gets rid of what was deleted.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol

from clinical_ser.errors import AuditBusyError

SCHEMA_VERSION = "1"

TABLES = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    # The tree: leaves as they are hashed, their hashes, and the roots over every 256, 256**2 ... of them. The hashes of leaves are there to name a
    # record that was changed; proofs are made from the leaves.
    "CREATE TABLE leaves (idx {integer} PRIMARY KEY, leaf {blob} NOT NULL, hash {blob} NOT NULL)",
    "CREATE TABLE tiles (level {integer} NOT NULL, n {integer} NOT NULL, hash {blob} NOT NULL, PRIMARY KEY (level, n))",
    # The signed head of the newest record, and those that were handed out, witnessed or anchored.
    "CREATE TABLE head (id {integer} PRIMARY KEY CHECK (id = 1), size {integer} NOT NULL, note TEXT NOT NULL)",
    "CREATE TABLE checkpoints (size {integer} PRIMARY KEY, note TEXT NOT NULL)",
    "CREATE TABLE cosignatures (size {integer} NOT NULL, line TEXT NOT NULL, PRIMARY KEY (size, line))",
    # Beside the tree, for erasure to reach: sealed payloads, who and what they are about, and the keys of repeated requests.
    "CREATE TABLE sealed (idx {integer} PRIMARY KEY, subject {blob}, data {blob} NOT NULL)",
    "CREATE TABLE names (lookup {blob} NOT NULL, idx {integer} NOT NULL, PRIMARY KEY (lookup, idx))",
    "CREATE INDEX names_by_index ON names (idx)",
    "CREATE TABLE requests (lookup {blob} PRIMARY KEY, idx {integer} NOT NULL, last {integer} NOT NULL, digest {blob}, mac {blob} NOT NULL)",
    "CREATE INDEX requests_by_index ON requests (idx)",
)
APPEND_ONLY = ("leaves", "tiles", "checkpoints", "cosignatures")
"""Tables whose rows a trigger keeps from being changed or deleted: against mistakes, not against whoever owns the database."""
SEALED_ELSEWHERE: tuple[str, ...] = ("screenings",)
"""Tables of other rooms, where they are there: what is sealed with subjects' keys, each row with its key's random name in `subject {blob}`. Erasure
deletes a subject's rows from them too."""

Statements = Sequence[tuple[str, Sequence[Sequence[Any]]]]
"""Statements of one transaction, each with the rows that it is run for."""


class StorageError(Exception):
    """The database refuses or fails.

    Attributes
    ----------
    broken
        Whether what is on the disk is unknown, so that the connection must not be used any more (an input/output error); False where the
        transaction was rolled back and nothing else happened (no space).
    """

    def __init__(self, reason: str, *, broken: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.broken = broken


class Database(Protocol):
    """One connection. Statements have `?` for values; every method raises StorageError where the driver fails.

    Attributes
    ----------
    types
        What this database calls `integer` (64 bits) and `blob`.
    """

    types: ClassVar[Mapping[str, str]]

    def create_table(self, statement: str) -> None:
        """Make a table, or an index of one, whose types are written `{integer}`, `{blob}` and TEXT.

        With IF NOT EXISTS, nothing happens where it is there, also for whoever may make none.
        """

    def has_table(self, name: str) -> bool:
        """Tell whether there is a table of this name beside the log's."""

    def query(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return all rows."""

    def stream(self, statement: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """Yield rows without holding them all."""

    def execute_many(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run a statement for each row, inside a transaction."""

    def transaction(self) -> AbstractContextManager[None]:
        """Commit durably at the end, or roll back."""

    def snapshot(self) -> AbstractContextManager[None]:
        """Let all reads inside see one state, whatever a writer does."""

    def check(self) -> None:
        """Compare the database's own structures, its indexes above all, with each other; AuditTamperedError where they differ."""

    def tidy(self, *, now: bool = False) -> None:
        """Do the housekeeping that committed transactions leave behind, when there is enough of it or `now`, as far as readers let it."""

    def settle(self) -> None:
        """Do all of it, whatever an error left half done; StorageError, which is not broken, where someone reads for seconds."""

    def scrub(self) -> None:
        """Overwrite, as far as this database can, what was deleted: free pages, and logs of writes."""

    def is_wanted(self) -> bool:
        """Tell whether another waits to become the writer."""

    def hand_over(self) -> None:
        """Close it, and return when another has become the writer, or nobody wants to any more. A StorageError means that it is open still."""

    def close(self) -> None:
        """Give the connection, and a writer's lock, back."""


def busy(wait_s: float) -> AuditBusyError:
    """Return the error of whoever would write while another process does."""
    return AuditBusyError(
        f"Another process writes to the audit log, and did for {wait_s:g} s; there is one writer at a time. Stop it, or wait longer."
    )


def create_tables(database: Database) -> None:
    """Make the tables of a new log, in a transaction of the caller."""
    for statement in TABLES:
        database.create_table(statement)
