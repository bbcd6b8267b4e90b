"""`update`, `registry add --table`, `registry forget`: a champion learns on and forgets a person, and nothing answers before the gate."""

import json
from dataclasses import replace

import pytest

from clinical_ser.audit.answering import Recorder
from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.events import Configuration, ModelChange
from clinical_ser.cohorts.table import write_table
from clinical_ser.continual.unlearning import Contributions
from clinical_ser.control.plan import example_plan
from clinical_ser.control.site_figures import table_digest
from clinical_ser.control.unlearning import destroy_what_is_left
from clinical_ser.errors import AuditUnavailableError
from clinical_ser.models.bundle import read_bundle
from clinical_ser.registry import Registry
from tests.continual.made import people, thinned
from tests.control.made import MODEL, filled_in
from tests.tables import table_of


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "pccp.toml"
    path.write_text(filled_in(), encoding="utf-8")
    return path


@pytest.fixture
def champion(run, bundle, tmp_path):
    """A champion whose training table was here when it came in; its digest."""
    write_table(table_of(80), tmp_path / "trained-on.parquet")
    done = run("registry", "add", bundle, "--name", MODEL, "--table", tmp_path / "trained-on.parquet", "--keep-contributions")
    assert done.code == 0, done.err
    digest = read_bundle(bundle).digest
    assert run("model", "promote", digest[:12], "--first", MODEL, "--reason", "first release").code == 0
    return digest


def saved(tmp_path, table, name="new.parquet"):
    write_table(table, tmp_path / name)
    return tmp_path / name


def test_a_champion_learns_from_new_people_and_the_challenger_answers_nothing(run, tmp_path, plan, champion):
    assert run("audit", "init", "--origin", "clinic.example/screening").code == 0
    table = saved(tmp_path, people(100, 21))
    done = run("update", table, "--plan", plan, "--version", "2", "--method", "update", "--forgetting", "0.9", "--no-sign", "--keep-contributions")
    assert done.code == 0, done.err
    registry = Registry.default()
    pointers = registry.pointers(MODEL)
    assert pointers.champion == champion
    record = registry.record(pointers.challenger)
    assert (record.change, record.parent, record.details["forgetting"], sum(record.subjects.values())) == ("updated", champion, 0.9, 100)
    assert set(registry.private_names(pointers.challenger)) == {"memory.json", "members.json", "contributions.npz"}
    manifest = registry.bundle(pointers.challenger).manifest
    assert (manifest.name, manifest.version) == (MODEL, "2")
    assert f"Updated from model {champion[:12]} with 100 new people" in manifest.statement
    again = run("update", table, "--plan", plan, "--version", "3", "--method", "update", "--no-sign")
    assert again.code == 0, again.err
    assert run("registry", "verify").code == 0


def test_the_smallest_answer_is_found_and_done(run, tmp_path, plan, champion):
    rare = saved(tmp_path, thinned(people(400, 22), "depressed", 0.2))
    told = json.loads(run("update", rare, "--plan", plan, "--version", "2", "--no-sign", "--json").out)
    assert told["change"] in {"recalibrated", "updated"}
    assert told["justified"]["step"] in {"intercept", "slope", "full"}
    assert Registry.default().pointers(MODEL).challenger == told["bundle"]


def test_what_the_plan_does_not_cover_is_refused_by_name_before_any_work_and_recorded(run, tmp_path, plan, champion):
    assert run("audit", "init", "--origin", "clinic.example/screening").code == 0
    table = saved(tmp_path, people(100, 23))
    before = Registry.default().pointers(MODEL)
    few = run("update", saved(tmp_path, people(30, 24), "few.parquet"), "--plan", plan, "--version", "2", "--method", "update")
    forgetful = run("update", table, "--plan", plan, "--version", "2", "--method", "update", "--forgetting", "0.1")
    silent = ("--unlabelled", saved(tmp_path, people(50, 25, prefix="silent"), "silent.parquet"), "--unlabelled-weight", "0.5")
    unlabelled = run("update", table, "--plan", plan, "--version", "2", "--method", "update", *silent)
    retrained = run("update", table, "--plan", plan, "--version", "2", "--method", "retrain")
    assert [done.code for done in (few, forgetful, unlabelled, retrained)] == [1, 1, 1, 1]
    assert "subjects" in few.err.lower()
    assert "forgetting" in forgetful.err.lower()
    assert "unlabelled" in unlabelled.err.lower() or "without labels" in unlabelled.err.lower()
    assert "retrained" in retrained.err
    assert Registry.default().pointers(MODEL) == before
    with LogConfiguration.load(LogConfiguration.default_path()).read() as reader:
        payloads = [record.payload for record in reader.records(0, reader.size)]
    refused = [each for each in payloads if isinstance(each, ModelChange) and each.action == "refused"]
    assert len(refused) == 4
    assert [entry.action for entry in Registry.default().history(MODEL)][-4:] == ["refused"] * 4


