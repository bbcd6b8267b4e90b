"""Who made a bundle: Ed25519 signatures over the bundle's manifest, and the keys that this installation trusts.

A valid signature says that the holder of a key made the bundle; only the trust store says whose key that is. So the answer has three good
states (trusted, untrusted, unsigned), and a signature that does not fit is never a state: it is an error. Ed25519 is deterministic
(RFC 8032), so signing keeps a bundle's bytes a function of its content and the key.
"""

import base64
import binascii
import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from clinical_ser.atomic_folder import write_new_file
from clinical_ser.errors import BundleSchemaError, BundleTamperedError, BundleUntrustedError, SigningKeyError
from clinical_ser.folders import HOME_VARIABLE, user_folder
from clinical_ser.models.strict_json import StrictJsonError, canonical_json, parse_canonical_object

SIGNATURE_SCHEMA = "clinical-ser/signature/1"
ALGORITHM = "Ed25519"
# Nothing else that this key ever signs may start with these bytes: a signature is good for one purpose only.
DOMAIN = b"clinical-ser bundle manifest v1\n"

SHIPPED_TRUSTED_KEYS = Path(__file__).parent / "shipped" / "trusted_keys"

# An Ed25519 key in PEM is 119 bytes; whatever is longer than this is another file given by mistake.
_MAX_KEY_FILE_BYTES = 16 * 1024
_KEY_ID_HEX = 16
_OTHERS_MAY = stat.S_IRWXG | stat.S_IRWXO
_SIGNATURE_FIELDS = frozenset({"schema", "algorithm", "key_id", "public_key", "signature"})


def default_key_path() -> Path:
    """Return where this user's own signing key lives; SigningKeyError where the process has no home."""
    folder = user_folder("config")
    if folder is None:
        raise SigningKeyError(f"This process has no home folder to keep a signing key in; set {HOME_VARIABLE}.")
    return folder / "keys" / "signing.pem"


@dataclass(frozen=True)
class PublicKey:
    """An Ed25519 public key; equal keys have equal 32 bytes."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != 32:
            raise SigningKeyError(f"An Ed25519 public key has 32 bytes, not {len(self.raw)}.")

    @property
    def key_id(self) -> str:
        """Return a short name to show people: 16 hex digits of the key's sha256. Trust compares whole keys, never this."""
        return hashlib.sha256(self.raw).hexdigest()[:_KEY_ID_HEX]

    @classmethod
    def from_pem(cls, pem: bytes) -> Self:
        """Read a SubjectPublicKeyInfo in PEM; SigningKeyError when it is none, or of another algorithm."""
        try:
            key = load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PublicKey):
            raise SigningKeyError("A public key file is not an Ed25519 public key in PEM form.")
        return cls(key.public_bytes_raw())

    def to_pem(self) -> bytes:
        """Return the key as SubjectPublicKeyInfo in PEM, the content of a `.pub` file."""
        return Ed25519PublicKey.from_public_bytes(self.raw).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a `.pub` file; SigningKeyError when it cannot be read or is no such key."""
        return cls.from_pem(_read_key_file(path, private=False))

    def save(self, path: Path) -> None:
        """Write a new `.pub` file, readable by all; SigningKeyError when a file is there already."""
        _write_new_file(path, self.to_pem(), mode=0o644)

    def fits(self, signature: bytes, message: bytes) -> bool:
        """Return whether the holder of the private key signed this message."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except InvalidSignature:
            return False
        return True


