"""The switch: nothing becomes champion without plan, gate and signatures; each refusal is recorded; a kill leaves the old champion."""

import os
import shutil
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
from clinical_ser.models.bundle import read_bundle, write_bundle
from clinical_ser.models.strict_json import canonical_json
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

    def __init__(self, folder, *, opened=True):
        self.registry, self._folder = Registry(folder / "registry"), folder
        self.champion = self.keep("1")
        if opened:
            self.open()

    def open(self, digest=None, **more):
        return promotion.open_name(self.registry, MODEL, digest or self.champion, recorder=Recorder.find(), reason="first release", **more)

    def keep(self, version, *, parent=None, change=None, details=None, subjects=PEOPLE, epsilon=None, files=None, **fields):
        path = make_bundle(self._folder / f"bundle-{version}", version, **fields)
        if files:
            write_bundle(path, read_bundle(path).manifest, read_bundle(path).files | files, replace=True)
        record = Record.of(
            read_bundle(path),
            change=change or ("recalibrated" if parent else "trained"),
            name=MODEL,
            parent=parent,
            details=STEP if details is None else details,
            subjects=subjects,
            epsilon=epsilon,
            because="alarm:prevalence",
            created=NOW,
        )
        return self.registry.add(path, record)

    def challenger(self, version="2", *, plan=PLAN, sign=True, **changed):
        """A recalibration of the champion, compared and approved."""
        champion = self.registry.pointers(MODEL).champion
        digest = self.keep(version, parent=champion)
        self.propose(digest, plan=plan)
        made = self.compared(digest, plan=plan, **changed)
        self.registry.attach(digest, made.to_json())
        for one in approvals(plan, made) if sign and made.met else ():
            self.registry.attach(digest, one.to_json())
        return digest

    def propose(self, digest, *, plan=PLAN):
        return promotion.propose(self.registry, MODEL, digest, plan, recorder=Recorder.find())

    def compared(self, digest, *, plan=PLAN, champion=None, **changed):
        """A comparison with the champion, of what the registry says was done."""
        change = promotion.change_of(self.registry, digest, name=MODEL)
        return comparison(plan, champion or self.answering, digest, **{"change": change} | changed)

    def shadow(self, digest, *, plan=PLAN, **more):
        if "signatures" not in more:
            more["signatures"] = signatures(plan)
        return promotion.shadow(self.registry, MODEL, digest, plan, recorder=Recorder.find(), on=NOW.date(), **more)

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


def test_the_plan_that_the_first_champion_is_bound_to_is_the_only_one(log, tmp_path):
    room = Room(tmp_path, opened=False)
    with pytest.raises(ChangePlanError, match="not signed by its own roles"):
        room.open(plan=PLAN)
    assert room.open(plan=PLAN, signatures=signatures(PLAN)).plan == PLAN.digest
    assert PLAN.digest in changes(log)[-1].plan
    keys = {LEAD: RoleKey.generate(), QUALITY: RoleKey.generate()}
    laxer = plan_of(filled_in(keys=keys, margin="0.1", shadow_days="0", shadow_recordings="0"))
    own = [sign_plan(laxer, role=role, name=PERSONS[role], key=key) for role, key in keys.items()]
    digest = room.challenger(plan=PLAN)
    # Whoever proposes under another plan does not put it in force.
    room.propose(digest, plan=laxer)
    with pytest.raises(ChangePlanError, match="the plan that it replaces"):
        room.promote(digest, plan=laxer, signatures=own)
    with pytest.raises(ChangePlanError, match="the plan that it replaces"):
        room.shadow(digest, plan=laxer, signatures=own)
    assert room.promote(digest).action == "promoted"


def test_a_name_whose_history_is_gone_is_not_opened_anew(room, log, tmp_path):
    room.promote(room.challenger())
    shutil.rmtree(room.registry.head_path(MODEL).parent)
    for digest in (room.champion, room.keep("3")):
        with pytest.raises(ChangePlanError, match="answered before"):
            room.open(digest)
    assert room.registry.head(MODEL) is None


