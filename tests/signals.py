"""Signals whose truth is known, for the tests of every room.

Everything is float64 in full scale ±1, made from numbers alone and a seed, and short to make (under 10 ms for a second of signal).
A machine-steady tone at a mains frequency (50, 60, 100, 120 Hz ...) for a second or more is hum to the speech detector: give voices another F0.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

Samples = NDArray[np.float64]

RATE_HZ = 16_000

VOWEL_A = ((730.0, 80.0), (1090.0, 90.0), (2440.0, 120.0), (3400.0, 175.0), (4500.0, 250.0))
"""Formants of a man's /a/ as (frequency, bandwidth) in Hz: Peterson & Barney 1952 (F1-F3); F4, F5 and bandwidths after Klatt 1980."""
VOWEL_I = ((270.0, 60.0), (2290.0, 100.0), (3010.0, 150.0), (3500.0, 175.0), (4500.0, 250.0))
"""The same for /i/."""

_KERNEL_HALF = 32
_SYLLABLE_RAMP_S = 0.015


@dataclass(frozen=True)
class PulseTrain:
    """A train of band-limited pulses with the exact instants and heights it was made from."""

    samples: Samples
    times_s: Samples
    amplitudes: Samples

    @property
    def jitter_local(self) -> float:
        """Praat's jitter (local): mean absolute difference of neighbouring periods over the mean period."""
        periods = np.diff(self.times_s)
        return float(np.abs(np.diff(periods)).mean() / periods.mean())

    @property
    def shimmer_local(self) -> float:
        """Praat's shimmer (local): mean absolute difference of neighbouring amplitudes over the mean amplitude."""
        return float(np.abs(np.diff(self.amplitudes)).mean() / self.amplitudes.mean())


@dataclass(frozen=True)
class Sentence:
    """Voiced syllables in phrases; `speech_s` are the true phrase limits, `pauses_s` the true pauses between them."""

    samples: Samples
    speech_s: tuple[tuple[float, float], ...]
    pauses_s: tuple[tuple[float, float], ...]


def sine(frequency_hz: float, duration_s: float, *, amplitude: float = 0.5, rate_hz: int = RATE_HZ) -> Samples:
    """A sine that starts at phase 0."""
    return amplitude * np.sin(2 * np.pi * frequency_hz * np.arange(round(duration_s * rate_hz)) / rate_hz)


def hum(duration_s: float, *, mains_hz: float = 50.0, harmonics: int = 10, amplitude: float = 0.3, rate_hz: int = RATE_HZ) -> Samples:
    """Mains hum: `harmonics` multiples of `mains_hz` falling as 1/n."""
    tones = sum(sine(n * mains_hz, duration_s, amplitude=1 / n, rate_hz=rate_hz) for n in range(1, harmonics + 1))
    return scale_to_peak(np.asarray(tones), amplitude)


def white_noise(duration_s: float, *, level_dbfs: float = -20.0, seed: int = 0, rate_hz: int = RATE_HZ) -> Samples:
    """Gaussian white noise with exactly the RMS level asked for."""
    noise = np.random.default_rng(seed).standard_normal(round(duration_s * rate_hz))
    return scale_to_level(noise, level_dbfs)


def silence(duration_s: float, *, rate_hz: int = RATE_HZ) -> Samples:
    """Digital zeros."""
    return np.zeros(round(duration_s * rate_hz))


def pulse_train(
    duration_s: float,
    *,
    f0_hz: float | Samples = 130.0,
    jitter: float = 0.0,
    shimmer: float = 0.0,
    seed: int = 0,
    rate_hz: int = RATE_HZ,
) -> PulseTrain:
    """Pulses at exact (fractional) instants; `f0_hz` is a constant or a contour of any length spread over the duration.

    `jitter` and `shimmer` are the values aimed at (as ratios, Praat's `local` definitions): periods and heights are drawn independently
    from normal distributions, and the mean absolute difference of two such draws is 2 sigma / sqrt(pi). The values reached are properties.
    """
    rng = np.random.default_rng(seed)
    contour = np.atleast_1d(np.asarray(f0_hz, np.float64))
    sigma = np.sqrt(np.pi) / 2
    times, now = [], 0.5 / contour[0]
    while now < duration_s:
        times.append(now)
        f0 = np.interp(now, np.linspace(0, duration_s, len(contour)), contour)
        now += (1 + jitter * sigma * rng.standard_normal()) / f0
    instants = np.array(times)
    amplitudes = 1 + shimmer * sigma * rng.standard_normal(len(instants))
    return PulseTrain(_place_pulses(instants, amplitudes, round(duration_s * rate_hz), rate_hz), instants, amplitudes)


def vowel(
    duration_s: float,
    *,
    f0_hz: float | Samples = 130.0,
    formants: tuple[tuple[float, float], ...] = VOWEL_A,
    jitter: float = 0.004,
    shimmer: float = 0.02,
    level_dbfs: float = -20.0,
    seed: int = 0,
    rate_hz: int = RATE_HZ,
) -> Samples:
    """A sustained vowel: a pulse train with glottal tilt through a cascade of resonators (Klatt 1980) at the `formants`."""
    source = pulse_train(duration_s, f0_hz=f0_hz, jitter=jitter, shimmer=shimmer, seed=seed, rate_hz=rate_hz).samples
    return scale_to_level(resonate(tilt(source, rate_hz=rate_hz), formants, rate_hz=rate_hz), level_dbfs)


