"""openSMILE's feature sets on one recording: eGeMAPSv02 (88 functionals and its 25 contours) and, on request, ComParE 2016 (6373).

The one idea: openSMILE never says "not found", it writes a zero and goes on. So a value that was measured in no frame becomes missing here,
with the reason. A recording longer than `PART_S` is measured in equal parts, because one call over all of it is wrong, not only large.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata, resources
from typing import Any

import numpy as np
import opensmile
import pandas as pd
from numpy.typing import NDArray

from clinical_ser.audio.recording import SAMPLE_RATE_HZ, Recording
from clinical_ser.errors import FeatureError
from clinical_ser.features import catalogue

MIN_SAMPLES = 960
"""60 ms, the longest analysis window of both sets: below it openSMILE warns and gives NaN."""
PART_S = 120.0
"""Longest stretch given to openSMILE in one call. Its voiced segments are counted up to 1000 a call (`Segments.maxNumSeg` in
GeMAPSv01b_core.func.conf.inc): at 3.3 a second VoicedSegmentsPerSec is right up to 5 minutes and falls to half of the truth at 10. Two minutes
hold 8.3 a second, more than speech has. A call takes 24 MB of memory for each minute (243 MB for 10), so a part takes 50 MB at any length."""

EGEMAPS_NAMES: tuple[str, ...] = catalogue.names("egemaps")
COMPARE_NAMES: tuple[str, ...] = catalogue.names("compare")

TOO_SHORT = "recording shorter than 60 ms"
NO_VOICE = "no voiced frames found"
NOT_IN_VOICE = "not measurable in any voiced frame"
NO_UNVOICED = "no unvoiced frames found"

_RULES = 1
"""Version of this file's own rules (which zeros are missing, how parts are joined); part of the fingerprints."""
_LEAST_SHARE = 0.01 / PART_S
"""One frame of a part: the least weight of a part in which something was measured."""
_RECORDING_VOICED = "F0semitoneFrom27.5Hz_sma3nz_amean"
_RUN_RATE, _RUN_MEAN = "VoicedSegmentsPerSec", "MeanVoicedSegmentLengthSec"


def _fingerprint(feature_set: opensmile.FeatureSet, *folders: str) -> str:
    """Name everything that decides the values: openSMILE's version, the text of its configuration, and our own rules."""
    digest = hashlib.sha256()
    root = resources.files("opensmile") / "core" / "config"
    for folder in folders:
        for file in sorted((root / folder).iterdir(), key=lambda entry: entry.name):
            digest.update(f"{folder}/{file.name}\n".encode() + file.read_bytes())
    return f"opensmile/{metadata.version('opensmile')} {feature_set.name} config={digest.hexdigest()[:12]} part={PART_S} rules={_RULES}"


FINGERPRINT = _fingerprint(opensmile.FeatureSet.eGeMAPSv02, "egemaps/v02", "gemaps/v01b", "shared")
"""Changes whenever an eGeMAPS value could; a bundle made under another one is refused."""
COMPARE_FINGERPRINT = _fingerprint(opensmile.FeatureSet.ComParE_2016, "compare", "shared")


def functionals(recording: Recording, *, running: Callable[[], None] | None = None) -> tuple[dict[str, float], dict[str, str]]:
    """Compute the 88 eGeMAPSv02 functionals.

    Over `PART_S` the recording is cut into equal parts and a value is the mean of the parts' values; for measures of voiced (unvoiced) frames
    each part weighs by its voiced (unvoiced) time. Parts depend on the length alone, so every worker gives the same bytes.

    Parameters
    ----------
    recording
        16 kHz mono within ±32767/32768 (openSMILE's wrapper turns +1.0 into -32768).
    running
        Called when openSMILE is at work without Python's lock, for whoever works beside it; for each part.

    Returns
    -------
    values
        Every name of `EGEMAPS_NAMES`, in that order; NaN where missing.
    missing
        For each NaN the reason.

    Raises
    ------
    FeatureError
        The installed openSMILE gives other features than this version of the package knows.

    References
    ----------
    Eyben F et al. (2016), IEEE Transactions on Affective Computing 7:190-202.
    """
    if len(recording.samples) < MIN_SAMPLES:
        return _all_missing(EGEMAPS_NAMES)
    rows = np.stack([without_false_zeros(row) for row in _rows(recording, opensmile.FeatureSet.eGeMAPSv02, running)])
    values = joined(rows, weights_of(rows))
    voiced = np.isfinite(values[_COLUMN[_RECORDING_VOICED]])
    return _named(EGEMAPS_NAMES, values, {name: _reason(name, voiced=bool(voiced)) for name in EGEMAPS_NAMES})


