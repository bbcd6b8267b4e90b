"""Counts for the monitoring: what was screened, by day and model, added to the journal in batches and off every request's path.

The one idea: what reaches the disk is a day's sum. Who was recorded is looked up only to count a person once, and is not kept beside what is counted.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from clinical_ser.api.access import named_in
from clinical_ser.api.cells import Cells
from clinical_ser.api.frames import Done
from clinical_ser.api.generation import Served
from clinical_ser.api.metrics import Counted
from clinical_ser.api.store import Kept
from clinical_ser.errors import ClinicalSerError
from clinical_ser.monitoring.counts import Counts, Observation
from clinical_ser.monitoring.journal import Journal
from clinical_ser.screening.result import ScreeningResult, Status

if TYPE_CHECKING:
    from clinical_ser.api.service import Service

FLUSH_S = 60.0
"""Between batches; a server that is killed loses as much of its counts."""
_MOST_WAITING = 200
_LOOKED_AT = 16
"""Screenings of one person that are looked at for whether one was counted lately."""


@dataclass(frozen=True)
class Answered:
    """A recording that was answered.

    Attributes
    ----------
    id, tenant, subject
        Of the screening, and whom it is of.
    finished_at
        When; only the day is counted.
    result
        What was answered.
    """

    id: str
    tenant: str
    subject: str
    finished_at: datetime
    result: ScreeningResult

    @classmethod
    def of(cls, kept: Kept, result: ScreeningResult, finished_at: datetime) -> "Answered":
        """Return it from what is kept."""
        return cls(kept.id, kept.tenant, kept.subject, finished_at, result)


class Counting:
    """Counts what a server answers; does nothing where no journal is configured.

    Parameters
    ----------
    service
        Its store, in which it is looked up whether a person was counted lately.
    """

    def __init__(self, service: "Service") -> None:
        self._service = service
        told = service.configuration.monitoring
        self._journal = None if told.folder is None else Journal(told.folder)
        self._person_days = timedelta(days=told.person_days)
        self._waiting: asyncio.Queue[tuple[Answered, Served, bytes]] = asyncio.Queue(_MOST_WAITING)
        self._sums: dict[tuple[date, str], Counts] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._troubled = self._closed = False

    @property
    def is_on(self) -> bool:
        """Whether anything is counted."""
        return self._journal is not None

    def start(self) -> None:
        """Begin to count."""
        if self.is_on:
            self._begin(self._count)
            self._begin(self._flush_again_and_again)

    def _begin(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = asyncio.get_running_loop().create_task(work())
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, work))

    def _ended(self, work: Callable[[], Coroutine[Any, Any, None]], task: "asyncio.Task[None]") -> None:
        """Go on after what nobody foresaw, without what waits: that nothing is counted any more is not to show only at the next start."""
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        self._service.observing.logs.write("counting-failed", level="warning", error=error)
        if work == self._count:
            # The one that it ended with, and those that it did not come to.
            for _ in range(1 + self._waiting.qsize()):
                self._service.observing.metrics.recording_counted(Counted.FAILED)
            while not self._waiting.empty():
                self._waiting.get_nowait()
        if not self._closed:
            self._begin(work)

    async def close(self) -> None:
        """Count what waits, and write it."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        try:
            while not self._waiting.empty():
                await self._one(*self._waiting.get_nowait())
        finally:
            await self.flush()

    def offer(self, answered: Answered, served: Served, cells: bytes) -> None:
        """Have a recording counted soon; where too many wait it is not, which is counted."""
        if not self.is_on:
            return
        try:
            self._waiting.put_nowait((answered, served, cells))
        except asyncio.QueueFull:
            self._service.observing.metrics.recording_counted(Counted.FAILED)

    def add(self, day: date, model: str, observation: Observation) -> None:
        """Add an observation to a day's counts of a model, in memory."""
        found = Counts.of(model, [observation])
        before = self._sums.get((day, model))
        self._sums[(day, model)] = found if before is None else before + found

    async def flush(self) -> None:
        """Write what was counted; what cannot be written is kept for the next time."""
        journal, sums = self._journal, self._sums
        if journal is None or not sums:
            return
        self._sums = {}
        for (day, model), counts in sums.items():
            try:
                await self._service.in_thread(journal.add, day, counts)
            except ClinicalSerError as error:
                meanwhile = self._sums.get((day, model))
                self._sums[(day, model)] = counts if meanwhile is None else counts + meanwhile
                self._complain(error)
            else:
                self._troubled = False

    async def is_counted(self, answered: Answered) -> bool:
        """Tell whether a recording is to be counted: the first of a person for long, and the first usable one after those that were not."""
        return await self._service.in_thread(self._is_counted, answered)

    def _is_counted(self, answered: Answered) -> bool:
        found = self._service.store.latest(answered.tenant, named_in(answered.tenant, answered.subject), _LOOKED_AT)
        places = [place for place, kept in enumerate(found) if kept.id == answered.id]
        if not places:
            # Erased meanwhile, or one of very many.
            return False
        since = answered.finished_at - self._person_days
        earlier = [kept for kept in found[places[0] + 1 :] if kept.finished_at is not None and kept.finished_at >= since]
        if not earlier:
            return True
        usable = any(kept.result is not None and kept.result.status is not Status.NOT_USABLE for kept in earlier)
        return answered.result.status is not Status.NOT_USABLE and not usable

    async def _count(self) -> None:
        while True:
            await self._one(*await self._waiting.get())

    async def _one(self, answered: Answered, served: Served, cells: bytes) -> None:
        metrics = self._service.observing.metrics
        try:
            observation = Cells.read(cells, served.features)
            if await self.is_counted(answered):
                self.add(answered.finished_at.date(), served.digest, observation)
                metrics.recording_counted(Counted.COUNTED)
            else:
                metrics.recording_counted(Counted.AGAIN)
        except (ClinicalSerError, ValueError) as error:
            metrics.recording_counted(Counted.FAILED)
            self._complain(error)

    async def _flush_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            flushing = asyncio.get_running_loop().create_task(self.flush())
            try:
                await asyncio.shield(flushing)
            except asyncio.CancelledError:
                # A flush that was begun is ended, also when the server stops meanwhile.
                await asyncio.wait([flushing])
                raise

    def _complain(self, error: Exception) -> None:
        """Say once that counting fails; no answer depends on it."""
        if not self._troubled:
            self._service.observing.logs.write("counting-failed", level="warning", error=error)
        self._troubled = True


def split(done: Done, answer: bytes) -> tuple[bytes, bytes]:
    """Return a worker's result, and the cells that came after it, if any."""
    if done.result_bytes is None or not 0 <= done.result_bytes <= len(answer):
        return answer, b""
    return answer[: done.result_bytes], answer[done.result_bytes :]
