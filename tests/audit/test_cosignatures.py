"""Cosignatures: the example of tlog-cosignature.md, what exactly is signed, and a checkpoint that another implementation signed with ML-DSA-44."""

import base64
import builtins
import dataclasses
import hashlib
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from clinical_ser.audit.checkpoint import Checkpoint
from clinical_ser.audit.cosignatures import Ed25519Cosigner, MlDsa44Cosigner, timestamp_of
from clinical_ser.audit.notes import Algorithm, Ed25519Signer, VerifierKey, open_note, parse_note
from clinical_ser.errors import AuditFormatError, AuditKeyError

# The example of C2SP tlog-cosignature.md, whose public keys are published nowhere.
SOFA = """example.com/behind-the-sofa
20852163
CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=
— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==
"""
# What a log with an ML-DSA-44 key signed in Go: the seed, key id and checkpoint in torchwood's tests (cmd/litewitness/testdata/mldsa.txt).
TORCHWOOD_SEED = bytes.fromhex("2886adc2b0eabfce67c0472939127998bf886cf256bfee8ba76a253fce1146e0")
TORCHWOOD_ORIGIN = "example.com/mldsa-log"
TORCHWOOD_KEY_ID = 0xB5DF45C5
TORCHWOOD_SIGNATURE = """
td9FxQAAAAAAAAAAkjFvCxC6244QGemHL0hurmk5M3Hj6noQQtBM1TiwnC1lFmT+t+cUG9W0ENlRQtV20lJFLKCzoJ08ulQEkfiVueKHeMyURh97Iup0R9d41Monv472jkyfDoX3ILyX
/kEOuSV4Ed2tU4VmtDSbP0rofMWAbKJRMnzCpNIT5xMe3tRbWLVTvAtnX9OB4UMKL1dvGS/uuhqW9Ddjik2D8veitBvk3TbQcT8fanSyZqCbDZ5zzw5JS3Gu5oD1zK7z+KiyqbzKUhgl
ESs7YXFbeU0E03FrXdAPYS6GAuZtBWTJp4DEm4rL+NqU6Xp0n2ehhqd1rFAJUAcsE5CFakQdlmKkkzVMy3VZYll5ptS0amlYfGqX6/N9bJAYdAoWWpdgCep5eXCutQcTQXc69UocKT99
/vholeAP1097GfS+hNL2ndNS2ieMnj8XLD1LCHVoBjKZUIObB0lx3leGRe9VjYgTRAY2WlE+K32b6Iz1rKzzDD8YBNQdkHgdx44uPOU3I+8szYS6NzQ2Z0QlqAtz0j9vZu9yEUUxCEOR
AiMAHLtV5oWZ/RvSE7qq5B0b8WrHGPGoR/qUNK4ECmlIe/SRo6M7yRrPs3das3ox1bkC3f92c98ewHLeQtLwwsqQJny6rlYaiaiPMxgdT2CVcJEcKOfaK8pdy2fucBDxHrQitpGkeLJL
mWk6LLxR/Ut6s6xNyyKSuZlVslS40n9MJ837uMmJFyecKPliwAj8HzTWQywSkMpEQfJyr4i2Kfa2paOZ4izmotRTfdvbFWlWFwuGLWOQ0X/pKaExpdNDwqahAwbfGkw/iHbsV7ZIlNIu
SNs2ccQvnjM8xqkT6sYYVxYiHpmk5sOwGsdeiMdwQqn7Q/Lz+uc3F6k/r0Ox7MJTX6fPhFdhe8RJg/77USR/MIGiT4YZHV+XgrtbV0jvMEgB4yEOircsScaBmLv18tTn1GiGlzFjK/s7
gOzjk70jf1qCZ1MNgDAPstd/5sXdwYON0FnA5zPUp9yMkq1/wZq+DuePQDT6nj8zgFrkrvl8s7nibKKaL2bKcje5YP3CFcXLZoESZnC3BJkV85VqXlAKl+dctM3vNfMVrqk3/boBARw2
7mdKLsysIREkWR4caByW0csjL3Js9tn1hB0yf6hIGo8mvPIUjPIXn1rFSSKWkQlq15wu2gwEo9FdVF5beMdF4LVwuO9PZ1Y4oXuRE2pIzMWq/jEzHAZ7GucP7yzU78X767ucrwO/AXjM
lLUsLLFZaQcHHBsrQJLpy5w1Jn/L7XFyR2g0lBOdT+lSOhx7j33oIlzxmqdR47ovtkg+LJpbAJG7n/JiQ/h/xffe3VdqSsrB8S4ltKz+rq51swoZ59zmRzWaoNkyWX0eu0E7y6EfpfrK
Emr0H+fYtVnJvCznWFKzbv7oDXKC0pOyKZsNctvFwhSGEEURCs1G+4IrAEWG2Y231thQ8HdMvaMcm+ocvBGhZjmE7bXFkdiJ7S09csFjljFDGCiGRiU+flxkyiqpa1DDgeFRWOEyNAdM
eY2iQMTJU9ApqNVrPpjGbg7kL0HrfKCQM236d16DKfXIiUmZw/NONKnrliAIs6/WSzKdW/JUyTLiKfPV1ItODmw5eNz7lV36dR8g3us/bpWp4OaDIInrLxYZRfkLHLvXGGg5ogY2k/FM
no/3UBbS0QfstK+ByB/pFVYCHWgDjctwpOHaqAAXAiWHAUh1KOpXBMv8qndpzhsYhvKbrL371aBST0e3iPW/K4x+kFfgdeClsftS9RnE8KDCf4Uz+9QMP9sxj4+ZACztE19eBVaSvCqv
54wO6n5248UzbqPXzA1dweKQziw/FnPWC7qMrcs3jDi6PBPhpruk1xBy08MQg58l4YzuXrPm5gAyiUAyfNszvhTotaU02oljhvg24CycDo/2PvQY7sBmisIsVVeHssiRxg23CMgWHaPM
Dn6OM+IhF2xaAqJOjfnsFBWlvMg8LxsrBnOQ1YABVLLtMvCSaIvgBjPt8XtLn9gZ0HL9OvGsR3efWHTR5p4nZyuHH2Nm8F3nWKVkEI4p4H6Yo5O0hkzCi1ZB7QT3uEIeR0Hq3g/bLTzm
m6XzsjWSmQ8CtPapmXX476QT44wU0CWJ096SqUGUq2ZCDg3kFkV0BuKPIfLCt4sYK9bjj8UZCqkhyHbVm2x+HQwk8mNnDbUd7PK89riPjA33KX0Sw32RE0uKtB0sC8m7t028aEupsRx5
6/M0jBgeYmEHuRrXpW9nuOkQPTBaHdmYBHNkzTF2arPzZK3diFuhKPvmSQh2CN6g8r0p3EN+dmps1fIUfHM6emkEuaod+ZG83vyJsyd5B2oPMTVP12z8VJtDRAYfA5bRj+HEw2aD4f23
u/Zq3PHk2C9T5LTAu28WCuO/EpXGSIkq1/hRpyE0qhJSnPN9/iE74PoU1OgjGBv6uSUsNhNZJeMe2W23s8EAyStB5+u83IBgUctrGwXzNdoC9LY1p+kNFSAZXIggNB3alVzoS+D9rcCY
TUAafpkdwLaYq5/w0wRchljkG61rl+gZCiwtqZv3SHVxO7kRTAzfHsGDB1yc/9Sz++IMGyFHYvuqtclhpHPPToFByaVl687b1P4t2i/U4fWPZ4BBhN5Q7HGTxubspw1GY2MjBYU5OXvE
Ju9aWeibkM/fg6QrxPRYNsJBNJQRywMjYHj6AefrZeGXGxSNgS50kCNBvV7XTli/17y3MFgR4WfNmBK3BqKb87v3DBMVnLHcqvw1ZVjFPv91q0XYaDdVFHqOnS4Fh5nfwh1qfuvKrUZl
wFPcwW+pG4YDyjx90MTFugpQ6KfEusmUhB5Dqr79nYWbOhW3e0PCEZtxmVrH9EtCHEgO6wnkWjPke6XULARu0ECF1gZvQczEjKfzxCt6Rknz+27lXyzgzRyHWxr0kB/pFty+8IebrDfI
W9757d+1QLonDTmkLQiirF0ygsgQALmk1KljcHD/qiAZPHh5YX+Q2VdDfIfGeMXmCg3nX5r5DINcx47fNHtgWeGn8MjF8Hnff6x+ZU/7YqcBrDOvGqn46FBvuRY0+mWkRo576207vQR/
023owl7pXZ5p/75V5yDkTZWDtXsfKjpypcxrWIBsg5GC25nZdjQQGBtFUF1pfn+xvunq9AEIFidYY2Vyc3mYw8TW7PkVKis5PENhdbfJHDtIdIiQsLe+1Nr+/wAAAAAAAAAAAAAAAAAA
AAAAAAAAAAAAAAAAAA4eKDU=
"""
TORCHWOOD_NOTE = f"""example.com/mldsa-log
1
+zoErtsZtGO6sfiSV/v4UJSIyowisE8hvjw0q5+bD38=

— example.com/mldsa-log {"".join(TORCHWOOD_SIGNATURE.split())}
"""

