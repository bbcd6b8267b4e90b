"""Smaller and faster encoders in whole numbers (INT8), and the gate that says whether one may be used in place of the original.

The one idea: what may be rounded depends on the network, and whether it was harmless is measured, at lengths that the calibration alone would not
show (a softmax over time is as small as the recording is long).

    transformer       weights of its products rounded, activations as they come ("dynamic")
    convolutions      weights and activations rounded, ranges from calibration speech ("static", QDQ)
    recurrent         left alone: of GE2E's LSTM, rounded, a cosine of 0.44 was left (measured)
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from pydantic import Field

from clinical_ser import audio
from clinical_ser.audio.recording import SAMPLE_RATE_HZ, Recording
from clinical_ser.embeddings.encoder import EncoderSpec, Padding, WindowedEncoder
from clinical_ser.embeddings.foreign import refused_as
from clinical_ser.embeddings.onnx import LENGTHS, SAMPLES, SCHEMA, EncoderFile, OnnxEncoder
from clinical_ser.embeddings.windows import all_speech
from clinical_ser.errors import EncoderError, GateError, InvalidValueError
from clinical_ser.strict import Strict

Kind = Literal["dynamic", "static"]

LENGTHS_S = (1.0, 3.0, 10.0)
"""Lengths at which a graph is compared: one window each, so what differs is the network's answer alone."""
LEAST_COSINE = 0.995
MOST_UAR_LOSS = 1.5
"""Points of unweighted average recall."""

_RECURRENT = {"LSTM", "GRU", "RNN"}


class Agreement(Strict):
    """How near the vectors of the smaller encoder are to the original's, for recordings of one length."""

    seconds: float
    cosine: float
    """The least of all recordings."""
    moved: float | None
    """How far the vectors moved, of how far those of different recordings lie apart (root mean squares); None for one recording. A cosine hides this
    where all vectors point the same way, as those of many networks do."""


class UarLoss(Strict):
    """What a classifier on the vectors loses, subjects kept apart, and its paired interval over subjects; points."""

    task: str
    before: float
    after: float
    loss: float
    low: float | None
    high: float | None
    level: float
    subjects: int
    recordings: int
    left_out: int = Field(ge=0)
    """Recordings that cannot be read, or hold no speech."""


class Quantized(Strict):
    """What the gate measured."""

    kind: Kind
    agreement: tuple[Agreement, ...]
    uar: UarLoss | None
    """None: not checked."""
    bytes_before: int
    bytes_after: int


LossOf = Callable[[WindowedEncoder, WindowedEncoder], UarLoss]
"""Called with the original and the smaller encoder."""


@dataclass(frozen=True, eq=False)
class Trial:
    """What a smaller encoder has to stand."""

    speech: Sequence[Recording]
    """Calibrates it, and is what cosines are taken on; some of 10 s or more."""
    loss_of: LossOf | None = None
    """None: what recognition loses is not checked, and the report says so."""


def encoder_of(spec: EncoderSpec, model: bytes, quantized: Literal["none", "dynamic", "static"] = "none") -> OnnxEncoder:
    """Return an encoder of a graph in memory."""
    return OnnxEncoder(EncoderFile(schema=SCHEMA, spec=spec, model_sha256=hashlib.sha256(model).hexdigest(), quantized=quantized), model)


def quantize(spec: EncoderSpec, model: bytes, trial: Trial) -> tuple[bytes, Quantized]:
    """Return a smaller graph that passed the gate, and what the gate measured.

    Raises
    ------
    EncoderError
        The network is one that is left alone, or its graph cannot be rounded.
    GateError
        The smaller graph's vectors are too far from the original's, or it loses too much recall.
    InvalidValueError
        No recording is long enough to check with.
    """
    graph = onnx.load_from_string(model)
    kind = kind_of(graph)
    excerpts = {seconds: _excerpts(trial.speech, seconds) for seconds in LENGTHS_S}
    original = encoder_of(spec, model)
    smaller_model = _rounded(graph, kind, _calibration(original, excerpts))
    smaller = encoder_of(spec, smaller_model, kind)
    agreement = tuple(_agreement(seconds, original, smaller, cut) for seconds, cut in excerpts.items())
    if far := [f"{one.cosine:.4f} at {one.seconds:g} s" for one in agreement if not one.cosine >= LEAST_COSINE]:
        raise GateError(
            f"Not written: the smaller encoder's vectors differ too much (cosine {', '.join(far)}; at least {LEAST_COSINE} is asked for)."
        )
    loss = None if trial.loss_of is None else trial.loss_of(original, smaller)
    if loss is not None and not loss.loss <= MOST_UAR_LOSS:
        raise GateError(f"Not written: the smaller encoder loses {loss.loss:.1f} points of UAR (at most {MOST_UAR_LOSS} are allowed).")
    return smaller_model, Quantized(kind=kind, agreement=agreement, uar=loss, bytes_before=len(model), bytes_after=len(smaller_model))


