"""A champion learns from new recordings alone: what it knows already comes from its memory.

The one idea: an update is a training whose prior is what the old data said. The same steps as `models.training`, in the same order, out of fold by
people; only that each step starts from the memory's part of it, and gives the new memory's.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from clinical_ser.cohorts.baseline import marked
from clinical_ser.cohorts.splits import Fold, check_fold, group_k_fold
from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.continual.affine import calibrate
from clinical_ser.continual.linear import Loss, Rows, coordinates_of, head_at
from clinical_ser.continual.memory import Answers, Memory, linear_parts, part_columns, prior_of, prior_offset, weights_of
from clinical_ser.continual.posterior import TOLERANCE, Array, Posterior, minimise
from clinical_ser.errors import InvalidValueError, TrainingError
from clinical_ser.models.background import Background, Backgrounds
from clinical_ser.models.binned import Binned
from clinical_ser.models.boosted_head import BoostedHead
from clinical_ser.models.conformal import ConformalSets
from clinical_ser.models.fused_head import FusedHead
from clinical_ser.models.heads import Head, probabilities, with_margins
from clinical_ser.models.interpretable import EMBEDDING, reproduction
from clinical_ser.models.linear_head import LinearHead
from clinical_ser.models.operating_point import OperatingPoint
from clinical_ser.models.rounding import rounded
from clinical_ser.models.rows import Selection, select_rows
from clinical_ser.models.trained import Calibrator, Refit, TrainedModel, at_answering_shares
from clinical_ser.models.training import (
    MINIMUM_SUBJECTS_PER_CLASS,
    Training,
    TrainingOptions,
    cohort_digest,
    out_of_fold_frame,
    rows_of_draws,
    warnings_of,
)
from clinical_ser.models.weights import subject_weights

ROUGHLY = 1e-3
"""Newton decrement at which a bootstrap refit is near enough: a thousandth of its spread."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class UpdateOptions:
    """How to update; everything that changes the model is here."""

    forgetting: float = 1.0
    """What a person of then is worth in people of now: 1 forgets nothing."""
    folds: int = 5
    seed: int = 0
    secret: bytes | None = None
    """Seeds the draws that stand for other old people; the same gives the same model. None: a new one each time. Whoever knew it could read the
    memory off a published model."""

    def __post_init__(self) -> None:
        if not 0 < self.forgetting <= 1:
            raise InvalidValueError("forgetting", self.forgetting, "a factor above 0 and up to 1, where 1 forgets nothing")
        if not 2 <= self.folds <= 20:
            raise InvalidValueError("folds", self.folds, "2 to 20")
        if not 0 <= self.seed < 2**32:
            raise InvalidValueError("seed", self.seed, "a whole number from 0 to 2**32 - 1")


@dataclass(frozen=True, eq=False)
class Unlabelled:
    """Recordings without labels that may be heard too; see `continual.self_training`."""

    X: Array
    """Shape (rows, features), in the order of the model's features."""
    subjects: NDArray[np.str_]
    """Shape (rows,)."""
    weight: float
    """Of all of them together, as a share of the labelled recordings'."""


@dataclass(frozen=True, eq=False)
class Updated:
    """What came of an update."""

    training: Training
    """The new model, and what it says out of fold of the new recordings."""
    memory: Memory | None
    """For the next one; None where there was none to begin with."""
    answers: Answers | None = None
    """What was said of the new rows out of fold; None where coefficients learned nothing."""


def update(
    model: TrainedModel,
    memory: Memory,
    table: FeatureTable,
    options: UpdateOptions | None = None,
    *,
    unlabelled: Unlabelled | None = None,
    progress: Progress | None = None,
) -> Updated:
    """Update a model with a linear head, or one fused of linear heads, from new recordings and its memory.

    The scales of features, the strength and the reference groups stay the champion's. With `forgetting` 1 the coefficients are those of training on
    all data as far as the old data's log-likelihood is quadratic between the two answers.

    Parameters
    ----------
    model, memory
        The champion's.
    table
        New recordings with labels, measured with the champion's extractors; whoever is in it must not be in the memory already.
    options
        See `UpdateOptions`.
    unlabelled
        Recordings without labels that are heard with less weight; whether they help is for `self_training.update_with_unlabelled` to say.
    progress
        Called with (steps done, steps in all).

    Raises
    ------
    TrainingError
        The head has no memory, the memory is another model's, there are fewer than `MINIMUM_SUBJECTS_PER_CLASS` new subjects of a class, or the
        features were measured otherwise.
    ManifestError
        The table has no labels for the task.
    """
    chosen, report = options or UpdateOptions(), progress or (lambda _done, _total: None)
    memory.check(model)
    selected = rows_for(model, table)
    with threadpool_limits(limits=1):
        return _with_twin(model, memory, table, selected, chosen, unlabelled, report)


