"""`explain` as a user types it: recordings and results, pictures, and everything that is neither."""

import json
import re

import numpy as np
import pytest
import soundfile

from clinical_ser.audio.recording import SAMPLE_RATE_HZ
from clinical_ser.cohorts.simulation import simulate_visits
from clinical_ser.cohorts.tasks import DEPRESSION
from clinical_ser.evaluation.card import Card
from clinical_ser.evaluation.evaluating import EvaluationOptions
from clinical_ser.evaluation.release import card_of
from clinical_ser.models.bundle import read_bundle
from clinical_ser.models.saving import save
from clinical_ser.models.training import TrainingOptions, train
from clinical_ser.screening import ScreeningResult
from clinical_ser.screening.screener import Screener
from tests.explain.made import with_embedding
from tests.tables import table_of


@pytest.fixture(scope="session")
def result_json(bundle, speech_wav, tmp_path_factory):
    """A result with a timeline, in a file."""
    path = tmp_path_factory.mktemp("results") / "result.json"
    path.write_text(Screener.load(bundle).screen(speech_wav, sex="female", timeline=True).model_dump_json(), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def pattern_bundle(tmp_path_factory):
    """A model with an embedding that this installation cannot compute."""
    folder = tmp_path_factory.mktemp("models") / "pattern"
    training = train(with_embedding(table_of(80)), DEPRESSION, TrainingOptions(refits=3, split=3))
    card, _ = card_of(training, None, name="pattern", version="1", options=EvaluationOptions(replicates=20))
    save(training, folder, name="pattern", version="1", statement="", card=card.to_json(), software={"numpy": "0"}, key=None)
    return folder


def test_a_recording_is_explained_with_families_features_moments_and_what_if(run, bundle, speech_wav):
    code, out, err = run("explain", speech_wav, "--model", bundle, "--sex", "female", "--what-if")
    assert code == 0, err
    assert "What-if" not in run("explain", speech_wav, "--model", bundle)[1]
    for words in (
        "on average in the reference group (not depressed, female",
        "95 % interval",
        "same rank",
        "Timeline:",
        "What-if",
        "never a diagnosis",
    ):
        assert words in out
    assert "jane" not in out + err


def test_json_is_the_whole_result_with_timeline_and_tracks(run, bundle, speech_wav):
    code, out, _ = run("explain", speech_wav, "--model", bundle, "--json")
    assert code == 0
    result = ScreeningResult.model_validate_json(out)
    assert len(result.timeline.windows) >= 4
    assert len(result.timeline.tracks.f0_hz) == pytest.approx(100 * result.recording.duration_s, abs=2)
    assert "jane" not in out


def test_a_result_is_explained_as_it_was_answered(run, result_json):
    code, out, err = run("explain", result_json)
    assert code == 0, err
    assert "Timeline:" in out
    again = run("explain", result_json, "--json")[1]
    assert ScreeningResult.model_validate_json(again) == ScreeningResult.model_validate_json(result_json.read_text())


@pytest.mark.parametrize(("ending", "begins"), [(".svg", b"<svg"), (".html", b"<!doctype html>"), (".pdf", b"%PDF")])
def test_a_picture_is_written_in_the_form_its_name_ends_in(run, result_json, tmp_path, ending, begins):
    path = tmp_path / f"out{ending}"
    code, _, err = run("explain", result_json, "-o", path)
    assert code == 0, err
    content = path.read_bytes()
    assert content.lower().startswith(begins.lower())
    assert b"jane" not in content
    first = content
    run("explain", result_json, "-o", path)
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", "picture.png"], r"\.svg, \.html, \.pdf"),
        (["-o", "picture"], r"\.svg, \.html, \.pdf"),
        (["-o", "no/such/folder/x.svg"], "folder"),
        (["--sex", "female"], "a result is explained as it was answered"),
        (["--interpretable"], "a result is explained as it was answered"),
        (["--prevalence", "0.2"], "a result is explained as it was answered"),
    ],
)
def test_wrong_usage_is_named(run, result_json, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = run("explain", result_json, *words)
    assert code == 2
    assert re.search(message, " ".join(err.split()))


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"{}", b'{"schema_id": "clinical-ser/result/1"}', b"not audio at all" * 50, b"\x00" * 100, b'{"a": ' * 5000],
    ids=["empty", "cut", "empty object", "another version", "junk", "zeros", "deep"],
)
def test_what_is_neither_recording_nor_result_is_refused_without_its_name(run, bundle, tmp_path, content):
    path = tmp_path / "jane-doe-1970.json"
    path.write_bytes(content)
    code, out, err = run("explain", path, "--model", bundle)
    assert code in {1, 2}
    assert "Traceback" not in err
    assert "jane" not in out + err


