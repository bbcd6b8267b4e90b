"""The trail over HTTP: searched as FHIR AuditEvents, proved, verified from its leaves, exported; and the site as a witness of other logs.

The one idea: whoever looks is in the trail before they see anything. What holds nothing of a person (leaves, hashes, checkpoints, keys: what
`audit publish` puts on a web server) is handed out without a record.

Where several sites share an installation, `searching` says which events an officer sees; leaves, proofs and checkpoints are of the one log that all
have, and tell of other sites how many events of which kind there were, and when.
"""

import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import date
from functools import partial
from hashlib import sha256
from http import HTTPStatus
from threading import Lock
from typing import Annotated, Any, BinaryIO
from urllib.parse import parse_qsl

from anyio import move_on_after
from fastapi import Path
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from clinical_ser.api.access import Open, Principal, Scope
from clinical_ser.api.bodies import parsed
from clinical_ser.api.documenting import BINARY, json_body
from clinical_ser.api.negotiation import best_media
from clinical_ser.api.problems import MEDIA_TYPE as PROBLEM
from clinical_ser.api.problems import Problem
from clinical_ser.api.routing import Routes, address_of, body_of, principal_of, service_of
from clinical_ser.api.searching import (
    DEFAULT_COUNT,
    FORMATS,
    MAX_COUNT,
    MAX_PAGE,
    MAX_PARAMETERS,
    MAX_VALUE,
    TOTALS,
    EventIds,
    Page,
    Search,
    SearchError,
    Sight,
    as_bundle,
    find,
    outcome_of,
    read_event,
)
from clinical_ser.api.service import Service
from clinical_ser.audit.events import MODEL, PAYLOADS, RECORD, Actor, AuditExport, Purpose, canonical
from clinical_ser.audit.exports.fhir_resources import KIND, LOG, RESULT, Maker
from clinical_ser.audit.exports.packed import packed, private_folder
from clinical_ser.audit.exports.period import PeriodForm, export_period, first_moment, last_moment, range_of
from clinical_ser.audit.log import Entry
from clinical_ser.audit.merkle import TILE_HEIGHT, TILE_WIDTH
from clinical_ser.audit.proof_file import ProofFile
from clinical_ser.audit.reading import DatabaseReader
from clinical_ser.audit.records import Record
from clinical_ser.audit.tiles import ENTRIES, tile_path
from clinical_ser.audit.witness import MAX_REQUEST_BYTES, Witness
from clinical_ser.audit.witness_http import ADD_CHECKPOINT, answer_add_checkpoint
from clinical_ser.errors import AuditFormatError, AuditSetupError, AuditTamperedError
from clinical_ser.strict import Strict

routes = Routes("audit")

FHIR, FORM, ZIP, TEXT = "application/fhir+json", "application/x-www-form-urlencoded", "application/zip", "text/plain"
EVENTS = "/v1/AuditEvent"
SEARCH = f"{EVENTS}/_search"
KEEP_EVERY_S = 60.0
"""A checkpoint that is handed out is kept for good, but not more than one a minute: the table would grow with everyone who asks."""
STREAM_S = 600.0
"""How long whoever asked for an export may take to read it, while others wait for their turn."""
_MAX_FORM_BYTES = 16 * 1024
_MAX_QUERY_BYTES = 8 * 1024
_MAX_EXPORT_BYTES = 4 * 1024
_CHUNK_BYTES = 1 << 18
_EXPORT_RETRY_S = 30
_LENGTH_BYTES = 2
_IN_ADDRESS = frozenset({"page", "_count"})
"""What may stand in the address that a form is sent to."""

EventId = Annotated[str, Path(pattern="^[0-9a-f]{32}$", description="The event's id.", examples=["3f0c8a1e5b7d4c2f9a6e1d0b8c7f5a42"])]
Index = Annotated[str, Path(pattern="^(0|[1-9][0-9]{0,15})$", description="The record's place in the log, from 0.", examples=["17"])]
_LEVEL = r"^(entries|[0-9]|[1-5][0-9]|6[0-3])$"
_TILE = r"^(x[0-9]{3}/){0,5}[0-9]{3}(\.p/([1-9]|[1-9][0-9]|1[0-9]{2}|2[0-4][0-9]|25[0-5]))?$"
Level = Annotated[str, Path(pattern=_LEVEL, description="Of the tree's hashes; or `entries`, the leaves.", examples=["0"])]
Tile = Annotated[str, Path(pattern=_TILE, description="Which one, and how wide it is where it is not full.", examples=["000.p/1"])]


