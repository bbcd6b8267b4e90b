"""Masks that cancel in the sum over all sites, and in no other.

The one idea: each pair of sites has a stream that only the two can make. One adds it, the other subtracts it; whoever lacks one answer of the set
has only noise. Primitives are the `cryptography` package's: X25519 (RFC 7748), HKDF-SHA256 (RFC 5869), ChaCha20 (RFC 8439). Ours is the sign.
"""

import hashlib
from collections.abc import Mapping

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from clinical_ser.errors import FederationError
from federated.fixed_point import Words

PURPOSE = b"clinical-ser pairwise mask v1\n"
BLOCK_BYTES = 1 << 16
"""What fits a processor's cache is encrypted at once."""


def context_of(run: bytes, step: int, request: bytes, layout: bytes, sites: Mapping[str, bytes]) -> bytes:
    """Return the digest that a mask is bound to: run, step, what was asked, the shape of the answer, and who is in the sum with which key."""
    parts = [run, step.to_bytes(8, "big"), request, layout, *(name.encode() + b"\0" + key for name, key in sorted(sites.items()))]
    return hashlib.sha256(PURPOSE + b"".join(hashlib.sha256(part).digest() for part in parts)).digest()


def mask(own: str, private: X25519PrivateKey, public: Mapping[str, bytes], context: bytes, words: int) -> Words:
    """Return what site `own` adds to its answer.

    Parameters
    ----------
    own, private
        The site, and its key of this run.
    public
        Every site's public key of this run, 32 bytes each, its own among them.
    context
        As `context_of` returns it; masks of two contexts have nothing in common.
    words
        Length of the answer.

    Returns
    -------
    ndarray of shape (words,)
        Summed over all sites of `public`, 0 modulo 2⁶⁴.

    Raises
    ------
    FederationError
        There is no other site, or a key is not one.
    """
    if set(public) == {own} or own not in public:
        raise FederationError("A mask needs at least one other site.")
    total = np.zeros(words, np.uint64)
    for name, key in public.items():
        if name != own:
            stream = _stream(_secret(private, key, own, name, context), words)
            (np.add if own < name else np.subtract)(total, stream, out=total)
    return total


def _secret(private: X25519PrivateKey, public: bytes, own: str, other: str, context: bytes) -> bytes:
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise FederationError("A site's key for this run cannot be used.") from None
    pair = "\0".join(sorted((own, other))).encode()
    return HKDF(SHA256(), 32, salt=context, info=PURPOSE + pair).derive(shared)


def _stream(key: bytes, words: int) -> Words:
    # The key is used once, so the nonce may be constant; the counter of ChaCha20 has 32 bits of 64-byte blocks.
    if words * 8 >= 64 << 32:
        raise FederationError("An answer is too long for one mask.")
    encryptor = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()
    found = bytearray(words * 8)
    into = memoryview(found)
    zeros = bytes(min(BLOCK_BYTES, len(found)))
    for start in range(0, len(found), BLOCK_BYTES):
        part = into[start : start + BLOCK_BYTES]
        encryptor.update_into(zeros[: len(part)], part)
    return np.frombuffer(found, "<u8").astype(np.uint64, copy=False)
