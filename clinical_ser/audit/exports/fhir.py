"""FHIR R4 (4.0.1): the log's records as AuditEvents, one NDJSON file a resource type, for what hospitals run already.

The one idea: the verifier trusts no resource: it takes out of each the record that it carries, checks that, makes the resource anew
(`fhir_resources`), compares every byte, and holds it against the rules of R4 and IHE's BALP (`fhir_rules`).

R4- and BALP-checked here, not by HL7's validator. What kind of event becomes what stands in `fhir_resources`.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from clinical_ser.audit.events import MAX_LEAF_BYTES, MAX_PAYLOAD_BYTES, Event, Payload, canonical
from clinical_ser.audit.exports.fhir_resources import PSEUDONYM, Maker
from clinical_ser.audit.exports.fhir_rules import check_resource
from clinical_ser.audit.exports.packet import Findings, Packet, PacketWriter
from clinical_ser.audit.exports.selection import Order, Selection
from clinical_ser.audit.exports.shown import committed
from clinical_ser.audit.merkle import HASH_BYTES, Frontier, leaf_hash, verify_inclusion
from clinical_ser.audit.notes import NoteSigner, decode_base64
from clinical_ser.audit.records import LogReader, Record
from clinical_ser.errors import AuditFormatError, AuditTamperedError
from clinical_ser.models.strict_json import StrictJsonError, parse_json
from clinical_ser.strict import Strict

__all__ = ["DEVICES", "EVENTS", "FORM", "check_resource", "export", "verify"]

FORM = "fhir"
EVENTS = "AuditEvent.ndjson"
DEVICES = "Device.ndjson"

_MEDIA_TYPE = "application/fhir+ndjson"
_SCHEMA = "http://hl7.org/fhir/StructureDefinition/{}|4.0.1"

# base64 of a leaf and a payload, a name in a few places, and what is around them.
_MAX_LINE_BYTES = 2 * (MAX_LEAF_BYTES + MAX_PAYLOAD_BYTES)

_NOT_CLAIMED = (
    "That HL7's validator passes these resources: they were checked against R4 and BALP by our own rules.",
    "That a record without a BALP profile has none: what is not exported, or was never known, cannot fill one.",
    "That what a record says is true: only that it was recorded, and not changed since.",
)

Json = dict[str, Any]


class Carried(Strict):
    """The record that an AuditEvent carries in the details of its last entity."""

    index: str = Field(pattern=r"^(0|[1-9][0-9]{0,18})$")
    state: Literal["open", "sealed", "erased"]
    leaf: str
    proof: str | None = Field(default=None, alias="inclusion-proof")
    payload: str | None = None
    salt: str | None = None

    @classmethod
    def of(cls, resource: Json, where: str) -> "Carried":
        """Take it out of a resource that may be anything."""
        try:
            details = resource["entity"][-1]["detail"]
            values = {detail["type"]: detail.get("valueString", detail.get("valueBase64Binary")) for detail in details}
            names = [field.alias or name for name, field in cls.model_fields.items()]
            return cls.model_validate({name: values[name] for name in names if name in values}, strict=True)
        except (AttributeError, LookupError, TypeError, ValidationError):
            raise AuditFormatError(f"{where} carries no record of the log.") from None

    def record(self) -> tuple[Record, list[bytes]]:
        """Return the record, bound to its payload, and its audit path."""
        name = f"Record {self.index}"
        leaf = decode_base64(self.leaf, name)
        event = _event_of(leaf, name)
        payload, salt = self._payload(event, name)
        nodes = decode_base64(self.proof, name) if self.proof is not None else b""
        path = [nodes[start : start + HASH_BYTES] for start in range(0, len(nodes), HASH_BYTES)]
        return Record(int(self.index), leaf, event, payload, salt, self.state), path

    def _payload(self, event: Event, name: str) -> tuple[Payload | None, bytes | None]:
        if self.payload is None or self.salt is None:
            return None, None
        return committed(int(self.index), event, decode_base64(self.payload, name), self.salt), decode_base64(self.salt, name)


def export(
    reader: LogReader,
    target: Path,
    signers: Sequence[NoteSigner],
    selection: Selection | None = None,
    *,
    pseudonym: str | None = None,
    created: datetime | None = None,
) -> str:
    """Write records as AuditEvents, and the devices that they name.

    Parameters
    ----------
    reader, target, signers, selection, created
        As of `json_lines.export`, and so is what is returned.
    pseudonym
        What to call the subject, in the export about one; the tags of its events when left out.

    Raises
    ------
    ValueError
        A pseudonym in an export that may be about several.
    """
    chosen = selection or Selection()
    if pseudonym is not None and (chosen.about is None or not pseudonym.strip()):
        raise ValueError("a pseudonym is for the export about one subject, and is not empty")
    first, last = chosen.range_of(reader)
    with_proofs = not chosen.is_all(reader)
    maker = Maker(reader.origin, pseudonym)
    writer = PacketWriter(target, form=FORM, reader=reader, signers=signers, first=first, last=last, not_claimed=_NOT_CLAIMED, created=created)
    with writer:
        chosen.write(writer)
        with writer.open(EVENTS, _MEDIA_TYPE, _SCHEMA.format("AuditEvent")) as file:
            for record in chosen.records(reader):
                path = reader.inclusion(record.index) if with_proofs else None
                file.write(canonical(maker.event(_as_asked(record, payloads=chosen.payloads), path)) + b"\n")
        with writer.open(DEVICES, _MEDIA_TYPE, _SCHEMA.format("Device")) as file:
            for device in maker.devices():
                file.write(canonical(device) + b"\n")
    return writer.digest


def verify(packet: Packet, reader: LogReader | None = None) -> Findings:
    """Make every resource anew from the record it carries, and check record, place in the tree, R4 and BALP; the first index that fails is named."""
    order = Order(packet, reader)
    tree, maker = Frontier(), Maker(packet.manifest.origin, None)
    for number, raw in enumerate(_lines(packet, EVENTS), start=1):
        resource = _parsed(raw, f"{EVENTS} line {number}")
        record, path = Carried.of(resource, f"{EVENTS} line {number}").record()
        order.take(record.index, record.event.kind)
        if (record.payload is not None) is not (order.said.payloads and record.state == "open"):
            raise AuditFormatError(f"Record {record.index} has a payload that it should not have, or lacks one.")
        _check_anew(resource, raw, record, None if order.is_all else path, maker, one=order.said.one)
        digest = _check_place(record, path, packet, whole=order.is_all)
        if order.is_all:
            tree.append(digest)
    order.finish()
    if order.is_all and tree.root != packet.checkpoint.root:
        raise AuditTamperedError("The records do not make up the root of the checkpoint: at least one was changed.")
    _check_devices(packet, maker)
    checked = (
        "Every AuditEvent and Device is what is made from the record that it carries, and follows R4 and the BALP profile that it claims.",
        "Every record is in the tree of the checkpoint, at its index, and commits to the payload that it carries.",
    )
    unchecked = ("What HL7's own validator says.", "Whether a record said to be sealed or erased is.", *order.unchecked())
    return Findings(order.count, checked, unchecked)


def _check_anew(resource: Json, raw: bytes, record: Record, path: list[bytes] | None, maker: Maker, *, one: bool) -> None:
    """Check the rules first, so that what follows may rely on the resource's shape."""
    name = f"Record {record.index}"
    _check_rules(resource, name)
    if record.event.subject_tag and one:
        pseudonym = _pseudonym_in(resource)
        maker.pseudonym = maker.pseudonym or pseudonym
    if canonical(maker.event(record, path)) != raw:
        raise AuditTamperedError(f"{name} does not make the AuditEvent that carries it: one of the two was changed.")


