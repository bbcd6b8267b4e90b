"""From predictions to evidence: every figure, curve, group and comparison, with its interval, from one set of bootstrap samples.

The one idea: all parts are functions of how often each subject was drawn. They are laid end to end and read off sample by sample, so that a
difference between models or groups is paired by subject without further work.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.errors import InvalidValueError
from clinical_ser.evaluation import comparisons, subgroups
from clinical_ser.evaluation.curves import BinaryCurvesOf, ClassCurvesOf
from clinical_ser.evaluation.evidence import Comparison, Evidence, Flow, Gap, Group
from clinical_ser.evaluation.explanations import CohortExplanation
from clinical_ser.evaluation.figure import Figure
from clinical_ser.evaluation.figures import BinaryFigures, ClassFigures, figures_of
from clinical_ser.evaluation.intervals import Bootstrap, bootstrap, delong, likelihood_ratio, wilson
from clinical_ser.evaluation.leaks import LeakFinding, check_leaks
from clinical_ser.evaluation.naming import describe
from clinical_ser.evaluation.planning import LearningCurve
from clinical_ser.evaluation.predictions import Predictions
from clinical_ser.evaluation.software import software_versions
from clinical_ser.models.training import cohort_digest
from clinical_ser.models.weights import subject_weights

REPLICATES = 2000
LEAST_REPLICATES = 20
"""Fewer give no standard error to speak of; release gates ask for `gates.LEAST_REPLICATES`."""
LEVEL = 0.95
MINIMUM_EVENTS = 100
"""External evaluations with fewer subjects in the smaller class leave calibration badly known (Collins, Ogundimu & Altman 2016, Stat Med 35:214)."""
ROUGH_SUBJECTS = 50
GAP_FIGURES = {True: ("auroc", "sensitivity", "specificity", "brier", "deferred"), False: ("uar", "accuracy", "deferred")}
"""By whether the task has two classes: what the best and worst group are compared in."""

GUARDS = ("shared_subjects", "same_audio", "near_identical", "fitted_outside", "nuisance")
TRAINING_COHORT = LeakFinding(
    name="shared_subjects",
    verdict="fail",
    statement="These are the recordings that the model learned from, with the same labels: no other cohort at all.",
)
BOOTSTRAP = "cluster bootstrap"
LIKELIHOOD_RATIO = "likelihood ratio (MOVER-R)"
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class EvaluationOptions:
    """How to evaluate; everything that changes a number is here."""

    by: tuple[str, ...] | None = None
    """Columns to look at group by group; None: those of `subgroups.DEFAULT_COLUMNS` that the cohort has."""
    replicates: int = REPLICATES
    level: float = LEVEL
    seed: int = 0
    workers: int = 1
    accepted_leaks: tuple[str, ...] = ()
    comparators: tuple[comparisons.Comparator, ...] = ()

    def __post_init__(self) -> None:
        if self.replicates < LEAST_REPLICATES:
            raise InvalidValueError("replicates", self.replicates, f"at least {LEAST_REPLICATES}")
        if unknown := sorted(set(self.accepted_leaks) - set(GUARDS)):
            raise InvalidValueError("--accept-leak", unknown, GUARDS)


@dataclass(eq=False)
class _Layout:
    """Parts of the statistic, laid end to end."""

    parts: list[tuple[Callable[[Vector], Vector], Vector, NDArray[np.intp] | None]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def add(self, statistic: Callable[[Vector], Vector], weight: Vector, rows: NDArray[np.intp] | None = None) -> slice:
        """Lay a part down and return where it lies; `weight` is what its rows count before sampling."""
        start = sum(self.sizes)
        self.parts.append((statistic, weight, rows))
        self.sizes.append(len(statistic(weight)))
        return slice(start, start + self.sizes[-1])

    def __call__(self, drawn: Vector) -> Vector:
        """Return all parts when each row was drawn as often as said, shape (rows,)."""
        return np.concatenate([part(weight * (drawn if rows is None else drawn[rows])) for part, weight, rows in self.parts])


def evaluate(
    predictions: Predictions,
    *,
    table: FeatureTable | None = None,
    training: FeatureTable | None = None,
    others: Mapping[str, Predictions] | None = None,
    learned_from: str | None = None,
    learning_curve: LearningCurve | None = None,
    explanation: CohortExplanation | None = None,
    options: EvaluationOptions | None = None,
) -> Evidence:
    """Evaluate predictions.

    Parameters
    ----------
    predictions
        From `predictions.of_training`, `predict`, `read_predictions` or `from_scores`.
    table
        The feature table that was predicted; the leak guards look at it.
    training
        The table that the model was trained on, for the leak guards of an external evaluation.
    others
        Predictions of other models on the same table, by name, to compare with.
    learned_from
        Digest of the cohort that the model learned from (`BundleManifest.cohort_digest`), so that the same cohort does not pass for another one.
    learning_curve, explanation
        To be shown with the rest.
    options
        See `EvaluationOptions`.

    Returns
    -------
    Evidence
        The same predictions and options give the same evidence, whatever the number of workers.
    """
    options = options or EvaluationOptions()
    tested = None if table is None else _tested_rows(predictions, table)
    evidence = _Evaluation(predictions, options).run(table, tested, training, others or {}, learned_from)
    return evidence.model_copy(update={"learning_curve": learning_curve, "explanation": explanation})


class _Evaluation:
    """One evaluation: lays out the statistic, draws the samples once, and reads everything off."""

    def __init__(self, predictions: Predictions, options: EvaluationOptions):
        self._predictions, self._options = predictions, options
        self._subjects = predictions.subjects
        self._layout = _Layout()
        self._figures = figures_of(predictions)
        self._at = self._layout.add(self._figures, self._figures.weight)
        self._curves = BinaryCurvesOf(predictions) if predictions.binary else ClassCurvesOf(predictions)
        self._curves_at = self._layout.add(self._curves, self._curves.weight)

    def run(
        self,
        table: FeatureTable | None,
        tested: FeatureTable | None,
        training: FeatureTable | None,
        others: Mapping[str, Predictions],
        learned_from: str | None,
    ) -> Evidence:
        """Draw the samples and read everything off; `tested` are the rows of `table` that were predicted."""
        predictions, options = self._predictions, self._options
        members = subgroups.members_of(predictions, options.by)
        groups = [(one, self._group_part(one.rows)) for one in members]
        pairs = comparisons.pairs_of(predictions, others, options.comparators)
        paired = [(pair, self._layout.add(pair, pair.weight, pair.rows)) for pair in pairs]
        drawn = bootstrap(
            self._layout, self._subjects, replicates=options.replicates, level=options.level, seed=options.seed, workers=options.workers
        )
        figures = self._named(drawn, self._figures, self._at, None) | {"not_usable": self._refused()}
        found = [self._group(drawn, one, part) for one, part in groups]
        main = figures["auroc" if predictions.binary else "uar"]
        leaks = _leaks(predictions, table, tested, training, main, options.seed)
        if predictions.origin == "external" and learned_from == cohort_digest(predictions.frame["recording"], predictions.target):
            leaks = (TRAINING_COHORT, *(finding for finding in leaks if finding.name != TRAINING_COHORT.name))
        points = self._bounds(drawn, self._curves_at)
        return Evidence(
            origin=predictions.origin,
            task=predictions.task,
            model=predictions.model,
            simulated=predictions.simulated,
            flow=_flow(predictions),
            cohort_prevalence=figures["prevalence"].value if predictions.binary else None,
            stated_prevalence=predictions.stated_prevalence,
            threshold=_threshold(predictions),
            figures=figures,
            binary=self._curves.assemble(*points) if isinstance(self._curves, BinaryCurvesOf) else None,
            classes=self._curves.assemble(*points, figures) if isinstance(self._curves, ClassCurvesOf) else None,
            groups=tuple(found),
            gaps=tuple(self._gaps(drawn, groups)),
            leaks=leaks,
            accepted_leaks=tuple(
                finding.name for finding in leaks if finding.verdict in {"fail", "not_checked"} and finding.name in options.accepted_leaks
            ),
            comparisons=tuple(comparison for pair, at in paired for comparison in self._comparison(drawn, pair, at)),
            covariates=subgroups.counted(predictions),
            replicates=options.replicates,
            level=options.level,
            seed=options.seed,
            software=software_versions(),
            warnings=_warnings(predictions),
        )

    def _group_part(self, rows: NDArray[np.intp]) -> "_GroupPart | None":
        if not subgroups.enough(self._predictions, rows):
            return None
        figures = figures_of(self._predictions, rows)
        return _GroupPart(figures, self._layout.add(figures, figures.weight, rows))

    def _group(self, drawn: Bootstrap, one: subgroups.Members, part: "_GroupPart | None") -> Group:
        predictions, subjects = self._predictions, self._subjects[one.rows]
        ill = predictions.target[one.rows] == 1 if predictions.binary else np.ones(len(one.rows), bool)
        return Group(
            column=one.column,
            value=one.value,
            subjects=len(np.unique(subjects)),
            recordings=len(one.rows),
            positives=None if part is None else len(np.unique(subjects[ill])),
            refused=len(one.refused),
            enough=part is not None,
            figures={}
            if part is None
            else self._named(drawn, part.figures, part.at, one.rows) | {"not_usable": self._refused(one.rows, one.refused)},
        )

    def _named(self, drawn: Bootstrap, figures: BinaryFigures | ClassFigures, at: slice, rows: NDArray[np.intp] | None) -> dict[str, Figure]:
        everyone = np.arange(len(self._subjects)) if rows is None else rows
        found = {name: self._figure(drawn, at.start + i, name, figures, everyone) for i, name in enumerate(figures.names)}
        return found | {name: _predictive(name, figure, found) for name, figure in found.items() if name.startswith(("ppv.", "npv."))}

    def _figure(self, drawn: Bootstrap, index: int, name: str, figures: BinaryFigures | ClassFigures, everyone: NDArray[np.intp]) -> Figure:
        """Give a figure its interval: Wilson's or DeLong's where every row is a person of its own, the bootstrap's elsewhere."""
        about = figures.about(name)
        rows, weight = everyone[about], figures.weight[about]
        people, value, kind = len(np.unique(self._subjects[rows])), float(drawn.values[index]), describe(name).kind
        if name == "ece_debiased":
            value = float(np.sqrt(max(value, 0.0))) if np.isfinite(value) else value
        # Of people with several recordings, one alone may be about this figure; they then weigh less than others, and no formula knows.
        alone = people == len(rows) and bool(np.all(weight == weight[:1]))
        level, method = self._options.level, BOOTSTRAP
        if not np.isfinite(value):
            low = high = np.nan
        elif alone and kind == "share":
            (low, high), method = wilson(value, people, level=level), "Wilson"
        elif alone and name == "auroc":
            (low, high), method = delong(self._predictions.target[rows], self._predictions.log_odds[rows], level=level), "DeLong"
        else:
            low, high = _interval(drawn, index, name, figures.rests_on(name))
        return Figure.of(value, low, high, subjects=people, recordings=len(rows), method=method)

    def _bounds(self, drawn: Bootstrap, at: slice) -> tuple[Vector, Vector, Vector]:
        """Points of curves with their bands."""
        # A point of a curve rests on the people near it, of whom nobody can say how many; the smaller class is a cautious number.
        people = min(self._people_by_class(np.arange(len(self._subjects))))
        bounded = at.start + self._curves.bounded
        low, high = np.array([drawn.interval(i, subjects=people, share=i < bounded) for i in range(at.start, at.stop)]).reshape(-1, 2).T
        return drawn.values[at], low, high

    def _gaps(self, drawn: Bootstrap, groups: "Sequence[tuple[subgroups.Members, _GroupPart | None]]") -> list[Gap]:
        columns = dict.fromkeys(one.column for one, _ in groups)
        known = {column: [(one, part) for one, part in groups if one.column == column and part is not None] for column in columns}
        return [
            gap
            for column, parts in known.items()
            if len(parts) > 1
            for name in GAP_FIGURES[self._predictions.binary]
            if (gap := self._gap(drawn, column, name, parts)) is not None
        ]

    def _gap(self, drawn: Bootstrap, column: str, name: str, parts: "Sequence[tuple[subgroups.Members, _GroupPart]]") -> Gap | None:
        if any(name not in part.figures.names for _, part in parts):
            return None
        where = np.array([part.at.start + part.figures.names.index(name) for _, part in parts])
        values = drawn.values[where]
        if not np.isfinite(values).all():
            return None
        highest, lowest = (parts[int(at)][0].value for at in (values.argmax(), values.argmin()))
        better_high = describe(name).best == 1
        low, high = drawn.gap(where.tolist(), subjects=[part.figures.rests_on(name) for _, part in parts])
        rows = np.concatenate([one.rows for one, _ in parts])
        people = len(np.unique(self._subjects[rows]))
        return Gap(
            column=column,
            figure=name,
            best=highest if better_high else lowest,
            worst=lowest if better_high else highest,
            difference=Figure.of(float(np.ptp(values)), low, high, subjects=people, recordings=len(rows), method=BOOTSTRAP),
        )

    def _comparison(self, drawn: Bootstrap, pair: comparisons.Pair, at: slice) -> Iterator[Comparison]:
        n = len(pair.names)
        less = drawn.derived(lambda figures: figures[..., at.start : at.start + n] - figures[..., at.start + n : at.stop])
        for i, name in enumerate(pair.names):
            rows = pair.rows[pair.about[i]]
            people = len(np.unique(self._subjects[rows]))
            rests_on = min(self._people_by_class(rows)) if name in {"auroc", "uar"} else people
            mine, other = (
                Figure.of(drawn.values[index], *_interval(drawn, index, name, rests_on), subjects=people, recordings=len(rows), method=BOOTSTRAP)
                for index in (at.start + i, at.start + n + i)
            )
            difference = Figure.of(less.values[i], *less.interval(i, subjects=rests_on), subjects=people, recordings=len(rows), method=BOOTSTRAP)
            if pair.kind == "chance":
                other = other.model_copy(update={"low": other.value, "high": other.value, "method": "exact"})
            yield Comparison(
                against=pair.against,
                kind=pair.kind,
                figure=name,
                model=mine,
                other=other,
                difference=difference,
                subjects=people,
                recordings=len(rows),
            )

    def _people_by_class(self, rows: NDArray[np.intp]) -> list[int]:
        target, subjects = self._predictions.target[rows], self._subjects[rows]
        return [len(np.unique(subjects[target == k])) for k in range(len(self._predictions.task.classes))]

    def _refused(self, rows: NDArray[np.intp] | None = None, refused: NDArray[np.intp] | None = None) -> Figure:
        """Share of labelled recordings that the gate refused, subjects counting once as in the other figures.

        In a draw of its own, because whole subjects may be among the refused.
        """
        predictions = self._predictions
        kept = self._subjects if rows is None else self._subjects[rows]
        others = predictions.refused["subject"].to_numpy(str)
        subjects = np.concatenate([kept, others if refused is None else others[refused]])
        is_refused = np.arange(len(subjects)) >= len(kept)
        weight = subject_weights(subjects, len(subjects)) if predictions.binary else np.ones(len(subjects))
        people, value = len(np.unique(subjects)), float(np.average(is_refused, weights=weight))
        if people == len(subjects):
            low, high = wilson(value, people, level=self._options.level)
            return Figure.of(value, low, high, subjects=people, recordings=people, method="Wilson")
        drawn = bootstrap(
            lambda drawn: np.array([drawn @ is_refused / drawn.sum()]),
            subjects,
            weight=weight,
            replicates=self._options.replicates,
            level=self._options.level,
            seed=self._options.seed,
        )
        low, high = drawn.interval(0, subjects=people, share=True)
        return Figure.of(value, low, high, subjects=people, recordings=len(subjects), method=BOOTSTRAP)


