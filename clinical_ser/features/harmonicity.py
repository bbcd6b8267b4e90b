"""Harmonics-to-noise ratio (HNR): how much of the energy repeats from one glottal period to the next, in dB.

The numbers are Praat's (*Sound: To Harmonicity (cc)...*, version 6.1.38) frame by frame. Praat correlates sample by sample and then searches
every correlation peak by Brent's method; here the correlations of many frames come from one FFT, and a peak is the maximum of a polynomial,
because Praat's sinc interpolation between two lags is a fixed linear function of the correlations.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.fft
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from clinical_ser.errors import InvalidValueError
from clinical_ser.features.sampling import frame_times, sinc_weights

# Praat's standard settings, which the references of the catalogue were measured with (Boersma 1993, Proc. Inst. Phonetic Sciences
# Amsterdam 17:97-110; Praat manual, "Sound: To Harmonicity (cc)...": 0.01, 75, 0.1, 1.0).
TIME_STEP_S = 0.01
PITCH_FLOOR_HZ = 75.0
SILENCE_THRESHOLD = 0.1
"""A frame whose peak lies below this share of the recording's peak has no HNR."""

MINIMUM_DURATION_S = 2.0 / PITCH_FLOOR_HZ
"""One window and the longest lag after it."""
_EXTREME_DB = 150.0
_LEAST_NOISE = 1e-15
_FRAMES_AT_ONCE = 512
_POLYNOMIAL_DEGREE = 11
"""Follows a sinc sum between two lags to 1e-9, what is left of (pi/2)^12 / (2^11 12!)."""
_NEWTON_STEPS = 4
_FIRST_PROBE = math.sqrt(5.0) - 2.0
"""Where the golden section of an interval of two lags lies, seen from its middle."""
_ROUNDING = 1e-10
"""What a correlation by FFT may be off; a rise smaller than that is no peak."""


@dataclass(frozen=True, eq=False)
class HarmonicityTrack:
    """The HNR of every frame."""

    times_s: NDArray[np.float64]
    """Shape (frames,); centres of the frames."""
    hnr_db: NDArray[np.float64]
    """Shape (frames,); NaN in silent frames (Praat writes -200 there)."""

    @property
    def mean_db(self) -> float:
        """Mean over the frames that are not silent, as Praat's *Get mean...*; NaN if all are."""
        sounding = self.hnr_db[np.isfinite(self.hnr_db)]
        return float(sounding.mean()) if len(sounding) else math.nan


