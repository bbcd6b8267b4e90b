"""Figures that a change-control plan may name: those of an evaluation, and those that only a pair of models has."""

from collections.abc import Sequence

from clinical_ser.evaluation.naming import describe

EXPLANATION_FIGURES = {
    "explanation_agreement": "mean correlation of the families' effects in champion and challenger, over recordings",
    "same_main_family": "share of recordings whose family with the largest effect stays the same",
}
"""How stable explanations are between the two models; 1 at best."""
EPSILON_LEFT = "epsilon_left"
"""What is left of the privacy budget after the change."""
_LOWER_IS_BETTER = frozenset({"deferred", "not_usable", "brier", "brier_reliability", "ece_debiased", "ece_smooth"})
_OF_TWO_CLASSES = frozenset(
    {
        "auroc",
        "auprc",
        "sensitivity",
        "specificity",
        "ppv",
        "npv",
        "calibration_intercept",
        "brier_reliability",
        "brier_skill",
        "sensitivity_when_answered",
        "specificity_when_answered",
    }
)
_OF_SEVERAL_CLASSES = frozenset({"uar", "accuracy", "f1_macro", "f1_weighted", "uar_when_answered", "recall"})
_OF_BOTH = frozenset(
    {
        "brier",
        "calibration_slope",
        "observed_to_expected",
        "ece_debiased",
        "ece_smooth",
        "answered",
        "deferred",
        "accuracy_when_answered",
        "not_usable",
    }
)
_WITH_CLASS = frozenset({"recall"})
DISCRIMINATION = frozenset({"auroc", "auprc", "uar", "accuracy", "f1_macro", "f1_weighted"})
CALIBRATION = frozenset(
    {"calibration_intercept", "calibration_slope", "observed_to_expected", "brier", "brier_reliability", "brier_skill", "ece_debiased", "ece_smooth"}
)
DISTANCE_TO_BEST = {"calibration_intercept": 0.0, "calibration_slope": 1.0, "observed_to_expected": 1.0}
"""Figures that are best in the middle; compared by how far they lie from there."""


_LARGEST_MARGIN = {"share": 0.2, "bounded": 0.2, "distance": 0.1}
_LARGEST_MARGIN_OF = {
    "auroc": 0.1,
    "auprc": 0.1,
    "uar": 0.1,
    "f1_macro": 0.1,
    "f1_weighted": 0.1,
    "brier": 0.1,
    "brier_skill": 0.2,
    "calibration_slope": 0.5,
    "observed_to_expected": 0.5,
    "calibration_intercept": 1.0,
}
"""Wider ones let through what nobody would call as good; a plan may ask for less, and says why."""


def largest_margin(figure: str) -> float | None:
    """Return the widest margin that a plan may give a figure; None where it is never compared with one."""
    if figure == EPSILON_LEFT or figure in EXPLANATION_FIGURES:
        return None
    kind = figure.partition(".")[0]
    return _LARGEST_MARGIN_OF.get(kind, _LARGEST_MARGIN.get(describe(figure).kind))


def chance_of(figure: str, classes: int) -> float | None:
    """Return what chance reaches of a figure of discrimination, as far as that is known beforehand; None for others."""
    return {"auroc": 0.5, "uar": 1 / classes, "accuracy": 1 / classes}.get(figure)


def direction(figure: str) -> int:
    """Return 1 where more of a figure is better, -1 where less is; figures best in the middle are looked at as distances, so -1."""
    kind = figure.partition(".")[0]
    return -1 if kind in _LOWER_IS_BETTER or kind in DISTANCE_TO_BEST else 1


def known_figures(classes: Sequence[str]) -> tuple[str, ...]:
    """Return the figures that a requirement may name, for a task with these classes."""
    two = len(classes) == 2
    names = (_OF_TWO_CLASSES if two else _OF_SEVERAL_CLASSES) | _OF_BOTH
    found: list[str] = [EPSILON_LEFT, *EXPLANATION_FIGURES]
    for name in names:
        if name in _WITH_CLASS:
            found += [f"{name}.{label}" for label in classes]
        elif name in {"ppv", "npv"}:
            found += [f"{name}.{prevalence}" for prevalence in ("0.05", "0.10", "0.20")]
        else:
            found.append(name)
    return tuple(sorted(found))


def title_of(figure: str) -> str:
    """Return a figure's title for people."""
    if figure == EPSILON_LEFT:
        return "Privacy budget left"
    if figure in EXPLANATION_FIGURES:
        return {"explanation_agreement": "Agreement of explanations", "same_main_family": "Same main family"}[figure]
    return describe(figure).title


def is_bounded(figure: str) -> bool:
    """Return whether a figure lies between 0 and 1."""
    if figure == EPSILON_LEFT:
        return False
    if figure == "explanation_agreement":
        return False
    return figure in EXPLANATION_FIGURES or describe(figure).kind in {"share", "bounded", "distance"}
