"""What conversion to mono 16 kHz would hide - clipping, peaks, channels that cancel - measured block by block on the decoded signal."""

import math

import numpy as np
from numpy.typing import NDArray

from clinical_ser.audio.decoding import Block

FULL_SCALE = 32_767 / 32_768
"""A sample at or above this is clipped: the largest positive value of 16-bit audio."""
MIN_RUN = 3
"""This many equal samples at the signal's own maximum make a plateau (clipped first, turned down later)."""
MIN_EDGE = 0.001
"""A plateau ends in a step of at least this share of the peak-to-peak range; the rounded top of a quiet sine ends in one quantisation step."""
MIN_RANGE = 0.04
"""Below this peak-to-peak range (full scale = 1) a plateau is quantisation, not clipping."""


class _Plateau:
    """Samples in flat runs at the largest value of one channel, so far."""

    def __init__(self) -> None:
        self.extreme = -math.inf
        self._count = 0

    def update(self, signal: NDArray[np.float32], largest: float, range_: float) -> None:
        if largest > self.extreme:
            self.extreme, self._count = largest, 0
        if largest == self.extreme and range_ >= MIN_RANGE:
            self._count += _flat_samples(signal, largest, MIN_EDGE * range_)

    @property
    def clipped(self) -> int:
        """Samples in runs, unless they are at full scale, where every single sample is counted already."""
        return self._count if self.extreme < FULL_SCALE else 0


class _ClippingMeter:
    """Clipped samples of one channel."""

    def __init__(self) -> None:
        self._top, self._bottom = _Plateau(), _Plateau()
        self._full_scale = 0

    def update(self, signal: NDArray[np.float32]) -> None:
        high, low = float(signal.max()), float(signal.min())
        if max(high, -low) >= FULL_SCALE:
            self._full_scale += int((np.abs(signal) >= FULL_SCALE).sum())
        range_ = max(high, self._top.extreme) + max(-low, self._bottom.extreme)
        self._top.update(signal, high, range_)
        self._bottom.update(-signal, -low, range_)

    @property
    def extremes(self) -> tuple[float, float]:
        return self._top.extreme, self._bottom.extreme

    @property
    def clipped(self) -> int:
        return self._full_scale + self._top.clipped + self._bottom.clipped


class SourceMeter:
    """Running measurements over blocks of shape (channels, frames)."""

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self._frames = 0
        self._nonfinite = 0
        self._power = np.zeros(channels)
        self._mix_power = 0.0
        self._clipping = [_ClippingMeter() for _ in range(channels)]

    def repair(self, block: Block, start: int, stop: int) -> Block:
        """Return the block with NaN and infinity set to zero, and count those from `start` to `stop`."""
        # One bad sample makes the sum of squares NaN or infinite; the sum costs a tenth of looking at every sample.
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(_powers(block)).all():
                return block
        finite = np.isfinite(block)
        self._nonfinite += int((~finite[:, start:stop]).sum())
        return np.where(finite, block, np.float32(0))

    def update(self, block: Block, mono: NDArray[np.float32]) -> None:
        """Measure a finite block and the mono signal mixed from it."""
        if not block.size:
            return
        self._frames += block.shape[1]
        self._power += _powers(block)
        self._mix_power += float(_powers(mono[np.newaxis])[0])
        for meter, channel in zip(self._clipping, block, strict=True):
            meter.update(channel)

    @property
    def peak(self) -> float:
        """Largest |x| over all channels."""
        return max(0.0, *(extreme for meter in self._clipping for extreme in meter.extremes))

    @property
    def clipped_fraction(self) -> float:
        """Share of clipped samples in the worst channel."""
        return max(meter.clipped for meter in self._clipping) / max(self._frames, 1)

    @property
    def nonfinite_fraction(self) -> float:
        """Share of samples that were NaN or infinite."""
        return self._nonfinite / max(self._frames * self.channels, 1)

    @property
    def loudest_channel(self) -> int:
        """The first of the channels with the most power."""
        return int(self._power.argmax())

    @property
    def loudest_power(self) -> float:
        """Mean square of the loudest channel."""
        return float(self._power.max() / max(self._frames, 1))

    @property
    def mix_power(self) -> float:
        """Mean square of the mono mix."""
        return self._mix_power / max(self._frames, 1)


def _powers(block: Block) -> NDArray[np.float64]:
    """Sum of squares of each channel."""
    return np.array([np.dot(channel, channel) for channel in block], np.float64)


def _flat_samples(signal: NDArray[np.float32], top: float, edge: float) -> int:
    """Count samples in runs of at least `MIN_RUN` at `top` with a step of at least `edge` at either end."""
    at_top = np.flatnonzero(signal == np.float32(top))
    if len(at_top) < MIN_RUN:
        return 0
    breaks = np.flatnonzero(np.diff(at_top) > 1)
    first = at_top[np.r_[0, breaks + 1]]
    last = at_top[np.r_[breaks, len(at_top) - 1]]
    before = signal[np.maximum(first - 1, 0)]
    after = signal[np.minimum(last + 1, len(signal) - 1)]
    lengths = last - first + 1
    abrupt = top - np.minimum(before, after) >= edge
    return int(lengths[abrupt & (lengths >= MIN_RUN)].sum())
