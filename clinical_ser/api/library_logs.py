"""What libraries log, warn of and let fall, as lines of our log.

The one idea: of a library's record only that text is written which stands, word for word, as a constant in the file that logged it. Not every
format string is a constant: uvicorn logs a traceback as one, asyncio a text with a failed task's result in it.
"""

import ast
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from clinical_ser.api.failures import place_of

if TYPE_CHECKING:
    from clinical_ser.api.logs import Level, Logs

# The event loop's own first lines; the lines below them have reprs of tasks and results. Some stand in C, some in uvloop, so they are named here
# (Python 3.11 to 3.14: asyncio/base_events.py, selector_events.py, tasks.py, futures.py, streams.py, sslproto.py).
_EVENT_LOOP = frozenset(
    {
        "Error on reading from the event loop self pipe",
        "Exception in default exception handler",
        "Fatal error on SSL protocol",
        "Fatal error on transport",
        "Fatal read error on socket transport",
        "Fatal write error on socket transport",
        "Future exception was never retrieved",
        "Task exception was never retrieved",
        "Task was destroyed but it is pending!",
        "Unhandled exception in event loop",
        "socket.accept() out of system resource",
        "unhandled exception during asyncio.run() shutdown",
    }
)
_MAX_SOURCE_BYTES = 1_000_000
_MAX_SOURCES = 128


@contextmanager
def take_over(logs: "Logs", level: int) -> Iterator[None]:
    """Make a log the only place to which this process logs; afterwards everything is as it was.

    Taken over are the standard library's loggers (handlers that libraries added are taken off: they would write arguments), warnings, and what
    Python itself prints of exceptions that nobody catches: in the main thread, in other threads, in finalizers.
    """
    with _loggers(_LibraryRecords(logs), level), _warnings(logs), _uncaught(logs):
        yield


class _LibraryRecords(logging.Handler):
    def __init__(self, logs: "Logs") -> None:
        super().__init__()
        self._logs = logs

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        self._logs.write("library", level=_level(record.levelno), logger=_module(record.name), text=constant_text(record), error=error)


def _level(number: int) -> "Level":
    if number >= logging.ERROR:
        return "error"
    if number >= logging.WARNING:
        return "warning"
    return "info" if number >= logging.INFO else "debug"


def _module(logger: str) -> str:
    """Return the module that a logger is named after, or the nearest above it: a logger can be named by whatever was at hand."""
    if logger == logging.root.name:
        return logger
    parts = logger.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in names if name in sys.modules), "(none)")


def constant_text(record: logging.LogRecord) -> str | None:
    """Return a record's text before its arguments, if a programmer wrote it; None where it was put together, or where that cannot be known."""
    if not isinstance(record.msg, str):
        return None
    if record.msg in _constants(record.pathname):
        return record.msg
    first = record.msg.partition("\n")[0]
    return first if record.name == "asyncio" and first in _EVENT_LOOP else None


@lru_cache(maxsize=_MAX_SOURCES)
def _constants(path: str) -> frozenset[str]:
    """Return the string constants of a source file; none where it cannot be read."""
    try:
        source = Path(path).read_bytes()
        tree = ast.parse(source if len(source) <= _MAX_SOURCE_BYTES else b"")
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return frozenset()
    return frozenset(node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))


@contextmanager
def _loggers(handler: logging.Handler, level: int) -> Iterator[None]:
    root, access = logging.getLogger(), logging.getLogger("uvicorn.access")
    others = [logger for logger in logging.Logger.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    before = [(logger, logger.handlers, logger.propagate) for logger in (root, *others)]
    root_level, last_resort, raising = root.level, logging.lastResort, logging.raiseExceptions
    for logger in others:
        logger.handlers, logger.propagate = [], True
    # Its format string is constant, so every request would be a line that says nothing; uvicorn leaves it out when nobody listens.
    access.propagate = False
    root.handlers = [handler]
    root.setLevel(level)
    # For loggers that pass nothing on and have no handler; and a handler that fails would print the record with its arguments.
    logging.lastResort, logging.raiseExceptions = handler, False
    try:
        yield
    finally:
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
        root.setLevel(root_level)
        logging.lastResort, logging.raiseExceptions = last_resort, raising


@contextmanager
def _warnings(logs: "Logs") -> Iterator[None]:
    def show(  # the parameters are the standard library's, whose caller may name them
        message: Warning | str,  # noqa: ARG001
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,  # noqa: ARG001
        line: str | None = None,  # noqa: ARG001
    ) -> None:
        place = place_of(filename, lineno)
        logs.write("warning", level="warning", code=category.__name__, places=() if place is None else (place,))

    before = warnings.showwarning
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


@contextmanager
def _uncaught(logs: "Logs") -> Iterator[None]:
    def main(_kind: type[BaseException], error: BaseException, _trace: object) -> None:
        logs.write("uncaught", level="error", code="main", error=error)

    def thread(args: threading.ExceptHookArgs) -> None:
        # SystemExit ends a thread and is no failure, as Python sees it.
        if args.exc_value is not None and not issubclass(args.exc_type, SystemExit):
            logs.write("uncaught", level="error", code="thread", error=args.exc_value)

    def finalizer(args: "sys.UnraisableHookArgs") -> None:
        logs.write("uncaught", level="error", code="finalizer", error=args.exc_value)

    before = sys.excepthook, threading.excepthook, sys.unraisablehook
    sys.excepthook, threading.excepthook, sys.unraisablehook = main, thread, finalizer
    try:
        yield
    finally:
        sys.excepthook, threading.excepthook, sys.unraisablehook = before
