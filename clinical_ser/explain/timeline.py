"""When in a recording the score came about: each window is left out, and what the probability then is says what the window did to it.

Left out means removed, with what was before and after joined; silence in its place would be a pause that nobody made. Any window changes the score a
little when it goes; only what goes beyond that of windows at random places is a moment that stands out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy.special import expit, softmax
from scipy.stats import t as student_t

from clinical_ser.audio.analysis import FRAME_STEP_S, SpeechAnalysis
from clinical_ser.audio.voice_activity import f0_on_grid
from clinical_ser.errors import InvalidValueError
from clinical_ser.features.contours import Contours
from clinical_ser.features.vector import FeatureVector
from clinical_ser.models.trained import TrainedModel
from clinical_ser.strict import Strict

MOST_WINDOWS = 40
SHORTEST_WINDOW_S = 2.5
"""A phrase or so; a shorter window holds too little to tell apart from chance."""
DRAWS = 40
"""Windows at random places that a recording's band is learned from."""
LEVEL = 0.95
"""Share of recordings without a special moment in which no window stands out."""
TAIL_FREEDOM = 5
"""Effects of windows have heavier tails than the normal distribution. With the t of so few degrees of freedom, a window stands out in 2 % of 50
recordings made of one speaker's neutral speech in mixed pieces; with 6 in 6 %."""
MAD_TO_SD, MEAN_TO_SD = 1.4826, 1.2533
"""Of the median and the mean absolute deviation of a normal distribution."""
LEAST_EFFECT = 0.005
"""Half a point of percent: a smaller effect is no moment to listen to, however steady the rest of the recording is."""
COURSE_WINDOW_S = 10.0
"""As much as embeddings are made of at a time; in less, pauses and pitch are hardly measured."""
COURSE_STEP_S = 1.0
MOST_MOMENTS = 600
"""Of a longer recording than ten minutes, moments lie further apart."""
LEAST_SPEECH_S = 2.0
"""A stretch with less speech is no moment: nothing is said of it."""
LEAST_WINDOWS = 4
"""Of a recording that is cut into fewer, a window is most of it."""

Mask = NDArray[np.bool_]


class Window(Strict):
    """One window of the recording and what it did to the probability."""

    start_s: float
    end_s: float
    effect: float
    """Probability of the recording less that without the window: above 0, the window raised it."""
    stands_out: bool
    """The effect lies outside the band, and is worth `LEAST_EFFECT`."""


