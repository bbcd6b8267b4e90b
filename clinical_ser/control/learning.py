"""A champion goes on learning, or forgets a person: the work between the registry, the plan and `continual/`.

The one idea: whatever comes out is a candidate. It lies in the registry with its parent, its counts and what the next update needs, and answers
nothing before the gate and the signatures.
"""

import tempfile
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self

import numpy as np
from threadpoolctl import threadpool_limits

from clinical_ser.audit.answering import Recorder
from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.continual.memory import Answers, Memory, memory_of
from clinical_ser.continual.recalibration import Justified, Step, justified, recalibrate
from clinical_ser.continual.self_training import Intake, update_with_unlabelled
from clinical_ser.continual.unlearning import Contributions
from clinical_ser.continual.updating import Updated, UpdateOptions, check_measured_alike, rows_for, update
from clinical_ser.control.parts import ChangePlan
from clinical_ser.control.plan import Change, check_change, require_filled_in
from clinical_ser.control.promotion import MEMBERS, may, propose
from clinical_ser.control.site_figures import table_digest
from clinical_ser.errors import InvalidValueError, OutsidePlanError, RegistryError, TrainingError
from clinical_ser.evaluation.card import Card
from clinical_ser.evaluation.evaluating import EvaluationOptions
from clinical_ser.evaluation.release import REPLICATES, card_of
from clinical_ser.evaluation.software import software_versions
from clinical_ser.models.bundle import VerifiedBundle, read_bundle
from clinical_ser.models.rows import Rows, select_rows
from clinical_ser.models.saving import save
from clinical_ser.models.signing import SigningKey
from clinical_ser.models.strict_json import StrictJsonError, canonical_json, parse_canonical_object
from clinical_ser.models.trained import TrainedModel
from clinical_ser.models.training import Training, TrainingOptions, cohort_digest, train
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
    displaced: str | None = None
    """The challenger before, which is none any more, with its time in the shadow."""


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
    if record.parent is not None or record.change not in {"trained", "imported"}:
        raise InvalidValueError(
            "--table", "for a bundle that came of an update", "one that was trained in one go: what others taught it is not in a table"
        )
    model = TrainedModel.from_bundle(read)
    check_measured_alike(model, table)
    rows = select_rows(table, model.task, model.features, use_baseline=False, used_as="learned from").rows
    if cohort_digest(rows.frame["recording"], rows.target) != read.manifest.cohort_digest:
        raise InvalidValueError("--table", "a table that this model was not trained on", "the very table that `train` was given")
    check_not_forgotten(registry, tags_of(registry, rows))
    # Trained once more as its card says, so that what was said out of fold is what threshold and prediction sets were made of.
    options = replace(options_of(read, Card.from_json(read.files["card.json"])), refits=2)
    answers = _answers(train(table, model.task, options), rows)
    with threadpool_limits(limits=1):
        memory = memory_of(model, rows, answers).of(read.digest)
        private = _private(registry, model, memory, rows, answers, Heard.nobody(), keep_contributions=keep_contributions)
    return registry.add(bundle, record, private=private)


