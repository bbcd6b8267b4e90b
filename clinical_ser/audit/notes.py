"""Signed notes: a text that anyone can read, with lines under it that say who stands for it (C2SP signed-note v1).

A note means nothing until a signature of a key that the reader already knows has been checked, so there is one way to a text: `open_note`.
Everything has one spelling (base64, key ids, line ends): two programs that read the same bytes must not see two notes.
"""

import base64
import binascii
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from clinical_ser.errors import AuditFormatError, AuditKeyError, AuditTamperedError

# signed-note asks for a limit that lets at least 16 signatures through; an ML-DSA-44 line has 3.3 kB, so 64 of them fit in 256 KiB.
MAX_SIGNATURES = 64
MAX_NOTE_BYTES = 256 * 1024

_SIGNATURE_PREFIX = "— "
_KEY_ID_BYTES = 4
_CONTROL_BESIDES_NEWLINE = re.compile(r"[\x00-\x09\x0b-\x1f]")
_EIGHT_HEX = re.compile(r"[0-9a-f]{8}")


class Algorithm(IntEnum):
    """The signature types of signed-note and tlog-cosignature that are read here; the value is the type's byte."""

    ED25519 = 1
    ED25519_COSIGNATURE = 4
    ML_DSA_44_COSIGNATURE = 6


# The y coordinates of the points of order 1, 2, 4 and 8 of edwards25519 (RFC 8032 section 5.1; libsodium refuses the same). Under such a key one
# signature fits many messages: 64 zero bytes fit every message under the key of 32 zero bytes.
_PRIME = 2**255 - 19
_ORDER_8 = 0x5FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_WEAK = frozenset({0, 1, _PRIME - 1, _ORDER_8, _PRIME - _ORDER_8})

_PUBLIC_BYTES = {Algorithm.ED25519: 32, Algorithm.ED25519_COSIGNATURE: 32, Algorithm.ML_DSA_44_COSIGNATURE: 1312}


@dataclass(frozen=True)
class VerifierKey:
    """A public key with the name it signs under: what a reader has to know beforehand.

    Parameters
    ----------
    name
        Who signs; of a log, its origin. Not empty, without spaces, plus signs and control characters.
    algorithm
        What the signature is, and over what.
    public
        32 bytes for Ed25519 (RFC 8032), 1312 for ML-DSA-44 (FIPS 204).

    Raises
    ------
    AuditFormatError
        The name or the key's length does not fit, or the key is one under which anyone can sign.

    Examples
    --------
    >>> key = VerifierKey.parse("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    >>> key.name, hex(key.key_id)
    ('PeterNeumann', '0xc74f20a3')
    """

    name: str
    algorithm: Algorithm
    public: bytes

    def __post_init__(self) -> None:
        if not _is_key_name(self.name) or any(unicodedata.category(character) == "Cc" for character in self.name):
            raise AuditFormatError("A key's name is empty, or holds a space, a plus sign or a control character.")
        expected = _PUBLIC_BYTES[self.algorithm]
        if len(self.public) != expected:
            raise AuditFormatError(f"A public key of type {self.algorithm.value} has {expected} bytes, not {len(self.public)}.")
        if self.algorithm is not Algorithm.ML_DSA_44_COSIGNATURE and _is_weak(self.public):
            raise AuditFormatError("An Ed25519 public key is a point of small order, under which anyone can sign.")

    @property
    def key_id(self) -> int:
        """Return the number that signature lines carry: SHA-256 of name and key, cut to 32 bits. It finds the key and proves nothing."""
        digest = hashlib.sha256(self.name.encode() + b"\n" + self._typed_public).digest()
        return int.from_bytes(digest[:_KEY_ID_BYTES], "big")

    @classmethod
    def parse(cls, vkey: str) -> Self:
        """Read a key in its text form, `name+8 hex digits+base64`.

        Raises
        ------
        AuditFormatError
            It is not of that form, of an algorithm that is not known here, or its id is not that of name and key.
        """
        parts = vkey.split("+", 2)
        if len(parts) != 3 or not _EIGHT_HEX.fullmatch(parts[1]):
            raise AuditFormatError("A verifier key is not of the form name+8 hex digits+base64.")
        name, key_id, encoded = parts
        typed = decode_base64(encoded, "A verifier key")
        if typed[0] not in set(Algorithm):
            raise AuditFormatError(f"A verifier key is of type {typed[0]}, which this version does not know.")
        key = cls(name, Algorithm(typed[0]), typed[1:])
        if f"{key.key_id:08x}" != key_id:
            raise AuditFormatError(f"A verifier key says that its id is {key_id}, and its name and key make it {key.key_id:08x}.")
        return key

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id:08x}+{base64.b64encode(self._typed_public).decode()}"

    def fits(self, text: bytes, signature: bytes) -> bool:
        """Return whether the holder of this key signed the text.

        Parameters
        ----------
        text
            A note's text, its last newline included.
        signature
            What a signature line holds after the key id; with the eight bytes of time where it is a cosignature.

        Raises
        ------
        AuditKeyError
            The installed cryptography library does not have the key's algorithm.
        """
        # Cosignatures are over checkpoints, and checkpoints are notes: imported here to break that circle.
        from clinical_ser.audit import cosignatures

        if self.algorithm is Algorithm.ED25519:
            return ed25519_fits(self.public, text, signature)
        if self.algorithm is Algorithm.ED25519_COSIGNATURE:
            return cosignatures.ed25519_cosignature_fits(self.public, text, signature)
        return cosignatures.ml_dsa_44_cosignature_fits(self.name, self.public, text, signature)

    @property
    def _typed_public(self) -> bytes:
        return bytes([self.algorithm]) + self.public


