"""Whether probabilities mean what they say: intercept and slope, the Brier score and its parts, calibration errors, the reliability curve.

The one idea: what depends on the rows alone (bins, grids, starting points, the curve's span) is prepared once, and each figure is then taken
for any row weights, since a cluster bootstrap asks some thousand times. What smooths works on a grid, at a cost that does not grow with rows.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.fft import dct
from scipy.optimize import brentq
from scipy.sparse import csr_array
from scipy.special import expit

from clinical_ser.errors import InvalidValueError
from clinical_ser.evaluation.discrimination import Weights, row_weights, two_class_rows

SMALLEST_PROBABILITY = 1e-12
"""Stated probabilities are held this far from 0 and 1, so that certainty has finite log-odds (±27.6)."""

BINS = 10
"""Bins of equal numbers, as for the Hosmer-Lemeshow test; fewer where they would hold fewer than `SUBJECTS_IN_A_BIN`."""
SUBJECTS_IN_A_BIN = 10
"""Below this the variance of a bin's mean is itself a guess."""

SPANS = (0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)
"""Shares of the rows that a point of the reliability curve looks at, of which cross-validation takes one. 0.75 is what loess in R takes unasked
and Austin & Steyerberg (2014, Statistics in Medicine 33:517-535) kept; at thousands of rows it irons real miscalibration flat."""
FOLDS = 10
SUBJECTS_BEYOND = 5
"""The reliability curve is drawn between the 5th lowest and the 5th highest subject: further out it would tell of single people."""

_ERROR_CELLS = 4096
"""Of the smooth ECE's grid. Against the sum over all pairs of rows and points the error was 2e-6 of the value at 300 rows, 3e-5 at 20,000."""
_CURVE_CELLS = 1024
_CHOICE_CELLS = 128
"""Points at which spans are compared."""

_NEWTON_STEPS = 100
_CLOSE = 1e-6
"""Newton stops when a step changes no row's log-odds by more: it squares the error, so what is left is about 1e-12."""
_SINGULAR = 1e-12

_Pair = tuple[float, float]


