"""Less articulated copies of a phrase: formants pulled toward their mean through line spectral frequencies.

Any point between two ordered sets of line spectral frequencies is again ordered, and so again a stable vocal tract filter (Itakura 1975;
Kabal & Ramachandran 1986). Contracting them toward the voice's mean narrows how far its formants travel and leaves pitch and timing alone.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

LPC_ORDER = 18
"""Two per formant below 8 kHz for an adult, two for the source."""
_WINDOW = 512  # samples at 16 kHz: 32 ms, three periods of a male voice
_HOP = 128
_FFT = 1024
_GRID = 1024  # frequencies searched for sign changes: every frame of the German voice found, within 0.7 Hz of a grid of 4096
_PRE_EMPHASIS = 0.97

Array = NDArray[np.float64]


def line_spectra(samples: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Line spectral frequencies of every frame.

    Parameters
    ----------
    samples : array of shape (n,), 16 kHz

    Returns
    -------
    frequencies : array of shape (frames, LPC_ORDER), radians a sample, increasing; zero where not found
    found : array of shape (frames,)
    """
    return _lpc_to_lsf(_lpc(_frames(np.append(samples[0], samples[1:] - _PRE_EMPHASIS * samples[:-1]))))


def contract(samples: Array, frequencies: Array, usable: NDArray[np.bool_], centre: Array, contrast: float) -> Array:
    """Return the phrase with its vocal tract pulled toward `centre`: contrast 1 is as it was, 0 is one vowel throughout.

    Frames outside `usable` (unvoiced, or without line spectra) stay as they are.
    """
    spectra = np.fft.rfft(_frames(samples), _FFT)
    change = np.ones_like(spectra)
    moved = centre + contrast * (frequencies[usable] - centre)
    change[usable] = np.fft.rfft(_lsf_to_lpc(frequencies[usable]), _FFT) / np.fft.rfft(_lsf_to_lpc(moved), _FFT)
    altered = spectra * change
    # Each frame keeps its energy: articulation must not become loudness.
    energy = np.sqrt((np.abs(spectra) ** 2).sum(1) / np.maximum((np.abs(altered) ** 2).sum(1), 1e-20))
    return _overlap_add(np.fft.irfft(altered * energy[:, None], _FFT), len(samples))


def frame_times_s(samples: Array, sample_rate_hz: int) -> Array:
    """Centres of the frames of `line_spectra`."""
    return (np.arange(len(_frames(samples))) * _HOP - _WINDOW // 2) / sample_rate_hz


def _frames(samples: Array) -> Array:
    """Hann frames, frame k centred on sample (k - 2) * _HOP; everywhere four of them overlap, and add to two."""
    padded = np.pad(samples, (_WINDOW, _WINDOW))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW)
    return np.asarray(sliding_window_view(padded, _WINDOW)[::_HOP] * window)


def _overlap_add(frames: Array, length: int) -> Array:
    positions = np.arange(len(frames))[:, None] * _HOP + np.arange(_FFT)
    summed = np.bincount(positions.ravel(), weights=frames.ravel())
    return summed[_WINDOW:][:length] / 2.0


def _lpc(frames: Array) -> Array:
    """Autocorrelation method, Levinson-Durbin on all frames at once; shape (frames, LPC_ORDER + 1), first column 1."""
    power = np.abs(np.fft.rfft(frames, 2 * _WINDOW)) ** 2
    r = np.fft.irfft(power)[:, : LPC_ORDER + 1]
    r[:, 0] = r[:, 0] * (1 + 1e-6) + 1e-12  # a floor 60 dB down keeps silence solvable
    a = np.zeros_like(r)
    a[:, 0] = 1.0
    error = r[:, 0].copy()
    for order in range(1, LPC_ORDER + 1):
        reflection = -(a[:, :order] * r[:, order:0:-1]).sum(1) / error
        a[:, : order + 1] += reflection[:, None] * a[:, order::-1]
        error *= 1.0 - reflection**2
    return a


def _lpc_to_lsf(a: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Zeros on the unit circle of P = A + z^-(p+1) A(1/z) and Q = A - z^-(p+1) A(1/z), found as sign changes on a grid."""
    padded = np.pad(a, ((0, 0), (0, 1)))
    turn = np.exp(1j * np.pi * np.arange(_GRID + 1) / _GRID * (LPC_ORDER + 1) / 2)
    symmetric = (np.fft.rfft(padded + padded[:, ::-1], 2 * _GRID) * turn).real
    antisymmetric = (np.fft.rfft(padded - padded[:, ::-1], 2 * _GRID) * turn).imag
    p_zeros, p_found = _zeros(symmetric)
    q_zeros, q_found = _zeros(antisymmetric)
    found = p_found & q_found
    return np.sort(np.hstack([p_zeros, q_zeros]), axis=1) * found[:, None], found


def _zeros(values: Array) -> tuple[Array, NDArray[np.bool_]]:
    """LPC_ORDER / 2 zeros of each row inside (0, pi), by linear interpolation; a row with another number of them is not found."""
    inner = values[:, 1:-1]
    crossing = np.signbit(inner[:, 1:]) != np.signbit(inner[:, :-1])
    found = crossing.sum(1) == LPC_ORDER // 2
    rows, columns = np.nonzero(crossing & found[:, None])
    left, right = inner[rows, columns], inner[rows, columns + 1]
    zeros = np.zeros((len(values), LPC_ORDER // 2))
    zeros[found] = ((columns + 1 + left / (left - right)) * np.pi / _GRID).reshape(-1, LPC_ORDER // 2)
    return zeros, found


def _lsf_to_lpc(frequencies: Array) -> Array:
    symmetric, antisymmetric = np.ones((len(frequencies), 1)), np.ones((len(frequencies), 1))
    for k in range(0, LPC_ORDER, 2):
        symmetric = _times_quadratic(symmetric, frequencies[:, k])
        antisymmetric = _times_quadratic(antisymmetric, frequencies[:, k + 1])
    p = np.pad(symmetric, ((0, 0), (0, 1))) + np.pad(symmetric, ((0, 0), (1, 0)))
    q = np.pad(antisymmetric, ((0, 0), (0, 1))) - np.pad(antisymmetric, ((0, 0), (1, 0)))
    return 0.5 * (p + q)[:, :-1]


def _times_quadratic(polynomial: Array, frequency: Array) -> Array:
    """Multiply by 1 - 2 cos(w) z^-1 + z^-2."""
    product = np.pad(polynomial, ((0, 0), (0, 2)))
    product[:, 1:-1] -= 2 * np.cos(frequency)[:, None] * polynomial
    product[:, 2:] += polynomial
    return product
