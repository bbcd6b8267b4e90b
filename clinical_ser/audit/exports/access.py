"""What a person gets who asks what is recorded about them (GDPR Art. 15, and Art. 20 for its machine-readable half).

The one idea: every sentence of the page follows from a record that goes along, with its proof, and the names of those who work there do not.

References
----------
Regulation (EU) 2016/679, Art. 15(1)-(4), 20(1). CJEU C-579/21 (Pankki S, 22 June 2023): when and why a person's data were looked at is theirs to
know, which employee looked is not, unless they need it to exercise their rights.
"""

import hashlib
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue, ValidationError

from clinical_ser.audit import events
from clinical_ser.audit.events import Event, Hex32, Outcome, Payload, Purpose, Role
from clinical_ser.audit.exports.packet import Findings, Packet, PacketWriter
from clinical_ser.audit.exports.processing import SiteRecord
from clinical_ser.audit.exports.shown import (
    JSON_TYPE,
    LEFT_OUT,
    MAX_OWN_FILES,
    RECORDS,
    TEXT_TYPE,
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
    printable,
    read_document,
    read_records,
    readable,
    record_at,
    show,
)
from clinical_ser.audit.notes import NoteSigner
from clinical_ser.audit.records import LogReader
from clinical_ser.errors import AuditTamperedError, BundleSchemaError, InvalidValueError
from clinical_ser.evaluation.card import Card
from clinical_ser.models.bundle import VerifiedBundle, parse_manifest
from clinical_ser.models.strict_json import StrictJsonError, parse_json
from clinical_ser.screening.result import INTENDED_USE, ScreeningResult
from clinical_ser.strict import Strict

FORM = "access"
SCHEMA: Literal["clinical-ser/audit-access/1"] = "clinical-ser/audit-access/1"
DOCUMENT, PAGE = "access.json", "access.txt"

NOT_CLAIMED = (
    "That this is all the site holds about the person: recordings, results and notes in other systems are not in the log.",
    "That no record was left out: the site's signature stands for that; whoever has the log can check it, whoever has only this folder cannot.",
    "That free text (reasons, descriptions) names no third person: the site has to read it before it hands this out (Art. 15(4)).",
    "That an answer was right: it is what was computed and recorded.",
)
SITE_HAS_TO_ADD = (
    "the purposes of the processing (Art. 15(1)(a))",
    "how long the records are kept (Art. 15(1)(d))",
    "where to complain (Art. 15(1)(f))",
    "safeguards of transfers to third countries, if any (Art. 15(2))",
)
WIDTH = 100
LOOKED = "list"
"""The form of an `audit_export` record where nothing left the log: `audit list` showed records."""


class Content(Strict):
    """One record, for people and programs: what its leaf says, and what its payload says in full."""

    record: int
    time: str
    kind: str
    outcome: Outcome
    purpose: Purpose
    role: Role
    model: Hex32 | None
    software: str
    amends: int | None
    erased: bool
    content: dict[str, JsonValue] | None
    """None where the content was erased."""


class CardOf(Strict):
    """The card of a model that answered."""

    model: Hex32
    name: str
    version: str


class Access(Strict):
    """`access.json`."""

    schema_id: Literal["clinical-ser/audit-access/1"] = Field(default=SCHEMA, alias="schema")
    clauses: tuple[str, ...] = ("Regulation (EU) 2016/679 Art. 15", "Regulation (EU) 2016/679 Art. 20")
    subject: str
    origin: str
    size: int
    requested: datetime
    processed: bool
    """Whether the log has a record about the person (Art. 15(1))."""
    staff: bool
    """Whether those who acted are named."""
    records: tuple[Content, ...]
    results: tuple[Hex32, ...]
    """Results that go along as `result-DIGEST.json`."""
    cards: tuple[CardOf, ...]
    """Cards that go along as `card-DIGEST.json`, with the manifest of the model that names their digest."""
    site: SiteRecord | None
    """What the site says of the processing (Art. 15(1)(a)-(g))."""
    site_has_to_add: tuple[str, ...]


