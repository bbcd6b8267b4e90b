"""Looking for events in the trail as FHIR R4 has it (https://hl7.org/fhir/R4/search.html): newest first, a page at a time. No HTTP here.

The one idea: a page costs what it shows. A walk reads leaves, which say when and what without being opened, from the newest on, opens those that may
be wanted, and ends after a fixed number, with a link to go on from; whose name or which result is asked for is looked up and not walked to.

Who sees what, where several sites share an installation (`Sight`): an officer sees what their own site's accounts did; what is recorded about a
person of theirs, when they ask for that person by name, also what the installation's operator did; and what happened to the system itself
(`SYSTEM_KINDS`), where no site's account did it and no person is concerned. What was erased no longer says whose it was, and no site is shown it.
"""

import contextlib
import re
import threading
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from urllib.parse import urlencode

import numpy as np

from clinical_ser.api.access import named_in
from clinical_ser.audit.events import (
    MODEL,
    PAYLOADS,
    RECORD,
    AccessDenied,
    Configuration,
    DriftAlarm,
    FederatedRound,
    Flag,
    ModelChange,
    Outcome,
    Service,
    time_in,
)
from clinical_ser.audit.exports.fhir_resources import ACCOUNT, KIND, LOG, RESULT, Maker
from clinical_ser.audit.reading import DatabaseReader
from clinical_ser.audit.records import Record
from clinical_ser.errors import AuditFormatError, AuditTamperedError, ServerError

MAX_COUNT = 500
DEFAULT_COUNT = 50
MAX_LEAVES = 100_000
"""Leaves that a page walks over: 0.2 s at 2 µs each (measured on a log of 100,000)."""
MAX_OPENED = 5_000
"""Records that a page opens: 0.3 s at 55 µs each, likewise."""
MAX_PAGE = 2**53 - 1
"""The largest index that a log has."""
MAX_PARAMETERS = 20
MAX_VALUE = 600
"""Characters; a model's name, the longest there is, has 500, and what stands before it."""
SYSTEM_KINDS = frozenset(each.kind for each in (Service, ModelChange, Configuration, DriftAlarm, FederatedRound, AccessDenied))
"""About the system. Other events of the operator's may tell of a site's persons (a tombstone's reason) or dealings (an export's recipient)."""

OUTCOMES = {"0": Outcome.SUCCESS, "4": Outcome.REFUSED, "8": Outcome.FAILED}
ACTIONS = frozenset("CRUDE")
PERSONAL = frozenset({"patient", "agent"})
"""Parameters that name someone, which an address must not hold."""
_SAME = {"subject": "patient", "subtype": "type", "entity:identifier": "entity", "agent:identifier": "agent"}
FORMATS = frozenset({"json", "application/json", "application/fhir+json", "fhir+json"})
TOTALS = frozenset({"none", "estimate", "accurate"})
_MOMENT = re.compile(
    r"(?P<prefix>eq|ne|gt|lt|ge|le|sa|eb)?(?P<year>[0-9]{4})(?:-(?P<month>[0-9]{2})(?:-(?P<day>[0-9]{2})"
    r"(?:T(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2})(?::(?P<second>[0-9]{2})(?:\.(?P<fraction>[0-9]{1,6}))?)?(?P<zone>Z|[+-][0-9]{2}:[0-9]{2})?)?)?)?"
)
_ID = re.compile(r"[0-9a-f]{32}")
_INDEX = re.compile(r"0|[1-9][0-9]{0,15}")
_RESULT = re.compile(re.escape(RECORD) + "[0-9a-f]{64}")
_BEFORE_ALL, _AFTER_ALL = "", "~"
_ANOMALY = Flag.CLOCK_ANOMALY.value.encode()
_ID_KEY = b'"id":"'
_FIRST_CHUNK, _LARGEST_CHUNK = 64, 4096

Json = dict[str, Any]


class SearchError(ServerError):
    """A search that is not one of those that are answered here; the message says what would be, and nothing of what was asked."""


