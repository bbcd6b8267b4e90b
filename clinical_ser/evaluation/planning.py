"""How many people a study needs: to evaluate a model (Riley et al.), and to train one (its learning curve).

The one idea: people are counted, not recordings. An evaluation is planned from the anticipated prevalence and AUC by formulas and integrals, no
simulation; a learning curve trains on nested groups of people and tests on others, who are in none of the groups.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from numpy.typing import ArrayLike, NDArray
from pydantic import Field
from scipy.special import expit, logit, ndtr, ndtri

from clinical_ser.cohorts.splits import check_fold, check_no_shared_subject, group_k_fold
from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.cohorts.tasks import Task, TaskKind
from clinical_ser.errors import InvalidValueError, TrainingError
from clinical_ser.evaluation.calibration import Reliability
from clinical_ser.evaluation.discrimination import Confusion, Ranking, unweighted_average_recall_of
from clinical_ser.evaluation.intervals import Bootstrap, bootstrap
from clinical_ser.features import catalogue
from clinical_ser.models.rows import Rows, select_rows
from clinical_ser.models.sample_size import Z_95
from clinical_ser.models.training import MINIMUM_SUBJECTS_PER_CLASS, Progress, TrainingOptions, train
from clinical_ser.models.weights import subject_weights
from clinical_ser.strict import Strict

TARGET_SENSITIVITY = 0.85
"""Where the operating point is taken to lie; the default of `Task.target_sensitivity`."""

WIDTH = 2 * Z_95
"""Of a 95 % interval, in standard errors."""

CURVE_SIZES, CURVE_FOLDS, CURVE_REPEATS, CURVE_REPLICATES = 5, 5, 3, 300
CURVE_SPAN = 8
"""By default the smallest size is an eighth of the largest: the law is about the approach to the asymptote, not about the first few people."""
CURVE_REFITS = 2
"""A learning curve asks for predictions only; the refits behind a result's interval are as few as training allows."""
MOST_RECORDINGS_EACH = 10_000
"""Ours: a recording an hour for more than a year; a larger number is a slip."""
FEWEST_CLASSES = 3
"""Of a task of several classes: two have margins of another shape, and a threshold."""
FEWEST_SIZES = 3
"""A law of three numbers takes three points."""
EXPONENTS = np.geomspace(0.1, 2.0, 200)
"""Exponents tried for the power law. Excess risk falls as 1/n in regular parametric models and slower in richer ones; an exponent below 0.1 or above
2 could not be told from the asymptote, or from the first point, with a handful of sizes."""
EXTRAPOLATION_LIMIT = 10
"""A size is named up to this many times the largest one trained on; beyond it, the guess is about the formula and not about the data."""
EXTRAPOLATED_MULTIPLES = (1.0, 1.5, 2.0, 3.0, 5.0)
"""Of all subjects in the table, at which the fitted curve is reported."""
POOLED_DEGREES_OF_FREEDOM = 4
"""What the variance over repeats, pooled over sizes, counts for beside a size's own: three repeats alone can agree by chance, and would then rule
the fit."""


# --- evaluation: minimum sample size ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Precision:
    """How precise an evaluation should be: standard errors, by default those of Riley et al. 2021."""

    ln_observed_to_expected: float = 0.051
    """Interval of observed to expected of about 0.9 to 1.1; as the paper rounds it."""
    calibration_slope: float = 0.2 / WIDTH
    """Interval 0.2 wide; one of 0.4 needs a quarter of the people."""
    auroc: float = 0.1 / WIDTH
    net_benefit: float = 0.2 / WIDTH
    """Of the standardised net benefit (over the prevalence, so that 1 is the best)."""
    operating_point: float = 0.05
    """Half-width of Wilson's interval of sensitivity and specificity; 0.1 wide, as Whittle et al. 2025 take for them."""

    def __post_init__(self) -> None:
        for what, value in vars(self).items():
            if not 0 < value < 0.5:
                raise InvalidValueError(what, value, "a number strictly between 0 and 0.5")


@dataclass(frozen=True)
class ValidationSampleSize:
    """The least number of subjects in an evaluation by each criterion, and what it was computed from."""

    subjects: int
    """The largest of all."""
    for_observed_to_expected: int
    for_calibration_slope: int
    for_auroc: int
    for_net_benefit: int
    for_sensitivity: int
    for_specificity: int
    prevalence: float
    auc: float
    sensitivity: float
    specificity: float
    """At the operating point, as the AUC implies it."""
    threshold: float
    """The probability from which on someone is flagged in the net benefit."""
    recordings_each: int
    icc: float | None
    worth_each: float
    """Single recordings of different people that one person's recordings are worth at most (Kish): m / (1 + (m - 1)·icc)."""

    @property
    def events(self) -> int:
        """Subjects with the condition among them."""
        return math.ceil(self.subjects * self.prevalence)

    @property
    def by_criterion(self) -> dict[str, int]:
        """Subjects by criterion: the figure's name and its number."""
        return {name.removeprefix("for_"): n for name, n in vars(self).items() if name.startswith("for_")}