def _as_asked(record: Record, *, payloads: bool) -> Record:
    return record if payloads else Record(record.index, record.leaf, record.event, None, None, record.state)


def _lines(packet: Packet, name: str) -> Iterator[bytes]:
    with packet.open(name) as file:
        while raw := file.readline(_MAX_LINE_BYTES):
            if not raw.endswith(b"\n"):
                raise AuditFormatError(f"{name} has a line without an end, or one that is too long.")
            yield raw[:-1]


def _parsed(raw: bytes, where: str) -> Json:
    try:
        value = parse_json(raw)
    except StrictJsonError as error:
        raise AuditFormatError(f"{where} is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise AuditFormatError(f"{where} is not a JSON object.")
    return value


def _event_of(leaf: bytes, name: str) -> Event:
    try:
        return Event.parse(leaf)
    except AuditFormatError as error:
        raise AuditFormatError(f"{name}: {error}") from None


def _pseudonym_in(resource: Json) -> str | None:
    """Return what the resource calls the subject, where that is no tag."""
    for entity in resource["entity"]:
        identifier = entity.get("what", {}).get("identifier", {})
        if identifier.get("system") == PSEUDONYM:
            return str(identifier.get("value"))
    return None


def _check_place(record: Record, path: list[bytes], packet: Packet, *, whole: bool) -> bytes:
    """Return the leaf's hash."""
    digest, checkpoint = leaf_hash(record.leaf), packet.checkpoint
    if not whole and not verify_inclusion(record.index, checkpoint.size, digest, path, checkpoint.root):
        raise AuditTamperedError(f"Record {record.index} is not in the tree of the checkpoint: it, or its proof, was changed.")
    return digest


def _check_rules(resource: Json, name: str) -> None:
    if problems := check_resource(resource):
        raise AuditFormatError(f"{name} is not as FHIR R4 and its profile ask: {problems[0]}.")


def _check_devices(packet: Packet, maker: Maker) -> None:
    for number, (raw, device) in enumerate(zip_longest(_lines(packet, DEVICES), maker.devices()), start=1):
        if raw is None or device is None or raw != canonical(device):
            raise AuditTamperedError(f"{DEVICES} line {number} is not the device that the records name.")
        _check_rules(device, f"{DEVICES} line {number}")
