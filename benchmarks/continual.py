"""What updates, recalibration, forgetting a person and recordings without labels come to, on people whose truth is known.

    python -m benchmarks.continual [--table TABLE] [--repetitions 100] [--json OUT]

People are made of numbers, and every feature matters a little. TABLE is a feature table of simulated speakers with several devices
(`benchmarks.forgetting` makes microphones.parquet); with it, recordings without labels are tried on features of speech.
"""

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from benchmarks.tables import publish
from clinical_ser.audio.quality import QualityMeasures
from clinical_ser.cohorts.gating import quality_columns
from clinical_ser.cohorts.table import FeatureTable, read_table
from clinical_ser.cohorts.tasks import get_task
from clinical_ser.continual.linear import Loss, Rows
from clinical_ser.continual.memory import memory_of
from clinical_ser.continual.posterior import Posterior, minimise
from clinical_ser.continual.recalibration import justified
from clinical_ser.continual.self_training import update_with_unlabelled
from clinical_ser.continual.unlearning import Contributions, forget, model_of
from clinical_ser.features.extraction import feature_names, fingerprints
from clinical_ser.models.rows import Rows as TableRows
from clinical_ser.models.rows import select_rows
from clinical_ser.models.trained import TrainedModel
from clinical_ser.models.training import TrainingOptions, train

DEPRESSION = get_task("depression")
SETS = ("praat", "timing")
GOOD = QualityMeasures(40.0, 30.0, 0.6, 45.0, False, 0.0, 8000.0, -25.0, "pcm_s16", None, 0.0, 0.0, 0.0, True)


def people(count: int, rng: np.random.Generator, *, spread: float, strength: float = 1.0, offset: float = -0.5) -> FeatureTable:
    """Return people whose log-odds are a sum over all features, effects N(0, spread²) that are the same in every call."""
    names = feature_names(SETS)
    effects = np.random.default_rng(11).normal(scale=spread, size=len(names))
    X = rng.normal(size=(count, len(names)))
    ill = rng.uniform(size=count) < expit(strength * X @ effects + offset)
    frame = pd.DataFrame({"row": np.arange(1, count + 1), "subject": [f"{rng.integers(2**62):x}" for _ in range(count)]})
    frame["recording"] = [f"{rng.integers(2**62):064x}" for _ in range(count)]
    frame["label"] = np.where(ill, "depressed", "not_depressed")
    frame = pd.concat([frame, quality_columns([GOOD] * count), pd.DataFrame(X, columns=list(names))], axis=1)
    return FeatureTable(frame, names, fingerprints(SETS))


