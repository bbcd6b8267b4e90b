"""Keys are made where they are used, and a changed kit is noticed."""

import json
import socket
import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from clinical_ser.errors import FederationError, InvalidValueError
from federated.consortium import Consortium, RunStatus, Settings, alone
from federated.processes import check_server
from federated.provisioning import Invitation, Kit, NodeFolder, join, make_keys, write_units


def make_node(folder, name="site-a"):
    folder.mkdir(mode=0o700)
    node = NodeFolder(folder)
    make_keys(node, name)
    return node


def kit_of(node, name="site-a"):
    return Kit.read(node.kit / f"{name}.kit.json")


@pytest.fixture
def node(tmp_path):
    return make_node(tmp_path / "node")


@pytest.fixture
def consortium(tmp_path):
    return Consortium.create(tmp_path / "hub", Settings(name="voices", address="localhost:8443", port=18000))


def test_private_keys_are_for_their_owner_alone_and_the_kit_holds_none(node):
    private = [node.identity, node.flower_key, node.tls_key, node.secret]
    assert [stat.S_IMODE(path.stat().st_mode) for path in private] == [0o600] * 4
    leaves = b"".join(path.read_bytes() for path in node.kit.iterdir())
    assert b"PRIVATE" not in leaves
    assert all(path.read_bytes() not in leaves for path in private)
    assert isinstance(load_ssh_private_key(node.flower_key.read_bytes(), None).curve, ec.SECP384R1)


def test_keys_are_never_overwritten(node):
    before = node.identity.read_bytes()
    with pytest.raises(FederationError, match="never overwritten"):
        make_keys(node, "site-a")
    assert node.identity.read_bytes() == before


@pytest.mark.parametrize("field", ["name", "identity", "flower", "request"])
def test_a_kit_changed_on_its_way_is_refused(node, tmp_path, field):
    other = kit_of(make_node(tmp_path / "other", "site-b"), "site-b").model_dump()
    path = node.kit / "site-a.kit.json"
    kit = json.loads(path.read_bytes())
    path.write_text(json.dumps(kit | {field: other[field]}, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n")
    with pytest.raises(FederationError, match="signature does not fit"):
        Kit.read(path)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 100, b'{"name":"a"}\n', b"x" * 100_000])
def test_what_is_no_kit_is_refused_by_name(tmp_path, content):
    path = tmp_path / "kit.json"
    path.write_bytes(content)
    with pytest.raises(FederationError, match="no kit"):
        Kit.read(path)


@pytest.mark.parametrize("name", ["Site A", "../x", "", "a" * 41])
def test_a_site_has_a_plain_name(tmp_path, name):
    (tmp_path / "node").mkdir()
    with pytest.raises(InvalidValueError, match="name"):
        make_keys(NodeFolder(tmp_path / "node"), name)


def test_both_sides_read_the_same_fingerprint(consortium, node):
    kit = kit_of(node)
    invitation = consortium.approve(kit)
    assert consortium.members()["site-a"].fingerprint == kit.fingerprint
    received = Invitation.read(consortium.folder / "invitations" / "site-a.invitation.json")
    assert received.fingerprint == invitation.fingerprint
    other = Invitation(**{**received.model_dump(), "identity": "0" * 64})
    assert other.fingerprint != invitation.fingerprint


def test_a_second_site_with_the_same_name_or_keys_is_refused(consortium, node, tmp_path):
    consortium.approve(kit_of(node))
    with pytest.raises(FederationError, match="with other keys"):
        consortium.approve(kit_of(make_node(tmp_path / "other")))
    same = kit_of(node).model_copy(update={"name": "site-b"})
    with pytest.raises(FederationError, match="makes its own"):
        consortium.approve(same)
    assert list(consortium.members()) == ["site-a"]


def test_a_node_joins_once_and_by_its_own_invitation(consortium, node):
    invitation = consortium.approve(kit_of(node))
    with pytest.raises(FederationError, match="joined no consortium"):
        node.read_invitation()
    with pytest.raises(FederationError, match="for the site 'site-a'"):
        join(node, invitation, "site-b")
    join(node, invitation, "site-a")
    assert node.read_invitation() == invitation
    with pytest.raises(FederationError, match="already"):
        join(node, invitation, "site-a")


