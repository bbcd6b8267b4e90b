"""The server's side of its workers: who is free, who is next, and what happens when one dies.

The one idea: a worker has one recording at a time, so when it dies, takes too long or runs out of memory, it is known of which; the others go on, and
a fresh one takes its place.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from clinical_ser.api.configuration import ServerConfiguration
from clinical_ser.api.frames import MAX_ANSWER_BYTES, PREFIX_BYTES, Done, Work, done_of, encode, sizes_of
from clinical_ser.api.metrics import Stage
from clinical_ser.errors import ServerError, ServerSetupError
from clinical_ser.features.workers import THREADS

READY_TIMEOUT_S = 120.0
"""For libraries and models to load, on a machine that is busy."""
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "CLINICAL_SER_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "PYTHONPATH", "VIRTUAL_ENV")
"""Of the server's environment: the log's keys may be in the rest."""
_RESTART_PAUSE_S = 1.0
"""Between tries to start a worker that does not come up."""
_GRACE_S = 5.0

Lane = Literal["at_once", "job"]
Lost = Literal["crash", "time", "memory"]


LOST: dict[Lost, str] = {
    "crash": "Reading the recording ended the process that did it.",
    "time": "The recording took longer than this server allows.",
    "memory": "The recording needs more memory than this server gives to one.",
}
"""What is said of it."""


class WorkerLostError(ServerError):
    """A worker ended with the recording that it had.

    Attributes
    ----------
    reason
        How.
    """

    def __init__(self, reason: Lost) -> None:
        super().__init__(f"The worker that had this recording was lost ({reason}).")
        self.reason: Lost = reason


class BusyError(ServerError):
    """Too many wait already.

    Attributes
    ----------
    retry_after_s
        When it may be better.
    """

    def __init__(self, retry_after_s: int) -> None:
        super().__init__("Too many recordings wait for a worker.")
        self.retry_after_s = retry_after_s


class WorkerStartError(ServerSetupError):
    """A worker process did not come up and did not say why: the machine may be short of memory or busy, which says nothing against a model."""


@dataclass(eq=False)
class _Worker:
    """A process and the connection to it."""

    process: "subprocess.Popen[bytes]"
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    life: int
    """Our end of the pipe that tells it that we are there."""
    done: int = 0

    def end(self) -> None:
        """End it at once; a second time nothing happens."""
        if self.life < 0:
            return
        with suppress(OSError):
            self.process.kill()
        self.writer.close()
        with suppress(OSError):
            os.close(self.life)
        self.life = -1


@dataclass(eq=False)
class Counts:
    """What became of workers, for metrics."""

    lost: dict[Lost, int] = field(default_factory=dict)
    replaced: int = 0


class Workers:
    """A crew of worker processes, for recordings that are answered at once and for jobs.

    Parameters
    ----------
    configuration
        Its `work`, `models` and `encoders`.
    models
        The folders of the models, by their digests: a worker that finds another one there is refused.
    on_lost
        Called with the reason whenever a worker is lost.
    on_trouble
        Called once when a worker cannot be replaced, which is tried again and again.
    on_spent
        Called with the seconds that a recording waited for a worker, and that it was worked on.
    workers
        How many; None for as many as the configuration says.
    niceness
        By how much they stand back for other processes (nice(2)).
    """

    def __init__(
        self,
        configuration: ServerConfiguration,
        models: Mapping[str, Path],
        on_lost: Callable[[Lost], None] = lambda _: None,
        on_trouble: Callable[[Exception], None] = lambda _: None,
        on_spent: Callable[[Stage, float], None] = lambda *_: None,
        *,
        workers: int | None = None,
        niceness: int = 0,
    ) -> None:
        self.models = frozenset(models)
        """Digests of the models that it has."""
        self._work, self._limits = configuration.work, configuration.limits
        self._size = workers or configuration.work.workers
        folders = {digest: str(folder) for digest, folder in models.items()}
        told = {"models": folders, "encoders": configuration.encoders, "memory_mib": configuration.work.memory_mib, "niceness": niceness}
        self._arguments = json.dumps(told)
        self._on_lost, self._on_trouble, self._on_spent = on_lost, on_trouble, on_spent
        self._all: set[_Worker] = set()
        self._free: list[_Worker] = []
        self._waiting: dict[Lane, deque[asyncio.Future[_Worker]]] = {"at_once": deque(), "job": deque()}
        self._busy: dict[Lane, int] = {"at_once": 0, "job": 0}
        self._mean_s = 0.3
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = self._shrinking = False
        self._holders = 0
        self._unheld = asyncio.Event()
        self._unheld.set()
        self.small = asyncio.Event()
        """Set when a crew that was retired has ended, or has only those workers left that are busy."""
        self.counts = Counts()

    @property
    def alive(self) -> int:
        """Workers that are loaded and running."""
        return sum(worker.process.poll() is None for worker in self._all)

    def tend(self) -> None:
        """Replace those that died with nothing to do."""
        for worker in [each for each in self._free if each.process.poll() is not None]:
            self._free.remove(worker)
            self._replace(worker)

    @property
    def waiting(self) -> int:
        """Recordings whose clients wait for a worker."""
        return len(self._waiting["at_once"])

    async def start(self, *, together: bool = True) -> None:
        """Start all, and return when they are warm.

        Parameters
        ----------
        together
            All at once; otherwise one after the other, which leaves the machine's cores to another crew that is at work meanwhile.

        Raises
        ------
        ServerSetupError
            One cannot start, with the reason that it gives; `WorkerStartError` where it gives none.
        """
        at_a_time = self._size if together else 1
        try:
            while len(self._all) < self._size:
                await self._start(at_a_time)
        except BaseException:
            await self.close()
            raise

    async def _start(self, number: int) -> None:
        started = await asyncio.gather(*(self._spawn() for _ in range(number)), return_exceptions=True)
        for found in started:
            if isinstance(found, _Worker):
                self._all.add(found)
                self._give(found)
        for found in started:
            if isinstance(found, BaseException):
                raise found

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the crew, also when it is retired."""
        self._holders += 1
        self._unheld.clear()
        try:
            yield
        finally:
            self._holders -= 1
            if not self._holders:
                self._unheld.set()

    async def retire(self, grace_s: float) -> None:
        """Close the crew once nobody holds it any more.

        Parameters
        ----------
        grace_s
            After so long, when whoever waits for an answer has it and only jobs can still be at work, workers that have nothing to do end too.
        """
        try:
            try:
                async with asyncio.timeout(grace_s):
                    await self._unheld.wait()
            except TimeoutError:
                self._shrinking = True
                while self._free:
                    self._dismiss(self._free.pop())
                self.small.set()
                await self._unheld.wait()
        finally:
            await self.close()
            self.small.set()

    async def close(self) -> None:
        """End all; whoever waits is told."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        for lane in self._waiting.values():
            while lane:
                waiting = lane.popleft()
                if not waiting.done():
                    waiting.set_exception(BusyError(5))
        ended = list(self._all)
        self._all.clear()
        self._free.clear()
        for worker in ended:
            worker.end()
        for worker in ended:
            await asyncio.to_thread(worker.process.wait)

    async def run(self, work: Work, body: Sequence[bytes] | AsyncIterator[bytes], size: int, *, lane: Lane, timeout_s: float) -> tuple[Done, bytes]:
        """Have a recording worked on.

        Parameters
        ----------
        work
            What to do.
        body, size
            The recording as it was sent, in parts, and how many bytes these are together.
        lane
            Recordings that are answered at once go before jobs, and jobs never take the last worker of several.
        timeout_s
            From when a worker has it.

        Raises
        ------
        BusyError
            Too many wait to be answered at once.
        WorkerLostError
            The worker died, or was ended because it took too long.
        """
        asked = time.monotonic()
        worker = await self._taken(lane)
        while worker.process.poll() is not None:
            # It died while it had nothing to do, of which no recording is guilty.
            self._busy[lane] -= 1
            self._replace(worker)
            worker = await self._taken(lane)
        kept = False
        started = time.monotonic()
        self._on_spent(Stage.WAIT, started - asked)
        try:
            async with asyncio.timeout(timeout_s):
                done, answer = await _asked(worker, work, body, size)
            kept = done.code != "memory"
        except TimeoutError:
            raise self._lost("time") from None
        except (OSError, asyncio.IncompleteReadError, ServerError):
            raise self._lost("crash") from None
        finally:
            # Also where the caller was cancelled: half a frame is in the connection.
            self._busy[lane] -= 1
            self._on_spent(Stage.WORK, time.monotonic() - started)
            worker.done += 1
            if kept and worker.done < self._work.recordings:
                self._give(worker)
            else:
                self._replace(worker)
        self._mean_s += 0.1 * (time.monotonic() - started - self._mean_s)
        if done.code == "memory":
            raise self._lost("memory")
        return done, answer

    def _lost(self, reason: Lost) -> WorkerLostError:
        self.counts.lost[reason] = self.counts.lost.get(reason, 0) + 1
        self._on_lost(reason)
        return WorkerLostError(reason)

    # ── who is next ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _may_take(self, lane: Lane) -> bool:
        return lane == "at_once" or self._busy["job"] < max(1, self._size - 1)

    async def _taken(self, lane: Lane) -> _Worker:
        if self._free and self._may_take(lane):
            self._busy[lane] += 1
            return self._free.pop()
        if lane == "at_once" and len(self._waiting[lane]) >= self._limits.waiting:
            raise BusyError(max(1, round(self._mean_s * (1 + len(self._waiting[lane]) / self._size))))
        waiting: asyncio.Future[_Worker] = asyncio.get_running_loop().create_future()
        self._waiting[lane].append(waiting)
        try:
            async with asyncio.timeout(self._work.at_once_timeout_s if lane == "at_once" else None):
                return await waiting
        except TimeoutError:
            raise BusyError(max(1, round(self._work.at_once_timeout_s))) from None
        except asyncio.CancelledError:
            # Given up in the moment that it was given a worker.
            if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                self._busy[lane] -= 1
                self._give(waiting.result())
            raise
        finally:
            with suppress(ValueError):
                self._waiting[lane].remove(waiting)

    def _give(self, worker: _Worker) -> None:
        for lane in ("at_once", "job"):
            while self._waiting[lane] and self._may_take(lane):
                waiting = self._waiting[lane].popleft()
                if not waiting.done():
                    self._busy[lane] += 1
                    waiting.set_result(worker)
                    return
        if self._shrinking:
            self._dismiss(worker)
        else:
            self._free.append(worker)

    def _replace(self, worker: _Worker) -> None:
        self.counts.replaced += 1
        if self._shrinking and not any(self._waiting.values()):
            self._dismiss(worker)
            return
        worker.end()
        self._all.discard(worker)
        if not self._closed:
            self._begin(self._fresh(worker))

    def _dismiss(self, worker: _Worker) -> None:
        worker.end()
        self._all.discard(worker)
        if not self._closed:
            self._begin(asyncio.to_thread(worker.process.wait))

    def _begin(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _fresh(self, before: _Worker) -> None:
        await asyncio.to_thread(before.process.wait)
        told = False
        while not self._closed:
            try:
                worker = await self._spawn()
            except (ServerError, OSError) as error:
                if not told:
                    self._on_trouble(error)
                told = True
                await asyncio.sleep(_RESTART_PAUSE_S)
                continue
            self._all.add(worker)
            self._give(worker)
            return

    # ── one worker ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _spawn(self) -> _Worker:
        with ExitStack() as undo:
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)
            life_theirs, life = os.pipe()
            command = [sys.executable, "-P", "-W", "ignore", "-m", "clinical_ser.api.worker", str(theirs.fileno()), str(life_theirs), self._arguments]
            environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | THREADS
            nothing = subprocess.DEVNULL
            try:
                process = await asyncio.to_thread(
                    subprocess.Popen, command, pass_fds=(theirs.fileno(), life_theirs), env=environment, stdin=nothing, stdout=nothing
                )
            except BaseException:
                os.close(life)
                raise
            finally:
                theirs.close()
                os.close(life_theirs)
            ours.setblocking(False)
            worker = _Worker(process, *await asyncio.open_connection(sock=ours), life)
            undo.callback(worker.end)
            try:
                async with asyncio.timeout(READY_TIMEOUT_S):
                    done, _ = await _answered(worker.reader)
            except (TimeoutError, OSError, asyncio.IncompleteReadError):
                raise WorkerStartError("A worker process does not start; is there memory enough for it (work.memory_mib)?") from None
            if done.kind != "ready":
                raise ServerSetupError(done.detail)
            undo.pop_all()
            return worker


async def _asked(worker: _Worker, work: Work, body: Sequence[bytes] | AsyncIterator[bytes], size: int) -> tuple[Done, bytes]:
    worker.writer.write(encode(work, size))
    if isinstance(body, AsyncIterator):
        async for part in body:
            worker.writer.write(part)
            await worker.writer.drain()
    else:
        for part in body:
            worker.writer.write(part)
        await worker.writer.drain()
    return await _answered(worker.reader)


async def _answered(reader: asyncio.StreamReader) -> tuple[Done, bytes]:
    head, body = sizes_of(await reader.readexactly(PREFIX_BYTES), MAX_ANSWER_BYTES)
    return done_of(await reader.readexactly(head)), await reader.readexactly(body)
