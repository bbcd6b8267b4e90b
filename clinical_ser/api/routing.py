"""Routes that say who may use them, and what they ask of a request.

The one idea: a route cannot be made without saying who may use it, and the application does not start with one that was made otherwise.
"""

import ipaddress
from collections.abc import Callable, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from anyio import fail_after
from fastapi import APIRouter, Depends
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request

from clinical_ser.api.access import Access, Open, Principal, Scope
from clinical_ser.api.problems import Documented, Problem

if TYPE_CHECKING:
    from clinical_ser.api.service import Service

BODY_TIMEOUT_S = 15.0
"""For the small bodies that are read whole; recordings have their own."""
_MAX_LENGTH_DIGITS = 18
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="clinical-ser"'}


class GuardedRoute(APIRoute):
    """A route that says who may use it."""

    access: Access = Open.SIGNED_IN


class Routes(APIRouter):
    """A router whose routes all say who may use them."""

    def __init__(self, tag: str) -> None:
        super().__init__(tags=[tag], route_class=GuardedRoute)

    def at(
        self, method: str, path: str, *, access: Access, problems: Sequence[HTTPStatus] = (), **options: Any
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Register an endpoint.

        Parameters
        ----------
        method, path
            As FastAPI takes them.
        access
            Who may use it.
        problems
            The statuses that it answers with problem details, besides those that every route may.
        options
            FastAPI's, as `summary` and `responses`.
        """
        documented = Documented((*problems, *_general(access))).responses() | options.pop("responses", {})
        extra = dict(options.pop("openapi_extra", {}))
        if access is not Open.PUBLIC:
            extra["security"] = [{"bearer": [access.value] if isinstance(access, Scope) else []}]
        else:
            extra["security"] = []

        def register(endpoint: Callable[..., Any]) -> Callable[..., Any]:
            self.add_api_route(
                path,
                endpoint,
                methods=[method],
                dependencies=[Depends(_guard(access))],
                responses=documented,
                openapi_extra=extra,
                response_model=None,
                operation_id=endpoint.__name__,
                **options,
            )
            route = self.routes[-1]
            assert isinstance(route, GuardedRoute)
            route.access = access
            return endpoint

        return register


def _general(access: Access) -> tuple[HTTPStatus, ...]:
    always = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
    if access is Open.PUBLIC:
        return always
    refused = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN) if isinstance(access, Scope) else (HTTPStatus.UNAUTHORIZED,)
    return (*refused, *always)


def _guard(access: Access) -> Callable[[Request], Any]:
    async def check(request: Request) -> None:
        if isinstance(access, Scope):
            if access not in principal_of(request).scopes:
                raise Problem(HTTPStatus.FORBIDDEN, "forbidden", f"This takes the scope {access.value}, which the token or key does not have.")
        elif access is Open.SIGNED_IN:
            principal_of(request)

    return check


def unauthenticated() -> Problem:
    """Return the answer to whoever does not say who they are."""
    return Problem(HTTPStatus.UNAUTHORIZED, "unauthenticated", "This takes a bearer token, or an API key, in the Authorization header.", CHALLENGE)


def principal_of(request: Request) -> Principal:
    """Return who asks; 401 where nobody known does."""
    found = request.scope["state"].get("principal")
    if not isinstance(found, Principal):
        raise unauthenticated()
    return found


def service_of(request: Request) -> "Service":
    """Return what routes work with."""
    service: Service = request.app.state.service
    return service


def address_of(request: Request) -> str | None:
    """Return the address of whoever asks, as the middleware told it."""
    found = request.scope["state"].get("address")
    return found if isinstance(found, str) else None


def address_told(request: Request, trusted: frozenset[str]) -> str | None:
    """Return the address of whoever asks: as a trusted proxy says, otherwise as the connection does."""
    peer = request.client.host if request.client else None
    if peer is None or peer not in trusted:
        return peer
    # What a proxy adds stands last; what comes before it is anybody's word.
    for told in reversed(",".join(request.headers.getlist("x-forwarded-for")).split(",")):
        try:
            address = str(ipaddress.ip_address(told.strip()))
        except ValueError:
            return peer
        if address not in trusted:
            return address
    return peer


async def body_of(request: Request, limit: int) -> bytes:
    """Read a small body whole.

    Raises
    ------
    Problem
        413 above `limit` bytes, 408 where it does not arrive, 400 where the client goes away.
    """
    check_announced(request, limit)
    body = bytearray()
    try:
        with fail_after(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise too_large(limit)
    except TimeoutError:
        raise too_slow() from None
    except ClientDisconnect:
        raise gone() from None
    return bytes(body)


def check_announced(request: Request, limit: int) -> None:
    """Refuse, before a byte of it is read, a body that says itself that it is too long."""
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or len(announced) > _MAX_LENGTH_DIGITS or int(announced) > limit:
        raise too_large(limit)


_DRAINED_BYTES = 1 << 20
_DRAINED_S = 2.0


async def drain(request: Request) -> None:
    """Read on for a moment: a connection that is closed with bytes unread is reset, and the client may not get to see why."""
    if request.headers.get("expect"):
        # Whoever waits to be told to go on has sent nothing.
        return
    left = _DRAINED_BYTES
    with suppress(TimeoutError, ClientDisconnect, RuntimeError):
        with fail_after(_DRAINED_S):
            async for chunk in request.stream():
                left -= len(chunk)
                if left < 0:
                    return


# What was not read of a body still lies in the connection, which cannot carry another request.
CLOSE = {"Connection": "close"}


def too_large(limit: int) -> Problem:
    """Return the answer to a body above a limit."""
    return Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too-large", f"The body is longer than the {limit} bytes that are taken here.", CLOSE)


def too_slow() -> Problem:
    """Return the answer to a body that does not arrive."""
    return Problem(HTTPStatus.REQUEST_TIMEOUT, "too-slow", "The body did not arrive in time; nothing was kept of it.", CLOSE)


def gone() -> Problem:
    """Return the answer that nobody reads any more."""
    return Problem(HTTPStatus.BAD_REQUEST, "incomplete", "The connection ended before the body did.", CLOSE)
