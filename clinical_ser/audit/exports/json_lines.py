r"""JSON Lines: the log's records for programs, each with all it takes to check it.

The one idea: `leaf` and `payload` are the very bytes that were hashed, as text, so that a stranger recomputes SHA-256(0x00 || leaf) and
SHA-256(salt || payload) without writing JSON as we do.

`records.jsonl` has one object a line, spelled as RFC 8785 says:

=========  =========================================================================================================================
`index`    place in the tree
`leaf`     the event, exactly as in the tree
`payload`  what the leaf's commitment is over, exactly; null when it was not asked for, is sealed or erased
`proof`    audit path, hashes in base64, the sibling first (RFC 6962 section 2.1.1); null where the export is the whole log
`salt`     the 32 bytes hashed before the payload, in base64; null with it
`state`    `open`, `sealed` or `erased` when it was exported
=========  =========================================================================================================================

An export of the whole log has no proofs, because the root is recomputed from all of its leaves; of a part, each record has its own (about
20 hashes, 0.9 kB, in a log of a million).
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError

from clinical_ser.audit.events import MAX_LEAF_BYTES, MAX_PAYLOAD_BYTES, Event, canonical
from clinical_ser.audit.exports.packet import Findings, Packet, PacketWriter
from clinical_ser.audit.exports.selection import Order, Selection
from clinical_ser.audit.exports.shown import committed, to_base64
from clinical_ser.audit.merkle import Frontier, leaf_hash, verify_inclusion
from clinical_ser.audit.notes import NoteSigner, decode_base64
from clinical_ser.audit.proof_file import MAX_PATH
from clinical_ser.audit.records import LogReader, Record
from clinical_ser.errors import AuditFormatError, AuditTamperedError
from clinical_ser.models.strict_json import StrictJsonError, parse_json
from clinical_ser.strict import Strict

FORM = "jsonl"
SCHEMA = "clinical-ser/audit-record-line/1"
RECORDS = "records.jsonl"

# JSON writes a control character in six bytes.
_MAX_LINE_BYTES = 6 * (MAX_LEAF_BYTES + MAX_PAYLOAD_BYTES) + 65_536

_NOT_CLAIMED = (
    "That what a record says is true: only that it was recorded, when the log's clock said so, and not changed since.",
    "That a record said to be sealed or erased is; the log's tombstones and its own verification say that.",
    "That the log had no other records: that takes its later checkpoints, and witnesses.",
)


class Line(Strict):
    """One line."""

    index: int = Field(ge=0)
    leaf: str
    payload: str | None
    proof: tuple[str, ...] | None = Field(max_length=MAX_PATH)
    salt: str | None
    state: Literal["open", "sealed", "erased"]

    @classmethod
    def of(cls, record: Record, path: Sequence[bytes] | None, *, payloads: bool) -> Self:
        """Return the line of a record, with its path where it takes one."""
        opened = record.payload is not None and record.salt is not None and payloads
        return cls(
            index=record.index,
            leaf=record.leaf.decode(),
            payload=record.payload.canonical().decode() if record.payload is not None and opened else None,
            proof=None if path is None else tuple(map(to_base64, path)),
            salt=to_base64(record.salt) if record.salt is not None and opened else None,
            state=record.state,
        )

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Read a line without its end; AuditFormatError unless it fits, in its one spelling."""
        try:
            value = parse_json(raw)
            line = cls.model_validate_json(raw, strict=True)
        except (StrictJsonError, ValidationError):
            raise AuditFormatError(f"does not fit schema {SCHEMA!r}") from None
        if canonical(value) != raw:
            raise AuditFormatError("is not in canonical form (RFC 8785)")
        return line

    @property
    def path(self) -> list[bytes]:
        """The audit path's hashes."""
        return [decode_base64(node, f"The proof of record {self.index}") for node in self.proof or ()]


def export(
    reader: LogReader, target: Path, signers: Sequence[NoteSigner], selection: Selection | None = None, *, created: datetime | None = None
) -> str:
    """Write records as JSON Lines, one after the other: the log is never in memory.

    Parameters
    ----------
    reader
        The log.
    target
        The folder to be.
    signers
        The log's keys.
    selection
        Which records, and whether with payloads; all and without when left out.
    created
        When; now when left out.

    Returns
    -------
    str
        SHA-256 of the manifest in hex.
    """
    chosen = selection or Selection()
    first, last = chosen.range_of(reader)
    with_proofs = not chosen.is_all(reader)
    writer = PacketWriter(target, form=FORM, reader=reader, signers=signers, first=first, last=last, not_claimed=_NOT_CLAIMED, created=created)
    with writer:
        chosen.write(writer)
        with writer.open(RECORDS, "application/x-ndjson", SCHEMA) as file:
            for record in chosen.records(reader):
                path = reader.inclusion(record.index) if with_proofs else None
                file.write(canonical(Line.of(record, path, payloads=chosen.payloads).model_dump()) + b"\n")
    return writer.digest


def verify(packet: Packet, reader: LogReader | None = None) -> Findings:
    """Recompute every leaf's hash, its place under the checkpoint's root, and every commitment; the first index that fails is named."""
    order = Order(packet, reader)
    tree = Frontier()
    for line in _lines(packet):
        event = _event_of(line)
        order.take(line.index, event.kind)
        digest = leaf_hash(line.leaf.encode())
        if order.is_all:
            tree.append(digest)
        _check_proof(line, digest, packet, whole=order.is_all)
        _check_payload(line, event, asked_for=order.said.payloads)
    order.finish()
    if order.is_all and tree.root != packet.checkpoint.root:
        raise AuditTamperedError("The records do not make up the root of the checkpoint: at least one was changed.")
    checked = (
        "Every record is spelled as the log spells it, and in the tree of the checkpoint, at its index.",
        "Every payload that is here is the one that its record commits to.",
    )
    return Findings(order.count, checked, (*order.unchecked(), "Whether a record said to be sealed or erased is."))


def _lines(packet: Packet) -> Iterator[Line]:
    with packet.open(RECORDS) as file:
        number, latest = 0, "at the start"
        while raw := file.readline(_MAX_LINE_BYTES):
            number += 1
            if not raw.endswith(b"\n"):
                raise AuditFormatError(f"{RECORDS} line {number}, {latest}, has no end, or is too long.")
            try:
                line = Line.parse(raw[:-1])
            except AuditFormatError as error:
                raise AuditFormatError(f"{RECORDS} line {number}, {latest}, {error}.") from None
            yield line
            latest = f"after record {line.index}"


def _event_of(line: Line) -> Event:
    try:
        return Event.parse(line.leaf.encode())
    except AuditFormatError as error:
        raise AuditFormatError(f"Record {line.index}: {error}") from None


def _check_proof(line: Line, digest: bytes, packet: Packet, *, whole: bool) -> None:
    if whole is not (line.proof is None):
        raise AuditFormatError(f"Record {line.index} has a proof where the export is the whole log, or none where it is a part.")
    checkpoint = packet.checkpoint
    if not whole and not verify_inclusion(line.index, checkpoint.size, digest, line.path, checkpoint.root):
        raise AuditTamperedError(f"Record {line.index} is not in the tree of the checkpoint: it, or its proof, was changed.")


def _check_payload(line: Line, event: Event, *, asked_for: bool) -> None:
    if (line.payload is not None, line.salt is not None) != ((asked_for and line.state == "open"),) * 2:
        raise AuditFormatError(f"Record {line.index} has a payload or a salt that it should not have, or lacks one.")
    if line.payload is None or line.salt is None:
        return
    committed(line.index, event, line.payload.encode(), line.salt)
