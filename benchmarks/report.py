"""How long the clinician's report takes: one in a warm process, the first one, and a thousand through the command line.

    python -m benchmarks.report [--model depression-simulated] [--reports 1000]

Needs no corpus: one simulated visit is screened, and its result varied, so that every report differs. Wall time depends on what else the machine
does; CPU time, beside it, much less.
"""

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.tables import publish
from clinical_ser.cohorts.simulation import simulate_visits
from clinical_ser.errors import ReportError
from clinical_ser.screening.result import ScreeningResult
from clinical_ser.screening.screener import Screener
from reports.clinician import html_report, pdf_report

VARIED = 50
LANGUAGES = ("en", "zh")
WORKERS = (1, 2)
PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20
ONE = """
import sys, time
start = time.perf_counter()
from pathlib import Path
from clinical_ser.screening.result import ScreeningResult
from reports.clinician import html_report, pdf_report
imported = time.perf_counter()
result = ScreeningResult.model_validate_json(Path(sys.argv[2]).read_bytes())
(pdf_report if sys.argv[1] == "PDF" else html_report)(result, language=sys.argv[3])
print(imported - start, time.perf_counter() - imported)
print(open("/proc/self/status").read())
"""
# Not ru_maxrss: a child inherits its parent's high-water mark through exec.
Rows = list[dict[str, object]]


def real_result(model: str, folder: Path) -> ScreeningResult:
    """Screen a simulated visit that gets an answer, and so two pages."""
    visit = simulate_visits(folder)[0]
    return Screener.load(model).screen(visit.path, sex=visit.sex.value, age=visit.age, timeline=True)


def varied(result: ScreeningResult, n: int) -> Iterator[ScreeningResult]:
    """Yield results that differ from `result`, and from each other, in every number a report draws and is free to differ in."""
    rng = np.random.default_rng(0)
    for i in range(n):
        said = result.model_dump(mode="json")
        said["recording"] |= {"sha256": f"{i:064x}", "duration_s": result.recording.duration_s + 0.1 * i}
        said["context"]["age"] = 18 + i % 70
        for measure in said["measures"]:
            if measure["value"] is not None:
                measure["value"] *= float(rng.uniform(0.8, 1.2))
        for window in said["timeline"]["windows"]:
            window["effect"] *= float(rng.uniform(0.5, 1.5))
        for check in said["quality"]["checks"]:
            check["value"] = check["value"] and check["value"] * float(rng.uniform(0.9, 1.1))
        yield ScreeningResult.model_validate_json(json.dumps(said))


def languages(result: ScreeningResult) -> list[str]:
    """Return the languages for which a font is here."""
    there = []
    for language in LANGUAGES:
        with contextlib.suppress(ReportError):
            pdf_report(result, language=language)
            there.append(language)
    return there


def warm(results: Sequence[ScreeningResult], spoken: Sequence[str]) -> Rows:
    """Time each of many different reports in a process that has made one before."""
    rows: Rows = []
    for form, make in (("HTML", html_report), ("PDF", pdf_report)):
        for language in spoken:
            make(results[0], language=language)
            wall, cpu, sizes = [], [], []
            for result in results:
                started, worked = time.perf_counter(), time.process_time()
                sizes.append(len(make(result, language=language)))
                wall.append(1000 * (time.perf_counter() - started))
                cpu.append(1000 * (time.process_time() - worked))
            rows.append(
                {
                    "report": f"{form}, {language}", "reports": len(results), "median, ms": f"{statistics.median(wall):.0f}",
                    "95th percentile, ms": f"{np.percentile(wall, 95):.0f}", "CPU median, ms": f"{statistics.median(cpu):.0f}",
                    "CPU 95th percentile, ms": f"{np.percentile(cpu, 95):.0f}", "size, kB": f"{statistics.median(sizes) / 1000:.0f}",
                }
            )  # fmt: skip
    return rows


def cold(path: Path, spoken: Sequence[str]) -> Rows:
    """Time the first report of a fresh process, and its peak memory."""
    rows: Rows = []
    for form in ("HTML", "PDF"):
        for language in spoken:
            done = [subprocess.run([sys.executable, "-c", ONE, form, path, language], capture_output=True, text=True, check=True) for _ in range(3)]
            imported, made = np.median([[float(word) for word in one.stdout.split("\n", 1)[0].split()] for one in done], axis=0)
            rows.append(
                {
                    "first report": f"{form}, {language}", "import, s": f"{imported:.2f}", "report, s": f"{made:.2f}",
                    "peak memory, MiB": f"{peak_mib(done[-1].stdout):.0f}",
                }
            )  # fmt: skip
    return rows


def batch(path: Path, reports: int, spoken: Sequence[str]) -> Rows:
    """Time a batch through the command line, start and end of processes included; watch the memory of all of them."""
    rows: Rows = []
    for language in spoken:
        for workers in WORKERS:
            with tempfile.TemporaryDirectory() as folder:
                words = ["report", path, "-o", folder, "--language", language, "--workers", workers, "--json"]
                before, started = os.times(), time.perf_counter()
                with subprocess.Popen(
                    [sys.executable, "-m", "clinical_ser", *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
                ) as run:
                    peak = 0.0
                    while run.poll() is None:
                        peak = max(peak, family_mib(run.pid))
                        time.sleep(0.2)
                    assert run.stdout is not None
                    written = json.load(run.stdout)["written"]
                wall, after = time.perf_counter() - started, os.times()
            cpu = after.children_user + after.children_system - before.children_user - before.children_system
            rows.append(
                {
                    "batch": f"PDF, {language}", "workers": workers, "reports": written, "wall, s": f"{wall:.1f}",
                    "reports a second": f"{written / wall:.1f}", "CPU, s": f"{cpu:.1f}", "CPU a report, ms": f"{1000 * cpu / written:.0f}",
                    "peak memory of all processes, MiB": f"{peak:.0f}",
                }
            )  # fmt: skip
            assert written == reports
    return rows


def family_mib(pid: int) -> float:
    """Resident memory of a process and its children, in MiB; shared pages count for each."""
    total = 0.0
    with contextlib.suppress(OSError):  # ended while it was looked at
        total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_MIB
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            total += family_mib(int(child))
    return total


def peak_mib(status: str) -> float:
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="depression-simulated")
    parser.add_argument("--reports", type=int, default=1000, help="In the batch.")
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        result = real_result(given.model, folder)
        spoken = languages(result)
        (folder / "result.json").write_text(result.model_dump_json())
        (folder / "results.jsonl").write_text("".join(f"{one.model_dump_json()}\n" for one in varied(result, given.reports)))
        found = {
            "Warm": warm(list(varied(result, VARIED)), spoken),
            "Cold": cold(folder / "result.json", spoken),
            "Batch": batch(folder / "results.jsonl", given.reports, spoken),
        }
    publish(found, given.json)


if __name__ == "__main__":
    main()
