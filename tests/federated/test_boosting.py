"""Trees from totals are the trees of one place: held against other splits of the same rows, against xgboost itself, and against the public grid."""

import dataclasses
import json

import numpy as np
import pytest
import xgboost
from scipy.special import logit

from clinical_ser.errors import InvalidValueError, TrainingError
from clinical_ser.features import catalogue
from clinical_ser.models.boosted_head import GRID, BoostedHead
from federated.at_site import EVERYBODY, standardised
from federated.boosting import LEAST_WEIGHT, RIDGE, BoostingSettings, Grown, grow
from federated.protocols.boosting import BINS, EDGES, NO_SPLIT, Ensembles, Trees, TreeSums, bins_of, out_of_fold
from federated.statistics import Arrays, Ask, PooledSums, SiteRows, contribution
from tests.federated.cohorts import FOLDS, NAMES, cohort_rows, split

FAMILIES = tuple(catalogue.get(name).family for name in NAMES)
SETTINGS = BoostingSettings(depth=3, rounds=3)
IN_CELL = np.concatenate([[EDGES[0] - 1], (EDGES[1:] + EDGES[:-1]) / 2, [EDGES[-1] + 1]])
"""A value in each cell, for an xgboost that shall see cells only."""


@pytest.fixture(scope="module")
def rows() -> SiteRows:
    return cohort_rows(200, effect=0.6)


@pytest.fixture(scope="module")
def moments(rows) -> tuple[np.ndarray, np.ndarray]:
    return moments_of(rows)


