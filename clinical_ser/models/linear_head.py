"""Ridge logistic regression, binary and multinomial, with its strength chosen by subjects held out.

The one idea: a clean convex objective with one minimum. Pooled here or summed across hospitals by Newton's method, the answer is the same.
"""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy.linalg import eigh, helmert
from scipy.optimize import minimize
from scipy.special import log_softmax

from clinical_ser.errors import TrainingError
from clinical_ser.models.heads import Head, TrainingRows, Versions, inner_folds, log_loss_total, log_shares
from clinical_ser.models.state import Finite, Label, Matrix, State, Vector

STRENGTHS = (10_000.0, 3_000.0, 1_000.0, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0)
"""Candidate ridge strengths, strongest first (scikit-learn's 1/C). 10,000 is next to no model at 1,000 rows; under 1, none of the corpora
tried gained anything."""

PATIENCE = 2
"""Weaker strengths tried after the best before the search stops; the held-out log-loss has one valley along the ridge path in practice."""

DEFAULT_STRENGTH = 100.0
"""Where there are too few subjects to choose: the middle of what RAVDESS, EmoDB and simulated cohorts chose."""

SEARCH_TOLERANCE = 1e-3
FINAL_TOLERANCE = 1e-9
"""Largest gradient entry, in whitened coordinates, at which the solver stops: loose while comparing strengths, tight for what is kept."""

MAX_ITERATIONS = 2_000


class LinearHeadState(State):
    """`head.json` of a linear head; `coefficients` has one row a feature."""

    kind: Literal["linear"]
    column_families: tuple[str, ...]
    classes: Annotated[tuple[Label, ...], Field(min_length=2)]
    strength: Annotated[Finite, Field(gt=0)]
    intercept: Vector
    coefficients: Matrix

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        width = 1 if len(self.classes) == 2 else len(self.classes)
        if len(self.intercept) != width or any(len(row) != width for row in self.coefficients):
            raise ValueError(f"{len(self.classes)} classes need {width} coefficients a feature and as many intercepts")
        if len(self.coefficients) != len(self.column_families):
            raise ValueError("one row of coefficients a feature is needed")
        return self


