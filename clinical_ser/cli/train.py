"""`clinical-ser train`: a feature table in, a signed bundle with its card out."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from clinical_ser.cli.console import complain, errors, output, progress
from clinical_ser.cohorts.table import read_table
from clinical_ser.cohorts.tasks import Task, get_task, read_task
from clinical_ser.evaluation.card import Card, make_card, software_versions
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
        split=int(split) if split.isdigit() else split,
        coverage=coverage,
        without=tuple(without or ()),
        use_baseline=baseline,
        seed=seed,
    )
    with progress("Training") as report:
        training = train_model(read_table(table), _task(task), options, progress=report)
    card, digest = publish(training, output_folder, name=name or output_folder.resolve().name, version=version, sign=sign, replace=replace)
    if predictions:
        training.out_of_fold.to_parquet(predictions, index=False)
    if as_json:
        output.print(card.model_dump_json(indent=2), markup=False)
        return
    show_card(card)
    output.print(f"Bundle written, digest {digest[:12]}. Use it with: clinical-ser screen AUDIO --model {escape(str(output_folder))}")


def publish(
    training: Training, folder: Path, *, name: str, version: str, sign: bool = True, replace: bool = False, statement: str = ""
) -> tuple[Card, str]:
    """Describe and save a training run; return its card and digest."""
    card = make_card(training, name=name, version=version, statement=statement)
    key = _own_key() if sign else None
    content = card.model_dump_json(indent=2).encode() + b"\n"
    digest = save(
        training, folder, name=name, version=version, statement=card.statement, card=content, software=software_versions(), key=key, replace=replace
    )
    return card, digest


def show_card(card: Card) -> None:
    """Print what a model is and how well it does."""
    rows = ", ".join(f"{n} {what}" for what, n in card.rows.items() if n)
    output.print(f"\n[bold]{escape(card.name)} {escape(card.version)}[/bold]  {card.task.name}, {card.head} head; rows: {rows}")
    output.print(f"  {card.subjects} subjects: " + ", ".join(f"{n} {escape(label)}" for label, n in card.subjects_by_class.items()))
    if card.statement:
        output.print(f"  [yellow]![/yellow] {escape(card.statement)}")
    table = Table(box=None, padding=(0, 2, 0, 2))
    for column in ("out of fold", "value", "95 % interval over subjects"):
        table.add_column(column, justify="left" if column == "out of fold" else "right")
    for what, figure in card.figures.items():
        known = figure.value is not None and figure.low is not None and figure.high is not None
        cells = (f"{figure.value:.3f}", f"{figure.low:.3f} to {figure.high:.3f}") if known else ("not defined", "")
        table.add_row(what.replace("_", " "), *cells)
    output.print(table)
    for warning in card.warnings:
        errors.print(f"  [yellow]![/yellow] {escape(warning)}")


def _task(name: str) -> Task:
    return read_task(Path(name)) if name.endswith(".toml") else get_task(name)


def _own_key() -> SigningKey:
    key, made = own_signing_key()
    if made:
        complain("Made a signing key for this machine", "`clinical-ser doctor` says where it is; what it signs is trusted here")
    return key
