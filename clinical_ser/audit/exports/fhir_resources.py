"""AuditEvents and Devices (FHIR R4) made from records: which kind of event is what in FHIR's, DICOM's, ISO's and IHE's terms.

The one idea: an AuditEvent carries the record it was made from (index, leaf, and the payload with its salt where they are exported), so that a
verifier makes it anew and compares every byte. What cannot be made anew is not in it.

A record gets a profile of IHE's Basic Audit Log Patterns (BALP) only where it has all that the profile asks for, and else the base resource with
codes of ISO 21089, DICOM or our own:

=================  ============================================================  ==================================================
kind               with a profile                                                else: type / subtype
=================  ============================================================  ==================================================
inference          (Patient)Create, when it succeeded and the address is known   ISO 21089 originate
quality_rejection  the same                                                      ISO 21089 originate
report viewed      (Patient)Read, likewise                                       ISO 21089 access
report amended     (Patient)Update, likewise                                     ISO 21089 amend
report exported    none: to a file is no RESTful operation, and to whom unknown  DICOM Export / ISO 21089 report
disclosure         PrivacyDisclosure.Source, when the subject is known           DICOM Export / ISO 21089 disclose
review             none: BALP has no pattern for a decision                      ISO 21089 attest
erasure            none: BALP's Delete ends a resource, and the record stays     ISO 21089 destroy
legal_hold         none                                                          ISO 21089 hold, unhold
model              none                                                          DICOM Security Alert / Software Configuration
configuration      none                                                          DICOM Security Alert / Security Configuration
submission         none: it is kept until it is answered, and read by nobody     ISO 21089 receive; our own code when it failed
access_denied      none: BALP's AuthZ decision asks for a consent                DICOM Security Alert / Use of Restricted Function
audit_export       none                                                          DICOM Audit Log Used
service            none                                                          DICOM Application Activity / Application Start, Stop
notice, federated_round, drift_alarm                                             our own code: neither system has one
=================  ============================================================  ==================================================

The address is `actor.client` where that is an IP address, a host name with a dot in it, or a URI: what asked over no network (a command) is no
RESTful operation. Our own is the host in the log's origin.

A record whose payload is not exported tells its kind, time, outcome, role and purpose, and never a profile: BALP asks who.

Nobody is a Patient here: the subject is a logical reference by `subject_tag`, or, in the export about one subject, by the pseudonym that the caller
gives. `recorded` is the log's own text. A result is labelled AIAST (Artificial Intelligence asserted).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, TypeGuard

from clinical_ser.audit.events import (
    Disclosure,
    Event,
    Inference,
    LegalHold,
    Outcome,
    Payload,
    QualityRejection,
    ReportAction,
    Role,
    Service,
    Submission,
)
from clinical_ser.audit.exports.fhir_rules import (
    ACT_REASON,
    BALP,
    DICOM,
    ENTITY_TYPE,
    EVENT_TYPE,
    LIFECYCLE,
    OBJECT_ROLE,
    OBSERVATION_VALUE,
    PARTICIPATION,
    RESTFUL,
    SOURCE_TYPE,
    code,
    network_type,
)
from clinical_ser.audit.exports.shown import to_base64
from clinical_ser.audit.merkle import leaf_hash
from clinical_ser.audit.records import Record

_ABSENT = "http://hl7.org/fhir/StructureDefinition/data-absent-reason"

KIND = "clinical-ser:audit-event-kind"
ROLE = "clinical-ser:role"
ACCOUNT = "clinical-ser:account"
CLIENT = "clinical-ser:client"
MODEL = "clinical-ser:model"
SOFTWARE = "clinical-ser:software"
RESULT = "clinical-ser:result"
SUBJECT_TAG = "clinical-ser:subject-tag"
PSEUDONYM = "clinical-ser:pseudonym"
LOG = "clinical-ser:log"
"""Our own systems, spelled like the records in reports (`clinical-ser:result:...`)."""

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
"""What FHIR's strings must not hold."""

_OUTCOME = {Outcome.SUCCESS: "0", Outcome.REFUSED: "4", Outcome.FAILED: "8"}
_MACHINES = {Role.SERVICE, Role.NODE}
_ASKING, _RECEIVING = "125", "245"
"""Kinds of network address that ask: host name, IP, URI; and that are sent to: IP, e-mail, URI (a recipient's "St.Mary" is no host)."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Act:
    """What kind of act an event is in FHIR's terms: type and subtype as (system, code), and the action (CRUDE)."""

    type: tuple[str, str]
    action: str | None
    subtype: tuple[str, str] | None = None


