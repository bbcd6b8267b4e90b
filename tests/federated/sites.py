"""Hospitals for tests: node folders with a table, keys, a policy and a log, and a plan that all of them approved."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.cohorts.table import FeatureTable, write_table
from clinical_ser.cohorts.tasks import get_task
from federated.identities import Identity
from federated.node import AUDIT, IDENTITY, POLICY, Node, make_state
from federated.plan import LINEAR, Participant, Plan
from federated.secure_sums import DirectChannel, SecureSums
from tests.tables import table_of

NAMES = ("ada", "bell", "curie")
NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)


@dataclass(frozen=True)
class Consortium:
    """A coordinator and its sites, in folders of a test."""

    folder: Path
    plan: Plan
    identity: Identity
    names: tuple[str, ...]
    table: FeatureTable
    """Of all sites together."""

    def site(self, name: str) -> Path:
        return self.folder / name

    def node(self, name: str, **options: Any) -> Node:
        return Node.open(self.site(name), **options)

    def channel(self, **other: Any) -> DirectChannel:
        """Return a channel that opens a site's folder anew for every message, as a process for every message does."""
        return DirectChannel({name: lambda body, signature, name=name: self.node(name).answer(body, signature) for name in self.names} | other)

    def sums(self, channel: Any = None, **options: Any) -> SecureSums:
        options = {"deadline_s": 0.2, "attempt_s": 0.1} | options
        return SecureSums(channel or self.channel(), options.pop("plan", self.plan), self.identity, **options)

    def set_policy(self, name: str, *, plan: Plan | None = None, **release: Any) -> None:
        """Write node.toml anew; None as a value leaves a setting out."""
        write_policy(self.site(name), name, plan or self.plan, **release)


def write_policy(
    folder: Path, name: str, plan: Plan, *, extra: str = "", plans: list[str] | None = None, table: str = "features.parquet", **release: Any
) -> None:
    settings: dict[str, Any] = {
        "statistics": list(plan.statistics),
        "minimum_sites": 3,
        "minimum_subjects": 20,
        "minimum_subjects_of_a_class": 5,
    } | release
    others = "".join(f"{site.name} = {site.identity!r}\n" for site in plan.sites if site.name != name)
    lines = "".join(f"{key} = {value!r}\n" for key, value in settings.items())
    # The new people; without this line there would be none.
    if plan.kind in {"update", "recalibrate"} and "[tables]" not in extra:
        extra += f"[tables]\n{plan.kind} = {table!r}\n"
    (folder / POLICY).write_text(
        f'name = "{name}"\ncoordinator = "{plan.coordinator}"\ntable = "features.parquet"\n'
        f"[approved]\nplans = {plans if plans is not None else [plan.digest]!r}\n[release]\n{lines}[sites]\n{others}{extra}".replace("'", '"')
    )


def part(table: FeatureTable, rows: np.ndarray) -> FeatureTable:
    """Return some of a table's rows as a table."""
    frame = table.frame.iloc[rows].reset_index(drop=True)
    return replace(table, frame=frame.assign(row=np.arange(1, len(frame) + 1)))


def make_consortium(
    folder: Path, *, names: tuple[str, ...] = NAMES, subjects: int = 150, features: int = 6, table: FeatureTable | None = None, **changes: Any
) -> Consortium:
    """Make folders for so many sites, uneven in size."""
    whole = table or table_of(subjects, effect=1.0)
    shares = np.linspace(1, 2, len(names))
    ends = np.round(np.cumsum(shares / shares.sum()) * len(whole.frame)).astype(int)
    coordinator = Identity.generate()
    identities = {name: Identity.generate() for name in names}
    used = tuple(whole.feature_names[:features])
    plan = Plan(
        **{
            "run": "first",
            "name": "across",
            "version": "1",
            "task": get_task("depression"),
            "features": used,
            "extractors": dict(whole.extractors),
            "folds": 3,
            "strengths": (100.0, 30.0),
            "refits": 3,
            "statistics": LINEAR,
            "sites": tuple(Participant(name=name, identity=identities[name].public) for name in sorted(names)),
            "coordinator": coordinator.public,
            "created": NOW,
        }
        | changes
    )
    for i, name in enumerate(names):
        site = folder / name
        site.mkdir(parents=True)
        make_state(site, name)
        write_table(part(whole, np.arange(ends[i - 1] if i else 0, ends[i])), site / "features.parquet")
        (site / IDENTITY).touch(mode=0o600)
        (site / IDENTITY).write_bytes(identities[name].to_pem())
        LogConfiguration(f"{name}.example/federated", f"sqlite:{site / 'audit.sqlite'}", site / "audit-keys").create(site / AUDIT)
        write_policy(site, name, plan)
    return Consortium(folder, plan, coordinator, names, whole)
