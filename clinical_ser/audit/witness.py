"""The witness: it remembers the newest checkpoint of each log it knows, and cosigns the next one only when that grew from it.

The one idea: looking, signing and remembering are one SQLite transaction, on disk before anyone sees the cosignature. So whatever is killed or
raced, no two cosignatures of a witness ever speak for trees of one log that do not fit each other (c2sp.org/tlog-witness).
"""

import base64
import contextlib
import os
import sqlite3
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError

from clinical_ser.audit.checkpoint import Checkpoint, parse_decimal
from clinical_ser.audit.cosignatures import Ed25519Cosigner, ml_dsa_module
from clinical_ser.audit.keys import LogKeys
from clinical_ser.audit.merkle import EMPTY_ROOT, HASH_BYTES, verify_consistency
from clinical_ser.audit.notes import Algorithm, Note, NoteSignature, NoteSigner, VerifierKey, decode_base64, decode_text, parse_note
from clinical_ser.errors import AuditFormatError, AuditSetupError, AuditTamperedError, AuditUnavailableError, WitnessError
from clinical_ser.strict import Strict

MAX_PROOF_LINES = 63
"""Hashes in a consistency proof (tlog-witness: "MUST NOT send more than 63"); enough for any tree of 64-bit size."""
MAX_SIGNATURES = 16
"""Signatures on a checkpoint: what signed-note obliges a verifier to accept, and no more."""
MAX_REQUEST_BYTES = 128 * 1024
"""Sixteen post-quantum signatures of 5 kB (signed-note) in base64, the proof and the text come to 115 kB."""
MAX_EVIDENCE = 100
"""Notes kept as evidence of each kind and log. The oldest stay: a flood of later ones must not push out the first."""
COSIGNATURE_TYPES = frozenset({Algorithm.ED25519_COSIGNATURE, Algorithm.ML_DSA_44_COSIGNATURE})
"""The signature types that say "consistent with all I saw before, at this time"."""

_MAX_LOGS_FILE_BYTES = 1024 * 1024
_MAX_ORIGIN_BYTES = 255  # what an ML-DSA-44 cosignature can name (tlog-cosignature)
_BUSY_TIMEOUT_S = 5.0
_OLD = "old "

# PRAGMA application_id marks the file as ours ("CSwi"), user_version its schema: another database opened by mistake would mean an empty memory.
_APPLICATION_ID = 0x43537769
_SCHEMA_VERSION = 1
# The trigger repeats in the database what `_refusal` decides: should that ever err, the transaction aborts and nothing is cosigned.
_SCHEMA = f"""
CREATE TABLE cosigned (
    origin TEXT PRIMARY KEY NOT NULL,
    size   INTEGER NOT NULL CHECK (size >= 0),
    root   BLOB NOT NULL CHECK (length(root) = {HASH_BYTES}),
    note   TEXT NOT NULL
) STRICT;
CREATE TRIGGER cosigned_never_shrinks BEFORE UPDATE ON cosigned
WHEN NEW.origin <> OLD.origin OR NEW.size < OLD.size OR (NEW.size = OLD.size AND NEW.root <> OLD.root)
BEGIN SELECT RAISE(ABORT, 'a cosigned tree only grows'); END;
CREATE TRIGGER cosigned_is_never_forgotten BEFORE DELETE ON cosigned
BEGIN SELECT RAISE(ABORT, 'a cosigned tree is not forgotten'); END;
CREATE TABLE evidence (
    origin     TEXT NOT NULL,
    kind       TEXT NOT NULL CHECK (kind IN ('fork', 'unproven')),
    size       INTEGER NOT NULL,
    root       BLOB NOT NULL,
    note       TEXT NOT NULL,
    known_note TEXT,
    seen_at    INTEGER NOT NULL,
    PRIMARY KEY (origin, kind, size, root)
) STRICT;
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_SCHEMA_VERSION};
"""


