"""What is counted, that nobody outside can make more of it, and the port that it is read from."""

import contextlib
import http.client
import os
import random
import socket
import string
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from clinical_ser.api import metrics_server
from clinical_ser.api.metrics import MAX_CODES, MAX_ROUTES, Denial, Limit, Outcome, Restart, ServerMetrics, Stage
from clinical_ser.api.metrics_server import MetricsServer
from clinical_ser.api.observing import Observing
from clinical_ser.errors import ServerSetupError
from tests.api.observed import ask, logging_to, samples
from tests.api.test_observing import fastapi_app


@pytest.fixture
def metrics() -> ServerMetrics:
    return ServerMetrics("1.2.3")


# What is counted


def test_counters_are_there_before_anything_happened(metrics: ServerMetrics) -> None:
    found = samples(metrics)
    for name in (
        *(f'screenings_total{{code="",outcome="{each}"}}' for each in ("answered", "from_store", "accepted", "shed")),
        *(f'stage_duration_seconds_count{{stage="{each}"}}' for each in ("read_body", "wait", "work", "record")),
        *(f'worker_restarts_total{{reason="{each}"}}' for each in ("crash", "time", "memory")),
        *(f'requests_denied_total{{reason="{each}"}}' for each in ("unauthenticated", "expired", "replayed", "scope", "tenant")),
        *(f'requests_limited_total{{limit="{each}"}}' for each in ("rate", "concurrency")),
        "audit_records_total",
        "audit_commit_duration_seconds_count",
        "log_lines_lost_total",
        "ready",
    ):
        assert found["clinical_ser_" + name] == 0, name


def test_what_is_told_is_counted(metrics: ServerMetrics) -> None:
    metrics.screening(Outcome.ANSWERED)
    metrics.screening(Outcome.FAILED, "not_audio")
    metrics.queue(waiting=7, running=2)
    metrics.stage(Stage.WAIT, 0.2)
    metrics.workers(2)
    metrics.worker_restarted(Restart.MEMORY)
    metrics.recorded(0.004, log_size=1000, records=3)
    metrics.denied(Denial.TENANT)
    metrics.limited(Limit.RATE)
    metrics.ready(True)
    metrics.traces_exported(False)
    found = {name.removeprefix("clinical_ser_"): value for name, value in samples(metrics).items()}
    assert found['screenings_total{code="",outcome="answered"}'] == 1
    assert found['screenings_total{code="not_audio",outcome="failed"}'] == 1
    assert (found["queue_length"], found["jobs_running"], found["workers_alive"], found["ready"]) == (7, 2, 2, 1)
    assert found['stage_duration_seconds_bucket{le="0.1",stage="wait"}'] == 0
    assert found['stage_duration_seconds_bucket{le="0.25",stage="wait"}'] == 1
    assert found['worker_restarts_total{reason="memory"}'] == 1
    assert (found["audit_records_total"], found["audit_log_records"], found["audit_commit_duration_seconds_count"]) == (3, 1000, 1)
    assert found['requests_denied_total{reason="tenant"}'] == 1
    assert found['requests_limited_total{limit="rate"}'] == 1
    assert found['trace_exports_total{outcome="failed"}'] == 1
    metrics.log_size(1001)
    metrics.ready(False)
    assert (samples(metrics)["clinical_ser_audit_log_records"], samples(metrics)["clinical_ser_ready"]) == (1001, 0)


def test_one_model_answers_under_a_name_and_this_program_says_its_version(metrics: ServerMetrics) -> None:
    metrics.model_loaded("a", "1", "sha256:aa")
    metrics.model_loaded("b", "1", "sha256:bb")
    metrics.model_loaded("a", "2", "sha256:cc")
    assert sorted(name for name in samples(metrics) if "_info" in name) == [
        'clinical_ser_build_info{version="1.2.3"}',
        'clinical_ser_model_info{digest="sha256:bb",name="b",version="1"}',
        'clinical_ser_model_info{digest="sha256:cc",name="a",version="2"}',
    ]


def test_lost_lines_of_the_log_are_asked_for_when_read() -> None:
    lost = 3
    metrics = ServerMetrics("0", lost_lines=lambda: lost)
    lost = 5
    assert samples(metrics)["clinical_ser_log_lines_lost_total"] == 5


def test_the_process_is_measured_and_no_series_says_when_it_was_made(metrics: ServerMetrics) -> None:
    found = samples(metrics)
    assert found["process_resident_memory_bytes"] > 1e6
    assert found["process_open_fds"] >= 3
    assert not [name for name in found if "_created" in name]


def test_two_sets_of_metrics_do_not_share_anything(metrics: ServerMetrics) -> None:
    other = ServerMetrics("1")
    metrics.denied(Denial.SCOPE)
    assert samples(other)['clinical_ser_requests_denied_total{reason="scope"}'] == 0


