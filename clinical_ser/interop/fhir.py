"""One screening as a FHIR R4 (4.0.1) transaction Bundle that a record system's server takes.

The one idea: posted twice, it creates nothing twice, and posted again after a review, it brings the review: what never changes is created unless it
is there (`ifNoneExist`), what a review changes is updated by its identifier (`PUT …?identifier=`), and what R4 gives no identifier (Provenance,
AuditEvent) has its id from here. docs/fhir.md says what each resource holds.

Nothing is read or sent here, and hashes and signatures are over `fhir_bytes`, never over what another library writes again.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import quote

from clinical_ser.audit.events import Inference, QualityRejection, canonical
from clinical_ser.audit.exports.fhir_resources import RESULT, Maker
from clinical_ser.audit.records import Record
from clinical_ser.errors import InvalidValueError
from clinical_ser.interop import fhir_resources as made
from clinical_ser.interop.fhir_resources import Screening
from clinical_ser.interop.fhir_terms import SCREENINGS
from clinical_ser.interop.fhir_words import Reviewed
from clinical_ser.screening.result import ScreeningResult

__all__ = ["MEDIA_TYPE", "Audited", "Reviewed", "SubjectReference", "fhir_bytes", "screening_bundle"]

MEDIA_TYPE = "application/fhir+json"

_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
_PATIENT = re.compile(r"(?:https?://[!-~]+/)?Patient/[A-Za-z0-9\-.]{1,64}")
_SYSTEM = re.compile(r"(?:https?://|urn:)[!-~]+")
_TEXT = re.compile(r"(?=.*\S)[^\x00-\x1f\x7f\ud800-\udfff]{1,500}")
_ADDRESS = re.compile(r"https?://[!-~]+")
_UNQUOTED = ":/|"
"""As FHIR's own examples write a search by identifier, which some servers compare as text."""
_CARRIED = {"payload", "salt"}
"""Details of an AuditEvent that stay in the log: the payload may hold a probability that its reader was not given, and outlives an erasure there."""

Json = dict[str, Any]


@dataclass(frozen=True)
class SubjectReference:
    """Whom a screening is of, as the record system knows the person: either by id or by identifier.

    Parameters
    ----------
    reference
        `Patient/ID`, on the server it is posted to, or that with the server's address before it.
    system, value
        An identifier: the number, and the URI of whoever gives out such numbers.

    Raises
    ------
    InvalidValueError
        Neither or both are given, or one is not of its form. What was given is not in the message.

    Examples
    --------
    >>> SubjectReference(reference="Patient/17").to_json()
    {'reference': 'Patient/17', 'type': 'Patient'}
    """

    reference: str | None = field(default=None, repr=False)
    system: str | None = None
    value: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        identifier = (self.system, self.value)
        if (self.reference is None) is (identifier == (None, None)) or (self.reference is not None and identifier != (None, None)):
            raise InvalidValueError("subject", "none, or two ways to name one", "either a reference, or the system and the value of an identifier")
        if self.reference is not None and not _PATIENT.fullmatch(self.reference):
            raise InvalidValueError("subject", "a reference of another form", "Patient/ID, with or without a server's address before it")
        if self.reference is None and not (_SYSTEM.fullmatch(self.system or "") and _TEXT.fullmatch(self.value or "")):
            raise InvalidValueError("subject", "an identifier of another form", "a system that is a URI, and a value of one line")

    def to_json(self) -> Json:
        """Return it as a FHIR Reference."""
        named = {"reference": self.reference} if self.reference else {"identifier": {"system": self.system, "value": self.value}}
        return {**named, "type": "Patient"}


@dataclass(frozen=True)
class Audited:
    """The record of the answer in the audit log, and the log's origin."""

    record: Record = field(repr=False)
    origin: str


def screening_bundle(
    result: ScreeningResult,
    *,
    screening_id: str,
    subject: SubjectReference,
    recorded: datetime,
    base: str,
    reviews: Sequence[Reviewed] = (),
    report_pdf: bytes | None = None,
    audit: Audited | None = None,
    author: str | None = None,
) -> Json:
    """Return one screening as a transaction Bundle.

    Parameters
    ----------
    result
        The answer.
    screening_id
        Of this screening, and no other: letters, digits, `-` and `.`. A server knows the resources by it, so one id for two persons would mix them.
    subject
        Whom it is of.
    recorded
        When it was screened, with a time zone.
    base
        The address at which the site's service answers people (`https://screening.hospital.example`).
    reviews
        In their order. The last that decided stands (`reviews.standing`); what a record system reported changes no status.
    report_pdf
        The report; left out, the DocumentReference says where the service has it.
    audit
        The answer's record, for an AuditEvent; what is sealed in it stays in the log. Left out, there is none.
    author
        The printed name of whoever asked for the screening.

    Returns
    -------
    dict
        The Bundle, for `fhir_bytes`. The same arguments give the same Bundle.

    Raises
    ------
    InvalidValueError
        The id or the base is not of its form.
    ValueError
        A time has no zone, or the audit record is of another recording.
    """
    screening = _screening(result, screening_id, subject, recorded, base, reviews, audit, author)
    entries = [
        _created(screening, "software", made.software(result.software.get("clinical-ser", "of unknown version"))),
        *([_created(screening, "model", made.model(screening))] if screening.is_answered else []),
        _created(screening, "quality", made.quality(screening)),
        *(_created(screening, made.measure_role(one), made.measure(screening, one)) for one in result.measures),
        *([_updated(screening, "risk", made.risk(screening))] if screening.is_answered else []),
        _updated(screening, "report", made.report(screening)),
        _updated(screening, "document", made.document(screening, report_pdf)),
        _put(screening, "provenance", made.provenance(screening)),
        *(_put(screening, f"review/{number}", made.review_provenance(screening, number)) for number in range(len(reviews))),
    ]
    if audit is not None:
        entries += _audit_entries(screening, audit, entries)
    return {
        "resourceType": "Bundle",
        "identifier": {"system": SCREENINGS, "value": screening_id},
        "type": "transaction",
        "timestamp": made.time_text(max([recorded, *(review.time for review in reviews)])),
        "entry": entries,
    }


