import json
import os
import signal
import stat
from datetime import timedelta

import pytest

from clinical_ser.errors import (
    BundleError,
    BundleIncompleteError,
    BundleTamperedError,
    InvalidValueError,
    RegistryConflictError,
    RegistryError,
    RegistryTamperedError,
)
from clinical_ser.file_lock import FileLock
from clinical_ser.models.bundle import read_bundle, sign_bundle
from clinical_ser.models.signing import SignatureState
from clinical_ser.models.strict_json import canonical_json
from clinical_ser.registry import Entry, Pointers, Record, Registry, store
from tests.models.bundle_content import KEY
from tests.registry.keeping import WHEN, ended, in_child, keep, killed_at, make_bundle


@pytest.fixture
def registry(tmp_path) -> Registry:
    return Registry(tmp_path / "registry")


@pytest.fixture
def pair(registry, tmp_path) -> tuple[str, str]:
    """Two bundles, the second made from the first."""
    first = keep(registry, tmp_path, "1")
    return first, keep(registry, tmp_path, "2", parent=first)


def promote(registry, digest, name="ward", **fields) -> Entry:
    head = registry.head(name)
    fields = {"action": "promoted", "actor": "quality", "bundle": digest} | fields
    return registry.switch(name, expected=head.digest if head else None, pointers=Pointers(champion=digest), **fields)


def entry_files(registry, name="ward"):
    return sorted(path for path in (registry.folder / "names" / name).iterdir() if path.suffix == ".json" and not path.name.startswith("."))


# --- bundles


def test_a_bundle_comes_back_as_it_was_added_with_its_record(registry, tmp_path):
    folder = make_bundle(tmp_path / "made", extractors={"timing": "timing/1", "embedding.hubert": "onnx:ab"})
    record = Record.of(
        read_bundle(folder), change="trained", subjects={"depressed": 3}, recordings=4, details={"forgetting": 1.0, "rounds": 3, "own": True}
    )
    digest = registry.add(folder, record)
    assert registry.digests() == (digest,)
    assert registry.bundle(digest).files == read_bundle(folder).files
    kept = Registry(registry.folder).record(digest)
    assert kept == record
    assert {name: type(value) for name, value in kept.details.items()} == {"forgetting": float, "rounds": int, "own": bool}
    assert (kept.extractors, kept.encoders) == ({"timing": "timing/1"}, {"hubert": "onnx:ab"})
    assert registry.verify() == ()


def test_adding_again_changes_nothing_and_another_record_is_refused(registry, tmp_path):
    digest = keep(registry, tmp_path)
    folder, before = registry.folder_of(digest), registry.record(digest)
    stood = {path: path.stat().st_mtime_ns for path in registry.folder.rglob("*") if path.is_file() and path.name != "lock"}
    again = before.model_copy(update={"created": WHEN + timedelta(days=1)})
    assert registry.add(folder, again) == digest
    assert {path: path.stat().st_mtime_ns for path in stood} == stood
    with pytest.raises(RegistryConflictError, match="with another record; nothing was changed"):
        registry.add(folder, before.model_copy(update={"change": "imported"}))
    assert registry.record(digest) == before


def test_a_signature_that_comes_later_is_taken_over_and_never_lost(registry, tmp_path):
    folder = make_bundle(tmp_path / "made")
    record = Record.of(read_bundle(folder), change="trained")
    digest = registry.add(folder, record)
    sign_bundle(folder, KEY)
    registry.add(folder, record)
    assert registry.bundle(digest).signature.state is SignatureState.UNTRUSTED
    (folder / "signature").unlink()
    registry.add(folder, record)
    assert registry.bundle(digest).signature.state is SignatureState.UNTRUSTED


def test_a_bundle_that_is_not_sound_or_not_the_records_is_not_taken(registry, tmp_path):
    folder = make_bundle(tmp_path / "made")
    record = Record.of(read_bundle(folder), change="trained")
    with pytest.raises(InvalidValueError, match=r"record \(simulated, version\)"):
        registry.add(folder, record.model_copy(update={"version": "9", "simulated": False}))
    (folder / "head.json").write_bytes(b"{}")
    with pytest.raises(BundleIncompleteError):
        registry.add(folder, record)
    assert registry.digests() == ()


