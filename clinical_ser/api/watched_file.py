"""A small file that says who is known here, as it stands now.

The one idea: a change counts with the next question, and a file that cannot be used says nothing. What it said before is not kept: a key that someone
just took out, with a slip of the hand elsewhere, must not live on because of the slip.
"""

import contextlib
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

from clinical_ser.errors import ServerSetupError

_log = logging.getLogger(__name__)
_Content = TypeVar("_Content")
_Identity = tuple[int, int, int, int]


class WatchedFile(Generic[_Content]):
    """A file's content, read again as soon as the file is another.

    One stat(2) a question, some two microseconds. The time of the last change of owner and mode counts too, so that a file that others may suddenly
    read or write is looked at again.

    Parameters
    ----------
    path
        The file, which need not be there yet.
    parse
        Makes its content; raises ServerSetupError for what cannot be used.
    check
        Raises ServerSetupError where the file belongs to the wrong one, or others may do with it what they should not.
    what
        What errors and the log call it.
    max_bytes
        A longer file is another one, given by mistake.
    """

    def __init__(self, path: Path, parse: Callable[[bytes], _Content], *, check: Callable[[os.stat_result], None], what: str, max_bytes: int) -> None:
        self._path, self._parse, self._check, self._what, self._max_bytes = path, parse, check, what, max_bytes
        self._read: tuple[_Identity, _Content | None] | None = None
        self._complaint: str | None = None
        self._reading = threading.Lock()

    def current(self) -> _Content | None:
        """Return what the file says; None while it is not there or cannot be used, which is logged once."""
        # One assignment of a tuple, so that no thread pairs one file's identity with the content of another.
        known = self._read
        try:
            if known is not None and known[0] == _identity(os.stat(self._path)):
                return known[1]
            with self._reading:
                return self._read_again()
        except OSError as error:
            # Nothing is remembered of it: too many open files, say, is a trouble that passes without the file changing.
            self._complain(_unreadable(error))
            return None

    def load(self) -> _Content:
        """Read the file now, whatever is known of it; ServerSetupError where it cannot be used."""
        try:
            with self._opened() as (descriptor, status):
                return self._content(descriptor, status)
        except OSError as error:  # its text holds the path
            raise ServerSetupError(f"The {self._what}: {_unreadable(error)}") from None

    def _read_again(self) -> _Content | None:
        content = None
        with self._opened() as (descriptor, status):
            try:
                content = self._content(descriptor, status)
            except ServerSetupError as error:
                self._complain(str(error))
            else:
                self._complaint = None
            self._read = (_identity(status), content)
        return content

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[int, os.stat_result]]:
        # Not blocking: a pipe in the file's place would make the one who asks wait for whoever writes into it.
        descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            yield descriptor, os.fstat(descriptor)
        finally:
            os.close(descriptor)

    def _content(self, descriptor: int, status: os.stat_result) -> _Content:
        if not stat.S_ISREG(status.st_mode):
            raise ServerSetupError(f"The {self._what} is not a regular file.")
        self._check(status)
        with open(descriptor, "rb", closefd=False) as file:
            raw = file.read(self._max_bytes + 1)
        if len(raw) > self._max_bytes:
            raise ServerSetupError(f"The {self._what} is too long to be one.")
        return self._parse(raw)

    def _complain(self, reason: str) -> None:
        if reason != self._complaint:
            self._complaint = reason
            _log.error("The %s cannot be used, and nobody is recognised by it until it can: %s", self._what, reason)


def _identity(status: os.stat_result) -> _Identity:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _unreadable(error: OSError) -> str:
    return f"it cannot be read: {error.strerror or 'the system gives no reason'}."
