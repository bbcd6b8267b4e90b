"""What the Praat features are summarised from: each value beside the frame of the level grid it belongs to, so that frames can be left out.

Jitter and shimmer are means over groups of neighbouring glottal periods. The groups are formed once; leaving frames out only drops those
that touch or span a removed frame, and so a seam never looks like a period.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import parselmouth
from numpy.typing import NDArray
from parselmouth.praat import call

from clinical_ser.audio.analysis import FRAME_STEP_S
from clinical_ser.features.kept import Kept

# The settings of Praat's voice report and of every jitter and shimmer command (manual, "Voice 2. Jitter", "Voice 3. Shimmer").
SHORTEST_PERIOD_S = 0.0001
LONGEST_PERIOD_S = 0.02
MAXIMUM_PERIOD_FACTOR = 1.3
MAXIMUM_AMPLITUDE_FACTOR = 1.6

_JITTER_SIZES = {"local": 2, "rap": 3, "ppq5": 5}
_SHIMMER_SIZES = {"local": 2, "apq3": 3, "apq5": 5, "apq11": 11}
"""How many neighbours each variant compares, by Praat's name of it."""
_FEWEST_PULSES = 3
"""Praat measures the amplitude of a pulse by the periods on both of its sides, and refuses fewer."""


@dataclass(frozen=True, eq=False)
class Track:
    """Values in time, with for each the grid frame that holds it; both of shape (n,)."""

    values: NDArray[np.float64]
    frames: NDArray[np.int64]

    def left(self, kept: Kept) -> NDArray[np.float64]:
        """Return the values in kept frames."""
        return self.values[kept.keep[self.frames]]


@dataclass(frozen=True, eq=False)
class Groups:
    """One value for each group of neighbouring pulses, with the frames of the group's first and last pulse; all of shape (groups,)."""

    values: NDArray[np.float64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]

    def left(self, kept: Kept) -> NDArray[np.float64]:
        """Return the values of the groups without a removed frame from their first to their last pulse."""
        return self.values[kept.removed_before[self.last + 1] == kept.removed_before[self.first]]


@dataclass(frozen=True, eq=False)
class Pulses:
    """The glottal pulses of a recording and what jitter and shimmer are means of."""

    praat: Any
    """Praat's PointProcess."""
    periods_s: Groups
    jitter_s: dict[str, Groups]
    """Difference of each period from its neighbours; `local`, `rap` and `ppq5`."""
    amplitudes: Groups
    shimmer: dict[str, Groups]
    """Difference of each amplitude from its neighbours; `local`, `apq3`, `apq5` and `apq11`, and `local_dB` in units of 20 dB."""

    def jitters(self, kept: Kept) -> dict[str, float]:
        """Return jitter by the name Praat gives the variant, as a ratio or in seconds; NaN where no group is left.

        References
        ----------
        Praat manual, "PointProcess: Get jitter (local)..." and its neighbours.
        """
        period_s = float(_mean(self.periods_s.left(kept)))
        absolute_s = {variant: float(_mean(groups.left(kept))) for variant, groups in self.jitter_s.items()}
        ratios = {variant: value / period_s for variant, value in absolute_s.items()}
        return {**ratios, "local, absolute": absolute_s["local"], "ddp": 3.0 * ratios["rap"]}

    def shimmers(self, kept: Kept) -> dict[str, float]:
        """Return shimmer by the name Praat gives the variant, as a ratio or in dB; NaN where no group is left.

        References
        ----------
        Praat manual, "Sound & PointProcess: Get shimmer (local)..." and its neighbours.
        """
        # Praat leaves the last amplitude out of the mean.
        amplitude = _mean(self.amplitudes.left(kept)[:-1])
        found = {variant: _mean(groups.left(kept)) for variant, groups in self.shimmer.items()}
        ratios = {variant: float(value / amplitude) for variant, value in found.items() if variant != "local_dB"}
        return {**ratios, "local_dB": float(20.0 * found["local_dB"]), "dda": 3.0 * ratios["apq3"]}


def frames_at(times_s: NDArray[np.float64], frames: int) -> NDArray[np.int64]:
    """Return the grid frame that holds each time, shape as `times_s`; beyond the grid its first or last frame."""
    return np.clip((times_s / FRAME_STEP_S).astype(np.int64), 0, frames - 1)


def glottal_pulses(sound: parselmouth.Sound, praat: Any, frames: int) -> Pulses:
    """Form the groups of neighbouring periods and amplitudes that jitter and shimmer compare.

    Parameters
    ----------
    sound
        The recording.
    praat
        Praat's PointProcess of its glottal pulses.
    frames
        Length of the level grid.
    """
    times_s = pulse_times_s(praat)
    at = frames_at(times_s, frames)
    periods_s, jitter_s = _period_groups(times_s, at)
    amplitudes, shimmer = _amplitude_groups(*_amplitudes(sound, praat, times_s), times_s, at)
    return Pulses(praat, periods_s, jitter_s, amplitudes, shimmer)


def pulse_times_s(praat: Any) -> NDArray[np.float64]:
    """Return the times of the points of Praat's PointProcess in seconds, shape (points,)."""
    if not call(praat, "Get number of points"):
        return np.empty(0)
    return np.asarray(call(praat, "To Matrix").values[0])


