"""Sets of classes that hold the true one in a stated share of subjects, class by class, whatever the model.

Label-conditional (Mondrian): each class has its own threshold, so the rare class is covered as well as the common one, and coverage does not
move with prevalence. Hierarchical: a subject counts once, however many recordings they gave. Too few subjects of a class give a threshold that
lets the class into every set, and the object says so.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from clinical_ser.errors import InvalidValueError
from clinical_ser.models.state import Count, Finite, State
from clinical_ser.models.weights import subject_of_row, subject_weights

DEFAULT_COVERAGE = 0.90
ROUNDING = 1e-12
"""Cumulated weights carry rounding; a level reached to within this is reached."""

Decision = Literal["flagged", "not_flagged", "indeterminate"]


class ConformalState(State):
    """`conformal.json`; a threshold of null belongs to a class with too few subjects."""

    coverage: Annotated[Finite, Field(gt=0, lt=1)]
    thresholds: Annotated[tuple[Finite | None, ...], Field(min_length=2)]
    subjects: tuple[Count, ...]

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        if len(self.thresholds) != len(self.subjects):
            raise ValueError("one threshold and one number of subjects a class are needed")
        return self


class ConformalSets:
    """Label-conditional conformal sets from out-of-fold probabilities, with the subject as the unit.

    A class enters the set if 1 - p(class) is at most the class's threshold: the `coverage` quantile of that score over the class's own
    recordings, in which each of the G subjects has mass 1/(G+1), shared among their recordings, and the last 1/(G+1) lies at infinity.

    For a new subject drawn like the others and any one of their recordings of class k, P(k in set) ≥ `coverage`, exactly and for every
    distribution (Lee, Barber & Willett 2023, arXiv 2306.06342: hierarchical conformal prediction; it is the CDF pooling of Dunn, Wasserman &
    Ramdas 2023, JASA 118:2491-2502, made exact by the mass at infinity; with one recording a subject it is Vovk's label-conditional
    predictor). Here scores come from fold models and sets from the model refitted on everyone (cross-conformal: Vovk 2015, Ann Math Artif
    Intell 74:9-28), for which that holds closely but not provably; check it in an evaluation.

    The realised coverage of one calibration set varies: with one recording a subject it follows Beta(c, G+1-c), c = ceil(coverage·(G+1)),
    which is .78 to .98 (5-95 %) at 20 subjects and .85 to .95 at 100.

    Parameters
    ----------
    coverage
        Share of subjects, of each class, whose set has to hold the truth.

    Attributes
    ----------
    thresholds_ : tuple of float or None
        One a class, of the score 1 - p; None where there are too few subjects.
    subjects_ : tuple of int
        Subjects of each class.
    vacuous_classes_ : tuple of int
        Numbers of the classes without a threshold: they are in every set, and a decision for or against them is never made. At a coverage of 0.90
        a class needs 9 subjects.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> y = rng.integers(0, 2, 400)
    >>> p = 1 / (1 + np.exp(-rng.normal(3.0 * y - 1.5)))
    >>> sets = ConformalSets(coverage=0.9).fit(np.column_stack([1 - p, p]), y)
    >>> [status_from_set(row) for row in sets.predict([[0.98, 0.02], [0.5, 0.5], [0.03, 0.97]])]
    ['not_flagged', 'indeterminate', 'flagged']
    """

    thresholds_: tuple[float | None, ...]
    subjects_: tuple[int, ...]

    def __init__(self, coverage: float = DEFAULT_COVERAGE):
        if not 0 < coverage < 1:
            raise InvalidValueError("coverage", coverage, "a share strictly between 0 and 1")
        self.coverage = coverage

    def fit(self, prob: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Set each class's threshold.

        Parameters
        ----------
        prob
            Shape (rows, classes), calibrated probabilities of recordings that neither head nor fold saw in training.
        y
            Shape (rows,), class numbers from 0.
        groups
            Shape (rows,), the subject of each row; None: every row is a subject of its own.

        Raises
        ------
        InvalidValueError
            If shapes do not fit, a probability lies outside [0, 1] or a class number is out of range.
        """
        p = _probabilities(prob)
        target = np.asarray(y)
        if target.shape != (len(p),) or not np.isin(target, np.arange(p.shape[1])).all():
            raise InvalidValueError("y", f"array of shape {target.shape}", f"{len(p)} class numbers from 0 to {p.shape[1] - 1}")
        subject = subject_of_row(None if groups is None else np.asarray(groups), len(p))
        of_class = [np.flatnonzero(target == k) for k in range(p.shape[1])]
        self.subjects_ = tuple(len(np.unique(subject[rows])) for rows in of_class)
        self.thresholds_ = tuple(self._threshold(1.0 - p[rows, k], subject[rows]) for k, rows in enumerate(of_class))
        return self

    def _threshold(self, scores: NDArray[np.float64], subject: NDArray[Any]) -> float | None:
        mass = subject_weights(subject, len(scores))
        order = np.argsort(scores, kind="stable")
        reached = np.cumsum(mass[order]) >= self.coverage * (mass.sum() + 1) - ROUNDING * (mass.sum() + 1)
        return float(scores[order][np.argmax(reached)]) if reached.any() else None

    @property
    def vacuous_classes_(self) -> tuple[int, ...]:
        """Numbers of the classes that are in every set for want of subjects."""
        return tuple(k for k, threshold in enumerate(self.thresholds_) if threshold is None)

    def predict(self, prob: ArrayLike) -> NDArray[np.bool_]:
        """Return which classes are in each set, shape (rows, classes), from calibrated probabilities at the training prevalence."""
        p = _probabilities(prob)
        if p.shape[1] != len(self.thresholds_):
            raise InvalidValueError("prob", f"array of shape {p.shape}", f"shape (rows, {len(self.thresholds_)})")
        limits = np.array([np.inf if threshold is None else threshold for threshold in self.thresholds_])
        return np.asarray(1.0 - p <= limits)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `conformal.json`."""
        return ConformalState(coverage=self.coverage, thresholds=self.thresholds_, subjects=self.subjects_).to_dict()

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Inverse of `to_dict`; BundleSchemaError if the values do not fit together."""
        state = ConformalState.from_dict(data)
        sets = cls(state.coverage)
        sets.thresholds_, sets.subjects_ = state.thresholds, state.subjects
        return sets