@dataclass(frozen=True)
class Moments:
    """A stretch of time, as text that compares as time does: from `low` up to, not including, `high`; or all the rest where not `within`."""

    low: str
    high: str
    within: bool = True

    def hold(self, time: str) -> bool:
        """Tell whether a leaf's time is one of them."""
        return (self.low <= time < self.high) is self.within

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a value of FHIR's date parameter: a prefix, and a year, month, day, minute, second or part of one; UTC where no zone is given."""
        found = _MOMENT.fullmatch(text)
        if found is None:
            raise SearchError("date is a day or an instant, as 2026-03-01 or 2026-03-01T09:00:00Z, after eq, ne, gt, ge, lt, le, sa or eb.")
        try:
            low, high = _span(found)
        except ValueError:
            raise SearchError("date names a moment that is in no calendar.") from None
        match found["prefix"]:
            case "gt" | "sa":
                return cls(high, _AFTER_ALL)
            case "ge":
                return cls(low, _AFTER_ALL)
            case "lt" | "eb":
                return cls(_BEFORE_ALL, low)
            case "le":
                return cls(_BEFORE_ALL, high)
            case prefix:
                return cls(low, high, within=prefix != "ne")


def _span(found: re.Match[str]) -> tuple[str, str]:
    """Return the first moment that a date stands for, and the first one after it; ValueError where there is none."""
    number = {name: int(found[name] or ("1" if name in {"month", "day"} else "0")) for name in ("year", "month", "day", "hour", "minute", "second")}
    fraction = found["fraction"] or ""
    try:
        zone = datetime.strptime(found["zone"] or "Z", "%z").tzinfo
        low = datetime(**number, microsecond=int(fraction.ljust(6, "0")), tzinfo=zone).astimezone(UTC)
        if found["day"] is None:
            years, month = divmod(number["month"], 12) if found["month"] else (1, 0)
            high = low.replace(year=low.year + years, month=month + 1)
        else:
            high = low + _precision(found, fraction)
    except OverflowError:
        raise ValueError("beyond the calendar") from None
    return _text(low), _text(high)


def _precision(found: re.Match[str], fraction: str) -> timedelta:
    if found["hour"] is None:
        return timedelta(days=1)
    if found["second"] is None:
        return timedelta(minutes=1)
    return timedelta(microseconds=10 ** (6 - len(fraction)))


