"""Encoders as they are served: a folder with what the encoder says of itself and one ONNX file, run by ONNX Runtime.

The one idea: whatever an encoder was trained with, it is exported once and checked then; what answers for a patient is a graph of known digest,
without the library that made it.
"""

import hashlib
import os
import stat
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from clinical_ser.atomic_folder import Kind, publish_folder
from clinical_ser.embeddings.encoder import EncoderSpec, Padding, Sha256, WindowedEncoder
from clinical_ser.embeddings.foreign import refused_as
from clinical_ser.errors import EncoderError
from clinical_ser.strict import Strict

SPEC_FILE, MODEL_FILE = "encoder.json", "model.onnx"
SCHEMA = "clinical-ser/encoder/1"
MAX_SPEC_BYTES = 64 * 1024
MAX_MODEL_BYTES = 2**31 - 1
"""What protobuf, and so one ONNX file, can hold: 500 million parameters in float32."""
SAMPLES, LENGTHS, FRAMES = "samples", "lengths", "frames"
"""Inputs, float32 (windows, samples) and, for a network that masks padding, int64 (windows,); output, float32 (windows, frames, frame_dim)."""
_ENCODER = Kind("encoder", EncoderError)


class EncoderFile(Strict):
    """The content of `encoder.json`."""

    schema_id: Literal["clinical-ser/encoder/1"] = Field(alias="schema")
    spec: EncoderSpec
    model_sha256: Sha256
    quantized: Literal["none", "dynamic", "static"] = "none"
    """How weights were made smaller, and that the export checked what it costs. It decides how the graph is run: part of the fingerprint."""

    @property
    def fingerprint(self) -> str:
        """Of the encoder with this graph."""
        return self.spec.fingerprint_of(self.model_sha256, *([] if self.quantized == "none" else [self.quantized]))


