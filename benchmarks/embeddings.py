"""Embeddings beside interpretable features on real emotional speech: RAVDESS on EmoBox's six folds, EmoDB leaving one speaker out.

    python -m benchmarks.embeddings --corpus ravdess --data PATH/TO/ravdess [--table FILE.parquet] [--neural cnn=FILE.npz ...]
    python -m benchmarks.embeddings --corpus emodb --data PATH/TO/emodb

Rows are the product's own training, nested by subject; UAR with its interval over speakers. "own baseline": everything less the mean of two neutral
clips of the same speaker, which are not scored, beside a row without those clips and without the baseline. `--neural` takes what
`benchmarks.neural_folds --out` wrote: a network trained inside each fold. Rows of several models add up their log-probabilities, every model counting
alike, decided beforehand. Encoders are those that are installed, and openSMILE's ComParE.
"""

import argparse
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.emotion import EVERY_CLIP, SPLIT, only, with_baseline
from benchmarks.tables import publish
from clinical_ser.cohorts.building import build_table
from clinical_ser.cohorts.corpora import get_corpus
from clinical_ser.cohorts.manifest import Manifest
from clinical_ser.cohorts.table import FeatureTable, read_table, write_table
from clinical_ser.embeddings import list_encoders
from clinical_ser.evaluation.discrimination import Confusion, unweighted_average_recall_of
from clinical_ser.evaluation.intervals import bootstrap
from clinical_ser.features.extraction import ENCODER
from clinical_ser.models.training import FUSIONS, TrainingOptions, train

INTERPRETABLE = ("egemaps", "praat", "timing")
LEAST = 1e-12


@dataclass(frozen=True, eq=False)
class Answers:
    """Out-of-fold log-probabilities of one model, aligned with the corpus."""

    rows: NDArray[np.intp]
    log_p: NDArray[np.float64]
    seconds: float


def of_model(table: FeatureTable, corpus: str, *, baseline: bool = False, fusion: str = "late") -> Answers:
    """Train on every fold with the product's own training."""
    started = time.process_time()
    options = TrainingOptions(split=SPLIT[corpus], refits=2, use_baseline=baseline, fusion=fusion)
    told = train(table, EVERY_CLIP, options).out_of_fold
    classes = get_corpus(corpus).classes
    p = np.column_stack([told[f"probability.{label}"] for label in classes])
    return Answers(told["row"].to_numpy(np.intp) - 1, np.log(np.maximum(p, LEAST)), time.process_time() - started)


def of_file(path: Path, corpus: str) -> Answers:
    """Read what a network trained inside each fold said; several seeds count as one model, their mean."""
    with np.load(path, allow_pickle=False) as held:
        order = [held["classes"].tolist().index(label) for label in get_corpus(corpus).classes]
        log_p = held["log_probabilities"].reshape(-1, *held["log_probabilities"].shape[-2:]).mean(axis=0)[:, order]
    return Answers(np.arange(len(log_p)), log_p, 0.0)


def together(models: list[Answers]) -> Answers:
    """Add up log-probabilities over the clips that all models answered."""
    rows = sorted(set.intersection(*(set(model.rows.tolist()) for model in models)))
    log_p = sum(model.log_p[np.searchsorted(model.rows, rows)] for model in models)
    return Answers(np.array(rows), np.asarray(log_p), sum(model.seconds for model in models))


def described(what: str, speaker: str, frame: pd.DataFrame, corpus: str, answers: Answers) -> dict[str, object]:
    """One row of the table."""
    classes = get_corpus(corpus).classes
    codes = pd.Categorical(frame["label"], categories=classes).codes[answers.rows]
    subjects = frame["subject"].to_numpy()[answers.rows]
    confusion = Confusion(codes, answers.log_p.argmax(axis=1), len(classes))
    drawn = bootstrap(lambda weight: np.array([unweighted_average_recall_of(confusion.matrix(weight))]), subjects)
    low, high = drawn.interval(0, subjects=len(set(subjects)), share=True)
    return {
        "model": what,
        "speaker information": speaker,
        "UAR": f"{100 * drawn.values[0]:.1f} ({100 * low:.1f} to {100 * high:.1f})",
        "clips": len(answers.rows),
        "CPU s": round(answers.seconds),
    }


