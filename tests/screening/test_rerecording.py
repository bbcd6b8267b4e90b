"""Recording again: what a change does is counted as it is, and the changes are what they are called."""

import numpy as np
import pytest

from clinical_ser import audio
from clinical_ser.audio.recording import SAMPLE_RATE_HZ
from clinical_ser.errors import TrainingError
from clinical_ser.models.reference import Person
from clinical_ser.screening import Screener
from clinical_ser.screening.rerecording import CHANGES, Spoken, _differences, later, noisier, rerecord, softer
from tests import signals


@pytest.fixture(scope="module")
def screener(bundle):
    return Screener.load(bundle)


@pytest.fixture(scope="module")
def samples(speech_wav):
    return audio.load(speech_wav).samples


def test_the_changes_are_what_they_are_called(samples):
    assert signals.level_dbfs(softer(samples)) == pytest.approx(signals.level_dbfs(samples) - 6, abs=0.01)
    assert len(samples) - len(later(samples)) == SAMPLE_RATE_HZ // 2
    analysis = audio.analyse(audio.from_samples(samples, SAMPLE_RATE_HZ))
    speech_db = 10 * np.log10(np.mean(10 ** (analysis.level_dbfs[analysis.speech] / 10)))
    assert signals.level_dbfs(noisier(samples).astype(float) - samples) == pytest.approx(speech_db - 30, abs=0.3)


def test_an_unchanged_recording_is_explained_unchanged(screener, samples):
    result = screener.screen(audio.from_samples(samples, SAMPLE_RATE_HZ))
    assert _differences(result, result) == (0.0, 0.0, pytest.approx(1.0), 1.0, 1.0)


def test_differences_are_those_of_the_two_explanations(screener, samples):
    before, after = (screener.screen(audio.from_samples(part, SAMPLE_RATE_HZ)) for part in (samples, noisier(samples)))
    here, there = ({f.family: f.probability.value for f in one.explanation.families} for one in (before, after))
    probability, effect, correlation, same_first, same_status = _differences(before, after)
    assert probability == pytest.approx(abs(before.probability.value - after.probability.value))
    assert effect == pytest.approx(np.mean([abs(here[family] - there[family]) for family in here]))
    assert effect > 0
    assert -1 <= correlation <= 1
    assert same_first == (max(here, key=lambda f: abs(here[f])) == max(there, key=lambda f: abs(there[f])))
    assert same_status == (before.status is after.status)


def test_every_change_is_counted_and_refused_recordings_are_left_out_of_figures(screener, samples):
    """Five of six recordings are usable; white noise makes none of them better."""
    hush = np.zeros(SAMPLE_RATE_HZ * 20, np.float32)
    spoken = [
        Spoken(lambda part=part: audio.from_samples(part, SAMPLE_RATE_HZ), f"s{i}", Person(sex="female"))
        for i, part in enumerate([*(np.roll(samples, 3000 * k) for k in range(5)), hush])
    ]
    done = []
    found = rerecord(screener, spoken, progress=done.append)
    assert [one.change for one in found] == list(CHANGES)
    assert all(one.probability.recordings + one.refused == 5 for one in found)
    assert done == [1, 2, 3, 4, 5, 6]
    with pytest.raises(TrainingError, match="at least 5"):
        rerecord(screener, spoken[4:])
