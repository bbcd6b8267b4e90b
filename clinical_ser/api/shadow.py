"""Asks a shadow: a model that answers silently beside the champion, so that it is known how it would answer before anyone depends on it.

The one idea: it has a process of its own that stands back for all others, and is asked after the answer is out. Whatever becomes of it, no answer
waits for it or changes; and what it says is added to a day's counts and forgotten.
"""

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from clinical_ser.api.cells import Cells, beside
from clinical_ser.api.counting import Answered, split
from clinical_ser.api.frames import Work
from clinical_ser.api.generation import Served, answers_as
from clinical_ser.api.metrics import Shadowed
from clinical_ser.api.workers import Workers
from clinical_ser.audit.events import Configuration, Purpose
from clinical_ser.audit.log import Entry
from clinical_ser.errors import ClinicalSerError, ServerError, ServerSetupError
from clinical_ser.screening.result import ScreeningResult

if TYPE_CHECKING:
    from clinical_ser.api.service import Service

MOST_WAITING, MOST_BYTES = 8, 64 << 20
"""Recordings that wait for a shadow, in memory; more are left out, which is counted."""
_NICENESS = 10
_NOT_ASKED = {"timeline", "explained"}
"""Options of a screening that say nothing about how two models agree."""
_Waiting = tuple[Answered, list[bytes], int, dict[str, object]]


class Shadow:
    """One shadow, its worker, and the recordings that wait for it.

    Parameters
    ----------
    service
        Whose recordings these are.
    model
        The shadow.
    """

    def __init__(self, service: "Service", model: Served) -> None:
        self._service, self.model = service, model
        self._crew = Workers(service.configuration, {model.digest: model.folder}, on_trouble=self._trouble, workers=1, niceness=_NICENESS)
        self._waiting: deque[_Waiting] = deque()
        self._more = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def start(self) -> None:
        """Start its worker; ServerSetupError where that fails."""
        await self._crew.start()
        self._begin()

    async def close(self) -> None:
        """End it, with what waits."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._waiting.clear()
        await self._crew.close()

    def offer(self, answered: Answered, parts: list[bytes], options: dict[str, object]) -> None:
        """Have a recording that was answered shown to the shadow too, if it comes to it."""
        size = sum(map(len, parts))
        if len(self._waiting) >= MOST_WAITING or size + sum(each[2] for each in self._waiting) > MOST_BYTES:
            self._service.observing.metrics.shadowed(Shadowed.SKIPPED)
            return
        self._waiting.append((answered, parts, size, {name: value for name, value in options.items() if name not in _NOT_ASKED}))
        self._more.set()

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._ask())
        self._task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """Go on after what nobody foresaw, without the voices that wait: they are not kept for a task that is no more."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        self._trouble(error)
        # The one that it ended with, and those that it did not come to.
        for _ in range(1 + len(self._waiting)):
            self._service.observing.metrics.shadowed(Shadowed.FAILED)
        self._waiting.clear()
        if not self._closed:
            self._begin()

    async def _ask(self) -> None:
        while True:
            while self._waiting:
                answered, parts, size, options = self._waiting.popleft()
                await self._one(answered, parts, size, options)
                del parts
            self._more.clear()
            await self._more.wait()

    async def _one(self, answered: Answered, parts: list[bytes], size: int, options: dict[str, object]) -> None:
        service, metrics = self._service, self._service.observing.metrics
        limits, seconds = service.configuration.limits, service.configuration.work.job_timeout_s
        work = Work(kind="screening", model=self.model.digest, options=options, decoded_s=limits.decoded_s, counted=True)
        try:
            if not await service.counting.is_counted(answered):
                return
            done, answer = await self._crew.run(work, parts, size, lane="job", timeout_s=seconds)
            if done.kind != "result":
                raise ServerError("A shadow could not answer.")
            raw, cells = split(done, answer)
            result: ScreeningResult | None = service.checked(self.model, raw).result
            assert result is not None
            observation = beside(Cells.read(cells, self.model.features), answered.result, result)
            service.counting.add(answered.finished_at.date(), self.model.digest, observation)
        except (ClinicalSerError, ValueError):
            metrics.shadowed(Shadowed.FAILED)
        else:
            metrics.shadowed(Shadowed.COUNTED)

    def _trouble(self, error: BaseException) -> None:
        self._service.observing.logs.write("shadow-failed", level="warning", error=error)


class Shadows:
    """The shadows of a server's models, by the models' ids.

    Parameters
    ----------
    service
        Whose models these are.
    """

    def __init__(self, service: "Service") -> None:
        self._service = service
        self._found: dict[str, Shadow] = {}

    def of(self, model: str) -> Shadow | None:
        """Return the shadow of a model; None where it has none."""
        return self._found.get(model)

    async def become(self, champion: Served, shadow: Served | None) -> None:
        """Let a model have this shadow from now on, or none; that it has is in the audit log before it hears anyone.

        Raises
        ------
        AuditError
            It cannot be recorded; then no shadow comes, and none goes.
        ServerSetupError
            It cannot be started, or answers another question than the champion.
        """
        before = self._found.get(champion.id)
        if (before and before.model.digest) == (shadow and shadow.digest):
            return
        if before is not None:
            await self._record(champion, before.model.digest, None)
            del self._found[champion.id]
            await before.close()
        if shadow is None:
            return
        if not answers_as(shadow.bundle, champion.bundle):
            raise ServerSetupError("A shadow of another task than the champion's would be compared with what it does not answer.")
        made = Shadow(self._service, shadow)
        await made.start()
        try:
            await self._record(champion, None, shadow.digest)
        except BaseException:
            await made.close()
            raise
        self._found[champion.id] = made

    async def close(self) -> None:
        """End all."""
        found, self._found = list(self._found.values()), {}
        for shadow in found:
            await shadow.close()

    async def _record(self, champion: Served, old: str | None, new: str | None) -> None:
        change = Configuration(actor=self._service.actor, setting=f"shadow of {champion.id}", old=old, new=new)
        await self._service.in_thread(self._service.record, [Entry(change, purpose=Purpose.OPERATIONS, model=new or old)])
