"""What a run says to the items of a card, in sentences with figures, intervals and numbers of people.

The one idea: a statement is a method, and the lists name it. It says what the run knows and no more; None where it knows nothing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Self

from pydantic import Field

from clinical_ser.audio.quality import GateLimits
from clinical_ser.cohorts.tasks import Task, TaskKind
from clinical_ser.embeddings import Pooling, list_encoders
from clinical_ser.errors import InvalidValueError
from clinical_ser.evaluation.evidence import Evidence, Group
from clinical_ser.evaluation.figure import Figure
from clinical_ser.evaluation.naming import describe
from clinical_ser.features import catalogue
from clinical_ser.models.operating_point import DEFAULT_CONFIDENCE
from clinical_ser.models.sample_size import riley_minimum
from clinical_ser.models.training import FUSIONS, LEAVE_ONE_SUBJECT_OUT, Training
from clinical_ser.strict import Strict

INTENDED_USE = "Screening aid for trained health workers; never a diagnosis."
CLUSTERS = ("site", "language", "device")
"""Columns whose groups are clusters in TRIPOD's sense, where the cohort names them."""
MAIN_FIGURES = {
    True: ("auroc", "auprc", "sensitivity", "specificity", "calibration_intercept", "calibration_slope", "observed_to_expected", "brier"),
    False: ("uar", "accuracy", "f1_macro", "brier", "calibration_slope"),
}
"""By whether the task has two classes: the figures that speak for the model in one sentence; the card's table has all."""
GROUP_FIGURES = {True: ("auroc", "sensitivity", "specificity"), False: ("uar", "accuracy")}

_EMBEDDED = "embedding."
_Words = Callable[[str, Evidence], str | None]


class HowTrained(Strict):
    """The options that shaped the model."""

    split: int | str
    coverage: float
    refits: int
    without: tuple[str, ...]
    baseline: bool
    seed: int
    fusion: Annotated[str, Field(pattern=f"^({'|'.join(FUSIONS)})$")] = "late"
    """How embeddings, where there are any, join named features."""


class TrainingFacts(Strict):
    """What a training run knows of itself, beside its figures."""

    task: Task
    head: str
    subjects: int
    """Whom the model learned from."""
    recordings: int
    rows: dict[str, int]
    features: dict[str, int]
    """Inputs by family."""
    extractors: dict[str, str]
    class_shares: dict[str, float]
    """Of the training subjects, each counting once."""
    sensitivity_shown: bool | None
    """Whether the lower bound of the sensitivity at the frozen threshold met the task's target; None for several classes."""
    options: HowTrained
    cohort_digest: str
    simulated: bool
    warnings: tuple[str, ...]
    encoders: dict[str, str] = Field(default_factory=dict)
    """Set of embeddings to what made them, where they have come in."""

    @classmethod
    def of(cls, training: Training) -> Self:
        """Read them off a training run."""
        model, options = training.model, training.options
        return cls(
            task=model.task,
            head=options.head,
            subjects=training.subjects_learned_from,
            recordings=training.counts["learned from"],
            rows=training.counts,
            features={family: len(names) for family, names in catalogue.by_family(model.features).items()},
            extractors=model.extractors,
            class_shares=dict(zip(model.task.classes, model.class_shares, strict=True)),
            sensitivity_shown=model.operating_point.attained if model.operating_point else None,
            options=HowTrained(
                split=options.split,
                coverage=options.coverage,
                refits=options.refits,
                without=options.without,
                baseline=options.use_baseline,
                seed=options.seed,
                fusion=options.fusion,
            ),
            encoders={name: _encoder_words(name, fingerprint) for name, fingerprint in model.extractors.items() if name.startswith(_EMBEDDED)},
            cohort_digest=training.cohort_digest,
            simulated=training.simulated,
            warnings=training.warnings,
        )


def _encoder_words(feature_set: str, fingerprint: str) -> str:
    """Describe an encoder from its own description, if the one that made the features is still installed."""
    name = feature_set.removeprefix(_EMBEDDED)
    known = next((entry.spec for entry in list_encoders() if entry.fingerprint == fingerprint), None)
    if known is None:
        return f"{name}, which is not installed where this card was written"
    how = "mean and standard deviation" if known.pooling is Pooling.MEAN_SD else "mean"
    return f"{name}: {known.title}, {how} over speech; {known.source}; licence {known.licence}"


