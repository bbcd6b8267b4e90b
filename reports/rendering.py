"""From a document to a file: HTML through Jinja2, PDF through Typst.

The one idea: a document's texts are data. Jinja2 escapes them, and Typst gets them as JSON, in which nothing is markup.
"""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Final

import typst
from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from clinical_ser.errors import ReportError
from reports.document import Document

HTML_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Noto Sans', 'Noto Sans CJK SC', Arial, sans-serif"
PDF_FONT = "Libertinus Serif"
"""Built into Typst, so that a page looks the same on every machine; it has no sans-serif."""
LANGUAGE = "en"
PDF_STANDARD: Final = "ua-1"
_CJK = re.compile("[\u1100-\u11ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\U00020000-\U0003ffff]")
_QUOTED = re.compile(r"the text `\"(.*?)\"` could not be displayed", re.DOTALL)


def html(document: Document) -> str:
    """Return the document as one HTML file."""
    style = _template("document.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment = Environment(
        loader=DictLoader({"document.html": _template("document.html")}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # Drawings are made of escaped text by `reports.drawing` alone.
    environment.filters["drawn"] = Markup
    return environment.get_template("document.html").render(
        document=document.as_data(HTML_FONT),
        style=Markup(style),  # noqa: S704 - a file of this package
        style_digest=digest,
        language=LANGUAGE,
    )


def pdf(document: Document, *, font_paths: Sequence[Path] = (), system_fonts: bool = True) -> bytes:
    """Return the document as tagged PDF.

    Raises
    ------
    ReportError
        If Typst refuses: a character has no font, or a figure no text alternative.
    """
    data = json.dumps({"font": PDF_FONT, "language": LANGUAGE, **document.as_data(PDF_FONT)})
    fonts = typst.Fonts(include_system_fonts=system_fonts, include_embedded_fonts=True, font_paths=[str(path) for path in font_paths])
    try:
        return typst.compile(
            _template("document.typ").encode(),
            format="pdf",
            # What the machine's clock says has no business in the file: the same evidence gives the same bytes.
            timestamp=0,
            pdf_standards=[PDF_STANDARD],
            sys_inputs={"document": data},
            font_paths=fonts,
        )
    except typst.TypstError as error:
        raise ReportError(_explained(error)) from None


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


@cache
def _template(name: str) -> str:
    return (files("reports") / "templates" / name).read_text(encoding="utf-8")
