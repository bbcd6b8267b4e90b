"""How an explanation holds when the same speech is recorded a little differently: softer, with noise, or started half a second later.

What a listener would not notice should not change what moved a score; how much it does stands in the model card.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from clinical_ser import audio
from clinical_ser.audio.recording import SAMPLE_RATE_HZ, Recording
from clinical_ser.cohorts.manifest import Manifest
from clinical_ser.errors import TrainingError
from clinical_ser.evaluation.explanations import Rerecorded
from clinical_ser.evaluation.figure import Figure
from clinical_ser.evaluation.intervals import bootstrap
from clinical_ser.models.reference import Person
from clinical_ser.screening.result import ScreeningResult
from clinical_ser.screening.screener import Screener

Samples = NDArray[np.float32]
GAIN_DB = -6.0
SNR_DB = 30.0
"""White noise this far below the speech: a quiet room with a fan."""
SHIFT_S = 0.5
LEAST_USABLE = 5
REPLICATES = 1000

_COLUMNS = ("probability", "effect", "correlation", "same_first", "same_status")
_SHARES = ("same_first", "same_status")


@dataclass(frozen=True)
class Spoken:
    """A recording to be recorded again, and what is known of whom it is of."""

    load: Callable[[], Recording]
    subject: str
    person: Person


def spoken_in(manifest: Manifest, *, most: int) -> list[Spoken]:
    """Return at most so many recordings of a manifest, evenly spread over its rows; each is loaded when it is its turn."""
    frame = manifest.frame
    chosen = frame.iloc[np.unique(np.linspace(0, len(frame) - 1, min(most, len(frame))).round().astype(int))]
    return [_spoken(row) for row in chosen.to_dict("records")]


def _spoken(row: Mapping[Hashable, Any]) -> Spoken:
    start, end = (float(value) if isinstance(value := row.get(name), float) and np.isfinite(value) else None for name in ("start", "end"))
    return Spoken(partial(audio.load, row["path"], start=start, end=end), str(row["subject"]), Person.of_row(row))


def softer(samples: Samples) -> Samples:
    """Return the samples 6 dB softer."""
    return np.asarray(samples * np.float32(10 ** (GAIN_DB / 20)), np.float32)


def noisier(samples: Samples) -> Samples:
    """Return the samples with white noise 30 dB below the level of their speech."""
    analysis = audio.analyse(audio.from_samples(samples, SAMPLE_RATE_HZ))
    speech_db = 10 * np.log10(np.mean(10 ** (analysis.level_dbfs[analysis.speech] / 10))) if analysis.speech.any() else -np.inf
    noise = np.random.default_rng(0).standard_normal(len(samples)) * 10 ** ((speech_db - SNR_DB) / 20)
    return np.asarray(np.clip(samples + noise, -1, 1), np.float32)


def later(samples: Samples) -> Samples:
    """Return the samples from half a second on."""
    return samples[round(SHIFT_S * SAMPLE_RATE_HZ) :]


CHANGES: Mapping[str, Callable[[Samples], Samples]] = {
    f"{-GAIN_DB:g} dB softer": softer,
    f"with white noise {SNR_DB:g} dB below it": noisier,
    f"started {SHIFT_S:g} s later": later,
}


def rerecord(screener: Screener, spoken: Iterable[Spoken], *, progress: Callable[[int], None] | None = None) -> tuple[Rerecorded, ...]:
    """Explain recordings before and after each change.

    Parameters
    ----------
    screener
        The model.
    spoken
        Recordings; those that the gate refuses as they are, are passed over.
    progress
        Called with the number of recordings done.

    Returns
    -------
    tuple of Rerecorded
        One a change.

    Raises
    ------
    TrainingError
        If fewer than five recordings are usable.
    """
    found: dict[str, list[tuple[float, ...]]] = {change: [] for change in CHANGES}
    subjects: dict[str, list[str]] = {change: [] for change in CHANGES}
    usable = 0
    for done, one in enumerate(spoken, start=1):
        samples = one.load().samples
        before = _ask(screener, one, samples)
        if before.explanation is not None:
            usable += 1
            for change, figures in _compared(screener, one, samples, before):
                found[change].append(figures)
                subjects[change].append(one.subject)
        if progress:
            progress(done)
    if usable < LEAST_USABLE:
        raise TrainingError(f"Only {usable} of the recordings are usable; give at least {LEAST_USABLE}.")
    return tuple(_summary(change, np.array(found[change]), np.array(subjects[change]), usable) for change in CHANGES)


def _ask(screener: Screener, one: Spoken, samples: Samples, explained: str | None = None) -> ScreeningResult:
    recording = audio.from_samples(samples, SAMPLE_RATE_HZ)
    return screener.screen(recording, **asdict(one.person), explained=explained)


def _compared(screener: Screener, one: Spoken, samples: Samples, before: ScreeningResult) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Yield, for each change after which the recording is usable, the figures in the order of `_COLUMNS`."""
    for change, apply in CHANGES.items():
        after = _ask(screener, one, apply(samples), before.explanation.target if before.explanation else None)
        if after.explanation is not None:
            yield change, _differences(before, after)


def _differences(before: ScreeningResult, after: ScreeningResult) -> tuple[float, ...]:
    assert before.explanation is not None
    assert after.explanation is not None
    assert before.probability is not None
    assert after.probability is not None
    effects, again = ({family.family: family.probability.value for family in result.families} for result in (before.explanation, after.explanation))
    here, there = (np.array([values[family] for family in effects]) for values in (effects, again))
    return (
        abs(after.explanation.probability - before.explanation.probability),
        float(np.abs(there - here).mean()),
        float(spearmanr(here, there).statistic) if np.ptp(here) and np.ptp(there) else 1.0,
        float(before.explanation.families[0].family == after.explanation.families[0].family),
        float((before.status, before.probability.label) == (after.status, after.probability.label)),
    )


def _summary(change: str, values: NDArray[np.float64], subjects: NDArray[np.str_], usable: int) -> Rerecorded:
    people = len(np.unique(subjects))
    if not len(values):
        nothing = {name: Figure.of(np.nan, np.nan, np.nan, subjects=0, recordings=0, method="cluster bootstrap") for name in _COLUMNS}
        return Rerecorded(change=change, refused=usable, **nothing)
    drawn = bootstrap(lambda weight: weight @ values / weight.sum(), subjects, replicates=REPLICATES)
    figures = {
        name: Figure.of(
            drawn.values[i],
            *drawn.interval(i, subjects=people, share=name in _SHARES),
            subjects=people,
            recordings=len(values),
            method="cluster bootstrap",
        )
        for i, name in enumerate(_COLUMNS)
    }
    return Rerecorded(change=change, refused=usable - len(values), **figures)
