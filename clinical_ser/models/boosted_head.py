"""Gradient-boosted trees that never mix feature families, so that the margin is a sum over families.

The one idea: an interaction constraint a family makes each tree belong to one family. Summing the trees of a family gives its margin, exactly
and uniquely, without Shapley values and their background.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import xgboost
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from clinical_ser.errors import BundleSchemaError
from clinical_ser.models.heads import Head, TrainingRows, inner_folds
from clinical_ser.models.state import Count, Label, Matrix, State, Vector

MAX_ROUNDS = 400
PATIENCE_ROUNDS = 30
DEFAULT_ROUNDS = 60
"""Where there are too few subjects to choose a number of rounds."""

TREE_PARAMETERS: dict[str, float | int | str] = {
    "tree_method": "hist",
    "max_depth": 3,
    "eta": 0.1,
    "min_child_weight": 5.0,
    "lambda": 5.0,
    "subsample": 0.7,
    "colsample_bynode": 0.3,
    "max_bin": 64,
    # One thread: histogram sums are added in another order with another number, and a bundle's bytes must not depend on the machine.
    "nthread": 1,
}
"""Shallow, slow and sampled, for cohorts of tens to hundreds of subjects. The best of some 18 settings on EmoDB's speaker folds, so figures on
that corpus flatter them a little (docs/benchmarks.md)."""

GRID = 0.01
"""Standardised values are rounded to this before trees see them. xgboost splits at values of the training rows; on a grid a threshold is a place
where many people are, and not one patient's exact value."""

STATE_ATTRIBUTE = "clinical_ser"
"""The booster attribute that carries what xgboost does not know (families, classes, zero points), inside the same file."""


class BoostedHeadState(State):
    """What `head.ubj` carries beside the trees."""

    kind: Literal["xgboost"]
    column_families: tuple[str, ...]
    classes: Annotated[tuple[Label, ...], Field(min_length=2)]
    rounds: Count
    intercept: Vector
    centre: Matrix
    """One row a family, one column a margin: the mean over the training rows of what the family's trees sum to."""
    feature_centre: Matrix
    """The same of each feature's Shapley values."""

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        width = 1 if len(self.classes) == 2 else len(self.classes)
        if len(self.centre) != len(set(self.column_families)) or len(self.feature_centre) != len(self.column_families):
            raise ValueError("a row of zero points each family and each feature is needed")
        if any(len(row) != width for row in (self.intercept, *self.centre, *self.feature_centre)):
            raise ValueError(f"{len(self.classes)} classes need {width} numbers in every row")
        return self


