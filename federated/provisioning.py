"""A hospital's folder: keys that are made there and stay there, and the kit of public parts that leaves it.

The one idea: nobody is sent a key. Each side makes its own, the other sees the public half with a fingerprint, and two people compare
fingerprints over the telephone before either side believes a file.
"""

import argparse
import hashlib
import json
import re
import secrets
import sys
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, NoReturn, Self, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from pydantic import StringConstraints, TypeAdapter, ValidationError

from clinical_ser.atomic_folder import write_new_file
from clinical_ser.errors import ClinicalSerError, FederationError, InvalidValueError
from clinical_ser.models.strict_json import StrictJsonError, canonical_json, parse_canonical_object
from clinical_ser.strict import Strict
from federated.names import Hex32, SiteName
from federated.processes import Command, check_server, keep_running, program

KIT_DOMAIN = b"clinical-ser federated kit v1\n"
"""What an identity signs begins with what it is for; a signature is good for one purpose only."""
AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 397
"""The longest that CA/Browser Forum's Baseline Requirements (2020) let a server's certificate last."""
SECRET_BYTES = 32
MOST_KIT_BYTES = 64 * 1024
TEMPLATES = Path(__file__).parent / "templates"
LOOPBACK = ("localhost", "127.0.0.1")
NODE_PORT = 9094
"""Where a SuperNode hands tasks to the gate, on this machine alone."""

_Model = TypeVar("_Model", bound=Strict)
ADDRESS = r"^[A-Za-z0-9.-]{1,253}:([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$"
Address = Annotated[str, StringConstraints(pattern=ADDRESS)]


