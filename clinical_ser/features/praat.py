"""The Praat features: pitch, perturbation, harmonicity, cepstral peak, formants, intensity and voice breaks of one recording.

Praat (or `cepstrum` and `harmonicity`, where it is slow, to the same numbers) measures tracks once; features are summaries of them, so that
those without some of the frames cost milliseconds. A value that cannot be had carries the reason instead.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import parselmouth
from numpy.typing import NDArray
from parselmouth.praat import call

from clinical_ser.audio.analysis import FRAME_STEP_S, PitchTrack, SpeechAnalysis
from clinical_ser.audio.recording import SAMPLE_RATE_HZ
from clinical_ser.features import cepstrum, harmonicity
from clinical_ser.features.kept import Kept
from clinical_ser.features.praat_tracks import (
    LONGEST_PERIOD_S,
    MAXIMUM_AMPLITUDE_FACTOR,
    MAXIMUM_PERIOD_FACTOR,
    SHORTEST_PERIOD_S,
    Pulses,
    Track,
    frames_at,
    glottal_pulses,
    pulse_times_s,
)
from clinical_ser.features.sampling import first_sample_time, resample

SEMITONE_REFERENCE_HZ = 27.5
"""Semitones count from A0, as in eGeMAPS (Eyben et al. 2016), so that both sets speak of the same scale."""
MIN_VOICED_FRAMES = 10
"""0.1 s of voice; quantiles of less say nothing about a speaker."""

BREAK_PERIODS = 1.25
"""Two pulses further apart than this many periods of the pitch floor are a voice break (manual, "Voice 1. Voice breaks")."""

FORMANT_COUNT = 5
FORMANT_WINDOW_S = 0.025
FORMANT_PRE_EMPHASIS_HZ = 50.0
FORMANT_CEILINGS_HZ = (5_000, 5_500)
"""For a typical man's and a typical woman's vocal tract (manual, "Sound: To Formant (burg)...")."""
CEILING_F0_HZ = (120.0, 210.0)
"""Median F0 of the voices those ceilings are for (Traunmüller & Eriksson 1995). In between the ceiling follows the speaker's own median on a
log scale: no declared sex is needed, and no speaker sits on a step."""
CEILING_GRID_HZ = 100

INTENSITY_FLOOR_HZ = 100.0
"""Praat's standard; its window is 6.4 periods of it, 64 ms."""
_INTENSITY_WINDOW_S = 6.4 / INTENSITY_FLOOR_HZ
_NO_INTENSITY_DB = -300.0
"""What Praat writes for a window of zeros."""

_F0_QUANTILES = (5, 20, 25, 75, 80, 95)
_JITTERS = {
    "praat.jitter_local_percent": ("local", 100.0),
    "praat.jitter_local_absolute_us": ("local, absolute", 1e6),
    "praat.jitter_rap_percent": ("rap", 100.0),
    "praat.jitter_ppq5_percent": ("ppq5", 100.0),
    "praat.jitter_ddp_percent": ("ddp", 100.0),
}
_SHIMMERS = {
    "praat.shimmer_local_percent": ("local", 100.0),
    "praat.shimmer_local_db": ("local_dB", 1.0),
    "praat.shimmer_apq3_percent": ("apq3", 100.0),
    "praat.shimmer_apq5_percent": ("apq5", 100.0),
    "praat.shimmer_apq11_percent": ("apq11", 100.0),
    "praat.shimmer_dda_percent": ("dda", 100.0),
}
_HNR_NAMES = ("praat.hnr_mean_db", "praat.hnr_sd_db", "praat.hnr_voiced_mean_db")
_CPPS_NAMES = ("praat.cpps_db", "praat.cpps_voiced_db")
_BREAK_NAMES = ("praat.voice_breaks_count", "praat.voice_breaks_degree_percent")
_FORMANTS = (1, 2, 3, 4)
_BANDWIDTHS = (1, 2, 3)


def _f0_names(unit: str) -> tuple[str, ...]:
    statistics = ("mean", "median", "sd", *(f"p{percent:02d}" for percent in _F0_QUANTILES), "range_p20_p80")
    return tuple(f"praat.f0_{statistic}_{unit}" for statistic in statistics)


