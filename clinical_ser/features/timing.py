"""How a recording's speech is spread over time: pauses, rate, runs of voice.

Everything is read off the shared `SpeechAnalysis`; silence before the first and after the last word never counts. Syllables are counted
as nuclei, loud voiced peaks of the level track (de Jong & Wempe 2009), so no transcript and no language model is needed.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.signal import find_peaks

from clinical_ser.audio.analysis import FRAME_STEP_S, SpeechAnalysis
from clinical_ser.audio.voice_activity import MIN_PAUSE_S, f0_on_grid, runs, segments_of
from clinical_ser.features.kept import Kept

MIN_PAUSES_FOR_SD = 5
"""Below it the SD of pauses is missing: the standard error of an SD from n values is about 1 / sqrt(2 (n - 1)) of it, 35 % at five."""
MIN_RUNS_FOR_SD = 5
"""The same for runs of voice."""
MIN_DIP_DB = 2.0
"""A nucleus stands this far above the level on both of its sides (de Jong & Wempe 2009, Behav Res Methods 41:385)."""
NUCLEUS_RANGE_DB = 25.0
"""A nucleus lies at most this far below the loud end of the speech (99th percentile; version 2 of de Jong & Wempe's script, 2010)."""
SMOOTHING_S = 0.015
"""SD of the Gaussian that smooths the level in dB. Chosen on 206 RAVDESS sentences of seven syllables (7.0 found on average, 88 % within one;
10 ms finds 7.5, 20 ms 6.5); on 206 others it finds 7.1, 85 % within one. A port of the published script, on Praat's 64 ms intensity window, finds
8.4 on the first 206, 60 % within one."""
LOUD_END_PERCENTILE = 99.0

NAMES = (
    "timing.pause_count",
    "timing.pause_rate_per_min",
    "timing.pause_total_s",
    "timing.pause_share_percent",
    "timing.pause_mean_s",
    "timing.pause_sd_s",
    "timing.pause_median_s",
    "timing.pause_max_s",
    "timing.phonation_time_s",
    "timing.phonation_ratio",
    "timing.speech_run_mean_s",
    "timing.speech_rate_syll_per_s",
    "timing.articulation_rate_syll_per_s",
    "timing.syllable_mean_s",
    "timing.voiced_run_rate_per_s",
    "timing.voiced_run_mean_s",
    "timing.voiced_run_sd_s",
    "timing.voiced_share_percent",
)

FINGERPRINT = (
    f"timing/1 pause={MIN_PAUSE_S} sd_from={MIN_PAUSES_FOR_SD},{MIN_RUNS_FOR_SD} dip={MIN_DIP_DB} range={NUCLEUS_RANGE_DB}"
    f" smoothing={SMOOTHING_S} loud={LOUD_END_PERCENTILE}"
)
"""Changes whenever a value could; a bundle made under another one is refused."""

NO_SPEECH = "no speech found"
NO_PAUSE = f"no pause of {MIN_PAUSE_S} s or more between first and last word"
FEW_PAUSES = f"fewer than {MIN_PAUSES_FOR_SD} pauses"
NO_SYLLABLE = "no syllable found"
NO_VOICE = "no voiced sound found"
FEW_RUNS = f"fewer than {MIN_RUNS_FOR_SD} stretches of voice"


@dataclass(frozen=True, eq=False)
class Phrasing:
    """Speech and pauses between the first and the last word, all in seconds."""

    span_s: float
    pauses_s: NDArray[np.float64]

    @property
    def phonation_s(self) -> float:
        """Time spent speaking: the span without its pauses."""
        return self.span_s - float(self.pauses_s.sum())


@dataclass(frozen=True, eq=False)
class _Course:
    """The frames that are looked at, one after the other as if there had never been others; all arrays of shape (frames,)."""

    level_dbfs: NDArray[np.float64]
    speech: NDArray[np.bool_]
    voiced: NDArray[np.bool_]
    segments_s: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, analysis: SpeechAnalysis) -> Self:
        voiced = np.asarray(f0_on_grid(analysis.pitch, len(analysis.level_dbfs)) > 0)
        return cls(analysis.level_dbfs, analysis.speech, voiced, analysis.segments_s)

    def left(self, kept: Kept) -> "_Course":
        """Take frames out and join what was before and after them."""
        if kept.keep.all():
            return self
        speech = kept.speech(self.speech)
        segments_s = segments_of(speech, len(speech) * FRAME_STEP_S)
        return _Course(self.level_dbfs[kept.keep], speech, self.voiced[kept.keep], segments_s)


def compute(analysis: SpeechAnalysis, keep: NDArray[np.bool_] | None = None) -> tuple[dict[str, float], dict[str, str]]:
    """Measure the timing features of one recording, or of what is left of it when frames are taken out and the ends joined.

    Parameters
    ----------
    analysis
        The shared measurements of the recording.
    keep
        Shape (frames,), on the grid of `SpeechAnalysis.level_dbfs`; True where a frame stays. None keeps all.

    Returns
    -------
    values
        Every name of `NAMES`, in that order; NaN where missing.
    missing
        For each NaN the reason, a phrase that reads on its own.

    Raises
    ------
    InvalidValueError
        A mask of another shape or type.

    References
    ----------
    Goldman-Eisler F (1968), Psycholinguistics: Experiments in Spontaneous Speech.
    Mundt JC et al. (2007), Journal of Neurolinguistics 20:50-64.
    de Jong NH, Wempe T (2009), Behavior Research Methods 41:385-390.
    """
    course = _Course.of(analysis).left(Kept.of(keep, len(analysis.level_dbfs)))
    if not course.segments_s:
        return dict.fromkeys(NAMES, np.nan), dict.fromkeys(NAMES, NO_SPEECH)
    phrasing = phrase(course.segments_s)
    found: dict[str, float | str] = {
        **_pauses(phrasing),
        **_rates(phrasing, len(_nuclei(course))),
        **_voicing(phrasing, _voiced_runs_s(course)),
    }
    values = {name: np.nan if isinstance(found[name], str) else float(found[name]) for name in NAMES}
    return values, {name: reason for name in NAMES if isinstance(reason := found[name], str)}


