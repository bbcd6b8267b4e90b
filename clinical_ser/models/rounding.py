"""Order statistics that are nobody's.

A median or quantile of a cohort is often exactly one subject's value. Rounded, it is the value of everyone nearby, and as good a summary.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

SIGNIFICANT_DIGITS = 3
"""Finer than any feature is reliable from one recording to the next, coarse enough that no digit string identifies a recording."""


def rounded(values: ArrayLike) -> NDArray[np.float64]:
    """Round to `SIGNIFICANT_DIGITS` significant digits, keeping shape, zero, NaN and order.

    Examples
    --------
    >>> rounded([123.456, -0.0123456, 0.0]).tolist()
    [123.0, -0.0123, 0.0]
    """
    x = np.asarray(values, dtype=np.float64)
    return np.array([float(f"{value:.{SIGNIFICANT_DIGITS}g}") for value in x.ravel()]).reshape(x.shape)
