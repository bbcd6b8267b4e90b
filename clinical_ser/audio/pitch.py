"""The pitch track: Praat's autocorrelation method twice, the second time in the range that the first found for this speaker.

A range that is too wide lets octave errors in, one that is too narrow cuts expressive speech off; quartiles of a first pass settle both.
"""

import math
from dataclasses import dataclass

import numpy as np
import parselmouth
from numpy.typing import NDArray

FRAME_STEP_S = 0.01
FIRST_FLOOR_HZ, FIRST_CEILING_HZ = 60.0, 700.0
"""First pass after Hirst 2007 (A Praat plugin for Momel and INTSINT, ICPhS XVI, 1233-1236: 60 to 750 Hz)."""
FIRST_STEP_S = 0.025
"""Quartiles need few frames; a quarter of the first pass's cost at 10 ms."""
FLOOR_FACTOR, CEILING_FACTOR = 0.75, 2.5
"""Of the first and third quartile. De Looze & Hirst 2008 (Speech Prosody, 135-138) take 1.5 for the ceiling; Hirst 2011 (J Speech Sciences
1:55-83) raises it to 2.5 for expressive speech, which is what is screened here."""
FLOOR_RANGE_HZ = (50.0, 250.0)
CEILING_RANGE_HZ = (200.0, 800.0)
MIN_VOICED_FRAMES = 8
"""With fewer voiced frames in the first pass (0.2 s) quartiles mean nothing, and the range of the first pass is kept."""

# Praat's own defaults (manual, "Sound: To Pitch (raw autocorrelation)..."), written out because they decide what counts as voiced.
_CANDIDATES = 15
_SILENCE_THRESHOLD = 0.03
_VOICING_THRESHOLD = 0.45
_OCTAVE_COST = 0.01
_OCTAVE_JUMP_COST = 0.35
_VOICED_UNVOICED_COST = 0.14
# Praat's window holds three periods of the floor; the lowest floor is FLOOR_RANGE_HZ[0], and a frame more makes sure that one fits.
_MIN_DURATION_S = 3 / FLOOR_RANGE_HZ[0] + FRAME_STEP_S


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


def track_pitch(sound: parselmouth.Sound) -> PitchTrack:
    """Track F0 every 10 ms.

    Parameters
    ----------
    sound : parselmouth.Sound
        Mono, of any length; Praat refuses sounds shorter than one window (50 ms here), so those are padded with zeros.

    Returns
    -------
    PitchTrack
        In the range that suits this speaker.
    """
    sound = _padded(sound)
    floor, ceiling = adapted_range(_praat_pitch(sound, FIRST_STEP_S, FIRST_FLOOR_HZ, FIRST_CEILING_HZ).selected_array["frequency"])
    pitch = _praat_pitch(sound, FRAME_STEP_S, floor, ceiling)
    selected = pitch.selected_array
    voiced = selected["frequency"] > 0
    return PitchTrack(
        times_s=pitch.xs(),
        f0_hz=np.where(voiced, selected["frequency"], 0.0),
        strength=np.where(voiced, selected["strength"], 0.0),
        floor_hz=floor,
        ceiling_hz=ceiling,
        praat=pitch,
    )


def adapted_range(f0_hz: NDArray[np.float64]) -> tuple[float, float]:
    """Return (floor, ceiling) in Hz for a speaker whose first-pass F0 is `f0_hz`, shape (frames,), 0 where unvoiced."""
    voiced = f0_hz[f0_hz > 0]
    if len(voiced) < MIN_VOICED_FRAMES:
        return FIRST_FLOOR_HZ, FIRST_CEILING_HZ
    low, high = np.quantile(voiced, (0.25, 0.75))
    floor = min(max(FLOOR_FACTOR * float(low), FLOOR_RANGE_HZ[0]), FLOOR_RANGE_HZ[1])
    ceiling = min(max(CEILING_FACTOR * float(high), CEILING_RANGE_HZ[0]), CEILING_RANGE_HZ[1])
    return float(math.floor(floor)), float(math.ceil(ceiling))


def _padded(sound: parselmouth.Sound) -> parselmouth.Sound:
    missing = math.ceil((_MIN_DURATION_S - sound.duration) * sound.sampling_frequency)
    if missing <= 0:
        return sound
    return parselmouth.Sound(np.pad(sound.values[0], (0, missing)), sound.sampling_frequency)


def _praat_pitch(sound: parselmouth.Sound, step_s: float, floor_hz: float, ceiling_hz: float) -> parselmouth.Pitch:
    return sound.to_pitch_ac(
        time_step=step_s,
        pitch_floor=floor_hz,
        max_number_of_candidates=_CANDIDATES,
        very_accurate=False,
        silence_threshold=_SILENCE_THRESHOLD,
        voicing_threshold=_VOICING_THRESHOLD,
        octave_cost=_OCTAVE_COST,
        octave_jump_cost=_OCTAVE_JUMP_COST,
        voiced_unvoiced_cost=_VOICED_UNVOICED_COST,
        pitch_ceiling=ceiling_hz,
    )
