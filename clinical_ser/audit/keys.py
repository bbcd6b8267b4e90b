"""The log's signing keys: made, rotated and retired, from a file, an environment variable or a program that talks to a device.

One folder holds `keys.json`, which lists every key there ever was, and the private keys that live in files. A retired private key is destroyed
and its public half stays, so that old checkpoints still verify. What `keys.json` does not call active signs nothing; it is replaced in one
step, after a new key is safely written and before an old one is destroyed, so a crash leaves a leftover file at worst.
"""

import base64
import binascii
import contextlib
import fcntl
import os
import re
import select
import shlex
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, Self

import rfc8785
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from pydantic import AfterValidator, Field, ValidationError

from clinical_ser.atomic_folder import sync_folder, write_new_file
from clinical_ser.audit.checkpoint import Checkpoint
from clinical_ser.audit.cosignatures import MlDsa44Cosigner, ml_dsa_module
from clinical_ser.audit.notes import Algorithm, Ed25519Signer, NoteSigner, VerifierKey
from clinical_ser.errors import AuditBusyError, AuditFormatError, AuditKeyError
from clinical_ser.strict import Strict

KEYS_SCHEMA = "clinical-ser/audit-keys/1"
KEYS_FILE = "keys.json"

# A person may have to touch the device, and nobody waits for it longer than this.
PROGRAM_TIMEOUT_S = 30.0
# The base64 of an Ed25519 signature has 88 characters.
_MAX_PROGRAM_OUTPUT = 1024

_ED25519_BYTES = 32
_ED25519_SIGNATURE_BYTES = 64
_MAX_KEY_FILE_BYTES = 16 * 1024
# A vkey of ML-DSA-44 has 1.8 kB: room for more than two thousand rotations.
_MAX_LIST_BYTES = 4 * 1024 * 1024
_OTHERS_MAY = stat.S_IRWXG | stat.S_IRWXO
_PRIVATE_NAME = re.compile(r"[0-9a-f]{8}\.pem")
_DRAFT = f"{KEYS_FILE}.new"
_UTC = "%Y-%m-%dT%H:%M:%SZ"

_FILE = "file"
_ENVIRONMENT = "env:"
_PROGRAM = "exec:"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _checked_vkey(vkey: str) -> str:
    try:
        VerifierKey.parse(vkey)
    except AuditFormatError as error:
        raise ValueError(str(error)) from None
    return vkey


def _checked_source(source: str) -> str:
    if source == _FILE or (source.startswith(_ENVIRONMENT) and _VARIABLE.fullmatch(source.removeprefix(_ENVIRONMENT))):
        return source
    with contextlib.suppress(ValueError):  # quotes that do not close
        if source.startswith(_PROGRAM) and "\0" not in source and shlex.split(source.removeprefix(_PROGRAM)):
            return source
    raise ValueError("a key's source is file, env:VARIABLE or exec:PROGRAM ARGUMENTS")


_Time = Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$")]


@dataclass(frozen=True)
class RetiredKey(VerifierKey):
    """A key that is believed about trees up to the size at which it was retired, and no further: it may have been stolen since.

    Parameters
    ----------
    last_size
        That size.
    """

    last_size: int

    def __str__(self) -> str:
        return super().__str__()

    def fits(self, text: bytes, signature: bytes) -> bool:
        """Return whether it signed this text, and may have: what is no checkpoint has no size."""
        with contextlib.suppress(AuditFormatError, UnicodeDecodeError):
            if Checkpoint.parse(text.decode()).size > self.last_size:
                return False
        return super().fits(text, signature)


class KeyRecord(Strict):
    """One key of the log, as `keys.json` tells of it.

    Parameters
    ----------
    vkey
        The public half, `name+id+base64`.
    state
        `active` keys sign; `retired` ones only verify.
    created, retired
        When, in UTC.
    source
        Where the private half is: `file`, `env:VARIABLE` or `exec:PROGRAM ARGUMENTS`.
    last_size
        Of the log when the key was retired: it signed no larger tree. None for an active key, and where nobody said.
    """

    vkey: Annotated[str, AfterValidator(_checked_vkey)]
    state: Literal["active", "retired"]
    created: _Time
    retired: _Time | None
    source: Annotated[str, AfterValidator(_checked_source)]
    last_size: int | None = Field(default=None, ge=0)

    @property
    def key(self) -> VerifierKey:
        """Return the public half; that of a retired key believes it up to the size of its time."""
        key = VerifierKey.parse(self.vkey)
        return key if self.last_size is None else RetiredKey(key.name, key.algorithm, key.public, self.last_size)

    @property
    def is_active(self) -> bool:
        """Return whether the key signs."""
        return self.state == "active"

    @property
    def private_file(self) -> str:
        """Return the name of the private key's file, where it has one."""
        return f"{self.key.key_id:08x}.pem"

    def retire(self, last_size: int | None) -> "KeyRecord":
        """Return the record of the same key, retired now."""
        return self.model_copy(update={"state": "retired", "retired": _now(), "last_size": last_size})


