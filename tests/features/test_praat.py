"""The Praat features against known truth and against Praat's own commands."""

import re

import numpy as np
import parselmouth
import pytest
from parselmouth.praat import call

from clinical_ser import audio
from clinical_ser.audio import SpeechAnalysis
from clinical_ser.features import praat
from tests import signals

RATE_HZ = signals.RATE_HZ


def analysed(samples: np.ndarray) -> SpeechAnalysis:
    return audio.analyse(audio.from_samples(samples, RATE_HZ))


def measured(samples: np.ndarray) -> dict[str, float]:
    return praat.compute(analysed(samples))[0]


@pytest.fixture(scope="module")
def voice() -> SpeechAnalysis:
    """A gliding voice with perturbation and some noise."""
    glide = np.array([150.0, 190.0, 130.0, 110.0])
    return analysed(signals.add_noise(signals.vowel(2.5, f0_hz=glide, jitter=0.01, shimmer=0.06, seed=1), 30.0))


@pytest.fixture(scope="module")
def sentence() -> SpeechAnalysis:
    """Phrases with pauses of digital silence."""
    return analysed(signals.sentence(phrases=3, pauses_s=(0.5, 0.6), f0_hz=120.0).samples)


@pytest.fixture(scope="module")
def noisy_sentence() -> SpeechAnalysis:
    """Phrases with pauses of room noise."""
    made = signals.sentence(phrases=3, pauses_s=(0.5, 0.6), f0_hz=120.0)
    return analysed(signals.add_noise(made.samples, 15.0, speech_s=made.speech_s))


def test_every_name_is_there_in_order_with_a_number_or_a_reason(voice: SpeechAnalysis) -> None:
    values, missing = praat.compute(voice)
    assert tuple(values) == praat.NAMES
    assert len(set(praat.NAMES)) == len(praat.NAMES)
    assert all(name.startswith("praat.") for name in praat.NAMES)
    assert missing == {}
    assert np.isfinite(list(values.values())).all()


def test_f0_statistics_are_praats(voice: SpeechAnalysis) -> None:
    values, _ = praat.compute(voice)
    pitch = voice.pitch.praat
    assert values["praat.f0_mean_hz"] == pytest.approx(call(pitch, "Get mean", 0, 0, "Hertz"))
    assert values["praat.f0_sd_hz"] == pytest.approx(call(pitch, "Get standard deviation", 0, 0, "Hertz"))
    for percent in (5, 20, 25, 75, 80, 95):
        assert values[f"praat.f0_p{percent:02d}_hz"] == pytest.approx(call(pitch, "Get quantile", 0, 0, percent / 100, "Hertz"))
    assert values["praat.f0_sd_semitones"] == pytest.approx(call(pitch, "Get standard deviation", 0, 0, "semitones"))


def test_a_known_pitch_is_found_in_hertz_and_semitones() -> None:
    values = measured(signals.vowel(1.5, f0_hz=220.0))
    assert values["praat.f0_median_hz"] == pytest.approx(220.0, rel=0.005)
    assert values["praat.f0_median_semitones"] == pytest.approx(36.0, abs=0.1)  # three octaves above 27.5 Hz
    assert values["praat.f0_range_p20_p80_semitones"] < 0.3


def test_semitone_spread_does_not_depend_on_the_register() -> None:
    contour = np.array([1.0, 1.3, 0.9])
    low, high = (measured(signals.vowel(2.0, f0_hz=base * contour))["praat.f0_sd_semitones"] for base in (110.0, 200.0))
    assert low == pytest.approx(high, rel=0.06)


@pytest.mark.parametrize("jitter", [0.003, 0.006, 0.01])
def test_known_jitter_is_found(jitter: float) -> None:
    train = signals.pulse_train(4.0, f0_hz=130.0, jitter=jitter, seed=4)
    values = measured(signals.scale_to_level(signals.resonate(signals.tilt(train.samples), signals.VOWEL_A), -20.0))
    periods = np.diff(train.times_s)
    rap = np.abs(periods[1:-1] - (periods[:-2] + periods[1:-1] + periods[2:]) / 3).mean() / periods.mean()
    ppq5 = np.abs(periods[2:-2] - np.convolve(periods, np.ones(5) / 5, "valid")).mean() / periods.mean()
    assert values["praat.jitter_local_percent"] == pytest.approx(100 * train.jitter_local, rel=0.08)
    assert values["praat.jitter_local_absolute_us"] == pytest.approx(1e6 * np.abs(np.diff(periods)).mean(), rel=0.08)
    assert values["praat.jitter_rap_percent"] == pytest.approx(100 * rap, rel=0.1)
    assert values["praat.jitter_ppq5_percent"] == pytest.approx(100 * ppq5, rel=0.1)
    assert values["praat.jitter_ddp_percent"] == pytest.approx(3 * values["praat.jitter_rap_percent"])


