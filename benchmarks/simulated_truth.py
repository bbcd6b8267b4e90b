"""What we estimate against what generated it: simulated cohorts of known risk.

    python -m benchmarks.simulated_truth --data FOLDER [--subjects 300] [--effect-scale 1]

Trains on one simulated cohort and tests on another of the same world, each way round. Prints AUC beside the best reachable one, calibration of the
stated probabilities against outcomes and against each speaker's true probability, coverage of prediction sets, and how often the interval holds the
truth.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import spearmanr

from benchmarks.tables import markdown
from clinical_ser.cohorts.building import build_table
from clinical_ser.cohorts.manifest import read_manifest
from clinical_ser.cohorts.simulation import DEMO_EFFECT_SCALE, SimulatedCohort, simulate
from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.cohorts.tasks import DEPRESSION
from clinical_ser.evaluation.evaluating import EvaluationOptions, evaluate
from clinical_ser.evaluation.evidence import EvaluatedModel, Evidence
from clinical_ser.evaluation.predictions import predict
from clinical_ser.models.rows import select_rows
from clinical_ser.models.trained import TrainedModel
from clinical_ser.models.training import TrainingOptions, train


def cohort(folder: Path, subjects: int, seed: int, effect_scale: float, workers: int) -> tuple[SimulatedCohort, FeatureTable]:
    """Simulate and extract."""
    made = simulate(subjects, folder / f"cohort-{seed}-{subjects}-{effect_scale:g}", seed=seed, effect_scale=effect_scale, workers=workers)
    return made, build_table(read_manifest(made.manifest), workers=workers, cache=folder / "cache")


def measure(model: TrainedModel, table: FeatureTable, best: float, head: str) -> dict[str, object]:
    """Figures of a model on a cohort it has not heard."""
    predictions = predict(model, table, EvaluatedModel(name=head, version="1", simulated=True))
    evidence = evaluate(predictions, options=EvaluationOptions(by=(), replicates=500))
    figures, frame = evidence.figures, predictions.frame
    truth, log_odds = frame["true_probability"].to_numpy(float), predictions.log_odds
    reachable = next(comparison for comparison in evidence.comparisons if comparison.kind == "best_reachable")
    X = select_rows(table, DEPRESSION, model.features, use_baseline=False, used_as="evaluated").rows.X
    answers = [model.answer(x, prevalence=model.class_shares[1]) for x in X]
    low, high = (np.array([getattr(answer, side)[1] for answer in answers]) for side in ("low", "high"))
    return {
        "head": head,
        "AUC": str(figures["auroc"]),
        "best reachable": f"{best:.3f}",
        "of the true probabilities here": f"{reachable.other.value:.3f}",
        "calibration intercept": str(figures["calibration_intercept"]),
        "slope": str(figures["calibration_slope"]),
        "rank correlation with the true probability": f"{spearmanr(log_odds, truth).statistic:.3f}",
        "interval holds the mean truth at its score": f"{holds(low, high, log_odds, truth):.2f}",
        "coverage, negatives": f"{figures['coverage.not_depressed'].value:.2f}",
        "coverage, positives": f"{figures['coverage.depressed'].value:.2f}",
        "answered": f"{figures['answered'].value:.2f}",
        "ill: flagged, not flagged, no answer": answered(evidence, "depressed"),
        "well: flagged, not flagged, no answer": answered(evidence, "not_depressed"),
    }


def answered(evidence: Evidence, label: str) -> str:
    """Shares of the three answers among one class."""
    return ", ".join(f"{evidence.figures[f'{status}.{label}'].value:.2f}" for status in ("flagged", "not_flagged", "indeterminate"))


def holds(low: NDArray[np.float64], high: NDArray[np.float64], log_odds: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    """Share of recordings whose interval holds the mean true probability of the recordings with about the same score (a running mean over 15 %)."""
    order = np.argsort(log_odds)
    window = max(10, int(0.15 * len(order)))
    local = pd.Series(truth[order]).rolling(window, center=True, min_periods=window // 2).mean().to_numpy()
    return float(np.mean((low[order] <= local) & (local <= high[order])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Folder for the simulated cohorts.")
    parser.add_argument("--subjects", type=int, default=300)
    parser.add_argument("--effect-scale", type=float, default=DEMO_EFFECT_SCALE)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    made = [cohort(given.data, given.subjects, seed, given.effect_scale, given.workers) for seed in (1, 2)]
    rows = []
    for (_, table), (known, unseen) in (made, made[::-1]):
        models = {head: train(table, DEPRESSION, TrainingOptions(head=head)).model for head in ("linear", "xgboost")}
        rows += [measure(model, unseen, known.best_reachable_auc, head) for head, model in models.items()]
    print(markdown(rows))
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
