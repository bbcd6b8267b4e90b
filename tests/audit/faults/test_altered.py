"""Logs that somebody altered, with the tools that whoever owns the machine has: a program for SQLite, and an editor for bytes.

What verifying can and cannot tell, each asserted here:

- A log whose contents are not those that its head was signed over does not verify, with or without older checkpoints.
- A log that was put back to an older state *with the head that was signed then* is a valid log: nothing inside of it can tell. Whoever holds a newer
  checkpoint can, and so can the writer, by the head that is kept beside its keys (unless that was put back as well).
- Whoever has the signing key can make any log. Against that there are only checkpoints that others hold: witnesses, anchors, paper.
"""

import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import pytest

from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.events import Event
from clinical_ser.audit.merkle import TILE_WIDTH, leaf_hash, perfect_root
from clinical_ser.audit.vault import SALT_BYTES, Vault
from clinical_ser.audit.verifying import verify_log
from clinical_ser.errors import AuditError, AuditFormatError, AuditTamperedError
from tests.audit.faults.driving import FULL
from tests.audit.log_maker import CONFIGURATION_FILE, append, database_file, make_log, names_of, verify

_OLDER = TILE_WIDTH + 44
_RECORDS = 2 * TILE_WIDTH + 5
_SUBJECTS = 3
_FLIPS = 400
_DOES_NOT_FIT = (AuditTamperedError, AuditFormatError)

Numbers = Callable[[str, object], None]
Alteration = Callable[[LogConfiguration], None]
PutBack = Callable[[LogConfiguration, Path], None]


# ── logs to alter ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of one whole tile and a bit. Nobody has it open, so that its database is one file."""
    folder = tmp_path_factory.mktemp("older") / "site"
    make_log(folder, records=_OLDER, subjects=_SUBJECTS)
    return folder


