import json
import os
from pathlib import Path

import jsonschema
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clinical_ser.audit.checkpoint import Checkpoint
from clinical_ser.audit.exports import json_lines, packet, shown
from clinical_ser.audit.exports.packet import CHECKPOINT, MANIFEST, NOTE, NOTE_HEADER, Manifest, PacketWriter, open_packet, verify_export
from clinical_ser.audit.notes import Algorithm, Ed25519Signer, VerifierKey, sign_note
from clinical_ser.errors import AuditError, AuditFormatError, AuditKeyError, AuditSetupError, AuditTamperedError, AuditUnavailableError
from tests.audit.exports.example import KEYS, ORIGIN, SIGNER, START, ExampleLog, entries
from tests.audit.exports.forging import reseal

LOG = ExampleLog()
OTHER = Ed25519Signer(ORIGIN, Ed25519PrivateKey.from_private_bytes(bytes(32)))
SCHEMAS = Path(packet.__file__).parent / "schemas"


def writer(target, reader=LOG, **changes):
    options = {"form": "jsonl", "reader": reader, "signers": [SIGNER], "first": 0, "last": 3, "not_claimed": ["Much."], "created": START}
    return PacketWriter(target, **{**options, **changes})


@pytest.fixture
def export(tmp_path):
    with writer(tmp_path / "export") as made:
        made.add("a.txt", b"first\n", "text/plain")
        with made.open("b.bin", "application/octet-stream", "some/schema/1") as file:
            file.write(b"se")
            file.write(memoryview(b"cond"))
    return tmp_path / "export"


def test_an_export_is_what_was_written_and_says_what_it_is(export):
    opened = open_packet(export, KEYS, ORIGIN)
    assert opened.read("a.txt") == b"first\n"
    assert opened.read("b.bin") == b"second"
    assert (opened.manifest.first, opened.manifest.last, opened.manifest.size) == (0, 3, LOG.size)
    assert opened.manifest.files["b.bin"].schema_id == "some/schema/1"
    assert opened.checkpoint == Checkpoint.open(LOG.checkpoint, KEYS, ORIGIN)[0]
    assert (export / CHECKPOINT).read_text() == LOG.checkpoint


def test_the_same_export_has_the_same_bytes_and_its_digest_is_the_manifests(tmp_path):
    made = [writer(tmp_path / name) for name in ("one", "two")]
    for each in made:
        with each:
            each.add("a", b"x", "text/plain")
    assert (tmp_path / "one" / MANIFEST).read_bytes() == (tmp_path / "two" / MANIFEST).read_bytes()
    assert (tmp_path / "one" / NOTE).read_bytes() == (tmp_path / "two" / NOTE).read_bytes()
    assert made[0].digest == made[1].digest == open_packet(tmp_path / "one", KEYS).digest


def test_nobody_else_may_read_an_export(export):
    assert export.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in export.iterdir()} == {0o600}


def test_the_note_is_four_lines_and_no_checkpoint(export):
    note = (export / NOTE).read_text()
    assert note.splitlines()[:3] == [NOTE_HEADER, ORIGIN, "jsonl"]
    with pytest.raises(AuditFormatError, match="tree size"):
        Checkpoint.open(note, KEYS)


def test_a_checkpoint_is_no_manifest_note(export):
    (export / NOTE).write_text(LOG.checkpoint)
    with pytest.raises(AuditTamperedError, match=NOTE):
        open_packet(export, KEYS)


def test_a_log_named_like_the_header_is_refused_on_both_sides(tmp_path, export):
    with pytest.raises(AuditKeyError, match="told from the header"):
        writer(tmp_path / "x", ExampleLog(origin=NOTE_HEADER))
    reseal(export, origin=NOTE_HEADER)
    with pytest.raises(AuditTamperedError, match="another log"):
        open_packet(export, KEYS)


def test_an_error_leaves_nothing(tmp_path):
    opened = []

    def make():
        with writer(tmp_path / "export") as made:
            made.add("a", b"x", "text/plain")
            opened.append(made.open("b", "text/plain"))
            opened[0].write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        make()
    assert opened[0].closed
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_not_closed_is_no_export(tmp_path):
    with pytest.raises(ValueError, match="b: still open"), writer(tmp_path / "export") as made:
        made.open("b", "text/plain")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")])
