"""Every kind of bad recording gets the verdict it deserves, with a sentence for the person who made it."""

import json
from dataclasses import asdict, replace
from functools import lru_cache

import numpy as np
import pytest
import soxr
from pydantic import ValidationError

from clinical_ser.audio import GateLimits, QualityMeasures, QualityReport, analyse, assess, from_samples, judge, load, measure
from clinical_ser.audio.advice import ADVICE
from clinical_ser.audio.quality import NOISE_SENSITIVE, f0_bimodality
from tests import signals
from tests.audio.files import ffmpeg_bytes, sndfile_bytes, wav_bytes

DEPRESSION = GateLimits()
EMOTION = GateLimits.for_emotion()


@lru_cache
def monologue(rate_hz=16_000, f0_hz=130.0):
    """40 s, of which 26.4 s are speech."""
    return signals.sentence(phrases=24, f0_hz=f0_hz, rate_hz=rate_hz)


def in_a_room(sentence=None, snr_db=45.0, rate_hz=16_000):
    sentence = sentence or monologue(rate_hz)
    return signals.add_noise(sentence.samples, snr_db, speech_s=sentence.speech_s, rate_hz=rate_hz)


def judged(samples, limits=DEPRESSION, rate_hz=16_000):
    return assess(from_samples(samples, rate_hz), limits)


def failed(report):
    return {check.name for check in report.checks if check.verdict == "fail"}


def warned(report):
    return {check.name for check in report.checks if check.verdict == "warn"}


def test_a_good_recording_passes():
    report = judged(in_a_room())
    assert (report.usable, report.verdict, report.switched_off) == (True, "pass", {})
    assert [check.name for check in report.checks] == [
        "speech", "voicing", "snr", "clipping", "bandwidth", "level", "codec", "speakers", "samples", "offset", "complete",
    ]  # fmt: skip
    assert all(check.advice == check.advice_zh == "" for check in report.checks)


def test_measurements_are_those_of_the_signal():
    sentence = monologue()
    recording = from_samples(in_a_room(sentence, 35.0), 16_000)
    measures = measure(recording, analyse(recording))
    assert measures.duration_s == pytest.approx(len(sentence.samples) / 16_000)
    assert measures.speech_s == pytest.approx(sum(end - start for start, end in sentence.speech_s), rel=0.02)
    assert measures.voiced_fraction == pytest.approx(0.18 / (0.18 + 0.05), abs=0.06)
    # The 95th percentile of the level lies 2 to 4 dB above the mean level that the noise was set by.
    assert 36 < measures.snr_db < 40
    assert not measures.snr_is_bound
    assert measures.bandwidth_hz == 8_000
    level = signals.level_dbfs(np.concatenate([sentence.samples[round(a * 16_000) : round(b * 16_000)] for a, b in sentence.speech_s]))
    assert measures.level_dbfs == pytest.approx(level, abs=0.3)
    assert (measures.codec, measures.clipped_fraction, measures.nonfinite_fraction, measures.complete) == ("array", 0, 0, True)


def test_nine_seconds_of_speech_are_too_few_for_depression_and_enough_for_emotion():
    sentence = signals.sentence(phrases=8)
    depression, emotion = judged(in_a_room(sentence)), judged(in_a_room(sentence), EMOTION)
    assert failed(depression) == {"speech"}
    assert depression["speech"].advice == "Record at least 25 s of speech."
    assert depression["speech"].advice_zh == "请录制至少 25 秒的讲话。"
    assert emotion.usable


def test_fifteen_seconds_of_speech_are_a_warning():
    report = judged(in_a_room(signals.sentence(phrases=14)))
    assert report.usable
    assert report.verdict == "warn"
    assert warned(report) == {"speech"}


@pytest.mark.parametrize("limits", [DEPRESSION, EMOTION])
@pytest.mark.parametrize("samples", [1, 2, 160, 480, 800, 4_800])
def test_a_moment_is_not_usable(samples, limits):
    report = judged(signals.vowel(0.5)[:samples], limits)
    assert not report.usable
    assert "speech" in failed(report)