class Reliability:
    """Stated probabilities beside what happened, prepared for many row weights.

    Several classes: `y` is whether the most probable class was the right one, `log_odds` the logit of its probability.

    Parameters
    ----------
    y
        Shape (n,), 1 for positive, 0 else.
    log_odds
        Shape (n,), logit of the stated probability; infinite ones are held at the logit of 1 - `SMALLEST_PROBABILITY`.
    subjects
        Shape (n,), whom each row comes from; None: every row its own. Only noise estimates and the choice of the span ask for it.
    base_weight
        Shape (n,), the weights at which every subject counts once: a subject drawn m times has m times these. None: 1 in each row. With every
        subject of total weight 1 (`models.weights.subject_weights`) they have to be given, or `debiased_ece` takes a subject of five
        recordings for a fifth of one.

    Raises
    ------
    InvalidValueError
        If shapes differ, there is no row, an outcome is neither 0 nor 1, or a log-odds is NaN; each method, if the weights do not fit.

    Examples
    --------
    >>> reliability = Reliability([0, 0, 1, 0, 1, 1], [-2.0, -1.0, -0.5, 0.5, 1.0, 2.0])
    >>> round(reliability.brier(None), 3), round(reliability.observed_to_expected(None), 3)
    (0.158, 1.0)
    >>> low, resolution, uncertainty = reliability.brier_parts(None)
    >>> round(low - resolution + uncertainty, 3)
    0.158
    """

    def __init__(self, y: ArrayLike, log_odds: ArrayLike, subjects: ArrayLike | None = None, *, base_weight: ArrayLike | None = None) -> None:
        outcome, stated = two_class_rows(y, log_odds)
        if not len(outcome):
            raise InvalidValueError("y", "no row", "at least one")
        self._y = outcome
        self._log_odds = _held(stated)
        self._p = expit(self._log_odds)
        self._squared = (self._p - outcome) ** 2
        self._base = row_weights(base_weight, len(outcome))
        self._subject = np.arange(len(outcome)) if subjects is None else np.unique(np.asarray(subjects), return_inverse=True)[1]
        if self._subject.shape != outcome.shape:
            raise InvalidValueError("subjects", f"array of shape {self._subject.shape}", f"one for each of the {len(outcome)} rows")
        self._curve_at: tuple[bytes, csr_array] | None = None

    @cached_property
    def _cox(self) -> "_Cox":
        return _Cox(self._y, self._log_odds, self._base)

    @cached_property
    def _bins(self) -> "_Bins":
        return _Bins(self._y, self._p, self._subject, self._base)

    @cached_property
    def _smooth_error(self) -> "_SmoothError":
        return _SmoothError(self._y, self._p)

    @cached_property
    def _loess(self) -> "_Loess":
        return _Loess(self._y, self._p, self._subject, self._base)

    def _weights(self, weight: Weights) -> NDArray[np.float64]:
        return row_weights(weight, len(self._y))

    def brier(self, weight: Weights) -> float:
        """Mean squared distance of the probability from the outcome; NaN without weight."""
        each = self._weights(weight)
        return _over(each @ self._squared, each.sum())

    def brier_parts(self, weight: Weights) -> tuple[float, float, float]:
        """Split the Brier score: reliability - resolution + uncertainty is `brier`, exactly.

        Bins hold equal numbers of rows and are the same for all weights. Reliability (the miscalibration; 0 is best) and uncertainty (the
        score of always stating the prevalence) are Murphy's. Resolution is generalised: with the two terms for probabilities that differ
        within a bin, without which the sum is not the score.

        Returns
        -------
        tuple of float
            Reliability, resolution and uncertainty; NaN without weight.

        References
        ----------
        Murphy AH (1973), J Appl Meteorol 12:595-600; Stephenson DB, Coelho CAS, Jolliffe IT (2008), Weather and Forecasting 23:752-757.
        """
        return self._bins.brier_parts(self._weights(weight))

    def intercept_and_slope(self, weight: Weights) -> _Pair:
        """Calibration intercept (slope fixed at 1) and slope; see the function of this name."""
        return self._cox.fit(self._weights(weight))

    def observed_to_expected(self, weight: Weights) -> float:
        """Ratio of the positives to the sum of stated probabilities (O:E); above 1 the risk is stated too low. NaN without weight."""
        each = self._weights(weight)
        return _over(each @ self._y, each @ self._p)

    def debiased_ece(self, weight: Weights) -> float:
        """Root of `debiased_squared_error`, or 0 where that is negative."""
        squared = self.debiased_squared_error(weight)
        return float(np.sqrt(max(squared, 0.0))) if np.isfinite(squared) else float("nan")

    def debiased_squared_error(self, weight: Weights) -> float:
        """Mean squared miscalibration over bins of equal numbers, less what noise alone would give.

        The plug-in estimate of a well-calibrated model is all noise (at 100 people the usual ECE of ten bins is 0.11). Kumar, Liang & Ma
        subtract the binomial variance of each bin's mean. Recordings of one person are no independent draws, so here it is the
        between-subject variance of the bin's mean residual, with the factor k / (k - 1) for k subjects; with a row a subject and one
        probability a bin that is their estimator.

        Returns
        -------
        float
            About 0 on average when perfectly calibrated, so often negative. NaN where a bin holds a single subject.

        References
        ----------
        Kumar A, Liang P, Ma T (2019), Verified uncertainty calibration, NeurIPS 32, arXiv:1909.10155.
        """
        return self._bins.debiased_squared_error(self._weights(weight))

    def smooth_ece(self, weight: Weights) -> float:
        """Smooth calibration error: mean absolute residual after smoothing over the probability by a kernel as wide as the error itself.

        A reflected Gaussian kernel of SD s gives an error that falls with s; the answer is where the two are equal, so nobody has to choose
        bins or a width. An error below twice the cell of the grid (0.0005) is that under a kernel of this SD.

        Returns
        -------
        float
            Never 0 on a finite sample: noise counts, and about 0.07 is a well-calibrated model at 100 rows. NaN without weight.

        References
        ----------
        Błasiok J, Nakkiran P (2023), Smooth ECE: principled reliability diagrams via kernel smoothing, arXiv:2309.12236.
        """
        return self._smooth_error.of(self._weights(weight))

    def curve(self, weight: Weights, grid: ArrayLike) -> NDArray[np.float64]:
        """Smoothed share of positives over the stated probability: local straight lines with tricube weights (loess).

        A straight line, not a mean, since a mean bends toward the middle at both ends, which looks like overconfidence. Each point looks at
        the nearest `span` share of the rows, since stated risks crowd near the prevalence and one width would not fit crowd and tail. The
        span is chosen once, by cross-validation over subjects, and stays for all weights, so that a bootstrap band is of one smoother.

        Parameters
        ----------
        weight
            Shape (n,).
        grid
            Shape (g,), probabilities in [0, 1].

        Returns
        -------
        ndarray of shape (g,)
            In [0, 1]; NaN beyond the `SUBJECTS_BEYOND` lowest and highest subjects, and where no weight is near.

        References
        ----------
        Cleveland WS (1979), J Am Stat Assoc 74:829-836; Austin PC, Steyerberg EW (2014), Statistics in Medicine 33:517-535.
        """
        at = np.asarray(grid, np.float64)
        if at.ndim != 1 or not ((at >= 0) & (at <= 1)).all():
            raise InvalidValueError("grid", f"array of shape {at.shape}", "probabilities from 0 to 1")
        if self._curve_at is None or self._curve_at[0] != at.tobytes():
            self._curve_at = at.tobytes(), self._loess.kernel(at)
        fitted = _local_lines(self._curve_at[1], self._loess.masses(self._weights(weight)))
        return np.where(self._loess.supported(at), fitted, np.nan)

    @property
    def span(self) -> float:
        """Share of the rows that a point of `curve` looks at, one of `SPANS`."""
        return self._loess.span