_FORMANT_NAMES = (
    *(f"praat.f{formant}_{statistic}_hz" for formant in _FORMANTS for statistic in ("median", "iqr")),
    *(f"praat.f{formant}_bandwidth_median_hz" for formant in _BANDWIDTHS),
)
_INTENSITY_NAMES = tuple(f"praat.intensity_{statistic}_db" for statistic in ("mean", "sd", "p05", "p95", "range_p05_p95"))

NAMES: tuple[str, ...] = (
    *_f0_names("hz"),
    *_f0_names("semitones"),
    *_JITTERS,
    *_SHIMMERS,
    *_HNR_NAMES,
    *_CPPS_NAMES,
    *_FORMANT_NAMES,
    *_INTENSITY_NAMES,
    *_BREAK_NAMES,
    "praat.unvoiced_fraction_percent",
)

FINGERPRINT = (
    f"praat/1 parselmouth={parselmouth.VERSION} praat={parselmouth.PRAAT_VERSION}"
    f" f0=st{SEMITONE_REFERENCE_HZ},from{MIN_VOICED_FRAMES}"
    f" periods={SHORTEST_PERIOD_S},{LONGEST_PERIOD_S},{MAXIMUM_PERIOD_FACTOR},{MAXIMUM_AMPLITUDE_FACTOR},{BREAK_PERIODS}"
    f" hnr=cc,{harmonicity.TIME_STEP_S},{harmonicity.PITCH_FLOOR_HZ},{harmonicity.SILENCE_THRESHOLD},1.0"
    f" cpps={cepstrum.PITCH_FLOOR_HZ},{cepstrum.TIME_STEP_S},{cepstrum.MAXIMUM_FREQUENCY_HZ},{cepstrum.PRE_EMPHASIS_HZ}"
    f",{cepstrum.QUEFRENCY_AVERAGING_S},{cepstrum.SEARCH_FLOOR_HZ},{cepstrum.SEARCH_CEILING_HZ},straight,robust"
    f" formants={FRAME_STEP_S},{FORMANT_COUNT},{FORMANT_WINDOW_S},{FORMANT_PRE_EMPHASIS_HZ}"
    f",{FORMANT_CEILINGS_HZ},{CEILING_F0_HZ},{CEILING_GRID_HZ}"
    f" intensity={INTENSITY_FLOOR_HZ},{FRAME_STEP_S}"
)
"""Changes whenever a value could; a bundle made under another one is refused."""

TOO_LITTLE_VOICE = f"less than {MIN_VOICED_FRAMES * FRAME_STEP_S:.1f} s of voice found"
TOO_FEW_PERIODS = "too few regular glottal periods in a row"
TOO_LITTLE_SOUND = f"less than {MIN_VOICED_FRAMES * FRAME_STEP_S:.1f} s of sound found"
NOTHING_PERIODIC = "no sound that repeats itself found"
NO_SPEECH = "no speech found"
SILENT = "the recording is digital silence"
FORMANT_NOT_FOUND = "formant found in too few voiced frames"

_Found = dict[str, float | str]


@dataclass(frozen=True, eq=False)
class VoiceTracks:
    """What only a voice has; measured where there is enough of it."""

    pulses: Pulses
    formants_hz: tuple[Track, ...]
    """F1-F4 in the voiced frames where they were found."""
    bandwidths_hz: tuple[Track, ...]
    """The same of F1-F3."""


@dataclass(frozen=True, eq=False)
class Contour:
    """One measure in all frames that have it, and in those of them that are voiced."""

    every: Track
    voiced: Track


@dataclass(frozen=True, eq=False)
class PraatTracks:
    """Everything about a recording that takes time to measure; made by `measure`. A phrase stands where nothing could be measured."""

    analysis: SpeechAnalysis
    f0_hz: Track
    """Every pitch frame; 0 where unvoiced."""
    voice: VoiceTracks | str
    hnr_db: Contour | str
    """Frames that are not silent."""
    cpps_db: Contour | str
    intensity_db: Track | str
    """Frames that are not digital silence."""


