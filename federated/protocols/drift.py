"""Whether recordings have moved since training: what a site would count for itself, added up over sites.

The one idea: each site counts with the released model that it has, in that model's own cells (`clinical_ser.monitoring`). A question then carries
nothing but which model and which public names, so nobody can ask for another grid.
"""

import json
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import expit

from clinical_ser.errors import InvalidValueError, ManifestError
from clinical_ser.models.rows import select_rows
from clinical_ser.models.trained import TrainedModel
from clinical_ser.monitoring.cells import SCORE_CELLS, score_cell_of
from clinical_ser.monitoring.counts import NAMED, NOT_USABLE, OTHER, STATUS, Counts, Grid, counts_of, width_of
from federated.at_site import Array
from federated.protocols.cohort import groups_of, names_of
from federated.statistics import Arrays, Ask, SiteRows, Statistic, register

STATUSES = ("flagged", "not_flagged", "indeterminate", NOT_USABLE)
OUTCOMES = ("people", "observed")
"""Of those whose outcome has returned, by cell of the score: how many, and positives that came. What a cell expects follows from its middle; a sum of
probabilities would be one person's, to the last digit, where a cell holds one."""


@register
class Drift(Statistic):
    """Counts of a period, every person once: cells of features, margins and scores, answers, failed checks, names, outcomes as far as they are known.

    Options: `model`, the digest of the bundle whose cells they are; `groups` (JSON, kind of name to the public list of its values, as `device`);
    `checks` (JSON, names of the gate's checks).
    """

    name = "drift"
    bound = 1e9
    counts = frozenset({"recordings", "status", "failed", "outcomes"})

    def at_site(self, rows: SiteRows, ask: Ask) -> Arrays:
        """Return `recordings` (1,), `cell.<channel>`, `status` (4,), `failed` (checks,), `name.<kind>` (values + 1,), `outcomes` (SCORE_CELLS, 2).

        The last entry of a kind counts other values, those that are too rare here, and what is not stated. Outcomes are nothing where fewer people of
        either class have one than this site lets take part.
        """
        digest, groups, checks = str(ask.options["model"]), groups_of(ask), names_of(ask, "checks")
        if rows.table is None or digest not in rows.bundles or not set(groups) <= set(NAMED):
            raise InvalidValueError("drift", "another model or kind of name", f"a model that the site has, and names of {list(NAMED)}")
        model = TrainedModel.from_bundle(rows.bundles[digest])
        found = counts_of(model, digest, rows.table)
        return {
            "recordings": np.array([float(found.recordings)]),
            **{f"cell.{channel}": np.array(found.cells.get(channel, (0,) * width_of(channel)), float) for channel in channels_of(model)},
            "status": np.array([found.names.get(STATUS, {}).get(status, 0) for status in STATUSES], float),
            "failed": np.array([found.failed.get(check, 0) for check in checks], float),
            **{f"name.{kind}": _named(found, kind, values, rows.least) for kind, values in groups.items()},
            "outcomes": _outcomes(rows, model),
        }


def channels_of(model: TrainedModel) -> tuple[str, ...]:
    """Return the channels that a model's recordings are counted in; they follow from the model alone."""
    nothing = np.full((1, len(model.features)), np.nan)
    return tuple(sorted(Grid(model).cells(nothing)[0]))


def ask_about(digest: str, groups: Mapping[str, Sequence[str]], checks: Sequence[str]) -> Ask:
    """Return the question of a monitoring run."""
    return Ask(Drift.name, {}, {"model": digest, "groups": json.dumps({k: list(v) for k, v in groups.items()}), "checks": json.dumps(list(checks))})


def counts_from(totals: Arrays, digest: str, groups: Mapping[str, Sequence[str]], checks: Sequence[str]) -> Counts:
    """Return totals over sites as the counts that one site would have of all people together."""
    whole = {name: np.rint(values).astype(int).tolist() for name, values in totals.items() if name != "outcomes"}
    names = {STATUS: dict(zip(STATUSES, whole["status"], strict=True))}
    names |= {kind: dict(zip((*values, OTHER), whole[f"name.{kind}"], strict=True)) for kind, values in groups.items()}
    return Counts(
        model=digest,
        recordings=whole["recordings"][0],
        cells={name.removeprefix("cell."): tuple(cells) for name, cells in whole.items() if name.startswith("cell.")},
        names={kind: {name: n for name, n in found.items() if n} for kind, found in names.items()},
        failed={check: n for check, n in zip(checks, whole["failed"], strict=True) if n},
    )


def _named(found: Counts, kind: str, values: Sequence[str], least: int) -> Array:
    own = [found.names.get(kind, {}).get(value, 0) for value in values]
    told = [n if n >= least else 0 for n in own]
    return np.array([*told, found.recordings - sum(told)], float)


def _outcomes(rows: SiteRows, model: TrainedModel) -> Array:
    """Return what is known of outcomes, shape (SCORE_CELLS, 2): of each person the first usable recording with one."""
    found = np.zeros((SCORE_CELLS, len(OUTCOMES)))
    assert rows.table is not None
    try:
        selected = select_rows(rows.table, model.task, model.features, use_baseline=model.uses_baseline, used_as="watched")
    except ManifestError:
        # No label has returned.
        return found
    first = np.sort(np.unique(selected.rows.subjects, return_index=True)[1])
    y = selected.rows.target[first]
    if model.binary and min((y == k).sum() for k in (0, 1)) >= max(rows.least_of_a_class, 1):
        cell = score_cell_of(expit(model.log_odds(selected.rows.X[first])))
        for column, of in enumerate((np.ones(len(y)), y)):
            found[:, column] = np.bincount(cell, of, minlength=SCORE_CELLS)
    return found
