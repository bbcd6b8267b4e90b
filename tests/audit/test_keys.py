"""The log's keys: made, rotated and retired from each source, never readable by others, and usable whenever a change was cut off."""

import base64
import fcntl
import json
import os
import stat
import sys
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from clinical_ser.audit import keys as keys_module
from clinical_ser.audit.checkpoint import Checkpoint
from clinical_ser.audit.keys import KEYS_FILE, LogKeys, ProgramSigner
from clinical_ser.audit.notes import Algorithm, Ed25519Signer
from clinical_ser.errors import AuditBusyError, AuditFormatError, AuditKeyError

ORIGIN = "example.com/log"
CHECKPOINT = Checkpoint(ORIGIN, 5, b"r" * 32)
SEEDS = [bytes([number]) * 32 for number in range(3)]
PRIVATE = [Ed25519PrivateKey.from_private_bytes(seed) for seed in SEEDS]
VKEYS = [Ed25519Signer(ORIGIN, private).key for private in PRIVATE]
ENCODED = [base64.b64encode(seed).decode() for seed in SEEDS]


def pem_of(private: object, encryption: object = NoEncryption()) -> str:
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption).decode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.fixture
def keys(folder: Path) -> LogKeys:
    return LogKeys.create(folder, ORIGIN)


def private_files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {KEYS_FILE}


def file_of(keys: LogKeys) -> Path:
    return keys._folder / keys.records[-1].private_file


def assert_signs(keys: LogKeys) -> str:
    """Sign with every active key, open with a fresh reading of the list, and return the note."""
    note = CHECKPOINT.sign(keys.signers)
    checkpoint, opened = Checkpoint.open(note, LogKeys.load(keys._folder).verifiers, ORIGIN)
    assert checkpoint == CHECKPOINT
    assert tuple(key for key, _ in opened.verified) == keys.active
    return note


# Made, kept, read


def test_a_new_key_signs_for_its_log_and_belongs_to_its_owner_alone(folder, keys):
    assert_signs(keys)
    assert [key.name for key in keys.verifiers] == [ORIGIN]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {KEYS_FILE: 0o600, file_of(keys).name: 0o600}


def test_keys_are_the_same_after_a_restart(folder, keys):
    again = LogKeys.load(folder)
    assert (again.records, again.origin, again.active) == (keys.records, ORIGIN, keys.active)
    assert_signs(again)


def test_a_log_can_sign_with_ml_dsa_too(folder):
    keys = LogKeys.create(folder, ORIGIN, ml_dsa=True)
    assert [key.algorithm for key in keys.active] == [Algorithm.ED25519, Algorithm.ML_DSA_44_COSIGNATURE]
    assert_signs(keys)
    assert_signs(LogKeys.load(folder))


def test_the_list_says_when_and_where_from_and_holds_nothing_secret(folder, keys):
    text = (folder / KEYS_FILE).read_text()
    (record,) = json.loads(text)["keys"]
    assert record == {
        "vkey": str(keys.active[0]),
        "state": "active",
        "created": keys.records[0].created,
        "retired": None,
        "source": "file",
        "last_size": None,
    }
    assert file_of(keys).read_text().splitlines()[1] not in text
    assert repr(keys) == "LogKeys(example.com/log, 1 active of 1)"


def test_verifying_needs_no_private_key(folder, keys):
    file_of(keys).unlink()
    again = LogKeys.load(folder)
    assert again.verifiers == keys.verifiers
    with pytest.raises(AuditKeyError, match="cannot be read"):
        _ = again.signers


def test_keys_that_are_there_are_never_made_again(folder, keys):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(AuditKeyError, match="has keys already"):
        LogKeys.create(folder, ORIGIN)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("origin", ["", "a b", "a+b", "a\nb"])
def test_an_origin_that_can_be_no_keys_name_is_refused(folder, origin):
    with pytest.raises(AuditKeyError, match="origin"):
        LogKeys.create(folder, origin)
    assert not folder.exists()


def test_no_list_is_an_error_that_names_no_path(folder):
    with pytest.raises(AuditKeyError, match="No such file") as caught:
        LogKeys.load(folder)
    assert str(folder) not in str(caught.value)


# Who may read


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_a_private_key_that_others_may_touch_is_refused(keys, mode):
    file_of(keys).chmod(mode)
    with pytest.raises(AuditKeyError, match=f"mode {mode:04o}.*chmod 600"):
        _ = keys.signers