class SigningKey:
    """A private key that signs bundles. It shows its public id and nothing else.

    Examples
    --------
    >>> key = SigningKey.generate()
    >>> verify_signature(b"{}", key.sign(b"{}"), TrustStore(frozenset({key.public}))).state
    <SignatureState.TRUSTED: 'trusted'>
    """

    __slots__ = ("_key",)

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    def __repr__(self) -> str:
        return f"SigningKey({self.public.key_id})"

    @classmethod
    def generate(cls) -> Self:
        """Make a new key from the system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a private key (PKCS #8 in PEM, not encrypted).

        Raises
        ------
        SigningKeyError
            When the file cannot be read, is no Ed25519 private key, or others than its owner may touch it.
        """
        try:
            key = load_pem_private_key(_read_key_file(path, private=True), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: the key is encrypted
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise SigningKeyError("The signing key file is not an unencrypted Ed25519 private key in PEM form.")
        return cls(key)

    def save(self, path: Path) -> None:
        """Write the key to a new file that only its owner can read; SigningKeyError when a file is there already."""
        pem = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        _write_new_file(path, pem, mode=0o600)

    @property
    def public(self) -> PublicKey:
        """Return the key that others need to check what this one signed."""
        return PublicKey(self._key.public_key().public_bytes_raw())

    def sign(self, manifest: bytes) -> bytes:
        """Return the content of the bundle's `signature` file for these manifest bytes."""
        public = self.public
        return canonical_json(
            {
                "schema": SIGNATURE_SCHEMA,
                "algorithm": ALGORITHM,
                "key_id": public.key_id,
                "public_key": base64.b64encode(public.raw).decode("ascii"),
                "signature": base64.b64encode(self._key.sign(DOMAIN + manifest)).decode("ascii"),
            }
        )


@dataclass(frozen=True)
class TrustStore:
    """The public keys whose bundles this installation takes as made by someone it knows."""

    keys: frozenset[PublicKey]

    @classmethod
    def load(cls, *folders: Path) -> Self:
        """Read every `*.pub` file of the folders that exist; SigningKeyError for one that is no public key, rather than trust in part."""
        return cls(frozenset(PublicKey.load(path) for folder in folders for path in sorted(folder.glob("*.pub"))))

    @classmethod
    def default(cls) -> Self:
        """Read the keys that ship with the package, and those in `trusted_keys` of the user's configuration folder."""
        own = user_folder("config")
        return cls.load(SHIPPED_TRUSTED_KEYS, *([own / "trusted_keys"] if own else []))


def own_signing_key() -> tuple[SigningKey, bool]:
    """Return this user's signing key, made and trusted here if there is none yet, and whether it was made.

    Raises
    ------
    SigningKeyError
        The process has no home folder, the key cannot be read or written, or others may read it.
    """
    path = default_key_path()
    if path.exists():
        return SigningKey.load(path), False
    key = SigningKey.generate()
    # Trust first: a crash between the two then leaves a public key that signed nothing, not a key that signs what is not trusted.
    key.public.save(path.parent.parent / "trusted_keys" / f"{key.public.key_id}.pub")
    key.save(path)
    return key, True


class SignatureState(StrEnum):
    """What a bundle's signature says; one that does not fit is an error and no state."""

    TRUSTED = "trusted"
    UNTRUSTED = "untrusted"
    UNSIGNED = "unsigned"


@dataclass(frozen=True)
class SignatureStatus:
    """The signature's state and, where there is one, the id of the key that made it."""

    state: SignatureState
    key_id: str | None = None


UNSIGNED = SignatureStatus(SignatureState.UNSIGNED)


def verify_signature(manifest: bytes, signature: bytes | None, trusted: TrustStore) -> SignatureStatus:
    """Check a bundle's signature over the raw bytes of its manifest, before anyone parses these.

    Parameters
    ----------
    manifest
        The bytes of `manifest.json` as they lie on disk.
    signature
        The bytes of the `signature` file, None where there is none.
    trusted
        The keys to trust.

    Raises
    ------
    BundleSchemaError
        The signature file is not of the form this version writes.
    BundleTamperedError
        The manifest is not what was signed, or the signature file was changed.
    """
    if signature is None:
        return UNSIGNED
    fields = _signature_fields(signature)
    public = _decoded(fields["public_key"], 32)
    value = _decoded(fields["signature"], 64)
    key = PublicKey(public)
    if fields["key_id"] != key.key_id or not key.fits(value, DOMAIN + manifest):
        raise BundleTamperedError(
            "signature: it does not fit manifest.json; one of the two was changed or comes from another bundle. Get the bundle from its source again."
        )
    return SignatureStatus(SignatureState.TRUSTED if key in trusted.keys else SignatureState.UNTRUSTED, key.key_id)


def require_trust(status: SignatureStatus) -> None:
    """Raise BundleUntrustedError unless a trusted key signed."""
    if status.state is SignatureState.UNSIGNED:
        raise BundleUntrustedError("signature: there is none, and a signature by a trusted key is required; ask the publisher for a signed bundle.")
    if status.state is SignatureState.UNTRUSTED:
        raise BundleUntrustedError(
            f"signature: made by key {status.key_id}, which is not trusted here. Check that id with the publisher by another way, then put their "
            "public key (.pub) into the folder trusted_keys of your clinical-ser configuration."
        )


def _signature_fields(raw: bytes) -> Mapping[str, str]:
    try:
        fields = parse_canonical_object(raw)
    except StrictJsonError as error:
        raise BundleSchemaError(f"signature: {error}. Get the bundle from its source again.") from None
    if fields.get("schema") != SIGNATURE_SCHEMA or fields.get("algorithm") != ALGORITHM:
        raise BundleSchemaError(f"signature: schema or algorithm unknown, this version reads {SIGNATURE_SCHEMA!r} with {ALGORITHM!r}.")
    texts = {name: value for name, value in fields.items() if isinstance(value, str)}
    if texts.keys() != _SIGNATURE_FIELDS or len(fields) != len(texts):
        raise BundleSchemaError(f"signature: needs the fields {sorted(_SIGNATURE_FIELDS)} as text, and no other.")
    return texts


def _decoded(text: str, length: int) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raw = b""
    # Encoding again shuts out the second spellings that base64 allows (bits set in the padding).
    if len(raw) != length or base64.b64encode(raw).decode("ascii") != text:
        raise BundleTamperedError(f"signature: a field is not {length} bytes in base64; the file was changed. Get the bundle from its source again.")
    return raw


def _read_key_file(path: Path, *, private: bool) -> bytes:
    what = "signing key" if private else "public key"
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if private and mode & _OTHERS_MAY:
                raise SigningKeyError(
                    f"The signing key file has mode {stat.S_IMODE(mode):04o}, so others than its owner may use it; run chmod 600 on it, "
                    "and make a new key if someone else may have read it."
                )
            raw = file.read(_MAX_KEY_FILE_BYTES + 1)
    except OSError as error:
        raise SigningKeyError(f"The {what} file cannot be read: {error.strerror}.") from None
    if len(raw) > _MAX_KEY_FILE_BYTES:
        raise SigningKeyError(f"The {what} file is too long to be one.")
    return raw


def _write_new_file(path: Path, content: bytes, *, mode: int) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_new_file(path, content, mode=mode)
    except FileExistsError:
        raise SigningKeyError("A file is there already, and a key is never overwritten; move it away first, or choose another place.") from None
    except OSError as error:
        raise SigningKeyError(f"The key cannot be written: {error.strerror}.") from None
