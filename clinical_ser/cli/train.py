"""`clinical-ser train`: a feature table in, a signed bundle with its card out."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError

from clinical_ser.cli.cohort import processors
from clinical_ser.cli.console import (
    check_bundle_folder,
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
from clinical_ser.cli.evidence import write_report
from clinical_ser.cli.model import show_card
from clinical_ser.cohorts.table import FeatureTable, read_table
from clinical_ser.cohorts.tasks import Task, get_task, read_task
from clinical_ser.errors import InvalidValueError
from clinical_ser.evaluation.card import Card
from clinical_ser.evaluation.card_fields import read_about
from clinical_ser.evaluation.evaluating import EvaluationOptions
from clinical_ser.evaluation.evidence import Evidence
from clinical_ser.evaluation.predictions import of_training, write_predictions
from clinical_ser.evaluation.release import REPLICATES, card_of
from clinical_ser.evaluation.software import software_versions
from clinical_ser.models.bundle import ModelName, Version
from clinical_ser.models.saving import save
from clinical_ser.models.signing import SigningKey, own_signing_key
from clinical_ser.models.training import Training, TrainingOptions
from clinical_ser.models.training import train as train_model


def train(
    table: Annotated[Path, typer.Argument(help="Feature table from `extract`.", show_default=False)],
    output_folder: Annotated[Path, typer.Option("--output", "-o", help="Folder of the bundle.", show_default=False)],
    task: Annotated[str, typer.Option(help="depression, emotion, or a .toml file that defines a task.")] = "depression",
    head: Annotated[str, typer.Option(help="linear or xgboost; embeddings always have a linear one.")] = "linear",
    fusion: Annotated[str, typer.Option(help="How embeddings join named features: late (margins added), stacked or concatenated.")] = "late",
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
    about: Annotated[Path | None, typer.Option(help="What only a person knows of the model (.toml); `model card --template` prints one.")] = None,
    predictions: Annotated[Path | None, typer.Option(help="Also write the out-of-fold predictions (.parquet), for `evaluate`.")] = None,
    report: Annotated[Path | None, typer.Option(help="Also write the out-of-fold evidence and its report into this folder.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a bundle that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the card.")] = False,
) -> None:
    """Train a calibrated, explained model with subjects kept apart, and report it with intervals."""
    options = TrainingOptions(
        head=head,
        fusion=fusion,
        split=int(split) if re.fullmatch(r"[0-9]{1,9}", split) else split,
        coverage=coverage,
        without=tuple(without or ()),
        use_baseline=baseline,
        seed=seed,
    )
    name = _model_name(name, output_folder)
    check_version(version)
    wanted = task_named(task)
    check_bundle_folder(output_folder, replace=replace)
    if predictions:
        check_output_file(predictions, "--predictions")
    if report:
        check_output_folder(report, "--report")
    supplied = read_about(about) if about else None
    features = read_table(table)
    key = own_key() if sign else None
    with progress("Training") as done:
        training = train_model(features, wanted, options, progress=done)
    report_problems(training.problems)
    with progress("Evaluating out of fold"):
        published = publish(
            training, features, output_folder, name=name, version=version, key=key, replace=replace, supplied=supplied, workers=processors()
        )
    if predictions:
        write_predictions(of_training(training, name=name, version=version, statement=published.card.statement), predictions)
    if report:
        write_report(published.evidence, report)
    if as_json:
        print_json(published.card, indent=2)
        return
    show_card(published.card)
    output.print(f"Bundle written, digest {published.digest[:12]}. Use it with: {program()} screen AUDIO --model {_as_path(output_folder)}")


@dataclass(frozen=True)
class Published:
    """A bundle that was written, and what is known about it."""

    card: Card
    evidence: Evidence
    digest: str


def publish(
    training: Training,
    table: FeatureTable,
    folder: Path,
    *,
    name: str,
    version: str,
    key: SigningKey | None,
    replace: bool = False,
    supplied: Mapping[str, str] | None = None,
    workers: int = 1,
) -> Published:
    """Evaluate, describe and save a training run."""
    options = EvaluationOptions(replicates=REPLICATES, workers=workers)
    card, evidence = card_of(training, table, name=name, version=version, supplied=supplied, options=options)
    software = software_versions()
    digest = save(
        training, folder, name=name, version=version, statement=card.statement, card=card.to_json(), software=software, key=key, replace=replace
    )
    return Published(card, evidence, digest)


def _model_name(name: str | None, folder: Path) -> str:
    form = "lower-case letters, digits, - and _, 64 at most, a letter or digit first"
    if name is not None:
        return _fitting(ModelName, name, "--name", name, form)
    # The folder's name is not quoted: it is part of a path.
    return _fitting(ModelName, folder.resolve().name, "--name", None, f"one, because the folder's name cannot be the model's: {form}")


def check_version(version: str) -> None:
    """Make sure that the bundle's manifest will take a version."""
    _fitting(Version, version, "--version", version, "a digit, then letters, digits, and . + -, 32 at most")


def _fitting(kind: Any, value: str, option: str, given: str | None, expected: str) -> str:
    """Return the value if the bundle's manifest will take it, or say what it would."""
    try:
        return TypeAdapter[str](kind).validate_python(value)
    except ValidationError:
        raise InvalidValueError(option, given, expected) from None


def task_named(name: str) -> Task:
    """Return a built-in task, or the one that a .toml file defines."""
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