class Kit(Strict):
    """What a site tells the coordinator: public halves, signed by the identity among them."""

    name: SiteName
    identity: Hex32
    """Ed25519 public key: signs every answer."""
    flower: str
    """P-384 public key in OpenSSH's form: by it the SuperLink knows the node."""
    request: str
    """Certificate signing request in PEM, for mutual TLS at a proxy."""
    signature: str = ""

    @property
    def fingerprint(self) -> str:
        """What two people read to each other."""
        return fingerprint(self._signed())

    def _signed(self) -> bytes:
        return KIT_DOMAIN + canonical_json(self.model_dump(exclude={"signature"}))

    def to_bytes(self, key: Ed25519PrivateKey) -> bytes:
        """Return the signed file."""
        return canonical_json(self.model_copy(update={"signature": key.sign(self._signed()).hex()}).model_dump())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a kit.

        Raises
        ------
        FederationError
            It is none, was changed, or holds keys of another kind.
        """
        kit = _read(cls, path, "kit")
        try:
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(kit.identity)).verify(bytes.fromhex(kit.signature), kit._signed())
            flower = load_ssh_public_key(kit.flower.encode())
            request = x509.load_pem_x509_csr(kit.request.encode())
        except (InvalidSignature, ValueError, UnsupportedAlgorithm):
            raise FederationError("The kit's signature does not fit: it was changed on its way, or is damaged.") from None
        if not isinstance(flower, ec.EllipticCurvePublicKey) or not request.is_signature_valid:
            raise FederationError("The kit holds keys of another kind than a node's.")
        return kit


class Invitation(Strict):
    """What the coordinator tells a site whose kit it approved."""

    consortium: SiteName
    site: SiteName
    address: Address
    """Where the SuperLink is reached."""
    identity: Hex32
    """Ed25519 public key of the coordinator: signs every request."""
    authority: str
    """Certificate of the consortium's authority, PEM."""
    certificate: str
    """The site's own, signed by that authority; for mutual TLS at a proxy."""

    @property
    def fingerprint(self) -> str:
        """What two people read to each other."""
        return fingerprint(b"invitation\n" + canonical_json(self.model_dump()))

    def to_bytes(self) -> bytes:
        """Return the file."""
        return canonical_json(self.model_dump())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read an invitation; FederationError where it is none."""
        return _read(cls, path, "invitation")


def _read(kind: type[_Model], path: Path, what: str) -> _Model:
    try:
        if path.stat().st_size > MOST_KIT_BYTES:
            raise FederationError(f"This is no {what}: it is too long.")
        return kind.model_validate(parse_canonical_object(path.read_bytes()))
    except OSError as error:
        raise FederationError(f"The {what} cannot be read: {error.strerror}.") from None
    except (StrictJsonError, ValidationError):
        raise FederationError(f"This is no {what} of this version, or it is damaged.") from None


def fingerprint(content: bytes) -> str:
    """Return 128 bits of a SHA-256 in groups of four, to be read aloud."""
    digits = hashlib.sha256(content).hexdigest()[:32]
    return " ".join(digits[i : i + 4] for i in range(0, len(digits), 4))


class NodeFolder:
    """Where everything of a node lies."""

    def __init__(self, folder: Path):
        self.folder = folder.absolute()

    @property
    def policy(self) -> Path:
        """What may happen here."""
        return self.folder / "node.toml"

    @property
    def identity(self) -> Path:
        """Private Ed25519 key."""
        return self.folder / "identity.pem"

    @property
    def home(self) -> Path:
        """Flower's folder."""
        return self.folder / "flower"

    @property
    def flower_key(self) -> Path:
        """Private P-384 key, in OpenSSH's form."""
        return self.folder / "flower.key"

    @property
    def tls_key(self) -> Path:
        """Private key of the certificate request."""
        return self.folder / "tls.key"

    @property
    def secret(self) -> Path:
        """What SuperNode and gate both know."""
        return self.folder / "gate.secret"

    @property
    def invitation(self) -> Path:
        """The coordinator's, after `node join`."""
        return self.folder / "consortium.json"

    @property
    def authority(self) -> Path:
        """By which the coordinator's certificate is verified."""
        return self.folder / "authority.pem"

    @property
    def certificate(self) -> Path:
        """The site's own, for a proxy."""
        return self.folder / "tls.pem"

    @property
    def kit(self) -> Path:
        """The only folder of which anything leaves."""
        return self.folder / "kit"

    @property
    def units(self) -> Path:
        """The systemd units and what else IT copies into its place."""
        return self.folder / "units"

    def read_invitation(self) -> Invitation:
        """Return whose consortium this is; FederationError before `node join`."""
        if not self.invitation.is_file():
            raise FederationError("This node has joined no consortium yet; `node join` takes the coordinator's invitation.")
        return Invitation.read(self.invitation)


