"""What is counted of recordings so that a change can be seen: cells, names and failed checks, of which nothing leads back to a person.

The one idea: counts add up, over recordings, days and hospitals. A day's counts are a sum of observations, a year's a sum of days, and whoever only
ever sees sums (a journal, a secure sum over sites) can watch all the same.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, ValidationError, model_validator
from scipy.special import expit, softmax

from clinical_ser.cohorts.baseline import is_baseline, relative_rows
from clinical_ser.cohorts.gating import judge_rows
from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.errors import InvalidValueError, MonitoringError, TableError
from clinical_ser.evaluation.subgroups import age_bands
from clinical_ser.features import catalogue
from clinical_ser.features.extraction import switched_off
from clinical_ser.models.bundle import Sha256
from clinical_ser.models.interpretable import EMBEDDING
from clinical_ser.models.strict_json import StrictJsonError, canonical_json, parse_json
from clinical_ser.models.trained import TrainedModel
from clinical_ser.monitoring.cells import CELLS, SCORE_CELLS, cell_of, score_cell_of, unclipped
from clinical_ser.strict import Strict

Array = NDArray[np.float64]
T = TypeVar("T", bound=Strict)

NOT_USABLE = "not_usable"
NAMED = ("device", "codec", "language", "sex", "age_band", "site", "task")
"""What names are counted of, beside the status: never a free text, and never a person."""
STATUS = "status"
BESIDE = "beside."
"""Begins the kinds of names that a shadow's counts have beside those of a champion: `beside.<12 digits>.status`."""
LONGEST_NAME, MOST_NAMES = 64, 200
OTHER = "other"
"""What a name is counted as that is too long to be a kind of thing, or comes after `MOST_NAMES` others."""
FAR = 3.0
"""SD from the training mean beyond which a standardised value is far."""
_FAR_SHARE_EDGES = np.array([0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.35])
"""Of the share of a recording's values that are far; 0.003 where they are normal."""
_SPREAD_EDGES = np.array([0.4, 0.6, 0.8, 1.0, 1.25, 1.6, 2.0, 3.0, 5.0])
"""Of a recording's mean squared standardised value; 1 in training."""
_MARGIN_EDGES = np.linspace(-2.0, 2.0, 9)
"""Of what a family adds to the margin, in log-odds: their own unit, so that no scale has to be kept."""

MOST_COUNTED = 2**53
"""Whole numbers beyond have no one spelling in JSON."""
_Cell = Annotated[int, Field(strict=True, ge=0, le=MOST_COUNTED)]
_Name = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
_Channel = Annotated[str, Field(min_length=1, max_length=200)]


@dataclass(frozen=True)
class Observation:
    """One recording, as far as it is counted: the cells it fell into, the names it goes under, the checks it failed."""

    cells: Mapping[str, int] = field(default_factory=dict)
    """Channel (`feature.NAME`, `summary.NAME`, `margin.FAMILY`, `score`) to cell; empty where the recording was not usable."""
    names: Mapping[str, str] = field(default_factory=dict)
    """`status`, and those of `NAMED` that are known."""
    failed: tuple[str, ...] = ()
    """Checks of the gate that failed."""


