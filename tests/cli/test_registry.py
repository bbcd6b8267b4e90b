import json
from pathlib import Path

import pytest

from clinical_ser.models.bundle import read_bundle, write_bundle
from clinical_ser.models.strict_json import canonical_json
from clinical_ser.registry import Pointers, Record, Registry
from clinical_ser.registry.names import find_model


@pytest.fixture
def registry(tmp_path, monkeypatch) -> Registry:
    monkeypatch.setenv("CLINICAL_SER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "300")
    return Registry.default()


@pytest.fixture
def child(tmp_path) -> Path:
    """The shipped model with one coefficient and the calibrator moved."""
    bundle = read_bundle(find_model("depression-simulated"))
    head, calibration = bundle.json("head.json"), bundle.json("calibrator.json")
    head["coefficients"][3][0] += 0.25
    calibration["calibrator"]["offset"] = [calibration["calibrator"]["offset"][0] + 0.5]
    files = {**bundle.files, "head.json": canonical_json(head), "calibrator.json": canonical_json(calibration)}
    write_bundle(tmp_path / "child", bundle.manifest.model_copy(update={"name": "ward", "version": "2"}), files)
    return tmp_path / "child"


def test_a_bundle_is_added_listed_and_shown_by_its_counts_and_origin(run, registry, child):
    added = run("registry", "add", "depression-simulated", "--name", "ward", "--change", "trained")
    digest = registry.digests()[0]
    assert added == (0, f"Bundle {digest[:12]} added as ward {registry.record(digest).version}, trusted.\n", "")
    assert f"Bundle {digest[:12]} is in the registry already, as ward." in run("registry", "add", str(registry.folder_of(digest))).out
    second = registry.add(child, Record.of(read_bundle(child), change="updated", parent=digest, epsilon=0.5))
    registry.keep_private(second, "memory.json", b"{}")
    registry.switch("ward", expected=None, action="opened", pointers=Pointers(champion=digest, challenger=second), actor="quality")

    record = registry.record(digest)
    assert [line.strip() for line in run("registry", "list").out.splitlines()] == [
        f"{digest[:12]}  ward {record.version}  ward@champion",
        f"trained, {sum(record.subjects.values())} subjects",
        f"{second[:12]}  ward 2  ward@challenger",
        f"updated from {digest[:12]}, epsilon 0.5",
    ]

    told = run("registry", "show", "ward@challenger").out
    assert "updated" in told
    assert digest in told
    assert "kept private  memory.json" in told
    kept = json.loads(run("registry", "show", digest[:10], "--json").out)
    assert kept["record"]["subjects"] == record.subjects
    assert (kept["children"], kept["roles"]) == ([second], [{"name": "ward", "role": "champion"}])
    assert {one["record"]["bundle"] for one in json.loads(run("registry", "list", "--json").out)} == {digest, second}


def test_verify_fails_and_says_what_does_not_fit(run, registry, child):
    assert run("registry", "verify").out == "All of it fits: 0 bundles, 0 names.\n"
    run("registry", "add", child)
    assert run("registry", "verify").out == "All of it fits: 1 bundles, 0 names.\n"
    head = registry.folder_of(registry.digests()[0]) / "head.json"
    head.write_bytes(head.read_bytes()[:-1])
    done = run("registry", "verify")
    assert done.code == 1
    assert "head.json: has" in done.out
    assert str(registry.folder) not in done.out


def test_history_tells_each_switch(run, registry, child):
    assert run("model", "history", "ward").out == "ward has no history in the registry.\n"
    digest = registry.add(child, Record.of(read_bundle(child), change="trained"))
    approval = registry.attach(digest, canonical_json({"role": "clinical"}))
    first = registry.switch(
        "ward", expected=None, action="shadowed", pointers=Pointers(shadow=digest), bundle=digest, actor="quality", reason="[bold]"
    )
    registry.switch(
        "ward",
        expected=first.digest,
        action="promoted",
        pointers=Pointers(champion=digest),
        bundle=digest,
        plan="ab" * 32,
        modification="recalibrate",
        approvals=[approval],
        actor="quality",
        reason="gate met",
    )
    lines = [line.split() for line in run("model", "history", "ward").out.splitlines()]
    assert [lines[0][0], *lines[0][3:]] == ["1", "shadowed", "by", "quality"]
    assert lines[1:3] == [["shadow", digest[:12]], ["[bold]"]]
    assert [lines[3][0], *lines[3][3:]] == ["2", "promoted", "by", "quality"]
    assert lines[4] == ["champion", digest[:12]]
    assert lines[5] == ["plan", "abababababab,", "modification", "recalibrate,", "approvals", approval[:12]]
    assert lines[6] == ["gate", "met"]
    entries = json.loads(run("model", "history", "ward", "--json").out)
    assert [entry["number"] for entry in entries] == [1, 2]
    assert entries[1]["previous"] == entries[0]["digest"] == first.digest


def test_diff_tells_what_a_person_cares_about(run, registry, child):
    digest = registry.add(child, Record.of(read_bundle(child), change="updated"))
    found = json.loads(run("model", "diff", "depression-simulated", digest[:8], "--json").out)
    differs = {one["what"]: (one["before"], one["after"]) for one in found["differs"]}
    assert differs["name"] == ("depression-simulated", "ward")
    assert differs["signature"] == ("trusted", "unsigned")
    before, after = differs["calibrator offset, depressed"]
    assert after - before == pytest.approx(0.5)
    assert set(differs) == {"name", "version", "signature", "signing key", "calibrator offset, depressed"}
    parent = read_bundle(find_model("depression-simulated"))
    (moved,) = found["coefficients"]
    assert moved["feature"] == parent.manifest.features[3]
    assert moved["after"] - moved["before"] == pytest.approx(0.25 * parent.json("calibrator.json")["calibrator"]["scale"])
    assert (found["features_added"], found["features_removed"]) == ([], [])
    assert "auroc" in {one["name"] for one in found["figures"]}
    told = run("model", "diff", "depression-simulated", child).out
    assert parent.manifest.features[3] in told
    assert "AUROC" in told
    assert "The same model" in run("model", "diff", "depression-simulated", "depression-simulated").out


def test_a_diff_in_the_units_of_the_first_model_sees_no_change_where_only_the_scale_changed(run, registry, tmp_path):
    bundle = read_bundle(find_model("depression-simulated"))
    head, preprocessing = bundle.json("head.json"), bundle.json("preprocessing.json")
    preprocessing["scale"][3] *= 2
    head["coefficients"][3][0] *= 2
    files = {**bundle.files, "head.json": canonical_json(head), "preprocessing.json": canonical_json(preprocessing)}
    write_bundle(tmp_path / "rescaled", bundle.manifest, files)
    found = json.loads(run("model", "diff", "depression-simulated", tmp_path / "rescaled", "--json").out)
    assert found["coefficients"] == []


def test_what_is_wrong_is_refused_in_one_line(run, registry, tmp_path):
    for words, code, said in (
        (["registry", "add", tmp_path / "nowhere"], 1, "No folder is at the path"),
        (["registry", "add", "depression-simulated", "--name", "../x"], 2, "Bad value '../x' for model name"),
        (["registry", "show", "deadbeef"], 2, "no bundle's digest here begins so"),
        (["registry", "show", "ward@king"], 2, "Bad value 'ward@king' for bundle"),
        (["model", "history", "../x"], 2, "Bad value '../x' for model name"),
        (["model", "diff", "depression-simulated", "deadbeef"], 2, "no bundle's digest here begins so"),
        (["model", "diff", "depression-simulated", "ward@shadow"], 2, "a name with a shadow; 'ward' has none"),
    ):
        done = run(*words)
        assert (done.code, done.out) == (code, "")
        assert said in done.err
        assert len(done.err.splitlines()) == 1
        assert str(tmp_path) not in done.err
    assert not registry.folder.exists()
