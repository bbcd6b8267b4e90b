"""CSV: the log's records for people, one row a record, to be opened in a spreadsheet.

The one idea: a spreadsheet runs what starts like a formula and guesses at the rest, so nothing here starts like one, wherever it takes a cell to
start, and nothing is left to guess.

RFC 4180 with a header, every cell in quotes; UTF-8 *with* a byte-order mark, because Excel takes a file without one for the system's old code page,
and names would be spoiled (programs read `utf-8-sig`, or take the JSON Lines form). Times are UTC, as the log wrote them.

A cell that starts with = + - @ (their full-width forms too), a tab or a line end gets an apostrophe before it, and so does one that starts with an
apostrophe. Where Windows' list separator is a semicolon, Excel splits at semicolons and takes our quotes for text, so quotes alone protect nothing:
within a cell too, the same goes for what follows a semicolon, comma, tab, line end or quote. Taking away one apostrophe at each of these places
gives back what was there (OWASP, CSV Injection).
"""

import contextlib
import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

from clinical_ser.audit.events import MAX_PAYLOAD_BYTES, PAYLOADS, TIME, Outcome, Purpose, Role
from clinical_ser.audit.exports.packet import Findings, Packet, PacketWriter
from clinical_ser.audit.exports.selection import Order, Selection
from clinical_ser.audit.merkle import Frontier, leaf_hash
from clinical_ser.audit.notes import NoteSigner
from clinical_ser.audit.records import LogReader, Record
from clinical_ser.errors import AuditFormatError, AuditTamperedError

FORM = "csv"
SCHEMA = "clinical-ser/audit-table/1"
SCHEMA_FILE = "audit-table-1.schema.json"
TABLE = "records.csv"
README = "README.txt"
CSV_TYPE = "text/csv; charset=utf-8; header=present"

_BOM = "\N{ZERO WIDTH NO-BREAK SPACE}".encode()
_ESCAPE = "'"
_START = r'(?:\A|(?<=[;,\t\r\n"]))'
"""Where some spreadsheet may take a cell to start."""
_LIKE_A_FORMULA = re.compile(_START + r"(?= *[=+\-@\t\r\n＝＋－＠'])")
_ESCAPED = re.compile(f"{_START}{_ESCAPE}")
_HEX = frozenset("0123456789abcdef")
# JSON writes a control character in six; escaping adds at most one to two.
_MAX_CELL = 6 * MAX_PAYLOAD_BYTES

_NOT_CLAIMED = (
    "That this table can be checked without the log, cell by cell: it is for reading. The JSON Lines form carries the proofs.",
    "That what a record says is true: only that it was recorded, and not changed since.",
)


@dataclass(frozen=True)
class Column:
    """A column: its name, what it means, what of a record is in it, and its type and constraints in the terms of Frictionless Table Schema."""

    name: str
    meaning: str
    of: Callable[[Record], object]
    type: Literal["integer", "datetime", "string"] = "string"
    constraints: dict[str, object] = field(default_factory=dict)
    """`enum` and `pattern` of a cell that is not empty, `required` where it never is."""


_ALWAYS: dict[str, object] = {"required": True}
_SHA256: dict[str, object] = {"pattern": "[0-9a-f]{64}"}


def _one_of(values: Iterable[str]) -> dict[str, object]:
    return {"required": True, "enum": [str(value) for value in values]}


COLUMNS = (
    Column(
        "index", "The record's number in the log, from 0. The order of the log is the only order there is.", lambda r: r.index, "integer", _ALWAYS
    ),
    Column("time_utc", "When, by the clock of the computer that wrote the log, in UTC.", lambda r: r.event.time, "datetime", _ALWAYS),
    Column("kind", "What kind of event.", lambda r: r.event.kind, constraints=_one_of(sorted(PAYLOADS))),
    Column("outcome", "How it ended: success, refused or failed.", lambda r: r.event.outcome.value, constraints=_one_of(Outcome)),
    Column("role", "In what role someone, or some program, acted.", lambda r: r.event.role.value, constraints=_one_of(Role)),
    Column("purpose", "Why: a code of HL7's PurposeOfUse, as TREAT for treatment.", lambda r: r.event.purpose.value, constraints=_one_of(Purpose)),
    Column("flags", "What deserves a look: clock_anomaly, risk_signal, with a space between.", lambda r: " ".join(r.event.flags)),
    Column("supersedes", "The number of the record that this one amends.", lambda r: r.event.supersedes, "integer"),
    Column("software", "The version of the software.", lambda r: r.event.software, constraints=_ALWAYS),
    Column("model_sha256", "Digest of the model that it is about.", lambda r: r.event.model, constraints=_SHA256),
    Column("event_id", "A random name, the same in every copy and export.", lambda r: r.event.id, constraints={**_ALWAYS, "pattern": "[0-9a-f]{32}"}),
    Column(
        "subject_tag",
        "Stands for the person, another one in every record; only the log's keeper can tell whose it is.",
        lambda r: r.event.subject_tag,
        constraints=_SHA256,
    ),
    Column(
        "state",
        "Of what is about persons: open (there), sealed (no key to read it), erased (destroyed).",
        lambda r: r.state,
        constraints=_one_of(("open", "sealed", "erased")),
    ),
    Column(
        "leaf_sha256",
        "The record's hash in the log's tree, RFC 6962: SHA-256 of a zero byte and the record.",
        lambda r: leaf_hash(r.leaf).hex(),
        constraints={**_ALWAYS, **_SHA256},
    ),
)
PAYLOAD_COLUMNS = (
    Column("actor", "Who acted, as the site names the account or program.", lambda r: r.payload and r.payload.actor.id),
    Column("actor_name", "That one's name.", lambda r: r.payload and r.payload.actor.name),
    Column("client", "The network address that asked.", lambda r: r.payload and r.payload.actor.client),
    Column("details", "The rest of what was recorded, as JSON.", lambda r: r.payload and _details(r)),
)
"""Only in an export with payloads."""