def compute(analysis: SpeechAnalysis) -> tuple[dict[str, float], dict[str, str]]:
    """Measure the Praat features of one recording.

    Parameters
    ----------
    analysis
        The shared measurements of the recording, its pitch track among them.

    Returns
    -------
    values
        Every name of `NAMES`, in that order; NaN where missing.
    missing
        For each NaN the reason, a phrase that reads on its own.

    Notes
    -----
    F0 and formants are taken over voiced frames, intensity over frames inside speech segments; semitones count from 27.5 Hz. `hnr_mean_db`
    and `cpps_db` are Praat's own summaries of the whole recording, pauses included, which published values refer to; `hnr_voiced_mean_db`
    and `cpps_voiced_db` are the same frames where there is voice, and do not move with the share of pauses. Intensity is in dB above
    2e-5 with full scale as 1 Pa, as Praat has it, and so is relative unless the microphone was calibrated.

    References
    ----------
    Boersma P, Weenink D, Praat: doing phonetics by computer, version 6.1.38, and its manual. Jadoul Y et al. (2018), J Phonetics 71:1-15.
    """
    return summarise(measure(analysis))


def measure(analysis: SpeechAnalysis) -> PraatTracks:
    """Measure once what the features of a recording, and of any part of it, are summarised from.

    Parameters
    ----------
    analysis
        The shared measurements of the recording, its pitch track among them.
    """
    return PraatTracks(
        analysis=analysis,
        f0_hz=Track(analysis.pitch.f0_hz, frames_at(analysis.pitch.times_s, len(analysis.level_dbfs))),
        voice=_voice_tracks(analysis),
        hnr_db=_harmonicity_track(analysis),
        cpps_db=_cepstral_track(analysis),
        intensity_db=_intensity_track(analysis),
    )


def summarise(tracks: PraatTracks, keep: NDArray[np.bool_] | None = None) -> tuple[dict[str, float], dict[str, str]]:
    """Summarise a recording, or what is left of it when frames are taken out and the ends joined.

    Parameters
    ----------
    tracks
        From `measure`.
    keep
        Shape (frames,), on the grid of `SpeechAnalysis.level_dbfs`; True where a frame stays. None keeps all.

    Returns
    -------
    values, missing
        As from `compute`.

    Raises
    ------
    InvalidValueError
        A mask of another shape or type.

    Notes
    -----
    Cutting the samples and measuring again differs: here what Praat takes relative to the recording (the level below which a frame is
    silent, from its loudest sample) or we do (pitch range, formant ceiling, noise floor) stays that of the whole recording, and no analysis
    window sees sound from both sides of a seam.
    """
    kept = Kept.of(keep, len(tracks.analysis.level_dbfs))
    f0_hz = tracks.f0_hz.left(kept)
    voice = tracks.voice if np.count_nonzero(f0_hz) >= MIN_VOICED_FRAMES else TOO_LITTLE_VOICE
    found: _Found = {
        **_f0(f0_hz),
        **_glottal_periods(voice, tracks.analysis, kept),
        **_harmonicity(tracks.hnr_db, kept),
        **_cepstral_peak(tracks.cpps_db, kept),
        **_formants(voice, kept),
        **_intensity(tracks.intensity_db, tracks.analysis, kept),
    }
    values = {name: math.nan if isinstance(found[name], str) else float(found[name]) for name in NAMES}
    return values, {name: reason for name in NAMES if isinstance(reason := found[name], str)}


def formant_ceiling_hz(f0_hz: NDArray[np.float64]) -> int:
    """Frequency below which five formants are sought in a speaker with these voiced F0 values, shape (frames,), in Hz."""
    low, high = np.log2(CEILING_F0_HZ)
    position = float(np.clip((np.log2(np.median(f0_hz)) - low) / (high - low), 0.0, 1.0))
    floor, ceiling = FORMANT_CEILINGS_HZ
    return round((floor + position * (ceiling - floor)) / CEILING_GRID_HZ) * CEILING_GRID_HZ


def _f0(f0_hz: NDArray[np.float64]) -> _Found:
    """Statistics of F0 over voiced frames, and the share of frames without it (0 Hz)."""
    voiced = f0_hz > 0
    unvoiced: float | str = 100.0 * float(np.mean(~voiced)) if len(f0_hz) else NO_SPEECH
    f0_hz = f0_hz[voiced]
    if len(f0_hz) < MIN_VOICED_FRAMES:
        return dict.fromkeys((*_f0_names("hz"), *_f0_names("semitones")), TOO_LITTLE_VOICE) | {"praat.unvoiced_fraction_percent": unvoiced}
    return {
        **dict(zip(_f0_names("hz"), _distribution(f0_hz), strict=True)),
        **dict(zip(_f0_names("semitones"), _distribution(12.0 * np.log2(f0_hz / SEMITONE_REFERENCE_HZ)), strict=True)),
        "praat.unvoiced_fraction_percent": unvoiced,
    }


