"""Exact Shapley values of a few players, and of the probability that a sum of log-odds gives.

The one idea: with six families there are 64 coalitions, so nothing has to be sampled or approximated: every coalition's value is computed, and
the Shapley values are one fixed matrix times those.
"""

from functools import lru_cache
from math import factorial

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Array = NDArray[np.float64]
MOST_PLAYERS = 12
"""4,096 coalitions; beyond, sampling would be the better way."""
_LARGEST_EXPONENT = 700.0
"""Beyond, exp leaves float64; the class has no probability to speak of long before."""


@lru_cache(maxsize=MOST_PLAYERS)
def coalitions(players: int) -> NDArray[np.bool_]:
    """Return every coalition, shape (2**players, players): the empty one first, all players last."""
    if not 1 <= players <= MOST_PLAYERS:
        raise ValueError(f"{players} players; from 1 to {MOST_PLAYERS} can be done exactly")
    return np.array([[bool(number >> player & 1) for player in range(players)] for number in range(2**players)])


@lru_cache(maxsize=MOST_PLAYERS)
def shapley_matrix(players: int) -> Array:
    """Return what turns the values of all coalitions into Shapley values, shape (players, 2**players).

    A player's value is the mean, over all orders in which players can come, of what they change when they join: a coalition of s others
    weighs s! (n - s - 1)! / n! (Shapley 1953, Contributions to the Theory of Games II:307-317).

    Examples
    --------
    >>> shapley_matrix(2) @ np.array([0.0, 1.0, 2.0, 5.0])  # nobody, the first, the second, both
    array([2., 3.])
    """
    members = coalitions(players)
    size = members.sum(axis=1)
    orders = factorial(players)
    joining = np.array([factorial(s - 1) * factorial(players - s) / orders if s else 0.0 for s in size])
    waiting = np.array([factorial(s) * factorial(players - s - 1) / orders if s < players else 0.0 for s in size])
    return np.where(members.T, joining, -waiting)


def sums_of_others(background: Array) -> Array:
    """Return what the families outside each coalition add in members of the reference group; the same for every recording.

    Parameters
    ----------
    background
        Shape (versions, members, families, margins).

    Returns
    -------
    ndarray of shape (versions, 2**families, members, margins)
    """
    return np.einsum("cf,vnfk->vcnk", (~coalitions(background.shape[2])).astype(float), background, optimize=True)


def probability_values(constant: Array, families: Array, others: Array, target: int) -> Array:
    """Return the probability of a class for every coalition of families; the others are those of the reference group.

    A coalition's value is the mean, over members of the group, of the probability that a recording with the coalition's families from here and
    the rest from there would get (an interventional value function: Janzing, Minorics & Blöbaum 2020, AISTATS).

    Parameters
    ----------
    constant
        Shape (versions, margins): one margin for two classes (the log-odds of the second), else one a class.
    families
        Shape (versions, families, margins), what each family of this recording adds.
    others
        From `sums_of_others`.
    target
        Number of the class, for several classes.

    Returns
    -------
    ndarray of shape (versions, 2**families)
        In the order of `coalitions`.
    """
    own = constant[:, None] + np.einsum("cf,vfk->vck", coalitions(families.shape[1]).astype(float), families)
    margins = own[:, :, None] + others
    if margins.shape[-1] == 1:
        return np.asarray(expit(margins[..., 0]).mean(axis=2))
    # One entry of the softmax; the others' exponentials are wanted only in sum.
    against = np.minimum(margins - margins[..., target, None], _LARGEST_EXPONENT)
    return np.asarray((1.0 / np.exp(against).sum(axis=-1)).mean(axis=2))


def centred(values: Array, target: int) -> Array:
    """Return the margins to explain: of two classes as they are, of several the target's less the mean over classes, which softmax cannot see."""
    return values[..., 0] if values.shape[-1] == 1 else values[..., target] - values.mean(axis=-1)
