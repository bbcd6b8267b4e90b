"""`clinical-ser screen`: recordings in, results out."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from clinical_ser.audio import Recording, load
from clinical_ser.cli.console import FAILED, NOT_USABLE, complain, literal, output, percent, print_line
from clinical_ser.errors import AudioError, BaselineError, InvalidValueError
from clinical_ser.explain.contributions import Explanation
from clinical_ser.models.reference import LEVELS
from clinical_ser.screening import DEFAULT_MODEL
from clinical_ser.screening.result import ScreeningResult, Status
from clinical_ser.screening.screener import Screener

_STYLE = {Status.FLAGGED: "bold black on yellow", Status.NOT_USABLE: "bold white on red", Status.INDETERMINATE: "bold black on cyan"}
_FEATURES_SHOWN = 6


def screen(
    audio: Annotated[list[Path], typer.Argument(help="One or more recordings of one speaker each.", show_default=False)],
    model: Annotated[str, typer.Option(help="Name of an installed model, or a bundle's folder.")] = DEFAULT_MODEL,
    sex: Annotated[str | None, typer.Option(help="female, male or other: chooses the reference group, never changes the score.")] = None,
    age: Annotated[float | None, typer.Option(help="Years.")] = None,
    prevalence: Annotated[
        float | None, typer.Option(help="Share of positives among the people you screen, 0 to 1; the model's own otherwise.")
    ] = None,
    baseline: Annotated[
        list[Path] | None, typer.Option(help="An earlier recording of the same person (repeatable), for models that use one.")
    ] = None,
    start: Annotated[float | None, typer.Option(help="Seconds into the recording at which to start.")] = None,
    end: Annotated[float | None, typer.Option(help="Seconds into the recording at which to end.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The whole ScreeningResult; one line each when there are several.")] = False,
) -> None:
    """Screen recordings with a calibrated model: status, probability, quality, and what moved it."""
    screener = Screener.load(model)
    screener.check_options(sex=sex, age=age, prevalence=prevalence, baselines=len(baseline or ()))
    earlier = _baselines(baseline or [])
    worst = 0
    for position, path in enumerate(audio, start=1):
        try:
            result = screener.screen(path, sex=sex, age=age, prevalence=prevalence, baseline=earlier, start=start, end=end)
        except (AudioError, InvalidValueError) as error:
            # Named by position: a file's name may be a person's name, and this line may end up in a log.
            complain(f"Recording {position} of {len(audio)}", error)
            if as_json:
                print_line(json.dumps({"position": position, "error": str(error)}))
            worst = FAILED
            continue
        worst = worst or (NOT_USABLE if result.status is Status.NOT_USABLE else 0)
        if not as_json:
            show(result, f"Recording {position} of {len(audio)}" if len(audio) > 1 else "Result")
        elif len(audio) == 1:
            print_line(result.model_dump_json(indent=2, ensure_ascii=True))
        else:
            print_line(json.dumps({"position": position, "result": result.model_dump(mode="json")}))
    if worst:
        raise typer.Exit(worst)


def _baselines(paths: list[Path]) -> list[Recording]:
    """Decode the baseline once, however many recordings are compared with it."""
    recordings = []
    for position, path in enumerate(paths, start=1):
        try:
            recordings.append(load(path))
        except AudioError as error:
            raise BaselineError(f"Baseline recording {position} of {len(paths)}: {error}") from None
    return recordings


def show(result: ScreeningResult, title: str) -> None:
    """Print a result for a person."""
    style = _STYLE.get(result.status, "bold black on green")
    output.print(f"\n[bold]{title}[/bold]  [{style}] {result.status.value.replace('_', ' ')} [/]  {literal(result.summary)}")
    for notice in result.notices:
        output.print(f"  [yellow]![/yellow] {literal(notice)}")
    _show_probability(result)
    _show_answers(result)
    _show_quality(result)
    if result.explanation:
        _show_families(result.explanation)
        _show_features(result.explanation)
    signature = result.model.signature
    output.print(
        f"  [dim]Model {result.model.name} {result.model.version}, {result.model.digest[:12]} ({signature} signature). {result.intended_use}[/dim]"
    )


def _show_probability(result: ScreeningResult) -> None:
    if result.probability is None:
        return
    for p in result.classes or (result.probability,):
        mark = "[bold]" if p.label == result.probability.label else "[not bold]"
        error = f"{percent(p.interval.low)} to {percent(p.interval.high)}"
        stated = "" if result.classes else f"; stated for a share of {percent(p.prevalence)}"
        output.print(f"  {mark}{_words(p.label)}: {percent(p.value)}[/] (model's sampling error: {error}{stated})")
    if result.classes:
        output.print(f"  [dim]{len(result.classes)} classes, taken to be equally frequent[/dim]")
    if result.operating_point:
        output.print(f"  Threshold at this share: {percent(result.operating_point.probability)}; an answer also needs a prediction set of one class")


def _show_answers(result: ScreeningResult) -> None:
    for rates in result.answers:
        shares = ", ".join(
            f"{percent(rate.value)} {what}"
            for what, rate in (("flagged", rates.flagged), ("not flagged", rates.not_flagged), ("no answer", rates.indeterminate))
            if rate.value is not None
        )
        output.print(f"  [dim]In cross-validation, of people labelled {_words(rates.label)}: {shares}[/dim]")
    if result.operating_point and result.operating_point.note:
        output.print(f"  [yellow]![/yellow] {literal(result.operating_point.note)}")


def _words(label: str) -> str:
    return literal(label.replace("_", " "))


def _with_unit(number: str, unit: str) -> str:
    """Put a unit behind a number; a pure number has none to print."""
    return number if unit == "1" else f"{number} {literal(unit)}"


def _show_quality(result: ScreeningResult) -> None:
    noted = [check for check in result.quality.checks if check.verdict != "pass"]
    passed = len(result.quality.checks) - len(noted)
    output.print(f"  Quality: {passed} of {len(result.quality.checks)} checks passed" + ("" if not noted else ":"))
    for check in noted:
        value = "not measurable" if check.value is None else _with_unit(f"{check.value:.3g}", check.unit)
        output.print(f"    {check.verdict}: {check.name} {value}. {literal(check.advice)}")


def _show_families(explanation: Explanation) -> None:
    table = Table(box=None, padding=(0, 2, 0, 2))
    table.add_column("family", no_wrap=True)
    for column in (f"towards {_words(explanation.target)}", "95 % interval"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    for family in explanation.families:
        note = "" if family.stable else "[dim]unstable[/dim]"
        table.add_row(family.family.replace("_", " "), f"{family.log_odds:+.2f}", f"{family.low:+.2f} to {family.high:+.2f}", note)
    output.print(table)
    output.print("  [dim]contributions to the log-odds, against the average training recording; unstable: the interval crosses zero[/dim]")


def _show_features(explanation: Explanation) -> None:
    features = [feature for family in explanation.families for feature in family.features]
    features = sorted(features, key=lambda feature: (not feature.stands_out, -abs(feature.log_odds)))[:_FEATURES_SHOWN]
    band = next((feature.reference for feature in features if feature.reference), None)
    table = Table(box=None, padding=(0, 2, 0, 2))
    table.add_column("feature", overflow="fold")
    for column in ("moved by", "value") + (("usual", "percentile") if band else ()):
        table.add_column(column, justify="right", no_wrap=True)
    for feature in features:
        usual = f"{feature.reference.low:.3g} to {feature.reference.high:.3g}" if feature.reference else ""
        percentile = "" if feature.percentile is None else f"{_percentile(feature.percentile)}{' *' if feature.stands_out else '  '}"
        cells = [literal(feature.label_en), f"{feature.log_odds:+.2f}", _with_unit(f"{feature.value:.3g}", feature.unit)]
        table.add_row(*cells, *((usual, percentile) if band else ()))
    output.print(table)
    if band:
        output.print(f"  [dim]usual: the middle half of the reference group ({literal(band.group)}, n={band.subjects} subjects)[/dim]")
    if explanation.relative_to_baseline:
        output.print("  [dim]values are differences from the person's own baseline recordings[/dim]")
    if any(feature.stands_out for feature in features):
        output.print(
            "  [dim]* stands out: below the 10th or above the 90th percentile of the reference group; that alone does not raise the score[/dim]"
        )


def _percentile(value: float) -> str:
    """Only quantiles from 5 to 95 are known of the group; what lies beyond is said so."""
    if value <= 100 * LEVELS[0]:
        return f"≤{100 * LEVELS[0]:.0f}"
    return f"≥{100 * LEVELS[-1]:.0f}" if value >= 100 * LEVELS[-1] else f"{value:.0f}"