def compare(recording: Recording, *, running: Callable[[], None] | None = None) -> tuple[dict[str, float], dict[str, str]]:
    """Compute the 6373 ComParE 2016 functionals; parts, parameters, returns and raises as for `functionals`.

    F0, jitter, shimmer and HNR are missing when no frame was voiced. Counted segments end at 100 a call in this set (its own definition).

    References
    ----------
    Schuller B et al. (2016), The INTERSPEECH 2016 Computational Paralinguistics Challenge, Interspeech 2016:2001-2005.
    """
    if len(recording.samples) < MIN_SAMPLES:
        return _all_missing(COMPARE_NAMES)
    rows = np.stack(_rows(recording, opensmile.FeatureSet.ComParE_2016, running))
    share = rows[:, [_COMPARE_SHARE]]
    values = joined(np.where(_COMPARE_VOICED & (share == 0), np.nan, rows), np.where(_COMPARE_VOICED, share, 1.0))
    return _named(COMPARE_NAMES, values, dict.fromkeys(COMPARE_NAMES, NO_VOICE))


def low_level_descriptors(recording: Recording) -> pd.DataFrame:
    """Compute eGeMAPSv02's contours, the frame-wise measures behind the functionals.

    Returns
    -------
    pandas.DataFrame
        One row every 10 ms, indexed by `start_s` (start of the frame in seconds), one column for each of the 25 descriptors under openSMILE's
        own name, float32; NaN where a descriptor of voiced frames met an unvoiced one (openSMILE writes 0). Without rows under 60 ms.
        In recordings over `PART_S` the first and last frames of a part miss their neighbours across the cut.
    """
    smile = smile_of(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.LowLevelDescriptors)
    frames = []
    offset = 0
    for part in parts_of(recording.samples):
        contours = smile(part, SAMPLE_RATE_HZ)[0].T if len(part) >= MIN_SAMPLES else np.empty((0, len(smile.feature_names)), np.float32)
        start_s = offset / SAMPLE_RATE_HZ + 0.01 * np.arange(len(contours))
        frames.append(pd.DataFrame(contours, index=pd.Index(start_s, name="start_s"), columns=smile.feature_names))
        offset += len(part)
    table = pd.concat(frames)
    of_voice = [name for name in table.columns if name.endswith("sma3nz")]
    table.loc[table["F0semitoneFrom27.5Hz_sma3nz"] == 0, of_voice] = np.nan
    return table


@dataclass(frozen=True)
class _Column:
    """How one eGeMAPS column behaves: which frames it is taken over, and which column is zero when there was nothing to measure."""

    frames: str
    anchor: str


def _column(own_name: str) -> _Column:
    """Place a column by openSMILE's naming: `sma3nz` skips unvoiced frames, `UV` voiced ones; a mean of exactly 0 was taken over none."""
    contour, _, statistic = own_name.rpartition("_")
    if own_name in {_RUN_MEAN, "StddevVoicedSegmentLengthSec"}:
        return _Column("voiced", _RUN_MEAN)
    if own_name in {"MeanUnvoicedSegmentLength", "StddevUnvoicedSegmentLength"}:
        return _Column("unvoiced", "MeanUnvoicedSegmentLength")
    if not contour.endswith("sma3nz"):
        return _Column("all", "")
    if "UV" in contour:
        return _Column("unvoiced", own_name)
    return _Column("voiced", f"{contour}_{statistic.replace('stddev', 'mean') if statistic.endswith('Slope') else 'amean'}")


def _own(name: str) -> str:
    """OpenSMILE's own name of a feature, without the prefix of its set."""
    return name.partition(".")[2]


_COLUMN = {_own(name): index for index, name in enumerate(EGEMAPS_NAMES)}
_COLUMNS = tuple(_column(name) for name in _COLUMN)
_VOICED = np.array([column.frames == "voiced" for column in _COLUMNS])
_UNVOICED = np.array([column.frames == "unvoiced" for column in _COLUMNS])
_COMPARE_SHARE = COMPARE_NAMES.index("compare.F0final_sma_ff0_nnz")
"""The share of voiced frames."""
_COMPARE_VOICED = np.array([_own(name).startswith(("F0final_", "jitter", "shimmer", "logHNR_")) for name in COMPARE_NAMES])
_COMPARE_VOICED[_COMPARE_SHARE] = False
_ANCHORED = np.flatnonzero(_VOICED | _UNVOICED)
_ANCHORS = np.array([_COLUMN[_COLUMNS[index].anchor] for index in _ANCHORED])


def without_false_zeros(row: NDArray[np.float64]) -> NDArray[np.float64]:
    """Set to NaN what was measured in no frame.

    Without voice F1-F3 amplitude is no zero but -201 dB, openSMILE's floor; so all columns of voice go when F0 does.
    """
    cleaned = row.copy()
    cleaned[_ANCHORED[row[_ANCHORS] == 0]] = np.nan
    if row[_COLUMN[_RECORDING_VOICED]] == 0:
        cleaned[_VOICED] = np.nan
    return cleaned


