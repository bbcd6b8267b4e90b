"""Praat and timing features without some of the frames, against recordings whose samples were really cut out."""

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import pytest
from parselmouth.praat import call

from clinical_ser import audio
from clinical_ser.audio import SpeechAnalysis
from clinical_ser.errors import InvalidValueError
from clinical_ser.features import praat, timing
from tests import signals

FRAME = signals.RATE_HZ // 100
Windows = tuple[tuple[float, float], ...]
Answer = tuple[dict[str, float], dict[str, str]]

TOLERANCES = (
    ("praat.f0_*", {"rel": 0.01}),
    ("praat.jitter_*", {"rel": 0.03}),
    ("praat.shimmer_*", {"rel": 0.03}),
    ("praat.hnr_*", {"abs": 0.15}),
    ("praat.cpps_*", {"abs": 0.2}),
    ("praat.f?_*", {"rel": 0.02, "abs": 2.0}),
    ("praat.intensity_*", {"abs": 0.15}),
    ("praat.voice_breaks_count", {"abs": 1}),
    ("praat.*_percent", {"abs": 0.5}),
    ("timing.pause_count", {"abs": 0}),
    ("timing.*_s", {"abs": 0.02}),
    ("timing.*", {"rel": 0.015}),
)
"""How far a group may be from the cut recording: what a window of 25 to 100 ms across the seam, or a pitch range that moved by 3 Hz, does."""


@dataclass(frozen=True)
class Talk:
    """A recording of whole frames, measured."""

    made: signals.Sentence
    samples: np.ndarray
    analysis: SpeechAnalysis
    tracks: praat.PraatTracks

    def without(self, *windows_s: tuple[float, float]) -> np.ndarray:
        keep = np.ones(len(self.analysis.level_dbfs), np.bool_)
        for start, stop in windows_s:
            keep[round(100 * start) : round(100 * stop)] = False
        return keep

    def cut(self, keep: np.ndarray) -> SpeechAnalysis:
        return analysed(self.samples[np.repeat(keep, FRAME)])


def analysed(samples: np.ndarray) -> SpeechAnalysis:
    return audio.analyse(audio.from_samples(samples, signals.RATE_HZ))


