"""The switch: nothing becomes champion without plan, gate and signatures; each refusal is recorded; a kill leaves the old champion."""

import os
import signal
from datetime import timedelta

import pytest

from clinical_ser.audit.answering import Recorder
from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.events import ModelChange
from clinical_ser.control import promotion
from clinical_ser.control.approval import RoleKey, sign_plan
from clinical_ser.errors import AuditBusyError, ChangePlanError, InvalidValueError, OutsidePlanError, RegistryConflictError, RegistryError
from clinical_ser.folders import user_folder
from clinical_ser.models.bundle import read_bundle
from clinical_ser.monitoring.counts import Counts
from clinical_ser.monitoring.journal import Journal
from clinical_ser.registry import Record, Registry
from tests.control.made import KEYS, LEAD, MODEL, NOW, PERSONS, QUALITY, approvals, comparison, filled_in, pair, plan_of, signatures
from tests.registry.keeping import ended, in_child, make_bundle

PLAN = plan_of(filled_in(shadow_days="0", shadow_recordings="0"))
STEP = {"step": "intercept"}
PEOPLE = {"depressed": 40, "not_depressed": 60}


@pytest.fixture
def log():
    home = user_folder("config")
    site = LogConfiguration("tests.example/log", f"sqlite:{home / 'log.sqlite'}", home / "keys" / "audit")
    site.create(LogConfiguration.default_path())
    return site


class Room:
    """A registry with a champion, and what makes challengers of it."""

    def __init__(self, folder):
        self.registry, self._folder = Registry(folder / "registry"), folder
        self.champion = self.keep("1")
        promotion.open_name(self.registry, MODEL, self.champion, recorder=Recorder.find(), reason="first release")

    def keep(self, version, *, parent=None, change=None, details=None, subjects=PEOPLE, **fields):
        path = make_bundle(self._folder / f"bundle-{version}", version, **fields)
        record = Record.of(
            read_bundle(path),
            change=change or ("recalibrated" if parent else "trained"),
            name=MODEL,
            parent=parent,
            details=STEP if details is None else details,
            subjects=subjects,
            because="alarm:prevalence",
            created=NOW,
        )
        return self.registry.add(path, record)

    def challenger(self, version="2", *, plan=PLAN, sign=True, **changed):
        """A recalibration of the champion, compared and approved."""
        champion = self.registry.pointers(MODEL).champion
        digest = self.keep(version, parent=champion)
        made = comparison(plan, champion, digest, **changed)
        self.registry.attach(digest, made.to_json())
        for one in approvals(plan, made) if sign and made.met else ():
            self.registry.attach(digest, one.to_json())
        return digest

    def promote(self, digest, *, plan=PLAN, now=NOW, **more):
        more.setdefault("signatures", None)
        more["signatures"] = signatures(plan) if more["signatures"] is None else more["signatures"]
        return promotion.promote(self.registry, MODEL, digest, plan, recorder=Recorder.find(), now=now, **more)

    @property
    def answering(self):
        return self.registry.pointers(MODEL).champion


@pytest.fixture
def room(log, tmp_path):
    return Room(tmp_path)


def changes(log):
    with log.read() as reader:
        return [record.payload for record in reader.records() if isinstance(record.payload, ModelChange)]


def test_a_challenger_that_met_everything_becomes_champion_with_plan_figures_and_approvers_on_record(room, log):
    digest = room.challenger()
    entry = room.promote(digest)
    assert room.answering == digest
    assert (entry.action, entry.plan, entry.modification, len(entry.approvals)) == ("promoted", PLAN.digest, "recalibration", 2)
    told = changes(log)[-1]
    assert (told.action, told.old, told.new) == ("activated", room.champion, digest)
    assert PLAN.digest in told.plan
    assert entry.evaluation in told.protocol
    assert all(name in told.approver for name in PERSONS.values())
    assert told.metrics["auroc challenger"] == pytest.approx(0.81)
    assert room.registry.verify() == ()


def refused(room, log, error, match, act):
    """Nothing moves, and both the log and the history say what was refused and why."""
    before = room.answering
    with pytest.raises(error, match=match):
        act()
    assert room.answering == before
    last = room.registry.head(MODEL)
    assert (last.action, last.plan) == ("refused", PLAN.digest)
    assert changes(log)[-1].action == "refused"
    assert changes(log)[-1].reason == last.reason


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"change": "retrained"}, "Kind:"),
        ({"details": {"step": "everything"}}, "step None"),
        ({"subjects": {"depressed": 3, "not_depressed": 60}}, "3 of 'depressed'"),
        ({"features": ("praat.hnr_mean_db",)}, "Features:"),
        ({"extractors": {"praat": "praat-7/1", "egemaps": "opensmile-3.0.2/1", "timing": "timing/1"}}, "Extractors:"),
    ],
)
def test_a_change_outside_the_plan_is_refused_by_name_and_recorded(room, log, fields, named):
    digest = room.keep("2", parent=room.champion, **fields)
    refused(room, log, OutsidePlanError, named, lambda: room.promote(digest))
    refused(room, log, OutsidePlanError, named, lambda: promotion.shadow(room.registry, MODEL, digest, PLAN, recorder=Recorder.find(), on=NOW.date()))