def test_an_opening_that_was_interrupted_is_made_again_and_no_other(log, tmp_path):
    room = Room(tmp_path, opened=False)

    def killed() -> int:
        Registry.switch = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        room.open()
        return 0

    assert ended(in_child(killed)) == -signal.SIGKILL
    with pytest.raises(ChangePlanError, match="answered before"):
        room.open(room.keep("2"))
    assert room.open().pointers.champion == room.champion


def test_only_what_is_the_challenger_now_is_promoted_and_a_withdrawal_asks_for_new_approvals(room, log):
    digest = room.challenger()
    other = room.keep("3", parent=room.champion)
    room.propose(other)
    refused(room, log, ChangePlanError, f"is not the challenger of '{MODEL}', which is {other[:12]}", lambda: room.promote(digest))
    room.propose(digest)
    promotion.withdraw(room.registry, MODEL, recorder=Recorder.find(), reason="a fault was found")
    refused(room, log, ChangePlanError, "which has none", lambda: room.promote(digest))
    room.propose(digest)
    refused(room, log, ChangePlanError, "approvals from before do not count", lambda: room.promote(digest))


def test_what_is_attached_beside_is_passed_over_and_named_where_nothing_else_fits(room, log):
    digest = room.keep("2", parent=room.champion)
    room.propose(digest)
    other = plan_of(filled_in(margin="0.06", shadow_days="0", shadow_recordings="0"))
    room.registry.attach(digest, room.compared(digest, plan=other).to_json())
    for stray in (
        {"schema_id": "clinical-ser/comparison/1"},
        {"schema_id": "clinical-ser/comparison/2", "met": True},
        {"schema_id": "clinical-ser/approval/9"},
    ):
        room.registry.attach(digest, canonical_json(stray))
    refused(room, log, ChangePlanError, r"No comparison.*Passed over: .*attachment .*another plan", lambda: room.promote(digest))
    made = room.compared(digest)
    worded = made.model_copy(update={"verdicts": tuple(one.model_copy(update={"wanted": f"{one.wanted}!"}) for one in made.verdicts)})
    room.registry.attach(digest, worded.to_json())
    for one in approvals(PLAN, worded):
        room.registry.attach(digest, one.to_json())
    assert room.promote(digest).evaluation == worded.digest


@pytest.mark.parametrize(
    ("change", "details", "files", "named"),
    [
        ("recalibrated", STEP, {"head.json": b"{}\n"}, "has the head.json of its parent"),
        ("recalibrated", STEP, {"preprocessing.json": b"{}\n"}, "has the preprocessing.json"),
        ("updated", {"forgetting": 1.0}, {"preprocessing.json": b"{}\n"}, "has the preprocessing.json"),
        ("updated", {"forgetting": 1.0}, {"head.json": b"{}\n"}, None),
    ],
)
def test_a_record_that_the_bundle_contradicts_is_not_believed(room, change, details, files, named):
    digest = room.keep("2", parent=room.champion, change=change, details=details, files=files)
    if named is None:
        assert room.propose(digest).pointers.challenger == digest
    else:
        with pytest.raises(OutsidePlanError, match=named):
            room.propose(digest)


@pytest.mark.parametrize("act", ["propose", "shadow", "promote", "open"])
def test_what_cannot_be_written_down_leaves_no_record_of_having_happened(log, tmp_path, act):
    room = Room(tmp_path, opened=act != "open")
    digest = room.champion if act == "open" else room.challenger()
    with log.read() as reader:
        before = reader.size
    long = "x" * 2001
    with pytest.raises(InvalidValueError, match="reason"):
        {
            "propose": lambda: promotion.propose(room.registry, MODEL, digest, PLAN, recorder=Recorder.find(), reason=long),
            "shadow": lambda: room.shadow(digest, reason=long),
            "promote": lambda: room.promote(digest, reason=long),
            "open": lambda: promotion.open_name(room.registry, MODEL, digest, recorder=Recorder.find(), reason=" "),
        }[act]()
    with log.read() as reader:
        assert reader.size == before


