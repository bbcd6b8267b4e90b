"""Explanations as shap's own object, so that shap's own plots take them.

shap is an extra (`pip install 'clinical-ser[shap]'`): it brings a compiler along, and nothing that answers a question needs it.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from clinical_ser.errors import InvalidValueError
from clinical_ser.explain.effects import Explainer
from clinical_ser.explain.explanation import Explanation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike


def families_as_shap(explanation: Explanation) -> Any:
    """Return one recording's families on the probability as a `shap.Explanation`.

    Examples
    --------
    >>> shap.plots.waterfall(families_as_shap(result.explanation))  # doctest: +SKIP
    """
    families = explanation.families
    return _shap().Explanation(
        values=np.array([family.probability.value for family in families]),
        base_values=explanation.base_probability,
        # Where a family stands among people is what its bar is drawn beside; there is no single value.
        data=np.array([np.nan if family.percentile is None else family.percentile for family in families]),
        feature_names=[family.label_en for family in families],
    )


def features_as_shap(explainer: Explainer, X: "ArrayLike", *, target: str, groups: "Sequence[int | None]", prevalence: float | None = None) -> Any:
    """Return many recordings' features on the calibrated log-odds as a `shap.Explanation`; it holds their values, so keep it as you keep those.

    Parameters
    ----------
    explainer
        Of the model.
    X
        Shape (rows, features), in the order of the model's features.
    target, prevalence
        The class, and what its probability is stated for.
    groups
        The place of each row's reference group in `model.reference`; None for the average training recording.

    Returns
    -------
    shap.Explanation
        `values` of shape (rows, features), which add up to the calibrated log-odds with `base_values`.

    Examples
    --------
    >>> shap.plots.beeswarm(features_as_shap(explainer, X, target="depressed", groups=[0] * len(X)))  # doctest: +SKIP
    """
    rows = np.asarray(X, float)
    effects = explainer.table(rows, targets=[target] * len(rows), groups=groups, prevalence=prevalence)
    return _shap().Explanation(
        values=np.array([one.features[0] for one in effects]),
        base_values=np.array([one.base_log_odds[0] for one in effects]),
        data=rows,
        feature_names=list(explainer.model.features),
    )


def _shap() -> Any:
    try:
        import shap
    except ImportError:
        raise InvalidValueError("shap", "not installed", "the extra: pip install 'clinical-ser[shap]'") from None
    return shap
