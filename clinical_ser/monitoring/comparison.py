"""A subject against their own earlier recordings: which measures changed by more than recordings of one person differ anyway.

The one idea: a difference is divided by its own error, known from people who were recorded again while nothing changed. Where that error is not
known, or the recordings were made differently, the values are shown and nothing is concluded.

References
----------
Jacobson NS, Truax P (1991), Clinical significance, J Consult Clin Psychol 59:12-19, on the reliable change index.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from statistics import fmean
from typing import Literal, Self

from pydantic import Field, model_validator
from scipy.special import expit, logit

from clinical_ser.errors import InvalidValueError
from clinical_ser.evaluation.retest import LEVEL, Repeated
from clinical_ser.models.prevalence import shift_log_odds
from clinical_ser.screening.result import INTENDED_USE, ScreeningResult, Status
from clinical_ser.strict import Strict

MOST_VISITS = 200
NOTICE = (
    "The comparison takes the recordings to be one person's; nothing checks that they are. A change says that the voice was recorded differently "
    "from before, by more than recordings differ when nothing changes; it names no cause, and no change rules nothing out."
)

OWN_BASELINE = (
    "The model takes each visit relative to the baseline recordings that were given with it: values of two visits are comparable only where these "
    "were the same."
)

LeftOut = Literal["not_usable", "other_model", "other_task", "other_device", "other_language"]
"""Why an earlier visit is not compared with; for the last three, one of the two visits may just not have said."""
Reason = LeftOut | Literal["not_measured", "no_earlier_value", "no_retest", "no_spread"]
"""Why nothing is concluded of a measure: as all earlier visits were left out; the current visit has no value, no earlier one has; nobody measured how
well it repeats, or it never varied where that was measured."""
Verdict = Literal["changed", "within", "unknown"]
Aspect = Literal["model", "task", "device", "language", "sex", "recorded_on"]

_ALIKE: Mapping[LeftOut, Aspect] = {"other_model": "model", "other_task": "task", "other_device": "device", "other_language": "language"}
"""What two visits that are compared have in common: a text that is read has other pauses than an interview, a microphone its own loudness."""
_OF: Mapping[Aspect, Callable[[ScreeningResult], object]] = {
    # Without its embeddings a bundle is another model.
    "model": lambda result: (result.model.digest, result.model.without_embedding),
    "task": lambda result: result.context.task,
    "device": lambda result: result.context.device,
    "language": lambda result: result.context.language,
    "sex": lambda result: result.context.sex,
    "recorded_on": lambda result: result.context.recorded_on,
}
_LARGEST_VALUE, _SMALLEST_ERROR = 1e12, 1e-12
"""Beyond anything that is measured of a voice, in whatever unit; a file that says otherwise is no result."""


class Visit(Strict):
    """One recording."""

    sha256: str
    """Digest of its samples, as in its result."""
    recorded_on: date | None
    status: Status
    usable: bool
    device: str | None
    language: str | None
    task: str | None
    """What was spoken."""
    probability: float | None = Field(ge=0, le=1)
    """Of the positive class, restated for `Comparison.prevalence`; None of several classes, or where there was no answer: a number that one result
    withholds is not told by another."""
    left_out: LeftOut | None
    """Why it is not in anyone's baseline; None where it is, and of the current visit."""


class Band(Strict):
    """Where a value stays in 95 % of visits while nothing changes."""

    low: float
    high: float


class Change(Strict):
    """One measure over the visits, and whether it changed."""

    name: str
    """A feature's, or `score`."""
    label_en: str
    label_zh: str
    unit: str
    values: tuple[float | None, ...]
    """One a visit, the current one last; those of visits that were left out too."""
    earlier: int = Field(ge=0)
    """Values behind `baseline`."""
    baseline: float | None
    """Mean of the earlier visits that are compared with."""
    difference: float | None
    """The current value less the baseline."""
    index: float | None
    """Reliable change index: the difference over its error, SEM * sqrt(1 + 1/earlier)."""
    limit: float | None
    """What the index stays within in 95 % of visits while nothing changes: of Student's t, with the SEM's degrees of freedom."""
    band: Band | None
    """The baseline, plus and minus `limit` errors."""
    verdict: Verdict
    reason: Reason | None
    """Why the verdict is `unknown`."""

    @model_validator(mode="after")
    def _said_with_cause(self) -> Self:
        if (self.verdict == "unknown") != (self.reason is not None) or (self.verdict == "unknown") != (self.index is None):
            raise ValueError("a verdict has an index, and where it is unknown a reason")
        if self.index is not None and (self.limit is None or (abs(self.index) > self.limit) != (self.verdict == "changed")):
            raise ValueError("a measure changed where its index is beyond the limit")
        return self


class Flag(Strict):
    """Something that makes visits hard to compare."""

    aspect: Aspect
    kind: Literal["differs", "not_stated"]
    visits: int = Field(ge=1)
    """Earlier visits that differ from the current one; of all visits, those for which nobody said."""