def test_a_list_or_folder_that_others_may_touch_is_refused(folder, keys):
    (folder / KEYS_FILE).chmod(0o620)
    with pytest.raises(AuditKeyError, match=r"list of keys.*chmod 600"):
        LogKeys.load(folder)
    (folder / KEYS_FILE).chmod(0o600)
    folder.chmod(0o750)
    for attempt in (lambda: LogKeys.load(folder), keys.rotate):
        with pytest.raises(AuditKeyError, match=r"folder of the keys.*chmod 700"):
            attempt()


def test_files_of_another_user_are_refused(folder, keys, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000)
    with pytest.raises(AuditKeyError, match="another user"):
        LogKeys.load(folder)
    with pytest.raises(AuditKeyError, match="another user"):
        _ = keys.signers


@pytest.mark.parametrize(
    "content",
    [
        "",
        "no key",
        pem_of(PRIVATE[0], BestAvailableEncryption(b"secret")),
        pem_of(generate_private_key(SECP256R1())),
        pem_of(PRIVATE[0]),
        "a" * 20_000,
    ],
    ids=["empty", "no key", "encrypted", "another algorithm", "another key", "too long"],
)
def test_a_file_without_the_key_of_the_list_is_refused(keys, content):
    file_of(keys).write_text(content)
    with pytest.raises(AuditKeyError) as caught:
        _ = keys.signers
    assert str(keys._folder) not in str(caught.value)


# The list is strict


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"active"', '"lost"'),
        ('"retired":null', '"retired":"2026-01-01T00:00:00Z"'),
        ('"retired":null', '"retired":"yesterday"'),
        ('"active"', '"retired"'),
        ('"retired":null,', ""),
        ('"retired":null', '"more":1,"retired":null'),
        ('"retired":null', '"retired":null,"retired":null'),
        ('"file"', '"env:1"'),
        ('"file"', '"exec:"'),
        ('"file"', '"exec:\\"a"'),
        ('"file"', '"ftp"'),
        (ORIGIN + "+", "example.com/lig+"),
        (f'"origin":"{ORIGIN}"', '"origin":"example.com/other"'),
        (f'"origin":"{ORIGIN}"', '"origin":"\\ud800"'),
        ("audit-keys/1", "audit-keys/2"),
        ("}]", "}] "),
        ("\n", ""),
        ('"keys":[', '"keys":[],"keys":['),
    ],
)
def test_a_list_that_this_program_would_not_write_is_refused(folder, keys, old, new):
    content = (folder / KEYS_FILE).read_text()
    assert old in content
    (folder / KEYS_FILE).write_text(content.replace(old, new, 1))
    with pytest.raises(AuditFormatError, match=r"keys\.json") as caught:
        LogKeys.load(folder)
    assert str(folder) not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]\n", b"\xff", b"null\n"])
def test_what_is_no_list_is_refused(folder, keys, content):
    (folder / KEYS_FILE).write_bytes(content)
    with pytest.raises(AuditFormatError, match=r"keys\.json"):
        LogKeys.load(folder)


def test_a_key_listed_twice_is_refused(folder, keys):
    listed = json.loads((folder / KEYS_FILE).read_text())
    listed["keys"] *= 2
    (folder / KEYS_FILE).write_text(json.dumps(listed, sort_keys=True, separators=(",", ":")) + "\n")
    with pytest.raises(AuditFormatError, match="same id"):
        LogKeys.load(folder)


# Rotated and retired


def test_after_a_rotation_the_new_key_signs_and_the_old_checkpoint_still_verifies(folder, keys):
    old_note, old_file = assert_signs(keys), file_of(keys)
    (old,) = keys.active
    new = keys.rotate()
    assert keys.active == (new,)
    assert keys.verifiers == (old, new)
    assert private_files(folder) == {file_of(keys).name}
    assert not old_file.exists()
    assert assert_signs(keys) != old_note
    assert Checkpoint.open(old_note, LogKeys.load(folder).verifiers, ORIGIN)[0] == CHECKPOINT
    assert [(record.state, record.retired is None) for record in keys.records] == [("retired", False), ("active", True)]


def test_the_old_private_key_is_overwritten_before_it_goes(keys):
    with file_of(keys).open("rb") as still_open:
        assert b"PRIVATE KEY" in still_open.read()
        keys.rotate()
        still_open.seek(0)
        assert set(still_open.read()) == {0}


def test_ml_dsa_is_rotated_along(folder):
    keys = LogKeys.create(folder, ORIGIN, ml_dsa=True)
    new = keys.rotate()
    assert [key.algorithm for key in keys.active] == [Algorithm.ED25519, Algorithm.ML_DSA_44_COSIGNATURE]
    assert keys.active[0] == new
    assert len(keys.verifiers) == 4
    assert len(private_files(folder)) == 2
    assert_signs(keys)