def validation_minimum(
    prevalence: float,
    auc: float,
    *,
    sensitivity: float = TARGET_SENSITIVITY,
    threshold: float | None = None,
    recordings_each: int = 1,
    icc: float | None = None,
    precision: Precision | None = None,
) -> ValidationSampleSize:
    """Minimum sample size for evaluating a model of a binary outcome in new subjects.

    The model is taken to be calibrated, and its log-odds to be normal in each class with equal variance, as in `models.sample_size`; prevalence and
    AUC then say everything. With several recordings a subject, each figure is taken over recordings, every subject counting once. What the further
    recordings buy follows from how much of the figure's influence function subjects share; for observed to expected it is nothing, because the
    outcome belongs to the person.

    Parameters
    ----------
    prevalence
        Share of subjects with the condition in the evaluation.
    auc
        Anticipated area under the ROC curve (C statistic), above 0.5.
    sensitivity
        Of the operating point; the specificity there follows from the AUC.
    threshold
        Probability from which on someone is flagged, for the net benefit; None: that of the operating point.
    recordings_each
        Recordings of each subject, at most `MOST_RECORDINGS_EACH`.
    icc
        Intraclass correlation of the log-odds between recordings of one subject, within a class; needed with several recordings.
    precision
        What to reach; None: as in the paper.

    Returns
    -------
    ValidationSampleSize

    Raises
    ------
    InvalidValueError
        If an argument is out of its range, or `icc` is missing.

    References
    ----------
    Riley et al. 2021, Stat Med 40:4230-4251 (criteria); 2024, BMJ 384:e074821 (guidance). Newcombe 2006, Stat Med 25:559-573 (standard error of the C
    statistic). Whittle et al. 2025, BMC Med Res Methodol 25:170 (sensitivity and specificity; here with Wilson's interval).

    Examples
    --------
    >>> alone = validation_minimum(0.2, 0.75)
    >>> alone.for_auroc, alone.for_observed_to_expected
    (568, 1538)
    >>> five = validation_minimum(0.2, 0.75, recordings_each=5, icc=0.6)
    >>> five.for_auroc < alone.for_auroc < 5 * five.for_auroc
    True
    """
    precision = precision or Precision()
    _require_share("sensitivity", sensitivity)
    if threshold is not None:
        _require_share("threshold", threshold)
    _check_recordings(recordings_each, icc)
    people = _Binormal(prevalence, auc)
    cut = people.distance - float(ndtri(sensitivity))
    threshold = float(expit(people.log_odds(np.array(cut)))) if threshold is None else threshold
    net_benefit = _NetBenefit(people, threshold)
    slope = _Slope(people)
    shared = _Repeats(people, recordings_each, icc or 0.0)
    specificity = float(ndtr(cut))
    sizes = {
        "observed_to_expected": (1 - prevalence) / (prevalence * precision.ln_observed_to_expected**2),
        "calibration_slope": slope.variance / precision.calibration_slope**2 * shared.factor(slope),
        "auroc": _newcombe_size(auc, prevalence, precision.auroc) * shared.factor(_Placement(people)),
        "net_benefit": net_benefit.variance / precision.net_benefit**2 * shared.factor(net_benefit),
        "sensitivity": _wilson_size(sensitivity, precision.operating_point) / prevalence * shared.factor(_Above(people, cut, of_class=1)),
        "specificity": _wilson_size(specificity, precision.operating_point) / (1 - prevalence) * shared.factor(_Above(people, cut, of_class=0)),
    }
    whole = {f"for_{name}": max(1, math.ceil(size - 1e-9)) for name, size in sizes.items()}
    return ValidationSampleSize(
        subjects=max(whole.values()),
        **whole,
        prevalence=prevalence,
        auc=auc,
        sensitivity=sensitivity,
        specificity=specificity,
        threshold=threshold,
        recordings_each=recordings_each,
        icc=icc,
        worth_each=recordings_each / (1 + (recordings_each - 1) * (icc or 0.0)),
    )


