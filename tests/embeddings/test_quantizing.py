"""INT8: what is rounded in which network, that a batch still changes nothing, and that the gate holds."""

import numpy as np
import onnx
import pytest
import soundfile

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from clinical_ser.audio import SAMPLE_RATE_HZ, from_samples  # noqa: E402
from clinical_ser.cohorts.manifest import read_manifest  # noqa: E402
from clinical_ser.cohorts.tasks import EMOTION  # noqa: E402
from clinical_ser.embeddings import quantizing  # noqa: E402
from clinical_ser.embeddings.encoder import EncoderSpec, Padding, WindowedEncoder  # noqa: E402
from clinical_ser.embeddings.exporting import export, traced  # noqa: E402
from clinical_ser.embeddings.graph import Graph, lstm  # noqa: E402
from clinical_ser.embeddings.onnx import read_encoder  # noqa: E402
from clinical_ser.embeddings.quantizing import Trial, UarLoss, kind_of, quantize  # noqa: E402
from clinical_ser.embeddings.torch_encoder import TorchEncoder  # noqa: E402
from clinical_ser.embeddings.transformers import load  # noqa: E402
from clinical_ser.errors import EncoderError, GateError, InvalidValueError  # noqa: E402
from clinical_ser.evaluation.encoder_loss import uar_loss  # noqa: E402
from tests import signals  # noqa: E402
from tests.embeddings.tiny_models import clips, everywhere, save, speech  # noqa: E402


