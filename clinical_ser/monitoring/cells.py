"""The frozen grid that recordings are counted in, and how far two counts of it lie apart.

The one idea: the grid is that of the model (its scales and its map), so that two counts taken a year apart, or at two hospitals, are of the same
cells and can be added and compared without anybody's row.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

EDGES: Array = np.concatenate([[-np.inf], np.linspace(-2.0, 2.0, 9), [np.inf]])
"""Of a standardised value, in SD of the training cohort: ten cells, which is what limits for the index are stated for."""
CELLS = len(EDGES) - 1
MISSING = CELLS
"""The cell after the last, for what is missing."""
SCORE_CELLS = 20
"""Of equal width in the probability at training prevalence: ten of the 200 bins of `clinical_ser.models.binned` each."""
SMALLEST_SHARE = 1e-4
"""Held apart from 0, where the index has no value."""
STEADY, SHIFTED = 0.10, 0.25
"""Usual limits of the index: below the first little has moved, above the second much (Siddiqi 2006, Credit Risk Scorecards, Wiley, p. 137; a
convention of credit scoring and no test)."""


def cell_of(z: Array) -> NDArray[np.int64]:
    """Return the cell of each standardised value: 0 to `CELLS` - 1, and `MISSING` where it is NaN; an edge belongs to the cell above it."""
    inside = np.searchsorted(EDGES, np.where(np.isnan(z), 0.0, z), side="right") - 1
    return np.where(np.isnan(z), MISSING, np.minimum(inside, CELLS - 1)).astype(np.int64)


def score_cell_of(p: Array) -> NDArray[np.int64]:
    """Return the cell of each probability, 0 to `SCORE_CELLS` - 1; an edge belongs to the cell above it."""
    return np.clip(np.searchsorted(np.linspace(0.0, 1.0, SCORE_CELLS + 1), p, side="right") - 1, 0, SCORE_CELLS - 1).astype(np.int64)


def unclipped(X: Array, mean: Array, scale: Array) -> Array:
    """Return X standardised, shape (rows, features): what is missing stays missing (NaN), and columns that never varied are 0."""
    used = scale > 0
    return np.where(np.isnan(X), np.nan, np.divide(X - mean, scale, out=np.zeros_like(X), where=used))


def stability_index(before: ArrayLike, after: ArrayLike) -> Array:
    """Return the population stability index of counts, shape (..., cells): see `STEADY` and `SHIFTED` for its usual limits.

    Sum over cells of (q - p) ln(q / p), p and q the shares before and after: Jeffreys' divergence (1946, Proc R Soc A 186:453-461). Read it beside
    `expected_index`.

    Parameters
    ----------
    before, after
        Shape (..., cells), weights by cell.

    Returns
    -------
    ndarray of shape (...,)
        Not negative; NaN where one of the two has no weight at all.

    Examples
    --------
    >>> float(stability_index(np.array([50.0, 50.0]), np.array([50.0, 50.0])))
    0.0
    """
    shares = [_shares(np.asarray(counts, float)) for counts in (before, after)]
    p, q = (np.maximum(share, SMALLEST_SHARE) for share in shares)
    return np.asarray(((q - p) * np.log(q / p)).sum(axis=-1))


def _shares(counts: Array) -> Array:
    total = counts.sum(axis=-1, keepdims=True)
    return np.asarray(np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0))


def expected_index(cells: int, before: float, after: float) -> float:
    """Return what the index comes to on average although nothing changed: (cells - 1) (1/n + 1/m), n and m people before and after.

    Its usual limits do not depend on n: with 40 people before and after, ten cells give 0.45 of chance alone (Yurdakul & Naranjo 2020, J Risk Model
    Validation 14:89-100). The figure holds where no cell is nearly empty.

    Examples
    --------
    >>> round(expected_index(10, 40, 40), 2)
    0.45
    """
    return float("inf") if before <= 0 or after <= 0 else (cells - 1) * (1 / before + 1 / after)
