"""From a document to a file: HTML through Jinja2, PDF through Typst.

The one idea: a document's texts are data. Jinja2 escapes them, and Typst gets them as JSON, in which nothing is markup.
"""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import typst
from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from clinical_ser.errors import ReportError
from reports.document import Document
from reports.sheet import Sheet

HTML_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Noto Sans', 'Noto Sans CJK SC', Arial, sans-serif"
PDF_FONT = "Libertinus Serif"
"""Built into Typst, so that a page looks the same on every machine; it has no sans-serif."""
CJK_FONTS = ("Noto Sans CJK SC", "Source Han Sans SC", "Noto Serif CJK SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei")
"""For characters that the built-in font lacks, the first that is there. Typst would find another itself, but not always the same."""
_CJK_LANGUAGES = frozenset({"zh", "ja", "ko"})
PDF_STANDARD: Final = "ua-1"
_CJK = re.compile("[\u1100-\u11ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\U00020000-\U0003ffff]")
_SCRIPT = 4
"""Letters of a script in a language tag; a region has fewer."""
_QUOTED = re.compile(r"the text `\"(.*?)\"` could not be displayed", re.DOTALL)


def html(document: Document | Sheet) -> str:
    """Return the document as one HTML file, which loads nothing; it runs nothing either, but for the player of a sheet that holds the recording."""
    style = _template(f"{document.template}.css")
    script = _template("player.js") if isinstance(document, Sheet) and document.audio else ""
    return (
        _environment()
        .get_template(f"{document.template}.html")
        .render(
            document=document.as_data(HTML_FONT),
            style=Markup(style),  # noqa: S704 - a file of this package
            style_digest=_digest(style),
            script=Markup(script),  # noqa: S704 - a file of this package
            script_digest=_digest(script),
            language=document.language,
        )
    )


def pdf(document: Document | Sheet, *, font_paths: Sequence[Path] = (), system_fonts: bool = True) -> bytes:
    """Return the document as tagged PDF.

    Raises
    ------
    ReportError
        If Typst refuses: a character has no font, or a figure no text alternative.
    """
    # What the machine's clock says has no business in the file: the same evidence gives the same bytes.
    return _compiled(document, font_paths, system_fonts, format="pdf", timestamp=0, pdf_standards=[PDF_STANDARD])


def png(document: Document | Sheet, *, pixels_per_inch: float = 100) -> list[bytes]:
    """Return a picture of each page, for documents about documents; ReportError as `pdf`."""
    pages = _compiled(document, (), True, format="png", ppi=pixels_per_inch)
    return pages if isinstance(pages, list) else [pages]


def _compiled(document: Document | Sheet, font_paths: Sequence[Path], system_fonts: bool, **options: Any) -> Any:
    fonts = _fonts(tuple(map(str, font_paths)), system_fonts=system_fonts)
    families = [PDF_FONT, *fonts.cjk]
    language, *others = document.language.split("-")
    region = next((part for part in others if len(part) < _SCRIPT), None)
    drawn_in = ", ".join(_in_drawings(families, language))
    data: dict[str, Any] = {"fonts": families, "language": language, "region": region, **document.as_data(drawn_in)}
    try:
        return typst.compile(
            (_template("blocks.typ") + _template(f"{document.template}.typ")).encode(),
            sys_inputs={"document": json.dumps(data)},
            font_paths=fonts.all,
            **options,
        )
    except typst.TypstError as error:
        raise ReportError(_explained(error)) from None


def _in_drawings(families: Sequence[str], language: str) -> Sequence[str]:
    """Return the fonts of drawings, in which Typst takes the first that is there and then any: for Chinese that has to be a Chinese one."""
    return families[::-1] if language in _CJK_LANGUAGES else families


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _explained(error: typst.TypstError) -> str:
    """Say what to do about a refusal."""
    missing = _QUOTED.search(f"{error.message}\n{error.diagnostic}")
    if missing is None:
        return f"Typst cannot make the PDF: {str(error.message).splitlines()[0]}."
    points = ", ".join(f"U+{ord(c):04X}" for c in missing[1][:4])
    if _CJK.search(missing[1]):
        return (
            f"No font here has {points} (Chinese, Japanese or Korean): install the Debian package fonts-noto-cjk or fonts-wqy-microhei, or give the "
            "folder of such a font."
        )
    return f"No font here has {points}: install a font that does, such as the Debian package fonts-noto-core, or give its folder."


@dataclass(frozen=True)
class _Fonts:
    all: typst.Fonts
    cjk: tuple[str, ...]
    """Families of `CJK_FONTS` that are there."""


@lru_cache(maxsize=8)
def _fonts(folders: tuple[str, ...], *, system_fonts: bool) -> _Fonts:
    """Look for fonts, once in the life of a process: it takes as long as a page."""
    found = typst.Fonts(include_system_fonts=system_fonts, include_embedded_fonts=True, font_paths=list(folders))
    there = set(found.families())
    return _Fonts(found, tuple(family for family in CJK_FONTS if family in there)[:1])


@cache
def _environment() -> Environment:
    names = ("page.html", "blocks.html", "document.html", "sheet.html")
    environment = Environment(
        loader=DictLoader({name: _template(name) for name in names}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # Drawings are made of escaped text by `reports.drawing` alone.
    environment.filters["drawn"] = Markup
    return environment


@cache
def _template(name: str) -> str:
    return (files("reports") / "templates" / name).read_text(encoding="utf-8")
