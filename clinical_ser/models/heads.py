"""What every head promises: margins, and the same margins as a sum over feature families.

A head is fitted on standardised features and answers with log-odds. Its margin is exactly an intercept plus one number a family; that sum is
what the explanation shows, so it is part of the contract and not an afterthought.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, log_softmax, softmax
from sklearn.model_selection import StratifiedGroupKFold

from clinical_ser.errors import InvalidValueError, TrainingError
from clinical_ser.models.weights import subject_of_row

INNER_FOLDS = 5
"""Folds, by subject, in which a head chooses its own strength."""

TREE_THREADS = 2
"""Two halve the time of 41 forests nearly; each is asked by one thread at a time, so that the answer does not depend on their number."""

Labels = tuple[str, ...] | tuple[int, ...]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class TrainingRows:
    """Checked training material: features, class index, weight (mean 1) and subject of each row."""

    Z: NDArray[np.float64]
    target: NDArray[np.int64]
    weight: NDArray[np.float64]
    subject: NDArray[Any]
    n_classes: int

    def take(self, index: NDArray[np.int64]) -> "TrainingRows":
        """Return the rows at `index`; weights keep their values, so that penalties keep their meaning."""
        return TrainingRows(self.Z[index], self.target[index], self.weight[index], self.subject[index], self.n_classes)

    def columns(self, index: NDArray[np.intp]) -> "TrainingRows":
        """Return the same rows with some of their features."""
        return TrainingRows(np.ascontiguousarray(self.Z[:, index]), self.target, self.weight, self.subject, self.n_classes)

    @property
    def class_weight_totals(self) -> NDArray[np.float64]:
        """Shape (n_classes,); sum of the weights of each class."""
        return np.bincount(self.target, self.weight, minlength=self.n_classes).astype(np.float64)


class Head(ABC):
    """Base of the heads; see `LinearHead` and `BoostedHead`.

    Parameters
    ----------
    families
        The family of each column of Z (`pitch`, `timing`, ...), in column order.
    classes
        Class labels in the order of the margins, for two classes (negative, positive). None: those in y, sorted.
    balanced
        Weigh the classes equally while fitting. The intercept is then put back to the training prevalence (King & Zeng 2001, Political
        Analysis 9:137-163, section 4.1), so margins mean the same with and without; calibrate afterwards all the same.
    seed
        Of the inner folds and of the trees.

    Attributes
    ----------
    classes_ : tuple
    families_ : tuple of str
        Each family once, in the order of first appearance.
    intercept_ : ndarray of shape () or (classes,)
        The margin where every family stands at its zero, the training mean.
    """

    kind: ClassVar[str]
    classes_: Labels
    families_: tuple[str, ...]
    intercept_: NDArray[np.float64]

    def __init__(self, families: Sequence[str], classes: Sequence[str] | Sequence[int] | None = None, *, balanced: bool = False, seed: int = 0):
        self.column_families = tuple(families)
        self.classes: Labels | None = None if classes is None else _labels(classes)
        self.balanced = balanced
        self.seed = seed
        self.families_ = tuple(dict.fromkeys(self.column_families))

    def fit(self, Z: ArrayLike, y: ArrayLike, *, groups: ArrayLike | None = None, sample_weight: ArrayLike | None = None) -> Self:
        """Learn from standardised features.

        Parameters
        ----------
        Z
            Shape (rows, features), finite, as `Preprocessor.transform` gives it.
        y
            Shape (rows,), labels out of `classes`.
        groups
            Shape (rows,), the subject of each row; the folds in which the head chooses its strength keep subjects whole. None: every row is
            a subject of its own.
        sample_weight
            Shape (rows,), positive; only their ratios matter (they are scaled to mean 1).

        Returns
        -------
        self

        Raises
        ------
        TrainingError
            If a class has no row.
        InvalidValueError
            If shapes do not fit, a value is not finite, or a label is none of `classes`.
        """
        matrix = self._matrix(Z)
        labels = np.asarray(y)
        if labels.shape != (len(matrix),):
            raise InvalidValueError("y", f"array of shape {labels.shape}", f"one label for each of the {len(matrix)} rows")
        self.classes_ = self.classes if self.classes is not None else _sorted_labels(labels)
        rows = TrainingRows(
            Z=matrix,
            target=encode_labels(labels, self.classes_),
            weight=_mean_one(sample_weight, len(matrix)),
            subject=subject_of_row(None if groups is None else np.asarray(groups), len(matrix)),
            n_classes=len(self.classes_),
        )
        _require_every_class(rows, self.classes_)
        self._fit(_balance(rows) if self.balanced else rows)
        if self.balanced:
            self.intercept_ = self.intercept_ + _prior_offset(rows.class_weight_totals)
        return self

    def fit_rows(self, rows: TrainingRows, classes: Labels) -> None:
        """Learn from rows that were checked, and balanced where they should be, as part of another head."""
        self.classes_ = classes
        self._fit(rows)

    @property
    def has_trees(self) -> bool:
        """Whether answers come from trees: milliseconds each, without Python's lock."""
        return False

    @abstractmethod
    def _fit(self, rows: TrainingRows) -> None:
        """Set the learned attributes, `intercept_` among them."""

    def prepare(self, Z: ArrayLike) -> Any:
        """Return rows as heads of this kind and features read them; a model and its refits can share what is prepared once."""
        return self._matrix(Z)

    def family_margins(self, Z: ArrayLike) -> NDArray[np.float64]:
        """Split the margins by family.

        Parameters
        ----------
        Z
            Shape (rows, features).

        Returns
        -------
        ndarray of shape (rows, families) or (rows, families, classes)
            In the order of `families_`; `intercept_` plus the sum over families is `margins(Z)`. The zero of a family is its training mean: of
            the features in a linear head, of the family's own margin in a boosted one.
        """
        return self.family_margins_of(self.prepare(Z))

    def feature_margins(self, Z: ArrayLike) -> NDArray[np.float64]:
        """Split the margins by feature; those of a family's features sum to the family's margin.

        What a family adds is unique; how its correlated features share it is a convention (coefficient times value in a linear head, Shapley
        values in a boosted one), so this is detail inside a family and no ranking across families.

        Parameters
        ----------
        Z
            Shape (rows, features).

        Returns
        -------
        ndarray of shape (rows, features) or (rows, features, classes)
            In column order, with the same zero as `family_margins`.
        """
        return self.feature_margins_of(self.prepare(Z))

    @abstractmethod
    def family_margins_of(self, prepared: Any) -> NDArray[np.float64]:
        """As `family_margins`, of rows that `prepare` returned."""

    @abstractmethod
    def feature_margins_of(self, prepared: Any) -> NDArray[np.float64]:
        """As `feature_margins`, of rows that `prepare` returned."""

    def margins_of(self, prepared: Any) -> NDArray[np.float64]:
        """As `margins`, of rows that `prepare` returned."""
        return np.asarray(self.intercept_ + self.family_margins_of(prepared).sum(axis=1))

    @classmethod
    def together(cls, heads: Sequence[Self]) -> "Versions":
        """Return heads of this kind, on the same columns and classes, to be asked together."""
        return Versions(heads)

    @abstractmethod
    def settled(self) -> Self:
        """Return an unfitted head of the same kind whose strength is fixed at what this one chose; to refit on resampled subjects."""

    def margins(self, Z: ArrayLike) -> NDArray[np.float64]:
        """Return the log-odds of the second of two classes, shape (rows,), or the logits of several, shape (rows, classes)."""
        return self.margins_of(self.prepare(Z))

    def predict_proba(self, Z: ArrayLike) -> NDArray[np.float64]:
        """Return uncalibrated probabilities, shape (rows, classes); what a result states comes from a calibrator instead."""
        return probabilities(self.margins(Z))

    def _matrix(self, Z: ArrayLike) -> NDArray[np.float64]:
        matrix = np.asarray(Z, dtype=np.float64)
        if matrix.ndim != 2 or matrix.shape[1] != len(self.column_families):
            raise InvalidValueError("Z", f"array of shape {matrix.shape}", f"shape (rows, {len(self.column_families)})")
        if not np.isfinite(matrix).all():
            raise InvalidValueError("Z", "NaN or infinity", "finite numbers; impute with Preprocessor first")
        return matrix

    def _family_columns(self) -> list[NDArray[np.int64]]:
        families = np.array(self.column_families)
        return [np.flatnonzero(families == family) for family in self.families_]


