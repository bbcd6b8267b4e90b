"""Results and explanations as a screening would give them, built from their models without running one."""

import math

import numpy as np

from clinical_ser.audio.quality import QualityCheck, QualityReport
from clinical_ser.evaluation.explanations import CohortExplanation, FamilySummary, FeatureSummary
from clinical_ser.evaluation.figure import Figure
from clinical_ser.explain.explanation import (
    Estimate,
    Explanation,
    FamilyContribution,
    FeatureBand,
    FeatureContribution,
    Move,
    Reference,
    WithoutEmbedding,
    Words,
)
from clinical_ser.explain.timeline import Moment, Timeline, Tracks, Window
from clinical_ser.features import catalogue
from clinical_ser.screening.result import (
    AnswerRates,
    ClassProbability,
    Interval,
    MissingFeature,
    ModelIdentity,
    OperatingPointStatement,
    RateStatement,
    RecordingIdentity,
    ScreeningResult,
    Share,
    Status,
    SubjectContext,
)

BASE = 0.12
EFFECTS = {
    "timing": (0.081, 0.030, True, 0.92),
    "pitch": (0.047, 0.031, False, 0.71),
    "voice_quality": (-0.028, 0.021, False, 0.66),
    "loudness": (0.012, 0.034, False, 0.48),
    "articulation": (-0.006, 0.020, False, 0.55),
}
"""Family to its effect on the probability, half of its interval, whether it is the main driver, and its rank agreement."""
FEATURES = {
    "timing": (("timing.pause_mean_s", 1.42, (0.55, 0.84), 95.0, 0.31, 0.12), ("timing.pause_share_percent", 41.0, (18.0, 27.5), 93.0, 0.22, 0.1),
               ("timing.articulation_rate_syll_per_s", 3.9, (3.6, 4.4), 44.0, 0.02, 0.09)),
    "pitch": (("praat.f0_sd_semitones", 1.31, (2.1, 3.4), 5.0, 0.24, 0.16), ("praat.f0_range_p20_p80_semitones", 2.2, (3.0, 5.4), 9.0, 0.11, 0.13)),
    "voice_quality": (("praat.cpps_db", 17.2, (13.9, 16.1), 88.0, -0.16, 0.11), ("praat.jitter_local_percent", 1.02, (1.3, 2.1), 12.0, -0.1, 0.08)),
    "loudness": (("egemaps.loudness_sma3_stddevNorm", 0.412, (0.48, 0.63), 14.0, 0.07, 0.15),
                 ("praat.intensity_mean_db", 61.3, None, None, 0.02, 0.1)),
    "articulation": (("egemaps.spectralFluxV_sma3nz_stddevNorm", 0.53, (0.49, 0.62), 41.0, -0.04, 0.07),),
}  # fmt: skip
"""Family to its features: name, value, middle half of the group, percentile, log-odds, half of its interval."""


def estimate(value, half):
    return Estimate(value=value, low=value - half, high=value + half)


def feature(name, value, band, percentile, log_odds, half):
    spec, told = catalogue.get(name), estimate(log_odds, half)
    return FeatureContribution(
        name=name, label_en=spec.label_en, label_zh=spec.label_zh, meaning_en=spec.meaning_en, meaning_zh=spec.meaning_zh, unit=spec.unit,
        value=value, log_odds=told, stable=told.stable, rank_agreement=0.83, percentile=percentile,
        band=None if band is None else FeatureBand(low=band[0], high=band[1]), published=None,
        stands_out=percentile is not None and not 10 < percentile < 90, sentence=Words(en="As usual in the reference group.", zh="与参考组相当。"),
    )  # fmt: skip


def family(name, rank, effect, half, driver=False, agreement=0.6, features=()):
    texts, told = catalogue.get_family(name), estimate(effect, half)
    return FamilyContribution(
        family=name, label_en=texts.label_en, label_zh=texts.label_zh, probability=told, log_odds=estimate(8 * effect, 8 * half),
        stable=told.stable, rank=rank, rank_agreement=agreement, main_driver=driver, percentile=80.0, features=features,
        sentence=Words(en=f"Something of {texts.label_en.lower()} than in at least 90 % of the reference group.", zh="与参考组相当。"),
    )  # fmt: skip


