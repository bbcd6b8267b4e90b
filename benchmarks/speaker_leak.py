"""How much a model gains by having heard the voice before: random folds against speaker-disjoint ones, everything else the same.

    python -m benchmarks.speaker_leak --corpus ravdess --data PATH/TO/ravdess
    python -m benchmarks.speaker_leak --corpus emodb --data PATH/TO/emodb

`train` refuses a split that shares a speaker. For the random rows every clip is therefore passed off as a person of its own, which is what a
random split does without saying so: folds, ridge strength and calibration then all mix speakers. Intervals are over the true speakers in both.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.emotion import EVERY_CLIP, SPLIT
from benchmarks.tables import markdown
from clinical_ser.cohorts.building import build_table
from clinical_ser.cohorts.corpora import get_corpus
from clinical_ser.cohorts.manifest import Manifest
from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.evaluation.evaluating import EvaluationOptions, evaluate
from clinical_ser.evaluation.evidence import Evidence
from clinical_ser.evaluation.predictions import of_training
from clinical_ser.models.training import TrainingOptions, train


def evidence_of(table: FeatureTable, split: int | str, head: str) -> Evidence:
    """Train and evaluate with the given split; subjects of the predictions are the true ones."""
    training = train(table, EVERY_CLIP, TrainingOptions(head=head, split=split, refits=2))
    predictions = of_training(training, name="benchmark", version="1")
    speaker = table.frame.set_index("row")["speaker"]
    frame = predictions.frame.assign(subject=predictions.frame["row"].map(speaker).to_numpy(str))
    return evaluate(replace(predictions, frame=frame), options=EvaluationOptions(by=(), replicates=1000))


def rows(table: FeatureTable, corpus: str, heads: tuple[str, ...]) -> list[dict[str, object]]:
    """One row a head and split."""
    named = replace(table, frame=table.frame.assign(speaker=table.frame["subject"]))
    # By samples, because RAVDESS holds one clip twice, and `train` refuses the same audio on both sides of a split.
    alone = replace(named, frame=named.frame.assign(subject=named.frame["recording"]))
    folds = table.frame["fold"].nunique() if SPLIT[corpus] == "fold" else table.frame["subject"].nunique()
    found = []
    for head in heads:
        for name, these, split in (("speaker-disjoint", named, SPLIT[corpus]), ("random", alone, int(folds))):
            evidence = evidence_of(these, split, head)
            figures = evidence.figures
            found.append(
                {
                    "corpus": corpus,
                    "head": head,
                    "folds": f"{folds}, {name}",
                    "UAR": str(figures["uar"]),
                    "accuracy": str(figures["accuracy"]),
                    "Brier": f"{figures['brier'].value:.3f}",
                }
            )
            print(markdown(found[-1:], header=len(found) == 1), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--corpus", choices=sorted(SPLIT), required=True)
    parser.add_argument("--heads", default="linear,xgboost")
    parser.add_argument("--cache", type=Path, default=None)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    frame = get_corpus(given.corpus).read(given.data)
    frame["row"] = np.arange(1, len(frame) + 1)
    table = build_table(Manifest(frame), workers=given.workers, cache=given.cache)
    found = rows(table, given.corpus, tuple(given.heads.split(",")))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
