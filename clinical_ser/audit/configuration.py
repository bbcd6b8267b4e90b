"""Where a site's log is: one TOML file, and how to open what it names.

    origin = "hospital.example/screening"
    database = "sqlite:/var/lib/clinical-ser/audit.sqlite"
    keys = "/etc/clinical-ser/keys/audit"

The one idea: as long as that file is there, every answer is recorded or not given; nobody has to remember an option.
"""

import contextlib
import json
import os
import shutil
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, field_validator

from clinical_ser.atomic_folder import write_new_file
from clinical_ser.audit.database import Database
from clinical_ser.audit.keys import LogKeys
from clinical_ser.audit.log import AuditLog, Held, create_log
from clinical_ser.audit.pin import Pin
from clinical_ser.audit.reading import DatabaseReader, readable
from clinical_ser.audit.sqlite import SqliteDatabase
from clinical_ser.audit.vault import Vault
from clinical_ser.audit.verifying import Report, VerifiedLog, verify_log
from clinical_ser.errors import AuditKeyError, AuditSetupError
from clinical_ser.folders import HOME_VARIABLE, user_folder
from clinical_ser.strict import Strict

CONFIGURATION_VARIABLE = "CLINICAL_SER_AUDIT"
"""Names another configuration file than the user's."""
_SQLITE = "sqlite:"
_POSTGRES = ("postgresql://", "postgres://")
_VAULT = "vault.sqlite"
_PIN = "kept.checkpoint"

MINIMUM_RETENTION_DAYS = 183
"""Six months: AI Act Art. 19(1) and 26(6), the least that a deployer of a high-risk system keeps its logs."""
DEFAULT_RETENTION_DAYS = 6 * 365 + 2
"""Six years: 45 CFR 164.316(b)(2)(i) for documentation, 164.528(a)(1) for accountings."""


class _File(Strict):
    origin: str = Field(min_length=1, max_length=200)
    database: str
    keys: str
    retention_days: int = Field(default=DEFAULT_RETENTION_DAYS, ge=MINIMUM_RETENTION_DAYS)

    @field_validator("database")
    @classmethod
    def _known_kind(cls, value: str) -> str:
        if not value.startswith((_SQLITE, *_POSTGRES)):
            raise ValueError(f"begins with {_SQLITE} or {_POSTGRES[0]}")
        return value


def _checked(values: dict[str, Any]) -> _File:
    try:
        return _File.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise AuditSetupError(f"The configuration of the audit log does not fit: {field}: {first['msg']}.") from None


