"""The envelope of every export: a folder of files, the checkpoint it stands on, and a signed manifest that names each file's digest.

The one idea: whoever gets the folder needs the log's public key and nothing else to see that it is whole, unchanged, and what the log gave out.

A folder is there completely or not at all, and holds only files: no folder in it, no link. `manifest.json` lists all of them but `manifest.note`,
which signs it. That note's text is four lines:

    clinical-ser.audit-export/v1
    <origin>
    <form>
    <base64 of the SHA-256 of manifest.json>

The same key signs checkpoints, so neither may pass for the other. A checkpoint's first line is its origin, and counts only when a key of that very
name signed (c2sp.org/tlog-checkpoint); here the first line is a constant, which is no key's name, for a log of that name is refused on both sides.
And a checkpoint's third line is base64 of 32 bytes, 44 characters; a form's name has at most 32.
"""

import base64
import contextlib
import hashlib
import io
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from types import TracebackType
from typing import Annotated, BinaryIO, Literal, NoReturn, Self, cast

from pydantic import Field, ValidationError

from clinical_ser.atomic_folder import sync_folder
from clinical_ser.audit.checkpoint import Checkpoint
from clinical_ser.audit.events import Hex32, ShortText
from clinical_ser.audit.notes import MAX_NOTE_BYTES, Algorithm, NoteSigner, VerifierKey, open_note, parse_note, sign_note
from clinical_ser.audit.records import LogReader
from clinical_ser.errors import AuditFormatError, AuditKeyError, AuditSetupError, AuditTamperedError, AuditUnavailableError
from clinical_ser.models.strict_json import StrictJsonError, canonical_json, parse_canonical_object
from clinical_ser.strict import Strict

SCHEMA: Literal["clinical-ser/audit-export/1"] = "clinical-ser/audit-export/1"
NOTE_HEADER = "clinical-ser.audit-export/v1"

CHECKPOINT = "checkpoint"
MANIFEST = "manifest.json"
NOTE = "manifest.note"

MAX_MANIFEST_BYTES = 4 << 20
"""Some ten thousand files; more than anyone would be given."""

# Unlike a model, an export may hold what is about a person: for whoever made it alone, until they give it out.
_FILE_MODE = 0o600
_FOLDER_MODE = 0o700
_CHUNK_BYTES = 1 << 20

_FORM = r"^[a-z][a-z0-9-]{0,31}$"
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"

FileName = Annotated[str, Field(pattern=_NAME)]


class FileEntry(Strict):
    """What the manifest says of a file."""

    sha256: Hex32
    bytes: int = Field(ge=0)
    media_type: str = Field(pattern=r"^[a-z]+/[a-z0-9.+-]+(; [a-z]+=[A-Za-z0-9.-]+)*$")
    schema_id: str | None = Field(alias="schema", pattern=r"^[A-Za-z0-9./:#|_-]{1,200}$")
    """What the file's records fit: one of the schemas that ship with the package, or a standard's own name."""


class Format(Strict):
    """What kind of export it is."""

    name: str = Field(pattern=_FORM)
    version: int = Field(ge=1)


