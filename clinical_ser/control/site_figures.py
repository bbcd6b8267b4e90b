"""What one site makes of its own holdout: figures of champion and challenger, their paired differences, and how well each is known.

The one idea: numbers leave the site and no row does, so that a comparison over sites is made from the same summaries whether or not the
tables lie together.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Annotated, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.control.figures import DISTANCE_TO_BEST, EXPLANATION_FIGURES
from clinical_ser.control.parts import ChangePlan, Holdout, Id, Sha256
from clinical_ser.errors import ChangePlanError, LeakError
from clinical_ser.evaluation import subgroups
from clinical_ser.evaluation.evaluating import interval_of
from clinical_ser.evaluation.evidence import EvaluatedModel
from clinical_ser.evaluation.figure import Figure
from clinical_ser.evaluation.figures import BinaryFigures, ClassFigures, figures_of
from clinical_ser.evaluation.intervals import Bootstrap, bootstrap
from clinical_ser.evaluation.naming import describe
from clinical_ser.evaluation.predictions import Predictions, check_extractors, predict
from clinical_ser.explain.effects import Explainer
from clinical_ser.models.bundle import VerifiedBundle
from clinical_ser.models.reference import Person
from clinical_ser.models.rows import Rows, select_rows
from clinical_ser.models.strict_json import StrictJsonError, canonical_json, parse_canonical_object, parse_json
from clinical_ser.models.trained import TrainedModel
from clinical_ser.models.training import cohort_digest
from clinical_ser.models.weights import subject_weights
from clinical_ser.strict import Strict

Array = NDArray[np.float64]
Count = Annotated[int, Field(ge=0)]
METHOD, PAIRED = "cluster bootstrap", "Newcombe, paired"
EXPLAINED_AT_MOST = 200
"""Recordings whose explanations are compared; drawn by the plan's seed."""
NOT_USABLE = "not_usable"
LARGEST_SUMMARY_BYTES = 5_000_000


class PairedFigure(Strict):
    """A figure of both models on the same recordings.

    Of figures that are best in the middle (calibration intercept and slope, observed to expected) the difference is one of distances to the best.
    """

    champion: Figure
    challenger: Figure
    difference: Figure
    """Challenger less champion, paired by person."""


class GroupFigures(Strict):
    """The same of one group of people."""

    column: str = Field(max_length=40)
    value: str = Field(max_length=200)
    subjects: Count
    enough: bool
    """Whether each class has people enough for figures; there are none otherwise."""
    figures: dict[str, PairedFigure]


class SiteFigures(Strict):
    """One site's summary."""

    site: Id
    table: Sha256
    plan: Sha256
    champion: Sha256
    challenger: Sha256
    subjects_by_class: dict[str, Count]
    subjects: Count
    recordings: Count
    answered_by_one: Count
    """Labelled recordings that only one of the two models could look at; they are in no figure but `not_usable`."""
    simulated: bool
    members_checked: bool
    """Whether it was looked up that nobody here taught either model."""
    prevalence: float | None
    """What probabilities are stated for (two classes)."""
    figures: dict[str, PairedFigure]
    groups: tuple[GroupFigures, ...]
    explanations: dict[str, Figure]

    @model_validator(mode="after")
    def _counts_fit(self) -> Self:
        """Refuse counts that no table has: a person is of one class at least, and has a recording at least."""
        by_class = self.subjects_by_class.values()
        if not max(by_class, default=0) <= self.subjects <= min(sum(by_class), self.recordings):
            raise ValueError("the numbers of people and recordings do not fit each other")
        groups = [(one.column, one.value) for one in self.groups]
        if len(set(groups)) != len(groups) or any(one.subjects > self.subjects or (one.figures and not one.enough) for one in self.groups):
            raise ValueError("the groups do not fit the people of the site")
        return self

    def to_json(self) -> bytes:
        """Return canonical JSON: what leaves the site."""
        return canonical_json(self.model_dump(mode="json"))

    @classmethod
    def from_json(cls, raw: bytes) -> Self:
        """Read a summary; ChangePlanError for bytes that are none."""
        try:
            if len(raw) > LARGEST_SUMMARY_BYTES:
                raise ChangePlanError("The summary has many megabytes, so it is none.")
            parse_canonical_object(raw)
            return cls.model_validate_json(raw)
        except (StrictJsonError, ValidationError):
            raise ChangePlanError("The file is no site's summary of this version; `clinical-ser gate` makes one at the site.") from None


