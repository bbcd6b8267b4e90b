"""`clinical-ser plan`: how many people to record, before anyone is recorded; from anticipated figures, or from a first feature table."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from clinical_ser.cli.console import literal, output, percent, print_json, progress
from clinical_ser.cohorts.table import read_table
from clinical_ser.cohorts.tasks import Task, get_task, read_task
from clinical_ser.errors import InvalidValueError
from clinical_ser.evaluation.naming import describe
from clinical_ser.evaluation.planning import (
    CURVE_REPEATS,
    EXTRAPOLATION_LIMIT,
    TARGET_SENSITIVITY,
    WIDTH,
    LearningCurve,
    Precision,
    Reach,
    ValidationSampleSize,
    check_curve_options,
    learning_curve,
    validation_minimum,
)
from clinical_ser.models.sample_size import MAX_OPTIMISM, PREVALENCE_MARGIN, SHRINKAGE, MinimumSampleSize, riley_minimum
from clinical_ser.models.training import TrainingOptions
from clinical_ser.strict import Strict

SLOPE_WIDTH = 0.2


class Plan(Strict):
    """What `plan --json` prints; numbers of subjects throughout."""

    prevalence: float | None
    auc: float | None
    features: int
    development: MinimumSampleSize | None
    """None where no formula holds: several classes, or an AUC at chance."""
    validation: ValidationSampleSize | None
    learning_curve: LearningCurve | None
    notes: tuple[str, ...]


def plan(
    table: Annotated[Path | None, typer.Argument(help="Feature table from `extract`, for a learning curve.", show_default=False)] = None,
    prevalence: Annotated[float | None, typer.Option(help="Share of subjects with the condition; the table's otherwise.", show_default=False)] = None,
    auc: Annotated[float | None, typer.Option(help="Anticipated AUC; what the table's largest models reach otherwise.", show_default=False)] = None,
    features: Annotated[int | None, typer.Option(help="Features that the model may use; the table's otherwise.", show_default=False)] = None,
    recordings_each: Annotated[int, typer.Option(help="Recordings of each subject in the evaluation.")] = 1,
    icc: Annotated[float | None, typer.Option(help="How alike a subject's recordings score (intraclass correlation).", show_default=False)] = None,
    sensitivity: Annotated[float, typer.Option(help="Of the operating point.")] = TARGET_SENSITIVITY,
    threshold: Annotated[
        float | None, typer.Option(help="Probability to flag from, for the net benefit; the operating point's otherwise.", show_default=False)
    ] = None,
    slope_width: Annotated[float, typer.Option(help="Width of the calibration slope's 95 % interval.")] = SLOPE_WIDTH,
    task: Annotated[str, typer.Option(help="depression, emotion, or a .toml file that defines a task.")] = "depression",
    head: Annotated[str, typer.Option(help="linear or xgboost.")] = "linear",
    sizes: Annotated[str | None, typer.Option(help="Numbers of subjects to train on, as 40,80,160.", show_default=False)] = None,
    repeats: Annotated[int, typer.Option(help="How often the learning curve is drawn, with other subjects.")] = CURVE_REPEATS,
    target_auc: Annotated[
        list[float] | None, typer.Option("--target-auc", "--target", help="AUC (several classes: UAR) to reach (repeatable).", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the learning curve's folds, orders and bootstrap samples.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Say how many subjects training and evaluation need; with a feature table also what more subjects would buy."""
    if not 0 < slope_width < 1:
        raise InvalidValueError("--slope-width", slope_width, "a number strictly between 0 and 1")
    evaluation = _Evaluation(sensitivity, threshold, recordings_each, icc, Precision(calibration_slope=slope_width / WIDTH))
    # What can be refused is refused before the training, with stand-ins for what only the table can say.
    evaluation.minimum(0.5 if prevalence is None else prevalence, 0.75 if auc is None else auc)
    if features is not None and features < 1:
        raise InvalidValueError("--features", features, "at least 1")
    given = _numbers(sizes)
    check_curve_options(sizes=given, targets=target_auc or (), repeats=repeats)
    curve = None
    if table is not None:
        options, wanted = TrainingOptions(head=head, seed=seed), _task(task)
        rows = read_table(table)
        with progress("Learning curve") as report:
            curve = learning_curve(rows, wanted, options, sizes=given, targets=target_auc or (), repeats=repeats, seed=seed, progress=report)
    elif given or target_auc:
        raise InvalidValueError("TABLE", None, "a feature table, for --sizes and --target-auc to be about")
    made = _plan(prevalence, auc, features, curve, evaluation)
    if as_json:
        print_json(made, indent=2)
    else:
        _show(made, slope_width)


