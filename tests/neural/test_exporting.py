"""The exported graph answers as the network does, or is not written."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from clinical_ser.errors import EncoderError  # noqa: E402
from clinical_ser.neural.exporting import check_parity, export_onnx, graph_of  # noqa: E402
from tests.neural.test_networks import KINDS, network_of, noise  # noqa: E402


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_gives_the_networks_frames_at_any_length_and_batch(kind, tmp_path):
    network = network_of(KINDS[kind])
    network.normalise(torch.linspace(-9, -5, 16), torch.linspace(1, 2, 16))
    export_onnx(network, tmp_path / "encoder.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx")
    for windows, samples in ((1, 700), (3, 20_001), (2, 16_000)):
        given = noise(windows, samples)
        expected = network.frames(given).detach().numpy()
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(session.run(["frames"], {"samples": given.numpy()})[0], expected, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_names_its_ends_keeps_both_axes_free_and_carries_nothing_else(kind):
    model = onnx.load_from_string(graph_of(network_of(KINDS[kind])))
    (samples,), (frames,) = model.graph.input, model.graph.output
    assert (samples.name, frames.name) == ("samples", "frames")
    assert [axis.dim_param for axis in samples.type.tensor_type.shape.dim] == ["windows", "samples"]
    assert frames.type.tensor_type.shape.dim[2].dim_value == 8
    assert not model.graph.value_info
    assert not model.metadata_props


def test_the_same_weights_give_the_same_bytes():
    assert graph_of(network_of(KINDS["recurrent"])) == graph_of(network_of(KINDS["recurrent"]))


def test_a_network_in_training_is_exported_as_it_answers(tmp_path):
    network = network_of(KINDS["convolution"]).train()
    export_onnx(network, tmp_path / "encoder.onnx")
    assert not network.training


def test_a_graph_that_answers_otherwise_is_refused_and_not_written(tmp_path, monkeypatch):
    network, other = network_of(KINDS["convolution"]), network_of(KINDS["convolution"], seed=9)
    with pytest.raises(EncoderError, match="does not give the network's frames"):
        check_parity(network, graph_of(other))
    monkeypatch.setattr("clinical_ser.neural.exporting.graph_of", lambda _: graph_of(other))
    with pytest.raises(EncoderError):
        export_onnx(network, tmp_path / "encoder.onnx")
    assert not (tmp_path / "encoder.onnx").exists()
