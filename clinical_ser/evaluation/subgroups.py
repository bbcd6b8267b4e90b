"""Which groups an evaluation looks at: by sex, age, language, device, site, task, or any other column.

A group with too few people keeps its row and gets no figure: a number about seven people would be read as if it were about seventy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clinical_ser.errors import InvalidValueError
from clinical_ser.evaluation.predictions import Predictions

DEFAULT_COLUMNS = ("sex", "age_band", "language", "device", "site", "task")
MINIMUM_OF_A_CLASS = 20
"""Subjects with, and subjects without, the condition below which a group gets no figures: at 20 a sensitivity of 0.8 is known to about ± 0.18."""
MINIMUM_RECORDINGS_OF_A_CLASS = 20
MINIMUM_SUBJECTS_OF_A_CLASS = 5
"""The same for tasks of several classes, whose figures count recordings."""
MOST_GROUPS = 30
NOT_STATED = "not stated"
LEAST_NAMED = 5
"""People whom a value has to have before evidence names it."""
SMALL = "fewer than 5 people each"

AGE_BAND = "age_band"
_AGE_EDGES = (18, 30, 45, 60, 75)
_PARTS = 3
_FEW_VALUES = 12
"""A column of numbers with more distinct values than this is cut into parts of equal size."""
_NOT_GROUPS = frozenset({"subject", "recording", "row", "label", "status", "covered", "above", "log_odds", "path", "score", "fold"})


@dataclass(frozen=True, eq=False)
class Members:
    """The rows of one group."""

    column: str
    value: str
    rows: NDArray[np.intp]
    """Positions among the evaluated rows."""
    refused: NDArray[np.intp]
    """Positions among the refused ones."""


def age_bands(age: pd.Series) -> pd.Series:
    """Return bands of age in years: under 18, 18-29, 30-44, 45-59, 60-74, 75 and over."""
    names = [f"under {_AGE_EDGES[0]}", *(f"{a}-{b - 1}" for a, b in pairwise(_AGE_EDGES)), f"{_AGE_EDGES[-1]} and over"]
    return pd.cut(pd.to_numeric(age, errors="coerce"), [-np.inf, *_AGE_EDGES, np.inf], right=False, labels=names).astype(object)


def members_of(predictions: Predictions, columns: Sequence[str] | None = None) -> tuple[Members, ...]:
    """Sort rows into groups, column by column.

    Parameters
    ----------
    predictions
        Evaluated rows, and refused ones, with their covariates.
    columns
        Names of columns, `age_band` among them where there is an `age`. None takes those of `DEFAULT_COLUMNS` that are there and differ.

    Raises
    ------
    InvalidValueError
        A column is not there, says who somebody is or what is to be predicted, or has more than `MOST_GROUPS` values.
    """
    frame, refused = (_with_age_bands(rows) for rows in (predictions.frame, predictions.refused))
    chosen = _default_columns(frame) if columns is None else tuple(dict.fromkeys(columns))
    found: list[Members] = []
    for column in chosen:
        _check_column(column, frame)
        values, others = _values(frame, column), _values(refused, column)
        if frame[column].dtype.kind in "iuf":
            values, others = _in_parts(frame[column], refused.get(column))
        people = np.concatenate([predictions.subjects, predictions.refused["subject"].to_numpy(str)])
        values, others = _without_small(values, others, people)
        names = sorted({*values, *others})
        if len(names) > MOST_GROUPS:
            raise InvalidValueError("--by", f"a column with {len(names)} different values", f"one with at most {MOST_GROUPS}")
        found += [Members(column, name, np.flatnonzero(values == name), np.flatnonzero(others == name)) for name in names]
    return tuple(found)


def enough(predictions: Predictions, rows: NDArray[np.intp]) -> bool:
    """Return whether a group has people enough for figures."""
    target, subjects = predictions.target[rows], predictions.subjects[rows]
    people = [len(np.unique(subjects[target == k])) for k in range(len(predictions.task.classes))]
    if predictions.binary:
        return min(people) >= MINIMUM_OF_A_CLASS
    recordings = np.bincount(target, minlength=len(people))
    return bool(min(people) >= MINIMUM_SUBJECTS_OF_A_CLASS and recordings.min() >= MINIMUM_RECORDINGS_OF_A_CLASS)


def counted(predictions: Predictions, columns: Sequence[str] = DEFAULT_COLUMNS) -> dict[str, dict[str, int]]:
    """Return evaluated subjects by value of each of these columns that the cohort has."""
    frame = _with_age_bands(predictions.frame)
    there = [column for column in columns if column in frame and frame[column].notna().any()]
    nobody = np.array([], dtype=str)
    named = {column: _without_small(_values(frame, column), nobody, predictions.subjects)[0] for column in there}
    values = {column: pd.Series(named[column], index=frame.index) for column in there}
    return {
        column: {str(name): int(n) for name, n in frame.groupby(values[column])["subject"].nunique().items()}
        for column in there
        if values[column].nunique() <= MOST_GROUPS
    }


def _without_small(values: NDArray[np.str_], others: NDArray[np.str_], people: NDArray[np.str_]) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
    """Put values of fewer than `LEAST_NAMED` people under one name: a ward of one person, or a free text, says who is ill."""
    counted = pd.Series(people).groupby(np.concatenate([values, others])).nunique()
    small = set(counted.index[counted < LEAST_NAMED])
    return tuple(np.array([SMALL if value in small else value for value in part], dtype=object) for part in (values, others))  # type: ignore[return-value]


def _with_age_bands(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(**{AGE_BAND: age_bands(frame["age"])}) if "age" in frame and AGE_BAND not in frame else frame


def _default_columns(frame: pd.DataFrame) -> tuple[str, ...]:
    return tuple(name for name in DEFAULT_COLUMNS if name in frame and 1 < frame[name].nunique(dropna=False) <= MOST_GROUPS)


def _check_column(column: str, frame: pd.DataFrame) -> None:
    if column in frame and column not in _NOT_GROUPS and not column.startswith("probability."):
        return
    known = sorted(name for name in DEFAULT_COLUMNS if name in frame)
    raise InvalidValueError("--by", column, f"a column of the cohort that forms groups of people, such as {known or list(DEFAULT_COLUMNS)}")


def _values(frame: pd.DataFrame, column: str) -> NDArray[np.str_]:
    if column not in frame:
        return np.full(len(frame), NOT_STATED)
    stated = frame[column].notna()
    return np.where(stated, frame[column].astype(str), NOT_STATED)


def _in_parts(values: pd.Series, others: pd.Series | None) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
    """Cut numbers at their tertiles, rounded to three digits."""
    rest = pd.Series(dtype=float) if others is None else others
    if values.nunique() <= _FEW_VALUES:
        return _values(values.to_frame("x"), "x"), _values(rest.to_frame("x"), "x")
    limits = [float(f"{value:.3g}") for value in values.quantile(np.arange(1, _PARTS) / _PARTS)]
    edges = sorted({-np.inf, *limits, np.inf})
    names = [f"below {edges[1]:g}", *(f"{a:g} to {b:g}" for a, b in pairwise(edges[1:-1])), f"{edges[-2]:g} and more"]

    def named(series: pd.Series) -> NDArray[np.str_]:
        parts = pd.cut(series, edges, right=False, labels=names).astype(object)
        return np.where(parts.notna(), parts.astype(str), NOT_STATED)

    return named(values), named(rest)
