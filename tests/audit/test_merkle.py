import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clinical_ser.audit.merkle import EMPTY_ROOT, TILE_WIDTH, Frontier, Prover, leaf_hash, perfect_root, verify_consistency, verify_inclusion

# The eight leaves and roots that RFC 6962's authors publish with their implementation, by number of leaves.
LEAVES = [bytes.fromhex(x) for x in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
LARGEST = 1025
HASHES = [leaf_hash(str(i).encode()) for i in range(LARGEST)]


class ListTiles:
    """Tiles of a list of leaf hashes, made when asked for."""

    def __init__(self, hashes):
        self.levels = [hashes]
        while len(hashes) >= TILE_WIDTH:
            hashes = [perfect_root(hashes[i : i + TILE_WIDTH]) for i in range(0, len(hashes) - TILE_WIDTH + 1, TILE_WIDTH)]
            self.levels.append(hashes)

    def tile(self, level, n):
        return self.levels[level][n * TILE_WIDTH : (n + 1) * TILE_WIDTH]


def naive_root(hashes):
    """RFC 6962 section 2.1, word for word."""
    if not hashes:
        return hashlib.sha256(b"").digest()
    if len(hashes) == 1:
        return hashes[0]
    k = 1
    while k * 2 < len(hashes):
        k *= 2
    return hashlib.sha256(b"\x01" + naive_root(hashes[:k]) + naive_root(hashes[k:])).digest()


def naive_path(m, hashes):
    """RFC 6962 section 2.1.1, word for word."""
    if len(hashes) == 1:
        return []
    k = 1
    while k * 2 < len(hashes):
        k *= 2
    if m < k:
        return [*naive_path(m, hashes[:k]), naive_root(hashes[k:])]
    return [*naive_path(m - k, hashes[k:]), naive_root(hashes[:k])]


def naive_proof(m, hashes, whole=True):
    """RFC 6962 section 2.1.2, word for word."""
    if m == len(hashes):
        return [] if whole else [naive_root(hashes)]
    k = 1
    while k * 2 < len(hashes):
        k *= 2
    if m <= k:
        return [*naive_proof(m, hashes[:k], whole), naive_root(hashes[k:])]
    return [*naive_proof(m - k, hashes[k:], False), naive_root(hashes[:k])]


PROVER = Prover(ListTiles(HASHES), LARGEST)


@pytest.mark.parametrize("size", range(1, 9))
def test_published_roots_are_reproduced(size):
    tree = Frontier()
    for leaf in LEAVES[:size]:
        tree.append(leaf_hash(leaf))
    assert tree.root.hex() == ROOTS[size - 1]


def test_an_empty_tree_has_the_root_of_nothing():
    assert Frontier().root == EMPTY_ROOT == Prover(ListTiles([]), 0).root()


def test_every_size_grows_to_the_root_of_the_definition():
    tree = Frontier()
    for size, digest in enumerate(HASHES):
        assert tree.size == size
        if size <= 70 or size % 64 in {0, 1, 63} or size > 1020:
            assert tree.root == naive_root(HASHES[:size]) == PROVER.root(size)
            edge = Prover(ListTiles(HASHES), size).frontier()
            assert (edge.size, edge.root) == (size, tree.root)
        tree.append(digest)
    assert tree.root == naive_root(HASHES)


def test_tiles_of_256_grow_the_same_tree():
    tree = Frontier()
    for n in range(4):
        tree.extend_by_tile(perfect_root(HASHES[n * 256 : n * 256 + 256]))
    tree.append(HASHES[1024])
    assert tree.root == naive_root(HASHES)
    with pytest.raises(ValueError, match="multiple of 256"):
        tree.extend_by_tile(HASHES[0])


def test_an_edge_that_does_not_fit_its_size_is_refused():
    with pytest.raises(ValueError, match="2 perfect subtrees, not 1"):
        Frontier(3, [HASHES[0]])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 255, 256, 257, 511, 513, 1000, 1025])
