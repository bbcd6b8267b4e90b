"""What several statistics compute of a site's rows: standardised features, margins of heads that never heard them, weights, bootstrap draws.

The one idea: a site keeps nothing between two questions. Whatever a statistic depends on, beside the rows, came with the question.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from clinical_ser.errors import InvalidValueError
from clinical_ser.models.preprocessing import MAX_ABS_Z
from clinical_ser.models.weights import subject_weights
from federated.statistics import Ask, SiteRows

Array = NDArray[np.float64]
EVERYBODY = -1
"""In place of a fold that is left out, or of a bootstrap sample: nothing is."""


def standardised(X: Array, mean: Array, scale: Array, missing: Array | None = None) -> Array:
    """Return Z as `clinical_ser.models.preprocessing.Preprocessor` would, with what is missing at the mean, or where a model puts it.

    Parameters
    ----------
    X
        Shape (rows, features), NaN where missing.
    mean, scale
        Shape (features,); a scale of 0 marks a column that does not vary.
    missing
        Shape (features,), what stands for a missing value; None: the mean.
    """
    filled = np.where(np.isnan(X), mean if missing is None else missing, X)
    used = scale > 0
    return np.clip(np.divide(filled - mean, scale, out=np.zeros_like(filled), where=used), -MAX_ABS_Z, MAX_ABS_Z)


def unclipped(X: Array, mean: Array, scale: Array) -> Array:
    """Return X standardised, shape (rows, features): what is missing stays missing, and constant columns are 0."""
    used = scale > 0
    return np.where(np.isnan(X), np.nan, np.divide(X - mean, scale, out=np.zeros_like(X), where=used))


class Scales:
    """The preprocessors of an ask: `mean` and `scale`, shape (folds + 1, features); entry k leaves fold k out, the last nothing.

    Of a model that was there before, and puts what is missing elsewhere than at the mean, `median` of the same shape says where.
    """

    def __init__(self, rows: SiteRows, ask: Ask):
        self.mean, self.scale = (numbers(ask, name, ndim=2) for name in ("mean", "scale"))
        if self.mean.shape != self.scale.shape or self.mean.shape[1] != rows.X.shape[1]:
            raise InvalidValueError("mean and scale", f"shapes {self.mean.shape} and {self.scale.shape}", f"(folds + 1, {rows.X.shape[1]})")
        self._missing = numbers(ask, "median", ndim=2) if "median" in ask.arrays else self.mean
        if self._missing.shape != self.mean.shape:
            raise InvalidValueError("median", f"shape {self._missing.shape}", f"{self.mean.shape}")
        self._rows = rows
        self._known: dict[int, Array] = {}

    @property
    def folds(self) -> int:
        """Number of folds."""
        return len(self.mean) - 1

    def design(self, fold: int) -> Array:
        """Return Z with a last column of ones, all rows, by the preprocessor that leaves `fold` out (`EVERYBODY`: none)."""
        place = self.folds if fold == EVERYBODY else fold
        if place not in self._known:
            Z = standardised(self._rows.X, self.mean[place], self.scale[place], self._missing[place])
            self._known[place] = np.column_stack([Z, np.ones(len(Z))])
        return self._known[place]

    def out_of_fold(self, beta: Array) -> Array:
        """Return each row's margin by the head that never heard its subject, shape (rows,); `beta` has shape (folds, features + 1)."""
        margins = np.zeros(len(self._rows))
        for fold in range(self.folds):
            here = self._rows.fold == fold
            margins[here] = self.design(fold)[here] @ beta[fold]
        return margins


def numbers(ask: Ask, name: str, *, ndim: int) -> Array:
    """Return an array of an ask as finite float64 of so many dimensions.

    Raises
    ------
    InvalidValueError
        It is not there, has another number of dimensions, or holds what is not finite.
    """
    found = np.asarray(ask.arrays.get(name), dtype=np.float64) if name in ask.arrays else None
    if found is None or found.ndim != ndim or not np.isfinite(found).all():
        raise InvalidValueError(f"{ask.statistic}.{name}", "nothing, or another shape", f"a finite array of {ndim} dimensions")
    return found


def places(ask: Ask, name: str, limit: int) -> NDArray[np.int64]:
    """Return an array of whole numbers from `EVERYBODY` to below `limit`."""
    found = numbers(ask, name, ndim=1)
    if not ((found == np.round(found)) & (found >= EVERYBODY) & (found < limit)).all():
        raise InvalidValueError(f"{ask.statistic}.{name}", "a number out of range", f"whole numbers from {EVERYBODY} to {limit - 1}")
    return found.astype(np.int64)


def times_drawn(rows: SiteRows, draw: int) -> Array:
    """Return how often bootstrap sample `draw` of the site's subjects holds each row, shape (rows,); 1 for `EVERYBODY`.

    Sampling is by site: each site draws as many of its subjects as it has. Nobody else can predict the draw, and the same number gives the same.
    """
    if draw == EVERYBODY:
        return np.ones(len(rows))
    people, place = np.unique(rows.subjects, return_inverse=True)
    digest = hashlib.sha256(b"bootstrap sample\n" + draw.to_bytes(4, "big") + rows.secret).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "big"))
    return np.bincount(rng.integers(len(people), size=len(people)), minlength=len(people)).astype(np.float64)[place]


def weights(rows: SiteRows) -> Array:
    """Return weights in which every subject counts once, shape (rows,)."""
    return subject_weights(rows.subjects, len(rows))


def weights_in_class(rows: SiteRows) -> Array:
    """Return weights in which every subject counts once among the rows of each class, shape (rows,)."""
    found = np.zeros(len(rows))
    for k in (0, 1):
        here = rows.target == k
        found[here] = subject_weights(rows.subjects[here], int(here.sum()))
    return found


def logistic(margins: Array, target: NDArray[np.int64]) -> tuple[Array, Array]:
    """Return probability of the positive class and log-loss in nats, each of shape (rows,)."""
    return np.asarray(expit(margins)), np.asarray(np.logaddexp(0.0, np.where(target == 1, -margins, margins)))


def triangle(matrix: Array) -> Array:
    """Return the upper triangle of a symmetric matrix, row by row."""
    return np.asarray(matrix[np.triu_indices(len(matrix))])


def symmetric(upper: Array, size: int) -> Array:
    """Inverse of `triangle`."""
    full = np.zeros((size, size))
    full[np.triu_indices(size)] = upper
    return full + np.triu(full, 1).T