def brier(y: ArrayLike, probability: ArrayLike, weight: Weights = None) -> float:
    """Mean squared distance of the probability from the outcome; shapes (n,) for two classes, (n, K) with y in 0..K-1 for more.

    `weight`, shape (n,), lets subjects count alike; None counts rows alike. NaN without weight.

    Examples
    --------
    >>> round(brier([0, 1], [0.2, 0.6]), 3), round(brier([0, 1], [[0.8, 0.2], [0.4, 0.6]]), 3)
    (0.1, 0.2)
    """
    p = np.asarray(probability, np.float64)
    outcome = np.asarray(y) if p.ndim == 1 else np.eye(p.shape[1])[np.asarray(y)]
    squared = (p - outcome) ** 2
    each = row_weights(weight, len(p))
    return _over(each @ (squared if p.ndim == 1 else squared.sum(axis=1)), each.sum())


def intercept_and_slope(y: ArrayLike, log_odds: ArrayLike, weight: Weights = None) -> _Pair:
    """Calibration intercept (slope fixed at 1) and slope; 0 and 1 when perfect.

    Parameters
    ----------
    y
        Shape (n,), 1 for positive.
    log_odds
        Shape (n,), logit of the stated probability.
    weight
        Shape (n,), not negative; None: all alike.

    Returns
    -------
    tuple of float
        Both NaN where one class is absent; the slope NaN where the classes are separated, so that no finite fit exists.

    References
    ----------
    Cox DR (1958), Biometrika 45:562-565; Van Calster B et al. (2019), BMC Medicine 17:230.
    """
    outcome, stated = two_class_rows(y, log_odds)
    each = row_weights(weight, len(outcome))
    return _Cox(outcome, _held(stated), None).fit(each) if len(outcome) else (float("nan"), float("nan"))


