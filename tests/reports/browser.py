"""A report as a browser shows it: what it loads and refuses, who can use it, how it prints. Chromium is the system's, nothing is downloaded.

The one idea: the page is served to a context of its own from a name that does not exist, so that whatever else it asks for is seen and goes nowhere.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, CDPSession, Page, Route

REQUIRED = os.environ.get("CLINICAL_SER_BROWSER") == "required"
"""Whether a missing browser is a failure, as in `make browser`, and not a reason to skip."""
EXECUTABLES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
PACKAGES = ("playwright", "axe_playwright_python")
ADDRESS = "http://report.invalid/"
"""RFC 2606 keeps .invalid from ever being a host."""
RULES = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22a", "wcag22aa", "best-practice")
"""Tags of axe-core: WCAG 2.0 to 2.2 at A and AA, and what its makers advise beyond."""
A4_MARGIN = "10mm"
"""What Chromium's print dialogue proposes, roughly; a page's own @page goes before it."""
_REFUSALS = (
    "document.addEventListener('securitypolicyviolation', e => console.debug('refused by policy: ' + e.effectiveDirective + ' ' + e.blockedURI))"
)


@dataclass(frozen=True)
class Violation:
    """A rule of axe-core that a page breaks, and where."""

    rule: str
    impact: str
    help: str
    places: tuple[str, ...]

    def __str__(self) -> str:
        return "\n    ".join([f"{self.rule} ({self.impact}): {self.help}", *self.places])


@dataclass(frozen=True)
class Stop:
    """What the Tab key reached: what assistive technology says of it, and whether one sees where one is."""

    role: str
    name: str
    outlined: bool


@dataclass(frozen=True)
class Opened:
    """A page that is open, and what it did so far."""

    page: "Page"
    requests: list[str] = field(default_factory=list)
    """Addresses that it asked for, beside itself; none was answered."""
    errors: list[str] = field(default_factory=list)
    """Of the console and of scripts; what a policy refused is told there too."""
    refused: list[str] = field(default_factory=list)
    """What its Content-Security-Policy refused, as "directive address"."""


def missing() -> str:
    """Return what there is not, or nothing."""
    lacking = [name for name in PACKAGES if find_spec(name) is None]
    if lacking:
        return f"not installed: {', '.join(lacking)} (make browser)"
    return "" if _executable() else f"no Chromium: none of {', '.join(EXECUTABLES)} is on the path"


def _executable() -> str | None:
    return next(filter(None, map(shutil.which, EXECUTABLES)), None)


@contextmanager
def chromium() -> Iterator["Browser"]:
    """Start the system's Chromium without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=_executable())
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: "Browser", html: str, *, width: int = 1280, height: int = 900) -> Iterator[Opened]:
    """Open a page from its text, in a context that shares nothing with others."""
    context = browser.new_context(viewport={"width": width, "height": height})
    seen = Opened(context.new_page())

    def answer(route: "Route") -> None:
        if route.request.url == ADDRESS:
            route.fulfill(body=html, content_type="text/html; charset=utf-8")
            return
        seen.requests.append(route.request.url)
        route.abort()

    def told(kind: str, text: str) -> None:
        if text.startswith("refused by policy: "):
            seen.refused.append(text.removeprefix("refused by policy: "))
        elif kind == "error":
            seen.errors.append(text)

    try:
        context.route("**/*", answer)
        seen.page.add_init_script(_REFUSALS)
        seen.page.on("console", lambda message: told(message.type, message.text))
        seen.page.on("pageerror", lambda error: seen.errors.append(str(error)))
        seen.page.goto(ADDRESS)
        yield seen
    finally:
        context.close()


def axe(page: "Page") -> list[Violation]:
    """Return what axe-core finds; it sees neither the contrast of text in SVG nor whether a text alternative is true."""
    from axe_playwright_python.base import AXE_SCRIPT

    options = {"runOnly": {"type": "tag", "values": RULES}, "resultTypes": ["violations"]}
    with _devtools(page) as session:
        # Unlike a script of the page, an expression of the developer tools is not subject to its policy.
        _evaluated(session, AXE_SCRIPT + "; null")
        found = json.loads(_evaluated(session, f"axe.run(document, {json.dumps(options)}).then(found => JSON.stringify(found.violations))"))
    return [Violation(one["id"], one["impact"], one["help"], tuple(map(_place, one["nodes"]))) for one in found]


def _place(node: dict) -> str:
    why = " ".join(node["failureSummary"].split("\n")[1:]).strip()
    return f"{' '.join(map(str, node['target']))}: {node['html'][:160]} ({why})"


def _evaluated(session: "CDPSession", expression: str) -> str:
    answer = session.send("Runtime.evaluate", {"expression": expression, "awaitPromise": True, "returnByValue": True})
    if "exceptionDetails" in answer:
        raise RuntimeError(answer["exceptionDetails"])
    return answer["result"].get("value", "")


def a4(page: "Page") -> bytes:
    """Return what printing on A4 gives, as PDF."""
    margin = dict.fromkeys(("top", "right", "bottom", "left"), A4_MARGIN)
    return page.pdf(format="A4", margin=margin, prefer_css_page_size=True, print_background=True)


def stops(page: "Page", most: int = 300) -> list[Stop]:
    """Press Tab until focus leaves the page, and return where it was.

    Raises
    ------
    AssertionError
        It does not leave after `most` times: a trap for the keyboard.
    """
    found: list[Stop] = []
    with _devtools(page) as session:
        while len(found) < most:
            page.keyboard.press("Tab")
            stop = _focused(session)
            if stop is None:
                return found
            found.append(stop)
    raise AssertionError(f"focus does not leave the page: {found[-3:]}")


def _focused(session: "CDPSession") -> Stop | None:
    if _evaluated(session, "[null, document.body, document.documentElement].includes(document.activeElement) ? 'nothing' : ''") == "nothing":
        return None
    element = session.send("Runtime.evaluate", {"expression": "document.activeElement"})["result"]["objectId"]
    spoken = session.send("Accessibility.getPartialAXTree", {"objectId": element, "fetchRelatives": False})["nodes"][0]
    look = "(({outlineStyle, outlineWidth, boxShadow}) => outlineStyle != 'none' && outlineWidth != '0px' || boxShadow != 'none' ? 'seen' : '')"
    outlined = _evaluated(session, f"{look}(getComputedStyle(document.activeElement))")
    return Stop(*(spoken.get(part, {}).get("value", "") for part in ("role", "name")), outlined=outlined == "seen")


def overflow_px(page: "Page", width: int) -> int:
    """Return by how much the page is wider than a window of this width; WCAG 2.2, 1.4.10 asks for none at 320."""
    page.set_viewport_size({"width": width, "height": 900})
    return page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")


def screenshot(page: "Page", width: int, path: Path | None = None) -> bytes:
    """Return the whole page at this width as PNG."""
    page.set_viewport_size({"width": width, "height": 900})
    return page.screenshot(path=path, full_page=True)


@contextmanager
def _devtools(page: "Page") -> Iterator["CDPSession"]:
    session = page.context.new_cdp_session(page)
    try:
        yield session
    finally:
        session.detach()
