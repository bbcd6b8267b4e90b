"""Every figure of a set of predictions as one function of row weights: prepared once, then read off for each bootstrap sample.

The one idea: what a recording was answered is one of a few cells (class x status x above the threshold x covered), so that all shares come from
one weighted count of the cells; only ranking and calibration look at the scores.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from clinical_ser.evaluation import discrimination as d
from clinical_ser.evaluation.calibration import Reliability, brier
from clinical_ser.evaluation.decision import predictive_values
from clinical_ser.evaluation.discrimination import Confusion, Ranking
from clinical_ser.evaluation.predictions import Predictions
from clinical_ser.models.weights import subject_weights

STATED_PREVALENCES = (0.05, 0.10, 0.20)
"""PPV and NPV are given at these and at the task's own: general population, primary care, and a clinic where one in five is ill."""
STATUSES = ("flagged", "not_flagged", "classified", "indeterminate")
_FLAGGED, _NOT_FLAGGED, _CLASSIFIED, _INDETERMINATE = range(4)

_OF_THE_SMALLEST_CLASS = frozenset({"auroc", "auprc", "uar", "uar_when_answered", "f1_macro"})
_OF_TWICE_THE_SMALLEST_CLASS = frozenset(
    {"brier", "brier_reliability", "brier_resolution", "brier_skill", "accuracy", "accuracy_when_answered", "f1_weighted"}
)

Weights = NDArray[np.float64]


class Figures(Protocol):
    """Named figures of fixed rows."""

    names: tuple[str, ...]
    weight: Weights
    """Shape (rows,), what a row counts before any sampling."""

    def __call__(self, weight: Weights) -> NDArray[np.float64]:
        """Return the figures, shape (names,), under row weights (rows,); NaN where not defined.

        `ece_debiased` stands there as its square, which may be negative: sampling error is taken off squares, so the root comes last.
        """
        ...

    def about(self, name: str) -> NDArray[np.bool_]:
        """Return which rows a figure is about, shape (rows,)."""
        ...

    def rests_on(self, name: str) -> int:
        """Return how many people decide how well a figure is known (`Bootstrap.interval`)."""
        ...


@dataclass(frozen=True, eq=False)
class _Answers:
    """What recordings were answered, as cells."""

    cell: NDArray[np.int64]
    classes: int

    @classmethod
    def of(
        cls, target: NDArray[np.int64], status: NDArray[np.int64], above: NDArray[np.bool_], covered: NDArray[np.bool_], classes: int
    ) -> "_Answers":
        return cls(((target * len(STATUSES) + status) * 2 + above) * 2 + covered, classes)

    def counts(self, weight: Weights) -> NDArray[np.float64]:
        """Shape (classes, statuses, 2, 2): class, status, above the threshold, covered."""
        size = self.classes * len(STATUSES) * 4
        return np.asarray(np.bincount(self.cell, weight, minlength=size), dtype=np.float64).reshape(self.classes, len(STATUSES), 2, 2)


