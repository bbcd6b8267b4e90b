"""A writer that stays, as a server does, lends the log to commands, and to other programs, that want to write meanwhile."""

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import pytest

from clinical_ser.audit import log as log_module
from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.erasing import erase
from clinical_ser.audit.events import Actor, Role
from clinical_ser.audit.log import AuditLog
from clinical_ser.audit.sqlite import SqliteDatabase
from clinical_ser.audit.turns import Turns, lock_of_log
from clinical_ser.errors import AuditBusyError, AuditError, AuditTamperedError, AuditUnavailableError
from tests.audit.faults.driving import FULL, Writer, assert_nothing_twice
from tests.audit.log_maker import CONFIGURATION_FILE, append, database_file, make_log, payload_of, verify

OFFICER = Actor(id="officer", role=Role.COMPLIANCE)
WHY = {"reason": "asked", "basis": "GDPR Art. 17(1)", "actor": OFFICER}
_THREADS = 8
_LOANS = 100
_SOON_S = 15.0
"""Within which a guest has the log, and a host has it back, on a machine that is busy with something else; they take a tenth of a second."""
_SQLITE_WAITS_S = 5.0
"""For readers, where it is asked to wait for them."""


@pytest.fixture
def site(tmp_path: Path) -> LogConfiguration:
    return make_log(tmp_path)


@contextmanager
def appending(log: AuditLog, subjects: int = 0, threads: int = _THREADS, pause_s: float = 0.002) -> Iterator[dict[str, int]]:
    """Append from several threads for as long as the block lasts; the index by name of what was acknowledged is complete after it."""
    stop, acks, errors = threading.Event(), dict[str, int](), list[BaseException]()

    def work(thread: int) -> None:
        number = 0
        while not stop.is_set():
            name = f"host/{thread}/{number}"
            try:
                acks[name] = append(log, name, subjects).index
            except BaseException as error:
                errors.append(error)
                raise
            number += 1
            time.sleep(pause_s)

    working = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
    for thread in working:
        thread.start()
    try:
        yield acks
    finally:
        stop.set()
        for thread in working:
            thread.join()
    assert errors == []


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def more(acks: dict[str, int], count: int = 1) -> None:
    """Wait until more was acknowledged."""
    seen = len(acks)
    until(lambda: len(acks) >= seen + count)