@dataclass(frozen=True)
class _Evaluation:
    """How the evaluation will be run."""

    sensitivity: float
    threshold: float | None
    recordings_each: int
    icc: float | None
    precision: Precision

    def minimum(self, prevalence: float, auc: float) -> ValidationSampleSize:
        return validation_minimum(
            prevalence,
            auc,
            sensitivity=self.sensitivity,
            threshold=self.threshold,
            recordings_each=self.recordings_each,
            icc=self.icc,
            precision=self.precision,
        )


def _plan(prevalence: float | None, auc: float | None, features: int | None, curve: LearningCurve | None, evaluation: _Evaluation) -> Plan:
    if curve and curve.metric == "uar":
        note = "The sample size formulas are for two classes; for several, the learning curve is what there is."
        return Plan(prevalence=None, auc=None, features=curve.features, development=None, validation=None, learning_curve=curve, notes=(note,))
    if curve:
        prevalence = curve.prevalence if prevalence is None else prevalence
        auc = curve.points[-1].value if auc is None else auc
        features = curve.features if features is None else features
    for option, value in {"--prevalence": prevalence, "--auc": auc, "--features": features}.items():
        if value is None:
            raise InvalidValueError(option, None, "a number, or a feature table to take it from")
    assert prevalence is not None
    assert auc is not None
    assert features is not None
    possible = 0.5 < auc < 1
    note = f"At an AUC of {auc:.2f} no formula holds; give the one to plan for with --auc."
    return Plan(
        prevalence=prevalence,
        auc=auc,
        features=features,
        development=riley_minimum(features, prevalence, auc) if possible else None,
        validation=evaluation.minimum(prevalence, auc) if possible else None,
        learning_curve=curve,
        notes=() if possible else (note,),
    )


def _numbers(sizes: str | None) -> list[int] | None:
    if sizes is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}(,[0-9]{1,9})*", sizes):
        raise InvalidValueError("--sizes", sizes, "whole numbers with commas between them, as 40,80,160")
    return [int(size) for size in sizes.split(",")]


def _task(name: str) -> Task:
    return read_task(Path(name)) if name.endswith(".toml") else get_task(name)


def _show(made: Plan, slope_width: float) -> None:
    if made.development and made.validation:
        output.print(f"For a prevalence of {made.prevalence:.0%}, an AUC of {made.auc:.2f} and {made.features:,} features, counted in people:\n")
        _show_sizes("To train the model", made.development.subjects, made.development.events, _of_development(made.development))
        _show_sizes("To evaluate it in new people", made.validation.subjects, made.validation.events, _of_validation(made.validation, slope_width))
        if made.validation.recordings_each > 1:
            output.print(f"  {_of_repeats(made.validation)}\n")
    for note in made.notes:
        output.print(f"  [yellow]![/yellow] {literal(note)}\n")
    if made.learning_curve:
        _show_curve(made.learning_curve)


