"""Training across sites: local-only, federated, pooled and plain FedAvg, on held-out people of each site; what a run costs by sites and features.

python -m benchmarks.federated performance --simulated TABLE --ravdess TABLE [--json OUT]
python -m benchmarks.federated equality [--json OUT]
python -m benchmarks.federated cost [--sites 3,10,30,100] [--ray] [--json OUT]

The tables are what `clinical-ser extract` writes. RAVDESS is taken as a task of two classes (aroused: angry, fearful, happy, surprised), its 24
actors as three sites of eight.
"""

import argparse
import hashlib
import resource
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from benchmarks.emotion import EVERY_CLIP
from benchmarks.tables import publish
from clinical_ser.audio.quality import QualityMeasures
from clinical_ser.cohorts.gating import quality_columns
from clinical_ser.cohorts.table import FeatureTable, read_table
from clinical_ser.cohorts.tasks import DEPRESSION, Task
from clinical_ser.evaluation.calibration import brier, intercept_and_slope
from clinical_ser.evaluation.discrimination import auroc
from clinical_ser.evaluation.intervals import bootstrap
from clinical_ser.features.extraction import DEFAULT_SETS, feature_names, fingerprints
from clinical_ser.models.linear_head import LinearHead
from clinical_ser.models.rows import Rows, select_rows
from clinical_ser.models.trained import TrainedModel
from federated.at_site import standardised
from federated.demonstration import answering, make_hospital
from federated.identities import Identity
from federated.node import Node
from federated.plan import Participant, Plan
from federated.secure_sums import DirectChannel, SecureSums
from federated.site_table import site_rows
from federated.statistics import PooledSums, SiteRows
from federated.training import Settings, Trained, train_across

Array = NDArray[np.float64]
AROUSED = ("angry", "fearful", "happy", "surprised")
OUTER, FOLDS, REFITS = 4, 4, 4
EXCHANGES = 12
LOCAL_EPOCHS = 20


def hashed(name: str, parts: int, salt: str) -> int:
    """Place a subject by their name's digest."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{name}".encode()).digest()[:8], "big") % parts


def as_site(rows: Rows, keep: NDArray[np.bool_]) -> SiteRows:
    """Take some rows as those of one site, with folds in turn over its subjects, so that small sites have people in each."""
    index = np.flatnonzero(keep)
    subjects = rows.subjects[index]
    order = {name: i % FOLDS for i, name in enumerate(sorted(np.unique(subjects), key=lambda name: hashed(name, 2**32, "fold")))}
    return SiteRows(
        X=rows.X[index],
        target=rows.target[index],
        subjects=subjects,
        fold=np.array([order[name] for name in subjects], dtype=np.int64),
        frame=rows.frame.iloc[index].reset_index(drop=True),
        names=rows.names,
        counts={"given": len(index), "learned from": len(index)},
        secret=b"benchmark",
    )


def fed_avg(parts: Mapping[str, SiteRows], trained: Trained) -> Callable[[Array], Array]:
    """Plain FedAvg of the same ridge logistic regression with the same budget of exchanges; standardised as the federated model is."""
    rounds = EXCHANGES - 3  # as in the federated run, three go into joining, counting and standardising
    mean, scale = trained.model.preprocessor.mean_, trained.model.preprocessor.scale_
    designs = [np.column_stack([standardised(part.X, mean, scale), np.ones(len(part))]) for part in parts.values()]
    sizes = np.array([len(part) for part in parts.values()], float)
    ridge = np.append(np.full(len(mean), trained.model.head.strength_), 0.0) / sizes.sum()
    beta = np.zeros(len(mean) + 1)
    for _ in range(rounds):
        ends = []
        for design, part in zip(designs, parts.values(), strict=True):
            step = 1.0 / (0.25 * np.linalg.norm(design, 2) ** 2 / len(design) + ridge.max())
            local = beta.copy()
            for _ in range(LOCAL_EPOCHS):
                local -= step * (design.T @ (expit(design @ local) - part.target) / len(design) + ridge * local)
            ends.append(local)
        beta = sizes @ np.array(ends) / sizes.sum()
    return lambda X: np.asarray(np.column_stack([standardised(X, mean, scale), np.ones(len(X))]) @ beta)


def train_models(parts: Mapping[str, SiteRows], settings: Settings) -> dict[str, Callable[[Array, str], Array]]:
    """Return each model as log-odds of (rows, site); a local one is the site's own."""
    federated = train_across(PooledSums(parts), settings)
    everyone = SiteRows(
        X=np.concatenate([part.X for part in parts.values()]),
        target=np.concatenate([part.target for part in parts.values()]),
        subjects=np.concatenate([part.subjects for part in parts.values()]),
        fold=np.concatenate([part.fold for part in parts.values()]),
        frame=pd.concat([part.frame for part in parts.values()], ignore_index=True),
        names=settings.features,
        counts={"given": 0, "learned from": 0},
        secret=b"benchmark",
    )
    pooled = train_across(PooledSums({"all": everyone}), settings)
    local = {site: train_across(PooledSums({site: part}), settings) for site, part in parts.items()}
    averaged = fed_avg(parts, federated)

    def of(trained: Trained) -> Callable[[Array, str], Array]:
        return lambda X, _site: trained.model.log_odds(X)

    return {
        "local-only": lambda X, site: local[site].model.log_odds(X),
        "federated": of(federated),
        "pooled": of(pooled),
        "FedAvg, same exchanges": lambda X, _site: averaged(X),
    }


