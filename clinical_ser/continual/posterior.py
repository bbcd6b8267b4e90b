"""What data said about coefficients, as one quadratic: enough to go on learning when the data are gone.

The one idea: a log-likelihood near its maximum is a quadratic, and quadratics add. The old data's is kept as precision and information (its natural
parameters), the ridge apart, so that forgetting discounts what was learned and never the prior itself.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clinical_ser.errors import InvalidValueError, TrainingError

Array = NDArray[np.float64]

MOST_STEPS = 100
TOLERANCE = 1e-9
"""Newton decrement at which a minimum is reached: in units of posterior SD."""

Derivatives = Callable[[Array], tuple[float, Array, Array]]
"""Coefficients, shape (size,), to the new data's loss in nats, its gradient (size,) and its Hessian (size, size)."""


@dataclass(frozen=True, eq=False)
class Posterior:
    """Laplace's approximation of the posterior of coefficients, less their ridge.

    Minus the log posterior is, but for a constant, b'(P + R)b / 2 - eta'b, with the data's precision P and information eta, and the ridge's R on the
    diagonal. It is a power prior (Ibrahim & Chen 2000, Statist Sci 15:46-60) for whatever comes next, and with the whole Hessian what elastic weight
    consolidation approximates by a diagonal.

    Attributes
    ----------
    precision
        Shape (size, size), P: symmetric, the summed Hessians of the data's log-loss.
    information
        Shape (size,), eta = (P + R) m for the mode m.
    ridge
        Shape (size,), the diagonal of R: the strength for each coefficient, 0 for an intercept.
    scatter
        Shape (size, size), the sum over people of the outer product of what each adds to the gradient: how much the information would differ with
        other people. None: as P, which it is where every recording is a person's only one and the model is right.
    """

    precision: Array
    information: Array
    ridge: Array
    scatter: Array | None = None

    @classmethod
    def nothing(cls, ridge: ArrayLike) -> Self:
        """Return what is known before any data: the ridge alone."""
        diagonal = np.asarray(ridge, dtype=np.float64)
        nothing = np.zeros((len(diagonal), len(diagonal)))
        return cls(nothing, np.zeros(len(diagonal)), diagonal, nothing)

    @classmethod
    def at(cls, mode: ArrayLike, hessian: ArrayLike, ridge: ArrayLike) -> Self:
        """Return the posterior of a model that was trained in one go.

        Parameters
        ----------
        mode
            Shape (size,), its coefficients.
        hessian
            Shape (size, size), of the data's log-loss there, without the ridge.
        ridge
            Shape (size,).
        """
        return cls.nothing(ridge).after(mode, hessian)

    @property
    def size(self) -> int:
        """Number of coefficients."""
        return len(self.ridge)

    @property
    def whole(self) -> Array:
        """Shape (size, size), P + R."""
        return self.precision + np.diag(self.ridge)

    @property
    def mode(self) -> Array:
        """Shape (size,), the coefficients that are most probable; TrainingError where nothing decides them."""
        try:
            return np.asarray(np.linalg.solve(self.whole, self.information))
        except np.linalg.LinAlgError:
            raise TrainingError("Nothing is known yet of a coefficient that no ridge holds.") from None

    def discounted(self, forgetting: float) -> Self:
        """Return the same with old data counting less: a recording of then is worth `forgetting` recordings of now.

        The mode moves only as far as the ridge gains on the data. Applied at every update, data that are k updates old count forgetting^k: as many
        updates as 1 / (1 - forgetting) are remembered, whatever comes (Kulhavý & Zarrop 1993, Int J Control 58:905-924: stabilised forgetting).
        """
        if not 0 < forgetting <= 1:
            raise InvalidValueError("forgetting", forgetting, "a factor above 0 and up to 1, where 1 forgets nothing")
        scatter = None if self.scatter is None else forgetting * self.scatter
        return replace(self, precision=forgetting * self.precision, information=forgetting * self.information, scatter=scatter)

    def penalty(self, coefficients: Array) -> tuple[float, Array]:
        """Return what is added to the new data's loss, in nats, and its gradient, shape (size,)."""
        pulled = self.whole @ coefficients
        return float(coefficients @ pulled / 2 - self.information @ coefficients), pulled - self.information

    def after(self, mode: ArrayLike, hessian: ArrayLike) -> Self:
        """Return the posterior once more data are in: those with this Hessian, which moved the mode to here."""
        precision = self.precision + np.asarray(hessian, dtype=np.float64)
        precision = (precision + precision.T) / 2
        information = (precision + np.diag(self.ridge)) @ np.asarray(mode, dtype=np.float64)
        # Whose data they are, a Hessian does not tell: see `heard`.
        return replace(self, precision=precision, information=information, scatter=None)

    def heard(self, before: "Posterior", scatter: Array | None) -> Self:
        """Return the posterior with the scatter of people who were added to one before; unknown for any of them is unknown for all."""
        return replace(self, scatter=None if before.scatter is None or scatter is None else before.scatter + scatter)

    def without(self, at: ArrayLike, gradient: ArrayLike, hessian: ArrayLike, scatter: ArrayLike | None = None) -> Self:
        """Return the posterior less some of its data, given by their gradient and Hessian at a point, the mode at which they were added.

        The sums are then those of a history without them. The mode is exact where the loss is quadratic; else one Newton step towards the model that
        never saw them (Guo et al. 2020, ICML: certified removal).

        Raises
        ------
        TrainingError
            What is taken away was never in it: the precision that is left is negative somewhere.
        """
        away = np.asarray(hessian, dtype=np.float64)
        precision = self.precision - (away + away.T) / 2
        values = np.linalg.eigvalsh(precision)
        if values[0] < -1e-6 * max(float(np.abs(values).max()), 1.0):
            raise TrainingError("What is to be taken out of the model was never in it, or not as it is now.")
        # Their own quadratic is b'Hb/2 - (H at - g)'b: that much information goes with it.
        left = self.scatter - np.asarray(scatter) if self.scatter is not None and scatter is not None else None
        return replace(self, precision=precision, information=self.information - (away @ np.asarray(at) - np.asarray(gradient)), scatter=left)

    def drawn(self, rng: np.random.Generator) -> Self:
        """Return the posterior as another sample of the same number of people would have made it: information plus noise of covariance `scatter`.

        Coefficients from a drawn posterior spread as those of bootstrap samples of the old people do, of whom nothing is left. Whoever knows the
        draws and sees the coefficients reads the scatter off them: what is published must be drawn from a secret seed.
        """
        values, vectors = np.linalg.eigh(self.precision if self.scatter is None else self.scatter)
        noise = vectors @ (np.sqrt(np.maximum(values, 0.0)) * rng.standard_normal(self.size))
        return replace(self, information=self.information + noise)

    @property
    def covariance(self) -> Array:
        """Shape (size, size), of the coefficients."""
        inverse = np.linalg.inv(self.whole)
        return np.asarray((inverse + inverse.T) / 2)


