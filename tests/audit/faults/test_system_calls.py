"""System calls that fail, or in which the writer is killed, one after the other (strace's fault injection).

A first campaign of this kind had to be thrown away, because many faults never fired: here each run counts what strace says it injected.
"""

import contextlib
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from clinical_ser.audit.configuration import LogConfiguration
from tests.audit.faults.driving import FULL, Writer, assert_nothing_twice, check, next_after
from tests.audit.log_maker import EACH_ITS_OWN, make_log

_CALLS = ("pwrite64", "fdatasync", "ftruncate", "write", "fsync", "rename")
"""What SQLite writes with (log and vault: write-ahead log, checkpoint), and what the head beside the keys is kept with."""
_ERRORS = ("EIO", "ENOSPC")
_RECORDS = 6
_TIDY_EVERY = 2
"""With the heads that are kept, which are commits too, checkpoints come after records 2, 3 and 5: a fault in any of them shows before the end."""
_OPTIONS = ("--subjects", str(EACH_ITS_OWN), "--retain-every", "2", "--tidy-every", str(_TIDY_EVERY), "--retries", "5")
_ATTACHED = re.compile(rb"attached")

Numbers = Callable[[str, object], None]


@cache
def _why_not() -> str | None:
    """Return why no faults can be injected here, None where they can."""
    if shutil.which("strace") is None:
        return "strace is not installed (Debian: strace)"
    # A process of ours that is not strace's own child, as the writer will be.
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as sleeper:
        tracer = subprocess.Popen(["strace", "-o", "/dev/null", "-p", str(sleeper.pid)], stderr=subprocess.PIPE)
        assert tracer.stderr is not None
        attached = bool(_ATTACHED.search(tracer.stderr.readline()))
        tracer.terminate()
        tracer.communicate()
        sleeper.communicate(b"\n")
    return None if attached else "processes may not be traced here (ptrace is forbidden)"


@pytest.fixture(autouse=True)
def _strace() -> None:
    if reason := _why_not():
        pytest.skip(reason)


class _Trace:
    """What strace wrote."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def injected(self) -> list[str]:
        """The calls that were made to fail."""
        return [line for line in self.path.read_text(errors="replace").splitlines() if "(INJECTED)" in line]

    @property
    def killed(self) -> bool:
        """Whether the process died inside of a call; the lines after it are its threads'."""
        return "+++ killed by SIGKILL +++" in self.path.read_text(errors="replace")

    def calls(self, call: str) -> int:
        """Return how many calls of a kind the thread with the most of them made: strace counts for each thread."""
        by_thread = Counter(line.split()[0] for line in self.path.read_text(errors="replace").splitlines() if re.match(rf"\d+ +{call}\(", line))
        return max(by_thread.values(), default=0)


