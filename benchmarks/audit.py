"""How fast the audit log records durably, proves and verifies, on this machine; beside what a raw synced append takes in the same run.

    python -m benchmarks.audit [--folder DIR] [--records 1000000] [--url postgresql://…] [--json FILE]

DIR has to be on the disk that is meant (a folder in memory would cost no sync); a million records take about 2.5 GB there. Wall time depends on what
else the machine does.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.tables import publish
from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.erasing import erase
from clinical_ser.audit.events import Actor, FamilyEffect, Inference, Role
from clinical_ser.audit.log import AuditLog, Entry
from clinical_ser.audit.merkle import leaf_hash, verify_inclusion
from clinical_ser.audit.proof_file import ProofFile

CLIENTS = (1, 8, 64)
SUBJECTS = 1000
LARGE_BATCH = 512
FAMILIES = ("pitch", "timing", "loudness", "voice_quality", "articulation")
ACTOR = Actor(id="clinician-17", role=Role.CLINICIAN, client="benchmark")
PEERS = [
    {"log": "Tessera, POSIX, on a SAS disk", "records a second": "2,900", "what for": "its own figure; Go, C2SP tiles, batches of up to a second"},
    {"log": "Tessera, POSIX, on NVMe", "records a second": "about 10,000", "what for": "its own figure, 7 cores"},
]
VERIFY = """
import sys, time
from pathlib import Path
from clinical_ser.audit.configuration import LogConfiguration
started = time.perf_counter()
found = LogConfiguration.load(Path(sys.argv[1])).verify(tree_only=sys.argv[2] == "tree")
print(found.size, time.perf_counter() - started)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
Rows = list[dict[str, object]]


def answer(number: int) -> Inference:
    """Return an answer as a screening records it: 860 bytes sealed, beside a leaf of 570."""
    return Inference(
        actor=ACTOR,
        result=f"{number:064x}",
        recording=f"{number * 7:064x}",
        duration_s=31.37,
        task="depression",
        status="not_flagged",
        label="depressed",
        probability=0.1000001 + number % 997 / 2000,
        low=0.0523,
        high=0.4212,
        prevalence=0.15,
        threshold=0.2871,
        prediction_set=("healthy",),
        families=tuple(FamilyEffect(family=family, points=0.37 + place, stable=place < 2) for place, family in enumerate(FAMILIES)),
        checks=(),
        model_name="depression-simulated",
        model_version="1",
        simulated=True,
        encoders={},
    )


def made(folder: Path, url: str | None) -> LogConfiguration:
    """Make a new log."""
    site = LogConfiguration("benchmark.example/log", url or f"sqlite:{folder / 'log.sqlite'}", folder / "keys")
    site.create(folder / "audit.toml")
    return site


def percentiles(times: list[float]) -> tuple[str, str]:
    """Return median and 99th percentile in ms."""
    return f"{statistics.median(times) * 1e3:.1f}", f"{statistics.quantiles(times, n=100)[98] * 1e3:.1f}"


def raw_appends(folder: Path, seconds: float) -> dict[str, object]:
    """Append as many bytes to a plain file, and sync each time: what no durable log of single records can beat."""
    times = []
    with (folder / "raw").open("wb") as file:
        until = time.perf_counter() + seconds
        while (started := time.perf_counter()) < until:
            file.write(b"x" * 1430)
            file.flush()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - started)
    median, last = percentiles(times)
    return {
        "": "a plain file, fdatasync each time",
        "records a second": f"{len(times) / sum(times):,.0f}",
        "median, ms": median,
        "99th percentile, ms": last,
    }


def appends(log: AuditLog, clients: int, seconds: float) -> dict[str, object]:
    """Let so many clients append one record after the other, each waiting until it is durable."""
    times: list[list[float]] = [[] for _ in range(clients)]
    # Made before, because whoever answers makes it elsewhere. Subjects are known already; the first record of one costs a second sync.
    payloads = [answer(number) for number in range(10_000)]
    until = time.perf_counter() + seconds

    def client(own: list[float], first: int) -> None:
        number = first
        while (started := time.perf_counter()) < until:
            log.append(payloads[number % len(payloads)], subject=f"subject {number % SUBJECTS}", model="c" * 64)
            own.append(time.perf_counter() - started)
            number += clients

    threads = [threading.Thread(target=client, args=(own, log.size + place)) for place, own in enumerate(times)]
    started, cpu = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    together = [each for own in times for each in own]
    median, last = percentiles(together)
    return {
        "": f"{clients} client{'s' * (clients > 1)}",
        "records a second": f"{len(together) / wall:,.0f}",
        "median, ms": median,
        "99th percentile, ms": last,
        "CPU a record, ms": f"{cpu / len(together) * 1e3:.2f}",
    }


