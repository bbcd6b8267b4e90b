"""`clinical-ser screen` with a report, and what it says on the screen: the site's words, the day, earlier results, the recording inside."""

import json
import stat
from base64 import b64decode
from io import BytesIO
from re import search

import numpy as np
import pytest
import soundfile

from clinical_ser.audio.recording import SAMPLE_RATE_HZ
from clinical_ser.cli.explanation import status_words
from clinical_ser.cohorts.simulation import simulate_visits
from clinical_ser.errors import ReportError
from clinical_ser.screening.result import ScreeningResult, Status
from clinical_ser.screening.screener import Screener


@pytest.fixture
def hush(tmp_path):
    """A recording without a voice."""
    path = tmp_path / "jane-hush.wav"
    soundfile.write(path, np.zeros(SAMPLE_RATE_HZ * 20, np.float32), SAMPLE_RATE_HZ)
    return path


@pytest.fixture
def site_toml(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text('name = "Clinic of Testing"\nprevalence = 0.3\n\n[[contacts]]\nname = "Ward 7"\nphone = "555 0100"\n', encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def told(bundle, speech_wav):
    return Screener.load(bundle).screen(speech_wav, timeline=True)


def flat(text):
    return " ".join(text.split())


def read(text):
    return ScreeningResult.model_validate_json(text)


# --- Reports ------------------------------------------------------------------------------------------------------------------------------


def test_reports_are_written_in_both_forms_with_a_timeline_and_without_a_name(run, bundle, speech_wav, tmp_path):
    paths = [tmp_path / "out.pdf", tmp_path / "out.html"]
    code, out, err = run("screen", speech_wav, "--model", bundle, "--report", paths[0], "--report", paths[1])
    assert code == 0, err
    assert "Timeline:" in out
    assert all(f"Report: {path}." in out for path in paths)
    assert paths[0].read_bytes().startswith(b"%PDF")
    page = paths[1].read_text()
    assert "windows" in page
    assert "data:audio" not in page
    assert "jane" not in page + out + err
    assert b"jane" not in paths[0].read_bytes()
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in paths)


def test_reports_of_several_recordings_are_named_by_their_results(run, bundle, speech_wav, hush, tmp_path):
    code, out, err = run("screen", speech_wav, hush, "--model", bundle, "--report", tmp_path / "out", "--json")
    assert code == 3, err
    results = [read(json.dumps(json.loads(line)["result"])) for line in out.splitlines()]
    assert [result.status is Status.NOT_USABLE for result in results] == [False, True]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"{result.digest[:12]}.pdf" for result in results}


def test_one_recording_may_have_a_folder_for_its_report_too(run, bundle, hush, tmp_path):
    code, out, _ = run("screen", hush, "--model", bundle, "--report", tmp_path / "out", "--json")
    assert code == 3
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"{read(out).digest[:12]}.pdf"]


def test_an_unusable_recording_has_a_report_and_still_exits_3(run, bundle, hush, tmp_path):
    code, out, err = run("screen", hush, "--model", bundle, "--report", tmp_path / "out.html", "--embed-audio")
    assert code == 3
    assert "Recording not usable" in (tmp_path / "out.html").read_text()
    assert "data:audio" not in (tmp_path / "out.html").read_text()
    assert "No audio" in err
    assert "holds the person's voice" not in err
    assert "jane" not in out + err


def test_the_recording_as_it_was_screened_is_put_into_the_page_with_a_warning(run, bundle, speech_wav, tmp_path):
    words = ("--start", 2.5, "--end", 20.25, "--report", tmp_path / "out.html", "--report", tmp_path / "out.pdf", "--embed-audio", "--json")
    code, out, err = run("screen", speech_wav, "--model", bundle, *words)
    assert code == 0, err
    assert err.count("holds the person's voice") == 1
    page = (tmp_path / "out.html").read_text()
    held, rate = soundfile.read(BytesIO(b64decode(search(r"data:audio/flac;base64,([A-Za-z0-9+/=]+)", page)[1])))
    assert len(held) / rate == pytest.approx(read(out).recording.duration_s) == pytest.approx(17.75)
    assert read(out).timeline.offset_s == 2.5


