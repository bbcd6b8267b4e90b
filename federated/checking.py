"""What a node would refuse, before anyone asks: for whoever sets one up, and for whoever reads a proposed plan."""

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.cohorts.table import read_table
from clinical_ser.errors import AuditError, ClinicalSerError, FederationError
from federated.gate import build_hash, build_of_this_version
from federated.node import LEDGER, STATE, Node
from federated.plan import LINEAR, Plan, read_plan
from federated.policy import Policy
from federated.privacy import Ledger
from federated.processes import check_server, program
from federated.provisioning import NodeFolder


@dataclass(frozen=True)
class Finding:
    """One thing that is allowed, or would be refused."""

    what: str
    allowed: bool
    why: str = ""


def findings(node: NodeFolder, *, plan: Path | None = None, reach: bool = True) -> list[Finding]:
    """Look at everything that a request has to pass.

    Parameters
    ----------
    node
        The node.
    plan
        A plan that was proposed; None looks at what holds for all.
    reach
        Whether to try the coordinator's address too.

    Raises
    ------
    FederationError
        node.toml cannot be read: then everything is refused.
    """
    policy = Policy.read(node.policy)
    found = [
        *_of_folder(node),
        *_of_policy(policy),
        _tried("the audit log", lambda: _look_at_log(node)),
        _tried("the table", lambda: _look_at_table(node, policy)),
        _of_ledger(node, policy),
    ]
    if plan is not None:
        found += list(_of_plan(node, policy, read_plan(plan)))
    if reach:
        found.append(_tried("the coordinator's server", lambda: check_server(node.read_invitation().address, node.authority)))
    return found


def _of_folder(node: NodeFolder) -> Iterator[Finding]:
    for path in (node.identity, node.flower_key, node.secret):
        private = path.is_file() and not stat.S_IMODE(path.stat().st_mode) & 0o077
        yield Finding(path.name, private, "" if private else "it is not there, or others may read it")
    for name in ("flower-supernode", "flower-superexec"):
        yield _tried(name, partial(program, name))


def _of_policy(policy: Policy) -> Iterator[Finding]:
    build = build_hash(build_of_this_version())
    yield Finding("requests of a coordinator", policy.coordinator is not None, "" if policy.coordinator else "node.toml names none")
    ours = build in policy.approved_builds
    yield Finding("the build of the version installed here", ours, "" if ours else f"approved.builds does not name {build}")
    yield Finding("some plan", bool(policy.approved.plans), "" if policy.approved.plans else "approved.plans is empty")
    missing = sorted(set(LINEAR) - set(policy.release.statistics))
    yield Finding("a linear model's statistics", not missing, f"release.statistics lacks {', '.join(missing)}" if missing else "")


def _of_plan(node: NodeFolder, policy: Policy, plan: Plan) -> Iterator[Finding]:
    approved = plan.digest in policy.approved.plans
    yield Finding(f"plan {plan.digest}", approved, "" if approved else "approved.plans does not name it")
    ours = plan.coordinator == policy.coordinator
    yield Finding("its coordinator", ours, "" if ours else "node.toml names another one" if policy.coordinator else "node.toml names none")
    here = policy.name in plan.site_names
    yield Finding("this site among its sites", here, "" if here else f"they are {', '.join(plan.site_names)}")
    enough = len(plan.sites) >= policy.release.minimum_sites
    yield Finding(f"its {len(plan.sites)} sites", enough, "" if enough else f"release.minimum_sites is {policy.release.minimum_sites}")
    may, known = plan.kind in policy.release.kinds, policy.table_of(plan.kind) is not None
    yield Finding(f"a run of kind {plan.kind}", may, "" if may else "release.kinds does not name it")
    if may and not known:
        yield Finding("a table for it", allowed=False, why=f"[tables] names none of kind {plan.kind}")
    for digest in (plan.parent, plan.challenger) if plan.kind in {"monitor", "gate"} else ():
        if digest is not None:
            yield Finding(f"model {digest}", digest in policy.models, "" if digest in policy.models else "[models] does not name it")
    for name in plan.statistics:
        leaves = name in policy.release.statistics
        yield Finding(f"statistic {name}", leaves, "" if leaves else "release.statistics does not name it")
    for site in plan.sites:
        if site.name != policy.name:
            known = policy.sites.get(site.name) == site.identity
            yield Finding(f"site {site.name}, identity {site.identity}", known, "" if known else "[sites] does not name it")
    if approved:
        reason = Node.open(node.folder).rehearse(plan)
        yield Finding("the plan as a whole, with the table as it is", reason is None, "" if reason is None else reason.replace("_", " "))


_KINDS = {
    "train": "a model trained from nothing",
    "update": "an update of a model that is there",
    "recalibrate": "the calibration of a model that is there, anew",
    "monitor": "counts that show whether recordings have moved",
    "gate": "two models compared at each site, whose figures are told apart",
}


def summary(plan: Plan) -> str:
    """Return what a plan does, in a few lines."""
    return (
        f"{plan.name} {plan.version}: {_KINDS[plan.kind]}, task {plan.task.name}, head {plan.head}, "
        f"{len(plan.features)} features ({', '.join(sorted(plan.extractors))}), "
        f"{plan.folds} folds, {plan.refits} bootstrap samples; groups: {', '.join(plan.groups) or 'none'}; "
        f"sites: {', '.join(plan.site_names)}."
    )


def _of_ledger(node: NodeFolder, policy: Policy) -> Finding:
    """Look at what was spent of the table's privacy, over all runs."""
    try:
        spent = Ledger(node.folder / STATE / LEDGER).spent(policy.privacy.delta)
    except FederationError as error:
        return Finding("the privacy ledger", allowed=False, why=str(error))
    return Finding(f"the privacy ledger, epsilon {spent:.2f} of {policy.privacy.epsilon:g} spent at delta {policy.privacy.delta:g}", allowed=True)


def _look_at_table(node: NodeFolder, policy: Policy) -> None:
    if not len(read_table(node.folder / policy.table).frame):
        raise FederationError("it has no row")


def _look_at_log(node: NodeFolder) -> None:
    with LogConfiguration.load(node.folder / "audit.toml").read(sealed=True):
        return


def _tried(what: str, look: Callable[[], object]) -> Finding:
    try:
        look()
    except (ClinicalSerError, AuditError, OSError) as error:
        return Finding(what, allowed=False, why=(error.strerror or "") if isinstance(error, OSError) else str(error))
    return Finding(what, allowed=True)