def export_access(
    reader: LogReader,
    target: Path,
    *,
    signers: Sequence[NoteSigner],
    subject: str,
    requested: datetime,
    results: Sequence[bytes] = (),
    models: Sequence[VerifiedBundle] = (),
    site: SiteRecord | None = None,
    staff: bool = False,
    created: datetime | None = None,
) -> str:
    """Write all records of one subject, in words and as data, each with its proof.

    Parameters
    ----------
    reader
        The log; it must be able to open what was not erased.
    target
        The folder to be.
    signers
        The log's keys.
    subject
        As the log knows them. One that it does not know gets a package that says so (Art. 15(1)).
    requested
        When the request was made, with its time zone.
    results
        Whole results in JSON, which the log does not keep: those whose digest a record names.
    models
        Bundles of models that answered: their cards go along.
    site
        What the site says of the processing (`read_site_record`); without it the package says what the site has to add.
    staff
        Whether to name those who acted. Only then do payloads hash to what their leaves commit to, so that their reader can check them.
    created
        When it is made; now, unless the same bytes are to come out twice.

    Returns
    -------
    str
        Digest of the export's manifest.

    Raises
    ------
    InvalidValueError
        A result or a model is of no record of this subject, or a time has no zone; nothing of a result is quoted.
    AuditKeyError
        A record of the subject cannot be opened.
    """
    if requested.tzinfo is None:
        raise InvalidValueError("the time of a request", "one without a time zone", "a time with its zone, as 2026-03-01T09:00:00+01:00")
    shown = [show(reader, record_at(reader, index), _how(staff=staff), subject) for index in about(reader, subject)]
    checked = [(one, one.event) for one in shown]
    parsed = {result.digest: result for result in map(_parse_result, results)}
    bundles = {bundle.digest: bundle for bundle in models}
    _check_asked(checked, parsed, bundles)
    document = Access(
        subject=subject,
        origin=reader.origin,
        size=reader.size,
        requested=requested.astimezone(UTC),
        processed=bool(shown),
        staff=staff,
        records=_contents(checked),
        results=tuple(sorted(parsed)),
        cards=tuple(_card_of(bundles[digest].manifest_bytes) for digest in sorted(bundles)),
        site=site,
        site_has_to_add=_to_add(site),
    )
    writer = PacketWriter.of_whole(target, form=FORM, reader=reader, signers=signers, not_claimed=NOT_CLAIMED, created=created)
    with writer:
        writer.add(DOCUMENT, readable(document), JSON_TYPE, SCHEMA)
        writer.add(PAGE, _page(document, checked), TEXT_TYPE)
        for digest, result in sorted(parsed.items()):
            writer.add(f"result-{digest}.json", _result_bytes(result), JSON_TYPE, result.schema_id)
        for digest, bundle in sorted(bundles.items()):
            writer.add(f"card-{digest}.json", bundle.files["card.json"], JSON_TYPE)
            writer.add(f"model-{digest}.json", bundle.manifest_bytes, JSON_TYPE)
        add_records(writer, shown, SCHEMA)
        add_proofs(writer, shown, reader.checkpoint)
    return writer.digest


def verify_access(packet: Packet, reader: LogReader | None = None) -> Findings:
    """Check an access package: every record against the checkpoint, and data, page, results and cards against the records.

    Parameters
    ----------
    packet
        The export, its envelope checked.
    reader
        The log, for whoever has it: it tells whether a record was left out, and what is behind payloads without staff.

    Raises
    ------
    AuditFormatError, AuditTamperedError
        What is wrong; records are named by their index.
    """
    document = read_document(packet, DOCUMENT, Access)
    check_head(packet, DOCUMENT, document.origin, document.size)
    checked = list(read_records(packet, document.subject))
    for one, _ in checked:
        if one.state not in {_how(staff=document.staff), "erased"}:
            raise AuditTamperedError(f"Record {one.index} shows more, or less, than the package says.")
    follows = (_contents(checked), bool(checked), _to_add(document.site))
    if follows != (document.records, document.processed, document.site_has_to_add):
        raise AuditTamperedError(f"{DOCUMENT} is not what follows from the records in the export.")
    check_same(packet, PAGE, _page(document, checked))
    shown = [one for one, _ in checked]
    extra = {*_check_results(packet, document, checked), *_check_cards(packet, document, checked)}
    check_names(packet, {DOCUMENT, PAGE, RECORDS, *extra, *check_proofs(packet, shown)})
    done = [f"{len(shown)} records are in the log that the checkpoint signs.", "Data, page, results and cards follow from these records."]
    open_ends = [] if document.staff else ["What the records say is without staff, so only whoever has the log can compare it with the leaves."]
    if reader is None:
        open_ends.append("Whether a record was left out, only whoever has the log can check.")
    else:
        _compare(document, shown, packet, reader, done, open_ends)
    return Findings(len(shown), tuple(done), tuple(open_ends))


