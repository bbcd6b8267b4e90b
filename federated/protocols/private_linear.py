"""Ridge logistic regression with differential privacy for every subject of every hospital: noisy sufficient statistics.

The one idea: the Hessian of the log-loss lies below a quarter of the second moments of the design, whatever the coefficients (Böhning and Lindsay
1988). So the moments are released once, and every further step pays for a gradient alone.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field
from scipy.special import expit

from clinical_ser.errors import InvalidValueError
from clinical_ser.strict import Strict
from federated.at_site import Array, numbers, standardised, symmetric, triangle, weights
from federated.privacy import Charge, Noise, Part, PrivateStatistic, noise_for, noisy
from federated.statistics import Arrays, Ask, SiteRows, Sums, register

LARGEST_CLIP = 1e3
LARGEST_BETA = 1e6
WIDEST = 1e7
"""What a site may contribute to an entry: ten thousand subjects at a clip of 30, with their noise."""


@register
class PrivateMoments(PrivateStatistic):
    """Means and spreads of features within a public box, with noise; arrays `low`, `high` (features,), option `noise_multiplier`.

    One subject moves each entry of `first` and `second` by at most 1, and `people` by 1: sensitivity sqrt(2 features + 1).
    """

    name = "private_moments"
    bound = WIDEST

    def charge(self, ask: Ask) -> Charge:
        """Return what one release costs."""
        return Charge(
            parts=(
                Part(
                    noise_multiplier=_option(ask, "noise_multiplier"),
                ),
            )
        )

    def at_site(self, rows: SiteRows, ask: Ask) -> Arrays:
        """Return `first` and `second` moments of features between -1 and 1 (features,), and `people` (1,); each subject counts once."""
        low, high = numbers(ask, "low", ndim=1), numbers(ask, "high", ndim=1)
        if low.shape != (rows.X.shape[1],) or high.shape != low.shape or not (low < high).all():
            raise InvalidValueError(f"{self.name}.low, high", "another shape or order", "one lower and one higher number a feature")
        middle, half = (low + high) / 2, (high - low) / 2
        inside = np.clip((np.where(np.isnan(rows.X), middle, rows.X) - middle) / half, -1.0, 1.0)
        weight = weights(rows)
        values = {"first": weight @ inside, "second": weight @ inside**2, "people": np.array([weight.sum()])}
        return noisy(values, math.sqrt(2 * len(low) + 1), _option(ask, "noise_multiplier"), Noise(rows, ask).key())


class _Designed(PrivateStatistic):
    """Arrays `mean`, `scale` (features,); options `clip`, the largest norm of a standardised row, and `noise_multiplier`."""

    bound = WIDEST

    def charge(self, ask: Ask) -> Charge:
        """Return what one release costs."""
        return Charge(
            parts=(
                Part(
                    noise_multiplier=_option(ask, "noise_multiplier"),
                ),
            )
        )

    @staticmethod
    def design(rows: SiteRows, ask: Ask) -> tuple[Array, float]:
        """Return the clipped design with a last column of ones, shape (rows, features + 1), and the bound on the norm of its rows."""
        mean, scale, clip = numbers(ask, "mean", ndim=1), numbers(ask, "scale", ndim=1), _option(ask, "clip")
        if mean.shape != (rows.X.shape[1],) or scale.shape != mean.shape or clip > LARGEST_CLIP:
            raise InvalidValueError(
                f"{ask.statistic}.mean, scale, clip", "another shape or size", f"one number a feature, a clip up to {LARGEST_CLIP:g}"
            )
        Z = standardised(rows.X, mean, scale)
        Z *= np.minimum(1.0, clip / np.maximum(np.linalg.norm(Z, axis=1), 1e-12))[:, None]
        return np.column_stack([Z, np.ones(len(Z))]), math.sqrt(clip**2 + 1)


@register
class PrivateCurvature(_Designed):
    """Second moments of the design.

    A subject's part is a mean of outer products of rows of norm at most C = sqrt(clip^2 + 1), so its Frobenius norm is at most C^2. Entries off the
    diagonal are released once, times sqrt(2): the norm of what is released is the Frobenius norm, and so is the sensitivity.
    """

    name = "private_curvature"

    def at_site(self, rows: SiteRows, ask: Ask) -> Arrays:
        """Return `curvature`, the upper triangle, ((features + 1) (features + 2) / 2,)."""
        design, norm = self.design(rows, ask)
        moments = (design.T * weights(rows)) @ design
        return noisy({"curvature": triangle(moments) * _doubled(len(moments))}, norm**2, _option(ask, "noise_multiplier"), Noise(rows, ask).key())


@register
class PrivateGradient(_Designed):
    """Gradient of the log-loss at `beta` (features + 1,), intercept last.

    A subject's part is a mean of rows times (p - y). No row of norm at most C has |p - y| above the logistic function of C times the norm of
    `beta`, one half at zero: sensitivity C times that.
    """

    name = "private_gradient"

    def at_site(self, rows: SiteRows, ask: Ask) -> Arrays:
        """Return `gradient`, (features + 1,)."""
        design, norm = self.design(rows, ask)
        beta = numbers(ask, "beta", ndim=1)
        if beta.shape != (design.shape[1],) or np.abs(beta).max() > LARGEST_BETA:
            # Beyond it margins overflow for some people only, and a refusal would tell of them.
            raise InvalidValueError(f"{self.name}.beta", f"shape {beta.shape}", f"({design.shape[1]},), numbers up to {LARGEST_BETA:g}")
        gradient = design.T @ (weights(rows) * (expit(design @ beta) - rows.target))
        furthest = float(expit(norm * np.linalg.norm(beta)))
        return noisy({"gradient": gradient}, norm * furthest, _option(ask, "noise_multiplier"), Noise(rows, ask).key())


class PrivateLinearSettings(Strict):
    """How a private head is trained; public.

    Attributes
    ----------
    noise_multiplier
        Of the whole training: it costs what one Gaussian release with this multiplier costs (`noise_for_epsilon`).
    clip
        Largest norm of a standardised row. Smaller: less noise, more bias.
    steps
        Gradients that are released. One tells the classes apart as well as four; four calibrate better (benchmarks/federated_privacy.py).
    curvature_share
        Part of the budget, in inverse squared noise, that the second moments get.
    strength
        Ridge, in the units of the sum over subjects.
    """

    noise_multiplier: Annotated[float, Field(gt=0, le=1e5)]
    clip: Annotated[float, Field(gt=0, le=LARGEST_CLIP)]
    steps: Annotated[int, Field(ge=1, le=50)] = 4
    curvature_share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    strength: Annotated[float, Field(gt=0)] = 1.0

    @property
    def of_curvature(self) -> float:
        """Noise multiplier of the second moments."""
        return self.noise_multiplier / math.sqrt(self.curvature_share)

    @property
    def of_gradient(self) -> float:
        """Noise multiplier of each gradient."""
        return self.noise_multiplier * math.sqrt(self.steps / (1 - self.curvature_share))

    def charge(self) -> Charge:
        """Return what the training costs every site."""
        return Charge(parts=(Part(noise_multiplier=self.of_curvature), Part(noise_multiplier=self.of_gradient, count=self.steps)))


@dataclass(frozen=True, eq=False)
class PrivateHead:
    """A head, and what is known about its people.

    Attributes
    ----------
    beta
        Shape (features + 1,), intercept last, on the clipped standardised features.
    people
        Number of subjects, with noise.
    charge
        What it cost every site.
    clip
        A row is clipped to this norm before the head is applied, too.
    """

    beta: Array
    people: float
    charge: Charge
    clip: float

    def margins(self, Z: Array) -> Array:
        """Return log-odds of standardised rows (rows, features), shape (rows,)."""
        shrunk = Z * np.minimum(1.0, self.clip / np.maximum(np.linalg.norm(Z, axis=1), 1e-12))[:, None]
        return np.asarray(shrunk @ self.beta[:-1] + self.beta[-1])


def noise_for_epsilon(epsilon: float, delta: float) -> float:
    """Return the noise multiplier with which a whole training costs at most `epsilon` at `delta`, at every site."""
    return noise_for(epsilon, delta, lambda noise: Charge(parts=(Part(noise_multiplier=noise),)))


def private_scales(sums: Sums, low: Array, high: Array, noise_multiplier: float) -> tuple[Array, Array]:
    """Return mean and SD of every feature (features,) from noisy moments within a public box; one exchange."""
    [totals] = sums.total("private moments", [Ask(PrivateMoments.name, {"low": low, "high": high}, {"noise_multiplier": noise_multiplier})])
    people = max(float(totals["people"][0]), 1.0)
    first = np.clip(totals["first"] / people, -1.0, 1.0)
    # A feature that seems not to vary beyond the noise is given what its box allows: a scale near zero would blow its noise up.
    unsure = noise_multiplier * math.sqrt((2 * len(low) + 1) * len(sums.sites)) / people
    variance = totals["second"] / people - first**2
    spread = np.sqrt(np.where(variance > max(unsure, 1e-4), variance, 1.0))
    half = (high - low) / 2
    return (low + high) / 2 + first * half, spread * half


def train_private(sums: Sums, mean: Array, scale: Array, settings: PrivateLinearSettings) -> PrivateHead:
    """Train a head from noisy second moments and noisy gradients, in one exchange for each gradient.

    Every site adds noise that suffices alone, so the promise to a hospital's people holds against the coordinator and all other hospitals
    together, secure sum or not; the price is that the noise of all sites adds up.

    Parameters
    ----------
    sums
        Where totals come from.
    mean, scale
        Shape (features,), of public origin (or from `private_scales`): they must not come from the same people without noise.
    settings
        Public.

    Raises
    ------
    SiteRefusalError
        A site's ledger allows no more.
    """
    size = len(mean) + 1
    arrays = {"mean": mean, "scale": scale}
    curvature = Ask(PrivateCurvature.name, arrays, {"clip": settings.clip, "noise_multiplier": settings.of_curvature})
    beta = np.zeros(size)
    penalty = np.full(size, settings.strength)
    penalty[-1] = 0.0
    system, people = np.eye(size), 0.0
    for number in range(settings.steps):
        gradient = Ask(PrivateGradient.name, arrays | {"beta": beta.copy()}, {"clip": settings.clip, "noise_multiplier": settings.of_gradient})
        answers = sums.total("private gradient", [gradient] if number else [gradient, curvature])
        if not number:
            moments = symmetric(answers[1]["curvature"] / _doubled(size), size)
            people = float(moments[-1, -1])
            system = _trusted(moments, settings, len(sums.sites)) / 4 + np.diag(penalty)
        beta = beta - np.linalg.solve(system, answers[0]["gradient"] + penalty * beta)
    return PrivateHead(beta, people, settings.charge(), settings.clip)


def _trusted(moments: Array, settings: PrivateLinearSettings, sites: int) -> Array:
    """Return the moments with the norm of their noise added to every direction.

    The noise is a symmetric Gaussian matrix of known variance (s^2 on the diagonal, half of it elsewhere), whose spectral norm is near
    s sqrt(2 size) (Wigner). With it added no direction seems stiffer or softer than it may be (Wang 2018, AdaSSP).
    """
    deviation = settings.of_curvature * (settings.clip**2 + 1) * math.sqrt(sites)
    norm = deviation * math.sqrt(2 * len(moments))
    values, vectors = np.linalg.eigh(moments)
    return np.asarray((vectors * (np.maximum(values, 0.0) + norm)) @ vectors.T)


def _doubled(size: int) -> Array:
    """Return the factors of an upper triangle with which its norm is that of the whole matrix."""
    return triangle(np.where(np.eye(size, dtype=bool), 1.0, math.sqrt(2)))


def _option(ask: Ask, name: str) -> float:
    value = ask.options.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InvalidValueError(f"{ask.statistic}.{name}", value, "a number above 0")
    return float(value)
