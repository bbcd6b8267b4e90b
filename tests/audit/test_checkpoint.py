"""Checkpoints: the example of tlog-checkpoint.md, one spelling, and that only the log itself can say what it is."""

import dataclasses
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from clinical_ser.audit.checkpoint import EMPTY_ROOT, Checkpoint
from clinical_ser.audit.cosignatures import Ed25519Cosigner, MlDsa44Cosigner
from clinical_ser.audit.notes import Ed25519Signer, parse_note, sign_note
from clinical_ser.errors import AuditFormatError, AuditTamperedError

# The example of C2SP tlog-checkpoint.md.
SOFA = """example.com/behind-the-sofa
20852163
CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=
"""
ORIGIN = "example.com/log"
ROOT = hashlib.sha256(b"root").digest()
CHECKPOINT = Checkpoint(ORIGIN, 5, ROOT)
LOG = Ed25519Signer(ORIGIN, Ed25519PrivateKey.from_private_bytes(bytes(32)))
WITNESS = Ed25519Cosigner(Ed25519Signer("w.example/1", Ed25519PrivateKey.from_private_bytes(b"w" * 32)), clock=lambda: 1_700_000_000)
PQ_LOG = MlDsa44Cosigner(ORIGIN, MLDSA44PrivateKey.from_seed_bytes(bytes(32)), clock=lambda: 1_700_000_000)


def test_the_example_of_tlog_checkpoint_is_read_and_written_the_same():
    text, (signature,) = parse_note(SOFA)
    checkpoint = Checkpoint.parse(text)
    assert (checkpoint.origin, checkpoint.size, checkpoint.extensions) == ("example.com/behind-the-sofa", 20852163, ())
    assert checkpoint.root.hex().startswith("0ac5186a91863e8e")
    assert checkpoint.text == text
    assert (signature.name, signature.key_id) == (checkpoint.origin, 0x033DE0AE)


@given(
    st.text(st.characters(exclude_categories=["Cs"], min_codepoint=32), min_size=1),
    st.integers(1, 2**63 - 1),
    st.binary(min_size=32, max_size=32),
    st.lists(st.text(st.characters(exclude_categories=["Cs"], min_codepoint=32), min_size=1), max_size=3),
)
def test_any_checkpoint_is_read_as_it_was_written(origin, size, root, extensions):
    checkpoint = Checkpoint(origin, size, root, tuple(extensions))
    assert Checkpoint.parse(checkpoint.text) == checkpoint


@given(st.text(st.sampled_from("01 \n+-_=Aaé\u0663"), max_size=60))
def test_what_is_read_as_a_checkpoint_has_that_one_spelling(middle):
    text = f"log\n{middle}\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    try:
        checkpoint = Checkpoint.parse(text)
    except AuditFormatError:
        return
    assert checkpoint.text == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "log\n5\n",
        "log\n5\n{root}",
        "\n5\n{root}\n",
        "log\n05\n{root}\n",
        "log\n+5\n{root}\n",
        "log\n-5\n{root}\n",
        "log\n 5\n{root}\n",
        "log\n5_0\n{root}\n",
        "log\n٣\n{root}\n",
        "log\n9223372036854775808\n{root}\n",
        "log\n99999999999999999999999999\n{root}\n",
        "log\n0\n{root}\n",
        "log\n5\n{root}=\n",
        "log\n5\nAAAA\n",
        "log\n5\n{root}\n\n",
        "log\n5\n{root}\n\nextension\n",
        "log\r\n5\n{root}\n",
        "log\n5\n{root}\nextension\x00\n",
    ],
)
def test_what_is_not_spelled_as_a_checkpoint_is_refused(text):
    with pytest.raises(AuditFormatError):
        Checkpoint.parse(text.format(root=CHECKPOINT.text.split("\n")[2]))


