"""The coordinator's folder: its authority, the sites that it approved, the runs that it leads.

The one idea: Flower keeps no run alive across a crash, so nothing that matters is Flower's. A run is a folder with a plan and what was decoded
so far; a Flower run is an attempt at it, and the next attempt goes on where the last one ended.
"""

import fcntl
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field, ValidationError

from clinical_ser.atomic_folder import write_new_file
from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.cohorts.table import replaced
from clinical_ser.errors import FederationError, InvalidValueError
from clinical_ser.models.signing import PublicKey, SigningKey
from clinical_ser.models.strict_json import StrictJsonError, canonical_json, parse_canonical_object
from clinical_ser.strict import Strict
from federated.names import SiteName
from federated.processes import Command, environment, keep_running, program
from federated.provisioning import (
    CERTIFICATE_DAYS,
    LOOPBACK,
    SECRET_BYTES,
    TEMPLATES,
    Address,
    Authority,
    Invitation,
    Kit,
    private_pem,
)

FOLDER_VARIABLE = "CLINICAL_SER_CONSORTIUM"
WATCHING = "watching"
"""Folder for what runs of monitoring are read against: a reference and a state for each model."""
CONNECTION = "consortium"
"""Name of the SuperLink in Flower's own configuration."""
REGISTER_EVERY_S = 5.0
COMMAND_LIMIT_S = 60.0
LOOK_AGAIN_S = 0.05
EXPIRES_SOON = timedelta(days=30)


class Settings(Strict):
    """What does not change about a consortium."""

    name: SiteName
    address: Address
    """Where sites reach it."""
    port: int = Field(ge=1, le=65535)
    """Where the SuperLink listens, on this machine alone; a proxy stands in front of it."""
    host: str = "127.0.0.1"


class Exchange(Strict):
    """One exchange that a run made."""

    step: str
    seconds: float
    sent: int
    """Bytes, to all sites together."""
    received: int
    again: bool = False
    """An earlier attempt made it; its total was read from the disk."""


class RunStatus(Strict):
    """How far a run is; written by the process that leads it."""

    run: SiteName
    plan: str
    """Digest."""
    state: Literal["waiting", "running", "finished", "failed"]
    step: str = ""
    exchanges: tuple[Exchange, ...] = ()
    error: str | None = None
    attempt: int = 1
    process: int | None = None
    started: datetime
    updated: datetime
    bundle: str | None = None
    """Digest of the model that came out; None of a run that makes none."""
    missing: tuple[str, ...] = ()
    """Sites that were asked and have not answered; they are asked again."""

    interrupted: bool = False
    """Whether nobody leads it any more, though it has not ended; found out when it is read."""


@contextmanager
def alone(folder: Path, *, wait_s: float = 0.0) -> Iterator[bool]:
    """Hold a run's lock while it is led, and say whether it could be had: one process leads a run at a time."""
    end = time.monotonic() + wait_s
    with (folder / "lock").open("w") as lock:
        had = False
        while not had:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                had = True
            except BlockingIOError:
                if time.monotonic() >= end:
                    break
                time.sleep(LOOK_AGAIN_S)
        yield had


