"""An encoder's folder: what is in it is what was written, or it is refused; and the same folder is opened once."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from clinical_ser.embeddings import Padding, find_encoder, list_encoders
from clinical_ser.embeddings.onnx import MODEL_FILE, SPEC_FILE, read_about, read_encoder, write_encoder
from clinical_ser.embeddings.registry import encoder_folder, list_backends
from clinical_ser.errors import EncoderError, InvalidValueError
from tests.embeddings.made import spec, speech, tiny_onnx


def test_an_encoder_is_read_as_it_was_written_and_opened_once(tmp_path):
    fingerprint = tiny_onnx(tmp_path / "tiny")
    encoder = read_encoder(tmp_path / "tiny")
    assert encoder.fingerprint == fingerprint
    assert read_encoder(tmp_path / "tiny") is encoder
    found = encoder.encode([speech(3.0)], frames=True)[0]
    assert found.utterance.shape == (6,)
    assert len(found.frames) == 300


def test_the_same_weights_make_the_same_bytes_and_others_another_fingerprint(tmp_path):
    first, again = tiny_onnx(tmp_path / "a"), tiny_onnx(tmp_path / "b")
    assert first == again
    assert (tmp_path / "a" / MODEL_FILE).read_bytes() == (tmp_path / "b" / MODEL_FILE).read_bytes()
    assert tiny_onnx(tmp_path / "c", seed=1) != first
    assert tiny_onnx(tmp_path / "d", raise_to_dbfs=-30.0) != first, "how an encoder hears is part of what it is"
    assert tiny_onnx(tmp_path / "e", title="Another name for people") == first


def test_batches_of_the_graph_agree_with_single_clips_to_1e5(tmp_path):
    tiny_onnx(tmp_path / "tiny")
    encoder = read_encoder(tmp_path / "tiny")
    recordings = [speech(seconds, seed=i) for i, seconds in enumerate((1.2, 4.0, 2.0, 15.0))]
    for recording, found in zip(recordings, encoder.encode(recordings), strict=True):
        np.testing.assert_allclose(encoder.encode([recording])[0].utterance, found.utterance, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (MODEL_FILE, lambda content: content[:-1] + bytes([content[-1] ^ 1])),
        (MODEL_FILE, lambda content: content[: len(content) // 2]),
        (SPEC_FILE, lambda content: content.replace(b'"frame_dim": 3', b'"frame_dim": 4')),
        (SPEC_FILE, lambda content: content[:-20]),
        (SPEC_FILE, lambda content: content.replace(b"encoder/1", b"encoder/9")),
        (SPEC_FILE, lambda content: content.replace(b'"quantized"', b'"pickle": "x", "quantized"')),
        (SPEC_FILE, lambda content: b""),
        (SPEC_FILE, lambda content: content.replace(b'"min_s": 1.0', b'"min_s": 0.1')),
    ],
)
def test_a_folder_that_was_changed_is_refused_with_the_files_name_and_no_path(tmp_path, name, change):
    tiny_onnx(tmp_path / "tiny")
    path = tmp_path / "tiny" / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(EncoderError) as refused:
        read_encoder(tmp_path / "tiny").encode([speech(2.0)])
    assert str(tmp_path) not in str(refused.value)


def test_a_graph_that_is_changed_together_with_its_digest_is_still_another_encoder(tmp_path):
    before = tiny_onnx(tmp_path / "tiny")
    assert tiny_onnx(tmp_path / "tiny", seed=2) != before
    assert read_encoder(tmp_path / "tiny").fingerprint != before


def test_bytes_that_are_no_graph_and_graphs_of_another_shape_are_not_written(tmp_path):
    with pytest.raises(EncoderError, match="cannot read it"):
        write_encoder(tmp_path / "no", spec(), b"not a graph", replace=False)
    tiny_onnx(tmp_path / "tiny")
    model = (tmp_path / "tiny" / MODEL_FILE).read_bytes()
    with pytest.raises(EncoderError, match=r"frames of shape \(201, 3\)"):
        write_encoder(tmp_path / "no", spec(frame_dim=7), model, replace=False)
    with pytest.raises(EncoderError, match="its description says about"):
        write_encoder(tmp_path / "no", spec(frame_dim=3, frame_step_s=0.02), model, replace=False)
    with pytest.raises(EncoderError, match=r"its inputs are \['samples'\], expected \['lengths', 'samples'\]"):
        write_encoder(tmp_path / "no", spec(frame_dim=3, padding=Padding.MASK), model, replace=False)
    assert not (tmp_path / "no").exists()


def test_nothing_leaves_and_nothing_is_queued_to_leave(tmp_path):
    """ONNX Runtime would write a device's number and a queue of events into the user's cache folder."""
    tiny_onnx(tmp_path / "tiny")
    home = tmp_path / "someone"
    home.mkdir()
    code = (
        "import sys, numpy as np; from clinical_ser.embeddings import find_encoder; find_encoder(sys.argv[1]).run(np.zeros((1, 16000), 'f4'), None)"
    )
    clean = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "tiny")], env=clean, check=True)
    assert list(home.rglob("*")) == []


def test_a_graph_cannot_send_onnx_runtime_to_another_file(tmp_path, monkeypatch):
    onnx = pytest.importorskip("onnx")
    tiny_onnx(tmp_path / "tiny")
    model = onnx.load(tmp_path / "tiny" / MODEL_FILE)
    monkeypatch.chdir(tmp_path)
    onnx.save(model, tmp_path / "outside.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").exists()
    with pytest.raises(EncoderError, match="cannot read it"):
        write_encoder(tmp_path / "no", read_about(tmp_path / "tiny").spec, (tmp_path / "outside.onnx").read_bytes(), replace=False)


def test_links_and_pipes_are_not_followed(tmp_path):
    tiny_onnx(tmp_path / "tiny")
    model = tmp_path / "tiny" / MODEL_FILE
    model.rename(tmp_path / "elsewhere")
    model.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EncoderError, match=f"{MODEL_FILE}: cannot be read"):
        read_encoder(tmp_path / "tiny")
    model.unlink()
    os.mkfifo(model)
    with pytest.raises(EncoderError, match="not a plain file"):
        read_encoder(tmp_path / "tiny")


def test_an_encoder_that_is_there_is_replaced_only_when_that_is_said(tmp_path):
    tiny_onnx(tmp_path / "tiny")
    model = (tmp_path / "tiny" / MODEL_FILE).read_bytes()
    about = read_about(tmp_path / "tiny").spec
    with pytest.raises(EncoderError, match="is there already"):
        write_encoder(tmp_path / "tiny", about, model, replace=False)
    (tmp_path / "tiny" / "letters").write_text("mine")
    with pytest.raises(EncoderError, match="holds other files"):
        write_encoder(tmp_path / "tiny", about, model, replace=True)


def test_encoders_are_found_by_name_by_path_and_by_back_end(tmp_path):
    tiny_onnx(encoder_folder("tiny"))
    assert find_encoder("tiny").spec.name == "tiny"
    tiny_onnx(tmp_path / "other", name="other")
    assert find_encoder(str(tmp_path / "other")).spec.name == "other"
    assert find_encoder("compare").spec.dim == 6373
    assert {"compare", "transformers", "funasr"} <= set(list_backends())
    assert [entry.name for entry in list_encoders()] == ["tiny"]


def test_what_cannot_be_found_says_what_there_is_without_quoting_a_path(tmp_path):
    with pytest.raises(InvalidValueError, match="encoder install ge2e"):
        find_encoder("ge2e")
    with pytest.raises(EncoderError, match="No encoder is there") as refused:
        find_encoder(str(tmp_path / "nobody" / "jane-doe"))
    assert "jane" not in str(refused.value)
    with pytest.raises(InvalidValueError, match="BACKEND:ARGUMENT"):
        find_encoder("../..:x\n"[3:])
    with pytest.raises(InvalidValueError, match="argument of encoder 'compare'"):
        find_encoder("compare:x")


def test_a_broken_encoder_is_listed_with_its_reason(tmp_path):
    tiny_onnx(encoder_folder("tiny"))
    tiny_onnx(encoder_folder("wrong"), name="right")
    path = encoder_folder("tiny") / SPEC_FILE
    content = json.loads(path.read_text())
    content["spec"]["frame_dim"] = 0
    path.write_text(json.dumps(content))
    problems = {entry.name: entry.problem for entry in list_encoders()}
    assert "frame_dim" in problems["tiny"]
    assert "'right'" in problems["wrong"]
