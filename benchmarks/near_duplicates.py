"""Which altered copies of a recording the leak guard finds from features alone, and how often it cries wolf, on RAVDESS.

    python -m benchmarks.near_duplicates --data PATH/TO/ravdess

Every 14th clip is copied under another subject's name, altered in one way, and laid beside the whole corpus. Among the negatives are the corpus'
720 repetition pairs: the same actor says the same sentence in the same emotion twice, which is as alike as two different recordings get.
"""

import argparse
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import pandas as pd
import soundfile
import soxr
from numpy.typing import NDArray

from benchmarks.tables import markdown
from clinical_ser import audio
from clinical_ser.audio.recording import SAMPLE_RATE_HZ
from clinical_ser.cohorts.building import build_table
from clinical_ser.cohorts.corpora import get_corpus
from clinical_ser.cohorts.manifest import Manifest
from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.evaluation.leaks import LeakFinding, near_identical

SETS = ("egemaps", "praat", "timing")
EVERY = 14
"""1,440 clips give 103 copies of each kind: all actors, emotions and sentences are among them."""

Samples = NDArray[np.float64]


def gain(decibels: float) -> Callable[[Samples], Samples]:
    return lambda samples: samples * 10 ** (decibels / 20)


def cut(start_s: float = 0.0, end_s: float = 0.0) -> Callable[[Samples], Samples]:
    return lambda samples: samples[round(start_s * SAMPLE_RATE_HZ) : len(samples) - round(end_s * SAMPLE_RATE_HZ)]


def padded(seconds: float) -> Callable[[Samples], Samples]:
    return lambda samples: np.concatenate([np.zeros(round(seconds * SAMPLE_RATE_HZ)), samples])


def noisy(snr_db: float) -> Callable[[Samples], Samples]:
    def add(samples: Samples) -> Samples:
        scale = np.sqrt(np.mean(samples**2)) * 10 ** (-snr_db / 20)
        return samples + scale * np.random.default_rng(len(samples)).normal(size=len(samples))

    return add


def through(rate_hz: int) -> Callable[[Samples], Samples]:
    def resampled(samples: Samples) -> Samples:
        low = soxr.resample(samples, SAMPLE_RATE_HZ, rate_hz)
        return np.asarray(soxr.resample(low, rate_hz, SAMPLE_RATE_HZ), np.float64)

    return resampled


def encoded(container: str, codec: str, bit_rate_bps: int, rate_hz: int) -> Callable[[Samples], Samples]:
    def around(samples: Samples) -> Samples:
        file = io.BytesIO()
        with av.open(file, "w", format=container) as out:
            stream = out.add_stream(codec, rate=rate_hz, layout="mono", bit_rate=bit_rate_bps)
            planes = np.ascontiguousarray(soxr.resample(samples, SAMPLE_RATE_HZ, rate_hz)[None], np.float32)
            frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout="mono")
            frame.sample_rate = rate_hz
            fitting = av.AudioResampler(stream.format, stream.layout, stream.rate, frame_size=stream.codec_context.frame_size)
            for piece in [*fitting.resample(frame), *fitting.resample(None)]:
                out.mux(stream.encode(piece))
            out.mux(stream.encode(None))
        return audio.load(file.getvalue()).samples.astype(np.float64)

    return around


ALTERATIONS: Mapping[str, Callable[[Samples], Samples]] = {
    "0.1 dB softer": gain(-0.1),
    "6 dB softer": gain(-6),
    "12 dB louder": gain(12),
    "MP3, 64 kbit/s": encoded("mp3", "libmp3lame", 64_000, SAMPLE_RATE_HZ),
    "MP3, 32 kbit/s": encoded("mp3", "libmp3lame", 32_000, SAMPLE_RATE_HZ),
    "Opus, 24 kbit/s": encoded("ogg", "libopus", 24_000, 48_000),
    "50 ms cut from the end": cut(end_s=0.05),
    "200 ms cut from the end": cut(end_s=0.2),
    "200 ms cut from the start": cut(start_s=0.2),
    "500 ms of silence before": padded(0.5),
    "noise at 40 dB SNR": noisy(40),
    "noise at 20 dB SNR": noisy(20),
    "through 8 kHz": through(8_000),
    "6 dB softer, MP3 64, 50 ms cut": lambda samples: encoded("mp3", "libmp3lame", 64_000, SAMPLE_RATE_HZ)(cut(end_s=0.05)(gain(-6)(samples))),
}


def copies(clips: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Write each clip once for each alteration; return the manifest, in which `original` is the row that was copied."""
    entries = []
    for clip in clips.itertuples():
        samples = audio.load(Path(str(clip.path))).samples.astype(np.float64)
        for kind, alter in ALTERATIONS.items():
            path = folder / f"{len(entries)}.wav"
            soundfile.write(path, np.clip(alter(samples), -1, 32_767 / 32_768), SAMPLE_RATE_HZ, subtype="PCM_16")
            entries.append({"row": len(entries) + 1, "path": str(path), "subject": f"copy-{clip.row}", "kind": kind, "original": clip.row})
    return pd.DataFrame(entries)


def tables(data: Path, every: int, workers: int, cache: Path | None) -> tuple[FeatureTable, FeatureTable]:
    """Return RAVDESS and the copies as feature tables."""
    frame = get_corpus("ravdess").read(data)
    frame["row"] = np.arange(1, len(frame) + 1)
    with TemporaryDirectory() as folder:
        altered = copies(frame.iloc[::every], Path(folder))
        corpus, copied = (build_table(Manifest(rows), sets=SETS, workers=workers, cache=cache) for rows in (frame, altered))
    return corpus, copied


def detection(corpus: FeatureTable, altered: FeatureTable) -> list[dict[str, object]]:
    """Lay the copies of each kind beside the corpus; one row a kind, and first the corpus alone."""
    rows: list[dict[str, object]] = [{"copies": "none: the corpus as published", **_counted(near_identical(corpus), 0)}]
    for kind in ALTERATIONS:
        of_kind = replace(altered, frame=altered.frame[altered.frame["kind"] == kind].reset_index(drop=True))
        rows.append({"copies": kind, **_counted(near_identical(of_kind, training=corpus), len(of_kind.frame))})
    return rows


def _counted(finding: LeakFinding, copies: int) -> dict[str, object]:
    found = finding.counts["on_both_sides"]
    # Every copy stands alone in the test; what else is found is between two recordings of the corpus.
    false = finding.counts["within_subject"] + finding.counts["of_two_subjects"] - found
    return {"number": copies, "found": f"{found / copies:.0%}" if copies else "", "false pairs": false, "verdict": finding.verdict}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--every", type=int, default=EVERY, help="copy every so-manieth clip")
    parser.add_argument("--cache", type=Path, default=None)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    rows = detection(*tables(given.data, given.every, given.workers, given.cache))
    print(markdown(rows))
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