def caveat(evidence: Evidence) -> str:
    """Return what has to stand before every figure of an evaluation with simulated speech in it; empty for real speech."""
    parts = ["learned from SIMULATED speech"] * evidence.model.simulated + ["was evaluated on SIMULATED speech"] * evidence.simulated
    return f"The model {' and '.join(parts)}: these figures say nothing about people." if parts else ""


def statements(
    facts: TrainingFacts, internal: Evidence, external: tuple[Evidence, ...], *, name: str, version: str, statement: str
) -> Callable[[str], str | None]:
    """Return what a run has to say: a function from the name of a statement, as the lists use it, to its text, or None."""
    return _Statements(facts, internal, external, name, version, statement).say


class _Statements:
    """One method a statement."""

    def __init__(self, facts: TrainingFacts, internal: Evidence, external: tuple[Evidence, ...], name: str, version: str, statement: str):
        self._facts, self._internal, self._external = facts, internal, external
        self._name, self._version, self._statement = name, version, statement
        self._task = facts.task
        self._binary = facts.task.kind is TaskKind.BINARY

    def say(self, statement: str) -> str | None:
        """Return a statement by the name that the lists use for it."""
        said: str | None = getattr(self, statement)()
        return said

    # What it is.

    def name(self) -> str:
        return self._name

    def version(self) -> str:
        return self._version

    def title(self) -> str:
        return f"{self._stages()} of {self._kind()} that predicts {self._question()} from a speech recording."

    def objectives(self) -> str:
        return f"{self._stages()} of {self._kind()}. The figures ask how it does on people whom it has not heard."

    def summary(self) -> str:
        return (
            f"{self._name} {self._version} is {self._kind()} that states how probable {self._question()} is from one speech recording. "
            f"It learned from {self._learned_from()}. {self.validity()}"
        )

    def keywords(self) -> str:
        return ", ".join(("speech", "voice", "screening", self._task.name, f"{self._facts.head} model", *(_words(f) for f in self._facts.features)))

    def model_type(self) -> str:
        head = {
            "linear": "Ridge logistic regression on standardised features; the strength of the ridge is the one with the least log-loss in "
            "folds by subject.",
            "xgboost": "Gradient-boosted trees, each held to one family of features; the number of rounds is the one with the least log-loss in "
            "folds by subject.",
            "stacked": "Ridge logistic regression of several hospitals, with this hospital's own boosted trees under it; their weights were "
            "learned together.",
        }.get(self._facts.head, f"A head of kind {self._facts.head}.")
        joined = {
            "late": " Named features and each embedding have a head of their own, a linear one for embeddings, and their margins are added.",
            "stacked": " Named features and each embedding have a head of their own, and their margins are added with weights learned out of fold.",
            "concatenated": " Embeddings stand beside named features in one head.",
        }[self._facts.options.fusion]
        head += joined if self._facts.encoders and len(self._facts.features) > 1 else ""
        return (
            f"{head} Its margin is a sum over families of features, so that explanations add up. It is calibrated by an affine map of the margin, "
            "fitted out of fold."
        )

    def foundation_models(self) -> str | None:
        if self._facts.encoders:
            return (
                f"Embeddings come from encoders that are not trained further: {'; '.join(self._facts.encoders.values())}. "
                "Their dimensions have no meaning of their own and are explained as one family. The model without them is in the bundle too. An "
                "embedding identifies the speaker."
            )
        if "embedding" in self._facts.features:
            return None
        return "None: every input is an acoustic measurement with a name and a unit."

    def specification(self) -> str:
        return (
            "The whole model is in its bundle as plain files: head, preprocessing, calibrator, prediction sets, threshold, reference values and "
            f"refits, each listed with its sha256. The training cohort has the digest {self._facts.cohort_digest}. `clinical-ser screen` applies it "
            "to a recording."
        )

    def code(self) -> str:
        software = ", ".join(f"{name} {version}" for name, version in sorted(self._internal.software.items()))
        return f"Measured, trained and evaluated with the open-source package clinical-ser (Apache-2.0). Versions: {software}."

    def third_parties(self) -> str:
        with_opensmile = bool({"egemaps", "compare"} & set(self._facts.extractors))
        opensmile = " openSMILE (audEERING; research licence, which excludes commercial use) computes features." if with_opensmile else ""
        return (
            f"Praat (GPL-3.0-or-later) measures pitch.{opensmile} All are programs on the machine that measures: the package calls no outside "
            "service. What the place that runs it passes on is not known here."
        )

    def security(self) -> str:
        return "The bundle holds no executable code. Every file is verified against its digest before it is parsed, and the whole can be signed."

    def transparency(self) -> str:
        return (
            "Each result shows what moved it, by family of features with intervals, and the prevalence it is stated for. This card is in the bundle."
        )

    def bibliography(self) -> str:
        cited = [
            "Collins GS, Moons KGM, Dhiman P, et al. TRIPOD+AI statement. BMJ 2024;385:e078378.",
            "Riley RD, Ensor J, Snell KIE, et al. Calculating the sample size required for developing a clinical prediction model. BMJ "
            "2020;368:m441.",
        ]
        if self._task.score_name == "PHQ-8":
            cited.append(
                "Kroenke K, et al. The PHQ-8 as a measure of current depression in the general population. J Affect Disord 2009;114:163-173."
            )
        return " ".join(cited)

    # What goes in and comes out.

    def intended_use(self) -> str:
        return INTENDED_USE

    def decision_role(self) -> str:
        return "Informs: a result is one more observation for a trained health worker, who decides with the person. It replaces no assessment."

    def output_value(self) -> str:
        coverage = f"a prediction set made to hold the truth for {_share(self._facts.options.coverage)} of each class"
        if not self._binary:
            return (
                f"A calibrated probability for each of {_listed(self._task.classes)}, stated for equal shares of the classes, each with an interval "
                f"of sampling error; {coverage}; and an answer: `classified`, `indeterminate` or `not_usable`."
            )
        stated = self._task.prevalence if self._task.prevalence is not None else self._internal.stated_prevalence
        at = "" if stated is None else f" for a prevalence of {stated:.3g} unless another is given"
        return (
            f"The calibrated probability of {self._task.classes[1]!r}, from 0 to 1, stated{at}, with an interval of sampling error; {coverage}; and "
            "an answer: `flagged`, `not_flagged`, `indeterminate` (threshold and prediction set do not agree on one class) or `not_usable`."
        )

    def output_type(self) -> str:
        return "Prediction (calibrated probabilities) and classification (an answer that may be `indeterminate`). It makes no recommendation."

    def threshold(self) -> str:
        if not self._binary:
            return "The answer is the most probable class, given only where the prediction set holds that class alone."
        evidence, target = self._internal, f"{self._task.target_sensitivity:g}"
        at = "" if evidence.threshold is None else f" It is {evidence.threshold:.3g} at a prevalence of {evidence.stated_prevalence:.3g}."
        bound = f"the one-sided {_share(DEFAULT_CONFIDENCE)} lower bound of the out-of-fold sensitivity, by subject,"
        if self._facts.sensitivity_shown:
            return f"The threshold was frozen at training: the highest score of a positive recording at which {bound} is at least {target}.{at}"
        return (
            f"The threshold was frozen at training at the lowest score of a positive recording: at no threshold was {bound} at least {target}, so "
            f"that this target was NOT met; it takes more positive subjects.{at}"
        )

    def outcome(self) -> str:
        task = self._task
        if task.score_name is None or task.score_cutoff is None:
            return f"The label of the recording, one of {_listed(task.classes)}, as the cohort gives it."
        defined = f"{task.classes[1]!r}: {task.score_name} of {task.score_cutoff:g} or more."
        return f"{defined} A questionnaire is a screen itself: agreement with it is no diagnosis."

    def inputs(self) -> str:
        return (
            f"The inputs are {self._inputs()} of one recording. Race, ethnicity, language, sexual orientation, gender identity, sex, date of birth, "
            "social determinants of health and health status are not used as input features; sex, where given, only chooses the reference group that "
            "values are shown against. A voice carries sex, age, language and health all the same, so the output is not independent of them."
        )

    def input_data(self) -> str:
        relative = " Each is taken against earlier recordings of the same person." if self._facts.options.baseline else ""
        sets = ", ".join(sorted(self._facts.extractors))
        return (
            f"One audio recording of one person speaking, decoded to mono at 16 kHz. Measured from it, by software and without a person's judgement: "
            f"{self._inputs()}, from the sets {sets}; docs/features.md defines each.{relative}"
        )

    def predictor_choice(self) -> str:
        left_out = f" (families left out: {_listed(self._facts.options.without)})" if self._facts.options.without else ""
        return f"{self._inputs()} of the sets {_listed(sorted(self._facts.extractors))}{left_out}."

    def predictor_assessors(self) -> str:
        return "No predictor needs interpretation by a person: all are computed from the audio, without knowledge of the outcome."

    def how_to_use(self) -> str:
        prevalence = "; give the prevalence of the place of use if it is known" if self._binary else ""
        return f"`clinical-ser screen RECORDING --model BUNDLE`, or `clinical_ser.screen(...)` in Python{prevalence}."

    def how_predicted(self) -> str:
        return "By the package: gate, features, preprocessing, head, calibrator, prediction sets and threshold, all as in `clinical-ser screen`."

    def gate(self) -> str:
        return _gate_words(self._task.limits)

    def poor_input(self) -> str:
        return (
            "The gate judges each recording before any feature is measured; one that fails gets the answer `not_usable` with advice on how to do "
            "better, and no score. A warning switches off single features that the fault would falsify; these are imputed."
        )

    # Whom it learned from, and how.

    def flow(self) -> str:
        flow = self._internal.flow
        parts = {
            "could not be decoded or measured": flow.without_features,
            "were refused by the gate": flow.not_usable,
            "served as a subject's own baseline": flow.baseline,
            "had no label": flow.without_label,
            "were learned from but not tested": flow.not_tested,
        }
        lost = "".join(f"; {n:,} {what}" for what, n in parts.items() if n)
        reasons = ", ".join(f"{_words(check)} {n:,}" for check, n in sorted(flow.reasons.items()))
        failed = f" Checks of the gate that failed: {reasons} (one recording may fail several)." if reasons else ""
        silent = f" Of {flow.subjects_refused:,} subjects every labelled recording was refused." if flow.subjects_refused else ""
        evaluated = f"{flow.evaluated:,}, of {flow.subjects:,} subjects, were evaluated"
        return f"Of {flow.given:,} recordings in the training cohort {evaluated}{lost}.{failed}{silent}"

    def classes(self) -> str:
        return f"{self._simulated_cohort()}Evaluated out of fold: {_class_counts(self._internal)}."

    def analyses(self) -> str:
        parts = [f"Development: {self._learned_from()}.", f"Evaluation out of fold: {_class_counts(self._internal)}."]
        parts += [f"External cohort {i}: {_class_counts(evidence)}." for i, evidence in enumerate(self._external, start=1)]
        return " ".join(parts)

    def demographics(self) -> str | None:
        return _covariates(self._internal, self._simulated_cohort())

    def sites(self) -> str | None:
        sites = self._internal.covariates.get("site")
        return None if not sites else f"Subjects evaluated, by site: {_counts(sites)}."

    def preparation(self) -> str:
        return (
            "Recordings are decoded, mixed to mono and resampled to 16 kHz. Features missing for a recording become the training median; each is "
            "standardised to mean 0 and SD 1 and held within 5 SD. All of it is learned on training rows only, inside each fold. The same steps and "
            "limits apply to every group."
        )

    def missing_data(self) -> str:
        return (
            "A feature that a recording does not carry becomes the median of the training rows, so that its absence says nothing. Recordings that "
            "the gate refused are not imputed: they are answered `not_usable`, and counted."
        )

    def refused_by_group(self) -> str:
        groups = self._internal.groups
        if not groups:
            return "The cohort names no groups of people, so that quality was not compared between groups."
        columns = dict.fromkeys(group.column for group in groups)
        return (
            "Refused by the gate, of all labelled recordings: "
            + "; ".join(
                f"by {_words(column)}: " + ", ".join(f"{g.value} {g.refused:,} of {g.refused + g.recordings:,}" for g in groups if g.column == column)
                for column in columns
            )
            + "."
        )

    def sample_size(self) -> str:
        features, auroc = sum(self._facts.features.values()), self._internal.figures.get("auroc")
        said = f"The model learned from {self._learned_from()}, with {features:,} candidate features."
        needed = _riley(features, list(self._facts.class_shares.values()), auroc)
        if needed is None:
            return said
        return f"{said} At its AUROC and share of positives, Riley et al. (BMJ 2020;368:m441) ask for at least {needed:,} subjects."

    def class_imbalance(self) -> str:
        if self._binary:
            return "No class was weighted or resampled; each subject counts once. Probabilities can be restated for another prevalence."
        return "In fitting, classes were weighted to count alike; probabilities are calibrated afterwards and stated for equal shares of the classes."

    def fairness_design(self) -> str:
        columns = ", ".join(dict.fromkeys(_words(group.column) for group in self._internal.groups))
        looked = f"every figure is computed for each group by {columns}" if columns else "the cohort names no groups of people to compute figures for"
        return (
            f"No attribute of a person is an input. In the evaluation {looked}; groups with too few people get no figure, and the difference between "
            "the best and the worst group carries its own interval. Nothing in the training was adjusted for a group."
        )

    def bias_design(self) -> str:
        return (
            "A subject's recordings share its weight, and no subject stands on both sides of a split. Features that a warning of the gate names as "
            "falsified by noise or coding are switched off before scoring, and a missing feature becomes the training median. What this does to "
            "differences between people, rooms or devices was not measured."
        )

    # How it was tested.

    def test_type(self) -> str:
        external = f" External: {len(self._external)} other {'cohort' if len(self._external) == 1 else 'cohorts'}." if self._external else ""
        return f"Internal: out of fold, {_split_words(self._facts.options.split)}.{external}"

    def testing_data(self) -> str:
        return f"{self._simulated_cohort()}{self.analyses()}"

    def internal_process(self) -> str:
        evidence, options = self._internal, self._facts.options
        return (
            f"Split: {_split_words(options.split)}, seed {options.seed}. In each fold, preprocessing and head were fitted on the other folds, and "
            "calibrator, prediction sets and threshold were taken from the others too; the released model was then fitted on everyone. Subjects are "
            f"kept apart because a shared voice would let the model know the speaker. {_interval_words(evidence)}{_leak_words(evidence)}"
        )

    def measures(self) -> str:
        found = "; ".join(dict.fromkeys(describe(name).title for name in self._internal.figures))
        plots = (
            "ROC, precision and recall, reliability, distribution of probabilities, net benefit" if self._binary else "reliability, confusion matrix"
        )
        against = list(dict.fromkeys(comparison.against for evidence in (self._internal, *self._external) for comparison in evidence.comparisons))
        compared = f" Compared, on the same subjects, with: {_listed(against)}." if against else ""
        return f"Figures: {found}. Plots, in the evaluation's report: {plots}.{compared}"

    def cluster_methods(self) -> str:
        columns = self._cluster_columns()
        if not columns:
            return "The evaluated cohorts name no more than one site, language or device, so that heterogeneity across clusters was not examined."
        return f"Figures were computed apart for each group by {_listed(columns)}, with intervals over subjects; no random effect was fitted."

    # What was found.

    def internal_validity(self) -> str:
        return _performance("Out of fold, in the training cohort", self._internal)

    def internal_fairness(self) -> str | None:
        return _group_results("Out of fold, in the training cohort", self._internal)

    def external_validity(self) -> str | None:
        return self._each_external(_performance)

    def external_fairness(self) -> str | None:
        return self._each_external(_group_results)

    def external_cohorts(self) -> str | None:
        return self._each_external(lambda where, evidence: f"{where}: {_class_counts(evidence)}.")

    def external_demographics(self) -> str | None:
        if not self._external:
            return None
        own = _covariates(self._internal, "") or "The training cohort names no attributes of people."
        others = self._each_external(lambda where, evidence: f"{where}: {_covariates(evidence, '') or 'it names no attributes of people.'}")
        return f"Training cohort: {_class_counts(self._internal)}. {own}\n\n{others}"

    def external_process(self) -> str | None:
        if not self._external:
            return None
        return (
            "Each other cohort was answered by the frozen model: the same gate, features, calibrator and threshold; nothing was refitted.\n\n"
            + str(self._each_external(lambda where, evidence: f"{where}. {_interval_words(evidence)}{_leak_words(evidence)}"))
        )

    def validity(self) -> str:
        return _joined(self.internal_validity(), self.external_validity())

    def group_results(self) -> str | None:
        return _joined(self.internal_fairness(), self.external_fairness()) or None

    def cluster_results(self) -> str:
        columns = self._cluster_columns()
        found = [_group_results(where, evidence, columns) for where, evidence in self._evaluations()] if columns else []
        return _joined(*found) or "Not examined: the evaluated cohorts name no more than one site, language or device."

    def usefulness_goal(self) -> str | None:
        if not self._binary:
            return None
        return (
            f"A sensitivity of at least {self._task.target_sensitivity:g}, by its lower bound, at a threshold frozen before any evaluation elsewhere."
        )

    def reliability_results(self) -> str:
        def wanted(name: str) -> bool:
            return name.startswith(("coverage.", "calibration_")) or name in {"observed_to_expected", "ece_debiased", "answered", "not_usable"}

        return _joined(*(_performance(where, evidence, tuple(filter(wanted, evidence.figures))) for where, evidence in self._evaluations()))

    def limitations(self) -> str:
        told = [self._statement, *self._facts.warnings]
        for where, evidence in self._evaluations():
            prefix = "" if evidence is self._internal else f"{where}: "
            leaks = [
                f"Leak guard {_words(leak.name)}: {leak.verdict}. {leak.statement}" for leak in evidence.leaks if leak.verdict in {"warn", "fail"}
            ]
            told += [f"{prefix}{text}" for text in (caveat(evidence), *evidence.warnings, *leaks) if text]
        if not self._external:
            told.append("This card holds no evaluation in another cohort.")
        if self._task.score_name is not None:
            told.append(f"Figures are agreement with {self._task.score_name}, which is a screen itself, and not with a diagnosis.")
        told.append(
            "A result that is not flagged does not rule out illness or risk." if self._binary else "A class describes a recording, not a person."
        )
        return " ".join(text for text in dict.fromkeys(told) if text)

    # Parts of the above.

    def _stages(self) -> str:
        return "Development and evaluation out of fold" + (f", and evaluation in {len(self._external)} other cohort(s)," if self._external else "")

    def _kind(self) -> str:
        return f"a {'simulated-speech ' if self._facts.simulated else ''}speech model ({self._facts.head} head)"

    def _question(self) -> str:
        return repr(self._task.classes[1]) if self._binary else f"one of {_listed(self._task.classes)}"

    def _inputs(self) -> str:
        families = ", ".join(f"{_words(family)} {n:,}" for family, n in self._facts.features.items())
        return f"{sum(self._facts.features.values()):,} acoustic measurements ({families})"

    def _learned_from(self) -> str:
        simulated = " of SIMULATED speech" if self._facts.simulated else ""
        return f"{self._facts.recordings:,} recordings of {self._facts.subjects:,} subjects{simulated}"

    def _simulated_cohort(self) -> str:
        return "The speakers are SIMULATED; what follows describes no people. " if self._internal.simulated else ""

    def _evaluations(self) -> list[tuple[str, Evidence]]:
        own = ("Out of fold, in the training cohort", self._internal)
        return [own, *((f"External cohort {i}", evidence) for i, evidence in enumerate(self._external, start=1))]

    def _each_external(self, words: _Words) -> str | None:
        return _joined(*(words(where, evidence) for where, evidence in self._evaluations()[1:])) or None

    def _cluster_columns(self) -> tuple[str, ...]:
        there = {group.column for evidence in (self._internal, *self._external) for group in evidence.groups}
        return tuple(column for column in CLUSTERS if column in there)


