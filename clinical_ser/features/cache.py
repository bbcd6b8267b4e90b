"""What was measured already, on disk: nothing is measured twice, nothing damaged is believed, and the folder alone says nothing about anyone.

One idea: an entry is found by what it was computed from (the digest of the samples, the feature set, the fingerprint of its code), never
by a file's name. An entry is one small file that appears whole or not at all, so a run that is killed leaves only what is true.

A vector measured from a voice identifies its speaker: of 24 speakers the embedding `ge2e` tells 97 % of clips to the right one, eGeMAPS alone
72 % (docs/benchmarks.md). So

- every entry is sealed (AES-256-GCM) with a random key of its folder, and that key lies elsewhere, in the user's configuration folder: a
  backup, a stolen disk or a shared scratch folder holds noise, and names that whoever has a recording cannot work out from it;
- what is older than the reader allows is not used, and is deleted when it is met and whenever the folder is opened;
- `erase` destroys the key first: copies of the folder that nobody can reach any more become unreadable with it.
"""

import errno
import fcntl
import hashlib
import hmac
import json
import os
import secrets
import stat
import struct
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from clinical_ser.errors import FeatureError, InvalidValueError
from clinical_ser.folders import HOME_VARIABLE, user_folder
from clinical_ser.strict import Strict

MAGIC = b"clinical-ser cache 2\n"
"""First bytes of every entry; a new layout gets a new number, and entries of the old one are deleted. Layout 1 was clear text."""

DEFAULT_MAX_AGE = timedelta(days=30)
"""As long as a study's extraction takes, with its interruptions; measuring again costs time, keeping costs privacy."""

MAX_SKEW_S = 300.0
"""How far ahead another node's clock may be before its entries count as of the future, and so as expired: Kerberos's bound (RFC 4120)."""

PADDED_TO = 1024
"""An entry's length says which feature set it holds, and no more: the digits of a quality measure would be as many as the recording has them."""

TAG_NAME = "CACHEDIR.TAG"
TAG = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"  # bford.info/cachedir: backup programs leave such a folder out
    "# This folder was made by clinical-ser. It holds measurements of voices, which can identify people, and may be deleted at any time.\n"
)

MARKER_NAME = "sealed-with"
MARKER_MAGIC = b"clinical-ser cache key\n"

ABANDONED_AFTER_S = 3600.0
"""A temporary file older than this belongs to a process that was killed: writing one takes milliseconds."""

KEY_BYTES = 32
_ID_HEX = 32
_NONCE_BYTES = 12
_TAG_BYTES = 16
_TIME = struct.Struct(">q")
_HEAD_BYTES = len(MAGIC) + _TIME.size
_OTHERS_MAY = stat.S_IRWXG | stat.S_IRWXO
_STRIPES = 3  # hex digits of a name that choose its lock: 4096 locks, so that 64 workers wait for a stranger's entry about once in 60 times
_REMEDY = (
    f"a folder whose key is here: set {HOME_VARIABLE} as it was when the cache was made, or bring the key file back; "
    "or give the cache up with `clinical-ser cache clear`, and everything is measured again"
)


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