def test_a_frozen_holdout_and_a_plan_that_is_not_filled_in_teach_nothing(run, tmp_path, champion, plan):
    table = people(100, 33)
    path = saved(tmp_path, table)
    (tmp_path / "frozen.toml").write_text(filled_in(digests=(table_digest(table), "2" * 64)), encoding="utf-8")
    refused = run("update", path, "--plan", tmp_path / "frozen.toml", "--version", "2", "--method", "update")
    assert refused.code == 1
    assert "frozen holdout" in refused.err
    (tmp_path / "example.toml").write_text(example_plan(), encoding="utf-8")
    refused = run("update", path, "--plan", tmp_path / "example.toml", "--version", "2", "--method", "update")
    assert refused.code == 1
    assert "not filled in" in refused.err


def test_people_whom_the_champion_knows_are_not_heard_twice(run, tmp_path, plan, champion):
    new, known = people(60, 26), table_of(80)
    mixed = replace(new, frame=new.frame.assign(subject=[*known.frame["subject"][:3], *new.frame["subject"][3:]]))
    done = run("update", saved(tmp_path, mixed), "--plan", plan, "--version", "2")
    assert done.code == 1
    assert "3 people of the table are known" in done.err


def test_a_bundle_without_memory_is_recalibrated_and_not_updated(run, tmp_path, plan, bundle):
    digest = read_bundle(bundle).digest
    assert run("registry", "add", bundle, "--name", MODEL).code == 0
    assert run("model", "promote", digest[:12], "--first", MODEL, "--reason", "first release").code == 0
    table = saved(tmp_path, people(100, 27))
    refused = run("update", table, "--plan", plan, "--version", "2", "--method", "update")
    assert refused.code == 1
    assert "registry add --table" in refused.err
    assert run("update", table, "--plan", plan, "--version", "2", "--step", "slope", "--no-sign").code == 0
    wrong = run("registry", "add", bundle, "--name", MODEL, "--table", table)
    assert wrong.code == 2
    assert "not trained on" in wrong.err
    assert run("registry", "add", bundle, "--table", saved(tmp_path, table_of(80), "own.parquet")).code == 0
    assert run("update", table, "--plan", plan, "--version", "2", "--method", "update", "--no-sign").code == 0


