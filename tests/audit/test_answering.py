"""Answers and their records, with a real model and a real recording."""

import json
from pathlib import Path

import pytest

import clinical_ser
from clinical_ser.audit.answering import Recorder, operator
from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.events import Actor, Inference, ModelChange, Notice, QualityRejection, ReportAction, Role
from clinical_ser.errors import AuditBusyError, AuditSetupError, BundleError
from clinical_ser.folders import user_folder
from clinical_ser.screening.screener import Screener

ACTOR = Actor(id="dr-canary", role=Role.CLINICIAN)


@pytest.fixture
def site():
    home = user_folder("config")
    site = LogConfiguration("tests.example/log", f"sqlite:{home / 'log.sqlite'}", home / "keys" / "audit")
    site.create(LogConfiguration.default_path())
    return site


@pytest.fixture(scope="module")
def told(bundle, speech_wav):
    return Screener.load(bundle).screen(speech_wav, sex="female", age=40)


def records(site):
    with site.read() as reader:
        return list(reader.records())


def test_without_a_log_nothing_is_recorded_and_the_answer_is_the_same(bundle, speech_wav, told):
    assert not Recorder.find().is_on
    assert clinical_ser.screen(speech_wav, model=bundle, sex="female", age=40) == told
    assert Recorder.find().answer(told) is None
    assert Recorder.find().report([told], "viewed", "html") == []
    assert list(user_folder("config").glob("*")) == []


def test_an_answer_is_recorded_before_it_is_given(site, bundle, speech_wav):
    result = clinical_ser.screen(speech_wav, model=bundle, sex="female", age=40, subject="MRN-1", actor=ACTOR)
    change, answer = records(site)
    assert isinstance(change.payload, ModelChange)
    assert (change.payload.action, change.payload.old, change.payload.new) == ("activated", None, result.model.digest)
    said = answer.payload
    assert isinstance(said, Inference)
    assert (said.result, said.recording, said.actor) == (result.digest, result.recording.sha256, ACTOR)
    assert (said.probability, said.low, said.high) == (result.probability.value, result.probability.interval.low, result.probability.interval.high)
    assert said.threshold == result.operating_point.probability
    assert [family.family for family in said.families] == [family.family for family in result.explanation.families]
    assert answer.event.model == result.model.digest
    assert site.verify().opened == 2


def test_the_model_is_activated_once_and_again_when_another_answers(site, told):
    recorder = Recorder.find()
    other = told.model_copy(update={"model": told.model.model_copy(update={"digest": "e" * 64, "version": "2"})})
    for result in (told, told, other, told):
        recorder.answer(result)
    changes = [record.payload for record in records(site) if isinstance(record.payload, ModelChange)]
    assert [(change.old, change.new) for change in changes] == [
        (None, told.model.digest),
        (told.model.digest, "e" * 64),
        ("e" * 64, told.model.digest),
    ]


def test_a_recording_that_is_not_usable_is_recorded_as_refused(site, bundle, tmp_path):
    import numpy as np
    import soundfile

    soundfile.write(tmp_path / "silence.wav", np.zeros(16_000 * 4), 16_000)
    clinical_ser.screen(tmp_path / "silence.wav", model=bundle)
    rejection = records(site)[-1]
    assert isinstance(rejection.payload, QualityRejection)
    assert rejection.event.outcome == "refused"
    assert any(check.verdict == "fail" for check in rejection.payload.checks)


def test_an_answer_without_a_person_is_found_and_erased_by_its_own_record(site, told):
    Recorder.find().answer(told)
    with site.read() as reader:
        assert reader.named(f"clinical-ser:result:{told.digest}") == [1]
        assert reader.record(1).event.subject_tag is not None


def test_an_answer_says_which_notice_the_person_was_given(site, told):
    Recorder.find(subject="MRN-1").answer(told)
    Recorder.find().record(Notice(actor=ACTOR, text_version="2026-08"), subject="MRN-1")
    Recorder.find(subject="MRN-1").answer(told)
    assert [record.payload.notice for record in records(site) if isinstance(record.payload, Inference)] == [None, "2026-08"]


def test_a_report_shares_the_person_of_its_answer(site, told):
    recorder = Recorder.find()
    Recorder.find(subject="MRN-1").answer(told)
    recorder.report([told], "exported", "pdf")
    with site.read() as reader:
        assert reader.named("MRN-1") == [1, 2]
        assert isinstance(reader.record(2).payload, ReportAction)


def test_a_report_on_an_answer_from_elsewhere_stands_for_itself(site, told):
    Recorder.find().report([told], "viewed", "terminal")
    with site.read() as reader:
        assert reader.named(f"clinical-ser:result:{told.digest}") == [0]
    assert Recorder.find().find_answer(told) is None


def test_reports_of_a_batch_are_recorded_one_by_one(site, told):
    Recorder.find(subject="MRN-1").answer(told)
    for number in range(3):
        Recorder.find().exported(told.digest if number == 0 else f"{number:064x}", told.model.digest, "pdf")
    with site.read() as reader:
        assert reader.named("MRN-1") == [1, 2]
        assert reader.size == 5


def test_what_is_about_an_answer_of_several_persons_needs_the_person(site, told):
    assert not Recorder.find().answer(told).under_others
    assert not Recorder.find(subject="MRN-1").answer(told).under_others, "a copy without a name is nobody else's"
    assert Recorder.find(subject="MRN-2").answer(told).under_others
    with pytest.raises(AuditSetupError, match="several persons"):
        Recorder.find().report([told], "viewed", "html")
    with pytest.raises(AuditSetupError, match="not under the one named"):
        Recorder.find(subject="MRN-3").report([told], "viewed", "html")
    Recorder.find(subject="MRN-2").report([told], "viewed", "html")
    with site.read() as reader:
        assert reader.named("MRN-2") == [3, 4]


def test_what_is_about_an_answer_goes_to_the_person_and_not_to_a_copy_without_a_name(site, told):
    Recorder.find().answer(told)
    Recorder.find(subject="MRN-1").answer(told)
    Recorder.find().report([told], "viewed", "html")
    with site.read() as reader:
        assert reader.named("MRN-1") == [2, 3]


def test_an_answer_that_cannot_be_recorded_is_not_given(site, bundle, speech_wav, monkeypatch):
    monkeypatch.setattr("clinical_ser.audit.answering._WAIT_S", 0.05)
    with site.write(), pytest.raises(AuditBusyError):
        clinical_ser.screen(speech_wav, model=bundle)
    assert records(site) == []


def test_a_model_that_is_refused_is_recorded_and_its_path_is_not(site, bundle, speech_wav, tmp_path):
    folder = tmp_path / "jane-doe's model"
    folder.mkdir()
    for path in Path(bundle).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "head.json").write_bytes((folder / "head.json").read_bytes() + b" ")
    with pytest.raises(BundleError):
        clinical_ser.screen(speech_wav, model=folder)
    [refused] = records(site)
    assert (refused.payload.action, refused.payload.name, refused.payload.reason) == ("refused", "a folder", "BundleIncompleteError")
    assert "risk_signal" in refused.event.flags
    assert "jane" not in json.dumps(refused.payload.model_dump(mode="json"))


def test_a_log_that_is_named_and_not_there_stops_everything(monkeypatch, tmp_path):
    monkeypatch.setenv("CLINICAL_SER_AUDIT", str(tmp_path / "nowhere.toml"))
    with pytest.raises(AuditSetupError, match="audit init"):
        Recorder.find()


def test_the_account_that_runs_the_program_acts_unless_someone_else_is_named():
    assert operator().role is Role.OPERATOR
    assert operator().id
