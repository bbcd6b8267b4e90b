"""A consortium as hospitals run it: a SuperLink and three SuperNodes as processes of their own, over TLS with registered keys.

One scene after the other, because starting everything takes 15 s: a site that has not approved the build stops the run by name, the run goes on
when it has, its leader is killed, and it goes on again to a signed model.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.events import FederatedRound
from clinical_ser.cli import consortium, node
from clinical_ser.cohorts.table import write_table
from clinical_ser.models.bundle import read_bundle
from clinical_ser.models.signing import TrustStore
from federated.consortium import Consortium, Settings
from federated.gate import build_hash, build_of_this_version
from federated.plan import LINEAR, read_plan
from federated.provisioning import NodeFolder
from tests.tables import table_of

ROOT = Path(__file__).parents[2]
SITES = ("site-a", "site-b", "site-c")
FEATURES = ("timing.pause_mean_s", "praat.f0_median_hz", "praat.jitter_local_percent")
LIMIT_S = 180.0
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def command(group, *words):
    """The command line as installed, whatever folder it is called from."""
    return [sys.executable, "-m", "clinical_ser", group, *map(str, words)]


def environment():
    # A site that is away for a minute ends the exchange here; hospitals wait a day.
    return {**os.environ, "PYTHONPATH": str(ROOT), "CLINICAL_SER_DEADLINE_S": "90"}


def call(group, *words, code=0):
    """Run a command in this process, and return what it said."""
    done = CliRunner().invoke({"node": node.app, "consortium": consortium.app}[group], [str(word) for word in words])
    said = f"{done.output}{done.exception or ''}"
    assert done.exit_code == code, said
    return said


def wait_for(what, seconds=LIMIT_S):
    limit = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < limit, "it did not come in time"
        time.sleep(0.2)
    return found


class Deployed:
    """A coordinator and its sites, and every process that was started for them."""

    def __init__(self, folder):
        self.folder, self.running = folder, []
        hub, *nodes = free_ports(1 + len(SITES) + 1)
        self.ports = dict(zip((*SITES, "stranger"), nodes, strict=True))
        self.consortium = Consortium.create(folder / "hub", Settings(name="voices", address=f"127.0.0.1:{hub}", port=hub))
        for seed, name in enumerate(SITES):
            write_table(table_of(150, seed=seed), folder / f"{name}.parquet")
            call("node", "init", self.node(name).folder, "--name", name, "--table", folder / f"{name}.parquet")
        kits = [self.node(name).kit / f"{name}.kit.json" for name in SITES]
        call("consortium", "approve", self.consortium.folder, *kits, "--yes")
        for name in SITES:
            call("node", "join", self.node(name).folder, self.consortium.folder / "invitations" / f"{name}.invitation.json", "--yes")

    def node(self, name):
        return NodeFolder(self.folder / name)

    def start(self, group, *words):
        process = subprocess.Popen(command(group, *words), env=environment(), start_new_session=True)
        self.running.append(process)
        return process

    def start_node(self, name):
        folder = self.node(name).folder
        return self.start("node", "run", folder, "--port", self.ports[name], "--logs", folder / "logs")

    def allow(self, name, *, builds):
        path = self.node(name).policy
        changes = {
            "# coordinator": f"coordinator = {json.dumps(self.consortium.identity.public.raw.hex())}",
            "builds =": f"builds = {json.dumps(builds)}",
            "plans =": f"plans = {json.dumps([self.plan()])}",
            "statistics =": f"statistics = {json.dumps(LINEAR)}",
            "# site-b =": "".join(f'{site} = "{kit.identity}"\n' for site, kit in self.consortium.members().items() if site != name),
        }
        lines = path.read_text().splitlines()
        path.write_text("\n".join(next((new for old, new in changes.items() if line.startswith(old)), line) for line in lines))

    def plan(self):
        return read_plan(self.consortium.run_folder("first") / "plan.json").digest

    def log_of(self, name):
        with LogConfiguration.load(self.node(name).folder / "audit.toml").read() as log:
            return [log.record(index).payload for index in range(log.size)]

    def stop(self):
        for process in self.running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.running:
            process.wait(timeout=60)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    made = Deployed(tmp_path_factory.mktemp("consortium"))
    try:
        made.start("consortium", "serve", made.consortium.folder, "--logs", made.consortium.folder / "logs")
        wait_for(lambda: set(made.consortium.nodes()) == set(SITES))
        yield made
    finally:
        made.stop()
    assert not [pid for pid in Path("/proc").iterdir() if pid.name.isdigit() and str(made.folder).encode() in _line(pid)], "a process is left"


def _line(process):
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def test_a_node_whose_key_is_not_registered_is_refused(deployed):
    stranger, known = deployed.node("stranger"), deployed.node("site-a")
    write_table(table_of(60), deployed.folder / "stranger.parquet")
    call("node", "init", stranger.folder, "--name", "stranger", "--table", deployed.folder / "stranger.parquet")
    for public in ("invitation", "authority"):
        getattr(stranger, public).write_bytes(getattr(known, public).read_bytes())
    assert deployed.start_node("stranger").wait(timeout=60) == 1
    assert "305" in (stranger.folder / "logs" / "supernode.log").read_text()


def test_three_hospitals_train_a_signed_model_through_a_refusal_and_a_crash(deployed):
    hub, build = deployed.consortium, build_hash(build_of_this_version())
    features = [word for name in FEATURES for word in ("--feature", name)]
    small = ("--folds", 2, "--refits", 2, "--set", "praat", "--set", "timing", *features)
    call("consortium", "plan", hub.folder, "first", *small)
    for name in SITES:
        deployed.allow(name, builds=[] if name == "site-c" else [build])
        deployed.start_node(name)

    said = call("consortium", "run", hub.folder, "first", code=1)
    assert "site-c" in said
    assert "not approved" in said
    assert [(each.action, each.reason, each.model_in) for each in deployed.log_of("site-c")] == [("refused", "build_not_approved", build)]
    assert not (hub.run_folder("first") / "model").exists()

    deployed.allow("site-c", builds=[build])
    call("consortium", "resume", hub.folder, "first", "--detach")

    def far_enough():
        now = hub.status("first")
        assert now.state == "running" or now.attempt < 2, now.error
        return now.attempt == 2 and len(now.exchanges) >= 3 and now.process

    leads = wait_for(far_enough)
    os.kill(leads, signal.SIGKILL)
    wait_for(lambda: hub.status("first").interrupted)
    made_before = {each.step for each in hub.status("first").exchanges[1:]}

    call("consortium", "resume", hub.folder, "first")
    status = hub.status("first")
    assert status.state == "finished"
    assert status.attempt == 3
    assert len(status.exchanges) <= 12
    assert sum(each.again for each in status.exchanges) >= len(made_before), "finished exchanges are not made again"
    trusted = TrustStore(frozenset({hub.identity.public}))
    bundle = read_bundle(hub.run_folder("first") / "model", trusted=trusted, require_trusted=True)
    assert bundle.digest == status.bundle
    for name in SITES:
        released = {each.round for each in deployed.log_of(name) if isinstance(each, FederatedRound) and each.action == "released"}
        assert released == set(range(1, len(status.exchanges))), "all but the one in which keys are agreed"


def test_nobody_but_the_coordinator_s_own_app_leads_a_run_there(deployed):
    # Who reaches the SuperLink's port on the coordinator's machine can submit an app; it is compared, and not run.
    from flwr.cli.build import build_fab_from_disk

    foreign = deployed.folder / "foreign"
    foreign.mkdir()
    marker = deployed.folder / "it ran"
    (foreign / "theirs.py").write_text(f"from flwr.serverapp import ServerApp\nopen({str(marker)!r}, 'w')\napp = ServerApp()\n")
    (foreign / "pyproject.toml").write_text(
        '[project]\nname = "theirs"\nversion = "1"\nlicense = "MIT"\n[tool.flwr.app]\npublisher = "x"\nfab-include = ["theirs.py"]\n'
        '[tool.flwr.app.components]\nserverapp = "theirs:app"\nclientapp = "theirs:app"\n[tool.flwr.app.config]\nrun = ""\n'
    )
    deployed.consortium._flower("run", str(foreign), "consortium", "--format", "json")
    gate_log = deployed.consortium.folder / "logs" / "gate.log"
    wait_for(lambda: build_hash(build_fab_from_disk(foreign)) in gate_log.read_text(), seconds=30)
    assert not marker.exists()
