"""A figure as it is written down: never without its interval, and never without how many people stand behind it."""

from clinical_ser.strict import Strict


class Figure(Strict):
    """A figure with its 95 % interval; None where it is not defined (a class is absent, no fit exists, too few replicates were defined)."""

    value: float | None
    low: float | None
    high: float | None
    subjects: int
    """Whom the figure is about: for a sensitivity those with the condition, for an AUROC everyone."""
    recordings: int
    method: str
    """`cluster bootstrap`, `Wilson` or `DeLong`."""

    def __str__(self) -> str:
        if self.value is None:
            return "not defined"
        bounds = "no interval" if self.low is None or self.high is None else f"{self.low:.3f}, {self.high:.3f}"
        return f"{self.value:.3f} [{bounds}]"