class Moment(Strict):
    """What the model says of the stretch around one moment alone."""

    time_s: float
    """Middle of the stretch."""
    probability: float = Field(ge=0, le=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    """95 % interval over refits: the sampling error of the model. That a short stretch tells less than a recording is not in it."""


class Tracks(Strict):
    """What is heard, every 10 ms; a voice's melody is part of what identifies a person."""

    step_s: float = Field(gt=0)
    f0_hz: tuple[float, ...]
    """0 where no voice was found."""
    level_dbfs: tuple[float, ...]
    """Loudness as level: RMS of 25 ms."""
    speech_s: tuple[tuple[float, float], ...]
    """Stretches of speech (start, end); what lies between two is a pause."""

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        if len(self.f0_hz) != len(self.level_dbfs):
            raise ValueError("tracks have one length")
        return self


class Timeline(Strict):
    """The effect of every window, in order, and what chance makes of as much speech."""

    target: str
    probability: float = Field(ge=0, le=1)
    """Of the whole recording."""
    offset_s: float = Field(default=0.0, ge=0)
    """Where in the file the recording began that was screened; all times count from there."""
    window_s: float
    windows: tuple[Window, ...] = Field(min_length=1)
    band_low: float
    band_high: float
    """Where the effects of all windows lie in a share `level` of recordings in which no moment differs from the others."""
    level: float = Field(default=LEVEL, gt=0, lt=1)
    draws: int
    """Windows at random places that the band is learned from."""
    course_window_s: float = Field(default=0.0, ge=0)
    """Length of the stretches that `course` is about."""
    course: dict[str, tuple[Moment, ...]] = Field(default_factory=dict)
    """The probability over time of the positive of two classes, or of each of several, from stretches that overlap. The model learned from whole
    recordings: of a stretch it is less sure than it says."""
    tracks: Tracks

    @property
    def standing_out(self) -> tuple[Window, ...]:
        """Windows beyond the band, largest effect first."""
        return tuple(sorted((window for window in self.windows if window.stands_out), key=lambda window: -abs(window.effect)))


def timeline_of(
    model: TrainedModel,
    contours: Contours,
    vector: FeatureVector,
    analysis: SpeechAnalysis,
    *,
    target: str,
    prevalence: float | None = None,
    offset_s: float = 0.0,
) -> Timeline:
    """Leave out one window after the other.

    Parameters
    ----------
    model
        The model that answered.
    contours
        Of the recording, by the feature sets that the model uses.
    vector
        The recording's features as they entered the model: gated, in its order, less the person's baseline if it uses one.
    analysis
        The recording's shared analysis.
    target, prevalence
        The class, and what its probability is stated for.
    offset_s
        Where in its file the recording begins.

    Returns
    -------
    Timeline

    Raises
    ------
    InvalidValueError
        If the recording is too short; see `too_short`.
    """
    frames = len(analysis.level_dbfs)
    if reason := too_short(frames * FRAME_STEP_S):
        raise InvalidValueError("timeline", "a recording of this length", reason)
    windows = _windows(frames)
    asked = _Asked(model, contours, vector, target, prevalence)
    left_out = [_all_but(frames, span) for span in (*windows, *_at_random(frames, windows[0][1] - windows[0][0]))]
    whole, *without = asked.probabilities([np.ones(frames, bool), *left_out])
    effects, at_random = np.split(whole - np.array(without), [len(windows)])
    low, high = _band(at_random, len(windows))
    return Timeline(
        target=target,
        probability=float(whole),
        offset_s=offset_s,
        window_s=round((windows[0][1] - windows[0][0]) * FRAME_STEP_S, 2),
        windows=tuple(_window(span, float(effect), low, high) for span, effect in zip(windows, effects, strict=True)),
        band_low=low,
        band_high=high,
        draws=DRAWS,
        course_window_s=COURSE_WINDOW_S,
        course=asked.course(frames, analysis.speech),
        tracks=tracks(analysis),
    )


def too_short(duration_s: float) -> str | None:
    """Return why a recording of this length has no timeline, or None."""
    least_s = LEAST_WINDOWS * SHORTEST_WINDOW_S
    return None if duration_s >= least_s else f"it takes {least_s:g} s to be cut into {LEAST_WINDOWS} windows"


def tracks(analysis: SpeechAnalysis) -> Tracks:
    """Return the frame-level tracks of a recording, for a picture."""
    return Tracks(
        step_s=FRAME_STEP_S,
        f0_hz=tuple(np.round(f0_on_grid(analysis.pitch, len(analysis.level_dbfs)), 1).tolist()),
        level_dbfs=tuple(np.round(analysis.level_dbfs, 1).tolist()),
        speech_s=analysis.segments_s,
    )


@dataclass(frozen=True, eq=False)
class _Asked:
    """The model, asked about a recording with frames left out."""

    model: TrainedModel
    contours: Contours
    vector: FeatureVector
    target: str
    prevalence: float | None

    def probabilities(self, kept: Sequence[Mask]) -> NDArray[np.float64]:
        """Return the target's probability for each mask of frames that stay."""
        log_odds = self.model.log_odds(self._rows(kept))
        if self.model.binary:
            return np.asarray(expit(log_odds + self.model.prevalence_shift(self.prevalence)))
        return np.asarray(softmax(log_odds, axis=1)[:, self.model.task.classes.index(self.target)])

    def course(self, frames: int, speech: Mask) -> dict[str, tuple[Moment, ...]]:
        """Return what the model says of the stretch around each moment, where there is enough speech in it."""
        half = round(COURSE_WINDOW_S / 2 / FRAME_STEP_S)
        step = max(round(COURSE_STEP_S / FRAME_STEP_S), -(-(frames - 2 * half) // MOST_MOMENTS))
        spoken = np.concatenate([[0], np.cumsum(speech)]) * FRAME_STEP_S
        middles = [m for m in range(half, frames - half + 1, step) if spoken[m + half] - spoken[m - half] >= LEAST_SPEECH_S]
        if not middles:
            return {}
        rows = self._rows(_only(frames, (middle - half, middle + half)) for middle in middles)
        classes = self.model.task.classes
        found = {
            label: self.model.probabilities_of(rows, label, prevalence=self.prevalence) for label in (classes[1:] if self.model.binary else classes)
        }
        return {
            label: tuple(
                Moment(time_s=round(middle * FRAME_STEP_S, 2), probability=float(value), low=float(low), high=float(high))
                for middle, (value, low, high) in zip(middles, told, strict=True)
            )
            for label, told in found.items()
        }

    def _rows(self, kept: Iterable[Mask]) -> NDArray[np.float64]:
        """Return the features that the model would have been given for each mask of frames that stay."""
        of_name = {name: place for place, name in enumerate(self.contours.names)}
        place = [of_name[name] for name in self.vector.names]
        whole = self.contours.leaving_out(None)[place]
        return np.array([self._moved(whole, self.contours.leaving_out(keep)[place]) for keep in kept])

    def _moved(self, whole: NDArray[np.float64], without: NDArray[np.float64]) -> NDArray[np.float64]:
        """Move the features that entered the model by what leaving out changes; what cannot be measured any more is missing."""
        change = np.where(np.isnan(whole), 0.0, without - whole)
        return np.asarray(self.vector.values + change)


def _windows(frames: int) -> list[tuple[int, int]]:
    length = max(round(SHORTEST_WINDOW_S / FRAME_STEP_S), -(-frames // MOST_WINDOWS))
    count = frames // length
    edges = np.linspace(0, frames, count + 1).round().astype(int).tolist()
    return list(pairwise(edges))


def _window(span: tuple[int, int], effect: float, low: float, high: float) -> Window:
    start_s, end_s = (round(frame * FRAME_STEP_S, 2) for frame in span)
    return Window(start_s=start_s, end_s=end_s, effect=effect, stands_out=not low <= effect <= high and abs(effect) >= LEAST_EFFECT)


def _all_but(frames: int, span: tuple[int, int]) -> Mask:
    keep = np.ones(frames, bool)
    keep[slice(*span)] = False
    return keep


def _only(frames: int, span: tuple[int, int]) -> Mask:
    return ~_all_but(frames, span)


def _at_random(frames: int, length: int) -> list[tuple[int, int]]:
    """Return windows of this length at random places."""
    starts = np.random.default_rng(0).integers(0, frames - length + 1, DRAWS)
    return [(start, start + length) for start in starts.tolist()]


def _band(effects: NDArray[np.float64], windows: int) -> tuple[float, float]:
    """Return the range that all windows together keep to (Bonferroni), from the median and its absolute deviation: a special moment moves neither."""
    centre = float(np.median(effects))
    away = np.abs(effects - centre)
    # Trees answer in steps, and most windows may change nothing: then the mean of what the others do is the measure.
    spread = MAD_TO_SD * float(np.median(away)) or MEAN_TO_SD * float(away.mean())
    half = float(student_t.ppf(1 - (1 - LEVEL) / 2 / windows, min(windows - 1, TAIL_FREEDOM))) * spread
    return centre - half, centre + half
