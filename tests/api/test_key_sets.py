"""Key sets: what is in them, files that change, and servers that do everything wrong, over real HTTP and TLS."""

import contextlib
import ipaddress
import json
import logging
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import RSAAlgorithm

from clinical_ser.api import key_sets
from clinical_ser.api.key_sets import (
    FRESH_S,
    MAX_SET_BYTES,
    REFRESH_S,
    RETRY_S,
    STALE_S,
    AddressKeys,
    FileKeys,
    KeySet,
    PublishedSecretError,
    keys_at,
)
from clinical_ser.errors import ServerSetupError
from tests.api.observed import logging_to
from tests.api.tokens_made import WITHOUT, Clock, Signer, b64, key_set, private_key, write_key_set

EC = Signer("ES256", "ec")
OTHER = Signer("ES256", "other", number=1)
RSA = Signer("RS256", "rsa")
ED = Signer("EdDSA", "ed")


def raw_set(*keys: object) -> bytes:
    return json.dumps({"keys": list(keys)}).encode()


# --- What is in a set ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signer", [EC, RSA, ED, Signer("ES384"), Signer("ES512"), Signer("PS512")], ids=lambda signer: signer.algorithm)
def test_a_key_is_found_by_its_name_and_its_algorithm(signer: Signer) -> None:
    keys = KeySet.parse(key_set(signer, Signer("ES256", "beside", number=3)))
    found = keys.find(signer.kid, signer.algorithm)
    assert found is not None
    assert found.public == signer.private.public_key()
    for algorithm in {"RS256", "PS256", "ES256", "ES384", "ES512", "EdDSA"} - {signer.algorithm}:
        assert keys.find(signer.kid, algorithm) is None
    assert keys.find(signer.kid.upper(), signer.algorithm) is None


def test_a_key_that_names_no_algorithm_is_for_those_of_its_kind() -> None:
    keys = KeySet.parse(key_set(RSA.jwk(alg=WITHOUT), EC.jwk(alg=WITHOUT, use=WITHOUT), ED.jwk(alg=WITHOUT)))
    fitting = {kid: {a for a in ("RS256", "RS512", "PS256", "ES256", "ES384", "EdDSA") if keys.find(kid, a)} for kid in ("rsa", "ec", "ed")}
    assert fitting == {"rsa": {"RS256", "RS512", "PS256"}, "ec": {"ES256"}, "ed": {"EdDSA"}}


@pytest.mark.parametrize(
    "changes",
    [
        {"use": "enc"},
        {"use": ""},
        {"use": None, "key_ops": ["sign"]},
        {"key_ops": []},
        {"key_ops": "verify"},
        {"alg": "ES384"},
        {"alg": "HS256"},
        {"alg": "none"},
        {"alg": "ECDH-ES"},
        {"kid": WITHOUT},
        {"kid": ""},
        {"kid": 1},
        {"kid": "k" * 257},
        {"kty": "RSA"},
        {"kty": "ec"},
        {"kty": WITHOUT},
        {"crv": "secp256k1"},
        {"crv": "P-384"},
        {"x": ""},
        {"x": "!!!!"},
        {"x": 1},
        {"x": b64(bytes(31))},
        {"x": b64(bytes(32)), "y": b64(bytes(32))},
        {"y": WITHOUT},
    ],
    ids=lambda changes: ",".join(f"{name}={'' if value is WITHOUT else str(value)[:8]}" for name, value in changes.items()),
)
def test_a_key_for_something_else_or_of_no_use_is_left_out(changes: dict) -> None:
    keys = KeySet.parse(key_set(EC.jwk(**changes), OTHER))
    assert [key.kid for key in keys.keys] == ["other"]
    with pytest.raises(ServerSetupError, match="no key that is for signatures"):
        KeySet.parse(key_set(EC.jwk(**changes)))


@pytest.mark.parametrize("bits", [1024, 2047])
def test_a_weak_rsa_key_is_left_out(bits: int) -> None:
    weak = Signer("RS256", "weak", bits=bits)
    assert weak.private.key_size == bits
    assert [key.kid for key in KeySet.parse(key_set(weak, RSA)).keys] == ["rsa"]


