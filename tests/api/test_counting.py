"""What is counted for the monitoring, and what a shadow says: sums of a day, and nothing that leads back to anyone."""

import asyncio
import json
import os
import re
import signal
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from clinical_ser.api import counting, following, service
from clinical_ser.api.cells import BESIDE, Cells
from clinical_ser.api.configuration import ServerConfiguration
from clinical_ser.api.counting import Counting
from clinical_ser.audit.events import Configuration
from clinical_ser.errors import AuditUnavailableError, ServerError, ServerSetupError
from clinical_ser.monitoring.counts import Counts, Observation
from clinical_ser.monitoring.journal import Journal
from tests.api.observed import samples
from tests.api.servers import SUBJECT, Server, serving
from tests.api.test_screenings import finished
from tests.api.wards import LATER, NAME, answering, digest_of, until

FEATURES = frozenset({"a", "b"})


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_HOUSE_EVERY_S", 0.1)


def counted(server: Server, metric: str, outcome: str) -> float:
    return samples(server.service.observing.metrics)[f'clinical_ser_{metric}_total{{outcome="{outcome}"}}']


def shadows_recorded(server: Server) -> list[tuple[str | None, str | None]]:
    with server.audit.read() as reader:
        found = [each.payload for each in reader.records() if isinstance(each.payload, Configuration)]
    return [(each.old, each.new) for each in found if each.setting == f"shadow of {NAME}"]


def of(folder: Path, digest: str) -> Counts:
    [(day, counts)] = Journal(folder).between(digest)
    assert day == datetime.now(UTC).date()
    return counts


def test_a_day_is_counted_a_person_once_and_the_shadow_beside_it_without_a_word_to_anyone(tmp_path, ward, brief, monkeypatch):
    monkeypatch.setattr(following, "_AGAIN_S", float("inf"))
    ward.switch("shadowed", champion=0, shadow=1)
    champion, shadow = ward.digests[:2]
    journal = tmp_path / "journal"
    noise = bytes(brief[:44]) + np.random.default_rng(1).integers(-20, 20, 16_000 * 4, np.int16).tobytes()
    with serving(tmp_path, (NAME,), monitoring={"folder": str(journal)}) as server:
        client = server.client()
        until(lambda: server.service.shadows.of(NAME) is not None)
        answers = [client.screen(brief, subject=f"{SUBJECT} {number}", device="Phone X", sex="female", age=54) for number in range(2)]
        answers.append(client.screen(brief, subject=f"{SUBJECT} 0", device="Phone X", age=55))  # heard again
        answers.append(client.screen(noise, subject="noisy"))
        answers.append(client.screen(brief, subject="noisy"))  # the first usable one
        job = finished(client, client.screen(brief, LATER, subject="later").headers["location"])
        until(lambda: counted(server, "recordings_counted", "counted") == 5 and counted(server, "shadow_recordings", "counted") == 5)
        assert counted(server, "recordings_counted", "again") == 1
        # What nobody foresaw costs the shadow what waits, and nothing after it.
        server.loop.call_soon_threadsafe(server.service.shadows.of(NAME).offer, None, [b"voice"], {})
        until(lambda: counted(server, "shadow_recordings", "failed") == 1)
        assert server.logs.getvalue().count("shadow-failed") == 1
        answers.append(client.screen(brief, subject="before last"))
        until(lambda: counted(server, "shadow_recordings", "counted") == 6)
        # Without its worker there is one voice less, and no answer fewer.
        [worker] = [each.process for each in server.service.shadows.of(NAME)._crew._all]
        os.kill(worker.pid, signal.SIGKILL)
        answers.append(client.screen(brief, subject="last"))
        assert {each.status for each in answers} == {201}
        assert {digest_of(each) for each in answers} | {job["result"]["model"]["digest"]} == {champion}
        metrics = server.service.observing.metrics.exposition().decode()
        assert shadow[:12] not in server.logs.getvalue() + metrics + str([each.body for each in answers]) + json.dumps(job)
        assert shadows_recorded(server) == [(None, shadow)]
        # The shadow becomes champion, and is no shadow any more once that can be recorded, for which no champion waits.
        record = server.service.record

        def refuse(entries, **options):
            if getattr(entries[0].payload, "setting", "").startswith("shadow of"):
                raise AuditUnavailableError("The disk is full.")
            return record(entries, **options)

        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(server.service, "record", refuse)
            ward.switch("withdrawn", champion=0)
            until(lambda: server.service.following._shadows_not_before == float("inf"))
            assert server.service.shadows.of(NAME).model.digest == shadow
            ward.switch("promoted", champion=1)
            until(lambda: answering(client) == [shadow])
        server.loop.call_soon_threadsafe(partial(server.service.following.look, again=True))
        until(lambda: server.service.shadows.of(NAME) is None)
        assert shadows_recorded(server) == [(None, shadow), (shadow, None)]
    own, silent = of(journal, champion), of(journal, shadow)
    assert own.recordings == 7
    assert own.failed
    assert own.names["status"]["not_usable"] == 1
    assert own.names["device"] == {"Phone X": 2}
    assert own.names["age_band"] == {"45-59": 2}
    assert sum(own.cells["score"]) == own.usable == 6
    assert not [kind for kind in own.names if kind.startswith(BESIDE)]
    # One model under two versions: the shadow says the same of everyone.
    pairs = silent.names[f"{BESIDE}{champion[:12]}.status"]
    assert all(one == other for one, other in (pair.split(" > ") for pair in pairs))
    assert sum(pairs.values()) == silent.recordings
    assert silent.cells["score"] == tuple(np.minimum(own.cells["score"], silent.cells["score"]))
    for path in journal.rglob("*.json"):
        assert path.stat().st_mode & 0o077 == 0
        assert not re.search(rb"Jane|1970|noisy|later|\d\d:\d\d", path.read_bytes())