NOW = 1_679_315_147
NAME = "witness.example.com/w1"
ORIGIN = "example.com/behind-the-sofa"
ROOT = base64.b64decode("CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=")
CHECKPOINT = Checkpoint(ORIGIN, 20852163, ROOT)
TEXT = CHECKPOINT.text.encode()
EXTENDED = dataclasses.replace(CHECKPOINT, extensions=("more",)).text.encode()
ED25519 = Ed25519PrivateKey.from_private_bytes(bytes(32))
ML_DSA = MLDSA44PrivateKey.from_seed_bytes(bytes(32))


def cosigner(kind: str, name: str = NAME, now: float = NOW) -> Ed25519Cosigner | MlDsa44Cosigner:
    if kind == "Ed25519":
        return Ed25519Cosigner(Ed25519Signer(name, ED25519), clock=lambda: now)
    return MlDsa44Cosigner(name, ML_DSA, clock=lambda: now)


def test_the_example_of_tlog_cosignature_is_read():
    text, (_, witness) = parse_note(SOFA)
    assert text.encode() == TEXT
    assert (witness.name, witness.key_id, len(witness.signature)) == (NAME, 0x8D66CF3F, 72)
    assert timestamp_of(witness.signature) == NOW


def test_an_ed25519_cosignature_is_over_header_time_and_text():
    signature = cosigner("Ed25519").sign(EXTENDED)
    message = b"cosignature/v1\ntime 1679315147\nexample.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\nmore\n"
    assert signature == NOW.to_bytes(8, "big") + ED25519.sign(message)


