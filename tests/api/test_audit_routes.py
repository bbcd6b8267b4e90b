"""The trail over HTTP: what is recorded of whoever looks, what is proved to them, what is exported, and what one site sees of another."""

import contextlib
import gc
import io
import json
import os
import shutil
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import anyio
import pytest
from anyio import to_thread
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from clinical_ser.api import audit
from clinical_ser.api.access import Access, Open, Principal, Scope
from clinical_ser.api.audit import FORM, ExportRequest, Trail, routes, witness_routes
from clinical_ser.api.configuration import ServerConfiguration
from clinical_ser.api.problems import Problem
from clinical_ser.api.routing import GuardedRoute
from clinical_ser.api.store import Readers
from clinical_ser.audit.checkpoint import Checkpoint
from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.events import RECORD, AuditExport, Purpose, Role
from clinical_ser.audit.exports import period
from clinical_ser.audit.exports.fhir import Carried
from clinical_ser.audit.exports.packed import packed, private_folder, remove_leftovers
from clinical_ser.audit.exports.packet import verify_export
from clinical_ser.audit.log import AuditLog, Entry
from clinical_ser.audit.merkle import leaf_hash, verify_inclusion
from clinical_ser.audit.notes import NoteSigner, VerifierKey
from clinical_ser.audit.proof_file import ProofFile
from clinical_ser.audit.reading import DatabaseReader
from clinical_ser.audit.records import Record
from clinical_ser.audit.tiles import ENTRIES, tile_path, tiles_of, verify_tiles
from clinical_ser.audit.witness import MAX_REQUEST_BYTES, Witness, open_witness
from clinical_ser.errors import AuditTamperedError, AuditUnavailableError
from tests.api.servers import SUBJECT, Server
from tests.api.test_searching import account, write
from tests.audit.exports.example import FIRST_SUBJECT, RESULT, SECOND_SUBJECT, entries, inference
from tests.audit.log_maker import ORIGIN, database_file, make_log, names_of, payload_of
from tests.audit.test_witness import COSIGNER, FORK, LOG, GrowingLog
from tests.audit.test_witness import ORIGIN as WITNESSED

URL = "https://hospital.example"
FHIR = "application/fhir+json"
ADDRESS = "192.0.2.7"


