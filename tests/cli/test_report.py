"""`clinical-ser report` as a user types it: results in files or lines, the clinician's reports on them, and everything that is no result."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from base64 import b64decode
from io import BytesIO
from re import search

import numpy as np
import pytest
import soundfile

from clinical_ser.audio.recording import SAMPLE_RATE_HZ
from clinical_ser.cli import report as command
from clinical_ser.cli.reporting import write
from clinical_ser.features.workers import Lost
from clinical_ser.screening.result import SCHEMA, ScreeningResult, Status
from clinical_ser.screening.screener import Screener

SITE = 'name = "Clinic of Testing"\nlanguage = "en"\n\n[[contacts]]\nname = "Ward 7"\nphone = "555 0100"\n'


@pytest.fixture(scope="module")
def told(bundle, speech_wav):
    """A result with a timeline."""
    return Screener.load(bundle).screen(speech_wav, sex="female", timeline=True)


@pytest.fixture
def result_json(told, tmp_path):
    path = tmp_path / "jane-doe.json"
    path.write_text(told.model_dump_json(), encoding="utf-8")
    return path


@pytest.fixture
def site_toml(tmp_path):
    path = tmp_path / "our-site.toml"
    path.write_text(SITE, encoding="utf-8")
    return path


def varied(told, number):
    """Another recording's result, which is as good."""
    return told.model_copy(update={"recording": told.recording.model_copy(update={"sha256": f"{number:064x}"})})


def lines(told, numbers):
    return "".join(json.dumps({"position": n, "result": varied(told, n).model_dump(mode="json")}) + "\n" for n in numbers)


def flat(text):
    return " ".join(text.split())


def names(told, numbers, ending=".pdf"):
    return {f"{varied(told, n).digest[:12]}{ending}" for n in numbers}


def written(folder):
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def is_whole(path):
    content = path.read_bytes()
    return content.startswith(b"%PDF") and content.rstrip().endswith(b"%%EOF")


# --- One result ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "begins"), [("out.html", b"<!doctype html>"), ("out.pdf", b"%PDF"), ("OUT.PDF", b"%PDF")])
def test_a_report_is_written_in_the_form_its_name_ends_in_for_its_owner_only(run, result_json, tmp_path, name, begins):
    path = tmp_path / name
    path.write_text("what was there")
    path.chmod(0o644)
    code, out, err = run("report", result_json, "-o", path)
    assert code == 0, err
    assert path.read_bytes().lower().startswith(begins.lower())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert f"1 report written: {path}." in out
    assert "nothing vouches for" in out
    assert b"jane" not in path.read_bytes()
    assert {file.name for file in tmp_path.iterdir()} == {"jane-doe.json", name}, "nothing unfinished is left"


def test_one_result_into_a_folder_gets_a_name_that_says_nothing_of_its_source(run, told, result_json, tmp_path):
    code, out, err = run("report", result_json, "-o", tmp_path / "new" / "folder", "--format", "html")
    assert code == 0, err
    assert written(tmp_path / "new" / "folder") == {f"{told.digest[:12]}.html"}
    assert "jane" not in (out + err).replace(str(tmp_path), "")


def test_a_report_of_an_unusable_recording_is_a_report_too(run, bundle, tmp_path):
    soundfile.write(tmp_path / "hush.wav", np.zeros(SAMPLE_RATE_HZ * 20, np.float32), SAMPLE_RATE_HZ)
    result = Screener.load(bundle).screen(tmp_path / "hush.wav")
    (tmp_path / "hush.json").write_text(result.model_dump_json())
    code, _, err = run("report", tmp_path / "hush.json", "-o", tmp_path / "hush.html")
    assert code == 0, err
    assert "Recording not usable" in (tmp_path / "hush.html").read_text()


def test_a_line_that_screen_printed_for_one_of_several_is_taken_from_a_json_file_too(run, told, tmp_path):
    (tmp_path / "line.json").write_text(lines(told, [1]))
    code, _, err = run("report", tmp_path / "line.json", "-o", tmp_path / "out.html")
    assert code == 0, err
    assert varied(told, 1).recording.sha256 in (tmp_path / "out.html").read_text()


