"""Statistics by themselves: what they add up, what they refuse, and that nothing of them depends on where the rows are."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clinical_ser.errors import FederationError, InvalidValueError
from federated.at_site import EVERYBODY, symmetric, times_drawn, triangle
from federated.protocols.evaluation import CELLS, auroc_with_bound, frame_of, one_recording_each
from federated.statistics import Ask, contribution, known_statistics
from tests.federated.cohorts import FOLDS, NAMES, cohort_rows, settings


@pytest.fixture(scope="module")
def rows():
    return cohort_rows(120)


@pytest.fixture(scope="module")
def scales(rows):
    mean, scale = np.nanmean(rows.X, axis=0), np.nanstd(rows.X, axis=0)
    return {"mean": np.tile(mean, (FOLDS + 1, 1)), "scale": np.tile(scale, (FOLDS + 1, 1))}


@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_a_symmetric_matrix_survives_the_way_there_and_back(size, seed):
    half = np.random.default_rng(seed).normal(size=(size, size))
    np.testing.assert_array_equal(symmetric(triangle(half + half.T), size), half + half.T)


def test_each_subject_is_judged_by_one_recording_whatever_the_order_of_rows(rows):
    chosen = set(rows.frame["recording"][one_recording_each(rows)])
    turned = np.arange(len(rows))[::-1]
    other = dataclasses.replace(rows, subjects=rows.subjects[turned], frame=rows.frame.iloc[turned].reset_index(drop=True), X=rows.X[turned])
    assert set(other.frame["recording"][one_recording_each(other)]) == chosen
    assert len(chosen) == 120


def test_a_draw_is_the_sites_own_secret_and_of_whole_subjects(rows):
    first, again = times_drawn(rows, 3), times_drawn(rows, 3)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, times_drawn(rows, 4))
    assert not np.array_equal(first, times_drawn(dataclasses.replace(rows, secret=b"of another"), 3))
    for name in np.unique(rows.subjects)[:20]:
        assert len(set(first[rows.subjects == name])) == 1
    assert times_drawn(rows, EVERYBODY).tolist() == [1.0] * len(rows)


@given(st.integers(0, 2**32 - 1))
def test_the_area_of_scores_in_bins_is_within_its_bound(seed):
    from clinical_ser.evaluation.discrimination import auroc
    from clinical_ser.models.binned import BINS, bin_of

    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, 80)
    y[:2] = 0, 1
    p = rng.beta(2, 3, 80) * 0.1
    counts = np.zeros((2, BINS))
    np.add.at(counts, (y, bin_of(p)), 1)
    found, bound = auroc_with_bound(counts)
    assert abs(found - auroc(y, p)) <= bound + 1e-12


def test_counts_of_cells_become_rows_and_give_the_same_counts(rows):
    counts = np.zeros(CELLS)
    counts[1, 150, 1, 0, 1], counts[0, 3, 0, 1, 1] = 3, 2
    frame = frame_of(counts, settings().task, sex="female")
    assert len(frame) == 5
    assert frame["label"].value_counts().to_dict() == {"depressed": 3, "not_depressed": 2}
    assert set(frame["sex"]) == {"female"}
    assert frame.loc[frame["label"] == "depressed", "status"].unique().tolist() == ["flagged"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta": np.full((1, len(NAMES) + 1), np.nan)}, "finite"),
        ({"beta": np.zeros(len(NAMES) + 1)}, "dimensions"),
        ({"mean": np.zeros((FOLDS + 1, 2))}, "mean and scale"),
        ({"left_out": np.array([FOLDS + 3.0])}, "whole numbers"),
        ({"left_out": np.array([0.5])}, "whole numbers"),
    ],
    ids=["nan", "flat", "other features", "no such fold", "half a fold"],
)
def test_a_question_that_does_not_fit_is_refused_before_anything_is_added(rows, scales, change, message):
    asked = scales | {"beta": np.zeros((1, len(NAMES) + 1)), "left_out": np.array([-1.0]), "draw": np.array([-1.0])}
    with pytest.raises(InvalidValueError, match=message):
        contribution(rows, Ask("newton", asked | change))


def test_an_unknown_statistic_is_refused_with_the_known_ones(rows):
    with pytest.raises(InvalidValueError, match="cohort"):
        contribution(rows, Ask("rows"))


def test_a_contribution_beyond_its_range_does_not_leave(rows):
    wild = dataclasses.replace(rows, X=np.where(np.arange(len(NAMES)) == 1, 1e13, rows.X))
    with pytest.raises(FederationError, match="out of range"):
        contribution(wild, Ask("moments", {"centre": np.zeros(len(NAMES))}, {"folds": FOLDS}))


def test_every_statistic_says_what_it_is_and_how_large():
    for name, statistic in known_statistics().items():
        assert statistic.name == name
        assert statistic.bound > 0
        assert type(statistic).__doc__