def test_one_of_two_keys_can_be_retired_and_the_last_cannot(folder):
    keys = LogKeys.create(folder, ORIGIN, ml_dsa=True)
    ed25519, ml_dsa = keys.active
    keys.retire(ml_dsa.key_id)
    assert keys.active == (ed25519,)
    assert keys.verifiers == (ed25519, ml_dsa)
    assert len(private_files(folder)) == 1
    with pytest.raises(AuditKeyError, match="last active key"):
        keys.retire(ed25519.key_id)
    with pytest.raises(AuditKeyError, match=f"{ml_dsa.key_id:08x}; active: {ed25519.key_id:08x}"):
        keys.retire(ml_dsa.key_id)
    assert_signs(keys)


def test_a_change_starts_from_what_another_process_has_left(folder, keys):
    other = LogKeys.load(folder)
    first = other.rotate()
    second = keys.rotate()
    assert keys.verifiers[1:] == (first, second)
    assert LogKeys.load(folder).active == (second,)


def test_two_changes_at_once_are_refused(folder, keys):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # enough to keep a change out, which wants the folder for itself
        for attempt in (keys.rotate, lambda: keys.retire(keys.active[0].key_id), lambda: LogKeys.create(folder, ORIGIN)):
            with pytest.raises(AuditBusyError):
                attempt()
    finally:
        os.close(descriptor)
    keys.rotate()


# Cut off in between


class Crash(BaseException):
    """The machine stops here."""


SYSTEM_CALLS = [(os, "open"), (os, "fsync"), (Path, "replace"), (Path, "unlink")]


def crash_at(monkeypatch: pytest.MonkeyPatch, number: int, *, after: bool) -> list[str]:
    """Let the `number`-th system call that changes something be the last one, done or not; return the calls so far."""
    calls: list[str] = []

    def counted(name, original):
        def call(*arguments, **options):
            calls.append(name)
            if len(calls) > number or (len(calls) == number and not after):
                raise Crash
            result = original(*arguments, **options)
            if len(calls) == number:
                raise Crash
            return result

        return call

    for owner, name in SYSTEM_CALLS:
        monkeypatch.setattr(owner, name, counted(name, getattr(owner, name)))
    return calls


def crashes_of(change, restore) -> int:
    """Cut a change off at every system call, before and after it, and return how many there were."""
    for after in (False, True):
        for number in range(1, 100):
            restore()
            with pytest.MonkeyPatch.context() as patch:
                crash_at(patch, number, after=after)
                try:
                    change()
                except Crash:
                    continue
                break
    return number - 1


def test_a_rotation_that_is_cut_off_anywhere_leaves_keys_that_sign_and_rotate(tmp_path):
    attempts = iter(range(10_000))
    state: dict[str, LogKeys | str] = {}

    def check_the_last_attempt() -> None:
        if "keys" in state:
            keys = LogKeys.load(state["keys"]._folder)
            assert_signs(keys)
            assert Checkpoint.open(state["note"], keys.verifiers, ORIGIN)
            retired = {record.private_file for record in keys.records if not record.is_active}
            assert not retired & private_files(keys._folder)
            keys.rotate()
            assert_signs(keys)
            assert private_files(keys._folder) == {file_of(keys).name}

    def restore() -> None:
        check_the_last_attempt()
        state["keys"] = LogKeys.create(tmp_path / str(next(attempts)), ORIGIN)
        state["note"] = assert_signs(state["keys"])

    def rotate() -> None:
        state["keys"].rotate()

    assert crashes_of(rotate, restore) > 10


def test_a_first_key_that_is_cut_off_anywhere_is_there_or_can_be_made_again(tmp_path):
    attempts = iter(range(10_000))
    folder = tmp_path / "none"

    def restore() -> None:
        nonlocal folder
        if folder.exists():
            assert_signs(LogKeys.load(folder) if (folder / KEYS_FILE).exists() else LogKeys.create(folder, ORIGIN))
        folder = tmp_path / str(next(attempts))

    assert crashes_of(lambda: LogKeys.create(folder, ORIGIN), restore) > 5


def test_the_new_key_is_on_disk_before_the_list_and_the_old_one_goes_after_it(keys, monkeypatch):
    calls = crash_at(monkeypatch, 1000, after=False)
    keys.rotate()
    changes = "".join({"fsync": "s", "replace": "R", "unlink": "U"}.get(name, "") for name in calls)
    # The new private key, its name; the draft (whose leftover is removed first), its name; the list; the old key overwritten, removed.
    assert changes == "ss" + "U" + "ss" + "R" + "s" + "s" + "U" + "s"


