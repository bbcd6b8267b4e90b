"""What FHIR R4 and IHE's BALP ask of an AuditEvent and a Device, as tables, and a walker that holds a resource against them.

The one idea: the tables are read off the two specifications and know nothing of how `fhir.py` makes resources, so that a mistake there does not hide
itself. They hold the elements that our exports use, and refuse all others.

This is no HL7 validator: it checks names, cardinalities, primitive types, required bindings, the invariant sev-1, the codes of the systems listed
here, that a network address is one, and the BALP slices of the profiles listed here. It resolves no terminology, no references, and no profile but
these.

Sources: FHIR 4.0.1, AuditEvent, Device and datatypes; IHE's ITI.BasicAudit on GitHub, input/fsh: PatientCreate, PatientRead and PatientUpdate at
03772e1, Disclose at 0b8e76e.
"""

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

BALP = "https://profiles.ihe.net/ITI/BALP/StructureDefinition/"

ACT_REASON = "http://terminology.hl7.org/CodeSystem/v3-ActReason"
DICOM = "http://dicom.nema.org/resources/ontology/DCM"
ENTITY_TYPE = "http://terminology.hl7.org/CodeSystem/audit-entity-type"
EVENT_TYPE = "http://terminology.hl7.org/CodeSystem/audit-event-type"
LIFECYCLE = "http://terminology.hl7.org/CodeSystem/iso-21089-lifecycle"
OBJECT_ROLE = "http://terminology.hl7.org/CodeSystem/object-role"
OBSERVATION_VALUE = "http://terminology.hl7.org/CodeSystem/v3-ObservationValue"
PARTICIPATION = "http://terminology.hl7.org/CodeSystem/v3-ParticipationType"
RESTFUL = "http://hl7.org/fhir/restful-interaction"
SOURCE_TYPE = "http://terminology.hl7.org/CodeSystem/security-source-type"

CODES: Mapping[str, Mapping[str, str]] = {
    ACT_REASON: dict.fromkeys(("TREAT", "HOPERAT", "HPAYMT", "HRESCH", "PATRQT", "PUBHLTH", "HLEGAL", "HSYSADMIN", "HCOMPL"), ""),
    DICOM: {
        "110100": "Application Activity",
        "110101": "Audit Log Used",
        "110106": "Export",
        "110113": "Security Alert",
        "110120": "Application Start",
        "110121": "Application Stop",
        "110129": "Security Configuration",
        "110131": "Software Configuration",
        "110132": "Use of Restricted Function",
        "110150": "Application",
        "110152": "Destination Role ID",
        "110153": "Source Role ID",
    },
    ENTITY_TYPE: {"1": "Person", "2": "System Object", "3": "Organization", "4": "Other"},
    EVENT_TYPE: {"rest": "Restful Operation"},
    LIFECYCLE: {
        "access": "Access/View Record Lifecycle Event",
        "amend": "Amend (Update) Record Lifecycle Event",
        "attest": "Attest Record Lifecycle Event",
        "destroy": "Destroy/Delete Record Lifecycle Event",
        "disclose": "Disclose Record Lifecycle Event",
        "hold": "Add Legal Hold Record Lifecycle Event",
        "originate": "Originate/Retain Record Lifecycle Event",
        "receive": "Receive/Retain Record Lifecycle Event",
        "report": "Report (Output) Record Lifecycle Event",
        "unhold": "Remove Legal Hold Record Lifecycle Event",
    },
    OBJECT_ROLE: {"1": "Patient", "3": "Report", "4": "Domain Resource"},
    OBSERVATION_VALUE: {"AIAST": "Artificial Intelligence asserted"},
    PARTICIPATION: {"AUT": "author (originator)", "IRCP": "information recipient"},
    RESTFUL: {"create": "create", "read": "read", "update": "update"},
    SOURCE_TYPE: {"4": "Application Server"},
}
"""The codes that our exports use of each code system, with the display that goes with them; the empty text where we give none."""