def test_what_is_there_is_left_alone(tmp_path, make):
    make(tmp_path / "export")
    with pytest.raises(AuditSetupError, match="choose another place"), writer(tmp_path / "export"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_what_came_meanwhile_is_left_alone(tmp_path):
    with pytest.raises(AuditSetupError, match="choose another place"), writer(tmp_path / "export"):
        (tmp_path / "export").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_what_no_verifier_would_read_is_not_published(tmp_path, monkeypatch):
    """Found in review: a manifest over its limit was signed and published, and then no one could verify it."""
    with writer(tmp_path / "whole") as made:
        made.add("a", b"x", "text/plain")
    monkeypatch.setattr(packet, "MAX_MANIFEST_BYTES", (tmp_path / "whole" / MANIFEST).stat().st_size)
    with writer(tmp_path / "again") as made:
        made.add("a", b"x", "text/plain")
    assert open_packet(tmp_path / "again", KEYS)
    made = writer(tmp_path / "more")
    made.__enter__()
    made.add("a", b"x", "text/plain")
    made.add("b", b"x", "text/plain")
    with pytest.raises(AuditSetupError, match="3 files, more than a manifest lists"):
        made.__exit__(None, None, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "whole"]


def test_a_manifest_has_room_for_all_records_that_have_their_own_files(export):
    told = json.loads((export / MANIFEST).read_bytes())
    entry = told["files"]["a.txt"]
    told["files"] |= {f"{number:05}".ljust(100, "x"): entry for number in range(2 * shown.MAX_OWN_FILES)}
    assert len(Manifest.model_validate_json(json.dumps(told)).canonical()) < packet.MAX_MANIFEST_BYTES / 2


def test_a_full_disk_is_said_without_the_path(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device", str(tmp_path))

    monkeypatch.setattr(packet.os, "fsync", full)
    with pytest.raises(AuditUnavailableError, match="No space left on device") as caught, writer(tmp_path / "export") as made:
        made.add("a", b"x", "text/plain")
    assert str(tmp_path) not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../a", "a b", MANIFEST, NOTE, "x" * 101, "a\n"])
def test_names_that_are_no_file_names_of_an_export(tmp_path, name):
    with pytest.raises(ValueError, match="cannot be a file's name"), writer(tmp_path / "export") as made:
        made.open(name, "text/plain")


def test_a_name_is_given_once(tmp_path):
    with writer(tmp_path / "export") as made:
        made.add("a", b"", "text/plain")
        with pytest.raises(ValueError, match="already"):
            made.add("a", b"", "text/plain")


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"signers": []}, AuditKeyError, "takes an Ed25519 key"),
        ({"signers": [Ed25519Signer("other.example", Ed25519PrivateKey.generate())]}, AuditKeyError, "another name"),
        ({"first": None}, AuditFormatError, "range"),
        ({"first": 4}, AuditFormatError, "range"),
        ({"last": LOG.size}, AuditFormatError, "range"),
        ({"form": "JSON"}, ValueError, "form"),
        ({"form": "a" * 33}, ValueError, "form"),
    ],
)
def test_what_cannot_be_an_export_is_not_begun(tmp_path, changes, error, match):
    with pytest.raises(error, match=match):
        writer(tmp_path / "export", **changes)


def test_a_reader_that_says_another_size_than_its_checkpoint_is_not_exported(tmp_path):
    class Lying(ExampleLog):
        size = LOG.size + 1

    lying = Lying()
    lying.__dict__["checkpoint"] = LOG.checkpoint
    with pytest.raises(AuditTamperedError, match="another size"):
        writer(tmp_path / "export", lying)


def test_a_signer_that_can_only_cosign_is_passed_over(tmp_path):
    class Cosigner:
        key = VerifierKey(ORIGIN, Algorithm.ML_DSA_44_COSIGNATURE, bytes(1312))

        def sign(self, text):
            raise AssertionError("asked to sign what is no checkpoint")

    with writer(tmp_path / "export", signers=[Cosigner(), SIGNER]):
        pass
    assert open_packet(tmp_path / "export", KEYS)


@pytest.mark.parametrize("name", ["a.txt", "b.bin", CHECKPOINT, MANIFEST, NOTE])
def test_every_file_has_to_be_there_whole_and_unchanged(export, name):
    content = (export / name).read_bytes()
    (export / name).unlink()
    with pytest.raises(AuditTamperedError, match=f"{name} is missing"):
        open_packet(export, KEYS)
    for changed in (content[:-1], content + b"\n", bytes([content[0] ^ 1]) + content[1:]):
        (export / name).write_bytes(changed)
        with pytest.raises((AuditTamperedError, AuditFormatError)):
            open_packet(export, KEYS)
    (export / name).write_bytes(content)
    assert open_packet(export, KEYS)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_flipped_bit_goes_unnoticed(export, data):
    name = data.draw(st.sampled_from(sorted(os.listdir(export))))
    content = (export / name).read_bytes()
    place, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
    (export / name).write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
    try:
        with pytest.raises(AuditError):
            open_packet(export, KEYS)
    finally:
        (export / name).write_bytes(content)


def test_renamed_and_exchanged_files_are_noticed(export):
    (export / "a.txt").rename(export / "c.txt")
    with pytest.raises(AuditTamperedError, match=r"a\.txt is missing"):
        open_packet(export, KEYS)
    (export / "b.bin").rename(export / "a.txt")
    (export / "c.txt").rename(export / "b.bin")
    with pytest.raises(AuditTamperedError, match=r"a\.txt is not what|b\.bin is not what"):
        open_packet(export, KEYS)


def test_a_file_too_many_is_noticed_but_not_named(export):
    (export / "jane-doe.pdf").touch()
    with pytest.raises(AuditTamperedError, match="1 more than") as caught:
        open_packet(export, KEYS)
    assert "jane" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.txt", CHECKPOINT, MANIFEST, NOTE])
