"""What is kept of a model's data so that it can go on learning without them: sums over people, and nobody's row.

The one idea: everything that an update changes is learned from something that adds up: coefficients and calibration from quadratics, prediction sets
and the threshold from counts in public bins. So the old data's part of each is kept, and the new data's is added to it.

A memory stays with whoever keeps the registry, and is no part of a bundle: where one of two has learned from, or forgotten, one person more, the
difference of their sums is that person.
"""

import base64
import binascii
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from clinical_ser.cohorts.splits import group_k_fold
from clinical_ser.continual.affine import calibrator_posterior
from clinical_ser.continual.linear import Loss, Rows, coordinates_of, ridge_of
from clinical_ser.continual.posterior import Array, Posterior
from clinical_ser.errors import TrainingError
from clinical_ser.models.binned import BINS, Binned
from clinical_ser.models.bundle import FeatureName, Sha256
from clinical_ser.models.fused_head import FusedHead
from clinical_ser.models.heads import Head
from clinical_ser.models.linear_head import LinearHead
from clinical_ser.models.rows import Rows as TableRows
from clinical_ser.models.state import Finite, Matrix, State, Vector
from clinical_ser.models.strict_json import StrictJsonError, canonical_json, parse_canonical_object
from clinical_ser.models.trained import TrainedModel, at_answering_shares
from clinical_ser.models.weights import subject_weights

SCHEMA = "clinical-ser/update-memory/1"
MOST_BYTES = 256 << 20

FARTHEST = 1e-2
"""Newton decrement, in posterior SD, within which coefficients are those of the rows at hand."""

NonNegative = Annotated[Finite, Field(ge=0)]


class _PosteriorState(State):
    precision: str
    """Upper triangle, row by row, little-endian doubles in base64."""
    information: Vector
    ridge: tuple[NonNegative, ...]
    scatter: str | None = None
    """As `precision`; None where it is not known."""


class _MemoryState(State):
    schema_id: Literal["clinical-ser/update-memory/1"] = Field(alias="schema")
    bundle: Sha256 | None
    features: tuple[FeatureName, ...] = Field(min_length=1)
    classes: tuple[str, ...] = Field(min_length=2)
    heads: tuple[_PosteriorState, ...] = Field(min_length=1)
    calibrator: _PosteriorState
    class_totals: tuple[NonNegative, ...]
    people: tuple[NonNegative, ...]
    mass: Matrix
    spread: Matrix
    interpretable: "_MemoryState | None" = None


@dataclass(frozen=True, eq=False)
class Memory:
    """What an update needs in place of the data.

    Attributes
    ----------
    bundle
        Digest of the bundle whose memory it is; None before there is one.
    features, classes
        Of the model.
    heads
        One posterior for a linear head, one a part for a fused one, on the model's own scales (`linear.coordinates_of`).
    calibrator
        Posterior of the calibrator's distance from the identity (scale - 1, offsets).
    class_totals
        Shape (classes,), recordings heard, discounted.
    people
        Shape (classes,), subjects heard, each counting once, discounted.
    scores
        Out-of-fold probabilities in bins, discounted.
    interpretable
        The memory of the model without embeddings, for a model that has some.
    """

    bundle: str | None
    features: tuple[str, ...]
    classes: tuple[str, ...]
    heads: tuple[Posterior, ...]
    calibrator: Posterior
    class_totals: Array
    people: Array
    scores: Binned
    interpretable: "Memory | None" = None

    def discounted(self, forgetting: float) -> Self:
        """Return the same with each person of then worth `forgetting` people of now; see `Posterior.discounted`."""
        return replace(
            self,
            heads=tuple(head.discounted(forgetting) for head in self.heads),
            calibrator=self.calibrator.discounted(forgetting),
            class_totals=forgetting * self.class_totals,
            people=forgetting * self.people,
            scores=self.scores.times(forgetting),
            interpretable=None if self.interpretable is None else self.interpretable.discounted(forgetting),
        )

    @property
    def class_shares(self) -> tuple[float, ...]:
        """Of the subjects, each counting once."""
        return tuple((self.people / self.people.sum()).tolist())

    def of(self, digest: str) -> Self:
        """Return the memory with the digest of the bundle that it belongs to."""
        return replace(self, bundle=digest)

    def check(self, model: TrainedModel) -> None:
        """Raise TrainingError unless this is the memory of a model like this one."""
        parts = linear_parts(model.head)
        fits = (
            self.features == model.features
            and self.classes == tuple(model.task.classes)
            and len(self.heads) == len(parts)
            and all(head.size == len(ridge_of(part)) for head, part in zip(self.heads, parts, strict=True))
            and (self.interpretable is None) == (model.interpretable is None)
        )
        if not fits:
            raise TrainingError("The memory is that of another model: its features, classes or heads are others.")
        if self.interpretable is not None and model.interpretable is not None:
            self.interpretable.check(model.interpretable)

    def to_bytes(self) -> bytes:
        """Return the memory's one spelling."""
        return canonical_json(_state(self).model_dump(mode="json", by_alias=True))

    @classmethod
    def from_bytes(cls, raw: bytes) -> "Memory":
        """Read a memory; TrainingError where it is none, is damaged, or is of another version."""
        if len(raw) > MOST_BYTES:
            raise TrainingError("The memory is too long to be one.")
        try:
            return _memory(_MemoryState.model_validate(parse_canonical_object(raw)))
        except StrictJsonError as error:
            raise TrainingError(f"The memory cannot be read: {error}.") from None
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'the whole'}: {fault['msg']}" for fault in error.errors()[:3])
            raise TrainingError(f"The memory does not follow its schema {SCHEMA!r} ({faults}).") from None