BAD = {
    "empty": (b"", "nothing"),
    "blank": (b" \n\n", "nothing"),
    "cut": (b'{"schema_id": "' + SCHEMA.encode(), "ends early or is damaged"),
    "no result": (b"{}", "JSON that is no result"),
    "another version": (b'{"schema_id": "clinical-ser/result/1"}', "another version"),
    "a recording": (b"RIFF" + bytes(range(128, 256)), "no JSON"),
    "a list": (b"[1, 2]", "no JSON"),
    "binary behind a brace": (b"{\x00\xff" * 50, "ends early or is damaged"),
    "deep": (b'{"a": ' * 5000, "ends early or is damaged"),
    "of another version in a line": (b'{"position": 1, "result": {"schema_id": "clinical-ser/result/1"}}', "another version"),
    "cut line": (b'{"position": 1, "result": {"schema_id"', "ends early or is damaged"),
    "no object in a line": (b'{"position": 1, "result": 7}', "no JSON"),
    "a failure in a line": (b'{"position": 1, "error": "Bad value"}', "could not be screened"),
}


@pytest.mark.parametrize("which", BAD)
def test_what_is_no_result_is_named_and_nothing_is_written(run, tmp_path, which):
    content, message = BAD[which]
    path = tmp_path / "jane-doe-1970.json"
    path.write_bytes(content)
    code, out, err = run("report", path, "-o", tmp_path / "out.pdf")
    assert (code, out) == (2, "")
    assert err.startswith("Wrong usage: Bad value")
    assert err.count("\n") == 1
    assert message in err
    assert "jane" not in err
    assert not (tmp_path / "out.pdf").exists()


def test_a_result_that_contradicts_itself_is_refused(run, told, tmp_path):
    said = told.model_dump(mode="json")
    said["probability"].update(value=0.9, interval=said["probability"]["interval"] | {"high": 0.95})
    (tmp_path / "changed.json").write_text(json.dumps(said))
    code, _, err = run("report", tmp_path / "changed.json", "-o", tmp_path / "out.pdf")
    assert code == 2
    assert "contradict each other" in err


def test_a_file_that_is_too_large_or_not_there_is_said_without_its_name(run, tmp_path, monkeypatch):
    monkeypatch.setattr("clinical_ser.cli.reporting.LARGEST_RESULT_BYTES", 100)
    (tmp_path / "jane.json").write_bytes(b'{"a": "' + b"x" * 200)
    for path, message in ((tmp_path / "jane.json", "many megabytes"), (tmp_path / "jane-2.json", "cannot be read"), (tmp_path, "cannot be read")):
        code, _, err = run("report", path, "-o", tmp_path / "out.pdf")
        assert code == 2
        assert message in err
        assert str(tmp_path) not in err


# --- Site, language, earlier results, the recording itself ------------------------------------------------------------------------------------


def test_the_report_speaks_for_the_site_and_in_the_language(run, result_json, site_toml, tmp_path, monkeypatch):
    path = tmp_path / "out.html"
    assert run("report", result_json, "-o", path, "--site", site_toml, "--language", "zh")[0] == 0
    page = path.read_text()
    assert '<html lang="zh' in page
    assert "Clinic of Testing" in page
    assert "555 0100" in page
    assert run("report", result_json, "-o", path)[0] == 0
    assert "555 0100" not in path.read_text()
    monkeypatch.setenv("CLINICAL_SER_SITE", str(site_toml))
    assert run("report", result_json, "-o", path)[0] == 0
    assert "555 0100" in path.read_text()


def test_earlier_results_add_a_page(run, told, result_json, tmp_path):
    before = tmp_path / "before.json"
    before.write_text(varied(told, 1).model_dump_json())
    path = tmp_path / "out.html"
    code, _, err = run("report", result_json, "-o", path, "--earlier", before)
    assert code == 0, err
    with_it = path.read_text()
    run("report", result_json, "-o", path)
    assert "own earlier recordings (2 visits)" in with_it
    assert "own earlier recordings (2 visits)" not in path.read_text()


