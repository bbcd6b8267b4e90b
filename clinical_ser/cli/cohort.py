"""`clinical-ser simulate`, `cohort` and `extract`: from speakers or a corpus to a feature table."""

import os
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from clinical_ser.cli.console import FAILED, check_output_file, check_output_folder, complain, literal, output, progress, report_problems
from clinical_ser.cohorts.building import build_table
from clinical_ser.cohorts.corpora import get_corpus, list_corpora
from clinical_ser.cohorts.manifest import read_manifest, write_manifest
from clinical_ser.cohorts.simulation import DEMO_EFFECT_SCALE
from clinical_ser.cohorts.simulation import simulate as simulate_cohort
from clinical_ser.cohorts.table import FeatureTable, write_table
from clinical_ser.errors import InvalidValueError
from clinical_ser.features.batch import Executor
from clinical_ser.features.cache import DEFAULT_MAX_AGE
from clinical_ser.features.extraction import DEFAULT_SETS, ENCODER

# Not 0 for "only this run": what a killed run leaves is what a cache is for. A decade stands for "until it is cleared".
CacheDays = Annotated[int, typer.Option("--cache-days", min=1, max=3650, help="Days after which what the cache keeps is deleted.")]


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def simulate(
    subjects: Annotated[int, typer.Argument(help="Number of speakers.", show_default=False)],
    folder: Annotated[Path, typer.Option("--output", "-o", help="Folder of the cohort.", show_default=False)],
    seed: Annotated[int, typer.Option(help="The same seed gives the same samples.")] = 0,
    recordings: Annotated[int, typer.Option(help="Recordings a speaker.")] = 1,
    prevalence: Annotated[float, typer.Option(help="Share of speakers with a score of 10 or more.")] = 0.35,
    effect_scale: Annotated[
        float, typer.Option(help="Times the published effects of severity on the voice; 1 is the literature.")
    ] = DEMO_EFFECT_SCALE,
    speech_s: Annotated[float, typer.Option(help="Seconds of speech a recording.")] = 27.0,
    workers: Annotated[int | None, typer.Option(help="Processes; all processors otherwise.")] = None,
) -> None:
    """Simulate speakers whose true risk is known. Not real people: for demonstrations and tests."""
    check_output_folder(folder)
    with progress("Simulating") as report:
        cohort = simulate_cohort(
            subjects,
            folder,
            seed=seed,
            recordings_per_subject=recordings,
            prevalence=prevalence,
            effect_scale=effect_scale,
            speech_s=speech_s,
            workers=processors() if workers is None else workers,
            progress=report,
        )
    output.print(f"{'There already' if cohort.reused else 'Simulated'}: {subjects} speakers. Best reachable AUC {cohort.best_reachable_auc:.3f}.")
    output.print(f"Manifest: {literal(cohort.manifest)}; the truth: {literal(cohort.truth)}")


def cohort(
    corpus: Annotated[str | None, typer.Argument(help="Name of a corpus; --list shows them.")] = None,
    root: Annotated[Path | None, typer.Argument(help="Folder in which the corpus lies as its publisher lays it out.")] = None,
    manifest: Annotated[Path | None, typer.Option("--output", "-o", help="Manifest to write (.csv or .parquet).")] = None,
    show_list: Annotated[bool, typer.Option("--list", help="List the corpora that can be read, with licence and official split.")] = False,
) -> None:
    """Write the manifest of a published corpus."""
    if show_list:
        _show_corpora()
        return
    if corpus is None or root is None or manifest is None:
        raise typer.BadParameter("give CORPUS, ROOT and --output MANIFEST, or --list")
    adapter = get_corpus(corpus)
    check_output_file(manifest)
    frame = adapter.read(root)
    write_manifest(frame, manifest)
    output.print(f"{literal(adapter.title)}: {len(frame)} recordings of {frame['subject'].nunique()} subjects. Licence: {literal(adapter.licence)}")
    output.print(f"Official split: {literal(adapter.official_split)}")
    for reason, n in frame.attrs.get("left_out", {}).items():
        complain("Left out", f"{n} files: {reason}")


def _show_corpora() -> None:
    table = Table("name", "corpus", "task", "licence", "official split", box=None)
    for adapter in map(get_corpus, list_corpora()):
        table.add_row(literal(adapter.name), literal(adapter.title), literal(adapter.task), literal(adapter.licence), literal(adapter.official_split))
    output.print(table)


def extract(
    manifest: Annotated[Path, typer.Argument(help="Manifest (.csv or .parquet) with at least path and subject.", show_default=False)],
    table: Annotated[Path, typer.Option("--output", "-o", help="Feature table to write (.parquet).", show_default=False)],
    features: Annotated[str, typer.Option(help="Feature sets, separated by commas: egemaps, praat, timing, compare.")] = ",".join(DEFAULT_SETS),
    encoder: Annotated[
        list[str] | None, typer.Option(help="Also embed with this encoder: an installed one's name, a folder, or BACKEND:ARGUMENT (repeatable).")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; all processors otherwise, 0 works in this one.")] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder to keep what was measured, encrypted, so that a killed run goes on. Feature vectors identify people."),
    ] = None,
    cache_days: CacheDays = DEFAULT_MAX_AGE.days,
    ray: Annotated[str | None, typer.Option(help="Extract on a Ray cluster: 'auto' or its address, 'local' for one on this machine.")] = None,
) -> None:
    """Extract features of every recording of a manifest; rows that fail are reported by number, and the rest goes on."""
    if table.suffix != ".parquet":
        raise InvalidValueError("the table's suffix", table.suffix, [".parquet"])
    check_output_file(table)
    built = run_extraction(
        manifest,
        sets=(*filter(None, features.split(",")), *(f"{ENCODER}{one}" for one in encoder or ())),
        workers=workers,
        cache=cache,
        cache_days=cache_days,
        ray=ray,
    )
    write_table(built, table)
    report_problems(built.problems)
    output.print(f"{len(built.frame)} recordings, {len(built.feature_names)} features, {len(built.problems)} rows with a problem.")
    if built.frame.empty:
        raise typer.Exit(FAILED)


def run_extraction(
    manifest: Path,
    *,
    sets: tuple[str, ...] = DEFAULT_SETS,
    workers: int | None = None,
    cache: Path | None = None,
    cache_days: int = DEFAULT_MAX_AGE.days,
    ray: str | None = None,
) -> FeatureTable:
    """Extract a manifest with a progress bar."""
    rows = read_manifest(manifest)
    with progress("Extracting features") as report:
        finished = count()
        return build_table(
            rows,
            sets=sets,
            workers=processors() if workers is None else workers,
            cache=cache,
            cache_max_age=timedelta(days=cache_days),
            executor=Executor.RAY if ray else Executor.PROCESSES,
            ray_address=None if ray == "local" else ray,
            progress=lambda _: report(next(finished) + 1, len(rows)),
        )