class Comparison(Strict):
    """Visits, first to last, and what changed. It stands for whoever gave these recordings: nothing checks that they are one person's."""

    schema_id: Literal["clinical-ser/comparison/1"] = "clinical-ser/comparison/1"
    task: str
    """The model's: `depression`."""
    prevalence: float | None = Field(gt=0, lt=1)
    """What all probabilities, and the score, are stated for; None of several classes."""
    visits: tuple[Visit, ...]
    """The current one last."""
    score: Change | None
    """The calibrated log-odds; None of several classes, or where no visit has a score."""
    measures: tuple[Change, ...]
    """Those of the current result, in its order."""
    retest_setting: str | None
    """How the recordings were repeated that the errors are from; a time that is longer than theirs may change more by itself."""
    expected_by_chance: float
    """How many of the measures with a verdict are called changed on average while nothing changes."""
    flags: tuple[Flag, ...]
    notices: tuple[str, ...]
    """`NOTICE`, and those of the current result."""
    intended_use: str = INTENDED_USE

    @model_validator(mode="after")
    def _one_value_a_visit(self) -> Self:
        changes = (*self.measures, *([self.score] if self.score else []))
        if any(len(change.values) != len(self.visits) for change in changes):
            raise ValueError("a measure has one value a visit")
        return self


def compare(current: ScreeningResult, earlier: Sequence[ScreeningResult]) -> Comparison:
    """Compare a result with earlier ones of the same person.

    Parameters
    ----------
    current
        Of the visit in question.
    earlier
        At least one, in the order of time. Those made with the same model, on the same device, in the same language and task count as the
        person's baseline; where none of both visits says which, that passes for the same, and is flagged.

    Returns
    -------
    Comparison
        It takes the recordings to be one person's; nothing here can check that.

    Raises
    ------
    InvalidValueError
        If there is no earlier result or there are more than 200 visits, one recording is given twice, results are of different tasks, or the stated
        dates are not in order.

    Notes
    -----
    The errors are one SD for everyone, from other people: who varies more than most is called changed too often. With the SD of a measure that grows
    with its value (pauses, pitch in Hz), that is whoever has large values.
    """
    visits = (*earlier, current)
    _check(visits)
    left_out = [_why_left_out(visit, current) for visit in earlier]
    prevalence = _stated_prevalence(visits)
    judge = _Judge(left_out)
    measures = tuple(judge.change(quantity) for quantity in _measures(visits))
    score = _score(visits, prevalence)
    return Comparison(
        task=current.task,
        prevalence=prevalence,
        visits=tuple(_visit(visit, prevalence, why) for visit, why in zip(visits, (*left_out, None), strict=True)),
        score=judge.change(score) if score else None,
        measures=measures,
        retest_setting=current.retest_setting,
        expected_by_chance=(1 - LEVEL) * sum(change.reason is None for change in measures),
        flags=tuple(_flags(visits)),
        notices=(NOTICE, *([OWN_BASELINE] if current.model.uses_baseline else []), *current.notices),
    )


def _check(visits: Sequence[ScreeningResult]) -> None:
    if not 2 <= len(visits) <= MOST_VISITS:
        raise InvalidValueError("results", f"{len(visits)} visits", f"2 to {MOST_VISITS}, the current one last")
    if len({visit.recording.sha256 for visit in visits}) < len(visits):
        raise InvalidValueError("results", "one recording twice", "a recording of its own for each visit")
    if len({visit.task for visit in visits}) > 1:
        raise InvalidValueError("results", "results of different tasks", "results of models with one task")
    stated = [visit.context.recorded_on for visit in visits if visit.context.recorded_on is not None]
    if any(later < before for before, later in pairwise(stated)):
        raise InvalidValueError("results", "visits whose dates are not in order", "the earliest first, the current one last")


def _why_left_out(visit: ScreeningResult, current: ScreeningResult) -> LeftOut | None:
    if visit.status is Status.NOT_USABLE:
        return "not_usable"
    return next((why for why, aspect in _ALIKE.items() if _OF[aspect](visit) != _OF[aspect](current)), None)


def _stated_prevalence(visits: Sequence[ScreeningResult]) -> float | None:
    """Return what the latest score of two classes is stated for."""
    return next((visit.probability.prevalence for visit in reversed(visits) if visit.probability and not visit.classes), None)


def _visit(result: ScreeningResult, prevalence: float | None, left_out: LeftOut | None) -> Visit:
    return Visit(
        sha256=result.recording.sha256,
        recorded_on=result.context.recorded_on,
        status=result.status,
        usable=result.status is not Status.NOT_USABLE,
        device=result.context.device,
        language=result.context.language,
        task=result.context.task,
        probability=_probability(result, prevalence),
        left_out=left_out,
    )