def test_an_rsa_key_that_is_huge_or_has_a_small_exponent_is_left_out() -> None:
    number = int.from_bytes(bytes([0xC1]) * 1025, "big")
    huge = RSA.jwk(kid="huge", n=b64(number.to_bytes(1025, "big")))
    small = RSA.jwk(kid="small", e=b64(b"\x03"))
    even = RSA.jwk(kid="even", e=b64((1 << 17).to_bytes(3, "big")))
    assert [key.kid for key in KeySet.parse(key_set(huge, small, even, RSA)).keys] == ["rsa"]


def test_a_set_that_holds_a_secret_is_refused_whole() -> None:
    private = json.loads(RSAAlgorithm.to_jwk(RSA.private))
    secrets = [
        {**private, "kid": "private"},
        {"kty": "oct", "k": b64(b"secret"), "kid": "shared"},
        {"kty": "oct", "kid": "shared"},
        EC.jwk(d=b64(bytes(32))),
        {"kty": "XX", "k": "a"},
        RSA.jwk(oth=[]),
    ]
    for secret in secrets:
        with pytest.raises(PublishedSecretError, match="private or symmetric"):
            KeySet.parse(raw_set(OTHER.jwk(), secret))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"keys": {}}',
        b'{"keys": [1]}',
        b'{"keys": [[]]}',
        b'{"keys": null}',
        b'{"keys": []}',
        key_set(EC)[:-1],
        key_set(EC) + b"x",
        b'{"keys": [], ' + key_set(EC)[1:],
        key_set(EC).replace(b'"kid"', b'"kid": "a", "kid"'),
        raw_set(*[EC.jwk()] * 101),
        b"<html>Sign in</html>",
        b"\x00" * 100,
        EC.pem,
    ],
    ids=lambda raw: ascii(raw[:24]),
)
def test_what_is_no_key_set_is_refused(raw: bytes) -> None:
    with pytest.raises(ServerSetupError):
        KeySet.parse(raw)


@given(
    st.binary(max_size=80)
    | st.recursive(
        st.none() | st.booleans() | st.text(max_size=4) | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["keys", "kty", "kid", "n", "e", "x", "y", "crv", "RSA"]), inner),
        max_leaves=8,
    ).map(lambda value: json.dumps({"keys": [value]}).encode())
)
def test_garbage_is_refused_in_our_own_words(raw: bytes) -> None:
    with pytest.raises(ServerSetupError):
        KeySet.parse(raw)


def test_two_keys_of_one_name_are_nobodys_unless_their_algorithms_differ() -> None:
    keys = KeySet.parse(key_set(EC, OTHER.jwk(kid="ec"), RSA.jwk(kid="ec")))
    assert keys.find("ec", "ES256") is None
    assert keys.find("ec", "RS256") is not None


# --- Files --------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return write_key_set(tmp_path / "jane-doe.json", EC)


def test_a_file_is_read_again_when_it_is_another(place: Path, tmp_path: Path) -> None:
    keys = FileKeys(place)
    first = keys.find("ec", "ES256")
    assert first is not None
    assert keys.peek("ec", "ES256") is first
    write_key_set(tmp_path / "new.json", EC, OTHER).replace(place)
    assert keys.find("other", "ES256")
    assert keys.find("ec", "ES256") is not first


def test_a_file_is_not_read_again_while_it_is_the_same(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = FileKeys(place)
    assert keys.find("ec", "ES256")
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("read again"))
    assert keys.find("ec", "ES256")