class Manifest(Strict):
    """What an export is, of which log, and what is in it."""

    schema_id: Literal["clinical-ser/audit-export/1"] = Field(alias="schema")
    form: Format = Field(alias="format")
    origin: ShortText
    created: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
    software: ShortText
    first: int | None = Field(ge=0)
    last: int | None = Field(ge=0)
    """The range of records that was asked for, both ends in it; None where the log has none."""
    size: int = Field(ge=0)
    """Of the checkpoint's tree."""
    not_claimed: tuple[ShortText, ...]
    """What a reader might take the export to say, and it does not."""
    files: dict[FileName, FileEntry]

    def canonical(self) -> bytes:
        """Return the manifest's bytes."""
        return canonical_json(self.model_dump(mode="json", by_alias=True))

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Read a manifest; AuditFormatError unless it fits, in its one spelling."""
        try:
            parse_canonical_object(raw)
            manifest = cls.model_validate_json(raw, strict=True)
        except StrictJsonError as error:
            raise AuditFormatError(f"{MANIFEST} cannot be read: {error}.") from None
        except ValidationError as error:
            where = str(error.errors()[0]["loc"][0]) if error.errors()[0]["loc"] else "as a whole"
            raise AuditFormatError(f"{MANIFEST} does not fit schema {SCHEMA!r}: {where}.") from None
        _check_range(manifest.first, manifest.last, manifest.size)
        return manifest


class PacketFile(io.BufferedIOBase):
    """A file of an export while it is written: what goes through is counted and hashed, and it is on the disk when it is closed."""

    def __init__(self, path: Path, done: Callable[[str, int], None]) -> None:
        self._file = path.open("xb", buffering=_CHUNK_BYTES)
        self._done = done
        self._hash = hashlib.sha256()
        self._bytes = 0

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: object, /) -> int:
        """Write all of the bytes."""
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        with _refused_by_system():
            self._file.write(view)
        self._hash.update(view)
        self._bytes += view.nbytes
        return view.nbytes

    def flush(self) -> None:
        """Do nothing: it is closing that brings a file to the disk."""

    def abandon(self) -> None:
        """Close it as it is, for an export that will not be."""
        super().close()
        with contextlib.suppress(OSError):
            self._file.close()

    def close(self) -> None:
        """Bring the file to the disk and its digest into the manifest."""
        if self.closed:
            return
        super().close()
        with _refused_by_system(), self._file as file:
            os.fchmod(file.fileno(), _FILE_MODE)
            file.flush()
            os.fsync(file.fileno())
        self._done(self._hash.hexdigest(), self._bytes)


class PacketWriter:
    """Writes an export: a context whose good end publishes the folder, and whose bad end leaves nothing.

    Parameters
    ----------
    target
        The folder to be; nothing may be there.
    form
        The format's name: small letters, digits, dashes, at most 32.
    reader
        The log, as of the checkpoint that goes along.
    signers
        The log's keys. Those that can only cosign checkpoints are passed over.
    first, last
        The range of records that was asked for, both ends in it; None for none.
    not_claimed
        What a reader might take the export to say, and it does not.
    version
        The format's version.
    created
        When; now, unless the same bytes are to come out twice.

    Attributes
    ----------
    digest
        SHA-256 of the manifest in hex, once it is published.

    Raises
    ------
    AuditSetupError
        Something is where the folder should go, or it would have more files than a manifest may list (MAX_MANIFEST_BYTES).
    AuditKeyError
        No signer can sign a note as the log, or one has another log's name.
    AuditTamperedError
        The reader's checkpoint is of another log or size than the reader says.
    AuditUnavailableError
        The system refuses to write; the message has its reason and no path.
    """

    digest: str

    def __init__(
        self,
        target: Path,
        *,
        form: str,
        reader: LogReader,
        signers: Sequence[NoteSigner],
        first: int | None,
        last: int | None,
        not_claimed: Sequence[str],
        version: int = 1,
        created: datetime | None = None,
    ) -> None:
        if not re.fullmatch(_FORM, form):
            raise ValueError("a form's name is a small letter and up to 31 more, digits or dashes")
        _check_range(first, last, reader.size)
        self._target = target.absolute()
        self._origin, self._checkpoint = reader.origin, reader.checkpoint
        _check_stands_for(self._checkpoint, reader.origin, reader.size)
        self._signers = _of_log(signers, reader.origin)
        self._entries: dict[str, FileEntry] = {}
        self._open: dict[str, PacketFile] = {}
        self._head = {
            "schema": SCHEMA,
            "format": Format(name=form, version=version),
            "origin": reader.origin,
            "created": (created or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "software": f"clinical-ser {installed_version('clinical-ser')}",
            "first": first,
            "last": last,
            "size": reader.size,
            "not_claimed": tuple(not_claimed),
        }

    @classmethod
    def of_whole(
        cls, target: Path, *, form: str, reader: LogReader, signers: Sequence[NoteSigner], not_claimed: Sequence[str], created: datetime | None
    ) -> Self:
        """Return a writer of what was looked for in the whole log."""
        first, last = (0, reader.size - 1) if reader.size else (None, None)
        return cls(target, form=form, reader=reader, signers=signers, first=first, last=last, not_claimed=not_claimed, created=created)

    def __enter__(self) -> Self:
        with _refused_by_system():
            self._check_place()
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self._workplace = tempfile.TemporaryDirectory(prefix=f".{self._target.name}.", suffix=".tmp", dir=self._target.parent)
        self._draft = Path(self._workplace.name) / "draft"
        self._draft.mkdir(mode=_FOLDER_MODE)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._publish()
        finally:
            for file in self._open.values():
                file.abandon()
            self._workplace.cleanup()

    def open(self, name: str, media_type: str, schema: str | None = None) -> BinaryIO:
        """Return a file of the export to write into, as a context or to be closed; what it takes is never in memory as a whole."""
        if not re.fullmatch(_NAME, name) or name in {MANIFEST, NOTE}:
            raise ValueError(f"{name!r} cannot be a file's name in an export")
        if name in self._entries or name in self._open:
            raise ValueError(f"{name!r} is in the export already")

        def done(sha256: str, size: int) -> None:
            del self._open[name]
            self._entries[name] = FileEntry(sha256=sha256, bytes=size, media_type=media_type, schema=schema)

        with _refused_by_system():
            self._open[name] = PacketFile(self._draft / name, done)
        return cast(BinaryIO, self._open[name])

    def add(self, name: str, content: bytes, media_type: str, schema: str | None = None) -> None:
        """Write a file of the export at once."""
        with self.open(name, media_type, schema) as file:
            file.write(content)

    def _publish(self) -> None:
        if self._open:
            raise ValueError(f"{', '.join(sorted(self._open))}: still open at the end of the export")
        self.add(CHECKPOINT, self._checkpoint.encode(), "text/plain; charset=utf-8", "c2sp.org/tlog-checkpoint")
        manifest = Manifest.model_validate({**self._head, "files": dict(sorted(self._entries.items()))})
        content = manifest.canonical()
        # What the verifier would not read is no export.
        if len(content) > MAX_MANIFEST_BYTES:
            raise AuditSetupError(f"The export would have {len(self._entries):,} files, more than a manifest lists; ask for fewer records.")
        note = sign_note(_note_text(manifest, content), self._signers)
        for name, raw in ((MANIFEST, content), (NOTE, note.encode())):
            with PacketFile(self._draft / name, lambda _sha256, _size: None) as file:
                file.write(raw)
        with _refused_by_system():
            sync_folder(self._draft)
            self._check_place()
            # One step (rename(2), POSIX.1-2017); it fails by itself if a file or a full folder came between.
            self._draft.rename(self._target)
            sync_folder(self._target.parent)
        self.digest = hashlib.sha256(content).hexdigest()

    def _check_place(self) -> None:
        if os.path.lexists(self._target):
            raise AuditSetupError("Something is where the export should go; choose another place.")


@dataclass(frozen=True)
class Packet:
    """An export whose envelope has been checked: signed by the log, complete, every file as the manifest says."""

    folder: Path
    manifest: Manifest
    checkpoint: Checkpoint
    digest: str
    """SHA-256 of the manifest in hex."""

    def open(self, name: str) -> BinaryIO:
        """Open a file that the manifest lists; AuditFormatError when it does not."""
        if name not in self.manifest.files:
            raise AuditFormatError(f"The export holds no {name}, which its format {self.manifest.form.name!r} has.")
        return _open_file(self.folder, name)

    def read(self, name: str) -> bytes:
        """Return a file's content."""
        with self.open(name) as file:
            return file.read()


