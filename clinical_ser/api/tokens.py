"""Who asks, by a signed token: access tokens of an identity provider (RFC 9068, RFC 7519), and the tokens that record systems sign themselves.

The one idea: the configuration says who may issue what to whom, and a token only says which line of it to hold it against. Nothing in a token is used
before that line's own key has verified it, save the name of the issuer and of the key, and these are only looked up.
"""

import hashlib
import re
import threading
import time
import unicodedata
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, get_args

from jwt import PyJWS
from jwt.exceptions import PyJWTError
from pydantic import BaseModel, ConfigDict, Field

from clinical_ser.api.access import Principal, Scope
from clinical_ser.api.key_sets import Algorithm, Keys, VerificationKey, keys_at
from clinical_ser.api.replay import ReplayGuard
from clinical_ser.audit.events import Role
from clinical_ser.errors import AuthenticationError, ServerSetupError
from clinical_ser.models.strict_json import JsonValue, parse_json

ALGORITHMS: frozenset[Algorithm] = frozenset(get_args(Algorithm))
EVERY_SCOPE = frozenset(Scope)

MAX_TOKEN_BYTES = 8 * 1024
"""Access tokens with a few dozen groups have 2 to 4 kB; Node and nginx take 8 kB of headers or of one header."""
MAX_LEEWAY_S = 60
DEFAULT_LEEWAY_S = 10
DEFAULT_LIFETIME_S = 12 * 3600
"""The longest that an access token may be good for, unless the configuration says otherwise: one shift."""
REMEMBERED = 4096
"""Tokens whose verification is remembered, some 4 MB."""
_MAX_ID_LENGTH = 255
"""OpenID Connect Core 1.0 section 2: a subject has at most 255 characters."""
_MAX_NAME_LENGTH = 200
_MAX_WORDS = 1000

# The last second that has a date with four digits; whatever is beyond is no time but an attempt.
_END_OF_TIME = 253_402_300_800
_TOKEN = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+")
# RFC 9068 section 2.1; RFC 8725 section 3.11: other kinds of the same issuer (logout, events, proofs of possession) have types of their own.
_ACCESS_TYPE = "at+jwt"
_TYPES = frozenset({_ACCESS_TYPE, "jwt"})
# Keys and addresses of keys that a token brings along, extensions that would change what is verified, and tokens inside of tokens.
_REFUSED_HEADERS = frozenset({"jwk", "jku", "x5u", "x5c", "crit", "b64", "zip", "enc", "cty"})

# OpenID Connect Core 1.0 section 2; RFC 9068 section 2.2.
_CLIENT_CLAIMS = ("azp", "client_id")

# No algorithm with a shared secret, and not `none`: they are not refused here but unknown.
_SIGNATURES = PyJWS(algorithms=sorted(ALGORITHMS))


@dataclass(frozen=True)
class TenantClaim:
    """The tenant stands in a claim.

    Attributes
    ----------
    claim
        Its name.
    tenants
        Those that this issuer may speak for; a token of another is refused.
    """

    claim: str
    tenants: frozenset[str]


