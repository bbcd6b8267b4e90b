"""Many recordings at three scales: in this process, over warm worker processes, over a local Ray; the same bits from each.

    python -m benchmarks.extraction_scaling --data FOLDER_OF_RECORDINGS [--limit 60] [--rounds 3] [--ray]

"s for all" counts from the call to the last outcome, start of the workers included; "recordings/s, warm" from the first outcome to the last, as in
a long run. CPU seconds are those of this process and its workers (Ray's processes are not its children). Best of the rounds, which take turns; "busy"
is how many other processes wanted a core before it, on average: with more of them than free cores, wall-clock figures say little.
"""

import argparse
import hashlib
import json
import os
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.tables import markdown
from clinical_ser.features import DEFAULT_SETS, Outcome, Source, extract_many

SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".m4a"}


@dataclass(frozen=True)
class Scale:
    """One way to run, and the options of `extract_many` that ask for it."""

    name: str
    workers: int
    executor: str = "processes"


@dataclass(frozen=True)
class Round:
    """What one run took."""

    total_s: float
    warm_per_s: float
    cpu_s: float
    busy: float
    values: str


def measure(scale: Scale, sources: Sequence[Source]) -> Round:
    """Run once, without a cache."""
    busy, cpu = os.getloadavg()[0], cpu_s()
    finished: list[float] = []
    began = time.perf_counter()
    outcomes = list(
        extract_many(
            sources,
            sets=DEFAULT_SETS,
            workers=scale.workers,
            executor=scale.executor,
            progress=lambda _: finished.append(time.perf_counter()),
        )
    )
    total_s = time.perf_counter() - began
    # The first outcomes end the start of the workers: one for each of them.
    first = max(1, scale.workers)
    return Round(total_s, (len(finished) - first) / (finished[-1] - finished[first - 1]), cpu_s() - cpu, busy, digest(outcomes))


def digest(outcomes: Sequence[Outcome]) -> str:
    """Return the SHA-256 of all values, bit for bit, and of all reasons."""
    found = hashlib.sha256()
    for outcome in outcomes:
        found.update((outcome.reason or "").encode() if outcome.extraction is None else outcome.extraction.features.values.tobytes())
    return found.hexdigest()


def cpu_s() -> float:
    """CPU seconds of this process and of the children it has waited for."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage)


def row(scale: Scale, rounds: Sequence[Round], baseline: Sequence[Round]) -> dict[str, object]:
    """Return the best of the rounds, beside one worker's."""
    warm = max(one.warm_per_s for one in rounds)
    return {
        "scale": scale.name,
        "s for all": round(min(one.total_s for one in rounds), 2),
        "recordings/s, warm": round(warm, 2),
        "times one worker": round(warm / max(one.warm_per_s for one in baseline), 2),
        "CPU s": round(min(one.cpu_s for one in rounds), 2) if scale.executor != "ray" else "",
        "busy": round(min(one.busy for one in rounds), 1),
        "values": rounds[0].values[:12],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--ray", action="store_true", help="Also over a Ray that is started on this machine.")
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    files = sorted(path for path in given.data.rglob("*") if path.suffix.lower() in SUFFIXES)
    sources = [Source(path) for path in files[:: max(1, len(files) // given.limit)][: given.limit]]
    one = Scale("1 worker", 1)
    scales = [Scale("in process", 0), one, Scale(f"{given.workers} workers", given.workers)]
    if given.ray:
        scales.append(Scale(f"Ray, {given.workers} tasks at once", given.workers, "ray"))
    rounds: dict[Scale, list[Round]] = {scale: [] for scale in scales}
    for _ in range(given.rounds):
        for scale in scales:
            rounds[scale].append(measure(scale, sources))
    rows = [row(scale, rounds[scale], rounds[one]) for scale in scales]
    print(f"{len(sources)} recordings\n\n{markdown(rows)}")
    if len({one.values for each in rounds.values() for one in each}) > 1:
        raise SystemExit("The values differ between scales.")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