@dataclass(frozen=True)
class Findings:
    """What a format's own verifier found in order, beyond the envelope; what it finds out of order it raises.

    Parameters
    ----------
    records
        How many records the export holds.
    checked, unchecked
        What was checked, and what only the log, or nobody, can check: each a sentence for people.
    """

    records: int
    checked: tuple[str, ...]
    unchecked: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verified:
    """An export that is in order: what it is, and what that means."""

    manifest: Manifest
    digest: str
    findings: Findings


Verifier = Callable[[Packet, LogReader | None], Findings]
"""What checks a format's files: raises AuditTamperedError or AuditFormatError, and looks things up in the log where it is given."""

VERIFIERS: dict[str, Verifier] = {}
"""A format's name -> its verifier; filled in `clinical_ser.audit.exports`."""


def open_packet(folder: Path, keys: Iterable[VerifierKey], origin: str | None = None) -> Packet:
    """Check an export's envelope: signature, manifest, checkpoint, and that every file is there, as listed, and no other.

    Parameters
    ----------
    folder
        The export.
    keys
        The log's keys.
    origin
        The log that is meant; leave it out only where every one of the keys is a log's that may answer.

    Raises
    ------
    AuditFormatError
        Something is not of this format; the message names the file.
    AuditTamperedError
        Something was changed, is missing, or is too much; the message names the file, unless its name is not ours.
    AuditUnavailableError
        The system refuses to read.
    """
    known = list(keys)
    with _refused_by_system("read"):
        present = set(os.listdir(folder))
    content = _read_file(folder, MANIFEST, MAX_MANIFEST_BYTES, present)
    manifest = Manifest.parse(content)
    _check_note(_read_file(folder, NOTE, MAX_NOTE_BYTES, present), manifest, content, known, origin)
    _check_names(manifest, present)
    for name, entry in manifest.files.items():
        _check_file(folder, name, entry)
    checkpoint, _ = Checkpoint.open(_read_file(folder, CHECKPOINT, MAX_NOTE_BYTES, present), known, manifest.origin)
    if checkpoint.size != manifest.size:
        raise AuditTamperedError(f"{CHECKPOINT} is of {checkpoint.size} records, and {MANIFEST} says {manifest.size}.")
    return Packet(folder, manifest, checkpoint, hashlib.sha256(content).hexdigest())


