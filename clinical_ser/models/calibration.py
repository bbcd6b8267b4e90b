"""From margins to probabilities one can act on: one affine map of the margin, held near the identity by a ridge.

Calibrate log-odds, never probabilities: scikit-learn fits its sigmoid on `predict_proba` where a model has no `decision_function` (xgboost's
has none), and the excess Brier score at 1,000 subjects was then 26e-4 instead of 3.7e-4. Affine, so that contributions to the margin stay
contributions to the calibrated log-odds, times `scale`.
"""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator
from scipy.special import expit, log_softmax, logsumexp, softmax
from scipy.stats import norm

from clinical_ser.errors import BundleSchemaError, InvalidValueError, TrainingError
from clinical_ser.models.state import Matrix, Positive, State, Vector
from clinical_ser.models.weights import subject_weights

RIDGE = 4.0
"""Strength of the pull to scale 1 and offset 0: as a prior, SD 0.5 for both. At 40 subjects it took the excess Brier score from 69e-4 to
51e-4, at 1,000 from 3.7e-4 to 3.3e-4."""

MIN_SCALE = 0.01
"""The smallest slope: order is kept, and margins that rank the wrong way round out of fold become next to no information, not the reverse."""

GRADIENT_TOLERANCE = 1e-10
MAX_NEWTON_STEPS = 100


class CalibratorState(State):
    """`calibrator.json`; `offset` has one entry for two classes (added to the log-odds of the second) and one a class for several."""

    kind: Literal["platt", "multiclass_platt"]
    scale: Positive
    offset: Annotated[Vector, Field(min_length=1)]
    covariance: Matrix
    """Of (scale, offset...)."""

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        size = 1 + len(self.offset)
        if (self.kind == "platt") != (len(self.offset) == 1):
            raise ValueError("platt has one offset, multiclass_platt one a class")
        if len(self.covariance) != size or any(len(row) != size for row in self.covariance):
            raise ValueError("the covariance needs one row and column for the scale and each offset")
        return self


