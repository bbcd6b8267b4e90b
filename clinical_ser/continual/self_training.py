"""Recordings without labels in an update: calibrated self-training, capped, and kept only where it is seen to help. Off unless it is asked for.

The one idea: a guess is made by a head that has not heard the people it is judged on, counts only where its prediction set holds one class, and all
guesses together weigh no more than the cap allows. What they are worth is measured on the labelled people, out of fold, with and without them.
"""

import numpy as np
from pydantic import Field

from clinical_ser.cohorts.gating import judge_table
from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.continual.memory import Memory
from clinical_ser.continual.recalibration import Gain, gain_of, saved_by
from clinical_ser.continual.updating import Unlabelled, Updated, UpdateOptions, check_measured_alike, rows_for, update
from clinical_ser.errors import InvalidValueError, TrainingError
from clinical_ser.models.trained import TrainedModel
from clinical_ser.strict import Strict

MOST_WEIGHT = 1.0
"""All guesses together never outweigh the labelled recordings."""


class Intake(Strict):
    """What recordings without labels came to."""

    offered: int = Field(ge=0)
    """That passed the gate, of people who are not among the labelled."""
    subjects: tuple[str, ...] = Field(exclude=True, repr=False)
    """Whose they are; goes into no output."""
    weight: float
    """The cap: of all guesses together, as a share of the labelled recordings' weight."""
    gain: Gain
    """Saved by them, on labelled people out of fold."""
    used: bool
    """Whether they are in the model: only where the whole interval of the gain is above 0."""


def update_with_unlabelled(
    model: TrainedModel, memory: Memory, table: FeatureTable, unlabelled: FeatureTable, weight: float, options: UpdateOptions | None = None
) -> tuple[Updated, Intake]:
    """Update a model twice, with recordings without labels and without, and return the one that is better.

    Parameters
    ----------
    model, memory, table, options
        As in `updating.update`.
    unlabelled
        Recordings whose labels, if there are any, are not looked at; those of people in `table` are left out.
    weight
        Above 0, up to `MOST_WEIGHT`: what all guesses together may weigh, as a share of the labelled recordings.

    Raises
    ------
    InvalidValueError
        The weight is none.
    TrainingError
        As in `update`, or no recording without a label can be used.
    """
    if not 0 < weight <= MOST_WEIGHT:
        raise InvalidValueError("unlabelled weight", weight, f"a share above 0 and up to {MOST_WEIGHT:g}")
    check_measured_alike(model, unlabelled)
    rows = rows_for(model, table).rows
    gated = judge_table(unlabelled, model.task.limits)
    others = gated.usable & ~np.isin(unlabelled.subjects, np.unique(rows.subjects))
    if not others.any():
        raise TrainingError("No recording without a label can be used: none passes the gate, or all are of people who have one.")
    X = gated.features[others][:, [unlabelled.feature_names.index(name) for name in model.features]]
    plain = update(model, memory, table, options)
    taught = update(model, memory, table, options, unlabelled=Unlabelled(X, unlabelled.subjects[others], weight))
    gain = gain_of(saved_by(plain.training, taught.training, model, rows))
    used = gain.low > 0
    who = tuple(np.unique(unlabelled.subjects[others]).tolist())
    return taught if used else plain, Intake(offered=int(others.sum()), subjects=who, weight=weight, gain=gain, used=used)
