"""Training across sites is training in one place: held against scikit-learn, this package's own estimators, and other splits of the same rows."""

import dataclasses

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from clinical_ser.cohorts.tasks import get_task
from clinical_ser.errors import InvalidValueError, TrainingError
from clinical_ser.evaluation.discrimination import auroc
from clinical_ser.models.binned import BINS, bin_of
from clinical_ser.models.calibration import MarginPlatt
from clinical_ser.models.conformal import ConformalSets
from clinical_ser.models.operating_point import choose
from federated.at_site import standardised
from federated.protocols.evaluation import auroc_with_bound, one_recording_each
from federated.statistics import Ask, PooledSums, SiteRows
from federated.training import Trained, train_across
from tests.federated.cohorts import FOLDS, cohort_rows, settings, split


@pytest.fixture(scope="module")
def rows() -> SiteRows:
    return cohort_rows()


@pytest.fixture(scope="module")
def trained(rows) -> Trained:
    return train_across(PooledSums({"all": rows}), settings())


@pytest.fixture(scope="module")
def out_of_fold(rows, trained) -> np.ndarray:
    """Margins by scikit-learn, each fold's from a model that was fitted and standardised without it."""
    margins = np.zeros(len(rows))
    for fold in range(FOLDS):
        train, test = rows.fold != fold, rows.fold == fold
        mean, scale = imputed_moments(rows.X[train])
        model = ridge(standardised(rows.X[train], mean, scale), rows.target[train], trained.model.head.strength_)
        margins[test] = model.decision_function(standardised(rows.X[test], mean, scale))
    return margins


