"""Whether recordings have moved since training: features and scores counted in the cells of a frozen grid, without labels.

The one idea: the grid is that of the released model (its scales and its map), so that two counts taken a year apart are of the same cells, and
the population stability index compares them without anybody's row.
"""

import numpy as np
from scipy.special import expit

from federated.at_site import Array, numbers, standardised, unclipped, weights
from federated.protocols.scores import BINS as SCORE_BINS
from federated.protocols.scores import bin_of
from federated.statistics import Arrays, Ask, SiteRows, Statistic, register

EDGES = np.concatenate([[-np.inf], np.linspace(-2.0, 2.0, 9), [np.inf]])
"""In SD of the training cohort: ten cells, which is what limits for the index are stated for."""
SMALLEST_SHARE = 1e-4
"""Held apart from 0, where the index has no value."""


@register
class Drift(Statistic):
    """Cells of features and of scores, every subject with weight 1.

    Arrays: `mean`, `scale` (features,); `beta` (features + 1,); `theta` (2,), all of the released model.
    """

    name = "drift"
    bound = 1e9
    counts = frozenset({"features", "scores", "people"})

    def at_site(self, rows: SiteRows, ask: Ask) -> Arrays:
        """Return `features` (features, cells + 1), the last cell for what is missing; `scores` (bins,); `people` (1,)."""
        mean, scale, beta, theta = (numbers(ask, name, ndim=1) for name in ("mean", "scale", "beta", "theta"))
        weight = weights(rows)
        z = unclipped(rows.X, mean, scale)
        cells = np.where(np.isnan(rows.X), len(EDGES) - 1, np.searchsorted(EDGES, z, side="right") - 1)
        features = np.array([np.bincount(column, weight, minlength=len(EDGES)) for column in cells.T])
        margins = standardised(rows.X, mean, scale) @ beta[:-1] + beta[-1]
        scores = np.bincount(bin_of(expit(theta[0] * margins + theta[1])), weight, minlength=SCORE_BINS)
        return {"features": features, "scores": scores, "people": np.array([float(len(np.unique(rows.subjects)))])}


def stability_index(before: Array, after: Array) -> Array:
    """Return the population stability index of counts, shape (..., cells): below 0.1 is usually called steady, above 0.25 a shift.

    Sum over cells of (q - p) ln(q / p), p and q the shares before and after. With n and m people its expectation under no change is about
    (cells - 1) (1/n + 1/m), so read it beside that (Yurdakul & Naranjo 2020, J Risk Model Validation 14:89-100).

    Parameters
    ----------
    before, after
        Shape (..., cells), weights by cell.

    Returns
    -------
    ndarray of shape (...,)
        Not negative.

    Examples
    --------
    >>> float(stability_index(np.array([50.0, 50.0]), np.array([50.0, 50.0])))
    0.0
    """
    p, q = (np.maximum(counts / counts.sum(axis=-1, keepdims=True), SMALLEST_SHARE) for counts in (before, after))
    return np.asarray(((q - p) * np.log(q / p)).sum(axis=-1))
