"""API keys: for machines, and for people where a site has no identity provider. One file, which the running server reads anew when it changes.

The one idea: the file holds what recognises a key and not the key. A key is 256 random bits, so one SHA-256 of it is enough: a slow hash makes
guessing dear, and there is nothing to guess here (NIST SP 800-63B section 5.1.2.2 asks for one below 112 bits).
"""

import contextlib
import fcntl
import hashlib
import hmac
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal, Self

import rfc8785
from pydantic import AfterValidator, Field, ValidationError

from clinical_ser.api.access import Principal, Scope
from clinical_ser.api.configuration import Tenant
from clinical_ser.api.watched_file import WatchedFile, What
from clinical_ser.atomic_folder import sync_folder, write_new_file
from clinical_ser.audit.events import Hex32, Role
from clinical_ser.errors import AuthenticationError, ServerSetupError
from clinical_ser.strict import Strict

PREFIX = "cser_"
DEFAULT_LIFETIME = timedelta(days=365)
DEFAULT_OVERLAP = timedelta(days=7)
"""For so long an old key goes on beside the new one: time to bring that to where it is used."""
MAX_LIFETIME = timedelta(days=5 * 365)

_ID_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
_ID_LENGTH = 8
_SECRET_BYTES = 32
_KEY = re.compile(r"cser_([a-z2-7]{8})_[A-Za-z0-9_-]{43}")
# 400 bytes a key: room for thousands.
_MAX_FILE_BYTES = 4 * 1024 * 1024
_OTHERS_MAY = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
_DRAFT_SUFFIX = ".new"
_UTC = "%Y-%m-%dT%H:%M:%SZ"
_VALID_AT_ONCE = 2
_NOBODY = bytes(hashlib.sha256().digest_size)


def _checked_time(text: str) -> str:
    datetime.strptime(text, _UTC)  # only whether it is one
    return text


def _checked_name(text: str) -> str:
    if not text.isprintable() or text.strip() != text:
        raise ValueError("one line of text is expected, without spaces around it")
    return text


def _checked_scopes(scopes: tuple[Scope, ...]) -> tuple[Scope, ...]:
    if list(scopes) != sorted(set(scopes)):
        raise ValueError("scopes are sorted, and none is there twice")
    return scopes


Client = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}$")]
"""An account or a program: no slash, which parts the tenant from it in the trail, and nothing that a terminal or a log could read otherwise."""
_Time = Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$"), AfterValidator(_checked_time)]


class ApiKey(Strict):
    """What is known of one key.

    Attributes
    ----------
    id
        The part of it that may be shown.
    sha256
        Of the whole key as it is typed.
    client, name
        Whose it is, and the printed name, for reviews.
    tenant
        The site that the client belongs to; "" where the installation has one.
    role, scopes
        In what role the client acts, and what it may do.
    created, expires
        From when to when it is good, in UTC.
    rotated
        When a successor was made.
    revoked
        Since when it is good no more, whatever `expires` says.
    """

    id: Annotated[str, Field(pattern=r"^[a-z2-7]{8}$")]
    sha256: Hex32
    client: Client
    name: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_checked_name)] | None
    tenant: Tenant | Literal[""]
    role: Role
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1), AfterValidator(_checked_scopes)]
    created: _Time
    expires: _Time
    rotated: _Time | None = None
    revoked: _Time | None = None

    def is_valid(self, now: datetime) -> bool:
        """Tell whether the key is good at a time."""
        return self.revoked is None and now < _moment(self.expires)

    def state(self, now: datetime) -> Literal["valid", "rotated", "expired", "revoked"]:
        """Return the same in a word; `rotated` is good for a while yet."""
        if self.revoked is not None:
            return "revoked"
        if not self.is_valid(now):
            return "expired"
        return "valid" if self.rotated is None else "rotated"

    @property
    def principal(self) -> Principal:
        """Return whom it stands for."""
        return Principal(self.client, self.tenant, self.role, frozenset(self.scopes), self.name, "api_key")


@dataclass(frozen=True)
class NewKey:
    """A key that was just made. `text` is nowhere else, and its repr does not show it."""

    record: ApiKey
    text: str

    def __repr__(self) -> str:
        return f"NewKey({self.record.id})"


class _KeyList(Strict):
    schema_: Literal["clinical-ser/api-keys/1"] = Field(default="clinical-ser/api-keys/1", alias="schema")
    keys: tuple[ApiKey, ...] = ()

    def to_bytes(self) -> bytes:
        return rfc8785.dumps(self.model_dump(mode="json", by_alias=True)) + b"\n"

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        try:
            keys = cls.model_validate_json(raw)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"])) or "the whole"
            raise ServerSetupError(f"The file of API keys does not fit: {place}: {first['msg']}.") from None
        # Written again it is the same, so there are no second spellings: no key twice in an object, no spaces, no other order.
        if keys.to_bytes() != raw:
            raise ServerSetupError("The file of API keys is not in the form that this program writes; it was edited by hand or by another program.")
        if len({key.id for key in keys.keys}) != len(keys.keys):
            raise ServerSetupError("The file of API keys holds two keys with the same id.")
        return keys


