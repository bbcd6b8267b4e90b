"""What is computed once for a recording and shared by the gate, the timing features and the Praat features.

One pitch track, one level track, one decision where there is speech: nothing after this room computes them again.
"""

from dataclasses import dataclass

import numpy as np
import parselmouth
from numpy.typing import NDArray

FRAME_STEP_S = 0.01


@dataclass(frozen=True, eq=False)
class PitchTrack:
    """F0 every 10 ms from Praat's autocorrelation method, in a range adapted to the speaker by a first pass."""

    times_s: NDArray[np.float64]
    f0_hz: NDArray[np.float64]
    """Shape (frames,); 0 where unvoiced."""
    strength: NDArray[np.float64]
    """Shape (frames,); normalised autocorrelation of the chosen candidate, 0 where unvoiced."""
    floor_hz: float
    ceiling_hz: float
    praat: parselmouth.Pitch

    @property
    def voiced(self) -> NDArray[np.bool_]:
        """Shape (frames,); where F0 was found."""
        return self.f0_hz > 0


@dataclass(frozen=True, eq=False)
class SpeechAnalysis:
    """Shared measurements of one recording; made by `clinical_ser.audio.analyse`.

    Not picklable (it holds Praat objects) and not kept: it lives as long as one extraction.
    """

    sound: parselmouth.Sound
    """The recording as Praat holds it (float64 copy at 16 kHz)."""
    pitch: PitchTrack
    level_dbfs: NDArray[np.float64]
    """Shape (frames,); RMS level of 25 ms windows, frame k centred at (k + 0.5) * FRAME_STEP_S; -120 at digital silence."""
    speech: NDArray[np.bool_]
    """Shape (frames,), same grid; True inside a speech segment (voiced or between voiced sounds of one phrase)."""
    noise_floor_dbfs: float
    segments_s: tuple[tuple[float, float], ...]
    """Speech segments (start, end) in seconds, in order; a gap of at least 250 ms between two is a pause."""

    @property
    def speech_s(self) -> float:
        """Net speech in seconds."""
        return float(sum(end - start for start, end in self.segments_s))
