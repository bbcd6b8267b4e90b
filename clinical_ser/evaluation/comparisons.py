"""The model beside something else, on the same recordings of the same subjects: another model, a questionnaire, chance, or what can be known at best.

Both sides are figures of one function of row weights, so that their difference is paired within every bootstrap sample.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clinical_ser.errors import InvalidValueError
from clinical_ser.evaluation.discrimination import Confusion, Ranking, unweighted_average_recall_of
from clinical_ser.evaluation.predictions import Predictions
from clinical_ser.models.weights import subject_weights

TRUE_PROBABILITY = "true_probability"
"""Column of a simulated cohort: each speaker's true risk, which no model can beat on average."""
Kind = Literal["model", "comparator", "chance", "best_reachable"]
Vector = NDArray[np.float64]
_COMPARATOR = re.compile(r"\s*(?P<column>[^<>=\s]+)\s*>=\s*(?P<cutoff>-?[0-9]+(?:\.[0-9]+)?)\s*")


@dataclass(frozen=True)
class Comparator:
    """A column of the cohort that screens too: a questionnaire's score, positive at or above a cut-off (PHQ-2: 3, Kroenke et al. 2003)."""

    column: str
    cutoff: float

    @classmethod
    def parse(cls, text: str) -> "Comparator":
        """Read `COLUMN>=CUTOFF`; InvalidValueError shows the form.

        Examples
        --------
        >>> Comparator.parse("phq2>=3")
        Comparator(column='phq2', cutoff=3.0)
        """
        match = _COMPARATOR.fullmatch(text)
        if not match:
            raise InvalidValueError("--comparator", text, "a column and its cut-off, such as 'phq2>=3'")
        return cls(match["column"], float(match["cutoff"]))


@dataclass(frozen=True, eq=False)
class Pair:
    """One comparison: figures of the model and of the other side, one after the other, over rows of the evaluation."""

    against: str
    kind: Kind
    names: tuple[str, ...]
    sides: tuple[Callable[[Vector], Sequence[float]], Callable[[Vector], Sequence[float]]]
    """The model's and the other's figures under row weights, in the order of `names`; no closures, so that worker processes can have them."""
    rows: NDArray[np.intp]
    weight: Vector
    about: tuple[NDArray[np.bool_], ...]
    """For each figure, which of `rows` it is about."""

    def __call__(self, weight: Vector) -> Vector:
        """Return the model's figures, then the other side's."""
        return np.array([figure for side in self.sides for figure in side(weight)], dtype=np.float64)


def pairs_of(predictions: Predictions, others: Mapping[str, Predictions], comparators: Sequence[Comparator]) -> tuple[Pair, ...]:
    """Prepare every comparison: with chance always, with the truth where a simulated cohort has it, with others as asked.

    Raises
    ------
    InvalidValueError
        Another model has another task or no recording in common, or a comparator's column is missing or has no numbers.
    """
    found = [_with_chance(predictions)]
    if predictions.binary and predictions.simulated and _has_numbers(predictions.frame, TRUE_PROBABILITY):
        found.append(_with_truth(predictions))
    found += [_with_model(predictions, name, other) for name, other in others.items()]
    found += [pair for comparator in comparators for pair in _with_comparator(predictions, comparator)]
    return tuple(found)


def _with_chance(predictions: Predictions) -> Pair:
    rows = np.arange(len(predictions.frame))
    everyone = np.ones(len(rows), bool)
    if predictions.binary:
        ranking = Ranking(predictions.target, predictions.log_odds)
        return Pair("chance", "chance", ("auroc",), (_Auroc(ranking), _Constant(0.5)), rows, _weights(predictions, rows), (everyone,))
    classes = len(predictions.task.classes)
    return Pair("chance", "chance", ("uar",), (_Uar.of(predictions, rows), _Constant(1 / classes)), rows, _weights(predictions, rows), (everyone,))


def _has_numbers(frame: pd.DataFrame, column: str) -> bool:
    return column in frame and bool(np.isfinite(pd.to_numeric(frame[column], errors="coerce").to_numpy(np.float64)).any())


def _with_truth(predictions: Predictions) -> Pair:
    known = pd.to_numeric(predictions.frame[TRUE_PROBABILITY], errors="coerce").to_numpy(np.float64)
    rows = np.flatnonzero(np.isfinite(known))
    mine = Ranking(predictions.target[rows], predictions.log_odds[rows])
    truth = Ranking(predictions.target[rows], known[rows])
    return Pair(
        "the best reachable (each speaker's true probability)",
        "best_reachable",
        ("auroc",),
        (_Auroc(mine), _Auroc(truth)),
        rows,
        _weights(predictions, rows),
        (np.ones(len(rows), bool),),
    )