class Counts(Strict):
    """Recordings counted for one model. `one + other` adds them up; people are counted once a period by whoever counts."""

    schema_id: Literal["clinical-ser/counts/1"] = "clinical-ser/counts/1"
    model: Sha256
    """Digest of the bundle whose grid it is."""
    recordings: _Cell = 0
    cells: dict[_Channel, tuple[_Cell, ...]] = Field(default_factory=dict)
    names: dict[_Name, dict[_Name, _Cell]] = Field(default_factory=dict)
    failed: dict[_Name, _Cell] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _no_more_than_recordings(self) -> Self:
        if any(len(cells) != width_of(channel) for channel, cells in self.cells.items()):
            raise ValueError("a channel has another number of cells than its kind")
        sums = [sum(cells) for cells in self.cells.values()] + [sum(names.values()) for names in self.names.values()] + list(self.failed.values())
        if any(n > self.recordings for n in sums):
            raise ValueError("more was counted than there were recordings")
        if any(len(names) > MOST_NAMES + 1 for names in self.names.values()):
            raise ValueError(f"at most {MOST_NAMES} names of a kind are told apart")
        return self

    @classmethod
    def of(cls, model: str, observations: Iterable[Observation]) -> "Counts":
        """Count observations of one model, given by its digest."""
        cells: dict[str, NDArray[np.int64]] = {}
        names: dict[str, Counter[str]] = {}
        failed: Counter[str] = Counter()
        recordings = 0
        for one in observations:
            recordings += 1
            for channel, cell in one.cells.items():
                if channel not in cells:
                    cells[channel] = np.zeros(width_of(channel), np.int64)
                cells[channel][cell] += 1
            for kind, name in one.names.items():
                names.setdefault(kind, Counter())[name] += 1
            failed.update(set(one.failed))
        return cls(
            model=model,
            recordings=recordings,
            cells={channel: tuple(row.tolist()) for channel, row in cells.items()},
            names={kind: _few(found) for kind, found in names.items()},
            failed=dict(failed),
        )

    def __add__(self, other: "Counts") -> "Counts":
        """Add up; InvalidValueError where they are of two models, whose cells are not the same."""
        if other.model != self.model:
            raise InvalidValueError("counts", "those of two models", "one model's: every model has its own cells")
        if self.recordings + other.recordings > MOST_COUNTED:
            raise MonitoringError("The counts add up to more recordings than there are people; one of them is damaged.")
        return Counts(
            model=self.model,
            recordings=self.recordings + other.recordings,
            cells={channel: _sum(self.cells.get(channel), other.cells.get(channel)) for channel in (self.cells | other.cells)},
            names={kind: _few(Counter(self.names.get(kind, {})) + Counter(other.names.get(kind, {}))) for kind in (self.names | other.names)},
            failed=dict(Counter(self.failed) + Counter(other.failed)),
        )

    @property
    def usable(self) -> int:
        """Recordings that were scored."""
        return sum(self.cells.get("score", ()))

    def to_bytes(self) -> bytes:
        """Return the one spelling of these counts, as canonical JSON."""
        return canonical_json(self.model_dump(mode="json"))

    @classmethod
    def from_bytes(cls, raw: bytes) -> "Counts":
        """Inverse of `to_bytes`; MonitoringError for anything else, whose text is not quoted."""
        return read_strict(cls, raw, "The counts")


def read_strict(kind: type[T], raw: bytes, what: str) -> T:
    """Read one strict object from JSON with one reading; MonitoringError names the fields that do not fit, and quotes nothing."""
    try:
        value = parse_json(raw)
        if isinstance(value, dict) and "schema_id" in kind.model_fields:
            wanted = kind.model_fields["schema_id"].default
            if value.get("schema_id") != wanted:
                raise MonitoringError(f"{what} are not of schema {wanted!r}, which this version reads.")
        return kind.model_validate_json(raw)
    except StrictJsonError as error:
        raise MonitoringError(f"{what} are damaged or no JSON ({error}).") from None
    except ValidationError as error:
        # Not the keys of a dictionary, which may be anything.
        places = sorted({str(fault["loc"][0]) if fault["loc"] else "the whole" for fault in error.errors()})
        known = [place for place in places if place in kind.model_fields or place == "the whole"] or ["an unknown field"]
        raise MonitoringError(f"{what} do not follow their schema: {', '.join(known[:5])}.") from None


def width_of(channel: str) -> int:
    """Return how many cells a channel has."""
    return SCORE_CELLS if channel == "score" else CELLS + 1 if channel.startswith("feature.") else CELLS


