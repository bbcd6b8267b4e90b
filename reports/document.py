"""What a report consists of, before it is HTML or PDF: sections of a few kinds of blocks.

The one idea: both outputs are made from the same blocks, so that they say the same, and a figure cannot stand without its words and its table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from clinical_ser.errors import InvalidValueError
from reports.drawing import Drawing
from reports.wording import lined_up, plain, unbroken

BESIDE = 380
"""Widest drawing, in pixels, of which two are still readable side by side: half a page, or half of the column of text in HTML."""


@dataclass(frozen=True)
class Column:
    """A column of a table: words, counts (set to the right), numbers (lined up at the decimal point), or figures (value [interval], then n)."""

    title: str
    kind: Literal["text", "count", "number", "figure"] = "text"
    wide: bool = False
    """Whether it takes the room that is left."""


@dataclass(frozen=True)
class Table:
    """A table with a caption; the first cell of a row names the row."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    """What has to be known to read it."""

    @classmethod
    def of(cls, caption: str, columns: Sequence[Column], rows: Sequence[Sequence[str]], note: str = "") -> "Table":
        """Make a table: cells are made plain, numbers lined up, figures kept from breaking within an interval.

        Raises
        ------
        InvalidValueError
            A row is not as long as the columns are many.
        """
        if any(len(row) != len(columns) for row in rows):
            raise InvalidValueError("rows", "a row of another length", f"{len(columns)} cells")
        filled = [[plain(row[i]) for row in rows] for i in range(len(columns))]
        lined = [_set(column, cells) for column, cells in zip(columns, filled, strict=True)]
        return cls(caption, tuple(columns), tuple(zip(*lined, strict=True)), note)


def _set(column: Column, cells: Sequence[str]) -> Sequence[str]:
    match column.kind:
        case "text":
            return cells
        case "figure":
            return [unbroken(cell) for cell in cells]
        case _:
            return lined_up(cells)


@dataclass(frozen=True)
class Picture:
    """A figure: drawn, said in words with its numbers, and given as a table, its own or that of its plate."""

    name: str
    """For identifiers within the document; never a word of the cohort's."""
    title: str
    finding: str
    """What is seen, in words with numbers: the text alternative."""
    drawing: Drawing
    table: Table | None
    """None for a figure of a plate that has one table for all."""
    note: str = ""
    """How to read it: what lines, bands and marks are."""

    def __post_init__(self) -> None:
        if not self.finding.strip():
            raise InvalidValueError("picture", "a figure without words", "what is seen in it, for who does not see it")

    def svg(self, font: str) -> str:
        """Return the drawing as SVG text that names and describes itself."""
        return self.drawing.svg(self.name, self.title, self.finding, font)


@dataclass(frozen=True)
class Plate:
    """Figures that are read side by side, two in a row where there is room.

    Raises
    ------
    InvalidValueError
        A figure has no table of its own, and there is none for all.
    """

    pictures: tuple[Picture, ...]
    table: Table | None = None
    """The numbers of all its figures, in place of a table of each."""
    note: str = ""
    """How to read all of them."""

    def __post_init__(self) -> None:
        if self.table is None:
            _check_tables(self.pictures)


def _check_tables(pictures: Sequence[Picture]) -> None:
    if any(picture.table is None for picture in pictures):
        raise InvalidValueError("picture", "a figure without a table", "a table of its own, or one of its plate")


@dataclass(frozen=True)
class Paragraph:
    """Running text; a quiet one is small print."""

    text: str
    quiet: bool = False


@dataclass(frozen=True)
class Terms:
    """What is what: pairs of a term and its value."""

    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Notice:
    """A box that has to be seen."""

    tone: Literal["calm", "warn", "fail"]
    title: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Headline:
    """The one thing to take away, and what belongs to it."""

    text: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Beside:
    """Blocks with others to their right, where there is room."""

    left: tuple["Block", ...]
    right: tuple["Block", ...]
    narrow: bool = False
    """Whether what stands to the right is small."""


Block = Paragraph | Terms | Notice | Headline | Table | Picture | Plate | Beside


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it.

    Raises
    ------
    InvalidValueError
        A figure that stands alone has no table.
    """

    title: str
    blocks: tuple[Block, ...]

    def __post_init__(self) -> None:
        _check_tables([block for block in self.blocks if isinstance(block, Picture)])


@dataclass(frozen=True)
class Document:
    """A whole report."""

    template: ClassVar = "document"
    language: ClassVar = "en"

    title: str
    subtitle: str
    notices: tuple[Notice, ...]
    sections: tuple[Section, ...]

    def as_data(self, font: str) -> dict[str, Any]:
        """Return the document as plain data for a template: figures and tables are numbered through, drawings are SVG text set in `font`."""
        data = BlockData(font)
        return {
            "title": self.title,
            "subtitle": self.subtitle,
            "notices": [data.of(notice) for notice in self.notices],
            "sections": [
                {"id": f"section-{i}", "number": i, "title": section.title, "blocks": list(map(data.of, section.blocks))}
                for i, section in enumerate(self.sections, 1)
            ],
        }


class BlockData:
    """Turns blocks into plain data for a template.

    Parameters
    ----------
    font
        That drawings are set in.
    table_words
        What the table of a figure is called where figures bear no number; None numbers figures and tables through.
    """

    def __init__(self, font: str, table_words: str | None = None):
        self._font, self._table_words = font, table_words
        self._figures = self._tables = 0

    def of(self, block: Block) -> dict[str, Any]:
        """Return one block."""
        data: dict[str, Any]
        match block:
            case Paragraph(text, quiet):
                data = {"kind": "paragraph", "text": text, "quiet": quiet}
            case Terms(rows):
                data = {"kind": "terms", "rows": [list(row) for row in rows]}
            case Notice(tone, title, lines):
                data = {"kind": "notice", "tone": tone, "title": title, "lines": list(lines)}
            case Headline(text, lines):
                data = {"kind": "headline", "text": text, "lines": list(lines)}
            case Beside(left, right, narrow):
                data = {"kind": "beside", "left": list(map(self.of, left)), "right": list(map(self.of, right)), "narrow": narrow}
            case Table():
                data = {"kind": "table", "label": self._label("Table"), **_table_data(block)}
            case Plate():
                pictures = [self.of(picture) for picture in block.pictures]
                joint = None if block.table is None else {"label": self._label("Table"), **_table_data(block.table)}
                data = {"kind": "plate", "pictures": pictures, "table": joint, "note": block.note}
            case Picture():
                data = self._picture(block)
        return data

    def _picture(self, picture: Picture) -> dict[str, Any]:
        label = self._label("Figure")
        return {
            "kind": "picture",
            "name": picture.name,
            "label": label,
            "title": picture.title,
            "note": picture.note,
            "finding": picture.finding,
            "svg": picture.svg(self._font),
            "width": picture.drawing.width,
            "height": picture.drawing.height,
            "table": None if picture.table is None else _table_data(picture.table),
            "table_words": self._table_words or f"{label} as a table",
        }

    def _label(self, kind: Literal["Figure", "Table"]) -> str:
        if self._table_words is not None:
            return ""
        if kind == "Figure":
            self._figures += 1
            return f"Figure {self._figures}"
        self._tables += 1
        return f"Table {self._tables}"


def _table_data(table: Table) -> dict[str, Any]:
    columns = [{"title": column.title, "kind": column.kind, "wide": column.wide} for column in table.columns]
    return {"caption": table.caption, "columns": columns, "rows": [list(row) for row in table.rows], "note": table.note}
