"""`clinical-ser screen`: recordings in, results out."""

import json
from pathlib import Path
from typing import Annotated

import typer

from clinical_ser.audio import Recording, load
from clinical_ser.cli.console import FAILED, NOT_USABLE, complain, literal, output, percent, print_line
from clinical_ser.cli.explanation import show_explanation, show_timeline, with_unit, words
from clinical_ser.errors import AudioError, BaselineError, InvalidValueError
from clinical_ser.screening import DEFAULT_MODEL
from clinical_ser.screening.result import ScreeningResult, Status
from clinical_ser.screening.screener import Screener

_STYLE = {Status.FLAGGED: "bold black on yellow", Status.NOT_USABLE: "bold white on red", Status.INDETERMINATE: "bold black on cyan"}


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
    task: Annotated[str | None, typer.Option(help="What was spoken, in the cohort's words: chooses the reference group too.")] = None,
    device: Annotated[str | None, typer.Option(help="What recorded it, in the cohort's words: chooses the reference group too.")] = None,
    timeline: Annotated[
        bool, typer.Option("--timeline", help="Also say when in the recording the score came about; its tracks are a voice's melody, personal data.")
    ] = False,
    interpretable: Annotated[bool, typer.Option("--interpretable", help="Ask the model without its embeddings, if it has any.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The whole ScreeningResult; one line each when there are several.")] = False,
) -> None:
    """Screen recordings with a calibrated model: status, probability, quality, and what moved it."""
    screener = Screener.load(model, interpretable=interpretable)
    screener.check_options(sex=sex, age=age, prevalence=prevalence, baselines=len(baseline or ()))
    earlier = load_baselines(baseline or [])
    worst = 0
    for position, path in enumerate(audio, start=1):
        try:
            result = screener.screen(
                path,
                sex=sex,
                age=age,
                prevalence=prevalence,
                baseline=earlier,
                start=start,
                end=end,
                task=task,
                device=device,
                timeline=timeline,
            )
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


def load_baselines(paths: list[Path]) -> list[Recording]:
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
        show_explanation(result.explanation)
    if result.timeline:
        show_timeline(result.timeline)
    signature = result.model.signature
    output.print(
        f"  [dim]Model {literal(result.model.name)} {literal(result.model.version)}, {literal(result.model.digest[:12])} ({signature} signature). "
        f"{literal(result.intended_use)}[/dim]"
    )


def _show_probability(result: ScreeningResult) -> None:
    if result.probability is None:
        return
    for p in result.classes or (result.probability,):
        mark = "[bold]" if p.label == result.probability.label else "[not bold]"
        error = f"{percent(p.interval.low)} to {percent(p.interval.high)}"
        stated = "" if result.classes else f"; stated for a share of {percent(p.prevalence)}"
        output.print(f"  {mark}{words(p.label)}: {percent(p.value)}[/] (model's sampling error: {error}{stated})")
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
        output.print(f"  [dim]In cross-validation, of people labelled {words(rates.label)}: {shares}[/dim]")
    if result.operating_point and result.operating_point.note:
        output.print(f"  [yellow]![/yellow] {literal(result.operating_point.note)}")


def _show_quality(result: ScreeningResult) -> None:
    noted = [check for check in result.quality.checks if check.verdict != "pass"]
    passed = len(result.quality.checks) - len(noted)
    output.print(f"  Quality: {passed} of {len(result.quality.checks)} checks passed" + ("" if not noted else ":"))
    for check in noted:
        value = "not measurable" if check.value is None else with_unit(f"{check.value:.3g}", check.unit)
        output.print(f"    {check.verdict}: {check.name} {value}. {literal(check.advice)}")
