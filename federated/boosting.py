"""Growing boosted trees from totals: all folds, everybody and bootstrap samples side by side, one tree a family in each round.

The one idea: an exchange costs seconds whatever it asks, so what boosting does one after the other is done together where that is sound. The
trees of one round see the same derivatives and each takes one share of a step; the mean of steps that each lower a convex loss lowers it too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import logit

from clinical_ser.errors import TrainingError
from clinical_ser.models.boosted_head import TREE_PARAMETERS, BoostedHead
from clinical_ser.models.heads import Labels
from clinical_ser.strict import Strict
from federated.at_site import EVERYBODY, Array
from federated.protocols.boosting import BINS, DEEPEST, NO_SPLIT, TreeCentres, Trees, TreeStart, TreeSums, Whole, Zeros, head_of
from federated.statistics import Arrays, Ask, Sums

RIDGE = float(TREE_PARAMETERS["lambda"])
LEAST_WEIGHT = float(TREE_PARAMETERS["min_child_weight"])
LEAST_GAIN = 1e-6
"""As xgboost's `kRtEps`."""
TIE = 1e-6
"""Gains that differ by less are equal, and the first counts: the order in which sites are added up must not choose a split."""
TOLERANCE = 1e-4
"""How far below zero a total of second derivatives may come to lie by rounding."""


class BoostingSettings(Strict):
    """How trees are grown; lambda and least weight of a child are those of `TREE_PARAMETERS`; neither rows nor columns are sampled."""

    depth: Annotated[int, Field(ge=1, le=DEEPEST)] = 2
    """An exchange each, in every round."""
    rounds: Annotated[int, Field(ge=1, le=400)] = 24
    """At most."""
    patience: Annotated[int, Field(ge=1)] = 4
    """Rounds without a lower held-out loss before growing ends."""
    step: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Shared by the trees of a round."""
    largest_share: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Of the step, for one tree: xgboost's `eta`."""

    def eta(self, families: int) -> float:
        """Return the share of one tree."""
        return min(self.largest_share, self.step / families)


@dataclass(frozen=True, eq=False)
class Grown:
    """Ensembles that were grown together."""

    families: tuple[str, ...]
    """One a column."""
    left_out: Whole
    draw: Whole
    """Shape (ensembles,): each fold left out, everybody, and then bootstrap samples; as in `newton.Heads`."""
    start: Array
    """Shape (ensembles,)."""
    trees: Trees
    cover: Array
    """Shape (ensembles, trees, 2^(depth + 1) - 1)."""
    centre: Array
    """Shape (ensembles, families): what a family adds to the margin of a row that was heard, on average."""
    feature_centre: Array
    """Shape (ensembles, features)."""
    rounds: int
    held_out: tuple[float, ...]
    """Log-loss of the folds, summed, after so many rounds; the chosen number has the least."""

    def arrays(self) -> dict[str, NDArray[np.float64] | Whole]:
        """Return what `protocols.boosting.Ensembles` reads in an ask, beside `mean` and `scale`."""
        return {"left_out": self.left_out, "draw": self.draw, "start": self.start, **self.trees.arrays()}

    @property
    def zeros(self) -> Zeros:
        """What the ensembles explain themselves from."""
        return Zeros(self.cover, self.centre, self.feature_centre)

    def take(self, ensembles: Sequence[int]) -> "Grown":
        """Return some of the ensembles."""
        where = np.asarray(ensembles)
        parts = {name: getattr(self, name)[where] for name in ("left_out", "draw", "start", "cover", "centre", "feature_centre")}
        return replace(self, trees=self.trees.take(where), **parts)

    def head(self, ensemble: int, classes: Labels, *, seed: int = 0) -> BoostedHead:
        """Return an ensemble as the head that a bundle holds and a service reads.

        Parameters
        ----------
        ensemble
            Its place.
        classes
            Labels (negative, positive).
        seed
            Of the head; the trees do not depend on it.
        """
        head = head_of(self.trees, self.zeros, ensemble, float(self.start[ensemble]), self.families, classes)
        head.seed = seed
        return head

    def heads(self, classes: Labels, *, seed: int = 0) -> list[BoostedHead]:
        """Return every ensemble as a head."""
        return [self.head(i, classes, seed=seed) for i in range(len(self.start))]


