"""A recording of any length, heard in windows: cut, levelled, batched, run, and pooled over the frames in speech.

The one idea: every frame is kept from exactly one window, one in which the network heard at least `context_s` on both sides of it, as far as the
recording goes. So cuts leave no seam, and memory is that of one batch.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import soxr
from numpy.typing import NDArray

from clinical_ser import audio
from clinical_ser.audio.analysis import FRAME_STEP_S
from clinical_ser.audio.recording import SAMPLE_RATE_HZ, Recording
from clinical_ser.embeddings.encoder import Embedding, EncoderSpec, Padding, Pooling, WindowedEncoder
from clinical_ser.embeddings.pooling import CELL_S, Pool, grid_place
from clinical_ser.errors import EmbeddingError, EncoderError, InvalidValueError

PART_S = 600.0
"""A longer recording is heard in parts, each by itself: what speech is and how loud it is are questions for minutes, not for hours."""
_BLOCK = 1 << 18
"""Samples that are squared at a time."""
NO_SPEECH = "no speech was found in the recording"


@dataclass(frozen=True)
class Window:
    """A stretch of one recording, in samples at the encoder's rate; frames whose centre lies in [keep_from, keep_to) are kept."""

    start: int
    stop: int
    keep_from: float
    keep_to: float


@dataclass(frozen=True, eq=False)
class _Job:
    """One window to run: whose it is, and where its part lies in the recording."""

    recording: int
    offset_s: float
    window: Window
    samples: NDArray[np.float32]
    speech: NDArray[np.bool_]
    """Of the part."""


def encode(
    encoder: WindowedEncoder,
    recordings: Sequence[Recording],
    *,
    speech: Sequence[NDArray[np.bool_]] | None = None,
    frames: bool = False,
    cells: bool = False,
) -> list[Embedding]:
    """Encode recordings; see `Encoder.encode`."""
    if speech is not None and len(speech) != len(recordings):
        raise InvalidValueError("speech", f"{len(speech)} masks", f"one a recording, so {len(recordings)}")
    for recording in recordings:
        check_length(encoder.spec, recording.duration_s)
    sinks = [_Sink(encoder.spec, recording.duration_s, frames=frames, cells=cells) for recording in recordings]
    masks = speech if speech is not None else [None] * len(recordings)
    parts = (((place, *part) for part in parts_of(recording, mask)) for place, (recording, mask) in enumerate(zip(recordings, masks, strict=True)))
    _run(encoder, chain.from_iterable(parts), sinks)
    return [sink.result() for sink in sinks]


def encode_parts(encoder: WindowedEncoder, parts: Iterable[Recording], *, duration_s: float, frames: bool = False) -> Embedding:
    """Encode one recording that is read part by part, each `PART_S` long but for the last; the same answer as for all of it in memory.

    Raises
    ------
    EmbeddingError
        As `Encoder.encode`.
    """
    check_length(encoder.spec, duration_s)
    sink = _Sink(encoder.spec, duration_s, frames=frames, cells=False)
    _run(encoder, ((0, place * PART_S, part.samples, _speech(part.samples)) for place, part in enumerate(parts)), [sink])
    return sink.result()


def check_length(spec: EncoderSpec, duration_s: float) -> None:
    """Raise EmbeddingError for a recording that is too short for an encoder."""
    if duration_s < spec.min_s:
        raise EmbeddingError(f"The recording is {duration_s:.2f} s long; encoder {spec.name!r} needs {spec.min_s:g} s.")


def parts_of(recording: Recording, speech: NDArray[np.bool_] | None = None) -> Iterator[tuple[float, NDArray[np.float32], NDArray[np.bool_]]]:
    """Yield each part of a recording: where it begins in seconds, its samples, and on the 10 ms grid whether there is speech."""
    length = round(PART_S * SAMPLE_RATE_HZ)
    if len(recording.samples) <= length:
        yield 0.0, recording.samples, _speech(recording.samples) if speech is None else speech
        return
    for start in range(0, len(recording.samples), length):
        part = recording.samples[start : start + length]
        begin = round(start / SAMPLE_RATE_HZ / FRAME_STEP_S)
        given = None if speech is None else speech[begin : begin + round(PART_S / FRAME_STEP_S)]
        yield start / SAMPLE_RATE_HZ, part, _speech(part) if given is None or not len(given) else given


