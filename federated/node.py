"""A site's side: it reads signed requests, decides by its own policy, and gives masked, signed answers; nothing else leaves.

The one idea: every answer is a function of the request and of what the site wrote down before. The same request gets the same bytes, another one
under the same number gets a refusal, and a site that was killed at any moment goes on from its files as if it had not been.
"""

import fcntl
import hashlib
import hmac
import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from clinical_ser.atomic_folder import sync_folder
from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.events import Actor, FederatedRound, Role
from clinical_ser.audit.log import AuditLog
from clinical_ser.cohorts.table import FeatureTable, read_table, replaced
from clinical_ser.errors import ClinicalSerError, FederationError, InvalidValueError, SiteRefusalError
from clinical_ser.models.rows import select_rows
from clinical_ser.models.training import cohort_digest
from clinical_ser.strict import Strict
from federated.fixed_point import encode, is_wide
from federated.heads_of_logs import Head, head_of
from federated.identities import REPLY, REQUEST, RUN_KEY, Identity, require, run_key_message
from federated.masking import context_of, mask
from federated.plan import Hex32, Plan
from federated.policy import Policy
from federated.statistics import Ask, SiteRows, contribution, known_statistics
from federated.wire import Message

T = TypeVar("T", bound=Strict)
POLICY, IDENTITY, AUDIT, STATE = "node.toml", "identity.pem", "audit.toml", "state"
LEDGER = "privacy.ledger"
"""In the state's folder; made with the node, and never again: a ledger that is lost is not an empty one."""
SECRET_BYTES = 32
CLOCKS_APART_S = 600.0
"""By how much the coordinator's clock and the site's may differ for a request that was not answered yet."""
TOLD_WITHIN_S = 10.0
BUCKETS = (20, 50, 100, 200, 500, 1000)
"""People are told of in the log as a range between these."""

Reason = Literal[
    "not_signed_by_the_coordinator",
    "not_a_request",
    "clock",
    "plan_not_approved",
    "run_is_another_plan",
    "not_in_the_plan",
    "too_few_sites",
    "set_isolates_a_site",
    "people_differ_by_few",
    "too_many_exchanges",
    "keys_do_not_fit",
    "step_answered_already",
    "step_out_of_order",
    "statistic_not_allowed",
    "statistic_unknown",
    "group_not_in_the_plan",
    "features_differ",
    "too_few_subjects",
    "too_few_of_a_class",
    "privacy_budget_spent",
    "privacy_required",
    "ledger_not_available",
    "contribution_out_of_range",
    "log_shrank",
    "log_not_available",
    "policy_not_readable",
    "data_not_readable",
    "data_changed",
    "not_computed",
]


