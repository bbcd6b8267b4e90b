r"""Calibration watched where outcomes come back late, and only for some.

The one idea: a recording counts from the day on which its outcome would be known, whether or not it came back, and in the order of screening. Ordered
by the day of the outcome, illness that is confirmed early would come first, and every quiet month would begin with an alarm.

Each outcome is a bet against "the stated log-odds are right to within ± tolerance". For an alternative q and the tolerated interval of probabilities
the fair bet is q's likelihood over that of the interval's point nearest to q (its least favourable one), which gains nothing on average wherever in
the interval the truth lies. A shift of all log-odds against the stated ones is the risk-adjusted CUSUM of Steiner, Cook, Farewell & Treasure (2000,
Biostatistics 1:441-452), here as a Shiryaev-Roberts e-detector with a stated run length; a changed slope is a further bet. See `detectors`.

What is missing may depend on the score (who is flagged is verified more often), and on nothing else: of two people with one score, the ill one must
be no likelier to come back. Observed to expected, intercept, slope and the detector then hold as they stand, since they compare people with their own
scores. AUROC does not, and is weighted (Begg & Greenes 1983, Biometrics 39:207-215).
"""

import csv
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy.special import expit, log_expit, logit

from clinical_ser.cohorts.table import RowProblem
from clinical_ser.errors import InvalidValueError, MonitoringError
from clinical_ser.evaluation.calibration import intercept_and_slope
from clinical_ser.evaluation.discrimination import Ranking
from clinical_ser.evaluation.intervals import wilson
from clinical_ser.evaluation.subgroups import MINIMUM_OF_A_CLASS
from clinical_ser.monitoring.counts import NAMED, short
from clinical_ser.monitoring.detectors import ChannelState, Evidence, limits_of, restored, states_of
from clinical_ser.monitoring.journal import FIRST_DAY, LAST_DAY
from clinical_ser.monitoring.seen import Memory
from clinical_ser.strict import Strict

Array = NDArray[np.float64]

TOLERANCE = 0.2
"""Log-odds by which stated ones may be off without anybody acting: an odds ratio of 1.22."""
MATURITY_DAYS = 90
MOST_GROUPS = 30
"""Groups of people that are watched beside everyone; each uses its part of the rate of false alarms."""
EVERYONE = "everyone"
_ALTERNATIVES: tuple[tuple[str, float, float], ...] = (
    ("up", 0.4, 1.0),
    ("up", 0.8, 1.0),
    ("up", 1.5, 1.0),
    ("down", -0.4, 1.0),
    ("down", -0.8, 1.0),
    ("down", -1.5, 1.0),
    ("slope", 0.0, 0.25),
    ("slope", 0.0, 0.5),
    ("slope", 0.0, 2.0),
)
"""Direction, what is added to the log-odds (beyond the tolerance), and the slope around their mean so far."""
BETS = tuple(direction for direction, _, _ in _ALTERNATIVES)
_BANDS = 5
_REPLICATES = 400
_LARGEST = 256 * 2**20
_MOST_ROWS = 2_000_000
_SMALLEST = 1e-6
_COLUMNS = frozenset({"screened_at", "probability", "log_odds", "outcome", "outcome_at", "subject", *NAMED})


class Ratio(Strict):
    """Observed to expected outcomes with their 95 % interval; None where nothing is expected."""

    value: float | None
    low: float | None
    high: float | None


class GroupCalibration(Strict):
    """How outcomes and probabilities agree in one group."""

    name: str
    """`everyone`, or column=value."""
    people: int
    """With an outcome that counts."""
    observed: int
    expected: float
    ratio: Ratio
    intercept: float | None
    slope: float | None
    auroc: Ratio | None
    """None with fewer than 20 people with, or without, the condition."""


class Returned(Strict):
    """What became of the recordings whose outcome should be known."""

    given: int
    problems: int
    repeated: int
    """Further recordings of a person, which are left out."""
    mature: int
    """Screened long enough ago."""
    known: int
    late: int
    """Of the mature: an outcome that came after the window, and is not used: who comes back late may differ."""
    missing_share: float | None
    """Of the mature; 0 to 1."""
    missing_by_score: tuple[float, ...]
    """The same in thirds of the score, low to high: where they differ, verification depends on the score, which is allowed."""


