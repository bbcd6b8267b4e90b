"""A small network trained on the waveforms of each fold's training actors: RAVDESS on EmoBox's six speaker-disjoint folds.

    python -m benchmarks.neural_folds PATH/TO/ravdess
    python -m benchmarks.neural_folds PATH/TO/ravdess --network crnn --seeds 0,1 --epochs 45 --precision bfloat16 --out FILE.npz

A fold's test actors are heard once, by the finished network: they take no part in normalisation, stopping or the choice of a recipe. Several
seeds together answer by the sum of their log-probabilities. Intervals are over speakers. FILE.npz holds, a clip of the sorted corpus each, `row`,
`label`, `subject`, `fold` and `log_probabilities` (seeds, clips, classes), and `classes` and `seeds`.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import log_softmax

from benchmarks.tables import markdown
from clinical_ser.audio import load
from clinical_ser.cohorts.corpora import get_corpus
from clinical_ser.cohorts.splits import Fold, official
from clinical_ser.evaluation.discrimination import Confusion, unweighted_average_recall_of
from clinical_ser.evaluation.intervals import bootstrap
from clinical_ser.neural.networks import NetworkShape
from clinical_ser.neural.training import TrainingRecipe, log_probabilities, train_network

CORPUS = "ravdess"
NETWORKS = {
    "cnn": NetworkShape(),
    # Another view of the same clips: harmonics are told apart (a window of 64 ms), and order in time is learned.
    "crnn": NetworkShape(window=1024, hop=512, time_pools=1, recurrent=True),
}


def out_of_fold(frame: pd.DataFrame, classes: Sequence[str], folds: Sequence[Fold], recipe: TrainingRecipe, seed: int) -> NDArray[np.float64]:
    """Train on every fold; NaN for clips of folds that were left out."""
    waves = [load(path).samples for path in frame["path"]]
    labels = frame["label"].tolist()
    found = np.full((len(frame), len(classes)), np.nan)
    for fold in folds:
        started, cpu = time.perf_counter(), time.process_time()
        network = train_network([waves[row] for row in fold.train], [labels[row] for row in fold.train], classes, recipe, seed)
        found[fold.test] = log_probabilities(network, [waves[row] for row in fold.test])
        heard = pd.Series(labels).iloc[fold.test]
        right = np.asarray(classes)[found[fold.test].argmax(axis=1)] == heard
        minutes = f"{(time.perf_counter() - started) / 60:.1f} min, {(time.process_time() - cpu) / 60:.1f} of them CPU"
        print(f"seed {seed}, {fold.name}: UAR {right.groupby(heard).mean().mean():.3f} ({minutes})", flush=True)
    return found


def described(name: str, frame: pd.DataFrame, classes: Sequence[str], answers: NDArray[np.float64]) -> dict[str, object]:
    """One row: UAR over all clips that were answered, with its interval over speakers."""
    rows = np.flatnonzero(np.isfinite(answers).all(axis=1))
    codes = pd.Categorical(frame["label"], categories=classes).codes[rows]
    subjects = frame["subject"].to_numpy()[rows]
    confusion = Confusion(codes, answers[rows].argmax(axis=1), len(classes))
    drawn = bootstrap(lambda weight: np.array([unweighted_average_recall_of(confusion.matrix(weight))]), subjects)
    low, high = drawn.interval(0, subjects=len(set(subjects)), share=True)
    nll = -answers[rows, codes].mean()
    return {"network": name, "clips": len(rows), "UAR": f"{drawn.values[0]:.3f} ({low:.3f} to {high:.3f})", "log loss": f"{nll:.3f}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--network", choices=sorted(NETWORKS), default="cnn")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--folds", default=None, help="those to run, 1 to 6, by default all")
    parser.add_argument("--epochs", type=int, default=TrainingRecipe().epochs)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    corpus = get_corpus(CORPUS)
    frame = corpus.read(given.data)
    folds = official(frame["fold"], frame["subject"])
    if given.folds:
        folds = tuple(folds[int(number) - 1] for number in given.folds.split(","))
    recipe = replace(TrainingRecipe(), shape=NETWORKS[given.network], epochs=given.epochs, precision=given.precision)
    seeds = [int(seed) for seed in given.seeds.split(",")]
    found = np.stack([out_of_fold(frame, corpus.classes, folds, recipe, seed) for seed in seeds])
    rows = [described(f"{given.network}, seed {seed}", frame, corpus.classes, answers) for seed, answers in zip(seeds, found, strict=True)]
    if len(seeds) > 1:
        rows.append(described(f"{given.network}, seeds together", frame, corpus.classes, log_softmax(found.sum(axis=0), axis=1)))
    print(markdown(rows))
    if given.out:
        columns = {name: frame[name].to_numpy(str) for name in ("label", "subject", "fold")}
        np.savez(given.out, row=np.arange(len(frame)), log_probabilities=found, classes=np.array(corpus.classes), seeds=np.array(seeds), **columns)


if __name__ == "__main__":
    main()
