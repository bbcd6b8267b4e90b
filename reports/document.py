"""What a report consists of, before it is HTML or PDF: sections of a few kinds of blocks.

The one idea: both outputs are made from the same blocks, so that they say the same, and a figure cannot exist without its words and its table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from clinical_ser.errors import InvalidValueError
from reports.drawing import Drawing
from reports.wording import lined_up, plain


@dataclass(frozen=True)
class Column:
    """A column of a table: words, counts (set to the right), or numbers (lined up at the decimal point)."""

    title: str
    kind: Literal["text", "count", "number"] = "text"
    wide: bool = False
    """Whether it takes the room that is left."""


@dataclass(frozen=True)
class Table:
    """A table with a caption; the first cell of a row names the row."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, caption: str, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> "Table":
        """Make a table: cells are made plain, numbers lined up.

        Raises
        ------
        InvalidValueError
            A row is not as long as the columns are many.
        """
        if any(len(row) != len(columns) for row in rows):
            raise InvalidValueError("rows", "a row of another length", f"{len(columns)} cells")
        filled = [[plain(row[i]) for row in rows] for i in range(len(columns))]
        lined = [lined_up(cells) if column.kind != "text" else cells for column, cells in zip(columns, filled, strict=True)]
        return cls(caption, tuple(columns), tuple(zip(*lined, strict=True)))


@dataclass(frozen=True)
class Picture:
    """A figure: drawn, said in words with its numbers, and given as a table."""

    name: str
    """For identifiers within the document; never a word of the cohort's."""
    title: str
    finding: str
    """What is seen, in words with numbers: the text alternative."""
    drawing: Drawing
    table: Table
    note: str = ""
    """How to read it: what lines, bands and marks are."""

    def svg(self, font: str) -> str:
        """Return the drawing as SVG text that names and describes itself."""
        return self.drawing.svg(self.name, self.title, self.finding, font)


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    text: str


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


Block = Paragraph | Terms | Notice | Table | Picture


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    subtitle: str
    notices: tuple[Notice, ...]
    sections: tuple[Section, ...]

    def as_data(self, font: str) -> dict[str, Any]:
        """Return the document as plain data for a template: figures and tables are numbered through, drawings are SVG text set in `font`."""
        numbered = _Numbered(font)
        return {
            "title": self.title,
            "subtitle": self.subtitle,
            "notices": [numbered.block(notice) for notice in self.notices],
            "sections": [
                {"id": f"section-{i}", "number": i, "title": section.title, "blocks": [numbered.block(block) for block in section.blocks]}
                for i, section in enumerate(self.sections, 1)
            ],
        }


class _Numbered:
    """Counts figures and tables while they are turned into data."""

    def __init__(self, font: str):
        self._font = font
        self._figures = self._tables = 0

    def block(self, block: Block) -> dict[str, Any]:
        match block:
            case Paragraph(text):
                return {"kind": "paragraph", "text": text}
            case Terms(rows):
                return {"kind": "terms", "rows": [list(row) for row in rows]}
            case Notice(tone, title, lines):
                return {"kind": "notice", "tone": tone, "title": title, "lines": list(lines)}
            case Table():
                self._tables += 1
                return {"kind": "table", "label": f"Table {self._tables}", **self._table(block)}
            case Picture():
                self._figures += 1
                return {
                    "kind": "picture",
                    "label": f"Figure {self._figures}",
                    "title": block.title,
                    "note": block.note,
                    "finding": block.finding,
                    "svg": block.svg(self._font),
                    "width": block.drawing.width,
                    "height": block.drawing.height,
                    "table": self._table(block.table),
                }

    @staticmethod
    def _table(table: Table) -> dict[str, Any]:
        columns = [{"title": column.title, "kind": column.kind, "wide": column.wide} for column in table.columns]
        return {"caption": table.caption, "columns": columns, "rows": [list(row) for row in table.rows]}