@dataclass(frozen=True, eq=False)
class Answers:
    """What was said out of fold of the rows that a model learned from.

    Attributes
    ----------
    margins
        Shape (rows,) or (rows, classes), before calibration.
    log_odds
        The same after it, as they are counted.
    """

    margins: Array
    log_odds: Array


def memory_of(model: TrainedModel, rows: TableRows, answers: Answers | None = None, *, folds: int = 5, seed: int = 0) -> Memory:
    """Return the memory of a model that was trained in one place, while its rows are still there.

    Parameters
    ----------
    model
        As trained; its head is linear, or fused of linear ones.
    rows
        The rows that it learned from, columns in the model's order.
    answers
        What was said of the rows out of fold when the model was trained; None: it is made again, with the model's own strength.
    folds, seed
        Of the people, for that.

    Raises
    ------
    TrainingError
        The head is of another kind, which has no such memory.
    """
    whole = _memory_of(model, rows, answers, folds, seed)
    if model.interpretable is None:
        return whole
    twin = _memory_of(model.interpretable, rows.of_features(model.interpretable.features), None, folds, seed)
    return replace(whole, interpretable=twin)


def _memory_of(model: TrainedModel, rows: TableRows, answers: Answers | None, folds: int, seed: int) -> Memory:
    parts, columns = linear_parts(model.head), part_columns(model.head)
    classes, balanced = len(model.task.classes), not model.binary
    totals = np.bincount(rows.target, minlength=classes).astype(np.float64)
    Z = model.preprocessor.transform(rows.X)
    person = np.unique(rows.subjects, return_inverse=True)[1]
    heard = Rows(Z, rows.target, weights_of(rows.target, totals, balanced=balanced), person)
    heads = []
    for part, own in zip(parts, columns, strict=True):
        mode = coordinates_of(part, prior_of(part, model.head, totals, balanced=balanced))
        loss = Loss(replace(heard, Z=Z[:, own]), classes)
        _, gradient, hessian = loss(mode)
        posterior = Posterior.at(mode, hessian, ridge_of(part))
        slope = gradient + posterior.ridge * mode
        if slope @ np.linalg.solve(posterior.whole, slope) > FARTHEST**2:
            raise TrainingError("These are not the rows that the model learned from: its coefficients are not their minimum.")
        heads.append(replace(posterior, scatter=loss.scatter(mode)))
    weight = subject_weights(rows.subjects, len(rows.target))
    log_odds = (answers or answers_again(model, rows, Z, folds=folds, seed=seed)).log_odds
    return Memory(
        bundle=None,
        features=model.features,
        classes=tuple(model.task.classes),
        heads=tuple(heads),
        calibrator=calibrator_posterior(model.calibrator),
        class_totals=totals,
        people=np.bincount(rows.target, weight, minlength=classes).astype(np.float64),
        scores=Binned.of(log_odds, rows.target, rows.subjects, classes),
    )


def answers_again(model: TrainedModel, rows: TableRows, Z: Array, *, folds: int = 5, seed: int = 0) -> Answers:
    """Return what heads with a model's strength that never heard the subjects say."""
    labels = np.array(model.task.classes)[rows.target]
    least = min(len(np.unique(rows.subjects[rows.target == k])) for k in range(len(model.task.classes)))
    found = np.zeros(model.head.margins(Z).shape)
    for fold in group_k_fold(rows.subjects, rows.target, k=min(folds, least), seed=seed):
        head = model.head.settled().fit(Z[fold.train], labels[fold.train], groups=rows.subjects[fold.train])
        found[fold.test] = head.margins(Z[fold.test])
    return Answers(found, at_answering_shares(model.calibrator.apply(found), model.class_shares))


