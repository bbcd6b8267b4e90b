"""A subject against their own earlier recordings: features less the mean of the subject's baseline recordings.

Two neutral clips a person raised emotion recognition on unseen speakers more than any feature did; a person's own voice is the closest
reference there is. A model knows whether it was trained this way and refuses to answer without a baseline.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clinical_ser.errors import TrainingError
from clinical_ser.features.vector import FeatureVector

COLUMN = "baseline"
"""Manifest column that marks a subject's baseline recordings (true/false, yes/no, 1/0)."""
NO_VALUE = "no baseline recording of this subject has a value"
_TRUE = frozenset({"true", "yes", "1", "1.0"})


def is_baseline(frame: pd.DataFrame) -> NDArray[np.bool_]:
    """Return shape (rows,), True where the `baseline` column says so; all False without the column."""
    return marked(frame, COLUMN)


def marked(frame: pd.DataFrame, column: str) -> NDArray[np.bool_]:
    """Return shape (rows,), True where a yes-or-no column of a manifest says yes; all False without the column."""
    if column not in frame.columns:
        return np.zeros(len(frame), bool)
    return frame[column].astype(str).str.strip().str.lower().isin(_TRUE).to_numpy(bool)


def relative_rows(X: NDArray[np.float64], subjects: NDArray[np.str_], baseline: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Subtract from each row the mean of its subject's baseline rows.

    Parameters
    ----------
    X
        Shape (rows, features), NaN where missing.
    subjects, baseline
        Shape (rows,).

    Returns
    -------
    ndarray
        Shape (rows, features); NaN where the row, or all of its subject's baseline, has no value. Baseline rows are returned too, less their own
        mean, and must not be trained on or scored.

    Raises
    ------
    TrainingError
        When a subject has no baseline row.
    """
    means = pd.DataFrame(X[baseline]).groupby(subjects[baseline]).mean()
    without = set(np.unique(subjects)) - set(means.index)
    if without:
        raise TrainingError(f"{len(without)} subjects have no baseline recording; mark at least one row of each in the column '{COLUMN}'.")
    relative: NDArray[np.float64] = X - means.reindex(list(subjects)).to_numpy(np.float64)
    return relative


def relative(vector: FeatureVector, baseline: Sequence[FeatureVector]) -> FeatureVector:
    """Subtract the mean of the baseline vectors, feature by feature, over those that have a value; at least one is needed."""
    stacked = np.array([earlier.values for earlier in baseline])
    known = np.isfinite(stacked)
    counts = known.sum(axis=0)
    mean = np.where(counts > 0, np.where(known, stacked, 0).sum(axis=0) / np.maximum(counts, 1), np.nan)
    missing = dict(vector.missing) | {name: NO_VALUE for name, n in zip(vector.names, counts, strict=True) if n == 0 and name not in vector.missing}
    return FeatureVector(vector.names, vector.values - mean, missing)