def imputed_moments(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = np.nanmean(X, axis=0)
    filled = np.where(np.isnan(X), mean, X)
    return filled.mean(axis=0), filled.std(axis=0)


def ridge(Z: np.ndarray, y: np.ndarray, strength: float) -> LogisticRegression:
    return LogisticRegression(C=1 / strength, tol=1e-12, max_iter=10_000).fit(Z, y)


def test_scales_are_those_of_all_rows_to_rounding(rows, trained):
    mean, scale = imputed_moments(rows.X)
    np.testing.assert_allclose(trained.model.preprocessor.mean_, mean, rtol=1e-12)
    np.testing.assert_allclose(trained.model.preprocessor.scale_, scale, rtol=1e-10)


def test_the_head_is_scikit_learns_on_all_rows(rows, trained):
    pooled = ridge(trained.model.preprocessor.transform(rows.X), rows.target, trained.model.head.strength_)
    np.testing.assert_allclose(trained.model.head.coef_, pooled.coef_[0], atol=1e-6)
    assert trained.model.head.intercept_ == pytest.approx(pooled.intercept_[0], abs=1e-6)


def test_the_strength_is_the_one_that_held_out_folds_choose(rows, trained):
    losses = {}
    for strength in settings().strengths:
        losses[strength] = 0.0
        for fold in range(FOLDS):
            train, test = rows.fold != fold, rows.fold == fold
            mean, scale = imputed_moments(rows.X[train])
            model = ridge(standardised(rows.X[train], mean, scale), rows.target[train], strength)
            margins = model.decision_function(standardised(rows.X[test], mean, scale))
            losses[strength] += np.logaddexp(0, np.where(rows.target[test] == 1, -margins, margins)).sum()
    assert trained.model.head.strength_ == min(losses, key=losses.__getitem__)


def test_the_calibrator_is_the_one_fitted_on_all_margins_out_of_fold(rows, trained, out_of_fold):
    pooled = MarginPlatt().fit(out_of_fold, rows.target, groups=rows.subjects)
    found = trained.model.calibrator
    assert (found.scale_, found.offset_) == pytest.approx((pooled.scale_, pooled.offset_), abs=1e-6)
    np.testing.assert_allclose(found.covariance_, pooled.covariance_, rtol=1e-5)


def test_standard_errors_are_those_of_the_penalised_hessian(rows, trained):
    Z = np.column_stack([trained.model.preprocessor.transform(rows.X), np.ones(len(rows))])
    p = expit(Z @ np.append(trained.model.head.coef_, trained.model.head.intercept_))
    hessian = (Z.T * (p * (1 - p))) @ Z + np.diag(np.append(np.full(rows.X.shape[1], trained.model.head.strength_), 0.0))
    np.testing.assert_allclose(trained.standard_errors, np.sqrt(np.diag(np.linalg.inv(hessian))), rtol=1e-6)


def stated(rows: SiteRows, out_of_fold: np.ndarray) -> np.ndarray:
    """Log-odds in which each fold was calibrated by the others."""
    found = np.zeros(len(rows))
    for fold in range(FOLDS):
        others, here = rows.fold != fold, rows.fold == fold
        found[here] = MarginPlatt().fit(out_of_fold[others], rows.target[others], groups=rows.subjects[others]).apply(out_of_fold[here])
    return found


def test_prediction_sets_are_the_pooled_ones_moved_outward_to_the_next_edge(rows, trained, out_of_fold):
    p = expit(stated(rows, out_of_fold))
    pooled = ConformalSets(0.90).fit(np.column_stack([1 - p, p]), rows.target, groups=rows.subjects)
    assert trained.model.conformal.subjects_ == pooled.subjects_
    for ours, exact in zip(trained.model.conformal.thresholds_, pooled.thresholds_, strict=True):
        assert 0 <= ours - exact <= 1 / BINS + 1e-9
        assert ours * BINS == pytest.approx(round(ours * BINS))


def test_the_operating_point_is_the_pooled_one_moved_down_to_the_next_edge(rows, trained, out_of_fold):
    pooled = choose(stated(rows, out_of_fold), rows.target, groups=rows.subjects, target_sensitivity=0.85)
    found = trained.model.operating_point
    assert found.attained == pooled.attained
    assert 0 <= expit(pooled.threshold) - expit(found.threshold) <= 1 / BINS + 1e-9
    assert found.sensitivity.effective == pytest.approx(pooled.sensitivity.effective, rel=1e-6)
    assert found.sensitivity.value >= pooled.sensitivity.value - 1e-9


def test_the_evaluation_counts_every_subject_once_in_the_cell_of_their_answer(rows, trained, out_of_fold):
    log_odds, judged = stated(rows, out_of_fold), one_recording_each(rows)
    assert sorted(rows.subjects[judged]) == sorted(np.unique(rows.subjects))
    counted = trained.everybody.sum(axis=(2, 3, 4))
    expected = np.zeros((2, BINS))
    np.add.at(expected, (rows.target[judged], bin_of(expit(log_odds[judged]))), 1)
    # A probability on an edge may fall to either side of it.
    assert np.abs(np.cumsum(counted - expected, axis=1)).max() <= 1
    binned, bound = auroc_with_bound(counted)
    assert abs(binned - auroc(rows.target[judged], log_odds[judged])) <= bound + 1e-9
    assert bound < 0.01


@pytest.mark.parametrize("sites", [3, 5, 10])
def test_however_the_rows_are_split_the_model_is_the_same(rows, trained, sites):
    sums = PooledSums(split(rows, sites))
    found = train_across(sums, settings())
    assert len(sums.exchanges) <= 11, "with the one in which keys are agreed, twelve"
    np.testing.assert_allclose(found.model.head.coef_, trained.model.head.coef_, atol=1e-6)
    assert found.model.calibrator.scale_ == pytest.approx(trained.model.calibrator.scale_, abs=1e-6)
    assert found.model.conformal.thresholds_ == trained.model.conformal.thresholds_
    point, pooled = found.model.operating_point, trained.model.operating_point
    assert (point.threshold, point.attained, point.note) == (pooled.threshold, pooled.attained, pooled.note)
    assert point.sensitivity.value == pytest.approx(pooled.sensitivity.value, abs=1e-9)
    assert point.specificity.lower == pytest.approx(pooled.specificity.lower, abs=1e-6)
    np.testing.assert_allclose(found.everybody, trained.everybody)
    assert found.cohort.flow == trained.cohort.flow
    assert found.cohort.refused_subjects == trained.cohort.refused_subjects == 2
    assert found.shown == trained.shown
    for column, counts in trained.groups.items():
        np.testing.assert_allclose(found.groups[column], counts)
    ours, theirs = found.model.reference.groups, trained.model.reference.groups
    assert (
        [group.name for group in ours] == [group.name for group in theirs] == ["not depressed, all", "not depressed, female", "not depressed, male"]
    )
    for one, other in zip(ours, theirs, strict=True):
        assert one.subjects == other.subjects
        for name, levels in one.quantiles.items():
            np.testing.assert_allclose(levels, other.quantiles[name], rtol=1e-6)


def test_the_reference_says_what_rows_would_say(rows, trained):
    here = rows.target == 0
    group = trained.model.reference.groups[0]
    assert group.subjects == len(np.unique(rows.subjects[here]))
    for j in (0, 5, 20):
        values, spread = rows.X[here, j], np.nanstd(rows.X[here, j])
        exact = np.nanquantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
        found = [group.quantiles[rows.names[j]][k] for k in (0, 2, 3, 4, 6)]
        assert np.abs(exact - found).max() < 0.12 * spread, "cells are 0.05 SD wide, and values have three digits"


def test_bootstrap_samples_are_at_the_minima_of_what_they_drew(rows, trained):
    from federated.at_site import times_drawn

    Z = trained.model.preprocessor.transform(rows.X)
    for i in (0, 3):
        pooled = LogisticRegression(C=1 / trained.model.head.strength_, tol=1e-12, max_iter=10_000)
        pooled.fit(Z, rows.target, sample_weight=times_drawn(rows, i))
        np.testing.assert_allclose(trained.model.refits[i].head.coef_, pooled.coef_[0], atol=1e-4)


def test_a_task_of_several_classes_is_refused_by_name():
    with pytest.raises(InvalidValueError, match="two classes"):
        settings(task=get_task("emotion"))


def test_too_few_people_of_a_class_end_the_run_before_anything_is_fitted(rows):
    few = dataclasses.replace(rows, target=(rows.subjects == "s0001").astype(np.int64))
    sums = PooledSums({"all": few})
    with pytest.raises(TrainingError, match="at least 5 subjects"):
        train_across(sums, settings())
    assert sums.exchanges == ["cohort"]


class _Altered(PooledSums):
    """Totals in which one of the steps went wrong somewhere."""

    def __init__(self, tables, step: str, alter):
        super().__init__(tables)
        self._step, self._alter = step, alter

    def total(self, step: str, asks: list[Ask]):
        found = super().total(step, asks)
        if step == self._step:
            self._alter(found)
        return found


def test_totals_that_no_log_loss_has_end_the_run(rows):
    def no_curvature(found):
        found[0]["hessian"] *= -1

    with pytest.raises(TrainingError, match="not that of a log-loss"):
        train_across(_Altered({"all": rows}, "newton", no_curvature), settings())


def test_a_model_that_is_not_at_rest_when_it_is_scored_is_not_published(rows):
    def others(found):
        found[0]["gradient"] += 5.0

    with pytest.raises(TrainingError, match="at rest"):
        train_across(_Altered({"all": rows}, "scores", others), settings())