def _text(moment: datetime) -> str:
    """Return a moment as leaves have it."""
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class Search:
    """What is asked for. Different parameters all have to hold, and so does one that is given several times; one value with commas is a choice.

    Attributes
    ----------
    kinds, outcomes, actions
        Only such events; None for all.
    dates
        When, by the log's clock.
    entity
        A result (`clinical-ser:result:…`), a model (`clinical-ser:model:…`), or the log and an index (`clinical-ser:log|ORIGIN/17`).
    agent, patient
        An account, and a person as the site names them.
    ids
        Events by their ids.
    count
        How many at most.
    before
        Only records before this one: where the page before ended.
    asked
        The parameters as they were given, without the page, for links.
    """

    kinds: frozenset[str] | None = None
    outcomes: frozenset[Outcome] | None = None
    actions: frozenset[str] | None = None
    dates: tuple[Moments, ...] = ()
    entity: str | None = None
    agent: str | None = None
    patient: str | None = None
    ids: frozenset[str] | None = None
    count: int = DEFAULT_COUNT
    before: int | None = None
    asked: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, pairs: Sequence[tuple[str, str]], *, in_address: bool) -> Self:
        """Read parameters.

        Parameters
        ----------
        pairs
            Names and values, decoded, in their order.
        in_address
            Whether they stand in an address, which ends up in logs: then none may name someone.

        Raises
        ------
        SearchError
            A parameter that is not known, or a value that it does not take.
        """
        if len(pairs) > MAX_PARAMETERS or any(len(value) > MAX_VALUE for _, value in pairs):
            raise SearchError(f"A search has at most {MAX_PARAMETERS} parameters of {MAX_VALUE} characters.")
        given: dict[str, list[str]] = {}
        for name, value in pairs:
            given.setdefault(_SAME.get(name, name), []).append(value)
        if given.keys() - _PARAMETERS:
            known = ", ".join(sorted(_PARAMETERS | {"subject", "subtype"}))
            raise SearchError(f"A parameter is not one of those that are taken here: {known}.")
        if in_address and given.keys() & PERSONAL:
            raise SearchError("Nobody is named in an address, which ends up in logs: send patient and agent as a form to /v1/AuditEvent/_search.")
        if not set(given.pop("_sort", ["-date"])) <= {"-date"}:
            raise SearchError("_sort is -date, newest first, as the log has its records; there is no other order.")
        if not (set(given.pop("_format", ["json"])) <= FORMATS and set(given.pop("_total", ["none"])) <= TOTALS):
            raise SearchError("_format is json, and _total one of none, estimate, accurate.")
        one = {name: _once(name, given[name]) for name in ("entity", "agent", "patient", "_count", "page") if name in given}
        return cls(
            kinds=_choice([_kinds(value) for value in given.get("type", [])]),
            outcomes=_choice([_outcomes(value) for value in given.get("outcome", [])]),
            actions=_choice([_actions(value) for value in given.get("action", [])]),
            dates=tuple(Moments.parse(value) for value in given.get("date", [])),
            entity=_entity(one["entity"]) if "entity" in one else None,
            agent=_name(one["agent"].removeprefix(f"{ACCOUNT}|")) if "agent" in one else None,
            patient=_name(one["patient"]) if "patient" in one else None,
            ids=_choice([_ids(value) for value in given.get("_id", [])]),
            count=_number("_count", one["_count"], 1, MAX_COUNT) if "_count" in one else DEFAULT_COUNT,
            before=_number("page", one["page"], 0, MAX_PAGE) if "page" in one else None,
            asked=tuple((name, value) for name, value in pairs if name != "page"),
        )

    def link(self, address: str, before: int | None = None) -> str:
        """Return the address of this search, or of its page before a record. A form's own fields are left out: they are to be sent again."""
        asked = [] if self.is_personal else [*self.asked]
        query = urlencode([*asked, *([] if before is None else [("page", str(before))])])
        return f"{address}?{query}" if query else address

    @property
    def is_personal(self) -> bool:
        """Whether it names someone."""
        return self.agent is not None or self.patient is not None

    @property
    def floor(self) -> str:
        """The time before which nothing is asked for."""
        return max((moments.low for moments in self.dates if moments.within), default=_BEFORE_ALL)

    def may_fit(self, leaf: bytes) -> bool:
        """Tell by a leaf's bytes, which are in one spelling, whether its event can be one that is asked for."""
        if self.dates and not all(moments.hold(time_in(leaf)) for moments in self.dates):
            return False
        if self.kinds is not None and not any(b'"kind":"%b"' % kind.encode() in leaf for kind in self.kinds):
            return False
        return self.outcomes is None or any(b'"outcome":"%b"' % outcome.value.encode() in leaf for outcome in self.outcomes)

    def fits(self, record: Record, maker: Maker, tenant: str) -> bool:
        """Tell whether an event is one that is asked for."""
        event, payload = record.event, record.payload
        if not all(moments.hold(event.time) for moments in self.dates):
            return False
        if (self.kinds is not None and event.kind not in self.kinds) or (self.outcomes is not None and event.outcome not in self.outcomes):
            return False
        if self.ids is not None and event.id not in self.ids:
            return False
        if self.agent is not None and (payload is None or payload.actor.id not in {self.agent, named_in(tenant, self.agent)}):
            return False
        return self.actions is None or maker.event(record, None).get("action") in self.actions


_PARAMETERS = frozenset({"date", "type", "outcome", "action", "entity", "agent", "patient", "_id", "_count", "_sort", "_format", "_total", "page"})


def _once(name: str, values: list[str]) -> str:
    if len(values) != 1:
        raise SearchError(f"{name} is given once.")
    return values[0]


def _choice(sets: list[frozenset[Any]]) -> frozenset[Any] | None:
    """Return what every one of the values allows."""
    return frozenset.intersection(*sets) if sets else None


def _kinds(value: str) -> frozenset[str]:
    kinds = frozenset(part.removeprefix(f"{KIND}|") for part in value.split(","))
    if kinds - PAYLOADS.keys():
        raise SearchError(f"type is a kind of event, alone or after {KIND}|: {', '.join(sorted(PAYLOADS))}.")
    return kinds


def _outcomes(value: str) -> frozenset[Outcome]:
    parts = value.split(",")
    if not OUTCOMES.keys() >= set(parts):
        raise SearchError("outcome is 0 (success), 4 (refused) or 8 (failed).")
    return frozenset(OUTCOMES[part] for part in parts)


def _actions(value: str) -> frozenset[str]:
    parts = frozenset(value.split(","))
    if not parts <= ACTIONS:
        raise SearchError("action is C, R, U, D or E.")
    return parts


def _ids(value: str) -> frozenset[str]:
    parts = frozenset(value.split(","))
    if not all(_ID.fullmatch(part) for part in parts):
        raise SearchError("_id is an event's id, 32 hex digits.")
    return parts


