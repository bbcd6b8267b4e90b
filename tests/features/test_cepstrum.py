"""Our smoothed cepstral peak prominence against Praat's, frame by frame."""

import numpy as np
import parselmouth
import pytest
from parselmouth.praat import call

from clinical_ser.errors import InvalidValueError
from clinical_ser.features.cepstrum import cepstral_peak_prominence
from tests import signals

RATE_HZ = signals.RATE_HZ
SETTINGS = (60.0, 330.0, 0.05, "Parabolic", 0.001, 0.0, "Straight", "Robust")


def praat_cepstrogram(samples: np.ndarray, step_s: float = 0.01) -> parselmouth.Data:
    return call(parselmouth.Sound(samples, RATE_HZ), "To PowerCepstrogram", 60.0, step_s, 5000.0, 50.0)


def praat_cpps(samples: np.ndarray, step_s: float = 0.01) -> float:
    return call(praat_cepstrogram(samples, step_s), "Get CPPS", "no", 0.01, 0.001, *SETTINGS)


def praat_frames(samples: np.ndarray) -> np.ndarray:
    """Time and prominence of every frame, shape (frames, 2)."""
    table = call(call(praat_cepstrogram(samples), "Smooth", 0.01, 0.001), "To Table (peak prominence)", *SETTINGS)
    rows = range(1, int(call(table, "Get number of rows")) + 1)
    return np.array([[float(call(table, "Get value", row, column)) for column in ("time", "cpp")] for row in rows])


VOICE = signals.add_noise(signals.vowel(1.0, f0_hz=np.array([180.0, 140.0, 110.0]), jitter=0.01, shimmer=0.05), 20.0)
SOUNDING = {
    "voice in noise": VOICE,
    "odd length": VOICE[:-7],
    "high voice": signals.add_noise(signals.vowel(1.0, f0_hz=320.0), 25.0),
    "above the searched range": signals.add_noise(signals.vowel(1.0, f0_hz=390.0), 25.0),
    "clipped": np.clip(8 * VOICE, -0.5, 0.5),
    "white noise": signals.white_noise(1.0),
    "very quiet": 1e-5 * VOICE,
    "more frames than are worked on at once": np.tile(VOICE, 3),
    "a single frame": signals.white_noise(0.105),
}
PARTLY_SILENT = {
    "zeros around": np.pad(VOICE, (8_000, 8_001)),
    "zeros inside": np.concatenate([VOICE, np.zeros(12_000), VOICE]),
    "sentence with pauses": signals.sentence(phrases=2, pauses_s=(0.4,)).samples,
}


@pytest.mark.parametrize("name", SOUNDING)
def test_cpps_is_praats(name: str) -> None:
    assert cepstral_peak_prominence(SOUNDING[name], RATE_HZ).mean_db == pytest.approx(praat_cpps(SOUNDING[name]), abs=1e-6)


@pytest.mark.parametrize("name", PARTLY_SILENT)
def test_cpps_with_digital_silence_is_praats(name: str) -> None:
    # What the anti-aliasing filter leaves in a pause is 1e-7 of the signal, and its logarithm shows the last digits of either FFT.
    assert cepstral_peak_prominence(PARTLY_SILENT[name], RATE_HZ).mean_db == pytest.approx(praat_cpps(PARTLY_SILENT[name]), abs=0.02)


def test_every_frame_is_praats() -> None:
    track = cepstral_peak_prominence(VOICE, RATE_HZ)
    theirs = praat_frames(VOICE)
    np.testing.assert_array_equal(track.times_s, theirs[:, 0])
    np.testing.assert_allclose(track.prominence_db, theirs[:, 1], rtol=0, atol=1e-6)


def test_digital_silence_has_no_prominence_and_no_warning() -> None:
    track = cepstral_peak_prominence(np.zeros(RATE_HZ), RATE_HZ)
    np.testing.assert_array_equal(track.prominence_db, 0.0)
    assert praat_cpps(np.zeros(RATE_HZ)) == 0.0


def test_the_ten_millisecond_step_stands_for_the_two_of_the_standard() -> None:
    levels = (5.0, 15.0, 25.0, 35.0)
    voices = [signals.add_noise(signals.vowel(1.0, f0_hz=np.array([150.0, 120.0])), level) for level in levels]
    ours = [cepstral_peak_prominence(voice, RATE_HZ).mean_db for voice in voices]
    standard = [praat_cpps(voice, 0.002) for voice in voices]
    assert np.corrcoef(ours, standard)[0, 1] > 0.999
    np.testing.assert_allclose(ours, standard, atol=1.0)


def test_prominence_falls_with_noise() -> None:
    clean = signals.vowel(1.0)
    levels = [cepstral_peak_prominence(signals.add_noise(clean, snr_db), RATE_HZ).mean_db for snr_db in (40.0, 20.0, 10.0, 0.0)]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] - levels[-1] > 5


def test_gain_changes_nothing() -> None:
    assert cepstral_peak_prominence(0.01 * VOICE, RATE_HZ).mean_db == pytest.approx(cepstral_peak_prominence(VOICE, RATE_HZ).mean_db, abs=1e-9)


def test_too_short_a_recording_is_refused() -> None:
    with pytest.raises(InvalidValueError, match=r"at least 0\.1 s"):
        cepstral_peak_prominence(np.ones(1_500), RATE_HZ)
