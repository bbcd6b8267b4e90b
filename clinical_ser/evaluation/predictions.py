"""Predictions beside the truth: what every evaluation starts from, whoever made them.

They come from a training run (out of fold), from a model asked about a table it has not seen, or from a file. The recordings that the gate
refused stay in the account: a model that answers only the easy ones has to say so.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.special import expit, logit

from clinical_ser.cohorts.baseline import marked
from clinical_ser.cohorts.manifest import labels_for
from clinical_ser.cohorts.table import FeatureTable, RowProblem, replaced
from clinical_ser.cohorts.tasks import Task, TaskKind
from clinical_ser.errors import EvidenceError, InvalidValueError
from clinical_ser.evaluation.evidence import EvaluatedModel, Share
from clinical_ser.models.bundle import VerifiedBundle, check_features
from clinical_ser.models.heads import encode_labels, probabilities
from clinical_ser.models.prevalence import shift_log_odds
from clinical_ser.models.rows import select_rows
from clinical_ser.models.trained import TrainedModel
from clinical_ser.models.training import Training
from clinical_ser.strict import Strict

NOT_USABLE = "not_usable"
_METADATA_KEY = b"clinical-ser"
_SMALLEST = 1e-12
"""Stated probabilities are held this far from 0 and 1, where log-odds end."""

Origin = Literal["out_of_fold", "external"]


class _About(Strict):
    """What a file of predictions says about itself."""

    schema_id: Literal["clinical-ser/predictions/1"] = "clinical-ser/predictions/1"
    origin: Origin
    task: Task
    model: EvaluatedModel
    threshold: float | None
    stated_prevalence: Share | None
    coverage: Share | None
    counts: dict[str, int]
    gate_failures: dict[str, int]
    simulated: bool


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model said of recordings whose truth is known.

    Attributes
    ----------
    frame
        One row an evaluated recording: `subject`, `recording`, `label`, `status`, `covered` (the truth is in the prediction set), `log_odds` and
        `above` (two classes), `probability.<class>`, and the covariates of the cohort.
    refused
        Labelled recordings that the gate refused, with their covariates.
    threshold
        The frozen operating point in log-odds at `stated_prevalence` (two classes). Out of fold, `above` was decided by thresholds of the
        other folds, and this is the one of the model that is released.
    stated_prevalence
        The prevalence that `log_odds` are stated for (two classes); None where nobody said.
    coverage
        What the prediction sets were made for; None where there are none.
    """

    task: Task
    origin: Origin
    model: EvaluatedModel
    frame: pd.DataFrame
    refused: pd.DataFrame
    counts: dict[str, int]
    gate_failures: dict[str, int]
    threshold: float | None
    stated_prevalence: float | None
    coverage: float | None
    simulated: bool
    problems: tuple[RowProblem, ...] = ()
    """Rows that could not be used, by number and reason."""

    @property
    def binary(self) -> bool:
        """Whether the task has two classes."""
        return self.task.kind is TaskKind.BINARY

    @property
    def target(self) -> NDArray[np.int64]:
        """Shape (rows,), class numbers."""
        return encode_labels(self.frame["label"].to_numpy(), self.task.classes)

    @property
    def subjects(self) -> NDArray[np.str_]:
        """Shape (rows,)."""
        return self.frame["subject"].to_numpy(str)

    @property
    def log_odds(self) -> NDArray[np.float64]:
        """Shape (rows,), of the positive class."""
        return self.frame["log_odds"].to_numpy(np.float64)

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Shape (rows, classes)."""
        return self.frame[[f"probability.{label}" for label in self.task.classes]].to_numpy(np.float64)

    def stated_for(self, prevalence: float) -> "Predictions":
        """Return the same predictions restated for another prevalence (two classes); answers do not change, since sets and threshold move along.

        Raises
        ------
        InvalidValueError
            The task has several classes, or the prevalence is not strictly between 0 and 1.
        """
        if not self.binary:
            raise InvalidValueError("prevalence", prevalence, "none: the probabilities of several classes are stated for equal shares")
        if self.stated_prevalence is None or self.threshold is None:
            raise InvalidValueError("prevalence", prevalence, "none, unless --stated-prevalence says what the probabilities are stated for now")
        if not 0 < prevalence < 1:
            raise InvalidValueError("prevalence", prevalence, "a share strictly between 0 and 1")
        shift = float(shift_log_odds(0.0, self.stated_prevalence, prevalence))
        log_odds = self.log_odds + shift
        p = expit(log_odds)
        negative, positive = self.task.classes
        frame = self.frame.assign(log_odds=log_odds, **{f"probability.{negative}": 1 - p, f"probability.{positive}": p})
        return replace(self, frame=frame, threshold=self.threshold + shift, stated_prevalence=prevalence)


def of_training(training: Training, *, name: str, version: str, statement: str = "") -> Predictions:
    """Return the out-of-fold predictions of a training run."""
    model = training.model
    return Predictions(
        task=model.task,
        origin="out_of_fold",
        model=EvaluatedModel(name=name, version=version, head=training.options.head, simulated=training.simulated, statement=statement),
        frame=training.out_of_fold,
        refused=training.refused,
        counts=training.counts,
        gate_failures=training.gate_failures,
        threshold=model.operating_point.threshold if model.operating_point else None,
        stated_prevalence=model.class_shares[1] if model.binary else None,
        coverage=model.conformal.coverage,
        simulated=training.simulated,
        problems=training.problems,
    )


def predict(model: TrainedModel, table: FeatureTable, about: EvaluatedModel) -> Predictions:
    """Ask a model about a table that it has not seen.

    Parameters
    ----------
    model, about
        The model, and how it is called.
    table
        One row a recording, with labels; it is gated by the limits of the model's task.

    Raises
    ------
    InvalidValueError
        The table lacks features of the model, none of its rows can be evaluated, or it has labels that the task does not know.
    ManifestError
        It has no labels for the task.
    """
    if absent := [name for name in model.features if name not in table.feature_names]:
        raise InvalidValueError("the table", f"one without {len(absent)} of the model's features (the first: {absent[0]})", "one extracted with them")
    selected = select_rows(table, model.task, model.features, use_baseline=model.uses_baseline, used_as="evaluated")
    rows = selected.rows
    if strange := sum(problem.reason.startswith("unknown label") for problem in selected.problems):
        raise InvalidValueError("label", f"{strange} rows with another label", list(model.task.classes))
    if not len(rows.target):
        found = f"one without a row to evaluate ({selected.counts}; checks of the gate that failed: {selected.gate_failures})"
        raise InvalidValueError("the table", found, f"recordings that pass the gate, labelled {list(model.task.classes)}")
    log_odds = model.log_odds(rows.X)
    p = probabilities(log_odds)
    frame = rows.frame.assign(
        label=np.array(model.task.classes)[rows.target],
        status=model.statuses(log_odds).astype(object),
        covered=model.conformal.predict(p)[np.arange(len(p)), rows.target],
        **{f"probability.{label}": p[:, k] for k, label in enumerate(model.task.classes)},
    )
    if model.operating_point is not None:
        frame = frame.assign(log_odds=log_odds, above=model.operating_point.is_above(log_odds))
    return Predictions(
        task=model.task,
        origin="external",
        model=about,
        frame=frame,
        refused=selected.refused,
        counts=selected.counts,
        gate_failures=selected.gate_failures,
        threshold=model.operating_point.threshold if model.operating_point else None,
        stated_prevalence=model.class_shares[1] if model.binary else None,
        coverage=model.conformal.coverage,
        simulated=bool(marked(table.frame, "simulated").any()),
        problems=selected.problems,
    )


def check_extractors(bundle: VerifiedBundle, table: FeatureTable) -> None:
    """Raise BundleFeatureMismatchError unless the table was measured by the extractors that the model was trained on."""
    check_features(bundle.manifest, dict(table.extractors), table.feature_names)


def write_predictions(predictions: Predictions, path: Path) -> None:
    """Write predictions as Parquet for their owner only: they name subjects. Evaluated rows first, then refused ones (`status` `not_usable`)."""
    about = _About(
        origin=predictions.origin,
        task=predictions.task,
        model=predictions.model,
        threshold=predictions.threshold,
        stated_prevalence=predictions.stated_prevalence,
        coverage=predictions.coverage,
        counts=predictions.counts,
        gate_failures=predictions.gate_failures,
        simulated=predictions.simulated,
    )
    refused = predictions.refused.assign(status=NOT_USABLE)
    # By columns, so that a column without a value in one part keeps the type it has in the other.
    both = pd.concat([predictions.frame, refused], ignore_index=True) if len(refused) else predictions.frame
    # Without pandas' own metadata, which holds versions and would change the bytes.
    columns = pa.Table.from_pandas(both, preserve_index=False).replace_schema_metadata({_METADATA_KEY: about.model_dump_json().encode()})
    with replaced(path) as unfinished:
        pq.write_table(columns, unfinished, compression="zstd")


def read_predictions(path: Path) -> Predictions:
    """Read predictions that `write_predictions` wrote (`clinical-ser train --predictions`).

    Raises
    ------
    EvidenceError
        Not there, not Parquet, not predictions of this version, or damaged.
    """
    try:
        with path.open("rb") as file:
            columns = pq.ParquetFile(file).read()
        about = _About.model_validate_json((columns.schema.metadata or {})[_METADATA_KEY])
    except OSError as error:
        raise EvidenceError(f"The predictions cannot be read: {error.strerror or 'the file is damaged'}.") from None
    except (pa.ArrowException, KeyError, ValidationError):
        raise EvidenceError("The file is not one of predictions; `clinical-ser train --predictions` makes one.") from None
    frame = columns.replace_schema_metadata(None).to_pandas()
    binary = about.task.kind is TaskKind.BINARY
    wanted = {"subject", "recording", "label", "status", "covered", *(f"probability.{label}" for label in about.task.classes)}
    wanted |= {"log_odds", "above"} if binary else set()
    if lacking := sorted(wanted - set(frame.columns)):
        raise EvidenceError(f"The predictions lack the columns {lacking}; make them again.")
    refused = (frame["status"] == NOT_USABLE).to_numpy()
    evaluated = frame[~refused].reset_index(drop=True)
    if faults := _faults(evaluated, about.task):
        raise EvidenceError(f"The predictions hold what no model answers ({'; '.join(faults)}); make them again.")
    evaluated = evaluated.astype({name: bool for name in ("covered", "above") if name in wanted})
    return Predictions(
        task=about.task,
        origin=about.origin,
        model=about.model,
        frame=evaluated,
        refused=frame[refused].reset_index(drop=True),
        counts=about.counts,
        gate_failures=about.gate_failures,
        threshold=about.threshold,
        stated_prevalence=about.stated_prevalence,
        coverage=about.coverage,
        simulated=about.simulated,
    )


def _faults(frame: pd.DataFrame, task: Task) -> list[str]:
    """Say what is wrong with evaluated rows, without quoting them."""
    binary = task.kind is TaskKind.BINARY
    statuses = ("flagged", "not_flagged", "indeterminate") if binary else ("classified", "indeterminate")
    found = [] if len(frame) else ["no row"]
    found += [f"{name} is missing in some rows" for name in ("subject", "recording") if frame[name].isna().any()]
    found += [
        f"{name} is not one of {list(known)}" for name, known in (("label", task.classes), ("status", statuses)) if not frame[name].isin(known).all()
    ]
    flags = ("covered", "above") if binary else ("covered",)
    found += [f"{name} is not true or false" for name in flags if not frame[name].isin([True, False]).all()]
    stated = frame[[f"probability.{label}" for label in task.classes]].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    if not (((stated >= 0) & (stated <= 1)).all() and np.allclose(stated.sum(axis=1), 1)):
        found.append("probabilities are not shares that add up to 1")
    elif binary:
        log_odds = pd.to_numeric(frame["log_odds"], errors="coerce").to_numpy(np.float64)
        if not np.allclose(expit(log_odds), stated[:, 1], atol=1e-6):
            found.append("log-odds and probabilities disagree")
    return found


def from_scores(
    frame: pd.DataFrame, task: Task, *, threshold: float = 0.5, stated_prevalence: float | None = None, name: str = "scores"
) -> Predictions:
    """Take predictions of any other software for a task of two classes.

    Parameters
    ----------
    frame
        One row a recording: `subject`, `label` (or, without it, the questionnaire's `score`, with a task that has a cut-off), `probability` of
        the positive class; other columns are covariates.
    task
        Two classes.
    threshold
        The operating point, as a probability.
    stated_prevalence
        The prevalence that the probabilities are stated for; None: nobody knows, and they are not restated for another.
    name
        What the model is called.

    Returns
    -------
    Predictions
        Every recording is answered (`flagged` or `not_flagged`): without prediction sets nothing is deferred, and coverage is not known.

    Raises
    ------
    InvalidValueError
        A column is missing, a probability is none, or the task has several classes.
    ManifestError
        There are no labels for the task.
    """
    if task.kind is not TaskKind.BINARY:
        raise InvalidValueError("task", task.name, "a task of two classes; train with clinical-ser to evaluate several")
    if not 0 < threshold < 1:
        raise InvalidValueError("threshold", threshold, "a probability strictly between 0 and 1")
    if lacking := [column for column in ("subject", "probability") if column not in frame]:
        raise InvalidValueError("the scores", f"columns without {lacking}", "subject, label, probability")
    if stated_prevalence is not None and not 0 < stated_prevalence < 1:
        raise InvalidValueError("stated_prevalence", stated_prevalence, "a share strictly between 0 and 1")
    p = pd.to_numeric(frame["probability"], errors="coerce").to_numpy(np.float64)
    # Beside a label, a column `score` is as likely the model's as the questionnaire's.
    truth = frame.drop(columns="score", errors="ignore") if "label" in frame else frame.assign(score=_numbers(frame.get("score")))
    labels = labels_for(task, truth)
    if strange := sum(problem.reason != "no label" for problem in labels.problems):
        raise InvalidValueError("label", f"{strange} rows with another label", [*task.classes, "1", "0"])
    known = labels.values.notna().to_numpy() & frame["subject"].notna().to_numpy()
    if not known.any():
        raise InvalidValueError("the scores", "no row with a subject and a label", "at least one")
    if not ((p[known] >= 0) & (p[known] <= 1)).all():
        raise InvalidValueError("probability", "a value that is no share", "numbers from 0 to 1 in every labelled row")
    kept = frame[known].reset_index(drop=True)
    stated = np.clip(p[known], _SMALLEST, 1 - _SMALLEST)
    positive = (labels.values[known] == task.classes[1]).to_numpy()
    above = stated >= threshold
    numbered = kept if "recording" in kept else kept.assign(recording=[f"row {i + 1}" for i in np.flatnonzero(known)])
    evaluated = numbered.assign(
        label=labels.values[known].to_numpy(object),
        log_odds=logit(stated),
        above=above,
        status=np.where(above, "flagged", "not_flagged").astype(object),
        covered=above == positive,
        **{f"probability.{task.classes[0]}": 1 - stated, f"probability.{task.classes[1]}": stated},
    )
    return Predictions(
        task=task,
        origin="external",
        model=EvaluatedModel(name=name, version="0"),
        frame=evaluated,
        refused=kept.iloc[:0],
        counts={"given": len(frame), "without label": int((~known).sum()), "evaluated": int(known.sum())},
        gate_failures={},
        threshold=float(logit(threshold)),
        stated_prevalence=stated_prevalence,
        coverage=None,
        simulated=bool(marked(frame, "simulated").any()),
        problems=(
            *labels.problems,
            *(RowProblem(int(i) + 1, "the same as an earlier row, word for word") for i in np.flatnonzero(frame.duplicated())),
        ),
    )


def _numbers(column: pd.Series | None) -> pd.Series | None:
    return None if column is None else pd.to_numeric(column, errors="coerce")
