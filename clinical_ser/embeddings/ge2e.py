"""The GE2E speaker encoder of Resemblyzer as an ONNX graph, read from the published wheel without its library.

Its d-vector, the end of three LSTM layers, is trained to keep who speaks and lose how; the layer below the last keeps both. Mean and standard
deviation of that layer over speech tell 15 points more of RAVDESS's emotions apart than the d-vector does (docs/benchmarks.md).

References
----------
Wan L, Wang Q, Papir A, Lopez Moreno I (2018), Generalized End-to-End Loss for Speaker Verification, ICASSP:4879-4883, arXiv 1710.10467.
Weights: Resemblyzer 0.1.4, Resemble AI / Corentin Jemine, Apache-2.0 (LibriSpeech, VoxCeleb 1 and 2).
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clinical_ser.embeddings.encoder import EncoderSpec, Padding, Pooling
from clinical_ser.embeddings.mel import mel_filters

if TYPE_CHECKING:  # to write a graph needs onnx, which serving does without
    from clinical_ser.embeddings.graph import Graph

N_FFT, HOP, MELS, HIDDEN = 400, 160, 40, 256
LAYERS = 2
"""Of the network's three; see above."""
WEIGHTS_SHA256 = "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e"
WEIGHTS_BYTES = 17_090_379

# The file is a pickle, which could run code if it were loaded as one. Its digest is known, so where its numbers lie is known too.
_OFFSETS = (
    (269_883, 433_723, 5_676_603, 5_680_699),
    (1_482_299, 2_530_875, 5_684_795, 5_688_891),
    (3_579_451, 4_628_027, 5_692_987, 5_697_083),
)
"""For each layer, where the weights (ih, hh) and biases (ih, hh) begin; float32, little-endian."""

SPEC = EncoderSpec(
    name="ge2e",
    title="GE2E speaker encoder, second LSTM layer",
    frame_dim=HIDDEN,
    frame_step_s=HOP / 16_000,
    padding=Padding.NONE_NEEDED,
    pooling=Pooling.MEAN_SD,
    raise_to_dbfs=-30.0,
    licence="Apache-2.0",
    source="Resemblyzer 0.1.4 (Resemble AI), weights trained on LibriSpeech, VoxCeleb 1 and VoxCeleb 2",
)

Layer = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


def layers_of(content: bytes) -> list[Layer]:
    """Return each LSTM layer's weights from the bytes of `pretrained.pt`, whose digest was checked: ih, hh, bias ih, bias hh."""
    layers: list[Layer] = []
    for place, (ih, hh, bias_ih, bias_hh) in enumerate(_OFFSETS):
        width = HIDDEN if place else MELS
        weights = (_matrix(content, ih, width), _matrix(content, hh, HIDDEN), _matrix(content, bias_ih, 1)[:, 0], _matrix(content, bias_hh, 1)[:, 0])
        layers.append(weights)
    return layers


def graph_of(content: bytes, layers: int = LAYERS) -> bytes:
    """Return the ONNX model: samples to the hidden states of a layer, every 10 ms."""
    from clinical_ser.embeddings.graph import Graph

    graph = Graph("ge2e")
    return graph.finish(graph.node("Transpose", hidden_states(graph, content, layers), perm=[1, 0, 2]), HIDDEN)


def hidden_states(graph: "Graph", content: bytes, layers: int) -> str:
    """Add the network from samples to the hidden states of a layer, (frames, windows, `HIDDEN`)."""
    from clinical_ser.embeddings.graph import lstm

    mel = graph.mel(graph.power_spectrum(N_FFT, HOP, pad="constant"), mel_filters(MELS, N_FFT, 16_000))
    value = graph.node("Transpose", mel, perm=[2, 0, 1])
    for layer in layers_of(content)[:layers]:
        value = lstm(graph, value, layer)
    return value


def _matrix(content: bytes, offset: int, columns: int) -> NDArray[np.float32]:
    return np.frombuffer(content, "<f4", 4 * HIDDEN * columns, offset).reshape(4 * HIDDEN, columns).astype(np.float32)
