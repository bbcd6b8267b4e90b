"""Manifests: the table that says which recording belongs to whom, and what is known about it.

A row is good or it is reported by number and reason; none is dropped in silence, and no reason quotes a cell, because cells hold
paths and names. Numbers are those a spreadsheet shows: the first row under the column names is 1, blank ones count.
"""

import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pandas as pd

from clinical_ser.cohorts.cells import KNOWN, REQUIRED, Cells, read_cells
from clinical_ser.cohorts.table import RowProblem, replaced
from clinical_ser.cohorts.tasks import Task
from clinical_ser.errors import InvalidValueError, ManifestError

MAX_AGE_YEARS = 120.0

# Written where a value is missing by R (NA), pandas (empty), SQL (NULL) and spreadsheets (#N/A).
_MISSING = frozenset({"", "NA", "N/A", "#N/A", "NaN", "NULL"})
SEXES = {
    **dict.fromkeys(("female", "f", "w", "weiblich", "woman", "女"), "female"),
    **dict.fromkeys(("male", "m", "männlich", "man", "男"), "male"),
    **dict.fromkeys(("other", "o", "d", "x", "diverse", "divers", "nonbinary", "non-binary"), "other"),
}
"""What files say of sex, in small letters, and what it is called here."""
# RFC 5646 (BCP 47), the part in use: a language of 2 or 3 letters, then subtags.
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_WINDOWS_ROOT = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NUMBERS = ("score", "age", "start", "end")


@dataclass(frozen=True, eq=False)
class Manifest:
    """The rows that can be used, and the rows that cannot.

    Attributes
    ----------
    frame
        One row a recording or segment. `row` is its number in the file, `path` absolute, `subject` text; then the optional ones that
        the file has (`score`, `age` in years, `start` and `end` in seconds: float64, NaN where missing; the others text, None where
        missing), then its further columns as they stand.
    problems
        Every other row, in order.
    """

    frame: pd.DataFrame
    problems: tuple[RowProblem, ...] = ()

    def __len__(self) -> int:
        return len(self.frame)


@dataclass(frozen=True, eq=False)
class Labels:
    """Classes of a frame's rows: `values` shares its index and is None where `problems` says why."""

    values: pd.Series
    classes: tuple[str, ...]
    problems: tuple[RowProblem, ...] = ()


def read_manifest(path: Path) -> Manifest:
    r"""Read a manifest from CSV or Parquet (told apart by content, not by name).

    CSV may be UTF-8 or UTF-16 with or without a byte-order mark, separated by comma, semicolon (then `3,5` is a number too) or tab.
    Relative paths are taken from the manifest's folder; backslashes become slashes.

    Parameters
    ----------
    path
        The manifest.

    Raises
    ------
    ManifestError
        The file as a whole cannot be used: missing, empty, no table, no `path` or `subject` column, not one usable row.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     _ = Path(folder, "m.csv").write_text("path,subject,sex\na.wav,S1,F\nb.wav,,m\n")
    ...     manifest = read_manifest(Path(folder, "m.csv"))
    >>> manifest.frame["sex"].tolist(), manifest.problems
    (['female'], (RowProblem(row=2, reason='no subject'),))
    """
    manifest = _RowReader(read_cells(path), folder=path.resolve().parent).read()
    if manifest.frame.empty:
        first = f"; the first problem, in row {manifest.problems[0].row}: {manifest.problems[0].reason}" if manifest.problems else ""
        raise ManifestError(f"The manifest has no usable row (rows with a problem: {len(manifest.problems)}){first}.")
    return manifest


def write_manifest(frame: pd.DataFrame, path: Path) -> None:
    """Write a manifest as CSV (UTF-8, comma) or Parquet, by the suffix of `path`.

    Paths below the manifest's folder are written relative to it, so that the folder can move; others stay absolute. `row` is not written.

    Parameters
    ----------
    frame
        At least the columns `path` and `subject`.
    path
        Ends in `.csv` or `.parquet`; readable by its owner only, since it names subjects; replaced in one step if it exists.
    """
    if missing := [name for name in REQUIRED if name not in frame]:
        raise ManifestError(f"A manifest needs the columns {list(REQUIRED)}; {missing} missing.")
    suffix = path.suffix.lower()
    if suffix not in {".csv", ".parquet"}:
        raise InvalidValueError("the manifest's suffix", suffix, [".csv", ".parquet"])
    folder = path.resolve().parent
    known = [name for name in KNOWN if name in frame]
    table = frame[known + [name for name in frame.columns if name not in {*known, "row"}]].copy()
    table["path"] = [_portable_path(str(entry), folder) for entry in table["path"]]
    with replaced(path) as unfinished:
        if suffix == ".csv":
            table.to_csv(unfinished, index=False, encoding="utf-8", lineterminator="\n")
        else:
            table.to_parquet(unfinished, index=False)


