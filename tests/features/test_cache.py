"""The cache on disk: exact, sealed, short-lived, and the same for every process that uses it."""

import hashlib
import json
import os
import pickle
import signal
import stat
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from clinical_ser.errors import FeatureError, InvalidValueError
from clinical_ser.features import cache as cache_module
from clinical_ser.features.cache import (
    ABANDONED_AFTER_S,
    DEFAULT_MAX_AGE,
    MARKER_NAME,
    MAX_SKEW_S,
    PADDED_TO,
    TAG,
    TAG_NAME,
    Entry,
    FeatureCache,
    Seal,
    erase,
    inspect,
    key_of,
)
from clinical_ser.folders import user_folder

KEY = key_of("features", "ab" * 32, "praat")
OTHER_KEY = key_of("features", "cd" * 32, "praat")
SEAL = Seal(bytes(range(32)))
NOW = 1_800_000_000


def pack(key, entry, *, seal=SEAL):
    return cache_module.pack(seal, key, entry, written_at=NOW)


def unpack(key, content, *, seal=SEAL):
    return cache_module.unpack(seal, key, content)


def entry_files(root):
    return [path for path in (root / "entries").rglob("*") if path.is_file()]


def key_files():
    return sorted((user_folder("config") / "keys" / "cache").iterdir())


@pytest.fixture
def root(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""

    class Clock:
        now = float(NOW)

    monkeypatch.setattr(cache_module, "_now", lambda: Clock.now)
    return Clock


def python(code, *arguments, **options):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, env=environment, **options)


@given(arrays(np.float64, st.integers(0, 40), elements=st.floats(width=64)), st.dictionaries(st.text(), st.text()))
def test_values_come_back_bit_for_bit(values, facts):
    restored = unpack(KEY, pack(KEY, Entry(facts, values)))
    assert restored.values.tobytes() == values.tobytes()
    assert restored.facts == facts


@given(st.floats())
def test_numbers_among_the_facts_come_back_exactly(number):
    restored = unpack(KEY, pack(KEY, Entry({"number": number}, np.empty(0)))).facts["number"]
    assert np.float64(restored).tobytes() == np.float64(number).tobytes() or (np.isnan(number) and np.isnan(restored))


def test_every_changed_byte_and_every_cut_is_noticed():
    content = pack(KEY, Entry({"a": "b"}, np.arange(3.0)))
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 0x40
        assert unpack(KEY, bytes(changed)) is None
        assert unpack(KEY, content[:position]) is None
    assert unpack(KEY, content + b"\0") is None


def test_an_entry_under_another_key_is_not_believed():
    assert unpack(key_of("other"), pack(KEY, Entry({}, np.arange(3.0)))) is None


def test_keys_keep_their_parts_apart():
    assert key_of("a", "bc") != key_of("ab", "c")
    assert key_of("a", None) != key_of("a", "None")
    assert key_of(0.1 + 0.2) != key_of(0.3)


def test_a_damaged_entry_is_absent_and_can_be_written_again(tmp_path):
    cache = FeatureCache(tmp_path / "cache")
    cache.put(KEY, {"reason": "x"}, [1.0, np.nan])
    (file,) = entry_files(tmp_path / "cache")
    file.write_bytes(b"")  # what a power cut leaves
    assert cache.get(KEY) is None
    cache.put(KEY, {"reason": "x"}, [1.0, np.nan])
    np.testing.assert_array_equal(cache.get(KEY).values, [1.0, np.nan])


def test_the_folder_and_its_files_are_their_owners_only(tmp_path):
    root = tmp_path / "cache"
    root.mkdir(mode=0o755)  # made by the user beforehand
    previous = os.umask(0)
    try:
        FeatureCache(root).put(KEY, {}, [1.0])
        with FeatureCache(root).lock(KEY, room="samples"):
            pass
    finally:
        os.umask(previous)
    assert root.stat().st_mode & 0o777 == 0o700
    for path in root.rglob("*"):
        if path.name != "CACHEDIR.TAG":
            assert path.stat().st_mode & 0o077 == 0, path.name


