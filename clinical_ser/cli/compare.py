"""`clinical-ser compare`: visits of one person in, what changed by more than recordings differ anyway, out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from clinical_ser.audit.answering import Recorder
from clinical_ser.cli.console import FAILED, NOT_USABLE, WRONG_USAGE, complain, literal, output, percent, print_json, progress
from clinical_ser.cli.explanation import status_words
from clinical_ser.cli.reporting import PDF, Reporter, check_destination, ending_of, file_in, write
from clinical_ser.cli.results import read_result, vouched
from clinical_ser.cli.screen import SUBJECT, check_subject, sex_named
from clinical_ser.errors import AudioError, InvalidValueError
from clinical_ser.monitoring.comparison import Change, Comparison, Flag, Reason
from clinical_ser.monitoring.comparison import compare as compare_results
from clinical_ser.screening import DEFAULT_MODEL
from clinical_ser.screening.result import ScreeningResult, Status
from clinical_ser.screening.screener import Screener

REASONS: dict[Reason, str] = {
    "not_usable": "not usable",
    "other_model": "another model",
    "other_task": "another task, or not stated",
    "other_device": "another device, or not stated",
    "other_language": "another language, or not stated",
    "not_measured": "no value now",
    "no_earlier_value": "no earlier value",
    "no_retest": "how well it repeats is not known",
    "no_spread": "it never varied when repeated",
}


def compare(
    sources: Annotated[
        list[Path], typer.Argument(help="Results (.json) or recordings of one person, in order of time; the last is the current one.")
    ],
    model: Annotated[
        str | None, typer.Option(help=f"For recordings: name of an installed model, or a bundle's folder; {DEFAULT_MODEL} otherwise.")
    ] = None,
    sex: Annotated[str | None, typer.Option(help="For recordings: female, male or other.")] = None,
    age: Annotated[float | None, typer.Option(help="For recordings: years.")] = None,
    device: Annotated[str | None, typer.Option(help="For recordings: what recorded all of them, in the cohort's words.")] = None,
    spoken_language: Annotated[str | None, typer.Option(help="For recordings: what language was spoken in all of them.")] = None,
    task: Annotated[str | None, typer.Option(help="For recordings: what was spoken in all of them, in the cohort's words.")] = None,
    prevalence: Annotated[
        float | None, typer.Option(help="For recordings: share of positives among the people you screen; the site's otherwise.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write the current result's report with the comparison (.html, .pdf).", show_default=False)
    ] = None,
    site: Annotated[Path | None, typer.Option(help="The site's configuration (site.toml); otherwise where docs/site.md says.")] = None,
    report_language: Annotated[str | None, typer.Option(help="en, zh, or one of the site's own; the site's otherwise, or en.")] = None,
    subject: Annotated[str | None, typer.Option(help=SUBJECT)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The whole comparison.")] = False,
) -> None:
    """Compare a recording with earlier ones of the same person: what changed, beyond what recordings differ by anyway."""
    if report:
        check_destination(report, "--report")
    reporter = Reporter.find(site, report_language)
    told = [_read(path, place, len(sources)) for place, path in enumerate(sources, start=1)]
    about: dict[str, Any] = {"sex": sex_named(sex), "age": age, "device": device, "language": spoken_language, "task": task, "prevalence": prevalence}
    check_subject(subject)
    recorder = Recorder.find(subject=subject)
    if None in told:
        results = _screened(sources, told, model, about, reporter, recorder)
    else:
        results = [one for one in told if one]
        if given := [name for name, value in {"model": model, **about}.items() if value is not None]:
            option = {"language": "--spoken-language"}.get(given[0], f"--{given[0]}")
            raise InvalidValueError(option, "given with results alone", "recordings: a result is compared as it was answered")
    current = results[-1]
    comparison = compare_results(current, results[:-1])
    target = None if report is None else report if ending_of(report) else file_in(report, current, PDF)
    content = reporter.report(current, ending_of(target), comparison=comparison) if target else b""
    recorder.shown(results, target, as_json=as_json)
    if target:
        write(content, target)
    if as_json:
        print_json(comparison, indent=2)
    else:
        _show(comparison)
        if any(told):
            output.print(f"  {vouched(recorder, [result for result in told if result])}")
        if target:
            output.print(f"Report: {literal(target)}. Personal data: keep it as you keep the recordings.")
    if current.status is Status.NOT_USABLE:
        raise typer.Exit(NOT_USABLE)


@contextmanager
def _visit(place: int, of: int) -> Iterator[None]:
    """Name a visit that fails by its place: a file's name may be a person's."""
    try:
        yield
    except (AudioError, InvalidValueError) as error:
        complain(f"Visit {place} of {of}", error)
        raise typer.Exit(WRONG_USAGE if isinstance(error, InvalidValueError) else FAILED) from None


def _read(path: Path, place: int, of: int) -> ScreeningResult | None:
    with _visit(place, of):
        return read_result(path)


def _screened(
    sources: list[Path], told: list[ScreeningResult | None], model: str | None, about: dict[str, Any], reporter: Reporter, recorder: Recorder
) -> list[ScreeningResult]:
    """Return a result for each visit; recordings among them are screened, all with the same model and options."""
    with recorder.refusals(model or DEFAULT_MODEL):
        screener = Screener.load(model or DEFAULT_MODEL)
    if about["prevalence"] is None:
        about["prevalence"] = reporter.prevalence_for(screener)
    screener.check_options(**about)
    results = []
    with progress("Screening") as done:
        for place, (path, result) in enumerate(zip(sources, told, strict=True), start=1):
            with _visit(place, len(sources)):
                results.append(result or _answered(screener.screen(path, **about), recorder))
            done(place, len(sources))
    return results


def _answered(result: ScreeningResult, recorder: Recorder) -> ScreeningResult:
    recorder.answer(result)
    return result


def _show(comparison: Comparison) -> None:
    for notice in comparison.notices:
        output.print(f"  [yellow]![/yellow] {literal(notice)}")
    _show_visits(comparison)
    _show_changes((*([comparison.score] if comparison.score else []), *comparison.measures))
    if known := sum(change.reason is None for change in comparison.measures):
        output.print(
            "  [dim]within: differs by no more than recordings of one person do in 95 % while nothing changes; index: the difference in its own "
            f"errors. Of {known} measures, {comparison.expected_by_chance:.1f} on average are called higher or lower by chance.[/dim]"
        )
    if comparison.retest_setting:
        output.print(f"  [dim]How far they move by themselves was measured on others: {literal(comparison.retest_setting)}.[/dim]")
    if comparison.prevalence is not None:
        output.print(f"  [dim]Probabilities and score of all visits are stated for a share of {percent(comparison.prevalence)}.[/dim]")
    output.print(f"  [dim]{literal(comparison.intended_use)}[/dim]")


def _show_visits(comparison: Comparison) -> None:
    output.print(_visits(comparison))
    for why in dict.fromkeys(visit.left_out for visit in comparison.visits if visit.left_out):
        places = [f"{place}" for place, visit in enumerate(comparison.visits, start=1) if visit.left_out == why]
        output.print(f"  Left out of the comparison, {REASONS[why]}: visit {', '.join(places)}")
    for flag in comparison.flags:
        output.print(f"  [yellow]![/yellow] {_flag(flag, comparison)}")


def _show_changes(changes: Sequence[Change]) -> None:
    if changes:
        output.print(_table(changes))
    for reason in dict.fromkeys(change.reason for change in changes if change.reason):
        labels = ", ".join(change.label_en for change in changes if change.reason == reason)
        output.print(f"  Unknown, {REASONS[reason]}: {literal(labels)}")


def _visits(comparison: Comparison) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 2))
    for column in ("visit", "date", "device", "language", "task", "prob.", "answer", ""):
        table.add_column(column, justify="right" if column == "prob." else "left", no_wrap=column not in {"device", "language", "task"})
    for place, visit in enumerate(comparison.visits, start=1):
        note = "now" if place == len(comparison.visits) else "left out" if visit.left_out else ""
        said = (visit.recorded_on, visit.device, visit.language, visit.task)
        probability = "" if visit.probability is None else percent(visit.probability)
        table.add_row(f"{place}", *("" if one is None else literal(one) for one in said), probability, status_words(visit.status), note)
    return table


def _flag(flag: Flag, comparison: Comparison) -> str:
    what = "date" if flag.aspect == "recorded_on" else flag.aspect
    if flag.kind == "differs":
        return f"{flag.visits} of {len(comparison.visits) - 1} earlier visits: {what} differs from now"
    return f"{flag.visits} of {len(comparison.visits)} visits: {what} not stated"


def _table(changes: Sequence[Change]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 2))
    table.add_column("measure", overflow="fold")
    for column in ("before", "stays within", "now", "difference", "index"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for change in changes:
        style = "[bold]" if change.verdict == "changed" else "[not bold]"
        table.add_row(*(f"{style}{cell}[/]" for cell in _cells(change)))
    return table


def _cells(change: Change) -> Iterator[str]:
    yield literal(change.label_en) if change.unit == "1" else f"{literal(change.label_en)}, {literal(change.unit)}"
    yield "" if change.baseline is None else f"{change.baseline:.3g}"
    yield f"{change.band.low:.3g} to {change.band.high:.3g}" if change.band else ""
    yield "" if change.values[-1] is None else f"{change.values[-1]:.3g}"
    yield "" if change.difference is None else f"{change.difference:+.2g}"
    yield "" if change.index is None else f"{change.index:+.1f}"
    yield ("higher" if (change.difference or 0) > 0 else "lower") if change.verdict == "changed" else change.verdict
