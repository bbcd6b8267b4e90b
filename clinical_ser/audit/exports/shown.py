"""What an export shows of a record: its leaf, its path to the root, and as much of its payload as its reader may have.

The one idea: a document that is made from records carries them along, so whoever verifies it makes it anew from them and compares every byte.
A payload without the staff in it no longer hashes to what its leaf commits to, and has no salt: with it, a name could be found by trying names.
"""

import base64
import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Literal, TypeVar

from pydantic import ValidationError, model_validator

from clinical_ser.audit.checkpoint import Checkpoint
from clinical_ser.audit.events import Actor, Erasure, Event, ModelChange, Payload, Review, Role, canonical, parse_payload
from clinical_ser.audit.exports.packet import CHECKPOINT, Packet, PacketWriter
from clinical_ser.audit.merkle import leaf_hash, verify_consistency, verify_inclusion
from clinical_ser.audit.notes import decode_base64, parse_note
from clinical_ser.audit.proof_file import ProofFile
from clinical_ser.audit.ranges import Ranges
from clinical_ser.audit.records import LogReader, Record
from clinical_ser.errors import AuditFormatError, AuditKeyError, AuditTamperedError
from clinical_ser.models.strict_json import StrictJsonError, parse_json
from clinical_ser.strict import Strict

RECORDS = "records.jsonl"
LEFT_OUT = "(left out)"
"""Stands where the name of someone who works there was."""

JSON_TYPE = "application/json"
LINES_TYPE = "application/jsonl"
TEXT_TYPE = "text/plain; charset=utf-8"

MAX_OWN_FILES = 1_000
"""Records of an export that have their leaf and proof as files of their own; of more, those are in `records.jsonl` alone."""

MAX_LINE_BYTES = 8 << 20
"""Ours: a payload of 1 MiB in which every other character has to be escaped, and the leaf with it."""

How = Literal["whole", "without_staff", "leaf"]
Document = TypeVar("Document", bound=Strict)


class Shown(Strict):
    """A line of `records.jsonl`; its fields are called as in the JSON Lines form."""

    index: int
    state: Literal["whole", "without_staff", "leaf", "erased"]
    leaf: str
    """The bytes that are in the tree, as text."""
    payload: str | None
    """The payload's bytes, as text; what the leaf commits to where the state is `whole`."""
    proof: tuple[str, ...]
    """Audit path: hashes in base64, the leaf's sibling first (RFC 6962 section 2.1.1)."""
    salt: str | None
    """The 32 bytes that were hashed before the payload, in base64."""

    @model_validator(mode="after")
    def _fits_its_state(self) -> "Shown":
        if (self.payload is not None) != (self.state in {"whole", "without_staff"}) or (self.salt is not None) != (self.state == "whole"):
            raise ValueError("payload and salt do not fit the state")
        return self

    @property
    def event(self) -> Event:
        """The leaf, read."""
        return Event.parse(self.leaf.encode())

    @property
    def content(self) -> Payload | None:
        """The payload, read."""
        return None if self.payload is None else parse_payload(self.payload.encode())

    def line(self) -> bytes:
        """Return the line, newline included."""
        return canonical(self.model_dump(mode="json")) + b"\n"

    def record(self) -> Record:
        """Return it as a record with what is shown of its payload."""
        event, content = self._read()
        salt = None if self.salt is None else decode_base64(self.salt, f"The salt of record {self.index}")
        return Record(self.index, self.leaf.encode(), event, content, salt, "erased" if self.state == "erased" else "open" if content else "sealed")

    def without_proof(self) -> "Shown":
        """Return the same without its path, which is another one in every size of the log."""
        return self.model_copy(update={"proof": ()})

    def proof_file(self, checkpoint: str) -> bytes:
        """Return its `.tlog-proof` file."""
        return ProofFile(self.index, self.path, checkpoint).text.encode()

    def _read(self) -> tuple[Event, Payload | None]:
        try:
            return self.event, self.content
        except AuditFormatError as error:
            raise AuditFormatError(f"Record {self.index}: {error}") from None

    @property
    def path(self) -> tuple[bytes, ...]:
        """The audit path's hashes."""
        return tuple(decode_base64(node, f"The proof of record {self.index}") for node in self.proof)

    def check(self, checkpoint: Checkpoint, own: str | None = None) -> Event:
        """Return the event; AuditTamperedError unless it is in the checkpoint's tree and its payload is what it commits to.

        Parameters
        ----------
        checkpoint
            A log that is trusted stands behind it.
        own
            Whose name may stand in a payload without staff.
        """
        raw = self.leaf.encode()
        event, content = self._read()
        if not verify_inclusion(self.index, checkpoint.size, leaf_hash(raw), self.path, checkpoint.root):
            raise AuditTamperedError(f"Record {self.index} is not in the tree that the checkpoint signs.")
        if self.payload is not None and self.salt is not None:
            committed(self.index, event, self.payload.encode(), self.salt)
        elif content is not None:
            _check_kind(self.index, event, content)
        if self.state == "without_staff" and content is not None and without_staff(content, own) != content:
            raise AuditTamperedError(f"The payload of record {self.index} names someone, and the export says that it names no staff.")
        return event


