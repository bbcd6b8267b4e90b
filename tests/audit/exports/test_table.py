import csv
import io
import json
import re
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clinical_ser.audit import events
from clinical_ser.audit.exports import table
from clinical_ser.audit.exports.packet import verify_export
from clinical_ser.audit.exports.selection import Selection
from clinical_ser.audit.exports.table import COLUMNS, PAYLOAD_COLUMNS, README, SCHEMA_FILE, TABLE, escape, table_schema, unescape
from clinical_ser.audit.merkle import leaf_hash
from clinical_ser.errors import AuditError, AuditTamperedError
from tests.audit.exports.example import CANARY, ERASED, FIRST_SUBJECT, KEYS, SIGNER, START, ExampleLog, entries, inference
from tests.audit.exports.forging import change_lines, reseal

LOG = ExampleLog()
WHOLE = Selection(payloads=True)
PART = Selection(first=2, last=12, payloads=True)


def export(folder, chosen=None, log=LOG):
    table.export(log, folder / "export", [SIGNER], chosen, created=START)
    return folder / "export"


def rows_of(folder):
    text = (folder / TABLE).read_bytes().decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


@pytest.mark.parametrize("chosen", [None, WHOLE, PART, Selection(kinds=frozenset({"review"})), Selection(about=FIRST_SUBJECT, payloads=True)])
@pytest.mark.parametrize("log", [LOG, ExampleLog(sealed=True)], ids=["open", "sealed"])
def test_what_is_exported_verifies_with_the_log_and_without(tmp_path, chosen, log):
    folder = export(tmp_path, chosen, log)
    assert verify_export(folder, KEYS).findings.records == len(rows_of(folder))
    assert verify_export(folder, KEYS, reader=log).findings.unchecked == (() if chosen is None or not chosen.about else (ONLY_LOG,))


ONLY_LOG = "Whether all records of the selection are there: only the log can tell."


@pytest.mark.parametrize("size", [0, 1])
def test_small_logs_have_a_header_all_the_same(tmp_path, size):
    folder = export(tmp_path, None, ExampleLog(entries()[:size]))
    assert verify_export(folder, KEYS).findings.records == size == len(rows_of(folder))
    assert (folder / TABLE).read_bytes().count(b"\r\n") == size + 1


def test_the_columns_say_what_the_record_says(tmp_path):
    for row, record in zip(rows_of(export(tmp_path, WHOLE)), LOG.records(), strict=True):
        assert list(row) == [column.name for column in COLUMNS + PAYLOAD_COLUMNS]
        assert (row["index"], row["time_utc"], row["kind"]) == (str(record.index), record.event.time, record.event.kind)
        assert row["leaf_sha256"] == leaf_hash(record.leaf).hex()
        assert row["supersedes"] == ("" if record.event.supersedes is None else str(record.event.supersedes))
        if record.index in ERASED:
            assert (row["state"], row["actor"], row["details"]) == ("erased", "", "")
        else:
            told = json.loads(unescape(row["details"]))
            assert {**told, "actor": record.payload.actor.model_dump(mode="json")} == record.payload.model_dump(mode="json")


def test_a_spreadsheet_is_told_that_it_is_utf_8(tmp_path):
    assert (export(tmp_path) / TABLE).read_bytes().startswith(b'\xef\xbb\xbf"index","time_utc",')


def test_the_readme_explains_every_column_that_is_there(tmp_path):
    for number, (chosen, columns) in enumerate(((None, COLUMNS), (WHOLE, COLUMNS + PAYLOAD_COLUMNS))):
        readme = (export(tmp_path / str(number), chosen) / README).read_text()
        assert [column.name for column in columns if f"\n{column.name} " in readme] == [column.name for column in columns]
        assert ("actor_name" in readme) is (chosen is not None)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", " =1", "\tx", "\r1", "\n1", "＝1", "－1", "＋1", "＠x", "'=1"])
def test_no_cell_starts_like_a_formula(text):
    assert escape(text) == "'" + text
    assert unescape(escape(text)) == text


