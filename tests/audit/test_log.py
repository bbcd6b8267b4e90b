import json
import os
import sqlite3
import stat
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import pytest

from clinical_ser.audit.checkpoint import Checkpoint
from clinical_ser.audit.events import Actor, Event, Notice, Outcome, Review, Role
from clinical_ser.audit.log import Entry
from clinical_ser.audit.merkle import Prover, leaf_hash, verify_consistency, verify_inclusion
from clinical_ser.audit.tables import DatabaseTiles
from clinical_ser.errors import (
    AuditBusyError,
    AuditConflictError,
    AuditError,
    AuditFormatError,
    AuditKeyError,
    AuditSetupError,
    AuditTamperedError,
    AuditUnavailableError,
)
from tests.audit.log_maker import CONFIGURATION_FILE, append, database_file, make_log, names_of, payload_of, verify

ACTOR = Actor(id="dr-canary", role=Role.CLINICIAN, name="Dr Canary")


def review(number=0, reason="because"):
    return Review(actor=ACTOR, result=f"{number:064x}", decision="agreed", reason=reason)


def test_a_record_is_in_the_tree_of_the_signed_head(tmp_path):
    site = make_log(tmp_path)
    with site.write() as log:
        receipt = log.append(review(), subject="MRN-1", outcome=Outcome.SUCCESS, model="c" * 64)
        assert (receipt.index, log.size, receipt.repeated) == (0, 1, False)
    with site.read() as reader:
        record = reader.record(0)
        head, _ = Checkpoint.open(reader.checkpoint, site.load_keys().verifiers, site.origin)
        assert verify_inclusion(0, head.size, leaf_hash(record.leaf), reader.inclusion(0), head.root)
        assert record.payload == review()
        assert (record.event.model, record.event.id, record.event.time) == ("c" * 64, receipt.event_id, receipt.time)
        assert sha256(record.salt + record.payload.canonical()).hexdigest() == record.event.commitment


def test_what_is_recorded_twice_is_committed_to_in_two_ways(tmp_path):
    site = make_log(tmp_path)
    with site.write() as log:
        log.record([Entry(review()), Entry(review())])
    with site.read() as reader:
        one, other = reader.records()
    assert one.payload == other.payload
    assert one.salt != other.salt
    assert one.event.commitment != other.event.commitment


def test_leaves_hold_nothing_of_a_person_and_files_hold_it_sealed(tmp_path):
    site = make_log(tmp_path)
    with site.write() as log:
        for number in range(3):
            log.append(review(number, "reason-canary"), subject="MRN-CANARY", idempotency_key=f"key-canary {number}")
    with site.read(sealed=True) as reader:
        leaves = b"".join(reader.leaves(0, 3))
        tags = {Event.parse(leaf).subject_tag for leaf in reader.leaves(0, 3)}
        assert [record.state for record in reader.records()] == ["sealed"] * 3
        assert reader.named("MRN-CANARY") == []
    assert len(tags) == 3, "two records of a subject show the same tag"
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for canary in (b"canary", b"CANARY"):
        assert canary not in leaves
        assert canary not in everything


def test_subjects_and_results_find_their_records(tmp_path):
    site = make_log(tmp_path)
    with site.write() as log:
        log.append(review(1), subject="A")
        log.append(review(2), subject="B")
        log.append(review(1), subject="A")
        log.append(Notice(actor=ACTOR, text_version="3"), subject="A")
    with site.read() as reader:
        assert reader.named("A") == [0, 2, 3]
        assert reader.named("B") == [1]
        assert reader.about(f"clinical-ser:result:{1:064x}") == [0, 2]
        assert reader.named(f"clinical-ser:result:{1:064x}") == []
        assert reader.named("C") == []


def test_a_record_like_another_is_about_the_same_subject(tmp_path):
    site = make_log(tmp_path)
    with site.write() as log:
        log.append(review(1), subject="A")
        log.append(review(1), like=0)
        with pytest.raises(AuditUnavailableError, match="Record 7"):
            log.append(review(1), like=7)
    with site.read() as reader:
        assert reader.named("A") == [0, 1]
    assert verify(site).opened == 2


def test_several_entries_are_one_commit(tmp_path):
    site = make_log(tmp_path)
    with site.write() as log:
        receipts = log.record([Entry(review(1)), Entry(review(2))], idempotency_key="k")
        assert [receipt.index for receipt in receipts] == [0, 1]
        with pytest.raises(AuditFormatError, match="holds no event"):
            log.record([])
        again = log.record([Entry(review(1)), Entry(review(2))], idempotency_key="k")
        assert [(receipt.index, receipt.repeated) for receipt in again] == [(0, True), (1, True)]
        assert [receipt.event_id for receipt in again] == [receipt.event_id for receipt in receipts]