def test_a_bundle_that_was_changed_after_it_was_added_is_refused(registry, pair, tmp_path):
    first, second = pair
    head = registry.folder_of(first) / "head.json"
    head.write_bytes(head.read_bytes().replace(b"0.1", b"0.9"))
    with pytest.raises(BundleTamperedError, match=r"head\.json"):
        registry.bundle(first)
    with pytest.raises(BundleTamperedError):
        promote(registry, first)
    # A whole sound bundle in the place of another.
    os.rename(registry.folder_of(second), tmp_path / "aside")
    make_bundle(registry.folder_of(second), "3")
    with pytest.raises(BundleTamperedError, match="It is another model"):
        registry.bundle(second)
    with pytest.raises(RegistryTamperedError, match="its manifest is another"):
        registry.sound_folder(second)
    assert [problem[:20] for problem in registry.verify()] == [f"Bundle {digest[:12]}:" for digest in sorted(pair)]
    assert registry.head("ward") is None


def test_a_killed_add_leaves_no_bundle_or_a_whole_one_and_the_next_completes_it(tmp_path):
    folder = make_bundle(tmp_path / "made")
    record = Record.of(read_bundle(folder), change="trained")
    step, seen = 0, set()
    while True:
        step += 1
        registry = Registry(tmp_path / f"registry-{step}")
        code = killed_at(step, lambda registry=registry: registry.add(folder, record, private={"memory.json": b"{}"}))
        seen.add(registry.digests())
        for digest in registry.digests():
            registry.bundle(digest)
            assert registry.private(digest, "memory.json") == b"{}"
        digest = registry.add(folder, record, private={"memory.json": b"{}"})
        assert registry.verify() == ()
        assert [path.name for path in (registry.folder / "private" / digest).iterdir()] == ["memory.json"]
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert seen == {(), (digest,)}


# --- finding


def test_a_bundle_is_found_by_digest_by_name_and_by_role(registry, pair):
    first, second = pair
    head = promote(registry, first)
    registry.switch("ward", expected=head.digest, action="shadowed", pointers=Pointers(champion=first, challenger=second), actor="quality")
    assert registry.find(first) == registry.find(first[:8]) == registry.find("ward") == registry.find("ward@champion") == first
    assert registry.find("ward@challenger") == registry.find(f"ward@{second[:8]}") == second
    assert registry.find(f"depression-test@{second[:9]}") == second
    with pytest.raises(InvalidValueError, match="a name with a shadow; 'ward' has champion, challenger"):
        registry.find("ward@shadow")
    with pytest.raises(InvalidValueError, match="no bundle's digest here begins so"):
        registry.find(f"elsewhere@{second[:8]}")


def test_a_beginning_that_two_digests_share_is_refused(registry, tmp_path, monkeypatch):
    monkeypatch.setattr(Registry, "digests", lambda self: ("abcdef01" + "0" * 56, "abcdef01" + "1" * 56))
    assert registry.find("abcdef010").endswith("0")
    with pytest.raises(InvalidValueError, match="more digits: it begins 2 digests"):
        registry.find("abcdef01")


@pytest.mark.parametrize(
    "text", ["", "@", "@champion", "ward@", "ward@king", "../ward", "ward/x@champion", "w\0", "W", "abc", "x" * 5000, "ward@abc"]
)
def test_what_means_no_bundle_is_refused_by_all_that_look_for_one(registry, text):
    with pytest.raises(InvalidValueError):
        registry.find(text)
    with pytest.raises(InvalidValueError):
        registry.record(text)


def test_children_and_descendants_are_those_that_were_made_from_it(registry, pair, tmp_path):
    first, second = pair
    third = keep(registry, tmp_path, "3", parent=second)
    other = keep(registry, tmp_path, "4")
    assert registry.children(first) == (second,)
    assert set(registry.descendants(first)) == {second, third}
    assert registry.descendants(other) == ()


