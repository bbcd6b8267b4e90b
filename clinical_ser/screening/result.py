"""What one screening says: the same strict object from Python, the command line and, later, HTTP.

It carries no path, no name and no samples; the recording is known by the digest of its samples. A number never stands alone: a
probability comes with its interval and the prevalence it is stated for, a feature with its unit and reference.
"""

import hashlib
from datetime import date
from enum import StrEnum
from typing import Literal, Self

import rfc8785
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.special import expit

from clinical_ser.audio.quality import QualityReport
from clinical_ser.evaluation.retest import Repeated
from clinical_ser.explain.explanation import Explanation
from clinical_ser.explain.timeline import Timeline
from clinical_ser.screening.measures import Measure

SCHEMA = "clinical-ser/result/4"
INTENDED_USE = (
    "Screening aid for trained health workers, never a diagnosis. A result describes how similar this recording is to recordings the "
    "model was trained on. A result that is not flagged does not rule out illness or risk; decide with the person, not with the number."
)


_SAME = 1e-6
"""What rounding may put two statements of one probability apart by."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Status(StrEnum):
    """The answer in one word. `classified` belongs to tasks of several classes; the flags belong to binary ones."""

    FLAGGED = "flagged"
    NOT_FLAGGED = "not_flagged"
    CLASSIFIED = "classified"
    INDETERMINATE = "indeterminate"
    NOT_USABLE = "not_usable"

    @property
    def has_number(self) -> bool:
        """Whether it is an answer: only then does a reader get its probability."""
        return self in {Status.FLAGGED, Status.NOT_FLAGGED, Status.CLASSIFIED}


class Interval(_Strict):
    """Sampling error of the model: how much the answer depends on who happened to be in training.

    It is no range for this person's risk: what a voice cannot tell is in the probability itself.
    """

    low: float
    high: float
    level: float = Field(gt=0, lt=1)
    method: str


class ClassProbability(_Strict):
    """Calibrated probability of one class, stated for `prevalence` (the share of that class among the people screened)."""

    label: str
    value: float = Field(ge=0, le=1)
    interval: Interval
    prevalence: float = Field(gt=0, lt=1)


class RateStatement(_Strict):
    """A share of subjects with its 90 % interval; each bound alone holds with 95 % confidence."""

    value: float = Field(ge=0, le=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    subjects: int


class Share(_Strict):
    """A share of subjects the model had not heard, with its 95 % interval; None where there were none to tell."""

    value: float | None = Field(ge=0, le=1)
    low: float | None = Field(ge=0, le=1)
    high: float | None = Field(ge=0, le=1)


class AnswerRates(_Strict):
    """What people of one class were answered out of fold; the three add up to 1."""

    label: str
    flagged: Share
    not_flagged: Share
    indeterminate: Share


class OperatingPointStatement(_Strict):
    """The frozen threshold, restated at the prevalence of this result, and how many people of each class lay beyond it out of fold.

    Lying at or above the threshold is not yet `flagged`, for which the prediction set has to agree; `answers` has those shares.
    """

    probability: float = Field(ge=0, le=1)
    sensitivity: RateStatement
    specificity: RateStatement
    note: str | None = None


class Performance(_Strict):
    """How well the model did in one group of people it had not heard, as its card says."""

    origin: Literal["out_of_fold", "external"]
    """In its own cohort, each person answered by a model that had not learned from them; or in another cohort."""
    column: Literal["sex", "age_band", "language", "device", "task"] | None
    """What forms the group; None for everyone."""
    value: str | None
    subjects: int
    enough: bool
    """False: too few people for figures; `figures` is then empty."""
    figures: dict[str, Share]
    """`sensitivity` and `specificity` at the frozen threshold and `auroc` of a binary task, `uar` of another."""


class ModelIdentity(_Strict):
    """Which model answered. `digest` pins every byte of it."""

    name: str
    version: str
    digest: str
    signature: Literal["trusted", "untrusted", "unsigned"]
    simulated: bool
    uses_baseline: bool
    without_embedding: bool = False
    """The model answered without the embeddings that it also has."""
    encoders: dict[str, str] = Field(default_factory=dict)
    """Encoder to its fingerprint, for each that this answer needed."""


class RecordingIdentity(_Strict):
    """Which recording was asked about: digest of its 16 kHz 16-bit samples, and its length."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    duration_s: float = Field(ge=0)