def test_a_link_is_refused_even_to_the_right_content(export, tmp_path, name):
    (export / name).rename(tmp_path / "elsewhere")
    (export / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AuditTamperedError, match=f"{name} is a link"):
        open_packet(export, KEYS)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_refused_and_does_not_block(export, make):
    (export / "a.txt").unlink()
    make(export / "a.txt")
    with pytest.raises(AuditTamperedError, match=r"a\.txt is a link, a folder or a device"):
        open_packet(export, KEYS)


def test_no_folder_is_said_without_the_path(tmp_path):
    with pytest.raises(AuditUnavailableError, match="cannot be read") as caught:
        open_packet(tmp_path / "nowhere", KEYS)
    assert str(tmp_path) not in str(caught.value)


def test_a_stranger_cannot_sign_it(export):
    with pytest.raises(AuditTamperedError, match="by a key that is known"):
        open_packet(export, [OTHER.key])
    manifest = Manifest.parse((export / MANIFEST).read_bytes())
    text = packet._note_text(manifest, manifest.canonical())
    witness = Ed25519Signer("witness.example", Ed25519PrivateKey.generate())
    (export / NOTE).write_text(sign_note(text, [witness]))
    with pytest.raises(AuditTamperedError, match="No key of the log itself"):
        open_packet(export, [*KEYS, witness.key])


def test_another_log_than_the_one_that_is_meant(export):
    with pytest.raises(AuditTamperedError, match="another log"):
        open_packet(export, KEYS, "other.example/log")


def test_the_signature_of_one_export_does_not_do_for_another(export, tmp_path):
    with writer(tmp_path / "other") as made:
        made.add("a.txt", b"else", "text/plain")
    (export / NOTE).write_bytes((tmp_path / "other" / NOTE).read_bytes())
    with pytest.raises(AuditTamperedError, match=f"not the signature of this {MANIFEST}"):
        open_packet(export, KEYS)


def test_a_checkpoint_of_another_size_than_the_manifest_says(export):
    (export / CHECKPOINT).write_text(ExampleLog(entries()[:5]).checkpoint)
    reseal(export)
    with pytest.raises(AuditTamperedError, match="checkpoint is of 5 records"):
        open_packet(export, KEYS)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"schema": "clinical-ser/audit-export/2"}, "schema"),
        ({"first": 5, "last": 4}, "range"),
        ({"last": None}, "range"),
        ({"size": "23"}, "size"),
        ({"created": "yesterday"}, "created"),
        ({"surplus": 1}, "surplus"),
        ({"files": {"../a": {}}}, "files"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(export, changes, match):
    told = json.loads((export / MANIFEST).read_bytes()) | changes
    with pytest.raises(AuditFormatError, match=match):
        Manifest.parse(json.dumps(told, sort_keys=True, separators=(",", ":")).encode() + b"\n")


def test_a_manifest_has_one_spelling(export):
    with pytest.raises(AuditFormatError, match="canonical"):
        Manifest.parse((export / MANIFEST).read_bytes().replace(b",", b", ", 1))


@pytest.mark.parametrize("change", [lambda files: files.pop(CHECKPOINT), lambda files: files.update({NOTE: files["a.txt"]})])
def test_a_manifest_lists_the_checkpoint_and_not_itself(export, change):
    files = json.loads((export / MANIFEST).read_bytes())["files"]
    change(files)
    manifest = Manifest.model_validate_json(json.dumps(json.loads((export / MANIFEST).read_bytes()) | {"files": files}))
    (export / MANIFEST).write_bytes(manifest.canonical())
    (export / NOTE).write_text(sign_note(packet._note_text(manifest, manifest.canonical()), [SIGNER]))
    with pytest.raises(AuditFormatError, match="list"):
        open_packet(export, KEYS)


def test_a_format_that_is_not_known_is_said_with_those_that_are(tmp_path):
    with writer(tmp_path / "export", form="papyrus"):
        pass
    with pytest.raises(AuditFormatError, match=r"'papyrus' version 1.*jsonl"):
        verify_export(tmp_path / "export", KEYS)


def test_a_file_that_the_format_has_is_asked_for(tmp_path):
    with writer(tmp_path / "export"):
        pass
    with pytest.raises(AuditFormatError, match=r"holds no selection\.json"):
        verify_export(tmp_path / "export", KEYS)


def test_an_export_of_another_log_is_noticed_when_the_log_is_at_hand(tmp_path):
    json_lines.export(LOG, tmp_path / "export", [SIGNER])
    assert verify_export(tmp_path / "export", KEYS, reader=ExampleLog([*entries(), entries()[0]]))
    with pytest.raises(AuditTamperedError, match="not grown from"):
        verify_export(tmp_path / "export", KEYS, reader=ExampleLog([entries()[1], *entries()]))


def test_the_schemas_that_ship_are_those_of_the_manifest(export):
    schema = json.loads((SCHEMAS / "audit-export-1.schema.json").read_bytes())
    assert schema == json.loads(shown.json_schema(Manifest, packet.SCHEMA, None))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads((export / MANIFEST).read_bytes()), schema, jsonschema.Draft202012Validator)