def compare(title: str, table: FeatureTable, task: Task, site_of: Callable[[FeatureTable, Rows], NDArray[np.str_]]) -> list[dict[str, object]]:
    """Hold out a quarter of the people of each site in turn, and judge every model on those whom it did not hear."""
    selected = select_rows(table, task, table.feature_names, use_baseline=False, used_as="learned from")
    rows, sites = selected.rows, site_of(table, selected.rows)
    settings = Settings(selected.task, rows.names, dict(table.extractors), folds=FOLDS, refits=REFITS, groups={})
    turn = np.zeros(len(rows.target), np.int64)
    for site in np.unique(sites):
        here = sites == site
        people = sorted(np.unique(rows.subjects[here]), key=lambda name: hashed(name, 2**32, "outer"))
        place = {name: i % OUTER for i, name in enumerate(people)}
        turn[here] = [place[name] for name in rows.subjects[here]]
    found: dict[str, Array] = {}
    for outer in range(OUTER):
        parts = {site: as_site(rows, (sites == site) & (turn != outer)) for site in np.unique(sites)}
        for name, log_odds in train_models(parts, settings).items():
            scores = found.setdefault(name, np.zeros(len(rows.target)))
            for site in parts:
                held = (sites == site) & (turn == outer)
                scores[held] = log_odds(rows.X[held], site)
    return [summary(title, name, scores, rows, sites) for name, scores in found.items()]


def summary(title: str, name: str, scores: Array, rows: Rows, sites: NDArray[np.str_]) -> dict[str, object]:
    """One row of the table, with a bootstrap interval over subjects."""
    drawn = bootstrap(lambda weight: np.array([auroc(rows.target, scores, weight)]), rows.subjects, replicates=500, seed=0)
    low, high = drawn.interval(0, subjects=len(np.unique(rows.subjects)), share=True)
    by_site = {site: auroc(rows.target[sites == site], scores[sites == site]) for site in np.unique(sites)}
    _, slope = intercept_and_slope(rows.target, scores)
    return {
        "cohort": title,
        "model": name,
        "AUROC": f"{auroc(rows.target, scores):.3f} ({low:.3f}-{high:.3f})",
        "worst site": f"{min(by_site.values()):.3f}",
        "Brier": f"{brier(rows.target, expit(scores)):.4f}",
        "calibration slope": f"{slope:.2f}",
    }


def aroused(table: FeatureTable) -> tuple[FeatureTable, Task]:
    """Take RAVDESS as a task of two classes."""
    labels = np.where(table.frame["label"].isin(AROUSED), "aroused", "calm_or_low")
    task = DEPRESSION.model_copy(update={"name": "arousal", "classes": ("calm_or_low", "aroused"), "limits": EVERY_CLIP.limits})
    return replace(table, frame=table.frame.assign(label=labels).drop(columns="score", errors="ignore")), task


