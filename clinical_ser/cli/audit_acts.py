"""What people record in the log by hand: reviews, disclosures, notices, legal holds; and erasure."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, TypeVar

import typer
from pydantic import ValidationError

from clinical_ser.audit.answering import about_result, operator
from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.erasing import active_holds, anonymous_copies
from clinical_ser.audit.erasing import erase as erase_subject
from clinical_ser.audit.events import RECORD, Actor, Disclosure, Erasure, LegalHold, Notice, Payload, Purpose, ReportAction, Review, Role, Signed
from clinical_ser.audit.log import Entry
from clinical_ser.audit.ranges import Ranges
from clinical_ser.audit.reading import DatabaseReader
from clinical_ser.cli.console import complain, literal, output
from clinical_ser.errors import AuditSetupError, InvalidValueError
from clinical_ser.strict import Strict

Record = Annotated[str, typer.Argument(help="The record printed on the report: clinical-ser:result:…", metavar="RECORD")]
Subject = Annotated[str, typer.Argument(help="The person, as your site names them; or the record of an answer without a person.", metavar="SUBJECT")]
Whose = Annotated[str | None, typer.Option("--subject", help="Whose answer it is, where the log knows it under several persons.")]
Reason = Annotated[str, typer.Option(help="Why, in words.")]
Who = Annotated[str | None, typer.Option("--actor", help="Who does it, as your site names them; your account otherwise.")]


_EXCEPTED = {Purpose.TREATMENT, Purpose.PAYMENT, Purpose.OPERATIONS}
"""45 CFR 164.528(a)(1)(i)."""
_DIGEST_DIGITS = 64
_Made = TypeVar("_Made", bound=Strict)


class Form(StrEnum):
    """Kinds of reports."""

    PDF = "pdf"
    HTML = "html"
    JSON = "json"
    FHIR = "fhir"


class Decision(StrEnum):
    """What a clinician made of an answer."""

    AGREED = "agreed"
    OVERRIDDEN = "overridden"
    UNDECIDED = "undecided"


def review(
    record: Record,
    decision: Annotated[Decision, typer.Option(help="What you decided.")],
    reason: Reason,
    name: Annotated[str | None, typer.Option(help="Your printed name, shown with the review; no electronic signature.")] = None,
    subject: Whose = None,
    actor: Who = None,
) -> None:
    """Record a clinician's review of an answer."""
    who = _actor(actor, Role.CLINICIAN)
    signature = None if name is None else made(Signed, name=name, time=datetime.now(UTC), meaning="review")
    _record_about(made(Review, actor=who, result=_digest(record), decision=decision.value, reason=reason, signature=signature), subject)


def amend(
    record: Record,
    supersedes: Annotated[int, typer.Option(min=0, help="The index of the record that is replaced, which stays readable.")],
    reason: Reason,
    form: Annotated[Form, typer.Option(help="What kind of report.")] = Form.PDF,
    subject: Whose = None,
    actor: Who = None,
) -> None:
    """Record that a report on an answer was replaced."""
    who = _actor(actor, Role.CLINICIAN)
    payload = made(ReportAction, actor=who, result=_digest(record), action="amended", form=form.value, reason=reason)
    _record_about(payload, subject, supersedes=supersedes)


