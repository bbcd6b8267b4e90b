"""`clinical-ser evaluate`: the full evidence about a model, as JSON, card and report; it ends with a failure where the test was no test."""

from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from pydantic import ValidationError

from clinical_ser.cli.cohort import processors
from clinical_ser.cli.console import (
    FAILED,
    check_output_folder,
    literal,
    output,
    print_json,
    progress,
    report_problems,
)
from clinical_ser.cli.evidence import passes, show, write_card, write_report
from clinical_ser.cli.plan import Plan
from clinical_ser.cli.train import task_named
from clinical_ser.cohorts.baseline import is_baseline
from clinical_ser.cohorts.table import FeatureTable, read_table
from clinical_ser.errors import EvidenceError, InvalidValueError
from clinical_ser.evaluation.comparisons import Comparator
from clinical_ser.evaluation.evaluating import REPLICATES, EvaluationOptions
from clinical_ser.evaluation.evaluating import evaluate as evaluate_predictions
from clinical_ser.evaluation.evidence import EvaluatedModel
from clinical_ser.evaluation.explanations import CohortExplanation, explain_cohort
from clinical_ser.evaluation.gates import LEAST_REPLICATES, judge_gates, read_gates
from clinical_ser.evaluation.planning import LearningCurve
from clinical_ser.evaluation.predictions import Predictions, check_extractors, from_scores, predict, read_predictions
from clinical_ser.models.bundle import VerifiedBundle, read_bundle
from clinical_ser.models.rows import select_rows
from clinical_ser.models.trained import TrainedModel
from clinical_ser.models.training import cohort_digest
from clinical_ser.registry.names import find_model


