"""What each figure is called, what it means, and which value is best: one place for tables, reports, cards and gates.

A name is lower case; what it is about follows a dot (`sensitivity`, `ppv.0.10`, `flagged.depressed`).
"""

from dataclasses import dataclass
from typing import Literal

from clinical_ser.errors import InvalidValueError


@dataclass(frozen=True)
class FigureText:
    """Words for a figure."""

    title: str
    meaning: str
    best: float | None
    """The value a perfect model has; None where neither end is better."""
    kind: Literal["share", "bounded", "distance", "free"] = "free"
    """What its interval has to know: a `share` of people or recordings; another number `bounded` by 0 and 1 that may reach either; a `distance`,
    0 at best, that chance alone moves up; or `free`."""


_TEXTS = {
    "auroc": FigureText("AUROC", "share of pairs (one with, one without the condition) in which the one with it scores higher", 1.0, kind="bounded"),
    "auprc": FigureText("AUPRC", "average precision; compare it with the prevalence, which is what chance reaches", 1.0, kind="bounded"),
    "prevalence": FigureText("Prevalence", "share of evaluated subjects with the condition", None, kind="share"),
    "sensitivity": FigureText("Sensitivity", "share of those with the condition who lie at or above the frozen threshold", 1.0, kind="share"),
    "specificity": FigureText("Specificity", "share of those without the condition who lie below the frozen threshold", 1.0, kind="share"),
    "ppv": FigureText("PPV at {}", "share with the condition among those at or above the threshold, were the prevalence {}", 1.0, kind="bounded"),
    "npv": FigureText("NPV at {}", "share without the condition among those below the threshold, were the prevalence {}", 1.0, kind="bounded"),
    "calibration_intercept": FigureText("Calibration intercept", "mean error of the log-odds (slope held at 1); above 0, risks are understated", 0.0),
    "calibration_slope": FigureText("Calibration slope", "below 1, stated probabilities are too extreme; above 1, too timid", 1.0),
    "observed_to_expected": FigureText("Observed to expected", "share observed over the mean stated probability", 1.0),
    "brier": FigureText("Brier score", "mean squared distance of stated probability and outcome", 0.0, kind="bounded"),
    "brier_reliability": FigureText("Brier: reliability", "part of the Brier score that calibration could remove", 0.0, kind="distance"),
    "brier_resolution": FigureText("Brier: resolution", "part of the Brier score that telling people apart removes; more is better", None),
    "brier_uncertainty": FigureText("Brier: uncertainty", "Brier score of stating the prevalence for everyone", None),
    "brier_skill": FigureText("Brier skill", "share of the Brier score of stating the prevalence for everyone that the model removes", 1.0),
    "ece_debiased": FigureText("ECE, debiased", "root mean squared calibration error over bins, less what chance alone gives", 0.0, kind="distance"),
    "ece_smooth": FigureText(
        "Smooth ECE",
        "calibration error after kernel smoothing; chance adds to it, and its interval reaches down to what remains without that",
        0.0,
        kind="distance",
    ),
    "answered": FigureText("Answered", "share of usable recordings that get an answer and not `indeterminate`", None, kind="share"),
    "deferred": FigureText("Deferred", "share of usable recordings answered `indeterminate`", None, kind="share"),
    "accuracy_when_answered": FigureText("Accuracy when answered", "share of answers that are right", 1.0, kind="share"),
    "sensitivity_when_answered": FigureText(
        "Sensitivity when answered", "share flagged among those with the condition who got an answer", 1.0, kind="share"
    ),
    "specificity_when_answered": FigureText(
        "Specificity when answered", "share not flagged among those without the condition who got an answer", 1.0, kind="share"
    ),
    "uar_when_answered": FigureText("UAR when answered", "mean recall of the classes among answered recordings", 1.0, kind="bounded"),
    "coverage": FigureText("Coverage, {}", "share of class {} whose prediction set holds it", None, kind="share"),
    "flagged": FigureText("Flagged, {}", "share of class {} answered `flagged`", None, kind="share"),
    "not_flagged": FigureText("Not flagged, {}", "share of class {} answered `not_flagged`", None, kind="share"),
    "indeterminate": FigureText("Indeterminate, {}", "share of class {} answered `indeterminate`", None, kind="share"),
    "not_usable": FigureText("Not usable", "share of labelled recordings that the gate refused", None, kind="share"),
    "uar": FigureText("UAR", "unweighted average recall: mean recall of the classes", 1.0, kind="bounded"),
    "accuracy": FigureText("Accuracy (WA)", "share of recordings whose most probable class is the true one", 1.0, kind="share"),
    "f1_macro": FigureText("F1, macro", "mean F1 of the classes", 1.0, kind="bounded"),
    "f1_weighted": FigureText("F1, weighted", "F1 of the classes, weighted by their size", 1.0, kind="bounded"),
    "recall": FigureText("Recall, {}", "share of class {} for which it is the most probable class", 1.0, kind="share"),
}


def describe(name: str) -> FigureText:
    """Return the words for a figure.

    Raises
    ------
    InvalidValueError
        There is no such figure.

    Examples
    --------
    >>> describe("ppv.0.10").title
    'PPV at 0.10'
    """
    kind, _, about = name.partition(".")
    if kind not in _TEXTS or bool(about) != ("{}" in _TEXTS[kind].title):
        raise InvalidValueError("figure", name, [f"{key}.…" if "{}" in text.title else key for key, text in sorted(_TEXTS.items())])
    text = _TEXTS[kind]
    return FigureText(text.title.format(about), text.meaning.format(about), text.best, text.kind)
