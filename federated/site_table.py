"""A site's rows: what of its table a plan is about, who is in which fold, and what of the covariates is too rare to be counted.

The one idea: every rule here looks at this site alone, so that nobody has to be asked, and nobody can be told how it came out.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.control.parts import ChangePlan
from clinical_ser.models.bundle import BundleManifest, VerifiedBundle
from clinical_ser.models.rows import Rows, select_rows
from federated.plan import Plan
from federated.protocols.cohort import values_of
from federated.refusals import RefusedError
from federated.statistics import SiteRows

LEAST_IN_A_FOLD = 2
"""People of this site in every fold: with the least number of sites, six in any."""
SMALLEST_SCALE = 0.01
"""Of this site's own SD: the SD over all sites cannot be smaller, unless this site is a ten-thousandth of them."""


def site_rows(table: FeatureTable, plan: Plan, secret: bytes, workspace: Path | None) -> SiteRows:
    """Return the rows of a table that a plan is about.

    Raises
    ------
    RefusedError
        Its features are not the plan's, or were measured by other code; or its folds are none.
    ManifestError, TableError
        The table has no labels for the task, or lacks what the plan needs.
    """
    measured_alike = all(table.extractors.get(name) == wanted for name, wanted in plan.extractors.items())
    if not set(plan.features) <= set(table.feature_names) or not measured_alike:
        raise RefusedError("features_differ")
    selected = select_rows(table, plan.task, plan.features, use_baseline=False, used_as="learned from")
    if selected.task.classes != plan.task.classes:
        raise RefusedError("data_not_readable")
    rows = selected.rows
    if plan.fold_column is None:
        fold = np.array([fold_of(name, plan.seed, plan.folds) for name in rows.subjects], dtype=np.int64)
    else:
        fold = told_folds(rows, plan.fold_column)
    if len(fold) and not ((fold >= 0) & (fold < plan.folds)).all():
        raise RefusedError("data_not_readable")
    return SiteRows(
        X=rows.X,
        target=rows.target,
        subjects=rows.subjects,
        fold=fold,
        frame=rows.frame,
        names=plan.features,
        refused=selected.refused,
        counts=selected.counts,
        gate_failures=selected.gate_failures,
        secret=secret,
        workspace=workspace,
    )


def whole_rows(
    table: FeatureTable,
    plan: Plan,
    bundles: Mapping[str, VerifiedBundle],
    *,
    site: str,
    least: int,
    least_of_a_class: int,
    change_plan: ChangePlan | None = None,
) -> SiteRows:
    """Return a table for a run that looks at it as it is, without folds, and with recordings that have no label.

    Parameters
    ----------
    table
        Of the recordings that are watched, or of a frozen holdout.
    plan
        What was approved.
    bundles
        Digest to bundle: the models that the plan names.
    site
        This site's name.
    least
        People of whom a count by name may leave.
    least_of_a_class
        People of each class of whom outcomes may leave.
    change_plan
        What a gate is held to.

    Raises
    ------
    RefusedError
        The table's features are not those of the plan and its models, or were measured by other code.
    """
    measured_alike = all(table.extractors.get(name) == wanted for name, wanted in plan.extractors.items())
    alike = all(_measured_by(one.manifest) == (plan.features, plan.extractors) for one in bundles.values())
    if not (set(plan.features) <= set(table.feature_names) and measured_alike and alike):
        raise RefusedError("features_differ")
    rows = len(table.frame)
    others = [name for name in table.frame.columns if name not in table.feature_names]
    return SiteRows(
        X=table.features[:, [table.feature_names.index(name) for name in plan.features]],
        target=np.zeros(rows, np.int64),
        subjects=table.subjects,
        fold=np.zeros(rows, np.int64),
        frame=table.frame[others].reset_index(drop=True),
        names=plan.features,
        table=table,
        bundles=bundles,
        site=site,
        least=least,
        least_of_a_class=least_of_a_class,
        change_plan=change_plan,
    )


