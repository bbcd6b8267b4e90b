"""The raw voices: each language's passage as Praat's synthesiser speaks it, analysed once into what resynthesis needs.

One voice per language and sex, made in about half a second and kept in the process; every simulated speaker is a resynthesis of one of them.
"""

import io
import json
import subprocess
import sys
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import numpy as np
import parselmouth
from numpy.typing import NDArray
from parselmouth.praat import call
from scipy.ndimage import uniform_filter1d
from scipy.signal import resample_poly

from clinical_ser.audio.recording import SAMPLE_RATE_HZ
from clinical_ser.cohorts.simulation.articulation import contract, frame_times_s, line_spectra
from clinical_ser.cohorts.simulation.parameters import Language, Sex
from clinical_ser.cohorts.simulation.passages import PASSAGES
from clinical_ser.errors import SimulationError

OVERSAMPLING = 2
"""Phrases are kept at 32 kHz: reading them between samples by a straight line then costs under 0.5 dB up to 4 kHz."""
CONTRASTS = (0.5, 0.75, 1.0)
"""Articulation of the stored copies; a speaker in between is a mixture of two neighbours."""
UNVOICED_STEP_S = 0.008

_WORDS_PER_MINUTE = 170
_SYNTHESISER_LANGUAGE = {Language.ENGLISH: "English (Great Britain)", Language.GERMAN: "German", Language.MANDARIN: "Chinese (Mandarin)"}
# The cleanest of 35 variants by Praat on this passage: HNR 22 and 15 dB, where Female1 and Male1 have 13 and 10 and so hide what is added.
_SYNTHESISER_VARIANT = {Sex.FEMALE: "Steph", Sex.MALE: "Michel"}
_PITCH_RANGE_HZ = {Sex.FEMALE: (100.0, 400.0), Sex.MALE: (55.0, 250.0)}
_SILENCE_REL = 0.01
_FADE_S = 0.004
_LEVEL_WINDOW_S = 0.1
_LEVEL_RANGE_DB = (-20.0, 8.0)

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Phrase:
    """A phrase with its pitch marks: one a glottal cycle where voiced, one every `UNVOICED_STEP_S` elsewhere."""

    samples: NDArray[np.float32]
    """Shape (len(CONTRASTS), n), at OVERSAMPLING times 16 kHz."""
    marks_s: Array
    period_s: Array
    voiced: NDArray[np.bool_]
    pitch_st: Array
    """F0 at each mark, semitones from the voice's mean; 0 where unvoiced."""
    level_db: Array
    """Level over 100 ms at each mark, relative to the phrase."""

    @property
    def duration_s(self) -> float:
        """Length as the synthesiser spoke it."""
        return float(self.samples.shape[1]) / (OVERSAMPLING * SAMPLE_RATE_HZ)


