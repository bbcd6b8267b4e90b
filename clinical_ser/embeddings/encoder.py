"""What an encoder is: a network that turns speech into vectors, with a fingerprint that a model trained on its vectors can insist on.

The one idea: an encoder says how it hears (rate, window, padding, level), and this room does the hearing. A back end only runs its network on
windows of samples, so no two can differ in how they cut, pad, or average.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, ClassVar, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StringConstraints, model_validator

from clinical_ser.audio.analysis import FINGERPRINT as AUDIO
from clinical_ser.audio.recording import SAMPLE_RATE_HZ, Recording
from clinical_ser.embeddings.pooling import Cells
from clinical_ser.strict import Strict

WINDOWING = "windows/1"
"""Part of every fingerprint: counts up with any change to `windows.py` or `pooling.py` that could move a value."""

EncoderName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=300)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Padding(StrEnum):
    """What zeros after the end of a window do to the network's answer."""

    NONE_NEEDED = "none_needed"
    """Nothing: the network looks back only, or as far ahead as zeros reach anyway. Windows of any length share a batch."""
    MASK = "mask"
    """Nothing, because the network is told how long each window is (layer-normalised transformers)."""
    EQUAL = "equal"
    """They change it (group normalisation over time, as in wav2vec2-base), so that only windows of one length share a batch."""


class Pooling(StrEnum):
    """How the vectors of frames become that of the recording, over the frames in speech."""

    MEAN = "mean"
    MEAN_SD = "mean_sd"
    """Mean and standard deviation of each dimension, one after the other (statistics pooling, Snyder et al. 2017, Interspeech:999-1003)."""


class EncoderSpec(Strict):
    """Everything about an encoder but its weights."""

    name: EncoderName
    title: Text
    frame_dim: int = Field(ge=1, le=16_384)
    """Length of one frame's vector."""
    frame_step_s: float | None = Field(gt=0, le=10)
    """Time between frames; None for an encoder that gives one vector a window."""
    first_frame_s: float = Field(default=0.0, ge=0, le=10)
    """Centre of the first frame."""
    sample_rate_hz: int = Field(default=SAMPLE_RATE_HZ, ge=8_000, le=48_000)
    min_s: float = Field(default=1.0, ge=1.0, le=10)
    """Shorter recordings are refused."""
    window_s: float = Field(default=10.0, ge=1.0, le=60)
    """Longest stretch that the network hears at once."""
    context_s: float = Field(default=1.0, ge=0, le=10)
    """At each cut between two windows, how much the network hears beyond what is kept of a window."""
    padding: Padding
    pooling: Pooling = Pooling.MEAN
    raise_to_dbfs: float | None = Field(default=None, le=0, ge=-100)
    """A recording whose RMS is below this is made louder up to it, if the network was trained so."""
    standardise: bool = False
    """Whether samples are given with mean 0 and standard deviation 1."""
    licence: Text
    identifies_speakers: bool = True
    """Whether a speaker can be told by the vector: of every encoder measured so far, yes."""
    source: Text
    """Where the weights come from, and who trained them."""

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if 2 * self.context_s >= self.window_s:
            raise ValueError("a window is more than its context on both sides")
        return self

    @property
    def dim(self) -> int:
        """Length of a recording's vector."""
        return self.frame_dim * (2 if self.pooling is Pooling.MEAN_SD else 1)

    def fingerprint_of(self, *weights: str) -> str:
        """Return the fingerprint of this encoder with weights of these digests: what it says of itself, and the code that cuts and averages."""
        digest = hashlib.sha256(self.model_dump_json(exclude={"title", "licence", "source"}).encode())
        for weight in weights:
            digest.update(f"\n{weight}".encode())
        return f"{AUDIO} {WINDOWING} {self.name}/{digest.hexdigest()}"


@dataclass(frozen=True, eq=False)
class Embedding:
    """What an encoder made of one recording. It identifies the speaker: keep it as you keep the recording."""

    utterance: NDArray[np.float64]
    """Shape (D,): pooled over the frames in speech."""
    speech_s: float
    """Seconds of speech that it is pooled over."""
    times_s: NDArray[np.float64]
    """Shape (T,): centres of the frames, where frames were asked for; else empty."""
    frames: NDArray[np.float32]
    """Shape (T, frame_dim), in speech and outside of it."""
    cells: Cells | None = None
    """Sums over short stretches, where asked for, from which the vector can be pooled again with stretches left out."""


@runtime_checkable
class Encoder(Protocol):
    """What every encoder offers; `WindowedEncoder` is the easy way to write one."""

    @property
    def spec(self) -> EncoderSpec:
        """What it is and how it hears."""

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints, equal vectors: of the weights, the code and the parameters."""

    def encode(
        self, recordings: Sequence[Recording], *, speech: Sequence[NDArray[np.bool_]] | None = None, frames: bool = False, cells: bool = False
    ) -> list[Embedding]:
        """Encode recordings.

        Parameters
        ----------
        recordings
            From `clinical_ser.audio.load`. What one becomes does not depend on the others.
        speech
            For each recording `SpeechAnalysis.speech`, if it is known already.
        frames
            Also return the vectors of frames; their memory grows with the recording.
        cells
            Also return sums over stretches of 0.1 s.

        Raises
        ------
        EmbeddingError
            A recording is shorter than `spec.min_s`, or no speech was found in it.
        """


class WindowedEncoder(ABC):
    """An encoder that is given windows of samples, already cut, levelled and padded."""

    spec: EncoderSpec
    fingerprint: str
    batch_s: ClassVar[float] = 40.0
    """Longest batch, padding counted: what a batch of eight windows of five seconds takes."""

    @abstractmethod
    def run(self, samples: NDArray[np.float32], lengths: NDArray[np.int64]) -> Sequence[NDArray[np.float32]]:
        """Run the network on a batch.

        Parameters
        ----------
        samples
            Shape (windows, samples), zeros after the end of a window; of one length where `spec.padding` says so.
        lengths
            Shape (windows,), samples in each.

        Returns
        -------
        sequence of ndarray of shape (frames, frame_dim)
            One entry a window; what the network makes of padding may follow and is cut off.
        """

    def encode(
        self, recordings: Sequence[Recording], *, speech: Sequence[NDArray[np.bool_]] | None = None, frames: bool = False, cells: bool = False
    ) -> list[Embedding]:
        """Encode recordings; see `Encoder.encode`."""
        from clinical_ser.embeddings.windows import encode

        return encode(self, recordings, speech=speech, frames=frames, cells=cells)


def column_names(spec: EncoderSpec) -> tuple[str, ...]:
    """Return the catalogue names of the vector's dimensions."""
    return _columns(spec.name, spec.dim)


@lru_cache(maxsize=64)  # so that all tables and vectors share one tuple
def _columns(name: str, dim: int) -> tuple[str, ...]:
    return tuple(f"embedding.{name}.{i}" for i in range(dim))
