"""A lock on a file: it ends with the process that holds it, however that ends."""

import fcntl
import os
from pathlib import Path

from clinical_ser.errors import ClinicalSerError


class FileLock:
    """A lock on a file that holds nothing.

    Parameters
    ----------
    path
        The file; made by the first who takes the lock alone. To share one that is not there is to find it free.
    what
        What it locks, for errors.
    error
        Raised where the system refuses the file or the lock.
    """

    def __init__(self, path: Path, what: str, error: type[ClinicalSerError]) -> None:
        self._path, self._what, self._error = path, what, error
        self._descriptor: int | None = None

    def take(self, *, shared: bool = False) -> bool:
        """Take it, alone or with others who share it; False where someone has it already."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | (0 if shared else os.O_CREAT), 0o600)
        except FileNotFoundError:
            return shared
        except OSError as error:
            raise self._error(f"The lock of the {self._what} cannot be opened: {error.strerror}.") from None
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                return False
            raise self._error(f"The {self._what} cannot be locked: {error.strerror}.") from None
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Let go; nothing happens where it was not held."""
        if self._descriptor is not None:
            # A process that was forked meanwhile holds the descriptor too, and would keep the lock.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = None
