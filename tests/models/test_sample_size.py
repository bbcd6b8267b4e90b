"""Sample size: the published criteria, and a warning in words."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from clinical_ser.errors import InvalidValueError
from clinical_ser.models.sample_size import cox_snell_r2, riley_minimum, riley_minimum_from_r2, warning_for


@pytest.mark.parametrize(
    ("auc", "parameters", "simulated"), [(0.75, 10, 669), (0.75, 25, 1672), (0.75, 88, 5886), (0.85, 10, 309), (0.85, 25, 771), (0.85, 88, 2714)]
)
def test_agrees_with_simulated_figures_within_their_monte_carlo_error(auc, parameters, simulated):
    """These figures came from simulated predictors, as in Riley et al. 2021; at a million rows two seeds differ by 1 %."""
    assert riley_minimum(parameters, 0.2, auc).subjects == pytest.approx(simulated, rel=0.015)


def test_published_example_with_a_known_r2():
    """R² 0.288, 24 parameters, prevalence 0.174, the example of Riley et al. 2019: 623 by shrinkage, 662 by optimism, 221 by prevalence."""
    size = riley_minimum_from_r2(24, 0.174, 0.288)
    assert (size.for_shrinkage, size.for_prevalence) == (623, 221)
    assert size.for_optimism == pytest.approx(662, abs=3)
    assert size.subjects == max(size.for_shrinkage, size.for_optimism, size.for_prevalence)
    assert size.events == int(np.ceil(0.174 * size.subjects))


def test_r2_is_that_of_a_logistic_model_fitted_to_many_simulated_people():
    rng = np.random.default_rng(0)
    n, prevalence, auc = 400_000, 0.2, 0.8
    y = (np.arange(n) < prevalence * n).astype(int)
    predictor = rng.normal(y * np.sqrt(2) * 0.8416212335729143)  # the normal quantile of 0.8
    model = LogisticRegression(C=np.inf).fit(predictor[:, None], y)
    null = -(prevalence * np.log(prevalence) + (1 - prevalence) * np.log(1 - prevalence))
    r2 = 1 - np.exp(-2 * (null - log_loss(y, model.predict_proba(predictor[:, None]))))
    assert cox_snell_r2(prevalence, auc) == pytest.approx(r2, rel=0.01)


def test_more_parameters_rarer_outcomes_and_weaker_models_need_more():
    base = riley_minimum(20, 0.2, 0.75).subjects
    assert riley_minimum(40, 0.2, 0.75).subjects == pytest.approx(2 * base, abs=2)
    assert riley_minimum(20, 0.1, 0.75).subjects > base
    assert riley_minimum(20, 0.2, 0.65).subjects > base


def test_the_overall_risk_alone_can_decide():
    size = riley_minimum(1, 0.5, 0.9)
    assert size.subjects == size.for_prevalence == 385


def test_the_warning_names_the_numbers_and_stays_silent_when_there_are_enough():
    sentence = warning_for(60, 88, 0.2, 0.75)
    assert "60 subjects" in sentence
    assert "88 features" in sentence
    assert f"{riley_minimum(88, 0.2, 0.75).subjects:,}" in sentence
    assert warning_for(riley_minimum(88, 0.2, 0.75).subjects, 88, 0.2, 0.75) is None
    assert "no better than chance" in warning_for(10_000, 5, 0.2, 0.48)


@pytest.mark.parametrize("arguments", [(0, 0.2, 0.75), (5, 0.0, 0.75), (5, 1.0, 0.75), (5, 0.2, 0.5), (5, 0.2, 1.0)])
def test_arguments_out_of_range_raise(arguments):
    with pytest.raises(InvalidValueError):
        riley_minimum(*arguments)


def test_an_r2_beyond_what_the_prevalence_allows_raises():
    with pytest.raises(InvalidValueError, match="largest at this prevalence"):
        riley_minimum_from_r2(10, 0.05, 0.5)