def test_an_idempotency_key_with_another_content_is_refused(tmp_path):
    site = make_log(tmp_path)
    with site.write() as log:
        log.append(review(1), idempotency_key="k")
        for other in ({"payload": review(2)}, {"payload": review(1), "subject": "A"}, {"payload": review(1), "outcome": Outcome.FAILED}):
            with pytest.raises(AuditConflictError, match="another content"):
                log.append(other.pop("payload"), idempotency_key="k", **other)
        assert log.size == 1


def test_the_tree_grows_over_many_tiles_and_openings(tmp_path):
    site = make_log(tmp_path)
    heads = []
    for _ in range(4):
        with site.write() as log:
            log.record([Entry(payload_of(name)) for name in names_of(200)])
            heads.append(Checkpoint.open(log.checkpoint, log.verifiers)[0])
    assert [head.size for head in heads] == [200, 400, 600, 800]
    with site.read() as reader, closing(site.connect()) as database:
        for old in heads:
            assert verify_consistency(old.size, 800, old.root, heads[-1].root, reader.consistency(old.size))
            assert Prover(DatabaseTiles(database), old.size).root() == old.root
        assert database.query("SELECT level, n FROM tiles ORDER BY n") == [(1, 0), (1, 1), (1, 2)]
    assert verify(site).size == 800


def test_a_second_level_of_tiles_is_kept_and_verified(tmp_path):
    site = make_log(tmp_path)
    with site.write(wait_s=0) as log:
        for _ in range(2):
            log.record([Entry(payload_of("x"))] * 33_000)
    with closing(site.connect()) as database:
        assert database.query("SELECT level, COUNT(*) FROM tiles GROUP BY level ORDER BY level") == [(1, 257), (2, 1)]
    found = site.verify(tree_only=True)
    assert found.size == 66_000
    with site.read() as reader:
        head, _ = Checkpoint.open(reader.checkpoint, site.load_keys().verifiers)
        for index in (0, 255, 65_535, 65_536, 65_999):
            assert verify_inclusion(index, head.size, leaf_hash(reader.record(index).leaf), reader.inclusion(index), head.root)


def test_clients_share_commits_and_get_distinct_places(tmp_path):
    site = make_log(tmp_path)
    receipts = []
    with site.write() as log:

        def client(name):
            receipts.extend(append(log, f"{name} {number}", subjects=3) for number in range(20))

        threads = [threading.Thread(target=client, args=(name,)) for name in "abcdefgh"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(receipt.index for receipt in receipts) == list(range(160))
    assert verify(site).opened == 160


def test_a_second_writer_is_refused_and_readers_are_not(tmp_path):
    site = make_log(tmp_path)
    with site.write() as log:
        log.append(review())
        with pytest.raises(AuditBusyError, match="one writer at a time"):
            site.write(wait_s=0.05)
        with site.read() as reader:
            log.append(review())
            assert reader.size == 1
            assert len(list(reader.records())) == 1
        with site.read() as reader:
            assert reader.size == 2
    with site.write(wait_s=0) as log:
        assert log.size == 2


def test_a_closed_log_takes_nothing(tmp_path):
    site = make_log(tmp_path)
    log = site.write()
    log.close()
    log.close()
    with pytest.raises(AuditUnavailableError, match="closed"):
        log.append(review())


def test_a_forked_process_is_told_that_the_log_is_its_parent_s(tmp_path):
    site = make_log(tmp_path)
    with site.write() as log:
        child = os.fork()
        if child == 0:
            try:
                append(log, "child")
            except AuditUnavailableError as error:
                os._exit(0 if "forked" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert append(log, "parent").index == 0


def test_a_payload_that_is_too_long_is_refused_before_it_is_queued(tmp_path):
    site = make_log(tmp_path)
    long = review().model_copy(update={"reason": "x" * (1 << 20)})
    with site.write() as log:
        with pytest.raises(AuditFormatError, match="at most"):
            log.append(long)
        assert log.append(review()).index == 0


def test_a_clock_set_back_an_hour_is_flagged_until_time_has_caught_up(tmp_path):
    now = [datetime(2026, 3, 1, 12, tzinfo=UTC)]
    site = make_log(tmp_path)
    with site.write(clock=lambda: now[0], monotonic_ns=lambda: int(now[0].timestamp() * 1e9)) as log:
        for step in (timedelta(0), timedelta(minutes=1), timedelta(hours=-1), timedelta(minutes=30), timedelta(minutes=40)):
            now[0] += step
            log.append(review())
    with site.read() as reader:
        flags = ["clock_anomaly" in record.event.flags for record in reader.records()]
    assert flags == [False, False, True, True, False]
    found = verify(site)
    assert (found.anomalies, found.clock_anomalies) == (2, [2, 3])


def test_files_are_the_owners_alone(tmp_path):
    site = make_log(tmp_path, records=1, subjects=1)
    old = os.umask(0)
    try:
        with site.write() as log:
            log.append(review(), subject="A")
            # The list of public keys and the kept head are public.
            private = [path for path in tmp_path.rglob("*") if path.is_file() and path.name not in {"keys.json", "kept.checkpoint"}]
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in private}
    finally:
        os.umask(old)
    assert {"audit.sqlite", "audit.sqlite-wal", "vault.sqlite", "audit.toml"} < modes.keys()
    assert set(modes.values()) == {0o600}


def test_durability_is_insisted_on(tmp_path, monkeypatch):
    site = make_log(tmp_path)
    real = sqlite3.connect

    class Lying(sqlite3.Connection):
        def execute(self, statement, *args):
            return super().execute("SELECT 1" if statement == "PRAGMA synchronous" else statement, *args)

    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: real(*a, factory=Lying, **k))
    with pytest.raises(AuditUnavailableError, match="synchronous=FULL"):
        site.write()


