"""The registry's single files: each is there completely or not at all, and is read once, through one descriptor that is no link.

A draft has a name that begins with a dot, so a process that dies leaves at most a draft, which no reader takes for anything.
"""

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from clinical_ser.atomic_folder import sync_folder, write_new_file
from clinical_ser.errors import RegistryError, RegistryTamperedError

OWN_FOLDER, OWN_FILE = 0o700, 0o600
_OTHERS_MAY = stat.S_IRWXG | stat.S_IRWXO


def make_folder(path: Path) -> None:
    """Make a folder that only its owner may enter, and its parents, and see their names on the disk; one that is there stays as it is."""
    with refused_by_system():
        missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
        for folder in reversed(missing):
            folder.mkdir(mode=OWN_FOLDER, exist_ok=True)
            sync_folder(folder.parent)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file in one step, in place of any that is there: a draft, synced, and one rename (rename(2), POSIX.1-2017)."""
    with refused_by_system():
        draft = path.with_name(f".{path.name[:64]}.{secrets.token_hex(8)}.tmp")
        write_new_file(draft, content, mode=OWN_FILE)
        try:
            draft.rename(path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_once(path: Path, content: bytes) -> bool:
    """Write a file completely where none was; False, and nothing changed, where one is."""
    with refused_by_system():
        draft = path.with_name(f".{path.name[:64]}.{secrets.token_hex(8)}.tmp")
        write_new_file(draft, content, mode=OWN_FILE)
        try:
            os.link(draft, path, follow_symlinks=False)
        except FileExistsError:
            return False
        finally:
            draft.unlink(missing_ok=True)
        sync_folder(path.parent)
    return True


def read_file(path: Path, limit: int, what: str, *, private: bool = False) -> bytes | None:
    """Read a plain file of at most `limit` bytes.

    Parameters
    ----------
    path
        Of the file.
    limit
        In bytes.
    what
        How errors call it.
    private
        Whether to refuse one that others may read, write or execute.

    Returns
    -------
    bytes or None
        None where there is none.

    Raises
    ------
    RegistryTamperedError
        It is larger, no plain file, or others may use it.
    RegistryError
        The system refuses.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:  # its text holds the path; ELOOP is a link
        raise RegistryError(f"{what} cannot be read: {error.strerror}.") from None
    with refused_by_system(), os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise RegistryTamperedError(f"{what} is no plain file.")
        if private:
            check_own(status, what)
        content = file.read(limit + 1)
    if len(content) > limit:
        raise RegistryTamperedError(f"{what} is larger than the {limit} bytes that this program writes at most.")
    return content


def check_own(status: os.stat_result, what: str) -> None:
    """Refuse what others may use: the mode is that of a leak, or of somebody else's hand."""
    if status.st_mode & _OTHERS_MAY:
        mode = stat.S_IMODE(status.st_mode)
        right = OWN_FOLDER if stat.S_ISDIR(status.st_mode) else OWN_FILE
        raise RegistryTamperedError(f"{what} has mode {mode:04o}, so others may use it; only {right:04o} is taken.")


def check_folder(path: Path, what: str) -> None:
    """Refuse a folder of the registry that is a link, or that others may write in; one that is not there is an empty one."""
    with refused_by_system():
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return
    if not stat.S_ISDIR(status.st_mode):
        raise RegistryTamperedError(f"{what} is no folder of its own, but a link or a file.")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise RegistryTamperedError(f"{what} has mode {stat.S_IMODE(status.st_mode):04o}, so others may write in it; only {OWN_FOLDER:04o} is taken.")


def listed(folder: Path) -> list[str]:
    """Return the names in a folder, sorted; of one that is not there, none."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise RegistryError(f"The registry cannot be listed: {error.strerror}.") from None


def is_own_folder(path: Path) -> bool:
    """Tell whether a folder is there, and no link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def rename_if_there(draft: Path, path: Path) -> None:
    """Give a draft its name; nothing happens where that was done already."""
    with refused_by_system():
        try:
            draft.rename(path)
        except FileNotFoundError:
            return
        sync_folder(path.parent)


@contextlib.contextmanager
def refused_by_system() -> Iterator[None]:
    """Turn an OSError, whose text holds a path, into a RegistryError."""
    try:
        yield
    except OSError as error:
        raise RegistryError(f"The registry cannot be written or read: {error.strerror or 'the system gives no reason'}.") from None
