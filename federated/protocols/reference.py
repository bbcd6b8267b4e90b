"""What is usual, and what it adds: moments, binned quantiles and family margins of reference groups, for `reference.json` and `background.json`.

The one idea: both files hold nothing but weighted sums over a group, so they come out of totals as they come out of a table.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clinical_ser.errors import InvalidValueError
from clinical_ser.features import catalogue
from clinical_ser.models.background import Background
from clinical_ser.models.reference import LEVELS, MINIMUM_SUBJECTS, Conditions, ReferenceGroup
from clinical_ser.models.rounding import coarse, rounded
from clinical_ser.models.state import Matrix
from clinical_ser.models.weights import subject_weights
from federated.at_site import EVERYBODY, Array, Scales, numbers, symmetric, times_drawn, triangle, unclipped
from federated.protocols.boosting import Ensembles, Zeros, head_of
from federated.protocols.cohort import values_of
from federated.protocols.margins import has_trees, trees_of
from federated.statistics import Arrays, Ask, SiteRows, Statistic, register

HALF_WIDTH = 6.0
"""Quantiles are looked for within so many SD of the mean."""
CELLS = 240
"""Cells of 0.05 SD: a quantile is then known better than from a few hundred people."""
EDGES = np.linspace(-HALF_WIDTH, HALF_WIDTH, CELLS + 1)
SEXES = ("female", "male")


@register
class Reference(Statistic):
    """Sums over the negative class, everyone or one sex.

    Arrays: `mean`, `scale` (folds + 1, features); `beta` (folds, features + 1) heads of the folds; `own` (features + 1,) and `refits` (refits,
    features + 1), which heard everybody. Of boosted trees in place of these the arrays of all ensembles and of their `Zeros` (`margins.named_trees`):
    one a fold, everybody's, one a bootstrap sample. Option `sex`: empty for everyone.
    """

    name = "reference"
    bound = 1e9
    counts = frozenset({"people", "weight", "feature_people", "feature_cells"})

    def at_site(self, rows: SiteRows, ask: Ask) -> Arrays:
        """Return the sums that `ReferenceTotals` reads, every subject with weight 1."""
        sex = str(ask.options["sex"])
        alike = np.array([not sex or value == sex for value in values_of(rows.frame, "sex")], bool)
        of_group = (rows.target == 0) & alike
        here: NDArray[np.intp] = np.flatnonzero(of_group)
        weight = subject_weights(rows.subjects[here], len(here))
        scales = Scales(rows, ask)
        Z = scales.design(-1)[here]
        values = unclipped(rows.X[here], scales.mean[-1], scales.scale[-1])
        heads = _Trees(rows, ask, here) if has_trees(ask) else _Coefficients(rows, ask, here)
        families, features = heads.out_of_fold()
        own = heads.own()
        refits = []
        for i, margins in enumerate(heads.refits()):
            drawn = weight * times_drawn(rows, i)[here]
            refits.append(np.concatenate([[drawn.sum()], drawn @ margins, drawn @ margins**2]))
        return {
            "people": np.array([len(np.unique(rows.subjects[here]))], float),
            "weight": np.array([weight.sum()]),
            **_of_values(values, weight, rows.subjects[here]),
            "families": np.concatenate([weight @ families, triangle((families.T * weight) @ families)]),
            "own": np.concatenate([weight @ own, weight @ own**2]),
            "features": np.concatenate([weight @ features, weight @ features**2]),
            "z": np.concatenate([weight @ Z[:, :-1], weight @ Z[:, :-1] ** 2]),
            "refits": np.array(refits),
        }


class _Coefficients:
    """What families and features add in linear heads; rows are those at `here`."""

    def __init__(self, rows: SiteRows, ask: Ask, here: NDArray[np.intp]):
        self._rows, self._ask, self._here = rows, ask, here
        self._scales, self._columns = Scales(rows, ask), _family_columns(rows.names)

    def out_of_fold(self) -> tuple[Array, Array]:
        """Return family margins (rows, families) and feature margins (rows, features) by heads that never heard the row."""
        beta = numbers(self._ask, "beta", ndim=2)
        families, features = np.zeros((len(self._here), len(self._columns))), np.zeros((len(self._here), self._rows.X.shape[1]))
        for fold in range(self._scales.folds):
            of_fold = self._rows.fold[self._here] == fold
            Z = self._scales.design(fold)[self._here][of_fold]
            families[of_fold] = _by_family(Z, beta[fold], self._columns)
            features[of_fold] = Z[:, :-1] * beta[fold][:-1]
        return families, features

    def own(self) -> Array:
        """Return family margins by the head of everybody, shape (rows, families)."""
        return self._of(numbers(self._ask, "own", ndim=1))

    def refits(self) -> Iterator[Array]:
        """Return the same by the head of each bootstrap sample."""
        return (self._of(beta) for beta in numbers(self._ask, "refits", ndim=2))

    def _of(self, beta: Array) -> Array:
        return _by_family(self._scales.design(EVERYBODY)[self._here], beta, self._columns)


class _Trees:
    """The same of boosted trees: each ensemble as the `BoostedHead` that a bundle would hold."""

    def __init__(self, rows: SiteRows, ask: Ask, here: NDArray[np.intp]):
        told = trees_of(ask)
        self._families = tuple(catalogue.get(name).family for name in rows.names)
        self._known, self._fold, self._here = Ensembles(rows, told), rows.fold[here], here
        self._zeros = Zeros.of(told, self._known.trees, self._families)
        self._folds = Scales(rows, ask).folds
        expected = np.append(np.arange(self._folds), np.full(len(self._known) - self._folds, EVERYBODY))
        draws = np.append(np.full(self._folds + 1, EVERYBODY), np.arange(len(self._known) - self._folds - 1))
        if not (np.array_equal(self._known.left_out, expected) and np.array_equal(self._known.draw, draws)):
            raise InvalidValueError("reference.trees", "other ensembles", "one a fold, everybody's, and one a bootstrap sample")

    def out_of_fold(self) -> tuple[Array, Array]:
        """See `_Coefficients.out_of_fold`."""
        families, features = np.zeros((len(self._here), self._zeros.centre.shape[1])), np.zeros((len(self._here), len(self._families)))
        for fold in range(self._folds):
            of_fold = self._fold == fold
            head = head_of(self._known.trees, self._zeros, fold, float(self._known.start[fold]), self._families, (0, 1))
            families[of_fold] = self._of(fold)[of_fold]
            if of_fold.any():
                features[of_fold] = head.feature_margins(self._known.z(fold)[self._here][of_fold])
        return families, features

    def own(self) -> Array:
        """See `_Coefficients.own`."""
        return self._of(self._folds)

    def refits(self) -> Iterator[Array]:
        """See `_Coefficients.refits`."""
        return (self._of(ensemble) for ensemble in range(self._folds + 1, len(self._known)))

    def _of(self, ensemble: int) -> Array:
        return self._known.family_margins(ensemble, self._zeros.centre[ensemble])[self._here]


def _of_values(z: Array, weight: Array, subjects: NDArray[np.str_]) -> Arrays:
    """Return people, mass, sums and cells of each feature; in each, those who have the feature count once."""
    people, sums, cells = np.zeros(z.shape[1]), np.zeros((z.shape[1], 3)), np.zeros((z.shape[1], CELLS))
    everyone = np.asarray(np.isfinite(z).all(axis=0))
    for j, column in enumerate(z.T):
        known = np.isfinite(column)
        w = weight if everyone[j] else subject_weights(subjects[known], int(known.sum()))
        values = np.clip(column[known], -HALF_WIDTH, HALF_WIDTH)
        people[j] = len(np.unique(subjects[known]))
        sums[j] = w.sum(), w @ values, w @ values**2
        cells[j] = np.bincount(np.clip(np.searchsorted(EDGES, values, side="right") - 1, 0, CELLS - 1), w, minlength=CELLS)
    return {"feature_people": people, "feature_sums": sums, "feature_cells": cells}


def _by_family(Z: Array, beta: Array, columns: Sequence[NDArray[np.intp]]) -> Array:
    return np.stack([Z[:, of] @ beta[of] for of in columns], axis=1)


def _family_columns(names: Sequence[str]) -> list[NDArray[np.intp]]:
    families = np.array([catalogue.get(name).family for name in names])
    return [np.flatnonzero(families == family) for family in dict.fromkeys(families.tolist())]


@dataclass(frozen=True, eq=False)
class ReferenceTotals:
    """Totals of one group, and what the bundle says of it."""

    totals: Arrays
    names: tuple[str, ...]
    sex: str
    title: str
    mean: Array
    """Shape (features,), of everybody."""
    scale: Array

    @property
    def people(self) -> int:
        """Subjects in the group."""
        return round(float(self.totals["people"][0]))

    @property
    def published(self) -> bool:
        """Whether the group is large enough."""
        return self.people >= MINIMUM_SUBJECTS

    def group(self) -> ReferenceGroup:
        """Return the group of `reference.json`, in the features' own units."""
        quantiles, means, sds = {}, {}, {}
        totals = self.totals
        for j, name in enumerate(self.names):
            mass, total, squares = totals["feature_sums"][j]
            if totals["feature_people"][j] < MINIMUM_SUBJECTS - 0.5 or self.scale[j] == 0:
                continue
            centre = total / mass
            spread = np.sqrt(max(squares / mass - centre**2, 0.0)) * self.scale[j]
            quantiles[name] = tuple(np.maximum.accumulate(rounded(self.mean[j] + self.scale[j] * _quantiles(totals["feature_cells"][j]))).tolist())
            means[name] = float(coarse(self.mean[j] + self.scale[j] * centre, spread, self.people))
            sds[name] = float(rounded(spread))
        conditions = Conditions(sex=self.sex or None)
        name = f"{self.title}, {self.sex or 'all'}"
        return ReferenceGroup(name=name, conditions=conditions, shared=conditions, subjects=self.people, quantiles=quantiles, mean=means, sd=sds)

    def background(self, families: int) -> Background:
        """Return the group of `background.json`, as `BackgroundLearner` would from rows."""
        totals, weight, people = self.totals, float(self.totals["weight"][0]), self.people
        mean = totals["families"][:families] / weight
        covariance = symmetric(totals["families"][families:], families) / weight - np.outer(mean, mean)
        sd = np.sqrt(np.maximum(np.diag(covariance), 0.0))
        own_mean, own_sd = _moments(weight, totals["own"])
        moved = [_moments(refit[0], refit[1:]) if refit[0] > 0 else (own_mean, own_sd) for refit in totals["refits"]]
        widened = [np.divide(s, own_sd, out=np.ones_like(s), where=own_sd > 0) for _, s in moved]
        features, feature_sd = _moments(weight, totals["features"])
        z_mean, z_sd = _moments(weight, totals["z"])
        return Background(
            mean=_column(coarse(mean, sd, people)),
            sd=_column(sd),
            correlation=_correlation(covariance, sd),
            refit_mean=tuple(_column(coarse(mean + m - own_mean, sd, people)) for m, _ in moved),
            refit_sd=tuple(_column(sd * ratio) for ratio in widened),
            features=_column(coarse(features, feature_sd, people)),
            z_mean=tuple(coarse(z_mean, z_sd, people).tolist()),
        )


def _quantiles(cells: Array) -> Array:
    """Quantiles at `LEVELS` from binned mass, straight within a cell."""
    reached = np.append(0.0, np.cumsum(cells)) / cells.sum()
    rising = np.append(True, np.diff(reached) > 0)
    return np.asarray(np.interp(LEVELS, reached[rising], EDGES[rising]))


def _moments(weight: float, sums: Array) -> tuple[Array, Array]:
    first, second = np.split(sums, 2)
    mean = first / weight
    return mean, np.sqrt(np.maximum(second / weight - mean**2, 0.0))


def _column(values: Array) -> Matrix:
    return tuple((value,) for value in rounded(values).tolist())


def _correlation(covariance: Array, sd: Array) -> Matrix:
    size = np.outer(sd, sd)
    found = np.round(np.clip(np.divide(covariance, size, out=np.zeros_like(covariance), where=size > 0), -1, 1), 3)
    np.fill_diagonal(found, 1.0)
    return tuple(tuple(row) for row in rounded((found + found.T) / 2).tolist())
