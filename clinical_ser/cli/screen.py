"""`clinical-ser screen`: recordings in, results and reports out."""

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Self

import typer

from clinical_ser.audio import Recording, load
from clinical_ser.audit.answering import Recorder
from clinical_ser.cli.console import FAILED, NOT_USABLE, complain, literal, output, percent, print_line
from clinical_ser.cli.explanation import check_words, show_explanation, show_timeline, status_words, with_unit, words
from clinical_ser.cli.reporting import HTML, PDF, VOICE, Reporter, check_destination, ending_of, file_in, read_earlier, write
from clinical_ser.cohorts.manifest import SEXES
from clinical_ser.errors import AudioError, AuditError, BaselineError, InvalidValueError, ReportError
from clinical_ser.monitoring.comparison import compare
from clinical_ser.screening import DEFAULT_MODEL
from clinical_ser.screening.result import ScreeningResult, Status
from clinical_ser.screening.screener import Screener

SUBJECT = "Whom it is of, as your site names the person: for the audit log to find and erase by. It is in no result."
_STYLE = {Status.FLAGGED: "bold black on yellow", Status.NOT_USABLE: "bold white on red", Status.INDETERMINATE: "bold black on cyan"}


def screen(
    audio: Annotated[list[Path], typer.Argument(help="One or more recordings of one speaker each.", show_default=False)],
    model: Annotated[str, typer.Option(help="Name of an installed model, or a bundle's folder.")] = DEFAULT_MODEL,
    sex: Annotated[str | None, typer.Option(help="female, male or other (or f, m, d ...): chooses the reference group, never the score.")] = None,
    age: Annotated[float | None, typer.Option(help="Years.")] = None,
    prevalence: Annotated[
        float | None, typer.Option(help="Share of positives among the people you screen, 0 to 1; the site's otherwise (site.toml), else the model's.")
    ] = None,
    baseline: Annotated[
        list[Path] | None, typer.Option(help="An earlier recording of the same person (repeatable), for models that use one.")
    ] = None,
    start: Annotated[float | None, typer.Option(help="Seconds into the recording at which to start.")] = None,
    end: Annotated[float | None, typer.Option(help="Seconds into the recording at which to end.")] = None,
    task: Annotated[str | None, typer.Option(help="What was spoken, in the cohort's words: chooses the reference group too.")] = None,
    device: Annotated[str | None, typer.Option(help="What recorded it, in the cohort's words: chooses the reference group too.")] = None,
    spoken_language: Annotated[str | None, typer.Option(help="What language was spoken, in the cohort's words.")] = None,
    recorded_on: Annotated[
        datetime | None, typer.Option(help="The day of the recording: it orders visits.", formats=["%Y-%m-%d"], metavar="YYYY-MM-DD")
    ] = None,
    timeline: Annotated[
        bool, typer.Option("--timeline", help="Also say when in the recording the score came about; its tracks are a voice's melody, personal data.")
    ] = False,
    interpretable: Annotated[bool, typer.Option("--interpretable", help="Ask the model without its embeddings, if it has any.")] = False,
    encoder: Annotated[
        list[str] | None, typer.Option(help="Where the model's encoder is, if it is not installed: a folder, or BACKEND:ARGUMENT (repeatable).")
    ] = None,
    report: Annotated[
        list[Path] | None,
        typer.Option(help="Write the clinician's report (.pdf, .html; repeatable); of several recordings, a folder. Makes a timeline too."),
    ] = None,
    site: Annotated[Path | None, typer.Option(help="The site's configuration (site.toml); otherwise where docs/site.md says.")] = None,
    report_language: Annotated[str | None, typer.Option(help="en, zh, or one of the site's own; the site's otherwise, or en.")] = None,
    earlier: Annotated[
        list[Path] | None,
        typer.Option(help="An earlier result (.json) of the same person (repeatable, oldest first), for the report to compare with."),
    ] = None,
    embed_audio: Annotated[
        bool, typer.Option("--embed-audio", help="Put the recording into the .html report, which then holds the person's voice.")
    ] = False,
    subject: Annotated[str | None, typer.Option(help=SUBJECT)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The whole ScreeningResult; one line each when there are several.")] = False,
) -> None:
    """Screen recordings with a calibrated model: status, probability, quality, and what moved it."""
    reports = _Reports.wanted(report or [], site, report_language, earlier or [], embed_audio=embed_audio, several=len(audio) > 1)
    check_subject(subject)
    recorder = Recorder.find(subject=subject)
    if subject and len(audio) > 1:
        raise InvalidValueError("--subject", "given with several recordings", "one recording: a subject is one person")
    with recorder.refusals(model):
        screener = Screener.load(model, interpretable=interpretable, encoders=encoder or ())
    if prevalence is None:
        prevalence = reports.reporter.prevalence_for(screener)
    day = recorded_on.date() if recorded_on else None
    about: dict[str, Any] = {"sex": sex_named(sex), "age": age, "task": task, "device": device, "language": spoken_language, "recorded_on": day}
    screener.check_options(**about, prevalence=prevalence, baselines=len(baseline or ()))
    own = load_baselines(baseline or [])
    worst = 0
    for position, path in enumerate(audio, start=1):
        place = f"Recording {position} of {len(audio)}"
        try:
            recording = load(path, start=start, end=end)
            result = screener.screen(recording, **about, prevalence=prevalence, baseline=own, start=start, timeline=timeline or bool(report))
            # Recorded before a word of it is shown or written.
            recorded = recorder.answer(result)
        except (AudioError, InvalidValueError, AuditError) as error:
            # Named by position: a file's name may be a person's name, and this line may end up in a log.
            complain(place, error)
            if as_json:
                print_line(json.dumps({"position": position, "error": str(error)}))
            worst = FAILED
            continue
        if recorded and recorded.under_others:
            complain(place, "The audit log has the same answer, of the same recording, under another person: is one of the names wrong?")
        worst = worst or (NOT_USABLE if result.status is Status.NOT_USABLE else 0)
        if not as_json:
            show(result, place if len(audio) > 1 else "Result")
            if recorded:
                output.print(f"  [dim]Audit record {recorded.receipt.index}: clinical-ser:result:{result.digest}[/dim]")
        elif len(audio) == 1:
            print_line(result.model_dump_json(indent=2, ensure_ascii=True))
        else:
            print_line(json.dumps({"position": position, "result": result.model_dump(mode="json")}))
        if not reports.write(result, recording, place, recorder, quietly=as_json):
            worst = FAILED
    if worst:
        raise typer.Exit(worst)


@dataclass(frozen=True)
class _Reports:
    """The reports that were asked for along with the screening."""

    reporter: Reporter
    paths: tuple[Path, ...]
    earlier: tuple[ScreeningResult, ...]
    embed_audio: bool

    @classmethod
    def wanted(cls, paths: list[Path], site: Path | None, language: str | None, earlier: list[Path], *, embed_audio: bool, several: bool) -> Self:
        """Check, before the work, everything that reports need."""
        needing = {"--report-language": language, "--earlier": earlier, "--embed-audio": embed_audio}
        if useless := [option for option, value in needing.items() if value and not paths]:
            raise InvalidValueError(useless[0], "given without a report", "--report FILE too")
        for path in paths:
            check_destination(path, "--report", several=several)
        if earlier and several:
            raise InvalidValueError("--earlier", "given with several recordings", "one recording: earlier results are the same person's")
        if embed_audio and HTML not in map(ending_of, paths):
            raise InvalidValueError("--embed-audio", "given without an HTML report", "--report FILE.html too")
        return cls(Reporter.find(site, language), tuple(paths), tuple(read_earlier(earlier)), embed_audio)

    def write(self, result: ScreeningResult, recording: Recording, place: str, recorder: Recorder, *, quietly: bool) -> bool:
        """Write the reports on a result; complain, and return False, where one cannot be made, or its record cannot."""
        made = [self._write_to(path, result, recording, place, recorder, quietly) for path in self.paths]
        return all(made)

    def _write_to(self, path: Path, result: ScreeningResult, recording: Recording, place: str, recorder: Recorder, quietly: bool) -> bool:
        ending = ending_of(path)
        target = path if ending else file_in(path, result, PDF)
        try:
            comparison = compare(result, self.earlier) if self.earlier else None
            audio = self._audio(result, recording) if ending == HTML else None
            content = self.reporter.report(result, ending or PDF, comparison=comparison, audio=audio)
            recorder.report([result], "exported", (ending or PDF).removeprefix("."))
            write(content, target)
        except (InvalidValueError, ReportError, AuditError) as error:
            complain(f"No report, {place.lower()}", error)
            return False
        if audio:
            complain("Personal data", VOICE)
        if not quietly:
            output.print(f"Report: {literal(target)}. Personal data: keep it as you keep the recording.")
        return True

    def _audio(self, result: ScreeningResult, recording: Recording) -> Recording | None:
        """Return what goes into the HTML report."""
        playable = result.timeline is not None and result.status.has_number
        if self.embed_audio and not playable:
            complain("No audio", "this report has no timeline to play it along, and is written without")
        return recording if self.embed_audio and playable else None


def check_subject(subject: str | None) -> None:
    """Refuse an empty name, which a script with an unset variable would give."""
    if subject is not None and not subject.strip():
        raise InvalidValueError("--subject", "empty", "the person's name at your site, or no such option")


def sex_named(text: str | None) -> str | None:
    """Return the sex as manifests take it (`f`, `m`, `d`, `weiblich`); what is none of them stays, for the model to refuse."""
    return None if text is None else SEXES.get(text.casefold(), text)


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
    label = result.probability.label if result.probability else ""
    output.print(f"\n[bold]{title}[/bold]  [{style}] {status_words(result.status, label)} [/]  {literal(result.summary)}")
    for notice in result.notices:
        output.print(f"  [yellow]![/yellow] {literal(notice)}")
    _show_probability(result)
    _show_answers(result)
    _show_quality(result)
    if result.explanation:
        show_explanation(result.explanation)
    if result.timeline:
        show_timeline(result.timeline)
    if result.model.without_embedding:
        output.print("  [yellow]![/yellow] Asked without the model's embeddings; the figures of its card were counted with them and are not shown.")
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
            for what, rate in (("flagged", rates.flagged), ("not flagged", rates.not_flagged), ("cannot tell", rates.indeterminate))
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
        output.print(f"    {check.verdict}: {check_words(check.name)} {value}. {literal(check.advice)}")