def summaries_from_json(raw: bytes) -> tuple[SiteFigures, ...]:
    """Read one summary, or a list of them as a federated run leaves it (`sites.json`); ChangePlanError for bytes that are neither."""
    if not raw.startswith(b"["):
        return (SiteFigures.from_json(raw),)
    try:
        listed = parse_json(raw) if len(raw) <= LARGEST_SUMMARY_BYTES else None
    except StrictJsonError:
        listed = None
    if not isinstance(listed, list) or not listed:
        raise ChangePlanError("The file is no list of sites' summaries.")
    return tuple(SiteFigures.from_json(canonical_json(one)) for one in listed)


@dataclass(frozen=True)
class Members:
    """Whom a model learned from, by keyed tag, so that nobody is named.

    Attributes
    ----------
    tag
        Maps a subject to the tag.
    of
        Tags by bundle digest; a bundle that is not there is not checked.
    incomplete
        Bundles of whose people only some are known.
    """

    tag: Callable[[str], str]
    of: Mapping[str, AbstractSet[str]]
    incomplete: AbstractSet[str] = frozenset()


def table_digest(table: FeatureTable) -> str:
    """Return the sha256 of a table's content, in hex: columns by name, rows in order, extractors; whatever file it lies in."""
    digest = hashlib.sha256(canonical_json({"extractors": dict(table.extractors), "rows": len(table.frame), "without": len(table.problems)}))
    for name in sorted(table.frame.columns):
        column = table.frame[name]
        digest.update(canonical_json(name))
        if column.dtype.kind in "iufb":
            numbers = column.to_numpy(np.float64) + 0.0
            # One spelling of what is missing.
            digest.update(np.where(np.isnan(numbers), np.nan, numbers).astype("<f8").tobytes())
        else:
            digest.update(canonical_json([None if pd.isna(value) else str(value) for value in column]))
    return digest.hexdigest()


def site_figures(
    plan: ChangePlan,
    site: str,
    champion: VerifiedBundle,
    challenger: VerifiedBundle,
    table: FeatureTable,
    *,
    members: Members | None = None,
) -> SiteFigures:
    """Ask both models about a site's holdout.

    Parameters
    ----------
    plan
        Holds the digest of the site's table, how many people it has at least, and the bootstrap's settings.
    site
        The site's name in the plan.
    champion, challenger
        Two models of the plan's task.
    table
        The frozen table.
    members
        Whom the models learned from, where that is known.

    Returns
    -------
    SiteFigures
        The same input gives the same summary.

    Raises
    ------
    ChangePlanError
        The plan has no such holdout, the table is another one, or has fewer people than the plan asks for.
    LeakError
        People of the holdout taught one of the models.
    InvalidValueError, BundleFeatureMismatchError
        A model cannot be asked about the table, or is of another task.
    """
    holdout = holdout_of(plan, site)
    if (found := table_digest(table)) != holdout.sha256:
        raise ChangePlanError(f"The holdout of {site!r} is not the plan's: its content is {found[:16]}, and the plan froze {holdout.sha256[:16]}.")
    both = _Both.of(plan, holdout, champion, challenger, table)
    members_checked = _check_members(both, (champion, challenger), members)
    people = both.people_by_class()
    if few := {label: n for label, n in people.items() if n < holdout.subjects_of_each_class_at_least}:
        counts = ", ".join(f"{n} of {label!r}" for label, n in few.items())
        raise ChangePlanError(f"The holdout of {site!r} has {counts}; the plan asks for {holdout.subjects_of_each_class_at_least} of each class.")
    figures, groups = both.figures(plan)
    return SiteFigures(
        site=site,
        table=found,
        plan=plan.digest,
        champion=champion.digest,
        challenger=challenger.digest,
        subjects_by_class=people,
        subjects=len(np.unique(both.subjects)),
        recordings=len(both.subjects),
        answered_by_one=both.answered_by_one,
        simulated=both.champion.simulated or both.challenger.simulated,
        members_checked=members_checked,
        prevalence=both.prevalence,
        figures=figures | {NOT_USABLE: both.not_usable(plan)},
        groups=groups,
        explanations=both.explanations(plan),
    )


