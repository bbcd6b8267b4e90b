"""Accepted recordings on the disk until they are answered: encrypted, each with a key of its own that lies, sealed, in its row.

The one idea: a file without its row is noise. Whoever finds the folder, or a backup of it, has nothing; and an erasure of the person takes the key.
"""

import contextlib
import os
import struct
from collections.abc import Collection, Iterator
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from clinical_ser.atomic_folder import sync_folder
from clinical_ser.errors import ServerError, ServerSetupError

KEY_BYTES = 32
_PART_BYTES = 1 << 20
_TAG_BYTES = 16
_SUFFIX = ".recording"
_LAST, _MORE = b"last", b"more"


class SpoolError(ServerError):
    """An accepted recording cannot be written or read back."""


class Spool:
    """The folder.

    Parameters
    ----------
    folder
        Made if it is not there, for its owner alone.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
        except OSError as error:
            raise ServerSetupError(f"The folder for accepted recordings cannot be made: {error.strerror}.") from None
        self._folder = folder

    def begin(self, screening: str) -> "SpoolWriter":
        """Return a writer of a new file; SpoolError where there is no room."""
        try:
            return SpoolWriter(self._path(screening))
        except OSError as error:
            raise SpoolError(f"A recording cannot be kept: {error.strerror}.") from None

    def read(self, screening: str, key: bytes) -> Iterator[bytes]:
        """Yield a recording's bytes; SpoolError where it is not whole."""
        cipher = AESGCM(key)
        try:
            with self._path(screening).open("rb") as file:
                part = file.read(_PART_BYTES + _TAG_BYTES)
                number = 0
                while part:
                    following = file.read(_PART_BYTES + _TAG_BYTES)
                    yield cipher.decrypt(_nonce(number), part, _MORE if following else _LAST)
                    part, number = following, number + 1
        except OSError as error:
            raise SpoolError(f"An accepted recording cannot be read: {error.strerror}.") from None
        except InvalidTag:
            raise SpoolError("An accepted recording was changed or cut short on the disk.") from None

    def remove(self, screening: str) -> None:
        """Delete a recording; nothing happens where there is none."""
        with contextlib.suppress(OSError):
            self._path(screening).unlink()

    def keep_only(self, screenings: Collection[str]) -> int:
        """Delete every other file, which a crash left before it had a row, and return how many."""
        gone = [path for path in self._folder.glob(f"*{_SUFFIX}") if path.name.removesuffix(_SUFFIX) not in screenings]
        for path in gone:
            with contextlib.suppress(OSError):
                path.unlink()
        return len(gone)

    @property
    def free_bytes(self) -> int:
        """Room that is left."""
        found = os.statvfs(self._folder)
        return found.f_bavail * found.f_frsize

    def _path(self, screening: str) -> Path:
        return self._folder / f"{screening}{_SUFFIX}"


class SpoolWriter:
    """Writes one recording, a megabyte at a time, and sees it on the disk."""

    def __init__(self, path: Path) -> None:
        self.key = os.urandom(KEY_BYTES)
        self._path = path
        self._cipher = AESGCM(self.key)
        self._number = 0
        self._rest = bytearray()
        self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")

    def write(self, data: bytes) -> None:
        """Add bytes; SpoolError where there is no room."""
        self._rest += data
        while len(self._rest) > _PART_BYTES:
            self._put(bytes(self._rest[:_PART_BYTES]), _MORE)
            del self._rest[:_PART_BYTES]

    def finish(self) -> None:
        """See the whole recording, and its name in the folder, on the disk; SpoolError where that fails."""
        self._put(bytes(self._rest), _LAST)
        self._rest.clear()
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            sync_folder(self._path.parent)
        except OSError as error:
            raise SpoolError(f"A recording cannot be kept: {error.strerror}.") from None

    def abandon(self) -> None:
        """Delete what was written."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._path.unlink()

    def _put(self, part: bytes, place: bytes) -> None:
        try:
            self._file.write(self._cipher.encrypt(_nonce(self._number), part, place))
        except OSError as error:
            raise SpoolError(f"A recording cannot be kept: {error.strerror}.") from None
        self._number += 1


def _nonce(number: int) -> bytes:
    # A key is for one file, so that a count is never used twice.
    return struct.pack(">IQ", 0, number)
