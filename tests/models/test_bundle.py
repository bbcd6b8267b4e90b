import contextlib
import hashlib
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clinical_ser.cohorts.tasks import EMOTION
from clinical_ser.errors import (
    BundleError,
    BundleFeatureMismatchError,
    BundleIncompleteError,
    BundleNotFoundError,
    BundleSchemaError,
    BundleTamperedError,
    BundleUntrustedError,
    BundleWriteError,
)
from clinical_ser.models.bundle import (
    MANIFEST,
    MAX_FILE_BYTES,
    MAX_FILES,
    SIGNATURE,
    ManifestFields,
    VerifiedBundle,
    check_features,
    parse_manifest,
    read_bundle,
    sign_bundle,
    write_bundle,
)
from clinical_ser.models.signing import SignatureState, SigningKey, TrustStore
from tests.models.bundle_content import FIELDS, KEY, PAYLOAD, POINT, edit_manifest, read_files, write_files

TRUSTED = TrustStore(frozenset({KEY.public}))
NOBODY = TrustStore(frozenset())


@pytest.fixture(scope="module")
def signed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signed") / "model"
    write_bundle(folder, FIELDS, PAYLOAD, KEY)
    return folder


@pytest.fixture
def bundle(signed_once: Path, tmp_path: Path) -> Path:
    """A sound signed bundle to spoil: a copy, because writing one waits for the disk eleven times."""
    return Path(shutil.copytree(signed_once, tmp_path / "model"))


def read(path: Path, **options: bool | str) -> VerifiedBundle:
    return read_bundle(path, trusted=TRUSTED, **options)


# What goes in comes out


def test_a_bundle_comes_back_as_it_was_written(tmp_path):
    digest = write_bundle(tmp_path / "deep" / "model", FIELDS, PAYLOAD, KEY)
    back = read(tmp_path / "deep" / "model", require_trusted=True, expected_digest=digest)
    assert dict(back.files) == PAYLOAD
    assert back.manifest.model_dump(include=set(ManifestFields.model_fields)) == FIELDS.model_dump()
    assert back.digest == digest == hashlib.sha256((tmp_path / "deep" / "model" / MANIFEST).read_bytes()).hexdigest()
    assert (back.signature.state, back.signature.key_id) == (SignatureState.TRUSTED, KEY.public.key_id)
    assert back.json("preprocessing.json") == {"median": [1.5, -2.0, 0.25]}


def test_the_same_content_gives_the_same_bytes_whatever_the_order_and_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        write_bundle(tmp_path / "a", FIELDS, PAYLOAD, KEY)
    finally:
        os.umask(before)
    shuffled = FIELDS.model_copy(
        update={"software": dict(reversed(FIELDS.software.items())), "extractors": dict(reversed(FIELDS.extractors.items()))}
    )
    write_bundle(tmp_path / "b", shuffled, dict(reversed(PAYLOAD.items())), KEY)
    assert read_files(tmp_path / "a") == read_files(tmp_path / "b")
    for folder in (tmp_path / "a", tmp_path / "b"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o755
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o644}


def test_the_digest_pins_every_payload_byte_and_every_field_but_not_the_signature(tmp_path):
    plain = write_bundle(tmp_path / "plain", FIELDS, PAYLOAD)
    assert write_bundle(tmp_path / "signed", FIELDS, PAYLOAD, KEY) == plain
    assert write_bundle(tmp_path / "payload", FIELDS, {**PAYLOAD, "conformal.json": b"[]\n"}) != plain
    assert write_bundle(tmp_path / "fields", FIELDS.model_copy(update={"version": "1.2.1"}), PAYLOAD) != plain


def test_the_manifest_says_what_it_is_to_whoever_reads_it_without_this_package(bundle):
    manifest = json.loads((bundle / MANIFEST).read_bytes())
    assert manifest["schema"] == "clinical-ser/bundle/2"
    assert manifest["files"]["head.json"] == {"size": len(PAYLOAD["head.json"]), "sha256": hashlib.sha256(PAYLOAD["head.json"]).hexdigest()}
    assert manifest["features"] == list(FIELDS.features)
    assert manifest["task"]["classes"] == ["not_depressed", "depressed"]
    assert set(manifest["files"]) | {MANIFEST, SIGNATURE} == {path.name for path in bundle.iterdir()}