def _held(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    limit = -np.log(SMALLEST_PROBABILITY)
    return np.clip(log_odds, -limit, limit)


def _over(part: np.float64 | NDArray[np.float64], whole: np.float64 | NDArray[np.float64]) -> float:
    return float(part / whole) if whole > 0 else float("nan")


class _Cox:
    """Intercept and slope of the outcome on the log-odds, each from where the fit to the `base` weights ended (None: from perfect)."""

    def __init__(self, y: NDArray[np.float64], x: NDArray[np.float64], base: NDArray[np.float64] | None) -> None:
        centre, spread = x.mean(), x.std() or 1.0
        z = (x - centre) / spread
        self._spread = spread
        self._shift = _Logistic(y, x, np.ones((1, len(x))), np.zeros(1))
        self._line = _Logistic(y, np.zeros_like(x), np.stack([np.ones_like(x), z, z**2]), np.array([centre, spread]))
        self._rows = [rows[np.argsort(x[rows], kind="stable")] for rows in (np.flatnonzero(y == k) for k in (0, 1))]
        self._x = [x[rows] for rows in self._rows]
        if base is not None and self._exist(base)[0]:
            self._shift.start_at(self._shift.fit(base))
            if self._exist(base)[1]:
                self._line.start_at(self._line.fit(base))

    def fit(self, weight: NDArray[np.float64]) -> _Pair:
        of_intercept, of_slope = self._exist(weight)
        intercept = self._shift.fit(weight)[0] if of_intercept else np.nan
        slope = self._line.fit(weight)[1] / self._spread if of_slope else np.nan
        return float(intercept), float(slope)

    def _exist(self, weight: NDArray[np.float64]) -> tuple[bool, bool]:
        """Whether the fits are finite: with both classes, and with ranges that overlap (Albert & Anderson 1984, Biometrika 71:1-10)."""
        counted = [weight[rows] > 0 for rows in self._rows]
        if not all(some.any() for some in counted):
            return False, False
        (low_0, high_0), (low_1, high_1) = ((x[some.argmax()], x[len(x) - 1 - some[::-1].argmax()]) for x, some in zip(self._x, counted, strict=True))
        return True, bool(high_0 > low_1 and high_1 > low_0)


class _Logistic:
    """Weighted maximum likelihood of logit P(y = 1) = offset + b_0 + b_1 z (+ ...), by Newton's method.

    `powers`, shape (2d - 1, n), holds z to the powers 0 to 2d - 2: the first d rows are the design, and all of them make the Hessian, whose
    entry (i, j) belongs to the power i + j.
    """

    def __init__(self, y: NDArray[np.float64], offset: NDArray[np.float64], powers: NDArray[np.float64], start: NDArray[np.float64]) -> None:
        self._y, self._offset, self._powers = y, offset, powers
        self._size = len(start)
        z = powers[-1] if self._size == 1 else powers[1]
        self._ends = np.stack([np.full(2, 1.0), [z.min(), z.max()]])[: self._size]
        self.start_at(start)

    def start_at(self, beta: NDArray[np.float64]) -> None:
        """Begin every fit there; the rows' parts in the first step are then known before the weights are."""
        if not np.isfinite(beta).all():
            return
        self._start = beta
        p = self._probability(beta)
        self._first = np.concatenate([self._powers[: self._size] * (self._y - p), self._powers * (p * (1 - p))])

    def _probability(self, beta: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(expit(beta @ self._powers[: self._size] + self._offset))

    def fit(self, weight: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return b, shape (d,); the caller has seen to it that a finite one exists. NaN where the rows hardly differ in z."""
        beta, d = self._start, self._size
        sums = self._first @ weight
        for _ in range(_NEWTON_STEPS):
            step = _solved(sums[:d], sums[d:])
            reach = float(np.abs(step @ self._ends).max())
            if not np.isfinite(reach):
                break
            # Far steps may overshoot; shortened like this they never do (Sun & Tran-Dinh 2019, Mathematical Programming 178:145-213).
            beta = beta + step * (np.log1p(reach) / reach if reach > 1 else 1.0)
            if reach < _CLOSE:
                return beta
            p = self._probability(beta)
            weighted = weight * p
            sums = np.concatenate([self._powers[:d] @ (weight * self._y - weighted), self._powers @ (weighted * (1 - p))])
        return np.full(d, np.nan)


def _solved(gradient: NDArray[np.float64], moments: NDArray[np.float64]) -> NDArray[np.float64]:
    """Newton step from the gradient and the moments that fill the Hessian; NaN where that is singular."""
    if len(gradient) == 1:
        return gradient / moments if moments[0] > 0 else np.full(1, np.nan)
    m0, m1, m2 = moments
    determinant = m0 * m2 - m1**2
    if not determinant > _SINGULAR * m0 * m2:
        return np.full(2, np.nan)
    return np.array([m2 * gradient[0] - m1 * gradient[1], m0 * gradient[1] - m1 * gradient[0]]) / determinant


class _Bins:
    """Rows sorted by bin and, within it, by subject. Bins are quantiles of the probability; equal probabilities share a bin."""

    def __init__(self, y: NDArray[np.float64], p: NDArray[np.float64], subject: NDArray[np.intp], base: NDArray[np.float64]) -> None:
        people = int(subject.max()) + 1
        wanted = max(1, min(BINS, people // SUBJECTS_IN_A_BIN))
        edges = np.quantile(p, np.arange(1, wanted) / wanted, method="inverted_cdf")
        bins = np.unique(np.searchsorted(edges, p, side="left"), return_inverse=True)[1]
        self._order = np.lexsort((subject, bins))
        bins, self._y, self._p = bins[self._order], y[self._order], p[self._order]
        self._subject, self._people = subject, people
        self._base = np.bincount(subject, base, people)
        new_bin = np.append(True, bins[1:] != bins[:-1])
        new_pair = new_bin | np.append(True, np.diff(subject[self._order]) != 0)
        pairs = np.flatnonzero(new_pair)
        self._pair_subject = subject[self._order][pairs]
        self._pairs = None if len(pairs) == len(y) else pairs
        self._pair_bin = bins[pairs]
        self._bin_rows = np.flatnonzero(new_bin)
        self._bin_pairs = np.flatnonzero(new_bin[pairs])
        self._moments = np.stack([np.ones_like(self._p), self._y, self._p, self._p**2, self._y * self._p])

    def brier_parts(self, weight: NDArray[np.float64]) -> tuple[float, float, float]:
        total = weight.sum()
        if not total > 0:
            return float("nan"), float("nan"), float("nan")
        n, y, p, pp, yp = np.add.reduceat(self._moments * (weight[self._order] / total), self._bin_rows, axis=1)
        shares = np.maximum(n, np.finfo(float).tiny)  # a bin without weight has zeros above it
        rate, stated = y / shares, p / shares
        prevalence = y.sum()
        reliability = n @ (stated - rate) ** 2
        within = (pp - p * stated).sum() - 2 * (yp - y * stated).sum()
        resolution = n @ (rate - prevalence) ** 2 - within
        return float(reliability), float(resolution), float(prevalence * (1 - prevalence))

    def debiased_squared_error(self, weight: NDArray[np.float64]) -> float:
        total = weight.sum()
        if not total > 0:
            return float("nan")
        times = np.divide(np.bincount(self._subject, weight, self._people), self._base, out=np.zeros(self._people), where=self._base > 0)
        ordered = weight[self._order]
        counted, missed = (self._by_pair(values) for values in (ordered, ordered * (self._y - self._p)))
        n, r = (np.add.reduceat(values, self._bin_pairs) for values in (counted, missed))
        mean = np.divide(r, n, out=np.zeros_like(r), where=n > 0)
        own = missed - mean[self._pair_bin] * counted
        # A subject drawn m times is m subjects, each with 1/m of the weight that the row has now: m (u/m)² is u²/m.
        copies = times[self._pair_subject] * (counted > 0)
        squares = np.divide(own**2, copies, out=np.zeros_like(own), where=copies > 0)
        people, spread = (np.add.reduceat(values, self._bin_pairs) for values in (copies, squares))
        used = n > 0
        if (people[used] <= 1).any():
            return float("nan")
        noise = spread[used] / n[used] ** 2 * people[used] / (people[used] - 1)
        return float(n[used] @ (mean[used] ** 2 - noise) / total)

    def _by_pair(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values if self._pairs is None else np.add.reduceat(values, self._pairs)


def _deposit(p: NDArray[np.float64], value: NDArray[np.float64], cells: int) -> csr_array:
    """Matrix that takes row weights to `cells` cells of [0, 1], each row shared between the two nearest centres so that its place is kept.

    Beyond the outermost centres all of it goes to the outermost, which is what reflection at 0 and 1 does.
    """
    place = p * cells - 0.5
    left = np.floor(place).astype(np.intp)
    part = place - left
    rows = np.arange(len(p))
    cell = np.clip(np.concatenate([left, left + 1]), 0, cells - 1)
    return csr_array((np.concatenate([value * (1 - part), value * part]), (cell, np.concatenate([rows, rows]))), shape=(cells, len(p)))


class _SmoothError:
    """Residuals on a grid of cells; the reflected Gaussian kernel multiplies each mode of their cosine transform by a factor.

    The kernel with reflections at 0 and 1 without end is 1 + 2 Σ_k exp(-(π k s)² / 2) cos(π k t) cos(π k u), the heat kernel.
    """

    def __init__(self, y: NDArray[np.float64], p: NDArray[np.float64]) -> None:
        self._residuals = _deposit(p, y - p, _ERROR_CELLS)
        self._decay = -((np.pi * np.arange(_ERROR_CELLS)) ** 2) / 2

    def of(self, weight: NDArray[np.float64]) -> float:
        total = weight.sum()
        if not total > 0:
            return float("nan")
        modes = dct(self._residuals @ (weight / total), type=2) / 2
        narrowest = 2 / _ERROR_CELLS
        error = self._under(modes, narrowest)
        if error <= narrowest:
            return error
        # The error falls as the SD grows, so the SD that equals it lies below the error under the narrowest kernel.
        return float(brentq(lambda sd: self._under(modes, sd) - sd, narrowest, min(error, 1.0), xtol=1e-9))

    def _under(self, modes: NDArray[np.float64], sd: float) -> float:
        """Mean absolute smoothed residual under a kernel of that SD; it falls as the SD grows."""
        kept = min(_ERROR_CELLS, int(9 / (np.pi * sd)) + 1)  # exp(-9²/2) is 3e-18
        return float(np.abs(dct(modes[:kept] * np.exp(self._decay[:kept] * sd**2), type=3, n=_ERROR_CELLS)).mean())


@dataclass(frozen=True)
class _Sample:
    """Sorted probabilities, to find how far the nearest share of them reaches."""

    p: NDArray[np.float64]

    def reach(self, at: NDArray[np.float64], span: float) -> NDArray[np.float64]:
        """Distance from each point within which `span` of the rows lie; at least two cells of the curve's grid."""
        wanted = np.ceil(span * len(self.p))
        low, high = np.zeros_like(at), np.ones_like(at)
        while (high - low).max() > 0.1 / _CURVE_CELLS:
            middle = (low + high) / 2
            inside = np.searchsorted(self.p, at + middle, side="right") - np.searchsorted(self.p, at - middle, side="left")
            low, high = np.where(inside >= wanted, low, middle), np.where(inside >= wanted, middle, high)
        return np.maximum(high, 2 / _CURVE_CELLS)

    def kernel(self, at: NDArray[np.float64], span: float) -> NDArray[np.float64]:
        """Tricube weights of the cells around each point, times their distance to the powers 0, 1, 2: shape (3 g, cells)."""
        distance = (_centres(_CURVE_CELLS) - at[:, None]) / self.reach(at, span)[:, None]
        tricube = np.clip(1 - np.abs(distance) ** 3, 0, None) ** 3
        return np.concatenate([tricube, tricube * distance, tricube * distance**2])


def _centres(cells: int) -> NDArray[np.float64]:
    return (np.arange(cells) + 0.5) / cells


def _local_lines(kernel: csr_array | NDArray[np.float64], masses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Value at each point of the weighted line through the cells around it, held in [0, 1]; NaN where they hold no weight.

    `masses`, shape (cells, 2): weight of negatives and of positives. Where all weight is at one place, its mean.
    """
    negative, positive = (kernel @ masses).reshape(3, -1, 2).transpose(2, 0, 1)
    (s0, s1, s2), (t0, t1, _) = negative + positive, positive
    determinant = s0 * s2 - s1**2
    line = determinant > 1e-9 * s0**2
    fitted = np.divide(t0, s0, out=np.full_like(s0, np.nan), where=s0 > 1e-9 * masses.sum() / len(masses))
    np.divide(s2 * t0 - s1 * t1, determinant, out=fitted, where=line)
    return np.clip(fitted, 0, 1)


class _Loess:
    """The reliability curve's smoother: rows put on cells, a span, and the range in which there are people enough."""

    def __init__(self, y: NDArray[np.float64], p: NDArray[np.float64], subject: NDArray[np.intp], base: NDArray[np.float64]) -> None:
        self._sample = _Sample(np.sort(p))
        self._cells = [_deposit(p, np.where(y == k, 1.0, 0.0), _CURVE_CELLS) for k in (0, 1)]
        for cells in self._cells:
            cells.eliminate_zeros()
        self._low, self._high = _range_of_people(p, subject)
        self.span = self._chosen(subject, base)

    def masses(self, weight: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weight of negatives and positives on the cells, shape (cells, 2)."""
        return np.column_stack([cells @ weight for cells in self._cells])

    def kernel(self, at: NDArray[np.float64]) -> csr_array:
        return csr_array(self._sample.kernel(at, self.span))

    def supported(self, at: NDArray[np.float64]) -> NDArray[np.bool_]:
        return np.asarray((at >= self._low) & (at <= self._high))

    def _chosen(self, subject: NDArray[np.intp], base: NDArray[np.float64]) -> float:
        """Span of the smallest squared error on subjects left out, of equal ones the widest; the widest too where there are few subjects."""
        people = int(subject.max()) + 1
        if people < 2 * FOLDS:
            return SPANS[-1]
        fold = np.random.default_rng(0).permutation(people)[subject] % FOLDS
        held_out = [self.masses(base * (fold == k)) for k in range(FOLDS)]
        whole = np.sum(held_out, axis=0)
        return min(reversed(SPANS), key=lambda span: self._error(self._sample.kernel(_centres(_CHOICE_CELLS), span), whole, held_out))

    @staticmethod
    def _error(kernel: NDArray[np.float64], whole: NDArray[np.float64], held_out: list[NDArray[np.float64]]) -> float:
        """Sum of squared errors on each fold of the curve through the others."""
        error = 0.0
        for fold in held_out:
            rest = whole - fold
            fitted = _local_lines(kernel, rest)
            guess = np.where(np.isfinite(fitted), fitted, rest[:, 1].sum() / rest.sum())
            negative, positive = fold.reshape(_CHOICE_CELLS, -1, 2).sum(axis=1).T
            error += float(negative @ guess**2 + positive @ (1 - guess) ** 2)
        return error


def _range_of_people(p: NDArray[np.float64], subject: NDArray[np.intp]) -> _Pair:
    """Probabilities that `SUBJECTS_BEYOND` subjects reach or go below, and reach or go above; an empty range where there are fewer."""
    people = int(subject.max()) + 1
    if people < SUBJECTS_BEYOND:
        return 1.0, 0.0
    lowest, highest = np.ones(people), np.zeros(people)
    np.minimum.at(lowest, subject, p)
    np.maximum.at(highest, subject, p)
    return float(np.sort(lowest)[SUBJECTS_BEYOND - 1]), float(np.sort(highest)[-SUBJECTS_BEYOND])
