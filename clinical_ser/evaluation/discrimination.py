"""How well scores order, and answers sort, people: ROC and precision-recall for two classes, recall, accuracy and F1 for several.

The one idea: rows are sorted or coded once, and a figure is then read off for any row weights, since a cluster bootstrap asks some thousand
times, with weights that say how often each subject was drawn. A weight of 2 is the row twice, a weight of 0 is no row.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clinical_ser.errors import InvalidValueError

Weights = ArrayLike | None
"""Shape (n,), not negative; None counts all rows alike."""

_ROUNDING = 1e-12
"""Relative slack in which a cumulated weight counts as equal to a point of the grid: 0.7 of ten rows is seven rows, not 7.000000000000001."""


def two_class_rows(y: ArrayLike, score: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return outcome (0.0 or 1.0) and score, both of shape (n,) and checked.

    Raises
    ------
    InvalidValueError
        If shapes differ, an outcome is neither 0 nor 1, or a score is NaN (infinite scores are an order, and allowed).
    """
    outcome, value = np.asarray(y, np.float64), np.asarray(score, np.float64)
    if outcome.ndim != 1 or outcome.shape != value.shape:
        raise InvalidValueError("y and score", f"arrays of shapes {outcome.shape} and {value.shape}", "two arrays of shape (rows,)")
    if not np.isin(outcome, (0.0, 1.0)).all():
        raise InvalidValueError("y", "an outcome that is neither", [0, 1])
    if np.isnan(value).any():
        raise InvalidValueError("score", "NaN", "a number in every row")
    return outcome, value


def row_weights(weight: Weights, rows: int) -> NDArray[np.float64]:
    """Return the weights as numbers, ones for None.

    Raises
    ------
    InvalidValueError
        If there is not one for each row, or one is negative or NaN.
    """
    if weight is None:
        return np.ones(rows)
    values = np.asarray(weight, np.float64)
    if values.shape != (rows,):
        raise InvalidValueError("weight", f"array of shape {values.shape}", f"one weight for each of the {rows} rows")
    if rows and not values.min() >= 0:
        raise InvalidValueError("weight", "a negative number or NaN", "weights of 0 or more")
    return values