class WitnessRefusalError(WitnessError):
    """A witness does not cosign.

    Parameters
    ----------
    status
        The HTTP status that tlog-witness gives this refusal.
    message
        What was wrong and what would be right; never anything that the client sent.
    size
        For a wrong old size, that of the latest cosigned checkpoint: where the client's next proof has to start.
    """

    def __init__(self, status: HTTPStatus, message: str, *, size: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.size = size


@dataclass(frozen=True)
class WitnessRequest:
    r"""The body of an add-checkpoint request.

    Parameters
    ----------
    old_size
        Size of the tree that the proof starts from: the one the witness cosigned last.
    proof
        The RFC 6962 consistency proof, hashes of 32 bytes; empty from size 0.
    note
        The signed checkpoint.

    Examples
    --------
    >>> WitnessRequest(0, (), "example.com/log\n...").encode()
    b'old 0\n\nexample.com/log\n...'
    """

    old_size: int
    proof: tuple[bytes, ...]
    note: str

    def encode(self) -> bytes:
        """Return the body's bytes (tlog-witness, add-checkpoint)."""
        lines = [f"old {self.old_size}", *(base64.b64encode(digest).decode("ascii") for digest in self.proof), "", self.note]
        return "\n".join(lines).encode()

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Read a body, of which only one spelling is right.

        Raises
        ------
        AuditFormatError
            It is not spelled as tlog-witness says, or exceeds a limit.
        """
        text = decode_text(body, "A request", MAX_REQUEST_BYTES)
        header, empty_line, note = text.partition("\n\n")
        first, *proof = header.split("\n")
        if not empty_line or not first.startswith(_OLD):
            raise AuditFormatError("A request is a line 'old' with a size, the lines of a consistency proof, an empty line, and a checkpoint.")
        if len(proof) > MAX_PROOF_LINES:
            raise AuditFormatError(f"A consistency proof has at most {MAX_PROOF_LINES} lines, not {len(proof)}.")
        return cls(parse_decimal(first.removeprefix(_OLD), "A request's old size"), tuple(_hash(line) for line in proof), note)


class EvidenceKind(StrEnum):
    """What a checkpoint that was signed by its log, and not cosigned, shows."""

    FORK = "fork"
    """The log signed two trees of the same size: proof that it misbehaved, for anyone who has its key."""
    UNPROVEN = "unproven"
    """The proof did not fit: the log, or merely whoever sent the request, was wrong. Worth asking the log for a proof that fits."""


@dataclass(frozen=True)
class Evidence:
    """A checkpoint that its log signed and the witness refused.

    Parameters
    ----------
    kind
        What it shows.
    origin, size, root
        The refused checkpoint.
    note
        The refused checkpoint with the log's signatures.
    known_note
        What the witness had cosigned last by then, with the log's signatures; None when that was nothing.
    seen_at
        Seconds since 1970, by the witness' clock.
    """

    kind: EvidenceKind
    origin: str
    size: int
    root: bytes
    note: str
    known_note: str | None
    seen_at: int


@dataclass(frozen=True)
class CosignedTree:
    """The newest tree of a log that the witness cosigned; the empty one, without a note, when it never did."""

    size: int = 0
    root: bytes = EMPTY_ROOT
    note: str | None = None


class Witness:
    """Cosigns checkpoints of the logs it knows, each only when it is consistent with all that it cosigned before.

    Several threads and processes may use one file at a time. The memory is the witness: a file that was lost, or put back from a backup, may
    let a log show two histories, so `open` never makes one; after a loss give the witness a new name and key.

    Parameters
    ----------
    database
        A connection to the witness' file, as `create` and `open` make it.
    logs
        For each origin the keys of its log; or the file that says so (`load_logs`), which is read again when it has changed.
    cosigners
        The witness' own keys, each of a cosignature type.
    clock
        Seconds since 1970, for the evidence.
    """

    def __init__(
        self,
        database: sqlite3.Connection,
        logs: "KnownLogs",
        cosigners: Sequence[NoteSigner],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._logs = _WatchedLogs(logs) if isinstance(logs, Path) else _FixedLogs(logs)
        self._cosigners = tuple(cosigners)
        self._clock = clock

    @classmethod
    def create(cls, path: Path, logs: "KnownLogs", cosigners: Sequence[NoteSigner]) -> Self:
        """Make the file of a new witness that has seen nothing; AuditSetupError when one is there or cannot be made, else as `open`."""
        _check_logs(load_logs(logs) if isinstance(logs, Path) else logs)
        _check_cosigners(cosigners)
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            raise AuditSetupError("A witness' memory, or another file, is there already; it is never made anew.") from None
        except OSError as error:
            raise AuditSetupError(f"The witness' memory cannot be made: {error.strerror}.") from None
        with contextlib.closing(_connect(path)) as database, _as_setup_error():
            database.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
        return cls.open(path, logs, cosigners)

    @classmethod
    def open(cls, path: Path, logs: "KnownLogs", cosigners: Sequence[NoteSigner], *, clock: Callable[[], float] = time.time) -> Self:
        """Go on with a witness' memory.

        Raises
        ------
        AuditSetupError
            The file is not there or no witness' memory, a log has no key or one of another name, or the witness has no key to cosign with.
        AuditKeyError
            A key is of an algorithm that the installed cryptography library does not have.
        """
        _check_logs(load_logs(logs) if isinstance(logs, Path) else logs)
        _check_cosigners(cosigners)
        database = _connect(path)
        try:
            _check_marks(database)
        except AuditSetupError:
            database.close()
            raise
        return cls(database, logs, cosigners, clock=clock)

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add_checkpoint(self, body: bytes) -> str:
        """Cosign a checkpoint, and remember it on disk before returning.

        Parameters
        ----------
        body
            An add-checkpoint request: old size, consistency proof and signed checkpoint (`WitnessRequest`).

        Returns
        -------
        str
            One signature line for each cosigner.

        Raises
        ------
        WitnessRefusalError
            With the status of tlog-witness: 400 (not spelled as specified, or old size above the checkpoint's), 404 (unknown log), 403 (no
            signature of the log fits), 409 (with the size to start from; or another root for the same size), 422 (the proof does not fit).
        AuditUnavailableError
            The memory cannot be written, or the file of the logs was changed and cannot be used any more, so nothing was cosigned.
        """
        request, checkpoint, note = self._verified(body)
        signed = _signed_by_log(note)
        with self._transaction() as database:
            known = _latest(database, checkpoint.origin)
            if (kind := _evidence_kind(request, checkpoint, known)) is not None:
                self._keep_evidence(database, kind, checkpoint, signed, known)
            refusal = _refusal(request, checkpoint, known)
            if refusal is None:
                # Signed in here: signed after COMMIT, a racing request for a larger tree could carry the earlier time, and then "the largest
                # tree as of now" (tlog-cosignature) would be said of a tree that no longer is.
                cosignatures = "".join(_cosignature_line(cosigner, checkpoint.text) for cosigner in self._cosigners)
                database.execute(
                    "INSERT INTO cosigned VALUES (?, ?, ?, ?) "
                    "ON CONFLICT (origin) DO UPDATE SET size = excluded.size, root = excluded.root, note = excluded.note",
                    (checkpoint.origin, checkpoint.size, checkpoint.root, signed),
                )
        if refusal is not None:
            raise refusal
        return cosignatures

    def latest(self, origin: str) -> CosignedTree:
        """Return the newest tree of a log that was cosigned."""
        with self._reading() as database:
            return _latest(database, origin)

    def evidence(self) -> tuple[Evidence, ...]:
        """Return the checkpoints that their logs signed and that were refused, the first seen first."""
        with self._reading() as database:
            rows = database.execute("SELECT kind, origin, size, root, note, known_note, seen_at FROM evidence ORDER BY seen_at, rowid").fetchall()
        return tuple(Evidence(EvidenceKind(kind), *rest) for kind, *rest in rows)

    def _verified(self, body: bytes) -> tuple[WitnessRequest, Checkpoint, Note]:
        try:
            request = WitnessRequest.parse(body)
            text, signatures = parse_note(request.note)
            origin = Checkpoint.parse(text).origin
        except AuditFormatError as error:
            raise WitnessRefusalError(HTTPStatus.BAD_REQUEST, str(error)) from None
        if len(signatures) > MAX_SIGNATURES:
            raise WitnessRefusalError(HTTPStatus.BAD_REQUEST, f"A checkpoint has at most {MAX_SIGNATURES} signatures here.")
        keys = self._logs.current().get(origin)
        if keys is None:
            raise WitnessRefusalError(HTTPStatus.NOT_FOUND, "The checkpoint's origin is no log that this witness knows.")
        try:
            checkpoint, note = Checkpoint.open(request.note, keys, origin)
        except AuditTamperedError:
            raise WitnessRefusalError(HTTPStatus.FORBIDDEN, "The checkpoint bears no signature that fits a key of its log.") from None
        if request.old_size > checkpoint.size:
            raise WitnessRefusalError(HTTPStatus.BAD_REQUEST, "The old size is above the checkpoint's; a tree only grows.")
        return request, checkpoint, note

    def _keep_evidence(self, database: sqlite3.Connection, kind: EvidenceKind, checkpoint: Checkpoint, signed: str, known: CosignedTree) -> None:
        (kept,) = database.execute("SELECT count(*) FROM evidence WHERE origin = ? AND kind = ?", (checkpoint.origin, kind.value)).fetchone()
        if kept < MAX_EVIDENCE:
            row = (checkpoint.origin, kind.value, checkpoint.size, checkpoint.root, signed, known.note, int(self._clock()))
            database.execute("INSERT OR IGNORE INTO evidence VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Hold the file's only write lock from the first look to the commit; nothing is kept when the block raises."""
        with self._reading() as database:
            # IMMEDIATE: two requests that both read first and then want to write would otherwise decide on the same old state.
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._database
            except sqlite3.Error as error:
                raise AuditUnavailableError(f"The witness' memory cannot be used: {error}. Nothing was cosigned.") from None


def cosign_file(witness: Witness, path: Path) -> str:
    """Cosign the checkpoint of a request that came as a file, for a witness that is not on the network.

    Returns
    -------
    str
        The cosignature lines, to carry back.

    Raises
    ------
    AuditFormatError
        The file cannot be read.
    WitnessError
        As for `Witness.add_checkpoint`.
    """
    try:
        with path.open("rb") as file:
            body = file.read(MAX_REQUEST_BYTES + 1)
    except OSError as error:
        raise AuditFormatError(f"The request's file cannot be read: {error.strerror}.") from None
    return witness.add_checkpoint(body)


MEMORY_FILE = "witness.sqlite"
LOGS_FILE = "logs.toml"


def open_witness(folder: Path) -> Witness:
    """Open the witness of a folder that `audit witness init` made: its memory, its keys, and the logs that it knows, now and later.

    Raises
    ------
    AuditSetupError, AuditKeyError
        As for `Witness.open`, or the keys cannot be used.
    """
    return Witness.open(folder / MEMORY_FILE, folder / LOGS_FILE, cosigners_of(LogKeys.load(folder)))


def cosigners_of(keys: LogKeys) -> list[NoteSigner]:
    """Return a witness' keys as those that cosign."""
    return [Ed25519Cosigner(signer) if signer.key.algorithm is Algorithm.ED25519 else signer for signer in keys.signers]


class _LogEntry(Strict):
    origin: Annotated[str, Field(min_length=1)]
    keys: Annotated[tuple[str, ...], Field(min_length=1)]


class _LogsFile(Strict):
    log: Annotated[tuple[_LogEntry, ...], Field(min_length=1)]


def load_logs(path: Path) -> dict[str, tuple[VerifierKey, ...]]:
    """Read the logs that a witness accepts from a TOML file: a table `[[log]]` each, with `origin` and `keys` (verifier keys of signed-note).

    Raises
    ------
    AuditSetupError
        The file cannot be read, has another field, names a log twice, or holds what is no verifier key.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_LOGS_FILE_BYTES + 1)
        if len(raw) > _MAX_LOGS_FILE_BYTES:
            raise AuditSetupError("The file of the witness' logs is too long to be one.")
        entries = _LogsFile.model_validate(tomllib.loads(raw.decode("utf-8"))).log
        logs = {entry.origin: tuple(VerifierKey.parse(key) for key in entry.keys) for entry in entries}
    except OSError as error:
        raise AuditSetupError(f"The file of the witness' logs cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        places = ", ".join(sorted({".".join(map(str, problem["loc"])) for problem in error.errors()}))
        raise AuditSetupError(f"The file of the witness' logs needs tables [[log]] with origin and keys, and nothing else; see {places}.") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError):
        raise AuditSetupError("The file of the witness' logs is not TOML.") from None
    except AuditFormatError as error:
        raise AuditSetupError(f"The file of the witness' logs holds a key that is none: {error}") from None
    if len(logs) != len(entries):
        raise AuditSetupError("The file of the witness' logs names an origin twice; put all of its keys into one table.")
    return logs


KnownLogs = Mapping[str, Sequence[VerifierKey]] | Path
"""For each origin the keys of its log, or the file that says so."""


class _FixedLogs:
    """Logs that stay as they were given."""

    def __init__(self, logs: Mapping[str, Sequence[VerifierKey]]) -> None:
        self._logs = {origin: tuple(keys) for origin, keys in logs.items()}

    def current(self) -> Mapping[str, tuple[VerifierKey, ...]]:
        return self._logs


class _WatchedLogs:
    """The logs that a file names, read again when it is another one. A key that was taken out is believed no longer, whatever else is wrong there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read: tuple[tuple[int, ...], Mapping[str, tuple[VerifierKey, ...]]] | None = None

    def current(self) -> Mapping[str, tuple[VerifierKey, ...]]:
        try:
            status = self._path.stat()
            # Looked at before it is read: what changes meanwhile is another file at the next question.
            identity = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            if self._read is None or self._read[0] != identity:
                logs = load_logs(self._path)
                _check_logs(logs)
                self._read = identity, logs
            return self._read[1]
        except (OSError, AuditSetupError) as error:
            reason = f"cannot be read: {error.strerror}." if isinstance(error, OSError) else f"cannot be used: {error}"
            raise AuditUnavailableError(f"The file of the witness' logs was changed, and {reason} Nothing was cosigned.") from None


def _refusal(request: WitnessRequest, checkpoint: Checkpoint, known: CosignedTree) -> WitnessRefusalError | None:
    """Decide by the rules of tlog-witness, in its order; None means cosign."""
    if request.old_size != known.size:
        return WitnessRefusalError(HTTPStatus.CONFLICT, "The old size is not that of the latest cosigned checkpoint.", size=known.size)
    if checkpoint.size == known.size and checkpoint.root != known.root:
        # Without the size: that would invite to try again, and no proof can help here.
        return WitnessRefusalError(HTTPStatus.CONFLICT, "The latest cosigned checkpoint has this size and another root: the log has forked.")
    if not verify_consistency(known.size, checkpoint.size, known.root, checkpoint.root, request.proof):
        return WitnessRefusalError(
            HTTPStatus.UNPROCESSABLE_ENTITY, "The consistency proof does not lead from the latest cosigned checkpoint to this one."
        )
    return None


def _evidence_kind(request: WitnessRequest, checkpoint: Checkpoint, known: CosignedTree) -> EvidenceKind | None:
    """Say what a validly signed checkpoint shows against its log; a mere wrong old size shows nothing, unless the roots part."""
    if checkpoint.size == known.size:
        return EvidenceKind.FORK if checkpoint.root != known.root else None
    refusal = _refusal(request, checkpoint, known)
    return EvidenceKind.UNPROVEN if refusal is not None and refusal.status is HTTPStatus.UNPROCESSABLE_ENTITY else None


def _latest(database: sqlite3.Connection, origin: str) -> CosignedTree:
    row = database.execute("SELECT size, root, note FROM cosigned WHERE origin = ?", (origin,)).fetchone()
    return CosignedTree() if row is None else CosignedTree(*row)


def _signed_by_log(note: Note) -> str:
    """Return the note with the log's signatures alone: whoever sent it may have added any others."""
    return note.text + "\n" + "".join(signature.line for _, signature in note.verified)


def _cosignature_line(cosigner: NoteSigner, text: str) -> str:
    return NoteSignature(cosigner.key.name, cosigner.key.key_id, cosigner.sign(text.encode())).line


def _hash(line: str) -> bytes:
    digest = decode_base64(line, "A line of a consistency proof")
    if len(digest) != HASH_BYTES:
        raise AuditFormatError(f"A line of a consistency proof is one hash of {HASH_BYTES} bytes, not {len(digest)}.")
    return digest


def _check_logs(logs: Mapping[str, Sequence[VerifierKey]]) -> None:
    for origin, keys in logs.items():
        if not 1 <= len(origin.encode()) <= _MAX_ORIGIN_BYTES:
            raise AuditSetupError(f"A log's origin has between 1 and {_MAX_ORIGIN_BYTES} bytes.")
        # `Checkpoint.open` takes a signature as the log's own by the name; with another name this witness would refuse the log for ever.
        if not keys or any(key.name != origin for key in keys):
            raise AuditSetupError("Each log needs at least one key, and the name in each of its keys is its origin.")
        if len({key.key_id for key in keys}) != len(keys):
            raise AuditSetupError("A log's key is there twice, or two of its keys have the same id.")
        _check_algorithms(keys)


def _check_cosigners(cosigners: Sequence[NoteSigner]) -> None:
    if not cosigners or any(cosigner.key.algorithm not in COSIGNATURE_TYPES for cosigner in cosigners):
        raise AuditSetupError("A witness needs at least one key, and its keys are for cosignatures (type 4 or 6): only these say when.")
    _check_algorithms([cosigner.key for cosigner in cosigners])


def _check_algorithms(keys: Sequence[VerifierKey]) -> None:
    """Fail at the start, rather than at the first request that needs it."""
    if any(key.algorithm is Algorithm.ML_DSA_44_COSIGNATURE for key in keys):
        ml_dsa_module()


def _connect(path: Path) -> sqlite3.Connection:
    with _as_setup_error():
        # mode=rw never makes a file; autocommit, so that transactions are the ones written here; one thread at a time by the witness' lock.
        uri = f"{path.absolute().as_uri()}?mode=rw"
        database = sqlite3.connect(uri, uri=True, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            # A rollback journal, and its deletion synced too (EXTRA is FULL and that): every failed sync then fails a COMMIT that waits for it,
            # which a write-ahead log's checkpoint does not (see sqlite.py). A witness writes too seldom for the speed to matter.
            database.execute("PRAGMA journal_mode = DELETE")
            database.execute("PRAGMA synchronous = EXTRA")
        except sqlite3.Error:
            database.close()
            raise
        return database


def _check_marks(database: sqlite3.Connection) -> None:
    with _as_setup_error():
        marks = [database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
    if marks != [_APPLICATION_ID, _SCHEMA_VERSION]:
        raise AuditSetupError("The file is not a witness' memory of this version; give the right one, or make a new witness.")


@contextlib.contextmanager
def _as_setup_error() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise AuditSetupError(f"The witness' memory cannot be opened: {error}.") from None