def evaluate(
    model: Annotated[str | None, typer.Argument(help="Name of an installed model, or a bundle's folder.", show_default=False)] = None,
    table: Annotated[Path | None, typer.Argument(help="Feature table of a cohort that the model has not seen.", show_default=False)] = None,
    folder: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for evidence, card and report.", show_default=False)] = None,
    predictions: Annotated[Path | None, typer.Option(help="Out-of-fold predictions of `train --predictions`, in place of MODEL TABLE.")] = None,
    scores: Annotated[Path | None, typer.Option(help="Predictions of other software: CSV with subject, label, probability.")] = None,
    task: Annotated[
        str | None, typer.Option(help="Of --scores: depression (the default), or a .toml file that defines a task of two classes.")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Of --scores: the operating point, as a probability; 0.5 otherwise.")] = None,
    stated_prevalence: Annotated[float | None, typer.Option(help="Of --scores: the prevalence that the probabilities are stated for.")] = None,
    features: Annotated[Path | None, typer.Option(help="Of --predictions: the feature table behind them, for the leak guards.")] = None,
    training: Annotated[Path | None, typer.Option(help="Table that the model was trained on, for the leak guards.")] = None,
    prevalence: Annotated[float | None, typer.Option(help="State probabilities for this prevalence; that of training otherwise.")] = None,
    by: Annotated[list[str] | None, typer.Option(help="Column to look at group by group (repeatable); sex, age_band, ... otherwise.")] = None,
    against: Annotated[list[str] | None, typer.Option(help="Another model to compare with, on the same table (repeatable).")] = None,
    comparator: Annotated[list[str] | None, typer.Option(help="A questionnaire in the table to compare with, such as 'phq2>=3'.")] = None,
    curve: Annotated[Path | None, typer.Option("--learning-curve", help="JSON of `plan TABLE --json`, to be shown with the rest.")] = None,
    require: Annotated[Path | None, typer.Option(help="Release gates (.toml); the command fails where one is not met.")] = None,
    accept_leak: Annotated[list[str] | None, typer.Option(help="Go on although this leak guard failed (repeatable); the report says so.")] = None,
    replicates: Annotated[int, typer.Option(help="Bootstrap samples of subjects.")] = REPLICATES,
    seed: Annotated[int, typer.Option(help="Of the bootstrap and of the probe.")] = 0,
    workers: Annotated[int | None, typer.Option(help="Processes; all processors otherwise.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the evidence.")] = False,
) -> None:
    """Evaluate a model as a journal's reviewer would: discrimination, calibration, decisions, subgroups, leaks; with intervals over subjects."""
    if folder is None:
        raise typer.BadParameter("give a folder with --output")
    check_output_folder(folder)
    gates = read_gates(require) if require else ()
    if gates and replicates < LEAST_REPLICATES:
        raise InvalidValueError("--replicates", replicates, f"at least {LEAST_REPLICATES} where gates are judged")
    options = EvaluationOptions(
        by=None if by is None else tuple(by),
        replicates=replicates,
        seed=seed,
        workers=processors() if workers is None else workers,
        accepted_leaks=tuple(accept_leak or ()),
        comparators=tuple(Comparator.parse(text) for text in comparator or ()),
    )
    _check_options(scores, predictions, task=task, threshold=threshold, stated_prevalence=stated_prevalence, features=features, training=training)
    asked = _Asked.of(model, table, predictions, scores, features, task or "depression", threshold or 0.5, stated_prevalence)
    report_problems(asked.predictions.problems)
    evaluated = asked.predictions if prevalence is None else asked.predictions.stated_for(prevalence)
    others = {name: asked.of_another(name) for name in against or ()}
    with progress("Evaluating"):
        evidence = evaluate_predictions(
            evaluated,
            table=asked.table,
            training=None if training is None else _training_table(training, asked.bundle),
            others=others,
            learned_from=asked.bundle.manifest.cohort_digest if asked.bundle else None,
            learning_curve=_read_curve(curve) if curve else None,
            explanation=asked.explained(options, prevalence),
            options=options,
        )
    results = judge_gates(gates, evidence)
    evidence = evidence.model_copy(update={"gates": results})
    write_report(evidence, folder)
    if asked.bundle is not None:
        write_card(evidence, asked.bundle, folder)
    if as_json:
        print_json(evidence, indent=2)
    else:
        show(evidence, results)
        output.print(f"\nReport: {literal(folder)}/report.html (and .pdf); every number: evidence.json" + ("; card: card.md" if asked.bundle else ""))
    if not passes(evidence, results):
        raise typer.Exit(FAILED)


def _check_options(scores: Path | None, predictions: Path | None, **options: object) -> None:
    """Refuse options of one entrance at another, which would be dropped without a word."""
    of = {"task": "--scores", "threshold": "--scores", "stated_prevalence": "--scores", "features": "--predictions", "training": "MODEL TABLE"}
    entrance = "--scores" if scores else "--predictions" if predictions else "MODEL TABLE"
    for name, value in options.items():
        if value is not None and of[name] != entrance:
            raise typer.BadParameter(f"--{name.replace('_', '-')} belongs to {of[name]}")


class _Asked:
    """What is to be evaluated, from whichever of the three entrances was used."""

    def __init__(self, predictions: Predictions, table: FeatureTable | None, bundle: VerifiedBundle | None):
        self.predictions, self.table, self.bundle = predictions, table, bundle

    @classmethod
    def of(
        cls,
        model: str | None,
        table: Path | None,
        predictions: Path | None,
        scores: Path | None,
        features: Path | None,
        task: str,
        threshold: float,
        stated_prevalence: float | None,
    ) -> "_Asked":
        """Read one of MODEL TABLE, --predictions and --scores; wrong usage if none, or several, are given."""
        given = [what for what in (model or table, predictions, scores) if what is not None]
        if len(given) != 1 or (model is None) != (table is None):
            raise typer.BadParameter("give MODEL and TABLE, or --predictions, or --scores")
        if predictions is not None:
            return cls(read_predictions(predictions), read_table(features) if features else None, None)
        if scores is not None:
            return cls(from_scores(_read_scores(scores), task_named(task), threshold=threshold, stated_prevalence=stated_prevalence), None, None)
        assert model is not None
        assert table is not None
        bundle, asked = read_bundle(find_model(model)), read_table(table)
        return cls(_predictions_of(bundle, asked), asked, bundle)

    def explained(self, options: EvaluationOptions, prevalence: float | None) -> CohortExplanation | None:
        """Explain the model in this cohort, where both it and the features are there."""
        if self.bundle is None or self.table is None:
            return None
        predictions = self.predictions
        return explain_cohort(
            TrainedModel.from_bundle(self.bundle),
            self.table,
            inside=self.bundle.manifest.cohort_digest == cohort_digest(predictions.frame["recording"], predictions.target),
            prevalence=prevalence,
            replicates=options.replicates,
            level=options.level,
            seed=options.seed,
        )

    def of_another(self, name: str) -> Predictions:
        """Ask another model about the same table."""
        if self.table is None or self.predictions.origin == "out_of_fold":
            raise InvalidValueError("--against", name, "MODEL and TABLE, so that both models are asked about a table neither has seen")
        return _predictions_of(read_bundle(find_model(name)), self.table)


def _predictions_of(bundle: VerifiedBundle, table: FeatureTable) -> Predictions:
    check_extractors(bundle, table)
    manifest = bundle.manifest
    about = EvaluatedModel(
        name=manifest.name,
        version=manifest.version,
        digest=bundle.digest,
        learned=bundle.learned_digest,
        head=manifest.head,
        simulated=manifest.simulated,
        statement=manifest.statement,
    )
    return predict(TrainedModel.from_bundle(bundle), table, about)


def _training_table(path: Path, bundle: VerifiedBundle | None) -> FeatureTable:
    """Read the table that the model was trained on, and make sure that it is: another one would let every shared voice pass."""
    table = read_table(path)
    assert bundle is not None
    manifest = bundle.manifest
    rows = select_rows(table, manifest.task, (), use_baseline=False, used_as="learned from").rows
    baseline = is_baseline(rows.frame) if manifest.uses_baseline else np.zeros(len(rows.target), bool)
    if cohort_digest(rows.frame["recording"][~baseline], rows.target[~baseline]) != manifest.cohort_digest:
        raise InvalidValueError("--training", "a table that this model was not trained on", "the very table that `train` was given")
    return table


def _read_scores(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, dtype={"subject": str, "label": str}, encoding="utf-8-sig")
    except OSError:
        raise InvalidValueError("--scores", "a file that cannot be read", "a CSV file that is there") from None
    except ValueError:  # pandas' parser and decoder errors are of this type; their text quotes the file
        raise InvalidValueError("--scores", "a file that is not CSV in UTF-8", "columns subject, label, probability") from None


def _read_curve(path: Path) -> LearningCurve:
    try:
        curve = Plan.model_validate_json(path.read_bytes()).learning_curve
    except OSError:
        raise InvalidValueError("--learning-curve", "a file that cannot be read", "the JSON of `plan TABLE --json`") from None
    except ValidationError:
        raise EvidenceError("The plan is not one of this version; make it again with `plan TABLE --json`.") from None
    if curve is None:
        raise InvalidValueError("--learning-curve", "a plan without a curve", "one made from a table: `plan TABLE --json`")
    return curve