@pytest.mark.parametrize("shimmer", [0.03, 0.08])
def test_known_shimmer_is_found(shimmer: float) -> None:
    train = signals.pulse_train(4.0, f0_hz=130.0, shimmer=shimmer, seed=5)
    values = measured(0.5 * train.samples)
    heights = train.amplitudes
    apq3 = np.abs(heights[1:-1] - (heights[:-2] + heights[1:-1] + heights[2:]) / 3).mean() / heights.mean()
    decibels = np.abs(20 * np.log10(heights[1:] / heights[:-1])).mean()
    assert values["praat.shimmer_local_percent"] == pytest.approx(100 * train.shimmer_local, rel=0.08)
    assert values["praat.shimmer_local_db"] == pytest.approx(decibels, rel=0.08)
    assert values["praat.shimmer_apq3_percent"] == pytest.approx(100 * apq3, rel=0.08)
    assert values["praat.shimmer_dda_percent"] == pytest.approx(3 * values["praat.shimmer_apq3_percent"])
    assert values["praat.shimmer_apq11_percent"] > values["praat.shimmer_apq5_percent"] > values["praat.shimmer_apq3_percent"]


def test_a_steady_voice_has_neither() -> None:
    values = measured(0.5 * signals.pulse_train(2.0, f0_hz=130.0).samples)
    assert values["praat.jitter_local_percent"] < 0.05
    assert values["praat.shimmer_local_percent"] < 0.5


def test_harmonicity_and_cepstral_peak_are_praats(sentence: SpeechAnalysis) -> None:
    values, _ = praat.compute(sentence)
    harmonicity = sentence.sound.to_harmonicity_cc(0.01, 75.0, 0.1, 1.0)
    cepstrogram = call(sentence.sound, "To PowerCepstrogram", 60.0, 0.01, 5000.0, 50.0)
    cpps = call(cepstrogram, "Get CPPS", "no", 0.01, 0.001, 60.0, 330.0, 0.05, "Parabolic", 0.001, 0.0, "Straight", "Robust")
    assert values["praat.hnr_mean_db"] == pytest.approx(call(harmonicity, "Get mean", 0, 0), abs=0.01)
    assert values["praat.hnr_sd_db"] == pytest.approx(call(harmonicity, "Get standard deviation", 0, 0), abs=0.01)
    assert values["praat.cpps_db"] == pytest.approx(cpps, abs=0.05)


def test_values_over_voice_do_not_move_with_the_share_of_pauses() -> None:
    samples = signals.vowel(1.5, f0_hz=np.array([140.0, 115.0]), jitter=0.01)
    room = signals.white_noise(4.5, level_dbfs=-50.0)
    alone, with_pause = measured(samples + room[: len(samples)]), measured(np.pad(samples, (0, 3 * RATE_HZ)) + room)
    assert with_pause["praat.cpps_voiced_db"] == pytest.approx(alone["praat.cpps_voiced_db"], abs=0.3)
    assert with_pause["praat.hnr_voiced_mean_db"] == pytest.approx(alone["praat.hnr_voiced_mean_db"], abs=0.2)
    assert abs(with_pause["praat.cpps_db"] - alone["praat.cpps_db"]) > 1


@pytest.mark.parametrize(("formants", "f0_hz"), [(signals.VOWEL_A, 110.0), (signals.VOWEL_I, 110.0)])
def test_known_formants_are_found(formants: tuple[tuple[float, float], ...], f0_hz: float) -> None:
    values = measured(signals.vowel(1.5, f0_hz=f0_hz * np.array([1.0, 1.15, 0.95]), formants=formants))
    for number, (frequency, _) in enumerate(formants[:4], start=1):
        assert values[f"praat.f{number}_median_hz"] == pytest.approx(frequency, rel=0.06)
        assert values[f"praat.f{number}_iqr_hz"] < 150
    assert values["praat.f1_bandwidth_median_hz"] == pytest.approx(formants[0][1], abs=60)


