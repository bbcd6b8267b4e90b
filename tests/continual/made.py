"""People of now and then, made of numbers alone."""

from dataclasses import replace

import numpy as np

from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.cohorts.tasks import get_task
from clinical_ser.models.rows import Rows, select_rows
from clinical_ser.models.trained import TrainedModel
from tests.tables import table_of

DEPRESSION = get_task("depression")


def people(count: int, seed: int, *, prefix: str = "new", **options) -> FeatureTable:
    """A table whose subjects no other prefix has."""
    table = table_of(count, seed=seed, **options)
    return replace(table, frame=table.frame.assign(subject=[f"{prefix}-{subject}" for subject in table.frame["subject"]]))


def thinned(table: FeatureTable, label: str, keep: float, seed: int = 0) -> FeatureTable:
    """A table with some of a class left out: another prevalence."""
    kept = (table.frame["label"] != label) | (np.random.default_rng(seed).uniform(size=len(table.frame)) < keep)
    return replace(table, frame=table.frame[kept].reset_index(drop=True))


def rows_of(model: TrainedModel, table: FeatureTable) -> Rows:
    return select_rows(table, model.task, model.features, use_baseline=False, used_as="learned from").rows