class _Binormal:
    """People whose score x is N(0, 1) without the condition and N(distance, 1) with it; their log-odds are linear in x, and calibrated."""

    def __init__(self, prevalence: float, auc: float):
        _require_share("prevalence", prevalence)
        if not 0.5 < auc < 1:
            raise InvalidValueError("auc", auc, "above 0.5 and below 1")
        self.prevalence, self.auc = prevalence, auc
        self.distance = math.sqrt(2) * float(ndtri(auc))
        self.shares, self.means = (1 - prevalence, prevalence), (0.0, self.distance)

    def log_odds(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(logit(self.prevalence) + self.distance * x - self.distance**2 / 2)

    def cut_at(self, probability: float) -> float:
        """Return the score at which the probability is reached."""
        return float((logit(probability) - logit(self.prevalence)) / self.distance + self.distance / 2)

    def above(self, cut: float) -> tuple[float, float]:
        """Return the shares at or above a score, without and with the condition."""
        return float(ndtr(-cut)), float(ndtr(self.distance - cut))


class _Influence:
    """What one recording adds to a figure, less its mean; the figure's variance is that of its mean over independent people."""

    def expected(self, y: int, mean: NDArray[np.float64], variance: float) -> NDArray[np.float64]:
        """Return the expected influence of a recording of class y whose score is N(mean, variance); variance may be 0."""
        raise NotImplementedError


class _Slope(_Influence):
    """Of the calibration slope: the score equations of logistic regression at slope 1, times the inverse information."""

    def __init__(self, people: _Binormal):
        self.people = people
        grid, step = np.linspace(-12.0, 12.0 + people.distance, 20_001, retstep=True)
        density = sum(share * _density(grid - mean) for share, mean in zip(people.shares, people.means, strict=True))
        log_odds = people.log_odds(grid)
        weight = step * density * expit(log_odds) * expit(-log_odds)
        self.centre = float(weight @ log_odds / weight.sum())
        self.variance = float(1 / (weight @ (log_odds - self.centre) ** 2))
        self.nodes, self.node_weights = hermegauss(40)
        self.node_weights = self.node_weights / self.node_weights.sum()

    def expected(self, y: int, mean: NDArray[np.float64], variance: float) -> NDArray[np.float64]:
        log_odds = self.people.log_odds(mean[:, None] + math.sqrt(variance) * self.nodes)
        return np.asarray(((y - expit(log_odds)) * (log_odds - self.centre)) @ self.node_weights) * self.variance


class _Placement(_Influence):
    """Of the C statistic: the share of the other class that a recording is ordered rightly against."""

    def __init__(self, people: _Binormal):
        self.people = people

    def expected(self, y: int, mean: NDArray[np.float64], variance: float) -> NDArray[np.float64]:
        ahead = mean if y else self.people.distance - mean
        return np.asarray((ndtr(ahead / math.sqrt(1 + variance)) - self.people.auc) / self.people.shares[y])


class _Above(_Influence):
    """Of the share of one class at or above a score."""

    def __init__(self, people: _Binormal, cut: float, *, of_class: int):
        self.people, self.cut, self.of_class = people, cut, of_class

    def expected(self, y: int, mean: NDArray[np.float64], variance: float) -> NDArray[np.float64]:
        if y != self.of_class:
            return np.zeros_like(mean)
        return np.asarray((_share_above(self.cut, mean, variance) - self.people.above(self.cut)[y]) / self.people.shares[y])


class _NetBenefit(_Influence):
    """Of the standardised net benefit, sensitivity - w (1 - specificity), with the prevalence in w estimated too (Riley et al. 2021, section 3.4)."""

    def __init__(self, people: _Binormal, threshold: float):
        self.people, self.cut = people, people.cut_at(threshold)
        phi, (false, true) = people.prevalence, people.above(self.cut)
        self.harm = (1 - phi) / phi * threshold / (1 - threshold)
        own = true * (1 - true) / phi + self.harm**2 * false * (1 - false) / (1 - phi)
        self.variance = own + (self.harm * false) ** 2 / (phi * (1 - phi))

    def expected(self, y: int, mean: NDArray[np.float64], variance: float) -> NDArray[np.float64]:
        phi, rates = self.people.prevalence, self.people.above(self.cut)
        gain = 1.0 if y else -self.harm
        of_prevalence = self.harm * rates[0] / (phi * (1 - phi)) * (y - phi)
        return np.asarray(gain * (_share_above(self.cut, mean, variance) - rates[y]) / self.people.shares[y] + of_prevalence)


class _Repeats:
    """What several recordings of each subject do to the number of subjects."""

    def __init__(self, people: _Binormal, recordings_each: int, icc: float):
        self.people, self.recordings_each, self.icc = people, recordings_each, icc
        self.grid, step = np.linspace(-9.0, 9.0, 18_001, retstep=True)
        self.weight = step * _density(self.grid)

    def factor(self, influence: _Influence) -> float:
        """Variance of a subject's mean influence over that of one recording: 1 where recordings add nothing, 1 over their number at best."""
        if self.recordings_each == 1:
            return 1.0
        total, shared = self._variance(influence, 1.0), self._variance(influence, self.icc)
        return (shared + (total - shared) / self.recordings_each) / total if total > 0 else 1.0

    def _variance(self, influence: _Influence, icc: float) -> float:
        """Variance of what recordings with this correlation have in common: the mean over endless recordings of one subject."""
        people = self.people
        common = [influence.expected(y, mean + math.sqrt(icc) * self.grid, 1 - icc) for y, mean in enumerate(people.means)]
        return float(sum(share * self.weight @ of_class**2 for share, of_class in zip(people.shares, common, strict=True)))


def _density(z: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)


def _share_above(cut: float, mean: NDArray[np.float64], variance: float) -> NDArray[np.float64]:
    return np.asarray(ndtr((mean - cut) / math.sqrt(variance)) if variance > 0 else (mean >= cut).astype(float))


def _newcombe_size(auc: float, prevalence: float, standard_error: float) -> float:
    """Solve Newcombe's method 4, with half the sample in place of each class's size in the numerator as the paper has it, for n (a quadratic)."""
    target = standard_error**2 * prevalence * (1 - prevalence)
    spread, tie = auc * (1 - auc), (1 - auc) / (2 - auc) + auc / (1 + auc)
    half = spread * tie / 4
    return (half + math.sqrt(half**2 + target * spread * (1 - tie))) / target


def _wilson_size(share: float, half_width: float) -> float:
    """Solve for the number at which Wilson's 95 % interval of a share has this half-width (a quadratic in 1/n)."""
    z2, h2 = Z_95**2, half_width**2
    a, b = z2**2 * (0.25 - h2), z2 * (share * (1 - share) - 2 * h2)
    return 2 * a / (-b + math.sqrt(b**2 + 4 * a * h2))


def _check_recordings(recordings_each: int, icc: float | None) -> None:
    if not 1 <= recordings_each <= MOST_RECORDINGS_EACH:
        raise InvalidValueError("recordings_each", recordings_each, f"a whole number from 1 to {MOST_RECORDINGS_EACH:,}")
    if icc is not None and not 0 <= icc <= 1:
        raise InvalidValueError("icc", icc, "a share from 0 to 1")
    if recordings_each > 1 and icc is None:
        raise InvalidValueError("icc", icc, "a share from 0 to 1: several recordings of a subject are worth the less, the more alike they are")


def _require_share(what: str, value: float) -> None:
    if not 0 < value < 1:
        raise InvalidValueError(what, value, "a share strictly between 0 and 1")


# --- training: the learning curve ------------------------------------------------------------------------------------------------------------

Count = Annotated[int, Field(ge=1)]


class CurvePoint(Strict):
    """What models trained on so many subjects reach in others."""

    subjects: Count
    value: float
    """Mean over repeats."""
    low: float | None
    high: float | None
    """95 % interval over the subjects tested and the repeats; None where it is not defined."""
    spread: float
    """Standard deviation over repeats: by who was trained on."""
    calibration_slope: float | None = None
    """Two classes only; None where no finite fit exists."""
    calibration_slope_low: float | None = None
    calibration_slope_high: float | None = None


class PowerLaw(Strict):
    """a - b n^-c: `asymptote` a, never reached; `scale` b; `exponent` c."""

    asymptote: float
    scale: Annotated[float, Field(ge=0)]
    exponent: Annotated[float, Field(gt=0)]

    def at(self, subjects: float) -> float:
        """Return the value at so many subjects."""
        return float(_at(self._row(), np.array([subjects]))[0, 0])

    def subjects_for(self, value: float) -> float:
        """Return the number of subjects at which the value is reached; infinity where it never is."""
        return float(_size_for(self._row(), value)[0])

    def _row(self) -> NDArray[np.float64]:
        return np.array([[self.asymptote, self.scale, self.exponent]])


class Extrapolated(Strict):
    """The fitted curve at a size nobody has trained on yet."""

    subjects: Count
    value: float
    low: float
    high: float


class Reach(Strict):
    """How many subjects would reach a target."""

    target: float
    subjects: Count | None
    """None: not reachable by this curve, at least not within ten times the largest size trained on."""
    low: Count | None
    high: Count | None
    """95 % interval over refitted curves; None: not reachable at that end."""
    share: Annotated[float, Field(ge=0, le=1)]
    """Of the refitted curves that reach it."""


class LearningCurve(Strict):
    """What more subjects would buy."""

    metric: Literal["auroc", "uar"]
    head: str
    features: Count
    subjects: Count
    """All that can be used; each is tested once a repeat, by models that never heard them."""
    recordings: Count
    prevalence: float | None
    """Share of subjects with the condition (two classes)."""
    folds: Count
    repeats: Count
    replicates: Count
    seed: int
    points: tuple[CurvePoint, ...]
    """By rising number of subjects."""
    curve: PowerLaw | None
    """None with fewer than three sizes at which models learned anything."""
    extrapolated: tuple[Extrapolated, ...] = ()
    targets: tuple[Reach, ...] = ()


def learning_curve(
    table: FeatureTable,
    task: Task,
    options: TrainingOptions | None = None,
    *,
    sizes: Sequence[int] | None = None,
    targets: Sequence[float] = (),
    folds: int = CURVE_FOLDS,
    repeats: int = CURVE_REPEATS,
    replicates: int = CURVE_REPLICATES,
    seed: int = 0,
    progress: Progress | None = None,
) -> LearningCurve:
    """Train on nested random groups of subjects and test on others, at several sizes.

    Each repeat deals the subjects to folds. The subjects outside a fold, in random order with the classes spread evenly, are trained on from the
    first to the n-th, for each size n; the fold's own are tested. Pairs of subjects are compared within a fold only, since each fold has a model of
    its own. Costs sizes × folds × repeats trainings.

    The power law is fitted by weighted least squares (weights: the variance over repeats, moderated) within bounds: the asymptote between chance
    and 1, the scale not negative, the exponent within `EXPONENTS`. Intervals come from bootstrap samples of the tested subjects and of the repeats,
    with the curve fitted again to each. They leave out that other people would have been trained on altogether, so they are rather short.

    Parameters
    ----------
    table, task, options
        As for `train`; the number of refits is not followed, and the split inside training is one by folds.
    sizes
        Numbers of subjects to train on; None: five, up to all outside a fold, evenly spaced on a log scale.
    targets
        Values to reach, each strictly between 0 and 1.
    folds, repeats, replicates, seed
        Folds of subjects to test, how often all is repeated with other folds and other orders, bootstrap samples, and the seed.
    progress
        Called with (trainings done, trainings in all).

    Returns
    -------
    LearningCurve
        AUROC for two classes, every subject counting once; UAR for several, every recording counting once.

    Raises
    ------
    TrainingError
        If there are too few subjects of a class for any size.
    InvalidValueError
        If a size cannot be trained on, or an option is out of its range.

    References
    ----------
    Figueroa et al. 2012, BMC Med Inform Decis Mak 12:8 (weighted inverse power law).
    """
    options = _light(options or TrainingOptions())
    check_curve_options(sizes=sizes, targets=targets, repeats=repeats, replicates=replicates)
    names = tuple(name for name in table.feature_names if catalogue.get(name).family not in options.without)
    selected = select_rows(table, task, names, use_baseline=options.use_baseline, used_as="learned from")
    rows, task = selected.rows, selected.task
    if not len(rows.target):
        raise TrainingError(f"No row can be learned from for task {task.name!r}: {selected.counts}.")
    if task.kind is TaskKind.MULTICLASS and len(task.classes) < FEWEST_CLASSES:
        wanted = f"a task of two classes: this one is for {FEWEST_CLASSES} or more, and the table's labels name {len(task.classes)}"
        raise InvalidValueError("task", task.name, wanted)
    draws = _draws(rows, task, folds, repeats, seed)
    taken = _sizes(sizes, draws, rows, task, options)
    answers, fold_of = _answers(table, task, options, rows, draws, taken, repeats, progress)
    statistic = (_TwoClasses if task.kind is TaskKind.BINARY else _SeveralClasses)(rows, answers, fold_of)
    drawn = bootstrap(statistic, rows.subjects, weight=statistic.base, replicates=replicates, seed=seed)
    again = np.random.default_rng([seed, 2]).integers(repeats, size=(replicates, repeats))
    figures = _Figures(drawn, len(taken), repeats, again)
    curves = _Fits.of(taken, figures, chance=1 / len(task.classes))
    everyone = len(np.unique(rows.subjects))
    multiples = [math.ceil(multiple * everyone) for multiple in EXTRAPOLATED_MULTIPLES]
    return LearningCurve(
        metric="auroc" if task.kind is TaskKind.BINARY else "uar",
        head=options.head,
        features=len(names),
        subjects=everyone,
        recordings=len(rows.target),
        prevalence=_prevalence(rows) if task.kind is TaskKind.BINARY else None,
        folds=folds,
        repeats=repeats,
        replicates=replicates,
        seed=seed,
        points=tuple(_point(n, i, figures, rows, task) for i, n in enumerate(taken)),
        curve=curves.law if curves else None,
        extrapolated=tuple(curves.extrapolated(n) for n in multiples) if curves else (),
        targets=tuple(curves.reach(target, taken) for target in targets) if curves else (),
    )


def fit_power_law(sizes: ArrayLike, values: ArrayLike, variance: ArrayLike | None = None, *, chance: float = 0.5) -> PowerLaw:
    """Fit a - b n^-c by weighted least squares within bounds.

    Parameters
    ----------
    sizes, values
        Shape (sizes,), three or more different sizes; values up to 1.
    variance
        Shape (sizes,), of each value; None: all alike.
    chance
        The lowest asymptote.

    Returns
    -------
    PowerLaw

    Raises
    ------
    InvalidValueError
        Fewer than three sizes.

    Examples
    --------
    >>> n = np.array([25, 50, 100, 200])
    >>> law = fit_power_law(n, 0.9 - 2.0 / n)
    >>> round(law.at(400), 3), math.isinf(law.subjects_for(0.95))
    (0.895, True)
    """
    n = np.asarray(sizes, dtype=np.float64)
    if len(np.unique(n)) < FEWEST_SIZES:
        raise InvalidValueError("sizes", n.tolist(), "three different sizes or more")
    spread = np.ones(len(n)) if variance is None else np.asarray(variance, dtype=np.float64)
    a, b, c = _power_laws(n, np.asarray(values, dtype=np.float64)[None], spread, chance)[0].tolist()
    return PowerLaw(asymptote=a, scale=b, exponent=c)


@dataclass(frozen=True, eq=False)
class _Draw:
    """One fold of one repeat: the rows tested, and the other subjects in the order in which they are trained on."""

    repeat: int
    test: NDArray[np.intp]
    order: NDArray[np.str_]


def _light(options: TrainingOptions) -> TrainingOptions:
    return replace(options, refits=CURVE_REFITS, split=options.split if isinstance(options.split, int) else TrainingOptions().split)


def check_curve_options(
    *, sizes: Sequence[int] | None = None, targets: Sequence[float] = (), repeats: int = CURVE_REPEATS, replicates: int = CURVE_REPLICATES
) -> None:
    """Refuse what no table could make right in the options of `learning_curve`, with InvalidValueError, before a table is read."""
    if sizes is not None and (not sizes or min(sizes) < MINIMUM_SUBJECTS_PER_CLASS):
        raise InvalidValueError("sizes", list(sizes), f"whole numbers from {MINIMUM_SUBJECTS_PER_CLASS} on, the fewest subjects of one class")
    for target in targets:
        _require_share("targets", target)
    if repeats < 2:
        raise InvalidValueError("repeats", repeats, "at least 2, or nothing is known of the spread")
    if replicates < 40:
        raise InvalidValueError("replicates", replicates, "at least 40, or no 95 % interval can be read off")


def _prevalence(rows: Rows) -> float:
    return float(np.average(rows.target, weights=subject_weights(rows.subjects, len(rows.target))))


def _draws(rows: Rows, task: Task, folds: int, repeats: int, seed: int) -> list[_Draw]:
    recordings = rows.frame["recording"].to_numpy()
    draws = []
    for repeat in range(repeats):
        rng = np.random.default_rng([seed, 1, repeat])
        for fold in group_k_fold(rows.subjects, rows.target, k=folds, seed=int(rng.integers(2**32))):
            check_fold(fold, rows.subjects, recordings)
            draws.append(_Draw(repeat, fold.test, _spread_order(rows.take(fold.train), task, rng)))
    return draws


def _spread_order(rows: Rows, task: Task, rng: np.random.Generator) -> NDArray[np.str_]:
    """Return the subjects in random order such that the first n have about the shares of all, by which classes a subject has."""
    people, has = _classes_of(rows, task)
    _, stratum = np.unique(has, axis=0, return_inverse=True)
    place = np.empty(len(people))
    for k in range(int(stratum.max()) + 1):
        members = rng.permutation(np.flatnonzero(stratum.ravel() == k))
        place[members] = (np.arange(len(members)) + rng.uniform()) / len(members)
    return people[np.argsort(place, kind="stable")]


def _classes_of(rows: Rows, task: Task) -> tuple[NDArray[np.str_], NDArray[np.bool_]]:
    """Return the subjects, sorted, and which classes each has, shape (subjects, classes)."""
    people, person = np.unique(rows.subjects, return_inverse=True)
    has = np.zeros((len(people), len(task.classes)), bool)
    has[person, rows.target] = True
    return people, has


def _sizes(wanted: Sequence[int] | None, draws: list[_Draw], rows: Rows, task: Task, options: TrainingOptions) -> list[int]:
    """Return the sizes to train on, rising, all of which every draw can serve."""
    people, has = _classes_of(rows, task)
    assert isinstance(options.split, int)
    needed = max(MINIMUM_SUBJECTS_PER_CLASS, options.split)
    enough = [(np.cumsum(has[np.searchsorted(people, draw.order)], axis=0) >= needed).all(axis=1) for draw in draws]
    largest = min(len(draw.order) for draw in draws)
    smallest = max(int(np.argmax(found)) + 1 if found.any() else largest + 1 for found in enough)
    if smallest > largest:
        raise TrainingError(
            f"Training takes {needed} subjects of each class beside those tested; of {len(people)} subjects, "
            f"{dict(zip(task.classes, has.sum(axis=0).tolist(), strict=True))} by class, some fold leaves fewer."
        )
    if wanted is None:
        first = max(smallest, largest // CURVE_SPAN)
        return sorted(set(np.geomspace(first, largest, CURVE_SIZES).round().astype(int).tolist()))
    if not wanted or min(wanted) < smallest or max(wanted) > largest:
        raise InvalidValueError("sizes", list(wanted), f"whole numbers from {smallest} to {largest}: the others are tested")
    return sorted(set(wanted))


def _answers(
    table: FeatureTable,
    task: Task,
    options: TrainingOptions,
    rows: Rows,
    draws: list[_Draw],
    sizes: list[int],
    repeats: int,
    progress: Progress | None,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Train and test; return log-odds (two classes) or class numbers (several), shape (sizes, repeats, rows), and folds, shape (repeats, rows)."""
    answers = np.full((len(sizes), repeats, len(rows.target)), np.nan)
    fold_of = np.full((repeats, len(rows.target)), -1)
    subjects, done = table.subjects, 0
    for number, draw in enumerate(draws):
        fold_of[draw.repeat, draw.test] = number
        for i, size in enumerate(sizes):
            known = draw.order[:size]
            check_no_shared_subject(known, rows.subjects[draw.test])
            part = replace(table, frame=table.frame[np.isin(subjects, known)].reset_index(drop=True), problems=())
            log_odds = train(part, task, options).model.log_odds(rows.X[draw.test])
            answers[i, draw.repeat, draw.test] = log_odds if log_odds.ndim == 1 else log_odds.argmax(axis=1)
            done += 1
            if progress:
                progress(done, len(draws) * len(sizes))
    return answers, fold_of


class _TwoClasses:
    """Under row weights: the AUROC of every size and repeat, then the calibration slope of each; every subject counts once."""

    def __init__(self, rows: Rows, answers: NDArray[np.float64], fold_of: NDArray[np.int64]):
        self.base = subject_weights(rows.subjects, len(rows.target))
        self.y = rows.target
        self.folds = [[np.flatnonzero(folds == fold) for fold in np.unique(folds)] for folds in fold_of]
        self.rankings = [
            [(at, Ranking(self.y[at], log_odds[at])) for at in folds]
            for of_size in answers
            for log_odds, folds in zip(of_size, self.folds, strict=True)
        ]
        self.reliabilities = [Reliability(self.y, log_odds, rows.subjects) for of_size in answers for log_odds in of_size]

    def __call__(self, weight: NDArray[np.float64]) -> NDArray[np.float64]:
        areas = [self._within_folds(rankings, weight) for rankings in self.rankings]
        return np.array(areas + [reliability.intercept_and_slope(weight)[1] for reliability in self.reliabilities])

    def _within_folds(self, rankings: list[tuple[NDArray[np.intp], Ranking]], weight: NDArray[np.float64]) -> float:
        """Share of the pairs of one fold, over all folds, that are ordered rightly."""
        right = pairs = 0.0
        for at, ranking in rankings:
            positive, total = float(weight[at] @ self.y[at]), float(weight[at].sum())
            compared = positive * (total - positive)
            if compared > 0:
                right, pairs = right + compared * ranking.auroc(weight[at]), pairs + compared
        return right / pairs if pairs > 0 else float("nan")


class _SeveralClasses:
    """Under row weights: the UAR of every size and repeat; every recording counts once."""

    def __init__(self, rows: Rows, answers: NDArray[np.float64], _fold_of: NDArray[np.int64]):
        self.base = np.ones(len(rows.target))
        classes = int(rows.target.max()) + 1
        self.confusions = [Confusion(rows.target, answer.astype(np.int64), classes) for of_size in answers for answer in of_size]

    def __call__(self, weight: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array([unweighted_average_recall_of(confusion.matrix(weight)) for confusion in self.confusions])


class _Figures:
    """Figures of every size and repeat, and of bootstrap samples of subjects and repeats."""

    def __init__(self, drawn: Bootstrap, sizes: int, repeats: int, again: NDArray[np.int64]):
        shape = (-1, sizes, repeats)
        self.values = drawn.values.reshape(shape)
        """Shape (kinds of figure, sizes, repeats)."""
        replicates = drawn.replicates.reshape(len(again), *self.values.shape)
        self.means = np.take_along_axis(replicates, again[:, None, None, :], axis=3).mean(axis=3)
        """Shape (replicates, kinds, sizes): means over the repeats drawn."""

    def figure(self, kind: int, size: int, *, subjects: int, share: bool) -> tuple[float | None, float | None, float | None]:
        """Return mean over repeats and interval; None where not defined."""
        one = Bootstrap(self.values[kind, size].mean(keepdims=True), self.means[:, kind, [size]])
        low, high = one.interval(0, subjects=subjects, share=share)
        return _finite(float(one.values[0])), _finite(low), _finite(high)


def _point(subjects: int, size: int, figures: _Figures, rows: Rows, task: Task) -> CurvePoint:
    people, has = _classes_of(rows, task)
    value, low, high = figures.figure(0, size, subjects=int(has.sum(axis=0).min()), share=True)
    assert value is not None  # every fold tests every class
    slope = figures.figure(1, size, subjects=len(people), share=False) if task.kind is TaskKind.BINARY else (None, None, None)
    return CurvePoint(
        subjects=subjects,
        value=value,
        low=low,
        high=high,
        spread=float(figures.values[0, size].std(ddof=1)),
        calibration_slope=slope[0],
        calibration_slope_low=slope[1],
        calibration_slope_high=slope[2],
    )


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


@dataclass(frozen=True, eq=False)
class _Fits:
    """The power law, and those of the bootstrap samples: rows of (a, b, c)."""

    law: PowerLaw
    refitted: NDArray[np.float64]
    limit: float

    @classmethod
    def of(cls, sizes: list[int], figures: _Figures, *, chance: float) -> "_Fits | None":
        """Fit to the first kind of figure, or return None where there are too few sizes.

        Sizes at which every model answers everyone alike are left out: trees do not split so few people, and the law has not begun.
        """
        learned = (np.abs(figures.values[0] - chance) > 1e-9).any(axis=1)
        if learned.sum() < FEWEST_SIZES:
            return None
        n, values = np.array(sizes, dtype=np.float64)[learned], figures.values[0, learned]
        variance = _moderated_variance(values)
        samples = figures.means[:, 0, learned]
        samples = samples[np.isfinite(samples).all(axis=1)]
        law = fit_power_law(n, values.mean(axis=1), variance, chance=chance)
        return cls(law, _power_laws(n, samples, variance, chance), EXTRAPOLATION_LIMIT * n[-1])

    def extrapolated(self, subjects: int) -> Extrapolated:
        low, high = np.quantile(_at(self.refitted, np.array([subjects]))[:, 0], [0.025, 0.975]).tolist()
        return Extrapolated(subjects=subjects, value=self.law.at(subjects), low=low, high=high)

    def reach(self, target: float, sizes: list[int]) -> Reach:
        """Say where a target is reached; a curve that starts above it reaches it at the smallest size, below which nothing is known."""
        needed = _size_for(self.refitted, target)
        low, high = np.quantile(needed, [0.025, 0.975], method="inverted_cdf").tolist()
        return Reach(
            target=target,
            subjects=self._within(self.law.subjects_for(target), sizes),
            low=self._within(low, sizes),
            high=self._within(high, sizes),
            share=float(np.mean(needed <= self.limit)),
        )

    def _within(self, needed: float, sizes: list[int]) -> int | None:
        return max(math.ceil(needed), sizes[0]) if needed <= self.limit else None


def _moderated_variance(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Variance over repeats of each size, shape (sizes, repeats) to (sizes,), drawn toward the pooled one; all alike where there is none."""
    own, degrees = values.var(axis=1, ddof=1), values.shape[1] - 1
    moderated = (POOLED_DEGREES_OF_FREEDOM * own.mean() + degrees * own) / (POOLED_DEGREES_OF_FREEDOM + degrees)
    return moderated if own.mean() > 0 else np.ones(len(values))


def _power_laws(n: NDArray[np.float64], values: NDArray[np.float64], variance: NDArray[np.float64], chance: float) -> NDArray[np.float64]:
    """Fit every row of values, shape (samples, sizes); return (a, b, c), shape (samples, 3).

    For a given c the law is linear in a and b, and least squares within bounds has a closed form; c is the best of a fixed grid. Nothing iterates,
    so no sample of the bootstrap can fail to converge.
    """
    weight = 1 / variance / np.sum(1 / variance)
    x = (n / n[-1]) ** -EXPONENTS[:, None]
    x_mean, y_mean = x @ weight, values @ weight
    falls = -((values - y_mean[:, None]) * weight) @ (x - x_mean[:, None]).T / np.sum(weight * (x - x_mean[:, None]) ** 2, axis=1)
    b = np.maximum(falls, 0.0)
    a = y_mean[:, None] + b * x_mean
    held = np.clip(a, chance, 1.0)
    # On a bound of a, what is left is a line through that bound.
    at_bound = np.maximum((held * x_mean - (values * weight) @ x.T) / np.sum(weight * x**2, axis=1), 0.0)
    b, a = np.where(a == held, b, at_bound), held
    misfit = np.sum(weight * (values[:, None] - a[:, :, None] + b[:, :, None] * x) ** 2, axis=2)
    best = misfit.argmin(axis=1)
    rows = np.arange(len(values))
    return np.column_stack([a[rows, best], b[rows, best] * n[-1] ** EXPONENTS[best], EXPONENTS[best]])


def _at(laws: NDArray[np.float64], n: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values of laws (laws, 3) at sizes (sizes,), shape (laws, sizes)."""
    a, b, c = laws.T[:, :, None]
    return np.asarray(a - b * n**-c)


def _size_for(laws: NDArray[np.float64], value: float) -> NDArray[np.float64]:
    """Sizes at which each law reaches a value, shape (laws,): 0 where it is flat at or above it, infinity where it never does."""
    a, b, c = laws.T
    gap = a - value
    flat = np.where(gap >= 0, 0.0, np.inf)
    with np.errstate(over="ignore"):
        return np.where((gap > 0) & (b > 0), (b / np.where(gap > 0, gap, 1.0)) ** (1 / c), np.where(b > 0, np.inf, flat))