def test_the_text_is_what_prometheus_reads(metrics: ServerMetrics) -> None:
    families = {family.name: family for family in text_string_to_metric_families(metrics.exposition().decode())}
    assert families["clinical_ser_stage_duration_seconds"].type == "histogram"
    assert all(family.documentation for family in families.values())


def test_threads_lose_no_count(metrics: ServerMetrics) -> None:
    def work() -> None:
        for _ in range(2000):
            metrics.request_began()
            metrics.request("/x", "GET", 200, 0.001)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = samples(metrics)
    assert found['clinical_ser_http_request_duration_seconds_count{method="GET",route="/x",status="2xx"}'] == 8000
    assert found["clinical_ser_http_requests_in_progress"] == 0


# Nobody outside makes a series


def test_a_thousand_random_requests_make_no_series_that_forty_plain_ones_did_not(tmp_path: Path, metrics: ServerMetrics) -> None:
    random_ = random.Random(7)
    letters = string.ascii_letters + string.digits + '/%{}"\\\n.é名'

    def word(most: int) -> str:
        return "".join(random_.choices(letters, k=random_.randint(1, most)))

    with logging_to(tmp_path / "log") as (logs, written):
        app = Observing(logs, metrics).around(fastapi_app())
        known = ["/things/", "/outer/inner/", "/body", "/broken", "/refused", ""]

        def requests(count: int) -> None:
            for _ in range(count):
                method = random_.choice(["GET", "POST", "PUT", word(8).upper()])
                ask(app, "/" + word(30) if random_.random() < 0.5 else random_.choice(known) + word(10), method)

        for path in ("/things/a", "/outer/inner/a", "/body", "/broken", "/refused", "/nowhere", "/things/a/", "/readyz"):
            for method in ("GET", "POST", "PUT", "DELETE", "BREW"):
                ask(app, path, method)
        before = set(samples(metrics))
        requests(1000)
        lines = written.lines("request")
    after = set(samples(metrics))
    assert len(lines) >= 1040
    assert sorted(name for name in after - before if "_count" in name) == []
    # Seven routes and "(none)", with some methods and classes each, of 18 series; and what is always there.
    assert len(after) < 1000
    assert {line["route"] for line in lines} <= {
        "/things/{name}", "/outer/inner/{which}", "/body", "/broken", "/refused", "/busy", "/readyz", "(none)",
    }  # fmt: skip


def test_even_our_own_mistakes_make_a_bounded_number_of_series(metrics: ServerMetrics) -> None:
    for number in range(500):
        metrics.request(f"/things/{number}", "GET", 200 + number, 0.1)
        metrics.screening(Outcome.FAILED, f"code_{number}")
        metrics.screening(Outcome.FAILED, f"Jane Doe {number}")
        metrics.screening(Outcome.ANSWERED, f"code_{number}")
    found = samples(metrics)
    codes = [name for name in found if name.startswith("clinical_ser_screenings") and 'outcome="failed"' in name]
    assert len(codes) == MAX_CODES + 1
    assert not [name for name in found if "Jane" in name]
    routes = {name.partition('route="')[2].partition('"')[0] for name in found if 'route="' in name}
    assert len(routes) == MAX_ROUTES + 1
    assert found['clinical_ser_screenings_total{code="",outcome="answered"}'] == 500
    assert sum(value for name, value in found.items() if name.startswith("clinical_ser_http_request_duration_seconds_count")) == 500


def test_a_very_long_route_is_not_a_label(metrics: ServerMetrics) -> None:
    metrics.request("/" + "x" * 1000, "GET", 200, 0.1)
    assert "x" * 101 not in metrics.exposition().decode()


# The port


@pytest.fixture
def server(metrics: ServerMetrics) -> Iterator[MetricsServer]:
    with MetricsServer(metrics) as running:
        yield running


def send(server: MetricsServer, method: str, path: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path)
        with connection.getresponse() as response:
            return response, response.read()


def raw(server: MetricsServer, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        answer = b""
        with contextlib.suppress(OSError):  # whoever is refused early is cut off while sending
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                answer += part
        return answer


def test_prometheus_gets_the_metrics(server: MetricsServer, metrics: ServerMetrics) -> None:
    metrics.workers(2)
    response, body = send(server, "GET", "/metrics")
    assert (response.status, response.getheader("Content-Type")) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert response.getheader("Cache-Control") == "no-store"
    assert b"\nclinical_ser_workers_alive 2.0\n" in body
    assert response.getheader("Server") is None


@pytest.mark.parametrize("path", ["/", "/metrics/", "/metrics?name[]=x", "/favicon.ico", "/../metrics"])
def test_nothing_else_is_there(server: MetricsServer, path: str) -> None:
    response, body = send(server, "GET", path)
    assert (response.status, body) == (404, b"Not Found\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"])
def test_nothing_else_is_done(server: MetricsServer, method: str) -> None:
    response, body = send(server, method, "/metrics")
    assert (response.status, response.getheader("Allow"), body) == (405, "GET", b"Method Not Allowed\n")


