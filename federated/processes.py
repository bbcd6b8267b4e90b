"""Flower's processes: how they are started, and that none is left behind.

The one idea: everything that Flower would do beyond its work is switched off in one place: telemetry, update checks, installing packages.
"""

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from clinical_ser.errors import FederationError

POLL_S = 0.2
GRACE_S = 10.0
"""How long a process may take to end on its own."""
TASK_POLL_S = "0.25"


@dataclass(frozen=True)
class Command:
    """One process to run."""

    name: str
    arguments: Sequence[str]


def environment(home: Path) -> dict[str, str]:
    """Return what Flower's processes are told: nothing about anybody, and to keep its files in `home`."""
    return {
        **os.environ,
        # What two processes of this machine say to each other goes through no proxy.
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": TASK_POLL_S,
        "PYTHONUNBUFFERED": "1",
    }


def program(name: str) -> str:
    """Return one of Flower's programs, from the environment that this one runs in.

    Raises
    ------
    FederationError
        Flower is not installed.
    """
    found = Path(sys.executable).parent / name
    if not found.is_file():
        raise FederationError(f"{name} is not installed; training across sites needs an environment with the extra 'federated'.")
    return str(found)


def keep_running(
    commands: Sequence[Command],
    home: Path,
    *,
    logs: Path | None = None,
    also: Callable[[], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[str, int]:
    """Run commands together until one of them ends or this process is told to; then end all.

    Parameters
    ----------
    commands
        Started in this order.
    home
        Flower's folder.
    logs
        Folder for what each writes; None lets them write where this process does.
    also
        Called once in a while, between looking at the processes.
    stop
        Asked as often; True ends everything.

    Returns
    -------
    tuple
        The name of the command that ended first, and its exit status; an empty name where none did.
    """
    running: dict[str, subprocess.Popen[bytes]] = {}
    told: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        told.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for command in commands:
            running[command.name] = _start(command, environment(home), logs)
        while not told and not stop():
            for name, process in running.items():
                if process.poll() is not None:
                    return name, process.returncode
            if also is not None:
                also()
            time.sleep(POLL_S)
        return "", 0
    finally:
        _end(running)
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(command: Command, told: Mapping[str, str], logs: Path | None) -> subprocess.Popen[bytes]:
    # A group of its own: what it starts ends with it.
    if logs is None:
        return subprocess.Popen(command.arguments, env=told, start_new_session=True)
    logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (logs / f"{command.name}.log").open("ab") as log:
        return subprocess.Popen(command.arguments, env=told, start_new_session=True, stdout=log, stderr=subprocess.STDOUT)


def _end(running: Mapping[str, subprocess.Popen[bytes]]) -> None:
    for process in running.values():
        _signal(process, signal.SIGTERM)
    limit = time.monotonic() + GRACE_S
    for process in running.values():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=max(0.1, limit - time.monotonic()))
        # Also where the leader has ended: a task that it started may not have.
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def check_server(address: str, authority: Path, *, timeout_s: float = 10.0) -> None:
    """Make sure that who answers at an address has a certificate of this authority, for this address, and today.

    Raises
    ------
    FederationError
        Nobody answers, or with a certificate that is not right; says what is wrong with it.
    """
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cafile=str(authority))
    try:
        with socket.create_connection((host, int(port)), timeout=timeout_s) as plain, context.wrap_socket(plain, server_hostname=host):
            return
    except ssl.SSLCertVerificationError as error:
        raise FederationError(f"The coordinator's certificate is refused: {error.verify_message}.") from None
    except (OSError, ValueError) as error:
        raise FederationError(f"The coordinator cannot be reached: {getattr(error, 'strerror', None) or type(error).__name__}.") from None