class Trail:
    """What the routes remember between requests; one an application."""

    def __init__(self) -> None:
        self.ids = EventIds()
        self.exporting = Lock()
        self._kept_at, self._kept_size = -KEEP_EVERY_S, -1

    def keep_checkpoint(self, service: Service) -> None:
        """Keep the log's head for good, where there is another one than last time and that was a while ago."""
        now, size = time.monotonic(), service.log.size
        if size != self._kept_size and now - self._kept_at >= KEEP_EVERY_S:
            service.log.retain()
            self._kept_at, self._kept_size = now, size


def _trail_of(request: Request) -> Trail:
    state = request.app.state
    if not hasattr(state, "trail"):
        state.trail = Trail()
    trail: Trail = state.trail
    return trail


def _sight_of(request: Request) -> Sight:
    principal = principal_of(request)
    if service_of(request).configuration.tenants and not principal.tenant:
        raise Problem(HTTPStatus.FORBIDDEN, "forbidden", "Several sites share this installation, and the token or key is of none of them.")
    return Sight(principal.tenant)


# ── AuditEvents ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _parameter(name: str, text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": text, "schema": schema}


def _text_of(pattern: str) -> dict[str, Any]:
    return {"type": "string", "pattern": f"^({pattern})$", "maxLength": MAX_VALUE}


def _list_of(pattern: str) -> dict[str, Any]:
    return _text_of(f"({pattern})(,({pattern}))*")


_DAY_OR_INSTANT = (
    r"(eq|ne|gt|lt|ge|le|sa|eb)?[0-9]{4}(-[0-9]{2}(-[0-9]{2}(T[0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?(Z|[+-][0-9]{2}:[0-9]{2})?)?)?)?"
)
_KINDS = _list_of(rf"({KIND}\|)?({'|'.join(sorted(PAYLOADS))})")
_ENTITY = rf"({RESULT}\|)?({RECORD}[0-9a-f]{{64}}|{MODEL}[\s\S]+|{LOG}\|[\s\S]*)"
_NAME = {"type": "string", "pattern": r"\S", "maxLength": MAX_VALUE}
_PARAMETERS = [
    _parameter(
        "date",
        "When it was recorded, by the log's clock; repeatable. A year, month, day, minute or instant after eq, ne, gt, …; UTC without a zone.",
        {"type": "array", "items": _text_of(_DAY_OR_INSTANT)},
    ),
    _parameter("type", "What kind of event; several with commas.", _KINDS),
    _parameter("subtype", "The same.", _KINDS),
    _parameter("outcome", "0 success, 4 refused, 8 failed; several with commas.", _list_of("[048]")),
    _parameter("action", "As FHIR has it; several with commas.", _list_of("[CRUDE]")),
    _parameter("entity", f"A result's record, a model (`{MODEL}NAME`), or a place in the log (`{LOG}|ORIGIN/INDEX`).", _text_of(_ENTITY)),
    _parameter("_id", "An event's id; several with commas.", _list_of("[0-9a-f]{32}")),
    _parameter("_count", "How many at most.", {"type": "integer", "minimum": 1, "maximum": MAX_COUNT, "default": DEFAULT_COUNT}),
    _parameter("_sort", "Newest first, the only order there is.", {"type": "string", "enum": ["-date"]}),
    _parameter("_format", "JSON, the only format there is.", {"type": "string", "enum": sorted(FORMATS)}),
    _parameter("_total", "Is told only where all that was found is on the first page.", {"type": "string", "enum": sorted(TOTALS)}),
    _parameter("page", "Where the page before ended; from its `next` link.", {"type": "integer", "minimum": 0, "maximum": MAX_PAGE}),
]
_FORM_FIELDS = {each["name"]: each["schema"] | {"description": each["description"]} for each in _PARAMETERS} | {
    "patient": _NAME | {"description": "A person, as the site names them."},
    "subject": _NAME | {"description": "The same."},
    "agent": _NAME | {"description": "An account."},
}
_ANSWER = {"resourceType": "Bundle", "type": "searchset", "total": 0, "link": [{"relation": "self", "url": f"https://hospital.example{EVENTS}"}]}
_BUNDLE = {200: {"description": "A searchset Bundle (FHIR R4).", "content": {FHIR: {"schema": {"type": "object"}, "example": _ANSWER}}}}
_REFUSED = "What is wrong with a search is told as an OperationOutcome to whoever accepts application/fhir+json rather than problem details."


