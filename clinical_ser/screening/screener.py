"""One recording, one answer: the gate first, then features, model, prediction set and explanation, or an honest refusal.

A `Screener` is a verified model in memory, made once and asked often. It keeps nothing of what it hears.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import BinaryIO, Self

import pandas as pd

from clinical_ser import audio
from clinical_ser.audio import GateLimits, QualityReport, Recording, SpeechAnalysis
from clinical_ser.cohorts.baseline import relative
from clinical_ser.cohorts.tasks import TaskKind
from clinical_ser.embeddings import find_encoder
from clinical_ser.errors import AudioError, BaselineError, InvalidValueError
from clinical_ser.evaluation.card import Card
from clinical_ser.evaluation.figure import Figure
from clinical_ser.evaluation.retest import Retest
from clinical_ser.evaluation.subgroups import AGE_BAND, age_bands
from clinical_ser.explain.effects import Explainer
from clinical_ser.explain.explaining import explain
from clinical_ser.explain.explanation import Explanation
from clinical_ser.explain.timeline import timeline_of, too_short
from clinical_ser.features import catalogue, extraction
from clinical_ser.features.contours import Contours, can_be_left_out, extract_with_contours
from clinical_ser.features.egemaps import PART_S
from clinical_ser.features.extraction import FEATURE_SETS
from clinical_ser.features.vector import FeatureVector
from clinical_ser.models.bundle import BundleManifest, VerifiedBundle, check_features, read_bundle
from clinical_ser.models.interpretable import EMBEDDING
from clinical_ser.models.operating_point import Rate
from clinical_ser.models.reference import LONGEST_WORD, Person
from clinical_ser.models.signing import SignatureState
from clinical_ser.models.trained import Answer, TrainedModel
from clinical_ser.registry.names import find_model
from clinical_ser.screening.measures import Measure, measures_of
from clinical_ser.screening.result import (
    AnswerRates,
    ClassProbability,
    Interval,
    MissingFeature,
    ModelIdentity,
    OperatingPointStatement,
    Performance,
    RateStatement,
    RecordingIdentity,
    ScoreCutoff,
    ScreeningResult,
    Share,
    Status,
    SubjectContext,
)

Source = Path | str | BinaryIO | bytes | Recording
"""A file, its bytes, or a recording that is loaded already."""

SEXES = ("female", "male", "other")
MAX_AGE_YEARS = 130
_PERFORMANCE = ("sensitivity", "specificity", "auroc", "uar")
_INTERVAL_METHOD = "sampling error of the model: point +/- 1.96 SD over refits on bootstrap samples of subjects, on the log-odds"
_EMBEDDED = f"{EMBEDDING}."
NO_TIMELINE = "No timeline: "
"""Begins the notice that says why there is none."""
UNTRUSTED_NOTICE = "No key this installation trusts has signed this model; make sure you know where it comes from."


class Screener:
    """A verified model, ready to answer.

    Examples
    --------
    >>> screener = Screener.load("depression-simulated")  # doctest: +SKIP
    >>> screener.screen("visit.wav", sex="female", age=54).status  # doctest: +SKIP
    <Status.NOT_FLAGGED: 'not_flagged'>
    """

    def __init__(self, bundle: VerifiedBundle, *, interpretable: bool = False, encoders: Sequence[str] = ()) -> None:
        needed = _without_embedding(bundle.manifest) if interpretable else bundle.manifest
        self._sets = _sets_for(needed, encoders)
        self._needed = needed
        self._check_extractors()
        self._bundle = bundle
        whole = TrainedModel.from_bundle(bundle)
        if interpretable and not needed.features:
            raise InvalidValueError("interpretable", "asked of a model of embeddings alone", "a model with other features too")
        self.model = whole.interpretable if interpretable and whole.interpretable else whole
        self._interpretable = self.model is not whole
        # The card's figures were counted with the embedding.
        self._card = None if self._interpretable else Card.from_json(bundle.files["card.json"])
        self._answers = _answer_rates(self._card)
        self._explainer = Explainer(self.model)

    def _check_extractors(self) -> None:
        """Refuse to measure with anything but what the model was trained on; an encoder's folder may have been replaced since the last recording."""
        everything = (*FEATURE_SETS, *(name for name in self._sets if name not in FEATURE_SETS))
        check_features(self._needed, extraction.fingerprints(everything), extraction.feature_names(everything))

    @classmethod
    def load(cls, model: str | Path, *, interpretable: bool = False, encoders: Sequence[str] = ()) -> Self:
        """Load a model by name or folder.

        Parameters
        ----------
        model
            A model's name, or a bundle's folder.
        interpretable
            Ask the model without its embeddings, which every bundle with embeddings carries; it needs no encoder. A model that has none is
            itself interpretable.
        encoders
            Where to find the model's encoders, for those that are not installed under the name the model gives them: what `find_encoder` takes.

        Raises
        ------
        BundleError
            The bundle cannot be trusted byte for byte, or this installation computes its features differently; another encoder of the same name
            is refused.
        EncoderError
            An encoder cannot be used.
        InvalidValueError
            There is no such model or encoder, or the model has no use for one that is given.
        """
        return cls(read_bundle(find_model(model)), interpretable=interpretable, encoders=encoders)

    @property
    def digest(self) -> str:
        """The bundle's: the identity of the model."""
        return self._bundle.digest

    @property
    def limits(self) -> GateLimits:
        """The gate of this model's task."""
        return self.model.task.limits

    def screen(
        self,
        source: Source,
        *,
        sex: str | None = None,
        age: float | None = None,
        prevalence: float | None = None,
        baseline: Sequence[Source] = (),
        start: float | None = None,
        end: float | None = None,
        task: str | None = None,
        device: str | None = None,
        language: str | None = None,
        recorded_on: date | None = None,
        timeline: bool = False,
        explained: str | None = None,
        entered: Callable[[FeatureVector], object] | None = None,
    ) -> ScreeningResult:
        """Screen one recording of one speaker.

        Parameters
        ----------
        source
            The recording.
        sex
            `female`, `male` or `other`: chooses the reference group, never changes the score.
        age
            Years; chooses the reference group too.
        prevalence
            Share of positives among the people screened, which the probability is stated for; None takes the model's.
        baseline
            Earlier recordings of the same person, for a model that was trained with them.
        start, end
            Seconds; the part of the recording to screen.
        task, device
            What was spoken and what recorded it, in the words of the training cohort; they choose the reference group too.
        language, recorded_on
            What language was spoken, in the cohort's words, and on which day: for a comparison of visits and the model's figures in that language.
        timeline
            Also say when in the recording the score came about; takes about as long again. Where that cannot be had, a notice says why.
        explained
            The class to explain, of several; None explains the most probable one.
        entered
            Called with the features that the model is given, for whoever counts them; not where the gate refuses the recording.

        Returns
        -------
        ScreeningResult

        Raises
        ------
        AudioError
            If the source cannot be decoded; `BaselineError` if a baseline recording cannot, or is not usable.
        InvalidValueError
            If an option is out of its range, or a baseline is missing or given where the model has no use for it.
        """
        context = self.check_options(
            sex=sex,
            age=age,
            prevalence=prevalence,
            baselines=len(baseline),
            task=task,
            device=device,
            language=language,
            recorded_on=recorded_on,
        )
        self._check_explained(explained)
        self._check_extractors()
        recording = _recording(source, start, end)
        why_not = self._why_no_timeline(recording)
        with extraction.one_thread():
            heard = self._measure(recording, contours=timeline and why_not is None)
            vector = heard.vector
            if vector is None:
                return self._refusal(recording, heard.quality, context)
            if self.model.uses_baseline:
                vector = relative(vector, [self._baseline(item, place, len(baseline)) for place, item in enumerate(baseline, start=1)])
            if entered is not None:
                entered(vector)
            result = self._result(recording, heard.quality, vector, context, prevalence, explained)
            if not timeline:
                return result
            if heard.contours is None:
                return result.model_copy(update={"notices": (*result.notices, f"{NO_TIMELINE}{why_not}.")})
            assert result.explanation is not None
            target = result.explanation.target
            found = timeline_of(self.model, heard.contours, vector, heard.analysis, target=target, prevalence=prevalence, offset_s=start or 0.0)
            return result.model_copy(update={"timeline": found})

    def quality(self, source: Source, *, start: float | None = None, end: float | None = None) -> QualityReport:
        """Ask the gate of this model's task alone: is a recording good enough? Takes a fifth of the time of `screen`.

        Parameters
        ----------
        source, start, end
            As for `screen`.

        Raises
        ------
        AudioError
            If the source cannot be decoded.
        """
        return audio.assess(_recording(source, start, end), self.limits)

    def check_options(
        self,
        *,
        sex: str | None = None,
        age: float | None = None,
        prevalence: float | None = None,
        baselines: int = 0,
        task: str | None = None,
        device: str | None = None,
        language: str | None = None,
        recorded_on: date | None = None,
    ) -> SubjectContext:
        """Raise InvalidValueError for an option of `screen` that is out of its range or that this model has no use for."""
        self.model.check_prevalence(prevalence)
        if sex not in {None, *SEXES}:
            raise InvalidValueError("sex", sex, SEXES)
        if age is not None and not 0 <= age <= MAX_AGE_YEARS:
            raise InvalidValueError("age", age, f"years from 0 to {MAX_AGE_YEARS}")
        if self.model.uses_baseline and not baselines:
            raise InvalidValueError("baseline", "none", "at least one earlier recording of the same person: this model was trained with them")
        if baselines and not self.model.uses_baseline:
            raise InvalidValueError("baseline", f"{baselines} recordings", "none: this model was trained without")
        for name, word in (("task", task), ("device", device), ("language", language)):
            if word is not None and not (word.strip() and word.isprintable() and len(word) <= LONGEST_WORD):
                raise InvalidValueError(
                    name, "a text that is empty, long or does not print", f"a word or two of the cohort's, up to {LONGEST_WORD} characters"
                )
        return SubjectContext(sex=sex, age=age, task=task, device=device, language=language, recorded_on=recorded_on, baseline_recordings=baselines)

    def _check_explained(self, explained: str | None) -> None:
        known = self.model.task.classes[1:] if self.model.binary else self.model.task.classes
        if explained is not None and explained not in known:
            raise InvalidValueError("explained", explained, known)

    @property
    def _defined_by(self) -> ScoreCutoff | None:
        task = self.model.task
        if task.score_name is None or task.score_cutoff is None:
            return None
        return ScoreCutoff(label=task.classes[-1], score=task.score_name, cutoff=task.score_cutoff)

    def _measure(self, recording: Recording, *, contours: bool = False) -> "_Heard":
        """Gate a recording and, if it is usable, extract the model's features, with or without their contours."""
        if contours:
            return self._measure_with_contours(recording)
        with extraction.begin(recording, sets=self._sets, ahead=self._may_pass(recording)) as begun:
            analysis = audio.analyse(recording)
            quality = audio.assess(recording, self.limits, analysis)
            vector = self._entering(begun.finish(analysis), quality) if quality.usable else None
        return _Heard(analysis, quality, vector, None)

    def _measure_with_contours(self, recording: Recording) -> "_Heard":
        analysis = audio.analyse(recording)
        quality = audio.assess(recording, self.limits, analysis)
        if not quality.usable:
            return _Heard(analysis, quality, None, None)
        vector, found = extract_with_contours(recording, analysis, sets=self._sets)
        return _Heard(analysis, quality, self._entering(vector, quality), found)

    def _entering(self, vector: FeatureVector, quality: QualityReport) -> FeatureVector:
        """Return the features that enter the model."""
        return _select(extraction.apply_gate(vector, quality), self.model.features)

    def _may_pass(self, recording: Recording) -> bool:
        """Tell whether measuring may begin beside the gate: not where the gate surely refuses, nor where a refusal would waste minutes of audio."""
        limits, source = self.limits, recording.source
        return (
            limits.speech_fail_s <= recording.duration_s <= PART_S
            and source.peak >= 10 ** (limits.level_fail_dbfs / 20)
            and source.clipped_fraction <= limits.clipped_fail
            and source.nonfinite_fraction <= limits.nonfinite_fail
        )

    def _baseline(self, source: Source, place: int, of: int) -> FeatureVector:
        try:
            heard = self._measure(_recording(source, None, None))
        except AudioError as error:
            raise BaselineError(f"Baseline recording {place} of {of}: {error}") from None
        if heard.vector is None:
            raise BaselineError(f"Baseline recording {place} of {of} is not usable. {_advice(heard.quality)}")
        return heard.vector

    def _refusal(self, recording: Recording, quality: QualityReport, context: SubjectContext) -> ScreeningResult:
        return ScreeningResult(
            status=Status.NOT_USABLE,
            task=self.model.task.name,
            defined_by=self._defined_by,
            summary=f"The recording is not usable. {_advice(quality)}",
            quality=quality,
            context=context,
            model=self._identity(),
            software=self._software(),
            recording=_identity_of(recording),
            notices=self._notices(),
        )

    def _result(
        self,
        recording: Recording,
        quality: QualityReport,
        vector: FeatureVector,
        context: SubjectContext,
        prevalence: float | None,
        explained: str | None,
    ) -> ScreeningResult:
        answer = self.model.answer(vector.values, prevalence=prevalence)
        status = Status(answer.status)
        classes = self._class_probabilities(answer, prevalence)
        chosen = classes[-1] if self.model.binary else max(classes, key=lambda one: one.value)
        return ScreeningResult(
            status=status,
            task=self.model.task.name,
            defined_by=self._defined_by,
            summary=_summary(status, chosen, answer.prediction_set, len(classes)),
            probability=chosen,
            classes=() if self.model.binary else classes,
            prediction_set=answer.prediction_set,
            prediction_coverage=self.model.conformal.coverage,
            operating_point=self._operating_point(prevalence),
            answers=self._answers,
            quality=quality,
            measures=self._measures(vector, context),
            explanation=self._explanation(vector, explained or chosen.label, context, prevalence),
            missing=tuple(MissingFeature(name=name, reason=reason) for name, reason in vector.missing.items()),
            context=context,
            performance=_performance(self._card, context),
            retest=retest.log_odds if (retest := self._retest) else None,
            retest_setting=retest.setting if retest else None,
            model=self._identity(),
            software=self._software(),
            recording=_identity_of(recording),
            notices=self._notices(),
        )

    def _class_probabilities(self, answer: Answer, prevalence: float | None) -> tuple[ClassProbability, ...]:
        n = len(self.model.task.classes)
        shares = [1 / n] * n
        if self.model.binary:
            positive = self.model.stated_prevalence(prevalence)
            shares = [1 - positive, positive]
        return tuple(
            ClassProbability(
                label=label,
                value=float(p),
                prevalence=share,
                interval=Interval(low=float(low), high=float(high), level=0.95, method=_INTERVAL_METHOD),
            )
            for label, p, low, high, share in zip(self.model.task.classes, answer.probabilities, answer.low, answer.high, shares, strict=True)
        )

    def _operating_point(self, prevalence: float | None) -> OperatingPointStatement | None:
        point = self.model.operating_point
        if point is None:
            return None
        return OperatingPointStatement(
            probability=self.model.probability_at(point.threshold, prevalence),
            sensitivity=_rate(point.sensitivity),
            specificity=_rate(point.specificity),
            note=point.note,
        )

    @property
    def _retest(self) -> Retest | None:
        return self._card.retest if self._card else None

    def _measures(self, vector: FeatureVector, context: SubjectContext) -> tuple[Measure, ...]:
        group = self.model.reference.for_person(_person(context))
        reference = None if group is None else self.model.reference.groups[group]
        return measures_of(vector, reference, self._retest, relative=self.model.uses_baseline)

    def _explanation(self, vector: FeatureVector, target: str, context: SubjectContext, prevalence: float | None) -> Explanation:
        return explain(self._explainer, vector, target=target, person=_person(context), prevalence=prevalence)

    def _why_no_timeline(self, recording: Recording) -> str | None:
        if others := [extraction.set_of(name) for name in self._sets if not can_be_left_out(name)]:
            return f"features of {', '.join(others)} cannot be summed up with a window left out"
        return too_short(recording.duration_s)

    def _identity(self) -> ModelIdentity:
        manifest = self._bundle.manifest
        return ModelIdentity(
            name=manifest.name,
            version=manifest.version,
            digest=self._bundle.digest,
            signature=self._bundle.signature.state.value,
            simulated=manifest.simulated,
            uses_baseline=manifest.uses_baseline,
            without_embedding=self._interpretable,
            encoders={name.removeprefix(_EMBEDDED): text for name, text in self.model.extractors.items() if name.startswith(_EMBEDDED)},
        )

    def _software(self) -> dict[str, str]:
        runs_encoders = any(name.startswith(_EMBEDDED) for name in self.model.extractors)
        needed = ("clinical-ser", "opensmile", "praat-parselmouth", *(["onnxruntime"] if runs_encoders else []))
        return {name: _version_of(name) for name in needed}

    def _notices(self) -> tuple[str, ...]:
        manifest = self._bundle.manifest
        notices = (manifest.statement, "" if self._bundle.signature.state is SignatureState.TRUSTED else UNTRUSTED_NOTICE)
        return tuple(notice for notice in notices if notice)


