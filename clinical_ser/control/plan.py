"""The change-control plan (`pccp.toml`): what may change, how a change is tested, what it must not worsen, and who signs.

The one idea: the plan is data, written before any change is made, so that a program can refuse by name what it does not cover.
"""

import re
import tomllib
from collections.abc import Iterator, Sequence
from datetime import date, datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from clinical_ser.control.checking import EXAMPLE_DIGEST, EXAMPLE_KEYS, Fault, faults_of
from clinical_ser.control.parts import ChangePlan, Method, Modification, Sha256, Step
from clinical_ser.errors import ChangePlanError, OutsidePlanError
from clinical_ser.strict import Strict

LARGEST_PLAN_BYTES = 1_000_000


class Change(Strict):
    """A change that somebody wants to make."""

    kind: str = Field(max_length=40)
    """As `Record.change` has it."""
    name: str = Field(max_length=200)
    """The model's, in the registry."""
    task: str = Field(max_length=200)
    parent: Sha256 | None
    """The bundle that is changed."""
    head: str = Field(max_length=40)
    features_same: bool
    extractors_same: bool
    subjects: dict[str, Annotated[int, Field(ge=0)]]
    """By class, of this step."""
    sites: Annotated[int, Field(ge=1)] = 1
    forgetting: float | None = None
    """None: nothing is forgotten."""
    unlabelled_weight: float | None = None
    epsilon: Annotated[float, Field(ge=0)] | None = None
    """Spent in all, this change included; None where nothing was given out under differential privacy."""
    step: Step | None = None
    method: Method | None = None
    """How a person was taken out; None is `subtracted`."""
    trigger: str = Field(max_length=400)
    """`scheduled`, `request`, `erasure`, or `alarm`; what follows a colon says which (`alarm:<id>`)."""


def read_plan(path: Path) -> ChangePlan:
    """Read and check `pccp.toml`.

    Parameters
    ----------
    path
        The file, TOML in UTF-8, of at most a megabyte.

    Raises
    ------
    ChangePlanError
        It cannot be read, is not TOML, or has faults; each is named with its place.
    """
    plan, faults = inspect_plan(path)
    if plan is None or faults:
        raise ChangePlanError(f"The change-control plan has {len(faults)} {'fault' if len(faults) == 1 else 'faults'}. {_sentences(faults)}")
    return plan


def inspect_plan(path: Path) -> tuple[ChangePlan | None, tuple[Fault, ...]]:
    """Return a plan, as far as it can be read, and every fault; ChangePlanError where the file cannot be read at all."""
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST_PLAN_BYTES + 1)
    except OSError as error:
        raise ChangePlanError(f"The change-control plan cannot be read: {error.strerror}.") from None
    return parse_plan(raw)


def parse_plan(raw: bytes) -> tuple[ChangePlan | None, tuple[Fault, ...]]:
    """Read the bytes of a plan; see `inspect_plan`."""
    if len(raw) > LARGEST_PLAN_BYTES:
        raise ChangePlanError(f"The change-control plan has more than {LARGEST_PLAN_BYTES} bytes, so it is none.")
    try:
        content = tomllib.loads(raw.decode("utf-8"))
    # RecursionError: brackets within brackets, which is no plan either.
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError):
        raise ChangePlanError("The change-control plan is not TOML in UTF-8; `pccp example` prints one that is.") from None
    if missing := [name for name in ("schema_id", *_PARTS) if name not in content]:
        return None, tuple(Fault(name, f"this part is missing ({_PARTS.get(name, 'the schema')})") for name in missing)
    try:
        plan = ChangePlan.model_validate(content)
    except ValidationError as error:
        return None, tuple(Fault(_place(one["loc"]), _words(one)) for one in error.errors(include_input=False, include_url=False))
    return plan, tuple(faults_of(plan))