class Ranking:
    """Scores of two classes, sorted once.

    Parameters
    ----------
    y
        Shape (n,), 1 for positive, 0 else.
    score
        Shape (n,), larger for more likely positive. Rows of equal score are flagged together or not at all.

    Raises
    ------
    InvalidValueError
        If shapes differ, an outcome is neither 0 nor 1, or a score is NaN; each method, if the weights do not fit.

    Examples
    --------
    >>> ranking = Ranking([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    >>> ranking.auroc(None), ranking.auroc([1, 0, 1, 1])
    (0.75, 1.0)
    """

    def __init__(self, y: ArrayLike, score: ArrayLike) -> None:
        outcome, value = two_class_rows(y, score)
        self._order = np.argsort(-value, kind="stable")
        self._positive = outcome[self._order]
        ordered = value[self._order]
        last_of_score = np.append(ordered[1:] != ordered[:-1], True) if len(ordered) else np.zeros(0, bool)
        # Position 0 is the threshold above all scores, at which nobody is flagged.
        self._thresholds = None if last_of_score.all() else np.append(0, np.flatnonzero(last_of_score) + 1)

    def _counts(self, weight: Weights) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weight of true and of false positives from the highest threshold to the lowest; both begin with 0."""
        ordered = row_weights(weight, len(self._order))[self._order]
        positive = ordered * self._positive
        counts = np.zeros((2, len(ordered) + 1))
        np.cumsum(positive, out=counts[0, 1:])
        np.cumsum(ordered - positive, out=counts[1, 1:])
        true, false = counts if self._thresholds is None else counts[:, self._thresholds]
        return true, false

    def auroc(self, weight: Weights) -> float:
        """Area under the ROC curve: the share of (positive, negative) pairs ordered rightly, ties counting half (Mann-Whitney).

        A pair weighs the product of its rows' weights; NaN when one of the classes is absent or has no weight.
        """
        true, false = self._counts(weight)
        pairs = true[-1] * false[-1]
        return float(np.diff(false) @ (true[1:] + true[:-1]) / (2 * pairs)) if pairs > 0 else float("nan")

    def average_precision(self, weight: Weights) -> float:
        """Area under the precision-recall steps, the sum of (R_k - R_{k-1}) P_k over thresholds; NaN without positives.

        Its value for scores that tell nothing is the share of positives: report the two together.

        References
        ----------
        Boyd K, Eng KH, Page CD (2013), Area under the precision-recall curve: point estimates and confidence intervals, ECML PKDD, 451-466.
        """
        true, false = self._counts(weight)
        if not true[-1] > 0:
            return float("nan")
        precision = np.divide(true, true + false, out=np.zeros_like(true), where=true > 0)
        return float(np.diff(true) @ precision[1:] / true[-1])

    def true_positive_rates(self, weight: Weights, false_positive_rates: ArrayLike) -> NDArray[np.float64]:
        """Return the ROC curve over a fixed grid, straight between thresholds.

        Parameters
        ----------
        weight
            Shape (n,).
        false_positive_rates
            Shape (g,), in [0, 1].

        Returns
        -------
        ndarray of shape (g,)
            Where the curve is vertical, its upper end: the highest sensitivity at that specificity. All NaN when a class is absent.
        """
        true, false = self._counts(weight)
        grid = _shares("false_positive_rates", false_positive_rates)
        if not true[-1] * false[-1] > 0:
            return np.full(grid.shape, np.nan)
        target = grid * false[-1]
        at = np.searchsorted(false, target + _ROUNDING * false[-1], side="right") - 1
        following = np.minimum(at + 1, len(false) - 1)
        part = _part(target - false[at], false[following] - false[at])
        return np.asarray((true[at] + part * (true[following] - true[at])) / true[-1])

    def precisions(self, weight: Weights, recalls: ArrayLike) -> NDArray[np.float64]:
        """Return the precision over a fixed grid of recalls.

        Between two thresholds the counts, not the precisions, are on a straight line (Davis & Goadrich): what flagging the rows between them
        at random would give, so a precision here and a point of `true_positive_rates` tell of the same rule. The highest precision is
        neither carried to lower recalls (that is never below what a rule gives) nor joined by straight lines (likewise).

        Parameters
        ----------
        weight
            Shape (n,).
        recalls
            Shape (g,), in [0, 1]. At 0 the value is the limit from above.

        Returns
        -------
        ndarray of shape (g,)
            Where several thresholds have that recall, the highest precision. All NaN without positives.

        References
        ----------
        Davis J, Goadrich M (2006), The relationship between precision-recall and ROC curves, ICML, 233-240.
        """
        true, false = self._counts(weight)
        grid = _shares("recalls", recalls)
        if not true[-1] > 0:
            return np.full(grid.shape, np.nan)
        target = grid * true[-1]
        reached = np.searchsorted(true, np.maximum(target - _ROUNDING * true[-1], 0), side="left")
        at = np.maximum(reached, np.searchsorted(true, 0, side="right"))
        before_true, before_false = true[at - 1], false[at - 1]
        flagged_falsely = before_false + _part(target - before_true, true[at] - before_true) * (false[at] - before_false)
        first = (true[at] - before_true) / (true[at] - before_true + false[at] - before_false)
        limit = np.where(before_false > 0, 0.0, first)
        return np.where(target > 0, np.divide(target, target + flagged_falsely, out=np.ones_like(target), where=target > 0), limit)


def _shares(what: str, values: ArrayLike) -> NDArray[np.float64]:
    shares = np.asarray(values, np.float64)
    if not ((shares >= 0) & (shares <= 1)).all():
        raise InvalidValueError(what, "a value outside", "shares from 0 to 1")
    return shares


def _part(gone: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how much of a way is gone, from 0 to 1; 0 of a way of no length."""
    return np.clip(np.divide(gone, whole, out=np.zeros_like(whole), where=whole > 0), 0, 1)


