"""Boosted trees across sites: sums of first and second derivatives in the cells of a public grid, and the trees that sites are told.

The one idea: a split can only lie on an edge of a grid that was fixed before anybody was recorded. A threshold is then nobody's value, and the
sums in the grid's cells are all that growing a tree needs (histogram boosting; Chen & Guestrin 2016, KDD, algorithm 2).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xgboost
from numpy.typing import NDArray
from scipy.stats import norm

from clinical_ser.errors import InvalidValueError
from clinical_ser.models.boosted_head import GRID, STATE_ATTRIBUTE, BoostedHead, BoostedHeadState
from clinical_ser.models.heads import Labels
from federated.at_site import EVERYBODY, Array, Scales, logistic, numbers, places, times_drawn
from federated.statistics import Arrays, Ask, SiteRows, Statistic, register

Whole = NDArray[np.int64]

BINS = 8
"""Cells a feature. A normal feature puts an eighth of people in each: coarse, so that a cell seldom holds one person. 16 or 32 ranked no better
out of fold on RAVDESS and EmoDB (mean AUROC of five tasks 0.872, 0.869 and 0.873)."""
EDGES = np.floor(norm.ppf(np.arange(1, BINS) / BINS) / GRID) * GRID + GRID / 2
"""In standardised units. They lie between the values that `BoostedHead` rounds to, so that 32-bit arithmetic cannot put a row on the other side."""
DEEPEST = 3
"""As `clinical_ser.models.boosted_head.TREE_PARAMETERS`; a site answers for no deeper tree."""
NO_SPLIT = -1
FILE_VERSION = (3, 2, 0)
"""Of xgboost's file format, as `booster` writes it; later versions read it."""


def bins_of(Z: Array) -> Whole:
    """Return the cell of each standardised value, from 0 to `BINS` - 1, same shape as Z."""
    return np.searchsorted(EDGES, np.round(Z / GRID) * GRID, side="left").astype(np.int64)


@dataclass(frozen=True, eq=False)
class Trees:
    """Trees of many ensembles, as arrays.

    A node's children are at 2i + 1 (cell at or below the edge) and 2i + 2; a node that is not split hands everything to the left.
    """

    feature: Whole
    """Shape (ensembles, trees, 2^depth - 1): the column that a node splits, or `NO_SPLIT`."""
    edge: Whole
    """Same shape: the place of the threshold in `EDGES`."""
    value: Array
    """Shape (ensembles, trees, 2^depth): what each leaf adds to the margin."""

    @property
    def depth(self) -> int:
        """Splits from the root to a leaf."""
        return int(np.log2(self.value.shape[2]))

    def take(self, ensembles: Sequence[int] | Whole, trees: int | None = None) -> "Trees":
        """Return some of the ensembles, with the first `trees` of their trees."""
        where = np.asarray(ensembles)
        return Trees(self.feature[where, :trees], self.edge[where, :trees], self.value[where, :trees])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what an ask carries."""
        return {"feature": self.feature, "edge": self.edge, "value": self.value}

    @classmethod
    def of(cls, ask: Ask, columns: int) -> "Trees":
        """Read the trees of an ask.

        Raises
        ------
        InvalidValueError
            They are deeper than `DEEPEST`, or split a column or an edge that does not exist.
        """
        feature, edge, value = (numbers(ask, name, ndim=3) for name in ("feature", "edge", "value"))
        leaves = value.shape[2]
        shaped = feature.shape == edge.shape == (*value.shape[:2], leaves - 1) and leaves in {2**depth for depth in range(1, DEEPEST + 1)}
        if not (shaped and _within(feature, NO_SPLIT, columns) and _within(edge, 0, len(EDGES))):
            raise InvalidValueError(f"{ask.statistic}.trees", "other arrays", f"splits of {columns} columns on {len(EDGES)} edges, {DEEPEST} deep")
        return cls(feature.astype(np.int64), edge.astype(np.int64), value)

    def reached(self, ensemble: int, bins: Whole, *, levels: int | None = None) -> tuple[Whole, NDArray[np.bool_]]:
        """Return where rows stand after so many levels (the place in the level), and whether every node on the way was split.

        Parameters
        ----------
        ensemble
            Its place.
        bins
            Shape (rows, features).
        levels
            None: down to the leaves.

        Returns
        -------
        tuple of ndarray of shape (rows, trees)
        """
        trees, rows = np.arange(self.feature.shape[1])[None], np.arange(len(bins))[:, None]
        at, open_ = np.zeros((len(bins), self.feature.shape[1]), np.int64), np.ones((len(bins), self.feature.shape[1]), bool)
        for level in range(self.depth if levels is None else levels):
            node = 2**level - 1 + at
            feature = self.feature[ensemble][trees, node]
            split = feature != NO_SPLIT
            at = 2 * at + (split & (bins[rows, feature] > self.edge[ensemble][trees, node]))
            open_ &= split
        return at, open_

    def contributions(self, ensemble: int, bins: Whole) -> Array:
        """Return what each tree adds to each row's margin, shape (rows, trees)."""
        at, _ = self.reached(ensemble, bins)
        return np.asarray(self.value[ensemble][np.arange(at.shape[1])[None], at])

    def margins(self, ensemble: int, bins: Whole) -> Array:
        """Return the sum over trees, shape (rows,); the ensemble's starting margin is not in it."""
        return np.asarray(self.contributions(ensemble, bins).sum(axis=1))