def table_schema() -> bytes:
    """Return what the columns are as a Frictionless Table Schema, as it ships in `schemas/`."""
    document = {
        "name": "clinical-ser-audit-table-1",
        "description": "An empty cell is a missing value. One apostrophe at the start of a cell, and one after each semicolon, comma, tab, line end "
        "or quote in it, is no part of the value: take it away.",
        "fields": [_field_of(column) for column in COLUMNS + PAYLOAD_COLUMNS],
        "primaryKey": "index",
        "missingValues": [""],
    }
    return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"


def _field_of(column: Column) -> dict[str, object]:
    when = " Only in an export with payloads." if column in PAYLOAD_COLUMNS else ""
    return {
        "name": column.name,
        "type": column.type,
        **({"format": TIME} if column.type == "datetime" else {}),
        "description": column.meaning + when,
        **({"constraints": column.constraints} if column.constraints else {}),
    }


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
        with writer.open(TABLE, CSV_TYPE, SCHEMA) as file:
            rows = ([escape(column.of(record)) for column in columns] for record in chosen.records(reader))
            for line in csv_lines([column.name for column in columns], rows):
                file.write(line)
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
    """Return a cell's text, no part of which a spreadsheet takes for a formula; nothing for None.

    Examples
    --------
    >>> escape("=1+1"), escape("A;=1+1"), escape("'quoted"), escape(12), escape(None)
    ("'=1+1", "A;'=1+1", "''quoted", '12', '')
    """
    return _LIKE_A_FORMULA.sub(_ESCAPE, "" if value is None else str(value))


def unescape(cell: str) -> str:
    """Return what a cell stands for."""
    return _ESCAPED.sub("", cell)


def csv_lines(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[bytes]:
    """Yield a table's bytes, a row at a time: a byte-order mark, and every cell in quotes. Cells from people go through `escape` first."""
    yield _BOM + _row(header)
    yield from map(_row, rows)


def _columns(*, payloads: bool) -> tuple[Column, ...]:
    return COLUMNS + (PAYLOAD_COLUMNS if payloads else ())


def _details(record: Record) -> str:
    if record.payload is None:
        return ""
    return json.dumps(record.payload.model_dump(mode="json", exclude={"actor"}), ensure_ascii=False, sort_keys=True)


def _row(cells: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n", quoting=csv.QUOTE_ALL).writerow(cells)
    return text.getvalue().encode()


def _readme(reader: LogReader, columns: Sequence[Column]) -> str:
    width = max(len(column.name) for column in columns)
    lines = [
        f"Records of the audit log {reader.origin}, as of its checkpoint of {reader.size} records.",
        "",
        f"{TABLE}: one row a record, the first row names the columns; commas between cells, each cell in quotes, UTF-8.",
        "One apostrophe at the start of a cell, and one after each semicolon, comma, tab, line end or quote in it, is not part of what was recorded:",
        "it keeps spreadsheets from running the cell, or a part of it, as a formula.",
        f"{SCHEMA_FILE}, which ships with clinical-ser, says the same of the columns for programs (a Frictionless Table Schema).",
        "",
        *(f"{column.name:<{width}}  {column.meaning}" for column in columns),
        "",
        "manifest.json lists the digest of every file here, and manifest.note is the log's signature over it.",
        "",
    ]
    return "\n".join(lines)


def _rows(packet: Packet, names: list[str]) -> Iterator[list[str]]:
    """Yield the rows below the header, and see at the end that the file has the one spelling that `csv_lines` gives them."""
    spelled = hashlib.sha256(_BOM + _row(names))
    with packet.open(TABLE) as raw, _large_cells():
        has_mark = raw.read(len(_BOM)) == _BOM
        file = io.TextIOWrapper(raw, encoding="utf-8", newline="")
        # strict: a quote in the wrong place is an error, not a guess.
        reader = csv.reader(file, strict=True)
        try:
            if not has_mark or next(reader, []) != names:
                raise AuditFormatError(f"{TABLE} has another header than its format.")
            for row in reader:
                if len(row) != len(names):
                    raise AuditFormatError(f"{TABLE} row {reader.line_num} has {len(row)} cells, not {len(names)}.")
                spelled.update(_row(row))
                yield row
        except (csv.Error, UnicodeDecodeError):
            raise AuditFormatError(f"{TABLE} is no CSV in UTF-8, about line {reader.line_num}.") from None
    if spelled.hexdigest() != packet.manifest.files[TABLE].sha256:
        raise AuditFormatError(f"{TABLE} is not spelled as an export of ours is: every cell in quotes.")


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
