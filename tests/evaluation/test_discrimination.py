"""Ranking and answers: against scikit-learn with row weights, by hand where scikit-learn has no opinion, and a weight of 2 is the row twice."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    recall_score,
    roc_auc_score,
    roc_curve,
)

from clinical_ser.errors import InvalidValueError
from clinical_ser.evaluation.discrimination import (
    Confusion,
    Ranking,
    accuracy_of,
    auroc,
    average_precision,
    f1_macro_of,
    f1_weighted_of,
    recalls_of,
    unweighted_average_recall,
    unweighted_average_recall_of,
)

GRID = np.linspace(0, 1, 21)


def scored(n: int = 400, *, decimals: int = 1, seed: int = 0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    return y, np.round(rng.normal(y, 1.0), decimals), rng.integers(0, 4, n) * rng.uniform(0.2, 1.0, n)


@st.composite
def few_rows(draw):
    n = draw(st.integers(2, 25))
    ints = lambda high: np.array(draw(st.lists(st.integers(0, high), min_size=n, max_size=n)))  # noqa: E731
    return ints(1), ints(4).astype(float), ints(3)


@pytest.mark.parametrize("decimals", [0, 1, 12])
def test_ranking_agrees_with_scikit_learn_under_weights_with_and_without_ties(decimals):
    y, score, weight = scored(decimals=decimals)
    ranking = Ranking(y, score)
    assert ranking.auroc(weight) == pytest.approx(roc_auc_score(y, score, sample_weight=weight), abs=1e-12)
    assert ranking.average_precision(weight) == pytest.approx(average_precision_score(y, score, sample_weight=weight), abs=1e-12)
    assert ranking.auroc(None) == auroc(y, score) == pytest.approx(roc_auc_score(y, score), abs=1e-12)
    assert ranking.average_precision(None) == average_precision(y, score) == pytest.approx(average_precision_score(y, score), abs=1e-12)


def test_roc_curve_goes_straight_between_scikit_learns_thresholds():
    y, score, weight = scored(decimals=12)
    false, true, _ = roc_curve(y, score, sample_weight=weight, drop_intermediate=False)
    grid = np.random.default_rng(1).uniform(size=50)  # off every vertical piece
    assert Ranking(y, score).true_positive_rates(weight, grid) == pytest.approx(np.interp(grid, false, true), abs=1e-12)


def test_roc_curve_takes_the_upper_end_of_a_vertical_piece():
    ranking = Ranking([1, 0, 1, 1, 0], [5, 4, 3, 2, 1])
    assert ranking.true_positive_rates(None, [0, 0.25, 0.5, 1]).tolist() == pytest.approx([1 / 3, 1 / 3, 1, 1])


def test_roc_curve_is_the_diagonal_within_a_tie():
    assert Ranking([0, 1, 0, 1], np.zeros(4)).true_positive_rates(None, GRID) == pytest.approx(GRID)


def test_roc_point_on_a_step_is_not_lost_to_rounding():
    """Seven of ten negatives are flagged before the last positive: at a rate of 0.7 it is found, in whatever way 0.7 was made."""
    ranking = Ranking([0] * 7 + [1] + [0] * 3, -np.arange(11.0))
    weight = np.full(11, 0.1)
    assert ranking.true_positive_rates(weight, [0.7, 1 - 0.3, 0.1 * 7]).tolist() == [1, 1, 1]


def test_precision_is_interpolated_in_counts_not_straight():
    """Davis & Goadrich's example: from 5 true and 5 false positives to 10 true and 30 false, of 20 positives."""
    y = [1] * 5 + [0] * 5 + [1] * 5 + [0] * 25 + [1] * 10
    score = [3] * 10 + [2] * 30 + [1] * 10
    found = Ranking(y, score).precisions(None, np.array([5, 6, 7, 8, 9, 10]) / 20)
    assert found == pytest.approx([5 / 10, 6 / 16, 7 / 22, 8 / 28, 9 / 34, 10 / 40])


def test_precision_at_recall_zero_is_the_limit():
    assert Ranking([1, 0], [2, 1]).precisions(None, [0, 1]).tolist() == [1, 1]
    assert Ranking([0, 1], [2, 1]).precisions(None, [0, 1]).tolist() == [0, 0.5]
    assert Ranking([0, 1, 0, 1], [2, 2, 1, 1]).precisions(None, [0, 1]).tolist() == [0.5, 0.5]


def test_precision_and_roc_tell_of_the_same_rule():
    y, score, weight = scored(decimals=0)  # with both classes at every score the curve has no flat piece
    ranking = Ranking(y, score)
    false = np.random.default_rng(2).uniform(0.05, 0.95, 30)
    recall = ranking.true_positive_rates(weight, false)
    positives, negatives = weight[y == 1].sum(), weight[y == 0].sum()
    expected = recall * positives / (recall * positives + false * negatives)
    assert ranking.precisions(weight, recall) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=150, deadline=None)
@given(few_rows())
def test_a_weight_of_two_is_the_row_twice(rows):
    y, score, times = rows
    weighted, repeated = Ranking(y, score), Ranking(np.repeat(y, times), np.repeat(score, times))
    for method in (
        lambda r, w: r.auroc(w),
        lambda r, w: r.average_precision(w),
        lambda r, w: r.true_positive_rates(w, GRID),
        lambda r, w: r.precisions(w, GRID),
    ):
        np.testing.assert_allclose(method(weighted, times), method(repeated, None), atol=1e-12, equal_nan=True)
    answer = score.astype(int)
    matrix = Confusion(y, answer, 5).matrix(times)
    assert np.array_equal(matrix, Confusion(np.repeat(y, times), np.repeat(answer, times), 5).matrix(None))


