"""The page for people, served from memory: a few files that never change while the server runs, and what the site configured.

The one idea: the page may do nothing that its policy does not name. Scripts and styles are files of this package, and it speaks to this server and
to the sign-in services that the site configured, and to nobody else.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from clinical_ser.api.access import Open
from clinical_ser.api.configuration import ServerConfiguration, SignIn, Smart
from clinical_ser.api.problems import Problem
from clinical_ser.api.routing import Routes
from clinical_ser.errors import ServerSetupError
from reports.site import Site

routes = Routes("page")

LANGUAGES = ("en", "zh")
REPORT = "report."
"""Before the keys of the reports' texts, which the page says in the same words, a site's own wording included."""
INDEX, CONFIGURATION = "index.html", "configuration.json"
_FOLDER: Final = files("clinical_ser.api") / "page"
_TYPES = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "json": "application/json"}
_HOST = re.compile(r"[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]")
"""What may stand in a policy: anything else could end a directive and begin another."""
_PERMISSIONS = "microphone=(self), camera=(), geolocation=(), display-capture=(), payment=(), usb=(), serial=(), midi=()"


@dataclass(frozen=True)
class PageFile:
    """A file of the page.

    Attributes
    ----------
    content, media_type
        What it holds, and what that is.
    etag
        Its strong validator (RFC 9110 section 8.8.3), quotation marks included.
    """

    content: bytes
    media_type: str
    etag: str

    @classmethod
    def of(cls, name: str, content: bytes) -> "PageFile":
        """Return a file by its name's ending."""
        return cls(content, _TYPES[name.rpartition(".")[2]], f'"{hashlib.sha256(content).hexdigest()}"')


def page_files(site: Site | None = None) -> Mapping[str, PageFile]:
    """Return the page's files by name, its texts together with those of the reports.

    Parameters
    ----------
    site
        Whose wording stands in place of ours; None for none.
    """
    found = {entry.name: entry.read_bytes() for entry in _FOLDER.iterdir() if entry.name.rpartition(".")[2] in _TYPES}
    texts = {f"{language}.json": page_texts(language, site) for language in LANGUAGES}
    spelled = {name: json.dumps(each, ensure_ascii=False, indent=0).encode() for name, each in texts.items()}
    return MappingProxyType({name: PageFile.of(name, content) for name, content in sorted((found | spelled).items())})


def page_texts(language: str, site: Site | None = None) -> dict[str, str]:
    """Return what the page says in a language, by key: its own texts, and the reports' under `REPORT`."""
    own: dict[str, str] = json.loads((_FOLDER / f"{language}.json").read_bytes())
    locale = (site or Site()).locale(language)
    return own | {f"{REPORT}{key}": text for key, text in locale.texts.items()}


class Page:
    """The page of one server.

    Parameters
    ----------
    configuration
        Who may sign in where, and what may be sent.
    site
        The wording of its reports, which the page speaks in too.

    Raises
    ------
    ServerSetupError
        The address of a sign-in service cannot stand in a policy.
    """

    def __init__(self, configuration: ServerConfiguration, site: Site | None = None) -> None:
        self._files = dict(page_files(site))
        told = json.dumps(_told(configuration), ensure_ascii=False).encode()
        self._files[CONFIGURATION] = PageFile.of(CONFIGURATION, told)
        services: tuple[SignIn | Smart, ...] = (*configuration.sign_in, *configuration.smart)
        self._headers = {
            "Content-Security-Policy": policy(each.token_endpoint for each in services),
            "Cross-Origin-Opener-Policy": "same-origin",
            "Permissions-Policy": _PERMISSIONS,
            # They hold nothing of anyone: a browser may keep them, and asks each time whether they are still the same.
            "Cache-Control": "no-cache",
        }

    def response(self, name: str, if_none_match: str | None = None) -> Response:
        """Return a file as an answer.

        Parameters
        ----------
        name
            As `page_files` has it, or `CONFIGURATION`.
        if_none_match
            The header, by which a browser says which versions it has.

        Raises
        ------
        Problem
            404, where there is no such file.
        """
        file = self._files.get(name)
        if file is None:
            raise Problem(HTTPStatus.NOT_FOUND, "not-found", "There is nothing under this address.")
        headers = {**self._headers, "ETag": file.etag}
        if file.etag in _validators(if_none_match):
            return Response(None, HTTPStatus.NOT_MODIFIED, headers)
        return Response(file.content, HTTPStatus.OK, {**headers, "Content-Type": file.media_type})


