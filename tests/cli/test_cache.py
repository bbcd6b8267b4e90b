"""`clinical-ser cache` and `extract --cache`: what is kept, for how long, and how to be rid of it."""

import json
import os
import re

import pytest

from clinical_ser.features import cache as cache_module
from clinical_ser.features.cache import FeatureCache, key_of
from clinical_ser.folders import user_folder

DAY_S = 86_400


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "jane_doe"


@pytest.fixture
def at(monkeypatch):
    """Set the clock of the cache, days from now."""
    began = cache_module._now()
    return lambda days: monkeypatch.setattr(cache_module, "_now", lambda: began + days * DAY_S)


def filled(folder, entries=2):
    cache = FeatureCache(folder)
    for i in range(entries):
        cache.put(key_of(i), {}, [1.0])


def test_info_says_how_much_and_how_old_and_changes_nothing(run, folder, at):
    at(-40)
    filled(folder)
    at(0)
    code, out, err = run("cache", "info", folder)
    assert code == 0, err
    assert "2 entries" in out
    assert "2 are past that" in out
    assert "jane" not in out
    assert len(FeatureCache(folder, max_age=None)) == 2


def test_info_as_json(run, folder, at):
    filled(folder)
    at(3)
    code, out, _ = run("cache", "info", folder, "--cache-days", 2, "--json")
    state = json.loads(out)
    assert code == 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", state.pop("oldest"))
    assert state.pop("size_bytes") > 2000
    assert state == {"entries": 2, "days_kept": 2.0, "expired": 2, "clear_text": 0, "key_is_here": True}


def test_info_of_an_empty_cache_and_of_one_without_its_key(run, folder, tmp_path, monkeypatch):
    FeatureCache(folder)
    assert run("cache", "info", folder)[1] == "0 entries, 0 bytes, encrypted.\n"
    filled(folder)
    monkeypatch.setenv("CLINICAL_SER_HOME", str(tmp_path / "another user"))
    assert "does not hold" in run("cache", "info", folder)[1]


def test_info_names_clear_text_of_an_older_version(run, folder):
    filled(folder, entries=0)
    (folder / "entries" / "ab").mkdir()
    (folder / "entries" / "ab" / "cd").write_bytes(b"clinical-ser cache 1\n{}\n")
    assert "1 entries of an older version in clear text" in run("cache", "info", folder)[1]


def test_clear_deletes_entries_and_key_and_works_without_the_key(run, folder):
    filled(folder)
    (key,) = (user_folder("config") / "keys" / "cache").iterdir()
    code, out, err = run("cache", "clear", folder)
    assert (code, out.startswith("2 entries deleted")) == (0, True), err
    assert not key.exists()
    assert not any(path.is_file() for path in (folder / "entries").rglob("*"))
    assert run("cache", "clear", folder)[:2] == (0, "0 entries deleted, and the key that they were sealed with.\n")


@pytest.mark.parametrize("command", ["info", "clear"])
@pytest.mark.parametrize("there", [False, True])
def test_a_folder_that_is_no_cache_is_wrong_usage_and_left_as_it_is(run, folder, command, there):
    if there:
        folder.mkdir()
        (folder / "thesis.txt").write_text("x")
    code, _, err = run("cache", command, folder)
    assert code == 2
    assert "used as a cache before" in err
    assert "jane" not in err
    assert os.listdir(folder) == ["thesis.txt"] if there else not folder.exists()


@pytest.mark.parametrize("days", [0, -1, 3651, "x"])
def test_extract_refuses_days_that_are_none(run, tmp_path, days):
    code, _, err = run("extract", "m.csv", "-o", tmp_path / "t.parquet", "--cache", tmp_path / "c", "--cache-days", days)
    assert code == 2
    assert "cache-days" in err
    assert not (tmp_path / "c").exists()


def test_extract_measures_again_what_is_older_than_cache_days(run, folder, speech_wav, tmp_path, at):
    (tmp_path / "m.csv").write_text(f"path,subject\n{speech_wav},S1\n")
    words = ("extract", tmp_path / "m.csv", "-o", tmp_path / "t.parquet", "--cache", folder, "--workers", 0, "--features", "timing")

    def written():
        return sorted(cache_module._written_at(path.read_bytes()) for path in (folder / "entries").rglob("*") if path.is_file())

    assert run(*words)[0] == 0
    first = written()
    assert len(first) == 2  # what the source is, and its one feature set
    at(29)
    assert run(*words)[0] == 0
    assert written() == first
    assert run(*words, "--cache-days", 7)[0] == 0
    assert min(written()) > max(first)


def test_extract_with_a_cache_whose_key_is_gone_says_what_to_do_and_measures_nothing(run, folder, speech_wav, tmp_path, monkeypatch):
    filled(folder)
    (tmp_path / "m.csv").write_text(f"path,subject\n{speech_wav},S1\n")
    monkeypatch.setenv("CLINICAL_SER_HOME", str(tmp_path / "another user"))
    code, _, err = run("extract", tmp_path / "m.csv", "-o", tmp_path / "t.parquet", "--cache", folder, "--workers", 0)
    assert code == 2
    assert "cache clear" in err
    assert "CLINICAL_SER_HOME" in err
    assert not (tmp_path / "t.parquet").exists()
    assert str(tmp_path) not in err
