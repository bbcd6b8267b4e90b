"""Watches every request from outside the application: an id, the headers that every answer has, one line of the log, one count.

The one idea: it is the outermost layer and sees only what goes through it, so nothing that happens inside can leave a request uncounted or an answer
without its headers; and of a request it knows the method, the route's template and sizes, never the path as asked.
"""

import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clinical_ser.api.logs import Level, Logs
from clinical_ser.api.metrics import CLIENT_GONE, ServerMetrics, Stage, known_method, route_template
from clinical_ser.api.problems import problem_response
from clinical_ser.api.tracing import Tracing

PROBES = frozenset({"/livez", "/readyz"})
"""Asked every few seconds by whoever keeps the server running; answered well they are lines for `debug` alone."""

Header = tuple[bytes, bytes]

_ID_BYTES = 16
_HSTS: Header = (b"strict-transport-security", b"max-age=31536000")
_FIXED: tuple[Header, ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_REQUEST_ID = b"x-request-id"
_OWN = frozenset({_REQUEST_ID, _HSTS[0], *(name for name, _ in _FIXED)})
_UNLESS_SET: tuple[Header, ...] = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)


@dataclass(frozen=True)
class Observing:
    """All by which the server is watched.

    Attributes
    ----------
    logs, metrics
        Where events go, and what is counted.
    tracing
        None on a server that did not ask for it.
    """

    logs: Logs
    metrics: ServerMetrics
    tracing: Tracing | None = None

    def around(self, app: ASGIApp) -> ASGIApp:
        """Return an application whose requests are watched; nothing else goes around it."""
        return RequestObserver(app if self.tracing is None else self.tracing.middleware(app), self.logs, self.metrics)

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """Count how long a part of a screening takes, also when it fails; with tracing it is a span too.

        Examples
        --------
        >>> with observing.stage(Stage.RECORD):  # doctest: +SKIP
        ...     log.record(event)
        """
        began = time.perf_counter()
        with nullcontext() if self.tracing is None else self.tracing.stage(stage):
            try:
                yield
            finally:
                self.metrics.stage(stage, time.perf_counter() - began)

    def close(self) -> None:
        """Send and write what is left."""
        if self.tracing is not None:
            self.tracing.close()
        self.logs.close()


class RequestObserver:
    """The outermost ASGI middleware.

    The id in `scope["state"]["request_id"]` and in X-Request-Id is made here; one that a client sends is not taken over. A request whose client went
    away before the end of the answer counts as status 499. An exception that nobody answered is answered with problem details, and goes on to the
    server, which then ends the connection.
    """

    def __init__(self, app: ASGIApp, logs: Logs, metrics: ServerMetrics) -> None:
        self._app, self._logs, self._metrics = app, logs, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        async with _Exchange(scope, receive, send, self._logs, self._metrics) as exchange:
            await self._app(scope, exchange.receive, exchange.send)


class _Exchange:
    """One request and its answer, as far as they went."""

    __slots__ = ("_began", "_bytes_in", "_complete", "_gone", "_logs", "_metrics", "_receive", "_request_id", "_scope", "_send", "_status")

    def __init__(self, scope: Scope, receive: Receive, send: Send, logs: Logs, metrics: ServerMetrics) -> None:
        self._scope, self._receive, self._send, self._logs, self._metrics = scope, receive, send, logs, metrics
        self._began = time.perf_counter()
        self._request_id = secrets.token_hex(_ID_BYTES)
        self._bytes_in = 0
        self._status: int | None = None
        self._complete = self._gone = False

    async def __aenter__(self) -> "_Exchange":
        self._scope.setdefault("state", {})["request_id"] = self._request_id
        self._metrics.request_began()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        hung_up = self._gone and isinstance(error, ClientDisconnect)
        try:
            if isinstance(error, Exception) and self._status is None and not self._gone:
                await self._answer_failure()
        finally:
            self._ended(None if hung_up else error)
        return hung_up

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._bytes_in += len(message.get("body", b""))
        elif not self._complete:  # after the answer, http.disconnect only says that it is over
            self._gone = True  # whatever is answered from now on: servers drop it in silence
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            message = {**message, "headers": self._headers(message.get("headers", ()))}
        try:
            await self._send(message)
        except OSError:  # by which servers say that nobody listens (ASGI 2.4)
            self._gone = True
            raise
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._complete = True

    def _headers(self, given: Iterable[Header]) -> list[Header]:
        headers = [(name.lower(), value) for name, value in given]
        names = {name for name, _ in headers}
        if not names.isdisjoint(_OWN):
            headers = [header for header in headers if header[0] not in _OWN]
        headers += _FIXED
        headers.append((_REQUEST_ID, self._request_id.encode("ascii")))
        headers += [header for header in _UNLESS_SET if header[0] not in names]
        if self._scope.get("scheme") == "https":
            headers.append(_HSTS)
        return headers

    async def _answer_failure(self) -> None:
        detail = "The server failed; its log has more under this request's id. Try again."
        response = problem_response(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", detail, self._request_id)
        await response(self._scope, self._receive, self.send)

    def _ended(self, error: BaseException | None) -> None:
        seconds = time.perf_counter() - self._began
        status = CLIENT_GONE if self._gone else self._status or HTTPStatus.INTERNAL_SERVER_ERROR.value
        route, method = route_template(self._scope), known_method(self._scope["method"])
        self._metrics.request(route, method, status, seconds)
        self._logs.write(
            "request",
            level=_level(status, route, error),
            request_id=self._request_id,
            method=method,
            route=route,
            status=status,
            duration_ms=round(seconds * 1000, 2),
            bytes_in=_rounded(self._bytes_in),
            error=error,
        )


def _level(status: int, route: str, error: BaseException | None) -> Level:
    if error is not None or (status >= HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.SERVICE_UNAVAILABLE):
        return "error"
    if status == HTTPStatus.SERVICE_UNAVAILABLE:  # told to come back
        return "warning"
    return "debug" if route in PROBES and status < HTTPStatus.BAD_REQUEST else "info"


def _rounded(size: int) -> int:
    """Return a size to two digits and not below a kilobyte: a recording's exact length tells which recording it is."""
    if not size:
        return 0
    return max(1000, round(size, 2 - len(str(size))))
