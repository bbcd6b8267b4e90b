"""Makers of tokens, honest and hostile, and of the key sets that go with them.

The one idea: a token is made of raw bytes here, so that one can be made that no library would make.
"""

import hashlib
import hmac
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import get_default_algorithms

ISSUER = "https://id.clinic.example"
AUDIENCE = "https://screening.clinic.example"
NOW = 1_800_000_000.0
WITHOUT = object()
"""In place of a value: the claim or header is left out."""

_SIGNING = get_default_algorithms()
_CURVES = {"ES256": ec.SECP256R1, "ES384": ec.SECP384R1, "ES512": ec.SECP521R1}


class Clock:
    """Seconds that stand still until they are moved."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def b64(raw: bytes) -> str:
    """Return bytes as JOSE spells them."""
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


@cache
def private_key(family: str, number: int = 0) -> Any:
    """Return a private key of an algorithm's family; another one for each number."""
    del number
    if family in _CURVES:
        return ec.generate_private_key(_CURVES[family]())
    return ed25519.Ed25519PrivateKey.generate() if family == "EdDSA" else rsa.generate_private_key(65537, int(family.removeprefix("RSA")))


@dataclass(frozen=True)
class Signer:
    """A private key, its name, and what it signs with."""

    algorithm: str = "ES256"
    kid: str = "k1"
    number: int = 0
    bits: int = 2048

    @property
    def private(self) -> Any:
        family = f"RSA{self.bits}" if self.algorithm.startswith(("RS", "PS")) else self.algorithm
        return private_key(family, self.number)

    def jwk(self, **changes: Any) -> dict[str, Any]:
        """Return the public half as a JSON Web Key."""
        public = _SIGNING[self.algorithm].to_jwk(self.private.public_key(), as_dict=True)
        return without({**public, "kid": self.kid, "use": "sig", "alg": self.algorithm, "key_ops": WITHOUT, **changes})

    def sign(self, message: bytes) -> bytes:
        return _SIGNING[self.algorithm].sign(message, self.private)

    def token(self, claims: dict[str, Any] | bytes | None = None, **header: Any) -> str:
        """Return a token over these claims, or over other bytes; headers are added, replaced, or left out with `WITHOUT`."""
        shown = without({"alg": self.algorithm, "kid": self.kid, "typ": "at+jwt", **header})
        return assembled(shown, claims_of() if claims is None else claims, self.sign)

    @property
    def pem(self) -> bytes:
        """Return the public half as everybody may have it."""
        return self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def without(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values that are some."""
    return {name: value for name, value in values.items() if value is not WITHOUT}


def claims_of(now: float = NOW, **changes: Any) -> dict[str, Any]:
    """Return claims of a good access token, with changes."""
    honest = {"iss": ISSUER, "aud": AUDIENCE, "sub": "dr.wang", "iat": int(now), "exp": int(now) + 300, "scope": "openid screenings:read"}
    return without({**honest, **changes})


def assembled(header: dict[str, Any] | bytes, payload: dict[str, Any] | bytes, sign: Any) -> str:
    """Return header, payload and what `sign` makes of them."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload)]
    signed = ".".join(map(b64, parts))
    return f"{signed}.{b64(sign(signed.encode()))}"


def with_secret(secret: bytes, digest: str = "sha256") -> Any:
    """Return what signs with a shared secret, as HS256 does."""
    return lambda message: hmac.new(secret, message, getattr(hashlib, digest)).digest()


def key_set(*keys: Signer | dict[str, Any]) -> bytes:
    """Return a JSON Web Key Set."""
    return json.dumps({"keys": [key.jwk() if isinstance(key, Signer) else key for key in keys]}).encode()


def write_key_set(path: Path, *keys: Signer | dict[str, Any]) -> Path:
    """Write a key set as a site would have it, and return where."""
    path.write_bytes(key_set(*keys))
    path.chmod(0o644)
    return path


def other_spelling_of_signature(token: str) -> str:
    """Return an ES256 token with the other signature that fits as well: (r, n - s) beside (r, s)."""
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    signed, _, signature = token.rpartition(".")
    raw = urlsafe_b64decode(signature + "==")
    s = order - int.from_bytes(raw[32:], "big")
    return f"{signed}.{b64(raw[:32] + s.to_bytes(32, 'big'))}"
