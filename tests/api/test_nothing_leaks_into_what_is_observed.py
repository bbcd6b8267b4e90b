"""A name that is put everywhere a request has room for it, into a real server: it is in no log, no metric, no span, and not on the terminal.

Here the server is a small application that does everything wrong; the same is asked of the whole one with its own routes elsewhere.
"""

import base64
import contextlib
import http.client
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI, Request
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from clinical_ser.api.collector import encoded
from clinical_ser.api.metrics import ServerMetrics
from clinical_ser.api.metrics_server import MetricsServer
from clinical_ser.api.observing import Observing
from clinical_ser.api.tracing import NO_FASTAPI_TELEMETRY, Tracing
from tests.api.careless import careless_app
from tests.api.observed import Written, logging_to

CANARY = "canary-Jane-Doe-1970"
SPELLINGS = (
    CANARY,
    "jane",
    base64.b64encode(CANARY.encode()).decode()[:20],
    CANARY.encode().hex(),
    "%63%61%6e%61%72%79",  # as an address may have it
)
HEADERS = dict.fromkeys(
    (
        "X-Request-Id", "Traceparent", "Tracestate", "Baggage", "User-Agent", "Cookie", "Referer", "X-Forwarded-For", "Idempotency-Key",
        "Screening-Metadata", "Accept-Language", f"X-{CANARY}",
    ),
    CANARY,
) | {"Authorization": f"Bearer {CANARY}", "Host": f"{CANARY}.example"}  # fmt: skip


@contextlib.contextmanager
def served(observing: Observing, app: FastAPI, http_: str = "h11") -> Iterator[int]:
    """Run uvicorn in a thread, set up as the real server does, and yield its port."""
    config = uvicorn.Config(observing.around(app), http=http_, ws="none", log_config=None, access_log=False, server_header=False, lifespan="on")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            deadline = time.monotonic() + 20
            while not server.started and thread.is_alive() and time.monotonic() < deadline:
                time.sleep(0.01)
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(timeout=20)
            assert not thread.is_alive()


def send(port: int, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path, body or None, headers or {})
        try:
            with connection.getresponse() as response:
                return response.status, dict(response.getheaders()), response.read()
        except http.client.IncompleteRead:
            return response.status, dict(response.getheaders()), b""


