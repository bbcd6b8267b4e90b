"""What is wrong with a change-control plan, beyond its spelling: a requirement that cannot fail, a modification that nothing judges.

A check that was never able to fail is none; that is found before the first change, and not by the first change.
"""

import base64
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from clinical_ser.control.figures import (
    CALIBRATION,
    DISCRIMINATION,
    DISTANCE_TO_BEST,
    EPSILON_LEFT,
    EXPLANATION_FIGURES,
    chance_of,
    direction,
    is_bounded,
    known_figures,
    largest_margin,
)
from clinical_ser.control.parts import LEAST_ROLES, ChangePlan, Limits, Modification, Requirement
from clinical_ser.models.signing import PublicKey

UNREACHABLE_MARGIN = 0.5
"""A share or AUROC that may fall by this may fall to chance."""
EXAMPLE_KEYS = frozenset(
    base64.b64encode(bytes.fromhex(raw)).decode()
    for raw in (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
    )
)
"""Those of the example plan: tests 1 and 2 of RFC 8032, section 7.1, whose private halves are printed there."""
EXAMPLE_DIGEST = "0" * 64


@dataclass(frozen=True)
class Fault:
    """What is wrong with a plan, and where."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def faults_of(plan: ChangePlan) -> Iterator[Fault]:
    """Yield every fault of a plan that is spelled right."""
    yield from _about_faults(plan)
    yield from _repeated(plan)
    for place, one in enumerate(plan.requirement):
        yield from (Fault(f"requirement.{place} ({one.id})", what) for what in _requirement_faults(plan, one))
    for place, modification in enumerate(plan.modification):
        yield from (Fault(f"modification.{place} ({modification.id})", what) for what in _modification_faults(plan, modification))
    yield from _holdout_faults(plan)
    yield from _role_faults(plan)
    yield from _risk_faults(plan)


def _about_faults(plan: ChangePlan) -> Iterator[Fault]:
    about = plan.plan
    if about.expires <= about.effective:
        yield Fault("plan.expires", f"{about.expires.isoformat()} is not after {about.effective.isoformat()}, when the plan takes effect")
    if len(set(about.classes)) != len(about.classes):
        yield Fault("plan.classes", "the classes differ from each other")


def _repeated(plan: ChangePlan) -> Iterator[Fault]:
    named = {
        "modification": [one.id for one in plan.modification],
        "holdout": [one.site for one in plan.holdout],
        "requirement": [one.id for one in plan.requirement],
        "role": [one.name for one in plan.role],
        "risk": [one.id for one in plan.risk],
    }
    for part, names in named.items():
        yield from (Fault(part, f"{name!r} is there {n} times; each has a name of its own") for name, n in Counter(names).items() if n > 1)
    tables = Counter(one.sha256 for one in plan.holdout if one.sha256 != EXAMPLE_DIGEST)
    yield from (Fault("holdout", f"the table {sha[:12]} stands for {n} sites; each has its own") for sha, n in tables.items() if n > 1)


def _requirement_faults(plan: ChangePlan, one: Requirement) -> Iterator[str]:
    known = known_figures(plan.plan.classes)
    if one.figure not in known:
        yield f"figure {one.figure!r} is not known for this task; known: {', '.join(known)}"
        return
    if one.comparison == "non_inferior" and (one.margin is None or one.limit is not None):
        yield "non_inferior has a margin and no limit"
    if one.comparison in {"at_least", "at_most"} and (one.limit is None or one.margin is not None):
        yield f"{one.comparison} has a limit and no margin"
    if one.comparison == "no_worse" and (one.margin is not None or one.limit is not None):
        yield "no_worse has neither margin nor limit"
    grouped = one.scope in {"each_group", "worst_group"}
    if grouped != (one.by is not None):
        yield "the groups of a scope come from a column: say which with `by`" if grouped else "`by` goes with the scopes each_group and worst_group"
    if not grouped and one.too_few == "skip":
        yield "`too_few` goes with the scopes each_group and worst_group"
    if one.values and (not grouped or len(set(one.values)) != len(one.values)):
        yield "`values` are the groups of the scopes each_group and worst_group, each once"
    if one.scope == "worst_site" and len(plan.holdout) < 2:
        yield "it cannot be judged: worst_site needs two holdouts or more"
    yield from _special_faults(one)
    yield from _cannot_fail(one)
    yield from _is_the_wrong_way(one, len(plan.plan.classes))


def _is_the_wrong_way(one: Requirement, classes: int) -> Iterator[str]:
    kind = one.figure.partition(".")[0]
    if one.figure not in {EPSILON_LEFT, *EXPLANATION_FIGURES} and kind not in DISTANCE_TO_BEST:
        right = "at_least" if direction(one.figure) > 0 else "at_most"
        if one.comparison in {"at_least", "at_most"} and one.comparison != right:
            yield f"it asks for what is worse: {one.figure} is limited with {right}"
    chance = chance_of(one.figure, classes)
    if one.comparison == "at_least" and one.limit is not None and chance is not None and one.limit <= chance:
        yield f"it cannot fail: {one.figure} of {chance:g} is what chance reaches"
    most = largest_margin(one.figure)
    told_already = is_bounded(one.figure) and one.margin is not None and one.margin >= UNREACHABLE_MARGIN
    if one.margin is not None and most is not None and one.margin > most and not told_already:
        yield f"a margin of {one.margin:g} is too wide for {one.figure}; {most:g} at most"


def _special_faults(one: Requirement) -> Iterator[str]:
    if one.figure == EPSILON_LEFT:
        if one.comparison != "at_least" or one.scope != "overall":
            yield f"{EPSILON_LEFT} is required with at_least, overall"
        elif one.limit is not None and one.limit < 0:
            yield "it cannot fail: what is left of a budget is never asked to be below 0"
    elif one.figure in EXPLANATION_FIGURES:
        if one.comparison != "at_least":
            yield f"{one.figure} compares two models already: it is required with at_least"
        if one.scope not in {"overall", "each_site", "worst_site"}:
            yield "it cannot be judged: explanations are looked at overall and by site"
        if one.limit is not None and one.figure == "explanation_agreement" and not -1 < one.limit < 1:
            yield "it cannot fail, or never be met: a correlation's limit lies between -1 and 1"


def _cannot_fail(one: Requirement) -> Iterator[str]:
    if not is_bounded(one.figure):
        return
    if one.margin is not None and one.margin >= UNREACHABLE_MARGIN:
        yield f"it cannot fail: a margin of {one.margin:g} lets {one.figure} fall to chance"
    if one.limit is None:
        return
    if one.comparison == "at_least" and one.limit <= 0:
        yield f"it cannot fail: {one.figure} is never below 0"
    elif one.comparison == "at_most" and one.limit >= 1:
        yield f"it cannot fail: {one.figure} is never above 1"
    elif not 0 < one.limit < 1:
        yield f"it can never be met: the bound of {one.figure} lies between 0 and 1"


def _modification_faults(plan: ChangePlan, one: Modification) -> Iterator[str]:
    known = {requirement.id: requirement for requirement in plan.requirement}
    if unknown := [name for name in one.requirements if name not in known]:
        yield f"requirements {unknown} are not there; there are {sorted(known)}"
    covered = {known[name].figure.partition(".")[0] for name in one.requirements if name in known}
    scopes = {known[name].scope for name in one.requirements if name in known}
    # The least that discrimination is judged by: an end of an interval, of the difference or of the figure itself.
    judged = {
        known[name].figure.partition(".")[0] for name in one.requirements if name in known and known[name].comparison in {"non_inferior", "at_least"}
    }
    if not judged & DISCRIMINATION:
        yield f"no requirement is about discrimination with non_inferior or at_least ({', '.join(sorted(DISCRIMINATION))})"
    if not covered & CALIBRATION:
        yield f"no requirement is about calibration ({', '.join(sorted(CALIBRATION))})"
    if not covered & {"deferred", "answered", "not_usable"}:
        yield "no requirement is about deferral (deferred, answered, not_usable): a model gets better by answering the easy ones only"
    if len(plan.holdout) > 1 and not scopes & {"each_site", "worst_site"}:
        yield "no requirement looks at each site or the worst one: a mean hides who got worse"
    if not scopes & {"each_group", "worst_group"}:
        yield "no requirement looks at groups of people: a mean hides who got worse"
    limits = one.limits
    if one.kind == "recalibrated" and not limits.steps:
        yield "limits.steps: which recalibrations (intercept, slope, full)"
    if one.kind != "recalibrated" and limits.steps:
        yield "limits.steps are for kind recalibrated"
    if one.kind != "unlearned" and limits.methods != Limits.model_fields["methods"].default:
        yield "limits.methods are for kind unlearned"
    if one.kind != "unlearned" and not limits.subjects_of_each_class_at_least:
        yield "limits.subjects_of_each_class_at_least: how many people at least"
    if one.kind == "unlearned" and "erasure" not in limits.triggers:
        yield "limits.triggers: unlearning is asked for by an erasure"


def _holdout_faults(plan: ChangePlan) -> Iterator[Fault]:
    for place, one in enumerate(plan.holdout):
        if one.prevalence is not None and not plan.binary:
            yield Fault(f"holdout.{place} ({one.site})", "a prevalence is for two classes; several are stated for equal shares")


def _role_faults(plan: ChangePlan) -> Iterator[Fault]:
    if len(plan.role) < LEAST_ROLES:
        yield Fault("role", "two roles sign at least: nobody approves a change alone")
    holders = Counter(key for role in plan.role for key in set(role.keys))
    for key, n in holders.items():
        if n > 1:
            yield Fault("role", f"the key {PublicKey(base64.b64decode(key)).key_id} stands in {n} roles; each role has keys of its own")


def _risk_faults(plan: ChangePlan) -> Iterator[Fault]:
    ids, requirements = {one.id for one in plan.modification}, {one.id for one in plan.requirement}
    used = {name for one in plan.modification for name in one.requirements}
    known = requirements | {f"monitor:{name}" for name in plan.protocol.monitors}
    for place, one in enumerate(plan.risk):
        where = f"risk.{place} ({one.id})"
        if unknown := [name for name in one.modifications if name not in ids]:
            yield Fault(where, f"modifications {unknown} are not there; there are {sorted(ids)}")
        if unknown := [name for name in one.mitigated_by if name not in known]:
            yield Fault(where, f"mitigated_by {unknown} names no requirement and no monitor; there are {sorted(known)}")
    covered = {name for one in plan.risk for name in one.modifications}
    yield from (Fault("risk", f"no risk is about modification {name!r}") for name in sorted(ids - covered))
    yield from (Fault("requirement", f"{name!r} is asked of no modification") for name in sorted(requirements - used))
