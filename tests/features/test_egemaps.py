"""openSMILE's sets: the same numbers as openSMILE alone, zeros that mean "not found" gone, long recordings, threads."""

import math
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import opensmile
import pytest

from clinical_ser.audio.recording import SAMPLE_RATE_HZ, Recording, SourceInfo
from clinical_ser.errors import FeatureError
from clinical_ser.features import catalogue, egemaps
from tests import signals


def recording_of(samples: np.ndarray) -> Recording:
    samples = np.clip(samples, -32767 / 32768, 32767 / 32768).astype(np.float32)
    samples.flags.writeable = False
    source = SourceInfo("array", SAMPLE_RATE_HZ, 1, None, float(np.abs(samples).max(initial=0)), 0.0, 0.0, 0.0)
    return Recording(samples, "0" * 64, source)


def voice(seed: int = 0) -> Recording:
    return recording_of(signals.add_noise(signals.sentence(phrases=2, pauses_s=(0.4,), seed=seed, f0_hz=130 + 20 * seed).samples, 35, seed=seed))


def bits(values: dict[str, float]) -> bytes:
    return np.array(list(values.values())).tobytes()


def test_values_are_openSMILEs_own():
    recording = voice()
    smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.Functionals)
    truth = smile.process_signal(recording.samples.copy(), SAMPLE_RATE_HZ).iloc[0]
    values, missing = egemaps.functionals(recording)
    assert tuple(values) == egemaps.EGEMAPS_NAMES
    assert all(values[f"egemaps.{name}"] == value for name, value in truth.items() if f"egemaps.{name}" not in missing)
    assert all(truth[name.removeprefix("egemaps.")] == 0 for name in missing)


def test_a_known_voice_has_its_known_pitch():
    values, _ = egemaps.functionals(recording_of(signals.vowel(2.0, f0_hz=110.0 * np.array([0.99, 1.01, 0.99]))))
    assert values["egemaps.F0semitoneFrom27.5Hz_sma3nz_amean"] == pytest.approx(24, abs=0.3)  # 110 Hz is two octaves above 27.5 Hz


def test_a_front_vowel_has_the_higher_second_formant():
    a, i = (egemaps.functionals(recording_of(signals.vowel(1.0, formants=formants)))[0] for formants in (signals.VOWEL_A, signals.VOWEL_I))
    assert i["egemaps.F2frequency_sma3nz_amean"] > a["egemaps.F2frequency_sma3nz_amean"] + 500


@pytest.mark.parametrize("samples", [signals.silence(1.0), signals.white_noise(1.0, level_dbfs=-30)], ids=["silence", "noise"])
def test_without_voice_every_measure_of_voice_is_missing(samples):
    values, missing = egemaps.functionals(recording_of(samples))
    voiced_only = {name for name in egemaps.EGEMAPS_NAMES if catalogue.get(name).voiced_only}
    assert {name for name, reason in missing.items() if reason == egemaps.NO_VOICE} == voiced_only
    assert values["egemaps.VoicedSegmentsPerSec"] == 0
    assert {name for name, value in values.items() if math.isnan(value)} == set(missing)


def test_noise_keeps_what_noise_has():
    _, missing = egemaps.functionals(recording_of(signals.white_noise(1.0, level_dbfs=-30)))
    assert not {"egemaps.loudness_sma3_amean", "egemaps.alphaRatioUV_sma3nz_amean", "egemaps.MeanUnvoicedSegmentLength"} & set(missing)


def test_a_voice_without_gaps_has_no_measures_of_unvoiced_frames():
    _, missing = egemaps.functionals(recording_of(signals.vowel(1.0)))
    assert missing["egemaps.alphaRatioUV_sma3nz_amean"] == egemaps.NO_UNVOICED
    assert missing["egemaps.MeanUnvoicedSegmentLength"] == egemaps.NO_UNVOICED


def test_a_machine_steady_tone_has_a_true_zero_range_and_no_jitter():
    values, missing = egemaps.functionals(recording_of(signals.sine(200.0, 1.0, amplitude=0.3)))
    assert values["egemaps.F0semitoneFrom27.5Hz_sma3nz_pctlrange0-2"] == 0
    assert missing["egemaps.jitterLocal_sma3nz_amean"] == egemaps.NOT_IN_VOICE
    assert missing["egemaps.jitterLocal_sma3nz_stddevNorm"] == egemaps.NOT_IN_VOICE
    assert missing["egemaps.F0semitoneFrom27.5Hz_sma3nz_stddevRisingSlope"] == egemaps.NOT_IN_VOICE


