"""From numbers to an explanation: families in order, the features that count in each, the group, and what stands out in words."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clinical_ser.explain import wording
from clinical_ser.explain.effects import Effects, Explainer, half_widths
from clinical_ser.explain.explanation import (
    Estimate,
    Explanation,
    FamilyContribution,
    FeatureBand,
    FeatureContribution,
    Reference,
    WithoutEmbedding,
)
from clinical_ser.explain.what_if import moves
from clinical_ser.features import catalogue
from clinical_ser.features.vector import FeatureVector
from clinical_ser.models.interpretable import EMBEDDING
from clinical_ser.models.reference import Person, ReferenceGroup
from clinical_ser.models.trained import TrainedModel

Array = NDArray[np.float64]
FEATURES_SHOWN = 3
AVERAGE_RECORDING = "average training recording"


def explain(
    explainer: Explainer, vector: FeatureVector, *, target: str, person: Person | None = None, prevalence: float | None = None
) -> Explanation:
    """Explain the answer to one recording.

    Parameters
    ----------
    explainer
        Of the model that answered.
    vector
        The recording's features in the model's order, as they entered it before imputation.
    target
        The class whose probability is explained.
    person
        What is known of whom was recorded; it chooses the reference group and nothing else.
    prevalence
        What the probability is stated for; None takes the model's.

    Returns
    -------
    Explanation
        Families by size of their effect on the probability.
    """
    model, person = explainer.model, person or Person()
    group = model.reference.for_person(person)
    effects = explainer.effects(vector.values, target=target, group=group, prevalence=prevalence)
    reference = None if group is None else model.reference.groups[group]
    return Explanation(
        target=target,
        scale="calibrated_log_odds" if model.binary else "calibrated_centred_logit",
        relative_to_baseline=model.uses_baseline,
        reference=_reference(reference, model.reference.unmatched(person, group)),
        base_probability=float(effects.base_probability[0]),
        probability=min(max(effects.stated_probability, 0.0), 1.0),
        base_log_odds=float(effects.base_log_odds[0]),
        log_odds=effects.stated_log_odds,
        families=_families(model, effects, vector, reference, explainer.percentiles(effects, group)),
        moves=moves(explainer, effects, model.log_odds(vector.values[None])[0], group),
        without_embedding=_without_embedding(model, vector, target, prevalence),
    )


def _reference(group: ReferenceGroup | None, unmatched: tuple[str, ...]) -> Reference:
    if group is None:
        return Reference(group=AVERAGE_RECORDING, subjects=None, unmatched=unmatched)
    asked = group.conditions
    return Reference(
        group=group.name,
        subjects=group.subjects,
        people=group.title,
        sex=asked.sex,
        age_years=asked.age,
        task=asked.task,
        device=asked.device,
        unmatched=unmatched,
    )


def estimates(versions: Array) -> list[Estimate]:
    """Return each column's value in the model with its interval over refits; `versions` has shape (1 + refits, columns)."""
    half = half_widths(versions)
    return [Estimate(value=float(v), low=float(v - h), high=float(v + h)) for v, h in zip(versions[0], half, strict=True)]


def _families(
    model: TrainedModel, effects: Effects, vector: FeatureVector, reference: ReferenceGroup | None, percentiles: Array | None
) -> tuple[FamilyContribution, ...]:
    probability, log_odds, agreement = estimates(effects.probability), estimates(effects.log_odds), effects.rank_agreement
    stable, driver = effects.stable, effects.main_driver
    readable = np.array([catalogue.get(name).readable for name in vector.names]) & np.isfinite(vector.values)
    found = []
    for rank, i in enumerate(np.argsort(-np.abs(effects.probability[0]), kind="stable").tolist(), start=1):
        name = effects.families[i]
        texts = catalogue.get_family(name)
        features = () if name == EMBEDDING else _features(model, effects, np.flatnonzero((model.family_columns == i) & readable), vector, reference)
        found.append(
            FamilyContribution(
                family=name,
                label_en=texts.label_en,
                label_zh=texts.label_zh,
                probability=probability[i],
                log_odds=log_odds[i],
                stable=bool(stable[i]),
                rank=rank,
                rank_agreement=float(agreement[i]),
                main_driver=i == driver,
                percentile=None if percentiles is None else float(percentiles[i]),
                features=features,
                sentence=wording.family_sentence(name, features, raises=probability[i].value > 0, relative=model.uses_baseline),
            )
        )
    return tuple(found)


