"""A log as a folder of static files in the layout of c2sp.org/tlog-tiles, for any web server to serve and any monitor to read.

The one idea: everything but the checkpoint never changes once it is written, so publishing adds files and, last of all, replaces the checkpoint.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from clinical_ser.audit.checkpoint import Checkpoint
from clinical_ser.audit.merkle import TILE_HEIGHT, TILE_WIDTH, Frontier, leaf_hash, perfect_root
from clinical_ser.audit.notes import VerifierKey, parse_note
from clinical_ser.errors import AuditFormatError, AuditSetupError, AuditTamperedError, AuditUnavailableError

ENTRIES = "entries"
_LENGTH_BYTES = 2
_DRAFT = ".tmp"
_MAX_FILE = TILE_WIDTH * (_LENGTH_BYTES + 65_535)
_PATH = re.compile(r"tile/(?:entries|\d|[1-5]\d|6[0-3])/(?:x\d{3}/)*\d{3}(?:\.p/(?:[1-9]|[1-9]\d|1\d\d|2[0-4]\d|25[0-5]))?")


class TileSource(Protocol):
    """What is published: a log as of one checkpoint."""

    @property
    def size(self) -> int:
        """Number of records."""

    @property
    def checkpoint(self) -> str:
        """The signed note, verbatim."""

    def tile(self, level: int, n: int) -> Sequence[bytes]:
        """Return the hashes of a tile, as far as they are there."""

    def leaves(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield leaves in their order."""

    def root_at(self, size: int) -> bytes:
        """Return the root that the tree had at a size."""


def tile_path(level: int | str, n: int, width: int = TILE_WIDTH) -> str:
    """Return the path of a tile, or of a bundle of `entries`.

    Examples
    --------
    >>> tile_path(0, 1234067)
    'tile/0/x001/x234/067'
    >>> tile_path("entries", 273, 112)
    'tile/entries/273.p/112'
    """
    digits = f"{n:0{(len(str(n)) + 2) // 3 * 3}d}"
    parts = [digits[at : at + 3] for at in range(0, len(digits), 3)]
    name = "/".join([*(f"x{part}" for part in parts[:-1]), parts[-1]])
    return f"tile/{level}/{name}" + ("" if width == TILE_WIDTH else f".p/{width}")