def test_a_file_that_is_not_there_is_said_without_its_name(run, tmp_path):
    code, _, err = run("explain", tmp_path / "jane-doe.wav")
    assert code == 1
    assert "jane" not in err


def test_a_truncated_result_is_refused(run, result_json, tmp_path):
    path = tmp_path / "cut.json"
    path.write_bytes(result_json.read_bytes()[:-100])
    code, _, err = run("explain", path)
    assert code == 2
    assert "ends early or is damaged" in " ".join(err.split())


@pytest.mark.parametrize("which", ["family", "probability", "status", "set"])
def test_a_result_that_contradicts_itself_is_refused(run, result_json, tmp_path, which):
    said = json.loads(result_json.read_text())
    if which == "family":
        said["explanation"]["families"][0]["probability"]["value"] += 0.001
    elif which == "probability":
        said["probability"].update(value=0.9, interval=said["probability"]["interval"] | {"high": 0.95})
    elif which == "status":
        said["status"] = "flagged" if said["status"] == "not_flagged" else "not_flagged"
    else:
        said.update(status="flagged", prediction_set=["not_depressed"])
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(said))
    code, _, err = run("explain", path)
    assert code == 2
    assert "contradict each other" in " ".join(err.split())


def test_a_result_from_a_file_is_said_to_be_vouched_for_by_nothing(run, result_json, bundle, speech_wav):
    assert "nothing vouches for" in run("explain", result_json)[1]
    assert "nothing vouches for" not in run("explain", speech_wav, "--model", bundle)[1]


def test_a_line_of_several_results_and_an_older_one_are_called_what_they_are(run, result_json, tmp_path):
    several, older = tmp_path / "several.json", tmp_path / "older.json"
    result = json.loads(result_json.read_text())
    several.write_text("".join(json.dumps({"position": i, "result": result}) + "\n" for i in (1, 2)))
    older.write_text(json.dumps(result | {"schema_id": "clinical-ser/result/1"}))
    assert "under `result`" in " ".join(run("explain", several)[2].split())
    assert "another version" in " ".join(run("explain", older)[2].split())


def test_an_unusable_recording_gets_advice_a_document_and_no_score(run, bundle, tmp_path):
    path = tmp_path / "hush.wav"
    soundfile.write(path, np.zeros(SAMPLE_RATE_HZ * 20, np.float32), SAMPLE_RATE_HZ)
    out_path = tmp_path / "hush.html"
    code, out, _ = run("explain", path, "--model", bundle, "-o", out_path)
    assert code == 3
    assert "not usable" in out
    assert "not usable" in out_path.read_text().lower()
    code, _, err = run("explain", path, "--model", bundle, "-o", tmp_path / "hush.svg")
    assert code == 3
    assert "No picture" in err
    assert not (tmp_path / "hush.svg").exists()


def test_screen_gives_a_timeline_when_asked_and_none_else(run, bundle, speech_wav):
    with_it = json.loads(run("screen", speech_wav, "--model", bundle, "--timeline", "--json")[1])
    without = json.loads(run("screen", speech_wav, "--model", bundle, "--json")[1])
    assert with_it["timeline"]["windows"]
    assert without["timeline"] is None
    assert {**with_it, "timeline": None} == without


def test_task_and_device_reach_the_result(run, bundle, speech_wav):
    result = json.loads(run("screen", speech_wav, "--model", bundle, "--task", "interview", "--device", "tablet", "--json")[1])
    assert (result["context"]["task"], result["context"]["device"]) == ("interview", "tablet")
    assert result["explanation"]["reference"]["unmatched"] == ["task", "device"]


