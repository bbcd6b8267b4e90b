"""Searches over a log with every kind of event, over one that several sites share, and over one whose clock went back."""

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fhir.resources.R4B.bundle import Bundle
from hypothesis import given, settings
from hypothesis import strategies as st

from clinical_ser.api import searching
from clinical_ser.api.searching import EventIds, Moments, Page, Search, SearchError, Sight, as_bundle, find, outcome_of, read_event
from clinical_ser.audit import events
from clinical_ser.audit.checkpoint import Checkpoint
from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.erasing import erase
from clinical_ser.audit.events import MODEL as MODEL_NAMED
from clinical_ser.audit.events import PAYLOADS, RECORD, Actor, Event, Outcome, Role, canonical
from clinical_ser.audit.exports.fhir import Carried
from clinical_ser.audit.exports.fhir_rules import check_resource
from clinical_ser.audit.log import Entry
from clinical_ser.audit.merkle import leaf_hash, verify_inclusion
from clinical_ser.audit.reading import DatabaseReader
from clinical_ser.audit.records import Record
from clinical_ser.errors import AuditTamperedError
from tests.audit.exports.example import FIRST_SUBJECT, OFFICER, RESULT, SECOND_RESULT, SECOND_SUBJECT, START, entries, inference, record_of
from tests.audit.log_maker import ORIGIN, append, database_file, make_log, names_of, payload_of, subject_of

ALL = Sight("")
BASE = "https://hospital.example/v1"


@dataclass
class Clock:
    """A clock that tests set; wall and monotonic time go together, unless the wall is moved alone."""

    now: datetime = START
    monotonic_ns: int = 0

    def go(self, **by: float) -> None:
        step = timedelta(**by)
        self.now += step
        self.monotonic_ns += step // timedelta(microseconds=1) * 1000

    @contextmanager
    def writing(self, configuration: LogConfiguration) -> Iterator[Any]:
        with configuration.write(clock=lambda: self.now, monotonic_ns=lambda: self.monotonic_ns) as log:
            yield log


def write(configuration: LogConfiguration, recorded: Sequence[Any]) -> None:
    """Record entries in one commit, with times a minute apart."""
    clock = Clock(START - timedelta(minutes=1), -60 * 10**9)

    def tick() -> datetime:
        clock.go(minutes=1)
        return clock.now

    with configuration.write(clock=tick, monotonic_ns=lambda: clock.monotonic_ns) as log:
        log.record([Entry(each.payload, each.subject, None, each.outcome, each.purpose, each.model, each.supersedes) for each in recorded])


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory: pytest.TempPathFactory) -> LogConfiguration:
    configuration = make_log(tmp_path_factory.mktemp("every kind"))
    write(configuration, entries())
    return configuration


def parse(*pairs: tuple[str, str], in_address: bool = False) -> Search:
    return Search.parse(pairs, in_address=in_address)


def search(configuration: LogConfiguration, *pairs: tuple[str, str], sight: Sight = ALL) -> list[int]:
    """Return what all pages of a search hold together."""
    found: list[int] = []
    before: int | None = None
    for _ in range(10_000):
        page = page_of(configuration, *pairs, *([] if before is None else [("page", str(before))]), sight=sight)
        found += [record.index for record in page.records]
        before = page.before
        if before is None:
            return found
    raise AssertionError("the pages do not end")


def page_of(configuration: LogConfiguration, *pairs: tuple[str, str], sight: Sight = ALL) -> Page:
    with configuration.read() as reader:
        return find(reader, parse(*pairs), sight, EventIds())


def records_of(configuration: LogConfiguration) -> list[Record]:
    with configuration.read() as reader:
        return list(reader.records())


# What is found


@pytest.mark.parametrize("count", [1, 3, 23, 24, 25, 500])
def test_pages_hold_every_record_once_newest_first(every_kind: LogConfiguration, count: int) -> None:
    assert search(every_kind, ("_count", str(count))) == list(range(len(entries())))[::-1]


def test_pages_go_on_where_they_ended_while_the_log_grows(tmp_path: Path) -> None:
    configuration = make_log(tmp_path, records=6)
    first = page_of(configuration, ("_count", "3"))
    with configuration.write() as log:
        for name in names_of(4, "later"):
            append(log, name)
    second = page_of(configuration, ("_count", "3"), ("page", str(first.before)))
    assert [[record.index for record in page.records] for page in (first, second)] == [[5, 4, 3], [2, 1, 0]]
    assert second.before is None


