"""The Platt map of out-of-fold margins, with the ridge of `MarginPlatt`: two parameters, Newton steps, many maps in one exchange.

The one idea: a map starts its steps while the heads still take theirs. Both come to rest together, and the last exchange finds both at rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinical_ser.continual.posterior import Posterior
from clinical_ser.models.calibration import MIN_SCALE, RIDGE, MarginPlatt
from federated.at_site import EVERYBODY, Array, Scales, logistic, numbers, places, times_drawn, weights
from federated.protocols.margins import out_of_fold
from federated.protocols.newton import check_priors
from federated.statistics import Arrays, Ask, SiteRows, Statistic, register

IDENTITY = np.array([1.0, 0.0])


@register
class Calibration(Statistic):
    """Derivatives of the log-loss of a·margin + b, every subject with weight 1.

    Arrays: those of the fold heads of each system (one a strength), as `margins.out_of_fold` reads them; `theta` (maps, 2); `system`, `left_out`
    and `draw` (maps,): whose margins, the fold that the map does not hear, its bootstrap sample.
    """

    name = "calibration"
    bound = 1e9

    def at_site(self, rows: SiteRows, ask: Ask) -> Arrays:
        """Return `sums`, shape (maps, 6): loss, two first and three second derivatives."""
        margins, theta, folds = out_of_fold(rows, ask), numbers(ask, "theta", ndim=2), Scales(rows, ask).folds
        systems, left_out, draws = places(ask, "system", len(margins)), places(ask, "left_out", folds), places(ask, "draw", 2**31)
        own = weights(rows)
        drawn = {draw: own * times_drawn(rows, draw) for draw in np.unique(draws).tolist()}
        found = []
        for (scale, offset), system, fold, draw in zip(theta, systems, left_out, draws.tolist(), strict=True):
            m = margins[system]
            weight = drawn[draw] * (rows.fold != fold)
            p, loss = logistic(scale * m + offset, rows.target)
            miss, curve = weight * (p - rows.target), weight * p * (1 - p)
            found.append([weight @ loss, miss @ m, miss.sum(), curve @ m**2, curve @ m, curve.sum()])
        return {"sums": np.array(found)}


@dataclass(eq=False)
class Maps:
    """Platt maps on their way to their minima.

    Attributes
    ----------
    theta
        Shape (maps, 2): scale and offset.
    system, left_out, draw
        Shape (maps,), as in `Calibration`.
    prior
        As in `newton.Heads`, of scale and offset less the identity, toward which its ridge pulls; None: `RIDGE` alone.
    decrement
        Shape (maps,), as in `newton.Heads`.
    """

    theta: Array
    system: NDArray[np.int64]
    left_out: NDArray[np.int64]
    draw: NDArray[np.int64]
    prior: Sequence[Posterior] | None = None

    def __post_init__(self) -> None:
        check_priors(self.prior, self.theta)
        self.decrement = np.full(len(self.theta), np.inf)
        self.hessian = np.tile(np.eye(2), (len(self.theta), 1, 1))

    @classmethod
    def of_one(cls, folds: int, draws: int) -> "Maps":
        """Return, for one system, the map without each fold, that of everybody, and one a bootstrap sample, at the identity."""
        left_out = np.append(np.arange(folds), np.full(1 + draws, EVERYBODY))
        draw = np.append(np.full(folds + 1, EVERYBODY), np.arange(draws))
        return cls(np.tile(IDENTITY, (len(draw), 1)), np.zeros_like(draw), left_out, draw)

    @classmethod
    def of_systems(cls, systems: int, folds: int) -> "Maps":
        """Return, for each system, the map of everybody and those without each fold, at the identity."""
        left_out = np.tile(np.append(np.arange(folds), EVERYBODY), systems)
        system = np.repeat(np.arange(systems), folds + 1)
        return cls(np.tile(IDENTITY, (len(system), 1)), system, left_out, np.full(len(system), EVERYBODY))

    def take(self, index: NDArray[np.intp]) -> "Maps":
        """Return some of the maps, as far as they have come."""
        prior = None if self.prior is None else [self.prior[i] for i in index]
        some = Maps(self.theta[index].copy(), self.system[index], self.left_out[index], self.draw[index], prior)
        some.decrement, some.hessian = self.decrement[index].copy(), self.hessian[index].copy()
        return some

    def ask_about(self, judged: Mapping[str, NDArray[Any]]) -> Ask:
        """Return the question for the next step of maps of any heads; `judged` as `margins.out_of_fold` reads it."""
        return Ask(Calibration.name, {**judged, "theta": self.theta, "system": self.system, "left_out": self.left_out, "draw": self.draw})

    def step(self, totals: Arrays) -> None:
        """Take the Newton step that the totals at `theta` allow, held above `MIN_SCALE` as `MarginPlatt` is."""
        for i, (_, g_a, g_b, h_aa, h_ab, h_bb) in enumerate(totals["sums"]):
            moved = self.theta[i] - IDENTITY
            pull, held = (RIDGE * moved, RIDGE * np.eye(2)) if self.prior is None else (self.prior[i].penalty(moved)[1], self.prior[i].whole)
            gradient = np.array([g_a, g_b]) + pull
            self.hessian[i] = np.array([[h_aa, h_ab], [h_ab, h_bb]]) + held
            step = np.linalg.solve(self.hessian[i], gradient)
            if self.theta[i, 0] - step[0] < MIN_SCALE:
                # Convex in one bounded coordinate: if the free minimum lies beyond the bound, the bounded one lies on it.
                back = self.theta[i, 0] - MIN_SCALE
                step = np.array([back, (gradient[1] - self.hessian[i, 0, 1] * back) / self.hessian[i, 1, 1]])
            length = float(np.sqrt(step @ self.hessian[i] @ step))
            # Far steps may overshoot; shortened like this they never do (Sun & Tran-Dinh 2019, Mathematical Programming 178:145-213).
            furthest = float(np.abs(step).max())
            self.theta[i] -= step * (np.log1p(furthest) / furthest if furthest > 1 else 1.0)
            self.decrement[i] = length

    def platt(self, i: int) -> MarginPlatt:
        """Return map `i` as a calibrator, with the covariance at the last totals."""
        platt = MarginPlatt()
        platt.scale_, platt.offset_ = map(float, self.theta[i])
        inverse = np.linalg.inv(self.hessian[i])
        platt.covariance_ = (inverse + inverse.T) / 2
        return platt