def _within(values: Array, least: int, beyond: int) -> bool:
    return bool(((values == np.round(values)) & (values >= least) & (values < beyond)).all())


@dataclass(frozen=True, eq=False)
class Zeros:
    """What ensembles explain themselves from, beside their trees."""

    cover: Array
    """Shape (ensembles, trees, 2^(depth + 1) - 1): sum of second derivatives in each node."""
    centre: Array
    """Shape (ensembles, families): what a family adds to the margin of a row that was heard, on average."""
    feature_centre: Array
    """Shape (ensembles, features)."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what an ask carries."""
        return {"cover": self.cover, "centre": self.centre, "feature_centre": self.feature_centre}

    @classmethod
    def of(cls, ask: Ask, trees: Trees, columns: Sequence[str]) -> "Zeros":
        """Read them from an ask; InvalidValueError where they do not fit the trees, or the trees the families of the columns."""
        found = cls(numbers(ask, "cover", ndim=3), numbers(ask, "centre", ndim=2), numbers(ask, "feature_centre", ndim=2))
        ensembles, count, inner = trees.feature.shape
        names = list(dict.fromkeys(columns))
        if count % len(names) or (found.cover.shape, found.centre.shape, found.feature_centre.shape) != (
            (ensembles, count, 2 * inner + 1),
            (ensembles, len(names)),
            (ensembles, len(columns)),
        ):
            raise InvalidValueError(f"{ask.statistic}.trees", "zero points of other shapes", "one a node, a family and a feature")
        family = np.array([*(names.index(name) for name in columns), NO_SPLIT])
        of_tree = np.arange(count)[None, :, None] % len(names)
        if not ((trees.feature == NO_SPLIT) | (family[trees.feature] == of_tree)).all():
            raise InvalidValueError(f"{ask.statistic}.trees", "a tree that splits columns of another family", "trees in the order of the families")
        return found