@routes.at(
    "GET",
    EVENTS,
    access=Scope.AUDIT,
    summary="Search the audit trail",
    description=f"Newest first, a page at a time; the search itself is recorded. Nobody is named here: see `_search`. {_REFUSED}",
    problems=(HTTPStatus.BAD_REQUEST,),
    responses=_BUNDLE,
    openapi_extra={"parameters": _PARAMETERS},
)
async def search_events(request: Request) -> Response:
    """Answer a search by address."""
    with _in_fhir(request) as answer:
        answer.is_(await _searched(request, _search(_query_of(request), in_address=True)))
    return answer.response


@routes.at(
    "POST",
    SEARCH,
    access=Scope.AUDIT,
    summary="Search the audit trail by person or account",
    description="As by address, and by `patient` (or `subject`) and `agent`. The links of such a search hold none of its fields: to go on, send the "
    f"form again to the `next` link, which has the page. {_REFUSED}",
    problems=(HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNSUPPORTED_MEDIA_TYPE),
    responses=_BUNDLE,
    openapi_extra={"requestBody": {"content": {FORM: {"schema": {"type": "object", "properties": _FORM_FIELDS}}}}},
)
async def search_events_by_form(request: Request) -> Response:
    """Answer a search by form."""
    with _in_fhir(request) as answer:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM:
            raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "media-type", f"A search is sent as {FORM}.", {"Connection": "close"})
        beside = _query_of(request)
        if {name for name, _ in beside} - _IN_ADDRESS:
            raise _bad_search("Beside a form only page and _count stand in the address.")
        form = _pairs(await body_of(request, _MAX_FORM_BYTES))
        answer.is_(await _searched(request, _search([*form, *beside], in_address=False)))
    return answer.response


@routes.at(
    "GET",
    f"{EVENTS}/{{event_id}}",
    access=Scope.AUDIT,
    summary="Read an event",
    description="By the id that its AuditEvent has; that it was read is recorded.",
    problems=(HTTPStatus.NOT_FOUND,),
    responses={200: {"description": "An AuditEvent (FHIR R4).", "content": {FHIR: {"schema": {"type": "object"}}}}},
)
async def event(request: Request, event_id: EventId) -> Response:
    """Return one AuditEvent."""
    with _in_fhir(request) as answer:
        service, sight = service_of(request), _sight_of(request)
        actor = principal_of(request).actor(address_of(request))
        body = await service.in_thread(_read, service, _trail_of(request), sight, actor, event_id)
        if body is None:
            raise Problem(HTTPStatus.NOT_FOUND, "not-found", "There is no such event, or it is another site's.")
        answer.is_(Response(body, media_type=FHIR))
    return answer.response


class _Answer:
    """What a route answers."""

    response: Response

    def is_(self, response: Response) -> None:
        self.response = response


@contextmanager
def _in_fhir(request: Request) -> Iterator[_Answer]:
    """Answer what the route itself refuses in the words of whoever asks: FHIR's to who would rather have those, problem details to all others."""
    answer = _Answer()
    try:
        yield answer
    except Problem as problem:
        if problem.status not in _ISSUES or best_media(request.headers.get("accept"), (PROBLEM, FHIR)) != FHIR:
            raise
        body = outcome_of("error", _ISSUES[problem.status], problem.detail)
        answer.is_(JSONResponse(body, problem.status, headers=problem.headers, media_type=FHIR))


_ISSUES = {
    HTTPStatus.BAD_REQUEST: "invalid",
    HTTPStatus.NOT_FOUND: "not-found",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "too-long",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "not-supported",
}
"""https://hl7.org/fhir/R4/valueset-issue-type.html."""


def _bad_search(detail: str) -> Problem:
    return Problem(HTTPStatus.BAD_REQUEST, "search", detail)


def _query_of(request: Request) -> list[tuple[str, str]]:
    raw: bytes = request.scope["query_string"]
    if len(raw) > _MAX_QUERY_BYTES:
        raise _bad_search(f"The address's parameters are longer than {_MAX_QUERY_BYTES} bytes.")
    return _pairs(raw)


