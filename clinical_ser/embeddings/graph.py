"""Pieces of ONNX graphs that are written by hand: the encoders that ship as weights become graphs without the library that trained them.

The one idea: a graph takes samples, so its front end (framing, Fourier transform, mel filters) is part of what its digest covers.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from clinical_ser.embeddings.mel import dft_kernels
from clinical_ser.embeddings.onnx import FRAMES, SAMPLES

OPSET = 17
IR_VERSION = 8
"""Of ONNX 1.12: every ONNX Runtime since 1.12 reads it."""


class Graph:
    """An ONNX graph, node after node; each method returns the name of what the node gives."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def constant(self, value: NDArray[np.float32] | NDArray[np.int64] | float) -> str:
        """Add a constant: floats in float32, whole numbers in int64."""
        array = np.asarray(value)
        kind = np.int64 if array.dtype.kind == "i" else np.float32
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(array, kind), name))
        return name

    def node(self, kind: str, *inputs: str, outputs: int = 1, to: str | None = None, **attributes: Any) -> str:
        """Add a node; of several outputs the first one's name is returned."""
        names = [to or f"v{len(self._nodes)}", *(f"v{len(self._nodes)}_{i}" for i in range(1, outputs))]
        self._nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0]

    def shaped(self, value: str, *shape: int) -> str:
        """Reshape; 0 keeps a length, -1 takes the rest."""
        return self.node("Reshape", value, self.constant(np.array(shape, np.int64)))

    def dense(self, value: str, weight: NDArray[np.float32], bias: NDArray[np.float32] | None = None) -> str:
        """Multiply the last axis with `weight` (out, in), as torch's Linear does."""
        product = self.node("MatMul", value, self.constant(weight.T))
        return product if bias is None else self.node("Add", product, self.constant(bias))

    def layer_norm(self, value: str, gain: NDArray[np.float32], bias: NDArray[np.float32]) -> str:
        """Standardise the last axis (variance + 1e-5, as torch does)."""
        return self.node("LayerNormalization", value, self.constant(gain), self.constant(bias), axis=-1, epsilon=1e-5)

    def gelu(self, value: str) -> str:
        """Gaussian error linear unit, exact."""
        error = self.node("Erf", self.node("Mul", value, self.constant(float(np.sqrt(0.5)))))
        return self.node("Mul", self.node("Mul", value, self.constant(0.5)), self.node("Add", error, self.constant(1.0)))

    def power_spectrum(self, n_fft: int, hop: int, *, pad: str) -> str:
        """Frame the samples about every `hop`-th, and return the power of a Hann-windowed Fourier transform: (windows, n_fft // 2 + 1, frames).

        `pad` is ONNX's word for what is put before the first and after the last sample: `constant` or `reflect`.
        """
        half = n_fft // 2
        padded = self.node("Pad", SAMPLES, self.constant(np.array([0, half, 0, half], np.int64)), mode=pad)
        with_channel = self.node("Unsqueeze", padded, self._number(1))
        # Cosines and sines as one convolution, which every runtime has; the STFT operator came late and not everywhere.
        parts = self.node("Conv", with_channel, self.constant(dft_kernels(n_fft)[:, None]), strides=[hop])
        squares = self.node("Mul", parts, parts)
        bins = half + 1
        axis = self._number(1)
        real = self.node("Slice", squares, self._number(0), self._number(bins), axis)
        imaginary = self.node("Slice", squares, self._number(bins), self._number(2 * bins), axis)
        return self.node("Add", real, imaginary)

    def mel(self, power: str, filters: NDArray[np.float32]) -> str:
        """Sum the power under each filter, (mels, bins): (windows, mels, frames)."""
        return self.node("MatMul", self.constant(filters), power)

    def _number(self, number: int) -> str:
        return self.constant(np.array([number], np.int64))

    def finish(self, frames: str, dim: int) -> bytes:
        """Return the model, checked, as bytes; the same weights give the same bytes."""
        self.node("Identity", frames, to=FRAMES)
        graph = helper.make_graph(
            self._nodes,
            self._name,
            [helper.make_tensor_value_info(SAMPLES, TensorProto.FLOAT, ["windows", "samples"])],
            [helper.make_tensor_value_info(FRAMES, TensorProto.FLOAT, ["windows", "frames", dim])],
            self._constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="clinical-ser")
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString(deterministic=True))


def gates_in_onnx_order(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Reorder the rows of an LSTM's matrix from torch's gates (input, forget, cell, output) to ONNX's (input, output, forget, cell)."""
    i, f, c, o = np.split(matrix, 4)
    return np.concatenate([i, o, f, c])


def lstm(graph: Graph, value: str, weights: Sequence[NDArray[np.float32]]) -> str:
    """Add one LSTM layer: `value` (frames, windows, in) to (frames, windows, hidden); weights as torch names them: ih, hh, bias ih, bias hh."""
    ih, hh, bias_ih, bias_hh = map(gates_in_onnx_order, weights)
    bias = np.concatenate([bias_ih, bias_hh])
    out = graph.node("LSTM", value, *(graph.constant(part[None]) for part in (ih, hh, bias)), hidden_size=hh.shape[1])
    return graph.node("Squeeze", out, graph.constant(np.array([1], np.int64)))