class MarginPlatt:
    r"""Calibrated log-odds a·margin + b, for two classes.

    Minimises :math:`\sum_i w_i \log(1 + e^{-s_i (a m_i + b)}) + \tfrac{\lambda}{2} [(a-1)^2 + b^2]` (s = ±1) over a ≥ `MIN_SCALE`, b: Platt
    (1999) with a ridge toward the identity in place of his target smoothing. Convex, solved by Newton's method.

    Attributes
    ----------
    scale_, offset_ : float
        a and b.
    covariance_ : ndarray of shape (2, 2)
        Of (a, b): the inverse of the penalised Hessian, that is the Laplace approximation of the posterior under the prior N(1, 1/λ), N(0, 1/λ).

    Examples
    --------
    >>> margins = np.array([-4.0, -2.0, -1.0, 1.0, 2.0, 4.0])
    >>> platt = MarginPlatt().fit(margins, [0, 0, 1, 0, 1, 1])
    >>> bool(0 < platt.scale_ < 1)  # the margins were too sure
    True
    """

    kind: ClassVar[str] = "platt"
    scale_: float
    offset_: float
    covariance_: NDArray[np.float64]

    def __init__(self, *, ridge: float = RIDGE):
        self.ridge = ridge

    def fit(self, margins: ArrayLike, y: ArrayLike, *, groups: ArrayLike | None = None) -> Self:
        """Learn scale and offset from margins of recordings the head was not fitted on.

        Parameters
        ----------
        margins
            Shape (rows,), out-of-fold log-odds.
        y
            Shape (rows,), 1 for the positive class, 0 else.
        groups
            Shape (rows,), the subject of each row. Every subject then has total weight 1, however many recordings: the fit and its covariance
            are those of so many people. None: every row is a subject of its own.

        Raises
        ------
        TrainingError
            If only one class is there.
        InvalidValueError
            If shapes do not fit or a margin is not finite.
        """
        m = _finite(margins, ndim=1)
        logits = np.column_stack([np.zeros_like(m), m])
        problem = _AffineProblem.of(logits, y, groups, offsets=np.array([[0.0], [1.0]]), ridge=self.ridge)
        theta = problem.solve()
        self.scale_, self.offset_ = float(theta[0]), float(theta[1])
        self.covariance_ = problem.covariance(theta)
        return self

    def apply(self, margins: ArrayLike) -> NDArray[np.float64]:
        """Return calibrated log-odds, shape (rows,), at the prevalence of the training cohort."""
        return np.asarray(self.scale_ * _finite(margins, ndim=1) + self.offset_)

    def probabilities(self, margins: ArrayLike) -> NDArray[np.float64]:
        """Return (P(negative), P(positive)), shape (rows, 2)."""
        log_odds = self.apply(margins)
        return np.column_stack([expit(-log_odds), expit(log_odds)])

    def standard_error(self, margins: ArrayLike) -> NDArray[np.float64]:
        """Return the standard error of the calibrated log-odds, shape (rows,): of the calibration alone, the head taken as given."""
        m = _finite(margins, ndim=1)
        design = np.column_stack([m, np.ones_like(m)])
        return np.asarray(np.sqrt(np.einsum("ij,jk,ik->i", design, self.covariance_, design)))

    def interval(self, margins: ArrayLike, *, level: float = 0.95) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (lower, upper) calibrated log-odds, each of shape (rows,)."""
        half = _z(level) * self.standard_error(margins)
        centre = self.apply(margins)
        return centre - half, centre + half

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `calibrator.json`."""
        return _state("platt", self.scale_, [self.offset_], self.covariance_).to_dict()

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Inverse of `to_dict`; BundleSchemaError if the values do not fit together."""
        state = _read(data, "platt")
        platt = cls()
        platt.scale_, platt.offset_ = state.scale, state.offset[0]
        platt.covariance_ = np.array(state.covariance)
        return platt


class MulticlassPlatt:
    r"""Calibrated logits a·margin\_k + b\_k, for several classes: one scale, one offset a class.

    The counterpart of `MarginPlatt` under the softmax, with the same ridge toward a = 1, b = 0 (temperature scaling of Guo et al. 2017, ICML,
    plus offsets, since a temperature cannot mend a shifted prior). Full vector or matrix scaling has K² parameters and overfits at hundreds of
    recordings. Convex; the ridge makes the offsets sum to 0.

    Attributes
    ----------
    scale_ : float
    offset_ : ndarray of shape (classes,)
    covariance_ : ndarray of shape (1 + classes, 1 + classes)
        Of (a, b), as in `MarginPlatt`.
    """

    kind: ClassVar[str] = "multiclass_platt"
    scale_: float
    offset_: NDArray[np.float64]
    covariance_: NDArray[np.float64]

    def __init__(self, *, ridge: float = RIDGE):
        self.ridge = ridge

    def fit(self, margins: ArrayLike, y: ArrayLike, *, groups: ArrayLike | None = None) -> Self:
        """Learn scale and offsets; as `MarginPlatt.fit`, with margins of shape (rows, classes) and y a class number from 0."""
        logits = _finite(margins, ndim=2)
        problem = _AffineProblem.of(logits, y, groups, offsets=np.eye(logits.shape[1]), ridge=self.ridge)
        theta = problem.solve()
        self.scale_, self.offset_ = float(theta[0]), theta[1:]
        self.covariance_ = problem.covariance(theta)
        return self

    def apply(self, margins: ArrayLike) -> NDArray[np.float64]:
        """Return calibrated logits, shape (rows, classes), at the class shares of the training cohort."""
        logits = _finite(margins, ndim=2)
        if logits.shape[1] != len(self.offset_):
            raise InvalidValueError("margins", f"array of shape {logits.shape}", f"shape (rows, {len(self.offset_)})")
        return np.asarray(self.scale_ * logits + self.offset_)

    def probabilities(self, margins: ArrayLike) -> NDArray[np.float64]:
        """Return class probabilities, shape (rows, classes)."""
        return np.asarray(softmax(self.apply(margins), axis=1))

    def interval(self, margins: ArrayLike, *, level: float = 0.95) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (lower, upper) log-odds of each class against all others, each of shape (rows, classes), by the delta method."""
        logits = _finite(margins, ndim=2)
        # logit(p_k) = eta_k - logsumexp of the other classes' eta; its gradient is e_k minus the softmax among the others.
        others = self.apply(logits)[:, None, :] + np.diag(np.full(len(self.offset_), -np.inf))[None]
        centre = self.apply(logits) - logsumexp(others, axis=2)
        to_eta = np.eye(len(self.offset_)) - softmax(others, axis=2)
        to_theta = np.concatenate([np.einsum("nkj,nj->nk", to_eta, logits)[:, :, None], to_eta], axis=2)
        half = _z(level) * np.sqrt(np.einsum("nki,ij,nkj->nk", to_theta, self.covariance_, to_theta))
        return centre - half, centre + half

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `calibrator.json`."""
        return _state("multiclass_platt", self.scale_, self.offset_.tolist(), self.covariance_).to_dict()

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Inverse of `to_dict`; BundleSchemaError if the values do not fit together."""
        state = _read(data, "multiclass_platt")
        platt = cls()
        platt.scale_, platt.offset_ = state.scale, np.array(state.offset)
        platt.covariance_ = np.array(state.covariance)
        return platt