class OutcomeState(Strict):
    """What the next run goes on from."""

    tolerance: Annotated[float, Field(ge=0, le=2)] = TOLERANCE
    maturity_days: Annotated[int, Field(ge=0, le=3650)] = MATURITY_DAYS
    """Both stay as they were: evidence against one statement is none against another."""
    entered: date | None = None
    """Last day whose mature recordings have been taken."""
    people: Annotated[int, Field(strict=True, ge=0, le=2**52)] = 0
    log_odds: Annotated[float, Field(ge=-1e18, le=1e18)] = 0.0
    """Their sum."""
    groups: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=100)], ...], Field(max_length=1 + MOST_GROUPS)] = ()
    """Everyone first; or none, before the first outcome."""
    channels: Annotated[dict[str, ChannelState], Field(max_length=1 + MOST_GROUPS)] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _of_groups(self) -> Self:
        if len(set(self.groups)) != len(self.groups) or set(self.channels) != set(self.groups) or self.groups[:1] not in {(), (EVERYONE,)}:
            raise ValueError("there is one detector a group, and everyone is the first")
        return self


@dataclass(frozen=True)
class OutcomeCrossing:
    """A group whose calibration is outside what is tolerated."""

    group: str
    direction: str
    value: float
    limit: float
    since: date
    people: int
    """That have counted so far."""


@dataclass(frozen=True, eq=False)
class OutcomeRows:
    """A file of outcomes as read; `frame` has `day`, `log_odds`, `outcome` (NaN: none yet), `outcome_day`, `who` and columns of groups."""

    frame: pd.DataFrame
    problems: tuple[RowProblem, ...]
    repeated: int


def read_outcomes(path: Path) -> OutcomeRows:
    """Read a CSV (UTF-8; comma or semicolon) or Parquet file of outcomes.

    Columns: `screened_at` (ISO 8601), `probability` or `log_odds` as the model stated it, `outcome` (1, 0 or empty), `outcome_at`; optionally
    `subject` (of whom only the first recording counts), and any of `counts.NAMED` as groups. Others are ignored.

    Raises
    ------
    MonitoringError
        The file as a whole cannot be used. Single rows are reported by number; no message quotes a cell.
    """
    frame = _cells(path)
    if lacking := [name for name in ("screened_at", "outcome", "outcome_at") if name not in frame]:
        raise MonitoringError(f"The outcomes lack the columns {lacking}.")
    if ("probability" in frame) == ("log_odds" in frame):
        raise MonitoringError("The outcomes need one of the columns 'probability' and 'log_odds', and not both.")
    rows, problems = [], []
    groups = [name for name in NAMED if name in frame]
    for number, row in enumerate(frame.to_dict("records"), start=1):
        try:
            rows.append(
                _row(row) | {name: short(_text(row[name])) if _text(row[name]) else None for name in groups} | {"who": _text(row.get("subject"))}
            )
        except ValueError as error:
            problems.append(RowProblem(number, str(error)))
    if not rows:
        first = f"; the first problem, in row {problems[0].row}: {problems[0].reason}" if problems else ""
        raise MonitoringError(f"The outcomes have no usable row (rows with a problem: {len(problems)}){first}.")
    found = pd.DataFrame(rows).sort_values("day", kind="stable")
    again = (found["who"] != "") & found.duplicated("who")
    return OutcomeRows(found[~again].reset_index(drop=True), tuple(problems), int(again.sum()))


def _row(row: Mapping[Any, Any]) -> dict[str, object]:
    screened = _day(row["screened_at"], "screened_at")
    given = _number(row["probability"] if "probability" in row else row["log_odds"], "probability" if "probability" in row else "log_odds")
    if "probability" in row and not 0 <= given <= 1:
        raise ValueError("the probability is not between 0 and 1")
    outcome = _text(row["outcome"])
    if outcome not in {"", "0", "1", "0.0", "1.0"}:
        raise ValueError("the outcome is neither 1, 0 nor empty")
    when = _day(row["outcome_at"], "outcome_at") if outcome else None
    if when is not None and when < screened:
        raise ValueError("the outcome is from before the screening")
    log_odds = (
        float(logit(np.clip(given, _SMALLEST, 1 - _SMALLEST))) if "probability" in row else float(np.clip(given, logit(_SMALLEST), -logit(_SMALLEST)))
    )
    return {"day": screened, "log_odds": log_odds, "outcome": float(outcome) if outcome else math.nan, "outcome_day": when}


