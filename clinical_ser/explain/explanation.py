"""What a result says of its own reasons: strict objects, families first, each number with its interval and the group it is against.

A contribution says what changed the score; it names no cause.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from clinical_ser.strict import Strict

COMPLETENESS = 1e-6
MAIN_DRIVER_AGREEMENT = 0.80
"""Share of refits in which a family has to come first as well to be called the main driver: in refits on other subjects the top family agreed 54 to
74 % of the time on average, the top feature 14 to 30 %."""
MAIN_DRIVER_POINTS = 0.01
"""And it has to move the probability by a point of percent: less would be written as nothing, however surely it is so."""

Scale = Literal["calibrated_log_odds", "calibrated_centred_logit"]


class Words(Strict):
    """The same sentence in English and Chinese."""

    en: str
    zh: str


class Estimate(Strict):
    """A number with its 95 % interval over refits of the model on other subjects."""

    value: float
    low: float
    high: float

    @model_validator(mode="after")
    def _within(self) -> Self:
        if not self.low <= self.value <= self.high:
            raise ValueError("a number lies within its interval")
        return self

    @property
    def stable(self) -> bool:
        """Whether the interval does not cross zero."""
        return self.low > 0 or self.high < 0


class Reference(Strict):
    """Whom the recording was compared with."""

    group: str
    """In words; `average training recording` where the cohort was too small to have a group."""
    subjects: int | None = Field(ge=1)
    """How many people are in it; None for the average training recording."""
    people: str | None = None
    """Which people, as the group's name begins (`not depressed`); with the four below, the name in parts, to be said in another language."""
    sex: str | None = None
    age_years: tuple[int, int] | None = None
    """From the first to below the second."""
    task: str | None = None
    device: str | None = None
    unmatched: tuple[str, ...] = ()
    """What is known of the person (sex, age, task, device) and could not be matched for want of people."""


class FeatureBand(Strict):
    """Where the middle half of the reference group lies."""

    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError("a band goes from low to high")
        return self


class FeatureContribution(Strict):
    """One feature: its value and unit, where it stands among the reference group, and what it added to the log-odds."""

    name: str
    label_en: str
    label_zh: str
    meaning_en: str
    meaning_zh: str
    unit: str
    value: float
    log_odds: Estimate
    stable: bool
    """The interval of `log_odds` does not cross zero; what does is to be shown in grey."""
    rank_agreement: float = Field(ge=0, le=1)
    """Share of refits in which it is among the family's features that are shown."""
    percentile: float | None
    """Share of the reference group below this value, in percent; between 5 and 95, since only quantiles of the group are kept."""
    band: FeatureBand | None
    published: str | None
    """A published reference for speech, with its source, where a sound one exists."""
    stands_out: bool
    """Below the 10th or above the 90th percentile of the reference group."""
    sentence: Words


class FamilyContribution(Strict):
    """One family: what it added to the probability and to the log-odds, and how far refits of the model agree."""

    family: str
    label_en: str
    label_zh: str
    probability: Estimate
    """Shapley value of the calibrated probability; 0.05 is five points of percent."""
    log_odds: Estimate
    stable: bool
    """Neither interval crosses zero; what does is to be shown in grey."""
    rank: int = Field(ge=1)
    """By size of `probability`, from 1."""
    rank_agreement: float = Field(ge=0, le=1)
    """Share of refits in which it has this rank."""
    main_driver: bool
    """First, stable, first in at least 80 % of refits, and worth a point of percent."""
    percentile: float | None
    """Where this family's part stands in the reference group, in percent; None without a group, or for several classes."""
    features: tuple[FeatureContribution, ...]
    """Those with the largest contributions, largest first; none of an embedding, whose dimensions have no name."""
    sentence: Words

    @model_validator(mode="after")
    def _said_with_cause(self) -> Self:
        surely = self.stable and abs(self.probability.value) >= MAIN_DRIVER_POINTS
        if self.main_driver and (self.rank != 1 or not surely or self.rank_agreement < MAIN_DRIVER_AGREEMENT):
            raise ValueError("a main driver comes first, in at least 80 % of refits, is worth a point, and its interval does not cross zero")
        return self


class Move(Strict):
    """What-if, for engineers: how far one family alone would have to move to change the answer. Features cannot be moved one by one."""

    family: str
    to_status: str
    to_class: str | None = None
    """Of several classes, the most probable one then."""
    log_odds: float
    """What the family would have to add more (or less) than it does; of several classes, at the way's end towards the group's mean."""
    percentile_now: float | None
    percentile_then: float | None
    """Of the reference group; None for several classes."""
    within_reference: bool
    """Whether at least 5 % of the reference group lie as far out. Of several classes always: a family is moved no further than to the group's mean,
    so that moves away from it are not looked for."""


class WithoutEmbedding(Strict):
    """What the same model without embeddings answers, and how much of the embedding named features could tell."""

    probability: Estimate
    """Of the same class, at the same prevalence."""
    status: Literal["flagged", "not_flagged", "classified", "indeterminate"]
    label: str
    """The class of that answer: the positive one, or of several the most probable."""
    disagrees: bool
    """The two answers differ in status."""
    reproduced_r2: Estimate
    """Cross-validated R² of interpretable features for what the embedding adds, with its interval over subjects."""
    reproduced_subjects: int


class Explanation(Strict):
    """Families add up twice, to 1e-6: from `base_probability` to `probability`, and from `base_log_odds` to `log_odds`."""

    target: str
    scale: Scale
    relative_to_baseline: bool = False
    """Values are differences from the person's own baseline recordings."""
    reference: Reference
    base_probability: float = Field(ge=0, le=1)
    """Mean over the reference group."""
    probability: float = Field(ge=0, le=1)
    base_log_odds: float
    log_odds: float
    families: tuple[FamilyContribution, ...]
    moves: tuple[Move, ...] = ()
    without_embedding: WithoutEmbedding | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        sums = {
            "probability": (self.base_probability + sum(family.probability.value for family in self.families), self.probability),
            "log-odds": (self.base_log_odds + sum(family.log_odds.value for family in self.families), self.log_odds),
        }
        for what, (total, stated) in sums.items():
            if abs(total - stated) > COMPLETENESS:
                raise ValueError(f"contributions miss the {what} by {total - stated:.2g}")
        return self

    @property
    def main_driver(self) -> FamilyContribution | None:
        """The family that may be called the main driver, or None."""
        return next((family for family in self.families if family.main_driver), None)
