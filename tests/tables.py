"""Feature tables with a known truth, made of numbers alone: what training and screening are tested on without any audio."""

import hashlib

import numpy as np
import pandas as pd
from scipy.special import expit

from clinical_ser.audio.quality import QualityMeasures
from clinical_ser.cohorts.gating import quality_columns
from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.features.extraction import feature_names, fingerprints

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
SETS = ("praat", "timing")


def table_of(
    subjects: int = 200,
    *,
    rows_each: int = 1,
    seed: int = 0,
    effect: float = 1.5,
    quality: list[QualityMeasures] | None = None,
    sets: tuple[str, ...] = SETS,
) -> FeatureTable:
    """Make a table in which the pause and the pitch move the risk; column `truth` is each row's true log-odds."""
    rng = np.random.default_rng(seed)
    n = subjects * rows_each
    names = feature_names(sets)
    who = np.repeat(np.arange(subjects), rows_each)
    trait = rng.normal(size=(subjects, len(names)))
    X = trait[who] + 0.3 * rng.normal(size=(n, len(names)))
    of_pause, of_pitch = names.index("timing.pause_mean_s"), names.index("praat.f0_median_hz")
    truth = effect * trait[:, of_pause] - effect * trait[:, of_pitch] - 0.5
    ill = rng.uniform(size=subjects) < expit(truth)
    frame = pd.DataFrame(
        {
            "row": np.arange(1, n + 1),
            "recording": [hashlib.sha256(f"{seed} {i}".encode()).hexdigest() for i in range(n)],
            "subject": [f"s{i:04d}" for i in who],
            "label": np.where(ill[who], "depressed", "not_depressed"),
            "sex": np.where(who % 2 == 0, "female", "male"),
            "truth": truth[who],
        }
    )
    measured = quality_columns(quality or [GOOD] * n)
    features = pd.DataFrame(X, columns=list(names))
    return FeatureTable(pd.concat([frame, measured, features], axis=1), names, fingerprints(sets))
