"""What is usual: quantiles and moments of each feature in a reference group, without any person in it.

A result is read against people like the one recorded: healthy, of the same sex and age, on the same task and device, as far as the cohort has
enough of them. Only summaries over groups are kept, quantiles rounded, and no extreme (minimum, maximum): each would be one person's value.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import model_validator

from clinical_ser.models.rounding import coarse, rounded
from clinical_ser.models.state import Count, Finite, State, Vector
from clinical_ser.models.weights import subject_weights

MINIMUM_SUBJECTS = 20
"""Fewer people make no group; also the smallest cell at which a 5 % quantile is not simply one person's value, and the fewest that may come out when
published groups are added and subtracted: their moments must be nobody's either."""
REFINED_SUBJECTS = 50
"""People that a group needs to be cut by more than sex: a percentile is then known to within 14 points (95 %), 10 with 100. Sex needs
`MINIMUM_SUBJECTS` alone, because a woman's pitch is five SD from a man's."""
AGE_HALF_WIDTH_YEARS = 10
AGE_STEP_YEARS = 5
"""Windows of 20 years, every five: a person's age is at most 2.5 years off the middle of one."""
AGE_CENTRES = tuple(range(20, 95, AGE_STEP_YEARS))
MOST_VALUES = 6
"""Tasks and devices that are looked at, most frequent first: every further cut publishes more about fewer."""
LONGEST_WORD = 64
"""Characters of a task or device that can name a group."""
MOST_GROUPS = 96
MOST_SUMMARIES = 100_000
"""Features times groups: some 20 MB of reference.json, a third of what a bundle's file may hold."""
LEVELS = (0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95)


@dataclass(frozen=True)
class Person:
    """What is known of whom a recording is of; None where nobody said."""

    sex: str | None = None
    age: float | None = None
    task: str | None = None
    device: str | None = None

    @classmethod
    def of_row(cls, row: Mapping[Any, Any]) -> Self:
        """Read a row of a manifest or a feature table; what is no text, or no number of years, is not known."""
        said = {name: value for name in ("sex", "task", "device") if isinstance(value := row.get(name), str)}
        given: Any = row.get("age")
        age = pd.to_numeric(given, errors="coerce")
        return cls(age=float(age) if pd.notna(age) else None, **said)


class Conditions(State):
    """What a group's recordings have in common; None where they may differ."""

    sex: str | None = None
    age: tuple[Count, Count] | None = None
    """Years, from the first to below the second."""
    task: str | None = None
    device: str | None = None

    def holds(self, person: Person) -> bool:
        """Return whether every condition is known to be met by the person."""
        wanted = (self.sex, self.task, self.device)
        return all(want in {None, got} for want, got in zip(wanted, (person.sex, person.task, person.device), strict=True)) and self._of_age(person)

    def _of_age(self, person: Person) -> bool:
        if self.age is None:
            return True
        # A window serves those near its middle; at its rim the group would be younger, or older, than the person throughout.
        return person.age is not None and abs(person.age - sum(self.age) / 2) <= AGE_STEP_YEARS / 2

    @property
    def precedence(self) -> tuple[bool, bool, bool, bool]:
        """Which of two groups to prefer: sex moves a voice most, then age, then what is spoken, then the device."""
        return self.sex is not None, self.age is not None, self.task is not None, self.device is not None

    @property
    def extras(self) -> int:
        """How many conditions there are beside sex and age, which come first where not every group can be published."""
        return (self.task is not None) + (self.device is not None)

    def words(self) -> tuple[str, ...]:
        """Return the conditions in words; nothing for everyone."""
        age = None if self.age is None else f"{self.age[0]} to {self.age[1]} years"
        return tuple(word for word in (self.sex, age, self.task, self.device) if word is not None)


class ReferenceGroup(State):
    """Summaries of each feature over the recordings of one group; a subject counts once, however many they gave."""

    name: str
    """In words, such as `not depressed, female, 45 to 65 years`."""
    conditions: Conditions = Conditions()
    """What was asked of them."""
    shared: Conditions = Conditions()
    """What all of them have in common, asked for or not (a cohort recorded with one device)."""
    subjects: Count
    quantiles: dict[str, Vector]
    """Feature name to its values at `LEVELS`."""
    mean: dict[str, Finite]
    sd: dict[str, Finite]

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        if self.subjects < MINIMUM_SUBJECTS:
            raise ValueError(f"a group needs at least {MINIMUM_SUBJECTS} subjects")
        if any(len(values) != len(LEVELS) or list(values) != sorted(values) for values in self.quantiles.values()):
            raise ValueError(f"quantiles need {len(LEVELS)} rising values a feature")
        return self

    @property
    def title(self) -> str:
        """Which people they are: the name without the conditions, which it ends with."""
        return self.name.removesuffix(_after_title(self.conditions))

    def percentile(self, feature: str, value: float) -> float | None:
        """Percent of the group below `value`, by linear interpolation of the kept quantiles, held within 5 and 95; None if unknown."""
        known = self.quantiles.get(feature)
        if known is None or known[0] == known[-1]:
            return None
        return float(100 * np.interp(value, known, LEVELS))

    def middle_half(self, feature: str) -> tuple[float, float] | None:
        """Return the 25th and 75th percentile, or None if unknown."""
        known = self.quantiles.get(feature)
        return (known[LEVELS.index(0.25)], known[LEVELS.index(0.75)]) if known else None


