"""The accounting of disclosures that a person may ask for (45 CFR 164.528): to whom their health information was given in six years, what, and why.

The one idea: the accounting follows from the disclosure records that go along with it, so a row that was changed, added or dropped shows. What was
left out is counted by reason and never told.

References
----------
45 CFR 164.528(a)(1) and (b)(1)-(3).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time
from pathlib import Path
from typing import Literal, NoReturn

from pydantic import Field

from clinical_ser.audit.events import Disclosure, Event, Flag, Outcome, Purpose, canonical
from clinical_ser.audit.exports.fhir import DEVICES, EVENTS
from clinical_ser.audit.exports.fhir_resources import Maker
from clinical_ser.audit.exports.packet import Findings, Packet, PacketWriter
from clinical_ser.audit.exports.shown import (
    JSON_TYPE,
    RECORDS,
    How,
    Shown,
    about,
    add_proofs,
    add_records,
    check_head,
    check_log,
    check_names,
    check_proofs,
    check_same,
    read_document,
    read_records,
    readable,
    record_at,
    show,
)
from clinical_ser.audit.exports.table import CSV_TYPE, csv_lines, escape
from clinical_ser.audit.notes import NoteSigner
from clinical_ser.audit.records import LogReader, Record
from clinical_ser.errors import AuditKeyError, AuditTamperedError, InvalidValueError
from clinical_ser.strict import Strict

FORM = "accounting"
SCHEMA: Literal["clinical-ser/audit-accounting/1"] = "clinical-ser/audit-accounting/1"
DOCUMENT, TABLE = "accounting.json", "accounting.csv"

YEARS = 6
"""45 CFR 164.528(a)(1): the six years prior to the date on which the accounting is requested."""

NOT_CLAIMED = (
    "That every disclosure was recorded: it holds what was recorded in this log, and other systems of the site have accountings of their own.",
    "That nothing was left out: the site's signature stands for that; whoever has the log can check it, whoever has only this folder cannot.",
    "That a disclosure took place at the time given: that is when it was recorded, by the clock of the site's machine.",
    "That a suspension under 45 CFR 164.528(a)(2) was looked at: the site has to, before it hands this out.",
)
_COLUMNS = ("date (UTC)", "recipient", "address", "what was disclosed", "purpose", "times", "last (UTC)", "records", "note")


class Entry(Strict):
    """One disclosure, or several to one recipient for one purpose, summarised as 164.528(b)(3) allows."""

    date: str
    """Of the (first) disclosure, UTC."""
    recipient: str
    address: str | None
    """None where the site did not know it."""
    description: str
    purpose: str
    purpose_code: Purpose
    times: int = Field(ge=1)
    last: str
    """Date of the last disclosure; the same as `date` of a single one."""
    records: tuple[int, ...] = Field(min_length=1)
    clock_in_doubt: bool
    """The machine's clock had gone back, or astray, when one of these was recorded."""


class ErasedEntry(Strict):
    """A disclosure record whose content was destroyed: that there was one, and when, is all that is left."""

    record: int
    date: str


class LeftOut(Strict):
    """How many disclosure records are not in the accounting, by reason."""

    before_period: int = Field(ge=0)
    after_request: int = Field(ge=0)
    amended: int = Field(ge=0)
    """Replaced by a later record of the same disclosure."""
    not_carried_out: int = Field(ge=0)
    not_accountable: dict[Purpose, int]
    """Excepted by 164.528(a)(1), by purpose of use (HL7 v3-ActReason): treatment TREAT, payment HPAYMT, operations HOPERAT, and others."""


class Accounting(Strict):
    """`accounting.json`."""

    schema_id: Literal["clinical-ser/audit-accounting/1"] = Field(default=SCHEMA, alias="schema")
    clause: Literal["45 CFR 164.528"] = "45 CFR 164.528"
    subject: str
    origin: str
    size: int
    """Records in the log when it was made."""
    requested: datetime
    since: datetime
    """The accounting is of disclosures from then until `requested`, both in it."""
    summarised: bool
    staff: bool
    """Whether the records say who of the staff made each disclosure."""
    records_of_subject: int
    disclosures: tuple[Entry, ...]
    erased: tuple[ErasedEntry, ...]
    erased_records: tuple[int, ...]
    """All disclosure records about the subject whose content was destroyed when this was made, whatever their date."""
    left_out: LeftOut


