"""The parts of a change-control plan, as `pccp.toml` spells them.

Its three parts are those of FDA, Marketing Submission Recommendations for a Predetermined Change Control Plan for Artificial
Intelligence-Enabled Device Software Functions (final guidance December 2024, reissued August 2025): Description of Modifications
(`modification`), Modification Protocol (`protocol`, `holdout`, `requirement`, `role`), Impact Assessment (`impact`, `risk`).
"""

import base64
import binascii
import hashlib
from datetime import date
from functools import cached_property
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from clinical_ser.errors import ChangePlanError
from clinical_ser.models.strict_json import canonical_json
from clinical_ser.strict import Strict

LEAST_REPLICATES = 200
"""Bounds come from standard errors, which 200 bootstrap samples tell to 5 %; 2000, the default, to 1.6 %."""
MOST_REPLICATES = 100_000
LEAST_ROLES = 2
"""Nobody approves a change alone."""
LEAST_OF_A_CLASS = 5
"""Subjects of each class that a holdout has at least: fewer people have no interval to speak of."""

Kind = Literal["recalibrated", "updated", "retrained", "unlearned"]
Step = Literal["intercept", "slope", "full"]
Method = Literal["subtracted", "retrained"]
Trigger = Literal["scheduled", "alarm", "request", "erasure"]
ComparisonKind = Literal["non_inferior", "no_worse", "at_least", "at_most"]
Scope = Literal["overall", "each_site", "worst_site", "each_group", "worst_group"]


Text = Annotated[str, Field(min_length=3, max_length=2000)]
Id = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=10_000_000, strict=True)]
Share = Annotated[float, Field(ge=0, le=1)]


def _public_key(text: str) -> str:
    try:
        raw = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raw = b""
    if len(raw) != 32 or base64.b64encode(raw).decode("ascii") != text:
        raise ValueError("a key is the 32 bytes of an Ed25519 public key in base64; `pccp key` prints one")
    return text


Key = Annotated[str, AfterValidator(_public_key)]


class About(Strict):
    """What the plan is for, and when it holds."""

    name: Id
    version: str = Field(min_length=1, max_length=40)
    model: Id
    """The name under which the champion answers."""
    task: Id
    classes: tuple[str, ...] = Field(min_length=2, max_length=50)
    """As the task has them: two (negative, positive), or several."""
    owner: Text
    effective: date
    expires: date
    """The last day on which a change may be made under it."""
    reference: Text
    """What it follows, and where it was submitted or filed."""


class Limits(Strict):
    """What a change of one kind has to keep to."""

    heads: tuple[Literal["linear", "xgboost", "fused", "stacked"], ...] = Field(min_length=1)
    features_fixed: bool = True
    extractors_fixed: bool = True
    subjects_of_each_class_at_least: Count = 0
    sites_at_least: Annotated[int, Field(ge=1, le=10_000)] = 1
    forgetting_at_least: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The smallest forgetting factor: 1 forgets nothing."""
    unlabelled_weight_at_most: Share = 0.0
    epsilon_at_most: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Privacy spent in all, this change included."""
    steps: tuple[Step, ...] = ()
    """Which recalibrations."""
    methods: tuple[Method, ...] = Field(default=("subtracted", "retrained"), min_length=1)
    """How a person is taken out (kind unlearned): from the sums, or by training again without them."""
    times_a_year_at_most: Annotated[int, Field(ge=1, le=366)]
    triggers: tuple[Trigger, ...] = Field(min_length=1)


class Modification(Strict):
    """Description of Modifications: one kind of change."""

    id: Id
    kind: Kind
    title: Text
    rationale: Text
    changes: Text
    """What of the model changes, and what stays."""
    limits: Limits
    requirements: tuple[Id, ...] = Field(min_length=1)
    """What it is judged by, by name."""


class Holdout(Strict):
    """A frozen table at a site: people that no model learns from."""

    site: Id
    sha256: Sha256
    """Of the table's content (`table_digest`); the table does not leave the site."""
    subjects_of_each_class_at_least: Annotated[int, Field(ge=LEAST_OF_A_CLASS, le=1_000_000)]
    prevalence: Annotated[float, Field(gt=0, lt=1)] | None = None
    """What probabilities are stated for at this site (two classes); otherwise the share of the holdout's people with the condition."""


