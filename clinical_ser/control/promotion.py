"""The switch: a challenger becomes champion only through the plan, the gate and the signatures; the way back is one step.

The one idea: the audit record comes first and the pointer after it, so there is no change without its record. A process that is killed between
the two leaves a record of a change that did not happen; `unfinished` sees it, and the next command writes down that it did not.
"""

import contextlib
import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal

from clinical_ser.audit.answering import Recorder
from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.events import MODEL, Configuration, ModelChange, Outcome, Purpose
from clinical_ser.audit.reading import DatabaseReader
from clinical_ser.control.approval import Approval, PlanSignature, check_plan_signatures, valid_approvals
from clinical_ser.control.gate import Comparison, check_derived, left_by_records
from clinical_ser.control.parts import ChangePlan, Method, Modification, Step
from clinical_ser.control.plan import Change, check_change, plan_from_json, require_filled_in
from clinical_ser.control.site_figures import Members
from clinical_ser.errors import BundleError, ChangePlanError, ClinicalSerError, InvalidValueError, OutsidePlanError, RegistryError
from clinical_ser.evaluation.figure import DUST
from clinical_ser.models.bundle import VerifiedBundle
from clinical_ser.models.strict_json import StrictJsonError, parse_json
from clinical_ser.monitoring.counts import BESIDE
from clinical_ser.monitoring.journal import Journal
from clinical_ser.registry import Entry, Pointers, Record, Registry
from clinical_ser.registry.records import Action

MEMBERS = "members.json"
_MAIN = ("auroc", "uar", "brier", "calibration_slope", "ece_smooth", "sensitivity", "specificity", "deferred")
"""Figures of the comparison that go into the audit record."""
_LONGEST = 500
_FIRST, _BACK, _WITHDRAWN, _NOT_DONE = "first champion", "rollback", "withdrawal", "interrupted switch"
"""What a record of a change without a comparison has for its protocol."""


@dataclass(frozen=True)
class Proposed:
    """A challenger, with all that the plan asks of it.

    Attributes
    ----------
    change, modification
        What was done, and what in the plan covers it.
    comparison, approvals
        What the two roles signed, and their signatures.
    """

    change: Change
    modification: Modification
    comparison: Comparison
    approvals: tuple[Approval, ...]


def change_of(registry: Registry, digest: str, *, name: str) -> Change:
    """Return what was done to make a bundle, as its record and the two manifests say.

    Details of the record that count: `forgetting`, `unlabelled_weight`, `step`, `sites`, `method`. The privacy spent is that of all bundles that were
    kept under the name or had a role in it, and of the bundle's ancestors: a candidate that was never promoted has spent its part too.

    Raises
    ------
    InvalidValueError
        The bundle is not in the registry, or a detail of its record is of another type.
    """
    record, bundle = registry.record(digest), registry.bundle(digest)
    parent = _bundle_or_none(registry, record.parent)
    details = record.details
    step: dict[object, Step] = {"intercept": "intercept", "slope": "slope", "full": "full"}
    method: dict[object, Method] = {"subtracted": "subtracted", "retrained": "retrained"}
    return Change(
        kind=record.change,
        name=name,
        task=record.task,
        parent=record.parent,
        head=bundle.manifest.head,
        features_same=parent is not None and parent.manifest.features == bundle.manifest.features,
        # A parent may name sets of which it uses no feature.
        extractors_same=parent is not None and bundle.manifest.extractors.items() <= parent.manifest.extractors.items(),
        subjects=record.subjects,
        sites=int(_number(details.get("sites"), "sites") or 1),
        forgetting=_number(details.get("forgetting"), "forgetting"),
        unlabelled_weight=_number(details.get("unlabelled_weight"), "unlabelled_weight"),
        epsilon=_spent(registry, record, name),
        step=step.get(details.get("step")),
        method=method.get(details.get("method")) if record.change == "unlearned" else None,
        trigger=record.because or "scheduled",
    )


def members_of(registry: Registry, digests: Sequence[str]) -> Members:
    """Return whom bundles learned from, for those whose tags the registry keeps; RegistryError where what it keeps is damaged."""
    found, incomplete = {}, set()
    for digest in digests:
        content = registry.private(digest, MEMBERS)
        if content is None:
            continue
        try:
            kept = parse_json(content)
        except StrictJsonError:
            kept = None
        tags = kept.get("tags") if isinstance(kept, dict) else None
        if not isinstance(kept, dict) or not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise RegistryError(f"{MEMBERS} of bundle {digest[:12]} is not a list of tags.")
        found[digest] = frozenset(map(str, tags))
        if kept.get("complete") is not True:
            incomplete.add(digest)
    return Members(tag=registry.tag, of=found, incomplete=frozenset(incomplete))


