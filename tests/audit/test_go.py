"""Go's sumdb/note and sumdb/tlog accept what we write, and refuse it when it was changed.

The trees here come from a few lines that follow RFC 6962 section 2.1 word by word; `assert_go_accepts` is for other tests' logs too.
"""

import base64
import hashlib
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from clinical_ser.audit.checkpoint import Checkpoint
from clinical_ser.audit.cosignatures import Ed25519Cosigner, MlDsa44Cosigner
from clinical_ser.audit.notes import Ed25519Signer
from clinical_ser.audit.proof_file import ProofFile
from tests.audit.conftest import GoVerifier

ORIGIN = "example.com/log"
LOG = Ed25519Signer(ORIGIN, Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
VKEY = str(LOG.key)
LEAVES = [f"record {number}".encode() * (number % 5) for number in range(600)]


def root_of(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962 section 2.1."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    split = split_of(len(leaves))
    return hashlib.sha256(b"\1" + root_of(leaves[:split]) + root_of(leaves[split:])).digest()


def inclusion_path(index: int, leaves: list[bytes]) -> tuple[bytes, ...]:
    """PATH of RFC 6962 section 2.1.1."""
    if len(leaves) == 1:
        return ()
    split = split_of(len(leaves))
    if index < split:
        return (*inclusion_path(index, leaves[:split]), root_of(leaves[split:]))
    return (*inclusion_path(index - split, leaves[split:]), root_of(leaves[:split]))


def consistency_path(old: int, leaves: list[bytes], *, whole: bool = True) -> tuple[bytes, ...]:
    """SUBPROOF of RFC 6962 section 2.1.2."""
    if old == len(leaves):
        return () if whole else (root_of(leaves),)
    split = split_of(len(leaves))
    if old <= split:
        return (*consistency_path(old, leaves[:split], whole=whole), root_of(leaves[split:]))
    return (*consistency_path(old - split, leaves[split:], whole=False), root_of(leaves[:split]))


def split_of(size: int) -> int:
    """The largest power of two below the size."""
    return 1 << ((size - 1).bit_length() - 1)


def signed(size: int) -> str:
    return Checkpoint(ORIGIN, size, root_of(LEAVES[:size])).sign([LOG])


def write(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def write_tiles(folder: Path, leaves: list[bytes]) -> None:
    """Write the tiles of fewer than 65536 leaves: those of level 0, one of level 1, and the entries."""
    bundles = [leaves[start : start + 256] for start in range(0, len(leaves), 256)]
    for number, bundle in enumerate(bundles):
        name = f"{number:03d}" + (f".p/{len(bundle)}" if len(bundle) < 256 else "")
        write(folder, f"tile/0/{name}", b"".join(root_of([leaf]) for leaf in bundle))
        write(folder, f"tile/entries/{name}", b"".join(len(leaf).to_bytes(2, "big") + leaf for leaf in bundle))
    full = [bundle for bundle in bundles if len(bundle) == 256]
    if full:
        write(folder, f"tile/1/000.p/{len(full)}", b"".join(map(root_of, full)))


def assert_go_accepts(done: subprocess.CompletedProcess[str]) -> None:
    assert (done.returncode, done.stdout, done.stderr) == (0, "OK\n", "")


def assert_go_refuses(done: subprocess.CompletedProcess[str], reason: str) -> None:
    assert done.returncode == 1
    assert reason in done.stdout


def test_a_checkpoint_with_all_kinds_of_signatures_is_accepted_by_go(go_verifier: GoVerifier, tmp_path: Path):
    private = Ed25519PrivateKey.generate()
    others = [Ed25519Cosigner(Ed25519Signer("w.example/1", private)), MlDsa44Cosigner(ORIGIN, MLDSA44PrivateKey.generate())]
    note = Checkpoint(ORIGIN, 600, root_of(LEAVES)).sign([*others, LOG])
    assert_go_accepts(go_verifier("checkpoint", VKEY, write(tmp_path, "checkpoint", note)))


def test_go_refuses_a_checkpoint_that_was_changed(go_verifier: GoVerifier, tmp_path: Path):
    changed = signed(600).replace("\n600\n", "\n601\n")
    assert_go_refuses(go_verifier("checkpoint", VKEY, write(tmp_path, "checkpoint", changed)), "invalid signature")


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 257])
def test_proof_files_are_accepted_by_go(go_verifier: GoVerifier, tmp_path: Path, size: int):
    for index in {0, size // 2, size - 1}:
        path = inclusion_path(index, LEAVES[:size])
        for extra in (None, b"more"):
            proof = write(tmp_path, "proof", ProofFile(index, path, signed(size), extra).text)
            assert_go_accepts(go_verifier("inclusion", VKEY, proof, write(tmp_path, "leaf", LEAVES[index])))
        assert_go_refuses(go_verifier("inclusion", VKEY, proof, write(tmp_path, "leaf", b"another")), "invalid")


@pytest.mark.parametrize(("old", "new"), [(1, 2), (3, 7), (4, 8), (6, 600), (256, 600), (8, 8)])
def test_consistency_proofs_are_accepted_by_go(go_verifier: GoVerifier, tmp_path: Path, old: int, new: int):
    hashes = consistency_path(old, LEAVES[:new])
    proof = write(tmp_path, "proof", "".join(f"{base64.b64encode(node).decode()}\n" for node in hashes))
    checkpoints = write(tmp_path, "old", signed(old)), write(tmp_path, "new", signed(new))
    assert_go_accepts(go_verifier("consistency", VKEY, *checkpoints, proof))
    forked = Checkpoint(ORIGIN, new, root_of([b"another", *LEAVES[1:new]])).sign([LOG])
    assert_go_refuses(go_verifier("consistency", VKEY, checkpoints[0], write(tmp_path, "new", forked), proof), "invalid")


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 512, 600])
def test_tiles_are_accepted_by_go(go_verifier: GoVerifier, tmp_path: Path, size: int):
    write_tiles(tmp_path, LEAVES[:size])
    assert_go_accepts(go_verifier("tiles", VKEY, write(tmp_path, "checkpoint", signed(size)), str(tmp_path)))


def test_an_older_checkpoint_is_accepted_by_go_with_the_full_tiles_that_came_later(go_verifier: GoVerifier, tmp_path: Path):
    write_tiles(tmp_path, LEAVES[:256])
    assert_go_accepts(go_verifier("tiles", VKEY, write(tmp_path, "checkpoint", signed(100)), str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "reason"),
    [("tile/entries/001", "root hash"), ("tile/0/000", "does not hold"), ("tile/0/002.p/88", "does not hold"), ("tile/1/000.p/2", "does not hold")],
)
def test_go_refuses_a_tile_that_was_changed(go_verifier: GoVerifier, tmp_path: Path, name: str, reason: str):
    write_tiles(tmp_path, LEAVES)
    content = bytearray((tmp_path / name).read_bytes())
    content[-1] ^= 1
    write(tmp_path, name, bytes(content))
    assert_go_refuses(go_verifier("tiles", VKEY, write(tmp_path, "checkpoint", signed(600)), str(tmp_path)), reason)
