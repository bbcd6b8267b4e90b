"""A head at each site: what it adds is weighed by everybody, it is heard by nobody else, and the site serves the sum."""

import dataclasses
import json

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from clinical_ser.errors import BundleSchemaError, InvalidValueError, TrainingError
from clinical_ser.features import catalogue
from clinical_ser.models.boosted_head import BoostedHead
from clinical_ser.models.calibration import MIN_SCALE, RIDGE
from clinical_ser.models.linear_head import LinearHead
from clinical_ser.models.stacked_head import StackedHead
from federated.at_site import EVERYBODY, standardised, weights
from federated.protocols.local_heads import FOLDER, IDENTITY, Stacks, margins, site_head, stack, stacked
from federated.statistics import Arrays, Ask, PooledSums, SiteRows, contribution
from tests.federated.cohorts import FOLDS, cohort_rows, split

COLUMNS = 12
CLASSES = ("no", "yes")


def quick_fit(self: BoostedHead, *arguments: object, **named: object) -> BoostedHead:
    """Fit with a given number of rounds: choosing their number takes a second a head, and is not what is tested here."""
    self.rounds = self.rounds or 80
    return FIT(self, *arguments, **named)


FIT = BoostedHead.fit


@pytest.fixture(scope="module", autouse=True)
def quick() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BoostedHead, "fit", quick_fit)
        yield


@pytest.fixture(scope="module")
def rows() -> SiteRows:
    """Rows of few columns. In the first sites the class also shows where one feature is far from its mean on either side: nothing for a line."""
    whole = cohort_rows(240, effect=0.5)
    chosen = dataclasses.replace(whole, X=whole.X[:, :COLUMNS].copy(), names=whole.names[:COLUMNS])
    spread = np.random.default_rng(5).normal(size=len(whole))
    chosen.X[:, 9] = np.where(whole.target == 1, np.sign(spread) * (1.5 + 0.3 * np.abs(spread)), spread / 2)
    return chosen


@pytest.fixture(scope="module")
def families(rows) -> tuple[str, ...]:
    return tuple(catalogue.get(name).family for name in rows.names)


@pytest.fixture(scope="module")
def sites(rows, tmp_path_factory) -> dict[str, SiteRows]:
    return {name: dataclasses.replace(site, workspace=tmp_path_factory.mktemp(name)) for name, site in split(rows, 3).items()}


@pytest.fixture(scope="module")
def shared(rows, families) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[LinearHead]]:
    """Means, scales, coefficients of the folds' heads, and all heads, the last of them everybody's."""
    parts = [rows.fold != fold for fold in (*range(FOLDS), EVERYBODY)]
    mean = np.array([np.nanmean(rows.X[part], axis=0) for part in parts])
    scale = np.array([np.where(np.isnan(rows.X[part]), centre, rows.X[part]).std(axis=0) for part, centre in zip(parts, mean, strict=True)])
    heads = [
        LinearHead(families, CLASSES, strength=100.0).fit(standardised(rows.X[part], *both), np.array(CLASSES)[rows.target[part]])
        for part, both in zip(parts, zip(mean, scale, strict=True), strict=True)
    ]
    return mean, scale, np.array([np.append(head.coef_, head.intercept_) for head in heads[:FOLDS]]), heads


@pytest.fixture(scope="module")
def maps(sites, shared, families) -> Stacks:
    return stack(PooledSums(sites), *shared[:3], families, draws=(0, 1))


def everybody_s(sites: dict[str, SiteRows], ask: Ask) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return margins, class, weight and fold of all sites' rows."""
    design = np.concatenate([margins(site, ask) for site in sites.values()])
    target, fold = (np.concatenate([getattr(site, name) for site in sites.values()]) for name in ("target", "fold"))
    return design, target, np.concatenate([weights(site) for site in sites.values()]), fold


def test_weights_are_the_minimum_that_one_place_would_find(sites, shared, families, maps):
    design, target, weight, fold = everybody_s(sites, maps.ask(*shared[:3], families))
    for left_out, found in zip(maps.left_out[: FOLDS + 1], maps.theta, strict=False):
        heard = weight * (fold != left_out)

        def objective(theta: np.ndarray, heard: np.ndarray = heard) -> tuple[float, np.ndarray]:
            m = design @ theta
            loss = heard @ np.logaddexp(0, np.where(target == 1, -m, m)) + RIDGE / 2 * ((theta - IDENTITY) ** 2).sum()
            return loss, design.T @ (heard * (expit(m) - target)) + RIDGE * (theta - IDENTITY)

        best = minimize(objective, IDENTITY, jac=True, method="L-BFGS-B", bounds=[(MIN_SCALE, None), (0, None), (None, None)], tol=1e-14)
        np.testing.assert_allclose(found, best.x, atol=1e-5)


