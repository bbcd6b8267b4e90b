"""How well our CPPS and HNR agree with Praat's own, and what each costs: the claim behind `cepstrum.py` and `harmonicity.py`.

Reads every audio file under --data, adds signals made here that are hard on such measures (silence, clipping, pure tones, noise), measures
both ways, and prints a table and one line of JSON.

    python benchmarks/praat_parity.py --data CORPUS --limit 300
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import parselmouth
from numpy.typing import NDArray
from parselmouth.praat import call

from clinical_ser import audio
from clinical_ser.errors import AudioError
from clinical_ser.features import cepstrum, harmonicity

RATE_HZ = audio.SAMPLE_RATE_HZ
SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".webm"}
_PRAAT_SILENT = -200.0

Samples = NDArray[np.float64]
Track = Samples


@dataclass(frozen=True)
class Agreement:
    """One measure on one group of recordings."""

    measure: str
    group: str
    recordings: int
    audio_s: float
    unmeasured: int
    """Recordings where Praat and we agree that there is nothing to measure."""
    worst_difference_db: float
    mean_difference_db: float
    correlation: float
    frames_off: float
    """Share of frames more than 0.01 dB apart, or silent for one only; NaN for CPPS, whose frames Praat hands out slowly (see the tests)."""
    worst_frame_db: float
    ours_ms_per_s: float
    praat_ms_per_s: float


def praat_cpps(samples: Samples) -> tuple[float, Track]:
    sound = parselmouth.Sound(samples, RATE_HZ)
    cepstrogram = call(sound, "To PowerCepstrogram", 60.0, 0.01, 5000.0, 50.0)
    mean = call(cepstrogram, "Get CPPS", "no", 0.01, 0.001, 60.0, 330.0, 0.05, "Parabolic", 0.001, 0.0, "Straight", "Robust")
    return float(mean), np.empty(0)


def our_cpps(samples: Samples) -> tuple[float, Track]:
    return cepstrum.cepstral_peak_prominence(samples, RATE_HZ).mean_db, np.empty(0)


def praat_hnr(samples: Samples) -> tuple[float, Track]:
    track = parselmouth.Sound(samples, RATE_HZ).to_harmonicity_cc(0.01, 75.0, 0.1, 1.0).values[0]
    track = np.where(track == _PRAAT_SILENT, np.nan, track)
    sounding = track[np.isfinite(track)]
    return (float(sounding.mean()) if len(sounding) else np.nan), track


def our_hnr(samples: Samples) -> tuple[float, Track]:
    track = harmonicity.harmonicity(samples, RATE_HZ)
    return track.mean_db, track.hnr_db


MEASURES: dict[str, tuple[Callable[[Samples], tuple[float, Track]], Callable[[Samples], tuple[float, Track]]]] = {
    "CPPS": (our_cpps, praat_cpps),
    "HNR": (our_hnr, praat_hnr),
}


def recordings(folder: Path, limit: int) -> Iterator[tuple[str, Samples]]:
    """Files spread evenly over each subfolder of `folder` that holds any, at most `limit` of each."""
    groups: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            groups.setdefault(path.relative_to(folder).parts[0] if path.parent != folder else folder.name, []).append(path)
    for group, paths in groups.items():
        for path in paths[:: max(1, -(-len(paths) // limit))]:
            try:
                yield group, audio.load(path).samples.astype(np.float64)
            except AudioError as error:
                print(f"skipped one file of {group}: {error}")


def synthetic() -> Iterator[tuple[str, Samples]]:
    """Signals of 1.5 s with no room between right and wrong."""
    rng = np.random.default_rng(20)
    time_s = np.arange(24_000) / RATE_HZ
    noise = rng.normal(size=len(time_s))
    for f0_hz in range(80, 401, 20):
        pulses = np.zeros(len(time_s))
        pulses[np.round(np.arange(0, 1.5, 1 / f0_hz) * RATE_HZ).astype(int)[:-1]] = 1.0
        voice = np.convolve(pulses, np.exp(-np.arange(400) / 60) * np.sin(np.arange(400) * 0.28))[: len(time_s)]
        yield "pulses in noise", 0.2 * voice + 0.01 * noise
        yield "pulses", 0.2 * voice
        yield "clipped", np.clip(voice, -0.2, 0.2)
        yield "zeros around", np.concatenate([np.zeros(8_000), 0.2 * voice[:16_000], np.zeros(8_001)])
        holed = 0.2 * voice
        holed[6_000:14_000] = 0.0
        yield "zeros inside", holed
        yield "sine", 0.3 * np.sin(2 * np.pi * f0_hz * time_s)
        for snr_db in (0, 10, 20, 30):
            yield "sine in noise", 0.3 * np.sin(2 * np.pi * f0_hz * time_s) + 0.3 * np.sqrt(0.5) * 10 ** (-snr_db / 20) * noise
    for seed in range(10):
        white = 0.1 * np.random.default_rng(seed).normal(size=24_000 + seed)
        yield "noise", white
        yield "noise", np.diff(white)
        yield "noise", np.cumsum(white) - np.cumsum(white).mean()
    yield "silence", np.zeros(24_000)


def timed(measure: Callable[[Samples], tuple[float, Track]], samples: Samples) -> tuple[float, Track, float]:
    start = time.process_time()
    mean, track = measure(samples)
    return mean, track, time.process_time() - start


def compare(measure: str, group: str, sounds: list[Samples]) -> Agreement:
    ours, theirs = MEASURES[measure]
    rows: list[tuple[float, ...]] = []
    off, frames, worst_frame = 0, 0, 0.0
    for samples in sounds:
        mean, track, cost = timed(ours, samples)
        reference, reference_track, reference_cost = timed(theirs, samples)
        rows.append((mean, reference, cost, reference_cost, len(samples) / RATE_HZ))
        both = np.isfinite(track) & np.isfinite(reference_track)
        apart = np.abs(track[both] - reference_track[both])
        off += int(np.count_nonzero(apart > 0.01) + np.count_nonzero(np.isfinite(track) != np.isfinite(reference_track)))
        frames += len(track)
        worst_frame = max(worst_frame, float(apart.max(initial=0.0)))
    mean, reference, cost, reference_cost, length = np.array(rows).T
    measured = np.isfinite(mean) & np.isfinite(reference)
    if np.any(np.isfinite(mean) != np.isfinite(reference)):
        raise SystemExit(f"{measure}, {group}: one of the two has no value where the other has")
    difference = np.abs(mean - reference)[measured]
    varied = np.count_nonzero(measured) > 2 and np.ptp(reference[measured]) > 0
    return Agreement(
        measure=measure,
        group=group,
        recordings=len(sounds),
        audio_s=round(float(length.sum()), 1),
        unmeasured=int(np.count_nonzero(~measured)),
        worst_difference_db=float(difference.max(initial=0.0)),
        mean_difference_db=float(difference.mean()) if len(difference) else 0.0,
        correlation=float(np.corrcoef(mean[measured], reference[measured])[0, 1]) if varied else float("nan"),
        frames_off=off / frames if frames else float("nan"),
        worst_frame_db=worst_frame if frames else float("nan"),
        ours_ms_per_s=1e3 * float(cost.sum() / length.sum()),
        praat_ms_per_s=1e3 * float(reference_cost.sum() / length.sum()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of audio files; without it only the signals made here are compared")
    parser.add_argument("--limit", type=int, default=150, help="at most this many files of each subfolder (default 150)")
    options = parser.parse_args()

    for ours, _ in MEASURES.values():
        ours(np.random.default_rng(0).normal(size=RATE_HZ))  # tables and FFT plans are made once a process
    groups: dict[str, list[Samples]] = {}
    for group, samples in synthetic():
        groups.setdefault(group, []).append(samples)
    for group, samples in recordings(options.data, options.limit) if options.data else ():
        groups.setdefault(group, []).append(samples)

    columns = "{:5} {:28} {:>5} {:>7} {:>10} {:>10} {:>10} {:>10} {:>10} {:>7} {:>7}"
    print(columns.format("", "group", "files", "audio_s", "max|d| dB", "mean|d|", "r", "frames off", "max frame", "ours", "Praat"))
    results = []
    for measure in MEASURES:
        for group, sounds in groups.items():
            result = compare(measure, group, sounds)
            results.append(result)
            print(
                columns.format(
                    measure,
                    group[:28],
                    result.recordings,
                    f"{result.audio_s:.0f}",
                    f"{result.worst_difference_db:.1e}",
                    f"{result.mean_difference_db:.1e}",
                    f"{result.correlation:.7f}",
                    f"{result.frames_off:.1e}",
                    f"{result.worst_frame_db:.1e}",
                    f"{result.ours_ms_per_s:.2f}",
                    f"{result.praat_ms_per_s:.2f}",
                )
            )
    rows = [{key: None if value != value else value for key, value in asdict(result).items()} for result in results]  # noqa: PLR0124 (NaN)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
