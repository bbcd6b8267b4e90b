"""What strangers and broken clients send below and above HTTP, and what must never be said."""

import io
import json
import re
import socket
import struct
import time
import urllib.request
import wave
import zlib

import numpy as np
import pytest

from tests.api.servers import SUBJECT, Answer, serving

CANARY = "Canary-Jane-1970"


def said(port: int, content: bytes, timeout_s: float = 10.0) -> bytes:
    """Send bytes as they are, and return what comes back until the server hangs up or is silent."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        found = bytearray()
        try:
            connection.sendall(content)
            while chunk := connection.recv(65536):
                found += chunk
        except (TimeoutError, ConnectionResetError, BrokenPipeError):
            pass
        return bytes(found)


@pytest.fixture(scope="module")
def impatient(tmp_path_factory, bundle):
    """A server that waits for nobody."""
    limits = {"header_timeout_s": 1.0, "body_timeout_s": 2.0, "header_bytes": 4096, "body_bytes": 200_000, "at_once_bytes": 100_000}
    with serving(tmp_path_factory.mktemp("impatient"), (str(bundle),), limits=limits) as server:
        yield server


def request(key: str, headers: str, body: bytes = b"") -> bytes:
    return f"POST /v1/screenings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n{headers}\r\n\r\n".encode() + body


FRAMED = "Content-Type: application/vnd.clinical-ser.screening\r\n"


def test_a_header_that_does_not_come_to_its_end_is_hung_up_on(impatient):
    began = time.monotonic()
    assert said(impatient.port, b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Slow: ") == b""
    assert time.monotonic() - began < 5


def test_a_second_header_on_a_kept_connection_is_no_exception(impatient):
    began = time.monotonic()
    answer = said(impatient.port, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /livez HTT")
    assert answer.startswith(b"HTTP/1.1 200")
    assert time.monotonic() - began < 5


def test_a_body_that_does_not_come_is_given_up(impatient):
    key = impatient.keys["everything"]
    answer = said(impatient.port, request(key, FRAMED + "Content-Length: 1000", b'{"subject": "a"}\nRIFF'))
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"too-slow" in answer


def test_a_header_beyond_the_limit_is_refused(impatient):
    whole = said(impatient.port, b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 10_000 + b"\r\n\r\n")
    assert whole.startswith(b"HTTP/1.1 431")
    said(impatient.port, b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 10_000_000, 3.0)
    assert impatient.client(None).get("/livez").status == 200


def test_two_gigabytes_are_refused_before_they_are_sent(impatient):
    answer = said(impatient.port, request(impatient.keys["everything"], FRAMED + f"Content-Length: {2 << 30}\r\nExpect: 100-continue"))
    assert answer.startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("length", ["-1", "1e9", "99999999999999999999999", "0x10", "10, 20"])
def test_a_length_that_is_none_is_refused(impatient, length):
    answer = said(impatient.port, request(impatient.keys["everything"], FRAMED + f"Content-Length: {length}"))
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 413"))


def test_a_chunked_body_beyond_the_limit_is_cut_off_while_it_comes(impatient):
    chunk = b"10000\r\n" + b"a" * 0x10000 + b"\r\n"
    body = b'12\r\n{"subject": "abc"}\r\n1\r\n\n\r\n' + chunk * 40
    answer = said(impatient.port, request(impatient.keys["everything"], FRAMED + "Transfer-Encoding: chunked", body))
    assert b"413" in answer.partition(b"\r\n")[0]
    assert not list(impatient.configuration.spool_folder.iterdir())


@pytest.mark.parametrize(
    "content",
    [
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"POST /v1/screenings HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET http://elsewhere/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\0" * 100,
    ],
    ids=["version", "tls hello", "no host", "length and chunks", "absolute", "zeros"],
)
def test_what_is_no_http_is_answered_or_hung_up_on_and_the_server_goes_on(impatient, content):
    said(impatient.port, content, 3.0)
    assert impatient.client(None).get("/livez").status == 200


def test_a_client_that_goes_away_in_the_middle_leaves_nothing(impatient):
    body = b'{"subject": "a"}\n' + b"RIFF" * 30_000
    with socket.create_connection(("127.0.0.1", impatient.port)) as connection:
        connection.sendall(request(impatient.keys["everything"], FRAMED + "Content-Length: 190000", body))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    deadline = time.monotonic() + 5
    while list(impatient.configuration.spool_folder.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not list(impatient.configuration.spool_folder.iterdir())


# ── recordings that are made to hurt ────────────────────────────────────────────────────────────────────────────────────


def endless_flac(hours: float) -> bytes:
    """Hours of silence in a few kilobytes a minute."""
    import soundfile

    out = io.BytesIO()
    soundfile.write(out, np.zeros(int(hours * 3600 * 8000), dtype="int16"), 8000, format="FLAC")
    return out.getvalue()


def lying_wav() -> bytes:
    """A header that promises four gigabytes."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(b"\0\0" * 1000)
    raw = bytearray(out.getvalue())
    raw[4:8] = raw[40:44] = struct.pack("<I", 0xFFFFFFF0)
    return bytes(raw)