@dataclass(frozen=True, eq=False)
class _GroupPart:
    """A group's figures and where they lie."""

    figures: BinaryFigures | ClassFigures
    at: slice


def _interval(drawn: Bootstrap, index: int, name: str, rests_on: int) -> tuple[float, float]:
    if name == "ece_debiased":  # its square, from which what sampling adds is taken off already
        low, high = drawn.interval(index, subjects=rests_on)
        return float(np.sqrt(max(low, 0.0))), float(np.sqrt(max(high, 0.0)))
    return interval_of(drawn, index, name, rests_on)


def interval_of(drawn: Bootstrap, index: int, name: str, rests_on: int) -> tuple[float, float]:
    """Return the interval of a figure of a bootstrap on the scale that it has; it rests on so many subjects."""
    kind = describe(name).kind
    if kind == "distance":
        return drawn.of_distance(index, subjects=rests_on)
    # The Brier score of several classes goes up to 2.
    bounded = kind in {"share", "bounded"} and (name != "brier" or drawn.values[index] <= 1)
    return drawn.interval(index, subjects=rests_on, share=bounded)


def _predictive(name: str, figure: Figure, found: Mapping[str, Figure]) -> Figure:
    """Give a predictive value the interval of its likelihood ratio, which sensitivity and specificity make, at the stated prevalence."""
    prevalence = float(name.partition(".")[2])
    sensitivity, specificity = (_with_bounds(found[kind]) for kind in ("sensitivity", "specificity"))
    missed, alarms = ((1 - value, 1 - high, 1 - low) for value, low, high in (sensitivity, specificity))
    if name.startswith("ppv"):
        ratio, odds = likelihood_ratio(sensitivity, alarms), prevalence / (1 - prevalence)
    else:
        ratio, odds = likelihood_ratio(specificity, missed), (1 - prevalence) / prevalence
    low, high = (1.0 if np.isinf(bound) else min(bound * odds / (1 + bound * odds), 1.0) for bound in ratio)
    value = np.nan if figure.value is None else figure.value
    return Figure.of(value, low, high, subjects=figure.subjects, recordings=figure.recordings, method=LIKELIHOOD_RATIO)


