"""How far a feature, and the score, moves from one recording of a person to the next while nothing changed: test-retest reliability.

The one idea: what differs between recordings of one person is error, whatever made it. Its SD is what a later change is measured against.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from scipy.special import fdtri, stdtrit

from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.errors import InvalidValueError, TrainingError
from clinical_ser.evaluation.predictions import check_extractors
from clinical_ser.features import catalogue
from clinical_ser.models.bundle import VerifiedBundle
from clinical_ser.models.interpretable import EMBEDDING
from clinical_ser.models.rows import Rows, select_rows
from clinical_ser.models.trained import TrainedModel
from clinical_ser.models.training import cohort_digest
from clinical_ser.strict import Strict

MINIMUM_SUBJECTS = 20
"""Recorded twice. With fewer, the SD is known to no better than 28 % either way (chi-square with 20 degrees of freedom, 95 %: 0.77 to 1.44
times), and it is too much about single people."""
LEVEL = 0.95
LONGEST_SETTING = 200
SHOWN_FAMILIES = ("timing", "pitch", "loudness")
"""What a reader knows from listening; the card's JSON has the other families too."""

Array = NDArray[np.float64]


class Repeated(Strict):
    """How well one quantity repeats itself."""

    sd_within: float = Field(ge=0)
    """SD of a person's recordings, in the quantity's unit: the standard error of measurement (root of the mean square within subjects)."""
    freedom: int = Field(ge=1)
    """Degrees of freedom of `sd_within`: recordings less subjects."""
    icc: float | None
    """ICC(1,1): share of the variance of single recordings that lies between people; it depends on how different the cohort's people are. None
    where all recordings of all people have one value."""
    icc_low: float | None
    icc_high: float | None
    subjects: int = Field(ge=MINIMUM_SUBJECTS)
    """Subjects with two or more values."""

    @model_validator(mode="after")
    def _within_its_bounds(self) -> Self:
        bounds = (self.icc_low, self.icc, self.icc_high)
        known = [bound for bound in bounds if bound is not None]
        if len(known) not in {0, 3} or known != sorted(known):
            raise ValueError("an ICC has an interval and lies within it")
        return self

    @property
    def limit(self) -> float:
        """How many standard errors of a difference 95 % of differences stay within: of Student's t, because the SD is itself estimated."""
        return float(stdtrit(self.freedom, (1 + LEVEL) / 2))

    def error_of_difference(self, earlier: int = 1) -> float:
        """Return the SD of a recording less the mean of so many earlier ones, while nothing changes: SEM * sqrt(1 + 1/k)."""
        return float(self.sd_within * np.sqrt(1 + 1 / earlier))


class Retest(Strict):
    """Test-retest reliability of a model, in one cohort."""

    setting: str = Field(min_length=1, max_length=LONGEST_SETTING)
    """How the recordings were repeated, as a person says it (`same day, same device`): what did vary is in the error, what did not is not."""
    subjects: int = Field(ge=MINIMUM_SUBJECTS)
    """Recorded at least twice."""
    recordings: int
    changed: int = Field(ge=0)
    """Subjects left out because their label was not the same each time."""
    log_odds: Repeated | None
    """Of the calibrated log-odds; None for tasks of several classes."""
    features: dict[str, Repeated]
    """By name, in the feature's unit: the model's own, as they enter it; none of an embedding, and none that too few subjects have twice."""

    @field_validator("setting")
    @classmethod
    def _printable(cls, setting: str) -> str:
        check_setting(setting)
        return setting

    @property
    def shown(self) -> dict[str, Repeated]:
        """Features that a reader can make something of, family by family."""
        specs = [catalogue.get(name) for name in self.features]
        return {spec.name: self.features[spec.name] for family in SHOWN_FAMILIES for spec in specs if spec.family == family and spec.readable}


@dataclass(frozen=True, eq=False)
class OneWay:
    """One-way random-effects analyses of variance, one a column, over subjects with two or more values; all of shape (columns,)."""

    subjects: NDArray[np.int64]
    freedom: NDArray[np.int64]
    """Within subjects; `subjects - 1` between them."""
    within: Array
    between: Array
    """Mean squares, in the column's unit squared."""
    values_each: Array
    """Values a subject; where their number differs, the k0 that makes `between` unbiased."""

    def icc(self) -> tuple[Array, Array, Array]:
        """Return ICC(1,1) and its interval, exact for normal values where everyone has equally many and close to it elsewhere (Donner & Wells)."""
        tail, between = (1 + LEVEL) / 2, self.subjects - 1
        return self._icc(1.0), self._icc(fdtri(between, self.freedom, tail)), self._icc(1 / fdtri(self.freedom, between, tail))

    def _icc(self, times: Array | float) -> Array:
        error = times * self.within
        total = self.between + (self.values_each - 1) * error
        return np.divide(self.between - error, total, out=np.full_like(total, np.nan), where=total > 0)


