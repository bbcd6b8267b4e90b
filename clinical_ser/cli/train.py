"""`clinical-ser train`: a feature table in, a signed bundle with its card out."""

import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError
from rich.table import Table

from clinical_ser.cli.console import (
    check_output_file,
    check_output_folder,
    complain,
    literal,
    output,
    print_json,
    program,
    progress,
    report_problems,
)
from clinical_ser.cohorts.table import read_table, replaced
from clinical_ser.cohorts.tasks import Task, get_task, read_task
from clinical_ser.errors import BundleWriteError, InvalidValueError
from clinical_ser.evaluation.card import Card, make_card, software_versions
from clinical_ser.models.bundle import ModelName, Version
from clinical_ser.models.saving import save
from clinical_ser.models.signing import SigningKey, own_signing_key
from clinical_ser.models.training import Training, TrainingOptions
from clinical_ser.models.training import train as train_model


def train(
    table: Annotated[Path, typer.Argument(help="Feature table from `extract`.", show_default=False)],
    output_folder: Annotated[Path, typer.Option("--output", "-o", help="Folder of the bundle.", show_default=False)],
    task: Annotated[str, typer.Option(help="depression, emotion, or a .toml file that defines a task.")] = "depression",
    head: Annotated[str, typer.Option(help="linear or xgboost.")] = "linear",
    split: Annotated[str, typer.Option(help="Number of folds by subject, 'loso', or a column with an official split.")] = "5",
    name: Annotated[str | None, typer.Option(help="Name of the model; the folder's name otherwise.")] = None,
    version: Annotated[str, typer.Option(help="Version of the model.")] = "1",
    without: Annotated[list[str] | None, typer.Option(help="Family to leave out (repeatable).")] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Take features against each subject's own rows marked in the column 'baseline'.")
    ] = False,
    coverage: Annotated[float, typer.Option(help="Coverage of prediction sets in each class.")] = 0.90,
    seed: Annotated[int, typer.Option(help="Of folds, trees and bootstrap samples.")] = 0,
    sign: Annotated[bool, typer.Option("--sign/--no-sign", help="Sign with this machine's key; made on first use.")] = True,
    predictions: Annotated[Path | None, typer.Option(help="Also write the out-of-fold predictions (.parquet).")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a bundle that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the card.")] = False,
) -> None:
    """Train a calibrated, explained model with subjects kept apart, and report it with intervals."""
    options = TrainingOptions(
        head=head,
        split=int(split) if re.fullmatch(r"[0-9]{1,9}", split) else split,
        coverage=coverage,
        without=tuple(without or ()),
        use_baseline=baseline,
        seed=seed,
    )
    name = _model_name(name, output_folder)
    _check_version(version)
    wanted = _task(task)
    _check_place(output_folder, replace=replace)
    if predictions:
        check_output_file(predictions, "--predictions")
    features = read_table(table)
    key = own_key() if sign else None
    with progress("Training") as report:
        training = train_model(features, wanted, options, progress=report)
    report_problems(training.problems)
    card, digest = publish(training, output_folder, name=name, version=version, key=key, replace=replace)
    if predictions:
        with replaced(predictions) as unfinished:
            training.out_of_fold.to_parquet(unfinished, index=False)
    if as_json:
        print_json(card, indent=2)
        return
    show_card(card)
    output.print(f"Bundle written, digest {digest[:12]}. Use it with: {program()} screen AUDIO --model {_as_path(output_folder)}")


def publish(
    training: Training, folder: Path, *, name: str, version: str, key: SigningKey | None, replace: bool = False, statement: str = ""
) -> tuple[Card, str]:
    """Describe and save a training run; return its card and digest."""
    card = make_card(training, name=name, version=version, statement=statement)
    content = card.model_dump_json(indent=2).encode() + b"\n"
    digest = save(
        training, folder, name=name, version=version, statement=card.statement, card=content, software=software_versions(), key=key, replace=replace
    )
    return card, digest


def show_card(card: Card) -> None:
    """Print what a model is and how well it does."""
    rows = ", ".join(f"{n} {what}" for what, n in card.rows.items() if n)
    output.print(
        f"\n[bold]{literal(card.name)} {literal(card.version)}[/bold]  {literal(card.task.name)}, {literal(card.head)} head; rows: {literal(rows)}"
    )
    output.print(f"  {card.subjects} subjects: " + ", ".join(f"{n} {literal(label)}" for label, n in card.subjects_by_class.items()))
    if card.statement:
        output.print(f"  [yellow]![/yellow] {literal(card.statement)}")
    table = Table(box=None, padding=(0, 2, 0, 2))
    for column in ("out of fold", "value", "95 % interval over subjects"):
        table.add_column(column, justify="left" if column == "out of fold" else "right")
    for what, figure in card.figures.items():
        known = figure.value is not None and figure.low is not None and figure.high is not None
        cells = (f"{figure.value:.3f}", f"{figure.low:.3f} to {figure.high:.3f}") if known else ("not defined", "")
        table.add_row(literal(what.replace("_", " ")), *cells)
    output.print(table)
    for warning in card.warnings:
        output.print(f"  [yellow]![/yellow] {literal(warning)}")


def _model_name(name: str | None, folder: Path) -> str:
    form = "lower-case letters, digits, - and _, 64 at most, a letter or digit first"
    if name is not None:
        return _fitting(ModelName, name, "--name", name, form)
    # The folder's name is not quoted: it is part of a path.
    return _fitting(ModelName, folder.resolve().name, "--name", None, f"one, because the folder's name cannot be the model's: {form}")


def _check_version(version: str) -> None:
    _fitting(Version, version, "--version", version, "a digit, then letters, digits, and . + -, 32 at most")


def _fitting(kind: Any, value: str, option: str, given: str | None, expected: str) -> str:
    """Return the value if the bundle's manifest will take it, or say what it would."""
    try:
        return TypeAdapter[str](kind).validate_python(value)
    except ValidationError:
        raise InvalidValueError(option, given, expected) from None


def _check_place(folder: Path, *, replace: bool) -> None:
    """Refuse before the training what `save` would refuse after it."""
    check_output_folder(folder)
    if not replace and folder.is_dir() and os.listdir(folder):
        raise BundleWriteError("Something is in the bundle's folder already; choose another place, or replace a bundle with --replace.")


def _task(name: str) -> Task:
    return read_task(Path(name)) if name.endswith(".toml") else get_task(name)


def own_key() -> SigningKey:
    """Return this machine's signing key, and say so if it had to be made."""
    key, made = own_signing_key()
    if made:
        complain("Made a signing key for this machine", "`clinical-ser doctor` says where it is; what it signs is trusted here")
    return key


def _as_path(folder: Path) -> str:
    """Write a folder so that it cannot be taken for a model's name."""
    return literal(folder if folder.is_absolute() or len(folder.parts) > 1 else f"./{folder}")
