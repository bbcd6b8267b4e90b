"""shap's own object, taken by shap's own plots."""

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import shap

from clinical_ser.explain.effects import Explainer
from clinical_ser.explain.explaining import explain
from clinical_ser.explain.shap_objects import families_as_shap, features_as_shap
from tests.explain.made import model_of, vector_of
from tests.tables import table_of

pytestmark = pytest.mark.filterwarnings("ignore")  # shap's and matplotlib's own


@pytest.fixture(scope="module")
def made():
    table = table_of(120)
    return Explainer(model_of(table, refits=3)), table


def test_a_waterfall_takes_the_families(made):
    explainer, table = made
    explanation = explain(explainer, vector_of(table, 0, explainer.model), target="depressed")
    theirs = families_as_shap(explanation)
    assert isinstance(theirs, shap.Explanation)
    assert theirs.base_values + theirs.values.sum() == pytest.approx(explanation.probability, abs=1e-9)
    shap.plots.waterfall(theirs, show=False)
    assert plt.gcf().axes
    plt.close("all")


def test_a_beeswarm_takes_the_features_and_they_add_up(made):
    explainer, table = made
    theirs = features_as_shap(explainer, table.features, target="depressed", groups=[0] * len(table.frame))
    model = explainer.model
    stated = model.log_odds(table.features) + model.prevalence_shift(None)
    assert theirs.base_values + theirs.values.sum(axis=1) == pytest.approx(stated, abs=1e-6)
    assert theirs.values.shape == np.shape(theirs.data)
    shap.plots.beeswarm(theirs, show=False)
    assert plt.gcf().axes
    plt.close("all")
