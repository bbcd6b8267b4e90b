"""Splits in which no subject stands on both sides.

The subject is the unit: a person is dealt to one fold with everything they said. A split that shares a subject raises, because a
model that has heard the voice before looks 10 to 20 points better than it is (EmoBox's published EmoDB, CREMA-D and TESS folds).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from clinical_ser.errors import InvalidValueError, SplitError, SubjectLeakError

_TRAIN_NAMES = frozenset({"train", "training"})
_DEVELOPMENT_NAMES = frozenset({"dev", "devel", "development", "val", "valid", "validation"})
_TEST_NAMES = frozenset({"test", "testing"})


@dataclass(frozen=True, eq=False)
class Fold:
    """One split of rows: positions to train on, and positions to test on, each sorted, without a subject in common."""

    train: NDArray[np.intp]
    test: NDArray[np.intp]
    name: str


def group_k_fold(subjects: ArrayLike, labels: ArrayLike, k: int = 5, seed: int = 0) -> tuple[Fold, ...]:
    """Deal the subjects to `k` folds so that each has its share of every class, in rows and in subjects.

    Greedy, the heaviest subjects first: each goes to the fold that so far holds the least of what the subject brings. The folds depend
    on who has which labels and on the seed, not on the order of the rows.

    Parameters
    ----------
    subjects
        Shape (rows,).
    labels
        Shape (rows,), none missing.
    k
        Number of folds, at least 2; each class needs as many subjects.
    seed
        Breaks ties between subjects alike.

    Returns
    -------
    k folds. Every row is tested exactly once.

    Raises
    ------
    SplitError
        Fewer than 2 classes, fewer than `k` subjects in a class, or a fold would have to test without one of the classes.

    Examples
    --------
    >>> folds = group_k_fold(["a", "a", "b", "c", "d"], ["sad", "sad", "happy", "happy", "sad"], k=2)
    >>> sorted(len(fold.test) for fold in folds)
    [2, 3]
    """
    who, what = _rows(subjects, labels)
    people, person = np.unique(who, return_inverse=True)
    classes, answer = np.unique(what, return_inverse=True)
    counts = np.zeros((len(people), len(classes)))
    np.add.at(counts, (person, answer), 1.0)
    _check_feasible(counts, classes, k)
    fold_of_person = _deal(counts, k, np.random.default_rng(seed))
    tested = np.stack([counts[fold_of_person == index].sum(axis=0) for index in range(k)])
    if (lacking := np.flatnonzero((tested == 0).any(axis=0))).size:
        raise SplitError(f"No {k} folds found that each hold {[str(classes[index]) for index in lacking]}; use fewer folds.")
    fold_of_row = fold_of_person[person]
    return _checked([_fold(fold_of_row == index, f"{index + 1} of {k}") for index in range(k)], who)


def leave_one_subject_out(subjects: ArrayLike) -> tuple[Fold, ...]:
    """Test each subject once, on a model of all the others.

    Folds come in the order of the sorted subjects and are named by number: a name would travel into reports.

    Raises
    ------
    SplitError
        One subject only.
    """
    who = _subject_rows(subjects)
    people, person = np.unique(who, return_inverse=True)
    if len(people) < 2:
        raise SplitError(f"Leaving one subject out needs at least 2 subjects; there is {len(people)}.")
    return _checked([_fold(person == index, f"{index + 1} of {len(people)}") for index in range(len(people))], who)


def official(assignment: ArrayLike, subjects: ArrayLike) -> tuple[Fold, ...]:
    """Follow the publisher's list: a fold number for each row, or `train`, `dev` and `test`.

    Fold numbers give one fold each, in order. `dev` (or `valid`, `val`) is tested on a model of `train`, and `test` on one of both.

    Parameters
    ----------
    assignment
        Shape (rows,): the manifest's `fold` or `split` column.
    subjects
        Shape (rows,).

    Raises
    ------
    SubjectLeakError
        The published list shares subjects (EmoBox's EmoDB, CREMA-D and TESS; MELD; CH-SIMS). Make a split of your own instead.
    SplitError
        A row without an assignment, one part only, or part names that are mixed or unknown.
    """
    who = _subject_rows(subjects)
    parts = pd.Series(np.asarray(assignment, dtype=object))
    if len(parts) != len(who):
        raise InvalidValueError("assignment", f"{len(parts)} rows", f"{len(who)} rows, one for each subject entry")
    if unassigned := int((parts.isna() | (parts.astype(str).str.strip() == "")).sum()):
        raise SplitError(f"{unassigned} of {len(parts)} rows stand in no part of the official split; leave them out first.")
    names = np.array([_part_name(part) for part in parts], dtype=str)
    found = set(names)
    if found <= {"train", "dev", "test"}:
        return _checked(list(_held_out(names, found)), who)
    if found & {"train", "dev", "test"}:
        raise SplitError("The official split mixes names (train, dev, test) with fold numbers.")
    if len(found) < 2:
        raise SplitError("The official split has one part only; at least 2 are needed.")
    return _checked([_fold(names == name, f"fold {name}") for name in sorted(found, key=_natural)], who)


def check_no_shared_subject(train_subjects: ArrayLike, test_subjects: ArrayLike) -> None:
    """Raise SubjectLeakError if a subject stands on both sides; the message counts them and names nobody."""
    shared = set(_as_text(train_subjects)) & set(_as_text(test_subjects))
    if shared:
        tested = len(set(_as_text(test_subjects)))
        raise SubjectLeakError(f"{len(shared)} of {tested} subjects tested are trained on too; split by subject.")


def check_no_shared_recording(train_recordings: ArrayLike, test_recordings: ArrayLike) -> None:
    """Raise SubjectLeakError if the same audio (sha256) stands on both sides, under whatever subject."""
    shared = set(_as_text(train_recordings)) & set(_as_text(test_recordings))
    if shared:
        raise SubjectLeakError(f"{len(shared)} recordings tested are trained on too, byte for byte; remove the copies or join their subjects.")


def check_fold(fold: Fold, subjects: ArrayLike, recordings: ArrayLike | None = None) -> None:
    """Check a fold against the rows it indexes: no subject and, where digests are given, no recording on both sides."""
    who = _subject_rows(subjects)
    check_no_shared_subject(who[fold.train], who[fold.test])
    if recordings is not None:
        audio = np.array(_as_text(recordings), dtype=str)
        check_no_shared_recording(audio[fold.train], audio[fold.test])


def _rows(subjects: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
    who = _subject_rows(subjects)
    answers = pd.Series(np.asarray(labels, dtype=object))
    if len(answers) != len(who):
        raise InvalidValueError("labels", f"{len(answers)} rows", f"{len(who)} rows, one for each subject entry")
    if missing := int(answers.isna().sum()):
        raise SplitError(f"{missing} of {len(answers)} rows have no label; leave them out first.")
    return who, answers.astype(str).to_numpy(str)


def _subject_rows(subjects: ArrayLike) -> NDArray[np.str_]:
    who = pd.Series(np.asarray(subjects, dtype=object))
    if missing := int(who.isna().sum()):
        raise SplitError(f"{missing} of {len(who)} rows have no subject, so that nobody can say whose they are.")
    if who.empty:
        raise SplitError("There is no row to split.")
    return who.astype(str).to_numpy(str)


def _as_text(values: ArrayLike) -> list[str]:
    return [str(value) for value in np.asarray(values, dtype=object).ravel()]


def _check_feasible(counts: NDArray[np.float64], classes: NDArray[np.str_], k: int) -> None:
    if k < 2:
        raise InvalidValueError("k", k, "at least 2 folds")
    if len(classes) < 2:
        raise SplitError(f"All {len(counts)} subjects have one class only, {[str(name) for name in classes]}; a model needs at least 2.")
    subjects_of_class = (counts > 0).sum(axis=0)
    rarest = int(np.argmin(subjects_of_class))
    if (fewest := int(subjects_of_class[rarest])) < k:
        advice = f"use at most {fewest} folds" if fewest >= 2 else "it cannot be trained on and tested; leave it out or find more"
        raise SplitError(f"Class {str(classes[rarest])!r} has {fewest} subjects, too few for {k} folds; {advice}.")


def _deal(counts: NDArray[np.float64], k: int, random: np.random.Generator) -> NDArray[np.intp]:
    """Assign each subject (a row of `counts`, by class) to a fold.

    Adding subject s to fold f raises the sum of squared fold shares by 2 f·s + s·s, so that the fold least like s is the best. Shares
    are of a class's rows and of its subjects: rows alone would let one talkative subject stand for five.
    """
    present = (counts > 0).astype(float)
    shares = np.hstack([counts / counts.sum(axis=0), present / present.sum(axis=0)])
    order = random.permutation(len(counts))
    order = order[np.argsort(-shares[order].max(axis=1), kind="stable")]
    filled = np.zeros((k, shares.shape[1]))
    people = np.zeros(k)
    fold_of_person = np.empty(len(counts), dtype=np.intp)
    for subject in order:
        # Rounded, so that a last-bit difference between machines cannot deal differently.
        overlap = np.round(filled @ shares[subject], 12)
        best = int(np.lexsort((people, overlap))[0])
        fold_of_person[subject] = best
        filled[best] += shares[subject]
        people[best] += 1
    return fold_of_person


def _fold(tested: NDArray[np.bool_], name: str) -> Fold:
    return Fold(np.flatnonzero(~tested), np.flatnonzero(tested), name)


def _held_out(names: NDArray[np.str_], found: set[str]) -> Iterator[Fold]:
    if "train" not in found or len(found) < 2:
        raise SplitError(f"The official split has {sorted(found)} only; train and at least one of dev and test are needed.")
    if "dev" in found:
        yield Fold(np.flatnonzero(names == "train"), np.flatnonzero(names == "dev"), "dev")
    if "test" in found:
        yield Fold(np.flatnonzero(names != "test"), np.flatnonzero(names == "test"), "test")


def _checked(folds: Sequence[Fold], who: NDArray[np.str_]) -> tuple[Fold, ...]:
    for fold in folds:
        check_no_shared_subject(who[fold.train], who[fold.test])
    return tuple(folds)


def _part_name(part: object) -> str:
    if isinstance(part, float) and part.is_integer():  # a column with gaps reads 1 as 1.0
        return str(int(part))
    name = str(part).strip().lower()
    for plain, names in (("train", _TRAIN_NAMES), ("dev", _DEVELOPMENT_NAMES), ("test", _TEST_NAMES)):
        if name in names:
            return plain
    return name


def _natural(name: str) -> tuple[int, str]:
    return (int(name), "") if re.fullmatch(r"\d{1,9}", name) else (10**9, name)
