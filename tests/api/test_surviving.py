"""What is lost when something dies: nothing that was accepted, and nothing twice."""

import asyncio
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile

from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.events import Inference, Service, Submission
from clinical_ser.errors import AuditUnavailableError, ServerSetupError
from tests.api.servers import Client, command, make_keys, serving
from tests.api.test_screenings import finished
from tests.api.wards import NAME, answering, until
from tests.audit.log_maker import make_log


@dataclass
class Process:
    """A server that runs as an administrator starts it."""

    process: "subprocess.Popen[bytes]"
    client: Client

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@contextmanager
def started(folder: Path, bundle: Path, **work: object):
    """Start `clinical-ser serve`, and kill it at the end if it still runs."""
    port = free_port()
    keys_file = folder / "api_keys.json"
    if not keys_file.exists():
        make_log(folder)
        (folder / "key").write_text(make_keys(keys_file)["everything"])
    settings = {"workers": 1} | work
    (folder / "server.toml").write_text(
        f'models = ["{bundle}"]\napi_keys = "{keys_file}"\nspool = "{folder}/spool"\n'
        f"[listen]\nport = {port}\n[limits]\nscreenings_per_s = 1000\n[work]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items())
    )
    environment = os.environ | {"CLINICAL_SER_AUDIT": str(folder / "audit.toml")}
    command = [sys.executable, "-m", "clinical_ser", "serve", "--config", str(folder / "server.toml")]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    client = Client(port, (folder / "key").read_text())
    try:
        deadline = time.monotonic() + 120
        while not ready(client):
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield Process(process, client)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def ready(client: Client) -> bool:
    try:
        return client.get("/readyz").status == 200
    except OSError:
        return False


def interview(recording: bytes, minutes: float) -> bytes:
    """A recording that takes a worker a while."""
    samples, rate = soundfile.read(io.BytesIO(recording))
    long = np.tile(samples, int(minutes * 60 * rate / len(samples)) + 1)
    out = io.BytesIO()
    soundfile.write(out, long, rate, format="FLAC")
    return out.getvalue()


def payloads(folder: Path, kind: type) -> list:
    with LogConfiguration.load(folder / "audit.toml").read() as reader:
        return [record.payload for record in reader.records() if isinstance(record.payload, kind)]


def test_accepted_recordings_survive_a_killed_server_and_each_is_answered_once_and_it_follows_when_told_to_look(tmp_path, ward, recording):
    later = {"Prefer": "respond-async"}
    with started(tmp_path, Path(NAME)) as server:
        accepted = [server.client.screen(recording, later, subject=f"person {number}") for number in range(6)]
        locations = [each.headers["location"] for each in accepted]
        finished(server.client, locations[1])
        server.kill()
    with started(tmp_path, Path(NAME)) as server:
        done = [finished(server.client, location) for location in locations]
        server.process.send_signal(signal.SIGHUP)
        ward.switch("withdrawn")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: answering(server.client) == [])
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
    assert {each["state"] for each in done} == {"done"}
    assert len(payloads(tmp_path, Inference)) == 6
    assert [each.action for each in payloads(tmp_path, Service)] == ["started", "started", "recovered", "stopped"]
    assert not list((tmp_path / "spool").iterdir())


def test_a_recording_that_was_worked_on_when_the_server_died_twice_is_given_up_with_a_reason(tmp_path, bundle, recording):
    long = interview(recording, 6)
    with started(tmp_path, bundle) as server:
        location = server.client.screen(long, {"Prefer": "respond-async"}).headers["location"]
        wait_until_running(server.client, location)
        server.kill()
    with started(tmp_path, bundle) as server:
        wait_until_running(server.client, location)
        server.kill()
    with started(tmp_path, bundle) as server:
        done = finished(server.client, location)
    assert (done["state"], done["failure"]["code"]) == ("failed", "interrupted")
    assert [each.reason for each in payloads(tmp_path, Submission)] == [None, "interrupted"]


def wait_until_running(client: Client, location: str) -> None:
    deadline = time.monotonic() + 30
    while client.get(location).json["state"] != "running":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_worker_that_dies_takes_its_recording_along_and_nothing_else(tmp_path, bundle, recording):
    with serving(tmp_path, (str(bundle),)) as server:
        client = server.client()
        [worker] = [each.process for each in server.service.workers._all]
        location = client.screen(interview(recording, 4), {"Prefer": "respond-async"}).headers["location"]
        wait_until_running(client, location)
        os.kill(worker.pid, signal.SIGKILL)
        done = finished(client, location)
        assert (done["state"], done["failure"]["code"]) == ("failed", "crash")
        assert client.screen(recording, subject="next").status == 201
        assert server.service.workers.counts.lost == {"crash": 1}


