"""How much of what it knew a model unlearns as it learns on: one matrix, every update by every stage, and what is said of it in four figures.

The one idea: all updates are judged by the same people, so that what is lost between two updates is a paired difference, and the interval is that of
other people.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clinical_ser.errors import InvalidValueError
from clinical_ser.evaluation.discrimination import Confusion, Ranking, Weights, unweighted_average_recall_of
from clinical_ser.evaluation.figure import Figure
from clinical_ser.evaluation.intervals import Bootstrap, bootstrap

Array = NDArray[np.float64]
OfWeights = Callable[[Weights], float]
Measure = Callable[[NDArray[np.int64], Array], OfWeights]
"""Outcomes, shape (rows,), and scores, shape (rows,), to a figure of row weights; larger is better, NaN where it is not defined."""

SUMMARIES = ("average", "backward_transfer", "forgetting", "forward_transfer")
CHANCE = 0.5
"""Of an AUROC, and of a recall averaged over two classes."""


def auroc(y: NDArray[np.int64], score: Array) -> OfWeights:
    """Area under the ROC curve; see `Ranking.auroc`."""
    return Ranking(y, score).auroc


def recall_at_zero(y: NDArray[np.int64], score: Array) -> OfWeights:
    """Recall averaged over the two classes (UAR) of scores from which the threshold is taken off already: positive at 0 and above."""
    confusion = Confusion(y, (np.asarray(score) >= 0).astype(np.int64), 2)
    return lambda weight: unweighted_average_recall_of(confusion.matrix(weight))


@dataclass(frozen=True, eq=False)
class Stage:
    """People of one stage whom no update learned from, and what every update says of them.

    Attributes
    ----------
    name
        Of the site, microphone or language.
    y
        Shape (rows,), 1 for positive, 0 else.
    subjects
        Shape (rows,); one person may be in several stages.
    scores
        Shape (stages, rows): row i is of the model after the update on stage i, in the order in which they came.
    """

    name: str
    y: NDArray[np.int64]
    subjects: NDArray[np.str_]
    scores: Array


@dataclass(frozen=True, eq=False)
class Forgetting:
    r"""The matrix R, R[i, j] the figure on stage j after the update on stage i, and what it comes to; T stages.

    - `average`: the mean over j of R[T-1, j].
    - `backward_transfer`: the mean over j < T-1 of R[T-1, j] - R[j, j]; negative where old stages got worse (Lopez-Paz & Ranzato 2017, NeurIPS).
    - `forgetting`: the mean over j < T-1 of max over i < T-1 of R[i, j], less R[T-1, j] (Chaudhry et al. 2018, ECCV). The maximum is picked from
      several noisy figures, so it is a little above 0 where nothing is forgotten.
    - `forward_transfer`: the mean over j > 0 of R[j-1, j] - chance: what a stage that is not learned yet has from those before (2017).

    Attributes
    ----------
    names
        Of the stages.
    drawn
        Figures of all rows and of bootstrap samples of subjects: the matrix row by row, then `SUMMARIES`.
    people, rows
        By stage: whom a figure rests on (the smaller class), and recordings.
    """

    names: tuple[str, ...]
    drawn: Bootstrap
    people: tuple[int, ...]
    rows: tuple[int, ...]

    @property
    def matrix(self) -> Array:
        """Shape (stages, stages), R."""
        return self.drawn.values[: len(self.names) ** 2].reshape(len(self.names), len(self.names))

    def cell(self, update: int, stage: int) -> Figure:
        """Return R[update, stage] with its interval, that of a share."""
        index = update * len(self.names) + stage
        return self._figure(self.drawn, index, self.people[stage], self.rows[stage], share=True)

    def summary(self, name: str) -> Figure:
        """Return one of `SUMMARIES` with its interval; not defined of a single stage, but for `average`."""
        return self._figure(self.drawn, self._index(name), min(self.people), sum(self.rows), share=name == "average")

    def less(self, other: "Forgetting", name: str) -> Figure:
        """Return how much larger one of `SUMMARIES` is than that of another model with the same people, samples paired.

        Raises
        ------
        InvalidValueError
            The other was judged by other people or other samples of them.
        """
        if (self.names, self.people, self.rows, self.drawn.replicates.shape) != (other.names, other.people, other.rows, other.drawn.replicates.shape):
            raise InvalidValueError("other", "other stages or samples", "a model that was judged by the same people, with the same seed")
        at = self._index(name)
        pair = Bootstrap(
            self.drawn.values[[at]] - other.drawn.values[[at]],
            self.drawn.replicates[:, [at]] - other.drawn.replicates[:, [at]],
            self.drawn.level,
        )
        return self._figure(pair, 0, min(self.people), sum(self.rows), share=False)

    def _index(self, name: str) -> int:
        if name not in SUMMARIES:
            raise InvalidValueError("summary", name, SUMMARIES)
        return len(self.names) ** 2 + SUMMARIES.index(name)

    @staticmethod
    def _figure(drawn: Bootstrap, index: int, people: int, rows: int, *, share: bool) -> Figure:
        low, high = drawn.interval(index, subjects=people, share=share)
        return Figure.of(float(drawn.values[index]), low, high, subjects=people, recordings=rows, method="cluster bootstrap")


def measure_forgetting(
    stages: Sequence[Stage],
    *,
    measure: Measure = auroc,
    chance: float = CHANCE,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Forgetting:
    """Compute the matrix and its summaries, with intervals over subjects.

    Parameters
    ----------
    stages
        In the order in which they were learned.
    measure
        Of one stage's rows; all recordings count alike.
    chance
        What it is of a model that knows nothing, for `forward_transfer`.
    replicates, level, seed
        As in `evaluation.intervals.bootstrap`. The same people and seed give the same samples, whatever the scores (`Forgetting.less`).

    Raises
    ------
    InvalidValueError
        Without a stage, with a name twice, or with a stage whose shapes do not fit, that is empty, or that has scores that are no numbers.

    Examples
    --------
    >>> y, people = np.array([0, 0, 1, 1]), np.array(["a", "b", "c", "d"])
    >>> first = Stage("first", y, people, np.array([[0.0, 1.0, 2.0, 3.0], [2.0, 1.0, 0.0, 3.0]]))
    >>> then = Stage("then", y, people, np.array([[0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 2.0, 3.0]]))
    >>> found = measure_forgetting([first, then], replicates=50)
    >>> found.matrix.tolist(), found.summary("forgetting").value
    ([[1.0, 0.5], [0.5, 1.0]], 0.5)
    """
    _check(stages)
    lengths = [len(stage.y) for stage in stages]
    ends = np.cumsum([0, *lengths])
    figures = [[measure(stage.y, stage.scores[update]) for stage in stages] for update in range(len(stages))]

    def statistic(weight: Array) -> Array:
        parts = [weight[start:end] for start, end in itertools.pairwise(ends)]
        R = np.array([[figure(part) for figure, part in zip(row, parts, strict=True)] for row in figures])
        return np.concatenate([R.ravel(), _summaries(R, chance)])

    drawn = bootstrap(statistic, np.concatenate([stage.subjects for stage in stages]), replicates=replicates, level=level, seed=seed)
    return Forgetting(tuple(stage.name for stage in stages), drawn, tuple(_people(stage) for stage in stages), tuple(lengths))


def _summaries(R: Array, chance: float) -> Array:
    last, before = R[-1], R[:-1]
    average = last.mean()
    if not len(before):
        return np.array([average, np.nan, np.nan, np.nan])
    backward = (last - np.diag(R))[:-1].mean()
    forgotten = (before.max(axis=0) - last)[:-1].mean()
    forward = (np.diag(R, k=1) - chance).mean()
    return np.array([average, backward, forgotten, forward])


def _people(stage: Stage) -> int:
    """Return how many people the smaller class has."""
    return min(len(np.unique(stage.subjects[stage.y == k])) for k in (0, 1))


def _check(stages: Sequence[Stage]) -> None:
    if not stages:
        raise InvalidValueError("stages", "none", "at least one")
    if len({stage.name for stage in stages}) != len(stages):
        raise InvalidValueError("stages", "a name twice", "each stage once")
    for number, stage in enumerate(stages, start=1):
        rows = len(stage.y)
        if not rows or stage.y.shape != (rows,) or stage.subjects.shape != (rows,) or stage.scores.shape != (len(stages), rows):
            shapes = f"shapes {stage.y.shape}, {stage.subjects.shape} and {stage.scores.shape}"
            raise InvalidValueError(f"stage {number}", shapes, f"some rows, and scores of each of {len(stages)} updates")
        if not np.isin(stage.y, (0, 1)).all():
            raise InvalidValueError(f"stage {number}", "an outcome that is neither", [0, 1])
        if not np.isfinite(stage.scores).all():
            raise InvalidValueError(f"stage {number}", "a score that is no number", "finite scores")
