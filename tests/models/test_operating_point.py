"""Operating point: the sensitivity that is promised is the one that new people get."""

import json

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from clinical_ser.errors import BundleSchemaError, InvalidValueError, TrainingError
from clinical_ser.models.operating_point import OperatingPoint, choose, positives_needed

TARGET = 0.85
POSITIVE_MEAN = 1.5


def screened(positives, rng, *, recordings=1, shared=0.0, negatives=60):
    """Return scores, labels and subjects: N(1.5, 1) for positives of which `shared` of the variance is the person's, N(0, 1) for negatives."""
    given = rng.integers(1, 2 * recordings, positives) if recordings > 1 else np.ones(positives, int)
    subject = np.repeat(np.arange(positives), given)
    person = rng.normal(0, np.sqrt(shared), positives)[subject]
    scores = POSITIVE_MEAN + person + rng.normal(0, np.sqrt(1 - shared), len(subject))
    y = np.r_[np.ones(len(subject), int), np.zeros(negatives, int)]
    return np.r_[scores, rng.normal(0, 1, negatives)], y, np.r_[subject, positives + np.arange(negatives)]


def true_sensitivity(threshold):
    return norm.sf(threshold - POSITIVE_MEAN)


@pytest.mark.parametrize(("positives", "recordings", "shared"), [(40, 1, 0.0), (100, 1, 0.0), (40, 5, 0.3), (40, 5, 0.9)])
def test_the_true_sensitivity_seldom_falls_below_the_target(positives, recordings, shared):
    rng = np.random.default_rng(0)
    missed = missed_by_looking = 0
    repeats = 400
    for _ in range(repeats):
        scores, y, subject = screened(positives, rng, recordings=recordings, shared=shared)
        point = choose(scores, y, subject, target_sensitivity=TARGET)
        assert point.attained
        assert point.sensitivity.lower >= TARGET
        missed += true_sensitivity(point.threshold) < TARGET
        missed_by_looking += true_sensitivity(np.quantile(scores[y == 1], 1 - TARGET)) < TARGET
    assert missed / repeats <= 0.07
    assert missed_by_looking / repeats > 0.4


def test_recordings_of_one_person_are_not_taken_for_people():
    rng = np.random.default_rng(1)
    scores, y, subject = screened(40, rng, recordings=5, shared=0.95)
    grouped, naive = choose(scores, y, subject, target_sensitivity=TARGET), choose(scores, y, target_sensitivity=TARGET)
    assert grouped.threshold < naive.threshold
    assert grouped.sensitivity.subjects == 40
    assert 40 <= grouped.sensitivity.effective < 60 < naive.sensitivity.effective == (y == 1).sum()


def test_independent_recordings_of_a_person_count_nearly_as_many():
    scores, y, subject = screened(300, np.random.default_rng(2), recordings=4, shared=0.0)
    point = choose(scores, y, subject, target_sensitivity=TARGET)
    # Unequal numbers a person cost a little: the mean over people is not the mean over recordings.
    assert 0.6 * (y == 1).sum() < point.sensitivity.effective <= (y == 1).sum()


def test_with_one_recording_a_subject_bounds_are_clopper_pearson_s():
    scores, y, _ = screened(80, np.random.default_rng(3))
    point = choose(scores, y, target_sensitivity=TARGET)
    for rate, caught in ((point.sensitivity, (scores >= point.threshold)[y == 1]), (point.specificity, (scores < point.threshold)[y == 0])):
        exact = binomtest(int(caught.sum()), len(caught)).proportion_ci(0.90, method="exact")
        assert rate.value == pytest.approx(caught.mean(), abs=1e-12)
        assert (rate.lower, rate.upper) == pytest.approx((exact.low, exact.high), abs=1e-9)
        assert rate.subjects == len(caught)


def test_it_is_the_highest_threshold_that_will_do():
    scores, y, _ = screened(80, np.random.default_rng(4))
    point = choose(scores, y, target_sensitivity=TARGET)
    higher = np.min(scores[(y == 1) & (scores > point.threshold)])
    caught = int((scores[y == 1] >= higher).sum())
    assert point.sensitivity.lower >= TARGET > binomtest(caught, 80).proportion_ci(0.90, method="exact").low


def test_a_subject_heard_as_positive_and_negative_counts_in_both():
    point = choose([3.0, 2.0, -2.0, -3.0] * 10, [1, 1, 0, 0] * 10, np.repeat(np.arange(10), 4), target_sensitivity=0.5)
    assert (point.sensitivity.subjects, point.specificity.subjects) == (10, 10)
    assert point.specificity.value == 1.0


@pytest.mark.parametrize(("positives", "attained"), [(18, False), (19, True)])
def test_too_few_positives_are_told_how_many_would_do(positives, attained):
    assert positives_needed(TARGET) == 19
    scores, y, _ = screened(positives, np.random.default_rng(5))
    point = choose(scores, y, target_sensitivity=TARGET)
    assert point.attained is attained
    assert point.threshold == scores[y == 1].min()
    assert point.sensitivity.value == 1.0
    assert (point.sensitivity.lower >= TARGET) is attained
    assert attained or "at least 19" in point.note


def test_a_threshold_below_everyone_says_so():
    point = choose(np.r_[np.linspace(0, 1, 30), np.full(20, 5.0)], np.repeat([1, 0], [30, 20]), target_sensitivity=TARGET)
    assert point.specificity.value == 0.0
    assert "everyone" in point.note


def test_a_tie_with_the_threshold_is_above_it():
    point = choose([2.0] * 30 + [-2.0] * 30, [1] * 30 + [0] * 30, target_sensitivity=TARGET)
    assert point.threshold == 2.0
    assert point.is_above([2.0, np.nextafter(2.0, 0)]).tolist() == [True, False]


def test_a_round_trip_changes_nothing():
    scores, y, subject = screened(50, np.random.default_rng(6), recordings=3, shared=0.5)
    point = choose(scores, y, subject, target_sensitivity=TARGET)
    assert OperatingPoint.from_dict(json.loads(json.dumps(point.to_dict(), allow_nan=False))) == point
    with pytest.raises(BundleSchemaError, match="threshold"):
        OperatingPoint.from_dict(point.to_dict() | {"threshold": "0.1"})


def test_bad_input_is_named():
    with pytest.raises(TrainingError, match="both classes"):
        choose([1.0, 2.0], [1, 1], target_sensitivity=TARGET)
    with pytest.raises(InvalidValueError, match="target_sensitivity"):
        choose([1.0, 2.0], [0, 1], target_sensitivity=85)
    with pytest.raises(InvalidValueError, match="finite"):
        choose([1.0, np.inf], [0, 1], target_sensitivity=TARGET)
    with pytest.raises(InvalidValueError, match="one subject for each"):
        choose([1.0, 2.0], [0, 1], [7], target_sensitivity=TARGET)
