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


def coarse(values: ArrayLike, spread: ArrayLike, people: int) -> NDArray[np.float64]:
    """Round means to a grid of 2 to 5 times SD / n (a fifth to a half of their standard error at 100 people), whatever their size.

    From sums over groups that differ by one person that person's value then comes out to within a few SD only; significant digits alone would keep
    a mean near zero exact.

    Examples
    --------
    >>> coarse([0.123456, 0.0004], [1.0, 1.0], 100).tolist()
    [0.12, 0.0]
    """
    mean, sd = np.broadcast_arrays(np.asarray(values, dtype=np.float64), np.asarray(spread, dtype=np.float64))
    least = 2 * np.where(sd > 0, sd, 1.0) / people
    power = 10.0 ** np.floor(np.log10(least))
    steps = np.select([least <= power, least <= 2 * power, least <= 5 * power], [power, 2 * power, 5 * power], 10 * power)
    # Without spread it is everybody's value, and nobody's.
    return rounded(np.where(sd > 0, np.round(mean / steps) * steps, mean))