def measure(table: FeatureTable, corpus: str, neural: Mapping[str, Answers]) -> Iterator[dict[str, object]]:
    """Yield the rows, models by themselves first."""
    frame = table.frame
    encoders = [name for name in table.extractors if name.startswith("embedding.")]
    short = {name: name.removeprefix("embedding.") for name in encoders}
    alone = {"interpretable": of_model(only(table, INTERPRETABLE), corpus)}
    alone |= {short[name]: of_model(only(table, {name}), corpus) for name in encoders} | neural
    for what, answers in alone.items():
        trained = "none; trained in the fold" if what in neural else "none"
        yield described(what, trained, frame, corpus, answers)
    learned = [name for name in encoders if short[name] != "compare"]
    for chosen in (
        *((one,) for one in learned),
        *([tuple(learned)] if len(learned) > 1 else []),
    ):
        fused = only(table, {*INTERPRETABLE, *chosen})
        for fusion in FUSIONS if len(chosen) == 1 else ("late",):
            what = " + ".join(["interpretable", *(short[name] for name in chosen)])
            yield described(f"{what}, {fusion} fusion", "none", frame, corpus, of_model(fused, corpus, fusion=fusion))
    for names in _sums([short[name] for name in learned], list(neural)):
        yield described("sum of " + ", ".join(names), "none", frame, corpus, together([alone[name] for name in names]))
    marked = with_baseline(table)
    rest = replace(table, frame=table.frame[~marked.frame["baseline"]].reset_index(drop=True))
    for what, sets in (
        ("interpretable", INTERPRETABLE),
        *((short[n], (n,)) for n in learned),
        *((f"interpretable + {short[n]}", (*INTERPRETABLE, n)) for n in learned),
    ):
        yield described(what, "none, without the baseline clips", frame, corpus, of_model(only(rest, sets), corpus))
        yield described(what, "own baseline", frame, corpus, of_model(only(marked, sets), corpus, baseline=True))


def _sums(learned: list[str], neural: list[str]) -> list[tuple[str, ...]]:
    """Return the sums that were decided on beforehand: what research measured, then with every encoder, then with everything."""
    sums = [("ge2e", *neural), ("compare", "ge2e", *neural), tuple(learned), (*learned, *neural), ("interpretable", "compare", *learned, *neural)]
    return [names for names in dict.fromkeys(sums) if len(names) > 1]


def speakers(table: FeatureTable) -> Iterator[dict[str, object]]:
    """Yield how often a vector tells which of the corpus's speakers it is, with other clips of each to learn from."""
    subjects = table.frame["subject"].to_numpy()
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    for name in (*INTERPRETABLE, *(name for name in table.extractors if name.startswith("embedding."))):
        told = make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
        right = cross_val_score(told, only(table, {name}).features, subjects, cv=folds).mean()
        yield {"vector": name, "speakers": len(set(subjects)), "told apart": f"{100 * right:.1f} %"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--corpus", choices=sorted(SPLIT), required=True)
    parser.add_argument("--neural", action="append", default=[], metavar="NAME=FILE", help="what benchmarks.neural_folds wrote")
    parser.add_argument("--table", type=Path, default=None, help="keep the feature table here, and use it if it is there")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    if given.table and given.table.exists():
        table = read_table(given.table)
    else:
        frame = get_corpus(given.corpus).read(given.data)
        frame["row"] = np.arange(1, len(frame) + 1)
        encoders = [f"{ENCODER}{entry.name}" for entry in list_encoders()]
        table = build_table(Manifest(frame), sets=(*INTERPRETABLE, *encoders, f"{ENCODER}compare"), workers=given.workers)
        if given.table:
            write_table(table, given.table)
    neural = {name: of_file(Path(path), given.corpus) for name, _, path in (one.partition("=") for one in given.neural)}
    found = {f"{given.corpus}, {len(table.frame)} clips": list(measure(table, given.corpus, neural))}
    publish(found | {"Who is speaking, from one vector": list(speakers(table))}, given.json)


if __name__ == "__main__":
    main()