def open_name(
    registry: Registry,
    name: str,
    digest: str,
    *,
    recorder: Recorder,
    reason: str,
    plan: ChangePlan | None = None,
    signatures: Sequence[PlanSignature] = (),
) -> Entry:
    """Let a first bundle answer under a name that has none yet; every later one comes through `promote`.

    Parameters
    ----------
    registry, name, digest
        Where, under which name, and which bundle.
    recorder, reason
        Where it is recorded, and why it is done.
    plan, signatures
        The plan that holds from the beginning, filled in and signed by its roles: only it, or one that its roles hand over to, lets a later bundle
        answer. None: the first plan that promotes is trusted on first use.

    Raises
    ------
    ChangePlanError
        The name has, or had, a champion, here or by the audit log; or the plan is of another name, not filled in or not signed.
    """
    reason = _reason(reason)
    head = registry.head(name)
    with _refused(registry, name, digest, recorder, plan=plan):
        if any(entry.pointers.champion for entry in registry.history(name)):
            raise ChangePlanError(f"{name!r} has a champion, or had one: a change of it goes through a plan (`model promote`).")
        _check_never_answered(name, digest, recorder)
        registry.record(digest)
        if plan is not None:
            if plan.plan.model != name:
                raise ChangePlanError(f"The plan is about {plan.plan.model!r}, and the name is {name!r}.")
            check_in_force(registry, name, plan, signatures)
    if plan is not None:
        registry.attach(digest, plan.to_json())
    payload = ModelChange(
        actor=recorder.actor,
        action="activated",
        name=name,
        old=None,
        new=digest,
        plan=None if plan is None else _short(f"{plan.label} ({plan.digest})"),
        protocol=_FIRST,
        reason=reason,
    )
    return _switched(
        registry,
        name,
        recorder,
        payload,
        expected=head,
        action="opened",
        pointers=registry.pointers(name).model_copy(update={"champion": digest}),
        bundle=digest,
        plan=None if plan is None else plan.digest,
        reason=reason,
    )


def _check_never_answered(name: str, digest: str, recorder: Recorder) -> None:
    """Refuse to open a name anew whose history is gone: the log has it. What the log has of this very opening was interrupted, and is made again."""
    log = LogConfiguration.find() if recorder.is_on else None
    if log is None:
        return
    with log.read() as reader:
        earlier = [change for change in _changes(reader, name) if change.action != "refused"]
    if any((change.protocol, change.new) != (_FIRST, digest) for change in earlier):
        raise ChangePlanError(
            f"The audit log says that {name!r} answered before, and the registry has no history of it: restore the registry, or open another name."
        )


def covered(
    registry: Registry, name: str, digest: str, plan: ChangePlan, *, recorder: Recorder, on: date | None = None
) -> tuple[Change, Modification]:
    """Return what was done to make a challenger, and what in the plan covers it; a refusal is recorded.

    Raises
    ------
    OutsidePlanError
        Something is outside the plan; everything that is is named.
    ChangePlanError
        There is no champion, or the bundle is the champion.
    """
    with _refused(registry, name, digest, recorder, plan=plan):
        return _covered(registry, name, digest, plan, on or _now().date())


def may(registry: Registry, name: str, change: Change, plan: ChangePlan, *, recorder: Recorder) -> Modification:
    """Return what in the plan covers a change that is about to be made, before any work goes into it; a refusal is recorded.

    Raises
    ------
    OutsidePlanError
        Something is outside the plan; everything that is is named.
    """
    with _refused(registry, name, "", recorder, plan=plan):
        return check_change(plan, change, on=_now().date(), earlier=_times_made(registry, name, change.kind))


def propose(registry: Registry, name: str, digest: str, plan: ChangePlan, *, recorder: Recorder, reason: str = "") -> Entry:
    """Make a bundle the challenger: it answers nothing, and waits for the gate.

    Raises
    ------
    OutsidePlanError
        The change is outside the plan; it is recorded.
    """
    modification = covered(registry, name, digest, plan, recorder=recorder)[1]
    return _given_role(registry, name, digest, plan, modification, "challenger", recorder, reason)


