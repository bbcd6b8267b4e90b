"""Recordings in the order in which a monitor sees them: days of a journal or of a table, or so many rows at a time where nobody noted a day."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import reduce

import pandas as pd

from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.errors import InvalidValueError, MonitoringError
from clinical_ser.monitoring.counts import Counts, Grid, Observation, observations_of
from clinical_ser.monitoring.journal import FIRST_DAY, LAST_DAY, Journal
from clinical_ser.monitoring.seen import Memory

RECORDED_AT = "recorded_at"
ROWS = 25
"""People in a batch where recordings carry no date."""


@dataclass(frozen=True)
class Batch:
    """What one look sees."""

    day: date | None
    label: str
    counts: Counts
    tags: tuple[str, ...] = ()
    """Of the people and recordings in it, as a state remembers them; none of a journal, whose writer counts a person once."""


def batches_of_table(grid: Grid, digest: str, table: FeatureTable, *, rows: int = ROWS, memory: Memory | None = None) -> tuple[Batch, ...]:
    """Cut a table into days by its column `recorded_at`, or, where it has none, into batches of people in the order of its rows.

    A person counts once, with their first recording: a second one says that the person came again, and nothing about the world.

    Parameters
    ----------
    grid, digest
        Of the model.
    table
        Recordings since the reference.
    rows
        People a batch, where there are no dates.
    memory
        Whom earlier runs have counted: they are left out, and so is a recording that was counted under another name.

    Raises
    ------
    MonitoringError
        Some rows have a date and others none, or one is no date; or the table does not suit the model.
    InvalidValueError
        `rows` is not positive.
    """
    if rows < 1:
        raise InvalidValueError("people a batch", rows, "at least 1")
    memory = memory or Memory()
    days = days_of(table)
    if not days:
        seen = _new(grid, table, memory)
        return tuple(
            _batch(None, f"people {start + 1}-{min(start + rows, len(seen))}", digest, seen[start : start + rows])
            for start in range(0, len(seen), rows)
        )
    order = pd.Series(days).sort_values(kind="stable").index
    in_time = FeatureTable(table.frame.iloc[order].reset_index(drop=True), table.feature_names, table.extractors, table.problems, table.missing)
    by_day: dict[date, list[_Counted]] = defaultdict(list)
    for one in _new(grid, in_time, memory):
        by_day[days[order[one.position]]].append(one)
    return tuple(_batch(day, day.isoformat(), digest, by_day[day]) for day in sorted(by_day))


@dataclass(frozen=True)
class _Counted:
    position: int
    observation: Observation
    tags: tuple[str, ...]


def _new(grid: Grid, table: FeatureTable, memory: Memory) -> list[_Counted]:
    """Return the observations of people whom nobody has counted, in order."""
    subjects, recordings = table.subjects, table.frame["recording"].astype(str).to_numpy()
    found = []
    for position, observation in observations_of(grid, table):
        tags = memory.tag("subject", str(subjects[position])), memory.tag("recording", str(recordings[position]))
        if not any(map(memory.has, tags)):
            found.append(_Counted(position, observation, tags))
    return found


def _batch(day: date | None, label: str, digest: str, counted: Sequence[_Counted]) -> Batch:
    return Batch(day, label, Counts.of(digest, [one.observation for one in counted]), tuple(tag for one in counted for tag in one.tags))


def days_of(table: FeatureTable) -> list[date]:
    """Return the day of each row by its column `recorded_at`; empty where no row has one. MonitoringError where some have one and others none."""
    if RECORDED_AT not in table.frame or not table.frame[RECORDED_AT].notna().any():
        return []
    days = [_day(value) for value in table.frame[RECORDED_AT]]
    told = [day for day in days if day is not None]
    if without := len(days) - len(told):
        raise MonitoringError(f"{without} of {len(days)} rows have no date in 'recorded_at' (as 2030-01-31); give all of them one, or none.")
    return told


def batches_of_journal(journal: Journal, digest: str, first: date | None = None, last: date | None = None) -> tuple[Batch, ...]:
    """Return a journal's days, from `first` to `last`, both included; the last should be over, because a day is taken once."""
    return tuple(Batch(day, day.isoformat(), counts) for day, counts in journal.between(digest, first, last))


def weeks_of(batches: Sequence[Batch], last: date) -> tuple[Batch, ...]:
    """Add days up to ISO weeks, of which those are returned that were over on `last`; what has no date stays as it is.

    A site that sees other people on Mondays than on Fridays has no two days alike, and weeks that are: within one, people are put into random order.
    """
    weeks: dict[date, list[Batch]] = defaultdict(list)
    for batch in batches:
        if batch.day is not None:
            weeks[batch.day + timedelta(days=7 - batch.day.isoweekday())].append(batch)
    undated = tuple(batch for batch in batches if batch.day is None)
    return (*undated, *(_week(sunday, weeks[sunday]) for sunday in sorted(weeks) if sunday <= last))


def _week(sunday: date, days: Sequence[Batch]) -> Batch:
    return Batch(
        sunday, f"week to {sunday}", reduce(Counts.__add__, (batch.counts for batch in days)), tuple(tag for batch in days for tag in batch.tags)
    )


def _day(value: object) -> date | None:
    try:
        told = value if isinstance(value, date) else datetime.fromisoformat(str(value).strip())
        if isinstance(told, datetime):
            told = (told.astimezone(UTC) if told.tzinfo else told).date()
    except (ValueError, OverflowError):
        return None
    # A slip of the keys, and beyond what weeks and windows can be counted with; NaT compares with nothing.
    return told if FIRST_DAY <= told <= LAST_DAY else None
