"""`clinical-ser embed` and `embeddings`: recordings become vectors on disk, and vectors neighbours, clusters and a picture.

The one idea: what is shown are numbers of rows and beginnings of digests. Whose voice a row is stands in the manifest, and nowhere else.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pandas as pd
import typer
from pydantic import BaseModel
from rich.table import Table
from threadpoolctl import threadpool_limits

from clinical_ser.cli.cohort import processors
from clinical_ser.cli.console import (
    FAILED,
    INTERRUPTED,
    check_output_file,
    complain,
    literal,
    output,
    percent,
    print_json,
    progress,
    report_problems,
)
from clinical_ser.cohorts.manifest import read_manifest
from clinical_ser.cohorts.table import RowProblem, replaced
from clinical_ser.embeddings import Encoder, find_encoder
from clinical_ser.embeddings.storing import (
    HANDLING,
    About,
    Embeddings,
    Encoded,
    checked_columns,
    encode_file,
    read_embeddings,
    side_car_of,
    write_frames,
    write_matrix,
    write_vector,
)
from clinical_ser.errors import ClinicalSerError, EncoderError, InvalidValueError
from clinical_ser.features.workers import Lost, run_in_processes

MATRIX, TABLE = ".npy", ".parquet"
MANIFESTS = (".csv", ".parquet")
SVG = ".svg"
SUBJECT, LABEL = "subject", "label"
SHOWN_ROWS = 10
_DIGITS = 12
_NOT_GROUPS = frozenset({"row", "recording"})
# What one recording can set off in decoders and networks; anything else is a fault of this program and is not hidden.
_ROW_ERRORS = (OSError, MemoryError, ArithmeticError, LookupError, ValueError, RuntimeError)

app = typer.Typer(help="Compare recordings by their embeddings: neighbours, clusters, and a picture.", no_args_is_help=True)

Stored = Annotated[Path, typer.Argument(help="What `clinical-ser embed` wrote of a manifest (.npy or .parquet).", show_default=False)]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="The same seed gives the same answer.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the whole answer as JSON.")]


# --- embed --------------------------------------------------------------------------------------------------------------------------------


class Failure(BaseModel):
    """A row without a vector, and why."""

    row: int
    reason: str


class Written(BaseModel):
    """What `embed` has to say; the side-car says the rest."""

    written: int
    shape: tuple[int, ...]
    encoder: str
    fingerprint: str
    licence: str
    speech_s: float
    identifies_speakers: Literal[True] = True
    failed: tuple[Failure, ...] = ()


class Job(NamedTuple):
    """One row of a manifest."""

    row: int
    path: Path
    start: float | None
    end: float | None


def embed(
    source: Annotated[Path, typer.Argument(metavar="AUDIO|MANIFEST", help="A recording, or a manifest (.csv, .parquet).", show_default=False)],
    out: Annotated[
        Path, typer.Option("--output", "-o", help="File to write: .npy, or .parquet of a manifest; a .json goes beside it.", show_default=False)
    ],
    encoder: Annotated[str, typer.Option(help="An installed encoder's name, a folder, or BACKEND:ARGUMENT.", show_default=False)],
    frames: Annotated[bool, typer.Option("--frames", help="Of one recording: its frames, at the encoder's rate, instead of one vector.")] = False,
    workers: Annotated[int | None, typer.Option(min=0, help="Of a manifest: processes; all processors otherwise, 0 works in this one.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace embeddings that are there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written, and which rows failed, as JSON.")] = False,
) -> None:
    """Turn recordings into vectors of an encoder. Every voice vector identifies a person: keep them as you keep the recordings."""
    manifest = source.suffix.lower() in MANIFESTS
    _check_target(out, source, manifest=manifest, frames=frames, replace=replace)
    found = find_encoder(encoder)
    try:
        if manifest:
            about, problems = _embed_manifest(source, out, encoder, found, processors() if workers is None else workers)
        else:
            about, problems = _embed_one(source, out, found, frames=frames), ()
    except KeyboardInterrupt:
        complain("Interrupted", "Nothing was written; what was there before is as it was.")
        raise typer.Exit(INTERRUPTED) from None
    report_problems(problems)
    if as_json:
        print_json(_written(about, found, problems))
    elif about:
        _show(about, out)
    if about:
        complain("Personal data", HANDLING)
    if about is None:
        raise typer.Exit(FAILED)


def _check_target(out: Path, source: Path, *, manifest: bool, frames: bool, replace: bool) -> None:
    """Refuse before the work what could not be written after it."""
    suffix = out.suffix.lower()
    if suffix not in ((MATRIX, TABLE) if manifest else (MATRIX,)):
        raise InvalidValueError("the suffix of --output", suffix, [MATRIX, TABLE] if manifest else f"{MATRIX}; {TABLE} needs a manifest")
    if frames and manifest:
        raise InvalidValueError("--frames", "given with a manifest", "one recording")
    check_output_file(out)
    beside = side_car_of(out)
    if out.exists() and source.exists() and out.samefile(source):
        raise InvalidValueError("--output", "the file that is read", "another file")
    if (out.exists() or beside.exists()) and not replace:
        raise InvalidValueError("--output", "a file that is there already", "a new name, or --replace")
    if out.exists() and not beside.exists():
        raise InvalidValueError("--output", "a file that holds no embeddings", "a new name: --replace is for embeddings alone")


@contextmanager
def _both(out: Path) -> Iterator[tuple[Path, Path]]:
    """Give two temporary files for the numbers and their side-car, which then take their places: a reader believes neither without the other."""
    with replaced(out) as data, replaced(side_car_of(out)) as beside:
        yield data, beside


def _embed_one(source: Path, out: Path, encoder: Encoder, *, frames: bool) -> About:
    # One thread: how a product is split over threads decides its last bits.
    with threadpool_limits(1), progress("Embedding"), _both(out) as files:
        return write_frames(encoder, source, *files) if frames else write_vector(encode_file(encoder, source), encoder, *files)


def _embed_manifest(source: Path, out: Path, reference: str, encoder: Encoder, workers: int) -> tuple[About | None, tuple[RowProblem, ...]]:
    manifest = read_manifest(source)
    columns = manifest.frame.drop(columns=["row", "path"])
    columns.insert(0, SUBJECT, columns.pop(SUBJECT))
    as_table = out.suffix.lower() == TABLE
    if as_table:
        checked_columns(columns, encoder.spec)
    jobs = _jobs(manifest.frame)
    encoded: dict[int, Encoded] = {}
    problems = list(manifest.problems)
    with progress("Embedding") as tell, closing(_answers(jobs, reference, encoder, workers)) as answers:
        for done, (index, answer) in enumerate(answers, start=1):
            if isinstance(answer, str):
                problems.append(RowProblem(jobs[index].row, answer))
            else:
                encoded[index] = answer
            tell(done, len(jobs))
    problems.sort(key=lambda problem: problem.row)
    if not encoded:
        return None, tuple(problems)
    kept = sorted(encoded)
    with _both(out) as files:
        about = write_matrix(
            [encoded[index] for index in kept],
            encoder,
            *files,
            problems=tuple((problem.row, problem.reason) for problem in problems),
            columns=columns.iloc[kept] if as_table else None,
        )
    return about, tuple(problems)


def _jobs(frame: pd.DataFrame) -> list[Job]:
    starts, ends = ([None if pd.isna(value) else float(value) for value in frame.get(name, [None] * len(frame))] for name in ("start", "end"))
    return [Job(int(row), Path(path), start, end) for row, path, start, end in zip(frame["row"], frame["path"], starts, ends, strict=True)]


def _answers(jobs: Sequence[Job], reference: str, encoder: Encoder, workers: int) -> Generator[tuple[int, Encoded | str]]:
    """Yield what came of each row, in no particular order."""
    encode = partial(_encoded, reference=reference, fingerprint=encoder.fingerprint)
    if not workers or len(jobs) == 1:
        with threadpool_limits(1):
            yield from ((index, encode(job)) for index, job in enumerate(jobs))
        return
    with closing(run_in_processes(encode, jobs, workers=workers)) as answers:
        for index, answer in answers:
            yield index, answer.reason if isinstance(answer, Lost) else answer


def _encoded(job: Job, *, reference: str, fingerprint: str) -> Encoded | str:
    """Encode one row of many, wherever that is done; what is wrong with it comes back as the reason."""
    try:
        encoder = find_encoder(reference)
        if encoder.fingerprint != fingerprint:
            raise EncoderError("The encoder changed while the manifest was embedded.")
        return encode_file(encoder, job.path, row=job.row, start=job.start, end=job.end)
    except ClinicalSerError as error:
        return str(error)
    except _ROW_ERRORS as error:
        return f"{type(error).__name__} while it was embedded"  # only the kind: the text may quote a path


def _written(about: About | None, encoder: Encoder, problems: Sequence[RowProblem]) -> Written:
    return Written(
        written=len(about.rows) if about else 0,
        shape=about.data.shape if about else (),
        encoder=encoder.spec.name,
        fingerprint=encoder.fingerprint,
        licence=encoder.spec.licence,
        speech_s=round(sum(row.speech_s for row in about.rows), 3) if about else 0.0,
        failed=tuple(Failure(row=problem.row, reason=problem.reason) for problem in problems),
    )


def _show(about: About, out: Path) -> None:
    shape = " x ".join(str(size) for size in about.data.shape)
    speech_s = sum(row.speech_s for row in about.rows)
    if about.content == "frames":
        what = f"{about.data.shape[0]} frames of 1 recording"
    else:
        what = f"{len(about.rows)} recording{'s' * (len(about.rows) > 1)}"
    output.print(f"{what}, {speech_s:.1f} s of speech, by encoder {literal(about.encoder)} ({literal(about.licence)}): {shape} numbers.")
    if any(row.parts > 1 for row in about.rows):
        output.print("Recordings of more than 10 minutes were heard in parts, each with its own mean removed, and are named by the file's digest.")
    output.print(f"Written: {literal(out)}, and what it is beside it: {literal(side_car_of(out).name)}")


# --- embeddings ---------------------------------------------------------------------------------------------------------------------------


class Near(BaseModel):
    """A neighbour: its row, the beginning of its recording's digest, and cosines in the common space and of the vectors as they come."""

    row: int
    recording: str
    cosine: float
    uncentred: float


