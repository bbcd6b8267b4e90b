"""Runs about models that are there: what is counted of new recordings, and how champion and challenger do at each site.

The one idea: sites ask their own copies of the models, by the same code as for themselves. The coordinator adds up counts, and puts figures side by
side; what an alarm is, and what a gate lets through, is decided where it is for one site.
"""

from typing import Annotated

import numpy as np
from pydantic import Field

from clinical_ser.control.site_figures import SiteFigures
from clinical_ser.errors import FederationError
from clinical_ser.models.state import Finite
from clinical_ser.models.strict_json import canonical_json
from clinical_ser.monitoring.cells import SCORE_CELLS
from clinical_ser.monitoring.counts import OTHER, STATUS, Counts
from clinical_ser.monitoring.watching import NEW_NAMES, Alarm, Watch
from clinical_ser.strict import Strict
from federated.plan import Plan
from federated.protocols import comparison, drift
from federated.statistics import Sums

Positive = Annotated[Finite, Field(ge=0)]


class Outcomes(Strict):
    """Of those whose outcome has returned, over all sites that have enough of each class: does the condition come as often as the scores say."""

    people: int = Field(ge=0)
    observed: int = Field(ge=0)
    expected: Positive
    """By the middles of cells of 0.05: of rare conditions, whose scores crowd at the low end of the first one, it is too many."""
    ratio: Positive | None
    """Observed to expected; None where nothing is expected."""
    z: Finite | None
    """(observed - expected) / SD, of this look alone; a rate of false alarms over many looks needs outcomes by date, as each site has them."""
    by_score: tuple[tuple[int, Positive, int], ...]
    """People, expected and observed, in equal parts of the probability."""


class Watched(Strict):
    """What a run of monitoring found."""

    schema_id: str = Field(default="clinical-ser/federated-monitor/1", pattern=r"^clinical-ser/federated-monitor/1$")
    run: str
    plan: str
    counts: Counts
    outcomes: Outcomes
    reference: str | None = None
    """Digest of the reference that the alarms are against; None of the run that becomes it."""
    alarms: tuple[Alarm, ...] = ()

    def to_bytes(self) -> bytes:
        """Return canonical JSON."""
        return canonical_json(self.model_dump(mode="json"))


def count_across(sums: Sums, plan: Plan) -> tuple[Counts, Outcomes]:
    """Count a period's recordings over all sites, in one exchange.

    Parameters
    ----------
    sums
        Where totals come from.
    plan
        Of kind `monitor`: its parent is the model in whose cells is counted, its groups are the public names, its checks those of the gate.

    Raises
    ------
    FederationError
        A site refuses or is missing, or the totals are no counts.
    """
    assert plan.parent is not None
    (totals,) = sums.total("monitor", [drift.ask_about(plan.parent, plan.groups, plan.checks)])
    try:
        counts = drift.counts_from(totals, plan.parent, plan.groups, plan.checks)
    except ValueError:
        raise FederationError("The totals of the sites' counts do not fit each other: more was counted than there were recordings.") from None
    return counts, _outcomes(totals["outcomes"])


def compare_across(sums: Sums, plan: Plan) -> tuple[SiteFigures, ...]:
    """Have every site compare champion and challenger on its own frozen holdout, in one exchange; see `protocols.comparison`.

    Parameters
    ----------
    sums
        Where totals come from.
    plan
        Of kind `gate`.

    Returns
    -------
    tuple of SiteFigures
        One a site, for `clinical_ser.control.gate.comparison_of`.

    Raises
    ------
    FederationError
        A site refuses or is missing, or its figures are of another question.
    """
    assert plan.parent is not None
    assert plan.challenger is not None
    (totals,) = sums.total("gate", [comparison.ask_about(plan.parent, plan.challenger, plan.site_names)])
    found = comparison.figures_from(totals, plan.site_names)
    for one in found:
        if (one.champion, one.challenger, one.plan) != (plan.parent, plan.challenger, plan.change_plan):
            raise FederationError(f"Site {one.site!r} compared other models, or by another change-control plan; nothing is compared.")
    return found


def reference_of(counts: Counts) -> Counts:
    """Return a run's counts as what later runs are watched against: names are known, and their shares are not.

    How many of a name leave a site depends on how long a period is, since few are counted among the others there: 15 of 100 people are, and 3 of 20
    are not. A detector of shares would take that for a change. So a name that was told has 1, too few to be watched (`watching.channels_of`).
    """
    names = {kind: dict.fromkeys((*found, OTHER), 1) for kind, found in counts.names.items() if kind in NEW_NAMES}
    return counts.model_copy(update={"names": {STATUS: counts.names.get(STATUS, {})} | names})


def watch(watching: Watch, counts: Counts, run: str) -> tuple[Alarm, ...]:
    """Let detectors see a run's counts, once; a run that is led again after a crash gives no evidence twice.

    The reference is one of `reference_of`. A name of the public list is news once as many people have come with it as are news at one site, if in the
    reference no site had enough of them to tell.
    """
    if any(recent.label == run for recent in watching.state.recent):
        return ()
    return watching.take(counts, day=None, label=run)


def _outcomes(totals: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Outcomes:
    people, observed = np.rint(totals).astype(int).T
    middle = (np.arange(SCORE_CELLS) + 0.5) / SCORE_CELLS
    each = people * middle
    expected, variance = float(each.sum()), float((each * (1 - middle)).sum())
    came = int(observed.sum())
    return Outcomes(
        people=int(people.sum()),
        observed=came,
        expected=expected,
        ratio=came / expected if expected else None,
        z=(came - expected) / float(np.sqrt(variance)) if variance else None,
        by_score=tuple(zip(people.tolist(), each.tolist(), observed.tolist(), strict=True)),
    )
