"""Recordings in the order in which a monitor sees them: days of a journal or of a table, or so many rows at a time where nobody noted a day."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import pandas as pd

from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.errors import InvalidValueError, MonitoringError
from clinical_ser.monitoring.counts import Counts, Grid, Observation, observations_of
from clinical_ser.monitoring.journal import Journal

RECORDED_AT = "recorded_at"
ROWS = 25
"""People in a batch where recordings carry no date."""


@dataclass(frozen=True)
class Batch:
    """What one look sees."""

    day: date | None
    label: str
    counts: Counts


def batches_of_table(grid: Grid, digest: str, table: FeatureTable, *, rows: int = ROWS) -> tuple[Batch, ...]:
    """Cut a table into days by its column `recorded_at`, or, where it has none, into batches of people in the order of its rows.

    A person counts once in a table, with their first recording: a second one says that the person came again, and nothing about the world.

    Parameters
    ----------
    grid, digest
        Of the model.
    table
        Recordings since the reference.
    rows
        People a batch, where there are no dates.

    Raises
    ------
    MonitoringError
        Some rows have a date and others none, or one is no date; or the table does not suit the model.
    InvalidValueError
        `rows` is not positive.
    """
    if rows < 1:
        raise InvalidValueError("people a batch", rows, "at least 1")
    frame = table.frame
    dated = RECORDED_AT in frame and bool(frame[RECORDED_AT].notna().any())
    if dated:
        days = [_day(value) for value in frame[RECORDED_AT]]
        if without := sum(day is None for day in days):
            raise MonitoringError(f"{without} of {len(days)} rows have no date in 'recorded_at' (as 2030-01-31); give all of them one, or none.")
        order = pd.Series(days).sort_values(kind="stable").index
        in_time = FeatureTable(frame.iloc[order].reset_index(drop=True), table.feature_names, table.extractors, table.problems, table.missing)
        by_day: dict[date, list[Observation]] = defaultdict(list)
        for position, seen in observations_of(grid, in_time):
            by_day[days[order[position]] or date.min].append(seen)
        return tuple(Batch(day, day.isoformat(), Counts.of(digest, by_day[day])) for day in sorted(by_day))
    seen_all = [seen for _, seen in observations_of(grid, table)]
    return tuple(
        Batch(None, f"people {start + 1}-{min(start + rows, len(seen_all))}", Counts.of(digest, seen_all[start : start + rows]))
        for start in range(0, len(seen_all), rows)
    )


def batches_of_journal(journal: Journal, digest: str, first: date | None = None, last: date | None = None) -> tuple[Batch, ...]:
    """Return a journal's days, from `first` to `last`, both included; the last should be over, because a day is taken once."""
    return tuple(Batch(day, day.isoformat(), counts) for day, counts in journal.between(digest, first, last))


def weeks_of(batches: Sequence[Batch], last: date) -> tuple[Batch, ...]:
    """Add days up to ISO weeks, of which those are returned that were over on `last`; what has no date stays as it is.

    A site that sees other people on Mondays than on Fridays has no two days alike, and weeks that are: within one, people are put into random order.
    """
    weeks: dict[date, Counts] = {}
    for batch in batches:
        if batch.day is not None:
            sunday = batch.day + timedelta(days=7 - batch.day.isoweekday())
            weeks[sunday] = weeks[sunday] + batch.counts if sunday in weeks else batch.counts
    undated = tuple(batch for batch in batches if batch.day is None)
    return (*undated, *(Batch(sunday, f"week to {sunday}", weeks[sunday]) for sunday in sorted(weeks) if sunday <= last))


def digest_of(table: FeatureTable) -> str:
    """Return what a table without dates is known by: the recordings in it, in any order."""
    text = "\n".join(sorted(map(str, table.frame["recording"]))) if "recording" in table.frame else ""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _day(value: object) -> date | None:
    if isinstance(value, datetime):
        return None if pd.isna(value) else value.date()
    if isinstance(value, date):
        return value
    try:
        told = datetime.fromisoformat(str(value).strip())
        return (told.astimezone(UTC) if told.tzinfo else told).date()
    except (ValueError, OverflowError):
        return None