def _text(value: object) -> str:
    if value is None or value is pd.NaT or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _number(value: object, what: str) -> float:
    try:
        number = float(_text(value))
    except ValueError:
        raise ValueError(f"{what} is no number") from None
    if not math.isfinite(number):
        raise ValueError(f"{what} is no finite number")
    return number


def _day(value: object, what: str) -> date:
    text = _text(value)
    try:
        told = value if isinstance(value, date) and text else datetime.fromisoformat(text)
        if isinstance(told, datetime):
            told = (told.astimezone(UTC) if told.tzinfo else told).date()
    except (ValueError, OverflowError):
        raise ValueError(f"{what} is {'no date as 2030-01-31' if text else 'missing'}") from None
    if not FIRST_DAY <= told <= LAST_DAY:
        raise ValueError(f"{what} is not between {FIRST_DAY} and {LAST_DAY}")
    return told


def _cells(path: Path) -> pd.DataFrame:
    try:
        if path.stat().st_size > _LARGEST:
            raise MonitoringError(f"The outcomes are larger than {_LARGEST // 2**20} MiB; this is another file.")
        raw = path.read_bytes()
    except OSError as error:
        raise MonitoringError(f"The outcomes cannot be read: {error.strerror}.") from None
    if not raw.strip():
        raise MonitoringError("The outcomes are empty; the first line has to name the columns.")
    if raw.startswith(b"PAR1"):
        try:
            file = pq.ParquetFile(io.BytesIO(raw))
            # Before it is unpacked: a small file can be a large table.
            _check_rows(file.metadata.num_rows)
            wanted = [name for name in file.schema_arrow.names if name in _COLUMNS]
            # Without what pandas noted in it: whoever wrote the file may have written that too.
            frame: pd.DataFrame = file.read(columns=wanted).to_pandas(ignore_metadata=True)
        except (pa.ArrowException, OSError):
            raise MonitoringError("The outcomes start like a Parquet file but are cut short or damaged.") from None
        frame.columns = pd.Index([str(name) for name in frame.columns])
    else:
        frame = _csv(raw)
    _check_rows(len(frame))
    if frame.columns.duplicated().any():
        raise MonitoringError("The outcomes name a column twice.")
    return frame


def _check_rows(rows: int) -> None:
    if rows > _MOST_ROWS:
        raise MonitoringError(f"The outcomes have more than {_MOST_ROWS} rows; this is another file.")


def _csv(raw: bytes) -> pd.DataFrame:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise MonitoringError("The outcomes are neither Parquet nor UTF-8 text; save them as 'CSV UTF-8'.") from None
    if "\x00" in text:
        raise MonitoringError("The outcomes are a binary file, not CSV or Parquet.")
    first = text.split("\n", 1)[0]
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=";" if first.count(";") > first.count(",") else ",", strict=True)
    try:
        header, *records = list(lines) or [[]]
    except csv.Error:
        raise MonitoringError(f"The outcomes cannot be split into cells near line {lines.line_num}; a quotation mark may not be closed.") from None
    names = [name.strip().lower() for name in header]
    if not records:
        raise MonitoringError("The outcomes name their columns but have no row below them.")
    if wrong := next((number for number, record in enumerate(records, start=1) if record and len(record) != len(names)), None):
        raise MonitoringError(f"Row {wrong} of the outcomes has another number of cells than columns are named.")
    return pd.DataFrame([record for record in records if record], columns=names, dtype=object)


def check_options(*, maturity_days: int, tolerance: float) -> None:
    """Raise InvalidValueError for a window or a tolerance that makes no sense."""
    if not 0 <= maturity_days <= 3650:
        raise InvalidValueError("maturity", maturity_days, "days, from 0 to 3650")
    if not 0 <= tolerance <= 2:
        raise InvalidValueError("tolerance", tolerance, "log-odds, from 0 to 2")