def _performance(where: str, evidence: Evidence, names: Sequence[str] | None = None) -> str:
    binary = evidence.task.kind is TaskKind.BINARY
    rest = [name for name in evidence.figures if name.startswith(("ppv.", "npv."))] + ["answered", "accuracy_when_answered", "not_usable"]
    chosen = (*MAIN_FIGURES[binary], *rest) if names is None else names
    told = "; ".join(_figure_words(name, evidence.figures[name], evidence.level) for name in chosen if name in evidence.figures)
    of = f"{where} ({evidence.flow.subjects:,} subjects, {evidence.flow.evaluated:,} recordings)"
    return f"{_before(evidence)}{of}: {told}."


def _group_results(where: str, evidence: Evidence, columns: Sequence[str] | None = None) -> str | None:
    names = GROUP_FIGURES[evidence.task.kind is TaskKind.BINARY]
    chosen = [column for column in dict.fromkeys(group.column for group in evidence.groups) if columns is None or column in columns]
    if not chosen:
        return None
    told = [_column_words(column, [group for group in evidence.groups if group.column == column], evidence, names) for column in chosen]
    return f"{_before(evidence)}{where}. " + " ".join(told)


def _column_words(column: str, groups: Sequence[Group], evidence: Evidence, names: Sequence[str]) -> str:
    told = [
        f"{group.value} ({group.subjects:,} subjects): "
        + (
            ", ".join(_figure_words(n, group.figures[n], evidence.level, people=False) for n in names if n in group.figures)
            if group.enough
            else "too few people"
        )
        for group in groups
    ]
    gaps = [
        f"{describe(gap.figure).title} {gap.best} over {gap.worst} {_value_words(gap.difference, evidence.level)}"
        for gap in evidence.gaps
        if gap.column == column and gap.figure in names
    ]
    return f"By {_words(column)}: {'; '.join(told)}." + (f" Largest differences: {'; '.join(gaps)}." if gaps else "")


