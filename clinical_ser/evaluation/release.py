"""From a training run to the card that its bundle carries: evaluated out of fold, with the leak guards, in one step."""

from collections.abc import Mapping
from dataclasses import replace

from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.evaluation.card import Card, make_card, with_origin
from clinical_ser.evaluation.card_facts import TrainingFacts
from clinical_ser.evaluation.evaluating import EvaluationOptions, evaluate
from clinical_ser.evaluation.evidence import Evidence
from clinical_ser.evaluation.explanations import explain_cohort
from clinical_ser.evaluation.predictions import of_training
from clinical_ser.models.training import Training

REPLICATES = 1000
"""Bootstrap samples behind a card; `evaluate` takes more."""


def card_of(
    training: Training,
    table: FeatureTable | None,
    *,
    name: str,
    version: str,
    statement: str = "",
    supplied: Mapping[str, object] | None = None,
    options: EvaluationOptions | None = None,
) -> tuple[Card, Evidence]:
    """Evaluate a training run out of fold and fill its card; return the evidence too, because its curves are not in the card.

    Parameters
    ----------
    training
        As `train` returns it.
    table
        The table it was trained on, for the leak guards; None leaves them unchecked, and the card says so.
    name, version, statement
        What the model will be called, and what each of its results has to say of its origin (added for simulated speech).
    supplied
        What a person answered, as `card_fields.read_about` reads it.
    options
        Of the evaluation.
    """
    statement = with_origin(statement, simulated=training.simulated)
    chosen = options or EvaluationOptions(replicates=REPLICATES)
    seeded = replace(chosen, seed=training.options.seed)
    predictions = of_training(training, name=name, version=version, statement=statement)
    explanation = None
    if table is not None:
        explanation = explain_cohort(training.model, table, inside=True, replicates=seeded.replicates, level=seeded.level, seed=seeded.seed)
    evidence = evaluate(predictions, table=table, explanation=explanation, options=seeded)
    card = make_card(TrainingFacts.of(training), evidence, name=name, version=version, statement=statement, supplied=supplied)
    return card, evidence
