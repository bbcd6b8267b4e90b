"""The gate, applied to a table: each row is judged by the limits of the task that uses it, exactly as a single recording is when it is screened.

A table holds values as measured and the gate's measurements, no verdicts, so one table serves tasks with different limits.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clinical_ser.audio.quality import GateLimits, QualityMeasures, QualityReport, judge
from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.errors import TableError
from clinical_ser.features.extraction import switched_off

PREFIX = "quality."
"""Of the columns that hold the gate's measurements; the recording's length is the table's own column `duration_s`."""
_COLUMNS = {measure.name: "duration_s" if measure.name == "duration_s" else PREFIX + measure.name for measure in fields(QualityMeasures)}
_NOT_NUMBERS = {measure.name: object if measure.type is str else bool for measure in fields(QualityMeasures) if measure.type in {str, bool}}
_WHOLE_NUMBERS = tuple(measure.name for measure in fields(QualityMeasures) if measure.type in {int, int | None})


@dataclass(frozen=True, eq=False)
class GatedTable:
    """A table after the gate."""

    usable: NDArray[np.bool_]
    """Shape (rows,); False where any check failed: the row may not be trained on or scored."""
    features: NDArray[np.float64]
    """Shape (rows, features); NaN where missing, or switched off for the row. Rows that are not usable are in it too."""
    verdicts: Mapping[str, Mapping[str, int]]
    """For each check how many rows passed, got a warning or failed; a row without anything to measure a check on is not counted."""
    switched_off: Mapping[str, Mapping[str, int]]
    """For each feature that was switched off anywhere: in how many rows, by reason."""


def quality_columns(measures: Sequence[QualityMeasures]) -> pd.DataFrame:
    """Return measurements as columns: numbers, NaN where there was nothing to measure, and the codec's name."""
    columns = {}
    for name, column in _COLUMNS.items():
        values = [getattr(one, name) for one in measures]
        as_numbers = [math.nan if value is None else value for value in values]
        columns[column] = pd.Series(values, dtype=_NOT_NUMBERS[name]) if name in _NOT_NUMBERS else pd.Series(as_numbers, dtype=np.float64)
    return pd.DataFrame(columns)


def quality_of_rows(frame: pd.DataFrame) -> Iterator[QualityMeasures]:
    """Yield the measurements of each row, equal to those that `quality_columns` was given.

    Raises
    ------
    TableError
        The table was made by a version that measured other things.
    """
    if absent := [column for column in _COLUMNS.values() if column not in frame]:
        raise TableError(f"The table has no column {absent[0]!r}, which the gate needs; extract it again with this version.")
    columns = [frame[column].tolist() for column in _COLUMNS.values()]
    for row in zip(*columns, strict=True):
        yield QualityMeasures(**{name: _cell(name, value) for name, value in zip(_COLUMNS, row, strict=True)})


def _cell(name: str, value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return None
    return int(value) if name in _WHOLE_NUMBERS else value


def judge_rows(table: FeatureTable, limits: GateLimits) -> Iterator[QualityReport]:
    """Yield the gate's report of each row: the one that `audio.assess` gives for its recording."""
    return (judge(measures, limits) for measures in quality_of_rows(table.frame))


def judge_table(table: FeatureTable, limits: GateLimits) -> GatedTable:
    """Judge every row by a task's limits, and make missing what its recording cannot carry; about 0.1 ms a row.

    Parameters
    ----------
    table
        From `build_table` or `read_table`.
    limits
        Of the task (`task.limits`).
    """
    features = table.features.copy()
    column = {name: position for position, name in enumerate(table.feature_names)}
    usable = np.zeros(len(features), bool)
    verdicts: dict[str, Counter[str]] = {}
    off: dict[str, Counter[str]] = {}
    for row, report in enumerate(judge_rows(table, limits)):
        usable[row] = report.usable
        for check in report.checks:
            verdicts.setdefault(check.name, Counter())[check.verdict] += 1
        for name, reason in switched_off(table.feature_names, report).items():
            features[row, column[name]] = np.nan
            off.setdefault(name, Counter())[reason] += 1
    return GatedTable(usable, features, verdicts, off)