def in_steps_and_at_once(repetitions: int) -> list[dict[str, object]]:
    """Return how far an update is from training on all people, in posterior SD, by number of people."""
    found = []
    ridge = np.append(np.full(20, 10.0), 0.0)
    for n in (100, 400, 1600, 6400, 25600):
        away = []
        for seed in range(max(2, min(repetitions, 40 * 400 // n))):
            rng = np.random.default_rng([seed, n])
            Z, effects = rng.normal(size=(2 * n, 20)), rng.normal(scale=0.3, size=20)
            y = (rng.uniform(size=2 * n) < expit(Z @ effects - 0.5)).astype(np.int64)

            def loss(i: NDArray[np.int64], Z: NDArray[np.float64] = Z, y: NDArray[np.int64] = y) -> Loss:
                return Loss(Rows(Z[i], y[i], np.ones(len(i))), 2)

            _, first = minimise(loss(np.arange(n)), Posterior.nothing(ridge), np.zeros(21))
            steps, _ = minimise(loss(np.arange(n, 2 * n)), first)
            alone, _ = minimise(loss(np.arange(n, 2 * n)), Posterior.nothing(ridge), np.zeros(21))
            whole, posterior = minimise(loss(np.arange(2 * n)), Posterior.nothing(ridge), np.zeros(21))
            sd = np.sqrt(np.diag(posterior.covariance))
            away.append([np.abs((one - whole) / sd).max() for one in (steps, alone)])
        mean = np.mean(away, axis=0)
        found.append({"people then, and now": n, "update": f"{mean[0]:.3f}", "the new people alone": f"{mean[1]:.2f}", "repetitions": len(away)})
    return found


def steps_justified(repetitions: int) -> list[dict[str, object]]:
    """Return which step is found, by what is true; champions of 600 people, 300 new ones."""
    worlds = {
        "nothing changed": {},
        "prevalence: log-odds -1": {"offset": -1.5},
        "prevalence: log-odds +1": {"offset": 0.5},
        "signal half as strong": {"strength": 0.5},
        "both": {"strength": 0.5, "offset": -1.5},
    }
    counts: dict[str, Counter[str]] = {name: Counter() for name in worlds}
    gains: dict[str, int] = dict.fromkeys(worlds, 0)
    for seed in range(repetitions):
        table = people(600, np.random.default_rng([seed, 1]), spread=0.25)
        model = train(table, DEPRESSION, TrainingOptions(refits=2, seed=seed)).model
        memory = memory_of(model, _rows(model, table))
        for place, (name, changed) in enumerate(worlds.items()):
            new = people(300, np.random.default_rng([seed, 2, place]), spread=0.25, **changed)
            counts[name][justified(model, None, new).step] += 1
            if seed < repetitions // 4:
                gains[name] += justified(model, memory, new).step == "full"
    tried = max(1, repetitions // 4)
    return [
        {"truth": name}
        | {step: f"{100 * counts[name][step] / repetitions:.0f} %" for step in ("none", "intercept", "slope")}
        | {"a full update gains": f"{gains[name]} of {tried}"}
        for name in worlds
    ]


def person_taken_out(repetitions: int) -> list[dict[str, object]]:
    """Return how much nearer a model that forgot a person is to the one that never heard them, by number of people."""
    found = []
    for n in (50, 200, 800):
        ratios = []
        for seed in range(max(3, repetitions // 10)):
            table = people(n, np.random.default_rng([seed, 3]), spread=0.25)
            model = train(table, DEPRESSION, TrainingOptions(refits=2, seed=seed)).model
            rows = _rows(model, table)
            memory = memory_of(model, rows)
            kept = Contributions.of(model, memory, rows, rows.subjects.tolist())
            for person in range(3):
                gone = rows.subjects[person]
                freed, _ = model_of(model, forget(memory, model, kept.of_people({gone}), ()), secret=b"")
                others = rows.subjects != gone
                labels = np.array(model.task.classes)[rows.target[others]]
                never = model.head.settled().fit(model.preprocessor.transform(rows.X)[others], labels)
                ratios.append(np.linalg.norm(freed.head.coef_ - never.coef_) / np.linalg.norm(model.head.coef_ - never.coef_))
        low, middle, high = np.quantile(ratios, [0.05, 0.5, 0.95])
        found.append({"people": n, "distance left": f"{100 * middle:.1f} % ({100 * low:.1f} to {100 * high:.1f})", "persons": len(ratios)})
    return found


def without_labels(table: FeatureTable, repetitions: int) -> list[dict[str, object]]:
    """Return what recordings without labels save, by number of labelled people; a champion of one device, new people of the others."""
    found = []
    first = table.frame["device"].value_counts().index[0]
    for labelled in (20, 40):
        for weight in (0.25, 1.0):
            used, saved, offered = 0, [], 0
            for seed in range(max(4, repetitions // 10)):
                rng = np.random.default_rng([seed, labelled])
                old = table.frame[table.frame["device"] == first]
                new = table.frame[table.frame["device"] != first]
                people_of_new = rng.permutation(new["subject"].unique())
                known = new["subject"].isin(people_of_new[:labelled])
                old = old[~old["subject"].isin(set(new["subject"]))]
                champion = _of(table, old)
                model = train(champion, DEPRESSION, TrainingOptions(refits=2, seed=seed, without=("embedding",))).model
                memory = memory_of(model, _rows(model, champion))
                _, intake = update_with_unlabelled(model, memory, _of(table, new[known]), _of(table, new[~known]), weight)
                used, offered = used + intake.used, intake.offered
                saved.append(intake.gain.value)
            mean, error = np.mean(saved), np.std(saved, ddof=1) / np.sqrt(len(saved))
            found.append(
                {
                    "labelled people": labelled,
                    "without label": offered,
                    "weight at most": weight,
                    "saved, nats a person": f"{mean:+.4f} ± {error:.4f}",
                    "used": f"{used} of {len(saved)}",
                }
            )
    return found


def _rows(model: TrainedModel, table: FeatureTable) -> TableRows:
    return select_rows(table, model.task, model.features, use_baseline=False, used_as="learned from").rows


def _of(table: FeatureTable, frame: pd.DataFrame) -> FeatureTable:
    return replace(table, frame=frame.reset_index(drop=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tables = {
        "update, largest difference of a coefficient to training on all, in posterior SD": in_steps_and_at_once(options.repetitions),
        "step found": steps_justified(options.repetitions),
        "a person taken out: distance to the model that never heard them": person_taken_out(options.repetitions),
    }
    if options.table:
        tables["recordings without labels"] = without_labels(read_table(options.table), options.repetitions)
    publish(tables, options.json)


if __name__ == "__main__":
    main()