class ReferenceGroups(State):
    """`reference.json`: the groups that were large enough, everyone first."""

    groups: tuple[ReferenceGroup, ...]

    def for_person(self, person: Person) -> int | None:
        """Return the place of the group that is most like a person, or None where there is no group."""
        fitting = [i for i, group in enumerate(self.groups) if group.conditions.holds(person)]
        return max(fitting, key=lambda i: (self.groups[i].conditions.precedence, -i), default=None)

    def unmatched(self, person: Person, place: int | None) -> tuple[str, ...]:
        """Return what is known of a person and could not be matched: too few people, or none, are like them in it."""
        if place is None:
            return tuple(name for name in _CONDITIONS if getattr(person, name) is not None)
        asked, shared = self.groups[place].conditions, self.groups[place].shared
        return tuple(
            name
            for name in _CONDITIONS
            if (known := getattr(person, name)) is not None and getattr(asked, name) is None and known != getattr(shared, name)
        )


def _after_title(conditions: Conditions) -> str:
    return "".join(f", {word}" for word in conditions.words() or ("all",))


@dataclass(frozen=True, eq=False)
class Cut:
    """The rows of one group, before they are summarised."""

    conditions: Conditions
    shared: Conditions
    rows: NDArray[np.intp]
    subjects: int


def cuts(frame: pd.DataFrame, features: int) -> list[Cut]:
    """Decide which groups of the reference rows can be published.

    A group is published if it is large enough, has not the very people of one that is published already, and if adding and subtracting published
    groups does not lead down to fewer than `MINIMUM_SUBJECTS` people, as far as `_betrays` looks. Means are rounded coarsely besides
    (`rounding.coarse`).

    Parameters
    ----------
    frame
        The reference rows: `subject`, and where known `sex`, `age`, `task`, `device`.
    features
        How many features each group will be summarised in; it limits the number of groups.

    Returns
    -------
    list of Cut
        Those of sex and age first, then by size; positions of rows within `frame`.
    """
    columns = {name: _words(frame[name]) if name in frame else np.full(len(frame), None) for name in ("sex", "task", "device")}
    age = pd.to_numeric(frame["age"], errors="coerce").to_numpy(float) if "age" in frame else np.full(len(frame), np.nan)
    subjects = np.unique(frame["subject"].to_numpy(str), return_inverse=True)[1]
    found = sorted(_candidates(columns, age, subjects), key=lambda cut: (cut.conditions.extras, -len(cut.rows), sum(cut.conditions.precedence)))
    most = max(1, min(MOST_GROUPS, MOST_SUMMARIES // max(features, 1)))
    published: list[Cut] = []
    members = np.empty((0, len(frame)), bool)
    for cut in found:
        if len(published) == most:
            break
        tried = np.vstack([members, np.isin(np.arange(len(frame)), cut.rows)])
        if not (members == tried[-1]).all(axis=1).any() and not _betrays(tried, subjects):
            published, members = [*published, cut], tried
    return published


_CONDITIONS = ("sex", "age", "task", "device")


def _words(column: pd.Series) -> NDArray[np.object_]:
    """Return a column as text, None where missing or too long to name a group."""
    text = column.astype(object).where(column.notna(), None)
    return np.array([None if value is None or len(str(value)) > LONGEST_WORD else str(value) for value in text], dtype=object)


def _candidates(columns: dict[str, NDArray[np.object_]], age: NDArray[np.float64], subjects: NDArray[np.intp]) -> Iterator[Cut]:
    windows = [None, *((centre - AGE_HALF_WIDTH_YEARS, centre + AGE_HALF_WIDTH_YEARS) for centre in AGE_CENTRES)]
    within = {window: np.ones(len(age), bool) if window is None else (age >= window[0]) & (age < window[1]) for window in windows}
    values = {"sex": ["female", "male"], "task": _frequent(columns["task"]), "device": _frequent(columns["device"])}
    of = {name: {value: _is(columns[name], value) for value in (None, *values[name])} for name in values}
    for sex, window, task, device in product(of["sex"], windows, of["task"], of["device"]):
        rows = np.flatnonzero(of["sex"][sex] & within[window] & of["task"][task] & of["device"][device])
        people = len(np.unique(subjects[rows]))
        if people >= (MINIMUM_SUBJECTS if window is None and task is None and device is None else REFINED_SUBJECTS):
            shared = Conditions(**{name: _only(column[rows]) for name, column in columns.items()})
            yield Cut(Conditions(sex=sex, age=window, task=task, device=device), shared, rows, people)


def _is(column: NDArray[np.object_], value: str | None) -> NDArray[np.bool_]:
    return np.ones(len(column), bool) if value is None else np.asarray(column == value, bool)


def _frequent(column: NDArray[np.object_]) -> list[str]:
    """Values that cut, most frequent first; one that everybody has cuts nothing."""
    known = pd.Series(column, dtype=object).dropna().value_counts(sort=False).sort_index()
    return [] if len(known) < 2 else known.sort_values(ascending=False, kind="stable").index[:MOST_VALUES].tolist()


def _only(column: NDArray[np.object_]) -> str | None:
    """Return the one value that all rows have, or None."""
    return column[0] if len(column) and (column == column[0]).all() else None


def _betrays(members: NDArray[np.bool_], subjects: NDArray[np.intp]) -> bool:
    """Tell whether the last group, beside those before it, lets a sum over a few people be worked out; `members` has shape (groups, rows).

    Rows that are in the same groups form a cell. Tried are the last group with one or two others, added or subtracted; and, over any combination of
    all groups, single cells and pairs of cells: one comes out exactly if its indicator lies in the space that the groups span.
    """
    patterns, cell = np.unique(members, axis=1, return_inverse=True)
    cell = cell.reshape(-1)
    inside = patterns.any(axis=0)
    people = np.array([len(np.unique(subjects[cell == k])) for k in range(patterns.shape[1])])[inside]
    groups = patterns[:, inside].astype(np.int8)
    return _few_in_threes(groups, people) or _few_in_span(groups, people)


def _few_in_threes(groups: NDArray[np.int8], people: NDArray[np.intp]) -> bool:
    nothing = np.zeros((1, groups.shape[1]), np.int8)
    others = np.concatenate([nothing, groups[:-1], -groups[:-1]])
    for first in others:
        left = (groups[-1] + first + others) != 0
        total = left @ people
        if ((total > 0) & (total < MINIMUM_SUBJECTS)).any():
            return True
    return False


def _few_in_span(groups: NDArray[np.int8], people: NDArray[np.intp]) -> bool:
    few = np.flatnonzero(people < MINIMUM_SUBJECTS)
    if not len(few):
        return False
    left = (np.eye(groups.shape[1]) - np.linalg.pinv(groups.astype(float)) @ groups)[np.ix_(few, few)]
    alone = np.diag(left)
    pairs = alone[:, None] + alone + 2 * left
    together = people[few][:, None] + people[few] < MINIMUM_SUBJECTS
    np.fill_diagonal(together, val=False)
    return bool((alone < _SPANNED).any() or (pairs[together] < _SPANNED).any())


_SPANNED = 1e-9
"""Squared distance at which an indicator lies in the space that groups span."""


def summarise(X: NDArray[np.float64], names: tuple[str, ...], subjects: NDArray[np.str_], found: Sequence[Cut], title: str) -> ReferenceGroups:
    """Summarise the reference rows, group by group.

    Parameters
    ----------
    X
        Shape (rows, features), NaN where missing; only rows of the reference group.
    names, subjects
        Feature names; subject of each row.
    found
        As `cuts` returns them for the same rows.
    title
        Who they are, in words (`not depressed`).

    Returns
    -------
    ReferenceGroups
        A feature that fewer than `MINIMUM_SUBJECTS` of a group have is left out of it. Recordings are summarised, not subjects' means, since a
        single recording is what will be compared; each subject weighs 1.
    """
    groups = (_summary(title + _after_title(cut.conditions), cut, X[cut.rows], names, subjects[cut.rows]) for cut in found)
    return ReferenceGroups(groups=tuple(groups))


def _summary(name: str, cut: Cut, X: NDArray[np.float64], names: tuple[str, ...], subjects: NDArray[np.str_]) -> ReferenceGroup:
    quantiles, mean, sd = {}, {}, {}
    for feature, column in zip(names, X.T, strict=True):
        known = np.isfinite(column)
        if len(np.unique(subjects[known])) < MINIMUM_SUBJECTS:
            continue
        values, weight = column[known], subject_weights(subjects[known], int(known.sum()))
        centre = np.average(values, weights=weight)
        quantiles[feature] = tuple(rounded(_weighted_quantiles(values, weight)).tolist())
        spread = np.sqrt(np.average((values - centre) ** 2, weights=weight))
        mean[feature], sd[feature] = float(coarse(centre, spread, cut.subjects)), float(rounded(spread))
    return ReferenceGroup(name=name, conditions=cut.conditions, shared=cut.shared, subjects=cut.subjects, quantiles=quantiles, mean=mean, sd=sd)


def _weighted_quantiles(values: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quantiles at `LEVELS`, interpolated between the middles of the weights; with equal weights Hazen's definition."""
    order = np.argsort(values, kind="stable")
    middles = (np.cumsum(weight[order]) - weight[order] / 2) / weight.sum()
    return np.interp(LEVELS, middles, values[order])
