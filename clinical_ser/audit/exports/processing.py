"""The record of processing activities (GDPR Art. 30): what the site says of itself in one TOML file, and what the log can state by counting.

The one idea: the two are kept apart. What a person has to say is refused while it is blank; what the log says is only numbers, of nobody.

References
----------
Regulation (EU) 2016/679, Art. 30(1)(a)-(g).
"""

import hashlib
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError

from clinical_ser.audit.events import Disclosure, Event, Hex32, ModelChange, Purpose
from clinical_ser.audit.exports.packet import Findings, Packet, PacketWriter
from clinical_ser.audit.exports.shown import JSON_TYPE, TEXT_TYPE, check_head, check_log, check_names, check_same, printable, read_document, readable
from clinical_ser.audit.notes import NoteSigner
from clinical_ser.audit.records import LogReader, Record
from clinical_ser.errors import AuditTamperedError, InvalidValueError
from clinical_ser.strict import Strict

FORM = "processing"
SCHEMA: Literal["clinical-ser/audit-processing/1"] = "clinical-ser/audit-processing/1"
DOCUMENT, PAGE = "processing.json", "processing.txt"

MAX_FILE_BYTES = 256 * 1024
MIN_REASON = 10
"""Letters and digits behind `not applicable:`; as on a model's card."""

NOT_CLAIMED = (
    "That the record is complete or right: what the site says of itself is copied as it was given, and nobody here checked it.",
    "That processing outside this software is in it.",
    "That the counts are of persons: they are of records, and a person may have several.",
)
_EMPTY = frozenset({"n/a", "na", "n.a", "none", "null", "tbd", "tba", "todo", "to do", "pending", "unknown", "not applicable", "xxx", "-", "?"})


def _said(text: str) -> str:
    words = " ".join(text.split()).rstrip(".:; ").lower()
    if not words or words in _EMPTY:
        raise ValueError("is blank")
    if words.startswith("not applicable") and sum(map(str.isalnum, words.removeprefix("not applicable"))) < MIN_REASON:
        raise ValueError("says 'not applicable' without a reason")
    return text.strip()


Said = Annotated[str, Field(max_length=4000), AfterValidator(_said)]
"""Text that says something; `not applicable: REASON` does."""


class Party(Strict):
    """Someone with a name and a way to reach them."""

    name: Said
    contact: Said


class DataCategory(Strict):
    """What is processed about whom, and for how long ((c) and (f))."""

    data: Said
    subjects: Said
    retention: Said


class RecipientCategory(Strict):
    """Who receives it ((d)): several names that stand in the log may belong to one category."""

    category: Said
    names: tuple[Said, ...] = ()
    """Recipients as disclosure records name them."""


class Transfer(Strict):
    """To a third country or an international organisation ((e))."""

    to: Said
    safeguards: Said


class SiteRecord(Strict):
    """What the site says of itself: the TOML file."""

    controller: Party
    joint_controllers: Said
    representative: Said
    """Of the controller; these two and `transfers` are `not applicable: REASON` at many sites."""
    data_protection_officer: Party
    purposes: tuple[Said, ...] = Field(min_length=1)
    data: tuple[DataCategory, ...] = Field(min_length=1)
    recipients: tuple[RecipientCategory, ...] = Field(min_length=1)
    transfers: Said | tuple[Transfer, ...]
    security: tuple[Said, ...] = Field(min_length=1)
    complaints: Said
    """The supervisory authority; Art. 30 does not ask for it, but Art. 15(1)(f) does, and the access package takes it from here."""


class ModelUse(Strict):
    """A model as the log's leaves know it."""

    model: Hex32
    first_used: str | None
    last_used: str | None
    """Of inferences and refusals of recordings, UTC; None where there were none."""
    activated: tuple[str, ...]
    """When it was made the one that answers."""
    inferences: int
    quality_rejections: int


