"""A champion goes on learning, or forgets a person: the work between the registry, the plan and `continual/`.

The one idea: whatever comes out is a candidate. It lies in the registry with its parent, its counts and what the next update needs, and answers
nothing before the gate and the signatures.
"""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from threadpoolctl import threadpool_limits

from clinical_ser.audit.answering import Recorder
from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.continual.memory import Memory, memory_of
from clinical_ser.continual.posterior import Array
from clinical_ser.continual.recalibration import Justified, Step, justified, recalibrate
from clinical_ser.continual.self_training import Intake, update_with_unlabelled
from clinical_ser.continual.unlearning import Contributions
from clinical_ser.continual.updating import Updated, UpdateOptions, rows_for, update
from clinical_ser.control.parts import ChangePlan
from clinical_ser.control.plan import Change
from clinical_ser.control.promotion import MEMBERS, may, members_of, propose
from clinical_ser.errors import InvalidValueError, RegistryError, TrainingError
from clinical_ser.evaluation.card import Card
from clinical_ser.evaluation.evaluating import EvaluationOptions
from clinical_ser.evaluation.release import REPLICATES, card_of
from clinical_ser.evaluation.software import software_versions
from clinical_ser.models.bundle import VerifiedBundle, read_bundle
from clinical_ser.models.rows import Rows, select_rows
from clinical_ser.models.saving import save
from clinical_ser.models.signing import SigningKey
from clinical_ser.models.strict_json import canonical_json
from clinical_ser.models.trained import TrainedModel
from clinical_ser.models.training import TrainingOptions, cohort_digest, train
from clinical_ser.registry import Record, Registry

MEMORY, CONTRIBUTIONS = "memory.json", "contributions.npz"
"""Private files of a bundle: what an update needs in place of the data, and what each person added."""
NO_MEMORY = (
    "The champion's memory is not here, so that it cannot learn on without its old data: `registry add --table` makes it from the table that it was "
    "trained on. Recalibration needs no memory."
)

Kind = Literal["recalibrated", "updated", "retrained"]
_SAID: dict[Kind, str] = {
    "recalibrated": "Recalibrated from model {parent} on {people} people.",
    "updated": "Updated from model {parent} with {people} new people, without its old data.",
    "retrained": "Trained again, in place of model {parent}, on {people} people.",
}
Method = Literal["justified", "recalibrate", "update", "retrain"]


@dataclass(frozen=True)
class Learning:
    """How a champion is to go on learning."""

    method: Method = "justified"
    """`justified`: the smallest answer that new people justify."""
    step: Step | None = None
    """Of a recalibration, where it is not to be chosen: `intercept` or `slope`."""
    options: UpdateOptions = field(default_factory=UpdateOptions)
    unlabelled_weight: float | None = None
    trigger: str = "scheduled"
    keep_contributions: bool = False
    """Keep what each person added, so that they can be taken out again."""
    workers: int = 1


@dataclass(frozen=True, eq=False)
class Learned:
    """What came of it; `digest` is None where nothing needs to change."""

    digest: str | None
    change: str | None
    justified: Justified | None
    intake: Intake | None
    card: Card | None


def take_in(registry: Registry, bundle: Path, record: Record, table: FeatureTable, *, keep_contributions: bool = False) -> str:
    """Add a bundle that was trained here, with its memory made from the table that it was trained on.

    Raises
    ------
    InvalidValueError
        The bundle was not trained on this table.
    TrainingError
        Its head has no memory.
    """
    read = read_bundle(bundle)
    model = TrainedModel.from_bundle(read)
    rows = select_rows(table, model.task, model.features, use_baseline=False, used_as="learned from").rows
    if cohort_digest(rows.frame["recording"], rows.target) != read.manifest.cohort_digest:
        raise InvalidValueError("--table", "a table that this model was not trained on", "the very table that `train` was given")
    with threadpool_limits(limits=1):
        private = _private(registry, model, memory_of(model, rows).of(read.digest), rows, None, frozenset(), keep_contributions=keep_contributions)
    return registry.add(bundle, record, private=private)