def _with_bounds(figure: Figure) -> tuple[float, float, float]:
    value, low, high = (np.nan if number is None else number for number in (figure.value, figure.low, figure.high))
    return value, low, high


def _threshold(predictions: Predictions) -> float | None:
    return None if predictions.threshold is None else float(expit(predictions.threshold))


def _flow(predictions: Predictions) -> Flow:
    counts, frame, refused = predictions.counts, predictions.frame, predictions.refused
    classes = predictions.task.classes
    evaluated = set(frame["subject"])
    return Flow(
        given=counts["given"],
        without_features=counts.get("without features", 0),
        not_usable=counts.get("not usable", 0),
        baseline=counts.get("baseline", 0),
        without_label=counts.get("without label", 0),
        not_tested=counts["given"]
        - len(frame)
        - sum(counts.get(what, 0) for what in ("without features", "not usable", "baseline", "without label")),
        evaluated=len(frame),
        subjects=len(evaluated),
        subjects_refused=len(set(refused["subject"]) - evaluated),
        by_class={label: int((frame["label"] == label).sum()) for label in classes},
        subjects_by_class={label: int(frame.loc[frame["label"] == label, "subject"].nunique()) for label in classes},
        reasons=predictions.gate_failures,
    )


def _tested_rows(predictions: Predictions, table: FeatureTable) -> FeatureTable:
    """Return the rows of the table that were predicted, in the order of the predictions."""
    frame = predictions.frame
    at = pd.Index(table.frame["row"]).get_indexer(frame["row"]) if "row" in frame else np.array([-1])
    if (at < 0).any() or (table.frame["recording"].to_numpy()[at] != frame["recording"].to_numpy()).any():
        raise InvalidValueError("the feature table", "one without the predicted recordings", "the one that the predictions were made from")
    return replace(table, frame=table.frame.iloc[at].assign(subject=frame["subject"].to_numpy()).reset_index(drop=True))


