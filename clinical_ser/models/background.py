"""What each family adds to the margin in a reference group: moments, never rows, from which a typical member can be drawn.

The one idea: the margin is a sum over families, so the reference group enters an explanation only through what its families add. That is a
handful of means, spreads and correlations, far less than the features of people. They are learned out of fold: a head finds the people it
learned from healthier, or iller, than it would find others like them, and a new recording is one of the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator
from scipy.stats import qmc

from clinical_ser.models.heads import Head, with_margins
from clinical_ser.models.reference import Cut
from clinical_ser.models.rounding import coarse, rounded
from clinical_ser.models.state import Matrix, State, Vector
from clinical_ser.models.weights import subject_weights

SAMPLES = 512
"""Background samples a group: the family contributions of a probability then move by less than 0.1 points against 16,384 (docs/benchmarks.md)."""

Array = NDArray[np.float64]


class Background(State):
    """One group's moments; matrices have one row a family (or feature) and one column a margin (one for two classes, else one a class)."""

    mean: Matrix
    sd: Matrix
    correlation: Matrix
    """Of all families' margins, families first: entry (f * margins + k)."""
    refit_mean: tuple[Matrix, ...]
    """What each refit's families add in the group."""
    refit_sd: tuple[Matrix, ...]
    features: Matrix
    """What each feature adds to the margin in the group."""
    z_mean: Vector
    """The group's mean of each standardised feature; where refits' features have their zero is learned from it."""

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        shapes = {(len(matrix), len(row)) for matrix in (self.mean, self.sd, *self.refit_mean, *self.refit_sd) for row in matrix}
        size = len(self.mean) * len(self.mean[0]) if self.mean else 0
        if len(shapes) != 1 or len(self.refit_mean) != len(self.refit_sd):
            raise ValueError("means and spreads need one row a family and one column a margin, in the model and in each refit")
        if len(self.correlation) != size or any(len(row) != size for row in self.correlation):
            raise ValueError("the correlation needs one row and column a family and margin")
        if len(self.features) != len(self.z_mean) or any(len(row) != len(self.mean[0]) for row in self.features):
            raise ValueError("one row a feature and one column a margin are needed")
        if any(value < 0 for matrix in (self.sd, *self.refit_sd) for row in matrix for value in row):
            raise ValueError("a spread is negative")
        found = np.array(self.correlation)
        if size and not ((np.diag(found) == 1).all() and (np.abs(found) <= 1).all() and (found == found.T).all()):
            raise ValueError("a correlation is 1 with itself, at most 1 with others, and the same both ways")
        return self

    @classmethod
    def average(cls, head: Head, refits: int) -> Self:
        """Return the average training recording as a group without spread, for cohorts too small to have a group."""
        width = 1 if len(head.classes_) == 2 else len(head.classes_)
        families = tuple((0.0,) * width for _ in head.families_)
        size = len(families) * width
        return cls(
            mean=families,
            sd=families,
            correlation=tuple(tuple(float(i == j) for j in range(size)) for i in range(size)),
            refit_mean=(families,) * refits,
            refit_sd=(families,) * refits,
            features=tuple((0.0,) * width for _ in head.column_families),
            z_mean=(0.0,) * len(head.column_families),
        )

    @property
    def means(self) -> Array:
        """Shape (1 + refits, families, margins): the model first."""
        return np.array([self.mean, *self.refit_mean])

    @property
    def sds(self) -> Array:
        """Shape (1 + refits, families, margins)."""
        return np.array([self.sd, *self.refit_sd])

    def draw(self, samples: int = SAMPLES) -> Array:
        """Return what the families of typical members add, shape (1 + refits, samples, families, margins).

        Normal, with the group's means, spreads and correlations; the same draws serve the model and its refits, and the same group gives the
        same draws. A scrambled Sobol' sequence and its mirror image, so that the draws' mean is exactly the group's.
        """
        shape = np.array(self.mean).shape
        standard = _standard_normal(samples // 2, shape[0] * shape[1]) @ _root(np.array(self.correlation)).T
        both = np.concatenate([standard, -standard]).reshape(-1, *shape)
        return np.asarray(self.means[:, None] + self.sds[:, None] * both)


class Backgrounds(State):
    """`background.json`: one entry a group of `reference.json`, in its order."""

    groups: tuple[Background, ...]


@lru_cache(maxsize=8)
def _standard_normal(samples: int, size: int) -> Array:
    draws = qmc.MultivariateNormalQMC(np.zeros(size), rng=np.random.default_rng(0)).random(samples)
    # Its spread is that of the normal distribution only nearly; exactly, and a group's moments come out as they went in.
    return np.asarray(draws / np.sqrt((draws**2).mean(axis=0)))


def _root(correlation: Array) -> Array:
    """Return a matrix whose square is the correlation; rounded entries may have made an eigenvalue slightly negative."""
    values, vectors = np.linalg.eigh(correlation)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    return np.asarray(root / np.sqrt((root**2).sum(axis=1, keepdims=True)))


@dataclass(eq=False)
class BackgroundLearner:
    """Collects, fold by fold and refit by refit, what families and features add in each group.

    Parameters
    ----------
    groups
        The groups' rows, as positions within all rows learned from; each of them is tested once.
    subjects
        Shape (rows,), the subject of each row.
    """

    groups: Sequence[Cut]
    subjects: NDArray[np.str_]
    _families: Array | None = field(init=False, default=None)
    _features: list[Array] = field(init=False)
    _squares: list[Array] = field(init=False)
    _weights: list[Array] = field(init=False)

    def __post_init__(self) -> None:
        self._weights = [np.zeros(len(self.subjects)) for _ in self.groups]
        for weight, cut in zip(self._weights, self.groups, strict=True):
            weight[cut.rows] = subject_weights(self.subjects[cut.rows], len(cut.rows))

    def hear(self, rows: NDArray[np.intp], head: Head, Z: Array) -> None:
        """Take in what a head that never heard them says of some rows."""
        families, features = with_margins(head.family_margins(Z)), with_margins(head.feature_margins(Z))
        if self._families is None:
            self._families = np.zeros((len(self.subjects), *families.shape[1:]))
            self._features, self._squares = ([np.zeros(features.shape[1:]) for _ in self.groups] for _ in range(2))
        self._families[rows] = families
        for i, weight in enumerate(self._weights):
            self._features[i] += np.einsum("n,nfk->fk", weight[rows], features)
            self._squares[i] += np.einsum("n,nfk->fk", weight[rows], features**2)

    def summarise(self, head: Head, Z: Array, refits: Sequence[tuple[Head, Array]]) -> Backgrounds:
        """Return every group's moments.

        Parameters
        ----------
        head, Z
            The model fitted on everyone, and everyone's standardised features, shape (rows, features).
        refits
            The heads fitted on bootstrap samples, and how often each row was drawn, shape (rows,). A refit's mean is that of the people it drew:
            who is in the reference group is part of the doubt.
        """
        own = with_margins(head.family_margins(Z))
        again = [(with_margins(refit.family_margins(Z)), drawn) for refit, drawn in refits]
        return Backgrounds(groups=tuple(self._group(i, own, again, Z) for i in range(len(self.groups))))

    def _group(self, i: int, own: Array, again: Sequence[tuple[Array, Array]], Z: Array) -> Background:
        assert self._families is not None
        weight = self._weights[i]
        mean, sd = _moments(self._families, weight)
        # Refits are compared with the model where both have heard the people; what that adds to the reading is in both, and cancels.
        own_mean, own_sd = _moments(own, weight)
        moved = [_moments(values, weight * drawn if (weight * drawn).any() else weight) for values, drawn in again]
        widened = [np.divide(s, own_sd, out=np.ones_like(s), where=own_sd > 0) for _, s in moved]
        people = self.groups[i].subjects
        z_mean, z_sd = _moments(Z, weight)
        features = self._features[i] / weight.sum()
        return Background(
            mean=_matrix(coarse(mean, sd, people)),
            sd=_matrix(sd),
            correlation=_matrix(np.round(_correlation(self._families, weight), 3)),
            refit_mean=tuple(_matrix(coarse(mean + m - own_mean, sd, people)) for m, _ in moved),
            refit_sd=tuple(_matrix(sd * ratio) for ratio in widened),
            features=_matrix(coarse(features, np.sqrt(self._squares[i] / weight.sum() - features**2), people)),
            z_mean=tuple(coarse(z_mean, z_sd, people).tolist()),
        )


def _moments(values: Array, weight: Array) -> tuple[Array, Array]:
    mean = np.average(values, axis=0, weights=weight)
    return mean, np.sqrt(np.average((values - mean) ** 2, axis=0, weights=weight))


def _correlation(values: Array, weight: Array) -> Array:
    mean, sd = _moments(values, weight)
    flat = (np.divide(values - mean, sd, out=np.zeros_like(values), where=sd > 0)).reshape(len(values), -1)
    found = (flat.T * weight) @ flat / weight.sum()
    np.fill_diagonal(found, 1.0)
    return np.asarray(np.clip((found + found.T) / 2, -1, 1))


def _matrix(values: Array) -> Matrix:
    return tuple(tuple(row) for row in rounded(values).tolist())
