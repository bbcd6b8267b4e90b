"""How long the whole evidence of a large cohort takes, and how much memory: 10,000 subjects of 5 recordings, 2,000 bootstrap samples.

    python -m benchmarks.evaluation_speed [--subjects 10000] [--recordings 5] [--replicates 200,2000] [--workers 2]

Predictions are made of numbers (calibrated, a random effect a subject). "overall": every figure and curve; "with groups": also by sex, age band,
site and device. Each row of the table is a process of its own, so that its peak memory is its own.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit

from benchmarks.tables import markdown
from clinical_ser.cohorts.tasks import DEPRESSION
from clinical_ser.evaluation.evaluating import EvaluationOptions, evaluate
from clinical_ser.evaluation.evidence import EvaluatedModel
from clinical_ser.evaluation.predictions import Predictions

GROUPS = {"overall": (), "with groups": ("sex", "age_band", "site", "device")}


def made(subjects: int, recordings: int, seed: int = 0) -> Predictions:
    """Calibrated predictions with a random effect a subject."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(subjects), recordings)
    log_odds = rng.normal(-1.2, 1.0, subjects)[who] + rng.normal(0, 0.4, len(who))
    p = expit(log_odds)
    risk = np.bincount(who, p) / recordings
    truth = np.where((rng.uniform(size=subjects) < risk)[who], "depressed", "not_depressed")
    frame = pd.DataFrame(
        {
            "row": np.arange(1, len(who) + 1),
            "recording": [f"{i:064x}" for i in range(len(who))],
            "subject": [f"s{i:06d}" for i in who],
            "label": truth,
            "sex": np.where(who % 2 == 0, "female", "male"),
            "age": 18.0 + who % 65,
            "site": [f"site {i % 5}" for i in who],
            "device": [f"device {i % 3}" for i in range(len(who))],
            "status": np.where(p > 0.5, "flagged", np.where(p < 0.2, "not_flagged", "indeterminate")),
            "covered": np.where(truth == "depressed", p >= 0.2, p <= 0.5),
            "log_odds": log_odds,
            "above": p >= 0.25,
            "probability.not_depressed": 1 - p,
            "probability.depressed": p,
        }
    )
    return Predictions(
        task=DEPRESSION,
        origin="external",
        model=EvaluatedModel(name="made", version="1"),
        frame=frame,
        refused=frame.iloc[:0],
        counts={"given": len(frame), "evaluated": len(frame)},
        gate_failures={},
        threshold=float(np.log(0.25 / 0.75)),
        stated_prevalence=0.25,
        coverage=0.9,
        simulated=True,
    )


def measure(subjects: int, recordings: int, replicates: int, workers: int, groups: str) -> dict[str, object]:
    """Evaluate once in this process."""
    predictions = made(subjects, recordings)
    started = time.perf_counter()
    evidence = evaluate(predictions, options=EvaluationOptions(by=GROUPS[groups], replicates=replicates, workers=workers))
    wall_s = time.perf_counter() - started
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures = len(evidence.figures) + sum(len(group.figures) for group in evidence.groups)
    return {
        "subjects x recordings": f"{subjects:,} x {recordings}",
        "what": groups,
        "figures": figures,
        "replicates": replicates,
        "workers": workers,
        "wall s": round(wall_s, 1),
        "peak MiB (main process)": peak_kib // 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=10_000)
    parser.add_argument("--recordings", type=int, default=5)
    parser.add_argument("--replicates", default="200,2000")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--one", nargs=2, metavar=("REPLICATES", "WHAT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        replicates, groups = given.one
        print(json.dumps(measure(given.subjects, given.recordings, int(replicates), given.workers, groups)))
        return
    rows = []
    for groups in GROUPS:
        for replicates in given.replicates.split(","):
            words = [sys.executable, "-m", "benchmarks.evaluation_speed", "--one", replicates, groups]
            sizes = ["--subjects", str(given.subjects), "--recordings", str(given.recordings), "--workers", str(given.workers)]
            rows.append(json.loads(subprocess.run([*words, *sizes], check=True, capture_output=True, text=True).stdout))
            print(markdown(rows[-1:], header=len(rows) == 1), flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
