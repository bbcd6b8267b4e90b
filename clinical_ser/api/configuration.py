"""What a site configures for its server: one file, `server.toml`, read once and checked whole. Without a file, everything has its default.

The one idea: the defaults are safe. Whoever opens something up (another address, a proxy, an issuer) says so here, and what does not go together is
refused before a socket is opened.
"""

import ipaddress
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationError, model_validator

from clinical_ser.api.access import Scope
from clinical_ser.audit.events import Role
from clinical_ser.errors import ServerSetupError
from clinical_ser.folders import HOME_VARIABLE, user_folder
from clinical_ser.screening import DEFAULT_MODEL
from clinical_ser.strict import Strict

CONFIGURATION_VARIABLE = "CLINICAL_SER_SERVER"
FILE_NAME = "server.toml"
_MAX_FILE_BYTES = 1_000_000
_MIB = 1024 * 1024

Name = Annotated[str, Field(min_length=1, max_length=200)]
Tenant = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
"""No slash: `tenant/name` has to be one pair alone."""


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError("a path from the root is expected: the server runs in another folder than whoever wrote this")
    return path


def _https(url: str) -> str:
    parts = urlsplit(url)
    if not (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))) or not parts.hostname:
        raise ValueError("https://HOST… is expected, or http on a loopback address")
    if parts.username or parts.query or parts.fragment:
        raise ValueError("an address without user, query and fragment is expected")
    try:
        _ = parts.port
    except ValueError:
        raise ValueError("a port from 1 to 65535 is expected") from None
    return url


def _address(text: str) -> str:
    return str(ipaddress.ip_address(text))


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
Url = Annotated[str, AfterValidator(_https)]
Address = Annotated[str, AfterValidator(_address)]


