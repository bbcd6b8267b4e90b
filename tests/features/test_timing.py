"""Timing features against sentences whose pauses and syllables are known."""

import dataclasses
import math

import numpy as np
import pytest

from clinical_ser.audio import SpeechAnalysis, analyse, from_samples
from clinical_ser.features import timing
from tests import signals

GRID_S = 0.02
"""Two frames: a detected limit of speech may lie one frame off on either side."""


def analysis_of(samples: np.ndarray) -> SpeechAnalysis:
    return analyse(from_samples(samples, signals.RATE_HZ))


def spoken(**options) -> tuple[signals.Sentence, dict[str, float], dict[str, str]]:
    sentence = signals.sentence(**options)
    noisy = signals.add_noise(sentence.samples, 45, speech_s=sentence.speech_s)
    return sentence, *timing.compute(analysis_of(noisy))


@pytest.fixture(scope="module")
def long_sentence() -> tuple[signals.Sentence, dict[str, float], dict[str, str]]:
    return spoken(phrases=8, syllables=6, pauses_s=(0.4, 0.9, 0.3, 1.2, 0.5, 0.7, 0.6))


def test_known_pauses_are_measured_within_two_frames(long_sentence):
    sentence, values, missing = long_sentence
    truth = np.array([end - start for start, end in sentence.pauses_s])
    assert missing == {}
    assert values["timing.pause_count"] == len(truth)
    assert values["timing.pause_mean_s"] == pytest.approx(truth.mean(), abs=GRID_S)
    assert values["timing.pause_sd_s"] == pytest.approx(truth.std(ddof=1), abs=GRID_S)
    assert values["timing.pause_median_s"] == pytest.approx(np.median(truth), abs=GRID_S)
    assert values["timing.pause_max_s"] == pytest.approx(truth.max(), abs=GRID_S)
    assert values["timing.pause_total_s"] == pytest.approx(truth.sum(), abs=GRID_S * len(truth))


def test_shares_and_runs_add_up_to_the_time_from_first_to_last_word(long_sentence):
    sentence, values, _ = long_sentence
    span = sentence.speech_s[-1][1] - sentence.speech_s[0][0]
    pauses = sum(end - start for start, end in sentence.pauses_s)
    assert values["timing.phonation_time_s"] == pytest.approx(span - pauses, abs=GRID_S * 9)
    assert values["timing.pause_share_percent"] == pytest.approx(100 * pauses / span, abs=1)
    assert values["timing.phonation_ratio"] == pytest.approx(1 - values["timing.pause_share_percent"] / 100)
    assert values["timing.pause_rate_per_min"] == pytest.approx(60 * 7 / span, rel=0.01)
    assert values["timing.speech_run_mean_s"] == pytest.approx((span - pauses) / 8, abs=GRID_S)


@pytest.mark.parametrize("syllable_s", [0.12, 0.18, 0.3])
def test_syllables_are_counted_exactly_at_any_rate(syllable_s):
    sentence, values, _ = spoken(phrases=3, syllables=7, syllable_s=syllable_s)
    span = sentence.speech_s[-1][1] - sentence.speech_s[0][0]
    pauses = sum(end - start for start, end in sentence.pauses_s)
    assert values["timing.speech_rate_syll_per_s"] == pytest.approx(21 / span, rel=0.02)
    assert values["timing.articulation_rate_syll_per_s"] == pytest.approx(21 / (span - pauses), rel=0.03)
    assert values["timing.syllable_mean_s"] == pytest.approx((span - pauses) / 21, rel=0.03)


def test_each_syllable_is_found_where_it_is():
    sentence = signals.sentence(phrases=1, syllables=5, syllable_s=0.2, gap_s=0.05, lead_s=0.5)
    nuclei = timing.syllable_nuclei_s(analysis_of(sentence.samples))
    starts = 0.5 + 0.25 * np.arange(5)
    assert len(nuclei) == 5
    assert np.all((nuclei > starts) & (nuclei < starts + 0.2))


@pytest.mark.parametrize(("dip_db", "nuclei"), [(1.0, 1), (4.0, 8)])
def test_a_dip_of_two_decibels_parts_two_syllables(dip_db, nuclei):
    time_s = np.arange(round(2 * signals.RATE_HZ)) / signals.RATE_HZ
    gain_db = -dip_db / 2 * (1 + np.cos(2 * np.pi * 4 * time_s))
    glides = signals.fade(signals.vowel(2.0, shimmer=0.0) * 10 ** (gain_db / 20), 0.02)
    assert len(timing.syllable_nuclei_s(analysis_of(glides))) == nuclei


@pytest.mark.parametrize("room_dbfs", [-120, -75])
def test_a_short_syllable_counts_beside_digital_silence_as_in_a_quiet_room(room_dbfs):
    long, short = signals.vowel(0.3), signals.vowel(0.07)
    parts = [signals.silence(0.3), *(part for tone in (long, short, long, short) for part in (signals.fade(tone, 0.01), signals.silence(0.15)))]
    samples = np.concatenate(parts)
    samples = samples + signals.white_noise(len(samples) / signals.RATE_HZ, level_dbfs=room_dbfs)
    assert len(timing.syllable_nuclei_s(analysis_of(samples))) == 4


