"""A folder of files that is there completely or not at all, whenever the process or the machine dies.

Everything is written and synced in a hidden folder beside the target, which one rename then puts in place (rename(2), POSIX.1-2017).
"""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from clinical_ser.errors import BundleWriteError, ClinicalSerError

# Anyone may read a model, and it holds nobody's data; fixed, so that the umask of whoever trained is not part of the result.
_FILE_MODE = 0o644
_FOLDER_MODE = 0o755


@dataclass(frozen=True)
class Kind:
    """What kind of thing the folder is, for errors."""

    name: str = "bundle"
    error: type[ClinicalSerError] = BundleWriteError


BUNDLE = Kind()


def publish_folder(target: Path, contents: Mapping[str, bytes], *, known: Collection[str], replace: bool, kind: Kind = BUNDLE) -> None:
    """Write a folder of files in one step.

    Parameters
    ----------
    target
        Where it goes; parents are made. An empty folder may be there.
    contents
        File name -> content.
    known
        The file names that such a folder may hold; one that holds others is somebody else's, and left alone.
    replace
        Whether such a folder that is there may be replaced. It is moved aside first, so no reader sees a mixture; if the process dies between
        the two renames, the old folder is complete beside the target as `.<name>.*.old`.
    kind
        What errors call it, and which they are.

    Raises
    ------
    BundleWriteError, or the error of `kind`
        Something is in the way, or the system refuses; what was there is as it was.
    """
    parent = target.absolute().parent
    with _refused_by_system(kind):
        parent.mkdir(parents=True, exist_ok=True)
        _check_place(target, known, kind, replace=replace)
        with _workplace(target) as workplace:
            draft = workplace / "draft"
            draft.mkdir()
            for name, content in sorted(contents.items()):
                _write_file(draft / name, content)
            draft.chmod(_FOLDER_MODE)
            sync_folder(draft)
            _move_into_place(draft, target, replace=replace)
        sync_folder(parent)


def replace_file(folder: Path, name: str, content: bytes) -> None:
    """Write one file of a published folder in one step, its draft beside the folder; BundleWriteError when the system refuses."""
    with _refused_by_system(BUNDLE):
        with _workplace(folder) as workplace:
            _write_file(workplace / name, content)
            (workplace / name).replace(folder / name)
        sync_folder(folder)


@contextlib.contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".tmp", dir=target.absolute().parent) as folder:
        yield Path(folder)


def _check_place(target: Path, known: Collection[str], kind: Kind, *, replace: bool) -> None:
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not target.is_dir():
        raise kind.error(f"A file or a link is where the {kind.name} should go; remove it, or choose another place.")
    names = {entry.name for entry in target.iterdir()}
    if not names <= set(known):
        raise kind.error(f"The folder where the {kind.name} should go holds other files; choose another place.")
    if names and not replace:
        raise kind.error(f"The {kind.name} is there already; choose another place, or say that it may be replaced.")


def _move_into_place(draft: Path, target: Path, *, replace: bool) -> None:
    """Rename the finished draft to the target, which is one atomic step where nothing, or an empty folder, is there."""
    try:
        draft.rename(target)
    except OSError as error:
        if not replace or error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise
        _replace_folder(draft, target)


def _replace_folder(draft: Path, target: Path) -> None:
    aside = draft.parent.with_suffix(".old")
    target.rename(aside)
    try:
        draft.rename(target)
    except OSError:
        aside.rename(target)
        raise
    sync_folder(target.absolute().parent)
    shutil.rmtree(aside, ignore_errors=True)


def _write_file(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        os.fchmod(file.fileno(), _FILE_MODE)
        file.flush()
        os.fsync(file.fileno())


def write_new_file(path: Path, content: bytes, *, mode: int) -> None:
    """Write a file that was not there, and see it on the disk, its name in the folder included; OSError, and nothing left, where that fails."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def sync_folder(path: Path) -> None:
    """Make what a folder names durable, as fsync(2) does for a file's content; OSError where the system refuses."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _refused_by_system(kind: Kind) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # its text holds the path
        raise kind.error(f"The {kind.name} cannot be written: {error.strerror or 'the system gives no reason'}.") from None