class Grid:
    """The cells of one model.

    Parameters
    ----------
    model
        Whose scales, families and map the grid is of.
    """

    def __init__(self, model: TrainedModel) -> None:
        self.model = model
        families = [catalogue.get(name).family for name in model.features]
        varies = model.preprocessor.scale_ > 0
        self._named = np.array([family != EMBEDDING for family in families]) & varies
        self._embedded = np.array([family == EMBEDDING for family in families]) & varies
        self._channels = [f"feature.{name}" for name, take in zip(model.features, self._named, strict=True) if take]

    def cells(self, X: ArrayLike) -> list[dict[str, int]]:
        """Return the cells of usable recordings.

        Parameters
        ----------
        X
            Shape (rows, features), in the features' units, NaN where missing; relative to the baseline where the model is.

        Returns
        -------
        list of dict
            For each row, channel to cell. Of embeddings only summaries: their 256 dimensions have no meaning one by one.
        """
        values = np.asarray(X, float)
        if values.ndim != 2 or values.shape[1] != len(self.model.features) or np.isinf(values).any():
            raise InvalidValueError("X", f"an array of shape {values.shape}", f"finite numbers or NaN, shape (rows, {len(self.model.features)})")
        if not len(values):
            return []
        scales = self.model.preprocessor
        z = unclipped(values, scales.mean_, scales.scale_)
        columns = dict(zip(self._channels, cell_of(z[:, self._named]).T, strict=True))
        for name, which in (("features", self._named), ("embedding", self._embedded)):
            if which.any():
                columns |= self._summaries(name, z[:, which])
        columns |= self._margins(values)
        log_odds = self.model.log_odds(values)
        p = expit(log_odds) if self.model.binary else softmax(log_odds, axis=1).max(axis=1)
        columns["score"] = score_cell_of(p)
        return [{channel: int(column[row]) for channel, column in columns.items()} for row in range(len(values))]

    def _summaries(self, name: str, z: Array) -> dict[str, NDArray[np.int64]]:
        known = ~np.isnan(z)
        n = np.maximum(known.sum(axis=1), 1)
        held = np.where(known, z, 0.0)
        far, spread = (np.abs(held) > FAR).sum(axis=1) / n, (held**2).sum(axis=1) / n
        return {
            f"summary.{name}_far": np.searchsorted(_FAR_SHARE_EDGES, far, side="right"),
            f"summary.{name}_spread": np.searchsorted(_SPREAD_EDGES, spread, side="right"),
        }

    def _margins(self, values: Array) -> dict[str, NDArray[np.int64]]:
        if not self.model.binary:
            return {}
        head = self.model.head
        parts = head.family_margins(self.model.preprocessor.transform(values))
        return {f"margin.{family}": np.searchsorted(_MARGIN_EDGES, parts[:, k], side="right") for k, family in enumerate(head.families_)}

    def statuses(self, X: ArrayLike) -> NDArray[np.str_]:
        """Return what the model answers, shape (rows,)."""
        return self.model.statuses(self.model.log_odds(X))


def observe(
    grid: Grid, x: ArrayLike | None, *, status: str, failed: Iterable[str] = (), names: Mapping[str, str | None] | None = None
) -> Observation:
    """Return what is counted of one recording.

    Parameters
    ----------
    grid
        Of the model that answered.
    x
        Shape (features,), as the model was given it; None where the gate refused the recording.
    status
        What was answered, `not_usable` included.
    failed
        Names of the gate's checks that failed.
    names
        Of the kinds in `NAMED`; others are refused, so that no free text and no person is counted by accident.

    Raises
    ------
    InvalidValueError
        A kind of name that is not counted, or x does not fit the model.
    """
    given = {} if names is None else {kind: name for kind, name in names.items() if name}
    if unknown := sorted(set(given) - set(NAMED)):
        raise InvalidValueError("names", unknown[0], NAMED)
    told = {STATUS: status} | {kind: short(name) for kind, name in given.items()}
    cells = {} if x is None else grid.cells(np.asarray(x, float)[None])[0]
    return Observation(cells, told, tuple(sorted(set(failed))))


def short(name: str) -> str:
    """Return a name as it is counted: one word of what a site calls a device or a language; `other` for a text, which may say who somebody is."""
    plain = " ".join(name.split())
    return plain if 0 < len(plain) <= LONGEST_NAME and plain.isprintable() else OTHER


def counts_of(model: TrainedModel, digest: str, table: FeatureTable) -> Counts:
    """Count the recordings of one period, a person once.

    Parameters
    ----------
    model, digest
        Whose grid, and the digest of its bundle.
    table
        Recordings of the period. Of a person with several, the first is counted for the gate, and the first usable one for all that a score needs:
        several recordings of one person are not exchangeable with those of several.

    Raises
    ------
    MonitoringError
        The table lacks a feature of the model.
    """
    return Counts.of(digest, [one for _, one in observations_of(Grid(model), table)])


