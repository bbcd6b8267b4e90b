"""A model that a run made becomes a challenger: into the coordinator's registry, as far as the change-control plan covers it."""

from pathlib import Path

from pydantic import ValidationError

from clinical_ser.audit.answering import Recorder
from clinical_ser.continual.recalibration import Justified
from clinical_ser.control.learning import MEMORY
from clinical_ser.control.parts import ChangePlan
from clinical_ser.control.promotion import propose as propose_bundle
from clinical_ser.errors import BundleSchemaError, FederationError
from clinical_ser.evaluation.card import Card
from clinical_ser.models.bundle import read_bundle
from clinical_ser.registry import Entry, Record, Registry
from federated.leading import JUSTIFIED, MODEL
from federated.leading import MEMORY as MEMORY_FILE
from federated.plan import read_plan

_CHANGES = {"update": "updated", "recalibrate": "recalibrated"}


def propose(folder: Path, registry: Registry, plan: ChangePlan, *, recorder: Recorder, trigger: str = "scheduled") -> Entry:
    """Take what a run of updating or recalibrating made into the registry, and make it the challenger.

    Parameters
    ----------
    folder
        Of the run.
    registry
        The coordinator's.
    plan
        Has to cover the change, the number of sites among it.
    recorder, trigger
        Where it is recorded, and why it was done.

    Raises
    ------
    FederationError
        The run makes no challenger, or has not finished.
    OutsidePlanError
        The plan does not cover it; recorded.
    """
    run = read_plan(folder / "plan.json")
    if run.kind not in _CHANGES:
        raise FederationError(f"A run of kind {run.kind!r} makes no challenger; one to update or to recalibrate does.")
    if not (folder / MODEL).is_dir():
        raise FederationError("The run has made no model: it has not finished, or nothing needed to change.")
    bundle = read_bundle(folder / MODEL)
    try:
        subjects = Card.from_json(bundle.files["card.json"]).internal.flow.subjects_by_class
    except BundleSchemaError:
        raise FederationError("The run's model has a card of another version.") from None
    details: dict[str, float | int | str | bool] = {"sites": len(run.sites), "forgetting": run.forgetting or 1.0, "run": run.digest}
    step = run.step or ("full" if run.kind == "update" else _step(folder))
    record = Record.of(
        bundle,
        change=_CHANGES[run.kind],  # type: ignore[arg-type]
        parent=run.parent,
        subjects=dict(subjects),
        recordings=sum(subjects.values()),
        details=details | {"step": step},
        because=trigger,
    )
    memory = folder / MEMORY_FILE
    digest = registry.add(folder / MODEL, record, private={MEMORY: memory.read_bytes()} if memory.exists() else {})
    return propose_bundle(registry, plan.plan.model, digest, plan, recorder=recorder, reason=trigger)


def _step(folder: Path) -> str:
    """Return what a recalibration was found to need."""
    try:
        return Justified.model_validate_json((folder / JUSTIFIED).read_bytes()).step
    except (OSError, ValidationError):
        raise FederationError("What the run found justified is not there, or damaged.") from None
