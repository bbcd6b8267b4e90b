"""What is usual: quantiles and moments of each feature in a reference group, without any person in it.

A result is read against people like the one recorded: healthy, of the same sex and age, on the same task and device, as far as the cohort has
enough of them. Only summaries over groups are kept, quantiles rounded, and no extreme (minimum, maximum): each would be one person's value.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, model_validator

from clinical_ser.models.rounding import rounded
from clinical_ser.models.state import Count, Finite, State, Vector
from clinical_ser.models.weights import subject_weights

MINIMUM_SUBJECTS = 20
"""Fewer people make no group; also the smallest cell at which a 5 % quantile is not simply one person's value, and the fewest by which a
published group may differ from one that holds it: the difference of their moments must be nobody's either."""
REFINED_SUBJECTS = 50
"""People that a group needs to be cut by more than sex: a percentile is then known to within 14 points (95 %), 10 with 100. Sex needs
`MINIMUM_SUBJECTS` alone, because a woman's pitch is five SD from a man's."""
AGE_HALF_WIDTH_YEARS = 10
AGE_STEP_YEARS = 5
"""Windows of 20 years, every five: a person's age is at most 2.5 years off the middle of one."""
AGE_CENTRES = tuple(range(20, 95, AGE_STEP_YEARS))
MOST_VALUES = 6
"""Tasks and devices that are looked at, most frequent first: every further cut publishes more about fewer."""
LEVELS = (0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95)


@dataclass(frozen=True)
class Person:
    """What is known of whom a recording is of; None where nobody said."""

    sex: str | None = None
    age: float | None = None
    task: str | None = None
    device: str | None = None


class Conditions(State):
    """What a group's recordings have in common; None where they may differ."""

    sex: str | None = None
    age: tuple[Count, Count] | None = None
    """Years, both ends included."""
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

    def words(self) -> tuple[str, ...]:
        """Return the conditions in words; nothing for everyone."""
        age = None if self.age is None else f"{self.age[0]} to {self.age[1]} years"
        return tuple(word for word in (self.sex, age, self.task, self.device) if word is not None)


class ReferenceGroup(State):
    """Summaries of each feature over the recordings of one group; a subject counts once, however many they gave."""

    name: str
    """In words, such as `not depressed, female, 45 to 65 years`."""
    conditions: Conditions = Conditions()
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
    """`reference.json`: the groups that were large enough, largest first."""

    groups: tuple[ReferenceGroup, ...]
    common: Conditions = Field(default=Conditions())
    """What all recordings of the cohort have in common, so that it cuts nothing (one task, one device)."""

    def for_person(self, person: Person) -> int | None:
        """Return the place of the group that is most like a person, or None where there is no group."""
        fitting = [i for i, group in enumerate(self.groups) if group.conditions.holds(person)]
        return max(fitting, key=lambda i: (self.groups[i].conditions.precedence, -i), default=None)

    def unmatched(self, person: Person, place: int | None) -> tuple[str, ...]:
        """Return what is known of a person and could not be matched: too few people, or none, are like them in it."""
        matched = Conditions() if place is None else self.groups[place].conditions
        return tuple(
            name
            for name in ("sex", "age", "task", "device")
            if (known := getattr(person, name)) is not None and getattr(matched, name) is None and known != getattr(self.common, name)
        )


@dataclass(frozen=True, eq=False)
class Cut:
    """The rows of one group, before they are summarised."""

    conditions: Conditions
    rows: NDArray[np.intp]
    subjects: int


def cuts(frame: pd.DataFrame) -> tuple[list[Cut], Conditions]:
    """Decide which groups of the reference rows can be published.

    A group is published if it is large enough, and if it is either all of each larger published group that holds it or leaves at least
    `MINIMUM_SUBJECTS` of its people out: else their moments could be subtracted from each other down to those few. Groups that only overlap
    are not looked at in that way; their moments are rounded to three digits.

    Parameters
    ----------
    frame
        The reference rows: `subject`, and where known `sex`, `age`, `task`, `device`.

    Returns
    -------
    cuts
        Largest first; positions of rows within `frame`.
    common
        Task and device that all rows share.
    """
    columns = {name: frame[name].to_numpy(object) if name in frame else np.full(len(frame), None) for name in ("sex", "age", "task", "device")}
    subjects = frame["subject"].to_numpy(str)
    common = Conditions(task=_only(columns["task"]), device=_only(columns["device"]))
    found = sorted(_candidates(columns, subjects), key=lambda cut: (-len(cut.rows), sum(cut.conditions.precedence)))
    published: list[Cut] = []
    for cut in found:
        if all(_may_stand_beside(cut, other, subjects) for other in published):
            published.append(cut)
    return published, common