@dataclass
class House:
    """What routes ask of a service, over a real log and without models."""

    audit: LogConfiguration
    log: AuditLog
    configuration: ServerConfiguration
    readers: Readers
    fails: AuditUnavailableError | None = None

    async def in_thread(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return await to_thread.run_sync(partial(function, *arguments, **options))

    def record(self, entries: list[Entry], **options: Any) -> Any:
        if self.fails:
            raise self.fails
        return self.log.record(entries, **options)

    def reading(self) -> contextlib.AbstractContextManager[DatabaseReader]:
        return self.readers.reader()

    @property
    def records(self) -> list[Record]:
        with self.audit.read() as reader:
            return list(reader.records())

    @property
    def newest(self) -> Record:
        return self.records[-1]

    @property
    def keys(self) -> list[VerifierKey]:
        return list(self.log.verifiers)


@dataclass
class Site:
    """An application with the trail's routes alone, which believes whoever says who they are."""

    house: House
    app: FastAPI = field(init=False)
    client: TestClient = field(init=False)

    def __post_init__(self) -> None:
        self.app = FastAPI(openapi_url=None, redirect_slashes=False)
        self.app.state.service = self.house
        self.app.router.routes.extend(routes.routes)
        self.app.add_exception_handler(Problem, lambda request, error: error.response(request))  # type: ignore[attr-defined]
        for kind, status in ((AuditUnavailableError, 503), (AuditTamperedError, 500)):
            self.app.add_exception_handler(kind, lambda _, error, status=status: PlainTextResponse(type(error).__name__, status))
        self.client = TestClient(_Known(self.app), headers={"who": "officer"})

    def get(self, path: str, **headers: str) -> Any:
        return self.client.get(path, headers=headers)

    def form(self, path: str = "/v1/AuditEvent/_search", headers: dict[str, str] | None = None, **fields: str) -> Any:
        return self.client.post(path, content=urlencode(fields), headers={"content-type": FORM} | (headers or {}))

    def export(self, headers: dict[str, str] | None = None, **wanted: Any) -> Any:
        return self.client.post("/v1/audit/exports", json=wanted, headers=headers or {})


class _Known:
    """Makes a principal of the header `who`, which is `[TENANT/]ID`."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            tenant, _, name = Request(scope).headers["who"].rpartition("/")
            principal = Principal(name, tenant, Role.COMPLIANCE, frozenset(Scope))
            scope.setdefault("state", {}).update(principal=principal, address=ADDRESS)
        await self._app(scope, receive, send)


@contextlib.contextmanager
def site(configuration: LogConfiguration, **settings: Any) -> Iterator[Site]:
    with configuration.write() as log:
        readers = Readers(configuration, log)
        server = ServerConfiguration.checked({"listen": {"public_url": URL}} | settings)
        made = Site(House(configuration, log, server, readers))
        try:
            yield made
        finally:
            made.client.close()
            readers.close()


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory: pytest.TempPathFactory) -> LogConfiguration:
    """A log of every kind of event, to be copied."""
    configuration = make_log(tmp_path_factory.mktemp("every kind"))
    write(configuration, entries())
    return configuration


@pytest.fixture
def one(tmp_path: Path, every_kind: LogConfiguration) -> Iterator[Site]:
    """A site with a log of every kind of event."""
    database = tmp_path / "one.sqlite"
    shutil.copyfile(database_file(every_kind), database)
    shutil.copytree(every_kind.keys, tmp_path / "keys")
    with site(replace(every_kind, database=f"sqlite:{database}", keys=tmp_path / "keys")) as made:
        yield made


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Site]:
    """Two sites that share a log, each with an answer about their MRN-1."""
    with site(make_log(tmp_path / "two"), tenants=("a", "b")) as made:
        for tenant in ("a", "b"):
            made.house.log.append(inference(actor=account(f"{tenant}/dr")), subject=f"{tenant}/MRN-1")
        yield made


def events_of(answer: Any) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return [entry["resource"] for entry in answer.json().get("entry", []) if entry["search"]["mode"] == "match"]


def indices_of(answer: Any) -> list[int]:
    return [Carried.of(resource, "here").record()[0].index for resource in events_of(answer)]


def links_of(answer: Any) -> dict[str, str]:
    return {link["relation"]: link["url"] for link in answer.json()["link"]}


# Who may do what


def test_every_route_says_who_may_use_it() -> None:
    found: dict[tuple[str, str], Access] = {}
    for route in routes.routes:
        assert isinstance(route, GuardedRoute)
        (method,) = route.methods
        found[method, route.path] = route.access
    assert found == {
        ("GET", "/v1/AuditEvent"): Scope.AUDIT,
        ("POST", "/v1/AuditEvent/_search"): Scope.AUDIT,
        ("GET", "/v1/AuditEvent/{event_id}"): Scope.AUDIT,
        ("GET", "/v1/audit/checkpoint"): Scope.AUDIT,
        ("GET", "/v1/audit/keys"): Scope.AUDIT,
        ("GET", "/v1/audit/proof/{index}"): Scope.AUDIT,
        ("GET", "/v1/audit/tile/{level}/{tile:path}"): Scope.AUDIT,
        ("POST", "/v1/audit/exports"): Scope.EXPORT,
    }


# Searches


def test_a_search_is_in_the_trail_before_its_answer(one: Site) -> None:
    answer = one.get("/v1/AuditEvent?type=inference&_count=1")
    assert answer.headers["content-type"] == FHIR
    record = one.house.newest
    payload = record.payload
    assert isinstance(payload, AuditExport)
    assert (payload.form, payload.first, payload.last) == ("AuditEvent search", 9, 9)
    assert payload.digest == sha256(answer.content).hexdigest()
    assert (payload.actor.id, payload.actor.role, payload.actor.client) == ("officer", Role.COMPLIANCE, ADDRESS)
    assert (record.event.purpose, record.event.subject_tag) == (Purpose.COMPLIANCE, None)
    # What was found does not have the search in it; the next search does.
    assert record.index not in indices_of(answer)
    assert indices_of(one.get("/v1/AuditEvent"))[0] == record.index


def test_a_search_that_finds_nothing_is_recorded_too(one: Site) -> None:
    before = one.house.log.size
    assert events_of(one.get("/v1/AuditEvent?date=lt2020")) == []
    payload = one.house.newest.payload
    assert isinstance(payload, AuditExport)
    assert (one.house.log.size, payload.first, payload.last) == (before + 1, None, None)


@pytest.mark.parametrize("path", ["/v1/AuditEvent", "/v1/AuditEvent/{id}", "/v1/audit/exports"])
def test_what_cannot_be_recorded_is_not_shown(one: Site, path: str) -> None:
    first = one.house.records[0].event.id
    one.house.fails = AuditUnavailableError("no space")
    answer = one.export(format="jsonl") if path.endswith("exports") else one.get(path.format(id=first))
    assert (answer.status_code, answer.text) == (503, "AuditUnavailableError")
    assert list(Path(tempfile.gettempdir()).glob("clinical-ser-export-*")) == []


def test_links_lead_through_all_pages_and_each_page_is_recorded(one: Site) -> None:
    answer = one.get("/v1/AuditEvent?_count=9&date=ge2026")
    found = [indices_of(answer)]
    while "next" in links_of(answer):
        answer = one.client.get(links_of(answer)["next"].removeprefix(URL))
        found.append(indices_of(answer))
    assert [index for page in found for index in page] == list(range(len(entries())))[::-1]
    recorded = [record.payload for record in one.house.records[len(entries()) :]]
    assert [(told.first, told.last) for told in recorded if isinstance(told, AuditExport)] == [(page[-1], page[0]) for page in found if page]


def test_a_search_for_a_person_is_filed_under_them(one: Site) -> None:
    answer = one.form(subject=FIRST_SUBJECT)
    with one.house.audit.read() as reader:
        assert indices_of(answer) == reader.named(FIRST_SUBJECT)[:-1][::-1]
        assert reader.named(FIRST_SUBJECT)[-1] == one.house.newest.index


def test_nobody_comes_into_the_log_by_being_asked_for(one: Site) -> None:
    before = one.house.log.size
    assert events_of(one.form(patient="Somebody Else")) == []
    assert one.house.log.size == before + 1
    assert one.house.newest.event.subject_tag is None
    with one.house.audit.read() as reader:
        assert reader.named("Somebody Else") == []


def test_a_search_for_a_result_is_filed_under_its_person(one: Site) -> None:
    one.get(f"/v1/AuditEvent?entity={RECORD}{RESULT}")
    with one.house.audit.read() as reader:
        assert one.house.newest.index in reader.named(FIRST_SUBJECT)
        assert one.house.newest.index not in reader.named(SECOND_SUBJECT)


@pytest.mark.parametrize(
    "query", ["patient=Jane-Doe", "subject=Jane-Doe", "agent=Jane-Doe", "agent:identifier=Jane-Doe", "type=Jane-Doe", "Jane-Doe=1"]
)
def test_a_name_in_an_address_is_refused_and_not_repeated(one: Site, query: str) -> None:
    before = one.house.log.size
    answer = one.get(f"/v1/AuditEvent?{query}")
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert "Jane" not in answer.text
    assert one.house.log.size == before


@pytest.mark.parametrize("query", ["patient=Jane-Doe", "type=inference", "agent=x"])
def test_a_form_has_its_fields_in_the_body(one: Site, query: str) -> None:
    answer = one.form(f"/v1/AuditEvent/_search?{query}", _count="1")
    assert (answer.status_code, "Jane" in answer.text) == (400, False)


def test_a_search_by_name_goes_on_by_sending_the_form_again(one: Site) -> None:
    asked = {"patient": FIRST_SUBJECT, "_count": "4"}
    answer = one.form(**asked)
    found = indices_of(answer)
    while "next" in links_of(answer):
        url = links_of(answer)["next"]
        assert url.startswith(f"{URL}/v1/AuditEvent/_search?page=")
        assert "MRN" not in json.dumps(answer.json()["link"])
        # Followed by GET, it must not show what another search would.
        assert one.get(url.removeprefix(URL)).status_code in {404, 405, 422}
        answer = one.form(url.removeprefix(URL), **asked)
        found += indices_of(answer)
    wanted = [index for index, entry in enumerate(entries()) if entry.subject == FIRST_SUBJECT]
    # Its own pages are newer than where it began.
    assert found == wanted[::-1]


def test_a_form_may_hold_its_page(one: Site) -> None:
    assert indices_of(one.form(type="service", page="5")) == [0]
    assert one.form("/v1/AuditEvent/_search?page=5", page="5").status_code == 400


def test_a_form_may_say_its_character_set(one: Site) -> None:
    answer = one.client.post("/v1/AuditEvent/_search", content="type=review", headers={"content-type": f"{FORM};charset=UTF-8"})
    assert len(events_of(answer)) == 1


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x", "", "text/plain"])
def test_other_bodies_are_no_forms(one: Site, kind: str) -> None:
    answer = one.client.post("/v1/AuditEvent/_search", content="type=review", headers={"content-type": kind})
    assert (answer.status_code, answer.json()["type"]) == (415, "urn:clinical-ser:problem:media-type")


_BAD_FORMS = [b"type", b"type=review&", b"&type=review", b"type=%FF", "type=\u00e9".encode("latin-1"), b"a=1&" * 20 + b"a=1"]


@pytest.mark.parametrize("content", _BAD_FORMS, ids=range(len(_BAD_FORMS)))
def test_a_form_that_could_be_read_in_two_ways_is_refused(one: Site, content: bytes) -> None:
    answer = one.client.post("/v1/AuditEvent/_search", content=content, headers={"content-type": FORM})
    assert (answer.status_code, answer.json()["type"]) == (400, "urn:clinical-ser:problem:search")


def test_a_form_without_fields_asks_for_everything(one: Site) -> None:
    assert len(events_of(one.form())) == len(entries())


def test_a_form_and_an_address_have_limits(one: Site) -> None:
    assert one.form(type="x" * 20_000).status_code == 413
    assert one.get(f"/v1/AuditEvent?type={'x' * 9_000}").status_code == 400


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (FHIR, FHIR),
        (f"{FHIR}, application/problem+json;q=0.5", FHIR),
        ("*/*", "application/problem+json"),
        ("application/json", "application/problem+json"),
        (f"application/problem+json, {FHIR}", "application/problem+json"),
    ],
)
def test_what_is_wrong_is_told_in_the_words_of_whoever_asks(one: Site, accept: str, kind: str) -> None:
    for answer, status, code in (
        (one.get("/v1/AuditEvent?_count=0", accept=accept), 400, "invalid"),
        (one.get(f"/v1/AuditEvent/{'0' * 32}", accept=accept), 404, "not-found"),
        (one.form(headers={"accept": accept, "content-type": "text/plain"}), 415, "not-supported"),
    ):
        assert (answer.status_code, answer.headers["content-type"]) == (status, kind)
        if kind == FHIR:
            (issue,) = answer.json()["issue"]
            assert (answer.json()["resourceType"], issue["severity"], issue["code"]) == ("OperationOutcome", "error", code)


def test_a_log_that_was_changed_shows_nothing(one: Site) -> None:
    import sqlite3

    with contextlib.closing(sqlite3.connect(database_file(one.house.audit))) as database:
        database.execute("UPDATE sealed SET data = zeroblob(99) WHERE idx = 20")
        database.commit()
    before = one.house.log.size
    answer = one.get("/v1/AuditEvent")
    assert (answer.status_code, answer.text) == (500, "AuditTamperedError")
    assert one.house.log.size == before


# One event


def test_an_event_is_read_where_a_search_says_it_is(one: Site) -> None:
    found = one.get("/v1/AuditEvent?type=review").json()["entry"][0]
    answer = one.get(found["fullUrl"].removeprefix(URL))
    assert answer.headers["content-type"] == FHIR
    assert {name: value for name, value in answer.json().items() if name != "entity"} == {
        name: value for name, value in found["resource"].items() if name != "entity"
    }
    record, path = Carried.of(answer.json(), "here").record()
    payload = one.house.newest.payload
    assert isinstance(payload, AuditExport)
    assert (payload.form, payload.first, payload.last, payload.digest) == ("AuditEvent", 6, 6, sha256(answer.content).hexdigest())
    with one.house.audit.read() as reader:
        # The person whose review it is finds that it was read.
        assert one.house.newest.index in reader.named(FIRST_SUBJECT)
        assert verify_inclusion(6, reader.size - 1, leaf_hash(record.leaf), path, reader.root_at(reader.size - 1))


@pytest.mark.parametrize("event_id", ["0" * 32, "0" * 31, "Z" * 32, "_search", "_history", "%00"])
def test_an_event_that_is_not_there_is_not_found_and_not_recorded(one: Site, event_id: str) -> None:
    before = one.house.log.size
    assert one.get(f"/v1/AuditEvent/{event_id}").status_code in {404, 405, 422}
    assert one.house.log.size == before


# Several sites


def test_a_site_sees_its_own_events_alone(two: Site) -> None:
    ids = {record.index: record.event.id for record in two.house.records}
    assert indices_of(two.get("/v1/AuditEvent?type=inference", who="a/officer")) == [0]
    assert indices_of(two.get("/v1/AuditEvent?type=inference", who="b/officer")) == [1]
    assert two.get(f"/v1/AuditEvent/{ids[0]}", who="a/officer").status_code == 200
    assert two.get(f"/v1/AuditEvent/{ids[1]}", who="a/officer").status_code == 404
    assert two.get(f"/v1/AuditEvent/{ids[0]}", who="b/officer").status_code == 404


def test_one_sites_searches_are_not_shown_to_another(two: Site) -> None:
    two.get("/v1/AuditEvent", who="a/officer")
    assert [event["agent"][0]["who"]["identifier"]["value"] for event in events_of(two.get("/v1/AuditEvent?type=audit_export", who="a/officer"))] == [
        "a/officer"
    ]
    assert events_of(two.get("/v1/AuditEvent?type=audit_export", who="b/officer")) == []


def test_a_search_for_a_person_is_filed_under_the_persons_own_site(two: Site) -> None:
    assert indices_of(two.form(headers={"who": "b/officer"}, patient="MRN-1")) == [1]
    with two.house.audit.read() as reader:
        assert (reader.named("a/MRN-1"), reader.named("b/MRN-1")) == ([0], [1, 2])


def test_whoever_is_of_no_site_sees_nothing_of_several(two: Site) -> None:
    first = two.house.records[0].event.id
    for answer in (two.get("/v1/AuditEvent"), two.form(patient="a/MRN-1"), two.get(f"/v1/AuditEvent/{first}")):
        assert (answer.status_code, answer.json()["type"]) == (403, "urn:clinical-ser:problem:forbidden")


@pytest.mark.parametrize("who", ["a/officer", "officer"])
def test_no_site_exports_what_all_share(two: Site, who: str) -> None:
    before = two.house.log.size
    answer = two.export(format="jsonl", headers={"who": who})
    assert (answer.status_code, answer.json()["type"]) == (403, "urn:clinical-ser:problem:forbidden")
    assert "audit export" in answer.json()["detail"]
    assert two.house.log.size == before


# Checkpoint, keys, proofs, tiles


def test_the_head_is_handed_out_signed_and_kept(one: Site) -> None:
    answer = one.get("/v1/audit/checkpoint")
    assert answer.headers["content-type"].startswith("text/plain")
    head, _ = Checkpoint.open(answer.text, one.house.keys, ORIGIN)
    assert head.size == one.house.log.size
    with one.house.audit.read() as reader:
        assert answer.text in reader.kept_checkpoints()


def test_not_every_head_that_someone_asks_for_is_kept(one: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(audit.time, "monotonic", lambda: now[0])

    def kept_after(seconds: float, *, grow: bool) -> int:
        now[0] += seconds
        if grow:
            one.house.log.append(payload_of("more"))
        head, _ = Checkpoint.open(one.get("/v1/audit/checkpoint").text, one.house.keys)
        assert head.size == one.house.log.size
        with one.house.audit.read() as reader:
            return len(reader.kept_checkpoints())

    assert [kept_after(0, grow=False), kept_after(59, grow=True), kept_after(1, grow=False), kept_after(600, grow=False)] == [1, 1, 2, 2]


def test_the_keys_are_those_that_signed(one: Site) -> None:
    lines = one.get("/v1/audit/keys").text.splitlines()
    assert [VerifierKey.parse(line) for line in lines] == one.house.keys


def test_a_proof_is_checked_without_the_log(one: Site) -> None:
    for index in (0, 7, one.house.log.size - 1):
        file = ProofFile.parse(one.get(f"/v1/audit/proof/{index}").text)
        head, _ = Checkpoint.open(file.checkpoint, one.house.keys, ORIGIN)
        assert verify_inclusion(index, head.size, leaf_hash(one.house.records[index].leaf), file.path, head.root)


@pytest.mark.parametrize("index", ["{size}", "-1", "01", "1.0", "1e1", "+1", "9007199254740993000", "x", "٣", "0/", ""])
def test_there_is_no_proof_of_what_is_not_there(one: Site, index: str) -> None:
    assert one.get(f"/v1/audit/proof/{index.format(size=one.house.log.size)}").status_code in {404, 422}


@pytest.fixture(scope="module")
def tall(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site with a log of two full tiles and a bit."""
    with site(make_log(tmp_path_factory.mktemp("tall"))) as made:
        made.house.log.record([Entry(payload_of(name)) for name in names_of(530)])
        yield made


def test_a_stranger_makes_the_tree_anew_from_what_is_served(tall: Site, tmp_path: Path) -> None:
    note = tall.get("/v1/audit/checkpoint").text
    size = Checkpoint.open(note, tall.house.keys)[0].size
    (tmp_path / "checkpoint").write_text(note)
    for level, n, width in tiles_of(size):
        for name in [tile_path(level, n, width)] + ([tile_path(ENTRIES, n, width)] if level == 0 else []):
            answer = tall.get(f"/v1/audit/{name}")
            assert (answer.status_code, answer.headers["content-type"]) == (200, "application/octet-stream")
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(answer.content)
    assert verify_tiles(tmp_path, tall.house.keys).size == size == 530


def test_a_tile_of_an_older_head_stays_there(tall: Site) -> None:
    whole = tall.get("/v1/audit/tile/0/001").content
    for width in (1, 100, 255):
        assert tall.get(f"/v1/audit/tile/0/001.p/{width}").content == whole[: width * 32]
    leaves = [record.leaf for record in tall.house.records[512:515]]
    assert tall.get("/v1/audit/tile/entries/002.p/3").content == b"".join(len(leaf).to_bytes(2, "big") + leaf for leaf in leaves)


@pytest.mark.parametrize(
    "path",
    [
        "0/002", "0/003", "0/002.p/19", "0/002.p/255", "1/000", "1/000.p/3", "2/000.p/1", "63/000.p/1", "64/000", "entries/002", "entries/002.p/19",
        "0/0", "0/00", "0/0000", "0/x000/000", "0/x000/x000/001", "0/000.p/0", "0/000.p/256", "0/000.p/01", "0/000.p/", "0/000.p", "0/000/", "00/000",
        "-1/000", "0/-01", "0/abc", "0/x999/x999/x999/x999/x999/999", "0/x999/x999/x999/x999/x999/x999/999", "0/..%2f000", "Entries/000",
    ],
)  # fmt: skip
def test_there_is_one_address_for_each_tile_that_is_there(tall: Site, path: str) -> None:
    assert tall.get(f"/v1/audit/tile/{path}").status_code in {404, 422}


def test_handing_out_leaves_and_hashes_records_nothing(tall: Site) -> None:
    before = tall.house.log.size
    for path in ("checkpoint", "keys", "proof/3", "tile/0/000", "tile/entries/000"):
        assert tall.get(f"/v1/audit/{path}").status_code == 200
    assert tall.house.log.size == before


# Exports


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files of a test's own, to see what is left in it."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def unpacked(answer: Any, folder: Path) -> Path:
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/zip")
    assert int(answer.headers["content-length"]) == len(answer.content)
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        archive.extractall(folder)
    (made,) = folder.iterdir()
    return made


@pytest.mark.parametrize("form", ["jsonl", "csv", "fhir", "ai-act"])
def test_an_export_verifies_without_the_log_and_is_in_the_trail(one: Site, tmp_path: Path, temporary: Path, form: str) -> None:
    answer = one.export(format=form)
    assert answer.headers["content-disposition"] == f'attachment; filename="audit-export-{form}.zip"'
    found = verify_export(unpacked(answer, tmp_path / "out"), one.house.keys)
    assert (found.manifest.form.name, found.findings.records) == (form, len(entries()))
    record = one.house.newest
    payload = record.payload
    assert isinstance(payload, AuditExport)
    assert (payload.form, payload.first, payload.last, payload.digest) == (form, 0, len(entries()) - 1, found.digest)
    assert (payload.actor.id, payload.actor.client, payload.recipient) == ("officer", ADDRESS, None)
    assert record.event.purpose is Purpose.COMPLIANCE
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("form", ["jsonl", "csv", "fhir", "ai-act"])
def test_what_is_about_persons_goes_along_only_when_asked_for(one: Site, form: str) -> None:
    def content(payloads: bool) -> bytes:
        with zipfile.ZipFile(io.BytesIO(one.export(format=form, payloads=payloads).content)) as archive:
            return b"".join(archive.read(name) for name in archive.namelist())

    without, along = content(payloads=False), content(payloads=True)
    assert b"CANARY" not in without
    assert RESULT.encode() not in without
    # FHIR has payloads in base64; the AI Act's extract opens nothing of persons.
    assert (len(along) > len(without) + 1000) if form != "ai-act" else RESULT.encode() not in along


def test_an_export_is_of_whole_days(one: Site, tmp_path: Path) -> None:
    day = "2026-09-01"
    found = verify_export(unpacked(one.export(format="jsonl", since=day, until=day), tmp_path / "out"), one.house.keys)
    assert found.findings.records == len(entries())
    for wanted in ({"until": "2026-08-31"}, {"since": "2999-01-01"}):
        answer = one.export(format="csv", **wanted)
        assert (answer.status_code, answer.json()["type"]) == (404, "urn:clinical-ser:problem:no-records")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b'{"format":"csv","format":"csv"}', 400),
        (b"[]", 422),
        (b"{}", 422),
        (b'{"format":"access"}', 422),
        (b'{"format":"csv","subject":"Jane"}', 422),
        (b'{"format":"csv","payloads":"yes"}', 422),
        (b'{"format":"csv","since":"2026-02-30"}', 422),
        (b'{"format":"csv","since":"2026-02-02","until":"2026-02-01"}', 422),
        (b'{"format":"csv","since":"2026-02-02T10:00:00Z"}', 422),
        (b" " * 5000, 413),
    ],
    ids=range(12),
)
def test_what_is_no_request_for_an_export_is_refused(one: Site, body: bytes, status: int) -> None:
    before = one.house.log.size
    answer = one.client.post("/v1/audit/exports", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.headers["content-type"], "Jane" in answer.text) == (status, "application/problem+json", False)
    assert one.house.log.size == before


