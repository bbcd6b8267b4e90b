"""Evidence as an evaluation would write it, for one task of two classes and one of several; smooth curves of two normal distributions."""

import numpy as np
from scipy.special import expit, ndtr, ndtri

from clinical_ser.cohorts.tasks import DEPRESSION, EMOTION
from clinical_ser.evaluation.evidence import (
    Band,
    BinaryCurves,
    ClassCurves,
    Comparison,
    Decision,
    EvaluatedModel,
    Evidence,
    Flow,
    Gap,
    Group,
    Scores,
)
from clinical_ser.evaluation.figure import Figure
from clinical_ser.evaluation.leaks import LeakFinding
from clinical_ser.evaluation.planning import CurvePoint, Extrapolated, LearningCurve, PowerLaw, Reach

DISTANCE, PREVALENCE, SUBJECTS, RECORDINGS = 1.25, 0.25, 240, 960
EDGES = tuple(np.round(np.linspace(0, 1, 51), 4).tolist())
SOFTWARE = {"clinical-ser": "0.1.0", "numpy": "2.4.6"}


def figure(value, half=0.05, subjects=SUBJECTS, recordings=RECORDINGS, method="cluster bootstrap"):
    """A figure with an interval of this half-width; None for one that is not defined."""
    low, high = (None, None) if value is None or half is None else (value - half, value + half)
    return Figure(value=value, low=low, high=high, subjects=subjects, recordings=recordings, method=method)


def band(x, y, half=0.06, least=0.0, most=1.0):
    """A band of this half-width, held between two ends."""
    low, high = np.clip(np.asarray(y) - half, least, most), np.clip(np.asarray(y) + half, least, most)
    return Band(x=tuple(map(float, x)), y=tuple(map(float, y)), low=tuple(map(float, low)), high=tuple(map(float, high)))


def binary(**changes):
    """Evidence for a task of two classes, with everything that a report can show."""
    fields = {
        "origin": "out_of_fold",
        "task": DEPRESSION,
        "model": EvaluatedModel(name="voice-one", version="3", digest="sha256:" + "5e" * 32, head="linear"),
        "simulated": False,
        "flow": _flow({"not_depressed": 720, "depressed": 240}, {"not_depressed": 180, "depressed": 60}),
        "cohort_prevalence": PREVALENCE,
        "stated_prevalence": 0.1,
        "threshold": 0.072,
        "figures": _binary_figures(),
        "binary": _binary_curves(),
        "groups": _groups("auroc", "sensitivity", "specificity", "deferred"),
        "gaps": (Gap(column="sex", figure="auroc", best="male", worst="female", difference=figure(0.047, 0.04)),),
        "leaks": LEAKS,
        "comparisons": _comparisons(),
        "learning_curve": _learning_curve(),
        "covariates": {"sex": {"female": 130, "male": 104, "not stated": 6}, "language": {"en": 150, "de": 90}},
        "warnings": ("Figures about calibration rest on 60 subjects with the condition; at least 100 are advised.",),
    }
    return _evidence(fields | changes)


def several(**changes):
    """Evidence for a task of five classes."""
    classes = ("anger", "boredom", "fear", "happiness", "neutral")
    recalls = {label: figure(value, 0.09, 40, 80) for label, value in zip(classes, (0.83, 0.61, 0.55, 0.7, 0.78), strict=True)}
    matrix = ((66, 0, 4, 10, 0), (0, 49, 3, 2, 26), (12, 4, 44, 16, 4), (14, 2, 6, 56, 2), (0, 13, 2, 3, 62))
    stated = np.linspace(0.01, 0.99, 50)
    right = tuple(int(n) for n in np.round(300 * _density(stated, 0.75, 0.2)))
    wrong = tuple(int(n) for n in np.round(120 * _density(stated, 0.5, 0.2)))
    fields = {
        "origin": "external",
        "task": EMOTION.model_copy(update={"classes": classes}),
        "model": EvaluatedModel(name="emotions", version="1", simulated=False, head="xgboost"),
        "simulated": False,
        "flow": _flow(dict.fromkeys(classes, 80), dict.fromkeys(classes, 40)),
        "figures": {
            "uar": figure(0.694, 0.04),
            "accuracy": figure(0.6925, 0.04),
            "f1_macro": figure(0.69, 0.04),
            "brier": figure(0.41, 0.03),
            "calibration_slope": figure(0.83, 0.13),
            "answered": figure(0.72, 0.05),
            "deferred": figure(0.28, 0.05),
        }
        | {f"recall.{label}": one for label, one in recalls.items()},
        "classes": ClassCurves(
            reliability=band(stated, 0.15 + 0.75 * stated),
            scores=Scores(edges=EDGES, counts={"right": right, "wrong": wrong}),
            confusion=matrix,
            recalls=recalls,
        ),
        "groups": _groups("uar", "deferred"),
    }
    return _evidence(fields | changes)