def _features(
    model: TrainedModel, effects: Effects, members: NDArray[np.intp], vector: FeatureVector, reference: ReferenceGroup | None
) -> tuple[FeatureContribution, ...]:
    """Return the features with the largest contributions among `members`: a family's, measured, and such as a reader can make something of."""
    if not len(members):
        return ()
    sizes = np.abs(effects.features[:, members])
    order = np.argsort(-sizes, axis=1, kind="stable")[:, :FEATURES_SHOWN]
    shown_again = [float((order[1:] == place).any(axis=1).mean()) for place in order[0]]
    told = estimates(effects.features[:, members[order[0]]])
    return tuple(
        _feature(vector.names[i], float(vector.values[i]), estimate, again, reference, relative=model.uses_baseline)
        for i, estimate, again in zip(members[order[0]].tolist(), told, shown_again, strict=True)
    )


def _feature(
    name: str, value: float, log_odds: Estimate, agreement: float, reference: ReferenceGroup | None, *, relative: bool
) -> FeatureContribution:
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
        stable=log_odds.stable,
        rank_agreement=agreement,
        percentile=percentile,
        band=band_of(name, reference),
        published=None if relative else published(spec),
        stands_out=percentile is not None and not wording.TAIL_PERCENT < percentile < 100 - wording.TAIL_PERCENT,
        sentence=wording.feature_sentence(spec, percentile, relative=relative),
    )


def band_of(name: str, reference: ReferenceGroup | None) -> FeatureBand | None:
    """Return where the middle half of a group lies; None without a group, or where the group does not know the feature."""
    known = reference.middle_half(name) if reference else None
    return FeatureBand(low=known[0], high=known[1]) if known else None


def published(spec: catalogue.FeatureSpec) -> str | None:
    """Return the published references for speech, by sex, each with its source; None where there is no sound one."""
    # A range from sustained vowels says nothing about running speech, which is what is screened.
    of_speech = {sex: known for sex, known in spec.reference.items() if known.condition == "speech"}
    return "; ".join(f"{sex}: {_span(known)} {spec.unit} ({known.statistic}; {known.source})" for sex, known in of_speech.items()) or None


def _span(known: catalogue.ReferenceRange) -> str:
    return f"{known.low:g}" if known.low == known.high else f"{known.low:g} to {known.high:g}"


def _without_embedding(model: TrainedModel, vector: FeatureVector, target: str, prevalence: float | None) -> WithoutEmbedding | None:
    twin, reproduced = model.interpretable, model.reproduced
    if twin is None or reproduced is None:
        return None
    named = [vector.names.index(name) for name in twin.features]
    plain, whole = (asked.answer(values, prevalence=prevalence) for asked, values in ((twin, vector.values[named]), (model, vector.values)))
    k = model.task.classes.index(target)
    return WithoutEmbedding(
        probability=Estimate(value=float(plain.probabilities[k]), low=float(plain.low[k]), high=float(plain.high[k])),
        status=plain.status,
        label=target if model.binary else model.task.classes[int(np.argmax(plain.probabilities))],
        disagrees=_said(plain.status, plain.probabilities) != _said(whole.status, whole.probabilities),
        reproduced_r2=Estimate(value=reproduced.r2, low=reproduced.low, high=reproduced.high),
        reproduced_subjects=reproduced.subjects,
    )


def _said(status: str, probabilities: Sequence[float] | Array) -> tuple[str, int]:
    """Return what an answer amounts to: its status, and of several classes the one it names."""
    return status, int(np.argmax(probabilities)) if status == "classified" else -1
