"""Follows the registry while the server runs: when a model's champion changes, the new one answers, without a restart.

The one idea: the new model is verified, loaded, warm and in the audit log before one assignment makes it answer; whatever of that fails leaves the
old one as it was. What is looked at every two seconds is the status of one small file, and nothing is read until that is another.
"""

import asyncio
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from clinical_ser.api.generation import Generation, Served, champion_now, champion_of, followed, registry_of_site, shadow_of
from clinical_ser.api.metrics import Switch
from clinical_ser.api.workers import Workers, WorkerStartError
from clinical_ser.audit.answering import activation
from clinical_ser.audit.events import MODEL, Actor, Configuration, ModelChange, Purpose
from clinical_ser.audit.events import Outcome as RecordedOutcome
from clinical_ser.audit.log import Entry
from clinical_ser.audit.reading import DatabaseReader
from clinical_ser.errors import AuditError, ClinicalSerError, RegistryError
from clinical_ser.registry.store import Registry

if TYPE_CHECKING:
    from clinical_ser.api.service import Service

_AGAIN_S = 30.0
"""Between tries where it is not the model that was at fault, but the audit log, the disk or the machine's memory."""
_THIRD_AFTER_S = 10.0
"""How long a switch waits for the crew before the last one to end."""
_Identity = tuple[int, int, int, int] | None


