"""The switch: a challenger becomes champion only through the plan, the gate and the signatures; the way back is one step.

The one idea: the audit record comes first and the pointer after it, so there is no change without its record. A process that is killed between
the two leaves a record of a change that did not happen; `unfinished` sees it, and the next command writes down that it did not.
"""

import contextlib
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Literal

from clinical_ser.audit.answering import Recorder
from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.events import MODEL, Configuration, ModelChange, Outcome, Purpose
from clinical_ser.audit.reading import DatabaseReader
from clinical_ser.control.approval import Approval, PlanSignature, check_plan_signatures, valid_approvals
from clinical_ser.control.gate import Comparison, comparison_of
from clinical_ser.control.parts import ChangePlan, Modification
from clinical_ser.control.plan import Change, check_change, plan_from_json, require_filled_in
from clinical_ser.control.site_figures import Members
from clinical_ser.errors import BundleError, ChangePlanError, ClinicalSerError, InvalidValueError, OutsidePlanError, RegistryError
from clinical_ser.models.bundle import VerifiedBundle
from clinical_ser.monitoring.counts import BESIDE
from clinical_ser.monitoring.journal import Journal
from clinical_ser.registry import Entry, Pointers, Record, Registry

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

    Details of the record that count: `forgetting`, `unlabelled_weight`, `step`, `sites`. The privacy spent is that of all ancestors in the registry.

    Raises
    ------
    InvalidValueError
        The bundle is not in the registry, or a detail of its record is of another type.
    """
    record, bundle = registry.record(digest), registry.bundle(digest)
    parent = _bundle_or_none(registry, record.parent)
    details = record.details
    step = details.get("step")
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
        epsilon=_spent(registry, record),
        step="intercept" if step == "intercept" else "slope" if step == "slope" else "full" if step == "full" else None,
        trigger=record.because or "scheduled",
    )


def members_of(registry: Registry, digests: Sequence[str]) -> Members:
    """Return whom bundles learned from, for those whose tags the registry keeps."""
    from clinical_ser.models.strict_json import parse_json

    found = {}
    for digest in digests:
        content = registry.private(digest, MEMBERS)
        if content is not None:
            tags = parse_json(content)
            values = tags.get("tags") if isinstance(tags, dict) else tags
            if not isinstance(values, list) or not all(isinstance(tag, str) for tag in values):
                raise RegistryError(f"{MEMBERS} of bundle {digest[:12]} is not a list of tags.")
            found[digest] = frozenset(str(tag) for tag in values)
    return Members(tag=registry.tag, of=found)


def open_name(registry: Registry, name: str, digest: str, *, recorder: Recorder, reason: str) -> Entry:
    """Let a first bundle answer under a name that has none yet; every later one comes through `promote`.

    Raises
    ------
    ChangePlanError
        The name has, or had, a champion.
    """
    reason = _reason(reason)
    head = registry.head(name)
    with _refused(registry, name, digest, recorder, plan=None):
        if any(entry.pointers.champion for entry in registry.history(name)):
            raise ChangePlanError(f"{name!r} has a champion, or had one: a change of it goes through a plan (`model promote`).")
        registry.record(digest)
    _settle(registry, name, recorder)
    _record(recorder, ModelChange(actor=recorder.actor, action="activated", name=name, old=None, new=digest, protocol=_FIRST, reason=reason), digest)
    pointers = registry.pointers(name).model_copy(update={"champion": digest})
    expected = head.digest if head else None
    return registry.switch(name, expected=expected, action="opened", pointers=pointers, bundle=digest, actor=recorder.actor.id, reason=reason)


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


def shadow(registry: Registry, name: str, digest: str, plan: ChangePlan, *, recorder: Recorder, reason: str = "", on: date | None = None) -> Entry:
    """Let a challenger answer silently beside the champion.

    Raises
    ------
    OutsidePlanError
        The change is outside the plan; it is recorded.
    """
    modification = covered(registry, name, digest, plan, recorder=recorder, on=on)[1]
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
    """Make a bundle challenger, or challenger and shadow: recorded first, then switched."""
    head, before = registry.head(name), registry.pointers(name)
    old = before.challenger if role == "challenger" else before.shadow
    _record(recorder, Configuration(actor=recorder.actor, setting=f"model {name}: {role}", old=old, new=digest), digest)
    return registry.switch(
        name,
        expected=head.digest if head else None,
        action="opened" if role == "challenger" else "shadowed",
        pointers=before.model_copy(update={"challenger": digest, "shadow": digest if role == "shadow" else None}),
        bundle=digest,
        plan=plan.digest,
        modification=modification.id,
        actor=recorder.actor.id,
        reason=reason,
    )


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
        proposed = proposed_change(registry, name, digest, plan, on=when.date())
        _check_shadow(registry, name, digest, plan, when, journal)
    _settle(registry, name, recorder)
    comparison = proposed.comparison
    registry.attach(digest, plan.to_json())
    _record(recorder, _activation(registry, name, plan, proposed, recorder, reason), digest)
    before = registry.pointers(name)
    pointers = Pointers(champion=digest, challenger=_unless(before.challenger, digest), shadow=_unless(before.shadow, digest))
    try:
        return registry.switch(
            name,
            expected=head.digest if head else None,
            action="promoted",
            pointers=pointers,
            bundle=digest,
            plan=plan.digest,
            modification=proposed.modification.id,
            evaluation=comparison.digest,
            approvals=[one.sha256 for one in proposed.approvals],
            actor=recorder.actor.id,
            reason=reason,
        )
    except ClinicalSerError:
        _settle(registry, name, recorder)
        raise


def rollback(registry: Registry, name: str, *, recorder: Recorder, reason: str) -> Entry:
    """Bring back the champion before, at once: no plan, gate or signature stands in the way of safety.

    A second time goes one further back; after a withdrawal, what was withdrawn comes back.

    Raises
    ------
    InvalidValueError
        No reason is given.
    RegistryError
        There is no champion before.
    """
    reason = _reason(reason)
    _settle(registry, name, recorder)
    head = registry.head(name)
    stack = _champions(registry.history(name))
    if head is not None and head.pointers.champion is None and stack:
        current, before = None, stack[-1]
    elif head is not None and len(stack) > 1:
        current, before = stack[-1], stack[-2]
    else:
        raise RegistryError(f"{name!r} has no champion before the one that it has now.")
    payload = ModelChange(actor=recorder.actor, action="rolled_back", name=name, old=current, new=before, protocol=_BACK, reason=reason)
    _record(recorder, payload, before)
    was = head.pointers
    pointers = Pointers(champion=before, challenger=_unless(was.challenger, before), shadow=_unless(was.shadow, before))
    try:
        return registry.switch(
            name, expected=head.digest, action="rolled_back", pointers=pointers, bundle=before, actor=recorder.actor.id, reason=reason
        )
    except ClinicalSerError:
        _settle(registry, name, recorder)
        raise


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
    if head is None or not (champion or head.pointers.challenger or head.pointers.shadow):
        raise RegistryError(f"{name!r} has no challenger and no shadow to withdraw.")
    was = head.pointers
    about = was.champion if champion else was.challenger or was.shadow
    if champion:
        change = ModelChange(actor=recorder.actor, action="rolled_back", name=name, old=was.champion, new=None, protocol=_WITHDRAWN, reason=reason)
        _record(recorder, change, about)
    else:
        _record(recorder, Configuration(actor=recorder.actor, setting=f"model {name}: withdrawn", old=about, new=reason), about)
    return registry.switch(
        name,
        expected=head.digest,
        action="withdrawn",
        pointers=Pointers(champion=None if champion else was.champion),
        bundle=about,
        actor=recorder.actor.id,
        reason=reason,
    )


def proposed_change(registry: Registry, name: str, digest: str, plan: ChangePlan, *, on: date) -> Proposed:
    """Return a challenger with what the plan asks of it: covered, compared with this champion, every requirement met, approved by all roles.

    Raises
    ------
    OutsidePlanError, ChangePlanError
        As in `promote`.
    """
    change, modification = _covered(registry, name, digest, plan, on)
    champion = registry.pointers(name).champion
    comparisons, approvals = _attached(registry, digest)
    ours = [one for one in comparisons if (one.plan, one.champion, one.challenger) == (plan.digest, champion, digest)]
    of_it = [one for one in ours if one.modification == modification.id]
    if not of_it:
        others = f"; {len(comparisons)} are attached, of another plan, champion or modification" if comparisons else ""
        raise ChangePlanError(f"No comparison of bundle {digest[:12]} with the champion under this plan is attached{others}. Make one with `gate`.")
    back = _last_rolled_back(registry.history(name), digest)
    if back is not None:
        approvals = [one for one in approvals if one.time > back]
    met = [one for one in of_it if _rejudged(plan, modification, one).met]
    if not met:
        raise ChangePlanError(f"Requirements are not met: {'; '.join(of_it[-1].not_met) or 'the verdicts do not fit the figures'}.")
    faults = []
    for comparison in met:
        try:
            return Proposed(change, modification, comparison, valid_approvals(plan, comparison.digest, approvals))
        except ChangePlanError as error:
            faults.append(str(error))
    again = "" if back is None else f" It was rolled back at {back.isoformat(timespec='seconds')}; approvals from before do not count."
    raise ChangePlanError(f"{faults[-1]}{again}")


def check_in_force(registry: Registry, name: str, plan: ChangePlan, signatures: Sequence[PlanSignature]) -> None:
    """Raise ChangePlanError unless a plan is filled in, signed by its roles, and, where another was in force, by the roles of that one too.

    So whoever can write a plan cannot put in a laxer one with keys of their own.
    """
    require_filled_in(plan)
    check_plan_signatures(plan, signatures, roles_of=plan)
    before = next((entry for entry in reversed(registry.history(name)) if entry.action == "promoted" and entry.plan), None)
    if before is None or before.plan == plan.digest or before.bundle is None or before.plan is None:
        return
    check_plan_signatures(plan, signatures, roles_of=plan_from_json(registry.attachment(before.bundle, before.plan)))


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
    for index in reversed(reader.about(MODEL + name)):
        payload = reader.record(index).payload
        # A record without a protocol says who answered first, or what was refused, and moved nothing here.
        if isinstance(payload, ModelChange) and payload.protocol is not None:
            return payload
    return None


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
    if change.parent != champion:
        made_from = change.parent[:12] if change.parent else "nothing"
        raise OutsidePlanError([f"Parent: it was made from {made_from}, and the champion is {champion[:12]}; a change starts from the champion."])
    return change, modification


def _times_made(registry: Registry, name: str, kind: str) -> list[datetime]:
    promoted = [entry for entry in registry.history(name) if entry.action == "promoted" and entry.bundle]
    return [entry.time for entry in promoted if entry.bundle and registry.record(entry.bundle).change == kind]


def _rejudged(plan: ChangePlan, modification: Modification, one: Comparison) -> Comparison:
    """Judge again from the sites' figures, so that a verdict is never taken on trust."""
    again = comparison_of(plan, modification, one.sites, champion=one.champion, challenger=one.challenger, epsilon_left=one.epsilon_left)
    if again.verdicts != one.verdicts or again.met != one.met:
        raise ChangePlanError(f"The verdicts of comparison {one.digest[:12]} are not those of its figures: it was changed.")
    return one


