"""A person's part of a model, kept where their recordings are, so that it can be taken out again.

The one idea: a memory is a sum over people, and a sum forgets a person by subtraction. What is subtracted is what was added, at the coefficients at
which it was added, times what the updates since have forgotten already; so the sums are those of a history without the person.

Contributions are the person's standardised features: they stay in the registry's private part, and go as soon as they were used.
"""

import io
import zipfile
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from clinical_ser.continual.affine import AffineLoss, affine_design, calibrator_at
from clinical_ser.continual.linear import Loss, Rows, coordinates_of, head_at
from clinical_ser.continual.memory import Answers, Memory, answers_again, linear_parts, part_columns, prior_of, weights_of
from clinical_ser.continual.posterior import Array, Posterior
from clinical_ser.continual.updating import backgrounds_of, fused_of, secret_draws
from clinical_ser.errors import TrainingError
from clinical_ser.models.binned import Binned
from clinical_ser.models.fused_head import FusedHead
from clinical_ser.models.heads import Head
from clinical_ser.models.rows import Rows as TableRows
from clinical_ser.models.trained import Refit, TrainedModel
from clinical_ser.models.weights import subject_weights

MOST_BYTES = 256 << 20
_ARRAYS = ("tags", "person", "Z", "target", "weight", "margins", "log_odds", "totals")


