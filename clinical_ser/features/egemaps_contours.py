"""The 88 eGeMAPSv02 functionals of a recording with frames left out, hundreds of times, after one pass of openSMILE.

The one idea: openSMILE hands out its contours before it smooths them. Frames are taken out there, and smoothing and statistics are done again
as its configuration defines them, so that a seam looks as in a cut recording. With all frames kept this gives openSMILE's values but for rounding.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import opensmile
from numpy.typing import NDArray

from clinical_ser.audio.recording import SAMPLE_RATE_HZ, Recording
from clinical_ser.features.egemaps import EGEMAPS_NAMES, MIN_SAMPLES, joined, parts_of, smile_of, weights_of, without_false_zeros
from clinical_ser.features.kept import Kept

_Floats = NDArray[np.float64]
_Contours = NDArray[np.float32]
"""Shape (contours, frames). openSMILE's own precision as long as values are smoothed and compared, so that ties fall as they do there."""

STEP_S = 0.01
"""`frameStep` of every framer in GeMAPSv01b_core.lld.conf.inc, and of `SpeechAnalysis.level_dbfs`."""
_STEP = round(STEP_S * SAMPLE_RATE_HZ)
_SHORT_WINDOW, _LONG_WINDOW = round(0.02 * SAMPLE_RATE_HZ), round(0.06 * SAMPLE_RATE_HZ)
"""`frameSize` of gemapsv01b_frame25 (20 ms, in spite of its name) and gemapsv01b_frame60."""
_LEAST_FRAMES = (MIN_SAMPLES - _SHORT_WINDOW) // _STEP + 1
"""Short windows in the shortest recording that has values."""

_SHORT_LEVELS = ("egemapsv02_energyRMS", "gemapsv01b_loudness", "egemapsv02_lldSetNoF0AndLoudnessZ")
_LONG_LEVELS = (
    "gemapsv01b_lld_single_logF0",
    "egemapsv02_lldSetNoF0AndLoudnessNz",
    "egemapsv02_lldSetSpectralNz",
    "egemapsv02_lldSetSpectralZ",
)
"""What the functionals are taken over once it is smoothed (eGeMAPSv02_core and GeMAPSv01b_core.func.conf.inc): in windows of 20 ms, and of 60 ms
where F0 comes in."""
_END_LEVELS = ("gemapsv01b_formants", "egemapsv02_lldsetF_smo")
"""Formants before and after smoothing, in all frames; `_counted` needs them."""
_SHORT_ROWS, _LONG_ROWS = 7, 29
_VOICE, _UNVOICED = slice(1, 15), slice(24, 29)
"""Measures of voice, and of the spectrum in unvoiced frames, among the long rows."""
_FORMANT, _SMOOTHED_FORMANT = [0, 1, 2], [16, 19, 22]
"""F1, F2 and F3 among the rows of `_END_LEVELS`: five frequencies and five bandwidths come before the 15 contours of lldsetF."""

_PERCENTILES = (20, 50, 80)
_SALIENT = np.float32(0.1)
"""`Peaks2.relThresh`: the least rise or fall, as a share of the contour's range."""
_CLEARLY_HIGHER = 1.05
"""A low peak replaces the one before it when it is 5 % higher (openSMILE's functionalPeaks2.cpp)."""
_MIN_RUN, _MIN_GAP = 3, 2
"""`segMinLng` and `pauseMinLng`, in frames: defaults of cFunctionalSegments, which the configuration leaves as they are."""
_MAX_RUNS = 1000
"""`Segments.maxNumSeg`."""
_PITCH_DELAY = 40
"""`bufferLength` of the pitch tracker's Viterbi search, in frames: it decides no later than that."""
_LEAST_ENERGY = 1e-12
"""openSMILE's equivalent sound level ends at -120 dB (seen on digital silence)."""


