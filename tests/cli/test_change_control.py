"""`pccp`, `gate` and `model approve|shadow|promote|rollback|withdraw`: from an example plan to a champion and back."""

import json
from datetime import date
from pathlib import Path

import pytest

from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.cli import model_changes
from clinical_ser.cohorts.table import write_table
from clinical_ser.control.plan import read_plan
from clinical_ser.control.site_figures import table_digest
from clinical_ser.models.bundle import read_bundle, write_bundle
from clinical_ser.monitoring.counts import Counts
from clinical_ser.monitoring.journal import Journal
from clinical_ser.registry import Record, Registry
from tests.control.made import KEYS, LEAD, MODEL, PERSONS, QUALITY, filled_in
from tests.tables import table_of


@pytest.fixture
def keys(tmp_path):
    """The roles' private keys as files."""
    made = {}
    for role, key in KEYS.items():
        made[role] = tmp_path / f"{role}.pem"
        key.save(made[role])
    return made


@pytest.fixture
def tables(tmp_path):
    made = {"north": table_of(120, seed=5), "south": table_of(120, seed=6)}
    for site, table in made.items():
        write_table(table, tmp_path / f"{site}.parquet")
    return made


@pytest.fixture
def plan(tmp_path, tables):
    """A plan for these tables, as cheap as one may be; calibration of 80 random people is not what is tested."""
    path = tmp_path / "pccp.toml"
    text = filled_in(digests=tuple(table_digest(table) for table in tables.values()), replicates="200", shadow_days="0", shadow_recordings="0")
    smaller = text.replace("subjects_of_each_class_at_least = 40", "subjects_of_each_class_at_least = 30")
    path.write_text(smaller.replace("limit = 0.15", "limit = 0.9"), encoding="utf-8")
    return path


@pytest.fixture
def challenger(bundle, tmp_path):
    """A champion in the registry, and a challenger that states probabilities a little higher; its digest."""
    registry, champion = Registry.default(), read_bundle(bundle)
    registry.add(bundle, Record.of(champion, change="trained", name=MODEL))
    state = json.loads(champion.files["calibrator.json"])
    offset = state["calibrator"]["offset"]
    state["calibrator"]["offset"] = [value + 0.01 for value in offset] if isinstance(offset, list) else offset + 0.01
    files = {**champion.files, "calibrator.json": json.dumps(state, sort_keys=True, separators=(",", ":")).encode() + b"\n"}
    digest = write_bundle(tmp_path / "challenger", champion.manifest.model_copy(update={"version": "2"}), files)
    people = {"depressed": 40, "not_depressed": 60}
    record = Record.of(
        read_bundle(tmp_path / "challenger"),
        change="recalibrated",
        name=MODEL,
        parent=champion.digest,
        subjects=people,
        details={"step": "intercept"},
        because="alarm:calibration-1",
    )
    assert registry.add(tmp_path / "challenger", record) == digest
    return digest


def holdouts(tmp_path):
    return [word for site in ("north", "south") for word in ("--holdout", f"{site}={tmp_path / site}.parquet")]


def test_the_example_is_checked_and_what_is_to_be_filled_in_is_named(run, tmp_path):
    example = run("pccp", "example")
    path = tmp_path / "pccp.toml"
    path.write_text(example.out, encoding="utf-8")
    done = run("pccp", "check", path)
    assert done.code == 0
    assert "no fault" in done.out
    assert done.out.count("to fill in:") == 4
    told = json.loads(run("pccp", "check", path, "--json").out)
    assert (told["valid"], told["ready"], len(told["to_fill_in"])) == (True, False, 4)
    refused = run("pccp", "sign", path, "--role", LEAD, "--name", "Ada Roe")
    assert refused.code == 1


def test_a_plan_with_faults_is_refused_with_their_places(run, tmp_path):
    path = tmp_path / "pccp.toml"
    path.write_text(run("pccp", "example").out.replace('figure = "auroc"', 'figure = "auc"').replace("[impact]", '[impact]\nextra = "x"'), "utf-8")
    done = run("pccp", "check", path)
    assert done.code == 1
    assert "impact.extra: no such field" in done.out
    assert json.loads(run("pccp", "check", path, "--json").out)["valid"] is False
    assert run("pccp", "check", tmp_path / "missing.toml").code == 1