class Counts(Strict):
    """What the log states by counting, of a range of its records."""

    first: str | None
    last: str | None
    """Time of the first and the last record counted, UTC."""
    records: int
    by_kind: dict[str, int]
    models: tuple[ModelUse, ...]
    erasures: dict[str, int]
    """By outcome; `refused` are those under a legal hold."""
    disclosures: dict[str, int]
    """By recipient category of the site's record; `other` are to names in none of them, `not readable` are sealed or erased."""
    disclosures_by_purpose: dict[Purpose, int]
    notices: int
    reviews: int


class Processing(Strict):
    """`processing.json`."""

    schema_id: Literal["clinical-ser/audit-processing/1"] = Field(default=SCHEMA, alias="schema")
    clause: Literal["Regulation (EU) 2016/679 Art. 30(1)"] = "Regulation (EU) 2016/679 Art. 30(1)"
    origin: str
    size: int
    since: datetime | None
    until: datetime | None
    source_sha256: Hex32
    """Of the site's TOML file."""
    site: SiteRecord
    log: Counts


def read_site_record(content: bytes) -> SiteRecord:
    """Read what the site says of itself.

    Raises
    ------
    InvalidValueError
        The file is too large or no TOML, or a field is missing, blank, a stand-in ("TBD") or unknown: each is named, none is quoted.
    """
    if len(content) > MAX_FILE_BYTES:
        raise InvalidValueError("the record of processing", "a file that is too large", f"at most {MAX_FILE_BYTES:,} bytes")
    try:
        given = tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):  # no UTF-8, no TOML
        raise InvalidValueError("the record of processing", "a file that is not TOML", "what `processing_template` gives, filled in") from None
    try:
        return SiteRecord.model_validate(given)
    except ValidationError as error:
        names = dict.fromkeys(_field(fault["loc"]) for fault in error.errors())
        wanted = "each filled in; where there is nothing to say, 'not applicable: REASON'"
        raise InvalidValueError("the record of processing", f"fields that are blank, missing or unknown: {', '.join(names)}", wanted) from None


def processing_template() -> str:
    """Return the TOML file to fill in, with the clause that each field answers."""
    return _TEMPLATE


def export_processing(
    reader: LogReader,
    target: Path,
    *,
    signers: Sequence[NoteSigner],
    site: bytes,
    since: datetime | None = None,
    until: datetime | None = None,
    created: datetime | None = None,
) -> str:
    """Write the record of processing activities.

    Parameters
    ----------
    reader
        The log. Disclosures that it cannot open are counted as `not readable`.
    target
        The folder to be.
    signers
        The log's keys.
    site
        The content of the site's TOML file.
    since, until
        The records to count, both in it, with time zones; all when None.
    created
        When it is made; now, unless the same bytes are to come out twice.

    Returns
    -------
    str
        Digest of the export's manifest.

    Raises
    ------
    InvalidValueError
        The site's file does not say what it has to, field by field, or a time has no zone.
    """
    said = read_site_record(site)
    if any(moment is not None and moment.tzinfo is None for moment in (since, until)):
        raise InvalidValueError("a time", "one without a time zone", "a time with its zone, as 2026-03-01T09:00:00+01:00")
    document = Processing(
        origin=reader.origin,
        size=reader.size,
        since=since,
        until=until,
        source_sha256=hashlib.sha256(site).hexdigest(),
        site=said,
        log=_count(reader.records(), said, since, until),
    )
    with PacketWriter.of_whole(target, form=FORM, reader=reader, signers=signers, not_claimed=NOT_CLAIMED, created=created) as writer:
        writer.add(DOCUMENT, readable(document), JSON_TYPE, SCHEMA)
        writer.add(PAGE, _page(document), TEXT_TYPE)
    return writer.digest


