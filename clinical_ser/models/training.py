"""From a feature table to a trained model, with the subject as the unit in every step.

The one idea: everything that describes the model (calibrator, prediction sets, threshold, figures) is learned on margins out of fold,
from heads that never heard the subject; then the head is fitted again on everyone.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from clinical_ser.cohorts.baseline import marked
from clinical_ser.cohorts.splits import Fold, check_fold, group_k_fold, leave_one_subject_out, official
from clinical_ser.cohorts.table import FeatureTable, RowProblem
from clinical_ser.cohorts.tasks import Task, TaskKind
from clinical_ser.errors import InvalidValueError, SplitError, TrainingError
from clinical_ser.features import catalogue
from clinical_ser.models.background import BackgroundLearner
from clinical_ser.models.calibration import MarginPlatt, MulticlassPlatt
from clinical_ser.models.conformal import ConformalSets
from clinical_ser.models.fused_head import INTERPRETABLE, FusedHead
from clinical_ser.models.heads import Head, probabilities
from clinical_ser.models.interpretable import EMBEDDING, reproduction
from clinical_ser.models.operating_point import OperatingPoint, choose
from clinical_ser.models.preprocessing import Preprocessor
from clinical_ser.models.reference import Cut, cuts, summarise
from clinical_ser.models.rows import Rows, Selection, select_rows
from clinical_ser.models.stacked_head import StackedHead
from clinical_ser.models.trained import HEADS, Calibrator, Refit, TrainedModel, answer_statuses, at_answering_shares
from clinical_ser.models.weights import subject_weights

MINIMUM_SUBJECTS_PER_CLASS = 5
"""Below this a fold may have to calibrate on three people; a model from fewer would only look like one."""
LEAVE_ONE_SUBJECT_OUT = "loso"
FUSIONS = ("late", "stacked", "concatenated")
"""How embeddings join named features: heads apart and their margins added, the same with learned weights, or one head over all columns."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class TrainingOptions:
    """How to train; everything that changes the model is here, so that the same table and options give the same bytes."""

    head: str = "linear"
    """Of named features; each embedding has a linear one."""
    fusion: str = "late"
    split: int | str = 5
    """Number of folds by subject, `loso`, or the name of the table's column with an official split."""
    coverage: float = 0.90
    """Of the prediction sets, in each class."""
    refits: int = 40
    without: tuple[str, ...] = ()
    """Families to leave out, for ablations."""
    use_baseline: bool = False
    """Take features against each subject's own baseline recordings (column `baseline`)."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.head not in {*HEADS, StackedHead.kind}:
            raise InvalidValueError("head", self.head, sorted(HEADS))
        if self.fusion not in FUSIONS:
            raise InvalidValueError("fusion", self.fusion, FUSIONS)
        if unknown := sorted(set(self.without) - set(catalogue.FAMILIES)):
            raise InvalidValueError("without", unknown, catalogue.FAMILIES)
        if self.refits < 2:
            raise InvalidValueError("refits", self.refits, "at least 2, or no interval can be given")
        if isinstance(self.split, int) and self.split < 2:
            raise InvalidValueError("split", self.split, "at least 2 folds")
        if not 0 < self.coverage < 1:
            raise InvalidValueError("coverage", self.coverage, "a share strictly between 0 and 1")
        if not 0 <= self.seed < 2**32:
            raise InvalidValueError("seed", self.seed, "a whole number from 0 to 2**32 - 1, as scikit-learn takes them")


@dataclass(frozen=True, eq=False)
class Training:
    """A trained model and the evidence about it."""

    model: TrainedModel
    out_of_fold: pd.DataFrame
    """One row a training recording: `row`, `recording`, `subject`, covariates, `fold`, `label`, and what a model and calibrator that never
    heard the subject say: `log_odds` (two classes, at training prevalence) and `probability.<class>` (of several: at equal shares); `above` (two
    classes: at or above the threshold), `status` and `covered` (the truth is in the prediction set), by a threshold and by sets that were chosen
    on the other folds."""
    refused: pd.DataFrame
    """Labelled rows that the gate refused, with their covariates."""
    gate_failures: dict[str, int]
    """Checks of the gate that failed, and in how many rows."""
    counts: dict[str, int]
    """Rows given, learned from, and left out, by reason."""
    problems: tuple[RowProblem, ...]
    warnings: tuple[str, ...]
    cohort_digest: str
    subjects_learned_from: int
    simulated: bool
    options: TrainingOptions = field(default_factory=TrainingOptions)
    margins: NDArray[np.float64] | None = None
    """Of the rows of `out_of_fold`, by heads that never heard them, before calibration; None of a model that was trained otherwise."""


def train(table: FeatureTable, task: Task, options: TrainingOptions | None = None, *, progress: Progress | None = None) -> Training:
    """Train a calibrated model on a feature table.

    Parameters
    ----------
    table
        One row a recording, from `build_table`.
    task
        What to learn; the recordings have to pass its gate.
    options
        See `TrainingOptions`.
    progress
        Called with (steps done, steps in all).

    Returns
    -------
    Training
        The model, its out-of-fold predictions, and an account of every row.

    Raises
    ------
    TrainingError
        If a class has fewer than `MINIMUM_SUBJECTS_PER_CLASS` subjects.
    SplitError, SubjectLeakError
        If the subjects cannot be split as asked, or a split shares one.
    ManifestError
        If the table has no labels for the task.
    """
    # Threads that wait for each other over matrices this small cost ten times the work: 11.8 s of CPU against 1.2 with 600 rows on two cores. And
    # one thread adds up in one order, so that machines with other numbers of cores learn the same bits.
    with threadpool_limits(limits=1):
        return _train(table, task, options or TrainingOptions(), progress or _silent)


def _train(table: FeatureTable, task: Task, options: TrainingOptions, report: Progress) -> Training:
    selected = _usable_rows(table, task, options)
    families = {catalogue.get(name).family for name in selected.rows.names}
    if EMBEDDING not in families or families == {EMBEDDING}:
        return _train_on(table, selected, options, report)
    # The model without embeddings is trained beside the one with them, on the same people and folds, so that it can always be asked.
    steps = _Halves(report)
    plain = replace(options, without=(*options.without, EMBEDDING))
    twin = _train_on(table, _usable_rows(table, task, plain), plain, steps.first)
    whole = _train_on(table, selected, options, steps.second)
    added = whole.model.head.family_margins(whole.model.preprocessor.transform(selected.rows.X))[:, whole.model.head.families_.index(EMBEDDING)]
    interpretable = [name in twin.model.features for name in selected.rows.names]
    Z = twin.model.preprocessor.transform(selected.rows.X[:, interpretable])
    reproduced = reproduction(Z, added, selected.rows.subjects, seed=options.seed)
    return replace(whole, model=replace(whole.model, interpretable=twin.model, reproduced=reproduced))


class _Halves:
    """Reports two runs as one."""

    def __init__(self, report: Progress):
        self._report = report

    def first(self, done: int, total: int) -> None:
        self._report(done, 2 * total)

    def second(self, done: int, total: int) -> None:
        self._report(total + done, 2 * total)


def _train_on(table: FeatureTable, selected: Selection, options: TrainingOptions, report: Progress) -> Training:
    rows, task = selected.rows, selected.task
    folds = _folds(rows, options)
    healthy, found = _reference_cuts(rows, task, folds)
    background = BackgroundLearner([replace(cut, rows=healthy[cut.rows]) for cut in found], rows.subjects)
    total = len(folds) + 1 + options.refits
    margins, fold_of = np.empty(0), np.full(len(rows.target), -1)
    for i, fold in enumerate(folds):
        head, preprocessor = _fit(rows.take(fold.train), task, options)
        Z = preprocessor.transform(rows.X[fold.test])
        out = head.margins(Z)
        if not i:
            margins = np.full((len(rows.target), *out.shape[1:]), np.nan)
        margins[fold.test], fold_of[fold.test] = out, i
        background.hear(fold.test, head, Z)
        report(i + 1, total)
    tested = fold_of >= 0
    rows, margins, fold_of, everyone = rows.take(np.flatnonzero(tested)), margins[tested], fold_of[tested], rows
    calibrator, log_odds = _calibrate(rows, margins, fold_of, task)
    head, preprocessor = _fit(everyone, task, options)
    report(len(folds) + 1, total)
    refits, drawn = _refits(everyone, rows, margins, head, preprocessor, task, options, lambda i: report(len(folds) + 1 + i, total))
    binary = task.kind is TaskKind.BINARY
    again = [(refit.head, times) for refit, times in zip(refits, drawn, strict=True)]
    model = TrainedModel(
        task=task,
        features=rows.names,
        extractors=_extractors_used(table, rows.names),
        preprocessor=preprocessor,
        head=head,
        calibrator=calibrator,
        conformal=ConformalSets(options.coverage).fit(probabilities(log_odds), rows.target, groups=rows.subjects),
        operating_point=_operating_point(rows, log_odds, task) if binary else None,
        refits=tuple(refits),
        reference=summarise(everyone.X[healthy], rows.names, everyone.subjects[healthy], found, _reference_title(task)),
        class_shares=_class_shares(rows, task),
        uses_baseline=options.use_baseline,
        backgrounds=background.summarise(head, preprocessor.transform(everyone.X), again),
    )
    return Training(
        model=model,
        out_of_fold=_out_of_fold(rows, log_odds, fold_of, task, options),
        refused=selected.refused,
        gate_failures=selected.gate_failures,
        counts=selected.counts,
        problems=selected.problems,
        warnings=warnings_of(rows, task, model.conformal),
        cohort_digest=cohort_digest(everyone.frame["recording"], everyone.target),
        subjects_learned_from=len(np.unique(everyone.subjects)),
        simulated=bool(marked(table.frame, "simulated").any()),
        options=options,
        margins=margins,
    )


def _silent(_done: int, _total: int) -> None:
    pass


def _usable_rows(table: FeatureTable, task: Task, options: TrainingOptions) -> Selection:
    """Select the rows to learn from, and make sure that there are enough."""
    names = tuple(name for name in table.feature_names if catalogue.get(name).family not in options.without)
    selected = select_rows(table, task, names, use_baseline=options.use_baseline, used_as="learned from")
    if not len(selected.rows.target):
        reasons = sorted({problem.reason for problem in selected.problems})
        raise TrainingError(
            f"No row can be learned from for task {task.name!r}: {selected.counts}; checks of the gate that failed: {selected.gate_failures}; "
            f"problems: {reasons}."
        )
    _check_enough_subjects(selected.rows, selected.task)
    return selected


def _check_enough_subjects(rows: Rows, task: Task) -> None:
    if task.kind is TaskKind.MULTICLASS and len(task.classes) < 3:
        raise TrainingError(
            f"Task {task.name!r} is for three classes or more, and the labels are {list(task.classes)}; "
            'a .toml file with kind = "binary" defines one for two (docs/cohorts.md).'
        )
    per_class = {label: len(np.unique(rows.subjects[rows.target == k])) for k, label in enumerate(task.classes)}
    few = {label: n for label, n in per_class.items() if n < MINIMUM_SUBJECTS_PER_CLASS}
    if few:
        raise TrainingError(f"Each class needs at least {MINIMUM_SUBJECTS_PER_CLASS} subjects with a usable recording; there are {per_class}.")


def _folds(rows: Rows, options: TrainingOptions) -> tuple[Fold, ...]:
    if isinstance(options.split, int):
        folds = group_k_fold(rows.subjects, rows.target, k=options.split, seed=options.seed)
    elif options.split == LEAVE_ONE_SUBJECT_OUT:
        folds = leave_one_subject_out(rows.subjects)
    elif options.split in rows.frame.columns:
        folds = official(rows.frame[options.split].to_numpy(), rows.subjects)
    else:
        given = [column for column in rows.frame.columns if column in {"fold", "split"} or rows.frame[column].nunique() in range(2, 21)]
        columns = [column for column in given if not column.startswith("quality.") and column not in {"row", "recording", "subject", "label", "sex"}]
        raise InvalidValueError(
            "split", options.split, f"a number of folds, {LEAVE_ONE_SUBJECT_OUT!r}, or a column with a split, such as one of {columns}"
        )
    if len(folds) < 2:
        raise SplitError(
            "The official split tests one part only, so that nothing is left to calibrate on. Train on its training part with a number of folds, "
            "and keep the test part for evaluation."
        )
    for fold in folds:
        check_fold(fold, rows.subjects, rows.frame["recording"].to_numpy())
    return folds


def _fit(rows: Rows, task: Task, options: TrainingOptions) -> tuple[Head, Preprocessor]:
    preprocessor = Preprocessor().fit(rows.X, rows.names)
    families = [catalogue.get(name).family for name in rows.names]
    balanced = task.kind is TaskKind.MULTICLASS
    blocks = [catalogue.get(name).set if family == EMBEDDING else INTERPRETABLE for name, family in zip(rows.names, families, strict=True)]
    head: Head
    if options.fusion != "concatenated" and len(set(blocks)) > 1:
        head = FusedHead(
            families,
            task.classes,
            blocks=blocks,
            interpretable=HEADS[options.head],
            weighted=options.fusion == "stacked",
            balanced=balanced,
            seed=options.seed,
        )
    else:
        head = HEADS[options.head](families, task.classes, balanced=balanced, seed=options.seed)
    return head.fit(preprocessor.transform(rows.X), _labels(rows, task), groups=rows.subjects), preprocessor


def _labels(rows: Rows, task: Task) -> NDArray[np.str_]:
    return np.array(task.classes)[rows.target]


def _calibrate(rows: Rows, margins: NDArray[np.float64], fold_of: NDArray[np.int_], task: Task) -> tuple[Calibrator, NDArray[np.float64]]:
    """Return the calibrator on all margins, and log-odds in which each fold was calibrated by the others, for honest figures and sets."""
    log_odds = np.empty_like(margins)
    for i in np.unique(fold_of):
        here, others = fold_of == i, np.flatnonzero(fold_of != i)
        calibrated = _fit_calibrator(rows.take(others), margins[others], task).apply(margins[here])
        log_odds[here] = at_answering_shares(calibrated, _class_shares(rows, task))
    return _fit_calibrator(rows, margins, task), log_odds


def _fit_calibrator(rows: Rows, margins: NDArray[np.float64], task: Task) -> Calibrator:
    calibrator = MarginPlatt() if task.kind is TaskKind.BINARY else MulticlassPlatt()
    return calibrator.fit(margins, rows.target, groups=rows.subjects)


def _refits(
    everyone: Rows,
    tested: Rows,
    margins: NDArray[np.float64],
    head: Head,
    preprocessor: Preprocessor,
    task: Task,
    options: TrainingOptions,
    report: Callable[[int], None],
) -> tuple[list[Refit], list[NDArray[np.float64]]]:
    """Learn head and calibrator again on bootstrap samples of subjects, with the settings that the full data chose.

    Returns the refits, and how often each of them drew each row of `everyone`.
    """
    Z, labels = preprocessor.transform(everyone.X), _labels(everyone, task)
    people = np.unique(everyone.subjects)
    refits: list[Refit] = []
    times: list[NDArray[np.float64]] = []
    rng = np.random.default_rng([options.seed, 1])
    while len(refits) < options.refits:
        drawn = people[rng.integers(len(people), size=len(people))]
        learned, _ = rows_of_draws(everyone.subjects, drawn)
        tested_again, draw = rows_of_draws(tested.subjects, drawn)
        if min(len(np.unique(everyone.target[learned])), len(np.unique(tested.target[tested_again]))) < len(task.classes):
            continue
        again = head.settled().fit(Z[learned], labels[learned])
        # A subject drawn twice is two people here, or the calibrator would weigh them as one.
        sample = replace(tested.take(tested_again), subjects=draw.astype(str))
        refits.append(Refit(again, _fit_calibrator(sample, margins[tested_again], task), _class_shares(sample, task)))
        times.append(np.bincount(learned, minlength=len(labels)).astype(float))
        report(len(refits))
    return refits, times


def rows_of_draws(subjects: NDArray[np.str_], drawn: NDArray[np.str_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the rows of each drawn subject, one draw after the other, and the number of the draw each belongs to."""
    order = np.argsort(subjects, kind="stable")
    first, after = (np.searchsorted(subjects[order], drawn, side=side) for side in ("left", "right"))
    rows = np.concatenate([order[a:b] for a, b in zip(first, after, strict=True)])
    return rows, np.repeat(np.arange(len(drawn)), after - first)