def test_a_model_whose_encoder_is_not_here_can_be_asked_without_its_embedding(run, pattern_bundle, speech_wav):
    code, _, err = run("screen", speech_wav, "--model", pattern_bundle)
    assert code == 1
    assert "encoder 'test', which is not installed" in " ".join(err.split())
    code, out, err = run("screen", speech_wav, "--model", pattern_bundle, "--interpretable", "--json")
    assert code == 0, err
    result = ScreeningResult.model_validate_json(out)
    assert result.model.without_embedding
    assert result.answers == ()
    assert "embedding" not in {family.family for family in result.explanation.families}


def test_interpretable_makes_no_difference_to_a_model_that_is(run, bundle, speech_wav):
    plain, asked = (run("screen", speech_wav, "--model", bundle, "--json", *more)[1] for more in ((), ("--interpretable",)))
    assert plain == asked


def test_rerecording_is_measured_and_put_into_the_card(run, bundle, speech_wav, tmp_path):
    samples, rate = soundfile.read(speech_wav)
    rows = ["path,subject,sex,age"]
    for i in range(6):
        soundfile.write(tmp_path / f"jane-{i}.wav", np.roll(samples, i * 4000) * (1 - 0.05 * i), rate)
        rows.append(f"jane-{i}.wav,s{i},female,{40 + i}")
    (tmp_path / "manifest.csv").write_text("\n".join(rows) + "\n")
    code, out, err = run("model", "rerecord", bundle, tmp_path / "manifest.csv", "-o", tmp_path / "again")
    assert code == 0, err
    assert "jane" not in out + err
    card = Card.from_json(read_bundle(tmp_path / "again").files["card.json"])
    assert [one.change for one in card.rerecorded] == ["6 dB softer", "with white noise 30 dB below it", "started 0.5 s later"]
    for one in card.rerecorded:
        assert one.probability.recordings + one.refused == 6
        assert 0 <= one.same_first.value <= 1
    text = run("model", "card", tmp_path / "again", "--markdown")[1]
    assert "6 dB softer" in text


def test_rerecording_too_few_is_refused(run, bundle, speech_wav, tmp_path):
    (tmp_path / "manifest.csv").write_text(f"path,subject\n{speech_wav},s1\n")
    code, _, err = run("model", "rerecord", bundle, tmp_path / "manifest.csv", "-o", tmp_path / "again")
    assert code == 1
    assert "at least 5" in err
    assert not (tmp_path / "again").exists()


def test_names_in_a_result_are_shown_and_never_obeyed(run, result_json, tmp_path):
    """A result may come from anyone: markup and terminal codes in it are text."""
    said = json.loads(result_json.read_text())
    for where in (said["model"], said["explanation"]["families"][0]):
        for key in ("name", "version", "family", "label_en"):
            if key in where:
                where[key] = "a[/b]\x1b[31m"
    said["intended_use"] = "[bold]x[/nothing]"
    path = tmp_path / "hostile.json"
    path.write_text(json.dumps(said))
    code, out, err = run("explain", path)
    assert code == 0, err
    assert "a[/b]" in out
    assert "\x1b[31m" not in out


def test_times_count_from_the_start_of_the_file(run, bundle, speech_wav):
    """Who opens the file at the time that is named hears the window that is meant."""
    _, out, err = run("explain", speech_wav, "--model", bundle, "--start", 3, "--json")
    timeline = json.loads(out)["timeline"]
    assert timeline["offset_s"] == 3, err
    assert timeline["windows"][0]["start_s"] == 0


def test_a_class_that_the_model_does_not_explain_is_refused(run, bundle, speech_wav):
    code, _, err = run("explain", speech_wav, "--model", bundle, "--class", "not_depressed")
    assert code == 2
    assert "depressed" in err


def test_any_class_of_several_can_be_explained(run, tmp_path):
    visit = simulate_visits(tmp_path)[0].path
    code, out, err = run("explain", visit, "--model", "emotion-emodb", "--class", "sadness", "--json")
    assert code == 0, err
    result = ScreeningResult.model_validate_json(out)
    assert result.explanation.target == result.timeline.target == "sadness"
    stated = {one.label: one.value for one in result.classes}
    assert result.explanation.probability == pytest.approx(stated["sadness"], abs=1e-6)
