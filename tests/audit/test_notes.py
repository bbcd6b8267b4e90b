"""Signed notes: the vectors of Go's note_test.go and of signed-note.md, strict spelling, and that no byte changes unseen.

The keys, texts and signatures of PeterNeumann and EnochRoot are those of Go's golang.org/x/mod/sumdb/note (BSD-3-Clause).
"""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from clinical_ser.audit.notes import (
    MAX_NOTE_BYTES,
    MAX_SIGNATURES,
    Algorithm,
    Ed25519Signer,
    NoteSignature,
    VerifierKey,
    open_note,
    parse_note,
    sign_note,
)
from clinical_ser.errors import AuditError, AuditFormatError, AuditKeyError, AuditTamperedError

PETER_VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
ENOCH_VKEY = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
PETER = VerifierKey.parse(PETER_VKEY)
ENOCH = VerifierKey.parse(ENOCH_VKEY)
# The part of Go's skey (PRIVATE+KEY+name+id+base64) that is secret: a type byte and the seed.
PETER_SEED = base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
PETER_LINE = "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
ENOCH_LINE = "— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n"
NOTE = f"{TEXT}\n{PETER_LINE}"
BOTH = f"{NOTE}{ENOCH_LINE}"
SALVATORE = """Ognuno sta solo sul cuor della terra
trafitto da un raggio di sole:

ed è subito sera.

— quasimodo.example/salvatore NnugSzTjtVAewIS+Z/iJhUPeFDkO/5QQ2i5ddnGITLlC+EhfLW9oJKONrMouFSQU0xMcXxj99ihAQwaqP3ZekRwNtIc=
"""

SIGNERS = [Ed25519Signer(name, Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)) for number, name in enumerate("abc")]


def peter() -> Ed25519Signer:
    return Ed25519Signer("PeterNeumann", Ed25519PrivateKey.from_private_bytes(PETER_SEED))


def enoch() -> Ed25519Signer:
    return Ed25519Signer("EnochRoot", Ed25519PrivateKey.from_private_bytes(bytes(32)))


def test_a_key_is_written_and_read_as_go_does():
    assert (PETER.name, PETER.key_id, PETER.algorithm) == ("PeterNeumann", 0xC74F20A3, Algorithm.ED25519)
    assert str(peter().key) == str(PETER) == PETER_VKEY
    assert str(enoch().key) == ENOCH_VKEY


def test_no_part_of_a_key_and_no_key_with_another_byte_is_read():
    parts = {PETER_VKEY[start:end] for start in range(len(PETER_VKEY)) for end in range(start, len(PETER_VKEY) + 1)} - {PETER_VKEY}
    changed = {PETER_VKEY[:at] + chr(ord(PETER_VKEY[at]) + 1) + PETER_VKEY[at + 1 :] for at in range(len(PETER_VKEY))}
    for vkey in parts | changed:
        with pytest.raises(AuditFormatError):
            VerifierKey.parse(vkey)


@pytest.mark.parametrize(
    ("vkey", "reason"),
    [
        ("PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY==", "base64"),
        ("PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEQ==", "32 bytes, not 36"),
        ("PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW", "type 101"),
        (PETER_VKEY.replace("c74f20a3", "C74F20A3"), "8 hex digits"),
        (PETER_VKEY.replace("c74f20a3", "c74f20a4"), "its id is c74f20a4"),
        (PETER_VKEY.replace("PeterNeumann", "Peter\u00a0Neumann"), "name"),
        (PETER_VKEY.replace("PeterNeumann", "Peter\u009bNeumann"), "name"),
        (PETER_VKEY.replace("PeterNeumann", "Peter\ud800"), "name"),
        (PETER_VKEY.replace("PeterNeumann", ""), "name"),
    ],
)
def test_a_key_that_is_not_read_is_told_why(vkey, reason):
    with pytest.raises(AuditFormatError, match=reason):
        VerifierKey.parse(vkey)


# The encodings of small order that libsodium refuses (ge25519_has_small_order), the sign of x left out; two of them are no canonical ones.
WEAK = (
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
)