def test_an_ml_dsa_cosignature_is_over_the_structure_of_the_specification():
    signature = cosigner("ML-DSA-44").sign(EXTENDED)
    message = (
        b"subtree/v1\n\0" + b"\x16" + NAME.encode() + struct.pack(">Q", NOW) + b"\x1b" + ORIGIN.encode() + struct.pack(">QQ", 0, 20852163) + ROOT
    )
    assert (len(message), len(signature)) == (12 + 23 + 8 + 28 + 16 + 32, 8 + 2420)
    assert signature[:8] == NOW.to_bytes(8, "big")
    ML_DSA.public_key().verify(signature[8:], message)


def test_key_ids_are_the_hash_of_name_type_and_key():
    for kind, typed in (("Ed25519", b"\4" + ED25519.public_key().public_bytes_raw()), ("ML-DSA-44", b"\6" + ML_DSA.public_key().public_bytes_raw())):
        digest = hashlib.sha256(NAME.encode() + b"\n" + typed).digest()
        assert cosigner(kind).key.key_id == int.from_bytes(digest[:4], "big")


def test_what_another_implementation_signed_with_ml_dsa_is_opened():
    key = MlDsa44Cosigner(TORCHWOOD_ORIGIN, MLDSA44PrivateKey.from_seed_bytes(TORCHWOOD_SEED)).key
    assert key.key_id == TORCHWOOD_KEY_ID
    checkpoint, note = Checkpoint.open(TORCHWOOD_NOTE, [key], TORCHWOOD_ORIGIN)
    assert (checkpoint.size, timestamp_of(note.verified[0][1].signature)) == (1, 0)