def test_a_role_that_somebody_else_overtook_is_recorded_as_not_given(room, log, monkeypatch):
    digest = room.keep("2", parent=room.champion)
    switch = room.registry.switch

    def overtaken(name, **given):
        switch(name, **(given | {"action": "alarm", "pointers": room.registry.pointers(name)}))
        return switch(name, **given)

    monkeypatch.setattr(room.registry, "switch", overtaken)
    with pytest.raises(RegistryConflictError):
        room.propose(digest)
    with log.read() as reader:
        assert [record.payload.setting for record in list(reader.records())[-2:]] == [
            f"model {MODEL}: challenger",
            f"model {MODEL}: challenger (not done)",
        ]


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
    refused(room, log, OutsidePlanError, named, lambda: room.shadow(digest))


def test_a_change_that_does_not_start_from_the_champion_is_refused(room, log):
    first = room.challenger("2")
    second = room.keep("3", parent=first)
    refused(room, log, OutsidePlanError, "Parent: it was made from", lambda: room.promote(second))


def test_a_comparison_a_signature_or_a_met_requirement_that_is_missing_is_named(room, log):
    bare = room.keep("2", parent=room.champion)
    refused(room, log, ChangePlanError, "is not the challenger", lambda: room.promote(bare))
    room.propose(bare)
    refused(room, log, ChangePlanError, "No comparison", lambda: room.promote(bare))
    unsigned = room.challenger("3", sign=False)
    refused(room, log, ChangePlanError, "Approvals are missing", lambda: room.promote(unsigned))
    worse = room.challenger("4", auroc=pair(0.8, 0.6))
    refused(room, log, ChangePlanError, "discrimination", lambda: room.promote(worse))
    other = room.keep("5", parent=room.champion)
    room.propose(other)
    room.registry.attach(other, room.compared(other, champion="c" * 64).to_json())
    refused(room, log, ChangePlanError, "is of another champion", lambda: room.promote(other))


def test_verdicts_are_judged_again_and_never_taken_on_trust(room, log):
    digest = room.keep("2", parent=room.champion)
    room.propose(digest)
    honest, good = room.compared(digest, auroc=pair(0.8, 0.6)), room.compared(digest)
    rosy = honest.model_copy(update={"met": True, "verdicts": good.verdicts})
    for changed in (
        rosy,
        good.model_copy(update={"pooled": honest.pooled}),
        good.model_copy(update={"replicates": 9}),
        good.model_copy(update={"change": None}),
    ):
        with pytest.raises(ChangePlanError, match=r"is not that of its figures|another change"):
            promotion.check_signed(room.registry, PLAN, changed)
    with pytest.raises(ChangePlanError, match="it was changed"):
        approvals(PLAN, rosy)
    room.registry.attach(digest, rosy.to_json())
    refused(room, log, ChangePlanError, "is not that of its figures: met, verdicts differ", lambda: room.promote(digest))


