import base64
import json
import os
import pickle
import stat
import subprocess

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from clinical_ser.errors import BundleError, BundleSchemaError, BundleTamperedError, BundleUntrustedError, SigningKeyError
from clinical_ser.folders import user_folder
from clinical_ser.models.signing import (
    DOMAIN,
    SHIPPED_TRUSTED_KEYS,
    PublicKey,
    SignatureState,
    SigningKey,
    TrustStore,
    default_key_path,
    require_trust,
    verify_signature,
)

KEY = SigningKey.generate()
TRUSTED = TrustStore(frozenset({KEY.public}))
NOBODY = TrustStore(frozenset())
MANIFEST = b'{"name":"a"}\n'


def edited(original: bytes, /, **changes: object) -> bytes:
    """Change fields of a signature file, keeping its spelling; None takes a field out."""
    fields = {name: value for name, value in {**json.loads(original), **changes}.items() if value is not None}
    return (json.dumps(fields, sort_keys=True, ensure_ascii=False, separators=(",", ":")) + "\n").encode()


@given(st.binary(max_size=200))
def test_a_signature_of_a_trusted_key_is_trusted_and_always_the_same_bytes(manifest):
    signature = KEY.sign(manifest)
    assert signature == KEY.sign(manifest)
    status = verify_signature(manifest, signature, TRUSTED)
    assert (status.state, status.key_id) == (SignatureState.TRUSTED, KEY.public.key_id)


def test_an_unknown_key_is_untrusted_and_no_signature_is_unsigned():
    assert verify_signature(MANIFEST, KEY.sign(MANIFEST), NOBODY).state is SignatureState.UNTRUSTED
    assert verify_signature(MANIFEST, None, TRUSTED).state is SignatureState.UNSIGNED


def test_trust_asked_for_is_refused_with_the_key_to_ask_about():
    require_trust(verify_signature(MANIFEST, KEY.sign(MANIFEST), TRUSTED))
    with pytest.raises(BundleUntrustedError, match=KEY.public.key_id):
        require_trust(verify_signature(MANIFEST, KEY.sign(MANIFEST), NOBODY))
    with pytest.raises(BundleUntrustedError, match="there is none"):
        require_trust(verify_signature(MANIFEST, None, TRUSTED))


def test_any_single_bit_of_the_signature_file_matters():
    signature = KEY.sign(MANIFEST)
    for position in range(len(signature)):
        for bit in range(8):
            changed = bytearray(signature)
            changed[position] ^= 1 << bit
            with pytest.raises(BundleError, match=r"^signature: "):
                verify_signature(MANIFEST, bytes(changed), TRUSTED)


def test_any_single_bit_of_the_manifest_matters():
    signature = KEY.sign(MANIFEST)
    for position in range(len(MANIFEST)):
        changed = bytearray(MANIFEST)
        changed[position] ^= 1
        with pytest.raises(BundleTamperedError):
            verify_signature(bytes(changed), signature, TRUSTED)


def test_a_signature_for_another_purpose_does_not_serve():
    """The key signs the domain with the manifest; the bare manifest signed, or another domain, is no bundle signature."""
    other = KEY.sign(MANIFEST.removeprefix(b"{"))
    with pytest.raises(BundleTamperedError):
        verify_signature(MANIFEST, other, TRUSTED)
    raw = json.loads(KEY.sign(MANIFEST))
    assert KEY.public.fits(base64.b64decode(raw["signature"]), DOMAIN + MANIFEST)
    assert not KEY.public.fits(base64.b64decode(raw["signature"]), MANIFEST)


def test_claiming_a_trusted_key_without_its_signature_is_tampering():
    stranger = SigningKey.generate()
    theirs, ours = json.loads(stranger.sign(MANIFEST)), json.loads(KEY.sign(MANIFEST))
    claims = [
        edited(stranger.sign(MANIFEST), key_id=ours["key_id"]),
        edited(stranger.sign(MANIFEST), public_key=ours["public_key"]),
        edited(stranger.sign(MANIFEST), public_key=ours["public_key"], key_id=ours["key_id"]),
        edited(KEY.sign(MANIFEST), signature=theirs["signature"]),
    ]
    for claim in claims:
        with pytest.raises(BundleTamperedError):
            verify_signature(MANIFEST, claim, TRUSTED)


@pytest.mark.parametrize(
    "changes",
    [{"schema": "clinical-ser/signature/2"}, {"algorithm": "RSA"}, {"algorithm": None}, {"key_id": 7}, {"comment": "x"}, {"signature": None}],
    ids=str,
)
def test_a_signature_file_of_another_form_is_refused_by_name(changes):
    with pytest.raises(BundleSchemaError, match=r"^signature: "):
        verify_signature(MANIFEST, edited(KEY.sign(MANIFEST), **changes), TRUSTED)


@pytest.mark.parametrize("value", ["", "AAAA", "not base64!", "A" * 88, "é" * 88], ids=["empty", "short", "no-base64", "unpadded", "no-ascii"])
def test_a_field_of_the_wrong_length_or_spelling_is_refused(value):
    with pytest.raises(BundleError, match=r"^signature: "):
        verify_signature(MANIFEST, edited(KEY.sign(MANIFEST), signature=value), TRUSTED)


def test_any_thirty_two_bytes_can_be_a_key_that_fits_nothing():
    for seed in range(64):
        raw = bytes((seed * 7 + i * 13) % 256 for i in range(32))
        assert not PublicKey(raw).fits(b"\x11" * 64, b"message")