def _pairs(raw: bytes) -> list[tuple[str, str]]:
    """Read names and values, of which only one reading is taken: `&` between them, `=` in each, and UTF-8."""
    try:
        text = raw.decode("ascii")
        return parse_qsl(text, True, True, "utf-8", "strict", MAX_PARAMETERS, "&") if text else []
    except ValueError:
        raise _bad_search(f"The parameters are at most {MAX_PARAMETERS} pairs NAME=VALUE with & between them, in percent-encoded UTF-8.") from None


def _search(pairs: Sequence[tuple[str, str]], *, in_address: bool) -> Search:
    try:
        return Search.parse(pairs, in_address=in_address)
    except SearchError as error:
        raise _bad_search(str(error)) from None


async def _searched(request: Request, search: Search) -> Response:
    service, sight = service_of(request), _sight_of(request)
    body = await service.in_thread(_find, service, _trail_of(request), sight, search, principal_of(request), address_of(request))
    return Response(body, media_type=FHIR)


def _find(service: Service, trail: Trail, sight: Sight, search: Search, principal: Principal, client: str | None) -> bytes:
    """Search, and record that before returning what was found."""
    url = service.configuration.public_url
    # Where a search that names someone goes on is no address to GET.
    address = f"{url}{SEARCH if search.is_personal else EVENTS}"
    with service.reading() as reader:
        page = find(reader, search, sight, trail.ids)
        body = canonical(as_bundle(reader, page, search, base=f"{url}/v1", address=address))
        about = _filed_under(reader, search, page, principal)
    indices = [record.index for record in page.records]
    told = AuditExport(
        actor=principal.actor(client),
        form="AuditEvent search",
        first=min(indices, default=None),
        last=max(indices, default=None),
        digest=sha256(body).hexdigest(),
    )
    service.record([Entry(told, purpose=Purpose.COMPLIANCE, **about)])
    return body


def _filed_under(reader: DatabaseReader, search: Search, page: Page, principal: Principal) -> dict[str, Any]:
    """Return whom the record of a search is about: a person who was asked for, or whose result was, and nobody who is not in the log already."""
    if search.patient is not None:
        subject = principal.subject(search.patient)
        return {"subject": subject} if reader.named(subject) else {}
    if search.entity is not None and search.entity.startswith(RECORD):
        return next((like for record in page.records if (like := _like(record))), {})
    return {}


def _like(record: Record) -> dict[str, Any]:
    """Return what files one record under the person whom another is about, where there is one."""
    return {"like": record.index} if record.event.subject_tag and record.state == "open" else {}


def _read(service: Service, trail: Trail, sight: Sight, actor: Actor, event_id: str) -> bytes | None:
    """Read an event, and record that before returning it."""
    with service.reading() as reader:
        record = read_event(reader, event_id, sight, trail.ids)
        if record is None:
            return None
        body = canonical(Maker(reader.origin, None).event(record, reader.inclusion(record.index)))
    told = AuditExport(actor=actor, form="AuditEvent", first=record.index, last=record.index, digest=sha256(body).hexdigest())
    service.record([Entry(told, purpose=Purpose.COMPLIANCE, **_like(record))])
    return body


# ── checkpoint, proofs, tiles ───────────────────────────────────────────────────────────────────────────────────────────────


def _as_text(description: str) -> dict[int | str, dict[str, Any]]:
    return {200: {"description": description, "content": {TEXT: {"schema": {"type": "string"}}}}}


@routes.at(
    "GET",
    "/v1/audit/checkpoint",
    access=Scope.AUDIT,
    summary="Read the log's signed head",
    responses=_as_text("A checkpoint (c2sp.org/tlog-checkpoint), with the cosignatures it has."),
)
async def checkpoint(request: Request) -> Response:
    """Return the newest head. One is kept for good at least every minute in which there was a new one and someone asked."""
    service, trail = service_of(request), _trail_of(request)

    def read() -> str:
        trail.keep_checkpoint(service)
        with service.reading() as reader:
            return reader.checkpoint

    return _text(await service.in_thread(read))