def fill(log: AuditLog, records: int) -> float:
    """Append up to so many records in large requests, and return the seconds it took."""
    started = time.perf_counter()
    while log.size < records:
        first = log.size
        numbers = range(first, min(first + LARGE_BATCH, records))
        log.record([Entry(answer(number), subject=f"subject {number % SUBJECTS}", model="c" * 64) for number in numbers], timeout_s=600)
    return time.perf_counter() - started


def verified(folder: Path, how: str) -> dict[str, object]:
    """Verify in a process of its own, whose memory is measured."""
    done = subprocess.run([sys.executable, "-c", VERIFY, folder / "audit.toml", how], capture_output=True, text=True, check=True)
    size, seconds, kib = done.stdout.split()
    what = "the tree: every leaf, hash and tile, and the signed head" if how == "tree" else "and every payload, opened and held against its leaf"
    return {"": what, "records": f"{int(size):,}", "s": f"{float(seconds):.1f}", "memory at most, MiB": f"{int(kib) / 1024:.0f}"}


def proofs(site: LogConfiguration, count: int = 200) -> dict[str, object]:
    """Make proofs of records all over the log, each by a reader that was just opened, and check them."""
    times, sizes, checks = [], [], []
    with site.read() as log:
        size = log.size
    for place in range(count):
        index = place * (size - 1) // (count - 1)
        with site.read() as log:
            started = time.perf_counter()
            file = ProofFile(index, tuple(log.inclusion(index)), log.checkpoint)
            times.append(time.perf_counter() - started)
            leaf, root = log.record(index).leaf, log.root
        sizes.append(len(file.text.encode()))
        started = time.perf_counter()
        if not verify_inclusion(index, size, leaf_hash(leaf), file.path, root):
            raise AssertionError(f"the proof of {index} does not fit")
        checks.append(time.perf_counter() - started)
    median, last = percentiles(times)
    return {
        "": f"proof of one in {size:,}",
        "bytes at most": max(sizes),
        "made in, ms (median)": median,
        "99th percentile": last,
        "checked in, ms": percentiles(checks)[0],
    }


def erased(site: LogConfiguration) -> dict[str, object]:
    """Erase one subject of a large log; the file is written anew."""
    with site.write() as log:
        size, started = log.size, time.perf_counter()
        gone = erase(log, "subject 7", reason="benchmark", basis="GDPR Art. 17(1)", actor=ACTOR).records
        return {"": f"erase a subject with {len(gone):,} of {size:,} records", "s": f"{time.perf_counter() - started:.1f}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement of appends")
    parser.add_argument("--url", help="postgresql://… of an empty database, for the appends")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found: dict[str, Rows] = {}
    with tempfile.TemporaryDirectory(dir=asked.folder, prefix="audit-benchmark-") as name:
        folder = Path(name)
        site = made(folder, asked.url)
        rows = [raw_appends(folder, asked.seconds / 2)]
        with site.write() as log:
            fill(log, SUBJECTS)
            rows += [appends(log, clients, asked.seconds) for clients in CLIENTS]
        found["Durable appends"] = [row | {"CPU a record, ms": row.get("CPU a record, ms", "")} for row in rows]
        found["Published by others, on other hardware"] = list(PEERS)
        if asked.records:
            with site.write() as log:
                before, seconds = log.size, fill(log, asked.records)
                rate = (log.size - before) / seconds if seconds else 0.0
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
            found["A large log"] = [{"records": f"{asked.records:,}", "appended a second, in requests of 512": f"{rate:,.0f}", "MiB": f"{size:,.0f}"}]
            found["Verified"] = [verified(folder, how) for how in ("tree", "all")]
            found["Proofs"] = [proofs(site)]
            found["Erasure"] = [erased(site)]
    publish(found, asked.json)
    print(f"\nPeak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
