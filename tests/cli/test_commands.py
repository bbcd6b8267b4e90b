"""The command line as a user types it: what it prints, and its exit codes (0 done, 1 failed, 2 wrong usage, 3 not usable)."""

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import soundfile

from clinical_ser.audio.recording import SAMPLE_RATE_HZ
from clinical_ser.cli import demo
from clinical_ser.cli.console import output
from clinical_ser.cohorts.table import read_table, write_table
from clinical_ser.embeddings.registry import encoder_folder
from clinical_ser.models.bundle import ManifestFields, read_bundle, write_bundle
from clinical_ser.screening import ScreeningResult
from tests import signals
from tests.embeddings.made import tiny_onnx
from tests.tables import table_of


def test_screen_prints_status_probability_and_quality(run, bundle, speech_wav):
    code, out, err = run("screen", speech_wav, "--model", bundle, "--sex", "female", "--age", 54)
    assert code == 0, err
    for words in (
        "depressed:",
        "sampling error",
        "stated for a share of 10%",
        "Quality:",
        "percentile",
        "not depressed, female",
        "never a diagnosis",
    ):
        assert words in out
    assert "jane" not in out + err


def test_screen_as_json_is_the_whole_result(run, bundle, speech_wav):
    code, out, _ = run("screen", speech_wav, "--model", bundle, "--json")
    assert code == 0
    assert ScreeningResult.model_validate_json(out).probability is not None


def test_several_recordings_as_json_are_one_line_each(run, bundle, speech_wav):
    code, out, _ = run("screen", speech_wav, speech_wav, "--model", bundle, "--json")
    first, second = map(json.loads, out.splitlines())
    assert (code, first["position"], second["position"]) == (0, 1, 2)
    assert ScreeningResult.model_validate_json(json.dumps(first["result"])) == ScreeningResult.model_validate_json(json.dumps(second["result"]))


def test_an_unusable_recording_exits_3(run, bundle, tmp_path):
    soundfile.write(tmp_path / "hush.wav", np.zeros(SAMPLE_RATE_HZ * 20), SAMPLE_RATE_HZ)
    code, out, _ = run("screen", tmp_path / "hush.wav", "--model", bundle)
    assert code == 3
    assert "not usable" in out
    assert "No speech was found" in out


