"""How many subjects a prediction model needs before its figures can be believed: the criteria of Riley et al.

Closed formulas; a training report compares them with the cohort and says plainly when it is too small.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import xlogy
from scipy.stats import norm

from clinical_ser.errors import InvalidValueError

SHRINKAGE = 0.9
"""Criterion 1: the effects may need shrinking by a tenth at most (Riley et al. 2020, BMJ 368:m441, figure 1)."""
MAX_OPTIMISM = 0.05
"""Criterion 2: apparent and adjusted Nagelkerke R² may differ by this much."""
PREVALENCE_MARGIN = 0.05
"""Criterion 3: half-width of the 95 % interval of the overall risk."""
Z_95 = 1.96


@dataclass(frozen=True)
class MinimumSampleSize:
    """The least number of subjects by each criterion, and what it was computed from."""

    subjects: int
    """The largest of the three."""
    for_shrinkage: int
    for_optimism: int
    for_prevalence: int
    cox_snell_r2: float
    parameters: int
    prevalence: float

    @property
    def events(self) -> int:
        """Subjects with the condition among them."""
        return math.ceil(self.subjects * self.prevalence)


def riley_minimum(parameters: int, prevalence: float, anticipated_auc: float) -> MinimumSampleSize:
    """Minimum sample size for developing a model of a binary outcome.

    Parameters
    ----------
    parameters
        Candidate parameters, the intercept left out: every feature the model may use counts, chosen or not, and a penalty does not make them
        fewer (Riley et al. 2021, J Clin Epidemiol 132:88-96).
    prevalence
        Share of subjects with the condition in the cohort.
    anticipated_auc
        Area under the ROC curve that the model may reach (C statistic), above 0.5.

    Returns
    -------
    MinimumSampleSize

    Raises
    ------
    InvalidValueError
        If an argument is out of its range.

    References
    ----------
    Riley et al. 2019, Stat Med 38:1276-1296 (criteria); 2020, BMJ 368:m441 (guidance); 2021, Stat Med 40:859-864 (R² from the C statistic).

    Examples
    --------
    >>> riley_minimum(10, 0.2, 0.75).subjects
    661
    """
    return riley_minimum_from_r2(parameters, prevalence, cox_snell_r2(prevalence, anticipated_auc))


def riley_minimum_from_r2(parameters: int, prevalence: float, r2: float) -> MinimumSampleSize:
    """As `riley_minimum`, from the anticipated Cox-Snell R² itself."""
    if parameters < 1:
        raise InvalidValueError("parameters", parameters, "at least 1")
    r2_max = _largest_cox_snell_r2(prevalence)
    if not 0 < r2 < min(r2_max, SHRINKAGE):
        raise InvalidValueError("r2", r2, f"between 0 and {min(r2_max, SHRINKAGE):.3f}, the largest at this prevalence")
    for_shrinkage = _subjects_for(SHRINKAGE, parameters, r2)
    for_optimism = _subjects_for(r2 / (r2 + MAX_OPTIMISM * r2_max), parameters, r2)
    for_prevalence = math.ceil((Z_95 / PREVALENCE_MARGIN) ** 2 * prevalence * (1 - prevalence))
    return MinimumSampleSize(
        subjects=max(for_shrinkage, for_optimism, for_prevalence),
        for_shrinkage=for_shrinkage,
        for_optimism=for_optimism,
        for_prevalence=for_prevalence,
        cox_snell_r2=r2,
        parameters=parameters,
        prevalence=prevalence,
    )


def cox_snell_r2(prevalence: float, auc: float) -> float:
    """Return the Cox-Snell R² of a model with this AUC whose linear predictor is normal in both classes, with equal variance.

    Riley et al. (2021) simulate a million such predictors and fit a logistic model; here the same expectation is an integral, so two
    machines give one number. R² = 1 - exp(-2 I), with I the mutual information of predictor and outcome in nats.
    """
    _require_share("prevalence", prevalence)
    if not 0.5 < auc < 1:
        raise InvalidValueError("anticipated_auc", auc, "above 0.5 and below 1")
    distance = math.sqrt(2) * norm.ppf(auc)
    predictor, step = np.linspace(-12.0, 12.0 + distance, 20_001, retstep=True)
    without, with_ = (1 - prevalence) * norm.pdf(predictor), prevalence * norm.pdf(predictor - distance)
    density = without + with_
    risk = with_ / density
    information = step * np.sum(density * (xlogy(risk, risk / prevalence) + xlogy(1 - risk, (1 - risk) / (1 - prevalence))))
    return float(-np.expm1(-2 * information))


def warning_for(n_subjects: int, parameters: int, prevalence: float, auc: float) -> str | None:
    """Return a sentence for the training report if there are fewer subjects than `riley_minimum` asks for, else None.

    `auc` is what the model is anticipated to reach, or did reach out of fold; at 0.5 or below no number of subjects is enough.
    """
    if auc <= 0.5:
        return f"With an AUC of {auc:.2f} the model tells the classes apart no better than chance; no number of subjects makes it reliable."
    needed = riley_minimum(parameters, prevalence, auc)
    if n_subjects >= needed.subjects:
        return None
    return (
        f"{n_subjects:,} subjects are too few for {parameters:,} features: at a prevalence of {prevalence:.0%} and an AUC of {auc:.2f}, "
        f"Riley et al. (BMJ 2020) ask for at least {needed.subjects:,}. Expect probabilities that are too extreme in new people, "
        "and rely on an evaluation in subjects of another cohort."
    )


def _subjects_for(shrinkage: float, parameters: int, r2: float) -> int:
    return math.ceil(parameters / ((shrinkage - 1) * math.log1p(-r2 / shrinkage)))


def _largest_cox_snell_r2(prevalence: float) -> float:
    _require_share("prevalence", prevalence)
    null_log_likelihood = xlogy(prevalence, prevalence) + xlogy(1 - prevalence, 1 - prevalence)
    return float(-np.expm1(2 * null_log_likelihood))


def _require_share(what: str, value: float) -> None:
    if not 0 < value < 1:
        raise InvalidValueError(what, value, "a share strictly between 0 and 1")
