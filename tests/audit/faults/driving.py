"""Runs the writer as a process of its own, hears what it acknowledges, and holds the log to it."""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.events import ReportAction
from clinical_ser.audit.verifying import VerifiedLog
from tests.audit.log_maker import CONFIGURATION_FILE, append, payload_of, verify

FULL = os.environ.get("CLINICAL_SER_FAULTS") == "full"
"""Whether to run the whole counts (minutes) or as many as fit beside the other tests (seconds)."""
_ROOT = Path(__file__).parents[3]
_HANGS_AFTER_S = 120.0


@dataclass
class Writer:
    """A writer's process; it does not outlive the `with` block.

    Attributes
    ----------
    acks
        Index by name of what it acknowledged, as far as its lines were read.
    refusals
        (error, name) of what was refused, in order.
    recoveries
        How often it opened its database again after an error.
    ended
        Whether all that it said was read, and it has ended.
    """

    folder: Path
    options: tuple[str, ...]
    acks: dict[str, int] = field(default_factory=dict)
    refusals: list[tuple[str, str]] = field(default_factory=list)
    recoveries: int = 0
    ended: bool = False

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tests.audit.faults.writer", str(self.folder / CONFIGURATION_FILE), *self.options]
        # Bytes without a buffer of ours: whatever was in the pipe when the process died is still read.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=_ROOT)
        self._watch = threading.Timer(_HANGS_AFTER_S * (10 if FULL else 1), self._process.kill)
        self._watch.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._watch.cancel()
        self._process.kill()
        self._process.communicate()

    @property
    def pid(self) -> int:
        """Return the process's number."""
        return self._process.pid

    def wait_for(self, word: str, times: int = 1) -> bool:
        """Read lines until the word was said so often; False where the process ended before."""
        assert self._process.stdout is not None
        for raw in self._process.stdout:
            said, *rest = raw.decode().rstrip("\n").split(" ", 2)
            if said == "ack":
                self.acks[rest[1]] = int(rest[0])
            elif said == "refused":
                self.refusals.append((rest[0], rest[1]))
            elif said == "recovered":
                self.recoveries += 1
            times -= said == word
            if not times:
                return True
        self.ended = True
        return False

    def go(self) -> None:
        """Let it take its next step."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()

    def open(self) -> None:
        """Let it open the log; it appends when it is told to go on."""
        assert self.wait_for("ready"), self.errors()
        self.go()
        assert self.wait_for("open"), self.errors()

    def begin(self) -> None:
        """Let it open the log and begin to append."""
        self.open()
        self.go()

    def kill(self) -> None:
        """Kill it (SIGKILL), and read what it had said."""
        self._process.kill()
        self.end()

    def end(self) -> int:
        """Read the rest of what it says, letting it close, and return its exit status; negative: the signal that killed it."""
        if self.wait_for("closing"):
            self.go()
            self.wait_for("")
        return self._process.wait(_HANGS_AFTER_S)

    def errors(self) -> str:
        """Return what it wrote to standard error, once it has ended."""
        self._process.kill()
        assert self._process.stderr is not None
        return self._process.stderr.read().decode()


def check(configuration: LogConfiguration, acked: Mapping[str, int], *, in_doubt: Iterable[str] = (), subjects: int = 0) -> VerifiedLog:
    """Hold a log to what its writer acknowledged, as it lies there after the writer's end.

    It verifies; what was acknowledged is where it was said to be, and asked for again stays there alone; what was not comes to stand there once.

    Parameters
    ----------
    configuration
        The log; nobody writes to it.
    acked
        Index by name.
    in_doubt
        Names that were asked for and not acknowledged.
    subjects
        What the writer was told.

    Returns
    -------
    found
        The log as it was before anything was asked for again.
    """
    found = verify(configuration)
    with configuration.write(wait_s=0) as log:
        for name, index in acked.items():
            again = append(log, name, subjects)
            assert (again.index, again.repeated) == (index, True), f"{name} was acknowledged at {index} and is at {again.index}"
        settled = {name: append(log, name, subjects).index for name in in_doubt}
        assert all(append(log, name, subjects).index == index for name, index in settled.items())
    with configuration.read() as reader:
        for name, index in {**acked, **settled}.items():
            assert reader.record(index).payload == payload_of(name)
    return found


def next_after(acks: Mapping[str, int], prefix: str, threads: int) -> list[str]:
    """Return the names that a writer's threads had asked for when it died: for each the one after the last that was acknowledged."""
    last = dict.fromkeys(range(threads), -1)
    for name in acks:
        _, thread, number = name.rsplit("/", 2)
        last[int(thread)] = max(last[int(thread)], int(number))
    return [f"{prefix}/{thread}/{number + 1}" for thread, number in last.items()]


def assert_nothing_twice(configuration: LogConfiguration, acked: Mapping[str, int]) -> None:
    """See that a log verifies, holds each acknowledged record at its index, and no record twice."""
    verify(configuration)
    with configuration.read() as reader:
        payloads = [record.payload for record in reader.records()]
    results = [payload.result for payload in payloads if isinstance(payload, ReportAction)]
    assert len(results) == len(set(results)) == len(payloads)
    for name, index in acked.items():
        assert results[index] == payload_of(name).result
