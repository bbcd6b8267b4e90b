"""Discrimination, calibration and their intervals against hand-made and simulated truth."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, roc_auc_score

from clinical_ser.evaluation.calibration import brier, intercept_and_slope
from clinical_ser.evaluation.discrimination import auroc, unweighted_average_recall


def test_auroc_agrees_with_scikit_learn_with_ties():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 300)
    score = np.round(rng.normal(y, 1.0), 1)
    assert auroc(y, score) == pytest.approx(roc_auc_score(y, score), abs=1e-12)


def test_auroc_of_one_class_is_not_defined():
    assert np.isnan(auroc(np.ones(5, int), np.arange(5.0)))


def test_uar_agrees_with_scikit_learn():
    rng = np.random.default_rng(1)
    y, answer = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    assert unweighted_average_recall(y, answer) == pytest.approx(balanced_accuracy_score(y, answer), abs=1e-12)


def test_brier_agrees_with_scikit_learn_and_extends_to_classes():
    rng = np.random.default_rng(2)
    y, p = rng.integers(0, 2, 100), rng.uniform(size=100)
    assert brier(y, p) == pytest.approx(brier_score_loss(y, p))
    assert brier(y, np.column_stack([1 - p, p])) == pytest.approx(2 * brier_score_loss(y, p))


def test_calibration_recovers_a_known_distortion():
    rng = np.random.default_rng(3)
    truth = rng.normal(0, 1.5, 200_000)
    y = (rng.uniform(size=len(truth)) < expit(truth)).astype(int)
    stated = 2.0 * truth + 0.5
    intercept, slope = intercept_and_slope(y, stated)
    assert slope == pytest.approx(0.5, abs=0.01)
    assert intercept < -0.2
    assert intercept_and_slope(y, truth) == pytest.approx((0, 1), abs=0.02)


def test_separated_classes_have_no_finite_slope():
    y = np.array([0, 0, 1, 1])
    assert np.isnan(intercept_and_slope(y, np.array([-2.0, -1.0, 1.0, 2.0]))[1])


def test_weights_let_a_subject_count_once():
    rng = np.random.default_rng(7)
    y, score = rng.integers(0, 2, 50), rng.normal(size=50)
    times = rng.integers(1, 5, 50)
    many_y, many_score, weight = np.repeat(y, times), np.repeat(score, times), 1 / np.repeat(times, times)
    assert auroc(many_y, many_score, weight) == pytest.approx(auroc(y, score))
    assert brier(many_y, expit(many_score), weight) == pytest.approx(brier(y, expit(score)))
    assert intercept_and_slope(many_y, many_score, weight) == pytest.approx(intercept_and_slope(y, score))