def test_an_empty_log_has_an_empty_page(tmp_path: Path) -> None:
    assert page_of(make_log(tmp_path)) == Page((), None, False)


def test_a_page_beyond_the_log_begins_at_its_end(every_kind: LogConfiguration) -> None:
    newest = len(entries()) - 1
    assert page_of(every_kind, ("page", str(10**15)), ("_count", "1")).records[0].index == newest
    assert search(every_kind, ("page", "0")) == []


_KINDS = st.lists(st.sampled_from(sorted(PAYLOADS)), min_size=1, max_size=4)
_DATES = st.tuples(
    st.sampled_from(["", "eq", "ne", "gt", "ge", "lt", "le", "sa", "eb"]),
    st.sampled_from(["2026-09-01T08:3{}", "2026-09-01T08:3{}:00Z", "2026-09-01T10:3{}:00+02:00", "2026-09-0{}", "2026-0{}", "202{}"]),
    st.integers(1, 9),
)


@settings(deadline=None)
@given(
    kinds=st.none() | _KINDS,
    outcomes=st.none() | st.lists(st.sampled_from("048"), min_size=1),
    actions=st.none() | st.lists(st.sampled_from("CRUDE"), min_size=1),
    dates=st.lists(_DATES, max_size=2),
    entity=st.sampled_from([None, RECORD + RESULT, RECORD + SECOND_RESULT, f"{MODEL_NAMED}other"]),
    patient=st.sampled_from([None, FIRST_SUBJECT, SECOND_SUBJECT, "nobody"]),
    count=st.integers(1, 30),
)
def test_a_search_finds_what_looking_at_every_record_finds(
    every_kind: LogConfiguration, kinds: Any, outcomes: Any, actions: Any, dates: Any, entity: Any, patient: Any, count: int
) -> None:
    pairs = [("_count", str(count))]
    pairs += [] if kinds is None else [("type", ",".join(kinds))]
    pairs += [] if outcomes is None else [("outcome", ",".join(outcomes))]
    pairs += [] if actions is None else [("action", ",".join(actions))]
    pairs += [("date", prefix + text.format(number)) for prefix, text, number in dates]
    pairs += [] if entity is None else [("entity", entity)]
    pairs += [] if patient is None else [("patient", patient)]
    wanted = []
    for index, entry in enumerate(entries()):
        code = {Outcome.SUCCESS: "0", Outcome.REFUSED: "4", Outcome.FAILED: "8"}[entry.outcome]
        moment = START + timedelta(minutes=index)
        if (
            (kinds is None or entry.payload.kind in kinds)
            and (outcomes is None or code in outcomes)
            and (actions is None or _action(entry) in actions)
            and all(_holds(prefix, text.format(number), moment) for prefix, text, number in dates)
            and (entity is None or entity in entry.payload.records())
            and (patient is None or entry.subject == patient)
        ):
            wanted.append(index)
    assert search(every_kind, *pairs) == wanted[::-1]


def _action(entry: Any) -> str | None:
    payload = entry.payload
    told = {
        ("report", "viewed"): "R", ("report", "exported"): "R", ("report", "amended"): "U",
        ("submission", "accepted"): "C", ("submission", "failed"): "E",
    }  # fmt: skip
    plain = {
        "inference": "C", "quality_rejection": "C", "disclosure": "R", "review": "C", "erasure": "D", "legal_hold": "U", "model": "U",
        "configuration": "U", "access_denied": "E", "audit_export": "R", "service": "E", "notice": "E", "federated_round": "E", "drift_alarm": "E",
    }  # fmt: skip
    return told.get((payload.kind, getattr(payload, "action", ""))) or plain.get(payload.kind)


def _holds(prefix: str, text: str, moment: datetime) -> bool:
    """Say what FHIR does (search.html#date), over intervals of datetimes."""
    for form, step in (("%Y-%m-%dT%H:%M:%S%z", timedelta(seconds=1)), ("%Y-%m-%dT%H:%M", timedelta(minutes=1)), ("%Y-%m-%d", timedelta(days=1))):
        try:
            low = datetime.strptime(text, form)
        except ValueError:
            continue
        low = low if low.tzinfo else low.replace(tzinfo=UTC)
        high = low + step
        break
    else:
        year, _, month = text.partition("-")
        low = datetime(int(year), int(month or 1), 1, tzinfo=UTC)
        high = datetime(int(year) + (not month), int(month or 0) + 1, 1, tzinfo=UTC)
    return {
        "": low <= moment < high,
        "eq": low <= moment < high,
        "ne": not low <= moment < high,
        "gt": moment >= high,
        "sa": moment >= high,
        "ge": moment >= low,
        "lt": moment < low,
        "eb": moment < low,
        "le": moment < high,
    }[prefix]


