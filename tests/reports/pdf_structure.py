"""A PDF read back with another library than the one that wrote it: its tags and their text in reading order, and what is drawn outside of them.

The one idea: content streams are played through with the marks that are open, so that every stroke is known to belong to a tag, to be an artifact,
or to be lost to whoever cannot see the page.

References
----------
ISO 32000-1:2008, 9.10.2 (text from character codes), 14.6 to 14.8 (marked content, structure); ISO 14289-1:2014 (PDF/UA-1).
"""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import page
import pikepdf

SHOWS_TEXT = frozenset({"Tj", "TJ", "'", '"'})
PAINTS = SHOWS_TEXT | {"f", "F", "f*", "B", "B*", "b", "b*", "S", "s", "sh", "INLINE IMAGE"}
HEADINGS = frozenset({"H1", "H2", "H3", "H4", "H5", "H6"})
WORD_GAP_EM = 0.15
"""Text that starts this far right of where the last ended is another word; a space is about 0.25 em wide."""
MISREAD = "width 0.000 in its embedded CIDFontType0C program"
"""What page-validation 0.11 says of CID-keyed fonts such as Noto Sans CJK: it does not know that a glyph without a width has the font's usual one.
fontTools reads the right widths there, and veraPDF finds nothing."""


@dataclass(frozen=True)
class Tag:
    """A structure element, of the standard type that its own is mapped to."""

    role: str
    written: str
    """The type as the file has it; "Title", say, may be mapped to P."""
    content: "tuple[Tag | str, ...]"
    """Tags and marked text as they follow each other."""
    alt: str | None = None
    scope: str | None = None
    """Of a header cell."""
    span: int = 1
    """Columns that a cell takes."""

    @property
    def tags(self) -> "tuple[Tag, ...]":
        return tuple(one for one in self.content if isinstance(one, Tag))

    @property
    def text(self) -> str:
        """Everything under it, with one space where there was any."""
        return " ".join("".join(one if isinstance(one, str) else f" {one.text} " for one in self.content).split())

    def all(self, *roles: str) -> "list[Tag]":
        """Return it and what is under it, in reading order, of these roles or of any."""
        return [one for one in self._walk() if not roles or one.role in roles]

    def _walk(self) -> "Iterator[Tag]":
        yield self
        for one in self.tags:
            yield from one._walk()

    def rows(self) -> "list[list[Tag]]":
        """Return the cells of a table, row by row."""
        return [row.all("TH", "TD") for row in self.all("TR")]

    def __str__(self) -> str:
        told = "".join(f" {name}={value!r}" for name, value in (("alt", self.alt), ("scope", self.scope)) if value is not None)
        lines = "\n".join(str(one) if isinstance(one, Tag) else repr(one) for one in self.content)
        return f"{self.role}{told}\n{lines}".replace("\n", "\n  ").rstrip()


@dataclass(frozen=True)
class Font:
    """A font, whether its outlines are in the file, and whether its codes can be read as text."""

    name: str
    embedded: bool
    unicode: bool


@dataclass(frozen=True)
class Pdf:
    """What a file says of itself, its pages as text, its tags, and what is not in them."""

    title: str
    language: str
    marked: bool
    shows_title: bool
    ua_part: str
    pages: tuple[str, ...]
    tags: Tag
    lost: tuple[str, ...]
    """What is painted outside of tags and artifacts, as "page 1: Tj text"."""
    artifacts: tuple[str, ...]
    """Text of artifacts, page by page."""
    fonts: tuple[Font, ...]
    faults: tuple[str, ...]
    """Of syntax, as qpdf finds them."""

    def headings(self) -> list[tuple[int, str]]:
        """Return levels and texts in reading order."""
        return [(int(tag.role[1:]), tag.text) for tag in self.tags.all(*HEADINGS)]