@pytest.mark.parametrize("samples", [np.zeros(48_000), np.full(48_000, 0.4), np.full(48_000, np.nan)], ids=["silent", "constant", "nan"])
def test_silence_is_not_usable_and_the_advice_is_to_check_the_microphone(samples):
    report = judged(samples)
    assert {"speech", "level"} <= failed(report)
    assert "microphone is on" in report["speech"].advice
    assert {check.name for check in report.checks}.isdisjoint({"snr", "bandwidth", "voicing"})


@pytest.mark.parametrize("noise", [signals.white_noise(40), signals.white_noise(40, level_dbfs=-50), signals.hum(40)], ids=["noise", "quiet", "hum"])
def test_noise_and_hum_are_not_usable(noise):
    assert failed(judged(noise)) >= {"speech"}


@pytest.mark.parametrize(("snr_db", "verdict"), [(40, "pass"), (20, "warn"), (8, "fail")])
def test_noise_is_judged_and_hides_what_it_falsifies(snr_db, verdict):
    report = judged(in_a_room(snr_db=snr_db))
    assert report["snr"].verdict == verdict
    assert set(report.switched_off) == (set() if verdict == "pass" else set(NOISE_SENSITIVE))
    assert all("signal-to-noise ratio" in reason for reason in report.switched_off.values())


def test_digital_zeros_around_speech_do_not_pass_for_a_quiet_room():
    noisy = in_a_room(snr_db=8.0)
    alone, padded = judged(noisy)["snr"], judged(np.r_[np.zeros(32_000), noisy, np.zeros(32_000)])["snr"]
    assert alone.verdict == padded.verdict == "fail"
    assert padded.value == pytest.approx(alone.value, abs=0.5)


def test_a_noise_gate_leaves_the_noise_unknown():
    sentence = monologue()
    gate = np.zeros(len(sentence.samples))
    for start, end in sentence.speech_s:
        gate[round(start * 16_000) : round(end * 16_000)] = 1
    check = judged(in_a_room(sentence, 8.0) * gate)["snr"]
    assert check.value < 15
    assert check.verdict == "warn"
    assert "silence before and after" in check.advice


def test_digital_zeros_around_clean_speech_do_not_make_it_fail():
    report = judged(monologue().samples)
    assert report.usable
    assert report.switched_off == {}


def test_a_steady_vowel_without_a_pause_is_not_called_noisy():
    recording = from_samples(signals.vowel(12.0), 16_000)
    measures = measure(recording, analyse(recording))
    assert measures.snr_is_bound
    assert measures.snr_db > 15
    report = judge(measures, DEPRESSION)
    assert report["snr"].verdict in {"pass", "warn"}
    assert report.switched_off == {}


def test_a_steady_vowel_in_noise_loses_its_noise_measures():
    report = judged(signals.add_noise(signals.vowel(12.0), 5))
    assert report["snr"].verdict == "warn"
    assert set(report.switched_off) == set(NOISE_SENSITIVE)


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "pass"), (3.8, "warn"), (12.0, "fail")])
def test_clipping_is_judged(factor, verdict):
    report = judged(np.clip(factor * in_a_room(), -1, 1))
    assert report["clipping"].verdict == verdict
    assert ("distorted" in report["clipping"].advice) == (verdict != "pass")


@pytest.mark.parametrize(("gain_db", "verdict"), [(0, "pass"), (-24, "warn"), (-35, "fail")])
def test_level_is_judged(gain_db, verdict):
    assert judged(in_a_room(snr_db=50) * 10 ** (gain_db / 20))["level"].verdict == verdict


def test_an_8_khz_file_warns_of_its_bandwidth_also_when_it_was_blown_up_to_48_khz():
    narrow = soxr.resample(in_a_room(), 16_000, 8_000)
    for report in (judged(narrow, rate_hz=8_000), judged(soxr.resample(narrow, 8_000, 48_000), rate_hz=48_000)):
        assert report.usable
        assert warned(report) == {"bandwidth"}
        assert 3_700 < report["bandwidth"].value <= 4_000


