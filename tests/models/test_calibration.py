"""Calibration: probabilities against a known truth, one affine map, honest intervals."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

from clinical_ser.errors import BundleSchemaError, InvalidValueError, TrainingError
from clinical_ser.models.calibration import MIN_SCALE, RIDGE, MarginPlatt, MulticlassPlatt

TRUE_SCALE, TRUE_OFFSET = 0.4, -0.5  # of the margins drawn below: a model that is far too sure


def overconfident(n, rng):
    """Return margins and outcomes whose true log-odds are TRUE_SCALE * margin + TRUE_OFFSET."""
    margins = rng.normal(0.5, 3.5, n)
    return margins, (rng.random(n) < expit(TRUE_SCALE * margins + TRUE_OFFSET)).astype(int)


def several(n, rng, *, scale=0.5, offset=(0.6, 0.0, -0.6)):
    margins = rng.normal(0, 2.5, (n, 3))
    truth = softmax(scale * margins + np.array(offset), axis=1)
    return margins, np.array([rng.choice(3, p=p) for p in truth]), truth


class OnlyProbabilities(ClassifierMixin, BaseEstimator):
    """A model like xgboost's, without a decision_function."""

    def fit(self, X, y):
        self.classes_ = np.array([0, 1])
        return self

    def predict_proba(self, X):
        p = expit(X[:, 0])
        return np.column_stack([1 - p, p])

    def predict(self, X):
        return self.predict_proba(X).argmax(axis=1)


def sigmoid_on_probabilities(margins, y, fresh):
    model = FrozenEstimator(OnlyProbabilities().fit(None, None))
    return CalibratedClassifierCV(model, method="sigmoid").fit(margins[:, None], y).predict_proba(fresh[:, None])[:, 1]


def excess_brier(method, n, repeats, seed=0):
    """Mean squared distance from the true probability, over repeated calibration sets of n."""
    rng = np.random.default_rng(seed)
    fresh, _ = overconfident(2000, rng)
    truth = expit(TRUE_SCALE * fresh + TRUE_OFFSET)
    errors = []
    for _ in range(repeats):
        margins, y = overconfident(n, rng)
        errors.append(np.mean((method(margins, y, fresh) - truth) ** 2))
    return np.mean(errors)


@pytest.mark.parametrize(("n", "factor"), [(40, 1.3), (400, 2.0), (1000, 3.0)])
def test_margins_calibrate_better_than_probabilities(n, factor):
    ours = excess_brier(lambda m, y, fresh: MarginPlatt().fit(m, y).probabilities(fresh)[:, 1], n, 40)
    theirs = excess_brier(sigmoid_on_probabilities, n, 40)
    uncalibrated = excess_brier(lambda m, y, fresh: expit(fresh), n, 1)
    assert ours * factor < theirs < uncalibrated


def test_the_ridge_helps_most_where_subjects_are_few():
    def gain(n):
        free = excess_brier(lambda m, y, fresh: MarginPlatt(ridge=1e-6).fit(m, y).probabilities(fresh)[:, 1], n, 80)
        held = excess_brier(lambda m, y, fresh: MarginPlatt().fit(m, y).probabilities(fresh)[:, 1], n, 80)
        return free / held

    assert gain(40) > 1.1
    assert 0.8 < gain(1000) < 1.2


def test_the_true_map_is_found():
    margins, y = overconfident(40_000, np.random.default_rng(1))
    platt = MarginPlatt().fit(margins, y)
    assert platt.scale_ == pytest.approx(TRUE_SCALE, abs=0.02)
    assert platt.offset_ == pytest.approx(TRUE_OFFSET, abs=0.04)


def test_it_stands_at_the_minimum_of_the_documented_objective():
    margins, y = overconfident(60, np.random.default_rng(2))
    sign = 2 * y - 1

    def objective(theta):
        penalty = RIDGE / 2 * ((theta[0] - 1) ** 2 + theta[1] ** 2)
        return np.logaddexp(0, -sign * (theta[0] * margins + theta[1])).sum() + penalty

    oracle = minimize(objective, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}).x
    platt = MarginPlatt().fit(margins, y)
    assert [platt.scale_, platt.offset_] == pytest.approx(oracle, abs=1e-6)


