"""A real server on a loopback port for tests, and a client that says exactly what a test wants said."""

import asyncio
import http.client
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clinical_ser.api.access import Scope
from clinical_ser.api.api_keys import add_key
from clinical_ser.api.configuration import ServerConfiguration
from clinical_ser.api.logs import configure_logs
from clinical_ser.api.metrics import ServerMetrics
from clinical_ser.api.observing import Observing
from clinical_ser.api.service import Service
from clinical_ser.api.serving import Running, listening
from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.events import Role
from tests.audit.log_maker import make_log

SUBJECT = "Jane Doe 1970-01-01"
"""The canary: it must show up nowhere but in sealed payloads."""
START_S = 120.0


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


@dataclass
class Client:
    """Asks with one key, on a connection of its own for each request."""

    port: int
    key: str | None = None

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, timeout_s: float = 60.0) -> Answer:
        """Ask, and read the whole answer."""
        told = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request(method, path, body, told | (headers or {}))
            response = connection.getresponse()
            return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        """GET, with headers whose names are written with underscores."""
        return self.ask("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})

    def screen(self, recording: bytes, headers: dict[str, str] | None = None, **metadata: Any) -> Answer:
        """Send a recording, framed."""
        line = json.dumps({"subject": SUBJECT} | metadata).encode()
        told = {"Content-Type": "application/vnd.clinical-ser.screening"} | (headers or {})
        return self.ask("POST", "/v1/screenings", line + b"\n" + recording, told)

    def post(self, path: str, content: Any, **headers: str) -> Answer:
        """POST JSON."""
        return self.ask("POST", path, json.dumps(content), {"Content-Type": "application/json"} | headers)


@dataclass
class Server:
    """A server that runs in this process."""

    running: Running
    audit: LogConfiguration
    configuration: ServerConfiguration
    logs: io.StringIO
    loop: asyncio.AbstractEventLoop
    keys: dict[str, str] = field(default_factory=dict)

    @property
    def service(self) -> Service:
        """What its routes work with."""
        return self.running.application.service

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.running.port

    def client(self, name: str | None = "everything") -> Client:
        """Return a client with one of the server's keys; None for none."""
        return Client(self.port, None if name is None else self.keys[name])

    @property
    def kinds(self) -> list[str]:
        """What the log has, by kind."""
        with self.audit.read() as reader:
            return [record.event.kind for record in reader.records()]


def make_keys(path: Path, tenants: tuple[str, ...] = ("",)) -> dict[str, str]:
    """Make an API key for each scope, one for all, and the same for each tenant."""
    keys = {}
    for tenant in tenants:
        suffix = f"@{tenant}" if tenant else ""
        for name, scopes in {"everything": tuple(Scope), **{scope.value: (scope,) for scope in Scope}}.items():
            client = f"client-{name}".replace(":", "-")
            made = add_key(path, client=client, name="Dr. Ada Example", tenant=tenant, role=Role.CLINICIAN, scopes=scopes)
            keys[name + suffix] = made.text
    return keys


@contextmanager
def serving(folder: Path, models: tuple[str, ...], **settings: Any) -> Iterator[Server]:
    """Start a server with a log and keys of its own in a folder that may have been used before."""
    audit = LogConfiguration.load(folder / "audit.toml") if (folder / "audit.toml").exists() else make_log(folder)
    keys_file = folder / "api_keys.json"
    tenants = settings.get("tenants", ())
    keys = make_keys(keys_file, tenants or ("",)) if not keys_file.exists() else {}
    work = {"workers": 1} | settings.pop("work", {})
    limits = {"screenings_per_s": 1000.0, "requests_per_s": 10_000.0, "failures": 10_000} | settings.pop("limits", {})
    listen = {"port": 0, "metrics_port": 0} | settings.pop("listen", {})
    base = {"models": models, "api_keys": str(keys_file), "spool": str(folder / "spool"), "listen": listen, "work": work, "limits": limits}
    configuration = ServerConfiguration.checked(base | settings)
    stream = io.StringIO()
    logs = configure_logs(stream, "debug")
    observing = Observing(logs, ServerMetrics("test", lost_lines=lambda: logs.lost))
    ready, stop = threading.Event(), threading.Event()
    found: list[Running] = []
    loops: list[asyncio.AbstractEventLoop] = []
    failed: list[BaseException] = []

    async def run() -> None:
        async with listening(configuration, audit, observing) as running:
            found.append(running)
            loops.append(asyncio.get_running_loop())
            ready.set()
            while not stop.is_set():
                await asyncio.sleep(0.02)

    def work_loop() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:  # noqa: BLE001  # raised again where the test is
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=work_loop, name="server under test")
    thread.start()
    try:
        assert ready.wait(START_S)
        if failed:
            raise failed[0]
        yield Server(found[0], audit, configuration, stream, loops[0], keys)
    finally:
        stop.set()
        thread.join(START_S)
        observing.close()
    if failed:
        raise failed[0]


def command(server: Server, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line beside the server, as an administrator would."""
    environment = os.environ | {"CLINICAL_SER_AUDIT": str(server.audit.keys.parent / "audit.toml")}
    return subprocess.run([sys.executable, "-m", "clinical_ser", *words], capture_output=True, text=True, check=False, timeout=120, env=environment)