def holdout_of(plan: ChangePlan, site: str) -> Holdout:
    """Return a site's holdout; ChangePlanError lists the sites that have one."""
    for holdout in plan.holdout:
        if holdout.site == site:
            return holdout
    raise ChangePlanError(f"The plan has no holdout of {site!r}; it has {[one.site for one in plan.holdout]}.")


def _check_members(both: "_Both", bundles: Sequence[VerifiedBundle], members: Members | None) -> bool:
    """Refuse people whom a model learned from; return whether both models' people are known."""
    for what, bundle in zip(("champion", "challenger"), bundles, strict=True):
        # The registry may not know a bundle's people, but the bundle knows its cohort.
        if bundle.manifest.cohort_digest == cohort_digest(both.champion.frame["recording"], both.champion.target):
            raise LeakError(f"The {what} learned from the very recordings of this holdout: it tests nothing.")
        if members is not None and bundle.digest in members.of:
            known = members.of[bundle.digest]
            shared = sum(members.tag(subject) in known for subject in np.unique(both.subjects).tolist())
            if shared:
                raise LeakError(f"{shared} of the holdout's people taught the {what}: it tests nothing. Freeze another, or train without them.")
    return members is not None and all(bundle.digest in members.of and bundle.digest not in members.incomplete for bundle in bundles)