def test_a_folder_with_other_files_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(InvalidValueError, match="cache folder"):
        FeatureCache(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_in_the_place_of_the_folder_is_refused_without_its_name(tmp_path):
    path = tmp_path / "jane_doe"
    path.write_text("x")
    with pytest.raises(InvalidValueError) as error:
        FeatureCache(path)
    assert "jane" not in str(error.value)


def test_clear_empties_the_cache_and_keeps_it_usable(tmp_path):
    cache = FeatureCache(tmp_path / "cache")
    cache.put(KEY, {}, [1.0])
    assert len(cache) == 1
    cache.clear()
    assert len(cache) == 0
    assert cache.get(KEY) is None
    cache.put(KEY, {}, [2.0])
    assert cache.get(KEY).values.tolist() == [2.0]


def test_what_killed_processes_left_is_swept_but_not_what_is_being_written(tmp_path):
    FeatureCache(tmp_path / "cache")
    old, new = (tmp_path / "cache" / "unfinished" / name for name in ("old", "new"))
    old.write_bytes(b"x")
    new.write_bytes(b"x")
    long_ago = time.time() - ABANDONED_AFTER_S - 1
    os.utime(old, (long_ago, long_ago))
    FeatureCache(tmp_path / "cache")
    assert not old.exists()
    assert new.exists()


def test_a_cache_that_cannot_be_written_says_so_without_a_path(tmp_path):
    cache = FeatureCache(tmp_path / "cache")
    (tmp_path / "cache" / "unfinished").rmdir()
    with pytest.raises(FeatureError, match="cannot be written") as error:
        cache.put(KEY, {}, [1.0])
    assert str(tmp_path) not in str(error.value)


HOLD_THE_LOCK = """
import sys, time
from pathlib import Path
from clinical_ser.features.cache import FeatureCache
with FeatureCache(Path(sys.argv[1])).lock(sys.argv[2], room="samples"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_waited_for_and_comes_free_when_its_holder_is_killed(tmp_path):
    cache = FeatureCache(tmp_path / "cache")
    with python(HOLD_THE_LOCK, tmp_path / "cache", KEY) as holder:
        assert holder.stdout.readline() == b"held\n"
        with cache.lock(key_of("another"), room="samples"), cache.lock(KEY, room="source"):
            pass  # other keys and rooms are free
        killer = subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(0.5); os.kill({holder.pid}, 9)"])
        began = time.monotonic()
        with cache.lock(KEY, room="samples"):
            waited = time.monotonic() - began
        killer.wait()
    assert waited > 0.3


def test_files_hold_no_path(tmp_path):
    root = tmp_path / "subject_jane_doe"
    FeatureCache(root).put(KEY, {"reason": "no speech found"}, [1.0])
    for path in root.rglob("*"):
        assert path.is_dir() or b"jane" not in path.read_bytes()


# Sealed


def test_nothing_in_the_folder_can_be_read_or_recognised_by_whoever_has_the_recording(root):
    """Feature values, reasons and the digests of the recording: as bytes, as text, in names of entries and of locks."""
    samples = hashlib.sha256(b"the recording").hexdigest()
    key, values = key_of("features", samples, "egemaps"), np.linspace(-3.0, 3.0, 88)
    cache = FeatureCache(root)
    cache.put(key, {"reason": "no speech found"}, values)
    for room in ("source", "samples"):
        with cache.lock(samples, room=room), cache.lock(key, room="another"):
            pass
    names = " ".join(path.relative_to(root).as_posix() for path in root.rglob("*"))
    contents = b"".join(path.read_bytes() for path in root.rglob("*") if path.is_file())
    for digest in (samples, key):
        assert digest.encode() not in contents
        assert bytes.fromhex(digest) not in contents
        assert digest[2:] not in names
        assert f"-{digest[:3]}" not in names
        assert not (root / "entries" / digest[:2] / digest[2:]).exists()
    assert not any(value.tobytes() in contents for value in values)
    assert b"speech" not in contents
    assert key_files()[0].read_bytes() not in contents


def test_names_follow_from_the_key_and_the_folders_secret_alone(tmp_path):
    first, second = FeatureCache(tmp_path / "a"), FeatureCache(tmp_path / "b")
    for cache in (first, second):
        cache.put(KEY, {}, [1.0])
    (a,), (b,) = entry_files(tmp_path / "a"), entry_files(tmp_path / "b")
    assert a.name != b.name
    FeatureCache(tmp_path / "a").put(KEY, {}, [2.0])
    assert entry_files(tmp_path / "a") == [a]


def test_the_same_entry_is_never_the_same_bytes(root):
    cache = FeatureCache(root)
    cache.put(KEY, {}, [1.0])
    first = entry_files(root)[0].read_bytes()
    cache.put(KEY, {}, [1.0])
    second = entry_files(root)[0].read_bytes()
    head = cache_module._HEAD_BYTES
    assert first[head : head + 12] != second[head : head + 12]  # one nonce twice would give the key stream away
    assert first[head + 12 :] != second[head + 12 :]


def test_a_length_says_which_set_it_is_and_not_whose_voice():
    facts = [{"snr_db": 20.0}, {"snr_db": 20.123456789012345}, {"snr_db": None}]
    assert len({len(pack(KEY, Entry(one, np.arange(88.0)))) for one in facts}) == 1
    assert (len(pack(KEY, Entry({}, np.arange(88.0)))) - len(pack(KEY, Entry({}, np.arange(6373.0))))) % PADDED_TO == 0


def test_a_tampered_byte_on_disk_sends_the_entry_back(root):
    cache = FeatureCache(root)
    cache.put(KEY, {}, [1.0, 2.0])
    (file,) = entry_files(root)
    whole = file.read_bytes()
    for position in (len(cache_module.MAGIC) + 7, cache_module._HEAD_BYTES, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert cache.get(KEY) is None, position
    file.write_bytes(whole)
    assert cache.get(KEY).values.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("kept", [0, 10, 29, 41, 56, 100, -1])
def test_a_truncated_entry_is_absent(root, kept):
    cache = FeatureCache(root)
    cache.put(KEY, {}, [1.0])
    (file,) = entry_files(root)
    file.write_bytes(file.read_bytes()[:kept])
    assert cache.get(KEY) is None


def test_swapped_entries_are_both_absent(root):
    cache = FeatureCache(root)
    cache.put(KEY, {}, [1.0])
    cache.put(OTHER_KEY, {}, [2.0])
    one, two = entry_files(root)
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    assert cache.get(KEY) is None
    assert cache.get(OTHER_KEY) is None


def test_an_entry_cannot_be_made_younger():
    content = pack(KEY, Entry({}, np.arange(3.0)))
    later = cache_module._TIME.pack(NOW + 1)
    forged = content[: len(cache_module.MAGIC)] + later + content[cache_module._HEAD_BYTES :]
    assert cache_module._written_at(forged) == NOW + 1
    assert unpack(KEY, forged) is None


def test_another_folders_key_opens_nothing():
    content = pack(KEY, Entry({}, np.arange(3.0)))
    assert unpack(KEY, content, seal=Seal(bytes(32))) is None


# The key


def test_the_key_is_the_users_own_file_outside_the_folder_and_the_marker_names_it(root):
    FeatureCache(root)
    (file,) = key_files()
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert len(file.read_bytes()) == 32
    assert file.stem.encode() in (root / MARKER_NAME).read_bytes()
    FeatureCache(root)
    assert key_files() == [file]


def refused(root, match):
    before = {path: path.read_bytes() for path in entry_files(root)}
    with pytest.raises(InvalidValueError, match=match) as error:
        FeatureCache(root)
    assert {path: path.read_bytes() for path in entry_files(root)} == before  # nothing is given up, nothing measured again in silence
    assert str(root.parent) not in str(error.value)
    return str(error.value)


def filled(root):
    cache = FeatureCache(root)
    cache.put(KEY, {}, [1.0])
    return cache


def test_a_key_that_others_may_read_is_refused(root):
    filled(root)
    (file,) = key_files()
    for mode in (0o640, 0o604, 0o620):
        file.chmod(mode)
        assert "chmod 600" in refused(root, f"mode {mode:04o}")
    file.chmod(0o600)
    assert FeatureCache(root).get(KEY) is not None


def test_a_key_behind_a_symbolic_link_is_refused(root, tmp_path):
    filled(root)
    (file,) = key_files()
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    refused(root, "symbolic link")


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33])
def test_a_key_of_another_length_is_refused(root, content):
    filled(root)
    key_files()[0].write_bytes(content)
    refused(root, "another length")


def test_a_pipe_in_the_place_of_the_key_is_refused_and_not_waited_for(root):
    filled(root)
    (file,) = key_files()
    file.unlink()
    os.mkfifo(file, 0o600)
    refused(root, "no regular file")


def test_another_secret_under_the_keys_name_is_noticed_before_anything_is_measured(root):
    filled(root)
    key_files()[0].write_bytes(bytes(32))
    assert "cache clear" in refused(root, "another key")


def test_a_folder_without_its_key_says_what_to_do(root, tmp_path, monkeypatch):
    filled(root)
    monkeypatch.setenv("CLINICAL_SER_HOME", str(tmp_path / "another user"))
    message = refused(root, "CLINICAL_SER_HOME")
    assert "cache clear" in message
    monkeypatch.setenv("CLINICAL_SER_HOME", str(tmp_path / "home"))
    assert FeatureCache(root).get(KEY) is not None


@pytest.mark.parametrize("content", [b"", b"../../../etc/passwd", b"clinical-ser cache key\n../../../../../../../../x/y/z/0" + bytes(29)])
def test_a_damaged_marker_is_refused_and_names_no_file_of_its_own(root, content):
    filled(root)
    (root / MARKER_NAME).write_bytes(content)
    assert "passwd" not in refused(root, "marker is damaged")


def test_without_a_home_there_is_no_cache(root, monkeypatch):
    for variable in ("CLINICAL_SER_HOME", "XDG_CONFIG_HOME", "HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError))
    with pytest.raises(InvalidValueError, match="CLINICAL_SER_HOME"):
        FeatureCache(root)


def test_a_cache_shows_no_secret_and_no_path(tmp_path):
    cache = FeatureCache(tmp_path / "jane_doe")
    (secret,) = (file.read_bytes() for file in key_files())
    for shown in (repr(cache), str(cache), repr(vars(cache)["_seal"]), f"{cache!r}"):
        for form in (repr(secret), secret.hex()):
            assert form not in shown
        assert "jane" not in shown
    assert "30 days" in repr(cache)


READ_WITHOUT_A_HOME = """
import sys, pickle
cache = pickle.load(sys.stdin.buffer)
print(cache, cache.get(sys.argv[1]).values.tolist())
cache.put(sys.argv[2], {}, [2.0])
"""


def test_a_cache_that_is_sent_to_another_process_brings_its_key_along(root, monkeypatch):
    """A node of a cluster has no configuration folder of this user's, and none is looked for."""
    cache = filled(root)
    sent = pickle.dumps(cache)
    monkeypatch.setenv("CLINICAL_SER_HOME", "/nonexistent")
    with python(READ_WITHOUT_A_HOME, KEY, OTHER_KEY, stdin=subprocess.PIPE) as worker:
        out, _ = worker.communicate(sent)
    assert out.decode().strip() == f"{cache} [1.0]"
    assert cache.get(OTHER_KEY).values.tolist() == [2.0]


# Expiry


def test_what_is_older_than_the_reader_allows_is_not_used_and_is_deleted_when_met(root, clock):
    short, long, never = (FeatureCache(root, max_age=age) for age in (timedelta(days=1), timedelta(days=60), None))
    short.put(KEY, {}, [1.0])
    clock.now += 86_400
    assert short.get(KEY) is not None
    clock.now += 1
    assert long.get(KEY) is not None
    assert never.get(KEY) is not None
    assert short.get(KEY) is None
    assert never.get(KEY) is None
    assert len(short) == 0


def test_opening_sweeps_what_is_expired_and_keeps_the_rest(root, clock):
    cache = FeatureCache(root)
    cache.put(KEY, {}, [1.0])
    clock.now += DEFAULT_MAX_AGE.total_seconds() - 10
    cache.put(OTHER_KEY, {}, [2.0])
    clock.now += 20
    assert len(FeatureCache(root, max_age=None)) == 2
    cache = FeatureCache(root)
    assert len(cache) == 1
    assert cache.get(OTHER_KEY).values.tolist() == [2.0]


def test_the_time_of_the_file_counts_for_nothing(root, clock):
    cache = FeatureCache(root)
    cache.put(KEY, {}, [1.0])
    clock.now += 31 * 86_400
    os.utime(entry_files(root)[0])  # as copying a folder does
    assert cache.get(KEY) is None


def test_an_entry_of_the_future_is_expired_but_another_nodes_clock_may_be_a_little_ahead(root, clock):
    cache = FeatureCache(root)
    cache.put(KEY, {}, [1.0])
    clock.now -= MAX_SKEW_S
    assert cache.get(KEY) is not None
    clock.now -= 1
    assert cache.get(KEY) is None
    assert entry_files(root) == []


def test_opening_sweeps_entries_of_the_future(root, clock):
    filled(root)
    clock.now -= MAX_SKEW_S + 1
    assert len(FeatureCache(root)) == 0


def test_writing_again_makes_an_entry_young(root, clock):
    cache = FeatureCache(root)
    cache.put(KEY, {}, [1.0])
    clock.now += 20 * 86_400
    cache.put(KEY, {}, [1.0])
    clock.now += 20 * 86_400
    assert cache.get(KEY) is not None


@pytest.mark.parametrize("age", [timedelta(0), timedelta(days=-1)])
def test_an_age_that_is_none_is_refused(root, age):
    with pytest.raises(InvalidValueError, match="max_age"):
        FeatureCache(root, max_age=age)
    assert not root.exists()


# Layout 1


def old_entry(key, values):
    """An entry as version 1 wrote it."""
    header = json.dumps({"key": key, "count": len(values), "facts": {}}, sort_keys=True).encode()
    body = b"clinical-ser cache 1\n" + header + b"\n" + np.asarray(values, "<f8").tobytes()
    return body + hashlib.sha256(body).digest()


def old_cache(root):
    for part in (f"entries/{KEY[:2]}", "locks", "unfinished"):
        (root / part).mkdir(parents=True)
    (root / TAG_NAME).write_text(TAG)
    (root / "entries" / KEY[:2] / KEY[2:]).write_bytes(old_entry(KEY, [1.0]))
    (root / "locks" / f"samples-{KEY[:3]}").touch()
    (root / "unfinished" / "tmpx").write_bytes(old_entry(KEY, [1.0])[:60])


def test_opening_a_folder_of_layout_1_leaves_no_clear_text_and_no_digits_of_digests(root):
    old_cache(root)
    assert inspect(root).clear_text == 1
    cache = FeatureCache(root)
    assert cache.get(KEY) is None
    assert sorted(path.name for path in root.rglob("*")) == sorted([TAG_NAME, MARKER_NAME, "entries", "locks", "unfinished", "lock"])
    cache.put(KEY, {}, [2.0])
    assert FeatureCache(root).get(KEY).values.tolist() == [2.0]


def test_what_an_older_version_writes_into_a_sealed_folder_is_deleted_at_the_next_opening(root):
    filled(root)
    stray = root / "entries" / KEY[:2] / KEY[2:]
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(old_entry(KEY, [9.0]))
    cache = FeatureCache(root, max_age=None)
    assert not stray.exists()
    assert cache.get(KEY).values.tolist() == [1.0]


# Clearing


def test_clearing_destroys_the_key_so_that_copies_of_the_folder_are_unreadable(root, tmp_path):
    cache = filled(root)
    (old_key,) = key_files()
    copied = entry_files(root)[0].read_bytes()
    (tmp_path / "backup").mkdir()
    for path in (*entry_files(root), root / MARKER_NAME):
        (tmp_path / "backup" / path.name).write_bytes(path.read_bytes())
    cache.clear()
    assert not old_key.exists()
    assert len(key_files()) == 1
    cache.put(KEY, {}, [5.0])
    entry_files(root)[0].write_bytes(copied)
    assert cache.get(KEY) is None


def test_erasing_needs_no_key_and_leaves_a_folder_that_can_be_used_again(root):
    filled(root)
    key_files()[0].chmod(0o644)
    assert erase(root) == 1
    assert key_files() == []
    assert entry_files(root) == []
    assert filled(root).get(KEY).values.tolist() == [1.0]


def test_a_clearing_that_was_cut_short_is_said_and_can_be_repeated(root):
    filled(root)
    key_files()[0].unlink()  # as far as it came
    refused(root, "cache clear")
    assert erase(root) == 1
    FeatureCache(root)


@pytest.mark.parametrize("content", [None, {"thesis.txt": "x"}, {TAG_NAME: "Signature: 8a477f597d28d172789f06886806bc55\n# Of another program."}])
def test_what_is_no_cache_is_neither_erased_nor_inspected_nor_opened(root, content):
    if content is not None:
        (root / "entries").mkdir(parents=True)
        (root / "entries" / "precious").write_text("x")
        for name, text in content.items():
            (root / name).write_text(text)
    for reads in (erase, inspect):
        with pytest.raises(InvalidValueError, match="cache folder"):
            reads(root)
    if content is None:
        assert not root.exists()
        return
    with pytest.raises(InvalidValueError, match="other files"):
        FeatureCache(root)
    assert (root / "entries" / "precious").exists()
    assert not (root / MARKER_NAME).exists()


def test_a_run_under_way_goes_on_while_another_clears(root):
    running = filled(root)
    erase(root)
    assert running.get(KEY) is None
    running.put(KEY, {}, [2.0])
    with running.lock(KEY, room="samples"):
        assert running.get(KEY).values.tolist() == [2.0]
    assert FeatureCache(root).get(KEY) is None


def test_what_inspecting_says(root, clock, tmp_path, monkeypatch):
    cache = FeatureCache(root)
    assert inspect(root).oldest is None
    cache.put(KEY, {}, [1.0])
    clock.now += 86_400
    cache.put(OTHER_KEY, {}, [1.0])
    clock.now += 1
    before = {path: path.stat() for path in root.rglob("*")}
    state = inspect(root, max_age=timedelta(days=1))
    assert {path: path.stat() for path in root.rglob("*")} == before
    assert (state.entries, state.expired, state.days_kept, state.clear_text, state.key_is_here) == (2, 1, 1.0, 0, True)
    assert state.oldest == datetime.fromtimestamp(NOW, UTC)
    assert state.size_bytes == sum(path.stat().st_size for path in entry_files(root))
    monkeypatch.setenv("CLINICAL_SER_HOME", str(tmp_path / "another user"))
    assert not inspect(root).key_is_here


# Several processes

OPEN_AT_ONCE = """
import sys, time
from pathlib import Path
from clinical_ser.features.cache import FeatureCache, key_of
print("ready", flush=True)
while time.time() < float(sys.argv[2]):
    pass
cache = FeatureCache(Path(sys.argv[1]))
for i in range(50):
    cache.put(key_of(i), {}, [float(i)] * 200)
    entry = cache.get(key_of((i * 7) % 50))
    assert entry is None or len(set(entry.values)) == 1
"""


def test_processes_that_open_a_new_folder_at_once_agree_on_one_key(root):
    crew = [python(OPEN_AT_ONCE, root, time.time() + 2.5) for _ in range(4)]
    for one in crew:
        one.communicate()
    assert [one.returncode for one in crew] == [0, 0, 0, 0]
    assert len(key_files()) == 1
    cache = FeatureCache(root)
    assert [cache.get(key_of(i)).values[0] for i in range(50)] == list(range(50))


def test_an_entry_is_replaced_whole_and_never_written_in_place(root, tmp_path):
    cache = filled(root)
    (file,) = entry_files(root)
    before = file.read_bytes()
    os.link(file, tmp_path / "what a reader has open")
    cache.put(KEY, {}, [2.0])
    assert (tmp_path / "what a reader has open").read_bytes() == before
    assert cache.get(KEY).values.tolist() == [2.0]


WRITE_ON = """
import sys
from pathlib import Path
from clinical_ser.features.cache import FeatureCache, key_of
cache = FeatureCache(Path(sys.argv[1]))
for i in range(10**9):
    cache.put(key_of(i % 20), {"i": i}, [float(i)] * 10_000)
    if i == 100:
        print("under way", flush=True)
"""


def test_a_process_killed_in_the_middle_of_writing_leaves_only_whole_entries(root):
    with python(WRITE_ON, root) as writer:
        assert writer.stdout.readline() == b"under way\n"
        time.sleep(0.05)
        writer.send_signal(signal.SIGKILL)
    for i in range(20):
        entry = FeatureCache(root).get(key_of(i))
        assert entry.values.tolist() == [float(entry.facts["i"])] * 10_000
    for path in (root / "unfinished").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
