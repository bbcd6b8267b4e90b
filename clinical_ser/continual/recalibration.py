"""The first and smallest answer to drift: the same coefficients, and a map of their log-odds with an intercept, or a slope too.

The one idea: each answer is tested against the larger one, on people whom the champion never heard, and the smallest that is not refused is taken
(Vergouwe et al. 2017, Stat Med 36:4529-4539: a closed testing procedure). So a model that is still right is left alone in 95 of 100 tries. Learning
everything anew is justified by what it gains on people not heard, and by nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field
from scipy.special import log_softmax
from scipy.stats import chi2, t
from threadpoolctl import threadpool_limits

from clinical_ser.cohorts.splits import group_k_fold
from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.continual.affine import WEAK, AffineLoss, affine_design, calibrator_posterior
from clinical_ser.continual.memory import Memory
from clinical_ser.continual.posterior import Array, Posterior, minimise
from clinical_ser.continual.updating import Updated, UpdateOptions, rows_for, training_of, update
from clinical_ser.errors import InvalidValueError, TrainingError
from clinical_ser.models.binned import Binned
from clinical_ser.models.calibration import MIN_SCALE, RIDGE
from clinical_ser.models.conformal import ConformalSets, subjects_needed
from clinical_ser.models.operating_point import OperatingPoint
from clinical_ser.models.rows import Rows as TableRows
from clinical_ser.models.rows import Selection
from clinical_ser.models.trained import Calibrator, Refit, TrainedModel, at_answering_shares
from clinical_ser.models.training import Training, out_of_fold_frame, rows_of_draws, warnings_of
from clinical_ser.models.weights import subject_weights
from clinical_ser.strict import Strict

Step = Literal["none", "intercept", "slope", "full"]
STEPS: tuple[Step, ...] = ("none", "intercept", "slope", "full")
"""From the smallest answer to the largest; `slope` has an intercept too, `full` is an update of all coefficients."""
LEVEL = 0.05
DOUBT = 3.0
"""Times the calibrator's own covariance: it takes the heads of the folds for the one that answers, and its ridge for knowledge. Champions of 150 and
400 people with 73 features, asked about 6,000 others, needed 3.1 and 2.6 times its variance in scale, and 1.6 and 1.3 times in offset."""


class Tried(Strict):
    """One map beside the largest."""

    step: Step
    numbers: int = Field(ge=0)
    """That it sets free."""
    log_likelihood: float
    """In nats, subjects counting once."""
    statistic: float | None
    """Twice what the largest gains on it; None for the largest."""
    p: float | None


class Gain(Strict):
    """What an update predicts better than the smaller answer, in new people whom neither heard: log-loss in nats a person, saved."""

    value: float
    low: float
    high: float
    """95 % interval over people."""
    p: float
    """One-sided: of no gain."""


class Justified(Strict):
    """Which answer people justify whom the champion never heard."""

    step: Step
    level: float
    people: dict[str, int]
    """Of each class."""
    tried: tuple[Tried, ...]
    """Maps: from these the smaller answer comes."""
    gain: Gain | None
    """Of an update on the smaller answer; None where there is no memory to update from."""


def closed_test(log_likelihoods: Mapping[Step, float], numbers: Mapping[Step, int], *, level: float = LEVEL) -> tuple[Step, tuple[Tried, ...]]:
    """Return the smallest step that the largest one does not beat, and every test.

    Parameters
    ----------
    log_likelihoods
        Of each step at its maximum, in nats, from independent people.
    numbers
        How many numbers each sets free.
    level
        Chance of an answer larger than needed.

    Examples
    --------
    >>> closed_test({"none": -60.0, "intercept": -52.1, "slope": -52.0}, {"none": 0, "intercept": 1, "slope": 2})[0]
    'intercept'
    """
    if not 0 < level < 1:
        raise InvalidValueError("level", level, "a chance strictly between 0 and 1")
    given = [step for step in STEPS if step in log_likelihoods]
    largest = given[-1]
    tried = []
    for step in given:
        gained, freedom = max(2.0 * (log_likelihoods[largest] - log_likelihoods[step]), 0.0), numbers[largest] - numbers[step]
        p = float(chi2.sf(gained, freedom)) if freedom else None
        statistic = gained if freedom else None
        tried.append(Tried(step=step, numbers=numbers[step], log_likelihood=log_likelihoods[step], statistic=statistic, p=p))
    return next(one.step for one in tried if one.p is None or one.p > level), tuple(tried)


def gain_of(saved: Array) -> Gain:
    """Judge what an update saves, shape (people,), in nats each."""
    mean, error = float(saved.mean()), float(saved.std(ddof=1) / np.sqrt(len(saved)))
    half = float(t.ppf(0.975, len(saved) - 1)) * error
    p = float(t.sf(mean / error, len(saved) - 1)) if error > 0 else 1.0
    return Gain(value=mean, low=mean - half, high=mean + half, p=p)


def justified(
    model: TrainedModel, memory: Memory | None, table: FeatureTable, options: UpdateOptions | None = None, *, level: float = LEVEL
) -> Justified:
    """Test which step new people justify.

    No champion is exactly right on the day it is released. How far off it may be is `doubt_of_map`; only what new people say beyond
    that counts as drift. An update is justified where it predicts them better out of fold than the smaller answer, with or without drift.

    Parameters
    ----------
    model, memory
        The champion, and its memory; without one, an update is not tried.
    table
        Recordings with labels of people whom it never heard.
    options
        Of the update.
    level
        Of both tests.

    Raises
    ------
    TrainingError
        The table does not fit the model, or has too few people.
    """
    chosen = options or UpdateOptions()
    rows = rows_for(model, table).rows
    with threadpool_limits(limits=1):
        step, tried = closed_test(*_answers(model, rows), level=level)
    gain = None
    if memory is not None:
        smaller = _log_odds(recalibrate(model, memory, table, step, chosen).training, model) if step != "none" else model.log_odds(rows.X)
        gain = gain_of(_saved(smaller, _log_odds(update(model, memory, table, chosen).training, model), rows))
    people = {label: len(np.unique(rows.subjects[rows.target == k])) for k, label in enumerate(model.task.classes)}
    return Justified(
        step="full" if gain is not None and gain.p < level and gain.value > 0 else step, level=level, people=people, tried=tried, gain=gain
    )


def saved_by(smaller: Training, larger: Training, model: TrainedModel, rows: TableRows) -> Array:
    """Return what one training's out-of-fold answers save on another's of the same rows, shape (people,), in nats each."""
    return _saved(_log_odds(smaller, model), _log_odds(larger, model), rows)


def _log_odds(training: Training, model: TrainedModel) -> Array:
    frame = training.out_of_fold
    if model.binary:
        return frame["log_odds"].to_numpy(np.float64)
    p = frame[[f"probability.{label}" for label in model.task.classes]].to_numpy(np.float64)
    return np.log(np.maximum(p, 1e-12))


def _saved(smaller: Array, larger: Array, rows: TableRows) -> Array:
    """Return what the larger answer saves each person, shape (people,), in nats."""
    losses = [-log_softmax(_logits(log_odds), axis=1)[np.arange(len(rows.target)), rows.target] for log_odds in (smaller, larger)]
    place = np.unique(rows.subjects, return_inverse=True)[1]
    return np.bincount(place, subject_weights(rows.subjects, len(place)) * (losses[0] - losses[1])).astype(np.float64)


def _logits(log_odds: Array) -> Array:
    return log_odds if log_odds.ndim == 2 else np.column_stack([np.zeros_like(log_odds), log_odds])


def _answers(model: TrainedModel, rows: TableRows) -> tuple[dict[Step, float], dict[Step, int]]:
    """Return the log-likelihood of each map at its maximum, and how many numbers it sets free.

    What a step leaves alone keeps the champion's own doubt as its prior. Twice the difference is then the likelihood ratio of two samples, of which
    the old one is a quadratic.
    """
    design = affine_design(_calibrated(model, rows))
    loss = AffineLoss(design, rows.target, subject_weights(rows.subjects, len(rows.target)), np.eye(design.shape[2])[0])
    doubt = doubt_of_map(model.calibrator)
    found: dict[Step, float] = {}
    for step in STEPS[:-1]:
        prior = prior_of_map(doubt, step)
        at, _ = minimise(loss, prior)
        found[step] = -loss(at)[0] - float(at @ prior.precision @ at) / 2
    # Of several classes' offsets one is what the softmax does not see.
    free = loss.size - 1 - (not model.binary)
    return found, {"none": 0, "intercept": free, "slope": free + 1}


def prior_of_map(doubt: Array, step: Step) -> Posterior:
    """Return the prior of (scale - 1, offsets) under a step: what it leaves alone is as uncertain as the champion's own calibration."""
    held = {"none": len(doubt), "intercept": 1}.get(step, 0)
    precision = np.zeros_like(doubt)
    precision[:held, :held] = np.linalg.inv(doubt[:held, :held])
    return Posterior(precision, np.zeros(len(doubt)), np.full(len(doubt), WEAK))


