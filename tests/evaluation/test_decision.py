"""Net benefit against dcurves and by hand, predictive values by Bayes' rule, and a weight of 2 is the row twice."""

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit

from clinical_ser.errors import InvalidValueError
from clinical_ser.evaluation.decision import DEFAULT_THRESHOLDS, DecisionCurve, net_benefit, predictive_values
from clinical_ser.models.prevalence import shift_log_odds

THRESHOLDS = np.array([0.05, 0.1, 0.2, 0.35, 0.5, 0.8])


def rows(n: int = 300, seed: int = 0):
    rng = np.random.default_rng(seed)
    log_odds = rng.normal(-1, 1.2, n)
    return (rng.uniform(size=n) < expit(log_odds)).astype(int), log_odds, rng.integers(0, 4, n)


@pytest.mark.parametrize("prevalence", [None, 0.1, 0.6])
def test_net_benefit_agrees_with_dcurves(prevalence):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import dcurves

        y, log_odds, times = rows()
        frame = pd.DataFrame({"ill": np.repeat(y, times), "model": np.repeat(expit(log_odds), times)})
        theirs = dcurves.dca(data=frame, outcome="ill", modelnames=["model"], thresholds=DEFAULT_THRESHOLDS[:90], prevalence=prevalence)
    curve = DecisionCurve(y, log_odds, DEFAULT_THRESHOLDS[:90], prevalence=prevalence)
    for name, ours in (("model", curve.net_benefit(times)), ("all", curve.treat_all(times))):
        assert ours == pytest.approx(theirs.loc[theirs["model"] == name, "net_benefit"].to_numpy(), abs=1e-12)


@pytest.mark.parametrize("prevalence", [None, 0.1])
def test_curve_is_the_formula_at_its_own_sensitivity_and_specificity(prevalence):
    y, log_odds, weight = rows()
    share = weight[y == 1].sum() / weight.sum()
    expected = []
    for t in THRESHOLDS:
        flagged = log_odds >= logit(t)
        sensitivity, specificity = weight[flagged & (y == 1)].sum() / weight[y == 1].sum(), weight[~flagged & (y == 0)].sum() / weight[y == 0].sum()
        expected.append(float(net_benefit(sensitivity, specificity, t, prevalence or share)))
    assert DecisionCurve(y, log_odds, THRESHOLDS, prevalence=prevalence).net_benefit(weight) == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_weight_of_two_is_the_row_twice(data):
    n = data.draw(st.integers(1, 20))
    ints = lambda high: np.array(data.draw(st.lists(st.integers(0, high), min_size=n, max_size=n)))  # noqa: E731
    y, log_odds, times = ints(1), ints(6) - 3.0, ints(3)
    for prevalence in (None, 0.2):
        weighted = DecisionCurve(y, log_odds, THRESHOLDS, prevalence=prevalence)
        repeated = DecisionCurve(np.repeat(y, times), np.repeat(log_odds, times), THRESHOLDS, prevalence=prevalence)
        np.testing.assert_allclose(weighted.net_benefit(times), repeated.net_benefit(None), atol=1e-13)
        np.testing.assert_allclose(weighted.treat_all(times), repeated.treat_all(None), atol=1e-13)
        np.testing.assert_allclose(weighted.net_benefit(times * 0.3), repeated.net_benefit(None), atol=1e-13)


def test_reweighting_classes_is_a_stated_prevalence():
    y, log_odds, _ = rows()
    weight = np.where(y == 1, 0.2 / y.sum(), 0.8 / (1 - y).sum())
    sampled, stated = (DecisionCurve(y, log_odds, THRESHOLDS, prevalence=prevalence) for prevalence in (None, 0.2))
    assert sampled.net_benefit(weight) == pytest.approx(stated.net_benefit(None))
    assert sampled.treat_all(weight) == pytest.approx(stated.treat_all(None))


