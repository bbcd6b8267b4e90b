"""The back end `transformers`: the same numbers as the library, alone and in any batch, and nothing loaded that could be code."""

import json
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from clinical_ser.embeddings import Encoder, Padding, find_encoder  # noqa: E402
from clinical_ser.embeddings.transformers import load  # noqa: E402
from clinical_ser.embeddings.whisper import graph_of  # noqa: E402
from clinical_ser.errors import EncoderError, InvalidValueError  # noqa: E402
from tests.embeddings.tiny_models import KINDS, LAYERS, MASKED, clips, everywhere, model_of, save  # noqa: E402

NOISE = np.random.default_rng(0).normal(0, 0.1, (2, 24_000)).astype(np.float32)
FULL = np.array([24_000, 24_000])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return the folder of a saved model by kind; each is made once."""
    made = {}

    def of(kind):
        if kind not in made:
            made[kind] = save(kind, tmp_path_factory.mktemp("models") / f"tiny-{kind}")
        return made[kind]

    return of


@pytest.fixture
def copied(saved, tmp_path):
    """Return a copy of a saved model that a test may damage."""
    return shutil.copytree(saved("wav2vec2-group"), tmp_path / "tiny-wav2vec2-group")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "whisper"])
def test_a_layer_is_that_of_the_library(saved, kind):
    encoder = load(f"{saved(kind)}@2")
    with torch.inference_mode():
        expected = model_of(kind)(torch.from_numpy(NOISE), output_hidden_states=True).hidden_states[2].numpy()
    np.testing.assert_allclose(np.stack(encoder.run(NOISE, FULL)), expected, atol=1e-5)


@pytest.mark.parametrize("kind", MASKED)
def test_the_last_layer_is_taken_before_the_norm_that_ends_the_network(saved, kind):
    model, heard = model_of(kind), []
    model.encoder.layers[-1].register_forward_hook(lambda _module, _given, out: heard.append(out[0] if isinstance(out, tuple) else out))
    with torch.inference_mode():
        model(torch.from_numpy(NOISE))
    np.testing.assert_allclose(np.stack(load(f"{saved(kind)}@{LAYERS}").run(NOISE, FULL)), heard[0].numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_gets_the_same_answer_alone_and_in_a_batch(saved, kind):
    encoder, recordings = load(str(saved(kind))), clips()
    together = encoder.encode(recordings, speech=everywhere(recordings), frames=True)
    for recording, one in zip(recordings, together, strict=True):
        alone = encoder.encode([recording], speech=everywhere([recording]), frames=True)[0]
        np.testing.assert_array_equal(alone.times_s, one.times_s)
        np.testing.assert_allclose(one.frames, alone.frames, atol=1e-5)
        np.testing.assert_allclose(one.utterance, alone.utterance, atol=1e-5)


@pytest.mark.parametrize("kind", MASKED)
def test_without_the_mask_padding_would_change_an_answer(saved, kind):
    """What the test above would not see if nothing were there to see."""
    encoder = load(str(saved(kind)))
    padded = np.zeros((1, 48_000), np.float32)
    padded[0, :24_000] = NOISE[0]
    alone = encoder.run(NOISE[:1], FULL[:1])[0]
    assert np.abs(encoder.run(padded, np.array([48_000]))[0][: len(alone)] - alone).max() > 1e-3
    assert np.abs(encoder.run(padded, np.array([24_000]))[0][: len(alone)] - alone).max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_description_says_how_the_model_hears(saved, kind):
    spec = load(f"{saved(kind)}@1").spec
    assert (spec.name, spec.frame_dim, spec.frame_step_s) == (f"tiny-{kind}-layer1", 32, 0.02)
    assert spec.first_frame_s == (0.0 if kind == "whisper" else 0.0125)
    assert spec.padding is (Padding.MASK if kind in MASKED else Padding.EQUAL)
    assert spec.standardise is (kind != "whisper")


def test_whisper_equals_the_graph_written_by_hand(saved):
    import onnxruntime

    weights = {name: tensor.numpy() for name, tensor in model_of("whisper").encoder.state_dict().items()}
    for layer in (1, LAYERS):
        session = onnxruntime.InferenceSession(graph_of(weights, heads=4, layer=layer))
        expected = session.run(None, {"samples": NOISE})[0]
        np.testing.assert_allclose(np.stack(load(f"{saved('whisper')}@{layer}").run(NOISE, FULL)), expected, atol=1e-5)


def test_the_middle_layer_is_the_default_and_later_ones_are_left_out(saved):
    encoder = load(str(saved("hubert-group")))
    assert encoder.spec.title == f"hubert, layer 2 of {LAYERS}"
    assert not any(".layers.2." in name for name in encoder.module.state_dict())


def test_the_registry_finds_it_and_any_path_will_do(saved):
    encoder = find_encoder(f"transformers:{saved('wavlm-layer')}@1")
    assert isinstance(encoder, Encoder)
    assert encoder.fingerprint == load(f"{saved('wavlm-layer')}@1").fingerprint


def test_a_fingerprint_moves_with_weights_layer_and_settings(copied):
    first = load(f"{copied}@1").fingerprint
    assert load(f"{copied}@2").fingerprint != first
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"num_attention_heads": 2}))
    assert load(f"{copied}@1").fingerprint != first
    (copied / "config.json").write_text(json.dumps(config | {"transformers_version": "9.9"}))
    assert load(f"{copied}@1").fingerprint == first
    weights = load_file(copied / "model.safetensors")
    weights["encoder.layer_norm.bias"] += 1e-6
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    assert load(f"{copied}@1").fingerprint != first


def test_the_licence_is_the_one_on_the_card(copied):
    assert "not stated" in load(str(copied)).spec.licence
    (copied / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# Model\nlicense: mit\n")
    assert load(str(copied)).spec.licence.startswith("apache-2.0")


def test_threads_are_as_they_were(saved):
    encoder = load(str(saved("hubert-group")))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        encoder.run(NOISE, FULL)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("layer", "message"), [("0", "1 to 3"), ("4", "1 to 3"), ("999", "1 to 3")])
def test_a_layer_that_is_not_there(saved, layer, message):
    with pytest.raises(InvalidValueError, match=message):
        load(f"{saved('hubert-group')}@{layer}")


@pytest.mark.parametrize(
    "argument", ["", "@3", "#main", "a\0b", "./nowhere", "/jane_doe/model", "../../x", "~/model", "a/b/c", "x" * 5000, "a b", "日本"]
)
def test_names_of_no_model(argument):
    with pytest.raises((EncoderError, InvalidValueError)) as refused:
        load(argument, offline=True)
    assert "jane" not in str(refused.value)
    assert len(str(refused.value)) < 500


def test_a_hub_name_while_offline_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EncoderError, match=r"'microsoft/wavlm-large' is not in this machine's copy .* encoder export"):
        load("microsoft/wavlm-large@12", offline=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EncoderError, match="offline"):
        find_encoder("transformers:microsoft/wavlm-large#0123abc@12")


def test_what_the_hub_says_of_a_failure_is_not_passed_on(monkeypatch):
    def failing(*_given, **_named):
        raise RuntimeError("https://user:hf_secret@hub/jane_doe")

    monkeypatch.setattr("clinical_ser.embeddings.transformers.snapshot_download", failing)
    with pytest.raises(EncoderError, match="cannot be fetched") as refused:
        load("someone/model")
    assert "hf_secret" not in str(refused.value)


def test_only_safetensors_are_asked_of_the_hub(monkeypatch, saved):
    asked = {}

    def snapshot(name, **given):
        asked.update(given, name=name)
        return str(saved("hubert-group"))

    monkeypatch.setattr("clinical_ser.embeddings.transformers.snapshot_download", snapshot)
    encoder = load("someone/My.Model#abc123@1")
    assert (asked["name"], asked["revision"], asked["local_files_only"]) == ("someone/My.Model", "abc123", False)
    assert not any("bin" in pattern or pattern == "*" for pattern in asked["allow_patterns"])
    assert encoder.spec.name == "my-model-layer1"
    assert "someone/My.Model" in encoder.spec.source


def test_a_revision_of_a_folder_is_refused(saved):
    with pytest.raises(InvalidValueError, match="folder"):
        load(f"{saved('hubert-group')}#main")


def test_weights_in_a_pickle_are_refused(copied):
    torch.save(load_file(copied / "model.safetensors"), copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    with pytest.raises(EncoderError, match="never read from a pickle"):
        load(str(copied))


def test_weights_that_are_not_complete_are_refused(copied):
    weights = load_file(copied / "model.safetensors")
    del weights["encoder.layers.1.attention.q_proj.weight"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EncoderError, match="1 of its arrays are missing"):
        load(str(copied))


def test_weights_of_the_time_before_parametrizations_are_complete(saved, tmp_path):
    """As the hub has WavLM-large: the norm of the convolution over positions is called weight_g there, its direction weight_v."""
    folder = shutil.copytree(saved("wavlm-layer"), tmp_path / "tiny-wavlm-layer")
    weights = load_file(folder / "model.safetensors")
    place = "encoder.pos_conv_embed.conv."
    weights[f"{place}weight_g"] = weights.pop(f"{place}parametrizations.weight.original0")
    weights[f"{place}weight_v"] = weights.pop(f"{place}parametrizations.weight.original1")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert load(str(folder)).fingerprint == load(str(saved("wavlm-layer"))).fingerprint


def test_weights_that_are_not_finite_are_refused(copied):
    weights = load_file(copied / "model.safetensors")
    weights["encoder.layer_norm.bias"][3] = float("nan")
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EncoderError, match="not finite"):
        load(str(copied))


def test_weights_that_are_cut_short_are_refused(copied):
    raw = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(EncoderError, match="cannot be loaded") as refused:
        load(str(copied))
    assert str(copied.parent) not in str(refused.value)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, "cannot be read"),
        ("config.json", b"[]", "not a model's description"),
        ("config.json", b"{" * 100_000, "not a model's description"),
        ("config.json", b'{"model_type": "bert"}', "no architecture"),
        ("config.json", b'{"model_type": ["x"]}', "no architecture"),
        ("config.json", b'{"model_type": "wav2vec2", "hidden_size": "x"}', "cannot be loaded"),
        ("preprocessor_config.json", None, "cannot be read"),
        ("preprocessor_config.json", b'{"sampling_rate": "fast"}', "rate"),
    ],
)
def test_folders_that_hold_no_model(copied, file, content, message):
    (copied / file).unlink()
    if content is not None:
        (copied / file).write_bytes(content)
    with pytest.raises(EncoderError, match=message) as refused:
        load(str(copied))
    assert str(copied.parent) not in str(refused.value)


def test_code_that_comes_with_a_model_is_not_run(copied, tmp_path):
    config = json.loads((copied / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}
    (copied / "config.json").write_text(json.dumps(config))
    (copied / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    load(str(copied))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["Ünï ¢øđé", "--", "a" * 200, "x;rm -rf", "_@_"])
def test_a_folder_may_have_any_name(copied, name):
    encoder = load(f"{copied.rename(copied.parent / name)}@1")
    assert encoder.spec.name.endswith("-layer1")