def _distribution(values: NDArray[np.float64]) -> tuple[float, ...]:
    """In the order of `_f0_names`; quantiles by Hazen's rule, as Praat's *Get quantile...*."""
    quantiles = np.percentile(values, _F0_QUANTILES, method="hazen")
    at = dict(zip(_F0_QUANTILES, quantiles, strict=True))
    return (float(values.mean()), float(np.median(values)), float(values.std(ddof=1)), *map(float, quantiles), float(at[80] - at[20]))


def _voice_tracks(analysis: SpeechAnalysis) -> VoiceTracks | str:
    f0_hz = analysis.pitch.f0_hz[analysis.pitch.voiced]
    if len(f0_hz) < MIN_VOICED_FRAMES:
        return TOO_LITTLE_VOICE
    frames = len(analysis.level_dbfs)
    pulses = call([analysis.sound, analysis.pitch.praat], "To PointProcess (cc)")
    formant = _formant_track(analysis, formant_ceiling_hz(f0_hz))
    times_s = formant.xs()
    times_s = times_s[voiced_at(times_s, analysis.pitch)]
    at = frames_at(times_s, frames)
    return VoiceTracks(
        pulses=glottal_pulses(analysis.sound, pulses, frames),
        formants_hz=tuple(_defined([formant.get_value_at_time(number, time) for time in times_s], at) for number in _FORMANTS),
        bandwidths_hz=tuple(_defined([formant.get_bandwidth_at_time(number, time) for time in times_s], at) for number in _BANDWIDTHS),
    )


def _glottal_periods(voice: VoiceTracks | str, analysis: SpeechAnalysis, kept: Kept) -> _Found:
    """Jitter, shimmer and voice breaks from one series of glottal pulses."""
    if isinstance(voice, str):
        return dict.fromkeys((*_JITTERS, *_SHIMMERS, *_BREAK_NAMES), voice)
    jitters, shimmers = voice.pulses.jitters(kept), voice.pulses.shimmers(kept)
    return {
        **{name: _or_reason(scale * jitters[variant], TOO_FEW_PERIODS) for name, (variant, scale) in _JITTERS.items()},
        **{name: _or_reason(scale * shimmers[variant], TOO_FEW_PERIODS) for name, (variant, scale) in _SHIMMERS.items()},
        **_voice_breaks(voice.pulses.praat, analysis, kept),
    }


def _voice_breaks(pulses: Any, analysis: SpeechAnalysis, kept: Kept | None = None) -> _Found:
    """Count and share of time as Praat's voice report has them: neighbouring long gaps are one break, and the last gap is not looked at."""
    kept = kept or Kept.of(None, len(analysis.level_dbfs))
    longest_s = BREAK_PERIODS / analysis.pitch.floor_hz
    times_s = pulse_times_s(pulses)
    frames = frames_at(times_s, len(analysis.level_dbfs))
    left = np.flatnonzero(kept.keep[frames])
    if len(left) < 2:
        return dict.fromkeys(_BREAK_NAMES, TOO_FEW_PERIODS)
    gaps_s = np.diff(times_s[left]) - FRAME_STEP_S * np.diff(kept.removed_before[frames[left]])
    # Voice that went on beyond both ends of a gap, into what is removed, leaves up to one period at either end, and did not break.
    ends = np.diff(times_s) > longest_s
    broken = (gaps_s > longest_s) & (ends[left[:-1]] | ends[left[1:] - 1] | (gaps_s > 2 * longest_s))
    gaps_s, broken = gaps_s[:-1], broken[:-1]
    count = np.count_nonzero(broken & ~np.concatenate([[False], broken[:-1]])) if len(broken) else 0
    degree = 100.0 * float(gaps_s[broken].sum()) / (analysis.sound.duration - kept.removed_s)
    return dict(zip(_BREAK_NAMES, (float(count), degree), strict=True))