# --- attachments and private files


def test_an_attachment_is_known_by_its_digest_and_refused_when_changed(registry, pair):
    first, second = pair
    content = canonical_json({"kind": "comparison", "auc": 0.8})
    name = registry.attach(first, content)
    assert registry.attach(first, content) == name
    assert (registry.attachments(first), registry.attachments(second)) == ((name,), ())
    assert registry.attachment(first, name) == content
    path = registry.folder / "evaluations" / first / f"{name}.json"
    path.write_bytes(content.replace(b"0.8", b"0.9"))
    for look in (lambda: registry.attachment(first, name), lambda: registry.attach(first, content)):
        with pytest.raises(RegistryTamperedError, match=f"Attachment {name[:12]} of bundle {first[:12]} was changed"):
            look()
    assert len(registry.verify()) == 1


def test_what_is_no_canonical_object_is_not_attached(registry, pair, monkeypatch):
    for content in (b"", b"[]\n", b'{"a": 1}', b'{"a":1}', b'{"a":1,"a":2}\n', b"\xff", b'{"a":NaN}\n', b"{" * 10_000):
        with pytest.raises(InvalidValueError, match="canonical JSON"):
            registry.attach(pair[0], content)
    monkeypatch.setattr(store, "MAX_ATTACHMENT_BYTES", 5)
    with pytest.raises(InvalidValueError, match="5 bytes at most"):
        registry.attach(pair[0], b'{"a":1}\n')
    assert registry.attachments(pair[0]) == ()


def test_private_files_are_their_owners_alone(registry, pair):
    first, _ = pair
    assert registry.private(first, "memory.json") is None
    registry.keep_private(first, "memory.json", b"one")
    registry.keep_private(first, "memory.json", b"two")
    assert registry.private(first, "memory.json") == b"two"
    made = [path for path in (registry.folder, *registry.folder.rglob("*")) if registry.folder / "bundles" not in path.parents]
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o700, 0o600}
    registry.drop_private(first, "memory.json")
    registry.drop_private(first, "memory.json")
    assert (registry.private(first, "memory.json"), registry.private_names(first)) == (None, ())


@pytest.mark.parametrize(("what", "mode"), [("file", 0o640), ("folder", 0o755), ("all", 0o701)])
def test_private_files_that_others_may_use_are_refused(registry, pair, what, mode):
    first, _ = pair
    registry.keep_private(first, "memory.json", b"{}")
    folder = registry.folder / "private"
    {"file": folder / first / "memory.json", "folder": folder / first, "all": folder}[what].chmod(mode)
    with pytest.raises(RegistryTamperedError, match=f"has mode {mode:04o}, so others may use it"):
        registry.private(first, "memory.json")
    assert len(registry.verify()) == 1


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", ".hidden", "a\0", "A", "a\n", "x" * 65])
def test_a_private_file_cannot_be_elsewhere(registry, pair, name):
    for use in (
        lambda: registry.keep_private(pair[0], name, b""),
        lambda: registry.private(pair[0], name),
        lambda: registry.drop_private(pair[0], name),
    ):
        with pytest.raises(InvalidValueError):
            use()


def test_a_private_link_is_not_followed(registry, pair, tmp_path):
    registry.keep_private(pair[0], "memory.json", b"{}")
    path = registry.folder / "private" / pair[0] / "memory.json"
    path.unlink()
    (tmp_path / "elsewhere").write_bytes(b"secret")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RegistryError, match=r"memory\.json of bundle") as caught:
        registry.private(pair[0], "memory.json")
    assert str(tmp_path) not in str(caught.value)


def test_a_tag_is_the_same_for_a_subject_here_and_another_elsewhere(registry, tmp_path):
    assert registry.tag("P-1") == Registry(registry.folder).tag("P-1") != registry.tag("P-2")
    assert Registry(tmp_path / "other").tag("P-1") != registry.tag("P-1")
    key = registry.folder / "tag.key"
    assert (stat.S_IMODE(key.stat().st_mode), len(key.read_bytes())) == (0o600, 32)
    for subject in ("", "\ud800"):
        with pytest.raises(InvalidValueError, match="Bad value 'a text that is empty or holds half a character' for subject"):
            registry.tag(subject)