def test_a_change_that_does_not_start_from_the_champion_is_refused(room, log):
    first = room.challenger("2")
    second = room.keep("3", parent=first)
    refused(room, log, OutsidePlanError, "Parent: it was made from", lambda: room.promote(second))


def test_a_comparison_a_signature_or_a_met_requirement_that_is_missing_is_named(room, log):
    bare = room.keep("2", parent=room.champion)
    refused(room, log, ChangePlanError, "No comparison", lambda: room.promote(bare))
    unsigned = room.challenger("3", sign=False)
    refused(room, log, ChangePlanError, "Approvals are missing", lambda: room.promote(unsigned))
    worse = room.challenger("4", auroc=pair(0.8, 0.6))
    refused(room, log, ChangePlanError, "discrimination", lambda: room.promote(worse))
    other = room.keep("5", parent=room.champion)
    room.registry.attach(other, comparison(PLAN, "c" * 64, other).to_json())
    refused(room, log, ChangePlanError, "of another plan, champion", lambda: room.promote(other))


def test_verdicts_are_judged_again_and_never_taken_on_trust(room, log):
    digest = room.keep("2", parent=room.champion)
    honest = comparison(PLAN, room.champion, digest, auroc=pair(0.8, 0.6))
    rosy = honest.model_copy(update={"met": True, "verdicts": comparison(PLAN, room.champion, digest).verdicts})
    room.registry.attach(digest, rosy.to_json())
    for one in approvals(PLAN, rosy):
        room.registry.attach(digest, one.to_json())
    refused(room, log, ChangePlanError, "not those of its figures", lambda: room.promote(digest))


def test_an_unsigned_plan_and_one_that_outruns_the_plan_before_are_refused(room, log):
    digest = room.challenger()
    refused(room, log, ChangePlanError, "not signed by its own roles", lambda: room.promote(digest, signatures=[]))
    room.promote(digest)
    keys = {LEAD: RoleKey.generate(), QUALITY: RoleKey.generate()}
    laxer = plan_of(filled_in(keys=keys, margin="0.4", shadow_days="0", shadow_recordings="0"))
    third = room.keep("3", parent=digest)
    own = [sign_plan(laxer, role=role, name=PERSONS[role], key=key) for role, key in keys.items()]
    with pytest.raises(ChangePlanError, match="the plan that it replaces"):
        room.promote(third, plan=laxer, signatures=own)
    agreed = [sign_plan(laxer, role=role, name=PERSONS[role], key=key, handing_over=True) for role, key in KEYS.items()]
    with pytest.raises(ChangePlanError, match="No comparison"):
        room.promote(third, plan=laxer, signatures=[*own, *agreed])


def test_the_shadow_period_has_to_be_served_in_days_and_recordings(room, log, tmp_path):
    plan = plan_of(filled_in(shadow_days="14", shadow_recordings="200"))
    digest = room.challenger(plan=plan)
    with pytest.raises(ChangePlanError, match=r"0\.0 days were served"):
        room.promote(digest, plan=plan)
    entry = promotion.shadow(room.registry, MODEL, digest, plan, recorder=Recorder.find(), on=NOW.date())
    assert room.registry.pointers(MODEL).shadow == digest
    assert room.answering == room.champion
    later = entry.time + timedelta(days=13)
    with pytest.raises(ChangePlanError, match=r"13\.0 days"):
        room.promote(digest, plan=plan, now=later)
    after = entry.time + timedelta(days=15)
    journal = Journal(tmp_path / "journal")
    kind = f"beside.{room.champion[:12]}.status"
    for day, n in ((entry.time.date() - timedelta(days=1), 500), (entry.time.date(), 199)):
        journal.add(day, Counts(model=digest, recordings=n, names={kind: {"flagged > flagged": n}}))
    journal.add(entry.time.date(), Counts(model=digest, recordings=50, names={"beside.000000000000.status": {"flagged > flagged": 50}}))
    for given, named in ((None, "the server.s journal"), (journal, "199 recordings")):
        with pytest.raises(ChangePlanError, match=named):
            room.promote(digest, plan=plan, now=after, journal=given)
    journal.add(entry.time.date(), Counts(model=digest, recordings=1, names={kind: {"flagged > not_flagged": 1}}))
    room.promote(digest, plan=plan, now=after, journal=journal)
    assert room.registry.pointers(MODEL).model_dump() == {"champion": digest, "challenger": None, "shadow": None}


def test_a_rollback_is_one_step_needs_a_reason_and_goes_further_back_each_time(room, log):
    second = room.challenger("2")
    room.promote(second)
    third = room.challenger("3")
    room.promote(third)
    with pytest.raises(InvalidValueError, match="reason"):
        promotion.rollback(room.registry, MODEL, recorder=Recorder.find(), reason=" ")
    for expected in (second, room.champion):
        promotion.rollback(room.registry, MODEL, recorder=Recorder.find(), reason="complaints of users")
        assert room.answering == expected
    told = changes(log)[-1]
    assert (told.action, told.old, told.new, told.reason) == ("rolled_back", second, room.champion, "complaints of users")
    with pytest.raises(RegistryError, match="no champion before"):
        promotion.rollback(room.registry, MODEL, recorder=Recorder.find(), reason="again")