def linear_parts(head: Head) -> tuple[LinearHead, ...]:
    """Return the linear heads that a head is made of, one a block of columns; TrainingError where it is made of anything else."""
    if isinstance(head, LinearHead):
        return (head,)
    parts = head.parts if isinstance(head, FusedHead) else ()
    linear = tuple(part for part in parts if isinstance(part, LinearHead))
    if not linear or len(linear) < len(parts):
        raise TrainingError(f"A head of kind {head.kind!r} is not updated without its data: train it again, and let the gate compare the two.")
    return linear


def part_columns(head: Head) -> list[NDArray[np.intp]]:
    """Return the columns of each part of `linear_parts`."""
    if isinstance(head, FusedHead):
        blocks = np.array(head.column_blocks)
        return [np.flatnonzero(blocks == block) for block in head.blocks_]
    return [np.arange(len(head.column_families))]


def weights_of(target: NDArray[np.int64], totals: Array, *, balanced: bool) -> Array:
    """Return the weight of each recording in the loss, shape (rows,): 1, or what makes classes with these totals count alike."""
    if not balanced:
        return np.ones(len(target))
    known = np.maximum(totals, 1e-9)
    return np.asarray((totals.sum() / (len(totals) * known))[target])


def prior_of(part: LinearHead, head: Head, totals: Array, *, balanced: bool) -> Array:
    """Return what stands in the intercept of a part besides what it learned: balanced classes' offset, which a fused head carries for its parts."""
    if not balanced or part is not head:
        return np.zeros(np.shape(part.intercept_))
    return prior_offset(totals)


def prior_offset(totals: Array) -> Array:
    """Return the log-odds of the classes' shares: shape () for two, (classes,) with mean 0 for more."""
    shares = np.log(totals / totals.sum())
    return np.asarray(shares[1] - shares[0] if len(totals) == 2 else shares - shares.mean())


def _state(memory: Memory) -> _MemoryState:
    return _MemoryState(
        schema=SCHEMA,
        bundle=memory.bundle,
        features=memory.features,
        classes=memory.classes,
        heads=tuple(map(_posterior_state, memory.heads)),
        calibrator=_posterior_state(memory.calibrator),
        class_totals=tuple(memory.class_totals.tolist()),
        people=tuple(memory.people.tolist()),
        mass=tuple(map(tuple, memory.scores.mass.tolist())),
        spread=tuple(map(tuple, memory.scores.spread.tolist())),
        interpretable=None if memory.interpretable is None else _state(memory.interpretable),
    )


def _memory(state: _MemoryState) -> Memory:
    classes = len(state.classes)
    mass, spread = np.array(state.mass), np.array(state.spread)
    counts = mass.shape == (classes, BINS) and spread.shape == (classes, 7) and (mass >= 0).all()
    if not counts or len(state.class_totals) != classes or len(state.people) != classes or not sum(state.people) > 0:
        raise TrainingError("The memory's counts do not fit its classes.")
    heads, calibrator = tuple(map(_posterior, state.heads)), _posterior(state.calibrator)
    if calibrator.size != (2 if classes == 2 else 1 + classes):
        raise TrainingError("The memory's calibrator does not fit its classes.")
    return Memory(
        bundle=state.bundle,
        features=state.features,
        classes=state.classes,
        heads=heads,
        calibrator=calibrator,
        class_totals=np.array(state.class_totals),
        people=np.array(state.people),
        scores=Binned(mass, spread),
        interpretable=None if state.interpretable is None else _memory(state.interpretable),
    )


def _posterior_state(posterior: Posterior) -> _PosteriorState:
    return _PosteriorState(
        precision=_packed(posterior.precision),
        scatter=None if posterior.scatter is None else _packed(posterior.scatter),
        information=tuple(posterior.information.tolist()),
        ridge=tuple(posterior.ridge.tolist()),
    )


def _packed(matrix: Array) -> str:
    return base64.b64encode(matrix[np.triu_indices(len(matrix))].astype("<f8").tobytes()).decode("ascii")


def _posterior(state: _PosteriorState) -> Posterior:
    size = len(state.ridge)
    if len(state.information) != size:
        raise TrainingError("A posterior in the memory is damaged: its numbers do not fit its size.")
    scatter = None if state.scatter is None else _unpacked(state.scatter, size)
    return Posterior(_unpacked(state.precision, size), np.array(state.information), np.array(state.ridge), scatter)


def _unpacked(packed: str, size: int) -> Array:
    try:
        upper = np.frombuffer(base64.b64decode(packed, validate=True), dtype="<f8")
    except (binascii.Error, ValueError):
        upper = np.empty(0)
    if upper.size != size * (size + 1) // 2 or not np.isfinite(upper).all():
        raise TrainingError("A posterior in the memory is damaged: its numbers do not fit its size.")
    matrix = np.zeros((size, size))
    matrix[np.triu_indices(size)] = upper
    return np.asarray(matrix + np.triu(matrix, 1).T)