_PARTS = {
    "plan": "what the plan is for",
    "modification": "Description of Modifications",
    "protocol": "Modification Protocol",
    "holdout": "Modification Protocol: frozen holdouts",
    "requirement": "Modification Protocol: what is required",
    "role": "Modification Protocol: who signs",
    "impact": "Impact Assessment",
    "risk": "Impact Assessment: risks",
}


def example_plan() -> str:
    """Return the documented example, TOML."""
    return resources.files("clinical_ser.control").joinpath("example.toml").read_text(encoding="utf-8")


def left_open(plan: ChangePlan) -> tuple[str, ...]:
    """Return what of the example was not filled in yet: its keys, whose private halves everyone knows, and its holdouts' digests."""
    found = [f"role {role.name}: a key of the example" for role in plan.role if EXAMPLE_KEYS & set(role.keys)]
    return (*found, *(f"holdout {one.site}: the digest of its table" for one in plan.holdout if one.sha256 == EXAMPLE_DIGEST))


def require_filled_in(plan: ChangePlan) -> None:
    """Raise ChangePlanError for a plan with keys or digests of the example: anyone could sign under it."""
    if open_ := left_open(plan):
        raise ChangePlanError(f"The plan is not filled in: {'; '.join(open_)}. Replace them, and check the plan again.")


def check_change(plan: ChangePlan, change: Change, *, on: date, earlier: Sequence[datetime] = ()) -> Modification:
    """Return the modification that covers a change.

    Parameters
    ----------
    plan, change
        The plan and what somebody wants to do.
    on
        The day of the change.
    earlier
        When changes of this kind were made before, under any plan, for the most that a year may see.

    Raises
    ------
    OutsidePlanError
        No modification covers it; everything that is outside is named, for the modification that comes closest.

    Examples
    --------
    >>> plan, _ = parse_plan(example_plan().encode())
    >>> change = Change(
    ...     kind="recalibrated",
    ...     name="clinic-depression",
    ...     task="depression",
    ...     parent="a" * 64,
    ...     head="linear",
    ...     features_same=True,
    ...     extractors_same=True,
    ...     subjects={"depressed": 40, "not_depressed": 90},
    ...     step="intercept",
    ...     trigger="alarm:prevalence",
    ... )
    >>> check_change(plan, change, on=date(2026, 12, 1)).id
    'recalibration'
    """
    general = list(_outside_the_plan(plan, change, on))
    of_kind = [one for one in plan.modification if one.kind == change.kind]
    if not of_kind:
        allowed = sorted({one.kind for one in plan.modification})
        raise OutsidePlanError([*general, f"Kind: a model that is {change.kind!r} is in no modification of the plan, which has {allowed}."])
    outside = {one.id: [*general, *_outside(plan, one, change, on, earlier)] for one in of_kind}
    closest = min(of_kind, key=lambda one: len(outside[one.id]))
    if outside[closest.id]:
        raise OutsidePlanError(outside[closest.id])
    return closest


def _outside_the_plan(plan: ChangePlan, change: Change, on: date) -> Iterator[str]:
    about = plan.plan
    if change.name != about.model:
        yield f"Model: {change.name!r} is not the plan's, which is {about.model!r}."
    if change.task != about.task:
        yield f"Task: {change.task!r} is not the plan's, which is {about.task!r}."
    if change.parent is None:
        yield "Parent: a model without a parent is a new one, and no change of this one."
    if on < about.effective:
        yield f"Date: the plan holds from {about.effective.isoformat()}."
    if on > about.expires:
        yield f"Date: the plan held until {about.expires.isoformat()}."
    if strange := sorted(set(change.subjects) - set(about.classes)):
        yield f"Classes: {strange} are not the plan's, which are {list(about.classes)}."


