"""How well scores order, and answers sort, people: AUROC for two classes, unweighted average recall for several."""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata


def auroc(y: NDArray[np.int_], score: NDArray[np.float64]) -> float:
    """Area under the ROC curve: the share of (positive, negative) pairs ordered rightly, ties counting half (Mann-Whitney).

    Parameters
    ----------
    y
        Shape (n,), 1 for positive.
    score
        Shape (n,), larger for more likely positive.

    Returns
    -------
    float
        NaN when one of the classes is absent.
    """
    positive = y == 1
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return float("nan")
    rank_sum = rankdata(score)[positive].sum()
    return float((rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def unweighted_average_recall(y: NDArray[np.int_], answer: NDArray[np.int_]) -> float:
    """Mean of the classes' recalls (UAR, "UA", balanced accuracy) over the classes present in `y`; both shape (n,)."""
    return float(np.mean([np.mean(answer[y == k] == k) for k in np.unique(y)]))