def sentence(
    *,
    phrases: int = 4,
    syllables: int = 5,
    syllable_s: float = 0.18,
    gap_s: float = 0.05,
    pauses_s: tuple[float, ...] = (0.5, 0.8, 0.3),
    lead_s: float = 0.5,
    f0_hz: float = 130.0,
    level_dbfs: float = -20.0,
    seed: int = 0,
    rate_hz: int = RATE_HZ,
) -> Sentence:
    """Phrases of vowel syllables, `gap_s` apart and falling in F0; pauses between phrases cycle through `pauses_s`; `lead_s` of zeros around."""
    parts, speech = [silence(lead_s, rate_hz=rate_hz)], []
    for phrase in range(phrases):
        if phrase:
            parts.append(silence(pauses_s[(phrase - 1) % len(pauses_s)], rate_hz=rate_hz))
        start = sum(map(len, parts)) / rate_hz
        for syllable in range(syllables):
            if syllable:
                parts.append(silence(gap_s, rate_hz=rate_hz))
            f0 = f0_hz * np.linspace(1.15, 0.9, syllables)[syllable] * np.array([1.0, 1.04, 0.97])
            formants = (VOWEL_A, VOWEL_I)[(phrase + syllable) % 2]
            tone = vowel(syllable_s, f0_hz=f0, formants=formants, level_dbfs=level_dbfs, seed=seed + 31 * phrase + syllable, rate_hz=rate_hz)
            parts.append(fade(tone, _SYLLABLE_RAMP_S, rate_hz=rate_hz))
        speech.append((start, sum(map(len, parts)) / rate_hz))
    parts.append(silence(lead_s, rate_hz=rate_hz))
    pauses = tuple((before[1], after[0]) for before, after in pairwise(speech))
    return Sentence(np.concatenate(parts), tuple(speech), pauses)


def add_noise(samples: Samples, snr_db: float, *, seed: int = 0, speech_s: tuple[tuple[float, float], ...] = (), rate_hz: int = RATE_HZ) -> Samples:
    """White noise at `snr_db` below the RMS of the signal, taken over `speech_s` where given and over everything otherwise."""
    spans = [samples[round(start * rate_hz) : round(end * rate_hz)] for start, end in speech_s] or [samples]
    level = level_dbfs(np.concatenate(spans))
    return samples + white_noise(len(samples) / rate_hz, level_dbfs=level - snr_db, seed=seed, rate_hz=rate_hz)


def tilt(samples: Samples, *, rate_hz: int = RATE_HZ, corner_hz: float = 100.0) -> Samples:
    """Glottal source at the lips: -12 dB an octave above `corner_hz`, +6 everywhere for radiation, nothing at 0 Hz."""
    pole = np.exp(-2 * np.pi * corner_hz / rate_hz)
    return np.asarray(lfilter([1, -1], [1, -2 * pole, pole**2], samples))


def resonate(samples: Samples, formants: tuple[tuple[float, float], ...], *, rate_hz: int = RATE_HZ) -> Samples:
    """A cascade of two-pole resonators, each with gain 1 at 0 Hz."""
    for frequency, bandwidth in formants:
        radius = np.exp(-np.pi * bandwidth / rate_hz)
        poles = [1.0, -2 * radius * np.cos(2 * np.pi * frequency / rate_hz), radius**2]
        samples = np.asarray(lfilter([sum(poles)], poles, samples))
    return samples


def fade(samples: Samples, ramp_s: float, *, rate_hz: int = RATE_HZ) -> Samples:
    """Raised-cosine ramps at both ends."""
    ramp = 0.5 - 0.5 * np.cos(np.pi * np.arange(round(ramp_s * rate_hz)) / round(ramp_s * rate_hz))
    faded = samples.copy()
    faded[: len(ramp)] *= ramp
    faded[len(faded) - len(ramp) :] *= ramp[::-1]
    return faded


def level_dbfs(samples: Samples) -> float:
    """RMS level, full scale = 1 (a full-scale sine has -3.01)."""
    return float(10 * np.log10(np.mean(np.square(samples))))


def scale_to_level(samples: Samples, dbfs: float) -> Samples:
    """The signal with exactly the RMS level asked for."""
    return samples * 10 ** ((dbfs - level_dbfs(samples)) / 20)


def scale_to_peak(samples: Samples, peak: float) -> Samples:
    """The signal with exactly the peak asked for."""
    return samples * (peak / np.abs(samples).max())


def _place_pulses(times_s: Samples, amplitudes: Samples, length: int, rate_hz: int) -> Samples:
    """Sum Hann-windowed sinc pulses centred on fractional instants."""
    centres = times_s * rate_hz
    offsets = np.arange(-_KERNEL_HALF, _KERNEL_HALF + 1)
    nearest = np.rint(centres).astype(int)
    lag = offsets[None, :] - (centres - nearest)[:, None]
    kernels = np.sinc(lag) * (0.5 + 0.5 * np.cos(np.pi * lag / (_KERNEL_HALF + 1))) * amplitudes[:, None]
    padded = np.zeros(length + 2 * _KERNEL_HALF + 2)
    np.add.at(padded, nearest[:, None] + offsets[None, :] + _KERNEL_HALF, kernels)
    return padded[_KERNEL_HALF : _KERNEL_HALF + length]
