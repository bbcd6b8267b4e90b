"""From a file or samples in memory to a `Recording`: finite mono float32 at 16 kHz.

Everything happens block by block - decode, measure, mix, resample - so that an hour needs the memory of its result and one block, and a
file that unpacks without end is stopped while it unpacks.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import soxr
from numpy.typing import ArrayLike, NDArray

from clinical_ser.audio.decoding import (
    BLOCK_FRAMES,
    MAX_CHANNELS,
    SAMPLE_RATES_HZ,
    AudioSource,
    AudioStream,
    Block,
    StreamInfo,
    as_float,
    open_stream,
)
from clinical_ser.audio.metering import SourceMeter
from clinical_ser.audio.recording import SAMPLE_RATE_HZ, Recording, SourceInfo
from clinical_ser.errors import AudioDecodeError, AudioTooLongError, InvalidValueError

MAX_DURATION_S = 2 * 3600.0
"""Cap on what one recording may become: 460 MB of samples. Longer files are read in segments."""
MAX_POSITION_S = 24 * 3600.0
"""No segment starts later than this: the part before it has to be decoded too, in most formats."""
PEAK = 32_767 / 32_768
"""openSMILE's wrapper turns x * 32768 into int16, and +1.0 wraps to -32768."""

# Context on both sides of a segment. soxr's HQ filter reaches less than 10 ms at every rate; with this much, a segment equals the slice.
_CONTEXT_S = 0.05
_END_TOLERANCE_S = 0.1
# Averaging N unrelated channels takes away at most 20 log10 N dB (all but one silent). Only channels that cancel go below that.
_CANCELLATION_MARGIN_DB = 4.0

Mono = NDArray[np.float32]
Mix = Callable[[Block], Mono]


def load(source: AudioSource, *, start: float | None = None, end: float | None = None, max_duration_s: float = MAX_DURATION_S) -> Recording:
    """Read a recording, or a segment of it.

    Parameters
    ----------
    source : path, bytes or a seekable binary file
        Any format that libsndfile or FFmpeg decodes (WAV, FLAC, OGG, MP3, M4A/AAC, WebM/Opus, AMR, a video's sound ...) at any rate and
        with any number of channels. The content decides what it is, not the name.
    start, end : float, optional
        Segment in seconds of the source. The samples are those of the whole recording in that span (equal to within 1e-6 of full scale)
        but for the offset: each segment's own mean is removed.
    max_duration_s : float
        The result may not be longer; checked while decoding.

    Returns
    -------
    Recording
        Channels are averaged. Where averaging would cancel them (a microphone wired in antiphase), the loudest channel is taken instead.
        NaN and infinite samples become zero, the mean is removed and values are clipped to ±32767/32768; `source` tells how much of each there was.

    Raises
    ------
    AudioNotFoundError
        No readable file there.
    AudioDecodeError
        Not audio, damaged from the beginning on, or without a single sample.
    AudioTooLongError
        Longer than `max_duration_s`.
    InvalidValueError
        A segment that cannot be: negative, reversed, not finite, or beyond the end.
    """
    span = _Span.of(start, end)
    with open_stream(source) as stream:
        taken = _take(stream, span, max_duration_s, _average)
    if _cancels(taken.meter):
        loudest = taken.meter.loudest_channel
        with open_stream(source) as stream:
            taken = _take(stream, span, max_duration_s, lambda block: block[loudest])
    return _finish(taken, span)


def from_samples(samples: ArrayLike, sample_rate_hz: int, *, max_duration_s: float = MAX_DURATION_S) -> Recording:
    """Make a recording of samples in memory; the same conversions as `load`.

    Parameters
    ----------
    samples : array_like, shape (frames,) or (frames, channels)
        Floating point with full scale 1, or signed integers or uint8 with their own full scale.
    sample_rate_hz : int
        4,000 to 768,000.

    Raises
    ------
    AudioDecodeError
        No sample at all.
    AudioTooLongError
        Longer than `max_duration_s`.
    InvalidValueError
        Another shape, type or rate.
    """
    array = np.asarray(samples)
    if array.ndim not in {1, 2} or (array.ndim == 2 and not 1 <= array.shape[1] <= MAX_CHANNELS):
        raise InvalidValueError("the shape of samples", array.shape, f"(frames,) or (frames, channels) with up to {MAX_CHANNELS} channels")
    low, high = SAMPLE_RATES_HZ
    if not (float(sample_rate_hz).is_integer() and low <= sample_rate_hz <= high):
        raise InvalidValueError("sample_rate_hz", sample_rate_hz, f"a whole number from {low} to {high}")
    stream = _ArrayStream(array.reshape(len(array), -1) if array.size else array.reshape(0, 1), int(sample_rate_hz))
    span = _Span.of(None, None)
    taken = _take(stream, span, max_duration_s, _average)
    if _cancels(taken.meter):
        loudest = taken.meter.loudest_channel
        taken = _take(stream, span, max_duration_s, lambda block: block[loudest])
    return _finish(taken, span)