def test_a_key_of_tags_that_is_gone_cut_or_readable_is_refused(registry, pair):
    registry.tag("P-1")
    registry.keep_private(pair[0], "members.json", b"{}")
    key = registry.folder / "tag.key"
    content = key.read_bytes()
    key.chmod(0o644)
    with pytest.raises(RegistryTamperedError, match="mode 0644"):
        registry.tag("P-1")
    key.chmod(0o600)
    for damaged, reason in ((content[:-1], "is damaged"), (content + b"x", "larger than the 32 bytes"), (b"", "is damaged")):
        key.write_bytes(damaged)
        with pytest.raises(RegistryTamperedError, match=reason):
            registry.tag("P-1")
    key.unlink()
    with pytest.raises(RegistryTamperedError, match="a new one would find nobody"):
        registry.tag("P-1")
    assert not key.exists()


# --- names


def test_a_name_that_nobody_opened_has_nothing(registry):
    assert (registry.names(), registry.head("ward"), registry.history("ward"), registry.pointers("ward")) == ((), None, (), Pointers())
    assert not registry.folder.exists()


def test_each_switch_is_an_entry_that_holds_the_whole_state(registry, pair):
    first, second = pair
    one = promote(registry, first, action="opened", reason="first", at=WHEN)
    evaluation, approval = registry.attach(second, canonical_json({"a": 1})), registry.attach(second, canonical_json({"b": 1}))
    two = promote(registry, second, plan="ab" * 32, modification="recalibrate", evaluation=evaluation, approvals=[approval], at=WHEN)
    assert registry.history("ward") == (one, two)
    assert (two.number, two.previous, two.pointers, registry.head("ward")) == (2, one.digest, Pointers(champion=second), two)
    assert registry.head_path("ward").read_text() == f"2 {two.digest}\n"
    assert [path.name for path in entry_files(registry)] == [f"{entry.number:08d}-{entry.digest}.json" for entry in (one, two)]
    assert (registry.names(), registry.verify()) == (("ward",), ())


def test_a_switch_from_a_state_that_is_no_longer_is_refused(registry, pair):
    first, second = pair
    head = promote(registry, first)
    for seen in (None, "0" * 64):
        with pytest.raises(RegistryConflictError, match="'ward' is at entry 1 by now"):
            registry.switch("ward", expected=seen, action="promoted", pointers=Pointers(champion=second), actor="q")
    with pytest.raises(RegistryConflictError, match="'new' is at entry 0 by now"):
        registry.switch("new", expected=head.digest, action="promoted", pointers=Pointers(champion=second), actor="q")
    assert (registry.head("ward"), registry.names()) == (head, ("ward",))


def test_a_switch_waits_for_another_and_gives_up_in_the_end(registry, pair, monkeypatch):
    promote(registry, pair[0])
    lock = FileLock(registry.folder / "names" / "ward" / "lock", "history", RegistryError)
    assert lock.take()
    monkeypatch.setattr(store, "LONGEST_WAIT_S", 0.05)
    with pytest.raises(RegistryConflictError, match="Another process holds the history of 'ward'"):
        promote(registry, pair[1])
    lock.release()
    promote(registry, pair[1])


UNFIT = [
    ({"pointers": Pointers(champion="ab" * 32)}, "the digest of a bundle in the registry"),
    ({"bundle": "ab" * 32}, "the digest of a bundle in the registry"),
    ({"bundle": "no digest"}, "64 hex digits"),
    ({"evaluation": "ab" * 32}, "one of bundle"),
    ({"evaluation": "ab" * 32, "bundle": None}, "the bundle that the evaluation or approval is attached to"),
    ({"action": "crowned"}, "action"),
    ({"actor": ""}, "actor"),
    ({"reason": "x" * 2001}, "reason"),
    ({"plan": "sha256:ab"}, "plan"),
    ({"at": WHEN.replace(tzinfo=None)}, "time"),
]