def _operating_point(rows: Rows, log_odds: NDArray[np.float64], task: Task) -> OperatingPoint:
    return choose(log_odds, rows.target, groups=rows.subjects, target_sensitivity=task.target_sensitivity)


def _class_shares(rows: Rows, task: Task) -> tuple[float, ...]:
    totals = np.bincount(rows.target, subject_weights(rows.subjects, len(rows.target)), minlength=len(task.classes))
    return tuple((totals / totals.sum()).tolist())


def _reference_cuts(rows: Rows, task: Task, folds: Sequence[Fold]) -> tuple[NDArray[np.intp], list[Cut]]:
    """Return the rows that are the reference (of two classes, the negative; of an official split, those tested), and the groups among them."""
    tested = np.zeros(len(rows.target), bool)
    tested[np.concatenate([fold.test for fold in folds])] = True
    healthy = np.flatnonzero(tested & (rows.target == 0) if task.kind is TaskKind.BINARY else tested)
    return healthy, cuts(rows.frame.iloc[healthy].assign(subject=rows.subjects[healthy]), len(rows.names))


def _reference_title(task: Task) -> str:
    return task.classes[0].replace("_", " ") if task.kind is TaskKind.BINARY else "training recordings"


def _extractors_used(table: FeatureTable, names: tuple[str, ...]) -> dict[str, str]:
    used = {catalogue.get(name).set for name in names}
    return {name: fingerprint for name, fingerprint in table.extractors.items() if name in used}


