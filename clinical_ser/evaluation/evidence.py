"""What an evaluation found, as one strict object: `evidence.json`, from which card, reports and release gates are made.

No row of a person is in it: curves are on fixed grids, scores are counted in bins, groups are told by size. A figure carries its interval and
the number of people behind it.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from clinical_ser.cohorts.tasks import Task
from clinical_ser.errors import EvidenceError
from clinical_ser.evaluation.explanations import CohortExplanation
from clinical_ser.evaluation.figure import Figure
from clinical_ser.evaluation.leaks import LeakFinding
from clinical_ser.evaluation.planning import LearningCurve
from clinical_ser.strict import Strict

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Points = tuple[float | None, ...]
"""Values over a grid; None where there is no support."""


class EvaluatedModel(Strict):
    """Which model was evaluated; the digests are None for predictions that came without their bundle."""

    name: str
    version: str
    digest: str | None = None
    learned: str | None = None
    """Digest of everything but the card and the signature (`VerifiedBundle.learned_digest`): the same model with another card has the same."""
    head: str | None = None
    simulated: bool = False
    """Whether the model learned from simulated speech."""
    statement: str = ""


class Flow(Strict):
    """What became of every recording (STARD's flow diagram): the rows from `without_features` to `evaluated` add up to `given`."""

    given: Count
    without_features: Count
    """Could not be decoded or measured."""
    not_usable: Count
    """Refused by the gate: an answer "not usable", and no score."""
    baseline: Count
    """Kept aside as the subject's own baseline."""
    without_label: Count
    not_tested: Count
    """Learned from, but in no test fold of an official split."""
    evaluated: Count
    subjects: Count
    """Of whom at least one recording was evaluated."""
    subjects_refused: Count
    """Of whom every labelled recording was refused by the gate."""
    by_class: dict[str, int]
    """Evaluated recordings by class."""
    subjects_by_class: dict[str, int]
    reasons: dict[str, int] = Field(default_factory=dict)
    """Checks of the gate that failed, and in how many recordings; one recording may fail several."""

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.without_features + self.not_usable + self.baseline + self.without_label + self.not_tested + self.evaluated != self.given:
            raise ValueError("what became of the recordings does not add up to those given")
        return self


class Band(Strict):
    """A curve with its pointwise 95 % band over subjects; all of one length."""

    x: tuple[float, ...]
    y: Points
    low: Points
    high: Points

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        if len({len(self.x), len(self.y), len(self.low), len(self.high)}) > 1:
            raise ValueError("x, y, low and high have one length")
        return self


class Scores(Strict):
    """How stated probabilities are distributed, by true class: recordings in bins of equal width over [0, 1]. It is the rug, in bins."""

    edges: tuple[float, ...]
    counts: dict[str, tuple[int, ...]]


class Decision(Strict):
    """Net benefit over threshold probabilities, at one prevalence; treating none has none."""

    prevalence: Share
    own: bool
    """Whether the prevalence is the cohort's own, and not a stated one."""
    model: Band
    treat_all: tuple[float, ...]
    over_default: Band
    """Difference to the better of treating all and treating none; its band is of the difference, subject by subject."""


class BinaryCurves(Strict):
    """What is drawn for a task of two classes."""

    roc: Band
    """x: 1 - specificity; y: sensitivity."""
    precision_recall: Band
    """x: recall (sensitivity); y: precision (PPV) at the prevalence of the cohort."""
    reliability: Band
    """x: stated probability; y: smoothed share of positives."""
    scores: Scores
    decisions: tuple[Decision, ...]


class ClassCurves(Strict):
    """What is drawn for a task of several classes."""

    reliability: Band
    """x: probability stated for the answer; y: smoothed share of right answers."""
    scores: Scores
    """Of the answer's probability; counts by `right` and `wrong`."""
    confusion: tuple[tuple[int, ...], ...]
    """Recordings: row, the true class; column, the most probable class."""
    recalls: dict[str, Figure]


class Group(Strict):
    """One group of one column."""

    column: str
    value: str
    subjects: int
    recordings: int
    positives: int | None
    """Subjects with the condition (for several classes all subjects); None in a small group, where it would tell who they are."""
    refused: int
    """Recordings of the group that the gate refused."""
    enough: bool
    """False: too few positives or negatives (subjects, for several classes) for figures; `figures` is then empty."""
    figures: dict[str, Figure] = Field(default_factory=dict)


class Gap(Strict):
    """Between the best and the worst group of a column, among those with enough people."""

    column: str
    figure: str
    best: str
    worst: str
    difference: Figure
    """Between the largest and the smallest value; its interval holds for all pairs of groups together (`Bootstrap.gap`)."""


class Comparison(Strict):
    """The model against something else, on the same recordings of the same subjects."""

    against: str
    """Plain words: `model other-name 2`, `comparator phq2 at 3 or more`, `chance`, `the best reachable (true probabilities)`."""
    kind: Literal["model", "comparator", "chance", "best_reachable"]
    figure: str
    """Which figure is compared: `auroc`, `sensitivity`, `uar`, ..."""
    model: Figure
    other: Figure
    difference: Figure
    """Model less other, paired within each bootstrap sample."""
    subjects: int
    recordings: int


class GateResult(Strict):
    """Whether one requirement of a release is met, and what was found."""

    name: str
    met: bool
    found: str
    wanted: str


class Evidence(Strict):
    """Everything an evaluation found."""

    schema_id: Literal["clinical-ser/evidence/1"] = "clinical-ser/evidence/1"
    origin: Literal["out_of_fold", "external"]
    """`out_of_fold`: the training cohort, each subject answered by a model that never heard them. `external`: another cohort."""
    task: Task
    model: EvaluatedModel
    simulated: bool
    """Whether the evaluated speech is simulated."""
    flow: Flow
    cohort_prevalence: Share | None = None
    """Share of positives among the evaluated subjects (two classes)."""
    stated_prevalence: Share | None = None
    """The prevalence that the evaluated probabilities are stated for (two classes)."""
    threshold: Share | None = None
    """The frozen operating point, as a probability at `stated_prevalence`."""
    figures: dict[str, Figure]
    binary: BinaryCurves | None = None
    classes: ClassCurves | None = None
    groups: tuple[Group, ...] = ()
    gaps: tuple[Gap, ...] = ()
    leaks: tuple[LeakFinding, ...] = ()
    accepted_leaks: tuple[str, ...] = ()
    """Findings of verdict `fail` that whoever ran the evaluation chose to go on with, by name."""
    comparisons: tuple[Comparison, ...] = ()
    gates: tuple[GateResult, ...] = ()
    learning_curve: LearningCurve | None = None
    explanation: CohortExplanation | None = None
    """What the model goes by in this cohort; None for predictions that came without their features."""
    covariates: dict[str, dict[str, int]] = Field(default_factory=dict)
    """Evaluated subjects by sex, age band, language, site, device, task, where the cohort says."""
    replicates: int
    level: Share
    seed: int
    software: dict[str, str]
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, content: bytes) -> "Evidence":
        """Read `evidence.json`; EvidenceError if it does not follow this version's schema."""
        try:
            return cls.model_validate_json(content)
        except ValidationError:
            raise EvidenceError("The file is not an evidence.json of this version; run `clinical-ser evaluate` again.") from None

    def group(self, column: str, value: str) -> Group | None:
        """Return one group, or None where there is no such one."""
        return next((group for group in self.groups if (group.column, group.value) == (column, value)), None)
