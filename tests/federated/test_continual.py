"""Learning on across sites: the same model as with all rows in one place, without asking anybody again who was asked before."""

from dataclasses import replace

import numpy as np
import pytest

from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.cohorts.tasks import get_task
from clinical_ser.continual.memory import Memory
from clinical_ser.continual.posterior import Posterior
from clinical_ser.continual.recalibration import justified, recalibrate
from clinical_ser.continual.updating import UpdateOptions, update
from clinical_ser.errors import InvalidValueError, SiteRefusalError, TrainingError
from clinical_ser.models.rows import select_rows
from federated.continual import frozen_of, scales_of, update_across
from federated.plan import KINDS
from federated.protocols import newton
from federated.recalibrating import recalibrate_across
from federated.statistics import Ask, PooledSums, SiteRows
from federated.training import Settings, train_across
from tests.federated.sites import make_consortium
from tests.tables import table_of

FOLDS, FEATURES = 3, 8


def settings_of(table: FeatureTable, **changes) -> Settings:
    given = {
        "task": get_task("depression"),
        "features": table.feature_names[:FEATURES],
        "extractors": dict(table.extractors),
        "folds": FOLDS,
        "strengths": (30.0,),
        "refits": 4,
    }
    return Settings(**(given | changes))


def rows_of(table: FeatureTable, fold: np.ndarray | None = None, *, secret: bytes = b"s") -> SiteRows:
    settings = settings_of(table)
    chosen = select_rows(table, settings.task, settings.features, use_baseline=False, used_as="learned from").rows
    people = np.unique(chosen.subjects)
    told = np.searchsorted(people, chosen.subjects) % FOLDS if fold is None else fold
    return SiteRows(chosen.X, chosen.target, chosen.subjects, told, chosen.frame, settings.features, secret=secret, counts={"given": len(chosen.X)})


def sites_of(rows: SiteRows, sites: int = 3) -> PooledSums:
    of = np.searchsorted(np.unique(rows.subjects), rows.subjects) % sites
    return PooledSums({f"site-{k}": _take(rows, np.flatnonzero(of == k)) for k in range(sites)})


def _take(rows: SiteRows, index: np.ndarray) -> SiteRows:
    return replace(
        rows,
        X=rows.X[index],
        target=rows.target[index],
        subjects=rows.subjects[index],
        fold=rows.fold[index],
        frame=rows.frame.iloc[index].reset_index(drop=True),
    )


@pytest.fixture(scope="module")
def old():
    return table_of(240, seed=1)


@pytest.fixture(scope="module")
def new():
    table = table_of(150, seed=2, rows_each=2)
    return replace(table, frame=table.frame.assign(subject="n" + table.frame["subject"].astype(str)))


@pytest.fixture(scope="module")
def parent(old):
    return train_across(sites_of(rows_of(old)), settings_of(old))


@pytest.fixture(scope="module")
def local(parent, new):
    """The same update with all rows in one place, and in whose folds they were."""
    return update(parent.model, parent.memory, new, UpdateOptions(forgetting=0.8, folds=FOLDS))


@pytest.fixture(scope="module")
def across(parent, new, local):
    fold = local.training.out_of_fold.sort_values("row")["fold"].to_numpy(np.int64)
    return update_across(sites_of(rows_of(new, fold)), settings_of(new), parent.model, parent.memory, 0.8)


def test_a_training_keeps_what_its_model_needs_to_learn_on(parent, old):
    rows = rows_of(old)
    Z = parent.model.preprocessor.transform(rows.X)
    design = np.column_stack([Z, np.ones(len(Z))])
    p = 1 / (1 + np.exp(-parent.model.head.margins(Z)))
    np.testing.assert_allclose(parent.memory.heads[0].precision, (design.T * (p * (1 - p))) @ design, atol=1e-6)
    np.testing.assert_allclose(parent.memory.heads[0].mode[:-1], parent.model.head.coef_, atol=1e-8)
    assert parent.memory.class_totals.sum() == parent.memory.people.sum() == len(rows)
    assert parent.memory.scores.mass.sum() == pytest.approx(len(rows))
    assert Memory.from_bytes(parent.memory.to_bytes()).to_bytes() == parent.memory.to_bytes()


