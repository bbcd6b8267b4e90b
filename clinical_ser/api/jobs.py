"""Accepted recordings, worked on one after the other until each has a result or a reason.

The one idea: the queue is the table. What is here in memory is only who is next; after a crash the table says again who is left, and the record of an
outcome is made once, whatever is tried twice.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import ParamSpec

from clinical_ser.api.counting import split
from clinical_ser.api.frames import Work
from clinical_ser.api.generation import Generation, Served
from clinical_ser.api.service import Service, failure_of
from clinical_ser.api.spool import SpoolError
from clinical_ser.api.store import Kept, Outcome
from clinical_ser.api.workers import LOST, WorkerLostError
from clinical_ser.errors import AuditBusyError, AuditError, AuditUnavailableError, ServerError

P = ParamSpec("P")
MOST_ATTEMPTS = 2
"""A recording that was worked on when the server ended, twice, may be why it ended."""
_RETRY_S = (0.2, 1.0, 5.0)
"""Between tries to record an outcome, the last again and again: a disk that is full has to be emptied by someone."""


@dataclass
class _Heard:
    """What is left of a recording that was worked on, for the counts and for a shadow."""

    served: Served | None = None
    parts: list[bytes] = field(default_factory=list)
    cells: bytes = b""


class Jobs:
    """The queue of a server.

    Parameters
    ----------
    service
        Its store, workers and spool.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._next: asyncio.Queue[Kept] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._in_hand: dict[str, Kept] = {}
        self._running: set[str] = set()

    @property
    def running(self) -> int:
        """How many are worked on."""
        return len(self._running)

    @property
    def taken(self) -> int:
        """How many are accepted and without an outcome."""
        return len(self._in_hand)

    @property
    def is_full(self) -> bool:
        """Whether no more can be accepted."""
        return self.taken >= self._service.configuration.limits.jobs

    async def start(self) -> int:
        """Take up what a server before this one left, and return how many these are."""
        service = self._service
        await service.in_thread(service.store.put_back)
        left = await service.in_thread(service.store.unfinished)
        await service.in_thread(service.spool.keep_only, {kept.id for kept in left})
        for kept in left:
            self.add(kept)
        for _ in range(max(1, service.configuration.work.workers - 1)):
            self._tasks.append(asyncio.get_running_loop().create_task(self._work()))
        return len(left)

    async def stop(self) -> None:
        """Stop; what is not finished stays in the table, and that it was worked on does not count against it."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        with suppress(AuditError):
            await self._service.in_thread(self._service.store.give_back, sorted(self._running))

    def add(self, kept: Kept) -> None:
        """Queue an accepted recording, whose row is on the disk; nothing happens where it is queued already."""
        if kept.id not in self._in_hand:
            self._in_hand[kept.id] = kept
            self._next.put_nowait(kept)

    async def adopt(self) -> None:
        """Queue those whose rows reached the disk after whoever sent them was told that this was not sure."""
        for kept in await self._service.in_thread(self._service.store.unfinished):
            if kept.state == "accepted":
                self.add(kept)

    async def _work(self) -> None:
        while True:
            kept = await self._next.get()
            self._running.add(kept.id)
            try:
                await self._one(kept)
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # noqa: BLE001  # a fault of ours ends one recording, with a reason, and not all that wait
                self._service.observing.logs.write("job-failed", level="error", screening=kept.id, error=error)
                await self._durably(kept, self._service.finish_job, kept, failure_of("failed", "The server failed; its log has more."))
                self._service.spool.remove(kept.id)
            self._running.discard(kept.id)
            self._in_hand.pop(kept.id, None)

    async def _one(self, kept: Kept) -> None:
        service = self._service
        if await self._durably(kept, service.store.started, kept):
            # The model that answers now, which may be another than when the recording was accepted: the result names it.
            with service.generation.taken() as generation:
                heard = _Heard()
                outcome = await self._outcome(kept, generation, heard)
                if await self._durably(kept, service.finish_job, kept, outcome) and heard.served is not None:
                    service.was_answered(kept, outcome, heard.served, heard.parts, heard.cells)
        service.spool.remove(kept.id)

    async def _durably(self, kept: Kept, function: Callable[P, object], *arguments: P.args, **options: P.kwargs) -> bool:
        """Write until it is on the disk, and return True; False where the recording's person was erased meanwhile."""
        tries = 0
        while True:
            try:
                await self._service.in_thread(function, *arguments, **options)
            except (AuditUnavailableError, AuditBusyError) as error:
                if await self._is_gone(kept):
                    return False
                if not tries:
                    self._service.observing.logs.write("job-waits-for-the-log", level="warning", screening=kept.id, error=error)
                await asyncio.sleep(_RETRY_S[min(tries, len(_RETRY_S) - 1)])
                tries += 1
            else:
                return True

    async def _is_gone(self, kept: Kept) -> bool:
        """Tell whether the person was erased meanwhile, and the recording with them."""
        try:
            return await self._service.in_thread(self._service.store.get, kept.id, kept.tenant) is None
        except AuditError:
            return False

    async def _outcome(self, kept: Kept, generation: Generation, heard: _Heard) -> Outcome:
        if kept.attempts >= MOST_ATTEMPTS:
            return failure_of("interrupted", "The server ended twice while it worked on this recording.")
        served = generation.models.get(kept.order.model)
        if served is None:
            return failure_of("no-model", "The model that was asked for is not served any more.")
        if served.withdrawn:
            return failure_of("withdrawn", "The model that was asked for was withdrawn.")
        heard.served = served
        return await self._screened(kept, generation, served, heard)

    async def _screened(self, kept: Kept, generation: Generation, served: Served, heard: _Heard) -> Outcome:
        service, order = self._service, kept.order
        try:
            limits, work = service.configuration.limits, service.configuration.work
            options, counted = order.metadata.options(), service.counting.is_on
            asked = Work(kind="screening", model=served.digest, options=options, decoded_s=limits.decoded_s, counted=counted)
            parts = await service.in_thread(self._parts, kept)
            if service.shadows.of(served.id) is not None:
                heard.parts = parts
            done, answer = await generation.workers.run(asked, parts, sum(map(len, parts)), lane="job", timeout_s=work.job_timeout_s)
        except SpoolError as error:
            return failure_of("lost", str(error))
        except WorkerLostError as lost:
            return failure_of(lost.reason, LOST[lost.reason])
        if done.kind != "result":
            return failure_of(done.code, done.detail)
        raw, heard.cells = split(done, answer)
        try:
            return service.checked(served, raw)
        except ServerError as error:
            return failure_of("failed", str(error))

    def _parts(self, kept: Kept) -> list[bytes]:
        return list(self._service.spool.read(kept.id, bytes.fromhex(kept.order.spooled or "")))