def test_a_worker_that_died_with_nothing_to_do_is_replaced_and_no_recording_pays_for_it(tmp_path, bundle, recording):
    with serving(tmp_path, (str(bundle),)) as server:
        [worker] = [each.process for each in server.service.workers._all]
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
        assert server.client().screen(recording).status == 201
        assert server.service.workers.counts.lost == {}


def test_a_recording_that_takes_too_long_is_ended(tmp_path, bundle, recording):
    with serving(tmp_path, (str(bundle),), work={"workers": 1, "at_once_timeout_s": 0.01}) as server:
        answer = server.client().screen(recording)
        assert (answer.status, answer.json["type"]) == (422, "urn:clinical-ser:problem:time")
    assert [each.reason for each in payloads(tmp_path, Submission)] == ["time"]


def test_a_recording_that_needs_too_much_memory_is_ended_and_the_next_is_answered(tmp_path, bundle, recording):
    with serving(tmp_path, (str(bundle),), work={"workers": 1, "memory_mib": 1536}) as server:
        location = server.client().screen(interview(recording, 110), {"Prefer": "respond-async"}, subject="long").headers["location"]
        done = finished(server.client(), location, 120)
        assert (done["state"], done["failure"]["code"]) in {("failed", "memory"), ("failed", "crash")}
        assert server.client().screen(recording).status == 201


def test_a_full_disk_means_no_answer_and_no_readiness_until_there_is_room(tmp_path, bundle, recording):
    with serving(tmp_path, (str(bundle),)) as server:
        client, database = server.client(), server.service.log._database
        [(pages,)] = database.query("PRAGMA page_count")
        database.query(f"PRAGMA max_page_count = {pages + 2}")
        answers = [client.screen(recording, subject=f"person {number}") for number in range(4)]
        refused = [each for each in answers if each.status == 503]
        assert refused
        assert refused[-1].json["type"] == "urn:clinical-ser:problem:not-recorded"
        assert "retry-after" in refused[-1].headers
        assert client.get("/readyz").status == 503
        given = sum(each.status == 201 for each in answers)
        database.query("PRAGMA max_page_count = 1000000")
        assert client.screen(recording, subject="after").status == 201
        assert client.get("/readyz").status == 200
    assert len(payloads(tmp_path, Inference)) == given + 1


def test_overload_is_shed_in_words_and_what_was_accepted_is_answered(tmp_path, bundle, recording):
    with serving(tmp_path, (str(bundle),), limits={"waiting": 1, "jobs": 3, "screenings_per_s": 1000.0, "concurrent": 50}) as server:
        client, answers = server.client(), []

        def ask(number: int) -> None:
            answers.append(client.screen(recording, {"Prefer": "respond-async"} if number % 2 else {}, subject=f"person {number}"))

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        shed = [each for each in answers if each.status == 503]
        accepted = [each for each in answers if each.status == 202]
        assert shed
        assert {each.json["type"].rpartition(":")[2] for each in shed} <= {"busy", "queue-full"}
        assert all(int(each.headers["retry-after"]) >= 1 for each in shed)
        assert len(accepted) >= 3
        assert {finished(client, each.headers["location"])["state"] for each in accepted} == {"done"}
        assert client.screen(recording, subject="after").status == 201


def test_one_client_does_not_have_the_server_to_itself(tmp_path, bundle, recording):
    with serving(tmp_path, (str(bundle),), limits={"screenings_per_s": 0.1, "requests_per_s": 1.0}) as server:
        client = server.client()
        statuses = [client.screen(b"x", subject="a").status for _ in range(3)]
        assert statuses == [422, 429, 429]
        statuses = [client.get("/v1/me").status for _ in range(30)]
        assert 429 in statuses
        assert server.client("models:read").get("/v1/models").status == 200


def test_what_the_server_holds_back_is_worked_on_by_the_workers_of_the_next_one_only(tmp_path, bundle, recording):
    with serving(tmp_path, (str(bundle),)) as server:
        location = server.client().screen(interview(recording, 5), {"Prefer": "respond-async"}).headers["location"]
        wait_until_running(server.client(), location)
    with serving(tmp_path, (str(bundle),)) as server:
        service = server.service
        deadline = time.monotonic() + 60
        while service.jobs.taken and time.monotonic() < deadline:
            time.sleep(0.1)
        kept = service.store.get(location.rpartition("/")[2], "")
        assert kept is not None
        assert kept.state == "done"
    assert len(payloads(tmp_path, Inference)) == 1