def by_actor(_table: FeatureTable, rows: Rows) -> NDArray[np.str_]:
    """Three sites of eight actors."""
    people = {name: f"site {i % 3 + 1}" for i, name in enumerate(sorted(np.unique(rows.subjects)))}
    return np.array([people[name] for name in rows.subjects])


def performance(given: argparse.Namespace) -> dict[str, list[dict[str, object]]]:
    """Compare on the cohorts that were given."""
    found: list[dict[str, object]] = []
    if given.simulated:
        found += compare("simulated, 3 sites", read_table(given.simulated), DEPRESSION, lambda _, rows: rows.frame["site"].to_numpy(str))
    if given.ravdess:
        table, task = aroused(read_table(given.ravdess))
        found += compare("RAVDESS, 24 actors in 3 sites", table, task, by_actor)
    return {"Held-out people": found}


GOOD = QualityMeasures(
    duration_s=40.0,
    speech_s=30.0,
    voiced_fraction=0.6,
    snr_db=45.0,
    snr_is_bound=False,
    clipped_fraction=0.0,
    bandwidth_hz=8000.0,
    level_dbfs=-25.0,
    codec="pcm_s16",
    bit_rate_bps=None,
    nonfinite_fraction=0.0,
    dc_offset=0.0,
    f0_bimodality=0.0,
    complete=True,
)


def made_up(subjects: int, features: int, *, seed: int = 0) -> FeatureTable:
    """Make a table of numbers alone; what a run costs does not depend on what they mean."""
    rng = np.random.default_rng(seed)
    names = tuple(feature_names(DEFAULT_SETS))[:features]
    ill = rng.random(subjects) < 0.4
    X = rng.normal(size=(subjects, len(names))) + np.outer(ill, rng.normal(size=len(names)) * 0.1)
    frame = pd.DataFrame(
        {
            "row": np.arange(1, subjects + 1),
            "recording": [hashlib.sha256(f"{seed} {i}".encode()).hexdigest() for i in range(subjects)],
            "subject": [f"s{i:06d}" for i in range(subjects)],
            "label": np.where(ill, "depressed", "not_depressed"),
            "sex": np.where(rng.random(subjects) < 0.5, "female", "male"),
            "age": rng.integers(18, 85, subjects),
        }
    )
    columns = [frame, quality_columns([GOOD] * subjects), pd.DataFrame(X, columns=list(names))]
    return FeatureTable(pd.concat(columns, axis=1), names, fingerprints(DEFAULT_SETS))


class RayChannel:
    """Sites answer in Ray's worker processes, two at a time, each opening its folder anew."""

    def __init__(self, folders: Mapping[str, Path]):
        import ray

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)

        @ray.remote(num_cpus=1)
        def answer(folder: Path, body: bytes, signature: bytes) -> tuple[bytes, bytes]:
            return Node.open(folder).answer(body, signature)

        self._ray, self._answer, self._folders = ray, answer, dict(folders)

    def exchange(self, messages: Mapping[str, tuple[bytes, bytes]], timeout_s: float) -> dict[str, tuple[bytes, bytes]]:
        """See `secure_sums.Channel`."""
        asked = {name: self._answer.remote(self._folders[name], *letter) for name, letter in messages.items()}
        return dict(zip(asked, self._ray.get(list(asked.values()), timeout=timeout_s), strict=True))


def consortium(folder: Path, sites: int, table: FeatureTable, *, refits: int = 40) -> tuple[Plan, Identity, dict[str, Path]]:
    """Make node folders, people dealt out unevenly."""
    names = [f"site-{i:03d}" for i in range(sites)]
    identities, coordinator = {name: Identity.generate() for name in names}, Identity.generate()
    plan = Plan(
        run="benchmark",
        name="benchmark",
        version="1",
        task=DEPRESSION,
        features=table.feature_names,
        extractors=table.extractors,
        refits=refits,
        sites=tuple(Participant(name=name, identity=identities[name].public) for name in names),
        coordinator=coordinator.public,
        created=datetime.now(UTC),
    )
    shares = np.linspace(1, 2, sites)
    ends = np.append(0, np.round(np.cumsum(shares / shares.sum()) * len(table.frame))).astype(int)
    for i, name in enumerate(names):
        part = table.frame.iloc[ends[i] : ends[i + 1]].reset_index(drop=True)
        part = part.assign(row=np.arange(1, len(part) + 1))
        make_hospital(folder / name, name, replace(table, frame=part), identities[name], plan)
    return plan, coordinator, {name: folder / name for name in names}


