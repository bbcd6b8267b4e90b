"""Ridge logistic regression: gradients and Hessians of many heads in one exchange, and the Newton steps that the totals allow.

The one idea: a deployed exchange takes seconds whatever its size, so every fold, strength and bootstrap sample has its own head, and all of
them take their step together. The penalty is public and is added by whoever trains; the objective is `LinearHead`'s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clinical_ser.continual.posterior import Posterior
from clinical_ser.errors import InvalidValueError, TrainingError
from federated.at_site import EVERYBODY, Array, Scales, logistic, numbers, places, symmetric, times_drawn, triangle
from federated.statistics import Arrays, Ask, SiteRows, Statistic, register

LONGEST_STEP = 1e4
"""Decrement beyond which totals cannot be those of standardised features."""


@register
class Newton(Statistic):
    """First and second derivatives of the log-loss, summed over rows.

    Arrays: `mean`, `scale` (folds + 1, features); `beta` (heads, features + 1), intercept last; `left_out` and `draw` (heads,), the fold that a
    head does not hear and its bootstrap sample, or `EVERYBODY`.
    """

    name = "newton"
    bound = 1e7

    def at_site(self, rows: SiteRows, ask: Ask) -> Arrays:
        """Return `gradient` (heads, size), `hessian` (heads, size (size + 1) / 2), `loss` and `held_out` (heads,): log-loss heard, and not."""
        scales = Scales(rows, ask)
        beta = numbers(ask, "beta", ndim=2)
        left_out, draws = places(ask, "left_out", scales.folds), places(ask, "draw", 2**31)
        gradients, hessians, losses, held_out = [], [], [], []
        drawn = {draw: times_drawn(rows, draw) for draw in np.unique(draws).tolist()}
        for one, fold, draw in zip(beta, left_out.tolist(), draws.tolist(), strict=True):
            design = scales.design(fold)
            p, loss = logistic(design @ one, rows.target)
            weight = drawn[draw] * (rows.fold != fold)
            gradients.append(design.T @ (weight * (p - rows.target)))
            hessians.append(triangle((design.T * (weight * p * (1 - p))) @ design))
            losses.append(weight @ loss)
            held_out.append(drawn[draw] @ loss - weight @ loss if fold != EVERYBODY else 0.0)
        return {"gradient": np.array(gradients), "hessian": np.array(hessians), "loss": np.array(losses), "held_out": np.array(held_out)}


@dataclass(eq=False)
class Heads:
    """Heads on their way to their minima.

    Attributes
    ----------
    beta
        Shape (heads, features + 1), intercept last.
    left_out, draw
        Shape (heads,), as in `Newton`.
    strength
        Shape (heads,), the ridge of each.
    prior
        What data that are not asked any more say, one posterior a head with its ridge in it; None: the ridge of `strength` alone.
    decrement
        Shape (heads,), how far the last step went, in units of the objective's square root; infinite before the first.
    """

    beta: Array
    left_out: NDArray[np.int64]
    draw: NDArray[np.int64]
    strength: Array
    prior: Sequence[Posterior] | None = None

    def __post_init__(self) -> None:
        heads, self._size = self.beta.shape
        check_priors(self.prior, self.beta)
        self.decrement = np.full(heads, np.inf)
        self.hessian = np.zeros((heads, self._size, self._size))
        self._objective = np.full(heads, np.inf)
        self._from = self.beta.copy()
        self._step = np.zeros_like(self.beta)

    def take(self, index: NDArray[np.intp]) -> "Heads":
        """Return some of the heads, as far as they have come."""
        prior = None if self.prior is None else [self.prior[i] for i in index]
        some = Heads(self.beta[index].copy(), self.left_out[index], self.draw[index], self.strength[index], prior)
        some.decrement, some.hessian, some._objective = self.decrement[index].copy(), self.hessian[index].copy(), self._objective[index].copy()
        some._from, some._step = self._from[index].copy(), self._step[index].copy()
        return some

    def ask(self, scales: Mapping[str, Array]) -> Ask:
        """Return the question for the next step; `scales` as `at_site.Scales` reads them."""
        return Ask(Newton.name, {**scales, "beta": self.beta, "left_out": self.left_out, "draw": self.draw})

    def step(self, totals: Arrays) -> Array:
        """Take the Newton step that the totals at `beta` allow; return the held-out loss at the `beta` that was asked about, shape (heads,).

        A step that made a head worse is halved instead.

        Raises
        ------
        TrainingError
            The totals cannot be those of standardised features: not convex, or a step without measure.
        """
        for i in range(len(self.beta)):
            value, slope, curve = self._penalty(i)
            objective = float(totals["loss"][i] + value)
            if objective > self._objective[i] + 1e-7 * abs(objective):
                self._step[i] /= 2
                self.beta[i] = self._from[i] - self._step[i]
                continue
            gradient = totals["gradient"][i] + slope
            self.hessian[i] = symmetric(totals["hessian"][i], self._size) + curve
            step, squared = _solved(self.hessian[i], gradient)
            self.decrement[i], self._objective[i] = np.sqrt(squared), objective
            self._from[i], self._step[i] = self.beta[i].copy(), step
            self.beta[i] = self.beta[i] - step
        return totals["held_out"].copy()

    def distance(self, totals: Arrays) -> float:
        """Return how far the heads are from their minima by totals at `beta`: the largest Newton decrement; nothing moves."""
        furthest = 0.0
        for i in range(len(self.beta)):
            _, slope, curve = self._penalty(i)
            hessian = symmetric(totals["hessian"][i], self._size) + curve
            furthest = max(furthest, np.sqrt(_solved(hessian, totals["gradient"][i] + slope)[1]))
        return float(furthest)

    def _penalty(self, i: int) -> tuple[float, Array, Array]:
        """Return value, gradient and Hessian of head `i`'s penalty where it stands."""
        beta = self.beta[i]
        if self.prior is not None:
            return *self.prior[i].penalty(beta), self.prior[i].whole
        ridge = np.where(np.arange(self._size) < self._size - 1, self.strength[i], 0.0)
        return float(0.5 * ridge @ beta**2), ridge * beta, np.diag(ridge)

    def standard_errors(self) -> Array:
        """Return the standard error of each coefficient, shape (heads, features + 1): the root of the diagonal of the inverse Hessian.

        With the ridge as a normal prior it is the posterior SD (Laplace); recordings of one subject count as independent, so it errs to the small
        side where subjects gave several.
        """
        return np.array([np.sqrt(np.diag(np.linalg.inv(hessian))) for hessian in self.hessian])


def check_priors(priors: Sequence[Posterior] | None, beta: Array) -> None:
    """Raise InvalidValueError unless there is no prior, or a finite one for each row of `beta`, shape (heads, size)."""
    heads, size = beta.shape
    if priors is not None and (
        len(priors) != heads or any(one.size != size or not (np.isfinite(one.whole).all() and np.isfinite(one.information).all()) for one in priors)
    ):
        raise InvalidValueError("prior", f"{len(priors)} of them, or others", f"{heads} finite posteriors of {size} coefficients")


def _solved(hessian: Array, gradient: Array) -> tuple[Array, float]:
    try:
        factor = np.linalg.cholesky(hessian)
    except np.linalg.LinAlgError:
        raise TrainingError("The total of the sites' Hessians is not that of a log-loss; a site's contribution has to be looked at.") from None
    half = np.linalg.solve(factor, gradient)
    squared = float(half @ half)
    if not squared < LONGEST_STEP**2:
        raise TrainingError("The total of the sites' gradients asks for a step beyond measure; a site's contribution has to be looked at.")
    return np.linalg.solve(factor.T, half), squared