def tiles_of(size: int) -> Iterator[tuple[int, int, int]]:
    """Yield level, number and width of every tile of a tree, those that are full and the partial ones at the edge."""
    level, count = 0, size
    while count:
        for n in range(count // TILE_WIDTH):
            yield level, n, TILE_WIDTH
        if count % TILE_WIDTH:
            yield level, count // TILE_WIDTH, count % TILE_WIDTH
        level, count = level + 1, count >> TILE_HEIGHT


def publish_tiles(source: TileSource, folder: Path) -> int:
    """Bring a folder up to the log's head, and return how many files were written.

    Parameters
    ----------
    source
        The log.
    folder
        Made if it is not there. Full tiles that are there are left, partial ones that became full are removed.

    Raises
    ------
    AuditUnavailableError
        A file cannot be written; the checkpoint that is there still fits the tiles.
    AuditSetupError
        The folder holds other files.
    AuditTamperedError
        The folder holds another log, or what this one was before it was changed, or a larger one.
    """
    written = 0
    _see_that_it_grows(source, folder)
    try:
        for draft in folder.rglob(f".*{_DRAFT}"):
            draft.unlink()
        for level, n, width in tiles_of(source.size):
            if not (place := folder / tile_path(level, n, width)).exists():
                _write(place, b"".join(source.tile(level, n)[:width]))
                written += 1
            if level == 0 and not (place := folder / tile_path(ENTRIES, n, width)).exists():
                _write(place, _bundle(source.leaves(n * TILE_WIDTH, n * TILE_WIDTH + width)))
                written += 1
        _write(folder / "checkpoint", source.checkpoint.encode())
        _drop_old_partials(folder, source.size)
    except OSError as error:
        raise AuditUnavailableError(f"The tiles cannot be written: {error.strerror}.") from None
    return written + 1


def verify_tiles(folder: Path, verifiers: Iterable[VerifierKey], origin: str | None = None) -> Checkpoint:
    """Read a published log as a stranger would, and return its checkpoint.

    Raises
    ------
    AuditTamperedError, AuditFormatError
        The checkpoint is not signed by these keys, an entry or a tile does not fit it, or a file is missing, or one too many.
    """
    checkpoint, _ = Checkpoint.open(_read(folder / "checkpoint"), verifiers, origin)
    tree = Frontier()
    rows: list[list[bytes]] = [[]]
    for level, n, width in tiles_of(checkpoint.size):
        if level == len(rows):
            rows.append([perfect_root(rows[-1][at : at + TILE_WIDTH]) for at in range(0, len(rows[-1]) - TILE_WIDTH + 1, TILE_WIDTH)])
        if level == 0:
            hashes = [leaf_hash(entry) for entry in _entries(folder, n, width)]
            _grow(tree, hashes, rows)
        else:
            hashes = rows[level][n * TILE_WIDTH : n * TILE_WIDTH + width]
        if _read(folder / tile_path(level, n, width)) != b"".join(hashes):
            raise AuditTamperedError(f"{tile_path(level, n, width)} does not hold the hashes of the entries.")
    if tree.root != checkpoint.root:
        raise AuditTamperedError(f"The entries are not those of the checkpoint of {checkpoint.size}: one was changed, dropped, moved or forged.")
    _see_no_other_file(folder, checkpoint.size)
    return checkpoint


def _see_that_it_grows(source: TileSource, folder: Path) -> None:
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or (path.is_file() and name != "checkpoint" and not _PATH.fullmatch(name) and not name.endswith(_DRAFT)):
            raise AuditSetupError("The folder holds other files, which would be published along; choose a new one.")
    if not (folder / "checkpoint").exists():
        return
    published = Checkpoint.parse(parse_note(_read(folder / "checkpoint"))[0])
    if published.origin != Checkpoint.parse(parse_note(source.checkpoint)[0]).origin:
        raise AuditTamperedError("Another log was published in this folder; choose another one.")
    if published.size > source.size or source.root_at(published.size) != published.root:
        raise AuditTamperedError(
            f"What was published, {published.size} records, is not how this log of {source.size} began: it was changed, or put back to an older copy."
        )


def _grow(tree: Frontier, hashes: list[bytes], rows: list[list[bytes]]) -> None:
    """Add a tile of leaf hashes; of a full one only its root is kept, for the tiles above."""
    if len(hashes) < TILE_WIDTH:
        for digest in hashes:
            tree.append(digest)
        return
    root = perfect_root(hashes)
    tree.extend_by_tile(root)
    if len(rows) == 1:
        rows.append([])
    rows[1].append(root)


def _bundle(leaves: Iterable[bytes]) -> bytes:
    return b"".join(len(leaf).to_bytes(_LENGTH_BYTES, "big") + leaf for leaf in leaves)


def _entries(folder: Path, n: int, width: int) -> list[bytes]:
    path = tile_path(ENTRIES, n, width)
    raw = _read(folder / path)
    entries, at = [], 0
    while at < len(raw):
        start = at + _LENGTH_BYTES
        at = start + int.from_bytes(raw[at:start], "big")
        entries.append(raw[start:at])
    if at != len(raw) or len(entries) != width:
        raise AuditFormatError(f"{path} does not hold {width} entries, each after its length in two bytes.")
    return entries


def _see_no_other_file(folder: Path, size: int) -> None:
    known = {tile_path(level, n, width) for level, n, width in tiles_of(size)}
    known |= {tile_path(ENTRIES, n, width) for level, n, width in tiles_of(size) if level == 0}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or (path.is_file() and name not in known and name != "checkpoint"):
            raise AuditTamperedError("The folder holds a file, or a link, that is not part of the log.")


def _drop_old_partials(folder: Path, size: int) -> None:
    """Remove partial tiles of smaller trees; a monitor that wants one finds the full tile, or a wider one."""
    current = {tile_path(level, n, width) for level, n, width in tiles_of(size)}
    for path in folder.rglob("*.p/*"):
        name = path.relative_to(folder).as_posix()
        if _PATH.fullmatch(name) and name.replace(f"tile/{ENTRIES}/", "tile/0/") not in current:
            path.unlink()
            with contextlib.suppress(OSError):
                path.parent.rmdir()


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise AuditTamperedError(f"A file of the published log cannot be read: {error.strerror}.") from None
    if len(raw) > _MAX_FILE:
        raise AuditFormatError("A file of the published log is longer than one can be.")
    return raw


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}{_DRAFT}")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
