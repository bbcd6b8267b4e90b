"""Results of every kind as a clinician's report gets them, and visits of one person, built from their models without a recording."""

import datetime
import re

import numpy as np

from clinical_ser.evaluation.retest import Repeated
from clinical_ser.explain.explanation import FeatureBand, Reference
from clinical_ser.features import catalogue
from clinical_ser.monitoring.comparison import compare
from clinical_ser.screening.measures import PANEL, Measure
from clinical_ser.screening.result import (
    ClassProbability,
    Interval,
    MissingFeature,
    Performance,
    RecordingIdentity,
    ScoreCutoff,
    ScreeningResult,
    Share,
    Status,
    SubjectContext,
)
from reports.site import Contact, Site
from tests.reports import explanation_samples as samples

LONG = "A name that is a great deal longer than any column of any drawing has room for, and then goes on and on"
VALUES = {
    "timing.speech_rate_syll_per_s": (3.1, (3.4, 4.2), 8.0),
    "timing.articulation_rate_syll_per_s": (4.1, (3.9, 4.9), 41.0),
    "timing.pause_share_percent": (38.0, (18.0, 27.0), 95.0),
    "timing.pause_mean_s": (0.91, (0.51, 0.73), 93.0),
    "timing.pause_sd_s": (0.44, (0.22, 0.41), 80.0),
    "praat.intensity_sd_db": (8.2, (7.4, 9.6), 45.0),
    "praat.f0_mean_hz": (211.3, (186.0, 221.0), 61.0),
    "praat.f0_sd_semitones": (1.4, (2.1, 2.9), 5.0),
    "praat.cpps_db": (None, (5.8, 7.4), None),
}
"""Feature to its value, the middle half of its group, and its percentile."""
SPREAD = {"timing.pause_share_percent": 4.0, "praat.f0_mean_hz": 6.0}
SITE = Site(
    name="St. Example Hospital",
    department="Outpatient clinic",
    contacts=(
        Contact(name="Psychiatric emergency service of this hospital", phone="0000 000 000", hours="day and night"),
        Contact(name="On-call psychiatrist", phone="0000 000 001", note="for staff"),
    ),
)
ALL_AT_ONCE = Site(
    name=LONG,
    department=LONG,
    contacts=tuple(
        Contact(name=f"{i} {LONG}", phone="0000 000 000", hours="Monday to Friday, 8 to 18", note="for staff and relatives") for i in range(6)
    ),
    prevalence=0.3,
    reference_text={"en": "The reference group was recorded here. " * 10, "zh": "参考组在本院录制。" * 20},
)
"""A site that has as much to say as it may."""


def measure(name, value, band, percentile, *, retest=True):
    spec = catalogue.get(name)
    return Measure(
        name=name, family=spec.family, label_en=spec.label_en, label_zh=spec.label_zh, meaning_en=spec.meaning_en, meaning_zh=spec.meaning_zh,
        unit=spec.unit, value=value, reason=None if value is not None else "too little voice", percentile=percentile,
        band=None if band is None else FeatureBand(low=band[0], high=band[1]), published=None,
        retest=repeated(SPREAD.get(name, 0.15 * abs(value or 1.0))) if retest else None,
    )  # fmt: skip


def repeated(sd):
    return Repeated(sd_within=sd, freedom=60, icc=0.7, icc_low=0.6, icc_high=0.8, subjects=60)


def measures(**changes):
    """The whole panel; a value is changed by the last part of its feature's name."""
    found = []
    for name, *_ in PANEL:
        value, band, percentile = VALUES[name]
        found.append(measure(name, changes.get(name.partition(".")[2], value), band, percentile))
    return tuple(found)


def performance():
    return (
        _performed(None, None, 600, 0.89, 0.49, 0.79),
        _performed("sex", "female", 300, 0.88, 0.48, 0.8),
        _performed("age_band", "45-59", 194, 0.92, 0.49, 0.79),
        Performance(origin="out_of_fold", column="device", value="headset", subjects=18, enough=False, figures={}),
        _performed(None, None, 240, 0.81, 0.44, 0.7, origin="external"),
    )


def _performed(column, value, subjects, sensitivity, specificity, auroc, origin="out_of_fold"):
    named = {"sensitivity": sensitivity, "specificity": specificity, "auroc": auroc}
    figures = {name: Share(value=at, low=at - 0.05, high=at + 0.04) for name, at in named.items()}
    return Performance(origin=origin, column=column, value=value, subjects=subjects, enough=True, figures=figures)


