"""The keys that open payloads: one for each subject, in a file of their own, apart from the log.

The one idea: whoever has the log but not the vault, a copy in a backup say, can read nothing of a person; and when a subject's key is destroyed here,
what was sealed with it is gone from every copy of the log.
"""

import contextlib
import hashlib
import hmac
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from clinical_ser.audit.database import StorageError
from clinical_ser.audit.sqlite import SqliteDatabase
from clinical_ser.errors import AuditFormatError, AuditKeyError, AuditTamperedError

SALT_BYTES = 32
_KEY_BYTES = 32
_ID_BYTES = 16
_NONCE_BYTES = 12
_LOOKUP_BYTES = 16
"""Of an HMAC: two names of a log fall together once in 2**64 pairs, and readers look again after opening."""
_CACHED = 10_000
_SCRUB = "scrub"

_TABLES = (
    "CREATE TABLE secrets (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT",
    "CREATE TABLE subjects (id BLOB PRIMARY KEY, lookup BLOB NOT NULL UNIQUE, key BLOB NOT NULL) STRICT",
)


@dataclass(frozen=True, repr=False)
class SubjectKey:
    """The key of a subject's payloads; `id` is its random name in the log. The log's own key has none."""

    id: bytes | None
    key: bytes
    lookup: bytes = b""
    """Under which the log finds the subject's records."""

    def tag(self, event_id: str) -> str:
        """Return the subject's tag in an event: HMAC-SHA256 of the event's id."""
        return hmac.digest(self.key, b"subject tag\n" + event_id.encode(), "sha256").hex()

    def seal(self, event_id: str, salt: bytes, payload: bytes) -> bytes:
        """Return salt and payload, encrypted for this event (AES-256-GCM)."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + AESGCM(self.key).encrypt(nonce, salt + payload, event_id.encode())

    def open(self, event_id: str, sealed: bytes) -> tuple[bytes, bytes]:
        """Return salt and payload; AuditTamperedError where they were changed or belong to another event."""
        try:
            opened = AESGCM(self.key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], event_id.encode())
        except (InvalidTag, ValueError):
            raise AuditTamperedError("a sealed payload was changed, or belongs to another record") from None
        return opened[:SALT_BYTES], opened[SALT_BYTES:]


class Vault:
    """The keys of one log.

    Parameters
    ----------
    path
        Its file, in a folder that only its owner may read.
    """

    def __init__(self, database: SqliteDatabase) -> None:
        self._database = database
        secrets = dict(database.query("SELECT name, value FROM secrets"))
        if not {"lookup", "log"} <= secrets.keys():
            raise AuditKeyError("The vault of the audit log lacks its own keys; restore it from a backup.")
        self._lookup_key: bytes = secrets["lookup"]
        self.log_key = SubjectKey(None, secrets["log"])
        # Found keys are kept; misses are not, since a miss is followed by a new key.
        self._by_lookup: dict[bytes, SubjectKey] = {}
        self._by_id = lru_cache(maxsize=_CACHED)(self._read_by_id)

    @classmethod
    def create(cls, path: Path) -> Self:
        """Make the file and the log's own keys; AuditSetupError where one is there."""
        database = SqliteDatabase.create_file(path)
        with _closing_on_error(database):
            with database.transaction():
                for statement in _TABLES:
                    database.query(statement)
                database.execute_many("INSERT INTO secrets VALUES (?, ?)", [(name, os.urandom(_KEY_BYTES)) for name in ("lookup", "log")])
            return cls(database)

    @classmethod
    def open(cls, path: Path, *, writable: bool) -> Self:
        """Open it, as the log's writer or as a reader.

        Raises
        ------
        AuditKeyError
            It is not there, others may read it, or it is no vault.
        """
        try:
            mode = path.stat().st_mode
        except OSError as error:
            raise AuditKeyError(f"The vault with the keys of the audit log cannot be opened: {error.strerror}.") from None
        if mode & 0o077:
            raise AuditKeyError("The vault with the keys of the audit log can be read by others than its owner; run chmod 600 on it.")
        try:
            database = SqliteDatabase.take(path, wait_s=0) if writable else SqliteDatabase.connect(path)
        except StorageError as error:
            raise AuditKeyError(f"The vault with the keys of the audit log cannot be opened: {error.reason}.") from None
        with _closing_on_error(database):
            # What VACUUM writes aside would be keys in the clear, in a folder for temporary files.
            database.query("PRAGMA temp_store=MEMORY")
            return cls(database)

    def lookup(self, name: str) -> bytes:
        """Return what stands for a name (a result, a model, an idempotency key) in the log: part of an HMAC.

        Raises
        ------
        AuditFormatError
            The name holds half a character.
        """
        try:
            raw = name.encode()
        except UnicodeEncodeError:
            raise AuditFormatError("A name that is to be looked up holds half a character.") from None
        return hmac.digest(self._lookup_key, raw, "sha256")[:_LOOKUP_BYTES]

    def subject_lookup(self, subject: str) -> bytes:
        """Return what stands for a subject, whichever way the name is composed."""
        return self.lookup(f"subject\n{subject_name(subject)}")

    def digest(self, content: bytes) -> bytes:
        """Return a keyed digest of content that could be guessed."""
        return hmac.digest(self._lookup_key, b"content\n" + hashlib.sha256(content).digest(), "sha256")

    def request_mac(self, lookup: bytes, first: int, last: int, digest: bytes | None) -> bytes:
        """Return what binds the row of a repeated request, which no leaf commits to."""
        return hmac.digest(self._lookup_key, b"request row\n%b%d %d %b" % (lookup, first, last, digest or b""), "sha256")

    def find(self, subject: str) -> SubjectKey | None:
        """Return a subject's key, None where there is none (any more); StorageError where the file fails."""
        lookup = self.subject_lookup(subject)
        if (known := self._by_lookup.get(lookup)) is not None:
            return known
        rows = self._database.query("SELECT id, key, lookup FROM subjects WHERE lookup = ?", (lookup,))
        if not rows:
            return None
        if len(self._by_lookup) >= _CACHED:
            self._by_lookup.clear()
        self._by_lookup[lookup] = SubjectKey(*rows[0])
        return self._by_lookup[lookup]

    def keys_for(self, subjects: Iterable[str]) -> Mapping[str, SubjectKey]:
        """Return the subjects' keys; those that are new are durable when this returns.

        Raises
        ------
        StorageError
            The new ones cannot be written.
        """
        keys: dict[str, SubjectKey] = {}
        new = []
        for subject in dict.fromkeys(subjects):
            key = self.find(subject)
            if key is None:
                key = SubjectKey(os.urandom(_ID_BYTES), os.urandom(_KEY_BYTES), self.subject_lookup(subject))
                new.append((key.id, key.lookup, key.key))
            keys[subject] = key
        if new:
            with self._database.transaction():
                self._database.execute_many("INSERT INTO subjects VALUES (?, ?, ?)", new)
            self._database.tidy()
        return keys

    def by_id(self, subject_id: bytes | None) -> SubjectKey | None:
        """Return the key that a sealed payload names, None where it was destroyed."""
        return self.log_key if subject_id is None else self._by_id(subject_id)

    def _read_by_id(self, subject_id: bytes) -> SubjectKey | None:
        rows = self._database.query("SELECT id, key, lookup FROM subjects WHERE id = ?", (subject_id,))
        return SubjectKey(*rows[0]) if rows else None

    def destroy(self, subject: str) -> None:
        """Destroy a subject's key, in the file, its free pages and its write-ahead log; nothing happens where there is none."""
        lookup = self.subject_lookup(subject)
        self.forget()
        with self._database.transaction():
            self._database.query("DELETE FROM subjects WHERE lookup = ?", (lookup,))
        self._database.scrub()

    def forget(self) -> None:
        """Forget the keys that were found: another process may have destroyed them since."""
        self._by_lookup.clear()
        self._by_id.cache_clear()

    @property
    def scrub_pending(self) -> bool:
        """Whether the log has deleted what it was to erase, and has not yet overwritten it."""
        return bool(self._database.query("SELECT 1 FROM secrets WHERE name = ?", (_SCRUB,)))

    def set_scrub_pending(self, pending: bool) -> None:
        """Remember that, or that it is done."""
        with self._database.transaction():
            if pending:
                self._database.query("INSERT INTO secrets VALUES (?, ?) ON CONFLICT (name) DO NOTHING", (_SCRUB, b""))
            else:
                self._database.query("DELETE FROM secrets WHERE name = ?", (_SCRUB,))

    def close(self) -> None:
        """Close the file, and forget the keys."""
        self.forget()
        self._database.close()


def subject_name(subject: str) -> str:
    """Return a subject's name as it is looked up: composed (NFC), without spaces at its ends, so that it is found however it was typed.

    Raises
    ------
    AuditFormatError
        There is nothing in it, or half a character.
    """
    name = unicodedata.normalize("NFC", subject).strip()
    if not name:
        raise AuditFormatError("A subject's name is empty; leave it out where there is none.")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise AuditFormatError("A subject's name holds half a character.") from None
    return name


@contextlib.contextmanager
def _closing_on_error(database: SqliteDatabase) -> Iterator[None]:
    """Give file and lock back where it is no vault after all; what the database refuses is then a matter of keys."""
    try:
        yield
    except StorageError as error:
        database.close()
        raise AuditKeyError(f"The vault with the keys of the audit log cannot be read: {error.reason}.") from None
    except BaseException:
        database.close()
        raise
