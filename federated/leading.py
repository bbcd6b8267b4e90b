"""What a run makes at the coordinator, kind by kind: files in the run's folder, from totals over sites.

The one idea: a run that broke off is led again from its kept totals, so everything here gives the same bytes when it is done twice, and is done in
an order in which nothing is lost in between.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.events import Actor, DriftAlarm, Purpose, Role
from clinical_ser.cohorts.table import replaced
from clinical_ser.continual.memory import Memory
from clinical_ser.control.gate import comparison_of
from clinical_ser.control.plan import read_plan as read_change_plan
from clinical_ser.errors import BundleError, FederationError
from clinical_ser.evaluation.release import REPLICATES
from clinical_ser.models.bundle import VerifiedBundle, read_bundle
from clinical_ser.models.signing import SigningKey
from clinical_ser.models.strict_json import canonical_json
from clinical_ser.models.trained import TrainedModel
from clinical_ser.monitoring.counts import Counts, read_strict
from clinical_ser.monitoring.watching import Alarm, Reference, State, Watch
from federated.continual import frozen_of, update_across
from federated.identities import Identity
from federated.plan import Kind, Plan
from federated.publishing import publish
from federated.recalibrating import recalibrate_across
from federated.released import Watched, compare_across, count_across, reference_of, watch
from federated.secure_sums import SecureSums
from federated.stacking import LOCAL_WEIGHTS, stack_across
from federated.training import Trained, commitment, train_across

MODEL, MEMORY = "model", "memory.json"
"""What comes out of a run that makes a model: its bundle, and what the next update needs, for this folder's owner alone."""
PARENT, PARENT_MEMORY, CHANGE_PLAN, MODIFICATION = "parent", "parent-memory.json", "pccp.toml", "modification"
"""What goes in, beside the plan."""
JUSTIFIED, MONITOR, FIGURES, COMPARISON = "justified.json", "monitor.json", "sites.json", "comparison.json"
REFERENCE, STATE = "reference.json", "state.json"
MOST_BYTES = 256 << 20


@dataclass(frozen=True, eq=False)
class Coordinator:
    """Where a run is led, and in whose name."""

    folder: Path
    """Of the run."""
    watching: Path
    """Folder for what is kept between runs of monitoring, by model."""
    key: SigningKey
    identity: Identity
    audit: LogConfiguration
    replicates: int = REPLICATES
    """Bootstrap samples of a card's figures."""


def lead_run(plan: Plan, sums: SecureSums, at: Coordinator) -> str | None:
    """Lead a run to its end.

    Parameters
    ----------
    plan
        What sites approved.
    sums
        The way to them.
    at
        The coordinator.

    Returns
    -------
    str or None
        Digest of the bundle that came out, for the kinds that make one.

    Raises
    ------
    FederationError
        A site refuses or is missing, or what the run begins with is not what the plan names.
    TrainingError, MonitoringError, ChangePlanError
        As the same has it at one site.
    """
    return _LEADS[plan.kind](plan, sums, at)


def _train(plan: Plan, sums: SecureSums, at: Coordinator) -> str:
    trained = train_across(sums, plan.settings)
    digest = _published(plan, sums, at, trained, "Trained")
    if plan.head == "linear+local":
        sealed = stack_across(sums, trained).sealed(at.identity, plan.digest, digest)
        _write(at.folder / LOCAL_WEIGHTS, sealed)
    return digest


def _update(plan: Plan, sums: SecureSums, at: Coordinator) -> str:
    parent = TrainedModel.from_bundle(_parent(plan, at))
    memory = _memory(plan, at)
    _check_frozen(plan, parent)
    assert plan.forgetting is not None
    # The same in every attempt at this run, and known to whoever has the coordinator's key alone.
    secret = at.identity.sign(b"clinical-ser drawn posteriors\n", plan.digest.encode())
    trained = update_across(sums, plan.settings, parent, memory, plan.forgetting, secret=secret)
    return _published(plan, sums, at, trained, "Updated")


def _recalibrate(plan: Plan, sums: SecureSums, at: Coordinator) -> str | None:
    parent = TrainedModel.from_bundle(_parent(plan, at))
    memory = _memory(plan, at) if (at.folder / PARENT_MEMORY).exists() else None
    _check_frozen(plan, parent)
    found = recalibrate_across(sums, plan.settings, parent, memory, step=plan.step, forgetting=plan.forgetting or 1.0)
    _write(at.folder / JUSTIFIED, canonical_json(found.justified.model_dump(mode="json")))
    return None if found.trained is None else _published(plan, sums, at, found.trained, "Recalibrated")


def _memory(plan: Plan, at: Coordinator) -> Memory:
    memory = Memory.from_bytes(_read(at.folder / PARENT_MEMORY))
    if memory.bundle != plan.parent:
        raise FederationError("The memory that lies with the run is that of another model than the plan's.")
    return memory


