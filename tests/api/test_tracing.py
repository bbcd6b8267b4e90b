"""Spans: named by the route, with three attributes, and out of nothing else."""

import asyncio
import contextlib
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI, HTTPException
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from clinical_ser.api.collector import encoded
from clinical_ser.api.metrics import ServerMetrics, Stage
from clinical_ser.api.observing import Observing
from clinical_ser.api.tracing import NO_FASTAPI_TELEMETRY, Tracing, open_tracing
from clinical_ser.errors import ServerSetupError
from tests.api.observed import ask, asking, logging_to, samples
from tests.api.test_observing import fastapi_app

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALLER = (b"traceparent", f"00-{TRACE}-{PARENT}-01".encode())


class Traced:
    """An application whose spans stay in memory."""

    def __init__(self, path: Path) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(resource=Resource({"service.name": "x", "service.version": "1", "host.name": "secret"}))
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracing = Tracing(provider)
        self.metrics = ServerMetrics("0")
        self._stack = contextlib.ExitStack()
        logs, _ = self._stack.enter_context(logging_to(path))
        self.observing = Observing(logs, self.metrics, self.tracing)

    def close(self) -> None:
        self._stack.close()

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()


@pytest.fixture
def traced(tmp_path: Path) -> Iterator[Traced]:
    made = Traced(tmp_path / "log")
    yield made
    made.close()


def test_a_request_is_a_span_with_the_routes_name_and_three_attributes(traced: Traced) -> None:
    answer = ask(traced.observing.around(fastapi_app()), "/outer/inner/jane-doe?q=jane-doe")
    (span,) = traced.spans
    assert (answer.status, span.name, span.kind, span.parent) == (200, "GET /outer/inner/{which}", SpanKind.SERVER, None)
    assert span.attributes == {"http.request.method": "GET", "http.route": "/outer/inner/{which}", "http.response.status_code": 200}
    assert (span.events, span.links, span.status.status_code) == ((), (), StatusCode.UNSET)


def test_what_no_route_takes_has_no_route_in_its_span(traced: Traced) -> None:
    ask(traced.observing.around(fastapi_app()), "/jane-doe", "BREW")
    (span,) = traced.spans
    assert span.name == "_OTHER"
    assert span.attributes == {"http.request.method": "_OTHER", "http.response.status_code": 404}


def test_a_failure_is_an_error_without_its_words(traced: Traced) -> None:
    ask(traced.observing.around(fastapi_app()), "/broken")
    (span,) = traced.spans
    assert (span.status.status_code, span.status.description, span.events) == (StatusCode.ERROR, None, ())
    assert span.attributes["http.response.status_code"] == 500


def test_a_refusal_is_no_error(traced: Traced) -> None:
    ask(traced.observing.around(fastapi_app()), "/refused")
    assert traced.spans[0].status.status_code is StatusCode.UNSET


def test_the_callers_trace_goes_on(traced: Traced) -> None:
    ask(traced.observing.around(fastapi_app()), "/things/a", headers=[CALLER])
    (span,) = traced.spans
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}", span.parent.is_remote) == (TRACE, PARENT, True)