def test_certificates_chain_to_the_authority_and_say_what_they_are_for(consortium, node):
    invitation = consortium.approve(kit_of(node))
    authority = x509.load_pem_x509_certificate(invitation.authority.encode())
    site = x509.load_pem_x509_certificate(invitation.certificate.encode())
    server = x509.load_pem_x509_certificate((consortium.folder / "server.pem").read_bytes())
    for certificate in (site, server):
        certificate.verify_directly_issued_by(authority)
        assert certificate.not_valid_after_utc - datetime.now(UTC) <= timedelta(days=397)
    names = site.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    # A site can pass for its own loopback, never for the coordinator.
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert not authority.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature


def serve_tls(consortium, stop):
    """Answer TLS handshakes with the consortium's certificate; returns the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(consortium.folder / "server.pem", consortium.folder / "server.key")
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.2)

    def answer():
        while not stop.is_set():
            try:
                plain, _ = listener.accept()
            except TimeoutError:
                continue
            with plain:
                plain.settimeout(5)
                try:
                    context.wrap_socket(plain, server_side=True).close()
                except (ssl.SSLError, OSError):
                    continue
        listener.close()

    thread = threading.Thread(target=answer)
    thread.start()
    return thread, listener.getsockname()[1]


@pytest.mark.parametrize(("days", "said"), [(30, None), (-1, "certificate has expired")])
def test_an_expired_certificate_is_refused_by_name(consortium, days, said):
    consortium.renew(days=days)
    stop = threading.Event()
    thread, port = serve_tls(consortium, stop)
    try:
        if said is None:
            check_server(f"localhost:{port}", consortium.folder / "authority.pem")
        else:
            with pytest.raises(FederationError, match=said):
                check_server(f"localhost:{port}", consortium.folder / "authority.pem")
    finally:
        stop.set()
        thread.join()


def test_another_authority_s_server_is_refused(consortium, tmp_path):
    other = Consortium.create(tmp_path / "other", Settings(name="other", address="localhost:8443", port=18001))
    stop = threading.Event()
    thread, port = serve_tls(consortium, stop)
    try:
        with pytest.raises(FederationError, match="refused"):
            check_server(f"localhost:{port}", other.folder / "authority.pem")
    finally:
        stop.set()
        thread.join()


def test_serving_with_an_expired_certificate_says_what_to_do(consortium):
    consortium.renew(days=-1)
    with pytest.raises(FederationError, match="consortium renew"):
        consortium.serve()


def test_the_superlink_is_started_with_every_protection(consortium):
    superlink = list(consortium.commands()[0].arguments)
    for word in (
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
        "--database",
        "--ssl-certfile",
        "--superexec-auth-secret-file",
    ):
        assert word in superlink
    assert superlink[superlink.index("--isolation") + 1] == "process"
    assert superlink[superlink.index("--host") + 1] == "127.0.0.1"
    assert "--insecure" not in superlink


def test_units_name_the_folder_and_wait_out_the_old_session(consortium, node):
    write_units(node, "/opt/clinical-ser/bin/clinical-ser")
    unit = (node.units / "clinical-ser-node.service").read_text()
    assert f"node run {node.folder}" in unit
    assert "RestartSec=70" in unit
    texts = [path.read_text() for folder in (node.units, consortium.folder / "units") for path in folder.iterdir()]
    assert len(texts) == 4
    assert not any("@" in text.replace("@system-service", "").replace("@privileged", "") for text in texts)
    proxy = (consortium.folder / "units" / "superlink-nginx.conf").read_text()
    assert "location /v1/fleet/" in proxy
    assert "return 404" in proxy


def test_a_run_whose_leader_died_can_be_told_from_one_that_goes_on(consortium):
    consortium.add_run("first", b"{}", "0" * 64)
    now = datetime.now(UTC)
    led = RunStatus(run="first", plan="0" * 64, state="running", process=1, started=now, updated=now)
    consortium.write_status(led)
    with alone(consortium.run_folder("first")) as free:
        assert free
        assert not consortium.status("first").interrupted
        with pytest.raises(FederationError, match="being led"):
            consortium.start("first", [])
    assert consortium.status("first").interrupted
    with pytest.raises(FederationError, match="already"):
        consortium.add_run("first", b"{}", "0" * 64)
