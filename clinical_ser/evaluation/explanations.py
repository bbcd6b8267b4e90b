"""What a model goes by in a whole cohort, and how far its explanations can be relied on there.

No row of a person is in it: effects of families are means with intervals over subjects, effects of features are counted in bins.
"""

from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.evaluation.figure import Figure
from clinical_ser.evaluation.intervals import bootstrap
from clinical_ser.explain.effects import Effects, Explainer
from clinical_ser.features import catalogue
from clinical_ser.models.interpretable import EMBEDDING
from clinical_ser.models.reference import Person
from clinical_ser.models.rows import Rows, select_rows
from clinical_ser.models.trained import TrainedModel
from clinical_ser.models.weights import subject_weights
from clinical_ser.strict import Strict

Array = NDArray[np.float64]
FEATURES_SHOWN = 12
RELIABILITY_RECORDINGS = 100
"""Explained by all refits too, which takes forty times as long."""
BINS = 41
_WIDEST_PERCENTILE = 99.0
_METHOD = "cluster bootstrap"
RELIABILITY = {
    "main_driver": "share of recordings with a family that may be called the main driver",
    "first_agrees": "mean share of refits in which the first family comes first again",
    "stable_families": "mean share of families whose interval does not cross zero",
}
"""Of at most `RELIABILITY_RECORDINGS` recordings."""

Third = Literal["low", "middle", "high"]


class FamilySummary(Strict):
    """One family over all recordings."""

    family: str
    label_en: str
    size: Figure
    """Mean absolute effect on the probability (0.05 is five points of percent)."""
    first: Figure
    """Share of recordings in which it has the largest effect."""


class FeatureSummary(Strict):
    """One feature over all recordings: a beeswarm, in bins."""

    name: str
    label_en: str
    family: str
    unit: str
    size: Figure
    """Mean absolute effect on the calibrated log-odds."""
    counts: dict[Third, tuple[int, ...]]
    """Recordings by effect (bins of `CohortExplanation.edges`), apart for the low, middle and high third of the feature's values."""


class CohortExplanation(Strict):
    """Families and features, largest first, and the reliability of explanations."""

    target: str | None
    """The class that is explained; None where each recording's most probable class is."""
    recordings: int
    subjects: int
    families: tuple[FamilySummary, ...]
    features: tuple[FeatureSummary, ...]
    edges: tuple[float, ...]
    """Of the bins of effects, in log-odds; effects beyond lie in the first and last bin."""
    reliability: dict[str, Figure]
    """By name, as `RELIABILITY` describes them."""
    inside: bool
    """The model learned from these recordings: effects are what they are, their reliability is not that of new people."""

    @model_validator(mode="after")
    def _counted_in_its_bins(self) -> Self:
        bins = max(0, len(self.edges) - 1)
        if any(len(counts) != bins for feature in self.features for counts in feature.counts.values()):
            raise ValueError("a feature has one count a bin")
        return self

    def without_features(self) -> "CohortExplanation":
        """Return it without what is only drawn."""
        return self.model_copy(update={"features": (), "edges": ()})


class Rerecorded(Strict):
    """What became of explanations when the same speech was recorded a little differently."""

    change: str
    """In words: `6 dB softer`."""
    probability: Figure
    """Mean absolute change of the probability of the class that was explained before."""
    effect: Figure
    """Mean absolute change of a family's effect on the probability."""
    correlation: Figure
    """Mean, over recordings, of the rank correlation of family effects before and after."""
    same_first: Figure
    """Share of recordings in which the same family comes first."""
    same_status: Figure
    """Share of recordings that are answered alike."""
    refused: int
    """Recordings that the gate refused after the change; they are in no figure."""


