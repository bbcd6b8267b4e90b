"""`clinical-ser report`: results in, the clinician's report on each of them out.

The one idea: a worker sends a report's bytes back and this process alone writes them, so that whatever ends a worker, or the batch, no file is left
half written.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import typer
from pydantic import BaseModel

from clinical_ser.audio import Recording, load
from clinical_ser.audit.answering import Recorder
from clinical_ser.cli.cohort import processors
from clinical_ser.cli.console import FAILED, INTERRUPTED, SHOWN_PROBLEMS, complain, literal, output, print_json, progress
from clinical_ser.cli.reporting import HTML, VOICE, Reporter, check_destination, ending_of, file_in, read_earlier, read_told, write
from clinical_ser.cli.results import LARGEST_RESULT_BYTES, UNVOUCHED, vouched
from clinical_ser.cli.screen import check_subject
from clinical_ser.errors import AuditError, ClinicalSerError, InvalidValueError
from clinical_ser.features.workers import Lost, run_in_processes
from clinical_ser.monitoring.comparison import compare
from clinical_ser.screening.result import ScreeningResult

LINES = ".jsonl"
WORTH_PROCESSES = 30
"""Reports that are made here in the time that a worker process takes to start."""
TIMEOUT_S = 600.0
"""For one report; that of a recording of two hours takes seconds."""


def report(
    results: Annotated[
        list[Path],
        typer.Argument(help="Results (.json) of `screen --json`, or lines of several (.jsonl).", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--output", "-o", help="The report (.pdf, .html) of one result; else a folder, for files named by digest.")],
    form: Annotated[Literal["pdf", "html"] | None, typer.Option("--format", help="Of reports in a folder; pdf otherwise.")] = None,
    site: Annotated[Path | None, typer.Option(help="The site's configuration (site.toml); otherwise where docs/site.md says.")] = None,
    language: Annotated[str | None, typer.Option(help="en, zh, or one of the site's own; the site's otherwise, or en.")] = None,
    earlier: Annotated[
        list[Path] | None, typer.Option(help="An earlier result of the same person (repeatable, oldest first), to be compared with; for one result.")
    ] = None,
    embed_audio: Annotated[
        Path | None, typer.Option(help="The recording, to be played inside of one .html report, which then holds the person's voice.")
    ] = None,
    subject: Annotated[str | None, typer.Option(help="Whose result it is, where the audit log knows the same answer under several persons.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; all processors otherwise.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print how many were written, and which failed.")] = False,
) -> None:
    """Write the clinician's report on a result; of many results, into a folder."""
    alone = results[0] if len(results) == 1 and results[0].suffix.lower() != LINES else None
    check_destination(out, "--output", several=alone is None)
    ending = _ending(out, form)
    if embed_audio and (alone is None or ending != HTML):
        raise InvalidValueError("--embed-audio", "given with several results, or without HTML", "one result and a report that ends in .html")
    if earlier and alone is None:
        raise InvalidValueError("--earlier", "given with several results", "one result: earlier ones are the same person's")
    reporter = Reporter.find(site, language)
    check_subject(subject)
    if subject and alone is None:
        raise InvalidValueError("--subject", "given with several results", "one result: a subject is one person")
    recorder = Recorder.find(subject=subject)
    if alone:
        written = _write_one(alone, out, ending, reporter, recorder, earlier or [], embed_audio)
        batch = Batch(written=1)
    else:
        written = out
        make = partial(_made, reporter=reporter, ending=ending)
        batch = _write_many(_places(results), out, make, recorder, processors() if workers is None else workers)
    _complain_of(batch.failed)
    if as_json:
        print_json(batch)
    elif batch.written:
        _show(batch, written, UNVOUCHED if alone is None else vouched(recorder, [read_told(alone, "RESULT")]))
    if batch.failed:
        raise typer.Exit(FAILED)


class Failure(BaseModel):
    """A result without a report: which of those given, counted from 1 and line by line, and why."""

    position: int
    reason: str


class Batch(BaseModel):
    """What became of the results that were given."""

    written: int
    repeated: int = 0
    """Results that were given before in the same batch."""
    failed: tuple[Failure, ...] = ()


class Place(NamedTuple):
    """Where a result stands: some bytes of a file, so that a long batch costs no memory."""

    path: Path
    start: int = 0
    length: int = LARGEST_RESULT_BYTES + 1


class Made(NamedTuple):
    """A report, and the name of its file."""

    name: str
    content: bytes
    result: str
    model: str
    """Digests of the result and of the model that gave it, for the audit log."""


Make = Callable[[Place], Made | str]
"""Gives the reason where there is no report."""


# --- One ---------------------------------------------------------------------------------------------------------------------------------