def show(reader: LogReader, record: Record, how: How, own: str | None = None) -> Shown:
    """Return what an export shows of a record.

    Parameters
    ----------
    reader
        The log that the record is from.
    record
        Of it. One that was erased is shown as erased, unless its leaf alone is asked for.
    how
        `whole`: the payload and its salt, to be checked by anyone. `without_staff`: the payload less who acted, and no salt. `leaf`: neither.
    own
        The subject that the export is for: it is not left out where it acted itself.

    Raises
    ------
    AuditKeyError
        The reader cannot open the record: an export without it would look complete.
    """
    path = tuple(map(to_base64, reader.inclusion(record.index)))
    leaf = record.leaf.decode()
    if how == "leaf" or record.state == "erased":
        return Shown(index=record.index, state="leaf" if how == "leaf" else "erased", leaf=leaf, payload=None, salt=None, proof=path)
    if record.payload is None or record.salt is None:
        raise AuditKeyError(f"Record {record.index} belongs into this export and cannot be opened here: its subject's key is missing.")
    if how == "without_staff":
        payload = without_staff(record.payload, own).canonical().decode()
        return Shown(index=record.index, state=how, leaf=leaf, payload=payload, salt=None, proof=path)
    return Shown(index=record.index, state=how, leaf=leaf, payload=record.payload.canonical().decode(), salt=to_base64(record.salt), proof=path)


def committed(index: int, event: Event, payload: bytes, salt: str) -> Payload:
    """Return a record's payload, read; AuditTamperedError unless its event commits to it with its salt (in base64)."""
    if hashlib.sha256(decode_base64(salt, f"The salt of record {index}") + payload).hexdigest() != event.commitment:
        raise AuditTamperedError(f"Record {index} does not commit to its payload: one of the two, or the salt, was changed.")
    try:
        content = parse_payload(payload)
    except AuditFormatError as error:
        raise AuditFormatError(f"Record {index}: {error}") from None
    _check_kind(index, event, content)
    return content


def _check_kind(index: int, event: Event, content: Payload) -> None:
    if (content.kind, content.version) != (event.kind, event.version):
        raise AuditTamperedError(f"Record {index} is of another kind than its payload.")


def without_staff(payload: Payload, own: str | None = None) -> Payload:
    """Return the payload with the role of who acted, signed or approved, and not the name; `own` is the subject's own and stays where they acted.

    An account of the staff may be called as a person is at this site: only one in the role of a subject is the subject's own. What someone wrote as
    free text (a reason) is left as it is.
    """
    changes: dict[str, object] = {}
    if payload.actor.id != own or payload.actor.role is not Role.SUBJECT:
        changes["actor"] = Actor(id=LEFT_OUT, role=payload.actor.role)
    if isinstance(payload, Review) and payload.signature is not None:
        changes["signature"] = payload.signature.model_copy(update={"name": LEFT_OUT})
    if isinstance(payload, ModelChange) and payload.approver is not None:
        changes["approver"] = LEFT_OUT
    return payload.model_copy(update=changes)


def record_at(reader: LogReader, index: int) -> Record:
    """Return one record."""
    return next(iter(reader.records(index, index + 1)))


def about(reader: LogReader, subject: str, size: int | None = None) -> list[int]:
    """Return the indices of a subject's records among the first `size`, erased ones included.

    An erased record is no longer found by name. Where its tombstone is filed under the subject, that says which records it stands for.
    """
    found = {index for index in reader.named(subject) if size is None or index < size}
    for index in sorted(found):
        payload = record_at(reader, index).payload
        if isinstance(payload, Erasure) and payload.erased:
            # A tombstone stands for what was before it; whatever else it says would make the rest of the log this subject's.
            found.update(number for first, last in Ranges.parse(payload.erased).spans() for number in range(first, min(last + 1, index)))
    return sorted(found)


def add_records(writer: PacketWriter, shown: Iterable[Shown], schema: str) -> None:
    """Write `records.jsonl`."""
    with writer.open(RECORDS, LINES_TYPE, f"{schema}#record") as file:
        for one in shown:
            file.write(one.line())


def add_proofs(writer: PacketWriter, shown: Sequence[Shown], checkpoint: str) -> None:
    """Write each record's leaf and its proof as files of their own, to be checked by any reader of c2sp.org/tlog-proof; none where they are many."""
    for name, content, media_type in proof_files(shown, checkpoint):
        writer.add(name, content, media_type)


def proof_files(shown: Sequence[Shown], checkpoint: str) -> Iterator[tuple[str, bytes, str]]:
    """Yield name, content and media type of the records' own files, two a record; none where there are more than MAX_OWN_FILES records.

    All of it is in `records.jsonl` already. A folder of many thousand files helps nobody, and its manifest would be too long to be read.
    """
    for one in shown if len(shown) <= MAX_OWN_FILES else ():
        yield f"record-{one.index}.leaf.json", one.leaf.encode(), JSON_TYPE
        yield f"record-{one.index}.tlog-proof", one.proof_file(checkpoint), TEXT_TYPE


