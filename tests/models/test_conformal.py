"""Conformal sets: the stated coverage in each class, with the subject as the unit, and honesty about too few subjects."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax
from scipy.stats import beta

from clinical_ser.errors import BundleSchemaError, InvalidValueError
from clinical_ser.models.conformal import ConformalSets, status_from_set, subjects_needed


def people(subjects, rng, *, recordings=1, positive=0.3):
    """Return probabilities, classes and subjects; recordings of a person share most of what makes them sound as they do."""
    y = (rng.random(subjects) < positive).astype(int)
    given = rng.integers(1, 2 * recordings, subjects) if recordings > 1 else np.ones(subjects, int)
    subject = np.repeat(np.arange(subjects), given)
    x = (2 * y - 1 + 0.9 * rng.normal(size=subjects))[subject] + 0.5 * rng.normal(size=len(subject))
    p = expit(2 * x)
    return np.column_stack([1 - p, p]), y[subject], subject


def coverage_by_class(sets, p, y, subject):
    """Share of subjects of each class whose set holds the truth, each subject counting once."""
    inside = sets.predict(p)[np.arange(len(y)), y]
    weight = 1 / np.bincount(subject)[subject]
    return [np.average(inside[y == k], weights=weight[y == k]) for k in (0, 1)]


@pytest.mark.parametrize("recordings", [1, 5])
def test_each_class_is_covered_on_average_as_stated(recordings):
    rng = np.random.default_rng(0)
    realised = []
    for _ in range(150):
        sets = ConformalSets(0.9).fit(*people(80, rng, recordings=recordings))
        realised.append(coverage_by_class(sets, *people(1500, rng, recordings=recordings)))
    error = np.std(realised, axis=0) / np.sqrt(len(realised))
    assert (np.mean(realised, axis=0) > 0.9 - 3 * error).all()
    assert (np.mean(realised, axis=0) < 0.96).all()  # and not by holding everything


def test_realised_coverage_follows_the_beta_law():
    rng = np.random.default_rng(1)
    realised = []
    for _ in range(300):
        y = np.repeat([0, 1], 50)
        scores = rng.random(100)  # the true class's score is uniform, so coverage is the threshold itself
        p = np.column_stack([1 - scores, scores])
        p[y == 1] = p[y == 1][:, ::-1]
        realised.append(ConformalSets(0.9).fit(p, y).thresholds_)
    c = math.ceil(0.9 * 51)
    law = beta(c, 51 - c)
    for k in (0, 1):
        quantiles = np.quantile([r[k] for r in realised], [0.1, 0.5, 0.9])
        np.testing.assert_allclose(quantiles, law.ppf([0.1, 0.5, 0.9]), atol=0.015)


def test_pooling_recordings_as_if_people_would_miss_the_quiet_ones():
    """Subjects with many easy recordings must not speak for those with one hard one."""
    easy, hard = np.full((40, 2), [0.05, 0.95]), np.full((10, 2), [0.6, 0.4])
    p = np.vstack([np.repeat(easy, 20, axis=0), hard])
    subject = np.r_[np.repeat(np.arange(40), 20), 40 + np.arange(10)]
    y = np.ones(len(p), int)
    assert ConformalSets(0.9).fit(p, y, subject).predict([[0.6, 0.4]])[0, 1]
    assert not ConformalSets(0.9).fit(p, y).predict([[0.6, 0.4]])[0, 1]


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(2, 5), st.sampled_from([0.5, 0.8, 0.9, 0.95]))
def test_with_one_recording_a_subject_it_is_the_class_conditional_p_value(seed, classes, coverage):
    """The oracle is the other definition: a class is in the set if more than 1 - coverage of (its scores and this one) are at least as strange."""
    rng = np.random.default_rng(seed)
    p = softmax(rng.normal(0, 2, (120, classes)), axis=1).round(3)  # rounding makes ties
    y = rng.integers(0, classes, 120)
    fresh = softmax(rng.normal(0, 2, (20, classes)), axis=1).round(3)
    got = ConformalSets(coverage).fit(np.clip(p, 0, 1), y).predict(fresh)
    for i in range(len(fresh)):
        for k in range(classes):
            scores = 1 - p[y == k, k]
            strange = np.sum(scores >= 1 - fresh[i, k]) + 1
            assert got[i, k] == (strange / (len(scores) + 1) > 1 - coverage + 1e-9)


def test_copies_of_a_recording_change_nothing():
    p, y, subject = people(60, np.random.default_rng(2))
    copies = np.repeat(np.arange(60), 1 + np.arange(60) % 5)
    once, often = ConformalSets().fit(p, y, subject), ConformalSets().fit(p[copies], y[copies], subject[copies])
    assert once.thresholds_ == often.thresholds_
    assert once.subjects_ == often.subjects_


def test_sets_do_not_move_with_prevalence():
    rng = np.random.default_rng(3)
    p, y, _ = people(400, rng)
    few = np.flatnonzero((y == 0) | (np.arange(len(y)) % 4 == 0))
    assert ConformalSets().fit(p, y).thresholds_[0] == ConformalSets().fit(p[few], y[few]).thresholds_[0]


@pytest.mark.parametrize(("positives", "vacuous"), [(8, (1,)), (9, ())])
def test_fewer_than_nine_subjects_of_a_class_leave_it_in_every_set_and_it_says_so(positives, vacuous):
    rng = np.random.default_rng(4)
    y = np.r_[np.zeros(50, int), np.ones(positives, int)]
    p = rng.uniform(0.2, 0.8, len(y))
    # Four recordings each do not make more people.
    rows, subject = np.repeat(np.arange(len(y)), 4), np.repeat(np.arange(len(y)), 4)
    sets = ConformalSets(0.9).fit(np.column_stack([1 - p, p])[rows], y[rows], subject)
    assert sets.vacuous_classes_ == vacuous
    assert sets.subjects_ == (50, positives)
    assert sets.predict([[1.0, 0.0]])[0, 1] == bool(vacuous)
    assert subjects_needed(0.9) == 9


def test_a_class_without_a_row_is_vacuous():
    sets = ConformalSets().fit(np.full((30, 3), 1 / 3), np.repeat([0, 1], 15))
    assert sets.vacuous_classes_ == (2,)
    assert sets.subjects_ == (15, 15, 0)


@pytest.mark.parametrize(("members", "status"), [([0, 1], "flagged"), ([1, 0], "not_flagged"), ([1, 1], "indeterminate"), ([0, 0], "indeterminate")])
def test_a_set_reads_as_a_status(members, status):
    assert status_from_set(members) == status


def test_a_round_trip_keeps_thresholds_and_their_absence():
    p, y, subject = people(30, np.random.default_rng(5))
    sets = ConformalSets(0.95).fit(p, y, subject)
    again = ConformalSets.from_dict(json.loads(json.dumps(sets.to_dict(), allow_nan=False)))
    assert (again.coverage, again.thresholds_, again.subjects_) == (sets.coverage, sets.thresholds_, sets.subjects_)
    assert None in again.thresholds_
    assert (again.predict(p) == sets.predict(p)).all()


def test_bad_input_is_named():
    with pytest.raises(InvalidValueError, match="coverage"):
        ConformalSets(90)
    with pytest.raises(InvalidValueError, match="probabilities"):
        ConformalSets().fit([[2.0, -1.0]], [0])
    with pytest.raises(InvalidValueError, match="probabilities"):
        ConformalSets().fit([[np.nan, 0.5]], [0])
    with pytest.raises(InvalidValueError, match="class numbers"):
        ConformalSets().fit([[0.5, 0.5]], [2])
    with pytest.raises(InvalidValueError, match="shape"):
        ConformalSets().fit(np.full((4, 2), 0.5), [0, 1, 0, 1]).predict(np.full((1, 3), 1 / 3))
    with pytest.raises(InvalidValueError, match="two truth values"):
        status_from_set([True, False, False])
    with pytest.raises(BundleSchemaError, match="one threshold"):
        ConformalSets.from_dict({"coverage": 0.9, "thresholds": [0.5, None], "subjects": [10]})


def test_sets_agree_with_an_independent_implementation():
    """With one recording a subject these are the label-conditional sets of the package crepes."""
    from crepes import ConformalClassifier
    from crepes.extras import hinge

    rng = np.random.default_rng(12)
    # 104 of each class: no tenth of 105 is whole, where a set that is just reached is one of convention.
    y, new = rng.permutation(np.repeat([0, 1, 2], 104)), rng.integers(0, 3, 200)
    p, asked = (softmax(rng.normal(size=(len(t), 3)) + 1.5 * np.eye(3)[t], axis=1) for t in (y, new))
    ours = ConformalSets(coverage=0.9).fit(p, y).predict(asked)
    theirs = ConformalClassifier().fit(hinge(p, np.arange(3), y), bins=y)
    sets = np.column_stack([theirs.predict_set(hinge(asked), bins=np.full(len(new), k), confidence=0.9, smoothing=False)[:, k] for k in range(3)])
    assert ours.tolist() == sets.astype(bool).tolist()