@dataclass(frozen=True, eq=False)
class EgemapsContours:
    """The eGeMAPSv02 contours of one recording, ready to be summed up with frames left out; make one with `of`.

    References
    ----------
    Eyben F et al. (2016), IEEE Transactions on Affective Computing 7:190-202.

    Examples
    --------
    >>> import numpy as np
    >>> from clinical_ser.audio import from_samples
    >>> contours = EgemapsContours.of(from_samples(np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000))
    >>> keep = np.ones(contours.frames, np.bool_)
    >>> keep[20:40] = False
    >>> contours.summarise(keep).shape
    (88,)
    """

    frames: int
    """Frames of the grid of `SpeechAnalysis.level_dbfs`."""
    parts: "tuple[_Part, ...]"
    """As `egemaps.functionals` cuts the recording; none when it is too short."""

    @classmethod
    def of(cls, recording: Recording) -> Self:
        """Run openSMILE once over the recording, about 15 ms a second of it.

        Parameters
        ----------
        recording
            As for `egemaps.functionals`.
        """
        samples = recording.samples
        frames = max(1, len(samples) // _STEP) if len(samples) else 0
        if len(samples) < MIN_SAMPLES:
            return cls(frames, ())
        parts = parts_of(samples)
        starts = np.cumsum([0, *map(len, parts)])
        return cls(frames, tuple(_Part.of(part, int(start)) for part, start in zip(parts, starts[:-1], strict=True)))

    def summarise(self, keep: NDArray[np.bool_] | None = None) -> _Floats:
        """Compute the functionals of the frames that stay.

        What was before and after a gap become neighbours within a part, and durations shrink. Parts are joined as in `egemaps.functionals`,
        each weighing by what is left of it as well; one of which less than 60 ms is left says nothing.

        Parameters
        ----------
        keep
            Shape (frames,), frame k centred at (k + 0.5) * 10 ms; None keeps all. A window of openSMILE's stays when the frame at its centre
            does.

        Returns
        -------
        ndarray of shape (88,)
            In the order of `EGEMAPS_NAMES` and its units, NaN where missing. Without gaps these are openSMILE's values but for rounding.

        Raises
        ------
        InvalidValueError
            A mask of another shape or type.
        """
        kept = Kept.of(keep, self.frames).keep
        if not self.parts:
            return np.full(len(EGEMAPS_NAMES), np.nan)
        shares, rows = zip(*(part.summarise(kept) for part in self.parts), strict=True)
        values = np.stack(rows)
        return joined(values, weights_of(values) * np.array(shares)[:, None])


@dataclass(frozen=True, eq=False)
class _Part:
    """One stretch that openSMILE measures in one call."""

    short: _Contours
    """Energy, loudness, spectral flux and MFCC 1-4."""
    long: _Contours
    """F0, 14 measures of voice, 9 of the spectrum in voiced frames and 5 in unvoiced ones; 0 where there is nothing to measure. One frame follows
    those that count, for smoothing to look at."""
    short_at: NDArray[np.int64]
    """For each short window the frame of the recording's grid at its centre."""
    long_at: NDArray[np.int64]

    @classmethod
    def of(cls, samples: NDArray[np.float32], start: int) -> Self:
        """Measure a stretch that begins at sample `start` of the recording."""
        windows = (len(samples) - _LONG_WINDOW) // _STEP + 1
        tracks = _tracks(samples, _SHORT_LEVELS + _LONG_LEVELS + _END_LEVELS)[:, :windows]
        short, long, ends = np.split(tracks, [_SHORT_ROWS, _SHORT_ROWS + _LONG_ROWS])
        # Read together, levels end with the shortest of them, and four more short windows fit behind the last long one. They are measured
        # alone, with the window before them that spectral flux looks back to.
        short = np.concatenate((short, _tracks(samples[(windows - 1) * _STEP :], _SHORT_LEVELS)[:, 1:]), axis=1)
        long = _followed(long, _counted(ends))
        return cls(short, long, _grid(start, short.shape[1], _SHORT_WINDOW), _grid(start, long.shape[1], _LONG_WINDOW))

    @cached_property
    def whole(self) -> _Floats:
        """The row without gaps: most parts have none most of the time."""
        return _row(self.short, self.long, self.long.shape[1] - 1)

    def summarise(self, keep: NDArray[np.bool_]) -> tuple[float, _Floats]:
        """Return the share of the part that stays, and its row, of NaN when that is next to nothing."""
        short, long = keep[self.short_at], keep[self.long_at]
        if short.all() and long.all():
            return 1.0, self.whole
        counted = int(np.count_nonzero(long[:-1]))
        if np.count_nonzero(short) < _LEAST_FRAMES or not counted:
            return 0.0, np.full(len(EGEMAPS_NAMES), np.nan)
        return float(short.mean()), _row(self.short[:, short], self.long[:, long], counted)


def _tracks(samples: NDArray[np.float32], levels: tuple[str, ...]) -> _Contours:
    """Read levels of openSMILE's in one pass, one after the other."""
    return np.asarray(smile_of(opensmile.FeatureSet.eGeMAPSv02, ";".join(levels))(samples, SAMPLE_RATE_HZ)[0])


def _counted(ends: _Contours) -> int:
    """How many long windows openSMILE's functionals count, from the rows of `_END_LEVELS`.

    At the end of input they run before the pitch tracker has decided its last frames, one in a pause and more in a voice, and never see these.
    Smoothing shows where that was: it ends there once, repeating the last frame, before it goes on.
    """
    raw, smoothed = ends[_FORMANT], ends[_SMOOTHED_FORMANT]
    windows = raw.shape[1]
    for counted in range(windows - 1, max(0, windows - 1 - _PITCH_DELAY), -1):
        ended = np.concatenate((raw[:, :counted], raw[:, counted - 1 : counted]), axis=1)
        if np.array_equal(_smooth_nonzero(ended), smoothed[:, : counted + 1]):
            return counted
    return max(1, windows - 1)


def _followed(long: _Contours, counted: int) -> _Contours:
    """Take the windows that count and one more, which repeats measures of voice: those are smoothed as if they ended there (see `_counted`)."""
    followed = long[:, [*range(counted), min(counted, long.shape[1] - 1)]]
    followed[_VOICE, -1] = followed[_VOICE, -2]
    return followed


def _threes(contours: _Contours) -> tuple[_Contours, _Contours, _Contours]:
    """Each frame, the one before and the one after; edges repeat."""
    padded = np.pad(contours, ((0, 0), (1, 1)), mode="edge")
    return padded[:, 1:-1], padded[:, :-2], padded[:, 2:]


def _smooth(contours: _Contours) -> _Contours:
    """Mean of three frames (`sma3`)."""
    here, before, after = _threes(contours)
    return (here + before + after) / np.float32(3)


def _smooth_nonzero(contours: _Contours) -> _Contours:
    """Mean of those of three frames that are not 0, where the middle one is not (`sma3nz`)."""
    here, before, after = _threes(contours)
    count = np.float32(1) + (before != 0) + (after != 0)
    return np.asarray(np.where(here != 0, (here + before + after) / count, 0), np.float32)


def _grid(start: int, windows: int, window: int) -> NDArray[np.int64]:
    """Frame of the recording's grid at the centre of each window."""
    return (start + window // 2 + _STEP * np.arange(windows)) // _STEP


def _row(short: _Contours, long: _Contours, counted: int) -> _Floats:
    """All functionals of a part in the order of `EGEMAPS_NAMES`, from one frame or more, of the long ones the first `counted`."""
    sound, voice = _smooth(short[1:]), _smooth_nonzero(long)[:, :counted]
    loudness, pitch = sound[0], voice[0]
    of_sound, of_voice = _moments(sound, np.ones_like(sound, np.bool_)), _moments(voice, voice != 0)
    peaks, loudness_shape = _shape(loudness)
    _, pitch_shape = _shape(pitch[pitch != 0])
    row = (
        *(of_voice[0], pitch_shape),
        *(of_sound[0], loudness_shape),
        of_sound[1:].ravel(),
        of_voice[1 : _UNVOICED.start].ravel(),
        of_voice[_UNVOICED, 0],
        [peaks / (STEP_S * len(loudness))],
        _runs(pitch != 0),
        _runs(pitch == 0)[1:],
        [10 * np.log10(max(short[0].mean(dtype=np.float64), _LEAST_ENERGY))],
    )
    return without_false_zeros(np.concatenate(row))


def _moments(contours: _Contours, counted: NDArray[np.bool_]) -> _Floats:
    """Shape (contours, 2): mean and SD over mean (`amean`, `stddevNorm = 2`) of the frames that count, 0 where there are none."""
    number = np.maximum(counted.sum(axis=1), 1)
    mean = contours.sum(axis=1, where=counted, dtype=np.float64) / number
    deviation = np.where(counted, contours - mean[:, None], 0.0)
    spread = np.sqrt(np.einsum("ij,ij->i", deviation, deviation) / number)
    return np.stack((mean, spread / np.where(mean == 0, 1.0, mean)), axis=1)


def _shape(contour: NDArray[np.float32]) -> tuple[int, _Floats]:
    """Count the peaks of a contour, and compute its percentiles, their range, and mean and SD of its rising and of its falling slopes."""
    if not len(contour):
        return 0, np.zeros(8)
    at, is_peak = _salient(contour)
    percentiles = np.percentile(contour.astype(np.float64), _PERCENTILES)
    return int(is_peak.sum()), np.array([*percentiles, percentiles[-1] - percentiles[0], *_slopes(contour.astype(np.float64), at, is_peak)])


def _salient(contour: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Find alternating peaks and valleys that stand out (cFunctionalPeaks2): their frames, and which of them are peaks."""
    middle, before, after = contour[2:-2], contour[1:-3], contour[3:-1]
    above = (middle > before) & (middle > after)
    found = np.flatnonzero(above | ((middle < before) & (middle < after)))
    at, is_peak = found + 2, above[found]
    first, least = contour[0], _SALIENT * (contour.max() - contour.min())
    stays = _without_low_peaks(contour[at], is_peak, first, least)
    at, is_peak = at[stays], is_peak[stays]
    stays = is_peak | (_last_peak(contour[at], is_peak, first) - contour[at] >= least)
    at, is_peak = at[stays], is_peak[stays]
    outermost = _extremes(np.where(is_peak, contour[at], -contour[at]), is_peak)
    return at[outermost], is_peak[outermost]


def _without_low_peaks(heights: NDArray[np.float32], is_peak: NDArray[np.bool_], first: np.float32, least: np.float32) -> NDArray[np.bool_]:
    """Mark what stays when peaks go that rise too little above the last valley that counted; valleys all stay.

    A peak little above the extremum before it, but well above that valley, goes on the same climb: it replaces the climb's peak when it is
    clearly higher, counts as another after a valley that counted, and goes otherwise.
    """
    stays = np.ones(len(heights), np.bool_)
    far = np.abs(np.diff(heights, prepend=first)) >= least
    valley = peak = float(first)
    peak_at, after_valley = -1, False
    for index, (height, of_peak, counts) in enumerate(zip(heights.tolist(), is_peak.tolist(), far.tolist(), strict=True)):
        if not of_peak:
            if counts:
                valley, after_valley = height, True
            continue
        if not counts:
            if height - valley < least:
                stays[index] = False
                continue
            if height > peak * _CLEARLY_HIGHER:
                if peak_at >= 0:
                    stays[peak_at] = False
            elif not after_valley:
                stays[index] = False
                continue
        peak, peak_at, after_valley = height, index, False
    return stays


def _last_peak(heights: NDArray[np.float32], is_peak: NDArray[np.bool_], first: np.float32) -> NDArray[np.float32]:
    """Height of the latest peak at or before each extremum, or of the contour's first frame."""
    latest = np.maximum.accumulate(np.where(is_peak, np.arange(1, len(heights) + 1), 0))
    return np.concatenate(([first], heights))[latest]


def _extremes(outward: NDArray[np.float32], is_peak: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Of neighbours of one kind the outermost, the first of equals, so that kinds alternate."""
    if not len(outward):
        return np.zeros(0, np.int64)
    begins = np.concatenate(([True], is_peak[1:] != is_peak[:-1]))
    group = np.cumsum(begins) - 1
    outermost = np.flatnonzero(outward == np.maximum.reduceat(outward, np.flatnonzero(begins))[group])
    return outermost[np.unique(group[outermost], return_index=True)[1]]


def _slopes(contour: _Floats, at: NDArray[np.int64], is_peak: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """Mean and SD of rising, then of falling slopes, a second; falls count positive.

    Two quirks are openSMILE's: the way from the last extremum to the end keeps its sign whichever kind it is, and counts in the mean but not
    in the sum of squares; and a contour without extremum has its slope by the frame.
    """
    if not len(at):
        slope = float(contour[-1] - contour[0]) / len(contour)
        return max(slope, 0.0), 0.0, min(slope, 0.0), 0.0
    corners = np.concatenate(([0], at, [len(contour) - 1]))
    ways = np.diff(contour[corners]) / (STEP_S * np.diff(corners))
    rising, falling, end = ways[:-1][is_peak], -ways[:-1][~is_peak], ways[-1:]
    nothing = end[:0]
    return (*_of_slopes(rising, nothing if is_peak[-1] else end), *_of_slopes(falling, end if is_peak[-1] else nothing))


def _of_slopes(slopes: _Floats, end: _Floats) -> tuple[float, float]:
    """Mean with, and SD around it without, the way to the end."""
    number = max(1, len(slopes) + len(end))
    mean = float(slopes.sum() + end.sum()) / number
    return mean, float(np.sqrt(np.square(slopes - mean).sum() / number))


def _runs(inside: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Rate of runs a second, mean and SD of their lengths in seconds (cFunctionalSegments).

    Gaps under `_MIN_GAP` frames are bridged, runs with fewer than `_MIN_RUN` frames of their own do not count, and a length is that from the
    first to the last frame, one less than their number.
    """
    edges = np.flatnonzero(np.diff(inside, prepend=False, append=False))
    starts, ends = edges[::2], edges[1::2]
    if not len(starts):
        return 0.0, 0.0, 0.0
    begins = np.flatnonzero(np.concatenate(([True], starts[1:] - ends[:-1] >= _MIN_GAP)))
    own = np.add.reduceat(ends - starts, begins)
    last = np.concatenate((begins[1:], [len(starts)])) - 1
    lengths = STEP_S * (ends[last] - 1 - starts[begins])[own >= _MIN_RUN][:_MAX_RUNS]
    if not len(lengths):
        return 0.0, 0.0, 0.0
    return len(lengths) / (STEP_S * len(inside)), float(lengths.mean()), float(lengths.std())
