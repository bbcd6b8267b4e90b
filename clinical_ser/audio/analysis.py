"""What is computed once for a recording and shared by the gate, the timing features and the Praat features.

One pitch track, one level track, one decision where there is speech: nothing after this room computes them again.
"""

from dataclasses import dataclass

import numpy as np
import parselmouth
from numpy.typing import NDArray

from clinical_ser.audio.pitch import FRAME_STEP_S, PitchTrack, track_pitch
from clinical_ser.audio.recording import SAMPLE_RATE_HZ, Recording
from clinical_ser.audio.voice_activity import detect_speech, level_track

__all__ = ["FINGERPRINT", "FRAME_STEP_S", "PitchTrack", "SpeechAnalysis", "analyse", "analyse_samples"]

FINGERPRINT = "audio/1"
"""Part of every feature's fingerprint: counts up with any change to loading, pitch or speech detection that could move a value.
`tests/features/test_golden.py` fails when that was forgotten."""


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


def analyse(recording: Recording) -> SpeechAnalysis:
    """Measure what the gate and the features share: pitch, level and where there is speech.

    Takes about 4.5 ms of CPU a second of recording, nearly all of it Praat's. Any length will do, from one sample on.

    Examples
    --------
    >>> import numpy as np
    >>> from clinical_ser.audio import analyse, from_samples
    >>> analyse(from_samples(np.zeros(16_000), 16_000)).speech_s
    0.0
    """
    return analyse_samples(recording.samples)


def analyse_samples(samples: NDArray[np.float32]) -> SpeechAnalysis:
    """As `analyse`, for a part of a recording's samples: shape (n,), at 16 kHz."""
    sound = parselmouth.Sound(samples.astype(np.float64), float(SAMPLE_RATE_HZ))
    pitch = track_pitch(sound)
    level_dbfs = level_track(samples)
    activity = detect_speech(samples, level_dbfs, pitch)
    return SpeechAnalysis(
        sound=sound,
        pitch=pitch,
        level_dbfs=level_dbfs,
        speech=activity.speech,
        noise_floor_dbfs=activity.noise_floor_dbfs,
        segments_s=activity.segments_s,
    )