def phrase(segments_s: tuple[tuple[float, float], ...]) -> Phrasing:
    """Split the time from the start of the first to the end of the last segment into speech and pauses of `MIN_PAUSE_S` or more."""
    starts, ends = np.asarray(segments_s, np.float64).T
    gaps = starts[1:] - ends[:-1]
    # Limits lie on a 10 ms grid in binary floating point: 0.25 s may come out as 0.2499999.
    return Phrasing(span_s=float(ends[-1] - starts[0]), pauses_s=gaps[gaps > MIN_PAUSE_S - FRAME_STEP_S / 2])


def syllable_nuclei_s(analysis: SpeechAnalysis) -> NDArray[np.float64]:
    """Find the syllable nuclei; their times in seconds, shape (syllables,).

    A nucleus is a peak of the smoothed level, `MIN_DIP_DB` above the dips on both sides, within `NUCLEUS_RANGE_DB` of the loud end, voiced
    and inside a speech segment. All limits are relative to the recording's own level, so gain changes nothing.
    """
    return np.asarray((_nuclei(_Course.of(analysis)) + 0.5) * FRAME_STEP_S, np.float64)


def _nuclei(course: _Course) -> NDArray[np.intp]:
    """Frames of the syllable nuclei, shape (syllables,)."""
    if not course.speech.any():
        return np.empty(0, np.intp)
    level = gaussian_filter1d(course.level_dbfs, SMOOTHING_S / FRAME_STEP_S)
    threshold = np.percentile(level[course.speech], LOUD_END_PERCENTILE) - NUCLEUS_RANGE_DB
    # Minus infinity outside: speech that is cut at the recording's edge may end in a nucleus.
    bounded = np.concatenate(([-np.inf], level, [-np.inf]))
    peaks = find_peaks(bounded, height=threshold, prominence=MIN_DIP_DB)[0] - 1
    return np.asarray(peaks[(course.voiced & course.speech)[peaks]], np.intp)


def _voiced_runs_s(course: _Course) -> NDArray[np.float64]:
    """Lengths of the unbroken stretches of voiced frames inside speech, shape (runs,)."""
    return np.asarray(np.diff(runs(course.voiced & course.speech)).ravel() * FRAME_STEP_S, np.float64)


def _pauses(phrasing: Phrasing) -> dict[str, float | str]:
    pauses_s, any_pause = phrasing.pauses_s, len(phrasing.pauses_s) > 0
    return {
        "timing.pause_count": len(pauses_s),
        "timing.pause_rate_per_min": 60 * len(pauses_s) / phrasing.span_s,
        "timing.pause_total_s": float(pauses_s.sum()),
        "timing.pause_share_percent": 100 * float(pauses_s.sum()) / phrasing.span_s,
        "timing.pause_mean_s": float(pauses_s.mean()) if any_pause else NO_PAUSE,
        "timing.pause_sd_s": float(pauses_s.std(ddof=1)) if len(pauses_s) >= MIN_PAUSES_FOR_SD else FEW_PAUSES,
        "timing.pause_median_s": float(np.median(pauses_s)) if any_pause else NO_PAUSE,
        "timing.pause_max_s": float(pauses_s.max()) if any_pause else NO_PAUSE,
        "timing.phonation_time_s": phrasing.phonation_s,
        "timing.phonation_ratio": phrasing.phonation_s / phrasing.span_s,
        "timing.speech_run_mean_s": phrasing.phonation_s / (len(pauses_s) + 1),
    }


def _rates(phrasing: Phrasing, syllables: int) -> dict[str, float | str]:
    return {
        "timing.speech_rate_syll_per_s": syllables / phrasing.span_s if syllables else NO_SYLLABLE,
        "timing.articulation_rate_syll_per_s": syllables / phrasing.phonation_s if syllables else NO_SYLLABLE,
        "timing.syllable_mean_s": phrasing.phonation_s / syllables if syllables else NO_SYLLABLE,
    }


def _voicing(phrasing: Phrasing, runs_s: NDArray[np.float64]) -> dict[str, float | str]:
    return {
        "timing.voiced_run_rate_per_s": len(runs_s) / phrasing.phonation_s,
        "timing.voiced_run_mean_s": float(runs_s.mean()) if len(runs_s) else NO_VOICE,
        "timing.voiced_run_sd_s": float(runs_s.std(ddof=1)) if len(runs_s) >= MIN_RUNS_FOR_SD else FEW_RUNS,
        "timing.voiced_share_percent": 100 * float(runs_s.sum()) / phrasing.phonation_s,
    }