def _candidates(columns: dict[str, NDArray[np.object_]], subjects: NDArray[np.str_]) -> Iterator[Cut]:
    age = pd.to_numeric(pd.Series(columns["age"], dtype=object), errors="coerce").to_numpy(float)
    windows = [None, *((centre - AGE_HALF_WIDTH_YEARS, centre + AGE_HALF_WIDTH_YEARS) for centre in AGE_CENTRES)]
    within = {window: np.ones(len(age), bool) if window is None else (age >= window[0]) & (age <= window[1]) for window in windows}
    of_sex, of_task, of_device = ({value: _is(columns[name], value) for value in values} for name, values in _values(columns).items())
    for sex, window, task, device in product(of_sex, windows, of_task, of_device):
        rows = np.flatnonzero(of_sex[sex] & within[window] & of_task[task] & of_device[device])
        people = len(np.unique(subjects[rows]))
        if people >= (MINIMUM_SUBJECTS if window is None and task is None and device is None else REFINED_SUBJECTS):
            yield Cut(Conditions(sex=sex, age=window, task=task, device=device), rows, people)


def _values(columns: dict[str, NDArray[np.object_]]) -> dict[str, list[str | None]]:
    return {"sex": [None, "female", "male"], "task": [None, *_frequent(columns["task"])], "device": [None, *_frequent(columns["device"])]}


def _is(column: NDArray[np.object_], value: str | None) -> NDArray[np.bool_]:
    return np.ones(len(column), bool) if value is None else np.asarray(column == value, bool)


def _frequent(column: NDArray[np.object_]) -> list[str]:
    """Values that cut, most frequent first; one that everybody has cuts nothing."""
    known = pd.Series(column, dtype=object).dropna().astype(str).value_counts(sort=False).sort_index()
    return [] if len(known) < 2 else known.sort_values(ascending=False, kind="stable").index[:MOST_VALUES].tolist()


def _only(column: NDArray[np.object_]) -> str | None:
    known = set(pd.Series(column, dtype=object).astype(object).where(pd.notna(column), None))
    value = next(iter(known), None)
    return value if len(known) == 1 and isinstance(value, str) else None


def _may_stand_beside(cut: Cut, larger: Cut, subjects: NDArray[np.str_]) -> bool:
    if len(np.intersect1d(cut.rows, larger.rows, assume_unique=True)) < len(cut.rows):
        return True
    left_out = np.setdiff1d(larger.rows, cut.rows, assume_unique=True)
    return len(np.unique(subjects[left_out])) >= MINIMUM_SUBJECTS


def summarise(
    X: NDArray[np.float64], names: tuple[str, ...], subjects: NDArray[np.str_], found: Sequence[Cut], common: Conditions, title: str
) -> ReferenceGroups:
    """Summarise the reference rows, group by group.

    Parameters
    ----------
    X
        Shape (rows, features), NaN where missing; only rows of the reference group.
    names, subjects
        Feature names; subject of each row.
    found, common
        As `cuts` returns them for the same rows.
    title
        Who they are, in words (`not depressed`).

    Returns
    -------
    ReferenceGroups
        A feature that fewer than `MINIMUM_SUBJECTS` of a group have is left out of it. Recordings are summarised, not subjects' means, since a
        single recording is what will be compared; each subject weighs 1.
    """
    groups = (_summary(", ".join((title, *(cut.conditions.words() or ("all",)))), cut, X[cut.rows], names, subjects[cut.rows]) for cut in found)
    return ReferenceGroups(groups=tuple(groups), common=common)


def _summary(name: str, cut: Cut, X: NDArray[np.float64], names: tuple[str, ...], subjects: NDArray[np.str_]) -> ReferenceGroup:
    quantiles, mean, sd = {}, {}, {}
    for feature, column in zip(names, X.T, strict=True):
        known = np.isfinite(column)
        if len(np.unique(subjects[known])) < MINIMUM_SUBJECTS:
            continue
        values, weight = column[known], subject_weights(subjects[known], int(known.sum()))
        centre = np.average(values, weights=weight)
        quantiles[feature] = tuple(rounded(_weighted_quantiles(values, weight)).tolist())
        # Rounded too: exact sums of overlapping groups could be subtracted from each other down to one person.
        mean[feature], sd[feature] = rounded([centre, np.sqrt(np.average((values - centre) ** 2, weights=weight))]).tolist()
    return ReferenceGroup(name=name, conditions=cut.conditions, subjects=cut.subjects, quantiles=quantiles, mean=mean, sd=sd)


def _weighted_quantiles(values: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quantiles at `LEVELS`, interpolated between the middles of the weights; with equal weights Hazen's definition."""
    order = np.argsort(values, kind="stable")
    middles = (np.cumsum(weight[order]) - weight[order] / 2) / weight.sum()
    return np.interp(LEVELS, middles, values[order])
