"""The gate: is this recording good enough to be judged at all, and which measurements can it carry?

Provisional: the limits only; measure, judge and assess follow.
"""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field


class GateLimits(BaseModel):
    """What a recording has to reach; belongs to the task and travels in the bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    speech_fail_s: float = Field(default=10.0, ge=0)
    speech_warn_s: float = Field(default=25.0, ge=0)

    @classmethod
    def for_emotion(cls) -> Self:
        """Limits for emotion in single utterances."""
        return cls(speech_fail_s=1.0, speech_warn_s=2.0)