def _answers(training: Training, rows: Rows) -> Answers | None:
    """Return what a training run said out of fold of all its rows; None where a split judged some of them only."""
    if training.margins is None or len(training.out_of_fold) != len(rows.target):
        return None
    if training.out_of_fold["recording"].tolist() != rows.frame["recording"].tolist():
        return None
    frame, classes = training.out_of_fold, training.model.task.classes
    if training.model.binary:
        return Answers(training.margins, frame["log_odds"].to_numpy(np.float64))
    p = frame[[f"probability.{label}" for label in classes]].to_numpy(np.float64)
    return Answers(training.margins, np.log(np.maximum(p, 1e-12)))


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
        require_filled_in(self.plan)
        if (unlabelled is None) != (how.unlabelled_weight is None):
            raise InvalidValueError("unlabelled", "a table without a weight, or a weight without a table", "both, or neither")
        if self.parent is None:
            raise RegistryError(f"Nothing answers as {self.name!r}: `model promote --first` lets a first bundle answer.")
        if how.keep_contributions and TrainedModel.from_bundle(self.champion).interpretable is not None:
            raise InvalidValueError("--keep-contributions", "for a model with embeddings", "one without: it is trained again to forget a person")
        self._check_not_a_holdout()
        if how.method == "retrain":
            return self._retrained()
        model, memory = TrainedModel.from_bundle(self.champion), memory_in(self.registry, self.parent)
        # The plan's least numbers are asked first, and our own after them: people are collected once.
        rows = rows_for(model, self.table, least=0).rows
        self._check_new_people(rows)
        found, step = self._step(model, memory, rows)
        if step == "none":
            return Learned(None, None, found, None, None)
        kind: Kind = "updated" if step == "full" else "recalibrated"
        may(self.registry, self.name, self._planned(kind, rows, step), self.plan, recorder=self.recorder)
        intake = None
        if step != "full":
            updated = recalibrate(model, memory, self.table, step, self._options)
        elif memory is None:
            raise RegistryError(NO_MEMORY)
        elif unlabelled is not None and how.unlabelled_weight is not None:
            self._check_new_people(unlabelled)
            updated, intake = update_with_unlabelled(model, memory, self.table, unlabelled, how.unlabelled_weight, self._options)
        else:
            updated = update(model, memory, self.table, self._options)
        details: dict[str, float | int | str | bool] = {"step": step, "forgetting": how.options.forgetting, "seed": how.options.seed}
        if intake is not None:
            details |= {"unlabelled_weight": intake.weight if intake.used else 0.0, "unlabelled_offered": intake.offered}
        before = self.registry.pointers(self.name).challenger
        heard = intake.subjects if intake is not None and intake.used else ()
        digest, card = self._kept(updated, kind, rows, details, heard)
        return Learned(digest, kind, found, intake, card, before)

    @property
    def parent(self) -> str | None:
        """Return the champion's digest."""
        return self.registry.pointers(self.name).champion

    @property
    def champion(self) -> VerifiedBundle:
        """Return the champion."""
        assert self.parent is not None
        return self.registry.bundle(self.parent)

    def _step(self, model: TrainedModel, memory: Memory | None, rows: Rows) -> tuple[Justified | None, Step]:
        how = self.how
        if how.method == "update":
            return None, "full"
        if how.step is not None:
            return None, how.step
        # Before any work: what the plan lets happen. Where it covers no update, none is tried.
        update_too = how.method == "justified" and memory is not None and self._covers("updated", rows, "full")
        if not update_too:
            may(self.registry, self.name, self._planned("recalibrated", rows, "intercept"), self.plan, recorder=self.recorder)
        found = justified(model, memory if update_too else None, self.table, self._options)
        return found, found.step

    def _covers(self, kind: Kind, rows: Rows, step: Step) -> bool:
        try:
            check_change(self.plan, self._planned(kind, rows, step), on=datetime.now(UTC).date())
        except OutsidePlanError:
            return False
        return True

    @property
    def _options(self) -> UpdateOptions:
        """Return the options with draws that nobody outside the registry can repeat."""
        return replace(self.how.options, secret=self.registry.secret(f"update {self.parent} {self.how.options.seed}"))

    def _retrained(self) -> Learned:
        """Train again on all recordings, as the champion was trained."""
        champion = self.champion
        options = options_of(champion, Card.from_json(champion.files["card.json"]))
        task = champion.manifest.task
        rows = select_rows(self.table, task, (), use_baseline=options.use_baseline, used_as="learned from").rows
        check_not_forgotten(self.registry, tags_of(self.registry, rows))
        may(self.registry, self.name, self._planned("retrained", rows, None), self.plan, recorder=self.recorder)
        training = train(self.table, task, options)
        digest, card = self._kept(Updated(training, None), "retrained", rows, {"seed": options.seed})
        return Learned(digest, "retrained", None, None, card)

    def _kept(
        self, updated: Updated, kind: Kind, rows: Rows, details: dict[str, float | int | str | bool], without_label: Sequence[str] = ()
    ) -> tuple[str, Card]:
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
            before = Heard.nobody() if kind == "retrained" else Heard.by(registry, self.parent)
            before = before.and_(frozenset(map(registry.tag, without_label)))
            private = {MEMBERS: before.and_(tags_of(registry, rows)).to_bytes()}
            if updated.memory is not None:
                # Of a recalibration nothing is kept by person: coefficients learned nothing.
                keep = how.keep_contributions and updated.answers is not None
                private = _private(registry, model, updated.memory.of(digest), rows, updated.answers, before, keep_contributions=keep)
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
            if digest in registry.digests():
                # The same people and draws give the same bundle: made before, and withdrawn perhaps.
                registry.add(folder, registry.record(digest), private=private)
            else:
                registry.add(folder, record, private=private)
        propose(registry, self.name, digest, self.plan, recorder=self.recorder, reason=how.trigger)
        return digest, card

    def _check_not_a_holdout(self) -> None:
        digest = table_digest(self.table)
        for holdout in self.plan.holdout:
            if holdout.sha256 == digest:
                raise TrainingError(f"The table is the frozen holdout of site {holdout.site!r}: nothing learns from it, or it would test nothing.")

    def _check_new_people(self, rows: Rows | FeatureTable) -> None:
        assert self.parent is not None
        tags = tags_of(self.registry, rows)
        if again := len(tags & Heard.by(self.registry, self.parent).tags):
            raise TrainingError(f"{again} people of the table are known to the champion already; an update hears new people only.")
        check_not_forgotten(self.registry, tags)

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