@dataclass(frozen=True)
class Issuer:
    """Whose tokens are believed, and what they are good for.

    Attributes
    ----------
    issuer
        What its tokens say in `iss`, to the letter.
    audience
        What they have to say in `aud`: the API's own identifier at this issuer, and not a client's, to whom it addresses what it tells of a person
        (ID tokens). None where each call names its own (`TokenVerifier.verify_single_use`).
    keys
        The file, or the address, of its key set.
    algorithms
        What it signs with.
    client_ids
        To which of the issuer's clients the tokens have to be issued (`azp`, or `client_id` of RFC 9068); any where empty. Needed where the audience
        is not this API alone: a record system's tokens (SMART) are for its own FHIR server, whichever of its apps has them.
    tenant
        Whose data its tokens lead to; "" where the installation has one site.
    role
        In what role its subjects act, unless `roles` says otherwise.
    roles
        The issuer's own words (of `role_claim`) to roles; the first in this order that a token has counts.
    role_claim
        Where these words are; dots lead into objects (`realm_access.roles`). The scope claims where None.
    scope_claims
        Where scopes are: words with spaces between them, or a list.
    scopes
        The issuer's own words (as for `roles`) to our scopes.
    always
        Scopes of every token of this issuer.
    at_most
        Scopes beyond these are not granted, whatever a token says.
    subject_claim
        Which claim is the account's name here; one that its owner cannot change.
    name_claim
        The printed name, for reviews; None for none.
    max_lifetime_s
        A token that is good for longer is refused.
    leeway_s
        How far the two clocks may differ.
    single_use
        Whether a token is good for one request.
    access_tokens_only
        Whether `typ` has to say that it is an access token (RFC 9068); where it says nothing it is taken for one otherwise.
    jku
        What this issuer's tokens may say in `jku`, which is compared and never fetched; any `jku` is refused where None.
    """

    issuer: str
    audience: str | None
    keys: Path | str
    algorithms: frozenset[Algorithm]
    tenant: str | TenantClaim = ""
    role: Role | None = None
    roles: Mapping[str, Role] = field(default_factory=dict)
    role_claim: str | None = None
    scope_claims: tuple[str, ...] = ("scope", "scp")
    scopes: Mapping[str, frozenset[Scope]] = field(default_factory=dict)
    always: frozenset[Scope] = frozenset()
    at_most: frozenset[Scope] = EVERY_SCOPE
    subject_claim: str = "sub"
    name_claim: str | None = "name"
    max_lifetime_s: int = DEFAULT_LIFETIME_S
    leeway_s: int = DEFAULT_LEEWAY_S
    single_use: bool = False
    access_tokens_only: bool = False
    jku: str | None = None
    client_ids: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not self.issuer or self.audience == "":
            raise ServerSetupError("An issuer of tokens needs a name, and an audience that is not empty.")
        if not self.algorithms or not self.algorithms <= ALGORITHMS:
            raise ServerSetupError(
                f"An issuer's algorithms are some of {', '.join(sorted(ALGORITHMS))}; those with a shared secret are not for this."
            )
        if not 0 <= self.leeway_s <= MAX_LEEWAY_S:
            raise ServerSetupError(f"Clocks may differ by 0 to {MAX_LEEWAY_S} s; set them (NTP) where that is not enough.")
        if self.max_lifetime_s <= 0:
            raise ServerSetupError("An issuer's tokens have to be good for some time.")
        if self.role is None and not self.roles:
            raise ServerSetupError("An issuer's subjects need a role: a fixed one, or words of theirs that stand for roles.")
        if isinstance(self.tenant, TenantClaim) and not (self.tenant.tenants and all(self.tenant.tenants)):
            raise ServerSetupError("An issuer whose tokens name the tenant needs a list of the tenants that it may name.")