def doubt_of_map(calibrator: Calibrator) -> Array:
    """Return the covariance of (scale, offsets) that a champion's own calibration leaves open on the day of its release (`DOUBT`)."""
    size = 1 + np.size(calibrator.offset_)
    back = np.eye(size)
    back[0, 0], back[1:, 0] = 1.0 / calibrator.scale_, -np.atleast_1d(calibrator.offset_) / calibrator.scale_
    return np.asarray(DOUBT * back @ calibrator.covariance_ @ back.T)


def _calibrated(model: TrainedModel, rows: TableRows) -> Array:
    """Return log-odds at the training shares: what a map is applied to before anything is restated."""
    return model.calibrator.apply(model.head.margins(model.preprocessor.transform(rows.X)))


@dataclass(frozen=True, eq=False)
class LogOddsMap:
    """Calibrated log-odds to what new people say they are."""

    scale: float
    offset: Array
    """Shape () for two classes, (classes,) for more."""
    covariance: Array
    """Of (scale, offsets)."""

    def apply(self, calibrated: Array) -> Array:
        """Map log-odds at the training shares, shape (rows,) or (rows, classes)."""
        return np.asarray(self.scale * calibrated + self.offset)

    def after(self, calibrator: Calibrator, centre: ArrayLike = 0.0) -> Calibrator:
        """Return calibrator and map as one calibrator.

        The map was fitted to what the calibrator says, so the calibrator's errors are in it already, with the other sign. What is left is the map's
        own doubt; and where the map has no scale, that of the calibrator's, turning about the new people's mean margin `centre`.
        """
        found = type(calibrator)()
        found.scale_ = max(self.scale * calibrator.scale_, MIN_SCALE)
        moved = self.scale * np.atleast_1d(calibrator.offset_) + np.atleast_1d(self.offset)
        found.offset_ = float(moved[0]) if np.ndim(calibrator.offset_) == 0 else moved
        size = 1 + len(moved)
        of_map = np.eye(size)
        of_map[0, 0], of_map[1:, 0] = calibrator.scale_, np.atleast_1d(calibrator.offset_)
        covariance = of_map @ self.covariance @ of_map.T
        if not self.covariance[0, 0]:
            turned = np.append(1.0, -np.broadcast_to(np.asarray(centre, dtype=np.float64), moved.shape))
            covariance = covariance + calibrator.covariance_[0, 0] * np.outer(turned, turned)
        found.covariance_ = (covariance + covariance.T) / 2
        return found


