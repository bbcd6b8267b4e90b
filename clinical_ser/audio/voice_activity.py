"""Where there is speech: sound above the noise that is voiced, or that stands close to voiced sound.

Energy alone takes a slammed door for speech and Praat's voicing alone a hum or a fan; both together, with the noise floor followed as it
moves, need no trained detector. (webrtcvad calls all white noise speech, at every level and in every mode.)
"""

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy.ndimage import binary_closing, binary_dilation, maximum_filter1d, minimum_filter1d

from clinical_ser.audio.pitch import FRAME_STEP_S, PitchTrack
from clinical_ser.audio.recording import SAMPLE_RATE_HZ

Levels = NDArray[np.float64]
Mask = NDArray[np.bool_]

SILENCE_DBFS = -120.0
"""Level given to digital silence."""
DIGITAL_DBFS = -90.0
"""Quieter than one step of 16-bit audio (-90.3 dBFS): padding, a muted microphone or a noise gate, not a room. It says nothing about noise."""
MIN_PAUSE_S = 0.25
"""Shorter gaps belong to speech (closures, hesitation): Goldman-Eisler 1968, Psycholinguistics; also Mundt et al. 2007 for depression."""
CORE_ABOVE_FLOOR_DB = 6.0
"""Voiced frames this far above the noise floor are speech."""
EDGE_ABOVE_FLOOR_DB = 4.5
"""Around them, frames this far above it are (hysteresis); 25 ms levels of steady noise stay within 3 dB of their 15th percentile."""
MIN_CORE_S = 0.04
"""Shorter voiced runs are chance periodicity in noise; the shortest vowels in fluent speech last 40-50 ms."""
MAX_CONSONANT_S = 0.2
"""Voiceless sound further from a voiced frame is not part of the word (aspirated or doubled voiceless consonants reach 0.2 s)."""
MAX_CLOSURE_S = 0.08
"""Silence of a stop between a consonant and its vowel."""
FLOOR_WINDOW_S = 10.0
FLOOR_QUANTILE = 0.15
QUIET_QUANTILE = 0.02
"""Closures and the ends of words: on emodb clips cut to the first and last sound, these lie 42 dB (median) below the loudest vowels."""
MIN_NOISE_S = 0.1
"""A noise floor needs this much unvoiced sound; without it every voiced frame counts (a sustained vowel from edge to edge)."""

STEADY_S = 0.5
STEADY_RATIO = 1.004
"""F0 within 0.4 % for half a second: a machine. The steadiest trained voices vary by 0.5 % and more (7 cents SD is 0.4 %)."""
MAINS_HZ = tuple(base * n for base in (50.0, 60.0) for n in (1, 2, 3, 4))
MAINS_TOLERANCE = 0.01
TONE_SHARE = 0.95
"""A steady sound with this share of its power in one spectral line is a beep."""

_SUB_BLOCK = 40
_SUBS_PER_STEP = round(FRAME_STEP_S * SAMPLE_RATE_HZ) // _SUB_BLOCK
_SUBS_PER_WINDOW = 10
_SUBS_BEFORE = 3
_MIN_POWER = 10 ** (SILENCE_DBFS / 10)


@dataclass(frozen=True, eq=False)
class VoiceActivity:
    """Speech decision on the level grid."""

    speech: Mask
    segments_s: tuple[tuple[float, float], ...]
    noise_floor_dbfs: float


