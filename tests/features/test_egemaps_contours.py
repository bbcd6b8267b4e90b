"""eGeMAPS summed up again from its contours: openSMILE's values with every frame, those of a cut recording without some."""

from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np
import pytest

from clinical_ser import audio
from clinical_ser.audio.recording import Recording
from clinical_ser.errors import InvalidValueError
from clinical_ser.features import egemaps
from clinical_ser.features.egemaps_contours import EgemapsContours
from tests import signals

FRAME = signals.RATE_HZ // 100
SECOND = 100

ROUNDING = {"rel": 2e-5, "abs": 2e-6}
"""Both sides round to float32, and ranges and slopes are differences: a range of 0.06 semitones at 24 is good to 2e-5 of itself."""
AT_THE_SEAM = (
    ("*pctlrange0-2", {"rel": 0.1}),
    ("jitter*stddevNorm", {"rel": 0.4}),
    ("*stddevNorm", {"rel": 0.1, "abs": 0.02}),
    ("*Slope", {"rel": 0.2}),
    ("jitter*", {"rel": 0.15}),
    ("slope*", {"rel": 0.05, "abs": 0.002}),
    ("F?bandwidth*", {"rel": 0.03}),
    ("StddevVoicedSegmentLengthSec", {"abs": 0.02}),
    ("StddevUnvoicedSegmentLength", {"abs": 0.02}),
    ("*", {"rel": 0.02, "abs": 0.25}),
)
"""How far a functional may be from that of the cut recording: up to six windows lie across the seam there. A machine's voice has so
little jitter that the one false period at a seam shows in its SD."""


def recording_of(samples: np.ndarray) -> Recording:
    return audio.from_samples(samples, signals.RATE_HZ)


def talk(seed: int = 0, *, phrases: int = 4) -> Recording:
    made = signals.sentence(phrases=phrases, f0_hz=110.0 + 25 * seed, seed=seed)
    return recording_of(signals.add_noise(made.samples, 35, seed=seed, speech_s=made.speech_s))


def cut(recording: Recording, keep: np.ndarray) -> Recording:
    """The same samples without some, and nothing else done to them."""
    return replace(recording, samples=recording.samples[: len(keep) * FRAME][np.repeat(keep, FRAME)])


def opensmiles(recording: Recording) -> np.ndarray:
    return np.array(list(egemaps.functionals(recording)[0].values()))


def without(frames: int, *windows: tuple[int, int]) -> np.ndarray:
    keep = np.ones(frames, np.bool_)
    for start, stop in windows:
        keep[start:stop] = False
    return keep


def far_apart(ours: np.ndarray, theirs: np.ndarray, tolerances: tuple[tuple[str, dict[str, float]], ...]) -> dict[str, tuple[float, float]]:
    far = {}
    for name, mine, value in zip(egemaps.EGEMAPS_NAMES, ours, theirs, strict=True):
        own = name.removeprefix("egemaps.")
        limits = next(limits for pattern, limits in tolerances if fnmatchcase(own, pattern))
        if mine != pytest.approx(value, nan_ok=True, **limits):
            far[own] = (float(mine), float(value))
    return far


@pytest.fixture(scope="module")
def minutes() -> tuple[Recording, EgemapsContours]:
    """Two parts of 61 s, the second louder."""
    half = np.resize(talk(1).samples, 61 * signals.RATE_HZ)
    recording = recording_of(np.concatenate([half / 8, half]))
    return recording, EgemapsContours.of(recording)


@pytest.fixture(scope="module")
def long_talk() -> tuple[Recording, EgemapsContours]:
    """A little over 20 s."""
    recording = talk(phrases=14)
    return recording, EgemapsContours.of(recording)


@pytest.mark.parametrize("seed", range(2))
def test_with_every_frame_the_values_are_openSMILEs(seed):
    recording = talk(seed)
    assert not far_apart(EgemapsContours.of(recording).summarise(), opensmiles(recording), (("*", ROUNDING),))


@pytest.mark.parametrize("stop_s", [0.93, 1.37, 2.05])
def test_a_voice_at_the_end_is_left_out_where_openSMILE_leaves_it_out(stop_s):
    """openSMILE's functionals never see the frames that the pitch tracker decides only at the end of input."""
    recording = recording_of(talk(2).samples[: round(stop_s * signals.RATE_HZ)])
    assert not far_apart(EgemapsContours.of(recording).summarise(), opensmiles(recording), (("*", ROUNDING),))


