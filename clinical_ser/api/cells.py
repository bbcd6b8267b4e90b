"""What a worker says of a recording for the monitoring's counts: cells and names of kinds, beside the result and never in it.

The one idea: it comes from a process that strangers' bytes may have taken over, so it is read as strictly as a result: channels that the model has,
cells that a channel has, names of kinds that are counted.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Self

import pandas as pd
from numpy.typing import ArrayLike
from pydantic import Field, ValidationError, model_validator

from clinical_ser.errors import ServerError
from clinical_ser.evaluation.subgroups import age_bands
from clinical_ser.monitoring.counts import BESIDE, LONGEST_NAME, NAMED, STATUS, Grid, Observation, observe, width_of
from clinical_ser.screening.result import ScreeningResult, Status
from clinical_ser.strict import Strict

MAX_CHANNEL = 200
MOST_CHANNELS = 10_000
"""The largest feature set has some 6,400 features."""
_KINDS = {STATUS, *NAMED}
_WITHOUT_FEATURE = re.compile(r"score|(summary|margin)\.[a-z0-9_]{1,40}")
_Text = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
_Check = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,64}$")]


class Cells(Strict):
    """An observation on its way from a worker to the server."""

    cells: dict[str, Annotated[int, Field(ge=0)]] = Field(max_length=MOST_CHANNELS)
    names: dict[_Text, _Text]
    failed: tuple[_Check, ...] = Field(max_length=100)

    @model_validator(mode="after")
    def _counted(self) -> Self:
        if not self.names.keys() <= _KINDS:
            raise ValueError("a kind of name that is not counted")
        if any(cell >= width_of(channel) or len(channel) > MAX_CHANNEL for channel, cell in self.cells.items()):
            raise ValueError("a cell that its channel does not have")
        return self

    @classmethod
    def of(cls, grid: Grid, x: ArrayLike | None, result: ScreeningResult, codec: str) -> Self:
        """Return the cells of a recording.

        Parameters
        ----------
        grid
            Of the model that answered.
        x
            What it was given, shape (features,); None where the gate refused the recording.
        result
            Its answer.
        codec
            Of the recording, as it was decoded.
        """
        context = result.context
        names = {
            "device": context.device,
            "codec": codec,
            "language": context.language,
            "sex": context.sex,
            "task": context.task,
            "age_band": None if context.age is None else str(age_bands(pd.Series([context.age])).iloc[0]),
        }
        failed = [check.name for check in result.quality.checks if check.verdict == "fail"]
        given = None if result.status is Status.NOT_USABLE else x
        found = observe(grid, given, status=str(result.status), failed=failed, names=names)
        return cls(cells=dict(found.cells), names=dict(found.names), failed=found.failed)

    @classmethod
    def read(cls, raw: bytes, features: frozenset[str]) -> Observation:
        """Read what a worker wrote of a recording for a model with these features; ServerError where it is no such thing."""
        try:
            found = cls.model_validate_json(raw)
        except ValidationError:
            raise ServerError("A worker's counts of a recording are none.") from None
        if any(not _is_of(channel, features) for channel in found.cells):
            raise ServerError("A worker's counts of a recording have a channel that the model has not.")
        return Observation(found.cells, found.names, found.failed)


def _is_of(channel: str, features: frozenset[str]) -> bool:
    return channel.removeprefix("feature.") in features if channel.startswith("feature.") else bool(_WITHOUT_FEATURE.fullmatch(channel))


def beside(observation: Observation, champion: ScreeningResult, shadow: ScreeningResult) -> Observation:
    """Return a shadow's observation with how its answer lies to the champion's, as kinds of names (`BESIDE`).

    `beside.DIGEST.status`, `….label` and `….tenth` (of the probability), where DIGEST begins the champion's; each counts pairs `champion > shadow`.
    """
    pairs: Mapping[str, tuple[object, object]] = {
        "status": (champion.status, shadow.status),
        "label": (_label(champion), _label(shadow)),
        "tenth": (_tenth(champion), _tenth(shadow)),
    }
    begins = f"{BESIDE}{champion.model.digest[:12]}."
    told = {begins + kind: f"{one} > {other}"[:LONGEST_NAME] for kind, (one, other) in pairs.items()}
    return Observation(observation.cells, {**observation.names, **told}, observation.failed)


def _label(result: ScreeningResult) -> str:
    return result.probability.label if result.probability else "-"


def _tenth(result: ScreeningResult) -> str:
    return str(min(9, int(10 * result.probability.value))) if result.probability else "-"