def export_accounting(
    reader: LogReader,
    target: Path,
    *,
    signers: Sequence[NoteSigner],
    subject: str,
    requested: datetime,
    since: datetime | None = None,
    summarise: bool = False,
    staff: bool = False,
    created: datetime | None = None,
) -> str:
    """Write one subject's accounting of disclosures.

    Parameters
    ----------
    reader
        The log; it must be able to open the subject's disclosure records.
    target
        The folder to be.
    signers
        The log's keys.
    subject
        As the log knows them. One that it does not know gets an accounting without a row, which says that no record is about them.
    requested
        When the accounting was asked for, with its time zone.
    since
        A shorter period than six years, where the person asked for one ((a)(3)).
    summarise
        Whether disclosures to one recipient for one purpose become one row with number, first and last ((b)(3)). The clause allows that for
        purposes under 164.502(a)(2)(ii) and 164.512; whether these are such, the site has to know.
    staff
        Whether to hand out who made each disclosure; the rule does not ask for it. Only then can the reader check contents against leaves.
    created
        When it is made; now, unless the same bytes are to come out twice.

    Returns
    -------
    str
        Digest of the export's manifest.

    Raises
    ------
    InvalidValueError
        A time has no zone, or the period is not within the six years before the request.
    AuditKeyError
        A disclosure record of the subject cannot be opened.
    """
    start = _period(requested, since)
    found = _collect(reader, subject, start, requested.astimezone(UTC), _how(staff=staff))
    document = _account(found, reader, subject=subject, since=start, requested=requested.astimezone(UTC), summarise=summarise, staff=staff)
    checked = [(one, one.event) for one in found.shown]
    writer = PacketWriter.of_whole(target, form=FORM, reader=reader, signers=signers, not_claimed=NOT_CLAIMED, created=created)
    with writer:
        writer.add(DOCUMENT, readable(document), JSON_TYPE, SCHEMA)
        writer.add(TABLE, _table(document), CSV_TYPE)
        for name, content in _fhir(document, checked).items():
            writer.add(name, content, "application/fhir+ndjson")
        add_records(writer, found.shown, SCHEMA)
        add_proofs(writer, found.shown, reader.checkpoint)
    return writer.digest


def verify_accounting(packet: Packet, reader: LogReader | None = None) -> Findings:
    """Check an accounting: every record against the checkpoint, and every other file against the records.

    Parameters
    ----------
    packet
        The export, its envelope checked.
    reader
        The log, for whoever has it: it tells whether anything was left out, and what is behind payloads without staff.

    Raises
    ------
    AuditFormatError, AuditTamperedError
        What is wrong; records are named by their index.
    """
    document = read_document(packet, DOCUMENT, Accounting)
    check_head(packet, DOCUMENT, document.origin, document.size)
    if document.since > document.requested:
        raise AuditTamperedError(f"{DOCUMENT} is of a period that ends before it begins.")
    checked = list(read_records(packet, document.subject))
    _check_records(document, checked)
    entries, erased = _entries(checked, summarise=document.summarised)
    if (entries, erased) != (document.disclosures, document.erased):
        raise AuditTamperedError(f"{DOCUMENT} is not what follows from the records in the export.")
    check_same(packet, TABLE, _table(document))
    resources = _fhir(document, checked)
    for name, content in resources.items():
        check_same(packet, name, content)
    shown = [one for one, _ in checked]
    check_names(packet, {DOCUMENT, TABLE, RECORDS, *resources, *check_proofs(packet, shown)})
    done = [f"{len(shown)} records are in the log that the checkpoint signs.", "Accounting, table and FHIR resources follow from these records."]
    open_ends = [] if document.staff else ["What the records say is without staff, so only whoever has the log can compare it with the leaves."]
    if reader is None:
        open_ends.append("Whether anything was left out, only whoever has the log can check.")
    else:
        _compare(document, shown, packet, reader, done, open_ends)
    return Findings(len(shown), tuple(done), tuple(open_ends))


@dataclass(frozen=True)
class _Found:
    shown: tuple[Shown, ...]
    left_out: LeftOut
    records: int
    erased: tuple[int, ...]


def _how(*, staff: bool) -> How:
    return "whole" if staff else "without_staff"


def _period(requested: datetime, since: datetime | None) -> datetime:
    """Return the start of the period in UTC: midnight of the day six years before, where the request was made, unless a later one was asked for."""
    if requested.tzinfo is None or (since is not None and since.tzinfo is None):
        raise InvalidValueError("the time of a request", "one without a time zone", "a time with its zone, as 2026-03-01T09:00:00+01:00")
    earliest = _years_before(requested)
    if since is None:
        return earliest
    start = since.astimezone(UTC)
    if not earliest <= start <= requested.astimezone(UTC):
        raise InvalidValueError("since", "a time outside the period", f"one within the {YEARS} years before the request (45 CFR 164.528(a)(3))")
    return start