class Listen(Strict):
    """Where the server listens, and what it is called from outside."""

    host: str = "127.0.0.1"
    port: int = Field(default=8443, ge=0, le=65535)
    certificate: AbsolutePath | None = None
    key: AbsolutePath | None = None
    """PEM files; None behind a proxy that has TLS, which then runs on this machine."""
    public_url: Url | None = None
    """How clients reach it; tokens are for this address, and links begin with it."""
    trusted_proxies: tuple[Address, ...] = ()
    """Whose X-Forwarded-For is believed."""
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """On a loopback address; None for no metrics."""

    @model_validator(mode="after")
    def _safe(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("TLS needs both files, certificate and key")
        if self.certificate is None and not is_loopback(self.host):
            raise ValueError("without TLS the server listens on a loopback address only: give certificate and key, or put a proxy before 127.0.0.1")
        return self


class Limits(Strict):
    """What a client may ask of the server."""

    body_bytes: int = Field(default=128 * _MIB, ge=1024, le=2048 * _MIB)
    """Of one recording as it is sent: an hour of 16 kHz speech as WAV has 110 MiB."""
    at_once_bytes: int = Field(default=8 * _MIB, ge=1024)
    """A longer body is accepted and answered later; it goes to the disk, encrypted, while it comes."""
    at_once_s: float = Field(default=90.0, gt=0)
    """A longer recording is answered later."""
    decoded_s: float = Field(default=7200.0, gt=0, le=7200.0)
    body_timeout_s: float = Field(default=300.0, gt=0)
    slowest_bytes_per_s: int = Field(default=8 * 1024, ge=0)
    """A body that comes slower, after ten seconds, is given up."""
    header_bytes: int = Field(default=16 * 1024, ge=2048)
    header_timeout_s: float = Field(default=10.0, gt=0)
    connections: int = Field(default=512, ge=1)
    bodies: int = Field(default=64, ge=1)
    """Bodies that are being read at a time."""
    requests_per_s: float = Field(default=50.0, gt=0)
    """Of one client, on average; twenty times as many at once."""
    failures: int = Field(default=20, ge=1)
    """Wrong tokens and keys of one address at once; then one a second."""
    screenings_per_s: float = Field(default=5.0, gt=0)
    concurrent: int = Field(default=8, ge=1)
    """Screenings of one client at a time."""
    waiting: int = Field(default=16, ge=0)
    """Recordings that wait for a worker while their clients wait; more are told to come back."""
    jobs: int = Field(default=100, ge=0)
    """Accepted recordings that wait or are worked on."""


class Work(Strict):
    """The processes that decode and screen."""

    workers: int = Field(default=2, ge=1, le=128)
    memory_mib: int = Field(default=3072, ge=512)
    """Of one worker's address space, in which libraries take some 1.5 GiB before there is a recording."""
    at_once_timeout_s: float = Field(default=30.0, gt=0)
    job_timeout_s: float = Field(default=1800.0, gt=0)
    recordings: int = Field(default=1000, ge=1)
    """After so many a worker is replaced by a fresh one."""


class Keep(Strict):
    """How long what is personal is kept."""

    results_days: int = Field(default=365, ge=1)
    """Results, sealed with their subject's key, for reports and the record system. The trail's own retention is in audit.toml."""
    repeats_hours: int = Field(default=24, ge=1, le=24 * 30)
    """For so long a repeated Idempotency-Key is known."""


class Issuer(Strict):
    """Who issues tokens that are believed (OpenID Connect, OAuth 2.0): see `clinical_ser.api.tokens.Issuer`, whose fields these are."""

    issuer: Name
    audience: Name
    keys: Url | AbsolutePath
    """Its key set: a file, or an address; never one that a token names."""
    algorithms: tuple[str, ...] = ("RS256", "ES256")
    client_ids: tuple[Name, ...] = ()
    """To which of its clients tokens have to be issued (`azp`, `client_id`); needed where the audience is not this API alone, as with SMART."""
    tenant: Tenant | None = None
    tenant_claim: Name | None = None
    role: Role | None = None
    role_claim: Name | None = None
    roles: dict[str, Role] = Field(default_factory=dict)
    scope_claims: tuple[Name, ...] = ("scope", "scp")
    scopes: dict[str, tuple[Scope, ...]] = Field(default_factory=dict)
    """The issuer's own words to our scopes."""
    always: tuple[Scope, ...] = ()
    at_most: tuple[Scope, ...] = tuple(Scope)
    subject_claim: Name = "sub"
    name_claim: Name | None = "name"
    max_lifetime_s: int = Field(default=12 * 3600, ge=60)
    leeway_s: int = Field(default=30, ge=0, le=60)
    single_use: bool = False
    access_tokens_only: bool = False


class SignIn(Strict):
    """An identity provider that people sign in with on the page, by authorization code with PKCE."""

    name: Name
    authorization_endpoint: Url
    token_endpoint: Url
    client_id: Name
    scope: Name = "openid profile"


class Smart(Strict):
    """A record system from which the report may be opened (SMART App Launch)."""

    iss: Url
    authorization_endpoint: Url
    token_endpoint: Url
    client_id: Name
    scope: Name = "launch openid fhirUser"


class CdsClientEntry(Strict):
    """A record system that may ask for cards (CDS Hooks 2.0). See `clinical_ser.api.cds_clients`."""

    iss: Name
    jku: Url | None = None
    keys: Url | AbsolutePath
    algorithms: tuple[Literal["ES384", "RS384", "ES256", "RS256"], ...] = ("ES384", "RS384")
    tenant: Tenant | None = None
    organisation: Name | None = None
    """What its tokens say in `tenant`, where one issuer serves several organisations."""
    subject: Literal["id", "reference"] = "id"
    """Whether this site names a person by the FHIR id (`123`) or by the reference (`Patient/123`)."""


class Cds(Strict):
    """CDS Hooks."""

    clients: tuple[CdsClientEntry, ...] = ()
    origins: tuple[Url, ...] = ()
    """Web pages that may ask from a browser."""
    freshest_days: int = Field(default=180, ge=1)
    """Older results are not shown."""


class Fhir(Strict):
    """How a record system names what we write."""

    subject_system: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9+.-]*:[!-~]+$", max_length=200)] = "urn:clinical-ser:subject"
    """Of the identifier by which a person is referred to."""
    subject: Literal["identifier", "reference"] = "identifier"
    """Whether the subject's name here is an identifier, or the id of a Patient resource."""


class Monitoring(Strict):
    """Counts of what was screened, by which a change is seen (`clinical-ser monitor`): cells by day and model, and nothing of anyone."""

    folder: AbsolutePath | None = None
    """Of the journal; without it nothing is counted, and a shadow is not asked."""
    person_days: int = Field(default=28, ge=1, le=366)
    """In so many days a person is counted once: several recordings of one person are not those of several."""


