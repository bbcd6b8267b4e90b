"""Prediction sets and the operating point from binned scores: thresholds are edges of a public grid, on the cautious side.

The one idea: an order statistic is somebody's score. An edge of the grid is nobody's, and moving a threshold outward to it keeps what was
promised: sets only grow, and at least as many positives are caught. Counts add up, over hospitals and over years.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, softmax

from clinical_ser.errors import TrainingError
from clinical_ser.models.conformal import ROUNDING, ConformalSets
from clinical_ser.models.operating_point import DEFAULT_CONFIDENCE, METHOD, OperatingPoint, Rate, lower_bound, positives_needed
from clinical_ser.models.weights import subject_weights

Array = NDArray[np.float64]

BINS = 200
"""Of equal width in the stated probability: 0.005 each. AUROC from them lies within some thousandths, with a bound that can be computed."""
EDGES = np.linspace(0.0, 1.0, BINS + 1)


def bin_of(p: Array) -> NDArray[np.int64]:
    """Return the bin of each probability; an edge belongs to the bin above it."""
    return np.clip(np.searchsorted(EDGES, p, side="right") - 1, 0, BINS - 1).astype(np.int64)


def middle_of(bins: NDArray[np.int64], count: int = BINS) -> Array:
    """Return the probability that a bin stands for, of so many."""
    return (bins + 0.5) / count


def spread_of(scores: Array, subjects: NDArray[np.str_]) -> list[float]:
    """Return what the intraclass correlation and the effective number are made of: subjects, rows, and five sums."""
    if not len(scores):
        return [0.0] * 7
    _, place, rows = np.unique(subjects, return_inverse=True, return_counts=True)
    means = np.bincount(place, scores) / rows
    within = float(np.sum((scores - means[place]) ** 2))
    return [len(rows), len(scores), float(np.sum(rows**2)), float(scores.sum()), float(rows @ means**2), within, float(np.sum(1 / rows))]


@dataclass(frozen=True, eq=False)
class Binned:
    """How out-of-fold probabilities lie in each class, and how many people stand behind."""

    mass: Array
    """Shape (classes, BINS), subjects counting once within a class: of two classes over the probability of the positive one, of more over that of
    the class itself."""
    spread: Array
    """Shape (classes, 7), as `spread_of` returns it for the log-odds of each class."""

    @classmethod
    def of(cls, log_odds: Array, target: NDArray[np.int64], subjects: NDArray[np.str_], classes: int) -> "Binned":
        """Count recordings.

        Parameters
        ----------
        log_odds
            Shape (rows,) for two classes, at training prevalence; (rows, classes) for more, at equal shares.
        target, subjects
            Shape (rows,).
        classes
            How many there are.
        """
        mass, spread = np.zeros((classes, BINS)), np.zeros((classes, 7))
        p = expit(log_odds) if log_odds.ndim == 1 else softmax(log_odds, axis=1)
        for k in range(classes):
            here = target == k
            own = p[here] if p.ndim == 1 else p[here, k]
            mass[k] = np.bincount(bin_of(own), subject_weights(subjects[here], int(here.sum())), minlength=BINS)
            spread[k] = spread_of(logit(np.clip(own, 1e-12, 1 - 1e-12)), subjects[here])
        return cls(mass, spread)

    def __add__(self, other: "Binned") -> "Binned":
        return Binned(self.mass + other.mass, self.spread + other.spread)

    def times(self, factor: float) -> "Binned":
        """Return the same counts, each person worth so much."""
        return Binned(factor * self.mass, factor * self.spread)

    def moved(self, scale: float, offset: float) -> "Binned":
        """Return where the counts of two classes would lie with log-odds times `scale` plus `offset`, scale positive.

        A bin is spread evenly over the bins that its range comes to lie in, so that many small moves are one large one, and what is taken out later
        is moved as it was. Thresholds from moved counts are as good as a bin is wide, and no longer on the cautious side for certain.
        """
        with np.errstate(divide="ignore"):
            ends = expit(scale * logit(EDGES) + offset)
        ends[0], ends[-1] = 0.0, 1.0
        low, high = ends[:-1, None], ends[1:, None]
        shared = np.clip(np.minimum(high, EDGES[None, 1:]) - np.maximum(low, EDGES[None, :-1]), 0.0, None)
        width = high - low
        # A range of no width at all lies in one bin.
        spread = np.divide(shared, width, out=np.zeros_like(shared), where=width > 0)
        narrow = np.flatnonzero(spread.sum(axis=1) < 0.5)
        spread[narrow] = np.eye(BINS)[bin_of(ends[:-1][narrow])]
        mass = self.mass @ (spread / spread.sum(axis=1, keepdims=True))
        subjects, rows, squared, total, between, within, inverse = self.spread.T
        again = [
            subjects,
            rows,
            squared,
            scale * total + offset * rows,
            scale**2 * between + 2 * scale * offset * total + offset**2 * rows,
            scale**2 * within,
            inverse,
        ]
        return Binned(mass, np.column_stack(again))

    @classmethod
    def of_folds(cls, mass: Array, spread: Array, *, without: int | None = None) -> "Binned":
        """Add up all folds, shape (folds, ...), or all but one."""
        keep = np.arange(len(mass)) != (-1 if without is None else without)
        return cls(mass[keep].sum(axis=0), spread[keep].sum(axis=0))

    def conformal(self, coverage: float) -> ConformalSets:
        """Return the sets of `ConformalSets`, their thresholds moved outward to the next edge."""
        sets = ConformalSets(coverage)
        sets.subjects_ = tuple(round(float(spread[0])) for spread in self.spread)
        sets.thresholds_ = tuple(self._threshold(k, coverage) for k in range(len(self.mass)))
        return sets

    def _threshold(self, k: int, coverage: float) -> float | None:
        # The score is 1 - p(class), so that bins are read from the top; but the negative one's of two classes lie over the other's probability.
        mass = self.mass[k] if k == 0 and len(self.mass) == 2 else self.mass[k][::-1]
        people = mass.sum()
        reached = np.cumsum(mass) >= coverage * (people + 1) - ROUNDING * (people + 1) - 1e-6
        return float(EDGES[1:][np.argmax(reached)]) if reached.any() else None

    def operating_point(self, target_sensitivity: float) -> OperatingPoint:
        """Return, for two classes, the highest edge that is shown to meet the sensitivity; see `clinical_ser.models.operating_point.choose`.

        Raises
        ------
        TrainingError
            A class has nobody.
        """
        if (self.mass.sum(axis=1) < 0.5).any():
            raise TrainingError("An operating point needs recordings of both classes.")
        # share[k][j]: of class k, at or above edge j.
        share = [np.append(np.cumsum(mass[::-1])[::-1], 0.0) / mass.sum() for mass in self.mass]
        effective = [_effective(spread) for spread in self.spread]
        edges = np.arange(1, BINS)[::-1]
        bounds = lower_bound(np.clip(share[1][edges], 0, 1), effective[1], DEFAULT_CONFIDENCE)
        attained = bool((bounds >= target_sensitivity).any())
        caught = share[1][edges] >= 1 - 1e-9
        at = int(edges[np.argmax(bounds >= target_sensitivity)] if attained else edges[np.argmax(caught)] if caught.any() else edges[-1])
        people = round(float(self.spread[1][0]))
        note = None
        if not attained:
            note = (
                f"{people} positive subjects cannot show a sensitivity of {target_sensitivity:.0%} with {DEFAULT_CONFIDENCE:.0%} confidence, "
                f"whatever the threshold; at least {positives_needed(target_sensitivity)} are needed. "
                "The threshold is below every positive recording."
            )
        elif share[0][at] >= 1 - 1e-9:
            note = f"Only a threshold below every negative recording shows a sensitivity of {target_sensitivity:.0%}: everyone would be flagged."
        return OperatingPoint(
            threshold=float(logit(EDGES[at])),
            target_sensitivity=target_sensitivity,
            confidence=DEFAULT_CONFIDENCE,
            sensitivity=_rate(float(share[1][at]), effective[1], people),
            specificity=_rate(1 - float(share[0][at]), effective[0], round(float(self.spread[0][0]))),
            attained=attained,
            method=f"{METHOD}; the score taken down to the next edge of {BINS} bins of the probability",
            note=note,
        )


def _rate(value: float, effective: float, people: int) -> Rate:
    value = min(max(value, 0.0), 1.0)
    lower = float(lower_bound(np.array([value]), effective, DEFAULT_CONFIDENCE)[0])
    upper = 1.0 - float(lower_bound(np.array([1.0 - value]), effective, DEFAULT_CONFIDENCE)[0])
    return Rate(value=value, lower=lower, upper=upper, subjects=people, effective=effective)


def _effective(spread: Array) -> float:
    """Independent recordings that a mean over subjects is worth, as `operating_point` estimates it from rows."""
    subjects, rows, squared_rows, total, between_squares, within_squares, inverse = spread.tolist()
    correlation = 1.0
    if subjects >= 2 and rows > subjects + 0.5:
        between = (between_squares - total**2 / rows) / (subjects - 1)
        within = within_squares / (rows - subjects)
        typical = (rows - squared_rows / rows) / (subjects - 1)
        whole = between + (typical - 1.0) * within
        correlation = float(np.clip((between - within) / whole, 0.0, 1.0)) if whole > 0 else 1.0
    return float(subjects**2 / (correlation * subjects + (1.0 - correlation) * inverse))