def _entity(value: str) -> str:
    named = value.removeprefix(f"{RESULT}|")
    is_model = named.startswith(MODEL) and named != MODEL
    if not (_RESULT.fullmatch(named) or is_model or named.startswith(f"{LOG}|")):
        raise SearchError(f"entity is a result ({RECORD}…, 64 hex digits), a model ({MODEL}NAME), or a record of the log ({LOG}|ORIGIN/INDEX).")
    return named


def _name(value: str) -> str:
    if not value.strip():
        raise SearchError("patient and agent name someone: they are not empty.")
    return value


def _number(name: str, value: str, least: int, most: int) -> int:
    if not _INDEX.fullmatch(value) or not least <= int(value) <= most:
        raise SearchError(f"{name} is a number from {least} to {most}.")
    return int(value)


@dataclass(frozen=True)
class Sight:
    """What someone may see of the trail.

    Attributes
    ----------
    tenant
        Their site; "" where the installation has one, and everything is seen.
    """

    tenant: str

    def sees(self, record: Record, *, own_person: bool = False) -> bool:
        """Tell whether a record may be shown; `own_person` where it was found as one about a person of their site."""
        if not self.tenant:
            return True
        if record.payload is None:
            return False
        actor = record.payload.actor.id
        if own_person or actor.startswith(named_in(self.tenant, "")):
            return True
        return "/" not in actor and record.event.subject_tag is None and record.event.kind in SYSTEM_KINDS


class EventIds:
    """Finds events by their ids, which no index of the log has: half of each id is kept in memory, 8 bytes a record, and read on as the log grows.

    The first question reads the log's leaves once, some 0.8 s for a million.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._halves = array("Q")

    def find(self, reader: DatabaseReader, event_id: str) -> int | None:
        """Return an event's index, None where the log has none of this id."""
        with self._lock:
            with _readable(len(self._halves), reader.size):
                for leaf in reader.leaves(len(self._halves), reader.size):
                    self._halves.append(int(_id_in(leaf)[:16], 16))
            places = np.flatnonzero(np.frombuffer(self._halves, dtype=np.uint64) == int(event_id[:16], 16)) if self._halves else ()
        for index in map(int, places):
            for leaf in reader.leaves(index, index + 1):
                if _id_in(leaf) == event_id.encode():
                    return index
        return None


def _id_in(leaf: bytes) -> bytes:
    """Return the id that a leaf says, without reading the rest of it."""
    at = leaf.index(_ID_KEY) + len(_ID_KEY)
    return leaf[at : at + 32]


@contextlib.contextmanager
def _readable(start: int, stop: int) -> Iterator[None]:
    try:
        yield
    except ValueError:
        raise AuditTamperedError(f"Of the records {start} to {stop - 1}, one is no event.") from None


@dataclass(frozen=True)
class Page:
    """What was found.

    Attributes
    ----------
    records
        Newest first.
    before
        Where the next page goes on: with the records before this one; None where there are no more.
    is_cut
        Whether looking ended because enough had been read, and not because the page was full or the log at its end.
    """

    records: tuple[Record, ...]
    before: int | None
    is_cut: bool


class _Walk:
    """Goes over the leaves from the newest on; `rest` says before which record nothing was looked at, 0 where nothing is left."""

    def __init__(self, reader: DatabaseReader, search: Search, start: int) -> None:
        self._reader, self._search = reader, search
        self.rest = start

    def __iter__(self) -> Iterator[int]:
        floor, end, size = self._search.floor, self.rest, _FIRST_CHUNK
        lowest = max(0, end - MAX_LEAVES)
        while end > lowest:
            begin = max(lowest, end - size)
            leaves = list(self._reader.leaves(begin, end))
            if len(leaves) != end - begin:
                raise AuditTamperedError(f"Records are missing between {begin} and {end}.")
            with _readable(begin, end):
                for index in range(end - 1, begin - 1, -1):
                    leaf, self.rest = leaves[index - begin], index
                    # The log flags a record that is earlier than one before it. One without that flag has nothing later before it.
                    if floor and time_in(leaf) < floor and _ANOMALY not in leaf:
                        self.rest = 0
                        return
                    if self._search.may_fit(leaf):
                        yield index
            end, size = begin, min(size * 4, _LARGEST_CHUNK)
        self.rest = end


