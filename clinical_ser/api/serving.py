"""Runs the application: sockets, TLS, limits below HTTP, and an orderly end.

The one idea: what is not safe is refused before a socket is opened, and whoever is slow to ask is hung up on before others wait for their place.
"""

import asyncio
import http.client
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from clinical_ser.api.app import Application
from clinical_ser.api.cds_clients import CdsClients
from clinical_ser.api.configuration import ServerConfiguration
from clinical_ser.api.generation import served_models
from clinical_ser.api.logs import configure_logs
from clinical_ser.api.metrics import ServerMetrics
from clinical_ser.api.metrics_server import MetricsServer
from clinical_ser.api.observing import Observing
from clinical_ser.api.security import Authenticator
from clinical_ser.api.service import Service, site_of
from clinical_ser.api.tracing import open_tracing
from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.errors import ServerSetupError

_KEEP_ALIVE_S = 30
_HEALTH_S = 4.0
_DRAIN_S = 30
"""How long requests that are being answered have, when the server is told to stop."""


@dataclass(frozen=True)
class Running:
    """A server that listens.

    Attributes
    ----------
    application
        What it serves.
    port, metrics_port
        Where.
    task
        Ends with it.
    """

    application: Application
    port: int
    metrics_port: int | None
    task: "asyncio.Task[None]"


def observing_of(configuration: ServerConfiguration, stream: Any = None) -> Observing:
    """Return logs on standard error, metrics, and tracing where it is asked for."""
    logs = configure_logs(stream or sys.stderr)
    own = version("clinical-ser")
    metrics = ServerMetrics(own, lost_lines=lambda: logs.lost)
    return Observing(logs, metrics, open_tracing(version=own, exported=metrics.traces_exported) if configuration.tracing else None)


@asynccontextmanager
async def listening(configuration: ServerConfiguration, audit: LogConfiguration, observing: Observing) -> AsyncIterator[Running]:
    """Start everything, and see all of it end in order.

    Raises
    ------
    ServerSetupError, AuditError, BundleError
        Something cannot be started as it is configured.
    """
    configuration.check_may_serve()
    listen = configuration.listen
    async with AsyncExitStack() as stack:
        # The sockets first: a port that is taken is said before models are loaded; nobody is accepted until all is warm.
        listener = stack.enter_context(_listener(listen.host, listen.port))
        port = listener.getsockname()[1]
        if listen.port == 0:
            configuration = configuration.model_copy(update={"listen": listen.model_copy(update={"port": port})})
        metrics = stack.enter_context(MetricsServer(observing.metrics, port=listen.metrics_port)) if listen.metrics_port is not None else None
        door = _Door()
        server = _Server(_uvicorn(configuration, door))
        service = await stack.enter_async_context(Service.started(configuration, audit, observing))
        application = Application(service, observing)
        door.behind = application.asgi
        await stack.enter_async_context(application.running())
        task = asyncio.create_task(server.serve(sockets=[listener]))
        stack.push_async_callback(_ended, server, task)
        while not server.started and not task.done():
            await asyncio.sleep(0.01)
        observing.logs.write("listening")
        yield Running(application, port, metrics.port if metrics else None, task)
        service.ready = False


async def _ended(server: uvicorn.Server, task: "asyncio.Task[None]") -> None:
    server.should_exit = True
    await task


def check(configuration: ServerConfiguration) -> list[str]:
    """See whether a server could be started with a configuration, and return the names of its models.

    Raises
    ------
    ServerSetupError, SiteError, BundleError, InvalidValueError
        It could not.
    """
    configuration.check_may_serve()
    _uvicorn(configuration, _Door())
    Authenticator(configuration)
    CdsClients.of(configuration.cds.clients)
    site_of(configuration)
    return list(served_models(configuration))