def rows_for(model: TrainedModel, table: FeatureTable, *, least: int = MINIMUM_SUBJECTS_PER_CLASS) -> Selection:
    """Return the rows of a table that a champion can go on learning from.

    Raises
    ------
    TrainingError
        Extractors differ, or a class has too few new subjects.
    """
    if model.uses_baseline:
        raise TrainingError("A model that takes each person's baseline is not updated: train it again.")
    check_measured_alike(model, table)
    selected = select_rows(table, model.task, model.features, use_baseline=False, used_as="learned from")
    if selected.task.classes != model.task.classes:
        raise TrainingError(f"The new labels are {list(selected.task.classes)}, and the model knows {list(model.task.classes)}.")
    rows = selected.rows
    people = {label: len(np.unique(rows.subjects[rows.target == k])) for k, label in enumerate(model.task.classes)}
    if few := {label: n for label, n in people.items() if n < least}:
        raise TrainingError(f"Each class needs at least {least} new subjects with a usable recording; there are {few}.")
    return selected


def check_measured_alike(model: TrainedModel, table: FeatureTable) -> None:
    """Raise TrainingError unless a table has the model's features, measured by the same code."""
    absent = sorted(set(model.features) - set(table.feature_names))
    others = sorted(name for name, wanted in model.extractors.items() if table.extractors.get(name) != wanted)
    if absent or others:
        what = f"feature sets measured by other code: {others}" if others else f"{len(absent)} features that are missing, such as {absent[0]!r}"
        raise TrainingError(f"The table does not fit the model: {what}. Extract it with the versions that the model was trained with.")


def _with_twin(
    model: TrainedModel,
    memory: Memory,
    table: FeatureTable,
    selected: Selection,
    options: UpdateOptions,
    unlabelled: Unlabelled | None,
    report: Progress,
) -> Updated:
    whole = _Update(model, memory, table, selected, options, unlabelled, report).run()
    if model.interpretable is None or memory.interpretable is None:
        return whole
    # The twin without embeddings learns from the same people in the same folds, so that it can always be asked.
    rows = selected.rows
    fewer = replace(selected, rows=rows.of_features(model.interpretable.features))
    own = [model.features.index(name) for name in model.interpretable.features]
    plain = None if unlabelled is None else replace(unlabelled, X=unlabelled.X[:, own])
    twin = _Update(model.interpretable, memory.interpretable, table, fewer, options, plain, report).run()
    updated = whole.training.model
    Z = updated.preprocessor.transform(rows.X)
    added = updated.head.family_margins(Z)[:, updated.head.families_.index(EMBEDDING)]
    reproduced = reproduction(twin.training.model.preprocessor.transform(fewer.rows.X), added, rows.subjects, seed=options.seed)
    joined = replace(updated, interpretable=twin.training.model, reproduced=reproduced)
    known = None if whole.memory is None else replace(whole.memory, interpretable=twin.memory)
    return replace(whole, training=replace(whole.training, model=joined), memory=known)