_OWN = ("", "")
_ACTS: Mapping[str, Act] = {
    "inference": Act((LIFECYCLE, "originate"), "C"),
    "quality_rejection": Act((LIFECYCLE, "originate"), "C"),
    "report": Act(_OWN, None),
    "report viewed": Act((LIFECYCLE, "access"), "R"),
    "report exported": Act((DICOM, "110106"), "R", (LIFECYCLE, "report")),
    "report amended": Act((LIFECYCLE, "amend"), "U"),
    "disclosure": Act((DICOM, "110106"), "R", (LIFECYCLE, "disclose")),
    "review": Act((LIFECYCLE, "attest"), "C"),
    "erasure": Act((LIFECYCLE, "destroy"), "D"),
    "legal_hold": Act(_OWN, "U"),
    "legal_hold placed": Act((LIFECYCLE, "hold"), "U"),
    "legal_hold released": Act((LIFECYCLE, "unhold"), "U"),
    "model": Act((DICOM, "110113"), "U", (DICOM, "110131")),
    "configuration": Act((DICOM, "110113"), "U", (DICOM, "110129")),
    "access_denied": Act((DICOM, "110113"), "E", (DICOM, "110132")),
    "submission": Act(_OWN, None),
    "submission accepted": Act((LIFECYCLE, "receive"), "C"),
    "submission failed": Act(_OWN, "E"),
    "audit_export": Act((DICOM, "110101"), "R"),
    "service": Act((DICOM, "110100"), "E"),
    "service started": Act((DICOM, "110100"), "E", (DICOM, "110120")),
    "service stopped": Act((DICOM, "110100"), "E", (DICOM, "110121")),
    "service recovered": Act((DICOM, "110100"), "E", (DICOM, "110120")),
    "notice": Act(_OWN, "E"),
    "federated_round": Act(_OWN, "E"),
    "drift_alarm": Act(_OWN, "E"),
}
"""By kind, and by kind and action where the payload says one."""


@dataclass(frozen=True)
class Rest:
    """BALP's pattern for a RESTful operation: the profile's name, and who is where; client and server change places between reading and writing."""

    name: str
    subtype: str
    client: str
    server: str
    user: str


_SOURCE, _DESTINATION = "110153", "110152"
_RESTS = {
    "C": Rest("Create", "create", _SOURCE, _DESTINATION, "AUT"),
    "R": Rest("Read", "read", _DESTINATION, _SOURCE, "IRCP"),
    "U": Rest("Update", "update", _SOURCE, _DESTINATION, "AUT"),
}


