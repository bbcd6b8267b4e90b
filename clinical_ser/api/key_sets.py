"""The public keys of those who issue tokens: a JSON Web Key Set (RFC 7517), from a file or from the one address that the configuration names.

The one idea: a key is what the site's configuration leads to, never what a token brings or points to; and a set that holds a secret is no set,
because whoever published it has none any more.
"""

import logging
import os
import ssl
import stat
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Literal, Protocol

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, SECP521R1, EllipticCurve, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWK
from jwt.exceptions import PyJWTError
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from clinical_ser.api.watched_file import WatchedFile, What
from clinical_ser.audit.witness_http import check_address, get
from clinical_ser.errors import ServerSetupError, WitnessError
from clinical_ser.models.strict_json import JsonValue, StrictJsonError, parse_json

_log = logging.getLogger(__name__)

Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
"""Signatures that a public key verifies (RFC 7518, RFC 8037). Nothing with a shared secret: whoever can verify those can sign too."""

MAX_SET_BYTES = 64 * 1024
TIMEOUT_S = 5.0
FRESH_S = 300.0
"""For so long a set from an address is believed, and so a key that its issuer took back, while the issuer can be reached."""
REFRESH_S = 150.0
"""After this it is fetched again beside whoever asks, so that nobody waits for it where somebody asks every few minutes."""
RETRY_S = 60.0
"""Between two fetches, whatever comes meanwhile: tokens that name unknown keys must not turn this server against their issuer."""
STALE_S = 24 * 3600.0
"""For so long keys are believed whose issuer cannot be reached: a hospital works through a night without its identity provider, not a week."""

MIN_RSA_BITS = 2048
"""NIST SP 800-131A Rev. 2, table 2: fewer are disallowed."""
MAX_RSA_BITS = 8192
"""More only costs whoever verifies."""
_MAX_KEYS = 100
_MAX_KID_LENGTH = 256
_WAITING = 3
"""Requests that may wait for a fetch; more are refused at once, so that an issuer that is slow does not hold every thread."""

# RFC 7518 sections 6.2.2, 6.3.2 and 6.4: what is only in private and symmetric keys.
_SECRETS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_CURVES: Mapping[str, type[EllipticCurve]] = {"ES256": SECP256R1, "ES384": SECP384R1, "ES512": SECP521R1}

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey


class PublishedSecretError(ServerSetupError):
    """A key set holds a private or symmetric key."""


class _UnreachedError(ServerSetupError):
    """There is no answer from the address of a key set, or none that HTTP and TLS allow."""


class _StatusError(ServerSetupError):
    """The address of a key set answers with something else than a success."""


@dataclass(frozen=True, eq=False)
class VerificationKey:
    """One key that signatures may be verified with.

    Attributes
    ----------
    kid
        Its name in the set.
    algorithm
        The one that it is for, where the set says so.
    public
        The key.
    """

    kid: str
    algorithm: Algorithm | None
    public: PublicKey

    def fits(self, algorithm: Algorithm) -> bool:
        """Tell whether the key is one for this algorithm."""
        if self.algorithm not in {None, algorithm}:
            return False
        if isinstance(self.public, RSAPublicKey):
            return algorithm.startswith(("RS", "PS"))
        if isinstance(self.public, EllipticCurvePublicKey):
            curve = _CURVES.get(algorithm)
            return curve is not None and isinstance(self.public.curve, curve)
        return algorithm == "EdDSA"


@dataclass(frozen=True)
class KeySet:
    """The keys of a set that are for signatures, of a kind and strength that is accepted here."""

    keys: tuple[VerificationKey, ...]

    @classmethod
    def parse(cls, raw: bytes) -> "KeySet":
        """Read a set; keys in it that are for something else, or too weak, are left out.

        Raises
        ------
        PublishedSecretError
            It holds a private or a symmetric key.
        ServerSetupError
            It is no set, or no key of it can be used.
        """
        members = _members(raw)
        if any(_SECRETS & member.keys() or member.get("kty") == "oct" for member in members):
            raise PublishedSecretError("The key set holds a private or symmetric key, with which anyone could sign; have its issuer replace it.")
        keys = tuple(key for member in members if (key := _key_of(member)))
        if not keys:
            raise ServerSetupError("The key set has no key that is for signatures, has a kid, and is of a kind and strength that is accepted here.")
        return cls(keys)

    def find(self, kid: str, algorithm: Algorithm) -> VerificationKey | None:
        """Return the one key of that name for that algorithm; None where there is none, or more than one."""
        found = [key for key in self.keys if key.kid == kid and key.fits(algorithm)]
        return found[0] if len(found) == 1 else None


