"""What a model is asked: its classes, the label that defines them, and how good a recording has to be to ask at all."""

import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from clinical_ser.audio.quality import GateLimits
from clinical_ser.errors import InvalidValueError


class TaskKind(StrEnum):
    """Two classes with an operating point, or several."""

    BINARY = "binary"
    MULTICLASS = "multiclass"


class Task(BaseModel):
    """One question, as it travels in the training configuration and in the bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=64, pattern=r"^[a-z0-9_-]+$")
    kind: TaskKind
    classes: tuple[str, ...] = ()
    """For a binary task (negative, positive); for several, in the order of the probabilities. Empty: taken from the training labels, sorted."""
    score_name: str | None = None
    """The questionnaire behind the label (`PHQ-8`); None when labels are given directly."""
    score_cutoff: float | None = None
    """A `score` at or above it is positive."""
    limits: GateLimits = GateLimits()
    target_sensitivity: float = Field(default=0.85, gt=0, lt=1)
    """The sensitivity whose lower confidence bound the operating point has to meet (binary)."""
    prevalence: float | None = Field(default=None, gt=0, lt=1)
    """Share of positives among the people the model will meet; probabilities are stated for it (binary). None: as in training."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kind is TaskKind.BINARY and len(self.classes) != 2:
            raise ValueError("a binary task names exactly two classes, (negative, positive)")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes must differ")
        return self


DEPRESSION = Task(
    name="depression",
    kind=TaskKind.BINARY,
    classes=("not_depressed", "depressed"),
    # PHQ-8 >= 10: Kroenke et al. 2009, J Affect Disord 114:163-173. The questionnaire is itself a screen.
    score_name="PHQ-8",
    score_cutoff=10.0,
    limits=GateLimits(),
    prevalence=0.10,
)

EMOTION = Task(name="emotion", kind=TaskKind.MULTICLASS, limits=GateLimits.for_emotion())

BUILT_IN = {task.name: task for task in (DEPRESSION, EMOTION)}


def get_task(name: str) -> Task:
    """Return a built-in task by name; InvalidValueError lists those there are."""
    try:
        return BUILT_IN[name]
    except KeyError:
        raise InvalidValueError("task", name, sorted(BUILT_IN)) from None


def read_task(path: Path) -> Task:
    """Read a task of your own from TOML, as `docs/cohorts.md` shows; InvalidValueError names what does not fit."""
    try:
        return Task.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError:
        raise InvalidValueError("task", "a file that cannot be read", f"a .toml file that is there, or one of {sorted(BUILT_IN)}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise InvalidValueError("task", "a file that is not TOML", "a TOML file in UTF-8") from None
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'the whole'}: {fault['msg']}" for fault in error.errors())
        raise InvalidValueError("task", "a file that does not define one", faults) from None
