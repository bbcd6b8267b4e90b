"""Our harmonics-to-noise ratio against Praat's, frame by frame, and against ratios that are known."""

import numpy as np
import parselmouth
import pytest

from clinical_ser.errors import InvalidValueError
from clinical_ser.features.harmonicity import harmonicity
from tests import signals

RATE_HZ = signals.RATE_HZ


def praat_hnr(samples: np.ndarray, rate_hz: int = RATE_HZ) -> np.ndarray:
    values = parselmouth.Sound(samples, rate_hz).to_harmonicity_cc(0.01, 75.0, 0.1, 1.0).values[0]
    return np.where(values == -200.0, np.nan, values)


def zeros_inside(samples: np.ndarray) -> np.ndarray:
    holed = samples.copy()
    holed[len(holed) // 3 : len(holed) // 2] = 0.0
    return holed


VOICE = signals.vowel(1.0, f0_hz=np.array([180.0, 140.0, 110.0]), jitter=0.01, shimmer=0.05)
SPEECH = signals.sentence(phrases=2, pauses_s=(0.4,)).samples
HARD = {
    "voice in noise": signals.add_noise(VOICE, 15.0),
    "odd length": signals.add_noise(VOICE, 15.0)[:-7],
    "zeros around": np.pad(signals.add_noise(VOICE, 20.0), (8_000, 8_001)),
    "zeros inside": zeros_inside(signals.add_noise(VOICE, 20.0)),
    "sentence with pauses": SPEECH,
    "clipped": np.clip(8 * signals.add_noise(VOICE, 20.0), -0.5, 0.5),
    "white noise": signals.white_noise(1.0),
    "noise at the highest frequencies": np.diff(signals.white_noise(1.0)),
    "noise at the lowest frequencies": np.cumsum(signals.white_noise(1.0)),
    "tone near the highest frequency": signals.add_noise(signals.sine(7_200.0, 1.0), 10.0),
    "very quiet": 1e-5 * signals.add_noise(VOICE, 15.0),
    "one frame": signals.white_noise(0.03),
}


@pytest.mark.parametrize("name", HARD)
def test_every_frame_is_praats(name: str) -> None:
    track = harmonicity(HARD[name], RATE_HZ)
    np.testing.assert_allclose(track.hnr_db, praat_hnr(HARD[name]), rtol=0, atol=1e-3)
    assert track.mean_db == pytest.approx(np.nanmean(praat_hnr(HARD[name])), abs=1e-5)


def test_recordings_of_more_frames_than_are_worked_on_at_once_are_praats() -> None:
    samples = np.tile(signals.add_noise(VOICE, 15.0), 6)
    np.testing.assert_allclose(harmonicity(samples, RATE_HZ).hnr_db, praat_hnr(samples), rtol=0, atol=1e-5)


def test_other_sampling_rates_are_praats() -> None:
    samples = signals.add_noise(signals.vowel(0.5, rate_hz=22_050), 15.0, rate_hz=22_050)
    np.testing.assert_allclose(harmonicity(samples, 22_050).hnr_db, praat_hnr(samples, 22_050), rtol=0, atol=1e-5)


@pytest.mark.parametrize("f0_hz", [95.0, 150.0])
@pytest.mark.parametrize("hnr_db", [5.0, 15.0, 25.0])
def test_a_known_ratio_is_found(f0_hz: float, hnr_db: float) -> None:
    # Higher voices have more periods within the longest lag, and the best of them is above the truth (1.6 dB at 310 Hz).
    samples = signals.add_noise(signals.sine(f0_hz, 4.0), hnr_db, seed=3)
    assert harmonicity(samples, RATE_HZ).mean_db == pytest.approx(hnr_db, abs=1.0)


@pytest.mark.parametrize("voice", [signals.pulse_train(1.0, f0_hz=160.0).samples, signals.vowel(1.0, f0_hz=80.0, jitter=0, shimmer=0)])
def test_machine_steady_voices_are_praats_up_to_80_db(voice: np.ndarray) -> None:
    # Above that the ratio is what floating point leaves of 1 - r. The vowel has flat tops with two maxima, one of which Praat chooses.
    ours, theirs = harmonicity(voice, RATE_HZ).hnr_db, praat_hnr(voice)
    assert np.nanmedian(theirs) > 40
    np.testing.assert_allclose(np.minimum(ours, 80.0), np.minimum(theirs, 80.0), rtol=0, atol=0.1)


def test_digital_silence_has_no_ratio_and_no_warning() -> None:
    track = harmonicity(np.zeros(RATE_HZ), RATE_HZ)
    assert len(track.hnr_db) == len(praat_hnr(np.zeros(RATE_HZ)))
    assert np.isnan(track.hnr_db).all()
    assert np.isnan(track.mean_db)


def test_sparse_clicks_have_no_ratio_as_in_praat() -> None:
    clicks = (np.arange(RATE_HZ) % 500 == 0).astype(np.float64)
    np.testing.assert_array_equal(np.isnan(harmonicity(clicks, RATE_HZ).hnr_db), np.isnan(praat_hnr(clicks)))


def test_too_short_a_recording_is_refused() -> None:
    with pytest.raises(InvalidValueError, match=r"at least 0\.0267 s"):
        harmonicity(np.ones(400), RATE_HZ)
