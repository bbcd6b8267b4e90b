"""From a recording to a result."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from clinical_ser.screening.result import ScreeningResult, Status
from clinical_ser.screening.screener import Screener, Source

DEFAULT_MODEL = "depression-simulated"


def load_model(model: str | Path = DEFAULT_MODEL) -> Screener:
    """Load a model by name or folder; see `Screener.load`."""
    return Screener.load(model)


@lru_cache(maxsize=4)
def _loaded(model: str | Path) -> Screener:
    return Screener.load(model)


def screen(source: Source, *, model: str | Path = DEFAULT_MODEL, **options: Any) -> ScreeningResult:
    """Screen one recording; `options` are those of `Screener.screen`. The model is verified and loaded once a process.

    Examples
    --------
    >>> screen("visit.m4a", sex="female", age=54).status  # doctest: +SKIP
    <Status.NOT_FLAGGED: 'not_flagged'>
    """
    return _loaded(model).screen(source, **options)


__all__ = ["DEFAULT_MODEL", "Screener", "ScreeningResult", "Source", "Status", "load_model", "screen"]
