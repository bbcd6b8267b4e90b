"""The card that travels with a model: what it was trained on, how well it did on people it had not heard, and what it may be used for."""

from importlib.metadata import version as installed_version
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from clinical_ser.cohorts.tasks import Task, TaskKind
from clinical_ser.evaluation.calibration import brier, intercept_and_slope
from clinical_ser.evaluation.discrimination import auroc, unweighted_average_recall
from clinical_ser.evaluation.intervals import Statistic, cluster_bootstrap
from clinical_ser.models.heads import encode_labels
from clinical_ser.models.sample_size import warning_for
from clinical_ser.models.training import Training

REPLICATES = 1000
SOFTWARE = ("clinical-ser", "opensmile", "praat-parselmouth", "numpy", "scikit-learn", "xgboost-cpu")
INTENDED_USE = "Screening aid for trained health workers; never a diagnosis. Figures are out of fold, on subjects the model had not heard."
SIMULATED_STATEMENT = "Trained on SIMULATED speech, for demonstration only: its results mean nothing for a real person."


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Figure(_Strict):
    """A figure with its 95 % interval over subjects; None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None


class Card(_Strict):
    """`card.json`."""

    schema_id: Literal["clinical-ser/card/1"] = "clinical-ser/card/1"
    name: str
    version: str
    task: Task
    head: str
    intended_use: str
    statement: str
    subjects: int
    recordings: int
    subjects_by_class: dict[str, int]
    covariates: dict[str, dict[str, int]]
    """Subjects by sex, language, site and device, where the cohort says."""
    rows: dict[str, int]
    options: dict[str, Any]
    figures: dict[str, Figure]
    warnings: tuple[str, ...]


def make_card(training: Training, *, name: str, version: str, statement: str = "", replicates: int = REPLICATES) -> Card:
    """Describe a training run.

    Parameters
    ----------
    training
        As `train` returns it.
    name, version, statement
        What the model will be called, and what each of its results has to say of its origin (added for simulated speech).
    replicates
        Bootstrap samples of subjects behind each interval.
    """
    rows, task = training.out_of_fold, training.model.task
    options = training.options
    found = figures(training, replicates=replicates)
    return Card(
        name=name,
        version=version,
        task=task,
        head=options.head,
        intended_use=INTENDED_USE,
        statement=f"{SIMULATED_STATEMENT} {statement}".strip() if training.simulated else statement,
        subjects=rows["subject"].nunique(),
        recordings=len(rows),
        subjects_by_class={str(label): int(n) for label, n in rows.groupby("label")["subject"].nunique().items()},
        covariates={
            column: {str(value): int(n) for value, n in rows.groupby(column)["subject"].nunique().items()}
            for column in ("sex", "language", "site", "device")
            if column in rows and rows[column].notna().any()
        },
        rows=training.counts,
        options={
            "split": options.split,
            "coverage": options.coverage,
            "refits": options.refits,
            "without": list(options.without),
            "baseline": options.use_baseline,
            "seed": options.seed,
        },
        figures=found,
        warnings=training.warnings + _too_few_subjects(training, found),
    )


def _too_few_subjects(training: Training, found: dict[str, Figure]) -> tuple[str, ...]:
    reached = found["auroc"].value if "auroc" in found else None
    if reached is None:
        return ()
    model = training.model
    warning = warning_for(training.out_of_fold["subject"].nunique(), len(model.features), model.class_shares[1], reached)
    return (warning,) if warning else ()


def figures(training: Training, *, replicates: int = REPLICATES) -> dict[str, Figure]:
    """Out-of-fold figures of a training run, each with its interval over subjects.

    Two classes: `auroc`, `brier`, `calibration_intercept`, `calibration_slope`, `sensitivity` and `specificity` at the operating point. More:
    `uar`, `accuracy`, `brier`. Both: `one_class_sets`, the share of recordings whose prediction set names one class.
    """
    rows, model = training.out_of_fold, training.model
    y = encode_labels(rows["label"].to_numpy(), model.task.classes)
    p = rows[[f"probability.{label}" for label in model.task.classes]].to_numpy(float)
    decided = (model.conformal.predict(p).sum(axis=1) == 1).astype(float)
    statistics: dict[str, Statistic] = {"one_class_sets": lambda at: float(decided[at].mean())}
    if model.task.kind is TaskKind.BINARY:
        statistics |= _binary(y, p[:, 1], rows["log_odds"].to_numpy(float), model.operating_point.threshold if model.operating_point else 0.0)
    else:
        answer = p.argmax(axis=1)
        statistics |= {
            "uar": lambda at: unweighted_average_recall(y[at], answer[at]),
            "accuracy": lambda at: float(np.mean(y[at] == answer[at])),
            "brier": lambda at: brier(y[at], p[at]),
        }
    subjects = rows["subject"].to_numpy(str)
    return {name: _figure(statistic, subjects, replicates) for name, statistic in statistics.items()}


def _binary(y: NDArray[np.int64], p: NDArray[np.float64], log_odds: NDArray[np.float64], threshold: float) -> dict[str, Statistic]:
    flagged = log_odds >= threshold
    return {
        "auroc": lambda at: auroc(y[at], log_odds[at]),
        "brier": lambda at: brier(y[at], p[at]),
        "calibration_intercept": lambda at: intercept_and_slope(y[at], log_odds[at])[0],
        "calibration_slope": lambda at: intercept_and_slope(y[at], log_odds[at])[1],
        "sensitivity": lambda at: _share(flagged[at], y[at] == 1),
        "specificity": lambda at: _share(~flagged[at], y[at] == 0),
    }


def _share(true: NDArray[np.bool_], among: NDArray[np.bool_]) -> float:
    return float(true[among].mean()) if among.any() else float("nan")


def _figure(statistic: Statistic, subjects: NDArray[np.str_], replicates: int) -> Figure:
    estimate = cluster_bootstrap(statistic, subjects, replicates=replicates)
    value, low, high = (v if np.isfinite(v) else None for v in (estimate.value, estimate.low, estimate.high))
    return Figure(value=value, low=low, high=high)


def software_versions() -> dict[str, str]:
    """Return the versions of what computes and learns, for manifests and results."""
    return {name: installed_version(name) for name in SOFTWARE}