@dataclass(frozen=True, eq=False)
class _Heard:
    """What was measured of one recording; no features where the gate refuses it."""

    analysis: SpeechAnalysis
    quality: QualityReport
    vector: FeatureVector | None
    contours: Contours | None


@cache  # a third of a millisecond each
def _version_of(package: str) -> str:
    return installed_version(package)


def _without_embedding(manifest: BundleManifest) -> BundleManifest:
    named = tuple(name for name in manifest.features if catalogue.get(name).family != EMBEDDING)
    sets = {catalogue.get(name).set for name in named}
    return manifest.model_copy(update={"features": named, "extractors": {key: text for key, text in manifest.extractors.items() if key in sets}})


def _sets_for(manifest: BundleManifest, references: Sequence[str]) -> tuple[str, ...]:
    """Return the feature sets that a model needs, its encoders found among those given or installed."""
    wanted = sorted(name.removeprefix(_EMBEDDED) for name in manifest.extractors if name.startswith(_EMBEDDED))
    given = {find_encoder(reference).spec.name: reference for reference in references}
    if useless := sorted(set(given) - set(wanted)):
        raise InvalidValueError("encoder", useless[0], f"one of the model's: {wanted}" if wanted else "none: this model uses no embedding")
    sets = [name for name in FEATURE_SETS if name in manifest.extractors]
    for name in wanted:
        reference = given.get(name, name)
        with suppress(InvalidValueError):  # not installed: `check_features` says so, with everything else that is missing
            find_encoder(reference)
            sets.append(f"{extraction.ENCODER}{reference}")
    return tuple(sets)