def observations_of(grid: Grid, table: FeatureTable) -> list[tuple[int, Observation]]:
    """Return an observation for each person of a table, in the order of their first recordings, each with the position of that row."""
    model = grid.model
    if absent := [name for name in model.features if name not in table.feature_names]:
        raise MonitoringError(
            f"The table lacks {len(absent)} of the model's {len(model.features)} features; extract it with the model's feature sets."
        )
    if different := sorted(name for name, text in model.extractors.items() if table.extractors.get(name) != text):
        raise MonitoringError(f"The table's features of {different} were computed by another version than the model's; extract it again.")
    frame = table.frame
    if frame.empty:
        return []
    reports = list(judge_rows(table, model.task.limits))
    usable = np.array([report.usable for report in reports])
    baseline = is_baseline(frame) if model.uses_baseline else np.zeros(len(frame), bool)
    X = _entering(model, table, usable, baseline, [switched_off(table.feature_names, report) for report in reports])
    subjects = table.subjects
    first = _first(subjects, ~baseline)
    scored = _first(subjects, ~baseline & usable)
    order = sorted(first.values())
    rows = [scored.get(subjects[position]) for position in order]
    heard = [row for row in rows if row is not None]
    cells = dict(zip(heard, grid.cells(X[heard]), strict=True))
    status = dict(zip(heard, grid.statuses(X[heard]), strict=True)) if heard else {}
    kinds = _kinds(frame)
    found = []
    for position, row in zip(order, rows, strict=True):
        failed = tuple(sorted({check.name for check in reports[position].checks if check.verdict == "fail"}))
        names = {kind: short(str(column.iloc[position])) for kind, column in kinds.items() if pd.notna(column.iloc[position])}
        told = {STATUS: NOT_USABLE if row is None else str(status[row])} | names
        found.append((position, Observation({} if row is None else cells[row], told, failed)))
    return found


def _first(subjects: NDArray[np.str_], among: NDArray[np.bool_]) -> dict[Any, int]:
    rows = np.flatnonzero(among)
    people, places = np.unique(subjects[rows], return_index=True)
    return dict(zip(people.tolist(), rows[places].tolist(), strict=True))


def _entering(
    model: TrainedModel, table: FeatureTable, usable: NDArray[np.bool_], baseline: NDArray[np.bool_], off: Sequence[Mapping[str, str]]
) -> Array:
    """Return the model's features as it would be given them, shape (rows, features)."""
    X = table.features[:, [table.feature_names.index(name) for name in model.features]].copy()
    place = {name: column for column, name in enumerate(model.features)}
    for row, names in enumerate(off):
        X[row, [place[name] for name in names if name in place]] = np.nan
    if model.uses_baseline:
        known = np.isin(table.subjects, np.unique(table.subjects[baseline & usable]))
        if not known.all():
            raise TableError(f"{int((~known).sum())} recordings are of people without a usable baseline recording, which this model needs.")
        X = relative_rows(X, table.subjects, baseline & usable)
    return np.asarray(X)


def _kinds(frame: pd.DataFrame) -> dict[str, pd.Series]:
    found = {kind: frame[kind] for kind in NAMED if kind in frame and kind != "age_band"}
    if "quality.codec" in frame:
        found["codec"] = frame["quality.codec"]
    if "age" in frame:
        found["age_band"] = age_bands(frame["age"])
    return found


def _sum(one: tuple[int, ...] | None, other: tuple[int, ...] | None) -> tuple[int, ...]:
    if one is None or other is None:
        return one or other or ()
    return tuple(a + b for a, b in zip(one, other, strict=True))


def _few(found: Mapping[str, int]) -> dict[str, int]:
    """Keep the most frequent names apart, and count the others together."""
    if len(found) <= MOST_NAMES:
        return dict(found)
    ranked = sorted((name for name in found if name != OTHER), key=lambda name: (-found[name], name))
    kept = {name: found[name] for name in ranked[:MOST_NAMES]}
    return kept | {OTHER: sum(found.values()) - sum(kept.values())}