class Requirement(Strict):
    """What a challenger has to show.

    `non_inferior`: the cautious bound of the paired difference lies within `margin`. `no_worse`: the difference itself is on no worse side, with
    no margin (a bound would ask for superiority). `at_least` and `at_most`: the challenger's own cautious bound meets `limit`.
    """

    id: Id
    figure: str = Field(min_length=1, max_length=80)
    comparison: ComparisonKind
    margin: Annotated[float, Field(gt=0, le=100)] | None = None
    limit: Annotated[float, Field(ge=-1000, le=1000)] | None = None
    scope: Scope = "overall"
    by: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")] | None = None
    """A column of the holdouts: the groups."""
    values: tuple[Annotated[str, Field(min_length=1, max_length=80)], ...] = Field(default=(), max_length=100)
    """Groups that have to be there: one that no site has cannot be judged, and is not met."""
    too_few: Literal["fail", "skip"] = "fail"
    """What a group without enough people at a site is: not met, or left out. One group at least has to have enough."""
    rationale: Text
    """Why this margin or limit."""


class Protocol(Strict):
    """Modification Protocol: data, re-training, evaluation and update, in words; and how figures are made."""

    data_management: Text
    retraining: Text
    evaluation: Text
    update: Text
    users_told: Text
    """How users learn of a change."""
    replicates: Annotated[int, Field(ge=LEAST_REPLICATES, le=MOST_REPLICATES)] = 2000
    level: Annotated[float, Field(ge=0.9, lt=1)] = 0.95
    """Of two-sided intervals; a bound then holds at (1 + level) / 2."""
    seed: Annotated[int, Field(ge=0, le=2**31)] = 0
    shadow_days: Annotated[int, Field(ge=0, le=3650)] = 0
    shadow_recordings: Count = 0
    """How long, and over how many recordings, a challenger answers silently before it may be promoted."""
    monitors: tuple[Id, ...] = ()
    """What is watched while the model answers."""


class Role(Strict):
    """Who signs: a function, not a person, and the keys of those who hold it."""

    name: Id
    meaning: Text
    """What their signature says."""
    keys: tuple[Key, ...] = Field(min_length=1, max_length=20)


class Impact(Strict):
    """Impact Assessment, in words."""

    with_and_without: Text
    """The model with each change beside the model without any."""
    on_each_other: Text
    """How one modification affects another."""
    cumulative: Text
    """What many changes together may do, and what bounds it."""
    rollback: Text


class Risk(Strict):
    """What may go wrong with a modification, and what is done about it."""

    id: Id
    modifications: tuple[Id, ...] = Field(min_length=1)
    benefit: Text
    harm: Text
    mitigation: Text
    mitigated_by: tuple[str, ...] = Field(min_length=1)
    """Requirements by their id; monitors as `monitor:NAME`."""
    seen: Text
    """How one would notice."""
    rollback: Text


class ChangePlan(Strict):
    """A whole plan; its digest is of its content, so comments and line ends of the file do not count."""

    schema_id: Literal["clinical-ser/pccp/1"]
    plan: About
    modification: tuple[Modification, ...] = Field(min_length=1)
    protocol: Protocol
    holdout: tuple[Holdout, ...] = Field(min_length=1)
    requirement: tuple[Requirement, ...] = Field(min_length=1)
    role: tuple[Role, ...] = Field(min_length=1)
    impact: Impact
    risk: tuple[Risk, ...] = Field(min_length=1)

    @cached_property
    def digest(self) -> str:
        """Return the sha256 of the plan's canonical JSON, in hex."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def to_json(self) -> bytes:
        """Return canonical JSON, for where the plan travels."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def binary(self) -> bool:
        """Whether the task has two classes."""
        return len(self.plan.classes) == 2

    @property
    def label(self) -> str:
        """Return name and version, as people cite it."""
        return f"{self.plan.name} {self.plan.version}"

    def requirements_of(self, modification: Modification) -> tuple[Requirement, ...]:
        """Return what a modification is judged by, in the plan's order."""
        return tuple(one for one in self.requirement if one.id in modification.requirements)

    def modification_of(self, name: str) -> Modification:
        """Return a modification by id; ChangePlanError lists those there are."""
        for one in self.modification:
            if one.id == name:
                return one
        raise ChangePlanError(f"The plan has no modification {name!r}; it has {[one.id for one in self.modification]}.")

    def holds_on(self, day: date) -> bool:
        """Return whether the plan is in force that day."""
        return self.plan.effective <= day <= self.plan.expires
