"""`clinical-ser encoder`: from a model to an installed encoder and out again."""

import json

import numpy as np
import pytest

from clinical_ser.cli import encoder as command
from clinical_ser.embeddings.encoder import EncoderSpec, Padding
from clinical_ser.embeddings.onnx import write_encoder
from clinical_ser.embeddings.registry import encoder_folder, list_encoders

SPEC = EncoderSpec(
    name="blocks", title="Means of blocks", frame_dim=160, frame_step_s=0.01, padding=Padding.NONE_NEEDED, licence="none", source="the tests"
)


def graph():
    """Samples in rows of 160."""
    pytest.importorskip("onnx")
    from clinical_ser.embeddings.graph import Graph

    made = Graph("blocks")
    rows = made.node("Unsqueeze", "samples", made.constant(np.array([1])))
    whole = made.node("Conv", rows, made.constant(np.eye(160)[:, None]), strides=[160])
    return made.finish(made.node("Transpose", whole, perm=[0, 2, 1]), 160)


@pytest.fixture
def exported(tmp_path):
    """Return an encoder's folder, as `encoder export` writes it."""
    folder = tmp_path / "jane_doe"
    write_encoder(folder, SPEC, graph(), replace=False)
    return folder


@pytest.fixture
def tiny(tmp_path):
    """Return the folder of a tiny WavLM."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests.embeddings.tiny_models import save

    return save("wavlm-layer", tmp_path / "tiny-wavlm")


def test_a_list_without_encoders_says_how_to_get_one(run):
    code, out, err = run("encoder", "list")
    assert (code, err) == (0, "")
    assert "encoder install ge2e" in out
    assert "Back ends: compare, " in out


def test_install_list_and_remove(run, exported):
    assert run("encoder", "install", "--from", exported)[0] == 0
    code, out, _ = run("encoder", "install", "other", "--from", exported)
    assert code == 0
    assert "Installed other, 160 dimensions" in out
    assert "who speaks" in out
    code, out, _ = run("encoder", "list")
    assert code == 0
    assert "blocks" in out
    assert "jane" not in out
    listing = json.loads(run("encoder", "list", "--json")[1])
    first = listing["encoders"][0]
    assert {key: first[key] for key in ("name", "dim", "frames_per_s", "licence", "identifies_speakers", "quantized", "problem")} == {
        "name": "blocks",
        "dim": 160,
        "frames_per_s": 100.0,
        "licence": "none",
        "identifies_speakers": True,
        "quantized": "none",
        "problem": None,
    }
    assert first["fingerprint"] == list_encoders()[0].fingerprint
    assert {backend["name"] for backend in listing["backends"]} >= {"compare", "transformers", "funasr"}
    assert run("encoder", "remove", "blocks")[:2] == (0, "Removed blocks.\n")
    assert [entry.name for entry in list_encoders()] == ["other"]


def test_a_damaged_encoder_is_listed_with_its_problem_and_can_be_removed(run, exported):
    run("encoder", "install", "--from", exported)
    (encoder_folder("blocks") / "encoder.json").write_text("{}")
    code, out, _ = run("encoder", "list", "--json")
    assert code == 0
    assert "not a description" in json.loads(out)["encoders"][0]["problem"]
    assert run("encoder", "remove", "blocks")[0] == 0
    assert not list_encoders()


@pytest.mark.parametrize("name", ["nobody", "../encoders", "", "/etc", "[red]x"])
def test_what_is_not_installed_cannot_be_removed(run, exported, name):
    run("encoder", "install", "--from", exported)
    code, out, err = run("encoder", "remove", name)
    assert (code, out) == (2, "")
    assert "blocks" in err
    assert list_encoders()


def test_a_folder_with_other_files_is_left_alone(run, exported):
    run("encoder", "install", "--from", exported)
    (encoder_folder("blocks") / "notes.txt").write_text("mine")
    code, _, err = run("encoder", "remove", "blocks")
    assert code == 1
    assert "left alone" in err
    assert list_encoders()


def test_export_writes_a_folder_that_can_be_installed(run, tiny, tmp_path):
    code, out, err = run("encoder", "export", f"transformers:{tiny}@1", "-o", tmp_path / "out", "--offline")
    assert code == 0, err
    assert "tiny-wavlm-layer1: 32 dimensions" in out
    assert "encoder install --from" in out
    assert run("encoder", "install", "small", "--from", tmp_path / "out")[0] == 0
    code, out, _ = run("encoder", "export", f"transformers:{tiny}@1", "-o", tmp_path / "out", "--replace", "--name", "again", "--json")
    report = json.loads(out)
    assert (code, report["name"], report["dim"], report["quantized"]) == (0, "again", 32, None)
    assert [one["seconds"] for one in report["parity"]] == [1.0, 3.0, 10.0]


def test_a_smaller_encoder_is_checked_and_says_what_was_not(run, tiny, tmp_path, speech_wav):
    reference = f"transformers:{tiny}@2"
    code, out, err = run("encoder", "export", reference, "-o", tmp_path / "out", "--quantize", "--unchecked", "--speech", speech_wav)
    assert code == 0, err
    assert "INT8 (dynamic)" in out
    assert "not checked" in out
    assert "jane" not in out + err
    code, _, err = run("encoder", "export", tmp_path / "out", "-o", tmp_path / "again", "--quantize", "--unchecked", "--speech", speech_wav)
    assert (code, "quantized already" in err) == (1, True)
    assert not (tmp_path / "again").exists()


def test_a_smaller_encoder_is_checked_on_labelled_speech(run, tiny, tmp_path, speech_wav, monkeypatch):
    from clinical_ser.embeddings.quantizing import UarLoss

    def loss(_before, _after, manifest, task, progress):
        return UarLoss(task=task.name, before=60, after=58, loss=2, low=0.5, high=3.5, level=0.95, subjects=3, recordings=len(manifest), left_out=0)

    monkeypatch.setattr("clinical_ser.evaluation.encoder_loss.uar_loss", loss)
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(f"path,subject,label\n{speech_wav},S1,sad\n")
    words = ("encoder", "export", f"transformers:{tiny}@1", "-o", tmp_path / "out", "--quantize", "--speech", speech_wav, "--check", manifest)
    code, _, err = run(*words)
    assert (code, "loses 2.0 points of UAR" in err) == (1, True)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("clinical_ser.embeddings.quantizing.MOST_UAR_LOSS", 2.0)
    code, out, _ = run(*words)
    assert code == 0
    assert "UAR 60.0 to 58.0: 2.0 points lost (95 % interval over subjects 0.5 to 3.5); 1 recordings" in out
    assert "not checked" not in out


def test_an_exported_graph_can_be_made_smaller_later(run, exported, tmp_path, speech_wav):
    pytest.importorskip("torch")
    code, out, err = run(
        "encoder", "export", exported, "-o", tmp_path / "out", "--quantize", "--unchecked", "--speech", speech_wav, "--name", "small"
    )
    assert code == 0, err
    assert "small: 160 dimensions" in out
    assert "INT8 (static)" in out


def test_speech_to_calibrate_with_is_simulated_where_none_is_given():
    made = command.simulated_speech()
    assert len(made) == 4
    assert all(recording.duration_s >= 10 for recording in made)
    assert len({recording.sha256 for recording in made}) == 4


@pytest.mark.parametrize(
    ("words", "expected", "message"),
    [
        (("transformers:microsoft/wavlm-large@12", "--offline"), 1, "nothing may be fetched"),
        (("transformers:./nowhere@12",), 1, "No model is there"),
        (("transformers:",), 2, "another form"),
        (("nothing",), 2, "installed"),
        (("compare",), 1, "no torch model"),
        (("compare", "--offline"), 2, "--offline"),
        (("compare", "--check", "m.csv"), 2, "without --quantize"),
        (("compare", "--quantize"), 2, "without --check MANIFEST"),
    ],
)
def test_what_cannot_be_exported(run, tmp_path, monkeypatch, words, expected, message):
    pytest.importorskip("transformers")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    code, out, err = run("encoder", "export", *words, "-o", tmp_path / "out")
    assert (code, out) == (expected, "")
    assert message in err
    assert "Traceback" not in err
    assert str(tmp_path) not in err
    assert not (tmp_path / "out").exists()


def test_costs_are_measured_in_a_process_of_their_own(run, exported):
    run("encoder", "install", "--from", exported)
    code, out, _ = run("encoder", "bench", "blocks", "nothing", "--seconds", 2, "--json")
    found = json.loads(out)
    blocks, nothing = found["benches"]
    assert (code, found["seconds"]) == (1, 2.0)
    assert (blocks["name"], blocks["dim"], blocks["quantized"], blocks["problem"]) == ("blocks", 160, "none", None)
    assert 0 < blocks["alone_ms"] < 1000
    assert 0 < blocks["batch_ms"] < 1000
    assert blocks["times_real_time"] == pytest.approx(1000 / blocks["alone_ms"])
    assert 0 < blocks["memory_mb"] < 2000
    assert blocks["size_mb"] == pytest.approx((encoder_folder("blocks") / "model.onnx").stat().st_size / 1e6)
    assert "installed" in nothing["problem"]
    assert nothing["alone_ms"] is None


def test_costs_as_a_table(run, exported, monkeypatch):
    from clinical_ser.embeddings.benching import measure

    monkeypatch.setattr("clinical_ser.embeddings.benching.bench", measure)
    run("encoder", "install", "--from", exported)
    code, out, err = run("encoder", "bench", "blocks", "[red]nothing", "--seconds", 1)
    assert code == 1
    assert "blocks" in out
    assert "CPU time for a second of speech" in out
    assert "[red]nothing" in err