class LinearHead(Head):
    r"""Ridge logistic regression on standardised features.

    Minimises, over coefficients B and intercepts c,

    .. math:: \sum_i w_i \, \bigl(-\log p_{i, y_i}\bigr) + \tfrac{\lambda}{2} \lVert B \rVert^2

    with weights of mean 1, the intercepts free. Two classes: B has one column, p is the logistic function of z·B + c. Several: B has one
    column a class, p is the softmax; the sums of B's rows and of c over classes are 0, the one solution of least norm. This is scikit-learn's
    `LogisticRegression(C=1/λ)`; λ is the prior precision of a standardised coefficient.

    λ is the candidate with the least log-loss in `INNER_FOLDS` folds by subject (`STRENGTHS`, warm starts from strong to weak), unless given.

    Parameters
    ----------
    families, classes, balanced, seed
        See `Head`.
    strength
        λ, positive; None: chosen in `fit`.

    Attributes
    ----------
    strength_ : float
    coef_ : ndarray of shape (features,) or (features, classes)
    intercept_ : ndarray of shape () or (classes,)

    Examples
    --------
    >>> Z = np.array([[-1.0, 0.5], [-0.5, -0.5], [0.5, 0.5], [1.0, -0.5]])
    >>> head = LinearHead(["pitch", "timing"], ["no", "yes"], strength=1.0).fit(Z, ["no", "no", "yes", "yes"])
    >>> bool(np.allclose(head.intercept_ + head.family_margins(Z).sum(axis=1), head.margins(Z)))
    True
    """

    kind: ClassVar[str] = "linear"
    strength_: float
    coef_: NDArray[np.float64]

    def __init__(
        self,
        families: Sequence[str],
        classes: Sequence[str] | Sequence[int] | None = None,
        *,
        strength: float | None = None,
        balanced: bool = False,
        seed: int = 0,
    ):
        super().__init__(families, classes, balanced=balanced, seed=seed)
        self.strength = strength

    def _fit(self, rows: TrainingRows) -> None:
        self.strength_ = self.strength if self.strength is not None else _choose_strength(rows, self.seed)
        self.coef_, self.intercept_ = RidgePath(rows).solve(self.strength_, FINAL_TOLERANCE)

    def margins_of(self, prepared: NDArray[np.float64]) -> NDArray[np.float64]:
        """Feature times coefficient, summed; see `Head.margins`."""
        return np.asarray(prepared @ self.coef_ + self.intercept_)

    def family_margins_of(self, prepared: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum coefficient times feature over each family's columns; see `Head.family_margins`."""
        return np.stack([prepared[:, columns] @ self.coef_[columns] for columns in self._family_columns()], axis=1)

    def feature_margins_of(self, prepared: NDArray[np.float64]) -> NDArray[np.float64]:
        """Coefficient times feature; see `Head.feature_margins`."""
        return prepared * self.coef_ if self.coef_.ndim == 1 else prepared[:, :, None] * self.coef_

    @classmethod
    def together(cls, heads: Sequence[Self]) -> "LinearVersions":
        """Return these heads with their coefficients side by side; see `Head.together`."""
        return LinearVersions(heads)

    def settled(self) -> Self:
        """Return an unfitted head with this one's strength."""
        return type(self)(self.column_families, self.classes_, strength=self.strength_, balanced=self.balanced, seed=self.seed)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `head.json`."""
        coefficients = self.coef_.reshape(len(self.column_families), -1)
        state = LinearHeadState(
            kind="linear",
            column_families=self.column_families,
            classes=self.classes_,
            strength=self.strength_,
            intercept=tuple(np.atleast_1d(self.intercept_).tolist()),
            coefficients=tuple(tuple(row) for row in coefficients.tolist()),
        )
        return state.to_dict()

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Inverse of `to_dict`; BundleSchemaError if the values do not fit together."""
        state = LinearHeadState.from_dict(data)
        head = cls(state.column_families, state.classes, strength=state.strength)  # type: ignore[arg-type]
        head.classes_ = state.classes  # type: ignore[assignment]
        head.strength_ = state.strength
        binary = len(state.classes) == 2
        head.coef_ = np.array([row[0] for row in state.coefficients]) if binary else np.array(state.coefficients)
        head.intercept_ = np.array(state.intercept[0]) if binary else np.array(state.intercept)
        return head


class LinearVersions(Versions):
    """Linear heads, asked by one matrix product instead of one each; see `Versions`."""

    def __init__(self, heads: Sequence[LinearHead]):
        super().__init__(heads)
        features = len(heads[0].column_families)
        stacked = np.stack([head.coef_.reshape(features, -1) for head in heads], axis=1)
        self._shape = stacked.shape[1:]
        self._flat = stacked.reshape(features, -1)
        self._intercepts = np.array([np.atleast_1d(head.intercept_) for head in heads])
        self._of_family = [(columns, self._flat[columns]) for columns in heads[0]._family_columns()]

    def margins_of(self, prepared: NDArray[np.float64]) -> NDArray[np.float64]:
        """See `Versions.margins_of`."""
        return np.asarray(self._apart(prepared @ self._flat) + self._intercepts[:, None])

    def parts_of(self, prepared: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """See `Versions.parts_of`."""
        families = np.stack([prepared[:, columns] @ coefficients for columns, coefficients in self._of_family], axis=1)
        return self._apart(families), self._apart(prepared[:, :, None] * self._flat)

    def _apart(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Turn (rows, ..., versions times margins) into (versions, rows, ..., margins)."""
        return np.moveaxis(values.reshape(*values.shape[:-1], *self._shape), -2, 0)


class RidgePath:
    """Minima of one training set's objective for one strength after another, each started from the last.

    The solver is L-BFGS in coordinates where the curvature bound of Böhning (1992, Ann Inst Stat Math 44:197-200) is the identity, which
    takes some 30 steps where the features as they stand take hundreds. Several classes are solved in K-1 orthonormal contrasts, in which
    the minimum is unique; the penalty is the same in both.
    """

    def __init__(self, rows: TrainingRows):
        self.rows = rows
        binary = rows.n_classes == 2
        self.contrasts = np.array([[0.0], [1.0]]) if binary else helmert(rows.n_classes).T
        self.centre = np.average(rows.Z, axis=0, weights=rows.weight)
        centred = rows.Z - self.centre
        bound = 0.25 if binary else 0.5
        self.curvature, self.rotation = _principal_axes(centred * np.sqrt(bound * rows.weight)[:, None])
        self.intercept_scale = 1.0 / np.sqrt(bound * rows.weight.sum())
        self.rotated = centred @ self.rotation
        width = self.contrasts.shape[1]
        self.coef = np.zeros((len(self.curvature), width))
        self.intercept = log_shares(rows) @ self.contrasts if not binary else np.diff(log_shares(rows))

    def solve(self, strength: float, tolerance: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (coef, intercept) for features as given, of shapes (p,) and () for two classes, (p, K) and (K,) for several.

        Raises
        ------
        TrainingError
            If the solver has not come to rest after `MAX_ITERATIONS` steps.
        """
        scale = 1.0 / np.sqrt(self.curvature + strength)
        start = np.vstack([self.coef / scale[:, None], self.intercept / self.intercept_scale])
        options = {"maxiter": MAX_ITERATIONS, "maxfun": 2 * MAX_ITERATIONS, "maxcor": 20, "gtol": tolerance, "ftol": 0.0}
        result = minimize(self._objective, start.ravel(), args=(scale, strength), jac=True, method="L-BFGS-B", options=options)
        if np.abs(result.jac).max() > SEARCH_TOLERANCE:
            raise TrainingError(f"Ridge logistic regression did not settle in {MAX_ITERATIONS} steps at strength {strength:g}.")
        solution = result.x.reshape(start.shape)
        self.coef = solution[:-1] * scale[:, None]
        self.intercept = solution[-1] * self.intercept_scale
        coef = self.rotation @ self.coef @ self.contrasts.T
        intercept = self.intercept @ self.contrasts.T - self.centre @ coef
        # Contiguous, as a head read from disk has it: BLAS sums a strided vector in another order.
        return (np.ascontiguousarray(coef[:, 1]), intercept[1]) if self.rows.n_classes == 2 else (np.ascontiguousarray(coef), intercept)

    def _objective(self, flat: NDArray[np.float64], scale: NDArray[np.float64], strength: float) -> tuple[float, NDArray[np.float64]]:
        rows = self.rows
        theta = flat.reshape(-1, self.contrasts.shape[1])
        coef = theta[:-1] * scale[:, None]
        logits = (self.rotated @ coef + theta[-1] * self.intercept_scale) @ self.contrasts.T
        log_p = log_softmax(logits, axis=1)
        at_target = np.arange(len(rows.target)), rows.target
        value = -rows.weight @ log_p[at_target] + 0.5 * strength * np.sum(coef**2)
        residual = np.exp(log_p)
        residual[at_target] -= 1.0
        residual = (residual * rows.weight[:, None]) @ self.contrasts
        slope = scale[:, None] * (self.rotated.T @ residual + strength * coef)
        return float(value), np.vstack([slope, residual.sum(axis=0) * self.intercept_scale]).ravel()


def _principal_axes(A: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the eigenvalues of A'A and its eigenvectors as columns; with fewer rows than columns those that A spans, through AA'.

    A ridge solution lies in that span, so nothing is lost, and 6,373 features of 1,200 rows take seconds and not minutes.
    """
    n_rows, n_columns = A.shape
    if n_rows >= n_columns:
        eigenvalues, vectors = eigh(A.T @ A)
        return np.maximum(eigenvalues, 0.0), vectors
    eigenvalues, vectors = eigh(A @ A.T)
    spanned = eigenvalues > n_columns * np.finfo(float).eps * eigenvalues[-1]
    return eigenvalues[spanned], A.T @ vectors[:, spanned] / np.sqrt(eigenvalues[spanned])


def _choose_strength(rows: TrainingRows, seed: int) -> float:
    folds = inner_folds(rows, seed)
    if not folds:
        return DEFAULT_STRENGTH
    paths = [(RidgePath(rows.take(train)), rows.take(test)) for train, test in folds]
    losses: list[float] = []
    for strength in STRENGTHS:
        losses.append(sum(_held_out_loss(path, held_out, strength) for path, held_out in paths))
        if len(losses) - 1 - int(np.argmin(losses)) >= PATIENCE:
            break
    return STRENGTHS[int(np.argmin(losses))]


def _held_out_loss(path: RidgePath, held_out: TrainingRows, strength: float) -> float:
    coef, intercept = path.solve(strength, SEARCH_TOLERANCE)
    return log_loss_total(held_out.Z @ coef + intercept, held_out.target, held_out.weight)
