"""What the routes work with: the log, the store, the workers, the models, and the rules that tie them together.

The one idea: whatever is given out goes through here, and nothing leaves before its record is on the disk.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from anyio import CapacityLimiter, to_thread
from pydantic import ValidationError

from clinical_ser.api.access import Principal
from clinical_ser.api.configuration import ServerConfiguration
from clinical_ser.api.counting import Answered, Counting
from clinical_ser.api.following import Following, changed
from clinical_ser.api.generation import Generation, Served, served_models
from clinical_ser.api.limits import AtOnce, Rate
from clinical_ser.api.metrics import Restart
from clinical_ser.api.observing import Observing
from clinical_ser.api.shadow import Shadows
from clinical_ser.api.spool import Spool
from clinical_ser.api.store import Failure, Kept, Order, Outcome, Readers, Store
from clinical_ser.api.workers import Workers
from clinical_ser.audit.answering import answer_entry, operator
from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.events import Actor, Notice, Purpose, ReportAction, Role, Submission
from clinical_ser.audit.events import Outcome as RecordedOutcome
from clinical_ser.audit.events import Service as ServiceEvent
from clinical_ser.audit.exports.packed import remove_leftovers
from clinical_ser.audit.log import AuditLog, Entry, Receipt
from clinical_ser.audit.reading import DatabaseReader
from clinical_ser.audit.turns import lock_of_log
from clinical_ser.audit.witness import Witness, open_witness
from clinical_ser.errors import AuditError, AuditUnavailableError, ServerError, ServerSetupError
from clinical_ser.screening.result import ScreeningResult
from reports.locale import available
from reports.site import Site, check_filled_in, find_site

if TYPE_CHECKING:
    from clinical_ser.api.jobs import Jobs

P = ParamSpec("P")
R = TypeVar("R")
COMPONENT = "server"
_ALONE = "serving.lock"
_THREADS = 96
"""That wait for the disk together: the more, the more records share one sync."""
_PAGES = 2
_PAGES_OF_ONE = 4
"""Reports of one client at a time: they take a core each."""
_SCREENINGS_AT_ONCE = 10
"""Times the rate: a ward's recordings of a morning, sent together."""
_FAILED_LATELY_S = 10.0
ROOM_BYTES = 64 << 20
"""What has to be left on the disk, by accepted recordings too: the log has to be able to say what became of them."""
_HOUSE_EVERY_S = 2.0
_ADOPT_EVERY, _EXPIRE_EVERY = 15, 1800
"""Rounds: half a minute, an hour."""
_CLOCK_S = 3600.0


def site_of(configuration: ServerConfiguration) -> Site:
    """Return what the site configured for its reports."""
    found = find_site(configuration.site)
    check_filled_in(found)
    return found


