"""Is the test a test? Guards that look for what makes an evaluation too good, and say what they found without naming anybody.

Each guard gives a finding with a verdict; `not_checked` says what it lacks, so that a check that was not made cannot pass for one that was.
"""

import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from pydantic import Field
from scipy.special import ndtr
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits
from xgboost import XGBClassifier

from clinical_ser.cohorts.gating import PREFIX
from clinical_ser.cohorts.splits import Fold, group_k_fold
from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.errors import InvalidValueError, SplitError
from clinical_ser.evaluation.discrimination import Confusion, Ranking, unweighted_average_recall_of
from clinical_ser.evaluation.figure import Figure
from clinical_ser.evaluation.intervals import bootstrap
from clinical_ser.features import catalogue
from clinical_ser.models.weights import subject_weights
from clinical_ser.strict import Strict

Verdict = Literal["pass", "warn", "fail", "not_checked"]
Pipeline = Callable[[NDArray[np.float64], NDArray[Any], NDArray[np.intp], NDArray[np.intp]], NDArray[np.float64]]
"""(X, y, train positions, test positions) to the scores of the test rows, shape (test,) or (test, classes)."""


class LeakFinding(Strict):
    """What one guard found; no id and no path is in it."""

    name: str
    """`shared_subjects`, `same_audio`, `near_identical`, `fitted_outside`, `nuisance` or `pipeline`."""
    verdict: Verdict
    statement: str
    """A plain sentence; for `not_checked` why, and what to give."""
    counts: dict[str, int] = Field(default_factory=dict)
    figure: Figure | None = None
    """How well the nuisance columns alone tell the label."""


def check_leaks(
    test: FeatureTable,
    labels: ArrayLike,
    *,
    training: FeatureTable | None = None,
    fold: ArrayLike | None = None,
    model: Figure | None = None,
    whole: FeatureTable | None = None,
    seed: int = 0,
) -> tuple[LeakFinding, ...]:
    """Run every guard that needs no pipeline, in order.

    Parameters
    ----------
    test
        The evaluated rows: those that the gate let through.
    labels
        Shape (rows,): the class of each row of `test`, None where there is none.
    training
        The rows that the model was trained on, for an external evaluation.
    fold
        Shape (rows,): the fold in which each row was answered, for out-of-fold predictions.
    model
        The model's own AUROC or UAR on these rows, which the nuisance columns are held against.
    whole
        The table that `test` was taken from, before the gate: standardising leaves its mark over all rows that took part, and a part of them
        does not show it. None: `test` itself.

    Raises
    ------
    InvalidValueError
        `labels` or `fold` has another length than the table.
    """
    classes = _rows_of("labels", labels, len(test.frame))
    folds = None if fold is None else _rows_of("fold", fold, len(test.frame)).astype(str)
    return (
        shared_subjects(test, training=training, fold=folds),
        same_audio(test, training=training, fold=folds),
        near_identical(test, training=training, fold=folds),
        fitted_outside(test, labels=classes, training=training, fold=folds, whole=whole),
        nuisance(test.frame, classes, model=model, seed=seed),
    )


def _rows_of(what: str, values: ArrayLike, rows: int) -> NDArray[np.object_]:
    given = np.asarray(values, dtype=object)
    if given.shape != (rows,):
        raise InvalidValueError(what, f"array of shape {given.shape}", f"one entry for each of the {rows} rows of the table")
    return given