class Ensembles:
    """The ensembles of an ask at one site.

    Arrays: `mean`, `scale` (folds + 1, features); `left_out` and `draw` (ensembles,), as in `newton.Newton`; `start` (ensembles,), the margin
    before the first tree; `feature`, `edge`, `value` of `Trees`.
    """

    def __init__(self, rows: SiteRows, ask: Ask):
        self._rows, self._scales = rows, Scales(rows, ask)
        self.left_out, self.draw = places(ask, "left_out", self._scales.folds), places(ask, "draw", 2**31)
        self.trees, self.start = Trees.of(ask, rows.X.shape[1]), numbers(ask, "start", ndim=1)
        if not len(self.left_out) == len(self.draw) == len(self.start) == len(self.trees.feature):
            raise InvalidValueError(f"{ask.statistic}.ensembles", "arrays of different lengths", "one entry an ensemble")
        self._bins: dict[int, Whole] = {}
        self._drawn = {draw: times_drawn(rows, draw) for draw in np.unique(self.draw).tolist()}

    def __len__(self) -> int:
        return len(self.start)

    def bins(self, ensemble: int) -> Whole:
        """Shape (rows, features), by the preprocessor that the ensemble goes with."""
        fold = int(self.left_out[ensemble])
        if fold not in self._bins:
            self._bins[fold] = bins_of(self._scales.design(fold)[:, :-1])
        return self._bins[fold]

    def rounded(self, ensemble: int) -> Array:
        """Shape (rows, features): standardised values as `BoostedHead` reads them."""
        return np.round(self._scales.design(int(self.left_out[ensemble]))[:, :-1] / GRID) * GRID

    def heard(self, ensemble: int) -> Array:
        """Shape (rows,): how often the ensemble learns from each row."""
        return np.asarray(self._drawn[int(self.draw[ensemble])] * (self._rows.fold != self.left_out[ensemble]))

    def not_heard(self, ensemble: int) -> Array:
        """Shape (rows,): how often each row tests the ensemble, which is never where it leaves no fold out."""
        tests = (self._rows.fold == self.left_out[ensemble]) & (self.left_out[ensemble] != EVERYBODY)
        return np.asarray(self._drawn[int(self.draw[ensemble])] * tests)

    def margins(self, ensemble: int) -> Array:
        """Shape (rows,)."""
        return np.asarray(self.start[ensemble] + self.trees.margins(ensemble, self.bins(ensemble)))

    def family_margins(self, ensemble: int, centre: Array) -> Array:
        """Return what each family adds to the margin of each row, shape (rows, families), as `BoostedHead.family_margins` does.

        Parameters
        ----------
        ensemble
            Its place.
        centre
            Shape (families,): the zero of each family. The trees of a round are in the families' order.
        """
        by_tree = self.trees.contributions(ensemble, self.bins(ensemble))
        return np.asarray(by_tree.reshape(len(by_tree), -1, len(centre)).sum(axis=1) - centre)

    def z(self, ensemble: int) -> Array:
        """Shape (rows, features): standardised values by the preprocessor that the ensemble goes with."""
        return self._scales.design(int(self.left_out[ensemble]))[:, :-1]

    def out_of_fold(self) -> Array:
        """Return each row's margin by the ensemble that never heard its subject, shape (rows,); ensemble k has to leave fold k out."""
        if not np.array_equal(self.left_out[: self._scales.folds], np.arange(self._scales.folds)):
            raise InvalidValueError("left_out", "other folds", "one ensemble a fold first, in their order")
        margins = np.zeros(len(self._rows))
        for fold in range(self._scales.folds):
            here = self._rows.fold == fold
            margins[here] = self.start[fold] + self.trees.margins(fold, self.bins(fold)[here])
        return margins


@register
class TreeStart(Statistic):
    """How many rows each ensemble hears, for the margin it starts at; arrays `left_out` and `draw`, option `folds`."""

    name = "tree_start"
    bound = 1e7

    def at_site(self, rows: SiteRows, ask: Ask) -> Arrays:
        """Return `rows` and `positive`, each of shape (ensembles,)."""
        left_out, draws = places(ask, "left_out", int(ask.options["folds"])), places(ask, "draw", 2**31)
        heard = [times_drawn(rows, draw) * (rows.fold != fold) for draw, fold in zip(draws.tolist(), left_out, strict=True)]
        return {"rows": np.array([weight.sum() for weight in heard]), "positive": np.array([weight @ rows.target for weight in heard])}