class Following:
    """Follows the champions of the models that a server has out of the registry.

    Parameters
    ----------
    service
        Whose models these are; its generation is replaced.
    """

    def __init__(self, service: "Service") -> None:
        self._service = service
        self._registry: Registry | None = registry_of_site()
        self._seen: dict[str, _Identity] = {}
        """Of each name in the registry, its head as it was when it was followed, or could not be."""
        self._asked = 0
        """How often someone asked for what failed to be tried again."""
        self._not_before = self._shadows_not_before = 0.0
        """When champions, and shadows, are looked for again after trouble: neither waits for the other's."""
        self.grace_s = 2 * service.configuration.work.at_once_timeout_s
        """How long whoever waits for an answer of an older generation may still need its workers: a place in the queue, and the work."""
        self._looking: asyncio.Task[None] | None = None
        self._shadowing: asyncio.Task[None] | None = None
        self._shadows_seen: dict[str, _Identity] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._retired: Workers | None = None

    def begin(self) -> None:
        """Remember the heads, before the models that they name are read: a switch meanwhile is one to follow. Waits for the disk."""
        names = [name for source in self._service.configuration.models if (name := followed(source)) is not None]
        self._seen = {name: self._identity(name) for name in names}

    def look(self, *, again: bool = False) -> None:
        """Begin to follow what has changed; while a change is being followed, the next look does.

        Parameters
        ----------
        again
            Also try once more what could not be followed, though nothing has changed since.
        """
        if again:
            # Also for a look that is under way: what it finds is then not taken for seen.
            self._asked += 1
            self._not_before = self._shadows_not_before = 0.0
            self._seen.clear()
            self._shadows_seen.clear()
        loop, now = asyncio.get_running_loop(), time.monotonic()
        if now >= self._not_before and (self._looking is None or self._looking.done()):
            self._looking = loop.create_task(self._look())
            self._looking.add_done_callback(self._ended)
        # A task of its own, so that no shadow keeps a champion from being followed.
        if now >= self._shadows_not_before and (self._shadowing is None or self._shadowing.done()):
            self._shadowing = loop.create_task(self._look_for_shadows())
            self._shadowing.add_done_callback(self._ended)

    async def close(self) -> None:
        """Stop following, and end what is left of older generations."""
        tasks = [*self._retiring, *(task for task in (self._looking, self._shadowing) if task is not None)]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            again = time.monotonic() + _AGAIN_S
            if task is self._shadowing:
                self._shadows_not_before = again
                self._service.observing.logs.write("shadow-failed", level="warning", error=error)
            else:
                self._not_before = again
                self._service.observing.logs.write("model-switch-failed", level="error", error=error)

    async def _look(self) -> None:
        # One name after the other, each with a crew of its own: a model that cannot be used keeps no other from being followed.
        for served in [each for each in self._service.generation.models.values() if each.followed is not None]:
            await self._follow(served)

    async def _look_for_shadows(self) -> None:
        service, registry = self._service, self._registry
        for served in [each for each in service.generation.models.values() if each.followed is not None]:
            name = served.followed
            assert name is not None
            assert registry is not None
            asked, identity = self._asked, await service.in_thread(self._identity, name)
            if identity == self._shadows_seen.get(name):
                continue
            try:
                shadow = await service.in_thread(shadow_of, registry, served)
                if shadow is not None and not service.counting.is_on:
                    service.observing.logs.write("shadow-not-asked", level="warning")
                    shadow = None
                await service.shadows.become(served, shadow)
            except (ClinicalSerError, OSError) as error:
                service.observing.logs.write("shadow-failed", level="warning", error=error)
                if not _is_the_models(error):
                    self._shadows_not_before = time.monotonic() + _AGAIN_S
                    return
            if asked == self._asked:
                self._shadows_seen[name] = identity

    async def _follow(self, served: Served) -> None:
        service, name, registry = self._service, served.followed, self._registry
        assert name is not None
        assert registry is not None
        while True:
            asked, identity = self._asked, await service.in_thread(self._identity, name)
            if identity == self._seen.get(name):
                return
            new: str | None = None
            try:
                new = await service.in_thread(champion_now, registry, name)
                done = await self._switched(served, await service.in_thread(champion_of, registry, served, new), identity)
            except (ClinicalSerError, OSError) as error:
                if _is_the_models(error):
                    if asked == self._asked:
                        self._seen[name] = identity
                    await self._refuse(served, new, error)
                else:
                    # Its head stays unseen, so that it is tried again.
                    self._not_before = time.monotonic() + _AGAIN_S
                    service.observing.metrics.model_switched(Switch.FAILED)
                    service.observing.logs.write("model-switch-failed", level="error", error=error)
                return
            if done:
                if asked == self._asked:
                    self._seen[name] = identity
                return

    async def _switched(self, served: Served, champion: Served, identity: _Identity) -> bool:
        """Have the champion answer; False where another one became champion before this one could."""
        service, name = self._service, champion.followed
        assert name is not None
        old = service.generation
        if champion.digest == served.digest and champion.withdrawn == served.withdrawn:
            return True
        models = {key: champion if key == served.id else each for key, each in old.models.items()}
        if champion.withdrawn or champion.digest in old.workers.models:
            # Only whether it answers has changed, and the workers have it; of a model that was withdrawn at the start they do not.
            await service.in_thread(self._record, champion, served)
            service.generation = Generation(models, old.workers)
            self._told(champion)
            return True
        if self._retired is not None:
            # Two whole crews at a time rather than three, for memory's sake; but not for long, as it may be a rollback that waits.
            with suppress(TimeoutError):
                async with asyncio.timeout(_THIRD_AFTER_S):
                    await self._retired.small.wait()
        workers = service.crew(models)
        await workers.start(together=False)
        try:
            if await service.in_thread(self._identity, name) != identity:
                await workers.close()
                return False
            await service.in_thread(self._record, champion, served)
        except BaseException:
            await workers.close()
            raise
        # From here to the end nothing waits: whoever comes next has the new models, whoever came before keeps the old ones.
        service.generation = Generation(models, workers)
        self._retire(old.workers)
        self._told(champion)
        return True

    def _record(self, champion: Served, before: Served) -> None:
        """Record that this model answers from now on, or that none does; waits for the disk.

        Whoever promoted it may have recorded that it is champion; when this server began to answer with it is a record of its own.
        """
        service = self._service
        with service.reading() as reader:
            entries = changed(reader, service.actor, champion)
        old, new = (None if each.withdrawn else each.digest for each in (before, champion))
        own = Configuration(actor=service.actor, setting=f"server: model {champion.id}", old=old, new=new)
        service.record([*entries, Entry(own, purpose=Purpose.OPERATIONS, model=new or old)])

    async def _refuse(self, served: Served, new: str | None, error: Exception) -> None:
        """Say once that the registry's champion cannot be used, and go on with the model that answers."""
        service = self._service
        service.observing.metrics.model_switched(Switch.FAILED)
        service.observing.logs.write("model-switch-failed", level="error", error=error)
        reason = f"the registry's champion cannot be used ({type(error).__name__}); the model before it goes on answering"
        payload = ModelChange(actor=service.actor, action="refused", name=served.id, old=served.digest, new=new, reason=reason)
        try:
            await service.in_thread(service.record, [Entry(payload, outcome=RecordedOutcome.REFUSED, purpose=Purpose.OPERATIONS, model=new)])
        except AuditError as failed:
            service.observing.logs.write("housekeeping-failed", level="warning", error=failed)

    def _told(self, champion: Served) -> None:
        metrics, logs = self._service.observing.metrics, self._service.observing.logs
        metrics.model_switched(Switch.DONE)
        if champion.withdrawn:
            metrics.model_unloaded(champion.id)
        else:
            metrics.model_loaded(**champion.identity)
        logs.write("model-withdrawn" if champion.withdrawn else "model-switched")

    def _retire(self, old: Workers) -> None:
        self._retired = old
        task = asyncio.get_running_loop().create_task(old.retire(self.grace_s))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def _identity(self, name: str) -> _Identity:
        """Return what tells one head from another: it is replaced by a rename, so that it is another file each time."""
        if self._registry is None:
            return None
        try:
            status = os.stat(self._registry.head_path(name))
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def changed(reader: DatabaseReader, actor: Actor, served: Served) -> list[Entry]:
    """Return the record that a model answers under its name from now on, or that none does; none where the log says so already."""
    if not served.withdrawn:
        return activation(reader, actor, **served.identity)
    payloads = (reader.record(index).payload for index in reversed(reader.about(MODEL + served.id)))
    last = next((each.new for each in payloads if isinstance(each, ModelChange) and each.action != "refused"), None)
    if last is None:
        return []
    reason = "withdrawn in the registry: nothing answers under this name until it has a champion again"
    change = ModelChange(actor=actor, action="rolled_back", name=served.id, old=last, new=None, reason=reason)
    return [Entry(change, purpose=Purpose.OPERATIONS, model=last)]


def _is_the_models(error: Exception) -> bool:
    """Tell whether a new model cannot be used for what it is; a disk, an audit log or a machine that refuses says nothing against it."""
    # The registry's plain error is the system's word (too many open files, say); its subclasses name what does not fit.
    return not isinstance(error, AuditError | OSError | WorkerStartError) and type(error) is not RegistryError