def level_track(samples: NDArray[np.float32]) -> Levels:
    """Return the level every 10 ms in dBFS: RMS about the mean of 25 ms windows centred at (k + 0.5) * 10 ms, -120 at digital silence.

    Windows are made of 2.5 ms pieces summed once; those at the edges are shorter. `samples` has shape (n,), the result
    (max(1, n // 160),), or (0,) for no samples.
    """
    if not len(samples):
        return np.zeros(0)
    frames = max(1, len(samples) // (_SUBS_PER_STEP * _SUB_BLOCK))
    subs = -(-len(samples) // _SUB_BLOCK)
    pieces = np.zeros((subs, _SUB_BLOCK), np.float32)
    pieces.reshape(-1)[: len(samples)] = samples
    counts = np.full(subs, float(_SUB_BLOCK))
    counts[-1] -= subs * _SUB_BLOCK - len(samples)
    total, sums, squares = (
        _window_sums(values, frames) for values in (counts, pieces.sum(axis=1, dtype=np.float64), np.einsum("ij,ij->i", pieces, pieces))
    )
    power = squares / total - np.square(sums / total)
    return np.asarray(10 * np.log10(np.maximum(power, _MIN_POWER)))


def detect_speech(samples: NDArray[np.float32], level_dbfs: Levels, pitch: PitchTrack) -> VoiceActivity:
    """Decide for every frame whether it is speech.

    Parameters
    ----------
    samples : ndarray, shape (n,)
        At 16 kHz; looked at only where the pitch is machine-steady.
    level_dbfs : ndarray, shape (frames,)
        From `level_track`.
    pitch : PitchTrack
        Of the same samples.
    """
    f0 = f0_on_grid(pitch, len(level_dbfs))
    f0 = np.where(_machine_steady(samples, f0), 0.0, f0)
    floor = _noise_floor(level_dbfs, f0 > 0)
    core = drop_short((f0 > 0) & (level_dbfs > np.maximum(floor + CORE_ABOVE_FLOOR_DB, DIGITAL_DBFS)), _frames(MIN_CORE_S))
    speech = _grow(core, level_dbfs > np.maximum(floor + EDGE_ABOVE_FLOOR_DB, DIGITAL_DBFS))
    speech = fill_short_gaps(speech, _frames(MIN_PAUSE_S))
    duration_s = len(samples) / SAMPLE_RATE_HZ
    return VoiceActivity(speech, segments_of(speech, duration_s), _overall_floor(level_dbfs, speech))


def segments_of(speech: Mask, duration_s: float) -> tuple[tuple[float, float], ...]:
    """Return the runs of a speech mask as (start, end) in seconds, within the recording."""
    return tuple((round(start * FRAME_STEP_S, 2), min(round(stop * FRAME_STEP_S, 2), duration_s)) for start, stop in runs(speech).tolist())


def noise_frames(level_dbfs: Levels, speech: Mask) -> Mask:
    """Return where only the room is heard: not speech, nor 50 ms beside it, nor digital silence."""
    near = binary_dilation(speech, iterations=_frames(0.05)) if speech.any() else speech
    return np.asarray(~near & (level_dbfs > DIGITAL_DBFS))


def is_noise_heard(level_dbfs: Levels, speech: Mask) -> bool:
    """Tell whether the recording holds enough of the room alone (0.1 s) to measure it."""
    return int(noise_frames(level_dbfs, speech).sum()) >= _frames(MIN_NOISE_S)


def f0_on_grid(pitch: PitchTrack, frames: int) -> NDArray[np.float64]:
    """Return F0 at the centres of the level frames, shape (frames,), 0 where unvoiced or beyond Praat's first and last frame."""
    if not len(pitch.times_s):
        return np.zeros(frames)
    centres = (np.arange(frames) + 0.5) * FRAME_STEP_S
    nearest = np.rint((centres - pitch.times_s[0]) / FRAME_STEP_S).astype(int)
    inside = (nearest >= 0) & (nearest < len(pitch.f0_hz))
    return np.where(inside, pitch.f0_hz[np.clip(nearest, 0, len(pitch.f0_hz) - 1)], 0.0)


def runs(mask: Mask) -> NDArray[np.intp]:
    """Return the (start, stop) of every run of True, shape (runs, 2)."""
    edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))
    return edges.reshape(-1, 2)


def _frames(seconds: float) -> int:
    return round(seconds / FRAME_STEP_S)


def _window_sums(values: NDArray[np.floating], frames: int) -> Levels:
    """Sum the pieces of each window; those outside the recording count nothing."""
    after = max(0, (frames - 1) * _SUBS_PER_STEP + _SUBS_PER_WINDOW - _SUBS_BEFORE - len(values))
    padded = np.pad(values.astype(np.float64), (_SUBS_BEFORE, after))
    return np.asarray(sliding_window_view(padded, _SUBS_PER_WINDOW)[::_SUBS_PER_STEP][:frames].sum(axis=1))