def sparse():
    """Evidence in which almost nothing is defined."""
    nothing = Band(x=(0.0, 0.5, 1.0), y=(None,) * 3, low=(None,) * 3, high=(None,) * 3)
    curves = BinaryCurves(
        roc=nothing,
        precision_recall=nothing,
        reliability=nothing,
        scores=Scores(edges=(0.0, 0.5, 1.0), counts={"not_depressed": (0, 0), "depressed": (0, 0)}),
        decisions=(Decision(prevalence=0.0, own=True, model=nothing, treat_all=(0.0, -0.5, -1.0), over_default=nothing),),
    )
    figures = {
        key: figure(None, subjects=0, recordings=0) for key in ("auroc", "auprc", "sensitivity", "specificity", "calibration_slope", "answered")
    }
    return binary(
        figures=figures, binary=curves, flow=_flow({}, {}), groups=(), gaps=(), leaks=(), comparisons=(), learning_curve=None, covariates={},
        warnings=(), cohort_prevalence=None, threshold=None,
    )  # fmt: skip


LEAKS = (
    LeakFinding(
        name="shared_subjects", verdict="pass", statement="No subject stands on both sides of a fold.", counts={"subjects": 240}, figure=None
    ),
    LeakFinding(name="near_identical", verdict="not_checked", statement="The table has no fingerprints.", counts={}, figure=None),
    LeakFinding(
        name="nuisance_probe",
        verdict="warn",
        statement="Durations, levels and file order alone predict the label better than chance.",
        counts={"columns": 3},
        figure=figure(0.587, 0.05),
    ),
)
FAILED = LeakFinding(
    name="same_audio", verdict="fail", statement="Recordings with one content stand under two names.", counts={"pairs": 4, "subjects": 7}, figure=None
)


def _evidence(fields):
    return Evidence(replicates=2000, level=0.95, seed=0, software=SOFTWARE, **fields)


def _flow(by_class, subjects):
    evaluated = sum(by_class.values())
    return Flow(
        given=evaluated + 12 + 41 + 7,
        without_features=12,
        not_usable=41,
        baseline=0,
        without_label=7,
        not_tested=0,
        evaluated=evaluated,
        subjects=sum(subjects.values()),
        subjects_refused=3,
        by_class=by_class,
        subjects_by_class=subjects,
        reasons={"net_speech": 22, "signal_to_noise": 18, "clipping": 5, "bandwidth": 2, "level": 1},
    )


def _binary_figures():
    shares = {
        "prevalence": (PREVALENCE, 0.05), "ppv.0.05": (0.128, 0.03), "ppv.0.10": (0.232, 0.05), "ppv.0.20": (0.405, 0.06),
        "npv.0.05": (0.988, 0.008), "npv.0.10": (0.976, 0.01), "npv.0.20": (0.947, 0.02), "calibration_intercept": (-0.12, 0.2),
        "calibration_slope": (1.034, 0.22), "observed_to_expected": (0.94, 0.15), "brier": (0.0812, 0.01), "brier_reliability": (0.0004, 0.0002),
        "brier_resolution": (0.0214, 0.009), "ece_debiased": (0.021, 0.015), "answered": (0.71, 0.05), "deferred": (0.29, 0.05),
        "accuracy_when_answered": (0.84, 0.05), "coverage.depressed": (0.91, 0.06), "coverage.not_depressed": (0.9, 0.04),
        "not_usable": (0.0401, 0.011),
    }  # fmt: skip
    found = {"auroc": figure(0.8116, 0.053), "auprc": figure(0.56, 0.09)}
    found |= {"sensitivity": figure(0.85, 0.09, 60, 240), "specificity": figure(0.7, 0.06, 180, 720)}
    found |= {name: figure(value, half) for name, (value, half) in shares.items()}
    for label, subjects, answers in (("depressed", 60, (0.62, 0.09, 0.29)), ("not_depressed", 180, (0.12, 0.59, 0.29))):
        for status, value in zip(("flagged", "not_flagged", "indeterminate"), answers, strict=True):
            found[f"{status}.{label}"] = figure(value, 0.06, subjects, subjects * 4, "Wilson")
    return found