def test_a_switch_that_does_not_fit_changes_nothing(registry, pair):
    head = promote(registry, pair[0])
    for change, reason in UNFIT:
        fields = {"action": "promoted", "pointers": Pointers(champion=pair[1]), "bundle": pair[1], "actor": "q"} | change
        with pytest.raises(InvalidValueError, match=reason):
            registry.switch("ward", expected=head.digest, **fields)
    assert registry.history("ward") == (head,)


def test_the_bundles_of_one_name_answer_one_task(registry, pair, tmp_path):
    other = keep(registry, tmp_path, "5", task=read_bundle(registry.folder_of(pair[0])).manifest.task.model_copy(update={"name": "fatigue"}))
    with pytest.raises(InvalidValueError, match=r"\['depression', 'fatigue'\].*bundles of one task"):
        registry.switch("ward", expected=None, action="shadowed", pointers=Pointers(champion=pair[0], shadow=other), actor="q")


@pytest.mark.parametrize("name", ["", ".", "..", "../ward", "a/b", "Ward", "ward\n", "w\0", "trusted_keys", "x" * 65, "deadbeef", "a" * 64])
def test_a_hostile_name_holds_no_history(registry, name):
    with pytest.raises(InvalidValueError, match="model name"):
        registry.switch(name, expected=None, action="promoted", pointers=Pointers(), actor="q")
    assert not registry.folder.exists()


def test_a_shipped_name_gets_no_bundle_but_an_alarm_is_written_down(registry, pair):
    with pytest.raises(InvalidValueError, match="a shipped name always means the shipped model"):
        promote(registry, pair[0], "depression-simulated")
    entry = registry.switch("depression-simulated", expected=None, action="alarm", pointers=Pointers(), actor="monitor", reason="score drift")
    assert registry.history("depression-simulated") == (entry,)


# --- crash and concurrency


def test_a_killed_switch_leaves_the_old_state_or_the_new_and_the_next_one_works(registry, pair):
    first, second = pair
    head = promote(registry, first)
    step, states = 0, []
    while True:
        step += 1
        old, new = registry.pointers("ward").champion, second if registry.pointers("ward").champion == first else first
        before = registry.history("ward")
        code = killed_at(step, lambda new=new: promote(registry, new))
        states.append(registry.pointers("ward").champion == new)
        after = registry.history("ward")
        assert after[: len(before)] == before
        assert [entry.pointers.champion for entry in after[len(before) :]] == ([new] if states[-1] else [])
        assert registry.verify() == ()
        assert promote(registry, old).number == len(after) + 1
        assert len(entry_files(registry)) == len(after) + 1
        assert not [path for path in head_folder(registry) if path.name.startswith(".")]
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert states[0] is False
    assert states[-1] is states[-2] is True
    assert states == sorted(states)
    assert registry.history("ward")[0] == head


def head_folder(registry, name="ward"):
    return list((registry.folder / "names" / name).iterdir())


def test_of_two_processes_that_switch_at_once_one_wins_and_the_other_is_told(registry, pair):
    head = promote(registry, pair[0])
    gate, go = os.pipe()

    def hurry() -> int:
        os.close(go)
        os.read(gate, 1)
        try:
            registry.switch("ward", expected=head.digest, action="promoted", pointers=Pointers(champion=pair[1]), actor="q")
        except RegistryConflictError:
            return 7
        return 0

    children = [in_child(hurry) for _ in range(2)]
    os.close(go)
    assert sorted(ended(child) for child in children) == [0, 7]
    os.close(gate)
    assert len(registry.history("ward")) == 2


def test_many_processes_leave_a_whole_chain_and_readers_see_no_other_state(registry, pair):
    head = promote(registry, pair[0])

    def ten() -> int:
        for _ in range(10):
            while True:
                try:
                    promote(registry, pair[1] if registry.pointers("ward").champion == pair[0] else pair[0])
                    break
                except RegistryConflictError:
                    pass
        return 0

    children = [in_child(ten) for _ in range(8)]
    seen = {registry.pointers("ward").champion for _ in range(100)}
    seen |= {registry.history("ward")[0] for _ in range(20)}
    assert [ended(child) for child in children] == [0] * 8
    assert seen <= {*pair, head}
    assert [entry.number for entry in registry.history("ward")] == list(range(1, 82))
    assert registry.verify() == ()


