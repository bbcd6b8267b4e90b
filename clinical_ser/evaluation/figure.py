"""A figure as it is written down: never without its interval, and never without how many people stand behind it."""

import math
from typing import Self

from pydantic import Field, model_validator

from clinical_ser.strict import Strict

DUST = 1e-9
"""What rounding may put a figure outside its own interval by."""


class Figure(Strict):
    """A figure with its 95 % interval; None where it is not defined (a class is absent, no fit exists, too few replicates were defined)."""

    value: float | None
    low: float | None
    high: float | None
    subjects: int = Field(ge=0)
    """Whom the figure is about: for a sensitivity those with the condition, for an AUROC everyone."""
    recordings: int = Field(ge=0)
    method: str
    """`cluster bootstrap`, `Wilson` or `DeLong`."""

    @model_validator(mode="after")
    def _within_its_bounds(self) -> Self:
        if self.value is None:
            return self
        low, high = (self.value if bound is None else bound for bound in (self.low, self.high))
        if not low - DUST <= self.value <= high + DUST:
            raise ValueError("a figure lies within its interval")
        return self

    @classmethod
    def of(cls, value: float, low: float, high: float, *, subjects: int, recordings: int, method: str) -> Self:
        """Write a figure down; what is not finite is not defined."""
        known = (float(number) if math.isfinite(number) else None for number in (value, low, high))
        return cls(value=next(known), low=next(known), high=next(known), subjects=subjects, recordings=recordings, method=method)

    def __str__(self) -> str:
        if self.value is None:
            return "not defined"
        bounds = "no interval" if self.low is None or self.high is None else f"{self.low:.3f}, {self.high:.3f}"
        return f"{self.value:.3f} [{bounds}]"