def test_keys_are_made_and_printed_as_a_plan_has_them(run, tmp_path):
    made = run("pccp", "key", tmp_path / "role.pem", "--new")
    assert len(made.out.strip()) == 44
    assert run("pccp", "key", tmp_path / "role.pem").out == made.out
    assert run("pccp", "key", tmp_path / "role.pem", "--new").code == 1


def test_from_the_gate_to_a_new_champion_and_back(run, tmp_path, plan, keys, tables, challenger):
    assert run("audit", "init", "--origin", "clinic.example/screening").code == 0
    champion = read_bundle(Path(Registry.default().folder_of(Registry.default().record(challenger).parent))).digest
    assert run("model", "promote", champion[:12], "--first", MODEL, "--reason", "first release").code == 0
    assert run("pccp", "digest", tmp_path / "north.parquet").out.strip() == table_digest(tables["north"])

    out = tmp_path / "gate"
    done = run("gate", MODEL, challenger[:12], "--plan", plan, *holdouts(tmp_path), "-o", out)
    assert done.code == 0, done.out + done.err
    assert "All requirements are met" in done.out
    assert "not checked whether" in done.out
    assert (out / "report.html").read_text(encoding="utf-8").count(challenger) >= 1
    both = [json.loads((out / f"{site}.figures.json").read_bytes()) for site in tables]
    (tmp_path / "sites.json").write_text(json.dumps(both), encoding="utf-8")
    listed = run("gate", MODEL, challenger[:12], "--plan", plan, "--summary", tmp_path / "sites.json", "-o", tmp_path / "listed")
    assert listed.code == 0, listed.err
    assert (tmp_path / "listed" / "comparison.json").read_bytes() == (out / "comparison.json").read_bytes()
    again = ("--summary", out / "north.figures.json", "--summary", out / "south.figures.json")
    assert run("gate", MODEL, challenger[:12], "--plan", plan, *again, "-o", tmp_path / "again").code == 0
    assert (tmp_path / "again" / "comparison.json").read_bytes() == (out / "comparison.json").read_bytes()
    assert (out / "report.pdf").read_bytes().startswith(b"%PDF-")

    early = run("model", "promote", challenger[:12], "--plan", plan)
    assert early.code == 1
    assert "not signed by its own roles" in early.err
    for role, key in keys.items():
        assert run("pccp", "sign", plan, "--role", role, "--name", PERSONS[role], "--key", key).code == 0
    assert json.loads(run("pccp", "check", plan, "--json").out)["ready"]
    assert "is not the challenger" in run("model", "promote", challenger[:12], "--plan", plan).err
    assert run("model", "shadow", challenger[:12], "--plan", plan).code == 0
    unsigned = run("model", "promote", challenger[:12], "--plan", plan)
    assert "Approvals are missing" in unsigned.err
    assert run("model", "approve", out / "comparison.json", "--plan", plan, "--role", LEAD, "--name", "Ada Roe", "--key", keys[QUALITY]).code == 1
    for role, key in keys.items():
        done = run("model", "approve", out / "comparison.json", "--plan", plan, "--role", role, "--name", PERSONS[role], "--key", key)
        assert done.code == 0, done.err
    signed = (out / "report.html").read_text(encoding="utf-8")
    assert all(person in signed for person in PERSONS.values())
    done = run("model", "promote", challenger[:12], "--plan", plan)
    assert done.code == 0, done.err
    assert Registry.default().pointers(MODEL).champion == challenger
    assert run("model", "rollback", MODEL, "--reason", "complaints of users").code == 0
    assert Registry.default().pointers(MODEL).champion == champion
    assert run("model", "withdraw", MODEL, "--reason", "for good", "--champion").code == 0
    with LogConfiguration.load(LogConfiguration.default_path()).read() as reader:
        records = list(reader.records())
    actions = [record.payload.action for record in records if record.event.kind == "model"]
    assert actions == ["activated", "refused", "refused", "refused", "activated", "rolled_back", "rolled_back"]
    settings = [record.payload.setting for record in records if record.event.kind == "configuration"]
    # Who ran the gate, signed the plan and approved is on record too, and not only what came of it.
    for role in KEYS:
        assert f"model {MODEL}: approval by {role}" in settings
        assert "plan clinic-depression-changes 1: signature by " + role in settings
    assert any(setting.startswith(f"model {MODEL}: gate under plan") for setting in settings)


