"""Logs for tests: cheap to make, and what a record holds follows from its name, so that any process can say what has to be there."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.events import Actor, ReportAction, Role
from clinical_ser.audit.log import AuditLog, Receipt
from clinical_ser.audit.verifying import VerifiedLog, verify_log

ORIGIN = "tests.example/log"
CONFIGURATION_FILE = "audit.toml"
EACH_ITS_OWN = 1 << 62
"""As a number of subjects: no two records are about the same one."""
_ACTOR = Actor(id="clinician-1", role=Role.CLINICIAN)


def payload_of(name: str) -> ReportAction:
    """Return the payload of the record of this name."""
    return ReportAction(actor=_ACTOR, result=sha256(name.encode()).hexdigest(), action="viewed", form="html")


def subject_of(name: str, subjects: int) -> str | None:
    """Return whom the record of this name is about, where there are so many subjects; None where there are none."""
    return f"subject {int.from_bytes(sha256(name.encode()).digest()[:8], 'big') % subjects}" if subjects else None


def append(log: AuditLog, name: str, subjects: int = 0, **options: Any) -> Receipt:
    """Append the record of this name, which is its idempotency key too."""
    return log.append(payload_of(name), idempotency_key=name, subject=subject_of(name, subjects), **options)


def names_of(count: int, prefix: str = "record") -> list[str]:
    """Return names for records."""
    return [f"{prefix} {number}" for number in range(count)]


def make_log(
    folder: Path,
    *,
    records: int = 0,
    subjects: int = 0,
    origin: str = ORIGIN,
    database: Path | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> LogConfiguration:
    """Make a log with keys of its own; its configuration is `CONFIGURATION_FILE` in the folder.

    Parameters
    ----------
    folder
        Where keys, vault and configuration go.
    records
        How many records it has: those of `names_of(records)`, one commit each.
    subjects
        How many subjects they are about; 0 for none, EACH_ITS_OWN for one each.
    origin
        Its name.
    database
        Its file, unless it is to be in the folder too.
    clock
        The writer's wall clock.
    """
    configuration = LogConfiguration(origin, f"sqlite:{database or folder / 'log' / 'audit.sqlite'}", folder / "keys")
    configuration.create(folder / CONFIGURATION_FILE)
    if records:
        with configuration.write(clock=clock) as log:
            for name in names_of(records):
                append(log, name, subjects)
            log.retain()
    return configuration


def database_file(configuration: LogConfiguration) -> Path:
    """Return the file that the log is in."""
    return Path(configuration.database.removeprefix("sqlite:"))


def verify(configuration: LogConfiguration, *, retained: Iterable[str] = ()) -> VerifiedLog:
    """Verify a log with its keys and its vault, as whoever holds both would."""
    vault = configuration.open_vault()
    try:
        database = configuration.connect()
        try:
            return verify_log(database, configuration.load_keys().verifiers, vault=vault, retained=tuple(retained))
        finally:
            database.close()
    finally:
        vault.close()