def _leaks(
    predictions: Predictions, table: FeatureTable | None, tested: FeatureTable | None, training: FeatureTable | None, main: Figure, seed: int
) -> tuple[LeakFinding, ...]:
    if tested is None:
        missing = "Not checked: the feature table behind the predictions was not given."
        return tuple(LeakFinding(name=name, verdict="not_checked", statement=missing) for name in GUARDS)
    frame = predictions.frame
    fold = frame["fold"].to_numpy() if predictions.origin == "out_of_fold" and "fold" in frame else None
    return check_leaks(tested, frame["label"].to_numpy(object), training=training, fold=fold, model=main, whole=table, seed=seed)


def _warnings(predictions: Predictions) -> tuple[str, ...]:
    """Say what a reader has to know before the figures."""
    people = len(np.unique(predictions.subjects))
    found = []
    if predictions.simulated:
        found.append("The speech is simulated; the figures say nothing about people.")
    if people < ROUGH_SUBJECTS:
        found.append(f"Figures about {people} subjects are rough, and so are their intervals; expect another group of people to differ.")
    if predictions.binary:
        found += _warnings_of_two_classes(predictions)
    return tuple(found)


def _warnings_of_two_classes(predictions: Predictions) -> list[str]:
    frame = predictions.frame
    people = [int(frame.loc[frame["label"] == label, "subject"].nunique()) for label in predictions.task.classes]
    own, stated = people[1] / sum(people), predictions.stated_prevalence
    found = [f"No evaluated subject is of class {label!r}." for label, n in zip(predictions.task.classes, people, strict=True) if not n]
    if predictions.origin == "external" and 0 < min(people) < MINIMUM_EVENTS:
        found.append(
            f"The smaller class has {min(people)} subjects; with fewer than {MINIMUM_EVENTS} calibration is badly known (Collins et al. 2016)."
        )
    if stated is not None and abs(own - stated) > 0.05:
        found.append(
            f"Probabilities are stated for a prevalence of {stated:.0%}, and {own:.0%} of the evaluated subjects have the condition: calibration "
            "in the large differs for that reason alone. State the prevalence of this cohort to look at the rest."
        )
    return found