# --- In the server ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Known:
    digest: bytes
    expires: float
    is_revoked: bool
    principal: Principal


class ApiKeys:
    """The keys that are good now, for a running server.

    While the file is not there or cannot be used, nobody is recognised by a key, which the log says once. The keys of before are not kept: whoever
    took one out of the file has to be able to rely on it.

    Parameters
    ----------
    path
        The file, which need not be there yet.
    tenants
        Those of the installation, {""} where it has one site; keys of others are not good.
    clock
        Seconds since the epoch.
    """

    def __init__(
        self,
        path: Path,
        *,
        tenants: frozenset[str] = frozenset({""}),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._tenants, self._clock = tenants, clock
        self._file = WatchedFile(path, self._parse, check=_check_owner, what=_WHAT, max_bytes=_MAX_FILE_BYTES)

    def verify(self, text: str) -> Principal:
        """Return whose key it is. One stat(2) and one SHA-256, whatever is asked: for event loops too.

        Raises
        ------
        AuthenticationError
            It is nobody's, or `expired`.
        """
        keys = self._file.current() or {}
        shape = _KEY.fullmatch(text)
        known = keys.get(shape[1]) if shape else None
        # The same work for an id that nobody has. Whether it matches comes first: only who has the key learns that it has expired.
        matches = hmac.compare_digest(_digest(text), known.digest if known else _NOBODY)
        if known is None or not matches or known.is_revoked or known.principal.tenant not in self._tenants:
            raise AuthenticationError("The API key is not one that is known here.")
        if self._clock() >= known.expires:
            raise AuthenticationError("The API key has expired.", "expired")
        return known.principal

    def load(self) -> int:
        """Look whether the file can be used, and return how many keys it has; ServerSetupError where it cannot, and the log says why."""
        self._file.current()
        return len(self._file.load())

    def _parse(self, raw: bytes) -> dict[str, _Known]:
        keys = _KeyList.from_bytes(raw).keys
        return {key.id: _Known(bytes.fromhex(key.sha256), _moment(key.expires).timestamp(), key.revoked is not None, key.principal) for key in keys}


# --- For those who give keys out ----------------------------------------------------------------------------------------------------------


def _unannounced(_: ApiKey) -> None:
    pass


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """Return all keys there ever were, the oldest first; none where there is no file.

    Raises
    ------
    ServerSetupError
        The file cannot be read or used, or others than its owner could.
    """
    return _read(path).keys


def add_key(
    path: Path,
    *,
    client: str,
    role: Role,
    scopes: frozenset[Scope],
    tenant: str = "",
    name: str | None = None,
    lifetime: timedelta = DEFAULT_LIFETIME,
    now: datetime | None = None,
    announce: Callable[[ApiKey], None] = _unannounced,
) -> NewKey:
    """Make a client's first key, or another one after all of them ended.

    Parameters
    ----------
    path
        The file; made where there is none.
    client, role, scopes, tenant, name
        As in `ApiKey`.
    lifetime
        How long it is good.
    now
        The time.
    announce
        Called with the key's record before it is good; what it raises leaves everything as it was.

    Raises
    ------
    ServerSetupError
        The client has a key that is good; something does not fit; or the file cannot be used, or is being changed by another process.
    """
    moment = now or datetime.now(UTC)
    _check_span(lifetime, MAX_LIFETIME, "A key is good")
    with _changing(path) as keys:
        if any(key.is_valid(moment) for key in keys.keys if (key.client, key.tenant) == (client, tenant)):
            raise ServerSetupError("This client has a key that is good; rotate that one, or revoke it first.")
        made = _made(keys, moment, moment + lifetime, client=client, name=name, tenant=tenant, role=role, scopes=tuple(sorted(scopes)))
        announce(made.record)
        _write(path, _KeyList(keys=(*keys.keys, made.record)))
    return made


def rotate_key(
    path: Path,
    key_id: str,
    *,
    overlap: timedelta = DEFAULT_OVERLAP,
    lifetime: timedelta = DEFAULT_LIFETIME,
    now: datetime | None = None,
    announce: Callable[[ApiKey], None] = _unannounced,
) -> NewKey:
    """Make the successor of a key, which goes on beside it for a while.

    Parameters
    ----------
    path, lifetime, now, announce
        As for `add_key`.
    key_id
        The key to replace.
    overlap
        How long that is still good, unless it ends before.

    Raises
    ------
    ServerSetupError
        There is no such key, it is not good, the client has two that are; or as for `add_key`.
    """
    moment = now or datetime.now(UTC)
    _check_span(lifetime, MAX_LIFETIME, "A key is good")
    _check_span(overlap, MAX_LIFETIME, "The old key goes on")
    with _changing(path) as keys:
        old = _find(keys, key_id)
        if not old.is_valid(moment):
            raise ServerSetupError("This key is not good any more; add a new one for its client.")
        if sum(key.is_valid(moment) for key in keys.keys if (key.client, key.tenant) == (old.client, old.tenant)) >= _VALID_AT_ONCE:
            raise ServerSetupError("This client has two keys that are good already; revoke one of them first.")
        made = _made(keys, moment, moment + lifetime, client=old.client, name=old.name, tenant=old.tenant, role=old.role, scopes=old.scopes)
        announce(made.record)
        ending = old.model_copy(update={"rotated": _text(moment), "expires": min(old.expires, _text(moment + overlap))})
        _write(path, _KeyList(keys=(*(ending if key is old else key for key in keys.keys), made.record)))
    return made


def revoke_key(path: Path, key_id: str, *, now: datetime | None = None) -> ApiKey:
    """End a key at once, and return its record.

    Raises
    ------
    ServerSetupError
        There is no such key, it is revoked already; or the file cannot be used, or is being changed by another process.
    """
    with _changing(path) as keys:
        old = _find(keys, key_id)
        if old.revoked is not None:
            raise ServerSetupError("This key is revoked already.")
        ended = old.model_copy(update={"revoked": _text(now or datetime.now(UTC))})
        _write(path, _KeyList(keys=tuple(ended if key is old else key for key in keys.keys)))
    return ended


def _made(keys: _KeyList, created: datetime, expires: datetime, **values: object) -> NewKey:
    taken = {key.id for key in keys.keys}
    key_id = next(made for made in iter(_random_id, None) if made not in taken)
    text = f"{PREFIX}{key_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    times = {"created": _text(created), "expires": _text(expires)}
    try:
        record = ApiKey.model_validate({"id": key_id, "sha256": _digest(text).hex(), **values, **times})
    except ValidationError as error:
        first = error.errors()[0]
        raise ServerSetupError(f"The key cannot be made: {first['loc'][0]}: {first['msg'].removeprefix('Value error, ')}.") from None
    return NewKey(record, text)


def _random_id() -> str:
    return "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH))


def _find(keys: _KeyList, key_id: str) -> ApiKey:
    found = next((key for key in keys.keys if key.id == key_id), None)
    if found is None:
        raise ServerSetupError("There is no key with this id; the id is what stands between the key's two underscores.")
    return found


def _check_span(span: timedelta, longest: timedelta, what: str) -> None:
    if not timedelta() <= span <= longest:
        raise ServerSetupError(f"{what} for 0 to {longest.days} days.")


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="replace")).digest()


