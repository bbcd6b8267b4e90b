"""The gate in front of every app that Flower hands to a machine of ours; in place of its SuperExec's own launcher.

The one idea: code that travels is compared and never run. The bundle has to be one whose hash the site approved; what is then called is the app
that the site itself installed. So a lying coordinator can withhold work, and cannot bring a program along.

Flower 1.41 checks no bundle against the hash it was announced with, and finds it again by the first 32 bits of it: a gate that looks at the
announced hash alone can be walked around. What is used of Flower's inside is listed in `INTERNALS` and pinned by a test.
"""

import argparse
import hashlib
import importlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from types import TracebackType
from typing import Any, ClassVar, Literal, NoReturn, Protocol

from flwr.supercore.constant import TaskType
from flwr.supercore.superexec import run_superexec as superexec
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult
from flwr.supercore.superexec.plugin import AutoExecPlugin

from clinical_ser.errors import FederationError, InvalidValueError

APP_FOLDER = Path(__file__).parent / "app"
"""The Flower app that this version brings; its bundle is what is approved."""
CLIENT, SERVER = "flwr.supernode.runtime.run_clientapp", "flwr.superlink.runtime.run_serverapp"
INTERNALS: Mapping[str, tuple[str, ...]] = {
    CLIENT: ("run_clientapp", "install_from_fab", "get_load_client_app_fn", "pull_task_input"),
    SERVER: ("run_serverapp", "install_from_fab", "get_project_dir", "run_"),
    "flwr.supercore.superexec.run_superexec": ("run_superexec", "AutoExecPlugin", "get_executor"),
    "flwr.supercore.auth": ("load_superexec_auth_secret",),
    "flwr.supercore.logger": ("mirror_output_to_queue",),
    "flwr.cli.build": ("build_fab_from_disk",),
}
"""Names inside of Flower that this file calls or replaces; flwr is pinned to 1.41."""
Party = Literal["site", "coordinator"]


class Host(Protocol):
    """Whose machine it is: what may run here, and who writes down what was asked to."""

    def approved_builds(self) -> Collection[str]:
        """Return the SHA-256 of every bundle that may run, hexadecimal; read anew for each task."""
        ...

    def record_refusal(self, build: str) -> None:
        """Write down that a bundle was refused; no answer leaves before."""
        ...

    def load_app(self) -> Any:
        """Return the installed app."""
        ...


def build_of_this_version() -> bytes:
    """Return the bundle of the Flower app that this installation brings."""
    from flwr.cli.build import build_fab_from_disk

    bundle: bytes = build_fab_from_disk(APP_FOLDER)
    return bundle


def build_hash(bundle: bytes) -> str:
    """Return the name by which a bundle is approved, and by which Flower shows it."""
    return hashlib.sha256(bundle).hexdigest()


@dataclass(frozen=True)
class Task:
    """One message to answer, or one run to lead, as the process that does it is told."""

    party: Party
    folder: Path
    address: str
    token: str
    root_certificates: Path | None
    gate_pid: int


class Gate(AutoExecPlugin):  # type: ignore[misc]
    """Takes the tasks of one kind and of no other; Flower's own takes models and agents too."""

    supported_task_types: ClassVar[frozenset[TaskType]]


class SiteGate(Gate):
    """At a hospital: answers messages."""

    supported_task_types = frozenset({TaskType.CLIENT_APP})


class CoordinatorGate(Gate):
    """At the coordinator: leads runs."""

    supported_task_types = frozenset({TaskType.SERVER_APP})


class ForkingExecutor:
    """Starts a process for every task from one that has everything imported already.

    Importing takes 3 to 5 s of what an exchange costs otherwise. The token goes to the process through a pipe: in Flower's own way it is an
    argument, which every user of the machine can read.
    """

    def __init__(self, party: Party, folder: Path):
        self._party = party
        self._folder = folder
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["federated.gate", *_WANTED[party]])
        self._started: list[Any] = []

    def get_eligible_capacity(self, supported_task_types: set[TaskType], **_: object) -> tuple[set[TaskType], set[str]]:
        """Return that everything supported can start."""
        return supported_task_types, set()

    def wait_for_capacity(self, *_: object, **__: object) -> None:
        """Return at once."""

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Start a task."""
        certificates = Path(spec.root_certificates_path) if spec.root_certificates_path else None
        task = Task(self._party, self._folder, spec.runtime_api_address, spec.token, certificates, os.getpid())
        process = self._context.Process(target=run_task, args=(task,))
        process.start()
        self._started.append(process)
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Let go of what has ended."""
        self._started = [process for process in self._started if process.is_alive()]

    def close(self) -> None:
        """End what still runs."""
        for process in self._started:
            process.terminate()


_WANTED: Mapping[Party, tuple[str, ...]] = {
    "site": (CLIENT, "federated.client_app", "federated.protocols", "clinical_ser.models.rows", "clinical_ser.audit.configuration"),
    "coordinator": (SERVER, "federated.server_app"),
}
"""Imported once, before the first task."""


class CheckedBundle:
    """Stands where Flower unpacks a bundle: compares it, and unpacks nothing."""

    def __init__(self, host: Host):
        self._host = host

    def __call__(self, bundle: bytes, *_: object, **__: object) -> Path:
        """Return the installed app's folder.

        Raises
        ------
        FederationError
            This build is not approved here.
        """
        with _Sealed():
            build = build_hash(bundle)
            if build not in set(self._host.approved_builds()):
                self._host.record_refusal(build)
                raise FederationError(f"build {build[:16]} is not approved here")
        return APP_FOLDER