@pytest.fixture(scope="module")
def newer(older: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same log, when it had grown to two whole tiles and a bit."""
    folder = tmp_path_factory.mktemp("newer") / "site"
    with _copy(older, folder).write() as log:
        for name in names_of(_RECORDS)[_OLDER:]:
            append(log, name, _SUBJECTS)
    return folder


@pytest.fixture
def log(newer: Path, tmp_path: Path) -> LogConfiguration:
    return _copy(newer, tmp_path / "site")


def _copy(site: Path, folder: Path) -> LogConfiguration:
    shutil.copytree(site, folder)
    return _log_in(folder)


def _log_in(site: Path) -> LogConfiguration:
    return LogConfiguration(LogConfiguration.load(site / CONFIGURATION_FILE).origin, f"sqlite:{site / 'log' / 'audit.sqlite'}", site / "keys")


def _sql(log: LogConfiguration, statement: str, *values: object) -> list[tuple[object, ...]]:
    """Ask or change a log's tables as its owner could; the triggers are no obstacle."""
    with closing(sqlite3.connect(database_file(log))) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        rows = connection.execute(statement, values).fetchall()
        connection.commit()
    return rows


def _make_hashes_fit(log: LogConfiguration) -> None:
    """Compute all hashes anew from the leaves, as a forger would: only the signed head is out of reach."""
    with closing(sqlite3.connect(database_file(log))) as connection:
        leaves = [leaf for (leaf,) in connection.execute("SELECT leaf FROM leaves ORDER BY idx")]
        hashes = [leaf_hash(leaf) for leaf in leaves]
        connection.executemany("UPDATE leaves SET hash = ? WHERE idx = ?", [(digest, index) for index, digest in enumerate(hashes)])
        connection.execute("DELETE FROM tiles")
        whole = range(len(hashes) // TILE_WIDTH)
        roots = [(n, perfect_root(hashes[n * TILE_WIDTH : (n + 1) * TILE_WIDTH])) for n in whole]
        connection.executemany("INSERT INTO tiles VALUES (1, ?, ?)", roots)
        connection.commit()


def _head(log: LogConfiguration) -> str:
    return str(_sql(log, "SELECT note FROM head")[0][0])


def _everything(log: LogConfiguration) -> object:
    """Return all that can be read from a log through its reader."""
    with log.read() as reader:
        records = [(each.index, each.leaf, each.payload, each.salt, each.state) for each in reader.records()]
        found = [reader.named(f"subject {number}") for number in range(_SUBJECTS)]
        found += [reader.about(name) for record in reader.records() if record.payload for name in record.payload.records()]
        proofs = [reader.inclusion(index) for index in range(0, reader.size, max(1, reader.size // 5))]
        return reader.origin, reader.size, reader.checkpoint, reader.kept_checkpoints(), records, found, proofs


def test_the_log_that_nobody_altered_verifies(log: LogConfiguration) -> None:
    """Or else the rest of this file would show nothing."""
    found = verify(log)
    assert (found.size, found.opened, found.sealed, found.erased) == (_RECORDS, _RECORDS, 0, 0)
    # Nor do dropped triggers, or hashes that are computed anew, make a difference.
    _sql(log, "SELECT 1")
    _make_hashes_fit(log)
    assert verify(log) == found


# ── records, and the tree over them ─────────────────────────────────────────────────────────────────────────────────────────────


def _change_a_leaf(log: LogConfiguration) -> None:
    [(leaf,)] = _sql(log, "SELECT leaf FROM leaves WHERE idx = 300")
    assert isinstance(leaf, bytes)
    changed = leaf.replace(b'"outcome":"success"', b'"outcome":"refused"')
    assert changed != leaf
    assert Event.parse(changed)
    _sql(log, "UPDATE leaves SET leaf = ? WHERE idx = 300", changed)


def _change_a_leaf_and_its_hash(log: LogConfiguration) -> None:
    _change_a_leaf(log)
    _make_hashes_fit(log)


def _change_a_hash(log: LogConfiguration) -> None:
    _sql(log, "UPDATE leaves SET hash = (SELECT hash FROM leaves WHERE idx = 301) WHERE idx = 300")


def _drop_a_record(log: LogConfiguration) -> None:
    _sql(log, "DELETE FROM leaves WHERE idx = 300")


def _drop_a_record_and_close_the_gap(log: LogConfiguration) -> None:
    for table in ("leaves", "sealed", "names", "requests"):
        _sql(log, f"DELETE FROM {table} WHERE idx = 300")
    for table in ("leaves", "sealed", "requests", "names"):
        # By way of negative numbers: no two rows may have one index even for a moment.
        _sql(log, f"UPDATE {table} SET idx = -(idx - 1) WHERE idx > 300")
        _sql(log, f"UPDATE {table} SET idx = -idx WHERE idx < 0")
    _make_hashes_fit(log)


def _put_a_dropped_record_at_the_end(log: LogConfiguration) -> None:
    _sql(log, "UPDATE leaves SET idx = ? WHERE idx = 300", _RECORDS)


def _exchange_two_records(log: LogConfiguration) -> None:
    for table in ("leaves", "sealed", "names", "requests"):
        _sql(log, f"UPDATE {table} SET idx = -1 WHERE idx = 300")
        _sql(log, f"UPDATE {table} SET idx = 300 WHERE idx = 301")
        _sql(log, f"UPDATE {table} SET idx = 301 WHERE idx = -1")
    _make_hashes_fit(log)


def _forge_another_record(log: LogConfiguration) -> None:
    _sql(log, "INSERT INTO leaves SELECT ?, leaf, hash FROM leaves WHERE idx = 300", _RECORDS)
    _make_hashes_fit(log)


def _forge_another_record_and_a_head(log: LogConfiguration) -> None:
    _forge_another_record(log)
    lines = _head(log).split("\n")
    _sql(log, "UPDATE head SET size = ?, note = ?", _RECORDS + 1, "\n".join([lines[0], str(_RECORDS + 1), *lines[2:]]))


def _cut_the_end_off(log: LogConfiguration) -> None:
    for table in ("leaves", "sealed", "names", "requests"):
        _sql(log, f"DELETE FROM {table} WHERE idx >= ?", _RECORDS - 1)


def _delete_all_records(log: LogConfiguration) -> None:
    for table in ("leaves", "sealed", "names", "requests", "tiles"):
        _sql(log, f"DELETE FROM {table}")


def _change_a_tile(log: LogConfiguration) -> None:
    _sql(log, "UPDATE tiles SET hash = (SELECT hash FROM tiles WHERE n = 1) WHERE n = 0")


def _drop_a_tile(log: LogConfiguration) -> None:
    _sql(log, "DELETE FROM tiles WHERE n = 1")


def _add_a_tile(log: LogConfiguration) -> None:
    _sql(log, "INSERT INTO tiles SELECT 1, 2, hash FROM tiles WHERE n = 1")


def _add_a_level_of_tiles(log: LogConfiguration) -> None:
    _sql(log, "INSERT INTO tiles SELECT 2, 0, hash FROM tiles WHERE n = 1")


def _put_back_the_head_alone(log: LogConfiguration) -> None:
    _sql(log, "UPDATE head SET size = ?, note = (SELECT note FROM checkpoints WHERE size = ?)", _OLDER, _OLDER)


def _drop_the_head(log: LogConfiguration) -> None:
    _sql(log, "DELETE FROM head")


def _take_the_signature_from_the_head(log: LogConfiguration) -> None:
    _sql(log, "UPDATE head SET note = ?", _head(log).split("\n\n")[0] + "\n\n")


def _change_a_kept_checkpoint(log: LogConfiguration) -> None:
    [(note,)] = _sql(log, "SELECT note FROM checkpoints WHERE size = ?", _OLDER)
    _sql(log, "UPDATE checkpoints SET note = ? WHERE size = ?", str(note).replace(f"\n{_OLDER}\n", f"\n{_OLDER - 1}\n"), _OLDER)


_OF_RECORDS: dict[Alteration, str] = {
    _change_a_leaf: "300",
    _change_a_leaf_and_its_hash: str(_RECORDS),
    _change_a_hash: "300",
    _drop_a_record: "300",
    _drop_a_record_and_close_the_gap: "",
    _put_a_dropped_record_at_the_end: "300",
    _exchange_two_records: "",
    _forge_another_record: str(_RECORDS),
    _forge_another_record_and_a_head: "",
    _cut_the_end_off: str(_RECORDS - 1),
    _delete_all_records: "0",
    _change_a_tile: "",
    _drop_a_tile: "",
    _add_a_tile: "",
    _add_a_level_of_tiles: "",
    _put_back_the_head_alone: str(_OLDER),
    _drop_the_head: "",
    _take_the_signature_from_the_head: "",
    _change_a_kept_checkpoint: "",
}
"""With what the message names, where there is one place that does not fit."""


# ── payloads, and how they are found ────────────────────────────────────────────────────────────────────────────────────────────


def _exchange_two_payloads(log: LogConfiguration) -> None:
    rows = {index: _sql(log, "SELECT subject, data FROM sealed WHERE idx = ?", index)[0] for index in (300, 301)}
    _sql(log, "UPDATE sealed SET subject = ?, data = ? WHERE idx = 300", *rows[301])
    _sql(log, "UPDATE sealed SET subject = ?, data = ? WHERE idx = 301", *rows[300])


def _seal_again(log: LogConfiguration, change: Callable[[Vault, bytes, bytes], tuple[bytes, bytes, str | None]]) -> None:
    """Open a payload with the vault, change something, and seal it as well as the log does."""
    vault = log.open_vault()
    [(leaf, subject, data)] = _sql(log, "SELECT leaf, subject, data FROM leaves JOIN sealed USING (idx) WHERE idx = 300")
    assert isinstance(leaf, bytes)
    assert isinstance(data, bytes)
    event = Event.parse(leaf)
    key = vault.by_id(subject if isinstance(subject, bytes) else None)
    assert key is not None
    salt, payload, other = change(vault, *key.open(event.id, data))
    if other is not None:
        found = next(each for number in range(_SUBJECTS) if (each := vault.find(f"subject {number}")) is not None and each.id != key.id)
        key = found
    vault.close()
    _sql(log, "UPDATE sealed SET subject = ?, data = ? WHERE idx = 300", key.id, key.seal(event.id, salt, payload))


def _change_a_payload(log: LogConfiguration) -> None:
    def change(vault: Vault, salt: bytes, payload: bytes) -> tuple[bytes, bytes, str | None]:
        return salt, payload.replace(b'"viewed"', b'"amended"'), None

    _seal_again(log, change)


def _change_a_salt(log: LogConfiguration) -> None:
    _seal_again(log, lambda vault, salt, payload: (sha256(salt).digest()[:SALT_BYTES], payload, None))


def _seal_for_another_subject(log: LogConfiguration) -> None:
    _seal_again(log, lambda vault, salt, payload: (salt, payload, "other"))


def _say_that_it_is_another_subjects(log: LogConfiguration) -> None:
    _sql(log, "UPDATE sealed SET subject = (SELECT subject FROM sealed AS other WHERE other.subject != sealed.subject) WHERE idx = 300")


def _drop_a_payload(log: LogConfiguration) -> None:
    _sql(log, "DELETE FROM sealed WHERE idx = 300")


def _drop_a_payload_and_its_names(log: LogConfiguration) -> None:
    for table in ("sealed", "names", "requests"):
        _sql(log, f"DELETE FROM {table} WHERE idx = 300")


def _add_a_payload_of_no_record(log: LogConfiguration) -> None:
    _sql(log, "INSERT INTO sealed SELECT ?, subject, data FROM sealed WHERE idx = 300", _RECORDS)


def _drop_the_names(log: LogConfiguration) -> None:
    _sql(log, "DELETE FROM names WHERE idx = 300")


def _drop_all_names(log: LogConfiguration) -> None:
    _sql(log, "DELETE FROM names")


def _drop_one_name(log: LogConfiguration) -> None:
    _sql(log, "DELETE FROM names WHERE rowid = (SELECT MIN(rowid) FROM names WHERE idx = 300)")


def _add_a_name(log: LogConfiguration) -> None:
    _sql(log, "INSERT INTO names SELECT lookup, 300 FROM names WHERE lookup NOT IN (SELECT lookup FROM names WHERE idx = 300) LIMIT 1")


def _add_a_name_of_no_record(log: LogConfiguration) -> None:
    _sql(log, "INSERT INTO names SELECT lookup, ? FROM names WHERE idx = 300", _RECORDS)


_BESIDE_RECORDS: dict[Alteration, str] = {
    _exchange_two_payloads: "300",
    _change_a_payload: "300",
    _change_a_salt: "300",
    _seal_for_another_subject: "300",
    _say_that_it_is_another_subjects: "300",
    _drop_a_payload: "300",
    _drop_a_payload_and_its_names: "300",
    _add_a_payload_of_no_record: "",
    _drop_the_names: "300",
    _drop_all_names: "0",
    _drop_one_name: "300",
    _add_a_name: "300",
}


def _name(value: object) -> str | None:
    return value.__name__.strip("_") if callable(value) else None


@pytest.mark.parametrize("alter", [*_OF_RECORDS, *_BESIDE_RECORDS], ids=_name)
def test_an_altered_log_does_not_verify(log: LogConfiguration, alter: Alteration) -> None:
    alter(log)
    with pytest.raises(_DOES_NOT_FIT) as raised:
        verify(log)
    assert (_OF_RECORDS | _BESIDE_RECORDS)[alter] in str(raised.value)


@pytest.mark.parametrize("alter", _OF_RECORDS, ids=_name)
def test_whoever_lacks_the_vault_still_sees_that_records_were_altered(log: LogConfiguration, alter: Alteration) -> None:
    alter(log)
    with pytest.raises(_DOES_NOT_FIT), closing(log.connect()) as database:
        verify_log(database, log.load_keys().verifiers, tree_only=True)


def test_names_of_records_that_are_not_there_do_not_verify(log: LogConfiguration) -> None:
    _add_a_name_of_no_record(log)
    with pytest.raises(AuditTamperedError):
        verify(log)


@pytest.mark.parametrize("origin", ["other.example/log", None], ids=["of another name", "of the same name"])
def test_another_logs_records_and_head_do_not_verify(log: LogConfiguration, tmp_path: Path, origin: str | None) -> None:
    """A log is what its keys signed, not what it is called."""
    other = make_log(tmp_path / "other", records=_RECORDS, subjects=_SUBJECTS, origin=origin or log.origin)
    _sql(log, "UPDATE head SET note = ?", _head(other))
    with pytest.raises(AuditTamperedError):
        verify(log)
    shutil.copyfile(database_file(other), database_file(log))
    with pytest.raises(AuditTamperedError):
        verify(log)
    with pytest.raises(AuditTamperedError):
        log.write()


# ── back to an older state ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _put_back_the_file(log: LogConfiguration, older: Path) -> None:
    shutil.copyfile(database_file(_log_in(older)), database_file(log))


def _put_back_the_tables(log: LogConfiguration, older: Path) -> None:
    note = _head(_log_in(older))
    for table in ("leaves", "sealed", "names", "requests"):
        _sql(log, f"DELETE FROM {table} WHERE idx >= ?", _OLDER)
    _sql(log, "DELETE FROM tiles WHERE n >= ?", _OLDER // TILE_WIDTH)
    _sql(log, "DELETE FROM checkpoints WHERE size > ?", _OLDER)
    _sql(log, "UPDATE head SET size = ?, note = ?", _OLDER, note)


@pytest.mark.parametrize("put_back", [_put_back_the_file, _put_back_the_tables], ids=_name)
def test_an_older_state_is_known_by_newer_checkpoints_alone(
    log: LogConfiguration, older: Path, put_back: Callable[[LogConfiguration, Path], None]
) -> None:
    """With the head of that time it is a valid log, and verifies: see the text at the top of this file."""
    newest = _head(log)
    put_back(log, older)
    found = verify(log)
    assert (found.size, found.checkpoints) == (_OLDER, 0)
    # Whoever held on to the newer head sees it, and so does the writer, who holds one beside the keys.
    with pytest.raises(AuditTamperedError, match=f"{_RECORDS}.*{_OLDER}.*older copy"):
        verify(log, retained=[newest])
    with pytest.raises(AuditTamperedError, match="older copy"):
        log.write()
    # An older head that was held does not help.
    assert verify(log, retained=[_head(_log_in(older))]).size == _OLDER


def test_whoever_puts_back_the_kept_head_too_is_seen_by_others_alone(log: LogConfiguration, older: Path) -> None:
    newest = _head(log)
    _put_back_the_file(log, older)
    shutil.copyfile(_log_in(older).pin, log.pin)
    with log.write() as writer:
        append(writer, "a second history", 0)
    assert verify(log).size == _OLDER + 1
    with pytest.raises(AuditTamperedError):
        verify(log, retained=[newest])


def test_a_second_history_of_the_same_length_is_seen_against_a_checkpoint(log: LogConfiguration, older: Path) -> None:
    """Whoever has the signing key can sign it; whoever holds a checkpoint of the first one can tell."""
    newest = _head(log)
    _put_back_the_file(log, older)
    log.pin.unlink()
    with log.write() as writer:
        for name in names_of(_RECORDS, "other")[_OLDER:]:
            append(writer, name, _SUBJECTS)
    assert verify(log).size == _RECORDS
    with pytest.raises(AuditTamperedError):
        verify(log, retained=[newest])


# ── the file's bytes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_whose_end_is_missing_does_not_verify(log: LogConfiguration) -> None:
    path = database_file(log)
    whole = path.read_bytes()
    chance = random.Random(5)
    page = 4096
    cuts = {0, 1, 99, 100, page - 1, len(whole) - page}
    cuts |= set(range(page, len(whole), page)) if FULL else {chance.randrange(1, len(whole) // page) * page for _ in range(10)}
    for cut in sorted(cuts):
        path.write_bytes(whole[:cut])
        with pytest.raises(AuditError):
            verify(log)
    path.write_bytes(whole)
    assert verify(log).size == _RECORDS


def test_no_flipped_byte_makes_a_log_that_verifies_and_says_something_else(tmp_path: Path, record_property: Numbers) -> None:
    """Each byte of a small log's file is changed once, by a mask that chance gives.

    Either the log does not verify, or all that can be read from it is what it was: free space, the triggers' text, counters of SQLite's.
    """
    log = make_log(tmp_path, records=8, subjects=_SUBJECTS)
    path = database_file(log)
    requests = "SELECT * FROM requests ORDER BY lookup"
    before, asked, whole = _everything(log), _sql(log, requests), path.read_bytes()
    whole = path.read_bytes()
    chance = random.Random(256)
    places = range(len(whole)) if FULL else sorted(chance.sample(range(len(whole)), _FLIPS))
    numbers: Counter[str] = Counter(places=len(places))
    wrong: list[str] = []
    with path.open("r+b", buffering=0) as file:
        for place in places:
            mask = chance.randrange(1, 256)
            _put(file, place, whole[place] ^ mask)
            verdict = _verdict(log, before)
            numbers[verdict] += 1
            if verdict not in {"refused", "the same"}:
                wrong.append(f"byte {place} xor {mask}: {verdict}")
            elif verdict == "the same" and _requests(path, requests) != asked:
                wrong.append(f"byte {place} xor {mask}: repeated requests would be answered otherwise")
            _put(file, place, whole[place])
    for name, value in numbers.items():
        record_property(name, value)
    assert path.read_bytes() == whole
    assert verify(log).size == 8
    assert not wrong, "\n".join(wrong)


def _put(file: BinaryIO, place: int, value: int) -> None:
    file.seek(place)
    file.write(bytes([value]))


def _verdict(log: LogConfiguration, before: object) -> str:
    try:
        verify(log)
    except AuditError:
        return "refused"
    except Exception as error:  # noqa: BLE001 - whatever else it raises is what this is looking for
        return f"verifying fails with {type(error).__name__}: {error}"
    try:
        return "the same" if _everything(log) == before else "something else"
    except Exception as error:  # noqa: BLE001 - as above
        return f"verified, but reading fails with {type(error).__name__}: {error}"


def _requests(path: Path, statement: str) -> object:
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            return connection.execute(statement).fetchall()
    except sqlite3.Error as error:
        return error