def _harmonicity_track(analysis: SpeechAnalysis) -> Contour | str:
    samples = analysis.sound.values[0]
    if reason := _unmeasurable(samples, harmonicity.MINIMUM_DURATION_S):
        return reason
    track = harmonicity.harmonicity(samples, SAMPLE_RATE_HZ)
    return _contour(track.times_s, track.hnr_db, analysis)


def _harmonicity(track: Contour | str, kept: Kept) -> _Found:
    if isinstance(track, str):
        return dict.fromkeys(_HNR_NAMES, track)
    sounding = track.every.left(kept)
    return {
        "praat.hnr_mean_db": float(sounding.mean()) if len(sounding) else NOTHING_PERIODIC,
        "praat.hnr_sd_db": float(sounding.std(ddof=1)) if len(sounding) >= MIN_VOICED_FRAMES else TOO_LITTLE_SOUND,
        "praat.hnr_voiced_mean_db": _mean_of_voice(track, kept),
    }


def _cepstral_track(analysis: SpeechAnalysis) -> Contour | str:
    samples = analysis.sound.values[0]
    if reason := _unmeasurable(samples, cepstrum.WINDOW_S):
        return reason
    track = cepstrum.cepstral_peak_prominence(samples, SAMPLE_RATE_HZ)
    return _contour(track.times_s, track.prominence_db, analysis)


def _cepstral_peak(track: Contour | str, kept: Kept) -> _Found:
    if isinstance(track, str):
        return dict.fromkeys(_CPPS_NAMES, track)
    every = track.every.left(kept)
    return {
        "praat.cpps_db": float(every.mean()) if len(every) else TOO_LITTLE_SOUND,
        "praat.cpps_voiced_db": _mean_of_voice(track, kept),
    }


def _contour(times_s: NDArray[np.float64], values: NDArray[np.float64], analysis: SpeechAnalysis) -> Contour:
    """Leave out the frames without a value."""
    frames, there = frames_at(times_s, len(analysis.level_dbfs)), np.isfinite(values)
    voiced = there & voiced_at(times_s, analysis.pitch)
    return Contour(Track(values[there], frames[there]), Track(values[voiced], frames[voiced]))


def _mean_of_voice(track: Contour, kept: Kept) -> float | str:
    values = track.voiced.left(kept)
    return float(values.mean()) if len(values) >= MIN_VOICED_FRAMES else TOO_LITTLE_VOICE


def _formants(voice: VoiceTracks | str, kept: Kept) -> _Found:
    """Median and interquartile range over voiced frames of F1-F4, and median bandwidths."""
    if isinstance(voice, str):
        return dict.fromkeys(_FORMANT_NAMES, voice)
    found: _Found = {}
    for number, track in zip(_FORMANTS, voice.formants_hz, strict=True):
        median, iqr = f"praat.f{number}_median_hz", f"praat.f{number}_iqr_hz"
        values = track.left(kept)
        if len(values) < MIN_VOICED_FRAMES:
            found |= dict.fromkeys((median, iqr), FORMANT_NOT_FOUND)
        else:
            lower, middle, upper = np.percentile(values, (25, 50, 75), method="hazen")
            found |= {median: float(middle), iqr: float(upper - lower)}
    for number, track in zip(_BANDWIDTHS, voice.bandwidths_hz, strict=True):
        values = track.left(kept)
        enough = len(values) >= MIN_VOICED_FRAMES
        found[f"praat.f{number}_bandwidth_median_hz"] = float(np.median(values)) if enough else FORMANT_NOT_FOUND
    return found


def _formant_track(analysis: SpeechAnalysis, ceiling_hz: int) -> parselmouth.Formant:
    """Praat's Burg analysis every 10 ms, on samples resampled here (half of its cost) and zeroed where no voiced frame looks.

    Praat passes over frames of zeros, so unvoiced stretches cost nothing; in voiced frames nothing changes.
    """
    rate_hz = 2 * ceiling_hz
    samples = analysis.sound.values[0]
    resampled = resample(samples, SAMPLE_RATE_HZ, rate_hz)
    first_s = first_sample_time(len(samples), SAMPLE_RATE_HZ, len(resampled), rate_hz)
    resampled[~_near_voice(len(resampled), first_s, rate_hz, analysis.pitch)] = 0.0
    sound = parselmouth.Sound(resampled, float(rate_hz), first_s - 0.5 / rate_hz)
    return sound.to_formant_burg(FRAME_STEP_S, FORMANT_COUNT, float(ceiling_hz), FORMANT_WINDOW_S, FORMANT_PRE_EMPHASIS_HZ)


