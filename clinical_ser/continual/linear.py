"""A linear head's loss, its gradient and Hessian over rows, in the coordinates in which its posterior is kept.

The one idea: for two classes the coordinates are the coefficients, intercept last; for more they are orthonormal contrasts of the classes, because
the softmax does not see what all classes have in common, and a posterior must not have a direction that nothing decides.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import helmert
from scipy.special import log_softmax, softmax

from clinical_ser.continual.posterior import Array
from clinical_ser.models.linear_head import LinearHead


@dataclass(frozen=True, eq=False)
class Rows:
    """What new recordings say to a head: standardised features, class numbers, weights.

    Attributes
    ----------
    Z
        Shape (rows, features), on the head's own scales.
    target
        Shape (rows,), class numbers.
    weight
        Shape (rows,).
    person
        Shape (rows,), a number for each row's subject; None where nobody asks.
    """

    Z: Array
    target: NDArray[np.int64]
    weight: Array
    person: NDArray[np.int64] | None = None

    def take(self, index: NDArray[np.intp]) -> "Rows":
        """Return the rows at `index`."""
        return Rows(self.Z[index], self.target[index], self.weight[index], None if self.person is None else self.person[index])

    def and_(self, others: "Rows") -> "Rows":
        """Return these rows and then others."""
        target = np.concatenate([self.target, others.target])
        person = None
        if self.person is not None and others.person is not None:
            person = np.concatenate([self.person, others.person + 1 + self.person.max(initial=-1)])
        return Rows(np.concatenate([self.Z, others.Z]), target, np.concatenate([self.weight, others.weight]), person)


@dataclass(frozen=True, eq=False)
class Loss:
    """The log-loss of rows, in nats, as a function of coordinates.

    Attributes
    ----------
    rows
        To be explained.
    classes
        How many there are.
    """

    rows: Rows
    classes: int

    @property
    def contrasts(self) -> Array:
        """Shape (classes, columns): coordinates to logits, the first of two classes at 0."""
        return contrasts(self.classes)

    def __call__(self, coordinates: Array) -> tuple[float, Array, Array]:
        """Return loss, gradient (size,) and Hessian (size, size) at coordinates, shape (size,)."""
        rows, C = self.rows, self.contrasts
        design = np.column_stack([rows.Z, np.ones(len(rows.Z))])
        log_p = log_softmax(design @ coordinates.reshape(design.shape[1], -1) @ C.T, axis=1)
        truth = np.eye(self.classes)[rows.target]
        p = np.exp(log_p)
        value = -float(rows.weight @ (truth * log_p).sum(axis=1))
        gradient = design.T @ ((p - truth) * rows.weight[:, None] @ C)
        width = C.shape[1]
        hessian = np.zeros((design.shape[1], width, design.shape[1], width))
        mean = p @ C
        for a in range(width):
            for b in range(a, width):
                curvature = rows.weight * (p @ (C[:, a] * C[:, b]) - mean[:, a] * mean[:, b])
                hessian[:, a, :, b] = hessian[:, b, :, a] = (design.T * curvature) @ design
        return value, gradient.ravel(), hessian.reshape(gradient.size, gradient.size)

    def scatter(self, coordinates: Array) -> Array | None:
        """Return the sum over people of the outer product of their gradients, shape (size, size); None where nobody knows who is who."""
        rows = self.rows
        if rows.person is None:
            return None
        design = np.column_stack([rows.Z, np.ones(len(rows.Z))])
        p = softmax(design @ coordinates.reshape(design.shape[1], -1) @ self.contrasts.T, axis=1)
        residual = (p - np.eye(self.classes)[rows.target]) * rows.weight[:, None] @ self.contrasts
        each = np.zeros((int(rows.person.max(initial=-1)) + 1, coordinates.size))
        np.add.at(each, rows.person, np.einsum("nd,nc->ndc", design, residual).reshape(len(design), -1))
        return np.asarray(each.T @ each)


def contrasts(classes: int) -> Array:
    """Return how coordinates become logits, shape (classes, columns)."""
    return np.array([[0.0], [1.0]]) if classes == 2 else np.asarray(helmert(classes).T)


def coordinates_of(head: LinearHead, prior: Array) -> Array:
    """Return a head's coefficients as coordinates, shape (size,), intercepts last.

    Parameters
    ----------
    head
        Fitted.
    prior
        What stands in its intercept besides what it learned, shape () or (classes,): the offset of balanced classes, else 0.
    """
    intercept = np.asarray(head.intercept_) - prior
    if head.coef_.ndim == 1:
        return np.append(head.coef_, intercept)
    return np.asarray(np.vstack([head.coef_, intercept]) @ contrasts(len(head.classes_))).ravel()


def head_at(like: LinearHead, coordinates: Array, prior: Array) -> LinearHead:
    """Return a head with these coordinates, and everything else as in `like`; inverse of `coordinates_of`."""
    head = like.settled()
    assert isinstance(head, LinearHead)
    head.classes_, head.strength_ = like.classes_, like.strength_
    if like.coef_.ndim == 1:
        head.coef_, head.intercept_ = np.ascontiguousarray(coordinates[:-1]), np.asarray(coordinates[-1] + prior)
        return head
    logits = coordinates.reshape(len(like.column_families) + 1, -1) @ contrasts(len(like.classes_)).T
    head.coef_, head.intercept_ = np.ascontiguousarray(logits[:-1]), logits[-1] + prior
    return head


def ridge_of(head: LinearHead) -> Array:
    """Return the ridge of a head's coordinates, shape (size,): its strength, and 0 for intercepts."""
    width = contrasts(len(head.classes_)).shape[1]
    return np.append(np.full(len(head.column_families) * width, head.strength_), np.zeros(width))
