"""No split shares a subject, each row is tested once, and what cannot be split says so."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clinical_ser.cohorts.splits import (
    Fold,
    check_fold,
    check_no_shared_recording,
    check_no_shared_subject,
    group_k_fold,
    leave_one_subject_out,
    official,
)
from clinical_ser.errors import InvalidValueError, SplitError, SubjectLeakError


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Subjects with 1 to 6 rows and one class each (as in depression), enough of each class for k folds; rows shuffled."""
    k = draw(st.integers(2, 5))
    subjects, labels = [], []
    for label in draw(st.sampled_from([("no", "yes"), ("angry", "calm", "sad")])):
        for index in range(draw(st.integers(k, k + 8))):
            rows = draw(st.integers(1, 6))
            subjects += [f"{label}{index}"] * rows
            labels += [label] * rows
    order = np.array(draw(st.permutations(range(len(subjects)))))
    return np.array(subjects)[order], np.array(labels)[order], k


def partition_is_exact(folds: tuple[Fold, ...], rows: int) -> None:
    tested = np.concatenate([fold.test for fold in folds])
    assert sorted(tested) == list(range(rows))
    for fold in folds:
        assert sorted([*fold.train, *fold.test]) == list(range(rows))


@given(cohort=cohorts(), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_group_folds_partition_rows_and_keep_subjects_apart(cohort: tuple[np.ndarray, np.ndarray, int], seed: int) -> None:
    subjects, labels, k = cohort
    folds = group_k_fold(subjects, labels, k=k, seed=seed)
    assert len(folds) == k
    partition_is_exact(folds, len(subjects))
    for fold in folds:
        assert not set(subjects[fold.train]) & set(subjects[fold.test])
        assert set(labels[fold.test]) == set(labels[fold.train]) == set(labels)


@given(cohort=cohorts())
@settings(max_examples=100, deadline=None)
def test_each_fold_has_its_share_of_every_class(cohort: tuple[np.ndarray, np.ndarray, int]) -> None:
    """Subjects of a class differ by at most 2 between folds, its rows by at most what two subjects can bring (6 each)."""
    subjects, labels, k = cohort
    for label in set(labels):
        of_label = [fold.test[labels[fold.test] == label] for fold in group_k_fold(subjects, labels, k=k)]
        people = [len(set(subjects[rows])) for rows in of_label]
        assert max(people) - min(people) <= 2
        assert max(map(len, of_label)) - min(map(len, of_label)) <= 12


def test_equal_subjects_are_dealt_evenly() -> None:
    """40 with and 60 without, 3 rows each, 5 folds: 8 and 12 in each, not roughly."""
    subjects = np.repeat([f"s{index}" for index in range(100)], 3)
    labels = np.repeat(["yes"] * 40 + ["no"] * 60, 3)
    for fold in group_k_fold(subjects, labels, k=5, seed=3):
        assert len(fold.test) == 60
        assert (labels[fold.test] == "yes").sum() == 24


def test_one_talkative_subject_does_not_stand_for_many() -> None:
    """By rows alone, the one with 500 would be alone against the 9 others."""
    subjects = ["loud"] * 500 + [f"s{index}" for index in range(9) for _ in range(10)] + [f"n{index}" for index in range(10)]
    labels = ["yes"] * 590 + ["no"] * 10
    for fold in group_k_fold(subjects, labels, k=2):
        people = {subjects[row] for row in fold.test if labels[row] == "yes"}
        assert len(people) >= 3


def test_subjects_with_several_classes_are_split_evenly() -> None:
    """Actors say everything: 24 of them, 8 emotions, 6 folds of 4."""
    subjects = np.repeat(np.arange(24).astype(str), 60)
    labels = np.tile(np.repeat([f"e{index}" for index in range(8)], [4, 8, 8, 8, 8, 8, 8, 8]), 24)
    for fold in group_k_fold(subjects, labels, k=6):
        assert len(fold.test) == 240
        assert len(set(subjects[fold.test])) == 4


@given(cohort=cohorts(), seed=st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_folds_depend_on_the_seed_and_not_on_the_order_of_rows(cohort: tuple[np.ndarray, np.ndarray, int], seed: int) -> None:
    subjects, labels, k = cohort
    order = np.random.default_rng(seed).permutation(len(subjects))
    first = group_k_fold(subjects, labels, k=k, seed=seed)
    second = group_k_fold(subjects[order], labels[order], k=k, seed=seed)
    for one, other in zip(first, second, strict=True):
        assert sorted(one.test) == sorted(order[other.test])


def test_another_seed_gives_other_folds() -> None:
    subjects, labels = np.arange(40).astype(str), np.tile(["a", "b"], 20)
    tests = {tuple(group_k_fold(subjects, labels, k=4, seed=seed)[0].test) for seed in range(10)}
    assert len(tests) == 10


def test_rows_come_as_sorted_positions() -> None:
    for fold in group_k_fold(["b", "a", "b", "a", "c", "d"], ["x", "y", "x", "y", "x", "y"], k=2):
        assert fold.train.dtype == fold.test.dtype == np.intp
        assert (np.diff(fold.train) > 0).all()
        assert (np.diff(fold.test) > 0).all()


@pytest.mark.parametrize(
    ("subjects", "labels", "k", "message"),
    [
        (["a", "b", "c"], ["x", "x", "x"], 2, r"one class only, \['x'\]"),
        (["a", "a", "a"], ["x", "y", "x"], 2, "has 1 subjects, too few for 2 folds; it cannot"),
        (["a", "b", "c", "d", "e"], ["x", "x", "x", "y", "y"], 3, "Class 'y' has 2 subjects, too few for 3 folds; use at most 2"),
        (["a", None], ["x", "y"], 2, "1 of 2 rows have no subject"),
        (["a", "b"], ["x", None], 2, "1 of 2 rows have no label"),
        ([], [], 2, "no row"),
    ],
)
def test_what_cannot_be_split_says_why(subjects: list[str], labels: list[str], k: int, message: str) -> None:
    with pytest.raises(SplitError, match=message):
        group_k_fold(subjects, labels, k=k)


def test_wrong_calls_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="at least 2"):
        group_k_fold(["a", "b"], ["x", "y"], k=1)
    with pytest.raises(InvalidValueError, match="one for each"):
        group_k_fold(["a", "b"], ["x"], k=2)
    with pytest.raises(InvalidValueError, match="one for each"):
        official(["1"], ["a", "b"])


class TestLeaveOneSubjectOut:
    @given(subjects=st.lists(st.sampled_from("abcdef"), min_size=2, max_size=40).filter(lambda names: len(set(names)) > 1))
    @settings(max_examples=60, deadline=None)
    def test_each_subject_is_tested_once_and_alone(self, subjects: list[str]) -> None:
        folds = leave_one_subject_out(subjects)
        partition_is_exact(folds, len(subjects))
        assert [{subjects[row] for row in fold.test} for fold in folds] == [{name} for name in sorted(set(subjects))]

    def test_names_nobody(self) -> None:
        assert [fold.name for fold in leave_one_subject_out(["anna", "bob"])] == ["1 of 2", "2 of 2"]

    def test_one_subject_only(self) -> None:
        with pytest.raises(SplitError, match="at least 2 subjects; there is 1"):
            leave_one_subject_out(["a", "a"])


class TestOfficial:
    def test_fold_numbers_become_folds_in_order(self) -> None:
        numbers: Iterator[object] = iter([10, 2, 1, 2])
        folds = official(list(numbers), ["a", "b", "c", "b"])
        assert [fold.name for fold in folds] == ["fold 1", "fold 2", "fold 10"]
        assert [fold.test.tolist() for fold in folds] == [[2], [1, 3], [0]]
        partition_is_exact(folds, 4)

    def test_numbers_read_from_a_column_with_gaps_are_the_same_numbers(self) -> None:
        assert [fold.name for fold in official([1.0, 2.0], ["a", "b"])] == ["fold 1", "fold 2"]

    def test_test_is_held_out_from_train_and_dev(self) -> None:
        folds = official(["Train", "validation", "test", "train"], ["a", "b", "c", "d"])
        assert [(fold.name, fold.train.tolist(), fold.test.tolist()) for fold in folds] == [("dev", [0, 3], [1]), ("test", [0, 1, 3], [2])]

    def test_train_and_test_alone(self) -> None:
        assert [(fold.name, fold.train.tolist()) for fold in official(["train", "test"], ["a", "b"])] == [("test", [0])]

    @pytest.mark.parametrize("parts", [["train", "test", "train"], ["1", "2", "1"]])
    def test_a_published_split_that_shares_a_subject_raises(self, parts: list[str]) -> None:
        with pytest.raises(SubjectLeakError, match=r"1 of \d subjects"):
            official(parts, ["a", "a", "b"])

    @pytest.mark.parametrize(
        ("parts", "message"),
        [
            (["train", None], "1 of 2 rows stand in no part"),
            (["1", " "], "1 of 2 rows stand in no part"),
            (["1", "1"], "one part only"),
            (["train", "train"], "train and at least one"),
            (["dev", "test"], "train and at least one"),
            (["train", "2"], "mixes"),
        ],
    )
    def test_an_incomplete_split_says_why(self, parts: list[object], message: str) -> None:
        with pytest.raises(SplitError, match=message):
            official(parts, ["a", "b"])


class TestLeaks:
    def test_shared_subjects_are_counted_and_not_named(self) -> None:
        with pytest.raises(SubjectLeakError, match="2 of 3 subjects") as caught:
            check_no_shared_subject(["anna", "bob", "cem"], ["bob", "anna", "dora"])
        assert not any(name in str(caught.value) for name in ("anna", "bob", "cem", "dora"))
        check_no_shared_subject(["anna"], ["bob"])

    def test_numbers_and_their_text_are_the_same_subject(self) -> None:
        with pytest.raises(SubjectLeakError):
            check_no_shared_subject([1, 2], ["2"])

    def test_a_copied_recording_is_a_leak_under_any_subject(self) -> None:
        with pytest.raises(SubjectLeakError, match="1 recordings"):
            check_no_shared_recording(["f00", "ba5"], ["ba5"])
        fold = Fold(np.array([0]), np.array([1]), "x")
        check_fold(fold, ["a", "b"], ["f00", "ba5"])
        with pytest.raises(SubjectLeakError, match="byte for byte"):
            check_fold(fold, ["a", "b"], ["f00", "f00"])
        with pytest.raises(SubjectLeakError, match="subjects"):
            check_fold(fold, ["a", "a"])