def _years_before(requested: datetime) -> datetime:
    day = requested.date()
    try:
        first = day.replace(year=day.year - YEARS)
    except ValueError:  # 29 February
        first = day.replace(year=day.year - YEARS, day=28)
    return datetime.combine(first, time.min, requested.tzinfo).astimezone(UTC)


def _collect(reader: LogReader, subject: str, since: datetime, requested: datetime, how: How, size: int | None = None) -> _Found:
    """Find what belongs into the accounting, among the first `size` records of the log."""
    named = about(reader, subject, size)
    records = {index: record for index in named if (record := record_at(reader, index)).event.kind == Disclosure.kind}
    older = {_amends(record, records) for record in records.values()} - {None}
    reasons: Counter[str] = Counter()
    excepted: Counter[Purpose] = Counter()
    shown: dict[int, Shown] = {}
    for index, record in records.items():
        reason = "amended" if index in older else _reason(record, _chain(record, records)[0].event.moment, since, requested)
        if reason == "not_accountable":
            excepted[record.event.purpose] += 1
        elif reason is not None:
            reasons[reason] += 1
        else:
            shown.update({each.index: show(reader, each, "leaf") for each in _chain(record, records)})
            shown[index] = show(reader, record, how, subject)
    left_out = LeftOut.model_validate({**_NONE_LEFT_OUT, **reasons, "not_accountable": dict(sorted(excepted.items()))})
    erased = tuple(index for index, record in records.items() if record.state == "erased")
    return _Found(tuple(shown[index] for index in sorted(shown)), left_out, len(named), erased)


_NONE_LEFT_OUT = {"before_period": 0, "after_request": 0, "amended": 0, "not_carried_out": 0}


def _amends(record: Record, records: dict[int, Record]) -> int | None:
    """Return which of the subject's disclosure records this one replaces; an attempt that failed replaces none."""
    older = record.event.supersedes
    return older if older in records and older < record.index and record.event.outcome is Outcome.SUCCESS else None


def _chain(record: Record, records: dict[int, Record]) -> list[Record]:
    """Return the records of one disclosure, the first first."""
    chain = [record]
    while (older := _amends(chain[0], records)) is not None:
        chain.insert(0, records[older])
    return chain


def _reason(record: Record, moment: datetime, since: datetime, requested: datetime) -> str | None:
    """Return why a disclosure is not accounted for, None if it is. Of an erased one nothing is known but when it was."""
    if record.event.outcome is not Outcome.SUCCESS:
        return "not_carried_out"
    if moment < since:
        return "before_period"
    if moment > requested:
        return "after_request"
    if record.state == "erased":
        return None
    if not isinstance(record.payload, Disclosure):
        raise AuditKeyError(f"Record {record.index} is a disclosure of this subject and cannot be opened here: the accounting would lack it.")
    return None if record.payload.accountable else "not_accountable"


def _account(found: _Found, reader: LogReader, *, subject: str, since: datetime, requested: datetime, summarise: bool, staff: bool) -> Accounting:
    entries, erased = _entries([(one, one.event) for one in found.shown], summarise=summarise)
    return Accounting(
        subject=subject,
        origin=reader.origin,
        size=reader.size,
        requested=requested,
        since=since,
        summarised=summarise,
        staff=staff,
        records_of_subject=found.records,
        disclosures=entries,
        erased=erased,
        erased_records=found.erased,
        left_out=found.left_out,
    )


def _entries(checked: Sequence[tuple[Shown, Event]], *, summarise: bool) -> tuple[tuple[Entry, ...], tuple[ErasedEntry, ...]]:
    """Return the rows, in the order of their dates; the accounting is nothing but these."""
    events = {one.index: event for one, event in checked}
    erased = [ErasedEntry(record=one.index, date=_date(event, events)) for one, event in checked if one.state == "erased"]
    single = [_entry(one, content, event, events) for one, event in checked if isinstance(content := one.content, Disclosure)]
    rows = _summarised(single) if summarise else single
    return (
        tuple(sorted(rows, key=lambda entry: (entry.date, entry.records))),
        tuple(sorted(erased, key=lambda entry: (entry.date, entry.record))),
    )


def _date(event: Event, events: dict[int, Event]) -> str:
    """Return when the disclosure was recorded first: an amendment does not move its date."""
    while event.supersedes is not None and event.supersedes in events:
        event = events[event.supersedes]
    return event.time


def _entry(one: Shown, content: Disclosure, event: Event, events: dict[int, Event]) -> Entry:
    date = _date(event, events)
    return Entry(
        date=date,
        recipient=content.recipient,
        address=content.recipient_address,
        description=content.description,
        purpose=content.purpose_text,
        purpose_code=event.purpose,
        times=1,
        last=date,
        records=(one.index,),
        clock_in_doubt=Flag.CLOCK_ANOMALY in event.flags,
    )


