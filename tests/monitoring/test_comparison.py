"""A subject against their own earlier recordings: what is called a change, how often by chance, and when nothing is concluded."""

import json
from datetime import date

import numpy as np
import pytest
from scipy.special import expit, logit

from clinical_ser.errors import InvalidValueError
from clinical_ser.evaluation.retest import Repeated
from clinical_ser.features import catalogue
from clinical_ser.monitoring.comparison import MOST_VISITS, Comparison, compare
from clinical_ser.screening.measures import Measure
from clinical_ser.screening.result import ClassProbability, Interval, RecordingIdentity, SubjectContext
from tests.reports.explanation_samples import explanation, refused, result

PAUSE, PITCH = "timing.pause_mean_s", "praat.f0_mean_hz"
SEM = Repeated(sd_within=0.1, freedom=20, icc=0.8, icc_low=0.7, icc_high=0.9, subjects=20)
CONTEXT = SubjectContext(sex="female", age=54, task="read speech", device="headset", language="de")


def measure(name, value, retest=SEM):
    spec = catalogue.get(name)
    return Measure(
        name=name, family=spec.family, label_en=spec.label_en, label_zh=spec.label_zh, meaning_en=spec.meaning_en, meaning_zh=spec.meaning_zh,
        unit=spec.unit, value=value, reason=None if value is not None else "not measurable", percentile=None, band=None, published=None,
        retest=retest,
    )  # fmt: skip


def visit(number, pause=0.6, *, pitch=None, retest=SEM, log_odds=-1.0, prevalence=0.1, model=None, sample=result, **context):
    """The result of one visit; no two visits have one recording."""
    told, probability = explanation(), float(expit(log_odds))
    changes = {} if sample is refused else {
        "told": told.model_copy(
            update={
                "log_odds": log_odds,
                "base_log_odds": told.base_log_odds + log_odds - told.log_odds,
                "probability": probability,
                "base_probability": told.base_probability + probability - told.probability,
            }
        ),
        "probability": ClassProbability(label="depressed", value=probability, prevalence=prevalence,
                                        interval=Interval(low=0.1, high=0.4, level=0.95, method="")),
        "operating_point": None,
        "measures": (measure(PAUSE, pause, retest), measure(PITCH, pitch, retest)),
        "retest": retest,
        "retest_setting": "same day, same device",
    }  # fmt: skip
    made = sample(context=CONTEXT.model_copy(update=context), recording=RecordingIdentity(sha256=f"{number:064x}", duration_s=60), **changes)
    return made if model is None else made.model_copy(update={"model": made.model.model_copy(update=model)})


def pause_of(comparison):
    return comparison.measures[0]


def test_a_difference_is_divided_by_its_error():
    """Jacobson & Truax: one earlier recording, so both have the error; the limit is Student's t with 20 degrees of freedom."""
    found = pause_of(compare(visit(2, 1.0), [visit(1, 0.6)]))
    assert (found.values, found.earlier, found.baseline) == ((0.6, 1.0), 1, 0.6)
    assert found.difference == pytest.approx(0.4)
    assert found.index == pytest.approx(0.4 / (0.1 * 2**0.5))
    assert found.limit == pytest.approx(2.086, abs=0.001)
    assert (found.verdict, found.reason) == ("changed", None)
    assert (found.band.low, found.band.high) == pytest.approx((0.6 - 2.086 * 0.1 * 2**0.5, 0.6 + 2.086 * 0.1 * 2**0.5), abs=1e-4)


def test_four_earlier_recordings_make_the_same_difference_count_for_more():
    once, often = (pause_of(compare(visit(9, 0.86), [visit(i, 0.6) for i in range(n)])) for n in (1, 4))
    assert (once.verdict, often.verdict) == ("within", "changed")
    assert often.index == pytest.approx(0.26 / (0.1 * 1.25**0.5))
    assert often.band.high - often.band.low < once.band.high - once.band.low


def test_a_change_has_a_direction():
    lower = pause_of(compare(visit(2, 0.2), [visit(1, 0.6)]))
    assert lower.verdict == "changed"
    assert lower.index < 0


@pytest.mark.parametrize("freedom", [20, 100])
@pytest.mark.parametrize("earlier", [1, 5])
def test_without_a_change_five_percent_are_called_changed(earlier, freedom):
    """The person, and the SEM from a cohort with so many degrees of freedom, are drawn anew each time."""
    rng = np.random.default_rng([earlier, freedom])
    n = 3000
    errors = 0.1 * np.sqrt(rng.chisquare(freedom, n) / freedom)
    values = rng.normal(0.6, 0.1, (n, earlier + 1))
    template = [visit(i) for i in range(earlier + 1)]
    changed = 0
    for error, drawn in zip(errors.tolist(), values.tolist(), strict=True):
        sem = SEM.model_copy(update={"sd_within": error, "freedom": freedom})
        *before, now = (one.model_copy(update={"measures": (measure(PAUSE, x, sem),)}) for one, x in zip(template, drawn, strict=True))
        changed += pause_of(compare(now, before)).verdict == "changed"
    assert changed / n == pytest.approx(0.05, abs=0.012)  # three standard errors of 3000 draws