class Seal:
    """The key of one cache folder, for closing, opening and naming its entries. It shows nothing of itself.

    It is pickled with its key: a worker process gets it through a pipe, a node of a cluster through Ray, and neither needs the user's
    configuration folder. It is this folder's key and opens nothing else.
    """

    __slots__ = ("_cipher", "_key", "_naming")

    def __init__(self, key: bytes) -> None:
        self._key = key
        # AES-GCM and not AES-GCM-SIV: SIV needs OpenSSL 3.2, which a cryptography built on a system's library may lack, and random nonces
        # are safe up to 2^32 entries under one key (NIST SP 800-38D, 8.3); a hundred thousand recordings make half a million.
        self._cipher = AESGCM(_derived(key, b"entries"))
        self._naming = _derived(key, b"names")

    def __repr__(self) -> str:
        return "Seal()"

    def __reduce__(self) -> tuple[type["Seal"], tuple[bytes]]:
        return Seal, (self._key,)

    def close(self, plain: bytes, about: bytes) -> bytes:
        """Return `plain` encrypted, bound to `about`, which stays in clear."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, plain, about)

    def open(self, sealed: bytes, about: bytes) -> bytes | None:
        """Return what was closed; None if a bit of it, or of `about`, is not as it was, or another key closed it."""
        if len(sealed) < _NONCE_BYTES + _TAG_BYTES:
            return None
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], about)
        except InvalidTag:
            return None

    def name(self, key: str) -> str:
        """Return what the entry of `key` is called on disk. Without the secret nobody can tell whether a recording in hand was measured here."""
        return hmac.digest(self._naming, key.encode(), "sha256").hex()


def pack(seal: Seal, key: str, entry: Entry, *, written_at: int) -> bytes:
    """Return an entry as bytes: magic and time in clear, then sealed one JSON line, float64 little-endian and padding.

    The time (seconds since 1970) and the key are authenticated: an entry cannot be made younger, nor put in another's place.
    """
    head = MAGIC + _TIME.pack(written_at)
    line = json.dumps({"count": len(entry.values), "facts": entry.facts}, sort_keys=True).encode()
    plain = line + b"\n" + entry.values.astype("<f8").tobytes()
    return head + seal.close(plain + bytes(-len(plain) % PADDED_TO), head + key.encode())


def unpack(seal: Seal, key: str, content: bytes) -> Entry | None:
    """Return the entry in `content`, or None if it is cut short, changed, of another layout or another key's: it is then computed again."""
    head, sealed = content[:_HEAD_BYTES], content[_HEAD_BYTES:]
    plain = seal.open(sealed, head + key.encode()) if head.startswith(MAGIC) else None
    if plain is None:
        return None
    line, _, payload = plain.partition(b"\n")
    header = json.loads(line)
    return Entry(header["facts"], np.frombuffer(payload, "<f8", header["count"]).astype(np.float64))