def _moment(text: str) -> datetime:
    return datetime.strptime(text, _UTC).replace(tzinfo=UTC)


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime(_UTC)


# --- The file -----------------------------------------------------------------------------------------------------------------------------

_WHAT = What.API_KEYS


def _check_owner(status: os.stat_result) -> None:
    # The file gives nobody a key, but whoever can write it makes one of theirs good.
    if status.st_uid != os.geteuid():
        raise ServerSetupError("The file of API keys belongs to another user than the one who runs this.")
    if status.st_mode & _OTHERS_MAY:
        raise ServerSetupError(
            f"The file of API keys has mode {stat.S_IMODE(status.st_mode):04o}, so others than its owner may use it; run chmod 600 on it, "
            "and list the keys to see that none was added."
        )


def _read(path: Path) -> _KeyList:
    if not os.path.lexists(path):
        return _KeyList()
    return WatchedFile(path, _KeyList.from_bytes, check=_check_owner, what=_WHAT, max_bytes=_MAX_FILE_BYTES).load()


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[_KeyList]:
    """Hold the file's folder for a change, and read the keys; the system lets go of it when the process dies."""
    with _system_errors():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_mode & _OTHERS_MAY_WRITE:
            raise ServerSetupError("Others than its owner may write the folder of the API keys, and put another file there; run chmod go-w on it.")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServerSetupError("Another process changes the API keys right now; try again when it is done.") from None
        yield _read(path)
    finally:
        os.close(descriptor)


def _write(path: Path, keys: _KeyList) -> None:
    """Put the new file in place in one step, and see it on the disk."""
    raw = keys.to_bytes()
    if len(raw) > _MAX_FILE_BYTES:
        raise ServerSetupError("The file of API keys is full; move it away, and make the keys anew that are still good.")
    draft = path.with_name(path.name + _DRAFT_SUFFIX)
    with _system_errors():
        draft.unlink(missing_ok=True)  # of an attempt that crashed
        write_new_file(draft, raw, mode=0o600)
        draft.replace(path)
        sync_folder(path.parent)


@contextlib.contextmanager
def _system_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:  # its text holds the path
        raise ServerSetupError(f"The API keys cannot be changed: {error.strerror or 'the system gives no reason'}.") from None