def test_the_example_has_every_kind_and_outcome() -> None:
    assert {entry.payload.kind for entry in entries()} == set(PAYLOADS)
    assert {entry.outcome for entry in entries()} == set(Outcome)


@pytest.mark.parametrize("value", ["inference", "clinical-ser:audit-event-kind|inference"])
@pytest.mark.parametrize("name", ["type", "subtype"])
def test_a_kind_is_named_alone_or_with_its_system(every_kind: LogConfiguration, name: str, value: str) -> None:
    assert search(every_kind, (name, value)) == [i for i, entry in enumerate(entries()) if entry.payload.kind == "inference"][::-1]


@pytest.mark.parametrize("name", ["entity", "entity:identifier"])
@pytest.mark.parametrize("value", [RECORD + RESULT, f"clinical-ser:result|{RECORD}{RESULT}"], ids=["alone", "with its system"])
def test_a_result_is_named_as_reports_print_it_or_as_its_event_has_it(every_kind: LogConfiguration, name: str, value: str) -> None:
    wanted = [i for i, entry in enumerate(entries()) if RECORD + RESULT in entry.payload.records()]
    assert search(every_kind, (name, value)) == wanted[::-1]


def test_a_model_and_a_place_in_the_log_are_entities_too(every_kind: LogConfiguration) -> None:
    assert search(every_kind, ("entity", f"{MODEL_NAMED}depression-simulated")) == [2]
    assert search(every_kind, ("entity", f"clinical-ser:log|{ORIGIN}/7")) == [7]
    for other in (f"{ORIGIN}/999", f"{ORIGIN}/07", "other.example/7", f"{ORIGIN}/-1"):
        assert search(every_kind, ("entity", f"clinical-ser:log|{other}")) == []


@pytest.mark.parametrize("name", ["patient", "subject"])
def test_a_person_is_found_however_the_name_is_composed(tmp_path: Path, name: str) -> None:
    configuration = make_log(tmp_path)
    with configuration.write() as log:
        append(log, "other")
        log.append(inference(), subject="Zoë")
    assert search(configuration, (name, " Zoe\u0308")) == [1]


@pytest.mark.parametrize("value", [OFFICER.id, f"clinical-ser:account|{OFFICER.id}"])
def test_an_account_is_found_by_its_id(every_kind: LogConfiguration, value: str) -> None:
    wanted = [i for i, entry in enumerate(entries()) if entry.payload.actor.id == OFFICER.id]
    assert search(every_kind, ("agent", value)) == wanted[::-1]
    assert search(every_kind, ("agent:identifier", value)) == wanted[::-1]
    assert search(every_kind, ("agent", value[:-1])) == []


def test_events_are_found_by_their_ids(every_kind: LogConfiguration) -> None:
    ids = [record.event.id for record in records_of(every_kind)]
    assert search(every_kind, ("_id", f"{ids[3]},{ids[9]}")) == [9, 3]
    assert search(every_kind, ("_id", f"{ids[3]},{ids[9]}"), ("_id", ids[3])) == [3]
    assert search(every_kind, ("_id", "0" * 32)) == []
    assert search(every_kind, ("_id", ids[3]), ("type", "inference")) == []


def test_what_is_given_twice_has_to_hold_twice(every_kind: LogConfiguration) -> None:
    assert search(every_kind, ("type", "inference,review"), ("type", "review,model")) == search(every_kind, ("type", "review"))
    assert search(every_kind, ("type", "inference"), ("type", "review")) == []


# How much is read for it


@dataclass
class Counting:
    """A reader that counts what is asked of it."""

    reader: DatabaseReader
    leaves_read: int = 0
    opened: list[int] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.reader, name)

    def leaves(self, start: int, stop: int) -> Iterator[bytes]:
        for leaf in self.reader.leaves(start, stop):
            self.leaves_read += 1
            yield leaf

    def record(self, index: int) -> Record:
        self.opened.append(index)
        return self.reader.record(index)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> LogConfiguration:
    """A log of 400 records, a minute apart."""
    configuration = make_log(tmp_path_factory.mktemp("long"))
    write(configuration, [Entry(payload_of(name), subject_of(name, 40)) for name in names_of(400)])
    return configuration