@dataclass(frozen=True, eq=False)
class _Both:
    """Both models' answers to the same recordings."""

    champion: Predictions
    challenger: Predictions
    models: tuple[TrainedModel, TrainedModel]
    rows: tuple[Rows, Rows]
    """What each was asked, in the order of its predictions."""
    refused: pd.DataFrame
    """One row a labelled recording: `subject`, and whether the gate refused it for `champion` and `challenger`."""
    answered_by_one: int
    prevalence: float | None

    @property
    def subjects(self) -> NDArray[np.str_]:
        return self.champion.subjects

    @classmethod
    def of(cls, plan: ChangePlan, holdout: Holdout, champion: VerifiedBundle, challenger: VerifiedBundle, table: FeatureTable) -> "_Both":
        asked = [_asked(plan, what, bundle, table) for what, bundle in (("champion", champion), ("challenger", challenger))]
        (first, one, _), (second, two, _) = asked
        mine, theirs = _common(first.frame, second.frame)
        kept = [replace(p, frame=p.frame.iloc[at].reset_index(drop=True)) for p, at in ((first, mine), (second, theirs))]
        prevalence = None
        if first.binary:
            ill = pd.Series(kept[0].target == 1).groupby(kept[0].subjects).max()
            prevalence = float(ill.mean()) if holdout.prevalence is None else holdout.prevalence
            if 0 < prevalence < 1:
                kept = [p.stated_for(prevalence) for p in kept]
        return cls(
            champion=kept[0],
            challenger=kept[1],
            models=(asked[0][2], asked[1][2]),
            rows=(one.take(mine), two.take(theirs)),
            refused=_refused(first, second),
            answered_by_one=len(first.frame) + len(second.frame) - 2 * len(mine),
            prevalence=prevalence,
        )

    def people_by_class(self) -> dict[str, int]:
        target, classes = self.champion.target, self.champion.task.classes
        return {label: len(np.unique(self.subjects[target == k])) for k, label in enumerate(classes)}

    def figures(self, plan: ChangePlan) -> tuple[dict[str, PairedFigure], tuple[GroupFigures, ...]]:
        """Read off all figures, and those of each group, from one set of bootstrap samples."""
        columns = sorted({one.by for one in plan.requirement if one.by})
        if absent := [name for name in columns if name not in self.champion.frame and name != subgroups.AGE_BAND]:
            raise ChangePlanError(f"A holdout lacks the columns {absent}, by which the plan looks at groups of people.")
        members = subgroups.members_of(self.champion, columns) if columns else ()
        everyone = np.arange(len(self.subjects))
        enough = [one for one in members if subgroups.enough(self.champion, one.rows)]
        parts = [_Pair.of(self, rows) for rows in (everyone, *(one.rows for one in enough))]
        drawn = self._drawn(plan, lambda weight: np.concatenate([part(weight) for part in parts]), self.subjects)
        sizes = np.cumsum([0, *(2 * len(part.names) for part in parts)])
        read = [part.read(_slice(drawn, start, stop), self.subjects) for part, start, stop in zip(parts, sizes[:-1], sizes[1:], strict=True)]
        by_group = {(one.column, one.value): found for one, found in zip(enough, read[1:], strict=True)}
        groups = tuple(
            GroupFigures(
                column=one.column,
                value=one.value,
                subjects=len(np.unique(self.subjects[one.rows])),
                enough=(one.column, one.value) in by_group,
                figures=by_group.get((one.column, one.value), {}),
            )
            for one in members
        )
        return read[0], groups

    def not_usable(self, plan: ChangePlan) -> PairedFigure:
        """Share of labelled recordings that the gate refuses, whole people among them."""
        subjects = self.refused["subject"].to_numpy(str)
        values = self.refused[["champion", "challenger"]].to_numpy(np.float64)
        weight = subject_weights(subjects, len(subjects)) if self.champion.binary else np.ones(len(subjects))
        drawn = self._drawn(plan, lambda drawn: drawn @ values / drawn.sum(), subjects, weight)
        people = len(np.unique(subjects))
        one, two = (_figure(drawn, i, NOT_USABLE, people, people, len(subjects)) for i in range(2))
        bounds = paired_shares(drawn.replicates[:, 0], drawn.replicates[:, 1], one, two, people)
        return PairedFigure(champion=one, challenger=two, difference=_between(one, two, bounds, people, len(subjects)))

    def explanations(self, plan: ChangePlan) -> dict[str, Figure]:
        """Compare which families move each recording's probability, in both models."""
        some = np.sort(np.random.default_rng([plan.protocol.seed, 3]).permutation(len(self.subjects))[:EXPLAINED_AT_MOST])
        effects = [_family_effects(model, rows.take(some), self.prevalence) for model, rows in zip(self.models, self.rows, strict=True)]
        families = sorted({*effects[0], *effects[1]})
        nothing = np.zeros(len(some))
        first, second = (np.column_stack([one.get(family, nothing) for family in families]) for one in effects)
        values = np.column_stack([_correlations(first, second), np.abs(first).argmax(axis=1) == np.abs(second).argmax(axis=1)])
        subjects = self.subjects[some]
        weight = subject_weights(subjects, len(subjects)) if self.champion.binary else np.ones(len(subjects))
        drawn = self._drawn(plan, lambda drawn: drawn @ values / drawn.sum(), subjects, weight)
        people = len(np.unique(subjects))
        agreement = _free(drawn, 0, people, people, len(some))
        low, high = drawn.interval(1, subjects=people, share=True)
        same = Figure.of(float(drawn.values[1]), low, high, subjects=people, recordings=len(some), method=METHOD)
        return dict(zip(EXPLANATION_FIGURES, (agreement, same), strict=True))

    @staticmethod
    def _drawn(plan: ChangePlan, statistic: Callable[[Array], Array], subjects: NDArray[np.str_], weight: Array | None = None) -> Bootstrap:
        protocol = plan.protocol
        return bootstrap(statistic, subjects, weight=weight, replicates=protocol.replicates, level=protocol.level, seed=protocol.seed)


