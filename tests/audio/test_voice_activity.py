"""Speech is found where it is, at any noise and level, and nowhere else."""

import numpy as np
import pytest
from scipy.signal import butter, sosfilt

from clinical_ser.audio import analyse, from_samples
from clinical_ser.audio.voice_activity import level_track, runs
from tests import signals


def segments(samples):
    return analyse(from_samples(samples, 16_000)).segments_s


def coloured_noise(duration_s, exponent, seed=0):
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft(rng.standard_normal(round(duration_s * 16_000)))
    spectrum[1:] /= np.arange(1, len(spectrum)) ** (exponent / 2)
    spectrum[0] = 0
    return signals.scale_to_level(np.fft.irfft(spectrum), -25.0)


@pytest.mark.parametrize("snr_db", [None, 40, 25, 15])
@pytest.mark.parametrize("f0_hz", [95.0, 130.0, 220.0, 300.0])
def test_phrases_and_pauses_are_where_they_were_put(snr_db, f0_hz):
    sentence = signals.sentence(f0_hz=f0_hz, seed=round(f0_hz))
    noisy = sentence.samples if snr_db is None else signals.add_noise(sentence.samples, snr_db, speech_s=sentence.speech_s)
    found = segments(noisy)
    assert len(found) == len(sentence.speech_s)
    np.testing.assert_allclose(found, sentence.speech_s, atol=0.03)


@pytest.mark.parametrize("gain_db", [-40, -20, 10])
def test_the_level_does_not_matter(gain_db):
    sentence = signals.sentence()
    noisy = signals.add_noise(sentence.samples, 25, speech_s=sentence.speech_s) * 10 ** (gain_db / 20)
    np.testing.assert_allclose(segments(noisy), sentence.speech_s, atol=0.03)


def test_a_noise_floor_that_rises_is_followed():
    sentence = signals.sentence(phrases=20, pauses_s=(0.5,))
    rise_s = len(sentence.samples) / 32_000
    noise = np.random.default_rng(0).standard_normal(len(sentence.samples)) * np.where(
        np.arange(len(sentence.samples)) < rise_s * 16_000, 0.0005, 0.01
    )
    found = np.array(segments(sentence.samples + noise))
    for limits in sentence.speech_s:
        if abs(limits[0] - rise_s) > 6:  # the floor follows within half its window of 10 s
            assert np.abs(found - limits).max(axis=1).min() < 0.05


def test_gaps_below_250_ms_are_bridged_and_longer_ones_are_pauses():
    sentence = signals.sentence(phrases=3, pauses_s=(0.2, 0.3), lead_s=0.4)
    assert len(segments(sentence.samples)) == 2


def test_a_voiceless_consonant_belongs_to_its_word():
    vowel = signals.vowel(0.3)
    fricative = signals.fade(signals.white_noise(0.15, level_dbfs=-35), 0.02)
    stop = signals.fade(signals.white_noise(0.03, level_dbfs=-35), 0.005)
    word = np.r_[signals.silence(0.5), fricative, vowel, signals.silence(0.06), stop, signals.silence(0.5)]
    np.testing.assert_allclose(segments(word + signals.white_noise(len(word) / 16_000, level_dbfs=-70)), [(0.5, 0.5 + 0.15 + 0.3 + 0.09)], atol=0.03)


def test_a_burst_away_from_voice_is_not_speech():
    burst = signals.fade(signals.white_noise(0.15, level_dbfs=-20), 0.02)
    sound = np.r_[signals.silence(0.5), burst, signals.silence(0.6), signals.vowel(0.5), signals.silence(0.6), burst, signals.silence(0.5)]
    np.testing.assert_allclose(segments(sound + signals.white_noise(len(sound) / 16_000, level_dbfs=-70)), [(1.25, 1.75)], atol=0.03)


