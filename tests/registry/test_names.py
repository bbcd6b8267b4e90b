import os
from pathlib import Path

import pytest

from clinical_ser.cohorts.tasks import DEPRESSION
from clinical_ser.errors import BundleNotFoundError, InvalidValueError
from clinical_ser.models.bundle import MANIFEST, write_bundle
from clinical_ser.models.signing import SignatureState, TrustStore
from clinical_ser.registry import names
from clinical_ser.registry.names import ModelEntry, ModelOrigin, find_model, list_models
from tests.models.bundle_content import FIELDS, KEY, PAYLOAD

TRUSTED = TrustStore(frozenset({KEY.public}))


@pytest.fixture
def shipped(tmp_path, monkeypatch) -> Path:
    """The package's folder, standing elsewhere so that the test knows what is in it."""
    folder = tmp_path / "package"
    (folder / "trusted_keys").mkdir(parents=True)
    monkeypatch.setattr(names, "SHIPPED_MODELS", folder)
    return folder


@pytest.fixture
def own(tmp_path, monkeypatch, shipped) -> Path:
    monkeypatch.setenv("CLINICAL_SER_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "models"


def test_a_name_finds_the_shipped_model_before_the_users(shipped, own):
    for folder in (shipped, own):
        write_bundle(folder / "alpha", FIELDS, PAYLOAD)
    write_bundle(own / "beta", FIELDS, PAYLOAD)
    assert find_model("alpha") == shipped / "alpha"
    assert find_model("beta") == own / "beta"


def test_a_path_is_taken_as_it_is(own, tmp_path):
    write_bundle(tmp_path / "Any Name.v2", FIELDS, PAYLOAD)
    for given in (tmp_path / "Any Name.v2", str(tmp_path / "Any Name.v2")):
        assert find_model(given) == tmp_path / "Any Name.v2"


def test_a_folder_in_the_working_folder_is_found_after_the_names(shipped, own, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_bundle(Path("alpha"), FIELDS, PAYLOAD)
    assert find_model("alpha") == Path("alpha")
    write_bundle(shipped / "alpha", FIELDS, PAYLOAD)
    assert find_model("alpha") == shipped / "alpha"
    assert find_model("./alpha") == find_model(Path("alpha")) == Path("alpha")


def test_an_unknown_name_lists_those_there_are(shipped, own):
    write_bundle(shipped / "alpha", FIELDS, PAYLOAD)
    write_bundle(own / "beta", FIELDS, PAYLOAD)
    with pytest.raises(InvalidValueError, match=r"Bad value 'gamma' for model, expected one of \['alpha', 'beta'\]"):
        find_model("gamma")


@pytest.mark.parametrize(
    "trick", ["../package/alpha", "alpha/../../x", "/nowhere/alpha", "", "..x", "alpha\0", "alpha\n", "ALPHA", "~alpha", "x" * 5000, "trusted_keys"]
)
def test_what_is_no_name_is_a_path_and_never_looked_up_among_the_models(shipped, own, tmp_path, monkeypatch, trick):
    write_bundle(shipped / "alpha", FIELDS, PAYLOAD)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    if trick == "../package/alpha":  # an honest path to a folder
        assert find_model(trick) == Path(trick)
        return
    with pytest.raises(BundleNotFoundError, match=r"name of a model: \['alpha'\]") as caught:
        find_model(trick)
    assert "nowhere" not in str(caught.value)


def test_the_list_tells_what_each_model_is(shipped, own):
    digest = write_bundle(shipped / "beta", FIELDS, PAYLOAD, KEY)
    write_bundle(shipped / "alpha", FIELDS, PAYLOAD)
    write_bundle(own / "gamma", FIELDS.model_copy(update={"version": "3", "simulated": False}), PAYLOAD, KEY)
    entries = {entry.name: entry for entry in list_models(trusted=TRUSTED)}
    assert list(entries) == ["alpha", "beta", "gamma"]
    assert entries["beta"] == ModelEntry("beta", ModelOrigin.SHIPPED, "depression-test", "1.2.0", digest, DEPRESSION, True, SignatureState.TRUSTED)
    assert entries["alpha"].signature is SignatureState.UNSIGNED
    assert (entries["gamma"].origin, entries["gamma"].version, entries["gamma"].simulated) == (ModelOrigin.USER, "3", False)
    assert {entry.signature for entry in list_models()} == {SignatureState.UNSIGNED, SignatureState.UNTRUSTED}


def test_broken_models_are_listed_with_their_reason_beside_the_sound_ones(shipped, own):
    for name in ("cut", "empty", "sound", "tampered"):
        write_bundle(own / name, FIELDS, PAYLOAD, KEY)
    (own / "cut" / "head.json").write_bytes(b"{")
    for path in (own / "empty").iterdir():
        path.unlink()
    (own / "tampered" / MANIFEST).write_bytes((own / "tampered" / MANIFEST).read_bytes().replace(b"1.2.0", b"1.2.1"))
    entries = {entry.name: entry for entry in list_models(trusted=TRUSTED)}
    assert entries["sound"].problem is None
    for name, reason in {"cut": "head.json: has 1 bytes", "empty": "manifest.json: missing", "tampered": "signature: "}.items():
        assert entries[name].problem.startswith(reason)
        assert (entries[name].digest, entries[name].signature, entries[name].version) == (None, None, None)


def test_a_users_model_hidden_by_a_shipped_one_says_so(shipped, own):
    write_bundle(shipped / "alpha", FIELDS, PAYLOAD)
    write_bundle(own / "alpha", FIELDS, PAYLOAD)
    first, second = list_models(trusted=TRUSTED)
    assert (first.origin, first.problem) == (ModelOrigin.SHIPPED, None)
    assert second.origin is ModelOrigin.USER
    assert "hidden by the shipped model" in second.problem


def test_what_is_no_model_folder_is_not_listed(shipped, own):
    write_bundle(own / "sound", FIELDS, PAYLOAD)
    (own / "notes").write_text("a file")
    (own / ".sound.abc.tmp").mkdir()
    (own / "Backup of sound").mkdir()
    assert [entry.name for entry in list_models(trusted=TRUSTED)] == ["sound"]


def test_no_models_at_all_is_an_empty_list(shipped, own):
    assert list_models(trusted=TRUSTED) == ()
    assert os.listdir(shipped) == ["trusted_keys"]


def test_models_are_found_where_the_process_has_no_home(shipped, monkeypatch):
    for variable in ("CLINICAL_SER_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 3_999_999_999)
    write_bundle(shipped / "alpha", FIELDS, PAYLOAD)
    assert find_model("alpha") == shipped / "alpha"
    assert [entry.name for entry in list_models()] == ["alpha"]


def test_every_model_in_the_package_is_sound():
    for entry in list_models():
        if entry.origin is ModelOrigin.SHIPPED:
            assert entry.problem is None
            assert entry.model == entry.name
