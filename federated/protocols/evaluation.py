"""How well the model answers people it never heard, counted in cells from which the ordinary evaluation is made.

The one idea: one recording a subject, one cell a recording: class, bin of the probability, above the threshold or not, status, covered or not.
Counts of such cells are rows again without being anybody's, so `clinical_ser.evaluation` reads them like a table, with its own intervals.
"""

import hashlib

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit, logit

from clinical_ser.cohorts.tasks import Task
from clinical_ser.models.binned import BINS, bin_of, middle_of
from clinical_ser.models.conformal import ConformalSets
from clinical_ser.models.heads import probabilities
from federated.at_site import Array, numbers
from federated.protocols.cohort import groups_of, memberships
from federated.protocols.margins import calibrated
from federated.statistics import Arrays, Ask, SiteRows, Statistic, register

STATUSES = ("flagged", "not_flagged", "indeterminate")
CELLS = (2, BINS, 2, len(STATUSES), 2)
"""Class, bin, above, status, covered."""
GROUP_BINS = 20
"""Fewer for groups: with a cell of its own in two columns at once, a person's age and sex could be put together."""
GROUP_CELLS = (2, GROUP_BINS, *CELLS[2:])


@register
class Evaluation(Statistic):
    """Subjects by cell, of everybody and of each value of the groups asked about.

    Arrays: as `margins.calibrated` reads them; `threshold` (folds,) in log-odds and `limits` (folds, 2), by which each fold is answered: those that
    the other folds gave (a limit above 1 stands for a class in every set). Option `groups` as in `cohort.Cohort`.
    """

    name = "evaluation"
    bound = 1e9
    counts = frozenset({"everybody"})

    def at_site(self, rows: SiteRows, ask: Ask) -> Arrays:
        """Return `everybody` (CELLS,) and one array a column of the groups, shape (values, *CELLS)."""
        log_odds = calibrated(rows, ask)
        cell = _cells(rows, log_odds, numbers(ask, "threshold", ndim=1), numbers(ask, "limits", ndim=2))
        judged = one_recording_each(rows)
        found = {"everybody": _count(cell[judged])}
        for column, members in memberships(rows, groups_of(ask)).items():
            found[f"group.{column}"] = np.array([_coarse(_count(cell[judged & here])) for here in members]).reshape(len(members), *GROUP_CELLS)
        return found


def one_recording_each(rows: SiteRows) -> NDArray[np.bool_]:
    """Return which recordings judge the model: of each subject the one whose digest comes first, which has to do with nothing else."""
    order = np.array([hashlib.sha256(f"judged\n{recording}".encode()).digest() for recording in rows.frame["recording"]], dtype=object)
    frame = pd.DataFrame({"subject": rows.subjects, "order": order})
    first = frame.sort_values("order", kind="stable").drop_duplicates("subject").index
    return np.isin(np.arange(len(rows)), first)


def _cells(rows: SiteRows, log_odds: Array, threshold: Array, limits: Array) -> NDArray[np.int64]:
    p = probabilities(log_odds)
    above = log_odds >= threshold[rows.fold]
    inside = 1.0 - p <= limits[rows.fold]
    decided = (inside.sum(axis=1) == 1) & (inside[:, 1] == above)
    status = np.where(decided, np.where(above, 0, 1), 2)
    covered = inside[np.arange(len(rows)), rows.target]
    parts = (rows.target, bin_of(expit(log_odds)), above.astype(np.int64), status, covered.astype(np.int64))
    return np.asarray(np.ravel_multi_index(parts, CELLS))


def _count(cells: NDArray[np.int64]) -> Array:
    return np.bincount(cells, minlength=int(np.prod(CELLS))).reshape(CELLS).astype(np.float64)


def _coarse(counts: Array) -> Array:
    return np.asarray(counts.reshape(2, GROUP_BINS, BINS // GROUP_BINS, *CELLS[2:]).sum(axis=2))


def frame_of(counts: Array, task: Task, **covariates: str) -> pd.DataFrame:
    """Return counts of cells as rows that `clinical_ser.evaluation` reads, one a subject; the probability is the middle of its bin.

    Parameters
    ----------
    counts
        Shape `CELLS` or `GROUP_CELLS`, whole numbers.
    task
        Of two classes.
    covariates
        Columns that all of these rows have in common.
    """
    cells = np.repeat(np.arange(counts.size), np.round(counts).astype(np.int64).ravel())
    target, bins, above, status, covered = np.unravel_index(cells, counts.shape)
    p = middle_of(bins, counts.shape[1])
    frame = pd.DataFrame(
        {
            "label": np.array(task.classes, dtype=object)[target],
            "status": np.array(STATUSES, dtype=object)[status],
            "covered": covered.astype(bool),
            "above": above.astype(bool),
            "log_odds": logit(p),
            f"probability.{task.classes[0]}": 1 - p,
            f"probability.{task.classes[1]}": p,
        }
    )
    return frame.assign(**covariates)


def auroc_with_bound(counts: Array) -> tuple[float, float]:
    """Return AUROC from binned counts, ties in half, and how far the one of the unbinned scores can be from it.

    Parameters
    ----------
    counts
        Shape (2, bins), subjects of each class by bin, lowest scores first.

    Returns
    -------
    tuple of float
        Pairs within a bin are counted as one half each and may all be right or all wrong: the bound is half their share. NaN without both classes.
    """
    negative, positive = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-300)
    if not (counts.sum(axis=1) > 0).all():
        return float("nan"), float("nan")
    below = np.append(0.0, np.cumsum(negative)[:-1])
    tied = float(positive @ negative)
    return float(positive @ below) + tied / 2, tied / 2


def thresholds_of(sets: ConformalSets) -> Array:
    """Return limits of the scores as an ask carries them, shape (2,)."""
    return np.array([2.0 if threshold is None else threshold for threshold in sets.thresholds_])