def _summarised(entries: Iterable[Entry]) -> list[Entry]:
    """Put disclosures of the same to the same recipient for a single purpose into one row each (164.528(b)(3))."""
    groups: dict[tuple[object, ...], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.recipient, entry.address, entry.description, entry.purpose, entry.purpose_code), []).append(entry)
    return [_one_row(sorted(group, key=lambda entry: (entry.date, entry.records))) for group in groups.values()]


def _one_row(group: list[Entry]) -> Entry:
    return group[0].model_copy(
        update={
            "times": len(group),
            "last": group[-1].date,
            "records": tuple(sorted(index for entry in group for index in entry.records)),
            "clock_in_doubt": any(entry.clock_in_doubt for entry in group),
        }
    )


def _table(document: Accounting) -> bytes:
    """Return the accounting as CSV that a spreadsheet shows and does not run (`table`)."""
    rows: list[list[str]] = []
    for entry in document.disclosures:
        note = "the clock was in doubt" if entry.clock_in_doubt else ""
        records = " ".join(map(str, entry.records))
        cells = (entry.date, entry.recipient, entry.address or "not known", entry.description, entry.purpose, entry.times, entry.last, records, note)
        rows.append([escape(cell) for cell in cells])
    note = "a disclosure whose content was erased"
    rows.extend([gone.date, "", "", "", "", "1", gone.date, str(gone.record), note] for gone in document.erased)
    return b"".join(csv_lines(_COLUMNS, rows))


def _fhir(document: Accounting, checked: Iterable[tuple[Shown, Event]]) -> dict[str, bytes]:
    """Return one AuditEvent a disclosure, never summarised, in BALP's PrivacyDisclosure.Source, and the devices that they name."""
    maker = Maker(document.origin, document.subject)
    told = [maker.event(one.record(), one.path) for one, _ in checked if one.content is not None]
    return {name: b"".join(canonical(each) + b"\n" for each in resources) for name, resources in ((EVENTS, told), (DEVICES, maker.devices()))}


def _check_records(document: Accounting, checked: Sequence[tuple[Shown, Event]]) -> None:
    """Make sure that each record belongs into this accounting, as far as the record itself tells."""
    events = {one.index: event for one, event in checked}
    amended = {event.supersedes for event in events.values()}
    for one, event in checked:
        date = datetime.fromisoformat(_date(event, events))
        fits = event.kind == Disclosure.kind and document.since <= date <= document.requested
        content = one.content
        if content is not None:
            fits &= isinstance(content, Disclosure) and content.accountable and event.outcome is Outcome.SUCCESS
        if not fits or (one.state == "leaf") != (one.index in amended):
            raise AuditTamperedError(f"Record {one.index} does not belong into this accounting.")
        if one.state in {"whole", "without_staff"} and one.state != _how(staff=document.staff):
            raise AuditTamperedError(f"Record {one.index} shows more, or less, than the accounting says.")


def _compare(document: Accounting, shown: list[Shown], packet: Packet, reader: LogReader, done: list[str], open_ends: list[str]) -> None:
    """Compare with the log itself, which may have grown, and lost payloads to erasure, since."""
    check_log(packet, reader)
    now = _collect(reader, document.subject, document.since, document.requested, _how(staff=document.staff), size=document.size)
    gone = any(one.state in {"whole", "without_staff"} and record_at(reader, one.index).state == "erased" for one in shown)
    # A subject who was erased is no longer found by name at all.
    if gone or now.erased != document.erased_records or (now.records == 0 and document.records_of_subject > 0 and not shown):
        open_ends.append("Records of the subject were erased since, so whether anything was left out can no longer be checked.")
        return
    expected = [one.without_proof() for one in now.shown]
    found = [one.without_proof() for one in shown]
    if expected != found:
        _name_first_difference(expected, found)
    if (now.left_out, now.records) != (document.left_out, document.records_of_subject):
        raise AuditTamperedError(f"{DOCUMENT} counts other records than the log has.")
    done.append("The log has no further disclosure that belongs into it, and says of each what the accounting says.")


def _name_first_difference(expected: list[Shown], found: list[Shown]) -> NoReturn:
    ours, theirs = {one.index: one for one in expected}, {one.index: one for one in found}
    index = min(index for index in ours.keys() | theirs.keys() if ours.get(index) != theirs.get(index))
    what = "is missing from the accounting" if index not in theirs else "is not what the log has, or does not belong into the accounting"
    raise AuditTamperedError(f"Record {index} {what}.")
