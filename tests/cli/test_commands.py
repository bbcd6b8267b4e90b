"""The command line as a user types it: what it prints, and its exit codes (0 done, 1 failed, 2 wrong usage, 3 not usable)."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import soundfile

from clinical_ser.audio.recording import SAMPLE_RATE_HZ
from clinical_ser.cli import main
from clinical_ser.cohorts.table import read_table, write_table
from clinical_ser.models.bundle import read_bundle
from clinical_ser.screening import ScreeningResult
from tests import signals
from tests.tables import table_of


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process; returns (exit code, stdout, stderr)."""

    def typed(*words):
        monkeypatch.setattr(sys, "argv", ["clinical-ser", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return stopped.value.code or 0, out, err

    return typed


def test_screen_prints_status_probability_and_quality(run, bundle, speech_wav):
    code, out, err = run("screen", speech_wav, "--model", bundle, "--sex", "female", "--age", 54)
    assert code == 0, err
    for words in ("depressed:", "interval", "stated for a share of 10%", "Quality:", "percentile", "not depressed, female", "never a diagnosis"):
        assert words in out
    assert "jane" not in out + err


def test_screen_as_json_is_the_whole_result(run, bundle, speech_wav):
    code, out, _ = run("screen", speech_wav, "--model", bundle, "--json")
    assert code == 0
    assert ScreeningResult.model_validate_json(out).probability is not None


def test_several_recordings_as_json_are_one_line_each(run, bundle, speech_wav):
    code, out, _ = run("screen", speech_wav, speech_wav, "--model", bundle, "--json")
    first, second = (ScreeningResult.model_validate_json(line) for line in out.splitlines())
    assert (code, first) == (0, second)


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
    assert "auroc" in out
    assert "signing key" in err
    assert read_bundle(tmp_path / "mine").signature.state == "trusted"
    assert len(pd.read_parquet(tmp_path / "p.parquet")) == 60
    assert run(*words)[0] == 1, "a bundle that is there is not replaced unasked"
    assert run(*words, "--replace")[0] == 0
    assert run("model", "verify", tmp_path / "mine", "--trusted")[0] == 0
    assert "auroc" in run("model", "card", tmp_path / "mine")[1]
    assert json.loads(run("model", "card", tmp_path / "mine", "--json")[1])["figures"]["auroc"]["value"] is not None


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


def test_demo_runs_from_nothing_and_again_from_what_is_there(run, tmp_path):
    words = ("demo", "-o", tmp_path / "demo", "--subjects", 24, "--speech", 12)
    code, out, err = run(*words)
    assert code == 0, err
    results = {path.stem: ScreeningResult.model_validate_json(path.read_text()) for path in (tmp_path / "demo" / "visits").glob("*.json")}
    assert set(results) == {"high-risk", "low-risk", "unusable"}
    assert results["unusable"].status == "not_usable"
    assert results["high-risk"].probability.value > results["low-risk"].probability.value
    assert all("SIMULATED" in result.notices[0] for result in results.values())
    assert "simulated" in out
    assert run(*words)[0] == 0