class BoostedHead(Head):
    """xgboost with one interaction constraint a family.

    The number of rounds is the one with the least log-loss in folds by subject (`xgboost.cv`, early stopping); the trees are then grown
    again on all rows for exactly so many rounds, so there is no best iteration to forget when predicting. It reads the imputed and
    standardised Z like any head: xgboost's own routing of missing values would let the model use *that* a value is missing, which tells of the
    device and not of the person.

    Parameters
    ----------
    families, classes, balanced, seed
        See `Head`.
    rounds
        Number of boosting rounds; None: chosen in `fit`.

    Attributes
    ----------
    rounds_ : int
    booster_ : xgboost.Booster
    intercept_ : ndarray of shape () or (classes,)
    """

    kind: ClassVar[str] = "xgboost"
    rounds_: int
    booster_: xgboost.Booster

    def __init__(
        self,
        families: Sequence[str],
        classes: Sequence[str] | Sequence[int] | None = None,
        *,
        rounds: int | None = None,
        balanced: bool = False,
        seed: int = 0,
    ):
        super().__init__(families, classes, balanced=balanced, seed=seed)
        self.rounds = rounds

    @property
    def has_trees(self) -> bool:
        """It has."""
        return True

    def _fit(self, rows: TrainingRows) -> None:
        data = xgboost.DMatrix(rows.Z, label=rows.target, weight=rows.weight, nthread=1)
        parameters = self._parameters(rows.n_classes)
        self.rounds_ = self.rounds if self.rounds is not None else _choose_rounds(data, rows, parameters, self.seed)
        self.booster_ = xgboost.train(parameters, data, num_boost_round=self.rounds_)
        self._leaves = _Leaves(self.booster_, self.column_families, self.families_)
        raw = self._leaves.family_sums(self.booster_, data)
        self._centre = np.average(raw, axis=0, weights=rows.weight)
        self._feature_centre = np.average(self._shapley_values(data), axis=0, weights=rows.weight)
        start = self.booster_.predict(data.slice([0]), output_margin=True)[0] - raw[0].sum(axis=0)
        self.intercept_ = self._shaped(np.asarray(start + self._centre.sum(axis=0), dtype=np.float64)[None])[0]

    def _matrix(self, Z: ArrayLike) -> NDArray[np.float64]:
        return np.round(super()._matrix(Z) / GRID) * GRID

    def _parameters(self, n_classes: int) -> dict[str, Any]:
        objective = {"objective": "binary:logistic"} if n_classes == 2 else {"objective": "multi:softprob", "num_class": n_classes}
        constraints = json.dumps([columns.tolist() for columns in self._family_columns()])
        return {**TREE_PARAMETERS, **objective, "interaction_constraints": constraints, "seed": self.seed}

    def prepare(self, Z: ArrayLike) -> xgboost.DMatrix:
        """Hand rows to xgboost, which takes 0.2 ms however few they are."""
        return xgboost.DMatrix(self._matrix(Z), nthread=1)

    def family_margins_of(self, prepared: xgboost.DMatrix) -> NDArray[np.float64]:
        """Sum the leaves that a row falls in over each family's trees; see `Head.family_margins`."""
        return self._shaped(self._leaves.family_sums(self.booster_, prepared) - self._centre)

    def feature_margins_of(self, prepared: xgboost.DMatrix) -> NDArray[np.float64]:
        """Divide each family's margin among its features by Shapley values; see `Head.feature_margins`.

        Path-dependent TreeSHAP (Lundberg et al. 2020, Nat Mach Intell 2:56-67), which starts from the mean that the trees remember, moved to
        the family's zero. In 32-bit arithmetic: a family's features sum to its margin within 1e-5.
        """
        return self._shaped(self._shapley_values(prepared) - self._feature_centre)

    def settled(self) -> Self:
        """Return an unfitted head with this one's number of rounds."""
        return type(self)(self.column_families, self.classes_, rounds=self.rounds_, balanced=self.balanced, seed=self.seed)

    def _shapley_values(self, data: xgboost.DMatrix) -> NDArray[np.float64]:
        """Shape (rows, features, margins)."""
        values = self.booster_.predict(data, pred_contribs=True, strict_shape=True).astype(np.float64)
        return np.asarray(values[:, :, :-1].transpose(0, 2, 1))

    def _shaped(self, margins: NDArray[np.float64]) -> NDArray[np.float64]:
        return margins[..., 0] if len(self.classes_) == 2 else margins

    def to_bytes(self) -> bytes:
        """Return `head.ubj`: xgboost's own file (UBJSON) with our state as one of its attributes; no pickle."""
        state = BoostedHeadState(
            kind="xgboost",
            column_families=self.column_families,
            classes=self.classes_,
            rounds=self.rounds_,
            intercept=tuple(np.atleast_1d(self.intercept_).tolist()),
            centre=tuple(tuple(row) for row in self._centre.tolist()),
            feature_centre=tuple(tuple(row) for row in self._feature_centre.tolist()),
        )
        booster = self.booster_.copy()
        booster.set_attr(**{STATE_ATTRIBUTE: json.dumps(state.to_dict(), sort_keys=True)})
        return bytes(booster.save_raw("ubj"))

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Inverse of `to_bytes`, for bytes whose digest has been checked: xgboost's reader is not hardened against forged trees.

        Raises
        ------
        BundleSchemaError
            If these are not such bytes, or a tree mixes families.
        """
        booster = _load(raw)
        state = _read_state(booster)
        head = cls(state.column_families, state.classes, rounds=state.rounds)  # type: ignore[arg-type]
        head.classes_ = state.classes  # type: ignore[assignment]
        head.rounds_ = state.rounds
        head.booster_ = booster
        head._leaves = _Leaves(booster, head.column_families, head.families_)
        if head._leaves.width != (1 if len(state.classes) == 2 else len(state.classes)):
            raise BundleSchemaError("The boosted head's trees and classes do not fit together.")
        head._centre, head._feature_centre = np.array(state.centre), np.array(state.feature_centre)
        head.intercept_ = head._shaped(np.array(state.intercept)[None])[0]
        return head


class _Leaves:
    """The value of every leaf, and for every tree its family and the margin it adds to."""

    def __init__(self, booster: xgboost.Booster, column_families: tuple[str, ...], families: tuple[str, ...]):
        model = json.loads(booster.save_raw("json"))["learner"]
        if int(model["learner_model_param"]["num_feature"]) != len(column_families):
            raise BundleSchemaError("The boosted head's trees were grown on another number of features.")
        trees = model["gradient_booster"]["model"]["trees"]
        margin_of_tree = np.array(model["gradient_booster"]["model"]["tree_info"])
        self.width = max(1, int(model["learner_model_param"]["num_class"]))
        self.values = np.zeros((len(trees), max(len(tree["left_children"]) for tree in trees)))
        self.shape = (len(families), self.width)
        # A tree without a split is a constant of no family; booked under the first, its centre takes it out again.
        place = np.array([families.index(_family_of(tree, column_families) or families[0]) for tree in trees])
        self.slot = place * self.width + margin_of_tree
        for row, tree in zip(self.values, trees, strict=True):
            leaf = np.array(tree["left_children"]) == -1
            row[: len(leaf)][leaf] = np.array(tree["split_conditions"])[leaf]

    def family_sums(self, booster: xgboost.Booster, data: xgboost.DMatrix) -> NDArray[np.float64]:
        """Shape (rows, families, margins), in float64."""
        leaf = booster.predict(data, pred_leaf=True, strict_shape=True).reshape(data.num_row(), len(self.values)).astype(np.int64)
        reached = self.values[np.arange(len(self.values)), leaf]
        adds_to = np.eye(self.shape[0] * self.shape[1])[self.slot]
        return np.asarray(reached @ adds_to).reshape(-1, *self.shape)


def _family_of(tree: dict[str, Any], column_families: tuple[str, ...]) -> str | None:
    """Return the one family a tree splits on, None for a single leaf; BundleSchemaError for several."""
    split = np.array(tree["left_children"]) != -1
    used = {column_families[column] for column in np.array(tree["split_indices"])[split]}
    if len(used) > 1:
        raise BundleSchemaError(f"A tree mixes the families {sorted(used)}; its explanation would not be exact.")
    return next(iter(used), None)


def _choose_rounds(data: xgboost.DMatrix, rows: TrainingRows, parameters: dict[str, Any], seed: int) -> int:
    folds = inner_folds(rows, seed)
    if not folds:
        return DEFAULT_ROUNDS
    metric = "logloss" if rows.n_classes == 2 else "mlogloss"
    history = xgboost.cv(
        parameters, data, MAX_ROUNDS, folds=folds, metrics=metric, early_stopping_rounds=PATIENCE_ROUNDS, seed=seed, verbose_eval=False
    )
    # With early stopping, xgboost.cv cuts its history at the best round.
    return len(history)


def _load(raw: bytes) -> xgboost.Booster:
    booster = xgboost.Booster({"nthread": 1})
    try:
        # An empty buffer makes xgboost 3.2 end the whole process; a lone brace it refuses as it should.
        booster.load_model(bytearray(raw or b"{"))
    except (xgboost.core.XGBoostError, UnicodeDecodeError):  # the second: it cannot always decode its own message
        raise BundleSchemaError("The boosted head is not an xgboost model in UBJSON.") from None
    return booster


def _read_state(booster: xgboost.Booster) -> BoostedHeadState:
    text = booster.attr(STATE_ATTRIBUTE)
    try:
        return BoostedHeadState.from_dict(json.loads(text or ""))
    except json.JSONDecodeError:
        raise BundleSchemaError("The boosted head does not carry its families and classes.") from None
