"""What lies between a mouth and a file: a small room, a microphone's response and noise at a stated signal-to-noise ratio."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import firwin2, lfilter, oaconvolve

from clinical_ser.audio.recording import SAMPLE_RATE_HZ
from clinical_ser.cohorts.simulation.model import Microphone, Site
from clinical_ser.cohorts.simulation.speech import Reading

_TAPS = 255
_DIRECT_TO_REVERBERANT_DB = 14.0  # a device half a metre away in a furnished room
_NOISE_POLE = 0.85  # room tone falls by 20 dB from low to high frequencies
_PEAK = 0.98
_SNR_SD_DB = 2.0
_GAIN_SD_DB = 1.0
_RT60_SPREAD = 0.15

# (frequency in Hz, gain in dB): plausible responses, no product's.
_RESPONSES: dict[Microphone, tuple[tuple[float, float], ...]] = {
    Microphone.HEADSET: ((0, -30), (60, -6), (120, 0), (3000, 0), (5000, 1), (7800, -1), (8000, -6)),
    Microphone.TABLET: ((0, -30), (90, -9), (200, -1), (1000, 0), (3500, 3), (6000, 2), (7600, -3), (8000, -10)),
    Microphone.LAPTOP: ((0, -30), (80, -12), (180, -3), (500, 1), (2000, -1), (4500, 2), (7400, -4), (8000, -12)),
}

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Scene:
    """The circumstances of one recording."""

    microphone: Microphone
    gain_db: float
    rt60_s: float
    snr_db: float

    @classmethod
    def at_site(cls, site: Site, rng: np.random.Generator) -> "Scene":
        """One recording at a site, with the spread of everyday use."""
        gain, rt60, snr = rng.standard_normal(3)
        return cls(
            microphone=site.microphone,
            gain_db=site.gain_db + _GAIN_SD_DB * float(gain),
            rt60_s=site.rt60_s * float(np.exp(_RT60_SPREAD * rt60)),
            snr_db=site.snr_db + _SNR_SD_DB * float(snr),
        )


def record(reading: Reading, scene: Scene, rng: np.random.Generator) -> NDArray[np.int16]:
    """Return the reading as the file holds it, 16-bit at 16 kHz; the noise is `snr_db` below the power of the spoken parts."""
    response = np.convolve(_room(scene.rt60_s, rng), _microphone(scene.microphone))
    delay = _TAPS // 2  # of the linear-phase microphone filter
    length = len(reading.samples)
    speech = oaconvolve(reading.samples, response)[delay : delay + length] * 10 ** (scene.gain_db / 20)
    noise = oaconvolve(_room_tone(length, rng), _microphone(scene.microphone), mode="same")
    power = np.mean(speech[reading.spoken] ** 2)
    mixture = speech + noise * np.sqrt(power / np.mean(noise**2) * 10 ** (-scene.snr_db / 10))
    return to_pcm(mixture * min(1.0, _PEAK / float(np.abs(mixture).max())))


def to_pcm(samples: Array) -> NDArray[np.int16]:
    """Round samples within ±1 to 16 bits."""
    return np.rint(samples * 32767).astype(np.int16)


def _microphone(microphone: Microphone) -> Array:
    frequencies, gains_db = np.array(_RESPONSES[microphone]).T
    return np.asarray(firwin2(_TAPS, frequencies, 10 ** (gains_db / 20), fs=SAMPLE_RATE_HZ))


def _room(rt60_s: float, rng: np.random.Generator) -> Array:
    """Direct sound, then noise that decays by 60 dB in `rt60_s`; energy of the tail as the direct-to-reverberant ratio says."""
    tail = rng.standard_normal(int(rt60_s * SAMPLE_RATE_HZ)) if rt60_s > 0 else np.zeros(0)
    tail *= 10 ** (-3 * np.arange(len(tail)) / max(len(tail), 1))
    tail *= np.sqrt(10 ** (-_DIRECT_TO_REVERBERANT_DB / 10) / max(float(tail @ tail), 1e-20))
    return np.concatenate([[1.0], tail])


def _room_tone(length: int, rng: np.random.Generator) -> Array:
    return np.asarray(lfilter([1.0], [1.0, -_NOISE_POLE], rng.standard_normal(length)))
