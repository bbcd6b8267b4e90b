"""From torch to the folder that is served: the same numbers, any length and any batch, the same bytes twice."""

import tempfile

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import onnx  # noqa: E402

from clinical_ser.embeddings.encoder import EncoderSpec, Padding  # noqa: E402
from clinical_ser.embeddings.exporting import export, traced  # noqa: E402
from clinical_ser.embeddings.onnx import read_encoder  # noqa: E402
from clinical_ser.embeddings.torch_encoder import TorchEncoder  # noqa: E402
from clinical_ser.embeddings.transformers import load  # noqa: E402
from clinical_ser.errors import EncoderError  # noqa: E402
from clinical_ser.features.compare_encoder import CompareEncoder  # noqa: E402
from tests.embeddings.tiny_models import KINDS, clips, everywhere, save  # noqa: E402


@pytest.fixture(scope="module")
def encoder_of(tmp_path_factory):
    """Return an encoder of a kind, up to its second layer."""
    return lambda kind: load(f"{save(kind, tmp_path_factory.mktemp('models') / 'jane_doe')}@2")


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_gives_what_torch_gives_alone_and_in_a_batch(encoder_of, tmp_path, kind):
    original = encoder_of(kind)
    report = export(original, tmp_path / "out", name="served")
    assert [one.seconds for one in report.parity] == [1, 3, 10]
    assert max(one.difference for one in report.parity) < 1e-5
    assert min(one.cosine for one in report.parity) > 0.999999
    served = read_encoder(tmp_path / "out")
    assert (served.spec.name, served.fingerprint, served.about.quantized) == ("served", report.fingerprint, "none")
    recordings = clips()
    expected = original.encode(recordings, speech=everywhere(recordings), frames=True)
    together = served.encode(recordings, speech=everywhere(recordings), frames=True)
    for recording, one, other in zip(recordings, expected, together, strict=True):
        alone = served.encode([recording], speech=everywhere([recording]), frames=True)[0]
        np.testing.assert_array_equal(alone.times_s, other.times_s)
        np.testing.assert_allclose(other.frames, alone.frames, atol=1e-5)
        np.testing.assert_allclose(other.utterance, alone.utterance, atol=1e-5)
        np.testing.assert_allclose(other.utterance, one.utterance, atol=1e-4 * np.abs(one.utterance).max())
        # Frames in digital silence are rounding, which a layer norm makes loud.
        np.testing.assert_allclose(other.frames, one.frames, atol=1e-3 * np.abs(one.frames).max())


def test_the_same_weights_give_the_same_bytes_and_no_trace_of_the_machine(encoder_of):
    encoder = encoder_of("wavlm-layer")
    first, second = traced(encoder), traced(encoder)
    assert first == second
    for trace in (b"jane_doe", tempfile.gettempdir().encode(), b"site-packages", b".py"):
        assert trace not in first
    assert not onnx.load_from_string(first).graph.value_info


def test_a_graph_that_gives_other_numbers_is_not_written(encoder_of, tmp_path):
    encoder = encoder_of("hubert-group")
    other = encoder_of("hubert-group")
    with torch.no_grad():
        other.module.encoder.layers[1].final_layer_norm.bias[0] += 0.01
    with pytest.raises(EncoderError, match="differs from the original by"):
        export(encoder, tmp_path / "out", model=traced(other))
    assert not (tmp_path / "out").exists()


class Frozen(torch.nn.Module):
    """A network whose trace keeps the length of its example."""

    def forward(self, samples):
        frames = torch.nn.functional.avg_pool1d(samples[:, None], 320)[:, 0, :, None]
        return frames * torch.arange(1, 9) / float(frames.shape[1])


def test_a_trace_that_keeps_a_length_is_found_out(tmp_path):
    spec = EncoderSpec(name="frozen", title="t", frame_dim=8, frame_step_s=0.02, padding=Padding.EQUAL, licence="none", source="here")
    with pytest.raises(EncoderError, match=r"differs from the original|another shape"):
        export(TorchEncoder(spec, Frozen()), tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Unfolded(torch.nn.Module):
    """A network with an operator that has no translation for every length."""

    def forward(self, samples):
        return samples.unfold(1, 320, 320)[..., :8]


def test_a_network_that_cannot_be_traced_is_refused_in_silence(tmp_path, capfd):
    spec = EncoderSpec(name="unfolded", title="t", frame_dim=8, frame_step_s=0.02, padding=Padding.EQUAL, licence="none", source="here")
    with pytest.raises(EncoderError, match="cannot become a graph"):
        export(TorchEncoder(spec, Unfolded()), tmp_path / "out")
    assert capfd.readouterr() == ("", "")


def test_what_is_no_torch_model_is_refused(tmp_path):
    with pytest.raises(EncoderError, match="no torch model"):
        export(CompareEncoder(), tmp_path / "out")


def test_a_folder_with_an_encoder_is_replaced_only_when_asked(encoder_of, tmp_path):
    encoder = encoder_of("whisper")
    export(encoder, tmp_path / "out")
    with pytest.raises(EncoderError, match="there already"):
        export(encoder, tmp_path / "out", name="other")
    export(encoder, tmp_path / "out", name="other", replace=True)
    assert read_encoder(tmp_path / "out").spec.name == "other"
