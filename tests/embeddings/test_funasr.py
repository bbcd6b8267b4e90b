"""The back end `funasr`, against a module that has FunASR 1.4.16's signatures: the package itself has 88 dependencies.

The real classes with a tiny random emotion2vec gave the same frames as the graph made here to 4e-6 of their scale (FunASR 1.4.16, torch 2.13).
"""

import logging
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from clinical_ser.embeddings import Padding, find_encoder  # noqa: E402
from clinical_ser.embeddings.exporting import export  # noqa: E402
from clinical_ser.embeddings.funasr import load  # noqa: E402
from clinical_ser.embeddings.onnx import read_encoder  # noqa: E402
from clinical_ser.errors import EncoderError, InvalidValueError  # noqa: E402

CONFIG = """
model: Emotion2vec
model_conf:
    embed_dim: 8
    normalize: true
    modalities:
        audio:
            feature_encoder_spec: '[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]'
"""
LAYERS = [(8, 10, 5)] + [(8, 3, 2)] * 4 + [(8, 2, 2)] * 2


class AudioEncoder(torch.nn.Module):
    """`modality_encoders["AUDIO"]`: what says where frames are, and the bias that is kept between calls."""

    def __init__(self):
        super().__init__()
        self.feature_enc_layers = LAYERS
        self.local_encoder = torch.nn.Conv1d(1, 8, 400, 320)
        self.decoder = torch.nn.Linear(2, 2)
        self.get_alibi_bias = None


class Emotion2vec(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.cfg = SimpleNamespace(normalize=True, embed_dim=8)
        self.modality_encoders = torch.nn.ModuleDict({"AUDIO": AudioEncoder()})
        self.proj = torch.nn.Linear(8, 9)

    def extract_features(self, source, mode=None, padding_mask=None, mask=False, remove_extra_tokens=True):
        audio = self.modality_encoders["AUDIO"]
        hidden = audio.local_encoder(source[:, None]).transpose(1, 2)
        if audio.get_alibi_bias is not None:
            bias = audio.get_alibi_bias(batch_size=len(source), time_steps=hidden.shape[1], heads=2, dtype=torch.float32, device=source.device)
            hidden = hidden + torch.softmax(bias, -1).mean(1) @ hidden
        return {"x": hidden, "padding_mask": None, "layer_results": [], "mask": None}


class AutoModel:
    says = ""
    fails: Exception | None = None
    kind: type = Emotion2vec
    asked: dict = {}  # noqa: RUF012

    def __init__(self, **kwargs):
        AutoModel.asked = kwargs
        print("funasr version: 1.4.16.")  # noqa: T201
        print(self.says)  # noqa: T201
        logging.basicConfig(level=logging.ERROR)
        logging.getLogger().warning("trust_remote_code: False")
        if self.fails:
            raise self.fails
        self.model, self.kwargs, self.model_path = self.kind().eval(), kwargs, kwargs["model"]

    def generate(self, input, input_len=None, progress_callback=None, **cfg):  # noqa: A002
        assert cfg == {"granularity": "frame", "extract_embedding": True}
        results = []
        for wave in input:
            source = torch.from_numpy(wave)
            source = torch.nn.functional.layer_norm(source, source.shape)
            self.model.modality_encoders["AUDIO"].get_alibi_bias = whole_bias
            with torch.no_grad():
                feats = self.model.extract_features(source.view(1, -1), padding_mask=None)["x"].squeeze(0).cpu().numpy()
            results.append({"key": "rand_key_x", "labels": ["angry"], "scores": [1.0], "feats": feats})
        return results


def get_alibi(max_positions, attention_heads, dims=1, distance="manhattan"):
    place = torch.arange(max_positions)
    slopes = torch.tensor([0.25, 0.5])[:attention_heads]
    return slopes[:, None, None] * -(place[None] - place[:, None]).abs()[None]


def whole_bias(batch_size, time_steps, heads, dtype, device):
    return get_alibi(time_steps, heads)[None].expand(batch_size, -1, -1, -1)


@pytest.fixture(autouse=True)
def _fake(monkeypatch):
    base = ModuleType("funasr.models.emotion2vec.base")
    base.get_alibi = get_alibi
    modules = {name: ModuleType(name) for name in ("funasr", "funasr.models", "funasr.models.emotion2vec")}
    modules["funasr"].AutoModel = AutoModel
    for name, module in (modules | {base.__name__: base}).items():
        monkeypatch.setitem(sys.modules, name, module)
    for name, value in {"says": "", "fails": None, "kind": Emotion2vec, "asked": {}}.items():
        monkeypatch.setattr(AutoModel, name, value)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "My emotion2vec"
    made.mkdir()
    (made / "config.yaml").write_text(CONFIG)
    (made / "model.pt").write_bytes(b"weights")
    return made


def test_what_is_asked_of_funasr(folder):
    load("emotion2vec_plus_large#v2.0.5")
    assert AutoModel.asked.items() >= {"model": "iic/emotion2vec_plus_large", "hub": "ms", "model_revision": "v2.0.5"}.items()
    careful = {"trust_remote_code": False, "disable_update": True, "ignore_init_mismatch": False, "device": "cpu", "ncpu": 1}
    assert AutoModel.asked.items() >= careful.items()
    load("emotion2vec/emotion2vec_plus_base")
    assert AutoModel.asked.items() >= {"model": "emotion2vec/emotion2vec_plus_base", "hub": "hf"}.items()
    assert "model_revision" not in AutoModel.asked
    load(str(folder))
    assert AutoModel.asked["model"] == str(folder)


def test_what_the_encoder_says_of_itself(folder):
    spec = load(str(folder)).spec
    assert (spec.name, spec.frame_dim, spec.frame_step_s, spec.first_frame_s) == ("my-emotion2vec", 8, 0.02, 0.0125)
    assert spec.padding is Padding.EQUAL
    assert not spec.standardise  # FunASR does it itself, where the model's configuration says so
    assert str(folder.parent) not in spec.model_dump_json()
    assert "revision v2" in load("emotion2vec_base#v2").spec.source


def test_frames_of_windows_of_any_length(folder):
    noise = np.random.default_rng(0).normal(0, 0.1, (2, 40_000)).astype(np.float32)
    frames = find_encoder(f"funasr:{folder}").run(noise, np.array([40_000, 24_000]))
    assert [one.shape for one in frames] == [(124, 8), (74, 8)]
    assert frames[0].dtype == np.float32
    alone = find_encoder(f"funasr:{folder}").run(noise[1:, :24_000], np.array([24_000]))[0]
    np.testing.assert_array_equal(alone, frames[1])


def test_a_graph_can_be_made_of_it(folder, tmp_path):
    encoder = load(str(folder))
    report = export(encoder, tmp_path / "out")
    assert max(one.difference for one in report.parity) < 1e-5
    assert read_encoder(tmp_path / "out").spec == encoder.spec


def test_the_decoder_and_the_classes_are_no_part_of_the_fingerprint(folder):
    first = load(str(folder)).fingerprint

    class Emotion2vec2(Emotion2vec):
        def __init__(self):
            super().__init__()
            with torch.no_grad():
                self.proj.bias += 1
                self.modality_encoders["AUDIO"].decoder.bias += 1

    Emotion2vec2.__name__ = "Emotion2vec"
    AutoModel.kind = Emotion2vec2
    assert load(str(folder)).fingerprint == first


def test_nothing_is_printed_and_logging_is_as_it_was(folder, capfd):
    root = logging.getLogger()
    before = list(root.handlers), root.level, logging.root.manager.disable
    encoder = load(str(folder))
    encoder.run(np.zeros((1, 16_000), np.float32) + 0.1, np.array([16_000]))
    assert (list(root.handlers), root.level, logging.root.manager.disable) == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "says", ["error, init_param does not exist!: /jane_doe/model.pt", "Warning, miss key in ckpt: blocks.0.attn.qkv.weight, /jane_doe"]
)
def test_weights_that_funasr_does_not_find_are_missed(folder, says):
    AutoModel.says = says
    with pytest.raises(EncoderError, match="not complete"):
        load(str(folder))