def test_muffled_speech_below_3400_hz_fails():
    assert failed(judged(soxr.resample(in_a_room(), 16_000, 6_000), rate_hz=6_000)) == {"bandwidth"}


def test_a_96_khz_stereo_24_bit_file_passes():
    samples = in_a_room(rate_hz=96_000, snr_db=40)
    data = sndfile_bytes(np.stack([samples, samples], axis=1), 96_000, "WAV", "PCM_24")
    assert assess(load(data), DEPRESSION).verdict == "pass"


@pytest.mark.parametrize(("bit_rate_bps", "hidden"), [(32_000, True), (64_000, True), (128_000, False)])
def test_low_rate_mp3_hides_perturbation_and_noise_measures(bit_rate_bps, hidden):
    report = assess(load(ffmpeg_bytes(in_a_room(), 16_000, "mp3", "libmp3lame", bit_rate_bps=bit_rate_bps)), DEPRESSION)
    assert report.usable
    assert (report["codec"].verdict == "warn") == hidden
    assert set(report.switched_off) == (set(NOISE_SENSITIVE) if hidden else set())
    assert not hidden or set(report.switched_off.values()) == {"MP3 at 64 kbit/s or less"}


def test_a_low_rate_of_another_codec_is_not_judged_by_mp3s_limit():
    report = assess(load(ffmpeg_bytes(in_a_room(rate_hz=48_000), 48_000, "webm", "libopus", bit_rate_bps=32_000)), DEPRESSION)
    assert report["codec"].verdict == "pass"
    assert report["codec"].warn_limit is None


def test_a_man_and_a_woman_are_a_warning_and_no_more():
    man, woman = in_a_room(monologue(f0_hz=105.0)), in_a_room(monologue(f0_hz=230.0))
    report = judged(np.r_[man, woman])
    assert report.usable
    assert report["speakers"].verdict == "warn"
    assert "two voices" in report["speakers"].advice
    for alone in (man, woman):
        assert judged(alone)["speakers"].verdict == "pass"


def test_bimodality_measures_the_valley():
    rng = np.random.default_rng(0)
    low, high = 110 * 2 ** (rng.normal(0, 1.5, 1_000) / 12), 110 * 2 ** (rng.normal(12, 1.5, 1_000) / 12)
    assert f0_bimodality(low) < 0.1
    assert f0_bimodality(np.r_[low, high]) > 0.9
    assert f0_bimodality(np.r_[low, high[:100]]) < 0.1  # a laugh
    assert f0_bimodality(110 * 2 ** (rng.uniform(0, 12, 2_000) / 12)) < 0.3  # a wide range is not two voices
    assert f0_bimodality(low[:100]) is None


def test_invalid_samples_warn_and_many_fail():
    samples = in_a_room()
    samples[1_000] = np.nan
    assert judged(samples)["samples"].verdict == "warn"
    samples[::50] = np.inf
    assert "samples" in failed(judged(samples))


def test_an_offset_warns():
    report = judged(in_a_room() + 0.2)
    assert report.usable
    assert warned(report) == {"offset"}
    assert warned(judged(in_a_room() - 0.2)) == {"offset"}