def test_an_unsigned_plan_and_one_that_outruns_the_plan_before_are_refused(room, log):
    digest = room.challenger()
    refused(room, log, ChangePlanError, "not signed by its own roles", lambda: room.promote(digest, signatures=[]))
    room.promote(digest)
    keys = {LEAD: RoleKey.generate(), QUALITY: RoleKey.generate()}
    laxer = plan_of(filled_in(keys=keys, margin="0.1", shadow_days="0", shadow_recordings="0"))
    third = room.keep("3", parent=digest)
    room.propose(third)
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
    with pytest.raises(ChangePlanError, match="not signed by its own roles"):
        room.shadow(digest, plan=plan, signatures=[])
    entry = room.shadow(digest, plan=plan)
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
    day = entry.time.date().isoformat()
    assert f"200 recordings from {day} to {day}, counts " in changes(log)[-1].protocol


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
    room.propose(digest)
    refused(room, log, ChangePlanError, "approvals from before do not count", lambda: room.promote(digest))
    made = promotion.Comparison.from_json(room.registry.attachment(digest, entry.evaluation))
    for one in approvals(PLAN, made, time=back.time + timedelta(seconds=2)):
        room.registry.attach(digest, one.to_json())
    with pytest.raises(ChangePlanError, match="still to come"):
        room.promote(digest)
    assert room.promote(digest, now=back.time).action == "promoted"
    promotion.rollback(room.registry, MODEL, recorder=Recorder.find(), reason="complaints again")
    assert room.answering == room.champion


def test_withdrawing_takes_the_shadow_away_and_the_champion_only_when_asked(room, log):
    with pytest.raises(RegistryError, match="no challenger"):
        promotion.withdraw(room.registry, MODEL, recorder=Recorder.find(), reason="tidying")
    digest = room.challenger()
    room.shadow(digest)
    promotion.withdraw(room.registry, MODEL, recorder=Recorder.find(), reason="too slow")
    assert room.registry.pointers(MODEL).model_dump() == {"champion": room.champion, "challenger": None, "shadow": None}
    promotion.withdraw(room.registry, MODEL, recorder=Recorder.find(), reason="harm was reported", champion=True)
    assert room.answering is None
    assert changes(log)[-1].new is None
    with log.read() as reader:
        assert promotion.unfinished(room.registry, MODEL, reader) is None
    with pytest.raises(RegistryError, match="comes back with --to"):
        promotion.rollback(room.registry, MODEL, recorder=Recorder.find(), reason="what answers now?")
    with pytest.raises(InvalidValueError, match="--to"):
        promotion.rollback(room.registry, MODEL, recorder=Recorder.find(), reason="another", to=digest)
    promotion.rollback(room.registry, MODEL, recorder=Recorder.find(), reason="the report was about another model", to=room.champion)
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
    room.propose(bare)
    with pytest.raises(ChangePlanError):
        room.promote(bare)
    assert room.registry.head(MODEL).action == "refused"
    room.promote(room.challenger("3"))
    assert room.answering != room.champion


def test_privacy_spent_adds_up_over_all_bundles_of_the_name(room, log):
    room.keep("5", parent=room.champion, epsilon=1.5)
    digest = room.keep("6", parent=room.champion, change="updated", details={"forgetting": 1.0}, epsilon=2.0)
    assert promotion.change_of(room.registry, digest, name=MODEL).epsilon == 3.5
    room.propose(digest)
    # The plan gives 8 in all; the records leave 4.5, and nobody knows of more.
    for epsilon, fits in (
        ((5.0, "hand"), False),
        ((8.0, "records"), False),
        ((4.0, "records"), False),
        ((4.0, "hand"), True),
        ((4.5, "records"), True),
    ):
        made = room.compared(digest, modification="update", epsilon=epsilon)
        if fits:
            promotion.check_signed(room.registry, PLAN, made)
        else:
            with pytest.raises(ChangePlanError, match=r"the records leave 4\.5"):
                promotion.check_signed(room.registry, PLAN, made)


def test_a_change_is_read_from_the_record(room):
    second = room.keep("2", parent=room.champion, details={"step": "slope", "sites": 2, "forgetting": 0.9})
    change = promotion.change_of(room.registry, second, name=MODEL)
    assert (change.epsilon, change.sites, change.forgetting, change.step, change.trigger) == (None, 2, 0.9, "slope", "alarm:prevalence")
    with pytest.raises(InvalidValueError, match="sites"):
        promotion.change_of(room.registry, room.keep("3", parent=room.champion, details={"sites": "two"}), name=MODEL)