def test_what_is_expected_by_chance_counts_the_measures_with_a_verdict():
    known = compare(visit(2, 0.6, pitch=200.0), [visit(1, 0.6, pitch=190.0)])
    assert known.expected_by_chance == pytest.approx(0.1)
    assert compare(visit(2, 0.6), [visit(1, 0.6)]).expected_by_chance == pytest.approx(0.05)


def test_the_score_is_compared_on_the_log_odds_at_one_prevalence():
    """The same voice stated for two prevalences has not changed."""
    there = float(logit(0.4) - logit(0.1))
    found = compare(visit(2, log_odds=-1.0, prevalence=0.1), [visit(1, log_odds=-1.0 + there, prevalence=0.4)])
    assert found.score.values == pytest.approx((-1.0, -1.0))
    assert (found.score.name, found.score.verdict) == ("score", "within")
    assert found.prevalence == 0.1
    moved = compare(visit(2, log_odds=-1.0), [visit(1, log_odds=-1.5)]).score
    assert (moved.verdict, moved.difference) == ("changed", pytest.approx(0.5))


def test_probabilities_of_all_visits_are_stated_for_the_current_prevalence():
    now, before = visit(2, prevalence=0.1), visit(1, prevalence=0.4)
    shown = [one.probability for one in compare(now, [before]).visits]
    assert shown[1] == pytest.approx(now.probability.value)
    assert shown[0] == pytest.approx(expit(logit(before.probability.value) + logit(0.1) - logit(0.4)))


@pytest.mark.parametrize(
    ("change", "reason", "aspect"),
    [
        ({"device": "tablet"}, "other_device", "device"),
        ({"language": "en"}, "other_language", "language"),
        ({"task": "interview"}, "other_task", "task"),
        ({"model": {"digest": "another"}}, "other_model", "model"),
        ({"model": {"without_embedding": True}}, "other_model", "model"),
    ],
)
def test_a_visit_recorded_otherwise_is_shown_flagged_and_not_compared_with(change, reason, aspect):
    alone = compare(visit(2, 1.0), [visit(1, 0.6, **change)])
    assert alone.visits[0].left_out == reason
    for found in (pause_of(alone), alone.score):
        assert (found.verdict, found.reason, found.baseline, found.index, found.band) == ("unknown", reason, None, None, None)
    assert pause_of(alone).values == (0.6, 1.0)
    assert [(flag.kind, flag.visits) for flag in alone.flags if flag.aspect == aspect] == [("differs", 1)]
    beside = pause_of(compare(visit(3, 1.0), [visit(1, 5.0, **change), visit(2, 0.6)]))
    assert (beside.baseline, beside.earlier, beside.verdict) == (0.6, 1, "changed")


def test_a_device_stated_once_is_not_taken_for_the_same():
    found = compare(visit(2), [visit(1, device=None)])
    assert found.visits[0].left_out == "other_device"
    assert [(flag.kind, flag.visits) for flag in found.flags if flag.aspect == "device"] == [("not_stated", 1)]


def test_where_nobody_said_anything_visits_are_compared_and_every_gap_is_flagged():
    silent = {"device": None, "language": None, "task": None, "sex": None}
    found = compare(visit(2, **silent), [visit(1, **silent)])
    assert pause_of(found).verdict == "within"
    assert {(flag.aspect, flag.kind, flag.visits) for flag in found.flags} == {
        (aspect, "not_stated", 2) for aspect in ("device", "language", "task", "recorded_on")
    }


def test_visits_alike_and_dated_have_no_flag():
    assert compare(visit(2, recorded_on=date(2025, 3, 1)), [visit(1, recorded_on=date(2025, 2, 1))]).flags == ()


def test_two_sexes_are_flagged_because_it_may_be_another_person():
    found = compare(visit(2), [visit(1, sex="male")])
    assert [(flag.aspect, flag.kind) for flag in found.flags if flag.aspect == "sex"] == [("sex", "differs")]
    assert "nothing checks that they are" in found.notices[0]


def test_what_a_model_says_of_itself_goes_along():
    said = "Trained on SIMULATED speech."
    found = compare(visit(2).model_copy(update={"notices": (said,)}), [visit(1)])
    assert found.notices[1:] == (said,)
    assert "never a diagnosis" in found.intended_use


