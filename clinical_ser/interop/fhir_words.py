"""What a result says in words, for FHIR resources: the conclusion of a report, the reason of a prediction, a group beside a value.

The one idea: words and numbers of one resource are written from the same fields, and where a result has no number for its reader, no word gives it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from clinical_ser.audit.events import Role
from clinical_ser.explain.explanation import Explanation
from clinical_ser.interop.fhir_terms import number, text_of
from clinical_ser.screening.measures import Measure
from clinical_ser.screening.result import ClassProbability, ScreeningResult, Status

SIMULATED = "This model was trained on simulated speech: its answers mean nothing for a real person."
_MOST_FAMILIES = 3
_LEAST_SAID, _MOST_SAID = 0.01, 0.99
"""Beyond these a whole percent would be a certainty that no model has."""
_LOWEST, _HIGHEST = 5.0, 95.0
"""A reference group is kept as quantiles; further out nothing is known (`Measure.percentile`)."""


@dataclass(frozen=True)
class Reviewed:
    """A review: what was decided, why, when, under which printed name, and in which role whoever told it acted.

    With the role `SERVICE` it is what a record system reported (feedback on a card, say), which does not tell who decided.
    """

    decision: Literal["agreed", "overridden", "undecided"]
    reason: str = field(repr=False)
    time: datetime
    name: str | None = field(default=None, repr=False)
    role: Role = Role.CLINICIAN

    @property
    def by_system(self) -> bool:
        """Whether it is a system's word, and nobody's signature."""
        return self.role is Role.SERVICE


def percent(probability: float) -> str:
    """Return a probability in words.

    Examples
    --------
    >>> percent(0.314), percent(0.0003), percent(0.9999)
    ('31 %', 'under 1 %', 'over 99 %')
    """
    if probability < _LEAST_SAID:
        return "under 1 %"
    return "over 99 %" if probability > _MOST_SAID else f"{100 * probability:.0f} %"


def share(prevalence: float) -> str:
    """Return a prevalence in words, which is known and no model's guess: two significant digits, as the reports have it.

    Examples
    --------
    >>> share(0.1), share(0.009), share(0.00052), share(0.995)
    ('10 %', '0.9 %', '0.052 %', '99.5 %')
    """
    # Of a large share two digits of what is missing, so that it does not become 100 %.
    shown = float(f"{prevalence:.2g}") if prevalence <= _MOST_SAID else 1 - float(f"{1 - prevalence:.2g}")
    return f"{number(100 * shown):g} %"


def class_name(label: str) -> str:
    """Return a class's name as words."""
    return label.replace("_", " ")


def outcome(result: ScreeningResult, label: str) -> str:
    """Return what a class is, with the questionnaire's score that defines it.

    A class without one is called by its name alone.
    """
    defined = result.defined_by
    if defined is None or defined.label != label:
        return text_of(class_name(label))
    return text_of(f"{class_name(label)} ({defined.score} ≥ {defined.cutoff:g})")


def method(result: ScreeningResult) -> str:
    """Return which model answered, and whether this installation trusts it."""
    model = result.model
    encoders = ", ".join(f"{name} ({fingerprint})" for name, fingerprint in model.encoders.items())
    parts = (
        f"clinical-ser model {model.name} {model.version} ({model_digest(result)}), calibrated probability",
        "without the embeddings that it also has" if model.without_embedding else "",
        f"encoders: {encoders}" if encoders else "",
        f"signature of the model: {model.signature}",
    )
    return text_of("; ".join(part for part in parts if part))


def model_digest(result: ScreeningResult) -> str:
    """Return the model's digest as `sha256:` and 64 hex digits."""
    return f"sha256:{result.model.digest}"


def engines(result: ScreeningResult) -> str:
    """Return with which software a recording was measured."""
    return text_of(", ".join(f"{name} {version}" for name, version in result.software.items()))


def stated(probability: ClassProbability) -> str:
    """Return a probability with its interval and the prevalence it is stated for."""
    interval = probability.interval
    return (
        f"{percent(probability.value)} ({percent(interval.low)} to {percent(interval.high)}, {100 * interval.level:g} % interval of the model's "
        f"sampling error, no range for this person's risk), where {share(probability.prevalence)} of those screened are "
        f"{class_name(probability.label)!r}"
    )


def rationale(result: ScreeningResult, label: str, probability: ClassProbability | None) -> str:
    """Return why a prediction is as it is; without its number where it has none."""
    parts = [f"Probability: {stated(probability)}." if probability else f"No number is given: {result.summary}"]
    if result.prediction_coverage is not None:
        members = ", ".join(class_name(member) for member in result.prediction_set) or "empty"
        parts.append(f"Prediction set: {members} (holds the truth for {percent(result.prediction_coverage)} of the people of each class).")
    # What a family adds is told in points of the probability, from which that would follow.
    if probability and (told := result.explanation) and told.target == label:
        parts += _families(told)
    return text_of(" ".join(parts))


def _families(told: Explanation) -> list[str]:
    sure = [family for family in told.families if family.stable][:_MOST_FAMILIES]
    if not sure:
        return []
    said = ", ".join(f"{family.label_en} {100 * family.probability.value:+.0f} points of percent" for family in sure)
    return [f"What surely moved it, against {told.reference.group}: {said}. No cause is named."]


def conclusion(result: ScreeningResult, reviews: Sequence[Reviewed]) -> str:
    """Return the report's conclusion: the decisions that stand first, then the answer, then what it is for."""
    told = [
        *map(reviewed, reviews),
        SIMULATED if result.model.simulated else "",
        result.summary,
        f"Probability of {outcome(result, result.probability.label)!r}: {stated(result.probability)}."
        if result.probability and result.status.has_number
        else "",
        *result.notices,
        result.intended_use,
        "" if any(not review.by_system for review in reviews) or result.status is Status.NOT_USABLE else "No clinician has reviewed it yet.",
    ]
    return text_of("\n\n".join(part for part in told if part))


def reviewed(review: Reviewed) -> str:
    """Return what a clinician decided, or what a record system says that somebody did."""
    did = {"agreed": "agreed with this answer", "overridden": "overrode this answer", "undecided": "looked at this answer and left it open"}
    by = "The record system reported that somebody" if review.by_system else f"A clinician ({review.name})" if review.name else "A clinician"
    return text_of(f"{by} {did[review.decision]}: {review.reason.strip() or 'no reason given'}")


def beside(measure: Measure, result: ScreeningResult, unit: str) -> list[str]:
    """Return what a value can be read against: the reference group's middle half, and what was published. Neither is a cut-off."""
    told = []
    if band := measure.band:
        reference = result.explanation.reference if result.explanation else None
        people = f", {reference.subjects} people" if reference and reference.subjects else ""
        group = f" ({reference.group}{people})" if reference else ""
        where = f" This value: {_percentile(measure.percentile)}." if measure.percentile is not None else ""
        told.append(
            f"Middle half of the reference group{group}: {number(band.low):g} to {number(band.high):g} {unit}. Half of its people lie outside.{where}"
        )
    if measure.published:
        told.append(f"Published for speech: {measure.published}. Context, not a cut-off.")
    return [text_of(one) for one in told]


def _percentile(percentile: float) -> str:
    if percentile <= _LOWEST:
        return "at or below the group's 5th percentile"
    return "at or above the group's 95th percentile" if percentile >= _HIGHEST else f"percentile {percentile:.0f} of the group"
