"""A site's side: it reads signed requests, decides by its own policy, and gives masked, signed answers; nothing else leaves.

The one idea: every answer is a function of the request and of what the site wrote down before. The same request gets the same bytes, another one
under the same number gets a refusal, and a site that was killed at any moment goes on from its files as if it had not been.
"""

import fcntl
import hashlib
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
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from clinical_ser.atomic_folder import sync_folder, write_new_file
from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.events import Actor, FederatedRound, Outcome, Purpose, Role
from clinical_ser.audit.log import AuditLog
from clinical_ser.cohorts.table import FeatureTable, read_table, replaced
from clinical_ser.control.plan import read_plan as read_change_plan
from clinical_ser.errors import BundleError, ChangePlanError, ClinicalSerError, FederationError, InvalidValueError, SiteRefusalError
from clinical_ser.models.bundle import VerifiedBundle, read_bundle
from clinical_ser.models.linear_head import LinearHead
from clinical_ser.models.rows import select_rows
from clinical_ser.models.trained import TrainedModel
from clinical_ser.models.training import cohort_digest
from clinical_ser.strict import Strict
from federated.asking import MOST_NORM, asks_of, check_asks, scales_of
from federated.fixed_point import encode, is_wide
from federated.heads_of_logs import Head, head_of
from federated.identities import REPLY, REQUEST, RUN_KEY, Identity, require, run_key_message
from federated.masking import context_of, mask
from federated.names import Hex32
from federated.plan import Kind, Plan
from federated.policy import Policy
from federated.refusals import Reason, RefusedError
from federated.site_table import LEAST_IN_A_FOLD, fits_scales, least_in_a_fold, name_tags, site_rows, tags_of, whole_rows, without_rare
from federated.statistics import Ask, SiteRows, contribution, known_statistics
from federated.version import code_digest
from federated.wire import Message

T = TypeVar("T", bound=Strict)
POLICY, IDENTITY, AUDIT, STATE = "node.toml", "identity.pem", "audit.toml", "state"
LEDGER = "privacy.ledger"
"""In the state's folder; made with the node, and never again: a ledger that is lost is not an empty one."""
SECRET, MEMORY, KEPT = "secret", "memory.json", "kept"
SECRET_BYTES = 32
CLOCKS_APART_S = 600.0
"""By how much the coordinator's clock and the site's may differ for a request that was not answered yet."""
TOLD_WITHIN_S = 10.0
BUCKETS = (20, 50, 100, 200, 500, 1000)
"""People are told of in the log as a range between these."""


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
    scales: Hex32 | None = None
    """Digest of the means and scales, from the first on that were asked with."""
    ended: bool = False
    """Something could not be computed. Why depends on the rows, so it is said once, and nothing more is answered."""


class _Heard(Strict):
    """Whom a run taught a model."""

    task: str
    parent: Hex32 | None
    """The model that it began with."""
    people: tuple[str, ...]
    """Keyed tags of their names alone."""


LEARNING: frozenset[Kind] = frozenset({"train", "update"})


class _Memory(Strict):
    """What a site remembers of all runs."""

    sets: tuple[tuple[str, ...], ...] = ()
    """With whom its rows were added up."""
    people: tuple[tuple[str, ...], ...] = ()
    """Of whom: a keyed tag a person and their recordings, so that this file names nobody."""
    heard: dict[Hex32, _Heard] = Field(default_factory=dict)
    """By plan: who was learned from, in trainings and updates."""
    heads: dict[str, Head] = Field(default_factory=dict)
    """Of the other party's log, by its name."""
    ledger: Hex32 | None = None
    """The last line of the privacy ledger that an answer was paid with."""