def test_the_decoder_may_be_missing(folder):
    AutoModel.says = "Warning, miss key in ckpt: modality_encoders.AUDIO.decoder.blocks.0.0.weight, model.pt"
    load(str(folder))


def test_a_failure_is_told_without_its_text(folder):
    AutoModel.fails = RuntimeError("https://hub/?token=hf_secret jane_doe")
    with pytest.raises(EncoderError, match="RuntimeError") as refused:
        load(str(folder))
    assert "secret" not in str(refused.value)


def test_another_kind_of_model_is_refused(folder):
    AutoModel.kind = type("Paraformer", (Emotion2vec,), {})
    with pytest.raises(EncoderError, match="no emotion2vec"):
        load(str(folder))


@pytest.mark.parametrize(
    "argument", ["", "paraformer-zh", "iic/other", "someone/emotion2vec_base", "./nowhere", "a\0b", "emotion2vec/emotion2vec_base#x"]
)
def test_what_is_no_emotion2vec(argument):
    with pytest.raises((InvalidValueError, EncoderError)):
        load(argument)
    assert not AutoModel.asked


def test_a_description_is_never_evaluated_as_code(folder, tmp_path):
    evil = CONFIG.replace("'[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]'", f"\"open('{tmp_path}/ran', 'w')\"")
    (folder / "config.yaml").write_text(evil)
    with pytest.raises(EncoderError, match=r"config\.yaml"):
        load(str(folder))
    assert not AutoModel.asked


@pytest.mark.parametrize("content", ["", "- a", "model: Paraformer", "model: [", "model: Emotion2vec\nmodel_conf: 3"])
def test_folders_that_hold_no_model(folder, content):
    (folder / "config.yaml").write_text(content)
    with pytest.raises(EncoderError, match=r"config\.yaml"):
        load(str(folder))


def test_without_funasr_it_says_what_is_missing(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "funasr", None)
    with pytest.raises(EncoderError, match="funasr"):
        find_encoder(f"funasr:{folder}")