class SubjectContext(_Strict):
    """What the caller said of the person; it chooses reference groups and never enters the score."""

    sex: Literal["female", "male", "other"] | None = None
    age: float | None = Field(default=None, ge=0, le=130)
    task: str | None = None
    """What was spoken, in the cohort's words (`read speech`, `interview`)."""
    device: str | None = None
    """What recorded it, in the cohort's words."""
    language: str | None = None
    """What language was spoken, in the cohort's words; it chooses no reference group, but a change of it is told when visits are compared."""
    recorded_on: date | None = None
    """The day of the recording; it orders visits."""
    baseline_recordings: int = Field(default=0, ge=0)


class ScoreCutoff(_Strict):
    """The questionnaire score that makes a person one of the positive class, and from where on."""

    label: str
    """The positive class."""
    score: str
    cutoff: float


class MissingFeature(_Strict):
    """A feature without a value, and why. The model answered with the training median in its place."""

    name: str
    reason: str


class ScreeningResult(_Strict):
    """The whole answer. `probability` is the positive class's in a binary task, the most likely class's in another."""

    schema_id: Literal["clinical-ser/result/4"] = "clinical-ser/result/4"
    status: Status
    task: str
    defined_by: ScoreCutoff | None = None
    """What the positive class means, where a questionnaire defines it."""
    summary: str
    probability: ClassProbability | None = None
    classes: tuple[ClassProbability, ...] = ()
    prediction_set: tuple[str, ...] = ()
    prediction_coverage: float | None = Field(default=None, gt=0, lt=1)
    """Share of subjects, of each class, whose set holds the truth; one class in the set is an answer, several or none are not."""
    operating_point: OperatingPointStatement | None = None
    answers: tuple[AnswerRates, ...] = ()
    quality: QualityReport
    measures: tuple[Measure, ...] = ()
    """A fixed panel that a reader knows, timing first; empty for a recording that is not usable, or a model of embeddings alone."""
    explanation: Explanation | None = None
    missing: tuple[MissingFeature, ...] = ()
    timeline: Timeline | None = None
    """When in the recording the score came about; only where it was asked for."""
    context: SubjectContext = SubjectContext()
    performance: tuple[Performance, ...] = ()
    """Of everyone the model was tested on, then of the groups that this person belongs to."""
    retest: Repeated | None = None
    """How well the calibrated log-odds repeat when nothing changed; None where nobody measured it."""
    retest_setting: str | None = None
    """How recordings were repeated, for this and for `measures`."""
    model: ModelIdentity
    software: dict[str, str]
    recording: RecordingIdentity
    intended_use: str = INTENDED_USE
    notices: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of the result as canonical JSON (RFC 8785): the same for the same result, whoever wrote it down and how.

        The tracks of the timeline are not in it: the digest of the recording stands for what was heard.
        """
        return hashlib.sha256(rfc8785.dumps(self.model_dump(mode="json", exclude={"timeline": {"tracks"}}))).hexdigest()

    @model_validator(mode="after")
    def _a_score_only_from_a_usable_recording(self) -> Self:
        scored = self.probability is not None
        if scored == (self.status is Status.NOT_USABLE):
            raise ValueError("a result has a probability exactly when its recording is usable")
        self._check_answer()
        if self.status is Status.CLASSIFIED and (self.probability is None or self.prediction_set != (self.probability.label,)):
            raise ValueError("a classified recording has the most probable class, and no other, in its set")
        return self

    def _check_answer(self) -> None:
        """Make sure that probability, status, prediction set and explanation speak of one answer."""
        if self.probability is None:
            return
        told = self.explanation
        if told and told.target == self.probability.label and abs(told.probability - self.probability.value) > _SAME:
            raise ValueError("the explanation is of another probability")
        if told and told.scale == "calibrated_log_odds" and abs(float(expit(told.log_odds)) - told.probability) > _SAME:
            raise ValueError("log-odds and probability of the explanation contradict each other")
        if self.status in {Status.FLAGGED, Status.NOT_FLAGGED} and self.operating_point is not None:
            above = self.probability.value >= self.operating_point.probability - _SAME
            below = self.probability.value <= self.operating_point.probability + _SAME
            alone = (self.probability.label in self.prediction_set) == (self.status is Status.FLAGGED) and len(self.prediction_set) == 1
            if not alone or not (above if self.status is Status.FLAGGED else below):
                raise ValueError("the status does not follow from threshold and prediction set")