def read(data: bytes) -> Pdf:
    """Read a file back."""
    with pikepdf.open(io.BytesIO(data)) as pdf:
        played = [_Player(sheet, number).played() for number, sheet in enumerate(pdf.pages, 1)]
        tree = _Tree(pdf, {sheet.objgen: one for sheet, one in zip(pdf.pages, played, strict=True)})
        tags = tree.root()
        with pdf.open_metadata() as told:
            title, part = (str(told.get(key, "")) for key in ("dc:title", "{http://www.aiim.org/pdfua/ns/id/}part"))
        return Pdf(
            title=title,
            language=str(pdf.Root.get("/Lang", "")),
            marked=bool(pdf.Root.get("/MarkInfo", {}).get("/Marked", False)),
            shows_title=bool(pdf.Root.get("/ViewerPreferences", {}).get("/DisplayDocTitle", False)),
            ua_part=part,
            pages=tuple("".join(one.all).strip() for one in played),
            tags=tags,
            lost=tuple(lost for one in played for lost in [*one.lost, *tree.unread(one)]),
            artifacts=tuple(" ".join("".join(one.artifacts).split()) for one in played),
            fonts=tuple(_fonts(pdf)),
            faults=tuple(pdf.check_pdf_syntax()),
        )


def broken_rules(data: bytes) -> list[str]:
    """Return the rules of PDF/UA-1 that page-validation finds broken, each with what it says."""
    report = page.validate_pdf_bytes(data, profile="ua1")
    return [f"{one.rule_id}: {one.message}" for one in report.failures if MISREAD not in one.message]


# --- Tags ---------------------------------------------------------------------------------------------------------------------------------


class _Tree:
    """Makes tags of structure elements and looks up the text they mark."""

    def __init__(self, pdf: pikepdf.Pdf, played: "dict[tuple[int, int], _Played]"):
        self._root = pdf.Root.get("/StructTreeRoot", pikepdf.Dictionary())
        self._roles = {str(key): str(value) for key, value in self._root.get("/RoleMap", {}).items()}
        self._played = played
        self._seen: set[tuple[tuple[int, int], int]] = set()

    def root(self) -> Tag:
        return Tag("Root", "Root", tuple(self._kids(self._root, None)))

    def unread(self, played: "_Played") -> list[str]:
        """Return what is marked with a number that no tag has."""
        return [f"page {played.number}: mark {mark} {text}" for mark, text in played.marked.items() if (played.sheet, mark) not in self._seen]

    def _kids(self, node: Any, sheet: Any) -> Iterator[Tag | str]:
        sheet = node.get("/Pg", sheet)
        kids = node.get("/K", [])
        for kid in kids if isinstance(kids, pikepdf.Array) else [kids]:
            if isinstance(kid, int):
                yield self._text(sheet, kid)
            elif "/S" in kid:
                yield self._tag(kid, sheet)
            elif "/MCID" in kid:
                yield self._text(kid.get("/Pg", sheet), int(kid.MCID))

    def _text(self, sheet: Any, mark: int) -> str:
        self._seen.add((sheet.objgen, mark))
        return self._played[sheet.objgen].marked.get(mark, "")

    def _tag(self, node: Any, sheet: Any) -> Tag:
        written = role = str(node.S)
        passed = set()
        while role in self._roles and role not in passed:
            passed.add(role)
            role = self._roles[role]
        told = _attributes(node)
        alt = None if "/Alt" not in node else str(node.Alt)
        scope = None if "/Scope" not in told else str(told["/Scope"])[1:]
        return Tag(role[1:], written[1:], tuple(self._kids(node, sheet)), alt, scope, int(told.get("/ColSpan", 1)))


def _attributes(node: Any) -> dict[str, Any]:
    """Return the attributes of all owners together."""
    given = node.get("/A", [])
    owners = given if isinstance(given, pikepdf.Array) else [given]
    return {str(key): value for owner in owners if isinstance(owner, pikepdf.Dictionary) for key, value in owner.items()}


# --- Content ------------------------------------------------------------------------------------------------------------------------------


@dataclass
class _Played:
    """What a page paints, by the marks that were open."""

    number: int
    sheet: tuple[int, int]
    all: list[str] = field(default_factory=list)
    marked: dict[int, str] = field(default_factory=dict)
    artifacts: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


_ARTIFACT, _NEITHER = "artifact", None
_Mark = int | str | None


@dataclass(frozen=True)
class _State:
    """What q saves and Q restores: the font and where the origin is."""

    codes: "_Codes"
    size: float = 1.0
    matrix: pikepdf.Matrix = field(default_factory=pikepdf.Matrix)