@pytest.mark.parametrize("weak", WEAK)
def test_a_key_under_which_anyone_can_sign_is_none(weak):
    for public in (bytes.fromhex(weak), bytes.fromhex(weak[:-2]) + bytes([int(weak[-2:], 16) | 0x80])):
        for algorithm in (Algorithm.ED25519, Algorithm.ED25519_COSIGNATURE):
            with pytest.raises(AuditFormatError, match="small order"):
                VerifierKey("a", algorithm, public)


def test_a_note_is_signed_as_go_does():
    assert sign_note(TEXT, [peter()]) == NOTE


def test_a_second_signature_is_added_below_the_first_as_go_does():
    assert sign_note(TEXT, [enoch()], parse_note(NOTE)[1]) == BOTH


def test_an_older_signature_of_the_same_key_is_replaced():
    assert sign_note(TEXT, [peter()], [NoteSignature("PeterNeumann", 0xC74F20A3, b"bad")]) == NOTE


@pytest.mark.parametrize(
    ("text", "existing"),
    [
        ("abc", []),
        ("a\tb\n", []),
        ("a\ud800\n", []),
        (TEXT, [NoteSignature("a+b", 1, b"signature")]),
        (TEXT, [NoteSignature("", 1, b"signature")]),
        (TEXT, [NoteSignature("a", 1, b"")]),
        (TEXT, [NoteSignature("a", 1, b"signature")] * MAX_SIGNATURES),
    ],
)
def test_what_would_be_no_note_is_not_signed(text, existing):
    with pytest.raises(AuditFormatError):
        sign_note(text, [peter()], existing)


def test_a_note_without_any_signature_is_not_written():
    with pytest.raises(AuditFormatError):
        sign_note(TEXT, [])


def test_signatures_of_unknown_keys_are_set_aside():
    note = open_note(BOTH, [PETER])
    assert note.text == TEXT
    assert [(key, signature.line) for key, signature in note.verified] == [(PETER, PETER_LINE)]
    assert [signature.line for signature in note.unverified] == [ENOCH_LINE]


def test_all_signatures_of_known_keys_are_verified():
    note = open_note(BOTH.encode(), [ENOCH, PETER])
    assert [key for key, _ in note.verified] == [PETER, ENOCH]
    assert note.unverified == ()


@pytest.mark.parametrize("keys", [[], [SIGNERS[0].key]])
def test_a_note_of_unknown_signers_is_not_believed(keys):
    with pytest.raises(AuditTamperedError, match="None of the note's 2 signatures"):
        open_note(BOTH, keys)


def test_a_key_that_shares_only_name_or_only_id_is_another_key():
    for line in (PETER_LINE.replace("PeterNeumann", "CarmenSandiego"), PETER_LINE.replace("x08g", "xxxx")):
        with pytest.raises(AuditTamperedError, match="known here"):
            open_note(f"{TEXT}\n{line}", [PETER])


def test_one_bad_signature_of_a_known_key_spoils_the_note():
    bad = ENOCH_LINE[:60] + "ABCD" + ENOCH_LINE[60:]
    with pytest.raises(AuditTamperedError, match="EnochRoot"):
        open_note(NOTE + bad, [PETER, ENOCH])
    assert len(open_note(NOTE + bad, [PETER]).unverified) == 1


def test_repeated_signatures_count_once_as_in_go():
    changed = ENOCH_LINE[:60] + "ABCD" + ENOCH_LINE[60:]
    note = open_note(f"{TEXT}\n{PETER_LINE}{PETER_LINE}{ENOCH_LINE}{ENOCH_LINE}{changed}", [PETER])
    assert [signature.line for _, signature in note.verified] == [PETER_LINE]
    assert [signature.line for signature in note.unverified] == [ENOCH_LINE, changed]
    assert [signature.line for _, signature in open_note(BOTH + changed, [ENOCH]).verified] == [ENOCH_LINE]


def test_a_key_that_is_known_twice_is_refused_when_it_is_needed_as_in_go():
    with pytest.raises(AuditKeyError, match=r"EnochRoot.*twice"):
        open_note(f"{TEXT}\n{ENOCH_LINE}", [ENOCH, PETER, ENOCH])
    assert open_note(NOTE, [ENOCH, PETER, ENOCH]).verified


