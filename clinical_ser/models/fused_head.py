"""Late fusion: named features and each embedding have a head of their own, and the heads' margins are added.

The one idea: a few dozen features that were chosen by people and hundreds of dimensions that nobody chose need different strengths. Fitted together
the many drown the few; fitted apart, the interpretable part is the very model that is left when the embedding is taken away.
"""

import base64
import binascii
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator
from scipy.optimize import minimize

from clinical_ser.errors import BundleSchemaError
from clinical_ser.models.boosted_head import BoostedHead
from clinical_ser.models.heads import Head, TrainingRows, inner_folds, log_loss_total, log_shares
from clinical_ser.models.linear_head import LinearHead
from clinical_ser.models.state import Finite, Label, State, Vector

INTERPRETABLE = ""
"""The block of all columns that are no embedding's."""
LEAST_WEIGHT, MOST_WEIGHT = 0.0, 10.0


class _PartState(State):
    block: str
    weight: Annotated[Finite, Field(ge=LEAST_WEIGHT, le=MOST_WEIGHT)]
    linear: dict[str, Any] | None = None
    trees: str | None = None
    """An xgboost file in base64."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.linear is None) == (self.trees is None):
            raise ValueError("a part is either linear or made of trees")
        return self

    def head(self) -> Head:
        if self.trees is None:
            return LinearHead.from_dict(self.linear)
        try:
            return BoostedHead.from_bytes(base64.b64decode(self.trees, validate=True))
        except binascii.Error:
            raise BundleSchemaError("A part's trees are not in base64.") from None


class FusedHeadState(State):
    """`head.json` of a fused head: which block each column belongs to, and one head a block."""

    kind: Literal["fused"]
    column_families: tuple[str, ...]
    column_blocks: tuple[str, ...]
    classes: Annotated[tuple[Label, ...], Field(min_length=2)]
    intercept: Vector
    parts: Annotated[tuple[_PartState, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        if len(self.column_blocks) != len(self.column_families):
            raise ValueError("each column has a family and a block")
        if tuple(part.block for part in self.parts) != tuple(dict.fromkeys(self.column_blocks)):
            raise ValueError("the parts are not the blocks of the columns, in their order")
        if len(self.intercept) != (1 if len(self.classes) == 2 else len(self.classes)):
            raise ValueError(f"{len(self.classes)} classes need as many intercepts (two need one)")
        return self


class FusedHead(Head):
    r"""The sum of the margins of one head a block, less the log-odds of the classes that all but one of them bring along.

    That is :math:`m = m_1 + m_2 - \log(\pi_1 / \pi_0)`, exact where blocks are independent given the class; where they are not, it is too sure of
    itself by a factor, which the calibrator takes out.

    Parameters
    ----------
    families, classes, balanced, seed
        See `Head`.
    blocks
        The block of each column: `INTERPRETABLE`, or an embedding's set.
    interpretable
        Kind of head for the interpretable block; embeddings get a linear one, because trees of 256 dimensions without a meaning learn little.
    weighted
        Whether a weight for each block is learned too, on margins out of fold (stacking, Wolpert 1992, Neural Networks 5:241-259); else all are 1.
    """

    kind: ClassVar[str] = "fused"
    parts: tuple[Head, ...]
    weights_: NDArray[np.float64]

    def __init__(
        self,
        families: Sequence[str],
        classes: Sequence[str] | Sequence[int] | None = None,
        *,
        blocks: Sequence[str],
        interpretable: type[LinearHead] | type[BoostedHead] = LinearHead,
        weighted: bool = False,
        balanced: bool = False,
        seed: int = 0,
    ):
        super().__init__(families, classes, balanced=balanced, seed=seed)
        self.column_blocks = tuple(blocks)
        self.blocks_ = tuple(dict.fromkeys(self.column_blocks))
        self.weighted = weighted
        self.weights_ = np.ones(len(self.blocks_))
        made: list[Head] = []
        for block, columns in zip(self.blocks_, self._block_columns(), strict=True):
            kind = interpretable if block == INTERPRETABLE else LinearHead
            made.append(kind([self.column_families[column] for column in columns], classes, seed=seed))
        self.parts = tuple(made)

    @property
    def has_trees(self) -> bool:
        """Whether a part is made of trees."""
        return any(part.has_trees for part in self.parts)

    def _fit(self, rows: TrainingRows) -> None:
        self._fit_parts(rows)
        if self.weighted and len(self.parts) > 1:
            self.weights_ = self._learned_weights(rows)
        self.intercept_ = self._joint(np.stack([part.intercept_ for part in self.parts]), self.weights_, rows)

    def _fit_parts(self, rows: TrainingRows) -> None:
        for part, columns in zip(self.parts, self._block_columns(), strict=True):
            part.fit_rows(rows.columns(columns), self.classes_)

    @staticmethod
    def _joint(margins: NDArray[np.float64], weights: NDArray[np.float64], rows: TrainingRows) -> NDArray[np.float64]:
        """Join margins (or intercepts) of the parts, (parts, ...): each stands for the prior too, which counts once."""
        shares = log_shares(rows)
        prior = shares[1] - shares[0] if len(shares) == 2 else shares - shares.mean()
        return np.asarray(prior + np.tensordot(weights, margins - prior, 1))

    def _learned_weights(self, rows: TrainingRows) -> NDArray[np.float64]:
        """Fit one weight a block to margins out of fold, between `LEAST_WEIGHT` and `MOST_WEIGHT`; strengths are those of the fitted parts."""
        folds = inner_folds(rows, self.seed)
        if not folds:
            return self.weights_
        margins, tested = [], []
        for train, test in folds:
            once = self.settled()
            once.classes_ = self.classes_
            once._fit_parts(rows.take(train))
            margins.append(
                np.stack([part.margins(rows.Z[test][:, columns]) for part, columns in zip(once.parts, once._block_columns(), strict=True)])
            )
            tested.append(test)
        stacked, order = np.concatenate(margins, axis=1), np.concatenate(tested)
        target, weight = rows.target[order], rows.weight[order]

        def loss(weights: NDArray[np.float64]) -> float:
            return log_loss_total(self._joint(stacked, weights, rows), target, weight)

        found = minimize(loss, self.weights_ / len(self.parts), method="L-BFGS-B", bounds=[(LEAST_WEIGHT, MOST_WEIGHT)] * len(self.parts))
        return np.asarray(found.x)

    def prepare(self, Z: ArrayLike) -> list[Any]:
        """Return each part's columns as it reads them."""
        matrix = self._matrix(Z)
        return [part.prepare(np.ascontiguousarray(matrix[:, columns])) for part, columns in zip(self.parts, self._block_columns(), strict=True)]

    def family_margins_of(self, prepared: list[Any]) -> NDArray[np.float64]:
        """Add up the parts' families; see `Head.family_margins`."""
        found = [weight * part.family_margins_of(own) for weight, part, own in zip(self.weights_, self.parts, prepared, strict=True)]
        joined = np.zeros((len(found[0]), len(self.families_), *found[0].shape[2:]))
        for part, margins in zip(self.parts, found, strict=True):
            for place, family in enumerate(part.families_):
                joined[:, self.families_.index(family)] += margins[:, place]
        return joined

    def feature_margins_of(self, prepared: list[Any]) -> NDArray[np.float64]:
        """Put the parts' features in their places; see `Head.feature_margins`."""
        found = [weight * part.feature_margins_of(own) for weight, part, own in zip(self.weights_, self.parts, prepared, strict=True)]
        joined = np.zeros((len(found[0]), len(self.column_families), *found[0].shape[2:]))
        for columns, margins in zip(self._block_columns(), found, strict=True):
            joined[:, columns] = margins
        return joined

    def settled(self) -> Self:
        """Return an unfitted head whose parts have the strengths, and which has the weights, of this one."""
        head = self._unfitted()
        head.parts = tuple(part.settled() for part in self.parts)
        head.weights_ = self.weights_
        return head

    def _unfitted(self) -> Self:
        kind = next((type(part) for block, part in zip(self.blocks_, self.parts, strict=True) if block == INTERPRETABLE), LinearHead)
        return type(self)(
            self.column_families,
            self.classes_,
            blocks=self.column_blocks,
            interpretable=kind,  # type: ignore[arg-type]
            balanced=self.balanced,
            seed=self.seed,
        )

    def _block_columns(self) -> list[NDArray[np.intp]]:
        blocks = np.array(self.column_blocks)
        return [np.flatnonzero(blocks == block) for block in self.blocks_]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `head.json`."""
        state = FusedHeadState(
            kind="fused",
            column_families=self.column_families,
            column_blocks=self.column_blocks,
            classes=self.classes_,
            intercept=tuple(np.atleast_1d(self.intercept_).tolist()),
            parts=tuple(_part_state(*part) for part in zip(self.blocks_, self.weights_.tolist(), self.parts, strict=True)),
        )
        return state.to_dict()

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Inverse of `to_dict`; BundleSchemaError if the parts do not fit together."""
        state = FusedHeadState.from_dict(data)
        head = cls(state.column_families, state.classes, blocks=state.column_blocks)  # type: ignore[arg-type]
        head.classes_ = state.classes  # type: ignore[assignment]
        head.parts = tuple(part.head() for part in state.parts)
        head.weights_ = np.array([part.weight for part in state.parts])
        head.intercept_ = np.array(state.intercept[0] if len(state.classes) == 2 else state.intercept)
        for part, columns in zip(head.parts, head._block_columns(), strict=True):
            if part.column_families != tuple(head.column_families[column] for column in columns) or part.classes_ != head.classes_:
                raise BundleSchemaError("A part of the fused head does not fit its columns, or its classes.")
        return head


def _part_state(block: str, weight: float, part: Head) -> _PartState:
    if isinstance(part, BoostedHead):
        return _PartState(block=block, weight=weight, trees=base64.b64encode(part.to_bytes()).decode("ascii"))
    assert isinstance(part, LinearHead)
    return _PartState(block=block, weight=weight, linear=part.to_dict())