def shadow(
    registry: Registry,
    name: str,
    digest: str,
    plan: ChangePlan,
    *,
    recorder: Recorder,
    signatures: Sequence[PlanSignature],
    reason: str = "",
    on: date | None = None,
) -> Entry:
    """Let a challenger answer silently beside the champion, under a plan that is filled in, signed and in force (see `promote`).

    Raises
    ------
    OutsidePlanError
        The change is outside the plan; it is recorded.
    ChangePlanError
        The plan is not in force; it is recorded.
    """
    with _refused(registry, name, digest, recorder, plan=plan):
        check_in_force(registry, name, plan, signatures)
        modification = _covered(registry, name, digest, plan, on or _now().date())[1]
    return _given_role(registry, name, digest, plan, modification, "shadow", recorder, reason)


def _given_role(
    registry: Registry,
    name: str,
    digest: str,
    plan: ChangePlan,
    modification: Modification,
    role: Literal["challenger", "shadow"],
    recorder: Recorder,
    reason: str,
) -> Entry:
    """Make a bundle challenger, or challenger and shadow."""
    head = registry.head(name)
    before = head.pointers if head else Pointers()
    old = before.challenger if role == "challenger" else before.shadow
    return _switched(
        registry,
        name,
        recorder,
        Configuration(actor=recorder.actor, setting=f"model {name}: {role}", old=old, new=digest),
        expected=head,
        action="opened" if role == "challenger" else "shadowed",
        pointers=before.model_copy(update={"challenger": digest, "shadow": digest if role == "shadow" else None}),
        bundle=digest,
        plan=plan.digest,
        modification=modification.id,
        reason=reason,
    )


def _switched(
    registry: Registry,
    name: str,
    recorder: Recorder,
    payload: ModelChange | Configuration,
    *,
    expected: Entry | None,
    action: Action,
    pointers: Pointers,
    bundle: str | None,
    reason: str,
    plan: str | None = None,
    modification: str | None = None,
    evaluation: str | None = None,
    approvals: Sequence[str] = (),
) -> Entry:
    """Look whether a switch can be made, record it, make it, and, should it fail then, record that too: the one way in which a pointer moves."""
    entry: dict[str, Any] = {
        "expected": expected.digest if expected else None,
        "action": action,
        "pointers": pointers,
        "bundle": bundle,
        "plan": plan,
        "modification": modification,
        "evaluation": evaluation,
        "approvals": tuple(approvals),
        "actor": recorder.actor.id,
        "reason": reason,
    }
    # A record of what could never be would be a false one.
    registry.rehearse(name, **entry)
    _settle(registry, name, recorder)
    _record(recorder, payload, bundle)
    try:
        return registry.switch(name, **entry)
    except ClinicalSerError:
        if isinstance(payload, Configuration):
            _record(recorder, payload.model_copy(update={"setting": f"{payload.setting} (not done)", "old": payload.new, "new": payload.old}), bundle)
        _settle(registry, name, recorder)
        raise


def promote(
    registry: Registry,
    name: str,
    digest: str,
    plan: ChangePlan,
    *,
    recorder: Recorder,
    signatures: Sequence[PlanSignature],
    journal: Journal | None = None,
    reason: str = "",
    now: datetime | None = None,
) -> Entry:
    """Make a challenger the champion.

    Parameters
    ----------
    registry, name, digest
        Where, under which name, and which bundle.
    plan, signatures
        The plan and the signatures under it (`read_signatures`): of its own roles, and of those of the plan before, if another one was in force.
    recorder
        Where it is recorded, before anything is switched.
    journal
        The server's counts, which say over how many recordings the challenger answered in the champion's shadow; needed where the plan asks for some.
    now
        Time of the switch; None: now.

    Raises
    ------
    OutsidePlanError
        The change is not covered by the plan.
    ChangePlanError
        A comparison, an approval or the shadow period is missing, or does not fit. Each refusal is recorded, and no pointer moves.
    AuditError
        It cannot be recorded, and does not happen.
    """
    when = now or _now()
    with _refused(registry, name, digest, recorder, plan=plan):
        head = registry.head(name)
        check_in_force(registry, name, plan, signatures)
        proposed = proposed_change(registry, name, digest, plan, now=when)
        served = _check_shadow(registry, name, digest, plan, when, journal)
    registry.attach(digest, plan.to_json())
    before = head.pointers if head else Pointers()
    return _switched(
        registry,
        name,
        recorder,
        _activation(before.champion, name, plan, proposed, recorder, reason, served),
        expected=head,
        action="promoted",
        pointers=Pointers(champion=digest, challenger=_unless(before.challenger, digest), shadow=_unless(before.shadow, digest)),
        bundle=digest,
        plan=plan.digest,
        modification=proposed.modification.id,
        evaluation=proposed.comparison.digest,
        approvals=[one.sha256 for one in proposed.approvals],
        reason=reason,
    )


