"""Time stamps by a real RFC 3161 authority (openssl ts), and the sheet of paper."""

import base64
import contextlib
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rfc3161_client import decode_timestamp_response

from clinical_ser.audit.anchor import (
    MAX_RESPONSE_BYTES,
    load_roots,
    request_timestamp,
    save_timestamp,
    timestamp_path,
    timestamp_request,
    verify_timestamp,
)
from clinical_ser.audit.paper import matches_printed, printed_checkpoint
from clinical_ser.errors import AuditConflictError, AuditFormatError, AuditKeyError, AuditTamperedError, AuditUnavailableError, WitnessError
from tests.audit.test_witness import COSIGNER, LOG, ORIGIN, GrowingLog

NOTE = LOG.note(5).encode()
OTHER_NOTE = LOG.note(6).encode()
SHA256_OID, SHA3_256_OID = (bytes.fromhex(f"06096086480165030402{last}") for last in ("01", "08"))
ALTERED = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
REPLY = "application/timestamp-reply"

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl program to play the authority")

_CONFIG = """
[authority]
serial = {folder}/serial
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = {digests}
accuracy = secs:1
ordering = no
tsa_name = no
ess_cert_id_chain = no
ess_cert_id_alg = sha256
"""


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


class Authority:
    """A root, and under it a time stamping authority that answers queries with `openssl ts -reply`."""

    def __init__(
        self,
        folder: Path,
        *,
        valid: tuple[timedelta, timedelta] = (timedelta(days=-10), timedelta(days=10)),
        usage: x509.ObjectIdentifier | None = ExtendedKeyUsageOID.TIME_STAMPING,
        critical: bool = True,
        digests: str = "sha256",
    ) -> None:
        self.folder = folder
        root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        now = datetime.now(UTC)
        root_name = _name("Root of the tests")
        self.root = (
            x509.CertificateBuilder(root_name, root_name, root_key.public_key(), 1, now - timedelta(days=100), now + timedelta(days=100))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(root_key.public_key()), critical=False)
            .sign(root_key, SHA256())
        )
        builder = x509.CertificateBuilder(root_name, _name("Authority of the tests"), key.public_key(), 2, now + valid[0], now + valid[1])
        builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False)
        if usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=critical)
        self.certificate = builder.sign(root_key, SHA256())
        (folder / "tsa.pem").write_bytes(self.certificate.public_bytes(Encoding.PEM))
        (folder / "tsa.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        (folder / "serial").write_text("01\n", encoding="ascii")
        (folder / "ts.cnf").write_text(_CONFIG.format(folder=folder, digests=digests), encoding="ascii")

    def answer(self, query: bytes) -> bytes:
        (self.folder / "query").write_bytes(query)
        command = "openssl ts -reply -config ts.cnf -section authority -queryfile query -inkey tsa.key -signer tsa.pem -out reply"
        subprocess.run(command.split(), cwd=self.folder, check=True, capture_output=True)
        return (self.folder / "reply").read_bytes()

    def stamp(self, note: bytes = NOTE) -> bytes:
        return self.answer(timestamp_request(note).as_bytes())


@dataclass(frozen=True)
class Stamped:
    """One authority and one stamp that many tests look at."""

    authority: Authority

    @cached_property
    def response(self) -> bytes:
        return self.authority.stamp()


@pytest.fixture(scope="module")
def stamped(tmp_path_factory: pytest.TempPathFactory) -> Stamped:
    return Stamped(Authority(tmp_path_factory.mktemp("authority")))


@contextlib.contextmanager
def served(answer: Callable[[bytes], bytes], *, status: int = 200, content_type: str = REPLY) -> Iterator[str]:
    """Answer POST requests on a port that the system chose."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.headers["Content-Type"] == "application/timestamp-query"
            body = answer(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            if status in {301, 302, 307}:
                self.send_header("Location", "/elsewhere")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/tsr"
        finally:
            server.shutdown()
            thread.join()


# Asking


@needs_openssl
def test_a_checkpoint_is_stamped_by_a_real_authority_and_verified_offline(stamped: Stamped) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    with served(stamped.authority.answer) as url:
        response = request_timestamp(url, NOTE, [stamped.authority.root])
    timestamp = verify_timestamp(NOTE, response, [stamped.authority.root])
    assert before <= timestamp.time <= datetime.now(UTC)
    assert timestamp.policy == "1.2.3.4.1"
    assert timestamp.serial > 0


@needs_openssl
def test_openssl_reads_our_stamp_too(stamped: Stamped, tmp_path: Path) -> None:
    (tmp_path / "note").write_bytes(NOTE)
    (tmp_path / "note.tsr").write_bytes(stamped.response)
    (tmp_path / "root.pem").write_bytes(stamped.authority.root.public_bytes(Encoding.PEM))
    command = "openssl ts -verify -data note -in note.tsr -CAfile root.pem"
    assert subprocess.run(command.split(), cwd=tmp_path, check=False, capture_output=True).returncode == 0


def test_only_the_hash_is_sent_each_time_with_another_nonce() -> None:
    first, second = timestamp_request(NOTE), timestamp_request(NOTE)
    assert ORIGIN.encode() not in first.as_bytes()
    assert first.nonce != second.nonce
    assert first.cert_req
    assert len(first.as_bytes()) < 100


@needs_openssl
def test_an_old_answer_played_again_is_noticed(stamped: Stamped) -> None:
    with served(lambda _: stamped.response) as url, pytest.raises(WitnessError, match="another request"):
        request_timestamp(url, NOTE, [stamped.authority.root])


@needs_openssl
def test_a_stamp_of_something_else_is_not_taken(stamped: Stamped) -> None:
    with served(lambda _: stamped.authority.stamp(OTHER_NOTE)) as url, pytest.raises(AuditTamperedError, match="another checkpoint"):
        request_timestamp(url, NOTE, [stamped.authority.root])


@needs_openssl
def test_an_authority_that_refuses_is_an_error_that_says_so(tmp_path: Path) -> None:
    authority = Authority(tmp_path, digests="sha512")
    with served(authority.answer) as url, pytest.raises(WitnessError, match="rejection"):
        request_timestamp(url, NOTE, [authority.root])


@pytest.mark.parametrize(
    ("body", "status", "content_type", "match"),
    [
        (b"", 200, REPLY, "in DER"),
        (b"canary", 200, REPLY, "in DER"),
        (b"canary", 200, "text/html", "not with a time stamp"),
        (b"canary", 500, REPLY, "status 500"),
        (b"", 302, REPLY, "redirect"),
        (b"x" * (MAX_RESPONSE_BYTES + 1), 200, REPLY, "longer than"),
        (bytes.fromhex("30053003020100"), 200, REPLY, "granted as asked"),  # PKIStatusInfo granted, and no token
    ],
)
def test_an_answer_that_is_no_stamp_is_an_error(stamped: Stamped, body: bytes, status: int, content_type: str, match: str) -> None:
    with served(lambda _: body, status=status, content_type=content_type) as url, pytest.raises(WitnessError, match=match) as caught:
        request_timestamp(url, NOTE, [stamped.authority.root])
    assert "canary" not in str(caught.value)


def test_an_authority_without_tls_is_asked_on_this_machine_only(stamped: Stamped) -> None:
    with pytest.raises(WitnessError, match="https"):
        request_timestamp("http://tsa.example/tsr", NOTE, [stamped.authority.root])


# Verifying


@needs_openssl
def test_a_stamp_is_of_its_checkpoint_to_the_last_byte(stamped: Stamped) -> None:
    cosigned = LOG.checkpoint(5).sign([LOG.signer, COSIGNER]).encode()
    for other in (OTHER_NOTE, NOTE[:-1], NOTE + b"\n", cosigned, b""):
        with pytest.raises(AuditTamperedError, match="another checkpoint"):
            verify_timestamp(other, stamped.response, [stamped.authority.root])


@needs_openssl
def test_a_stamp_under_another_root_is_refused(stamped: Stamped, tmp_path: Path) -> None:
    stranger = Authority(tmp_path)
    with pytest.raises(AuditTamperedError, match="does not lead to a root"):
        verify_timestamp(NOTE, stamped.response, [stranger.root])
    assert verify_timestamp(NOTE, stamped.response, [stranger.root, stamped.authority.root])
    with pytest.raises(AuditKeyError, match="at least one root"):
        verify_timestamp(NOTE, stamped.response, [])


@needs_openssl
@pytest.mark.parametrize("days", [(-20, -1), (1, 20)])
def test_a_certificate_that_was_not_valid_when_it_stamped_is_refused(tmp_path: Path, days: tuple[int, int]) -> None:
    authority = Authority(tmp_path, valid=(timedelta(days=days[0]), timedelta(days=days[1])))
    with pytest.raises(AuditTamperedError, match=r"expired|not yet valid"):
        verify_timestamp(NOTE, authority.stamp(), [authority.root])


@needs_openssl
def test_a_certificate_that_expired_after_it_stamped_is_no_fault(tmp_path: Path) -> None:
    authority = Authority(tmp_path, valid=(timedelta(days=-1), timedelta(seconds=3)))
    response = authority.stamp()
    while datetime.now(UTC) <= authority.certificate.not_valid_after_utc:
        time.sleep(0.1)
    assert verify_timestamp(NOTE, response, [authority.root]).time <= authority.certificate.not_valid_after_utc


def _der(tag: int, content: bytes) -> bytes:
    return bytes([tag, 0x82]) + len(content).to_bytes(2, "big") + content


def _signed_by(authority: Authority, tst_info: bytes) -> bytes:
    """Return a response over any TSTInfo: what `openssl ts` does, without the questions that it asks first."""
    (authority.folder / "tstinfo").write_bytes(tst_info)
    command = "openssl cms -sign -binary -nodetach -cades -econtent_type id-smime-ct-TSTInfo -in tstinfo -signer tsa.pem -inkey tsa.key -outform DER"
    token = subprocess.run(command.split(), cwd=authority.folder, check=True, capture_output=True).stdout
    return _der(0x30, bytes.fromhex("3003020100") + token)


@needs_openssl
@pytest.mark.parametrize(
    ("usage", "critical", "match"),
    [
        (ExtendedKeyUsageOID.TIME_STAMPING, True, None),
        (ExtendedKeyUsageOID.TIME_STAMPING, False, "purpose"),
        (ExtendedKeyUsageOID.SERVER_AUTH, True, "purpose"),
        (ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE, True, "purpose"),
        (None, True, "purpose"),
    ],
)
def test_only_a_certificate_for_time_stamps_alone_stamps(
    stamped: Stamped, tmp_path: Path, usage: x509.ObjectIdentifier | None, critical: bool, match: str | None
) -> None:
    authority = Authority(tmp_path, usage=usage, critical=critical)
    response = _signed_by(authority, decode_timestamp_response(stamped.response).tst_info.as_bytes())
    if match is None:
        assert verify_timestamp(NOTE, response, [authority.root])
    else:
        with pytest.raises(AuditTamperedError, match=match):
            verify_timestamp(NOTE, response, [authority.root])


@needs_openssl
def test_another_time_put_into_a_stamp_is_noticed(stamped: Stamped) -> None:
    info = decode_timestamp_response(stamped.response).tst_info
    written = info.gen_time.strftime("%Y%m%d%H%M%SZ").encode()
    assert written in stamped.response
    earlier = stamped.response.replace(written, b"2020" + written[4:])
    with pytest.raises(AuditTamperedError):
        verify_timestamp(NOTE, earlier, [stamped.authority.root])


@needs_openssl
def test_a_stamp_over_another_kind_of_hash_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path, digests="sha256, sha512")
    (tmp_path / "note").write_bytes(NOTE)
    query = subprocess.run(["openssl", "ts", "-query", "-data", "note", "-sha512", "-cert"], cwd=tmp_path, check=True, capture_output=True).stdout
    with pytest.raises(AuditTamperedError):
        verify_timestamp(NOTE, authority.answer(query), [authority.root])
    # The right 32 bytes, under the name of another algorithm of that length (SHA3-256).
    info = decode_timestamp_response(authority.stamp()).tst_info.as_bytes()
    assert info.count(SHA256_OID) == 1
    with pytest.raises(AuditTamperedError, match="SHA-256"):
        verify_timestamp(NOTE, _signed_by(authority, info.replace(SHA256_OID, SHA3_256_OID)), [authority.root])


@needs_openssl
def test_a_stamp_granted_with_changes_is_not_the_one_that_was_asked_for(stamped: Stamped) -> None:
    changed = stamped.response.replace(bytes.fromhex("3003020100"), bytes.fromhex("3003020101"), 1)
    with pytest.raises(AuditFormatError, match="granted with mods"):
        verify_timestamp(NOTE, changed, [stamped.authority.root])


@needs_openssl
@ALTERED
@given(data=st.data())
def test_an_altered_stamp_says_the_same_or_is_refused(stamped: Stamped, data: st.DataObject) -> None:
    """Bytes outside the signature (an algorithm's name) may change unseen; what the stamp says may not."""
    genuine = verify_timestamp(NOTE, stamped.response, [stamped.authority.root])
    response = bytearray(stamped.response)
    for place, bit in data.draw(st.lists(st.tuples(st.integers(0, len(response) - 1), st.integers(0, 7)), min_size=1, max_size=4)):
        response[place] ^= 1 << bit
    with contextlib.suppress(AuditTamperedError, AuditFormatError):
        assert verify_timestamp(NOTE, bytes(response), [stamped.authority.root]) == genuine


@needs_openssl
def test_a_stamp_cut_short_or_gone_on_with_is_none(stamped: Stamped) -> None:
    whole = stamped.response
    for broken in [*(whole[:length] for length in range(0, len(whole), 7)), whole[:-1], whole + b"\0", whole * 2]:
        with pytest.raises(AuditFormatError):
            verify_timestamp(NOTE, broken, [stamped.authority.root])


@ALTERED
@given(response=st.binary(max_size=200))
def test_any_bytes_are_no_stamp(stamped: Stamped, response: bytes) -> None:
    with pytest.raises(AuditFormatError):
        verify_timestamp(NOTE, response, [stamped.authority.root])


@needs_openssl
def test_a_strange_certificate_put_into_a_stamp_is_refused(stamped: Stamped, tmp_path: Path) -> None:
    """Certificates in a stamp are not signed: whoever keeps it can add any."""
    bad = bytearray(stamped.authority.certificate.public_bytes(Encoding.DER))
    version = bad.index(bytes.fromhex("a003020102"))
    bad[version + 4] = 7
    der = stamped.authority.certificate.public_bytes(Encoding.DER)
    with pytest.raises((AuditTamperedError, AuditFormatError)):
        verify_timestamp(NOTE, stamped.response.replace(der, bytes(bad)), [stamped.authority.root])


# Keeping


def test_a_stamp_lies_beside_its_checkpoint_and_is_never_replaced(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-5"
    path = save_timestamp(b"first", checkpoint)
    assert path == timestamp_path(checkpoint) == tmp_path / "checkpoint-5.tsr"
    with pytest.raises(AuditConflictError, match="already"):
        save_timestamp(b"second", checkpoint)
    assert path.read_bytes() == b"first"
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint-5.tsr"]


def test_a_stamp_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for nowhere in (tmp_path / "no folder" / "checkpoint", tmp_path / "file" / "checkpoint"):
        with pytest.raises(AuditUnavailableError, match="cannot be written"):
            save_timestamp(b"stamp", nowhere)


def test_roots_are_read_from_pem(stamped: Stamped, tmp_path: Path) -> None:
    file = tmp_path / "roots.pem"
    pem = stamped.authority.root.public_bytes(Encoding.PEM)
    file.write_bytes(pem * 2)
    assert load_roots(file) == (stamped.authority.root,) * 2
    for content in (b"", b"canary", pem[: len(pem) // 2], pem + b"#" * 1_100_000):
        file.write_bytes(content)
        with pytest.raises(AuditKeyError, match="holds no certificate"):
            load_roots(file)
    with pytest.raises(AuditKeyError, match="cannot be read"):
        load_roots(tmp_path)


# Paper

PRINTED = LOG.checkpoint(1234567 % 50)
HEX = PRINTED.root.hex()


def test_the_sheet_has_all_that_is_needed_to_compare() -> None:
    note = LOG.checkpoint(34).sign([LOG.signer, COSIGNER])
    sheet = printed_checkpoint(note)
    root = LOG.checkpoint(34).root
    key_id = f"{COSIGNER.key.key_id:08x}"
    for needed in (ORIGIN, "    34\n", base64.b64encode(root).decode(), "witness.example/w1", key_id, "Signature", "Date and time"):
        assert needed in sheet
    lines = sheet.splitlines()
    assert max(map(len, lines)) <= 78
    assert len(lines) <= 60
    assert all(line == line.rstrip() for line in lines)
    assert all(line.isprintable() for line in lines)


def test_what_is_typed_from_the_sheet_matches_its_checkpoint() -> None:
    lines = printed_checkpoint(LOG.note(34)).splitlines()
    start = next(number for number, line in enumerate(lines) if line.endswith("to read aloud")) + 1
    typed = "\n".join(lines[start : start + 4])
    assert matches_printed(typed, LOG.checkpoint(34))
    assert matches_printed(typed.upper(), LOG.checkpoint(34))
    assert not matches_printed(typed, LOG.checkpoint(33))
    assert matches_printed(lines[start + 6], LOG.checkpoint(34)), "base64"


@pytest.mark.parametrize("typed", [HEX, HEX.upper(), " ".join(HEX), f"\t{HEX[:10]}\n\n{HEX[10:]} ", base64.b64encode(PRINTED.root).decode()])
def test_spaces_and_the_case_of_hex_do_not_matter(typed: str) -> None:
    assert matches_printed(typed, PRINTED)


@pytest.mark.parametrize("typed", ["", HEX[:-1], HEX + "0", "g" + HEX[1:], "０" + HEX[1:], "!" * 44, base64.b64encode(bytes(31)).decode(), "A" * 44])
def test_a_mistake_in_typing_is_not_taken_for_another_log(typed: str) -> None:
    with pytest.raises(AuditFormatError, match="read the line again"):
        matches_printed(typed, PRINTED)


@given(place=st.integers(0, 63), digit=st.sampled_from("0123456789abcdef"))
def test_one_wrong_digit_does_not_match(place: int, digit: str) -> None:
    assert matches_printed(HEX[:place] + digit + HEX[place + 1 :], PRINTED) == (HEX[place] == digit)


def test_the_case_of_base64_matters() -> None:
    encoded = base64.b64encode(PRINTED.root).decode()
    assert not matches_printed(encoded.swapcase(), PRINTED)


def test_what_is_no_checkpoint_is_not_printed() -> None:
    with pytest.raises(AuditFormatError):
        printed_checkpoint("canary")


def test_a_very_long_origin_still_fits_the_page() -> None:
    log = GrowingLog(origin="log.example/" + "x" * 240)
    assert max(map(len, printed_checkpoint(log.note(3)).splitlines())) <= 78
