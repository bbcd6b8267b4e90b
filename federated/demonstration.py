"""Three hospitals on one machine: real nodes, policies, keys, logs and messages; only the network between them is missing.

The one idea: the demonstration takes no short cut that a hospital could not take. Each site's table lies in its own folder, and nothing but the
letters of a run goes from one to another.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from clinical_ser.atomic_folder import write_new_file
from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.cohorts.table import FeatureTable, write_table
from clinical_ser.cohorts.tasks import Task
from clinical_ser.errors import FederationError
from clinical_ser.evaluation.calibration import brier, intercept_and_slope
from clinical_ser.evaluation.discrimination import auroc
from clinical_ser.evaluation.intervals import delong
from clinical_ser.models.rows import select_rows
from clinical_ser.models.trained import TrainedModel
from federated.identities import Identity
from federated.node import AUDIT, IDENTITY, POLICY, Node, make_state
from federated.plan import LINEAR, Participant, Plan
from federated.secure_sums import DirectChannel, ExchangeRecord, SecureSums
from federated.site_table import site_rows
from federated.statistics import PooledSums
from federated.training import Trained, train_across

HELD_OUT = 4
"""One of so many speakers of each site is kept aside, for comparing models on people whom none of them heard."""


@dataclass(frozen=True)
class Hospital:
    """One site of the demonstration."""

    name: str
    folder: Path
    speakers: int
    prevalence: float
    device: str
    languages: str


@dataclass(frozen=True, eq=False)
class Compared:
    """One model on the held-out speakers."""

    model: str
    auroc: float
    low: float
    high: float
    by_site: dict[str, float]
    brier: float
    slope: float


@dataclass(frozen=True, eq=False)
class Demonstration:
    """What came out."""

    hospitals: tuple[Hospital, ...]
    plan: Plan
    trained: Trained
    exchanges: tuple[ExchangeRecord, ...]
    compared: tuple[Compared, ...]
    largest_difference: float
    """Between any held-out speaker's probability by the federated and by the pooled model."""
    commitments: tuple[str, ...]
    records: dict[str, int]
    """Records in each party's audit log, each verified."""


def demonstrate(
    folder: Path,
    table: FeatureTable,
    task: Task,
    *,
    on_step: Callable[[str, Sequence[ExchangeRecord]], None] | None = None,
    refits: int = 40,
) -> Demonstration:
    """Make a node for each site of a table, train across them, and compare.

    Parameters
    ----------
    folder
        New, or empty.
    table
        With a column `site` of at least three values.
    task
        Of two classes.
    on_step
        Told of every exchange before it is made.
    refits
        Bootstrap samples.

    Raises
    ------
    FederationError
        There are fewer than three sites, or the folder has a run in it already.
    """
    sites = sorted(table.frame["site"].unique())
    held = np.array([int.from_bytes(sha256(f"held out {name}".encode()).digest()[:8], "big") % HELD_OUT == 0 for name in table.subjects])
    of_site = table.frame["site"].to_numpy(str)
    identities = {name: Identity.generate() for name in sites}
    coordinator = Identity.generate()
    plan = Plan(
        run="demonstration",
        name="demo-across",
        version="1",
        task=task,
        features=table.feature_names,
        extractors=table.extractors,
        refits=refits,
        statistics=LINEAR,
        sites=tuple(Participant(name=name, identity=identities[name].public) for name in sites),
        coordinator=coordinator.public,
        created=datetime.now(UTC),
    )
    if (folder / "coordinator").exists():
        raise FederationError("This folder has a demonstration in it already; take another one.")
    hospitals = tuple(make_hospital(folder / name, name, _part(table, (of_site == name) & ~held), identities[name], plan) for name in sites)
    log = LogConfiguration(
        "demo.example/coordinator", f"sqlite:{(folder / 'coordinator' / 'audit.sqlite').absolute()}", folder / "coordinator" / "keys"
    )
    log.create(folder / "coordinator" / AUDIT)
    channel = DirectChannel({one.name: answering(one.folder) for one in hospitals})
    sums = SecureSums(channel, plan, coordinator, store=folder / "coordinator" / "totals", audit=log, on_step=on_step)
    federated = train_across(sums, plan.settings)
    pooled = train_across(PooledSums({"everybody": site_rows(_part(table, ~held), plan, b"demonstration", None)}), plan.settings)
    alone = {
        name: train_across(PooledSums({name: site_rows(_part(table, (of_site == name) & ~held), plan, b"", None)}), plan.settings) for name in sites
    }
    compared, difference = _compare(_part(table, held), task, federated.model, pooled.model, {name: one.model for name, one in alone.items()})
    logs = {one.name: LogConfiguration.load(one.folder / AUDIT) for one in hospitals} | {"coordinator": log}
    return Demonstration(
        hospitals,
        plan,
        federated,
        tuple(sums.exchanges),
        tuple(compared),
        difference,
        tuple(sums.commitments),
        {name: one.verify().size for name, one in logs.items()},
    )