@pytest.mark.parametrize("separator", [";", ",", "\t", "\r\n", "\n", '"'])
@pytest.mark.parametrize("start", ["=1+1", "+1", "-1", "@SUM(A1)", " =1", "＝1", "－1", "＋1", "＠x", "'=1"])
def test_no_part_of_a_cell_starts_like_a_formula(separator, start):
    """Found in review: where the list separator is a semicolon, a recipient `A;=HYPERLINK(…)` made two cells, and the second ran."""
    text = f"A{separator}{start}"
    assert escape(text).endswith(f"{separator[-1]}'{start}")
    assert unescape(escape(text)) == text


@given(st.text() | st.text(alphabet=" ;,\t\n\r\"'=+-@A"))
def test_what_was_in_a_cell_can_be_had_back(text):
    assert unescape(escape(text)) == text
    starts = [part[:1] for part in re.split('[;,\t\r\n"]', escape(text))]
    assert not set(starts) & set("=+-@＝＋－＠")


def test_every_cell_is_in_quotes_and_a_table_without_them_is_not_ours(tmp_path):
    folder = export(tmp_path)
    lines = (folder / TABLE).read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    assert all(line.startswith(b'"') and line.endswith(b'"') and line.count(b'","') == len(COLUMNS) - 1 for line in lines)
    change_lines(folder, TABLE, lambda lines: [*lines[:3], lines[3].replace(b'"model"', b"model"), *lines[4:]])
    with pytest.raises(AuditError, match="every cell in quotes"):
        verify_export(folder, KEYS, reader=LOG)


def test_the_schema_that_ships_is_that_of_the_columns(tmp_path):
    raw = (Path(table.__file__).parent / "schemas" / SCHEMA_FILE).read_bytes()
    assert raw == table_schema()
    schema = json.loads(raw)
    rows = rows_of(export(tmp_path, WHOLE))
    assert [one["name"] for one in schema["fields"]] == list(rows[0])
    for row in rows:
        for one in schema["fields"]:
            fits(unescape(row[one["name"]]), one)
    assert SCHEMA_FILE in (tmp_path / "export" / README).read_text()
    manifest = json.loads((tmp_path / "export" / "manifest.json").read_bytes())
    assert manifest["files"][TABLE]["schema"] == table.SCHEMA


def fits(value, one):
    constraints = one.get("constraints", {})
    if value == "":
        assert not constraints.get("required"), one["name"]
        return
    assert value in constraints.get("enum", [value]), one["name"]
    assert re.fullmatch(constraints.get("pattern", "(?s:.*)"), value), one["name"]
    {"integer": int, "datetime": lambda text: datetime.strptime(text, one.get("format", "")), "string": str}[one["type"]](value)


def test_every_schema_that_ships_is_named_alike():
    names = sorted(path.name for path in (Path(table.__file__).parent / "schemas").iterdir())
    forms = ("access", "accounting", "ai-act", "evidence-pack", "export", "processing", "record-line", "selection", "table")
    assert names == [f"audit-{form}-1.schema.json" for form in forms]


def test_hostile_names_stay_text_in_their_cell(tmp_path):
    actor = events.Actor(id='=HYPERLINK("http://evil","x")', role=events.Role.OPERATOR, name='-2+3";\r\n=cmd', client="@x,y")
    log = ExampleLog([replace(entries()[0], payload=events.Service(actor=actor, action="started", component="api"))])
    folder = export(tmp_path, WHOLE, log)
    (row,) = rows_of(folder)
    assert [unescape(row[name]) for name in ("actor", "actor_name", "client")] == [actor.id, actor.name, actor.client]
    assert all(row[name].startswith("'") for name in ("actor", "actor_name", "client"))
    assert verify_export(folder, KEYS, reader=log).findings.records == 1


def test_a_payload_larger_than_the_csv_modules_limit_is_read_back(tmp_path):
    usual = csv.field_size_limit()
    log = ExampleLog([replace(entries()[4], payload=inference(prediction_set=("\x01" * 500,) * 300))])
    folder = export(tmp_path, WHOLE, log)
    assert (folder / TABLE).stat().st_size > 6 * 500 * 300 > usual
    assert verify_export(folder, KEYS, reader=log).findings.records == 1
    assert csv.field_size_limit() == usual


