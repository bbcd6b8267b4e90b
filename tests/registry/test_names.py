import os
from pathlib import Path

import pytest

from clinical_ser.cohorts.tasks import DEPRESSION
from clinical_ser.errors import BundleNotFoundError, InvalidValueError, RegistryTamperedError
from clinical_ser.models.bundle import MANIFEST, read_bundle, write_bundle
from clinical_ser.models.signing import SignatureState, TrustStore
from clinical_ser.registry import Pointers, Record, Registry, names
from clinical_ser.registry.names import ModelEntry, ModelOrigin, find_model, list_models
from clinical_ser.screening import Screener
from tests.models.bundle_content import FIELDS, KEY, PAYLOAD
from tests.registry.keeping import keep

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


@pytest.fixture
def registry(own) -> Registry:
    return Registry(own.parent / "registry")


def switch(registry: Registry, name: str, **roles: str) -> None:
    head = registry.head(name)
    registry.switch(name, expected=head.digest if head else None, action="promoted", pointers=Pointers(**roles), actor="quality")


def test_the_registrys_champion_comes_after_the_shipped_model_and_before_the_users(shipped, own, registry, tmp_path):
    write_bundle(shipped / "alpha", FIELDS, PAYLOAD)
    write_bundle(own / "ward", FIELDS, PAYLOAD)
    first, second = keep(registry, tmp_path, "1"), keep(registry, tmp_path, "2")
    switch(registry, "ward", challenger=second)
    assert find_model("ward") == own / "ward"  # which nothing in the registry has taken the place of yet
    for name in ("ward", "alpha"):
        switch(registry, name, champion=first, challenger=second)
    assert find_model("ward") == find_model("ward@champion") == find_model(f"ward@{first[:8]}") == registry.folder_of(first)
    assert find_model("ward@challenger") == registry.folder_of(second)
    assert find_model("alpha") == shipped / "alpha"
    for text in ("alpha@champion", f"alpha@{first[:8]}", "ward@shadow", "nobody@champion"):
        with pytest.raises(InvalidValueError, match=f"Bad value '{text}' for"):
            find_model(text)
    entries = [(entry.name, entry.origin, entry.version, entry.problem) for entry in list_models(trusted=TRUSTED)]
    assert entries == [
        ("alpha", ModelOrigin.SHIPPED, "1.2.0", None),
        ("alpha", ModelOrigin.REGISTRY, None, "hidden by the shipped model of the same name"),
        ("ward", ModelOrigin.REGISTRY, "1", None),
        ("ward", ModelOrigin.USER, None, "hidden by the registry's model of the same name; rename its folder"),
    ]


def test_nothing_answers_for_a_champion_that_was_withdrawn(own, registry, tmp_path):
    write_bundle(own / "ward", FIELDS, PAYLOAD)
    switch(registry, "ward", champion=keep(registry, tmp_path))
    switch(registry, "ward")
    with pytest.raises(InvalidValueError, match=r"its champion was withdrawn"):
        find_model("ward")
    assert "withdrawn" in list_models(trusted=TRUSTED)[0].problem


def test_a_bundle_in_the_registry_that_was_replaced_or_a_head_moved_back_finds_nothing(own, registry, tmp_path):
    first, second = keep(registry, tmp_path, "1"), keep(registry, tmp_path, "2")
    switch(registry, "ward", champion=first)
    head = registry.head_path("ward").read_text()
    switch(registry, "ward", champion=second)
    os.rename(registry.folder_of(second), tmp_path / "aside")
    os.rename(registry.folder_of(first), registry.folder_of(second))  # sound, and another one
    with pytest.raises(RegistryTamperedError, match="is not the one that was added"):
        find_model("ward")
    assert list_models(trusted=TRUSTED)[0].problem.startswith("manifest.json: the bundle's digest is")
    registry.head_path("ward").write_text(head)
    with pytest.raises(RegistryTamperedError, match="moved back"):
        find_model("ward")
    assert "moved back" in list_models(trusted=TRUSTED)[0].problem


def test_a_folder_called_like_a_role_does_not_stand_in_for_the_registry(own, registry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_bundle(Path("ward@champion"), FIELDS, PAYLOAD)
    with pytest.raises(InvalidValueError):
        find_model("ward@champion")
    assert find_model("./ward@champion") == Path("ward@champion")


def test_a_screener_answers_with_the_registrys_champion(tmp_path, monkeypatch):
    monkeypatch.setenv("CLINICAL_SER_HOME", str(tmp_path))
    registry, bundle = Registry.default(), read_bundle(names.SHIPPED_MODELS / "depression-simulated")
    digest = registry.add(names.SHIPPED_MODELS / "depression-simulated", Record.of(bundle, change="imported", name="ward"))
    switch(registry, "ward", champion=digest)
    assert Screener.load("ward").digest == digest


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


def test_a_name_that_is_a_link_is_listed_with_its_problem_and_finds_nothing(own, registry, tmp_path):
    switch(registry, "ward", champion=keep(registry, tmp_path))
    (registry.folder / "names" / "ward").rename(tmp_path / "elsewhere")
    (registry.folder / "names" / "ward").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RegistryTamperedError, match="but a link"):
        find_model("ward")
    [entry] = [entry for entry in list_models(trusted=TRUSTED) if entry.name == "ward"]
    assert "but a link" in entry.problem
