"""`clinical-ser explain`: a recording, or a result, in; what moved the score, how surely and when, out."""

from pathlib import Path
from typing import Annotated

import typer

from clinical_ser.audit.answering import Recorder
from clinical_ser.cli.console import NOT_USABLE, check_output_file, complain, literal, output, print_line
from clinical_ser.cli.explanation import show_moves
from clinical_ser.cli.reporting import Reporter
from clinical_ser.cli.results import read_result, vouched
from clinical_ser.cli.screen import SUBJECT, check_subject, load_baselines, sex_named, show
from clinical_ser.cohorts.table import replaced
from clinical_ser.errors import InvalidValueError
from clinical_ser.screening import DEFAULT_MODEL
from clinical_ser.screening.result import ScreeningResult, Status
from clinical_ser.screening.screener import Screener

FORMATS = (".svg", ".html", ".pdf")


def explain(
    source: Annotated[Path, typer.Argument(help="A recording, or a result (.json) of `screen --json` or `explain --json`.", show_default=False)],
    picture: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write a picture (.svg) or a document (.html, .pdf).", show_default=False)
    ] = None,
    model: Annotated[str | None, typer.Option(help=f"Name of an installed model, or a bundle's folder; {DEFAULT_MODEL} otherwise.")] = None,
    sex: Annotated[str | None, typer.Option(help="female, male or other (or f, m, d ...): chooses the reference group, never the score.")] = None,
    age: Annotated[float | None, typer.Option(help="Years.")] = None,
    prevalence: Annotated[
        float | None, typer.Option(help="Share of positives among the people you screen; the site's otherwise (site.toml), else the model's.")
    ] = None,
    baseline: Annotated[list[Path] | None, typer.Option(help="An earlier recording of the same person (repeatable).")] = None,
    start: Annotated[float | None, typer.Option(help="Seconds into the recording at which to start.")] = None,
    end: Annotated[float | None, typer.Option(help="Seconds into the recording at which to end.")] = None,
    task: Annotated[str | None, typer.Option(help="What was spoken, in the cohort's words: chooses the reference group too.")] = None,
    device: Annotated[str | None, typer.Option(help="What recorded it, in the cohort's words: chooses the reference group too.")] = None,
    explained: Annotated[str | None, typer.Option("--class", help="The class to explain, of several; the most probable one otherwise.")] = None,
    interpretable: Annotated[bool, typer.Option("--interpretable", help="Ask the model without its embeddings, if it has any.")] = False,
    encoder: Annotated[
        list[str] | None, typer.Option(help="Where the model's encoder is, if it is not installed: a folder, or BACKEND:ARGUMENT (repeatable).")
    ] = None,
    what_if: Annotated[bool, typer.Option("--what-if", help="Also print which family would have to move for another answer.")] = False,
    subject: Annotated[str | None, typer.Option(help=SUBJECT)] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The whole ScreeningResult, with timeline and tracks: personal data, to be kept as the recording is.")
    ] = False,
) -> None:
    """Explain an answer: families first, with intervals; features beside a reference group; and when in the recording."""
    if picture:
        _check_picture(picture)
    of_recording = {"model": model, "sex": sex, "age": age, "prevalence": prevalence, "baseline": baseline or None, "start": start, "end": end}
    of_recording |= {"task": task, "device": device, "class": explained, "interpretable": interpretable or None}
    of_recording |= {"encoder": str(encoder) if encoder else None}
    recorder = Recorder.find(subject=subject)
    check_subject(subject)
    told = result = read_result(source)
    if result is None:
        with recorder.refusals(model or DEFAULT_MODEL):
            screener = Screener.load(model or DEFAULT_MODEL, interpretable=interpretable, encoders=encoder or ())
        sex = sex_named(sex)
        if prevalence is None:
            prevalence = Reporter.find(None).prevalence_for(screener)
        screener.check_options(sex=sex, age=age, prevalence=prevalence, baselines=len(baseline or ()))
        result = screener.screen(
            source,
            sex=sex,
            age=age,
            prevalence=prevalence,
            baseline=load_baselines(baseline or []),
            start=start,
            end=end,
            task=task,
            device=device,
            timeline=True,
            explained=explained,
        )
        recorder.answer(result)
    elif given := [f"--{name}" for name, value in of_recording.items() if value is not None]:
        raise InvalidValueError(given[0], "given with a result", "a recording: a result is explained as it was answered")
    drawn = picture if picture and (result.explanation or picture.suffix.lower() != ".svg") else None
    if told or drawn:
        recorder.shown([result], drawn, as_json=as_json)
    if drawn:
        _write(result, drawn)
    elif picture:
        complain("No picture", "there is no score to explain; a document (.html, .pdf) says what to do")
    if as_json:
        print_line(result.model_dump_json(indent=2, ensure_ascii=True))
    else:
        _show(result, vouched(recorder, [result]) if told else None, drawn, what_if=what_if)
    if result.status is Status.NOT_USABLE:
        raise typer.Exit(NOT_USABLE)


def _show(result: ScreeningResult, vouching: str | None, drawn: Path | None, *, what_if: bool) -> None:
    show(result, "Explanation")
    if vouching:
        output.print(f"  {vouching}" + ("" if result.timeline else " It has no timeline: `screen --timeline` makes one."))
    if what_if and result.explanation:
        show_moves(result.explanation)
    if drawn:
        voice = "It draws the person's voice: keep" if result.timeline else "Keep"
        output.print(f"Written: {literal(drawn)}. {voice} it as you keep the recording.")


def _check_picture(path: Path) -> None:
    if path.suffix.lower() not in FORMATS:
        raise InvalidValueError("--output", f"a file {path.suffix or 'without an ending'}", f"one that ends in one of {', '.join(FORMATS)}")
    check_output_file(path)


def _write(result: ScreeningResult, path: Path) -> None:
    from reports.explanation import html_report, pdf_report, svg_picture

    kind = path.suffix.lower()
    content = pdf_report(result) if kind == ".pdf" else (html_report(result) if kind == ".html" else svg_picture(result)).encode()
    with replaced(path) as unfinished:
        unfinished.write_bytes(content)