class BinaryFigures:
    """Figures of a task of two classes; every subject counts once, however many recordings they gave.

    Parameters
    ----------
    predictions
        Their rows are restated for `predictions.stated_prevalence`.
    rows
        Positions of the rows to look at; None takes all.
    """

    def __init__(self, predictions: Predictions, rows: NDArray[np.intp] | None = None):
        part = _Part.of(predictions, rows)
        self.weight = subject_weights(part.subjects, len(part.target))
        self._target, self._status, self._classes = part.target, part.status, predictions.task.classes
        self._subjects, self._people = part.subjects, _people(part, 2)
        self._ranking = Ranking(part.target, part.log_odds)
        self._reliability = Reliability(part.target, part.log_odds, part.subjects, base_weight=self.weight)
        self._answers = _Answers.of(part.target, part.status, part.above, part.covered, 2)
        self._prevalences = stated_prevalences(predictions)
        self._with_sets = predictions.coverage is not None
        self.names = tuple(self._figures(self.weight))

    def __call__(self, weight: Weights) -> NDArray[np.float64]:
        """Return the figures under row weights."""
        return np.array(list(self._figures(weight).values()))

    def _figures(self, weight: Weights) -> dict[str, float]:
        counts = self._answers.counts(weight)
        by_class = counts.sum(axis=(1, 2, 3))
        prevalence = _share(by_class[1], by_class.sum())
        sensitivity = _share(counts[1, :, 1, :].sum(), by_class[1])
        specificity = _share(counts[0, :, 0, :].sum(), by_class[0])
        return (
            {
                "auroc": self._ranking.auroc(weight),
                "auprc": self._ranking.average_precision(weight),
                "prevalence": prevalence,
                "sensitivity": sensitivity,
                "specificity": specificity,
            }
            | self._predictive(sensitivity, specificity)
            | _calibration(self._reliability, weight)
            | self._abstention(counts)
            | self._by_class(counts, by_class)
        )

    def _predictive(self, sensitivity: float, specificity: float) -> dict[str, float]:
        values: dict[str, float] = {}
        for name, prevalence in self._prevalences.items():
            ppv, npv = predictive_values(sensitivity, specificity, prevalence)
            values |= {f"ppv.{name}": float(ppv), f"npv.{name}": float(npv)}
        return values

    def _abstention(self, counts: NDArray[np.float64]) -> dict[str, float]:
        if not self._with_sets:
            return {}
        by_status = counts.sum(axis=(2, 3))
        answered = by_status[:, [_FLAGGED, _NOT_FLAGGED]].sum(axis=1)
        right = by_status[0, _NOT_FLAGGED], by_status[1, _FLAGGED]
        return {
            "answered": _share(answered.sum(), by_status.sum()),
            "deferred": _share(by_status[:, _INDETERMINATE].sum(), by_status.sum()),
            "accuracy_when_answered": _share(sum(right), answered.sum()),
            "sensitivity_when_answered": _share(right[1], answered[1]),
            "specificity_when_answered": _share(right[0], answered[0]),
        }

    def _by_class(self, counts: NDArray[np.float64], by_class: NDArray[np.float64]) -> dict[str, float]:
        if not self._with_sets:
            return {}
        by_status, covered = counts.sum(axis=(2, 3)), counts[:, :, :, 1].sum(axis=(1, 2))
        return {f"coverage.{label}": _share(covered[k], by_class[k]) for k, label in enumerate(self._classes)} | {
            f"{STATUSES[status]}.{label}": _share(by_status[k, status], by_class[k])
            for k, label in enumerate(self._classes)
            for status in (_FLAGGED, _NOT_FLAGGED, _INDETERMINATE)
        }

    def about(self, name: str) -> NDArray[np.bool_]:
        """Return which rows a figure is about."""
        kind, _, label = name.partition(".")
        answered = self._status != _INDETERMINATE
        of_class = {label: self._target == k for k, label in enumerate(self._classes)}
        if kind in {"coverage", "flagged", "not_flagged", "indeterminate"}:
            return of_class[label]
        return {
            "sensitivity": self._target == 1,
            "specificity": self._target == 0,
            "accuracy_when_answered": answered,
            "sensitivity_when_answered": answered & (self._target == 1),
            "specificity_when_answered": answered & (self._target == 0),
        }.get(kind, np.ones(len(self._target), bool))

    def rests_on(self, name: str) -> int:
        """Return how many people decide how well a figure is known."""
        kind = name.partition(".")[0]
        if kind in {"ppv", "npv"}:
            return self._people[0 if kind == "ppv" else 1]
        return _rests_on(kind, self._people, len(np.unique(self._subjects[self.about(name)])))