def verify_processing(packet: Packet, reader: LogReader | None = None) -> Findings:
    """Check a record of processing: that it is of this form, and, for whoever has the log, that the counts are the log's."""
    document = read_document(packet, DOCUMENT, Processing)
    check_head(packet, DOCUMENT, document.origin, document.size)
    check_same(packet, PAGE, _page(document))
    check_names(packet, {DOCUMENT, PAGE})
    done = ["No required field is blank, and the page says what the record says."]
    if reader is None:
        return Findings(0, tuple(done), ("The counts: only whoever has the log can count again.",))
    check_log(packet, reader)
    again = _count(reader.records(0, document.size), document.site, document.since, document.until)
    if _without_contents(again) != _without_contents(document.log):
        raise AuditTamperedError(f"{DOCUMENT} counts otherwise than the log.")
    if again == document.log:
        return Findings(0, (*done, "The counts are those of the log."))
    if again.disclosures.get("not readable", 0) <= document.log.disclosures.get("not readable", 0):
        raise AuditTamperedError(f"{DOCUMENT} counts disclosures otherwise than the log.")
    more = "Disclosures by recipient: some of their records can no longer, or not here, be read."
    return Findings(0, (*done, "The other counts are those of the log."), (more,))


def _without_contents(counts: Counts) -> Counts:
    return counts.model_copy(update={"disclosures": {"all": sum(counts.disclosures.values())}})


def _count(records: Iterable[Record], site: SiteRecord, since: datetime | None, until: datetime | None) -> Counts:
    tally = _Tally(site)
    for record in records:
        moment = record.event.moment
        if (since is None or moment >= since) and (until is None or moment <= until):
            tally.take(record)
    return tally.counts()


class _Tally:
    """Counts records one by one; holds a number of each thing and nothing of a record."""

    def __init__(self, site: SiteRecord) -> None:
        self._category = {name: recipients.category for recipients in site.recipients for name in recipients.names}
        self._kinds: Counter[str] = Counter()
        self._erasures: Counter[str] = Counter()
        self._disclosures: Counter[str] = Counter()
        self._purposes: Counter[Purpose] = Counter()
        self._models: dict[str, ModelUse] = {}
        self._first: str | None = None
        self._last: str | None = None

    def take(self, record: Record) -> None:
        event = record.event
        self._first = event.time if self._first is None else min(self._first, event.time)
        self._last = event.time if self._last is None else max(self._last, event.time)
        self._kinds[event.kind] += 1
        if event.kind == "erasure":
            self._erasures[event.outcome.value] += 1
        if event.kind == Disclosure.kind and event.outcome == "success":
            self._purposes[event.purpose] += 1
            self._disclosures[self._recipient(record)] += 1
        if event.model is not None:
            self._take_model(event, event.model)

    def _recipient(self, record: Record) -> str:
        if not isinstance(record.payload, Disclosure):
            return "not readable"
        return self._category.get(record.payload.recipient, "other")

    def _take_model(self, event: Event, model: str) -> None:
        if event.outcome != "success" and event.kind != "quality_rejection":
            return
        known = self._models.get(model) or ModelUse(model=model, first_used=None, last_used=None, activated=(), inferences=0, quality_rejections=0)
        changes: dict[str, object] = {}
        if event.kind == ModelChange.kind:
            changes["activated"] = (*known.activated, event.time)
        elif event.kind in {"inference", "quality_rejection"}:
            changes["first_used"] = min(known.first_used or event.time, event.time)
            changes["last_used"] = max(known.last_used or event.time, event.time)
            changes["inferences"] = known.inferences + (event.kind == "inference")
            changes["quality_rejections"] = known.quality_rejections + (event.kind == "quality_rejection")
        else:
            return
        self._models[model] = known.model_copy(update=changes)

    def counts(self) -> Counts:
        return Counts(
            first=self._first,
            last=self._last,
            records=self._kinds.total(),
            by_kind=dict(sorted(self._kinds.items())),
            models=tuple(self._models[model] for model in sorted(self._models)),
            erasures=dict(sorted(self._erasures.items())),
            disclosures=dict(sorted(self._disclosures.items())),
            disclosures_by_purpose=dict(sorted(self._purposes.items())),
            notices=self._kinds["notice"],
            reviews=self._kinds["review"],
        )


