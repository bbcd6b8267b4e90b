"""The gate: whether a recording is good enough to be judged at all, and which measurements it can carry.

Measuring (numbers, once for a recording) and judging (limits, which belong to the task) are separate, so that a cohort measured once can be
judged by any task. Only the limits on duration and codec rest on literature; the others are engineering figures with the trial that set them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Self

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.ndimage import gaussian_filter1d, uniform_filter1d

from clinical_ser.audio.advice import advice
from clinical_ser.audio.analysis import SpeechAnalysis, analyse
from clinical_ser.audio.pitch import FRAME_STEP_S
from clinical_ser.audio.recording import SAMPLE_RATE_HZ, Recording
from clinical_ser.audio.voice_activity import f0_on_grid, is_noise_heard

Verdict = Literal["pass", "warn", "fail"]
_SEVERITY: Mapping[Verdict, int] = MappingProxyType({"pass": 0, "warn": 1, "fail": 2})

_Limits = tuple[float | None, float | None]
"""(warn, fail)."""

NOISE_SENSITIVE = ("praat.cpps*", "praat.hnr*", "praat.shimmer*", "egemaps.HNR*", "egemaps.shimmer*", "compare.logHNR*", "compare.shimmer*")
"""Selectors (shell patterns over catalogue names) of what noise and low-rate MP3 falsify: cepstral prominence, harmonicity and shimmer.