class OutcomeWatch:
    """Calibration over time.

    Parameters
    ----------
    run_length
        Outcomes to the first false alarm, on average at least, of everyone and all groups together.
    tolerance
        Log-odds by which stated ones may be off.
    maturity_days
        Days after screening by which an outcome is known, where it will be.
    state
        From the last run.
    """

    def __init__(
        self, *, run_length: float, tolerance: float = TOLERANCE, maturity_days: int = MATURITY_DAYS, state: OutcomeState | None = None
    ) -> None:
        check_options(maturity_days=maturity_days, tolerance=tolerance)
        self.tolerance, self.maturity = tolerance, timedelta(days=maturity_days)
        if state is not None and state.entered is not None and (state.tolerance, state.maturity_days) != (tolerance, maturity_days):
            raise MonitoringError(
                f"The state was made with a tolerance of {state.tolerance:g} and {state.maturity_days} days; go on with these, or begin anew."
            )
        self._state = state or OutcomeState()
        self._groups = list(self._state.groups or (EVERYONE,))
        kept = restored(self._groups, self._state.channels, len(BETS)) if self._state.channels else Evidence.none(1, len(BETS))
        grown = Evidence.none(1 + MOST_GROUPS, len(BETS))
        for part in ("roberts", "cusum", "begun"):
            getattr(grown, part)[: len(self._groups)] = getattr(kept, part)
        self._evidence = grown
        # Half for everyone, and the other half in equal parts for the groups there may be.
        self.limits = limits_of(np.array([0.5, *[0.5 / MOST_GROUPS] * MOST_GROUPS]), run_length)
        self._people, self._sum = self._state.people, self._state.log_odds

    def take(self, rows: OutcomeRows, as_of: date, memory: Memory | None = None) -> list[OutcomeCrossing]:
        """Take the recordings that have matured since the last run, up to a day; return the groups that crossed their limit, with repetitions.

        Parameters
        ----------
        rows, as_of
            Outcomes, and the day as of which they are known.
        memory
            Whose outcomes earlier runs have taken: theirs are not taken again, and those of this run are remembered.
        """
        memory = memory or Memory()
        frame = rows.frame
        known, mature = self._known(frame, as_of)
        entered = self._state.entered
        new = frame[known & mature & (entered is None or frame["day"].map(lambda day: day + self.maturity > entered))]
        found: list[OutcomeCrossing] = []
        for row in new.to_dict("records"):
            tags = [memory.tag("outcome", str(row["who"]))] if row.get("who") else []
            if not any(map(memory.has, tags)):
                memory.add(tags)
                found += self._enter(row)
        last = max([as_of, entered]) if entered else as_of
        self._state = OutcomeState(
            tolerance=self.tolerance,
            maturity_days=self.maturity.days,
            entered=last,
            people=self._people,
            log_odds=self._sum,
            groups=tuple(self._groups),
            channels=states_of(self._groups, self._evidence),
        )
        return found

    def _known(self, frame: pd.DataFrame, as_of: date) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        mature = np.array([day + self.maturity <= as_of for day in frame["day"]], bool)
        known = np.array(
            [
                day is not None and not pd.isna(day) and day <= since + self.maturity
                for day, since in zip(frame["outcome_day"], frame["day"], strict=True)
            ],
            bool,
        )
        return known, mature

    def _enter(self, row: Mapping[Any, Any]) -> Iterator[OutcomeCrossing]:
        x, y, day = float(row["log_odds"]), float(row["outcome"]), row["day"]
        self._people, self._sum = self._people + 1, self._sum + x
        gained = outcome_gains(x, y, centre=self._sum / self._people, tolerance=self.tolerance)
        which = [0, *(place for column in NAMED if (place := self._place(column, row.get(column))) is not None)]
        at = np.array(which)
        self._evidence.take(np.tile(gained, (len(at), 1)), at, day.toordinal())
        for place in which:
            value = float(self._evidence.roberts[place].mean())
            if value >= self.limits[place]:
                lead = int(self._evidence.leading(np.array([place]))[0])
                since = date.fromordinal(min(int(self._evidence.begun[place, lead]) or day.toordinal(), day.toordinal()))
                yield OutcomeCrossing(self._groups[place], BETS[lead], value, float(self.limits[place]), since, self._people)
                self._evidence.restart(np.array([place]), day.toordinal())

    def _place(self, column: str, value: object) -> int | None:
        if not isinstance(value, str):
            return None
        name = f"{column}={value}"
        if name not in self._groups:
            if len(self._groups) > MOST_GROUPS:
                return None
            self._groups.append(name)
        return self._groups.index(name)

    @property
    def state(self) -> OutcomeState:
        """What the next run goes on from."""
        return self._state

    def calibration(self, rows: OutcomeRows, as_of: date) -> tuple[Returned, tuple[GroupCalibration, ...]]:
        """Return what came back, and observed to expected outcomes of everyone and of each group, over all mature recordings of the file."""
        frame = rows.frame
        known, mature = self._known(frame, as_of)
        counted = known & mature
        n = int(mature.sum())
        x = frame["log_odds"].to_numpy(float)
        thirds = np.array_split(np.flatnonzero(mature)[np.argsort(x[mature], kind="stable")], 3)
        returned = Returned(
            given=len(frame) + rows.repeated + len(rows.problems),
            problems=len(rows.problems),
            repeated=rows.repeated,
            mature=n,
            known=int(counted.sum()),
            late=int((mature & ~known & frame["outcome"].notna().to_numpy()).sum()),
            missing_share=1 - float(counted.sum()) / n if n else None,
            missing_by_score=tuple(1 - float(counted[part].mean()) for part in thirds if len(part)),
        )
        names = [EVERYONE, *sorted({f"{column}={value}" for column in NAMED if column in frame for value in frame[column].dropna()})[:MOST_GROUPS]]
        y = frame["outcome"].to_numpy(float)
        weight = _verification_weights(x, mature, counted)
        calibrated = []
        for name in names:
            column, _, value = name.partition("=")
            here = counted if name == EVERYONE else counted & (frame[column] == value).to_numpy(bool)
            calibrated.append(_calibration(name, x[here], y[here], weight[here]))
        return returned, tuple(calibrated)


