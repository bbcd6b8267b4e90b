"""Which rows of a table a task can use: gated, labelled, not a baseline; every other row is accounted for.

Training and evaluation choose with the same function, so that a model is tested on what it would have been trained on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clinical_ser.cohorts.baseline import is_baseline, relative_rows
from clinical_ser.cohorts.gating import judge_table
from clinical_ser.cohorts.manifest import labels_for
from clinical_ser.cohorts.table import FeatureTable, RowProblem
from clinical_ser.cohorts.tasks import Task
from clinical_ser.models.heads import encode_labels


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows that can be learned from, or tested on."""

    X: NDArray[np.float64]
    names: tuple[str, ...]
    target: NDArray[np.int64]
    subjects: NDArray[np.str_]
    frame: pd.DataFrame
    """The table's rows, without the features, in the same order."""

    def take(self, index: NDArray[np.intp]) -> "Rows":
        """Return the rows at `index`."""
        return Rows(self.X[index], self.names, self.target[index], self.subjects[index], self.frame.iloc[index])

    def of_features(self, names: Sequence[str]) -> "Rows":
        """Return the same rows with some of their features, in this order."""
        own = [self.names.index(name) for name in names]
        return Rows(self.X[:, own], tuple(names), self.target, self.subjects, self.frame)


@dataclass(frozen=True, eq=False)
class Selection:
    """The usable rows of a table, and what became of the others."""

    rows: Rows
    task: Task
    """With the classes that the labels have, where the task leaves them open."""
    counts: dict[str, int]
    """`given` is the sum of the others."""
    refused: pd.DataFrame
    """Labelled rows that the gate refused, without features, with their `label`."""
    gate_failures: dict[str, int]
    """Checks of the gate that failed, and in how many rows."""
    problems: tuple[RowProblem, ...]


def select_rows(table: FeatureTable, task: Task, names: Sequence[str], *, use_baseline: bool, used_as: str) -> Selection:
    """Gate, label and select.

    Parameters
    ----------
    table
        One row a recording.
    task
        Whose gate and labels count.
    names
        Features to keep, in this order.
    use_baseline
        Take features against each subject's own baseline rows, and keep those out.
    used_as
        What the counts call the rows that remain (`learned from`, `evaluated`).

    Raises
    ------
    ManifestError
        If the table has no labels for the task.
    TrainingError
        If a subject has no baseline row where one is needed.
    """
    gated = judge_table(table, task.limits)
    baseline = is_baseline(table.frame) if use_baseline else np.zeros(len(table.frame), bool)
    labels = labels_for(task, table.frame)
    labelled = labels.values.notna().to_numpy()
    keep = gated.usable & labelled & ~baseline
    X, subjects = gated.features[:, [table.feature_names.index(name) for name in names]], table.subjects
    if use_baseline and keep.any():
        heard = np.isin(subjects, subjects[keep])
        X = X.copy()
        X[heard] = relative_rows(X[heard], subjects[heard], (baseline & gated.usable)[heard])
    task = task.model_copy(update={"classes": labels.classes})
    others = table.frame[[name for name in table.frame.columns if name not in table.feature_names]]
    refused = ~gated.usable & labelled & ~baseline
    return Selection(
        rows=Rows(
            X[keep], tuple(names), encode_labels(labels.values[keep].to_numpy(), task.classes), subjects[keep], others[keep].reset_index(drop=True)
        ),
        task=task,
        counts={
            "given": len(table.frame) + len(table.problems),
            "without features": len(table.problems),
            "not usable": int((~gated.usable).sum()),
            "baseline": int((baseline & gated.usable).sum()),
            "without label": int((gated.usable & ~labelled & ~baseline).sum()),
            used_as: int(keep.sum()),
        },
        refused=others[refused].assign(label=labels.values[refused]).reset_index(drop=True),
        gate_failures={check: verdicts["fail"] for check, verdicts in gated.verdicts.items() if verdicts.get("fail")},
        problems=(*table.problems, *labels.problems),
    )