# --- tampering


@pytest.fixture
def three(registry, pair) -> list:
    for digest in (pair[0], pair[1], pair[0]):
        promote(registry, digest)
    return entry_files(registry)


def test_an_entry_that_was_edited_is_named(registry, three):
    content = json.loads(three[1].read_bytes())
    three[1].write_bytes(canonical_json(content | {"actor": "somebody else"}))
    with pytest.raises(RegistryTamperedError, match="Entry 2 of 'ward' was changed"):
        registry.history("ward")
    assert registry.verify() == ("Entry 2 of 'ward' was changed: its digest is not the one that is written after it.",)
    with pytest.raises(RegistryTamperedError):  # nothing is written on top of it
        promote(registry, registry.pointers("ward").champion)


def test_an_entry_that_was_edited_and_renamed_to_fit_does_not_fit_the_next(registry, three):
    entry = registry.history("ward")[1].model_copy(update={"actor": "somebody else"})
    three[1].unlink()
    (three[1].parent / f"00000002-{entry.digest}.json").write_bytes(entry.to_json())
    with pytest.raises(RegistryTamperedError, match="Entry 2 of 'ward' is missing under the digest that is written after it"):
        registry.history("ward")


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_a_chain_that_was_cut_says_where(registry, three, cut):
    three[cut].unlink()
    with pytest.raises(RegistryTamperedError, match=f"Entry {cut + 1} of 'ward' is missing"):
        registry.history("ward")


def test_a_head_that_was_moved_back_is_noticed_by_every_reader(registry, three):
    older = registry.history("ward")[1]
    registry.head_path("ward").write_text(f"2 {older.digest}\n")
    for look in (registry.head, registry.pointers, registry.history, registry.find):
        with pytest.raises(RegistryTamperedError, match="The head of 'ward' was moved back: it names entry 2, and entry 3 follows it"):
            look("ward")
    with pytest.raises(RegistryTamperedError):
        registry.switch("ward", expected=older.digest, action="promoted", pointers=older.pointers, actor="q")
    assert len(registry.verify()) == 1


def test_an_entry_that_nothing_leads_to_is_noticed(registry, three):
    forged = registry.history("ward")[1].model_copy(update={"actor": "somebody else"})
    (three[0].parent / f"00000002-{forged.digest}.json").write_bytes(forged.to_json())
    with pytest.raises(RegistryTamperedError, match="Entry 2 of 'ward' is there and not part of the history"):
        registry.history("ward")


def test_a_damaged_head_is_refused(registry, three):
    for content in (b"", b"3", b"x" * 1000, b"0 " + b"a" * 64 + b"\n", b"3 " + b"g" * 64 + b"\n", b"\xff\n"):
        registry.head_path("ward").write_bytes(content)
        with pytest.raises(RegistryTamperedError, match="The head of 'ward' is"):
            registry.head("ward")


def test_a_head_that_is_gone_or_a_history_of_another_name_is_noticed(registry, three):
    folder = registry.head_path("ward").parent
    folder.rename(folder.with_name("clinic"))
    with pytest.raises(RegistryTamperedError, match="Entry 3 of 'clinic' is the entry of another place: it says 3 of 'ward'"):
        registry.head("clinic")
    registry.head_path("clinic").unlink()
    with pytest.raises(RegistryTamperedError, match="The head of 'clinic' is missing, and entry 3 is there"):
        registry.pointers("clinic")
    assert registry.names() == ("clinic",)


def test_a_record_that_was_written_anew_does_not_fit_the_history(registry, three, pair):
    path = registry.folder / "records" / f"{pair[1]}.json"
    path.write_bytes(registry.record(pair[1]).model_copy(update={"epsilon": 0.1}).to_json())
    assert registry.verify() == (f"The record of bundle {pair[1][:12]} is not the one that entry 2 of 'ward' saw.",)