def throw(port: int, data: bytes) -> None:
    """Send bytes that are no proper request, and hang up."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection, contextlib.suppress(OSError):
        connection.sendall(data)
        connection.settimeout(0.2)
        while connection.recv(65536):
            pass


def metrics_text(server: MetricsServer) -> str:
    status, _, body = send(server.port, "GET", "/metrics", headers=HEADERS)
    assert status == 200
    return body.decode()


def attack(port: int) -> None:
    routes = [("GET", f"/{each}/{CANARY}") for each in ("refuses", "background", "task", "thread", "logs", "stream")]
    routes += [("POST", f"/raises/{CANARY}"), ("POST", f"/ours/{CANARY}"), ("POST", "/strict")]
    routes += [("GET", f"/{CANARY}"), ("OPTIONS", f"/{CANARY}"), ("GET", f"/refuses/{CANARY}/"), ("GET", "/refuses/%63%61%6e%61%72%79")]
    routes += [("DELETE", f"/raises/{CANARY}"), (CANARY, f"/raises/{CANARY}")]
    for method, path in routes:
        body = f'{{"age": "{CANARY}"}}'.encode() if method == "POST" else b""
        send(port, method, f"{path}?name={CANARY}&{CANARY}=1", body, HEADERS | {"Content-Type": "application/json"})
    name = CANARY.encode()
    for data in (
        name + b"\r\n\r\n",
        b"GET /" + name + b" HTTP/9.9\r\n\r\n",
        b"GET /" + name + b" HTTP/1.1\r\n" + name + b"\r\n\r\n",
        b"GET /" + name + b" HTTP/1.1\r\nHost: x\r\nX: " + name * 10_000 + b"\r\n\r\n",
        b"POST /raises/" + name + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + name + b"\r\n",
        b"POST /raises/" + name + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n" + name,
        b"GET /" + name + b" HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: " + name + b"\r\n\r\n",
        b"CONNECT " + name + b":443 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01" + name,
    ):
        throw(port, data)


def seen_in(text: str) -> list[str]:
    return [spelling for spelling in SPELLINGS if spelling.lower() in text.lower()]


@pytest.mark.parametrize("http_", ["h11"])
def test_a_name_that_is_sent_everywhere_is_nowhere_in_what_is_observed(tmp_path: Path, capfd: pytest.CaptureFixture[str], http_: str) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    metrics = ServerMetrics("0")
    with logging_to(tmp_path / "log", "debug") as (logs, written), MetricsServer(metrics) as metrics_server:
        observing = Observing(logs, metrics, Tracing(provider))
        with served(observing, careless_app(observing), http_) as port:
            attack(port)
            for answer in (send(port, "GET", f"/{CANARY}", headers=HEADERS), send(port, "GET", f"/thread/{CANARY}")):
                assert answer[1]["x-request-id"] not in HEADERS.values()
        counted = metrics_text(metrics_server)
    spans = exporter.get_finished_spans()
    _each_thing_was_seen(written, counted, len(spans))
    traced = "".join(span.to_json() for span in spans) + encoded(spans).decode()
    assert [seen_in(text) for text in (written.text, counted, traced, *capfd.readouterr())] == [[]] * 5


def _each_thing_was_seen(written: Written, counted: str, spans: int) -> None:
    """Otherwise a log that is empty would pass."""
    requests = written.lines("request")
    library = written.lines("library")
    routes = {line["route"] for line in requests}
    assert routes == {
        "/raises/{name}", "/ours/{name}", "/refuses/{name}", "/strict", "/background/{name}", "/task/{name}", "/thread/{name}", "/logs/{name}",
        "/stream/{name}", "(none)",
    }  # fmt: skip
    assert spans == len(requests) + 1  # a stage
    assert {line["status"] for line in requests} >= {200, 307, 403, 404, 405, 422, 499, 500}
    assert ["ValueError", "KeyError"] in [line.get("errors") for line in requests]
    assert [line["places"][-1].partition(":")[0] for line in requests if line["route"] == "/ours/{name}"] == ["clinical_ser/audit/checkpoint.py"]
    texts = {line.get("text") for line in library}
    assert {"A constant, %s.", "It failed.", "Its name is a name.", "Exception in ASGI application", "Invalid HTTP request received."} <= texts
    assert {"uvicorn", "asyncio", "root", "json"} <= {line["logger"] for line in library}
    assert [line["code"] for line in written.lines("uncaught")] == ["thread", "thread"]
    assert [line["code"] for line in written.lines("warning")] == ["UserWarning"]
    assert len(written.lines("(withheld)")) == 1
    assert 'route="/raises/{name}"' in counted
    assert 'clinical_ser_screenings_total{code="(other)",outcome="failed"} 1.0' in counted


def test_a_server_that_cannot_start_does_not_say_why_in_the_exceptions_words(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        raise ValueError(CANARY)
        yield

    with logging_to(tmp_path / "log") as (logs, written):
        observing = Observing(logs, ServerMetrics("0"))
        with served(observing, FastAPI(lifespan=lifespan, telemetry=NO_FASTAPI_TELEMETRY)):
            pass
    assert "Application startup failed. Exiting." in {line.get("text") for line in written.lines("library")}
    assert [seen_in(text) for text in (written.text, *capfd.readouterr())] == [[]] * 3


def test_the_search_would_find_it() -> None:
    for spelling in SPELLINGS:
        assert seen_in(f'{{"x":"{spelling.upper()}"}}')
    assert not seen_in('{"route":"/raises/{name}"}')


@pytest.mark.parametrize(
    "hang_up", [lambda connection: connection.close(), lambda connection: connection.shutdown(socket.SHUT_RDWR)], ids=["close", "reset"]
)
def test_a_real_client_that_goes_away_in_its_body_is_499(tmp_path: Path, hang_up: Callable[[socket.socket], None]) -> None:
    app = FastAPI(telemetry=NO_FASTAPI_TELEMETRY)

    @app.put("/body")
    async def body(request: Request) -> int:
        return len(await request.body())

    with logging_to(tmp_path / "log") as (logs, written):
        with served(Observing(logs, ServerMetrics("0")), app) as port, socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(b"PUT /body HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n" + b"x" * 2000)
            time.sleep(0.2)
            hang_up(connection)
            deadline = time.monotonic() + 20
            while not written.lines("request") and time.monotonic() < deadline:
                time.sleep(0.02)
        lines = written.lines()
    assert [(line["status"], line["route"], line["bytes_in"]) for line in lines if line["event"] == "request"] == [(499, "/body", 2000)]
    assert not [line for line in lines if line["level"] == "error"]