def rollback(registry: Registry, name: str, *, recorder: Recorder, reason: str, to: str | None = None) -> Entry:
    """Bring back the champion before, at once: no plan, gate or signature stands in the way of safety.

    A second time goes one further back. A champion that was withdrawn is passed over: it comes back only when it is asked for by name.

    Parameters
    ----------
    registry, name
        Where, and under which name.
    recorder, reason
        Where it is recorded, and why it is done.
    to
        Digest of a bundle that was champion under the name; None: the one before.

    Raises
    ------
    InvalidValueError
        No reason is given, or `to` was never champion, or is it now.
    RegistryError
        There is no champion before.
    """
    reason = _reason(reason)
    head = registry.head(name)
    history = registry.history(name)
    stack, current = _champions(history), head.pointers.champion if head else None
    if to is not None and (to == current or to not in {entry.pointers.champion for entry in history}):
        raise InvalidValueError("--to", to[:12], f"a bundle that was champion under {name!r}, and is not now")
    earlier = [*stack] if current is None else stack[:-1]
    if head is None or (to is None and not earlier):
        withdrawn = head is not None and current is None and any(entry.pointers.champion for entry in history)
        again = "; what was withdrawn comes back with --to DIGEST" if withdrawn else ""
        raise RegistryError(f"{name!r} has no champion before the one that it has now{again}.")
    before = to or earlier[-1]
    was = head.pointers
    if gone := len(members_of(registry, [before]).of.get(before, frozenset()) & registry.forgotten()):
        # Safety goes first; that it brings them back is written down, and said.
        reason = f"{reason[:1800]} [It learned from {gone} people who were to be forgotten: a candidate without them is due.]"
    return _switched(
        registry,
        name,
        recorder,
        ModelChange(actor=recorder.actor, action="rolled_back", name=name, old=current, new=before, protocol=_BACK, reason=reason),
        expected=head,
        action="rolled_back",
        pointers=Pointers(champion=before, challenger=_unless(was.challenger, before), shadow=_unless(was.shadow, before)),
        bundle=before,
        reason=reason,
    )


def withdraw(registry: Registry, name: str, *, recorder: Recorder, reason: str, champion: bool = False) -> Entry:
    """Take challenger and shadow away, or, if asked, the champion too: then nothing answers under the name.

    Raises
    ------
    InvalidValueError
        No reason is given.
    RegistryError
        There is nothing to withdraw.
    """
    reason = _reason(reason)
    head = registry.head(name)
    if head is None or not (head.pointers.held if champion else head.pointers.challenger or head.pointers.shadow):
        raise RegistryError(f"{name!r} has no challenger and no shadow to withdraw.")
    was = head.pointers
    payload: ModelChange | Configuration
    if champion and was.champion:
        about: str | None = was.champion
        payload = ModelChange(actor=recorder.actor, action="rolled_back", name=name, old=about, new=None, protocol=_WITHDRAWN, reason=reason)
    else:
        about = was.challenger or was.shadow
        payload = Configuration(actor=recorder.actor, setting=f"model {name}: withdrawn", old=about, new=reason)
    return _switched(
        registry,
        name,
        recorder,
        payload,
        expected=head,
        action="withdrawn",
        pointers=Pointers(champion=None if champion else was.champion),
        bundle=about,
        reason=reason,
    )


