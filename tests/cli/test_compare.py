"""`clinical-ser compare` as a user types it: recordings or results of one person, in order."""

import json
import re

import numpy as np
import pytest
import soundfile

from clinical_ser.audio.recording import SAMPLE_RATE_HZ
from clinical_ser.cohorts.table import write_table
from clinical_ser.monitoring.comparison import Comparison, compare
from clinical_ser.screening.result import ScreeningResult
from clinical_ser.screening.screener import Screener
from tests.tables import table_of


@pytest.fixture(scope="module")
def visits(speech_wav, tmp_path_factory):
    """Three recordings of one voice, the last much softer."""
    samples, rate = soundfile.read(speech_wav)
    folder = tmp_path_factory.mktemp("visits")
    paths = [folder / f"jane-doe-{number}.wav" for number in range(3)]
    for path, shift, gain in zip(paths, (0, 4000, 9000), (1.0, 0.95, 0.25), strict=True):
        soundfile.write(path, gain * np.roll(samples, shift), rate, subtype="PCM_16")
    return paths


@pytest.fixture
def known(run, bundle, tmp_path):
    """The model, with a card that says how well it repeats."""
    write_table(table_of(40, rows_each=2, seed=4), tmp_path / "again.parquet")
    code, _, err = run("model", "retest", bundle, tmp_path / "again.parquet", "-o", tmp_path / "known", "--setting", "a week apart")
    assert code == 0, err
    return tmp_path / "known"


@pytest.fixture(scope="module")
def results(bundle, visits, tmp_path_factory):
    """The visits as results in files, by a model that nobody measured again."""
    screener, folder = Screener.load(bundle), tmp_path_factory.mktemp("results")
    for number, path in enumerate(visits):
        answered = screener.screen(path, sex="female", device="tablet", language="de", task="interview")
        (folder / f"{number}.json").write_text(answered.model_dump_json(), encoding="utf-8")
    return [folder / f"{number}.json" for number in range(3)]


def flat(text):
    return " ".join(text.split())


def read(path):
    return ScreeningResult.model_validate_json(path.read_bytes())


def test_recordings_are_screened_and_compared_with_verdicts(run, known, visits):
    code, out, err = run("compare", *visits, "--model", known, "--sex", "female", "--device", "tablet")
    assert code == 0, err
    assert "jane" not in out + err
    for words in (
        "Score",
        "before",
        "stays within",
        "a week apart",
        "nothing checks that they are",
        "3 of 3 visits: language not stated",
        "by chance",
    ):
        assert words in flat(out)
    assert "device not stated" not in out
    assert re.search(r"(higher|lower|within) *$", out, re.MULTILINE)


def test_json_is_the_comparison_of_the_results(run, results):
    code, out, err = run("compare", *results, "--json")
    assert code == 0, err
    assert Comparison.model_validate_json(out) == compare(read(results[2]), [read(results[0]), read(results[1])])


def test_without_a_retest_values_are_shown_and_why_nothing_is_concluded(run, results):
    _, out, _ = run("compare", *results)
    assert "Unknown, how well it repeats is not known: Score" in flat(out)
    assert "nothing vouches for" in out
    assert "by chance" not in out


def test_results_and_recordings_go_together(run, bundle, results, visits):
    about = ("--sex", "female", "--device", "tablet", "--spoken-language", "de", "--task", "interview")
    mixed = run("compare", results[0], visits[1], results[2], "--model", bundle, *about, "--json")
    assert json.loads(mixed[1]) == json.loads(run("compare", *results, "--json")[1])


def test_a_visit_of_another_model_is_left_out_in_words(run, known, results, visits):
    options = ("--model", known, "--device", "tablet", "--spoken-language", "de", "--task", "interview")
    out = flat(run("compare", results[0], visits[1], visits[2], *options)[1])
    assert "Left out of the comparison, another model: visit 1" in out
    assert "1 of 2 earlier visits: model differs from now" in out


@pytest.mark.parametrize(
    ("take", "words", "message"),
    [
        (1, [], "2 to 200"),
        (2, ["--sex", "female"], "results alone"),
        (2, ["--model", "voice"], "results alone"),
        (2, ["--report", "out.svg"], r"\.html or \.pdf"),
        (2, ["--report", "no/such/folder/out.pdf"], "folder"),
    ],
    ids=["one visit", "sex of results", "model of results", "report's form", "report's folder"],
)
def test_wrong_usage_is_named(run, results, tmp_path, monkeypatch, take, words, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = run("compare", *results[:take], *words)
    assert code == 2
    assert re.search(message, flat(err))


def test_one_recording_twice_is_refused(run, results):
    code, _, err = run("compare", results[0], results[0])
    assert code == 2
    assert "twice" in err


@pytest.mark.parametrize(("content", "expected"), [(b'{"schema_id": "clinical-ser/result/1"}', 2), (b"not audio at all" * 50, 1), (None, 1)])
def test_a_visit_that_cannot_be_read_is_named_by_its_place(run, bundle, visits, tmp_path, content, expected):
    path = tmp_path / "jane-doe.json"
    if content is not None:
        path.write_bytes(content)
    code, out, err = run("compare", visits[0], path, "--model", bundle)
    assert code == expected
    assert "Visit 2 of 2" in err
    assert "jane" not in out + err


def test_an_unusable_current_recording_is_told_by_the_exit_code(run, bundle, visits, tmp_path):
    hush = tmp_path / "hush.wav"
    soundfile.write(hush, np.zeros(SAMPLE_RATE_HZ * 20, np.float32), SAMPLE_RATE_HZ)
    code, out, _ = run("compare", visits[0], hush, "--model", bundle)
    assert code == 3
    assert "not usable" in out
    assert run("compare", hush, visits[0], "--model", bundle)[0] == 0


def test_words_of_a_result_are_shown_and_never_obeyed(run, results, tmp_path):
    said = json.loads(results[2].read_text())
    said["context"]["device"] = "a[/b]\x1b[31m"
    said["measures"][0]["label_en"] = "[bold]x[/nothing]"
    path = tmp_path / "hostile.json"
    path.write_text(json.dumps(said))
    code, out, err = run("compare", results[0], path)
    assert code == 0, err
    assert "[/b]" in out
    assert "\x1b[31m" not in out
    assert "another device" in out


@pytest.mark.parametrize(("ending", "begins"), [(".html", b"<!doctype html>"), (".pdf", b"%PDF")])
def test_the_report_of_the_current_result_is_written_with_the_comparison(run, results, tmp_path, ending, begins):
    path = tmp_path / f"out{ending}"
    code, out, err = run("compare", *results, "--report", path)
    assert code == 0, err
    assert "Personal data" in out
    assert path.read_bytes().lower().startswith(begins.lower())
