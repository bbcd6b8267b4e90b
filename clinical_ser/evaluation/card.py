"""The card that travels with a model: what it was trained on, how well it did on people it had not heard, and what it may be used for."""

from importlib.metadata import version as installed_version
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from clinical_ser.cohorts.tasks import Task
from clinical_ser.errors import BundleSchemaError
from clinical_ser.evaluation.calibration import brier, intercept_and_slope
from clinical_ser.evaluation.discrimination import auroc, unweighted_average_recall
from clinical_ser.evaluation.intervals import Statistic, cluster_bootstrap
from clinical_ser.models.heads import encode_labels
from clinical_ser.models.sample_size import warning_for
from clinical_ser.models.training import Training
from clinical_ser.models.weights import subject_weights

REPLICATES = 1000
MINIMUM_SUBJECTS_TO_TRUST = 50
"""Percentile intervals over fewer subjects are visibly too short (Field & Welsh 2007)."""
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
    """Whom the model learned from."""
    subjects_tested: int
    """Whom the figures are about: those tested out of fold."""
    recordings_tested: int
    subjects_by_class: dict[str, int]
    covariates: dict[str, dict[str, int]]
    """Subjects by sex, language, site and device, where the cohort says."""
    rows: dict[str, int]
    options: dict[str, Any]
    figures: dict[str, Figure]
    warnings: tuple[str, ...]

    @classmethod
    def from_json(cls, content: bytes) -> "Card":
        """Read `card.json`; BundleSchemaError if it does not follow this version's schema."""
        try:
            return cls.model_validate_json(content)
        except ValidationError:
            raise BundleSchemaError("card.json does not follow this version's schema; train the model again.") from None


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
        subjects=training.subjects_learned_from,
        subjects_tested=rows["subject"].nunique(),
        recordings_tested=len(rows),
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
    tested = training.out_of_fold["subject"].nunique()
    rough = f"Figures about {tested} subjects are rough, and so are their intervals; expect another group of people to differ."
    warnings = [rough] if tested < MINIMUM_SUBJECTS_TO_TRUST else []
    reached = found["auroc"].value if "auroc" in found else None
    if reached is not None and reached < 1:
        model = training.model
        warnings.append(warning_for(training.subjects_learned_from, len(model.features), model.class_shares[1], reached) or "")
    return tuple(warning for warning in warnings if warning)


def figures(training: Training, *, replicates: int = REPLICATES) -> dict[str, Figure]:
    """Out-of-fold figures of a training run, each with its interval over subjects.

    Two classes, every subject counting once: `auroc`, `brier`, `calibration_intercept`, `calibration_slope`, and what people of each class are
    answered: `flagged.<class>`, `not_flagged.<class>`, `indeterminate.<class>`. More classes, every recording counting once as in published
    tables: `uar`, `accuracy`, `brier`, and `answered`, the share of recordings that get one class for an answer.
    """
    rows, model = training.out_of_fold, training.model
    y = encode_labels(rows["label"].to_numpy(), model.task.classes)
    p = rows[[f"probability.{label}" for label in model.task.classes]].to_numpy(float)
    subjects = rows["subject"].to_numpy(str)
    if model.binary:
        log_odds, weight = rows["log_odds"].to_numpy(float), subject_weights(subjects, len(subjects))
        statistics = _binary(y, p[:, 1], log_odds, weight) | _answers(y, model.statuses(log_odds), weight, model.task.classes)
    else:
        statistics = _several(y, p, model.statuses(_logits(p)))
    return {name: _figure(statistic, subjects, replicates) for name, statistic in statistics.items()}


def _binary(y: NDArray[np.int64], p: NDArray[np.float64], log_odds: NDArray[np.float64], weight: NDArray[np.float64]) -> dict[str, Statistic]:
    return {
        "auroc": lambda at: auroc(y[at], log_odds[at], weight[at]),
        "brier": lambda at: brier(y[at], p[at], weight[at]),
        "calibration_intercept": lambda at: intercept_and_slope(y[at], log_odds[at], weight[at])[0],
        "calibration_slope": lambda at: intercept_and_slope(y[at], log_odds[at], weight[at])[1],
    }


def _answers(y: NDArray[np.int64], statuses: NDArray[np.str_], weight: NDArray[np.float64], classes: tuple[str, ...]) -> dict[str, Statistic]:
    return {
        f"{status}.{label}": lambda at, k=k, status=status: _share(statuses[at] == status, y[at] == k, weight[at])  # type: ignore[misc]
        for k, label in enumerate(classes)
        for status in ("flagged", "not_flagged", "indeterminate")
    }


def _several(y: NDArray[np.int64], p: NDArray[np.float64], statuses: NDArray[np.str_]) -> dict[str, Statistic]:
    answer = p.argmax(axis=1)
    return {
        "uar": lambda at: unweighted_average_recall(y[at], answer[at]),
        "accuracy": lambda at: float(np.mean(y[at] == answer[at])),
        "brier": lambda at: brier(y[at], p[at]),
        "answered": lambda at: float(np.mean(statuses[at] == "classified")),
    }


def _logits(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return logits whose softmax is p, shape (rows, classes)."""
    return np.log(np.maximum(p, 1e-300))


def _share(true: NDArray[np.bool_], among: NDArray[np.bool_], weight: NDArray[np.float64]) -> float:
    return float(np.average(true[among], weights=weight[among])) if among.any() else float("nan")


def _figure(statistic: Statistic, subjects: NDArray[np.str_], replicates: int) -> Figure:
    estimate = cluster_bootstrap(statistic, subjects, replicates=replicates)
    value, low, high = (v if np.isfinite(v) else None for v in (estimate.value, estimate.low, estimate.high))
    return Figure(value=value, low=low, high=high)


def software_versions() -> dict[str, str]:
    """Return the versions of what computes and learns, for manifests and results."""
    return {name: installed_version(name) for name in SOFTWARE}
