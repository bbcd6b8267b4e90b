"""Runs that begin with a model, at the coordinator: from the command that plans one to the files that come out."""

import json
import stat

import numpy as np
import pytest
from typer.testing import CliRunner

from clinical_ser.audit.answering import Recorder
from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.events import Actor, DriftAlarm, Role
from clinical_ser.cli import consortium as cli
from clinical_ser.cohorts.table import read_table, write_table
from clinical_ser.continual.memory import Memory
from clinical_ser.control.promotion import open_name
from clinical_ser.errors import FederationError, OutsidePlanError
from clinical_ser.models.bundle import read_bundle
from clinical_ser.models.trained import TrainedModel
from clinical_ser.registry import Record, Registry
from federated.consortium import Consortium, Settings
from federated.identities import Identity
from federated.leading import Coordinator, lead_run
from federated.plan import Plan, read_plan
from federated.planning import Beginning, lay_beside, plan_beginning
from federated.proposing import propose
from federated.provisioning import Kit, NodeFolder, make_keys
from federated.publishing import publish
from federated.secure_sums import SecureSums
from federated.training import train_across
from tests.control.made import MODEL, filled_in, plan_of
from tests.federated.sites import make_consortium
from tests.federated.test_continual import FEATURES, rows_of, settings_of, sites_of
from tests.tables import table_of

FOLDS = 3


@pytest.fixture(scope="module")
def champion(tmp_path_factory):
    """A trained model: its bundle, and its memory beside it."""
    folder = tmp_path_factory.mktemp("champion")
    trained = train_across(sites_of(rows_of(table_of(240, seed=1))), settings_of(table_of(2)))
    made = publish(trained, folder / "model", name="voice", version="1", sites=3, cohort_digest="c" * 64, key=None, replicates=50)
    (folder / "memory.json").write_bytes(trained.memory.of(made.digest).to_bytes())
    return folder, made.digest, trained


@pytest.fixture
def hub(tmp_path):
    return Consortium.create(tmp_path / "hub", Settings(name="voices", address="localhost:8443", port=18000))


class Led:
    """Nodes of a run, and the coordinator's folder."""

    def __init__(self, folder, hub, beginning, *, subjects=180, **more):
        table = table_of(subjects, seed=7)
        # A draft says who the sites are; the plan that they approve begins with a model.
        self.made = make_consortium(folder / "sites", table=table, features=FEATURES, coordinator=hub.identity.public.raw.hex())
        self.hub, self.beginning, self.more = hub, beginning, more
        self.plan_as("first")

    def plan_as(self, run):
        free = {"folds": FOLDS, "refits": 3, "version": "2"} | self.more
        self.plan = plan_beginning(self.beginning, run=run, sites=self.made.plan.sites, coordinator=self.made.plan.coordinator, **free)
        self.hub.add_run(run, self.plan.to_bytes(), self.plan.digest, beside=lambda draft: lay_beside(self.beginning, self.plan, draft))
        for name in self.made.names:
            self.made.set_policy(name, plan=self.plan, kinds=[self.plan.kind], extra=f"[models]\n{self.plan.parent} = '{self.beginning.parent}'\n")
        return self

    @property
    def folder(self):
        return self.hub.run_folder(self.plan.run)

    def lead(self):
        identity = Identity.load(self.hub.folder / "identity.pem")
        sums = SecureSums(self.made.channel(), self.plan, identity, store=self.folder / "totals", audit=self.hub.audit, deadline_s=5)
        self.exchanges = sums.exchanges
        at = Coordinator(self.folder, self.hub.folder / "watching", self.hub.identity, identity, self.hub.audit, replicates=50)
        return lead_run(self.plan, sums, at)


def alarms_of(log: LogConfiguration) -> int:
    with log.read() as read:
        return sum(isinstance(record.payload, DriftAlarm) for record in read.records())