@dataclass(frozen=True)
class _Data:
    """What stands for a site's table."""

    people: tuple[str, ...]
    """Tags of who is in it, with all that it says of them."""
    names: tuple[str, ...]
    """Tags of the names of those whose rows are used."""
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
    signature: bytes


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
        name, asked = "unknown", None
        try:
            with self._held():
                policy = self._policy()
                name = policy.name
                asked = self._asked(policy, body, signature)
                self._check(policy, asked)
                reply = self._joined(policy, asked) if asked.step == 0 else self._summed(policy, asked)
        except RefusedError as refusal:
            reply = self._refusal(name, body, asked, refusal.reason)
        except (OSError, ClinicalSerError, ImportError):
            # A full disk, a file that somebody changed: what it was stays here, since its text may hold a path.
            reply = self._refusal(name, body, asked, "state_not_whole")
        raw = reply.to_bytes()
        return raw, self._identity.sign(REPLY, raw)

    def rehearse(self, plan: Plan) -> Reason | None:
        """Return why a plan that was approved would be refused by this site as it is now, None where it would not be."""
        try:
            policy = self._policy()
            self._check_plan(policy, plan, 0)
            _, data = self._rows(policy, plan)
            self._check_set(policy, plan, data)
        except RefusedError as refusal:
            return refusal.reason
        return None

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
                ),
                outcome=Outcome.REFUSED,
                purpose=Purpose.OPERATIONS,
            )

    # ── reading a request ──────────────────────────────────────────────────────────────────────────────────────────────

    def _policy(self) -> Policy:
        try:
            return Policy.read(self._folder / POLICY)
        except FederationError:
            raise RefusedError("policy_not_readable") from None

    def _asked(self, policy: Policy, body: bytes, signature: bytes) -> _Asked:
        if policy.coordinator is None:
            raise RefusedError("not_signed_by_the_coordinator")
        try:
            require(policy.coordinator, REQUEST, body, signature, "The request")
        except FederationError:
            raise RefusedError("not_signed_by_the_coordinator") from None
        try:
            message = Message.from_bytes(body)
            header = message.header
            plan, step, time = Plan.from_bytes(str(header["plan"]).encode()), header["step"], datetime.fromisoformat(str(header["time"]))
        except (FederationError, KeyError, ValueError):
            raise RefusedError("not_a_request") from None
        if type(step) is not int or step < 0 or time.tzinfo is None:
            raise RefusedError("not_a_request")
        return _Asked(message, content_of(message), plan, step, time, signature)

    def _check(self, policy: Policy, asked: _Asked) -> None:
        self._check_plan(policy, asked.plan, asked.step)
        if abs((self._clock() - asked.time).total_seconds()) > CLOCKS_APART_S and not self._was_answered(asked):
            raise RefusedError("clock")

    def _check_plan(self, policy: Policy, plan: Plan, step: int) -> None:
        if plan.digest not in policy.approved.plans or plan.coordinator != policy.coordinator:
            raise RefusedError("plan_not_approved")
        if {(site.name, site.identity) for site in plan.sites if site.name == policy.name} != {(policy.name, self.identity)}:
            raise RefusedError("not_in_the_plan")
        if plan.software != code_digest():
            raise RefusedError("another_version")
        if plan.kind not in policy.release.kinds or policy.table_of(plan.kind) is None:
            raise RefusedError("kind_not_allowed")
        if step > plan.most_exchanges:
            raise RefusedError("too_many_exchanges")
        if len(plan.sites) < max(policy.release.minimum_sites, plan.minimum_sites):
            raise RefusedError("too_few_sites")
        if not set(plan.statistics) <= set(policy.release.statistics):
            raise RefusedError("statistic_not_allowed")
        known = {**policy.sites, policy.name: self.identity}
        if sum(known.get(site.name) == site.identity for site in plan.sites) < max(policy.release.minimum_sites, plan.minimum_sites):
            # Sites that nobody here knows may be the coordinator's inventions, and their sums known to it.
            raise RefusedError("too_few_known_sites")

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
            raise RefusedError("step_out_of_order")
        if (known := run.answered.get(asked.step)) is not None:
            if known != asked.content.hex():
                raise RefusedError("step_answered_already")
            if (kept := self._kept(plan, asked.step)) is not None:
                # The same words; the log has grown since, and shows itself as it is.
                again = self._record(policy, asked, "not counted", "released", hashlib.sha256(kept.arrays["words"].tobytes()).hexdigest())
                return Message({**kept.header, "head": again.model_dump(mode="json")}, kept.arrays)
            if asked.step < max(run.answered):
                # Its answer left, and is not kept any more. Computed again it might differ, and two answers under one mask say by how much.
                raise RefusedError("step_answered_already")
        elif asked.step != max(run.answered, default=0) + 1:
            raise RefusedError("step_out_of_order")
        if run.ended:
            raise RefusedError("run_ended")
        keys = self._keys(asked, run)
        asks = asks_of(asked.message)
        check_asks(plan, asks)
        if not {ask.statistic for ask in asks} <= set(known_statistics()):
            raise RefusedError("statistic_unknown")
        if policy.privacy.required and not all(known_statistics()[ask.statistic].private for ask in asks):
            raise RefusedError("privacy_required")
        rows, data = self._rows(policy, plan)
        if run.data not in {None, data.bytes}:
            raise RefusedError("data_changed")
        scales = _scales_digest(asks)
        if scales is not None and run.scales not in {None, scales}:
            raise RefusedError("scales_differ")
        self._check_set(policy, plan, data)
        # First it is written down what this step is answered to: a site that dies now gives the same bytes when it is asked again, since they follow
        # from the request alone, and refuses every other request of this step, also where this one cannot be computed.
        seen = {"keys": {k: v.hex() for k, v in keys.items()}, "answered": run.answered | {asked.step: asked.content.hex()}, "data": data.bytes}
        run = run.model_copy(update=seen | {"scales": scales or run.scales})
        self._write(self._run_file(plan), run)
        self._remember_set(plan, data)
        self._keep_request(asked)
        paid = self._pay(policy, asked, asks, data)
        try:
            words, layout = self._words(rows, asks, len(plan.sites))
        except RefusedError:
            self._write(self._run_file(plan), run.model_copy(update={"ended": True}))
            raise
        context = context_of(plan.digest.encode(), asked.step, asked.content, layout_bytes(layout), keys)
        masked = words + mask(policy.name, X25519PrivateKey.from_private_bytes(bytes.fromhex(run.key)), keys, context, len(words))
        own = self._record(policy, asked, _people(rows), "released", hashlib.sha256(masked.tobytes()).hexdigest(), asks=asks, ledger=paid)
        reply = _reply(policy.name, asked, "sum", own, {"layout": [[name, list(shape)] for name, shape in layout]}, {"words": masked})
        self._keep(plan, asked.step, reply)
        return reply

    def _words(self, rows: SiteRows, asks: Sequence[Ask], sites: int) -> tuple[NDArray[np.uint64], list[tuple[str, tuple[int, ...]]]]:
        layout: list[tuple[str, tuple[int, ...]]] = []
        parts: list[NDArray[np.uint64]] = []
        if not all(fits_scales(rows, mean, scale) for mean, scale in scales_of(asks)):
            raise RefusedError("not_computed")
        for place, ask in enumerate(asks):
            try:
                with np.errstate(all="ignore"):
                    found = contribution(rows, ask)
                wide = is_wide(known_statistics()[ask.statistic].bound, sites)
            except _OF_A_BAD_ASK:
                # One reason for all: which of them it was depends on the rows.
                raise RefusedError("not_computed") from None
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
                    ),
                    outcome=Outcome.REFUSED,
                    purpose=Purpose.OPERATIONS,
                )
                head = head_of(log.checkpoint)
        except (OSError, ClinicalSerError):
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
                raise RefusedError("keys_do_not_fit")
            private = X25519PrivateKey.from_private_bytes(bytes.fromhex(run.key))
            for site in asked.plan.sites:
                key, signature = given[site.name]
                # A point of low order makes a secret that everybody knows; the library says so.
                private.exchange(X25519PublicKey.from_public_bytes(key))
                require(site.identity, RUN_KEY, run_key_message(asked.plan.digest, site.name, key), signature, "A key")
        except (KeyError, AttributeError, TypeError, ValueError, FederationError):
            raise RefusedError("keys_do_not_fit") from None
        keys = {name: key for name, (key, _) in given.items()}
        own = X25519PrivateKey.from_private_bytes(bytes.fromhex(run.key)).public_key().public_bytes_raw()
        mine = next(site.name for site in asked.plan.sites if site.identity == self.identity)
        if keys[mine] != own or len(set(keys.values())) != len(keys) or (run.keys and run.keys != {k: v.hex() for k, v in keys.items()}):
            raise RefusedError("keys_do_not_fit")
        return keys

    def _check_set(self, policy: Policy, plan: Plan, data: "_Data") -> None:
        """Refuse what, beside sums that left before, isolates a few sites or a few people by subtraction."""
        memory = self._memory()
        for earlier in memory.people:
            changed = max(len(set(earlier) - set(data.people)), len(set(data.people) - set(earlier)))
            if 0 < changed < policy.release.minimum_changed_subjects:
                raise RefusedError("people_differ_by_few")
        # Any other set, however different: three plans can isolate a site where no two of them do. Whatever became of the data since, most of the
        # rows are the same.
        allowed = plan.site_names in {tuple(sorted(names)) for names in policy.release.sets}
        if memory.sets and plan.site_names not in memory.sets and not allowed:
            raise RefusedError("other_sites_than_before")
        if plan.kind in {"update", "recalibrate"}:
            # Whoever taught a model already would count twice, and judge it on what it has seen. A run that began with the same model, as this one,
            # taught a sibling of what is made now and no ancestor, so one that failed can be led anew.
            ancestors = [one for one in memory.heard.values() if one.task == plan.task.name and one.parent != plan.parent]
            if any(not set(data.names).isdisjoint(one.people) for one in ancestors):
                raise RefusedError("people_known_already")

    def _remember_set(self, plan: Plan, data: "_Data") -> None:
        memory = self._memory()
        sets, people = dict.fromkeys((*memory.sets, plan.site_names)), dict.fromkeys((*memory.people, data.people))
        heard = {plan.digest: _Heard(task=plan.task.name, parent=plan.parent, people=data.names)} if plan.kind in LEARNING else {}
        seen = {"sets": tuple(sets), "people": tuple(people), "heard": memory.heard | heard}
        self._write(self._state / MEMORY, memory.model_copy(update=seen))

    def _pay(self, policy: Policy, asked: _Asked, asks: Sequence[Ask], data: _Data) -> str | None:
        """Pay for noisy answers before they are computed, where the policy lets any leave; return the ledger line's digest."""
        known = known_statistics()
        if not any(known[ask.statistic].private for ask in asks):
            return None
        from federated.privacy import Ledger, charge_of

        memory = self._memory()
        request = hashlib.sha256(asked.content + bytes.fromhex(data.bytes)).hexdigest()
        try:
            charge = charge_of(asks)
            assert charge is not None
            ledger, limit = Ledger(self._state / LEDGER), policy.privacy
            if memory.ledger is not None and not ledger.holds(memory.ledger):
                # An older copy was put back: what was spent since would be spent again.
                raise RefusedError("ledger_not_available")
            line = ledger.spend(charge, run=asked.plan.run, step=str(asked.step), limit=limit.epsilon, delta=limit.delta, request=request)
        except SiteRefusalError:
            raise RefusedError("privacy_budget_spent") from None
        except FederationError:
            raise RefusedError("ledger_not_available") from None
        except (InvalidValueError, KeyError):
            raise RefusedError("not_computed") from None
        self._write(self._state / MEMORY, memory.model_copy(update={"ledger": line}))
        return line

    # ── data ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _rows(self, policy: Policy, plan: Plan) -> tuple[SiteRows, "_Data"]:
        """Return the usable rows, and what stands for the data they are from."""
        path = self._folder / str(policy.table_of(plan.kind))
        try:
            before = hashlib.sha256(path.read_bytes()).hexdigest()
            table = read_table(path)
            whole = plan.kind in {"monitor", "gate"}
            rows = self._whole(policy, plan, table) if whole else site_rows(table, plan, self._secret(), workspace_of(self._folder, plan))
            after = hashlib.sha256(path.read_bytes()).hexdigest()
        except RefusedError:
            raise
        except (ClinicalSerError, OSError, LookupError, TypeError, ValueError):
            raise RefusedError("data_not_readable") from None
        if before != after:
            # Replaced while it was read: nobody knows of which of the two these rows are.
            raise RefusedError("data_changed")
        data = _Data(tags_of(table, self._secret()), name_tags(rows.subjects, self._secret()), before)
        if len(np.unique(rows.subjects)) < policy.release.minimum_subjects:
            raise RefusedError("too_few_subjects")
        if plan.kind == "monitor":
            return rows, data
        if plan.kind == "gate":
            selected = select_rows(table, plan.task, plan.features, use_baseline=False, used_as="compared with").rows
            if min(len(np.unique(selected.subjects[selected.target == k])) for k in (0, 1)) < policy.release.minimum_subjects_of_a_class:
                raise RefusedError("too_few_of_a_class")
            return rows, data
        if min(len(np.unique(rows.subjects[rows.target == k])) for k in (0, 1)) < policy.release.minimum_subjects_of_a_class:
            raise RefusedError("too_few_of_a_class")
        if least_in_a_fold(rows, plan.folds) < LEAST_IN_A_FOLD:
            raise RefusedError("too_few_in_a_fold")
        return without_rare(rows, plan.groups, policy.release.minimum_group), data

    def _whole(self, policy: Policy, plan: Plan, table: FeatureTable) -> SiteRows:
        """Return a table as a run about released models looks at it, with the models and the change-control plan that were approved."""
        bundles, change_plan = {}, None
        for digest in (plan.parent, plan.challenger):
            if digest is None:
                continue
            if digest not in policy.models:
                raise RefusedError("models_differ")
            try:
                bundles[digest] = read_bundle(self._folder / policy.models[digest], expected_digest=digest)
                steep = _is_steep(bundles[digest])
            except BundleError:
                raise RefusedError("models_differ") from None
            if steep:
                raise RefusedError("model_too_steep")
        if plan.change_plan is not None:
            try:
                change_plan = read_change_plan(self._folder / str(policy.change_plan))
            except ChangePlanError:
                raise RefusedError("change_plan_differs") from None
            if change_plan.digest != plan.change_plan:
                raise RefusedError("change_plan_differs")
        release = policy.release
        return whole_rows(
            table,
            plan,
            bundles,
            site=policy.name,
            least=release.minimum_group,
            least_of_a_class=release.minimum_subjects_of_a_class,
            change_plan=change_plan,
        )

    def _secret(self) -> bytes:
        found = (self._state / SECRET).read_bytes()
        if len(found) != SECRET_BYTES:
            raise RefusedError("state_not_whole")
        return found

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
                raise RefusedError("run_is_another_plan")
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
        try:
            return Message.from_bytes(path.read_bytes()) if path.exists() else None
        except FederationError:
            # Torn: it never left.
            return None

    def _keep_request(self, asked: _Asked) -> None:
        """Keep what was asked, as it was signed: digests are in the log, and the questions behind them can be shown."""
        folder = self._run_file(asked.plan).parent
        _write_private(folder / f"step-{asked.step:06}.request", asked.signature + asked.message.to_bytes())

    def _keep(self, plan: Plan, step: int, reply: Message) -> None:
        folder = self._run_file(plan).parent
        _write_private(folder / f"step-{step:06}.reply", reply.to_bytes())
        for old in folder.glob("step-*.reply"):
            if old.name != f"step-{step:06}.reply":
                old.unlink()

    def _memory(self) -> _Memory:
        return _read(_Memory, self._state / MEMORY)

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
            raise RefusedError("not_a_request") from None
        before = memory.heads.get("coordinator")
        if before is not None and (seen is None or not seen.may_follow(before)):
            raise RefusedError("log_shrank")
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
                log.append(event, purpose=Purpose.OPERATIONS)
                head = head_of(log.checkpoint)
        except ClinicalSerError:
            raise RefusedError("log_not_available") from None
        if seen is not None:
            self._write(self._state / MEMORY, self._memory().model_copy(update={"heads": {**memory.heads, "coordinator": seen}}))
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
    """Return a node's rows as it answered about them in a run; FederationError where its table is not that of the run any more."""
    try:
        run = _read(_Run, folder / STATE / "runs" / plan.run / "run.json")
        table = folder / str(policy.table_of(plan.kind))
        raw = hashlib.sha256(table.read_bytes()).hexdigest()
        if run.plan != plan.digest or run.data != raw:
            raise FederationError("The table is not the one that this run was about.")
        return site_rows(read_table(table), plan, (folder / STATE / SECRET).read_bytes(), workspace_of(folder, plan))
    except RefusedError as refusal:
        raise FederationError(
            f"The node has answered no run of this plan, or its table does not serve it: {refusal.reason.replace('_', ' ')}."
        ) from None
    except OSError as error:
        raise FederationError(f"The node's files cannot be read: {error.strerror}.") from None