def _count(n: int, noun: str) -> str:
    """Write a number with its noun, in the plural where that is due."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


# --- one subject, or one recording, on both sides ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Sides:
    """Rows of test and training, one after the other, and on which side of which split each stands."""

    subjects: NDArray[np.str_]
    recordings: NDArray[np.str_]
    side: NDArray[np.int_]
    """One number a fold, or 0 for test and 1 for training; all 0 where there is no split."""
    split: bool

    @classmethod
    def of(cls, test: FeatureTable, training: FeatureTable | None, fold: ArrayLike | None) -> "_Sides":
        frames = [test.frame] if training is None else [test.frame, training.frame]
        subjects, recordings = (np.concatenate([frame[name].to_numpy(str) for frame in frames]) for name in ("subject", "recording"))
        within = np.zeros(len(test.frame), int) if fold is None else np.unique(np.asarray(fold, str), return_inverse=True)[1]
        trained = np.full(len(subjects) - len(within), within.max(initial=0) + 1)
        return cls(subjects, recordings, np.concatenate([within, trained]), training is not None or fold is not None)


def shared_subjects(test: FeatureTable, *, training: FeatureTable | None = None, fold: ArrayLike | None = None) -> LeakFinding:
    """Look for subjects in test and training, or in two folds.

    A model that has heard a voice before looks 10 to 20 points better than it is (EmoBox's published folds of EmoDB, CREMA-D and TESS).
    Names that differ only in capitals, spaces or Unicode form are a warning: two people, or one spelled twice.
    """
    sides = _Sides.of(test, training, fold)
    tested = len(np.unique(test.subjects))
    if not sides.split:
        return LeakFinding(
            name="shared_subjects",
            verdict="not_checked",
            statement="No split was given, so nobody can say who was trained on; give the training table, or the fold of each row.",
            counts={"subjects": tested},
        )
    shared = _on_several_sides(sides.subjects, sides.side)
    alike = _on_several_sides(np.array([_plain(name) for name in sides.subjects.tolist()]), sides.side)
    counts = {"subjects": tested, "shared": len(shared), "spelled_alike": len(alike) - len(shared)}
    if len(shared):
        text = f"{_count(len(shared), 'subject')} of {tested:,} tested stand on both sides of the split; split by subject."
        return LeakFinding(name="shared_subjects", verdict="fail", statement=text, counts=counts)
    if counts["spelled_alike"] > 0:
        text = f"{_count(counts['spelled_alike'], 'name')} on both sides of the split differ only in capitals or spaces; are they one person?"
        return LeakFinding(name="shared_subjects", verdict="warn", statement=text, counts=counts)
    return LeakFinding(
        name="shared_subjects", verdict="pass", statement=f"None of the {_count(tested, 'subject')} tested was trained on.", counts=counts
    )


def _plain(name: str) -> str:
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())


def _on_several_sides(names: NDArray[np.str_], side: NDArray[np.int_]) -> NDArray[np.str_]:
    pairs = pd.DataFrame({"name": names, "side": side}).drop_duplicates()
    counted = pairs["name"].value_counts()
    return counted.index[counted > 1].to_numpy(str)


def same_audio(test: FeatureTable, *, training: FeatureTable | None = None, fold: ArrayLike | None = None) -> LeakFinding:
    """Look for one recording (sha256 of its samples) under two subjects, on both sides of a split, or twice for one subject.

    The last is a warning: it is no leak, but it is counted twice. RAVDESS as published holds such a pair.
    """
    sides = _Sides.of(test, training, fold)
    rows = pd.DataFrame({"recording": sides.recordings, "subject": sides.subjects, "side": sides.side})
    twice = rows[rows.duplicated("recording", keep=False)].groupby("recording")
    subjects, places = twice["subject"].nunique(), twice["side"].nunique()
    counts = {
        "recordings": len(np.unique(sides.recordings)),
        "of_two_subjects": int((subjects > 1).sum()),
        "on_both_sides": int((places > 1).sum()),
        "twice_for_one_subject": int(((subjects == 1) & (places == 1)).sum()),
    }
    if not len(subjects):
        text = f"No two of the {_count(len(rows), 'row')} hold the same samples."
        return LeakFinding(name="same_audio", verdict="pass", statement=text, counts=counts)
    verdict: Verdict = "fail" if counts["of_two_subjects"] or counts["on_both_sides"] else "warn"
    text = (
        f"Sample for sample the same audio: {_count(counts['of_two_subjects'], 'recording')} under two subjects, {counts['on_both_sides']:,} on both "
        f"sides of the split, {counts['twice_for_one_subject']:,} more than once for one subject. Remove the copies, or join their subjects."
    )
    return LeakFinding(name="same_audio", verdict=verdict, statement=text, counts=counts)


# --- near-identical recordings -----------------------------------------------------------------------------------------------------------

AGREEING_SHARE = 0.30
"""The distance of two recordings is that within which this share of their features agrees. A codec, a gain or a cut moves some features far and
leaves the others nearly where they were, so a low quantile tells copies well. Of 20 distances tried on RAVDESS (quantiles, plain, trimmed and
logarithmic means, with and without balance of families), at the same expected false pairs, quantiles of 0.2 to 0.3 and the trimmed geometric mean
found most, much alike; this is the simplest whose tail follows the same law in RAVDESS and in the simulated cohort."""
MAX_DISTANCE = 0.035
"""In SD of the feature over the table. The closest two different recordings lay at 0.048 in RAVDESS (one actor, one sentence, twice; 1,036,079
pairs), at 0.054 among 600 simulated subjects and at 0.082 in emodb-2s."""
DENSITY_EXPONENT = 7.0
"""The number of pairs closer than d grows as d to this power (fitted: 7.1 in RAVDESS, 6.8 in the simulated cohort), which says how near strangers
come to each other in a table of many."""
EXPECTED_FALSE_PAIRS = 0.05
"""Expected pairs of different recordings below the limit, by that law, whatever the size of the table."""
_NEIGHBOUR = 5
_CANDIDATES = 50
_COMPONENTS = 16
_MAX_TIED = 0.1
_MIN_FEATURES = 20
_MIN_ROWS = 10
_CHUNK_ROWS = 2_000


def near_identical(test: FeatureTable, *, training: FeatureTable | None = None, fold: ArrayLike | None = None) -> LeakFinding:
    """Look for altered copies of one recording under two names, from the features alone.

    Two rows are copies when 30 % of their features (loudness left out) agree within `MAX_DISTANCE`, or within less where the table is so dense
    that strangers come as near. Candidates are each row's 50 nearest in 16 principal components; 50,000 rows take 12 s on 2 cores.

    Found among the 1,440 clips of RAVDESS, 4 s each (`benchmarks/near_duplicates.py`, 103 copies of each kind, no false pair): all copies cut by
    50 or 200 ms or padded with silence; 94-100 % with another gain, noise at 40 dB SNR or through 64 kbit/s MP3; 70-81 % through 32 kbit/s MP3,
    24 kbit/s Opus, 8 kHz, or several of these at once. Not found are three of four with noise at 20 dB SNR, and different parts of one recording.
    With 50,000 rows the limit is about 0.02: all cut copies, nine of ten with another gain, and a quarter to a half of the third group lie below.

    A pair of two subjects, or across a split, fails; a pair within one subject is a warning. Pairs with the same samples are `same_audio`'s.
    """
    sides = _Sides.of(test, training, fold)
    values = test.features if training is None else np.vstack([test.features, _same_columns(training, test)])
    voiced = [i for i, name in enumerate(test.feature_names) if catalogue.get(name).family != "loudness"]
    scaled = _scaled(values[:, voiced])
    counts = {"recordings": len(values), "features": scaled.shape[1]}
    if len(values) < _MIN_ROWS or scaled.shape[1] < _MIN_FEATURES:
        text = (
            f"Copies are told by at least {_MIN_FEATURES} features that vary, other than loudness, over at least {_MIN_ROWS} rows; there are "
            f"{scaled.shape[1]} over {len(values)}. Extract with the sets egemaps or praat."
        )
        return LeakFinding(name="near_identical", verdict="not_checked", statement=text, counts=counts)
    pairs = _copies(scaled)
    pairs = pairs[sides.recordings[pairs[:, 0]] != sides.recordings[pairs[:, 1]]]
    two_people, across = (key[pairs[:, 0]] != key[pairs[:, 1]] for key in (sides.subjects, sides.side))
    counts |= {"of_two_subjects": int(two_people.sum()), "on_both_sides": int(across.sum()), "within_subject": int((~two_people & ~across).sum())}
    if not len(pairs):
        text = f"No two of {_count(len(values), 'recording')} are near enough to be copies of each other."
        return LeakFinding(name="near_identical", verdict="pass", statement=text, counts=counts)
    text = (
        f"{_count(len(pairs), 'pair')} of recordings so alike that they are copies of one (re-encoded, trimmed, louder, noisier): "
        f"{counts['of_two_subjects']:,} of two subjects, {counts['on_both_sides']:,} across the split, {counts['within_subject']:,} of one "
        "subject on one side. Listen to them; remove the copies, or join their subjects."
    )
    return LeakFinding(name="near_identical", verdict="fail" if (two_people | across).any() else "warn", statement=text, counts=counts)


def _same_columns(training: FeatureTable, test: FeatureTable) -> NDArray[np.float64]:
    if absent := set(test.feature_names) - set(training.feature_names):
        raise InvalidValueError("training", f"a table without {len(absent)} of the test's features", "a table with the same feature sets")
    return training.frame[list(test.feature_names)].to_numpy(np.float64)


def _scaled(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Take each column from its median in robust SDs; columns that are mostly missing, without spread, or often tied are left out."""
    kept = []
    for column in values.T:
        known = column[np.isfinite(column)]
        if len(known) < max(2, len(column) / 2):
            continue
        low, middle, high = np.quantile(known, [0.25, 0.5, 0.75])
        tied = np.unique(known, return_counts=True)[1].max() / len(known)
        # Features that tie between any two recordings (no pause in either) would count as agreement.
        if high > low and (tied <= _MAX_TIED or len(known) < 2 / _MAX_TIED):
            kept.append((column - middle) / ((high - low) / 1.349))
    return np.array(kept, np.float32).T.reshape(len(values), len(kept))


def _copies(scaled: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return the pairs of rows that are copies, shape (pairs, 2), each once."""
    near = _nearest(scaled)
    apart = _distances(scaled, near)
    fifth = np.sort(apart, axis=1)[:, min(_NEIGHBOUR, apart.shape[1]) - 1]
    # In a cloud of points the nearest is within r times the fifth nearest with probability 4 r^p; each pair is met from both its ends.
    density = (EXPECTED_FALSE_PAIRS / (2 * len(scaled))) ** (1 / DENSITY_EXPONENT)
    limit = min(MAX_DISTANCE, float(np.median(fifth)) * density)
    row, which = np.nonzero(apart <= limit)
    return np.unique(np.sort(np.stack([row, near[row, which]], axis=1), axis=1), axis=0)


def _nearest(scaled: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return each row's nearest others in principal components, shape (rows, candidates)."""
    held = np.clip(np.nan_to_num(scaled), -3, 3)
    components = min(_COMPONENTS, *held.shape)
    places = PCA(components, svd_solver="covariance_eigh").fit_transform(held).astype(np.float32)
    n = min(_CANDIDATES, len(held) - 1)
    return np.asarray(NearestNeighbors(n_neighbors=n, algorithm="brute").fit(places).kneighbors(return_distance=False), np.intp)


def _distances(scaled: NDArray[np.float32], near: NDArray[np.intp]) -> NDArray[np.float32]:
    """Return the distance of each row to each of its candidates; infinite where too few features are there in both."""
    found = np.empty(near.shape, np.float32)
    for start in range(0, len(near), _CHUNK_ROWS):
        part = slice(start, start + _CHUNK_ROWS)
        differences = np.abs(scaled[part, None, :] - scaled[near[part]])
        missing = np.isnan(differences)
        differences[missing] = np.inf
        both = (~missing).sum(axis=2)
        differences.sort(axis=2)
        place = (AGREEING_SHARE * both).astype(int)[..., None]
        found[part] = np.where(both >= _MIN_FEATURES, np.take_along_axis(differences, place, axis=2)[..., 0], np.inf)
    return found


# --- preprocessing fitted outside the fold -----------------------------------------------------------------------------------------------

ROUNDING = 2e-4
"""In SD. The mean of n standardised values written with 4 decimals errs by 2.9e-5 / sqrt(n); this is seven times that, and an honest column
meets it once in a thousand times or less even with few rows; hence `_MIN_COLUMNS`."""
TOO_EVEN = 0.25
"""Kolmogorov's sqrt(n) D: values drawn from the very distribution stay below it with probability 3e-8, ranks and quantile transforms always do."""
_MIN_COLUMNS = 3
_MIN_GROUPS = 3
"""Groups (or all, where there are fewer) in which a column has to differ and yet have mean 0. Values that are counts or signs cancel in a single
subject now and then, and related columns do so together; in three subjects they hardly do. Where nothing differs a mean of 0 says nothing: without
a pause, all measures of pauses are 0."""
_MIN_EVEN_ROWS = 50
_MIN_FILLED = 5
_FILL_OVER_NEXT = 3
_EXACT = 1e-6
_GROUPS = ("site", "device")

_Flags = NDArray[np.bool_]


def fitted_outside(
    test: FeatureTable,
    *,
    labels: ArrayLike | None = None,
    training: FeatureTable | None = None,
    fold: ArrayLike | None = None,
    whole: FeatureTable | None = None,
) -> LeakFinding:
    """Look for the marks that preprocessing leaves when it is fitted on the rows that are tested.

    Only marks that no honest measurement bears: columns whose mean is 0 to rounding over all rows, or within each subject, fold, site, device or
    class; most columns scaled exactly to 0-1, to a largest magnitude of 1, or to median 0 and IQR 1; columns spaced too evenly, or too exactly
    normal, to be a sample (ranks, quantile transforms; up to about 10,000 rows, where scikit-learn's transform begins to draw a part); and gaps
    filled with exactly the mean or median of the tested rows. What was fitted on a larger set of rows than is here, and selection of features,
    leave no such mark: `probe_pipeline` finds those.

    Parameters
    ----------
    test, training
        The tested rows and, for an external evaluation, the rows trained on. Scaling both together is found; scaling both by constants of the
        training rows is as it should be, and passes.
    labels, fold
        Shape (rows of `test`,): class and fold of each.
    whole
        The table before the gate, if `test` is a part of it.
    """
    if training is not None:
        _same_columns(training, test)
    tables = [test] if whole is None or len(whole.frame) == len(test.frame) else [test, whole]
    found = [
        *(mark for table in tables for mark in _marks(table.features, table.frame)),
        *_marks_by({"class": labels, "fold": fold}, test.features),
        *(_marks_of_all(np.vstack([table.features, _same_columns(training, test)])) for table in tables if training is not None),
    ]
    columns: dict[str, _Flags] = {}
    for name, flags in (item for marks in found for item in marks.items()):
        columns[name] = columns.get(name, np.zeros(len(test.feature_names), bool)) | flags
    counts = {name: int(flags.sum()) for name, flags in columns.items() if flags.any()}
    features = len(test.feature_names)
    if not counts:
        text = (
            f"None of the {_count(features, 'feature column')} bears the mark of scaling, ranking or filling over the tested rows. "
            "Selection of features leaves no mark; `probe_pipeline` tests for it."
        )
        return LeakFinding(name="fitted_outside", verdict="pass", statement=text, counts={"features": features})
    told = "; ".join(f"{_MARKS[name]} ({_count(n, 'column')})" for name, n in counts.items())
    text = f"Features were transformed with the help of the rows that are tested: {told}. Fit every step inside the fold, on training rows only."
    return LeakFinding(name="fitted_outside", verdict="fail", statement=text, counts={"features": features} | counts)


_MARKS = {
    "centred": "mean 0 over all rows",
    "scaled": "scaled exactly to the range, or the quartiles, of all rows",
    "ranked": "spaced as ranks or a quantile transform of all rows",
    "filled": "gaps filled with exactly the mean or median of all rows",
    "centred_by_subject": "mean 0 within each subject, which takes a tested subject's other recordings",
    "centred_by_fold": "mean 0 within each fold",
    "centred_by_class": "mean 0 within each class, which takes the labels",
    "centred_by_site": "mean 0 within each site",
    "centred_by_device": "mean 0 within each device",
}


def _marks(values: NDArray[np.float64], frame: pd.DataFrame) -> Iterator[Mapping[str, _Flags]]:
    yield _marks_of_all(values)
    keys = {"subject": frame["subject"].to_numpy(object)}
    keys |= {name: frame[name].to_numpy(object) for name in _GROUPS if name in frame}
    yield from _marks_by(keys, values)


def _marks_of_all(values: NDArray[np.float64]) -> Mapping[str, _Flags]:
    if len(values) < _MIN_ROWS:
        return {}
    several = {"centred": _centred(values, np.zeros(len(values), int))}
    most = {"scaled": _scaled_exactly(values)}
    single = {"ranked": _each(_is_ranked, values), "filled": _each(_is_filled, values)}
    single = {name: flags for name, flags in single.items() if flags.any()}
    return {**_at_least(several, _MIN_COLUMNS), **_at_least(most, max(_MIN_COLUMNS, values.shape[1] // 2)), **single}


def _marks_by(keys: Mapping[str, ArrayLike | None], values: NDArray[np.float64]) -> Iterator[Mapping[str, _Flags]]:
    for name, key in keys.items():
        if key is None:
            continue
        code, levels = pd.factorize(np.asarray(key, dtype=object))
        if len(levels) > 1:
            yield _at_least({f"centred_by_{name}": _centred(values[code >= 0], code[code >= 0])}, _MIN_COLUMNS)


def _at_least(flags: Mapping[str, _Flags], columns: int) -> Mapping[str, _Flags]:
    return {name: found for name, found in flags.items() if found.sum() >= columns}


def _centred(values: NDArray[np.float64], code: NDArray[np.int_]) -> _Flags:
    """Tell the columns whose mean is 0 to rounding in every group with at least two values, and whose values differ in `_MIN_GROUPS` of them."""
    spread = _spread(values)
    groups = pd.DataFrame(values).groupby(code)
    n, means = groups.count().to_numpy(), np.abs(groups.mean().to_numpy())
    near = means <= ROUNDING / np.sqrt(np.maximum(n, 1)) * spread
    differing = groups.max().to_numpy() - groups.min().to_numpy() > ROUNDING * spread
    enough = differing.sum(axis=0) >= min(_MIN_GROUPS, len(n))
    return np.asarray(enough & (near | (n < 2)).all(axis=0))


def _spread(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return pd.DataFrame(values).std(ddof=0).fillna(0.0).to_numpy()


def _scaled_exactly(values: NDArray[np.float64]) -> _Flags:
    known = pd.DataFrame(values)
    low, high = known.min().to_numpy(), known.max().to_numpy()
    quartiles = known.quantile([0.25, 0.5, 0.75]).to_numpy()
    to_range = (np.abs(low) <= _EXACT) & (np.abs(high - 1) <= _EXACT)
    to_largest = np.abs(np.maximum(np.abs(low), np.abs(high)) - 1) <= _EXACT
    to_quartiles = (np.abs(quartiles[1]) <= _EXACT) & (np.abs(quartiles[2] - quartiles[0] - 1) <= _EXACT)
    return np.asarray(to_range | to_largest | to_quartiles)


def _each(told: Callable[[NDArray[np.float64]], bool], values: NDArray[np.float64]) -> _Flags:
    return np.array([told(column[np.isfinite(column)]) for column in values.T], bool)


def _is_ranked(values: NDArray[np.float64]) -> bool:
    n = len(values)
    if n < _MIN_EVEN_ROWS or len(np.unique(values)) < 0.9 * n:
        return False
    ordered = np.sort(values)
    uniform = (ordered - ordered[0]) / (ordered[-1] - ordered[0])
    middle = (np.arange(n) + 0.5) / n
    return bool(min(np.abs(uniform - middle).max(), np.abs(ndtr(ordered) - middle).max()) * np.sqrt(n) < TOO_EVEN)


def _is_filled(values: NDArray[np.float64]) -> bool:
    if len(values) < _MIN_ROWS:
        return False
    levels, repeats = np.unique(values, return_counts=True)
    most = int(np.argmax(repeats))
    fill, times = levels[most], repeats[most]
    others, next_most = values[values != fill], int(np.delete(repeats, most).max(initial=0))
    if times < max(_MIN_FILLED, _FILL_OVER_NEXT * next_most) or len(others) < _MIN_ROWS or len(levels) - 1 < 0.9 * len(others):
        return False
    # A median of an odd number is one of the values, and so among those that equal the fill.
    centres = np.array([others.mean(), np.median(others), np.median(np.append(others, fill))])
    return bool((np.abs(centres - fill) <= _EXACT * others.std()).any())


# --- a pipeline under test ---------------------------------------------------------------------------------------------------------------

_POISON = 1e3
_SAME = 1e-6


def probe_pipeline(
    pipeline: Pipeline, X: NDArray[np.float64], y: NDArray[Any], *, subjects: ArrayLike, folds: Sequence[Fold] | None = None, seed: int = 0
) -> LeakFinding:
    """Poison what a pipeline must not look at, and see whether its answers change.

    In each fold the features of half of the tested rows become absurd; the scores of the other half have to stay as they were, or something was
    fitted on tested rows (a scaler, an imputation, a selection of features, a normalisation over the test batch). Then the labels of all tested
    rows become wrong ones; no score may change. A step may be fitted on everything and still pass only if neither moves it.

    Parameters
    ----------
    pipeline
        Called as `pipeline(X, y, train, test)` with all rows and positions; returns the scores of the test rows. It is called four times a fold.
    X, y, subjects
        Shapes (rows, features), (rows,), (rows,).
    folds
        As `cohorts.splits` makes them; None: five folds by subject.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X, y, who = rng.normal(size=(40, 3)), np.arange(40) % 2, np.arange(40)
    >>> def centred_on_everything(X, y, train, test):
    ...     return (X - X.mean(axis=0))[test, 0]
    >>> probe_pipeline(centred_on_everything, X, y, subjects=who).verdict
    'fail'
    >>> probe_pipeline(lambda X, y, train, test: (X - X[train].mean(axis=0))[test, 0], X, y, subjects=who).verdict
    'pass'
    """
    target = np.asarray(y)
    chosen = group_k_fold(subjects, target, seed=seed) if folds is None else folds
    rng = np.random.default_rng(seed)
    counts = {"folds": len(chosen), "rows": 0, "moved_by_features": 0, "moved_by_labels": 0}
    for fold in chosen:
        poisoned = rng.permutation(len(fold.test)) < len(fold.test) / 2
        if len(fold.test) < 2:
            poisoned[:] = False
        scores, again = (np.asarray(pipeline(X.copy(), target.copy(), fold.train, fold.test), np.float64) for _ in range(2))
        if _moved(scores, again).any():
            text = "The pipeline does not give the same scores twice, so that nothing can be said; give its random parts a fixed seed."
            return LeakFinding(name="pipeline", verdict="not_checked", statement=text, counts=counts)
        absurd = np.asarray(pipeline(_absurd(X, fold.test[poisoned], rng), target.copy(), fold.train, fold.test), np.float64)
        mislabelled = np.asarray(pipeline(X.copy(), _wrong(target, fold.test), fold.train, fold.test), np.float64)
        counts["rows"] += len(fold.test)
        counts["moved_by_features"] += int(_moved(scores, absurd)[~poisoned].sum())
        counts["moved_by_labels"] += int(_moved(scores, mislabelled).sum())
    features, labels = counts["moved_by_features"], counts["moved_by_labels"]
    if not features and not labels:
        text = f"Scores of {_count(counts['rows'], 'tested row')} depend neither on other tested rows nor on tested labels."
        return LeakFinding(name="pipeline", verdict="pass", statement=text, counts=counts)
    text = (
        f"Something is fitted on tested rows: absurd features in other tested rows moved {_count(features, 'score')}, wrong labels of tested "
        f"rows moved {labels:,}, of {counts['rows']:,}. Fit every step on the training positions only."
    )
    return LeakFinding(name="pipeline", verdict="fail", statement=text, counts=counts)


def _absurd(X: NDArray[np.float64], rows: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.float64]:
    """Put values far beyond every column's range, all on one side so that medians and quantiles move too."""
    poisoned = np.array(X, np.float64)
    known = pd.DataFrame(poisoned)
    high, low = known.max().fillna(0.0).to_numpy(), known.min().fillna(0.0).to_numpy()
    width = np.where(high > low, high - low, 1.0)
    poisoned[rows] = high + _POISON * width * rng.uniform(1, 2, size=(len(rows), X.shape[1]))
    return poisoned


def _wrong(y: NDArray[Any], rows: NDArray[np.intp]) -> NDArray[Any]:
    """Give each of these rows the next class (or, of a number without classes, the next larger value)."""
    values, code = np.unique(y, return_inverse=True)
    wrong = y.copy()
    wrong[rows] = values[(code[rows] + 1) % len(values)]
    return wrong


def _moved(first: NDArray[np.float64], second: NDArray[np.float64]) -> _Flags:
    near = np.isclose(first, second, rtol=_SAME, atol=_SAME * max(float(np.nanstd(first)), _SAME), equal_nan=True)
    return np.asarray(~near.reshape(len(first), -1).all(axis=1))


# --- labels told by what is no voice -----------------------------------------------------------------------------------------------------

STRONG = 0.6
"""Share of the way from chance to perfect: an AUROC of 0.80. A published study of speech screening for depression (Kintsugi, Ann Fam Med 2025:
sensitivity 71 %, specificity 74 %) lies on the binormal curve of that area, so nuisance that is surely better could pass for a working product."""
SURELY = 0.99
"""Level of the interval that has to exclude chance. Folds share training subjects, which an interval of their answers does not know of: excluded
by the 95 % interval, chance was refused in up to 7 % of cohorts without any association."""
_FOLDS = 5
_MIN_SUBJECTS = 5
_REPLICATES = 500
_NAMED = 3
_ONE_KIND_OF_LEVEL = 5
_MAX_LEVELS = 30
_QUANTILES = 200
_KNOTS = (0.25, 0.5, 0.75)

_MEASURED = {
    "duration_s": "duration",
    f"{PREFIX}level_dbfs": "level",
    f"{PREFIX}snr_db": "signal-to-noise ratio",
    f"{PREFIX}snr_is_bound": "whether the room is heard alone",
    f"{PREFIX}clipped_fraction": "clipping",
    f"{PREFIX}bandwidth_hz": "bandwidth",
    f"{PREFIX}codec": "codec",
    f"{PREFIX}bit_rate_bps": "bit rate",
    f"{PREFIX}nonfinite_fraction": "samples that are no number",
    f"{PREFIX}dc_offset": "DC offset",
    f"{PREFIX}complete": "whether the file is complete",
    "sample_rate": "sample rate",
    "sample_rate_hz": "sample rate",
    "sampling_rate": "sample rate",
    "channels": "channels",
    "bit_depth": "bit depth",
    "file_size": "file size",
    "format": "file format",
}
"""What the recording itself carries. Not the gate's `speech_s`, `voiced_fraction` and `f0_bimodality`: those measure the voice."""
_MAY_BE_SIGN = ("duration", "level", "signal-to-noise ratio", "bit rate")
_SURROUNDING = {"site": "site", "device": "device", "task": "task", "language": "language"}


@dataclass(frozen=True, eq=False)
class _Nuisance:
    """One column that says nothing of the voice, but perhaps of the label."""

    words: str
    values: NDArray[Any]
    """Shape (rows,): float64 with NaN, or text with None."""
    carried: bool = False
    """Whether the recording itself carries it, so that a model could hear it."""
    may_be_sign: bool = False
    """Whether illness moves it too: slow speech is long, soft speech is faint (and small, in a lossless file)."""

    @property
    def numeric(self) -> bool:
        return self.values.dtype.kind == "f"


def nuisance(
    frame: pd.DataFrame, labels: ArrayLike, *, classes: Sequence[str] | None = None, model: Figure | None = None, seed: int = 0
) -> LeakFinding:
    """Predict the label from what is no voice, and say how well that goes.

    Looked at: duration, level, noise, clipping, bandwidth, codec, bit rate, DC offset, sample rate; order in the file (over all, and within a
    subject); `recorded_at`; site, device, task and language. Not sex and age, which are traits of the person (subgroup figures are for them), not
    columns of your own, which may be made from the label, and not the features. The probe is the mean of a logistic regression on piecewise linear
    terms and of boosted trees, answers each subject by fits on others, and weighs subjects alike.

    Parameters
    ----------
    frame
        A feature table's frame, of the evaluated rows.
    labels
        Shape (rows,), None where there is none.
    classes
        The classes in the task's order; None: those in `labels`, sorted.
    model
        The model's AUROC (two classes) or UAR on these rows.

    Returns
    -------
    LeakFinding
        `warn` where the probe surely beats chance (`SURELY`), else `pass`; and from `warn` to `fail` where its lower bound goes `STRONG` of the way
        from chance to perfect, where it does as well as the model, or where it reaches the model's lower bound without what illness may move
        (duration, level, noise, bit rate). A label may be told rightly: slow or soft speech is a sign of depression, and makes recordings long or
        faint; the statement names what tells most, so that a person can judge. With labels that these columns do not tell, `warn` came up in 7 of
        900 simulated cohorts and `fail` in none (10 to 240 subjects, 1 to 12 recordings each, 2 to 8 classes, labels of subjects or of recordings).
    """
    given = pd.Series(_rows_of("labels", labels, len(frame)))
    known = given.notna().to_numpy()
    names = tuple(classes) if classes is not None else tuple(sorted(given[known].astype(str).unique()))
    rows = frame.loc[known].reset_index(drop=True)
    y = pd.Categorical(given[known].astype(str), categories=list(names)).codes.astype(np.int64)
    subjects = rows["subject"].to_numpy(str)
    fewest = min((len(np.unique(subjects[y == k])) for k in range(len(names))), default=0)
    columns = _nuisance_columns(rows)
    counts = {"recordings": len(rows), "subjects": len(np.unique(subjects)), "columns": len(columns)}
    if len(names) < 2 or fewest < _MIN_SUBJECTS or (y < 0).any() or not columns:
        text = (
            f"The probe needs two classes with {_MIN_SUBJECTS} subjects each, and a column that varies; the rarest of {len(names)} classes has "
            f"{fewest}, and {len(columns)} columns vary."
        )
        return LeakFinding(name="nuisance", verdict="not_checked", statement=text, counts=counts)
    try:
        probe = _Probe(y, subjects, len(names), seed)
    except SplitError as error:
        return LeakFinding(name="nuisance", verdict="not_checked", statement=f"The probe cannot be cross-validated: {error}", counts=counts)
    # Fits this small spend seven to twelve times their work on waiting threads; one thread is faster by the clock too.
    with threadpool_limits(limits=1):
        return _judged(probe, columns, counts, model)


def _judged(probe: "_Probe", columns: Sequence[_Nuisance], counts: dict[str, int], model: Figure | None) -> LeakFinding:
    figure, beats_chance = probe.figure(columns)
    reached = f"Without the voice, from {_count(len(columns), 'nuisance column')} alone, {probe.title} is {figure}"
    if not beats_chance:
        text = f"{reached}: not surely better than chance."
        return LeakFinding(name="nuisance", verdict="pass", statement=text, counts=counts, figure=figure)
    rest = [column for column in columns if not column.may_be_sign]
    verdict: Verdict = "fail" if _explains_it(probe, figure, rest, model) else "warn"
    text = f"{reached}{f'; of the model it is {model}' if model is not None else ''}. {_what_tells(probe, columns)}"
    return LeakFinding(name="nuisance", verdict=verdict, statement=text, counts=counts, figure=figure)


def _explains_it(probe: "_Probe", figure: Figure, rest: Sequence[_Nuisance], model: Figure | None) -> bool:
    """Tell whether nuisance is enough to explain what the model does."""
    if figure.value is None or figure.low is None or figure.low >= probe.chance + STRONG * (1 - probe.chance):
        return True
    if model is None or model.value is None or model.low is None:
        return False
    if figure.value >= model.value:
        return True
    # A lower bound is soon reached in a small cohort, so it is held only against what illness does not move.
    other, beats_chance = probe.figure(rest) if rest else (figure, False)
    return beats_chance and other.value is not None and other.value >= model.low


def _what_tells(probe: "_Probe", columns: Sequence[_Nuisance]) -> str:
    alone = sorted(((probe.value([column]), column.words) for column in columns), key=lambda item: -item[0])
    told = [f"What tells most, each alone: {', '.join(f'{words} {value:.2f}' for value, words in alone[:_NAMED])}."]
    parts = {
        "What the recordings themselves carry reaches {:.2f}; the rest a model cannot hear.": [column for column in columns if column.carried],
        "Without duration, level, noise and bit rate, which illness may move, it is {:.2f}.": [
            column for column in columns if not column.may_be_sign
        ],
    }
    told += [text.format(probe.value(some)) for text, some in parts.items() if 0 < len(some) < len(columns)]
    return " ".join(told)


def _nuisance_columns(frame: pd.DataFrame) -> list[_Nuisance]:
    found = [_Nuisance(words, _values(frame[name]), True, words in _MAY_BE_SIGN) for name, words in _MEASURED.items() if name in frame]
    found += [_Nuisance(words, _values(frame[name])) for name, words in _SURROUNDING.items() if name in frame]
    order = {"order in the file": frame["row"].astype(np.float64)} if "row" in frame else {}
    if "recorded_at" in frame:
        when = pd.to_datetime(frame["recorded_at"], errors="coerce", utc=True, format="ISO8601")
        order["time of recording"] = pd.Series(when.astype("int64").where(when.notna()), index=frame.index, dtype=np.float64)
        order["hour of the day"] = when.dt.hour.astype(np.float64)
    for words, values in order.items():
        found.append(_Nuisance(words, values.to_numpy(np.float64)))
        if words != "hour of the day":
            found.append(_Nuisance(f"{words} within a subject", _place_within(values, frame["subject"])))
    return [column for column in found if _varies(column)]


def _values(values: pd.Series) -> NDArray[Any]:
    """Return numbers and truths as float64, anything else as text with None."""
    if pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        return values.to_numpy(np.float64, na_value=np.nan)
    return np.array([None if missing else str(value) for value, missing in zip(values, values.isna(), strict=True)], dtype=object)


def _place_within(values: pd.Series, subjects: pd.Series) -> NDArray[np.float64]:
    """Return each row's place among its subject's, from 0 to 1; NaN for a subject with one row."""
    by_subject = values.groupby(subjects.to_numpy())
    several = by_subject.transform("count")
    place = (by_subject.rank(method="average") - 0.5) / several
    return place.where(several > 1).to_numpy(np.float64)


def _varies(column: _Nuisance) -> bool:
    return len(pd.unique(pd.Series(column.values))) > 1


class _Probe:
    """Predicts classes from nuisance columns, out of fold by subject."""

    def __init__(self, y: NDArray[np.int64], subjects: NDArray[np.str_], classes: int, seed: int) -> None:
        self._y, self._subjects, self._classes, self._seed = y, subjects, classes, seed
        self._weight = subject_weights(subjects, len(y))
        self._folds = group_k_fold(subjects, y, k=_FOLDS, seed=seed)

    @property
    def chance(self) -> float:
        """The figure of a probe that knows nothing."""
        return 1 / self._classes

    @property
    def title(self) -> str:
        return "AUROC" if self._classes == 2 else "UAR"

    def value(self, columns: Sequence[_Nuisance]) -> float:
        """Return the figure without an interval."""
        return float(self._statistic(columns)(self._weight)[0])

    def figure(self, columns: Sequence[_Nuisance]) -> tuple[Figure, bool]:
        """Return the figure with its interval over subjects, and whether it surely beats chance."""
        drawn = bootstrap(self._statistic(columns), self._subjects, weight=self._weight, replicates=_REPLICATES, seed=self._seed)
        low, high = drawn.interval(0, subjects=self._rarest(), share=True)
        surely, _ = replace(drawn, level=SURELY).interval(0, subjects=self._rarest(), share=True)
        value, low_, high_ = (bound if np.isfinite(bound) else None for bound in (float(drawn.values[0]), low, high))
        people = len(np.unique(self._subjects))
        figure = Figure(value=value, low=low_, high=high_, subjects=people, recordings=len(self._y), method="cluster bootstrap")
        return figure, bool(surely > self.chance)

    def _rarest(self) -> int:
        return min(len(np.unique(self._subjects[self._y == k])) for k in range(self._classes))

    def _statistic(self, columns: Sequence[_Nuisance]) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
        p = self._out_of_fold(columns)
        if self._classes == 2:
            ranking = Ranking(self._y, p[:, 1])
            return lambda weight: np.array([ranking.auroc(weight)])
        # As if the classes were equally common, because recall counts them so.
        shares = np.bincount(self._y, self._weight, minlength=self._classes)
        answers = Confusion(self._y, np.argmax(p / shares, axis=1), self._classes)
        return lambda weight: np.array([unweighted_average_recall_of(answers.matrix(weight))])

    def _out_of_fold(self, columns: Sequence[_Nuisance]) -> NDArray[np.float64]:
        p = np.empty((len(self._y), self._classes))
        for fold in self._folds:
            design = np.hstack([_terms(column, fold) for column in columns])
            weight = self._weight[fold.train]
            trend = LogisticRegression(C=1.0, max_iter=1000).fit(design[fold.train], self._y[fold.train], sample_weight=weight)
            trees = self._trees().fit(design[fold.train], self._y[fold.train], sample_weight=weight / weight.mean())
            p[fold.test] = (trend.predict_proba(design[fold.test]) + trees.predict_proba(design[fold.test])) / 2
        return p

    def _trees(self) -> XGBClassifier:
        # A logistic regression reads trends from few subjects; trees read blocks and combinations, which it cannot.
        return XGBClassifier(n_estimators=60, max_depth=3, learning_rate=0.1, min_child_weight=2.0, n_jobs=1, random_state=self._seed)


def _terms(column: _Nuisance, fold: Fold) -> NDArray[np.float64]:
    """Return a column as terms learned on the fold's training rows, shape (rows, terms)."""
    if column.numeric:
        return _numeric_terms(column.values, fold)
    return _text_terms(column.values, fold)


def _numeric_terms(values: NDArray[np.float64], fold: Fold) -> NDArray[np.float64]:
    """Place among the training rows (0 to 1), its bends, and whether the value is missing."""
    missing = ~np.isfinite(values)
    learned = values[fold.train][~missing[fold.train]]
    place = np.full(len(values), 0.5)
    if len(learned):
        grid, first = np.unique(np.quantile(learned, np.linspace(0, 1, _QUANTILES + 1)), return_index=True)
        last = np.append(first[1:] - 1, _QUANTILES)  # tied values stand at the middle of their places
        place[~missing] = np.interp(values[~missing], grid, (first + last) / (2 * _QUANTILES))
    bends = (np.maximum(place - knot, 0.0) for knot in _KNOTS)
    return np.stack([4 * (place - 0.5), *(4 * bend for bend in bends), missing.astype(np.float64)], axis=1)


def _text_terms(values: NDArray[np.object_], fold: Fold) -> NDArray[np.float64]:
    learned = pd.Series(values[fold.train]).value_counts()
    levels = learned.index[learned >= _ONE_KIND_OF_LEVEL][:_MAX_LEVELS]
    return np.stack([np.zeros(len(values)), *((values == level).astype(np.float64) for level in levels)], axis=1)
