"""Intervals for figures over recordings of which several may come from one subject.

The one idea: the subject is drawn, not the recording. What the draws tell is how far a figure would move with other people (its standard
error); the interval is then made on the scale that the figure has, with room for how few people told it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from pickle import PicklingError
from time import perf_counter

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit, ndtri, stdtrit
from threadpoolctl import threadpool_limits

from clinical_ser.errors import InvalidValueError
from clinical_ser.features.workers import Lost, run_in_processes

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Figures, shape (figures,), of the rows under row weights, shape (rows,); a weight of 0 is a row not drawn; NaN where not defined."""

Progress = Callable[[int, int], None]
"""Called with how many replicates are done, and of how many."""

LEAST_DEFINED = 0.8
"""Share of replicates in which a figure has to be defined. A calibration slope defined in fewer (the others are separated: it is infinite
there) had intervals that covered 22-88 % (30 subjects); a class of one subject is drawn in 63 %, one of two in 87 %."""

WINSORISED = 0.05
"""Share of replicates at either end that is pulled in to the rest before the standard error is taken. Few people make slopes with a tail of
hundreds: the plain standard deviation covered 97-99 % with 30 subjects, this 95.5-97.5 %; for figures without such tails it changes nothing."""
_OF_NORMAL = float(
    np.sqrt(
        (1 - 2 * WINSORISED)
        - 2 * -ndtri(WINSORISED) * np.exp(-(ndtri(WINSORISED) ** 2) / 2) / np.sqrt(2 * np.pi)
        + 2 * WINSORISED * ndtri(WINSORISED) ** 2
    )
)
"""Standard deviation of a standard normal variable that is winsorised so."""

_NO_SPREAD = 1e-9
"""Relative to the figure: below it, replicates differ by rounding only."""

SPAN = 20
"""Replicates in one piece of work."""