@dataclass(frozen=True, eq=False)
class Voice:
    """A passage in one voice."""

    phrases: tuple[Phrase, ...]
    pitch_sd_st: float
    """SD of F0 over the passage's voiced time."""

    def to_bytes(self) -> bytes:
        """Serialise as .npz, for worker processes."""
        archive = io.BytesIO()
        arrays = {f"{k}.{part.name}": getattr(phrase, part.name) for k, phrase in enumerate(self.phrases) for part in fields(Phrase)}
        np.savez(archive, pitch_sd_st=self.pitch_sd_st, **arrays)
        return archive.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Voice":
        """Inverse of `to_bytes`."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            count = len({name.partition(".")[0] for name in arrays.files}) - 1
            phrases = tuple(Phrase(**{part.name: arrays[f"{k}.{part.name}"] for part in fields(Phrase)}) for k in range(count))
            return cls(phrases, float(arrays["pitch_sd_st"]))


@lru_cache(maxsize=len(Language) * len(Sex))
def get_voice(language: Language, sex: Sex) -> Voice:
    """Return the raw voice; the first call of a process makes it, always with the same samples for one version of Praat."""
    spoken = [_trim(samples) for samples in _speak(language, sex)]
    sounds = [parselmouth.Sound(samples, SAMPLE_RATE_HZ) for samples in spoken]
    floor_hz, ceiling_hz = _PITCH_RANGE_HZ[sex]
    pitches = [sound.to_pitch_ac(pitch_floor=floor_hz, pitch_ceiling=ceiling_hz) for sound in sounds]
    copies = _articulations(spoken, pitches)
    marks = [_marks(sound, pitch, floor_hz) for sound, pitch in zip(sounds, pitches, strict=True)]
    periods = np.concatenate([period_s[voiced] for _, period_s, voiced in marks])
    # Time-weighted, as any frame-based pitch track would see it: a long period counts for more.
    mean_st = float(np.average(-12 * np.log2(periods), weights=periods))
    phrases = tuple(_phrase(samples, copy, mark, mean_st) for samples, copy, mark in zip(spoken, copies, marks, strict=True))
    variance = float(np.average((-12 * np.log2(periods) - mean_st) ** 2, weights=periods))
    return Voice(phrases, float(np.sqrt(variance)))


def _speak(language: Language, sex: Sex) -> list[Array]:
    """Run the synthesiser in a fresh process (see `synthesiser`); samples at 16 kHz, one array a phrase."""
    request = {
        "language": _SYNTHESISER_LANGUAGE[language],
        "variant": _SYNTHESISER_VARIANT[sex],
        "words_per_minute": _WORDS_PER_MINUTE,
        "sample_rate_hz": SAMPLE_RATE_HZ,
        "phrases": PASSAGES[language],
    }
    # -P keeps this folder off the program's import path.
    program = [sys.executable, "-P", str(Path(__file__).with_name("synthesiser.py"))]
    done = subprocess.run(program, input=json.dumps(request).encode(), capture_output=True, check=False)
    if done.returncode != 0:
        raise SimulationError(f"Praat's synthesiser ended with {done.returncode} for {language} ({sex}); `clinical-ser doctor` checks Praat.")
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as arrays:
        return [arrays[str(k)].astype(np.float64) for k in range(len(PASSAGES[language]))]


def _trim(samples: Array) -> Array:
    """Cut the silence the synthesiser puts around a phrase, and fade the cuts: pauses are the speaker's, not the synthesiser's."""
    loud = np.nonzero(np.abs(samples) > _SILENCE_REL * np.abs(samples).max())[0]
    fade = int(_FADE_S * SAMPLE_RATE_HZ)
    kept = samples[max(loud[0] - fade, 0) : loud[-1] + fade].copy()
    ramp = np.linspace(0.0, 1.0, fade)
    kept[:fade] *= ramp
    kept[-fade:] *= ramp[::-1]
    return np.asarray(kept - kept.mean())


def _articulations(spoken: list[Array], pitches: list[parselmouth.Pitch]) -> list[Array]:
    """For each phrase its copies at every contrast, shape (len(CONTRASTS), n) at 16 kHz."""
    spectra = [line_spectra(samples) for samples in spoken]
    usable = [
        found & _voiced_at(pitch, frame_times_s(samples, SAMPLE_RATE_HZ))
        for samples, pitch, (_, found) in zip(spoken, pitches, spectra, strict=True)
    ]  # fmt: skip
    centre = np.concatenate([frequencies[use] for (frequencies, _), use in zip(spectra, usable, strict=True)]).mean(0)
    return [
        np.stack([samples if contrast == 1.0 else contract(samples, frequencies, use, centre, contrast) for contrast in CONTRASTS])
        for samples, (frequencies, _), use in zip(spoken, spectra, usable, strict=True)
    ]


def _voiced_at(pitch: parselmouth.Pitch, times_s: Array) -> NDArray[np.bool_]:
    voiced = (pitch.selected_array["frequency"] > 0).astype(float)
    return np.asarray(np.interp(times_s, pitch.xs(), voiced, left=0.0, right=0.0) > 0.99)


def _marks(sound: parselmouth.Sound, pitch: parselmouth.Pitch, floor_hz: float) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Return times, periods and voicing of all marks of a phrase, in order."""
    points = call([sound, pitch], "To PointProcess (cc)")
    pulses = np.array([call(points, "Get time from index", k + 1) for k in range(call(points, "Get number of points"))])
    gaps = np.diff(pulses)
    within = gaps < 1.25 / floor_hz  # Praat's own limit for two pulses of one voiced stretch
    before, after = np.append(np.nan, np.where(within, gaps, np.nan)), np.append(np.where(within, gaps, np.nan), np.nan)
    keep = ~(np.isnan(before) & np.isnan(after))
    periods = np.where(np.isnan(before), after, np.where(np.isnan(after), before, 0.5 * (before + after)))[keep]
    filler = _fill(pulses[keep], sound.xmax)
    times = np.concatenate([pulses[keep], filler])
    order = np.argsort(times, kind="stable")
    period_s = np.concatenate([periods, np.full(len(filler), UNVOICED_STEP_S)])[order]
    return times[order], period_s, np.concatenate([np.ones(len(periods), bool), np.zeros(len(filler), bool)])[order]


def _fill(pulses: Array, end_s: float) -> Array:
    """Return marks for everything that has no pulse near it, edges included."""
    edges = np.concatenate([[0.0], pulses, [end_s]])
    starts, stops = edges[:-1], edges[1:]
    counts = np.where(stops - starts > 2.5 * UNVOICED_STEP_S, np.floor((stops - starts) / UNVOICED_STEP_S), 0).astype(int)
    inner = [np.linspace(a, b, n + 1)[1:-1] for a, b, n in zip(starts, stops, counts, strict=True) if n > 1]
    return np.concatenate([[0.0], *inner, [end_s]])


def _phrase(samples: Array, copies: Array, marks: tuple[Array, Array, NDArray[np.bool_]], mean_st: float) -> Phrase:
    marks_s, period_s, voiced = marks
    power = uniform_filter1d(samples**2, int(_LEVEL_WINDOW_S * SAMPLE_RATE_HZ))
    at_marks = power[np.minimum((marks_s * SAMPLE_RATE_HZ).astype(int), len(power) - 1)]
    level_db = 10 * np.log10(np.maximum(at_marks, 1e-12) / np.mean(samples**2))
    return Phrase(
        samples=resample_poly(copies, OVERSAMPLING, 1, axis=1).astype(np.float32),
        marks_s=marks_s,
        period_s=period_s,
        voiced=voiced,
        pitch_st=np.where(voiced, -12 * np.log2(period_s) - mean_st, 0.0),
        level_db=np.clip(level_db, *_LEVEL_RANGE_DB),
    )