def disclose(
    recipient: Annotated[str, typer.Option(help="Who got it.")],
    description: Annotated[str, typer.Option(help="What was given, in brief.")],
    purpose: Annotated[str, typer.Option(help="Why, in brief.")],
    use: Annotated[Purpose, typer.Option(help="The same as a code of HL7's purposes of use: TREAT, HPAYMT, HOPERAT, HRESCH, PUBHLTH, HLEGAL ...")],
    record: Annotated[
        str | None, typer.Argument(help="The record printed on the report, if it was one answer: clinical-ser:result:…", metavar="[RECORD]")
    ] = None,
    subject: Annotated[str | None, typer.Option(help="Whose information it was; needed without a record.")] = None,
    address: Annotated[str | None, typer.Option(help="The recipient's address, if known.")] = None,
    unaccountable: Annotated[
        bool,
        typer.Option("--unaccountable", help="For an exception of 45 CFR 164.528(a)(1); TREAT, HPAYMT and HOPERAT are one by themselves."),
    ] = False,
    supersedes: Annotated[int | None, typer.Option(min=0, help="The index of the disclosure that this one corrects.")] = None,
    actor: Who = None,
) -> None:
    """Record that health information was given to someone outside; `audit export --format accounting` lists it."""
    if record is None and subject is None:
        raise InvalidValueError("RECORD", "not given", "the record of an answer, or --subject")
    payload = made(
        Disclosure,
        actor=_actor(actor, Role.COMPLIANCE),
        result=None if record is None else _digest(record),
        recipient=recipient,
        recipient_address=address,
        description=description,
        purpose_text=purpose,
        accountable=not unaccountable and use not in _EXCEPTED,
    )
    _record_about(payload, subject, supersedes=supersedes, purpose=use)


def notice(subject: Subject, version: Annotated[str, typer.Option(help="Which version of the text.")], actor: Who = None) -> None:
    """Record that a person was told that such a system will be used (AI Act Art. 50(3))."""
    with LogConfiguration.required().read() as log:
        if not log.named(subject):
            complain("Note", "this is the log's first record of this person; is the name spelled as it will be at the screening?")
    _record_of(subject, made(Notice, actor=_actor(actor, Role.CLINICIAN), text_version=version), Purpose.COMPLIANCE)


def hold(subject: Subject, reason: Reason, authority: Annotated[str, typer.Option(help="Who ordered it.")], actor: Who = None) -> None:
    """Place a person's records under a legal hold: they cannot be erased until it is released."""
    _holds(subject, needed=False)
    _record_of(subject, made(LegalHold, actor=_actor(actor, Role.COMPLIANCE), action="placed", reason=reason, authority=authority), Purpose.LEGAL)


def release(
    subject: Subject,
    reason: Reason,
    authority: Annotated[str, typer.Option(help="Who ordered it.")],
    which: Annotated[int | None, typer.Option("--hold", min=0, help="The index of the hold, where there are several.")] = None,
    actor: Who = None,
) -> None:
    """Release a legal hold."""
    holds = _holds(subject, needed=True)
    if which not in holds and not (which is None and len(holds) == 1):
        raise InvalidValueError("--hold", "not given" if which is None else which, f"one of those that there are: {', '.join(map(str, holds))}")
    released = holds[0] if which is None else which
    who = _actor(actor, Role.COMPLIANCE)
    _record_of(subject, made(LegalHold, actor=who, action="released", reason=reason, authority=authority, releases=released), Purpose.LEGAL)


