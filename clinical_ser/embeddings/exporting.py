"""From a torch model to the folder that is served: traced once, compared with the original, and, if asked for, made smaller.

The one idea: nothing is written that was not first run beside the original at three lengths, alone and in a batch.
"""

import contextlib
import ctypes
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from pydantic import Field

from clinical_ser.embeddings.encoder import EncoderSpec, Padding, WindowedEncoder
from clinical_ser.embeddings.foreign import refused_as
from clinical_ser.embeddings.graph import OPSET
from clinical_ser.embeddings.onnx import FRAMES, LENGTHS, MAX_MODEL_BYTES, SAMPLES, OnnxEncoder, write_encoder
from clinical_ser.embeddings.quantizing import LENGTHS_S, Quantized, Trial, cosine, encoder_of, quantize, strip
from clinical_ser.embeddings.torch_encoder import TorchEncoder, one_thread
from clinical_ser.errors import EncoderError
from clinical_ser.strict import Strict

MOST_DIFFERENCE = 1e-4
"""Between torch's frames and the graph's, of the scale of the frames: float32 and another order of sums."""
_TRACED_S = 1.7
"""Length of the example that is traced: none of those compared, so that a length that was taken for fixed shows."""


class Parity(Strict):
    """How near the graph is to the original, for signals of one length."""

    seconds: float
    difference: float = Field(ge=0)
    """Largest difference of any number in any frame, of the largest number in them."""
    cosine: float
    """Of the means over frames."""


class ExportReport(Strict):
    """What was written, and what was measured before."""

    name: str
    fingerprint: str
    dim: int
    bytes: int
    parity: tuple[Parity, ...]
    """Empty where the original was a graph already."""
    quantized: Quantized | None = None
    """None: in float32."""


def export(
    encoder: WindowedEncoder, folder: Path, *, name: str | None = None, model: bytes | None = None, trial: Trial | None = None, replace: bool = False
) -> ExportReport:
    """Write an encoder's folder.

    Parameters
    ----------
    encoder
        A `TorchEncoder`, such as `transformers.load` returns; or any, with the graph that it already is as `model`.
    folder
        Where the encoder goes.
    name
        What it is called there; its own name otherwise.
    model
        The ONNX graph, where there is one already.
    trial
        Makes the graph smaller, and says what that has to stand; None leaves it in float32.
    replace
        Whether an encoder that is there may be replaced.

    Raises
    ------
    EncoderError
        The encoder cannot become a graph, the graph gives other numbers, or the folder cannot be written.
    GateError
        The smaller graph did not stand its trial. Nothing is written.
    """
    spec = encoder.spec if name is None else EncoderSpec.model_validate(encoder.spec.model_dump() | {"name": name})
    if isinstance(encoder, OnnxEncoder) and encoder.about.quantized != "none":
        raise EncoderError(f"Encoder {spec.name!r} is quantized already; install its folder as it is.")
    if model is None:
        if not isinstance(encoder, TorchEncoder):
            raise EncoderError(f"Encoder {spec.name!r} is no torch model, so that it cannot be exported.")
        model = traced(encoder)
    parity = () if isinstance(encoder, OnnxEncoder) else check_parity(encoder, model)
    smaller, about = (model, None) if trial is None else quantize(spec, model, trial)
    fingerprint = write_encoder(folder, spec, smaller, quantized=about.kind if about else "none", replace=replace)
    return ExportReport(name=spec.name, fingerprint=fingerprint, dim=spec.dim, bytes=len(smaller), parity=parity, quantized=about)


def traced(encoder: TorchEncoder) -> bytes:
    """Return the ONNX graph of a torch encoder: any number of windows, of any length."""
    spec, length = encoder.spec, round(_TRACED_S * encoder.spec.sample_rate_hz)
    masked = spec.padding is Padding.MASK
    samples, lengths = torch.zeros(2, length), torch.tensor([length, length * 2 // 3])
    samples[:, ::7] = 0.1
    axes = {SAMPLES: {0: "windows", 1: "samples"}, FRAMES: {0: "windows", 1: "frames"}} | ({LENGTHS: {0: "windows"}} if masked else {})
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), _without_stdout(), one_thread(), torch.no_grad():
        # That a trace keeps what was one number in the example is what `check_parity` is for.
        warnings.simplefilter("ignore")
        with refused_as(f"Encoder {spec.name!r} cannot become a graph ({{kind}})."):
            # The exporter by tracing: 0.3-1.3 s for networks that the one by torch.export takes 16-38 s for, with graphs as near to the original.
            torch.onnx.export(
                encoder.module,
                (samples, lengths) if masked else (samples,),
                Path(folder, "traced.onnx"),
                input_names=[SAMPLES, LENGTHS] if masked else [SAMPLES],
                output_names=[FRAMES],
                dynamic_axes=axes,
                opset_version=OPSET,
                dynamo=False,
            )
            model = onnx.load(Path(folder, "traced.onnx"))
    strip(model)
    raw = bytes(model.SerializeToString(deterministic=True))
    if len(raw) > MAX_MODEL_BYTES:
        raise EncoderError("The graph is larger than one ONNX file can be (2 GB); choose a lower layer.")
    return raw


@contextlib.contextmanager
def _without_stdout() -> Iterator[None]:
    """Keep what C++ writes to stdout away from it: a network that cannot be traced is printed there, with paths of this machine in it."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def check_parity(encoder: WindowedEncoder, model: bytes) -> tuple[Parity, ...]:
    """Compare a graph with the original at three lengths, two windows in a batch; EncoderError if they differ."""
    served = encoder_of(encoder.spec, model)
    found = []
    for seconds in LENGTHS_S:
        length = round(seconds * encoder.spec.sample_rate_hz)
        samples = _signal(encoder.spec, length)
        # Where padding is masked, the second window is the shorter, as in a true batch.
        lengths = np.array([length, length * 3 // 4 if encoder.spec.padding is Padding.MASK else length])
        samples[1, lengths[1] :] = 0
        expected, given = np.stack(encoder.run(samples, lengths)), np.stack(served.run(samples, lengths))
        if expected.shape != given.shape or not np.isfinite(given).all():
            raise EncoderError(f"The graph of encoder {encoder.spec.name!r} gives frames of another shape, or none; nothing was written.")
        difference = float(np.abs(expected - given).max() / max(float(np.abs(expected).max()), 1e-30))
        alike = min(cosine(one.mean(axis=0), other.mean(axis=0)) for one, other in zip(expected, given, strict=True))
        found.append(Parity(seconds=seconds, difference=difference, cosine=alike))
    if worst := [one for one in found if not one.difference <= MOST_DIFFERENCE]:
        one = worst[0]
        raise EncoderError(
            f"The graph of encoder {encoder.spec.name!r} differs from the original by {one.difference:.1e} of its scale at {one.seconds:g} s; "
            f"at most {MOST_DIFFERENCE:.0e} is allowed. Nothing was written."
        )
    return tuple(found)


def _signal(spec: EncoderSpec, length: int) -> NDArray[np.float32]:
    """Return two windows of harmonic glides in noise, at the level that the network is given."""
    t = np.arange(length) / spec.sample_rate_hz
    noise = np.random.default_rng(0).standard_normal((2, length))
    glides = [sum(np.sin(2 * np.pi * k * (f0 * t + 10 * np.sin(t))) / k for k in range(1, 15)) for f0 in (110.0, 210.0)]
    signal = np.stack(glides) * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * t)) + 0.1 * noise
    signal /= signal.std(axis=1, keepdims=True)
    return np.asarray(signal * (1.0 if spec.standardise else 0.05), np.float32)