def _binary_curves():
    x = np.round(np.linspace(0, 1, 51), 4)
    sensitivity = ndtr(DISTANCE + ndtri(x))
    false = ndtr(ndtri(x) - DISTANCE)
    precision = np.divide(PREVALENCE * x, PREVALENCE * x + (1 - PREVALENCE) * false, out=np.ones_like(x), where=x > 0)
    stated = np.round(np.linspace(0.01, 0.99, 50), 4)
    observed = expit(-0.12 + 0.9 * np.log(stated / (1 - stated)))
    holes = Band(
        x=tuple(stated.tolist()),
        y=tuple(v if s < 0.8 else None for s, v in zip(stated.tolist(), observed.tolist(), strict=True)),
        low=tuple(max(0.0, v - 0.04 - 0.15 * s) if s < 0.8 else None for s, v in zip(stated.tolist(), observed.tolist(), strict=True)),
        high=tuple(min(1.0, v + 0.04 + 0.15 * s) if s < 0.8 else None for s, v in zip(stated.tolist(), observed.tolist(), strict=True)),
    )
    counts = {
        "not_depressed": tuple(int(n) for n in np.round(720 * _density(stated, 0.08, 0.1))),
        "depressed": tuple(int(n) for n in np.round(240 * _density(stated, 0.3, 0.18))),
    }
    return BinaryCurves(
        roc=band(x, sensitivity),
        precision_recall=band(x, precision, 0.08),
        reliability=holes,
        scores=Scores(edges=EDGES, counts=counts),
        decisions=(_decision(PREVALENCE, own=True), _decision(0.1, own=False)),
    )


def _decision(prevalence, *, own):
    threshold = np.arange(1, 100) / 100
    cut = (np.log(threshold / (1 - threshold)) - np.log(prevalence / (1 - prevalence))) / DISTANCE + DISTANCE / 2
    odds = threshold / (1 - threshold)
    model = prevalence * ndtr(DISTANCE - cut) - (1 - prevalence) * ndtr(-cut) * odds
    everyone = prevalence - (1 - prevalence) * odds
    half = 0.02 * (1 - threshold) ** 2
    return Decision(
        prevalence=prevalence,
        own=own,
        model=band(threshold, model, half, -9, 1),
        treat_all=tuple(everyone.tolist()),
        over_default=band(threshold, model - np.maximum(everyone, 0), half, -9, 1),
    )


def _groups(*names):
    sizes = {("sex", "female"): 130, ("sex", "male"): 104, ("age_band", "18-29"): 70, ("age_band", "30-44"): 110, ("age_band", "45-59"): 49}
    found = [
        Group(column=column, value=value, subjects=n, recordings=4 * n, positives=n // 4, refused=n // 20, enough=True,
              figures={name: figure(0.8 - 0.9 * i / n, 0.9 / n**0.5, n, 4 * n) for i, name in enumerate(names, 1)})
        for (column, value), n in sizes.items()
    ]  # fmt: skip
    return (*found, Group(column="age_band", value="60-74", subjects=11, recordings=40, positives=3, refused=4, enough=False))


def _comparisons():
    return (
        Comparison(
            against="comparator phq2 at 3 or more", kind="comparator", figure="sensitivity", model=figure(0.85, 0.09, 60), other=figure(0.8, 0.1, 60),
            difference=figure(0.05, 0.08, 60), subjects=60, recordings=240,
        ),
        Comparison(
            against="chance", kind="chance", figure="auroc", model=figure(0.8116), other=figure(0.5, None), difference=figure(0.3116), subjects=240,
            recordings=960,
        ),
    )  # fmt: skip


def _learning_curve():
    law = PowerLaw(asymptote=0.84, scale=1.2, exponent=0.7)
    sizes, beyond = (24, 45, 80, 120, 192), (240, 360, 480, 720, 1200)
    return LearningCurve(
        metric="auroc", head="linear", features=88, subjects=240, recordings=960, prevalence=0.25, folds=5, repeats=3, replicates=300, seed=0,
        points=tuple(
            CurvePoint(subjects=n, value=law.at(n) + (-1) ** n * 0.006, low=law.at(n) - 0.06, high=law.at(n) + 0.05, spread=0.01) for n in sizes
        ),
        curve=law,
        extrapolated=tuple(
            Extrapolated(subjects=n, value=law.at(n), low=law.at(n) - 0.03 - n / 30000, high=law.at(n) + 0.03 + n / 30000) for n in beyond
        ),
        targets=(Reach(target=0.82, subjects=412, low=250, high=None, share=0.81), Reach(target=0.9, subjects=None, low=None, high=None, share=0.02)),
    )  # fmt: skip


def _density(x, mean, sd):
    weight = np.exp(-0.5 * ((x - mean) / sd) ** 2)
    return weight / weight.sum()