def test_of_several_reasons_that_of_the_latest_visit_is_told():
    found = compare(visit(3), [visit(1, device="tablet"), visit(2, language="en")])
    assert pause_of(found).reason == "other_language"


def test_an_unusable_visit_stays_in_sight():
    found = compare(visit(3, 0.6), [visit(1, 0.6), visit(2, sample=refused)])
    assert [one.usable for one in found.visits] == [True, False, True]
    assert (found.visits[1].probability, found.visits[1].left_out) == (None, "not_usable")
    assert pause_of(found).values == (0.6, None, 0.6)
    assert (pause_of(found).earlier, pause_of(found).verdict) == (1, "within")
    assert pause_of(compare(visit(3), [visit(2, sample=refused)])).reason == "not_usable"


def test_an_unusable_current_recording_has_no_measures_and_no_verdict():
    found = compare(visit(3, sample=refused), [visit(1), visit(2)])
    assert found.measures == ()
    assert (found.score.verdict, found.score.reason) == ("unknown", "not_measured")
    assert found.expected_by_chance == 0
    nothing = compare(visit(3, sample=refused), [visit(2, sample=refused)])
    assert (nothing.score, nothing.prevalence) == (None, None)


@pytest.mark.parametrize(
    ("now", "before", "reason"),
    [
        (visit(2, None), visit(1, 0.6), "not_measured"),
        (visit(2, 0.6), visit(1, None), "no_earlier_value"),
        (visit(2, 0.6, retest=None), visit(1, 0.6), "no_retest"),
        (visit(2, 0.6, retest=SEM.model_copy(update={"sd_within": 0.0})), visit(1, 0.6), "no_spread"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_known_is_said_by_name(now, before, reason):
    found = pause_of(compare(now, [before]))
    assert (found.verdict, found.reason, found.index) == ("unknown", reason, None)


def test_without_a_retest_values_and_difference_are_still_shown():
    found = pause_of(compare(visit(2, 1.0, retest=None), [visit(1, 0.6)]))
    assert (found.baseline, found.difference) == (0.6, pytest.approx(0.4))
    assert (found.limit, found.band) == (None, None)


def test_several_classes_have_measures_and_no_score():
    several = tuple(
        ClassProbability(label=label, value=0.5, prevalence=0.5, interval=Interval(low=0.4, high=0.6, level=0.95, method="")) for label in "ab"
    )
    made = [visit(i).model_copy(update={"classes": several}) for i in (1, 2)]
    found = compare(made[1], made[:1])
    assert (found.score, found.prevalence) == (None, None)
    assert [one.probability for one in found.visits] == [None, None]
    assert pause_of(found).verdict == "within"


def test_what_cannot_be_compared_is_refused():
    now = visit(9, recorded_on=date(2025, 3, 1))
    with pytest.raises(InvalidValueError, match="1 visits"):
        compare(now, [])
    with pytest.raises(InvalidValueError, match="201 visits"):
        compare(now, [visit(100 + i) for i in range(MOST_VISITS)])
    with pytest.raises(InvalidValueError, match="twice"):
        compare(now, [visit(1), visit(9)])
    with pytest.raises(InvalidValueError, match="different tasks"):
        compare(now, [visit(1).model_copy(update={"task": "emotion"})])
    with pytest.raises(InvalidValueError, match="not in order"):
        compare(now, [visit(1, recorded_on=date(2025, 3, 2)), visit(2)])
    assert compare(now, [visit(1, recorded_on=date(2025, 3, 1)), visit(2)]).visits[-1].sha256 == now.recording.sha256


def test_numbers_that_no_voice_has_are_refused_and_do_not_overflow():
    with pytest.raises(InvalidValueError, match="no voice"):
        compare(visit(2, 1e308), [visit(1, -1e308)])
    for error in (5e-324, 1e308):
        none = SEM.model_copy(update={"sd_within": error})
        assert pause_of(compare(visit(2, 1.0, retest=none), [visit(1, 0.6)])).verdict == "unknown"


def test_it_goes_to_json_and_back_and_quotes_no_contradiction():
    found = compare(visit(2, 1.0), [visit(1, 0.6)])
    assert Comparison.model_validate_json(found.model_dump_json()) == found
    said = json.loads(found.model_dump_json())
    assert said["schema_id"] == "clinical-ser/comparison/1"
    said["measures"][0]["verdict"] = "within"
    with pytest.raises(ValueError, match="beyond the limit"):
        Comparison.model_validate(said)
    said["measures"][0] |= {"verdict": "unknown"}
    with pytest.raises(ValueError, match="a reason"):
        Comparison.model_validate(said)
    said["measures"] = []
    said["visits"] = said["visits"][:1]
    with pytest.raises(ValueError, match="one value a visit"):
        Comparison.model_validate(said)