@pytest.mark.parametrize("what", ["gone", "garbage", "empty", "huge", "folder", "pipe", "writable", "secret", "closed"])
def test_a_file_that_cannot_be_used_leaves_no_keys_until_it_can(
    place: Path, what: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, good = FileKeys(place), place.read_bytes()
    assert keys.find("ec", "ES256")
    if what == "closed":
        monkeypatch.setattr(os, "geteuid", lambda: 4711)
        os.chown(place, 4712, -1) if os.getuid() == 0 else pytest.skip("only root gives files away")
    elif what == "writable":
        place.chmod(0o664)
    elif what in {"gone", "folder", "pipe"}:
        place.unlink()
        {"gone": lambda: None, "folder": place.mkdir, "pipe": lambda: os.mkfifo(place)}[what]()
    else:
        place.write_bytes({"garbage": good[:-2], "empty": b"", "huge": good + b" " * MAX_SET_BYTES, "secret": raw_set(EC.jwk(d="a"))}[what])
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            assert keys.find("ec", "ES256") is None
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "jane" not in caplog.text
    with pytest.raises(ServerSetupError) as caught:
        keys.load()
    assert "jane" not in str(caught.value)
    if what in {"folder", "pipe"}:
        place.rmdir() if what == "folder" else place.unlink()
    if what == "closed":
        os.chown(place, 4711, -1)
    place.write_bytes(good)
    place.chmod(0o644)
    assert keys.find("ec", "ES256")
    keys.load()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (Path.unlink, "The file of an issuer's keys cannot be read"),
        (lambda place: place.chmod(0o666), "Others may write the file of an issuer's keys"),
        (lambda place: place.write_bytes(b"{}"), "The file of an issuer's keys is no key set"),
        (lambda place: place.write_bytes(b" " * (MAX_SET_BYTES + 1)), "The file of an issuer's keys is too long"),
    ],
    ids=["gone", "writable", "no key set", "long"],
)
def test_the_servers_log_says_which_file_and_why_when_keys_are_loaded(
    place: Path, tmp_path: Path, spoil: Callable[[Path], object], said: str
) -> None:
    spoil(place)
    with logging_to(tmp_path / "log") as (_, written), pytest.raises(ServerSetupError):
        FileKeys(place).load()
    [line] = written.lines("library")
    assert (line["level"], line["logger"]) == ("error", "clinical_ser.api.watched_file")
    assert line["text"].startswith(said)
    assert "jane" not in written.text