class _Player:
    """Plays the content of a page and of the forms it places."""

    def __init__(self, sheet: pikepdf.Page, number: int):
        self._sheet, self._told = sheet, _Played(number, sheet.objgen)
        self._maps: dict[tuple[int, int], _Codes] = {}
        self._pen = _Pen()

    def played(self) -> _Played:
        self._play(self._sheet, self._sheet.get("/Resources", pikepdf.Dictionary()), [], _State(_Codes(None)))
        return self._told

    def _play(self, stream: Any, resources: Any, marks: list[_Mark], state: _State) -> None:
        depth, saved = len(marks), []
        for step in pikepdf.parse_content_stream(stream):
            name, given = str(step.operator), step.operands
            match name:
                case "BMC" | "BDC":
                    marks.append(_mark(given, resources))
                case "EMC" if len(marks) > depth:
                    marks.pop()
                case "q":
                    saved.append(state)
                case "Q" if saved:
                    state = saved.pop()
                case "cm":
                    state = replace(state, matrix=pikepdf.Matrix(*map(float, given)) @ state.matrix)
                case "Tf":
                    state = replace(state, codes=self._codes(resources.Font[str(given[0])]), size=float(given[1]))
                case "Do":
                    self._place(resources.XObject[str(given[0])], resources, marks, state)
            self._pen.move(name, given)
            if name in PAINTS:
                self._painted(name, given, marks, state)

    def _place(self, placed: Any, resources: Any, marks: list[_Mark], state: _State) -> None:
        if placed.Subtype == pikepdf.Name.Form:
            matrix = pikepdf.Matrix(*map(float, placed.get("/Matrix", [1, 0, 0, 1, 0, 0])))
            self._play(placed, placed.get("/Resources", resources), marks, replace(state, matrix=matrix @ state.matrix))
        else:
            self._painted("Do", (), marks, state)

    def _codes(self, font: Any) -> "_Codes":
        return self._maps.setdefault(font.objgen, _Codes(font)) if font.is_indirect else _Codes(font)

    def _painted(self, name: str, given: Any, marks: list[_Mark], state: _State) -> None:
        told, (text, wide) = self._told, _shown(name, given, state.codes)
        if text:
            text = self._pen.spaced(text, wide, state)
            told.all.append(text)
        mark = next((one for one in reversed(marks) if one is not _NEITHER), _NEITHER)
        if mark is _NEITHER:
            told.lost.append(f"page {told.number}: {name} {text}".rstrip())
        elif isinstance(mark, int):
            told.marked[mark] = told.marked.get(mark, "") + text
        else:
            told.artifacts.append(text)


class _Pen:
    """Where text was and is: words that stand apart are apart, though nothing is written between them."""

    def __init__(self) -> None:
        self._line = pikepdf.Matrix()
        self._before: tuple[float, float] | None = None

    def move(self, name: str, given: Any) -> None:
        match name:
            case "BT":
                self._line = pikepdf.Matrix()
            case "Tm":
                self._line = pikepdf.Matrix(*map(float, given))
            case "Td" | "TD":
                self._line = pikepdf.Matrix(1, 0, 0, 1, *map(float, given)) @ self._line
            case "T*" | "'" | '"':
                self._before = None

    def spaced(self, text: str, wide: float, state: _State) -> str:
        """Return text with a space before it if it does not go on where the text before ended; `wide` is its width in em."""
        at = self._line @ state.matrix
        scale = (at.a * at.a + at.b * at.b) ** 0.5
        em, (cos, sin) = state.size * scale, (at.a / scale, at.b / scale)
        before, self._before = self._before, (at.e + wide * em * cos, at.f + wide * em * sin)
        if before is None:
            return f" {text}"
        # Along the line of writing, which an axis title may have upright, and across it.
        x, y = at.e - before[0], at.f - before[1]
        goes_on = -em / 2 < x * cos + y * sin < WORD_GAP_EM * em and abs(y * cos - x * sin) < em / 2
        return text if goes_on else f" {text}"


def _mark(given: Any, resources: Any) -> _Mark:
    """Return the number of a marked sequence, or that it is an artifact; a mark may be neither, such as a span of another language."""
    if str(given[0]) == "/Artifact":
        return _ARTIFACT
    told = given[1] if len(given) > 1 else {}
    told = resources.Properties[str(told)] if isinstance(told, pikepdf.Name) else told
    return int(told["/MCID"]) if "/MCID" in told else _NEITHER


