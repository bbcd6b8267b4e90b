"""One recording, one answer: every status, every refusal, and nothing of the person in what comes out."""

import io
import json
import shutil
import threading
import time

import numpy as np
import pytest
from pydantic import ValidationError

import clinical_ser
from clinical_ser import audio
from clinical_ser.audio.recording import SAMPLE_RATE_HZ
from clinical_ser.cohorts.tasks import DEPRESSION
from clinical_ser.errors import (
    AudioDecodeError,
    AudioNotFoundError,
    BaselineError,
    BundleFeatureMismatchError,
    BundleTamperedError,
    InvalidValueError,
)
from clinical_ser.evaluation.evaluating import EvaluationOptions
from clinical_ser.evaluation.release import card_of
from clinical_ser.features import egemaps
from clinical_ser.models.bundle import ManifestFields, read_bundle, write_bundle
from clinical_ser.models.saving import save
from clinical_ser.models.training import TrainingOptions, train
from clinical_ser.screening import Screener, ScreeningResult, Status
from clinical_ser.screening import screener as screener_module
from tests import signals
from tests.tables import table_of


@pytest.fixture(scope="module")
def screener(bundle):
    return Screener.load(bundle)


@pytest.fixture(scope="module")
def result(screener, speech_wav):
    return screener.screen(speech_wav, sex="female", age=54)


def test_a_usable_recording_gets_a_probability_with_interval_and_prevalence(result):
    p = result.probability
    assert result.status in {Status.FLAGGED, Status.NOT_FLAGGED, Status.INDETERMINATE}
    assert p.label == "depressed"
    assert p.interval.low <= p.value <= p.interval.high
    assert p.prevalence == 0.10
    assert result.operating_point.sensitivity.low <= result.operating_point.sensitivity.value
    assert result.quality.usable


def test_the_explanation_adds_up_to_the_probability(result):
    told = result.explanation
    total = told.base_log_odds + sum(family.log_odds.value for family in told.families)
    assert 1 / (1 + np.exp(-total)) == pytest.approx(result.probability.value, abs=1e-9)
    features = [feature for family in told.families for feature in family.features]
    assert all(feature.unit and feature.meaning_en and feature.meaning_zh for feature in features)
    assert told.reference.group == "not depressed, female"
    points = told.base_probability + sum(family.probability.value for family in told.families)
    assert points == pytest.approx(result.probability.value, abs=1e-9)


def test_the_result_survives_json(result):
    assert ScreeningResult.model_validate_json(result.model_dump_json()) == result


def test_no_path_and_no_name_is_in_the_result(result, speech_wav):
    content = result.model_dump_json()
    for secret in ("jane", "1970", str(speech_wav.parent), speech_wav.parent.name, ".wav"):
        assert secret not in content, secret


def test_the_same_recording_gives_the_same_answer_from_file_bytes_and_memory(screener, speech_wav, result):
    content = speech_wav.read_bytes()
    for source in (content, io.BytesIO(content), audio.load(speech_wav), str(speech_wav)):
        assert screener.screen(source, sex="female", age=54) == result


def test_the_python_function_answers_as_the_screener(bundle, speech_wav, result):
    assert clinical_ser.screen(speech_wav, model=bundle, sex="female", age=54) == result


def test_sex_and_age_choose_the_reference_and_never_change_the_score(screener, speech_wav, result):
    other = screener.screen(speech_wav, sex="male", age=30)
    assert other.probability == result.probability
    assert other.status == result.status
    assert other.explanation != result.explanation


def test_the_probability_moves_with_prevalence_and_the_status_does_not(screener, speech_wav, result):
    rare, common = (screener.screen(speech_wav, prevalence=p) for p in (0.01, 0.5))
    assert rare.probability.value < result.probability.value < common.probability.value
    assert rare.operating_point.probability < common.operating_point.probability
    assert {rare.status, common.status} == {result.status}
    odds = [r.probability.value / (1 - r.probability.value) for r in (rare, common)]
    assert odds[1] / odds[0] == pytest.approx(99, rel=1e-6)


@pytest.mark.parametrize(
    "samples",
    [np.zeros(SAMPLE_RATE_HZ * 30), np.zeros(1), signals.white_noise(30.0), 0.5 * np.ones(SAMPLE_RATE_HZ * 30), signals.sine(150.0, 3.0)],
    ids=["silence", "one sample", "white noise", "DC", "a tone too short"],
)
def test_an_unusable_recording_gets_advice_and_no_score(screener, samples):
    result = screener.screen(audio.from_samples(samples.astype(np.float32), SAMPLE_RATE_HZ))
    assert result.status is Status.NOT_USABLE
    assert result.probability is None
    assert result.explanation is None
    assert "not usable" in result.summary
    assert any(check.verdict == "fail" and check.advice for check in result.quality.checks)