class OnnxEncoder(WindowedEncoder):
    """An encoder in memory. Threads share it; ONNX Runtime runs each call without Python's lock.

    Attributes
    ----------
    about : EncoderFile
    """

    def __init__(self, about: EncoderFile, model: bytes) -> None:
        self.about = about
        self.spec = about.spec
        self.fingerprint = about.fingerprint
        self._session = _session(model)
        wanted = {SAMPLES} | ({LENGTHS} if self.spec.padding is Padding.MASK else set())
        given = {entry.name for entry in self._session.get_inputs()}
        if given != wanted or FRAMES not in {entry.name for entry in self._session.get_outputs()}:
            raise EncoderError(f"{MODEL_FILE}: its inputs are {sorted(given)}, expected {sorted(wanted)}, and its output should be {FRAMES!r}.")

    def run(self, samples: NDArray[np.float32], lengths: NDArray[np.int64]) -> Sequence[NDArray[np.float32]]:
        """Run the graph; see `WindowedEncoder.run`."""
        if self.about.quantized == "dynamic":
            # It takes the range of its activations from all that it is given at once, so that in a batch one window would move another.
            return [self._run(row[None, :length], np.array([length]))[0] for row, length in zip(samples, lengths.tolist(), strict=True)]
        return list(self._run(samples, lengths))

    def _run(self, samples: NDArray[np.float32], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        given: dict[str, Any] = {SAMPLES: samples} | ({LENGTHS: lengths} if self.spec.padding is Padding.MASK else {})
        with refused_as(f"Encoder {self.spec.name!r} failed ({{kind}})."):
            frames: NDArray[np.float32] = self._session.run([FRAMES], given)[0]
        return frames


def write_encoder(folder: Path, spec: EncoderSpec, model: bytes, *, quantized: Literal["none", "dynamic", "static"] = "none", replace: bool) -> str:
    """Write an encoder's folder in one step, after running it once on a second of silence; return its fingerprint.

    Raises
    ------
    EncoderError
        The graph does not run as the description says, or the folder cannot be written.
    """
    about = EncoderFile(schema=SCHEMA, spec=spec, model_sha256=hashlib.sha256(model).hexdigest(), quantized=quantized)
    encoder = OnnxEncoder(about, model)
    check_shape(encoder)
    publish_folder(
        folder,
        {SPEC_FILE: about.model_dump_json(indent=2, by_alias=True).encode() + b"\n", MODEL_FILE: model},
        known=(SPEC_FILE, MODEL_FILE),
        replace=replace,
        kind=_ENCODER,
    )
    return encoder.fingerprint


def check_shape(encoder: WindowedEncoder) -> None:
    """Raise EncoderError if the encoder's frames are not as wide, or not as many a second, as it says."""
    spec = encoder.spec
    length = round(2 * spec.sample_rate_hz)
    noise = np.random.default_rng(0).normal(0, 0.01, (1, length)).astype(np.float32)
    frames = encoder.run(noise, np.array([length], np.int64))[0]
    expected = 1 if spec.frame_step_s is None else (2 - spec.first_frame_s) / spec.frame_step_s
    if frames.ndim != 2 or frames.shape[1] != spec.frame_dim or abs(len(frames) - expected) > 2:
        raise EncoderError(
            f"Encoder {spec.name!r} gives frames of shape {frames.shape} for 2 s; its description says about ({expected:.0f}, {spec.frame_dim})."
        )


def read_about(folder: Path) -> EncoderFile:
    """Read what an encoder's folder says of itself; its graph is not looked at.

    Raises
    ------
    EncoderError
        There is no such folder, or its description does not follow the schema.
    """
    raw = _read(folder / SPEC_FILE, MAX_SPEC_BYTES)
    try:
        return EncoderFile.model_validate_json(raw)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise EncoderError(f"{SPEC_FILE}: not a description this version reads ({where}: {error.errors()[0]['msg']}).") from None


def read_encoder(folder: Path) -> OnnxEncoder:
    """Read and verify an encoder; the same unchanged folder gives the same object, warm.

    Raises
    ------
    EncoderError
        There is no such folder, a digest does not fit, or ONNX Runtime refuses the graph.
    """
    try:
        stamps = tuple((state.st_ino, state.st_size, state.st_mtime_ns) for state in ((folder / name).stat() for name in (SPEC_FILE, MODEL_FILE)))
    except (OSError, ValueError):
        raise EncoderError(f"No encoder is there: a folder with {SPEC_FILE} and {MODEL_FILE} is needed.") from None
    return _read_once(folder.absolute(), stamps)


@lru_cache(maxsize=4)
def _read_once(folder: Path, _stamps: tuple[tuple[int, int, int], ...]) -> OnnxEncoder:
    about = read_about(folder)
    return OnnxEncoder(about, read_model(folder, about))


def read_model(folder: Path, about: EncoderFile) -> bytes:
    """Return the bytes of an encoder's graph; EncoderError if they are not those that its description states."""
    model = _read(folder / MODEL_FILE, MAX_MODEL_BYTES)
    if hashlib.sha256(model).hexdigest() != about.model_sha256:
        raise EncoderError(f"{MODEL_FILE}: its sha256 is not the one that {SPEC_FILE} states; the folder was damaged or changed. Get it again.")
    return model


def _read(path: Path, limit: int) -> bytes:
    """Read a plain file whole; a link, a pipe, and what is larger than it may be are refused."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise EncoderError(f"{path.name}: not a plain file.")
            content = file.read(limit + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no path can have this form"
        raise EncoderError(f"{path.name}: cannot be read ({reason}).") from None
    if len(content) > limit:
        raise EncoderError(f"{path.name}: larger than {limit} bytes, so it is no encoder's.")
    return content


def _session(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    # One thread: how a product is split over threads decides its last bits. Recordings are spread over processes instead.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # its warnings name nodes; what fails, raises
    with refused_as(f"{MODEL_FILE}: ONNX Runtime cannot read it ({{kind}})."):
        # From bytes, so that a graph cannot send ONNX Runtime to other files for its weights.
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