class FeatureCache:
    """A folder of sealed entries that several processes, and several runs, may use at the same time.

    Each folder has a random key of its own in the user's configuration folder (`keys/cache/`, mode 0600), made when the folder is first
    opened; a small sealed marker in the folder says which. Not one key for all caches sealed into each folder: that would travel with
    every copy, and destroying it here would leave the copies readable.

    An instance that is sent to a worker carries the key in memory. Through Ray it lies in the object store for the time of the run (which Ray
    spills to disk when it is full), open to whoever administers the nodes, who can read the recordings as well; Ray encrypts its connections
    only with `RAY_USE_TLS=1`.

    Opening a folder of layout 1 deletes its entries: they are clear text, and are measured again.

    Parameters
    ----------
    root
        The folder. It is created for its owner only (0700). A folder that holds anything else is refused, so that `clear` can never
        delete what is not the cache's. On a cluster it lies on storage that all nodes share, with POSIX locks (NFS 4 has them).
    max_age
        Entries written longer ago, or more than `MAX_SKEW_S` in the future (a clock went back), are not used and are deleted: those under
        any key now, others when they are met. None: entries are kept until `clear`.

    Raises
    ------
    InvalidValueError
        The folder exists and is not a cache, cannot be written, or is sealed with a key that is not here; a key file that others may
        read, or that is none; no home folder to keep a key in; a `max_age` that is not positive.
    """

    def __init__(self, root: Path, *, max_age: timedelta | None = DEFAULT_MAX_AGE) -> None:
        if max_age is not None and max_age <= timedelta(0):
            raise InvalidValueError("max_age", str(max_age), "more than no time, or None")
        self._root = root.absolute()  # workers may stand in another folder
        self._entries, self._locks, self._unfinished = _parts(self._root)
        self._max_age = max_age
        try:
            _claim(self._root)
            with _alone(self._root):
                self._seal = _seal_of(self._root)
            self._sweep()
        except OSError as error:
            raise InvalidValueError("cache folder", type(error).__name__, "a folder that can be created and written") from None

    def __repr__(self) -> str:
        return f"FeatureCache(max_age={self._max_age})"

    def get(self, key: str) -> Entry | None:
        """Return the entry under `key`; None if there is none, or none that can be trusted or is still young enough."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        written_at = _written_at(content)
        if written_at is not None and _expired(written_at, self._max_age):
            # If another process has put a fresh one there meanwhile, that is lost, and measured once more.
            path.unlink(missing_ok=True)
            return None
        return unpack(self._seal, key, content)

    def put(self, key: str, facts: Mapping[str, object], values: Sequence[float] | NDArray[np.float64] = ()) -> None:
        """Store an entry; readers see the old one or the new one, never a part. FeatureError if the disk is full or gone."""
        target = self._path(key)
        content = pack(self._seal, key, Entry(facts, np.asarray(values, np.float64)), written_at=int(_now()))
        try:
            target.parent.mkdir(mode=0o700, exist_ok=True)
            # Not synced: after a power cut an entry may be empty, and its seal then sends it back to be computed.
            _write_whole(target, content, self._unfinished)
        except OSError as error:
            raise FeatureError(f"The cache cannot be written: {error.strerror}.") from None

    @contextmanager
    def lock(self, key: str, *, room: str) -> Iterator[None]:
        """Hold the right to compute `key`: a second process that wants it waits, and then finds it done.

        A process holds at most one lock of each `room` and takes rooms in one order, so no two can wait for each other. The kernel
        gives a lock back when its holder dies, however it dies.
        """
        with open(self._locks / f"{room}-{self._seal.name(key)[:_STRIPES]}", "wb", opener=_private) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def clear(self) -> None:
        """Destroy the folder's key and delete every entry, as `erase` does; the folder gets a new key and stays usable."""
        erase(self._root)
        with _alone(self._root):
            self._seal = _seal_of(self._root)

    def __len__(self) -> int:
        return sum(1 for _ in _files(self._entries))

    def _path(self, key: str) -> Path:
        name = self._seal.name(key)
        return self._entries / name[:2] / name[2:]

    def _sweep(self) -> None:
        """Delete what is expired, what an older version of this program has left in clear text, and what killed processes were writing."""
        abandoned = _now() - ABANDONED_AFTER_S
        for path in _files(self._entries):
            with suppress(FileNotFoundError):  # another process sweeps too
                # The time is believed unopened here: whoever can change it can delete the file as well, and `get` finds it out.
                written_at = _written_at(_head(path))
                if written_at is None or _expired(written_at, self._max_age):
                    path.unlink()
        for path in _files(self._unfinished):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < abandoned:
                    path.unlink()


class CacheState(Strict):
    """What can be said of a cache folder without opening an entry."""

    entries: int
    size_bytes: int
    oldest: datetime | None
    """When the oldest entry was written, by its own word (UTC)."""
    days_kept: float | None
    """The age that `expired` is judged by; it is the reader's, and nothing in the folder sets it."""
    expired: int
    """Entries that the next run with this age will delete."""
    clear_text: int
    """Entries of an older version of this program, which the next run will delete; they are not among `entries`."""
    key_is_here: bool
    """Whether this user's configuration folder holds the key that the folder is sealed with."""


def inspect(root: Path, *, max_age: timedelta | None = DEFAULT_MAX_AGE) -> CacheState:
    """Look at a cache folder and change nothing; InvalidValueError if it is none."""
    _require_cache(root)
    entries, clear_text, size = [], 0, 0
    for path in _files(_parts(root)[0]):
        with suppress(FileNotFoundError):
            written_at = _written_at(_head(path))
            if written_at is None:
                clear_text += 1
            else:
                entries.append(written_at)
                size += path.stat().st_size
    return CacheState(
        entries=len(entries),
        size_bytes=size,
        oldest=datetime.fromtimestamp(min(entries), UTC) if entries else None,
        days_kept=max_age / timedelta(days=1) if max_age else None,
        expired=sum(_expired(written_at, max_age) for written_at in entries),
        clear_text=clear_text,
        key_is_here=_key_is_here(root),
    )


