"""The two fixed matrices of a mel spectrogram, in numpy: a Fourier transform of windowed frames, and filters on the mel scale.

References
----------
Slaney M (1998), Auditory Toolbox, Technical Report 1998-010, Interval Research: linear up to 1 kHz, logarithmic above, filters of equal area.
"""

import numpy as np
from numpy.typing import NDArray

_LINEAR_HZ = 200.0 / 3
"""Width of a mel below 1 kHz."""
_KNEE_HZ = 1000.0
_LOG_STEP = np.log(6.4) / 27


def dft_kernels(n_fft: int) -> NDArray[np.float32]:
    """Return the rows cos and sin, under a periodic Hann window: shape (2 * (n_fft // 2 + 1), n_fft)."""
    n = np.arange(n_fft)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / n_fft)
    # The product of two whole numbers modulo n_fft keeps the angle exact for every bin.
    angle = 2 * np.pi * (np.outer(np.arange(n_fft // 2 + 1), n) % n_fft) / n_fft
    return np.concatenate([np.cos(angle) * window, np.sin(angle) * window]).astype(np.float32)


def mel_filters(n_mels: int, n_fft: int, sample_rate_hz: int) -> NDArray[np.float32]:
    """Return triangular filters of equal area from 0 Hz to half the rate: shape (n_mels, n_fft // 2 + 1)."""
    bins = np.arange(n_fft // 2 + 1) * sample_rate_hz / n_fft
    edges = _hz(np.linspace(0.0, _mels(sample_rate_hz / 2), n_mels + 2))
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - low) / (centre - low), (high - bins) / (high - centre)
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return np.asarray(triangles * 2.0 / (high - low), np.float32)


def _mels(hz: float) -> float:
    return hz / _LINEAR_HZ if hz < _KNEE_HZ else float(_KNEE_HZ / _LINEAR_HZ + np.log(hz / _KNEE_HZ) / _LOG_STEP)


def _hz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    knee = _KNEE_HZ / _LINEAR_HZ
    return np.where(mels < knee, mels * _LINEAR_HZ, _KNEE_HZ * np.exp(_LOG_STEP * (np.maximum(mels, knee) - knee)))
