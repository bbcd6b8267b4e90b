"""Totals over hospitals: one signed request, every site's masked answer, and the sum that is all there is to read.

The one idea: all or nothing. A total exists when every site of the plan has answered the same request with the same layout; until then there is
noise. What was decoded is written down before it is used, so a coordinator that dies repeats no exchange and gets the same numbers.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from clinical_ser.atomic_folder import sync_folder
from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.events import Actor, FederatedRound, Outcome, Purpose, Role
from clinical_ser.cohorts.table import replaced
from clinical_ser.errors import FederationError, SiteRefusalError
from federated.fixed_point import decode, is_wide
from federated.heads_of_logs import Head, head_of
from federated.identities import REPLY, REQUEST, RUN_KEY, Identity, require, run_key_message
from federated.node import content_of
from federated.plan import Plan
from federated.statistics import Arrays, Ask, known_statistics
from federated.wire import Message

Letter = tuple[bytes, bytes]
"""Body and signature."""
DEADLINE_S = 24 * 3600.0
"""How long an exchange waits for a site that is away: a machine that fails in the evening is back in the morning."""
ASK_AGAIN_S = 300.0
"""How long one attempt waits; whoever has not answered then is asked again with the same content. Half of what clocks may differ by, so that a letter
that is read at the end is not taken for an old one."""
PAUSE_S = 2.0
"""Between attempts that came back at once, because nobody of those who are missing can be reached."""
SMALLEST_COUNT = -1e-6


class Channel(Protocol):
    """How letters get to sites and answers back."""

    def exchange(self, messages: Mapping[str, Letter], timeout_s: float) -> Mapping[str, Letter]:
        """Send a letter to each named site, and return the answers that came in time; who is not in it did not answer."""
        ...


class DirectChannel:
    """Sites in this process: what `answer` of each returns is what comes back."""

    def __init__(self, answer: Mapping[str, Callable[[bytes, bytes], Letter]]):
        self._answer = dict(answer)

    def exchange(self, messages: Mapping[str, Letter], timeout_s: float) -> Mapping[str, Letter]:
        """See `Channel.exchange`."""
        del timeout_s
        return {site: self._answer[site](*letter) for site, letter in messages.items()}


@dataclass(frozen=True)
class ExchangeRecord:
    """What one exchange took."""

    step: str
    seconds: float
    sent: int
    """Bytes to all sites together."""
    received: int
    again: bool = False
    """It was read from the store, and not made."""


class SecureSums:
    """Totals over the sites of a plan; see `federated.statistics.Sums`.

    Parameters
    ----------
    channel
        The way to the sites.
    plan
        What they approved.
    identity
        The coordinator's, which the plan names.
    store
        Folder for what was decoded; None keeps nothing, and a coordinator that dies begins anew (with a new name of the run).
    audit
        The coordinator's own log; None: it has none, and shows no head.
    deadline_s
        How long an exchange waits for a site that is away.
    on_step
        Called before every exchange with its name and the exchanges so far.
    on_wait
        Called with the names of sites that are asked again, because no answer came.
    clock
        Wall time of requests.

    Attributes
    ----------
    exchanges
        What each exchange took, the first (keys) included.
    commitments
        What stands for each site's cohort, once keys are agreed.
    """

    def __init__(
        self,
        channel: Channel,
        plan: Plan,
        identity: Identity,
        *,
        store: Path | None = None,
        audit: LogConfiguration | None = None,
        deadline_s: float = DEADLINE_S,
        attempt_s: float = ASK_AGAIN_S,
        on_step: Callable[[str, Sequence[ExchangeRecord]], None] | None = None,
        on_wait: Callable[[Sequence[str]], None] | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ):
        if identity.public != plan.coordinator:
            raise FederationError("The plan names another coordinator.")
        self._channel, self._plan, self._identity, self._store, self._audit = channel, plan, identity, store, audit
        self._deadline_s, self._attempt_s, self._clock = deadline_s, attempt_s, clock
        self._on_step = on_step or (lambda _step, _exchanges: None)
        self._on_wait = on_wait or (lambda _sites: None)
        self._step = 0
        self._keys: dict[str, tuple[str, str]] = {}
        self._heads: dict[str, Head] = {}
        self.exchanges: list[ExchangeRecord] = []
        self.commitments: list[str] = []
        if store is not None:
            store.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites."""
        return self._plan.site_names

    def total(self, step: str, asks: Sequence[Ask]) -> list[Arrays]:
        """Ask all sites in one exchange and return the totals.

        Parameters
        ----------
        step, asks
            See `Sums.total`.

        Raises
        ------
        SiteRefusalError
            A site refuses, and says why.
        FederationError
            A site did not answer in time, or what came cannot be right; nothing of this exchange was added up.
        """
        if not self._keys:
            self._join()
        self._step += 1
        try:
            return self._total(step, asks)
        except FederationError:
            # Asked again, it is the same step.
            self._step -= 1
            raise

    def _total(self, step: str, asks: Sequence[Ask]) -> list[Arrays]:
        header, arrays = self._asked(step, asks)
        content = content_of(Message({**header, "time": "", "head": None}, arrays))
        kept = self._kept(step, content)
        if kept is not None:
            return kept
        self._on_step(step, self.exchanges)
        replies = self._exchange(step, header, arrays, content)
        totals = self._added(asks, replies)
        # Recorded before it is kept: what is found again after a crash is in the log for certain, if perhaps twice.
        self._record(content, "received", ", ".join(dict.fromkeys(ask.statistic for ask in asks)))
        self._keep(content, totals)
        return totals

    # ── keys ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _join(self) -> None:
        """Have every site's key of this run; exchange 1."""
        header: dict[str, Any] = {"kind": "join", "plan": self._plan.to_bytes().decode(), "step": 0}
        content = content_of(Message({**header, "time": "", "head": None}))
        self._on_step("join", self.exchanges)
        replies = self._exchange("join", header, {}, content)
        keys: dict[str, tuple[str, str]] = {}
        commitments: list[str] = []
        for site in self._plan.sites:
            answer = replies[site.name].header
            try:
                key, signature = str(answer["key"]), str(answer["key_signature"])
                require(site.identity, RUN_KEY, run_key_message(self._plan.digest, site.name, bytes.fromhex(key)), bytes.fromhex(signature), "A key")
                commitments.append(bytes.fromhex(str(answer["cohort"])).hex())
            except (KeyError, ValueError):
                raise FederationError(f"Site {site.name!r} joined with what is no key.") from None
            keys[site.name] = (key, signature)
        self._keys, self.commitments = keys, commitments
        self._record(content, "joined")

    # ── asking ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _asked(self, step: str, asks: Sequence[Ask]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        header = {
            "kind": "sum",
            "plan": self._plan.to_bytes().decode(),
            "step": self._step,
            "name": step,
            "asks": [{"statistic": ask.statistic, "options": dict(ask.options)} for ask in asks],
            "keys": {name: list(key) for name, key in self._keys.items()},
        }
        arrays = {f"{place}/{name}": np.asarray(values, np.float64) for place, ask in enumerate(asks) for name, values in ask.arrays.items()}
        return header, arrays

    def _exchange(self, step: str, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], content: bytes) -> dict[str, Message]:
        """Ask until every site has answered; the deadline ends it by name."""
        started = time.monotonic()
        replies: dict[str, Message] = {}
        sent = received = 0
        while missing := [name for name in self.sites if name not in replies]:
            left = self._deadline_s - (time.monotonic() - started)
            if left <= 0:
                self._record(content, "refused", reason="deadline")
                raise FederationError(
                    f"Step {self._step} ({step}) ended at its deadline without {missing}; nothing of it was added up. "
                    "The run goes on from here when they are back."
                )
            body = Message({**header, "time": self._clock().isoformat(), "head": self._head()}, arrays).to_bytes()
            letter = (body, self._identity.sign(REQUEST, body))
            asked_at = time.monotonic()
            answers = self._channel.exchange(dict.fromkeys(missing, letter), min(left, self._attempt_s))
            sent += len(missing) * len(body)
            for name, answer in answers.items():
                received += len(answer[0])
                replies[name] = self._read(name, content, *answer)
            if len(replies) < len(self.sites):
                self._on_wait([name for name in self.sites if name not in replies])
                time.sleep(max(0.0, min(PAUSE_S - (time.monotonic() - asked_at), left)))
        self.exchanges.append(ExchangeRecord(step, time.monotonic() - started, sent, received))
        return replies

    def _read(self, name: str, content: bytes, body: bytes, signature: bytes) -> Message:
        """Return a site's answer; FederationError unless it is signed, and an answer to what was asked."""
        identity = next(site.identity for site in self._plan.sites if site.name == name)
        require(identity, REPLY, body, signature, f"What came from site {name!r}")
        try:
            message = Message.from_bytes(body)
        except FederationError as error:
            raise FederationError(f"Site {name!r} sent what cannot be read: {error}") from None
        header = message.header
        step, run = self._step, self._plan.run
        refused = header.get("kind") == "refusal"
        expected = {"site": name, "run": run, "step": step, "content": content.hex()}
        unread = refused and header.get("run") == "unknown" and header.get("site") in {name, "unknown"}
        if not unread and any(header.get(field) != value for field, value in expected.items()):
            raise FederationError(f"Site {name!r} answered another question than it was asked; nothing was added up.")
        if refused:
            reason = str(header.get("reason"))
            known = reason if reason.replace("_", "").isalpha() and len(reason) <= 64 else "no_known_reason"
            self._record(content, "refused", reason=f"{name}: {known}")
            raise SiteRefusalError(name, known)
        if header.get("kind") != ("sum" if step else "join"):
            raise FederationError(f"Site {name!r} answered another question than it was asked; nothing was added up.")
        self._see(name, header.get("head"))
        return message

    def _see(self, name: str, shown: object) -> None:
        """Hold a site's log to what it showed before."""
        try:
            head = Head.model_validate(shown)
        except ValidationError:
            raise FederationError(f"Site {name!r} shows no head of its audit log.") from None
        before = self._heads.get(name)
        if before is not None and not head.may_follow(before):
            raise FederationError(f"The audit log of site {name!r} has become shorter, or says something else than before; it has to be looked at.")
        self._heads[name] = head

    # ── adding up ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _added(self, asks: Sequence[Ask], replies: Mapping[str, Message]) -> list[Arrays]:
        """Add the words up, take them apart, and look whether totals can be what they are said to be."""
        layouts = {json.dumps(reply.header.get("layout")) for reply in replies.values()}
        if len(layouts) != 1:
            raise FederationError("Sites answered in different shapes: they run different versions. Nothing was added up.")
        layout = _layout(layouts.pop(), len(asks))
        wide = [is_wide(known_statistics()[ask.statistic].bound, len(self.sites)) for ask in asks]
        lengths = [int(np.prod(shape, dtype=object)) * (1 + wide[place]) for place, _, shape in layout]
        total = np.zeros(sum(lengths), np.uint64)
        for name, reply in replies.items():
            words = reply.arrays.get("words")
            if words is None or words.dtype != np.uint64 or words.shape != total.shape:
                raise FederationError(f"Site {name!r} sent an answer of another length than it says; nothing was added up.")
            total = total + words
        totals: list[Arrays] = [{} for _ in asks]
        for (place, name, shape), words in zip(layout, np.split(total, np.cumsum(lengths)[:-1]), strict=True):
            values = decode(words, wide=wide[place]).reshape(shape)
            bound = known_statistics()[asks[place].statistic].bound * len(self.sites)
            if values.size and (
                np.abs(values).max() > bound or (name in known_statistics()[asks[place].statistic].counts and values.min() < SMALLEST_COUNT)
            ):
                raise FederationError(
                    f"The total of {asks[place].statistic}.{name} cannot be right: masks did not cancel, "
                    "or a site added what it must not. Nothing was used."
                )
            totals[place][name] = values
        return totals

    # ── store ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _file(self) -> Path | None:
        return None if self._store is None else self._store / f"step-{self._step:06}.totals"

    def _kept(self, step: str, content: bytes) -> list[Arrays] | None:
        """Return what was decoded in an earlier attempt; FederationError if it was of another question, since then the run is another one."""
        path = self._file()
        if path is None or not path.exists():
            return None
        message = Message.from_bytes(path.read_bytes())
        if message.header.get("content") != content.hex() or message.header.get("plan") != self._plan.digest:
            raise FederationError(f"Step {self._step} ({step}) was asked in another way before; plan a new run, under a new name.")
        found: list[Arrays] = [{} for _ in range(int(str(message.header["asks"])))]
        for name, values in message.arrays.items():
            place, _, own = name.partition("/")
            found[int(place)][own] = values
        heads: Any = message.header["heads"]
        # What sites showed in the attempt before: their logs are held to it, too.
        for name, head in heads.items():
            before = Head.model_validate(head)
            if not self._heads.setdefault(name, before).may_follow(before):
                raise FederationError(f"The audit log of site {name!r} has become shorter since the attempt before; it has to be looked at.")
        self.exchanges.append(ExchangeRecord(step, 0.0, 0, 0, again=True))
        return found

    def _keep(self, content: bytes, totals: Sequence[Arrays]) -> None:
        path = self._file()
        if path is not None:
            arrays = {f"{place}/{name}": values for place, one in enumerate(totals) for name, values in one.items()}
            heads: Any = {name: head.model_dump(mode="json") for name, head in self._heads.items()}
            message = Message({"plan": self._plan.digest, "content": content.hex(), "asks": len(totals), "heads": heads}, arrays)
            # On the disk before the next step is asked: sites answer no step again once they have answered the one after it.
            with replaced(path) as unfinished, unfinished.open("wb") as file:
                file.write(message.to_bytes())
                file.flush()
                os.fsync(file.fileno())
            sync_folder(path.parent)

    # ── the coordinator's log ─────────────────────────────────────────────────────────────────────────────────────────

    def _head(self) -> dict[str, Any] | None:
        if self._audit is None:
            return None
        with self._audit.read(sealed=True) as log:
            return head_of(log.checkpoint).model_dump(mode="json")

    def _record(self, content: bytes, action: Any, asked_for: str | None = None, *, reason: str | None = None) -> None:
        """Write down what happened, and the heads that the sites showed."""
        if self._audit is None:
            return
        seen = sorted(self._heads.items())
        witnessed = hashlib.sha256("".join(f"{name} {head.size} {head.root}\n" for name, head in seen).encode()).hexdigest() if seen else None
        event = FederatedRound(
            actor=Actor(id="coordinator", role=Role.NODE),
            federation=self._plan.run,
            round=self._step,
            node="coordinator",
            model_in=content.hex(),
            update=None,
            subjects_bucket="not counted",
            action=action,
            asked_for=asked_for[:200] if asked_for else None,
            reason=reason,
            witnessed=witnessed,
            witnessed_size=None,
        )
        with self._audit.write() as log:
            log.append(event, outcome=Outcome.REFUSED if action == "refused" else Outcome.SUCCESS, purpose=Purpose.OPERATIONS)


def _layout(text: str, asks: int) -> list[tuple[int, str, tuple[int, ...]]]:
    """Read how an answer is laid out: which ask, which array, which shape."""
    found = []
    try:
        for label, shape in json.loads(text):
            place, _, name = str(label).partition("/")
            found.append((int(place), name, tuple(shape)))
    except (ValueError, TypeError):
        found = [(-1, "", ())]
    if not all(0 <= place < asks and all(type(n) is int and 0 <= n < 2**40 for n in shape) for place, _, shape in found):
        raise FederationError("A site's answer is laid out in no way that this version knows.")
    return found
