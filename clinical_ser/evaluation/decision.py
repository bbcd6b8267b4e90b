"""What acting on the answers is worth: net benefit over thresholds, and predictive values where the condition is more, or less, common.

The one idea: a threshold probability says how many false alarms one found person is worth, so benefit and harm add up on one scale.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logit

from clinical_ser.errors import InvalidValueError
from clinical_ser.evaluation.discrimination import Weights, row_weights, two_class_rows

DEFAULT_THRESHOLDS: NDArray[np.float64] = np.arange(1, 100) / 100
"""Every per cent from 1 to 99; which part of it is reasonable in a clinic is for a person to say."""
DEFAULT_THRESHOLDS.setflags(write=False)


def net_benefit(sensitivity: ArrayLike, specificity: ArrayLike, threshold: ArrayLike, prevalence: ArrayLike) -> NDArray[np.float64]:
    r"""Weigh people found against false alarms at the threshold's exchange rate, per person screened.

    :math:`\text{sens} \cdot \pi - (1 - \text{spec}) (1 - \pi) \, t / (1 - t)`: 0.02 is as good as two people more found in a hundred, and
    nobody alarmed in vain.

    Parameters
    ----------
    sensitivity, specificity
        Shares in [0, 1], of shapes that broadcast; NaN goes through.
    threshold
        Probability at which a person would just be seen, strictly between 0 and 1.
    prevalence
        Share of positives in [0, 1].

    Raises
    ------
    InvalidValueError
        If a threshold is not strictly between 0 and 1, or a prevalence is not a share.

    References
    ----------
    Vickers AJ, Elkin EB (2006), Decision curve analysis, Medical Decision Making 26:565-574.

    Examples
    --------
    >>> round(float(net_benefit(0.8, 0.7, 0.2, 0.1)), 4)
    0.0125
    """
    t, p = np.asarray(threshold, np.float64), _prevalence(prevalence)
    if not ((t > 0) & (t < 1)).all():
        raise InvalidValueError("threshold", "a value outside", "probabilities strictly between 0 and 1")
    return np.asarray(np.multiply(sensitivity, p) - (1 - np.asarray(specificity)) * (1 - p) * t / (1 - t))


def predictive_values(sensitivity: ArrayLike, specificity: ArrayLike, prevalence: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positive and negative predictive value at a stated prevalence, by Bayes' rule.

    Parameters
    ----------
    sensitivity, specificity, prevalence
        Shares in [0, 1], of shapes that broadcast; NaN goes through.

    Returns
    -------
    tuple of ndarray
        PPV and NPV; NaN where nobody, or everybody, is flagged.

    Raises
    ------
    InvalidValueError
        If a prevalence is not a share.

    Examples
    --------
    >>> [round(float(predictive_values(0.8, 0.7, prevalence)[0]), 2) for prevalence in (0.05, 0.20)]
    [0.12, 0.4]
    """
    p = _prevalence(prevalence)
    sens, spec = np.asarray(sensitivity, np.float64), np.asarray(specificity, np.float64)
    return _share(sens * p, (1 - spec) * (1 - p)), _share(spec * (1 - p), (1 - sens) * p)


def _share(right: NDArray[np.float64], wrong: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return right / (right + wrong); a missing share beside a count of 0 is not taken for one."""
    whole = right + wrong
    return np.divide(right, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def _prevalence(value: ArrayLike) -> NDArray[np.float64]:
    shares = np.asarray(value, np.float64)
    if not ((shares >= 0) & (shares <= 1)).all():
        raise InvalidValueError("prevalence", "a value outside", "shares from 0 to 1")
    return shares


class DecisionCurve:
    """Net benefit of acting on a model over threshold probabilities; rows are put between the thresholds once.

    Parameters
    ----------
    y
        Shape (n,), 1 for positive, 0 else.
    log_odds
        Shape (n,), calibrated, at the prevalence at which the model is to be judged: the sample's, or `prevalence` (see
        `models.prevalence.shift_log_odds`). A row is acted on where its log-odds reach the threshold's.
    thresholds
        Shape (t,), probabilities strictly between 0 and 1, increasing.
    prevalence
        None: net benefit in the weighted sample as it is. A share: the classes are reweighted so that positives have it, as for a
        case-control sample.

    Raises
    ------
    InvalidValueError
        If shapes differ, an outcome is neither 0 nor 1, a log-odds is NaN, or thresholds or prevalence are not as said.

    References
    ----------
    Vickers AJ, Elkin EB (2006), Decision curve analysis, Medical Decision Making 26:565-574; Vickers AJ, Cronin AM, Elkin EB, Gonen M (2008),
    Extensions to decision curve analysis, BMC Medical Informatics and Decision Making 8:53 (case-control samples).

    Examples
    --------
    >>> curve = DecisionCurve([0, 0, 1, 1], [-2.0, 0.5, -0.5, 3.0], [0.2, 0.5], prevalence=None)
    >>> curve.net_benefit(None).tolist(), curve.treat_all(None).tolist()
    ([0.4375, 0.0], [0.375, 0.0])
    """

    def __init__(self, y: ArrayLike, log_odds: ArrayLike, thresholds: ArrayLike, *, prevalence: float | None) -> None:
        outcome, value = two_class_rows(y, log_odds)
        grid = np.asarray(thresholds, np.float64)
        if grid.ndim != 1 or not grid.size or not ((grid > 0) & (grid < 1)).all() or not (np.diff(grid) > 0).all():
            raise InvalidValueError("thresholds", f"array of shape {grid.shape}", "increasing probabilities strictly between 0 and 1")
        self._prevalence = None if prevalence is None else float(_prevalence(prevalence))
        self._thresholds = grid
        self._cells = len(grid) + 1
        # In log-odds, so that a row stated at exactly a threshold is not rounded below it on the way to a probability.
        reached = np.searchsorted(logit(grid), value, side="right")
        self._cell = reached + self._cells * outcome.astype(np.int64)

    def _flagged(self, weight: Weights) -> NDArray[np.float64]:
        """Weight of negatives and positives that reach at least k thresholds, shape (2, t + 1); the first column is everybody."""
        counts = np.bincount(self._cell, row_weights(weight, len(self._cell)), 2 * self._cells).reshape(2, self._cells)
        return np.asarray(counts[:, ::-1].cumsum(axis=1)[:, ::-1])

    def net_benefit(self, weight: Weights) -> NDArray[np.float64]:
        """Return the net benefit of acting on the model, shape (t,); NaN without weight, or without one class at a stated prevalence."""
        counts = self._flagged(weight)
        negatives, positives = counts[:, 0]
        everybody, pi = negatives + positives, self._prevalence
        if not (everybody if pi is None else min(negatives, positives)) > 0:
            return np.full(len(self._thresholds), np.nan)
        per_positive, per_negative = (1 / everybody, 1 / everybody) if pi is None else (pi / positives, (1 - pi) / negatives)
        true, false = counts[1, 1:] * per_positive, counts[0, 1:] * per_negative
        return np.asarray(true - false * self._thresholds / (1 - self._thresholds))

    def treat_all(self, weight: Weights) -> NDArray[np.float64]:
        """Return the net benefit of acting on everybody, shape (t,); acting on nobody has 0. NaN without weight."""
        negatives, positives = self._flagged(weight)[:, 0]
        if not negatives + positives > 0:
            return np.full(len(self._thresholds), np.nan)
        pi = positives / (negatives + positives) if self._prevalence is None else self._prevalence
        return net_benefit(1, 0, self._thresholds, pi)