class Versions:
    """Heads of one kind, asked about the same rows: a model's own and its refits'.

    Parameters
    ----------
    heads
        Fitted, on the same columns and classes.
    """

    def __init__(self, heads: Sequence[Head]):
        self.heads = tuple(heads)

    def margins_of(self, prepared: Any) -> NDArray[np.float64]:
        """As `Head.margins_of`, with axes that every number of classes has: shape (versions, rows, margins), one margin for two classes."""
        return np.array([margins if margins.ndim == 2 else margins[:, None] for margins in self._each(lambda head: head.margins_of(prepared))])

    def parts_of(self, prepared: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """As `Head.family_margins_of` and `Head.feature_margins_of`: (versions, rows, families, margins) and (versions, rows, features, margins)."""
        found = self._each(lambda head: (with_margins(head.family_margins_of(prepared)), with_margins(head.feature_margins_of(prepared))))
        families, features = zip(*found, strict=True)
        return np.array(families), np.array(features)

    def _each(self, ask: Callable[[Head], T]) -> list[T]:
        if not any(head.has_trees for head in self.heads):
            return list(map(ask, self.heads))
        # Forests of many classes take milliseconds each, without Python's lock.
        with ThreadPoolExecutor(TREE_THREADS) as threads:
            return list(threads.map(ask, self.heads))


def probabilities(margins: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn margins of shape (rows,) or (rows, classes) into probabilities of shape (rows, classes)."""
    if margins.ndim == 1:
        return np.column_stack([expit(-margins), expit(margins)])
    return np.asarray(softmax(margins, axis=1))


def with_margins(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give margins of two classes, shape (rows, parts), the last axis that those of several have."""
    return values[..., None] if values.ndim == 2 else values


def log_loss_total(margins: NDArray[np.float64], target: NDArray[np.int64], weight: NDArray[np.float64]) -> float:
    """Return the weighted sum of -log p(target), in nats."""
    logits = margins if margins.ndim == 2 else np.column_stack([np.zeros_like(margins), margins])
    return float(-weight @ log_softmax(logits, axis=1)[np.arange(len(target)), target])


def log_shares(rows: TrainingRows) -> NDArray[np.float64]:
    """Return the logarithm of each class's share of the weight, shape (classes,)."""
    totals = rows.class_weight_totals
    return np.asarray(np.log(totals / totals.sum()))


def encode_labels(y: ArrayLike, classes: Sequence[str] | Sequence[int]) -> NDArray[np.int64]:
    """Return each label's place in `classes`, shape (rows,).

    Raises
    ------
    InvalidValueError
        If a label is none of `classes`.

    Examples
    --------
    >>> encode_labels(["sad", "calm"], ["calm", "sad"]).tolist()
    [1, 0]
    """
    place = {label: index for index, label in enumerate(classes)}
    labels = np.asarray(y).tolist()
    unknown = sorted({str(label) for label in labels if label not in place})
    if unknown:
        raise InvalidValueError("y", unknown[:5], classes)
    return np.array([place[label] for label in labels], dtype=np.int64)


def inner_folds(rows: TrainingRows, seed: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Split rows into up to `INNER_FOLDS` (train, test) pairs by subject, each with every class in training; few subjects may leave none."""
    per_class = [len(np.unique(rows.subject[rows.target == k])) for k in range(rows.n_classes)]
    folds = min(INNER_FOLDS, *per_class)
    if folds < 2:
        return []
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    pairs = splitter.split(rows.Z, rows.target, rows.subject)
    return [(train, test) for train, test in pairs if len(np.unique(rows.target[train])) == rows.n_classes and len(test)]


def _sorted_labels(labels: NDArray[Any]) -> Labels:
    return _labels(np.unique(labels).tolist())


def _labels(classes: Sequence[str] | Sequence[int]) -> Labels:
    if len(set(classes)) != len(classes):
        raise InvalidValueError("classes", list(classes), "each label once")
    return cast(Labels, tuple(classes))


def _mean_one(sample_weight: ArrayLike | None, n_rows: int) -> NDArray[np.float64]:
    if sample_weight is None:
        return np.ones(n_rows)
    weight = np.asarray(sample_weight, dtype=np.float64)
    if weight.shape != (n_rows,) or not (np.isfinite(weight) & (weight > 0)).all():
        raise InvalidValueError("sample_weight", f"array of shape {weight.shape}", f"{n_rows} positive finite numbers")
    return weight / weight.mean()


def _require_every_class(rows: TrainingRows, classes: Labels) -> None:
    if len(classes) < 2:
        raise TrainingError(f"Training needs at least two classes; the labels hold only {list(classes)}.")
    empty = [classes[k] for k in np.flatnonzero(np.bincount(rows.target, minlength=len(classes)) == 0)]
    if empty:
        raise TrainingError(f"No training recording of class {empty}; every class needs some.")


def _balance(rows: TrainingRows) -> TrainingRows:
    totals = rows.class_weight_totals
    weight = rows.weight * (totals.sum() / (rows.n_classes * totals))[rows.target]
    return TrainingRows(rows.Z, rows.target, weight, rows.subject, rows.n_classes)


def _prior_offset(totals: NDArray[np.float64]) -> NDArray[np.float64]:
    log_share = np.log(totals / totals.sum())
    return np.asarray(log_share[1] - log_share[0] if len(totals) == 2 else log_share - log_share.mean())