def _attached(registry: Registry, digest: str) -> tuple[list[Comparison], list[Approval]]:
    comparisons, approvals = [], []
    for name in registry.attachments(digest):
        content = registry.attachment(digest, name)
        if b'"schema_id":"clinical-ser/comparison/1"' in content:
            comparisons.append(Comparison.from_json(content))
        elif b'"schema_id":"clinical-ser/approval/1"' in content:
            approvals.append(Approval.from_json(content))
    return comparisons, approvals


def _check_shadow(registry: Registry, name: str, digest: str, plan: ChangePlan, now: datetime, journal: Journal | None) -> None:
    protocol, history = plan.protocol, registry.history(name)
    served = _time_in_shadow(history, digest, now)
    if served < timedelta(days=protocol.shadow_days):
        raise ChangePlanError(f"Shadow: {served / timedelta(days=1):.1f} days were served; the plan asks for {protocol.shadow_days}.")
    if protocol.shadow_recordings:
        if journal is None:
            raise ChangePlanError(
                f"Shadow: the plan asks for {protocol.shadow_recordings} recordings; give the server's journal, which counted them."
            )
        counted = _recordings_in_shadow(history, journal, digest)
        if counted < protocol.shadow_recordings:
            raise ChangePlanError(f"Shadow: {counted} recordings were answered; the plan asks for {protocol.shadow_recordings}.")