class ClassFigures:
    """Figures of a task of several classes; every recording counts once, as in published tables of emotion recognition.

    Calibration is that of the probability stated for the answer (the most probable class) against whether it was right.
    """

    def __init__(self, predictions: Predictions, rows: NDArray[np.intp] | None = None):
        part = _Part.of(predictions, rows)
        p = part.probabilities
        answer = p.argmax(axis=1)
        self.weight = np.ones(len(part.target))
        self._target, self._status, self._classes = part.target, part.status, predictions.task.classes
        self._subjects, self._people = part.subjects, _people(part, len(self._classes))
        self._probabilities = p
        self._confusion = Confusion(part.target, answer, len(self._classes))
        self._answered = part.status != _INDETERMINATE
        top = np.clip(p.max(axis=1), 1e-12, 1 - 1e-12)
        self._reliability = Reliability((answer == part.target).astype(np.int64), logit(top), part.subjects)
        self._answers = _Answers.of(part.target, part.status, np.zeros(len(p), bool), part.covered, len(self._classes))
        self.names = tuple(self._figures(self.weight))

    def __call__(self, weight: Weights) -> NDArray[np.float64]:
        """Return the figures under row weights."""
        return np.array(list(self._figures(weight).values()))

    def _figures(self, weight: Weights) -> dict[str, float]:
        matrix = self._confusion.matrix(weight)
        among = self._confusion.matrix(weight * self._answered)
        counts = self._answers.counts(weight)
        by_class = counts.sum(axis=(1, 2, 3))
        answered, covered = counts[:, _CLASSIFIED].sum(), counts[..., 1].sum(axis=(1, 2))
        calibration = _calibration(self._reliability, weight)
        return (
            {
                "uar": d.unweighted_average_recall_of(matrix),
                "accuracy": d.accuracy_of(matrix),
                "f1_macro": d.f1_macro_of(matrix),
                "f1_weighted": d.f1_weighted_of(matrix),
                "brier": brier(self._target, self._probabilities, weight) if weight.any() else float("nan"),
            }
            | {name: calibration[name] for name in ("calibration_slope", "observed_to_expected", "ece_debiased", "ece_smooth")}
            | {
                "answered": _share(answered, counts.sum()),
                "deferred": _share(counts[:, _INDETERMINATE].sum(), counts.sum()),
                "accuracy_when_answered": d.accuracy_of(among),
                "uar_when_answered": d.unweighted_average_recall_of(among),
            }
            | {f"recall.{label}": _share(matrix[k, k], matrix[k].sum()) for k, label in enumerate(self._classes)}
            | {f"coverage.{label}": _share(covered[k], by_class[k]) for k, label in enumerate(self._classes)}
        )

    def about(self, name: str) -> NDArray[np.bool_]:
        """Return which rows a figure is about."""
        kind, _, label = name.partition(".")
        if kind in {"recall", "coverage"}:
            return self._target == self._classes.index(label)
        return self._answered if kind.endswith("_when_answered") else np.ones(len(self._target), bool)

    def rests_on(self, name: str) -> int:
        """Return how many people decide how well a figure is known."""
        return _rests_on(name.partition(".")[0], self._people, len(np.unique(self._subjects[self.about(name)])))


def figures_of(predictions: Predictions, rows: NDArray[np.intp] | None = None) -> BinaryFigures | ClassFigures:
    """Prepare the figures of all, or some, rows."""
    return BinaryFigures(predictions, rows) if predictions.binary else ClassFigures(predictions, rows)


def stated_prevalences(predictions: Predictions) -> dict[str, float]:
    """Return the prevalences that predictive values are given at, by the name they have in a figure."""
    own = () if predictions.task.prevalence is None else (predictions.task.prevalence,)
    return {f"{value:.2f}" if round(value, 2) == value else f"{value:g}": value for value in sorted({*STATED_PREVALENCES, *own})}


@dataclass(frozen=True, eq=False)
class _Part:
    """Columns of some rows of predictions, as arrays."""

    target: NDArray[np.int64]
    subjects: NDArray[np.str_]
    status: NDArray[np.int64]
    above: NDArray[np.bool_]
    covered: NDArray[np.bool_]
    log_odds: NDArray[np.float64]
    probabilities: NDArray[np.float64]

    @classmethod
    def of(cls, predictions: Predictions, rows: NDArray[np.intp] | None) -> "_Part":
        at = np.arange(len(predictions.frame)) if rows is None else rows
        frame = predictions.frame
        number = {status: i for i, status in enumerate(STATUSES)}
        return cls(
            target=predictions.target[at],
            subjects=predictions.subjects[at],
            status=np.array([number[status] for status in frame["status"]], dtype=np.int64)[at],
            above=frame["above"].to_numpy(bool)[at] if predictions.binary else np.zeros(len(at), bool),
            covered=frame["covered"].to_numpy(bool)[at],
            log_odds=predictions.log_odds[at] if predictions.binary else np.zeros(len(at)),
            probabilities=predictions.probabilities[at],
        )


def _people(part: _Part, classes: int) -> list[int]:
    return [len(np.unique(part.subjects[part.target == k])) for k in range(classes)]


def _rests_on(kind: str, people: list[int], about: int) -> int:
    if kind in _OF_THE_SMALLEST_CLASS:
        return min(people)
    return min(2 * min(people), about) if kind in _OF_TWICE_THE_SMALLEST_CLASS else about


def _calibration(reliability: Reliability, weight: Weights) -> dict[str, float]:
    intercept, slope = reliability.intercept_and_slope(weight)
    within, between, chance = reliability.brier_parts(weight)
    score = reliability.brier(weight)
    return {
        "calibration_intercept": intercept,
        "calibration_slope": slope,
        "observed_to_expected": reliability.observed_to_expected(weight),
        "brier": score,
        "brier_reliability": within,
        "brier_resolution": between,
        "brier_uncertainty": chance,
        "brier_skill": 1 - score / chance if chance > 0 else float("nan"),
        "ece_debiased": reliability.debiased_squared_error(weight),
        "ece_smooth": reliability.smooth_ece(weight),
    }


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else float("nan")