def grow(
    sums: Sums,
    mean: Array,
    scale: Array,
    families: Sequence[str],
    settings: BoostingSettings | None = None,
    *,
    draws: Sequence[int] = (),
) -> Grown:
    """Grow one ensemble a fold, one on everybody, and one a bootstrap sample.

    The number of rounds is the one with the least log-loss of the folds' ensembles on the rows that they leave out. Exchanges: 3, and `depth`
    for each round that is tried.

    Parameters
    ----------
    sums
        Where totals come from.
    mean, scale
        Shape (folds + 1, features), as `protocols.standardisation.scales` returns them.
    families
        The family of each column.
    settings
        See `BoostingSettings`.
    draws
        Numbers of bootstrap samples (`at_site.times_drawn`).

    Raises
    ------
    TrainingError
        A class has no row in some training set, or totals cannot be those of a log-loss.
    FederationError
        See `Sums.total`.
    """
    settings = settings or BoostingSettings()
    folds = len(mean) - 1
    left_out = np.append(np.arange(folds), np.full(1 + len(draws), EVERYBODY))
    draw = np.append(np.full(folds + 1, EVERYBODY), np.array(draws, dtype=np.int64))
    (counts,) = sums.total("trees start", [Ask(TreeStart.name, {"left_out": left_out, "draw": draw}, {"folds": folds})])
    growth = _Growth(mean, scale, tuple(families), settings, left_out, draw, _start(counts))
    while not growth.finished:
        growth.add_round(sums)
    rounds = growth.best_round
    trees, cover = growth.trees.take(range(len(draw)), rounds * growth.n_families), growth.cover[:, : rounds * growth.n_families]
    arrays = growth.arrays() | trees.arrays() | {"cover": cover, "family": growth.family}
    (centres,) = sums.total("trees centre", [Ask(TreeCentres.name, arrays, {"families": growth.n_families})])
    rows = centres["rows"][:, None]
    return Grown(
        families=tuple(families),
        left_out=left_out,
        draw=draw,
        start=growth.start,
        trees=trees,
        cover=cover,
        centre=centres["family"] / rows,
        feature_centre=centres["feature"] / rows,
        rounds=rounds,
        held_out=tuple(growth.held_out),
    )


def _start(counts: Arrays) -> Array:
    positive, negative = counts["positive"], counts["rows"] - counts["positive"]
    if (np.minimum(positive, negative) < 0.5).any():
        raise TrainingError("A training set of all sites together lacks one of the classes; there is nothing to learn from.")
    return np.asarray(logit(positive / (positive + negative)))