class _KeyList(Strict):
    schema_: Literal["clinical-ser/audit-keys/1"] = Field(alias="schema")
    origin: str
    keys: tuple[KeyRecord, ...]

    def to_bytes(self) -> bytes:
        return rfc8785.dumps(self.model_dump(mode="json", by_alias=True)) + b"\n"

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        try:
            keys = cls.model_validate_json(raw)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"])) or "the whole"
            raise AuditFormatError(f"{KEYS_FILE}: {place}: {first['msg']}.") from None
        # Written again it is the same, so there are no second spellings: no key twice in an object, no spaces, no other order.
        if keys.to_bytes() != raw:
            raise AuditFormatError(f"{KEYS_FILE} is not in the form that this program writes; it was edited by hand or by another program.")
        keys.check()
        return keys

    def check(self) -> None:
        """Raise AuditFormatError for keys that cannot be one log's."""
        public = [record.key for record in self.keys]
        if any(key.name != self.origin for key in public):
            raise AuditFormatError(f"{KEYS_FILE} holds a key with another name than the log's origin.")
        if len({key.key_id for key in public}) != len(public):
            raise AuditFormatError(f"{KEYS_FILE} holds two keys with the same id.")
        if any(record.is_active != (record.retired is None) for record in self.keys):
            raise AuditFormatError(f"{KEYS_FILE} holds an active key with a time of retirement, or a retired one without.")
        if not any(record.is_active for record in self.keys):
            raise AuditFormatError(f"{KEYS_FILE} holds no active key.")


