"""What differential privacy costs in accuracy: the private linear head at several epsilons, with simulated people in numbers, and on RAVDESS.

    python -m benchmarks.federated_privacy --data PATH/TO/ravdess --work FOLDER

"people": as many subjects as asked for are drawn from two Gaussians, fitted to the features of simulated speakers of either class (one recording
each); five sites of equal size. "ravdess": acted high arousal (angry, fearful, happy, surprised) against low (calm, neutral, sad, disgust), actors
kept apart, six at a site. Scales are of simulated speakers, whom nobody has to protect. Epsilon is for adding or removing one subject at one site,
against everybody else together. The features were named before anything was measured.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

from benchmarks.tables import markdown, publish
from clinical_ser.cohorts.building import build_table
from clinical_ser.cohorts.corpora import get_corpus
from clinical_ser.cohorts.manifest import Manifest, read_manifest
from clinical_ser.cohorts.simulation import simulate
from clinical_ser.cohorts.table import read_table, write_table
from federated.adapter import AdapterSettings, train_adapter
from federated.at_site import standardised
from federated.protocols.private_linear import PrivateLinearSettings, noise_for_epsilon, train_private
from federated.statistics import PooledSums, SiteRows

Array = NDArray[np.float64]
DELTA = 1e-5
NO_NOISE = 1e-6
"""Noise multiplier where privacy is off."""
EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0)
HIGH = ("angry", "fearful", "happy", "surprised")
NAMED = (
    "egemaps.F0semitoneFrom27.5Hz_sma3nz_amean",
    "egemaps.F0semitoneFrom27.5Hz_sma3nz_stddevNorm",
    "egemaps.loudness_sma3_amean",
    "egemaps.loudness_sma3_stddevNorm",
    "egemaps.spectralFlux_sma3_amean",
    "egemaps.mfcc1_sma3_amean",
    "egemaps.jitterLocal_sma3nz_amean",
    "egemaps.shimmerLocaldB_sma3nz_amean",
    "egemaps.HNRdBACF_sma3nz_amean",
    "egemaps.alphaRatioV_sma3nz_amean",
    "egemaps.slopeV0-500_sma3nz_amean",
    "praat.cpps_voiced_db",
    "timing.pause_share_percent",
    "timing.pause_mean_s",
    "timing.articulation_rate_syll_per_s",
    "timing.voiced_share_percent",
)
SITES = 5
REPEATS = 5
TESTED = 20_000
CLIP = {16: 2.5, 161: 6.0}
"""Below the square root of the number of features, near which standardised rows lie: they keep their direction and lose length."""


def tables(ravdess: Path, work: Path, workers: int) -> tuple[pd.DataFrame, pd.DataFrame, tuple[str, ...]]:
    """Return the features of RAVDESS and of 150 simulated speakers, measured where they are not in the folder yet."""
    kept = {name: work / f"{name}.parquet" for name in ("rav", "sim")}
    if not kept["rav"].exists():
        frame = get_corpus("ravdess").read(ravdess)
        frame["row"] = np.arange(1, len(frame) + 1)
        write_table(build_table(Manifest(frame), workers=workers), kept["rav"])
    if not kept["sim"].exists():
        made = simulate(150, work / "sim", seed=0, recordings=2, speech_s=15.0, workers=workers)
        write_table(build_table(read_manifest(made.manifest), workers=workers), kept["sim"])
    rav, sim = (read_table(kept[name]) for name in ("rav", "sim"))
    return rav.frame, sim.frame, rav.feature_names


def site(X: Array, target: NDArray[np.int64], subjects: NDArray[np.str_]) -> SiteRows:
    """Rows of one site."""
    return SiteRows(X, target, subjects, np.zeros(len(X), np.int64), pd.DataFrame(), tuple(map(str, range(X.shape[1]))))


@cache
def settings_for(epsilon: float | None, features: int, steps: int) -> PrivateLinearSettings:
    """Return the private head's settings; without an epsilon neither noise nor clip, and steps until it has settled."""
    if epsilon is None:
        return PrivateLinearSettings(noise_multiplier=NO_NOISE, clip=60.0, steps=50, strength=2.0)
    return PrivateLinearSettings(noise_multiplier=noise_for_epsilon(epsilon, DELTA), clip=CLIP[features], steps=steps, strength=2.0)


