"""A witness behind real HTTP, and its client against servers that do everything wrong."""

import contextlib
import http.client
import ipaddress
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from clinical_ser.audit import witness_http
from clinical_ser.audit.notes import Ed25519Signer, parse_note
from clinical_ser.audit.witness import MAX_REQUEST_BYTES, Witness, WitnessRefusalError
from clinical_ser.audit.witness_http import MAX_ANSWER_BYTES, listener, post, request_cosignatures, serve, witness_app, witness_server
from clinical_ser.errors import AuditFormatError, AuditKeyError, AuditSetupError, AuditUnavailableError, WitnessError
from tests.audit.test_witness import COSIGNER, FORK, LOG, ORIGIN, WITNESS_SEED, GrowingLog, ed25519, in_process, reopened

KEYS = (COSIGNER.key,)


@contextlib.contextmanager
def served(witness: Witness, *, certificate: Path | None = None, key: Path | None = None) -> Iterator[str]:
    """Run uvicorn in a thread on a port that the system chose, and yield the address."""
    server = witness_server(witness_app(witness), "127.0.0.1", certificate=certificate, key=key)
    with listener("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield f"http{'s' if certificate else ''}://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=20)
            assert not thread.is_alive()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "witness.sqlite"


@pytest.fixture
def witness(path: Path) -> Iterator[Witness]:
    with Witness.create(path, {ORIGIN: LOG.keys}, [COSIGNER]) as made:
        yield made


@pytest.fixture
def url(witness: Witness) -> Iterator[str]:
    with served(witness) as address:
        yield address


def ask(url: str, size: int, *, log: GrowingLog = LOG, **options):
    return request_cosignatures(url, log.note(size), KEYS, consistency=lambda old: log.proof(old, size), **options)


def send(url: str, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers or {})
        with connection.getresponse() as response:
            return response, response.read()


# Client and server together


def test_a_log_gets_cosignatures_as_it_grows(url: str) -> None:
    for size in (1, 5, 6, 6, 40):
        (signature,) = ask(url, size)
        text, _ = parse_note(LOG.note(size))
        assert COSIGNER.key.fits(text.encode(), signature.signature)


def test_a_known_old_size_saves_the_second_request(url: str) -> None:
    ask(url, 5)
    asked = []
    request_cosignatures(url, LOG.note(9), KEYS, consistency=lambda old: asked.append(old) or LOG.proof(old, 9), old_size=5)
    assert asked == [5]


def test_a_wrong_old_size_is_put_right_by_the_witness(url: str, witness: Witness) -> None:
    ask(url, 5)
    asked = []
    request_cosignatures(url + "/", LOG.note(9), KEYS, consistency=lambda old: asked.append(old) or LOG.proof(old, 9), old_size=2)
    assert asked == [2, 5]
    assert witness.latest(ORIGIN).size == 9


def test_a_log_that_lost_records_learns_that_the_witness_knows_more(url: str) -> None:
    ask(url, 9)
    with pytest.raises(WitnessRefusalError, match="9 records") as caught:
        ask(url, 5)
    assert (caught.value.status, caught.value.size) == (HTTPStatus.CONFLICT, 9)


@pytest.mark.parametrize("old_size", [0, 5])
def test_a_log_that_forked_learns_it(url: str, old_size: int) -> None:
    ask(url, 5)
    with pytest.raises(WitnessRefusalError, match="two histories") as caught:
        ask(url, 5, log=FORK, old_size=old_size)
    assert caught.value.size is None
    with pytest.raises(WitnessRefusalError, match="does not lead") as caught:
        ask(url, 9, log=FORK)
    assert caught.value.status == HTTPStatus.UNPROCESSABLE_ENTITY


def test_an_unknown_log_and_an_unknown_key_are_told_apart(url: str) -> None:
    with pytest.raises(WitnessRefusalError, match="does not know this log"):
        ask(url, 5, log=GrowingLog(origin="other.example/log"))
    with pytest.raises(WitnessRefusalError, match="verifier key"):
        ask(url, 5, log=GrowingLog(signer=Ed25519Signer(ORIGIN, ed25519(b"\x09" * 32))))


def test_many_clients_at_once_are_all_answered_and_one_wins_each_step(url: str, witness: Witness) -> None:
    def climb(_: int) -> int:
        won = 0
        for size in range(1, 9):
            with contextlib.suppress(WitnessError):
                won += len(ask(url, size, old_size=size - 1))
        return won

    with ThreadPoolExecutor(6) as pool:
        won = sum(pool.map(climb, range(6)))
    assert won >= 8
    assert witness.latest(ORIGIN).size == 8


def test_a_witness_in_another_process_shares_the_memory(url: str, path: Path) -> None:
    ask(url, 5)
    with reopened(path) as beside:
        beside.add_checkpoint(LOG.request(5, 9))
    with pytest.raises(WitnessRefusalError, match="9 records"):
        ask(url, 7)


# The server alone


def test_the_answers_are_as_specified(url: str) -> None:
    response, lines = send(url, "POST", "/add-checkpoint", LOG.request(0, 5))
    assert response.status == HTTPStatus.OK
    assert lines.decode().startswith("— witness.example/w1 ")
    response, body = send(url, "POST", "/add-checkpoint", LOG.request(0, 5))
    assert (response.status, response.getheader("Content-Type"), body) == (HTTPStatus.CONFLICT, "text/x.tlog.size", b"5\n")
    response, body = send(url, "POST", "/add-checkpoint", FORK.request(5, 5))
    assert (response.status, response.getheader("Content-Type")) == (HTTPStatus.CONFLICT, "text/plain; charset=utf-8")
    for request, status in ((b"", 400), (FORK.request(5, 9), 422), (GrowingLog(origin="other.example").request(0, 1), 404)):
        assert send(url, "POST", "/add-checkpoint", request)[0].status == status


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/add-checkpoint", 405),
        ("HEAD", "/add-checkpoint", 405),
        ("PUT", "/add-checkpoint", 405),
        ("OPTIONS", "/add-checkpoint", 405),
        ("POST", "/", 404),
        ("POST", "/add-checkpoint/", 404),
        ("POST", "/ADD-CHECKPOINT", 404),
        ("GET", "/canary", 404),
        ("POST", "/add-checkpoint", 400),
    ],
)
def test_there_is_one_door_and_every_answer_is_uncached_plain_and_silent(url: str, method: str, target: str, status: int) -> None:
    response, body = send(url, method, target, b"canary" if method == "POST" else b"", {"Host": "canary.example", "X-Canary": "canary"})
    assert response.status == status
    assert response.getheader("Cache-Control") == "no-store"
    assert response.getheader("X-Content-Type-Options") == "nosniff"
    assert response.getheader("Server") is None
    assert b"canary" not in body
    assert "canary" not in str(response.headers)
    assert response.getheader("Allow") == ("POST" if status == 405 else None)


