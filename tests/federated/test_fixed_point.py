"""Sums of words are sums of numbers, for everything that a statistic's bound lets through."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clinical_ser.errors import FederationError
from federated.fixed_point import COARSE_BITS, FINE_BITS, NARROW_BITS, WIDE_TOTAL, decode, encode, is_wide


def summed(parts, *, wide):
    """Return the total of some sites' numbers, as it comes out of their words."""
    words = [encode(np.asarray(part, float), wide=wide) for part in parts]
    return decode(np.sum(words, axis=0, dtype=np.uint64), wide=wide)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4), min_size=1, max_size=20))
def test_a_narrow_total_is_right_to_half_a_unit_a_site(parts):
    exact = np.array([math.fsum(column) for column in zip(*parts, strict=True)])
    allowed = (len(parts) / 2 + 1) * 2.0**-NARROW_BITS + 2 * np.spacing(np.abs(exact))
    assert (np.abs(summed(parts, wide=False) - exact) <= allowed).all()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.one_of(st.floats(-1e12, 1e12), st.floats(-1e-3, 1e-3)), min_size=4, max_size=4), min_size=1, max_size=8))
def test_a_wide_total_is_right_to_rounding_of_a_float(parts):
    exact = np.array([float(sum(map(_fraction, column))) for column in zip(*parts, strict=True)])
    allowed = len(parts) * 2.0 ** -(COARSE_BITS + FINE_BITS) + 2 * np.spacing(np.abs(exact))
    assert (np.abs(summed(parts, wide=True) - exact) <= allowed).all()


def _fraction(value):
    from fractions import Fraction

    return Fraction(value)


def test_whole_numbers_add_up_exactly():
    counts = [[3.0, 0.0, 100_000.0], [7.0, 1.0, 12.0], [0.0, 0.0, 999.0]]
    for wide in (False, True):
        assert summed(counts, wide=wide).tolist() == [10.0, 1.0, 101_011.0]


def test_negative_and_positive_numbers_cancel_to_zero():
    for wide in (False, True):
        assert summed([[0.1, -1e5], [-0.1, 1e5]], wide=wide).tolist() == [0.0, 0.0]


def test_the_order_of_sites_does_not_change_a_bit_of_the_total():
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(12, 50)) * 10.0 ** rng.integers(-6, 6, (12, 1))
    for wide in (False, True):
        assert summed(parts, wide=wide).tobytes() == summed(parts[::-1], wide=wide).tobytes()


def test_the_largest_contributions_of_all_sites_fit():
    for bound, sites in ((2.0**30, 1), (2e6, 1000), (1e9, 1000), (1e12, 1000)):
        wide = is_wide(bound, sites)
        for value in (bound, -bound):
            assert summed([[value]] * sites, wide=wide)[0] == value * sites


def test_a_total_that_could_wrap_around_is_refused_before_anybody_adds():
    assert not is_wide(1e6, 1000)
    assert is_wide(1e7, 1000)
    for bound, sites in ((WIDE_TOTAL, 1), (1e13, 999), (1.0, 1001), (float("inf"), 1), (0.0, 3), (-1.0, 3), (float("nan"), 3)):
        with pytest.raises(FederationError):
            is_wide(bound, sites)


def test_a_value_of_an_awkward_size_keeps_its_small_digits_in_the_wide_form():
    small = 2.0**-49
    found = summed([[1e9], [-1e9 + 2.0**-20], [small]], wide=True)[0]
    assert found == 2.0**-20 + small