def test_an_update_over_sites_is_the_one_of_all_rows_in_one_place(local, across):
    one, other = local.training.model, across.model
    np.testing.assert_allclose(other.head.coef_, one.head.coef_, atol=1e-6)
    assert float(other.head.intercept_) == pytest.approx(float(one.head.intercept_), abs=1e-6)
    assert (other.calibrator.scale_, other.calibrator.offset_) == pytest.approx((one.calibrator.scale_, one.calibrator.offset_), abs=1e-6)
    assert other.conformal.thresholds_ == one.conformal.thresholds_
    assert other.operating_point.threshold == one.operating_point.threshold
    assert other.class_shares == pytest.approx(one.class_shares)
    assert other.reference == one.reference
    for mine, theirs in zip(other.backgrounds.groups, one.backgrounds.groups, strict=True):
        np.testing.assert_allclose(mine.mean, theirs.mean, atol=2e-3)
        np.testing.assert_allclose(mine.sd, theirs.sd, rtol=1e-2)


def test_the_memory_of_an_update_over_sites_is_that_of_one_place(local, across):
    one, other = local.memory, across.memory
    np.testing.assert_allclose(other.heads[0].precision, one.heads[0].precision, atol=1e-5)
    np.testing.assert_allclose(other.heads[0].information, one.heads[0].information, atol=1e-5)
    np.testing.assert_allclose(other.calibrator.whole, one.calibrator.whole, atol=1e-5)
    np.testing.assert_allclose(other.people, one.people)
    np.testing.assert_allclose(other.scores.mass, one.scores.mass)


def test_an_update_takes_no_more_exchanges_than_a_plan_allows_and_is_at_rest(across):
    assert across.exchanges <= 9
    assert across.at_rest < 1e-6
    assert across.everybody.sum() == 150


def test_refits_of_an_update_spread_as_the_posterior_says(parent, new):
    found = update_across(sites_of(rows_of(new)), settings_of(new, refits=120), parent.model, parent.memory)
    drawn = np.array([refit.head.coef_ for refit in found.model.refits])
    laplace = np.sqrt(np.diag(found.memory.heads[0].covariance))[:-1]
    # Two recordings of one person are less than two people: a bootstrap of people spreads wider.
    ratio = drawn.std(axis=0) / laplace
    assert 0.7 < np.median(ratio) < 1.6


def test_where_nothing_is_forgotten_and_the_loss_is_quadratic_an_update_is_training_on_everybody(old, new):
    """In the quadratic limit: one Newton step from the same place, with the old data's curvature in place of the old data."""
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=(200, 5)), rng.normal(size=(90, 5))
    truth, ridge = rng.normal(size=5), np.array([3.0, 3.0, 3.0, 3.0, 0.0])
    y, y_new = before @ truth + rng.normal(size=200), after @ truth + 1.0 + rng.normal(size=90)
    first = np.linalg.solve(before.T @ before + np.diag(ridge), before.T @ y)
    heads = newton.Heads(first[None].copy(), np.array([-1]), np.array([-1]), np.array([3.0]), [Posterior.at(first, before.T @ before, ridge)])
    gradient, hessian = after.T @ (after @ first - y_new), after.T @ after
    totals = {
        "gradient": gradient[None],
        "hessian": hessian[np.triu_indices(5)][None],
        "loss": np.array([0.5 * np.sum((after @ first - y_new) ** 2)]),
        "held_out": np.zeros(1),
    }
    heads.step(totals)
    together = np.vstack([before, after])
    np.testing.assert_allclose(heads.beta[0], np.linalg.solve(together.T @ together + np.diag(ridge), together.T @ np.append(y, y_new)), atol=1e-9)