def verify_export(folder: Path, keys: Iterable[VerifierKey], origin: str | None = None, *, reader: LogReader | None = None) -> Verified:
    """Check an export's envelope and, by its format's own verifier, what is in it.

    Parameters
    ----------
    folder, keys, origin
        As of `open_packet`, and so is what is raised; records are named by their index in the log, the first that does not fit.
    reader
        The log, where it is at hand: it has to have grown from the one that the export is of, and tells what the export alone cannot.
    """
    packet = open_packet(folder, keys, origin)
    form = packet.manifest.form
    if form.name not in VERIFIERS or form.version != 1:
        raise AuditFormatError(f"The export is of format {form.name!r} version {form.version}; this version knows {', '.join(sorted(VERIFIERS))}.")
    return Verified(packet.manifest, packet.digest, VERIFIERS[form.name](packet, reader))


def _note_text(manifest: Manifest, content: bytes) -> str:
    digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
    return f"{NOTE_HEADER}\n{manifest.origin}\n{manifest.form.name}\n{digest}\n"


def _of_log(signers: Iterable[NoteSigner], origin: str) -> list[NoteSigner]:
    if origin == NOTE_HEADER:
        raise AuditKeyError("A log of this name could not be told from the header of its exports.")
    # The other algorithms sign checkpoints only (c2sp.org/tlog-cosignature).
    able = [signer for signer in signers if signer.key.algorithm is Algorithm.ED25519]
    if not able:
        raise AuditKeyError("To sign an export takes an Ed25519 key of the log.")
    if any(signer.key.name != origin for signer in able):
        raise AuditKeyError("A key that should sign the export has another name than the log.")
    return able