@dataclass(frozen=True)
class _Geometry:
    """Lengths in samples, which depend on the sampling rate alone."""

    rate_hz: int
    period: int
    window: int

    @classmethod
    def at(cls, rate_hz: int) -> "_Geometry":
        period = math.floor(1.0 / (1.0 / rate_hz) / PITCH_FLOOR_HZ)
        return cls(rate_hz, period, 2 * (period // 2 - 1))


def harmonicity(samples: NDArray[np.float64], rate_hz: int) -> HarmonicityTrack:
    """Measure the harmonics-to-noise ratio every 10 ms by forward cross-correlation.

    Parameters
    ----------
    samples
        Shape (n,), float64, finite; at least 26.7 ms.
    rate_hz
        Sampling rate.

    Returns
    -------
    HNR of each frame in dB; `mean_db` is that of the recording.

    Raises
    ------
    InvalidValueError
        If the recording is shorter than one window and the longest lag.

    References
    ----------
    Boersma (1993); Praat manual, "Sound: To Harmonicity (cc)...".

    Examples
    --------
    >>> time_s = np.arange(16_000) / 16_000
    >>> noise = np.random.default_rng(0).normal(size=16_000)
    >>> round(harmonicity(np.sin(2 * np.pi * 150 * time_s) + np.sqrt(0.05) * noise, 16_000).mean_db)
    10
    """
    times_s = frame_times(len(samples), rate_hz, 1.0 / PITCH_FLOOR_HZ + 1.0 / PITCH_FLOOR_HZ, TIME_STEP_S)
    if len(times_s) == 0:
        raise InvalidValueError("the recording's length", f"{len(samples) / rate_hz:.3f} s", f"at least {MINIMUM_DURATION_S:.4f} s")
    hnr_db = np.full(len(times_s), np.nan)
    peak = float(np.abs(samples - samples.mean()).max())
    if peak == 0.0:
        return HarmonicityTrack(times_s, hnr_db)
    geometry = _Geometry.at(rate_hz)
    for first in range(0, len(times_s), _FRAMES_AT_ONCE):
        chunk = slice(first, first + _FRAMES_AT_ONCE)
        hnr_db[chunk] = _to_db(_strength(samples, peak, times_s[chunk], geometry))
    return HarmonicityTrack(times_s, hnr_db)


def _to_db(strength: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ratio of the correlated to the uncorrelated share; NaN stays NaN."""
    inside = np.clip(strength, _LEAST_NOISE, 1.0 - _LEAST_NOISE)
    ratio_db = 10.0 * np.log10(inside / (1.0 - inside))
    ratio_db = np.where(strength <= _LEAST_NOISE, -_EXTREME_DB, ratio_db)
    return np.where(strength > 1.0 - _LEAST_NOISE, _EXTREME_DB, ratio_db)


def _strength(samples: NDArray[np.float64], peak: float, times_s: NDArray[np.float64], geometry: _Geometry) -> NDArray[np.float64]:
    """Correlation at each frame's best lag; NaN where the frame is silent."""
    # Praat's order of operations: half of all frames lie exactly between two samples, or on one.
    step_s = 1.0 / geometry.rate_hz
    first_s = 0.5 / geometry.rate_hz
    left = np.floor((times_s - first_s) / step_s + 1.0).astype(np.int64) - 1
    start = np.floor((times_s - 0.5 * (1.0 / PITCH_FLOOR_HZ + 1.0 / PITCH_FLOOR_HZ) - first_s) / step_s + 1.0).astype(np.int64) - 1

    mean = sliding_window_view(samples, 2 * geometry.period)[left + 1 - geometry.period].mean(axis=1)
    centred = sliding_window_view(samples, geometry.window)[left + 1 - geometry.window // 2]
    intensity = np.maximum(centred.max(axis=1) - mean, mean - centred.min(axis=1)) / peak
    silence = np.maximum(0.0, 2.0 - np.minimum(intensity, 1.0) / SILENCE_THRESHOLD)

    # Silence wins wherever it reaches 1, which no correlation exceeds.
    sounding = np.flatnonzero(silence < 1.0)
    strength = np.full(len(times_s), np.nan)
    if len(sounding):
        # Frames lie inside the sound with a sample to spare on either side, so that a window and its longest lag are always there.
        seen = sliding_window_view(samples, 2 * geometry.window)[start[sounding]] - mean[sounding, None]
        best = _best_peak(_cross_correlation(seen, geometry.window), geometry.window)
        strength[sounding] = np.where(best > silence[sounding], best, np.nan)
    return strength


def _cross_correlation(seen: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Normalised correlation of the first half of each row with the same length 0 ... window samples later; shape (k, window + 1)."""
    size = scipy.fft.next_fast_len(2 * window, real=True)
    spectrum = scipy.fft.rfft(seen[:, :window], size, axis=1).conj() * scipy.fft.rfft(seen, size, axis=1)
    product = scipy.fft.irfft(spectrum, size, axis=1)[:, : window + 1]
    squares = seen**2
    energy = squares[:, :window].sum(axis=1, keepdims=True)
    gained = np.cumsum(squares[:, window:] - squares[:, :window], axis=1)
    norm = np.sqrt(energy * np.maximum(energy + gained, 0.0))
    correlation = np.ones_like(product)
    # Where a window is exactly zero Praat divides by zero and no peak compares as one; a correlation of zero is none either.
    np.divide(product[:, 1:], norm, out=correlation[:, 1:], where=norm > 0.0)
    correlation[:, 1:][norm <= 0.0] = 0.0
    return correlation


def _best_peak(correlation: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Height of the highest interpolated peak of each row, reflected around 1 where it exceeds that; -1 where there is no peak.

    Every peak is refined: between two samples a correlation can rise from 0.3 to 0.9, so the lower ones may not be left out.
    """
    middle, before, after = correlation[:, 2:window], correlation[:, 1 : window - 1], correlation[:, 3:]
    row, offset = np.nonzero((middle > 0.0) & (middle > before + _ROUNDING) & (middle >= after - _ROUNDING))
    height = _refined(correlation, row, offset + 2, window)
    best = np.full(len(correlation), -1.0)
    np.maximum.at(best, row, np.where(height > 1.0, 1.0 / np.maximum(height, 1.0), height))
    return best


def _refined(correlation: NDArray[np.float64], row: NDArray[np.intp], lag: NDArray[np.intp], window: int) -> NDArray[np.float64]:
    """Maximum of the sinc-interpolated correlation within one lag of each peak (`row`, `lag`)."""
    before, after = np.split(_polynomials(correlation, row, lag, window), 2, axis=1)
    left, right = _polynomial_maximum(before), _polynomial_maximum(after)
    # The sum changes its depth at the lag itself, and a flat top may have a maximum on either side. Praat's search (Brent 1973) goes to
    # the one on that side where its first two probes are higher; that shows above 50 dB only.
    probe = np.full(len(row), 1.0 - 2.0 * _FIRST_PROBE)
    goes_left = _evaluate(before, probe) > _evaluate(after, -probe)
    middle = correlation[row, lag]
    two_tops = np.minimum(left, right) > middle + _ROUNDING
    return np.where(two_tops, np.where(goes_left, left, right), np.maximum(left, right))


def _polynomials(correlation: NDArray[np.float64], row: NDArray[np.intp], lag: NDArray[np.intp], window: int) -> NDArray[np.float64]:
    """Coefficients of what each row follows before and after its `lag`; shape (k, 2 * (degree + 1)), lowest power first."""
    tables = _polynomial_tables(window)
    coefficients = np.empty((len(row), tables.shape[2]))
    order = np.argsort(lag, kind="stable")
    bounds = np.searchsorted(lag[order], np.arange(window + 1))
    for table, start, end in zip(tables, bounds, bounds[1:], strict=False):
        members = order[start:end]
        if len(members):
            coefficients[members] = correlation[row[members]] @ table
    return coefficients


def _polynomial_maximum(coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
    """Maximum on [-1, 1] of polynomials of shape (k, degree + 1), lowest power first."""
    grid = np.linspace(-1.0, 1.0, 9)
    at = grid[(coefficients @ np.vander(grid, coefficients.shape[1], increasing=True).T).argmax(axis=1)]
    powers = np.arange(coefficients.shape[1])
    first = (coefficients * powers)[:, 1:]
    second = (first * powers[:-1])[:, 1:]
    for _ in range(_NEWTON_STEPS):
        curvature = _evaluate(second, at)
        # Only where the polynomial is bent like a maximum does Newton's method climb.
        step = np.divide(_evaluate(first, at), curvature, out=np.zeros_like(at), where=curvature < 0.0)
        at = np.clip(at - step, -1.0, 1.0)
    maximum: NDArray[np.float64] = np.maximum(_evaluate(coefficients, at), coefficients @ np.ones(len(powers)))
    return maximum


def _evaluate(coefficients: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Horner's rule, row by row."""
    value = coefficients[:, -1].copy()
    for column in range(coefficients.shape[1] - 2, -1, -1):
        value = value * at + coefficients[:, column]
    return value


@lru_cache(maxsize=4)
def _polynomial_tables(window: int) -> NDArray[np.float64]:
    """Build what turns correlations into the polynomial that Praat's interpolation follows between two lags.

    Shape (window, window + 1, 2 * (degree + 1)): for lag m, correlations at lags 0 ... window times table m gives coefficients of powers
    of u for the stretch from m - 1 to m, then for that from m to m + 1; u runs from -1 to 1 in either. Praat interpolates over the
    correlation mirrored at lag 0, as deep as lags reach to the right.
    """
    nodes = np.polynomial.chebyshev.chebpts1(_POLYNOMIAL_DEGREE + 1)
    to_coefficients = np.linalg.inv(np.vander(nodes, increasing=True))
    after = np.zeros((window, window + 1, _POLYNOMIAL_DEGREE + 1))
    for lag in range(1, window):
        depth = window - lag
        weights = sinc_weights(0.5 * (nodes + 1.0), np.full(len(nodes), depth), depth)
        mirrored = np.abs(np.arange(lag + 1 - depth, lag + depth + 1))
        np.add.at(after[lag], mirrored, (to_coefficients @ weights).T)
    before = np.concatenate([np.zeros_like(after[:1]), after[:-1]])
    return np.concatenate([before, after], axis=2)