@routes.at(
    "GET",
    "/v1/audit/keys",
    access=Scope.AUDIT,
    summary="Read the log's verifier keys",
    description="Whoever verifies in earnest has them from the log's owner by another way.",
    responses=_as_text("A verifier key (c2sp.org/signed-note) a line, past and present."),
)
async def keys(request: Request) -> Response:
    """Return the keys by which heads are verified."""
    return _text("".join(f"{key}\n" for key in service_of(request).log.verifiers))


@routes.at(
    "GET",
    "/v1/audit/proof/{index}",
    access=Scope.AUDIT,
    summary="Prove that a record is in the log",
    problems=(HTTPStatus.NOT_FOUND,),
    responses=_as_text("A proof (c2sp.org/tlog-proof) against the newest head; it is checked without the log (`audit check`)."),
)
async def proof(request: Request, index: Index) -> Response:
    """Return a proof."""
    service, place = service_of(request), int(index)

    def prove() -> str | None:
        with service.reading() as reader:
            return ProofFile(place, tuple(reader.inclusion(place)), reader.checkpoint).text if place < reader.size else None

    text = await service.in_thread(prove)
    if text is None:
        raise Problem(HTTPStatus.NOT_FOUND, "not-found", "The log has no such record.")
    return _text(text)


@routes.at(
    "GET",
    "/v1/audit/tile/{level}/{tile:path}",
    access=Scope.AUDIT,
    summary="Read the tree's hashes, and the leaves",
    description="As c2sp.org/tlog-tiles lays them out, for whoever makes the tree anew. Leaves hold nothing of a person.",
    problems=(HTTPStatus.NOT_FOUND,),
    responses={200: {"description": "Hashes of 32 bytes; or leaves, each after its length in two.", "content": {"application/octet-stream": BINARY}}},
)
async def tile(request: Request, level: Level, tile: Tile) -> Response:
    """Return a tile, or a bundle of leaves, as far as the newest head has them."""
    service = service_of(request)
    name, _, partial_width = tile.partition(".p/")
    n, width = int(name.replace("x", "").replace("/", "")), int(partial_width or TILE_WIDTH)

    def read() -> bytes | None:
        with service.reading() as reader:
            return _tile(reader, level, n, width)

    # Only one spelling of a number is a tile's address.
    content = await service.in_thread(read) if tile_path(level, n, width) == f"tile/{level}/{tile}" else None
    if content is None:
        raise Problem(HTTPStatus.NOT_FOUND, "not-found", "The log has no such tile.")
    return Response(content, media_type="application/octet-stream")


def _tile(reader: DatabaseReader, level: str, n: int, width: int) -> bytes | None:
    height = 0 if level == ENTRIES else int(level)
    if n * TILE_WIDTH + width > reader.size >> (TILE_HEIGHT * height):
        return None
    if level == ENTRIES:
        leaves = reader.leaves(n * TILE_WIDTH, n * TILE_WIDTH + width)
        return b"".join(len(leaf).to_bytes(_LENGTH_BYTES, "big") + leaf for leaf in leaves)
    return b"".join(reader.tile(height, n)[:width])


def _text(content: str) -> Response:
    return Response(content, media_type=TEXT)


# ── exports ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────


class ExportRequest(Strict):
    """What is to be exported."""

    format: PeriodForm
    since: date | None = None
    until: date | None = None
    payloads: bool = False


@routes.at(
    "POST",
    "/v1/audit/exports",
    access=Scope.EXPORT,
    summary="Export the audit trail",
    description="A folder that is signed by the log and verified without it (`audit verify-export`), as an archive. "
    "That it was exported is recorded. One at a time. Where several sites share an installation, its operator exports, on the command line.",
    problems=(
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
    ),
    responses={200: {"description": "A ZIP archive of the folder.", "content": {ZIP: {"schema": BINARY}}}},
    openapi_extra={"requestBody": json_body(ExportRequest)},
)
async def export_trail(request: Request) -> Response:
    """Make an export, record it, and hand it out."""
    service, trail, principal = service_of(request), _trail_of(request), principal_of(request)
    if service.configuration.tenants or principal.tenant:
        detail = "Several sites share this log, and an export is of all of it: the installation's operator makes it, with `audit export`."
        raise Problem(HTTPStatus.FORBIDDEN, "forbidden", detail)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "media-type", "What is to be exported is sent as application/json.", {"Connection": "close"})
    wanted = parsed(ExportRequest, await body_of(request, _MAX_EXPORT_BYTES), "The request")
    if wanted.since and wanted.until and wanted.since > wanted.until:
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "does-not-fit", "The period ends before it begins.")
    with ExitStack() as lent:
        if not trail.exporting.acquire(blocking=False):
            after = {"Retry-After": str(_EXPORT_RETRY_S)}
            raise Problem(HTTPStatus.TOO_MANY_REQUESTS, "too-many", "Another export is being made; there is one at a time.", after)
        lent.callback(trail.exporting.release)
        name = f"audit-export-{wanted.format}"
        content = lent.enter_context(await service.in_thread(_exported, service, wanted, principal.actor(address_of(request)), name))
        return _Archive(content, name, lent.pop_all())