def training_of(
    model: TrainedModel, selected: Selection, table: FeatureTable, out_of_fold: pd.DataFrame, *, folds: int, seed: int, warnings: tuple[str, ...]
) -> Training:
    """Return what came of new rows as a training run, so that it is evaluated, described and saved like one."""
    rows = selected.rows
    return Training(
        model=model,
        out_of_fold=out_of_fold,
        refused=selected.refused,
        gate_failures=selected.gate_failures,
        counts=selected.counts,
        problems=selected.problems,
        warnings=warnings,
        cohort_digest=cohort_digest(rows.frame["recording"], rows.target),
        subjects_learned_from=len(np.unique(rows.subjects)),
        simulated=bool(marked(table.frame, "simulated").any()),
        options=TrainingOptions(
            head=BoostedHead.kind if isinstance(model.head, BoostedHead) else LinearHead.kind,
            split=folds,
            coverage=model.conformal.coverage,
            refits=len(model.refits),
            seed=seed,
        ),
    )


class _Update:
    """One update of one model."""

    def __init__(
        self,
        model: TrainedModel,
        memory: Memory,
        table: FeatureTable,
        selected: Selection,
        options: UpdateOptions,
        unlabelled: Unlabelled | None,
        report: Progress,
    ):
        self.model, self.table, self.selected, self.options, self._report = model, table, selected, options, report
        self.known = memory.discounted(options.forgetting)
        self.rows, self.task = selected.rows, model.task
        self.classes = len(model.task.classes)
        self.parts, self.columns = linear_parts(model.head), part_columns(model.head)
        self.totals = self.known.class_totals + np.bincount(self.rows.target, minlength=self.classes)
        person = np.unique(self.rows.subjects, return_inverse=True)[1]
        self.heard = Rows(model.preprocessor.transform(self.rows.X), self.rows.target, self._weights(self.rows.target), person)
        self.unlabelled = unlabelled
        self.silent = None if unlabelled is None else model.preprocessor.transform(unlabelled.X)
        self.people = subject_weights(self.rows.subjects, len(self.rows.target))

    def run(self) -> Updated:
        """Go through it, step by step."""
        options, rows = self.options, self.rows
        folds = self._folds()
        total = len(folds) + 1 + len(self.model.refits)
        margins, fold_of = np.empty(0), np.full(len(rows.target), -1)
        for i, fold in enumerate(folds):
            one, _ = self._head(self.known.heads, fold.train)
            out = one.margins(self.heard.Z[fold.test])
            margins = np.full((len(rows.target), *out.shape[1:]), np.nan) if not i else margins
            margins[fold.test], fold_of[fold.test] = out, i
            self._report(i + 1, total)
        everyone = np.arange(len(rows.target))
        shares = self._shares(self.people)
        log_odds = np.empty_like(margins)
        for i in np.unique(fold_of):
            here, others = fold_of == i, np.flatnonzero(fold_of != i)
            log_odds[here] = at_answering_shares(self._calibrator(margins, others)[0].apply(margins[here]), shares)
        calibrator, calibrated = self._calibrator(margins, everyone)
        head, posteriors = self._head(self.known.heads, everyone)
        self._report(len(folds) + 1, total)
        refits = self._refits(margins, lambda i: self._report(len(folds) + 1 + i, total))
        old = self.known.scores
        if self.model.binary:
            # The same old margins, by the new map.
            scale = calibrator.scale_ / self.model.calibrator.scale_
            old = old.moved(scale, float(calibrator.offset_ - scale * self.model.calibrator.offset_))
        model = replace(
            self.model,
            head=head,
            calibrator=calibrator,
            conformal=(old + self._binned(log_odds, everyone)).conformal(self.model.conformal.coverage),
            operating_point=self._operating_point(old + self._binned(log_odds, everyone)),
            refits=refits,
            class_shares=shares,
            backgrounds=backgrounds_of(self.model, head, refits, self.heard.Z[rows.target == 0] if self.model.binary else self.heard.Z),
            interpretable=None,
            reproduced=None,
        )

        def judge(others: NDArray[np.intp]) -> tuple[ConformalSets, OperatingPoint | None]:
            binned = old + self._binned(log_odds, others)
            return binned.conformal(self.model.conformal.coverage), self._operating_point(binned)

        frame = out_of_fold_frame(rows, log_odds, fold_of, self.task, judge)
        training = training_of(model, self.selected, self.table, frame, folds=len(folds), seed=options.seed, warnings=self._warnings(model))
        memory = Memory(
            bundle=None,
            features=self.known.features,
            classes=self.known.classes,
            heads=posteriors,
            calibrator=calibrated,
            class_totals=self.totals,
            people=self.known.people + np.bincount(rows.target, self.people, minlength=self.classes),
            scores=old + self._binned(log_odds, everyone),
        )
        return Updated(training, memory, Answers(margins, log_odds))

    def _weights(self, target: NDArray[np.int64]) -> Array:
        return weights_of(target, self.totals, balanced=not self.model.binary)

    def _guessed(self, head: Head, heard: Rows) -> Rows | None:
        """Return what a head believes of recordings without labels, where its prediction set holds one class."""
        if self.silent is None or self.unlabelled is None:
            return None
        log_odds = at_answering_shares(self.model.calibrator.apply(head.margins(self.silent)), self.model.class_shares)
        p = probabilities(log_odds)
        sure = self.model.conformal.predict(p).sum(axis=1) == 1
        if not sure.any():
            return None
        target = p[sure].argmax(axis=1)
        weight = self._weights(target)
        each = min(1.0, self.unlabelled.weight * float(heard.weight.sum() / weight.sum()))
        return Rows(self.silent[sure], target, each * weight, np.unique(self.unlabelled.subjects[sure], return_inverse=True)[1])

    def _folds(self) -> Sequence[Fold]:
        rows = self.rows
        per_class = [len(np.unique(rows.subjects[rows.target == k])) for k in range(self.classes)]
        folds = group_k_fold(rows.subjects, rows.target, k=min(self.options.folds, *per_class), seed=self.options.seed)
        for fold in folds:
            check_fold(fold, rows.subjects, rows.frame["recording"].to_numpy())
        return folds

    def _head(self, priors: Sequence[Posterior], index: NDArray[np.intp], *, tolerance: float = TOLERANCE) -> tuple[Head, tuple[Posterior, ...]]:
        """Fit the head to some rows under priors; start where the champion's stands."""
        heard = self.heard.take(index)
        head, posteriors = self._fitted(priors, heard, tolerance)
        guessed = self._guessed(head, heard)
        return (head, posteriors) if guessed is None else self._fitted(priors, heard.and_(guessed), tolerance)

    def _fitted(self, priors: Sequence[Posterior], heard: Rows, tolerance: float) -> tuple[Head, tuple[Posterior, ...]]:
        balanced = not self.model.binary
        found, posteriors = [], []
        for part, columns, prior in zip(self.parts, self.columns, priors, strict=True):
            start = coordinates_of(part, prior_of(part, self.model.head, self.known.class_totals, balanced=balanced))
            own = replace(heard, Z=heard.Z[:, columns])
            at, posterior = minimise(Loss(own, self.classes), prior, start, tolerance=tolerance)
            found.append(head_at(part, at, prior_of(part, self.model.head, self.totals, balanced=balanced)))
            posteriors.append(posterior.heard(prior, Loss(own, self.classes).scatter(at)))
        return self._joined(found), tuple(posteriors)

    def _joined(self, parts: Sequence[LinearHead]) -> Head:
        if not isinstance(self.model.head, FusedHead):
            return parts[0]
        return fused_of(self.model.head, parts, self.totals)

    def _calibrator(self, margins: Array, index: NDArray[np.intp], prior: Posterior | None = None) -> tuple[Calibrator, Posterior]:
        prior = self.known.calibrator if prior is None else prior
        return calibrate(margins[index], self.rows.target[index], subject_weights(self.rows.subjects[index], len(index)), prior)

    def _shares(self, weight: Array) -> tuple[float, ...]:
        people = self.known.people + np.bincount(self.rows.target, weight, minlength=self.classes)
        return tuple((people / people.sum()).tolist())

    def _binned(self, log_odds: Array, index: NDArray[np.intp]) -> Binned:
        return Binned.of(log_odds[index], self.rows.target[index], self.rows.subjects[index], self.classes)

    def _operating_point(self, binned: Binned) -> OperatingPoint | None:
        return binned.operating_point(self.task.target_sensitivity) if self.model.binary else None

    def _refits(self, margins: Array, report: Callable[[int], None]) -> tuple[Refit, ...]:
        """Learn again from bootstrap samples of the new people, and from priors as other old people would have made them."""
        rows = self.rows
        people = np.unique(rows.subjects)
        rng, secret = np.random.default_rng([self.options.seed, 1]), secret_draws(self.options.secret)
        refits: list[Refit] = []
        while len(refits) < len(self.model.refits):
            index, draw = rows_of_draws(rows.subjects, people[rng.integers(len(people), size=len(people))])
            priors = [prior.drawn(secret) for prior in self.known.heads]
            again, _ = self._head(priors, index, tolerance=ROUGHLY)
            # A subject drawn twice is two people here, or the calibrator would weigh them as one.
            weight = subject_weights(draw.astype(str), len(draw))
            calibrator, _ = calibrate(margins[index], rows.target[index], weight, self.known.calibrator.drawn(secret))
            counted = self.known.people + np.bincount(rows.target[index], weight, minlength=self.classes)
            refits.append(Refit(again, calibrator, tuple((counted / counted.sum()).tolist())))
            report(len(refits))
        return tuple(refits)

    def _warnings(self, model: TrainedModel) -> tuple[str, ...]:
        old, new = float(self.known.people.sum()), len(np.unique(self.rows.subjects))
        learned = f"Updated without its old data: what {old:.0f} people taught before, and {new} new ones; figures are of the new ones."
        kept = "Reference groups and the spread of what families add in them are those of the model before."
        return (learned, kept, *warnings_of(self.rows, self.task, model.conformal))


