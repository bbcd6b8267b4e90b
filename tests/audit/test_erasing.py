import contextlib
import sqlite3
from contextlib import closing

import pytest

from clinical_ser.audit import erasing
from clinical_ser.audit.checkpoint import Checkpoint
from clinical_ser.audit.erasing import erase
from clinical_ser.audit.events import Actor, Erasure, LegalHold, ModelChange, Outcome, QualityRejection, Review, Role
from clinical_ser.audit.log import Entry
from clinical_ser.audit.merkle import leaf_hash, verify_inclusion
from clinical_ser.errors import AuditConflictError, AuditSetupError, AuditTamperedError, AuditUnavailableError, LegalHoldError
from tests.audit.log_maker import database_file, make_log, verify

ACTOR = Actor(id="officer", role=Role.COMPLIANCE)
WHY = {"reason": "the person asked", "basis": "GDPR Art. 17(1)(b)", "actor": ACTOR}


CHANGE = ModelChange(actor=ACTOR, action="activated", name="m", old=None, new="a" * 64)


def review(number, reason="because"):
    return Review(actor=ACTOR, result=f"{number:064x}", decision="agreed", reason=reason)


def hold(action):
    return LegalHold(actor=ACTOR, action=action, reason="claim", authority="court")


@pytest.fixture
def site(tmp_path):
    site = make_log(tmp_path)
    with site.write() as log:
        for number in range(6):
            log.append(review(number), subject="AB"[number % 2], idempotency_key=f"request {number}")
    return site


def everything(site):
    """All bytes of the log's folder, keys and vault included."""
    return b"".join(path.read_bytes() for path in site.keys.parent.rglob("*") if path.is_file())


def sealed_bytes(site, subject):
    """What must be gone afterwards: the subject's key, its name in the vault, and its sealed payloads."""
    with closing(site.open_vault()) as vault, closing(site.connect()) as database:
        key = vault.find(subject)
        rows = database.query("SELECT data FROM sealed WHERE subject = ?", (key.id,))
        return [key.key, key.lookup, *(data for (data,) in rows)]


def test_what_a_subject_had_is_destroyed_everywhere_and_the_tree_stays(site):
    with site.read() as reader:
        paths = {index: (reader.record(index).leaf, reader.inclusion(index)) for index in range(6)}
        head, _ = Checkpoint.open(reader.checkpoint, site.load_keys().verifiers)
    gone, kept = sealed_bytes(site, "A"), sealed_bytes(site, "B")
    with site.write() as log:
        assert str(erase(log, "A", **WHY).records) == "0,2,4"
        # While the files are open, so that the write-ahead logs are still there.
        assert [each in everything(site) for each in gone] == [False] * len(gone)
    now = everything(site)
    assert [each in now for each in gone] == [False] * len(gone)
    assert all(each in now for each in kept)
    found = verify(site)
    assert (found.size, found.erased, found.opened, found.unfinished) == (7, 3, 4, 0)
    with site.read() as reader:
        assert [record.state for record in reader.records()] == ["erased", "open"] * 3 + ["open"]
        assert reader.named("A") == []
        assert reader.named(f"clinical-ser:result:{0:064x}") == []
        assert reader.record(6).payload == Erasure(erased="0,2,4", **WHY)
        assert all(reader.record(index).leaf == leaf for index, (leaf, _) in paths.items())
    assert all(verify_inclusion(index, head.size, leaf_hash(leaf), path, head.root) for index, (leaf, path) in paths.items())


def test_the_tombstone_does_not_name_the_subject(site):
    with site.write() as log:
        erase(log, "A", **WHY)
    with site.read() as reader:
        assert reader.record(6).event.subject_tag is None
        assert reader.named("A") == []


def test_an_erased_subject_that_comes_again_begins_anew(site):
    with site.write() as log:
        erase(log, "A", **WHY)
        log.append(review(9), subject="A")
    with site.read() as reader:
        assert reader.named("A") == [7]
    assert verify(site).opened == 5


def test_a_repeated_request_after_the_erasure_is_told_so_and_brings_nobody_back(site):
    with site.write() as log:
        erase(log, "A", **WHY)
        with pytest.raises(AuditConflictError, match="erased"):
            log.append(review(0), subject="A", idempotency_key="request 0")
        assert log.append(review(1), subject="B", idempotency_key="request 1").repeated
    with closing(site.open_vault()) as vault:
        assert vault.find("A") is None
    verify(site)


def test_erasing_one_forgets_the_content_of_no_other_request(site):
    with site.write() as log:
        log.append(review(7), subject="B")
        erase(log, "B", **WHY)
        with pytest.raises(AuditConflictError, match="another content"):
            log.append(review(9), subject="A", idempotency_key="request 4")


def test_nothing_is_recorded_where_there_is_nothing(site):
    with site.write() as log:
        assert not erase(log, "nobody", **WHY).records
        assert log.size == 6


def test_a_legal_hold_refuses_and_the_refusal_is_recorded(site):
    with site.write() as log:
        log.append(hold("placed"), subject="A")
        with pytest.raises(LegalHoldError, match="record 6"):
            erase(log, "A", **WHY)
        erase(log, "B", **WHY)
    with site.read() as reader:
        refused = reader.record(7)
        assert (refused.event.kind, refused.event.outcome, refused.payload.erased) == ("erasure", Outcome.REFUSED, "")
        assert reader.named("A") == [0, 2, 4, 6, 7]
    assert verify(site).erased == 3


def test_a_released_hold_lets_go_and_is_erased_too(site):
    with site.write() as log:
        log.append(hold("placed"), subject="A")
        log.append(hold("released"), subject="A")
        assert str(erase(log, "A", **WHY).records) == "0,2,4,6-7"
    assert verify(site).unfinished == 0