def test_the_report_speaks_for_the_site_and_in_its_own_language(run, bundle, hush, site_toml, tmp_path):
    path = tmp_path / "out.html"
    about = ("--site", site_toml, "--report-language", "zh", "--spoken-language", "de")
    _, out, err = run("screen", hush, "--model", bundle, "--report", path, *about, "--json")
    page = path.read_text()
    assert '<html lang="zh' in page, err
    assert "Clinic of Testing" in page
    assert "555 0100" in page
    assert read(out).context.language == "de"


def test_earlier_results_add_a_page_to_the_report(run, bundle, speech_wav, told, tmp_path):
    earlier = told.model_copy(update={"recording": told.recording.model_copy(update={"sha256": "0" * 64})})
    (tmp_path / "earlier.json").write_text(earlier.model_dump_json())
    path = tmp_path / "out.html"
    code, _, err = run("screen", speech_wav, "--model", bundle, "--report", path, "--earlier", tmp_path / "earlier.json")
    assert code == 0, err
    assert "own earlier recordings (2 visits)" in path.read_text()


def test_what_cannot_be_compared_costs_the_report_and_not_the_result(run, bundle, speech_wav, told, tmp_path):
    (tmp_path / "itself.json").write_text(told.model_dump_json())
    code, out, err = run("screen", speech_wav, "--model", bundle, "--report", tmp_path / "o.pdf", "--earlier", tmp_path / "itself.json", "--json")
    assert code == 1
    assert read(out).recording == told.recording
    assert "No report, recording 1 of 1: " in err
    assert "one recording twice" in err
    assert not (tmp_path / "o.pdf").exists()


def test_a_report_that_cannot_be_made_costs_neither_the_result_nor_the_other_report(run, bundle, hush, tmp_path, monkeypatch):
    def no_font(*_, **__):
        raise ReportError("No font here has U+6291.")

    monkeypatch.setattr("reports.clinician.pdf_report", no_font)
    code, out, err = run("screen", hush, "--model", bundle, "--report", tmp_path / "out.pdf", "--report", tmp_path / "out.html")
    assert code == 1
    assert "recording not usable" in out
    assert "No font here has U+6291" in err
    assert (tmp_path / "out.html").exists()
    assert not (tmp_path / "out.pdf").exists()


# --- Refused before the work ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_model(monkeypatch):
    """Fail the test if a model is read: what is wrong has to be found before."""
    monkeypatch.setattr("clinical_ser.cli.screen.Screener.load", lambda *_, **__: pytest.fail("the work began"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--report", "out.docx"], "ends in .html or .pdf"),
        (["--report", "jane-file/out.pdf"], "cannot be written"),
        (["--report", "jane-file"], "cannot be written"),
        (["b.wav", "--report", "out.pdf"], "a folder, in which each"),
        (["b.wav", "--report", "out", "--earlier", "e.json"], "same person"),
        (["--report", "out.pdf", "--embed-audio"], "--report FILE.html too"),
        (["b.wav", "--report", "out", "--embed-audio"], "--report FILE.html too"),
        (["--embed-audio"], "--report FILE too"),
        (["--earlier", "e.json"], "--report FILE too"),
        (["--report-language", "zh"], "--report FILE too"),
        (["--report", "out.pdf", "--report-language", "tlh"], "['en', 'zh']"),
        (["--report", "out.pdf", "--earlier", "jane-file"], "--earlier, no. 1"),
        (["--recorded-on", "31.01.2026"], "%Y-%m-%d"),
    ],
)
def test_wrong_usage_is_named_before_the_work(run, no_model, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jane-file").touch()
    code, out, err = run("screen", "a.wav", *words)
    assert (code, out) == (2, "")
    assert message in flat(err)
    assert "jane" not in err
    assert not (tmp_path / "out").exists()


def test_a_site_that_cannot_be_used_is_found_before_the_work(run, no_model, tmp_path, monkeypatch):
    (tmp_path / "jane.toml").write_text('nmae = "Clinic"\n')
    code, _, err = run("screen", "a.wav", "--site", tmp_path / "jane.toml")
    assert code == 1
    assert "nmae" in err
    assert "jane" not in err
    monkeypatch.setenv("CLINICAL_SER_SITE", str(tmp_path / "jane.toml"))
    assert run("screen", "a.wav")[0] == 1, "an answer must not silently be stated for another share"


@pytest.mark.parametrize("words", [["--task", " "], ["--device", "a\nb"], ["--spoken-language", "x" * 1000], ["--sex", "unknown"]])
def test_what_is_said_of_the_person_is_checked_before_the_recording_is_read(run, bundle, tmp_path, monkeypatch, words):
    monkeypatch.setattr("clinical_ser.cli.screen.load", lambda *_, **__: pytest.fail("the work began"))
    assert run("screen", tmp_path / "a.wav", "--model", bundle, *words)[0] == 2


# --- What is said of the person, and of those who are screened ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "meant"), [("w", "female"), ("F", "female"), ("m", "male"), ("d", "other"), ("weiblich", "female"), ("other", "other")]
)
def test_sex_is_taken_as_manifests_have_it(run, bundle, hush, given, meant):
    assert read(run("screen", hush, "--model", bundle, "--sex", given, "--json")[1]).context.sex == meant
    assert read(run("explain", hush, "--model", bundle, "--sex", given, "--json")[1]).context.sex == meant