class _AffineProblem:
    """Ridge-penalised softmax log-loss of logits a·m + B·b, convex in theta = (a, b)."""

    def __init__(self, design: NDArray[np.float64], target: NDArray[np.int64], weight: NDArray[np.float64], ridge: float):
        self.design, self.target, self.weight = design, target, weight
        size = design.shape[2]
        self.ridge = ridge
        self.identity_map = np.eye(size)[0]

    @classmethod
    def of(
        cls, logits: NDArray[np.float64], y: ArrayLike, groups: ArrayLike | None, *, offsets: NDArray[np.float64], ridge: float
    ) -> "_AffineProblem":
        if not ridge > 0:
            raise InvalidValueError("ridge", ridge, "a positive number; without it separable margins have no finite answer")
        rows, classes = logits.shape
        target = _class_numbers(y, rows, classes)
        weight = subject_weights(None if groups is None else np.asarray(groups), rows)
        tiled = np.broadcast_to(offsets, (rows, *offsets.shape))
        return cls(np.concatenate([logits[:, :, None], tiled], axis=2), target, weight, ridge)

    def value(self, theta: NDArray[np.float64]) -> float:
        log_p = log_softmax(self.design @ theta, axis=1)
        loss = -self.weight @ log_p[np.arange(len(self.target)), self.target]
        return float(loss + 0.5 * self.ridge * np.sum((theta - self.identity_map) ** 2))

    def derivatives(self, theta: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        p = softmax(self.design @ theta, axis=1)
        residual = p.copy()
        residual[np.arange(len(self.target)), self.target] -= 1.0
        gradient = np.einsum("n,nk,nki->i", self.weight, residual, self.design) + self.ridge * (theta - self.identity_map)
        mean_design = np.einsum("nk,nki->ni", p, self.design)
        second = np.einsum("n,nk,nki,nkj->ij", self.weight, p, self.design, self.design, optimize=True)
        hessian = second - (mean_design.T * self.weight) @ mean_design + self.ridge * np.eye(len(theta))
        return gradient, hessian

    def solve(self) -> NDArray[np.float64]:
        everything = np.ones(len(self.identity_map), dtype=bool)
        theta = self._newton(self.identity_map.copy(), everything)
        if theta[0] >= MIN_SCALE:
            return theta
        # Convex in one bounded coordinate: if the free minimum lies beyond the bound, the bounded one lies on it.
        theta[0] = MIN_SCALE
        return self._newton(theta, everything & (np.arange(len(theta)) > 0))

    def _newton(self, theta: NDArray[np.float64], free: NDArray[np.bool_]) -> NDArray[np.float64]:
        for _ in range(MAX_NEWTON_STEPS):
            gradient, hessian = self.derivatives(theta)
            if np.abs(gradient[free]).max() <= GRADIENT_TOLERANCE * self.weight.sum():
                return theta
            step = np.zeros_like(theta)
            step[free] = np.linalg.solve(hessian[np.ix_(free, free)], gradient[free])
            theta = self._shortened(theta, step, float(gradient @ step))
        raise TrainingError(f"The calibration did not settle in {MAX_NEWTON_STEPS} steps; are the margins of a sensible size?")

    def _shortened(self, theta: NDArray[np.float64], step: NDArray[np.float64], promised: float) -> NDArray[np.float64]:
        """Take the Newton step, halved until the objective falls by a tenth of what was promised (or rounding hides the difference)."""
        start = self.value(theta)
        length = 1.0
        while length > 1e-9 and self.value(theta - length * step) > start - 0.1 * length * promised + 1e-12 * abs(start):
            length /= 2
        return theta - length * step

    def covariance(self, theta: NDArray[np.float64]) -> NDArray[np.float64]:
        inverse = np.linalg.inv(self.derivatives(theta)[1])
        return np.asarray((inverse + inverse.T) / 2)


def _finite(margins: ArrayLike, *, ndim: int) -> NDArray[np.float64]:
    values = np.asarray(margins, dtype=np.float64)
    if values.ndim != ndim:
        raise InvalidValueError("margins", f"array of shape {values.shape}", "shape (rows,)" if ndim == 1 else "shape (rows, classes)")
    if not np.isfinite(values).all():
        raise InvalidValueError("margins", "NaN or infinity", "finite log-odds")
    return values


def _class_numbers(y: ArrayLike, rows: int, classes: int) -> NDArray[np.int64]:
    target = np.asarray(y)
    if target.shape != (rows,) or not np.isin(target, np.arange(classes)).all():
        raise InvalidValueError("y", f"array of shape {target.shape}", f"{rows} class numbers from 0 to {classes - 1}")
    if len(np.unique(target)) < 2:
        raise TrainingError("Calibration needs recordings of at least two classes.")
    return target.astype(np.int64)


def _z(level: float) -> float:
    if not 0 < level < 1:
        raise InvalidValueError("level", level, "a number between 0 and 1")
    return float(norm.ppf(0.5 + level / 2))


def _state(kind: Literal["platt", "multiclass_platt"], scale: float, offset: Sequence[float], covariance: NDArray[np.float64]) -> CalibratorState:
    rows = tuple(tuple(row) for row in covariance.tolist())
    return CalibratorState(kind=kind, scale=scale, offset=tuple(offset), covariance=rows)


def _read(data: object, kind: Literal["platt", "multiclass_platt"]) -> CalibratorState:
    state = CalibratorState.from_dict(data)
    if state.kind != kind:
        raise BundleSchemaError(f"The calibrator is of kind {state.kind!r} where {kind!r} belongs.")
    return state
