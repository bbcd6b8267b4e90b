"""What people record in the log by hand: reviews, disclosures, notices, legal holds; and erasure."""

from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from clinical_ser.audit.answering import about_result, operator
from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.erasing import erase as erase_subject
from clinical_ser.audit.events import RECORD, Actor, Disclosure, LegalHold, Notice, Payload, Purpose, ReportAction, Review, Role, Signed
from clinical_ser.audit.reading import DatabaseReader
from clinical_ser.cli.console import literal, output
from clinical_ser.errors import AuditSetupError, InvalidValueError

Record = Annotated[str, typer.Argument(help="The record printed on the report: clinical-ser:result:…", metavar="RECORD")]
Subject = Annotated[str, typer.Argument(help="The person, as your site names them; or the record of an answer without a person.", metavar="SUBJECT")]
Reason = Annotated[str, typer.Option(help="Why, in words.")]
Who = Annotated[str | None, typer.Option("--actor", help="Who does it, as your site names them; your account otherwise.")]


class Decision(StrEnum):
    """What a clinician made of an answer."""

    AGREED = "agreed"
    OVERRIDDEN = "overridden"
    UNDECIDED = "undecided"


def review(
    record: Record,
    decision: Annotated[Decision, typer.Option(help="What you decided.")],
    reason: Reason,
    name: Annotated[str | None, typer.Option(help="Your printed name: it signs the review (21 CFR 11.50).")] = None,
    actor: Who = None,
) -> None:
    """Record a clinician's review of an answer."""
    who = _actor(actor, Role.CLINICIAN)
    signature = Signed(name=name, time=datetime.now(UTC), meaning="review") if name else None
    _record_about(Review(actor=who, result=_digest(record), decision=decision.value, reason=reason, signature=signature))


def amend(
    record: Record,
    supersedes: Annotated[int, typer.Option(help="The index of the record that is replaced, which stays readable.")],
    reason: Reason,
    actor: Who = None,
) -> None:
    """Record that a report was replaced, and by what answer."""
    who = _actor(actor, Role.CLINICIAN)
    payload = ReportAction(actor=who, result=_digest(record), action="amended", form="pdf", reason=reason)
    _record_about(payload, supersedes=supersedes)


def disclose(
    record: Record,
    recipient: Annotated[str, typer.Option(help="Who got it.")],
    description: Annotated[str, typer.Option(help="What was given, in brief.")],
    purpose: Annotated[str, typer.Option(help="Why, in brief.")],
    address: Annotated[str | None, typer.Option(help="The recipient's address, if known.")] = None,
    unaccountable: Annotated[
        bool, typer.Option("--unaccountable", help="For treatment, payment, operations, or another exception of 45 CFR 164.528(a)(1).")
    ] = False,
    use: Annotated[Purpose, typer.Option(help="The same as a code of HL7's purposes of use: TREAT, HPAYMT, HOPERAT, HRESCH, PUBHLTH, HLEGAL ...")] = (
        Purpose.COMPLIANCE
    ),
    actor: Who = None,
) -> None:
    """Record that health information was given to someone outside; `audit export --format accounting` lists it."""
    who = _actor(actor, Role.COMPLIANCE)
    _record_about(
        Disclosure(
            actor=who,
            result=_digest(record),
            recipient=recipient,
            recipient_address=address,
            description=description,
            purpose_text=purpose,
            accountable=not unaccountable,
        ),
        purpose=use,
    )


def notice(subject: Subject, version: Annotated[str, typer.Option(help="Which version of the text.")], actor: Who = None) -> None:
    """Record that a person was told that such a system will be used (AI Act Art. 50(3))."""
    _record_of(subject, Notice(actor=_actor(actor, Role.CLINICIAN), text_version=version), Purpose.COMPLIANCE)


def hold(subject: Subject, reason: Reason, authority: Annotated[str, typer.Option(help="Who ordered it.")], actor: Who = None) -> None:
    """Place a person's records under a legal hold: they cannot be erased until it is released."""
    _hold(subject, "placed", reason, authority, actor)


def release(subject: Subject, reason: Reason, authority: Annotated[str, typer.Option(help="Who ordered it.")], actor: Who = None) -> None:
    """Release a legal hold."""
    _hold(subject, "released", reason, authority, actor)


def erase(
    subject: Annotated[str, typer.Option(help="The person, as your site names them; or the record of an answer without a person.")],
    reason: Reason,
    basis: Annotated[str, typer.Option(help="The clause it rests on.")] = "GDPR Art. 17(1)",
    actor: Who = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Destroy what the log holds of a person: keys, salts, payloads. The tree stays, and a tombstone says so. It cannot be undone."""
    configuration = _site_log()
    with configuration.read() as log:
        count = len(log.named(subject))
    if count and not yes:
        typer.confirm(f"Destroy the payloads of {count} records for good?", abort=True)
    with configuration.write() as writer:
        erased = erase_subject(writer, subject, reason=reason, basis=basis, actor=_actor(actor, Role.COMPLIANCE))
    if not erased:
        output.print("The log holds nothing of this subject; nothing was erased or recorded.")
        raise typer.Exit(1)
    output.print(
        f"Erased: the payloads, salts and key of {len(erased)} records ({literal(erased)}). Their leaves stay, and every proof still verifies."
    )
    output.print(
        "Copies of the vault (backups of the keys) still hold the key: delete or replace them. The log's own backups cannot be read without it."
    )


COMMANDS: tuple[Callable[..., None], ...] = (review, amend, disclose, notice, hold, release, erase)


def _site_log() -> LogConfiguration:
    found = LogConfiguration.find()
    if found is None:
        raise AuditSetupError("No audit log is set up here; `audit init` makes one.")
    return found


def _actor(given: str | None, role: Role) -> Actor:
    account = operator()
    return account.model_copy(update={"role": role}) if given is None else Actor(id=given, role=role, client=account.client)


def _digest(record: str) -> str:
    digest = record.removeprefix(RECORD)
    if not record.startswith(RECORD) or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise InvalidValueError("RECORD", "not the record of a result", f"what the report prints: {RECORD} and 64 hex digits")
    return digest


def _record_about(payload: Payload, **about: Any) -> None:
    """Record what is about an answer, which has to be in this log."""
    with _site_log().write() as log, log.exclusively() as inside:
        reader = DatabaseReader(inside.database, log.verifiers, inside.vault)
        entry = about_result(reader, payload, **about)
        if entry.like is None:
            raise AuditSetupError("The log has no record of this answer: it was given elsewhere, or was erased. Nothing was recorded.")
        if entry.supersedes is not None and entry.supersedes not in reader.named(payload.records()[0]):
            raise InvalidValueError("--supersedes", entry.supersedes, "a record about the same answer (`audit list --about RECORD`)")
        [receipt] = inside.record([entry])
    output.print(f"Recorded as {receipt.index}.")


def _record_of(subject: str, payload: Payload, purpose: Purpose) -> None:
    with _site_log().write() as log:
        receipt = log.append(payload, subject=subject, purpose=purpose)
    output.print(f"Recorded as {receipt.index}.")


def _hold(subject: str, action: str, reason: str, authority: str, actor: str | None) -> None:
    configuration = _site_log()
    with configuration.read() as log:
        known = bool(log.named(subject))
    if not known:
        raise AuditSetupError("The log has no record of this subject; is the name spelled as it was when it was recorded?")
    payload = LegalHold.model_validate({"actor": _actor(actor, Role.COMPLIANCE), "action": action, "reason": reason, "authority": authority})
    _record_of(subject, payload, Purpose.LEGAL)
