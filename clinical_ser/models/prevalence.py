"""Restating a probability for people among whom the condition is more, or less, common than in training.

The one idea: Bayes' rule in odds. Only the prior changes; the likelihood ratio of the recording stays.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clinical_ser.errors import InvalidValueError


def shift_log_odds(log_odds: ArrayLike, trained_prevalence: float, stated_prevalence: float) -> NDArray[np.float64]:
    """Move calibrated log-odds from the training prevalence to a stated one.

    odds' = odds · [π'/(1-π')] / [π/(1-π)] (Elkan 2001, IJCAI, Theorem 2; Saerens et al. 2002, Neural Computation 14:21-41). It holds under
    *label shift*: people with the condition sound as they did in training, and so do people without; there are only more or fewer of them.
    It does not hold where the deployed group differs in another way (older, another language, another microphone, milder cases).

    Parameters
    ----------
    log_odds
        Any shape; calibrated, of the positive class, at `trained_prevalence`.
    trained_prevalence, stated_prevalence
        Shares of positives, strictly between 0 and 1.

    Returns
    -------
    ndarray
        Log-odds at `stated_prevalence`, of the same shape. The order of recordings, and a threshold moved alike, stay as they are.

    Raises
    ------
    InvalidValueError
        If a prevalence is not strictly between 0 and 1.

    Examples
    --------
    >>> from scipy.special import expit, logit
    >>> [round(float(expit(shift_log_odds(logit(0.60), 0.50, stated))), 2) for stated in (0.20, 0.10)]
    [0.27, 0.14]
    """
    return (
        np.asarray(log_odds, dtype=np.float64)
        + _log_odds("stated_prevalence", stated_prevalence)
        - _log_odds("trained_prevalence", trained_prevalence)
    )


def shift_logits(logits: ArrayLike, trained_shares: Sequence[float], stated_shares: Sequence[float]) -> NDArray[np.float64]:
    """Move calibrated logits of several classes to other class shares; `shift_log_odds` for the softmax.

    Parameters
    ----------
    logits
        Shape (rows, classes).
    trained_shares, stated_shares
        One positive number a class, each set summing to 1; equal stated shares give the prediction that serves the unweighted average recall.

    Raises
    ------
    InvalidValueError
        If a set has another length, a share is not positive, or they do not sum to 1.
    """
    values = np.asarray(logits, dtype=np.float64)
    classes = values.shape[-1]
    return values + _log_shares("stated_shares", stated_shares, classes) - _log_shares("trained_shares", trained_shares, classes)


def _log_odds(what: str, prevalence: float) -> float:
    if not 0 < prevalence < 1:
        raise InvalidValueError(what, prevalence, "a share strictly between 0 and 1")
    return float(np.log(prevalence) - np.log1p(-prevalence))


def _log_shares(what: str, shares: Sequence[float], classes: int) -> NDArray[np.float64]:
    values = np.asarray(shares, dtype=np.float64)
    if values.shape != (classes,) or not (values > 0).all() or abs(values.sum() - 1) > 1e-9:
        raise InvalidValueError(what, list(shares), f"{classes} positive shares that sum to 1")
    return np.log(values)