def _near_voice(samples: int, first_s: float, rate_hz: int, pitch: PitchTrack) -> NDArray[np.bool_]:
    """Mark the samples that a formant frame nearest to a voiced pitch frame can see; shape (samples,)."""
    # Praat's Gaussian window is physically twice as long; a frame's centre may be half a step away from the pitch frame's.
    reach_s = FORMANT_WINDOW_S + FRAME_STEP_S
    times_s = pitch.times_s[pitch.voiced]
    starts = np.clip(np.floor((times_s - reach_s - first_s) * rate_hz).astype(np.int64), 0, samples)
    stops = np.clip(np.ceil((times_s + reach_s - first_s) * rate_hz).astype(np.int64), 0, samples)
    change = np.zeros(samples + 1, np.int64)
    np.add.at(change, starts, 1)
    np.add.at(change, stops, -1)
    near: NDArray[np.bool_] = np.cumsum(change[:-1]) > 0
    return near


def _intensity_track(analysis: SpeechAnalysis) -> Track | str:
    if reason := _unmeasurable(analysis.sound.values[0], _INTENSITY_WINDOW_S):
        return reason
    track = analysis.sound.to_intensity(INTENSITY_FLOOR_HZ, FRAME_STEP_S)
    level_db = track.values[0]
    heard = level_db > _NO_INTENSITY_DB
    return Track(level_db[heard], frames_at(track.xs(), len(analysis.level_dbfs))[heard])


def _intensity(track: Track | str, analysis: SpeechAnalysis, kept: Kept) -> _Found:
    """Level over speech: the mean is that of the energy, spread and quantiles are of dB values."""
    if isinstance(track, str):
        return dict.fromkeys(_INTENSITY_NAMES, track)
    spoken = kept.keep.copy()
    spoken[kept.keep] = kept.speech(analysis.speech)
    level_db = track.values[spoken[track.frames]]
    if len(level_db) < MIN_VOICED_FRAMES:
        return dict.fromkeys(_INTENSITY_NAMES, NO_SPEECH)
    mean_db = 10.0 * math.log10(float(np.mean(10.0 ** (level_db / 10.0))))
    low_db, high_db = np.percentile(level_db, (5, 95), method="hazen")
    return dict(zip(_INTENSITY_NAMES, (mean_db, float(level_db.std(ddof=1)), float(low_db), float(high_db), float(high_db - low_db)), strict=True))


def voiced_at(times_s: NDArray[np.float64], pitch: PitchTrack) -> NDArray[np.bool_]:
    """Whether the pitch frame nearest to each time is voiced; shape as `times_s`, False beyond the first and last frame."""
    if not len(pitch.times_s):
        return np.zeros(len(times_s), np.bool_)
    nearest = np.rint((times_s - pitch.times_s[0]) / FRAME_STEP_S).astype(np.int64)
    inside = (nearest >= 0) & (nearest < len(pitch.times_s))
    voiced: NDArray[np.bool_] = inside & pitch.voiced[np.clip(nearest, 0, len(pitch.times_s) - 1)]
    return voiced


def _unmeasurable(samples: NDArray[np.float64], minimum_s: float) -> str | None:
    """Why no frame of these samples can be measured, or None."""
    # One sample more than a window, so that Praat and we cannot disagree in the last binary digit on whether it fits.
    if len(samples) <= minimum_s * SAMPLE_RATE_HZ:
        return f"the recording is not longer than {1000 * minimum_s:.0f} ms"
    return None if samples.any() else SILENT


def _or_reason(value: float, reason: str) -> float | str:
    return float(value) if math.isfinite(value) else reason


def _defined(values: list[float], frames: NDArray[np.int64]) -> Track:
    array = np.asarray(values, np.float64)
    finite = np.isfinite(array)
    return Track(array[finite], frames[finite])