def labels_for(task: Task, frame: pd.DataFrame) -> Labels:
    """Give each row its class: from `label`, or from `score` and the task's cut-off, and say where that fails.

    A `score_name` column (the corpus adapters write one) that names another questionnaire than the task's keeps that score out: the
    cut-off of one is none of another.

    Parameters
    ----------
    task
        Its `classes` are the ones accepted, whatever their case (for a binary task also `0` and `1`); without, those found, sorted.
    frame
        A manifest's or a feature table's frame; `row` numbers are taken from it where it has them.

    Raises
    ------
    ManifestError
        Neither a `label` column nor a score that fits the task.
    """
    given = _text_column(frame, "label")
    scored = _classes_from_score(task, frame)
    if "label" not in frame and not any(scored):
        wanted = f" nor a {task.score_name} score" if task.score_cutoff is not None else ""
        raise ManifestError(f"The manifest has no label column{wanted}, so that {task.name!r} cannot be learned from it.")
    classes = task.classes or tuple(sorted({label for label in given if label is not None}))
    accepted = {name.casefold(): name for name in classes}
    if len(task.classes) == 2:
        accepted |= {"0": task.classes[0], "1": task.classes[1]} | accepted
    rows = frame["row"].tolist() if "row" in frame else range(1, len(frame) + 1)
    values: list[str | None] = []
    problems = []
    for row, label, by_score in zip(rows, given, scored, strict=True):
        value, reason = _one_label(label, by_score, accepted, classes)
        values.append(value)
        if reason:
            problems.append(RowProblem(int(row), reason))
    return Labels(pd.Series(values, index=frame.index, dtype=object, name="label"), classes, tuple(problems))


def _one_label(label: str | None, by_score: str | None, accepted: dict[str, str], classes: Sequence[str]) -> tuple[str | None, str | None]:
    if label is None:
        return by_score, None if by_score else "no label"
    known = accepted.get(label.strip().casefold())
    if known is None:
        return None, f"unknown label, expected one of {list(classes)}"
    if by_score is not None and by_score != known:
        return None, f"the label and the score disagree (by the score: {by_score!r})"
    return known, None


def _classes_from_score(task: Task, frame: pd.DataFrame) -> list[str | None]:
    if task.score_cutoff is None or "score" not in frame:
        return [None] * len(frame)
    named = _text_column(frame, "score_name")
    negative, positive = task.classes
    return [
        None if pd.isna(score) or name not in {None, task.score_name} else positive if score >= task.score_cutoff else negative
        for score, name in zip(frame["score"], named, strict=True)
    ]


def _text_column(frame: pd.DataFrame, name: str) -> list[str | None]:
    if name not in frame:
        return [None] * len(frame)
    return [None if pd.isna(value) or str(value) == "" else str(value) for value in frame[name]]