def test_a_recording_that_was_damaged_on_the_disk_ends_with_a_reason(tmp_path, bundle, recording):
    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-20])

    def change(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[-20] ^= 1
        path.write_bytes(content)

    with serving(tmp_path, (str(bundle),)) as server:
        client, later = server.client(), {"Prefer": "respond-async"}
        client.screen(interview(recording, 4), later)
        for number, damage in enumerate((cut, change, Path.unlink)):
            location = client.screen(recording, later, subject=f"person {number}").headers["location"]
            [file] = (tmp_path / "spool").glob(f"{location.rpartition('/')[2]}*")
            assert recording[1000:1200] not in file.read_bytes()
            damage(file)
            done = finished(client, location)
            assert (done["state"], done["failure"]["code"]) == ("failed", "lost")
            client.screen(interview(recording, 4 + number), later, subject=f"busy {number}")


def test_a_second_server_with_the_same_log_does_not_start(tmp_path, bundle):
    with serving(tmp_path, (str(bundle),)) as first:
        with pytest.raises(ServerSetupError, match="one at a time"), serving(tmp_path, (str(bundle),)):
            pass
        assert first.client().get("/readyz").status == 200


def test_a_fault_of_ours_costs_the_recording_that_met_it_and_not_those_that_wait(tmp_path, bundle, recording, monkeypatch):
    with serving(tmp_path, (str(bundle),)) as server:
        client, spool = server.client(), server.service.spool
        read, met = spool.read, []

        def fail_once(screening: str, key: bytes):
            if not met:
                met.append(screening)
                raise ZeroDivisionError
            return read(screening, key)

        monkeypatch.setattr(spool, "read", fail_once)
        locations = [client.screen(recording, {"Prefer": "respond-async"}, subject=f"person {n}").headers["location"] for n in range(2)]
        assert finished(client, locations[1])["state"] == "done"
        assert finished(client, locations[0])["failure"]["code"] == "failed"
        assert "ZeroDivisionError" in server.logs.getvalue()
        assert server.service.jobs.taken == 0


def test_a_job_whose_commit_was_not_known_in_time_is_worked_on_all_the_same(tmp_path, bundle, recording, monkeypatch):
    with serving(tmp_path, (str(bundle),)) as server:
        client, service = server.client(), server.service
        keep_job = service.keep_job

        def outlived(*arguments, **options):
            keep_job(*arguments, **options)
            raise AuditUnavailableError("The audit log did not commit within 30 s; ask again with the same idempotency key.")

        monkeypatch.setattr(service, "keep_job", outlived)
        told = {"Prefer": "respond-async", "Idempotency-Key": "one"}
        assert client.screen(recording, told).status == 503
        monkeypatch.undo()
        again = client.screen(recording, told)
        assert again.status == 202
        asyncio.run_coroutine_threadsafe(service.jobs.adopt(), server.loop).result(30)
        assert finished(client, again.headers["location"])["state"] == "done"


def test_two_orderly_restarts_during_one_recording_do_not_count_against_it(tmp_path, bundle, recording):
    location = ""
    for _ in range(3):
        with serving(tmp_path, (str(bundle),)) as server:
            if not location:
                location = server.client().screen(interview(recording, 5), {"Prefer": "respond-async"}).headers["location"]
            kept = server.service.store.get(location.rpartition("/")[2], "")
            deadline = time.monotonic() + 30
            while not server.service.jobs.running and time.monotonic() < deadline:
                time.sleep(0.02)
            assert kept is not None
            assert kept.attempts <= 1
    with serving(tmp_path, (str(bundle),)) as server:
        deadline = time.monotonic() + 60
        while server.service.jobs.taken and time.monotonic() < deadline:
            time.sleep(0.1)
    assert len(payloads(tmp_path, Inference)) == 1


def test_a_model_whose_files_were_replaced_answers_nothing_and_costs_no_accepted_recording(tmp_path, bundle, recording):
    own = tmp_path / "model"
    shutil.copytree(bundle, own)
    with serving(tmp_path, (str(own),)) as server:
        client = server.client()
        manifest = (own / "manifest.json").read_bytes()
        (own / "manifest.json").write_bytes(manifest.replace(b'"version":"1"', b'"version":"2"'))
        [worker] = [each.process for each in server.service.workers._all]
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
        location = client.screen(recording, {"Prefer": "respond-async"}).headers["location"]
        deadline = time.monotonic() + 60
        while "worker-does-not-start" not in server.logs.getvalue() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert client.get("/readyz").status == 503
        (own / "manifest.json").write_bytes(manifest)
        assert finished(client, location)["state"] == "done"


def test_a_person_who_is_erased_while_their_recording_is_worked_on_stays_erased(tmp_path, bundle, recording):
    with serving(tmp_path, (str(bundle),)) as server:
        client = server.client()
        location = client.screen(interview(recording, 4), {"Prefer": "respond-async"}, subject="gone").headers["location"]
        wait_until_running(client, location)
        ran = command(server, "audit", "erase", "--subject", "gone", "--reason", "asked", "--yes")
        assert ran.returncode == 0, ran.stderr
        deadline = time.monotonic() + 60
        while server.service.jobs.taken and time.monotonic() < deadline:
            time.sleep(0.1)
        assert client.get(location).status == 404
        assert not list((tmp_path / "spool").iterdir())
    with server.audit.read() as reader:
        assert reader.named("gone") == []