def test_an_export_is_asked_for_in_json(one: Site) -> None:
    answer = one.client.post("/v1/audit/exports", content=b'{"format":"csv"}', headers={"content-type": FORM})
    assert answer.status_code == 415


def test_there_is_one_export_at_a_time(one: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    made = period.export_period

    def slow(*arguments: Any, **options: Any) -> str:
        begun.set()
        assert go_on.wait(20)
        return made(*arguments, **options)

    monkeypatch.setattr(audit, "export_period", slow)
    answers: list[Any] = []
    first = threading.Thread(target=lambda: answers.append(one.export(format="csv")))
    first.start()
    try:
        assert begun.wait(20)
        second = one.export(format="csv")
    finally:
        go_on.set()
        first.join(20)
    assert (second.status_code, second.headers["retry-after"]) == (429, "30")
    assert answers[0].status_code == 200
    assert one.export(format="csv").status_code == 200


def test_an_export_that_fails_leaves_nothing_and_is_in_nobodys_way(one: Site, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(log: DatabaseReader, signers: list[NoteSigner], target: Path, *_: Any, **__: Any) -> str:
        target.mkdir()
        (target / "records.jsonl").write_text("half")
        raise AuditUnavailableError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(audit, "export_period", broken)
        assert one.export(format="csv").status_code == 503
    assert list(temporary.iterdir()) == []
    one.house.fails = AuditUnavailableError("no space")
    assert one.export(format="csv").status_code == 503
    assert list(temporary.iterdir()) == []
    one.house.fails = None
    assert one.export(format="csv").status_code == 200


def _archive(tmp_path: Path, trail: Trail, size: int = 1 << 20) -> audit._Archive:
    assert trail.exporting.acquire(blocking=False)
    lent = contextlib.ExitStack()
    lent.callback(trail.exporting.release)
    content = lent.enter_context((tmp_path / "content").open("w+b"))
    content.write(b"x" * size)
    return audit._Archive(content, "name", lent)


@pytest.mark.parametrize("version", ["2.3", "2.4"])
def test_whoever_stops_reading_an_export_stands_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(audit, "STREAM_S", 0.2)
    trail, sent = Trail(), []

    async def send(message: Any) -> None:
        sent.append(message)
        if message["type"] == "http.response.body":
            await anyio.sleep(60)

    async def receive() -> Any:
        await anyio.sleep(60)

    anyio.run(_archive(tmp_path, trail), {"type": "http", "asgi": {"spec_version": version}}, receive, send)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert trail.exporting.acquire(blocking=False)


def test_an_export_that_was_never_sent_stands_in_nobodys_way(tmp_path: Path) -> None:
    trail = Trail()
    archive = _archive(tmp_path, trail)
    assert not trail.exporting.acquire(blocking=False)
    del archive
    gc.collect()
    assert trail.exporting.acquire(blocking=False)


def test_an_archive_is_the_same_for_the_same_folder(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    for name in ("b.txt", "a.txt", "c"):
        (folder / name).write_text(name * 1000)
    made = []
    for moment in (1_000_000_000, 1_700_000_000):
        for path in folder.iterdir():
            os.utime(path, (moment, moment))
        with packed(folder, "out") as file:
            made.append(file.read())
    assert made[0] == made[1]
    with zipfile.ZipFile(io.BytesIO(made[0])) as archive:
        assert archive.namelist() == ["out/a.txt", "out/b.txt", "out/c"]
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert {info.external_attr >> 16 & 0o777 for info in archive.infolist()} == {0o600}
        assert archive.read("out/b.txt") == (folder / "b.txt").read_bytes()


def test_no_name_of_an_archive_is_ever_in_the_file_system(tmp_path: Path, temporary: Path) -> None:
    (tmp_path / "export").mkdir()
    with packed(tmp_path / "export", "out"):
        assert list(temporary.iterdir()) == []


def test_what_a_killed_process_left_behind_is_removed_and_nothing_else(temporary: Path) -> None:
    with private_folder("log.example/one") as left, private_folder("log.example/two") as others:
        mine = temporary / f"{left.name}x"
        for folder in (mine, temporary / "clinical-ser-export-other"):
            folder.mkdir()
            (folder / "records.jsonl").write_text("left")
        elsewhere = temporary / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "kept").write_text("kept")
        (temporary / f"{left.name}link").symlink_to(elsewhere)
        assert left.stat().st_mode & 0o777 == 0o700
        remove_leftovers("log.example/one")
        assert not mine.exists()
        assert not left.exists()
        assert others.exists()
        assert (elsewhere / "kept").exists()
        assert (temporary / "clinical-ser-export-other").exists()
        left.mkdir()


def test_a_request_has_the_forms_that_the_route_makes() -> None:
    schema = ExportRequest.model_json_schema()
    assert schema["properties"]["format"]["enum"] == ["jsonl", "csv", "fhir", "ai-act"]


# The site as a witness


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[TestClient]:
    with Witness.create(tmp_path / "witness.sqlite", {WITNESSED: LOG.keys}, [COSIGNER]) as made:
        app = FastAPI(openapi_url=None)
        app.router.routes.extend(witness_routes(made).routes)
        with TestClient(app) as client:
            yield client


def test_a_site_cosigns_for_others_as_a_witness_alone_does(witness: TestClient) -> None:
    def ask(body: bytes) -> Any:
        return witness.post("/witness/add-checkpoint", content=body)

    answer = ask(LOG.request(0, 5))
    assert (answer.status_code, answer.text.startswith("— witness.example/w1 ")) == (200, True)
    answer = ask(LOG.request(0, 5))
    assert (answer.status_code, answer.headers["content-type"], answer.text) == (409, "text/x.tlog.size", "5\n")
    for body, status in (
        (b"", 400),
        (FORK.request(5, 9), 422),
        (FORK.request(5, 5), 409),
        (GrowingLog(origin="other.example").request(0, 1), 404),
        (b"x" * (MAX_REQUEST_BYTES + 1), 413),
    ):
        answer = ask(body)
        assert (answer.status_code, answer.headers["cache-control"]) == (status, "no-store")
    forged = LOG.request(5, 9).decode().replace("log.example/ward-7 ", "somebody.else ")
    assert ask(forged.encode()).status_code == 403


def test_a_witness_is_asked_by_anyone(tmp_path: Path) -> None:
    with Witness.create(tmp_path / "witness.sqlite", {WITNESSED: LOG.keys}, [COSIGNER]) as made:
        (route,) = witness_routes(made).routes
    assert isinstance(route, GuardedRoute)
    assert (route.path, route.methods, route.access) == ("/witness/add-checkpoint", {"POST"}, Open.PUBLIC)


def _logs(path: Path, *logs: GrowingLog) -> None:
    text = "".join(f'[[log]]\norigin = "{log.keys[0].name}"\nkeys = ["{log.keys[0]}"]\n' for log in logs)
    path.write_text(text, encoding="utf-8")


def test_a_change_of_the_logs_counts_with_the_next_request(tmp_path: Path) -> None:
    other, file = GrowingLog(origin="other.example/log"), tmp_path / "logs.toml"
    _logs(file, LOG)
    with Witness.create(tmp_path / "witness.sqlite", file, [COSIGNER]) as made:
        made.add_checkpoint(LOG.request(0, 3))
        _refused(made, other, HTTPStatus.NOT_FOUND)
        _logs(file, LOG, other)
        made.add_checkpoint(other.request(0, 3))
        _logs(file, other)
        _refused(made, LOG, HTTPStatus.NOT_FOUND)


def _refused(witness: Witness, log: GrowingLog, status: HTTPStatus) -> None:
    from clinical_ser.audit.witness import WitnessRefusalError

    with pytest.raises(WitnessRefusalError) as caught:
        witness.add_checkpoint(log.request(0, 3))
    assert caught.value.status is status


@pytest.mark.parametrize("content", ["", "[[log]]\norigin = 'x'\nkeys = []\n", None])
def test_a_list_of_logs_that_cannot_be_used_any_more_ends_cosigning_until_it_can(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "logs.toml"
    _logs(file, LOG)
    with Witness.create(tmp_path / "witness.sqlite", file, [COSIGNER]) as made:
        made.add_checkpoint(LOG.request(0, 3))
        if content is None:
            file.unlink()
        else:
            file.write_text(content)
        with pytest.raises(AuditUnavailableError, match="Nothing was cosigned"):
            made.add_checkpoint(LOG.request(3, 5))
        _logs(file, LOG)
        made.add_checkpoint(LOG.request(3, 5))
        assert made.latest(WITNESSED).size == 5


def test_an_unchanged_list_of_logs_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clinical_ser.audit import witness as module

    file, read = tmp_path / "logs.toml", []
    _logs(file, LOG)
    with Witness.create(tmp_path / "witness.sqlite", file, [COSIGNER]) as made:
        loading = module.load_logs
        monkeypatch.setattr(module, "load_logs", lambda path: read.append(path) or loading(path))
        for old, size in ((0, 1), (1, 2), (2, 3)):
            made.add_checkpoint(LOG.request(old, size))
    assert len(read) == 1


def test_the_folder_of_a_witness_is_opened_as_the_command_made_it(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from clinical_ser.cli.app import app

    _logs(tmp_path / "logs.toml", LOG)
    folder = tmp_path / "w1"
    told = CliRunner().invoke(app, ["audit", "witness", "init", str(folder), "--name", "witness.example/w1", "--logs", str(tmp_path / "logs.toml")])
    assert told.exit_code == 0, told.output
    with open_witness(folder) as made:
        assert made.add_checkpoint(LOG.request(0, 3)).startswith("— witness.example/w1 ")


# The whole server


def test_behind_its_doors_the_trail_is_read_and_exported_with_the_scopes_for_it(server: Server, tmp_path: Path) -> None:
    reading, exporting, stranger = (server.client(name) for name in ("audit:read", "audit:export", None))
    told = [f"/v1/audit/{path}" for path in ("checkpoint", "proof/0", "tile/0/000.p/1", "keys")]
    for path in ("/v1/AuditEvent", f"/v1/AuditEvent/{'0' * 32}", *told):
        assert (stranger.get(path).status, exporting.get(path).status) == (401, 403)
    assert (stranger.post("/v1/audit/exports", {}).status, reading.post("/v1/audit/exports", {}).status) == (401, 403)
    answer = reading.get("/v1/AuditEvent?type=service")
    assert (answer.status, answer.headers["content-type"], answer.headers["cache-control"]) == (200, FHIR, "no-store")
    (newest, *_) = answer.json["entry"]
    assert newest["fullUrl"].startswith(f"http://127.0.0.1:{server.port}/v1/AuditEvent/")
    assert reading.get(f"/v1/AuditEvent/{newest['resource']['id']}").json["subtype"] == newest["resource"]["subtype"]
    (tmp_path / "out.zip").write_bytes(exporting.post("/v1/audit/exports", {"format": "ai-act", "payloads": True}).body)
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        archive.extractall(tmp_path / "out")
    assert verify_export(tmp_path / "out" / "audit-export-ai-act", server.service.log.verifiers).findings.records > 0


def test_a_persons_name_is_in_the_trail_and_in_no_line_of_the_servers_log(server: Server) -> None:
    client = server.client("audit:read")
    form = {"Content-Type": FORM}
    assert client.ask("POST", "/v1/AuditEvent/_search", urlencode({"patient": SUBJECT}), form).status == 200
    assert client.ask("POST", "/v1/AuditEvent/_search", urlencode({"patient": SUBJECT, "type": SUBJECT}), form).status == 400
    assert SUBJECT.split()[0] not in server.logs.getvalue()
