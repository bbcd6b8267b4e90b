"""What can be counted about the server, for Prometheus.

The one idea: every label has a fixed list of values, and what is not on it is folded into one; nobody outside can make a time series.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

NO_ROUTE = "(none)"
"""The route of whatever no route takes."""
OTHER_METHOD = "_OTHER"
"""The method that is none of HTTP's own, as OpenTelemetry's conventions spell it."""
OTHER = "(other)"
CLIENT_GONE = 499
"""The status, as nginx counts it, of a request whose client did not wait for the answer."""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
MAX_ROUTES = 100
"""The server has some forty; a template that names more than can be meant is a mistake of ours, and is cut off here."""
MAX_CODES = 40
_CODE = re.compile(r"[a-z0-9_-]{1,40}")
_MAX_LABEL = 100
_GROUPS = {hundreds: f"{hundreds}xx" for hundreds in range(1, 6)}

# From a GET out of the database (under a millisecond) to an hour's interview.
_REQUEST_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_STAGE_BUCKETS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
# A commit is a sync of the disk: 3 ms to 11 ms where it is healthy (docs/benchmarks.md).
_COMMIT_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


class Outcome(StrEnum):
    """How a request for a screening, or an accepted job, ended."""

    ANSWERED = "answered"
    FROM_STORE = "from_store"
    """The same recording, model and person were answered before."""
    ACCEPTED = "accepted"
    """For later; it is counted again when it is answered or has failed."""
    FAILED = "failed"
    SHED = "shed"
    """Refused because too many wait."""


class Stage(StrEnum):
    """A part of a screening."""

    READ_BODY = "read_body"
    WAIT = "wait"
    """For a worker."""
    WORK = "work"
    RECORD = "record"
    """Until the audit record is durable."""


class Restart(StrEnum):
    """Why a worker was replaced."""

    CRASH = "crash"
    TIME = "time"
    MEMORY = "memory"


class Denial(StrEnum):
    """Why a request was refused to whoever made it."""

    UNAUTHENTICATED = "unauthenticated"
    EXPIRED = "expired"
    REPLAYED = "replayed"
    SCOPE = "scope"
    TENANT = "tenant"
    """Someone else's: answered as if it were not there."""


class Limit(StrEnum):
    """Which limit a client ran into."""

    RATE = "rate"
    CONCURRENCY = "concurrency"


class Switch(StrEnum):
    """What came of a change of champion in the registry."""

    DONE = "done"
    FAILED = "failed"
    """The new model cannot be used; the one before it goes on answering."""


class Counted(StrEnum):
    """What became of a recording that the monitoring was to count."""

    COUNTED = "counted"
    AGAIN = "again"
    """Its person was counted lately."""
    FAILED = "failed"


class Shadowed(StrEnum):
    """What became of a recording that a shadow was to hear too."""

    COUNTED = "counted"
    SKIPPED = "skipped"
    """Too many waited already."""
    FAILED = "failed"


