"""A log in a real PostgreSQL server: what holds for SQLite holds here, and what only a server can do to a log does it no harm."""

import contextlib
import importlib
import itertools
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from clinical_ser.audit.checkpoint import Checkpoint
from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.database import APPEND_ONLY, StorageError
from clinical_ser.audit.erasing import erase
from clinical_ser.audit.events import Actor, Role
from clinical_ser.audit.log import AuditLog, Entry
from clinical_ser.audit.merkle import leaf_hash, verify_consistency, verify_inclusion
from clinical_ser.errors import AuditBusyError, AuditConflictError, AuditError, AuditSetupError, AuditTamperedError, AuditUnavailableError
from tests.audit.faults.driving import Writer, assert_nothing_twice, check, next_after
from tests.audit.log_maker import CONFIGURATION_FILE, ORIGIN, append, names_of, payload_of, verify
from tests.audit.postgres_server import PostgresServer, running_server

psycopg = pytest.importorskip("psycopg")

from clinical_ser.audit import postgres  # noqa: E402
from clinical_ser.audit.postgres import GRANTS, PostgresDatabase  # noqa: E402

OFFICER = Actor(id="officer-1", role=Role.COMPLIANCE)
_KILLS = 10
_THREADS = 8
_schemas = itertools.count()


@dataclass
class Site:
    """A log in a schema of its own."""

    server: PostgresServer
    schema: str
    configuration: LogConfiguration

    def sql(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Run a statement as the owner, past the log."""
        with psycopg.connect(self.server.url(schema=self.schema), autocommit=True) as connection:
            cursor = connection.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def elsewhere(self, folder: Path) -> LogConfiguration:
        """Return the configuration of another machine, with copies of the keys and so without the lock on the vault."""
        return LogConfiguration(ORIGIN, self.configuration.database, Path(shutil.copytree(self.configuration.keys, folder / "elsewhere")))

    def as_user(self, user: str) -> LogConfiguration:
        """Return the configuration of a service that connects as this user."""
        return LogConfiguration(ORIGIN, self.server.url(user=user, schema=self.schema), self.configuration.keys)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with running_server() as server:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute("CREATE ROLE guarded LOGIN PASSWORD 'sesame'; CREATE ROLE audit_writer LOGIN; CREATE ROLE nobody_much LOGIN")
        yield server


@pytest.fixture
def site(server: PostgresServer, tmp_path: Path) -> Site:
    schema = f"ward{next(_schemas)}"
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
    configuration = LogConfiguration(ORIGIN, server.url(schema=schema), tmp_path / "keys")
    configuration.create(tmp_path / CONFIGURATION_FILE)
    return Site(server, schema, configuration)


def in_threads(work: Callable[[int], object], count: int = _THREADS) -> list[threading.Thread]:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    return threads


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def writer_session(log: AuditLog) -> int:
    with log.exclusively() as inside:
        return int(inside.database.query("SELECT pg_backend_pid()")[0][0])


# ── as in SQLite ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_records_come_back_as_they_were_appended(site):
    with site.configuration.write() as log:
        receipts = [append(log, name, subjects=3) for name in names_of(20)]
    assert [receipt.index for receipt in receipts] == list(range(20))
    with site.configuration.read() as reader:
        records = list(reader.records())
    assert [record.payload for record in records] == [payload_of(name) for name in names_of(20)]
    assert [record.event.id for record in records] == [receipt.event_id for receipt in receipts]
    assert verify(site.configuration).opened == 20


def test_proofs_across_whole_tiles_verify(site):
    with site.configuration.write() as log:
        for first in range(0, 700, 100):
            log.record([Entry(payload_of(f"{first + number}")) for number in range(100)])
        older = log.retain()
        for name in names_of(3):
            append(log, name)
    assert site.sql("SELECT level, n FROM tiles ORDER BY n") == [(1, 0), (1, 1)]
    with site.configuration.read() as reader:
        for index in (0, 255, 256, 511, 512, 702):
            leaf = reader.record(index).leaf
            assert verify_inclusion(index, reader.size, leaf_hash(leaf), reader.inclusion(index), reader.root)
        kept, _ = Checkpoint.open(older, site.configuration.load_keys().verifiers)
        assert verify_consistency(kept.size, reader.size, kept.root, reader.root, reader.consistency(kept.size))
        assert [note for note in reader.kept_checkpoints() if note == older]
    assert verify(site.configuration, retained=[older]).size == 703


def test_what_waits_for_the_disk_is_committed_together(site):
    with site.configuration.write() as log:
        threads = in_threads(lambda thread: [append(log, f"record {thread}/{number}") for number in range(20)])
        for thread in threads:
            thread.join()
    # The system column xmin is the transaction that wrote a row.
    [(commits, records)] = site.sql("SELECT COUNT(DISTINCT xmin::text), COUNT(*) FROM leaves")
    assert (records, commits < records / 2) == (20 * _THREADS, True)
    assert verify(site.configuration).size == records


def test_a_request_that_comes_again_gets_the_record_that_is_there(site):
    with site.configuration.write() as log:
        first = append(log, "one")
    with site.configuration.write() as log:
        again = append(log, "one")
        assert (again.index, again.event_id, again.time, again.repeated) == (first.index, first.event_id, first.time, True)
        with pytest.raises(AuditConflictError):
            log.append(payload_of("another"), idempotency_key="one")
        assert log.size == 1


def test_a_second_writer_is_refused_in_this_process_and_in_another(site, tmp_path):
    with site.configuration.write() as log:
        with pytest.raises(AuditBusyError, match=r"did for 0\.1 s"):
            site.configuration.write(wait_s=0.1)
        with Writer(tmp_path, ()) as other:
            assert other.wait_for("ready")
            other.go()
            assert other.wait_for("refused")
            assert other.refusals == [("AuditBusyError", "open")]
        append(log, "one")


def test_the_lock_is_free_as_soon_as_its_writer_has_closed(site):
    held = "SELECT COUNT(*) FROM pg_locks WHERE locktype = 'advisory'"
    with psycopg.connect(site.server.url(), autocommit=True) as other:
        for _ in range(20):
            database = PostgresDatabase.take(site.configuration.database, wait_s=0)
            assert other.execute(held).fetchall() == [(1,)]
            database.close()
            assert other.execute(held).fetchall() == [(0,)]


def test_logs_in_two_schemas_of_a_database_have_a_writer_each(site, tmp_path):
    site.sql("CREATE SCHEMA neighbour")
    neighbour = LogConfiguration("neighbour.example/log", site.server.url(schema="neighbour"), tmp_path / "neighbour")
    neighbour.create(tmp_path / "neighbour.toml")
    with site.configuration.write() as log, neighbour.write(wait_s=0) as other:
        assert append(log, "here").index == append(other, "there").index == 0
    assert verify(site.configuration).origin != verify(neighbour).origin


def test_tables_of_the_same_name_in_another_schema_are_not_taken_for_the_log(site):
    site.sql("CREATE SCHEMA shadow; CREATE TABLE shadow.leaves (idx bigint, leaf bytea, hash bytea)")
    shadowed = LogConfiguration(ORIGIN, site.server.url(schema=f"shadow,{site.schema}"), site.configuration.keys)
    with shadowed.write() as log:
        append(log, "one")
        with log.exclusively() as inside:
            inside.database.query("CREATE TEMPORARY TABLE leaves (idx bigint, leaf bytea, hash bytea)")
        append(log, "two")
    assert verify(site.configuration).size == 2


def test_a_database_without_a_schema_in_its_url_will_do(server, tmp_path):
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE ward")
    configuration = LogConfiguration(ORIGIN, server.url("ward"), tmp_path / "keys")
    configuration.create(tmp_path / CONFIGURATION_FILE)
    with configuration.write() as log:
        append(log, "one")
    assert verify(configuration).size == 1


def test_a_reader_stands_on_one_state_while_the_writer_goes_on(site):
    with site.configuration.write() as log:
        for name in names_of(5):
            append(log, name)
        with site.configuration.read() as reader:
            append(log, "later")
            assert (reader.size, len(list(reader.records()))) == (5, 5)
            assert Checkpoint.open(reader.checkpoint, log.verifiers)[0].root == reader.root
        with site.configuration.read() as reader:
            assert reader.size == 6


def test_rows_stream_past_what_is_fetched_at_once_with_questions_in_between(site):
    with site.configuration.write() as log:
        log.record([Entry(payload_of(f"{number}")) for number in range(250)])
    with site.configuration.read() as reader:
        for index, record in enumerate(reader.records()):
            assert record.index == index
            # A stream that is thrown away after its first row.
            assert reader.record(index).leaf == record.leaf
        assert index == 249
    database = site.configuration.connect()
    try:
        # Two that are let go leave no cursor behind, in a transaction or outside of one.
        for inside in (database.snapshot(), contextlib.nullcontext()):
            with inside:
                for _ in range(2):
                    assert next(database.stream("SELECT idx FROM leaves WHERE idx >= ? ORDER BY idx", (7,))) == (7,)
                assert len(list(database.stream("SELECT idx FROM leaves ORDER BY idx"))) == 250
                assert database.query("SELECT COUNT(*) FROM pg_cursors") == [(0,)]
    finally:
        database.close()


def test_erasure_leaves_the_tree_and_no_payload(site):
    with site.configuration.write() as log:
        for name in names_of(12):
            append(log, name, subjects=2)
        erased = erase(log, "subject 0", reason="asked for", basis="GDPR Art. 17(1)(b)", actor=OFFICER).records
        assert 0 < len(erased) < 12
        append(log, "later", subjects=2)
    found = verify(site.configuration)
    assert (found.size, found.erased, found.unfinished) == (14, len(erased), 0)
    assert site.sql("SELECT COUNT(*) FROM sealed") == [(14 - len(erased),)]


def test_the_tables_are_rewritten_after_an_erasure(site):
    with site.configuration.write() as log:
        for name in names_of(40):
            append(log, name)
        with log.exclusively() as inside:
            with inside.database.transaction():
                inside.database.query("DELETE FROM sealed WHERE idx < 39")
            inside.database.scrub()
    assert site.sql("SELECT ctid::text FROM sealed") == [("(0,1)",)], "the last row is now the first of the table's file"


def test_a_reader_who_still_sees_deleted_rows_is_told_of(site):
    with site.configuration.write() as log:
        append(log, "one")
        with log.exclusively() as inside:
            with site.configuration.read():
                with inside.database.transaction():
                    inside.database.query("DELETE FROM sealed")
                with pytest.raises(StorageError, match="someone is reading") as refused:
                    inside.database.scrub()
                assert not refused.value.broken
            inside.database.scrub()


# ── what the tables let nobody do ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("session", ["SET session_replication_role = origin", "SET session_replication_role = replica"])
def test_the_owner_cannot_change_what_was_appended_by_mistake(site, session):
    with site.configuration.write() as log:
        append(log, "one")
    with psycopg.connect(site.server.url(schema=site.schema), autocommit=True) as connection:
        connection.execute(session)
        for table, column in zip(APPEND_ONLY, ("leaf", "hash", "note", "line"), strict=True):
            for statement in (f"UPDATE {table} SET {column} = {column}", f"DELETE FROM {table}", f"TRUNCATE {table}"):
                with pytest.raises(psycopg.errors.RaiseException, match="append-only"):
                    connection.execute(statement)
    assert verify(site.configuration).size == 1


def test_a_writer_with_the_grants_appends_and_erases_and_cannot_change_the_tree(site):
    site.sql(GRANTS)
    appends_to_all = site.sql(
        "SELECT bool_and(has_table_privilege('audit_writer', tablename, 'INSERT')) FROM pg_tables WHERE schemaname = current_schema()"
    )
    assert appends_to_all == [(True,)]
    for table in APPEND_ONLY:
        site.sql(f"ALTER TABLE {table} DISABLE TRIGGER USER")
    granted = site.as_user("audit_writer")
    with granted.write() as log:
        for name in names_of(6):
            append(log, name, subjects=2)
        log.retain()
        assert erase(log, "subject 1", reason="asked for", basis="GDPR Art. 17(1)(b)", actor=OFFICER)
        with log.exclusively() as inside:
            for table in APPEND_ONLY:
                for statement in (
                    f"UPDATE {table} SET {'size' if table in {'checkpoints', 'cosignatures'} else 'idx'} = 0",
                    f"DELETE FROM {table}",
                    f"TRUNCATE {table}",
                ):
                    with pytest.raises(StorageError, match="InsufficientPrivilege") as refused:
                        inside.database.query(statement.replace("tiles SET idx", "tiles SET n"))
                    assert not refused.value.broken
            for statement in ("UPDATE sealed SET data = ''", "UPDATE meta SET value = ''", "DELETE FROM head", "DROP TABLE leaves"):
                with pytest.raises(StorageError, match="InsufficientPrivilege"):
                    inside.database.query(statement)
    assert verify(granted).unfinished == 0


# ── what is refused ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("setting", "value"), [("fsync", "off"), ("full_page_writes", "off"), ("data_sync_retry", "on")])
def test_a_server_that_could_lose_a_record_is_refused(site, setting, value):
    site.server.restart(**{setting: value})
    try:
        with pytest.raises(AuditUnavailableError, match=f"does not have {setting}="):
            site.configuration.write()
        with site.configuration.read() as reader:
            assert reader.size == 0
    finally:
        site.server.restart()


def test_commits_wait_for_the_disk_whatever_the_url_asks_for(site):
    url = site.configuration.database + "%20-csynchronous_commit%3Doff"
    with LogConfiguration(ORIGIN, url, site.configuration.keys).write() as log, log.exclusively() as inside:
        assert inside.database.query("SHOW synchronous_commit") == [("on",)]


def test_an_older_server_is_refused(site, monkeypatch):
    monkeypatch.setattr(postgres, "_OLDEST", 990_000)
    with pytest.raises(AuditUnavailableError, match="needs PostgreSQL 99 or newer"):
        site.configuration.connect()


def test_a_log_is_not_made_where_one_is_and_not_found_where_none_is(site):
    with pytest.raises(AuditSetupError, match="never overwritten"):
        PostgresDatabase.create(site.configuration.database)
    with pytest.raises(AuditSetupError, match="There is no audit log"):
        PostgresDatabase.connect(site.server.url(schema="nowhere"))
    with pytest.raises(AuditSetupError, match="There is no audit log"):
        PostgresDatabase.take(site.server.url(schema="nowhere"), wait_s=0)
    with pytest.raises(AuditSetupError, match="CREATE SCHEMA"):
        PostgresDatabase.create(site.server.url(schema="nowhere"))
    site.sql("CREATE SCHEMA half; CREATE TABLE half.names (who text)")
    with pytest.raises(AuditSetupError, match="never overwritten"):
        PostgresDatabase.create(site.server.url(schema="half"))
    assert site.sql("SELECT COUNT(*) FROM pg_tables WHERE schemaname = 'half'") == [(1,)], "nothing half made stays"


def test_who_may_not_look_into_the_schema_finds_no_log(site):
    with pytest.raises(AuditSetupError, match="There is no audit log"):
        site.as_user("nobody_much").connect()


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("postgresql://doctor:geheim@127.0.0.1:1/ward", AuditUnavailableError),
        ("postgresql://doctor:geheim@name.invalid/ward", AuditUnavailableError),
        ("postgresql://doctor:geheim@127.0.0.1:1/ward?geheim=1", AuditSetupError),
        ("postgresql://doctor:geheim@127.0.0.1:port-geheim/ward", AuditUnavailableError),
        ("postgresql://doctor:geheim@127.0.0.1:1/ward?connect_timeout=geheim", AuditUnavailableError),
    ],
)
def test_no_error_repeats_the_url(url, error):
    for opening in (PostgresDatabase.connect, PostgresDatabase.create):
        with pytest.raises(error) as refused:
            opening(url)
        assert not any(word in str(refused.value) for word in ("geheim", "doctor", "127.0.0.1", "invalid", "ward"))
        assert refused.value.__suppress_context__


def test_a_wrong_password_is_named_as_such_and_not_repeated(server):
    with pytest.raises(AuditUnavailableError, match="asked for a password") as refused:
        PostgresDatabase.connect(server.url(user="guarded", password="geheim"))
    assert not any(word in str(refused.value) for word in ("geheim", "guarded"))


def test_without_the_driver_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.delitem(sys.modules, "clinical_ser.audit.postgres")
    with pytest.raises(AuditSetupError, match=r"pip install 'clinical-ser\[postgres\]'"):
        importlib.import_module("clinical_ser.audit.postgres")


# ── what goes wrong ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def fail_appends(site: Site, code: str) -> None:
    """Let the server answer inserts with an error; RAISE takes any code, and its text says what no message of ours may."""
    site.sql(f"CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'secret %', NEW.idx USING ERRCODE = '{code}'; END $$")
    site.sql("CREATE TRIGGER fail BEFORE INSERT ON names FOR EACH ROW EXECUTE FUNCTION fail()")


@pytest.mark.parametrize(("code", "reason"), [("53100", "no space is left"), ("40P01", "DeadlockDetected"), ("57014", "QueryCanceled")])
def test_what_was_rolled_back_leaves_the_session_as_it_was(site, code, reason):
    with site.configuration.write() as log:
        append(log, "one")
        session = writer_session(log)
        fail_appends(site, code)
        with pytest.raises(AuditUnavailableError, match=reason) as refused:
            append(log, "two")
        assert "secret" not in str(refused.value)
        site.sql("DROP TRIGGER fail ON names")
        assert append(log, "two").index == 1
        assert writer_session(log) == session
    assert verify(site.configuration).size == 2


@pytest.mark.parametrize("code", ["58030", "XX000"])
def test_after_an_input_output_error_the_log_is_opened_again(site, code):
    with site.configuration.write() as log:
        append(log, "one")
        session = writer_session(log)
        fail_appends(site, code)
        with pytest.raises(AuditUnavailableError, match="PostgreSQL says"):
            append(log, "two")
        site.sql("DROP TRIGGER fail ON names")
        assert append(log, "two").index == 1
        assert writer_session(log) != session
    assert verify(site.configuration).size == 2


def test_pages_that_the_server_cannot_read_are_named_as_damage(site):
    with site.configuration.write() as log:
        fail_appends(site, "XX001")
        with pytest.raises(AuditTamperedError, match="damaged"):
            append(log, "one")


def test_a_table_that_somebody_locks_ends_the_wait_and_not_the_log(site, monkeypatch):
    monkeypatch.setitem(postgres._SESSION, "lock_timeout", "100ms")
    with site.configuration.write() as log:
        with psycopg.connect(site.server.url(schema=site.schema)) as other:
            other.execute("LOCK TABLE leaves")
            with pytest.raises(AuditUnavailableError, match="LockNotAvailable"):
                append(log, "one")
        assert append(log, "one").index == 0


def test_a_transaction_in_which_something_failed_is_never_taken_for_committed(site):
    database = PostgresDatabase.take(site.configuration.database, wait_s=0)
    try:
        with pytest.raises(StorageError, match="rolled the transaction back") as refused, database.transaction():  # noqa: PT012
            database.query("INSERT INTO meta VALUES ('kept', 'no')")
            with contextlib.suppress(StorageError):
                database.query("INSERT INTO meta VALUES ('schema', 'again')")
        assert refused.value.broken
        assert database.query("SELECT COUNT(*) FROM meta WHERE name = 'kept'") == [(0,)]
        with pytest.raises(StorageError, match="open already"), database.snapshot(), database.transaction():
            pytest.fail("a transaction began inside of another")
    finally:
        database.close()


def test_a_terminated_session_fails_one_append_and_the_next_opens_another(site):
    with site.configuration.write() as log:
        append(log, "one")
        site.sql("SELECT pg_terminate_backend(%s, 5000)", writer_session(log))
        with pytest.raises(AuditUnavailableError, match="connection to PostgreSQL is lost"):
            append(log, "two")
        assert append(log, "two").index == 1
    assert verify(site.configuration).size == 2


def test_a_reader_whose_session_ends_says_so(site):
    with site.configuration.write() as log:
        append(log, "one")
    with site.configuration.read() as reader:
        site.sql("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'clinical-ser audit'")
        with pytest.raises(AuditUnavailableError, match="connection to PostgreSQL is lost"):
            reader.record(0)


def test_a_writer_that_lost_its_session_goes_on_after_the_one_that_came_between(site, tmp_path):
    with site.configuration.write() as log:
        append(log, "one")
        site.sql("SELECT pg_terminate_backend(%s, 5000)", writer_session(log))
        with site.elsewhere(tmp_path).write() as other:
            append(other, "two")
            with pytest.raises(AuditUnavailableError):
                append(log, "three")
        assert append(log, "three").index == 2
    assert verify(site.configuration).size == 3


def test_two_writers_that_no_lock_keeps_apart_do_not_fork_the_log(site, tmp_path, monkeypatch):
    with site.configuration.write() as log, monkeypatch.context() as patch:
        patch.setattr(PostgresDatabase, "_hold", lambda *_, **__: None)
        append(log, "one")
        with site.elsewhere(tmp_path).write() as other:
            append(other, "two")
        with pytest.raises(AuditUnavailableError, match="another writer was here"):
            append(log, "three")
        assert append(log, "three").index == 2
    assert_nothing_twice(site.configuration, {"one": 0, "two": 1, "three": 2})


def test_a_writer_that_stays_lends_the_log_to_those_who_come(site, tmp_path):
    elsewhere = site.elsewhere(tmp_path)
    acks, guests, stop = {}, {}, threading.Event()

    def work(thread):
        for number in itertools.count():
            if stop.is_set():
                return
            name = f"host/{thread}/{number}"
            acks[name] = append(log, name, subjects=3).index

    with site.configuration.write(lends=True) as log:
        threads = in_threads(work, 4)
        for loan in range(10):
            # Every other is on another machine, which does not share the vault's lock; keys of persons would be in its own vault alone.
            with (elsewhere if loan % 2 else site.configuration).write() as guest:
                guests[f"guest/{loan}"] = append(guest, f"guest/{loan}").index
            seen = len(acks)
            until(lambda seen=seen: len(acks) > seen)
        stop.set()
        for thread in threads:
            thread.join()
        assert sorted([*acks.values(), *guests.values()]) == list(range(log.size))
    assert_nothing_twice(site.configuration, {**acks, **guests})


def test_a_guest_whose_process_or_session_ends_gives_the_log_back(site, tmp_path):
    with site.configuration.write(lends=True) as log:
        append(log, "before")
        with Writer(tmp_path, ("--prefix", "guest", "--threads", "4", "--wait", "20")) as guest:
            guest.begin()
            assert guest.wait_for("ack", 20), guest.errors()
            guest.kill()
        began = time.monotonic()
        between = append(log, "between").index
        with site.configuration.write() as another:
            site.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'clinical-ser audit' AND state IS NOT NULL")
            with pytest.raises(AuditUnavailableError):
                append(another, "lost")
        after = append(log, "after").index
        assert time.monotonic() - began < 20
    assert_nothing_twice(site.configuration, {**guest.acks, "between": between, "after": after})


def test_a_server_that_restarts_during_a_loan_costs_the_requests_of_that_time(site):
    with site.configuration.write(lends=True) as log:
        append(log, "before")
        guest = site.configuration.write()
        site.server.restart()
        with contextlib.suppress(AuditError):
            guest.close()
        until(lambda: _appended(log, "after"))
        with site.configuration.write() as guest:
            append(guest, "guest")
        append(log, "at last")
    assert verify(site.configuration).size == 4


def _appended(log, name):
    with contextlib.suppress(AuditUnavailableError):
        return append(log, name) is not None
    return False


def test_what_is_kept_in_other_tables_is_written_with_records_and_erased_with_them(site):
    table = "CREATE TABLE IF NOT EXISTS screenings (id TEXT PRIMARY KEY, subject {blob} NOT NULL, record {integer})"
    index = "CREATE INDEX IF NOT EXISTS screenings_subject ON screenings (subject)"
    with site.configuration.write() as log, log.exclusively() as inside:
        assert not inside.database.has_table("screenings")
        for statement in (table, index, table, index):
            inside.database.create_table(statement)
        assert inside.database.has_table("screenings")
    site.sql(GRANTS)
    granted = site.as_user("audit_writer")
    with granted.write() as log:
        with log.exclusively() as inside:
            # One that may make no tables finds those that are there.
            for statement in (table, index):
                inside.database.create_table(statement)
            with pytest.raises(StorageError, match="InsufficientPrivilege"):
                inside.database.create_table("CREATE TABLE IF NOT EXISTS another (id {integer})")
        insert = "INSERT INTO screenings VALUES (?, ?, ?)"
        for name, subject in (("one", "A"), ("two", "B"), ("three", "A")):
            log.record([Entry(payload_of(name), subject)], also=lambda key, receipts, name=name: [(insert, [(name, key.id, receipts[-1].index)])])
        log.change([("UPDATE screenings SET id = id || ? WHERE id = ?", [("!", "two"), ("%", "one")])])
        assert site.sql("SELECT id, record FROM screenings ORDER BY record") == [("one%", 0), ("two!", 1), ("three", 2)]
        erase(log, "A", reason="asked for", basis="GDPR Art. 17(1)(b)", actor=OFFICER)
        assert site.sql("SELECT id FROM screenings") == [("two!",)]
    assert verify(granted).unfinished == 0


def test_after_an_erasure_the_other_tables_are_rewritten_too(site):
    with site.configuration.write() as log:
        with log.exclusively() as inside:
            inside.database.create_table("CREATE TABLE screenings (id TEXT, subject {blob})")
        log.record([Entry(payload_of("one"), "A")], also=lambda key, _: [("INSERT INTO screenings VALUES ('one', ?)", [(key.id,)])])
        before = site.sql("SELECT pg_relation_filenode('screenings')")
        erase(log, "A", reason="asked for", basis="GDPR Art. 17(1)(b)", actor=OFFICER)
        assert site.sql("SELECT pg_relation_filenode('screenings')") != before


def test_what_was_acknowledged_survives_every_kill_of_the_writer(site, tmp_path):
    acked: dict[str, int] = {}
    for kill in range(_KILLS):
        prefix = f"run{kill}"
        with Writer(tmp_path, ("--prefix", prefix, "--threads", str(_THREADS), "--subjects", "5", "--wait", "10")) as writer:
            writer.begin()
            assert writer.wait_for("ack", 1 + 7 * kill), writer.errors()
            writer.kill()
        # The lock goes when the server has noticed, and then nothing of the killed writer can come any more.
        site.configuration.write(wait_s=10).close()
        check(site.configuration, writer.acks, in_doubt=next_after(writer.acks, prefix, _THREADS), subjects=5)
        acked |= writer.acks
    assert len(acked) > _KILLS
    assert_nothing_twice(site.configuration, acked)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGQUIT, signal.SIGINT])
def test_what_was_acknowledged_survives_the_end_of_the_server(site, how):
    acked: dict[str, int] = {}
    refused: list[type[AuditError]] = []
    over = threading.Event()

    def work(thread: int) -> None:
        for number in itertools.count():
            name = f"record/{thread}/{number}"
            while not over.is_set():
                try:
                    acked[name] = append(log, name, subjects=5).index
                    break
                except AuditError as error:
                    refused.append(type(error))
                    time.sleep(0.01)
            if over.is_set():
                return

    with site.configuration.write() as log:
        threads = in_threads(work)
        try:
            until(lambda: len(acked) >= 50)
            site.server.stop(how)
            until(lambda: len(refused) >= _THREADS)
            before = len(acked)
            site.server.start()
            until(lambda: len(acked) >= before + 50)
        finally:
            over.set()
            for thread in threads:
                thread.join()
            site.server.start()
    assert set(refused) == {AuditUnavailableError}
    check(site.configuration, acked, subjects=5)
    assert_nothing_twice(site.configuration, acked)