def test_without_payloads_there_is_nothing_of_anybody(tmp_path):
    for number, chosen in enumerate((None, Selection(about=FIRST_SUBJECT))):
        folder = export(tmp_path / str(number), chosen)
        assert not any(CANARY.encode() in path.read_bytes() for path in folder.iterdir())


def test_with_payloads_nobody_is_named_as_the_site_names_them(tmp_path):
    folder = export(tmp_path, Selection(about=FIRST_SUBJECT, payloads=True))
    assert not any(b"MRN-" in path.read_bytes() for path in folder.iterdir())


def without_header(lines):
    return lines[1:]


def other_header(lines):
    return [lines[0].replace(b"kind", b"sort"), *lines[1:]]


def short_row(lines):
    return [*lines[:3], lines[3].rsplit(b",", 2)[0] + b"\r\n", *lines[4:]]


def broken_quotes(lines):
    return [*lines[:3], lines[3].replace(b'"model"', b'"mod"el"'), *lines[4:]]


def not_utf_8(lines):
    return [*lines[:3], b"\xff" + lines[3], *lines[4:]]


def formula(lines):
    return [*lines[:3], lines[3].replace(b'"HOPERAT"', b'"=1+1"'), *lines[4:]]


def leading_zero(lines):
    return [*lines[:3], b'"0' + lines[3][1:], *lines[4:]]


def leaf_sha256(lines):
    return [*lines[:3], lines[3].replace(lines[3].split(b'"')[27], b"0" * 64), *lines[4:]]


def no_sha256(lines):
    return [*lines[:3], lines[3].replace(lines[3].split(b'"')[27], b"0" * 63), *lines[4:]]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda lines: [*lines[:4], *lines[5:]], "Record 3 is missing"),
        (lambda lines: lines[:-1], "Record 24 is missing"),
        (lambda lines: [*lines[:4], lines[3], *lines[4:]], "Record 2 comes after record 2"),
        (lambda lines: [*lines[:3], lines[4], lines[3], *lines[5:]], "Record 2 is missing"),
        (without_header, "another header"),
        (other_header, "another header"),
        (short_row, "row 4 has 12 cells"),
        (broken_quotes, "is no CSV in UTF-8, about line 4"),
        (not_utf_8, "is no CSV in UTF-8"),
        (formula, "would run as a formula"),
        (leading_zero, "does not start with a record's number"),
        (leaf_sha256, "leaf_sha256 does not make up the root"),
        (no_sha256, "a leaf_sha256 that is none"),
        (lambda lines: [], "another header"),
    ],
)
def test_rows_that_were_changed_are_noticed_even_when_the_envelope_fits(tmp_path, change, match):
    folder = export(tmp_path)
    change_lines(folder, TABLE, change)
    with pytest.raises(AuditError, match=match):
        verify_export(folder, KEYS)


@pytest.mark.parametrize("old", [b'"success"', b'"operator"', b"2026-09-01T08:30", b"CANARY Operator", b"CANARY host"])
def test_any_cell_that_was_changed_is_noticed_with_the_log(tmp_path, old):
    folder = export(tmp_path, WHOLE)
    content = (folder / TABLE).read_bytes()
    new = b'"failed"' if old == b'"success"' else old.replace(b"o", b"0").replace(b"O", b"0").replace(b"30", b"31")
    (folder / TABLE).write_bytes(content.replace(old, new, 1))
    reseal(folder)
    assert "other cells" in verify_export(folder, KEYS).findings.unchecked[0]
    with pytest.raises(AuditTamperedError, match=r"Record 0 has another \w+ in the log"):
        verify_export(folder, KEYS, reader=LOG)


def test_what_was_erased_since_is_no_forgery(tmp_path):
    folder = export(tmp_path, WHOLE, ExampleLog(erased=frozenset()))
    assert verify_export(folder, KEYS, reader=LOG).findings.records == LOG.size
