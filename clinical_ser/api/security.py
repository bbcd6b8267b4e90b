"""Who asks, told from the Authorization header before any route is looked for; and the record of those who were refused.

The one idea: this stands before the router, so that a route that someone forgets to guard is still not reached by strangers.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from http import HTTPStatus
from typing import Literal, cast

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from clinical_ser.api.access import Principal
from clinical_ser.api.api_keys import PREFIX, ApiKeys
from clinical_ser.api.configuration import Issuer as IssuerEntry
from clinical_ser.api.configuration import ServerConfiguration
from clinical_ser.api.limits import Rate, too_many, unavailable
from clinical_ser.api.metrics import Denial, Limit
from clinical_ser.api.observing import PROBES, Observing
from clinical_ser.api.problems import Problem
from clinical_ser.api.routing import CHALLENGE, CLOSE, address_of, address_told
from clinical_ser.api.service import Service
from clinical_ser.api.tokens import Issuer, TenantClaim, TokenVerifier
from clinical_ser.audit.events import AccessDenied, Actor, Outcome, Purpose, Role
from clinical_ser.audit.log import Entry
from clinical_ser.errors import AuditError, AuthenticationError

CDS = "/cds-services"
"""Where record systems sign their requests for one address each, which the routes verify themselves."""
_BEARER = "bearer "
_FAILURES_PER_S = 1.0
_REQUESTS_AT_ONCE = 20
"""Times the rate: what a page may ask for when it opens."""
_RECORDED_PER_MINUTE = 60
"""Denials of one kind that get a record each; the rest of a flood gets one together, or it would fill the disk."""
_FETCHING = 8
_FLUSH_S = 0.5
_MINUTE_S = 60.0

Reason = Literal["unauthenticated", "forbidden", "expired", "replayed", "rate_limited"]
_REASONS: dict[str, Reason] = {
    "unauthenticated": "unauthenticated",
    "expired": "expired",
    "replayed": "replayed",
    "forbidden": "forbidden",
    "another-tenants": "forbidden",
    "too-many": "rate_limited",
    "too-many-at-once": "rate_limited",
}
_COUNTED = {
    "unauthenticated": Denial.UNAUTHENTICATED,
    "expired": Denial.EXPIRED,
    "replayed": Denial.REPLAYED,
    "forbidden": Denial.SCOPE,
    "another-tenants": Denial.TENANT,
}
_NOBODY = "unknown client"


def issuer_of(entry: IssuerEntry, tenants: Iterable[str]) -> Issuer:
    """Return an issuer of the configuration; ServerSetupError where it does not fit."""
    return Issuer(
        issuer=entry.issuer,
        audience=entry.audience,
        keys=entry.keys,
        algorithms=cast(frozenset[object], frozenset(entry.algorithms)),  # type: ignore[arg-type]  # checked there
        client_ids=frozenset(entry.client_ids),
        tenant=TenantClaim(entry.tenant_claim, frozenset(tenants)) if entry.tenant_claim else entry.tenant or "",
        role=entry.role,
        roles=entry.roles,
        role_claim=entry.role_claim,
        scope_claims=entry.scope_claims,
        scopes={word: frozenset(scopes) for word, scopes in entry.scopes.items()},
        always=frozenset(entry.always),
        at_most=frozenset(entry.at_most),
        subject_claim=entry.subject_claim,
        name_claim=entry.name_claim,
        max_lifetime_s=entry.max_lifetime_s,
        leeway_s=entry.leeway_s,
        single_use=entry.single_use,
        access_tokens_only=entry.access_tokens_only,
    )


class Authenticator:
    """Tells who a header is of.

    Parameters
    ----------
    configuration
        Its issuers and API keys.
    """

    def __init__(self, configuration: ServerConfiguration) -> None:
        self._tokens = TokenVerifier(issuer_of(entry, configuration.tenants) for entry in configuration.issuers)
        # Of their own: an issuer that cannot be reached holds these up, and not what waits for the disk.
        self._waiting = CapacityLimiter(_FETCHING)
        self._keys_file = configuration.keys_file
        self.keys = ApiKeys(configuration.keys_file, tenants=frozenset(configuration.tenants) or frozenset({""}))

    def load_keys(self) -> None:
        """Look for the issuers' keys, and the API keys, before anyone asks; the log says what is missing."""
        self._tokens.load_keys()
        if self._keys_file.exists():
            self.keys.load()

    async def principal(self, header: str) -> Principal:
        """Return whose it is; AuthenticationError where it is nobody's."""
        if header[: len(_BEARER)].lower() != _BEARER:
            raise AuthenticationError("The Authorization header is not of the scheme Bearer.")
        text = header[len(_BEARER) :].strip()
        if text.startswith(PREFIX):
            return self.keys.verify(text)
        known = self._tokens.recall(text)
        # A token that is new here may need a key set that has to be fetched.
        return known if known is not None else await to_thread.run_sync(self._tokens.verify, text, limiter=self._waiting)