def kind_of(model: onnx.ModelProto) -> Kind:
    """Say how a network may be rounded; EncoderError if it should be left alone."""
    operators = {node.op_type for node in model.graph.node}
    if operators & _RECURRENT:
        raise EncoderError("The encoder is a recurrent network, which is left in float32: rounded, GE2E's vectors kept a cosine of 0.44 only.")
    if any(node.op_type in {"MatMulInteger", "QLinearConv", "QuantizeLinear", "DynamicQuantizeLinear"} for node in model.graph.node):
        raise EncoderError("The encoder is quantized already.")
    fixed = _constants(model)
    in_front = set(_front_end(model))
    if any(n.op_type == "MatMul" and not fixed & set(n.input) and n.name not in in_front for n in model.graph.node):
        return "dynamic"  # a product of two activations is attention
    if "Conv" in operators:
        return "static"
    raise EncoderError("The encoder has neither attention nor convolutions, so that nothing is known of rounding it.")


def strip(model: onnx.ModelProto) -> None:
    """Take out what a graph says beyond what it computes: inferred shapes, which stand in the way of rounding, and traces of where it was made."""
    del model.graph.value_info[:]
    del model.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]


def _rounded(model: onnx.ModelProto, kind: Kind, calibration: Sequence[Mapping[str, NDArray[np.generic]]]) -> bytes:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(calibration)

        def get_next(self) -> Mapping[str, NDArray[np.generic]] | None:
            return next(self._left, None)

    strip(model)
    # The mark of its own preparation, without which it writes to the root logger. Nothing of that preparation is needed here.
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    # Seven bits of weight: with eight, processors without VNNI saturate, and one encoder would give two answers.
    options = {"per_channel": True, "reduce_range": True, "weight_type": QuantType.QInt8, "nodes_to_exclude": list(_front_end(model))}
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "whole.onnx"), Path(folder, "rounded.onnx")
        onnx.save(model, source)
        with refused_as("ONNX Runtime cannot round this graph ({kind})."):
            if kind == "dynamic":
                quantize_dynamic(source, target, op_types_to_quantize=["MatMul"], **options)
            else:
                wanted = ["Conv", "MatMul"]
                quantize_static(
                    source, target, Reader(), quant_format=QuantFormat.QDQ, op_types_to_quantize=wanted, activation_type=QuantType.QUInt8, **options
                )
            rounded = onnx.load(target)
    strip(rounded)
    return bytes(rounded.SerializeToString(deterministic=True))


def _constants(model: onnx.ModelProto) -> set[str]:
    made = {out for node in model.graph.node if node.op_type == "Constant" for out in node.output}
    return made | {tensor.name for tensor in model.graph.initializer}


def _front_end(model: onnx.ModelProto) -> Iterator[str]:
    """Name the nodes before a logarithm: a power spectrum spans more than eight bits hold. Nodes without a name get one."""
    for place, node in enumerate(model.graph.node):
        node.name = node.name or f"node{place}"
    wanted: set[str] = set()
    for node in reversed(model.graph.node):  # in topological order, so each is met before what it takes
        if node.op_type == "Log" or wanted & set(node.output):
            wanted |= set(node.input)
            yield node.name


def _excerpts(speech: Sequence[Recording], seconds: float) -> list[Recording]:
    length = round(seconds * SAMPLE_RATE_HZ)
    long = [recording for recording in speech if len(recording.samples) >= length]
    if not long:
        raise InvalidValueError("speech to check the smaller encoder with", "no recording that long", f"at least one of {seconds:g} s")
    middle = [(len(recording.samples) - length) // 2 for recording in long]
    return [audio.from_samples(one.samples[start : start + length], SAMPLE_RATE_HZ) for one, start in zip(long, middle, strict=True)]


def _calibration(encoder: WindowedEncoder, excerpts: Mapping[float, Sequence[Recording]]) -> list[dict[str, NDArray[np.generic]]]:
    """Return what the graph is given for the excerpts, each alone."""
    heard: list[dict[str, NDArray[np.generic]]] = []

    class Listener(WindowedEncoder):
        spec = encoder.spec

        def run(self, samples: NDArray[np.float32], lengths: NDArray[np.int64]) -> Sequence[NDArray[np.float32]]:
            masked: dict[str, NDArray[np.generic]] = {LENGTHS: lengths} if self.spec.padding is Padding.MASK else {}
            heard.append({SAMPLES: samples} | masked)
            return encoder.run(samples, lengths)

    for recordings in excerpts.values():
        for recording in recordings:
            Listener().encode([recording], speech=[all_speech(recording)])
    return heard


def _agreement(seconds: float, first: WindowedEncoder, second: WindowedEncoder, recordings: Sequence[Recording]) -> Agreement:
    speech = [all_speech(recording) for recording in recordings]
    before, after = (np.stack([one.utterance for one in encoder.encode(recordings, speech=speech)]) for encoder in (first, second))
    apart = float(np.sqrt(((before - before.mean(axis=0)) ** 2).sum(axis=1).mean()))
    moved = float(np.sqrt(((before - after) ** 2).sum(axis=1).mean()))
    least = min(cosine(one, other) for one, other in zip(before, after, strict=True))
    return Agreement(seconds=seconds, cosine=least, moved=moved / apart if apart > 0 else None)


def cosine(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Return the cosine of the angle between two vectors."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-300))