class Consortium:
    """A coordinator's folder."""

    def __init__(self, folder: Path):
        self.folder = folder.absolute()
        try:
            self.settings = Settings.model_validate(parse_canonical_object((self.folder / "consortium.json").read_bytes()))
        except OSError as error:
            raise FederationError(f"This is no consortium's folder: {error.strerror}.") from None
        except (StrictJsonError, ValidationError):
            raise FederationError("The consortium's settings are damaged, or of another version.") from None

    @classmethod
    def create(cls, folder: Path, settings: Settings) -> Self:
        """Make a folder with new keys, an authority and a server's certificate; FederationError where something is in the way."""
        folder = folder.absolute()
        try:
            folder.mkdir(mode=0o700, parents=True)
        except FileExistsError:
            raise FederationError("The folder is there already; a consortium is made in a new one.") from None
        authority, identity = Authority.create(settings.name), Ed25519PrivateKey.generate()
        for name, content in (
            ("authority.key", authority.private_pem),
            ("identity.pem", private_pem(identity)),
            ("gate.secret", secrets.token_bytes(SECRET_BYTES)),
        ):
            write_new_file(folder / name, content, mode=0o600)
        write_new_file(folder / "authority.pem", authority.pem.encode(), mode=0o644)
        for name in ("sites", "runs", "flower", "invitations"):
            (folder / name).mkdir(mode=0o700)
        write_new_file(folder / "consortium.json", canonical_json(settings.model_dump()), mode=0o600)
        # What sites put into `trusted_keys`, so that models of this coordinator are known to be.
        write_new_file(folder / "model-key.pub", PublicKey(identity.public_key().public_bytes_raw()).to_pem(), mode=0o644)
        log = LogConfiguration(f"{settings.name}.invalid/coordinator", f"sqlite:{folder / 'audit' / 'log.sqlite'}", folder / "audit" / "keys")
        log.create(folder / "audit.toml")
        made = cls(folder)
        made.renew()
        made._write_flower_configuration()
        made.write_units()
        return made

    @property
    def home(self) -> Path:
        """Flower's folder."""
        return self.folder / "flower"

    @property
    def identity(self) -> SigningKey:
        """The coordinator's key; it signs requests and the bundle."""
        return SigningKey.load(self.folder / "identity.pem")

    @property
    def audit(self) -> LogConfiguration:
        """The coordinator's own log; its head goes to the sites with every request."""
        return LogConfiguration.load(self.folder / "audit.toml")

    @property
    def local_address(self) -> str:
        """Where the SuperLink listens."""
        return f"{self.settings.host}:{self.settings.port}"

    def renew(self, *, days: float = CERTIFICATE_DAYS) -> datetime:
        """Make a new key and certificate for the server, and return until when it holds; the SuperLink takes it at its next start."""
        authority = Authority.load(self.folder / "authority.key", self.folder / "authority.pem")
        key = ec.generate_private_key(ec.SECP384R1())
        certificate = authority.for_server(key, [*LOOPBACK, self.settings.address.rpartition(":")[0]], days=days)
        for name, content in (("server.key", private_pem(key)), ("server.pem", certificate)):
            with replaced(self.folder / name) as draft:
                draft.write_bytes(content)
        return self.certificate_ends

    @property
    def certificate_ends(self) -> datetime:
        """Until when the server's certificate holds."""
        return x509.load_pem_x509_certificate((self.folder / "server.pem").read_bytes()).not_valid_after_utc

    def approve(self, kit: Kit) -> Invitation:
        """Take a site in whose fingerprint was compared, and write its invitation.

        Raises
        ------
        FederationError
            Another site has this name, or one of these keys.
        """
        for known in self.members().values():
            if known.name == kit.name and known != kit:
                raise FederationError(f"A site named {kit.name!r} is approved already, with other keys.")
            if known.name != kit.name and (known.identity == kit.identity or known.flower == kit.flower):
                raise FederationError(f"The site {known.name!r} has these keys already; every site makes its own.")
        authority = Authority.load(self.folder / "authority.key", self.folder / "authority.pem")
        invitation = Invitation(
            consortium=self.settings.name,
            site=kit.name,
            address=self.settings.address,
            identity=self.identity.public.raw.hex(),
            authority=authority.pem,
            certificate=authority.for_site(kit),
        )
        with replaced(self.folder / "invitations" / f"{kit.name}.invitation.json") as draft:
            draft.write_bytes(invitation.to_bytes())
        with replaced(self.folder / "sites" / f"{kit.name}.kit.json") as draft:
            draft.write_bytes(canonical_json(kit.model_dump()))
        return invitation

    def members(self) -> dict[str, Kit]:
        """Return the approved sites by name."""
        return {kit.name: kit for path in sorted((self.folder / "sites").glob("*.kit.json")) for kit in [Kit.read(path)]}

    def nodes(self) -> dict[str, int]:
        """Return the Flower node of every site that is registered with the SuperLink."""
        return {path.name.removesuffix(".node"): int(path.read_text()) for path in sorted((self.folder / "sites").glob("*.node"))}

    def register_missing(self) -> list[str]:
        """Register approved sites with the SuperLink, which has to run; return those that now are."""
        known, done = self.nodes(), []
        for name, kit in self.members().items():
            if name in known:
                continue
            key = self.home / f"{name}.pub"
            key.write_text(kit.flower, encoding="utf-8")
            answer = self._flower("supernode", "register", str(key), CONNECTION, "--name", name, "--format", "json")
            with replaced(self.folder / "sites" / f"{name}.node") as draft:
                draft.write_text(str(answer["node-id"]), encoding="utf-8")
            done.append(name)
        return done

    def _flower(self, *arguments: str) -> Mapping[str, Any]:
        done = subprocess.run(
            [program("flwr"), *arguments],
            env=environment(self.home),
            capture_output=True,
            text=True,
            timeout=COMMAND_LIMIT_S,
            check=False,
        )
        start = done.stdout.find("{")
        found: dict[str, Any] = json.JSONDecoder().raw_decode(done.stdout[start:])[0] if start >= 0 else {}
        # Flower's exit status is 0 also where it refuses.
        if done.returncode or not found.get("success"):
            said = str(found.get("error-message") or done.stderr or done.stdout)
            raise FederationError(f"The SuperLink did not take the command ({arguments[0]}): {' '.join(said.split())[:300]}")
        return found

    def _write_flower_configuration(self) -> None:
        text = (
            f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
            f'address = "{self.local_address}"\nroot-certificates = {json.dumps(str(self.folder / "authority.pem"))}\n'
        )
        (self.home / "config.toml").write_text(text, encoding="utf-8")

    def write_units(self) -> None:
        """Fill the templates in: a systemd unit, and the proxy's configuration."""
        units = self.folder / "units"
        units.mkdir(mode=0o700, exist_ok=True)
        host, _, port = self.settings.address.rpartition(":")
        known = {
            "@FOLDER@": str(self.folder),
            "@PROGRAM@": str(Path(sys.executable).parent / "clinical-ser"),
            "@HOST@": host,
            "@PORT@": port,
            "@LOCAL@": self.local_address,
        }
        for template in ("clinical-ser-consortium.service", "superlink-nginx.conf"):
            text = (TEMPLATES / template).read_text(encoding="utf-8")
            for mark, value in known.items():
                text = text.replace(mark, value)
            (units / template).write_text(text, encoding="utf-8")

    def commands(self) -> list[Command]:
        """Return what runs at the coordinator: the SuperLink, and the gate that leads runs."""
        from federated import gate

        superlink = [
            program("flower-superlink"),
            *("--host", self.settings.host, "--port", str(self.settings.port)),
            *("--ssl-ca-certfile", str(self.folder / "authority.pem")),
            *("--ssl-certfile", str(self.folder / "server.pem"), "--ssl-keyfile", str(self.folder / "server.key")),
            "--enable-supernode-auth",
            *("--isolation", "process", "--superexec-auth-secret-file", str(self.folder / "gate.secret")),
            *("--database", str(self.folder / "superlink.db"), "--disable-runtime-dependency-installation"),
        ]
        leads = gate.command("coordinator", self.folder, self.local_address, self.folder / "gate.secret", self.folder / "authority.pem")
        return [Command("superlink", superlink), Command("gate", leads)]

    def serve(self, *, logs: Path | None = None) -> tuple[str, int]:
        """Run the SuperLink until told to end, and register sites as they are approved; see `keep_running`.

        Raises
        ------
        FederationError
            The server's certificate has expired.
        """
        if self.certificate_ends <= datetime.now(UTC):
            raise FederationError(f"The server's certificate has expired on {self.certificate_ends:%Y-%m-%d}; `consortium renew` makes a new one.")
        last = time.monotonic()

        def register() -> None:
            nonlocal last
            if time.monotonic() - last < REGISTER_EVERY_S:
                return
            last = time.monotonic()
            try:
                if not set(self.nodes()) >= set(self.members()):
                    self.register_missing()
            except (FederationError, subprocess.TimeoutExpired) as error:
                print(f"A site could not be registered yet: {error}", file=sys.stderr, flush=True)  # noqa: T201

        return keep_running(self.commands(), self.home, logs=logs, also=register)

    def run_folder(self, run: str) -> Path:
        """Return a run's folder; InvalidValueError where there is none."""
        if run not in self.runs():
            raise InvalidValueError("run", run, self.runs() or "a run that was planned")
        return self.folder / "runs" / run

    def runs(self) -> list[str]:
        """Return the names of all runs."""
        return sorted(path.parent.name for path in (self.folder / "runs").glob("*/plan.json"))

    def add_run(self, run: str, plan: bytes, digest: str, *, beside: Callable[[Path], None] | None = None) -> None:
        """Keep a plan as a run to be made.

        Parameters
        ----------
        run
            Its name.
        plan, digest
            The plan's bytes, and what sites approve.
        beside
            Puts what the run begins with (a model, a memory) into the folder that it is given.
        """
        folder = self.folder / "runs" / run
        now = datetime.now(UTC)
        try:
            status = RunStatus(run=run, plan=digest, state="waiting", started=now, updated=now, attempt=0)
        except ValidationError:
            raise InvalidValueError("run", run, "small letters, digits and hyphens, 40 at most") from None
        if folder.exists():
            raise FederationError(f"There is a run {run!r} already.")
        # Made aside and moved, so that a run is there whole or not at all.
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as aside:
            draft = Path(aside) / run
            draft.mkdir(mode=0o700)
            write_new_file(draft / "plan.json", plan, mode=0o600)
            write_new_file(draft / "status.json", status.model_dump_json().encode(), mode=0o600)
            if beside is not None:
                beside(draft)
            draft.rename(folder)

    def status(self, run: str) -> RunStatus:
        """Return how far a run is."""
        folder = self.run_folder(run)
        try:
            found = RunStatus.model_validate_json((folder / "status.json").read_bytes())
            with alone(folder) as free:
                return found.model_copy(update={"interrupted": found.state == "running" and free})
        except (OSError, ValidationError):
            raise FederationError(f"The status of run {run!r} cannot be read.") from None

    def write_status(self, status: RunStatus) -> None:
        """Write how far a run is."""
        with replaced(self.folder / "runs" / status.run / "status.json") as draft:
            draft.write_text(status.model_dump_json(), encoding="utf-8")

    def start(self, run: str, sites: Sequence[str]) -> str:
        """Hand a run to the SuperLink, for the first time or again, and return the number that Flower gives the attempt.

        Raises
        ------
        FederationError
            It is being led already, has finished, a site is not registered, or the SuperLink does not answer.
        """
        from federated.gate import APP_FOLDER

        status = self.status(run)
        if status.state == "finished":
            raise FederationError(f"Run {run!r} has finished; its model is in the run's folder.")
        if status.state == "running" and not status.interrupted:
            raise FederationError(f"Run {run!r} is being led already.")
        if missing := sorted(set(sites) - set(self.nodes())):
            raise FederationError(f"These sites of the plan are not registered: {missing}. Approve their kits, and let `consortium serve` run.")
        answer = self._flower("run", str(APP_FOLDER), CONNECTION, "--run-config", f'run="{run}"', "--format", "json")
        return str(answer["run-id"])


class CoordinatorHost:
    """What the gate asks at the coordinator: only this version's own app leads runs here."""

    def __init__(self, folder: Path):
        self._folder = folder

    def approved_builds(self) -> Collection[str]:
        """Return this version's build."""
        from federated.gate import build_hash, build_of_this_version

        return {build_hash(build_of_this_version())}

    def record_refusal(self, build: str) -> None:
        """Say so where the gate writes."""
        print(f"refused: build {build} is not this version's", file=sys.stderr, flush=True)  # noqa: T201

    def load_app(self) -> Any:
        """Return the installed app, which learns from the environment whose it is."""
        os.environ[FOLDER_VARIABLE] = str(self._folder)
        from federated.server_app import app

        return app