def test_a_damaged_record_is_refused(registry, pair):
    path = registry.folder / "records" / f"{pair[0]}.json"
    for content in (b"", b"{}\n", b"[]", b"\xff", b'{"bundle":', b"x" * (store.MAX_RECORD_BYTES + 1)):
        path.write_bytes(content)
        with pytest.raises(RegistryTamperedError, match=f"The record of bundle {pair[0][:12]} is"):
            registry.record(pair[0])
    path.write_bytes(registry.record(pair[1]).to_json())
    with pytest.raises(RegistryTamperedError, match="is that of another bundle"):
        registry.record(pair[0])


def test_leftovers_and_missing_parts_are_in_the_verdict(registry, pair, three):
    (registry.folder / "records" / f"{pair[1]}.json").unlink()
    (registry.folder / "private").mkdir(mode=0o700)
    (registry.folder / "private" / "notes").mkdir()
    assert registry.verify() == (
        f"Adding bundle {pair[1][:12]} was cut short, or its record was removed: bundles holds it.",
        "The folder of private holds what belongs to no bundle.",
        f"Entry 2 of 'ward' gives a role to bundle {pair[1][:12]}, which is not in the registry.",
    )


def test_no_error_names_a_path(registry, pair, tmp_path, monkeypatch):
    monkeypatch.delenv("CLINICAL_SER_HOME", raising=False)
    registry.folder.joinpath("names").write_text("a file where a folder should be")
    for use in (lambda: promote(registry, pair[0]), lambda: registry.attach(pair[0], b""), lambda: registry.bundle("ab" * 32)):
        with pytest.raises((RegistryError, InvalidValueError, BundleError)) as caught:
            use()
        assert str(tmp_path) not in str(caught.value)


def test_a_process_without_a_home_has_no_registry(monkeypatch):
    for variable in ("CLINICAL_SER_HOME", "XDG_DATA_HOME", "HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 3_999_999_999)
    with pytest.raises(RegistryError, match="set CLINICAL_SER_HOME"):
        Registry.default()


@pytest.mark.parametrize("folder", ["names", "records", "evaluations", "bundles", "names/ward", "."])
@pytest.mark.parametrize("how", ["open", "link"])
def test_a_folder_that_others_may_write_in_or_that_is_a_link_is_not_believed(tmp_path, folder, how):
    registry = Registry(tmp_path / "registry")
    digest = keep(registry, tmp_path)
    registry.switch("ward", expected=None, action="opened", pointers=Pointers(champion=digest), bundle=digest, actor="qa")
    registry.attach(digest, b"{}\n")
    assert registry.verify() == ()
    path = registry.folder / folder
    if how == "open":
        path.chmod(0o777)
    elif folder == ".":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
        assert registry.find("ward") == digest  # its owner's choice
        return
    else:
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RegistryTamperedError, match=r"others may write in it|but a link"):
        registry.history("ward"), registry.bundle(digest), registry.record(digest), registry.attachments(digest)
    assert registry.verify()
    if folder == "names/ward":
        assert registry.names() == ("ward",)


def test_a_rehearsal_says_what_a_switch_would_and_writes_nothing(tmp_path):
    registry = Registry(tmp_path / "registry")
    digest = keep(registry, tmp_path)
    good = {"expected": None, "action": "opened", "pointers": Pointers(champion=digest), "bundle": digest, "actor": "qa", "reason": ""}
    registry.rehearse("ward", **good)
    assert registry.head("ward") is None
    for name, changed, error in (
        ("ward", {"reason": "x" * 2001}, InvalidValueError),
        ("ward", {"actor": "x" * 257}, InvalidValueError),
        ("ward", {"expected": "a" * 64}, RegistryConflictError),
        ("ward", {"bundle": "a" * 64}, InvalidValueError),
        ("ward", {"approvals": ("a" * 64,)}, InvalidValueError),
        ("0123456789", {}, InvalidValueError),
    ):
        for act in (registry.rehearse, registry.switch):
            with pytest.raises(error):
                act(name, **(good | changed))