def test_a_person_is_taken_out_and_what_is_left_to_do_is_said(run, tmp_path, plan, champion):
    assert run("audit", "init", "--origin", "clinic.example/screening").code == 0
    registry = Registry.default()
    done = run("registry", "forget", "s0007", "--reason", "withdrew consent", "--no-sign", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert [each["bundle"] for each in told["saw"]] == [champion]
    assert told["replaced"][0]["how"] == "subtracted"
    candidate = told["replaced"][0]["candidate"]
    assert registry.pointers(MODEL).challenger == candidate
    assert registry.pointers(MODEL).champion == champion
    assert registry.record(candidate).change == "unlearned"
    assert registry.bundle(candidate).manifest.version == "1+forgot1"
    # One of 80 moves the threshold a little: it is made of what was said out of fold in training, and not of something like it.
    before, after = (registry.bundle(digest).manifest.operating_point.threshold for digest in (champion, candidate))
    assert abs(after - before) < 0.15
    tag = registry.tag("s0007")
    assert tag in registry.private(champion, "members.json").decode()
    assert tag not in registry.private(candidate, "members.json").decode()
    assert "s0007" not in done.out + done.err
    assert "No bundle of this registry" in run("registry", "forget", "nobody", "--reason", "asked").out
    assert run("registry", "forget", " ", "--reason", "asked").code == 2
    assert run("registry", "forget", "s0007", "--reason", " ").code == 2
    with LogConfiguration.load(LogConfiguration.default_path()).read() as reader:
        payloads = [record.payload for record in reader.records(0, reader.size)]
    said = [each for each in payloads if isinstance(each, Configuration) and "to be forgotten" in each.setting]
    assert [(each.old, each.new) for each in said] == [
        ("withdrew consent", champion[:12]),
        ("asked", "no bundle is known to have learned from this person"),
    ]
    assert json.loads(run("registry", "forget", "s0007", "--reason", "again", "--json").out)["replaced"][0]["how"] == "waiting"


def test_people_forgotten_one_after_the_other_are_all_out_of_the_candidate_and_never_come_back(run, tmp_path, plan, champion):
    registry = Registry.default()
    for subject in ("s0007", "s0008", "s0009"):
        assert run("registry", "forget", subject, "--reason", "withdrew consent", "--no-sign").code == 0
    candidate = registry.pointers(MODEL).challenger
    members = registry.private(candidate, "members.json").decode()
    assert not any(registry.tag(subject) in members for subject in ("s0007", "s0008", "s0009"))
    assert registry.record(candidate).details["people"] == 3
    known = table_of(80)
    again = known.frame["subject"].isin(["s0007", "s0008"])
    new = people(60, 28)
    mixed = replace(new, frame=new.frame.assign(subject=[*known.frame["subject"][again], *new.frame["subject"][2:]]))
    # The champion knows them still; a later one does not, and refuses them all the same.
    before = registry.head(MODEL)
    registry.switch(
        MODEL, expected=before.digest, action="promoted", pointers=before.pointers.model_copy(update={"champion": candidate, "challenger": None}),
        bundle=candidate, actor="test",
    )  # fmt: skip
    destroy_what_is_left(registry)
    kept = Contributions.from_bytes(registry.private(champion, "contributions.npz"))
    assert len(kept.tags) == 77
    assert registry.private(champion, "memory.json") is None
    refused = run("update", saved(tmp_path, mixed), "--plan", plan, "--version", "2", "--method", "update")
    assert refused.code == 1
    assert "2 people of the table were forgotten" in refused.err
    assert run("registry", "forget", "s0010", "--reason", "withdrew consent", "--no-sign").code == 0
    assert registry.record(registry.pointers(MODEL).challenger).parent == candidate


def test_nothing_is_done_without_its_record(run, tmp_path, champion, monkeypatch):
    def full(*_args, **_about):
        raise AuditUnavailableError("The disk is full.")

    monkeypatch.setattr(Recorder, "record", full)
    registry = Registry.default()
    assert run("registry", "forget", "s0007", "--reason", "withdrew consent", "--no-sign").code == 1
    assert registry.forgotten() == frozenset()
    assert registry.pointers(MODEL).challenger is None


def test_a_person_whose_part_was_not_kept_needs_the_table(run, tmp_path, bundle, plan):
    digest = read_bundle(bundle).digest
    own = saved(tmp_path, table_of(80), "own.parquet")
    assert run("registry", "add", bundle, "--name", MODEL, "--table", own).code == 0
    assert run("model", "promote", digest[:12], "--first", MODEL, "--reason", "first release").code == 0
    left = run("registry", "forget", "s0007", "--reason", "withdrew consent", "--no-sign")
    assert left.code == 1
    assert "--table" in left.out
    other = saved(tmp_path, people(80, 29), "other.parquet")
    wrong = run("registry", "forget", "s0007", "--reason", "withdrew consent", "--no-sign", "--table", other)
    assert wrong.code == 2
    assert "other people than the champion" in wrong.err
    done = json.loads(run("registry", "forget", "s0007", "--reason", "withdrew consent", "--no-sign", "--json", "--table", own).out)
    assert done["replaced"][0]["how"] == "retrained"
    registry = Registry.default()
    assert registry.tag("s0007") not in registry.private(done["replaced"][0]["candidate"], "members.json").decode()
