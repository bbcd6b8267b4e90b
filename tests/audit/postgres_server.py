"""A PostgreSQL server of our own, from the system's package, for as long as a test session lasts: a socket in a folder of its own, no TCP.

It is our child process, not a daemon, so that a test can do to it what happens to servers: shut it down, kill it, start it again on the same data.
"""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

SUPERUSER = "owner"
_PROGRAMS = ("initdb", "postgres", "pg_isready")
_PASSWORD_ROLES = "guarded"
"""Roles of this name are let in with their password alone; everybody else who reaches the socket is let in."""
_SETTINGS = {
    "listen_addresses": "",
    "shared_buffers": "16MB",
    "max_connections": "40",
    "dynamic_shared_memory_type": "posix",
    "log_statement": "none",
}
_STARTS_WITHIN_S = 60.0


def find_programs() -> Path | None:
    """Return the folder with the programs, None where PostgreSQL's server is not installed."""
    candidates = [Path(found).resolve().parent for name in _PROGRAMS if (found := shutil.which(name))]
    if pg_config := shutil.which("pg_config"):
        candidates.append(Path(subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=True).stdout.strip()))
    # Debian keeps them apart by version; the newest first.
    debian = [folder for folder in Path("/usr/lib/postgresql").glob("*/bin") if folder.parent.name.isdecimal()]
    candidates += sorted(debian, key=lambda folder: int(folder.parent.name), reverse=True)
    return next((folder for folder in candidates if all((folder / name).exists() for name in _PROGRAMS)), None)


class PostgresServer:
    """A cluster in a folder, and the server that runs on it.

    Parameters
    ----------
    programs
        Where PostgreSQL's programs are.
    folder
        Empty, and short, since a socket's path has at most 107 bytes.
    """

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self._folder = programs, folder
        self._process: subprocess.Popen[bytes] | None = None
        self._as_user = _unprivileged()
        if self._as_user:
            os.chown(folder, self._as_user["user"], self._as_user["group"])
        options = ["--username", SUPERUSER, "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"]
        assert self._begin("initdb", *options).wait(_STARTS_WITHIN_S) == 0, self._log.read_text()
        access = self._data / "pg_hba.conf"
        access.write_text(f"local all {_PASSWORD_ROLES} scram-sha-256\n" + access.read_text())

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    @property
    def _log(self) -> Path:
        return self._folder / "server.log"

    def _begin(self, program: str, *options: str) -> subprocess.Popen[bytes]:
        command = [str(self._programs / program), "-D", str(self._data), *options]
        environment = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
        with self._log.open("ab") as log:
            return subprocess.Popen(
                command, cwd=self._folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, **self._as_user
            )

    def url(self, database: str = "postgres", *, user: str = SUPERUSER, password: str = "", schema: str = "") -> str:
        """Return the URL by which a database is reached."""
        login = f"{user}:{password}" if password else user
        options = f"?options=-csearch_path%3D{schema}" if schema else ""
        return f"postgresql://{login}@{quote(str(self._folder), safe='')}/{database}{options}"

    def start(self, **settings: str) -> None:
        """Start it, and return when it answers; what an earlier one left in memory may take a moment to go."""
        deadline = time.monotonic() + _STARTS_WITHIN_S
        options = [f"-c{name}={value}" for name, value in {**_SETTINGS, "unix_socket_directories": str(self._folder), **settings}.items()]
        while not self._answers():
            assert time.monotonic() < deadline, self._log.read_text()
            if self._process is None or self._process.poll() is not None:
                self._process = self._begin("postgres", *options)
            time.sleep(0.05)

    def _answers(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            return False
        asked = subprocess.run([self._programs / "pg_isready", "-q", "-h", self._folder, "-d", "postgres"], check=False)
        return asked.returncode == 0

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGINT for a fast shutdown, SIGQUIT for an immediate one (a crash, to the data), SIGKILL for the end of the first process."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(60)
            self._process = None

    def restart(self, **settings: str) -> None:
        """Stop it fast, and start it with other settings."""
        self.stop()
        self.start(**settings)


@contextlib.contextmanager
def running_server() -> Iterator[PostgresServer]:
    """Run a server; skip the test where none is installed."""
    programs = find_programs()
    if programs is None:
        pytest.skip("PostgreSQL's server is not installed (Debian: postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    try:
        server = PostgresServer(programs, folder)
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged() -> dict[str, Any]:
    """Return as whom the server runs, since PostgreSQL does not run as root; nothing where we are not root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    pytest.skip("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")
