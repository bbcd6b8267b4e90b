"""Installing an encoder: only the published weights, only a graph that gives the original's numbers, and nothing half done."""

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clinical_ser.embeddings import find_encoder, ge2e, installing, list_encoders, mel
from clinical_ser.embeddings.installing import PUBLISHED, install, probe_signal
from clinical_ser.embeddings.onnx import MODEL_FILE
from clinical_ser.embeddings.registry import encoder_folder
from clinical_ser.errors import EncoderError, InvalidValueError
from tests.embeddings.made import speech, tiny_onnx

pytest.importorskip("onnx")
MEMBER = PUBLISHED["ge2e"].member


@pytest.fixture(scope="module")
def weights() -> bytes:
    """A file laid out as the published one, with other numbers in it."""
    rng = np.random.default_rng(0)
    content = bytearray(ge2e.WEIGHTS_BYTES)
    for layer, offsets in enumerate(ge2e._OFFSETS):
        for offset, columns in zip(offsets, (256 if layer else 40, 256, 1, 1), strict=True):
            content[offset : offset + 4096 * columns] = rng.normal(0, 0.1, 1024 * columns).astype("<f4").tobytes()
    return bytes(content)


def by_torch(content: bytes, samples: np.ndarray) -> np.ndarray:
    """The same network by torch: frames of layer 2, shape (frames, 256)."""
    torch = pytest.importorskip("torch")
    lstm = torch.nn.LSTM(40, 256, 2, batch_first=True)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    layers = ge2e.layers_of(content)[:2]
    named = {f"{name}_l{k}": part for k, layer in enumerate(layers) for name, part in zip(names, layer, strict=True)}
    lstm.load_state_dict({name: torch.from_numpy(part.copy()) for name, part in named.items()})
    window = torch.hann_window(400)
    spectrum = torch.stft(torch.from_numpy(samples)[None], 400, 160, window=window, center=True, pad_mode="constant", return_complex=True).abs() ** 2
    with torch.inference_mode():
        frames, _ = lstm((torch.from_numpy(mel.mel_filters(40, 400, 16_000)) @ spectrum).transpose(1, 2))
    return frames[0].numpy()