def test_files_handed_out_cannot_be_exchanged(bundle):
    back = read(bundle)
    with pytest.raises(TypeError):
        back.files["head.json"] = b"{}"  # type: ignore[index]


def test_files_changed_after_reading_do_not_reach_the_reader(bundle):
    back = read(bundle)
    (bundle / "preprocessing.json").write_bytes(b'{"median":[9,9,9]}\n')
    assert back.json("preprocessing.json") == {"median": [1.5, -2.0, 0.25]}


def test_a_folder_that_is_a_link_is_read(bundle, tmp_path):
    """A deployment points `current` at a version."""
    (tmp_path / "current").symlink_to(bundle)
    assert read(tmp_path / "current").digest == read(bundle).digest


# Changed bytes


def test_any_changed_byte_of_a_signed_bundle_is_refused(bundle):
    for path in sorted(bundle.iterdir()):
        original = path.read_bytes()
        step = 1 if len(original) < 2048 else 17
        expected = BundleError if path.name == SIGNATURE else BundleTamperedError
        for position in range(0, len(original), step):
            changed = bytearray(original)
            changed[position] ^= 1 << (position % 8)
            path.write_bytes(changed)
            with pytest.raises(expected, match=SIGNATURE if path.name == MANIFEST else path.name):
                read(bundle)
        path.write_bytes(original)
    read(bundle)


def test_any_changed_byte_of_an_unsigned_bundle_is_refused_where_its_digest_is_known(tmp_path):
    digest = write_bundle(tmp_path / "m", FIELDS, PAYLOAD)
    for path in sorted((tmp_path / "m").iterdir()):
        original = path.read_bytes()
        for position in range(0, len(original), 7):
            changed = bytearray(original)
            changed[position] ^= 1
            path.write_bytes(changed)
            with pytest.raises(BundleTamperedError):
                read(tmp_path / "m", expected_digest=digest)
        path.write_bytes(original)


def test_a_file_cut_short_anywhere_is_refused(bundle):
    for path in sorted(bundle.iterdir()):
        original = path.read_bytes()
        for length in range(0, len(original), 1 if len(original) < 600 else 13):
            path.write_bytes(original[:length])
            with pytest.raises(BundleError, match=SIGNATURE if path.name == MANIFEST else path.name):
                read(bundle)
        path.write_bytes(original)