@dataclass(frozen=True)
class _Span:
    """A checked segment in samples of the result; `stop` is None for the end of the recording."""

    start: int
    stop: int | None

    @classmethod
    def of(cls, start: float | None, end: float | None) -> "_Span":
        rule = f"a time in seconds from 0 to {MAX_POSITION_S:.0f}"
        for name, value in (("start", start), ("end", end)):
            if value is not None and not (math.isfinite(value) and 0 <= value <= MAX_POSITION_S):
                raise InvalidValueError(name, value, rule)
        first = round((start or 0.0) * SAMPLE_RATE_HZ)
        stop = None if end is None else round(end * SAMPLE_RATE_HZ)
        if stop is not None and stop <= first:
            raise InvalidValueError("end", end, f"a time after the start at {start or 0.0:g} s")
        return cls(first, stop)

    @property
    def length(self) -> float:
        return math.inf if self.stop is None else self.stop - self.start


@dataclass(frozen=True)
class _Window:
    """Which source frames a segment needs, and where its samples lie in what they become.

    The first frame falls on a sample of the 16 kHz grid of the whole file (every 441st at 44.1 kHz), so the resampler runs in the same phase.
    """

    first_frame: int
    last_frame: float
    drop: int

    @classmethod
    def of(cls, span: _Span, rate_hz: int) -> "_Window":
        shared = math.gcd(rate_hz, SAMPLE_RATE_HZ)
        unit_in, unit_out = rate_hz // shared, SAMPLE_RATE_HZ // shared
        unit = max(0, span.start - round(_CONTEXT_S * SAMPLE_RATE_HZ)) // unit_out
        last = math.inf if span.stop is None else math.ceil((span.stop / SAMPLE_RATE_HZ + _CONTEXT_S) * rate_hz)
        return cls(unit * unit_in, last, span.start - unit * unit_out)


@dataclass(frozen=True)
class _Taken:
    """Mono samples of a span, what was measured on the way, and whether all of it was there."""

    samples: Mono
    meter: SourceMeter
    info: StreamInfo
    damaged: bool


class _ArrayStream:
    """Samples in memory, as a stream."""

    damaged = False

    def __init__(self, samples: NDArray[Any], sample_rate_hz: int) -> None:
        self._samples = samples
        self.info = StreamInfo("array", sample_rate_hz, samples.shape[1], None, len(samples))

    def blocks(self, first_frame: int) -> Iterator[Block]:
        for start in range(first_frame, len(self._samples), BLOCK_FRAMES):
            yield np.ascontiguousarray(as_float(self._samples[start : start + BLOCK_FRAMES]).T)


