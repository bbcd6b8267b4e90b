"""Serves the metrics to Prometheus, on a port of its own.

The one idea: it answers `GET /metrics` and nothing else, from a thread, so that it answers also when the server itself is too busy to.
"""

import contextlib
import socket
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from types import TracebackType
from typing import Any, Self

from clinical_ser.api.configuration import is_loopback
from clinical_ser.api.metrics import ServerMetrics
from clinical_ser.errors import ServerSetupError

PATH = "/metrics"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_CONNECTIONS = 8
"""Prometheus has one; whoever opens many waits."""
MAX_CONNECTION_S = 10.0
"""For a request and its answer together, however slowly the bytes drip; Prometheus itself gives up after ten seconds."""

_MAX_PORT = 65535


class MetricsServer:
    """A small HTTP server in a daemon thread.

    Parameters
    ----------
    metrics
        What is served.
    host
        A loopback address: there is no TLS, and nobody is asked who they are.
    port
        0 lets the system choose.

    Raises
    ------
    ServerSetupError
        Another host; an address that cannot be listened on.
    """

    def __init__(self, metrics: ServerMetrics, host: str = "127.0.0.1", port: int = 0) -> None:
        if not is_loopback(host):
            raise ServerSetupError("Without TLS metrics are served on a loopback address only; listen on 127.0.0.1.")
        if not 0 <= port <= _MAX_PORT:
            raise ServerSetupError(f"A port is a number from 0 to {_MAX_PORT}.")
        try:
            self._server = _Server(host, port, metrics)
        except OSError as error:
            raise ServerSetupError(f"The metrics cannot be served there: {error.strerror}.") from None
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="metrics", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop listening; whoever is being answered is cut off."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server.cut(older_than_s=0.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _Server(ThreadingMixIn, TCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = MAX_CONNECTIONS

    def __init__(self, host: str, port: int, metrics: ServerMetrics) -> None:
        self.metrics = metrics
        self._lock = threading.Lock()
        self._open: dict[socket.socket, float] = {}
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002
        with self._lock:
            if len(self._open) >= MAX_CONNECTIONS:
                return False  # and the connection is closed
            self._open[request] = time.monotonic()
        return True

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        # Called between polls.
        self.cut(older_than_s=MAX_CONNECTION_S)

    def cut(self, older_than_s: float) -> None:
        with self._lock:
            for request, since in self._open.items():
                if time.monotonic() - since >= older_than_s:
                    with contextlib.suppress(OSError):
                        request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: it would print a traceback, and the only errors are of connections that ended."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    # One request a connection.
    protocol_version = "HTTP/1.0"
    timeout = MAX_CONNECTION_S

    def do_GET(self) -> None:
        if self.path == PATH:
            self._answer(HTTPStatus.OK, self.server.metrics.exposition(), CONTENT_TYPE)
        else:
            self._answer(HTTPStatus.NOT_FOUND)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        # The standard library's repeats what was asked. A method without a do_… is 501 there; here there is one path, with one method.
        refused = HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else HTTPStatus(code)
        self.close_connection = True
        self._answer(refused)

    def _answer(self, status: HTTPStatus, body: bytes | None = None, content_type: str = "text/plain; charset=utf-8") -> None:
        content = f"{status.phrase}\n".encode() if body is None else body
        self.send_response_only(status)
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET")
        for name, value in (("Content-Type", content_type), ("Content-Length", str(len(content))), ("Cache-Control", "no-store")):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing."""