def _members(raw: bytes) -> list[dict[str, JsonValue]]:
    try:
        value = parse_json(raw)
    except StrictJsonError:
        value = None
    members = value.get("keys") if isinstance(value, dict) else None
    if not isinstance(members, list) or len(members) > _MAX_KEYS:
        raise ServerSetupError("The key set is not a JSON Web Key Set.")
    found = [member for member in members if isinstance(member, dict)]
    if len(found) < len(members):
        raise ServerSetupError("The key set is not a JSON Web Key Set.")
    return found


class _Jwk(BaseModel):
    """What is read of a key; certificates in it (x5c) are nobody's word here."""

    model_config = ConfigDict(strict=True, extra="ignore", hide_input_in_errors=True)
    kid: Annotated[str, Field(min_length=1, max_length=_MAX_KID_LENGTH)]
    use: Literal["sig"] | None = None
    key_ops: list[str] | None = None
    alg: Algorithm | None = None


class _Rsa(_Jwk):
    kty: Literal["RSA"]
    n: str
    e: str


class _Ec(_Jwk):
    kty: Literal["EC"]
    crv: Literal["P-256", "P-384", "P-521"]
    x: str
    y: str


class _Okp(_Jwk):
    kty: Literal["OKP"]
    crv: Literal["Ed25519"]
    x: str


_JWK: TypeAdapter[_Rsa | _Ec | _Okp] = TypeAdapter(Annotated[_Rsa | _Ec | _Okp, Field(discriminator="kty")])


def _key_of(member: dict[str, JsonValue]) -> VerificationKey | None:
    try:
        jwk = _JWK.validate_python(member)
    except ValidationError:
        return None
    if jwk.key_ops is not None and "verify" not in jwk.key_ops:
        return None
    try:
        # The algorithm only says how to read the numbers; which algorithms the key is for is told by `fits`.
        public = PyJWK(jwk.model_dump(include={"kty", "crv", "n", "e", "x", "y"}), algorithm=_READ_AS[jwk.kty]).key
    except PyJWTError:  # not base64url, of another length, not a point of the curve
        return None
    if isinstance(public, RSAPublicKey) and not _is_strong(public):
        return None
    key = VerificationKey(jwk.kid, jwk.alg, public)
    return key if jwk.alg is None or key.fits(jwk.alg) else None


_READ_AS: Mapping[str, str] = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}


def _is_strong(key: RSAPublicKey) -> bool:
    # FIPS 186-5 section 5.1: the public exponent is odd and above 2^16.
    return MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS and key.public_numbers().e > 1 << 16


class Keys(Protocol):
    """Where an issuer's keys are looked for."""

    def peek(self, kid: str, algorithm: Algorithm) -> VerificationKey | None:
        """Return a key that is known now, without waiting for anything but a small file; None where there is none."""

    def find(self, kid: str, algorithm: Algorithm) -> VerificationKey | None:
        """Return a key, looked for as far as it may be, which can take seconds; None where there is none."""

    def load(self) -> None:
        """Look whether the keys are there; ServerSetupError where not."""


class FileKeys:
    """Keys in a file, as it stands now. While it cannot be used there are none.

    Parameters
    ----------
    path
        The file. Others may read it, and nobody but its owner may write: whoever can add a key to it can be anyone.
    """

    def __init__(self, path: Path) -> None:
        self._file = WatchedFile(path, KeySet.parse, check=_check_writers, what=What.ISSUER_KEYS, max_bytes=MAX_SET_BYTES)

    def peek(self, kid: str, algorithm: Algorithm) -> VerificationKey | None:
        """Return a key; None where there is none."""
        keys = self._file.current()
        return None if keys is None else keys.find(kid, algorithm)

    find = peek

    def load(self) -> None:
        """Look whether the file can be used; ServerSetupError where not, and the log says why."""
        self._file.current()
        self._file.load()


def _check_writers(status: os.stat_result) -> None:
    if status.st_uid not in {0, os.geteuid()}:
        raise ServerSetupError("The file of an issuer's keys belongs to another user than the one who runs this, or root.")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ServerSetupError("Others than its owner may write the file of an issuer's keys; run chmod go-w on it.")