def subjects_needed(coverage: float) -> int:
    """Return the least number of subjects of a class at which its threshold is finite.

    Examples
    --------
    >>> subjects_needed(0.90)
    9
    """
    return int(np.ceil(coverage / (1.0 - coverage) - 1e-9))


def status_from_set(members: ArrayLike) -> Decision:
    """Read the set of a binary task.

    Parameters
    ----------
    members
        Shape (2,), whether (negative, positive) are in the set.

    Returns
    -------
    str
        `flagged` for the positive class alone, `not_flagged` for the negative class alone, `indeterminate` for both or neither.
    """
    inside = np.asarray(members, dtype=bool)
    if inside.shape != (2,):
        raise InvalidValueError("members", f"array of shape {inside.shape}", "two truth values, (negative, positive)")
    if inside[0] == inside[1]:
        return "indeterminate"
    return "flagged" if inside[1] else "not_flagged"


def _probabilities(prob: ArrayLike | Sequence[Sequence[float]]) -> NDArray[np.float64]:
    p = np.asarray(prob, dtype=np.float64)
    if p.ndim != 2 or p.shape[1] < 2:
        raise InvalidValueError("prob", f"array of shape {p.shape}", "shape (rows, classes), two classes or more")
    if not ((p >= 0) & (p <= 1)).all():
        raise InvalidValueError("prob", "values outside [0, 1]", "probabilities")
    return p
