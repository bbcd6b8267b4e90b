"""Logs that a test can read, and a client that speaks ASGI to an application without a network between them."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clinical_ser.api.logs import Level, Logs, configure_logs
from clinical_ser.api.metrics import ServerMetrics

App = Callable[[dict[str, Any], Callable[[], Awaitable[dict]], Callable[[dict], Awaitable[None]]], Awaitable[None]]


class Written:
    """A log in a file, as lines and as text."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="ascii")

    def lines(self, event: str | None = None) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.text.splitlines()]
        return [line for line in lines if event in (None, line["event"])]


@contextmanager
def logging_to(path: Path, level: Level = "info") -> Iterator[tuple[Logs, Written]]:
    with path.open("w", encoding="ascii") as stream, configure_logs(stream, level) as logs:
        yield logs, Written(path)


@dataclass
class Answer:
    """What an application sent."""

    scope: dict[str, Any]
    messages: list[dict[str, Any]] = field(default_factory=list)
    error: BaseException | None = None

    @property
    def status(self) -> int | None:
        return next((message["status"] for message in self.messages if message["type"] == "http.response.start"), None)

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [pair for message in self.messages if message["type"] == "http.response.start" for pair in message["headers"]]

    def header(self, name: str) -> str | None:
        """Return a header that is there once, None where it is not."""
        values = [value.decode() for key, value in self.headers if key == name.encode()]
        assert len(values) <= 1, (name, values)
        return values[0] if values else None

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages if message["type"] == "http.response.body")


def ask(
    app: App,
    path: str = "/",
    method: str = "GET",
    *,
    headers: Sequence[tuple[bytes, bytes]] = (),
    body: Sequence[bytes] = (b"",),
    gone_after: int | None = None,
    scheme: str = "http",
    send_fails: bool = False,
) -> Answer:
    """Make one request. `gone_after`: the client goes away after so many parts of the body."""
    return asyncio.run(asking(app, path, method, headers=headers, body=body, gone_after=gone_after, scheme=scheme, send_fails=send_fails))


async def asking(
    app: App,
    path: str = "/",
    method: str = "GET",
    *,
    headers: Sequence[tuple[bytes, bytes]] = (),
    body: Sequence[bytes] = (b"",),
    gone_after: int | None = None,
    scheme: str = "http",
    send_fails: bool = False,
) -> Answer:
    """Make one request in a loop that runs."""
    raw, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": scheme,
        "path": raw,
        "raw_path": raw.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": list(headers),
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    answer = Answer(scope)
    parts = list(body if gone_after is None else body[:gone_after])
    ended = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if parts:
            part = parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(parts) or gone_after is not None}
        if gone_after is None:
            await ended.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if send_fails:
            raise OSError("the connection is gone")
        answer.messages.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            ended.set()

    try:
        await app(scope, receive, send)
    except BaseException as error:  # noqa: BLE001  # the test looks at it
        answer.error = error
    return answer


def samples(metrics: ServerMetrics) -> dict[str, float]:
    """Return every series with its value, as Prometheus reads it."""
    lines = [line for line in metrics.exposition().decode().splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}
