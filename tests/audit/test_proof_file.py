"""Proof files: the shape of tlog-proof.md's example, and one spelling only."""

import base64
import dataclasses
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from clinical_ser.audit.checkpoint import Checkpoint
from clinical_ser.audit.notes import Ed25519Signer
from clinical_ser.audit.proof_file import MAX_PATH, MAX_PROOF_BYTES, ProofFile
from clinical_ser.errors import AuditFormatError

LOG = Ed25519Signer("example.com/fancylog", Ed25519PrivateKey.from_private_bytes(bytes(32)))
ROOT = base64.b64decode("sFodV/vSp5O8n9a8QpW6PRY97tfOSW5bsc2Xl/EQi08=")
CHECKPOINT = Checkpoint("example.com/fancylog", 109482, ROOT).sign([LOG])
# The head of the example of C2SP tlog-proof.md; its signatures are cut short there, and so is its extra line, which is no base64.
EXAMPLE = f"""c2sp.org/tlog-proof@v1
index 73894
gSKyXoYZUgZ6jduWYrkDOARinOMGJveXjgMkBTcdPlQ=
B95lDa8R83lS8n0eG+o0buTxRKQTYFi//1U8anccXmA=
EKNzoDWG8LGC0Yp9o+sv3qllpMP9uHQ9B20KNL+Q1zs=
RoopEkOdqkYqMB4MJXrbt/hMjOxsVn0IrWjpz1ZMMes=
AHCioX9nLjsrse6YhjRRmk1WUEirVOLLRoOQ6vfO5vk=

{CHECKPOINT}"""
PROOF = ProofFile.parse(EXAMPLE)
WITH_EXTRA = EXAMPLE.replace("@v1\n", "@v1\nextra YWdl\n")


def test_the_example_of_tlog_proof_is_read_and_written_the_same():
    assert (PROOF.index, len(PROOF.path), PROOF.extra, PROOF.checkpoint) == (73894, 5, None, CHECKPOINT)
    assert PROOF.path[0].hex().startswith("8122b25e8619")
    assert PROOF.text == EXAMPLE


def test_extra_data_comes_along():
    proof = ProofFile.parse(WITH_EXTRA.encode())
    assert proof == dataclasses.replace(PROOF, extra=b"age")
    assert proof.text == WITH_EXTRA


def test_the_only_record_of_a_log_needs_no_hashes():
    proof = ProofFile(0, (), Checkpoint("log", 1, ROOT).sign([LOG]))
    assert ProofFile.parse(proof.text) == proof


@given(st.integers(0, 109481), st.lists(st.binary(min_size=32, max_size=32), max_size=MAX_PATH), st.none() | st.binary(min_size=1, max_size=100))
def test_any_proof_is_read_as_it_was_written(index, path, extra):
    proof = ProofFile(index, tuple(path), CHECKPOINT, extra)
    assert ProofFile.parse(proof.text) == proof


@given(st.integers(0, len(EXAMPLE) - 1), st.sampled_from("\n 0A=é"))
def test_what_is_read_as_a_proof_has_that_one_spelling(at, character):
    for original in (EXAMPLE, WITH_EXTRA):
        changed = original[:at] + character + original[at + 1 :]
        try:
            proof = ProofFile.parse(changed)
        except AuditFormatError:
            continue
        assert proof.text == changed


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("@v1", "@v2"),
        ("c2sp.org/tlog-proof@v1\n", ""),
        ("index 73894\n", ""),
        ("index 73894", "index 073894"),
        ("index 73894", "index  73894"),
        ("index 73894", "index 109482"),
        ("index 73894", "index 99999999999999999999"),
        ("index 73894\n", "index 73894\nextra YWdl\n"),
        ("@v1\n", "@v1\nextra \n"),
        ("@v1\n", "@v1\nextra YWdlLXYx*\n"),
        ("@v1\n", "@v1\nextra YWdl\nextra YWdl\n"),
        ("@v1\n", "@v1\r\n"),
        ("gSKy", "gSKyAAAA"),
        ("dPlQ=", "dPlR="),
        ("dPlQ=\n", "dPlQ=\n\n"),
        (f"\n\n{CHECKPOINT}", f"\n{CHECKPOINT}"),
        (f"\n\n{CHECKPOINT}", f"\n\n\n{CHECKPOINT}"),
        (CHECKPOINT, ""),
        (CHECKPOINT, CHECKPOINT[:-1]),
        ("109482", "0109482"),
    ],
)
def test_what_is_not_spelled_as_a_proof_is_refused(old, new):
    assert old in EXAMPLE
    with pytest.raises(AuditFormatError):
        ProofFile.parse(EXAMPLE.replace(old, new))


def test_a_path_longer_than_any_tree_is_deep_is_refused():
    hashes = (hashlib.sha256(b"").digest(),) * (MAX_PATH + 1)
    with pytest.raises(AuditFormatError, match="at most 63"):
        dataclasses.replace(PROOF, path=hashes)
    with pytest.raises(AuditFormatError, match="64 hashes"):
        ProofFile.parse(dataclasses.replace(PROOF, path=hashes[1:]).text.replace("\n\n", f"\n{base64.b64encode(hashes[0]).decode()}\n\n", 1))


def test_what_is_too_long_or_no_text_is_refused():
    with pytest.raises(AuditFormatError, match="more than"):
        ProofFile.parse(b"a" * (MAX_PROOF_BYTES + 1))
    with pytest.raises(AuditFormatError, match="UTF-8"):
        ProofFile.parse(b"\xff")


@pytest.mark.parametrize("change", [{"index": -1}, {"extra": b""}, {"path": (b"short",)}, {"checkpoint": "no note"}])
def test_what_could_not_be_read_back_is_not_made(change):
    with pytest.raises(AuditFormatError):
        dataclasses.replace(PROOF, **change)