def test_a_full_disk_is_an_error_and_changes_nothing(folder, keys, monkeypatch):
    before = (folder / KEYS_FILE).read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AuditKeyError, match="No space left on device") as caught:
        keys.rotate()
    assert str(folder) not in str(caught.value)
    monkeypatch.undo()
    assert (folder / KEYS_FILE).read_bytes() == before
    assert_signs(LogKeys.load(folder))


# From the environment


@pytest.mark.parametrize("value", [ENCODED[0], f" {ENCODED[0]}\n", pem_of(PRIVATE[0])], ids=["base64", "spaces around", "PEM"])
def test_a_key_from_the_environment_signs_and_is_never_on_disk(folder, monkeypatch, value):
    monkeypatch.setenv("AUDIT_KEY", value)
    keys = LogKeys.create(folder, ORIGIN, source="env:AUDIT_KEY")
    assert keys.active == (VKEYS[0],)
    assert_signs(LogKeys.load(folder))
    assert private_files(folder) == set()
    assert ENCODED[0] not in (folder / KEYS_FILE).read_text()


@pytest.mark.parametrize(
    "value", ["", "no key", ENCODED[0][:-4], ENCODED[0] + "AAAA", pem_of(generate_private_key(SECP256R1())), "-----BEGIN PRIVATE KEY-----\n\udcff"]
)
def test_a_variable_that_holds_no_key_is_an_error_without_its_content(folder, monkeypatch, value):
    monkeypatch.setenv("AUDIT_KEY", value)
    with pytest.raises(AuditKeyError, match="AUDIT_KEY") as caught:
        LogKeys.create(folder, ORIGIN, source="env:AUDIT_KEY")
    assert not value or value not in str(caught.value)


def test_a_variable_with_another_key_than_the_list_says_signs_nothing(folder, monkeypatch):
    monkeypatch.setenv("AUDIT_KEY", ENCODED[0])
    LogKeys.create(folder, ORIGIN, source="env:AUDIT_KEY")
    monkeypatch.setenv("AUDIT_KEY", ENCODED[1])
    with pytest.raises(AuditKeyError, match="another key"):
        _ = LogKeys.load(folder).signers


def test_a_variable_is_rotated_by_putting_another_key_there(folder, monkeypatch):
    monkeypatch.setenv("AUDIT_KEY", ENCODED[0])
    keys = LogKeys.create(folder, ORIGIN, source="env:AUDIT_KEY")
    with pytest.raises(AuditKeyError, match="has or had already"):
        keys.rotate()
    monkeypatch.setenv("AUDIT_KEY", ENCODED[1])
    assert keys.rotate() == VKEYS[1]
    assert_signs(keys)
    monkeypatch.setenv("AUDIT_KEY", ENCODED[0])
    with pytest.raises(AuditKeyError, match="has or had already"):
        keys.rotate()


def test_a_source_can_change_with_a_rotation(folder, keys, monkeypatch):
    monkeypatch.setenv("AUDIT_KEY", ENCODED[0])
    assert keys.rotate(source="env:AUDIT_KEY") == VKEYS[0]
    assert private_files(folder) == set()
    keys.rotate(source="file")
    assert private_files(folder) == {file_of(keys).name}
    assert [record.source for record in keys.records] == ["file", "env:AUDIT_KEY", "file"]
    assert_signs(keys)


@pytest.mark.parametrize("source", ["", "ftp", "env:", "env:A-B", "exec:", "exec:'a", "exec:a\0b"])
def test_a_source_that_is_none_is_refused(folder, keys, source):
    with pytest.raises(AuditKeyError, match="env:VARIABLE"):
        LogKeys.create(folder.parent / "other", ORIGIN, source=source)
    if source:
        with pytest.raises(AuditKeyError, match="env:VARIABLE"):
            keys.rotate(source)


def test_ml_dsa_is_from_files_only(folder, monkeypatch):
    monkeypatch.setenv("AUDIT_KEY", ENCODED[0])
    with pytest.raises(AuditKeyError, match="always in a file"):
        LogKeys.create(folder, ORIGIN, source="env:AUDIT_KEY", ml_dsa=True)
    keys = LogKeys.create(folder, ORIGIN, ml_dsa=True)
    with pytest.raises(AuditKeyError, match="always in a file"):
        keys.rotate("env:AUDIT_KEY")


# From a program