def test_the_several_class_fit_stands_at_its_minimum_with_offsets_that_sum_to_0():
    margins, y, _ = several(90, np.random.default_rng(3))

    def objective(theta):
        logits = theta[0] * margins + theta[1:]
        return -log_softmax(logits, axis=1)[np.arange(len(y)), y].sum() + RIDGE / 2 * ((theta[0] - 1) ** 2 + theta[1:] @ theta[1:])

    oracle = minimize(objective, [1.0, 0, 0, 0], method="BFGS", options={"gtol": 1e-8}).x
    platt = MulticlassPlatt().fit(margins, y)
    assert [platt.scale_, *platt.offset_] == pytest.approx(oracle, abs=1e-5)
    assert abs(platt.offset_.sum()) < 1e-9


def test_several_classes_come_closer_to_the_truth():
    rng = np.random.default_rng(4)
    margins, y, _ = several(300, rng)
    fresh, _, truth = several(2000, rng)
    before = np.mean((softmax(fresh, axis=1) - truth) ** 2)
    after = np.mean((MulticlassPlatt().fit(margins, y).probabilities(fresh) - truth) ** 2)
    assert after < before / 20


def test_margins_that_rank_the_wrong_way_round_say_next_to_nothing():
    margins, y = overconfident(500, np.random.default_rng(5))
    backwards = 5.0 - margins
    platt = MarginPlatt().fit(backwards, y)
    assert platt.scale_ == MIN_SCALE
    assert np.ptp(platt.probabilities([-5.0, 5.0])[:, 1]) < 0.03
    # And the offset is the best one at that slope: its derivative of the objective is 0.
    assert (platt.probabilities(backwards)[:, 1] - y).sum() + RIDGE * platt.offset_ == pytest.approx(0, abs=1e-6)


def test_separable_margins_stay_finite_and_modest():
    platt = MarginPlatt().fit([-30.0, -20.0, 20.0, 30.0], [0, 0, 1, 1])
    assert 0 < platt.scale_ <= 1.01
    assert abs(platt.offset_) < 1e-6


def test_a_subject_counts_once_however_many_recordings():
    margins, y = overconfident(50, np.random.default_rng(6))
    subject = np.arange(50)
    once = MarginPlatt().fit(margins, y)
    copies = np.repeat(np.arange(50), 1 + np.arange(50) % 7)
    often = MarginPlatt().fit(margins[copies], y[copies], groups=subject[copies])
    assert (often.scale_, often.offset_) == pytest.approx((once.scale_, once.offset_), abs=1e-8)
    np.testing.assert_allclose(often.covariance_, once.covariance_, atol=1e-8)
    assert MarginPlatt().fit(margins[copies], y[copies]).covariance_[0, 0] < once.covariance_[0, 0] / 2


@pytest.mark.parametrize("recordings", [1, 5])
def test_intervals_cover_the_truth(recordings):
    rng = np.random.default_rng(7)
    at = np.array([-4.0, -1.0, 2.0, 5.0])
    covered = []
    for _ in range(120):
        # Binormal within class: the true log-odds of a single recording are 0.5 * margin exactly; a subject's recordings share a shift.
        subject_y = rng.integers(0, 2, 80)
        y, subject = np.repeat(subject_y, recordings), np.repeat(np.arange(80), recordings)
        shift = rng.normal(0, np.sqrt(4.0), 80)[subject] if recordings > 1 else 0.0
        margins = (y - 0.5) * 0.5 * 9 + shift + rng.normal(0, np.sqrt(5.0 if recordings > 1 else 9.0), len(y))
        low, high = MarginPlatt().fit(margins, y, groups=subject).interval(at)
        covered.append((low <= 0.5 * at) & (0.5 * at <= high))
    assert np.mean(covered) > 0.93