class Service:
    """Everything behind the routes. Make it with `started`.

    Attributes
    ----------
    configuration, audit
        Of the server and of the log.
    log, readers, store
        The one writer, connections for reading, and the screenings that are kept.
    generation, spool
        What answers now, and where accepted recordings wait. Whoever works on a recording takes the generation once, with `taken`.
    following
        Puts another generation in its place when the registry has another champion.
    """

    def __init__(
        self,
        configuration: ServerConfiguration,
        audit: LogConfiguration,
        log: AuditLog,
        site: Site,
        observing: Observing,
    ) -> None:
        self.configuration, self.audit, self.log, self.site, self.observing = configuration, audit, log, site, observing
        self.generation: Generation
        self.following, self.shadows = Following(self), Shadows(self)
        self.spool = Spool(configuration.spool_folder)
        self.readers = Readers(audit, log)
        self.store = Store(log, self.readers)
        self.languages = available(site.languages_folder)
        self.actor = operator().model_copy(update={"role": Role.SERVICE})
        self.ready = False
        self.counting = Counting(self)
        self._failed_at: float | None = None
        self._troubled = False
        self._started_at = (time.time(), time.monotonic())
        self.witness: Witness | None = None
        self.jobs: Jobs
        limits = configuration.limits
        self.screening_rate = Rate(limits.screenings_per_s, _SCREENINGS_AT_ONCE * limits.screenings_per_s)
        self.screenings_at_once = AtOnce(limits.concurrent)
        self.pages_at_once = AtOnce(_PAGES_OF_ONE)
        self.bodies = CapacityLimiter(limits.bodies)
        self.in_flight: set[str] = set()
        """Idempotency keys whose first request is being worked on."""
        self._threads = CapacityLimiter(_THREADS)
        self._pages = CapacityLimiter(_PAGES)

    @classmethod
    @asynccontextmanager
    async def started(cls, configuration: ServerConfiguration, audit: LogConfiguration, observing: Observing) -> AsyncIterator[Self]:
        """Open the log, start the workers, and see all of it end in order.

        Raises
        ------
        AuditError
            The log cannot be written: nothing could be answered.
        ServerSetupError, BundleError, InvalidValueError
            A model or a worker cannot be started.
        """
        site = await to_thread.run_sync(site_of, configuration)
        async with AsyncExitStack() as stack:
            alone = lock_of_log(audit.keys / _ALONE)
            if not alone.take():
                # A guest who stays would have the log in turns with this one, and each would take up the other's recordings.
                raise ServerSetupError("A server runs with this audit log already; there is one at a time.")
            stack.callback(alone.release)
            log = await to_thread.run_sync(partial(audit.write, lends=True))
            stack.push_async_callback(to_thread.run_sync, log.close)
            service = cls(configuration, audit, log, site, observing)
            stack.callback(service.readers.close)
            await service.in_thread(service.following.begin)
            models = await service.in_thread(served_models, configuration)
            service.generation = Generation(models, service.crew(models))
            await service.in_thread(service._open)
            stack.push_async_callback(service._stopped)
            await service.workers.start()
            stack.push_async_callback(service._close_crews)
            service.counting.start()
            stack.push_async_callback(service.counting.close)
            if configuration.witness is not None:
                service.witness = await to_thread.run_sync(open_witness, configuration.witness)
                stack.callback(service.witness.close)
            await to_thread.run_sync(remove_leftovers, audit.origin)
            for each in models.values():
                if each.withdrawn:
                    observing.logs.write("model-withdrawn")
                else:
                    observing.metrics.model_loaded(**each.identity)
            service.ready = True
            yield service
            service.ready = False

    def crew(self, models: Mapping[str, Served]) -> Workers:
        """Return workers for these models, which are not started yet."""
        metrics, logs = self.observing.metrics, self.observing.logs
        return Workers(
            self.configuration,
            {served.digest: served.folder for served in models.values() if not served.withdrawn},
            on_lost=lambda reason: metrics.worker_restarted(Restart(reason)),
            on_trouble=lambda error: logs.write("worker-does-not-start", level="error", error=error),
            on_spent=metrics.stage,
        )

    @property
    def models(self) -> Mapping[str, Served]:
        """The models that answer now, to be told of; whoever works with one takes the generation."""
        return {name: served for name, served in self.generation.models.items() if not served.withdrawn}

    @property
    def workers(self) -> Workers:
        """The crew that has them."""
        return self.generation.workers

    async def _close_crews(self) -> None:
        await self.following.close()
        await self.shadows.close()
        await self.workers.close()

    def _open(self) -> None:
        """Make the tables, and record that the server started and which models answer from now on."""
        self.store.prepare()
        models = self.generation.models.values()
        detail = "; ".join(f"model {served.id}: {'withdrawn' if served.withdrawn else served.digest}" for served in models)
        started = Entry(ServiceEvent(actor=self.actor, action="started", component=COMPONENT, detail=detail[:10_000]), purpose=Purpose.SYSTEM)
        with self.reading() as reader:
            changes = [change for served in models for change in changed(reader, self.actor, served)]
        self.record([started, *changes])
        self.store.take_in_reviews()

    async def _stopped(self) -> None:
        # Whatever ended the server, the log is closed in order; that it could not say so is no reason to fail then.
        with contextlib.suppress(AuditUnavailableError):
            payload = ServiceEvent(actor=self.actor, action="stopped", component=COMPONENT)
            await self.in_thread(self.record, [Entry(payload, purpose=Purpose.SYSTEM)])

    async def in_thread(self, function: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> R:
        """Run what waits for the disk in a worker thread."""
        return await to_thread.run_sync(partial(function, *arguments, **options), limiter=self._threads)

    def record(self, entries: Sequence[Entry], **options: Any) -> list[Receipt]:
        """Record events in one commit, as `AuditLog.record`; waits for the disk."""
        began = time.perf_counter()
        try:
            receipts = self.log.record(entries, **options)
        except AuditUnavailableError:
            self._failed_at = time.monotonic()
            raise
        self._failed_at = None
        self.observing.metrics.recorded(time.perf_counter() - began, log_size=self.log.size, records=len(entries))
        return receipts

    @contextlib.contextmanager
    def reading(self) -> Iterator[DatabaseReader]:
        """Lend a reader of the log as it is now; waits for the disk."""
        with self.readers.reader() as reader:
            yield reader

    async def rendered(self, make: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> R:
        """Make a page in a worker thread, a few at a time."""
        return await to_thread.run_sync(partial(make, *arguments, **options), limiter=self._pages)

    def is_ready(self) -> bool:
        """Tell whether a recording that came now would be answered and recorded."""
        lately = self._failed_at is not None and time.monotonic() - self._failed_at < _FAILED_LATELY_S
        try:
            room = self.spool.free_bytes >= ROOM_BYTES
        except OSError:
            room = False
        default = next(iter(self.generation.models.values()))
        ready = self.ready and self.workers.alive > 0 and room and not lately and not default.withdrawn
        self.observing.metrics.ready(ready)
        return ready

    def recovered(self, left: int) -> None:
        """Record that a server before this one ended with accepted recordings unanswered."""
        detail = f"{left} accepted recordings had no outcome"
        payload = ServiceEvent(actor=self.actor, action="recovered", component=COMPONENT, detail=detail)
        self.record([Entry(payload, purpose=Purpose.SYSTEM)])

    async def keep_house(self) -> None:
        """Take in reviews that commands record, forget what is too old, and keep the gauges right, for as long as the server runs."""
        keep = self.configuration.keep
        turn = 0
        while True:
            metrics = self.observing.metrics
            metrics.queue(self.jobs.taken - self.jobs.running, self.jobs.running)
            self.following.look()
            self.workers.tend()
            metrics.workers(self.workers.alive)
            metrics.log_size(self.log.size)
            self.is_ready()
            await self._quietly(partial(self.in_thread, self.store.take_in_reviews))
            if turn % _ADOPT_EVERY == _ADOPT_EVERY - 1:
                await self._quietly(self.jobs.adopt)
            if turn % _EXPIRE_EVERY == 0 and self._clock_goes_on():
                results, repeats = timedelta(days=keep.results_days), timedelta(hours=keep.repeats_hours)
                await self._quietly(partial(self.in_thread, self.store.expire, results, repeats))
            turn += 1
            await asyncio.sleep(_HOUSE_EVERY_S)

    async def _quietly(self, work: Callable[[], Awaitable[object]]) -> None:
        """Do what is done again soon: that it fails is told once; requests that need the log say for themselves that it fails."""
        try:
            await work()
        except AuditError as error:
            if not self._troubled:
                self.observing.logs.write("housekeeping-failed", level="warning", error=error)
            self._troubled = True
        else:
            self._troubled = False

    def _clock_goes_on(self) -> bool:
        """Tell whether the wall clock went as the monotonic one since the start: one that leapt ahead must not delete anything."""
        wall, monotonic = self._started_at
        return abs((time.time() - wall) - (time.monotonic() - monotonic)) < _CLOCK_S

    # ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def keep_answer(
        self,
        screening: str,
        principal: Principal,
        order: Order,
        outcome: Outcome,
        *,
        repeat: tuple[str, bytes] | None,
        same: str,
    ) -> Kept:
        """Record an answer that was found at once and keep it, in one commit."""
        result, answer = outcome.result, outcome.answer
        assert result is not None
        assert answer is not None
        also = self.store.answered(screening, principal.tenant, order, outcome, repeat, same=same)
        subject = principal.subject(order.metadata.subject)
        entry = answer_entry(result, order.actor, subject=subject, notice=order.notice, digest=answer.digest)
        entries = [*told_by(order, subject), replace(entry, purpose=order.metadata.purpose)]
        receipts = self.record(entries, also=also, idempotency_key=f"screening {screening}")
        moment = datetime.fromisoformat(receipts[-1].time)
        return Kept(screening, principal.tenant, "done", 1, moment, moment, order, outcome, receipts[-1].index, ())

    def keep_job(self, screening: str, principal: Principal, order: Order, *, repeat: tuple[str, bytes] | None, same: str) -> Kept:
        """Record that a recording was accepted, and keep it, in one commit."""
        payload = Submission(actor=order.actor, screening=screening, action="accepted", body=order.body, model_name=order.model, reason=None)
        subject = principal.subject(order.metadata.subject)
        entries = [*told_by(order, subject), Entry(payload, subject=subject, purpose=order.metadata.purpose)]
        also = self.store.accepted(screening, principal.tenant, order, repeat, same=same)
        receipt = self.record(entries, also=also, idempotency_key=f"accepted {screening}")[-1]
        moment = datetime.fromisoformat(receipt.time)
        return Kept(screening, principal.tenant, "accepted", 0, moment, None, order, Outcome(), receipt.index, ())

    def was_answered(self, kept: Kept, outcome: Outcome, served: Served, parts: Sequence[bytes], cells: bytes) -> None:
        """Have a recording whose answer is recorded counted, and shown to the shadow, if there is one; nobody waits for either."""
        if not self.counting.is_on or outcome.result is None:
            return
        answered = Answered.of(kept, outcome.result, kept.finished_at or datetime.now(UTC))
        self.counting.offer(answered, served, cells)
        shadow = self.shadows.of(served.id)
        if shadow is not None and parts and shadow.model.digest != served.digest:
            shadow.offer(answered, list(parts), kept.order.metadata.options())

    def finish_job(self, kept: Kept, outcome: Outcome) -> None:
        """Record what came of an accepted recording, and keep it, in one commit; asked for again, it is done once."""
        assert kept.record is not None
        if outcome.result is not None and outcome.answer is not None:
            entry = answer_entry(outcome.result, kept.order.actor, notice=kept.order.notice, digest=outcome.answer.digest)
        else:
            assert outcome.failure is not None
            entry = Entry(self.failed(kept.id, kept.order, outcome.failure.code), outcome=RecordedOutcome.FAILED)
        entry = replace(entry, subject=None, like=kept.record, purpose=kept.order.metadata.purpose)
        self.record([entry], also=self.store.finished(kept, outcome), idempotency_key=f"screening {kept.id}")

    def checked(self, served: Served, answer: bytes) -> Outcome:
        """Read what a worker answered.

        Raises
        ------
        ServerError
            It is no result, or another model's: a bundle that was replaced on the disk answers only after the server has recorded that it does.
        """
        try:
            result = ScreeningResult.model_validate_json(answer)
        except ValidationError:
            raise ServerError("A worker's answer is no result.") from None
        if result.model.digest != served.digest:
            raise ServerError("The model's files were replaced while it was served; restart the server.")
        # Written anew: what a worker that was taken over wrote could be read in two ways.
        return Outcome.of(result, result.model_dump_json().encode())

    def failed(self, screening: str, order: Order, code: str) -> Submission:
        """Return what is recorded of a recording that could not be answered."""
        return Submission(actor=order.actor, screening=screening, action="failed", body=order.body, model_name=order.model, reason=code)

    def shown(self, kept: Kept, actor: Actor, form: str, *, purpose: Purpose = Purpose.TREATMENT, told: Sequence[Entry] = ()) -> Receipt:
        """Record that a result is about to be shown, and before it what else is `told`."""
        answer = kept.outcome.answer
        assert answer is not None
        payload = ReportAction.model_validate({"actor": actor, "result": answer.digest, "action": "viewed", "form": form})
        return self.record([*told, Entry(payload, like=kept.record, purpose=purpose, model=answer.model)])[-1]


def told_by(order: Order, subject: str) -> list[Entry]:
    """Return the record that the person was told of the system, where the request says so and the trail does not have it."""
    version = order.metadata.notice
    if version is None or version == order.told_before:
        return []
    return [Entry(Notice(actor=order.actor, text_version=version), subject=subject, purpose=Purpose.COMPLIANCE)]


def new_id() -> str:
    """Return an id that nobody guesses."""
    return os.urandom(16).hex()


def digest_of(*parts: bytes) -> bytes:
    """Return what binds a request: SHA-256 over its parts, each with its length."""
    found = sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "big") + part)
    return found.digest()


def failure_of(code: str, detail: str) -> Outcome:
    """Return an outcome without a result."""
    return Outcome(failure=Failure(code=code, detail=detail))
