"""Structured logs: one JSON object a line on a descriptor, usually standard error, that may be slow, full or gone.

The one idea: a line is made of words and numbers that a programmer wrote or this server made; what came from outside, and what an exception says,
has no field to stand in.
"""

import json
import os
import re
import select
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal, Self, TextIO

from clinical_ser.api import library_logs
from clinical_ser.api.failures import describe

Level = Literal["debug", "info", "warning", "error"]

SEVERITY: dict[Level, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
"""As the standard library counts."""
WITHHELD = "(withheld)"
"""Stands where something was that is not a word of ours."""
MAX_WAITING_BYTES = 256 * 1024
"""Of lines that nobody reads at the moment: about a thousand. Later ones are counted, not kept."""

# POSIX: after poll() says that a pipe can be written, so much is written without waiting, and in one piece (pipe(7), PIPE_BUF on Linux).
_WRITE_BYTES = 4096
_CLOSE_TIMEOUT_S = 1.0
# Events, codes, route templates, ids, names of loggers: nothing of them has a space, a control character or a letter beyond ASCII.
_WORD = re.compile(r"[A-Za-z0-9_.:/{}()+-]{1,120}")
_MAX_TEXT = 200
_NOT_PRINTABLE = re.compile(r"[^\x20-\x7e]+")

_encode = json.JSONEncoder(separators=(",", ":"), default=lambda _: WITHHELD).encode

Take = Callable[[bytes], int]
"""Takes bytes that are whole lines where they fit; returns how many it took, 0 for none at the moment; OSError or ValueError where it cannot."""


class Logs:
    """Where the server's events go. Threads may share it; nothing here raises.

    Parameters
    ----------
    take
        What takes the lines.
    level
        Less than this is not written.

    Examples
    --------
    >>> with configure_logs(sys.stderr) as logs:  # doctest: +SKIP
    ...     logs.write("started", count=2)
    {"time":"2026-01-31T09:00:00.000Z","level":"info","event":"started","count":2}
    """

    def __init__(self, take: Take, level: Level = "info") -> None:
        self._lines = _Lines(take)
        self._threshold = SEVERITY[level]
        self._on_close = ExitStack()

    @property
    def lost(self) -> int:
        """How many lines could not be kept until they were written."""
        return self._lines.lost

    def write(
        self,
        event: str,
        *,
        level: Level = "info",
        request_id: str | None = None,
        method: str | None = None,
        route: str | None = None,
        status: int | None = None,
        duration_ms: float | None = None,
        bytes_in: int | None = None,
        screening: str | None = None,
        code: str | None = None,
        count: int | None = None,
        logger: str | None = None,
        text: str | None = None,
        error: BaseException | None = None,
        places: tuple[str, ...] = (),
    ) -> None:
        """Write one event.

        Parameters
        ----------
        event
            What happened, as docs/monitoring.md lists it.
        level
            How much it matters.
        request_id
            The server's id of the request.
        method, route, status, duration_ms, bytes_in
            Of a request: the method where it is a known one, the route's template, never the path as asked.
        screening
            The opaque id of a screening.
        code
            A reason, of those that the program knows.
        count
            How many.
        logger, text
            Of a library's record: its logger, and what its programmer wrote.
        error
            Of an exception its type, what it came from, and the places in this package are written; never what it says.
        places
            Files and lines in this package, where no exception tells them.
        """
        if SEVERITY[level] < self._threshold:
            return
        words = {"event": event, "request_id": request_id, "method": method, "route": route, "screening": screening, "code": code, "logger": logger}
        line: dict[str, object] = {"time": _now(), "level": level}
        line |= {field: word if _WORD.fullmatch(word) else WITHHELD for field, word in words.items() if word is not None}
        numbers = {"status": status, "duration_ms": duration_ms, "bytes_in": bytes_in, "count": count}
        line |= {field: number for field, number in numbers.items() if number is not None}
        if text is not None:
            line["text"] = _NOT_PRINTABLE.sub(" ", text)[:_MAX_TEXT].strip()
        if error is not None:
            described = describe(error)
            line["errors"], places = described.types, described.places
        if places:
            line["places"] = places
        self._lines.add(_encode(line).encode("ascii") + b"\n")

    def close(self) -> None:
        """Give back what `configure_logs` took over; what still waits is written where that is possible within a second."""
        deadline = time.monotonic() + _CLOSE_TIMEOUT_S
        while self._lines.waiting() and time.monotonic() < deadline:
            time.sleep(0.01)
        self._lines.end()
        self._on_close.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def configure_logs(stream: TextIO | None, level: Level = "info") -> Logs:
    """Return logs that go to a stream, and take over what libraries log.

    From then on, until `close`, nothing else in this process logs anywhere: see `library_logs.take_over`. Give uvicorn `log_config=None`,
    or it sets up its own logging afterwards.

    Parameters
    ----------
    stream
        Usually `sys.stderr`; its descriptor is duplicated, so that a later one under the same number (a database, if standard error is closed)
        never gets lines. None or closed: lines are counted as lost.
    level
        Less than this is not written.
    """
    on_close = ExitStack()
    logs = Logs(_taker(stream, on_close), level)
    on_close.enter_context(library_logs.take_over(logs, SEVERITY[level]))
    logs._on_close = on_close
    return logs


def _taker(stream: TextIO | None, on_close: ExitStack) -> Take:
    if stream is None:  # what Python makes of a standard stream that is closed
        return _no_one
    try:
        descriptor = os.dup(stream.fileno())
    except (OSError, ValueError):  # io.UnsupportedOperation is both
        return _stream_taker(stream)
    on_close.callback(os.close, descriptor)
    writable = select.poll()
    writable.register(descriptor, select.POLLOUT)

    def take(lines: bytes) -> int:
        # Whoever reads may have stopped; a server does not wait for them.
        return os.write(descriptor, lines) if writable.poll(0) else 0

    return take


def _stream_taker(stream: TextIO) -> Take:
    def take(lines: bytes) -> int:
        stream.write(lines.decode("ascii"))
        return len(lines)

    return take


def _no_one(_: bytes) -> int:
    return 0


class _Lines:
    """Lines on their way: written at once where someone takes them, kept for a while where not, counted where even that fails."""

    def __init__(self, take: Take) -> None:
        self._take = take
        # A finalizer that fails while a line is written logs that from the same thread.
        self._lock = threading.RLock()
        self._waiting = bytearray()
        self._writing = False
        self._unsaid = 0
        self.lost = 0

    def add(self, line: bytes) -> None:
        with self._lock:
            self._write()
            said = self._said() + line
            if len(self._waiting) + len(said) > MAX_WAITING_BYTES:
                self.lost += 1
                self._unsaid += 1
                return
            self._waiting += said
            self._unsaid = 0
            self._write()

    def waiting(self) -> bool:
        with self._lock:
            self._write()
            return bool(self._waiting)

    def end(self) -> None:
        """Write no more: the descriptor's number may soon be another file's."""
        with self._lock:
            self._take = _no_one

    def _said(self) -> bytes:
        """Return the line that tells of a hole, where there is one."""
        if not self._unsaid:
            return b""
        return _encode({"time": _now(), "level": "error", "event": "log.lost", "count": self._unsaid}).encode("ascii") + b"\n"

    def _write(self) -> None:
        if self._writing:
            return
        self._writing = True
        try:
            while self._waiting:
                # Whole lines, so that what other processes write to the same place stands between them and not in them. Of a line that
                # was taken in part (a full disk) the rest stays here, and comes first when there is room.
                end = self._waiting.rfind(b"\n", 0, _WRITE_BYTES) + 1 or _WRITE_BYTES
                taken = self._take(bytes(self._waiting[:end]))
                if not taken:
                    return
                del self._waiting[:taken]
        except (OSError, ValueError):  # no room, no reader, closed
            return
        finally:
            self._writing = False


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
