"""Exact Shapley values of a few players, and of the probability that a sum of log-odds gives.

The one idea: with six families there are 64 coalitions, so nothing has to be sampled or approximated: every coalition's value is computed, and
the Shapley values are one fixed matrix times those.
"""

from dataclasses import dataclass
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
_LARGEST_FACTOR = 300.0
"""Of exponents: the exponentials of two of them multiply to what float64 holds with all its digits, 1e-261 to 1e261."""


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


@dataclass(frozen=True, eq=False)
class Others:
    """What the families outside each coalition add in members of the reference group; made by `sums_of_others`."""

    values: Array
    """Shape (versions, coalitions, margins, members)."""
    as_factors: bool
    """Whether they are factors of the odds (e to the power of the sums; of several margins less the largest) or the sums themselves."""

    def __getitem__(self, versions: slice) -> "Others":
        """Return those of some versions."""
        return Others(self.values[versions], self.as_factors)

    def sums(self) -> Array:
        """Return the sums, of several margins but for what softmax cannot see."""
        return np.asarray(np.log(self.values)) if self.as_factors else self.values


def sums_of_others(background: Array) -> Others:
    """Return what the families outside each coalition add in members of the reference group; the same for every recording.

    Exponentials are taken here, once, where float64 holds them: a recording then needs only products.

    Parameters
    ----------
    background
        Shape (versions, members, families, margins).
    """
    sums = np.einsum("cf,vnfk->vckn", (~coalitions(background.shape[2])).astype(float), background, optimize=True)
    shifted = sums if sums.shape[2] == 1 else sums - sums.max(axis=2, keepdims=True)
    return Others(np.exp(shifted), as_factors=True) if _are_small(shifted) else Others(sums, as_factors=False)


def probability_values(constant: Array, families: Array, others: Others, target: int) -> Array:
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
    own = constant[:, None] + coalitions(families.shape[1]).astype(float) @ families
    several = own.shape[2] > 1
    shifted = own - own.max(axis=2, keepdims=True) if several else own
    if not (others.as_factors and _are_small(shifted)):
        return _by_sums(own, others.sums(), target)
    factors = np.exp(shifted)
    if not several:
        odds = factors * others.values[:, :, 0]
        return np.asarray(np.divide(odds, 1.0 + odds, out=odds).mean(axis=2))
    total = (factors[:, :, None] @ others.values)[:, :, 0]
    return np.asarray(factors[:, :, target] * np.divide(others.values[:, :, target], total, out=total).mean(axis=2))


def _are_small(exponents: Array) -> bool:
    return not exponents.size or float(np.abs(exponents).max()) <= _LARGEST_FACTOR


def _by_sums(own: Array, sums: Array, target: int) -> Array:
    """Return `probability_values` where exponentials of the parts may leave float64, though those of their sum do not."""
    margins = own[..., None] + sums
    if margins.shape[2] == 1:
        return np.asarray(expit(margins[:, :, 0]).mean(axis=2))
    # One entry of the softmax; the others' exponentials are wanted only in sum.
    against = np.minimum(margins - margins[:, :, target, None], _LARGEST_EXPONENT)
    return np.asarray((1.0 / np.exp(against).sum(axis=2)).mean(axis=2))


def centred(values: Array, target: int) -> Array:
    """Return the margins to explain: of two classes as they are, of several the target's less the mean over classes, which softmax cannot see."""
    return values[..., 0] if values.shape[-1] == 1 else values[..., target] - values.mean(axis=-1)