def serve(configuration: ServerConfiguration, audit: LogConfiguration, on_ready: Callable[[Running], None] = lambda _: None) -> None:
    """Serve until the process is told to stop (SIGTERM, SIGINT).

    Raises
    ------
    ServerSetupError, AuditError, BundleError
        As for `listening`.
    """
    observing = observing_of(configuration)
    try:
        asyncio.run(_until_told(configuration, audit, observing, on_ready))
    finally:
        observing.close()


async def _until_told(configuration: ServerConfiguration, audit: LogConfiguration, observing: Observing, on_ready: Callable[[Running], None]) -> None:
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    # Nobody has anything to look at yet, but from the first moment on the signal must not end the program, as it would by itself.
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, lambda: None)
    ready = False

    async def run() -> None:
        nonlocal ready
        async with listening(configuration, audit, observing) as running:
            ready = True
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, partial(running.application.service.following.look, again=True))
            on_ready(running)
            # A server that ended by itself ends the program, for whoever starts it again.
            await asyncio.wait({running.task, asyncio.ensure_future(told.wait())}, return_when=asyncio.FIRST_COMPLETED)

    serving, stopping = asyncio.ensure_future(run()), asyncio.ensure_future(told.wait())
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not ready and not serving.done():
        serving.cancel()
    with suppress(asyncio.CancelledError):
        await serving


def is_ready(configuration: ServerConfiguration) -> bool:
    """Ask the server that runs on this machine with this configuration whether it is ready."""
    listen = configuration.listen
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host)  # noqa: S104
    tls = ssl.create_default_context(cafile=str(listen.certificate)) if listen.certificate else None
    if tls is not None:
        # It is this machine that is asked, and not the name that the certificate is for; and the file need not hold the authority.
        tls.check_hostname = False
        tls.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    connection = (
        http.client.HTTPSConnection(host, listen.port, timeout=_HEALTH_S, context=tls)
        if tls
        else http.client.HTTPConnection(host, listen.port, timeout=_HEALTH_S)
    )
    with closing(connection):
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False


class _Server(uvicorn.Server):
    """A server that leaves signals to this program."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Do nothing."""
        yield


class _Protocol(H11Protocol):
    """HTTP/1.1 that hangs up on whoever takes too long to say what they want, for which uvicorn waits without end."""

    header_timeout_s = 10.0
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        # uvicorn's access log repeats addresses as they were asked for; ours does not.
        self.access_log = False
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Take what came; what is no whole request yet has to become one in time."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._waiting is None:
            self._wait()

    def on_response_complete(self) -> None:
        """Go on to the next request, of which a part may have come along with the last one."""
        super().on_response_complete()
        begun = bool(self.conn.trailing_data[0])
        if begun and (self.cycle is None or self.cycle.response_complete) and self._waiting is None and not self.transport.is_closing():
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._waiting = self.loop.call_later(self.header_timeout_s, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


def _uvicorn(configuration: ServerConfiguration, door: "_Door") -> uvicorn.Config:
    listen, limits = configuration.listen, configuration.limits
    protocol = type("Protocol", (_Protocol,), {"header_timeout_s": limits.header_timeout_s})
    config = uvicorn.Config(
        door,
        http=protocol,
        loop="none",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        proxy_headers=False,
        # The application sheds first, in words; this is what is left to a flood of connections.
        limit_concurrency=2 * limits.connections,
        h11_max_incomplete_event_size=limits.header_bytes,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_DRAIN_S,
        ssl_certfile=listen.certificate,
        ssl_keyfile=listen.key,
    )
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
        raise ServerSetupError(f"The TLS certificate and key cannot be used: {reason}.") from None
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    return config


class _Door:
    """Stands where the application will be: certificates are looked at before models are loaded."""

    behind: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        await self.behind(scope, receive, send)


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise ServerSetupError(f"The server cannot listen there: {error.strerror}.") from None
    # Accepted sockets inherit it. asyncio sets it only where the protocol was named, and without it an answer's second packet waits 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
