"""From the bytes of a manifest to named columns of text: encodings, separators, column names.

What can be wrong with the file as a whole is found here and raised; what is wrong with a row is found in `manifest.py` and reported.
"""

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from clinical_ser.cohorts.table import RowProblem
from clinical_ser.errors import ManifestError

REQUIRED = ("path", "subject")
OPTIONAL = ("label", "score", "site", "sex", "age", "language", "device", "task", "recorded_at", "start", "end")
KNOWN = REQUIRED + OPTIONAL
SEPARATORS = (",", ";", "\t")

MAX_BYTES = 256 * 2**20
"""A manifest of 100,000 rows has 10 MB; what is larger than this is another file."""

# Names other tools give our two columns. Only these may be named in an error: where the first line holds no column names it holds data.
_NEAR_NAMES = {
    **dict.fromkeys(("file", "filename", "file_name", "filepath", "file_path", "wav", "audio", "audio_path", "recording"), "path"),
    **dict.fromkeys(("speaker", "speaker_id", "subject_id", "participant", "participant_id", "patient", "patient_id", "id"), "subject"),
}
_SIGNATURES = {b"PK\x03\x04": "a workbook or an archive", b"\xd0\xcf\x11\xe0": "an old Excel workbook", b"%PDF": "a PDF", b"\x1f\x8b": "compressed"}


@dataclass(frozen=True, eq=False)
class Cells:
    """A manifest as text, before anything in it is believed.

    Attributes
    ----------
    columns
        The known columns the file has; `columns[name][i]` belongs to row `rows[i]`, "" where empty.
    rows
        Row numbers, as a spreadsheet shows them below the column names.
    further
        The other columns as they stand, one row for each of `rows`.
    problems
        Rows with more or fewer cells than columns.
    decimal_comma
        Whether `3,5` is a number in this file.
    """

    columns: dict[str, list[str]]
    rows: list[int]
    further: pd.DataFrame
    problems: tuple[RowProblem, ...] = ()
    decimal_comma: bool = False


def read_cells(path: Path) -> Cells:
    """Read CSV or Parquet, told apart by content.

    Raises
    ------
    ManifestError
        The file is missing, empty, no table, or lacks a required column.
    """
    content = _read_bytes(path)
    return _parquet_cells(content) if content.startswith(b"PAR1") else _csv_cells(content)


def _read_bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ManifestError(f"The manifest is larger than {MAX_BYTES // 2**20} MiB; this is another file.")
        content = path.read_bytes()
    except FileNotFoundError:
        raise ManifestError("There is no manifest at the given path.") from None
    except OSError as error:
        raise ManifestError(f"The manifest cannot be read ({error.strerror}).") from None
    if not content.strip():
        raise ManifestError("The manifest is empty; its first line has to name the columns, at least path and subject.")
    return content


def _parquet_cells(content: bytes) -> Cells:
    try:
        frame = pq.read_table(io.BytesIO(content)).to_pandas()
    except (pa.ArrowException, OSError):
        raise ManifestError("The manifest starts like a Parquet file but is cut short or damaged; write it again.") from None
    names = _column_names([str(name) for name in frame.columns])
    frame.columns = pd.Index(names)
    known = {name: [_as_text(value) for value in frame[name]] for name in KNOWN if name in names}
    further = frame[[name for name in names if name not in {*KNOWN, "row"}]].reset_index(drop=True)
    texts = [name for name in further if isinstance(further[name].dtype, pd.StringDtype)]
    further = further.astype(dict.fromkeys(texts, object))
    further[texts] = further[texts].where(further[texts].notna(), None)
    return Cells(known, list(range(1, len(frame) + 1)), further)