@dataclass(frozen=True, eq=False)
class _Pair:
    """Figures of both models over the same rows, one after the other."""

    sides: tuple[BinaryFigures | ClassFigures, BinaryFigures | ClassFigures]
    rows: NDArray[np.intp]
    names: tuple[str, ...]

    @classmethod
    def of(cls, both: _Both, rows: NDArray[np.intp]) -> "_Pair":
        sides = figures_of(both.champion, rows), figures_of(both.challenger, rows)
        return cls(sides, rows, tuple(name for name in sides[0].names if name in sides[1].names))

    def __call__(self, drawn: Array) -> Array:
        weight = self.sides[0].weight * drawn[self.rows]
        found = []
        for side in self.sides:
            values = dict(zip(side.names, side(weight), strict=True))
            found += [_rooted(name, values[name]) for name in self.names]
        return np.array(found, dtype=np.float64)

    def read(self, drawn: Bootstrap, subjects: NDArray[np.str_]) -> dict[str, PairedFigure]:
        n = len(self.names)
        best = np.array([DISTANCE_TO_BEST.get(name.partition(".")[0], np.nan) for name in self.names])

        def distance(values: Array) -> Array:
            return np.where(np.isnan(best), values, np.abs(values - best))

        less = drawn.derived(lambda found: distance(found[..., n:]) - distance(found[..., :n]))
        told = {}
        for i, name in enumerate(self.names):
            about = self.sides[0].about(name) | self.sides[1].about(name)
            rows = self.rows[about]
            people = len(np.unique(subjects[rows]))
            rests_on = min(side.rests_on(name) for side in self.sides)
            first, second = (_figure(drawn, place, name, rests_on, people, len(rows)) for place in (i, n + i))
            if describe(name).kind == "share":
                bounds = paired_shares(drawn.replicates[:, i], drawn.replicates[:, n + i], first, second, rests_on)
                difference = _between(first, second, bounds, people, len(rows))
            else:
                difference = _free(less, i, rests_on, people, len(rows))
            told[name] = PairedFigure(champion=first, challenger=second, difference=difference)
        return told


def paired_shares(first: Array, second: Array, champion: Figure, challenger: Figure, people: int) -> tuple[float, float]:
    """Return the interval of a difference of two shares of the same people, challenger less champion.

    It is made from the two shares' own intervals and their correlation, so that people whom both models answer alike do not make it a point: with
    nobody answered otherwise among few people, more people might still be.

    Parameters
    ----------
    first, second
        Replicates of the champion's and the challenger's share, drawn together, shape (replicates,); their correlation is that of the two answers.
    champion, challenger
        The shares with their score intervals.
    people
        How many people the shares rest on, for the continuity correction of the correlation.

    Returns
    -------
    tuple of float
        Within -1 and 1; NaN where a share has no interval.

    References
    ----------
    Newcombe RG (1998), Improved confidence intervals for the difference between binomial proportions based on paired data, Stat Med 17:2635-2650
    (method 10); for clustered people by Zou GY, Donner A (2008), Stat Med 27:1693-1702.
    """
    ends = (champion.value, champion.low, champion.high, challenger.value, challenger.low, challenger.high)
    if any(end is None for end in ends) or people < 1:
        return np.nan, np.nan
    p, p_low, p_high, q, q_low, q_high = (float(end or 0.0) for end in ends)
    both = np.isfinite(first) & np.isfinite(second)
    one, two = first[both] - first[both].mean(), second[both] - second[both].mean()
    spread, variance = float(np.sqrt((one @ one) * (two @ two))), p * (1 - p) * q * (1 - q)
    phi = float(one @ two) / spread if spread > 0 and variance > 0 else 0.0
    if phi > 0:
        phi = max(phi - 1 / (2 * people * np.sqrt(variance)), 0.0)

    def half(mine: float, theirs: float) -> float:
        return float(np.sqrt(max(mine**2 - 2 * phi * mine * theirs + theirs**2, 0.0)))

    less = q - p
    return max(less - half(q - q_low, p_high - p), -1.0), min(less + half(q_high - q, p - p_low), 1.0)


def _asked(plan: ChangePlan, what: str, bundle: VerifiedBundle, table: FeatureTable) -> tuple[Predictions, Rows, TrainedModel]:
    manifest = bundle.manifest
    if (manifest.task.name, tuple(manifest.task.classes)) != (plan.plan.task, plan.plan.classes):
        raise ChangePlanError(f"The {what} is for {manifest.task.name!r}, and the plan is about {plan.plan.task!r} {list(plan.plan.classes)}.")
    check_extractors(bundle, table)
    about = EvaluatedModel(
        name=manifest.name,
        version=manifest.version,
        digest=bundle.digest,
        learned=bundle.learned_digest,
        head=manifest.head,
        simulated=manifest.simulated,
        statement=manifest.statement,
    )
    model = TrainedModel.from_bundle(bundle)
    predictions = predict(model, table, about)
    rows = select_rows(table, model.task, model.features, use_baseline=model.uses_baseline, used_as="evaluated").rows
    return predictions, rows, model