def test_one_bad_recording_of_several_is_named_by_place_and_the_others_go_on(run, bundle, speech_wav, tmp_path):
    (tmp_path / "jane.wav").write_bytes(b"")
    code, out, err = run("screen", tmp_path / "jane.wav", speech_wav, "--model", bundle)
    assert code == 1
    assert "Recording 1 of 2" in err
    assert "Recording 2 of 2" in out
    assert "jane" not in out + err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("screen", "a.wav", "--model", "nonsense"), "nonsense"),
        (("train", "t.parquet", "-o", "b", "--task", "astrology"), "depression"),
        (("cohort", "nonsense", ".", "-o", "m.csv"), "ravdess"),
        (("extract",), "manifest"),
        (("screen",), "audio"),
        (("dance",), "dance"),
    ],
)
def test_wrong_usage_exits_2_and_says_what_would_be_right(run, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_table(table_of(12), tmp_path / "t.parquet")
    code, out, err = run(*words)
    assert code == 2
    assert message in out + err


def test_a_missing_table_fails_with_one_line_and_no_traceback(run, tmp_path):
    code, _, err = run("train", tmp_path / "nothing.parquet", "-o", tmp_path / "b")
    assert code == 1
    assert "Traceback" not in err
    assert str(tmp_path) not in err


def test_train_writes_a_signed_trusted_bundle_and_predictions(run, tmp_path):
    write_table(table_of(60), tmp_path / "t.parquet")
    words = ("train", tmp_path / "t.parquet", "-o", tmp_path / "mine", "--predictions", tmp_path / "p.parquet")
    code, out, err = run(*words)
    assert code == 0, err
    assert "AUROC" in out
    assert "signing key" in err
    assert read_bundle(tmp_path / "mine").signature.state == "trusted"
    assert len(pd.read_parquet(tmp_path / "p.parquet")) == 60
    assert run(*words)[0] == 1, "a bundle that is there is not replaced unasked"
    assert run(*words, "--replace")[0] == 0
    assert run("model", "verify", tmp_path / "mine", "--trusted")[0] == 0
    assert "AUROC" in run("model", "card", tmp_path / "mine")[1]
    assert json.loads(run("model", "card", tmp_path / "mine", "--json")[1])["internal"]["figures"]["auroc"]["value"] is not None


def test_a_task_of_ones_own_comes_from_toml(run, tmp_path):
    table = table_of(60)
    table.frame["score"] = np.where(table.frame["label"] == "depressed", 15.0, 3.0)
    write_table(replace(table, frame=table.frame.drop(columns="label")), tmp_path / "t.parquet")
    (tmp_path / "task.toml").write_text(
        'name = "anxiety"\nkind = "binary"\nclasses = ["low", "high"]\nscore_name = "GAD-7"\nscore_cutoff = 10.0\n[limits]\nspeech_fail_s = 5.0\n'
    )
    code, out, err = run("train", tmp_path / "t.parquet", "-o", tmp_path / "m", "--task", tmp_path / "task.toml", "--no-sign")
    assert code == 0, err
    assert "high" in out
    assert read_bundle(tmp_path / "m").manifest.task.limits.speech_fail_s == 5.0
    (tmp_path / "task.toml").write_text('name = "anxiety"\nkind = "binary"\nclasses = ["low"]\n')
    code, _, err = run("train", tmp_path / "t.parquet", "-o", tmp_path / "n", "--task", tmp_path / "task.toml")
    assert code == 2
    assert "exactly two classes" in err


def test_extract_reports_bad_rows_by_number_and_goes_on(run, tmp_path):
    for name in ("a", "b"):
        made = signals.sentence(phrases=2, syllables=4)
        soundfile.write(tmp_path / f"{name}.wav", made.samples, SAMPLE_RATE_HZ)
    (tmp_path / "b.wav").write_bytes(b"RIFF")
    pd.DataFrame({"path": ["a.wav", "b.wav", "c.wav"], "subject": ["x", "y", "z"]}).to_csv(tmp_path / "m.csv", index=False)
    code, _, err = run("extract", tmp_path / "m.csv", "-o", tmp_path / "t.parquet", "--features", "timing", "--workers", 0)
    assert code == 0, err
    assert "Row 2" in err
    assert "Row 3" in err
    table = read_table(tmp_path / "t.parquet")
    assert len(table.frame) == 1
    assert [problem.row for problem in table.problems] == [2, 3]


def test_doctor_lists_versions_licences_and_codecs(run):
    code, out, _ = run("doctor", "--json")
    checks = {check["what"]: check for check in map(json.loads, out.splitlines())}
    assert "no commercial use" in checks["opensmile"]["finding"]
    assert "GPL-3.0" in checks["praat-parselmouth"]["finding"]
    assert checks["read M4A/AAC"]["ok"]
    assert checks["read WebM/Opus"]["ok"]
    assert code == (0 if all(check["ok"] for check in checks.values()) else 1)


def test_corpora_are_listed_with_licence(run):
    code, out, _ = run("cohort", "--list")
    assert code == 0
    assert "ravdess" in out
    assert "CC BY-NC-SA 4.0" in out


def test_the_program_starts_as_installed():
    done = subprocess.run([sys.executable, "-m", "clinical_ser", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip()


def test_demo_runs_from_nothing_and_again_from_what_is_there(run, tmp_path, monkeypatch):
    # The real encoder would come over the network.
    monkeypatch.setattr("clinical_ser.cli.demo.install", lambda _: tiny_onnx(encoder_folder("tiny")) and "tiny")
    words = ("demo", "-o", tmp_path / "demo", "--subjects", 24, "--speech", 12)
    code, out, err = run(*words)
    assert code == 0, err
    results = {path.stem: ScreeningResult.model_validate_json(path.read_text()) for path in (tmp_path / "demo" / "visits").glob("*.json")}
    assert set(results) == {"high-risk", "low-risk", "unusable"}
    assert results["unusable"].status == "not_usable"
    assert results["high-risk"].probability.value > results["low-risk"].probability.value
    assert all("SIMULATED" in result.notices[0] for result in results.values())
    assert "simulated" in out
    for name, result in results.items():
        assert result.recording.sha256 in (tmp_path / "demo" / "visits" / f"{name}.html").read_text()
        assert (tmp_path / "demo" / "visits" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert f" report {tmp_path}/demo/visits/high-risk.json -o report.pdf" in out
    assert "embedding" in {family.family for family in results["high-risk"].explanation.families}
    assert run(*words)[0] == 0


def test_without_the_encoders_weights_the_demo_goes_on_with_named_features(monkeypatch, capsys):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert demo._encoder() == ()
    assert "named features only" in capsys.readouterr().err


# What is refused before the work, and what the system refuses during it


@pytest.fixture
def no_training(monkeypatch):
    """Fail the test if a training begins: what is wrong has to be found before."""
    monkeypatch.setattr("clinical_ser.cli.train.train_model", lambda *_, **__: pytest.fail("training began"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seed", -1), "seed"),
        (("--seed", 99999999999), "seed"),
        (("--split", "²"), "split"),
        (("--split", 1), "split"),
        (("--coverage", 2), "coverage"),
        (("--coverage", "nan"), "coverage"),
        (("--name", "My Model"), "--name"),
        (("--name", ""), "--name"),
        (("--version", "v1"), "--version"),
        (("--predictions", "."), "--predictions"),
        (("--predictions", "jane-doe/p.parquet"), "--predictions"),
        (("--without", "astrology"), "without"),
    ],
)
def test_train_refuses_wrong_options_in_one_line(run, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_table(table_of(12), tmp_path / "t.parquet")
    code, out, err = run("train", "t.parquet", "-o", "m", "--no-sign", *options)
    assert (code, out) == (2, "")
    assert message in err
    assert err.replace("Training ...\n", "").strip().count("\n") == 0
    assert "jane" not in err
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("options", [("--seed", -1), ("--coverage", 2), ("--name", "A"), ("--version", "v1"), ("--predictions", ".")])
def test_train_refuses_before_it_learns(run, no_training, options, tmp_path):
    write_table(table_of(12), tmp_path / "t.parquet")
    assert run("train", tmp_path / "t.parquet", "-o", tmp_path / "m", *options)[0] == 2


def test_a_folder_that_cannot_name_a_model_asks_for_a_name(run, no_training, tmp_path):
    code, _, err = run("train", tmp_path / "t.parquet", "-o", tmp_path / "Jane Doe")
    assert code == 2
    assert "--name" in err
    assert "Jane" not in err


def test_a_bundle_in_the_way_is_found_before_training(run, no_training, bundle, tmp_path):
    code, _, err = run("train", tmp_path / "t.parquet", "-o", bundle)
    assert code == 1
    assert "--replace" in err


@pytest.mark.parametrize(
    "words",
    [
        ("extract", "m.csv", "-o", "nowhere/jane-doe/t.parquet"),
        ("extract", "m.csv", "-o", "jane-folder"),
        ("extract", "m.csv", "-o", "jane-file/t.parquet"),
        ("cohort", "ravdess", ".", "-o", "nowhere/jane-doe/m.csv"),
        ("cohort", "ravdess", ".", "-o", "jane-folder"),
        ("simulate", 2, "-o", "jane-file"),
        ("simulate", 2, "-o", "jane-file/below"),
        ("demo", "-o", "jane-file"),
        ("train", "t.parquet", "--name", "m", "-o", "jane-file/m"),
        ("train", "t.parquet", "-o", "m", "--predictions", "nowhere/jane-doe/p.parquet"),
    ],
)
def test_outputs_that_cannot_be_written_are_refused_before_the_work(run, no_training, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for work in ("cohort.read_manifest", "cohort.simulate_cohort", "demo.simulate"):
        monkeypatch.setattr(f"clinical_ser.cli.{work}", lambda *_, **__: pytest.fail("the work began"))
    (tmp_path / "jane-folder").mkdir()
    (tmp_path / "jane-file").touch()
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.startswith("Wrong usage: ")
    assert err.replace("Training ...\n", "").strip().count("\n") == 0
    assert "jane" not in err
    assert sorted(tmp_path.rglob("*")) == before


def test_what_the_system_refuses_during_the_work_is_one_line_without_a_path(run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "/home/jane/t.parquet")

    monkeypatch.setattr("clinical_ser.cli.cohort.read_manifest", full)
    code, _, err = run("extract", "m.csv", "-o", tmp_path / "t.parquet")
    assert code == 1
    assert err == "Failed: The system refused to read or write a file: No space left on device.\n"


def test_predictions_are_for_their_owner_only_and_rows_left_out_are_named(run, tmp_path):
    table = table_of(60)
    labels = table.frame["label"].astype(object)
    labels[:12], labels[20] = None, "sad"
    write_table(replace(table, frame=table.frame.assign(label=labels)), tmp_path / "t.parquet")
    code, _, err = run("train", tmp_path / "t.parquet", "-o", tmp_path / "m", "--no-sign", "--predictions", tmp_path / "p.parquet")
    assert code == 0, err
    assert stat.S_IMODE((tmp_path / "p.parquet").stat().st_mode) == 0o600
    assert len(pd.read_parquet(tmp_path / "p.parquet")) == 47
    assert [line for line in err.splitlines() if line.startswith("Row")] == [f"Row {n}: no label" for n in range(1, 11)]
    assert "And: 3 more rows" in err


# Models, doctor, and text from outside


def test_a_card_of_another_schema_fails_in_one_line(run, bundle, tmp_path):
    sound = read_bundle(bundle)
    fields = sound.manifest.model_dump(include=set(ManifestFields.model_fields))
    write_bundle(tmp_path / "m", ManifestFields(**fields), sound.files | {"card.json": b'{"schema_id":"clinical-ser/card/9"}'})
    code, out, err = run("model", "card", tmp_path / "m")
    assert (code, out) == (1, "")
    assert err.startswith("Failed: card.json")
    assert err.replace("Training ...\n", "").strip().count("\n") == 0


def test_models_are_listed_with_their_whole_name_on_a_narrow_terminal(run, bundle, tmp_path, monkeypatch):
    name = "depression-simulated-with-a-long-name"
    shutil.copytree(bundle, tmp_path / "home" / "models" / name)
    monkeypatch.setattr(output, "_width", 80)
    code, out, _ = run("model", "list")
    assert code == 0
    assert name in out


@pytest.mark.parametrize("name", ["[/bold]x", ":skull:", "[red]y", "two\nlines", "\x1b[31mz", "ends in \\"])
def test_text_from_outside_is_shown_and_not_obeyed(run, name, tmp_path, monkeypatch):
    monkeypatch.setenv("CLINICAL_SER_HOME", str(tmp_path / name))
    monkeypatch.setattr(output, "_width", 500)
    code, out, err = run("doctor")
    assert code in {0, 1}, err
    assert name.encode("unicode_escape").decode().replace("\\\\", "\\") in out
    assert "\x1b" not in out
    code, out, err = run("screen", "a.wav", "--model", name)
    assert code in {1, 2}
    assert err.replace("Training ...\n", "").strip().count("\n") == 0


def test_doctor_finds_broken_keys_and_folders_and_goes_on(run, tmp_path):
    def wrong():
        code, out, err = run("doctor", "--json")
        assert (code, err) == (1, "")
        return {check["what"] for check in map(json.loads, out.splitlines()) if not check["ok"]}

    home = tmp_path / "home"
    home.touch()
    assert {"configuration folder", "model folder"} <= wrong()
    home.unlink()
    for folder, name in (("keys", "signing.pem"), ("trusted_keys", "jane.pub")):
        (home / folder).mkdir(parents=True)
        (home / folder / name).write_text("junk")
        (home / folder / name).chmod(0o600)
    assert wrong() == {"models", "signing key"}


def test_json_is_ascii_whatever_the_terminal(run, tmp_path, monkeypatch):
    monkeypatch.setenv("CLINICAL_SER_HOME", str(tmp_path / "Müller 抑郁"))
    _, out, _ = run("doctor", "--json")
    assert out.isascii()
    assert any("Müller 抑郁" in json.loads(line)["finding"] for line in out.splitlines())


def test_a_terminal_without_unicode_gets_escapes_and_no_traceback():
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "CLINICAL_SER_HOME": "/nowhere/Müller"}
    done = subprocess.run([sys.executable, "-m", "clinical_ser", "doctor"], capture_output=True, env=environment, check=False)
    assert b"Traceback" not in done.stderr
    assert b"M\\xfcller" in done.stdout


def test_ctrl_c_exits_130_and_what_was_begun_is_not_taken_for_finished(run, tmp_path):
    words = ["simulate", "40", "-o", str(tmp_path / "cohort"), "--speech-s", "5", "--workers", "1"]
    with subprocess.Popen([sys.executable, "-m", "clinical_ser", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as begun:
        until = time.monotonic() + 60
        while not list(tmp_path.glob("cohort/audio/*.flac")) and time.monotonic() < until:
            time.sleep(0.05)
        begun.send_signal(signal.SIGINT)
        out, err = begun.communicate(timeout=60)
    assert (begun.returncode, out) == (130, "")
    assert "Interrupted" in err
    assert "Traceback" not in err
    assert not (tmp_path / "cohort" / "manifest.csv").exists()
    recorded = list((tmp_path / "cohort" / "audio").iterdir())
    assert 0 < len(recorded) < 40
    assert all(path.suffix == ".flac" and soundfile.info(path).frames for path in recorded)
