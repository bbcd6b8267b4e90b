"""What is usual: quantiles and moments of each feature in a reference group, without any person in it.

Only summaries over at least `MINIMUM_SUBJECTS` people are kept, quantiles rounded, and no extreme (minimum, maximum): each would be one
person's value.
"""

from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from clinical_ser.models.rounding import rounded
from clinical_ser.models.state import Count, Finite, State, Vector
from clinical_ser.models.weights import subject_weights

MINIMUM_SUBJECTS = 20
"""Fewer people make no group; also the smallest cell at which a 5 % quantile is not simply one person's value."""
LEVELS = (0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95)


class ReferenceGroup(State):
    """Summaries of each feature over the recordings of one group; a subject counts once, however many they gave."""

    name: str
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
    """`reference.json`: the groups that were large enough."""

    groups: tuple[ReferenceGroup, ...]

    def for_person(self, sex: str | None) -> ReferenceGroup | None:
        """Return the group of the same sex if it is there, else everyone's, else None."""
        by_name = {group.name.rsplit(", ", 1)[-1]: group for group in self.groups}
        return by_name.get(sex or "", by_name.get("all"))


def summarise(X: NDArray[np.float64], names: tuple[str, ...], subjects: NDArray[np.str_], sexes: NDArray[np.object_], title: str) -> ReferenceGroups:
    """Summarise the reference rows as a whole and by sex.

    Parameters
    ----------
    X
        Shape (rows, features), NaN where missing; only rows of the reference group.
    names, subjects, sexes
        Feature names; subject and sex (`female`, `male`, other or None) of each row.
    title
        Who they are, in words (`not depressed`).

    Returns
    -------
    ReferenceGroups
        Groups with at least `MINIMUM_SUBJECTS` subjects; a feature fewer than that many have is left out of its group. Recordings are
        summarised, not subjects' means, since a single recording is what will be compared; each subject weighs 1.
    """
    cuts = [("all", np.ones(len(X), bool))] + [(sex, sexes == sex) for sex in ("female", "male")]
    enough = [(cut, rows) for cut, rows in cuts if len(np.unique(subjects[rows])) >= MINIMUM_SUBJECTS]
    return ReferenceGroups(groups=tuple(_summary(f"{title}, {cut}", X[rows], names, subjects[rows]) for cut, rows in enough))


def _summary(name: str, X: NDArray[np.float64], names: tuple[str, ...], subjects: NDArray[np.str_]) -> ReferenceGroup:
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
    return ReferenceGroup(name=name, subjects=len(np.unique(subjects)), quantiles=quantiles, mean=mean, sd=sd)


def _weighted_quantiles(values: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quantiles at `LEVELS`, interpolated between the middles of the weights; with equal weights Hazen's definition."""
    order = np.argsort(values, kind="stable")
    middles = (np.cumsum(weight[order]) - weight[order] / 2) / weight.sum()
    return np.interp(LEVELS, middles, values[order])
