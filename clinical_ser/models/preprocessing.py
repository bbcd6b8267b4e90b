"""From features with gaps to a full matrix on one scale: median for what is missing, mean 0 and SD 1, held within a bound.

Everything here is learned from training rows only; whoever makes folds fits one `Preprocessor` inside each.
"""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import model_validator

from clinical_ser.errors import InvalidValueError, TrainingError
from clinical_ser.models.rounding import rounded
from clinical_ser.models.state import State, Vector

MAX_ABS_Z = 5.0
"""Standardised values are held within ±5 SD. Ratios such as openSMILE's SD/mean explode where the mean is near zero; a normal feature leaves
±5 once in 1.7 million values, so this touches only such accidents, and one of them cannot outvote the other features."""

CONSTANT_RELATIVE_SD = 1e-9
"""A column whose SD is below this share of its largest magnitude is rounding noise around a constant."""


class PreprocessorState(State):
    """`preprocessing.json`: one entry a column, in feature order."""

    feature_names: tuple[str, ...]
    median: Vector
    mean: Vector
    scale: Vector

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        if {len(self.median), len(self.mean), len(self.scale)} != {len(self.feature_names)}:
            raise ValueError("median, mean and scale need one entry a feature")
        if any(value < 0 for value in self.scale):
            raise ValueError("a scale is negative")
        return self


class Preprocessor:
    """Impute, standardise, hold within a bound.

    Missing values become the column's median. A value says nothing by being absent: what is missing depends on the room and the device
    (a noisy recording has no HNR), and a model must not learn the room. Columns keep their order; a column that is constant or wholly
    missing in training becomes 0 for everyone.

    Attributes
    ----------
    feature_names_ : tuple of str
    median_, mean_, scale_ : ndarray of shape (features,)
        In the features' own units; `scale_` is the SD after imputation (divisor n), 0 for a column that is dropped.

    Examples
    --------
    >>> X = np.array([[1.0, 7.0], [3.0, 7.0], [np.nan, 7.0]])
    >>> Preprocessor().fit(X, ["f0", "constant"]).transform(X).round(2).tolist()
    [[-1.22, 0.0], [1.22, 0.0], [0.0, 0.0]]
    """

    feature_names_: tuple[str, ...]
    median_: NDArray[np.float64]
    mean_: NDArray[np.float64]
    scale_: NDArray[np.float64]

    def fit(self, X: ArrayLike, feature_names: Sequence[str]) -> Self:
        """Learn medians, means and scales.

        Parameters
        ----------
        X
            Shape (rows, features), NaN where missing.
        feature_names
            One name a column; `transform` and the bundle keep this order.

        Raises
        ------
        TrainingError
            If there is no row, or no column varies.
        InvalidValueError
            If the shape does not fit the names, a name appears twice, or a value is infinite.
        """
        self.feature_names_ = _unique(feature_names)
        values = _checked(X, self.feature_names_)
        if not len(values):
            raise TrainingError("No rows to learn the feature scales from.")
        self.median_ = _medians(values)
        filled = np.where(np.isnan(values), self.median_, values)
        self.mean_ = filled.mean(axis=0)
        spread = filled.std(axis=0)
        self.scale_ = np.where(spread > CONSTANT_RELATIVE_SD * np.abs(filled).max(axis=0), spread, 0.0)
        if not self.scale_.any():
            raise TrainingError("Every feature is constant or missing in the training rows; there is nothing to learn from.")
        return self

    def transform(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return Z, shape (rows, features): finite, standardised, within ±`MAX_ABS_Z`.

        Raises
        ------
        InvalidValueError
            If the number of columns differs from training, or a value is infinite.
        """
        values = _checked(X, self.feature_names_)
        filled = np.where(np.isnan(values), self.median_, values)
        used = self.scale_ > 0
        standardised = np.divide(filled - self.mean_, self.scale_, out=np.zeros_like(filled), where=used)
        return np.clip(standardised, -MAX_ABS_Z, MAX_ABS_Z)

    @property
    def dropped_(self) -> tuple[str, ...]:
        """Names of the columns that were constant or wholly missing in training."""
        return tuple(name for name, scale in zip(self.feature_names_, self.scale_, strict=True) if scale == 0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `preprocessing.json`."""
        state = PreprocessorState(feature_names=self.feature_names_, median=tuple(self.median_), mean=tuple(self.mean_), scale=tuple(self.scale_))
        return state.to_dict()

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Inverse of `to_dict`; BundleSchemaError if the values do not fit together."""
        state = PreprocessorState.from_dict(data)
        preprocessor = cls()
        preprocessor.feature_names_ = state.feature_names
        preprocessor.median_ = np.array(state.median)
        preprocessor.mean_ = np.array(state.mean)
        preprocessor.scale_ = np.array(state.scale)
        return preprocessor


def _unique(feature_names: Sequence[str]) -> tuple[str, ...]:
    names = tuple(feature_names)
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise InvalidValueError("feature_names", twice, "each name once")
    return names


def _checked(X: ArrayLike, names: tuple[str, ...]) -> NDArray[np.float64]:
    values = np.asarray(X, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != len(names):
        raise InvalidValueError("X", f"array of shape {values.shape}", f"shape (rows, {len(names)}), one column a feature")
    infinite = np.isinf(values).any(axis=0)
    if infinite.any():
        raise InvalidValueError("X", "infinity", f"finite numbers or NaN; look at {[names[i] for i in np.flatnonzero(infinite)[:5]]}")
    return values


def _medians(values: NDArray[np.float64]) -> NDArray[np.float64]:
    known = ~np.isnan(values).all(axis=0)
    medians = np.zeros(values.shape[1])
    medians[known] = rounded(np.nanmedian(values[:, known], axis=0))
    return medians