def proposed_change(registry: Registry, name: str, digest: str, plan: ChangePlan, *, now: datetime) -> Proposed:
    """Return the challenger with what the plan asks of it: covered, compared with this champion, every requirement met, approved by all roles.

    An attachment that is of something else, or cannot be read, is passed over; the refusal names it where nothing else does.

    Raises
    ------
    OutsidePlanError, ChangePlanError
        As in `promote`.
    """
    change, modification = _covered(registry, name, digest, plan, now.date())
    pointers, history = registry.pointers(name), registry.history(name)
    if pointers.challenger != digest:
        is_ = f"which is {pointers.challenger[:12]}" if pointers.challenger else "which has none"
        raise ChangePlanError(f"Bundle {digest[:12]} is not the challenger of {name!r}, {is_}; `update` or `model shadow` makes it that.")
    comparisons, approvals, faults = _attached(registry, digest)
    found: list[Comparison] = []
    for one in comparisons:
        try:
            check_comparison(registry, plan, modification, change, one, champion=pointers.champion)
            found.append(one)
        except ChangePlanError as error:
            faults.append(str(error))
    noted = f" Passed over: {' '.join(dict.fromkeys(faults))}" if faults else ""
    if not found:
        raise ChangePlanError(f"No comparison of bundle {digest[:12]} with the champion under this plan is attached. Make one with `gate`.{noted}")
    back = _last_taken_away(history, digest)
    if back is not None:
        approvals = [one for one in approvals if one.time > back]
    met = [one for one in found if one.met]
    if not met:
        raise ChangePlanError(f"Requirements are not met: {'; '.join(found[-1].not_met)}.")
    missing = []
    for comparison in met:
        try:
            return Proposed(change, modification, comparison, valid_approvals(plan, comparison.digest, approvals, now=now))
        except ChangePlanError as error:
            missing.append(str(error))
    again = "" if back is None else f" It was withdrawn or rolled back at {back.isoformat(timespec='seconds')}; approvals from before do not count."
    raise ChangePlanError(f"{missing[-1]}{again}{noted}")


def check_comparison(
    registry: Registry, plan: ChangePlan, modification: Modification, change: Change, one: Comparison, *, champion: str | None
) -> None:
    """Raise ChangePlanError unless a comparison is of this plan, modification, change and champion, and says what its figures and the records say."""
    short = one.digest[:12]
    wrong = [
        what
        for what, differs in (
            ("plan", one.plan != plan.digest),
            ("champion", one.champion != champion),
            ("modification", one.modification != modification.id),
        )
        if differs
    ]
    if wrong:
        raise ChangePlanError(f"Comparison {short} is of another {' and '.join(wrong)}.")
    if one.change != change:
        raise ChangePlanError(f"Comparison {short} is of another change than the registry's records say; make it again with `gate`.")
    check_derived(plan, one)
    bundles = [registry.bundle(digest) for digest in (one.champion, one.challenger)]
    if any(bundle.manifest.simulated for bundle in bundles) and not all(site.simulated for site in one.sites):
        raise ChangePlanError(f"Comparison {short} does not say that its models learned from simulated speech.")
    left = left_by_records(modification, change)
    if one.epsilon_left is not None and left is not None:
        # Somebody may know of less that is left than the records do, never of more where they state it.
        stated = one.epsilon_from == "records" or change.epsilon is not None
        if stated and (one.epsilon_left > left + DUST or (one.epsilon_from == "records" and one.epsilon_left < left - DUST)):
            raise ChangePlanError(f"Comparison {short} counts with {one.epsilon_left:g} of the privacy budget, and the records leave {left:g}.")


def check_signed(registry: Registry, plan: ChangePlan, one: Comparison) -> None:
    """Raise ChangePlanError unless a comparison that is about to be signed is of the challenger that the registry has, as its records say.

    Raises
    ------
    OutsidePlanError
        The plan does not cover what was done.
    """
    name = plan.plan.model
    change, modification = _covered(registry, name, one.challenger, plan, _now().date())
    check_comparison(registry, plan, modification, change, one, champion=registry.pointers(name).champion)


def check_in_force(registry: Registry, name: str, plan: ChangePlan, signatures: Sequence[PlanSignature]) -> None:
    """Raise ChangePlanError unless a plan is filled in, signed by its roles, and, where another was in force, by the roles of that one too.

    So whoever can write a plan cannot put in a laxer one with keys of their own. What is in force is the plan of the last entry that changed the
    champion under one, the first of a name included.
    """
    require_filled_in(plan)
    check_plan_signatures(plan, signatures, roles_of=plan)
    before = _binding(registry.history(name))
    if before is None or before.plan is None or before.plan == plan.digest or before.bundle is None:
        return
    # Its digest is in the history, so it is what was signed then, whatever a checker of today says of it.
    check_plan_signatures(plan, signatures, roles_of=plan_from_json(registry.attachment(before.bundle, before.plan), checked=False))