Judge = Callable[[NDArray[np.intp]], tuple[ConformalSets, OperatingPoint | None]]
"""Positions of the rows that are known to the prediction sets and the threshold of others."""


def _out_of_fold(rows: Rows, log_odds: NDArray[np.float64], fold_of: NDArray[np.int_], task: Task, options: TrainingOptions) -> pd.DataFrame:
    p = probabilities(log_odds)

    def judge(others: NDArray[np.intp]) -> tuple[ConformalSets, OperatingPoint | None]:
        known = rows.take(others)
        sets = ConformalSets(options.coverage).fit(p[others], known.target, groups=known.subjects)
        return sets, _operating_point(known, log_odds[others], task) if task.kind is TaskKind.BINARY else None

    return out_of_fold_frame(rows, log_odds, fold_of, task, judge)


def out_of_fold_frame(rows: Rows, log_odds: NDArray[np.float64], fold_of: NDArray[np.int_], task: Task, judge: Judge) -> pd.DataFrame:
    """Return `Training.out_of_fold`.

    Each fold is answered by the threshold and the prediction sets that `judge` makes of the other folds: neither saw the rows it is judged by.
    """
    p = probabilities(log_odds)
    status, covered, above = np.empty(len(p), dtype="U16"), np.zeros(len(p), bool), np.zeros(len(p), bool)
    for i in np.unique(fold_of):
        here = np.flatnonzero(fold_of == i)
        sets, point = judge(np.flatnonzero(fold_of != i))
        status[here] = answer_statuses(log_odds[here], sets, point)
        covered[here] = sets.predict(p[here])[np.arange(len(here)), rows.target[here]]
        if point is not None:
            above[here] = point.is_above(log_odds[here])
    binary = task.kind is TaskKind.BINARY
    frame = rows.frame.assign(fold=fold_of, label=_labels(rows, task), status=status.astype(object), covered=covered)
    if binary:
        frame = frame.assign(above=above, log_odds=log_odds)
    return frame.assign(**{f"probability.{label}": p[:, k] for k, label in enumerate(task.classes)})


def warnings_of(training_rows: Rows, task: Task, conformal: ConformalSets) -> tuple[str, ...]:
    """Return what has to be said of a model learned from these rows: classes without a prediction set, simulated speech."""
    empty = [f"Too few subjects of class {task.classes[k]!r} for prediction sets: every set holds it." for k in conformal.vacuous_classes_]
    simulated = ["The speech is simulated; the figures say nothing about people."] if marked(training_rows.frame, "simulated").any() else []
    return tuple(empty + simulated)


def cohort_digest(recordings: Iterable[str], target: NDArray[np.int64]) -> str:
    """Return sha256 over the sorted pairs of recording digest and class: says which data, without saying whose."""
    pairs = sorted(f"{recording} {k}" for recording, k in zip(recordings, target.tolist(), strict=True))
    return hashlib.sha256("\n".join(pairs).encode()).hexdigest()