def _exported(service: Service, wanted: ExportRequest, actor: Actor, name: str) -> BinaryIO:
    """Make an export, and record it before returning it; nothing of it stays on the disk under a name."""
    with private_folder(service.audit.origin) as folder:
        target = folder / name
        with service.reading() as reader:
            try:
                digest = export_period(
                    reader,
                    service.audit.load_keys().signers,
                    target,
                    wanted.format,
                    since=first_moment(wanted.since) if wanted.since else None,
                    until=last_moment(wanted.until) if wanted.until else None,
                    payloads=wanted.payloads,
                )
            except AuditSetupError:
                raise Problem(HTTPStatus.NOT_FOUND, "no-records", "The log has no record between these days.") from None
            except AuditFormatError:
                raise AuditTamperedError("A record of the log cannot be read.") from None
        first, last = range_of(target)
        content = packed(target, name)
    told = AuditExport(actor=actor, form=wanted.format, first=first, last=last, digest=digest)
    with ExitStack() as undo:
        undo.enter_context(content)
        service.record([Entry(told, purpose=Purpose.COMPLIANCE)])
        undo.pop_all()
    return content


class _Archive(StreamingResponse):
    """Sends a file, and lets go of it and of the place of others when it is sent, or nobody takes it any more."""

    def __init__(self, content: BinaryIO, name: str, lent: ExitStack) -> None:
        length = content.seek(0, 2)
        content.seek(0)
        headers = {"Content-Length": str(length), "Content-Disposition": f'attachment; filename="{name}.zip"'}
        super().__init__(iter(partial(content.read, _CHUNK_BYTES), b""), headers=headers, media_type=ZIP)
        # Called once: at the end, or when a response that was never sent is thrown away.
        self._let_go = weakref.finalize(self, lent.close)

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            with move_on_after(STREAM_S):
                await super().__call__(scope, receive, send)
        finally:
            self._let_go()


# ── the site as a witness ───────────────────────────────────────────────────────────────────────────────────────────────────


def witness_routes(witness: Witness) -> Routes:
    """Return the route by which other logs have their checkpoints cosigned (c2sp.org/tlog-witness): the log's signature is what authorises.

    It answers as the protocol says, in plain text, and not in problem details.
    """
    found = Routes("witness")
    statuses = {
        HTTPStatus.OK: "The cosignatures, a line each.",
        HTTPStatus.BAD_REQUEST: "Not spelled as tlog-witness says.",
        HTTPStatus.FORBIDDEN: "No signature by a key of the log.",
        HTTPStatus.NOT_FOUND: "A log that this witness does not know.",
        HTTPStatus.REQUEST_TIMEOUT: "The request did not arrive in time.",
        HTTPStatus.CONFLICT: "The old size is another one, which is told; or the log has forked.",
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE: f"More than {MAX_REQUEST_BYTES} bytes.",
        HTTPStatus.UNPROCESSABLE_ENTITY: "The proof does not fit.",
        HTTPStatus.SERVICE_UNAVAILABLE: "The witness cannot write its memory now.",
    }
    answers = {status.value: {"description": text, "content": {TEXT: {"schema": {"type": "string"}}}} for status, text in statuses.items()}

    @found.at(
        "POST",
        f"/witness{ADD_CHECKPOINT}",
        access=Open.PUBLIC,
        summary="Have a checkpoint cosigned",
        responses=answers,
        openapi_extra={"requestBody": {"required": True, "content": {TEXT: {"schema": {"type": "string"}}}}},
    )
    async def add_checkpoint(request: Request) -> Response:
        """Cosign a checkpoint."""
        return await answer_add_checkpoint(witness, request)

    return found