def test_a_failing_commit_fails_its_callers_and_the_log_goes_on(tmp_path):
    site = make_log(tmp_path, records=2)
    with site.write() as log:
        with closing(sqlite3.connect(database_file(site))) as other:
            # A statement of the next commit fails, as on a full disk.
            other.execute("CREATE TRIGGER no BEFORE INSERT ON leaves BEGIN SELECT RAISE(ABORT, 'no'); END")
            with pytest.raises(AuditUnavailableError, match="cannot commit"):
                append(log, "lost")
            other.execute("DROP TRIGGER no")
        assert append(log, "kept").index == 2
    assert verify(site).size == 3


def test_a_log_without_its_vault_cannot_be_written(tmp_path):
    site = make_log(tmp_path, records=1)
    (tmp_path / "keys" / "vault.sqlite").rename(tmp_path / "elsewhere")
    with pytest.raises(AuditKeyError, match="vault"):
        site.write()
    with site.read(sealed=True) as reader:
        assert reader.record(0).state == "sealed"


def test_a_vault_that_others_may_read_is_refused(tmp_path):
    site = make_log(tmp_path)
    (tmp_path / "keys" / "vault.sqlite").chmod(0o640)
    with pytest.raises(AuditKeyError, match="chmod 600"):
        site.write()


def test_a_second_log_in_the_same_place_is_refused_and_the_first_left(tmp_path):
    site = make_log(tmp_path, records=1)
    with pytest.raises(AuditSetupError, match="already"):
        site.create(tmp_path / CONFIGURATION_FILE)
    with pytest.raises(AuditError):
        site.create(tmp_path / "other.toml")
    assert verify(site).size == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "origin"),
        ("origin = 5", "origin"),
        ('origin = "a"\ndatabase = "mysql://canary:canary@x"\nkeys = "k"', "database"),
        ('origin = "a"\ndatabase = "sqlite:x"\nkeys = "k"\nretention_days = 30', "retention_days"),
        ('origin = "a"\ndatabase = "sqlite:x"\nkeys = "k"\nmore = 1', "more"),
        ("= canary", "not TOML"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_by_field_and_not_quoted(tmp_path, text, message):
    path = tmp_path / "audit.toml"
    path.write_text(text)
    site = make_log(tmp_path / "log")
    with pytest.raises(AuditSetupError, match=message) as refused:
        type(site).load(path)
    assert "canary" not in str(refused.value)


def test_a_configuration_is_read_back_whatever_its_folder_is_called(tmp_path):
    folder = tmp_path / 'it\'s "quoted" \\ # ?mode=ro é'
    site = make_log(folder, records=1)
    assert type(site).load(folder / CONFIGURATION_FILE) == site
    with site.write() as log:
        assert append(log, "second").index == 1
    assert "quoted" in json.dumps(str(database_file(site)))


def test_the_head_kept_beside_the_keys_notices_an_older_database(tmp_path):
    site = make_log(tmp_path, records=3)
    old = database_file(site).read_bytes()
    with site.write() as log:
        append(log, "one more")
    database_file(site).write_bytes(old)
    with pytest.raises(AuditTamperedError, match="older copy"):
        site.write()
    with pytest.raises(AuditTamperedError, match="older copy"):
        site.verify()
