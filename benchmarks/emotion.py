"""Emotion on real speech with subjects kept apart: RAVDESS on EmoBox's six folds, EmoDB leaving one speaker out.

    python -m benchmarks.emotion --corpus ravdess --data PATH/TO/ravdess
    python -m benchmarks.emotion --corpus emodb --data PATH/TO/emodb

Each row is the product's own training (nested: strength, calibration and sets by subject); UAR with its interval over speakers. "own
baseline": features less the mean of two neutral clips of the same speaker, which are not scored. "speaker z" is transductive (it uses all of a
test speaker's unlabelled, class-balanced clips) and stands only beside published rows that do the same. The rows without the baseline clips are
the ones that a baseline is compared with.
"""

import argparse
import json
import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.tables import markdown
from clinical_ser.audio import GateLimits
from clinical_ser.cohorts.building import build_table
from clinical_ser.cohorts.corpora import get_corpus
from clinical_ser.cohorts.manifest import Manifest
from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.cohorts.tasks import EMOTION
from clinical_ser.evaluation.evaluating import EvaluationOptions, evaluate
from clinical_ser.evaluation.predictions import of_training
from clinical_ser.features import catalogue
from clinical_ser.models.training import TrainingOptions, train

EVERY_CLIP = EMOTION.model_copy(
    update={"limits": GateLimits(speech_fail_s=0, speech_warn_s=0, voiced_fail=0, level_fail_dbfs=-120, snr_fail_db=-120)}
)
"""Published tables score every clip, so the gate refuses none here (it would refuse 14 of RAVDESS, too quiet); single features it still hides."""
SPLIT = {"ravdess": "fold", "emodb": "loso"}
SETS = {"eGeMAPS": ("egemaps",), "eGeMAPS + Praat + timing": ("egemaps", "praat", "timing"), "ComParE": ("compare",)}


def measure(table: FeatureTable, corpus: str, heads: tuple[str, ...]) -> Iterator[dict[str, object]]:
    """Train every variant and yield its figures."""
    for features, sets in SETS.items():
        chosen = only(table, sets)
        for head in heads:
            if features == "ComParE":  # 6,373 features take minutes a row; one row tells how they compare
                if head == "linear":
                    yield run(chosen, corpus, features, head, "none", baseline=False)
                continue
            marked = with_baseline(chosen)
            rest = replace(chosen, frame=chosen.frame[~marked.frame["baseline"]].reset_index(drop=True))
            yield run(chosen, corpus, features, head, "none", baseline=False)
            yield run(rest, corpus, features, head, "none, without the baseline clips", baseline=False)
            yield run(marked, corpus, features, head, "own baseline", baseline=True)
            yield run(speaker_z(chosen), corpus, features, head, "speaker z", baseline=False)


def run(table: FeatureTable, corpus: str, features: str, head: str, speaker: str, *, baseline: bool) -> dict[str, object]:
    """Train and describe one row of the table."""
    started = time.process_time()
    training = train(table, EVERY_CLIP, TrainingOptions(head=head, split=SPLIT[corpus], refits=2, use_baseline=baseline))
    found = evaluate(of_training(training, name=corpus, version="1"), options=EvaluationOptions(by=(), replicates=1000)).figures
    return {
        "features": features,
        "head": head,
        "speaker information": speaker,
        "UAR": str(found["uar"]),
        "accuracy": f"{found['accuracy'].value:.3f}",
        "Brier": f"{found['brier'].value:.3f}",
        "answered": f"{found['answered'].value:.2f}",
        "rows": len(training.out_of_fold),
        "CPU s": round(time.process_time() - started),
    }


def only(table: FeatureTable, sets: Collection[str]) -> FeatureTable:
    """Keep the features of some sets."""
    names = tuple(name for name in table.feature_names if catalogue.get(name).set in sets)
    return replace(table, feature_names=names)


def with_baseline(table: FeatureTable) -> FeatureTable:
    """Mark two neutral clips of each speaker, of two sentences."""
    frame = table.frame.copy()
    sentence = "statement" if "statement" in frame else "text"
    neutral = frame[frame["label"] == "neutral"].sort_values("row")
    one_each = neutral.groupby(["subject", sentence]).head(1)
    frame["baseline"] = frame.index.isin(one_each.groupby("subject").head(2).index)
    return replace(table, frame=frame)


def speaker_z(table: FeatureTable) -> FeatureTable:
    """Standardise each feature within each speaker (transductive)."""
    frame, names = table.frame.copy(), list(table.feature_names)
    by_speaker = frame.groupby("subject")[names]
    spread = by_speaker.transform("std")
    frame[names] = (frame[names] - by_speaker.transform("mean")) / spread.where(spread > 0, 1.0)
    return replace(table, frame=frame)


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
    table = build_table(Manifest(frame), sets=("egemaps", "praat", "timing", "compare"), workers=given.workers, cache=given.cache)
    rows = []
    for row in measure(table, given.corpus, tuple(given.heads.split(","))):
        rows.append(row)
        print(markdown([row], header=len(rows) == 1), flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