WORTH_PROCESSES_S = 2.0
"""Work that is expected to take less stays in this process: fresh interpreters start in 0.3-1.2 s."""


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Figures of all rows, and of bootstrap samples of subjects.

    Samples depend on the subjects, the seed and the replicate's number only, so that figures of one call, and of two calls with the same
    subjects and seed, are paired.
    """

    values: NDArray[np.float64]
    """Shape (figures,), of all rows."""
    replicates: NDArray[np.float64]
    """Shape (replicates, figures); NaN where a figure is not defined."""
    level: float = 0.95

    def interval(self, index: int, *, subjects: int, share: bool = False) -> tuple[float, float]:
        r"""Interval of one figure.

        A share gets Wilson's score interval of as many independent answers as would have the bootstrap's standard error, :math:`v (1 - v) /
        se^2`; any other figure gets :math:`v \pm t \cdot se`. The standard error is inflated by :math:`\sqrt{n / (n - 1)}` and t has n - 1
        degrees of freedom, n the subjects behind the figure, because n people cannot show all their variance and do not know it.

        Chosen by simulation (`benchmarks/interval_coverage.py`: 13 figures in four worlds, 30 to 400 subjects of five, or one to nine,
        recordings): with 60 subjects it covers 93-97.5 % and with 120 or 400 92.5-97 %, at a simulation error of 0.8; with 30, six to fifteen
        of them in the smaller class, 92.5-98.5 %. The percentile interval covers 76-95 % with 30 and 84-95 % with 60 subjects, its
        bias-corrected form with levels of t 82-97 % and 88-97 %; both fail most for the calibration slope, whose replicates are biased.

        Parameters
        ----------
        index
            Which figure.
        subjects
            How many people the figure rests on: of the class for a recall (sensitivity and NPV: those with the condition; specificity and
            PPV: those without), of the smallest class for AUROC, average precision and UAR, twice that but at most everyone for Brier score
            and accuracy, everyone for calibration slope, intercept and O:E; a difference rests on those that its parts rest on.
        share
            Whether the figure lies between 0 and 1 and may reach either end: a recall, a predictive value, AUROC, average precision, a Brier
            score. One that is the same in every replicate (nobody missed) gets Wilson's interval of one answer a subject: a subject's
            recordings are taken to be one.

        Returns
        -------
        tuple of float
            NaN where the figure is not defined in all rows or in less than `LEAST_DEFINED` of the replicates, or rests on fewer than two people.

        Raises
        ------
        InvalidValueError
            For a share outside 0 to 1.

        References
        ----------
        Field CA, Welsh AH (2007), Bootstrapping clustered data, J R Stat Soc B 69:369-390. Korn EL, Graubard BI (1998), Confidence intervals
        for proportions with small expected number of positive counts estimated from survey data, Survey Methodology 24:193-201. Dean N,
        Pagano M (2015), Evaluating confidence interval methods for binomial proportions in clustered surveys, J Surv Stat Methodol 3:484-503.
        Hesterberg TC (2015), What teachers should know about the bootstrap, Am Stat 69:371-386.

        Examples
        --------
        Ten people with five recordings each, of which all are caught:

        >>> people = np.repeat(np.arange(10), 5)
        >>> drawn = bootstrap(lambda weight: np.array([weight @ np.ones(50) / weight.sum()]), people, replicates=200)
        >>> low, high = drawn.interval(0, subjects=10, share=True)
        >>> round(low, 3), round(high, 3)
        (0.722, 1.0)
        """
        value = float(self.values[index])
        drawn = self._defined(index)
        if not np.isfinite(value) or subjects < 2 or drawn is None:
            return np.nan, np.nan
        error = _standard_error(drawn, subjects)
        times = float(-stdtrit(subjects - 1, (1 - self.level) / 2))
        if not share:
            return value - times * error, value + times * error
        value = _checked_share(value)
        if error <= _NO_SPREAD or value in {0.0, 1.0}:
            return wilson(value, subjects, level=self.level)
        return _score_interval(value, value * (1 - value) / error**2, times)

    def of_distance(self, index: int, *, subjects: int) -> tuple[float, float]:
        """Interval of a distance: a figure that is 0 at best and that chance alone moves up, such as a calibration error of few people.

        The bootstrap adds to such a figure about what sampling added to it already; the low end is what remains without that, the high end is not
        moved. So it holds the figure, reaches down to 0 where chance explains it, and errs on the wide side.

        Returns
        -------
        tuple of float
            Neither below 0; NaN as in `interval`.
        """
        low, high = self.interval(index, subjects=subjects)
        drawn = self._defined(index)
        if drawn is None or not np.isfinite(low):
            return np.nan, np.nan
        added = max(float(np.mean(drawn)) - float(self.values[index]), 0.0)
        return max(low - added, 0.0), max(high, 0.0)

    def gap(self, indices: Sequence[int], *, subjects: Sequence[int]) -> tuple[float, float]:
        """Interval of the difference between the largest and the smallest of some figures, such as the best and the worst group.

        Chance alone makes a gap, and more of it the more groups there are: with eight equal groups the percentile interval of the gap never
        held its true 0. The low end is the largest lower bound among all pairs of groups, with bounds that hold for all pairs together (the
        largest deviation of any pair in each replicate); the high end is the largest upper bound of any pair. Both err on the wide side.

        Parameters
        ----------
        indices
            Which figures: one of each group, all of one kind.
        subjects
            How many people each rests on, as in `interval`.

        Returns
        -------
        tuple of float
            NaN where a group's figure is not defined, as in `interval`; low is 0 where no two groups are told apart.

        References
        ----------
        Hothorn T, Bretz F, Westfall P (2008), Simultaneous inference in general parametric models, Biometrical J 50:346-363.
        """
        first, second = np.triu_indices(len(indices), 1)
        people = np.minimum(np.asarray(subjects)[first], np.asarray(subjects)[second])
        at = np.asarray(indices)
        differences = self.derived(lambda figures: figures[..., at[first]] - figures[..., at[second]])
        drawn = differences.replicates[np.isfinite(differences.replicates).all(axis=1)]
        enough = len(drawn) >= LEAST_DEFINED * len(self.replicates)
        if not len(first) or people.min() < 2 or not np.isfinite(differences.values).all() or not enough:
            return np.nan, np.nan
        tail = (1 - self.level) / 2
        error = np.array([_standard_error(drawn[:, i], n) for i, n in enumerate(people)])
        times = -stdtrit(people - 1, tail)
        deviation = np.abs(drawn - differences.values) / np.maximum(error, _NO_SPREAD)
        for_all = float(np.quantile(deviation.max(axis=1), 1 - tail)) * times / -ndtri(tail)
        observed = np.abs(differences.values)
        return max(float(np.max(observed - for_all * error)), 0.0), float(np.max(observed + times * error))

    def derived(self, function: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> "Bootstrap":
        """Return figures computed from these, in every replicate: a difference of models, a ratio, the gap between groups.

        Parameters
        ----------
        function
            Maps figures (..., figures) to (..., k).

        Examples
        --------
        >>> drawn = Bootstrap(np.array([0.9, 0.7]), np.array([[0.9, 0.8], [0.8, 0.7]]))
        >>> drawn.derived(lambda figures: figures[..., [0]] - figures[..., [1]]).replicates.round(2)
        array([[0.1],
               [0.1]])
        """
        return Bootstrap(function(self.values), function(self.replicates), self.level)

    def _defined(self, index: int) -> NDArray[np.float64] | None:
        """Return the replicates in which a figure is defined; None if those are too few."""
        drawn = self.replicates[:, index]
        found = drawn[np.isfinite(drawn)]
        return found if len(found) >= LEAST_DEFINED * len(drawn) else None


def bootstrap(
    statistic: Statistic,
    subjects: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    replicates: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    workers: int = 1,
    progress: Progress | None = None,
) -> Bootstrap:
    """Compute figures of all rows and of bootstrap samples of subjects.

    Parameters
    ----------
    statistic
        Called with row weights: once for all rows and once a replicate, in which a row weighs its base weight times how often its subject was
        drawn. It has to leave the weights as they are.
    subjects
        Shape (rows,), the subject of each row.
    weight
        Shape (rows,), base weights, none negative; None counts all rows alike.
    replicates, level, seed
        Number of samples, coverage of the intervals, and the seed. The answer does not depend on the number of workers.
    workers
        Processes to spread long work over, once it is seen to be long; 1 does all in this process. They are fresh interpreters: a statistic
        that cannot be sent there (a closure, a class of a script) is computed here. Forks would take closures, but are not safe beside other
        threads, nor on macOS; two threads gain a factor of 1.2, because counting holds the interpreter's lock, two processes 1.9.
    progress
        Called from this thread as replicates are done.

    Returns
    -------
    Bootstrap
        No sample is kept: memory is 8 bytes a figure a replicate.

    Raises
    ------
    InvalidValueError
        Without rows, for weights that do not fit the rows, and for replicates, level or workers out of range.

    Examples
    --------
    >>> y = np.repeat([0.2, 0.4, 0.9], 2)
    >>> drawn = bootstrap(lambda weight: np.array([np.average(y, weights=weight)]), np.repeat(["a", "b", "c"], 2), replicates=500)
    >>> drawn.values, drawn.replicates.shape
    (array([0.5]), (500, 1))
    """
    _check(replicates=replicates, level=level, seed=seed, workers=workers)
    people, code = np.unique(np.asarray(subjects), return_inverse=True)
    draws = _Draws(statistic, code.reshape(-1), len(people), _base_weight(weight, len(code)), seed)
    spans = [range(start, min(start + SPAN, replicates)) for start in range(0, replicates, SPAN)]
    # One thread of BLAS, as in a worker: a product in another order is another last digit.
    with threadpool_limits(limits=1, user_api="blas"):
        values = np.asarray(statistic(draws.weight.copy()), dtype=np.float64)
        if values.ndim != 1:
            raise InvalidValueError("statistic", f"figures of shape {values.shape}", "a function that returns shape (figures,)")
        found, done = np.empty((replicates, len(values))), 0
        for span, figures in _computed(draws, spans, workers):
            found[span.start : span.stop] = figures
            done += len(span)
            if progress:
                progress(done, replicates)
    return Bootstrap(values, found, level)


@dataclass(frozen=True, eq=False)
class _Draws:
    """Replicates by number; all that a worker needs."""

    statistic: Statistic
    code: NDArray[np.intp]
    """Shape (rows,), the number of each row's subject."""
    subjects: int
    weight: NDArray[np.float64]
    seed: int

    def __call__(self, span: range) -> NDArray[np.float64]:
        """Return the figures of some replicates, shape (len(span), figures)."""
        return np.array([self.statistic(self.weight * self._times_drawn(replicate)) for replicate in span], dtype=np.float64)

    def _times_drawn(self, replicate: int) -> NDArray[np.float64]:
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((self.seed, replicate))))
        drawn = np.bincount(rng.integers(self.subjects, size=self.subjects), minlength=self.subjects)
        return drawn.astype(np.float64)[self.code]