def embedded(page):
    """Read the sound that a page holds."""
    return soundfile.read(BytesIO(b64decode(search(r"data:audio/flac;base64,([A-Za-z0-9+/=]+)", page)[1])), dtype="float32")[0]


def test_the_recording_is_put_into_the_page_with_a_warning(run, told, result_json, speech_wav, tmp_path):
    path = tmp_path / "out.html"
    code, _, err = run("report", result_json, "-o", path, "--embed-audio", speech_wav)
    assert code == 0, err
    assert "holds the person's voice" in err
    assert len(embedded(path.read_text())) == round(told.recording.duration_s * SAMPLE_RATE_HZ)
    assert "jane" not in path.read_text()
    run("report", result_json, "-o", path)
    assert "data:audio" not in path.read_text()


@pytest.mark.parametrize("span", [(None, 20.0), (3.1, None), (2.345, 21.2)])
def test_of_a_part_that_was_screened_that_part_is_put_into_the_page(run, bundle, speech_wav, tmp_path, span):
    start, end = span
    result = Screener.load(bundle).screen(speech_wav, start=start, end=end, timeline=True)
    (tmp_path / "part.json").write_text(result.model_dump_json())
    code, _, err = run("report", tmp_path / "part.json", "-o", tmp_path / "out.html", "--embed-audio", speech_wav)
    assert code == 0, err
    assert len(embedded((tmp_path / "out.html").read_text())) == round(result.recording.duration_s * SAMPLE_RATE_HZ)


def test_another_recording_is_not_put_into_the_page(run, result_json, tmp_path):
    soundfile.write(tmp_path / "jane-2.wav", np.random.default_rng(0).normal(0, 0.1, SAMPLE_RATE_HZ), SAMPLE_RATE_HZ)
    code, _, err = run("report", result_json, "-o", tmp_path / "out.html", "--embed-audio", tmp_path / "jane-2.wav")
    assert code == 2
    assert "another recording" in err
    assert "jane" not in err
    assert not (tmp_path / "out.html").exists()