def _is_steep(bundle: VerifiedBundle) -> bool:
    """Tell whether a model looks at the few people in a slit, as no question of training may: one that came by another way is held to the same."""
    model = TrainedModel.from_bundle(bundle)
    for head, calibrator in [(model.head, model.calibrator), *((refit.head, refit.calibrator) for refit in model.refits)]:
        if isinstance(head, LinearHead):
            columns = np.vstack([head.coef_.reshape(len(head.column_families), -1), np.atleast_1d(head.intercept_)])
            lengths = np.sqrt((columns**2).sum(axis=0))
            # What a map multiplies is as steep as the head itself; one below 1 hides nothing, since margins are counted too.
            if not (lengths * max(1.0, abs(float(calibrator.scale_))) <= MOST_NORM).all():
                return True
    return False


def workspace_of(folder: Path, plan: Plan) -> Path:
    """Return where a node keeps what it learned in the run of a plan, and in no other."""
    return folder / STATE / KEPT / plan.digest[:32]


def make_state(folder: Path, name: str) -> None:
    """Make what a new node remembers with: its secret, its memory and its privacy ledger. They are made once: what is lost is not empty."""
    from federated.privacy import Ledger

    state = folder / STATE
    state.mkdir(mode=0o700, exist_ok=True)
    write_new_file(state / SECRET, os.urandom(SECRET_BYTES), mode=0o600)
    write_new_file(state / MEMORY, _Memory().model_dump_json().encode(), mode=0o600)
    Ledger.create(folder / STATE / LEDGER, site=name, dataset=f"table of {name}")


def _scales_digest(asks: Sequence[Ask]) -> str | None:
    """Return what stands for the means and scales that an exchange asks with, None where it asks with none; several are refused."""
    found = {hashlib.sha256(mean.tobytes() + scale.tobytes()).hexdigest() for mean, scale in scales_of(asks)}
    if len(found) > 1:
        raise RefusedError("scales_differ")
    return found.pop() if found else None


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
        raise RefusedError("data_not_readable") from None


def _write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read, and see it on the disk: what was promised has to outlive a power cut."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with replaced(path) as unfinished, unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)