def _measured_by(manifest: BundleManifest) -> tuple[tuple[str, ...], dict[str, str]]:
    return tuple(manifest.features), dict(manifest.extractors)


def fold_of(subject: str, seed: int, folds: int) -> int:
    """Return the fold in which a subject is tested; it depends on nobody else, so that one person more or less moves no other."""
    return int.from_bytes(hashlib.sha256(f"fold\n{seed}\n{subject}".encode()).digest()[:8], "big") % folds


def told_folds(rows: Rows, column: str) -> NDArray[np.int64]:
    """Return the folds that a column of the table tells; RefusedError unless they are whole numbers, and each subject is in one."""
    told = pd.to_numeric(rows.frame[column], errors="coerce").to_numpy(np.float64) if column in rows.frame else np.array([np.nan])
    whole = np.isfinite(told).all() and (told == np.round(told)).all()
    if not whole or pd.DataFrame({"subject": rows.subjects, "fold": told}).drop_duplicates()["subject"].duplicated().any():
        raise RefusedError("data_not_readable")
    return told.astype(np.int64)


def least_in_a_fold(rows: SiteRows, folds: int) -> int:
    """Return the number of people in the fold that has the fewest."""
    return min(len(np.unique(rows.subjects[rows.fold == fold])) for fold in range(folds))


def without_rare(rows: SiteRows, groups: Mapping[str, tuple[str, ...]], least: int) -> SiteRows:
    """Return the rows with values of groups unstated that fewer than `least` people here have: they are counted among everybody only."""
    changed = {}
    for column, values in groups.items():
        found = values_of(rows.frame, column)
        for value in values:
            here = found == value
            if 0 < len(np.unique(rows.subjects[here])) < least:
                found = np.array([None if rare else one for rare, one in zip(here, found, strict=True)], dtype=object)
        changed[column] = found
    return replace(rows, frame=rows.frame.assign(**changed))


def fits_scales(rows: SiteRows, mean: NDArray[np.float64], scale: NDArray[np.float64]) -> bool:
    """Tell whether means and scales, shape (folds + 1, features), can be those of a cohort that this site is part of."""
    if mean.shape != scale.shape or mean.shape[1:] != rows.X.shape[1:] or not (np.isfinite(mean).all() and np.isfinite(scale).all()):
        return False
    known = np.isfinite(rows.X)
    count = np.maximum(known.sum(axis=0), 1)
    centre = np.where(known, rows.X, 0.0).sum(axis=0) / count
    own = np.sqrt((np.where(known, rows.X - centre, 0.0) ** 2).sum(axis=0) / len(rows.X))
    return bool(((scale == 0) | (scale >= SMALLEST_SCALE * own)).all())


def tags_of(table: FeatureTable, key: bytes) -> tuple[str, ...]:
    """Return a tag for every subject and all that the table says of them, keyed, in order: whoever lacks the key learns nothing from it.

    A subject whose label, recordings or measurements changed has another tag.
    """
    frame = table.frame.drop(columns="row", errors="ignore")
    digests = pd.util.hash_pandas_object(frame, index=False).to_numpy()
    said: dict[str, list[str]] = {}
    for subject, digest in zip(table.subjects.tolist(), digests.tolist(), strict=True):
        said.setdefault(subject, []).append(f"{digest:016x}")
    return tuple(sorted(hmac.digest(key, "\n".join([one, *sorted(rows)]).encode(), "sha256").hex()[:24] for one, rows in said.items()))


def name_tags(subjects: NDArray[np.str_], key: bytes) -> tuple[str, ...]:
    """Return a tag for every subject's name alone, keyed, in order: the same person has the same one in every table of this site."""
    return tuple(sorted(hmac.digest(key, f"subject\n{one}".encode(), "sha256").hex()[:24] for one in np.unique(subjects).tolist()))