class LogKeys:
    """The keys under which a log signs its checkpoints.

    Whoever only verifies needs no private key: `verifiers` comes from `keys.json` alone, and private keys are looked for when `signers` is asked.

    Examples
    --------
    >>> keys = LogKeys.create(Path("keys"), "example.com/log")  # doctest: +SKIP
    >>> print(*keys.verifiers)  # doctest: +SKIP
    example.com/log+3c0d4b5f+AUmh0YDEcUTyyXQe4mkXKbeJHHlGCKJbb1aEkTU5LOhs
    """

    def __init__(self, folder: Path, keys: _KeyList) -> None:
        self._folder = folder
        self._keys = keys
        self._signers: tuple[NoteSigner, ...] | None = None

    def __repr__(self) -> str:
        return f"LogKeys({self.origin}, {len(self.active)} active of {len(self._keys.keys)})"

    @classmethod
    def create(cls, folder: Path, origin: str, *, source: str = _FILE, ml_dsa: bool = False) -> Self:
        """Make the log's first key, and the folder for it.

        Parameters
        ----------
        folder
            Where; made for its owner alone. What is there already is left alone.
        origin
            The log's name, which is the keys' name too.
        source
            Where the private key is: `file` (made here), `env:VARIABLE` (PEM, or 32 bytes in base64; never written down), or
            `exec:PROGRAM ARGUMENTS` (run without a shell, with `public` or `sign` as one more argument: the first prints the base64 of the public
            key, the second reads the message and prints the base64 of the signature).
        ml_dsa
            Whether the log signs with an ML-DSA-44 key too, which is always in a file.

        Raises
        ------
        AuditKeyError
            There are keys already, the origin can be no key's name, the source gives no key, or the folder cannot be used.
        AuditBusyError
            Another process changes these keys right now.
        """
        _check_request(origin, source, ml_dsa=ml_dsa)
        with _system_errors("made"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _changing(folder):
            if (folder / KEYS_FILE).exists():
                raise AuditKeyError("The log has keys already; rotate them, or choose another place.")
            algorithms = [Algorithm.ED25519, Algorithm.ML_DSA_44_COSIGNATURE][: 1 + ml_dsa]
            records = tuple(_new_record(folder, origin, algorithm, source if algorithm is Algorithm.ED25519 else _FILE) for algorithm in algorithms)
            keys = _KeyList(schema=KEYS_SCHEMA, origin=origin, keys=records)
            _write_list(folder, keys)
        return cls(folder, keys)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the list of keys.

        Raises
        ------
        AuditKeyError
            There is none, it cannot be read, or others than its owner could have changed it.
        AuditFormatError
            It is not as this program writes it.
        """
        return cls(folder, _read_list(folder))

    @property
    def origin(self) -> str:
        """Return the log's name."""
        return self._keys.origin

    @property
    def records(self) -> tuple[KeyRecord, ...]:
        """Return every key there ever was, the oldest first."""
        return self._keys.keys

    @property
    def verifiers(self) -> tuple[VerifierKey, ...]:
        """Return every key's public half, those of retired ones too: they signed the checkpoints of their time."""
        return tuple(record.key for record in self.records)

    @property
    def active(self) -> tuple[VerifierKey, ...]:
        """Return the public halves of the keys that sign now."""
        return tuple(record.key for record in self.records if record.is_active)

    @property
    def signers(self) -> tuple[NoteSigner, ...]:
        """Return the active keys, ready to sign; what a crash left of retired ones is destroyed first.

        Raises
        ------
        AuditKeyError
            A private key is not there, is another than the list says, or others than its owner may read it.
        """
        if self._signers is None:
            _destroy(self._folder / record.private_file for record in self.records if not record.is_active)
            self._signers = tuple(_signer_of(self._folder, record) for record in self.records if record.is_active)
        return self._signers

    def rotate(self, source: str | None = None, *, last_size: int | None = None) -> VerifierKey:
        """Make a successor of every active key, then retire those and destroy their private files.

        Parameters
        ----------
        source
            Where the new Ed25519 key is; None for where the old one was. A variable or program must give another key by then.
        last_size
            The log's size: the old keys are believed about no larger tree from now on.

        Returns
        -------
        VerifierKey
            The new key; where ML-DSA-44 is in use too, that is rotated along, and this is the Ed25519 one.

        Raises
        ------
        AuditKeyError
            The source gives no key, or the old one again; nothing has changed.
        AuditBusyError
            Another process changes these keys right now.
        """
        with self._changing() as keys:
            old = [record for record in keys.keys if record.is_active]
            _check_request(keys.origin, source or _FILE, ml_dsa=any(record.key.algorithm is not Algorithm.ED25519 for record in old))
            taken = {record.key.key_id for record in keys.keys}
            new = [_new_record(self._folder, keys.origin, record.key.algorithm, source or record.source, taken=taken) for record in old]
            retired = tuple(record.retire(last_size) if record.is_active else record for record in keys.keys)
            self._replace(keys.model_copy(update={"keys": (*retired, *new)}))
        return new[0].key

    def retire(self, key_id: int, *, last_size: int | None = None) -> None:
        """Retire one active key without a successor, and destroy its private file; `last_size` as for `rotate`.

        Raises
        ------
        AuditKeyError
            No active key has this id, or it is the last active one.
        AuditBusyError
            Another process changes these keys right now.
        """
        with self._changing() as keys:
            active = [record.key.key_id for record in keys.keys if record.is_active]
            if key_id not in active:
                raise AuditKeyError(f"No active key of this log has the id {key_id:08x}; active: {', '.join(f'{known:08x}' for known in active)}.")
            if len(active) == 1:
                raise AuditKeyError("This is the log's last active key, without which it can sign nothing; rotate it instead.")
            retired = tuple(record.retire(last_size) if record.key.key_id == key_id else record for record in keys.keys)
            self._replace(keys.model_copy(update={"keys": retired}))

    @contextlib.contextmanager
    def _changing(self) -> Iterator[_KeyList]:
        # The list is read again under the lock: another process may have changed it since this object was made.
        with _changing(self._folder):
            yield _read_list(self._folder)

    def _replace(self, keys: _KeyList) -> None:
        """Put the new list in place, then destroy every private file that it does not call active, a crashed attempt's too."""
        keys.check()
        _write_list(self._folder, keys)
        self._keys, self._signers = keys, None
        wanted = {record.private_file for record in keys.keys if record.is_active and record.source == _FILE}
        _destroy(path for path in sorted(self._folder.iterdir()) if _PRIVATE_NAME.fullmatch(path.name) and path.name not in wanted)


class ProgramSigner:
    """An Ed25519 key behind a program (a smart card, an HSM, a PKCS #11 wrapper). What it returns is checked before anyone uses it."""

    __slots__ = ("_command", "key")

    def __init__(self, key: VerifierKey, command: str) -> None:
        self._command = command
        self.key = key

    def __repr__(self) -> str:
        return f"ProgramSigner({self.key})"

    def sign(self, text: bytes) -> bytes:
        """Return the signature over the text; AuditKeyError when the program gives none that fits."""
        signature = _ask_program(self._command, "sign", text, _ED25519_SIGNATURE_BYTES)
        if not self.key.fits(text, signature):
            raise AuditKeyError(f"The signing program's signature does not fit key {self.key.key_id:08x}; it may be using another key.")
        return signature


def _check_request(origin: str, source: str, *, ml_dsa: bool) -> None:
    try:
        _checked_source(source)
        VerifierKey(origin, Algorithm.ED25519, b"x" * _ED25519_BYTES)
    except ValueError as error:
        raise AuditKeyError(f"The key cannot be made: {error}.") from None
    except AuditFormatError:
        raise AuditKeyError("A log's origin is the name of its keys: not empty, without spaces, plus signs and control characters.") from None
    if ml_dsa and source != _FILE:
        raise AuditKeyError("An ML-DSA-44 key is always in a file, so a log that has one cannot keep its other key elsewhere to have none on disk.")


def _new_record(folder: Path, origin: str, algorithm: Algorithm, source: str, *, taken: Iterable[int] = ()) -> KeyRecord:
    """Make a key or fetch it from its source, and return its record; a private key that belongs in a file is on disk by then."""
    pem: bytes | None = None
    if source.startswith(_PROGRAM):
        key = _key_of_program(origin, source.removeprefix(_PROGRAM))
    elif source.startswith(_ENVIRONMENT):
        key = Ed25519Signer(origin, _from_environment(source.removeprefix(_ENVIRONMENT))).key
    else:
        key, pem = _generated(origin, algorithm)
    if key.key_id in taken:
        raise AuditKeyError(f"The source gives key {key.key_id:08x}, which this log has or had already; put another key there first.")
    record = KeyRecord(vkey=str(key), state="active", created=_now(), retired=None, source=source)
    if pem is not None:
        _write_new_file(folder / record.private_file, pem)
    return record


def _key_of_program(origin: str, command: str) -> VerifierKey:
    try:
        return VerifierKey(origin, Algorithm.ED25519, _ask_program(command, "public", b"", _ED25519_BYTES))
    except AuditFormatError as error:
        raise AuditKeyError(f"The signing program gives a key that cannot be used: {error}") from None


def _generated(origin: str, algorithm: Algorithm) -> tuple[VerifierKey, bytes]:
    if algorithm is Algorithm.ED25519:
        private = Ed25519PrivateKey.generate()
        return Ed25519Signer(origin, private).key, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        ml_dsa_private = ml_dsa_module().MLDSA44PrivateKey.generate()
    except UnsupportedAlgorithm:
        raise AuditKeyError("The cryptography library here cannot make ML-DSA-44 keys; install a newer one.") from None
    return MlDsa44Cosigner(origin, ml_dsa_private).key, ml_dsa_private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _signer_of(folder: Path, record: KeyRecord) -> NoteSigner:
    """Return the signer for an active key, whose private half is the one that the list says."""
    key, source = record.key, record.source
    if source.startswith(_PROGRAM):
        return ProgramSigner(key, source.removeprefix(_PROGRAM))
    signer: NoteSigner
    if source.startswith(_ENVIRONMENT):
        signer = Ed25519Signer(key.name, _from_environment(source.removeprefix(_ENVIRONMENT)))
    else:
        signer = _signer_from_pem(_read_own_file(folder / record.private_file, "private key", _MAX_KEY_FILE_BYTES), key)
    if signer.key != key:
        raise AuditKeyError(f"The private key's source holds another key than {key.key_id:08x}, which the list says; put that one back, or rotate.")
    return signer


def _signer_from_pem(pem: bytes, key: VerifierKey) -> NoteSigner:
    private = _load_pem(pem)
    if key.algorithm is Algorithm.ED25519:
        if isinstance(private, Ed25519PrivateKey):
            return Ed25519Signer(key.name, private)
    elif isinstance(private, ml_dsa_module().MLDSA44PrivateKey):
        return MlDsa44Cosigner(key.name, private)
    raise AuditKeyError(f"The file of key {key.key_id:08x} is not an unencrypted private key of its kind in PEM form.")


def _from_environment(variable: str) -> Ed25519PrivateKey:
    text = os.environ.get(variable, "").strip()
    if not text:
        raise AuditKeyError(f"The environment variable {variable}, which holds the log's signing key, is not set.")
    if text.startswith("-----BEGIN"):
        private = _load_pem(text.encode(errors="replace"))
        if isinstance(private, Ed25519PrivateKey):
            return private
    else:
        with contextlib.suppress(ValueError, binascii.Error):
            return Ed25519PrivateKey.from_private_bytes(base64.b64decode(text, validate=True))
    raise AuditKeyError(f"The environment variable {variable} holds neither an Ed25519 private key in PEM form nor 32 bytes in base64.")


def _load_pem(pem: bytes) -> object:
    try:
        return load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: the key is encrypted
        return None


def _ask_program(command: str, request: str, message: bytes, answer_bytes: int) -> bytes:
    """Run the program with one more argument and return the bytes whose base64 it prints; its output is in no error text."""
    output = _output_of([*shlex.split(command), request], message)
    try:
        answer = base64.b64decode(output.strip(), validate=True)
    except (ValueError, binascii.Error):
        answer = b""
    if len(answer) != answer_bytes:
        raise AuditKeyError(f"The signing program answered {request!r} with something else than {answer_bytes} bytes in base64.")
    return answer


def _output_of(arguments: list[str], message: bytes) -> bytes:
    # The message waits in a file: a pipe would fill up where a program answers before it has read everything.
    with _system_errors("asked from the signing program"), tempfile.TemporaryFile() as stdin:
        stdin.write(message)
        stdin.seek(0)
        deadline = time.monotonic() + PROGRAM_TIMEOUT_S
        process = subprocess.Popen(arguments, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            output = _read_until(process, deadline)
            status = process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise AuditKeyError(f"The signing program did not finish within {PROGRAM_TIMEOUT_S:g} s.") from None
        finally:
            _end(process)
    if status != 0:
        raise AuditKeyError(f"The signing program ended with status {status}.")
    return output


def _read_until(process: subprocess.Popen[bytes], deadline: float) -> bytes:
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    output = b""
    while len(output) <= _MAX_PROGRAM_OUTPUT:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise subprocess.TimeoutExpired(process.args, PROGRAM_TIMEOUT_S)
        chunk = os.read(descriptor, _MAX_PROGRAM_OUTPUT + 1)
        if not chunk:
            return output
        output += chunk
    raise AuditKeyError("The signing program answers with too much.")


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


@contextlib.contextmanager
def _changing(folder: Path) -> Iterator[None]:
    """Hold the folder for a change; the system lets go of it when the process dies."""
    with _system_errors("used"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _check_owner(os.fstat(descriptor), "folder of the keys", "700")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AuditBusyError("Another process changes the log's keys right now; try again when it is done.") from None
        yield
    finally:
        os.close(descriptor)


def _read_list(folder: Path) -> _KeyList:
    with _system_errors("read"):
        _check_owner(folder.stat(), "folder of the keys", "700")
    return _KeyList.from_bytes(_read_own_file(folder / KEYS_FILE, "list of keys", _MAX_LIST_BYTES))


def _write_list(folder: Path, keys: _KeyList) -> None:
    draft = folder / _DRAFT
    with _system_errors("written"):
        draft.unlink(missing_ok=True)  # of an attempt that crashed
    _write_new_file(draft, keys.to_bytes())
    with _system_errors("written"):
        draft.replace(folder / KEYS_FILE)
        sync_folder(folder)


def _read_own_file(path: Path, what: str, max_bytes: int) -> bytes:
    with _system_errors("read"), path.open("rb") as file:
        _check_owner(os.fstat(file.fileno()), what, "600")
        raw = file.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise AuditKeyError(f"The {what} is too long to be one.")
    return raw


def _check_owner(status: os.stat_result, what: str, mode: str) -> None:
    # The list as well: whoever can change it can add a key of theirs to those that verify.
    if status.st_uid != os.geteuid():
        raise AuditKeyError(f"The {what} belongs to another user than the one who runs this.")
    if status.st_mode & _OTHERS_MAY:
        raise AuditKeyError(
            f"The {what} has mode {stat.S_IMODE(status.st_mode):04o}, so others than its owner may use it; run chmod {mode} on it, "
            "and rotate the keys if someone else may have read one."
        )


def _write_new_file(path: Path, content: bytes) -> None:
    """Write a file for its owner alone and see it on disk, its name in the folder included."""
    with _system_errors("written"):
        write_new_file(path, content, mode=0o600)


def _destroy(paths: Iterable[Path]) -> None:
    """Overwrite and remove private keys. On flash and copy-on-write file systems a copy may survive that: nothing that we can do from here."""
    for path in paths:
        with _system_errors("destroyed"), contextlib.suppress(FileNotFoundError):
            with path.open("r+b") as file:
                file.write(bytes(os.fstat(file.fileno()).st_size))
                file.flush()
                os.fsync(file.fileno())
            path.unlink()
            sync_folder(path.parent)


@contextlib.contextmanager
def _system_errors(done: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # its text holds the path
        raise AuditKeyError(f"The log's keys cannot be {done}: {error.strerror or 'the system gives no reason'}.") from None


def _now() -> str:
    return datetime.now(UTC).strftime(_UTC)
