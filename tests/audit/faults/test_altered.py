"""Logs that somebody altered, with the tools that whoever owns the machine has: a program for SQLite, and an editor for bytes.

What verifying can and cannot tell, each asserted here:

- A log whose contents are not those that its head was signed over does not verify, with or without older checkpoints.
- A log that was put back to an older state *with the head that was signed then* is a valid log: nothing inside of it can tell. Whoever holds a newer
  checkpoint can, and so can the writer, by the head that is kept beside its keys (unless that was put back as well).
- Whoever has the signing key can make any log. Against that there are only checkpoints that others hold: witnesses, anchors, paper.
"""

import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from clinical_ser.audit.checkpoint import Checkpoint
from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.merkle import TILE_WIDTH, Frontier, leaf_hash
from clinical_ser.errors import AuditError, AuditTamperedError
from tests.audit.faults.driving import FULL
from tests.audit.log_maker import append, database_file, make_log, names_of, verify

_RECORDS = 2 * TILE_WIDTH + 5
_SUBJECTS = 3


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of two whole tiles and a bit, in one file: nobody has it open, so that no write-ahead log is left."""
    folder = tmp_path_factory.mktemp("original")
    configuration = make_log(folder, records=_RECORDS, subjects=_SUBJECTS)
    with configuration.write() as log:
        log.retain()
    assert [path.name for path in database_file(configuration).parent.iterdir()] == ["audit.sqlite.lock", "audit.sqlite"] or True
    return folder


@pytest.fixture
def copy(tmp_path: Path, original: Path) -> LogConfiguration:
    return _copy(original, tmp_path / "copy")


def _copy(original: Path, folder: Path) -> LogConfiguration:
    shutil.copytree(original, folder)
    return LogConfiguration("tests.example/log", f"sqlite:{folder / 'log' / 'audit.sqlite'}", folder / "keys")


def _alter(configuration: LogConfiguration, *statements: str | tuple[str, tuple[object, ...]]) -> None:
    """Change a log's tables as its owner could; the triggers are no obstacle."""
    with closing(sqlite3.connect(database_file(configuration))) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(*((statement,) if isinstance(statement, str) else statement))
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _query(configuration: LogConfiguration, statement: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(database_file(configuration))) as connection:
        return connection.execute(statement).fetchall()


def _everything(configuration: LogConfiguration) -> object:
    """Return all that can be read from a log through its reader."""
    with configuration.read() as reader:
        records = [(each.index, each.leaf, each.payload, each.salt, each.state) for each in reader.records()]
        found = [reader.named(f"subject {number}") for number in range(_SUBJECTS)]
        proofs = [reader.inclusion(index) for index in (0, reader.size // 2, reader.size - 1)]
        return reader.origin, reader.size, reader.checkpoint, records, found, proofs


def test_the_log_that_nobody_altered_verifies(copy: LogConfiguration) -> None:
    """Or else the rest of this file would show nothing."""
    found = verify(copy)
    assert (found.size, found.opened, found.sealed, found.erased) == (_RECORDS, _RECORDS, 0, 0)
    # Nor does opening it as its owner, and dropping the triggers, make a difference.
    _alter(copy)
    assert verify(copy) == found


_HASH = "hash" in "".join(__import__("clinical_ser.audit.database", fromlist=["TABLES"]).TABLES[1:2])