def _recording(source: Source, start: float | None, end: float | None) -> Recording:
    return source if isinstance(source, Recording) else audio.load(source, start=start, end=end)


def _select(vector: FeatureVector, names: tuple[str, ...]) -> FeatureVector:
    """Put the features into the model's order, leaving out those it does not use."""
    place = {name: i for i, name in enumerate(vector.names)}
    missing = {name: vector.missing[name] for name in names if name in vector.missing}
    return FeatureVector(names, vector.values[[place[name] for name in names]], missing)


def _advice(quality: QualityReport) -> str:
    return " ".join(check.advice for check in quality.checks if check.verdict == "fail")


def _summary(status: Status, chosen: ClassProbability, members: tuple[str, ...], of: int) -> str:
    label = chosen.label.replace("_", " ")
    return {
        Status.CLASSIFIED: f"This recording is most similar to those labelled {label!r}.",
        Status.FLAGGED: f"This recording is more similar to recordings of people labelled {label!r}. It is not a diagnosis.",
        Status.NOT_FLAGGED: f"This recording is more similar to recordings of people not labelled {label!r}. That does not rule illness out.",
        Status.INDETERMINATE: f"The model cannot tell: {_doubt(members, of)}.",
    }[status]


def _doubt(members: tuple[str, ...], of: int) -> str:
    if not members:
        return "no class is supported well enough"
    if len(members) == 1:
        return "the threshold and the prediction set disagree"
    if len(members) == of and of > 2:
        return "it can rule out none of the classes"
    named = [member.replace("_", " ") for member in members]
    return f"it cannot tell {', '.join(named[:-1])} and {named[-1]} apart"