def talk_of(made: signals.Sentence) -> Talk:
    noisy = signals.add_noise(made.samples, 35.0, speech_s=made.speech_s)
    samples = audio.from_samples(noisy[: len(noisy) // FRAME * FRAME], signals.RATE_HZ).samples
    analysis = analysed(samples)
    return Talk(made, samples, analysis, praat.measure(analysis))


@pytest.fixture(scope="module")
def talk() -> Talk:
    return talk_of(signals.sentence(phrases=10, pauses_s=(0.5, 0.8, 0.4)))


@pytest.fixture(scope="module")
def vowel() -> Talk:
    """One vowel without a pause."""
    samples = signals.vowel(6.0, f0_hz=np.array([125.0, 150.0, 118.0, 140.0]), jitter=0.01, shimmer=0.05, seed=2)
    return talk_of(signals.Sentence(samples, ((0.0, 6.0),), ()))


@pytest.fixture(scope="module")
def steady() -> Talk:
    """Pulses that are all alike."""
    return talk_of(signals.Sentence(0.5 * signals.pulse_train(4.0, f0_hz=130.0).samples, ((0.0, 4.0),), ()))


def bits(answer: Answer) -> tuple[tuple[str, ...], bytes, dict[str, str]]:
    return tuple(answer[0]), np.array(list(answer[0].values())).tobytes(), answer[1]


def assert_close(left: Answer, cut: Answer) -> None:
    assert left[1] == cut[1]
    far = {name: (value, cut[0][name]) for name, value in left[0].items() if value != pytest.approx(cut[0][name], nan_ok=True, **tolerance(name))}
    assert not far


def tolerance(name: str) -> dict[str, float]:
    return next(limits for pattern, limits in TOLERANCES if fnmatchcase(name, pattern))


def test_leaving_nothing_out_gives_the_same_bits(talk: Talk) -> None:
    everything = talk.without()
    assert bits(praat.summarise(talk.tracks, everything)) == bits(praat.summarise(talk.tracks)) == bits(praat.compute(talk.analysis))
    assert bits(timing.compute(talk.analysis, everything)) == bits(timing.compute(talk.analysis))


@pytest.mark.parametrize("windows_s", [((2.2, 2.9),), ((3.35, 3.9),), ((4.03, 6.11),), ((0.0, 0.93), (14.0, 17.0)), ((5.2, 5.45), (9.3, 11.2))])
def test_leaving_a_window_out_is_as_cutting_it_out(talk: Talk, windows_s: Windows) -> None:
    keep = talk.without(*windows_s)
    cut = talk.cut(keep)
    values, missing = praat.summarise(talk.tracks, keep)
    # Two vowels in equal shares: the medians of their formants jump from one to the other by a single frame.
    formants = [name for name in values if fnmatchcase(name, "praat.f[1-4]_*")]
    theirs, their_missing = praat.compute(cut)
    assert_close(({**values, **dict.fromkeys(formants, 0.0)}, missing), ({**theirs, **dict.fromkeys(formants, 0.0)}, their_missing))
    assert_close(timing.compute(talk.analysis, keep), timing.compute(cut))


@pytest.mark.parametrize("windows_s", [((1.0, 2.0),), ((0.0, 1.5), (4.0, 6.0)), ((1.0, 1.7), (3.0, 3.7))])
def test_formants_without_a_window_are_those_of_the_cut_voice(vowel: Talk, windows_s: Windows) -> None:
    keep = vowel.without(*windows_s)
    left, theirs = praat.summarise(vowel.tracks, keep)[0], praat.compute(vowel.cut(keep))[0]
    for name in left:
        if fnmatchcase(name, "praat.f[1-4]_*"):
            assert left[name] == pytest.approx(theirs[name], **tolerance(name)), name


def test_values_are_taken_from_kept_frames_only(talk: Talk) -> None:
    half = len(talk.analysis.level_dbfs) // 2
    louder = audio.from_samples(np.concatenate([talk.samples[: half * FRAME], 4.0 * talk.samples[half * FRAME :]]) / 4.0, signals.RATE_HZ)
    tracks = praat.measure(audio.analyse(louder))
    keep = np.arange(len(talk.analysis.level_dbfs)) < half
    soft, loud = (praat.summarise(tracks, side)[0]["praat.intensity_mean_db"] for side in (keep, ~keep))
    assert loud - soft == pytest.approx(20 * math.log10(4), abs=0.5)


@pytest.mark.parametrize("fixture", ["talk", "vowel"])
def test_jitter_and_shimmer_are_praats(fixture: str, request: pytest.FixtureRequest) -> None:
    one: Talk = request.getfixturevalue(fixture)
    pulses = call([one.analysis.sound, one.analysis.pitch.praat], "To PointProcess (cc)")
    assert praat.compute(one.analysis)[0] == pytest.approx(praat.compute(one.analysis)[0] | praats_perturbation(one, pulses), rel=1e-13, nan_ok=True)


@pytest.mark.parametrize("length_s", [0.02, 0.04, 0.3])
def test_jitter_and_shimmer_without_windows_are_praats_without_the_pulses_in_them(vowel: Talk, length_s: float) -> None:
    windows_s = tuple((0.25 + 0.7 * k, 0.25 + 0.7 * k + length_s) for k in range(8))
    pulses = call([vowel.analysis.sound, vowel.analysis.pitch.praat], "To PointProcess (cc)")
    for start, stop in windows_s:
        call(pulses, "Remove points between", start, stop)
    left = praat.summarise(vowel.tracks, vowel.without(*windows_s))[0]
    assert left == pytest.approx(left | praats_perturbation(vowel, pulses), rel=1e-6, nan_ok=True)


def praats_perturbation(one: Talk, pulses: object) -> dict[str, float]:
    jitter = {name: scale * call(pulses, f"Get jitter ({variant})", 0, 0, 0.0001, 0.02, 1.3) for name, (variant, scale) in praat._JITTERS.items()}
    shimmer = {
        name: scale * call([one.analysis.sound, pulses], f"Get shimmer ({variant})", 0, 0, 0.0001, 0.02, 1.3, 1.6)
        for name, (variant, scale) in praat._SHIMMERS.items()
    }
    return jitter | shimmer


@pytest.mark.parametrize("length", [0.01, 0.02, 0.03, 0.5, 1.0])
def test_a_removed_stretch_of_voice_makes_no_break_and_no_jitter(steady: Talk, length: float) -> None:
    assert praat.summarise(steady.tracks)[0]["praat.voice_breaks_count"] == 0
    for phase in np.arange(0.0, 0.05, 0.01):
        values = praat.summarise(steady.tracks, steady.without((0.6 + phase, 0.6 + phase + length), (2.2 + phase, 2.2 + phase + length)))[0]
        assert values["praat.voice_breaks_count"] == 0
        assert values["praat.voice_breaks_degree_percent"] == 0
        assert values["praat.unvoiced_fraction_percent"] == 0
        assert values["praat.jitter_local_percent"] < 0.05
        assert values["praat.shimmer_local_percent"] < 0.5


def test_a_break_from_one_seam_to_the_next_is_still_a_break() -> None:
    voice = signals.vowel(1.0, f0_hz=130.0)
    one = talk_of(signals.Sentence(np.concatenate([voice, signals.silence(0.3), voice, voice]), ((0.0, 1.0), (1.3, 3.3)), ()))
    # Voiced up to both seams, and 0.2 s of the silence kept between them.
    keep = one.without((0.7, 1.05), (1.25, 1.6))
    values = praat.summarise(one.tracks, keep)[0]
    assert values["praat.voice_breaks_count"] == 1
    assert values["praat.voice_breaks_degree_percent"] == pytest.approx(100 * 0.2 / (0.01 * keep.sum()), abs=1)


def test_a_break_loses_the_time_that_is_removed_from_it() -> None:
    voice = signals.vowel(1.0, f0_hz=130.0)
    one = talk_of(signals.Sentence(np.concatenate([voice, signals.silence(0.5), voice]), ((0.0, 1.0), (1.5, 2.5)), ()))
    whole, left = (praat.summarise(one.tracks, keep)[0] for keep in (None, one.without((1.1, 1.4))))
    assert whole["praat.voice_breaks_count"] == left["praat.voice_breaks_count"] == 1
    assert whole["praat.voice_breaks_degree_percent"] == pytest.approx(100 * 0.5 / 2.5, abs=1)
    assert left["praat.voice_breaks_degree_percent"] == pytest.approx(100 * 0.2 / 2.2, abs=1)


def test_removing_a_pause_shortens_the_pauses_by_it(talk: Talk) -> None:
    start, stop = talk.made.pauses_s[1]
    whole = timing.compute(talk.analysis)[0]
    shorter = timing.compute(talk.analysis, talk.without((start + 0.1, stop - 0.3)))[0]
    gone = timing.compute(talk.analysis, talk.without((start, stop)))[0]
    assert whole["timing.pause_total_s"] - shorter["timing.pause_total_s"] == pytest.approx(stop - start - 0.4, abs=1e-9)
    assert shorter["timing.pause_count"] == whole["timing.pause_count"]
    assert whole["timing.pause_total_s"] - gone["timing.pause_total_s"] == pytest.approx(stop - start, abs=0.03)
    assert gone["timing.pause_count"] == whole["timing.pause_count"] - 1
    assert gone["timing.phonation_time_s"] == pytest.approx(whole["timing.phonation_time_s"], abs=0.03)


def test_what_is_left_of_a_pause_is_speech_when_it_is_shorter_than_a_pause(talk: Talk) -> None:
    start, stop = talk.made.pauses_s[0]
    whole = timing.compute(talk.analysis)[0]
    left = timing.compute(talk.analysis, talk.without((start + 0.1, stop - 0.1)))[0]
    assert left["timing.pause_count"] == whole["timing.pause_count"] - 1
    assert left["timing.phonation_time_s"] == pytest.approx(whole["timing.phonation_time_s"] + 0.2, abs=0.03)


def test_a_removed_phrase_takes_its_syllables_with_it(talk: Talk) -> None:
    def syllables(values: dict[str, float]) -> float:
        return values["timing.articulation_rate_syll_per_s"] * values["timing.phonation_time_s"]

    left = timing.compute(talk.analysis, talk.without(talk.made.speech_s[2]))[0]
    assert syllables(left) == pytest.approx(syllables(timing.compute(talk.analysis)[0]) - 5)


def test_many_pieces_can_be_left_out_at_once(talk: Talk) -> None:
    keep = talk.without(*((0.9 + 0.8 * k, 1.4 + 0.8 * k) for k in range(20)))
    values, missing = praat.summarise(talk.tracks, keep)
    assert missing == {}
    theirs = praat.compute(talk.cut(keep))[0]
    assert values["praat.f0_median_hz"] == pytest.approx(theirs["praat.f0_median_hz"], rel=0.02)
    assert values["praat.hnr_voiced_mean_db"] == pytest.approx(theirs["praat.hnr_voiced_mean_db"], abs=1.5)
    spans = timing.compute(talk.analysis, keep)[0], timing.compute(talk.cut(keep))[0]
    assert spans[0]["timing.phonation_time_s"] == pytest.approx(spans[1]["timing.phonation_time_s"], abs=0.2)


def test_when_nothing_is_left_everything_is_missing_with_a_reason(talk: Talk) -> None:
    nothing = np.zeros_like(talk.without())
    for values, missing in (praat.summarise(talk.tracks, nothing), timing.compute(talk.analysis, nothing)):
        assert set(missing) == set(values)
        assert all(map(math.isnan, values.values()))
        assert all(reason and reason[0].islower() for reason in missing.values())


@pytest.mark.parametrize("left", range(1, 30, 3))
def test_little_that_is_left_has_reasons_and_raises_nothing(talk: Talk, left: int) -> None:
    keep = np.zeros_like(talk.without())
    keep[60 : 60 + left] = True
    for values, missing in (praat.summarise(talk.tracks, keep), timing.compute(talk.analysis, keep)):
        assert set(missing) == {name for name, value in values.items() if not math.isfinite(value)}


@pytest.mark.parametrize("samples", [np.zeros(16_000), np.full(1, 0.1), signals.white_noise(1.0), signals.vowel(0.07, f0_hz=200.0)])
def test_what_could_not_be_measured_keeps_its_reason(samples: np.ndarray) -> None:
    analysis = analysed(samples)
    tracks = praat.measure(analysis)
    keep = np.ones(len(analysis.level_dbfs), np.bool_)
    keep[0] = False
    for values, missing in (praat.summarise(tracks, keep), timing.compute(analysis, keep)):
        assert set(missing) == {name for name, value in values.items() if not math.isfinite(value)}
        assert all(reason and reason[0].islower() for reason in missing.values())
    before, after = praat.summarise(tracks)[1], praat.summarise(tracks, keep)[1]
    assert before.get("praat.cpps_db") in {None, after.get("praat.cpps_db")}


def test_a_mask_of_another_shape_or_type_is_refused(talk: Talk) -> None:
    keep = talk.without()
    for wrong in (keep[:-1], keep.astype(np.float64), keep[:, None]):
        with pytest.raises(InvalidValueError, match="keep"):
            praat.summarise(talk.tracks, wrong)
        with pytest.raises(InvalidValueError, match="keep"):
            timing.compute(talk.analysis, wrong)