def erase(root: Path) -> int:
    """Destroy the key of a cache folder and delete its entries, and return how many there were. The key itself is not needed.

    The key goes first, so that whatever then stays behind cannot be read: blocks that an SSD has not yet freed, snapshots, and backups of the
    folder. That cannot be said of a backup that holds the configuration folder too, and blocks of the key itself may linger on its own disk.
    A run that is under way still has the key in memory; what it adds afterwards nobody can read, and it goes when it expires.

    Raises
    ------
    InvalidValueError
        The folder is no cache.
    """
    _require_cache(root)
    entries, locks, unfinished = _parts(root)
    with _alone(root):
        identity = _identity(root)
        if identity is not None and (path := _key_path(identity)) is not None:
            path.unlink(missing_ok=True)
        (root / MARKER_NAME).unlink(missing_ok=True)
        erased = _empty(entries)
        _empty(locks)
        _empty(unfinished)
    return erased


# The folder


def _parts(root: Path) -> tuple[Path, Path, Path]:
    return root / "entries", root / "locks", root / "unfinished"


def _claim(root: Path) -> None:
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Listed before the tag is looked for: the tag is the first thing that another process writes which opens the same new folder now.
    if os.listdir(root) and not _is_cache(root):
        raise InvalidValueError("cache folder", "a folder with other files in it", "a new or empty folder, or one used as a cache before")
    root.chmod(0o700)
    (root / TAG_NAME).write_text(TAG, encoding="ascii")
    for folder in _parts(root):
        folder.mkdir(mode=0o700, exist_ok=True)


def _is_cache(root: Path) -> bool:
    """Other programs tag their caches too, so the text has to be ours, or the part of it that is written so far."""
    try:
        return TAG.encode().startswith((root / TAG_NAME).read_bytes())
    except FileNotFoundError:
        return False


def _require_cache(root: Path) -> None:
    if not root.is_dir() or not _is_cache(root):
        raise InvalidValueError("cache folder", "no folder, or one with other files in it", "one that was used as a cache before")


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Be the only process that gives this folder its key, or takes it away."""
    with open(root / "lock", "wb", opener=_private) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _files(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        yield from (Path(place, name) for name in names)


def _empty(folder: Path) -> int:
    """Delete all files in a folder, and the folders in it too: in layout 1 their names are digits of the keys. Return how many files."""
    deleted = 0
    for place, folders, names in os.walk(folder, topdown=False):
        for name in names:
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(place, name))
                deleted += 1
        for name in folders:
            with suppress(OSError):  # a run that is under way has just put something there
                os.rmdir(os.path.join(place, name))
    return deleted


def _write_whole(target: Path, content: bytes, beside: Path) -> None:
    handle, unfinished = tempfile.mkstemp(dir=beside)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    os.replace(unfinished, target)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, mode=0o600)


# The time


def _now() -> float:
    return time.time()


def _head(path: Path) -> bytes:
    with path.open("rb", buffering=0) as file:
        return file.read(_HEAD_BYTES)


def _written_at(content: bytes) -> int | None:
    """Return the time in an entry's head; None for what is no entry of this layout."""
    if len(content) < _HEAD_BYTES or not content.startswith(MAGIC):
        return None
    (written_at,) = _TIME.unpack_from(content, len(MAGIC))
    return int(written_at)


def _expired(written_at: int, max_age: timedelta | None) -> bool:
    return max_age is not None and not -MAX_SKEW_S <= _now() - written_at <= max_age.total_seconds()


# The key


def _derived(key: bytes, purpose: bytes) -> bytes:
    """Return a key for one purpose: HKDF-Expand (RFC 5869) of one block, the key being uniformly random already."""
    return hmac.digest(key, b"clinical-ser cache 2 " + purpose + b"\x01", "sha256")