def test_several_class_intervals_agree_with_draws_from_the_covariance():
    rng = np.random.default_rng(8)
    margins, y, _ = several(400, rng)
    platt = MulticlassPlatt().fit(margins, y)
    low, high = platt.interval(margins[:6])
    p = platt.probabilities(margins[:6])
    np.testing.assert_allclose((low + high) / 2, np.log(p / (1 - p)), atol=1e-9)
    draws = rng.multivariate_normal([platt.scale_, *platt.offset_], platt.covariance_, size=20_000)
    drawn = softmax(draws[:, :1, None] * margins[None, :6] + draws[:, None, 1:], axis=2)
    spread = np.std(np.log(drawn / (1 - drawn)), axis=0)
    np.testing.assert_allclose((high - low) / (2 * 1.959964), spread, rtol=0.05)


def test_several_class_intervals_are_finite_where_a_class_is_certain():
    margins, y, _ = several(100, np.random.default_rng(9))
    low, high = MulticlassPlatt().fit(margins, y).interval([[500.0, 0.0, -500.0]])
    assert np.isfinite(low).all()
    assert (low < high).all()


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.lists(st.floats(-50, 50), min_size=2, max_size=20))
def test_order_is_kept_and_a_round_trip_changes_no_bit(seed, fresh):
    rng = np.random.default_rng(seed)
    margins, y = overconfident(30, rng)
    y[:2] = [0, 1]
    platt = MarginPlatt().fit(margins, y)
    ranked = np.sort(fresh)
    assert (np.diff(platt.apply(ranked)) >= 0).all()
    again = MarginPlatt.from_dict(json.loads(json.dumps(platt.to_dict(), allow_nan=False)))
    assert (again.apply(ranked) == platt.apply(ranked)).all()
    assert (again.covariance_ == platt.covariance_).all()


def test_a_several_class_round_trip_changes_no_bit():
    margins, y, _ = several(60, np.random.default_rng(10))
    platt = MulticlassPlatt().fit(margins, y)
    again = MulticlassPlatt.from_dict(json.loads(json.dumps(platt.to_dict(), allow_nan=False)))
    assert (again.probabilities(margins) == platt.probabilities(margins)).all()
    assert again.to_dict() == platt.to_dict()


def test_bad_input_is_named():
    with pytest.raises(InvalidValueError, match="finite"):
        MarginPlatt().fit([0.0, np.nan], [0, 1])
    with pytest.raises(InvalidValueError, match="class numbers"):
        MarginPlatt().fit([0.0, 1.0], [0, 2])
    with pytest.raises(InvalidValueError, match="shape"):
        MarginPlatt().fit([[0.0, 1.0]], [0])
    with pytest.raises(TrainingError, match="two classes"):
        MarginPlatt().fit([0.0, 1.0], [1, 1])
    with pytest.raises(InvalidValueError, match="ridge"):
        MarginPlatt(ridge=0).fit([0.0, 1.0], [0, 1])
    with pytest.raises(InvalidValueError, match="level"):
        MarginPlatt().fit([0.0, 1.0], [0, 1]).interval([0.0], level=95)
    with pytest.raises(InvalidValueError, match="shape"):
        MulticlassPlatt().fit(np.eye(3), [0, 1, 2]).apply(np.eye(4))


@pytest.mark.parametrize(
    "fault", [{"scale": 0.0}, {"scale": -1.0}, {"kind": "multiclass_platt"}, {"covariance": [[1.0]]}, {"offset": []}, {"more": 1}]
)
def test_a_file_that_does_not_fit_is_refused(fault):
    good = {"kind": "platt", "scale": 0.5, "offset": [1.0], "covariance": [[1.0, 0.0], [0.0, 1.0]]}
    assert MarginPlatt.from_dict(good).apply([2.0]).tolist() == [2.0]
    with pytest.raises(BundleSchemaError):
        MarginPlatt.from_dict(good | fault)