def recalibrate(
    model: TrainedModel,
    memory: Memory | None,
    table: FeatureTable,
    step: Step,
    options: UpdateOptions | None = None,
) -> Updated:
    """Recalibrate a champion of any head: its coefficients, its families' contributions and its order of people stay.

    Parameters
    ----------
    model
        The champion.
    memory
        The champion's; None where it is elsewhere, as of a model that came from others. Prediction sets and threshold are then made of the new people
        alone, of whom there have to be enough.
    table
        Recordings with labels of people whom it never heard.
    step
        `intercept` or `slope`; see `justified`.
    options
        Of its `forgetting`, what the old scores count when prediction sets and threshold are made.

    Raises
    ------
    TrainingError
        The table does not fit, has too few people, or the memory is another model's.
    """
    if step not in {"intercept", "slope"}:
        raise InvalidValueError("step", step, "'intercept' or 'slope'; 'none' changes nothing, and 'full' is an update")
    chosen = options or UpdateOptions()
    if memory is not None:
        memory.check(model)
    selected = rows_for(model, table)
    with threadpool_limits(limits=1):
        whole = _Recalibration(model, memory, table, selected, step, chosen).run()
        if model.interpretable is None:
            return whole
        fewer = replace(selected, rows=selected.rows.of_features(model.interpretable.features))
        twin = _Recalibration(model.interpretable, memory.interpretable if memory else None, table, fewer, step, chosen).run()
    known = None if whole.memory is None else replace(whole.memory, interpretable=twin.memory)
    return Updated(replace(whole.training, model=replace(whole.training.model, interpretable=twin.training.model)), known)


