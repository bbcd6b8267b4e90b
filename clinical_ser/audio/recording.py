"""A recording as every room after this one sees it: finite mono float32 at 16 kHz, and what its source looked like."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE_HZ = 16_000
"""Rate of every `Recording`. openSMILE's loudness moves with the rate (0.37 / 0.51 / 0.89 at 8 / 16 / 44.1 kHz), so there is one."""


@dataclass(frozen=True, eq=False)
class SourceInfo:
    """What the decoder met, measured on the decoded signal before conversion, where conversion would hide it."""

    codec: str
    """The decoder's name (`pcm_s16`, `aac`, `opus`, ...), or `array` for samples handed over in memory."""
    sample_rate_hz: int
    channels: int
    bit_rate_bps: int | None
    """Of the encoded audio stream; None where the container does not say."""
    peak: float
    """Largest |x| over all channels, full scale = 1; more than 1 is possible in float files."""
    clipped_fraction: float
    """Share of samples at full scale (or in flat runs at the signal's own maximum), worst channel."""
    dc_offset: float
    """Mean of the mono signal before it was removed, full scale = 1."""
    nonfinite_fraction: float
    """Share of samples that were NaN or infinite and were set to zero."""
    complete: bool = True
    """False when a part could not be decoded, or the file ends before its header, or the segment asked for, does."""


@dataclass(frozen=True, eq=False)
class Recording:
    """Samples ready for analysis.

    `samples` has shape (n,), dtype float32, values finite, without DC, within ±32767/32768, and is not writeable. `sha256` is the hex digest of
    the samples as 16-bit little-endian PCM: the same audio under two names or in two lossless containers has one digest.
    """

    samples: NDArray[np.float32]
    sha256: str
    source: SourceInfo

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / SAMPLE_RATE_HZ
