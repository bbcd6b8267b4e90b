import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from clinical_ser.errors import FeatureError, InvalidValueError
from clinical_ser.features.cache import ABANDONED_AFTER_S, Entry, FeatureCache, key_of, pack, unpack

KEY = key_of("features", "ab" * 32, "praat")


def entry_files(root):
    return [path for path in (root / "entries").rglob("*") if path.is_file()]


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
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [sys.executable, "-c", HOLD_THE_LOCK, str(tmp_path / "cache"), KEY]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, env=environment) as holder:
        assert holder.stdout.readline() == b"held\n"
        with cache.lock(key_of("another"), room="samples"), cache.lock(KEY, room="source"):
            pass  # other keys and rooms are free
        killer = subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(0.5); os.kill({holder.pid}, 9)"])
        began = time.monotonic()
        with cache.lock(KEY, room="samples"):
            waited = time.monotonic() - began
        killer.wait()
    assert waited > 0.3


def test_entries_hold_no_path(tmp_path):
    root = tmp_path / "subject_jane_doe"
    FeatureCache(root).put(KEY, {"reason": "no speech found"}, [1.0])
    (file,) = entry_files(root)
    header = json.loads(file.read_bytes().split(b"\n")[1])
    assert set(header) == {"key", "count", "facts"}
    assert b"jane" not in file.read_bytes()