def test_a_median_of_the_parent_stands_for_what_is_missing_at_every_site(parent, new):
    moved = replace(parent.model, preprocessor=_with_median(parent.model.preprocessor, 0.7))
    rows = rows_of(new)
    rows.X[::5, 3] = np.nan
    found = scales_of(moved, FOLDS)
    asked = {**found, "beta": np.append(moved.head.coef_, moved.head.intercept_)[None], "left_out": np.array([-1.0]), "draw": np.array([-1.0])}
    (totals,) = PooledSums({"all": rows}).total("asked", [Ask("newton", asked)])
    margins = moved.head.margins(moved.preprocessor.transform(rows.X))
    assert totals["loss"][0] == pytest.approx(np.sum(np.logaddexp(0, np.where(rows.target == 1, -margins, margins))))
    assert frozen_of(moved, FOLDS, "update") != frozen_of(parent.model, FOLDS, "update")


def _with_median(preprocessor, by: float):
    changed = type(preprocessor)()
    changed.feature_names_, changed.mean_, changed.scale_ = preprocessor.feature_names_, preprocessor.mean_, preprocessor.scale_
    changed.median_ = preprocessor.median_ + by * preprocessor.scale_
    return changed


@pytest.mark.parametrize("forgetting", [0.0, -1.0, 1.01, float("nan")])
def test_a_factor_that_forgets_everything_or_less_than_nothing_is_refused(parent, new, forgetting):
    with pytest.raises(InvalidValueError, match="forgetting"):
        update_across(sites_of(rows_of(new)), settings_of(new), parent.model, parent.memory, forgetting)


def test_the_memory_of_another_model_is_refused_before_anybody_is_asked(parent, new):
    sums = sites_of(rows_of(new))
    with pytest.raises(TrainingError, match="another model"):
        update_across(sums, settings_of(new), parent.model, replace(parent.memory, features=parent.memory.features[::-1]))
    with pytest.raises(TrainingError, match="not those of the model"):
        update_across(sums, settings_of(new, features=new.feature_names[1 : FEATURES + 1]), parent.model, parent.memory)
    assert sums.exchanges == []


def test_an_update_through_nodes_with_masks_gives_what_tables_in_memory_give(tmp_path, parent, new):
    given = {
        "kind": "update",
        "parent": "a" * 64,
        "frozen": frozen_of(parent.model, FOLDS, "update"),
        "forgetting": 0.9,
        "statistics": KINDS["update"],
        "strengths": (30.0,),
    }
    made = make_consortium(tmp_path, table=new, features=FEATURES, **given)
    for name in made.names:
        made.set_policy(name, kinds=["update"])
    masked = update_across(made.sums(), made.plan.settings, parent.model, parent.memory, 0.9, secret=b"here")
    nodes = {name: made.node(name) for name in made.names}
    tables = {name: node._rows(node._policy(), made.plan)[0] for name, node in nodes.items()}
    pooled = update_across(PooledSums(tables), made.plan.settings, parent.model, parent.memory, 0.9, secret=b"here")
    np.testing.assert_allclose(masked.model.head.coef_, pooled.model.head.coef_, atol=1e-8)
    np.testing.assert_allclose(masked.memory.heads[0].precision, pooled.memory.heads[0].precision, atol=1e-6)
    np.testing.assert_allclose(masked.everybody, pooled.everybody, atol=1e-6)


# ── recalibration ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_test_over_sites_is_the_one_of_all_rows_in_one_place(parent, new):
    one = justified(parent.model, None, new)
    other = recalibrate_across(sites_of(rows_of(new)), settings_of(new), parent.model, parent.memory, step="slope").justified
    assert (other.step, other.people, other.gain) == (one.step, one.people, None)
    for mine, theirs in zip(other.tried, one.tried, strict=True):
        assert (mine.step, mine.numbers) == (theirs.step, theirs.numbers)
        assert mine.log_likelihood == pytest.approx(theirs.log_likelihood, abs=1e-6)