def _key(frame: pd.DataFrame) -> pd.Series:
    return frame["row"] if "row" in frame else frame["recording"].astype(str) + " " + frame["subject"].astype(str)


def _common(first: pd.DataFrame, second: pd.DataFrame) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Positions of the recordings that both models answered."""
    one, two = pd.Index(_key(first)), pd.Index(_key(second))
    if one.has_duplicates or two.has_duplicates:
        raise ChangePlanError("A holdout has the same row twice; freeze one that has each recording once.")
    at = two.get_indexer(one)
    if not (at >= 0).any():
        raise ChangePlanError("The two models have no recording of the holdout in common.")
    return np.flatnonzero(at >= 0), at[at >= 0]


def _refused(first: Predictions, second: Predictions) -> pd.DataFrame:
    """Return every labelled recording that either model was asked about, and who refused it."""
    parts = []
    for what, predictions in (("champion", first), ("challenger", second)):
        both = pd.concat([predictions.frame.assign(refused=0.0), predictions.refused.assign(refused=1.0)], ignore_index=True)
        parts.append(pd.DataFrame({f"{what} subject": both["subject"].astype(str), what: both["refused"]}).set_index(_key(both)))
    joined = parts[0].join(parts[1], how="outer")
    # What one of them never saw (it takes a baseline that is lacking), it does not answer.
    return pd.DataFrame(
        {
            "subject": joined["champion subject"].fillna(joined["challenger subject"]).to_numpy(str),
            "champion": joined["champion"].fillna(1.0).to_numpy(),
            "challenger": joined["challenger"].fillna(1.0).to_numpy(),
        }
    )


def _family_effects(model: TrainedModel, rows: Rows, prevalence: float | None) -> dict[str, Array]:
    """Each family's effect on the probability of the class that is explained, shape (rows,)."""
    groups = [model.reference.for_person(Person.of_row(row)) for row in rows.frame.to_dict("records")]
    classes = model.task.classes
    # Of several classes the true one, so that both models explain the same.
    targets = [classes[1]] * len(rows.target) if model.binary else [classes[k] for k in rows.target]
    effects = Explainer(model).table(rows.X, targets=targets, groups=groups, prevalence=prevalence if model.binary else None)
    return {family: np.array([one.probability[0][i] for one in effects]) for i, family in enumerate(model.head.families_)}


def _correlations(first: Array, second: Array) -> Array:
    """Row by row; 0 where a model goes by nothing, because that is no agreement."""
    one, two = (values - values.mean(axis=1, keepdims=True) for values in (first, second))
    norm = np.sqrt((one**2).sum(axis=1) * (two**2).sum(axis=1))
    return np.asarray(np.divide((one * two).sum(axis=1), norm, out=np.zeros(len(first)), where=norm > 0))


def _rooted(name: str, value: float) -> float:
    """`ece_debiased` comes as its square."""
    return float(np.sqrt(max(value, 0.0))) if name == "ece_debiased" and np.isfinite(value) else float(value)


def _slice(drawn: Bootstrap, start: int, stop: int) -> Bootstrap:
    return Bootstrap(drawn.values[start:stop], drawn.replicates[:, start:stop], drawn.level)


def _figure(drawn: Bootstrap, index: int, name: str, rests_on: int, people: int, recordings: int) -> Figure:
    bounds = interval_of(drawn, index, name, rests_on)
    return Figure.of(float(drawn.values[index]), *bounds, subjects=people, recordings=recordings, method=METHOD)


def _between(champion: Figure, challenger: Figure, bounds: tuple[float, float], people: int, recordings: int) -> Figure:
    value = np.nan if champion.value is None or challenger.value is None else challenger.value - champion.value
    return Figure.of(value, *bounds, subjects=people, recordings=recordings, method=PAIRED)


def _free(drawn: Bootstrap, index: int, rests_on: int, people: int, recordings: int) -> Figure:
    bounds = drawn.interval(index, subjects=rests_on)
    return Figure.of(float(drawn.values[index]), *bounds, subjects=people, recordings=recordings, method=METHOD)
