"""Weights: a subject counts once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clinical_ser.errors import InvalidValueError
from clinical_ser.models.weights import subject_weights


@given(st.lists(st.sampled_from("abcdef"), min_size=1))
def test_each_subject_weighs_one(groups):
    subject = np.array(groups)
    weight = subject_weights(subject, len(subject))
    for one in set(groups):
        assert weight[subject == one].sum() == pytest.approx(1)
        assert np.ptp(weight[subject == one]) == 0


def test_without_groups_every_row_is_a_subject():
    assert subject_weights(None, 3).tolist() == [1.0, 1.0, 1.0]


def test_another_length_is_refused():
    with pytest.raises(InvalidValueError, match="each of the 3 rows"):
        subject_weights(np.array(["a"]), 3)