def _monitor(plan: Plan, sums: SecureSums, at: Coordinator) -> None:
    counts, outcomes = count_across(sums, plan)
    bundle = _parent(plan, at)
    assert plan.parent is not None
    kept = at.watching / plan.parent
    kept.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = Watched(run=plan.run, plan=plan.digest, counts=counts, outcomes=outcomes)
    if not (kept / REFERENCE).exists() or _is_reference(kept, counts):
        # The first run is what the later ones are watched against.
        _write(kept / REFERENCE, Reference.of(bundle.manifest, reference_of(counts)).to_bytes())
        _write(at.folder / MONITOR, found.to_bytes())
        return
    reference = read_strict(Reference, _read(kept / REFERENCE), "The reference")
    state = read_strict(State, _read(kept / STATE), "The state") if (kept / STATE).exists() else None
    watching = Watch(reference, state)
    alarms = watch(watching, counts, plan.run)
    if (at.folder / MONITOR).exists() and not alarms:
        # Led again after its end: what was found then stands.
        return
    _record(alarms, at.audit, plan)
    _write(at.folder / MONITOR, found.model_copy(update={"reference": reference.digest, "alarms": alarms}).to_bytes())
    _write(kept / STATE, watching.state.to_bytes())


def _gate(plan: Plan, sums: SecureSums, at: Coordinator) -> None:
    change_plan = read_change_plan(at.folder / CHANGE_PLAN)
    if change_plan.digest != plan.change_plan:
        raise FederationError("The change-control plan that lies with the run is not the one that sites approved.")
    modification = change_plan.modification_of(_read(at.folder / MODIFICATION).decode("utf-8").strip())
    figures = compare_across(sums, plan)
    _write(at.folder / FIGURES, canonical_json([one.model_dump(mode="json") for one in figures]))
    assert plan.parent is not None
    assert plan.challenger is not None
    found = comparison_of(change_plan, modification, figures, champion=plan.parent, challenger=plan.challenger)
    _write(at.folder / COMPARISON, found.to_json())


_LEADS: Mapping[Kind, Callable[[Plan, SecureSums, Coordinator], str | None]] = {
    "train": _train,
    "update": _update,
    "recalibrate": _recalibrate,
    "monitor": _monitor,
    "gate": _gate,
}


def keep_beside(folder: Path, bundle: Path, digest: str) -> None:
    """Copy a bundle into a run's folder, and see that it is the one that is meant."""
    shutil.copytree(bundle, folder / PARENT)
    read_bundle(folder / PARENT, expected_digest=digest)


def _published(plan: Plan, sums: SecureSums, at: Coordinator, trained: Trained, done: str) -> str:
    published = publish(
        trained,
        at.folder / MODEL,
        name=plan.name,
        version=plan.version,
        sites=len(plan.sites),
        cohort_digest=commitment(sums.commitments),
        key=at.key,
        replicates=at.replicates,
        replace=True,
        done=done,
    )
    if trained.memory is not None:
        _write(at.folder / MEMORY, trained.memory.of(published.digest).to_bytes())
    return published.digest


def _parent(plan: Plan, at: Coordinator) -> VerifiedBundle:
    try:
        return read_bundle(at.folder / PARENT, expected_digest=plan.parent)
    except BundleError as error:
        raise FederationError(f"The model that the run begins with cannot be used: {error}") from None


def _check_frozen(plan: Plan, parent: TrainedModel) -> None:
    if frozen_of(parent, plan.folds, plan.kind) != plan.frozen:
        raise FederationError("The plan froze other scales than the model has that it begins with.")


def _is_reference(kept: Path, counts: Counts) -> bool:
    """Tell whether the reference is of this very run, which is led again, and nothing has been watched against it."""
    return not (kept / STATE).exists() and read_strict(Reference, _read(kept / REFERENCE), "The reference").counts == reference_of(counts)


def _record(alarms: tuple[Alarm, ...], audit: LogConfiguration, plan: Plan) -> None:
    if not alarms:
        return
    with audit.write() as log:
        for alarm in alarms:
            since = datetime(alarm.since.year, alarm.since.month, alarm.since.day, tzinfo=UTC) if alarm.since else plan.created
            statistic, value, limit = alarm.recorded
            log.append(
                DriftAlarm(
                    actor=Actor(id="coordinator", role=Role.NODE),
                    what=alarm.channel[:200],
                    statistic=statistic,
                    value=value,
                    limit=limit,
                    since=since,
                ),
                purpose=Purpose.OPERATIONS,
            )


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise FederationError(f"{path.name} of the run cannot be read: {error.strerror}.") from None
    if len(raw) > MOST_BYTES:
        raise FederationError(f"{path.name} of the run is too long to be what it should be.")
    return raw


def _write(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read."""
    with replaced(path) as unfinished:
        unfinished.write_bytes(content)
