"""Sends spans to an OpenTelemetry collector: OTLP over HTTP, as JSON (opentelemetry.io/docs/specs/otlp, proto3's JSON mapping).

The one idea: it writes down the fields that our spans have, one by one, so that nothing else can leave; and it goes out as asking a witness does,
with bounds on time and size and without following anyone anywhere.
"""

import json
from collections.abc import Callable, Mapping, Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from clinical_ser.audit.witness_http import post
from clinical_ser.errors import WitnessError

TRACES = "/v1/traces"
TIMEOUT_S = 10.0
_MAX_ANSWER_BYTES = 64 * 1024
_ATTRIBUTES = ("http.request.method", "http.route", "http.response.status_code")
_RESOURCE = ("service.name", "service.version")


class CollectorExporter(SpanExporter):
    """What a span processor hands its batches to.

    Parameters
    ----------
    collector
        Its address, without `/v1/traces`.
    exported
        Told of each batch whether it arrived.
    """

    def __init__(self, collector: str, exported: Callable[[bool], None]) -> None:
        self._url = collector.rstrip("/") + TRACES
        self._exported = exported

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch; one that does not arrive is not tried again, the next may."""
        try:
            answer = post(self._url, encoded(spans), content_type="application/json", timeout_s=TIMEOUT_S, max_answer_bytes=_MAX_ANSWER_BYTES)
            sent = answer.status == 200
        except WitnessError:  # of any service that does not answer
            sent = False
        self._exported(sent)
        return SpanExportResult.SUCCESS if sent else SpanExportResult.FAILURE


def encoded(spans: Sequence[ReadableSpan]) -> bytes:
    """Return an ExportTraceServiceRequest."""
    resource = _attributes(spans[0].resource.attributes, _RESOURCE) if spans else []
    scope = {"scope": {"name": "clinical-ser"}, "spans": [_span(span) for span in spans]}
    return json.dumps({"resourceSpans": [{"resource": {"attributes": resource}, "scopeSpans": [scope]}]}, separators=(",", ":")).encode("ascii")


def _span(span: ReadableSpan) -> dict[str, object]:
    written: dict[str, object] = {
        "traceId": f"{span.context.trace_id:032x}",
        "spanId": f"{span.context.span_id:016x}",
        "name": span.name,
        # Of the protocol, where 0 is "unspecified".
        "kind": span.kind.value + 1,
        # 64-bit numbers are strings in proto3's JSON.
        "startTimeUnixNano": str(span.start_time),
        "endTimeUnixNano": str(span.end_time),
        "attributes": _attributes(span.attributes or {}, _ATTRIBUTES),
        "status": {"code": span.status.status_code.value},
    }
    if span.parent is not None:
        written["parentSpanId"] = f"{span.parent.span_id:016x}"
    return written


def _attributes(values: Mapping[str, object], names: Sequence[str]) -> list[dict[str, object]]:
    return [
        {"key": name, "value": {"intValue": str(value)} if isinstance(value, int) else {"stringValue": str(value)}}
        for name in names
        if (value := values.get(name)) is not None
    ]