@pytest.mark.parametrize("length", [0, 1, egemaps.MIN_SAMPLES - 1])
def test_too_short_is_missing_without_a_warning(length):
    recording = recording_of(signals.white_noise(1.0)[:length])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for compute, names in ((egemaps.functionals, egemaps.EGEMAPS_NAMES), (egemaps.compare, egemaps.COMPARE_NAMES)):
            values, missing = compute(recording)
            assert missing == dict.fromkeys(names, egemaps.TOO_SHORT)
            assert all(map(math.isnan, values.values()))
        assert egemaps.low_level_descriptors(recording).empty


def test_the_shortest_length_gives_values():
    recording = recording_of(signals.white_noise(1.0)[: egemaps.MIN_SAMPLES])
    assert egemaps.functionals(recording)[0]["egemaps.loudness_sma3_amean"] > 0
    assert len(egemaps.low_level_descriptors(recording)) == 2


def test_full_scale_does_not_wrap_to_minus_one():
    values, _ = egemaps.functionals(recording_of(signals.sine(200.0, 1.0, amplitude=1.0)))
    assert values["egemaps.loudnessPeaksPerSec"] <= 1  # 49 a second when +1.0 becomes -32768


def test_what_was_measured_before_leaves_no_trace():
    first, other = voice(0), voice(1)
    once = bits(egemaps.functionals(first)[0])
    assert bits(egemaps.functionals(other)[0]) != once
    assert bits(egemaps.functionals(first)[0]) == once


def test_threads_give_the_same_bits_as_one_thread():
    recordings = [voice(seed) for seed in range(4)]
    alone = [bits(egemaps.functionals(recording)[0]) for recording in recordings]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda recording: bits(egemaps.functionals(recording)[0]), recordings * 2))
    assert together == alone * 2


def test_as_many_objects_are_made_as_are_busy_at_once_and_they_are_kept(monkeypatch):
    made, both = [], threading.Barrier(2, timeout=30)
    extractor = egemaps._Extractor

    def counted(*of):
        made.append(extractor(*of))
        return made[-1]

    monkeypatch.setattr(egemaps, "_Extractor", counted)
    smile = egemaps.Extractor(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.Functionals)
    samples = voice().samples
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            list(pool.map(lambda _: smile(samples, SAMPLE_RATE_HZ, both.wait), range(2)))
    for _ in range(3):
        smile(samples, SAMPLE_RATE_HZ)
    assert len(made) == 2


def test_an_object_that_failed_is_not_used_again():
    smile = egemaps.Extractor(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.Functionals)
    before = smile(voice().samples, SAMPLE_RATE_HZ)

    def fail():
        raise InterruptedError

    with pytest.raises(InterruptedError):
        smile(voice().samples, SAMPLE_RATE_HZ, fail)
    assert not smile._idle
    assert (smile(voice().samples, SAMPLE_RATE_HZ) == before).all()


def test_the_long_native_run_is_announced_before_it_is_over():
    told = []
    begun = time.perf_counter()
    egemaps.functionals(voice(), running=lambda: told.append(time.perf_counter()))
    ended = time.perf_counter()
    assert len(told) == 1
    assert told[0] - begun < ended - told[0]
    egemaps.functionals(voice())
    assert len(told) == 1  # the next call announces nothing to the last one


def test_an_openSMILE_without_the_place_where_we_listen_is_used_all_the_same(monkeypatch):
    class Other:
        def __init__(self, *_):
            self.feature_names = [name.removeprefix("egemaps.") for name in egemaps.EGEMAPS_NAMES]

        def __call__(self, samples, rate_hz):
            return np.ones((1, len(self.feature_names), 1), np.float32)

    told = []
    monkeypatch.setattr(opensmile, "Smile", Other)
    smile = egemaps.Extractor(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.Functionals)
    assert smile(voice().samples, SAMPLE_RATE_HZ, lambda: told.append(1)).sum() == 88
    assert not told


def test_a_long_recording_keeps_its_rate_of_voiced_segments():
    """One call counts 1000 segments at most: over the 1100 of this recording it would report 4.5 a second instead of 5."""
    syllable = signals.fade(signals.vowel(0.1, f0_hz=150.0, level_dbfs=-18), 0.02)
    samples = np.tile(np.concatenate([syllable, signals.silence(0.1)]), 1100)
    values, _ = egemaps.functionals(recording_of(samples))
    brief, _ = egemaps.functionals(recording_of(samples[: 20 * SAMPLE_RATE_HZ]))
    assert values["egemaps.VoicedSegmentsPerSec"] == pytest.approx(5, rel=0.01)
    for name in ("egemaps.loudness_sma3_amean", "egemaps.F0semitoneFrom27.5Hz_sma3nz_amean", "egemaps.MeanUnvoicedSegmentLength"):
        assert values[name] == pytest.approx(brief[name], rel=0.02)


@pytest.fixture
def parts_of_two_seconds(monkeypatch):
    monkeypatch.setattr(egemaps, "PART_S", 2.0)