def minimise(derivatives: Derivatives, prior: Posterior, start: ArrayLike | None = None, *, tolerance: float = TOLERANCE) -> tuple[Array, Posterior]:
    """Find the coefficients that new data and prior agree on, by Newton's method.

    Parameters
    ----------
    derivatives
        Of the new data's log-loss, which is convex.
    prior
        What is known already, discounted as it should be.
    start
        Shape (size,); None: the prior's mode.
    tolerance
        Newton decrement at which to stop, in posterior SD.

    Returns
    -------
    tuple
        The coefficients, shape (size,), and the posterior there.

    Raises
    ------
    TrainingError
        It did not settle, or the problem is not convex.
    """
    beta = prior.mode if start is None else np.array(start, dtype=np.float64)
    loss, gradient, hessian = derivatives(beta)
    for _ in range(MOST_STEPS):
        penalty, pull = prior.penalty(beta)
        try:
            step = np.linalg.solve(hessian + prior.whole, gradient + pull)
        except np.linalg.LinAlgError:
            raise TrainingError("New data and prior together leave a coefficient undecided.") from None
        promised = float((gradient + pull) @ step)
        if promised < -1e-6 * (1 + abs(loss)):
            raise TrainingError("The loss is not convex where Newton's method stands.")
        if promised <= tolerance**2:
            return beta, prior.after(beta, hessian)
        length = 1.0
        while True:
            there = beta - length * step
            found = derivatives(there)
            risen = found[0] + prior.penalty(there)[0] - (loss + penalty)
            if risen <= -0.1 * length * promised + 1e-11 * (1 + abs(loss)) or length < 1e-9:
                break
            length /= 2
        beta, (loss, gradient, hessian) = there, found
    raise TrainingError(f"Newton's method did not settle in {MOST_STEPS} steps; do the new recordings separate the classes?")