@pytest.mark.parametrize("fixture", ["voice", "sentence", "noisy_sentence"])
def test_formants_are_praats_own_at_voiced_frames(fixture: str, request: pytest.FixtureRequest) -> None:
    analysis: SpeechAnalysis = request.getfixturevalue(fixture)
    ceiling_hz = praat.formant_ceiling_hz(analysis.pitch.f0_hz[analysis.pitch.voiced])
    track = analysis.sound.to_formant_burg(0.01, 5, ceiling_hz, 0.025, 50.0)
    times_s = track.xs()[praat.voiced_at(track.xs(), analysis.pitch)]
    values, _ = praat.compute(analysis)
    for number in (1, 2, 3, 4):
        theirs = np.array([track.get_value_at_time(number, time) for time in times_s])
        lower, upper = np.nanpercentile(theirs, (25, 75), method="hazen")
        assert values[f"praat.f{number}_median_hz"] == pytest.approx(np.nanmedian(theirs), abs=1e-5)
        assert values[f"praat.f{number}_iqr_hz"] == pytest.approx(upper - lower, abs=1e-5)


def test_the_formant_ceiling_follows_the_voice_without_a_step() -> None:
    ceilings = [praat.formant_ceiling_hz(np.full(20, f0_hz)) for f0_hz in (80.0, 120.0, 140.0, 160.0, 180.0, 210.0, 350.0)]
    assert ceilings[:2] == [5_000, 5_000]
    assert ceilings[-2:] == [5_500, 5_500]
    assert ceilings == sorted(ceilings)
    assert max(np.diff(ceilings)) <= 200


def test_intensity_is_praats_over_speech_and_follows_gain(voice: SpeechAnalysis) -> None:
    values, _ = praat.compute(voice)
    assert values["praat.intensity_mean_db"] == pytest.approx(call(voice.sound.to_intensity(100.0, 0.01), "Get mean", 0, 0, "energy"), abs=0.3)
    louder = measured(2 * voice.sound.values[0])
    assert louder["praat.intensity_mean_db"] - values["praat.intensity_mean_db"] == pytest.approx(20 * np.log10(2), abs=0.01)
    assert louder["praat.intensity_sd_db"] == pytest.approx(values["praat.intensity_sd_db"], abs=0.01)
    assert louder["praat.intensity_range_p05_p95_db"] == pytest.approx(values["praat.intensity_range_p05_p95_db"], abs=0.01)


def test_pauses_do_not_count_as_soft_speech() -> None:
    steady = signals.vowel(1.0, f0_hz=130.0)
    with_pause = np.concatenate([steady, np.zeros(RATE_HZ), steady])
    room = signals.white_noise(3.0, level_dbfs=-70.0)
    for samples in (with_pause, with_pause + room):
        assert measured(samples)["praat.intensity_range_p05_p95_db"] < 10


@pytest.mark.parametrize("fixture", ["voice", "sentence"])
def test_voice_breaks_are_those_of_praats_voice_report(fixture: str, request: pytest.FixtureRequest) -> None:
    analysis: SpeechAnalysis = request.getfixturevalue(fixture)
    pulses = call([analysis.sound, analysis.pitch.praat], "To PointProcess (cc)")
    floor_hz, ceiling_hz = analysis.pitch.floor_hz, analysis.pitch.ceiling_hz
    report = call([analysis.sound, analysis.pitch.praat, pulses], "Voice report", 0, 0, floor_hz, ceiling_hz, 1.3, 1.6, 0.03, 0.45)
    values, _ = praat.compute(analysis)
    assert values["praat.voice_breaks_count"] == float(re.search(r"Number of voice breaks: (\d+)", report).group(1))
    assert values["praat.voice_breaks_degree_percent"] == pytest.approx(
        float(re.search(r"Degree of voice breaks: ([\d.]+)", report).group(1)), abs=1e-3
    )