def test_a_head_request_gets_no_body(server: MetricsServer) -> None:
    assert raw(server, b"HEAD /metrics HTTP/1.1\r\n\r\n").endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"canary\r\n\r\n", b""),
        (b"GET /canary canary/1.1\r\n\r\n", b"Bad Request"),
        (b"GET /canary HTTP/9.9\r\n\r\n", b"Version Not Supported"),
        (b"GET /" + b"canary" * 20_000 + b" HTTP/1.1\r\n\r\n", b""),
        (b"GET /metrics HTTP/1.1\r\n" + b"canary: x\r\n" * 200 + b"\r\n", b"431"),
        (b"<canary> /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"GET /canary HTTP/1.1\r\n\r\n", b"404"),
    ],
    ids=["no request", "bad version", "future version", "long address", "many headers", "odd method", "elsewhere"],
)
def test_nothing_that_is_sent_comes_back(server: MetricsServer, request_: bytes, status: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    answer = raw(server, request_)
    assert b"canary" not in answer
    assert status in answer.partition(b"\r\n")[0]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "hospital.example", "::ffff:127.0.0.1", ""])
def test_beyond_loopback_it_does_not_listen(metrics: ServerMetrics, host: str) -> None:
    with pytest.raises(ServerSetupError, match="Without TLS metrics are served on a loopback address only; listen on 127"):
        MetricsServer(metrics, host)


def test_it_listens_on_ipv6_too(metrics: ServerMetrics) -> None:
    if not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists():
        pytest.skip("no IPv6 here")
    with MetricsServer(metrics, "::1") as server, socket.create_connection(("::1", server.port), timeout=20) as connection:
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.0 200")


def test_a_port_that_is_taken_or_none_is_refused(metrics: ServerMetrics, server: MetricsServer) -> None:
    with pytest.raises(ServerSetupError, match="cannot be served there: Address already in use"):
        MetricsServer(metrics, port=server.port)
    with pytest.raises(ServerSetupError, match="A port is a number"):
        MetricsServer(metrics, port=65536)


def test_closing_frees_the_port_and_leaves_no_thread(metrics: ServerMetrics) -> None:
    before = set(threading.enumerate())
    server = MetricsServer(metrics)
    port = server.port
    with socket.create_connection(("127.0.0.1", port), timeout=20) as idle:
        send(server, "GET", "/metrics")
        began = time.monotonic()
        server.close()
        assert time.monotonic() - began < 8
        idle.settimeout(6)  # its own limit is ten seconds
        assert idle.recv(1) == b""  # cut off
    with MetricsServer(metrics, port=port):
        pass
    assert "metrics" not in {thread.name for thread in set(threading.enumerate()) - before}


def test_whoever_holds_connections_open_is_cut_off_and_others_are_answered(
    metrics: ServerMetrics, server: MetricsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_server, "MAX_CONNECTION_S", 1.0)
    held = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(metrics_server.MAX_CONNECTIONS)]
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            for connection in held:  # drips, so that no single read times out
                with contextlib.suppress(OSError):
                    connection.send(b"G")
            with contextlib.suppress(OSError, http.client.HTTPException):
                if send(server, "GET", "/metrics")[0].status == 200:
                    break
            time.sleep(0.1)
        else:
            pytest.fail("the drip holds all places")
    finally:
        for connection in held:
            connection.close()


def test_beyond_its_connections_it_opens_no_more_threads(metrics: ServerMetrics, server: MetricsServer) -> None:
    before = threading.active_count()
    held = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(40)]
    try:
        time.sleep(0.3)
        assert threading.active_count() - before <= metrics_server.MAX_CONNECTIONS
    finally:
        for connection in held:
            connection.close()


def test_a_scrape_is_answered_while_the_process_computes(metrics: ServerMetrics, server: MetricsServer) -> None:
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            sum(range(1000))

    busy = threading.Thread(target=compute)
    busy.start()
    try:
        began = time.monotonic()
        assert send(server, "GET", "/metrics")[0].status == 200
        assert time.monotonic() - began < 10
    finally:
        stop.set()
        busy.join()


def test_a_thousand_scrapes_leave_nothing_open(server: MetricsServer) -> None:
    send(server, "GET", "/metrics")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(300):
        send(server, "GET", "/metrics")
    deadline = time.monotonic() + 10
    while len(os.listdir("/proc/self/fd")) > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_the_server_says_nothing_of_connections_that_fail(
    metrics: ServerMetrics, server: MetricsServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fails() -> bytes:
        raise ValueError("canary")

    monkeypatch.setattr(metrics_server._Handler, "timeout", 0.2)
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as idle:
        assert idle.recv(1) == b""
    monkeypatch.setattr(metrics, "exposition", fails)
    with pytest.raises(http.client.HTTPException):
        send(server, "GET", "/metrics")
    server.close()
    assert capfd.readouterr() == ("", "")
