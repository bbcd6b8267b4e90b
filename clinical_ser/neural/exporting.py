"""From a trained network to the graph that is served: waveforms in, frames out, without torch.

The one idea: the graph is written node by node from the weights, as those of all encoders here are, so that the same weights give the same bytes
and no exporter's notes; and it is held against the network, at several lengths and batch sizes, before anyone gets it.
"""

from pathlib import Path
from typing import cast

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clinical_ser.embeddings.graph import Graph
from clinical_ser.embeddings.onnx import FRAMES, SAMPLES
from clinical_ser.errors import EncoderError
from clinical_ser.neural.networks import FLOOR, LogMelCnn

PARITY = 1e-4
"""Largest difference from the network's own frames."""
_PROBE_SEED = 20_260
_PROBE_LEVEL = 0.1
_GRU_GATES = (1, 0, 2)
"""torch keeps a GRU's gates as reset, update, new; ONNX as update, reset, hidden."""


def export_onnx(network: LogMelCnn, path: Path) -> None:
    """Write the network's encoder as ONNX, and check it.

    Parameters
    ----------
    network : LogMelCnn
    path : Path
        Gets a graph with the input `samples`, float32 (windows, samples) at 16 kHz, and the output `frames`, float32 (windows, frames, width).
        Windows and samples are free; windows of one call are equally long. Written only if the graph passes.

    Raises
    ------
    EncoderError
        The graph's frames differ from the network's by more than `PARITY`.
    """
    network.train(mode=False)
    content = graph_of(network)
    check_parity(network, content)
    path.write_bytes(content)


def graph_of(network: LogMelCnn) -> bytes:
    """Return the ONNX model: samples to frames."""
    shape, graph = network.shape, Graph("log_mel_cnn")
    with_channel = graph.node("Unsqueeze", SAMPLES, graph.constant(np.array([1], np.int64)))
    parts = graph.node("Conv", with_channel, graph.constant(_array(network.fourier)), strides=[shape.hop])
    # The sum of both squares and the mel filters are one product: (bands, 2 × bins).
    filters = _array(network.filters).T
    power = graph.node("MatMul", graph.constant(np.concatenate([filters, filters], axis=1)), graph.node("Mul", parts, parts))
    log = graph.node("Log", graph.node("Add", power, graph.constant(FLOOR)))
    value = graph.node("Sub", log, graph.constant(_array(network.mean)[:, None]))
    value = graph.node("Div", value, graph.constant(_array(network.scale)[:, None]))
    value = graph.node("Unsqueeze", value, graph.constant(np.array([1], np.int64)))
    for block in network.blocks:
        value = _layers(graph, value, block)
    value = _layers(graph, graph.shaped(value, 0, shape.channels[-1] * shape.bands // 2 ** len(shape.channels), -1), network.project)
    if isinstance(network.context, nn.GRU):
        frames = _gru(graph, value, network.context)
    else:
        frames = graph.node("Transpose", _layers(graph, value, network.context), perm=[0, 2, 1])
    return graph.finish(frames, shape.width)


def check_parity(network: LogMelCnn, content: bytes) -> None:
    """Raise EncoderError unless an ONNX model gives the network's frames."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    least = network.shape.minimum_samples
    random = np.random.default_rng(_PROBE_SEED)
    for windows, samples in ((1, least), (1, 5 * least + 1), (2, 16_001 + least)):
        given = random.normal(0, _PROBE_LEVEL, (windows, samples)).astype(np.float32)
        with torch.inference_mode():
            expected = network.frames(torch.from_numpy(given)).numpy()
        found = np.asarray(session.run([FRAMES], {SAMPLES: given})[0])
        if found.shape != expected.shape or not np.abs(found - expected).max() <= PARITY:
            raise EncoderError(f"The exported graph does not give the network's frames for {samples} samples to within {PARITY:g}.")


def _layers(graph: Graph, value: str, layers: nn.Module) -> str:
    """Add the layers of a block one by one."""
    for layer in layers.children():
        if isinstance(layer, nn.Conv1d | nn.Conv2d):
            pads = [int(pad) for pad in layer.padding] * 2
            value = graph.node("Conv", value, graph.constant(_array(layer.weight)), pads=pads)
        elif isinstance(layer, nn.MaxPool2d):
            size = list(cast("tuple[int, int]", layer.kernel_size))
            value = graph.node("MaxPool", value, kernel_shape=size, strides=size)
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            learned = (layer.weight, layer.bias, layer.running_mean, layer.running_var)
            constants = [graph.constant(_array(cast("Tensor", values))) for values in learned]
            value = graph.node("BatchNormalization", value, *constants, epsilon=layer.eps)
        else:
            value = graph.node("Relu", value)
    return value


def _gru(graph: Graph, value: str, layer: nn.GRU) -> str:
    """Add a bidirectional GRU: (windows, in, frames) to (windows, frames, 2 × hidden)."""

    def weights(kind: str) -> NDArray[np.float32]:
        found = [_array(cast("Tensor", getattr(layer, f"{kind}_l0{direction}"))) for direction in ("", "_reverse")]
        return np.stack([np.concatenate([np.split(matrix, 3)[gate] for gate in _GRU_GATES]) for matrix in found])

    bias = np.concatenate([weights("bias_ih"), weights("bias_hh")], axis=1)
    constants = [graph.constant(values) for values in (weights("weight_ih"), weights("weight_hh"), bias)]
    in_time = graph.node("Transpose", value, perm=[2, 0, 1])
    states = graph.node("GRU", in_time, *constants, hidden_size=layer.hidden_size, direction="bidirectional", linear_before_reset=1)
    # (frames, directions, windows, hidden): both directions of a frame side by side.
    return graph.shaped(graph.node("Transpose", states, perm=[2, 0, 1, 3]), 0, 0, 2 * layer.hidden_size)


def _array(values: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(values.detach().numpy())