class TokenVerifier:
    """Tells who a token is of.

    Parameters
    ----------
    issuers
        Who is believed; no two of the same name.
    clock
        Seconds since the epoch.
    keys
        Makes what looks for an issuer's keys.

    Raises
    ------
    ServerSetupError
        Two issuers have one name, or the address of a key set is none.

    Examples
    --------
    >>> site = Issuer("https://id.example", "https://screening.example", Path("keys.json"), frozenset({"ES256"}), role=Role.CLINICIAN)
    >>> TokenVerifier([site]).verify("e30.e30.AA")
    Traceback (most recent call last):
    ...
    clinical_ser.errors.AuthenticationError: The token is not a signed JSON Web Token of the kind that is taken here.
    """

    def __init__(self, issuers: Iterable[Issuer], *, clock: Callable[[], float] = time.time, keys: Callable[[Path | str], Keys] = keys_at) -> None:
        self._clock = clock
        self._issuers: dict[str, _Trusted] = {}
        for issuer in issuers:
            if issuer.issuer in self._issuers:
                raise ServerSetupError("Two issuers of tokens have the same name.")
            guard = ReplayGuard(started=clock(), leeway_s=issuer.leeway_s)
            self._issuers[issuer.issuer] = _Trusted(issuer, keys(issuer.keys), guard)
        self._verified = _Verified()

    def load_keys(self) -> int:
        """Look for every issuer's keys before anybody waits for them, and return how many issuers have none now; the log says why."""
        missing = 0
        for trusted in self._issuers.values():
            try:
                trusted.keys.load()
            except ServerSetupError:
                missing += 1
        return missing

    def recall(self, token: str) -> Principal | None:
        """Return whom a token is of that was verified a while ago and is still good; None otherwise. Never waits: for event loops."""
        digest = _digest(token)
        return None if digest is None else self._verified.recall(digest, self._clock())

    def verify(self, token: str) -> Principal:
        """Return whom a token is of.

        It may wait for an issuer's keys, some seconds at worst: for threads, after `recall`.

        Raises
        ------
        AuthenticationError
            It is not good, and `reason` says whether it was once (`expired`), or is used again where it must not be (`replayed`).
        """
        return self.recall(token) or self._verify(token, None)

    def verify_single_use(self, token: str, audience: str) -> Principal:
        """Return which system a token is of that is good for this one request: a CDS Hooks client's, or a client assertion.

        Parameters
        ----------
        token
            As for `verify`. It needs a `jti`. Who asks is its issuer: CDS Hooks 2.0 has no subject, and RFC 7523 has the issuer again.
        audience
            The address that was called; the token has to be for it alone.

        Raises
        ------
        AuthenticationError
            As for `verify`.
        """
        return self._verify(token, audience)

    def _verify(self, token: str, called: str | None) -> Principal:
        shown = _Shown.parse(token)
        trusted = self._issuers.get(shown.claims.iss)
        if trusted is None:
            raise _refused("Its issuer is not one that is believed here")
        issuer, algorithm = trusted.issuer, shown.header.alg
        if algorithm not in issuer.algorithms:
            raise _refused("Its issuer does not sign with this algorithm")
        _check_header(shown, issuer)
        key = trusted.keys.find(shown.header.kid, algorithm)
        if key is None:
            raise _refused("Its key is not among its issuer's keys")
        try:
            _SIGNATURES.decode_complete(token, key.public, algorithms=[algorithm])
        except PyJWTError:
            raise _refused("Its signature does not fit") from None

        now = self._clock()
        times = _Times.checked(shown.claims, issuer, now)
        once = issuer.single_use or called is not None
        _check_audience(shown.claims.aud, issuer.audience if called is None else called, alone=once)
        _check_client(shown.all_claims, issuer.client_ids)
        principal = _principal(shown, issuer, system=called is not None)
        digest = shown.digest
        # The last of all checks: what is refused for another reason has not been used.
        if once:
            if shown.claims.jti is None:
                raise _refused("It has no id (jti), without which it cannot be good for one request")
            trusted.guard.use_once(shown.claims.jti, digest, issued=shown.claims.iat, expires=times.ends, now=now)
        else:
            if shown.claims.jti is not None:
                trusted.guard.use_again(shown.claims.jti, digest, expires=times.ends, now=now)
            self._verified.add(digest, _Known(principal, times, trusted.keys, key, algorithm))
        return principal


def _refused(why: str) -> AuthenticationError:
    return AuthenticationError(f"The token is not accepted. {why}.")


@dataclass(frozen=True)
class _Trusted:
    issuer: Issuer
    keys: Keys
    guard: ReplayGuard


# --- What a token says --------------------------------------------------------------------------------------------------------------------


class _Part(BaseModel):
    # Further headers and claims are the issuer's business (RFC 7519 section 4).
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", hide_input_in_errors=True)


class _Header(_Part):
    alg: Algorithm
    kid: Annotated[str, Field(min_length=1, max_length=256)]
    typ: str | None = None


_Seconds = Annotated[float, Field(gt=0, lt=_END_OF_TIME)]
_Text = Annotated[str, Field(min_length=1, max_length=1024)]


class _Claims(_Part):
    iss: _Text
    aud: _Text | Annotated[list[_Text], Field(min_length=1, max_length=32)]
    iat: _Seconds
    exp: _Seconds
    nbf: _Seconds | None = None
    sub: _Text | None = None
    jti: _Text | None = None


