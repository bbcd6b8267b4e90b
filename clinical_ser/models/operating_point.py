"""The threshold that is chosen once, at training, and then frozen: the highest one whose sensitivity is shown to meet the requirement.

Shown means by its lower confidence bound. The threshold that merely had 85 % sensitivity in the data has less in half of all repetitions; at 40
positives it fell below 80 % in 29 % of them.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta

from clinical_ser.errors import InvalidValueError, TrainingError
from clinical_ser.models.state import Count, Finite, Share, State
from clinical_ser.models.weights import subject_of_row, subject_weights

DEFAULT_CONFIDENCE = 0.95


class Rate(State):
    """A share with its bounds; each bound alone holds with the stated confidence, so the two make a central (2·confidence - 1) interval."""

    value: Share
    lower: Share
    upper: Share
    subjects: Count
    effective: Finite
    """Independent recordings these are worth, between the number of subjects and of recordings."""


class OperatingPoint(State):
    """A frozen threshold and what was known about it when it was frozen."""

    threshold: Finite
    """A recording is above it if its calibrated log-odds, at the training prevalence, are at or above this number."""
    target_sensitivity: Share
    confidence: Share
    sensitivity: Rate
    specificity: Rate
    attained: bool
    """Whether the lower bound of the sensitivity meets the target."""
    method: str
    note: str | None = None

    def is_above(self, log_odds: ArrayLike) -> NDArray[np.bool_]:
        """Return which recordings are at or above the threshold, from calibrated log-odds at the training prevalence."""
        return np.asarray(np.asarray(log_odds, dtype=np.float64) >= self.threshold)


METHOD = (
    "highest out-of-fold score of a positive recording at which the one-sided Clopper-Pearson bound, on the effective number of recordings "
    "after subject clustering, meets the target"
)


def choose(
    log_odds: ArrayLike,
    y: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    target_sensitivity: float,
    confidence: float = DEFAULT_CONFIDENCE,
) -> OperatingPoint:
    """Choose the highest threshold whose sensitivity has a lower confidence bound at or above the target.

    With one recording a subject the chosen threshold is an order statistic of the positives' scores, and the one-sided Clopper-Pearson bound is
    the exact tolerance limit: whatever the distribution of scores, the true sensitivity is below the target in at most 1 - confidence of
    repetitions, although the threshold was picked by looking. With several, each subject counts once and the number of observations is the
    effective one, from the intraclass correlation of the scores (Kish design effect; Korn & Graubard 1998, Surv Methodol 24:193-201, for
    Clopper-Pearson on an effective size).

    Parameters
    ----------
    log_odds
        Shape (rows,), calibrated log-odds out of fold, at the training prevalence.
    y
        Shape (rows,), 1 for the positive class, 0 else.
    groups
        Shape (rows,), the subject of each row; None: every row is a subject of its own.
    target_sensitivity
        Share of positives that the threshold has to catch.
    confidence
        Of the one-sided lower bound.

    Returns
    -------
    OperatingPoint
        If there are too few positive subjects to show the target at all, the lowest positive score, `attained` False, and a `note` that says
        how many would do.

    Raises
    ------
    TrainingError
        If a class has no row.
    InvalidValueError
        If shapes do not fit, a score is not finite, or a share is not strictly between 0 and 1.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat([0, 1], 150)
    >>> point = choose(rng.normal(2.0 * y), y, target_sensitivity=0.85)
    >>> point.attained, point.sensitivity.lower >= 0.85, point.sensitivity.value > 0.85
    (True, True, True)
    """
    _require_share("target_sensitivity", target_sensitivity)
    _require_share("confidence", confidence)
    scores, positive, subject = _checked(log_odds, y, groups)
    positives, negatives = _Sample(scores[positive], subject[positive]), _Sample(scores[~positive], subject[~positive])
    candidates = np.unique(positives.scores)[::-1]
    bounds = lower_bound(positives.share_at_or_above(candidates), positives.effective, confidence)
    attained = bool((bounds >= target_sensitivity).any())
    threshold = float(candidates[np.argmax(bounds >= target_sensitivity)] if attained else candidates[-1])
    specificity = 1.0 - float(negatives.share_at_or_above(np.array([threshold]))[0])
    return OperatingPoint(
        threshold=threshold,
        target_sensitivity=target_sensitivity,
        confidence=confidence,
        sensitivity=positives.rate(float(positives.share_at_or_above(np.array([threshold]))[0]), confidence),
        specificity=negatives.rate(specificity, confidence),
        attained=attained,
        method=METHOD,
        note=_note(attained, specificity, positives, target_sensitivity, confidence),
    )


def positives_needed(target_sensitivity: float, confidence: float = DEFAULT_CONFIDENCE) -> int:
    """Return the least number of independent positive recordings with which a threshold can meet the target: all caught, and enough of them.

    Examples
    --------
    >>> positives_needed(0.85)
    19
    """
    return int(np.ceil(np.log(1.0 - confidence) / np.log(target_sensitivity) - 1e-9))


class _Sample:
    """Scores of one class, the weight of each (subjects count once), and how many independent recordings they are worth."""

    def __init__(self, scores: NDArray[np.float64], subject: NDArray[Any]):
        self.scores = scores
        self.share = subject_weights(subject, len(scores))
        self.subjects = round(float(self.share.sum()))
        self.share /= self.share.sum()
        self.effective = _effective_size(scores, subject)

    def share_at_or_above(self, thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
        order = np.argsort(self.scores)
        below = np.concatenate([[0.0], np.cumsum(self.share[order])])
        # Rounding must not turn "all" into a little less: a bound at exactly 1 has its own formula.
        return np.clip(1.0 - below[np.searchsorted(self.scores[order], thresholds, side="left")], 0.0, 1.0)

    def rate(self, value: float, confidence: float) -> Rate:
        return Rate(
            value=value,
            lower=float(lower_bound(np.array([value]), self.effective, confidence)[0]),
            upper=1.0 - float(lower_bound(np.array([1.0 - value]), self.effective, confidence)[0]),
            subjects=self.subjects,
            effective=self.effective,
        )


def lower_bound(share: NDArray[np.float64], effective: float, confidence: float) -> NDArray[np.float64]:
    """One-sided Clopper-Pearson lower bound of a share among `effective` observations."""
    caught = share * effective
    bound = beta.ppf(1.0 - confidence, np.maximum(caught, 1e-12), effective - caught + 1.0)
    return np.where(caught > 1e-9, bound, 0.0)


def _effective_size(scores: NDArray[np.float64], subject: NDArray[Any]) -> float:
    """Independent recordings that a mean over subjects is worth: G² / sum(rho + (1 - rho)/n_g).

    rho is the intraclass correlation of the scores. A share above a threshold correlates less within a subject than the score it is cut from,
    so this errs on the side of too few.
    """
    _, place, rows = np.unique(subject, return_inverse=True, return_counts=True)
    correlation = _intraclass_correlation(scores, place, rows)
    return float(len(rows) ** 2 / np.sum(correlation + (1.0 - correlation) / rows))


def _intraclass_correlation(scores: NDArray[np.float64], place: NDArray[np.int64], rows: NDArray[np.int64]) -> float:
    """One-way analysis-of-variance estimator, held within 0 and 1; 1 where it cannot be estimated (one subject, or one recording each)."""
    groups, total = len(rows), int(rows.sum())
    if groups < 2 or total == groups:
        return 1.0
    means = np.bincount(place, scores) / rows
    between = float(rows @ (means - scores.mean()) ** 2) / (groups - 1)
    within = float(np.sum((scores - means[place]) ** 2)) / (total - groups)
    typical_rows = (total - float(np.sum(rows**2)) / total) / (groups - 1)
    spread = between + (typical_rows - 1.0) * within
    return float(np.clip((between - within) / spread, 0.0, 1.0)) if spread > 0 else 1.0


def _note(attained: bool, specificity: float, positives: _Sample, target: float, confidence: float) -> str | None:
    if not attained:
        return (
            f"{positives.subjects} positive subjects cannot show a sensitivity of {target:.0%} with {confidence:.0%} confidence, whatever the "
            f"threshold; at least {positives_needed(target, confidence)} are needed. The threshold is the lowest score of a positive recording."
        )
    if specificity == 0:
        return f"Only a threshold below every negative recording shows a sensitivity of {target:.0%}: everyone would be flagged."
    return None


def _checked(log_odds: ArrayLike, y: ArrayLike, groups: ArrayLike | None) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[Any]]:
    scores, target = np.asarray(log_odds, dtype=np.float64), np.asarray(y)
    if scores.ndim != 1 or not np.isfinite(scores).all():
        raise InvalidValueError("log_odds", f"array of shape {scores.shape}", "shape (rows,), finite")
    if target.shape != scores.shape or not np.isin(target, [0, 1]).all():
        raise InvalidValueError("y", f"array of shape {target.shape}", f"{len(scores)} labels, 1 for positive and 0 else")
    positive = target == 1
    if positive.all() or not positive.any():
        raise TrainingError("An operating point needs recordings of both classes.")
    return scores, positive, subject_of_row(None if groups is None else np.asarray(groups), len(scores))


def _require_share(what: str, value: float) -> None:
    if not 0 < value < 1:
        raise InvalidValueError(what, value, "a share strictly between 0 and 1")