@dataclass(frozen=True)
class LogConfiguration:
    """A site's log.

    Attributes
    ----------
    origin
        The log's name in its checkpoints and keys: a URL without a scheme, as `hospital.example/screening`.
    database
        `sqlite:PATH` or `postgresql://…`.
    keys
        The folder of the signing keys, the vault, and the head that is kept outside of the database.
    retention_days
        How long records are kept at least, before they are erased for another reason than a person's request.
    """

    origin: str
    database: str
    keys: Path
    retention_days: int = DEFAULT_RETENTION_DAYS

    @classmethod
    def default_path(cls) -> Path:
        """Return where the configuration is, or would be; AuditSetupError where the process has no home."""
        if named := os.environ.get(CONFIGURATION_VARIABLE):
            return Path(named)
        folder = user_folder("config")
        if folder is None:
            raise AuditSetupError(f"This process has no home folder to look for audit.toml in; set {HOME_VARIABLE} or {CONFIGURATION_VARIABLE}.")
        return folder / "audit.toml"

    @classmethod
    def find(cls) -> Self | None:
        """Return the site's log, None where none was set up; a file that is named by the environment has to be there."""
        named = os.environ.get(CONFIGURATION_VARIABLE)
        # A link to what is not there (a volume that is not mounted) is a log that cannot be used, and not none.
        if not named and (user_folder("config") is None or not os.path.lexists(cls.default_path())):
            return None
        return cls.load(cls.default_path())

    @classmethod
    def required(cls) -> Self:
        """Return the site's log; AuditSetupError where it has none."""
        found = cls.find()
        if found is None:
            raise AuditSetupError("No audit log is set up here; `audit init` makes one.")
        return found

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file; AuditSetupError where it cannot be read or used, without a word of what it holds (a password may be in it)."""
        try:
            file = _checked(tomllib.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise AuditSetupError(f"The configuration of the audit log cannot be read: {error.strerror}. `audit init` makes one.") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError):
            raise AuditSetupError("The configuration of the audit log is not TOML.") from None
        return cls(file.origin, file.database, Path(file.keys), file.retention_days)

    def save(self, path: Path) -> None:
        """Write a new file that only its owner may read; AuditSetupError where one is there."""
        # A relative path would be another file for whoever runs this elsewhere.
        database = f"{_SQLITE}{self._sqlite_path}" if self.database.startswith(_SQLITE) else self.database
        lines = {"origin": self.origin, "database": database, "keys": str(self.keys.absolute()), "retention_days": self.retention_days}
        # A TOML basic string is a JSON string, as long as neither half characters nor DEL are in it.
        text = "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in lines.items())
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_new_file(path, text.encode(), mode=0o600)
        except FileExistsError:
            raise AuditSetupError("An audit log is configured here already; a site has one.") from None
        except OSError as error:
            raise AuditSetupError(f"The configuration of the audit log cannot be written: {error.strerror}.") from None

    def create(self, path: Path, *, key_source: str = "file", ml_dsa: bool = False) -> None:
        """Make keys, vault and an empty log, and then the file that names them, so that a log that is half made is not used.

        Raises
        ------
        AuditSetupError, AuditKeyError
            Something is there already, or cannot be made.
        """
        if os.path.lexists(path):
            raise AuditSetupError("An audit log is configured here already; a site has one.")
        _checked({"origin": self.origin, "database": self.database, "keys": str(self.keys), "retention_days": self.retention_days})
        with contextlib.ExitStack() as undo:
            new = not self.keys.exists()
            keys = LogKeys.create(self.keys, self.origin, source=key_source, ml_dsa=ml_dsa)
            if new:
                # What fails later, a database that cannot be reached say, can be tried again.
                undo.callback(shutil.rmtree, self.keys, ignore_errors=True)
            Vault.create(self.keys / _VAULT).close()
            kind, where = self._backend()
            with contextlib.closing(kind.create(where)) as database:
                create_log(database, keys)
            self.save(path)
            undo.pop_all()

    def write(
        self,
        *,
        wait_s: float = 10.0,
        lends: bool = False,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        **clocks: Any,
    ) -> AuditLog:
        """Open the log as its one writer.

        Parameters
        ----------
        wait_s
            How long to wait for another one, who may lend it.
        lends
            Whether this one stays for long, and lends the log to whoever waits for it: see `AuditLog`.
        clock, clocks
            See `AuditLog`.

        Raises
        ------
        AuditBusyError
            Another process writes to it, and did for `wait_s`.
        AuditSetupError, AuditKeyError, AuditUnavailableError, AuditTamperedError
            It cannot be used as it is.
        """
        held = self._take(wait_s)
        try:
            return AuditLog(held, reopen=lambda wait_s: self._take(wait_s, returning=True), lends=lends, clock=clock, **clocks)
        except BaseException:
            held.close()
            raise

    def _take(self, wait_s: float, *, returning: bool = False) -> Held:
        kind, place = self._backend()
        with contextlib.ExitStack() as undo:
            database: Database = undo.enter_context(contextlib.closing(kind.take(place, wait_s=wait_s, returning=returning)))
            vault = undo.enter_context(contextlib.closing(Vault.open(self.keys / _VAULT, writable=True)))
            # Now that nobody else writes: keys are changed by whoever holds the log.
            keys = self.load_keys()
            undo.pop_all()
        return Held(database, vault, keys, Pin(self.pin, keys.verifiers))

    @contextlib.contextmanager
    def read(self, *, sealed: bool = False, cosigned: bool = False) -> Iterator[DatabaseReader]:
        """Open the log for reading as it is now, or as it was `cosigned` last, whatever is written meanwhile; with its vault, or `sealed` without.

        Raises
        ------
        AuditSetupError, AuditKeyError, AuditUnavailableError, AuditTamperedError
            It cannot be read.
        """
        with contextlib.ExitStack() as stack:
            verifiers = self.load_keys().verifiers
            vault = None if sealed else stack.enter_context(contextlib.closing(self.open_vault()))
            database = stack.enter_context(contextlib.closing(self.connect()))
            with readable():
                stack.enter_context(database.snapshot())
            yield DatabaseReader(database, verifiers, vault, cosigned=cosigned)

    def verify(self, *, retained: Sequence[str] = (), tree_only: bool = False, report: Report | None = None) -> VerifiedLog:
        """Verify the whole log with the keys here, against the head that is kept beside them and what else was `retained`; see `verify_log`."""
        keys = self.load_keys()
        kept = [note] if (note := Pin(self.pin, keys.verifiers).note()) else []
        with contextlib.closing(self.connect()) as database, contextlib.closing(self.open_vault()) as vault:
            found = verify_log(database, keys.verifiers, vault=vault, retained=[*kept, *retained], tree_only=tree_only, report=report)
        found.checkpoints, found.pinned = len(retained), bool(kept)
        return found

    def load_keys(self) -> LogKeys:
        """Return the log's keys; AuditKeyError where they are another log's."""
        keys = LogKeys.load(self.keys)
        if keys.origin != self.origin:
            raise AuditKeyError("The keys are those of another log: their origin is not the configuration's.")
        return keys

    @property
    def pin(self) -> Path:
        """Where the head is that is kept outside of the database."""
        return self.keys / _PIN

    def open_vault(self) -> Vault:
        """Open the vault for reading."""
        return Vault.open(self.keys / _VAULT, writable=False)

    def connect(self) -> Database:
        """Return a connection for reading."""
        kind, place = self._backend()
        return kind.connect(place)

    @property
    def _sqlite_path(self) -> Path:
        return Path(self.database.removeprefix(_SQLITE)).absolute()

    def _backend(self) -> tuple[Any, Path | str]:
        """Return the class of the database, and where it finds its own."""
        if self.database.startswith(_SQLITE):
            return SqliteDatabase, self._sqlite_path
        from clinical_ser.audit.postgres import PostgresDatabase

        return PostgresDatabase, self.database
