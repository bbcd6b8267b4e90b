"""Models and recordings for the tests of explanations, made of numbers alone."""

import numpy as np

from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.cohorts.tasks import DEPRESSION, EMOTION
from clinical_ser.features.vector import FeatureVector
from clinical_ser.models.trained import TrainedModel
from clinical_ser.models.training import TrainingOptions, train
from tests.tables import table_of

EMBEDDING = tuple(f"embedding.test.{i}" for i in range(6))


def model_of(table: FeatureTable, *, head: str = "linear", refits: int = 8, emotion: bool = False, split: int = 3) -> TrainedModel:
    """Train quickly."""
    return train(table, EMOTION if emotion else DEPRESSION, TrainingOptions(head=head, refits=refits, split=split)).model


def three_classes(subjects: int = 240) -> FeatureTable:
    """Make a table in which the pause makes sad and the pitch makes happy."""
    table = table_of(subjects, seed=5, effect=0.0)
    pause, pitch = (table.frame[name].to_numpy() for name in ("timing.pause_mean_s", "praat.f0_median_hz"))
    table.frame["label"] = np.where(pause > 0.6, "sad", np.where(pitch > 0.3, "happy", "calm"))
    return table


def with_embedding(table: FeatureTable, *, of_named: float = 0.0, seed: int = 0) -> FeatureTable:
    """Add an embedding that tells of the label; `of_named` is the share of it that the pause tells too."""
    rng = np.random.default_rng(seed)
    ill = (table.frame["label"] == "depressed").to_numpy(float)
    pause = table.frame["timing.pause_mean_s"].to_numpy()
    signal = (1 - of_named) * (ill - ill.mean()) * 2 + of_named * pause * 2
    frame = table.frame.assign(**{name: signal + rng.normal(size=len(ill)) for name in EMBEDDING})
    return FeatureTable(frame, (*table.feature_names, *EMBEDDING), {**table.extractors, "embedding.test": "test encoder"})


def vector_of(table: FeatureTable, row: int, model: TrainedModel) -> FeatureVector:
    """Return one row as the vector that a recording would give."""
    values = table.frame.loc[row, list(model.features)].to_numpy(float)
    missing = {name: "not measured" for name, value in zip(model.features, values, strict=True) if np.isnan(value)}
    return FeatureVector(model.features, values, missing)