class People:
    """Two Gaussians that simulated speakers' features follow well enough."""

    def __init__(self, frame: pd.DataFrame, names: tuple[str, ...]):
        X = frame[list(names)].to_numpy(float)
        self.mean, self.scale = np.nanmean(X, axis=0), np.nanstd(X, axis=0)
        Z = standardised(X, self.mean, self.scale)
        ill = frame["score"].to_numpy(float) >= 10
        self._share = ill.mean()
        self._fitted = [LedoitWolf().fit(Z[ill == k]) for k in (False, True)]

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Array, NDArray[np.int64]]:
        """Return features (count, features) and classes (count,)."""
        target = (rng.random(count) < self._share).astype(np.int64)
        Z = np.empty((count, len(self.mean)))
        for k, fitted in enumerate(self._fitted):
            here = target == k
            Z[here] = rng.multivariate_normal(fitted.location_, fitted.covariance_, size=int(here.sum()), method="cholesky")
        return self.mean + Z * self.scale, target


def of_people(frame: pd.DataFrame, names: tuple[str, ...], steps: int) -> Iterator[dict[str, object]]:
    """Yield AUC by number of people and epsilon."""
    people = People(frame, names)
    X, target = people.draw(TESTED, np.random.default_rng(1))
    Z = standardised(X, people.mean, people.scale)
    for count in (250, 1000, 4000, 16000):
        found: dict[str, object] = {"features": len(names), "people at 5 sites": count}
        for epsilon in (None, *reversed(EPSILONS)):
            settings = settings_for(epsilon, len(names), steps)
            scores = []
            for repeat in range(REPEATS):
                rng = np.random.default_rng(100 + repeat)
                sums = PooledSums({f"s{i}": site(*people.draw(count // SITES, rng), np.arange(count // SITES).astype(str)) for i in range(SITES)})
                head = train_private(sums, people.mean, people.scale, settings)
                scores.append(roc_auc_score(target, head.margins(Z)))
            found["no privacy" if epsilon is None else f"epsilon {epsilon:g}"] = f"{np.mean(scores):.3f} ± {np.std(scores, ddof=1):.3f}"
        yield found


def of_ravdess(rav: pd.DataFrame, sim: pd.DataFrame, names: tuple[str, ...], steps: int, *, clip_is_a_subject: bool) -> dict[str, object]:
    """Return AUC over four sets of six actors that were not heard, three sites of six actors."""
    X, target = rav[list(names)].to_numpy(float), rav["label"].isin(HIGH).to_numpy(np.int64)
    actors = rav["subject"].to_numpy(str)
    mean, scale = np.nanmean(sim[list(names)], axis=0), np.nanstd(sim[list(names)], axis=0)
    who = np.unique(actors)
    unit = np.arange(len(actors)).astype(str) if clip_is_a_subject else actors
    found: dict[str, object] = {"features": len(names), "a subject is": "a clip (a weaker promise)" if clip_is_a_subject else "an actor"}
    for epsilon in (None, *reversed(EPSILONS)):
        settings = settings_for(epsilon, len(names), steps)
        scores = []
        for repeat in range(REPEATS if epsilon else 1):
            order = np.random.default_rng(repeat).permutation(who)
            for part in range(4):
                tested = np.isin(actors, order[part::4])
                rest = np.array([one for one in order if one not in order[part::4]])
                heard = [np.isin(actors, rest[i::3]) for i in range(3)]
                sums = PooledSums({f"s{i}": site(X[here], target[here], unit[here]) for i, here in enumerate(heard)})
                head = train_private(sums, mean, scale, settings)
                scores.append(roc_auc_score(target[tested], head.margins(standardised(X[tested], mean, scale))))
        found["no privacy" if epsilon is None else f"epsilon {epsilon:g}"] = f"{np.mean(scores):.3f} ± {np.std(scores, ddof=1):.3f}"
    return found


ADAPTERS = {
    "FedAvg": AdapterSettings(width=16, rounds=10, epochs=2, batch=32, rate=0.1, local=()),
    "FedProx, mu 0.1": AdapterSettings(width=16, rounds=10, epochs=2, batch=32, rate=0.1, local=(), proximal=0.1),
    "FedAvg, normalisation kept at each site": AdapterSettings(width=16, rounds=10, epochs=2, batch=32, rate=0.1, local=("norm",)),
}


def of_adapters(rav: pd.DataFrame, sim: pd.DataFrame, names: tuple[str, ...]) -> list[dict[str, object]]:
    """Return AUC on RAVDESS of shared adapters, of sites alone, and of the linear head, on actors and at a site that none has heard."""
    X, target, actors = rav[list(names)].to_numpy(float), rav["label"].isin(HIGH).to_numpy(np.int64), rav["subject"].to_numpy(str)
    mean, scale = np.nanmean(sim[list(names)], axis=0), np.nanstd(sim[list(names)], axis=0)
    scores: dict[str, list[float]] = {}

    def score(what: str, margins: Array, tested: NDArray[np.bool_]) -> None:
        scores.setdefault(what, []).append(float(roc_auc_score(target[tested], margins)))

    for repeat in range(2):
        order = np.random.default_rng(repeat).permutation(np.unique(actors))
        for part in range(4):
            tested = np.isin(actors, order[part::4])
            rest = np.array([one for one in order if one not in order[part::4]])
            with tempfile.TemporaryDirectory() as work:
                held = {
                    f"s{i}": replace(site(X[here], target[here], actors[here]), workspace=Path(work) / str(i))
                    for i, here in enumerate(np.isin(actors, rest[i::3]) for i in range(3))
                }
                for name, settings in ADAPTERS.items():
                    score(name, train_adapter(PooledSums(held), mean, scale, settings).margins(X[tested]), tested)
                for name, rows in held.items():
                    alone = train_adapter(PooledSums({name: rows}), mean, scale, ADAPTERS["FedAvg"])
                    score("a site alone, as many rounds", alone.margins(X[tested]), tested)
                head = train_private(PooledSums(held), mean, scale, settings_for(None, len(names), 0))
                score("linear head", head.margins(standardised(X[tested], mean, scale)), tested)
    return [{"model": what, "AUC": f"{np.mean(found):.3f} ± {np.std(found, ddof=1):.3f}"} for what, found in scores.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for the feature tables")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    rav, sim, names = tables(given.data, given.work, given.workers)
    started = time.monotonic()
    noise = {f"epsilon {epsilon:g}": f"{noise_for_epsilon(epsilon, DELTA):.2f}" for epsilon in EPSILONS}
    found: dict[str, list[dict[str, object]]] = {"Noise multiplier by epsilon": [{"delta": DELTA} | noise]}
    rows = []
    for some in (NAMED, names):
        for row in of_people(sim, some, given.steps):
            rows.append(row)
            print(markdown([row], header=len(rows) == 1), flush=True)
    found["AUC, people drawn from simulated speakers"] = rows
    both = [(some, clip) for some in (NAMED, names) for clip in (False, True)]
    found["AUC, RAVDESS arousal"] = [of_ravdess(rav, sim, some, given.steps, clip_is_a_subject=clip) for some, clip in both]
    found["AUC, RAVDESS arousal, adapters"] = of_adapters(rav, sim, names)
    publish(found, given.json)
    print(f"\n{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
