"""Encoders small enough to be checked by hand, and recordings for them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from clinical_ser.audio import Recording, from_samples
from clinical_ser.audio.recording import SAMPLE_RATE_HZ
from clinical_ser.embeddings import EncoderSpec, Padding, Pooling, WindowedEncoder
from clinical_ser.embeddings.onnx import write_encoder
from tests import signals

STEP = 160


def spec(**changes: object) -> EncoderSpec:
    """An encoder of two dimensions with a frame every 10 ms."""
    usual = {
        "name": "tiny",
        "title": "For tests",
        "frame_dim": 2,
        "frame_step_s": 0.01,
        "padding": Padding.NONE_NEEDED,
        "licence": "Apache-2.0",
        "source": "made here",
    }
    return EncoderSpec.model_validate(usual | changes)


class Local(WindowedEncoder):
    """Frame k: the mean and the mean square of the 50 ms around sample 160 k; it hears nothing beyond, so windows must not show."""

    def __init__(self, **changes: object) -> None:
        self.spec = spec(**changes)
        self.fingerprint = self.spec.fingerprint_of("0" * 64)
        self.batches: list[tuple[int, ...]] = []

    def run(self, samples: NDArray[np.float32], lengths: NDArray[np.int64]) -> Sequence[NDArray[np.float32]]:
        self.batches.append(tuple(lengths.tolist()))
        padded = np.pad(samples, ((0, 0), (400, 400)))
        views = np.lib.stride_tricks.sliding_window_view(padded, 800, axis=1)[:, ::STEP]
        return list(np.stack([views.mean(axis=2), np.square(views).mean(axis=2)], axis=2).astype(np.float32))


def speech(seconds: float, seed: int = 0) -> Recording:
    """Synthetic speech with pauses, cut to a length."""
    made = signals.sentence(phrases=max(2, int(seconds)), syllables=4, pauses_s=(0.4, 0.6))
    samples = signals.add_noise(made.samples, 40.0, speech_s=made.speech_s, seed=seed)
    length = round(seconds * SAMPLE_RATE_HZ)
    return from_samples(np.tile(samples, -(-length // len(samples)))[:length], SAMPLE_RATE_HZ)


def tiny_onnx(folder: Path, *, seed: int = 0, **changes: object) -> str:
    """Write an encoder whose graph is a mel front end and one layer; return its fingerprint."""
    pytest.importorskip("onnx")
    from clinical_ser.embeddings.graph import Graph
    from clinical_ser.embeddings.mel import mel_filters

    wanted = spec(**({"pooling": Pooling.MEAN_SD, "frame_dim": 3} | changes))
    graph = Graph("tiny")
    mel = graph.mel(graph.power_spectrum(400, STEP, pad="constant"), mel_filters(20, 400, SAMPLE_RATE_HZ))
    log = graph.node("Log", graph.node("Add", mel, graph.constant(1e-6)))
    weight = np.random.default_rng(seed).normal(size=(wanted.frame_dim, 20)).astype(np.float32) / 20
    frames = graph.node("Tanh", graph.dense(graph.node("Transpose", log, perm=[0, 2, 1]), weight))
    return write_encoder(folder, wanted, graph.finish(frames, wanted.frame_dim), replace=True)
