"""Who took part: numbers of people and recordings, in total and by fold, class and group, and what became of every row."""

import json
from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clinical_ser.cohorts.baseline import marked
from clinical_ser.errors import InvalidValueError
from clinical_ser.evaluation.subgroups import AGE_BAND, age_bands
from federated.at_site import weights
from federated.statistics import Arrays, Ask, SiteRows, Statistic, register

FLOW = ("given", "without features", "not usable", "baseline", "without label", "learned from")
GROUPS: dict[str, tuple[str, ...]] = {
    "sex": ("female", "male"),
    AGE_BAND: ("under 18", "18-29", "30-44", "45-59", "60-74", "75 and over"),
}
"""Groups that are looked at unless the plan names others. Sites agree on the words beforehand: a value that only one of them has would name it."""


@register
class Cohort(Statistic):
    """People and recordings; options: `folds`, `groups` (JSON, column to values), `checks` (JSON, names of the gate's checks)."""

    name = "cohort"
    bound = 1e9
    counts = frozenset({"recordings", "weight", "people", "subjects", "flow", "refused", "gate"})

    def at_site(self, rows: SiteRows, ask: Ask) -> Arrays:
        """Return `recordings`, `weight` (folds, 2), `people` (folds,), `subjects` (2,), and the group's and the gate's counts."""
        folds = int(ask.options["folds"])
        weight = weights(rows)
        cell = rows.fold * 2 + rows.target
        first = np.unique(rows.subjects, return_index=True)[1]
        refused_only = set(rows.refused["subject"]) - set(rows.subjects) if len(rows.refused) else set()
        checks = names_of(ask, "checks")
        return {
            "recordings": np.bincount(cell, minlength=2 * folds).reshape(folds, 2).astype(float),
            "weight": np.bincount(cell, weight, minlength=2 * folds).reshape(folds, 2),
            "people": np.bincount(rows.fold[first], minlength=folds).astype(float),
            "subjects": np.array([len(np.unique(rows.subjects[rows.target == k])) for k in (0, 1)], float),
            "flow": np.array([rows.counts.get(what, 0) for what in FLOW], float),
            "refused": np.array([len(rows.refused), len(refused_only)], float),
            "gate": np.array([rows.gate_failures.get(check, 0) for check in checks], float),
            "simulated": np.array([float(bool(marked(rows.frame, "simulated").any()))]),
            **{f"group.{column}": _people(rows, members) for column, members in memberships(rows, groups_of(ask)).items()},
        }


def _people(rows: SiteRows, members: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return recordings, and subjects of each class, by value: shape (values, 3)."""
    return np.array([[here.sum(), *(len(np.unique(rows.subjects[here & (rows.target == k)])) for k in (0, 1))] for here in members], float)


def groups_of(ask: Ask) -> dict[str, tuple[str, ...]]:
    """Read the columns and values that an ask names."""
    try:
        found = json.loads(str(ask.options["groups"]))
        return {str(column): tuple(map(str, values)) for column, values in found.items()}
    except (KeyError, ValueError, AttributeError, TypeError):
        raise InvalidValueError(f"{ask.statistic}.groups", None, "JSON that maps columns to their values") from None


def names_of(ask: Ask, option: str) -> tuple[str, ...]:
    """Read a list of names from an ask."""
    try:
        return tuple(map(str, json.loads(str(ask.options[option]))))
    except (KeyError, ValueError, TypeError):
        raise InvalidValueError(f"{ask.statistic}.{option}", None, "a list of names in JSON") from None


def memberships(rows: SiteRows, groups: Mapping[str, tuple[str, ...]]) -> dict[str, NDArray[np.bool_]]:
    """Return, column by column, which rows belong to which value, shape (values, rows); a row may belong to none."""
    return {column: np.array([values_of(rows.frame, column) == value for value in values]) for column, values in groups.items()}


def values_of(frame: pd.DataFrame, column: str) -> NDArray[np.object_]:
    """Return a column's values as text, shape (rows,); None where nothing is stated."""
    if column == AGE_BAND and "age" in frame and AGE_BAND not in frame:
        column_values = age_bands(frame["age"])
    elif column in frame:
        column_values = frame[column]
    else:
        return np.full(len(frame), None, dtype=object)
    return np.array([str(value) if pd.notna(value) else None for value in column_values], dtype=object)