def test_a_segment_is_screened_as_the_cut_recording_would_be(screener, speech_wav):
    result = screener.screen(speech_wav, start=0, end=8)
    assert result.status is Status.NOT_USABLE
    assert result.recording.duration_s == pytest.approx(8, abs=0.01)


@pytest.fixture(scope="module")
def of_openSMILE():
    """A model that wants openSMILE's features too."""
    return Screener.load("depression-simulated")


@pytest.fixture
def measured(monkeypatch):
    """What openSMILE was given."""
    given, functionals = [], egemaps.functionals

    def noted(recording, **options):
        given.append(recording)
        return functionals(recording, **options)

    monkeypatch.setattr(egemaps, "functionals", noted)
    return given


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros(SAMPLE_RATE_HZ * 30),
        signals.sine(150.0, 9.0),
        1e-3 * signals.sine(150.0, 30.0),
        np.sign(signals.sine(150.0, 30.0)),
        np.where(np.arange(30 * SAMPLE_RATE_HZ) % 20, signals.sine(150.0, 30.0), np.nan),
    ],
    ids=["silence", "too short", "too quiet", "clipped throughout", "full of holes"],
)
def test_what_the_gate_will_surely_refuse_is_not_measured(of_openSMILE, samples, measured):
    assert of_openSMILE.screen(audio.from_samples(samples.astype(np.float32), SAMPLE_RATE_HZ)).status is Status.NOT_USABLE
    assert not measured


def test_a_long_recording_is_not_measured_before_the_gate_has_judged(of_openSMILE, measured, monkeypatch):
    noise = audio.from_samples(signals.white_noise(30.0, level_dbfs=-30).astype(np.float32), SAMPLE_RATE_HZ)
    assert of_openSMILE.screen(noise).status is Status.NOT_USABLE
    assert len(measured) == 1  # the gate had to listen, and openSMILE did not wait for it
    monkeypatch.setattr(screener_module, "PART_S", 20.0)
    assert of_openSMILE.screen(noise).status is Status.NOT_USABLE
    assert len(measured) == 1


def test_a_refusal_does_not_wait_for_what_was_begun(of_openSMILE, monkeypatch):
    let_go = threading.Event()

    def held(recording, *, running):
        running()
        let_go.wait(120)
        raise InterruptedError

    monkeypatch.setattr(egemaps, "functionals", held)
    started = time.monotonic()
    noise = audio.from_samples(signals.white_noise(30.0, level_dbfs=-30).astype(np.float32), SAMPLE_RATE_HZ)
    assert of_openSMILE.screen(noise).status is Status.NOT_USABLE
    assert time.monotonic() - started < 60
    let_go.set()


def test_measuring_beside_the_gate_and_after_it_give_the_same_result(of_openSMILE, speech_wav, monkeypatch):
    beside = of_openSMILE.screen(speech_wav)
    monkeypatch.setattr(screener_module, "PART_S", 1.0)
    assert of_openSMILE.screen(speech_wav) == beside


def test_the_gate_can_be_asked_alone(of_openSMILE, speech_wav, measured):
    expected = audio.assess(audio.load(speech_wav), of_openSMILE.limits)
    assert of_openSMILE.quality(speech_wav) == of_openSMILE.quality(audio.load(speech_wav)) == expected
    assert not of_openSMILE.quality(speech_wav.read_bytes(), start=0, end=8).usable
    with pytest.raises(AudioDecodeError):
        of_openSMILE.quality(b"no audio")
    assert not measured


def test_a_score_cannot_be_put_on_an_unusable_recording(result):
    with pytest.raises(ValidationError, match="exactly when its recording is usable"):
        ScreeningResult.model_validate(result.model_dump() | {"status": "not_usable"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sex": "F"}, "female"),
        ({"age": -1}, "years from 0"),
        ({"age": float("nan")}, "years from 0"),
        ({"prevalence": 0}, "between 0.0001"),
        ({"prevalence": 1.5}, "between 0.0001"),
        ({"baseline": [b"x"]}, "trained without"),
        ({"start": 5, "end": 2}, "end"),
    ],
)
def test_an_option_out_of_range_is_named(screener, speech_wav, options, message):
    with pytest.raises(InvalidValueError, match=message):
        screener.screen(speech_wav, **options)


