"""The timeline on real speech: leaving frames out against cutting the file, moments that were put there, and time.

    python -m benchmarks.timeline --data PATH/TO/emodb-2s [--model emotion-emodb]

Recordings are made by joining the clips of one speaker (EmoDB, acted), which the model has heard: what is measured is how the timeline follows the
model, not how good that is.
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.tables import publish
from clinical_ser import audio
from clinical_ser.audio.recording import SAMPLE_RATE_HZ, Recording
from clinical_ser.cohorts.corpora import get_corpus
from clinical_ser.explain.timeline import Timeline, timeline_of
from clinical_ser.features import extraction
from clinical_ser.features.contours import extract_with_contours
from clinical_ser.features.vector import FeatureVector
from clinical_ser.screening.screener import Screener

Samples = NDArray[np.float32]
SECONDS = (30, 300, 600)
PLANTED_S = 8.0


def joined(paths: list[str], seconds: float) -> Samples:
    """Join clips until so many seconds are there, over and over if need be, with 0.3 s of what lies between: nothing."""
    parts: list[Samples] = []
    total = 0
    while total < seconds * SAMPLE_RATE_HZ:
        for path in paths:
            parts += [audio.load(Path(path)).samples, np.zeros(round(0.3 * SAMPLE_RATE_HZ), np.float32)]
            total += len(parts[-2]) + len(parts[-1])
    return np.concatenate(parts)[: round(seconds * SAMPLE_RATE_HZ)]


def recording_of(samples: Samples) -> Recording:
    """Return samples as a recording, with a little noise, as no room is silent."""
    noise = np.random.default_rng(0).normal(0, 10 ** (-65 / 20), len(samples))
    return audio.from_samples(np.clip(samples + noise, -1, 1).astype(np.float32), SAMPLE_RATE_HZ)


def model_vector(screener: Screener, whole: FeatureVector) -> FeatureVector:
    """Return the model's features of a recording, gated or not."""
    names = screener.model.features
    return FeatureVector(names, np.array([whole[name] for name in names]), {name: whole.missing[name] for name in names if name in whole.missing})


def asked(screener: Screener, recording: Recording) -> Timeline:
    """Return the timeline of a recording, towards its most probable class."""
    analysis = audio.analyse(recording)
    whole, contours = extract_with_contours(recording, analysis)
    vector = model_vector(screener, whole)
    target = screener.model.task.classes[int(screener.model.answer(vector.values).probabilities.argmax())]
    return timeline_of(screener.model, contours, vector, analysis, target=target)


def cut(screener: Screener, recording: Recording, found: Timeline) -> NDArray[np.float64]:
    """Return the effect of each window when the file is really cut and analysed anew."""
    target = screener.model.task.classes.index(found.target)
    effects = []
    for window in found.windows:
        first, last = (round(at * SAMPLE_RATE_HZ) for at in (window.start_s, window.end_s))
        rest = audio.from_samples(np.concatenate([recording.samples[:first], recording.samples[last:]]), SAMPLE_RATE_HZ)
        vector = model_vector(screener, extraction.extract(rest))
        effects.append(found.probability - screener.model.answer(vector.values).probabilities[target])
    return np.array(effects)


def agreement(screener: Screener, speakers: dict[str, pd.DataFrame]) -> list[dict[str, object]]:
    """Compare effects by leaving frames out with effects by cutting, window by window."""
    ours, theirs, band, out, out_too = [], [], [], [], []
    for clips in speakers.values():
        recording = recording_of(joined(clips["path"].tolist(), 40))
        found = asked(screener, recording)
        effects = np.array([window.effect for window in found.windows])
        really = cut(screener, recording, found)
        ours, theirs = [*ours, *(effects - effects.mean())], [*theirs, *(really - really.mean())]
        band.append((found.band_high - found.band_low) / 2)
        beyond = np.array([window.stands_out for window in found.windows])
        out += beyond.tolist()
        out_too += [value for value, is_out in zip(np.sign(effects) == np.sign(really), beyond, strict=True) if is_out]
    gap = np.abs(np.array(ours) - np.array(theirs))
    return [
        {
            "speakers": len(speakers),
            "windows": len(ours),
            "correlation of effects": f"{np.corrcoef(ours, theirs)[0, 1]:.2f}",
            "mean size, points": f"{100 * np.abs(ours).mean():.2f}",
            "median difference, points": f"{100 * np.median(gap):.2f}",
            "half the band, points": f"{100 * np.mean(band):.2f}",
            "windows that stand out": int(np.sum(out)),
            "of these, same sign when cut": f"{np.mean(out_too):.2f}" if out_too else "none",
        }
    ]


def planted(screener: Screener, speakers: dict[str, pd.DataFrame]) -> list[dict[str, object]]:
    """Put eight seconds of the speaker's anger into a minute of their neutral speech; and mix such a minute, so that no moment is left."""
    first, stands, chance = [], [], []
    for clips in speakers.values():
        neutral = joined(clips.loc[clips["label"] == "neutral", "path"].tolist(), 60)
        anger = joined(clips.loc[clips["label"] == "anger", "path"].tolist(), PLANTED_S)
        for start_s in (10.0, 30.0, 45.0):
            at = round(start_s * SAMPLE_RATE_HZ)
            found = asked(screener, recording_of(np.concatenate([neutral[:at], anger, neutral[at:]])))
            inside = [start_s - 0.5 <= w.start_s + 0.5 and w.end_s - 0.5 <= start_s + PLANTED_S + 0.5 for w in found.windows]
            largest = int(np.argmax([abs(w.effect) for w in found.windows]))
            first.append(inside[largest])
            stands.append(any(w.stands_out and i for w, i in zip(found.windows, inside, strict=True)))
            pieces = np.array_split(neutral, 60)
            order = np.random.default_rng(at).permutation(60)
            chance.append(bool(asked(screener, recording_of(np.concatenate([pieces[i] for i in order]))).standing_out))
    return [
        {
            "recordings": len(first),
            "largest effect is the planted stretch": f"{np.mean(first):.2f}",
            "planted stretch stands out": f"{np.mean(stands):.2f}",
            "neutral speech in mixed pieces: anything stands out": f"{np.mean(chance):.2f}",
        }
    ]


def timed(screener: Screener, clips: pd.DataFrame) -> list[dict[str, object]]:
    """Time of screening, alone and with its timeline."""
    rows = []
    for seconds in SECONDS:
        recording = recording_of(joined(clips["path"].tolist(), seconds))
        taken = []
        for timeline in (False, True):
            start = time.perf_counter()
            result = screener.screen(recording, timeline=timeline)
            taken.append(time.perf_counter() - start)
        windows = len(result.timeline.windows) if result.timeline else 0
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rows.append(
            {
                "seconds": seconds, "windows": windows, "screening, s": f"{taken[0]:.1f}", "with timeline, s": f"{taken[1]:.1f}",
                "peak memory, MiB": f"{peak:.0f}",
            }
        )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="emotion-emodb")
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    screener = Screener.load(given.model)
    frame = get_corpus("emodb").read(given.data)
    speakers = {str(name): clips.sample(frac=1, random_state=0) for name, clips in frame.groupby("subject")}
    found = {
        "Time": timed(screener, next(iter(speakers.values()))),
        "Leaving out and cutting": agreement(screener, speakers),
        "Planted moments": planted(screener, speakers),
    }
    publish(found, given.json)


if __name__ == "__main__":
    main()