def _how(*, staff: bool) -> How:
    return "whole" if staff else "without_staff"


def _to_add(site: SiteRecord | None) -> tuple[str, ...]:
    return SITE_HAS_TO_ADD if site is None else ()


def _contents(checked: Iterable[tuple[Shown, Event]]) -> tuple[Content, ...]:
    return tuple(
        Content(
            record=one.index,
            time=event.time,
            kind=event.kind,
            outcome=event.outcome,
            purpose=event.purpose,
            role=event.role,
            model=event.model,
            software=event.software,
            amends=event.supersedes,
            erased=one.state == "erased",
            content=None if (payload := one.content) is None else payload.model_dump(mode="json"),
        )
        for one, event in checked
    )


def _parse_result(raw: bytes) -> ScreeningResult:
    try:
        parse_json(raw)
        return ScreeningResult.model_validate_json(raw)
    except (StrictJsonError, ValidationError):
        raise InvalidValueError("a result", "a file that is none", "a result in JSON, of this version's schema") from None


def _result_bytes(result: ScreeningResult) -> bytes:
    return result.model_dump_json(indent=2).encode() + b"\n"


def _named_results(checked: Iterable[tuple[Shown, Event]]) -> set[str]:
    contents = (one.content for one, _ in checked)
    names = (name for content in contents if content is not None for name in content.records())
    return {name.removeprefix(events.RECORD) for name in names if name.startswith(events.RECORD)}


def _check_asked(checked: Sequence[tuple[Shown, Event]], results: Iterable[str], models: Iterable[str]) -> None:
    if set(results) - _named_results(checked):
        raise InvalidValueError("a result", "one that no record of this subject names", "results of this subject, unchanged since they were given")
    if set(models) - {event.model for _, event in checked}:
        raise InvalidValueError("a model", "one that answered nothing for this subject", "models that the subject's records name")


def _card_of(manifest: bytes) -> CardOf:
    fields = parse_manifest(manifest)
    return CardOf(model=hashlib.sha256(manifest).hexdigest(), name=fields.name, version=fields.version)


def _check_results(packet: Packet, document: Access, checked: Sequence[tuple[Shown, Event]]) -> Iterator[str]:
    named = _named_results(checked)
    for digest in document.results:
        name = f"result-{digest}.json"
        try:
            result = _parse_result(packet.read(name))
        except InvalidValueError:
            raise AuditTamperedError(f"{name} is no result.") from None
        if result.digest != digest or digest not in named or _result_bytes(result) != packet.read(name):
            raise AuditTamperedError(f"{name} is not a result that a record in the export names.")
        yield name


def _check_cards(packet: Packet, document: Access, checked: Sequence[tuple[Shown, Event]]) -> Iterator[str]:
    """Follow the digests from leaf to card: the leaf names the manifest, the manifest the card."""
    named = {event.model for _, event in checked}
    for card in document.cards:
        model, name = f"model-{card.model}.json", f"card-{card.model}.json"
        manifest, content = packet.read(model), packet.read(name)
        try:
            if card.model not in named or card != _card_of(manifest):
                raise AuditTamperedError(f"{model} is not a model that a record in the export names.")
            Card.from_json(content)
            wanted = parse_manifest(manifest).files["card.json"].sha256
        except BundleSchemaError:
            raise AuditTamperedError(f"{name} or {model} is not what it should be.") from None
        if hashlib.sha256(content).hexdigest() != wanted:
            raise AuditTamperedError(f"{name} is not the card of the model.")
        yield from (model, name)