class _Sealed:
    """Lets no text of an unexpected error out of a site: it may quote a row."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None and not isinstance(error, (FederationError, SystemExit, KeyboardInterrupt)):
            raise FederationError(f"this site cannot answer ({type(error).__name__}); its own log says why") from error


def sealed(app: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return the app so that of an error only the kind gets out."""

    def answer(message: Any, context: Any) -> Any:
        with _Sealed():
            return app(message, context)

    return answer


@contextmanager
def _in_place_of(module: Any, **replacements: object) -> Iterator[None]:
    before = {name: getattr(module, name) for name in replacements}
    for name, value in replacements.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def host_of(party: Party, folder: Path) -> Host:
    """Return what knows the folder."""
    if party == "site":
        from federated.provisioning import SiteHost

        return SiteHost(folder)
    from federated.consortium import CoordinatorHost

    return CoordinatorHost(folder)


def run_task(task: Task) -> None:
    """Do one task, in a process of its own, and end the process."""
    host = host_of(task.party, task.folder)
    certificates = task.root_certificates.read_bytes() if task.root_certificates else None
    told: dict[str, Any] = {
        "runtime_api_address": task.address,
        "token": task.token,
        "insecure": certificates is None,
        "certificates": certificates,
        "parent_pid": task.gate_pid,
        "runtime_dependency_install": False,
    }
    module = importlib.import_module(CLIENT if task.party == "site" else SERVER)
    if task.party == "site":
        replaced: dict[str, object] = {"get_load_client_app_fn": lambda **_: lambda *_: _by_keyword(sealed(_loading(host)))}
    else:
        replaced = {"get_project_dir": lambda *_: APP_FOLDER, "run_": _run_installed(host)}
    with _in_place_of(module, install_from_fab=CheckedBundle(host), **replaced):
        if task.party == "site":
            module.run_clientapp(**told)
        else:
            from flwr.supercore.logger import mirror_output_to_queue

            lines: Queue[str | None] = Queue()
            mirror_output_to_queue(lines)
            module.run_serverapp(log_queue=lines, **told)


def _loading(host: Host) -> Callable[[Any, Any], Any]:
    def app(message: Any, context: Any) -> Any:
        # Loaded only now: a process that dies before it was called leaves the message without any reply.
        return host.load_app()(message, context)

    return app


def _by_keyword(app: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda *, message, context: app(message, context)


def _run_installed(host: Host) -> Callable[..., Any]:
    def run(*, grid: Any, context: Any, **_: object) -> Any:
        host.load_app()(grid=grid, context=context)
        return context

    return run


def stand(
    party: Party, folder: Path, address: str, *, secret: Path, root_certificates: Path | None = None, parent_pid: int | None = None
) -> NoReturn:
    """Take tasks from a SuperNode or SuperLink until the process is ended.

    Parameters
    ----------
    party
        Whose gate it is.
    folder
        The node's or the consortium's folder.
    address
        Where the SuperNode or SuperLink hands out tasks, `host:port`.
    secret
        File with what both know; whoever does not know it gets no task.
    root_certificates
        By which the SuperLink's certificate is verified; None where the connection stays on this machine and has none.
    parent_pid
        The process with which this one ends.
    """
    from flwr.supercore.auth import load_superexec_auth_secret

    kind = SiteGate if party == "site" else CoordinatorGate
    executor = ForkingExecutor(party, folder)
    with _in_place_of(superexec, AutoExecPlugin=kind, get_executor=lambda *_, **__: executor):
        superexec.run_superexec(
            runtime_api_address=address,
            insecure=root_certificates is None,
            root_certificates_path=str(root_certificates) if root_certificates else None,
            superexec_auth_secret=load_superexec_auth_secret(secret_file=str(secret)),
            parent_pid=parent_pid,
            runtime_dependency_install=False,
        )
    sys.exit(0)


def command(party: Party, folder: Path, address: str, secret: Path, root_certificates: Path | None = None) -> list[str]:
    """Return the command line of a gate that ends with this process."""
    # By -c and not by -m, or the process that tasks are forked from would run the module a second time; -P keeps the working folder off the path.
    line = [sys.executable, "-P", "-c", "from federated.gate import main; main()", party, str(folder), address, "--secret", str(secret)]
    line += ["--root-certificates", str(root_certificates)] if root_certificates else []
    return [*line, "--parent-pid", str(os.getpid())]


def main() -> None:
    """Stand at the gate; see `command`."""
    parser = argparse.ArgumentParser(prog="federated.gate")
    parser.add_argument("party", choices=("site", "coordinator"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("address")
    parser.add_argument("--secret", type=Path, required=True)
    parser.add_argument("--root-certificates", type=Path)
    parser.add_argument("--parent-pid", type=int)
    given = parser.parse_args()
    if not given.folder.is_dir():
        raise InvalidValueError("folder", "what is no folder", "a node's or a consortium's folder")
    stand(
        given.party,
        given.folder.absolute(),
        given.address,
        secret=given.secret,
        root_certificates=given.root_certificates,
        parent_pid=given.parent_pid,
    )