def _with_model(predictions: Predictions, name: str, other: Predictions) -> Pair:
    if (other.task.name, other.task.classes) != (predictions.task.name, predictions.task.classes):
        raise InvalidValueError(
            "--against", f"a model for {other.task.name!r} {list(other.task.classes)}", f"one for {list(predictions.task.classes)}"
        )
    mine, theirs = _common_rows(predictions, other)
    against = f"model {name}"
    everyone, target, weight = np.ones(len(mine), bool), predictions.target[mine], _weights(predictions, mine)
    if not predictions.binary:
        return Pair(against, "model", ("uar",), (_Uar.of(predictions, mine), _Uar.of(other, theirs)), mine, weight, (everyone,))
    one, two = (_Screen.of(target, p.log_odds[at], p.frame["above"].to_numpy(bool)[at]) for p, at in ((predictions, mine), (other, theirs)))
    return Pair(against, "model", _Screen.names, (one, two), mine, weight, (everyone, target == 1, target == 0))


def _with_comparator(predictions: Predictions, comparator: Comparator) -> Iterator[Pair]:
    if not predictions.binary:
        raise InvalidValueError("--comparator", comparator.column, "none: a comparator is for tasks of two classes")
    frame = predictions.frame
    if comparator.column not in frame:
        raise InvalidValueError("--comparator", comparator.column, "a column of the cohort with a score")
    score = pd.to_numeric(frame[comparator.column], errors="coerce").to_numpy(np.float64)
    rows = np.flatnonzero(np.isfinite(score))
    target = predictions.target[rows]
    if len(np.unique(target)) < 2:
        raise InvalidValueError("--comparator", comparator.column, "a column with scores of people of both classes")
    one = _Screen.of(target, predictions.log_odds[rows], frame["above"].to_numpy(bool)[rows])
    two = _Screen.of(target, score[rows], score[rows] >= comparator.cutoff)
    yield Pair(
        f"comparator {comparator.column} at {comparator.cutoff:g} or more",
        "comparator",
        _Screen.names,
        (one, two),
        rows,
        _weights(predictions, rows),
        (np.ones(len(rows), bool), target == 1, target == 0),
    )


def _weights(predictions: Predictions, rows: NDArray[np.intp]) -> Vector:
    """Subjects count alike for two classes, recordings for several, as in the figures."""
    return subject_weights(predictions.subjects[rows], len(rows)) if predictions.binary else np.ones(len(rows))


@dataclass(frozen=True)
class _Constant:
    """What chance reaches."""

    value: float

    def __call__(self, _weight: Vector) -> tuple[float]:
        return (self.value,)


@dataclass(frozen=True, eq=False)
class _Auroc:
    """AUROC of a score."""

    ranking: Ranking

    def __call__(self, weight: Vector) -> tuple[float]:
        return (self.ranking.auroc(weight),)


@dataclass(frozen=True, eq=False)
class _Uar:
    """Unweighted average recall of the most probable classes."""

    confusion: Confusion

    @classmethod
    def of(cls, predictions: Predictions, rows: NDArray[np.intp]) -> "_Uar":
        answer = predictions.probabilities[rows].argmax(axis=1)
        return cls(Confusion(predictions.target[rows], answer, len(predictions.task.classes)))

    def __call__(self, weight: Vector) -> tuple[float]:
        return (unweighted_average_recall_of(self.confusion.matrix(weight)),)


@dataclass(frozen=True, eq=False)
class _Screen:
    """A score with its threshold, beside the truth: AUROC, sensitivity, specificity."""

    names: ClassVar[tuple[str, ...]] = ("auroc", "sensitivity", "specificity")
    ranking: Ranking
    positive: NDArray[np.bool_]
    above: NDArray[np.bool_]

    @classmethod
    def of(cls, target: NDArray[np.int64], score: Vector, above: NDArray[np.bool_]) -> "_Screen":
        return cls(Ranking(target, score), target == 1, above)

    def __call__(self, weight: Vector) -> tuple[float, float, float]:
        with_, without = weight @ self.positive, weight @ ~self.positive
        caught, spared = weight @ (self.positive & self.above), weight @ ~(self.positive | self.above)
        return self.ranking.auroc(weight), float(caught / with_) if with_ else np.nan, float(spared / without) if without else np.nan


def _common_rows(first: Predictions, second: Predictions) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Positions of the recordings that both have, by the table's row number where both have one, else by digest and subject."""
    keys = ["row"] if "row" in first.frame and "row" in second.frame else ["recording", "subject"]
    one, two = (p.frame[keys].assign(position=np.arange(len(p.frame))) for p in (first, second))
    both = one.merge(two, on=keys, suffixes=("_1", "_2"))
    if both.empty or both["position_1"].duplicated().any() or both["position_2"].duplicated().any():
        raise InvalidValueError("--against", "predictions of other recordings", "a model asked about the same table")
    mine, theirs = both["position_1"].to_numpy(), both["position_2"].to_numpy()
    if not np.array_equal(first.target[mine], second.target[theirs]):
        raise InvalidValueError("--against", "predictions with other labels", "the same truth for the same recordings")
    return mine, theirs