def test_an_unsigned_manifest_cut_short_at_any_length_is_refused(tmp_path):
    write_bundle(tmp_path / "m", FIELDS, PAYLOAD)
    raw = (tmp_path / "m" / MANIFEST).read_bytes()
    for length in range(len(raw)):
        with pytest.raises(BundleSchemaError, match=MANIFEST):
            parse_manifest(raw[:length])
    (tmp_path / "m" / MANIFEST).write_bytes(raw[: len(raw) // 2])
    with pytest.raises(BundleSchemaError, match=MANIFEST):
        read(tmp_path / "m")


def test_a_cut_file_says_how_long_it_should_be(bundle):
    (bundle / "head.json").write_bytes(PAYLOAD["head.json"][:10])
    with pytest.raises(BundleIncompleteError, match=rf"^head\.json: has 10 bytes, manifest\.json lists {len(PAYLOAD['head.json'])}"):
        read(bundle)


def test_the_signature_is_checked_before_the_manifest_is_parsed(bundle):
    """A manifest that would be refused by every later step is refused by the first."""
    (bundle / MANIFEST).write_bytes(b'{"schema":"evil",' + b"[" * 100_000)
    with pytest.raises(BundleTamperedError, match="signature"):
        read(bundle)


def test_the_payload_is_not_parsed_by_reading(tmp_path):
    """A file that is listed with its right digest is handed out whatever it holds; parsing it is strict."""
    write_bundle(tmp_path / "m", FIELDS, PAYLOAD)
    bad = b'{"a":1,"a":2}\n'
    (tmp_path / "m" / "card.json").write_bytes(bad)
    files = json.loads((tmp_path / "m" / MANIFEST).read_bytes())["files"]
    edit_manifest(tmp_path / "m", files={**files, "card.json": {"size": len(bad), "sha256": hashlib.sha256(bad).hexdigest()}})
    back = read(tmp_path / "m")
    assert back.files["card.json"] == bad
    with pytest.raises(BundleSchemaError, match=r"^card\.json: .*twice"):
        back.json("card.json")
    with pytest.raises(BundleSchemaError, match=r"^head\.onnx: this bundle has no such file"):
        back.json("head.onnx")


# Signatures


def test_a_signature_from_another_bundle_does_not_fit(bundle, tmp_path):
    write_bundle(tmp_path / "other", FIELDS.model_copy(update={"version": "9"}), PAYLOAD, KEY)
    (bundle / SIGNATURE).write_bytes((tmp_path / "other" / SIGNATURE).read_bytes())
    with pytest.raises(BundleTamperedError, match="another bundle"):
        read(bundle)


def test_signed_by_an_unknown_key_is_read_as_untrusted_and_refused_where_trust_is_asked_for(bundle):
    assert read_bundle(bundle, trusted=NOBODY).signature.state is SignatureState.UNTRUSTED
    with pytest.raises(BundleUntrustedError, match=KEY.public.key_id):
        read_bundle(bundle, trusted=NOBODY, require_trusted=True)


def test_a_signature_taken_away_is_unsigned_and_refused_where_trust_is_asked_for(bundle):
    (bundle / SIGNATURE).unlink()
    assert read(bundle).signature.state is SignatureState.UNSIGNED
    with pytest.raises(BundleUntrustedError, match="there is none"):
        read(bundle, require_trusted=True)


def test_trust_is_refused_before_the_manifest_is_parsed(tmp_path):
    write_files(tmp_path / "m", {MANIFEST: b"not json"})
    with pytest.raises(BundleUntrustedError):
        read(tmp_path / "m", require_trusted=True)


def test_without_a_trust_store_the_users_own_is_asked(bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("CLINICAL_SER_HOME", str(tmp_path / "home"))
    assert read_bundle(bundle).signature.state is SignatureState.UNTRUSTED
    KEY.public.save(tmp_path / "home" / "trusted_keys" / "me.pub")
    assert read_bundle(bundle, require_trusted=True).signature.state is SignatureState.TRUSTED


def test_signing_later_equals_signing_at_once_and_a_second_signature_replaces_the_first(bundle, tmp_path):
    write_bundle(tmp_path / "late", FIELDS, PAYLOAD)
    assert sign_bundle(tmp_path / "late", KEY).state is SignatureState.TRUSTED
    assert read_files(tmp_path / "late") == read_files(bundle)
    other = SigningKey.generate()
    assert sign_bundle(tmp_path / "late", other).key_id == other.public.key_id
    assert read_bundle(tmp_path / "late", trusted=NOBODY).signature.key_id == other.public.key_id
    assert {path.name for path in tmp_path.iterdir()} == {"model", "late"}


@pytest.mark.parametrize("broken", ["head.json", SIGNATURE, MANIFEST])
def test_a_broken_bundle_is_not_signed(bundle, broken):
    before = (bundle / broken).read_bytes()[:-2] + b"~\n"
    (bundle / broken).write_bytes(before)
    with pytest.raises(BundleError):
        sign_bundle(bundle, SigningKey.generate())
    assert (bundle / broken).read_bytes() == before


# Missing, extra and strange files


@pytest.mark.parametrize("name", [*PAYLOAD, MANIFEST])
def test_a_missing_file_is_named(bundle, name):
    (bundle / name).unlink()
    with pytest.raises(BundleIncompleteError, match=rf"^{name}: missing"):
        read(bundle)


@pytest.mark.parametrize("name", [".DS_Store", "head.pkl", "HEAD.JSON", "head.ubj", "notes on a\nmodel"])
def test_a_file_that_the_manifest_does_not_list_is_refused_and_a_foreign_name_is_not_repeated(bundle, name):
    (bundle / name).write_bytes(b"x")
    with pytest.raises(BundleIncompleteError, match="not part of the bundle") as caught:
        read(bundle)
    assert (name in str(caught.value)) == (name == "head.ubj")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["link", "link to the same bytes", "dangling link", "folder", "pipe"])
@pytest.mark.parametrize("name", ["card.json", MANIFEST, SIGNATURE, "extra"])
def test_only_plain_files_are_read(bundle, tmp_path, name, kind):
    content = (bundle / name).read_bytes() if (bundle / name).exists() else b""
    (bundle / name).unlink(missing_ok=True)
    (tmp_path / "outside").write_bytes(content)
    if kind == "folder":
        (bundle / name).mkdir()
    elif kind == "pipe":
        os.mkfifo(bundle / name)
    else:
        (bundle / name).symlink_to({"link": "/etc/hostname", "dangling link": "nowhere"}.get(kind, tmp_path / "outside"))
    shown = "an entry that belongs to no bundle" if name == "extra" else name
    with pytest.raises(BundleIncompleteError, match=f"^{shown}: is a link, a folder or a device"):
        read(bundle)


@pytest.mark.parametrize("size", [MAX_FILE_BYTES + 1, 64 * 1024**3])
def test_a_huge_file_is_refused_without_reading_it(bundle, size):
    os.truncate(bundle / "card.json", size)
    tracemalloc.start()
    try:
        with pytest.raises(BundleSchemaError, match=r"^card\.json: larger than"):
            read(bundle)
        assert tracemalloc.get_traced_memory()[1] < 1024**2
    finally:
        tracemalloc.stop()


def test_files_that_are_huge_together_are_refused_without_reading_them(bundle):
    for name in PAYLOAD:
        os.truncate(bundle / name, 60 * 1024**2)
    with pytest.raises(BundleSchemaError, match="together"):
        read(bundle)


@pytest.mark.parametrize("name", [MANIFEST, SIGNATURE])
def test_manifest_and_signature_have_caps_of_their_own(bundle, name):
    os.truncate(bundle / name, 5 * 1024**2)
    with pytest.raises(BundleSchemaError, match=f"^{name}: larger than"):
        read(bundle)


def test_a_folder_of_many_files_is_no_bundle(bundle):
    for number in range(MAX_FILES):
        (bundle / f"{number}.json").touch()
    with pytest.raises(BundleIncompleteError, match="no bundle"):
        read(bundle)


@pytest.mark.parametrize(
    "place", ["missing", "model/card.json", "model/card.json/deeper", "x" * 300, "nul\0byte"], ids=["missing", "file", "inside", "long", "nul"]
)
def test_no_folder_there_is_a_typed_error_without_the_path(bundle, place):
    with pytest.raises(BundleNotFoundError) as caught:
        read(bundle.parent / place)
    assert str(bundle.parent) not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_an_empty_folder_says_what_to_give(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleIncompleteError, match=r"^manifest\.json: missing\. Give the folder"):
        read(tmp_path / "empty")


# Manifests that follow no schema


@pytest.mark.parametrize("schema", ["clinical-ser/bundle/1", "", None, 1, ["clinical-ser/bundle/2"], "x" * 10_000])
def test_an_unknown_schema_is_refused_by_name(bundle, schema):
    edit_manifest(bundle, KEY, schema=schema)
    with pytest.raises(BundleSchemaError, match=r"^manifest\.json: schema .* is unknown, this version reads 'clinical-ser/bundle/2'") as caught:
        read(bundle)
    assert len(str(caught.value)) < 500


GOOD = {"size": 0, "sha256": hashlib.sha256(b"").hexdigest()}


@pytest.mark.parametrize(
    "name", ["../card.json", "/etc/passwd", "a/b.json", "card.json\0", "", ".", "..", "CARD.JSON", SIGNATURE, MANIFEST, "head.pkl", "ＣＡＲＤ.json"]
)
def test_hostile_names_in_a_signed_manifest_are_refused(bundle, name):
    files = json.loads((bundle / MANIFEST).read_bytes())["files"]
    edit_manifest(bundle, KEY, files={**files, name: GOOD})
    with pytest.raises(BundleSchemaError, match=r"^manifest\.json: files"):
        read(bundle)


@pytest.mark.parametrize(
    "changes",
    [
        {"comment": "x"},
        {"name": "../depression"},
        {"name": "Depression"},
        {"name": "a" * 65},
        {"version": "latest"},
        {"features": []},
        {"features": ["a", "a"]},
        {"features": ["a", 1]},
        {"extractors": {}},
        {"extractors": {"praat": None}},
        {"simulated": "yes"},
        {"simulated": 1},
        {"statement": " "},
        {"cohort_digest": "0F" * 32},
        {"operating_point": None},
        {"operating_point": {**POINT.to_dict(), "threshold": [1]}},
        {"task": {"name": "depression", "kind": "binary", "classes": ["a"]}},
        {"task": {"name": "depression", "kind": "binary", "classes": ["a", "b"], "surprise": 1}},
        {"task": EMOTION.model_dump(mode="json"), "operating_point": None},
        {"files": {}},
        {"files": {name: GOOD for name in PAYLOAD if name != "head.json"}},
        {"files": dict.fromkeys((*PAYLOAD, "head.ubj"), GOOD)},
        {"files": dict.fromkeys((*PAYLOAD, "refits.json"), GOOD)},
        {"files": {name: GOOD for name in PAYLOAD if name != "card.json"}},
        {"files": {**dict.fromkeys(PAYLOAD, GOOD), "card.json": {**GOOD, "size": -1}}},
        {"files": {**dict.fromkeys(PAYLOAD, GOOD), "card.json": {**GOOD, "size": MAX_FILE_BYTES + 1}}},
        {"files": {**dict.fromkeys(PAYLOAD, GOOD), "card.json": {**GOOD, "size": "0"}}},
        {"files": {**dict.fromkeys(PAYLOAD, GOOD), "card.json": {**GOOD, "sha256": "0" * 63}}},
        {"files": {name: {**GOOD, "size": MAX_FILE_BYTES} for name in PAYLOAD}},
    ],
    ids=lambda changes: json.dumps(changes)[:50],
)
def test_a_manifest_that_does_not_follow_the_schema_is_refused(bundle, changes):
    edit_manifest(bundle, KEY, **changes)
    with pytest.raises(BundleSchemaError, match=r"^manifest\.json: "):
        read(bundle)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda raw: raw.replace(b'"name":"depression-test"', b'"name":"depression-test","name":"other"'), "twice"),
        (lambda raw: raw.replace(b'"threshold":-0.25', b'"threshold":NaN'), "NaN"),
        (lambda raw: raw.replace(b'"threshold":-0.25', b'"threshold":1e999'), "finite"),
        (lambda raw: raw.replace(b'"threshold":-0.25', b'"threshold":-0.250'), "canonical"),
        (lambda raw: raw.replace(b'"threshold":-0.25', b'"threshold":' + b"[" * 200 + b"]" * 200), "nested"),
        (lambda raw: raw.replace(b",", b", ", 1), "canonical"),
        (lambda raw: raw + raw, "Extra data"),
        (lambda raw: b"\xef\xbb\xbf" + raw, "BOM"),
        (lambda raw: b"[" + raw + b"]", "not a JSON object"),
        (lambda raw: b"", "Expecting value"),
        (lambda raw: b"\x80\x04]\x94.", "UTF-8"),
    ],
    ids=["twice", "nan", "overflow", "other digits", "deep", "space", "two", "bom", "array", "empty", "a pickle"],
)
def test_a_manifest_with_more_than_one_reading_is_refused(bundle, change, reason):
    changed = change((bundle / MANIFEST).read_bytes())
    assert changed != (bundle / MANIFEST).read_bytes()
    (bundle / MANIFEST).write_bytes(changed)
    (bundle / SIGNATURE).write_bytes(KEY.sign(changed))
    with pytest.raises(BundleSchemaError, match=rf"^manifest\.json: .*{reason}"):
        read(bundle)


