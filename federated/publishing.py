"""A model trained across sites becomes the same bundle, with the same card, as one trained in one place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from clinical_ser.evaluation.card import Card, make_card, with_origin
from clinical_ser.evaluation.card_facts import TrainingFacts
from clinical_ser.evaluation.evaluating import EvaluationOptions, evaluate
from clinical_ser.evaluation.evidence import Evidence, Group
from clinical_ser.evaluation.predictions import Predictions, of_training
from clinical_ser.evaluation.release import REPLICATES
from clinical_ser.evaluation.software import software_versions
from clinical_ser.evaluation.subgroups import LEAST_NAMED
from clinical_ser.models.saving import save
from clinical_ser.models.signing import SigningKey
from clinical_ser.models.training import Training, TrainingOptions
from federated.protocols.evaluation import auroc_with_bound, frame_of
from federated.training import Trained


@dataclass(frozen=True)
class Published:
    """A bundle that was written, and what is known about it."""

    card: Card
    evidence: Evidence
    digest: str


def as_training(trained: Trained, *, cohort_digest: str) -> Training:
    """Return the run as `clinical_ser.models.training.train` would; its out-of-fold rows are cells of counts, and nobody's."""
    settings, people, model = trained.settings, trained.cohort, trained.model
    frame = _numbered(frame_of(trained.everybody, settings.task))
    vacuous = [settings.task.classes[k] for k in model.conformal.vacuous_classes_]
    warnings = [f"Too few subjects of class {label!r} for prediction sets: every set holds it." for label in vacuous]
    _, bound = auroc_with_bound(trained.everybody.sum(axis=(2, 3, 4)))
    warnings.append(
        f"Figures are of one recording a subject and of probabilities in steps of 0.005; the area under the ROC curve is within {bound:.4f} "
        "of that of the unbinned ones."
    )
    warnings += trained.notes
    if people.simulated:
        warnings.append("The speech is simulated; the figures say nothing about people.")
    return Training(
        model=model,
        out_of_fold=frame,
        refused=pd.DataFrame({"subject": [f"refused {i + 1}" for i in range(people.refused_subjects)]}, dtype=object),
        gate_failures=people.gate_failures,
        counts=people.flow,
        problems=(),
        warnings=tuple(warnings),
        cohort_digest=cohort_digest,
        subjects_learned_from=people.people,
        simulated=people.simulated,
        options=TrainingOptions(split=settings.folds, coverage=settings.coverage, refits=settings.refits, seed=settings.seed, head=model.head.kind),
    )


def evidence_of(trained: Trained, predictions: Predictions, options: EvaluationOptions) -> Evidence:
    """Evaluate everybody, then column by column the groups that have people enough: one count of cells serves no two columns."""
    whole = evaluate(predictions, options=options)
    groups: list[Group] = []
    gaps, covariates = list(whole.gaps), dict(whole.covariates)
    for column, values in trained.settings.groups.items():
        sizes = {value: size for value, size in zip(values, trained.cohort.groups[column], strict=True) if size[1:].sum() >= LEAST_NAMED}
        covariates |= {column: {value: int(size[1:].sum()) for value, size in sizes.items()}} if sizes else {}
        shown = trained.shown.get(column, ())
        if shown:
            frames = [frame_of(counts, trained.settings.task, **{column: value}) for value, counts in zip(shown, trained.groups[column], strict=True)]
            part = Predictions(
                **{**vars(predictions), "frame": _numbered(pd.concat(frames, ignore_index=True)), "refused": predictions.refused.iloc[:0]}
            )
            found = evaluate(part, options=EvaluationOptions(**{**vars(options), "by": (column,)}))
            groups += found.groups
            gaps += found.gaps
        groups += [
            Group(column=column, value=value, subjects=int(size[1:].sum()), recordings=int(size[0]), positives=None, refused=0, enough=False)
            for value, size in sizes.items()
            if value not in shown
        ]
    return whole.model_copy(update={"groups": tuple(groups), "gaps": tuple(gaps), "covariates": covariates})


def publish(
    trained: Trained,
    folder: Path,
    *,
    name: str,
    version: str,
    sites: int,
    cohort_digest: str,
    key: SigningKey | None,
    statement: str = "",
    supplied: Mapping[str, str] | None = None,
    replicates: int = REPLICATES,
    workers: int = 1,
    replace: bool = False,
    done: str = "Trained",
) -> Published:
    """Evaluate, describe and save a run.

    Parameters
    ----------
    trained
        As `train_across` returns it.
    folder
        Of the bundle.
    name, version
        Of the model.
    sites
        How many took part; the statement says so, and no more of who they are.
    cohort_digest
        What stands for the cohorts of all sites (`training.commitment`).
    key
        Signs the bundle; None leaves it unsigned.
    statement, supplied, replicates, workers, replace
        As in `clinical-ser train`.
    done
        What sites did with the model, for its statement: `Trained`, `Updated`, `Recalibrated`.

    Returns
    -------
    Published
        Card, evidence with curves, and the bundle's digest.
    """
    origin = f"{done} across {sites} sites; no recording left any of them."
    words = with_origin(" ".join(part for part in (origin, statement) if part), simulated=trained.cohort.simulated)
    training = as_training(trained, cohort_digest=cohort_digest)
    predictions = of_training(training, name=name, version=version, statement=words)
    evidence = evidence_of(trained, predictions, EvaluationOptions(replicates=replicates, workers=workers, seed=trained.settings.seed))
    card = make_card(TrainingFacts.of(training), evidence, name=name, version=version, statement=words, supplied=supplied)
    software = software_versions()
    digest = save(
        training, folder, name=name, version=version, statement=card.statement, card=card.to_json(), software=software, key=key, replace=replace
    )
    return Published(card, evidence, digest)


def _numbered(frame: pd.DataFrame) -> pd.DataFrame:
    """Give cells' rows names: one row, one subject."""
    numbers: Sequence[str] = [f"{i + 1}" for i in range(len(frame))]
    return frame.assign(subject=numbers, recording=[f"cell {number}" for number in numbers], row=range(1, len(frame) + 1))