def test_the_second_spelling_of_a_root_hash_is_refused():
    assert CHECKPOINT.text.endswith("Y=\n") or CHECKPOINT.text[-3] in "AEIMQUYcgkosw048"
    second = CHECKPOINT.text[:-3] + chr(ord(CHECKPOINT.text[-3]) + 1) + "=\n"
    with pytest.raises(AuditFormatError, match="one spelling"):
        Checkpoint.parse(second)


@pytest.mark.parametrize(
    "change",
    [
        {"origin": ""},
        {"origin": "a\nb"},
        {"size": -1},
        {"size": 2**63},
        {"root": b"short"},
        {"size": 0},
        {"extensions": ("",)},
        {"extensions": ("a\nb",)},
    ],
)
def test_what_could_not_be_read_back_is_not_made(change):
    with pytest.raises(AuditFormatError):
        dataclasses.replace(CHECKPOINT, **change)


def test_an_empty_log_has_the_root_of_no_leaves():
    assert Checkpoint.parse(Checkpoint(ORIGIN, 0, EMPTY_ROOT).text).size == 0


@pytest.mark.parametrize("log", [LOG, PQ_LOG], ids=["Ed25519", "ML-DSA-44"])
def test_a_checkpoint_that_the_log_signed_is_opened_with_everyone_who_stands_for_it(log):
    checkpoint, note = Checkpoint.open(CHECKPOINT.sign([log, WITNESS]), [log.key, WITNESS.key], ORIGIN)
    assert checkpoint == CHECKPOINT
    assert [key for key, _ in note.verified] == [log.key, WITNESS.key]


def test_cosignatures_alone_do_not_make_a_checkpoint():
    for keys in ([WITNESS.key], [WITNESS.key, LOG.key]):
        with pytest.raises(AuditTamperedError, match="log itself"):
            Checkpoint.open(CHECKPOINT.sign([WITNESS]), keys)


def test_a_checkpoint_of_another_log_is_refused_though_its_signature_fits():
    other = Ed25519Signer("example.com/other", Ed25519PrivateKey.from_private_bytes(b"o" * 32))
    note = dataclasses.replace(CHECKPOINT, origin="example.com/other").sign([other])
    assert Checkpoint.open(note, [LOG.key, other.key])[0].origin == "example.com/other"
    with pytest.raises(AuditTamperedError, match="another log"):
        Checkpoint.open(note, [LOG.key, other.key], ORIGIN)
    with pytest.raises(AuditTamperedError, match="log itself"):
        Checkpoint.open(CHECKPOINT.sign([other]), [other.key], ORIGIN)


def test_a_signed_note_that_is_no_checkpoint_is_refused():
    with pytest.raises(AuditFormatError):
        Checkpoint.open(sign_note(f"{ORIGIN}\nhello\n", [LOG]), [LOG.key])


def test_extension_lines_need_a_signature_that_covers_them():
    extended = dataclasses.replace(CHECKPOINT, extensions=("more",))
    assert Checkpoint.open(extended.sign([LOG, PQ_LOG]), [LOG.key, PQ_LOG.key])[0] == extended
    smuggled = CHECKPOINT.sign([PQ_LOG]).replace("\n\n", "\nsmuggled\n\n")
    with pytest.raises(AuditTamperedError, match="whole checkpoint"):
        Checkpoint.open(smuggled, [PQ_LOG.key])


def test_every_changed_bit_of_a_checkpoint_is_noticed_or_only_loses_a_witness():
    opened = Checkpoint.open(CHECKPOINT.sign([LOG, WITNESS]), [LOG.key, WITNESS.key])
    raw = CHECKPOINT.sign([LOG, WITNESS]).encode()
    for at in range(len(raw)):
        changed = bytearray(raw)
        changed[at] ^= 1 << at % 8
        try:
            checkpoint, note = Checkpoint.open(bytes(changed), [LOG.key, WITNESS.key])
        except (AuditFormatError, AuditTamperedError):
            continue
        assert checkpoint == opened[0]
        assert len(note.verified) < len(opened[1].verified)