def test_complaints_repeat_no_values_and_no_control_characters(bundle):
    edit_manifest(bundle, KEY, cohort_digest="SECRET", files={"evil\n\x1b[31m": GOOD})
    with pytest.raises(BundleSchemaError) as caught:
        read(bundle)
    assert "cohort_digest" in str(caught.value)
    assert "SECRET" not in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("manifest") / "m"
    write_bundle(folder, FIELDS, PAYLOAD)
    return (folder / MANIFEST).read_bytes()


@given(data=st.data())
def test_a_mangled_manifest_is_a_manifest_or_a_typed_error(manifest, data):
    start = data.draw(st.integers(0, len(manifest)))
    end = data.draw(st.integers(start, min(len(manifest), start + 40)))
    middle = data.draw(st.binary(max_size=20) | st.sampled_from([b'"', b"{}", b"null", b"[]", b"1e5", b'":{"', b",", b"\\"]))
    mangled = manifest[:start] + middle + manifest[end:]
    try:
        back = parse_manifest(mangled)
    except BundleSchemaError:
        return
    assert set(back.files) == set(PAYLOAD)


# Writing


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({**PAYLOAD, "../x.json": b"{}"}, "x.json"),
        ({**PAYLOAD, "/x.json": b"{}"}, "x.json"),
        ({**PAYLOAD, MANIFEST: b"{}"}, MANIFEST),
        ({**PAYLOAD, SIGNATURE: b"{}"}, SIGNATURE),
        ({**PAYLOAD, "model.pkl": b""}, "model.pkl"),
        ({**PAYLOAD, "card.json": b'{"a":NaN}'}, "card.json"),
        ({**PAYLOAD, "card.json": b""}, "card.json"),
        ({**PAYLOAD, "card.json": bytes(MAX_FILE_BYTES + 1)}, "card.json"),
        ({name: content for name, content in PAYLOAD.items() if name != "reference.json"}, "reference.json"),
        ({name: content for name, content in PAYLOAD.items() if name != "head.json"}, "head.json"),
    ],
    ids=["up", "absolute", "manifest", "signature", "pickle", "nan", "empty", "huge", "no reference", "no head"],
)
def test_what_could_not_be_read_back_is_not_written(tmp_path, files, name):
    with pytest.raises(BundleSchemaError, match=name):
        write_bundle(tmp_path / "deep" / "m", FIELDS, files, KEY)
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_are_not_finite_are_not_written(tmp_path):
    with pytest.raises(BundleSchemaError, match=r"^manifest\.json: "):
        write_bundle(tmp_path / "m", FIELDS.model_copy(update={"operating_point": POINT.model_copy(update={"threshold": float("inf")})}), PAYLOAD)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_is_replaced_only_when_asked(bundle):
    before = read_files(bundle)
    newer = FIELDS.model_copy(update={"version": "2"})
    with pytest.raises(BundleWriteError, match="there already"):
        write_bundle(bundle, newer, PAYLOAD, KEY)
    assert read_files(bundle) == before
    digest = write_bundle(bundle, newer, PAYLOAD, replace=True)
    assert read(bundle, expected_digest=digest).signature.state is SignatureState.UNSIGNED
    assert [path.name for path in bundle.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("there", ["file", "link", "link to a bundle", "other files", "bundle and other files"])
def test_what_is_not_only_a_bundle_is_never_replaced(bundle, tmp_path, there, replace):
    target = tmp_path / "target"
    if there == "file":
        target.write_bytes(b"mine")
    elif there.startswith("link"):
        target.symlink_to(bundle if there == "link to a bundle" else tmp_path / "nowhere")
    elif there == "other files":
        write_files(target, {"thesis.tex": b"mine"})
    else:
        write_files(target, {**read_files(bundle), "thesis.tex": b"mine"})
    with pytest.raises(BundleWriteError) as caught:
        write_bundle(target, FIELDS.model_copy(update={"version": "2"}), PAYLOAD, replace=replace)
    assert str(tmp_path) not in str(caught.value)
    assert read(bundle).manifest.version == "1.2.0"
    assert {path.name for path in tmp_path.iterdir()} == {"model", "target"}


def test_an_empty_folder_takes_a_bundle(tmp_path):
    (tmp_path / "m").mkdir()
    write_bundle(tmp_path / "m", FIELDS, PAYLOAD)
    assert dict(read(tmp_path / "m").files) == PAYLOAD


@contextlib.contextmanager
def disk_full_after(size: int) -> Iterator[None]:
    """Limit the size of files: the write fails half-way, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("replace", [False, True])
def test_a_full_disk_leaves_what_was_there(bundle, tmp_path, replace):
    before = read_files(bundle)
    with disk_full_after(1000), pytest.raises(BundleWriteError, match="File too large"):
        write_bundle(bundle if replace else tmp_path / "fresh", FIELDS, {**PAYLOAD, "refits.ubj": bytes(5000)}, replace=replace)
    assert read_files(bundle) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_while_signing_leaves_the_signature_that_was_there(bundle):
    before = read_files(bundle)
    with disk_full_after(100), pytest.raises(BundleWriteError, match="File too large"):
        sign_bundle(bundle, SigningKey.generate())
    assert read_files(bundle) == before


def test_a_place_that_cannot_be_written_is_a_typed_error_without_the_path(bundle):
    for place in (bundle / "card.json" / "m", bundle.parent / ("x" * 300)):
        with pytest.raises(BundleWriteError) as caught:
            write_bundle(place, FIELDS, PAYLOAD)
        assert str(bundle.parent) not in str(caught.value)


# One child a fault: it dies before its k-th file-system call, for every k until one child lives to the end.
KILLED_WRITERS = """
import json, os, shutil, signal, sys
from pathlib import Path
from clinical_ser.models.bundle import read_bundle, sign_bundle, write_bundle
from clinical_ser.models.signing import TrustStore
from clinical_ser.errors import BundleError, BundleNotFoundError
from tests.models.bundle_content import FIELDS, KEY, PAYLOAD

CALLS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.scandir", "os.listdir"}
NEWER = FIELDS.model_copy(update={"version": "2"})

def state(path):
    try:
        bundle = read_bundle(path, trusted=TrustStore(frozenset()))
    except BundleNotFoundError:
        return "nothing"
    except BundleError:
        return "broken"
    return bundle.manifest.version + " " + bundle.signature.state

def die_before(call):
    count = 0
    def hook(event, arguments):
        nonlocal count
        if event in CALLS:
            count += 1
            if count == call:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

def outcomes(base, prepare, act):
    found = []
    while True:
        home = base / str(len(found))
        home.mkdir(parents=True)
        prepare(home / "m")
        child = os.fork()
        if child == 0:
            die_before(len(found) + 1)
            act(home / "m")
            os._exit(0)
        lived = os.waitpid(child, 0)[1] == 0
        found.append([state(home / "m"), [state(path) for path in home.glob(".m.*.old")], lived])
        if lived:
            return found

base = Path(sys.argv[1])
write_bundle(base / "old", FIELDS, PAYLOAD)
old = lambda path: shutil.copytree(base / "old", path)
print(json.dumps({
    "fresh": outcomes(base / "fresh", lambda path: None, lambda path: write_bundle(path, NEWER, PAYLOAD)),
    "replace": outcomes(base / "replace", old, lambda path: write_bundle(path, NEWER, PAYLOAD, replace=True)),
    "sign": outcomes(base / "sign", old, lambda path: sign_bundle(path, KEY)),
}))
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, list[str], bool]]]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", KILLED_WRITERS, str(tmp_path_factory.mktemp("killed"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_writer_killed_at_any_call_leaves_nothing_or_the_whole_bundle(killed):
    *dead, last = [(there, lived) for there, _, lived in killed["fresh"]]
    assert last == ("2 unsigned", True)
    assert len(dead) > 15
    assert not any(lived for _, lived in dead)
    assert {there for there, _ in dead} == {"nothing", "2 unsigned"}