def test_an_update_makes_a_signed_child_and_the_memory_of_it(tmp_path, hub, champion):
    folder, _, trained = champion
    led = Led(tmp_path, hub, Beginning("update", folder / "model", folder / "memory.json", 0.9))
    digest = led.lead()
    bundle = read_bundle(led.folder / "model", expected_digest=digest)
    assert bundle.manifest.statement.startswith("Updated across 3 sites; no recording left any of them.")
    path = led.folder / "memory.json"
    memory = Memory.from_bytes(path.read_bytes())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert memory.bundle == digest
    assert memory.people.sum() == pytest.approx(0.9 * 240 + 180)
    assert len(led.exchanges) <= 11
    model = TrainedModel.from_bundle(bundle)
    np.testing.assert_allclose(memory.heads[0].mode[:-1], model.head.coef_, atol=1e-6)
    assert not np.allclose(model.head.coef_, trained.model.head.coef_, atol=1e-3)
    assert led.lead() == digest, "led again from its totals, the same model"
    registry = Registry(tmp_path / "registry")
    registry.add(folder / "model", Record.of(read_bundle(folder / "model"), change="trained", name=MODEL))
    recorder = Recorder(hub.audit, Actor(id="coordinator", role=Role.OPERATOR))
    open_name(registry, MODEL, champion[1], recorder=recorder, reason="first release")
    # Exact totals spend no privacy that could be stated; a plan with a limit on it does not cover them.
    told = "\n".join(line for line in filled_in().splitlines() if not line.startswith("epsilon_at_most")).replace(', "privacy",', "")
    told = told[: told.index('[[requirement]]\nid = "privacy"')] + told[told.index("[[role]]") :]
    entry = propose(led.folder, registry, plan_of(told), recorder=recorder)
    assert (entry.pointers.champion, entry.pointers.challenger) == (champion[1], digest)
    record = registry.record(digest)
    assert (record.change, record.parent, record.details["sites"], record.details["forgetting"]) == ("updated", champion[1], 3, 0.9)
    assert registry.private(digest, "memory.json") == path.read_bytes()
    with pytest.raises(OutsidePlanError, match="Sites"):
        propose(led.folder, registry, plan_of(filled_in(told, sites_at_least="4")), recorder=recorder)


def test_a_recalibration_says_what_is_justified_and_makes_no_more(tmp_path, hub, champion, capsys):
    folder, _, trained = champion
    led = Led(tmp_path, hub, Beginning("recalibrate", folder / "model"))
    assert led.lead() is None, "the new people are like those of training"
    assert json.loads((led.folder / "justified.json").read_bytes())["step"] == "none"
    assert not (led.folder / "model").exists()
    cli._tell_what_came_out(led.folder, None)
    assert "No model was made" in capsys.readouterr().out
    led.beginning = Beginning("recalibrate", folder / "model", memory=folder / "memory.json", step="slope")
    digest = led.plan_as("second").lead()
    model = TrainedModel.from_bundle(read_bundle(led.folder / "model", expected_digest=digest))
    np.testing.assert_array_equal(model.head.coef_, TrainedModel.from_bundle(read_bundle(folder / "model")).head.coef_)
    assert model.calibrator.scale_ != trained.model.calibrator.scale_
    assert Memory.from_bytes((led.folder / "memory.json").read_bytes()).bundle == digest


def test_the_memory_of_another_model_is_found_out_before_sites_are_asked(tmp_path, hub, champion):
    folder, _, trained = champion
    (tmp_path / "other.json").write_bytes(trained.memory.of("f" * 64).to_bytes())
    with pytest.raises(FederationError, match="another model"):
        Led(tmp_path, hub, Beginning("update", folder / "model", tmp_path / "other.json", 0.9))
    led = Led(tmp_path / "again", hub, Beginning("update", folder / "model", folder / "memory.json", 0.9))
    (led.folder / "parent-memory.json").write_bytes((tmp_path / "other.json").read_bytes())
    with pytest.raises(FederationError, match="another model"):
        led.lead()


def test_a_champion_that_was_changed_in_the_runs_folder_ends_the_run(tmp_path, hub, champion):
    folder = champion[0]
    led = Led(tmp_path, hub, Beginning("update", folder / "model", folder / "memory.json", 1.0))
    head = led.folder / "parent" / "head.json"
    head.write_bytes(head.read_bytes()[:-2])
    with pytest.raises(FederationError, match="cannot be used"):
        led.lead()


