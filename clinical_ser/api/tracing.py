"""Spans of requests and of the parts of a screening, for OpenTelemetry; nothing of it runs, or is imported, on a server that does not ask for it.

The one idea: a span has a name and three attributes that are on fixed lists. From the caller comes the id of its trace and nothing else, no baggage
and no vendor's state.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from clinical_ser.api.configuration import is_loopback
from clinical_ser.api.metrics import NO_ROUTE, Stage, known_method, route_template
from clinical_ser.errors import ServerSetupError

if TYPE_CHECKING:  # the SDK is installed with the extra `tracing`
    from fastapi.telemetry import TelemetryConfig
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

COLLECTOR = "http://127.0.0.1:4318"
"""Where an OpenTelemetry collector on the same machine listens (OTLP/HTTP)."""
SERVICE = "clinical-ser"
NO_FASTAPI_TELEMETRY: "TelemetryConfig" = {"tracing": False, "metrics": False, "logs": False, "operation_spans": False, "auto_configure": False}
"""For `FastAPI(telemetry=...)`. Its own, from 0.163 on, sends exceptions' texts and addresses as asked wherever the environment says."""

_TRACE_PARENT = b"traceparent"


class Tracing:
    """Makes spans.

    Parameters
    ----------
    provider
        OpenTelemetry's, with a processor that knows where spans go. `close` shuts it down.
    """

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer(SERVICE)
        self._propagator = TraceContextTextMapPropagator()

    def middleware(self, app: "ASGIApp") -> "ASGIApp":
        """Return an application whose requests are spans."""
        from opentelemetry.trace import SpanKind, StatusCode

        async def traced(scope: "Scope", receive: "Receive", send: "Send") -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            method = known_method(scope["method"])
            # An exception's text and stack would be events of the span.
            with self._tracer.start_as_current_span(
                method,
                self._caller(scope),
                SpanKind.SERVER,
                attributes={"http.request.method": method},
                record_exception=False,
                set_status_on_exception=False,
            ) as span:

                async def noting(message: "Message") -> None:
                    if message["type"] == "http.response.start":
                        span.set_attribute("http.response.status_code", message["status"])
                        if message["status"] >= 500:
                            span.set_status(StatusCode.ERROR)
                    await send(message)

                try:
                    await app(scope, receive, noting)
                finally:
                    route = route_template(scope)
                    if route != NO_ROUTE:
                        span.update_name(f"{method} {route}")
                        span.set_attribute("http.route", route)

        return traced

    def _caller(self, scope: "Scope") -> "Context":
        """Return the caller's trace; an empty context where it names none, or more than one."""
        from opentelemetry.context import Context

        named = [value for name, value in scope["headers"] if name == _TRACE_PARENT]
        return self._propagator.extract({"traceparent": named[0].decode("latin-1")} if len(named) == 1 else {}, Context())

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """Make what is done inside a span, below that of the request where there is one."""
        with self._tracer.start_as_current_span(stage.value, record_exception=False, set_status_on_exception=False):
            yield

    def close(self) -> None:
        """Send what is left, and stop."""
        self._provider.shutdown()


def open_tracing(collector: str = COLLECTOR, *, version: str, exported: Callable[[bool], None] = lambda _: None) -> Tracing:
    """Return tracing that sends its spans to a collector.

    Parameters
    ----------
    collector
        Its address without `/v1/traces`: https, or http on a loopback address.
    version
        The package's version.
    exported
        Told of each batch whether it arrived (`ServerMetrics.traces_exported`).

    Raises
    ------
    ServerSetupError
        OpenTelemetry is not installed; an address of another kind.
    """
    parts = urlsplit(collector)
    if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname))):
        raise ServerSetupError("The collector's address has to begin with https://; only a loopback address such as http://127.0.0.1 goes without.")
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        from clinical_ser.api.collector import CollectorExporter
    except ImportError:
        raise ServerSetupError("Tracing needs OpenTelemetry: install clinical-ser[tracing], or leave tracing out of server.toml.") from None
    # Not Resource.create(): it takes in what the environment says of the process, and what a plug-in finds out about the machine.
    provider = TracerProvider(resource=Resource({"service.name": SERVICE, "service.version": version}))
    provider.add_span_processor(BatchSpanProcessor(CollectorExporter(collector, exported)))
    return Tracing(provider)