class Convolutions(torch.nn.Module):
    """Log power in bands, then two convolutions and a product."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.bands, self.first, self.second = (
            torch.nn.Conv1d(1, 64, 400, 160, bias=False),
            torch.nn.Conv1d(64, 32, 3, padding=1),
            torch.nn.Linear(32, 24),
        )

    def forward(self, samples):
        log = (self.bands(samples[:, None]) ** 2 + 1e-6).log()
        return self.second(torch.relu(self.first(log)).transpose(1, 2))


SPEC = EncoderSpec(name="cnn", title="t", frame_dim=24, frame_step_s=0.01, first_frame_s=0.0125, padding=Padding.EQUAL, licence="none", source="here")


@pytest.fixture(scope="module")
def cnn():
    return TorchEncoder(SPEC, Convolutions(), "weights")


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    return load(f"{save('wavlm-layer', tmp_path_factory.mktemp('models') / 'tiny')}@2")


@pytest.fixture(scope="module")
def spoken():
    return [speech()]


def operators(model, name):
    return [node for node in onnx.load_from_string(model).graph.node if node.op_type == name]


def loss_of(points):
    return lambda _before, _after: UarLoss(
        task="emotion", before=60, after=60 - points, loss=points, low=None, high=None, level=0.95, subjects=9, recordings=9, left_out=0
    )


def test_of_a_transformer_the_products_are_rounded_and_a_batch_changes_nothing(transformer, spoken, tmp_path):
    report = export(transformer, tmp_path / "out", trial=Trial(spoken))
    assert report.quantized.kind == "dynamic"
    assert report.quantized.uar is None
    assert [one.seconds for one in report.quantized.agreement] == [1, 3, 10]
    assert min(one.cosine for one in report.quantized.agreement) >= 0.995
    assert report.bytes == report.quantized.bytes_after < report.quantized.bytes_before
    served = read_encoder(tmp_path / "out")
    assert served.about.quantized == "dynamic"
    model = (tmp_path / "out" / "model.onnx").read_bytes()
    assert operators(model, "MatMulInteger")
    assert not operators(model, "ConvInteger")
    recordings = clips()
    together = served.encode(recordings, speech=everywhere(recordings), frames=True)
    for recording, one in zip(recordings, together, strict=True):
        np.testing.assert_array_equal(served.encode([recording], speech=everywhere([recording]), frames=True)[0].frames, one.frames)


def test_of_convolutions_weights_and_activations_are_rounded_but_not_before_the_logarithm(cnn, spoken, tmp_path):
    report = export(cnn, tmp_path / "out", trial=Trial(spoken))
    assert report.quantized.kind == "static"
    assert min(one.cosine for one in report.quantized.agreement) >= 0.995
    assert read_encoder(tmp_path / "out").about.quantized == "static"
    model = (tmp_path / "out" / "model.onnx").read_bytes()
    (log,) = operators(model, "Log")
    graph = onnx.load_from_string(model).graph
    made_by = {out: node for node in graph.node for out in node.output}
    before, todo = [], list(log.input)
    while todo:
        node = made_by.get(todo.pop())
        if node is not None:
            before.append(node.op_type)
            todo += node.input
    assert "Conv" in before
    assert "DequantizeLinear" not in before
    assert len([node for node in graph.node if node.op_type == "QuantizeLinear"]) >= 2
    assert quantize(SPEC, traced(cnn), Trial(spoken))[0] == model


def test_a_recurrent_network_is_left_alone(tmp_path):
    graph, rng = Graph("g"), np.random.default_rng(0)
    framed = graph.node("Transpose", graph.shaped("samples", 0, -1, 160), perm=[1, 0, 2])
    weights = [rng.normal(size=shape).astype(np.float32) for shape in ((32, 160), (32, 8), (32,), (32,))]
    model = graph.finish(graph.node("Transpose", lstm(graph, framed, weights), perm=[1, 0, 2]), 8)
    with pytest.raises(EncoderError, match=r"recurrent .* 0\.44"):
        quantize(SPEC.model_copy(update={"frame_dim": 8}), model, Trial([speech()]))


def test_what_is_rounded_already_and_what_cannot_be_are_refused(cnn, spoken):
    smaller, _ = quantize(SPEC, traced(cnn), Trial(spoken))
    with pytest.raises(EncoderError, match="quantized already"):
        kind_of(onnx.load_from_string(smaller))
    graph = Graph("g")
    with pytest.raises(EncoderError, match="neither"):
        kind_of(onnx.load_from_string(graph.finish(graph.shaped("samples", 0, -1, 160), 160)))


def test_vectors_that_move_too_far_are_not_written(cnn, spoken, tmp_path, monkeypatch):
    other = Convolutions()
    with torch.no_grad():
        other.second.weight *= -1
        other.second.bias *= -1
    worse = traced(TorchEncoder(SPEC, other))
    monkeypatch.setattr(quantizing, "_rounded", lambda *_: worse)
    with pytest.raises(GateError, match=r"cosine -1\.0000 at 1 s, -1\.0000 at 3 s, -1\.0000 at 10 s; at least 0\.995"):
        export(cnn, tmp_path / "out", trial=Trial(spoken))
    assert not (tmp_path / "out").exists()


def test_how_far_vectors_moved_is_told_against_how_far_recordings_lie_apart(cnn, spoken):
    _, alone = quantize(SPEC, traced(cnn), Trial(spoken))
    assert [one.moved for one in alone.agreement] == [None] * 3
    noise = from_samples(np.random.default_rng(0).normal(0, 0.1, 170_000), SAMPLE_RATE_HZ)
    _, two = quantize(SPEC, traced(cnn), Trial([*spoken, noise]))
    assert all(0 < one.moved < 0.2 for one in two.agreement)


@pytest.mark.parametrize("points", [1.6, float("nan")])
def test_recall_that_is_lost_is_not_written(cnn, spoken, tmp_path, points):
    lost = UarLoss.model_construct(**(loss_of(0)(None, None).model_dump() | {"loss": points}))
    with pytest.raises(GateError, match="points of UAR"):
        export(cnn, tmp_path / "out", trial=Trial(spoken, lambda _before, _after: lost))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("points", [1.5, -3.0])
def test_recall_that_is_kept_is_written(cnn, spoken, tmp_path, points):
    report = export(cnn, tmp_path / "out", trial=Trial(spoken, loss_of(points)))
    assert report.quantized.uar.loss == points


def test_speech_to_check_with_has_to_be_long_enough(cnn):
    with pytest.raises(InvalidValueError, match="at least one of 10 s"):
        quantize(SPEC, traced(cnn), Trial([speech(9.0)]))


class Loudness(WindowedEncoder):
    """Hears how loud speech is, or nothing of it."""

    spec = SPEC.model_copy(update={"frame_dim": 2})

    def __init__(self, *, deaf):
        self.fingerprint = f"loudness {deaf}"
        self._deaf = deaf

    def run(self, samples, lengths):
        rng = np.random.default_rng(0)
        rows = [row[:length] for row, length in zip(samples, lengths, strict=True)]
        loud = [rng.normal() if self._deaf else 20 * np.log10(np.abs(row).mean() + 1e-9) for row in rows]
        return [np.tile(np.array([one, 1.0], np.float32), (len(row) // 160, 1)) for one, row in zip(loud, rows, strict=True)]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Twelve people, each once softly (sad) and once loudly (angry), one row that cannot be read."""
    folder = tmp_path_factory.mktemp("recordings")
    lines = ["path,subject,label"]
    made = signals.sentence(phrases=2, syllables=5, pauses_s=(0.3,)).samples
    for person in range(12):
        for label, level in (("sad", 0.05), ("angry", 0.5)):
            name = f"{person}-{label}.wav"
            soundfile.write(folder / name, np.clip(level * (1 + 0.02 * person) * made, -1, 1), SAMPLE_RATE_HZ, subtype="FLOAT")
            lines.append(f"{name},s{person},{label}")
    (folder / "broken.wav").write_bytes(b"no audio")
    path = folder / "manifest.csv"
    path.write_text("\n".join([*lines, "broken.wav,s1,sad"]) + "\n")
    return read_manifest(path)


def test_uar_of_the_same_encoder_twice_is_lost_by_nothing(manifest):
    found = uar_loss(Loudness(deaf=False), Loudness(deaf=False), manifest, EMOTION)
    assert (found.before, found.after, found.loss, found.low, found.high) == (100, 100, 0, 0, 0)
    assert (found.subjects, found.recordings, found.left_out) == (12, 24, 1)


def test_uar_of_an_encoder_that_hears_nothing_is_lost(manifest):
    found = uar_loss(Loudness(deaf=False), Loudness(deaf=True), manifest, EMOTION)
    assert found.before == 100
    assert found.loss > 20
    assert found.low > 1.5
