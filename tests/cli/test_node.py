"""`clinical-ser node` and `clinical-ser consortium` as people type them, without any process of Flower's."""

import json

import pytest

pytest.importorskip("flwr")

from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.cohorts.table import write_table
from federated.consortium import Consortium
from federated.gate import build_hash, build_of_this_version
from federated.plan import LINEAR, read_plan
from federated.policy import Policy
from federated.provisioning import Invitation, Kit
from tests.tables import table_of

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
SETS = ("--set", "praat", "--set", "timing")
SITES = ("north", "south", "west")


@pytest.fixture
def table(tmp_path):
    write_table(table_of(60), tmp_path / "table.parquet")
    return tmp_path / "table.parquet"


@pytest.fixture
def node(run, tmp_path, table):
    done = run("node", "init", tmp_path / "north", "--name", "north", "--table", table)
    assert done.code == 0, done.err
    return tmp_path / "north"


@pytest.fixture
def hub(run, tmp_path):
    done = run("consortium", "init", tmp_path / "hub", "--name", "voices", "--address", "federation.example:443")
    assert done.code == 0, done.err
    return tmp_path / "hub"


@pytest.fixture
def approved(run, hub, node, tmp_path, table):
    for name in SITES[1:]:
        run("node", "init", tmp_path / name, "--name", name, "--table", table)
    kits = [tmp_path / name / "kit" / f"{name}.kit.json" for name in SITES]
    done = run("consortium", "approve", hub, *kits, "--yes")
    assert done.code == 0, done.err
    return done


def test_a_new_node_has_a_log_and_allows_nothing(run, node):
    policy = Policy.read(node / "node.toml")
    assert (policy.coordinator, policy.approved_builds, policy.approved.plans, policy.release.statistics) == (None, (), (), ())
    assert LogConfiguration.load(node / "audit.toml").verify().size == 0
    done = run("node", "check", node, "--offline")
    assert done.code == 1
    for refused in ("node.toml names none", "approved.builds does not name", "approved.plans is empty", "release.statistics lacks"):
        assert refused in done.out


def test_a_node_is_made_once_and_of_a_table_that_is_there(run, node, tmp_path, table):
    assert run("node", "init", node, "--name", "north", "--table", table).code == 1
    assert run("node", "init", tmp_path / "new", "--name", "north", "--table", tmp_path / "none.parquet").code == 2
    assert not (tmp_path / "new").exists()


def test_both_sides_are_shown_the_same_fingerprints(run, hub, node, approved):
    kit = Kit.read(node / "kit" / "north.kit.json")
    assert kit.fingerprint in approved.out
    invitation = hub / "invitations" / "north.invitation.json"
    assert Invitation.read(invitation).fingerprint in approved.out
    done = run("node", "join", node, invitation, "--yes")
    assert done.code == 0, done.err
    assert Invitation.read(invitation).fingerprint in done.out
    assert Invitation.read(invitation).identity in done.out
    assert "federation.example:443" in (node / "units" / "site-proxy.conf").read_text()


def test_a_plan_is_checked_against_the_policy_line_by_line(run, hub, node, approved):
    done = run("consortium", "plan", hub, "first", *SETS, "--folds", 3)
    assert done.code == 0, done.err
    path = hub / "runs" / "first" / "plan.json"
    plan = read_plan(path)
    assert plan.digest in done.out
    assert plan.site_names == SITES
    refused = run("node", "check", node, "--offline", "--plan", path)
    assert refused.code == 1
    assert "node.toml names none" in refused.out

    text = (node / "node.toml").read_text()
    text = text.replace('# coordinator = ""', f'coordinator = "{plan.coordinator}"').replace("builds = []", f'builds = ["{build()}"]')
    text = text.replace("plans = []", f'plans = ["{plan.digest}"]').replace("statistics = []", f"statistics = {json.dumps(LINEAR)}")
    others = "".join(f'{site.name} = "{site.identity}"\n' for site in plan.sites if site.name != "north")
    text = text.replace("[sites]\n", f"[sites]\n{others}")
    (node / "node.toml").write_text(text)
    allowed = run("node", "check", node, "--offline", "--plan", path)
    assert allowed.code == 0, allowed.out
    (node / "node.toml").write_text(text.replace('"newton", ', ""))
    partly = run("node", "check", node, "--offline", "--plan", path)
    assert partly.code == 1
    assert [line for line in partly.out.splitlines() if line.startswith("refused  statistic")] == [
        "refused  statistic newton: release.statistics does not name it"
    ]


def test_the_build_to_approve_is_printed_alone(run):
    assert run("node", "build").out.strip() == build()


def test_a_plan_of_fewer_than_three_sites_is_no_plan(run, hub, approved):
    done = run("consortium", "plan", hub, "two", *SETS, "--site", "north", "--site", "south")
    assert done.code == 2
    assert "at least 3 sites" in done.err
    assert run("consortium", "plan", hub, "none", *SETS, "--site", "nowhere").code == 2


def test_a_run_needs_registered_sites_and_is_begun_before_it_is_resumed(run, hub, approved):
    run("consortium", "plan", hub, "first", *SETS)
    begun = run("consortium", "run", hub, "first")
    assert begun.code == 1
    assert "not registered" in begun.err
    assert run("consortium", "resume", hub, "first").code == 1
    told = json.loads(run("consortium", "status", hub, "--json").out)
    assert told["sites"] == dict.fromkeys(SITES, False)
    assert [(each["run"], each["state"], each["interrupted"]) for each in told["runs"]] == [("first", "waiting", False)]
    assert "approved, not registered yet" in run("consortium", "status", hub).out


def test_a_renewed_certificate_is_a_new_one(run, hub):
    before = (hub / "server.pem").read_bytes()
    assert run("consortium", "renew", hub).code == 0
    assert (hub / "server.pem").read_bytes() != before
    assert (hub / "server.key").stat().st_mode & 0o077 == 0


def test_a_certificate_that_ends_soon_is_complained_of(run, hub):
    assert run("consortium", "status", hub).err == ""
    Consortium(hub).renew(days=7)
    assert "consortium renew" in run("consortium", "status", hub).err


def build():
    return build_hash(build_of_this_version())
