"""The pitch track follows known contours, in a range that fits the speaker."""

import numpy as np
import parselmouth
import pytest

from clinical_ser.audio import analyse, from_samples
from clinical_ser.audio.pitch import FIRST_CEILING_HZ, FIRST_FLOOR_HZ, adapted_range, track_pitch
from clinical_ser.audio.voice_activity import f0_on_grid
from tests import signals


def track(samples):
    return track_pitch(parselmouth.Sound(samples, 16_000.0))


@pytest.mark.parametrize("f0_hz", [70.0, 110.0, 180.0, 260.0, 400.0])
def test_a_steady_voice_has_its_pitch_everywhere(f0_hz):
    pitch = track(signals.vowel(2.0, f0_hz=f0_hz, jitter=0.0, shimmer=0.0))
    assert pitch.voiced.mean() > 0.95
    np.testing.assert_allclose(pitch.f0_hz[pitch.voiced], f0_hz, rtol=0.01)
    assert pitch.strength[pitch.voiced].min() > 0.9
    assert np.diff(pitch.times_s) == pytest.approx(0.01)


def test_a_gliding_voice_is_followed():
    contour = np.array([120.0, 240.0, 150.0])
    pitch = track(signals.vowel(3.0, f0_hz=contour))
    true = np.interp(pitch.times_s, np.linspace(0, 3.0, 3), contour)
    error = np.abs(12 * np.log2(pitch.f0_hz[pitch.voiced] / true[pitch.voiced]))
    assert pitch.voiced.mean() > 0.95
    assert np.quantile(error, 0.95) < 0.3  # semitones


def test_the_range_follows_the_quartiles():
    assert adapted_range(np.array([0.0, 0, 0] + [200.0] * 50)) == (150, 500)
    assert adapted_range(np.r_[np.full(50, 100.0), np.full(50, 140.0)]) == (75, 350)


def test_the_range_stays_within_what_voices_do():
    assert adapted_range(np.full(50, 60.0)) == (50, 200)
    assert adapted_range(np.full(50, 600.0)) == (250, 800)


def test_too_few_voiced_frames_leave_the_range_open():
    assert adapted_range(np.array([0.0] * 100 + [480.0] * 3)) == (FIRST_FLOOR_HZ, FIRST_CEILING_HZ)


def test_the_adapted_range_avoids_the_octave_error_of_praats_default():
    sound = parselmouth.Sound(signals.vowel(2.0, f0_hz=85.0, formants=((170.0, 8.0), (340.0, 30.0))), 16_000.0)
    default = sound.to_pitch_ac(pitch_floor=75.0, pitch_ceiling=600.0).selected_array["frequency"]
    ours = track_pitch(sound).f0_hz
    assert np.median(default[default > 0]) == pytest.approx(170, rel=0.02)
    np.testing.assert_allclose(ours[ours > 0], 85, rtol=0.02)


@pytest.mark.parametrize("samples", [1, 2, 100, 160, 400, 800, 801, 1_000, 1_600])
@pytest.mark.parametrize("make", [np.zeros, np.ones, lambda n: signals.vowel(0.2)[:n]], ids=["zeros", "ones", "vowel"])
def test_no_sound_is_too_short(samples, make):
    analysis = analyse(from_samples(make(samples), 16_000))
    assert len(analysis.level_dbfs) == len(analysis.speech) == max(1, samples // 160)
    assert np.isfinite(analysis.level_dbfs).all()
    assert np.isfinite(analysis.noise_floor_dbfs)


def test_unvoiced_sound_has_no_pitch():
    pitch = track(signals.white_noise(3.0))
    assert pitch.voiced.mean() < 0.02
    assert (pitch.strength[~pitch.voiced] == 0).all()


def test_the_track_is_looked_up_at_the_level_frames():
    vowel = signals.vowel(1.0, f0_hz=np.array([100.0, 200.0]))
    pitch = track(np.r_[np.zeros(8_000), vowel, np.zeros(8_000)])
    f0 = f0_on_grid(pitch, 200)
    assert f0[:48].max() == f0[152:].max() == 0
    assert f0[100] == pytest.approx(150, rel=0.02)
    assert f0[125] == pytest.approx(175, rel=0.02)