def _check_stands_for(checkpoint: str, origin: str, size: int) -> None:
    said = Checkpoint.parse(parse_note(checkpoint)[0])
    if (said.origin, said.size) != (origin, size):
        raise AuditTamperedError("The log's checkpoint is of another log, or of another size, than the log says it stands on.")


def _check_range(first: int | None, last: int | None, size: int) -> None:
    if first is None and last is None:
        return
    if first is None or last is None or not 0 <= first <= last < size:
        raise AuditFormatError(f"An export's range is from a record to a later one of the {size} that the checkpoint covers.")


def _check_note(raw: bytes, manifest: Manifest, content: bytes, keys: list[VerifierKey], origin: str | None) -> None:
    if manifest.origin == NOTE_HEADER or (origin is not None and manifest.origin != origin):
        raise AuditTamperedError("The export is of another log than the one that was asked for.")
    note = open_note(raw, keys)
    if not any(key.name == manifest.origin and key.algorithm is Algorithm.ED25519 for key, _ in note.verified):
        raise AuditTamperedError(f"No key of the log itself signed {NOTE}.")
    if note.text != _note_text(manifest, content):
        raise AuditTamperedError(f"{NOTE} is not the signature of this {MANIFEST}: one of the two was changed.")


def _check_names(manifest: Manifest, present: set[str]) -> None:
    listed = set(manifest.files)
    if wrong := listed & {MANIFEST, NOTE}:
        raise AuditFormatError(f"{MANIFEST} lists {min(wrong)}, which it cannot.")
    if missing := (listed | {CHECKPOINT}) - present:
        raise AuditTamperedError(f"{min(missing)} is missing.")
    if CHECKPOINT not in listed:
        raise AuditFormatError(f"{MANIFEST} does not list {CHECKPOINT}.")
    # Not by name: a file that somebody else put there may be called after a person.
    if extra := present - listed - {MANIFEST, NOTE}:
        raise AuditTamperedError(f"The export holds {len(extra)} more than {MANIFEST} lists.")


def _check_file(folder: Path, name: str, entry: FileEntry) -> None:
    digest, size = hashlib.sha256(), 0
    with _open_file(folder, name) as file, _refused_by_system("read"):
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    if size != entry.bytes:
        raise AuditTamperedError(f"{name} has {size} bytes, and {MANIFEST} says {entry.bytes}.")
    if digest.hexdigest() != entry.sha256:
        raise AuditTamperedError(f"{name} is not what {MANIFEST} says: its digest is another.")


def _read_file(folder: Path, name: str, limit: int, present: set[str]) -> bytes:
    if name not in present:
        raise AuditTamperedError(f"{name} is missing.")
    with _open_file(folder, name) as file, _refused_by_system("read"):
        raw = file.read(limit + 1)
    if len(raw) > limit:
        raise AuditFormatError(f"{name} of more than {limit} bytes is not read.")
    return raw


def _open_file(folder: Path, name: str) -> BinaryIO:
    """Open a regular file; a link would lead out of the export, and a pipe would hold the reader up."""
    with _refused_by_system("read"):
        try:
            descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            if (folder / name).is_symlink():
                _refuse_other_than_file(name)
            raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        _refuse_other_than_file(name)
    return os.fdopen(descriptor, "rb")


def _refuse_other_than_file(name: str) -> NoReturn:
    raise AuditTamperedError(f"{name} is a link, a folder or a device, and an export holds files.")


@contextlib.contextmanager
def _refused_by_system(verb: str = "written") -> Iterator[None]:
    try:
        yield
    except OSError as error:  # its text holds the path
        raise AuditUnavailableError(f"The export cannot be {verb}: {error.strerror or 'the system gives no reason'}.") from None
