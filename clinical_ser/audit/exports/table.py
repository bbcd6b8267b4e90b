"""CSV: the log's records for people, one row a record, to be opened in a spreadsheet.

The one idea: a spreadsheet runs what starts like a formula and guesses at the rest, so nothing here starts like one, and nothing is left to guess.

RFC 4180 with a header; UTF-8 *with* a byte-order mark, because Excel takes a file without one for the system's old code page, and names would be
spoiled (programs read `utf-8-sig`, or take the JSON Lines form). Times are UTC, as the log wrote them.

A cell that starts with = + - @ (their full-width forms too), a tab or a line end gets an apostrophe before it, and so does one that starts with an
apostrophe: taking one away gives back what was there (OWASP, CSV Injection).
"""

import contextlib
import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from clinical_ser.audit.events import MAX_PAYLOAD_BYTES, PAYLOADS
from clinical_ser.audit.exports.packet import Findings, Packet, PacketWriter
from clinical_ser.audit.exports.selection import Order, Selection
from clinical_ser.audit.merkle import Frontier, leaf_hash
from clinical_ser.audit.notes import NoteSigner
from clinical_ser.audit.records import LogReader, Record
from clinical_ser.errors import AuditFormatError, AuditTamperedError

FORM = "csv"
TABLE = "records.csv"
README = "README.txt"

_BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"
_DANGEROUS = frozenset("=+-@\t\r\n＝＋－＠")
_ESCAPE = "'"
_HEX = frozenset("0123456789abcdef")
# JSON writes a control character in six.
_MAX_CELL = 6 * MAX_PAYLOAD_BYTES

_NOT_CLAIMED = (
    "That this table can be checked without the log, cell by cell: it is for reading. The JSON Lines form carries the proofs.",
    "That what a record says is true: only that it was recorded, and not changed since.",
)


@dataclass(frozen=True)
class Column:
    """A column: its name, what it means, and what of a record is in it."""

    name: str
    meaning: str
    of: Callable[[Record], object]


COLUMNS = (
    Column("index", "The record's number in the log, from 0. The order of the log is the only order there is.", lambda r: r.index),
    Column("time_utc", "When, by the clock of the computer that wrote the log, in UTC.", lambda r: r.event.time),
    Column("kind", "What kind of event.", lambda r: r.event.kind),
    Column("outcome", "How it ended: success, refused or failed.", lambda r: r.event.outcome.value),
    Column("role", "In what role someone, or some program, acted.", lambda r: r.event.role.value),
    Column("purpose", "Why: a code of HL7's PurposeOfUse, as TREAT for treatment.", lambda r: r.event.purpose.value),
    Column("flags", "What deserves a look: clock_anomaly, risk_signal.", lambda r: " ".join(r.event.flags)),
    Column("supersedes", "The number of the record that this one amends.", lambda r: r.event.supersedes),
    Column("software", "The version of the software.", lambda r: r.event.software),
    Column("model_sha256", "Digest of the model that it is about.", lambda r: r.event.model),
    Column("event_id", "A random name, the same in every copy and export.", lambda r: r.event.id),
    Column(
        "subject_tag",
        "Stands for the person, another one in every record; only the log's keeper can tell whose it is.",
        lambda r: r.event.subject_tag,
    ),
    Column("state", "Of what is about persons: open (there), sealed (no key to read it), erased (destroyed).", lambda r: r.state),
    Column("leaf_sha256", "The record's hash in the log's tree, RFC 6962: SHA-256 of a zero byte and the record.", lambda r: leaf_hash(r.leaf).hex()),
)
PAYLOAD_COLUMNS = (
    Column("actor", "Who acted, as the site names the account or program.", lambda r: r.payload and r.payload.actor.id),
    Column("actor_name", "That one's name.", lambda r: r.payload and r.payload.actor.name),
    Column("client", "The program or network address that asked.", lambda r: r.payload and r.payload.actor.client),
    Column("details", "The rest of what was recorded, as JSON.", lambda r: r.payload and _details(r)),
)


def export(
    reader: LogReader, target: Path, signers: Sequence[NoteSigner], selection: Selection | None = None, *, created: datetime | None = None
) -> str:
    """Write records as a table; parameters and result as `json_lines.export`."""
    chosen = selection or Selection()
    first, last = chosen.range_of(reader)
    columns = _columns(payloads=chosen.payloads)
    writer = PacketWriter(target, form=FORM, reader=reader, signers=signers, first=first, last=last, not_claimed=_NOT_CLAIMED, created=created)
    with writer:
        chosen.write(writer)
        writer.add(README, _readme(reader, columns).encode(), "text/plain; charset=utf-8")
        with writer.open(TABLE, "text/csv; charset=utf-8; header=present") as file:
            file.write(_row([_BOM + columns[0].name, *(column.name for column in columns[1:])]))
            for record in chosen.records(reader):
                file.write(_row([escape(column.of(record)) for column in columns]))
    return writer.digest