def _binding(history: Sequence[Entry]) -> Entry | None:
    """Return the last entry that let a bundle answer under a plan; a challenger that was opened under one binds nothing."""
    champions = [None, *(entry.pointers.champion for entry in history)]
    for before, entry in reversed(list(zip(champions[:-1], history, strict=True))):
        if entry.plan and (entry.action == "promoted" or (entry.action == "opened" and entry.pointers.champion != before)):
            return entry
    return None


def unfinished(registry: Registry, name: str, reader: DatabaseReader) -> str | None:
    """Say that the log has a change of a champion that did not take place (somebody was interrupted between the two); None where all fits."""
    last = _last_change(reader, name)
    if last is None or last.action == "refused":
        return None
    champion = registry.pointers(name).champion
    if last.new == champion or registry.head(name) is None:
        return None
    new, is_ = (digest[:12] if digest else "none" for digest in (last.new, champion))
    return f"The log says that {new} answers as {name!r}, and the champion is {is_}: a switch was interrupted, and did not take place."


def _settle(registry: Registry, name: str, recorder: Recorder) -> None:
    """Write down that a recorded switch did not take place, before another one is made."""
    log = LogConfiguration.find() if recorder.is_on else None
    if log is None:
        return
    with log.read() as reader:
        problem, last = unfinished(registry, name, reader), _last_change(reader, name)
    if problem is not None and last is not None:
        champion = registry.pointers(name).champion
        told = ModelChange(actor=recorder.actor, action="refused", name=name, old=champion, new=last.new, protocol=_NOT_DONE, reason=problem)
        _refuse(recorder, told)


def _last_change(reader: DatabaseReader, name: str) -> ModelChange | None:
    return next(_changes(reader, name), None)


def _changes(reader: DatabaseReader, name: str) -> Iterator[ModelChange]:
    """Yield what was recorded of the switches of a name, newest first."""
    for index in reversed(reader.about(MODEL + name)):
        payload = reader.record(index).payload
        # A record without a protocol says who answered first, or what was refused, and moved nothing here.
        if isinstance(payload, ModelChange) and payload.protocol is not None:
            yield payload


@contextlib.contextmanager
def _refused(registry: Registry, name: str, digest: str, recorder: Recorder, *, plan: ChangePlan | None) -> Iterator[None]:
    """Record what is refused, in the log and in the name's history, and let its error go on."""
    try:
        yield
    except (ChangePlanError, RegistryError, BundleError, InvalidValueError) as error:
        reason = str(error)[:2000]
        label = None if plan is None else _short(f"{plan.label} ({plan.digest})")
        known = digest in registry.digests()
        champion = _champion_or_none(registry, name)
        _refuse(
            recorder,
            ModelChange(
                actor=recorder.actor, action="refused", name=name[:200], old=champion, new=digest if known else None, plan=label, reason=reason
            ),
        )
        # The log has it; the history has it too unless somebody else is switching right now.
        with contextlib.suppress(RegistryError, InvalidValueError):
            head = registry.head(name)
            if head is not None:
                registry.switch(
                    name,
                    expected=head.digest,
                    action="refused",
                    pointers=head.pointers,
                    bundle=digest if known else None,
                    plan=plan.digest if plan else None,
                    actor=recorder.actor.id,
                    reason=reason,
                )
        raise


def _covered(registry: Registry, name: str, digest: str, plan: ChangePlan, on: date) -> tuple[Change, Modification]:
    """Return what was done and what covers it: one change, made from the champion."""
    champion = registry.pointers(name).champion
    change = change_of(registry, digest, name=name)
    if champion is None:
        raise ChangePlanError(f"{name!r} has no champion to be compared with; `model promote --first` lets a first one answer.")
    if champion == digest:
        raise ChangePlanError(f"Bundle {digest[:12]} is the champion already.")
    modification = check_change(plan, change, on=on, earlier=_times_made(registry, name, change.kind))
    if contradicted := list(_contradictions(registry, change, digest)):
        raise OutsidePlanError(contradicted)
    if change.parent != champion:
        made_from = change.parent[:12] if change.parent else "nothing"
        raise OutsidePlanError([f"Parent: it was made from {made_from}, and the champion is {champion[:12]}; a change starts from the champion."])
    return change, modification