def test_local_trees_count_where_they_help(sites, shared, families, maps):
    ask = maps.ask(*shared[:3], families)
    design, target, weight, _ = everybody_s(sites, ask)
    told = Ask("any", ask.arrays | {"theta": maps.theta[:FOLDS]}, ask.options)
    together = np.concatenate([stacked(site, told) for site in sites.values()])
    alone = design[:, 0]
    loss = [weight @ np.logaddexp(0, np.where(target == 1, -m, m)) for m in (together, alone)]
    assert maps.theta[FOLDS, 1] > 0.3
    assert loss[0] < 0.9 * loss[1]


def test_trees_that_rank_the_wrong_way_round_count_nothing(rows, shared, families):
    class Reversed(PooledSums):
        """Sites whose local margins are turned round."""

        def total(self, step: str, asks: list[Ask]) -> list[Arrays]:
            turned = [Ask(ask.statistic, {**ask.arrays, "theta": ask.arrays["theta"] * [1, -1, 1]}, ask.options) for ask in asks]
            signs = np.array([1, -1, 1]), np.array([1, -1, 1, 1, -1, 1])
            return [
                totals | {"gradient": totals["gradient"] * signs[0], "hessian": totals["hessian"] * signs[1]}
                for totals in super().total(step, turned)
            ]

    found = stack(Reversed({"all": rows}), *shared[:3], families)
    assert (found.theta[:, 1] == 0).all()
    assert (found.theta[:, 0] > 0.5).all()


def test_few_exchanges_settle_the_weights(sites, shared, families):
    sums = PooledSums(sites)
    found = stack(sums, *shared[:3], families)
    assert len(sums.exchanges) <= 8
    again = Stacks(found.theta.copy(), found.left_out, found.draw)
    again.step(sums.total("check", [again.ask(*shared[:3], families)])[0])
    np.testing.assert_allclose(again.theta, found.theta, atol=1e-9)


def test_weights_that_do_not_rest_end_the_run(rows, shared, families):
    class Adrift(PooledSums):
        def total(self, step: str, asks: list[Ask]) -> list[Arrays]:
            return [totals | {"gradient": totals["gradient"] - 1e5} for totals in super().total(step, asks)]

    with pytest.raises(TrainingError, match="do not come to rest"):
        stack(Adrift({"all": rows}), *shared[:3], families)


def test_ten_sums_a_map_leave_a_site_and_its_trees_stay_there(sites, shared, families, maps):
    site = sites["site-0"]
    found = contribution(site, maps.ask(*shared[:3], families))
    assert {name: values.shape[1:] for name, values in found.items()} == {"loss": (), "gradient": (3,), "hessian": (6,)}
    kept = sorted((site.workspace / FOLDER).iterdir())
    assert len(kept) == FOLDS
    assert all(BoostedHead.from_bytes(file.read_bytes()).column_families == families for file in kept)


def test_a_kept_head_is_read_again_and_without_a_place_made_again(sites, shared, families, maps):
    site, ask = sites["site-1"], maps.ask(*shared[:3], families)
    before = {file: file.stat().st_mtime_ns for file in (site.workspace / FOLDER).iterdir()}
    first = margins(site, ask)
    assert {file: file.stat().st_mtime_ns for file in (site.workspace / FOLDER).iterdir()} == before
    assert np.array_equal(margins(dataclasses.replace(site, workspace=None), ask), first)


def test_a_row_is_judged_by_trees_that_never_heard_its_subject(sites, shared, families, maps):
    site, ask = dataclasses.replace(sites["site-0"], workspace=None), maps.ask(*shared[:3], families)
    turned = dataclasses.replace(site, target=np.where(site.fold == 1, 1 - site.target, site.target))
    here = site.fold == 1
    before, after = margins(site, ask), margins(turned, ask)
    assert np.array_equal(before[here], after[here])
    assert not np.allclose(before[~here, 1], after[~here, 1])


def test_a_site_with_too_few_people_adds_nothing_and_serves_the_shared_head(sites, shared, families, maps):
    site = sites["site-2"]
    few = np.isin(site.subjects, np.unique(site.subjects)[:6])
    small = dataclasses.replace(site, X=site.X[few], target=site.target[few], subjects=site.subjects[few], fold=site.fold[few], frame=site.frame[few])
    ask = maps.ask(*shared[:3], families)
    assert not margins(small, ask)[:, 1].any()
    head = site_head(small, ask, shared[3][FOLDS], maps, FOLDS)
    Z = standardised(small.X, shared[0][FOLDS], shared[1][FOLDS])
    a, _, b = maps.theta[FOLDS]
    assert not head.has_trees
    np.testing.assert_allclose(maps.platt(FOLDS).apply(head.margins(Z)), a * shared[3][FOLDS].margins(Z) + b)


