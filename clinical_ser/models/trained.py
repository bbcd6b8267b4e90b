"""A trained model in memory: from features to calibrated log-odds, and from there to everything a result states.

The one idea: after preprocessing, head and calibrator there is one calibrated log-odds (or one a class), and it is a sum over families plus
a constant. Probability, interval, prediction set, threshold and explanation are all read off it. It goes to a bundle and comes back bit for bit.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field
from scipy.special import expit, softmax

from clinical_ser.cohorts.tasks import Task, TaskKind
from clinical_ser.errors import BundleSchemaError, InvalidValueError
from clinical_ser.features import catalogue
from clinical_ser.models.background import Background, Backgrounds
from clinical_ser.models.boosted_head import BoostedHead
from clinical_ser.models.bundle import BundleManifest, VerifiedBundle, payload_json
from clinical_ser.models.calibration import MarginPlatt, MulticlassPlatt
from clinical_ser.models.conformal import ConformalSets
from clinical_ser.models.fused_head import FusedHead
from clinical_ser.models.heads import Head, Versions, probabilities
from clinical_ser.models.interpretable import EMBEDDING, InterpretableFile, Reproduced
from clinical_ser.models.linear_head import LinearHead
from clinical_ser.models.operating_point import OperatingPoint
from clinical_ser.models.preprocessing import Preprocessor
from clinical_ser.models.prevalence import shift_log_odds, shift_logits
from clinical_ser.models.reference import ReferenceGroups
from clinical_ser.models.stacked_head import StackedHead
from clinical_ser.models.state import Share, State
from clinical_ser.models.strict_json import canonical_json, parse_json

HEADS: dict[str, type[LinearHead] | type[BoostedHead]] = {"linear": LinearHead, "xgboost": BoostedHead}
NORMAL_95 = 1.959964
MINIMUM_PREVALENCE = 1e-4
"""One in ten thousand; screening for anything rarer by voice would answer with noise."""

Calibrator = MarginPlatt | MulticlassPlatt


class _CalibratorFile(State):
    """`calibrator.json`: the calibrator, and the classes' shares among the subjects it was fitted on."""

    calibrator: dict[str, Any]
    class_shares: tuple[Share, ...]


class _RefitState(State):
    calibrator: dict[str, Any]
    class_shares: tuple[Share, ...]
    head: dict[str, Any] | None = None
    trees: str | None = None
    """An xgboost file in base64."""


class _RefitsFile(State):
    """`refits.json`: heads and calibrators learned again on bootstrap samples of subjects."""

    refits: tuple[_RefitState, ...] = Field(min_length=2)


@dataclass(frozen=True, eq=False)
class Refit:
    """Head and calibrator as another sample of subjects would have made them."""

    head: Head
    calibrator: Calibrator
    class_shares: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Answer:
    """What the model says of one recording, at one prevalence."""

    log_odds: NDArray[np.float64]
    """Shape () for two classes, at the stated prevalence; (classes,) for more."""
    probabilities: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    """Shape (classes,); 95 % intervals over refits: how far the sample of subjects, and not the voice, decided this answer."""
    prediction_set: tuple[str, ...]
    status: str
    """As `TrainedModel.statuses` says."""


@dataclass(frozen=True, eq=False)
class Terms:
    """Calibrated log-odds (or logits) as sums, by the model and by each of its refits: `constant` plus the sum of `families` over families.

    Stated like `TrainedModel.log_odds`: for two classes at the training prevalence, for more at equal shares. Version 0 is the model.
    """

    constant: NDArray[np.float64]
    """Shape (versions, margins); one margin for two classes, else one a class."""
    families: NDArray[np.float64]
    """Shape (versions, rows, families, margins)."""
    features: NDArray[np.float64]
    """Shape (versions, rows, features, margins); those of a family sum to it (of a boosted head within 1e-5)."""


