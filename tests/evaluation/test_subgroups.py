"""Groups: who is in which, and when there are too few."""

import numpy as np
import pandas as pd
import pytest

from clinical_ser.errors import InvalidValueError
from clinical_ser.evaluation.subgroups import MINIMUM_OF_A_CLASS, NOT_STATED, SMALL, age_bands, counted, enough, members_of
from tests.evaluation.made import several_classes, two_classes


def test_ages_fall_into_bands():
    bands = age_bands(pd.Series([5, 18, 29.9, 30, 75, 101, np.nan, 60]))
    assert bands[:6].tolist() == ["under 18", "18-29", "18-29", "30-44", "75 and over", "75 and over"]
    assert pd.isna(bands[6])
    assert bands[7] == "60-74"


def test_every_row_is_in_one_group_of_each_column():
    made = two_classes(100)
    members = members_of(made)
    assert {one.column for one in members} == {"sex", "age_band", "site"}
    for column in ("sex", "age_band", "site"):
        rows = np.concatenate([one.rows for one in members if one.column == column])
        assert sorted(rows) == list(range(100))


def test_refused_recordings_are_counted_in_their_group():
    members = {one.value: len(one.refused) for one in members_of(two_classes(50, refused=4), ("sex",))}
    assert members == {"female": 4, "male": 0}


def test_a_group_that_was_refused_as_a_whole_is_still_there():
    made = two_classes(50, refused=6)
    made.refused["sex"] = "other"
    other = {one.value: one for one in members_of(made, ("sex",))}["other"]
    assert (len(other.rows), len(other.refused)) == (0, 6)
    assert not enough(made, other.rows)


def test_a_value_of_few_people_is_not_named():
    """A device called after its owner would say of one person that they are ill."""
    made = two_classes(60)
    made.frame["device"] = ["Jane Doe's phone"] * 4 + ["tablet"] * 56
    assert {one.value for one in members_of(made, ("device",))} == {SMALL, "tablet"}
    assert counted(made)["device"] == {SMALL: 4, "tablet": 56}


def test_people_without_a_value_are_a_group():
    made = two_classes(50)
    made.frame.loc[:9, "sex"] = None
    assert NOT_STATED in {one.value for one in members_of(made, ("sex",))}


def test_whole_numbers_are_cut_into_thirds_too():
    made = two_classes(90)
    made.frame["years"] = np.arange(90)
    assert [len(one.rows) for one in members_of(made, ("years",))] == pytest.approx([30, 30, 30], abs=2)


def test_numbers_are_cut_into_thirds_whose_limits_are_no_persons_value():
    made = two_classes(90)
    made.frame["severity"] = np.random.default_rng(0).normal(size=90)
    members = members_of(made, ("severity",))
    assert [len(one.rows) for one in members] == pytest.approx([30, 30, 30], abs=2)
    exact = {f"{value!r}" for value in made.frame["severity"].tolist()}
    assert not any(word in exact for one in members for word in one.value.split())


@pytest.mark.parametrize("column", ["subject", "recording", "label", "score", "probability.depressed", "nowhere"])
def test_what_names_people_or_the_truth_forms_no_groups(column):
    with pytest.raises(InvalidValueError, match="forms groups"):
        members_of(two_classes(20), (column,))


def test_a_column_of_many_values_is_refused():
    made = two_classes(400)
    made.frame["ward"] = [f"w{i % 50}" for i in range(400)]
    with pytest.raises(InvalidValueError, match="50 different values"):
        members_of(made, ("ward",))


def test_enough_counts_people_and_not_recordings():
    made = two_classes(30, rows_each=20, prevalence=0.5)
    ill = made.frame.loc[made.target == 1, "subject"].nunique()
    assert ill < MINIMUM_OF_A_CLASS
    assert not enough(made, np.arange(len(made.frame)))
    assert enough(two_classes(200, prevalence=0.5), np.arange(200))
    assert enough(several_classes(), np.arange(360))
    assert not enough(several_classes(4, 30), np.arange(120))


def test_covariates_are_counted_by_subject():
    assert counted(two_classes(10, rows_each=3))["sex"] == {"female": 5, "male": 5}