def page_of(configuration: ServerConfiguration, site: Site | None = None) -> Page:
    """Return the page of a server, made when the server is: what cannot be used ends its start, and not a clinician's first visit.

    Raises
    ------
    ServerSetupError
        The address of a sign-in service cannot stand in a policy.
    """
    return Page(configuration, site)


def policy(services: Iterable[str]) -> str:
    """Return the page's Content-Security-Policy, where it may take tokens from these addresses.

    Raises
    ------
    ServerSetupError
        An address has a host that no policy can name, or a port that is none.
    """
    origins = dict.fromkeys(map(_origin, services))
    directives = {
        "default-src": "'none'",
        "script-src": "'self'",
        # A report is shown in a frame without an origin, and still under this policy: its one style sheet is named by its digest.
        "style-src": f"'self' 'sha256-{_report_style()}'",
        "img-src": "'self' data: blob:",
        "media-src": "blob:",
        "connect-src": " ".join(["'self'", *origins]),
        "frame-src": "'self' blob:",
        "worker-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in directives.items())


def _origin(url: str) -> str:
    try:
        parts = urlsplit(url)
        # It is read here, and refused where it is beyond 65535.
        _ = parts.port
    except ValueError:
        raise ServerSetupError("The server's configuration does not fit: a token_endpoint is no address, or has a port that is none.") from None
    host, _, port = parts.netloc.rpartition(":") if parts.port is not None else (parts.netloc, "", "")
    if parts.scheme not in {"http", "https"} or not _HOST.fullmatch(host):
        raise ServerSetupError("The server's configuration does not fit: a token_endpoint has a host that is no plain host name.")
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}"


def _report_style() -> str:
    content = (files("reports") / "templates" / "sheet.css").read_bytes()
    return base64.b64encode(hashlib.sha256(content).digest()).decode()


def _told(configuration: ServerConfiguration) -> dict[str, Any]:
    """Return what the page has to know, all of which anyone may."""
    limits = configuration.limits
    return {
        "issuers": [entry.model_dump(mode="json", exclude_none=True) for entry in configuration.sign_in],
        "smart": [entry.model_dump(mode="json", exclude_none=True) for entry in configuration.smart],
        "languages": list(LANGUAGES),
        "api_keys": True,
        "require_notice": configuration.require_notice,
        "limits": {"body_bytes": limits.body_bytes, "at_once_bytes": limits.at_once_bytes, "recording_s": limits.decoded_s},
    }


def _validators(if_none_match: str | None) -> set[str]:
    return {each.strip().removeprefix("W/") for each in (if_none_match or "").split(",")}


def _answer(request: Request, name: str) -> Response:
    page: Page = request.app.state.page
    return page.response(name, request.headers.get("if-none-match"))


_HTML: dict[int | str, dict[str, Any]] = {200: {"description": "The page.", "content": {"text/html": {"schema": {"type": "string"}}}}}
_FILE: dict[int | str, dict[str, Any]] = {200: {"description": "The file.", "content": {"*/*": {"schema": {"type": "string"}}}}}


@routes.at("GET", "/", access=Open.PUBLIC, summary="The page for people", responses=_HTML)
async def index(request: Request) -> Response:
    """Return the page; it asks who one is."""
    return _answer(request, INDEX)


@routes.at("GET", "/launch", access=Open.PUBLIC, summary="The page, opened by a record system (SMART App Launch)", responses=_HTML)
async def launch(request: Request) -> Response:
    """Return the page, which reads `iss` and `launch` from its address and goes on to the record system's sign-in, where the site knows it."""
    return _answer(request, INDEX)


@routes.at("GET", "/page/{name}", access=Open.PUBLIC, summary="A file of the page", problems=(HTTPStatus.NOT_FOUND,), responses=_FILE)
async def page_file(request: Request, name: str) -> Response:
    """Return a script, the style sheet, texts, or `configuration.json`: where one can sign in, and what may be sent; nothing secret."""
    return _answer(request, name)
