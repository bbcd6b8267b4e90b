"""What a long recording costs: seconds and memory of `clinical-ser embed` in a fresh process, from one minute to three hours.

    python -m benchmarks.long_recordings [--encoder ge2e] [--minutes 1,10,60,180] [--json FILE]

Needs no corpus: simulated speakers, one after the other and from the beginning again until long enough. Wall time depends on what else the machine
does; CPU time, beside it, much less. Start and imports are in both.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.tables import publish
from clinical_ser import audio
from clinical_ser.audio import SAMPLE_RATE_HZ
from clinical_ser.cohorts.simulation import simulate

SPEAKERS = 4
RUN = """
import resource, sys
from clinical_ser.cli import main
sys.argv = ["clinical-ser", *sys.argv[1:]]
try:
    main()
except SystemExit as stopped:
    if stopped.code:
        raise
used = resource.getrusage(resource.RUSAGE_SELF)
print("CPU:", used.ru_utime + used.ru_stime)
print(open("/proc/self/status").read())
"""
# Not ru_maxrss: a child inherits its parent's high-water mark through exec.
Row = dict[str, object]


def write_speech(path: Path, minutes: float, spoken: np.ndarray) -> None:
    """Write a WAV of this length, block by block, from speech that begins again where it ends."""
    left = round(60 * minutes * SAMPLE_RATE_HZ)
    with soundfile.SoundFile(path, "w", SAMPLE_RATE_HZ, 1, subtype="PCM_16") as file:
        while left:
            file.write(spoken[:left])
            left -= min(left, len(spoken))


def simulated(folder: Path) -> np.ndarray:
    """Return the speech of a few simulated speakers, one after the other; shape (samples,)."""
    cohort = simulate(SPEAKERS, folder / "cohort", speech_s=40.0)
    return np.concatenate([audio.load(path).samples for path in sorted((cohort.folder / "audio").rglob("*.flac"))])


def measure(path: Path, minutes: float, encoder: str, *, frames: bool) -> Row:
    """Embed a file in a fresh process."""
    out = path.with_name("out.npy")
    words = ["embed", str(path), "-o", str(out), "--encoder", encoder, "--replace", *(["--frames"] if frames else [])]
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", RUN, *words], capture_output=True, text=True, check=False)
    wall = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(done.stderr)
    (row,) = json.loads(out.with_name("out.npy.json").read_text())["rows"]
    cpu = float(re.search(r"CPU: ([0-9.]+)", done.stdout)[1])  # type: ignore[index]
    peak_kib = int(re.search(r"VmHWM:\s+(\d+) kB", done.stdout)[1])  # type: ignore[index]
    return {
        "recording": f"{minutes:g} min",
        "kept": "frames" if frames else "vector",
        "of it speech, s": f"{row['speech_s']:.0f}",
        "wall, s": f"{wall:.1f}",
        "CPU, s": f"{cpu:.1f}",
        "wall, ms per s of speech": f"{1000 * wall / row['speech_s']:.1f}",
        "CPU, ms per s of speech": f"{1000 * cpu / row['speech_s']:.1f}",
        "peak memory, MiB": f"{peak_kib / 1024:.0f}",
        "written, MB": f"{out.stat().st_size / 1e6:.1f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="ge2e", help="what `embed --encoder` takes")
    parser.add_argument("--minutes", default="1,10,60,180")
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spoken = simulated(folder)
        for minutes in map(float, given.minutes.split(",")):
            path = folder / "speech.wav"
            write_speech(path, minutes, spoken)
            for frames in (False, True):
                rows.append(measure(path, minutes, given.encoder, frames=frames))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    publish({f"Long recordings, encoder {given.encoder}": rows}, given.json)


if __name__ == "__main__":
    main()