def secret_draws(secret: bytes | None) -> np.random.Generator:
    """Return draws that only whoever has the secret can repeat; nobody where there is none."""
    key = hashlib.sha256(b"drawn posteriors\n" + (os.urandom(32) if secret is None else secret)).digest()
    return np.random.default_rng(int.from_bytes(key, "big"))


def fused_of(like: FusedHead, parts: Sequence[LinearHead], totals: Array) -> FusedHead:
    """Return a fused head with other parts, learned from classes of these totals."""
    head = like.settled()
    head.classes_, head.parts, head.weights_ = like.classes_, tuple(parts), like.weights_
    # The parts of two classes each stand for the prior, which counts once; balanced ones for none, and the whole gets it at the end.
    prior = prior_offset(totals)
    inside = prior if len(like.classes_) == 2 else np.zeros(len(like.classes_))
    intercepts = np.stack([part.intercept_ for part in parts])
    joint = inside + np.tensordot(like.weights_, intercepts - inside, 1)
    head.intercept_ = np.asarray(joint if len(like.classes_) == 2 else joint + prior)
    return head


def backgrounds_of(model: TrainedModel, head: Head, refits: Sequence[Refit], Z: Array) -> Backgrounds:
    """Return what families add in the champion's reference groups once the coefficients are others.

    Means follow from the groups' mean features, which the bundle has; spreads change as they do among new people, shape (rows, features).
    """
    groups = []
    ratios = [_spread(one, Z) / np.maximum(_spread(model.head, Z), 1e-12) for one in (head, *(refit.head for refit in refits))]
    for group in model.backgrounds.groups:
        centre = np.array(group.z_mean)[None]
        before = with_margins(model.head.family_margins(centre))[0]
        mean = np.array(group.mean) + with_margins(head.family_margins(centre))[0] - before
        own = with_margins(head.family_margins(centre))[0]
        features = with_margins(head.feature_margins(centre))[0] - with_margins(model.head.feature_margins(centre))[0]
        moved = [mean + with_margins(refit.head.family_margins(centre))[0] - own for refit in refits]
        sd = np.array(group.sd)
        groups.append(
            Background(
                mean=_rows(mean),
                sd=_rows(sd * ratios[0]),
                correlation=group.correlation,
                refit_mean=tuple(_rows(one) for one in moved),
                refit_sd=tuple(_rows(sd * ratio) for ratio in ratios[1:]),
                features=_rows(np.array(group.features) + features),
                z_mean=group.z_mean,
            )
        )
    return Backgrounds(groups=tuple(groups))


def _spread(head: Head, Z: Array) -> Array:
    return np.asarray(with_margins(head.family_margins(Z)).std(axis=0))


def _rows(values: Array) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in rounded(values).tolist())
