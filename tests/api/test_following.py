"""The server follows the registry: another champion answers without a restart, and no answer is made of two models."""

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from clinical_ser.api import following, service, workers
from clinical_ser.api.configuration import ServerConfiguration
from clinical_ser.api.generation import served_models
from clinical_ser.audit.events import Configuration, Inference, ModelChange, Purpose, Service
from clinical_ser.audit.log import Entry
from clinical_ser.errors import AuditUnavailableError, BundleError, ServerSetupError
from tests.api.observed import samples
from tests.api.servers import Answer, Client, Server, serving
from tests.api.test_screenings import finished
from tests.api.test_surviving import interview, wait_until_running
from tests.api.wards import LATER, NAME, OTHERS_NAME, answering, digest_of, until


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_HOUSE_EVERY_S", 0.1)


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


def own_switches(server: Server) -> list[tuple[str | None, str | None]]:
    """Return what this server recorded of its own: from which model to which it went."""
    with server.audit.read() as reader:
        found = [each.payload for each in reader.records() if isinstance(each.payload, Configuration)]
    return [(each.old, each.new) for each in found if each.setting == f"server: model {NAME}"]


@contextmanager
def asking(client: Client, recording: bytes) -> Iterator[list[Answer]]:
    """Ask one recording after the other meanwhile, each of another person."""
    stop, answers = threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            answers.append(client.screen(recording, subject=f"person {len(answers)}"))
            stop.wait(0.2)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        stop.set()
        thread.join(60)


def test_another_champion_answers_without_a_restart_no_request_or_job_is_lost_and_one_crew_is_left(tmp_path, ward, brief):
    before, old = workers_of(os.getpid()), ward.digests[0]
    with serving(tmp_path, (NAME,)) as server:
        client, running = server.client(), server.service
        with asking(client, brief) as answers:
            until(lambda: len(answers) > 2)
            # As whoever promotes it does: that it is champion is in the trail before the switch.
            promotion = ModelChange(actor=running.actor, action="activated", name=NAME, old=old, new=ward.digests[1])
            running.record([Entry(promotion, purpose=Purpose.OPERATIONS)])
            new = ward.switch("promoted", champion=1)
            until(lambda: answering(client) == [new])
            after = len(answers) + 1  # one may be on its way
            until(lambda: len(answers) > after + 2)
        assert {each.status for each in answers} == {201}
        told = [digest_of(each) for each in answers]
        assert set(told) == {old, new}
        assert set(told[after:]) == {new}
        assert {each.json["result"]["model"]["version"] for each in answers[after:]} == {"2"}
        # That this server answers with the new one is in the trail before its first answer.
        with server.audit.read() as reader:
            records = list(reader.records())
        recorded = next(at for at, each in enumerate(records) if isinstance(each.payload, Configuration) and each.payload.new == new)
        answered = [at for at, each in enumerate(records) if isinstance(each.payload, Inference) and each.event.model == new]
        assert recorded < min(answered)
        assert f'digest="{new}"' in running.observing.metrics.exposition().decode()
        assert old not in running.observing.metrics.exposition().decode()
        # The same recording asked again: of the new model it was answered; of the old one, back again, not of this person.
        last = f"person {len(answers) - 1}"
        assert client.screen(brief, subject=last).status == 200
        # A job that is worked on keeps its model, and one that waits gets the one that is champion when its turn comes.
        running.following.grace_s = 0.2
        crew = running.workers
        [worker] = [each.process for each in crew._all]
        first = client.screen(interview(brief, 1), LATER, subject="first").headers["location"]
        wait_until_running(client, first)
        os.kill(worker.pid, signal.SIGSTOP)
        second = client.screen(brief, LATER, subject="second").headers["location"]
        ward.switch("rolled_back", champion=0)
        until(lambda: answering(client) == [old])
        again = client.screen(brief, subject=last)
        assert (again.status, digest_of(again)) == (201, old)
        assert client.get(first).json["state"] == "running"
        os.kill(worker.pid, signal.SIGCONT)
        assert [finished(client, each)["result"]["model"]["digest"] for each in (first, second)] == [new, old]
        until(lambda: not crew._all, 10)
        assert changes(server) == [("activated", ward.digests[number]) for number in (0, 1, 0)]
        assert own_switches(server) == [(old, new), (new, old)]
        crew = running.workers
        until(lambda: workers_of(os.getpid()) - before == {each.process.pid for each in crew._all}, 10)
        assert samples(running.observing.metrics)['clinical_ser_model_switches_total{outcome="done"}'] == 2
        # An entry that moves no champion, such as an alarm, starts no crew.
        ward.switch("alarm", champion=0, challenger=2)
        time.sleep(0.5)
        assert running.workers is crew
        # A worker that is started later finds the model of its crew.
        [worker] = [each.process for each in crew._all]
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
        assert digest_of(client.screen(brief, subject="after")) == old