def learn(
    registry: Registry,
    name: str,
    table: FeatureTable,
    plan: ChangePlan,
    version: str,
    *,
    key: SigningKey | None,
    recorder: Recorder,
    learning: Learning | None = None,
    unlabelled: FeatureTable | None = None,
) -> Learned:
    """Make a challenger of a champion and new recordings.

    Parameters
    ----------
    registry, name
        Where, and under which name the champion answers.
    table
        New recordings with labels; for `retrain`, all of them.
    plan
        Has to cover the change: it is asked before the work and after it.
    version
        Of the challenger.
    key
        Signs it; None leaves it unsigned.
    recorder
        Where it is recorded.
    learning
        How.
    unlabelled
        Recordings without labels, where `learning` has a weight for them.

    Raises
    ------
    OutsidePlanError
        The plan does not cover it; recorded.
    TrainingError, ManifestError
        The table does not fit the champion, or somebody in it was heard before.
    RegistryError
        The name has no champion, or what an update needs of it is not here.
    """
    return _Learner(registry, name, table, plan, version, key, recorder, learning or Learning()).learn(unlabelled)


@dataclass(frozen=True, eq=False)
class _Learner:
    """One step of one model."""

    registry: Registry
    name: str
    table: FeatureTable
    plan: ChangePlan
    version: str
    key: SigningKey | None
    recorder: Recorder
    how: Learning

    def learn(self, unlabelled: FeatureTable | None) -> Learned:
        """Choose, ask the plan, do it, and keep it."""
        how = self.how
        if (unlabelled is None) != (how.unlabelled_weight is None):
            raise InvalidValueError("unlabelled", "a table without a weight, or a weight without a table", "both, or neither")
        if self.parent is None:
            raise RegistryError(f"Nothing answers as {self.name!r}: `model promote --first` lets a first bundle answer.")
        if how.method == "retrain":
            return self._retrained()
        model, memory = TrainedModel.from_bundle(self.champion), memory_in(self.registry, self.parent)
        rows = rows_for(model, self.table).rows
        self._check_new_people(rows)
        found, step = self._step(model, memory)
        if step == "none":
            return Learned(None, None, found, None, None)
        kind: Kind = "updated" if step == "full" else "recalibrated"
        may(self.registry, self.name, self._planned(kind, rows, step), self.plan, recorder=self.recorder)
        intake = None
        if step != "full":
            updated = recalibrate(model, memory, self.table, step, how.options)
        elif memory is None:
            raise RegistryError(NO_MEMORY)
        elif unlabelled is not None and how.unlabelled_weight is not None:
            updated, intake = update_with_unlabelled(model, memory, self.table, unlabelled, how.unlabelled_weight, how.options)
        else:
            updated = update(model, memory, self.table, how.options)
        details: dict[str, float | int | str | bool] = {"step": step, "forgetting": how.options.forgetting, "seed": how.options.seed}
        if intake is not None:
            details |= {"unlabelled_weight": intake.weight if intake.used else 0.0, "unlabelled_offered": intake.offered}
        digest, card = self._kept(updated, kind, rows, details)
        return Learned(digest, kind, found, intake, card)

    @property
    def parent(self) -> str | None:
        """Return the champion's digest."""
        return self.registry.pointers(self.name).champion

    @property
    def champion(self) -> VerifiedBundle:
        """Return the champion."""
        assert self.parent is not None
        return self.registry.bundle(self.parent)

    def _step(self, model: TrainedModel, memory: Memory | None) -> tuple[Justified | None, Step]:
        how = self.how
        if how.method == "update" or how.step == "full":
            return None, "full"
        if how.step is not None:
            return None, how.step
        found = justified(model, memory if how.method == "justified" else None, self.table, how.options)
        return found, found.step

    def _retrained(self) -> Learned:
        """Train again on all recordings, as the champion was trained."""
        champion = self.champion
        options = options_of(champion, Card.from_json(champion.files["card.json"]))
        task = champion.manifest.task
        rows = select_rows(self.table, task, (), use_baseline=options.use_baseline, used_as="learned from").rows
        may(self.registry, self.name, self._planned("retrained", rows, None), self.plan, recorder=self.recorder)
        training = train(self.table, task, options)
        digest, card = self._kept(Updated(training, None), "retrained", rows, {"seed": options.seed})
        return Learned(digest, "retrained", None, None, card)

    def _kept(self, updated: Updated, kind: Kind, rows: Rows, details: dict[str, float | int | str | bool]) -> tuple[str, Card]:
        """Write the bundle, add it with what is private, and make it the challenger."""
        how, champion, registry = self.how, self.champion, self.registry
        assert self.parent is not None
        training = replace(updated.training, simulated=updated.training.simulated or champion.manifest.simulated)
        people = {label: len(np.unique(rows.subjects[rows.target == k])) for k, label in enumerate(champion.manifest.task.classes)}
        said = _SAID[kind].format(parent=self.parent[:12], people=sum(people.values()))
        evaluation = EvaluationOptions(replicates=REPLICATES, workers=how.workers)
        card, _ = card_of(training, self.table, name=self.name, version=self.version, statement=said, options=evaluation)
        model = training.model
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "bundle"
            software = software_versions()
            digest = save(
                training, folder, name=self.name, version=self.version, statement=card.statement, card=card.to_json(), software=software, key=self.key
            )
            before = frozenset() if kind == "retrained" else members_in(registry, self.parent)
            tags = before | {registry.tag(subject) for subject in np.unique(rows.subjects).tolist()}
            private = {MEMBERS: listed(tags)}
            if updated.memory is not None:
                margins = updated.margins
                keep = how.keep_contributions and margins is not None
                private = _private(registry, model, updated.memory.of(digest), rows, margins, before, keep_contributions=keep)
            record = Record.of(
                read_bundle(folder),
                change=kind,
                parent=self.parent,
                cohort_digest=training.cohort_digest,
                subjects=people,
                recordings=len(rows.target),
                details=details,
                plan=self.plan.digest,
                because=how.trigger,
            )
            registry.add(folder, record, private=private)
        propose(registry, self.name, digest, self.plan, recorder=self.recorder, reason=how.trigger)
        return digest, card

    def _check_new_people(self, rows: Rows) -> None:
        assert self.parent is not None
        known = members_in(self.registry, self.parent)
        again = sum(self.registry.tag(subject) in known for subject in np.unique(rows.subjects).tolist()) if known else 0
        if again:
            raise TrainingError(f"{again} people of the table are known to the champion already; an update hears new people only.")

    def _planned(self, kind: Kind, rows: Rows, step: Step | None) -> Change:
        """Return the change as the registry's record will say it, before there is one."""
        champion, how = self.champion, self.how
        weight = how.unlabelled_weight if kind == "updated" else None
        return Change(
            kind=kind,
            name=self.name,
            task=champion.manifest.task.name,
            parent=self.parent,
            head=champion.manifest.head,
            features_same=set(champion.manifest.features) <= set(self.table.feature_names),
            extractors_same=all(self.table.extractors.get(each) == known for each, known in champion.manifest.extractors.items()),
            subjects={label: len(np.unique(rows.subjects[rows.target == k])) for k, label in enumerate(champion.manifest.task.classes)},
            forgetting=how.options.forgetting if kind != "retrained" else None,
            unlabelled_weight=weight,
            step=None if step == "none" else step,
            trigger=how.trigger,
        )


