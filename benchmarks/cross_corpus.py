"""Train on one corpus of acted emotions and test on the other, with the four emotions they share; within each corpus, by speaker, beside it.

python -m benchmarks.cross_corpus --ravdess PATH/TO/ravdess --emodb PATH/TO/emodb
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.emotion import EVERY_CLIP
from benchmarks.tables import markdown
from clinical_ser.cohorts.building import build_table
from clinical_ser.cohorts.corpora import get_corpus
from clinical_ser.cohorts.manifest import Manifest
from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.evaluation.evaluating import EvaluationOptions, evaluate
from clinical_ser.evaluation.evidence import EvaluatedModel, Evidence
from clinical_ser.evaluation.predictions import Predictions, of_training, predict
from clinical_ser.models.training import TrainingOptions, train

SHARED = {
    "angry": "anger",
    "anger": "anger",
    "happy": "happiness",
    "happiness": "happiness",
    "neutral": "neutral",
    "sad": "sadness",
    "sadness": "sadness",
}
"""What RAVDESS and EmoDB call the four emotions that EmoBox's cross-corpus table uses too."""
SPLIT = {"ravdess": 6, "emodb": "loso"}


def table_of(corpus: str, data: Path, cache: Path | None, workers: int) -> FeatureTable:
    """Measure a corpus and keep the shared emotions."""
    frame = get_corpus(corpus).read(data)
    frame["row"] = np.arange(1, len(frame) + 1)
    table = build_table(Manifest(frame), workers=workers, cache=cache)
    labels = table.frame["label"].map(SHARED)
    return replace(table, frame=table.frame.assign(label=labels)[labels.notna()].reset_index(drop=True))


def evidence_of(predictions: Predictions) -> Evidence:
    """Evaluate without groups."""
    return evaluate(predictions, options=EvaluationOptions(by=(), replicates=1000))


def row(trained: str, tested: str, head: str, evidence: Evidence) -> dict[str, object]:
    """One row of the table."""
    figures = evidence.figures
    return {
        "trained on": trained,
        "tested on": tested,
        "head": head,
        "UAR": str(figures["uar"]),
        "accuracy": str(figures["accuracy"]),
        "recalls": ", ".join(f"{name} {figures[f'recall.{name}'].value:.2f}" for name in evidence.task.classes),
        "calibration slope": str(figures["calibration_slope"]),
        "speakers": evidence.flow.subjects,
        "clips": evidence.flow.evaluated,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ravdess", type=Path, required=True)
    parser.add_argument("--emodb", type=Path, required=True)
    parser.add_argument("--heads", default="linear,xgboost")
    parser.add_argument("--cache", type=Path, default=None)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    tables = {name: table_of(name, getattr(given, name), given.cache, given.workers) for name in SPLIT}
    found = []
    for head in given.heads.split(","):
        for name, other in (("ravdess", "emodb"), ("emodb", "ravdess")):
            training = train(tables[name], EVERY_CLIP, TrainingOptions(head=head, split=SPLIT[name], refits=2))
            elsewhere = predict(training.model, tables[other], EvaluatedModel(name=name, version="1"))
            within = of_training(training, name=name, version="1")
            for tested, predictions in ((f"{name}, speakers not heard", within), (other, elsewhere)):
                found.append(row(name, tested, head, evidence_of(predictions)))
                print(markdown(found[-1:], header=len(found) == 1), flush=True)
    if given.json:
        given.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