@dataclass(frozen=True)
class _Shown:
    """A token as it is shown, believed by nobody yet."""

    digest: bytes
    header: _Header
    claims: _Claims
    all_headers: Mapping[str, JsonValue]
    all_claims: Mapping[str, JsonValue]

    @classmethod
    def parse(cls, token: str) -> "_Shown":
        digest = _digest(token)
        parts = _TOKEN.fullmatch(token) if digest is not None else None
        if digest is None or parts is None:
            raise AuthenticationError("The token is not a signed JSON Web Token of the kind that is taken here.")
        try:
            headers, claims = (_json_object(part) for part in parts.groups())
            return cls(digest, _Header.model_validate(headers), _Claims.model_validate(claims), headers, claims)
        except ValueError:  # pydantic's and our own JSON's errors are some
            raise AuthenticationError("The token is not a signed JSON Web Token of the kind that is taken here.") from None


def _digest(token: str) -> bytes | None:
    """Return what a token is remembered by; None where it can be none by its length or its characters."""
    if len(token) > MAX_TOKEN_BYTES or not token.isascii():
        return None
    return hashlib.sha256(token.encode("ascii")).digest()


def _json_object(part: str) -> dict[str, JsonValue]:
    """Return a part's JSON, which no two parsers read differently; ValueError for what is no such object, or not the one spelling in base64url."""
    raw = urlsafe_b64decode(part + "=" * (-len(part) % 4))
    if urlsafe_b64encode(raw).rstrip(b"=") != part.encode("ascii"):
        raise ValueError("another spelling")
    value = parse_json(raw)
    if not isinstance(value, dict):
        raise ValueError("no object")  # noqa: TRY004  # one kind of error for whatever the part is not
    return value


# --- Whether it is good -------------------------------------------------------------------------------------------------------------------


def _check_header(shown: _Shown, issuer: Issuer) -> None:
    brought = _REFUSED_HEADERS & shown.all_headers.keys()
    if issuer.jku is not None and shown.all_headers.get("jku") == issuer.jku:
        brought -= {"jku"}
    if brought:
        raise _refused("Its header brings keys, or asks for what is not done here")
    kind = None if shown.header.typ is None else shown.header.typ.lower().removeprefix("application/")
    if kind not in ({_ACCESS_TYPE} if issuer.access_tokens_only else {None, *_TYPES}):
        raise _refused("It is of another type than an access token")


@dataclass(frozen=True)
class _Times:
    """From when, and until when, a token is good, leeway included."""

    starts: float
    ends: float

    @classmethod
    def checked(cls, claims: _Claims, issuer: Issuer, now: float) -> "_Times":
        times = cls(max(claims.iat, claims.nbf or claims.iat) - issuer.leeway_s, claims.exp + issuer.leeway_s)
        if not 0 < claims.exp - claims.iat <= issuer.max_lifetime_s:
            raise _refused("It is good for longer than is allowed here, or for no time")
        if now < times.starts:
            raise _refused("It is not good yet; are the clocks right?")
        if now >= times.ends:
            raise AuthenticationError("The token has expired.", "expired")
        return times


def _check_audience(given: str | list[str], expected: str | None, *, alone: bool) -> None:
    audiences = [given] if isinstance(given, str) else given
    # What is good for one request here must not be good for another one elsewhere.
    if expected not in audiences or (alone and audiences != [expected]):
        raise _refused("It is for another audience")


def _check_client(claims: Mapping[str, JsonValue], expected: frozenset[str]) -> None:
    # Both where both are there: what says two things is nobody's.
    named = [claims[claim] for claim in _CLIENT_CLAIMS if claim in claims]
    if expected and not (named and all(isinstance(client, str) and client in expected for client in named)):
        raise _refused("It was issued to another client")


# --- Whom it is of ------------------------------------------------------------------------------------------------------------------------


