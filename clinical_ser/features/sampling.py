"""Where Praat puts its analysis frames, and how it resamples, for the measurements that we compute ourselves.

Praat fits as many frames as it can symmetrically into a sound and rounds frame positions to samples; which way a tie falls depends on
the order of its floating-point operations. Our measurements follow that order, so that frame k here is frame k there, to the sample.
"""

import math
from fractions import Fraction

import numpy as np
import scipy.fft
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from clinical_ser.errors import InvalidValueError

SINC_DEPTH = 50
"""Samples on either side of an interpolated one, as in Praat's *Sound: Resample...* with its standard precision."""
FILTER_PADDING = 1_000
"""Zeros before and after the sound, against wrap-around of the anti-aliasing filter (Praat's `antiTurnAround`)."""
WHOLE_FILTER_SAMPLES = 2**23 - 2 * FILTER_PADDING
"""Sounds up to this length (8.7 min at 16 kHz) are low-passed in one piece, as Praat does with every sound; longer ones in blocks."""
FILTER_BLOCK = 2**22 - 2 * FILTER_PADDING
FILTER_MARGIN = 2**15
"""2 s at 16 kHz: what a block sees of its neighbours. The filter's response has fallen to -100 dB there."""
ROWS_AT_ONCE = 4_096


def frame_times(samples: int, rate_hz: float, window_s: float, step_s: float) -> NDArray[np.float64]:
    """Centres of Praat's analysis frames in a sound that starts at 0 s.

    Parameters
    ----------
    samples
        Length of the sound.
    rate_hz
        Its sampling rate.
    window_s, step_s
        Length of a frame, and from one frame to the next.

    Returns
    -------
    Shape (frames,), in seconds; empty where the sound is shorter than one window.

    References
    ----------
    Praat manual, "Intro 4" and "Sound: To Pitch (ac)...": frames are centred on the sound and lie inside it completely.
    """
    duration_s = (1.0 / rate_hz) * samples
    if window_s > duration_s:
        return np.empty(0)
    frames = math.floor((duration_s - window_s) / step_s) + 1
    first_s = 0.5 * duration_s - 0.5 * (frames * step_s) + 0.5 * step_s
    return first_s + np.arange(frames, dtype=np.float64) * step_s


def first_sample_time(samples: int, rate_hz: float, resampled: int, new_rate_hz: float) -> float:
    """Time of the first sample after `resample`, which centres the new samples on the old duration.

    Parameters
    ----------
    samples, rate_hz
        The sound as it was.
    resampled, new_rate_hz
        The sound as it is.
    """
    return 0.5 * (samples / rate_hz - (resampled - 1) / new_rate_hz)


def resample(samples: NDArray[np.float64], rate_hz: int, new_rate_hz: int) -> NDArray[np.float64]:
    """Reduce the sampling rate as Praat does: a brick-wall low-pass, then windowed-sinc interpolation 50 samples deep.

    Parameters
    ----------
    samples
        Shape (n,).
    rate_hz, new_rate_hz
        Sampling rate now and wanted; the wanted one may not be higher.

    Returns
    -------
    Shape (round(n * new_rate_hz / rate_hz),); its first sample lies at `first_sample_time`.

    Raises
    ------
    InvalidValueError
        If the new rate is above the old one.

    Notes
    -----
    Equals *Sound: Resample...* to 1e-12 of full scale. Sums with the same phase become one matrix product, which makes it seven times as fast.

    References
    ----------
    Praat manual, "Sound: Resample...".
    """
    if new_rate_hz > rate_hz:
        raise InvalidValueError("new_rate_hz", new_rate_hz, f"at most {rate_hz}")
    if new_rate_hz == rate_hz:
        return samples.copy()
    return _interpolate(_low_pass(samples, new_rate_hz * (1.0 / rate_hz)), Fraction(rate_hz, new_rate_hz))