def _contradictions(registry: Registry, change: Change, digest: str) -> Iterator[str]:
    """Yield what of a bundle is not as its record says that it was made: a record is what somebody wrote, the bundle's bytes are what will answer."""
    parent = _bundle_or_none(registry, change.parent)
    kept: dict[str, tuple[str, ...]] = {"recalibrated": ("head.", "preprocessing.json"), "updated": ("preprocessing.json",)}
    if change.kind == "unlearned" and change.method != "retrained":
        kept["unlearned"] = kept["updated"]
    if parent is None or change.kind not in kept:
        return
    bundle = registry.bundle(digest)
    beginnings = kept[change.kind]
    names = sorted(name for name in {*bundle.files, *parent.files} if name.startswith(beginnings))
    if differ := [name for name in names if bundle.files.get(name) != parent.files.get(name)]:
        yield f"Record: a model that is {change.kind!r} has the {', '.join(differ)} of its parent, and this one has not."
    if bundle.manifest.features != parent.manifest.features or bundle.manifest.head != parent.manifest.head:
        yield f"Record: a model that is {change.kind!r} has the features and the kind of head of its parent, and this one has not."


def _times_made(registry: Registry, name: str, kind: str) -> list[datetime]:
    promoted = [entry for entry in registry.history(name) if entry.action == "promoted" and entry.bundle]
    return [entry.time for entry in promoted if entry.bundle and registry.record(entry.bundle).change == kind]


def approvals_of(registry: Registry, comparison: Comparison) -> tuple[Approval, ...]:
    """Return the approvals of a comparison that the registry keeps, oldest first; whether they count is for `promote` to say."""
    if comparison.challenger not in registry.digests():
        return ()
    found = [one for one in _attached(registry, comparison.challenger)[1] if one.comparison == comparison.digest]
    return tuple(sorted(found, key=lambda one: one.time))


def _attached(registry: Registry, digest: str) -> tuple[list[Comparison], list[Approval], list[str]]:
    """Return what is attached to a bundle and can be read, and what is wrong with the rest that says it is a comparison or an approval."""
    comparisons: list[Comparison] = []
    approvals: list[Approval] = []
    faults = []
    for name in registry.attachments(digest):
        try:
            content = registry.attachment(digest, name)
            if b'"schema_id":"clinical-ser/comparison/' in content:
                comparisons.append(Comparison.from_json(content))
            elif b'"schema_id":"clinical-ser/approval/' in content:
                approvals.append(Approval.from_json(content))
        except (ChangePlanError, RegistryError) as error:
            faults.append(f"attachment {name[:12]}: {error}")
    return comparisons, approvals, faults


@dataclass(frozen=True)
class _Served:
    """The shadow period, as it goes into the audit record."""

    days: float
    recordings: int | None = None
    first: date | None = None
    last: date | None = None
    counts: str | None = None
    """sha256 of the journal's days that were counted."""

    def __str__(self) -> str:
        told = f"shadow {self.days:.1f} days"
        if self.recordings is not None:
            told += f", {self.recordings} recordings from {self.first} to {self.last}, counts {self.counts}"
        return told


def _check_shadow(registry: Registry, name: str, digest: str, plan: ChangePlan, now: datetime, journal: Journal | None) -> _Served:
    protocol, history = plan.protocol, registry.history(name)
    served = _time_in_shadow(history, digest, now)
    days = served / timedelta(days=1)
    if served < timedelta(days=protocol.shadow_days):
        raise ChangePlanError(f"Shadow: {days:.1f} days were served; the plan asks for {protocol.shadow_days}.")
    if not protocol.shadow_recordings and journal is None:
        return _Served(days)
    if journal is None:
        raise ChangePlanError(f"Shadow: the plan asks for {protocol.shadow_recordings} recordings; give the server's journal, which counted them.")
    found = _counted_in_shadow(history, journal, digest, days)
    if (found.recordings or 0) < protocol.shadow_recordings:
        raise ChangePlanError(f"Shadow: {found.recordings} recordings were answered; the plan asks for {protocol.shadow_recordings}.")
    return found


def _counted_in_shadow(history: Sequence[Entry], journal: Journal, digest: str, served: float) -> _Served:
    """Count the recordings that a bundle answered beside the champion of today, from the day on which it became the shadow."""
    champion = history[-1].pointers.champion if history else None
    since = [entry.time.date() for entry in history if entry.pointers.shadow == digest]
    if champion is None or not since:
        return _Served(served, 0)
    kind = f"{BESIDE}{champion[:12]}.status"
    days = journal.between(digest, first=min(since))
    content = hashlib.sha256(b"".join(f"{day.isoformat()} ".encode() + counts.to_bytes() for day, counts in days))
    return _Served(
        served,
        sum(sum(counts.names.get(kind, {}).values()) for _, counts in days),
        first=days[0][0] if days else None,
        last=days[-1][0] if days else None,
        counts=content.hexdigest(),
    )