HOOK = """
import base64, os, sys, time
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
*given, request = sys.argv[1:]
behaviour, seed = open(os.path.join(os.path.dirname(__file__), "behaviour")).read().split()
key = Ed25519PrivateKey.from_private_bytes(base64.b64decode(seed))
assert given == ["--slot", "two words"]
if behaviour in ("fails-at-" + request,):
    print("the PIN is 1234"); print("the PIN is 1234", file=sys.stderr); sys.exit(3)
if behaviour == "sleeps":
    time.sleep(60)
if behaviour == "floods":
    sys.stdout.write("A" * 10_000_000)
if behaviour == "zeroes":
    print(base64.b64encode(bytes(32)).decode()); sys.exit()
if behaviour == "garbles":
    print("the PIN is 1234"); sys.exit()
if request == "public":
    print(base64.b64encode(key.public_key().public_bytes_raw()).decode())
if request == "sign":
    print(base64.b64encode(key.sign(sys.stdin.buffer.read())).decode())
"""


@pytest.fixture
def hook(tmp_path: Path):
    """A program that keeps the key; `hook.behave(how, seed)` changes what it does."""
    program = tmp_path / "hook.py"
    program.write_text(HOOK)

    class Hook:
        source = f"exec:'{sys.executable}' '{program}' --slot 'two words'"

        @staticmethod
        def behave(how: str, seed: str = ENCODED[0]) -> None:
            (tmp_path / "behaviour").write_text(f"{how} {seed}")

    Hook.behave("works")
    return Hook


def test_a_key_behind_a_program_signs_and_is_never_on_disk(folder, hook):
    keys = LogKeys.create(folder, ORIGIN, source=hook.source)
    assert keys.active == (VKEYS[0],)
    assert_signs(LogKeys.load(folder))
    assert private_files(folder) == set()
    assert isinstance(keys.signers[0], ProgramSigner)
    assert "slot" not in repr(keys.signers[0])


def test_a_program_is_rotated_by_giving_it_another_key(folder, hook):
    keys = LogKeys.create(folder, ORIGIN, source=hook.source)
    hook.behave("works", ENCODED[1])
    assert keys.rotate() == VKEYS[1]
    assert_signs(keys)


def test_a_signature_of_another_key_is_not_used(folder, hook):
    keys = LogKeys.create(folder, ORIGIN, source=hook.source)
    hook.behave("works", ENCODED[1])
    with pytest.raises(AuditKeyError, match="does not fit"):
        CHECKPOINT.sign(keys.signers)


@pytest.mark.parametrize(
    ("behaviour", "reason"), [("fails-at-sign", "status 3"), ("sleeps", "within 1 s"), ("floods", "too much"), ("garbles", "64 bytes in base64")]
)
def test_a_program_that_does_not_answer_is_an_error_without_its_output(folder, hook, monkeypatch, behaviour, reason):
    keys = LogKeys.create(folder, ORIGIN, source=hook.source)
    hook.behave(behaviour)
    monkeypatch.setattr(keys_module, "PROGRAM_TIMEOUT_S", 1.0)
    with pytest.raises(AuditKeyError, match=reason) as caught:
        CHECKPOINT.sign(keys.signers)
    assert not [secret for secret in ("1234", "slot", str(folder.parent)) if secret in str(caught.value)]


def test_a_program_is_not_given_trust_with_a_key_under_which_anyone_can_sign(folder, hook):
    hook.behave("zeroes")
    with pytest.raises(AuditKeyError, match="small order"):
        LogKeys.create(folder, ORIGIN, source=hook.source)


def test_a_program_that_is_not_there_is_an_error(folder):
    with pytest.raises(AuditKeyError, match="No such file") as caught:
        LogKeys.create(folder, ORIGIN, source="exec:/nowhere/at-all")
    assert "nowhere" not in str(caught.value)


def test_a_program_is_run_without_a_shell(folder, tmp_path):
    with pytest.raises(AuditKeyError):
        LogKeys.create(folder, ORIGIN, source=f"exec:echo AAAA; touch '{tmp_path / 'made'}' $(touch '{tmp_path / 'made'}')")
    assert not (tmp_path / "made").exists()


def test_a_long_message_does_not_block_a_program_that_answers_first(folder, tmp_path):
    answers = tmp_path / "answers.py"
    answers.write_text("import base64, sys\nprint(base64.b64encode(b'x' * (32 if sys.argv[-1] == 'public' else 64)).decode(), flush=True)\n")
    keys = LogKeys.create(folder, ORIGIN, source=f"exec:'{sys.executable}' '{answers}'")
    failed: list[BaseException] = []

    def sign() -> None:
        try:
            keys.signers[0].sign(b"a" * 10_000_000)
        except AuditKeyError as error:
            failed.append(error)

    thread = threading.Thread(target=sign)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert "does not fit" in str(failed[0])