def explanation(effects=None, base=BASE, **changes):
    """An explanation whose families have these effects."""
    effects = EFFECTS if effects is None else effects
    named = {name: tuple(feature(*one) for one in FEATURES.get(name, ())) for name in effects}
    families = tuple(family(name, rank, *effect, features=named[name]) for rank, (name, effect) in enumerate(effects.items(), 1))
    total = sum(one.probability.value for one in families)
    probability = base + total
    log_odds = math.log(probability / (1 - probability))
    fields = {
        "target": "depressed",
        "scale": "calibrated_log_odds",
        "reference": Reference(group="not depressed, female, 45 to 65 years", subjects=84, unmatched=("device",)),
        "base_probability": base,
        "probability": probability,
        "base_log_odds": log_odds - 8 * total,
        "log_odds": log_odds,
        "families": families,
        "moves": (
            Move(family="timing", to_status="flagged", log_odds=0.41, percentile_now=92.0, percentile_then=97.6, within_reference=False),
            Move(family="pitch", to_status="flagged", log_odds=0.41, percentile_now=81.0, percentile_then=93.0, within_reference=True),
        ),
    }
    return Explanation(**fields | changes)


def with_embedding(disagrees=True):
    """An explanation in which a learned pattern took part."""
    effects = {"embedding": (0.142, 0.09, False, 0.77), "timing": (0.061, 0.03, False, 0.7), "pitch": (-0.02, 0.03, False, 0.5)}
    without = WithoutEmbedding(
        probability=estimate(0.17, 0.06), status="not_flagged" if disagrees else "flagged",
        label="depressed", disagrees=disagrees, reproduced_r2=estimate(0.42, 0.11),
        reproduced_subjects=120,
    )  # fmt: skip
    return explanation(effects, without_embedding=without)