def outcome_gains(x: float, y: float, *, centre: float, tolerance: float) -> Array:
    """Return what each bet gains on one outcome, shape (bets,): of mean at most 1 if the true log-odds lie within `tolerance` of x.

    Parameters
    ----------
    x
        Stated log-odds.
    y
        1.0 or 0.0.
    centre
        Log-odds around which a slope turns; of nothing that comes later.
    tolerance
        In log-odds.
    """
    added, slope = (np.array([one[k] for one in _ALTERNATIVES]) for k in (1, 2))
    alternative = centre + slope * (x - centre) + added + np.sign(added) * tolerance
    nearest = np.clip(alternative, x - tolerance, x + tolerance)
    sign = 1.0 if y else -1.0
    return np.asarray(np.exp(log_expit(sign * alternative) - log_expit(sign * nearest)))


def _verification_weights(x: Array, mature: NDArray[np.bool_], counted: NDArray[np.bool_]) -> Array:
    """Return one over the share that came back, in bands of the score; 0 where nobody did."""
    weight = np.zeros(len(x))
    for band in np.array_split(np.flatnonzero(mature)[np.argsort(x[mature], kind="stable")], _BANDS):
        if counted[band].any():
            weight[band] = 1 / counted[band].mean()
    return weight


def _calibration(name: str, x: Array, y: Array, weight: Array) -> GroupCalibration:
    expected = float(expit(x).sum())
    intercept, slope = intercept_and_slope(y, x) if len(y) else (math.nan, math.nan)
    return GroupCalibration(
        name=name,
        people=len(y),
        observed=int(y.sum()),
        expected=expected,
        ratio=observed_to_expected(int(y.sum()), len(y), expected),
        intercept=_finite(intercept),
        slope=_finite(slope),
        auroc=_auroc(x, y, weight),
    )


def observed_to_expected(observed: int, people: int, expected: float) -> Ratio:
    """Return O/E with Wilson's 95 % interval of O over people, divided by E over people.

    Examples
    --------
    >>> ratio = observed_to_expected(30, 100, 20.0)
    >>> round(ratio.value, 2), round(ratio.low, 2), round(ratio.high, 2)
    (1.5, 1.09, 1.98)
    """
    if not people or expected <= 0:
        return Ratio(value=None, low=None, high=None)
    low, high = wilson(observed / people, people)
    return Ratio(value=observed / expected, low=float(low * people / expected), high=float(high * people / expected))


def _auroc(x: Array, y: Array, weight: Array) -> Ratio | None:
    if min((y == k).sum() for k in (0, 1)) < MINIMUM_OF_A_CLASS:
        return None
    ranking = Ranking(y, x)
    rng = np.random.default_rng(0)
    drawn = [ranking.auroc(weight * np.bincount(rng.integers(0, len(y), len(y)), minlength=len(y))) for _ in range(_REPLICATES)]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Ratio(value=float(ranking.auroc(weight)), low=float(low), high=float(high))


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
