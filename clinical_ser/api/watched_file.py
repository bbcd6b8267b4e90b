"""A small file that says who is known here, as it stands now.

The one idea: a change counts with the next question, and a file that cannot be used says nothing. What it said before is not kept: a key that someone
just took out, with a slip of the hand elsewhere, must not live on because of the slip.
"""

import contextlib
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Generic, TypeVar

from clinical_ser.errors import ServerSetupError

_log = logging.getLogger(__name__)
_Content = TypeVar("_Content")
_Identity = tuple[int, int, int, int]


class What(StrEnum):
    """The files that are watched, as errors call them."""

    API_KEYS = "file of API keys"
    ISSUER_KEYS = "file of an issuer's keys"


class Trouble(StrEnum):
    """Why a file cannot be used."""

    UNREADABLE = "unreadable"
    NO_FILE = "no file"
    OTHERS = "others"
    LONG = "long"
    CONTENT = "content"


# One constant a case: the server's log writes nothing of ours but constants, and "it cannot be used" alone helps nobody (library_logs.py).
_SAID: Mapping[tuple[What, Trouble], str] = {
    (What.API_KEYS, Trouble.UNREADABLE): "The file of API keys cannot be read, and no API key is good until it can. (%s)",
    (What.API_KEYS, Trouble.NO_FILE): "The file of API keys is not a regular file, and no API key is good until it is. (%s)",
    (What.API_KEYS, Trouble.OTHERS): "The file of API keys is another user's or others may use it, and no API key is good until it is mended. (%s)",
    (What.API_KEYS, Trouble.LONG): "The file of API keys is too long to be one, and no API key is good until it is another. (%s)",
    (What.API_KEYS, Trouble.CONTENT): "The file of API keys is not as this program writes it, and no API key is good until it is. (%s)",
    (What.ISSUER_KEYS, Trouble.UNREADABLE): "The file of an issuer's keys cannot be read, and its tokens are refused until it can. (%s)",
    (What.ISSUER_KEYS, Trouble.NO_FILE): "The file of an issuer's keys is not a regular file, and its tokens are refused until it is. (%s)",
    (What.ISSUER_KEYS, Trouble.OTHERS): "Others may write the file of an issuer's keys, and its tokens are refused until that is mended. (%s)",
    (What.ISSUER_KEYS, Trouble.LONG): "The file of an issuer's keys is too long to be one, and its tokens are refused until it is another. (%s)",
    (What.ISSUER_KEYS, Trouble.CONTENT): "The file of an issuer's keys is no key set, has no good key, or has a secret: its tokens are refused. (%s)",
}


class _UnusableError(ServerSetupError):
    def __init__(self, trouble: Trouble, reason: str) -> None:
        super().__init__(reason)
        self.trouble = trouble


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
        Which file it is.
    max_bytes
        A longer file is another one, given by mistake.
    """

    def __init__(
        self, path: Path, parse: Callable[[bytes], _Content], *, check: Callable[[os.stat_result], None], what: What, max_bytes: int
    ) -> None:
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
            self._complain(Trouble.UNREADABLE, _unreadable(error))
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
            except _UnusableError as error:
                self._complain(error.trouble, str(error))
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
            raise _UnusableError(Trouble.NO_FILE, f"The {self._what} is not a regular file.")
        try:
            self._check(status)
        except ServerSetupError as error:
            raise _UnusableError(Trouble.OTHERS, str(error)) from None
        with open(descriptor, "rb", closefd=False) as file:
            raw = file.read(self._max_bytes + 1)
        if len(raw) > self._max_bytes:
            raise _UnusableError(Trouble.LONG, f"The {self._what} is too long to be one.")
        try:
            return self._parse(raw)
        except ServerSetupError as error:
            raise _UnusableError(Trouble.CONTENT, str(error)) from None

    def _complain(self, trouble: Trouble, reason: str) -> None:
        if reason != self._complaint:
            self._complaint = reason
            _log.error(_SAID[self._what, trouble], reason)


def _identity(status: os.stat_result) -> _Identity:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _unreadable(error: OSError) -> str:
    return f"it cannot be read: {error.strerror or 'the system gives no reason'}."