def test_what_cannot_be_used_changes_nothing_and_is_told_and_recorded_once(tmp_path, ward, brief):
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
            assert changes(server)[-1] == ("refused", ward.digests[1])
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
            assert changes(server)[-1] == ("refused", None)
        head.unlink()
        nothing_changed()
        put(good)
        assert digest_of(client.screen(brief)) == ward.digests[0]
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


def test_no_model_answers_before_it_is_recorded_nor_when_it_is_champion_no_more(tmp_path, ward, monkeypatch):
    monkeypatch.setattr(following, "_AGAIN_S", 0.2)
    with serving(tmp_path, (NAME,)) as server:
        client, running = server.client(), server.service
        record, crew, tried = running.record, running.crew, []

        def refuse(entries, **options):
            if isinstance(entries[0].payload, ModelChange) and "refused" not in tried:
                tried.extend(["refused", running.generation.models[NAME].digest])
                raise AuditUnavailableError("The disk is full.")
            return record(entries, **options)

        def overtaken(models):
            if "overtaken" not in tried:
                tried.append("overtaken")
                ward.switch("promoted", champion=2)
            return crew(models)

        monkeypatch.setattr(running, "record", refuse)
        # A worker that does not come up in time says nothing against the model, which is tried again.
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(workers, "READY_TIMEOUT_S", 0.01)
            ward.switch("promoted", champion=1)
            until(lambda: server.logs.getvalue().count("model-switch-failed") > 1)
            monkeypatch.setattr(running, "crew", overtaken)
        new = ward.digests[2]
        until(lambda: answering(client) == [new])
        assert tried == ["overtaken", "refused", ward.digests[0]]
        assert changes(server) == [("activated", ward.digests[0]), ("activated", new)]
        assert samples(running.observing.metrics)['clinical_ser_model_switches_total{outcome="failed"}'] > 2


def test_a_withdrawn_model_answers_nothing_until_there_is_a_champion_again_also_after_a_restart(tmp_path, ward, brief):
    ward.switch("withdrawn")
    with serving(tmp_path, (NAME,)) as server:
        client = server.client()

        def nothing_answers() -> bool:
            asked = (client.screen(brief), client.screen(brief, LATER), client.ask("POST", "/v1/quality", brief))
            assert {(answer.status, answer.json["type"].rpartition(":")[2]) for answer in asked} == {(503, "withdrawn")}
            return answering(client) == [] and client.get("/readyz").status == 503

        assert nothing_answers()
        assert changes(server) == []
        ward.switch("promoted", champion=0)
        until(lambda: answering(client) == [ward.digests[0]])
        given, crew = client.screen(brief, subject="given"), server.service.workers
        ward.switch("withdrawn")
        until(lambda: answering(client) == [])
        assert nothing_answers()
        assert client.get(given.headers["location"]).status == 200
        ward.switch("promoted", champion=0)
        until(lambda: answering(client) == [ward.digests[0]])
        assert client.screen(brief, subject="after").status == 201
        assert server.service.workers is crew
        assert changes(server) == [("activated", ward.digests[0]), ("rolled_back", None), ("activated", ward.digests[0])]
        assert own_switches(server) == [(None, ward.digests[0]), (ward.digests[0], None), (None, ward.digests[0])]
        with server.audit.read() as reader:
            [begun] = [each.payload for each in reader.records() if isinstance(each.payload, Service)]
        assert begun.detail == f"model {NAME}: withdrawn"


def test_only_a_name_is_followed_and_neither_a_folder_nor_one_bundle_of_a_name(ward, versions):
    ward.switch("promoted", champion=1)
    wanted = {f"{NAME}@{ward.digests[0][:12]}": (0, None), str(versions[0]): (0, None), f"{NAME}@champion": (1, NAME), NAME: (1, NAME)}
    for source, (number, name) in wanted.items():
        [served] = served_models(ServerConfiguration(models=(source,))).values()
        assert (served.digest, served.followed, served.withdrawn) == (ward.digests[number], name, False)


def test_no_bundle_of_a_name_answers_that_was_never_its_champion(ward):
    ward.switch("shadowed", champion=0, challenger=1, shadow=1)
    for role, said in {"challenger": "answers nobody", "shadow": "answers nobody", ward.digests[1][:12]: "never the champion"}.items():
        with pytest.raises(ServerSetupError, match=said):
            served_models(ServerConfiguration(models=(f"{NAME}@{role}",)))


def test_a_withdrawn_model_whose_last_bundle_is_damaged_is_told_by_the_one_before(ward):
    ward.switch("promoted", champion=1)
    ward.switch("withdrawn")
    for number, left in [(1, ward.digests[0]), (0, None)]:
        (ward.registry.folder_of(ward.digests[number]) / "card.json").write_bytes(b"")
        if left is None:
            with pytest.raises(BundleError):
                served_models(ServerConfiguration(models=(NAME,)))
        else:
            [served] = served_models(ServerConfiguration(models=(NAME,))).values()
            assert (served.digest, served.followed, served.withdrawn) == (left, NAME, True)
