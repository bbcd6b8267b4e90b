"""What was measured already, on disk: nothing is measured twice, and nothing damaged is believed.

One idea: an entry is found by what it was computed from (the digest of the samples, the feature set, the fingerprint of its code), never
by a file's name. An entry is one small file that appears whole or not at all, so a run that is killed leaves only what is true.

Feature vectors are biometric data: eGeMAPS alone tells 24 speakers apart 86 % of the time. The folder is therefore readable by its owner
only, carries no path and no name, and is used only where the caller names one; `FeatureCache.clear` empties it.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clinical_ser.errors import FeatureError, InvalidValueError

MAGIC = b"clinical-ser cache 1\n"
"""First bytes of every entry; a new layout gets a new number, and old entries are then computed again."""

TAG_NAME = "CACHEDIR.TAG"
TAG = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"  # bford.info/cachedir: backup programs leave such a folder out
    "# This folder was made by clinical-ser. It holds measurements of voices, which can identify people, and may be deleted at any time.\n"
)

ABANDONED_AFTER_S = 3600.0
"""A temporary file older than this belongs to a process that was killed: writing one takes milliseconds."""

_DIGEST_BYTES = hashlib.sha256().digest_size
_STRIPES = 3  # hex digits of a key that choose its lock: 4096 locks, so that 64 workers wait for a stranger's entry about once in 60 times


def key_of(*parts: object) -> str:
    """Return the key of an entry: the SHA-256 of the JSON list of what it was computed from."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=True, allow_nan=False).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Entry:
    """What the cache keeps under one key: facts as JSON, and numbers as they are, bit for bit."""

    facts: Mapping[str, object]
    """Only what JSON carries exactly: text, integers, float64, None, and lists and mappings of them."""
    values: NDArray[np.float64]
    """Shape (n,); empty where there are only facts."""


def pack(key: str, entry: Entry) -> bytes:
    """Return an entry as bytes: magic, one JSON line, float64 little-endian, and the SHA-256 of all that."""
    header = {"key": key, "count": len(entry.values), "facts": entry.facts}
    body = MAGIC + json.dumps(header, sort_keys=True).encode() + b"\n" + entry.values.astype("<f8").tobytes()
    return body + hashlib.sha256(body).digest()


def unpack(key: str, content: bytes) -> Entry | None:
    """Return the entry in `content`, or None if it is cut short, changed, of another layout or another key's: it is then computed again."""
    body, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    if not body.startswith(MAGIC) or hashlib.sha256(body).digest() != digest:
        return None
    line, _, payload = body[len(MAGIC) :].partition(b"\n")
    header = json.loads(line)
    if header["key"] != key or len(payload) != 8 * header["count"]:
        return None
    return Entry(header["facts"], np.frombuffer(payload, "<f8").astype(np.float64))


class FeatureCache:
    """A folder of entries that several processes, and several runs, may use at the same time.

    Parameters
    ----------
    root
        The folder. It is created for its owner only (0700). A folder that holds anything else is refused, so that `clear` can never
        delete what is not the cache's. On a cluster it lies on storage that all nodes share, with POSIX locks (NFS 4 has them).

    Raises
    ------
    InvalidValueError
        The folder exists and is not a cache, or cannot be written.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()  # workers may stand in another folder
        self._entries = self._root / "entries"
        self._locks = self._root / "locks"
        self._unfinished = self._root / "unfinished"
        try:
            self._claim()
        except OSError as error:
            raise InvalidValueError("cache folder", type(error).__name__, "a folder that can be created and written") from None
        self._sweep()

    def get(self, key: str) -> Entry | None:
        """Return the entry under `key`; None if there is none, or none that can be trusted."""
        try:
            content = self._path(key).read_bytes()
        except FileNotFoundError:
            return None
        return unpack(key, content)

    def put(self, key: str, facts: Mapping[str, object], values: Sequence[float] | NDArray[np.float64] = ()) -> None:
        """Store an entry; readers see the old one or the new one, never a part. FeatureError if the disk is full or gone."""
        target = self._path(key)
        content = pack(key, Entry(facts, np.asarray(values, np.float64)))
        try:
            target.parent.mkdir(mode=0o700, exist_ok=True)
            # Not synced: after a power cut an entry may be empty, and its checksum then sends it back to be computed.
            handle, unfinished = tempfile.mkstemp(dir=self._unfinished)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(unfinished, target)
        except OSError as error:
            raise FeatureError(f"The cache cannot be written: {error.strerror}.") from None

    @contextmanager
    def lock(self, key: str, *, room: str) -> Iterator[None]:
        """Hold the right to compute `key`: a second process that wants it waits, and then finds it done.

        A process holds at most one lock of each `room` and takes rooms in one order, so no two can wait for each other. The kernel
        gives a lock back when its holder dies, however it dies.
        """
        with open(self._locks / f"{room}-{key[:_STRIPES]}", "wb", opener=_private) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def clear(self) -> None:
        """Delete every entry; the folder stays."""
        shutil.rmtree(self._entries)
        self._entries.mkdir(mode=0o700)

    def __len__(self) -> int:
        return sum(1 for _ in self._entries.glob("*/*"))

    def _path(self, key: str) -> Path:
        return self._entries / key[:2] / key[2:]

    def _claim(self) -> None:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        tag = self._root / TAG_NAME
        if not tag.exists() and any(self._root.iterdir()):
            raise InvalidValueError("cache folder", "a folder with other files in it", "a new or empty folder, or one used as a cache before")
        self._root.chmod(0o700)
        tag.write_text(TAG, encoding="ascii")
        for folder in (self._entries, self._locks, self._unfinished):
            folder.mkdir(mode=0o700, exist_ok=True)

    def _sweep(self) -> None:
        abandoned = time.time() - ABANDONED_AFTER_S
        for path in self._unfinished.iterdir():
            with suppress(FileNotFoundError):  # another process sweeps too
                if path.stat().st_mtime < abandoned:
                    path.unlink()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, mode=0o600)