class _Known:
    """Goes over records that were looked up, from the newest on."""

    rest = 0

    def __init__(self, indices: set[int], start: int) -> None:
        self._indices = sorted((index for index in indices if index < start), reverse=True)

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)


def find(reader: DatabaseReader, search: Search, sight: Sight, ids: EventIds) -> Page:
    """Return a page of the events that are asked for and may be seen, newest first.

    Raises
    ------
    AuditTamperedError, AuditUnavailableError
        The log cannot be read as it was signed.
    """
    start = reader.size if search.before is None else min(search.before, reader.size)
    known = _looked_up(reader, search, sight, ids)
    walk = _Walk(reader, search, start) if known is None else _Known(known, start)
    maker = Maker(reader.origin, None)
    found: list[Record] = []
    candidates = iter(walk)
    for opened, index in enumerate(candidates, start=1):
        record = _opened(reader, index)
        if search.fits(record, maker, sight.tenant) and sight.sees(record, own_person=search.patient is not None):
            found.append(record)
        if len(found) == search.count or opened == MAX_OPENED:
            is_last = next(candidates, None) is None and not walk.rest
            return Page(tuple(found), None if is_last else index, len(found) < search.count and not is_last)
    return Page(tuple(found), walk.rest or None, walk.rest > 0)


def _looked_up(reader: DatabaseReader, search: Search, sight: Sight, ids: EventIds) -> set[int] | None:
    """Return the records that can be meant, where names or ids tell; None where the log has to be walked over."""
    sets: list[set[int]] = []
    if search.patient is not None:
        sets.append(set(reader.named(named_in(sight.tenant, search.patient))))
    if search.entity is not None:
        sets.append(_about(reader, search.entity))
    if search.ids is not None:
        sets.append({index for event_id in search.ids if (index := ids.find(reader, event_id)) is not None})
    return set.intersection(*sets) if sets else None


def _opened(reader: DatabaseReader, index: int) -> Record:
    try:
        return reader.record(index)
    except AuditFormatError:
        raise AuditTamperedError(f"Record {index} cannot be read.") from None


def _about(reader: DatabaseReader, entity: str) -> set[int]:
    if entity.startswith((RECORD, MODEL)):
        return set(reader.about(entity))
    index = entity.removeprefix(f"{LOG}|{reader.origin}/")
    return {int(index)} if _INDEX.fullmatch(index) else set()


def read_event(reader: DatabaseReader, event_id: str, sight: Sight, ids: EventIds) -> Record | None:
    """Return one event by its id, None where there is none that may be seen."""
    index = ids.find(reader, event_id)
    record = None if index is None else _opened(reader, index)
    return record if record is not None and sight.sees(record) else None


def as_bundle(reader: DatabaseReader, page: Page, search: Search, *, base: str, address: str) -> Json:
    """Return a page as a FHIR R4 Bundle of type searchset: AuditEvents with their records and proofs, and the Devices that they name.

    Parameters
    ----------
    reader
        What the page was found in.
    page, search
        What was found, and asked for.
    base
        Of the FHIR server, as `https://hospital.example/v1`: resources are called `BASE/AuditEvent/ID`.
    address
        Where the search was sent.
    """
    maker = Maker(reader.origin, None)
    entries = [_entry(base, maker.event(record, reader.inclusion(record.index)), "match") for record in page.records]
    entries += [_entry(base, device, "include") for device in maker.devices()]
    if page.is_cut:
        text = "Not the whole log was looked through for this page; its next link goes on where it ended."
        entries.append({"resource": outcome_of("information", "incomplete", text), "search": {"mode": "outcome"}})
    links = [{"relation": "self", "url": search.link(address, search.before)}]
    if page.before is not None:
        links.append({"relation": "next", "url": search.link(address, page.before)})
    return {
        "resourceType": "Bundle",
        "type": "searchset",
        # Known without looking on only where all of it is here.
        **({"total": len(page.records)} if search.before is None and page.before is None else {}),
        "link": links,
        # FHIR has no empty lists.
        **({"entry": entries} if entries else {}),
    }


def outcome_of(severity: str, kind: str, text: str) -> Json:
    """Return an OperationOutcome of one issue."""
    return {"resourceType": "OperationOutcome", "issue": [{"severity": severity, "code": kind, "diagnostics": text}]}


def _entry(base: str, resource: Json, mode: str) -> Json:
    return {"fullUrl": f"{base}/{resource['resourceType']}/{resource['id']}", "resource": resource, "search": {"mode": mode}}
