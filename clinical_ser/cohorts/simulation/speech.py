"""A speaker reads the passage: pitch-synchronous overlap-add (Moulines & Charpentier 1990) with every voice parameter under control.

Praat's own Manipulation does the same at 13 ms of CPU per second of speech and cannot place single cycles; this does it at about 3 and can,
so that jitter and shimmer are put where they belong, between the cycles.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d
from scipy.special import gammaincinv

from clinical_ser.audio.recording import SAMPLE_RATE_HZ
from clinical_ser.cohorts.simulation.parameters import PARAMETERS, between_speaker_sd, natural_values
from clinical_ser.cohorts.simulation.voices import CONTRASTS, OVERSAMPLING, UNVOICED_STEP_S, Phrase, Voice

SHORTEST_PAUSE_S = 0.28
"""Every gap between phrases is a pause by the 250 ms rule of the timing features, with room for the edges of the words."""
LONGEST_PAUSE_S = 5.0
EDGE_SILENCE_S = 0.4
WITHIN_SPEAKER = 0.25
"""SD of one recording around its speaker, as a share of the SD between speakers; assumed."""

_SEMITONE_REFERENCE_HZ = 27.5
_F0_LIMITS_HZ = (55.0, 550.0)
_PHRASE_LEVEL_SD_DB = 1.5
_BREATH_WINDOW_S = 0.01
_UNVOICED_SCATTER_S = 0.003
# Mean |difference| of neighbouring periods / mean period, for cycles displaced independently with SD 1 period: E|N(0, 6)|.
_JITTER_PER_SD = float(np.sqrt(6) * np.sqrt(2 / np.pi))
# The same for amplitudes scaled by 1 + SD: E|N(0, 2)|.
_SHIMMER_PER_SD = float(np.sqrt(2) * np.sqrt(2 / np.pi))

Array = NDArray[np.float64]


@dataclass(frozen=True)
class VoiceSettings:
    """Values of the voice parameters in their units (`parameters.PARAMETERS`)."""

    f0_semitones: float
    f0_sd_semitones: float
    tempo: float
    pause_excess_s: float
    pause_sd_s: float
    level_db: float
    dynamics: float
    jitter_percent: float
    shimmer_percent: float
    hnr_db: float
    articulation: float
    formant_scale: float

    @classmethod
    def of_recording(cls, voice: Array, rng: np.random.Generator) -> Self:
        """One recording of a speaker: `voice` has shape (K,), Gaussian scale; a person is not the same every day."""
        values = natural_values(voice + WITHIN_SPEAKER * between_speaker_sd() * rng.standard_normal(len(PARAMETERS)))
        return cls(**{name: float(value) for name, value in values.items()})


@dataclass(frozen=True, eq=False)
class Reading:
    """What was said: samples at 16 kHz before any room or microphone, and where the speech is."""

    samples: Array
    spoken: NDArray[np.bool_]
    """Shape (n,); True inside phrases, False in pauses."""
    pauses_s: Array
    """Shape (phrases - 1,); the gaps between phrases."""


def read_passage(voice: Voice, settings: VoiceSettings, speech_s: float, rng: np.random.Generator, *, start_phrase: int = 0) -> Reading:
    """Read phrases, over again if need be, until there are `speech_s` seconds of speech."""
    phrases = _chosen_phrases(voice, settings.tempo, speech_s, start_phrase)
    spoken = [_utter(phrase, voice.pitch_sd_st, settings, rng) for phrase in phrases]
    pauses_s = draw_pauses(len(spoken) - 1, settings, rng)
    return _level(_join(spoken, pauses_s), settings.level_db)


def draw_pauses(count: int, settings: VoiceSettings, rng: np.random.Generator) -> Array:
    """Gamma-distributed pauses, shape (count,), with the speaker's mean and SD.

    The draw is stratified (one from each of `count` equally likely ranges, shuffled): half a minute then shows the speaker's distribution
    with less luck than independent draws would.
    """
    uniform = (rng.permutation(count) + rng.random(count)) / max(count, 1)
    shape = (settings.pause_excess_s / settings.pause_sd_s) ** 2
    excess = gammaincinv(shape, uniform) * settings.pause_sd_s**2 / settings.pause_excess_s
    return np.asarray(np.minimum(SHORTEST_PAUSE_S + excess, LONGEST_PAUSE_S))


def _chosen_phrases(voice: Voice, tempo: float, speech_s: float, start: int) -> list[Phrase]:
    chosen: list[Phrase] = []
    total = 0.0
    while total < speech_s:
        phrase = voice.phrases[(start + len(chosen)) % len(voice.phrases)]
        chosen.append(phrase)
        total += phrase.duration_s / tempo
    return chosen


def _utter(phrase: Phrase, pitch_sd_st: float, settings: VoiceSettings, rng: np.random.Generator) -> Array:
    """One phrase in the speaker's voice, at 16 kHz, now a little louder, now a little softer."""
    marks_out_s = phrase.marks_s / settings.tempo
    semitones = settings.f0_semitones + phrase.pitch_st * settings.f0_sd_semitones / pitch_sd_st
    f0_hz = np.clip(_SEMITONE_REFERENCE_HZ * 2 ** (semitones / 12), *_F0_LIMITS_HZ)
    rate_hz = np.where(phrase.voiced, f0_hz, 1 / UNVOICED_STEP_S)
    cycles = np.append(0.0, np.cumsum(np.diff(marks_out_s) * 0.5 * (rate_hz[1:] + rate_hz[:-1])))
    times_s = np.interp(np.arange(int(cycles[-1]) + 1), cycles, marks_out_s)
    source = np.rint(np.interp(times_s, marks_out_s, np.arange(len(marks_out_s)))).astype(int)
    voiced = phrase.voiced[source]
    grains = _Grains(
        centre_s=times_s + voiced * rng.standard_normal(len(times_s)) * settings.jitter_percent / 100 / _JITTER_PER_SD / rate_hz[source],
        source_s=phrase.marks_s[source] + ~voiced * rng.uniform(-_UNVOICED_SCATTER_S, _UNVOICED_SCATTER_S, len(times_s)),
        half_s=phrase.period_s[source] / settings.formant_scale,
        gain=_gains(phrase.level_db[source], voiced, settings, rng),
    )
    samples = _overlap_add(grains, _articulated(phrase, settings.articulation), settings.formant_scale, marks_out_s[-1])
    gain_db = _PHRASE_LEVEL_SD_DB * settings.dynamics * rng.standard_normal()
    return (samples + _breath(samples, times_s, voiced, settings.hnr_db, rng)) * 10 ** (gain_db / 20)