def _seal_of(root: Path) -> Seal:
    """Return the seal that this folder's marker names, or give the folder a new one where there is no marker."""
    if seal := _known_seal(root):
        return seal
    # A new folder; or one of layout 1 (clear text, and locks named by digests of recordings), or one whose clearing was cut short.
    for folder in _parts(root):
        _empty(folder)
    return _new_seal(root)


def _known_seal(root: Path) -> Seal | None:
    """Return the seal that this folder's marker names, None where there is no marker; InvalidValueError if it cannot be had."""
    if not (root / MARKER_NAME).exists():
        return None
    identity = _identity(root)
    if identity is None:
        raise InvalidValueError("cache folder", "one whose marker is damaged", _REMEDY)
    key = _read_key(identity)
    if key is None:
        raise InvalidValueError("cache folder", f"one sealed with a key that is not in the configuration folder (keys/cache/{identity}.key)", _REMEDY)
    seal, head = Seal(key), MARKER_MAGIC + identity.encode()
    if seal.open((root / MARKER_NAME).read_bytes()[len(head) :], head) is None:
        raise InvalidValueError("cache folder", f"one sealed with another key than keys/cache/{identity}.key", _REMEDY)
    return seal


def _new_seal(root: Path) -> Seal:
    identity, key = secrets.token_hex(_ID_HEX // 2), secrets.token_bytes(KEY_BYTES)
    _write_key(identity, key)
    seal, head = Seal(key), MARKER_MAGIC + identity.encode()
    _write_whole(root / MARKER_NAME, head + seal.close(b"", head), _parts(root)[2])
    return seal


def _identity(root: Path) -> str | None:
    """Return the name of the key in a folder's marker; None where there is no marker, or one that this version did not write."""
    try:
        content = (root / MARKER_NAME).read_bytes()
    except FileNotFoundError:
        return None
    identity = content.removeprefix(MARKER_MAGIC)[:_ID_HEX].decode("ascii", "replace")
    whole = content.startswith(MARKER_MAGIC) and len(content) == len(MARKER_MAGIC) + _ID_HEX + _NONCE_BYTES + _TAG_BYTES
    return identity if whole and set(identity) <= set("0123456789abcdef") else None  # it becomes the name of a file


def _key_is_here(root: Path) -> bool:
    try:
        return _known_seal(root) is not None
    except InvalidValueError:
        return False


def _key_path(identity: str) -> Path | None:
    folder = user_folder("config")
    return folder / "keys" / "cache" / f"{identity}.key" if folder else None


def _read_key(identity: str) -> bytes | None:
    """Return a folder's key, None if it is not there; InvalidValueError for a file that is no key or that others may use."""
    path, right = _key_path(identity), f"a file of {KEY_BYTES} bytes that only its owner may read"
    if path is None:
        return None
    try:
        # A link could lead to a file of someone else's choice, and a pipe would never end.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        given = "a symbolic link" if error.errno == errno.ELOOP else f"one that cannot be read ({error.strerror})"
        raise InvalidValueError("cache key file", given, right) from None
    with os.fdopen(handle, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if mode & _OTHERS_MAY:
            raise InvalidValueError(
                "cache key file",
                f"mode {stat.S_IMODE(mode):04o}",
                f"{right}: run chmod 600 on it, or `clinical-ser cache clear` if someone else may have read it",
            )
        key = file.read(KEY_BYTES + 1) if stat.S_ISREG(mode) else b""
    if len(key) != KEY_BYTES:
        raise InvalidValueError("cache key file", "one of another length" if stat.S_ISREG(mode) else "no regular file", f"{right}; {_REMEDY}")
    return key


def _write_key(identity: str, key: bytes) -> None:
    path = _key_path(identity)
    if path is None:
        raise InvalidValueError("cache folder", "given, but there is no home folder to keep its key in", f"{HOME_VARIABLE} set, or no cache")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(key)
            file.flush()
            os.fsync(file.fileno())  # a marker that outlives its key in a power cut would cost the cache
    except OSError as error:
        raise InvalidValueError("configuration folder", error.strerror, "one that the cache's key can be written to") from None
