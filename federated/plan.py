"""What a run will do, written down before it starts: everything a site has to know to say yes or no.

The one idea: a plan is its bytes. Its digest is what people approve, what keys are bound to and what every message names; who is in the sum, which
statistics will be asked for and what is trained cannot change after that.
"""

import hashlib
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator

from clinical_ser.cohorts.tasks import Task, TaskKind
from clinical_ser.errors import FederationError
from clinical_ser.models.bundle import ModelName, Version
from clinical_ser.models.strict_json import StrictJsonError, canonical_json, parse_canonical_object
from clinical_ser.strict import Strict
from federated.boosting import BoostingSettings
from federated.names import Hex32, SiteName
from federated.protocols.cohort import GROUPS
from federated.training import STRENGTHS, Settings
from federated.version import code_digest

SCHEMA: Literal["clinical-ser/federated-plan/1"] = "clinical-ser/federated-plan/1"
MINIMUM_SITES = 3
"""Of two sites, each works out the other's numbers by subtracting its own."""
PERSONS = frozenset({"subject", "recording", "row"})
"""Columns whose values stand for one person: a count of these is about somebody, however many sites are in the sum."""
MOST_EXCHANGES_LINEAR = 25
MOST_EXCHANGES = 150
MOST_BYTES = 4 << 20
LINEAR = ("cohort", "moments", "newton", "calibration", "scores", "evaluation", "reference")
"""What a linear model is trained, evaluated and described with."""
BOOSTED = ("cohort", "moments", "tree_start", "tree_sums", "tree_centres", "calibration", "scores", "evaluation", "reference")
"""The same of boosted trees."""
LOCAL = (*LINEAR, "stacking")
"""The same of a linear model with trees of each site's own under it."""
STATISTICS: dict[str, tuple[str, ...]] = {"linear": LINEAR, "boosted": BOOSTED, "linear+local": LOCAL}
"""What a plan of training asks for, by its head."""
Kind = Literal["train", "update", "recalibrate", "monitor", "gate"]
KINDS: dict[Kind, tuple[str, ...]] = {
    "train": (),
    "update": ("cohort", "newton", "calibration", "scores", "evaluation", "reference"),
    "recalibrate": ("cohort", "calibration", "scores", "evaluation"),
    "monitor": ("drift",),
    "gate": ("comparison",),
}
"""What the other kinds of run ask for; whoever asks for anything else in one is refused. Training may ask for whatever its plan names."""
EXCHANGES: dict[Kind, int] = {"update": 20, "recalibrate": 16, "monitor": 2, "gate": 2}
"""How many questions the other kinds take at most."""
SINCE = ("kind", "parent", "frozen", "challenger", "change_plan", "forgetting", "step")
"""Fields that the first plans did not have: left out of the spelling where they say what a plan without them means, so that old plans keep their
bytes, and the digests that people approved."""

Fingerprint = Annotated[str, StringConstraints(min_length=1, max_length=10_000, pattern=r"^[^\x00-\x1f\x7f]*$")]
Word = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]*$")]


class Participant(Strict):
    """One site."""

    name: SiteName
    identity: Hex32
    """Ed25519 public key."""