def cost(given: argparse.Namespace) -> dict[str, list[dict[str, object]]]:
    """Exchanges, bytes, seconds and memory by sites and features; 40 people a site."""
    found: list[dict[str, object]] = []
    for sites in map(int, given.sites.split(",")):
        for features in map(int, given.features.split(",")):
            with tempfile.TemporaryDirectory() as work:
                plan, coordinator, folders = consortium(Path(work), sites, made_up(40 * sites, features))
                channel = RayChannel(folders) if given.ray else DirectChannel({name: answering(folder) for name, folder in folders.items()})
                sums = SecureSums(channel, plan, coordinator, deadline_s=600.0)
                started = time.monotonic()
                trained = train_across(sums, plan.settings)
                seconds = time.monotonic() - started
                largest = max(sums.exchanges, key=lambda each: each.received)
                found.append(
                    {
                        "sites": sites,
                        "features": features,
                        "people": trained.cohort.people,
                        "where": "Ray, two workers" if given.ray else "one process",
                        "exchanges": len(sums.exchanges),
                        "seconds": f"{seconds:.1f}",
                        "of these, exchanges": f"{sum(each.seconds for each in sums.exchanges):.1f}",
                        "MB to a site": f"{sum(each.sent for each in sums.exchanges) / sites / 1e6:.2f}",
                        "MB from a site": f"{sum(each.received for each in sums.exchanges) / sites / 1e6:.2f}",
                        "largest answer, MB": f"{largest.received / sites / 1e6:.2f}",
                        "peak memory, MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
                    }
                )
                print(found[-1], flush=True)
    return {"What a run costs": found}


def equality(given: argparse.Namespace) -> dict[str, list[dict[str, object]]]:
    """Federated through nodes, masks and fixed point, against one table in memory: the largest differences."""
    del given
    found: list[dict[str, object]] = []
    table = made_up(600, 120)
    for sites in (3, 5, 10):
        with tempfile.TemporaryDirectory() as work:
            plan, coordinator, folders = consortium(Path(work), sites, table, refits=4)
            sums = SecureSums(DirectChannel({name: answering(folder) for name, folder in folders.items()}), plan, coordinator)
            ours = train_across(sums, plan.settings)
            pooled = train_across(PooledSums({"all": site_rows(table, plan, b"pooled", None)}), plan.settings)
            a, b = ours.model, pooled.model
            assert isinstance(a.head, LinearHead)
            assert isinstance(b.head, LinearHead)
            p, q = (expit(model.log_odds(table.features)) for model in (a, b))
            found.append(
                {
                    "sites": sites,
                    "exchanges": len(sums.exchanges),
                    "coefficient": f"{np.abs(a.head.coef_ - b.head.coef_).max():.0e}",
                    "calibrator": f"{np.abs(of_calibrator(a) - of_calibrator(b)).max():.0e}",
                    "probability": f"{np.abs(p - q).max():.0e}",
                    "cells of the evaluation that differ": int((ours.everybody.round() != pooled.everybody.round()).sum()),
                    "thresholds of sets": "equal" if a.conformal.thresholds_ == b.conformal.thresholds_ else "differ",
                }
            )
    return {"Largest differences from pooled training": found}


def of_calibrator(model: TrainedModel) -> Array:
    """Scale and offset."""
    return np.array([model.calibrator.scale_, float(model.calibrator.offset_)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("performance", "equality", "cost"))
    parser.add_argument("--sites", default="3,10,30,100")
    parser.add_argument("--features", default="40,161")
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--simulated", type=Path, default=None)
    parser.add_argument("--ravdess", type=Path, default=None)
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    publish({"performance": performance, "equality": equality, "cost": cost}[given.what](given), given.json)


if __name__ == "__main__":
    main()