@dataclass(frozen=True, eq=False)
class _Together:
    """The model and each of its refits, so that all of them are asked at once: calibrated log-odds are `scale` times the margins plus `offset`."""

    heads: Versions
    scale: NDArray[np.float64]
    """Shape (versions,)."""
    offset: NDArray[np.float64]
    """Shape (versions, margins): the calibrator's, moved to the shares for which log-odds are stated."""
    constant: NDArray[np.float64]
    """Shape (versions, margins): what the head's intercept comes to."""


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """Everything needed to answer, as plain numbers."""

    task: Task
    features: tuple[str, ...]
    extractors: dict[str, str]
    preprocessor: Preprocessor
    head: Head
    calibrator: Calibrator
    conformal: ConformalSets
    operating_point: OperatingPoint | None
    refits: tuple[Refit, ...]
    reference: ReferenceGroups
    class_shares: tuple[float, ...]
    """Of the training subjects, each counting once; what calibrated log-odds are stated for until they are moved."""
    uses_baseline: bool
    backgrounds: Backgrounds
    """What families add in each group of `reference`."""
    interpretable: "TrainedModel | None" = None
    """The same without embeddings, for a model that has some."""
    reproduced: Reproduced | None = None
    """How well the interpretable features reproduce what the embedding adds."""

    @property
    def binary(self) -> bool:
        """Whether the task has two classes."""
        return self.task.kind is TaskKind.BINARY

    def log_odds(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return calibrated log-odds of rows X (rows, features), NaN where missing.

        Shape (rows,) for two classes, at the training prevalence; (rows, classes) for more, at equal shares, because the shares in a corpus are
        its design and not the world's.
        """
        return self._calibrated(self.head, self.calibrator, self.preprocessor.transform(X))

    def _calibrated(self, head: Head, calibrator: Calibrator, Z: NDArray[np.float64]) -> NDArray[np.float64]:
        return at_answering_shares(calibrator.apply(head.margins(Z)), self.class_shares)

    def _refits_log_odds(self, Z: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what each refit says of rows, shape (refits, rows) or (refits, rows, classes), stated like `log_odds`."""
        margins = self._together.heads.margins_of(self.head.prepare(Z))
        stated = (self._together.scale[:, None, None] * margins + self._together.offset[:, None])[1:]
        return stated[..., 0] if self.binary else stated

    @cached_property
    def _together(self) -> "_Together":
        """The model and its refits, in one piece; made when it is first asked for."""
        versions = (Refit(self.head, self.calibrator, self.class_shares), *self.refits)
        none = np.zeros(1 if self.binary else (1, len(self.task.classes)))
        return _Together(
            heads=self.head.together([version.head for version in versions]),
            scale=np.array([version.calibrator.scale_ for version in versions]),
            offset=np.array([self._stated(version, none) for version in versions]),
            constant=np.array([self._stated(version, version.head.intercept_[None]) for version in versions]),
        )

    def _stated(self, version: Refit, margins: NDArray[np.float64]) -> NDArray[np.float64]:
        """Calibrate one row of margins, shape (1,) or (1, classes), and move it from the version's own shares to those of training.

        Chance in who was drawn ill does not count as doubt about a voice.
        """
        log_odds = at_answering_shares(version.calibrator.apply(margins), version.class_shares)[0]
        return np.atleast_1d(shift_log_odds(log_odds, version.class_shares[1], self.class_shares[1]) if self.binary else log_odds)

    def answer(self, x: ArrayLike, *, prevalence: float | None = None) -> Answer:
        """Answer for one recording.

        Parameters
        ----------
        x
            Shape (features,), NaN where missing.
        prevalence
            Share of positives among the people screened; None takes the task's, or else training's. Not for several classes.

        Returns
        -------
        Answer
            The interval is the point ± 1.96 SD of the refits on the log-odds, at the stated prevalence: the sampling error of the model. What a
            voice cannot tell about a person is not in it; that is the probability itself, and the prediction set.

        Raises
        ------
        InvalidValueError
            If a prevalence is given for several classes, or is not between 0 and 1.
        """
        Z = self.preprocessor.transform(np.asarray(x, float)[None])
        point = self._calibrated(self.head, self.calibrator, Z)[0]
        refits = self._refits_log_odds(Z)[:, 0]
        # Sets compare within a class, so they hold at any prevalence; they are read before it is moved.
        labels = self._prediction_set(point)
        self.check_prevalence(prevalence)
        if not self.binary:
            return self._answer_of_classes(point, refits, labels)
        spread = NORMAL_95 * refits.std(axis=0, ddof=1)
        shift = self.prevalence_shift(prevalence)
        p, low, high = (float(expit(value + shift)) for value in (point, point - spread, point + spread))
        return Answer(
            log_odds=np.asarray(point + shift),
            probabilities=np.array([1 - p, p]),
            low=np.array([1 - high, low]),
            high=np.array([1 - low, high]),
            prediction_set=labels,
            status=str(self.statuses(point[None])[0]),
        )

    def probabilities_of(self, X: ArrayLike, label: str, *, prevalence: float | None = None) -> NDArray[np.float64]:
        """Return the probability of one class for rows X (rows, features), with its interval over refits: shape (rows, 3), value, low, high.

        Value and interval are those that `answer` gives for each row.
        """
        Z = self.preprocessor.transform(X)
        point, refits = self._calibrated(self.head, self.calibrator, Z), self._refits_log_odds(Z)
        if self.binary:
            point, refits = (one + self.prevalence_shift(prevalence) for one in (point, refits))
        else:
            of = self.task.classes.index(label)
            point = _log_odds_of_each(point)[:, of]
            refits = np.stack([_log_odds_of_each(refit)[:, of] for refit in refits])
        spread = NORMAL_95 * refits.std(axis=0, ddof=1)
        return np.asarray(expit(np.column_stack([point, point - spread, point + spread])))

    def check_prevalence(self, prevalence: float | None) -> None:
        """Raise InvalidValueError for a prevalence that is no share, or that a model of several classes has no use for."""
        if prevalence is not None and not self.binary:
            raise InvalidValueError("prevalence", prevalence, "none: the probabilities of several classes are stated for equal shares")
        if prevalence is not None and not MINIMUM_PREVALENCE <= prevalence <= 1 - MINIMUM_PREVALENCE:
            raise InvalidValueError("prevalence", prevalence, f"a share between {MINIMUM_PREVALENCE:g} and {1 - MINIMUM_PREVALENCE:g}")

    def stated_prevalence(self, prevalence: float | None = None) -> float:
        """Return the prevalence that a binary answer is stated for: the caller's, else the task's, else that of training."""
        return prevalence or self.task.prevalence or self.class_shares[1]

    def probability_at(self, log_odds: float, prevalence: float | None = None) -> float:
        """Return the probability that log-odds at training prevalence (a threshold) are at the stated one."""
        return float(expit(log_odds + self.prevalence_shift(prevalence)))

    def prevalence_shift(self, prevalence: float | None) -> float:
        """Return what log-odds of two classes gain when they are stated for a prevalence in place of that of training."""
        return float(shift_log_odds(0.0, self.class_shares[1], self.stated_prevalence(prevalence)))

    def _answer_of_classes(self, point: NDArray[np.float64], refits: NDArray[np.float64], labels: tuple[str, ...]) -> Answer:
        p = np.asarray(softmax(point))
        # On each class's own log-odds, so that an interval stays within 0 and 1.
        own, others = _log_odds_of_each(point[None])[0], _log_odds_of_each(refits)
        spread = NORMAL_95 * others.std(axis=0, ddof=1)
        return Answer(point, p, np.asarray(expit(own - spread)), np.asarray(expit(own + spread)), labels, str(self.statuses(point[None])[0]))

    def statuses(self, log_odds: NDArray[np.float64]) -> NDArray[np.str_]:
        """Return what is answered, shape (rows,), to log-odds as `log_odds` gives them.

        `flagged` and `not_flagged` (two classes): the threshold and a prediction set of one class agree, so that both guarantees hold.
        `classified` (more): the set holds one class, the most probable one. Otherwise `indeterminate`.
        """
        return answer_statuses(log_odds, self.conformal, self.operating_point)

    def _prediction_set(self, log_odds: NDArray[np.float64]) -> tuple[str, ...]:
        inside = self.conformal.predict(probabilities(log_odds[None]))[0]
        return tuple(label for label, is_in in zip(self.task.classes, inside, strict=True) if is_in)

    def terms(self, X: ArrayLike, *, refits: bool = True) -> Terms:
        """Take the calibrated log-odds of rows X (rows, features) apart; without `refits`, the model's alone."""
        prepared = self.head.prepare(self.preprocessor.transform(X))
        heads = self._together.heads if refits else self.head.together([self.head])
        families, features = heads.parts_of(prepared)
        count = len(families)
        scale = self._together.scale[:count, None, None, None]
        return Terms(self._together.constant[:count], scale * families, scale * features)

    @property
    def scales(self) -> NDArray[np.float64]:
        """Shape (versions,): what a margin is multiplied with to be calibrated, by the model and by each refit."""
        return self._together.scale

    def background(self, place: int | None) -> Background:
        """Return the moments of a reference group, by its place; of None, the average training recording."""
        return Background.average(self.head, len(self.refits)) if place is None else self.backgrounds.groups[place]

    @cached_property
    def family_columns(self) -> NDArray[np.intp]:
        """Shape (features,): the place of each feature's family in `head.families_`."""
        return np.array([self.head.families_.index(family) for family in self.head.column_families])

    def to_files(self) -> dict[str, bytes]:
        """Return the payload files of a bundle, all but the card."""
        calibrator = _CalibratorFile(calibrator=self.calibrator.to_dict(), class_shares=self.class_shares)
        files = {
            "preprocessing.json": canonical_json(self.preprocessor.to_dict()),
            "calibrator.json": canonical_json(calibrator.to_dict()),
            "conformal.json": canonical_json(self.conformal.to_dict()),
            "reference.json": canonical_json(self.reference.to_dict()),
            "background.json": canonical_json(self.backgrounds.to_dict()),
            "refits.json": canonical_json(_RefitsFile(refits=tuple(_refit_state(refit) for refit in self.refits)).to_dict()),
        }
        if self.interpretable is not None and self.reproduced is not None:
            twin = self.interpretable
            files["interpretable.json"] = InterpretableFile.of(twin.features, twin.operating_point, self.reproduced, twin.to_files())
        if isinstance(self.head, BoostedHead):
            return files | {"head.ubj": self.head.to_bytes()}
        return files | {"head.json": canonical_json(_in_json(self.head).to_dict())}

    @classmethod
    def from_bundle(cls, bundle: VerifiedBundle) -> "TrainedModel":
        """Read a verified bundle; BundleSchemaError if its files do not fit each other."""
        manifest = bundle.manifest
        model = _read(manifest, bundle.files, manifest.features, manifest.operating_point, manifest.head)
        if "interpretable.json" not in bundle.files:
            return model
        twin = InterpretableFile.read(bundle.files["interpretable.json"])
        if set(twin.features) != {name for name in model.features if catalogue.get(name).family != EMBEDDING}:
            raise BundleSchemaError("interpretable.json: its features are not those of the model without embeddings.")
        return replace(model, interpretable=_read(manifest, twin.payload(), twin.features, twin.operating_point, None), reproduced=twin.reproduced)

    def check_fit(self) -> None:
        """Raise BundleSchemaError if the parts do not fit each other."""
        families = tuple(catalogue.get(name).family for name in self.features)
        fits = (
            self.preprocessor.feature_names_ == self.features
            and tuple(self.head.classes_) == self.task.classes
            and all(head.column_families == families for head in (self.head, *(refit.head for refit in self.refits)))
            and all(tuple(refit.head.classes_) == self.task.classes and type(refit.head) is type(self.head) for refit in self.refits)
            and len(self.conformal.thresholds_) == len(self.task.classes)
            and all(len(shares) == len(self.task.classes) and min(shares) > 0 for shares in self._all_shares())
            and all(np.size(calibrator.offset_) == (1 if self.binary else len(self.task.classes)) for calibrator in self._all_calibrators())
            and len(self.backgrounds.groups) == len(self.reference.groups)
            and all(self._suits(background) for background in self.backgrounds.groups)
        )
        if not fits:
            raise BundleSchemaError("The bundle's files do not fit each other (features, families or classes differ). Get the bundle again.")

    def _suits(self, background: Background) -> bool:
        margins = 1 if self.binary else len(self.task.classes)
        return background.means.shape == (1 + len(self.refits), len(self.head.families_), margins) and len(background.z_mean) == len(self.features)

    def _all_shares(self) -> list[tuple[float, ...]]:
        return [self.class_shares, *(refit.class_shares for refit in self.refits)]

    def _all_calibrators(self) -> list[Calibrator]:
        return [self.calibrator, *(refit.calibrator for refit in self.refits)]


def answer_statuses(log_odds: NDArray[np.float64], conformal: ConformalSets, operating_point: OperatingPoint | None) -> NDArray[np.str_]:
    """As `TrainedModel.statuses`, for prediction sets and a threshold on their own."""
    p = probabilities(log_odds)
    inside = conformal.predict(p)
    decided = inside.sum(axis=1) == 1
    if operating_point is None:
        return np.where(decided & (inside.argmax(axis=1) == p.argmax(axis=1)), "classified", "indeterminate")
    above = operating_point.is_above(log_odds)
    agree = decided & (inside[:, 1] == above)
    return np.where(agree, np.where(above, "flagged", "not_flagged"), "indeterminate")


def at_answering_shares(log_odds: NDArray[np.float64], class_shares: tuple[float, ...]) -> NDArray[np.float64]:
    """Leave the log-odds of two classes at the training prevalence, shape (rows,); move those of several, (rows, classes), to equal shares."""
    if log_odds.ndim == 1:
        return log_odds
    n = len(class_shares)
    return shift_logits(log_odds, class_shares, [1 / n] * n)


def _log_odds_of_each(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    p = np.clip(softmax(logits, axis=1), 1e-12, 1 - 1e-12)
    return np.asarray(np.log(p) - np.log1p(-p))


def _read(
    manifest: BundleManifest, files: Mapping[str, bytes], features: tuple[str, ...], point: OperatingPoint | None, head: str | None
) -> TrainedModel:
    """Read the files of one model, with embeddings or without."""
    calibration = _CalibratorFile.from_dict(payload_json(files, "calibrator.json"))
    read = MarginPlatt.from_dict if manifest.task.kind is TaskKind.BINARY else MulticlassPlatt.from_dict
    refits = _RefitsFile.from_dict(payload_json(files, "refits.json")).refits
    sets = {catalogue.get(name).set for name in features}
    model = TrainedModel(
        task=manifest.task,
        features=features,
        extractors={name: fingerprint for name, fingerprint in manifest.extractors.items() if name in sets},
        preprocessor=Preprocessor.from_dict(payload_json(files, "preprocessing.json")),
        head=_read_head(head, files),
        calibrator=read(calibration.calibrator),
        conformal=ConformalSets.from_dict(payload_json(files, "conformal.json")),
        operating_point=point,
        refits=tuple(Refit(_refit_head(refit), read(refit.calibrator), refit.class_shares) for refit in refits),
        reference=ReferenceGroups.from_dict(payload_json(files, "reference.json")),
        class_shares=calibration.class_shares,
        uses_baseline=manifest.uses_baseline,
        backgrounds=Backgrounds.from_dict(payload_json(files, "background.json")),
    )
    model.check_fit()
    return model


def _in_json(head: Head) -> LinearHead | FusedHead | StackedHead:
    assert isinstance(head, LinearHead | FusedHead | StackedHead)
    return head


def _refit_state(refit: Refit) -> _RefitState:
    calibrator = refit.calibrator.to_dict()
    if isinstance(refit.head, BoostedHead):
        return _RefitState(calibrator=calibrator, class_shares=refit.class_shares, trees=base64.b64encode(refit.head.to_bytes()).decode("ascii"))
    return _RefitState(calibrator=calibrator, class_shares=refit.class_shares, head=_in_json(refit.head).to_dict())


def _refit_head(state: _RefitState) -> Head:
    if state.trees is not None:
        try:
            return BoostedHead.from_bytes(base64.b64decode(state.trees, validate=True))
        except binascii.Error:
            raise BundleSchemaError("refits.json: trees are not in base64.") from None
    return _from_json(state.head)


def _from_json(data: object) -> LinearHead | FusedHead | StackedHead:
    kind = data.get("kind") if isinstance(data, Mapping) else None
    if kind == StackedHead.kind:
        return StackedHead.from_dict(data)
    return FusedHead.from_dict(data) if kind == FusedHead.kind else LinearHead.from_dict(data)


def _read_head(kind: str | None, files: Mapping[str, bytes]) -> Head:
    """Read the head; `kind` is what the manifest calls it, None for the twin of a fused one, whose file says it."""
    if kind in {None, BoostedHead.kind} and "head.ubj" in files:
        return BoostedHead.from_bytes(files["head.ubj"])
    if kind != BoostedHead.kind and "head.json" in files:
        head = _from_json(parse_json(files["head.json"]))
        if kind in {None, head.kind}:
            return head
    raise BundleSchemaError(
        f"The bundle's head is of kind {kind!r} and its files are {sorted(files)}; "
        f"this version reads {sorted([*HEADS, FusedHead.kind, StackedHead.kind])}."
    )