def make_keys(folder: NodeFolder, name: str) -> Kit:
    """Make a site's keys, and its kit.

    Parameters
    ----------
    folder
        Exists; none of the keys does.
    name
        What the site is called in the consortium.
    """
    try:
        TypeAdapter(SiteName).validate_python(name)
    except ValidationError:
        raise InvalidValueError("name", name, "small letters, digits and hyphens, 40 at most") from None
    identity = Ed25519PrivateKey.generate()
    flower, tls = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(_called(name)).sign(tls, hashes.SHA384())
    _write_private(folder.identity, private_pem(identity))
    _write_private(folder.flower_key, flower.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    _write_private(folder.tls_key, private_pem(tls))
    _write_private(folder.secret, secrets.token_bytes(SECRET_BYTES))
    kit = Kit(
        name=name,
        identity=identity.public_key().public_bytes_raw().hex(),
        flower=flower.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode(),
        request=request.public_bytes(Encoding.PEM).decode(),
    )
    folder.kit.mkdir(mode=0o700)
    write_new_file(folder.kit / f"{name}.kit.json", kit.to_bytes(identity), mode=0o644)
    return kit


def join(folder: NodeFolder, invitation: Invitation, own_identity: str) -> None:
    """Keep a coordinator's invitation.

    Parameters
    ----------
    folder
        Of a node that has joined none.
    invitation
        Whose fingerprint was compared.
    own_identity
        Name under which the node knows itself.

    Raises
    ------
    FederationError
        It is another site's, or the node has joined already.
    """
    if invitation.site != own_identity:
        raise FederationError(f"This invitation is for the site {invitation.site!r}, and this is {own_identity!r}.")
    if folder.invitation.exists():
        raise FederationError("This node has joined a consortium already; move consortium.json away first.")
    folder.authority.unlink(missing_ok=True)
    folder.certificate.unlink(missing_ok=True)
    write_new_file(folder.authority, invitation.authority.encode(), mode=0o644)
    write_new_file(folder.certificate, invitation.certificate.encode(), mode=0o644)
    write_new_file(folder.invitation, invitation.to_bytes(), mode=0o644)


def write_units(folder: NodeFolder, program_path: str, address: str = "coordinator.example:443") -> None:
    """Fill the templates for a node in; the coordinator's address is known after `node join`."""
    folder.units.mkdir(mode=0o700, exist_ok=True)
    for template in ("clinical-ser-node.service", "site-proxy.conf"):
        text = (TEMPLATES / template).read_text(encoding="utf-8")
        filled = text.replace("@FOLDER@", str(folder.folder)).replace("@PROGRAM@", program_path).replace("@ADDRESS@", address)
        (folder.units / template).write_text(filled, encoding="utf-8")


def policy_text(name: str, table: Path) -> str:
    """Return a node.toml that allows nothing."""
    # A TOML basic string is a JSON string, as long as no DEL is in it.
    text = (TEMPLATES / "node.toml").read_text(encoding="utf-8")
    return text.replace("@NAME@", name).replace("@TABLE@", json.dumps(str(table), ensure_ascii=False))


def node_commands(folder: NodeFolder, address: str, *, port: int = NODE_PORT) -> list[Command]:
    """Return what runs at a site: a SuperNode that dials out to an address, and the gate that answers for it."""
    from federated import gate

    where = f"127.0.0.1:{port}"
    supernode = [
        program("flower-supernode"),
        *("--superlink", address, "--root-certificates", str(folder.authority)),
        *("--auth-supernode-private-key", str(folder.flower_key)),
        *("--isolation", "process", "--superexec-auth-secret-file", str(folder.secret)),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--node-config", f"folder='{folder.folder}'"),
    ]
    return [Command("supernode", supernode), Command("gate", gate.command("site", folder.folder, where, folder.secret))]


def run_node(folder: NodeFolder, *, through: str | None = None, port: int = NODE_PORT, logs: Path | None = None) -> tuple[str, int]:
    """Run a node until it is told to end, or one of its processes ends; see `keep_running`.

    Parameters
    ----------
    folder
        Of a node that has joined.
    through
        A proxy on this machine to dial instead of the coordinator.
    port
        Where SuperNode and gate meet, on loopback.
    logs
        Folder for what they write.

    Raises
    ------
    FederationError
        It has joined no consortium, or who answers there is not the coordinator.
    """
    if through is not None and re.fullmatch(ADDRESS, through) is None:
        raise InvalidValueError("--through", through, "a host and a port, as localhost:8443")
    address = through or folder.read_invitation().address
    check_server(address, folder.authority)
    folder.home.mkdir(mode=0o700, exist_ok=True)
    return keep_running(node_commands(folder, address, port=port), folder.home, logs=logs)


def main() -> NoReturn:
    """Run a node; what `node run` turns into."""
    parser = argparse.ArgumentParser(prog="clinical-ser node run")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=NODE_PORT)
    parser.add_argument("--through")
    parser.add_argument("--logs", type=Path)
    given = parser.parse_args()
    try:
        ended, status = run_node(NodeFolder(given.folder), through=given.through, port=given.port, logs=given.logs)
    except ClinicalSerError as error:
        ended, status = str(error), None
    if ended:
        why = ended if status is None else f"{ended} ended with exit status {status}; the coordinator takes a node that crashed back after 70 s."
        print(f"Stopped: {why}", file=sys.stderr, flush=True)  # noqa: T201
    sys.exit(1 if ended else 0)