def in_background(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Run what may wait; its answer, or its error, comes into the list."""
    told: list[object] = []

    def run() -> None:
        try:
            told.append(work())
        except AuditError as error:
            told.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, told


def test_commands_write_beside_a_writer_that_lends(tmp_path: Path) -> None:
    site = make_log(tmp_path, records=3, subjects=3)
    record = f"clinical-ser:result:{sha256(b'record 0').hexdigest()}"
    commands = [
        ("erase", "--subject", "subject 1", "--reason", "asked", "--yes"),
        ("keys", "rotate"),
        ("export", "--format", "jsonl", "-o", str(tmp_path / "export")),
        ("review", record, "--decision", "overridden", "--reason", "read"),
    ]
    environment = {**os.environ, "CLINICAL_SER_AUDIT": str(tmp_path / CONFIGURATION_FILE)}
    with site.write(lends=True) as log, appending(log, subjects=3, pause_s=0.05) as acks:
        for words in commands:
            more(acks)
            done = subprocess.run(
                [sys.executable, "-m", "clinical_ser", "audit", *words], env=environment, capture_output=True, text=True, check=False, timeout=120
            )
            assert done.returncode == 0, (words, done.stderr)
        more(acks)
        verifiers = log.verifiers
    assert verifiers == site.load_keys().verifiers
    assert len(verifiers) == 2, "the keys that a guest changed are not the host's"
    found = verify(site)
    assert (found.kinds["review"], found.kinds["audit_export"], found.kinds["configuration"]) == (1, 1, 2)
    assert found.unfinished == 0
    with site.read() as reader:
        # What was erased is not opened any more; everything else is where it was acknowledged.
        records = list(reader.records())
        for name, index in acks.items():
            assert records[index].payload == payload_of(name) or records[index].state == "erased"
        assert sum(record.event.kind == "report" for record in records) == 3 + len(acks)


@pytest.mark.parametrize("subjects", [0, 5])
def test_a_hundred_loans_lose_nothing_and_leave_no_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subjects: int) -> None:
    monkeypatch.setattr(log_module, "_LOOK_EVERY_S", 0.01)
    site = make_log(tmp_path)
    loans = _LOANS if FULL or not subjects else _LOANS // 5
    guests: dict[str, int] = {}
    with site.write(lends=True) as log, appending(log, subjects) as acks:
        for loan in range(loans):
            with site.write() as guest:
                guests[f"guest/{loan}"] = append(guest, f"guest/{loan}", subjects).index
            more(acks)
    assert sorted([*acks.values(), *guests.values()]) == list(range(log.size))
    assert_nothing_twice(site, {**acks, **guests})


def test_a_guest_that_is_killed_in_the_middle_of_commits_gives_the_log_back(tmp_path: Path) -> None:
    site = make_log(tmp_path)
    acked: dict[str, int] = {}
    with site.write(lends=True) as log, appending(log, threads=2) as acks:
        for kill in range(12 if FULL else 4):
            with Writer(tmp_path, ("--prefix", f"guest{kill}", "--threads", "4", "--wait", "20")) as guest:
                guest.begin()
                assert guest.wait_for("ack", 20), guest.errors()
                guest.kill()
            acked |= guest.acks
            killed = time.monotonic()
            more(acks)
            assert time.monotonic() - killed < _SOON_S
    assert_nothing_twice(site, {**acks, **acked})


def test_who_asks_for_a_record_meanwhile_waits_for_it(site: LogConfiguration, monkeypatch: pytest.MonkeyPatch) -> None:
    # The host tries many times, and the guest stays longer than one of them.
    monkeypatch.setattr(log_module, "_SLICE_S", 0.02)
    with site.write(lends=True) as log:
        append(log, "before")
        with site.write() as guest:
            thread, told = in_background(lambda: append(log, "meanwhile").index)
            inside, found = in_background(lambda: held(log))
            assert append(guest, "guest").index == 1
            with pytest.raises(AuditUnavailableError, match=r"within 0\.1 s"):
                append(log, "impatient", timeout_s=0.1)
            with pytest.raises(AuditUnavailableError, match=r"within 0\.1 s"), log.exclusively(timeout_s=0.1):
                pass
            time.sleep(0.2)
            assert (told, found) == ([], [])
        thread.join(_SOON_S)
        inside.join(_SOON_S)
        # What its caller had given up was not made.
        assert (told, log.size) == ([2], 3)
        assert found[0] in {2, 3}
    verify(site)


def held(log: AuditLog) -> int:
    with log.exclusively() as inside:
        return inside.reader().size


def test_an_idle_writer_lends_at_once_and_knows_the_new_head_when_it_is_back(site: LogConfiguration) -> None:
    with site.write(lends=True) as log:
        append(log, "before")
        began = time.monotonic()
        with site.write() as guest:
            append(guest, "guest")
            assert time.monotonic() - began < _SOON_S
        until(lambda: log.size == 2)
        assert log.checkpoint != ""
        assert append(log, "after").index == 2


def test_a_writer_that_does_not_lend_is_the_only_one(site: LogConfiguration) -> None:
    with site.write() as log:
        append(log, "before")
        thread, told = in_background(lambda: site.write(wait_s=0.5))
        number = 0
        while thread.is_alive():
            append(log, f"meanwhile {number}")
            number += 1
        assert [type(each) for each in told] == [AuditBusyError]


def test_nobody_gets_the_log_while_it_is_held_exclusively(site: LogConfiguration) -> None:
    with site.write(lends=True) as log:
        with log.exclusively() as inside:
            with pytest.raises(AuditBusyError):
                site.write(wait_s=0.5)
            inside.database.query("SELECT 1")
        site.write(wait_s=_SOON_S).close()


def test_a_guest_that_does_not_wait_is_told_at_once(site: LogConfiguration) -> None:
    with site.write(lends=True), pytest.raises(AuditBusyError):
        site.write(wait_s=0)


def test_a_guest_that_gave_up_costs_the_host_a_moment(site: LogConfiguration) -> None:
    with site.write(lends=True) as log:
        turns = Turns.beside(database_file(site), 0.02)
        assert turns.wanted.take()
        until(lambda: log._lent)
        turns.wanted.release()
        began = time.monotonic()
        assert append(log, "after").index == 0
        assert time.monotonic() - began < _SOON_S


def test_guests_who_come_one_after_another_do_not_keep_the_host_from_its_turns(site: LogConfiguration, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "_LOOK_EVERY_S", 0.01)
    order: list[str] = []

    def visit(number: int) -> None:
        for visit in range(6):
            with site.write(wait_s=60) as guest:
                append(guest, f"guest/{number}/{visit}")
                order.append("guest")

    with site.write(lends=True) as log:
        guests = [threading.Thread(target=visit, args=(number,)) for number in range(5)]
        for guest in guests:
            guest.start()
        number = 0
        while any(guest.is_alive() for guest in guests):
            append(log, f"host/{number}")
            order.append("host")
            number += 1
        for guest in guests:
            guest.join()
    assert order.count("guest") == 30
    # The host has its turn after one guest or a few: where it had to race for it, most guests came in one or two runs.
    assert sum(pair == ("host", "guest") for pair in pairwise(order)) >= 5, order
    verify(site)


def test_past_a_host_that_waits_to_have_it_back_nobody_takes_the_log(tmp_path: Path) -> None:
    guest, late, host = (Turns.beside(tmp_path / "log", 0.01) for _ in range(3))
    guest.take(0)
    thread, told = in_background(lambda: host.take(20, returning=True))
    until(lambda: not late.back.take(shared=True) or bool(late.back.release()))
    guest.release()
    thread.join(_SOON_S)
    assert (told, host.is_mine) == ([None], True)
    host.release()
    late.take(0)
    late.release()
    # While a host waits, and the log is free for this very moment.
    assert host.back.take()
    with pytest.raises(AuditBusyError):
        late.take(0.05)
    host.back.release()


def test_a_lock_that_is_shared_keeps_out_who_wants_it_alone(tmp_path: Path) -> None:
    one, other, alone = (lock_of_log(tmp_path / "lock") for _ in range(3))
    # Nobody holds what is not there, and to look makes no file.
    assert one.take(shared=True)
    assert list(tmp_path.iterdir()) == []
    assert alone.take()
    assert not one.take(shared=True)
    alone.release()
    assert one.take(shared=True)
    assert other.take(shared=True)
    assert not alone.take()
    one.release()
    other.release()
    assert alone.take()
    alone.release()


def test_keys_that_a_guest_changed_are_those_that_the_host_signs_with(site: LogConfiguration) -> None:
    with site.write(lends=True) as log:
        append(log, "one")
        with site.write() as guest:
            append(guest, "two")
            site.load_keys().rotate(last_size=guest.size)
        append(log, "three")
        assert log.verifiers == site.load_keys().verifiers
    found = site.verify()
    assert found.signed_by == tuple(f"{key.name}+{key.key_id:08x}" for key in site.load_keys().active)


def test_who_waited_for_the_log_signs_with_the_keys_that_it_finds(site: LogConfiguration) -> None:
    """They were read before the wait, so that a command that waited for `audit keys rotate` signed with the key that this had retired."""
    log = site.write()
    thread, told = in_background(lambda: site.write(wait_s=20))
    until(log._database.is_wanted)
    append(log, "one")
    site.load_keys().rotate(last_size=log.size)
    log.close()
    thread.join(_SOON_S)
    [waited] = told
    assert isinstance(waited, AuditLog)
    with waited:
        append(waited, "two")
    assert site.verify().size == 2


def test_a_key_that_was_destroyed_during_a_loan_does_not_live_on(tmp_path: Path) -> None:
    site = make_log(tmp_path)
    with site.write(lends=True) as log:
        log.append(payload_of("one"), subject="A")
        vault = log._vault
        old = vault.find("A")
        assert old is not None
        assert vault.by_id(old.id) == old
        with site.write() as guest:
            erase(guest, "A", **WHY)
        until(lambda: log.size == 2)
        # Neither in the vault that it has now, nor in what is left of the one that it had.
        assert log._vault.find("A") is None
        assert (vault._by_lookup, vault._by_id.cache_info().currsize) == ({}, 0)
        log.append(payload_of("two"), subject="A")
        new = log._vault.find("A")
        assert new is not None
        assert {new.id, new.key}.isdisjoint({old.id, old.key})
    assert verify(site).erased == 1
    with site.read() as reader:
        assert reader.named("A") == [2]


def test_a_reader_forgets_keys_when_told_to(site: LogConfiguration) -> None:
    with site.write() as log, closing(site.open_vault()) as vault:
        log.append(payload_of("one"), subject="A")
        key = vault.find("A")
        assert key is not None
        assert vault.by_id(key.id) == key
        erase(log, "A", **WHY)
        vault.forget()
        assert vault.find("A") is None
        assert vault.by_id(key.id) is None


@pytest.mark.parametrize("damage", ["put back", "changed", "cut off"])
def test_a_log_that_comes_back_damaged_is_refused_and_does_not_hang(site: LogConfiguration, damage: str) -> None:
    path = database_file(site)
    with site.write(lends=True) as log:
        append(log, "one")
        with site.write() as guest:
            older = path.with_name("older")
            guest.retain()
            with closing(sqlite3.connect(path)) as from_, closing(sqlite3.connect(older)) as to:
                from_.backup(to)
            append(guest, "two")
        until(lambda: log.size == 2)
        append(log, "three")
        # The pin lies apart, and stays behind here: what the host had seen itself is what tells.
        guest = site.write()
        pin = site.pin.read_text()
        guest.close()
        site.pin.write_text(pin)
        with site.write() as guest:
            thread, told = in_background(lambda: append(log, "four"))
            until(lambda: bool(log._waiting))
            _damage(path, older, damage)
            site.pin.unlink()
            # Closing writes nothing into the file.
            guest._broken = True
        thread.join(_SOON_S)
        assert [type(each) for each in told] == [AuditTamperedError]
        with pytest.raises(AuditTamperedError):
            append(log, "five")
        with pytest.raises(AuditTamperedError):
            log.exclusively().__enter__()


def _damage(path: Path, older: Path, how: str) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        if how != "put back":
            database.executescript("DROP TRIGGER leaves_no_delete; DROP TRIGGER leaves_no_update")
            database.execute(
                "DELETE FROM leaves WHERE idx = 2" if how == "cut off" else "UPDATE leaves SET leaf = CAST(leaf || ' ' AS BLOB) WHERE idx = 2"
            )
            database.commit()
    if how == "put back":
        with closing(sqlite3.connect(older)) as from_, closing(sqlite3.connect(path)) as to:
            from_.backup(to)


def test_a_host_that_refuses_its_log_does_not_help_others_to_believe_it(site: LogConfiguration) -> None:
    path = database_file(site)
    with site.write(lends=True) as log:
        append(log, "one")
        with site.write() as guest:
            append(guest, "two")
            with closing(sqlite3.connect(path)) as from_, closing(sqlite3.connect(path.with_name("older"))) as to:
                from_.backup(to)
            append(guest, "three")
            guest.retain()
            _damage(path, path.with_name("older"), "put back")
            guest._broken = True
        kept = site.pin.read_text()
        # Its own records are all there; what is kept beside the keys tells that a guest's are not.
        with pytest.raises(AuditTamperedError, match="older copy"):
            append(log, "four")
        # The next guest gets to see the log, and the same error.
        with pytest.raises(AuditTamperedError, match="older copy"):
            site.write(wait_s=_SOON_S)
        assert site.pin.read_text() == kept


def test_a_log_that_was_repaired_is_used_again(site: LogConfiguration) -> None:
    with site.write(lends=True) as log:
        append(log, "one")
        key = site.keys / "keys.json"
        with site.write():
            thread, told = in_background(lambda: append(log, "two"))
            key.rename(site.keys / "elsewhere")
        thread.join(_SOON_S)
        assert "keys" in str(told[0])
        (site.keys / "elsewhere").rename(key)
        assert append(log, "two").index == 1
        # And it is lent again.
        with site.write() as guest:
            assert append(guest, "three").index == 2
    verify(site)


def test_closing_ends_the_wait_for_a_log_that_is_lent(site: LogConfiguration) -> None:
    log = site.write(lends=True)
    append(log, "one")
    with site.write() as guest:
        began = time.monotonic()
        log.close()
        assert time.monotonic() - began < _SOON_S
        with pytest.raises(AuditUnavailableError, match="closed"):
            append(log, "two")
        assert append(guest, "three").index == 1
    assert site.verify().size == 2


def test_what_still_waits_when_a_lent_log_is_closed_is_made_or_refused(site: LogConfiguration, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "_SLICE_S", 0.02)
    log = site.write(lends=True)
    guest = site.write()
    thread, told = in_background(lambda: append(log, "in time").index)
    until(lambda: bool(log._waiting))
    closing_thread, _ = in_background(log.close)
    until(lambda: log._closed)
    time.sleep(0.2)
    guest.close()
    closing_thread.join(_SOON_S)
    thread.join(_SOON_S)
    assert told == [0]
    monkeypatch.setattr(log_module, "_LAST_PATIENCE_S", 0.2)
    log = site.write(lends=True)
    with site.write() as guest:
        thread, told = in_background(lambda: append(log, "too late"))
        until(lambda: bool(log._waiting))
        log.close()
        thread.join(_SOON_S)
        assert [type(each) for each in told] == [AuditUnavailableError]
        assert guest.size == 1
    assert site.verify().size == 1


def test_two_hosts_take_turns(site: LogConfiguration, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that replaces another is there before that one is gone."""
    monkeypatch.setattr(log_module, "_LOOK_EVERY_S", 0.02)
    with site.write(lends=True) as old, site.write(lends=True) as new:
        for number in range(5):
            append(old, f"old {number}")
            append(new, f"new {number}")
    assert verify(site).size == 10


def test_a_long_read_delays_neither_host_nor_guest(site: LogConfiguration) -> None:
    with site.write(lends=True) as log:
        append(log, "one")
        with site.read() as reader:
            for number in range(3):
                append(log, f"host {number}")
                began = time.monotonic()
                with site.write() as guest:
                    append(guest, f"guest {number}")
                append(log, f"host again {number}")
                assert time.monotonic() - began < _SQLITE_WAITS_S
            assert reader.size == 1
    assert verify(site).size == 10


def test_what_a_guest_did_with_the_clock_is_no_anomaly_of_the_hosts(site: LogConfiguration) -> None:
    with site.write(lends=True) as log:
        append(log, "one")
        with site.write() as guest:
            append(guest, "two")
        append(log, "three")
    assert verify(site).anomalies == 0


def test_a_copy_of_the_log_that_is_not_lent_leaves_no_files_of_loans(site: LogConfiguration, tmp_path: Path) -> None:
    with site.write() as log:
        append(log, "one")
    assert sorted(path.name for path in database_file(site).parent.iterdir()) == ["audit.sqlite", "audit.sqlite.lock"]
    shutil.copy(database_file(site), tmp_path / "copy.sqlite")
    with closing(SqliteDatabase.connect(tmp_path / "copy.sqlite")) as copy:
        assert copy.query("SELECT size FROM head") == [(1,)]


def test_a_guest_that_wants_the_log_and_does_not_take_it_is_asked_less_and_less_often(tmp_path):
    configuration = make_log(tmp_path)
    database = Path(configuration.database.removeprefix("sqlite:"))
    with configuration.write(lends=True) as log:
        wanted = lock_of_log(database.with_name(f"{database.name}.wanted"))
        assert wanted.take()
        deadline = time.monotonic() + 20
        while log._pause_s < 0.4 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert log._pause_s >= 0.4
        wanted.release()
        append(log, "after")