NOT_SPEECH = {
    "silence": signals.silence(3),
    "constant": signals.silence(3) + 0.3,
    "loud white noise": signals.white_noise(5, level_dbfs=-6),
    "white noise": signals.white_noise(5, level_dbfs=-30),
    "quiet white noise": signals.white_noise(5, level_dbfs=-70),
    "one step of 16 bits": np.round(signals.white_noise(5, level_dbfs=-92) * 32_768) / 32_768,
    "pink noise": coloured_noise(5, 1),
    "brown noise": coloured_noise(5, 2),
    "noise that comes and goes": signals.white_noise(5) * (1.1 + np.sin(2 * np.pi * 3 * np.arange(80_000) / 16_000)),
    "50 Hz hum": signals.hum(3),
    "60 Hz hum": signals.hum(3, mains_hz=60, harmonics=5),
    "hum in noise": signals.add_noise(signals.hum(3), 20),
    "buzz at 120 Hz": signals.hum(3, mains_hz=120, harmonics=30),
    "a beep": signals.sine(440, 3),
    "a high beep": signals.sine(1_000, 3),
    "clicks": np.bincount(np.arange(8_000, 80_000, 8_000), minlength=80_000) * 0.8,
}


@pytest.mark.parametrize("name", NOT_SPEECH)
def test_what_is_not_speech(name):
    assert segments(NOT_SPEECH[name]) == ()


@pytest.mark.parametrize("seed", range(8))
def test_white_noise_is_never_speech(seed):
    assert segments(signals.white_noise(20, level_dbfs=-20 - 5 * seed, seed=seed)) == ()


def test_hum_under_speech_is_not_taken_for_speech():
    sentence = signals.sentence()
    hum = signals.hum(len(sentence.samples) / 16_000, mains_hz=60, harmonics=5, amplitude=0.02)
    np.testing.assert_allclose(segments(sentence.samples + hum), sentence.speech_s, atol=0.04)


def test_a_sustained_vowel_from_edge_to_edge_is_speech():
    np.testing.assert_allclose(segments(signals.vowel(3.0)), [(0.0, 3.0)], atol=0.03)


def test_a_telephone_voice_is_found():
    sentence = signals.sentence()
    band = butter(6, [300, 3_400], "bandpass", fs=16_000, output="sos")
    found = segments(sosfilt(band, signals.add_noise(sentence.samples, 25, speech_s=sentence.speech_s)))
    np.testing.assert_allclose(found, sentence.speech_s, atol=0.04)


def test_frames_and_segments_tell_the_same():
    analysis = analyse(from_samples(signals.sentence().samples, 16_000))
    assert [(start / 100, stop / 100) for start, stop in runs(analysis.speech)] == list(analysis.segments_s)
    assert analysis.speech_s == pytest.approx(analysis.speech.sum() / 100)


def test_a_segment_does_not_end_after_the_recording():
    analysis = analyse(from_samples(signals.vowel(1.0)[:15_999], 16_000))
    assert analysis.segments_s[-1][1] <= 15_999 / 16_000


@pytest.mark.parametrize("level_dbfs", [0.0, -20.0, -60.0, -85.0])
def test_levels_are_those_of_the_windows(level_dbfs):
    noise = signals.white_noise(1.0, level_dbfs=level_dbfs - 20).astype(np.float32)
    levels = level_track(noise)
    assert len(levels) == 100
    for frame in (0, 1, 2, 50, 98, 99):
        window = noise[max(0, frame * 160 - 120) : frame * 160 + 280].astype(np.float64)
        assert levels[frame] == pytest.approx(10 * np.log10(window.var()), abs=1e-3)


def test_digital_silence_has_the_lowest_level_even_beside_sound_and_with_an_offset():
    samples = np.r_[np.full(16_000, 0.01), signals.white_noise(1.0)].astype(np.float32)
    assert (level_track(samples)[:97] == -120).all()


def test_the_noise_floor_is_that_of_the_room():
    sentence = signals.sentence()
    noisy = sentence.samples + signals.white_noise(len(sentence.samples) / 16_000, level_dbfs=-55)
    assert analyse(from_samples(noisy, 16_000)).noise_floor_dbfs == pytest.approx(-55, abs=0.5)