def test_errors_about_files_do_not_name_them(screener, tmp_path):
    junk = tmp_path / "jane-doe.wav"
    junk.write_bytes(b"not audio at all" * 50)
    for source, error in ((tmp_path / "jane-doe-missing.wav", AudioNotFoundError), (junk, AudioDecodeError)):
        with pytest.raises(error) as caught:
            screener.screen(source)
        assert "jane" not in str(caught.value)


def test_the_result_says_what_people_of_each_class_were_answered(result):
    assert [rates.label for rates in result.answers] == ["not_depressed", "depressed"]
    for rates in result.answers:
        assert rates.flagged.value + rates.not_flagged.value + rates.indeterminate.value == pytest.approx(1)


def test_a_classified_recording_has_its_class_alone_in_the_set(result):
    with pytest.raises(ValidationError, match="most probable class"):
        ScreeningResult.model_validate(result.model_dump() | {"status": "classified", "prediction_set": ("not_depressed",)})


@pytest.fixture(scope="module")
def relative_screener(tmp_path_factory):
    """A model that needs a baseline."""
    table = table_of(80, rows_each=2)
    table.frame["baseline"] = np.tile([True, False], 80)
    training = train(table, DEPRESSION, TrainingOptions(refits=3, use_baseline=True))
    folder = tmp_path_factory.mktemp("models") / "relative"
    card, _ = card_of(training, None, name="relative", version="1", options=EvaluationOptions(replicates=20))
    save(training, folder, name="relative", version="1", statement="", card=card.to_json(), software={"numpy": "0"}, key=None)
    return Screener.load(folder)


def test_a_person_against_their_own_baseline(relative_screener, speech_wav):
    result = relative_screener.screen(speech_wav, baseline=[speech_wav])
    assert result.context.baseline_recordings == 1
    assert result.explanation.relative_to_baseline
    features = [feature for family in result.explanation.families for feature in family.features]
    assert all(feature.value == 0 and feature.published is None for feature in features)


def test_a_baseline_is_asked_for_and_an_unusable_one_is_named_by_place(relative_screener, speech_wav):
    with pytest.raises(InvalidValueError, match="earlier recording"):
        relative_screener.screen(speech_wav)
    hush = audio.from_samples(np.zeros(SAMPLE_RATE_HZ * 20, np.float32), SAMPLE_RATE_HZ)
    with pytest.raises(BaselineError, match="Baseline recording 2 of 2 is not usable"):
        relative_screener.screen(speech_wav, baseline=[speech_wav, hush])
    with pytest.raises(BaselineError, match="Baseline recording 1 of 1"):
        relative_screener.screen(speech_wav, baseline=[b"junk"])


def test_an_untrusted_model_says_so(result):
    assert result.model.signature == "unsigned"
    assert any("trusts" in notice for notice in result.notices)
    assert "For tests." in result.notices


def test_a_changed_byte_is_refused_before_anything_is_answered(bundle, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    content = bytearray((copy / "head.json").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "head.json").write_bytes(content)
    with pytest.raises(BundleTamperedError, match=r"head\.json"):
        Screener.load(copy)


def test_a_model_of_other_extractor_versions_is_refused_by_name(bundle, tmp_path):
    read = read_bundle(bundle)
    fields = read.manifest.model_dump(exclude={"files", "schema_id"}) | {"extractors": {"praat": "praat of 1992"}}
    write_bundle(tmp_path / "old", ManifestFields.model_validate(fields), read.files)
    with pytest.raises(BundleFeatureMismatchError, match="praat of 1992"):
        Screener.load(tmp_path / "old")


def test_noise_switches_features_off_with_the_reason(screener):
    made = signals.sentence(phrases=18, syllables=6, pauses_s=(0.6,))
    noisy = signals.add_noise(made.samples, 22.0, speech_s=made.speech_s)
    result = screener.screen(audio.from_samples(noisy.astype(np.float32), SAMPLE_RATE_HZ))
    assert result.status is not Status.NOT_USABLE
    reasons = {missing.name: missing.reason for missing in result.missing}
    assert "noise" in reasons["praat.cpps_db"]
    shown = {f.name for family in result.explanation.families for f in family.features}
    assert not shown & set(reasons)


def test_a_result_is_small_enough_to_send(result):
    assert len(json.dumps(result.model_dump(mode="json"))) < 60_000
