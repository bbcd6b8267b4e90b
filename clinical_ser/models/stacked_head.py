"""Two heads on the same columns whose margins are added with weights: one learned across hospitals, one on this hospital's recordings alone.

The one idea: a weighted sum of heads that are sums over families is a sum over families. Everything that explains a head explains this one.
"""

import base64
import binascii
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from clinical_ser.errors import BundleSchemaError, InvalidValueError
from clinical_ser.models.boosted_head import BoostedHead
from clinical_ser.models.heads import Head, TrainingRows
from clinical_ser.models.linear_head import LinearHead
from clinical_ser.models.state import Finite, Label, State, Vector


class StackedHeadState(State):
    """`head.json` of a stacked head."""

    kind: Literal["stacked"]
    column_families: tuple[str, ...]
    classes: Annotated[tuple[Label, ...], Field(min_length=2, max_length=2)]
    intercept: Vector
    weights: Annotated[tuple[Annotated[Finite, Field(ge=0, le=1)], ...], Field(min_length=2, max_length=2)]
    """Of the shared head and of the local one."""
    shared: dict[str, Any]
    local: str | None
    """An xgboost file in base64; None where the site has too few people for a head of its own."""

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        if len(self.intercept) != 1:
            raise ValueError("two classes need one intercept")
        return self


class StackedHead(Head):
    """A linear head of all hospitals and trees of one, weighted; for two classes.

    Parameters
    ----------
    shared
        Learned across hospitals.
    local
        Learned on the hospital's own rows, with the same standardisation; None where there are too few.
    weights
        Of the two, each from 0 to 1. What is common to both belongs into the calibrator.
    """

    kind: ClassVar[str] = "stacked"

    def __init__(self, shared: LinearHead, local: BoostedHead | None, weights: tuple[float, float]):
        super().__init__(shared.column_families, shared.classes_, seed=shared.seed)
        if not all(0 <= weight <= 1 for weight in weights):
            raise InvalidValueError("weights", weights, "two numbers from 0 to 1")
        if local is not None and (local.column_families != shared.column_families or tuple(local.classes_) != tuple(shared.classes_)):
            raise BundleSchemaError("The local head was learned on other columns or classes than the shared one.")
        self.classes_, self.shared, self.local, self.weights_ = shared.classes_, shared, local, weights
        self._set_intercept()

    @property
    def has_trees(self) -> bool:
        """Whether there is a local head."""
        return self.local is not None

    @property
    def _parts(self) -> Sequence[tuple[float, LinearHead | BoostedHead]]:
        return [(self.weights_[0], self.shared)] + ([] if self.local is None else [(self.weights_[1], self.local)])

    def _set_intercept(self) -> None:
        self.intercept_ = np.asarray(sum(weight * part.intercept_ for weight, part in self._parts))

    def _fit(self, rows: TrainingRows) -> None:
        for _, part in self._parts:
            part.fit_rows(rows, self.classes_)
        self._set_intercept()

    def prepare(self, Z: ArrayLike) -> list[Any]:
        """Return the rows as each part reads them; as trees do too where this head has none, since a model's refits share what is prepared once."""
        trees = self.local if self.local is not None else BoostedHead(self.column_families, self.classes_)
        return [self.shared.prepare(Z), trees.prepare(Z)]

    def family_margins_of(self, prepared: list[Any]) -> NDArray[np.float64]:
        """Add up the parts; see `Head.family_margins`."""
        return np.asarray(sum(weight * part.family_margins_of(own) for (weight, part), own in zip(self._parts, prepared, strict=False)))

    def feature_margins_of(self, prepared: list[Any]) -> NDArray[np.float64]:
        """Add up the parts; see `Head.feature_margins`."""
        return np.asarray(sum(weight * part.feature_margins_of(own) for (weight, part), own in zip(self._parts, prepared, strict=False)))

    def settled(self) -> "StackedHead":
        """Return the same weights over parts that are to be fitted again, each with the strength that it has."""
        again = StackedHead.__new__(StackedHead)
        Head.__init__(again, self.column_families, self.classes_, seed=self.seed)
        again.classes_, again.weights_ = self.classes_, self.weights_
        again.shared, again.local = self.shared.settled(), None if self.local is None else self.local.settled()
        return again

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `head.json`."""
        state = StackedHeadState(
            kind="stacked",
            column_families=self.column_families,
            classes=self.classes_,
            intercept=(float(self.intercept_),),
            weights=self.weights_,
            shared=self.shared.to_dict(),
            local=None if self.local is None else base64.b64encode(self.local.to_bytes()).decode("ascii"),
        )
        return state.to_dict()

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Inverse of `to_dict`; BundleSchemaError if the parts do not fit together."""
        state = StackedHeadState.from_dict(data)
        shared = LinearHead.from_dict(state.shared)
        try:
            local = None if state.local is None else BoostedHead.from_bytes(base64.b64decode(state.local, validate=True))
        except binascii.Error:
            raise BundleSchemaError("A stacked head's trees are not in base64.") from None
        if shared.column_families != state.column_families or tuple(shared.classes_) != state.classes:
            raise BundleSchemaError("A part of the stacked head does not fit its columns, or its classes.")
        head = cls(shared, local, (state.weights[0], state.weights[1]))
        if abs(float(head.intercept_) - state.intercept[0]) > 1e-9 * (1 + abs(state.intercept[0])):
            raise BundleSchemaError("The stacked head's intercept is not that of its parts.")
        return head