class Confusion:
    """Answers in classes 0..K-1 beside the truth, coded once.

    Parameters
    ----------
    y, answer
        Shape (n,), numbers from 0 to `classes` - 1.
    classes
        K, which may be 2.

    Raises
    ------
    InvalidValueError
        If shapes differ or a number is out of range.

    Examples
    --------
    >>> Confusion([0, 1, 1], [0, 0, 1], 2).matrix([1, 1, 3]).tolist()
    [[1.0, 0.0], [1.0, 3.0]]
    """

    def __init__(self, y: ArrayLike, answer: ArrayLike, classes: int) -> None:
        truth, answered = np.asarray(y, np.int64), np.asarray(answer, np.int64)
        if truth.ndim != 1 or truth.shape != answered.shape:
            raise InvalidValueError("y and answer", f"arrays of shapes {truth.shape} and {answered.shape}", "two arrays of shape (rows,)")
        if truth.size and not (min(truth.min(), answered.min()) >= 0 and max(truth.max(), answered.max()) < classes):
            raise InvalidValueError("y or answer", "a number out of range", f"classes from 0 to {classes - 1}")
        self._cell = truth * classes + answered
        self._classes = classes

    def matrix(self, weight: Weights) -> NDArray[np.float64]:
        """Return the weight of rows, shape (K, K): row, the true class; column, the answer."""
        counts = np.bincount(self._cell, row_weights(weight, len(self._cell)), self._classes**2)
        return np.asarray(counts.reshape(self._classes, self._classes), np.float64)


def recalls_of(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the recall of each class of a confusion matrix, shape (K,); NaN for classes that nobody has."""
    return _ratio(np.diag(matrix), matrix.sum(axis=1))


def unweighted_average_recall_of(matrix: NDArray[np.float64]) -> float:
    """Mean recall over the classes present in the truth (UAR, "UA", balanced accuracy); NaN for an empty matrix."""
    return _mean(recalls_of(matrix), matrix.sum(axis=1) > 0)


def accuracy_of(matrix: NDArray[np.float64]) -> float:
    """Share of the weight on the diagonal ("WA"); NaN for an empty matrix."""
    return float(_ratio(np.trace(matrix), matrix.sum()))


def f1_macro_of(matrix: NDArray[np.float64]) -> float:
    """Mean F1 over the classes present in truth or answers; 0 for one never answered or never true, as scikit-learn's zero_division=0."""
    return _mean(_f1(matrix), matrix.sum(axis=0) + matrix.sum(axis=1) > 0)


def f1_weighted_of(matrix: NDArray[np.float64]) -> float:
    """Mean F1 weighted by how common the classes are in the truth; NaN for an empty matrix."""
    return float(_ratio(np.nan_to_num(_f1(matrix)) @ matrix.sum(axis=1), matrix.sum()))


def _f1(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    return _ratio(2 * np.diag(matrix), matrix.sum(axis=0) + matrix.sum(axis=1))


def _ratio(part: ArrayLike, whole: ArrayLike) -> NDArray[np.float64]:
    """Divide where there is something to divide by, NaN else."""
    divisor = np.asarray(whole, np.float64)
    return np.divide(part, divisor, out=np.full(divisor.shape, np.nan), where=divisor > 0)


def _mean(values: NDArray[np.float64], among: NDArray[np.bool_]) -> float:
    return float(values[among].mean()) if among.any() else float("nan")


def auroc(y: ArrayLike, score: ArrayLike, weight: Weights = None) -> float:
    """Area under the ROC curve of rows that are asked about once; see `Ranking.auroc`.

    Examples
    --------
    >>> auroc([0, 0, 1, 1], [1.0, 2.0, 2.0, 3.0])
    0.875
    """
    return Ranking(y, score).auroc(weight)


def average_precision(y: ArrayLike, score: ArrayLike, weight: Weights = None) -> float:
    """Area under the precision-recall steps of rows that are asked about once; see `Ranking.average_precision`."""
    return Ranking(y, score).average_precision(weight)


def unweighted_average_recall(y: ArrayLike, answer: ArrayLike) -> float:
    """Mean of the classes' recalls (UAR, "UA", balanced accuracy) over the classes present in `y`; both shape (n,).

    Examples
    --------
    >>> unweighted_average_recall([0, 0, 0, 1], [0, 0, 1, 1])
    0.8333333333333333
    """
    truth, answered = np.asarray(y), np.asarray(answer)
    names, codes = np.unique(np.concatenate([truth, answered]), return_inverse=True)
    return unweighted_average_recall_of(Confusion(codes[: len(truth)], codes[len(truth) :], len(names)).matrix(None))
