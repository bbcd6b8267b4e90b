"""Whether probabilities mean what they say: intercept and slope of the outcome on the log-odds, and the Brier score."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

_STEPS = 50


def brier(y: NDArray[np.int_], probability: NDArray[np.float64], weight: NDArray[np.float64] | None = None) -> float:
    """Mean squared distance of the probability from the outcome; shapes (n,) for two classes, (n, K) with y in 0..K-1 for more.

    `weight`, shape (n,), lets subjects count alike; None counts rows alike.
    """
    outcome = y if probability.ndim == 1 else np.eye(probability.shape[1])[y]
    squared = (probability - outcome) ** 2
    return float(np.average(squared if probability.ndim == 1 else squared.sum(axis=1), weights=weight))


def intercept_and_slope(y: NDArray[np.int_], log_odds: NDArray[np.float64], weight: NDArray[np.float64] | None = None) -> tuple[float, float]:
    """Calibration intercept (slope fixed at 1) and slope; 0 and 1 when perfect.

    Parameters
    ----------
    y
        Shape (n,), 1 for positive.
    log_odds
        Shape (n,), logit of the stated probability.
    weight
        Shape (n,), positive; None: all alike.

    Returns
    -------
    tuple of float
        NaN where the classes are separated or one is absent, so that no finite fit exists.

    References
    ----------
    Cox DR (1958), Biometrika 45:562-565; Van Calster B et al. (2019), BMC Medicine 17:230.
    """
    ones = np.ones_like(log_odds)
    each = ones if weight is None else weight
    intercept = _logistic_fit(ones[:, None], y, each, offset=log_odds)[0]
    slope = _logistic_fit(np.column_stack([ones, log_odds]), y, each, offset=np.zeros_like(log_odds))[1]
    return float(intercept), float(slope)


def _logistic_fit(
    design: NDArray[np.float64], y: NDArray[np.int_], weight: NDArray[np.float64], *, offset: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Maximum likelihood by Newton steps; NaN where it does not converge, as under separation."""
    beta = np.zeros(design.shape[1])
    undefined = np.full_like(beta, np.nan)
    for _ in range(_STEPS):
        p = expit(design @ beta + offset)
        hessian = design.T @ (design * (weight * p * (1 - p))[:, None])
        if np.linalg.cond(hessian) > 1e12:
            return undefined
        step = np.linalg.solve(hessian, design.T @ (weight * (y - p)))
        beta = beta + step
        if np.abs(step).max() < 1e-10:
            return beta
    return undefined