At an SNR of 30 dB CPPS falls from 17.9 to 14.4 dB on the same signal, and at 10 dB HNR from 17.5 to 7.5 dB; MP3 at 64 kbit/s or less alters
amplitude perturbation and noise measures (González & Cervera 2002). Neither source names jitter, so jitter stays.
"""

_CEILING_DB = 120.0
_SPECTRUM_SIZE = 512
_SPECTRUM_FRAMES = 2_000
_SPECTRUM_SMOOTHING = 4
_ROLL_OFF_DB = 75.0
"""Speech stays within 65 dB of its strongest band up to 7.5 kHz (RAVDESS, EmoDB); what a resampler or codec cut off lies 85 to 150 dB below."""
_MODE_WIDTH_SEMITONES = 1.0
_MODE_DISTANCE_SEMITONES = 4.0
_MODE_MASS = 0.15
_MODE_MIN_FRAMES = 200
_GRID_SEMITONES = 0.25


class GateLimits(BaseModel):
    """What a recording has to reach; belongs to the task and travels in the bundle.

    The defaults are those of depression screening. A value beyond a `fail` limit makes the recording unusable, one beyond a `warn` limit adds
    an advice and may switch single features off.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    # 25 s: Kintsugi's study in Ann Fam Med 2025 (sensitivity 71 %); performance saturates, then a second prompt helps (arXiv 2501.00608).
    speech_warn_s: float = Field(default=25.0, ge=0)
    speech_fail_s: float = Field(default=10.0, ge=0)
    # Share of net speech that is voiced; engineering. Whispering, or a voice buried in noise, falls below. Fluent speech: 0.45 to 0.8 here.
    voiced_warn: float = Field(default=0.30, ge=0, le=1)
    voiced_fail: float = Field(default=0.15, ge=0, le=1)
    # CPPS 17.9 -> 14.4 dB at 30 dB on synthetic speech; eGeMAPS unvoiced segments 0.117 -> 0.157 s at 10 dB.
    snr_warn_db: float = 30.0
    snr_fail_db: float = 15.0
    # 5 % clipping moves openSMILE's F0 by 6 semitones and Praat's shimmer from 7.0 to 2.4 %.
    clipped_warn: float = Field(default=0.001, ge=0, le=1)
    clipped_fail: float = Field(default=0.01, ge=0, le=1)
    # Telephone speech ends at 3.4 kHz (ITU-T G.712), wideband speech at 7 kHz (ITU-T G.722).
    bandwidth_warn_hz: float = Field(default=7_000.0, ge=0)
    bandwidth_fail_hz: float = Field(default=3_400.0, ge=0)
    # RAVDESS clips scaled to a speech level of -40 / -45 / -50 / -55 / -60 dBFS lose 6 / 13 / 26 / 52 / 85 % of openSMILE's voiced frames.
    level_warn_dbfs: float = -40.0
    level_fail_dbfs: float = -50.0
    # González J, Cervera T (2002), Logoped Phoniatr Vocol 26:124-138: 64 kbit/s or less "seriously alters" perturbation and noise measures.
    mp3_warn_bps: float = Field(default=64_000.0, ge=0)
    # Depth of the valley between two modes of F0. RAVDESS: one speaker at most 0.07 in calm speech and 0.49 over all acted emotions, a man and a
    # woman above 0.5 in 7 of 12 pairs, two men never: weak evidence, so it warns and never fails.
    f0_bimodality_warn: float = Field(default=0.5, ge=0, le=1)
    # Engineering: a file with any such sample went through a broken step; with 1 % the analysed sound is full of holes.
    nonfinite_warn: float = Field(default=0.0, ge=0, le=1)
    nonfinite_fail: float = Field(default=0.01, ge=0, le=1)
    # Engineering: removed before analysis, but a sign of a faulty input, and room for the voice is lost.
    dc_warn: float = Field(default=0.05, ge=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        lower = ("speech_{}_s", "voiced_{}", "snr_{}_db", "bandwidth_{}_hz", "level_{}_dbfs")
        upper = ("clipped_{}", "nonfinite_{}")
        for name, sign in [(name, 1) for name in lower] + [(name, -1) for name in upper]:
            warn, fail = (getattr(self, name.format(verdict)) for verdict in ("warn", "fail"))
            if sign * warn < sign * fail:
                raise ValueError(f"{name.format('fail')} must be the weaker demand of the two, {name.format('warn')} the stronger")
        return self

    @classmethod
    def for_emotion(cls) -> Self:
        """Limits for emotion in single utterances: one second of speech, and quieter recordings (RAVDESS goes down to -55 dBFS)."""
        return cls(speech_warn_s=1.5, speech_fail_s=1.0, level_warn_dbfs=-45.0, level_fail_dbfs=-56.0)


@dataclass(frozen=True)
class QualityMeasures:
    """What was measured, without any verdict; None where there was nothing to measure it on (no speech, too little of it)."""

    duration_s: float
    speech_s: float
    """Net speech: without pauses of 250 ms and more."""
    voiced_fraction: float | None
    """Voiced share of net speech."""
    snr_db: float | None
    """95th percentile of the level in speech above the median level of the room (frames of 25 ms that are not speech and not digital zeros)."""
    snr_is_bound: bool
    """True where the room is never heard alone; `snr_db` is then what it is at least."""
    clipped_fraction: float
    bandwidth_hz: float | None
    """Where the spectrum of speech ends (75 dB below its strongest band), whatever the header says; at most 8,000 Hz."""
    level_dbfs: float
    """RMS level of speech, or of everything where there is none."""
    codec: str
    bit_rate_bps: int | None
    nonfinite_fraction: float
    dc_offset: float
    f0_bimodality: float | None
    """Depth (0 to 1) of the valley between two modes of F0 at least 4 semitones apart; None under 2 s of voiced speech."""
    complete: bool


class QualityCheck(BaseModel):
    """One check of the gate."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    value: float | None
    unit: str
    warn_limit: float | None
    fail_limit: float | None
    verdict: Verdict
    advice: str
    """A sentence for the person who made the recording; empty on a pass."""
    advice_zh: str
    topic: str = ""
    """What the advice is about, as `audio.advice` keys it; empty on a pass."""
    bound: Literal["at_least", "at_most"] = "at_least"
    """Which way the limits point."""
    source: str
    """What the limits rest on."""


class QualityReport(BaseModel):
    """The gate's answer. A check that had nothing to measure is not in it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    usable: bool
    """False if any check failed."""
    verdict: Verdict
    """The worst of the checks'."""
    checks: tuple[QualityCheck, ...]
    switched_off: dict[str, str]
    """Selectors of the features this recording cannot carry (shell patterns over catalogue names), each with the reason."""

    def __getitem__(self, name: str) -> QualityCheck:
        """Return a check by name; KeyError where it was not made."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(name)


def assess(recording: Recording, limits: GateLimits, analysis: SpeechAnalysis | None = None) -> QualityReport:
    """Measure and judge in one step.

    Parameters
    ----------
    recording : Recording
    limits : GateLimits
        Of the task.
    analysis : SpeechAnalysis, optional
        Of this recording; made here if not given.
    """
    return judge(measure(recording, analysis or analyse(recording)), limits)


def measure(recording: Recording, analysis: SpeechAnalysis) -> QualityMeasures:
    """Measure everything the gate looks at; about 0.3 ms of CPU a second of recording."""
    source = recording.source
    heard = analysis.level_dbfs[analysis.speech] if analysis.speech.any() else analysis.level_dbfs
    f0 = f0_on_grid(analysis.pitch, len(analysis.speech))[analysis.speech]
    return QualityMeasures(
        duration_s=recording.duration_s,
        speech_s=analysis.speech_s,
        voiced_fraction=float((f0 > 0).mean()) if len(f0) else None,
        snr_db=_snr_db(analysis),
        snr_is_bound=not is_noise_heard(analysis.level_dbfs, analysis.speech),
        clipped_fraction=source.clipped_fraction,
        bandwidth_hz=_bandwidth_hz(recording.samples, analysis.speech),
        level_dbfs=float(10 * np.log10(np.mean(10 ** (heard / 10)))) if len(heard) else -_CEILING_DB,
        codec=source.codec,
        bit_rate_bps=source.bit_rate_bps,
        nonfinite_fraction=source.nonfinite_fraction,
        dc_offset=source.dc_offset,
        f0_bimodality=f0_bimodality(f0[f0 > 0]),
        complete=source.complete,
    )


def judge(measures: QualityMeasures, limits: GateLimits) -> QualityReport:
    """Hold measurements against the limits of a task."""
    checks = tuple(check for check in _checks(measures, limits) if check is not None)
    worst = max((check.verdict for check in checks), key=_SEVERITY.__getitem__)
    return QualityReport(usable=worst != "fail", verdict=worst, checks=checks, switched_off=_switched_off(measures, limits))


def f0_bimodality(f0_hz: NDArray[np.float64]) -> float | None:
    """Return how clearly F0 (Hz, voiced frames only) has two modes.

    The density of F0 in semitones, smoothed by 1 semitone, is cut at the point where the valley is deepest relative to the lower of the two
    peaks beside it; 0 is one mode, 1 is two that do not touch. Peaks closer than 4 semitones, and a side with under 15 % of the frames, do not
    count: two men, or a laugh, are not told apart from one voice.
    """
    if len(f0_hz) < _MODE_MIN_FRAMES:
        return None
    semitones = 12 * np.log2(f0_hz)
    margin = 4 * _MODE_WIDTH_SEMITONES
    edges = np.arange(semitones.min() - margin, semitones.max() + margin + _GRID_SEMITONES, _GRID_SEMITONES)
    counts, _ = np.histogram(semitones, edges)
    density = gaussian_filter1d(counts.astype(np.float64), _MODE_WIDTH_SEMITONES / _GRID_SEMITONES)
    below = np.cumsum(counts) / len(semitones)
    depths = [0.0]
    for valley in np.flatnonzero((below >= _MODE_MASS) & (below <= 1 - _MODE_MASS)):
        left, right = int(density[: valley + 1].argmax()), valley + int(density[valley:].argmax())
        if (right - left) * _GRID_SEMITONES >= _MODE_DISTANCE_SEMITONES:
            depths.append(1 - density[valley] / min(density[left], density[right]))
    return float(max(depths))


def _snr_db(analysis: SpeechAnalysis) -> float | None:
    """Speech over the room; where the room is never heard alone, the larger of two lower bounds.

    The room cannot be louder than the quietest moments of speech, nor than what is not periodic in the voice (a steady vowel has no quiet moments).
    """
    if not analysis.speech.any():
        return None
    snr = float(np.quantile(analysis.level_dbfs[analysis.speech], 0.95)) - analysis.noise_floor_dbfs
    if is_noise_heard(analysis.level_dbfs, analysis.speech):
        return snr
    periodic = float(np.quantile(analysis.pitch.strength[analysis.pitch.voiced], 0.9))
    harmonicity = _CEILING_DB if periodic >= 1 else 10 * math.log10(periodic / (1 - periodic))
    return min(max(snr, harmonicity), _CEILING_DB)


def _bandwidth_hz(samples: NDArray[np.float32], speech: NDArray[np.bool_]) -> float | None:
    """Return the highest frequency at which the long-term spectrum of speech is within `_ROLL_OFF_DB` of its strongest band."""
    if len(samples) < _SPECTRUM_SIZE or not speech.any():
        return None
    starts = np.flatnonzero(speech) * round(FRAME_STEP_S * SAMPLE_RATE_HZ)
    starts = np.minimum(starts, len(samples) - _SPECTRUM_SIZE)[:: max(3, len(starts) // _SPECTRUM_FRAMES)]
    windows = sliding_window_view(samples, _SPECTRUM_SIZE)[starts] * np.hanning(_SPECTRUM_SIZE)
    power = uniform_filter1d(np.square(np.abs(np.fft.rfft(windows))).mean(axis=0), _SPECTRUM_SMOOTHING)
    highest = int(np.flatnonzero(power >= power.max() * 10 ** (-_ROLL_OFF_DB / 10))[-1])
    return highest * SAMPLE_RATE_HZ / _SPECTRUM_SIZE


def _switched_off(measures: QualityMeasures, limits: GateLimits) -> dict[str, str]:
    """Name what this recording cannot carry. A bound on the SNR switches off only where it would fail: not knowing is no reason to hide."""
    reasons = []
    needed = limits.snr_fail_db if measures.snr_is_bound else limits.snr_warn_db
    if measures.snr_db is not None and measures.snr_db < needed:
        reasons.append(f"signal-to-noise ratio of {measures.snr_db:.0f} dB, below {needed:g} dB")
    if _is_low_rate_mp3(measures, limits):
        reasons.append(f"MP3 at {limits.mp3_warn_bps / 1000:g} kbit/s or less")
    return dict.fromkeys(NOISE_SENSITIVE, "; ".join(reasons)) if reasons else {}


def _is_low_rate_mp3(measures: QualityMeasures, limits: GateLimits) -> bool:
    return measures.codec == "mp3" and measures.bit_rate_bps is not None and measures.bit_rate_bps <= limits.mp3_warn_bps


def _checks(measures: QualityMeasures, limits: GateLimits) -> tuple[QualityCheck | None, ...]:
    engineering = "engineering figure"
    return (
        _lower("speech", measures.speech_s, "s", (limits.speech_warn_s, limits.speech_fail_s), "Ann Fam Med 2025 (25 s)"),
        _lower("voicing", measures.voiced_fraction, "share", (limits.voiced_warn, limits.voiced_fail), engineering),
        _snr_check(measures, limits),
        _upper(
            "clipping", measures.clipped_fraction, "share", (limits.clipped_warn, limits.clipped_fail), "trial: 5 % clipping moves F0 by 6 semitones"
        ),
        _lower(
            "bandwidth", measures.bandwidth_hz, "Hz", (limits.bandwidth_warn_hz, limits.bandwidth_fail_hz), "ITU-T G.712 (3.4 kHz), G.722 (7 kHz)"
        ),
        _lower(
            "level", measures.level_dbfs, "dBFS", (limits.level_warn_dbfs, limits.level_fail_dbfs), "trial: openSMILE loses F0 in quiet recordings"
        ),
        _codec_check(measures, limits),
        _upper("speakers", measures.f0_bimodality, "depth", (limits.f0_bimodality_warn, None), "engineering figure; weak evidence"),
        _upper("samples", measures.nonfinite_fraction, "share", (limits.nonfinite_warn, limits.nonfinite_fail), engineering),
        _upper("offset", abs(measures.dc_offset), "full scale", (limits.dc_warn, None), engineering),
        _lower("complete", float(measures.complete), "", (1.0, None), "what the decoder met"),
    )


def _lower(name: str, value: float | None, unit: str, limits: _Limits, source: str) -> QualityCheck | None:
    """Check a value that should not be below its limits."""
    if value is None:
        return None
    warn, fail = limits
    verdict: Verdict = "fail" if fail is not None and value < fail else "warn" if warn is not None and value < warn else "pass"
    return _check(name, value, unit, limits, verdict=verdict, source=source)


def _upper(name: str, value: float | None, unit: str, limits: _Limits, source: str) -> QualityCheck | None:
    """Check a value that should not be above its limits."""
    if value is None:
        return None
    warn, fail = limits
    verdict: Verdict = "fail" if fail is not None and value > fail else "warn" if warn is not None and value > warn else "pass"
    return _check(name, value, unit, limits, verdict=verdict, source=source, bound="at_most")


def _snr_check(measures: QualityMeasures, limits: GateLimits) -> QualityCheck | None:
    """Judge the noise; one that could not be measured is a reason to warn, not to refuse."""
    check = _lower("snr", measures.snr_db, "dB", (limits.snr_warn_db, limits.snr_fail_db), "trial: CPPS falls by 3.5 dB at 30 dB")
    if check is None or check.verdict == "pass" or not measures.snr_is_bound:
        return check
    english, chinese = advice("noise_unknown", None)
    return check.model_copy(update={"verdict": "warn", "advice": english, "advice_zh": chinese, "topic": "noise_unknown"})


def _codec_check(measures: QualityMeasures, limits: GateLimits) -> QualityCheck:
    limit = limits.mp3_warn_bps if measures.codec == "mp3" else None
    value = None if measures.bit_rate_bps is None else float(measures.bit_rate_bps)
    verdict: Verdict = "warn" if _is_low_rate_mp3(measures, limits) else "pass"
    return _check("codec", value, "bit/s", (limit, None), verdict=verdict, source="González & Cervera 2002")


def _check(
    name: str,
    value: float | None,
    unit: str,
    limits: _Limits,
    *,
    verdict: Verdict,
    source: str,
    bound: Literal["at_least", "at_most"] = "at_least",
) -> QualityCheck:
    warn, fail = limits
    topic = "" if verdict == "pass" else "no_speech" if (name, value) == ("speech", 0.0) else name
    english, chinese = advice(topic, warn) if topic else ("", "")
    return QualityCheck(
        name=name,
        value=value,
        unit=unit,
        warn_limit=warn,
        fail_limit=fail,
        verdict=verdict,
        advice=english,
        advice_zh=chinese,
        topic=topic,
        bound=bound,
        source=source,
    )