def test_voiced_runs_are_the_syllables(long_sentence):
    _, values, _ = long_sentence
    assert values["timing.voiced_run_mean_s"] == pytest.approx(0.18, abs=0.03)
    assert values["timing.voiced_run_rate_per_s"] == pytest.approx(6 / (6 * 0.18 + 5 * 0.05), rel=0.05)
    assert values["timing.voiced_run_sd_s"] < GRID_S
    assert values["timing.voiced_share_percent"] == pytest.approx(100 * 6 * 0.18 / (6 * 0.18 + 5 * 0.05), abs=10)


def test_silence_around_the_speech_changes_nothing():
    short = timing.compute(analysis_of(signals.sentence(lead_s=0.3).samples))[0]
    long = timing.compute(analysis_of(signals.sentence(lead_s=3.0).samples))[0]
    assert long == pytest.approx(short, abs=GRID_S, rel=0.02, nan_ok=True)


@pytest.mark.parametrize("gain_db", [-24, 12])
def test_gain_changes_nothing(gain_db):
    samples = signals.add_noise(signals.sentence().samples, 40)
    base = timing.compute(analysis_of(samples))[0]
    scaled = timing.compute(analysis_of(samples * 10 ** (gain_db / 20)))[0]
    assert scaled == pytest.approx(base, abs=GRID_S, rel=0.01, nan_ok=True)


def test_gaps_under_a_quarter_of_a_second_are_no_pauses():
    phrasing = timing.phrase(((0.0, 1.0), (1.24, 2.0), (2.25, 3.0)))
    assert phrasing.pauses_s == pytest.approx([0.25])
    assert phrasing.span_s == 3.0
    assert phrasing.phonation_s == pytest.approx(2.75)


def test_a_quarter_of_a_second_counts_whatever_floating_point_makes_of_it():
    for start in np.arange(0, 100, 0.37):
        limits = ((0.0, round(start + 0.1, 2)), (round(start + 0.35, 2), round(start + 1, 2)))
        assert len(timing.phrase(limits).pauses_s) == 1


def test_without_pauses_their_measures_are_missing_and_their_count_is_zero():
    _, values, missing = spoken(phrases=1, syllables=8)
    assert values["timing.pause_count"] == 0
    assert values["timing.pause_total_s"] == 0
    assert values["timing.phonation_ratio"] == 1
    assert {name for name, reason in missing.items() if reason == timing.NO_PAUSE} == {
        "timing.pause_mean_s",
        "timing.pause_median_s",
        "timing.pause_max_s",
    }
    assert missing["timing.pause_sd_s"] == timing.FEW_PAUSES


def test_the_spread_of_few_pauses_is_missing():
    _, values, missing = spoken(phrases=timing.MIN_PAUSES_FOR_SD, syllables=3)
    assert values["timing.pause_count"] == timing.MIN_PAUSES_FOR_SD - 1
    assert missing["timing.pause_sd_s"] == timing.FEW_PAUSES
    assert math.isnan(values["timing.pause_sd_s"])


@pytest.mark.parametrize("samples", [signals.silence(2.0), signals.white_noise(2.0), np.zeros(160)])
def test_without_speech_everything_is_missing(samples):
    values, missing = timing.compute(analysis_of(samples))
    assert missing == dict.fromkeys(timing.NAMES, timing.NO_SPEECH)
    assert all(map(math.isnan, values.values()))


def test_speech_without_voice_has_no_syllables():
    analysis = analysis_of(signals.sentence().samples)
    mute = dataclasses.replace(analysis, pitch=dataclasses.replace(analysis.pitch, f0_hz=np.zeros_like(analysis.pitch.f0_hz)))
    values, missing = timing.compute(mute)
    assert missing["timing.speech_rate_syll_per_s"] == missing["timing.syllable_mean_s"] == timing.NO_SYLLABLE
    assert missing["timing.voiced_run_mean_s"] == timing.NO_VOICE
    assert values["timing.voiced_share_percent"] == 0


def test_noise_bursts_are_no_syllables():
    sentence = signals.sentence(phrases=1, syllables=4)
    bursts = np.concatenate([signals.fade(signals.white_noise(0.1, level_dbfs=-25, seed=k), 0.01) for k in range(3)])
    analysis = analysis_of(np.concatenate([sentence.samples, bursts, signals.silence(0.5)]))
    assert len(timing.syllable_nuclei_s(analysis)) == 4


def test_values_come_in_catalogue_order_and_missing_is_nan():
    values, missing = timing.compute(analysis_of(signals.sentence(phrases=2).samples))
    assert tuple(values) == timing.NAMES
    assert {name for name, value in values.items() if math.isnan(value)} == set(missing)