def _figure_words(name: str, figure: Figure, level: float, *, people: bool = True) -> str:
    n = f", n = {figure.subjects:,} subjects" if people else ""
    return f"{describe(name).title} {_value_words(figure, level)}{n}"


def _value_words(figure: Figure, level: float) -> str:
    if figure.value is None:
        return "not defined"
    if figure.low is None or figure.high is None:
        return f"{figure.value:.3f} (no interval)"
    return f"{figure.value:.3f} ({_share(level)} interval {figure.low:.3f} to {figure.high:.3f})"


def _before(evidence: Evidence) -> str:
    return f"{words} " if (words := caveat(evidence)) else ""


def _class_counts(evidence: Evidence) -> str:
    flow = evidence.flow
    by_class = ", ".join(f"{label} {n:,} subjects ({flow.by_class.get(label, 0):,} recordings)" for label, n in flow.subjects_by_class.items())
    return f"{flow.subjects:,} subjects, {flow.evaluated:,} recordings: {by_class}"


def _covariates(evidence: Evidence, before: str) -> str | None:
    if not evidence.covariates:
        return None
    told = "; ".join(f"by {_words(column)}: {_counts(counts)}" for column, counts in evidence.covariates.items())
    return f"{before}Of {evidence.flow.subjects:,} evaluated subjects, {told}."


