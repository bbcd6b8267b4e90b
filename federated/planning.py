"""Plans of runs that begin with a model: everything about it is the model's, and is not chosen again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clinical_ser.cohorts.tasks import TaskKind
from clinical_ser.continual.memory import Memory
from clinical_ser.control.plan import read_plan as read_change_plan
from clinical_ser.control.plan import require_filled_in
from clinical_ser.errors import FederationError, InvalidValueError
from clinical_ser.models.bundle import VerifiedBundle, read_bundle
from clinical_ser.models.linear_head import LinearHead
from clinical_ser.models.trained import TrainedModel
from clinical_ser.monitoring.counts import NAMED
from clinical_ser.monitoring.watching import CHECKS
from federated.continual import frozen_of
from federated.leading import CHANGE_PLAN, MODIFICATION, PARENT_MEMORY, keep_beside
from federated.plan import KINDS, Kind, Participant, Plan
from federated.protocols.cohort import GROUPS


@dataclass(frozen=True)
class Beginning:
    """What a run begins with, as its coordinator gives it.

    Attributes
    ----------
    kind
        Anything but `train`.
    parent
        Folder of the champion's bundle.
    memory
        File of the champion's memory, of an update; of a recalibration where there is one.
    forgetting
        Of an update, above 0 and up to 1; of a recalibration 1 unless it says otherwise.
    step
        Of a recalibration: `intercept` or `slope`; None: as much as is justified.
    challenger
        Folder of the challenger's bundle, of a gate.
    change_plan, modification
        File of the change-control plan, and which of its modifications the challenger came from, of a gate.
    names
        Kind of name to the public list that is counted, of monitoring.
    """

    kind: Kind
    parent: Path
    memory: Path | None = None
    forgetting: float | None = None
    step: str | None = None
    challenger: Path | None = None
    change_plan: Path | None = None
    modification: str | None = None
    names: Mapping[str, tuple[str, ...]] | None = None

    def check(self) -> None:
        """Raise InvalidValueError unless all that the kind needs is there, and nothing else."""
        also = {"--memory", "--forgetting"} if self.kind == "recalibrate" else set()
        needs = {
            "--memory": (self.memory, self.kind == "update"),
            "--forgetting": (self.forgetting, self.kind == "update"),
            "--challenger": (self.challenger, self.kind == "gate"),
            "--change-plan": (self.change_plan, self.kind == "gate"),
            "--modification": (self.modification, self.kind == "gate"),
        }
        for option, (given, needed) in needs.items():
            if option not in also and (given is not None) != needed:
                raise InvalidValueError(
                    option, "nothing" if given is None else "something", f"{'a value' if needed else 'nothing'} of kind {self.kind}"
                )
        if self.step is not None and self.kind != "recalibrate":
            raise InvalidValueError("--step", self.step, f"nothing of kind {self.kind}")
        if self.names and self.kind != "monitor":
            raise InvalidValueError("--names", sorted(self.names), f"nothing of kind {self.kind}")
        if unknown := sorted(set(self.names or {}) - set(NAMED)):
            raise InvalidValueError("--names", unknown[0], NAMED)


def plan_beginning(beginning: Beginning, *, run: str, sites: Sequence[Participant], coordinator: str, **more: Any) -> Plan:
    """Return the plan of a run that begins with a model.

    Parameters
    ----------
    beginning
        What it begins with.
    run, sites, coordinator
        As in `Plan`.
    more
        Further fields of `Plan` that are free: `name`, `version`, `folds`, `refits`, `seed`, `minimum_sites`.

    Raises
    ------
    InvalidValueError
        Something that the kind needs is not there, or has no place in it.
    FederationError, TrainingError, ChangePlanError
        The model, its memory or the change-control plan does not serve.
    pydantic.ValidationError
        What was given makes no sound plan.
    """
    beginning.check()
    bundle = read_bundle(beginning.parent)
    manifest = bundle.manifest
    if manifest.task.kind is not TaskKind.BINARY:
        raise InvalidValueError("--parent", manifest.task.name, "a model of a task of two classes")
    model = TrainedModel.from_bundle(bundle)
    fields: dict[str, Any] = {
        "run": run,
        "name": manifest.name,
        "task": manifest.task,
        "features": manifest.features,
        "extractors": dict(manifest.extractors),
        "coverage": model.conformal.coverage,
        "sites": tuple(sites),
        "coordinator": coordinator,
        "created": datetime.now(UTC),
        "kind": beginning.kind,
        "parent": bundle.digest,
        "statistics": KINDS[beginning.kind],
    }
    if beginning.kind in {"update", "recalibrate"}:
        if not isinstance(model.head, LinearHead):
            raise FederationError(f"A head of kind {model.head.kind!r} is trained again; a linear one is updated and recalibrated across sites.")
        folds = int(more.get("folds", Plan.model_fields["folds"].default))
        fields |= {"strengths": (model.head.strength_,), "frozen": frozen_of(model, folds, beginning.kind)}
    if beginning.memory is not None:
        memory = Memory.from_bytes(_bytes(beginning.memory))
        memory.check(model)
        if memory.bundle != bundle.digest:
            raise FederationError("The memory is that of another model than --parent.")
    if beginning.kind in {"update", "recalibrate"}:
        fields |= {"forgetting": beginning.forgetting, "step": beginning.step}
    if beginning.kind == "recalibrate":
        # Heads of the refits stay, and each has a map of its own.
        more = {**more, "refits": len(model.refits)}
    if beginning.kind == "monitor":
        fields |= {"groups": GROUPS | dict(beginning.names or {}), "checks": CHECKS}
    if beginning.kind == "gate":
        fields |= _gated(beginning, bundle, [site.name for site in sites])
    return Plan(**(fields | more))


def _gated(beginning: Beginning, champion: VerifiedBundle, sites: Sequence[str]) -> dict[str, Any]:
    assert beginning.challenger is not None
    assert beginning.change_plan is not None
    assert beginning.modification is not None
    challenger, change_plan = read_bundle(beginning.challenger), read_change_plan(beginning.change_plan)
    require_filled_in(change_plan)
    change_plan.modification_of(beginning.modification)
    if (challenger.manifest.features, challenger.manifest.extractors) != (champion.manifest.features, champion.manifest.extractors):
        raise FederationError("Across sites two models of the same features are compared; others are compared at each site, with `gate`.")
    if unknown := sorted(set(sites) - {one.site for one in change_plan.holdout}):
        raise FederationError(f"The change-control plan has no holdout of {unknown}.")
    return {"challenger": challenger.digest, "change_plan": change_plan.digest}


def lay_beside(beginning: Beginning, plan: Plan, folder: Path) -> None:
    """Put what a run begins with into its folder."""
    assert plan.parent is not None
    keep_beside(folder, beginning.parent, plan.parent)
    if beginning.memory is not None:
        _private(folder / PARENT_MEMORY, _bytes(beginning.memory))
    if beginning.change_plan is not None and beginning.modification is not None:
        _private(folder / CHANGE_PLAN, _bytes(beginning.change_plan))
        _private(folder / MODIFICATION, beginning.modification.encode())


def _bytes(path: Path | None) -> bytes:
    assert path is not None
    try:
        return path.read_bytes()
    except OSError as error:
        raise FederationError(f"A file that the run begins with cannot be read: {error.strerror}.") from None


def _private(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)