def explain_cohort(
    model: TrainedModel,
    table: FeatureTable,
    *,
    inside: bool,
    prevalence: float | None = None,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> CohortExplanation:
    """Explain every recording of a cohort, and sum up.

    Parameters
    ----------
    model
        The model.
    table
        The cohort; its usable, labelled rows are explained, those that the model is evaluated on.
    inside
        Whether the model learned from them.
    prevalence
        What probabilities are stated for; None takes the model's.
    replicates, level, seed
        Of the bootstrap over subjects.

    Returns
    -------
    CohortExplanation
        Every recording is explained against the group most like its speaker, as in its result. Subjects count once in binary tasks, recordings
        in others, as in all figures.
    """
    rows = select_rows(table, model.task, model.features, use_baseline=model.uses_baseline, used_as="explained").rows
    explainer = Explainer(model)
    groups = [model.reference.for_person(Person.of_row(row)) for row in rows.frame.to_dict("records")]
    targets = _targets(model, rows.X)
    effects = explainer.table(rows.X, targets=targets, groups=groups, prevalence=prevalence)
    probability, log_odds = (np.array([getattr(one, name)[0] for one in effects]) for name in ("probability", "features"))
    some = np.sort(np.random.default_rng([seed, 3]).permutation(len(targets))[:RELIABILITY_RECORDINGS])
    # One by one: all refits of many recordings at once would take gigabytes with thousands of features.
    again = [explainer.effects(rows.X[i], target=targets[i], group=groups[i], prevalence=prevalence) for i in some]
    summed = _Summed(rows.subjects, subjects_count=model.binary, replicates=replicates, level=level, seed=seed)
    sizes, firsts = summed.figures(np.abs(probability)), summed.figures(_is_first(probability), share=True)
    reliable = _Summed(rows.subjects[some], subjects_count=model.binary, replicates=replicates, level=level, seed=seed)
    edges = _edges(log_odds)
    return CohortExplanation(
        target=targets[0] if model.binary else None,
        recordings=len(targets),
        subjects=len(np.unique(rows.subjects)),
        families=tuple(
            FamilySummary(family=name, label_en=catalogue.get_family(name).label_en, size=sizes[i], first=firsts[i])
            for i, name in sorted(enumerate(model.head.families_), key=lambda item: -(sizes[item[0]].value or 0.0))
        ),
        features=_features(rows, log_odds, summed, edges),
        edges=tuple(edges.tolist()),
        reliability=dict(zip(RELIABILITY, reliable.figures(np.array([_reliability(one) for one in again]), share=True), strict=True)),
        inside=inside,
    )


def _targets(model: TrainedModel, X: Array) -> list[str]:
    """Return what is explained of each recording: the positive class, or of several the most probable one."""
    classes = model.task.classes
    return [classes[1]] * len(X) if model.binary else [classes[k] for k in model.log_odds(X).argmax(axis=1)]


def _is_first(probability: Array) -> Array:
    return np.asarray(np.abs(probability).argmax(axis=1)[:, None] == np.arange(probability.shape[1]), np.float64)


def _reliability(effects: Effects) -> tuple[float, float, float]:
    """In the order of `RELIABILITY`."""
    first = int(np.abs(effects.probability[0]).argmax())
    return float(effects.main_driver is not None), float(effects.rank_agreement[first]), float(effects.stable.mean())


class _Summed:
    """Means over a cohort, with intervals over its subjects."""

    def __init__(self, subjects: NDArray[np.str_], *, subjects_count: bool, replicates: int, level: float, seed: int):
        self._subjects = subjects
        self._weight = subject_weights(subjects, len(subjects)) if subjects_count else np.ones(len(subjects))
        self._replicates, self._level, self._seed = replicates, level, seed

    def figures(self, values: Array, *, share: bool = False) -> list[Figure]:
        """Return the mean of each column of `values`, shape (rows, columns); shares lie between 0 and 1."""
        people = len(np.unique(self._subjects))
        drawn = bootstrap(
            lambda weight: weight @ values / weight.sum(),
            self._subjects,
            weight=self._weight,
            replicates=self._replicates,
            level=self._level,
            seed=self._seed,
        )
        return [
            Figure.of(drawn.values[i], *drawn.interval(i, subjects=people, share=share), subjects=people, recordings=len(values), method=_METHOD)
            for i in range(values.shape[1])
        ]


def _edges(effects: Array) -> Array:
    """Return edges of bins around zero that hold nearly all effects of the features that matter."""
    largest = np.sort(np.abs(effects).mean(axis=0))[-FEATURES_SHOWN:].min()
    shown = effects[:, np.abs(effects).mean(axis=0) >= largest]
    reach = float(np.percentile(np.abs(shown), _WIDEST_PERCENTILE)) or 1.0
    return np.linspace(-reach, reach, BINS + 1)


def _features(rows: Rows, effects: Array, summed: _Summed, edges: Array) -> tuple[FeatureSummary, ...]:
    families = [catalogue.get(name).family for name in rows.names]
    order = [i for i in np.argsort(-np.abs(effects).mean(axis=0), kind="stable").tolist() if families[i] != EMBEDDING][:FEATURES_SHOWN]
    sizes = summed.figures(np.abs(effects[:, order])) if order else []
    return tuple(
        FeatureSummary(
            name=rows.names[i],
            label_en=catalogue.get(rows.names[i]).label_en,
            family=families[i],
            unit=catalogue.get(rows.names[i]).unit,
            size=size,
            counts=_counted(rows.X[:, i], effects[:, i], edges),
        )
        for i, size in zip(order, sizes, strict=True)
    )


def _counted(values: Array, effects: Array, edges: Array) -> dict[Third, tuple[int, ...]]:
    """Count effects in bins, apart for each third of the values; recordings without the value are left out."""
    known = np.isfinite(values)
    low, high = np.quantile(values[known], (1 / 3, 2 / 3)) if known.any() else (0.0, 0.0)
    thirds: dict[Third, NDArray[np.bool_]] = {"low": values <= low, "middle": (values > low) & (values <= high), "high": values > high}
    inside = np.clip(effects, edges[0], edges[-1])
    return {third: tuple(np.histogram(inside[known & of], edges)[0].tolist()) for third, of in thirds.items()}
