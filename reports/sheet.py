"""A report of fixed pages: what stands at its head, what stands on each page, and what a printed page has to bear.

The one idea: a page is a unit of reading. Nothing flows from one into the next, and both outputs break at the same place.
"""

from dataclasses import dataclass
from typing import Any, ClassVar
from unicodedata import east_asian_width

from reports.document import BlockData, Section

FULL = 2800
"""Letters of text beside figures, from which a page of HTML is printed smaller; Typst measures instead."""
_NOT_SET = frozenset({"svg", "finding", "table", "kind", "tone", "name"})


@dataclass(frozen=True)
class Image:
    """A picture of the site's own, such as its logo."""

    media_type: str
    content_base64: str
    alt: str
    width: int
    height: int

    @property
    def uri(self) -> str:
        """The image itself as an address."""
        return f"data:{self.media_type};base64,{self.content_base64}"

    @property
    def svg(self) -> str:
        """The image within an SVG, which is text and so can be handed on as a string."""
        size = f'width="{self.width}" height="{self.height}"'
        return f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {self.width} {self.height}"><image href="{self.uri}" {size}/></svg>'


@dataclass(frozen=True)
class Audio:
    """The recording itself, for whoever asked for it, and the moments at which it can be started."""

    media_type: str
    content_base64: str
    title: str
    warning: str
    moments: tuple[tuple[str, float], ...]
    """What a button says, and where it starts, in seconds from the beginning of the sound."""
    length_s: float
    figure: str
    """Name of the picture whose time runs along."""
    track: tuple[float, float]
    """Where on that picture time begins and ends, as shares of its width."""


@dataclass(frozen=True)
class Page:
    """What is read together."""

    sections: tuple[Section, ...]


@dataclass(frozen=True)
class Sheet:
    """A whole report of few pages, in one language."""

    template: ClassVar = "sheet"

    language: str
    """BCP 47."""
    title: str
    """Names the document, with its outcome and without a person."""
    heading: str
    site: tuple[str, ...]
    """Name and department."""
    logo: Image | None
    blank: str
    """What the empty box for a label is called."""
    facts: tuple[str, ...]
    """One line under the heading, in parts."""
    pages: tuple[Page, ...]
    footer: str
    page_words: str
    """With {n} and {of}."""
    skip_words: str
    table_words: str
    audio: Audio | None = None

    def as_data(self, font: str) -> dict[str, Any]:
        """Return the sheet as plain data for a template; drawings are SVG text set in `font`."""
        data = BlockData(font, self.table_words)
        return {
            "title": self.title,
            "heading": self.heading,
            "site": list(self.site),
            "logo": None if self.logo is None else {"uri": self.logo.uri, "svg": self.logo.svg, "alt": self.logo.alt},
            "blank": self.blank,
            "facts": list(self.facts),
            "pages": [_page(page, i, data) for i, page in enumerate(self.pages, 1)],
            "footer": self.footer,
            "page_words": self.page_words,
            "skip_words": self.skip_words,
            "audio": None if self.audio is None else vars(self.audio),
        }


def _page(page: Page, number: int, data: BlockData) -> dict[str, Any]:
    sections = [_section(section, f"section-{number}-{k}", data) for k, section in enumerate(page.sections, 1)]
    return {"sections": sections, "full": _length(sections) > FULL}


def _section(section: Section, identifier: str, data: BlockData) -> dict[str, Any]:
    """Return a section; a figure that is called as the section is bears no caption besides."""
    blocks = [data.of(block) for block in section.blocks]
    captioned = [{**block, "title": ""} if block.get("title") == section.title else block for block in blocks]
    return {"id": identifier, "title": section.title, "blocks": captioned}


def _length(part: object, key: str = "") -> int:
    """Return how many letters' room the texts of a part take, without those that are drawn or read aloud."""
    if isinstance(part, dict):
        return sum(_length(value, name) for name, value in part.items())
    if isinstance(part, list):
        return sum(_length(item, key) for item in part)
    return sum(1 + (east_asian_width(c) in "WF") for c in part) if isinstance(part, str) and key not in _NOT_SET else 0