def all_speech(recording: Recording) -> NDArray[np.bool_]:
    """Return a mask of speech that holds all of a recording, for comparisons in which pauses do not matter."""
    return np.ones(round(recording.duration_s / FRAME_STEP_S) + 1, np.bool_)


def windows_of(spec: EncoderSpec, samples: int) -> list[Window]:
    """Cut so many samples (at the encoder's rate) into windows of about one length that start on the encoder's grid of frames."""
    longest = round(spec.window_s * spec.sample_rate_hz)
    if samples <= longest:
        return [Window(0, samples, -np.inf, np.inf)]
    context = round(spec.context_s * spec.sample_rate_hz)
    grid = round((spec.frame_step_s or 1 / spec.sample_rate_hz) * spec.sample_rate_hz)
    # Of one length, not full ones and a rest: a rest may be too short to be heard, and windows of one length share a batch.
    count = -(-(samples - 2 * context) // (longest - 2 * context - grid))
    hop = -(-(samples - 2 * context) // count // grid) * grid
    windows = []
    for start in range(0, samples, hop):
        stop = min(start + hop + 2 * context, samples)
        last = stop == samples
        windows.append(Window(start, stop, start + context if start else -np.inf, np.inf if last else start + hop + context))
        if last:
            break
    return windows


def _speech(samples: NDArray[np.float32]) -> NDArray[np.bool_]:
    return audio.analyse_samples(samples).speech


def _run(encoder: WindowedEncoder, parts: Iterable[tuple[int, float, NDArray[np.float32], NDArray[np.bool_]]], sinks: Sequence["_Sink"]) -> None:
    for batch in _batches(encoder, _jobs(encoder.spec, parts)):
        longest = max(len(job.samples) for job in batch)
        padded = np.zeros((len(batch), longest), np.float32)
        for row, job in zip(padded, batch, strict=True):
            row[: len(job.samples)] = job.samples
        lengths = np.array([len(job.samples) for job in batch], np.int64)
        for job, vectors in zip(batch, encoder.run(padded, lengths), strict=True):
            sinks[job.recording].add(job, vectors)


def _jobs(spec: EncoderSpec, parts: Iterable[tuple[int, float, NDArray[np.float32], NDArray[np.bool_]]]) -> Iterator[_Job]:
    """Yield the windows in which there is speech to keep."""
    for recording, offset_s, original, speech in parts:
        samples = original
        if spec.sample_rate_hz != SAMPLE_RATE_HZ:
            samples = soxr.resample(original, SAMPLE_RATE_HZ, spec.sample_rate_hz, quality="HQ")
        offset, gain = _level(spec, samples)
        for window in windows_of(spec, len(samples)):
            edges = np.clip([max(window.keep_from, window.start), min(window.keep_to, window.stop)], window.start, window.stop)
            first, last = (int(edge / spec.sample_rate_hz / FRAME_STEP_S) for edge in edges)
            if speech[first : last + 1].any():
                yield _Job(recording, offset_s, window, (samples[window.start : window.stop] - offset) * gain, speech)


def _level(spec: EncoderSpec, samples: NDArray[np.float32]) -> tuple[np.float32, np.float32]:
    """Return what a part's samples are lessened by, and then multiplied with, to stand as the network was trained."""
    power = sum(float(block @ block) for block in _blocks(samples)) / len(samples)
    if spec.standardise:
        # The parameters of transformers' Wav2Vec2FeatureExtractor.
        mean = float(samples.mean(dtype=np.float64))
        return np.float32(mean), np.float32(1 / np.sqrt(max(power - mean**2, 0.0) + 1e-7))
    if spec.raise_to_dbfs is not None and 0 < power < (wanted := 10 ** (spec.raise_to_dbfs / 10)):
        return np.float32(0), np.float32(np.sqrt(wanted / power))
    return np.float32(0), np.float32(1)


def _blocks(samples: NDArray[np.float32]) -> Iterator[NDArray[np.float64]]:
    return (samples[start : start + _BLOCK].astype(np.float64) for start in range(0, len(samples), _BLOCK))


def _batches(encoder: WindowedEncoder, jobs: Iterator[_Job]) -> Iterator[list[_Job]]:
    """Gather windows into batches, alike in length, of at most `batch_s` with padding counted."""
    budget = encoder.batch_s * encoder.spec.sample_rate_hz
    equal = encoder.spec.padding is Padding.EQUAL
    waiting: list[_Job] = []
    # Two batches' worth are looked at together, so that short windows find each other and memory stays that of two batches.
    for job in jobs:
        waiting.append(job)
        if sum(len(one.samples) for one in waiting) >= 2 * budget:
            *full, waiting = _filled(waiting, budget, equal=equal)
            yield from full
    yield from _filled(waiting, budget, equal=equal)


def _filled(jobs: list[_Job], budget: float, *, equal: bool) -> list[list[_Job]]:
    batches: list[list[_Job]] = []
    for job in sorted(jobs, key=lambda one: len(one.samples)):
        last = batches[-1] if batches else []
        fits = last and len(job.samples) * (len(last) + 1) <= budget and (not equal or len(job.samples) == len(last[0].samples))
        if fits:
            last.append(job)
        else:
            batches.append([job])
    return batches


class _Sink:
    """Takes the windows of one recording, in any order."""

    def __init__(self, spec: EncoderSpec, duration_s: float, *, frames: bool, cells: bool) -> None:
        self._spec = spec
        self._pool = Pool(with_sd=spec.pooling is Pooling.MEAN_SD, cells=int(np.ceil(duration_s / CELL_S)) if cells else None)
        self._frames: list[tuple[NDArray[np.float64], NDArray[np.float32]]] | None = [] if frames else None

    def add(self, job: _Job, vectors: NDArray[np.float32]) -> None:
        spec, window = self._spec, job.window
        if vectors.ndim != 2 or vectors.shape[1] != spec.frame_dim:
            raise EncoderError(f"Encoder {spec.name!r} gave an array of shape {vectors.shape}, expected (frames, {spec.frame_dim}).")
        if spec.frame_step_s is None:
            vectors, times, weight = self._whole_window(job, vectors)
        else:
            inside = np.asarray((np.arange(len(vectors)) * spec.frame_step_s + spec.first_frame_s) * spec.sample_rate_hz, np.float64)
            kept = (inside + window.start >= window.keep_from) & (inside + window.start < window.keep_to) & (inside < window.stop - window.start)
            # What the first frame's centre leaves on its left, every frame hears on its right; one that hears padding is none of the window's.
            kept &= inside + spec.first_frame_s * spec.sample_rate_hz < window.stop - window.start + 0.5
            vectors, times = vectors[kept], np.asarray((inside[kept] + window.start) / spec.sample_rate_hz, np.float64)
            place = np.minimum(grid_place(times, FRAME_STEP_S), len(job.speech) - 1)
            weight = np.where(job.speech[place], spec.frame_step_s, 0.0)
        if not np.isfinite(vectors).all():
            raise EncoderError(f"Encoder {spec.name!r} gave a number that is not finite.")
        self._pool.add(vectors, weight, times + job.offset_s)
        if self._frames is not None:
            self._frames.append((times + job.offset_s, vectors))

    def _whole_window(self, job: _Job, vectors: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
        """Place the one vector of a window at its middle, and weigh it by the speech in it."""
        rate = self._spec.sample_rate_hz
        low, high = max(job.window.keep_from, job.window.start) / rate, min(job.window.keep_to, job.window.stop) / rate
        spoken = job.speech[int(low / FRAME_STEP_S) : int(np.ceil(high / FRAME_STEP_S))].sum() * FRAME_STEP_S
        return vectors[:1], np.array([(low + high) / 2]), np.array([float(spoken)])

    def result(self) -> Embedding:
        utterance = self._pool.result()
        if utterance is None:
            raise EmbeddingError(f"Nothing to encode: {NO_SPEECH}.")
        times, frames = np.zeros(0), np.zeros((0, self._spec.frame_dim), np.float32)
        if self._frames:
            in_order = sorted(self._frames, key=lambda one: one[0][0] if len(one[0]) else 0.0)
            times, frames = (np.concatenate(one) for one in zip(*in_order, strict=True))
        return Embedding(utterance, self._pool.weight, times, frames, self._pool.cells())
