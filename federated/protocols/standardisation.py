"""Means and standard deviations in two passes, for every set of training folds at once.

The one idea: sums about zero lose the digits of a feature whose mean is far from it, so the second pass sums about the mean that the first one
found. Fold by fold, because the scales of a set of folds are sums over them.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clinical_ser.errors import TrainingError
from clinical_ser.models.preprocessing import CONSTANT_RELATIVE_SD
from federated.at_site import Array, numbers
from federated.fixed_point import COARSE_BITS, FINE_BITS
from federated.statistics import Arrays, Ask, SiteRows, Statistic, register

WIDEST = 1e12
"""Largest sum of a feature at a site, in the feature's own unit; the fixed point then resolves far below rounding (`fixed_point`)."""
RESOLUTION = 2.0 ** -(COARSE_BITS + FINE_BITS)
LEAST_RELATIVE = 1e7
"""Sums of squares are at least so many resolutions a site: a SD is then known to better than 10⁻⁷ of itself."""


@register
class Moments(Statistic):
    """Known values and their sum by fold, about `centre` (features,); with option `squares` the sum of squares too; option `folds`."""

    name = "moments"
    bound = WIDEST

    def at_site(self, rows: SiteRows, ask: Ask) -> Arrays:
        """Return `known`, `sum` (and `squares`), each of shape (folds, features)."""
        centre = numbers(ask, "centre", ndim=1)
        known = ~np.isnan(rows.X)
        about = np.where(known, rows.X - centre, 0.0)
        folds = np.arange(int(ask.options["folds"]))[:, None] == rows.fold
        found = {"known": folds @ known.astype(float), "sum": folds @ about}
        return found | {"squares": folds @ about**2} if ask.options.get("squares") else found


def check_resolved(moments: Arrays, names: Sequence[str], sites: int) -> None:
    """Raise TrainingError for features whose unit is so large that fixed point would blur their spread: they would vanish from the model unseen."""
    squares = moments["squares"].sum(axis=0)
    blurred = (squares > 0) & (squares < LEAST_RELATIVE * sites * RESOLUTION)
    if blurred.any():
        some = [names[j] for j in np.flatnonzero(blurred)[:5]]
        raise TrainingError(f"Values of these features are too small in their unit to be added up across sites: {some}. Leave them out of the plan.")


def scales(moments: Arrays, centre: Array, recordings: NDArray[np.float64]) -> tuple[Array, Array]:
    """Return mean and SD of every training set: without fold 0, without fold 1, ..., of everybody.

    Parameters
    ----------
    moments
        Totals of `Moments` about `centre`, with squares.
    centre
        Shape (features,).
    recordings
        Shape (folds,), rows of each fold.

    Returns
    -------
    tuple of ndarray of shape (folds + 1, features)
        The SD (divisor n) is that after what is missing was put at the mean; 0 marks a column that is constant or never known.

    Raises
    ------
    TrainingError
        No feature varies.
    """
    known, total, squares = (_without_each(moments[name]) for name in ("known", "sum", "squares"))
    rows = _without_each(recordings[:, None])
    shift = np.divide(total, known, out=np.zeros_like(total), where=known > 0)
    mean = centre + shift
    variance = np.maximum(squares - total * shift, 0.0) / rows
    spread = np.sqrt(variance)
    scale = np.where(spread > CONSTANT_RELATIVE_SD * np.abs(mean), spread, 0.0)
    if not scale.any(axis=1).all():
        raise TrainingError("Every feature is constant or missing at all sites together; there is nothing to learn from.")
    return mean, scale


def _without_each(by_fold: Array) -> Array:
    everybody = by_fold.sum(axis=0)
    return np.concatenate([everybody - by_fold, everybody[None]])