def weights_of(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shape (parts, 88): the share of each part's time that a column was taken over."""
    voiced = np.nan_to_num(rows[:, [_COLUMN[_RUN_RATE]]] * rows[:, [_COLUMN[_RUN_MEAN]]])
    share = np.where(_VOICED, voiced, np.where(_UNVOICED, 1 - voiced, 1.0))
    return np.asarray(np.maximum(share, _LEAST_SHARE))


def joined(rows: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over parts (rows) with weights of the same shape, leaving out NaN; one part is returned as it is, bit for bit."""
    if len(rows) == 1:
        return np.asarray(rows[0], np.float64)
    present = np.isfinite(rows)
    weights = np.where(present, weights, 0.0)
    total = weights.sum(axis=0)
    sums = (weights * np.where(present, rows, 0.0)).sum(axis=0)
    return np.asarray(np.divide(sums, total, out=np.full(rows.shape[1], np.nan), where=total > 0), np.float64)


def _reason(name: str, *, voiced: bool) -> str:
    """Why a column is missing, should it be."""
    frames = _COLUMNS[_COLUMN[_own(name)]].frames
    if frames == "unvoiced":
        return NO_UNVOICED
    return NOT_IN_VOICE if voiced else NO_VOICE


def _named(names: tuple[str, ...], values: NDArray[np.float64], reasons: dict[str, str]) -> tuple[dict[str, float], dict[str, str]]:
    named = dict(zip(names, values.tolist(), strict=True))
    return named, {name: reasons[name] for name, value in named.items() if math.isnan(value)}


def _all_missing(names: tuple[str, ...]) -> tuple[dict[str, float], dict[str, str]]:
    return dict.fromkeys(names, math.nan), dict.fromkeys(names, TOO_SHORT)


def parts_of(samples: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Cut into equal stretches of at most `PART_S`, as views."""
    return np.array_split(samples, max(1, math.ceil(len(samples) / (PART_S * SAMPLE_RATE_HZ))))


def _rows(recording: Recording, feature_set: opensmile.FeatureSet, running: Callable[[], None] | None) -> list[NDArray[np.float64]]:
    """One row of functionals a part, exactly as openSMILE gives them."""
    smile = smile_of(feature_set, opensmile.FeatureLevel.Functionals)
    # Calling the object skips the 1.5 ms that `process_signal` spends on a pandas frame. Keeping the native object across calls would save
    # another 3 ms (of 53 for 3.7 s of speech), but only through `opensmile.core`, which is not public.
    rows = [smile(part, SAMPLE_RATE_HZ, running)[0, :, 0].astype(np.float64) for part in parts_of(recording.samples)]
    if not np.isfinite(rows).all():
        raise FeatureError(f"openSMILE gave values of {feature_set.name} that are not finite.")
    return rows


class _Extractor:
    """One openSMILE object, for one call at a time; it keeps nothing from one recording to the next (each call runs a fresh native object)."""

    def __init__(self, feature_set: opensmile.FeatureSet, level: opensmile.FeatureLevel | str) -> None:
        self._smile = opensmile.Smile(feature_set, level)
        self.feature_names: list[str] = self._smile.feature_names
        if level is opensmile.FeatureLevel.Functionals and self.feature_names != [_own(name) for name in _EXPECTED[feature_set]]:
            raise FeatureError(f"openSMILE {opensmile.__version__} gives other features for {feature_set.name} than the catalogue describes.")
        self._running: Callable[[], None] | None = None
        # Not public. In a version that makes its native object elsewhere nobody is told, and measuring beside other work is slower, not wrong.
        if make := getattr(self._smile, "_smile", None):
            self._smile._smile = lambda options: self._announcing(make(options))

    def run(self, samples: NDArray[np.float32], rate_hz: int, running: Callable[[], None] | None) -> NDArray[np.float32]:
        self._running = running
        return np.asarray(self._smile(samples, rate_hz))

    def _announcing(self, native: Any) -> Any:
        """Let a native object say when it begins the long run in which it does not want Python's lock."""
        running, run = self._running, native.run
        if running is not None:

            def announced() -> None:
                running()
                run()

            native.run = announced
        return native


class Extractor:
    """OpenSMILE for one set and level, for any number of threads: as many objects as are busy at once, and these are kept (5 ms each to make).

    An object is not thread-safe, and two objects in two threads do run at once (no GIL).
    """

    def __init__(self, feature_set: opensmile.FeatureSet, level: opensmile.FeatureLevel | str) -> None:
        self._make = partial(_Extractor, feature_set, level)
        first = self._make()
        self.feature_names = first.feature_names
        self._idle = [first]

    def __call__(self, samples: NDArray[np.float32], rate_hz: int, running: Callable[[], None] | None = None) -> NDArray[np.float32]:
        """Return what openSMILE measures, shape (channels, features, frames).

        `running` is called when it begins its long native run; up to there (5 ms) it waits for Python's lock again and again.
        """
        try:
            extractor = self._idle.pop()
        except IndexError:  # all are busy
            extractor = self._make()
        found = extractor.run(samples, rate_hz, running)
        self._idle.append(extractor)  # only one that has not failed
        return found


_EXPECTED = {opensmile.FeatureSet.eGeMAPSv02: EGEMAPS_NAMES, opensmile.FeatureSet.ComParE_2016: COMPARE_NAMES}


@cache  # sets and levels are few
def smile_of(feature_set: opensmile.FeatureSet, level: opensmile.FeatureLevel | str) -> Extractor:
    """Return openSMILE for a set and level.

    Raises
    ------
    FeatureError
        The installed openSMILE gives other features than this version of the package knows.
    """
    return Extractor(feature_set, level)