def _time_in_shadow(history: Sequence[Entry], digest: str, now: datetime) -> timedelta:
    ends = [entry.time for entry in history[1:]] + [now]
    spans = (end - entry.time for entry, end in zip(history, ends, strict=True) if entry.pointers.shadow == digest)
    return sum((max(span, timedelta()) for span in spans), timedelta())


def _champions(history: Sequence[Entry]) -> list[str]:
    """Return the champions that a rollback can go through, the current one last; one that was withdrawn is not among them."""
    stack: list[str] = []
    last = None
    for entry in history:
        champion = entry.pointers.champion
        if champion is None and last is not None:
            stack.pop()
        elif champion is not None and entry.action == "rolled_back" and champion in stack:
            del stack[len(stack) - stack[::-1].index(champion) :]
        elif champion is not None and (not stack or stack[-1] != champion):
            stack.append(champion)
        last = champion
    return stack


def _last_taken_away(history: Sequence[Entry], digest: str) -> datetime | None:
    """Return when a bundle was last withdrawn, or rolled back from being champion: whoever approves it again knows of that."""
    times = [
        after.time
        for before, after in itertools.pairwise(history)
        if after.action in {"rolled_back", "withdrawn"} and before.pointers.of(digest) and not after.pointers.of(digest)
    ]
    return max(times, default=None)


def _activation(old: str | None, name: str, plan: ChangePlan, proposed: Proposed, recorder: Recorder, reason: str, served: _Served) -> ModelChange:
    comparison = proposed.comparison
    metrics = {
        f"{figure} {what}": value
        for figure in _MAIN
        if figure in comparison.pooled
        for what, value in (("champion", comparison.pooled[figure].champion.value), ("challenger", comparison.pooled[figure].challenger.value))
        if value is not None
    }
    signed = "; ".join(f"{one.role}: {one.name} (key {one.key_id})" for one in proposed.approvals)
    return ModelChange(
        actor=recorder.actor,
        action="activated",
        name=name,
        old=old,
        new=comparison.challenger,
        plan=_short(f"{plan.label}, {proposed.modification.id} ({plan.digest})"),
        protocol=_short(f"comparison {comparison.digest}; {served}"),
        metrics=metrics,
        approver=_short(signed),
        reason=reason or proposed.change.trigger,
    )


def _record(recorder: Recorder, payload: ModelChange | Configuration, model: str | None) -> None:
    recorder.record(payload, purpose=Purpose.OPERATIONS, model=model)


def _refuse(recorder: Recorder, payload: ModelChange) -> None:
    recorder.record(payload, purpose=Purpose.OPERATIONS, outcome=Outcome.REFUSED, model=payload.new)


def _bundle_or_none(registry: Registry, digest: str | None) -> VerifiedBundle | None:
    return registry.bundle(digest) if digest is not None and digest in registry.digests() else None


def _champion_or_none(registry: Registry, name: str) -> str | None:
    with contextlib.suppress(RegistryError, InvalidValueError):
        return registry.pointers(name).champion
    return None


def _spent(registry: Registry, record: Record, name: str) -> float | None:
    """Sum what a bundle, its ancestors and all other bundles of the name spent; None where none of them gave anything out."""
    known = set(registry.digests())
    counted = {record.bundle, *registry.known_as(name)} & known
    ancestors: set[str] = set()
    parent = record.parent
    while parent is not None and parent in known - ancestors:
        ancestors.add(parent)
        parent = registry.record(parent).parent
    counted |= ancestors
    spent = [epsilon for digest in sorted(counted) if (epsilon := registry.record(digest).epsilon) is not None]
    return math.fsum(spent) if spent else None


def _number(value: float | int | str | bool | None, what: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidValueError(f"detail {what!r} of the record", type(value).__name__, "a number")
    return float(value)


def _unless(digest: str | None, other: str) -> str | None:
    return None if digest == other else digest


def _reason(text: str) -> str:
    if not text.strip():
        raise InvalidValueError("--reason", text, "a reason in words: it is recorded")
    return text.strip()[:2000]


def _short(text: str) -> str:
    """Keep a text within what a record's field holds; a cut one ends with the digest of the whole."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 20]}… {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _now() -> datetime:
    return datetime.now(UTC)