def erase(
    subject: Annotated[str, typer.Option(help="The person, as your site names them; or the record of an answer without a person.")],
    reason: Reason,
    basis: Annotated[str, typer.Option(help="The clause it rests on.")] = "GDPR Art. 17(1)",
    actor: Who = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Destroy what the log holds of a person: keys, salts, payloads. The tree stays, and a tombstone says so. It cannot be undone."""
    configuration = LogConfiguration.required()
    who = _actor(actor, Role.COMPLIANCE)
    made(Erasure, actor=who, erased="", reason=reason, basis=basis)
    subject = as_record(subject) or subject
    with configuration.read() as log:
        copies = [index for copy in anonymous_copies(log, subject) for index in log.named(copy)]
        indices = sorted({*log.named(subject), *copies})
        times = [log.record(index).event.moment for index in indices]
        held = active_holds(log, subject)
    young = sum(datetime.now(UTC) - time < timedelta(days=configuration.retention_days) for time in times)
    if young:
        complain("Retention", f"{young} of {len(times)} records are younger than the {configuration.retention_days} days that this site keeps them.")
    if times and not yes and not held:
        without = f", among them {Ranges(copies)}, answered about the same recordings without the person's name" if copies else ""
        typer.confirm(f"Destroy the payloads of {len(times)} records ({Ranges(indices)}{without}) for good?", abort=True)
    with configuration.write() as writer:
        erased = erase_subject(writer, subject, reason=reason, basis=basis, actor=who)
    if erased.finished:
        output.print("An erasure that had been interrupted was finished: what it had deleted is now overwritten.")
    if not erased.records:
        output.print("The log holds nothing of this subject; nothing was erased or recorded.")
        raise typer.Exit(0 if erased.finished else 1)
    output.print(
        f"Erased: payloads, salts and keys of {len(erased.records)} records ({literal(erased.records)}). Their leaves, and every proof, stay."
    )
    output.print("Copies of the vault (backups of the keys) still hold the key: replace them. The log's own backups cannot be read without it.")


COMMANDS: tuple[Callable[..., None], ...] = (review, amend, disclose, notice, hold, release, erase)


def made(model: type[_Made], **values: object) -> _Made:
    """Return an object of the log's; InvalidValueError, which does not quote, for what does not fit (empty, too long)."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else "the record"
        raise InvalidValueError(field.replace("_", " "), "empty, too long, or of another kind", f"what fits: {first['msg'].lower()}") from None


def _actor(given: str | None, role: Role) -> Actor:
    return operator().model_copy(update={"role": role}) if given is None else made(Actor, id=given, role=role)


def as_record(text: str) -> str | None:
    """Return the record of a result that was copied or typed from a report, with what that brings along; None for other text.

    Raises
    ------
    InvalidValueError
        It begins like a record and is none: cut short, or mistyped.
    """
    typed = "".join(character for character in text if character.isprintable() and not character.isspace()).casefold()
    digest = typed.removeprefix(RECORD)
    if len(digest) == _DIGEST_DIGITS and not set(digest) - set("0123456789abcdef"):
        return RECORD + digest
    if typed.startswith(RECORD):
        raise InvalidValueError("RECORD", "cut short, or mistyped", f"what the report prints: {RECORD} and {_DIGEST_DIGITS} hex digits")
    return None


def _digest(text: str) -> str:
    record = as_record(text)
    if record is None:
        raise InvalidValueError("RECORD", "not the record of a result", f"what the report prints: {RECORD} and {_DIGEST_DIGITS} hex digits")
    return record.removeprefix(RECORD)


def _record_about(payload: Payload, subject: str | None, **about: Any) -> None:
    """Record what is about an answer, or a person, that has to be in this log."""
    with LogConfiguration.required().write() as log, log.exclusively() as inside:
        reader = inside.reader()
        if payload.records():
            known = reader.about(payload.records()[0])
            entry = about_result(reader, payload, subject, **about)
        else:
            known = reader.named(subject or "")
            entry = Entry(payload, subject=subject, **about)
        if not known:
            raise AuditSetupError("The log has no record of this: answered elsewhere, erased, or spelled otherwise. Nothing was recorded.")
        if entry.supersedes is not None:
            _check_superseded(reader, entry, known)
        [receipt] = inside.record([entry])
    output.print(f"Recorded as {receipt.index}.")


def _check_superseded(reader: DatabaseReader, entry: Entry, known: list[int]) -> None:
    alike = isinstance(entry.payload, Disclosure)
    if entry.supersedes not in known or (alike and reader.record(entry.supersedes).event.kind != entry.payload.kind):
        kind = "a disclosure of the same" if alike else "a record about the same answer"
        raise InvalidValueError("--supersedes", entry.supersedes, f"{kind} (`audit list --about …`)")


def _record_of(subject: str, payload: Payload, purpose: Purpose) -> None:
    with LogConfiguration.required().write() as log:
        receipt = log.append(payload, subject=subject, purpose=purpose)
    output.print(f"Recorded as {receipt.index}.")


def _holds(subject: str, *, needed: bool) -> list[int]:
    """Return the holds that a subject is under, who has to be known."""
    with LogConfiguration.required().read() as log:
        known, holds = log.named(subject), active_holds(log, subject)
    if not known:
        raise AuditSetupError("The log has no record of this subject; is the name spelled as it was when it was recorded?")
    if needed and not holds:
        raise AuditSetupError("The records of this subject are under no legal hold.")
    return holds