class NoteSigner(Protocol):
    """Whoever can sign a note: a key in memory, in a device, or a witness."""

    @property
    def key(self) -> VerifierKey:
        """Return the public half."""
        ...

    def sign(self, text: bytes) -> bytes:
        """Return the signature over a note's text: what a signature line holds after the key id."""
        ...


class Ed25519Signer:
    """An Ed25519 key in memory that signs note texts (type 0x01). It shows its public half and nothing else."""

    __slots__ = ("_private", "key")

    def __init__(self, name: str, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.key = VerifierKey(name, Algorithm.ED25519, private.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"Ed25519Signer({self.key})"

    def sign(self, text: bytes) -> bytes:
        """Return the 64 bytes over the text as it is."""
        return self._private.sign(text)


@dataclass(frozen=True)
class NoteSignature:
    """One signature line: whose it says it is, and the bytes. Checked by nobody yet."""

    name: str
    key_id: int
    signature: bytes

    @property
    def line(self) -> str:
        """Return the line as it stands in a note, newline included."""
        encoded = base64.b64encode(self.key_id.to_bytes(_KEY_ID_BYTES, "big") + self.signature).decode()
        return f"{_SIGNATURE_PREFIX}{self.name} {encoded}\n"


@dataclass(frozen=True)
class Note:
    """A text with the signatures that were checked and those of keys that the reader does not know."""

    text: str
    verified: tuple[tuple[VerifierKey, NoteSignature], ...]
    unverified: tuple[NoteSignature, ...]


def sign_note(text: str, signers: Sequence[NoteSigner], existing: Sequence[NoteSignature] = ()) -> str:
    """Return the note with the signatures it has and those of the signers; a signer's older signature is replaced.

    Raises
    ------
    AuditFormatError
        The text does not end with a newline, or the result would be no note (a control character, a bad name, no signature, too many).
    """
    if not text.endswith("\n"):
        raise AuditFormatError("A note's text ends with a newline.")
    raw = _encoded(text)
    new = [NoteSignature(signer.key.name, signer.key.key_id, signer.sign(raw)) for signer in signers]
    replaced = {(signature.name, signature.key_id) for signature in new}
    kept = [signature for signature in existing if (signature.name, signature.key_id) not in replaced]
    note = text + "\n" + "".join(signature.line for signature in [*kept, *new])
    if parse_note(note) != (text, (*kept, *new)):
        raise AuditFormatError("A signature to keep would not be read back as it is.")
    return note


def parse_note(note: str | bytes) -> tuple[str, tuple[NoteSignature, ...]]:
    """Take a note apart without checking any signature.

    Returns
    -------
    text
        What was signed, its last newline included. Not to be believed: that is what `open_note` is for.
    signatures
        At least one, in the note's order, repeated ones included.

    Raises
    ------
    AuditFormatError
        Not UTF-8, a control character, no signature block, a line in it that is no signature, base64 with a second spelling, more than
        `MAX_SIGNATURES` or `MAX_NOTE_BYTES`.
    """
    content = decode_text(note, "A note", MAX_NOTE_BYTES)
    if _CONTROL_BESIDES_NEWLINE.search(content):
        raise AuditFormatError("A note holds a control character besides newlines.")
    split = content.rfind("\n\n")
    block = content[split + 2 :]
    if split < 0 or not block.endswith("\n"):
        raise AuditFormatError("A note is a text, an empty line and signature lines, each ended by a newline.")
    lines = block[:-1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise AuditFormatError(f"A note has {len(lines)} signature lines; at most {MAX_SIGNATURES} are read.")
    return content[: split + 1], tuple(_parse_signature(line) for line in lines)


def open_note(note: str | bytes, keys: Iterable[VerifierKey]) -> Note:
    """Read a note that at least one known key signed.

    Of two signatures by one key the first counts, and a repeated line of an unknown key is dropped, as in Go's sumdb/note.

    Parameters
    ----------
    note
        The whole note.
    keys
        The keys that the reader knows; signatures of others are set aside, unchecked.

    Raises
    ------
    AuditFormatError
        It is no note.
    AuditTamperedError
        A known key's signature does not fit the text, or no known key signed it.
    AuditKeyError
        Two of the known keys have the name and id that a signature names.
    """
    text, signatures = parse_note(note)
    known = _by_name_and_id(keys)
    raw = _encoded(text)
    verified: dict[tuple[str, int], tuple[VerifierKey, NoteSignature]] = {}
    unverified: dict[NoteSignature, None] = {}
    for signature in signatures:
        identity = (signature.name, signature.key_id)
        if identity not in known:
            unverified[signature] = None
        elif identity not in verified:
            key = _only(known[identity])
            if not key.fits(raw, signature.signature):
                raise AuditTamperedError(f"The signature of {key.name}+{key.key_id:08x} does not fit the note: one of the two was changed.")
            verified[identity] = (key, signature)
    if not verified:
        raise AuditTamperedError(f"None of the note's {len(signatures)} signatures is by a key that is known here, so nothing in it can be believed.")
    return Note(text, tuple(verified.values()), tuple(unverified))


def ed25519_fits(public: bytes, message: bytes, signature: bytes) -> bool:
    """Return whether an Ed25519 signature (RFC 8032) is over these bytes."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except InvalidSignature:
        return False
    return True


def decode_base64(text: str, what: str) -> bytes:
    """Return the bytes of standard base64 (RFC 4648 section 4) in its one spelling, never none; AuditFormatError names `what` otherwise."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raw = b""
    # Encoding again shuts out the second spellings that base64 allows (bits set in the padding).
    if not raw or base64.b64encode(raw).decode() != text:
        raise AuditFormatError(f"{what} holds what is not base64 in its one spelling.")
    return raw


def decode_text(content: str | bytes, what: str, max_bytes: int) -> str:
    """Return text that came as text or as UTF-8 and is not longer than it may be; AuditFormatError names `what` otherwise."""
    raw = _encoded(content, what) if isinstance(content, str) else content
    if len(raw) > max_bytes:
        raise AuditFormatError(f"{what} of more than {max_bytes} bytes is not read.")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise AuditFormatError(f"{what} is not UTF-8.") from None


def _encoded(text: str, what: str = "A note") -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise AuditFormatError(f"{what} holds half of a surrogate pair, which has no UTF-8.") from None


def _parse_signature(line: str) -> NoteSignature:
    name, _, encoded = line.removeprefix(_SIGNATURE_PREFIX).partition(" ")
    if not line.startswith(_SIGNATURE_PREFIX) or not _is_key_name(name):
        raise AuditFormatError("A line after a note's last empty line is no signature: em dash, space, name, space, base64.")
    raw = decode_base64(encoded, "A signature line")
    if len(raw) <= _KEY_ID_BYTES:
        raise AuditFormatError("A signature line holds a key id at most, and no signature.")
    return NoteSignature(name, int.from_bytes(raw[:_KEY_ID_BYTES], "big"), raw[_KEY_ID_BYTES:])


def _is_key_name(name: str) -> bool:
    # What signed-note asks, and no more: other people's names may hold what ours may not, and must still be read.
    if not name or "+" in name or any(character.isspace() for character in name):
        return False
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _is_weak(public: bytes) -> bool:
    y = int.from_bytes(public, "little") & (2**255 - 1)  # without the sign of x
    return y % _PRIME in _WEAK


def _by_name_and_id(keys: Iterable[VerifierKey]) -> dict[tuple[str, int], list[VerifierKey]]:
    known: dict[tuple[str, int], list[VerifierKey]] = {}
    for key in keys:
        known.setdefault((key.name, key.key_id), []).append(key)
    return known


def _only(keys: Sequence[VerifierKey]) -> VerifierKey:
    """Return the one key; two with the same 32-bit id are somebody's attack on the list of keys, or a key listed twice."""
    if len(keys) > 1:
        raise AuditKeyError(f"The known keys hold {keys[0].name}+{keys[0].key_id:08x} twice, so nobody can say which of them signed.")
    return keys[0]
