"""What moved a score: families first, features inside them, on the calibrated log-odds.

Both heads are sums over families by construction, so a family's contribution is unique and the contributions add up exactly to the
distance between this recording's log-odds and the average training subject's. A contribution says what changed the score; it names no cause.
"""

from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from clinical_ser.features import catalogue
from clinical_ser.features.vector import FeatureVector
from clinical_ser.models.reference import ReferenceGroup
from clinical_ser.models.trained import Contributions

COMPLETENESS = 1e-6
_FEATURES_PER_FAMILY = 3
_TAIL_PERCENT = 10.0


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Reference(_Strict):
    """Where the middle half of a reference group lies, and which group that is."""

    group: str
    subjects: int
    low: float
    high: float


class FeatureContribution(_Strict):
    """One feature: its value and unit, where it stands among the reference group, and what it added to the log-odds."""

    name: str
    label_en: str
    label_zh: str
    meaning_en: str
    meaning_zh: str
    unit: str
    value: float
    log_odds: float
    percentile: float | None
    """Share of the reference group below this value, in percent; between 5 and 95, since only quantiles of the group are kept."""
    reference: Reference | None
    published: str | None
    """A published reference for speech, with its source, where a sound one exists."""
    stands_out: bool
    """Below the 10th or above the 90th percentile of the reference group."""


class FamilyContribution(_Strict):
    """One family: what it added to the log-odds, with the interval over refits on other subjects."""

    family: str
    log_odds: float
    low: float
    high: float
    stable: bool
    """The interval does not cross zero."""
    features: tuple[FeatureContribution, ...]
    """Those with the largest contributions, largest first."""


class Explanation(_Strict):
    """`base_log_odds` (the average training subject) plus the families' contributions is `log_odds`, to 1e-6."""

    target: str
    scale: Literal["calibrated_log_odds", "calibrated_centred_logit"]
    relative_to_baseline: bool = False
    """Values are differences from the person's own baseline recordings."""
    base_log_odds: float
    log_odds: float
    families: tuple[FamilyContribution, ...]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        gap = self.base_log_odds + sum(family.log_odds for family in self.families) - self.log_odds
        if abs(gap) > COMPLETENESS:
            raise ValueError(f"contributions miss the log-odds by {gap:.2g}")
        return self


def explain(
    vector: FeatureVector,
    contributions: Contributions,
    *,
    target: str,
    scale: Literal["calibrated_log_odds", "calibrated_centred_logit"],
    reference: ReferenceGroup | None,
    relative: bool = False,
) -> Explanation:
    """Put the contributions of one recording into words and order.

    Parameters
    ----------
    vector
        The recording's features, as they entered the model before imputation.
    contributions
        Of the calibrated log-odds, as the model takes them apart.
    target
        The class that is explained.
    scale
        `calibrated_log_odds` for two classes; for more, the class's logit less the mean over classes.
    reference
        The group for percentiles; None where the cohort was too small to publish one.
    relative
        The values are differences from the person's own baseline: published ranges do not apply.

    Returns
    -------
    Explanation
        Families by size of contribution.
    """
    order = {name: i for i, name in enumerate(vector.names)}
    families = [
        _family(family, [order[name] for name in names], vector, contributions, reference, relative)
        for family, names in catalogue.by_family(vector.names).items()
        if names
    ]
    families.sort(key=lambda family: -abs(family.log_odds))
    return Explanation(
        target=target,
        scale=scale,
        relative_to_baseline=relative,
        base_log_odds=contributions.base,
        log_odds=contributions.log_odds,
        families=tuple(families),
    )


def _family(
    family: str,
    positions: Sequence[int],
    vector: FeatureVector,
    contributions: Contributions,
    reference: ReferenceGroup | None,
    relative: bool,
) -> FamilyContribution:
    measured = [i for i in positions if np.isfinite(vector.values[i])]
    largest = sorted(measured, key=lambda i: -abs(contributions.features[i]))[:_FEATURES_PER_FAMILY]
    low, high = contributions.intervals[family]
    return FamilyContribution(
        family=family,
        log_odds=contributions.families[family],
        low=low,
        high=high,
        stable=low > 0 or high < 0,
        features=tuple(_feature(vector.names[i], float(vector.values[i]), float(contributions.features[i]), reference, relative) for i in largest),
    )


def _feature(name: str, value: float, log_odds: float, reference: ReferenceGroup | None, relative: bool) -> FeatureContribution:
    spec = catalogue.get(name)
    percentile = reference.percentile(name, value) if reference else None
    return FeatureContribution(
        name=name,
        label_en=spec.label_en,
        label_zh=spec.label_zh,
        meaning_en=spec.meaning_en,
        meaning_zh=spec.meaning_zh,
        unit=spec.unit,
        value=value,
        log_odds=log_odds,
        percentile=percentile,
        reference=_band(name, reference) if reference else None,
        published=None if relative else _published(spec),
        stands_out=percentile is not None and not _TAIL_PERCENT < percentile < 100 - _TAIL_PERCENT,
    )


def _band(name: str, reference: ReferenceGroup) -> Reference | None:
    band = reference.middle_half(name)
    return Reference(group=reference.name, subjects=reference.subjects, low=band[0], high=band[1]) if band else None


def _published(spec: catalogue.FeatureSpec) -> str | None:
    # A range from sustained vowels says nothing about running speech, which is what is screened.
    of_speech = {sex: known for sex, known in spec.reference.items() if known.condition == "speech"}
    return "; ".join(f"{sex}: {_span(known)} {spec.unit} ({known.statistic}; {known.source})" for sex, known in of_speech.items()) or None


def _span(known: catalogue.ReferenceRange) -> str:
    return f"{known.low:g}" if known.low == known.high else f"{known.low:g} to {known.high:g}"