class Maker:
    """Makes resources of records, and knows the devices that they name.

    Parameters
    ----------
    origin
        The log's.
    pseudonym
        What to call the subject; its tag in each event when None.
    """

    def __init__(self, origin: str, pseudonym: str | None) -> None:
        self.origin = origin
        self.pseudonym = pseudonym
        self._devices: dict[str, Json] = {}

    def event(self, record: Record, path: Sequence[bytes] | None) -> Json:
        """Return a record's AuditEvent; with its audit path, where the export is not the whole log."""
        event, payload = record.event, record.payload
        act = _act_of(event, payload)
        rest = _rest_of(event, payload, act)
        observer = self._software(event.software)
        agents = _rest_agents(payload, rest, observer, self.origin) if payload is not None and rest else self._agents(event, payload, observer)
        profile = self._profile(event, payload, rest)
        return {
            "resourceType": "AuditEvent",
            "id": event.id,
            **({"meta": {"profile": [BALP + profile]}} if profile else {}),
            "type": code(EVENT_TYPE, "rest") if rest else _coding(act.type, event.kind),
            "subtype": _subtypes(event.kind, act, rest),
            **({"action": act.action} if act.action else {}),
            "recorded": event.time,
            "outcome": _OUTCOME[event.outcome],
            **({} if event.outcome is Outcome.SUCCESS else {"outcomeDesc": event.outcome.value}),
            "purposeOfEvent": [{"coding": [code(ACT_REASON, event.purpose.value)]}],
            "agent": agents,
            "source": {"site": self.origin, "observer": observer, "type": [code(SOURCE_TYPE, "4")]},
            "entity": self._entities(record, path),
        }

    def devices(self) -> list[Json]:
        """Return the devices that the resources made so far name, by their ids."""
        return [self._devices[name] for name in sorted(self._devices)]

    def _profile(self, event: Event, payload: Payload | None, rest: Rest | None) -> str | None:
        if rest:
            return f"IHE.BasicAudit.{'Patient' if event.subject_tag else ''}{rest.name}"
        if isinstance(payload, Disclosure) and event.subject_tag:
            return "IHE.BasicAudit.PrivacyDisclosure.Source"
        return None

    def _agents(self, event: Event, payload: Payload | None, observer: Json) -> list[Json]:
        """Return who took part where no RESTful pattern fits."""
        system = {"who": observer, "requestor": False, "network": _own_network(self.origin)}
        if isinstance(payload, Disclosure):
            source = {"type": {"coding": [code(DICOM, _SOURCE)]}, **system}
            return [source, _recipient(payload), _actor(event, payload)]
        return [_actor(event, payload), {"type": {"coding": [code(DICOM, "110150")]}, **system}]

    def _entities(self, record: Record, path: Sequence[bytes] | None) -> list[Json]:
        event, payload = record.event, record.payload
        entities: list[Json] = []
        if event.subject_tag:
            system, value = (PSEUDONYM, self.pseudonym) if self.pseudonym else (SUBJECT_TAG, event.subject_tag)
            patient = {"type": "Patient", "identifier": {"system": system, "value": _text(value)}}
            entities.append({"what": patient, "type": code(ENTITY_TYPE, "1"), "role": code(OBJECT_ROLE, "1")})
        if (data := _data(payload)) is not None:
            entities.append(data)
        if event.model:
            entities.append({"what": self._model(event.model, payload), "type": code(ENTITY_TYPE, "4")})
        # What is tied to the record by hash comes last, so that a reader who looks for persons and results sees them first.
        entities.append(_evidence(record, path, self.origin))
        return entities

    def _software(self, software: str) -> Json:
        name = sha256(software.encode()).hexdigest()
        if name not in self._devices:
            self._devices[name] = {
                "resourceType": "Device",
                "id": name,
                "identifier": [{"system": SOFTWARE, "value": _text(software)}],
                "status": "active",
                "deviceName": [{"name": _text(software), "type": "user-friendly-name"}],
            }
        return {"reference": f"Device/{name}"}

    def _model(self, digest: str, payload: Payload | None) -> Json:
        """Name a model by its digest: 64 characters, as many as an id may have."""
        if digest not in self._devices:
            self._devices[digest] = {"resourceType": "Device", "id": digest, "identifier": [{"system": MODEL, "value": f"sha256:{digest}"}]}
        if isinstance(payload, Inference | QualityRejection) and "deviceName" not in self._devices[digest]:
            named = {"deviceName": [{"name": _text(payload.model_name), "type": "model-name"}], "version": [{"value": _text(payload.model_version)}]}
            self._devices[digest] |= named
        return {"reference": f"Device/{digest}"}


def _act_of(event: Event, payload: Payload | None) -> Act:
    if isinstance(payload, ReportAction | LegalHold | Service | Submission):
        return _ACTS[f"{event.kind} {payload.action}"]
    return _ACTS[event.kind]


def _rest_of(event: Event, payload: Payload | None, act: Act) -> Rest | None:
    """Return the RESTful pattern, where it applies and the record has all that it asks for."""
    is_restful = isinstance(payload, Inference | QualityRejection) or (isinstance(payload, ReportAction) and payload.action != "exported")
    known = payload is not None and _is_address(payload.actor.client, _ASKING) and event.outcome is Outcome.SUCCESS
    return _RESTS[act.action] if is_restful and known and act.action else None


def _coding(coding: tuple[str, str], kind: str) -> Json:
    return {"system": KIND, "code": kind} if coding == _OWN else code(*coding)


def _subtypes(kind: str, act: Act, rest: Rest | None) -> list[Json]:
    standard = (RESTFUL, rest.subtype) if rest else act.subtype
    return [*([code(*standard)] if standard else []), {"system": KIND, "code": kind}]


def _role(role: Role) -> Json:
    return {"coding": [{"system": ROLE, "code": role.value}]}


def _who(system: str, value: str) -> Json:
    return {"identifier": {"system": system, "value": _text(value)}}


def _actor(event: Event, payload: Payload | None) -> Json:
    """Return whoever acted: without the payload, only in what role."""
    if payload is None:
        return {"role": [_role(event.role)], "requestor": True}
    actor = payload.actor
    return {
        "role": [_role(actor.role)],
        "who": _who(ACCOUNT, actor.id),
        **({"name": _text(actor.name)} if actor.name else {}),
        "requestor": True,
        **({"network": _network(actor.client)} if _is_address(actor.client, _ASKING) else {}),
    }


