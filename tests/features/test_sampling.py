"""Frames and resampling against Praat's own."""

import numpy as np
import parselmouth
import pytest

from clinical_ser.errors import InvalidValueError
from clinical_ser.features import sampling

RATE_HZ = 16_000


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=samples)


@pytest.mark.parametrize("length", [5, 60, 1_601, 32_000, 33_333])
@pytest.mark.parametrize("new_rate_hz", [10_000, 10_400, 11_000])
def test_resampling_is_praats(length: int, new_rate_hz: int) -> None:
    samples = noise(length)
    theirs = parselmouth.Sound(samples, RATE_HZ).resample(new_rate_hz, 50)
    ours = sampling.resample(samples, RATE_HZ, new_rate_hz)
    np.testing.assert_allclose(ours, theirs.values[0], atol=1e-9)
    assert sampling.first_sample_time(length, RATE_HZ, len(ours), new_rate_hz) == pytest.approx(theirs.x1, abs=1e-15)


def test_resampling_keeps_a_tone_below_the_new_limit_and_removes_one_above() -> None:
    time_s = np.arange(RATE_HZ) / RATE_HZ
    kept = sampling.resample(np.sin(2 * np.pi * 1_000 * time_s), RATE_HZ, 10_000)
    removed = sampling.resample(np.sin(2 * np.pi * 6_000 * time_s), RATE_HZ, 10_000)
    assert kept[500:-500].std() == pytest.approx(np.sqrt(0.5), rel=1e-3)
    assert removed[500:-500].std() < 1e-3


def test_the_same_rate_gives_a_copy() -> None:
    samples = noise(100)
    copy = sampling.resample(samples, RATE_HZ, RATE_HZ)
    np.testing.assert_array_equal(copy, samples)
    assert not np.shares_memory(copy, samples)


def test_a_higher_rate_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="at most 16000"):
        sampling.resample(noise(100), RATE_HZ, 44_100)


def test_a_long_sound_filtered_in_blocks_differs_from_the_whole_by_less_than_its_noise_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = noise(200_000)
    whole = sampling.resample(samples, RATE_HZ, 10_000)
    monkeypatch.setattr(sampling, "WHOLE_FILTER_SAMPLES", 50_000)
    monkeypatch.setattr(sampling, "FILTER_BLOCK", 100_000)
    blocks = sampling.resample(samples, RATE_HZ, 10_000)
    assert len(blocks) == len(whole)
    # White noise is the worst case, since it has energy at the very edge of the filter; speech has next to none at 5 kHz.
    assert 20 * np.log10(np.std(blocks - whole) / np.std(whole)) < -40
    assert not np.array_equal(blocks, whole)


@pytest.mark.parametrize("length", [4_799, 4_800, 16_001, 40_000])
def test_frames_are_praats(length: int) -> None:
    track = parselmouth.Sound(noise(length), RATE_HZ).to_harmonicity_cc(0.01, 75.0, 0.1, 1.0)
    times_s = sampling.frame_times(length, RATE_HZ, 2 / 75, 0.01)
    np.testing.assert_array_equal(times_s, track.xs())


def test_a_sound_shorter_than_a_window_has_no_frames() -> None:
    assert len(sampling.frame_times(100, RATE_HZ, 0.1, 0.01)) == 0


@pytest.mark.parametrize("depth", [1, 2, 3, 50])
def test_interpolation_weights_sum_to_about_one_and_hit_the_samples(depth: int) -> None:
    fractions = np.array([0.0, 0.3, 0.5, 0.9])
    weights = sampling.sinc_weights(fractions, np.full(4, depth), 50)
    assert weights.shape == (4, 100)
    np.testing.assert_allclose(weights[0], np.eye(100)[49], atol=1e-15)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=0.1)
    assert np.count_nonzero(np.abs(weights[1]) > 0) <= 2 * depth
