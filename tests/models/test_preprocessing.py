"""Preprocessing: what is missing, constant or wild in training must not reach a head as anything else than documented."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from clinical_ser.errors import BundleSchemaError, InvalidValueError, TrainingError
from clinical_ser.models.preprocessing import MAX_ABS_Z, Preprocessor

finite = st.floats(-1e6, 1e6, allow_subnormal=False)


def test_missing_becomes_the_median_and_columns_get_mean_0_and_sd_1():
    X = np.array([[1.0, 10.0], [2.0, 20.0], [9.0, np.nan], [4.0, 60.0]])
    preprocessor = Preprocessor().fit(X, ["a", "b"])
    Z = preprocessor.transform(X)
    assert preprocessor.median_.tolist() == [3.0, 20.0]
    filled = np.array([10.0, 20.0, 20.0, 60.0])
    np.testing.assert_allclose(Z[:, 1], (filled - filled.mean()) / filled.std(), atol=1e-15)
    np.testing.assert_allclose(Z.mean(axis=0), 0, atol=1e-15)
    np.testing.assert_allclose(Z.std(axis=0), 1, atol=1e-15)


def test_constant_and_absent_columns_keep_their_place_and_say_nothing():
    X = np.array([[5.0, 1.0, np.nan, 0.1], [5.0, 2.0, np.nan, 0.1], [5.0, 3.0, np.nan, 0.1 + 1e-16]])
    preprocessor = Preprocessor().fit(X, ["constant", "varies", "absent", "rounding"])
    assert preprocessor.dropped_ == ("constant", "absent", "rounding")
    Z = preprocessor.transform([[900.0, 4.0, 7.0, 3.0]])
    assert Z[0, [0, 2, 3]].tolist() == [0.0, 0.0, 0.0]
    assert Z[0, 1] > 1


def test_a_wild_value_is_held_within_the_bound():
    X = np.random.default_rng(0).normal(size=(50, 2))
    Z = Preprocessor().fit(X, ["a", "b"]).transform([[1e9, -1e9]])
    assert Z.tolist() == [[MAX_ABS_Z, -MAX_ABS_Z]]


def test_a_row_does_not_depend_on_the_others_in_its_batch():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(30, 4))
    X[rng.random(X.shape) < 0.2] = np.nan
    preprocessor = Preprocessor().fit(X, list("abcd"))
    one_by_one = np.vstack([preprocessor.transform(row[None]) for row in X])
    assert (one_by_one == preprocessor.transform(X)).all()


def test_infinity_is_refused_by_the_feature_s_name():
    with pytest.raises(InvalidValueError, match="hnr"):
        Preprocessor().fit([[1.0, np.inf], [2.0, 1.0]], ["f0", "hnr"])


@pytest.mark.parametrize("X", [np.zeros((3, 1)), np.zeros(2), np.zeros((3, 3))])
def test_another_width_is_refused(X):
    with pytest.raises(InvalidValueError, match="one column a feature"):
        Preprocessor().fit(X, ["a", "b"])


def test_names_appear_once():
    with pytest.raises(InvalidValueError, match="each name once"):
        Preprocessor().fit(np.eye(2), ["a", "a"])


@pytest.mark.parametrize("X", [np.empty((0, 2)), np.ones((4, 2)), np.full((4, 2), np.nan)])
def test_nothing_to_learn_from_raises(X):
    with pytest.raises(TrainingError):
        Preprocessor().fit(X, ["a", "b"])


@given(arrays(np.float64, (6, 3), elements=finite), arrays(np.float64, (2, 3), elements=finite))
def test_a_round_trip_through_json_changes_no_bit(X, fresh):
    X[0] = [0.0, 1.0, 2.0]  # at least one column varies
    X[1] = [7.0, 8.0, 9.0]
    preprocessor = Preprocessor().fit(X, list("abc"))
    again = Preprocessor.from_dict(json.loads(json.dumps(preprocessor.to_dict(), allow_nan=False)))
    assert (again.transform(fresh) == preprocessor.transform(fresh)).all()
    assert again.to_dict() == preprocessor.to_dict()
    Z = preprocessor.transform(fresh)
    assert np.isfinite(Z).all()
    assert np.abs(Z).max() <= MAX_ABS_Z


@pytest.mark.parametrize(
    "fault",
    [
        {"scale": [1.0]},
        {"scale": [1.0, -1.0]},
        {"mean": [0.0, float("nan")]},
        {"mean": [0.0, "1"]},
        {"median": [0.0, True]},
        {"surprise": 1},
        {"median": None},
    ],
)
def test_a_file_that_does_not_fit_is_refused(fault):
    good = {"feature_names": ["a", "b"], "median": [0.0, 0.0], "mean": [0.0, 0.0], "scale": [1.0, 1.0]}
    assert Preprocessor.from_dict(good).transform([[1.0, 2.0]]).tolist() == [[1.0, 2.0]]
    with pytest.raises(BundleSchemaError, match="PreprocessorState"):
        Preprocessor.from_dict(good | fault)