@pytest.mark.parametrize(
    "samples", [signals.silence(1.0), signals.white_noise(1.0, level_dbfs=-30), signals.vowel(1.0)], ids=["silence", "noise", "vowel"]
)
def test_the_same_is_missing_as_openSMILE_does_not_find(samples):
    recording = recording_of(samples)
    assert not far_apart(EgemapsContours.of(recording).summarise(), opensmiles(recording), (("*", {"rel": 1e-4, "abs": 2e-6}),))


def test_parts_are_joined_as_in_the_functionals(minutes):
    recording, contours = minutes
    assert len(contours.parts) == 2
    assert not far_apart(contours.summarise(), opensmiles(recording), (("*", ROUNDING),))


@pytest.mark.parametrize("windows", [((230, 290),), ((1217, 1483),), ((120, 180), (800, 870), (1500, 1900)), ((400, 1000),)])
def test_leaving_a_window_out_is_as_cutting_it_out(long_talk, windows):
    recording, contours = long_talk
    keep = without(contours.frames, *windows)
    assert not far_apart(contours.summarise(keep), opensmiles(cut(recording, keep)), AT_THE_SEAM)


def test_leaving_out_is_seen_where_it_matters():
    """The tolerances of cutting are no larger than what is measured: louder, higher speech goes, and its traces with it."""
    low, high = talk(0, phrases=2).samples, 3 * talk(3, phrases=2).samples
    recording = recording_of(np.concatenate([low, high]))
    contours = EgemapsContours.of(recording)
    keep = np.arange(contours.frames) < len(low) // FRAME
    theirs = opensmiles(cut(recording, keep))
    assert not far_apart(contours.summarise(keep), theirs, AT_THE_SEAM)
    assert len(far_apart(contours.summarise(), theirs, AT_THE_SEAM)) > 40


def test_keeping_everything_gives_the_same_bits(minutes):
    contours = minutes[1]
    assert contours.summarise(without(contours.frames)).tobytes() == contours.summarise().tobytes()


def test_remembered_parts_change_nothing(minutes):
    contours = minutes[1]
    keep = without(contours.frames, (70 * SECOND, 71 * SECOND))
    whole = contours.summarise()
    fresh = replace(contours, parts=tuple(replace(part) for part in contours.parts))
    assert contours.summarise(keep).tobytes() == fresh.summarise(keep).tobytes() != whole.tobytes()
    assert fresh.summarise().tobytes() == whole.tobytes()


def test_a_part_of_which_nothing_is_left_drops_out(minutes):
    recording, contours = minutes
    keep = without(contours.frames, (61 * SECOND, contours.frames))
    assert not far_apart(contours.summarise(keep), opensmiles(cut(recording, keep)), (("*", ROUNDING),))


def test_a_part_weighs_by_what_is_left_of_it(minutes):
    contours = minutes[1]
    loudness = egemaps.EGEMAPS_NAMES.index("egemaps.loudness_sma3_amean")
    keep = without(contours.frames, (61 * SECOND, 115 * SECOND))
    in_first = np.arange(contours.frames) < 61 * SECOND
    both, first, second = (contours.summarise(mask)[loudness] for mask in (keep, keep & in_first, keep & ~in_first))
    assert second > 2 * first
    assert both == pytest.approx((61 * first + 7 * second) / 68, rel=1e-3)


@pytest.mark.parametrize("left", [0, 3])
def test_without_60_ms_everything_is_missing(left):
    contours = EgemapsContours.of(talk())
    keep = np.zeros(contours.frames, np.bool_)
    keep[200 : 200 + left] = True
    assert np.isnan(contours.summarise(keep)).all()


@pytest.mark.parametrize("length", [0, 1, egemaps.MIN_SAMPLES - 1])
def test_too_short_is_missing(length):
    recording = recording_of(signals.white_noise(1.0)[:length]) if length else Recording(np.zeros(0, np.float32), "", talk().source)
    contours = EgemapsContours.of(recording)
    assert np.isnan(contours.summarise()).all()
    assert np.isnan(contours.summarise(np.ones(contours.frames, np.bool_))).all()


def test_the_grid_is_that_of_the_speech_analysis():
    for length in (1, 159, 160, 961, 16_000, 16_159):
        recording = recording_of(signals.white_noise(2.0)[:length])
        assert EgemapsContours.of(recording).frames == len(audio.analyse(recording).level_dbfs)


def test_a_mask_of_another_grid_is_refused():
    contours = EgemapsContours.of(talk())
    with pytest.raises(InvalidValueError, match="keep"):
        contours.summarise(np.ones(contours.frames - 1, np.bool_))