def test_a_first_champion_is_bound_to_a_plan_or_it_is_said_that_it_is_not(run, plan, keys, tables, challenger, bundle):
    champion = read_bundle(bundle).digest
    unsigned = run("model", "promote", champion[:12], "--first", MODEL, "--plan", plan, "--reason", "first release")
    assert unsigned.code == 1
    assert "not signed by its own roles" in unsigned.err
    for role, key in keys.items():
        assert run("pccp", "sign", plan, "--role", role, "--name", PERSONS[role], "--key", key).code == 0
    done = run("model", "promote", champion[:12], "--first", MODEL, "--plan", plan, "--reason", "first release")
    assert done.code == 0, done.err
    assert Registry.default().head(MODEL).plan == read_plan(plan).digest
    other = run("model", "promote", champion[:12], "--first", "another-name", "--reason", "first release")
    assert "trusted on first use" in other.out
    assert run("model", "withdraw", "another-name", "--reason", "harm", "--champion").code == 0
    assert "--to" in run("model", "rollback", "another-name", "--reason", "back").err
    assert run("model", "rollback", "another-name", "--reason", "back", "--to", champion[:12]).code == 0


def test_the_servers_own_journal_is_asked_where_none_is_named(run, tmp_path, plan, keys, tables, challenger, bundle, monkeypatch):
    journal, configuration = tmp_path / "counts", tmp_path / "server.toml"
    configuration.write_text(f'[monitoring]\nfolder = "{journal}"\n', encoding="utf-8")
    monkeypatch.setenv("CLINICAL_SER_SERVER", str(configuration))
    assert model_changes._journal(None, read_plan(plan)) is None
    asking = read_plan(plan).model_copy(update={"protocol": read_plan(plan).protocol.model_copy(update={"shadow_recordings": 5})})
    Journal(journal).add(date(2030, 1, 1), Counts(model=challenger, recordings=3))
    assert model_changes._journal(None, asking).models() == (challenger,)


def test_a_challenger_outside_the_plan_is_refused_before_anything_is_compared(run, tmp_path, plan, tables, challenger, bundle):
    assert run("model", "promote", read_bundle(bundle).digest[:12], "--first", MODEL, "--reason", "first release").code == 0
    plan.write_text(plan.read_text("utf-8").replace('steps = ["intercept", "slope", "full"]', 'steps = ["full"]'), encoding="utf-8")
    done = run("gate", MODEL, challenger[:12], "--plan", plan, *holdouts(tmp_path), "-o", tmp_path / "gate")
    assert done.code == 1
    assert "Recalibration: step 'intercept'" in done.err
    assert Registry.default().head(MODEL).action == "refused"
    assert not (tmp_path / "gate").exists()


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        ([], 2, "the holdouts of the plan"),
        (["--summary", "{north}"], 1, "no site's summary"),
        (["--holdout", "north"], 2, "SITE=TABLE"),
        (["--holdout", "north=missing.parquet"], 1, "Failed"),
        (["--holdout", "west={north}"], 1, "no holdout of 'west'"),
        (["--holdout", "north={south}"], 1, "is not the plan's"),
        (["--holdout", "north={north}", "--holdout", "north={north}"], 2, "twice"),
    ],
)
def test_a_holdout_that_is_none_is_named(run, tmp_path, plan, tables, bundle, challenger, words, code, named):
    filled = [word.format(north=tmp_path / "north.parquet", south=tmp_path / "south.parquet") for word in words]
    folder = tmp_path / "challenger"
    run("model", "promote", read_bundle(bundle).digest[:12], "--first", MODEL, "--reason", "first release")
    done = run("gate", bundle, folder, "--plan", plan, *filled, "-o", tmp_path / "gate")
    assert done.code == code, done.err
    assert named in done.err


@pytest.mark.parametrize("content", [b"", b"{}\n", b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_no_comparison_is_not_approved(run, tmp_path, plan, keys, tables, content):
    path = tmp_path / "jane-doe.json"
    path.write_bytes(content)
    done = run("model", "approve", path, "--plan", plan, "--role", LEAD, "--name", "Ada Roe", "--key", keys[LEAD])
    assert done.code == 1
    assert "jane" not in done.err