def _compare(document: Access, shown: list[Shown], packet: Packet, reader: LogReader, done: list[str], open_ends: list[str]) -> None:
    """Compare with the log itself, which may have grown, and lost payloads to erasure, since."""
    check_log(packet, reader)
    now = {index: record_at(reader, index) for index in about(reader, document.subject, document.size)}
    there = {one.index: one for one in shown}
    since = sum(1 for index, one in there.items() if one.state != "erased" and record_at(reader, index).state == "erased")
    for index in sorted(now.keys() | there.keys()):
        if index not in there:
            raise AuditTamperedError(f"Record {index} is missing from the package.")
        record = record_at(reader, index)
        if record.state == "erased":
            continue
        ours = show(reader, record, _how(staff=document.staff), document.subject)
        if index not in now or ours.without_proof() != there[index].without_proof():
            raise AuditTamperedError(f"Record {index} is not what the log has, or is not about this subject.")
    if since:
        open_ends.append(f"{since} records were erased since, so their contents can no longer be compared with the log.")
    done.append("The log has no further record about the subject, and says of each that it still holds what the package says.")


# What follows is the page: one sentence, or a few, a kind of record.


def _page(document: Access, checked: Sequence[tuple[Shown, Event]]) -> bytes:
    paragraphs = [
        f"WHAT THE LOG {printable(document.origin)} RECORDS ABOUT {printable(document.subject)}",
        f"For a request of {_minute(document.requested)}. The log had {document.size} records then. All times are UTC.",
        *_answer(document),
        *(["WHAT WAS DONE"] if checked else []),
        *(_record(one, event) for one, event in checked),
        *_logic(document, checked),
        *_recipients(checked),
        *_site(document),
        "YOUR RIGHTS",
        "You may ask the controller for rectification or erasure of your data and for restriction of their processing, and object to it, within "
        "Art. 16 to 21; and you may complain to a supervisory authority. Records of this log cannot be changed: what is wrong is amended by another "
        "record, and what is erased leaves a record that it was erased, without its content.",
        "HOW TO CHECK THIS",
        f"{DOCUMENT} holds all of this as data (Art. 20). {_where_proofs_are(checked)} `clinical-ser audit verify-export` checks the whole package "
        "with the log's public key."
        + (
            ""
            if document.staff
            else f" Names of staff are left out ('{LEFT_OUT}'), so a record's content cannot be compared with its leaf from here."
        ),
        "WHAT THIS DOES NOT CLAIM",
        *(f"- {text}" for text in NOT_CLAIMED),
    ]
    return "\n\n".join(textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False) for text in paragraphs).encode() + b"\n"


def _where_proofs_are(checked: Sequence[tuple[Shown, Event]]) -> str:
    if len(checked) > MAX_OWN_FILES:
        return f"For each record, {RECORDS} has what stands in the log (`leaf`) and the proof that it does."
    return "For each record, record-NUMBER.leaf.json is what stands in the log, and record-NUMBER.tlog-proof proves that it does."