def _principal(shown: _Shown, issuer: Issuer, *, system: bool) -> Principal:
    scope_words = [word for claim in issuer.scope_claims for word in _words(shown.all_claims, claim)]
    own_words = set(scope_words if issuer.role_claim is None else _words(shown.all_claims, issuer.role_claim))
    granted = {scope for scope in Scope if scope.value in scope_words} | issuer.always
    for word, scopes in issuer.scopes.items():
        if word in own_words:
            granted |= scopes
    role = next((role for word, role in issuer.roles.items() if word in own_words), issuer.role)
    if role is None:
        raise _refused("Its subject has no role here")
    return Principal(
        id=issuer.issuer if system else _subject(shown, issuer.subject_claim),
        tenant=_tenant(shown.all_claims, issuer.tenant),
        role=role,
        scopes=frozenset(granted) & issuer.at_most,
        name=None if system else _name(shown.all_claims, issuer.name_claim),
        method="cds_hooks" if system else "token",
    )


def _subject(shown: _Shown, claim: str) -> str:
    if shown.claims.sub is None:
        raise _refused("It has no subject")
    subject = _claim(shown.all_claims, claim)
    if not isinstance(subject, str) or not _is_line(subject, _MAX_ID_LENGTH):
        raise _refused("Its subject is not one that can be written into the audit trail")
    return subject


def _tenant(claims: Mapping[str, JsonValue], tenant: str | TenantClaim) -> str:
    if isinstance(tenant, str):
        return tenant
    named = _claim(claims, tenant.claim)
    if not isinstance(named, str) or named not in tenant.tenants:
        raise _refused("It is of a tenant that its issuer may not speak for")
    return named


def _name(claims: Mapping[str, JsonValue], claim: str | None) -> str | None:
    name = None if claim is None else _claim(claims, claim)
    if name is None:
        return None
    if isinstance(name, str):
        # A space of another width (ideographic, no-break) is how some write names, and no reason to let nobody in.
        name = "".join(" " if unicodedata.category(character) == "Zs" else character for character in name)
    if not isinstance(name, str) or not _is_line(name, _MAX_NAME_LENGTH):
        raise _refused("Its subject's name is not one that can be printed")
    return name


def _claim(claims: Mapping[str, JsonValue], name: str) -> JsonValue:
    """Return a claim by its name, or by a path of names with dots between them; None where it is not there."""
    if name in claims:
        return claims[name]
    value: JsonValue = dict(claims)
    for step in name.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return value


def _words(claims: Mapping[str, JsonValue], claim: str) -> list[str]:
    value = _claim(claims, claim)
    words = value.split(" ") if isinstance(value, str) else value
    if words is None:
        return []
    if not isinstance(words, list) or len(words) > _MAX_WORDS:
        raise _refused("Its scopes or roles are neither words nor a list of words")
    texts = [word for word in words if isinstance(word, str)]
    if len(texts) < len(words):
        raise _refused("Its scopes or roles are neither words nor a list of words")
    return texts


def _is_line(text: str, max_length: int) -> bool:
    return 0 < len(text) <= max_length and text.isprintable() and text.strip() == text


# --- What was verified already ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Known:
    """A token that was verified: whom it is of, how long it is good, and with which key that was found out."""

    principal: Principal
    times: _Times
    keys: Keys
    key: VerificationKey
    algorithm: Algorithm

    def is_good(self, now: float) -> bool:
        # The very object: a set that was read again has new ones, and a token is verified again then, or refused where its key is gone.
        return self.times.starts <= now < self.times.ends and self.keys.peek(self.key.kid, self.algorithm) is self.key


class _Verified:
    """Tokens that were verified, by digest; those that were shown last."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._lock = threading.Lock()

    def recall(self, digest: bytes, now: float) -> Principal | None:
        with self._lock:
            known = self._known.get(digest)
            if known is None:
                return None
            self._known.move_to_end(digest)
        if known.is_good(now):
            return known.principal
        with self._lock:
            self._known.pop(digest, None)
        return None

    def add(self, digest: bytes, known: _Known) -> None:
        with self._lock:
            self._known[digest] = known
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