@dataclass(frozen=True)
class Heard:
    """Whom a bundle, or one that it came from, learned from."""

    tags: frozenset[str]
    complete: bool
    """Whether they are all: not where somewhere up the line nobody knows."""

    @classmethod
    def nobody(cls) -> Self:
        """Return that nobody was heard yet."""
        return cls(frozenset(), complete=True)

    @classmethod
    def by(cls, registry: Registry, digest: str) -> Self:
        """Read what the registry keeps of a bundle; RegistryError where that is damaged."""
        content = registry.private(digest, MEMBERS)
        if content is None:
            return cls(frozenset(), complete=False)
        try:
            found = parse_canonical_object(content)
            tags, complete = found["tags"], found["complete"]
        except (StrictJsonError, KeyError):
            tags, complete = None, None
        if not isinstance(tags, list) or not isinstance(complete, bool):
            raise RegistryError(f"The list of people of bundle {digest[:12]} is damaged.")
        return cls(frozenset(map(str, tags)), complete)

    def and_(self, tags: AbstractSet[str]) -> Self:
        """Return these and others."""
        return replace(self, tags=self.tags | tags)

    def without(self, tags: AbstractSet[str]) -> Self:
        """Return these less others."""
        return replace(self, tags=self.tags - tags)

    def to_bytes(self) -> bytes:
        """Return the private file that says so."""
        return canonical_json({"tags": sorted(self.tags), "complete": self.complete})


def tags_of(registry: Registry, rows: Rows | FeatureTable) -> frozenset[str]:
    """Return the tags of the people of some rows."""
    return frozenset(map(registry.tag, np.unique(rows.subjects).tolist()))


def check_not_forgotten(registry: Registry, tags: AbstractSet[str]) -> None:
    """Raise TrainingError where somebody is to be learned from who was forgotten."""
    if n := len(tags & registry.forgotten()):
        raise TrainingError(f"{n} people of the table were forgotten (`registry forget`); take their rows out of it.")


def _private(
    registry: Registry, model: TrainedModel, memory: Memory, rows: Rows, answers: Answers | None, before: Heard, *, keep_contributions: bool
) -> dict[str, bytes]:
    tags = [registry.tag(subject) for subject in rows.subjects.tolist()]
    kept = {MEMORY: memory.to_bytes(), MEMBERS: before.and_(frozenset(tags)).to_bytes()}
    if keep_contributions:
        if model.interpretable is not None:
            raise InvalidValueError("--keep-contributions", "for a model with embeddings", "one without: it is trained again to forget a person")
        kept[CONTRIBUTIONS] = Contributions.of(model, memory, rows, tags, answers).to_bytes()
    return kept