def _probability(result: ScreeningResult, prevalence: float | None) -> float | None:
    """Return the probability of two classes, restated."""
    stated = result.probability
    if prevalence is None or stated is None or result.classes or not result.status.has_number:
        return None
    return float(expit(shift_log_odds(logit(stated.value), stated.prevalence, prevalence)))


def _log_odds(result: ScreeningResult, prevalence: float | None) -> float | None:
    """Return the calibrated log-odds of two classes, restated; a probability near 0 or 1 no longer tells them."""
    told, stated = result.explanation, result.probability
    if prevalence is None or told is None or stated is None or result.classes or not result.status.has_number:
        return None
    return float(shift_log_odds(told.log_odds, stated.prevalence, prevalence))


@dataclass(frozen=True)
class _Quantity:
    """Something that every visit may have a value of."""

    name: str
    label_en: str
    label_zh: str
    unit: str
    values: tuple[float | None, ...]
    retest: Repeated | None

    def __post_init__(self) -> None:
        if any(value is not None and abs(value) > _LARGEST_VALUE for value in self.values):
            raise InvalidValueError("results", "a value that no voice has", "results as `screen --json` gives them")


def _measures(visits: Sequence[ScreeningResult]) -> Iterator[_Quantity]:
    known = [{measure.name: measure.value for measure in visit.measures} for visit in visits]
    for measure in visits[-1].measures:
        values = tuple(of.get(measure.name) for of in known)
        yield _Quantity(measure.name, measure.label_en, measure.label_zh, measure.unit, values, measure.retest)


def _score(visits: Sequence[ScreeningResult], prevalence: float | None) -> _Quantity | None:
    if prevalence is None:
        return None
    return _Quantity("score", "Score (log-odds)", "评分（对数几率）", "1", tuple(_log_odds(visit, prevalence) for visit in visits), visits[-1].retest)


@dataclass(frozen=True)
class _Expected:
    """Where a person's next value lies while nothing changes."""

    baseline: float
    error: float
    """SD of a value less the baseline, which has an error too."""
    limit: float

    @classmethod
    def of(cls, own: Sequence[float], retest: Repeated | None) -> Self | None:
        """Return it for someone with these earlier values; None where it is not known."""
        if not own or retest is None:
            return None
        error = retest.error_of_difference(len(own))
        return cls(fmean(own), error, retest.limit) if _SMALLEST_ERROR < error < _LARGEST_VALUE else None

    @property
    def band(self) -> Band:
        reach = self.limit * self.error
        return Band(low=self.baseline - reach, high=self.baseline + reach)

    def index(self, now: float) -> float:
        return (now - self.baseline) / self.error

    def verdict(self, index: float) -> Verdict:
        return "changed" if abs(index) > self.limit else "within"


class _Judge:
    """Concludes from values over the visits, knowing which of the earlier ones may be compared with."""

    def __init__(self, left_out: Sequence[LeftOut | None]) -> None:
        self._compared = [place for place, why in enumerate(left_out) if why is None]
        # Where none is left, the latest of them tells best what to do otherwise next time.
        self._why_none = None if self._compared else left_out[-1]

    def change(self, quantity: _Quantity) -> Change:
        """Say whether a quantity changed."""
        now = quantity.values[-1]
        own = [value for place in self._compared if (value := quantity.values[place]) is not None]
        baseline = fmean(own) if own else None
        expected = _Expected.of(own, quantity.retest)
        index = None if expected is None or now is None else expected.index(now)
        return Change(
            name=quantity.name,
            label_en=quantity.label_en,
            label_zh=quantity.label_zh,
            unit=quantity.unit,
            values=quantity.values,
            earlier=len(own),
            baseline=baseline,
            difference=None if now is None or baseline is None else now - baseline,
            index=index,
            limit=expected.limit if expected else None,
            band=expected.band if expected else None,
            verdict="unknown" if expected is None or index is None else expected.verdict(index),
            reason=self._why_unknown(now, own, quantity.retest) if index is None else None,
        )

    def _why_unknown(self, now: float | None, own: Sequence[float], retest: Repeated | None) -> Reason:
        if now is None:
            return "not_measured"
        if self._why_none is not None:
            return self._why_none
        if not own:
            return "no_earlier_value"
        return "no_retest" if retest is None else "no_spread"


def _flags(visits: Sequence[ScreeningResult]) -> Iterator[Flag]:
    for aspect, of in _OF.items():
        said = [of(visit) for visit in visits]
        differs = sum(None not in {one, said[-1]} and one != said[-1] for one in said[:-1])
        if differs and aspect != "recorded_on":
            yield Flag(aspect=aspect, kind="differs", visits=differs)
        # A sex that nobody stated makes nothing harder to compare; two that contradict each other may be two people's.
        if said.count(None) and aspect != "sex":
            yield Flag(aspect=aspect, kind="not_stated", visits=said.count(None))