@pytest.mark.parametrize("step", ["intercept", "slope"])
def test_a_recalibration_over_sites_is_the_one_of_all_rows_in_one_place(parent, new, step):
    alone = recalibrate(parent.model, parent.memory, new, step, UpdateOptions(forgetting=0.7, folds=FOLDS))
    fold = alone.training.out_of_fold.sort_values("row")["fold"].to_numpy(np.int64)
    found = recalibrate_across(sites_of(rows_of(new, fold)), settings_of(new), parent.model, parent.memory, step=step, forgetting=0.7)
    one, other = alone.training.model, found.trained.model
    assert other.head == one.head
    assert (other.calibrator.scale_, other.calibrator.offset_) == pytest.approx((one.calibrator.scale_, one.calibrator.offset_), abs=1e-6)
    np.testing.assert_allclose(other.calibrator.covariance_, one.calibrator.covariance_, atol=1e-6)
    assert other.conformal.thresholds_ == one.conformal.thresholds_
    assert other.operating_point.threshold == one.operating_point.threshold
    assert other.class_shares == pytest.approx(one.class_shares)
    np.testing.assert_allclose(found.trained.memory.calibrator.whole, alone.memory.calibrator.whole, atol=1e-5)
    np.testing.assert_allclose(found.trained.memory.scores.mass, alone.memory.scores.mass, atol=1e-6)
    assert found.exchanges <= 10
    assert found.trained.everybody.sum() == 150


def test_people_like_those_of_training_justify_nothing_and_nothing_is_made(parent):
    same = table_of(300, seed=11)
    found = recalibrate_across(sites_of(rows_of(same)), settings_of(same), parent.model, parent.memory)
    assert found.justified.step == "none"
    assert found.trained is None


def test_more_illness_at_the_same_voices_justifies_an_intercept_and_makes_it(parent):
    table = table_of(400, seed=12)
    rng = np.random.default_rng(3)
    ill = rng.random(len(table.frame)) < 1 / (1 + np.exp(-(table.frame["truth"] + 1.5)))
    moved = replace(table, frame=table.frame.assign(label=np.where(ill, "depressed", "not_depressed")))
    found = recalibrate_across(sites_of(rows_of(moved)), settings_of(moved), parent.model)
    assert found.justified.step == "intercept"
    assert found.trained.model.calibrator.offset_ - parent.model.calibrator.offset_ == pytest.approx(1.5, abs=0.6)
    assert found.trained.model.calibrator.scale_ == parent.model.calibrator.scale_
    assert found.trained.memory is None, "the model came without one"


def test_too_few_people_for_prediction_sets_without_a_memory_are_refused(parent, new):
    few = replace(new, frame=new.frame.iloc[:36].reset_index(drop=True))
    with pytest.raises(TrainingError, match="Without the model's memory"):
        recalibrate_across(sites_of(rows_of(few), 1), settings_of(few), parent.model, step="slope")


@pytest.mark.parametrize("step", ["none", "full", "everything"])
def test_a_step_that_is_no_recalibration_is_refused(parent, new, step):
    with pytest.raises(InvalidValueError, match="step"):
        recalibrate_across(sites_of(rows_of(new)), settings_of(new), parent.model, step=step)


def test_a_recalibration_through_nodes_asks_no_more_than_its_plan(tmp_path, parent, new):
    given = {"kind": "recalibrate", "parent": "a" * 64, "frozen": frozen_of(parent.model, FOLDS, "recalibrate"), "statistics": KINDS["recalibrate"]}
    made = make_consortium(tmp_path, table=new, features=FEATURES, refits=4, **given)
    for name in made.names:
        made.set_policy(name, kinds=["recalibrate"])
    sums = made.sums()
    masked = recalibrate_across(sums, made.plan.settings, parent.model, parent.memory, step="slope")
    tables = {name: made.node(name)._rows(made.node(name)._policy(), made.plan)[0] for name in made.names}
    pooled = recalibrate_across(PooledSums(tables), made.plan.settings, parent.model, parent.memory, step="slope")
    assert masked.trained.model.calibrator.scale_ == pytest.approx(pooled.trained.model.calibrator.scale_, abs=1e-8)
    assert masked.justified.step == pooled.justified.step
    frozen = {**scales_of(parent.model, FOLDS), "head": np.append(parent.model.head.coef_, parent.model.head.intercept_)}
    theta = np.tile([1.0, 0.0], (FOLDS, 1))
    for beta in (np.zeros((FOLDS, FEATURES + 1)), np.tile(frozen["head"], (FOLDS, 1)) + 0.01):
        with pytest.raises(SiteRefusalError, match="asks beyond the plan"):
            sums.total("asked", [Ask("scores", {**frozen, "beta": beta, "theta": theta})])