@pytest.mark.parametrize(
    "note",
    [
        "",
        TEXT,
        f"{TEXT}\n",
        NOTE[:-1],
        f"\x01{NOTE}",
        b"\xff" + NOTE.encode(),
        f"{TEXT}\n— Bad Name {PETER_LINE.split(' ')[2]}",
        f"{NOTE}Unexpected line.\n",
        NOTE.replace("\n", "\r\n"),
        NOTE.replace("know", "kn\tow"),
        f"{TEXT}\n{PETER_LINE.replace('— ', '- ')}",
        f"{TEXT}\n{PETER_LINE.replace('PeterNeumann', '')}",
        f"{TEXT}\n— PeterNeumann\n",
        f"{TEXT}\n— PeterNeumann \n",
        f"{TEXT}\n— PeterNeumann x08gow==\n",
        f"{TEXT}\n{PETER_LINE.replace('nAM=', 'nAN=')}",
        f"{TEXT}\n{PETER_LINE.replace('nAM=', 'nAM')}",
        f"{TEXT}\n{PETER_LINE.replace('x08g', 'x08g ')}",
        f"{TEXT}\n" + PETER_LINE * (MAX_SIGNATURES + 1),
        "a" * MAX_NOTE_BYTES + NOTE,
        NOTE + "\ud800",
    ],
)
def test_what_is_not_spelled_as_a_note_is_refused(note):
    with pytest.raises(AuditFormatError):
        open_note(note, [PETER])


def test_as_many_signatures_are_read_as_the_limit_says():
    assert len(open_note(f"{TEXT}\n" + PETER_LINE * MAX_SIGNATURES, [PETER]).verified) == 1


def test_the_example_of_signed_note_is_read_and_has_the_text_up_to_its_last_empty_line():
    text, (signature,) = parse_note(SALVATORE)
    assert text.endswith("sole:\n\ned è subito sera.\n")
    assert (signature.name, signature.key_id, len(signature.signature)) == ("quasimodo.example/salvatore", 0x367BA04B, 64)
    assert f"{text}\n{signature.line}" == SALVATORE


def test_every_changed_bit_of_a_signed_note_is_noticed():
    raw = NOTE.encode()
    for at in range(len(raw)):
        for bit in range(8):
            changed = bytearray(raw)
            changed[at] ^= 1 << bit
            with pytest.raises((AuditFormatError, AuditTamperedError)):
                open_note(bytes(changed), [PETER])


def test_every_missing_or_added_byte_of_a_signed_note_is_noticed():
    raw = NOTE.encode()
    for at in range(len(raw) + 1):
        for changed in (raw[:at] + raw[at + 1 :] if at < len(raw) else raw[:-1], raw[:at] + b"\n" + raw[at:], raw[:at] + b"A" + raw[at:]):
            with pytest.raises((AuditFormatError, AuditTamperedError)):
                open_note(changed, [PETER])


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"], exclude_characters="+"), min_size=1, max_size=20)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=[chr(code) for code in range(32) if code != 10]), max_size=60).map(
    "{}\n".format
)


@given(NAMES, st.sampled_from(Algorithm), st.binary(min_size=31, max_size=31).map(lambda rest: b"\2" + rest))
def test_any_key_is_read_as_it_was_written(name, algorithm, public):
    key = VerifierKey(name, algorithm, public * 41 if algorithm is Algorithm.ML_DSA_44_COSIGNATURE else public)
    assert VerifierKey.parse(str(key)) == key


@given(TEXTS, st.sets(st.sampled_from(range(3)), min_size=1))
def test_any_text_is_read_as_it_was_signed(text, which):
    signers = [SIGNERS[number] for number in sorted(which)]
    note = open_note(sign_note(text, signers), [signer.key for signer in SIGNERS])
    assert (note.text, [key for key, _ in note.verified], note.unverified) == (text, [signer.key for signer in signers], ())


@given(st.text(max_size=80) | st.binary(max_size=80) | TEXTS.map(lambda text: f"{text}\n{PETER_LINE}"))
def test_whatever_is_given_the_errors_are_ours(note):
    try:
        open_note(note, [PETER])
    except AuditError:
        return
    pytest.fail("a note that Peter did not sign was believed")


def test_a_signer_shows_nothing_but_its_public_half():
    assert repr(peter()) == f"Ed25519Signer({PETER_VKEY})"