def verify(packet: Packet, reader: LogReader | None = None) -> Findings:
    """Check header, rows, order and cells; where it is the whole log, that the leaf hashes make up the root; and with the log, every cell."""
    order = Order(packet, reader)
    columns = _columns(payloads=order.said.payloads)
    names = [column.name for column in columns]
    tree = Frontier()
    for number, row in enumerate(_rows(packet, names), start=2):
        cells = dict(zip(names, row, strict=True))
        index = _index_of(cells["index"], number)
        order.take(index, cells["kind"])
        tree.append(_check_cells(index, cells))
        if reader is not None:
            _compare(cells, next(reader.records(index, index + 1)), columns)
    order.finish()
    if order.is_all and tree.root != packet.checkpoint.root:
        raise AuditTamperedError("The column leaf_sha256 does not make up the root of the checkpoint: at least one cell was changed.")
    return _findings(order, in_log=reader is not None)


def _findings(order: Order, *, in_log: bool) -> Findings:
    hashes = "That every leaf_sha256 is in the tree of the checkpoint."
    cells = "That the other cells say what the records of those leaf_sha256 say, as far as they can be opened."
    are_checked = {hashes: order.is_all or in_log, cells: in_log}
    checked = tuple(what for what, done in are_checked.items() if done)
    unchecked = tuple(what for what, done in are_checked.items() if not done)
    return Findings(
        order.count, ("The table is as the manifest says, with its header, every row and their order.", *checked), (*unchecked, *order.unchecked())
    )


def _compare(cells: dict[str, str], record: Record, columns: Sequence[Column]) -> None:
    """Hold a row against its record: all but what may have changed since, and the payload's cells where this reader opens it."""
    for column in columns:
        may_differ = column.name == "state" or (column in PAYLOAD_COLUMNS and (record.payload is None or cells["state"] != "open"))
        if not may_differ and cells[column.name] != escape(column.of(record)):
            raise AuditTamperedError(f"Record {record.index} has another {column.name} in the log than in {TABLE}.")


def escape(value: object) -> str:
    """Return a cell's text, which no spreadsheet takes for a formula; nothing for None.

    Examples
    --------
    >>> escape("=1+1"), escape("'quoted"), escape(12), escape(None)
    ("'=1+1", "''quoted", '12', '')
    """
    text = "" if value is None else str(value)
    return _ESCAPE + text if text[:1] in _DANGEROUS or text.startswith(_ESCAPE) else text


def unescape(cell: str) -> str:
    """Return what a cell stands for."""
    return cell.removeprefix(_ESCAPE)


def _columns(*, payloads: bool) -> tuple[Column, ...]:
    return COLUMNS + (PAYLOAD_COLUMNS if payloads else ())


def _details(record: Record) -> str:
    if record.payload is None:
        return ""
    return json.dumps(record.payload.model_dump(mode="json", exclude={"actor"}), ensure_ascii=False, sort_keys=True)


def _row(cells: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue().encode()


def _readme(reader: LogReader, columns: Sequence[Column]) -> str:
    width = max(len(column.name) for column in columns)
    lines = [
        f"Records of the audit log {reader.origin}, as of its checkpoint of {reader.size} records.",
        "",
        f"{TABLE}: one row a record, the first row names the columns; commas between cells, UTF-8.",
        "An apostrophe at the start of a cell is not part of it: it keeps spreadsheets from running the cell as a formula.",
        "",
        *(f"{column.name:<{width}}  {column.meaning}" for column in columns),
        "",
        "manifest.json lists the digest of every file here, and manifest.note is the log's signature over it.",
        "",
    ]
    return "\n".join(lines)


def _rows(packet: Packet, names: list[str]) -> Iterator[list[str]]:
    with packet.open(TABLE) as raw, io.TextIOWrapper(raw, encoding="utf-8", newline="") as file, _large_cells():
        # strict: a quote in the wrong place is an error, not a guess.
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            if header != [_BOM + names[0], *names[1:]]:
                raise AuditFormatError(f"{TABLE} has another header than its format.")
            for row in reader:
                if len(row) != len(names):
                    raise AuditFormatError(f"{TABLE} row {reader.line_num} has {len(row)} cells, not {len(names)}.")
                yield row
        except (csv.Error, UnicodeDecodeError):
            raise AuditFormatError(f"{TABLE} is no CSV in UTF-8, about line {reader.line_num}.") from None


@contextlib.contextmanager
def _large_cells() -> Iterator[None]:
    """Let the csv module read cells as large as payloads; its limit of 128 KiB is the process's, and is put back."""
    usual = csv.field_size_limit(_MAX_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(usual)


def _index_of(cell: str, number: int) -> int:
    if not cell.isascii() or not cell.isdigit() or str(int(cell[:20])) != cell:
        raise AuditFormatError(f"{TABLE} row {number} does not start with a record's number.")
    return int(cell)


def _check_cells(index: int, cells: dict[str, str]) -> bytes:
    """Return the leaf's hash."""
    digest = cells["leaf_sha256"]
    if cells["kind"] not in PAYLOADS or len(digest) != 2 * hashlib.sha256().digest_size or not set(digest) <= _HEX:
        raise AuditFormatError(f"Record {index} has a kind or a leaf_sha256 that is none.")
    if any(cell != escape(unescape(cell)) for cell in cells.values()):
        raise AuditFormatError(f"Record {index} has a cell that a spreadsheet would run as a formula.")
    return bytes.fromhex(digest)