def test_a_folder_in_the_files_place_takes_no_descriptors(tmp_path: Path) -> None:
    keys = FileKeys(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        assert keys.find("ec", "ES256") is None
        with pytest.raises(ServerSetupError, match="regular file"):
            keys.load()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_trouble_that_passes_does_not_stay(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, real = FileKeys(place), os.open

    def too_many(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", too_many)
    assert keys.find("ec", "ES256") is None
    monkeypatch.setattr(os, "open", real)
    assert keys.find("ec", "ES256")


def test_a_file_that_is_replaced_all_the_time_gives_one_set_or_the_other(place: Path, tmp_path: Path) -> None:
    keys, done = FileKeys(place), threading.Event()
    sets = [key_set(EC, RSA), key_set(EC, OTHER)]

    def replace() -> None:
        number = 0
        while not done.is_set():
            number += 1
            draft = tmp_path / "draft"
            draft.write_bytes(sets[number % 2])
            draft.replace(place)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(lambda _: keys.find("ec", "ES256") is not None, range(2000)))
    finally:
        done.set()
        thread.join()


# --- Addresses ----------------------------------------------------------------------------------------------------------------------------


class Site:
    """A server of one address, which counts how often it is asked and answers whatever it is told to."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.answer: Callable[[socket.socket], None] = saying(200, key_set(EC))
        self.url = ""


def saying(status: int, body: bytes, *headers: str, length: int | None = None) -> Callable[[socket.socket], None]:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body) if length is None else length}", *headers]
    whole = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
    return lambda sock: sock.sendall(whole)


@contextlib.contextmanager
def answering(tls: ssl.SSLContext | None = None) -> Iterator[Site]:
    site, stop = Site(), threading.Event()

    def serve(sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock:
            sock.settimeout(5)
            with tls.wrap_socket(sock, server_side=True) if tls else contextlib.nullcontext(sock) as plain:
                request = b""
                while b"\r\n\r\n" not in request:
                    more = plain.recv(65536)
                    if not more:
                        return
                    request += more
                site.asked.append(request)
                site.answer(plain)

    def run(listening: socket.socket) -> None:
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                threads.append(threading.Thread(target=serve, args=(listening.accept()[0],)))
                threads[-1].start()

    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.05)
        thread = threading.Thread(target=run, args=(listening,))
        thread.start()
        site.url = f"http{'s' if tls else ''}://127.0.0.1:{listening.getsockname()[1]}/keys"
        try:
            yield site
        finally:
            stop.set()
            for started in (thread, *threads):
                started.join(timeout=20)
                assert not started.is_alive()


@pytest.fixture
def site() -> Iterator[Site]:
    with answering() as made:
        yield made


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def keys(site: Site, clock: Clock) -> AddressKeys:
    return AddressKeys(site.url, clock=clock)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_keys_are_fetched_when_they_are_asked_for_and_kept(keys: AddressKeys, site: Site) -> None:
    assert keys.peek("ec", "ES256") is None
    assert site.asked == []
    found = keys.find("ec", "ES256")
    assert found is not None
    for _ in range(3):
        assert keys.find("ec", "ES256") is found
        assert keys.peek("ec", "ES256") is found
    assert len(site.asked) == 1
    assert site.asked[0].startswith(b"GET /keys HTTP/1.1\r\n")
    assert b"uthorization" not in site.asked[0]


def test_keys_are_there_before_anyone_asks_when_they_were_loaded(keys: AddressKeys) -> None:
    keys.load()
    assert keys.peek("ec", "ES256")


def test_an_unknown_key_has_the_set_fetched_again_once_a_minute(keys: AddressKeys, site: Site, clock: Clock) -> None:
    keys.load()
    site.answer = saying(200, key_set(OTHER))
    for number in range(50):
        assert keys.find(f"unknown{number}", "ES256") is None
        assert keys.find("other", "ES256") is None
    assert len(site.asked) == 1
    clock.now += RETRY_S
    assert keys.find("other", "ES256")
    assert keys.find("ec", "ES256") is None
    assert len(site.asked) == 2


def test_a_key_that_was_taken_back_is_not_found_once_more_after_a_quiet_night(keys: AddressKeys, site: Site, clock: Clock) -> None:
    keys.load()
    site.answer = saying(200, key_set(OTHER))
    clock.now += FRESH_S + 1
    assert keys.peek("ec", "ES256") is None
    assert keys.find("ec", "ES256") is None
    assert len(site.asked) == 2
    clock.now += 8 * 3600
    assert keys.peek("other", "ES256") is None
    assert keys.find("other", "ES256")
    assert len(site.asked) == 3


def test_a_key_that_was_taken_back_while_its_issuer_was_away_is_not_found_once_more(keys: AddressKeys, site: Site, clock: Clock) -> None:
    keys.load()
    site.answer = saying(503, b"")
    clock.now += FRESH_S + 1
    assert keys.find("ec", "ES256")
    site.answer = saying(200, key_set(OTHER))
    clock.now += 8 * 3600
    assert keys.find("ec", "ES256") is None
    assert keys.find("other", "ES256")


def test_all_who_come_back_after_a_quiet_night_wait_for_one_fetch(keys: AddressKeys, site: Site, clock: Clock) -> None:
    keys.load()
    release = threading.Event()
    site.answer = lambda sock: release.wait(10) and saying(200, GOOD)(sock)
    clock.now += 8 * 3600
    with ThreadPoolExecutor(12) as pool:
        asking = [pool.submit(keys.find, "ec", "ES256") for _ in range(12)]
        until(lambda: len(site.asked) == 2)
        assert not any(one.done() for one in asking)
        release.set()
        assert all(one.result() for one in asking)
    assert len(site.asked) == 2


def test_a_key_that_was_taken_back_is_believed_for_five_minutes_at_most_and_nobody_waits(keys: AddressKeys, site: Site, clock: Clock) -> None:
    keys.load()
    site.answer = saying(200, key_set(OTHER))
    clock.now += REFRESH_S
    assert keys.peek("ec", "ES256")
    assert len(site.asked) == 1
    clock.now += 1
    assert keys.peek("ec", "ES256")
    until(lambda: keys.peek("other", "ES256") is not None)
    assert keys.peek("ec", "ES256") is None
    assert len(site.asked) == 2


def test_a_slow_issuer_keeps_nobody_waiting_whose_key_is_known(keys: AddressKeys, site: Site, clock: Clock) -> None:
    keys.load()
    release = threading.Event()
    site.answer = lambda sock: release.wait(10) and saying(200, key_set(OTHER))(sock)
    clock.now += REFRESH_S + 1
    began = time.monotonic()
    for _ in range(100):
        assert keys.find("ec", "ES256")
    assert time.monotonic() - began < 2
    release.set()
    until(lambda: keys.peek("other", "ES256") is not None)
    assert len(site.asked) == 2


def test_without_its_issuer_a_key_is_believed_for_a_day(keys: AddressKeys, site: Site, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    keys.load()
    site.answer = saying(503, b"")
    with caplog.at_level(logging.INFO):
        for hours in (1, 6, 23.9):
            clock.now = 1000.0 + hours * 3600
            before = len(site.asked)
            assert keys.find("ec", "ES256")
            until(lambda: len(site.asked) > before)  # noqa: B023
            until(lambda: not keys._fetching.locked())
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        clock.now = 1000.0 + STALE_S + 1
        assert keys.find("ec", "ES256") is None
        assert keys.peek("ec", "ES256") is None
        site.answer = saying(200, key_set(EC))
        assert keys.find("ec", "ES256") is None
        clock.now += RETRY_S
        assert keys.find("ec", "ES256")


def test_an_issuer_that_publishes_a_secret_is_believed_no_more(keys: AddressKeys, site: Site, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    keys.load()
    site.answer = saying(200, raw_set(EC.jwk(), OTHER.jwk(d=b64(bytes(32)))))
    clock.now += RETRY_S
    assert keys.find("other", "ES256") is None
    assert keys.find("ec", "ES256") is None
    assert "private or symmetric" in caplog.text
    with pytest.raises(ServerSetupError, match="cannot be fetched"):
        keys.load()


def drip(sock: socket.socket) -> None:
    sock.sendall(b"HTTP/1.1 200 X\r\nContent-Length: 100\r\n\r\n")
    with contextlib.suppress(OSError):
        for _ in range(100):
            sock.sendall(b" ")
            time.sleep(0.05)


def endless(sock: socket.socket) -> None:
    sock.sendall(b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n")
    with contextlib.suppress(OSError):
        while True:
            sock.sendall(b"8000\r\n" + b" " * 0x8000 + b"\r\n")


def silent(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.recv(1)


GOOD = key_set(EC)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (saying(500, GOOD), "status 500"),
        (saying(404, GOOD), "status 404"),
        (saying(204, b""), "status 204"),
        (saying(200, b""), "not a JSON Web Key Set"),
        (saying(200, b"<html>"), "not a JSON Web Key Set"),
        (saying(200, GOOD[:-2]), "not a JSON Web Key Set"),
        (saying(200, GOOD, length=len(GOOD) + 1), "not arrive whole|does not speak|too long"),
        (saying(200, GOOD + b" " * (MAX_SET_BYTES + 1 - len(GOOD))), "longer than"),
        (saying(200, GOOD, length=1 << 40), "not arrive whole|too long"),
        (endless, "longer than"),
        (lambda sock: None, "RemoteDisconnected"),
        (lambda sock: sock.sendall(b"SSH-2.0-OpenSSH_9.6\r\n"), "does not speak HTTP"),
        (lambda sock: sock.sendall(b"HTTP/1.1 200 X\r\n" + b"A: b\r\n" * 1000 + b"\r\n"), "does not speak HTTP"),
    ],
    ids=["500", "404", "204", "empty", "html", "cut", "short", "big", "announced", "endless", "closed", "ssh", "headers"],
)
def test_an_answer_that_is_none_gives_no_keys(
    keys: AddressKeys, site: Site, answer: Callable[[socket.socket], None], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    site.answer = answer
    assert keys.find("ec", "ES256") is None
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert re.search(why, record.getMessage())
    assert "127.0.0.1" not in caplog.text.replace(record.pathname, "")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(keys: AddressKeys, site: Site, status: int) -> None:
    with answering() as elsewhere:
        site.answer = saying(status, GOOD, f"Location: {elsewhere.url}")
        assert keys.find("ec", "ES256") is None
        assert elsewhere.asked == []


@pytest.mark.parametrize("answer", [drip, silent], ids=["dripping", "silent"])
def test_nobody_waits_longer_than_the_time_limit(
    keys: AddressKeys, site: Site, answer: Callable[[socket.socket], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(key_sets, "TIMEOUT_S", 0.3)
    site.answer = answer
    began = time.monotonic()
    assert keys.find("ec", "ES256") is None
    assert time.monotonic() - began < 2
    assert re.search("took too long|not arrive whole in time", caplog.text)


def test_a_port_where_nobody_listens_gives_no_keys(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    keys = AddressKeys(f"http://127.0.0.1:{port}/", clock=clock)
    assert keys.find("ec", "ES256") is None
    assert "refused" in caplog.text.lower()


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [(503, b"", "answers with an error"), (200, b"<html>", "has no key set that is good here"), (None, b"", "does not answer as it should")],
    ids=["error", "no key set", "no answer"],
)
def test_the_servers_log_says_why_the_keys_at_an_address_cannot_be_fetched(
    keys: AddressKeys, site: Site, tmp_path: Path, status: int | None, body: bytes, said: str
) -> None:
    site.answer = saying(status, body) if status else lambda sock: None
    with logging_to(tmp_path / "log") as (_, written):
        assert keys.find("ec", "ES256") is None
    [line] = written.lines("library")
    assert line["text"].startswith(f"The address of an issuer's keys {said}")


def test_a_rush_fetches_once_and_only_a_few_wait(keys: AddressKeys, site: Site) -> None:
    release = threading.Event()
    site.answer = lambda sock: release.wait(10) and saying(200, GOOD)(sock)
    with ThreadPoolExecutor(12) as pool:
        asking = [pool.submit(keys.find, "ec", "ES256") for _ in range(12)]
        until(lambda: sum(one.done() for one in asking) == 12 - key_sets._WAITING)
        release.set()
        found = [one.result() for one in asking]
    assert sum(one is not None for one in found) == key_sets._WAITING
    assert len(site.asked) == 1
    # Whoever waited let go of the place.
    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(lambda _: keys.find("ec", "ES256"), range(3)))


@pytest.mark.parametrize(
    "url",
    [
        "http://id.example/keys",
        "http://127.0.0.1.example/keys",
        "http://10.0.0.1/keys",
        "ftp://127.0.0.1/keys",
        "file:///etc/keys.json",
        "https://user:password@id.example/keys",
        "https://id.example/keys#part",
        "https:///keys",
        "//id.example/keys",
        "id.example",
        "",
        "https://id.example/ keys",
        "https://id.example/\nkeys",
        "https://id.example:0/",
    ],
)
def test_an_address_that_is_not_safe_is_refused_when_it_is_configured(url: str) -> None:
    with pytest.raises(ServerSetupError) as caught:
        keys_at(url)
    assert "password" not in str(caught.value).replace("user name, password or fragment", "")
    assert "example" not in str(caught.value)


# --- TLS ----------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a self-signed certificate for 127.0.0.1 with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "issuer")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    path.write_bytes(made.public_bytes(Encoding.PEM) + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


def test_over_tls_only_a_trusted_issuer_is_believed(certificate: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=str(certificate))
    with answering(context) as site:
        assert AddressKeys(site.url, clock=clock).find("ec", "ES256") is None
        assert "certificate is not trusted" in caplog.text
        assert AddressKeys(site.url, clock=clock, tls=trusting).find("ec", "ES256")
        other_name = site.url.replace("127.0.0.1", "localhost")
        assert AddressKeys(other_name, clock=clock, tls=trusting).find("ec", "ES256") is None
    with answering() as plain:
        assert AddressKeys(plain.url.replace("http", "https"), clock=clock, tls=trusting).find("ec", "ES256") is None


@pytest.fixture(scope="module", autouse=True)
def _keys_made_once() -> Iterator[None]:
    yield
    private_key.cache_clear()
