r"""Cosignatures: "at this time, this was the largest tree of that log that I have seen" (C2SP tlog-cosignature).

Two kinds. The Ed25519 one signs a header and the checkpoint's whole text. The ML-DSA-44 one signs a binary structure of the cosigner's name,
origin, size and root, so it holds against quantum computers and a change of name, and says nothing about extension lines.
"""

import struct
import time
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from clinical_ser.audit.checkpoint import Checkpoint
from clinical_ser.audit.notes import Algorithm, VerifierKey, ed25519_fits
from clinical_ser.errors import AuditFormatError, AuditKeyError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

    from clinical_ser.audit.notes import NoteSigner

Clock = Callable[[], float]
"""Seconds since the Epoch."""

_TIMESTAMP = struct.Struct(">Q")
_MAX_TIMESTAMP = 2**63 - 1
_ED25519_SIGNATURE_BYTES = 64
_ML_DSA_44_SIGNATURE_BYTES = 2420
# The last two bytes are a newline and a zero: no note text can start like this, so no signature is good for both.
_ML_DSA_LABEL = b"subtree/v1\n\x00"
_MAX_NAME_BYTES = 255


class Ed25519Cosigner:
    """An Ed25519 key, wherever it is kept (in memory, in a device), that cosigns checkpoints (type 0x04) through a signer of bytes as they are.

    The signed message does not name the cosigner: a key must be used under one name only (tlog-cosignature).
    """

    __slots__ = ("_clock", "_signer", "key")

    def __init__(self, signer: "NoteSigner", *, clock: Clock = time.time) -> None:
        self._signer = signer
        self._clock = clock
        self.key = VerifierKey(signer.key.name, Algorithm.ED25519_COSIGNATURE, signer.key.public)

    def sign(self, text: bytes) -> bytes:
        """Return time and signature, 72 bytes; AuditFormatError when the text is no checkpoint's."""
        timestamp = int(self._clock())
        return _stamped(timestamp, self._signer.sign(_ed25519_message(timestamp, text)))


class MlDsa44Cosigner:
    """An ML-DSA-44 key in memory that cosigns checkpoints (type 0x06); a log may sign its own ones with it (tlog-checkpoint)."""

    __slots__ = ("_clock", "_private", "key")

    def __init__(self, name: str, private: "MLDSA44PrivateKey", *, clock: Clock = time.time) -> None:
        self._private = private
        self._clock = clock
        self.key = VerifierKey(name, Algorithm.ML_DSA_44_COSIGNATURE, private.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"MlDsa44Cosigner({self.key.name}+{self.key.key_id:08x})"

    def sign(self, text: bytes) -> bytes:
        """Return time and signature, 2428 bytes, never the same twice; AuditFormatError when the text is no checkpoint's."""
        timestamp = int(self._clock())
        return _stamped(timestamp, self._private.sign(_ml_dsa_message(self.key.name, timestamp, text)))


def timestamp_of(signature: bytes) -> int:
    """Return when a cosignature was made, in seconds since the Epoch; 0 where an ML-DSA-44 cosigner says nothing about the time.

    Parameters
    ----------
    signature
        What the line of a key of type 4 or 6 holds after the key id.

    Raises
    ------
    AuditFormatError
        It is too short to hold a time, or the time is past 2^63 - 1.
    """
    if len(signature) <= _TIMESTAMP.size:
        raise AuditFormatError("A cosignature holds eight bytes of time and a signature.")
    timestamp: int = _TIMESTAMP.unpack_from(signature)[0]
    if timestamp > _MAX_TIMESTAMP:
        raise AuditFormatError("A cosignature's time is past 2^63 - 1.")
    return timestamp


def ed25519_cosignature_fits(public: bytes, text: bytes, signature: bytes) -> bool:
    """Return whether these 72 bytes are the key's cosignature of a checkpoint's text."""
    if len(signature) != _TIMESTAMP.size + _ED25519_SIGNATURE_BYTES:
        return False
    try:
        message = _ed25519_message(timestamp_of(signature), text)
    except AuditFormatError:
        return False
    return ed25519_fits(public, message, signature[_TIMESTAMP.size :])


def ml_dsa_44_cosignature_fits(name: str, public: bytes, text: bytes, signature: bytes) -> bool:
    """Return whether these 2428 bytes are the named cosigner's cosignature of a checkpoint's text, extension lines aside."""
    if len(signature) != _TIMESTAMP.size + _ML_DSA_44_SIGNATURE_BYTES:
        return False
    try:
        message = _ml_dsa_message(name, timestamp_of(signature), text)
    except AuditFormatError:
        return False
    module = ml_dsa_module()
    try:
        module.MLDSA44PublicKey.from_public_bytes(public).verify(signature[_TIMESTAMP.size :], message)
    except InvalidSignature:
        return False
    except UnsupportedAlgorithm:
        raise _no_ml_dsa() from None
    return True


def ml_dsa_module() -> ModuleType:
    """Return cryptography's ML-DSA; AuditKeyError where the installed version has none, as the oldest that we support."""
    try:
        from cryptography.hazmat.primitives.asymmetric import mldsa
    except ImportError:
        raise _no_ml_dsa() from None
    return mldsa


def _no_ml_dsa() -> AuditKeyError:
    return AuditKeyError("The installed cryptography library has no ML-DSA-44; install a newer one (pip install --upgrade cryptography).")


def _stamped(timestamp: int, signature: bytes) -> bytes:
    return _TIMESTAMP.pack(timestamp) + signature


def _ed25519_message(timestamp: int, text: bytes) -> bytes:
    _checkpoint_in(text)
    return b"cosignature/v1\ntime %d\n%b" % (timestamp, text)


def _ml_dsa_message(name: str, timestamp: int, text: bytes) -> bytes:
    """Return the `cosigned_message` structure for a whole tree, which starts at leaf 0."""
    checkpoint = _checkpoint_in(text)
    return b"".join(
        (
            _ML_DSA_LABEL,
            _opaque(name),
            _TIMESTAMP.pack(timestamp),
            _opaque(checkpoint.origin),
            struct.pack(">QQ", 0, checkpoint.size),
            checkpoint.root,
        )
    )


def _checkpoint_in(text: bytes) -> Checkpoint:
    try:
        return Checkpoint.parse(text.decode())
    except UnicodeDecodeError:
        raise AuditFormatError("A checkpoint's text is not UTF-8.") from None


def _opaque(text: str) -> bytes:
    """Return TLS's `opaque<1..2^8-1>`: one byte of length, then the bytes."""
    raw = text.encode()
    if not 1 <= len(raw) <= _MAX_NAME_BYTES:
        raise AuditFormatError(f"A name or origin that ML-DSA-44 signs has between 1 and {_MAX_NAME_BYTES} bytes, not {len(raw)}.")
    return bytes([len(raw)]) + raw