def test_a_signature_is_ed25519_as_everyone_computes_it():
    """RFC 8032, section 7.1, test 2."""
    private = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    public = PublicKey(bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"))
    signature = bytes.fromhex(
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    assert SigningKey(Ed25519PrivateKey.from_private_bytes(private)).public == public
    assert public.fits(signature, b"\x72")


def test_a_private_key_goes_to_disk_and_back_for_its_owner_only(tmp_path):
    path = tmp_path / "deep" / "keys" / "signing.pem"
    KEY.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) & 0o077 == 0
    assert SigningKey.load(path).public == KEY.public


def test_the_mode_of_a_new_key_does_not_depend_on_the_umask(tmp_path):
    before = os.umask(0)
    try:
        KEY.save(tmp_path / "k" / "signing.pem")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "k" / "signing.pem").stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o644])
def test_a_key_that_others_may_touch_is_refused(tmp_path, mode):
    KEY.save(tmp_path / "signing.pem")
    (tmp_path / "signing.pem").chmod(mode)
    with pytest.raises(SigningKeyError, match=f"{mode:04o}.*chmod 600"):
        SigningKey.load(tmp_path / "signing.pem")


def test_a_key_is_never_overwritten(tmp_path):
    path = tmp_path / "signing.pem"
    KEY.save(path)
    with pytest.raises(SigningKeyError, match="never overwritten"):
        SigningKey.generate().save(path)
    assert SigningKey.load(path).public == KEY.public
    (tmp_path / "dangling").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SigningKeyError, match="never overwritten"):
        KEY.save(tmp_path / "dangling")
    assert not (tmp_path / "elsewhere").exists()


def private_pem(kind: str) -> bytes:
    if kind == "other algorithm":
        return generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    if kind == "encrypted":
        return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    if kind == "public":
        return KEY.public.to_pem()
    return {"empty": b"", "text": b"hello", "huge": b"x" * 100_000}[kind]


@pytest.mark.parametrize("kind", ["other algorithm", "encrypted", "public", "empty", "text", "huge"])
def test_what_is_no_private_key_is_refused_without_its_place(tmp_path, kind):
    path = tmp_path / "signing.pem"
    path.write_bytes(private_pem(kind))
    path.chmod(0o600)
    with pytest.raises(SigningKeyError) as caught:
        SigningKey.load(path)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("place", ["missing.pem", ".", "signing.pem/inside"])
def test_a_key_that_cannot_be_read_is_a_typed_error(tmp_path, place):
    KEY.save(tmp_path / "signing.pem")
    for load in (SigningKey.load, PublicKey.load):
        with pytest.raises(SigningKeyError) as caught:
            load(tmp_path / place)
        assert str(tmp_path) not in str(caught.value)
    with pytest.raises(SigningKeyError):
        KEY.save(tmp_path / "signing.pem" / "inside")


def test_a_signing_key_shows_only_its_public_id_and_cannot_be_pickled():
    assert repr(KEY) == f"SigningKey({KEY.public.key_id})"
    with pytest.raises(TypeError):
        pickle.dumps(KEY)


def test_a_key_id_is_the_start_of_the_sha256_of_the_public_key():
    digest = subprocess.run(["sha256sum"], input=KEY.public.raw, capture_output=True, check=True).stdout.decode()
    assert KEY.public.key_id == digest[:16]


def test_the_trust_store_reads_every_public_key_of_its_folders(tmp_path):
    other = SigningKey.generate()
    KEY.public.save(tmp_path / "one" / "a.pub")
    other.public.save(tmp_path / "two" / "b.pub")
    (tmp_path / "two" / "notes.txt").write_text("not a key")
    assert TrustStore.load(tmp_path / "one", tmp_path / "two", tmp_path / "missing").keys == {KEY.public, other.public}


@pytest.mark.parametrize("kind", ["text", "private", "other algorithm"])
def test_a_trust_store_with_a_broken_key_is_refused(tmp_path, kind):
    KEY.save(tmp_path / "private.pem")
    curve = generate_private_key(SECP256R1()).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    content = {"text": b"hello", "private": (tmp_path / "private.pem").read_bytes(), "other algorithm": curve}[kind]
    (tmp_path / "x.pub").write_bytes(content)
    with pytest.raises(SigningKeyError, match="public key"):
        TrustStore.load(tmp_path)


def test_the_default_trust_is_what_ships_and_what_the_user_put_there(tmp_path, monkeypatch):
    monkeypatch.setenv("CLINICAL_SER_HOME", str(tmp_path))
    shipped = TrustStore.load(SHIPPED_TRUSTED_KEYS).keys
    assert TrustStore.default().keys == shipped
    KEY.public.save(tmp_path / "trusted_keys" / "mine.pub")
    assert TrustStore.default().keys == shipped | {KEY.public}


def test_user_folders_follow_the_variables_and_ignore_relative_ones(tmp_path, monkeypatch):
    for variable in ("CLINICAL_SER_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_folder("config") == tmp_path / ".config" / "clinical-ser"
    assert user_folder("data") == tmp_path / ".local" / "share" / "clinical-ser"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert default_key_path() == tmp_path / "xdg" / "clinical-ser" / "keys" / "signing.pem"
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    assert user_folder("config") == tmp_path / ".config" / "clinical-ser"
    monkeypatch.setenv("CLINICAL_SER_HOME", str(tmp_path / "own"))
    assert user_folder("config") == user_folder("data") == tmp_path / "own"


def test_a_process_without_a_home_trusts_what_ships_and_is_told_how_to_keep_a_key(monkeypatch):
    """An arbitrary user id in a container has neither HOME nor an entry in the password file."""
    for variable in ("CLINICAL_SER_HOME", "XDG_CONFIG_HOME", "HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 3_999_999_999)
    assert TrustStore.default().keys == TrustStore.load(SHIPPED_TRUSTED_KEYS).keys
    with pytest.raises(SigningKeyError, match="CLINICAL_SER_HOME"):
        default_key_path()
