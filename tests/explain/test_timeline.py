"""When in a recording: planted moments are found where they are, a recording alike throughout has none, and leaving out is removing."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from clinical_ser import audio
from clinical_ser.audio.recording import SAMPLE_RATE_HZ
from clinical_ser.cohorts.tasks import DEPRESSION
from clinical_ser.errors import InvalidValueError
from clinical_ser.explain.timeline import (
    COURSE_STEP_S,
    COURSE_WINDOW_S,
    DRAWS,
    LEAST_SPEECH_S,
    LEAST_WINDOWS,
    MOST_WINDOWS,
    SHORTEST_WINDOW_S,
    Timeline,
    _band,
    _window,
    timeline_of,
    too_short,
    tracks,
)
from clinical_ser.features import extraction
from clinical_ser.features.contours import extract_with_contours
from clinical_ser.features.vector import FeatureVector
from clinical_ser.models.training import TrainingOptions, train
from tests import signals
from tests.tables import table_of

SETS = ("praat", "timing")
PITCH = "praat.f0_mean_semitones"
PLANTED = ((130, 20), (280, 4), (130, 20))
"""A minute and a quarter, with seven seconds of another voice in the middle."""


def spoken(*parts, pauses_s=(0.4,)):
    """Join stretches of speech, each (F0 in Hz, phrases)."""
    made = [signals.sentence(phrases=n, syllables=6, pauses_s=pauses_s, f0_hz=f0, lead_s=0.2, seed=i).samples for i, (f0, n) in enumerate(parts)]
    starts = np.cumsum([0, *map(len, made)]) / SAMPLE_RATE_HZ
    samples = signals.add_noise(np.concatenate(made), 45.0).astype(np.float32)
    return audio.from_samples(np.clip(samples, -1, 1), SAMPLE_RATE_HZ), starts


@pytest.fixture(scope="module")
def model():
    """A model that goes by mean pitch, learned from people around the voice of these tests."""
    recording, _ = spoken((130, 12))
    centre = extraction.extract(recording, sets=SETS)
    table = table_of(200, effect=0.0)
    rng = np.random.default_rng(0)
    usual = np.nan_to_num(centre.values)
    X = usual + (0.15 * np.abs(usual) + 0.05) * rng.normal(size=(200, len(usual)))
    place = table.feature_names.index(PITCH)
    X[:, place] = usual[place] + 3 * rng.normal(size=200)
    frame = table.frame.copy()
    frame[list(table.feature_names)] = pd.DataFrame(X, columns=list(table.feature_names))
    frame["label"] = np.where(X[:, place] + rng.normal(size=200) > usual[place], "depressed", "not_depressed")
    return train(dataclasses.replace(table, frame=frame), DEPRESSION, TrainingOptions(refits=3, split=3)).model


def ask(model, recording, **options):
    analysis = audio.analyse(recording)
    vector, contours = extract_with_contours(recording, analysis, sets=SETS)
    place = {name: i for i, name in enumerate(vector.names)}
    missing = {name: vector.missing[name] for name in model.features if name in vector.missing}
    own = FeatureVector(model.features, vector.values[[place[name] for name in model.features]], missing)
    return timeline_of(model, contours, own, analysis, target="depressed", **options), analysis


def test_a_planted_moment_stands_out_where_it_is(model):
    recording, starts = spoken(*PLANTED)
    found, _ = ask(model, recording)
    best = found.standing_out[0]
    assert starts[1] - 0.5 <= best.start_s
    assert best.end_s <= starts[2] + 0.5
    assert best.effect > 0  # the high voice raised the probability
    outside = [window for window in found.standing_out if window.end_s < starts[1] - 0.5 or window.start_s > starts[2] + 0.5]
    assert not [window for window in outside if window.effect > 0]


def test_a_recording_alike_throughout_has_hardly_a_moment(model):
    found, _ = ask(model, spoken((130, 20))[0])
    assert len(found.standing_out) <= 1


@pytest.mark.parametrize(
    ("effects", "outside"),
    [
        ([0.0] * 39 + [0.004], []),  # surely more than nothing, and less than half a point
        ([0.0] * 39 + [0.2], [39]),
        ([0.0] * 30 + [0.02, -0.02] * 5, []),  # trees answer in steps: what a quarter of the windows do is no moment
        ([*np.linspace(-0.01, 0.01, 39), 0.2], [39]),
    ],
    ids=["tiny", "one", "steps", "spread"],
)
def test_a_window_stands_out_beyond_the_band_and_beyond_half_a_point(effects, outside):
    low, high = _band(np.array(effects), len(effects))
    found = [_window((100 * i, 100 * i + 100), effect, low, high) for i, effect in enumerate(effects)]
    assert [i for i, window in enumerate(found) if window.stands_out] == outside


def test_windows_cover_the_recording_without_gap(model):
    recording, _ = spoken((130, 16))
    found, _ = ask(model, recording)
    assert found.windows[0].start_s == 0
    assert found.windows[-1].end_s == pytest.approx(recording.duration_s, abs=0.02)
    assert all(a.end_s == b.start_s for a, b in zip(found.windows, found.windows[1:], strict=False))
    assert all(w.end_s - w.start_s >= SHORTEST_WINDOW_S - 0.02 for w in found.windows)
    assert LEAST_WINDOWS <= len(found.windows) <= MOST_WINDOWS
    assert found.draws == DRAWS


def test_the_whole_recording_is_answered_as_it_was(model):
    recording, _ = spoken((130, 12))
    found, analysis = ask(model, recording, prevalence=0.3)
    vector = extraction.extract(recording, sets=SETS, analysis=analysis)
    x = np.array([vector[name] for name in model.features])
    assert found.probability == pytest.approx(model.answer(x, prevalence=0.3).probabilities[1], abs=1e-9)


def test_leaving_out_a_window_is_screening_the_file_without_it(model):
    """The planted stretch is cut out of the samples, and the whole analysed anew."""
    recording, starts = spoken((130, 9), (220, 3), (130, 9))
    analysis = audio.analyse(recording)
    contours = extract_with_contours(recording, analysis, sets=SETS)[1]
    first, last = (round(at * 100) for at in starts[1:3])
    keep = np.ones(len(analysis.level_dbfs), bool)
    keep[first:last] = False
    ours = dict(zip(contours.names, contours.leaving_out(keep), strict=True))
    cut = np.concatenate([recording.samples[: first * 160], recording.samples[last * 160 :]])
    really = extraction.extract(audio.from_samples(cut, SAMPLE_RATE_HZ), sets=SETS)
    assert ours[PITCH] == pytest.approx(really[PITCH], abs=0.2)
    assert ours["timing.pause_count"] == pytest.approx(really["timing.pause_count"], abs=1)
    assert ours["timing.phonation_time_s"] == pytest.approx(really["timing.phonation_time_s"], abs=0.3)
    assert ours[PITCH] < contours.leaving_out(None)[contours.names.index(PITCH)] - 0.5


def test_what_was_missing_stays_missing_and_a_persons_baseline_is_kept(model):
    """Features enter moved by a baseline, or gated away; leaving out changes them by what it changes in the recording."""
    recording, _ = spoken(*PLANTED)
    analysis = audio.analyse(recording)
    vector = extraction.extract(recording, sets=SETS, analysis=analysis)
    values = np.array([vector[name] for name in model.features])
    gone = model.features.index("praat.cpps_db")
    missing = {name: vector.missing[name] for name in model.features if name in vector.missing}
    values[gone] = np.nan
    moved = FeatureVector(model.features, values, {**missing, "praat.cpps_db": "noise"})
    contours = extract_with_contours(recording, analysis, sets=SETS)[1]
    plain = timeline_of(model, contours, moved, analysis, target="depressed")
    lower = FeatureVector(model.features, np.where(np.arange(len(values)) == model.features.index(PITCH), values - 2, values), moved.missing)
    baseline = timeline_of(model, contours, lower, analysis, target="depressed")
    assert baseline.probability < plain.probability
    assert baseline.standing_out[0].start_s == plain.standing_out[0].start_s


def test_the_same_recording_gives_the_same_timeline(model):
    recording, _ = spoken((130, 12))
    assert ask(model, recording)[0] == ask(model, recording)[0]


def test_tracks_are_every_ten_milliseconds_with_pauses_between_speech():
    recording, _ = spoken((130, 6), pauses_s=(0.8,))
    analysis = audio.analyse(recording)
    found = tracks(analysis)
    assert found.step_s == 0.01
    assert len(found.f0_hz) == len(found.level_dbfs) == len(analysis.level_dbfs)
    voiced = np.array(found.f0_hz)
    assert 100 < np.median(voiced[voiced > 0]) < 160
    gaps = [b[0] - a[1] for a, b in zip(found.speech_s, found.speech_s[1:], strict=False)]
    assert len(gaps) == 5
    assert gaps == pytest.approx([0.8] * 5, abs=0.1)


@pytest.mark.parametrize("seconds", [0, 1, LEAST_WINDOWS * SHORTEST_WINDOW_S - 0.1])
def test_a_short_recording_has_no_timeline_and_says_why(model, seconds):
    assert "windows" in too_short(seconds)
    samples = np.zeros(int(max(seconds, 0.1) * SAMPLE_RATE_HZ), np.float32)
    recording = audio.from_samples(samples, SAMPLE_RATE_HZ)
    with pytest.raises(InvalidValueError, match="windows"):
        timeline_of(
            model,
            extract_with_contours(recording, audio.analyse(recording), sets=SETS)[1],
            FeatureVector(model.features, np.zeros(len(model.features)), {}),
            audio.analyse(recording),
            target="depressed",
        )


def test_a_timeline_without_windows_is_none(model):
    found, _ = ask(model, spoken((130, 12))[0])
    with pytest.raises(ValidationError):
        Timeline.model_validate(found.model_dump() | {"windows": ()})


def test_feature_sets_that_cannot_be_summed_up_are_named():
    recording, _ = spoken((130, 2))
    with pytest.raises(InvalidValueError, match="compare"):
        extract_with_contours(recording, audio.analyse(recording), sets=("compare", "praat"))


def test_features_measured_beside_their_contours_are_the_same_bit_for_bit():
    recording, _ = spoken((130, 8))
    analysis = audio.analyse(recording)
    beside, contours = extract_with_contours(recording, analysis)
    alone = extraction.extract(recording)
    assert beside.names == alone.names == contours.names
    assert beside.values.tobytes() == alone.values.tobytes()
    assert contours.leaving_out(None) == pytest.approx(alone.values, rel=1e-4, abs=1e-5, nan_ok=True)


def test_the_course_follows_the_voice_at_a_step_of_a_second(model):
    recording, starts = spoken(*PLANTED)
    found, _ = ask(model, recording)
    times = np.array([moment.time_s for moment in found.course["depressed"]])
    assert np.allclose(np.diff(times), COURSE_STEP_S)
    assert times[0] == COURSE_WINDOW_S / 2
    inside = (times > starts[1]) & (times < starts[2])
    risk = np.array([moment.probability for moment in found.course["depressed"]])
    assert risk[inside].max() > risk[~inside].mean() + 0.2
    assert all(moment.low <= moment.probability <= moment.high for moment in found.course["depressed"])


def test_a_stretch_of_hardly_any_speech_is_no_moment(model):
    talk, _ = spoken((130, 12))
    silence = 1e-4 * np.random.default_rng(0).normal(size=20 * SAMPLE_RATE_HZ)
    recording = audio.from_samples(np.concatenate([talk.samples, silence]), SAMPLE_RATE_HZ)
    found, analysis = ask(model, recording)
    spoken_until = analysis.segments_s[-1][1]
    assert list(found.course) == ["depressed"]
    assert max(moment.time_s for moment in found.course["depressed"]) <= spoken_until + COURSE_WINDOW_S / 2 - LEAST_SPEECH_S + 0.5


@pytest.mark.parametrize("prevalence", [None, 0.05])
def test_a_moments_probability_and_interval_are_those_that_the_model_answers(model, prevalence):
    X = np.random.default_rng(0).normal(size=(5, len(model.features)))
    told = model.probabilities_of(X, "depressed", prevalence=prevalence)
    for row, (value, low, high) in zip(X, told, strict=True):
        answer = model.answer(row, prevalence=prevalence)
        assert (value, low, high) == pytest.approx((answer.probabilities[1], answer.low[1], answer.high[1]), abs=1e-12)