def _recordings_in_shadow(history: Sequence[Entry], journal: Journal, digest: str) -> int:
    """Count the recordings that a bundle answered beside the champion of today, from the day on which it became the shadow."""
    champion = history[-1].pointers.champion if history else None
    since = [entry.time.date() for entry in history if entry.pointers.shadow == digest]
    if champion is None or not since:
        return 0
    kind = f"{BESIDE}{champion[:12]}.status"
    return sum(sum(counts.names.get(kind, {}).values()) for _, counts in journal.between(digest, first=min(since)))


def _time_in_shadow(history: Sequence[Entry], digest: str, now: datetime) -> timedelta:
    ends = [entry.time for entry in history[1:]] + [now]
    spans = (end - entry.time for entry, end in zip(history, ends, strict=True) if entry.pointers.shadow == digest)
    return sum((max(span, timedelta()) for span in spans), timedelta())


def _champions(history: Sequence[Entry]) -> list[str]:
    """Return the champions that a rollback can go through, the current one last."""
    stack: list[str] = []
    last = None
    for entry in history:
        champion = entry.pointers.champion
        if entry.action == "rolled_back" and last is not None and len(stack) > 1:
            stack.pop()
        if champion is not None and (not stack or stack[-1] != champion):
            stack.append(champion)
        last = champion
    return stack


def _last_rolled_back(history: Sequence[Entry], digest: str) -> datetime | None:
    """Return when a bundle was last taken back from being champion: whoever approves it again knows of that."""
    pairs = itertools.pairwise(history)
    times = [after.time for before, after in pairs if after.action == "rolled_back" and before.pointers.champion == digest]
    return max(times, default=None)


def _activation(registry: Registry, name: str, plan: ChangePlan, proposed: Proposed, recorder: Recorder, reason: str) -> ModelChange:
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
        old=registry.pointers(name).champion,
        new=comparison.challenger,
        plan=_short(f"{plan.label}, {proposed.modification.id} ({plan.digest})"),
        protocol=_short(f"comparison {comparison.digest}"),
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


def _spent(registry: Registry, record: Record) -> float | None:
    """Sum what a bundle and its ancestors spent; None where none of them gave anything out."""
    spent, seen, current = [], set(), record
    while True:
        seen.add(current.bundle)
        if current.epsilon is not None:
            spent.append(current.epsilon)
        parent = current.parent
        if parent is None or parent in seen or parent not in registry.digests():
            return sum(spent) if spent else None
        current = registry.record(parent)


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