def _computed(draws: _Draws, spans: Sequence[range], workers: int) -> Iterator[tuple[range, NDArray[np.float64]]]:
    """Yield every span with its figures; the first one, computed here, tells how long the others will take."""
    first, rest = spans[0], spans[1:]
    started = perf_counter()
    yield first, draws(first)
    expected_s = (perf_counter() - started) * len(rest)
    if workers == 1 or expected_s < WORTH_PROCESSES_S or not _can_travel(draws):
        yield from ((span, draws(span)) for span in rest)
        return
    for index, figures in run_in_processes(draws, rest, workers=workers):
        # What ended a process is tried here, where an error of the statistic is seen as it is.
        yield rest[index], draws(rest[index]) if isinstance(figures, Lost) else figures


def _can_travel(draws: _Draws) -> bool:
    """Whether a fresh interpreter, which imports no script, can rebuild them."""
    try:
        return b"__main__" not in bytes(ForkingPickler.dumps(draws))
    except (AttributeError, TypeError, PicklingError):
        return False


def wilson(share: float, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share of n independent answers: one row a subject.

    Parameters
    ----------
    share, n
        Between 0 and 1, of how many; NaN of none.
    level
        Coverage.

    Raises
    ------
    InvalidValueError
        For a share outside 0 to 1 or a negative n.

    References
    ----------
    Wilson EB (1927), Probable inference, the law of succession, and statistical inference, J Am Stat Assoc 22:209-212.

    Examples
    --------
    >>> tuple(round(bound, 4) for bound in wilson(0.9, 20))
    (0.699, 0.9721)
    """
    _check(level=level)
    if n < 0:
        raise InvalidValueError("n", n, "a number of answers, not negative")
    if n == 0 or np.isnan(share):
        return np.nan, np.nan
    return _score_interval(_checked_share(share), n, float(-ndtri((1 - level) / 2)))


def likelihood_ratio(share: tuple[float, float, float], other: tuple[float, float, float]) -> tuple[float, float]:
    """Interval of the ratio of two independently known shares, such as sensitivity over 1 - specificity, from their own intervals (MOVER-R).

    A predictive value is the ratio turned into a probability by the prevalence, and so is its interval. The bootstrap's own interval of a predictive
    value fails where nobody, or hardly anybody, was flagged wrongly: with 100 negatives and a specificity of 0.99 it covered 57 %, this 94-97 %.

    Parameters
    ----------
    share, other
        Value, low and high of the numerator and of the denominator, each between 0 and 1.

    Returns
    -------
    tuple of float
        Infinite where the denominator may be 0; NaN where a bound is.

    References
    ----------
    Newcombe RG (2016), MOVER-R confidence intervals for ratios and products of two independently estimated quantities, Stat Methods Med Res
    25:1774-1778.

    Examples
    --------
    >>> low, high = likelihood_ratio((0.80, 0.70, 0.88), (0.20, 0.15, 0.26))
    >>> round(low, 2), round(high, 2)
    (2.98, 5.4)
    """
    (p1, low1, high1), (p2, low2, high2) = share, other

    def bound(first: float, second: float, side: float) -> float:
        below = second * (2 * p2 - second)
        root = np.sqrt(max((p1 * p2) ** 2 - first * (2 * p1 - first) * below, 0.0))
        return float((p1 * p2 + side * root) / below) if below else np.inf

    if not np.isfinite([*share, *other]).all():
        return np.nan, np.nan
    return max(bound(low1, high2, -1.0), 0.0), bound(high1, low2, 1.0) if low2 > _NO_SPREAD else np.inf


def delong(y: ArrayLike, score: ArrayLike, *, level: float = 0.95) -> tuple[float, float]:
    """DeLong's interval of the AUROC of independent rows, one a subject, on the logit scale, so that it stays between 0 and 1.

    Where all pairs are ordered alike (AUROC of 1 or 0) the variance is 0 and says nothing; the interval is then Wilson's of as many answers
    as the smaller class has rows, which is the conservative side: who is in a class can be ranked right or wrong one by one.

    Parameters
    ----------
    y
        Shape (n,), 1 for positive and 0 for negative.
    score
        Shape (n,), larger for more likely positive; ties count half.
    level
        Coverage.

    Returns
    -------
    tuple of float
        NaN with fewer than two rows in a class.

    Raises
    ------
    InvalidValueError
        If shapes differ, an outcome is neither 0 nor 1, or a score is NaN.

    References
    ----------
    DeLong ER, DeLong DM, Clarke-Pearson DL (1988), Biometrics 44:837-845; Sun X, Xu W (2014), Fast implementation of DeLong's algorithm, IEEE
    Signal Process Lett 21:1389-1393.

    Examples
    --------
    >>> low, high = delong([0, 0, 1, 1, 0, 1], [0.1, 0.4, 0.35, 0.8, 0.2, 0.6])
    >>> round(low, 3), round(high, 3)
    (0.261, 0.995)
    """
    _check(level=level)
    places = _placements(y, score)
    if places is None:
        return np.nan, np.nan
    area, error = float(places[0].mean()), _placement_error(*places)
    if area in {0.0, 1.0}:
        return wilson(area, min(len(part) for part in places), level=level)
    half = -ndtri((1 - level) / 2) * error / (area * (1 - area))
    return float(expit(logit(area) - half)), float(expit(logit(area) + half))


def _placements(y: ArrayLike, score: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Share of negatives below each positive, and of positives above each negative; None with fewer than two rows in a class."""
    outcome, values = np.asarray(y), np.asarray(score, dtype=np.float64)
    if outcome.ndim != 1 or outcome.shape != values.shape:
        raise InvalidValueError("y and score", f"arrays of shapes {outcome.shape} and {values.shape}", "two arrays of shape (rows,)")
    if not np.isin(outcome, (0, 1)).all():
        raise InvalidValueError("y", "an outcome that is neither", [0, 1])
    if np.isnan(values).any():
        raise InvalidValueError("score", "NaN", "a number in every row")
    positive, negative = values[outcome == 1], values[outcome == 0]
    if min(len(positive), len(negative)) < 2:
        return None
    among_all = _midranks(values)
    below = (among_all[outcome == 1] - _midranks(positive)) / len(negative)
    above = 1 - (among_all[outcome == 0] - _midranks(negative)) / len(positive)
    return below, above


def _placement_error(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> float:
    return float(np.sqrt(positive.var(ddof=1) / len(positive) + negative.var(ddof=1) / len(negative)))


def _midranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def _standard_error(drawn: NDArray[np.float64], subjects: int) -> float:
    """Winsorised standard deviation of replicates, on the scale of a normal one's, inflated for the number of subjects."""
    drawn_in = np.clip(drawn, *np.quantile(drawn, [WINSORISED, 1 - WINSORISED]))
    return float(drawn_in.std() / _OF_NORMAL * np.sqrt(subjects / (subjects - 1)))


def _score_interval(share: float, n: float, times: float) -> tuple[float, float]:
    """Shares that `share` of n independent answers is within `times` of their own standard errors of."""
    part = times**2 / n
    middle = (share + part / 2) / (1 + part)
    half = np.sqrt(share * (1 - share) * part + part**2 / 4) / (1 + part)
    return max(float(middle - half), 0.0), min(float(middle + half), 1.0)


def _checked_share(share: float) -> float:
    if not -_NO_SPREAD <= share <= 1 + _NO_SPREAD:
        raise InvalidValueError("share", share, "a number from 0 to 1")
    return min(max(share, 0.0), 1.0)


def _base_weight(weight: ArrayLike | None, rows: int) -> NDArray[np.float64]:
    if not rows:
        raise InvalidValueError("subjects", "no row", "at least one row")
    values = np.ones(rows) if weight is None else np.asarray(weight, dtype=np.float64)
    if values.shape != (rows,):
        raise InvalidValueError("weight", f"array of shape {values.shape}", f"one weight for each of the {rows} rows")
    if not (np.isfinite(values).all() and values.min() >= 0):
        raise InvalidValueError("weight", "a negative number, NaN or infinity", "finite weights of 0 or more")
    return values


def _check(*, replicates: int = 1, level: float = 0.5, seed: int = 0, workers: int = 1) -> None:
    if not 0 < level < 1:
        raise InvalidValueError("level", level, "a number between 0 and 1")
    for what, given, least in (("replicates", replicates, 1), ("seed", seed, 0), ("workers", workers, 1)):
        if given < least:
            raise InvalidValueError(what, given, f"at least {least}")