def answering(folder: Path) -> Callable[[bytes, bytes], tuple[bytes, bytes]]:
    """Return what answers for a node's folder, opened anew for every letter as under Flower, which starts a process for each."""
    return lambda body, signature: Node.open(folder).answer(body, signature)


def make_hospital(folder: Path, name: str, table: FeatureTable, identity: Identity, plan: Plan) -> Hospital:
    """Make a node's folder whose policy allows the plan."""
    folder.mkdir(mode=0o700, parents=True)
    make_state(folder, name)
    write_table(table, folder / "features.parquet")
    write_new_file(folder / IDENTITY, identity.to_pem(), mode=0o600)
    LogConfiguration(f"demo.example/{name}", f"sqlite:{(folder / 'audit.sqlite').absolute()}", folder.absolute() / "audit-keys").create(
        folder / AUDIT
    )
    statistics = ", ".join(f'"{one}"' for one in LINEAR)
    policy = (
        f'name = "{name}"\ncoordinator = "{plan.coordinator}"\ntable = "features.parquet"\n\n'
        f'[approved]\nplans = ["{plan.digest}"]\n\n[release]\nstatistics = [{statistics}]\n\n[sites]\n'
        + "".join(f'{site.name} = "{site.identity}"\n' for site in plan.sites if site.name != name)
    )
    write_new_file(folder / POLICY, policy.encode(), mode=0o600)
    frame = table.frame
    ill = frame.drop_duplicates("subject")["label"] == plan.task.classes[1]
    languages = (
        ", ".join(f"{language} {count}" for language, count in frame["language"].value_counts().items()) if "language" in frame else "not stated"
    )
    device = str(frame["device"].mode().iloc[0]) if "device" in frame else "not stated"
    return Hospital(name, folder, len(ill), float(ill.mean()), device, languages)


def _part(table: FeatureTable, keep: NDArray[np.bool_]) -> FeatureTable:
    frame = table.frame[keep].reset_index(drop=True)
    return replace(table, frame=frame.assign(row=np.arange(1, len(frame) + 1)), problems=())


def _compare(
    held: FeatureTable, task: Task, federated: TrainedModel, pooled: TrainedModel, alone: Mapping[str, TrainedModel]
) -> tuple[list[Compared], float]:
    rows = select_rows(held, task, federated.features, use_baseline=False, used_as="evaluated").rows
    site = rows.frame["site"].to_numpy(str)
    own = np.zeros(len(site))
    for name, model in alone.items():
        own[site == name] = model.log_odds(rows.X[site == name])
    scores = {"each site's own": own, "federated": federated.log_odds(rows.X), "pooled": pooled.log_odds(rows.X)}
    difference = float(np.abs(expit(scores["federated"]) - expit(scores["pooled"])).max())
    return [_figures(name, rows.target, score, site) for name, score in scores.items()], difference


def _figures(name: str, target: NDArray[np.int64], score: NDArray[np.float64], site: NDArray[np.str_]) -> Compared:
    low, high = delong(target, score, level=0.95)
    by_site = {str(one): auroc(target[site == one], score[site == one]) for one in pd.unique(site)}
    _, slope = intercept_and_slope(target, score)
    return Compared(name, auroc(target, score), low, high, by_site, brier(target, expit(score)), slope)