def _interval_words(evidence: Evidence) -> str:
    return (
        f"Intervals are {_share(evidence.level)}, over subjects: cluster bootstrap with {evidence.replicates:,} replicates; where each subject has "
        "one recording, Wilson's for shares and DeLong's for the AUROC."
    )


def _leak_words(evidence: Evidence) -> str:
    if not evidence.leaks:
        return " No leak guard was run."
    return " Leak guards: " + ", ".join(f"{_words(finding.name)}: {_words(finding.verdict)}" for finding in evidence.leaks) + "."


def _gate_words(limits: GateLimits) -> str:
    return (
        f"A recording is refused with less than {limits.speech_fail_s:g} s of net speech, a voiced share under {_share(limits.voiced_fail)}, a "
        f"signal less than {limits.snr_fail_db:g} dB above the room, more than {_share(limits.clipped_fail)} clipped samples, a bandwidth under "
        f"{limits.bandwidth_fail_hz:,g} Hz, a speech level under {limits.level_fail_dbfs:g} dBFS, or more than {_share(limits.nonfinite_fail)} "
        f"samples that are no numbers. It passes with a warning under {limits.speech_warn_s:g} s of net speech or {limits.snr_warn_db:g} dB above "
        f"the room, or as MP3 of at most {limits.mp3_warn_bps / 1000:g} kbit/s."
    )


def _split_words(split: int | str) -> str:
    if split == LEAVE_ONE_SUBJECT_OUT:
        return "one subject left out at a time"
    return f"{split} folds by subject" if isinstance(split, int) else f"the folds that the cohort's column {split!r} gives, by subject"


def _riley(features: int, shares: Sequence[float], auroc: Figure | None) -> int | None:
    if auroc is None or auroc.value is None or not features:
        return None
    try:
        return riley_minimum(features, shares[1], auroc.value).subjects
    except InvalidValueError:  # no better than chance, or perfect: no number of subjects follows from the formula
        return None


def _joined(*texts: str | None) -> str:
    return "\n\n".join(text for text in texts if text)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{value} {n:,}" for value, n in counts.items())


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(str, names))


def _words(name: str) -> str:
    return name.replace("_", " ")


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"