def timeline(windows=40, window_s=15.0, out=(7, 8, 23), frame_s=0.01, seed=5):
    """A timeline of this many windows, some of which stand out."""
    rng = np.random.default_rng(seed)
    frames = round(windows * window_s / frame_s)
    effects = np.round(rng.normal(0, 0.006, windows).clip(-0.014, 0.014), 4)
    for place, index in enumerate(out):
        effects[index] = (0.034 - 0.004 * place) * (-1) ** (place // 2)
    return Timeline(
        target="depressed", probability=0.226, window_s=window_s,
        windows=tuple(
            Window(start_s=round(i * window_s, 2), end_s=round((i + 1) * window_s, 2), effect=float(effect), stands_out=i in out)
            for i, effect in enumerate(effects)
        ),
        band_low=-0.0165, band_high=0.0172, draws=40, tracks=tracks(frames, frame_s, rng), course_window_s=10.0, course=course(windows * window_s),
    )  # fmt: skip


def course(duration_s):
    """A probability that rises and falls, with a gap where nothing was said."""
    times = [t for t in np.arange(5.0, duration_s - 5, 1.0) if not 60 < t < 80]
    risk = 0.25 + 0.1 * np.sin(np.array(times) / 30)
    return {
        "depressed": tuple(Moment(time_s=t, probability=p, low=max(p - 0.15, 0), high=p + 0.2) for t, p in zip(times, risk.tolist(), strict=True))
    }


def tracks(frames, step_s, rng):
    """Phrases of some seconds between pauses, their pitch falling."""
    f0, level, speech, at = np.zeros(frames), np.full(frames, -58.0), [], 0.3
    while at < frames * step_s - 1:
        stop = min(at + rng.uniform(1, 4), frames * step_s - 0.2)
        inside = slice(round(at / step_s), round(stop / step_s))
        count = inside.stop - inside.start
        f0[inside] = np.where(rng.random(count) < 0.65, 215 - 60 * np.linspace(0, 1, count) + 12 * np.sin(np.arange(count) / 9), 0)
        level[inside] = -24 + 5 * np.sin(np.arange(count) / 13) + rng.normal(0, 3, count)
        speech.append((round(at, 2), round(stop, 2)))
        at = stop + rng.uniform(0.3, 1.6)
    return Tracks(
        step_s=step_s, f0_hz=tuple(np.round(f0, 1).tolist()), level_dbfs=tuple(np.round(level + rng.normal(0, 1, frames), 1).tolist()),
        speech_s=tuple(speech),
    )  # fmt: skip


def result(told=None, when=None, **changes):
    """A flagged result."""
    told = told or explanation()
    interval = Interval(low=0.14, high=0.37, level=0.95, method="sampling error of the model")
    rate = RateStatement(value=0.9, low=0.85, high=0.94, subjects=60)
    answers = [_answers("not_depressed", 0.11, 0.55, 0.34), _answers("depressed", 0.52, 0.1, 0.38)]
    fields = {
        "status": Status.FLAGGED,
        "task": "depression",
        "summary": "This recording is more similar to recordings of people labelled 'depressed'. It is not a diagnosis.",
        "probability": ClassProbability(label="depressed", value=told.probability, interval=interval, prevalence=0.1),
        "prediction_set": ("depressed",),
        "prediction_coverage": 0.9,
        "operating_point": OperatingPointStatement(probability=0.072, sensitivity=rate, specificity=rate),
        "answers": answers,
        "quality": quality("warn"),
        "explanation": told,
        "missing": (MissingFeature(name="praat.cpps_voiced_db", reason="switched off: too noisy"),),
        "timeline": when,
        "context": SubjectContext(sex="female", age=54, task="read speech", device="headset"),
        "model": _model(),
        "software": {"clinical-ser": "0.1.0", "numpy": "2.4.6"},
        "recording": RecordingIdentity(sha256="5e" * 32, duration_s=83.2),
        "notices": ("No key this installation trusts has signed this model; make sure you know where it comes from.",),
    }
    return ScreeningResult(**fields | changes)


def refused(**changes):
    """A result of a recording that the gate refuses."""
    fields = {
        "status": Status.NOT_USABLE,
        "task": "depression",
        "summary": "The recording is not usable. Record at least 25 seconds of speech in a quiet room.",
        "quality": quality("fail"),
        "model": _model(),
        "software": {"clinical-ser": "0.1.0"},
        "recording": RecordingIdentity(sha256="5e" * 32, duration_s=6.1),
    }
    return ScreeningResult(**fields | changes)


def quality(verdict):
    advice = {"warn": "Speak a little longer.", "fail": "Record at least 25 seconds of speech in a quiet room."}
    checks = (
        QualityCheck(name="speech", value=21.0 if verdict == "warn" else 4.2, unit="s", warn_limit=25.0, fail_limit=10.0, verdict=verdict,
                     advice=advice.get(verdict, ""), advice_zh="", source="a study"),
        QualityCheck(name="snr", value=34.1, unit="dB", warn_limit=30.0, fail_limit=15.0, verdict="pass", advice="", advice_zh="", source="a trial"),
    )  # fmt: skip
    return QualityReport(usable=verdict != "fail", verdict=verdict, checks=checks, switched_off={"praat.cpps*": "too noisy"})


def _model(simulated=True):
    return ModelIdentity(name="voice-one", version="3", digest="sha256:" + "5e" * 32, signature="untrusted", simulated=simulated, uses_baseline=False)


def _answers(label, flagged, not_flagged, indeterminate):
    shares = {"flagged": flagged, "not_flagged": not_flagged, "indeterminate": indeterminate}
    return AnswerRates(label=label, **{key: Share(value=v, low=v - 0.08, high=v + 0.08) for key, v in shares.items()})


def figure(value, half=0.02, subjects=240, recordings=960):
    low, high = (None, None) if half is None or value is None else (value - half, value + half)
    return Figure(value=value, low=low, high=high, subjects=subjects, recordings=recordings, method="cluster bootstrap")


def cohort(features=12, recordings=960, inside=False, bins=41):
    """A cohort in which high values of the first features raise the score, and of others lower it."""
    rng = np.random.default_rng(11)
    edges = np.round(np.linspace(-1.0, 1.0, bins + 1), 4)
    names = [one for one in catalogue.names("timing", "praat") if not one.endswith("_hz")][:features]
    sizes = {"timing": 0.062, "pitch": 0.045, "voice_quality": 0.021, "loudness": 0.013, "articulation": 0.009}
    firsts = (0.48, 0.31, 0.12, 0.06, 0.03)
    return CohortExplanation(
        target="depressed", recordings=recordings, subjects=240,
        families=tuple(
            FamilySummary(family=key, label_en=catalogue.get_family(key).label_en, size=figure(size, size / 5), first=figure(first, 0.02))
            for (key, size), first in zip(sizes.items(), firsts, strict=True)
        ),
        features=tuple(_beeswarm(name, i, recordings, edges, rng) for i, name in enumerate(names)),
        edges=tuple(edges.tolist()),
        reliability={
            "main_driver": figure(0.41, 0.08, 80, 100), "first_agrees": figure(0.67, 0.05, 80, 100), "stable_families": figure(0.38, 0.04, 80, 100),
        },
        inside=inside,
    )  # fmt: skip


def _beeswarm(name, place, recordings, edges, rng):
    spec, size = catalogue.get(name), 0.4 * math.exp(-place / 6)
    values = rng.normal(0, 1, recordings)
    effects = values * size * (1 if place % 3 else -1) + rng.normal(0, size / 3, recordings)
    thirds = np.digitize(values, np.quantile(values, (1 / 3, 2 / 3)))
    inside = np.clip(effects, edges[0], edges[-1])
    counts = {third: tuple(np.histogram(inside[thirds == i], edges)[0].tolist()) for i, third in enumerate(("low", "middle", "high"))}
    return FeatureSummary(
        name=name, label_en=spec.label_en, family=spec.family, unit=spec.unit, size=figure(size * 0.8, size / 10), counts=counts
    )  # fmt: skip