def _write_one(source: Path, out: Path, ending: str, reporter: Reporter, recorder: Recorder, earlier: list[Path], audio: Path | None) -> Path:
    result = read_told(source, "RESULT")
    before = read_earlier(earlier)
    content = reporter.report(
        result,
        ending,
        comparison=compare(result, before) if before else None,
        audio=_as_screened(audio, result) if audio else None,
    )
    target = out if ending_of(out) else file_in(out, result, ending)
    recorder.report([result], "exported", ending.removeprefix("."))
    write(content, target)
    if audio:
        complain("Personal data", VOICE)
    return target


def _as_screened(path: Path, result: ScreeningResult) -> Recording:
    """Read a recording, or that part of it which was screened; if it is another one, the report refuses it."""
    whole = load(path)
    if whole.sha256 != result.recording.sha256 and result.timeline:
        start = result.timeline.offset_s
        with suppress(InvalidValueError):  # it is shorter
            return load(path, start=start, end=start + result.recording.duration_s)
    return whole


def _ending(out: Path, form: str | None) -> str:
    ending = ending_of(out)
    if form and ending not in {"", f".{form}"}:
        raise InvalidValueError("--format", form, f"none, or that of the file ({ending.removeprefix('.')})")
    return ending or f".{form or 'pdf'}"


# --- Many --------------------------------------------------------------------------------------------------------------------------------


def _places(sources: Sequence[Path]) -> list[Place]:
    """Find where results stand: a file holds one, but for lines of several."""
    places = [place for path in sources for place in (_lines(path) if path.suffix.lower() == LINES else [Place(path)])]
    if not places:
        raise InvalidValueError("RESULT", "a file without a line", "lines of `screen --json` for several recordings")
    return places


def _lines(path: Path) -> list[Place]:
    found, start = [], 0
    try:
        with path.open("rb") as file:
            while line := file.readline(LARGEST_RESULT_BYTES + 1):
                if line.strip():
                    found.append(Place(path, start, len(line)))
                start += len(line)
    except OSError:
        return [Place(path)]  # fails again, and is counted, where it is read
    return found


def _made(place: Place, *, reporter: Reporter, ending: str) -> Made | str:
    """Make one report of many; what is wrong with its result comes back as the reason."""
    try:
        result = read_told(place.path, "RESULT", start=place.start, length=place.length)
        return Made(file_in(Path(), result, ending).name, reporter.report(result, ending), result.digest, result.model.digest)
    except ClinicalSerError as error:
        return str(error)


def _write_many(places: Sequence[Place], folder: Path, make: Make, recorder: Recorder, workers: int) -> Batch:
    names: set[str] = set()
    failed: dict[int, str] = {}
    done = 0
    try:
        with progress("Writing reports") as tell, closing(_answers(places, make, workers)) as answers:
            for done, (index, answer) in enumerate(answers, start=1):
                if isinstance(answer, str):
                    failed[index] = answer
                elif answer.name not in names:
                    try:
                        recorder.exported(answer.result, answer.model, Path(answer.name).suffix.removeprefix("."))
                    except AuditError as error:
                        failed[index] = str(error)
                        continue
                    write(answer.content, folder / answer.name)
                    names.add(answer.name)
                tell(done, len(places))
    except KeyboardInterrupt:
        complain("Interrupted", f"{len(names)} of {len(places)} reports were written, and are kept.")
        raise typer.Exit(INTERRUPTED) from None
    failures = [Failure(position=index + 1, reason=reason) for index, reason in sorted(failed.items())]
    return Batch(written=len(names), repeated=done - len(names) - len(failures), failed=failures)


def _answers(places: Sequence[Place], make: Make, workers: int) -> Generator[tuple[int, Made | str]]:
    """Yield what came of each result, in no particular order."""
    if workers <= 1 or len(places) < WORTH_PROCESSES:
        yield from ((index, make(place)) for index, place in enumerate(places))
        return
    with closing(run_in_processes(make, places, workers=workers, timeout_s=TIMEOUT_S)) as answers:
        for index, answer in answers:
            yield index, f"Making the report {answer.reason.removeprefix('measuring it ')}." if isinstance(answer, Lost) else answer


def _complain_of(failures: Sequence[Failure]) -> None:
    for failure in failures[:SHOWN_PROBLEMS]:
        complain(f"Result {failure.position}", failure.reason)
    if len(failures) > SHOWN_PROBLEMS:
        complain("And", f"{len(failures) - SHOWN_PROBLEMS} more; --json lists all")


def _show(batch: Batch, target: Path, vouching: str) -> None:
    what = "1 report" if batch.written == 1 else f"{batch.written} reports"
    again = f" {batch.repeated} of the results had been given before." if batch.repeated else ""
    output.print(f"{what} written: {literal(target)}.{again} Personal data: to be kept as the recordings are.")
    output.print(f"  {vouching}")