# --- Refused before the work ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.json", "-o", "out.docx"], "ends in .html or .pdf"),
        (["a.json", "-o", "jane-file/out.pdf"], "cannot be written"),
        (["a.json", "-o", "no/such/jane/out.pdf"], "cannot be written"),
        (["a.json", "-o", "jane-file"], "cannot be written"),
        (["a.json", "b.json", "-o", "out.pdf"], "a folder, in which each"),
        (["a.jsonl", "-o", "out.html"], "a folder, in which each"),
        (["a.json", "-o", "out.pdf", "--format", "html"], "--format"),
        (["a.json", "-o", "out.pdf", "--format", "docx"], "html"),
        (["a.json", "-o", "out.pdf", "--language", "tlh"], "['en', 'zh']"),
        (["a.json", "-o", "out.pdf", "--embed-audio", "x.wav"], "one result and a report that ends in .html"),
        (["a.json", "b.json", "-o", "out", "--format", "html", "--embed-audio", "x.wav"], "one result"),
        (["a.json", "b.json", "-o", "out", "--earlier", "x.json"], "same person"),
        (["a.json"], "output"),
    ],
)
def test_wrong_usage_is_named_before_the_work(run, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("clinical_ser.cli.report.read_told", lambda *_, **__: pytest.fail("the work began"))
    (tmp_path / "jane-file").touch()
    code, out, err = run("report", *words)
    assert (code, out) == (2, "")
    assert message in flat(err)
    assert "jane" not in err
    assert not (tmp_path / "out").exists()


def test_a_site_that_cannot_be_used_is_found_before_the_work(run, result_json, tmp_path):
    (tmp_path / "bad.toml").write_text('nmae = "Clinic"\n')
    for path, message in ((tmp_path / "bad.toml", "nmae"), (tmp_path / "no-jane.toml", "site.toml")):
        code, _, err = run("report", result_json, "-o", tmp_path / "out.pdf", "--site", path)
        assert code == 1
        assert message in err
        assert "jane" not in err
        assert not (tmp_path / "out.pdf").exists()


@pytest.mark.parametrize(
    ("content", "message"), [(b"{}", "JSON that is no result"), (b"RIFF", "no JSON"), (b'{"schema_id": "clinical-ser/result/1"}', "another version")]
)
def test_an_earlier_result_that_is_none_is_named_by_its_place(run, told, result_json, tmp_path, content, message):
    (tmp_path / "sound.json").write_text(varied(told, 1).model_dump_json())
    (tmp_path / "jane.json").write_bytes(content)
    code, _, err = run("report", result_json, "-o", tmp_path / "o.pdf", "--earlier", tmp_path / "sound.json", "--earlier", tmp_path / "jane.json")
    assert code == 2
    assert "--earlier, no. 2" in err
    assert message in err
    assert "jane" not in err


def test_a_result_is_not_its_own_earlier_one(run, result_json, tmp_path):
    code, _, err = run("report", result_json, "-o", tmp_path / "o.pdf", "--earlier", result_json)
    assert code == 2
    assert "one recording twice" in err


# --- Many results -----------------------------------------------------------------------------------------------------------------------------


def test_several_files_and_lines_of_either_kind_go_into_a_folder_under_names_of_their_own(run, told, tmp_path):
    (tmp_path / "jane-1.json").write_text(varied(told, 1).model_dump_json(indent=2))
    (tmp_path / "jane-2.jsonl").write_text(lines(told, [2, 3]) + "\n  \n" + varied(told, 4).model_dump_json())
    code, out, err = run("report", tmp_path / "jane-1.json", tmp_path / "jane-2.jsonl", "-o", tmp_path / "out")
    assert code == 0, err
    assert written(tmp_path / "out") == names(told, [1, 2, 3, 4])
    assert all(is_whole(path) and stat.S_IMODE(path.stat().st_mode) == 0o600 for path in (tmp_path / "out").iterdir())
    assert "4 reports written" in out
    assert "nothing vouches for" in out
    assert "jane" not in out + err


def test_lines_that_are_no_results_are_named_by_position_and_the_others_go_on(run, told, tmp_path):
    bad = [content for content, _ in BAD.values() if content.strip()]
    (tmp_path / "jane.jsonl").write_bytes(lines(told, [1]).encode() + b"\n".join(bad) + b"\n" + lines(told, [2]).encode())
    words = ("report", tmp_path / "jane.jsonl", tmp_path / "jane-is-not-here.json", tmp_path / "nor-here.jsonl", "-o", tmp_path / "out")
    code, out, err = run(*words)
    assert code == 1
    assert "2 reports written" in out
    assert written(tmp_path / "out") == names(told, [1, 2])
    assert "jane" not in out + err
    assert [line for line in err.splitlines() if line.startswith("Result")] == [line for line in err.splitlines() if "Bad value" in line]
    assert "And: 3 more" in err

    told_json = json.loads(run(*words, "--json")[1])
    assert told_json["written"] == 2
    assert [one["position"] for one in told_json["failed"]] == [*range(2, len(bad) + 2), len(bad) + 3, len(bad) + 4]
    reasons = [one["reason"] for one in told_json["failed"]]
    messages = [message for content, message in BAD.values() if content.strip()] + ["cannot be read"] * 2
    assert all(message in reason for message, reason in zip(messages, reasons, strict=True))


def test_a_batch_without_any_report_fails_and_says_why(run, tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n")
    code, out, err = run("report", tmp_path / "a.jsonl", "-o", tmp_path / "out")
    assert (code, out) == (1, "")
    assert "Result 1: Bad value" in err
    (tmp_path / "a.jsonl").write_text("\n\n")
    code, _, err = run("report", tmp_path / "a.jsonl", "-o", tmp_path / "out")
    assert code == 2
    assert "without a line" in err


def test_a_result_that_is_given_twice_is_written_once_and_that_is_said(run, told, tmp_path, monkeypatch):
    writes = []
    monkeypatch.setattr(command, "write", lambda content, path: (writes.append(path), write(content, path)))
    (tmp_path / "a.jsonl").write_text(lines(told, [1, 2, 1, 1]))
    code, out, _ = run("report", tmp_path / "a.jsonl", "-o", tmp_path / "out")
    assert code == 0
    assert "2 reports written" in out
    assert "2 of the results had been given before" in out
    assert len(writes) == 2
    assert written(tmp_path / "out") == names(told, [1, 2])


def test_a_batch_again_gives_the_same_bytes_whatever_the_number_of_processes(run, told, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "WORTH_PROCESSES", 2)
    (tmp_path / "a.jsonl").write_text(lines(told, range(6)) + "{}\n")
    found = []
    for folder, workers in (("one", 1), ("two", 2), ("two", 1)):
        code, out, err = run("report", tmp_path / "a.jsonl", "-o", tmp_path / folder, "--workers", workers, "--format", "html", "--json")
        assert code == 1, err
        assert (json.loads(out)["written"], json.loads(out)["failed"][0]["position"]) == (6, 7)
        found.append({path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()})
    assert found[0] == found[1] == found[2]
    assert set(found[0]) == names(told, range(6), ".html")


def test_a_report_that_ends_its_process_is_named_and_the_others_go_on(run, told, tmp_path, monkeypatch):
    def lost(make, places, *, workers, timeout_s):
        yield 0, Lost("measuring it ended the process twice (SIGKILL, as when memory runs out)")
        yield 1, make(places[1])

    monkeypatch.setattr(command, "WORTH_PROCESSES", 2)
    monkeypatch.setattr(command, "run_in_processes", lost)
    (tmp_path / "a.jsonl").write_text(lines(told, [1, 2]))
    code, out, err = run("report", tmp_path / "a.jsonl", "-o", tmp_path / "out", "--workers", 2)
    assert code == 1
    assert "1 report written" in out
    assert "Result 1: Making the report ended the process twice (SIGKILL" in err
    assert written(tmp_path / "out") == names(told, [2])


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_keeps_whole_files_and_says_how_many(told, tmp_path, workers):
    (tmp_path / "a.jsonl").write_text(lines(told, range(500)))
    out = tmp_path / "out"
    words = ["report", str(tmp_path / "a.jsonl"), "-o", str(out), "--workers", str(workers)]
    environment = os.environ | {"CLINICAL_SER_HOME": str(tmp_path)}
    started = [sys.executable, "-m", "clinical_ser", *words]
    with subprocess.Popen(started, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as begun:
        until = time.monotonic() + 90
        while len(list(out.glob("*.pdf"))) < 3 and time.monotonic() < until:
            time.sleep(0.02)
        begun.send_signal(signal.SIGINT)
        said, err = begun.communicate(timeout=60)
    assert (begun.returncode, said) == (130, "")
    assert "Traceback" not in err
    files = list(out.iterdir())
    assert 3 <= len(files) < 500
    assert f"{len(files)} of 500 reports were written, and are kept" in err
    assert all(map(is_whole, files))


# --- What a result says is shown, and never obeyed ------------------------------------------------------------------------------------------


def test_texts_of_a_result_neither_act_in_the_page_nor_on_the_terminal(run, told, tmp_path):
    said = json.loads(told.model_dump_json())
    said["model"]["name"] = said["context"]["device"] = "</p><script>alert(1)</script>[/b]\x1b[31m"
    (tmp_path / "hostile.json").write_text(json.dumps(said))
    code, out, err = run("report", tmp_path / "hostile.json", "-o", tmp_path / "out.html")
    assert code == 0, err
    assert "<script>alert" not in (tmp_path / "out.html").read_text()
    assert "\x1b" not in out + err


def test_an_answer_that_is_none_gets_a_report_without_a_number(run, told, tmp_path):
    unsure = told.model_copy(update={"status": Status.INDETERMINATE, "prediction_set": ("not_depressed", "depressed")})
    (tmp_path / "a.json").write_text(unsure.model_dump_json())
    assert ScreeningResult.model_validate_json((tmp_path / "a.json").read_text()) == unsure
    code, _, err = run("report", tmp_path / "a.json", "-o", tmp_path / "out.html")
    assert code == 0, err
    assert "Cannot tell" in (tmp_path / "out.html").read_text()


def test_other_commands_do_not_wait_for_the_reports_to_be_imported():
    code = "import sys, clinical_ser.cli; print([name for name in sys.modules if name.split('.')[0] in {'reports', 'typst', 'jinja2'}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