def result(told=None, when=None, **changes):
    """A flagged result with all that a report can show."""
    reference = Reference(
        group="not depressed, female, 45 to 65 years", subjects=84, people="not depressed", sex="female", age_years=(45, 65), unmatched=("device",)
    )
    fields = {
        "defined_by": ScoreCutoff(label="depressed", score="PHQ-8", cutoff=10.0),
        "measures": measures(),
        "performance": performance(),
        "retest": repeated(0.6),
        "retest_setting": "same day, same device",
        "context": SubjectContext(sex="female", age=54, task="read speech", device="headset", language="en", recorded_on=datetime.date(2026, 11, 3)),
    }
    told = told or samples.explanation(reference=reference)
    return samples.result(told, when if when is not None else samples.timeline(), **fields | changes)


def not_flagged(**changes):
    return result(status=Status.NOT_FLAGGED, prediction_set=("not_depressed",), operating_point=None, **changes)


def indeterminate(**changes):
    return result(status=Status.INDETERMINATE, prediction_set=("not_depressed", "depressed"), **changes)


def refused(**changes):
    return samples.refused(defined_by=ScoreCutoff(label="depressed", score="PHQ-8", cutoff=10.0), context=SubjectContext(age=54), **changes)


def of_classes(status=Status.CLASSIFIED, members=("sadness",)):
    """A result of seven classes."""
    shares = {"anger": 0.02, "boredom": 0.15, "disgust": 0.03, "fear": 0.05, "happiness": 0.01, "neutral": 0.12, "sadness": 0.62}
    classes = tuple(
        ClassProbability(label=label, value=p, prevalence=1 / 7, interval=Interval(low=0.6 * p, high=1 - 0.6 * (1 - p), level=0.95, method="refits"))
        for label, p in shares.items()
    )
    told = samples.explanation(target="sadness", base=0.62 - sum(effect[0] for effect in samples.EFFECTS.values()), scale="calibrated_centred_logit")
    figures = {"uar": Share(value=0.68, low=0.6, high=0.75)}
    performed = (Performance(origin="out_of_fold", column=None, value=None, subjects=10, enough=True, figures=figures),)
    return result(
        told, status=status, task="emotion", probability=classes[-1], classes=classes, prediction_set=members, operating_point=None, answers=(),
        performance=performed, defined_by=None, retest=None,
    )  # fmt: skip


def with_embedding():
    effects = {"embedding": (0.142, 0.09, False, 0.77)} | {name: (0.3 * v, h, False, a) for name, (v, h, _, a) in samples.EFFECTS.items()}
    without = samples.with_embedding().without_embedding
    return result(samples.explanation(effects, without_embedding=without))


def missing():
    """A result of which nothing could be compared."""
    names = tuple(MissingFeature(name=name, reason="switched off: too noisy") for name in catalogue.names("praat")[:30])
    bare = samples.explanation(reference=Reference(group="average training recording", subjects=None, unmatched=("sex", "age", "task", "device")))
    return result(
        bare, measures=tuple(measure(name, None, None, None, retest=False) for name, *_ in PANEL), missing=names, performance=(), answers=(),
        retest=None, retest_setting=None, context=SubjectContext(),
    ).model_copy(update={"timeline": None})  # fmt: skip


def long(made=None):
    """A result in which every text that is anyone's is too long."""
    text = re.sub(
        r'"(label_en|label_zh|name|version|task|device|language|value|text|group|people|score)":"[^"]*"',
        rf'"\1":"{LONG}"',
        (made or result()).model_dump_json(),
    )
    text = re.sub(r'"(en|zh)":"[^"]*"', rf'"\1":"{LONG} {LONG} {LONG}"', text)
    return ScreeningResult.model_validate_json(text.replace('"notices":["', f'"notices":["{LONG * 5}","{LONG * 5}","'))


def visits(n, *, devices=("headset",), seed=3):
    """The last of n visits, and its comparison with the others: nothing changes until the last one, in which pauses grow."""
    rng, made = np.random.default_rng(seed), []
    for i in range(n):
        pauses = 22.0 + rng.normal(0, 3.5) + (24 if i == n - 1 else 0)
        day = datetime.date(2026, 1, 5) + datetime.timedelta(days=7 * i)
        one = result(
            measures=measures(pause_share_percent=pauses, f0_mean_hz=205 + rng.normal(0, 5)),
            context=SubjectContext(sex="female", age=54, task="read speech", device=devices[i % len(devices)], language="en", recorded_on=day),
            recording=RecordingIdentity(sha256=f"{i:064x}", duration_s=80.0),
        )
        made.append(one)
    return made[-1], compare(made[-1], made[:-1])