def test_what_a_site_serves_is_the_weighted_sum_and_explains_itself(sites, shared, families, maps):
    site, linear = sites["site-0"], shared[3][FOLDS]
    head = site_head(site, maps.ask(*shared[:3], families), linear, maps, FOLDS)
    Z = standardised(site.X, shared[0][FOLDS], shared[1][FOLDS])
    a, c, b = maps.theta[FOLDS]
    assert head.has_trees
    assert head.local.classes_ == CLASSES
    np.testing.assert_allclose(maps.platt(FOLDS).apply(head.margins(Z)), a * linear.margins(Z) + c * head.local.margins(Z) + b, atol=1e-9)
    np.testing.assert_allclose(head.intercept_ + head.family_margins(Z).sum(axis=1), head.margins(Z), atol=1e-9)
    np.testing.assert_allclose(head.feature_margins(Z).sum(axis=1), head.family_margins(Z).sum(axis=1), atol=1e-5)
    again = StackedHead.from_dict(json.loads(json.dumps(head.to_dict())))
    assert np.array_equal(again.margins(Z), head.margins(Z))
    assert again.local.classes_ == CLASSES


def test_a_bootstrap_sample_has_its_own_weights_and_trees(sites, shared, families, maps):
    site, ask = sites["site-0"], maps.ask(*shared[:3], families)
    one, other = (site_head(site, ask, shared[3][FOLDS], maps, number) for number in (FOLDS, FOLDS + 1))
    assert not np.allclose(maps.theta[FOLDS], maps.theta[FOLDS + 1])
    assert one.local.to_bytes() != other.local.to_bytes()
    assert one.local.rounds_ == other.local.rounds_


def test_uncertainty_of_scale_and_offset_is_that_of_the_sum(maps):
    covariance = np.linalg.inv(maps.hessian[FOLDS])
    platt = maps.platt(FOLDS)
    assert platt.covariance_[0, 0] == pytest.approx(covariance[0, 0] + covariance[1, 1] + 2 * covariance[0, 1])
    assert platt.covariance_[1, 1] == pytest.approx(covariance[2, 2])
    assert sum(maps.weights(FOLDS)) == pytest.approx(1)


def test_settled_parts_can_be_fitted_again(rows, shared, families, sites, maps):
    head = site_head(sites["site-0"], maps.ask(*shared[:3], families), shared[3][FOLDS], maps, FOLDS)
    Z = standardised(rows.X, shared[0][FOLDS], shared[1][FOLDS])
    again = head.settled().fit(Z, np.array(CLASSES)[rows.target], groups=rows.subjects)
    assert again.weights_ == head.weights_
    assert again.shared.strength_ == 100.0
    assert again.local.rounds_ == head.local.rounds_
    np.testing.assert_allclose(again.intercept_ + again.family_margins(Z).sum(axis=1), again.margins(Z), atol=1e-9)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"weights": [1.5, 0.0]}, "schema"),
        ({"local": "*"}, "base64"),
        ({"intercept": [0.123]}, "intercept"),
        ({"column_families": ["pitch"]}, "columns"),
        ({"kind": "linear"}, "schema"),
    ],
)
def test_a_file_whose_parts_do_not_fit_is_refused(sites, shared, families, maps, change, reason):
    head = site_head(sites["site-0"], maps.ask(*shared[:3], families), shared[3][FOLDS], maps, FOLDS)
    with pytest.raises(BundleSchemaError, match=reason):
        StackedHead.from_dict(head.to_dict() | change)


def test_parts_of_other_columns_or_weights_beyond_one_are_refused(shared, families):
    linear = shared[3][0]
    other = BoostedHead(["pitch"], CLASSES, rounds=1).fit(np.arange(20.0)[:, None] / 10, np.array(CLASSES)[np.arange(20) % 2])
    with pytest.raises(BundleSchemaError, match="other columns"):
        StackedHead(linear, other, (0.5, 0.5))
    with pytest.raises(InvalidValueError, match="weights"):
        StackedHead(linear, None, (-0.1, 1.1))


def test_a_question_that_names_other_columns_is_refused(rows, shared, families):
    with pytest.raises(InvalidValueError, match="families"):
        margins(rows, Stacks.of(FOLDS).ask(*shared[:3], families[:-1]))
    with pytest.raises(InvalidValueError, match="beta"):
        margins(rows, Stacks.of(FOLDS).ask(*shared[:2], shared[2][:-1], families))