def moments_of(rows: SiteRows) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and SD without each fold and of all rows."""
    parts = [rows.X[rows.fold != fold] for fold in (*range(FOLDS), EVERYBODY)]
    mean = np.array([np.nanmean(part, axis=0) for part in parts])
    return mean, np.array([np.where(np.isnan(part), centre, part).std(axis=0) for part, centre in zip(parts, mean, strict=True)])


@pytest.fixture(scope="module")
def sums(rows) -> PooledSums:
    return PooledSums({"all": rows})


@pytest.fixture(scope="module")
def grown(sums, moments) -> Grown:
    return grow(sums, *moments, FAMILIES, SETTINGS, draws=(0, 1))


def asked(grown: Grown, moments: tuple[np.ndarray, np.ndarray]) -> Ask:
    return Ask("any", {"mean": moments[0], "scale": moments[1], **grown.arrays()})


@pytest.mark.parametrize("sites", [3, 5, 10])
def test_sites_grow_the_trees_of_one_table(rows, moments, sites):
    one = grow(PooledSums({"all": rows}), *moments, FAMILIES, SETTINGS)
    many = grow(PooledSums(split(rows, sites)), *moments, FAMILIES, SETTINGS)
    assert many.rounds == one.rounds
    assert np.array_equal(many.trees.feature, one.trees.feature)
    assert np.array_equal(many.trees.edge, one.trees.edge)
    # Leaves are kept in 32 bits: two totals that differ in the last bit of 64 may round to neighbours.
    np.testing.assert_allclose(many.trees.value, one.trees.value, rtol=3e-7, atol=1e-12)
    np.testing.assert_allclose(many.centre, one.centre, atol=1e-7)
    np.testing.assert_allclose(many.feature_centre, one.feature_centre, atol=1e-6)


def test_the_fixed_point_of_a_secure_sum_grows_the_same_trees(rows, moments):
    class FixedPoint(PooledSums):
        def total(self, step: str, asks: list[Ask]) -> list[Arrays]:
            parts = [[contribution(site, ask) for site in self._tables.values()] for ask in asks]
            return [{name: sum(np.round(part[name] * 2**32) for part in of) / 2**32 for name in of[0]} for of in parts]

    one, many = (grow(kind(split(rows, 5)), *moments, FAMILIES, SETTINGS) for kind in (PooledSums, FixedPoint))
    assert np.array_equal(many.trees.feature, one.trees.feature)
    assert np.array_equal(many.trees.edge, one.trees.edge)
    np.testing.assert_allclose(many.trees.value, one.trees.value, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_rounds_are_those_of_xgboost_on_the_same_cells(rows, moments, depth):
    """A round is one xgboost tree a family, each on its columns alone, from the margins before the round."""
    grown = grow(PooledSums({"all": rows}), *moments, FAMILIES, BoostingSettings(depth=depth, rounds=4, patience=4))
    families = list(dict.fromkeys(FAMILIES))
    eta = BoostingSettings().eta(len(families))
    for ensemble in (0, FOLDS):
        heard = rows.fold != grown.left_out[ensemble]
        cells = bins_of(standardised(rows.X, moments[0][ensemble], moments[1][ensemble]))
        margins = np.full(len(rows), logit(rows.target[heard].mean()))
        for number in range(grown.rounds):
            added = np.zeros(len(rows))
            for place, family in enumerate(families):
                columns = np.flatnonzero(np.array(FAMILIES) == family)
                every = xgboost.DMatrix(IN_CELL[cells[:, columns]], base_margin=np.zeros(len(rows)), nthread=1)
                seen = xgboost.DMatrix(IN_CELL[cells[heard][:, columns]], label=rows.target[heard], base_margin=margins[heard], nthread=1)
                rules = {"tree_method": "exact", "objective": "binary:logistic", "max_depth": depth, "eta": eta, "nthread": 1}
                tree = xgboost.train({**rules, "lambda": RIDGE, "min_child_weight": LEAST_WEIGHT}, seen, 1)
                ours = Trees(*(part[[ensemble]][:, [number * len(families) + place]] for part in dataclasses.astuple(grown.trees)))
                added += ours.margins(0, cells)
                if ours.feature[0, 0, 0] != NO_SPLIT:
                    np.testing.assert_allclose(ours.margins(0, cells), tree.predict(every, output_margin=True), atol=1e-5)
                else:
                    assert tree.trees_to_dataframe()["Feature"].tolist() == ["Leaf"]
            margins += added
        assert added.any()


def test_every_threshold_is_an_edge_of_the_public_grid(grown):
    edges = set(EDGES.astype(np.float32).tolist())
    for head in grown.heads(("no", "yes")):
        trees = json.loads(head.booster_.save_raw("json"))["learner"]["gradient_booster"]["model"]["trees"]
        split_at = [at for tree in trees for at, left in zip(tree["split_conditions"], tree["left_children"], strict=True) if left != -1]
        assert split_at
        assert {float(np.float32(at)) for at in split_at} <= edges


def test_the_grid_lies_between_the_values_that_a_head_reads():
    distance = np.abs(EDGES / GRID - np.round(EDGES / GRID))
    np.testing.assert_allclose(distance, 0.5, atol=1e-9)
    z = np.random.default_rng(0).normal(size=10_000)
    assert np.bincount(bins_of(z), minlength=BINS).min() > 500


def test_a_service_reads_the_head_from_its_file_and_answers_the_same(rows, moments, grown):
    known = Ensembles(rows, asked(grown, moments))
    for ensemble in (0, FOLDS, FOLDS + 1):
        place = min(ensemble, FOLDS)
        Z = standardised(rows.X, moments[0][place], moments[1][place])
        head = BoostedHead.from_bytes(grown.head(ensemble, ("no", "yes")).to_bytes())
        np.testing.assert_allclose(head.margins(Z), known.margins(ensemble), atol=1e-5)
        np.testing.assert_allclose(head.feature_margins(Z).sum(axis=1), head.family_margins(Z).sum(axis=1), atol=1e-5)
        # The zero of families and features is the mean over the rows that were learned from.
        weight = known.heard(ensemble)
        np.testing.assert_allclose(weight @ head.family_margins(Z) / weight.sum(), 0, atol=1e-6)
        np.testing.assert_allclose(weight @ head.feature_margins(Z) / weight.sum(), 0, atol=1e-6)


def test_a_row_is_judged_by_trees_that_never_heard_its_fold(rows, moments, grown):
    turned = dataclasses.replace(rows, target=np.where(rows.fold == 2, 1 - rows.target, rows.target))
    # The fold's own rows do not even choose what its trees look like, only how many there are.
    settings = SETTINGS.model_copy(update={"rounds": 1})
    before, after = (grow(PooledSums({"all": table}), *moments, FAMILIES, settings) for table in (rows, turned))
    assert np.array_equal(before.trees.value[2], after.trees.value[2])
    assert not np.array_equal(before.trees.value[3], after.trees.value[3])
    by_hand = np.zeros(len(rows))
    for fold in range(FOLDS):
        here = rows.fold == fold
        by_hand[here] = grown.head(fold, (0, 1)).margins(standardised(rows.X[here], moments[0][fold], moments[1][fold]))
    np.testing.assert_allclose(out_of_fold(rows, asked(grown, moments)), by_hand, atol=1e-5)


def test_exchanges_are_as_many_as_levels_and_three_more(rows, moments):
    sums = PooledSums({"all": rows})
    grown = grow(sums, *moments, FAMILIES, BoostingSettings(depth=2, rounds=5, patience=5))
    assert len(grown.held_out) == 6
    assert len(sums.exchanges) == 2 * 5 + 3


def test_growing_ends_when_held_out_loss_no_longer_falls(rows, moments):
    noise = dataclasses.replace(rows, target=np.random.default_rng(0).permutation(rows.target))
    grown = grow(PooledSums({"all": noise}), *moments, FAMILIES, BoostingSettings(rounds=40, patience=2))
    assert len(grown.held_out) - 1 == grown.rounds + 2
    assert grown.held_out[grown.rounds] == min(grown.held_out[1:])
    assert grown.trees.feature.shape[1] == grown.rounds * len(set(FAMILIES))


def test_trees_learn_what_no_linear_head_can(rows):
    rng = np.random.default_rng(4)
    X = rng.normal(size=rows.X.shape)
    where = np.abs(X[:, 0]) > 0.67
    table = dataclasses.replace(rows, X=X, target=where.astype(np.int64))
    moments = moments_of(table)
    grown = grow(PooledSums({"all": table}), *moments, FAMILIES, BoostingSettings(rounds=12))
    margins = out_of_fold(table, asked(grown, moments))
    # To say "no" to everybody is right for half, and a linear head can do no better: the feature is symmetric.
    assert ((margins > 0) == where).mean() > 0.9


def test_bootstrap_samples_grow_trees_of_their_own(grown):
    assert not np.array_equal(grown.trees.value[FOLDS + 1], grown.trees.value[FOLDS])
    assert not np.array_equal(grown.trees.value[FOLDS + 1], grown.trees.value[FOLDS + 2])


def test_rows_below_an_unsplit_node_are_in_no_sum(rows, moments, grown):
    shape = (len(grown.start), len(set(FAMILIES)), 7)
    unsplit = {"next_feature": np.full(shape, NO_SPLIT), "next_edge": np.zeros(shape)}
    family = np.array([list(dict.fromkeys(FAMILIES)).index(name) for name in FAMILIES])
    ask = Ask(TreeSums.name, asked(grown, moments).arrays | unsplit | {"family": family}, {"level": 1})
    found = contribution(rows, ask)
    assert not found["hessian"].any()
    assert not found["gradient"].any()


@pytest.mark.parametrize(
    "fault",
    [
        {"edge": np.full((1, 1, 3), len(EDGES))},
        {"edge": np.full((1, 1, 3), 0.5)},
        {"feature": np.full((1, 1, 3), 10_000)},
        {"feature": np.zeros((1, 1, 15)), "edge": np.zeros((1, 1, 15)), "value": np.zeros((1, 1, 16))},
    ],
)
def test_a_site_answers_for_no_tree_off_the_grid_or_deeper_than_agreed(fault):
    good = {"feature": np.zeros((1, 1, 3)), "edge": np.zeros((1, 1, 3)), "value": np.zeros((1, 1, 4))}
    assert Trees.of(Ask("any", good), 5).depth == 2
    with pytest.raises(InvalidValueError, match="trees"):
        Trees.of(Ask("any", good | fault), 5)


def test_totals_that_no_log_loss_has_stop_the_run(rows, moments):
    class Poisoned(PooledSums):
        def total(self, step: str, asks: list[Ask]) -> list[Arrays]:
            return [{name: -values if name == "hessian" else values for name, values in totals.items()} for totals in super().total(step, asks)]

    with pytest.raises(TrainingError, match="contribution has to be looked at"):
        grow(Poisoned({"all": rows}), *moments, FAMILIES, SETTINGS)


def test_one_class_alone_is_not_learned_from(rows, moments):
    with pytest.raises(TrainingError, match="lacks one of the classes"):
        grow(PooledSums({"all": dataclasses.replace(rows, target=np.zeros_like(rows.target))}), *moments, FAMILIES, SETTINGS)