def _rest_agents(payload: Payload, rest: Rest, observer: Json, origin: str) -> list[Json]:
    actor, client = payload.actor, payload.actor.client or ""
    by_machine = actor.role in _MACHINES
    asking = {
        "type": {"coding": [code(DICOM, rest.client)]},
        "who": _who(ACCOUNT, actor.id) if by_machine else _who(CLIENT, client),
        "requestor": by_machine,
        "network": _network(client),
    }
    answering = {"type": {"coding": [code(DICOM, rest.server)]}, "who": observer, "requestor": False, "network": _own_network(origin)}
    user = {
        "type": {"coding": [code(PARTICIPATION, rest.user)]},
        "role": [_role(actor.role)],
        "who": _who(ACCOUNT, actor.id),
        **({"name": _text(actor.name)} if actor.name else {}),
        "requestor": True,
    }
    return [asking, answering] if by_machine else [asking, answering, user]


def _recipient(payload: Disclosure) -> Json:
    """Return the one who was given it. BALP asks for a network address, and letters have none: then that is said."""
    address = payload.recipient_address
    return {
        "type": {"coding": [code(DICOM, _DESTINATION)]},
        "who": {"display": _text(payload.recipient)},
        "requestor": False,
        **({"location": {"display": _text(address)}} if address and not _is_address(address, _RECEIVING) else {}),
        "network": _network(address) if _is_address(address, _RECEIVING) else _no_network("not-applicable"),
    }


def _is_address(text: str | None, kinds: str) -> TypeGuard[str]:
    return text is not None and network_type(text) in set(kinds)


def _network(address: str) -> Json:
    """Return an address with its type (http://hl7.org/fhir/network-type)."""
    return {"address": address, "type": network_type(address)}


def _own_network(origin: str) -> Json:
    """Return where this system is, as far as the log's origin, a URL without its scheme, tells."""
    host = origin.partition("/")[0]
    return _network(host) if _is_address(host, _ASKING) else _no_network("unknown")


def _no_network(why: str) -> Json:
    return {"extension": [{"url": _ABSENT, "valueCode": why}]}


def _data(payload: Payload | None) -> Json | None:
    """Return the result that it is about, labelled as what a model said; a refused recording is no such thing."""
    if payload is None:
        return None
    result = next(iter(payload.records()), None)
    if result is None and not isinstance(payload, Disclosure):
        return None
    is_report = isinstance(payload, ReportAction | Disclosure)
    what = _who(RESULT, result) if result else {"display": "not a result of this system"}
    return {
        "what": what,
        "type": code(ENTITY_TYPE, "2"),
        "role": code(OBJECT_ROLE, "3" if is_report else "4"),
        **({"securityLabel": [code(OBSERVATION_VALUE, "AIAST")]} if result and not isinstance(payload, QualityRejection) else {}),
        **({"description": _text(payload.description)} if isinstance(payload, Disclosure) else {}),
    }


def _evidence(record: Record, path: Sequence[bytes] | None, origin: str) -> Json:
    """Return the record itself, so that it is found in the log, proved to be in it, and the resource made anew."""
    details: list[Json] = [
        {"type": "index", "valueString": str(record.index)},
        {"type": "leaf-hash", "valueString": leaf_hash(record.leaf).hex()},
        {"type": "state", "valueString": record.state},
        {"type": "leaf", "valueBase64Binary": to_base64(record.leaf)},
    ]
    if path is not None and path:
        details.append({"type": "inclusion-proof", "valueBase64Binary": to_base64(b"".join(path))})
    if record.payload is not None and record.salt is not None:
        details.append({"type": "payload", "valueBase64Binary": to_base64(record.payload.canonical())})
        details.append({"type": "salt", "valueBase64Binary": to_base64(record.salt)})
    details += [{"type": "flag", "valueString": flag.value} for flag in record.event.flags]
    if record.event.supersedes is not None:
        details.append({"type": "supersedes", "valueString": str(record.event.supersedes)})
    return {"what": _who(LOG, f"{origin}/{record.index}"), "type": code(ENTITY_TYPE, "4"), "detail": details}


def _text(text: str) -> str:
    """Return text as FHIR's strings may be: no control characters, not blank. What was there is in the payload that goes along."""
    shown = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
    return shown if shown.strip() else "\N{REPLACEMENT CHARACTER}"