@contextlib.contextmanager
def _traced(writer: Writer, path: Path, *options: str) -> Iterator[_Trace]:
    """Trace a writer that waits for its next step, all of its threads, for as long as the block lasts."""
    command = ["strace", "-f", "-y", "-o", str(path), *options, "-p", str(writer.pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as tracer:
        try:
            assert tracer.stderr is not None
            assert _ATTACHED.search(first := tracer.stderr.readline()), first
            yield _Trace(path)
        finally:
            # It ends by itself after a writer that was killed, and not well if it is disturbed in that; any other it has to let go of.
            if not writer.ended:
                tracer.terminate()
            try:
                tracer.communicate(timeout=30)
            except subprocess.TimeoutExpired:
                tracer.kill()
                tracer.communicate()


def _run(folder: Path, prefix: str, *inject: str, phase: str = "append", records: int = _RECORDS) -> tuple[Writer, _Trace]:
    """Let a writer append, and close, with faults injected in one of these phases."""
    trace = folder / "trace"
    with Writer(folder, ("--prefix", prefix, "--records", str(records), *_OPTIONS)) as writer:
        writer.open()
        if phase == "close":
            writer.go()
            assert writer.wait_for("closing"), writer.errors()
        with _traced(writer, trace, *inject) as traced:
            writer.go()
            if phase == "append":
                writer.wait_for("closing")
            else:
                writer.wait_for("")
        writer.go()
        writer.wait_for("")
        writer.end()
    return writer, traced


def _settle(configuration: LogConfiguration, writer: Writer, prefix: str) -> dict[str, int]:
    """Check the log; return what was acknowledged. Whatever was refused, or asked for at the time of a kill, is asked for again."""
    in_doubt = {name for _, name in writer.refusals if name not in ("retain", "open")} | set(next_after(writer.acks, prefix, 1))
    check(configuration, writer.acks, in_doubt=sorted(in_doubt - writer.acks.keys()), subjects=EACH_ITS_OWN)
    return writer.acks


def _assert_noticed(writer: Writer, trace: _Trace, error: str) -> None:
    """See that a fault was not taken for success: somebody was refused, or the database was opened again.

    There are two exceptions. No space while pages go from the write-ahead log into the file: the records are in the former, and the copy is made
    later. And SQLite does not look at whether the folder of a new write-ahead log could be synced.
    """
    copying = r"(pwrite64|ftruncate)\(\d+<[^>]*\.sqlite>"
    of_a_folder = r"fdatasync\(\d+<[^>]*/(keys|log)>"
    harmless = all(re.search(of_a_folder, line) or (error == "ENOSPC" and re.search(copying, line)) for line in trace.injected)
    assert writer.refusals or writer.recoveries or harmless, trace.injected


def _positions(folder: Path, call: str, phase: str) -> int:
    """Return how many calls of a kind there are in a phase, from a run without faults."""
    make_log(folder)
    writer, trace = _run(folder, "dry", "-e", f"trace={call}", phase=phase)
    assert (len(writer.acks), writer.refusals) == (_RECORDS, [])
    return trace.calls(call)


@pytest.mark.parametrize("error", _ERRORS)
@pytest.mark.parametrize("call", _CALLS)
def test_calls_that_fail_again_and_again_lose_nothing(tmp_path: Path, record_property: Numbers, call: str, error: str) -> None:
    configuration = make_log(tmp_path)
    # Far enough apart for an append to get through between two faults; calls for checkpoints and kept heads come less often.
    # The sixth fdatasync is that of the first record's commit, after the vault's three and two for a new write-ahead log.
    first, step = {"pwrite64": (7, 71), "fdatasync": (6, 7), "ftruncate": (1, 7)}.get(call, (1, 2))
    records = 200 if FULL else 12
    writer, trace = _run(tmp_path, "run", "-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={first}+{step}", records=records)
    assert len(trace.injected) >= (2 if call == "pwrite64" else 1)
    _assert_noticed(writer, trace, error)
    acked = _settle(configuration, writer, "run")
    # A fault at every so many calls is one that trying again gets past.
    assert len(acked) == records
    assert_nothing_twice(configuration, acked)
    record_property("fired", len(trace.injected))
    record_property("acknowledged", len(acked))
    record_property("refused", len(writer.refusals))
    record_property("recoveries", writer.recoveries)


@pytest.mark.parametrize("phase", ["append", "close"])
@pytest.mark.parametrize("fault", [*_ERRORS, "SIGKILL"])
@pytest.mark.parametrize("call", _CALLS)
def test_a_fault_at_any_one_call_loses_nothing(tmp_path: Path, record_property: Numbers, call: str, fault: str, phase: str) -> None:
    if not FULL and (phase == "close" or fault != "SIGKILL"):
        pytest.skip("every single position is tried with CLINICAL_SER_FAULTS=full")
    calls = _positions(tmp_path / "dry", call, phase)
    if not calls and phase == "close":
        pytest.skip("no such call is made while the log is closed")
    assert calls
    folder = tmp_path / "log"
    configuration = make_log(folder)
    inject = f"signal={fault}" if fault == "SIGKILL" else f"error={fault}"
    numbers: Counter[str] = Counter()
    acked: dict[str, int] = {}
    for position in range(1, calls + 1) if FULL else [calls // 2 + 1]:
        prefix = f"at{position}"
        writer, trace = _run(folder, prefix, "-e", f"trace={call}", "-e", f"inject={call}:{inject}:when={position}", phase=phase)
        fired = int(trace.killed) if fault == "SIGKILL" else len(trace.injected)
        assert fired >= 1, f"nothing was injected at {call} number {position}"
        if fault != "SIGKILL" and phase == "append":
            _assert_noticed(writer, trace, fault)
            assert len(writer.acks) == _RECORDS, "the writer did not go on after one fault"
        acked |= _settle(configuration, writer, prefix)
        numbers.update(runs=1, fired=fired, acknowledged=len(writer.acks), refused=len(writer.refusals), recoveries=writer.recoveries)
    assert_nothing_twice(configuration, acked)
    for name, value in numbers.items():
        record_property(name, value)


@pytest.mark.parametrize("call", ["pwrite64", "fdatasync"])
def test_a_disk_that_fails_for_good_gets_no_acknowledgement(tmp_path: Path, call: str) -> None:
    configuration = make_log(tmp_path, records=3)
    writer, trace = _run(tmp_path, "run", "-e", f"trace={call}", "-e", f"inject={call}:error=EIO:when=1+", records=2)
    assert len(trace.injected) >= 2
    assert writer.acks == {}
    assert {error for error, _ in writer.refusals} == {"AuditUnavailableError"}
    _settle(configuration, writer, "run")


def test_where_nothing_fails_nothing_is_refused(tmp_path: Path) -> None:
    """The other tests' own check: their writer, traced and not interfered with, makes all of the calls that they make fail."""
    configuration = make_log(tmp_path)
    writer, trace = _run(tmp_path, "run", "-e", f"trace={','.join(_CALLS)}")
    assert trace.injected == []
    assert (writer.refusals, writer.recoveries, len(writer.acks)) == ([], 0, _RECORDS)
    assert all(trace.calls(call) for call in _CALLS)
    _settle(configuration, writer, "run")