def test_day_and_language_of_the_recording_reach_the_result(run, bundle, hush):
    context = read(run("screen", hush, "--model", bundle, "--recorded-on", "2026-01-31", "--spoken-language", "zh", "--json")[1]).context
    assert (context.recorded_on.isoformat(), context.language) == ("2026-01-31", "zh")


def test_the_sites_share_of_positives_is_used_where_none_is_given(run, bundle, speech_wav, site_toml, monkeypatch):
    def stated(*words):
        return read(run("screen", speech_wav, "--model", bundle, "--json", *words)[1]).probability.prevalence

    assert stated() == pytest.approx(0.1)
    assert stated("--site", site_toml) == pytest.approx(0.3)
    assert stated("--site", site_toml, "--prevalence", 0.05) == pytest.approx(0.05)
    monkeypatch.setenv("CLINICAL_SER_SITE", str(site_toml))
    assert stated() == pytest.approx(0.3)


def test_the_sites_share_says_nothing_of_several_classes(run, site_toml, tmp_path):
    visit = simulate_visits(tmp_path)[0].path
    code, out, err = run("screen", visit, "--model", "emotion-emodb", "--site", site_toml, "--json")
    assert code == 0, err
    assert len(read(out).classes) > 2


# --- Words on the screen ----------------------------------------------------------------------------------------------------------------------


def test_the_screen_says_an_answer_and_a_check_in_the_words_of_the_report(run, bundle, told, hush, tmp_path):
    unsure = told.model_copy(update={"status": Status.INDETERMINATE, "prediction_set": ("not_depressed", "depressed")})
    (tmp_path / "unsure.json").write_text(unsure.model_dump_json())
    out = run("explain", tmp_path / "unsure.json")[1]
    assert " cannot tell " in out.splitlines()[1]
    assert "% cannot tell" in out
    assert "indeterminate" not in out
    assert "no answer" not in out
    out = run("screen", hush, "--model", bundle)[1]
    assert " recording not usable " in out.splitlines()[1]
    assert "fail: Speech 0 s." in out
    assert "fail: Level of speech -120 dBFS." in out


@pytest.mark.parametrize(
    ("status", "label", "words"),
    [("classified", "cold_anger", "most similar to: cold anger"), ("classified", "", "classified"), ("indeterminate", "depressed", "cannot tell")],
)
def test_an_answer_is_said_with_its_class_where_that_is_known(status, label, words):
    assert status_words(status, label) == words


def test_an_answer_of_several_classes_names_the_class(run, tmp_path):
    result = Screener.load("emotion-emodb").screen(simulate_visits(tmp_path)[0].path)
    chosen = result.probability.label
    (tmp_path / "a.json").write_text(result.model_copy(update={"status": Status.CLASSIFIED, "prediction_set": (chosen,)}).model_dump_json())
    assert f" most similar to: {chosen} " in run("explain", tmp_path / "a.json")[1].splitlines()[1]