@pytest.fixture
def published(weights, monkeypatch) -> bytes:
    """Let those weights be the published ones, with what torch makes of the probe as the original's numbers."""
    frames = by_torch(weights, probe_signal())
    known = tuple(frames[len(frames) // 2, :12].tolist())
    entry = replace(PUBLISHED["ge2e"], sha256=hashlib.sha256(weights).hexdigest(), probe=known)
    monkeypatch.setattr(installing, "PUBLISHED", {**PUBLISHED, "ge2e": entry})
    return weights


def wheel(path: Path, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("resemblyzer/__init__.py", "raise SystemExit('this library is never imported')")
        made.writestr(MEMBER, content)
    return path


def test_the_graph_gives_the_numbers_of_torchs_lstm(weights, tmp_path):
    from clinical_ser.embeddings.onnx import read_encoder, write_encoder

    write_encoder(tmp_path / "ge2e", ge2e.SPEC, ge2e.graph_of(weights), replace=False)
    samples = speech(3.0).samples
    ours = read_encoder(tmp_path / "ge2e").run(samples[None], np.array([len(samples)]))[0]
    np.testing.assert_allclose(ours, by_torch(weights, np.array(samples)), atol=1e-5)


def test_from_a_wheel_and_from_the_file_in_it_the_same_encoder_is_installed(published, tmp_path):
    assert install("ge2e", source=wheel(tmp_path / "r.whl", published)) == "ge2e"
    first = find_encoder("ge2e").fingerprint
    (tmp_path / "pretrained.pt").write_bytes(published)
    install("ge2e", source=tmp_path / "pretrained.pt", replace=True)
    assert find_encoder("ge2e").fingerprint == first
    assert find_encoder("ge2e").encode([speech(2.0)])[0].utterance.shape == (512,)


def test_it_is_found_in_a_distribution_in_this_environment_that_is_never_imported(published, tmp_path, monkeypatch):
    (tmp_path / "resemblyzer").mkdir()
    (tmp_path / MEMBER).write_bytes(published)
    (tmp_path / "resemblyzer" / "__init__.py").write_text("raise SystemExit('imported')")
    info = tmp_path / "resemblyzer-0.1.4.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: resemblyzer\nVersion: 0.1.4\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert install("ge2e") == "ge2e"


def test_installed_once_it_is_not_made_again(published, tmp_path, monkeypatch):
    install("ge2e", source=wheel(tmp_path / "r.whl", published))
    before = (encoder_folder("ge2e") / MODEL_FILE).stat().st_mtime_ns
    monkeypatch.setattr(installing, "weights_of", lambda *_: pytest.fail("asked for weights again"))
    assert install("ge2e") == "ge2e"
    assert (encoder_folder("ge2e") / MODEL_FILE).stat().st_mtime_ns == before


def test_an_installed_encoder_that_was_damaged_is_made_again(published, tmp_path):
    install("ge2e", source=wheel(tmp_path / "r.whl", published))
    (encoder_folder("ge2e") / MODEL_FILE).write_bytes(b"x")
    install("ge2e", source=tmp_path / "r.whl")
    assert find_encoder("ge2e").spec.dim == 512


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[:-1],
        lambda content: content + b"x",
        lambda content: content[:300_000] + bytes([content[300_000] ^ 1]) + content[300_001:],
        lambda content: b"",
    ],
)
def test_weights_that_are_not_the_published_ones_are_refused(published, tmp_path, spoil):
    with pytest.raises(EncoderError, match="sha256 differs"):
        install("ge2e", source=wheel(tmp_path / "r.whl", spoil(published)))
    assert not list_encoders()


def test_files_that_hold_no_weights_are_refused_without_a_path(published, tmp_path):
    with zipfile.ZipFile(tmp_path / "jane-doe.whl", "w") as made:
        made.writestr("other/file", "x")
    (tmp_path / "cut.whl").write_bytes(wheel(tmp_path / "r.whl", published).read_bytes()[:5000])
    for name in ("jane-doe.whl", "cut.whl", "nothing-there"):
        with pytest.raises(EncoderError) as refused:
            install("ge2e", source=tmp_path / name)
        assert str(tmp_path) not in str(refused.value)
        assert "jane" not in str(refused.value)


def test_a_member_that_unpacks_without_end_is_read_no_further_than_the_weights_are_long(published, tmp_path):
    bomb = wheel(tmp_path / "bomb.whl", b"\0" * (ge2e.WEIGHTS_BYTES * 4))
    with pytest.raises(EncoderError, match="sha256 differs"):
        install("ge2e", source=bomb)


def test_a_graph_that_gives_other_numbers_than_the_original_is_not_installed(published, tmp_path, monkeypatch):
    wrong = replace(installing.PUBLISHED["ge2e"], graph=lambda content: ge2e.graph_of(content[:269_883] + b"\0" * 4096 + content[273_979:]))
    monkeypatch.setattr(installing, "PUBLISHED", {"ge2e": wrong})
    with pytest.raises(EncoderError, match="does not give the original network's numbers"):
        install("ge2e", source=wheel(tmp_path / "r.whl", published))
    assert not list_encoders()


def test_without_an_index_the_message_says_what_to_do_and_not_what_pip_said(published, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(EncoderError, match=r"resemblyzer==0\.1\.4.*--from") as refused:
        install("ge2e")
    assert "secret" not in str(refused.value)


def test_what_nobody_published_is_refused_with_what_is():
    with pytest.raises(InvalidValueError, match="ge2e"):
        install("wavlm")
    with pytest.raises(InvalidValueError, match="ge2e"):
        install(None)


def test_an_exported_folder_is_installed_under_its_own_name_or_another(tmp_path):
    tiny_onnx(tmp_path / "made")
    assert install(None, source=tmp_path / "made") == "tiny"
    assert install("mine", source=tmp_path / "made") == "mine"
    assert find_encoder("mine").spec.name == "mine"
    assert find_encoder("mine").fingerprint != find_encoder("tiny").fingerprint
    with pytest.raises(EncoderError, match="is there already"):
        install("mine", source=tmp_path / "made")


def test_mel_filters_and_fourier_kernels_are_what_torch_and_the_definition_say():
    filters = mel.mel_filters(40, 400, 16_000)
    assert filters.shape == (40, 201)
    assert (filters >= 0).all()
    bins = np.arange(201) * 40.0
    # Of equal area: a triangle of height 2 / (high - low).
    for row in filters:
        inside = bins[row > 0]
        assert row.max() <= 2 / (inside[-1] - inside[0]) + 1e-6
    n = np.arange(400)
    tone = np.cos(2 * np.pi * 25 * n / 400)
    kernels = mel.dft_kernels(400)
    power = (kernels @ tone)[:201] ** 2 + (kernels @ tone)[201:] ** 2
    assert power.argmax() == 25
    assert power[25] == pytest.approx(100.0**2, rel=1e-4)