@register
class TreeSums(Statistic):
    """First and second derivatives of the log-loss in each cell of the nodes that may be split next.

    Arrays as `Ensembles` reads them, and `next_feature`, `next_edge` (ensembles, families, 2^depth - 1): the splits so far of the trees that are
    grown now, one a family; `family` (features,), the place of each column's family. Option `level`: how many levels they have.

    Of two siblings only the left one is summed; the other is what is left of their parent. Rows in a node that was not split are in no sum.
    """

    name = "tree_sums"
    bound = 1e7

    def at_site(self, rows: SiteRows, ask: Ask) -> Arrays:
        """Return `gradient`, `hessian` (ensembles, nodes, features, `BINS`); `loss`, `held_out` (ensembles,), log-loss heard, and not."""
        known = Ensembles(rows, ask)
        level = int(ask.options["level"])
        family = places(ask, "family", len(ask.arrays["next_feature"][0]))
        splits = {"feature": ask.arrays["next_feature"], "edge": ask.arrays["next_edge"]}
        leaves = np.zeros((*splits["feature"].shape[:2], splits["feature"].shape[2] + 1))
        growing = Trees.of(Ask(ask.statistic, {**splits, "value": leaves}), rows.X.shape[1])
        if not 0 <= level < growing.depth or len(family) != rows.X.shape[1] or (family < 0).any():
            raise InvalidValueError("level or family", "out of range", f"below {growing.depth}, and one family a column")
        nodes = max(1, 2**level // 2)
        found: dict[str, list[Any]] = {"gradient": [], "hessian": [], "loss": [], "held_out": []}
        for i in range(len(known)):
            bins, weight = known.bins(i), known.heard(i)
            p, loss = logistic(known.margins(i), rows.target)
            at, summed = growing.reached(i, bins, levels=level)
            summed, at = (summed & (at % 2 == 0))[:, family] if level else summed[:, family], at[:, family] // (2 if level else 1)
            cell = (at * bins.shape[1] + np.arange(bins.shape[1])) * BINS + bins
            for name, values in (("gradient", weight * (p - rows.target)), ("hessian", weight * p * (1 - p))):
                sums = np.bincount(cell.ravel(), (values[:, None] * summed).ravel(), minlength=nodes * bins.shape[1] * BINS)
                found[name].append(sums.reshape(nodes, bins.shape[1], BINS))
            found["loss"].append(weight @ loss)
            found["held_out"].append(known.not_heard(i) @ loss)
        return {name: np.array(values) for name, values in found.items()}


@register
class TreeCentres(Statistic):
    """What families and features add on average: the zero points that a `BoostedHead` explains itself from.

    Arrays as `Ensembles` reads them, and `cover` (ensembles, trees, 2^(depth + 1) - 1), the totals of second derivatives in each node;
    `family` (features,); option `families`. The trees of a round are in the families' order.
    """

    name = "tree_centres"
    bound = 1e7

    def at_site(self, rows: SiteRows, ask: Ask) -> Arrays:
        """Return `rows` (ensembles,), `family` (ensembles, families) and `feature` (ensembles, features), summed over rows that were heard."""
        known, families = Ensembles(rows, ask), int(ask.options["families"])
        cover = numbers(ask, "cover", ndim=3)
        found: dict[str, list[Any]] = {"rows": [], "family": [], "feature": []}
        for i in range(len(known)):
            weight = known.heard(i)
            by_tree = weight @ known.trees.contributions(i, known.bins(i))
            shapley = booster(known.trees.take([i]), cover[i], rows.X.shape[1], start=0.0).predict(
                xgboost.DMatrix(known.rounded(i), nthread=1), pred_contribs=True
            )
            found["rows"].append(weight.sum())
            found["family"].append(by_tree.reshape(-1, families).sum(axis=0))
            found["feature"].append(weight @ shapley[:, :-1].astype(np.float64))
        return {name: np.array(values) for name, values in found.items()}


def out_of_fold(rows: SiteRows, ask: Ask) -> Array:
    """Return margins out of fold of an ask with trees (`Ensembles`), shape (rows,): what a calibrator and scores are learned on."""
    return Ensembles(rows, ask).out_of_fold()


def head_of(trees: Trees, zeros: Zeros, ensemble: int, start: float, columns: Sequence[str], classes: Labels) -> BoostedHead:
    """Return an ensemble as the head that a bundle holds and a service reads.

    Parameters
    ----------
    trees, zeros
        Of many ensembles.
    ensemble
        Its place.
    start
        Margin before its first tree.
    columns
        The family of each column.
    classes
        Labels (negative, positive).
    """
    made = booster(trees.take([ensemble]), zeros.cover[ensemble], len(columns), start=start)
    state = BoostedHeadState(
        kind="xgboost",
        column_families=tuple(columns),
        classes=classes,
        rounds=trees.feature.shape[1],
        intercept=(float(start + zeros.centre[ensemble].sum()),),
        centre=tuple((value,) for value in zeros.centre[ensemble].tolist()),
        feature_centre=tuple((value,) for value in zeros.feature_centre[ensemble].tolist()),
    )
    made.set_attr(**{STATE_ATTRIBUTE: json.dumps(state.to_dict(), sort_keys=True)})
    return BoostedHead.from_bytes(bytes(made.save_raw("ubj")))


def booster(trees: Trees, cover: Array, columns: int, *, start: float) -> xgboost.Booster:
    """Write one ensemble in xgboost's own file format, and read it back.

    Parameters
    ----------
    trees
        Of one ensemble.
    cover
        Shape (trees, 2^(depth + 1) - 1): sum of second derivatives in each node, which Shapley values weigh paths by.
    columns
        Number of features.
    start
        Margin before the first tree.
    """
    written = [
        _tree(number, feature, edge, value, weight, columns) for number, (feature, edge, value, weight) in enumerate(_one_by_one(trees, cover))
    ]
    count = len(written)
    model = {
        "cats": {"enc": [], "feature_segments": [], "sorted_idx": []},
        "gbtree_model_param": {"num_parallel_tree": "1", "num_trees": str(count)},
        "iteration_indptr": list(range(count + 1)),
        "tree_info": [0] * count,
        "trees": written,
    }
    learner = {
        "attributes": {},
        "feature_names": [],
        "feature_types": [],
        "gradient_booster": {"model": model, "name": "gbtree"},
        "learner_model_param": {
            "base_score": f"[{1 / (1 + np.exp(-start)):.9E}]",
            "boost_from_average": "0",
            "num_class": "0",
            "num_feature": str(columns),
            "num_target": "1",
        },
        "objective": {"name": "binary:logistic", "reg_loss_param": {"scale_pos_weight": "1"}},
    }
    read = xgboost.Booster({"nthread": 1})
    read.load_model(bytearray(json.dumps({"learner": learner, "version": list(FILE_VERSION)}).encode("ascii")))
    return read


def _one_by_one(trees: Trees, cover: Array) -> Any:
    return zip(trees.feature[0], trees.edge[0], trees.value[0], cover, strict=True)


def _tree(number: int, feature: Whole, edge: Whole, value: Array, cover: Array, columns: int) -> dict[str, Any]:
    """Return one tree in the format's terms: nodes in order of depth, unsplit ones as leaves."""
    inner, kept, queue = len(feature), list[int](), [0]
    while queue:
        node = queue.pop(0)
        kept.append(node)
        if node < inner and feature[node] != NO_SPLIT:
            queue += [2 * node + 1, 2 * node + 2]
    place = {node: i for i, node in enumerate(kept)}
    left = [place.get(2 * node + 1, -1) for node in kept]
    return {
        # What a split gained and what a node would say are not needed to answer, and say more about training rows than the leaves do.
        "base_weights": [0.0] * len(kept),
        "loss_changes": [0.0] * len(kept),
        "categories": [],
        "categories_nodes": [],
        "categories_segments": [],
        "categories_sizes": [],
        "default_left": [0] * len(kept),
        "id": number,
        "left_children": left,
        "right_children": [place.get(2 * node + 2, -1) for node in kept],
        "parents": [2147483647, *(place[(node - 1) // 2] for node in kept[1:])],
        "split_conditions": [
            float(EDGES[edge[node]]) if below >= 0 else float(value[_leaf(node, inner)]) for node, below in zip(kept, left, strict=True)
        ],
        "split_indices": [int(feature[node]) if below >= 0 else 0 for node, below in zip(kept, left, strict=True)],
        "split_type": [0] * len(kept),
        "sum_hessian": [float(cover[node]) for node in kept],
        "tree_param": {"num_deleted": "0", "num_feature": str(columns), "num_nodes": str(len(kept)), "size_leaf_vector": "1"},
    }


def _leaf(node: int, inner: int) -> int:
    """Return the place of the leaf that everything in an unsplit node falls to."""
    while node < inner:
        node = 2 * node + 1
    return node - inner
