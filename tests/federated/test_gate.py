"""Only approved builds are answered, by installed code, and of an accident only its kind gets out."""

import hashlib
import importlib
import itertools
import os
import time
from importlib.metadata import version
from pathlib import Path

import pytest
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResultStatus

from clinical_ser.errors import FederationError
from federated import gate

# Flower 1.41 asks pathspec for a name that pathspec has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")


class RecordingHost:
    def __init__(self, approved=()):
        self.approved, self.refused = set(approved), []

    def approved_builds(self):
        return self.approved

    def record_refusal(self, build):
        self.refused.append(build)

    def load_app(self):
        raise AssertionError("not asked for")


def test_flower_is_the_version_whose_inside_is_known_here():
    assert version("flwr").startswith("1.41.")
    for module, names in gate.INTERNALS.items():
        found = importlib.import_module(module)
        assert [name for name in names if not hasattr(found, name)] == []


def test_a_gate_takes_one_kind_of_task_and_no_other():
    assert gate.SiteGate.supported_task_types == {TaskType.CLIENT_APP}
    assert gate.CoordinatorGate.supported_task_types == {TaskType.SERVER_APP}
    assert len(TaskType) > 2


def test_nothing_runs_where_nothing_is_approved():
    host, bundle = RecordingHost(), gate.build_of_this_version()
    with pytest.raises(FederationError, match="not approved"):
        gate.CheckedBundle(host)(bundle)
    assert host.refused == [gate.build_hash(bundle)]


def test_an_approved_bundle_passes_and_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    bundle = gate.build_of_this_version()
    host = RecordingHost({gate.build_hash(bundle)})
    assert gate.CheckedBundle(host)(bundle, skip_prompt=True) == gate.APP_FOLDER
    assert list(tmp_path.iterdir()) == []
    assert host.refused == []


def test_the_content_decides_and_not_the_hash_it_was_announced_with():
    # Flower looks bundles up by 8 digits of the hash; here 4 stand for them, found in a moment.
    approved = gate.build_hash(gate.build_of_this_version())
    forged = next(content for i in itertools.count() if hashlib.sha256(content := b"import os #%d" % i).hexdigest()[:4] == approved[:4])
    with pytest.raises(FederationError, match="not approved"):
        gate.CheckedBundle(RecordingHost({approved}))(forged)


def test_the_text_of_an_accident_stays_at_the_site():
    def app(message, context):
        raise KeyError("subject MRN-17, depressed")

    with pytest.raises(FederationError) as told:
        gate.sealed(app)(None, None)
    assert str(told.value) == "this site cannot answer (KeyError); its own log says why"


def test_what_was_said_on_purpose_gets_out():
    def app(message, context):
        raise FederationError("too few people")

    with pytest.raises(FederationError, match="too few people"):
        gate.sealed(app)(None, None)


def test_a_task_is_forked_and_its_token_is_on_no_command_line(tmp_path, monkeypatch):
    told = tmp_path / "told"
    monkeypatch.setenv("CLINICAL_SER_TEST_TOLD", str(told))
    monkeypatch.setattr(gate, "run_task", write_down)
    executor = gate.ForkingExecutor("site", tmp_path)
    token = "5ec2e7" * 8
    spec = ExecutionSpec(TaskType.CLIENT_APP, "127.0.0.1:1", token, True, None, False, None, False, 1)
    try:
        assert executor.launch(spec).status == LaunchResultStatus.ACCEPTED
        limit = time.monotonic() + 60
        while not told.exists() and time.monotonic() < limit:
            time.sleep(0.05)
        written = told.read_text().split("\n")
        assert written[0] == token
        assert int(written[1]) != os.getpid()
        assert token not in written[2]
    finally:
        executor.close()


def write_down(task):
    draft = Path(os.environ["CLINICAL_SER_TEST_TOLD"] + ".draft")
    draft.write_text(f"{task.token}\n{os.getpid()}\n{Path('/proc/self/cmdline').read_bytes()!r}")
    draft.rename(os.environ["CLINICAL_SER_TEST_TOLD"])
