"""A crew of warm processes that one function is spread over, and that survives what a recording does to a process.

One idea: a worker holds one job at a time, so when it dies (a crash in native code, the kernel short of memory) or takes too long, it is known
which job did it, and no other job is touched. `concurrent.futures` cannot say which, and gives up on all jobs that are under way.
"""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from clinical_ser.errors import FeatureError

J = TypeVar("J")
R = TypeVar("R")

JOB_TIMEOUT_S = 3600.0
"""For one job. The longest recording that is let in (hours) takes minutes; what takes longer than this hangs in a decoder."""

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")
"""One thread a process: the crew is the parallelism, and every core gets one worker."""

# A fresh interpreter that imports no __main__, so that a script needs no `if __name__ == "__main__"` guard and a notebook works.
_BOOT = "import sys; from clinical_ser.features.workers import serve; serve(int(sys.argv[1]))"
_READY = "ready"


@dataclass(frozen=True)
class Lost:
    """What comes back for a job that ended its process or ran out of time."""

    reason: str


def run_in_processes(
    function: Callable[[J], R], jobs: Sequence[J], *, workers: int, timeout_s: float = JOB_TIMEOUT_S
) -> Generator[tuple[int, R | Lost]]:
    """Apply `function` to every job in `workers` processes and yield (index, result) as they finish.

    A job whose process dies is tried once more after all others, alone: where two large recordings did not fit into memory side by side, each
    may fit by itself. If it ends its process again, or takes longer than `timeout_s`, a `Lost` comes back for it.

    Parameters
    ----------
    function
        Picklable, and so importable in a fresh interpreter; returns something other than None.
    jobs
        Picklable; each is sent when a worker is free, so that a long list costs no memory here.

    Raises
    ------
    FeatureError
        A worker process cannot start.
    """
    crew = [_Worker(function) for _ in range(min(workers, len(jobs)))]
    try:
        suspects: list[int] = []
        for index, answer in _spread(crew, range(len(jobs)), jobs, timeout_s):
            if isinstance(answer, _Died):
                suspects.append(index)
            else:
                yield index, answer
        while len(crew) > 1:
            crew.pop().stop()
        for index, answer in _spread(crew, suspects, jobs, timeout_s):
            yield index, Lost(f"measuring it ended the process twice ({answer.how})") if isinstance(answer, _Died) else answer
    finally:
        for worker in crew:
            worker.stop()


@dataclass(frozen=True)
class _Died:
    how: str


class _Worker(Generic[J, R]):
    """One process, and the job it holds; replaces its process by a fresh one when that dies."""

    def __init__(self, function: Callable[[J], R]) -> None:
        self._function = function
        self._start()

    def _start(self) -> None:
        self.connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # what native libraries say must not mix with a caller's JSON
                process_group=0,  # Ctrl-C in a terminal goes to the caller, who stops us in order
                env=os.environ | THREADS | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
            )
        self.connection.send(self._function)
        self.ready = False
        self.job: int | None = None
        self.deadline = float("inf")

    def give(self, index: int, job: J, timeout_s: float) -> None:
        self.job, self.deadline = index, time.monotonic() + timeout_s
        with suppress(ConnectionError):  # died while idle: `take` will see it
            self.connection.send(job)

    def take(self) -> R | _Died | None:
        """Return what the process sent: a result, or None for its report that it is ready; `_Died` if it sends no more."""
        try:
            message: Any = self.connection.recv()
        except (EOFError, ConnectionError):
            return self._bury()
        if not self.ready:
            self.ready = message == _READY
            return None
        self._free()
        result: R = message
        return result

    def restart(self) -> None:
        self.stop()
        self._start()

    def stop(self) -> None:
        """End the process at once; the cache it writes to is consistent at every moment."""
        self.connection.close()
        self._process.kill()
        self._process.wait()

    def _free(self) -> None:
        self.job, self.deadline = None, float("inf")

    def _bury(self) -> _Died:
        status = self._process.wait()
        if not self.ready:
            raise FeatureError(f"A worker process could not start ({_how(status)}); try with workers=0 to see why.")
        self.restart()
        return _Died(_how(status))


def _spread(crew: Sequence[_Worker[J, R]], indices: Iterable[int], jobs: Sequence[J], timeout_s: float) -> Iterator[tuple[int, R | Lost | _Died]]:
    """Hand the jobs out, one to a free worker, until all have been answered."""
    waiting = deque(indices)
    while waiting or any(worker.job is not None for worker in crew):
        for worker in crew:
            if waiting and worker.ready and worker.job is None:
                index = waiting.popleft()
                worker.give(index, jobs[index], timeout_s)
        yield from _collect(crew, timeout_s)


def _collect(crew: Sequence[_Worker[J, R]], timeout_s: float) -> Iterator[tuple[int, R | Lost | _Died]]:
    """Wait until a worker has something to say or runs out of time, and yield what was finished."""
    patience = min(worker.deadline for worker in crew) - time.monotonic()
    heard = wait([worker.connection for worker in crew], None if patience == float("inf") else max(patience, 0.0))
    for worker in crew:
        index = worker.job
        if worker.connection in heard:
            answer = worker.take()
            if index is not None and answer is not None:
                yield index, answer
        elif index is not None and time.monotonic() > worker.deadline:
            worker.restart()
            yield index, Lost(f"measuring it took longer than {timeout_s:g} s")


def _how(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name
    return f"{name}, as when memory runs out" if -status == signal.SIGKILL else name


def serve(handle: int) -> None:
    """Be a worker: read the function and then jobs from the connection `handle`, and answer each. Called in a fresh interpreter only."""
    connection: Connection[Any, Any] = Connection(handle)
    function = connection.recv()
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, inbox), daemon=True).start()
    connection.send(_READY)
    while True:
        connection.send(function(inbox.get()))


def _listen(connection: "Connection[Any, Any]", inbox: "queue.SimpleQueue[Any]") -> None:
    try:
        while True:
            inbox.put(connection.recv())
    except (EOFError, OSError):
        # Whoever asked is gone (killed, perhaps): nobody waits for the job in hand, and a process without a parent must not stay behind.
        os._exit(0)