def _raw(url: str, *parts: bytes) -> bytes:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as sock:
        with contextlib.suppress(ConnectionError):
            for part in parts:
                sock.sendall(part)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while chunk := sock.recv(65536):
                answer += chunk
        return answer


HEAD = b"POST /add-checkpoint HTTP/1.1\r\nHost: w\r\n"


def test_a_request_that_announces_too_much_is_not_read(url: str) -> None:
    answer = _raw(url, HEAD + b"Content-Length: %d\r\n\r\n" % (MAX_REQUEST_BYTES + 1))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()


def test_a_request_that_announces_nothing_is_cut_off_at_the_limit(url: str) -> None:
    chunk = b"8000\r\n" + b"a" * 0x8000 + b"\r\n"
    answer = _raw(url, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * (MAX_REQUEST_BYTES // 0x8000 + 1))
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_request_that_never_ends_is_ended(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witness_http, "READ_TIMEOUT_S", 0.2)
    assert _raw(url, HEAD + b"Content-Length: 100\r\n\r\nold 0").startswith(b"HTTP/1.1 408 ")


def test_a_client_that_goes_away_leaves_the_witness_as_it_was(url: str, witness: Witness) -> None:
    host, port = url.removeprefix("http://").split(":")
    body = LOG.request(0, 5)
    for sent in (HEAD[:20], HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body[:-1]):
        with socket.create_connection((host, int(port))) as sock:
            sock.sendall(sent)
    assert ask(url, 3)
    assert witness.latest(ORIGIN).size == 3


def test_garbage_is_no_request(url: str) -> None:
    assert _raw(url, b"\x16\x03\x01\x02\x00garbage\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert ask(url, 3)


def test_a_witness_that_cannot_write_says_that_it_is_unavailable(url: str, witness: Witness) -> None:
    witness.close()
    response, body = send(url, "POST", "/add-checkpoint", LOG.request(0, 5))
    assert (response.status, body) == (HTTPStatus.SERVICE_UNAVAILABLE, b"Service Unavailable\n")


def test_a_fault_of_ours_shows_nothing(witness: Witness, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: bytes) -> str:
        raise RuntimeError("canary")

    monkeypatch.setattr(witness, "add_checkpoint", fail)
    with served(witness) as url:
        response, body = send(url, "POST", "/add-checkpoint", b"")
    assert (response.status, response.getheader("Cache-Control")) == (HTTPStatus.INTERNAL_SERVER_ERROR, "no-store")
    assert b"canary" not in body


def test_a_slow_disk_does_not_stop_others_from_being_answered(witness: Witness, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def stuck(_: bytes) -> str:
        assert release.wait(20)
        raise AuditUnavailableError("late")

    monkeypatch.setattr(witness, "add_checkpoint", stuck)
    with served(witness) as url, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(send, url, "POST", "/add-checkpoint", b"")
        time.sleep(0.1)
        assert send(url, "GET", "/")[0].status == HTTPStatus.NOT_FOUND
        assert not waiting.done()
        release.set()
        assert waiting.result()[0].status == HTTPStatus.SERVICE_UNAVAILABLE


# TLS, and where to listen


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a self-signed certificate for 127.0.0.1 and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "witness")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return folder / "certificate.pem", folder / "key.pem"


def test_over_tls_only_a_trusted_server_is_asked(witness: Witness, tls: tuple[Path, Path]) -> None:
    certificate, key = tls
    with served(witness, certificate=certificate, key=key) as url:
        with pytest.raises(WitnessError, match="certificate is not trusted"):
            ask(url, 5)
        assert ask(url, 5, tls=ssl.create_default_context(cafile=str(certificate)))
        with pytest.raises(WitnessError, match=r"not speak HTTP|no answer"):
            ask(url.replace("https", "http"), 6)


def test_a_witness_in_its_own_process_serves_until_it_is_told_to_stop(path: Path, witness: Witness) -> None:
    with listener("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    process = in_process(path, f"from clinical_ser.audit.witness_http import *; serve(witness_app(reopened(path)), '127.0.0.1', {port})")
    with process:
        try:
            while True:
                with contextlib.suppress(WitnessError):
                    assert ask(f"http://127.0.0.1:{port}", 5)
                    break
                assert process.poll() is None
                time.sleep(0.1)
        finally:
            process.terminate()
            process.communicate(timeout=20)
    assert process.returncode in {0, -signal.SIGTERM}
    assert witness.latest(ORIGIN).size == 5


def test_without_tls_nobody_is_served_but_the_own_machine(witness: Witness, tls: tuple[Path, Path]) -> None:
    app = witness_app(witness)
    for host in ("0.0.0.0", "192.0.2.1", "::", "witness.example"):
        with pytest.raises(AuditSetupError, match="loopback"):
            witness_server(app, host)
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        assert witness_server(app, host)
    assert witness_server(app, "0.0.0.0", certificate=tls[0], key=tls[1])


def test_tls_files_that_cannot_be_used_are_an_error_of_setup(witness: Witness, tls: tuple[Path, Path], tmp_path: Path) -> None:
    app = witness_app(witness)
    (tmp_path / "empty.pem").write_bytes(b"")
    for certificate, key in ((tls[0], None), (None, tls[1]), (tmp_path / "none.pem", tls[1]), (tmp_path / "empty.pem", tls[1]), (tls[0], tls[0])):
        with pytest.raises(AuditSetupError, match="TLS"):
            serve(app, "127.0.0.1", 0, certificate=certificate, key=key)


def test_an_address_that_is_taken_or_none_is_an_error_of_setup(witness: Witness) -> None:
    app = witness_app(witness)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(AuditSetupError, match="cannot listen"):
        serve(app, "127.0.0.1", taken.getsockname()[1])
    with pytest.raises(AuditSetupError, match="65535"):
        listener("127.0.0.1", 70000)
    with pytest.raises(AuditSetupError, match="cannot listen"):
        listener("no such host", 0)


# The client alone


@contextlib.contextmanager
def answering(answer: Callable[[bytes], bytes] | bytes, *, linger: Callable[[socket.socket], None] | None = None) -> Iterator[str]:
    """Serve raw bytes, whatever is asked: a function gets the request."""
    stop = threading.Event()

    def run(listening: socket.socket) -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError), listening.accept()[0] as sock:
                sock.settimeout(5)
                request = sock.recv(200_000)
                while b"\r\n\r\n" not in request or (b"old" not in request and not request.endswith(b"\0")):
                    more = sock.recv(200_000)
                    if not more:
                        break
                    request += more
                sock.sendall(answer(request) if callable(answer) else answer)
                if linger:
                    linger(sock)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.1)
        thread = threading.Thread(target=run, args=(listening,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            stop.set()
            thread.join(timeout=20)


def http_answer(status: int, body: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def lines_over(text: str, seed: bytes = WITNESS_SEED) -> bytes:
    from clinical_ser.audit.cosignatures import Ed25519Cosigner
    from clinical_ser.audit.notes import NoteSignature

    cosigner = Ed25519Cosigner(Ed25519Signer(COSIGNER.key.name, ed25519(seed)))
    return NoteSignature(cosigner.key.name, cosigner.key.key_id, cosigner.sign(text.encode())).line.encode()


TEXT = LOG.checkpoint(5).text
GOOD = lines_over(TEXT)


def test_cosignatures_of_unknown_keys_are_ignored() -> None:
    with answering(http_answer(200, lines_over(TEXT, b"\x08" * 32) + GOOD)) as url:
        (signature,) = ask(url, 5)
    assert signature.line.encode() == GOOD


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (b"", "not made of signature lines"),
        (GOOD[:-1], "not made of signature lines"),
        (GOOD[: len(GOOD) // 2], "not made of signature lines"),
        (b"hello\n", "not made of signature lines"),
        (b"\xff\n", "not made of signature lines"),
        (b"\x00" + GOOD, "not made of signature lines"),
        (lines_over(LOG.checkpoint(6).text), "no cosignature that fits"),
        (lines_over(TEXT, b"\x08" * 32), "no cosignature that fits"),
        (lines_over(FORK.checkpoint(5).text), "no cosignature that fits"),
        (b"a line more\n\n" + GOOD, "no cosignature that fits"),
        (b"\n" + GOOD, "no cosignature that fits"),
    ],
    ids=range(11),  # what was signed differs with the clock, and every process that collects has to find the same tests
)
def test_an_answer_without_a_cosignature_of_this_checkpoint_is_not_used(body: bytes, match: str) -> None:
    with answering(http_answer(200, body)) as url, pytest.raises(WitnessError, match=match):
        ask(url, 5)


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (b"", "does not speak HTTP|no answer"),
        (b"garbage\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", "does not speak HTTP"),
        (http_answer(200, GOOD, length=len(GOOD) + 1), "did not arrive whole"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", "does not speak HTTP"),
        (http_answer(200, b"x" * (MAX_ANSWER_BYTES + 1)), "longer than"),
        (b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * (MAX_ANSWER_BYTES * 2), "longer than"),
        (http_answer(302, b"", "Location: http://127.0.0.1:1/"), "redirect"),
        (http_answer(307, GOOD, "Location: https://elsewhere.example/"), "redirect"),
        (http_answer(201, GOOD), "status 201"),
        (http_answer(500, b"canary"), "status 500"),
        (http_answer(599, b"canary"), "status 599"),
        (http_answer(409, b"", "Content-Type: text/x.tlog.size"), "no tree size"),
        (http_answer(409, b"canary\n", "Content-Type: text/x.tlog.size"), "no tree size"),
        (http_answer(409, b"-1\n", "Content-Type: text/x.tlog.size"), "no tree size"),
        (http_answer(409, b"\xff\n", "Content-Type: text/x.tlog.size"), "no tree size"),
        (http_answer(409, b"%d\n" % 2**63, "Content-Type: text/x.tlog.size"), "no tree size"),
        (http_answer(409, b"0\n", "Content-Type: text/x.tlog.size"), "two histories"),
        (http_answer(409, b"6\n", "Content-Type: text/x.tlog.size"), "6 records"),
        (http_answer(409, b"6\n", "Content-Type: TEXT/X.tlog.size; x=y"), "6 records"),
        (http_answer(409, b"6\n"), "two histories"),
    ],
)
def test_an_answer_that_is_none_is_an_error(answer: bytes, match: str) -> None:
    with answering(answer) as url, pytest.raises(WitnessError, match=match) as caught:
        ask(url, 5)
    assert "canary" not in str(caught.value)


def test_a_witness_that_names_another_size_each_time_is_given_up_on() -> None:
    sizes = iter([3, 2, 3, 2, 3, 2, 3, 2])
    with (
        answering(lambda _: http_answer(409, b"%d\n" % next(sizes), "Content-Type: text/x.tlog.size")) as url,
        pytest.raises(WitnessError, match="another size each time"),
    ):
        ask(url, 5)
    assert len(list(sizes)) == 4


def test_a_redirect_is_not_followed_even_to_the_witness_itself(url: str, witness: Witness) -> None:
    with answering(http_answer(308, b"", f"Location: {url}/add-checkpoint")) as redirecting, pytest.raises(WitnessError, match="redirect"):
        ask(redirecting, 5)
    assert witness.latest(ORIGIN).size == 0


def _drip(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        for _ in range(100):
            sock.sendall(b"x")
            time.sleep(0.05)


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_an_answer_that_drips_is_given_up_on_in_time(start: bytes) -> None:
    with answering(start, linger=_drip) as url:
        started = time.monotonic()
        with pytest.raises(WitnessError, match=r"too long|in time"):
            ask(url, 5, timeout_s=0.4)
        assert time.monotonic() - started < 2


def test_a_tls_handshake_that_never_comes_is_given_up_on_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(WitnessError, match="too long"):
        ask(f"https://127.0.0.1:{silent.getsockname()[1]}", 5, timeout_s=0.3)


def test_a_witness_that_is_not_there_is_an_error_that_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(WitnessError, match="Connection refused"):
        ask(f"http://127.0.0.1:{port}", 5)


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("http://witness.example", "https"),
        ("http://192.0.2.1", "https"),
        ("http://127.0.0.1.example", "https"),
        ("http://localhost.example", "https"),
        ("ftp://127.0.0.1", "https"),
        ("file:///etc/passwd", "not a URL"),
        ("https://canary:secret@witness.example", "user name"),
        ("https://witness.example#canary", "fragment"),
        ("https://", "not a URL"),
        ("https://[::1", "not a URL"),
        ("https://witness..example", "not a URL"),
        ("https://.witness.example", "not a URL"),
        ("https://witness.example:99999", "not a URL"),
        ("https://witness.example:0", "not a URL"),
        ("https://witness.example/\r\nHost: canary", "not a URL"),
        ("https://witness.example/ canary", "not a URL"),
        ("https://wítness.example", "not a URL"),
        ("witness.example", "not a URL"),
        ("", "not a URL"),
        ("https://witness.example/" + "x" * 3000, "not a URL"),
    ],
)
def test_an_address_that_is_not_safe_to_ask_is_refused(url: str, match: str) -> None:
    with pytest.raises(WitnessError, match=match) as caught:
        ask(url, 5)
    assert "canary" not in str(caught.value)


@given(url=st.text(max_size=60).map(lambda rest: f"http://{rest}"))
def test_no_address_without_tls_leads_off_this_machine(url: str) -> None:
    try:
        target = witness_http._target(url)
    except WitnessError:
        return
    assert target.hostname == "localhost" or ipaddress.ip_address(target.hostname or "").is_loopback


def test_what_is_sent_is_a_request_as_specified() -> None:
    seen = []
    with answering(lambda request: seen.append(request) or http_answer(200, GOOD)) as url:
        ask(url + "/prefix/", 5)
    head, _, body = seen[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /prefix/add-checkpoint HTTP/1.1\r\n")
    assert body == LOG.request(0, 5)


def test_a_query_is_kept_for_services_that_need_one() -> None:
    seen = []
    with answering(lambda request: seen.append(request) or http_answer(200, b"fine", "Content-Type: Text/Plain; charset=x")) as url:
        answer = post(f"{url}?a=b", b"\0", content_type="x/y", timeout_s=5, max_answer_bytes=10)
    assert seen[0].startswith(b"POST /?a=b HTTP/1.1\r\n") or seen[0].startswith(b"POST ?a=b")
    assert (answer.status, answer.content_type, answer.body) == (200, "text/plain", b"fine")


def test_only_keys_for_cosignatures_and_only_checkpoints_are_taken() -> None:
    with pytest.raises(AuditKeyError, match="type 4 or 6"):
        request_cosignatures("https://witness.example", LOG.note(5), LOG.keys, consistency=lambda _: [])
    with pytest.raises(AuditFormatError):
        request_cosignatures("https://witness.example", "canary", KEYS, consistency=lambda _: [])