def _outside(plan: ChangePlan, modification: Modification, change: Change, on: date, earlier: Sequence[datetime]) -> Iterator[str]:
    limits, name = modification.limits, modification.id
    yield from _outside_in_data(plan, modification, change)
    if change.head not in limits.heads:
        yield f"Head: {change.head!r} is not one of {list(limits.heads)} ({name})."
    if limits.features_fixed and not change.features_same:
        yield f"Features: they would change, and are fixed ({name})."
    if limits.extractors_fixed and not change.extractors_same:
        yield f"Extractors: they would change, and are fixed ({name})."
    if modification.kind == "recalibrated" and change.step not in limits.steps:
        yield f"Recalibration: step {change.step!r} is not one of {list(limits.steps)} ({name})."
    if modification.kind == "unlearned" and (change.method or "subtracted") not in limits.methods:
        yield f"Unlearning: method {change.method or 'subtracted'!r} is not one of {list(limits.methods)} ({name})."
    trigger = change.trigger.partition(":")[0]
    if trigger not in limits.triggers:
        yield f"Trigger: {trigger!r} is not one of {list(limits.triggers)} ({name})."
    since = on - timedelta(days=365)
    recent = sum(since < when.date() <= on for when in earlier)
    if recent >= limits.times_a_year_at_most:
        yield f"Often: {recent} changes of this kind in a year already; at most {limits.times_a_year_at_most} ({name})."


def _outside_in_data(plan: ChangePlan, modification: Modification, change: Change) -> Iterator[str]:
    limits, name = modification.limits, modification.id
    least = limits.subjects_of_each_class_at_least
    few = {label: change.subjects.get(label, 0) for label in plan.plan.classes if change.subjects.get(label, 0) < least}
    if few:
        yield f"Subjects: {', '.join(f'{n} of {label!r}' for label, n in few.items())}; at least {least} of each class ({name})."
    if change.sites < limits.sites_at_least:
        yield f"Sites: {change.sites}; at least {limits.sites_at_least} ({name})."
    forgetting = 1.0 if change.forgetting is None else change.forgetting
    if not limits.forgetting_at_least <= forgetting <= 1:
        yield f"Forgetting factor: {forgetting:g}; {limits.forgetting_at_least:g} to 1 ({name})."
    unlabelled = change.unlabelled_weight or 0.0
    if not 0 <= unlabelled <= limits.unlabelled_weight_at_most:
        yield f"Weight of unlabelled recordings: {unlabelled:g}; at most {limits.unlabelled_weight_at_most:g} ({name})."
    if limits.epsilon_at_most is not None:
        if change.epsilon is None and change.sites > 1:
            yield f"Privacy spent: not stated for {change.sites} sites; at most {limits.epsilon_at_most:g} in all ({name})."
        elif change.epsilon is not None and change.epsilon > limits.epsilon_at_most:
            yield f"Privacy spent: {change.epsilon:g} in all; at most {limits.epsilon_at_most:g} ({name})."


def _place(location: tuple[int | str, ...]) -> str:
    # A key of somebody's own making may be anything, a name too.
    return (
        ".".join(str(part) if isinstance(part, int) or re.fullmatch(r"[a-z0-9_]{1,40}", part) else "an unknown field" for part in location)
        or "the plan"
    )


def _words(error: object) -> str:
    kind, message = (error["type"], error["msg"]) if isinstance(error, dict) else ("", "")
    return {"extra_forbidden": "no such field", "missing": "it is missing"}.get(kind, message.removeprefix("Value error, "))


def _sentences(faults: Sequence[Fault]) -> str:
    return " ".join(f"{str(one).rstrip('.')}." for one in faults)


def plan_from_json(raw: bytes, *, checked: bool = True) -> ChangePlan:
    """Read a plan as `ChangePlan.to_json` wrote it; ChangePlanError for anything else, or, where `checked`, a plan with faults."""
    try:
        plan = ChangePlan.model_validate_json(raw)
    except ValidationError:
        plan = None
    if plan is None or plan.to_json() != raw or (checked and tuple(faults_of(plan))):
        raise ChangePlanError("The plan that is kept is none of this version; it was changed.")
    return plan