_NETWORK_TYPES = frozenset("12345")
_URI = re.compile(r"[a-z][a-z0-9+.-]*://[!-~]+")
_EMAIL = re.compile(r"[!-?A-~]+@[!-?A-~]+")
_HOST = re.compile(r"(?=.{1,253}\Z)(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
"""RFC 1123, with a dot in it: a single label cannot be told from the name of a program."""
_BINDINGS: Mapping[str, frozenset[str]] = {
    "AuditEvent.action": frozenset("CRUDE"),
    "AuditEvent.outcome": frozenset({"0", "4", "8", "12"}),
    "AuditEvent.agent.network.type": _NETWORK_TYPES,
    "Device.status": frozenset({"active", "inactive", "entered-in-error", "unknown"}),
    "Device.deviceName.type": frozenset(
        {"udi-label-name", "user-friendly-name", "patient-reported-name", "manufacturer-name", "model-name", "other"}
    ),
}
"""Required bindings (FHIR 4.0.1); a code in another element must be of its system in `CODES`."""

_PRIMITIVES: Mapping[str, re.Pattern[str]] = {
    "base64Binary": re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"),
    "canonical": re.compile(r"[a-z][a-z0-9+.-]*:\S+"),
    "code": re.compile(r"[^\s]+(\s[^\s]+)*"),
    "id": re.compile(r"[A-Za-z0-9\-.]{1,64}"),
    "instant": re.compile(
        r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:([0-5][0-9]|60)(\.[0-9]+)?(Z|[+-](0[0-9]|1[0-4]):[0-5][0-9])"
    ),
    "string": re.compile(r"(?=\s*\S)[^\x00-\x08\x0b\x0c\x0e-\x1f]+"),
    "uri": re.compile(r"\S+"),
}
"""FHIR's primitive types; strings hold no control characters and are not blank, and a `canonical` is absolute."""

_TYPES: Mapping[str, Mapping[str, str]] = {
    "Meta": {"profile": "0..* canonical", "security": "0..* Coding"},
    "Extension": {"url": "1..1 uri", "valueCode": "0..1 code"},
    "Coding": {"system": "0..1 canonical", "code": "0..1 code", "display": "0..1 string"},
    "CodeableConcept": {"coding": "0..* Coding", "text": "0..1 string"},
    "Identifier": {"system": "0..1 canonical", "value": "0..1 string"},
    "Reference": {"reference": "0..1 string", "type": "0..1 uri", "identifier": "0..1 Identifier", "display": "0..1 string"},
    "AuditEvent": {
        "resourceType": "1..1 code",
        "id": "0..1 id",
        "meta": "0..1 Meta",
        "type": "1..1 Coding",
        "subtype": "0..* Coding",
        "action": "0..1 code",
        "recorded": "1..1 instant",
        "outcome": "0..1 code",
        "outcomeDesc": "0..1 string",
        "purposeOfEvent": "0..* CodeableConcept",
        "agent": "1..* Agent",
        "source": "1..1 Source",
        "entity": "0..* Entity",
    },
    "Agent": {
        "type": "0..1 CodeableConcept",
        "role": "0..* CodeableConcept",
        "who": "0..1 Reference",
        "name": "0..1 string",
        "requestor": "1..1 boolean",
        "location": "0..1 Reference",
        "network": "0..1 Network",
        "purposeOfUse": "0..* CodeableConcept",
    },
    "Network": {"extension": "0..* Extension", "address": "0..1 string", "type": "0..1 code"},
    "Source": {"site": "0..1 string", "observer": "1..1 Reference", "type": "0..* Coding"},
    "Entity": {
        "what": "0..1 Reference",
        "type": "0..1 Coding",
        "role": "0..1 Coding",
        "securityLabel": "0..* Coding",
        "name": "0..1 string",
        "description": "0..1 string",
        "query": "0..1 base64Binary",
        "detail": "0..* Detail",
    },
    "Detail": {"type": "1..1 string", "valueString": "0..1 string", "valueBase64Binary": "0..1 base64Binary"},
    "Device": {
        "resourceType": "1..1 code",
        "id": "0..1 id",
        "meta": "0..1 Meta",
        "identifier": "0..* Identifier",
        "status": "0..1 code",
        "deviceName": "0..* DeviceName",
        "type": "0..1 CodeableConcept",
        "version": "0..* DeviceVersion",
    },
    "DeviceName": {"name": "1..1 string", "type": "1..1 code"},
    "DeviceVersion": {"value": "1..1 string"},
}


def code(system: str, value: str) -> dict[str, str]:
    """Return a Coding of one of the systems in `CODES`, with its display."""
    display = CODES[system][value]
    return {"system": system, "code": value, **({"display": display} if display else {})}


def network_type(address: str) -> str | None:
    """Return what kind of network address a text is (http://hl7.org/fhir/network-type), None where it is none.

    Examples
    --------
    >>> network_type("10.0.0.7"), network_type("ehr.example.org"), network_type("https://ehr.example/fhir"), network_type("an EHR")
    ('2', '1', '5', None)
    """
    for kind, pattern in (("5", _URI), ("4", _EMAIL), ("1", _HOST)):
        if pattern.fullmatch(address):
            return kind
    try:
        # A zone (%eth0) means something on one machine only, and may hold anything.
        return "2" if "%" not in address and ipaddress.ip_address(address) else None
    except ValueError:
        return None


@dataclass(frozen=True)
class Slice:
    """Entries of a list that a profile knows by their type.

    Parameters
    ----------
    name
        As the profile calls it.
    types
        The codings, one of which makes an entry one of this slice.
    at_least, at_most
        How many there have to be, and may be.
    needs, forbids
        Elements that each must have, and must not.
    among
        Elements with the values, one of which each must have.
    """

    name: str
    types: tuple[Mapping[str, str], ...]
    at_least: int
    at_most: int
    needs: tuple[str, ...] = ()
    forbids: tuple[str, ...] = ()
    among: tuple[tuple[str, tuple[object, ...]], ...] = ()


@dataclass(frozen=True)
class Profile:
    """What a BALP profile asks beyond the base resource.

    Parameters
    ----------
    type, action
        What they have to be.
    subtype
        Which has to be among the subtypes.
    outcome
        What it has to be; any, but there, when None.
    agents, entities
        The slices.
    least_entities
        How many entities there have to be.
    observed
        The slice of agents whose `who` is the observer (val-audit-source).
    """

    type: Mapping[str, str]
    action: str
    subtype: Mapping[str, str]
    outcome: str | None
    agents: tuple[Slice, ...]
    entities: tuple[Slice, ...]
    least_entities: int
    observed: str | None = None


_PATIENT = Slice("patient", (code(ENTITY_TYPE, "1"),), 1, 1, needs=("what",), among=(("role", (code(OBJECT_ROLE, "1"),)),))
_DATA = Slice("data", (code(ENTITY_TYPE, "2"),), 1, 1, needs=("what",), among=(("role", (code(OBJECT_ROLE, "3"), code(OBJECT_ROLE, "4"))),))


def _rest(subtype: str, action: str, client: str, server: str, user: str, *, patient: bool) -> Profile:
    """Return BALP's pattern for a RESTful operation; client and server change roles between reading and writing."""
    agents = (
        Slice("client", (code(DICOM, client),), 1, 1, needs=("who", "network"), forbids=("media",)),
        Slice("server", (code(DICOM, server),), 1, 1, needs=("who", "network"), forbids=("media",)),
        Slice("user", (code(PARTICIPATION, user),), 0, 1, needs=("who",), forbids=("media", "network"), among=(("requestor", (True,)),)),
    )
    entities = (_DATA, _PATIENT) if patient else (_DATA,)
    return Profile(code(EVENT_TYPE, "rest"), action, code(RESTFUL, subtype), "0", agents, entities, least_entities=len(entities))


_SOURCE, _DESTINATION = "110153", "110152"
PROFILES: Mapping[str, Profile] = {
    "IHE.BasicAudit.Create": _rest("create", "C", _SOURCE, _DESTINATION, "AUT", patient=False),
    "IHE.BasicAudit.PatientCreate": _rest("create", "C", _SOURCE, _DESTINATION, "AUT", patient=True),
    "IHE.BasicAudit.Read": _rest("read", "R", _DESTINATION, _SOURCE, "IRCP", patient=False),
    "IHE.BasicAudit.PatientRead": _rest("read", "R", _DESTINATION, _SOURCE, "IRCP", patient=True),
    "IHE.BasicAudit.Update": _rest("update", "U", _SOURCE, _DESTINATION, "AUT", patient=False),
    "IHE.BasicAudit.PatientUpdate": _rest("update", "U", _SOURCE, _DESTINATION, "AUT", patient=True),
    "IHE.BasicAudit.PrivacyDisclosure.Source": Profile(
        type={"system": DICOM, "code": "110106"},
        action="R",
        subtype={"system": LIFECYCLE, "code": "disclose"},
        outcome=None,
        agents=(
            Slice("source", ({"system": DICOM, "code": _SOURCE},), 1, 1, needs=("who", "network")),
            Slice("recipient", ({"system": DICOM, "code": _DESTINATION},), 1, 1, needs=("who", "network")),
        ),
        entities=(_PATIENT,),
        least_entities=2,
        observed="source",
    ),
}
"""The profiles that our exports claim, by the last part of their address."""


def check_resource(resource: object) -> list[str]:
    """Return what is wrong with a resource, each with its place; nothing when it is in order.

    Parameters
    ----------
    resource
        An AuditEvent or a Device as parsed from JSON.

    Examples
    --------
    >>> check_resource({"resourceType": "Device", "status": "broken"})
    ["Device.status: 'broken' is not in its required value set"]
    """
    # A list and not a set: what is looked up may have no hash.
    if not isinstance(resource, dict) or resource.get("resourceType") not in ["AuditEvent", "Device"]:
        return ["resource: neither an AuditEvent nor a Device"]
    name = resource["resourceType"]
    problems = list(_check_object(resource, name, name))
    # The profiles' rules are about resources that are well formed.
    if not problems and name == "AuditEvent":
        problems += _check_invariants(resource)
        for address in resource.get("meta", {}).get("profile", []):
            problems += _check_profile(resource, address)
    return problems


def _check_object(value: object, kind: str, path: str) -> Iterator[str]:
    if not isinstance(value, dict) or not value:
        yield f"{path}: not an object with something in it"
        return
    elements = _TYPES[kind]
    for unknown in sorted(set(value) - set(elements)):
        yield f"{path}: has {unknown!r}, which no export of ours has there"
    for name, rule in elements.items():
        yield from _check_element(value, name, rule, f"{path}.{name}")
    if kind == "Coding":
        yield from _check_coding(value, path)
    if kind == "Network" and isinstance(address := value.get("address"), str):
        yield from _check_network(address, value.get("type"), path)
    if kind == "Detail" and ("valueString" in value) is ("valueBase64Binary" in value):
        yield f"{path}: has not exactly one value"


def _check_element(value: Mapping[str, Any], name: str, rule: str, path: str) -> Iterator[str]:
    cardinality, kind = rule.split(" ")
    if name not in value:
        if cardinality.startswith("1"):
            yield f"{path}: is missing"
        return
    item = value[name]
    if cardinality.endswith("1"):
        yield from _check_value(item, kind, path)
    elif not isinstance(item, list) or not item:
        yield f"{path}: not a list with something in it"
    else:
        for one in item:
            yield from _check_value(one, kind, path)


def _check_value(value: object, kind: str, path: str) -> Iterator[str]:
    if kind in _TYPES:
        yield from _check_object(value, kind, path)
    elif kind == "boolean":
        if not isinstance(value, bool):
            yield f"{path}: not a boolean"
    elif not isinstance(value, str) or not _PRIMITIVES[kind].fullmatch(value):
        yield f"{path}: not of type {kind}"
    elif (allowed := _BINDINGS.get(path)) is not None and value not in allowed:
        yield f"{path}: {value!r} is not in its required value set"


def _check_network(address: str, kind: object, path: str) -> Iterator[str]:
    found = network_type(address)
    if found is None:
        yield f"{path}.address: is no IP address, host name or URI"
    elif kind is not None and kind != found:
        yield f"{path}.type: is not that of its address"


def _check_coding(coding: Mapping[str, Any], path: str) -> Iterator[str]:
    system, value = coding.get("system"), coding.get("code")
    known = CODES.get(system) if isinstance(system, str) else None
    if known is None:
        return
    if not isinstance(value, str) or value not in known:
        yield f"{path}: is no code of {system} that our exports use"
    elif "display" in coding and coding["display"] != known[value]:
        yield f"{path}: has another display than its code"


def _check_invariants(resource: Mapping[str, Any]) -> Iterator[str]:
    if any("name" in entity and "query" in entity for entity in resource.get("entity", [])):
        yield "AuditEvent.entity: has both name and query (sev-1)"


def _check_profile(resource: Mapping[str, Any], address: str) -> Iterator[str]:
    profile = PROFILES.get(address.removeprefix(BALP)) if address.startswith(BALP) else None
    if profile is None:
        yield f"AuditEvent.meta.profile: {address} is none that our exports claim"
        return
    if not _fits(resource["type"], profile.type):
        yield "AuditEvent.type: is not what the profile asks"
    if resource.get("action") != profile.action:
        yield f"AuditEvent.action: the profile asks for {profile.action!r}"
    if not any(_fits(subtype, profile.subtype) for subtype in resource.get("subtype", [])):
        yield "AuditEvent.subtype: the profile's is not among them"
    if "outcome" not in resource or (profile.outcome is not None and resource["outcome"] != profile.outcome):
        yield "AuditEvent.outcome: is not what the profile asks"
    if len(resource["agent"]) < 2:
        yield "AuditEvent.agent: the profile asks for two at least"
    if len(resource.get("entity", [])) < profile.least_entities:
        yield f"AuditEvent.entity: the profile asks for {profile.least_entities} at least"
    for rule in profile.agents:
        yield from _check_slice(_agents(resource, rule), rule, "agent")
        if rule.name == profile.observed and any(agent.get("who") != resource["source"]["observer"] for agent in _agents(resource, rule)):
            yield f"AuditEvent.agent[{rule.name}].who: is not the observer (val-audit-source)"
    for rule in profile.entities:
        entities = [entity for entity in resource.get("entity", []) if any(_fits(entity.get("type", {}), kind) for kind in rule.types)]
        yield from _check_slice(entities, rule, "entity")
        if rule.name == "patient" and any(not _is_patient(entity.get("what", {})) for entity in entities):
            yield "AuditEvent.entity[patient].what: is no reference to a Patient"


def _agents(resource: Mapping[str, Any], rule: Slice) -> list[Mapping[str, Any]]:
    def is_one(agent: Mapping[str, Any]) -> bool:
        codings = agent.get("type", {}).get("coding", [])
        return any(_fits(coding, kind) for coding in codings for kind in rule.types)

    return [agent for agent in resource["agent"] if is_one(agent)]


def _check_slice(items: list[Mapping[str, Any]], rule: Slice, name: str) -> Iterator[str]:
    path = f"AuditEvent.{name}[{rule.name}]"
    if not rule.at_least <= len(items) <= rule.at_most:
        yield f"{path}: there are {len(items)}, and the profile asks for {rule.at_least} to {rule.at_most}"
    for item in items:
        for element in rule.needs:
            if element not in item:
                yield f"{path}.{element}: is missing"
        for element in rule.forbids:
            if element in item:
                yield f"{path}.{element}: must not be there"
        for element, allowed in rule.among:
            if item.get(element) not in allowed:
                yield f"{path}.{element}: is not what the profile asks"


def _is_patient(reference: Mapping[str, Any]) -> bool:
    return reference.get("type") == "Patient" or reference.get("reference", "").startswith("Patient/")


def _fits(coding: Mapping[str, Any], pattern: Mapping[str, str]) -> bool:
    return all(coding.get(name) == value for name, value in pattern.items())