@dataclass(frozen=True, eq=False)
class _Grains:
    """Windowed pieces to add up, one a cycle: where they go, where they come from, half their length, how loud; all shape (cycles,)."""

    centre_s: Array
    source_s: Array
    half_s: Array
    gain: Array


def _gains(level_db: Array, voiced: NDArray[np.bool_], settings: VoiceSettings, rng: np.random.Generator) -> Array:
    dynamics = 10 ** ((settings.dynamics - 1) * level_db / 20)
    shimmer = 1 + voiced * rng.standard_normal(len(level_db)) * settings.shimmer_percent / 100 / _SHIMMER_PER_SD
    return dynamics * np.clip(shimmer, 0.3, 1.7)


def _articulated(phrase: Phrase, articulation: float) -> NDArray[np.float32]:
    place = np.interp(articulation, CONTRASTS, np.arange(len(CONTRASTS)))
    lower = min(int(place), len(CONTRASTS) - 2)
    share = np.float32(place - lower)
    return np.asarray((1 - share) * phrase.samples[lower] + share * phrase.samples[lower + 1])


def _overlap_add(grains: _Grains, source: NDArray[np.float32], formant_scale: float, duration_s: float) -> Array:
    """Add Hann-windowed grains, read from the source `formant_scale` times faster than they are written."""
    reach = int(np.ceil(grains.half_s.max() * SAMPLE_RATE_HZ)) + 1
    first = np.floor(grains.centre_s * SAMPLE_RATE_HZ).astype(int) - reach + 1
    positions = first[:, None] + np.arange(2 * reach)
    offset_s = positions / SAMPLE_RATE_HZ - grains.centre_s[:, None]
    phase = np.clip(offset_s / grains.half_s[:, None], -1.0, 1.0)
    window = (0.5 * grains.gain)[:, None] * (1.0 + np.cos(np.pi * phase))
    read = (grains.source_s[:, None] + offset_s * formant_scale) * (OVERSAMPLING * SAMPLE_RATE_HZ)
    read = np.clip(read, 0.0, len(source) - 1.001)
    whole = read.astype(np.int64)
    values = source[whole] + (read - whole) * (source[whole + 1] - source[whole])
    length = int(np.ceil(duration_s * SAMPLE_RATE_HZ))
    inside = (positions >= 0) & (positions < length)
    return np.asarray(np.bincount(positions[inside], weights=(window * values)[inside], minlength=length), dtype=np.float64)


def _breath(samples: Array, times_s: Array, voiced: NDArray[np.bool_], hnr_db: float, rng: np.random.Generator) -> Array:
    """White noise that follows the voiced sound `hnr_db` below it."""
    power = uniform_filter1d(samples**2, int(_BREATH_WINDOW_S * SAMPLE_RATE_HZ))
    voicing = np.interp(np.arange(len(samples)) / SAMPLE_RATE_HZ, times_s, voiced.astype(float))
    return np.asarray(rng.standard_normal(len(samples)) * np.sqrt(np.maximum(power, 0.0) * 10 ** (-hnr_db / 10)) * voicing)


def _join(phrases: list[Array], pauses_s: Array) -> Reading:
    gaps = np.rint(np.concatenate([[EDGE_SILENCE_S], pauses_s, [EDGE_SILENCE_S]]) * SAMPLE_RATE_HZ).astype(int)
    pieces, spoken = [np.zeros(gaps[0])], [np.zeros(gaps[0], bool)]
    for phrase, gap in zip(phrases, gaps[1:], strict=True):
        pieces += [phrase, np.zeros(gap)]
        spoken += [np.ones(len(phrase), bool), np.zeros(gap, bool)]
    return Reading(np.concatenate(pieces), np.concatenate(spoken), pauses_s)


def _level(reading: Reading, level_db: float) -> Reading:
    rms = np.sqrt(np.mean(reading.samples[reading.spoken] ** 2))
    return Reading(reading.samples * 10 ** (level_db / 20) / rms, reading.spoken, reading.pauses_s)