class Neighbourhood(BaseModel):
    """A row and its nearest others, nearest first."""

    row: int
    recording: str
    nearest: tuple[Near, ...]


class Similar(BaseModel):
    """The answer of `embeddings similar`."""

    encoder: str
    fingerprint: str
    centred: bool
    rows: tuple[Neighbourhood, ...]


class Following(BaseModel):
    """How far clusters follow a column: `relations.Agreement` once more, because that module is slow to import and few commands need it."""

    column: str
    groups: int
    rows: int
    ari: float
    together: float | None
    chance: float


class Member(BaseModel):
    """A row and its cluster, numbered from 1."""

    row: int
    recording: str
    cluster: int


class Clusters(BaseModel):
    """The answer of `embeddings cluster`."""

    encoder: str
    fingerprint: str
    seed: int
    k: int
    inertia: float
    silhouette: float
    tried: dict[int, float]
    sizes: tuple[int, ...]
    agreement: tuple[Following, ...]
    follows_speakers: bool | None
    """None where no column says who speaks."""
    rows: tuple[Member, ...]


@app.command()
def similar(
    stored: Stored,
    top: Annotated[int, typer.Option(min=1, max=1000, help="Neighbours of each recording.")] = 3,
    row: Annotated[list[int] | None, typer.Option(help="Only of this row of the manifest (repeatable).")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the nearest recordings of each by the cosine of their vectors, less the mean of all; beside it that of the vectors as they come."""
    from clinical_ser.embeddings.relations import LEAST_TO_CENTRE, neighbours

    found = _of_recordings(stored)
    rows, digests = _identities(found)
    places = _places(rows, row)
    lists = neighbours(found.vectors, top, of=places)
    answer = Similar(
        encoder=found.about.encoder,
        fingerprint=found.about.fingerprint,
        centred=len(rows) >= LEAST_TO_CENTRE,
        rows=tuple(
            Neighbourhood(
                row=rows[place],
                recording=digests[place],
                nearest=tuple(
                    Near(row=rows[one.place], recording=digests[one.place], cosine=round(one.cosine, 6), uncentred=round(one.uncentred, 6))
                    for one in nearest
                ),
            )
            for place, nearest in zip(places, lists, strict=True)
        ),
    )
    if as_json:
        print_json(answer)
        return
    table = Table("row", "recording", "near row", "recording", "cosine", "uncentred", box=None)
    for one in answer.rows[:SHOWN_ROWS]:
        for place, near in enumerate(one.nearest):
            named = ("", "") if place else (str(one.row), one.recording)
            table.add_row(*named, str(near.row), near.recording, f"{near.cosine:.3f}", f"{near.uncentred:.3f}")
    output.print(table)
    if len(answer.rows) > SHOWN_ROWS:
        output.print(f"[dim]and {len(answer.rows) - SHOWN_ROWS} rows more; --row or --json shows others[/dim]")
    if not answer.centred:
        output.print("Two recordings have no mean to be told from: their cosine is that of the vectors as they come.")


@app.command("cluster")
def cluster_(
    stored: Stored,
    k: Annotated[int | None, typer.Option("-k", "--clusters", help="Number of clusters; otherwise that of 2 to 10 with the best silhouette.")] = None,
    seed: Seed = 0,
    against: Annotated[
        list[str] | None, typer.Option(help="Compare with this column of the Parquet (repeatable); label and subject otherwise.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Group recordings by k-means, and say whether the groups follow the label or only the speaker."""
    from clinical_ser.embeddings.relations import Agreement, agreement, cluster, follows_speakers

    found = _of_recordings(stored)
    rows, digests = _identities(found)
    columns = _columns(found.columns, against)
    made = cluster(found.vectors, k, seed=seed)
    speakers = columns.get(SUBJECT) or (_values(found.columns, SUBJECT) if SUBJECT in found.columns else None)
    compared: dict[str, Agreement] = {
        name: agreement(made.clusters, name, values, apart_from=speakers if name != SUBJECT else None) for name, values in columns.items()
    }
    follows = follows_speakers(compared[SUBJECT], compared.get(LABEL)) if SUBJECT in compared else None
    answer = Clusters(
        encoder=found.about.encoder,
        fingerprint=found.about.fingerprint,
        seed=seed,
        k=made.k,
        inertia=made.inertia,
        silhouette=made.silhouette,
        tried=made.tried,
        sizes=tuple(int((made.clusters == i).sum()) for i in range(made.k)),
        agreement=tuple(Following(**vars(one)) for one in compared.values()),
        follows_speakers=follows,
        rows=tuple(
            Member(row=number, recording=digest, cluster=int(one) + 1) for number, digest, one in zip(rows, digests, made.clusters, strict=True)
        ),
    )
    if as_json:
        print_json(answer)
    else:
        _show_clusters(answer, chosen=k is None)


@app.command()
def picture(
    stored: Stored,
    out: Annotated[Path, typer.Option("--output", "-o", help="Picture to write (.svg).", show_default=False)],
    method: Annotated[Literal["pca", "tsne"], typer.Option(help="Principal components, or t-SNE.")] = "pca",
    by: Annotated[str | None, typer.Option(help="Column of the Parquet that gives signs; label or subject otherwise, where they are there.")] = None,
    perplexity: Annotated[float | None, typer.Option(help="Of t-SNE; 30 otherwise, or a third of the recordings.")] = None,
    seed: Seed = 0,
) -> None:
    """Draw the recordings in two dimensions, each group with its own sign. Subjects are numbered, never named."""
    from clinical_ser.cli.reporting import write
    from clinical_ser.embeddings.relations import Method, project
    from reports.embedding_picture import picture as drawn
    from reports.rendering import HTML_FONT

    if out.suffix.lower() != SVG:
        raise InvalidValueError("the suffix of --output", out.suffix, [SVG])
    check_output_file(out)
    found = _of_recordings(stored)
    column = by or next((name for name in (LABEL, SUBJECT) if name in found.columns), None)
    values = _columns(found.columns, [column])[column] if column else [None] * len(found.vectors)
    placed = project(found.vectors, Method(method), seed=seed, perplexity=perplexity)
    made = drawn(placed, [values[place] for place in placed.places.tolist()], by=column, encoder=found.about.encoder)
    write(made.svg(HTML_FONT).encode(), out)
    output.print(literal(made.finding))
    output.print(f"Written: {literal(out)}")


def _of_recordings(path: Path) -> Embeddings:
    found = read_embeddings(path)
    if found.about.content == "frames":
        raise InvalidValueError("STORED", "the frames of one recording", "vectors of a manifest's recordings")
    return found


def _identities(found: Embeddings) -> tuple[list[int], list[str]]:
    return found.columns["row"].tolist(), [digest[:_DIGITS] for digest in found.columns["recording"]]


def _places(rows: Sequence[int], wanted: Sequence[int] | None) -> list[int]:
    place_of = {row: place for place, row in enumerate(rows)}
    if unknown := [row for row in wanted or () if row not in place_of]:
        raise InvalidValueError("--row", unknown[0], "the number of a row that has a vector")
    return [place_of[row] for row in wanted] if wanted else list(range(len(rows)))


def _columns(frame: pd.DataFrame, wanted: Sequence[str] | None) -> dict[str, list[str | None]]:
    """Return the columns to compare with; those that are asked for must be there."""
    there = [str(name) for name in frame.columns if name not in _NOT_GROUPS]
    if absent := [name for name in wanted or () if name not in there]:
        raise InvalidValueError("the column", absent[0], there or "none: a .npy has no columns, Parquet has those of the manifest")
    chosen = wanted or [name for name in (LABEL, SUBJECT) if name in there]
    return {name: _values(frame, name) for name in chosen}


def _values(frame: pd.DataFrame, name: str) -> list[str | None]:
    cells: list[Any] = frame[name].tolist()
    return [None if pd.isna(cell) or str(cell) == "" else str(cell) for cell in cells]


def _show_clusters(answer: Clusters, *, chosen: bool) -> None:
    how = f", the best of {min(answer.tried)} to {max(answer.tried)} by silhouette" if chosen else ""
    output.print(f"{answer.k} clusters{how}. Silhouette {answer.silhouette:.3f}, inertia {answer.inertia:.1f}, seed {answer.seed}.")
    output.print(f"Recordings in each: {', '.join(map(str, answer.sizes))}. --json says which.")
    if answer.silhouette < 0.25:
        output.print("  [yellow]![/yellow] A silhouette below 0.25: there is hardly any structure that clusters could show.")
    if answer.agreement:
        table = Table("column", "groups", "adjusted Rand index", "pairs together", "by chance", box=None)
        for one in answer.agreement:
            together = "no pair" if one.together is None else percent(one.together)
            table.add_row(literal(one.column), str(one.groups), f"{one.ari:.3f}", together, percent(one.chance))
        output.print(table)
        output.print("[dim]Pairs together: of one group and, but for subject, of different speakers, in one cluster.[/dim]")
    if answer.follows_speakers:
        labelled = any(one.column == LABEL for one in answer.agreement)
        output.print(f"  [yellow]![/yellow] The clusters follow who speaks{', more than the label' if labelled else ''}: they group voices.")
