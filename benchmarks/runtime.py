"""Where the time goes for one recording, beside the bare library calls on the same samples in the same run.

    python -m benchmarks.runtime --data FOLDER_OF_RECORDINGS [--model depression-simulated]

CPU milliseconds per second of speech on one core, best of N, for 3, 30 and 300 s of real speech (recordings of one speaker joined until long
enough), and the peak memory of a fresh process that screens each.
"""

import argparse
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.update({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})

import numpy as np
import opensmile
import parselmouth
import soundfile
from numpy.typing import NDArray
from parselmouth.praat import call

from benchmarks.tables import markdown
from clinical_ser import audio
from clinical_ser.audio import SAMPLE_RATE_HZ
from clinical_ser.features import egemaps, extraction, praat, timing
from clinical_ser.screening import load_model

LENGTHS_S = (3, 30, 300)
PEAK = "import sys, clinical_ser; clinical_ser.screen(sys.argv[1], model=sys.argv[2]); print(open('/proc/self/status').read())"
# Not ru_maxrss: a child inherits its parent's high-water mark through exec.


def speech(folder: Path, length_s: int) -> NDArray[np.float32]:
    """Join the folder's recordings, in order of name, until they are `length_s` long."""
    parts: list[NDArray[np.float32]] = []
    have = 0
    for path in sorted(folder.rglob("*.flac")) + sorted(folder.rglob("*.wav")):
        part = audio.load(path).samples
        parts.append(part)
        have += len(part)
        if have >= length_s * SAMPLE_RATE_HZ:
            return np.concatenate(parts)[: length_s * SAMPLE_RATE_HZ]
    raise SystemExit(f"The folder holds less than {length_s} s of .flac or .wav.")


def cpu_ms(work: Callable[[], object], repeats: int) -> float:
    """Best CPU time of this process, in ms."""
    best = float("inf")
    for _ in range(repeats):
        started = time.process_time()
        work()
        best = min(best, time.process_time() - started)
    return 1000 * best


def stages(samples: NDArray[np.float32], model: str) -> dict[str, Callable[[], object]]:
    """Return the product's stages, and the bare library calls."""
    wav = io.BytesIO()
    soundfile.write(wav, samples, SAMPLE_RATE_HZ, format="WAV", subtype="PCM_16")
    content = wav.getvalue()
    recording = audio.load(io.BytesIO(content))
    analysis = audio.analyse(recording)
    screener = load_model(model)
    vector = extraction.extract(recording, analysis=analysis)
    trained = screener.model
    x = np.array([vector[name] for name in trained.features])
    smile = opensmile.Smile(feature_set=opensmile.FeatureSet.eGeMAPSv02, feature_level=opensmile.FeatureLevel.Functionals)

    def naive_praat() -> None:
        sound = parselmouth.Sound(samples.astype(float), SAMPLE_RATE_HZ)
        sound.to_pitch_ac(time_step=0.01)
        call(sound.to_harmonicity_cc(0.01), "Get mean", 0, 0)
        cepstrogram = call(sound, "To PowerCepstrogram", 60, 0.002, 5000, 50)
        call(cepstrogram, "Get CPPS", "no", 0.01, 0.001, 60, 330, 0.05, "Parabolic", 0.001, 0, "Straight", "Robust")
        sound.to_formant_burg()

    return {
        "decode (WAV)": lambda: audio.load(io.BytesIO(content)),
        "analysis (pitch, speech)": lambda: audio.analyse(recording),
        "gate": lambda: audio.assess(recording, screener.limits, analysis),
        "eGeMAPS": lambda: egemaps.functionals(recording),
        "Praat set": lambda: praat.compute(analysis),
        "timing": lambda: timing.compute(analysis),
        "head, sets, interval": lambda: trained.answer(x),
        "gate + eGeMAPS + Praat + timing": lambda: everything(recording, screener.limits),
        "whole screening": lambda: screener.screen(io.BytesIO(content)),
        "bare soundfile.read": lambda: soundfile.read(io.BytesIO(content)),
        "bare opensmile": lambda: smile.process_signal(samples, SAMPLE_RATE_HZ),
        "bare Praat (default calls, CPPS at 2 ms)": naive_praat,
    }


def everything(recording: audio.Recording, limits: audio.GateLimits) -> None:
    """Do what the goal of 40 ms a second is about."""
    analysis = audio.analyse(recording)
    audio.assess(recording, limits, analysis)
    egemaps.functionals(recording)
    praat.compute(analysis)
    timing.compute(analysis)


def peak_mib(samples: NDArray[np.float32], model: str) -> float:
    """Peak memory of a fresh process that screens these samples once."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        soundfile.write(path, samples, SAMPLE_RATE_HZ, subtype="PCM_16")
        done = subprocess.run([sys.executable, "-c", PEAK, str(path), model], capture_output=True, text=True, check=True)
    return int(re.search(r"VmHWM:\s+(\d+) kB", done.stdout)[1]) / 1024  # type: ignore[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="depression-simulated")
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    rows: dict[str, dict[str, object]] = {}
    for length in LENGTHS_S:
        samples = speech(given.data, length)
        for name, work in stages(samples, given.model).items():
            milliseconds = cpu_ms(work, repeats=5 if length < 100 else 2)
            rows.setdefault(name, {"CPU ms per s of speech": name})[f"{length} s"] = f"{milliseconds / length:.2f}"
        memory = rows.setdefault("memory", {"CPU ms per s of speech": "peak memory of a process, MiB"})
        memory[f"{length} s"] = f"{peak_mib(samples, given.model):.0f}"
    print(markdown(list(rows.values())))
    if given.json:
        given.json.write_text(json.dumps(list(rows.values()), indent=2))


if __name__ == "__main__":
    main()
