"""The RFC 6962 Merkle tree: hashing, growing, proving and checking.

The one idea: a tree of any size is a row of perfect subtrees, each twice as large as some later one; everything is said in their roots. The roots of
perfect subtrees of 256 leaves, of 256 of those, and so on, are what a log keeps (they are the tiles of c2sp.org/tlog-tiles); all else is hashed anew.
"""

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Protocol

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()
"""The root of a tree without leaves (RFC 6962 section 2.1)."""

TILE_HEIGHT = 8
TILE_WIDTH = 1 << TILE_HEIGHT
"""Hashes in a full tile (c2sp.org/tlog-tiles)."""

_sha256 = hashlib.sha256


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of a leaf: SHA-256(0x00 || data)."""
    return _sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node: SHA-256(0x01 || left || right)."""
    return _sha256(b"\x01" + left + right).digest()


def parents(hashes: Sequence[bytes]) -> list[bytes]:
    """Return the hashes one level up of an even number of neighbours."""
    sha256 = _sha256
    return [sha256(b"\x01" + left + right).digest() for left, right in zip(hashes[::2], hashes[1::2], strict=True)]


def perfect_root(hashes: Sequence[bytes]) -> bytes:
    """Return the root over 2**k hashes of equally large perfect subtrees."""
    row = list(hashes)
    while len(row) > 1:
        row = parents(row)
    return row[0]


class Frontier:
    """The right edge of a growing tree: the roots of its perfect subtrees, largest first. All that a writer needs to go on.

    Parameters
    ----------
    size
        Number of leaves.
    roots
        One hash for each bit that is set in `size`, the highest first.

    Examples
    --------
    >>> tree = Frontier()
    >>> tree.append(leaf_hash(b"first"))
    >>> tree.size, tree.root == leaf_hash(b"first")
    (1, True)
    """

    __slots__ = ("_roots", "size")

    def __init__(self, size: int = 0, roots: Iterable[bytes] = ()) -> None:
        self.size = size
        self._roots = list(roots)
        if len(self._roots) != size.bit_count():
            raise ValueError(f"a tree of {size} leaves has {size.bit_count()} perfect subtrees, not {len(self._roots)}")

    def copy(self) -> "Frontier":
        """Return the same edge, to grow a draft from."""
        return Frontier(self.size, self._roots)

    def append(self, digest: bytes) -> None:
        """Add a leaf by its hash."""
        self._push(digest, self.size)
        self.size += 1

    def extend_by_tile(self, root: bytes) -> None:
        """Add 256 leaves at once by the root over them; the size has to be a multiple of 256."""
        if self.size % TILE_WIDTH:
            raise ValueError(f"a full tile starts at a multiple of {TILE_WIDTH}, not at {self.size}")
        self._push(root, self.size >> TILE_HEIGHT)
        self.size += TILE_WIDTH

    def _push(self, digest: bytes, position: int) -> None:
        roots = self._roots
        while position & 1:
            digest = node_hash(roots.pop(), digest)
            position >>= 1
        roots.append(digest)

    @property
    def root(self) -> bytes:
        """The Merkle tree hash of all leaves so far."""
        return fold(self._roots)


def fold(roots: Sequence[bytes]) -> bytes:
    """Return the root over perfect subtrees that stand beside each other, largest first."""
    if not roots:
        return EMPTY_ROOT
    digest = roots[-1]
    for root in reversed(roots[:-1]):
        digest = node_hash(root, digest)
    return digest


class Tiles(Protocol):
    """Where a prover reads from."""

    def tile(self, level: int, n: int) -> Sequence[bytes]:
        """Return the hashes of the n-th tile of a level, up to 256: leaf hashes at level 0, roots of full tiles below at the others."""