def counted(configuration: LogConfiguration, *pairs: tuple[str, str]) -> tuple[Page, Counting]:
    with configuration.read() as reader:
        counting = Counting(reader)
        return find(counting, parse(*pairs), ALL, EventIds()), counting  # type: ignore[arg-type]


def test_a_page_does_not_read_the_whole_log(long: LogConfiguration) -> None:
    page, counting = counted(long)
    assert (len(page.records), page.before) == (50, 350)
    assert counting.leaves_read == 64
    assert counting.opened == list(range(399, 349, -1))


def test_a_person_is_looked_up_and_not_walked_to(long: LogConfiguration) -> None:
    page, counting = counted(long, ("patient", "subject 7"))
    assert 1 < len(page.records) < 30
    assert counting.leaves_read == 0
    assert counting.opened == [record.index for record in page.records]


def test_only_what_may_fit_is_opened(long: LogConfiguration) -> None:
    page, counting = counted(long, ("outcome", "4"))
    assert (page.records, page.before, page.is_cut) == ((), None, False)
    assert (counting.leaves_read, counting.opened) == (400, [])


def test_a_walk_ends_at_the_first_day_that_is_asked_for(long: LogConfiguration) -> None:
    since = (START + timedelta(minutes=390)).strftime("%Y-%m-%dT%H:%M:00Z")
    page, counting = counted(long, ("date", f"ge{since}"))
    assert ([record.index for record in page.records], page.before) == (list(range(399, 389, -1)), None)
    assert counting.leaves_read == 64