def _minute(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _answer(document: Access) -> Iterator[str]:
    if not document.processed:
        yield (
            "No record of this log is about a person of this name. If you were known here by another one, ask again with that. Records whose content "
            "was erased can no longer be found by name."
        )
        return
    gone = sum(1 for record in document.records if record.erased)
    yield f"Yes: {len(document.records)} records are about you. The content of {gone} of them was erased."


def _record(one: Shown, event: Event) -> str:
    head = f"Record {one.index}, {event.time[:16].replace('T', ' ')}: "
    content = one.content
    if content is None:
        return f"{head}a record of kind {event.kind!r}, whose content was erased. Only that it was there, and when, is left."
    ended = "" if content.kind == "quality_rejection" else _OUTCOMES[event.outcome]
    by = f" By {_who(content)}, for {_PURPOSES[event.purpose]}." + (f" It amends record {event.supersedes}." if event.supersedes is not None else "")
    return head + _SENTENCES[content.kind](content) + ended + by


_OUTCOMES = {Outcome.SUCCESS: "", Outcome.REFUSED: " It was refused.", Outcome.FAILED: " It failed."}
_PURPOSES = {
    Purpose.TREATMENT: "treatment",
    Purpose.OPERATIONS: "the running of the health service",
    Purpose.PAYMENT: "payment",
    Purpose.RESEARCH: "research",
    Purpose.PATIENT_REQUEST: "a request of yours",
    Purpose.PUBLIC_HEALTH: "public health",
    Purpose.LEGAL: "a legal matter",
    Purpose.SYSTEM: "the running of the system",
    Purpose.COMPLIANCE: "compliance with rules",
}


def _sentence(text: str) -> str:
    """Return what someone wrote, ended as a sentence is."""
    shown = printable(text)
    return shown if shown.endswith((".", "!", "?")) else f"{shown}."


def _who(content: Payload) -> str:
    actor = content.actor
    if actor.id == LEFT_OUT:
        return f"someone in the role '{actor.role.value}'"
    return f"{printable(actor.name or actor.id)}, in the role '{actor.role.value}'"


def _inference(told: events.Inference) -> str:
    answered = told.status != "indeterminate"
    text = (
        f"A recording of {told.duration_s:.1f} s (task '{printable(told.task)}') was screened by the model {printable(told.model_name)} "
        f"{printable(told.model_version)}. The answer: {told.status.replace('_', ' ')}{_quoted(told.label)}."
    )
    if told.probability is not None:
        text += f" The number behind it: a probability of {told.probability:.3g}{_interval(told)}{_stated(told)}."
        text += "" if answered else " It was not enough for an answer."
    text += f" The threshold was {told.threshold:.3g}." if told.threshold is not None else ""
    text += f" Classes that could not be ruled out: {', '.join(map(printable, told.prediction_set)) or 'none'}."
    if told.families:
        text += f" What moved the probability, in points of percent: {'; '.join(_family(each) for each in told.families)}."
    text += f" Of the recording's quality: {', '.join(_check(each) for each in told.checks)}." if told.checks else ""
    text += " The model was trained on simulated speech: its answers mean nothing for a real person." if told.simulated else ""
    return text + (f" You had been given the notice {printable(told.notice)} before." if told.notice else "")


def _interval(told: events.Inference) -> str:
    return f" (between {told.low:.3g} and {told.high:.3g}, the model's sampling error)" if told.low is not None and told.high is not None else ""


def _stated(told: events.Inference) -> str:
    return f", stated for {told.prevalence:.3g} of the people screened having it" if told.prevalence is not None else ""


def _quoted(label: str | None) -> str:
    return f" ('{printable(label)}')" if label is not None else ""


def _family(effect: events.FamilyEffect) -> str:
    return f"{printable(effect.family)} {effect.points:+.1f}{'' if effect.stable else ' (not reliably)'}"


def _check(check: events.Check) -> str:
    return f"{printable(check.name)} {'failed' if check.verdict == 'fail' else 'was doubtful'}"


def _rejection(told: events.QualityRejection) -> str:
    why = ", ".join(_check(check) for check in told.checks) or "no reason recorded"
    return f"A recording of {told.duration_s:.1f} s was refused because of its quality ({why}). No score was computed."


def _report(told: events.ReportAction) -> str:
    reason = f" Reason: {_sentence(told.reason)}" if told.reason else ""
    return f"A report of a result was {told.action} ({told.form}).{reason}"


def _review(told: events.Review) -> str:
    signed = f" A printed name was given on {_minute(told.signature.time)}, for {told.signature.meaning}." if told.signature else ""
    words = {"agreed": "agreed with it", "overridden": "decided otherwise", "undecided": "did not decide"}[told.decision]
    return f"A person looked at an answer and {words}. Reason: {_sentence(told.reason)}{signed}"


def _disclosure(told: events.Disclosure) -> str:
    address = f", {printable(told.recipient_address)}" if told.recipient_address else ""
    return f"Given to {printable(told.recipient)}{address}: {_sentence(told.description)} Purpose: {_sentence(told.purpose_text)}"


def _notice(told: events.Notice) -> str:
    return f"You were told that such a system would be used (notice {printable(told.text_version)})."


def _erasure(told: events.Erasure) -> str:
    what = f"The content of records {printable(told.erased)} was destroyed" if told.erased else "An erasure was asked for and nothing was destroyed"
    return f"{what}. Basis: {_sentence(told.basis)} Reason: {_sentence(told.reason)}"


def _hold(told: events.LegalHold) -> str:
    return f"A legal hold on your records was {told.action} by {_sentence(told.authority)} Reason: {_sentence(told.reason)}"


def _export(told: events.AuditExport) -> str:
    did = (
        "Someone looked at records about you in the log"
        if told.form == LOOKED
        else f"Records about you were exported (form '{printable(told.form)}')"
    )
    return f"{did}{f', and given to {printable(told.recipient)}' if told.recipient else ''}."


def _submission(told: events.Submission) -> str:
    if told.action == "accepted":
        return f"A recording was taken in, to be screened by the model {printable(told.model_name)}."
    reason = f" Reason: {_sentence(told.reason)}" if told.reason else ""
    return f"A recording that was sent to be screened by the model {printable(told.model_name)} came to no answer.{reason}"


def _other(told: Payload) -> str:
    return f"A record of kind {told.kind!r}; its content is in {DOCUMENT}."


_SENTENCES: dict[str, Callable[..., str]] = {
    **dict.fromkeys(events.PAYLOADS, _other),
    "inference": _inference,
    "quality_rejection": _rejection,
    "report": _report,
    "review": _review,
    "disclosure": _disclosure,
    "notice": _notice,
    "erasure": _erasure,
    "legal_hold": _hold,
    "audit_export": _export,
    "submission": _submission,
}


def _logic(document: Access, checked: Iterable[tuple[Shown, Event]]) -> Iterator[str]:
    """Explain the logic involved, its significance and consequences (Art. 15(1)(h))."""
    answers = [content for one, _ in checked if isinstance(content := one.content, events.Inference)]
    if not answers:
        return
    yield "HOW AN ANSWER COMES ABOUT, AND WHAT IT IS FOR"
    yield INTENDED_USE
    yield (
        "The program measures how a person speaks (pauses, rate, pitch, loudness, voice quality). A model that was trained on recordings of other "
        "people turns the measurements into a probability. An answer is given only where all other classes could be ruled out, and 'flagged' only "
        "where the probability also lies at or above the threshold; else there is no answer. The families of measurements above are what moved the "
        "probability, each with its share. A person decides what follows; the program starts nothing by itself."
    )
    if encoders := sorted({name for answer in answers for name in answer.encoders}):
        yield (
            f"Some of the measurements are those of a neural network ({', '.join(map(printable, encoders))}) that describes the sound as a whole; "
            "what was said may have left traces in them."
        )
    if document.cards:
        names = "; ".join(f"{printable(card.name)} {printable(card.version)}: card-{card.model}.json" for card in document.cards)
        yield f"On whom the model was trained, how well it does and for whom not, is on its card: {names}."


def _recipients(checked: Sequence[tuple[Shown, Event]]) -> Iterator[str]:
    if not checked:
        return
    yield "WHO RECEIVED IT"
    given = [one.content for one, event in checked if event.outcome is Outcome.SUCCESS]
    told = (each.recipient for each in given if isinstance(each, events.Disclosure | events.AuditExport))
    names = dict.fromkeys(printable(recipient) for recipient in told if recipient)
    yield f"Recipients that the log knows: {'; '.join(names)}." if names else "The log has no recipient of data about you that can be read."


def _site(document: Access) -> Iterator[str]:
    yield "WHAT THE CONTROLLER SAYS"
    site = document.site
    if site is None:
        yield f"Not in this package, and to be added by the controller: {'; '.join(document.site_has_to_add)}."
        return
    yield f"Controller: {printable(site.controller.name)}; {printable(site.controller.contact)}."
    yield f"Data protection officer: {printable(site.data_protection_officer.name)}; {printable(site.data_protection_officer.contact)}."
    yield f"Purposes: {'; '.join(map(printable, site.purposes))}."
    yield f"Kept: {'; '.join(f'{printable(each.data)}: {printable(each.retention)}' for each in site.data)}."
    yield f"Categories of recipients: {'; '.join(printable(each.category) for each in site.recipients)}."
    transfers = [f"{printable(each.to)} ({printable(each.safeguards)})" for each in site.transfers] if not isinstance(site.transfers, str) else []
    yield f"Transfers to third countries: {'; '.join(transfers) if transfers else printable(site.transfers)}."
    yield f"Complaints: {printable(site.complaints)}."