@dataclass(frozen=True, eq=False)
class Contributions:
    """What each person added to a memory in one step.

    Attributes
    ----------
    tags
        Of the people, keyed (`Registry.tag`).
    person
        Shape (rows,), place of each row's person in `tags`.
    Z
        Shape (rows, features), on the model's scales.
    target, weight
        Shape (rows,), class numbers and weights in the head's loss.
    margins
        Shape (rows,) or (rows, classes), out of fold, before calibration.
    log_odds
        The same after calibration, as the memory counted them.
    totals
        Shape (classes,), recordings that the model had heard then.
    """

    tags: tuple[str, ...]
    person: NDArray[np.int64]
    Z: Array
    target: NDArray[np.int64]
    weight: Array
    margins: Array
    log_odds: Array
    totals: Array

    @classmethod
    def of(cls, model: TrainedModel, memory: Memory, rows: TableRows, tags: Sequence[str], answers: Answers | None = None) -> Self:
        """Return those of the rows that a model learned from, one tag a row; without out-of-fold answers these are made as `memory_of` makes them."""
        people, person = np.unique(np.asarray(tags), return_inverse=True)
        Z = model.preprocessor.transform(rows.X)
        weight = weights_of(rows.target, memory.class_totals, balanced=not model.binary)
        said = answers or answers_again(model, rows, Z)
        return cls(tuple(people.tolist()), person.astype(np.int64), Z, rows.target, weight, said.margins, said.log_odds, memory.class_totals)

    def of_people(self, tags: AbstractSet[str]) -> "Contributions | None":
        """Return those of some people; None where there are none."""
        chosen = self._rows(self._are(tags))
        return chosen if chosen.tags else None

    def without(self, tags: AbstractSet[str]) -> "Contributions":
        """Return everybody else's."""
        return self._rows(~self._are(tags))

    def _are(self, tags: AbstractSet[str]) -> NDArray[np.bool_]:
        return np.array([tag in tags for tag in self.tags], dtype=bool)[self.person]

    def _rows(self, chosen: NDArray[np.bool_]) -> "Contributions":
        kept, person = np.unique(self.person[chosen], return_inverse=True)
        tags = tuple(self.tags[place] for place in kept)
        arrays = (self.Z[chosen], self.target[chosen], self.weight[chosen], self.margins[chosen], self.log_odds[chosen])
        return Contributions(tags, person.astype(np.int64), *arrays, self.totals)

    def to_bytes(self) -> bytes:
        """Return them as a file."""
        content = io.BytesIO()
        tags = np.frombuffer("".join(self.tags).encode("ascii"), dtype="S64") if self.tags else np.empty(0, "S64")
        arrays = {name: getattr(self, name) for name in _ARRAYS if name != "tags"}
        np.savez(content, allow_pickle=False, tags=tags, **arrays)
        return content.getvalue()

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Read what `to_bytes` wrote; TrainingError where it is damaged."""
        if len(raw) > MOST_BYTES:
            raise TrainingError("The contributions are too long to be some.")
        try:
            with np.load(io.BytesIO(raw), allow_pickle=False) as stored:
                tags, person, Z, target, weight, margins, log_odds, totals = (stored[name] for name in _ARRAYS)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            raise TrainingError("The contributions are damaged.") from None
        numbers = np.isfinite(Z).all() and np.isfinite(weight).all() and np.isfinite(margins).all() and np.isfinite(log_odds).all()
        lengths = {len(person), len(Z), len(target), len(weight), len(margins), len(log_odds)}
        if not numbers or len(lengths) != 1 or (len(person) and not 0 <= person.min() <= person.max() < len(tags)):
            raise TrainingError("The contributions are damaged: their arrays do not fit each other.")
        return cls(
            tuple(tag.decode("ascii") for tag in tags.tolist()),
            person.astype(np.int64),
            Z,
            target.astype(np.int64),
            weight,
            margins,
            log_odds,
            totals,
        )


@dataclass(frozen=True, eq=False)
class Since:
    """An update, or recalibration, between the step that heard a person and the model that forgets them."""

    forgetting: float
    model: TrainedModel
    """That came of it."""
    heads_learned: bool
    """False for a recalibration, which keeps coefficients, and the calibration of whoever was heard last."""


def forget(memory: Memory, first: TrainedModel, gone: Contributions, since: Sequence[Since]) -> Memory:
    """Return a model's memory without some people.

    Parameters
    ----------
    memory
        Of the model that forgets.
    first
        The model whose training or update heard them.
    gone
        What they added there.
    since
        What lies between the two, oldest first; empty where they are one.

    Raises
    ------
    TrainingError
        What is to be taken out is not in it.
    """
    classes, factor = len(memory.classes), 1.0
    scores = Binned.of(gone.log_odds, gone.target, gone.person.astype(str), classes)
    weight = subject_weights(gone.person, len(gone.target))
    before, recalibrated, kept = first, False, 1.0
    for step in since:
        if step.heads_learned:
            factor *= step.forgetting
        recalibrated |= not step.heads_learned
        kept *= step.forgetting
        scores = scores.times(step.forgetting)
        if first.binary:
            scale = step.model.calibrator.scale_ / before.calibrator.scale_
            scores = scores.moved(scale, float(step.model.calibrator.offset_ - scale * before.calibrator.offset_))
        before = step.model
    heads = []
    for part, own, posterior in zip(linear_parts(first.head), part_columns(first.head), memory.heads, strict=True):
        then = coordinates_of(part, prior_of(part, first.head, gone.totals, balanced=not first.binary))
        loss = Loss(Rows(gone.Z[:, own], gone.target, gone.weight, gone.person), classes)
        _, gradient, hessian = loss(then)
        scatter = loss.scatter(then)
        heads.append(posterior.without(then, factor * gradient, factor * hessian, None if scatter is None else factor * scatter))
    calibrator = memory.calibrator
    if not recalibrated:
        design, at = affine_design(gone.margins), np.append(first.calibrator.scale_ - 1.0, first.calibrator.offset_)
        _, gradient, hessian = AffineLoss(design, gone.target, weight, np.eye(design.shape[2])[0])(at)
        calibrator = calibrator.without(at, kept * gradient, kept * hessian)
    people = memory.people
    if not recalibrated:  # which counts the new people alone
        people = _less(people, kept * np.bincount(gone.target, weight, minlength=classes))
    totals = _less(memory.class_totals, factor * np.bincount(gone.target, minlength=classes))
    left = Binned(_less(memory.scores.mass, scores.mass), memory.scores.spread - scores.spread)
    return replace(memory, bundle=None, heads=tuple(heads), calibrator=calibrator, people=people, class_totals=totals, scores=left)


def _less(whole: Array, part: NDArray[Any]) -> Array:
    """Return a count less a part of it; TrainingError where the part was not in it."""
    left = whole - part
    if left.min() < -1e-6 * max(1.0, float(whole.max())):
        raise TrainingError("What is to be taken out of the model was never in it, or not as it is now.")
    return np.maximum(left, 0.0)


def model_of(model: TrainedModel, memory: Memory, *, secret: bytes | None = None) -> tuple[TrainedModel, Memory]:
    """Return the model that a memory gives, and the memory with its scores where the model's calibration puts them.

    Parameters
    ----------
    model
        Of the same features, strength and scales.
    memory
        From which coefficients, calibrator, prediction sets and threshold come; refits are drawn from its posteriors.
    secret
        As in `UpdateOptions`.
    """
    rng = secret_draws(secret)
    head = _head(model, memory, memory.heads)
    refits = tuple(
        Refit(
            _head(model, memory, [posterior.drawn(rng) for posterior in memory.heads]),
            calibrator_at(memory.calibrator, memory.calibrator.drawn(rng).mode),
            memory.class_shares,
        )
        for _ in model.refits
    )
    # Spreads of what families add follow the coefficients as they do among standard people: nobody's features are here.
    standard = np.random.default_rng(0).standard_normal((512, len(model.features)))
    calibrator = calibrator_at(memory.calibrator, memory.calibrator.mode)
    if model.binary:
        scale = calibrator.scale_ / model.calibrator.scale_
        memory = replace(memory, scores=memory.scores.moved(scale, float(calibrator.offset_ - scale * model.calibrator.offset_)))
    freed = replace(
        model,
        head=head,
        calibrator=calibrator,
        conformal=memory.scores.conformal(model.conformal.coverage),
        operating_point=memory.scores.operating_point(model.task.target_sensitivity) if model.binary else None,
        refits=refits,
        class_shares=memory.class_shares,
        backgrounds=backgrounds_of(model, head, refits, standard),
    )
    return freed, memory


def _head(model: TrainedModel, memory: Memory, posteriors: Sequence[Posterior]) -> Head:
    balanced = not model.binary
    found = [
        head_at(part, posterior.mode, prior_of(part, model.head, memory.class_totals, balanced=balanced))
        for part, posterior in zip(linear_parts(model.head), posteriors, strict=True)
    ]
    return fused_of(model.head, found, memory.class_totals) if isinstance(model.head, FusedHead) else found[0]