def read_records(packet: Packet, own: str | None = None) -> Iterator[tuple[Shown, Event]]:
    """Yield the lines of `records.jsonl`, each checked against the checkpoint.

    Raises
    ------
    AuditFormatError
        A line is not of this form, in its one spelling.
    AuditTamperedError
        A record is not in the tree, is not what its leaf commits to, or stands at another place than its index says.
    """
    before = -1
    with packet.open(RECORDS) as file:
        while raw := file.readline(MAX_LINE_BYTES + 1):
            shown = _parse_line(raw)
            if shown.index <= before:
                raise AuditTamperedError(f"{RECORDS} has record {shown.index} after record {before}.")
            before = shown.index
            yield shown, shown.check(packet.checkpoint, own)


def check_proofs(packet: Packet, shown: Sequence[Shown]) -> set[str]:
    """Compare each record's own two files with its line, and return their names."""
    names = set()
    for name, content, _ in proof_files(shown, packet.read(CHECKPOINT).decode()):
        check_same(packet, name, content)
        names.add(name)
    return names


def check_same(packet: Packet, name: str, content: bytes) -> None:
    """Compare a file with what it has to be."""
    if packet.read(name) != content:
        raise AuditTamperedError(f"{name} is not what follows from the records in the export.")


def check_names(packet: Packet, names: Collection[str]) -> None:
    """Make sure that the export holds these files and the checkpoint, and no other."""
    listed = set(packet.manifest.files) - {CHECKPOINT}
    if missing := set(names) - listed:
        raise AuditTamperedError(f"{min(missing)} is missing.")
    if extra := listed - set(names):
        raise AuditTamperedError(f"The export holds {len(extra)} files more than its format has.")


def check_head(packet: Packet, name: str, origin: str, size: int) -> None:
    """Make sure that a document says of the log and its size what the checkpoint says."""
    if (origin, size) != (packet.manifest.origin, packet.checkpoint.size):
        raise AuditTamperedError(f"{name} is of another log, or another size of it, than the checkpoint.")


def check_log(packet: Packet, reader: LogReader) -> None:
    """Make sure that a log is the one that the export is of, grown or not since."""
    said = Checkpoint.parse(parse_note(reader.checkpoint)[0])
    if reader.origin != packet.manifest.origin or said.size < packet.checkpoint.size:
        raise AuditTamperedError("The export is not of this log, or of more of it than is there.")
    old, proof = packet.checkpoint, reader.consistency(packet.checkpoint.size)
    if not verify_consistency(old.size, said.size, old.root, said.root, proof):
        raise AuditTamperedError("This log has not grown from the one that the export is of.")


def readable(document: Strict) -> bytes:
    """Return a document as JSON for people: indented, in the order of its fields; the same document gives the same bytes."""
    return json.dumps(document.model_dump(mode="json", by_alias=True), indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def read_document(packet: Packet, name: str, model: type[Document]) -> Document:
    """Read a document; AuditFormatError unless it fits its schema, in the spelling of `readable`."""
    raw = packet.read(name)
    try:
        parse_json(raw)
        document = model.model_validate_json(raw)
    except StrictJsonError as error:
        raise AuditFormatError(f"{name} is not JSON: {error}.") from None
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "as a whole"
        raise AuditFormatError(f"{name} does not fit its schema: {where}.") from None
    if readable(document) != raw:
        raise AuditFormatError(f"{name} is not spelled as an export of ours is.")
    return document


def json_schema(document: type[Strict], name: str, records: type[Strict] | None = Shown) -> bytes:
    """Return the JSON Schema of a format: its document, and its `records.jsonl` under `$defs/record`."""
    schema = document.model_json_schema(by_alias=True, mode="serialization")
    if records is not None:
        line = records.model_json_schema(mode="serialization")
        schema.setdefault("$defs", {}).update({**line.pop("$defs", {}), "record": line})
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"urn:{name.replace('/', ':')}"}
    return json.dumps({**head, **schema}, indent=2, ensure_ascii=False).encode() + b"\n"


def printable(text: object) -> str:
    """Return text on one line, with what does not print, or turns the direction of writing, as its code."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(str(text).split()))


def to_base64(raw: bytes) -> str:
    """Return bytes as base64."""
    return base64.b64encode(raw).decode()


def _parse_line(raw: bytes) -> Shown:
    if len(raw) > MAX_LINE_BYTES:
        raise AuditFormatError(f"{RECORDS} has a line of more than {MAX_LINE_BYTES} bytes.")
    try:
        parse_json(raw)
        shown = Shown.model_validate_json(raw)
    except (StrictJsonError, ValidationError):
        raise AuditFormatError(f"{RECORDS} has a line that is no record.") from None
    if shown.line() != raw:
        raise AuditFormatError(f"{RECORDS} has a line that is not in canonical form (RFC 8785), or is cut short.")
    return shown