def test_a_clock_that_went_back_hides_nothing(tmp_path: Path) -> None:
    configuration, clock = make_log(tmp_path), Clock(START)
    with clock.writing(configuration) as log:
        for name, minutes in (("early", 0), ("noon", 120), ("back", -90), ("still back", -89), ("after", 121)):
            # The wall clock alone is moved.
            clock.now = START + timedelta(minutes=minutes)
            append(log, name)
    since = (START + timedelta(minutes=60)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert search(configuration, ("date", f"ge{since}")) == [4, 1]
    assert search(configuration, ("date", f"lt{since}")) == [3, 2, 0]


@pytest.mark.parametrize(("leaves", "opened"), [(7, 1000), (1000, 7), (7, 3)])
def test_a_search_that_reads_much_stops_and_its_pages_still_find_everything(
    every_kind: LogConfiguration, monkeypatch: pytest.MonkeyPatch, leaves: int, opened: int
) -> None:
    monkeypatch.setattr(searching, "MAX_LEAVES", leaves)
    monkeypatch.setattr(searching, "MAX_OPENED", opened)
    # Not told by leaves, so that records are opened for it.
    pairs = [("action", "D"), ("_count", "2")]
    first = page_of(every_kind, *pairs)
    assert (first.is_cut, first.before) == (True, len(entries()) - min(leaves, opened))
    assert first.records == ()
    assert search(every_kind, *pairs) == [i for i, entry in enumerate(entries()) if entry.payload.kind == "erasure"][::-1]


def test_a_full_page_is_not_called_cut(long: LogConfiguration, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "MAX_OPENED", 5)
    page, _ = counted(long, ("_count", "5"))
    assert (page.is_cut, page.before) == (False, 395)


# What is no search

CANARY = "Jane-Doe-1970"
_WRONG = [
    [("patient", "")],
    [("patient", "  ")],
    [("agent", "")],
    [("patient", "a"), ("subject", "b")],
    [("name", CANARY)],
    [(CANARY, "1")],
    [("date:missing", "true")],
    [("type:not", "inference")],
    [("type", CANARY)],
    [("type", "inference,")],
    [("type", "http://dicom.nema.org/resources/ontology/DCM|110101")],
    [("outcome", "1")],
    [("outcome", "")],
    [("action", "X")],
    [("action", "CR")],
    [("entity", CANARY)],
    [("entity", RECORD + CANARY)],
    [("entity", MODEL_NAMED)],
    [("entity", RECORD + RESULT), ("entity", RECORD + RESULT)],
    [("_id", CANARY)],
    [("_id", "A" * 32)],
    [("_count", "0")],
    [("_count", "501")],
    [("_count", "1e2")],
    [("_count", "٣")],
    [("_count", "1"), ("_count", "2")],
    [("page", "-1")],
    [("page", "01")],
    [("page", "9" * 20)],
    [("page", str(2**53))],
    [("_sort", "date")],
    [("_sort", "-date"), ("_sort", "_id")],
    [("_format", "xml")],
    [("_total", "some")],
    [("patient", "x" * 601)],
    [("type", "inference")] * 21,
]


@pytest.mark.parametrize("pairs", _WRONG, ids=range(len(_WRONG)))
def test_what_is_not_known_is_refused_without_being_repeated(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(SearchError) as caught:
        parse(*pairs)
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("name", ["patient", "subject", "agent", "agent:identifier"])
def test_nobody_is_named_in_an_address(name: str) -> None:
    assert parse((name, "x")).is_personal
    with pytest.raises(SearchError, match="ends up in logs"):
        parse((name, "x"), in_address=True)


_NO_DATES = [
    "", "today", "2026-13", "2026-02-30", "2026-02-29", "26-01-01", "2026-1-1", "2026-01-01T10", "2026-01-01T24:00", "2026-01-01T10:00:60Z",
    "2026-01-01T10:00:00.1234567Z", "2026-01-01 10:00", "2026-01-01T10:00:00 01:00", "2026-01-01T10:00+25:00", "ap2026", "2026-01-01,2026-01-02",
    "0000", "9999", "0001-01-01T00:00:00+01:00", "GE2026", "ge", "２０２６",
]  # fmt: skip


@pytest.mark.parametrize("text", _NO_DATES)
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(SearchError):
        Moments.parse(text)


def test_a_moment_is_as_long_as_it_is_precise() -> None:
    spans = {
        "2026": ("2026-01-01T00:00:00.000000Z", "2027-01-01T00:00:00.000000Z"),
        "2026-12": ("2026-12-01T00:00:00.000000Z", "2027-01-01T00:00:00.000000Z"),
        "2024-02": ("2024-02-01T00:00:00.000000Z", "2024-03-01T00:00:00.000000Z"),
        "2024-02-29": ("2024-02-29T00:00:00.000000Z", "2024-03-01T00:00:00.000000Z"),
        "2026-12-31T23:59": ("2026-12-31T23:59:00.000000Z", "2027-01-01T00:00:00.000000Z"),
        "2026-01-01T00:00:00+02:00": ("2025-12-31T22:00:00.000000Z", "2025-12-31T22:00:01.000000Z"),
        "2026-01-01T10:00:00.25Z": ("2026-01-01T10:00:00.250000Z", "2026-01-01T10:00:00.260000Z"),
        "2026-01-01T10:00:00.123456Z": ("2026-01-01T10:00:00.123456Z", "2026-01-01T10:00:00.123457Z"),
    }
    assert {text: (Moments.parse(text).low, Moments.parse(text).high) for text in spans} == spans


@pytest.mark.parametrize(
    ("prefix", "minutes"),
    [
        ("", [5]),
        ("eq", [5]),
        ("ne", [0, 1, 2, 3, 4, 6, 7, 8, 9]),
        ("gt", [6, 7, 8, 9]),
        ("sa", [6, 7, 8, 9]),
        ("ge", [5, 6, 7, 8, 9]),
        ("lt", [0, 1, 2, 3, 4]),
        ("eb", [0, 1, 2, 3, 4]),
        ("le", [0, 1, 2, 3, 4, 5]),
    ],
)
def test_before_and_after_are_of_the_whole_stretch_that_is_named(prefix: str, minutes: list[int]) -> None:
    asked = Moments.parse(f"{prefix}2026-09-01T08:35")
    assert [minute for minute in range(10) if asked.hold(f"2026-09-01T08:3{minute}:30.000000Z")] == minutes


def test_an_events_own_time_finds_it(every_kind: LogConfiguration) -> None:
    for record in records_of(every_kind)[::5]:
        assert search(every_kind, ("date", record.event.time)) == [record.index]


# Several sites


def account(name: str, role: Role = Role.CLINICIAN) -> Actor:
    return Actor(id=name, role=role)


@dataclass(frozen=True)
class Shared:
    """A log that the sites `a` and `b` share; both call a person MRN-1."""

    configuration: LogConfiguration
    index: dict[str, int]

    def names(self, indices: Sequence[int]) -> set[str]:
        return {name for name, index in self.index.items() if index in indices}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    configuration = make_log(tmp_path_factory.mktemp("shared"))
    root = account("root", Role.OPERATOR)

    def export(actor: Actor) -> events.AuditExport:
        return events.AuditExport(actor=actor, form="csv", first=0, last=1, digest=None)

    told: dict[str, tuple[events.Payload, str | None]] = {
        "the server started": (events.Service(actor=root, action="started", component="server"), None),
        "answer of a": (inference(actor=account("a/dr")), "a/MRN-1"),
        "answer of b": (inference(actor=account("b/dr")), "b/MRN-1"),
        "answer of a without a person": (inference("f1" * 32, actor=account("a/dr")), None),
        "answer of b without a person": (inference("f2" * 32, actor=account("b/dr")), None),
        "the operator's answer without a person": (inference("f3" * 32, actor=root), None),
        "the operator's hold on a's person": (events.LegalHold(actor=root, action="placed", reason="r", authority="a"), "a/MRN-1"),
        "the operator's hold on b's person": (events.LegalHold(actor=root, action="placed", reason="r", authority="a"), "b/MRN-1"),
        "the operator's export": (export(root), None),
        "a's look": (export(account("a/officer", Role.COMPLIANCE)), None),
        "b's look": (export(account("b/officer", Role.COMPLIANCE)), None),
        "somebody was refused": (events.AccessDenied(actor=account("unknown client", Role.SERVICE), asked_for="x", reason="unauthenticated"), None),
        "somebody was refused something of b's person": (
            events.AccessDenied(actor=account("unknown client", Role.SERVICE), asked_for="x", reason="expired"),
            "b/MRN-1",
        ),
        "b's user was refused": (events.AccessDenied(actor=account("b/dr"), asked_for="x", reason="forbidden"), None),
        "another site's name begins alike": (inference("f4" * 32, actor=account("ab/dr")), None),
        "an account of no site called a": (inference("f5" * 32, actor=account("a")), None),
        "a's erased answer": (inference("f6" * 32, actor=account("a/dr")), "a/MRN-2"),
    }
    index = {}
    with configuration.write() as log:
        for name, (payload, subject) in told.items():
            index[name] = log.append(payload, subject=subject).index
        erase(log, "a/MRN-2", reason="Jane asked", basis="GDPR Art. 17(1)(a)", actor=root)
    index["the operator's tombstone"] = len(index)
    return Shared(configuration, index)


SEEN_BY_BOTH = {"the server started", "somebody was refused"}


@pytest.mark.parametrize("count", ["1", "50"])
def test_an_officer_sees_what_their_own_site_did_and_what_happened_to_the_system(shared: Shared, count: str) -> None:
    seen = {tenant: shared.names(search(shared.configuration, ("_count", count), sight=Sight(tenant))) for tenant in ("a", "b", "c")}
    assert seen == {
        "a": SEEN_BY_BOTH | {"answer of a", "answer of a without a person", "a's look"},
        "b": SEEN_BY_BOTH | {"answer of b", "answer of b without a person", "b's look", "b's user was refused"},
        "c": SEEN_BY_BOTH,
    }


def test_on_an_installation_of_one_site_everything_is_seen(shared: Shared) -> None:
    assert shared.names(search(shared.configuration)) == set(shared.index)


def test_two_sites_that_give_people_the_same_name_each_find_their_own(shared: Shared) -> None:
    found = {tenant: shared.names(search(shared.configuration, ("patient", "MRN-1"), sight=Sight(tenant))) for tenant in ("a", "b", "c", "")}
    assert found == {
        "a": {"answer of a", "the operator's hold on a's person"},
        "b": {"answer of b", "the operator's hold on b's person", "somebody was refused something of b's person"},
        "c": set(),
        "": set(),
    }


@pytest.mark.parametrize("name", ["b/MRN-1", "../b/MRN-1", "/b/MRN-1"])
def test_no_spelling_of_a_persons_name_reaches_into_another_site(shared: Shared, name: str) -> None:
    assert search(shared.configuration, ("patient", name), sight=Sight("a")) == []


def test_a_shared_recording_shows_each_site_its_own_answer(shared: Shared) -> None:
    found = search(shared.configuration, ("entity", RECORD + RESULT), sight=Sight("b"))
    assert shared.names(found) == {"answer of b"}


def test_nothing_else_that_is_asked_for_widens_what_is_seen(shared: Shared) -> None:
    allowed = set(search(shared.configuration, sight=Sight("a"))) | set(search(shared.configuration, ("patient", "MRN-1"), sight=Sight("a")))
    ids = ",".join(record.event.id for record in records_of(shared.configuration)[:17])
    asked: list[list[tuple[str, str]]] = [
        [("agent", "b/dr")], [("agent", "dr")], [("agent", "root")], [("type", ",".join(PAYLOADS))], [("outcome", "0,4,8")],
        [("action", "C,R,U,D,E")], [("date", "ge2000")], [("_id", ids)], [("page", "999")], [("entity", f"{RECORD}{'f2' * 32}")],
        [("entity", f"clinical-ser:log|{ORIGIN}/2")],
    ]  # fmt: skip
    for pairs in asked:
        assert set(search(shared.configuration, *pairs, sight=Sight("a"))) <= allowed, pairs
    assert shared.names(search(shared.configuration, ("agent", "dr"), sight=Sight("a"))) == {"answer of a", "answer of a without a person"}


def test_an_event_is_read_by_its_id_by_whoever_may_see_it(shared: Shared) -> None:
    records, ids = records_of(shared.configuration), EventIds()
    with shared.configuration.read() as reader:
        for tenant in ("a", "b", ""):
            sight = Sight(tenant)
            seen = set(search(shared.configuration, sight=sight))
            for record in records:
                found = read_event(reader, record.event.id, sight, ids)
                assert (None if found is None else found.index) == (record.index if record.index in seen else None)
        assert read_event(reader, "0" * 32, ALL, ids) is None


def test_what_was_erased_is_shown_without_its_content_and_to_no_site(shared: Shared) -> None:
    index = shared.index["a's erased answer"]
    with shared.configuration.read() as reader:
        page = find(reader, parse(("entity", f"clinical-ser:log|{ORIGIN}/{index}")), ALL, EventIds())
        bundle = as_bundle(reader, page, parse(), base=BASE, address=f"{BASE}/AuditEvent")
    (resource,) = [entry["resource"] for entry in bundle["entry"] if entry["search"]["mode"] == "match"]
    record, _ = Carried.of(resource, "here").record()
    assert (record.state, record.payload) == ("erased", None)
    assert "a/dr" not in json.dumps(resource["agent"])
    assert index not in search(shared.configuration, sight=Sight("a"))


# Ids in memory


@dataclass
class Leaves:
    """A reader of leaves alone."""

    records: list[Record]
    asked: list[tuple[int, int]] = field(default_factory=list)

    @property
    def size(self) -> int:
        return len(self.records)

    def leaves(self, start: int, stop: int) -> Iterator[bytes]:
        self.asked.append((start, stop))
        return iter([record.leaf for record in self.records[start : min(stop, self.size)]])


def _with_id(index: int, event_id: str) -> Record:
    record = record_of(index, entries()[0])
    leaf = canonical(record.event.model_copy(update={"id": event_id}).model_dump(mode="json", by_alias=True))
    return Record(index, leaf, Event.parse(leaf), None, None, "sealed")


def test_ids_that_begin_alike_are_told_apart() -> None:
    alike = ["ab" * 8 + f"{number:016x}" for number in range(3)]
    log = Leaves([_with_id(index, event_id) for index, event_id in enumerate(alike)])
    ids = EventIds()
    assert [ids.find(log, event_id) for event_id in alike] == [0, 1, 2]  # type: ignore[arg-type]
    assert ids.find(log, "ab" * 8 + "f" * 16) is None  # type: ignore[arg-type]


def test_leaves_are_read_once_and_a_log_that_grows_is_read_on() -> None:
    made = [_with_id(index, f"{index:032x}") for index in range(1, 9)]
    log, ids = Leaves(made[:5]), EventIds()
    assert ids.find(log, "f" * 32) is None  # type: ignore[arg-type]
    log.records = made
    assert ids.find(log, made[7].event.id) == 7  # type: ignore[arg-type]
    assert log.asked[:2] == [(0, 5), (5, 8)]
    # A reader that stands on an older head knows nothing of what came later.
    assert ids.find(Leaves(made[:5]), made[7].event.id) is None  # type: ignore[arg-type]


# The bundle


def bundled(configuration: LogConfiguration, *pairs: tuple[str, str]) -> tuple[dict[str, Any], Checkpoint]:
    asked = parse(*pairs)
    with configuration.read() as reader:
        page = find(reader, asked, ALL, EventIds())
        made = as_bundle(reader, page, asked, base=BASE, address=f"{BASE}/AuditEvent")
        return json.loads(canonical(made)), Checkpoint(reader.origin, reader.size, reader.root)


def matches(bundle: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry["resource"] for entry in bundle.get("entry", []) if entry["search"]["mode"] == "match"]


def test_a_page_is_a_bundle_as_r4_and_balp_have_it(every_kind: LogConfiguration) -> None:
    bundle, _ = bundled(every_kind)
    assert Bundle.model_validate(bundle).type == "searchset"
    names = [entry["fullUrl"] for entry in bundle["entry"]]
    assert len(set(names)) == len(names)
    for entry in bundle["entry"]:
        resource = entry["resource"]
        assert check_resource(resource) == []
        assert entry["fullUrl"] == f"{BASE}/{resource['resourceType']}/{resource['id']}"


def test_every_device_that_an_event_names_comes_along(every_kind: LogConfiguration) -> None:
    bundle, _ = bundled(every_kind)
    devices = {f"Device/{entry['resource']['id']}" for entry in bundle["entry"] if entry["search"]["mode"] == "include"}
    told = json.dumps(matches(bundle))
    assert devices
    assert all(device in told for device in devices)
    assert {word for word in told.split('"') if word.startswith("Device/")} == devices


@pytest.mark.parametrize("count", ["4", "500"])
def test_every_event_carries_its_record_and_the_proof_of_it(every_kind: LogConfiguration, count: str) -> None:
    bundle, head = bundled(every_kind, ("_count", count))
    for resource in matches(bundle):
        record, path = Carried.of(resource, "here").record()
        assert verify_inclusion(record.index, head.size, leaf_hash(record.leaf), path, head.root)
        assert record.payload is not None


def test_links_lead_through_the_pages(every_kind: LogConfiguration) -> None:
    bundle, _ = bundled(every_kind, ("type", "inference,report"), ("date", "ge2026-09-01"), ("_count", "2"))
    links = {link["relation"]: link["url"] for link in bundle["link"]}
    asked = "type=inference%2Creport&date=ge2026-09-01&_count=2"
    before = Carried.of(matches(bundle)[-1], "here").index
    assert links == {"self": f"{BASE}/AuditEvent?{asked}", "next": f"{BASE}/AuditEvent?{asked}&page={before}"}
    assert "total" not in bundle
    last, _ = bundled(every_kind, ("type", "inference"))
    assert [link["relation"] for link in last["link"]] == ["self"]
    assert last["total"] == len(matches(last)) == 2


def test_links_of_a_search_by_name_hold_nothing_of_it(every_kind: LogConfiguration) -> None:
    bundle, _ = bundled(every_kind, ("patient", FIRST_SUBJECT), ("type", "report"), ("_count", "1"))
    assert [link["relation"] for link in bundle["link"]] == ["self", "next"]
    for link in bundle["link"]:
        assert link["url"].partition("&")[0].removeprefix(f"{BASE}/AuditEvent").rstrip("0123456789") in {"", "?page="}


def test_a_page_that_was_cut_says_so(every_kind: LogConfiguration, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "MAX_LEAVES", 3)
    bundle, _ = bundled(every_kind, ("type", "notice"))
    (said,) = bundle["entry"]
    assert said["search"]["mode"] == "outcome"
    assert said["resource"] == outcome_of("information", "incomplete", said["resource"]["issue"][0]["diagnostics"])
    assert {link["relation"] for link in bundle["link"]} == {"self", "next"}
    assert Bundle.model_validate(bundle)


def test_nothing_found_is_a_bundle_without_entries(every_kind: LogConfiguration) -> None:
    bundle, _ = bundled(every_kind, ("date", "lt2020"))
    assert (bundle["total"], "entry" in bundle) == (0, False)
    assert Bundle.model_validate(bundle)


# A log that was changed


def _change(configuration: LogConfiguration, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(database_file(configuration), isolation_level=None)) as writing:
        for (name,) in writing.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            writing.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            writing.execute(statement)


_STATEMENTS = [
    "DELETE FROM leaves WHERE idx = 3",
    "UPDATE leaves SET leaf = X'7b7d' WHERE idx = 3",
    "DELETE FROM sealed WHERE idx = 3",
    "UPDATE sealed SET data = zeroblob(200) WHERE idx = 3",
]


@pytest.mark.parametrize("dated", [False, True])
@pytest.mark.parametrize("statement", _STATEMENTS, ids=range(len(_STATEMENTS)))
def test_a_record_that_was_changed_ends_the_search(tmp_path: Path, statement: str, dated: bool) -> None:
    configuration = make_log(tmp_path, records=6, subjects=2)
    _change(configuration, statement)
    with pytest.raises(AuditTamperedError):
        search(configuration, *([("date", "ge2000-01-01")] if dated else []))


def test_a_leaf_without_an_id_ends_the_search_by_id(tmp_path: Path) -> None:
    configuration = make_log(tmp_path, records=6)
    _change(configuration, "UPDATE leaves SET leaf = X'7b7d' WHERE idx = 3")
    with pytest.raises(AuditTamperedError, match="0 to 5"):
        search(configuration, ("_id", "0" * 32))
