"""How well scores order, and answers sort, people: AUROC for two classes, unweighted average recall for several."""

import numpy as np
from numpy.typing import NDArray


def auroc(y: NDArray[np.int_], score: NDArray[np.float64], weight: NDArray[np.float64] | None = None) -> float:
    """Area under the ROC curve: the share of (positive, negative) pairs ordered rightly, ties counting half (Mann-Whitney).

    Parameters
    ----------
    y
        Shape (n,), 1 for positive.
    score
        Shape (n,), larger for more likely positive.
    weight
        Shape (n,), positive; a pair weighs the product. None: all alike.

    Returns
    -------
    float
        NaN when one of the classes is absent.
    """
    each = np.ones(len(y)) if weight is None else weight
    _, place = np.unique(score, return_inverse=True)
    positive, negative = (np.bincount(place, each * (y == k)) for k in (1, 0))
    if not positive.any() or not negative.any():
        return float("nan")
    below = np.cumsum(negative) - negative / 2
    return float(positive @ below / (positive.sum() * negative.sum()))


def unweighted_average_recall(y: NDArray[np.int_], answer: NDArray[np.int_]) -> float:
    """Mean of the classes' recalls (UAR, "UA", balanced accuracy) over the classes present in `y`; both shape (n,)."""
    return float(np.mean([np.mean(answer[y == k] == k) for k in np.unique(y)]))
