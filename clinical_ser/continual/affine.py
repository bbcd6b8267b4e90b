"""Maps of log-odds with a few numbers, scale and offsets, fitted under a prior: the calibrator of an update, and recalibration alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from clinical_ser.continual.posterior import Array, Posterior, minimise
from clinical_ser.models.calibration import MIN_SCALE, RIDGE, MarginPlatt, MulticlassPlatt
from clinical_ser.models.trained import Calibrator

WEAK = 1e-4
"""A ridge that only keeps separable data from running away; it does not move a likelihood ratio by a thousandth."""


def calibrate(margins: Array, target: NDArray[np.int64], weight: Array, prior: Posterior) -> tuple[Calibrator, Posterior]:
    """Fit the calibrator of `models.calibration` to margins under a prior that knows more than the ridge.

    Parameters
    ----------
    margins
        Shape (rows,) or (rows, classes), of recordings that the head never heard.
    target, weight
        Shape (rows,); weights of a subject sum to 1.
    prior
        Of (scale - 1, offsets), see `memory.calibrator_posterior`.
    """
    design = affine_design(margins)
    loss = AffineLoss(design, target, weight, np.eye(design.shape[2])[0])

    at, posterior = minimise(loss, prior)
    if at[0] + 1.0 < MIN_SCALE:
        # Convex in one bounded coordinate: if the free minimum lies beyond the bound, the bounded one lies on it.
        at = _on_the_bound(loss, prior, at)
        posterior = prior.after(at, loss(at)[2])
    return calibrator_at(posterior, at), posterior


def affine_design(margins: Array) -> Array:
    """Return the design of scale and offsets, shape (rows, classes, 1 + offsets): logits are this times (scale, offsets)."""
    logits = margins if margins.ndim == 2 else np.column_stack([np.zeros_like(margins), margins])
    offsets = np.array([[0.0], [1.0]]) if margins.ndim == 1 else np.eye(logits.shape[1])
    return np.concatenate([logits[:, :, None], np.broadcast_to(offsets, (len(logits), *offsets.shape))], axis=2)


@dataclass(frozen=True, eq=False)
class AffineLoss:
    """Log-loss, in nats, of logits that are linear in a few numbers, as a function of how far these are from where they stand for no change.

    Attributes
    ----------
    design
        Shape (rows, classes, numbers).
    target, weight
        Shape (rows,).
    unchanged
        Shape (numbers,), what stands for no change.
    """

    design: Array
    target: NDArray[np.int64]
    weight: Array
    unchanged: Array

    @property
    def size(self) -> int:
        """How many numbers may move."""
        return len(self.unchanged)

    def columns(self, chosen: Sequence[int]) -> "AffineLoss":
        """Return the loss with all numbers but these at no change."""
        others = [i for i in range(len(self.unchanged)) if i not in chosen]
        # What stays as it is becomes one column that nobody moves: its share of the logits.
        fixed = self.design[:, :, others] @ self.unchanged[others]
        design = np.concatenate([self.design[:, :, chosen], fixed[:, :, None]], axis=2)
        return _WithFixed(design, self.target, self.weight, np.append(self.unchanged[chosen], 1.0))

    def __call__(self, away: Array) -> tuple[float, Array, Array]:
        """Return loss, gradient (numbers,) and Hessian (numbers, numbers)."""
        design, weight = self.design, self.weight
        log_p = log_softmax(design @ (away + self.unchanged), axis=1)
        p = np.exp(log_p)
        at_target = np.arange(len(self.target)), self.target
        residual = p.copy()
        residual[at_target] -= 1.0
        mean = np.einsum("nk,nki->ni", p, design)
        hessian = np.einsum("n,nk,nki,nkj->ij", weight, p, design, design, optimize=True) - (mean.T * weight) @ mean
        return -float(weight @ log_p[at_target]), np.einsum("n,nk,nki->i", weight, residual, design), hessian


class _WithFixed(AffineLoss):
    """The last number stands still."""

    @property
    def size(self) -> int:
        return len(self.unchanged) - 1

    def __call__(self, away: Array) -> tuple[float, Array, Array]:
        value, gradient, hessian = super().__call__(np.append(away, 0.0))
        return value, gradient[:-1], hessian[:-1, :-1]


def _on_the_bound(loss: "AffineLoss", prior: Posterior, at: Array) -> Array:
    fixed = MIN_SCALE - 1.0
    whole = prior.whole

    def rest(offsets: Array) -> tuple[float, Array, Array]:
        value, gradient, hessian = loss(np.append(fixed, offsets))
        # What the prior says of the scale acts on the offsets, now that the scale stands still.
        pull = whole[1:, 0] * fixed
        return value + float(pull @ offsets), gradient[1:] + pull, hessian[1:, 1:]

    inner = Posterior(prior.precision[1:, 1:], prior.information[1:], prior.ridge[1:])
    offsets, _ = minimise(rest, inner, at[1:])
    return np.append(fixed, offsets)


def calibrator_posterior(calibrator: Calibrator) -> Posterior:
    """Return what a calibrator learned: its covariance is the inverse of data's precision and ridge together."""
    mode = np.append(calibrator.scale_ - 1.0, calibrator.offset_)
    whole = np.linalg.inv(calibrator.covariance_)
    precision = (whole + whole.T) / 2 - RIDGE * np.eye(len(mode))
    return Posterior(precision, (precision + RIDGE * np.eye(len(mode))) @ mode, np.full(len(mode), RIDGE), None)


def calibrator_at(posterior: Posterior, coordinates: Array) -> Calibrator:
    """Return the calibrator at (scale - 1, offsets); inverse of `calibrator_posterior`."""
    found: Calibrator
    if len(coordinates) == 2:
        found = MarginPlatt()
        found.offset_ = float(coordinates[1])
    else:
        found = MulticlassPlatt()
        found.offset_ = coordinates[1:].copy()
    found.scale_ = max(float(coordinates[0] + 1.0), MIN_SCALE)
    found.covariance_ = posterior.covariance
    return found