def test_without_a_journal_nothing_is_counted_and_a_shadow_hears_nobody(tmp_path, ward, brief):
    ward.switch("shadowed", champion=0, shadow=1)
    with serving(tmp_path, (NAME,)) as server:
        until(lambda: "shadow-not-asked" in server.logs.getvalue())
        assert server.client().screen(brief).status == 201
        assert server.service.shadows.of(NAME) is None
        assert server.logs.getvalue().count("shadow-not-asked") == 1
    assert not list(tmp_path.rglob("journal"))
    with pytest.raises(ServerSetupError, match="a path from the root"):
        ServerConfiguration.checked({"monitoring": {"folder": "journal"}})


def test_a_journal_that_cannot_be_written_costs_no_answer_and_is_caught_up_with(tmp_path, bundle, brief):
    journal = tmp_path / "journal"
    journal.write_bytes(b"in the way")
    with serving(tmp_path, (str(bundle),), monitoring={"folder": str(journal)}) as server:
        # What nobody foresaw costs what waits, and nothing after it.
        counts, [served] = server.service.counting, server.service.models.values()
        whole = json.dumps(GOOD | {"cells": {}}).encode()
        server.loop.call_soon_threadsafe(counts.offer, None, served, whole)
        until(lambda: counted(server, "recordings_counted", "failed") == 1)
        assert server.logs.getvalue().count("counting-failed") == 1
        answer = server.client().screen(brief)
        assert answer.status == 201
        until(lambda: counted(server, "recordings_counted", "counted") == 1)
        for _ in range(2):
            asked = asyncio.run_coroutine_threadsafe(counts.flush(), server.loop)
            asked.result(60)
        assert server.logs.getvalue().count("counting-failed") == 2
        journal.unlink()
    assert of(journal, digest_of(answer)).recordings == 1


def test_a_server_that_is_stopped_while_counts_are_written_waits_for_them_and_no_longer(tmp_path, monkeypatch):
    monkeypatch.setattr(counting, "FLUSH_S", 0.01)
    configuration = ServerConfiguration.checked({"monitoring": {"folder": str(tmp_path / "journal")}})

    async def stop() -> None:
        begun, written = asyncio.Event(), asyncio.Event()

        async def slowly(function, *arguments):
            begun.set()
            await written.wait()
            return await asyncio.to_thread(function, *arguments)

        counts = Counting(SimpleNamespace(configuration=configuration, in_thread=slowly))
        counts.add(datetime.now(UTC).date(), "a" * 64, Observation(names={"status": "flagged"}))
        counts.start()
        await begun.wait()
        closing = asyncio.create_task(counts.close())
        await asyncio.sleep(0.05)
        written.set()
        async with asyncio.timeout(10):
            await closing

    asyncio.run(stop())
    assert of(tmp_path / "journal", "a" * 64).recordings == 1


GOOD = {"cells": {"score": 19, "feature.a": 10, "summary.features_far": 9, "margin.prosody": 0}, "names": {"status": "flagged"}, "failed": ["snr"]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        json.dumps(GOOD).encode()[:-5],
        json.dumps(GOOD | {"subject": "Jane"}).encode(),
        json.dumps(GOOD | {"names": {"subject": "Jane"}}).encode(),
        json.dumps(GOOD | {"names": {"device": "x" * 65}}).encode(),
        json.dumps(GOOD | {"failed": ["Jane Doe"]}).encode(),
        *(
            json.dumps(GOOD | {"cells": cells}).encode()
            for cells in ({"score": 20}, {"score": -1}, {"score": 0.5}, {"feature.c": 1}, {"Jane Doe": 1})
        ),
        json.dumps(GOOD | {"cells": {f"feature.{number}": 1 for number in range(10_001)}}).encode(),
        json.dumps(GOOD | {"cells": {"feature." + "a" * 1_000_000: 1}}).encode(),
    ],
    ids=lambda content: repr(content[:40]),
)
def test_counts_that_a_worker_makes_up_are_not_taken(content: bytes) -> None:
    assert Cells.read(json.dumps(GOOD).encode(), FEATURES).cells["score"] == 19
    with pytest.raises(ServerError, match="A worker's counts of a recording"):
        Cells.read(content, FEATURES)