@pytest.mark.parametrize(
    "headers",
    [
        [(b"traceparent", b"jane")],
        [(b"traceparent", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01")],
        [(b"traceparent", "00-名".encode())],
        [CALLER, (b"traceparent", b"00-" + b"1" * 32 + b"-" + b"1" * 16 + b"-01")],
        [],
    ],
    ids=["words", "zeros", "bytes", "two", "none"],
)
def test_without_one_proper_trace_of_the_caller_a_new_one_begins(traced: Traced, headers: list[tuple[bytes, bytes]]) -> None:
    ask(traced.observing.around(fastapi_app()), "/things/a", headers=headers)
    (span,) = traced.spans
    assert span.parent is None


def test_no_baggage_and_no_vendors_state_is_taken_from_the_caller(traced: Traced) -> None:
    seen = []

    async def app(scope, receive, send) -> None:
        seen.append((dict(baggage.get_all()), dict(trace.get_current_span().get_span_context().trace_state)))

    ask(traced.observing.around(app), headers=[CALLER, (b"baggage", b"name=jane"), (b"tracestate", b"jane=doe")])
    assert seen == [({}, {})]
    assert traced.spans[0].parent is not None


def test_baggage_around_the_server_does_not_come_in_either(traced: Traced) -> None:
    token = context.attach(baggage.set_baggage("name", "jane"))
    try:
        ask(traced.observing.around(fastapi_app()), "/things/a", headers=[CALLER])
    finally:
        context.detach(token)
    assert f"{traced.spans[0].context.trace_id:032x}" == TRACE


def test_parts_of_a_screening_are_spans_below_the_request_and_are_counted(traced: Traced) -> None:
    async def app(scope, receive, send) -> None:
        with traced.observing.stage(Stage.WORK):
            await asyncio.sleep(0)
        await asyncio.to_thread(record)

    def record() -> None:
        with traced.observing.stage(Stage.RECORD):
            pass

    ask(traced.observing.around(app))
    work, record_span, request = traced.spans
    assert [work.name, record_span.name] == ["work", "record"]
    assert {work.parent.span_id, record_span.parent.span_id} == {request.context.span_id}
    assert not work.attributes
    found = samples(traced.metrics)
    assert found['clinical_ser_stage_duration_seconds_count{stage="work"}'] == 1
    assert found['clinical_ser_stage_duration_seconds_count{stage="record"}'] == 1


def test_a_part_that_fails_is_a_span_without_the_exceptions_words(traced: Traced) -> None:
    with pytest.raises(ValueError, match="jane"), traced.observing.stage(Stage.WORK):
        raise ValueError("jane")
    (span,) = traced.spans
    assert (span.events, span.status.description) == ((), None)
    assert samples(traced.metrics)['clinical_ser_stage_duration_seconds_count{stage="work"}'] == 1


def test_requests_at_once_keep_their_parts_apart(traced: Traced) -> None:
    async def app(scope, receive, send) -> None:
        await asyncio.sleep(0)
        with traced.observing.stage(Stage.WORK):
            await asyncio.sleep(0.001)

    async def many() -> None:
        await asyncio.gather(*(asking(traced.observing.around(app)) for _ in range(20)))

    asyncio.run(many())
    requests = {span.context.span_id: span.context.trace_id for span in traced.spans if span.kind is SpanKind.SERVER}
    parts = [span for span in traced.spans if span.kind is SpanKind.INTERNAL]
    assert len(requests) == len(parts) == len({span.parent.span_id for span in parts}) == 20
    assert all(requests[span.parent.span_id] == span.context.trace_id for span in parts)


def test_what_is_no_request_is_no_span(traced: Traced) -> None:
    async def app(scope, receive, send) -> None:
        pass

    asyncio.run(traced.observing.around(app)({"type": "lifespan"}, None, None))
    assert traced.spans == ()


# FastAPI's own


def test_fastapis_own_telemetry_stays_off_where_a_provider_is_there() -> None:
    """It would send exceptions' texts and addresses as asked; a provider of the whole process is set in a process of its own."""
    program = """
import asyncio, sys
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from clinical_ser.api.tracing import NO_FASTAPI_TELEMETRY
from tests.api.observed import ask
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
ask(FastAPI(telemetry=NO_FASTAPI_TELEMETRY), "/jane")
print(len(exporter.get_finished_spans()))
ask(FastAPI(), "/jane")
print(len(exporter.get_finished_spans()))
"""
    environment = {"FASTAPI_OTEL_AUTO_CONFIGURE": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "PATH": "/usr/bin:/bin"}
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60, env=environment)
    assert ended.stdout.split() == ["0", "1"]


# The collector


class Collector:
    """Takes what is sent, and answers as told."""

    def __init__(self) -> None:
        self.got: list[tuple[str, str | None, dict]] = []
        self.status = 200
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.got.append((self.path, self.headers["Content-Type"], json.loads(body)))
                self.send_response(outer.status)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def test_spans_go_to_the_collector_as_otlp(collector: Collector) -> None:
    metrics = ServerMetrics("0")
    tracing = open_tracing(collector.url, version="1.2.3", exported=metrics.traces_exported)

    async def app(scope, receive, send) -> None:
        with tracing.stage(Stage.WORK):
            pass
        await fastapi_app()(scope, receive, send)

    ask(tracing.middleware(app), "/outer/inner/jane-doe", headers=[CALLER])
    tracing.close()
    ((path, content_type, body),) = collector.got
    assert (path, content_type) == ("/v1/traces", "application/json")
    (resource,) = body["resourceSpans"]
    assert resource["resource"] == {
        "attributes": [
            {"key": "service.name", "value": {"stringValue": "clinical-ser"}},
            {"key": "service.version", "value": {"stringValue": "1.2.3"}},
        ]
    }
    work, request = resource["scopeSpans"][0]["spans"]
    assert (work["name"], work["kind"], work["traceId"], work["parentSpanId"]) == ("work", 1, TRACE, request["spanId"])
    times = int(request.pop("startTimeUnixNano")), int(work["startTimeUnixNano"]), int(request.pop("endTimeUnixNano"))
    assert list(times) == sorted(times)
    assert len(bytes.fromhex(request.pop("spanId"))) == 8
    assert request == {
        "traceId": TRACE,
        "parentSpanId": PARENT,
        "name": "GET /outer/inner/{which}",
        "kind": 2,
        "attributes": [
            {"key": "http.request.method", "value": {"stringValue": "GET"}},
            {"key": "http.route", "value": {"stringValue": "/outer/inner/{which}"}},
            {"key": "http.response.status_code", "value": {"intValue": "200"}},
        ],
        "status": {"code": 0},
    }
    assert samples(metrics)['clinical_ser_trace_exports_total{outcome="sent"}'] == 1


def test_a_span_with_more_in_it_leaves_with_no_more(traced: Traced) -> None:
    with traced.tracing._tracer.start_as_current_span("x") as span:
        span.set_attribute("patient", "jane")
        span.add_event("jane", {"name": "jane"})
        span.set_status(StatusCode.ERROR, "jane")
    text = encoded(traced.spans).decode()
    assert "jane" not in text
    assert "secret" not in text  # of the resource
    assert json.loads(text)["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["status"] == {"code": 2}


@pytest.mark.parametrize("status", [400, 429, 503, 302])
def test_a_batch_that_is_refused_is_counted(collector: Collector, status: int) -> None:
    collector.status = status
    assert exports(collector.url) == [False]
    assert len(collector.got) == 1


def exports(url: str) -> list[bool]:
    told: list[bool] = []
    tracing = open_tracing(url, version="1", exported=told.append)
    with tracing.stage(Stage.WORK):
        pass
    tracing.close()
    return told


def test_a_collector_that_is_not_there_is_counted_and_stops_nothing(collector: Collector) -> None:
    collector.close()
    assert exports(collector.url) == [False]
    collector.__init__()  # for the fixture's end


@pytest.mark.parametrize("url", ["http://collector.example:4318", "ftp://127.0.0.1", "127.0.0.1:4318", "", "https://", "http://0.0.0.0:4318"])
def test_spans_do_not_go_over_a_network_in_the_clear(url: str) -> None:
    with pytest.raises(ServerSetupError, match=r"begin with https://") as caught:
        open_tracing(url, version="1")
    assert "example" not in str(caught.value)


def test_without_opentelemetrys_sdk_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("opentelemetry.sdk")]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ServerSetupError, match=r"install clinical-ser\[tracing\]"):
        open_tracing(version="1")


def test_a_server_without_tracing_imports_no_sdk() -> None:
    program = "import sys, clinical_ser.api.observing\nprint([name for name in sys.modules if name.startswith('opentelemetry.sdk')])"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert ended.stdout.strip() == "[]"


def test_the_environment_adds_nothing_to_what_is_sent(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "patient=jane")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "jane")
    exports(collector.url)
    assert "jane" not in json.dumps(collector.got)


def test_an_application_that_refuses_inside_a_dependency_is_still_named(traced: Traced) -> None:
    app = FastAPI(telemetry=NO_FASTAPI_TELEMETRY)

    @app.get("/a/{b}")
    async def a(b: int) -> None:
        raise HTTPException(404, "jane")

    for path in ("/a/jane", "/a/1"):
        ask(traced.observing.around(app), path)
    assert [(span.name, span.attributes["http.response.status_code"]) for span in traced.spans] == [("GET /a/{b}", 422), ("GET /a/{b}", 404)]