@pytest.mark.parametrize("kind", ["Ed25519", "ML-DSA-44"])
class TestBothKinds:
    def test_a_cosigned_checkpoint_is_opened_with_the_time(self, kind):
        witness = cosigner(kind)
        note = open_note(CHECKPOINT.sign([witness]), [VerifierKey.parse(str(witness.key))])
        ((key, signature),) = note.verified
        assert (key, timestamp_of(signature.signature)) == (witness.key, NOW)

    def test_fractions_of_a_second_are_cut(self, kind):
        assert timestamp_of(cosigner(kind, now=NOW + 0.9).sign(TEXT)) == NOW

    @pytest.mark.parametrize("change", ["origin", "size", "root", "time", "signature", "short", "long", "past 2^63", "no checkpoint", "not UTF-8"])
    def test_whatever_is_changed_does_not_fit(self, kind, change):
        witness = cosigner(kind)
        text, signature = TEXT, bytearray(witness.sign(TEXT))
        assert witness.key.fits(text, bytes(signature))
        match change:
            case "origin":
                text = dataclasses.replace(CHECKPOINT, origin="example.com/other").text.encode()
            case "size":
                text = dataclasses.replace(CHECKPOINT, size=20852164).text.encode()
            case "root":
                text = dataclasses.replace(CHECKPOINT, root=bytes(32)).text.encode()
            case "time":
                signature[7] ^= 1
            case "signature":
                signature[-1] ^= 1
            case "short":
                del signature[-1]
            case "long":
                signature.append(0)
            case "past 2^63":
                signature[0] |= 0x80
            case "no checkpoint":
                text = b"hello\n"
            case "not UTF-8":
                text = b"\xff" + text
        assert not witness.key.fits(text, bytes(signature))

    def test_what_is_no_checkpoint_is_not_cosigned(self, kind):
        for text in (b"hello\n", b"\xff" + TEXT):
            with pytest.raises(AuditFormatError):
                cosigner(kind).sign(text)

    def test_a_cosigner_shows_no_private_half(self, kind):
        seed = (ED25519 if kind == "Ed25519" else ML_DSA).private_bytes_raw()
        assert base64.b64encode(seed).decode().strip("=") not in repr(cosigner(kind))


def test_only_ed25519_covers_extension_lines():
    assert not cosigner("Ed25519").key.fits(EXTENDED, cosigner("Ed25519").sign(TEXT))
    assert cosigner("ML-DSA-44").key.fits(EXTENDED, cosigner("ML-DSA-44").sign(TEXT))


def test_only_ml_dsa_covers_the_cosigners_name():
    for kind, fits in (("Ed25519", True), ("ML-DSA-44", False)):
        other = cosigner(kind, name="witness.example.com/w2")
        assert other.key.fits(TEXT, cosigner(kind).sign(TEXT)) is fits


def test_a_signature_of_one_kind_is_none_of_another():
    plain = Ed25519Signer(NAME, ED25519)
    witness = cosigner("Ed25519")
    assert not witness.key.fits(TEXT, NOW.to_bytes(8, "big") + plain.sign(TEXT))
    assert not plain.key.fits(TEXT, witness.sign(TEXT)[8:])


def test_a_cosignature_without_a_time_is_read_as_time_zero():
    signature = cosigner("ML-DSA-44", now=0).sign(TEXT)
    assert cosigner("ML-DSA-44").key.fits(TEXT, signature)
    assert timestamp_of(signature) == 0


@pytest.mark.parametrize("signature", [b"", bytes(8), b"\x80" + bytes(71)])
def test_a_time_that_is_none_is_refused(signature):
    with pytest.raises(AuditFormatError):
        timestamp_of(signature)


def test_ml_dsa_signs_names_of_up_to_255_bytes():
    long = "é" * 127 + "a"
    assert MlDsa44Cosigner(long, ML_DSA).key.fits(TEXT, MlDsa44Cosigner(long, ML_DSA).sign(TEXT))
    with pytest.raises(AuditFormatError, match="between 1 and 255 bytes, not 256"):
        MlDsa44Cosigner(long + "b", ML_DSA).sign(TEXT)


@given(st.binary(max_size=80), st.binary(max_size=2500), st.sampled_from(Algorithm))
@settings(max_examples=50)
def test_arbitrary_bytes_fit_nothing(text, signature, algorithm):
    keys = {Algorithm.ED25519: Ed25519Signer(NAME, ED25519).key, Algorithm.ED25519_COSIGNATURE: cosigner("Ed25519").key}
    assert not keys.get(algorithm, cosigner("ML-DSA-44").key).fits(text, signature)


def test_an_installation_without_ml_dsa_is_told_what_to_install(monkeypatch):
    witness = cosigner("ML-DSA-44")
    signature = witness.sign(TEXT)
    original = builtins.__import__

    def without(name, globals=None, locals=None, fromlist=(), level=0):  # noqa: A002
        if "mldsa" in (fromlist or ()):
            raise ImportError
        return original(name, globals, locals, fromlist, level)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(AuditKeyError, match="no ML-DSA-44"):
        witness.key.fits(TEXT, signature)