class _Growth:
    """Ensembles on their way."""

    def __init__(self, mean: Array, scale: Array, columns: tuple[str, ...], settings: BoostingSettings, left_out: Whole, draw: Whole, start: Array):
        names = tuple(dict.fromkeys(columns))
        self.n_families = len(names)
        self.family = np.array([names.index(name) for name in columns])
        self.start, self.held_out = start, list[float]()
        self._scales = {"mean": mean, "scale": scale, "left_out": left_out, "draw": draw, "start": start}
        self._settings, self._inner = settings, 2**settings.depth - 1
        self.trees = self._none()
        self.cover = np.zeros((len(start), 0, 2 * self._inner + 1))

    def _none(self, trees: int = 0) -> Trees:
        shape = (len(self.start), trees, self._inner)
        return Trees(np.full(shape, NO_SPLIT), np.zeros(shape, np.int64), np.zeros((*shape[:2], self._inner + 1)))

    @property
    def best_round(self) -> int:
        """The number of rounds with the least held-out loss, at least one; the last where no loss is known for it."""
        return 1 + int(np.argmin(self.held_out[1:])) if len(self.held_out) > 1 else 1

    @property
    def finished(self) -> bool:
        """Whether the last round that is worth an exchange is done."""
        tried = len(self.held_out) - 1
        return tried >= self._settings.rounds or (tried >= 1 and tried - self.best_round >= self._settings.patience)

    def arrays(self) -> dict[str, NDArray[np.float64] | Whole]:
        """Return what `Ensembles` reads."""
        return self._scales | self.trees.arrays()

    def add_round(self, sums: Sums) -> None:
        """Grow one tree a family, level by level; the first exchange also tells how good the trees so far are."""
        new, totals = self._none(self.n_families), np.zeros((len(self.start), self.n_families, 2 * self._inner + 1, 2))
        above: Array = np.empty(0)
        for level in range(self._settings.depth):
            splits = {"next_feature": new.feature, "next_edge": new.edge, "family": self.family}
            (found,) = sums.total(f"trees level {level + 1}", [Ask(TreeSums.name, self.arrays() | splits, {"level": level})])
            _check(found)
            if not level:
                self.held_out.append(float(found["held_out"].sum()))
                if self.finished:
                    return
            cells = np.stack([found["gradient"], found["hessian"]], axis=-1)
            above = cells if not level else _with_right(cells, above, new, self.family, level)
            self._split(above, new, totals, level)
        eta = self._settings.eta(self.n_families)
        self._fill_leaves(new, totals, eta)
        self.trees = Trees(*(np.concatenate(pair, axis=1) for pair in zip(_parts(self.trees), _parts(new), strict=True)))
        self.cover = np.concatenate([self.cover, totals[..., 1]], axis=1)

    def _split(self, cells: Array, new: Trees, totals: Array, level: int) -> None:
        """Choose the split of each open node of a level; `cells` has shape (ensembles, nodes, features, bins, 2)."""
        left = np.cumsum(cells, axis=3)
        whole = left[:, :, :, -1:]
        left = left[:, :, :, :-1]
        right = whole - left
        gain = _score(left) + _score(right) - _score(whole)
        gain[np.minimum(left[..., 1], right[..., 1]) < LEAST_WEIGHT] = 0.0
        first = 2**level - 1
        for place in range(self.n_families):
            columns = np.flatnonzero(self.family == place)
            if not level:
                totals[:, place, 0] = whole[:, 0, columns[0], 0]
            for ensemble, node in np.ndindex(len(cells), 2**level):
                of = gain[ensemble, node][columns]
                best = float(of.max())
                if not best > LEAST_GAIN:
                    continue
                column, edge = np.unravel_index(int(np.argmax(of.ravel() >= best * (1 - TIE))), of.shape)
                at = first + node
                new.feature[ensemble, place, at], new.edge[ensemble, place, at] = columns[column], edge
                totals[ensemble, place, 2 * at + 1] = left[ensemble, node, columns[column], edge]
                totals[ensemble, place, 2 * at + 2] = right[ensemble, node, columns[column], edge]

    def _fill_leaves(self, new: Trees, totals: Array, eta: float) -> None:
        """Give every leaf its weight; a tree without a split adds nothing, a node without one weighs as a whole."""
        weight = -totals[..., 0] / (totals[..., 1] + RIDGE) * eta
        for node in range(1, self._inner):
            unsplit = new.feature[:, :, node] == NO_SPLIT
            # A node below an unsplit one is not reached, whatever it holds.
            weight[:, :, 2 * node + 1] = np.where(unsplit, weight[:, :, node], weight[:, :, 2 * node + 1])
            weight[:, :, 2 * node + 2] = np.where(unsplit, weight[:, :, node], weight[:, :, 2 * node + 2])
        grown = new.feature[:, :, :1] != NO_SPLIT
        # In 32 bits, as xgboost keeps them: sites, service and file then agree on every bit.
        new.value[:] = np.where(grown, weight[:, :, self._inner :], 0.0).astype(np.float32)


def _parts(trees: Trees) -> tuple[Whole, Whole, Array]:
    return trees.feature, trees.edge, trees.value


def _score(sums: Array) -> Array:
    return np.asarray(sums[..., 0] ** 2 / (sums[..., 1] + RIDGE))


def _with_right(left: Array, above: Array, new: Trees, family: Whole, level: int) -> Array:
    """Put each right child, what is left of its parent, beside the left one; children of an unsplit node are empty."""
    parents = slice(2 ** (level - 1) - 1, 2**level - 1)
    # Shape (ensembles, parents, features): whether the node of the column's family was split.
    split = (new.feature[:, :, parents] != NO_SPLIT).transpose(0, 2, 1)[:, :, family]
    right = np.where(split[..., None, None], above - left, 0.0)
    return np.stack([left, right], axis=2).reshape(len(left), -1, *left.shape[2:])


def _check(found: Arrays) -> None:
    if (found["hessian"] < -TOLERANCE).any() or found["hessian"].shape[-1] != BINS:
        raise TrainingError("The total of the sites' second derivatives is not that of a log-loss; a site's contribution has to be looked at.")