def _show_sizes(title: str, subjects: int, events: int, criteria: list[tuple[int, str]]) -> None:
    output.print(f"[bold]{title}: {subjects:,} subjects[/bold], {events:,} of them with the condition. The largest of")
    width = max(len(f"{n:,}") for n, _ in criteria)
    for n, sentence in criteria:
        output.print(f"  {n:>{width},}  {literal(sentence)}")
    output.print()


def _of_development(size: MinimumSampleSize) -> list[tuple[int, str]]:
    return [
        (size.for_shrinkage, f"so that the effects need shrinking by {1 - SHRINKAGE:.0%} at most"),
        (size.for_optimism, f"so that the fit looks better than it is by {MAX_OPTIMISM:g} of Nagelkerke's R² at most"),
        (size.for_prevalence, f"so that the prevalence is known to within {PREVALENCE_MARGIN:g}"),
    ]


def _of_validation(size: ValidationSampleSize, slope_width: float) -> list[tuple[int, str]]:
    around = size.sensitivity, size.specificity
    half = Precision().operating_point
    return [
        (size.for_observed_to_expected, "so that observed over expected has an interval of about 0.9 to 1.1"),
        (size.for_calibration_slope, f"so that the calibration slope has an interval {slope_width:g} wide (--slope-width)"),
        (size.for_auroc, "so that the AUC has an interval 0.1 wide"),
        (size.for_net_benefit, f"so that the net benefit at {size.threshold:.2f}, over the prevalence, has an interval 0.2 wide"),
        (size.for_sensitivity, f"so that a sensitivity of {around[0]:.2f} is known to within {half:g}"),
        (size.for_specificity, f"so that the specificity there, {around[1]:.2f} by the AUC, is known to within {half:g}"),
    ]


def _of_repeats(size: ValidationSampleSize) -> str:
    worth = f"{size.worth_each:.3g}" if size.worth_each < 100 else f"{size.worth_each:,.0f}"
    return (
        f"{size.recordings_each:,} recordings of each person are {size.subjects * size.recordings_each:,} recordings. At an intraclass correlation "
        f"of {size.icc:g} they are worth {worth} single ones at most, and nothing for observed over expected."
    )


def _show_curve(curve: LearningCurve) -> None:
    title = describe(curve.metric).title
    output.print(
        f"[bold]Learning curve[/bold]: {literal(curve.head)} head, {curve.features:,} features, {curve.subjects:,} subjects in the table; "
        f"mean of {curve.repeats} repeats, tested on people none of the models heard"
    )
    table = Table(box=None, padding=(0, 2, 0, 2))
    for column in ("subjects", title, "95 % interval", "calibration slope"):
        table.add_column(column, justify="right")
    for point in curve.points:
        known = point.low is not None and point.high is not None
        slope = "" if point.calibration_slope is None else f"{point.calibration_slope:.2f}"
        table.add_row(f"{point.subjects:,}", f"{point.value:.3f}", f"{point.low:.3f} to {point.high:.3f}" if known else "not defined", slope)
    for ahead in curve.extrapolated:
        table.add_row(f"{ahead.subjects:,}", f"{ahead.value:.3f}", f"{ahead.low:.3f} to {ahead.high:.3f}", "[italic]extrapolated[/italic]")
    output.print(table)
    if curve.curve is None:
        output.print("  [yellow]![/yellow] No curve is fitted: it takes three sizes or more at which models learned anything.")
    for reach in curve.targets:
        output.print(f"  {_of_target(title, reach)}")


def _of_target(title: str, reach: Reach) -> str:
    if reach.subjects is None:
        return f"{title} {reach.target:g} is not reachable by this curve with {EXTRAPOLATION_LIMIT} times the subjects ({_share(reach)})."
    low, high = (f"{n:,}" if n is not None else "out of reach" for n in (reach.low, reach.high))
    return f"{title} {reach.target:g} takes about {reach.subjects:,} subjects; 95 % interval {low} to {high} ({_share(reach)})."


def _share(reach: Reach) -> str:
    return f"{percent(reach.share)} of the refitted curves reach it"