def _field(loc: tuple[int | str, ...]) -> str:
    """Return where a fault is, in the words of the TOML file; pydantic adds names of alternatives to those of fields."""
    parts = [str(part) for part in loc if isinstance(part, int) or part.isidentifier()]
    return (
        ".".join(part for part in parts if part not in {"str", "tuple", "Transfer"})
        if parts and loc[0] in SiteRecord.model_fields
        else "a field of another name"
    )


def _page(document: Processing) -> bytes:
    site, log = document.site, document.log
    lines = [
        "RECORD OF PROCESSING ACTIVITIES (Regulation (EU) 2016/679, Art. 30(1))",
        "",
        "What the site says of itself",
        "",
        f"(a) Controller: {_party(site.controller)}",
        f"    Joint controllers: {printable(site.joint_controllers)}",
        f"    Representative: {printable(site.representative)}",
        f"    Data protection officer: {_party(site.data_protection_officer)}",
        *(f"(b) Purpose: {printable(purpose)}" for purpose in site.purposes),
        *(f"(c) Of {printable(each.subjects)}: {printable(each.data)}" for each in site.data),
        *(f"(d) Recipients: {printable(each.category)}" for each in site.recipients),
        *(f"(e) Transfers: {each}" for each in _transfers(site)),
        *(f"(f) Kept: {printable(each.data)}: {printable(each.retention)}" for each in site.data),
        *(f"(g) Security: {printable(measure)}" for measure in site.security),
        f"    Complaints go to: {printable(site.complaints)}",
        "",
        f"What the log {printable(document.origin)} states by counting",
        "",
        f"Records: {log.records}, from {log.first or '-'} to {log.last or '-'} (UTC)",
        *(f"  {kind}: {number}" for kind, number in log.by_kind.items()),
        *(line for model in log.models for line in _model_lines(model)),
        *(f"Erasures, {outcome}: {number}" for outcome, number in log.erasures.items()),
        *(f"Disclosures to {printable(category)}: {number}" for category, number in log.disclosures.items()),
        *(f"Disclosures for {purpose.value}: {number}" for purpose, number in log.disclosures_by_purpose.items()),
        "",
        "What this record does not claim",
        "",
        *(f"- {text}" for text in NOT_CLAIMED),
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def _party(party: Party) -> str:
    return f"{printable(party.name)}; {printable(party.contact)}"


def _transfers(site: SiteRecord) -> list[str]:
    if isinstance(site.transfers, str):
        return [printable(site.transfers)]
    return [f"{printable(each.to)}, safeguards: {printable(each.safeguards)}" for each in site.transfers] or ["none"]


def _model_lines(model: ModelUse) -> list[str]:
    used = f"used from {model.first_used} to {model.last_used}" if model.first_used else "not used"
    return [
        f"Model {model.model}: {used}; {model.inferences} inferences, {model.quality_rejections} recordings refused",
        *(f"  activated {moment}" for moment in model.activated),
    ]


_TEMPLATE = """# The record of processing activities (GDPR Art. 30(1)). Every field has to be filled in.
# Where there is nothing to say: "not applicable: REASON".

joint_controllers = ""       # (a)
representative = ""          # (a) of the controller
purposes = [""]              # (b) one text a purpose
transfers = ""               # (e) "not applicable: REASON", or instead of it [[transfers]] with `to` and `safeguards`
security = [""]              # (g) the measures of Art. 32(1), in general words
complaints = ""              # the supervisory authority; for access packages (Art. 15(1)(f))

[controller]                 # (a)
name = ""
contact = ""

[data_protection_officer]    # (a)
name = ""
contact = ""

[[data]]                     # (c) and (f), once for each category
data = ""
subjects = ""
retention = ""

[[recipients]]               # (d), once for each category
category = ""
names = []                   # the recipients in it, as disclosure records name them: the log then counts them
"""