class Denials:
    """Records refused requests, a flood of them in few records.

    Parameters
    ----------
    service
        In whose log.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._waiting: list[Entry] = []
        self._recorded: Counter[Reason] = Counter()
        self._beyond: Counter[Reason] = Counter()
        self._minute = time.monotonic()
        self._task: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()

    def note(self, actor: Actor, asked_for: str, reason: Reason) -> None:
        """Note a denial, to be recorded soon."""
        if self._recorded[reason] < _RECORDED_PER_MINUTE:
            self._recorded[reason] += 1
            payload = AccessDenied(actor=actor, asked_for=asked_for, reason=reason)
            self._waiting.append(Entry(payload, outcome=Outcome.REFUSED, purpose=Purpose.SYSTEM))
        else:
            self._beyond[reason] += 1

    def start(self) -> None:
        """Begin to record."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Record what waits, and end."""
        # Not cancelled: what it has taken in hand it records.
        self._ending.set()
        if self._task:
            await self._task
        self._new_minute()
        await self._flush()

    async def _run(self) -> None:
        while not self._ending.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), _FLUSH_S)
            if time.monotonic() - self._minute >= _MINUTE_S:
                self._new_minute()
            await self._flush()

    def _new_minute(self) -> None:
        nobody = Actor(id=_NOBODY, role=Role.SERVICE)
        for reason, number in self._beyond.items():
            payload = AccessDenied(actor=nobody, asked_for=f"{number} further requests within a minute", reason=reason)
            self._waiting.append(Entry(payload, outcome=Outcome.REFUSED, purpose=Purpose.SYSTEM))
        self._beyond.clear()
        self._recorded.clear()
        self._minute = time.monotonic()

    async def _flush(self) -> None:
        if not self._waiting:
            return
        entries, self._waiting = self._waiting, []
        try:
            await self._service.in_thread(self._service.record, entries)
        except AuditError:
            # Nothing was given out for want of them; they wait for a log that works, within bounds.
            self._waiting = (entries + self._waiting)[-10 * _RECORDED_PER_MINUTE :]


class Authenticating:
    """The ASGI middleware that says who asks, in `scope["state"]["principal"]`, and refuses whoever claims to be someone and is not.

    Parameters
    ----------
    app
        What comes after it.
    service, authenticator, denials, observing
        What it works with.
    """

    def __init__(self, app: ASGIApp, service: Service, authenticator: Authenticator, denials: Denials, observing: Observing) -> None:
        self._app, self._service, self._authenticator, self._denials, self._observing = app, service, authenticator, denials, observing
        limits = service.configuration.limits
        self._now = 0
        self._failures = Rate(_FAILURES_PER_S, limits.failures)
        self._record_systems = Rate(limits.requests_per_s, _REQUESTS_AT_ONCE * limits.requests_per_s)
        self._requests = Rate(limits.requests_per_s, _REQUESTS_AT_ONCE * limits.requests_per_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        scope["state"]["address"] = address_told(request, self._service.configuration.trusted_proxies)
        try:
            if scope["path"] not in PROBES:
                self._check_room()
            self._check_size(scope)
            scope["state"]["principal"] = await self._principal(request)
        except Problem as problem:
            self.denied(request, problem)
            await problem.response(request)(scope, receive, send)
            return
        self._now += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._now -= 1

    def _check_room(self) -> None:
        if self._now >= self._service.configuration.limits.connections:
            raise unavailable("busy", "The server answers as many requests as it can.", 1)

    def _check_size(self, scope: Scope) -> None:
        """Refuse a header that came whole, which the protocol's own limit, for what is still to come, lets pass."""
        if sum(len(name) + len(value) for name, value in scope["headers"]) > self._service.configuration.limits.header_bytes:
            detail = "The header is longer than is taken here."
            raise Problem(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "header-too-large", detail, CLOSE)

    async def _principal(self, request: Request) -> Principal | None:
        headers = request.headers.getlist("authorization")
        address = address_of(request) or _NOBODY
        if request.scope["path"].startswith(CDS):
            if wait := self._record_systems.wait_s(address):
                raise too_many(wait)
            return None
        if not headers:
            return None
        if len(headers) > 1:
            raise _refused(AuthenticationError("There are two Authorization headers."))
        try:
            principal = await self._authenticator.principal(headers[0])
        except AuthenticationError as error:
            if wait := self._failures.wait_s(address):
                raise too_many(wait) from None
            raise _refused(error) from None
        if wait := self._requests.wait_s(principal.client):
            request.scope["state"]["principal"] = principal
            raise too_many(wait)
        return principal

    def denied(self, request: Request, problem: Problem) -> None:
        """Note a problem that is a denial."""
        reason = _REASONS.get(problem.denial)
        if reason is None:
            return
        if (counted := _COUNTED.get(problem.denial)) is not None:
            self._observing.metrics.denied(counted)
        elif reason == "rate_limited":
            self._observing.metrics.limited(Limit.CONCURRENCY if problem.kind == "too-many-at-once" else Limit.RATE)
        principal = request.scope["state"].get("principal")
        address = address_of(request)
        actor = principal.actor(address) if isinstance(principal, Principal) else Actor(id=_NOBODY, role=Role.SERVICE, client=address)
        route = request.scope.get("route")
        self._denials.note(actor, f"{request.method} {getattr(route, 'path', 'an address')}", reason)


def _refused(error: AuthenticationError) -> Problem:
    described = {**CHALLENGE, "WWW-Authenticate": f'{CHALLENGE["WWW-Authenticate"]}, error="invalid_token"'}
    return Problem(HTTPStatus.UNAUTHORIZED, error.reason, str(error), described)
