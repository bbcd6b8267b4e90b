"""The features of one recording: named numbers, and for each number that is not there the reason why."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class FeatureVector:
    """Values in catalogue order.

    `names` are catalogue names (`praat.hnr_mean_db`); `values` has shape (len(names),), float64, NaN exactly where `missing` gives a reason.
    """

    names: tuple[str, ...]
    values: NDArray[np.float64]
    missing: Mapping[str, str]

    def __post_init__(self) -> None:
        absent = {name for name, value in zip(self.names, self.values, strict=True) if not np.isfinite(value)}
        if absent != set(self.missing):
            raise ValueError(f"Values and reasons disagree for {sorted(absent ^ set(self.missing))}.")

    def __getitem__(self, name: str) -> float:
        return float(self.values[self.names.index(name)])
