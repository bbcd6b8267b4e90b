"""Predictions made of numbers alone, with a known truth, for whatever evaluates them."""

import hashlib

import numpy as np
import pandas as pd
from scipy.special import expit, logit, softmax

from clinical_ser.cohorts.tasks import DEPRESSION, EMOTION
from clinical_ser.evaluation.evidence import EvaluatedModel
from clinical_ser.evaluation.predictions import Predictions

MODEL = EvaluatedModel(name="made", version="1")


def two_classes(
    subjects: int = 200,
    rows_each: int = 1,
    *,
    seed: int = 0,
    separation: float = 1.5,
    prevalence: float = 0.3,
    threshold: float = 0.3,
    refused: int = 0,
) -> Predictions:
    """Calibrated predictions: log-odds are the true ones of a normal score in each class; the set holds what lies between 0.2 and 0.5."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(subjects), rows_each)
    ill = rng.uniform(size=subjects) < prevalence
    score = rng.normal(separation * ill)[who]
    log_odds = separation * (score - separation / 2) + logit(prevalence)
    p = expit(log_odds)
    above = p >= threshold
    label = np.where(ill[who], "depressed", "not_depressed")
    status = np.where(p > 0.5, "flagged", np.where(p < 0.2, "not_flagged", "indeterminate"))
    covered = np.where(ill[who], p >= 0.2, p <= 0.5)
    frame = pd.DataFrame(
        {
            "row": np.arange(1, len(who) + 1),
            "recording": [hashlib.sha256(f"{seed} {i}".encode()).hexdigest() for i in range(len(who))],
            "subject": [f"s{i:05d}" for i in who],
            "label": label,
            "sex": np.where(who % 2 == 0, "female", "male"),
            "age": 20.0 + who % 60,
            "site": np.where(who % 3 == 0, "north", "south"),
            "status": status,
            "covered": covered,
            "log_odds": log_odds,
            "above": above,
            "probability.not_depressed": 1 - p,
            "probability.depressed": p,
        }
    ).astype({"status": object})
    outside = pd.DataFrame({"row": 0, "recording": "0", "subject": [f"r{i}" for i in range(refused)], "label": "depressed", "sex": "female"})
    return Predictions(
        task=DEPRESSION,
        origin="external",
        model=MODEL,
        frame=frame,
        refused=outside,
        counts={"given": len(frame) + refused, "not usable": refused, "evaluated": len(frame)},
        gate_failures={"speech": refused} if refused else {},
        threshold=float(logit(threshold)),
        stated_prevalence=prevalence,
        coverage=0.9,
        simulated=False,
    )


def several_classes(subjects: int = 30, rows_each: int = 12, *, seed: int = 0, separation: float = 1.5) -> Predictions:
    """Three classes, every subject saying each of them as often."""
    rng = np.random.default_rng(seed)
    classes = ("calm", "happy", "sad")
    who = np.repeat(np.arange(subjects), rows_each)
    target = np.arange(len(who)) % 3
    logits = rng.normal(size=(len(who), 3)) + separation * np.eye(3)[target] + 0.5 * rng.normal(size=(subjects, 3))[who]
    p = softmax(logits, axis=1)
    frame = pd.DataFrame(
        {
            "row": np.arange(1, len(who) + 1),
            "recording": [hashlib.sha256(f"{seed} {i}".encode()).hexdigest() for i in range(len(who))],
            "subject": [f"s{i:05d}" for i in who],
            "label": np.array(classes)[target],
            "sex": np.where(who % 2 == 0, "female", "male"),
            "status": np.where(p.max(axis=1) > 0.7, "classified", "indeterminate"),
            "covered": p[np.arange(len(who)), target] > 0.1,
            **{f"probability.{label}": p[:, k] for k, label in enumerate(classes)},
        }
    ).astype({"status": object})
    return Predictions(
        task=EMOTION.model_copy(update={"classes": classes}),
        origin="out_of_fold",
        model=MODEL,
        frame=frame,
        refused=frame.iloc[:0][["row", "recording", "subject", "label", "sex"]],
        counts={"given": len(frame), "learned from": len(frame)},
        gate_failures={},
        threshold=None,
        stated_prevalence=None,
        coverage=0.9,
        simulated=False,
    )
