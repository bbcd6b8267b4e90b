"""How much each weight of an adapter matters to what it says: Fisher information by weight, added up over people and so over hospitals.

The one idea: it is a sum over people like any other, so what a champion must not unlearn can be known without a row of the data that taught it.
"""

import math

import numpy as np
from scipy.special import erf, expit

from federated.at_site import Array, numbers, weights
from federated.protocols.adapter import DOWN, EPSILON, HEAD, first_layers, flag_of, heard_by, inputs_of
from federated.statistics import Arrays, Ask, SiteRows, Statistic, register


@register
class Fisher(Statistic):
    """Diagonal of the Fisher information at the weights of an ask, every subject counting once.

    The true one: the label's expectation under the model itself is taken, p (1 - p) (d margin / d weight)^2, so labels have no part in it. The
    empirical one, with the labels, vanishes where a model fits and explodes where it does not, and is no curvature (Kunstner et al. 2019, NeurIPS).

    Arrays: `mean`, `scale` (features,); the weights of `AdapterRound`. Options: `left_out`, `local_norm`, `local_head`; with layers kept here,
    `parent` and `parent_round`, the run and round whose layers count.
    """

    name = "fisher"
    bound = 1e7
    counts = frozenset({"weight", *(f"fisher.{name}" for name in (*DOWN, *HEAD))})

    def at_site(self, rows: SiteRows, ask: Ask) -> Arrays:
        """Return `fisher.<name>` of what is shared, in the weights' shapes, and `weight`, the subjects heard."""
        shared = {name: numbers(ask, name, ndim=ndim) for name, ndim in zip((*DOWN, *HEAD), (2, 1, 1, 1), strict=True)}
        Z, heard = inputs_of(rows, ask, shared), heard_by(rows, ask)
        network = shared | first_layers(rows, ask, shared)
        weight = weights(rows) * heard
        own = HEAD if flag_of(ask, "local_head") else ()
        found = {f"fisher.{name}": value for name, value in fisher_of(Z, weight, network).items() if name not in own}
        return found | {"weight": np.array([weight.sum()])}


def fisher_of(Z: Array, weight: Array, network: Arrays) -> Arrays:
    """Return sum_i weight_i p_i (1 - p_i) (d margin_i / d w)^2 of each weight w of `down` and `head`, in numpy.

    Parameters
    ----------
    Z
        Shape (rows, features), standardised.
    weight
        Shape (rows,).
    network
        As `margins` takes it.
    """
    about = Z - Z.mean(axis=1, keepdims=True)
    normal = about / np.sqrt((about**2).mean(axis=1, keepdims=True) + EPSILON) * network["norm.weight"] + network["norm.bias"]
    before = normal @ network["down.weight"].T + network["down.bias"]
    below = 0.5 * (1 + erf(before / math.sqrt(2)))
    hidden, slope = before * below, below + before * np.exp(-(before**2) / 2) / math.sqrt(2 * math.pi)
    p = expit(hidden @ network["head.weight"] + network["head.bias"][0])
    each = weight * p * (1 - p)
    to_hidden = (slope * network["head.weight"]) ** 2 * each[:, None]
    return {
        "down.weight": to_hidden.T @ normal**2,
        "down.bias": to_hidden.sum(axis=0),
        "head.weight": each @ hidden**2,
        "head.bias": np.array([each.sum()]),
    }
