"""Which answer new people justify, and what a recalibration leaves alone."""

import numpy as np
import pytest

from clinical_ser.continual.memory import memory_of
from clinical_ser.continual.recalibration import closed_test, justified, recalibrate
from clinical_ser.errors import InvalidValueError, TrainingError
from clinical_ser.models.training import TrainingOptions, train
from tests.continual.made import DEPRESSION, people, rows_of, thinned


@pytest.fixture(scope="module")
def champion():
    table = people(500, 1, prefix="old")
    model = train(table, DEPRESSION, TrainingOptions(refits=5)).model
    return model, memory_of(model, rows_of(model, table))


def test_a_model_that_is_as_right_as_on_the_day_of_its_release_is_left_alone():
    """Small champions, which are not quite right: what they were not sure of themselves is no drift."""
    steps = []
    for seed in range(12):
        model = train(people(150, 500 + seed, prefix="old"), DEPRESSION, TrainingOptions(refits=2, seed=seed)).model
        steps.append(justified(model, None, people(400, 100 + seed)).step)
    assert steps.count("none") >= 9


def test_another_prevalence_wants_an_intercept_and_a_weaker_signal_a_slope(champion):
    model, _ = champion
    rare = [justified(model, None, thinned(people(300, 200 + i), "depressed", 0.3, i)).step for i in range(5)]
    weak = [justified(model, None, people(300, 300 + i, effect=0.4)).step for i in range(5)]
    assert rare.count("intercept") >= 4
    assert weak.count("slope") >= 4


def test_a_full_update_is_justified_by_what_it_gains_and_by_nothing_else(champion):
    model, memory = champion
    found = justified(model, memory, people(300, 5, effect=0.4))
    assert found.step == "slope"
    assert found.gain.low < 0
    weak = train(people(60, 6, prefix="old"), DEPRESSION, TrainingOptions(refits=2))
    little = memory_of(weak.model, rows_of(weak.model, people(60, 6, prefix="old")))
    found = justified(weak.model, little, people(600, 7))
    assert found.step == "full"
    assert found.gain.low > 0


def test_the_smallest_step_that_is_not_refused_is_taken():
    numbers = {"none": 0, "intercept": 1, "slope": 2}
    assert closed_test({"none": -10.0, "intercept": -9.5, "slope": -9.4}, numbers)[0] == "none"
    assert closed_test({"none": -20.0, "intercept": -9.5, "slope": -9.4}, numbers)[0] == "intercept"
    step, tried = closed_test({"none": -20.0, "intercept": -15.0, "slope": -9.4}, numbers)
    assert step == "slope"
    assert [round(one.p, 4) if one.p is not None else None for one in tried] == [0.0, 0.0008, None]
    with pytest.raises(InvalidValueError):
        closed_test({"none": -1.0, "slope": -1.0}, numbers, level=0.0)


@pytest.mark.parametrize("step", ["intercept", "slope"])
def test_coefficients_and_the_order_of_people_stay_and_probabilities_follow(champion, step):
    model, memory = champion
    rare = thinned(people(500, 8), "depressed", 0.3)
    done = recalibrate(model, memory, rare, step)
    again, rows = done.training.model, rows_of(model, rare)
    assert again.head is model.head
    before, after = model.log_odds(rows.X), again.log_odds(rows.X)
    assert np.array_equal(np.argsort(before), np.argsort(after))
    p = 1 / (1 + np.exp(-after))
    assert abs(p.mean() - (rows.target == 1).mean()) < 0.02
    assert abs(again.class_shares[1] - (rows.target == 1).mean()) < 1e-9
    if step == "intercept":
        assert np.allclose(after - before, (after - before)[0])
    assert np.array_equal(done.memory.heads[0].precision, memory.heads[0].precision)
    assert done.training.out_of_fold.groupby("label")["covered"].mean().min() > 0.8


def test_trees_and_a_model_whose_memory_is_elsewhere_are_recalibrated_too():
    table = people(120, 9, prefix="old")
    trees = train(table, DEPRESSION, TrainingOptions(head="xgboost", refits=2)).model
    done = recalibrate(trees, None, people(120, 10), "slope")
    assert done.memory is None
    assert done.training.model.head is trees.head
    with pytest.raises(TrainingError, match="Without the model's memory"):
        recalibrate(trees, None, people(14, 11), "slope")
    for step in ("none", "full"):
        with pytest.raises(InvalidValueError, match="intercept"):
            recalibrate(trees, None, table, step)
