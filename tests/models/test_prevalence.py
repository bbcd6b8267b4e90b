"""Prevalence: Bayes' rule in odds, and nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit, softmax

from clinical_ser.errors import InvalidValueError
from clinical_ser.models.prevalence import shift_log_odds, shift_logits

share = st.floats(0.01, 0.99)


@pytest.mark.parametrize(("stated", "expected"), [(0.50, 0.60), (0.20, 0.27), (0.10, 0.14)])
def test_sixty_percent_at_even_prevalence_is_less_where_fewer_have_it(stated, expected):
    assert expit(shift_log_odds(logit(0.60), 0.50, stated)) == pytest.approx(expected, abs=0.005)


def test_probabilities_calibrated_in_one_population_are_calibrated_in_the_other():
    rng = np.random.default_rng(0)
    y = rng.random(400_000) < 0.08
    x = rng.normal(1.2 * y)
    trained_at_even = 1.2 * x - 0.72  # the log likelihood ratio, which is the log-odds at prevalence 0.5
    p = expit(shift_log_odds(trained_at_even, 0.5, 0.08))
    for low, high in ((0, 0.03), (0.03, 0.1), (0.1, 0.3), (0.3, 1)):
        band = (p >= low) & (p < high)
        assert y[band].mean() == pytest.approx(p[band].mean(), rel=0.08)


@given(st.floats(-30, 30), share, share, share)
def test_shifts_add_up_and_come_back(log_odds, first, second, third):
    through = shift_log_odds(shift_log_odds(log_odds, first, second), second, third)
    assert through == pytest.approx(shift_log_odds(log_odds, first, third), abs=1e-9)
    assert shift_log_odds(shift_log_odds(log_odds, first, second), second, first) == pytest.approx(log_odds, abs=1e-9)


@given(st.floats(-30, 30), share, share)
def test_several_classes_shift_as_two_do(log_odds, trained, stated):
    logits = shift_logits([[0.0, log_odds]], [1 - trained, trained], [1 - stated, stated])
    assert softmax(logits)[0, 1] == pytest.approx(expit(shift_log_odds(log_odds, trained, stated)), abs=1e-12)


def test_shares_must_be_shares():
    for bad in (0.0, 1.0, 20.0, float("nan")):
        with pytest.raises(InvalidValueError, match="stated_prevalence"):
            shift_log_odds(0.0, 0.5, bad)
    for bad in ([0.5, 0.6], [1.0, 0.0], [1.0], [0.2, 0.3, 0.5]):
        with pytest.raises(InvalidValueError, match="trained_shares"):
            shift_logits([[0.0, 0.0]], bad, [0.5, 0.5])