def fhir_bytes(resource: Json) -> bytes:
    """Return a resource's bytes: canonical JSON (RFC 8785). These are what is hashed, signed and sent."""
    return canonical(resource)


def _screening(
    result: ScreeningResult,
    screening_id: str,
    subject: SubjectReference,
    recorded: datetime,
    base: str,
    reviews: Sequence[Reviewed],
    audit: Audited | None,
    author: str | None,
) -> Screening:
    """Check what has a form, and gather it."""
    if not _ID.fullmatch(screening_id):
        raise InvalidValueError("screening_id", "a text of another form", "1 to 64 letters, digits, '-' or '.'")
    if not _ADDRESS.fullmatch(base):
        raise InvalidValueError("base", "a text of another form", "an address that begins with https:// or http://")
    if any(moment.utcoffset() is None for moment in (recorded, *(review.time for review in reviews))):
        raise ValueError("a time needs its zone")
    payload = audit.record.payload if audit else None
    answered = payload if isinstance(payload, Inference | QualityRejection) else None
    if answered is not None and answered.recording != result.recording.sha256:
        raise ValueError("the audit record is of another recording")
    return Screening(
        result=result,
        id=screening_id,
        # Several milliseconds of hashing, and the log has it.
        record=answered.result if answered else result.digest,
        subject=subject.to_json(),
        recorded=recorded,
        address=f"{base.rstrip('/')}/v1/screenings/{screening_id}",
        reviews=tuple(reviews),
        author=author,
    )


def _created(screening: Screening, role: str, resource: Json) -> Json:
    """Return the entry of what never changes."""
    kind = resource["resourceType"]
    return {
        "fullUrl": screening.urn(role),
        "resource": resource,
        "request": {"method": "POST", "url": kind, "ifNoneExist": _search(resource["identifier"][0])},
    }


def _updated(screening: Screening, role: str, resource: Json) -> Json:
    """Return the entry of what a review changes."""
    url = f"{resource['resourceType']}?{_search(resource['identifier'][0])}"
    return {"fullUrl": screening.urn(role), "resource": resource, "request": {"method": "PUT", "url": url}}


def _put(screening: Screening, role: str, resource: Json) -> Json:
    """Return the entry of what has no identifier in R4, and so an id from us."""
    url = f"{resource['resourceType']}/{resource['id']}"
    return {"fullUrl": screening.urn(role), "resource": resource, "request": {"method": "PUT", "url": url}}


def _search(identifier: Json) -> str:
    return f"identifier={quote(identifier['system'] + '|' + identifier['value'], safe=_UNQUOTED)}"


def _audit_entries(screening: Screening, audit: Audited, entries: Sequence[Json]) -> list[Json]:
    """Return the log's own AuditEvent, its references led to this Bundle and to the record system's patient; and the devices that it alone names."""
    maker = Maker(audit.origin, None)
    event = maker.event(audit.record, None)
    here = {_first_identifier(entry["resource"]): entry["fullUrl"] for entry in entries if entry["resource"]["resourceType"] == "Device"}
    added, led = [], {}
    for number, device in enumerate(maker.devices()):
        address = here.get(_first_identifier(device))
        if address is None:
            role = f"audit-device/{number}"
            added.append(_created(screening, role, {name: value for name, value in device.items() if name != "id"}))
            address = screening.urn(role)
        led[f"Device/{device['id']}"] = address
    return [*added, _put(screening, "audit", _led(event, led, screening))]


def _first_identifier(resource: Json) -> tuple[str, str]:
    identifier = resource["identifier"][0]
    return identifier["system"], identifier["value"]


def _led(event: Json, addresses: dict[str, str], screening: Screening) -> Json:
    """Return an AuditEvent with its references led elsewhere, without what stays in the log."""

    def reference(what: Json) -> Json:
        if "reference" in what:
            return {**what, "reference": addresses[what["reference"]]}
        if what.get("type") == "Patient":
            return screening.subject
        is_result = what.get("identifier", {}).get("system") == RESULT
        return {**what, **(screening.reference("report") if is_result else {})}

    def entity(one: Json) -> Json:
        details = [detail for detail in one.get("detail", []) if detail["type"] not in _CARRIED]
        rest = {name: value for name, value in one.items() if name != "detail"}
        return {**rest, "what": reference(one["what"]), **({"detail": details} if details else {})}

    source = event["source"]
    return {
        **event,
        "agent": [{**agent, **({"who": reference(agent["who"])} if "who" in agent else {})} for agent in event["agent"]],
        "source": {**source, "observer": reference(source["observer"])},
        "entity": [entity(one) for one in event["entity"]],
    }