@pytest.mark.usefixtures("parts_of_two_seconds")
def test_parts_weigh_by_what_was_measured_in_them():
    vowel = signals.vowel(2.0, f0_hz=120.0)
    brief = np.concatenate([signals.silence(1.5), signals.fade(signals.vowel(0.5, f0_hz=240.0), 0.02)])
    pitch = "egemaps.F0semitoneFrom27.5Hz_sma3nz_amean"
    low, high = (egemaps.functionals(recording_of(part))[0] for part in (vowel, brief))
    both = egemaps.functionals(recording_of(np.concatenate([vowel, brief])))[0]
    shares = [part["egemaps.VoicedSegmentsPerSec"] * part["egemaps.MeanVoicedSegmentLengthSec"] for part in (low, high)]
    assert both[pitch] == pytest.approx(np.average([low[pitch], high[pitch]], weights=shares))
    assert abs(both[pitch] - low[pitch]) < abs(both[pitch] - high[pitch])
    loudness = "egemaps.loudness_sma3_amean"
    assert both[loudness] == pytest.approx((low[loudness] + high[loudness]) / 2)


@pytest.mark.usefixtures("parts_of_two_seconds")
def test_a_part_without_voice_says_nothing_about_voice():
    vowel = signals.vowel(2.0)
    alone = egemaps.functionals(recording_of(vowel))[0]
    padded, missing = egemaps.functionals(recording_of(np.concatenate([vowel, signals.silence(2.0)])))
    for name in ("egemaps.jitterLocal_sma3nz_amean", "egemaps.F1frequency_sma3nz_amean", "egemaps.MeanVoicedSegmentLengthSec"):
        assert padded[name] == pytest.approx(alone[name])
        assert name not in missing
    assert padded["egemaps.VoicedSegmentsPerSec"] == pytest.approx(alone["egemaps.VoicedSegmentsPerSec"] / 2)


@pytest.mark.usefixtures("parts_of_two_seconds")
def test_contours_of_parts_follow_one_another_on_one_clock():
    samples = signals.vowel(5.0)
    table = egemaps.low_level_descriptors(recording_of(samples))
    assert table.index.is_monotonic_increasing
    assert table.index[-1] == pytest.approx(5.0, abs=0.1)
    assert np.diff(table.index).max() < 0.1


def test_contours_are_openSMILEs_own_with_unvoiced_frames_missing():
    recording = voice()
    smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.LowLevelDescriptors)
    truth = smile.process_signal(recording.samples.copy(), SAMPLE_RATE_HZ)
    table = egemaps.low_level_descriptors(recording)
    assert list(table.columns) == list(truth.columns)
    assert table.index.to_numpy() == pytest.approx(truth.index.get_level_values("start").total_seconds().to_numpy())
    assert np.array_equal(table["Loudness_sma3"], truth["Loudness_sma3"])
    pitch = table["F0semitoneFrom27.5Hz_sma3nz"]
    assert np.array_equal(pitch.fillna(0), truth["F0semitoneFrom27.5Hz_sma3nz"])
    assert (table["jitterLocal_sma3nz"].isna() == pitch.isna()).all()
    assert 0 < pitch.isna().mean() < 1


def test_compare_is_openSMILEs_own():
    recording = voice()
    smile = opensmile.Smile(opensmile.FeatureSet.ComParE_2016, opensmile.FeatureLevel.Functionals)
    truth = smile(recording.samples.copy(), SAMPLE_RATE_HZ)[0, :, 0]
    values, missing = egemaps.compare(recording)
    assert tuple(values) == egemaps.COMPARE_NAMES
    assert missing == {}
    assert np.array_equal(np.array(list(values.values())), truth)


def test_compare_without_voice_has_no_measures_of_voice():
    values, missing = egemaps.compare(recording_of(signals.white_noise(1.0, level_dbfs=-30)))
    assert set(missing.values()) == {egemaps.NO_VOICE}
    assert set(missing) == {name for name in egemaps.COMPARE_NAMES if catalogue.get(name).voiced_only}
    assert values["compare.F0final_sma_ff0_nnz"] == 0
    assert values["compare.pcm_RMSenergy_sma_amean"] > 0


def test_another_openSMILE_is_refused_by_name(monkeypatch):
    egemaps.smile_of.cache_clear()
    monkeypatch.setitem(egemaps._EXPECTED, opensmile.FeatureSet.eGeMAPSv02, ("egemaps.other",))
    with pytest.raises(FeatureError, match="other features for eGeMAPSv02"):
        egemaps.functionals(voice())


def test_fingerprints_name_version_configuration_and_rules():
    assert egemaps.FINGERPRINT.startswith(f"opensmile/{opensmile.__version__} eGeMAPSv02 config=")
    assert egemaps.FINGERPRINT != egemaps.COMPARE_FINGERPRINT