class _Collector:
    """An array that grows in place up to a limit."""

    def __init__(self, limit_s: float) -> None:
        self._limit = limit_s * SAMPLE_RATE_HZ
        self._limit_s = limit_s
        self._data = np.empty(BLOCK_FRAMES, np.float32)
        self._length = 0

    def append(self, samples: Mono) -> None:
        length = self._length + len(samples)
        if length > self._limit:
            raise too_long(self._limit_s)
        if length > len(self._data):
            self._data.resize(max(length, len(self._data) * 5 // 4), refcheck=False)
        self._data[self._length : length] = samples
        self._length = length

    def finish(self) -> Mono:
        self._data.resize(self._length, refcheck=False)
        return self._data


def too_long(limit_s: float) -> AudioTooLongError:
    """Say what the limit is and what to do."""
    return AudioTooLongError(f"The recording is longer than {limit_s:g} s; read a part of it with start and end.")


def _take(stream: AudioStream, span: _Span, max_duration_s: float, mix: Mix) -> _Taken:
    """Decode, measure, mix and resample the span."""
    info = stream.info
    _check_stated_length(info, span, max_duration_s)
    window = _Window.of(span, info.sample_rate_hz)
    meter = SourceMeter(info.channels)
    collector = _Collector(max_duration_s)
    skip, left = window.drop, span.length
    for mono in _resampled(_mixed(stream, window, span, meter, mix), info.sample_rate_hz):
        kept = mono[skip:]
        skip -= len(mono) - len(kept)
        kept = kept[: int(min(left, len(kept)))]
        left -= len(kept)
        collector.append(kept)
    return _Taken(collector.finish(), meter, info, stream.damaged)


def _check_stated_length(info: StreamInfo, span: _Span, max_duration_s: float) -> None:
    """Refuse early what the header already shows to be too long; what it hides is met while decoding."""
    if not max_duration_s > 0:
        raise InvalidValueError("max_duration_s", max_duration_s, "a number of seconds above 0")
    stated = math.inf if info.frames is None else info.frames / info.sample_rate_hz - span.start / SAMPLE_RATE_HZ
    length = min(stated, span.length / SAMPLE_RATE_HZ)
    if max_duration_s < length < math.inf:
        raise too_long(max_duration_s)


def _mixed(stream: AudioStream, window: _Window, span: _Span, meter: SourceMeter, mix: Mix) -> Iterator[Mono]:
    """Yield mono blocks of the window; the meter sees the span alone, without its context."""
    rate = stream.info.sample_rate_hz / SAMPLE_RATE_HZ
    inside = (span.start * rate, math.inf if span.stop is None else span.stop * rate)
    position = window.first_frame
    for raw in stream.blocks(window.first_frame):
        frames = int(min(raw.shape[1], window.last_frame - position))
        low, high = (int(min(max(edge - position, 0), frames)) for edge in inside)
        block = meter.repair(raw[:, :frames], low, high)
        mono = mix(block)
        meter.update(block[:, low:high], mono[low:high])
        yield mono
        position += frames
        if position >= window.last_frame:
            return


def _resampled(blocks: Iterator[Mono], rate_hz: int) -> Iterator[Mono]:
    if rate_hz == SAMPLE_RATE_HZ:
        yield from blocks
        return
    # The result does not depend on the block size, so containers and decoders that cut differently give the same samples.
    resampler = soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32", quality="HQ")
    for block in blocks:
        yield resampler.resample_chunk(block)
    yield resampler.resample_chunk(np.empty(0, np.float32), last=True)


def _average(block: Block) -> Mono:
    return np.asarray(block[0] if len(block) == 1 else block.mean(axis=0))


def _cancels(meter: SourceMeter) -> bool:
    loss_db = 20 * math.log10(meter.channels) + _CANCELLATION_MARGIN_DB
    return meter.channels > 1 and meter.mix_power < meter.loudest_power * 10 ** (-loss_db / 10)


def _finish(taken: _Taken, span: _Span) -> Recording:
    samples, meter, info = taken.samples, taken.meter, taken.info
    if not len(samples):
        if span.start and not taken.damaged:
            raise InvalidValueError("start", span.start / SAMPLE_RATE_HZ, "a time before the end of the recording")
        raise AudioDecodeError("The file holds no samples that can be decoded.")
    offset = float(samples.mean(dtype=np.float64))
    samples -= np.float32(offset)
    np.clip(samples, -PEAK, PEAK, out=samples)
    samples.flags.writeable = False
    cut_short = span.stop is not None and span.length - len(samples) > _END_TOLERANCE_S * SAMPLE_RATE_HZ
    source = SourceInfo(
        codec=info.codec,
        sample_rate_hz=info.sample_rate_hz,
        channels=info.channels,
        bit_rate_bps=info.bit_rate_bps,
        peak=meter.peak,
        clipped_fraction=meter.clipped_fraction,
        dc_offset=offset,
        nonfinite_fraction=meter.nonfinite_fraction,
        complete=not (taken.damaged or cut_short),
    )
    return Recording(samples, _digest(samples), source)


def _digest(samples: Mono) -> str:
    """SHA-256 of the samples as 16-bit little-endian PCM."""
    digest = hashlib.sha256()
    for start in range(0, len(samples), BLOCK_FRAMES):
        digest.update(np.rint(samples[start : start + BLOCK_FRAMES] * 32_768).astype("<i2").tobytes())
    return digest.hexdigest()