BOMBS = {
    "hours of flac": lambda: endless_flac(3.0),
    "a length that is a lie": lying_wav,
    "zlib": lambda: zlib.compress(b"\0" * 50_000_000),
    "deep matroska": lambda: bytes.fromhex("1A45DFA3") + b"\x01\xff\xff\xff\xff\xff\xff\xff" * 1000,
    "playlist": lambda: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\nhttp://127.0.0.1:1/\n",
    "svg": lambda: b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><svg>&b;</svg>',
    "concat": lambda: b"ffconcat version 1.0\nfile /etc/passwd\n",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_recording_that_is_made_to_hurt_is_refused_with_a_reason_and_the_next_is_answered(server, recording, name):
    answer = server.client().screen(BOMBS[name](), subject=f"bomb {name}")
    if answer.status == 202:
        location = answer.headers["location"]
        deadline = time.monotonic() + 60
        while (found := server.client().get(location).json)["state"] not in {"done", "failed"} and time.monotonic() < deadline:
            time.sleep(0.1)
        assert found["state"] == "failed" or found["result"]["status"] == "not_usable"
    else:
        assert answer.status in {413, 422} or answer.json["result"]["status"] == "not_usable"
        assert b"root:" not in answer.body
    assert server.client().screen(recording, subject=f"after {name}").status == 201


# ── what must never be said ─────────────────────────────────────────────────────────────────────────────────────────────


def everything_said(server, answers: list[Answer]) -> str:
    port = server.running.metrics_port
    metrics = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    problems = "".join(each.body.decode() + json.dumps(each.headers) for each in answers)
    return server.logs.getvalue() + metrics + problems


def test_no_name_is_in_logs_metrics_problems_or_addresses(tmp_path, bundle, recording):
    name, reason = f"{SUBJECT} {CANARY}", f"She said {CANARY}."
    with serving(tmp_path, (str(bundle),)) as server:
        client = server.client()
        done = client.screen(recording, subject=name, device="phone").json
        client.post(done["links"]["review"], {"decision": "agreed", "reason": reason})
        for link in ("self", "report", "fhir"):
            client.get(done["links"][link])
        later = client.screen(b"no audio " + CANARY.encode(), {"Prefer": "respond-async"}, subject=name + " 2")
        problems = [
            client.screen(b"no audio " + CANARY.encode(), subject=name + " 3"),
            client.screen(recording, subject=name, **{CANARY: 1}),
            client.screen(recording, subject=name, model=CANARY),
            client.screen(recording, subject=name, task=CANARY * 20),
            client.ask("POST", f"/v1/{CANARY}", CANARY.encode(), {"Content-Type": f"audio/{CANARY}", "X-Request-Id": CANARY}),
            client.get(f"/v1/screenings/{CANARY}?name={CANARY}"),
            client.get(f"/v1/AuditEvent?subject={CANARY}"),
            client.post(done["links"]["review"], {"decision": CANARY, "reason": reason}),
            server.client(None).get("/v1/me", Authorization=f"Bearer {CANARY}"),
            client.ask("POST", "/v1/screenings", recording, {"Content-Type": "audio/wav", "Screening-Metadata": CANARY}),
        ]
        assert all(each.status >= 400 for each in problems), [each.status for each in problems]
        while client.get(later.headers["location"]).json["state"] != "failed":
            time.sleep(0.05)
        text = everything_said(server, problems)
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert {"audit.sqlite", "vault.sqlite"} <= {path.name for path in files}
        database = b"".join(path.read_bytes() for path in files)
    assert CANARY not in text
    assert "1970-01-01" not in text
    assert CANARY.encode() not in database
    assert not re.search(r"cser_[a-z2-7]{8}_", text)
    assert done["audit"]["record"] not in text


def test_answers_are_not_kept_by_anyone_on_the_way(client, recording):
    for answer in (client.get("/v1/me"), client.screen(recording), client.get("/nothing"), client.get("/livez")):
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])
        assert "server" not in answer.headers