@settings(max_examples=50, deadline=None)
@given(few_rows())
def test_ranking_knows_order_only_and_turning_it_turns_the_area(rows):
    y, score, times = rows
    area = auroc(y, score, times)
    np.testing.assert_allclose(auroc(y, np.exp(score), times), area, atol=1e-12)
    np.testing.assert_allclose(auroc(y, -score, times), 1 - area, atol=1e-12)
    np.testing.assert_allclose(auroc(1 - y, score, times), 1 - area, atol=1e-12)
    np.testing.assert_allclose(auroc(y, score, times * 7.5), area, atol=1e-12)


def test_ranking_without_a_class_is_not_defined():
    y, score = np.array([0, 0, 1, 1]), np.arange(4.0)
    for weight in ([0, 0, 1, 1], [0, 0, 0, 0]):
        assert np.isnan(Ranking(y, score).auroc(weight))
        assert np.isnan(Ranking(y, score).true_positive_rates(weight, GRID)).all()
    no_positive = [1, 1, 0, 0]
    assert np.isnan(Ranking(y, score).auroc(no_positive))
    assert np.isnan(Ranking(y, score).average_precision(no_positive))
    assert np.isnan(Ranking(y, score).precisions(no_positive, GRID)).all()
    assert np.isnan(auroc(np.array([], int), np.array([])))


def test_constant_scores_tell_nothing():
    ranking = Ranking([0, 0, 0, 1], np.ones(4))
    assert (ranking.auroc(None), ranking.average_precision(None)) == (0.5, 0.25)
    assert ranking.precisions(None, GRID) == pytest.approx(np.full(21, 0.25))


def test_infinite_scores_are_an_order():
    assert auroc([0, 1, 0, 1], [-np.inf, np.inf, 0.0, np.inf]) == 1


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Ranking([0, 1], [0.5]), "two arrays"),
        (lambda: Ranking([0, 2], [0.5, 0.1]), r"one of \[0, 1\]"),
        (lambda: Ranking([0, 1], [np.nan, 0.1]), "NaN"),
        (lambda: Ranking([0, 1], [0.2, 0.1]).auroc([1.0]), "one weight for each"),
        (lambda: Ranking([0, 1], [0.2, 0.1]).auroc([1.0, -1.0]), "0 or more"),
        (lambda: Ranking([0, 1], [0.2, 0.1]).auroc([1.0, np.nan]), "0 or more"),
        (lambda: Ranking([0, 1], [0.2, 0.1]).precisions(None, [1.2]), "from 0 to 1"),
        (lambda: Confusion([0, 3], [0, 1], 3), "from 0 to 2"),
        (lambda: Confusion([0, 1], [0], 3), "two arrays"),
    ],
)
def test_what_does_not_fit_is_refused(make, match):
    with pytest.raises(InvalidValueError, match=match):
        make()


def classed(classes: int = 4, n: int = 300, seed: int = 0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    answer = np.where(rng.uniform(size=n) < 0.6, y, rng.integers(0, classes, n))
    return y, answer, rng.integers(0, 3, n) * rng.uniform(0.2, 1.0, n)


@pytest.mark.parametrize("classes", [2, 4])
def test_confusion_and_its_figures_agree_with_scikit_learn_under_weights(classes):
    y, answer, weight = classed(classes)
    matrix = Confusion(y, answer, classes).matrix(weight)
    assert matrix == pytest.approx(confusion_matrix(y, answer, sample_weight=weight))
    assert accuracy_of(matrix) == pytest.approx(accuracy_score(y, answer, sample_weight=weight))
    assert recalls_of(matrix) == pytest.approx(recall_score(y, answer, sample_weight=weight, average=None))
    assert unweighted_average_recall_of(matrix) == pytest.approx(balanced_accuracy_score(y, answer, sample_weight=weight))
    for of, average in ((f1_macro_of, "macro"), (f1_weighted_of, "weighted")):
        assert of(matrix) == pytest.approx(f1_score(y, answer, sample_weight=weight, average=average, zero_division=0))


def test_classes_that_nobody_has_or_is_answered_are_left_out():
    """Class 1 is never true but answered, class 2 true but never answered, class 3 neither."""
    y, answer = np.array([0, 0, 0, 2, 2]), np.array([0, 0, 1, 0, 1])
    matrix = Confusion(y, answer, 4).matrix(None)
    assert recalls_of(matrix) == pytest.approx([2 / 3, np.nan, 0, np.nan], nan_ok=True)
    assert unweighted_average_recall_of(matrix) == unweighted_average_recall(y, answer) == pytest.approx(1 / 3)
    assert f1_macro_of(matrix) == pytest.approx(f1_score(y, answer, average="macro", zero_division=0))
    assert f1_weighted_of(matrix) == pytest.approx(f1_score(y, answer, average="weighted", zero_division=0))


def test_figures_of_no_answers_are_not_defined():
    empty = Confusion([0, 1], [0, 1], 2).matrix([0, 0])
    assert np.isnan([of(empty) for of in (accuracy_of, unweighted_average_recall_of, f1_macro_of, f1_weighted_of)]).all()
    assert np.isnan(recalls_of(empty)).all()


def test_renaming_classes_changes_nothing():
    y, answer, weight = classed()
    renamed = np.array([2, 0, 3, 1])
    matrix, other = Confusion(y, answer, 4).matrix(weight), Confusion(renamed[y], renamed[answer], 4).matrix(weight)
    for of in (accuracy_of, unweighted_average_recall_of, f1_macro_of, f1_weighted_of):
        assert of(other) == pytest.approx(of(matrix), abs=1e-14)