class _RowReader:
    """Checks and converts a table column by column, collecting what is wrong with each row."""

    def __init__(self, cells: Cells, folder: Path) -> None:
        self._cells = cells
        self._folder = str(folder)
        self._reasons: defaultdict[int, list[str]] = defaultdict(list)

    def read(self) -> Manifest:
        converters: dict[str, Callable[[list[str]], list[object]]] = {
            "path": self._paths,
            "subject": self._subjects,
            "score": lambda cells: self._numbers(cells, "score", low=-math.inf, high=math.inf),
            "age": lambda cells: self._numbers(cells, "age", low=0.0, high=MAX_AGE_YEARS),
            "start": lambda cells: self._numbers(cells, "start", low=0.0, high=math.inf),
            "end": lambda cells: self._numbers(cells, "end", low=0.0, high=math.inf),
            "sex": self._sexes,
            "language": self._languages,
            "recorded_at": self._dates,
        }
        columns: dict[str, object] = {"row": self._cells.rows}
        for name, cells in self._cells.columns.items():
            convert = converters.get(name, _texts)
            columns[name] = pd.Series(convert(cells), dtype="float64" if name in _NUMBERS else "object")
        frame = pd.concat([pd.DataFrame(columns), self._cells.further], axis=1)
        self._check_order(frame)
        self._check_subjects_of_a_path(frame)
        self._check_duplicates(frame)
        return self._manifest(frame)

    def _manifest(self, frame: pd.DataFrame) -> Manifest:
        found = [RowProblem(self._cells.rows[index], "; ".join(reasons)) for index, reasons in self._reasons.items()]
        problems = sorted([*self._cells.problems, *found], key=lambda problem: problem.row)
        return Manifest(frame[self._good()].reset_index(drop=True), tuple(problems))

    def _good(self) -> list[bool]:
        return [index not in self._reasons for index in range(len(self._cells.rows))]

    def _paths(self, cells: list[str]) -> list[object]:
        return [self._path(index, cell.strip()) for index, cell in enumerate(cells)]

    def _path(self, index: int, cell: str) -> str | None:
        reason = None
        if not cell:
            reason = "no path"
        elif _CONTROL.search(cell):
            reason = "the path holds a control character"
        elif _ADDRESS.match(cell):
            reason = "the path is an address; give the path of a local file"
        elif _WINDOWS_ROOT.match(cell) and os.name != "nt":
            reason = "the path is an absolute Windows path, which this system cannot open; give it relative to the manifest"
        if reason:
            self._reasons[index].append(reason)
            return None
        # os.path, not pathlib: ten times as fast, and cohorts of 100,000 rows are usual.
        return os.path.normpath(os.path.join(self._folder, cell.replace("\\", "/")))

    def _subjects(self, cells: list[str]) -> list[object]:
        subjects = _texts(cells)
        self._refuse([subject is None for subject in subjects], "no subject")
        return subjects

    def _numbers(self, cells: list[str], name: str, *, low: float, high: float) -> list[object]:
        values = {cell: _number(cell.replace(",", ".") if self._cells.decimal_comma else cell) for cell in set(cells)}
        limits = f"not between {low:g} and {high:g}" if math.isfinite(high) else f"below {low:g}"
        wrong = {cell: f"{name} is not a number" for cell, value in values.items() if value is None}
        wrong |= {cell: f"{name} is {limits}" for cell, value in values.items() if value is not None and (value < low or value > high)}
        for index, cell in enumerate(cells):
            if cell in wrong:
                self._reasons[index].append(wrong[cell])
        return [values[cell] for cell in cells]

    def _sexes(self, cells: list[str]) -> list[object]:
        return self._mapped(cells, lambda cell: SEXES.get(cell.casefold()), "sex is none of female, male, other (or f, m, w)")

    def _languages(self, cells: list[str]) -> list[object]:
        return self._mapped(cells, _language_tag, "language is not a tag such as en, de or zh-CN")

    def _dates(self, cells: list[str]) -> list[object]:
        return self._mapped(cells, _iso_date, "recorded_at is not an ISO 8601 date such as 2024-05-31 or 2024-05-31T09:30:00+02:00")

    def _mapped(self, cells: list[str], convert: Callable[[str], str | None], reason: str) -> list[object]:
        texts = _texts(cells)
        converted = {text: convert(str(text)) for text in set(texts) if text is not None}
        values: list[object] = [converted.get(text) for text in texts]
        self._refuse([text is not None and value is None for text, value in zip(texts, values, strict=True)], reason)
        return values

    def _check_order(self, frame: pd.DataFrame) -> None:
        if "start" in frame and "end" in frame:
            self._refuse((frame["start"] >= frame["end"]).tolist(), "start is not before end")

    def _check_subjects_of_a_path(self, frame: pd.DataFrame) -> None:
        """One recording cannot be two people's: which row is right cannot be known, so neither counts."""
        subjects_of_path = frame.groupby("path", sort=False)["subject"].transform("nunique")
        self._refuse((subjects_of_path > 1).tolist(), "the same recording is given to more than one subject")

    def _check_duplicates(self, frame: pd.DataFrame) -> None:
        """Count a repeated segment once, and where its copies differ in label or score, not at all."""
        keys = [name for name in ("path", "start", "end") if name in frame]
        candidates = frame[self._good()]
        copies = candidates[candidates.duplicated(keys, keep=False)]
        if copies.empty:
            return
        segments = copies.groupby(keys, sort=False, dropna=False)
        first_row = segments["row"].transform("first")
        answers = pd.Series("", index=copies.index)
        for name in ("label", "score"):
            answers = answers + "|" + copies[name].astype(str) if name in copies else answers
        differ = answers != first_row.map(dict(zip(copies["row"], answers, strict=True)))
        differing = set(first_row[differ])
        for index, row, first in zip(copies.index, copies["row"], first_row, strict=True):
            if first in differing:
                self._reasons[index].append("the same recording and segment stands in several rows with different labels or scores")
            elif row != first:
                self._reasons[index].append(f"the same recording and segment as row {first}")

    def _refuse(self, bad: Sequence[bool], reason: str) -> None:
        for index, is_bad in enumerate(bad):
            if is_bad:
                self._reasons[index].append(reason)


def _texts(cells: list[str]) -> list[object]:
    return [None if text in _MISSING else text for text in (cell.strip() for cell in cells)]


def _number(cell: str) -> float | None:
    """Return NaN for a missing value, None for what is no finite number."""
    text = cell.strip()
    if text in _MISSING or text.casefold() == "nan":
        return math.nan
    try:
        # float() also reads 1_000 and Arabic digits, which in a table are a slip.
        value = float(text) if text.isascii() and "_" not in text else math.inf
    except ValueError:
        return None
    return None if math.isinf(value) else value


def _language_tag(cell: str) -> str | None:
    tag = cell.replace("_", "-")
    if not _LANGUAGE.fullmatch(tag):
        return None
    primary, *subtags = tag.split("-")
    return "-".join([primary.lower(), *(subtag.upper() if len(subtag) == 2 else subtag for subtag in subtags)])


def _iso_date(cell: str) -> str | None:
    try:
        return datetime.fromisoformat(cell).isoformat() if "-" in cell else None
    except ValueError:
        return None


def _portable_path(entry: str, folder: Path) -> str:
    absolute = Path(entry) if Path(entry).is_absolute() else Path.cwd() / entry
    return absolute.relative_to(folder).as_posix() if absolute.is_relative_to(folder) else absolute.as_posix()