def test_what_was_rolled_back_is_approved_again_before_it_comes_again(room, log):
    digest = room.challenger()
    entry = room.promote(digest)
    back = promotion.rollback(room.registry, MODEL, recorder=Recorder.find(), reason="complaints")
    refused(room, log, ChangePlanError, "approvals from before do not count", lambda: room.promote(digest))
    made = promotion.Comparison.from_json(room.registry.attachment(digest, entry.evaluation))
    for one in approvals(PLAN, made, time=back.time + timedelta(seconds=2)):
        room.registry.attach(digest, one.to_json())
    assert room.promote(digest).action == "promoted"
    promotion.rollback(room.registry, MODEL, recorder=Recorder.find(), reason="complaints again")
    assert room.answering == room.champion


def test_withdrawing_takes_the_shadow_away_and_the_champion_only_when_asked(room, log):
    with pytest.raises(RegistryError, match="no challenger"):
        promotion.withdraw(room.registry, MODEL, recorder=Recorder.find(), reason="tidying")
    digest = room.challenger()
    promotion.shadow(room.registry, MODEL, digest, PLAN, recorder=Recorder.find(), on=NOW.date())
    promotion.withdraw(room.registry, MODEL, recorder=Recorder.find(), reason="too slow")
    assert room.registry.pointers(MODEL).model_dump() == {"champion": room.champion, "challenger": None, "shadow": None}
    promotion.withdraw(room.registry, MODEL, recorder=Recorder.find(), reason="harm was reported", champion=True)
    assert room.answering is None
    assert changes(log)[-1].new is None
    with log.read() as reader:
        assert promotion.unfinished(room.registry, MODEL, reader) is None
    promotion.rollback(room.registry, MODEL, recorder=Recorder.find(), reason="the report was about another model")
    assert room.answering == room.champion
    with pytest.raises(RegistryError, match="no champion before"):
        promotion.rollback(room.registry, MODEL, recorder=Recorder.find(), reason="again")


def test_a_first_champion_is_opened_once(room, log):
    with pytest.raises(ChangePlanError, match="goes through a plan"):
        promotion.open_name(room.registry, MODEL, room.keep("9"), recorder=Recorder.find(), reason="around the gate")
    assert changes(log)[-1].action == "refused"


def test_without_a_record_there_is_no_change(room, log, monkeypatch):
    digest = room.challenger()
    monkeypatch.setattr("clinical_ser.audit.answering._WAIT_S", 0.05)
    with log.write(), pytest.raises(AuditBusyError):
        room.promote(digest)
    assert room.answering == room.champion


def test_killed_between_record_and_switch_the_old_champion_answers_and_the_next_command_says_so(room, log, monkeypatch):
    digest = room.challenger()

    def killed() -> int:
        Registry.switch = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        room.promote(digest)
        return 0

    assert ended(in_child(killed)) == -signal.SIGKILL
    assert room.answering == room.champion
    with log.read() as reader:
        assert "did not take place" in promotion.unfinished(room.registry, MODEL, reader)
    room.promote(digest)
    assert room.answering == digest
    assert [one.action for one in changes(log)][-3:] == ["activated", "refused", "activated"]
    assert "did not take place" in changes(log)[-2].reason
    with log.read() as reader:
        assert promotion.unfinished(room.registry, MODEL, reader) is None


def test_a_switch_that_somebody_else_overtook_is_recorded_as_not_done(room, log, monkeypatch):
    digest = room.challenger()
    switch = room.registry.switch

    def overtaken(name, **given):
        switch(name, **(given | {"action": "alarm", "pointers": room.registry.pointers(name), "evaluation": None, "approvals": ()}))
        return switch(name, **given)

    monkeypatch.setattr(room.registry, "switch", overtaken)
    with pytest.raises(RegistryConflictError):
        room.promote(digest)
    assert room.answering == room.champion
    assert [one.action for one in changes(log)][-2:] == ["activated", "refused"]


def test_without_a_log_the_gate_is_the_same(tmp_path):
    room = Room(tmp_path)
    bare = room.keep("2", parent=room.champion)
    with pytest.raises(ChangePlanError):
        room.promote(bare)
    assert room.registry.head(MODEL).action == "refused"
    room.promote(room.challenger("3"))
    assert room.answering != room.champion


def test_privacy_spent_adds_up_over_ancestors(room):
    second = room.keep("2", parent=room.champion, details={"step": "slope", "sites": 2, "forgetting": 0.9})
    change = promotion.change_of(room.registry, second, name=MODEL)
    assert (change.epsilon, change.sites, change.forgetting, change.step, change.trigger) == (None, 2, 0.9, "slope", "alarm:prevalence")
    with pytest.raises(InvalidValueError, match="sites"):
        promotion.change_of(room.registry, room.keep("3", parent=room.champion, details={"sites": "two"}), name=MODEL)
