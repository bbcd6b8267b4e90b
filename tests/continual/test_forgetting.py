"""The matrix of updates by stages, its four figures, and their intervals over people."""

import numpy as np
import pytest

from clinical_ser.continual.forgetting import Stage, measure_forgetting, recall_at_zero
from clinical_ser.errors import InvalidValueError

PEOPLE = 30


def stage(name: str, strengths: list[float], *, seed: int, people: int = PEOPLE, offset: int = 0) -> Stage:
    """Two recordings a person; after update i the class moves the score by `strengths[i]`."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(people), 2)
    y = (who % 3 == 0).astype(np.int64)
    noise = rng.normal(size=people)[who] + 0.5 * rng.normal(size=len(who))
    return Stage(name, y, np.array([f"p{i + offset}" for i in who]), np.array([strength * (y - 0.5) + noise for strength in strengths]))


def three() -> list[Stage]:
    return [stage("a", [3.0, 2.0, 0.5], seed=1), stage("b", [1.0, 3.0, 1.5], seed=2, offset=100), stage("c", [0.0, 1.0, 3.0], seed=3, offset=200)]


def test_the_matrix_and_its_figures_are_those_of_their_definitions():
    from sklearn.metrics import roc_auc_score

    stages = three()
    found = measure_forgetting(stages, replicates=20)
    R = np.array([[roc_auc_score(one.y, one.scores[i]) for one in stages] for i in range(3)])
    assert np.abs(found.matrix - R).max() < 1e-12
    assert found.summary("average").value == pytest.approx(R[2].mean())
    assert found.summary("backward_transfer").value == pytest.approx(((R[2, 0] - R[0, 0]) + (R[2, 1] - R[1, 1])) / 2)
    assert found.summary("forgetting").value == pytest.approx(((max(R[0, 0], R[1, 0]) - R[2, 0]) + (max(R[0, 1], R[1, 1]) - R[2, 1])) / 2)
    assert found.summary("forward_transfer").value == pytest.approx(((R[0, 1] - 0.5) + (R[1, 2] - 0.5)) / 2)
    assert found.cell(1, 2).value == pytest.approx(R[1, 2])


def test_intervals_hold_their_figures_and_shrink_with_people():
    def width(people: int) -> float:
        stages = [stage("a", [3.0, 0.5], seed=1, people=people), stage("b", [0.5, 3.0], seed=2, people=people, offset=1000)]
        figure = measure_forgetting(stages, replicates=200).summary("forgetting")
        assert figure.low < figure.value < figure.high
        return figure.high - figure.low

    assert width(240) < 0.7 * width(30)


def test_two_models_of_the_same_people_are_told_apart_better_than_their_intervals_say():
    forgetful = three()
    firm = [Stage(one.name, one.y, one.subjects, one.scores + 0.8 * (np.arange(3)[:, None] * (one.y - 0.5))) for one in forgetful]
    a, b = (measure_forgetting(stages, replicates=200) for stages in (forgetful, firm))
    difference = a.less(b, "forgetting")
    assert difference.value == pytest.approx(a.summary("forgetting").value - b.summary("forgetting").value)
    assert difference.low > 0
    assert difference.high - difference.low < a.summary("forgetting").high - a.summary("forgetting").low
    assert a.less(a, "average").value == 0.0


def test_other_people_or_other_samples_are_not_paired():
    found = measure_forgetting(three(), replicates=20)
    with pytest.raises(InvalidValueError, match="same people"):
        found.less(measure_forgetting(three(), replicates=30), "average")
    with pytest.raises(InvalidValueError, match="same people"):
        found.less(measure_forgetting([stage("a", [1.0], seed=1)], replicates=20), "average")
    with pytest.raises(InvalidValueError, match="summary"):
        found.summary("amnesia")


def test_a_single_stage_has_an_average_and_nothing_to_forget():
    found = measure_forgetting([stage("only", [2.0], seed=1)], replicates=20)
    assert found.summary("average").value == found.cell(0, 0).value
    assert all(found.summary(name).value is None for name in ("backward_transfer", "forgetting", "forward_transfer"))


def test_a_stage_of_one_class_is_not_defined_and_breaks_nothing():
    healthy = stage("b", [1.0, 1.0], seed=2, offset=100)
    healthy = Stage("b", np.zeros_like(healthy.y), healthy.subjects, healthy.scores)
    found = measure_forgetting([stage("a", [3.0, 1.0], seed=1), healthy], replicates=20)
    assert found.cell(1, 1).value is None
    assert found.cell(1, 0).value is not None
    assert found.summary("average").value is None
    assert found.summary("forgetting").value is not None


def test_recall_at_the_threshold_counts_both_classes_alike():
    y = np.array([0] * 6 + [1] * 2)
    people = np.array([f"p{i}" for i in range(8)])
    scores = np.array([[-1.0, -1.0, -1.0, 0.0, 1.0, 1.0, 1.0, -1.0]])
    found = measure_forgetting([Stage("only", y, people, scores)], measure=recall_at_zero, replicates=20)
    assert found.cell(0, 0).value == pytest.approx((0.5 + 0.5) / 2)


@pytest.mark.parametrize(
    "stages",
    [
        [],
        [stage("a", [1.0, 1.0], seed=1)],
        [stage("a", [1.0, 1.0], seed=1), stage("a", [1.0, 1.0], seed=2)],
        [Stage("a", np.zeros(0, np.int64), np.zeros(0, str), np.zeros((1, 0)))],
        [Stage("a", np.array([0, 1]), np.array(["p"]), np.zeros((1, 2)))],
        [Stage("a", np.array([0, 2]), np.array(["p", "q"]), np.zeros((1, 2)))],
        [Stage("a", np.array([0, 1]), np.array(["p", "q"]), np.array([[np.nan, 1.0]]))],
        [Stage("a", np.array([0, 1]), np.array(["p", "q"]), np.array([[np.inf, 1.0]]))],
    ],
)
def test_stages_that_do_not_fit_are_refused_by_number_and_not_by_person(stages):
    with pytest.raises(InvalidValueError) as caught:
        measure_forgetting(stages, replicates=10)
    assert "'p'" not in str(caught.value)