class _Recalibration:
    """One recalibration of one model."""

    def __init__(self, model: TrainedModel, memory: Memory | None, table: FeatureTable, selected: Selection, step: Step, options: UpdateOptions):
        self.model, self.table, self.selected, self.step, self.options = model, table, selected, step, options
        self.remembered, self.known = memory, None if memory is None else memory.discounted(options.forgetting)
        self.rows, self.classes = selected.rows, len(model.task.classes)
        self.Z = model.preprocessor.transform(self.rows.X)
        self.calibrated = model.calibrator.apply(model.head.margins(self.Z))
        everyone = subject_weights(self.rows.subjects, len(self.rows.target))
        self.centre = np.average(model.head.margins(self.Z), axis=0, weights=everyone)
        needed = subjects_needed(model.conformal.coverage)
        if memory is None and (few := [n for n in self._people() if n < needed]):
            raise TrainingError(
                f"Without the model's memory prediction sets are made of new people alone: {needed} of each class are needed, there are {min(few)}."
            )

    def run(self) -> Updated:
        """Fit, judge out of fold, and put the model together."""
        model, rows, task = self.model, self.rows, self.model.task
        everyone = np.arange(len(rows.target))
        folds = group_k_fold(rows.subjects, rows.target, k=min(self.options.folds, *self._people()), seed=self.options.seed)
        log_odds, fold_of = np.empty_like(self.calibrated), np.full(len(everyone), -1)
        shares = self._shares(subject_weights(rows.subjects, len(everyone)), everyone)
        for i, fold in enumerate(folds):
            fitted = self._fit(fold.train, rows.subjects[fold.train])
            log_odds[fold.test], fold_of[fold.test] = _stated(fitted.apply(self.calibrated[fold.test]), shares), i
        found = self._fit(everyone, rows.subjects)
        old = None if self.known is None else self.known.scores.moved(found.scale, float(found.offset)) if model.binary else self.known.scores

        def judge(others: NDArray[np.intp]) -> tuple[ConformalSets, OperatingPoint | None]:
            new = Binned.of(log_odds[others], rows.target[others], rows.subjects[others], self.classes)
            both = new if old is None else old + new
            return both.conformal(model.conformal.coverage), both.operating_point(task.target_sensitivity) if model.binary else None

        sets, point = judge(everyone)
        recalibrated = replace(
            model,
            calibrator=found.after(model.calibrator, self.centre),
            conformal=sets,
            operating_point=point,
            refits=self._refits(),
            class_shares=shares,
            interpretable=None,
        )
        frame = out_of_fold_frame(rows, log_odds, fold_of, task, judge)
        said = self._warnings(sets)
        training = training_of(recalibrated, self.selected, self.table, frame, folds=len(folds), seed=self.options.seed, warnings=said)
        return Updated(training, self._memory(recalibrated, log_odds, old))

    def _memory(self, model: TrainedModel, log_odds: Array, old: Binned | None) -> Memory | None:
        if self.remembered is None or old is None:
            return None
        rows = self.rows
        weight = subject_weights(rows.subjects, len(rows.target))
        people = np.bincount(rows.target, weight, minlength=self.classes).astype(np.float64)
        return replace(
            self.remembered,
            bundle=None,
            # Coefficients have learned nothing, and so have forgotten nothing.
            calibrator=settled(calibrator_posterior(model.calibrator)),
            people=people,
            scores=old + Binned.of(log_odds, rows.target, rows.subjects, self.classes),
        )

    def _fit(self, index: NDArray[np.intp], subjects: NDArray[np.str_], calibrated: Array | None = None) -> LogOddsMap:
        design = affine_design((self.calibrated if calibrated is None else calibrated)[index])
        size = design.shape[2]
        loss = AffineLoss(design, self.rows.target[index], subject_weights(subjects, len(index)), np.eye(size)[0])
        # A ridge holds the map near the identity, as it holds a calibrator.
        if self.step == "slope":
            at, posterior = minimise(loss, Posterior.nothing(np.full(size, RIDGE)))
            theta, covariance = at + np.eye(size)[0], posterior.covariance
        else:
            at, posterior = minimise(loss.columns(list(range(1, size))), Posterior.nothing(np.full(size - 1, RIDGE)))
            theta, covariance = np.append(1.0, at), np.zeros((size, size))
            covariance[1:, 1:] = posterior.covariance
        offset = np.asarray(theta[1]) if self.model.binary else theta[1:]
        return LogOddsMap(max(float(theta[0]), MIN_SCALE), offset, covariance)

    def _refits(self) -> tuple[Refit, ...]:
        """Draw new people again for each refit of the champion, whose heads stay."""
        rows = self.rows
        people = np.unique(rows.subjects)
        rng = np.random.default_rng([self.options.seed, 1])
        refits = []
        for refit in self.model.refits:
            while True:
                index, draw = rows_of_draws(rows.subjects, people[rng.integers(len(people), size=len(people))])
                if len(np.unique(rows.target[index])) == self.classes:
                    break
            drawn = draw.astype(str)
            own = refit.calibrator.apply(refit.head.margins(self.Z))
            fitted = self._fit(index, drawn, own)
            refits.append(Refit(refit.head, fitted.after(refit.calibrator, self.centre), self._shares(subject_weights(drawn, len(index)), index)))
        return tuple(refits)

    def _people(self) -> list[int]:
        return [len(np.unique(self.rows.subjects[self.rows.target == k])) for k in range(self.classes)]

    def _shares(self, weight: Array, index: NDArray[np.intp]) -> tuple[float, ...]:
        """Return the new people's shares: the map has brought log-odds to their prevalence."""
        people = np.bincount(self.rows.target[index], weight, minlength=self.classes)
        return tuple((people / people.sum()).tolist())

    def _warnings(self, sets: ConformalSets) -> tuple[str, ...]:
        new = len(np.unique(self.rows.subjects))
        what = "intercept" if self.step == "intercept" else "intercept and slope"
        said = f"Recalibrated ({what}) on {new} new people; the coefficients are those of the model before, and figures are of the new people."
        return (said, *warnings_of(self.rows, self.model.task, sets))


def _stated(log_odds: Array, shares: tuple[float, ...]) -> Array:
    return at_answering_shares(log_odds, shares)


def settled(posterior: Posterior) -> Posterior:
    """Return a posterior whose data's precision is none less than nothing, where a delta method left it so."""
    values, vectors = np.linalg.eigh(posterior.precision)
    precision = (vectors * np.maximum(values, 0.0)) @ vectors.T
    mode = posterior.mode
    return Posterior(precision, (precision + np.diag(posterior.ridge)) @ mode, posterior.ridge)