def _period_groups(times_s: NDArray[np.float64], at: NDArray[np.int64]) -> tuple[Groups, dict[str, Groups]]:
    """Return the periods, and those that jitter compares, of pulses at these times and in these frames, both of shape (pulses,)."""
    periods_s = np.diff(times_s)
    possible = _is_period(periods_s)
    alike = _factors(periods_s) <= MAXIMUM_PERIOD_FACTOR
    # A period is like at least one of its neighbours; an end of the series counts as a neighbour that it is like.
    like_either = np.append(True, alike) | np.append(alike, True)
    regular = np.flatnonzero(possible & like_either[: len(periods_s)])
    linked = possible[1:] & possible[:-1] & alike
    jitter_s = {name: _compared(periods_s, linked, size, (at[:-1], at[1:]), _from_left) for name, size in _JITTER_SIZES.items()}
    return Groups(periods_s[regular], at[regular], at[regular + 1]), jitter_s


def _amplitude_groups(
    pulses: NDArray[np.int64], amplitudes: NDArray[np.float64], times_s: NDArray[np.float64], at: NDArray[np.int64]
) -> tuple[Groups, dict[str, Groups]]:
    """Return the amplitudes, and those that shimmer compares; `pulses` are the places in `times_s` of those that have an amplitude."""
    linked = _is_period(np.diff(times_s[pulses])) & (_factors(amplitudes) <= MAXIMUM_AMPLITUDE_FACTOR)
    # Which periods an amplitude was measured over, the pulses beside it decided, so they belong to its group.
    first, last = at[pulses - 1], at[pulses + 1]
    shimmer = {name: _compared(amplitudes, linked, size, (first, last), _in_threes) for name, size in _SHIMMER_SIZES.items()}
    # The C library's logarithm, as in Praat: NumPy's own differs in the last bit on some processors.
    steps = np.array([abs(math.log10(ratio)) for ratio in (amplitudes[:-1] / amplitudes[1:])[linked].tolist()], np.float64)
    return Groups(amplitudes, first, last), shimmer | {"local_dB": Groups(steps, first[:-1][linked], last[1:][linked])}


def _amplitudes(sound: parselmouth.Sound, praat: Any, times_s: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ask Praat for the amplitude of every pulse that has a regular period on both sides; the pulses' places in `times_s`, and amplitudes."""
    nothing = np.empty(0, np.int64), np.empty(0)
    if len(times_s) < _FEWEST_PULSES:
        return nothing
    tier = call([praat, sound], "To AmplitudeTier (period)", 0.0, 0.0, SHORTEST_PERIOD_S, LONGEST_PERIOD_S, MAXIMUM_PERIOD_FACTOR)
    if not call(tier, "Get number of points"):
        return nothing
    at_s, amplitudes = call(call(tier, "Down to TableOfReal"), "To Matrix").values.T
    return np.searchsorted(times_s, at_s).astype(np.int64), np.ascontiguousarray(amplitudes)


def _is_period(gaps_s: NDArray[np.float64]) -> NDArray[np.bool_]:
    return (gaps_s >= SHORTEST_PERIOD_S) & (gaps_s <= LONGEST_PERIOD_S)


def _factors(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many times the smaller the larger of two neighbours is; shape (n - 1,)."""
    return np.maximum(values[1:], values[:-1]) / np.minimum(values[1:], values[:-1])


def _compared(
    values: NDArray[np.float64],
    linked: NDArray[np.bool_],
    size: int,
    spans: tuple[NDArray[np.int64], NDArray[np.int64]],
    total: Callable[[Sequence[NDArray[np.float64]]], NDArray[np.float64]],
) -> Groups:
    """Compare the middle of every `size` neighbours in a row that are all linked with their mean; of two, one with the other.

    `linked`, shape (n - 1,), tells for two neighbours whether they may be compared; `spans` holds the frames in which each value begins and
    ends, two of shape (n,); `total` adds the members of a group in the order that Praat adds them.
    """
    starts = _rows(linked, size - 1)
    members = [values[starts + place] for place in range(size)]
    differences = np.abs(members[0] - members[1]) if size == 2 else np.abs(members[size // 2] - total(members) / size)
    return Groups(differences, spans[0][starts], spans[1][starts + size - 1])


def _rows(linked: NDArray[np.bool_], length: int) -> NDArray[np.int64]:
    """Where `length` links in a row begin."""
    count = max(0, len(linked) - length + 1)
    every = np.ones(count, np.bool_)
    for place in range(length):
        every &= linked[place : place + count]
    return np.flatnonzero(every)


def _from_left(members: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    return reduce(add, members)


def _in_threes(members: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Add three at a time, then their sums two at a time."""
    sums = [_from_left(members[first : first + 3]) for first in range(0, len(members), 3)]
    while len(sums) > 1:
        sums = [_from_left(sums[first : first + 2]) for first in range(0, len(sums), 2)]
    return sums[0]


def _mean(values: NDArray[np.float64]) -> np.longdouble:
    """Mean in Praat's precision and order of summation, so that its numbers come out to the last bit; NaN of nothing."""
    return np.cumsum(values, dtype=np.longdouble)[-1] / len(values) if len(values) else np.longdouble(math.nan)
