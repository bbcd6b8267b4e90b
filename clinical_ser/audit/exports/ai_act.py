"""The log extract that the AI Act's logging articles are about: the leaves of a period, all of them, each with its proof, and what follows from them.

The one idea: leaves hold nothing of a person, so the extract need not choose among them. It is every record from one index to another, and a reader
sees that none is missing.

References
----------
Regulation (EU) 2024/1689, Art. 12(1)-(2), 19(1), 26(6), 50(3). Art. 12(3) lists a minimum for systems of Annex III point 1(a), remote biometric
identification, and no other.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import Field

from clinical_ser.audit.events import Event, Flag, Hex16, Hex32, ModelChange, Outcome, Payload, Service
from clinical_ser.audit.exports.packet import Findings, Packet, PacketWriter
from clinical_ser.audit.exports.shown import (
    JSON_TYPE,
    RECORDS,
    Shown,
    add_records,
    check_head,
    check_log,
    check_names,
    read_document,
    read_records,
    readable,
    show,
)
from clinical_ser.audit.notes import NoteSigner
from clinical_ser.audit.records import LogReader
from clinical_ser.errors import AuditTamperedError, InvalidValueError
from clinical_ser.strict import Strict

FORM = "ai-act"
SCHEMA: Literal["clinical-ser/audit-ai-act/1"] = "clinical-ser/audit-ai-act/1"
DOCUMENT = "ai-act.json"

OPENED = frozenset({"service", "model", "drift_alarm"})
"""Kinds about the system and not about a person, whose payloads `details` opens."""

RETENTION = (
    "Regulation (EU) 2024/1689, Art. 19(1) and 26(6): logs are kept for a period appropriate to the intended purpose, at least six months, unless "
    "other law provides otherwise. The leaves in this extract are never deleted by the software that keeps the log; what it can destroy is payloads "
    "(GDPR Art. 17), and each such erasure is itself a record. That the log as a whole is kept that long is for its keeper to see to."
)
BIOMETRIC = (
    "Art. 12(3) lists what logs have to hold at a minimum for systems of Annex III point 1(a), remote biometric identification. This software "
    "identifies nobody and compares no voice with a database of persons, so the list does not apply to it."
)
NOT_CLAIMED = (
    "That the system conforms to Regulation (EU) 2024/1689, or that it is, or is not, a high-risk system: that is for provider and authorities.",
    "That the system was not used outside the log: an extract shows what was recorded.",
    "That times are right: they are of the machine's clock; the order of the records is what counts. Records flagged clock_anomaly tell of doubt.",
    "That a flag means a risk, or no flag none: risk_signal marks what a reader should look at under Art. 12(2)(a).",
)


class Use(Strict):
    """A period of use: what one run of the software recorded, from its first record in the extract to its last."""

    run: Hex16
    first: str
    last: str
    first_record: int
    last_record: int
    records: int


class ServiceNote(Strict):
    """The service started, stopped or came back; only with `details`."""

    record: int
    time: str
    action: Literal["started", "stopped", "recovered"]
    component: str


class InForce(Strict):
    """A model that was made one that answers. Its threshold is part of the bundle, so the digest pins both.

    A site may have several at once, for different tasks: which one a change replaced, only its payload says. From when to when a model did answer
    is under `answers`, details or not.
    """

    model: Hex32
    name: str | None
    """Only with `details`."""
    since: str
    until: str | None
    """When one of the same name took its place; None where none did, or without `details`."""
    record: int


class Answers(Strict):
    """What a model did in the extract."""

    model: Hex32 | None
    inferences: int
    quality_rejections: int
    failed: int
    first: str
    last: str


class Flagged(Strict):
    """A record that a reader of the log should look at."""

    record: int
    time: str
    kind: str
    outcome: Outcome
    flags: tuple[Flag, ...]


class Extract(Strict):
    """`ai-act.json`."""

    schema_id: Literal["clinical-ser/audit-ai-act/1"] = Field(default=SCHEMA, alias="schema")
    clauses: tuple[str, ...] = ("Art. 12(1)", "Art. 12(2)", "Art. 19(1)", "Art. 26(6)", "Art. 50(3)")
    origin: str
    size: int
    since: datetime | None
    until: datetime | None
    details: bool
    first: int | None
    last: int | None
    """The range of records in the extract, without a gap; None where none is of the period."""
    by_kind: dict[str, int]
    periods_of_use: tuple[Use, ...]
    service: tuple[ServiceNote, ...]
    in_force: tuple[InForce, ...]
    answers: tuple[Answers, ...]
    reviews: int
    overridden: int
    """Reviews in which a person decided against the answer: they are flagged risk_signal."""
    drift_alarms: int
    notices: int
    """Persons were told before (Art. 50(3))."""
    flagged: tuple[Flagged, ...]
    retention: str = RETENTION
    art_12_3: str = BIOMETRIC


def export_ai_act(
    reader: LogReader,
    target: Path,
    *,
    signers: Sequence[NoteSigner],
    since: datetime | None = None,
    until: datetime | None = None,
    details: bool = False,
    created: datetime | None = None,
) -> str:
    """Write the log extract of a period.

    Parameters
    ----------
    reader
        The log.
    target
        The folder to be.
    signers
        The log's keys.
    since, until
        The period, both ends in it, with time zones. The extract goes from the first record of it to the last, with all between them, even one
        whose time the clock put elsewhere.
    details
        Whether to open the payloads of records about the system (`OPENED`): they say what started and stopped, which model replaced which, and
        what drifted, and may name staff who acted. Never those about persons screened.
    created
        When it is made; now, unless the same bytes are to come out twice.

    Returns
    -------
    str
        Digest of the export's manifest.

    Raises
    ------
    InvalidValueError
        A time has no zone, or the period ends before it begins.
    AuditKeyError
        A payload that `details` wants cannot be opened.
    """
    _check_period(since, until)
    first, last = _range(reader, since, until)
    tally = _Tally()
    writer = PacketWriter(target, form=FORM, reader=reader, signers=signers, first=first, last=last, not_claimed=NOT_CLAIMED, created=created)
    with writer:
        add_records(writer, _taken(_shown(reader, first, last, details=details), tally), SCHEMA)
        document = tally.extract(origin=reader.origin, size=reader.size, since=since, until=until, details=details, first=first, last=last)
        writer.add(DOCUMENT, readable(document), JSON_TYPE, SCHEMA)
    return writer.digest


def verify_ai_act(packet: Packet, reader: LogReader | None = None) -> Findings:
    """Check an extract: every leaf against the checkpoint, that none of the range is missing, and that the summary follows from them.

    Parameters
    ----------
    packet
        The export, its envelope checked.
    reader
        The log, for whoever has it: it tells whether the range is the whole period.

    Raises
    ------
    AuditFormatError, AuditTamperedError
        What is wrong; records are named by their index.
    """
    document = read_document(packet, DOCUMENT, Extract)
    manifest = packet.manifest
    check_head(packet, DOCUMENT, document.origin, document.size)
    if (document.first, document.last) != (manifest.first, manifest.last):
        raise AuditTamperedError(f"{DOCUMENT} is of another range than the manifest.")
    check_names(packet, {DOCUMENT, RECORDS})
    tally, expected = _Tally(), document.first or 0
    for shown, event in read_records(packet):
        if shown.index != expected:
            raise AuditTamperedError(f"Record {expected} is missing.")
        if shown.state not in ({"whole", "erased"} if document.details and event.kind in OPENED else {"leaf"}):
            raise AuditTamperedError(f"Record {shown.index} shows more, or less, than the extract says.")
        tally.take(shown, event)
        expected += 1
    end = 0 if document.last is None else document.last + 1
    if expected != end:
        raise AuditTamperedError(f"Record {min(expected, end)} is missing, or one too many.")
    if tally.extract(**_head(document)) != document:
        raise AuditTamperedError(f"{DOCUMENT} is not what follows from the records in the export.")
    done = [f"{tally.records} records, without a gap, are in the log that the checkpoint signs.", "The summary follows from these records."]
    if reader is None:
        return Findings(tally.records, tuple(done), ("Whether the range is the whole period: only whoever has the log can tell.",))
    check_log(packet, reader)
    if _range(reader, document.since, document.until, document.size) != (document.first, document.last):
        raise AuditTamperedError("The log has other records of the period than the extract.")
    return Findings(tally.records, (*done, "The range is the whole period."))


def _check_period(since: datetime | None, until: datetime | None) -> None:
    if any(moment is not None and moment.tzinfo is None for moment in (since, until)):
        raise InvalidValueError("a time", "one without a time zone", "a time with its zone, as 2026-03-01T09:00:00+01:00")
    if since is not None and until is not None and since > until:
        raise InvalidValueError("the period", "one that ends before it begins", "since before until")


def _range(reader: LogReader, since: datetime | None, until: datetime | None, size: int | None = None) -> tuple[int | None, int | None]:
    first: int | None = None
    last: int | None = None
    for record in reader.records(0, size):
        moment = record.event.moment
        if (since is None or moment >= since) and (until is None or moment <= until):
            first = record.index if first is None else first
            last = record.index
    return first, last


def _shown(reader: LogReader, first: int | None, last: int | None, *, details: bool) -> Iterator[Shown]:
    if first is None or last is None:
        return
    for record in reader.records(first, last + 1):
        yield show(reader, record, "whole" if details and record.event.kind in OPENED else "leaf")


def _taken(shown: Iterable[Shown], tally: "_Tally") -> Iterator[Shown]:
    for one in shown:
        tally.take(one, one.event)
        yield one


def _head(document: Extract) -> dict[str, object]:
    return {name: getattr(document, name) for name in ("origin", "size", "since", "until", "details", "first", "last")}


class _Tally:
    """Takes records one by one and holds what the summary says; flagged ones and changes of the model are few, the others only counted."""

    def __init__(self) -> None:
        self.records = 0
        self._kinds: Counter[str] = Counter()
        self._uses: dict[str, Use] = {}
        self._service: list[ServiceNote] = []
        self._in_force: list[InForce] = []
        self._answers: dict[str | None, Answers] = {}
        self._overridden = 0
        self._flagged: list[Flagged] = []

    def take(self, shown: Shown, event: Event) -> None:
        self.records += 1
        self._kinds[event.kind] += 1
        self._take_use(shown.index, event)
        if event.kind in {"inference", "quality_rejection"}:
            self._take_answer(event)
        if event.kind == ModelChange.kind:
            self._take_model(shown, event)
        if event.kind == "review" and Flag.RISK_SIGNAL in event.flags:
            self._overridden += 1
        if event.flags:
            self._flagged.append(Flagged(record=shown.index, time=event.time, kind=event.kind, outcome=event.outcome, flags=event.flags))
        if isinstance(content := shown.content, Service):
            self._service.append(ServiceNote(record=shown.index, time=event.time, action=content.action, component=content.component))

    def _take_use(self, index: int, event: Event) -> None:
        known = self._uses.get(event.run)
        if known is None:
            self._uses[event.run] = Use(run=event.run, first=event.time, last=event.time, first_record=index, last_record=index, records=1)
        else:
            self._uses[event.run] = known.model_copy(update={"last": event.time, "last_record": index, "records": known.records + 1})

    def _take_answer(self, event: Event) -> None:
        zero = Answers(model=event.model, inferences=0, quality_rejections=0, failed=0, first=event.time, last=event.time)
        known = self._answers.get(event.model, zero)
        counted = "failed" if event.outcome is Outcome.FAILED else "inferences" if event.kind == "inference" else "quality_rejections"
        changes = {counted: getattr(known, counted) + 1, "first": min(known.first, event.time), "last": max(known.last, event.time)}
        self._answers[event.model] = known.model_copy(update=changes)

    def _take_model(self, shown: Shown, event: Event) -> None:
        model = _now_answers(shown.content, event)
        if model is None:
            return
        name = content.name if isinstance(content := shown.content, ModelChange) else None
        if name is not None:
            self._in_force = [_ended(each, event.time) if (each.name, each.until) == (name, None) else each for each in self._in_force]
        self._in_force.append(InForce(model=model, name=name, since=event.time, until=None, record=shown.index))

    def extract(self, **head: object) -> Extract:
        return Extract.model_validate(
            {
                **head,
                "by_kind": dict(sorted(self._kinds.items())),
                "periods_of_use": tuple(self._uses.values()),
                "service": tuple(self._service),
                "in_force": tuple(self._in_force),
                "answers": tuple(self._answers[model] for model in sorted(self._answers, key=lambda model: model or "")),
                "reviews": self._kinds["review"],
                "overridden": self._overridden,
                "drift_alarms": self._kinds["drift_alarm"],
                "notices": self._kinds["notice"],
                "flagged": tuple(self._flagged),
            }
        )


def _ended(one: InForce, time: str) -> InForce:
    return one.model_copy(update={"until": time})


def _now_answers(content: Payload | None, event: Event) -> str | None:
    """Return the model that a change made the one that answers; None for a change that was refused."""
    if event.outcome is not Outcome.SUCCESS:
        return None
    if isinstance(content, ModelChange):
        return None if content.action == "refused" else content.new
    return event.model