def _noise_floor(level_dbfs: Levels, voiced: Mask) -> Levels:
    """Follow the level of what is neither voiced nor digital silence, in windows of 10 s every second; -inf where nothing tells."""
    heard = np.where(voiced | (level_dbfs <= DIGITAL_DBFS), np.nan, level_dbfs)
    if np.isfinite(heard).sum() < _frames(MIN_NOISE_S):
        return np.full(len(level_dbfs), -np.inf)
    overall = float(np.nanquantile(heard, FLOOR_QUANTILE))
    window, hop = _frames(FLOOR_WINDOW_S), _frames(1.0)
    if len(level_dbfs) <= window:
        return np.full(len(level_dbfs), overall)
    padded = np.pad(heard, window // 2, constant_values=np.nan)
    views = sliding_window_view(padded, window)[::hop]
    enough = np.isfinite(views).sum(axis=1) >= hop // 2
    local = np.full(len(views), overall)
    local[enough] = np.nanquantile(views[enough], FLOOR_QUANTILE, axis=1)
    return np.interp(np.arange(len(level_dbfs)), np.arange(len(views)) * hop, local)


def _machine_steady(samples: NDArray[np.float32], f0: NDArray[np.float64]) -> Mask:
    """Return frames of mains hum and beeps: F0 that no voice holds, at a mains frequency or in a single spectral line."""
    width = _frames(STEADY_S)
    lowest, highest = minimum_filter1d(f0, width, mode="constant"), maximum_filter1d(f0, width, mode="constant")
    steady = (lowest > 0) & (highest < STEADY_RATIO * lowest)
    if not steady.any():
        return steady
    steady = binary_dilation(steady, np.ones(width + 1, bool))
    machine = np.zeros(len(f0), bool)
    for start, stop in runs(steady & (f0 > 0)):
        if _is_mains(float(np.median(f0[start:stop]))) or _is_single_line(samples[_sample(start) : _sample(stop)]):
            machine[start:stop] = True
    return machine


def _sample(frame: int) -> int:
    return round(frame * FRAME_STEP_S * SAMPLE_RATE_HZ)


def _is_mains(f0_hz: float) -> bool:
    return any(abs(f0_hz / mains - 1) < MAINS_TOLERANCE for mains in MAINS_HZ)


def _is_single_line(samples: NDArray[np.float32]) -> bool:
    """Compare the power within the Hann main lobe around the strongest line with all power, over half a second."""
    piece = samples[: _sample(_frames(STEADY_S))].astype(np.float64)
    power = np.square(np.abs(np.fft.rfft(piece * np.hanning(len(piece)))))
    line = int(power.argmax())
    return bool(power[max(0, line - 3) : line + 4].sum() >= TONE_SHARE * power.sum())


def drop_short(mask: Mask, frames: int) -> Mask:
    """Return the mask without its runs of fewer than so many frames."""
    kept = np.zeros_like(mask)
    for start, stop in runs(mask):
        kept[start:stop] = stop - start >= frames
    return kept


def _grow(core: Mask, loud: Mask) -> Mask:
    """Add the loud frames beside each core: connected to it but for a stop's closure, and not far from it."""
    if not core.any():
        return core
    loud = loud | core
    reach = binary_dilation(core, np.ones(2 * _frames(MAX_CONSONANT_S) + 1, bool))
    connected = binary_closing(np.pad(loud & reach, _frames(MAX_CLOSURE_S)), np.ones(_frames(MAX_CLOSURE_S) + 1, bool))
    connected = connected[_frames(MAX_CLOSURE_S) : -_frames(MAX_CLOSURE_S)]
    grown = np.zeros_like(core)
    for start, stop in runs(connected):
        grown[start:stop] = core[start:stop].any()
    return grown & (loud | core)


def fill_short_gaps(mask: Mask, frames: int) -> Mask:
    """Return the mask with gaps of fewer than so many frames, between runs, filled."""
    filled = mask.copy()
    spans = runs(mask)
    for stop, start in zip(spans[:-1, 1], spans[1:, 0], strict=True):
        if start - stop < frames:
            filled[stop:start] = True
    return filled


def _overall_floor(level_dbfs: Levels, speech: Mask) -> float:
    """Return the median level of the room; where it is never heard alone, that of the quietest moments in speech, which it cannot exceed."""
    noise = level_dbfs[noise_frames(level_dbfs, speech)]
    if is_noise_heard(level_dbfs, speech):
        return float(np.median(noise))
    heard = level_dbfs[level_dbfs > DIGITAL_DBFS]
    return float(np.quantile(heard, QUIET_QUANTILE)) if len(heard) else SILENCE_DBFS