def test_calibrated_log_odds_restated_for_a_prevalence_are_never_worse_there_than_not_restated():
    """With many rows drawn from the model's own law, the threshold in restated log-odds is the best one to act at."""
    rng = np.random.default_rng(5)
    log_odds = rng.normal(-0.5, 1.5, 100_000)
    y = (rng.uniform(size=len(log_odds)) < expit(log_odds)).astype(int)
    restated = shift_log_odds(log_odds, float(y.mean()), 0.05)
    right, wrong = (DecisionCurve(y, each, THRESHOLDS, prevalence=0.05).net_benefit(None) for each in (restated, log_odds))
    assert (right > -1e-4).all()
    assert (right >= wrong - 1e-4).all()
    assert wrong.min() < -0.01


def test_a_row_stated_at_exactly_a_threshold_is_acted_on():
    for t in DEFAULT_THRESHOLDS:
        assert DecisionCurve([1], logit([t]), [t], prevalence=None).net_benefit(None) == 1


def test_infinite_log_odds_are_always_and_never_acted_on():
    curve = DecisionCurve([1, 0], [np.inf, -np.inf], DEFAULT_THRESHOLDS, prevalence=None)
    assert curve.net_benefit(None) == pytest.approx(np.full(99, 0.5))


def test_net_benefit_without_a_class():
    curve = DecisionCurve([0, 1], [1.0, 1.0], [0.25, 0.5], prevalence=None)
    assert curve.net_benefit([1, 0]) == pytest.approx([-1 / 3, -1])  # false alarms cost without anybody to find
    stated = DecisionCurve([0, 1], [1.0, 1.0], [0.25, 0.5], prevalence=0.1)
    assert np.isnan(stated.net_benefit([1, 0])).all()
    assert np.isnan(stated.net_benefit([0, 1])).all()
    for undefined in (curve, stated):
        assert np.isnan(undefined.net_benefit([0, 0])).all()
        assert np.isnan(undefined.treat_all([0, 0])).all()


def test_treating_all_breaks_even_at_the_prevalence():
    y, log_odds, weight = rows()
    share = weight[y == 1].sum() / weight.sum()
    assert DecisionCurve(y, log_odds, [share], prevalence=None).treat_all(weight) == pytest.approx([0], abs=1e-12)


def test_predictive_values_are_bayes_rule():
    ppv, npv = predictive_values(0.8, 0.7, [0.05, 0.2, 0.5])
    assert ppv == pytest.approx([0.04 / 0.325, 0.16 / 0.4, 0.4 / 0.55])
    assert npv == pytest.approx([0.665 / 0.675, 0.56 / 0.6, 0.35 / 0.45])


def test_predictive_values_agree_with_counts():
    y, log_odds, weight = rows()
    flagged = log_odds > -1
    cell = {(f, k): weight[(flagged == f) & (y == k)].sum() for f in (True, False) for k in (0, 1)}
    sensitivity = cell[True, 1] / (cell[True, 1] + cell[False, 1])
    specificity = cell[False, 0] / (cell[False, 0] + cell[True, 0])
    ppv, npv = predictive_values(sensitivity, specificity, weight[y == 1].sum() / weight.sum())
    assert ppv == pytest.approx(cell[True, 1] / (cell[True, 1] + cell[True, 0]))
    assert npv == pytest.approx(cell[False, 0] / (cell[False, 0] + cell[False, 1]))


def test_predictive_value_of_an_answer_nobody_gets_is_not_defined():
    ppv, npv = predictive_values(0.0, 1.0, 0.2)
    assert np.isnan(ppv)
    assert npv == pytest.approx(0.8)
    assert np.isnan(predictive_values(np.nan, 0.5, 0.2)[0])


@pytest.mark.parametrize("thresholds", [[], [0.0, 0.5], [0.5, 1.0], [0.5, 0.4], [0.2, 0.2], [[0.1]]])
def test_thresholds_that_are_none_are_refused(thresholds):
    with pytest.raises(InvalidValueError, match="thresholds"):
        DecisionCurve([0, 1], [0.0, 1.0], thresholds, prevalence=None)


def test_shares_outside_are_refused():
    with pytest.raises(InvalidValueError, match="prevalence"):
        DecisionCurve([0, 1], [0.0, 1.0], [0.5], prevalence=1.5)
    with pytest.raises(InvalidValueError, match="prevalence"):
        predictive_values(0.5, 0.5, -0.1)
    with pytest.raises(InvalidValueError, match="threshold"):
        net_benefit(0.5, 0.5, 1.0, 0.1)