def _shown(name: str, given: Any, codes: "_Codes") -> tuple[str, float]:
    """Return the text that an operator shows, and how wide it is in em."""
    if name not in SHOWS_TEXT:
        return "", 0.0
    text, wide = "", 0.0
    for part in given[0] if name == "TJ" else [given[-1]]:
        if isinstance(part, pikepdf.String):
            told, more = codes.read(bytes(part))
            text, wide = text + told, wide + more
        else:
            wide -= float(part) / 1000
    return text, wide


class _Codes:
    """The text of character codes, by the ToUnicode map of a font, and their widths."""

    def __init__(self, font: Any):
        self._texts: dict[bytes, str] = {}
        self._size = 1
        self._widths, self._usual = _widths(font or pikepdf.Dictionary())
        if font is None or "/ToUnicode" not in font:
            return
        written = font.ToUnicode.read_bytes()
        self._size = max((len(low) // 2 for _, body in _blocks(written, b"codespacerange") for low in _strings(body)), default=1)
        for kind, body in _blocks(written, b"bfchar|bfrange"):
            (self._chars if kind == b"bfchar" else self._ranges)(body)

    def read(self, codes: bytes) -> tuple[str, float]:
        """Return text and its width in em."""
        each = [codes[i : i + self._size] for i in range(0, len(codes), self._size)]
        return "".join(self._texts.get(one, "\ufffd") for one in each), sum(self._widths.get(int.from_bytes(one), self._usual) for one in each)

    def _chars(self, body: bytes) -> None:
        strings = _strings(body)
        for code, text in zip(strings[::2], strings[1::2], strict=True):
            self._texts[bytes.fromhex(code.decode())] = _utf16(text)

    def _ranges(self, body: bytes) -> None:
        for low, high, listed, start in re.findall(rb"<(\w+)>\s*<(\w+)>\s*(?:\[([^]]*)]|<(\w+)>)", body):
            texts = [_utf16(text) for text in _strings(listed)]
            for step in range(int(high, 16) - int(low, 16) + 1):
                code = (int(low, 16) + step).to_bytes(len(low) // 2)
                first = _utf16(start)
                self._texts[code] = texts[step] if listed else first[:-1] + chr(ord(first[-1]) + step)


def _widths(font: Any) -> tuple[dict[int, float], float]:
    """Return widths in em by code, and that of the rest; ISO 32000-1, 9.6.2.1 and 9.7.4.3."""
    if "/DescendantFonts" not in font:
        unit = float(font.get("/FontMatrix", [0.001])[0])
        first = int(font.get("/FirstChar", 0))
        return {first + i: float(width) * unit for i, width in enumerate(font.get("/Widths", []))}, 0.0
    below, widths = font.DescendantFonts[0], {}
    given = list(below.get("/W", []))
    while given:
        first, then = int(given.pop(0)), given.pop(0)
        if isinstance(then, pikepdf.Array):
            widths |= {first + i: float(width) / 1000 for i, width in enumerate(then)}
        else:
            widths |= dict.fromkeys(range(first, int(then) + 1), float(given.pop(0)) / 1000)
    return widths, float(below.get("/DW", 1000)) / 1000


def _blocks(written: bytes, kinds: bytes) -> list[tuple[bytes, bytes]]:
    return re.findall(rb"begin(" + kinds + rb")\b(.*?)end\1", written, re.DOTALL)


def _strings(body: bytes) -> list[bytes]:
    return re.findall(rb"<\s*(\w+)\s*>", body)


def _utf16(text: bytes) -> str:
    return bytes.fromhex(text.decode()).decode("utf-16-be")


# --- Fonts --------------------------------------------------------------------------------------------------------------------------------


def _fonts(pdf: pikepdf.Pdf) -> Iterator[Font]:
    for one in pdf.objects:
        if isinstance(one, pikepdf.Dictionary) and one.get("/Type") == pikepdf.Name.Font and not str(one.Subtype).startswith("/CIDFont"):
            outlines = one.DescendantFonts[0] if "/DescendantFonts" in one else one
            files = {"/FontFile", "/FontFile2", "/FontFile3"} & set(outlines.get("/FontDescriptor", {}).keys())
            yield Font(str(one.get("/BaseFont", ""))[1:], bool(files) or one.Subtype == pikepdf.Name.Type3, "/ToUnicode" in one)
