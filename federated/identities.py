"""Who says what: Ed25519 signatures over messages, each good for one purpose, one sender's role and nothing else."""

import os
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from clinical_ser.errors import FederationError
from clinical_ser.models.signing import PublicKey

REQUEST = b"clinical-ser federated request v1\n"
REPLY = b"clinical-ser federated reply v1\n"
LOCAL_HEADS = b"clinical-ser federated weights of local heads v1\n"
RUN_KEY = b"clinical-ser federated run key v1\n"


def run_key_message(plan: str, site: str, key: bytes) -> bytes:
    """Return what a site signs to say that this X25519 key is its own in the run of this plan."""
    return bytes.fromhex(plan) + site.encode() + b"\0" + key


def require(identity: str, purpose: bytes, message: bytes, signature: bytes, what: str) -> None:
    """Raise FederationError unless the holder of `identity` (hex) signed the message for this purpose."""
    if len(signature) != 64 or not PublicKey(bytes.fromhex(identity)).fits(signature, purpose + message):
        raise FederationError(f"{what} is not signed by the key that it should be signed by.")


class Identity:
    """A private key that speaks for a site, or for the coordinator. It shows its public half and nothing else."""

    __slots__ = ("_key",)

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    def __repr__(self) -> str:
        return f"Identity({self.public[:16]})"

    @classmethod
    def generate(cls) -> "Identity":
        """Make a new key from the system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> "Identity":
        """Read a key file (PKCS #8 in PEM) that only its owner may read; FederationError where it is not one."""
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                    raise FederationError("The identity's key file may be read by others; run chmod 600 on it, and make a new one if somebody did.")
                key = load_pem_private_key(file.read(16 * 1024), password=None)
        except OSError as error:
            raise FederationError(f"The identity's key cannot be read: {error.strerror}.") from None
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise FederationError("The identity's key is not an unencrypted Ed25519 key in PEM.")
        return cls(key)

    def to_pem(self) -> bytes:
        """Return the private key, for a file that only its owner may read."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def public(self) -> str:
        """The public key, 64 hex digits."""
        return self._key.public_key().public_bytes_raw().hex()

    def sign(self, purpose: bytes, message: bytes) -> bytes:
        """Return the signature of a message for one purpose."""
        return self._key.sign(purpose + message)