def options_of(champion: VerifiedBundle, card: Card) -> TrainingOptions:
    """Return how a champion was trained, as its card says, to do it again."""
    how = card.training.options
    head = card.training.head
    return TrainingOptions(
        head=head,
        fusion=how.fusion,
        split=how.split,
        coverage=how.coverage,
        refits=how.refits,
        without=how.without,
        use_baseline=champion.manifest.uses_baseline,
        seed=how.seed,
    )


def memory_in(registry: Registry, digest: str) -> Memory | None:
    """Return what the registry keeps of a bundle's data; None where it keeps nothing."""
    content = registry.private(digest, MEMORY)
    return None if content is None else Memory.from_bytes(content)


def members_in(registry: Registry, digest: str) -> frozenset[str]:
    """Return the tags of everybody whom a bundle, or one that it came from, learned from."""
    return frozenset(members_of(registry, [digest]).of.get(digest, frozenset()))


def _private(
    registry: Registry, model: TrainedModel, memory: Memory, rows: Rows, margins: Array | None, before: frozenset[str], *, keep_contributions: bool
) -> dict[str, bytes]:
    tags = [registry.tag(subject) for subject in rows.subjects.tolist()]
    kept = {MEMORY: memory.to_bytes(), MEMBERS: listed(before | set(tags))}
    if keep_contributions:
        if model.interpretable is not None:
            raise InvalidValueError("--keep-contributions", "for a model with embeddings", "one without: it is trained again to forget a person")
        kept[CONTRIBUTIONS] = Contributions.of(model, memory, rows, tags, margins).to_bytes()
    return kept


def listed(tags: Iterable[str]) -> bytes:
    """Return the private file that says whom a bundle learned from."""
    return canonical_json({"tags": sorted(tags)})
