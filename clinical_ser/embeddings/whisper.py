"""The encoder of a Whisper model as an ONNX graph, up to a chosen layer.

Trained to write down what is said, its lower layers hold how it is said. Unlike the recogniser it is given the speech as long as it is, not filled up
to 30 s: in silence there is nothing to learn of a voice.

References
----------
Radford A et al. (2023), Robust Speech Recognition via Large-Scale Weak Supervision, ICML, arXiv 2212.04356. Code and weights: OpenAI, MIT.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from clinical_ser.embeddings.graph import Graph
from clinical_ser.embeddings.mel import mel_filters

N_FFT, HOP = 400, 160
FRAME_STEP_S = 2 * HOP / 16_000
"""The second convolution keeps every other frame."""
_LEAST_POWER = 1e-10

Weights = Mapping[str, NDArray[np.float32]]
"""By the names that transformers gives an encoder's weights: `conv1.weight`, `layers.0.self_attn.q_proj.weight`, ..."""


def graph_of(weights: Weights, *, heads: int, layer: int) -> bytes:
    """Return the ONNX model: samples to the output of layer `layer` (1 is the first), every 20 ms.

    Parameters
    ----------
    weights
        Of the encoder.
    heads
        Attention heads.
    layer
        Which layer's output is wanted; layers after it are left out.
    """
    graph = Graph("whisper-encoder")
    mels, dim = weights["conv1.weight"].shape[1], weights["conv1.weight"].shape[0]
    value = _log_mel(graph, mels)
    value = graph.gelu(graph.node("Conv", value, *_both(graph, weights, "conv1"), pads=[1, 1]))
    value = graph.gelu(graph.node("Conv", value, *_both(graph, weights, "conv2"), pads=[1, 1], strides=[2]))
    value = graph.node("Transpose", value, perm=[0, 2, 1])
    value = graph.node("Add", value, _positions(graph, value, weights["embed_positions.weight"]))
    for place in range(layer):
        value = _layer(graph, value, weights, f"layers.{place}.", heads)
    return graph.finish(value, dim)


def _log_mel(graph: Graph, mels: int) -> str:
    """Logarithm of the mel spectrum, at most 8 (80 dB) below its peak in the window, as Whisper's own front end takes it."""
    power = graph.power_spectrum(N_FFT, HOP, pad="reflect")
    # The frame about the end is left out by Whisper.
    power = graph.node("Slice", power, *(graph.constant(np.array([number], np.int64)) for number in (0, -1, 2)))
    mel = graph.mel(power, mel_filters(mels, N_FFT, 16_000))
    log = graph.node("Mul", graph.node("Log", graph.node("Max", mel, graph.constant(_LEAST_POWER))), graph.constant(float(1 / np.log(10))))
    peak = graph.node("ReduceMax", log, axes=[1, 2], keepdims=1)
    bounded = graph.node("Max", log, graph.node("Sub", peak, graph.constant(8.0)))
    return graph.node("Mul", graph.node("Add", bounded, graph.constant(4.0)), graph.constant(0.25))


def _positions(graph: Graph, value: str, table: NDArray[np.float32]) -> str:
    length = graph.node("Slice", graph.node("Shape", value), *(graph.constant(np.array([number], np.int64)) for number in (1, 2)))
    zero = graph.constant(np.array([0], np.int64))
    return graph.node("Slice", graph.constant(table), zero, length, zero)


def _layer(graph: Graph, value: str, weights: Weights, name: str, heads: int) -> str:
    normed = graph.layer_norm(value, weights[f"{name}self_attn_layer_norm.weight"], weights[f"{name}self_attn_layer_norm.bias"])
    value = graph.node("Add", value, _attention(graph, normed, weights, f"{name}self_attn.", heads))
    normed = graph.layer_norm(value, weights[f"{name}final_layer_norm.weight"], weights[f"{name}final_layer_norm.bias"])
    inner = graph.gelu(graph.dense(normed, weights[f"{name}fc1.weight"], weights[f"{name}fc1.bias"]))
    return graph.node("Add", value, graph.dense(inner, weights[f"{name}fc2.weight"], weights[f"{name}fc2.bias"]))


def _attention(graph: Graph, value: str, weights: Weights, name: str, heads: int) -> str:
    width = weights[f"{name}q_proj.weight"].shape[0] // heads

    def parted(projection: str, *axes: int) -> str:
        bias = weights.get(f"{name}{projection}.bias")  # keys have none
        whole = graph.dense(value, weights[f"{name}{projection}.weight"], bias)
        return graph.node("Transpose", graph.shaped(whole, 0, 0, heads, width), perm=list(axes))

    query, key = parted("q_proj", 0, 2, 1, 3), parted("k_proj", 0, 2, 3, 1)
    scores = graph.node("Mul", graph.node("MatMul", query, key), graph.constant(float(width**-0.5)))
    mixed = graph.node("MatMul", graph.node("Softmax", scores, axis=-1), parted("v_proj", 0, 2, 1, 3))
    joined = graph.shaped(graph.node("Transpose", mixed, perm=[0, 2, 1, 3]), 0, 0, heads * width)
    return graph.dense(joined, weights[f"{name}out_proj.weight"], weights[f"{name}out_proj.bias"])


def _both(graph: Graph, weights: Weights, name: str) -> tuple[str, str]:
    return graph.constant(weights[f"{name}.weight"]), graph.constant(weights[f"{name}.bias"])