def _identity_of(recording: Recording) -> RecordingIdentity:
    return RecordingIdentity(sha256=recording.sha256, duration_s=recording.duration_s)


def _person(context: SubjectContext) -> Person:
    return Person(sex=context.sex, age=context.age, task=context.task, device=context.device)


def _answer_rates(card: Card | None) -> tuple[AnswerRates, ...]:
    """Read from the card what people of each class were answered out of fold."""
    if card is None or card.task.kind is not TaskKind.BINARY:
        return ()
    found = card.figures
    return tuple(
        AnswerRates(label=label, **{status: _share(found[f"{status}.{label}"]) for status in ("flagged", "not_flagged", "indeterminate")})
        for label in card.task.classes
        if f"flagged.{label}" in found
    )


def _performance(card: Card | None, context: SubjectContext) -> tuple[Performance, ...]:
    """Read from the card how well the model did: on everyone, and in the groups of this person; in other cohorts too, where it was asked there."""
    if card is None:
        return ()
    age = None if context.age is None else age_bands(pd.Series([context.age])).iloc[0]
    known = {"sex": context.sex, AGE_BAND: age, "language": context.language, "device": context.device, "task": context.task}
    found = []
    for evidence in (card.internal, *card.external):
        everyone = (None, None, evidence.flow.subjects, True, evidence.figures)
        groups = [(one.column, one.value, one.subjects, one.enough, one.figures) for one in evidence.groups if known.get(one.column) == one.value]
        found += [
            Performance(
                origin=evidence.origin,
                column=column,
                value=value,
                subjects=subjects,
                enough=enough,
                figures={name: _share(figures[name]) for name in _PERFORMANCE if name in figures},
            )
            for column, value, subjects, enough, figures in (everyone, *groups)
        ]
    return tuple(found)


def _share(figure: Figure) -> Share:
    return Share(value=figure.value, low=figure.low, high=figure.high)


def _rate(rate: Rate) -> RateStatement:
    return RateStatement(value=rate.value, low=rate.lower, high=rate.upper, subjects=rate.subjects)