class SiteHost:
    """What the gate asks at a site."""

    def __init__(self, folder: Path):
        self._folder = NodeFolder(folder)

    def approved_builds(self) -> Collection[str]:
        """Return the builds that node.toml names."""
        from federated.policy import Policy

        return Policy.read(self._folder.policy).approved_builds

    def record_refusal(self, build: str) -> None:
        """Write the refusal into the site's own log."""
        from federated.node import Node

        Node.open(self._folder.folder).record_refused_build(build)

    def load_app(self) -> Any:
        """Return the installed app."""
        from federated.client_app import app

        return lambda message, context: app(message=message, context=context)


def private_pem(key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key in PKCS #8."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write_private(path: Path, content: bytes) -> None:
    try:
        write_new_file(path, content, mode=0o600)
    except FileExistsError:
        raise FederationError(f"{path.name} is there already; keys are never overwritten.") from None
    except OSError as error:
        raise FederationError(f"{path.name} cannot be written: {error.strerror}.") from None


def _called(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


class Authority:
    """The consortium's certificate authority: it vouches for one server, and for sites towards a proxy."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate):
        self._key = key
        self.certificate = certificate

    @classmethod
    def create(cls, name: str) -> Self:
        """Make a new one."""
        key, now = ec.generate_private_key(ec.SECP384R1()), datetime.now(UTC)
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_called(f"{name} authority"))
            .issuer_name(_called(f"{name} authority"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(days=AUTHORITY_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA384())
        )
        return cls(key, certificate)

    @classmethod
    def load(cls, key: Path, certificate: Path) -> Self:
        """Read one; FederationError where it cannot be used."""
        try:
            private = load_pem_private_key(key.read_bytes(), password=None)
            found = x509.load_pem_x509_certificate(certificate.read_bytes())
        except OSError as error:
            raise FederationError(f"The authority cannot be read: {error.strerror}.") from None
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise FederationError("The authority's key or certificate is damaged.") from None
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise FederationError("The authority's key is of another kind.")
        return cls(private, found)

    @property
    def private_pem(self) -> bytes:
        """The key, PKCS #8."""
        return private_pem(self._key)

    @property
    def pem(self) -> str:
        """The certificate."""
        return self.certificate.public_bytes(Encoding.PEM).decode()

    def for_server(self, key: ec.EllipticCurvePrivateKey, hosts: Collection[str], *, days: float = CERTIFICATE_DAYS) -> bytes:
        """Return a server's certificate for these names and addresses, PEM; a negative number of days makes one that has expired."""
        return self._issue(_called("superlink"), key.public_key(), (ExtendedKeyUsageOID.SERVER_AUTH,), days, tuple(dict.fromkeys(hosts)))

    def for_site(self, kit: Kit, *, days: float = CERTIFICATE_DAYS) -> str:
        """Return a site's certificate by its request, PEM."""
        request = x509.load_pem_x509_csr(kit.request.encode())
        public = request.public_key()
        if not isinstance(public, ec.EllipticCurvePublicKey):
            raise FederationError("The kit's certificate request is for a key of another kind.")
        # Of the request only the key is taken: what a site calls itself is what was approved.
        # It also serves on the site's own loopback, where the proxy stands between the SuperNode and the coordinator.
        uses = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)
        return self._issue(_called(kit.name), public, uses, days, LOOPBACK).decode()

    def _issue(
        self,
        subject: x509.Name,
        public: ec.EllipticCurvePublicKey,
        uses: Collection[x509.ObjectIdentifier],
        days: float,
        hosts: Collection[str],
    ) -> bytes:
        now = datetime.now(UTC)
        end = now + timedelta(days=days)
        names = x509.SubjectAlternativeName([_general(host) for host in hosts])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.certificate.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(min(now, end) - timedelta(minutes=5))
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(names, critical=False)
        )
        return builder.sign(self._key, hashes.SHA384()).public_bytes(Encoding.PEM)


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)