def _as_text(value: object) -> str:
    if value is None or value is pd.NaT or (isinstance(value, float) and math.isnan(value)):
        return ""
    # A subject column with a gap reads as float: 7.0 is subject 7.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _csv_cells(content: bytes) -> Cells:
    separator, text = _separator(_decoded(content))
    names, records = _records(text, separator)
    kept: list[list[str]] = []
    rows, problems = [], []
    for row, record in enumerate(records, start=1):
        cells = record if any(cell.strip() for cell in record[len(names) :]) else record[: len(names)]
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(names):
            problems.append(RowProblem(row, f"{len(cells)} cells where {len(names)} columns are named (a separator inside a value needs quotes)"))
            continue
        kept.append(cells)
        rows.append(row)
    columns = {name: [cells[position] for cells in kept] for position, name in enumerate(names)}
    known = {name: columns[name] for name in KNOWN if name in columns}
    further = {name: [cell or None for cell in cells] for name, cells in columns.items() if name not in {*KNOWN, "row"}}
    return Cells(known, rows, pd.DataFrame(further, index=range(len(kept)), dtype=object), tuple(problems), separator == ";")


def _records(text: str, separator: str) -> tuple[list[str], list[list[str]]]:
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        header, *records = list(lines) or [[]]
    except csv.Error:
        raise ManifestError(
            f"The manifest cannot be split into cells near line {lines.line_num}: most likely a quotation mark is not closed. "
            "Save it again as CSV from a spreadsheet."
        ) from None
    while header and not header[-1].strip():  # a spreadsheet's trailing separators
        header.pop()
    names = _column_names(header)
    if not records:
        raise ManifestError("The manifest names its columns but has no row below them.")
    return names, records


def _decoded(content: bytes) -> str:
    for signature, what in _SIGNATURES.items():
        if content.startswith(signature):
            raise ManifestError(f"The manifest is {what}, not CSV or Parquet; save the sheet as 'CSV UTF-8'.")
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else _utf16_without_mark(content) or "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ManifestError(f"The manifest is not UTF-8 text (first wrong byte in line {line}); save it as 'CSV UTF-8'.") from None
    if "\x00" in text:
        raise ManifestError("The manifest is a binary file, not CSV or Parquet.")
    return text


def _utf16_without_mark(content: bytes) -> str | None:
    """Column names are ASCII, so in UTF-16 every other byte of the first line is zero."""
    head = content[:64]
    if len(head) >= 8 and not any(head[1::2]):
        return "utf-16-le"
    return "utf-16-be" if len(head) >= 8 and not any(head[::2]) else None


def _separator(text: str) -> tuple[str, str]:
    """Find the separator by what it makes of the first line: the required columns, else the most columns.

    Statistics over the body (csv.Sniffer) fall for commas inside sentences; the column names cannot be mistaken.
    """
    first, *rest = re.split(r"\r\n|\r|\n", text, maxsplit=1)
    if re.fullmatch(r"sep=.", first):  # Excel's own hint line
        return first[4], "".join(rest)

    def score(separator: str) -> tuple[int, int]:
        names = [name.strip().strip('"').lower() for name in first.split(separator)]
        return sum(name in names for name in REQUIRED), len(names)

    return max(SEPARATORS, key=score), text


def _column_names(header: Sequence[str]) -> list[str]:
    """Strip the names, lower-case the known ones, and insist on the required ones, each once."""
    names = [stripped.lower() if stripped.lower() in {*KNOWN, "row"} else stripped for stripped in (name.strip() for name in header)]
    if missing := [name for name in REQUIRED if name not in names]:
        raise ManifestError(_missing_columns(missing, names))
    if "" in names:
        raise ManifestError(f"Column {names.index('') + 1} of the manifest has no name.")
    if repeated := sorted({name for name in KNOWN if names.count(name) > 1}):
        raise ManifestError(f"The manifest names {repeated} more than once.")
    if len(set(names)) < len(names):
        raise ManifestError("The manifest gives two columns the same name.")
    return names


def _missing_columns(missing: list[str], names: list[str]) -> str:
    found = [name for name in names if name in KNOWN]
    near = [name for name in names if name.lower() in _NEAR_NAMES and _NEAR_NAMES[name.lower()] in missing]
    others = len(names) - len(found) - len(near)
    renames = "".join(f" Rename {name!r} to {_NEAR_NAMES[name.lower()]!r}." for name in near)
    hint = "" if found or near else " The first line has to hold the column names."
    return f"The manifest lacks {missing}; found {found + near} and {others} other columns.{renames}{hint}"
