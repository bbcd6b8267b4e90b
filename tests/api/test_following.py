"""The server follows the registry: another champion answers without a restart, and no answer is made of two models."""

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from clinical_ser.api import following, service
from clinical_ser.api.configuration import ServerConfiguration
from clinical_ser.api.generation import served_models
from clinical_ser.audit.events import Inference, ModelChange
from clinical_ser.cohorts.tasks import DEPRESSION
from clinical_ser.errors import AuditUnavailableError, InvalidValueError
from clinical_ser.evaluation.evaluating import EvaluationOptions
from clinical_ser.evaluation.release import card_of
from clinical_ser.models.bundle import read_bundle
from clinical_ser.models.saving import save
from clinical_ser.models.training import TrainingOptions, train
from clinical_ser.registry.records import Action, Pointers, Record
from clinical_ser.registry.store import Registry
from tests.api.observed import samples
from tests.api.servers import Answer, Client, Server, serving
from tests.api.test_screenings import finished
from tests.api.test_surviving import interview, started, wait_until_running
from tests.tables import table_of

NAME = "ward"
LATER = {"Prefer": "respond-async"}
OTHERS_NAME = 3
"""The place of the bundle that calls itself otherwise."""


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_HOUSE_EVERY_S", 0.1)


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Three versions of one model, and a model that calls itself otherwise."""
    training = train(table_of(80), DEPRESSION, TrainingOptions(refits=3))
    folder = tmp_path_factory.mktemp("versions")
    made = []
    for name, version in [(NAME, "1"), (NAME, "2"), (NAME, "3"), ("other", "1")]:
        card, _ = card_of(training, None, name=name, version=version, statement="For tests.", options=EvaluationOptions(replicates=20))
        made.append(folder / f"{name}-{version}")
        save(training, made[-1], name=name, version=version, statement="For tests.", card=card.to_json(), software={"numpy": "0"}, key=None)
    return tuple(made)


class Ward:
    """A registry with versions of one model in it."""

    def __init__(self, versions: Sequence[Path]) -> None:
        self.registry = Registry.default()
        self.digests = [self.registry.add(each, Record.of(read_bundle(each), change="trained")) for each in versions]

    def switch(self, action: Action, **roles: int) -> str:
        """Switch, and return the digest of the champion, an empty one where none is."""
        head = self.registry.head(NAME)
        pointers = Pointers(**{role: self.digests[number] for role, number in roles.items()})
        self.registry.switch(NAME, expected=head and head.digest, action=action, pointers=pointers, actor="tests")
        return pointers.champion or ""


@pytest.fixture
def ward(versions: tuple[Path, ...]) -> Ward:
    made = Ward(versions)
    made.switch("promoted", champion=0)
    return made


def digest_of(answer: Answer) -> str:
    return answer.json["result"]["model"]["digest"]


def until(told: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not told():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def answering(client: Client) -> list[str]:
    return [each["digest"] for each in client.get("/v1/models").json["models"]]


def workers_of(process: int) -> set[int]:
    """Children of a process that are workers, dead ones that nobody waited for included."""
    told = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(process)], capture_output=True, text=True, check=False).stdout
    return {int(line.split()[0]) for line in told.splitlines() if "api.worker" in line or "defunct" in line}


@contextmanager
def unseen(server: Server) -> Iterator[None]:
    """Let the server not look at the registry meanwhile."""
    server.service.following._not_before = float("inf")
    until(server.service.following._looking.done)
    yield
    server.service.following._not_before = 0.0


def changes(server: Server) -> list[tuple[str, str | None]]:
    with server.audit.read() as reader:
        return [(each.payload.action, each.payload.new) for each in reader.records() if isinstance(each.payload, ModelChange)]


@contextmanager
def asking(client: Client, recording: bytes) -> Iterator[list[Answer]]:
    """Ask one recording after the other meanwhile, each of another person."""
    stop, answers = threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            answers.append(client.screen(recording, subject=f"person {len(answers)}"))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        stop.set()
        thread.join(60)


def test_another_champion_answers_without_a_restart_and_no_request_is_lost(tmp_path, ward, recording):
    with serving(tmp_path, (NAME,)) as server:
        client = server.client()
        with asking(client, recording) as answers:
            until(lambda: len(answers) > 2)
            new = ward.switch("promoted", champion=1)
            until(lambda: answering(client) == [new])
            after = len(answers) + 1  # one may be on its way
            until(lambda: len(answers) > after + 2)
        assert {each.status for each in answers} == {201}
        told = [digest_of(each) for each in answers]
        assert set(told) == {ward.digests[0], new}
        assert set(told[after:]) == {new}
        assert {each.json["result"]["model"]["version"] for each in answers[after:]} == {"2"}
        # The new one is in the trail before its first answer.
        with server.audit.read() as reader:
            records = list(reader.records())
        activated = next(at for at, each in enumerate(records) if isinstance(each.payload, ModelChange) and each.payload.new == new)
        answered = [at for at, each in enumerate(records) if isinstance(each.payload, Inference) and each.event.model == new]
        assert activated < min(answered)
        assert f'digest="{new}"' in server.service.observing.metrics.exposition().decode()
        assert ward.digests[0] not in server.service.observing.metrics.exposition().decode()


def test_switches_and_a_rollback_leave_one_crew_and_all_of_them_in_the_trail(tmp_path, ward, recording):
    before = workers_of(os.getpid())
    with serving(tmp_path, (NAME,)) as server:
        client, told = server.client(), []
        for action, number in [("promoted", 1), ("promoted", 2), ("rolled_back", 1)]:
            new = ward.switch(action, champion=number)
            until(lambda new=new: answering(client) == [new])
            told.append(digest_of(client.screen(recording, subject=f"person {len(told)}")))
        assert told == [ward.digests[number] for number in (1, 2, 1)]
        assert changes(server) == [("activated", ward.digests[number]) for number in (0, 1, 2, 1)]
        crew = server.service.workers
        until(lambda: workers_of(os.getpid()) - before == {each.process.pid for each in crew._all}, 10)
        assert samples(server.service.observing.metrics)['clinical_ser_model_switches_total{outcome="done"}'] == 3
        # An entry that moves no champion, such as an alarm, starts no crew.
        ward.switch("alarm", champion=1, challenger=2)
        time.sleep(0.5)
        assert server.service.workers is crew
        # A worker that is started later finds the model of its crew.
        [worker] = [each.process for each in crew._all]
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
        assert digest_of(client.screen(recording, subject="after")) == ward.digests[1]


def test_what_cannot_be_used_changes_nothing_and_is_told_and_recorded_once(tmp_path, ward, recording):
    def cut(folder: Path) -> None:
        (folder / "card.json").write_bytes((folder / "card.json").read_bytes()[:-10])

    def empty(folder: Path) -> None:
        (folder / "manifest.json").write_bytes(b"")

    def swell(folder: Path) -> None:
        (folder / "manifest.json").write_bytes(b" " * 20_000_000)

    def remove(folder: Path) -> None:
        shutil.rmtree(folder)

    def put(content: bytes) -> None:
        draft = tmp_path / "draft"
        draft.write_bytes(content)
        draft.replace(head)

    head = ward.registry.head_path(NAME)
    heads = [b"", head.read_bytes()[:-20], b"1 " + b"0" * 64 + b"\n", b"\xff" * 1_000_000, b'{"champion": null}']
    with serving(tmp_path, (NAME,)) as server:
        client, told = server.client(), 0

        def refused() -> int:
            return sum(action == "refused" for action, _ in changes(server))

        def nothing_changed() -> None:
            nonlocal told
            told += 1
            until(lambda: refused() == told)
            time.sleep(0.3)
            assert refused() == told
            assert answering(client) == [ward.digests[0]]

        for damage in (cut, empty, swell, remove):
            folder = ward.registry.folder_of(ward.digests[1])
            kept = tmp_path / f"kept {damage.__name__}"
            shutil.copytree(folder, kept)
            with unseen(server):
                ward.switch("promoted", champion=1)
                damage(folder)
            nothing_changed()
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(kept, folder)
            ward.switch("rolled_back", champion=0)
        ward.switch("promoted", champion=OTHERS_NAME)
        nothing_changed()
        ward.switch("rolled_back", champion=0)
        good = head.read_bytes()
        for content in heads:
            put(content)
            nothing_changed()
        head.unlink()
        nothing_changed()
        put(good)
        assert digest_of(client.screen(recording)) == ward.digests[0]
        assert samples(server.service.observing.metrics)['clinical_ser_model_switches_total{outcome="failed"}'] == told
        assert str(tmp_path) not in server.logs.getvalue()
        # What was mended is followed when the server is told to look, and not before.
        with unseen(server):
            new = ward.switch("promoted", champion=1)
            remove(ward.registry.folder_of(new))
        nothing_changed()
        shutil.copytree(tmp_path / "kept remove", ward.registry.folder_of(new))
        time.sleep(0.3)
        assert answering(client) == [ward.digests[0]]
        server.loop.call_soon_threadsafe(partial(server.service.following.look, again=True))
        until(lambda: answering(client) == [new])


def test_a_job_that_is_worked_on_keeps_its_model_and_one_that_waits_gets_the_new_one(tmp_path, ward, recording):
    with serving(tmp_path, (NAME,)) as server:
        client, old, crew = server.client(), ward.digests[0], server.service.workers
        server.service.following.grace_s = 0.2
        first = client.screen(interview(recording, 8), LATER, subject="first").headers["location"]
        wait_until_running(client, first)
        second = client.screen(recording, LATER, subject="second").headers["location"]
        new = ward.switch("promoted", champion=1)
        until(lambda: answering(client) == [new])
        assert digest_of(client.screen(recording, subject="third")) == new  # at once, while the job is at work
        assert client.get(first).json["state"] == "running"
        assert finished(client, first)["result"]["model"]["digest"] == old
        assert finished(client, second)["result"]["model"]["digest"] == new
        until(lambda: not crew._all, 10)
        # The second recording asked again: of the new model it was answered, of the old one, back again, it was not.
        again = client.screen(recording, subject="second")
        assert (again.status, digest_of(again)) == (200, new)
        ward.switch("rolled_back", champion=0)
        until(lambda: answering(client) == [old])
        again = client.screen(recording, subject="second")
        assert (again.status, digest_of(again)) == (201, old)


def test_no_model_answers_before_it_is_recorded_nor_when_it_is_champion_no_more(tmp_path, ward, recording, monkeypatch):
    monkeypatch.setattr(following, "_AGAIN_S", 0.2)
    with serving(tmp_path, (NAME,)) as server:
        client, running = server.client(), server.service
        record, crew, tried = running.record, running.crew, []

        def refuse(entries, **options):
            if isinstance(entries[0].payload, ModelChange) and not tried:
                tried.append(running.generation.models[NAME].digest)
                raise AuditUnavailableError("The disk is full.")
            return record(entries, **options)

        monkeypatch.setattr(running, "record", refuse)
        new = ward.switch("promoted", champion=1)
        until(lambda: answering(client) == [new])
        assert tried == [ward.digests[0]]
        assert changes(server) == [("activated", ward.digests[0]), ("activated", new)]

        def overtaken(models):
            if not tried.count("overtaken"):
                tried.append("overtaken")
                ward.switch("rolled_back", champion=0)
            return crew(models)

        monkeypatch.setattr(running, "crew", overtaken)
        ward.switch("promoted", champion=2)
        until(lambda: answering(client) == [ward.digests[0]])
        assert [new for _, new in changes(server)] == [ward.digests[number] for number in (0, 1, 0)]


def test_a_withdrawn_model_answers_nothing_until_there_is_a_champion_again(tmp_path, ward, recording):
    with serving(tmp_path, (NAME,)) as server:
        client = server.client()
        given = client.screen(recording)
        ward.switch("withdrawn")
        until(lambda: answering(client) == [])
        for answer in (client.screen(recording), client.screen(recording, LATER), client.ask("POST", "/v1/quality", recording)):
            assert (answer.status, answer.json["type"].rpartition(":")[2]) == (503, "withdrawn")
        assert client.get("/readyz").status == 503
        assert client.get(given.headers["location"]).status == 200
        ward.switch("promoted", champion=0)
        until(lambda: answering(client) == [ward.digests[0]])
        assert client.screen(recording, subject="after").status == 201
        assert changes(server)[1:] == [("rolled_back", None), ("activated", ward.digests[0])]
    ward.switch("withdrawn")
    with pytest.raises(InvalidValueError, match="withdrawn"), serving(tmp_path, (NAME,)):
        pass


def test_a_server_that_is_told_to_look_lives_on_and_follows(tmp_path, ward, recording):
    with started(tmp_path, Path(NAME)) as server:
        server.process.send_signal(signal.SIGHUP)
        new = ward.switch("promoted", champion=1)
        server.process.send_signal(signal.SIGHUP)
        until(lambda: answering(server.client) == [new])
        assert digest_of(server.client.screen(recording)) == new
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0


def test_only_a_name_is_followed_and_neither_a_folder_nor_one_bundle_of_a_name(ward, versions):
    ward.switch("promoted", champion=1)
    wanted = {f"{NAME}@{ward.digests[0][:12]}": (0, None), str(versions[0]): (0, None), f"{NAME}@champion": (1, NAME), NAME: (1, NAME)}
    for source, (number, name) in wanted.items():
        [served] = served_models(ServerConfiguration(models=(source,))).values()
        assert (served.digest, served.followed) == (ward.digests[number], name)