def test_a_replacing_writer_killed_at_any_call_leaves_the_old_or_the_new_bundle_and_never_a_mixture(killed):
    *dead, last = killed["replace"]
    assert last == ["2 unsigned", [], True]
    assert {there for there, _, _ in dead} == {"1.2.0 unsigned", "nothing", "2 unsigned"}
    between = [aside for there, aside, _ in dead if there == "nothing"]
    assert between == [["1.2.0 unsigned"]]  # one call wide, and the old bundle is complete beside it


def test_a_signer_killed_at_any_call_leaves_the_bundle_unsigned_or_signed(killed):
    *dead, last = killed["sign"]
    assert last == ["1.2.0 untrusted", [], True]
    assert {there for there, _, _ in dead} == {"1.2.0 unsigned", "1.2.0 untrusted"}


# Features


def test_features_that_are_computed_in_the_same_way_are_accepted(manifest):
    check_features(parse_manifest(manifest), {**FIELDS.extractors, "compare": "x"}, (*FIELDS.features, "another"))


def test_another_extractor_version_is_refused_with_both(manifest):
    available = {**FIELDS.extractors, "praat": "praat-6.5/1"}
    with pytest.raises(BundleFeatureMismatchError, match=r"praat here is 'praat-6\.5/1', the model needs 'praat-6\.4\.40/1'") as caught:
        check_features(parse_manifest(manifest), available, FIELDS.features)
    assert "egemaps" not in str(caught.value)
    assert "numpy 2.4.0" in str(caught.value)


def test_an_absent_extractor_and_an_unknown_feature_are_refused_by_name(manifest):
    available = {name: version for name, version in FIELDS.extractors.items() if name != "timing"}
    with pytest.raises(BundleFeatureMismatchError, match=r"timing is not installed, .*'timing/1'; features not known here: timing\.pause_share"):
        check_features(parse_manifest(manifest), available, [name for name in FIELDS.features if not name.startswith("timing")])
