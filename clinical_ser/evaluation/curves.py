"""The curves of a report, each on a fixed grid, as one function of row weights: so that every curve gets its band from the same bootstrap samples.

Nothing of a single recording is in them: scores are counted in bins.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from clinical_ser.evaluation.calibration import Reliability
from clinical_ser.evaluation.decision import DEFAULT_THRESHOLDS, DecisionCurve
from clinical_ser.evaluation.discrimination import Confusion, Ranking
from clinical_ser.evaluation.evidence import Band, BinaryCurves, ClassCurves, Decision, Points, Scores
from clinical_ser.evaluation.figure import Figure
from clinical_ser.evaluation.predictions import Predictions
from clinical_ser.models.weights import subject_weights

GRID = tuple(np.round(np.linspace(0, 1, 51), 4).tolist())
"""Of false positive rates and recalls."""
PROBABILITIES = tuple(np.round(np.linspace(0.01, 0.99, 50), 4).tolist())
THRESHOLDS = tuple(DEFAULT_THRESHOLDS.tolist())
BINS = 50

Vector = NDArray[np.float64]


class Curves(Protocol):
    """Curves of fixed rows, laid end to end."""

    weight: Vector

    bounded: int
    """How many points, from the front, lie between 0 and 1."""

    def __call__(self, weight: Vector) -> Vector:
        """Return the points of all curves under row weights (rows,)."""
        ...


class BinaryCurvesOf:
    """Receiver operating characteristic, precision and recall, reliability, and net benefit; every subject counts once."""

    bounded = 2 * len(GRID) + len(PROBABILITIES)

    def __init__(self, predictions: Predictions):
        target, log_odds = predictions.target, predictions.log_odds
        self.weight = subject_weights(predictions.subjects, len(target))
        self._predictions = predictions
        self._ranking = Ranking(target, log_odds)
        self._reliability = Reliability(target, log_odds, predictions.subjects, base_weight=self.weight)
        self._prevalences = _decision_prevalences(predictions, self.weight)
        self._decisions = [
            DecisionCurve(
                target,
                log_odds if own else predictions.stated_for(prevalence).log_odds,
                DEFAULT_THRESHOLDS,
                prevalence=None if own else prevalence,
            )
            for prevalence, own in self._prevalences
        ]

    def __call__(self, weight: Vector) -> Vector:
        """Return the points of all curves under row weights."""
        decisions = []
        for curve in self._decisions:
            benefit = curve.net_benefit(weight)
            decisions += [benefit, benefit - np.maximum(curve.treat_all(weight), 0.0)]
        return np.concatenate(
            [
                self._ranking.true_positive_rates(weight, GRID),
                self._ranking.precisions(weight, GRID),
                self._reliability.curve(weight, PROBABILITIES),
                *decisions,
            ]
        )

    def assemble(self, value: Vector, low: Vector, high: Vector) -> BinaryCurves:
        """Give points and bounds, as `__call__` lays them, their names."""
        pieces = _Pieces(value, low, high)
        roc, recall, reliability = pieces.take(GRID), pieces.take(GRID), pieces.take(PROBABILITIES)
        decisions = []
        for (prevalence, own), curve in zip(self._prevalences, self._decisions, strict=True):
            model, over = pieces.take(THRESHOLDS), pieces.take(THRESHOLDS)
            treat_all = tuple(float(f"{benefit:.5g}") for benefit in curve.treat_all(self.weight))
            decisions.append(Decision(prevalence=prevalence, own=own, model=model, treat_all=treat_all, over_default=over))
        classes, target = self._predictions.task.classes, self._predictions.target
        stated = self._predictions.probabilities[:, 1]
        scores = _scores(stated, {label: target == k for k, label in enumerate(classes)})
        return BinaryCurves(roc=roc, precision_recall=recall, reliability=reliability, scores=scores, decisions=tuple(decisions))


class ClassCurvesOf:
    """Reliability of the probability stated for the answer; every recording counts once."""

    bounded = len(PROBABILITIES)

    def __init__(self, predictions: Predictions):
        p = predictions.probabilities
        answer = p.argmax(axis=1)
        self._predictions, self._stated = predictions, p.max(axis=1)
        self._right = answer == predictions.target
        self._confusion = Confusion(predictions.target, answer, p.shape[1])
        self.weight = np.ones(len(p))
        self._reliability = Reliability(self._right.astype(np.int64), logit(np.clip(self._stated, 1e-12, 1 - 1e-12)), predictions.subjects)

    def __call__(self, weight: Vector) -> Vector:
        """Return the points of the curve under row weights."""
        return self._reliability.curve(weight, PROBABILITIES)

    def assemble(self, value: Vector, low: Vector, high: Vector, figures: dict[str, Figure]) -> ClassCurves:
        """Give points and bounds their names; `figures` has the recalls."""
        matrix = self._confusion.matrix(self.weight).astype(int)
        return ClassCurves(
            reliability=_Pieces(value, low, high).take(PROBABILITIES),
            scores=_scores(self._stated, {"right": self._right, "wrong": ~self._right}),
            confusion=tuple(tuple(row) for row in matrix.tolist()),
            recalls={label: figures[f"recall.{label}"] for label in self._predictions.task.classes},
        )


class _Pieces:
    """Takes one curve after another off the front of a vector."""

    def __init__(self, value: Vector, low: Vector, high: Vector):
        self._rows = np.stack([value, low, high])
        self._at = 0

    def take(self, x: Sequence[float]) -> Band:
        value, low, high = (_rounded(row) for row in self._rows[:, self._at : self._at + len(x)])
        self._at += len(x)
        return Band(x=tuple(x), y=value, low=low, high=high)


def _rounded(values: Vector) -> Points:
    """Five digits: more would be noise in a file that people read."""
    return tuple(float(f"{value:.5g}") if np.isfinite(value) else None for value in values)


def _scores(stated: Vector, members: dict[str, NDArray[np.bool_]]) -> Scores:
    edges = np.linspace(0, 1, BINS + 1)
    counts = {name: tuple(np.histogram(stated[inside], edges)[0].tolist()) for name, inside in members.items()}
    return Scores(edges=tuple(np.round(edges, 4).tolist()), counts=counts)


def _decision_prevalences(predictions: Predictions, weight: Vector) -> list[tuple[float, bool]]:
    """Return the cohort's own prevalence, and the one that the task is meant for."""
    own = float(np.average(predictions.target, weights=weight))
    wanted = predictions.task.prevalence
    restatable = predictions.stated_prevalence is not None and wanted is not None and abs(wanted - own) > 0.005
    return [(own, True)] + ([(wanted, False)] if restatable and wanted is not None else [])