def test_paths_are_those_of_the_definition(size):
    prover = Prover(ListTiles(HASHES), size)
    root = naive_root(HASHES[:size])
    for index in {0, 1, 2, size // 2, size - 2, size - 1, 255, 256, 257} & set(range(size)):
        path = prover.inclusion(index)
        assert path == naive_path(index, HASHES[:size])
        assert verify_inclusion(index, size, HASHES[index], path, root)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 255, 256, 257, 511, 513, 1000, 1025])
def test_consistency_proofs_are_those_of_the_definition(size):
    prover = Prover(ListTiles(HASHES), size)
    root = naive_root(HASHES[:size])
    for old in {1, 2, 3, size // 2, size - 1, size, 255, 256, 257} & set(range(1, size + 1)):
        proof = prover.consistency(old)
        assert proof == naive_proof(old, HASHES[:size])
        assert verify_consistency(old, size, naive_root(HASHES[:old]), root, proof)


def test_everything_grew_from_nothing_and_from_itself():
    root = naive_root(HASHES[:9])
    assert PROVER.consistency(0) == []
    assert verify_consistency(0, 9, EMPTY_ROOT, root, [])
    assert verify_consistency(9, 9, root, root, [])
    assert verify_consistency(0, 0, EMPTY_ROOT, EMPTY_ROOT, [])
    assert not verify_consistency(0, 9, root, root, [])
    assert not verify_consistency(0, 9, EMPTY_ROOT, root, [HASHES[0]])
    assert not verify_consistency(9, 9, root, HASHES[0], [])
    assert not verify_consistency(9, 8, root, root, [])
    assert not verify_consistency(4, 9, root, root, [])
    assert not verify_consistency(-1, 9, root, root, [])


@given(st.integers(1, LARGEST), st.data())
def test_a_changed_inclusion_proof_fails(size, data):
    index = data.draw(st.integers(0, size - 1))
    prover = Prover(ListTiles(HASHES), size)
    path, root = prover.inclusion(index), prover.root()
    assert verify_inclusion(index, size, HASHES[index], path, root)
    assert not verify_inclusion(index, size, leaf_hash(b"other"), path, root)
    assert not verify_inclusion(index, size, HASHES[index], [*path, HASHES[0]], root)
    assert not verify_inclusion(size, size, HASHES[index], path, root)
    assert not verify_inclusion(-1, size, HASHES[index], path, root)
    if path:
        place = data.draw(st.integers(0, len(path) - 1))
        assert not verify_inclusion(index, size, HASHES[index], path[:place] + path[place + 1 :], root)
        assert not verify_inclusion(index, size, HASHES[index], [*path[:place], leaf_hash(b"x"), *path[place + 1 :]], root)
        other = data.draw(st.integers(0, size - 1).filter(lambda i: i != index))
        assert not verify_inclusion(other, size, HASHES[index], path, root)


@given(st.integers(2, LARGEST), st.data())
def test_a_changed_consistency_proof_fails(size, data):
    old = data.draw(st.integers(1, size - 1))
    prover = Prover(ListTiles(HASHES), size)
    proof, root, old_root = prover.consistency(old), prover.root(), prover.root(old)
    assert verify_consistency(old, size, old_root, root, proof)
    place = data.draw(st.integers(0, len(proof) - 1))
    assert not verify_consistency(old, size, old_root, root, proof[:place] + proof[place + 1 :])
    assert not verify_consistency(old, size, old_root, root, [*proof[:place], leaf_hash(b"x"), *proof[place + 1 :]])
    assert not verify_consistency(old, size, old_root, root, [*proof, HASHES[0]])
    assert not verify_consistency(old, size, leaf_hash(b"x"), root, proof)
    assert not verify_consistency(old, size, old_root, leaf_hash(b"x"), proof)


def test_what_is_not_in_the_tree_cannot_be_proved():
    with pytest.raises(ValueError, match="leaves 0 to 1024, not 1025"):
        PROVER.inclusion(LARGEST)
    with pytest.raises(ValueError, match="fewer than 1026"):
        PROVER.consistency(LARGEST + 1)