def _low_pass(samples: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """Remove all above `share` of the Nyquist frequency."""
    if len(samples) <= WHOLE_FILTER_SAMPLES:
        return _brick_wall(samples, share)
    filtered = np.empty_like(samples)
    step = FILTER_BLOCK - 2 * FILTER_MARGIN
    for start in range(0, len(samples), step):
        left = max(0, start - FILTER_MARGIN)
        block = _brick_wall(samples[left : start + step + FILTER_MARGIN], share)
        filtered[start : start + step] = block[start - left : start - left + step]
    return filtered


def _brick_wall(samples: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    size = 1 << (len(samples) + 2 * FILTER_PADDING - 1).bit_length()
    padded = np.zeros(size)
    padded[FILTER_PADDING : FILTER_PADDING + len(samples)] = samples
    spectrum = scipy.fft.rfft(padded, overwrite_x=True)
    # Praat zeroes from position floor(share * size) of its packed spectrum (re, im, re, im, ...): an even position is an imaginary
    # part, whose real part then stays.
    first_zeroed = math.floor(share * size)
    last_bin = (first_zeroed - 1) // 2
    spectrum[last_bin + 1 :] = 0.0
    spectrum[last_bin] = spectrum[last_bin].real if first_zeroed % 2 == 0 else 0.0
    filtered: NDArray[np.float64] = scipy.fft.irfft(spectrum, size, overwrite_x=True)
    return filtered[FILTER_PADDING : FILTER_PADDING + len(samples)]


def _interpolate(samples: NDArray[np.float64], step: Fraction) -> NDArray[np.float64]:
    """Values `step` samples apart, centred.

    Positions repeat their phase every `step.denominator` values, during which the input advances `step.numerator` samples: one row of
    input times one matrix of weights gives one value of every phase.
    """
    advance, phases = step.numerator, step.denominator
    count = math.floor(len(samples) / step + Fraction(1, 2))
    # Twice the phase count as denominator makes every position an exact integer.
    scale = 2 * phases
    first = phases * (len(samples) - 1) - advance * (count - 1)
    whole, rest = np.divmod(first + 2 * advance * np.arange(phases), scale)
    kernels = sinc_weights(rest / scale, np.full(phases, SINC_DEPTH), SINC_DEPTH)
    weights = np.zeros((int(whole[-1] - whole[0]) + 2 * SINC_DEPTH, phases))
    for phase, kernel in enumerate(kernels):
        start = int(whole[phase] - whole[0])
        weights[start : start + 2 * SINC_DEPTH, phase] = kernel

    rows = -(-count // phases)
    before = SINC_DEPTH - 1 - int(whole[0])
    after = max(0, advance * (rows - 1) + len(weights) - before - len(samples))
    windows = sliding_window_view(np.pad(samples, (before, after)), len(weights))[::advance]
    values = np.empty((rows, phases))
    for start in range(0, rows, ROWS_AT_ONCE):
        # Copied, because a product with overlapping rows would not reach BLAS.
        values[start : start + ROWS_AT_ONCE] = np.ascontiguousarray(windows[start : min(start + ROWS_AT_ONCE, rows)]) @ weights
    interpolated = values.ravel()[:count]

    near_an_end = min(count, math.ceil((SINC_DEPTH + 1) / step))
    at = np.r_[0:near_an_end, count - near_an_end : count]
    interpolated[at] = _interpolate_near_ends(samples, (first + 2 * advance * at) / scale)
    return interpolated


def _interpolate_near_ends(samples: NDArray[np.float64], positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values at `positions`, with sums only as deep as there are samples; constant beyond the ends."""
    positions = np.clip(positions, 0, len(samples) - 1)
    whole = np.floor(positions).astype(np.int64)
    depth = np.clip(np.minimum(whole + 1, len(samples) - 1 - whole), 1, SINC_DEPTH)
    weights = sinc_weights(positions - whole, depth, SINC_DEPTH)
    seen = sliding_window_view(np.pad(samples, SINC_DEPTH), 2 * SINC_DEPTH)[whole + 1]
    values: NDArray[np.float64] = np.einsum("ij,ij->i", seen, weights)
    return values


def sinc_weights(fraction: NDArray[np.float64], depth: NDArray[np.int64], reach: int) -> NDArray[np.float64]:
    """Praat's interpolation between two samples as weights on the samples around them.

    Parameters
    ----------
    fraction
        Shape (k,); position after the left one of the two samples, from 0 up to 1.
    depth
        Shape (k,); samples used on either side, at least 1.
    reach
        At least the greatest depth.

    Returns
    -------
    Shape (k, 2 * reach); column `reach - 1` belongs to the left sample. A sinc under a raised cosine that vanishes one sample beyond
    the last one used; with depth 2 a cubic and with depth 1 a straight line, as Praat has it.
    """
    tap = np.arange(1 - reach, reach + 1)
    used = (tap > -depth[:, None]) & (tap <= depth[:, None])
    distance = fraction[:, None] - tap
    width = np.where(distance >= 0, (depth + fraction)[:, None], (depth + 1 - fraction)[:, None])
    weights = np.where(used, np.sinc(distance) * (0.5 + 0.5 * np.cos(np.pi * distance / width)), 0.0)
    left = reach - 1
    for row in np.flatnonzero(depth == 1):
        weights[row, left : left + 2] = 1.0 - fraction[row], fraction[row]
    for row in np.flatnonzero(depth == 2):
        weights[row, left - 1 : left + 3] = _cubic_weights(float(fraction[row]))
    return weights


def _cubic_weights(fraction: float) -> tuple[float, float, float, float]:
    """Hermite interpolation with the slopes of a parabola through three samples."""
    rest = 1.0 - fraction
    return (
        -0.5 * fraction * rest**2,
        rest + fraction * rest * (rest - 0.5 * fraction),
        fraction + fraction * rest * (fraction - 0.5 * rest),
        -0.5 * fraction**2 * rest,
    )