class ServerMetrics:
    """The server's counters, in a registry of their own. Threads may share it.

    Parameters
    ----------
    version
        The package's version.
    lost_lines
        How many lines the log lost (`Logs.lost`), asked when the metrics are read.
    """

    def __init__(self, version: str, *, lost_lines: Callable[[], int] = lambda: 0) -> None:
        self._registry = CollectorRegistry()
        own = _Registered(self._registry)
        self._requests = own.histogram(
            "http_request_duration_seconds", "Requests from the first byte to the last.", _REQUEST_BUCKETS_S, "route", "method", "status"
        )
        self._in_progress = own.gauge("http_requests_in_progress", "Requests that are being answered.")
        self._screenings = own.counter("screenings", "Screenings by how they ended; code says why they failed.", "outcome", "code")
        self._queue = own.gauge("queue_length", "Accepted recordings that wait.")
        self._running = own.gauge("jobs_running", "Accepted recordings that are worked on.")
        self._stages = own.histogram("stage_duration_seconds", "Parts of a screening.", _STAGE_BUCKETS_S, "stage")
        self._workers = own.gauge("workers_alive", "Worker processes that can take a recording.")
        self._restarts = own.counter("worker_restarts", "Worker processes that were replaced, by why.", "reason")
        self._records = own.counter("audit_records", "Records that were committed to the audit log.")
        self._commits = own.histogram("audit_commit_duration_seconds", "Waiting for a record to be durable.", _COMMIT_BUCKETS_S)
        self._log_size = own.gauge("audit_log_records", "Records in the audit log.")
        self._denied = own.counter("requests_denied", "Requests that were refused to whoever made them, by why.", "reason")
        self._limited = own.counter("requests_limited", "Requests beyond a client's limits.", "limit")
        self._traces = own.counter("trace_exports", "Batches of spans that were sent to the collector, or not.", "outcome")
        self._ready = own.gauge("ready", "1 while /readyz says so.")
        self._models = own.gauge("model_info", "Models that answer.", "name", "version", "digest")
        self._counted = own.counter("recordings_counted", "Recordings for the journal of counts, by what became of them.", "outcome")
        self._shadowed = own.counter("shadow_recordings", "Recordings for a shadow, by what became of them.", "outcome")
        self._switches = own.counter("model_switches", "Changes of champion in the registry, by what came of them.", "outcome")
        own.gauge("build_info", "This program.", "version").labels(version[:_MAX_LABEL]).set(1)
        self._registry.register(_LostLines(lost_lines))
        ProcessCollector(registry=self._registry)
        self._routes: set[str] = set()
        self._codes: set[str] = set()
        self._loaded: dict[str, tuple[str, str, str]] = {}
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        # A counter that appears with its first event has no increase that an alert could see.
        for outcome in Outcome:
            if outcome is not Outcome.FAILED:
                self._screenings.labels(outcome, "")
        for stage in Stage:
            self._stages.labels(stage)
        for counter, reasons in (
            (self._restarts, Restart),
            (self._denied, Denial),
            (self._limited, Limit),
            (self._switches, Switch),
            (self._counted, Counted),
            (self._shadowed, Shadowed),
        ):
            for reason in reasons:
                counter.labels(reason)
        for sent in ("sent", "failed"):
            self._traces.labels(sent)

    def request_began(self) -> None:
        """Count a request that is being answered, until `request`."""
        self._in_progress.inc()

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request that ended."""
        self._in_progress.dec()
        group = _GROUPS.get(status // 100, OTHER) if status != CLIENT_GONE else str(CLIENT_GONE)
        self._requests.labels(_bounded(route, self._routes, MAX_ROUTES), known_method(method), group).observe(seconds)

    def screening(self, outcome: Outcome, code: str = "") -> None:
        """Count how a screening ended; with a code if it failed."""
        if outcome is Outcome.FAILED:
            self._screenings.labels(outcome, _bounded(code, self._codes, MAX_CODES) if _CODE.fullmatch(code) else OTHER).inc()
        else:
            self._screenings.labels(outcome, "").inc()

    def queue(self, waiting: int, running: int) -> None:
        """Say how many accepted recordings wait, and how many are worked on."""
        self._queue.set(waiting)
        self._running.set(running)

    def stage(self, stage: Stage, seconds: float) -> None:
        """Count a part of a screening."""
        self._stages.labels(stage).observe(seconds)

    def workers(self, alive: int) -> None:
        """Say how many workers there are."""
        self._workers.set(alive)

    def worker_restarted(self, reason: Restart) -> None:
        """Count a worker that was replaced."""
        self._restarts.labels(reason).inc()

    def recorded(self, seconds: float, *, log_size: int, records: int = 1) -> None:
        """Count records that became durable, and how long that took."""
        self._records.inc(records)
        self._commits.observe(seconds)
        self._log_size.set(log_size)

    def log_size(self, records: int) -> None:
        """Say how many records the audit log has."""
        self._log_size.set(records)

    def denied(self, reason: Denial) -> None:
        """Count a request that was refused to whoever made it."""
        self._denied.labels(reason).inc()

    def limited(self, limit: Limit) -> None:
        """Count a request beyond a client's limits."""
        self._limited.labels(limit).inc()

    def traces_exported(self, sent: bool) -> None:
        """Count a batch of spans that was sent, or was not."""
        self._traces.labels("sent" if sent else "failed").inc()

    def ready(self, ready: bool) -> None:
        """Say what /readyz says."""
        self._ready.set(ready)

    def model_loaded(self, name: str, version: str, digest: str) -> None:
        """Say which model answers under a name; what answered under it before is forgotten."""
        labels = (name[:_MAX_LABEL], version[:_MAX_LABEL], digest[:_MAX_LABEL])
        if (before := self._loaded.get(name)) is not None:
            self._models.remove(*before)
        self._models.labels(*labels).set(1)
        self._loaded[name] = labels

    def model_unloaded(self, name: str) -> None:
        """Say that no model answers under a name any more."""
        if (before := self._loaded.pop(name, None)) is not None:
            self._models.remove(*before)

    def model_switched(self, outcome: Switch) -> None:
        """Count a change of champion in the registry."""
        self._switches.labels(outcome).inc()

    def recording_counted(self, outcome: Counted) -> None:
        """Count what became of a recording for the journal of counts."""
        self._counted.labels(outcome).inc()

    def shadowed(self, outcome: Shadowed) -> None:
        """Count what became of a recording for a shadow."""
        self._shadowed.labels(outcome).inc()

    def exposition(self) -> bytes:
        """Return all of it in Prometheus' text format (0.0.4)."""
        return generate_latest(_WithoutCreated(self._registry))


def known_method(method: str) -> str:
    """Return a method where it is one of HTTP's, one word for all others."""
    return method if method in METHODS else OTHER_METHOD


def route_template(scope: Mapping[str, Any]) -> str:
    """Return the template of the route that took a request, after routing: what stands in the source (`/v1/screenings/{id}`).

    Starlette puts the route into the ASGI scope, and FastAPI, where a router was included under a prefix, the route with that prefix beside it.
    """
    included = scope.get("fastapi", {}).get("effective_route_context")
    for route in (getattr(included, "starlette_route", None), included, scope.get("route")):
        template = getattr(route, "path_format", None)
        if isinstance(template, str) and template:
            return template
    return NO_ROUTE


def _bounded(value: str, known: set[str], most: int) -> str:
    if value in known:
        return value
    if len(known) >= most or len(value) > _MAX_LABEL:
        return OTHER
    known.add(value)
    return value


_PREFIX = "clinical_ser_"


@dataclass(frozen=True)
class _Registered:
    """Makes metrics that bear the program's name."""

    registry: CollectorRegistry

    def counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(_PREFIX + name, about, labels, registry=self.registry)

    def gauge(self, name: str, about: str, *labels: str) -> Gauge:
        return Gauge(_PREFIX + name, about, labels, registry=self.registry)

    def histogram(self, name: str, about: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(_PREFIX + name, about, labels, buckets=buckets, registry=self.registry)


@dataclass(frozen=True)
class _LostLines(Collector):
    lost: Callable[[], int]

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(_PREFIX + "log_lines_lost", "Lines of the log that could not be written.", value=self.lost())


@dataclass(frozen=True)
class _WithoutCreated(Collector):
    """Leaves out when each series began, which is another series for each, and which Prometheus does not need."""

    registry: CollectorRegistry

    def collect(self) -> Iterator[Metric]:
        for metric in self.registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