class Prover:
    """Makes proofs about a tree of fixed size, from its tiles.

    A proof reads one tile a level and edge, so one of a million leaves costs at most a handful of reads of 8 KiB.

    Parameters
    ----------
    tiles
        Where the hashes are.
    size
        Number of leaves; there may be more in the tiles.
    """

    def __init__(self, tiles: Tiles, size: int) -> None:
        self._size = size
        self._pyramid = lru_cache(maxsize=64)(self._read_pyramid)
        self._tiles = tiles

    def root(self, size: int | None = None) -> bytes:
        """Return the root of the tree, or of a smaller one that it grew from."""
        return self._range(0, self._size if size is None else size)

    def frontier(self) -> Frontier:
        """Return the right edge, to go on from."""
        return Frontier(self._size, [self._subtree(level, n) for level, n in _perfect_subtrees(0, self._size)])

    def inclusion(self, index: int) -> list[bytes]:
        """Return the audit path of a leaf, its sibling first (RFC 6962 section 2.1.1).

        Raises
        ------
        ValueError
            The tree has no such leaf.
        """
        if not 0 <= index < self._size:
            raise ValueError(f"the tree has leaves 0 to {self._size - 1}, not {index}")
        path, start, end = [], 0, self._size
        while end - start > 1:
            middle = start + _split(end - start)
            if index < middle:
                path.append(self._range(middle, end))
                end = middle
            else:
                path.append(self._range(start, middle))
                start = middle
        return path[::-1]

    def consistency(self, old: int) -> list[bytes]:
        """Return the proof that the tree grew from one of `old` leaves (RFC 6962 section 2.1.2); empty for 0 and for the same size.

        Raises
        ------
        ValueError
            The tree is smaller.
        """
        if not 0 <= old <= self._size:
            raise ValueError(f"the tree has {self._size} leaves, which is fewer than {old}")
        if old in {0, self._size}:
            return []
        proof, start, end = [], 0, self._size
        while end != old:
            middle = start + _split(end - start)
            if old <= middle:
                proof.append(self._range(middle, end))
                end = middle
            else:
                proof.append(self._range(start, middle))
                start = middle
        if start:
            proof.append(self._range(start, end))
        return proof[::-1]

    def _range(self, start: int, end: int) -> bytes:
        return fold([self._subtree(level, n) for level, n in _perfect_subtrees(start, end)])

    def _subtree(self, level: int, n: int) -> bytes:
        """Return the root of the perfect subtree over leaves n * 2**level up to (n + 1) * 2**level."""
        tile_level, height = divmod(level, TILE_HEIGHT)
        span = TILE_HEIGHT - height
        return self._pyramid(tile_level, n >> span)[height][n & ((1 << span) - 1)]

    def _read_pyramid(self, level: int, n: int) -> list[list[bytes]]:
        row = list(self._tiles.tile(level, n))
        pyramid = [row]
        while len(row) > 1:
            row = parents(row[: len(row) // 2 * 2])
            pyramid.append(row)
        return pyramid


def _split(size: int) -> int:
    """Return the largest power of two that is smaller."""
    return 1 << ((size - 1).bit_length() - 1)


def _perfect_subtrees(start: int, end: int) -> list[tuple[int, int]]:
    """Return level and number of the perfect subtrees that make up a range as RFC 6962 splits it, from left to right."""
    subtrees = []
    while start < end:
        level = (end - start).bit_length() - 1
        if start:
            level = min(level, (start & -start).bit_length() - 1)
        subtrees.append((level, start >> level))
        start += 1 << level
    return subtrees


def verify_inclusion(index: int, size: int, digest: bytes, path: Sequence[bytes], root: bytes) -> bool:
    """Tell whether a leaf's hash is at an index of a tree (RFC 9162 section 2.1.3.2).

    Parameters
    ----------
    index, size
        The leaf's place, from 0, and the number of leaves.
    digest
        The leaf's hash (`leaf_hash`).
    path
        The audit path, the leaf's sibling first.
    root
        The tree's root, which the caller has from a checkpoint it trusts.
    """
    if not 0 <= index < size:
        return False
    place, last = index, size - 1
    for sibling in path:
        if last == 0:
            return False
        if place & 1 or place == last:
            digest = node_hash(sibling, digest)
            while place and not place & 1:
                place >>= 1
                last >>= 1
        else:
            digest = node_hash(digest, sibling)
        place >>= 1
        last >>= 1
    return last == 0 and digest == root


def verify_consistency(old_size: int, new_size: int, old_root: bytes, new_root: bytes, path: Sequence[bytes]) -> bool:
    """Tell whether a tree grew from an older one, nothing removed or changed (RFC 9162 section 2.1.4.2).

    From an empty tree everything grew, and a tree grew from itself; either needs an empty path.
    """
    if not 0 <= old_size <= new_size:
        return False
    if old_size in {0, new_size}:
        return not path and old_root == (EMPTY_ROOT if old_size == 0 else new_root) and (old_size < new_size or old_root == new_root)
    hashes = list(path)
    if old_size & (old_size - 1) == 0:
        hashes.insert(0, old_root)
    if not hashes:
        return False
    place, last = old_size - 1, new_size - 1
    while place & 1:
        place >>= 1
        last >>= 1
    old = new = hashes[0]
    for digest in hashes[1:]:
        if last == 0:
            return False
        if place & 1 or place == last:
            old = node_hash(digest, old)
            new = node_hash(digest, new)
            while place and not place & 1:
                place >>= 1
                last >>= 1
        else:
            new = node_hash(new, digest)
        place >>= 1
        last >>= 1
    return last == 0 and old == old_root and new == new_root