class Plan(Strict):
    """A run."""

    schema_id: Literal["clinical-ser/federated-plan/1"] = SCHEMA
    kind: Kind = "train"
    """What comes out: a model from nothing (`train`); the parent's child (`update`, `recalibrate`); counts (`monitor`); each site's comparison of two
    models (`gate`)."""
    parent: Hex32 | None = None
    """Digest of the bundle that is updated, watched or compared with: the champion."""
    challenger: Hex32 | None = None
    """Digest of the bundle that a gate compares with the parent."""
    change_plan: Hex32 | None = None
    """Digest of the change-control plan that a gate is held to."""
    frozen: Hex32 | None = None
    """Digest of what all questions have in common and no answer may move: scales, and the head where it stays (`asking.frozen_digest`)."""
    forgetting: Annotated[float, Field(gt=0, le=1)] | None = None
    """Factor by which what the parent learned counts less, of an update; of a recalibration, if given, the parent's scores out of fold."""
    step: Literal["intercept", "slope"] | None = None
    """How much of the calibration moves, of a recalibration; None: as much as the test says is justified, and nothing where that is nothing."""
    run: SiteName
    """Name of the run; a node knows no two of one name."""
    name: ModelName
    version: Version
    task: Task
    features: Annotated[tuple[Word, ...], Field(min_length=1, max_length=20_000)]
    software: Hex32 = Field(default_factory=code_digest)
    """Digest of the code that computes the statistics (`version.code_digest`): a site with another refuses."""
    extractors: dict[Word, Fingerprint]
    """Feature set to the fingerprint of the code that measured it: sites that measured with another refuse."""
    head: Literal["linear", "boosted", "linear+local"] = "linear"
    folds: int = Field(default=5, ge=2, le=20)
    fold_column: Word | None = None
    """Column of the sites' tables that says in which fold a subject is; None: by the digest of seed and subject."""
    strengths: Annotated[tuple[Annotated[float, Field(gt=0, le=1e9)], ...], Field(min_length=1, max_length=20)] = STRENGTHS
    refits: int = Field(default=40, ge=2, le=200)
    coverage: float = Field(default=0.90, gt=0, lt=1)
    seed: int = Field(default=0, ge=0, lt=2**32)
    groups: dict[Word, tuple[Word, ...]] = Field(default_factory=lambda: dict(GROUPS), max_length=20)
    checks: tuple[Word, ...] = ()
    boosting: BoostingSettings | None = None
    """How trees are grown, of a boosted head; None: as this version does without being told."""
    statistics: Annotated[tuple[Word, ...], Field(min_length=1, max_length=50)] = LINEAR
    sites: Annotated[tuple[Participant, ...], Field(min_length=1, max_length=1000)]
    minimum_sites: int = Field(default=MINIMUM_SITES, ge=MINIMUM_SITES)
    coordinator: Hex32
    """Ed25519 public key."""
    created: datetime

    @model_validator(mode="after")
    def _sound(self) -> Self:
        names, keys = [site.name for site in self.sites], [site.identity for site in self.sites]
        if len(set(names)) != len(names) or len(set(keys)) != len(keys):
            raise ValueError("each site and each key once")
        if names != sorted(names):
            raise ValueError("sites come in the order of their names")
        if len(set(self.features)) != len(self.features):
            raise ValueError("each feature once")
        if len(self.sites) < self.minimum_sites:
            raise ValueError(f"at least {self.minimum_sites} sites")
        if self.task.kind is not TaskKind.BINARY:
            raise ValueError("a task of two classes")
        if self.head == "boosted" and self.boosting is not None and self.boosting.depth * self.boosting.rounds + 10 > MOST_EXCHANGES:
            raise ValueError(f"trees that take at most {MOST_EXCHANGES} exchanges: fewer rounds, or less depth")
        if PERSONS & {*self.groups, self.fold_column}:
            raise ValueError("groups of people, and none by a column that names one person or recording")
        self._check_kind()
        if self.created.tzinfo is None:
            raise ValueError("a moment with its time zone")
        return self

    def _check_kind(self) -> None:
        needs = {
            "parent": self.kind != "train",
            "challenger": self.kind == "gate",
            "change_plan": self.kind == "gate",
            "frozen": self.kind in {"update", "recalibrate"},
            "forgetting": self.kind == "update",
        }
        optional = {"forgetting"} if self.kind == "recalibrate" else set()
        for name, needed in needs.items():
            if name not in optional and (getattr(self, name) is not None) != needed:
                raise ValueError(f"{name} {'is needed' if needed else 'has no place'} in a plan of kind {self.kind}")
        if self.step is not None and self.kind != "recalibrate":
            raise ValueError(f"step has no place in a plan of kind {self.kind}")
        if self.kind == "gate" and self.parent == self.challenger:
            raise ValueError("champion and challenger are two models")
        if self.kind != "train" and (self.head != "linear" or self.boosting is not None):
            raise ValueError(f"a linear head, in a plan of kind {self.kind}; trees are trained anew")
        if self.kind != "train" and set(self.statistics) != set(KINDS[self.kind]):
            raise ValueError(f"the statistics of kind {self.kind}: {', '.join(KINDS[self.kind])}")

    def to_bytes(self) -> bytes:
        """Return the plan's one spelling."""
        told = self.model_dump(mode="json")
        return canonical_json({name: value for name, value in told.items() if name not in SINCE or value != type(self).model_fields[name].default})

    @property
    def digest(self) -> str:
        """Return sha256 of the plan's bytes, in hex."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @classmethod
    def from_bytes(cls, raw: bytes) -> "Plan":
        """Read a plan; FederationError where it is none, naming the fields that do not fit."""
        if len(raw) > MOST_BYTES:
            raise FederationError("The plan is too long to be one.")
        try:
            plan = cls.model_validate_json(raw)
            parse_canonical_object(raw)
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(str(part) for part in fault['loc']) or 'the whole'}: {fault['msg']}" for fault in error.errors()[:5])
            raise FederationError(f"The plan does not follow its schema ({faults}).") from None
        except StrictJsonError as error:
            raise FederationError(f"The plan is not in canonical JSON: {error}.") from None
        if plan.to_bytes() != raw:
            raise FederationError("The plan is not in its one spelling.")
        return plan

    @property
    def most_exchanges(self) -> int:
        """How many questions sites answer at most: enough for training, too few to go on until one person is singled out."""
        if self.kind != "train":
            return EXCHANGES[self.kind]
        return MOST_EXCHANGES_LINEAR if self.head == "linear" else MOST_EXCHANGES

    @property
    def site_names(self) -> tuple[str, ...]:
        """Names of the sites, in order."""
        return tuple(site.name for site in self.sites)

    @property
    def settings(self) -> Settings:
        """What is trained, as `train_across` takes it."""
        return Settings(
            task=self.task,
            features=self.features,
            extractors=self.extractors,
            folds=self.folds,
            strengths=self.strengths,
            refits=self.refits,
            coverage=self.coverage,
            seed=self.seed,
            groups=self.groups,
            checks=self.checks,
            head="boosted" if self.head == "boosted" else "linear",
            boosting=self.boosting or BoostingSettings(),
        )


def read_plan(path: Path) -> Plan:
    """Read a plan's file; FederationError where it cannot be read or is none."""
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise FederationError(f"The plan cannot be read: {error.strerror}.") from None
    return Plan.from_bytes(raw)