def one_way(values: Array, subjects: NDArray[np.str_]) -> OneWay:
    """Analyse the variance of each column.

    Parameters
    ----------
    values
        Shape (rows, columns), NaN where missing.
    subjects
        Shape (rows,); of whom each row is.

    Returns
    -------
    OneWay
        NaN where fewer than two subjects have two values.

    References
    ----------
    Shrout PE, Fleiss JL (1979), Intraclass correlations, Psychol Bull 86:420-428. Donner A, Wells G (1986), A comparison of confidence interval
    methods for the intraclass correlation coefficient, Biometrics 42:401-412. Unequal numbers: Snedecor & Cochran, Statistical Methods, 8th ed.,
    13.7.
    """
    frame = pd.DataFrame(np.asarray(values, np.float64))
    groups = (frame - frame.min()).groupby(subjects)  # from its least value, so that a constant column is exactly 0
    n = groups.count().to_numpy(np.float64)
    repeated = n >= 2
    n = np.where(repeated, n, 0.0)
    mean, variance = (np.where(repeated, part.to_numpy(np.float64), 0.0) for part in (groups.mean(), groups.var(ddof=1)))
    people, recordings = repeated.sum(axis=0), n.sum(axis=0)
    freedom = recordings - people
    with np.errstate(divide="ignore", invalid="ignore"):  # columns that nobody repeated
        overall = (n * mean).sum(axis=0) / recordings
        return OneWay(
            subjects=people,
            freedom=freedom.astype(np.int64),
            within=((n - repeated) * variance).sum(axis=0) / freedom,
            between=(n * (mean - overall) ** 2).sum(axis=0) / (people - 1),
            values_each=(recordings - (n**2).sum(axis=0) / recordings) / (people - 1),
        )


def repeatability(values: Array, subjects: NDArray[np.str_]) -> list[Repeated | None]:
    """Return how well each column of `values`, shape (rows, columns), repeats itself; None where too few subjects have two values."""
    found = one_way(values, subjects)
    iccs = np.transpose(found.icc())
    return [_repeated(found, column, iccs[column]) if people >= MINIMUM_SUBJECTS else None for column, people in enumerate(found.subjects.tolist())]


def _repeated(found: OneWay, column: int, icc: Array) -> Repeated:
    value, low, high = icc.tolist() if np.isfinite(icc).all() else (None, None, None)
    return Repeated(
        sd_within=float(np.sqrt(found.within[column])),
        freedom=int(found.freedom[column]),
        icc=value,
        icc_low=low,
        icc_high=high,
        subjects=int(found.subjects[column]),
    )


def measure_retest(bundle: VerifiedBundle, table: FeatureTable, *, setting: str) -> Retest:
    """Measure how well a model's features and its score repeat themselves.

    Parameters
    ----------
    bundle
        The model.
    table
        One row a recording, of people whom the model has not heard; those recorded at least twice, with the same label each time, count.
    setting
        How the recordings were repeated, in words.

    Raises
    ------
    InvalidValueError
        The setting is no printable text, the model takes each person's baseline, it learned from this very cohort, or a recording is in the table
        twice.
    TrainingError
        Fewer than `MINIMUM_SUBJECTS` people count.
    BundleFeatureMismatchError
        The table was measured by other extractors than the model's.
    """
    check_setting(setting)
    check_extractors(bundle, table)
    model = TrainedModel.from_bundle(bundle)
    if model.uses_baseline:
        raise InvalidValueError("MODEL", "one that takes each person's baseline", "one that does not: the baseline would have to be repeated too")
    rows = select_rows(table, model.task, model.features, use_baseline=False, used_as="repeated").rows
    if cohort_digest(rows.frame["recording"], rows.target) == bundle.manifest.cohort_digest:
        raise InvalidValueError("TABLE", "the cohort that the model learned from", "people whom it has not heard: of these it knows the labels")
    again, changed = _recorded_again(rows)
    named = [column for column, name in enumerate(again.names) if catalogue.get(name).family != EMBEDDING]
    features = zip((again.names[column] for column in named), repeatability(again.X[:, named], again.subjects), strict=True)
    return Retest(
        setting=setting,
        subjects=len(np.unique(again.subjects)),
        recordings=len(again.subjects),
        changed=changed,
        log_odds=repeatability(model.log_odds(again.X)[:, None], again.subjects)[0] if model.binary else None,
        features={name: found for name, found in features if found is not None},
    )


def check_setting(setting: str) -> None:
    """Raise InvalidValueError unless a setting is a line that can be printed."""
    if not (setting.strip() and len(setting) <= LONGEST_SETTING and setting.isprintable()):
        expected = f"one line of 1 to {LONGEST_SETTING} printable characters, such as 'same day, same device'"
        raise InvalidValueError("--setting", f"a text of {len(setting)} characters", expected)


def _recorded_again(rows: Rows) -> tuple[Rows, int]:
    """Return the rows of subjects with two or more and one label, and how many subjects had several labels."""
    if rows.frame["recording"].duplicated().any():
        raise InvalidValueError("TABLE", "one with a recording in it twice", "recordings that were each made anew: a copy repeats without error")
    labels = pd.Series(rows.target).groupby(rows.subjects)
    several = (labels.transform("nunique") > 1).to_numpy(bool)
    twice = (labels.transform("size") >= 2).to_numpy(bool)
    again, changed = rows.take(np.flatnonzero(twice & ~several)), len(np.unique(rows.subjects[several]))
    people = len(np.unique(again.subjects))
    if people < MINIMUM_SUBJECTS:
        left_out = f" (left out: {changed} whose label changed)" if changed else ""
        raise TrainingError(f"Only {people} subjects have two usable recordings and one label{left_out}; {MINIMUM_SUBJECTS} are needed.")
    return again, changed