def test_gaps_in_a_row_are_one_break_and_the_last_gap_is_none_as_in_praat(voice: SpeechAnalysis) -> None:
    pulses = call("Create empty PointProcess", "pulses", 0, voice.sound.duration)
    for time_s in (0.1, 0.107, 0.114, 0.3, 0.5, 0.507, 0.8, 0.807, 1.5):
        call(pulses, "Add point", time_s)
    count, degree = praat._voice_breaks(pulses, voice).values()
    assert count == 2  # 0.114-0.3-0.5 and 0.507-0.8, not 0.807-1.5
    assert degree == pytest.approx(100 * (0.386 + 0.293) / voice.sound.duration)
    report = call([voice.sound, voice.pitch.praat, pulses], "Voice report", 0, 0, voice.pitch.floor_hz, 600, 1.3, 1.6, 0.03, 0.45)
    assert f"Number of voice breaks: {count:.0f}" in report
    assert degree == pytest.approx(float(re.search(r"Degree of voice breaks: ([\d.]+)", report).group(1)), abs=1e-3)


def test_known_breaks_of_the_voice_are_counted() -> None:
    steady = signals.vowel(0.6, f0_hz=130.0)
    values = measured(np.concatenate([steady, np.zeros(RATE_HZ // 5), steady, np.zeros(RATE_HZ // 5), steady]))
    assert values["praat.voice_breaks_count"] == 2
    assert values["praat.voice_breaks_degree_percent"] == pytest.approx(100 * 0.4 / 2.2, abs=2)
    assert values["praat.unvoiced_fraction_percent"] == pytest.approx(100 * 0.4 / 2.2, abs=5)


@pytest.mark.parametrize(
    ("name", "samples"),
    [
        ("one sample", np.full(1, 0.1)),
        ("10 ms", signals.sine(200.0, 0.01)),
        ("30 ms", signals.sine(200.0, 0.03)),
        ("exactly one cepstral window", signals.white_noise(0.1)),
        ("exactly one intensity window", signals.white_noise(0.064)),
        ("a short vowel", signals.vowel(0.07, f0_hz=200.0)),
        ("a vowel of 0.15 s", signals.vowel(0.15, f0_hz=200.0)),
        ("digital silence", np.zeros(RATE_HZ)),
        ("a click in silence", np.eye(1, RATE_HZ, 8_000)[0]),
        ("white noise", signals.white_noise(1.0)),
        ("hum", signals.hum(1.0)),
        ("almost silence", np.where(np.arange(RATE_HZ) % 2, 1e-7, -1e-7)),
        ("speech then silence", np.pad(signals.vowel(0.5, f0_hz=130.0), (0, RATE_HZ))),
    ],
)
def test_what_cannot_be_measured_has_a_reason_and_raises_nothing(name: str, samples: np.ndarray) -> None:
    values, missing = praat.compute(analysed(samples))
    assert set(missing) == {key for key, value in values.items() if not np.isfinite(value)}
    assert all(reason and reason[0].islower() and "nan" not in reason for reason in missing.values())


def test_silence_has_no_voice_at_all() -> None:
    values, missing = praat.compute(analysed(np.zeros(RATE_HZ)))
    assert values["praat.unvoiced_fraction_percent"] == 100.0
    assert set(missing) == set(praat.NAMES) - {"praat.unvoiced_fraction_percent"}


def test_too_short_for_one_window_says_which() -> None:
    _, missing = praat.compute(analysed(signals.vowel(0.09, f0_hz=200.0)))
    assert missing["praat.cpps_db"] == "the recording is not longer than 100 ms"
    assert "praat.hnr_mean_db" not in missing


def test_the_same_recording_gives_the_same_bits() -> None:
    samples = signals.sentence(phrases=2, pauses_s=(0.4,)).samples
    assert praat.compute(analysed(samples)) == praat.compute(analysed(samples))


def test_the_fingerprint_names_versions_and_settings() -> None:
    assert parselmouth.VERSION in praat.FINGERPRINT
    assert parselmouth.PRAAT_VERSION in praat.FINGERPRINT
    assert "cpps=60.0,0.01,5000" in praat.FINGERPRINT
    assert "hnr=cc,0.01,75.0,0.1" in praat.FINGERPRINT
