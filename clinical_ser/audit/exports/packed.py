"""An export as one file: a ZIP archive that is the same bytes for the same folder, and a private place to make the folder in.

The one idea: what is written on the way to whoever asked has no name any more once it is whole, so that nothing of it can be left behind.
"""

import contextlib
import os
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from clinical_ser.errors import AuditUnavailableError

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a ZIP archive knows; the export's own is in its manifest."""
_UNIX = 3
_PREFIX = "clinical-ser-export-"


@contextlib.contextmanager
def private_folder(origin: str) -> Iterator[Path]:
    """Lend a new folder that only this account may enter, and remove it at the end.

    What an earlier process left behind, because it was killed, is removed first: a log has one writer, so nobody else is using it.

    Parameters
    ----------
    origin
        The log's name, which the folder's own follows from.

    Raises
    ------
    AuditUnavailableError
        It cannot be made.
    """
    remove_leftovers(origin)
    with _refused_by_system():
        folder = tempfile.TemporaryDirectory(prefix=_prefix(origin))
    with folder as name:
        yield Path(name)


def remove_leftovers(origin: str) -> None:
    """Remove what a killed process left behind of exports of this log."""
    for path in Path(tempfile.gettempdir()).glob(f"{_prefix(origin)}*"):
        with contextlib.suppress(OSError):
            status = path.lstat()
            # Anyone may put something of this name into a folder that all share; that is theirs.
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid():
                shutil.rmtree(path, ignore_errors=True)


def _prefix(origin: str) -> str:
    return f"{_PREFIX}{sha256(origin.encode()).hexdigest()[:16]}-"


def packed(folder: Path, name: str) -> BinaryIO:
    """Return a ZIP archive of a folder of files, at its start, in a file that has no name and is gone when it is closed.

    Parameters
    ----------
    folder
        What `PacketWriter` made: files alone.
    name
        What the folder is called in the archive.

    Raises
    ------
    AuditUnavailableError
        It cannot be written.
    """
    with contextlib.ExitStack() as undo, _refused_by_system():
        file = undo.enter_context(tempfile.TemporaryFile())
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for path in sorted(folder.iterdir()):
                entry = zipfile.ZipInfo(f"{name}/{path.name}", _EPOCH)
                entry.create_system, entry.external_attr = _UNIX, (stat.S_IFREG | 0o600) << 16
                entry.file_size = path.stat().st_size
                with path.open("rb") as content, archive.open(entry, "w") as packing:
                    shutil.copyfileobj(content, packing, 1 << 20)
        file.seek(0)
        undo.pop_all()
    return file


@contextlib.contextmanager
def _refused_by_system() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AuditUnavailableError(f"The export cannot be packed: {error.strerror}.") from None