def test_the_first_monitoring_is_the_reference_and_a_microphone_that_changes_raises_an_alarm(tmp_path, hub, champion, capsys):
    led = Led(tmp_path, hub, Beginning("monitor", champion[0] / "model"))
    assert led.lead() is None
    first = json.loads((led.folder / "monitor.json").read_bytes())
    assert first["reference"] is None
    assert first["counts"]["recordings"] == 180
    led.lead()
    assert len(led.exchanges) == 2
    for name in led.made.names:
        path = led.made.site(name) / "features.parquet"
        table = read_table(path)
        moved = {feature: table.frame[feature] + 3.0 for feature in led.plan.features[:4]}
        people = {"subject": "later " + table.frame["subject"].astype(str)}
        write_table(type(table)(table.frame.assign(**moved, **people), table.feature_names, table.extractors), path)
    led.plan_as("second").lead()
    raw = (led.folder / "monitor.json").read_bytes()
    found = json.loads(raw)
    assert {alarm["channel"] for alarm in found["alarms"]} & {f"feature.{name}" for name in led.plan.features[:4]}
    assert found["reference"] is not None
    cli._tell_what_came_out(led.folder, None)
    assert "an alarm opens a candidate, never a release" in " ".join(capsys.readouterr().out.split())
    assert alarms_of(hub.audit) == len(found["alarms"])
    led.lead()
    assert (led.folder / "monitor.json").read_bytes() == raw, "led again, it gives no evidence twice"
    assert alarms_of(hub.audit) == len(found["alarms"])


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def approved(hub, tmp_path):
    for name in ("ada", "bell", "curie"):
        (tmp_path / name).mkdir(mode=0o700)
        node = NodeFolder(tmp_path / name)
        make_keys(node, name)
        hub.approve(Kit.read(node.kit / f"{name}.kit.json"))
    return hub


def planned(hub, *words, code=0) -> str:
    done = CliRunner().invoke(cli.app, ["plan", str(hub.folder), "spring", *map(str, words)])
    assert done.exit_code == code, f"{done.output}{done.exception}"
    return f"{done.output}{done.exception or ''}"


def test_the_command_plans_an_update_on_the_champions_own_scales(approved, champion):
    folder, digest, trained = champion
    planned(approved, "--kind", "update", "--parent", folder / "model", "--memory", folder / "memory.json", "--forgetting", "0.95", "--version", "2")
    plan: Plan = read_plan(approved.run_folder("spring") / "plan.json")
    assert (plan.kind, plan.parent, plan.forgetting, plan.name) == ("update", digest, 0.95, "voice")
    assert plan.strengths == (trained.model.head.strength_,)
    assert plan.features == trained.model.features
    kept = approved.run_folder("spring") / "parent-memory.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert read_bundle(approved.run_folder("spring") / "parent").digest == digest


def test_the_command_plans_monitoring_with_public_names(approved, champion):
    planned(approved, "--kind", "monitor", "--parent", champion[0] / "model", "--names", "device=handset,headset")
    plan = read_plan(approved.run_folder("spring") / "plan.json")
    assert plan.groups["device"] == ("handset", "headset")
    assert "snr" in plan.checks


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--kind", "retrain"], "--kind"),
        (["--kind", "update"], "--parent"),
        (["--kind", "update", "--parent", "MODEL"], "--memory"),
        (["--kind", "update", "--parent", "MODEL", "--memory", "MEMORY"], "--forgetting"),
        (["--kind", "update", "--parent", "MODEL", "--memory", "MEMORY", "--forgetting", "1.5"], "forgetting"),
        (["--kind", "update", "--parent", "MODEL", "--memory", "MODEL/head.json", "--forgetting", "1"], "memory"),
        (["--kind", "monitor", "--parent", "MODEL", "--memory", "MEMORY"], "--memory"),
        (["--kind", "monitor", "--parent", "MODEL", "--names", "subject=a,b"], "--names"),
        (["--kind", "monitor", "--parent", "MODEL", "--names", "device"], "--names"),
        (["--kind", "gate", "--parent", "MODEL"], "--challenger"),
        (["--parent", "MODEL"], "--kind"),
    ],
)
def test_a_command_that_does_not_fit_its_kind_is_refused_and_nothing_is_planned(approved, champion, words, says):
    given = {"MODEL": champion[0] / "model", "MEMORY": champion[0] / "memory.json", "MODEL/head.json": champion[0] / "model" / "head.json"}
    said = planned(approved, *[given.get(word, word) for word in words], code=1)
    assert says in said
    assert approved.runs() == []