def test_a_truncated_file_is_judged_by_what_is_left_and_warns():
    data = wav_bytes(in_a_room(signals.sentence(phrases=27)))
    report = assess(load(data[: len(data) * 9 // 10]), DEPRESSION)
    assert report.usable
    assert warned(report) == {"complete"}


def test_a_whisper_is_not_usable():
    rng = np.random.default_rng(0)
    parts = [signals.fade(signals.resonate(rng.standard_normal(3_000), signals.VOWEL_A), 0.02) for _ in range(100)]
    whisper = np.concatenate([part for spoken in parts for part in (signals.scale_to_level(spoken, -30), np.zeros(1_000))])
    assert not judged(whisper + signals.white_noise(len(whisper) / 16_000, level_dbfs=-70)).usable


def test_voice_that_is_mostly_breath_is_judged():
    measures = replace(MEASURES, voiced_fraction=0.2)
    assert warned(judge(measures, DEPRESSION)) == {"voicing"}
    assert failed(judge(replace(measures, voiced_fraction=0.1), DEPRESSION)) == {"voicing"}


MEASURES = QualityMeasures(
    duration_s=60.0,
    speech_s=40.0,
    voiced_fraction=0.6,
    snr_db=45.0,
    snr_is_bound=False,
    clipped_fraction=0.0,
    bandwidth_hz=8_000.0,
    level_dbfs=-25.0,
    codec="flac",
    bit_rate_bps=200_000,
    nonfinite_fraction=0.0,
    dc_offset=0.0,
    f0_bimodality=0.1,
    complete=True,
)
LIMITS = {
    "speech": ("speech_s", 25.0, 10.0, -0.01),
    "voicing": ("voiced_fraction", 0.30, 0.15, -0.001),
    "snr": ("snr_db", 30.0, 15.0, -0.01),
    "clipping": ("clipped_fraction", 0.001, 0.01, 1e-6),
    "bandwidth": ("bandwidth_hz", 7_000.0, 3_400.0, -1.0),
    "level": ("level_dbfs", -40.0, -50.0, -0.01),
    "samples": ("nonfinite_fraction", 0.0, 0.01, 1e-6),
}


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_itself_is_still_good_and_the_step_beyond_is_not(name):
    field, warn, fail, beyond = LIMITS[name]
    verdicts = [judge(replace(MEASURES, **{field: value}), DEPRESSION)[name].verdict for value in (warn, warn + beyond, fail, fail + beyond)]
    assert verdicts == ["pass", "warn", "warn", "fail"]
    check = judge(replace(MEASURES, **{field: fail + beyond}), DEPRESSION)[name]
    assert (check.warn_limit, check.fail_limit) == (warn, fail)
    assert check.advice.endswith(".")
    assert check.advice_zh.endswith("。")
    assert check.source


def test_the_worst_check_decides():
    report = judge(replace(MEASURES, snr_db=20.0, level_dbfs=-60.0), DEPRESSION)
    assert (report.usable, report.verdict) == (False, "fail")


def test_limits_travel_as_json():
    limits = GateLimits.for_emotion()
    assert GateLimits.model_validate_json(limits.model_dump_json()) == limits
    assert (limits.speech_fail_s, DEPRESSION.speech_fail_s, DEPRESSION.speech_warn_s) == (1.0, 10.0, 25.0)
    for wrong in (
        {"speech_warn_s": 5.0},
        {"clipped_fail": 0.0},
        {"voiced_warn": 1.5},
        {"snr_fail_db": float("nan")},
        {"snr": 30.0},
        {"snr_warn_db": "30"},
    ):
        with pytest.raises(ValidationError):
            GateLimits(**wrong)
    with pytest.raises(ValidationError):
        limits.speech_fail_s = 3.0


def test_report_and_measures_travel_as_json():
    report = judged(in_a_room(snr_db=20))
    assert QualityReport.model_validate_json(report.model_dump_json()) == report
    recording = from_samples(np.zeros(1_600), 16_000)
    measures = measure(recording, analyse(recording))
    assert QualityMeasures(**json.loads(json.dumps(asdict(measures), allow_nan=False))) == measures


def test_a_check_that_was_not_made_is_a_key_error():
    with pytest.raises(KeyError):
        judged(np.zeros(1_600))["snr"]


def test_every_advice_is_one_sentence_in_both_languages():
    for english, chinese in ADVICE.values():
        assert english.endswith(".")
        assert english.count(". ") == 0
        assert chinese.endswith("。")
        assert english.format(limit=25.0).isascii()


def test_the_same_recording_is_judged_alike_every_time():
    assert judged(in_a_room()).model_dump_json() == judged(in_a_room()).model_dump_json()