_OF_A_BAD_ASK = (ClinicalSerError, ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
"""What computing may end with where a question is not what a statistic expects; the texts may quote a row, and stay here."""


class _Run(Strict):
    """What a site remembers of a run."""

    plan: Hex32
    key: str
    """X25519 private key of this run, in hex; the file is the owner's alone."""
    keys: dict[str, str] = Field(default_factory=dict)
    """Everybody's public keys, from the first sum on: they cannot change any more."""
    answered: dict[int, str] = Field(default_factory=dict)
    """Step to the digest of the request that it was answered to."""
    data: Hex32 | None = None
    """Digest of the table, from the first sum on: a run is about the same rows throughout."""


class _Memory(Strict):
    """What a site remembers of all runs."""

    sets: tuple[tuple[str, ...], ...] = ()
    """With whom its rows were added up."""
    people: tuple[tuple[str, ...], ...] = ()
    """Of whom: a keyed tag a person and their recordings, so that this file names nobody."""
    heads: dict[str, Head] = Field(default_factory=dict)
    """Of the other party's log, by its name."""


class _RefusedError(Exception):
    def __init__(self, reason: Reason):
        super().__init__(reason)
        self.reason: Reason = reason


@dataclass(frozen=True)
class _Data:
    """What stands for a site's table."""

    people: tuple[str, ...]
    """Tags of who is in it."""
    bytes: str
    """Digest of the file."""


@dataclass(frozen=True)
class _Asked:
    """A request that is in order so far."""

    message: Message
    content: bytes
    plan: Plan
    step: int
    time: datetime


class Node:
    """A site's folder, opened to answer."""

    def __init__(self, folder: Path, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)):
        self._folder, self._clock = folder, clock
        self._identity = Identity.load(folder / IDENTITY)
        self._state = folder / STATE

    @classmethod
    def open(cls, folder: Path, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> "Node":
        """Open a folder that `node init` made; FederationError where its key cannot be read."""
        return cls(folder, clock=clock)

    @property
    def identity(self) -> str:
        """Public key, in hex."""
        return self._identity.public

    def answer(self, body: bytes, signature: bytes) -> tuple[bytes, bytes]:
        """Answer one request.

        Parameters
        ----------
        body, signature
            As the coordinator sent them.

        Returns
        -------
        tuple of bytes
            The answer and this site's signature. What is refused is answered too, with a reason and nothing else. Both are in this site's audit log
            before they are returned.
        """
        with self._held():
            name, asked = "unknown", None
            try:
                policy = self._policy()
                name = policy.name
                asked = self._asked(policy, body, signature)
                self._check(policy, asked)
                reply = self._joined(policy, asked) if asked.step == 0 else self._summed(policy, asked)
            except _RefusedError as refusal:
                reply = self._refusal(name, body, asked, refusal.reason)
            raw = reply.to_bytes()
            return raw, self._identity.sign(REPLY, raw)

    def record_refused_build(self, build: str) -> None:
        """Write into the log that an app build was refused; `build` is its hash."""
        with self._held(), self._log() as log:
            name = self._policy().name
            log.append(
                FederatedRound(
                    actor=_actor(name),
                    federation="app build",
                    round=0,
                    node=name,
                    model_in=build if len(build) == 64 else None,
                    update=None,
                    subjects_bucket="not counted",
                    action="refused",
                    reason="build_not_approved",
                )
            )

    # ── reading a request ──────────────────────────────────────────────────────────────────────────────────────────────

    def _policy(self) -> Policy:
        try:
            return Policy.read(self._folder / POLICY)
        except FederationError:
            raise _RefusedError("policy_not_readable") from None

    def _asked(self, policy: Policy, body: bytes, signature: bytes) -> _Asked:
        if policy.coordinator is None:
            raise _RefusedError("not_signed_by_the_coordinator")
        try:
            require(policy.coordinator, REQUEST, body, signature, "The request")
        except FederationError:
            raise _RefusedError("not_signed_by_the_coordinator") from None
        try:
            message = Message.from_bytes(body)
            header = message.header
            plan, step, time = Plan.from_bytes(str(header["plan"]).encode()), header["step"], datetime.fromisoformat(str(header["time"]))
        except (FederationError, KeyError, ValueError):
            raise _RefusedError("not_a_request") from None
        if type(step) is not int or step < 0 or time.tzinfo is None:
            raise _RefusedError("not_a_request")
        return _Asked(message, content_of(message), plan, step, time)

    def _check(self, policy: Policy, asked: _Asked) -> None:
        self._check_plan(policy, asked.plan, asked.step)
        if abs((self._clock() - asked.time).total_seconds()) > CLOCKS_APART_S and not self._was_answered(asked):
            raise _RefusedError("clock")

    def _check_plan(self, policy: Policy, plan: Plan, step: int) -> None:
        if plan.digest not in policy.approved.plans or plan.coordinator != policy.coordinator:
            raise _RefusedError("plan_not_approved")
        if {(site.name, site.identity) for site in plan.sites if site.name == policy.name} != {(policy.name, self.identity)}:
            raise _RefusedError("not_in_the_plan")
        if step > plan.most_exchanges:
            raise _RefusedError("too_many_exchanges")
        if len(plan.sites) < max(policy.release.minimum_sites, plan.minimum_sites):
            raise _RefusedError("too_few_sites")
        if not set(plan.statistics) <= set(policy.release.statistics):
            raise _RefusedError("statistic_not_allowed")
        if policy.privacy.required and plan.privacy is None:
            raise _RefusedError("privacy_required")

    # ── answering ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _joined(self, policy: Policy, asked: _Asked) -> Message:
        """Give this site's key for the run; the same one however often it is asked."""
        rows, data = self._rows(policy, asked.plan)
        self._check_set(policy, asked.plan, data)
        run = self._run(asked.plan, make=True)
        assert run is not None
        public = X25519PrivateKey.from_private_bytes(bytes.fromhex(run.key)).public_key().public_bytes_raw()
        signature = self._identity.sign(RUN_KEY, run_key_message(asked.plan.digest, policy.name, public))
        commitment = hashlib.sha256(self._secret() + cohort_digest(rows.frame["recording"], rows.target).encode()).hexdigest()
        own = self._record(policy, asked, _people(rows), "joined", None)
        return _reply(policy.name, asked, "join", own, {"key": public.hex(), "key_signature": signature.hex(), "cohort": commitment})

    def _summed(self, policy: Policy, asked: _Asked) -> Message:
        plan = asked.plan
        run = self._run(plan, make=False)
        if run is None:
            raise _RefusedError("step_out_of_order")
        if (known := run.answered.get(asked.step)) is not None:
            if known != asked.content.hex():
                raise _RefusedError("step_answered_already")
            if (kept := self._kept(plan, asked.step)) is not None:
                # The same words; the log has grown since, and shows itself as it is.
                again = self._record(policy, asked, "not counted", "released", hashlib.sha256(kept.arrays["words"].tobytes()).hexdigest())
                return Message({**kept.header, "head": again.model_dump(mode="json")}, kept.arrays)
            if asked.step < max(run.answered):
                # Its answer left, and is not kept any more. Computed again it might differ, and two answers under one mask say by how much.
                raise _RefusedError("step_answered_already")
        elif asked.step != max(run.answered, default=0) + 1:
            raise _RefusedError("step_out_of_order")
        keys = self._keys(asked, run)
        asks = asks_of(asked.message)
        of_local_trees = any("families" in ask.options for ask in asks)
        if not {ask.statistic for ask in asks} <= set(plan.statistics) or (of_local_trees and "stacking" not in plan.statistics):
            raise _RefusedError("statistic_not_allowed")
        if not {ask.statistic for ask in asks} <= set(known_statistics()):
            raise _RefusedError("statistic_unknown")
        _check_groups(plan, asks)
        rows, data = self._rows(policy, plan)
        if run.data not in {None, data.bytes}:
            raise _RefusedError("data_changed")
        self._check_set(policy, plan, data)
        paid = self._pay(policy, asked, asks, data)
        words, layout = self._words(rows, asks, len(plan.sites))
        context = context_of(plan.digest.encode(), asked.step, asked.content, layout_bytes(layout), keys)
        masked = words + mask(policy.name, X25519PrivateKey.from_private_bytes(bytes.fromhex(run.key)), keys, context, len(words))
        # First it is written down what this step was answered to: a site that dies now gives the same bytes when it is asked again, since
        # they follow from the request alone, and refuses every other request of this step.
        answered = run.answered | {asked.step: asked.content.hex()}
        self._write(
            self._run_file(plan), run.model_copy(update={"keys": {k: v.hex() for k, v in keys.items()}, "answered": answered, "data": data.bytes})
        )
        self._remember_set(plan, data)
        own = self._record(policy, asked, _people(rows), "released", hashlib.sha256(masked.tobytes()).hexdigest(), asks=asks, ledger=paid)
        reply = _reply(policy.name, asked, "sum", own, {"layout": [[name, list(shape)] for name, shape in layout]}, {"words": masked})
        self._keep(plan, asked.step, reply)
        return reply

    def _words(self, rows: SiteRows, asks: Sequence[Ask], sites: int) -> tuple[NDArray[np.uint64], list[tuple[str, tuple[int, ...]]]]:
        layout: list[tuple[str, tuple[int, ...]]] = []
        parts: list[NDArray[np.uint64]] = []
        for place, ask in enumerate(asks):
            try:
                with np.errstate(all="ignore"):
                    found = contribution(rows, ask)
                wide = is_wide(known_statistics()[ask.statistic].bound, sites)
            except (FederationError, *_OF_A_BAD_ASK) as error:
                raise _RefusedError("contribution_out_of_range" if isinstance(error, FederationError) else "not_computed") from None
            for name, values in sorted(found.items()):
                layout.append((f"{place}/{name}", values.shape))
                parts.append(encode(values.ravel(), wide=wide))
        return (np.concatenate(parts) if parts else np.zeros(0, np.uint64)), layout

    def _refusal(self, name: str, body: bytes, asked: _Asked | None, reason: Reason) -> Message:
        content = asked.content if asked else hashlib.sha256(body).digest()
        run = asked.plan.run if asked else "unknown"
        head: Head | None = None
        try:
            with self._log() as log:
                log.append(
                    FederatedRound(
                        actor=_actor(name),
                        federation=run,
                        round=asked.step if asked else 0,
                        node=name,
                        model_in=content.hex(),
                        update=None,
                        subjects_bucket="not counted",
                        action="refused",
                        reason=reason,
                    )
                )
                head = head_of(log.checkpoint)
        except ClinicalSerError:
            # A refusal says nothing of anybody; it may leave although it could not be recorded, and says which of the two went wrong.
            reason = "log_not_available"
        self._tell(name, run, asked.step if asked else 0, "refused", reason)
        header: dict[str, Any] = {
            "kind": "refusal",
            "site": name,
            "run": run,
            "step": asked.step if asked else 0,
            "content": content.hex(),
            "reason": reason,
        }
        return Message(header | {"head": head.model_dump(mode="json") if head else None})

    # ── rules ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _keys(self, asked: _Asked, run: _Run) -> dict[str, bytes]:
        """Return everybody's key of this run, each signed by the identity that the plan names, this site's own among them."""
        try:
            entries: Any = asked.message.header["keys"]
            given = {str(name): (bytes.fromhex(entry[0]), bytes.fromhex(entry[1])) for name, entry in entries.items()}
            if set(given) != set(asked.plan.site_names):
                raise _RefusedError("keys_do_not_fit")
            for site in asked.plan.sites:
                key, signature = given[site.name]
                require(site.identity, RUN_KEY, run_key_message(asked.plan.digest, site.name, key), signature, "A key")
        except (KeyError, AttributeError, TypeError, ValueError, FederationError):
            raise _RefusedError("keys_do_not_fit") from None
        keys = {name: key for name, (key, _) in given.items()}
        own = X25519PrivateKey.from_private_bytes(bytes.fromhex(run.key)).public_key().public_bytes_raw()
        mine = next(site.name for site in asked.plan.sites if site.identity == self.identity)
        if keys[mine] != own or len(set(keys.values())) != len(keys) or (run.keys and run.keys != {k: v.hex() for k, v in keys.items()}):
            raise _RefusedError("keys_do_not_fit")
        return keys

    def _check_set(self, policy: Policy, plan: Plan, data: "_Data") -> None:
        """Refuse what, beside sums that left before, isolates a few sites or a few people by subtraction."""
        wanted, memory = set(plan.site_names), self._memory()
        for earlier in memory.people:
            changed = max(len(set(earlier) - set(data.people)), len(set(data.people) - set(earlier)))
            if 0 < changed < policy.release.minimum_changed_subjects:
                raise _RefusedError("people_differ_by_few")
        for before in memory.sets:
            apart = wanted ^ set(before)
            allowed = tuple(sorted(wanted)) in {tuple(sorted(names)) for names in policy.release.sets}
            # Whatever became of the data since: most of the rows are the same, and what was added to one table is as good as known.
            if 0 < len(apart) < policy.release.minimum_sites and not allowed:
                raise _RefusedError("set_isolates_a_site")

    def _remember_set(self, plan: Plan, data: "_Data") -> None:
        memory = self._memory()
        sets, people = dict.fromkeys((*memory.sets, plan.site_names)), dict.fromkeys((*memory.people, data.people))
        self._write(self._state / "memory.json", memory.model_copy(update={"sets": tuple(sets), "people": tuple(people)}))

    def _pay(self, policy: Policy, asked: _Asked, asks: Sequence[Ask], data: _Data) -> str | None:
        """Pay for noisy answers before they are computed, where the policy lets any leave; return the ledger line's digest."""
        known = known_statistics()
        if policy.privacy.required and not all(known[ask.statistic].private for ask in asks):
            raise _RefusedError("privacy_required")
        if not any(known[ask.statistic].private for ask in asks):
            return None
        from federated.privacy import Ledger, charge_of

        request = hashlib.sha256(asked.content + bytes.fromhex(data.bytes)).hexdigest()
        try:
            charge = charge_of(asks)
            assert charge is not None
            ledger, limit = Ledger(self._state / LEDGER), policy.privacy
            return ledger.spend(charge, run=asked.plan.run, step=str(asked.step), limit=limit.epsilon, delta=limit.delta, request=request)
        except SiteRefusalError:
            raise _RefusedError("privacy_budget_spent") from None
        except FederationError:
            raise _RefusedError("ledger_not_available") from None
        except (InvalidValueError, KeyError):
            raise _RefusedError("not_computed") from None

    # ── data ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _rows(self, policy: Policy, plan: Plan) -> tuple[SiteRows, "_Data"]:
        """Return the usable rows, and what stands for the data they are from."""
        path = self._folder / policy.table
        try:
            before = hashlib.sha256(path.read_bytes()).hexdigest()
            rows = site_rows(read_table(path), plan, self._secret(), self._state / "kept")
            after = hashlib.sha256(path.read_bytes()).hexdigest()
        except _RefusedError:
            raise
        except (ClinicalSerError, OSError, LookupError, TypeError, ValueError):
            raise _RefusedError("data_not_readable") from None
        if before != after:
            # Replaced while it was read: nobody knows of which of the two these rows are.
            raise _RefusedError("data_changed")
        data = _Data(tags_of(rows), before)
        if len(np.unique(rows.subjects)) < policy.release.minimum_subjects:
            raise _RefusedError("too_few_subjects")
        if min(len(np.unique(rows.subjects[rows.target == k])) for k in (0, 1)) < policy.release.minimum_subjects_of_a_class:
            raise _RefusedError("too_few_of_a_class")
        return rows, data

    def _secret(self) -> bytes:
        path = self._state / "secret"
        if not path.exists():
            _write_private(path, os.urandom(SECRET_BYTES))
        return path.read_bytes()

    # ── memory ────────────────────────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Let one process answer at a time: a step is answered once, whoever asks twice at once."""
        self._state.mkdir(mode=0o700, exist_ok=True)
        with (self._state / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _run_file(self, plan: Plan) -> Path:
        return self._state / "runs" / plan.run / "run.json"

    def _run(self, plan: Plan, *, make: bool) -> _Run | None:
        path = self._run_file(plan)
        if path.exists():
            run = _read(_Run, path)
            if run.plan != plan.digest:
                raise _RefusedError("run_is_another_plan")
            return run
        if not make:
            return None
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        run = _Run(plan=plan.digest, key=X25519PrivateKey.generate().private_bytes_raw().hex())
        self._write(path, run)
        return run

    def _was_answered(self, asked: _Asked) -> bool:
        path = self._run_file(asked.plan)
        return path.exists() and _read(_Run, path).answered.get(asked.step) == asked.content.hex()

    def _kept(self, plan: Plan, step: int) -> Message | None:
        """Return the answer that was given to this step, if it is still there; if not, it is computed again to the same bytes."""
        path = self._run_file(plan).parent / f"step-{step:06}.reply"
        return Message.from_bytes(path.read_bytes()) if path.exists() else None

    def _keep(self, plan: Plan, step: int, reply: Message) -> None:
        folder = self._run_file(plan).parent
        _write_private(folder / f"step-{step:06}.reply", reply.to_bytes())
        for old in folder.glob("step-*.reply"):
            if old.name != f"step-{step:06}.reply":
                old.unlink()

    def _memory(self) -> _Memory:
        path = self._state / "memory.json"
        return _read(_Memory, path) if path.exists() else _Memory()

    def _write(self, path: Path, content: Strict) -> None:
        _write_private(path, content.model_dump_json().encode())

    # ── the log ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _log(self) -> AuditLog:
        return LogConfiguration.load(self._folder / AUDIT).write()

    def _record(
        self,
        policy: Policy,
        asked: _Asked,
        people: str,
        action: Literal["joined", "released"],
        update: str | None,
        *,
        asks: Sequence[Ask] = (),
        ledger: str | None = None,
    ) -> Head:
        """Record an answer, and the head of the log that the coordinator showed; return the head of this one."""
        memory = self._memory()
        shown = asked.message.header.get("head")
        try:
            seen = Head.model_validate(shown) if shown is not None else None
        except ValidationError:
            raise _RefusedError("not_a_request") from None
        before = memory.heads.get("coordinator")
        if seen is not None and before is not None and not seen.may_follow(before):
            raise _RefusedError("log_shrank")
        event = FederatedRound(
            actor=_actor(policy.name),
            federation=asked.plan.run,
            round=asked.step,
            node=policy.name,
            model_in=asked.content.hex(),
            update=update,
            subjects_bucket=people,
            action=action,
            asked_for=", ".join(dict.fromkeys(ask.statistic for ask in asks))[:200] or None,
            witnessed=seen.root if seen else None,
            witnessed_size=seen.size if seen else None,
            ledger=ledger,
        )
        try:
            with self._log() as log:
                # Every answer that leaves is a record, one that is given again too.
                log.append(event)
                head = head_of(log.checkpoint)
        except ClinicalSerError:
            raise _RefusedError("log_not_available") from None
        if seen is not None:
            self._write(self._state / "memory.json", self._memory().model_copy(update={"heads": {**memory.heads, "coordinator": seen}}))
        self._tell(policy.name, asked.plan.run, asked.step, action, None, policy=policy)
        return head

    def _tell(self, name: str, run: str, step: int, action: str, reason: str | None, *, policy: Policy | None = None) -> None:
        """Tell whoever the policy names; that somebody could not be told keeps no answer back, since the log has it."""
        try:
            command = (policy or Policy.read(self._folder / POLICY)).told.command
        except FederationError:
            return
        if command:
            line = json.dumps({"site": name, "run": run, "step": step, "action": action, "reason": reason})
            try:
                subprocess.run(command, input=line.encode() + b"\n", timeout=TOLD_WITHIN_S, check=False, capture_output=True)
            except (OSError, subprocess.TimeoutExpired):
                return


def own_rows(folder: Path, policy: Policy, plan: Plan) -> SiteRows:
    """Return a node's rows as it answers about them, for what is made at the site itself; FederationError where they are not the plan's."""
    try:
        return site_rows(read_table(folder / policy.table), plan, (folder / STATE / "secret").read_bytes(), folder / STATE / "kept")
    except _RefusedError as refusal:
        raise FederationError(f"The site's table does not serve this plan: {refusal.reason.replace('_', ' ')}.") from None
    except OSError as error:
        raise FederationError(f"The node has answered no run yet, or its files cannot be read: {error.strerror}.") from None


def open_ledger(folder: Path, name: str) -> None:
    """Open the account of a new node's data; noisy answers are paid from it, and without it there are none."""
    from federated.privacy import Ledger

    (folder / STATE).mkdir(mode=0o700, exist_ok=True)
    Ledger.create(folder / STATE / LEDGER, site=name, dataset=f"table of {name}")


def site_rows(table: FeatureTable, plan: Plan, secret: bytes, workspace: Path | None) -> SiteRows:
    """Return the rows of a table that a plan is about.

    Raises
    ------
    ManifestError, TableError
        The table has no labels for the task, or lacks what the plan needs.
    FederationError
        Its features are not the plan's, or were measured by other code.
    """
    measured_alike = all(table.extractors.get(name) == wanted for name, wanted in plan.extractors.items())
    if not set(plan.features) <= set(table.feature_names) or not measured_alike:
        raise _RefusedError("features_differ")
    selected = select_rows(table, plan.task, plan.features, use_baseline=False, used_as="learned from")
    if selected.task.classes != plan.task.classes:
        raise _RefusedError("data_not_readable")
    rows = selected.rows
    if plan.fold_column is not None:
        if plan.fold_column not in rows.frame:
            raise _RefusedError("data_not_readable")
        fold = rows.frame[plan.fold_column].to_numpy(np.int64)
    else:
        fold = np.array([fold_of(name, plan.seed, plan.folds) for name in rows.subjects], dtype=np.int64)
    if len(fold) and not ((fold >= 0) & (fold < plan.folds)).all():
        raise _RefusedError("data_not_readable")
    return SiteRows(
        X=rows.X,
        target=rows.target,
        subjects=rows.subjects,
        fold=fold,
        frame=rows.frame,
        names=plan.features,
        refused=selected.refused,
        counts=selected.counts,
        gate_failures=selected.gate_failures,
        secret=secret,
        workspace=workspace,
    )


def tags_of(rows: SiteRows) -> tuple[str, ...]:
    """Return a tag for every subject and their recordings, keyed with the site's secret, in order."""
    recordings: dict[str, list[str]] = {}
    for subject, recording in zip(rows.subjects.tolist(), rows.frame["recording"].astype(str), strict=True):
        recordings.setdefault(subject, []).append(recording)
    key = rows.secret or b"\0"
    return tuple(sorted(hmac.digest(key, "\n".join([one, *sorted(heard)]).encode(), "sha256").hex()[:24] for one, heard in recordings.items()))


def fold_of(subject: str, seed: int, folds: int) -> int:
    """Return the fold in which a subject is tested; sites need not ask each other."""
    return int.from_bytes(hashlib.sha256(f"fold\n{seed}\n{subject}".encode()).digest()[:8], "big") % folds


def asks_of(message: Message) -> list[Ask]:
    """Read what a request asks for."""
    try:
        found = []
        entries: Any = message.header["asks"]
        for place, entry in enumerate(entries):
            prefix = f"{place}/"
            arrays = {name.removeprefix(prefix): values for name, values in message.arrays.items() if name.startswith(prefix)}
            found.append(Ask(str(entry["statistic"]), arrays, dict(entry["options"])))
    except (KeyError, TypeError, ValueError):
        raise _RefusedError("not_a_request") from None
    return found


def _check_groups(plan: Plan, asks: Sequence[Ask]) -> None:
    """Refuse groups that nobody approved: a group may be a single person (`subject`, and one name)."""
    for ask in asks:
        if "groups" in ask.options:
            try:
                found = json.loads(str(ask.options["groups"]))
                fits = all(column in plan.groups and set(values) <= set(plan.groups[column]) for column, values in found.items())
            except (ValueError, AttributeError, TypeError):
                raise _RefusedError("not_a_request") from None
            if not fits:
                raise _RefusedError("group_not_in_the_plan")


def content_of(message: Message) -> bytes:
    """Return the digest of what a request asks; when it was sent, and what the sender's log looked like, are not part of that."""
    lasting = {name: value for name, value in message.header.items() if name not in {"time", "head"}}
    return hashlib.sha256(Message(lasting, message.arrays).to_bytes()).digest()


def layout_bytes(layout: Sequence[tuple[str, Sequence[int]]]) -> bytes:
    """Return the one spelling of an answer's layout."""
    return json.dumps([[name, list(shape)] for name, shape in layout], separators=(",", ":")).encode()


def bucket_of(people: int) -> str:
    """Return a number of people as a range.

    Examples
    --------
    >>> bucket_of(7), bucket_of(60), bucket_of(5000)
    ('below 20', '50 to 99', '1000 and more')
    """
    if people < BUCKETS[0]:
        return f"below {BUCKETS[0]}"
    for low, high in pairwise(BUCKETS):
        if people < high:
            return f"{low} to {high - 1}"
    return f"{BUCKETS[-1]} and more"


def _reply(
    name: str, asked: _Asked, kind: str, head: Head, more: Mapping[str, Any], arrays: Mapping[str, NDArray[np.uint64]] | None = None
) -> Message:
    header: dict[str, Any] = {"kind": kind, "site": name, "run": asked.plan.run, "step": asked.step, "content": asked.content.hex()}
    return Message({**header, "head": head.model_dump(mode="json"), **more}, arrays or {})


def _people(rows: SiteRows) -> str:
    return bucket_of(len(np.unique(rows.subjects)))


def _actor(name: str) -> Actor:
    return Actor(id=name, role=Role.NODE)


def _read(kind: type[T], path: Path) -> T:
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        # What is not remembered cannot be refused; a memory that is damaged answers nothing.
        raise _RefusedError("data_not_readable") from None


def _write_private(path: Path, content: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    """Write a file that only its owner may read, and see it on the disk: what was promised has to outlive a power cut."""
    with replaced(path) as unfinished, unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)