class ServerConfiguration(Strict):
    """Everything that a site configures for its server."""

    listen: Listen = Listen()
    limits: Limits = Limits()
    work: Work = Work()
    keep: Keep = Keep()
    models: tuple[Name, ...] = Field(default=(DEFAULT_MODEL,), min_length=1)
    """Names or folders; the first answers where none is asked for."""
    encoders: tuple[Name, ...] = ()
    tenants: tuple[Tenant, ...] = ()
    """Sites that share the installation and must not see each other; none for one site."""
    api_keys: AbsolutePath | None = None
    spool: AbsolutePath | None = None
    """A folder for accepted recordings, encrypted, until they are answered."""
    site: AbsolutePath | None = None
    """The reports' site.toml."""
    require_notice: bool = False
    """Refuse a person's recording until the log knows that they were told of the system (AI Act Art. 50(3))."""
    witness: AbsolutePath | None = None
    """A folder that `audit witness init` made: this installation then cosigns the checkpoints of other logs."""
    issuers: tuple[Issuer, ...] = ()
    sign_in: tuple[SignIn, ...] = ()
    smart: tuple[Smart, ...] = ()
    cds: Cds = Cds()
    fhir: Fhir = Fhir()
    monitoring: Monitoring = Monitoring()
    tracing: bool = False

    @property
    def trusted_proxies(self) -> frozenset[str]:
        """Addresses whose X-Forwarded-For is believed."""
        return frozenset(self.listen.trusted_proxies)

    @property
    def public_url(self) -> str:
        """How clients reach the server."""
        host = f"[{self.listen.host}]" if ":" in self.listen.host else self.listen.host
        return (self.listen.public_url or "").rstrip("/") or f"{'https' if self.listen.certificate else 'http'}://{host}:{self.listen.port}"

    @property
    def keys_file(self) -> Path:
        """Where API keys are."""
        return self.api_keys or _own_folder("config") / "api_keys.json"

    @property
    def spool_folder(self) -> Path:
        """Where accepted recordings wait."""
        return self.spool or _own_folder("data") / "spool"

    @property
    def someone_can_sign_in(self) -> bool:
        """Whether there is anyone whom the server would recognise."""
        return bool(self.issuers) or self.keys_file.exists()

    def check_may_serve(self) -> None:
        """Raise ServerSetupError for an address that others reach while nobody could sign in."""
        if not is_loopback(self.listen.host) and not self.someone_can_sign_in:
            raise ServerSetupError(
                "Beyond the loopback address nobody could sign in: make an API key (`clinical-ser serve keys add`), or configure an issuer."
            )

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        entries: tuple[Issuer | CdsClientEntry, ...] = (*self.issuers, *self.cds.clients)
        for entry in entries:
            named = entry.tenant is not None or (isinstance(entry, Issuer) and entry.tenant_claim is not None)
            if named != bool(self.tenants):
                raise ValueError("with `tenants` every issuer and record system is of one, or names it in a claim; without, of none")
            if entry.tenant is not None and entry.tenant not in self.tenants:
                raise ValueError("an issuer or a record system is of a tenant that is not one of `tenants`")
        return self

    @classmethod
    def default_path(cls) -> Path:
        """Return where the file is, or would be."""
        if named := os.environ.get(CONFIGURATION_VARIABLE):
            return Path(named)
        return _own_folder("config") / FILE_NAME

    @classmethod
    def find(cls, path: Path | None = None) -> Self:
        """Read the site's file; the defaults where it has none. One that is named has to be there.

        Raises
        ------
        ServerSetupError
            It cannot be read or used; the message names the field, and nothing of what it holds.
        """
        place = path or cls.default_path()
        if path is None and not os.environ.get(CONFIGURATION_VARIABLE) and not os.path.lexists(place):
            return cls.checked({})
        try:
            with place.open("rb") as file:
                raw = file.read(_MAX_FILE_BYTES + 1)
        except OSError as error:
            raise ServerSetupError(f"The server's configuration cannot be read: {error.strerror}.") from None
        if len(raw) > _MAX_FILE_BYTES:
            raise ServerSetupError("The server's configuration is larger than a megabyte.")
        try:
            return cls.checked(tomllib.loads(raw.decode("utf-8")))
        except (ValueError, RecursionError):
            raise ServerSetupError("The server's configuration is not TOML in UTF-8.") from None

    @classmethod
    def checked(cls, values: dict[str, Any]) -> Self:
        """Return the configuration of these values; ServerSetupError as for `find`."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "as a whole"
            raise ServerSetupError(f"The server's configuration does not fit: {field}: {first['msg'].removeprefix('Value error, ')}.") from None


def _own_folder(kind: str) -> Path:
    folder = user_folder(kind)
    if folder is None:
        raise ServerSetupError(f"This process has no home folder for the server's files; set {HOME_VARIABLE}, or name them in {FILE_NAME}.")
    return folder
