"""What an encoder costs: time for a second of speech, memory and size, each measured in a process that has done nothing else."""

import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from pydantic import Field

from clinical_ser import audio
from clinical_ser.audio.recording import SAMPLE_RATE_HZ, Recording
from clinical_ser.embeddings.encoder import Encoder
from clinical_ser.embeddings.onnx import MODEL_FILE, OnnxEncoder
from clinical_ser.embeddings.registry import find_encoder, folder_of
from clinical_ser.embeddings.windows import all_speech
from clinical_ser.errors import ClinicalSerError
from clinical_ser.strict import Strict

BATCH = 8
_REPEATS = 3


class Bench(Strict):
    """Costs of one encoder, on one thread."""

    reference: str
    """As it was asked for."""
    name: str | None = None
    dim: int | None = None
    quantized: str | None = None
    load_s: float | None = Field(default=None, ge=0)
    alone_ms: float | None = Field(default=None, ge=0)
    """Milliseconds of one processor for a second of speech; best of three."""
    batch_ms: float | None = Field(default=None, ge=0)
    """The same, of eight recordings at once."""
    memory_mb: float | None = None
    """How much the process grew, at its largest, by loading the encoder and running it; the libraries it needs counted."""
    size_mb: float | None = None
    """Of the weights."""
    problem: str | None = None
    """Why there are no figures."""

    @property
    def times_real_time(self) -> float | None:
        """How much faster than the speech takes, one recording after the other on one processor."""
        return None if not self.alone_ms else 1000.0 / self.alone_ms


def bench(reference: str, *, seconds: float = 10.0) -> Bench:
    """Measure an encoder in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        try:
            return process.submit(measure, reference, seconds).result()
        except BrokenProcessPool:
            return Bench(reference=reference, problem="The process ended while it was measured; it may have run out of memory.")


def measure(reference: str, seconds: float) -> Bench:
    """Measure an encoder in this process, whose memory and threads it changes."""
    before, began = _largest_mb(), time.perf_counter()
    try:
        encoder = find_encoder(reference)
        loaded = time.perf_counter() - began
        recordings = [_speech_like(seconds, seed) for seed in range(BATCH)]
        alone, batch = _fastest(encoder, recordings[:1]), _fastest(encoder, recordings)
    except ClinicalSerError as error:
        return Bench(reference=reference, problem=str(error))
    after = _largest_mb()
    return Bench(
        reference=reference,
        name=encoder.spec.name,
        dim=encoder.spec.dim,
        quantized=encoder.about.quantized if isinstance(encoder, OnnxEncoder) else None,
        load_s=loaded,
        alone_ms=1000 * alone / seconds,
        batch_ms=1000 * batch / seconds / BATCH,
        memory_mb=None if before is None or after is None else after - before,
        size_mb=_size_mb(reference, encoder),
    )


def _fastest(encoder: Encoder, recordings: list[Recording]) -> float:
    # Where speech is, is measured once for all encoders, and no part of what one costs.
    speech = [all_speech(recording) for recording in recordings]
    encoder.encode(recordings[:1], speech=speech[:1])  # the first run allocates
    taken = []
    for _ in range(_REPEATS):
        began = time.process_time()
        encoder.encode(recordings, speech=speech)
        taken.append(time.process_time() - began)
    return min(taken)


def _speech_like(seconds: float, seed: int) -> Recording:
    """Return a harmonic glide in noise: what a network takes does not depend on what is said."""
    rng, t = np.random.default_rng(seed), np.arange(round(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    voice = sum(np.sin(2 * np.pi * k * ((110 + 10 * seed) * t + 5 * np.sin(t))) / k for k in range(1, 12))
    return audio.from_samples(0.05 * (voice * (1 + np.sin(2 * np.pi * 3 * t)) + 0.1 * rng.standard_normal(len(t))), SAMPLE_RATE_HZ)


def _largest_mb() -> float | None:
    """Return the largest that this program's resident memory has been; what its parent had is not counted, as `ru_maxrss` would."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM:")), None)


def _size_mb(reference: str, encoder: Encoder) -> float | None:
    if isinstance(encoder, OnnxEncoder):
        folder = folder_of(reference)
        return None if folder is None else (folder / MODEL_FILE).stat().st_size / 1e6
    module = getattr(encoder, "module", None)
    return None if module is None else sum(tensor.nelement() * tensor.element_size() for tensor in module.state_dict().values()) / 1e6