class AddressKeys:
    """Keys at an address, fetched over TLS and kept for a while.

    They are fetched anew in the background while they are in use. Once they are five minutes old nobody believes them before they were fetched again,
    or that was tried; and they are fetched at once when a token names a key that is not among them; never more than once a minute. While the issuer
    cannot be reached they are believed for a day.

    Parameters
    ----------
    url
        https, or http on a loopback address. It is never followed anywhere else.
    clock
        Seconds that only grow.
    tls
        For an issuer whose certificate is not by an authority that the system trusts.

    Raises
    ------
    ServerSetupError
        The address is not of that kind.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] = time.monotonic, tls: ssl.SSLContext | None = None) -> None:
        try:
            check_address(url)
        except WitnessError as error:
            raise ServerSetupError(f"A key set cannot be fetched: {error}") from None
        self._url, self._clock, self._tls = url, clock, tls
        self._kept: tuple[KeySet, float] | None = None
        self._tried: float | None = None
        self._failing = False
        self._fetching = threading.Lock()
        self._waiting = threading.BoundedSemaphore(_WAITING)

    def peek(self, kid: str, algorithm: Algorithm) -> VerificationKey | None:
        """Return a key that is believed now; None where there is none. Keys that are not new are fetched anew meanwhile."""
        kept, now = self._kept, self._clock()
        if kept is None or not self._is_believed(now - kept[1], now):
            return None
        if now - kept[1] > REFRESH_S and self._may_try(now) and self._fetching.acquire(blocking=False):
            self._refresh_in_background()
        return kept[0].find(kid, algorithm)

    def _is_believed(self, age: float, now: float) -> bool:
        """Tell whether keys of an age are: new ones, and older ones while it is known, and not from long ago, that the issuer cannot be reached."""
        failed_lately = self._failing and self._tried is not None and now - self._tried <= 2 * RETRY_S
        return age <= (STALE_S if failed_lately else FRESH_S)

    def find(self, kid: str, algorithm: Algorithm) -> VerificationKey | None:
        """Return a key; the set is fetched when it is not there, which takes at most twice `TIMEOUT_S`. None where there is none then."""
        found = self.peek(kid, algorithm)
        if found is None and self._was_known(kid, algorithm):
            # Whoever has a key that was good waits, however many they are: all of them come back after a quiet hour.
            self._refresh()
            found = self.peek(kid, algorithm)
        elif found is None and self._waiting.acquire(blocking=False):
            try:
                self._refresh()
            finally:
                self._waiting.release()
            found = self.peek(kid, algorithm)
        return found

    def _was_known(self, kid: str, algorithm: Algorithm) -> bool:
        """Tell whether a key is in the set that is too old to be believed."""
        kept, now = self._kept, self._clock()
        return kept is not None and FRESH_S < now - kept[1] <= STALE_S and kept[0].find(kid, algorithm) is not None

    def load(self) -> None:
        """Fetch the keys unless they are there; ServerSetupError where that fails."""
        self._refresh()
        if self._kept is None:
            raise ServerSetupError("The keys of an issuer cannot be fetched; the log says why. Its tokens are refused until they can.")

    def _may_try(self, now: float) -> bool:
        return self._tried is None or now - self._tried >= RETRY_S

    def _refresh_in_background(self) -> None:
        """Fetch the set in a thread that lets go of the lock, which is held here."""

        def refresh() -> None:
            try:
                self._fetch_if_due()
            finally:
                self._fetching.release()

        try:
            threading.Thread(target=refresh, name="key set", daemon=True).start()
        except RuntimeError:  # no more threads: the next one who asks tries again
            self._fetching.release()

    def _refresh(self) -> None:
        """Fetch the set; whoever comes meanwhile waits for the one who does it."""
        with self._fetching:
            self._fetch_if_due()

    def _fetch_if_due(self) -> None:
        if not self._may_try(self._clock()):
            return
        self._tried = self._clock()
        # Constant sentences, of which the server's log writes nothing else (library_logs.py).
        try:
            self._kept = KeySet.parse(_fetch(self._url, self._tls)), self._clock()
        except PublishedSecretError:
            # The keys of yesterday may be the same ones: nobody knows who signs with them.
            self._kept = None
            _log.error("The key set of an issuer holds a private or symmetric key, with which anyone could sign. Its tokens are refused.")
        except _UnreachedError as error:
            self._failed("The address of an issuer's keys does not answer as it should; known ones are believed for a day at most. (%s)", error)
        except _StatusError as error:
            self._failed("The address of an issuer's keys answers with an error; known ones are believed for a day at most. (%s)", error)
        except ServerSetupError as error:
            self._failed("The address of an issuer's keys has no key set that is good here; known ones are believed for a day at most. (%s)", error)
        else:
            self._failing = False

    def _failed(self, said: str, error: ServerSetupError) -> None:
        if not self._failing:
            _log.warning(said, error)
        self._failing = True


def keys_at(place: Path | str) -> Keys:
    """Return the keys in a file, or at an address; ServerSetupError for an address that is none."""
    return FileKeys(place) if isinstance(place, Path) else AddressKeys(place)


def _fetch(url: str, tls: ssl.SSLContext | None) -> bytes:
    """Return what is at an address, with bounds on time and size, and without following it anywhere; ServerSetupError otherwise."""
    try:
        answer = get(url, accept="application/jwk-set+json, application/json", timeout_s=TIMEOUT_S, max_answer_bytes=MAX_SET_BYTES, tls=tls)
    except WitnessError as error:
        raise _UnreachedError(str(error)) from None
    if answer.status != HTTPStatus.OK:
        raise _StatusError(f"The answer has HTTP status {answer.status}.")
    return answer.body