def test_each_of_two_holds_is_released_by_its_own(site):
    with site.write() as log:
        first = log.append(hold("placed"), subject="A").index
        second = log.append(hold("placed"), subject="A").index
        log.append(hold("released").model_copy(update={"releases": first}), subject="A")
        with pytest.raises(LegalHoldError, match=f"record {second}"):
            erase(log, "A", **WHY)
        log.append(hold("released"), subject="A")
        assert erase(log, "A", **WHY).records


def test_a_hold_is_not_passed_by_naming_the_answer_and_nobody_else_s_records_go(site):
    record = f"clinical-ser:result:{0:064x}"
    with site.write() as log:
        log.append(review(0), subject="B")
        log.append(hold("placed"), subject="A")
        with pytest.raises(AuditSetupError, match="person's name"):
            erase(log, record, **WHY)
        log.append(CHANGE)
        with pytest.raises(AuditSetupError, match="history"):
            erase(log, "clinical-ser:model:m", **WHY)
    with site.read() as reader:
        assert reader.named("A") == [0, 2, 4, 7]
        assert reader.about(record) == [0, 6]
    assert verify(site).erased == 0


def test_copies_that_named_no_person_go_with_the_person_and_so_does_their_hold(site):
    record = f"clinical-ser:result:{2:064x}"
    answer = {"actor": ACTOR, "result": f"{2:064x}", "recording": "b" * 64, "duration_s": 1.5, "task": "t", "checks": ()}
    rejection = QualityRejection(**answer, model_name="m", model_version="1")
    with site.write() as log:
        log.append(rejection, subject="A")
        log.append(rejection, subject=record)
        log.append(hold("placed"), subject=record)
        with pytest.raises(LegalHoldError, match="record 8"):
            erase(log, "A", **WHY)
        log.append(hold("released"), subject=record)
        assert str(erase(log, "A", **WHY).records) == "0,2,4,6-10"
    found = verify(site)
    assert (found.erased, found.unfinished) == (8, 0)


def test_a_subject_is_found_however_the_name_was_typed(tmp_path):
    site = make_log(tmp_path)
    with site.write() as log:
        log.append(review(1), subject="Mu\u0308ller ")
    with site.read() as reader:
        assert reader.named("M\u00fcller") == [0]


def test_a_hold_that_was_refused_does_not_hold(site):
    with site.write() as log:
        log.append(hold("placed"), subject="A", outcome=Outcome.REFUSED)
        assert erase(log, "A", **WHY).records


def test_many_separate_records_need_several_tombstones(tmp_path):
    site = make_log(tmp_path)
    with site.write() as log:
        log.record([Entry(review(number), subject="AB"[number % 2]) for number in range(900)])
        erased = erase(log, "A", **WHY)
        assert (len(erased.records), log.size) == (450, 902)
    assert verify(site).erased == 450


@pytest.mark.parametrize("step", ["vault.destroy", "transaction", "scrub"])
def test_an_erasure_that_was_interrupted_is_seen_and_finished_by_asking_again(site, monkeypatch, step):
    class CutError(RuntimeError):
        pass

    def broken(*_args, **_options):
        raise CutError

    real = erasing._destroy

    def interrupted(inside, *whose):
        target = inside.vault if step == "vault.destroy" else inside.database
        with monkeypatch.context() as patched:
            patched.setattr(target, step.rpartition(".")[2], broken)
            real(inside, *whose)

    with monkeypatch.context() as patched:
        if step == "scrub":
            patched.setattr(erasing, "_finish", cut_second(erasing._finish, CutError))
        else:
            patched.setattr(erasing, "_destroy", interrupted)
        log = site.write()
        with pytest.raises(CutError):
            erase(log, "A", **WHY)
        log.close()
    left = verify(site)
    assert (left.size, left.unscrubbed) == (7, True)
    assert left.unfinished == (0 if step == "scrub" else 3)
    with site.write() as log:
        erased = erase(log, "A", reason="asked again, in other words", basis="GDPR Art. 17(1)", actor=ACTOR)
        assert log.size == 7, "the tombstone was written twice"
    assert erased.finished
    found = verify(site)
    assert (found.erased, found.unfinished, found.unscrubbed) == (3, 0, False)


def cut_second(finish, error):
    """The first call looks for what was left before; the second ends the erasure."""
    calls = []

    def cut(inside):
        calls.append(1)
        if len(calls) == 2:
            raise error
        return finish(inside)

    return cut


def test_a_reader_in_the_way_is_told_and_the_erasure_can_be_finished(site):
    with contextlib.closing(sqlite3.connect(database_file(site))) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT COUNT(*) FROM leaves").fetchone()
        log = site.write()
        with pytest.raises(AuditUnavailableError, match="reading"):
            erase(log, "A", **WHY)
        reader.execute("ROLLBACK")
        with contextlib.suppress(AuditUnavailableError):
            erase(log, "A", **WHY)
        log.close()
    assert verify(site).erased == 3


def test_a_payload_that_nobody_erased_is_missed(site):
    with contextlib.closing(sqlite3.connect(database_file(site))) as database, database:
        database.execute("DELETE FROM sealed WHERE idx = 3")
        database.execute("DELETE FROM names WHERE idx = 3")
    with pytest.raises(AuditTamperedError, match="Record 3"):
        verify(site)
    with site.read() as reader, pytest.raises(AuditTamperedError, match="Record 3"):
        list(reader.records())


def test_a_key_that_nobody_destroyed_is_missed(site):
    with contextlib.closing(sqlite3.connect(site.keys / "vault.sqlite")) as database, database:
        database.execute("DELETE FROM subjects")
    with pytest.raises(AuditTamperedError, match="Record 0"):
        verify(site)
