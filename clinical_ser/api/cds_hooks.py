"""CDS Hooks 2.0 over HTTP: discovery, the card when a chart is opened, and what became of the card.

The one idea: a chart that is opened is answered from screenings that are done, never by judging a recording; and what a card is about to show of a
person is in the audit trail before the card is on its way.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clinical_ser.api.access import Open, named_in
from clinical_ser.api.bodies import parsed
from clinical_ser.api.cds_clients import CdsClients, Recognised
from clinical_ser.api.documenting import json_body
from clinical_ser.api.limits import unavailable
from clinical_ser.api.problems import Problem
from clinical_ser.api.replay import FULL_WAIT_S, ReplayMemoryFullError
from clinical_ser.api.routing import CHALLENGE, Routes, address_of, body_of, service_of
from clinical_ser.api.service import Service
from clinical_ser.api.store import Kept
from clinical_ser.audit.events import Actor, ReportAction, Review, Role
from clinical_ser.audit.log import Entry
from clinical_ser.errors import AuditConflictError, AuthenticationError
from clinical_ser.interop.cds_hooks import (
    EARLIER,
    SERVICE_ID,
    Answer,
    Discovery,
    Feedback,
    FeedbackRequest,
    Finding,
    HookRequest,
    PatientViewContext,
    answer,
    decided,
    discovery,
    screening_of,
)
from clinical_ser.interop.reviews import standing
from reports.locale import REFERENCE

routes = Routes("CDS Hooks")

DISCOVERY_PATH = "/cds-services"
SERVICE_PATH = f"{DISCOVERY_PATH}/{SERVICE_ID}"
FEEDBACK_PATH = f"{SERVICE_PATH}/feedback"
LAUNCH_PATH = "/launch"
MAX_BODY_BYTES = 64 * 1024
"""A call has some 500 bytes, with a token for the record system's data 3 kB; nothing is asked for that would make it longer."""
_MOST_LOOKED_AT = 32
"""Screenings that are looked through where they were not screened on the day on which they were recorded: an archive that was sent in, say."""
_PREFLIGHT_S = "600"
_ALLOWED = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Authorization, Content-Type",
    "Access-Control-Max-Age": _PREFLIGHT_S,
}
_JSON = "application/json"


# ── routes ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@routes.at(
    "GET",
    DISCOVERY_PATH,
    access=Open.PUBLIC,
    summary="CDS Hooks: the services that there are",
    responses={200: {"description": "One service.", "model": Discovery}},
)
async def discover_cds_services(request: Request) -> Response:
    """Say which services there are."""
    del request
    return JSONResponse(discovery().wire())


_POSTED = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
)


@routes.at(
    "POST",
    SERVICE_PATH,
    access=Open.CDS_CLIENT,
    problems=_POSTED,
    summary="CDS Hooks: the card of a patient whose chart was opened",
    responses={200: {"description": "One card, or none.", "model": Answer}},
    openapi_extra={"requestBody": json_body(HookRequest)},
)
async def call_cds_service(request: Request) -> Response:
    """Answer with the card of the newest screenings of a person, or with none."""
    asks = await _recognised(request, SERVICE_PATH)
    call = parsed(HookRequest, await _json(request), "The call")
    if not call.context.clinician:
        # Whoever opens their own chart, or a relative's: the card is written for those who can weigh it.
        return JSONResponse(Answer().wire())
    service = service_of(request)
    told = await service.in_thread(_answer, service, asks, call.context, address_of(request))
    return JSONResponse(told.wire())


@routes.at(
    "POST",
    FEEDBACK_PATH,
    access=Open.CDS_CLIENT,
    problems=(*_POSTED, HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT),
    summary="CDS Hooks: what became of cards",
    responses={200: {"description": "Recorded."}},
    openapi_extra={"requestBody": json_body(FeedbackRequest)},
)
async def give_cds_feedback(request: Request) -> Response:
    """Record what became of cards, all of them or none."""
    asks = await _recognised(request, FEEDBACK_PATH)
    told = parsed(FeedbackRequest, await _json(request), "The feedback")
    service = service_of(request)
    await service.in_thread(_record_feedback, service, asks, told.feedback)
    return Response(status_code=HTTPStatus.OK)


# ── who asks ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def clients_of(request: Request) -> CdsClients:
    """Return the record systems that are known here."""
    clients: CdsClients = request.app.state.cds_clients
    return clients


async def _recognised(request: Request, path: str) -> Recognised:
    service, clients = service_of(request), clients_of(request)
    headers = request.headers.getlist("authorization")
    scheme, _, token = headers[0].partition(" ") if len(headers) == 1 else ("", "", "")
    if scheme.lower() != "bearer":
        raise _unrecognised(AuthenticationError("There is no bearer token, or there are two."))
    try:
        return await service.in_thread(clients.recognise, token.strip(), service.configuration.public_url + path)
    except ReplayMemoryFullError as full:
        raise unavailable("busy", str(full), FULL_WAIT_S) from None
    except AuthenticationError as error:
        raise _unrecognised(error) from None


def _unrecognised(error: AuthenticationError) -> Problem:
    # Not why, unless it was good once (`expired`, `replayed`): what keeps a forged token out is nothing to tell whoever forged it.
    detail = (
        "This takes a JSON Web Token of a record system that is registered here, for this address alone, good for one request and five minutes "
        "(CDS Hooks 2.0, Trusting CDS Clients)."
    )
    return Problem(HTTPStatus.UNAUTHORIZED, error.reason, detail, CHALLENGE)


async def _json(request: Request) -> bytes:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _JSON:
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "media-type", f"The Content-Type is none that is taken here: {_JSON} is.")
    return await body_of(request, MAX_BODY_BYTES)


# ── the card ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _answer(service: Service, asks: Recognised, context: PatientViewContext, address: str | None) -> Answer:
    """Return the answer, once it is recorded that it is given."""
    subject = asks.principal.subject(asks.client.person(context.patient_id))
    shown = _to_show(service, asks.principal.tenant, subject)
    if not shown:
        return Answer()
    # It is the record system's word that this is who reads, so that it stands beside the name.
    client = asks.principal.id if address is None else f"{asks.principal.id} ({address})"
    actor = Actor(id=named_in(asks.principal.tenant, context.user_id), role=Role.CLINICIAN, client=client)
    service.record([_viewed(one, finding, actor) for one, finding in shown])
    public_url = service.configuration.public_url
    say = service.site.locale(REFERENCE)
    return answer([finding for _, finding in shown], say, app_url=public_url + LAUNCH_PATH, source_url=public_url)


def _to_show(service: Service, tenant: str, subject: str) -> list[tuple[Kept, Finding]]:
    """Return what a card shows, the newest first by the day of the recording: what was recorded long ago may have been screened today."""
    oldest = datetime.now(UTC).date() - timedelta(days=service.configuration.cds.freshest_days)
    found = _findings(service.store.latest(tenant, subject, 1 + EARLIER))
    if any(kept.finished_at is not None and kept.finished_at.date() != finding.day for kept, finding in found):
        # They come in the order in which they were finished, which is another one then, and the newest may not be among them.
        found = _findings(service.store.latest(tenant, subject, _MOST_LOOKED_AT))
    fresh = [(kept, finding) for kept, finding in found if finding.day >= oldest]
    fresh.sort(key=lambda pair: pair[1].day, reverse=True)
    return fresh[: 1 + EARLIER]


def _findings(found: Sequence[Kept]) -> list[tuple[Kept, Finding]]:
    return [(kept, finding) for kept in found if (finding := _finding(kept)) is not None]


def _finding(kept: Kept) -> Finding | None:
    if kept.result is None or kept.finished_at is None:
        return None
    finished = kept.finished_at.date()
    day = kept.result.context.recorded_on or finished
    # What was not recorded yet would stand before all else, and never grow old. East of Greenwich the day may be one ahead.
    day = day if day <= finished + timedelta(days=1) else finished
    stands = standing(sorted(kept.reviews, key=lambda review: review.index))
    return Finding(kept.id, day, kept.result, stands.decision if stands else None)


def _viewed(kept: Kept, finding: Finding, actor: Actor) -> Entry:
    payload = ReportAction(actor=actor, result=finding.result.digest, action="viewed", form="json")
    return Entry(payload, like=kept.record, model=finding.result.model.digest)


# ── feedback ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _record_feedback(service: Service, asks: Recognised, told: Sequence[Feedback]) -> None:
    """Record feedback, each piece once however often it is sent; nothing of it where one piece is about a card that this site has not."""
    found = [service.store.get(screening_of(one.card), asks.principal.tenant) for one in told]
    reviews = [_review(asks, one, kept) for one, kept in zip(told, found, strict=True)]
    contradicted = False
    for one, review in zip(told, reviews, strict=True):
        try:
            service.record([review], idempotency_key=f"cds-hooks feedback {one.card.hex} {one.moment}")
        except AuditConflictError:
            contradicted = True
    service.store.take_in_reviews()
    if contradicted:
        detail = "Something else was said before of the same card at the same time, and stands; whatever else was sent is recorded."
        raise Problem(HTTPStatus.CONFLICT, "conflict", detail)


def _review(asks: Recognised, told: Feedback, kept: Kept | None) -> Entry:
    if kept is None or kept.result is None:
        raise Problem(HTTPStatus.NOT_FOUND, "not-found", "A card is not one that was given here; nothing of this feedback was recorded.")
    decision, reason = decided(told)
    # Feedback does not say who gave it, so that the record system itself is who told. Without its address: a repetition may come from another one,
    # and has to be the same.
    review = Review(actor=asks.principal.actor(None), result=kept.result.digest, decision=decision, reason=reason)
    return Entry(review, like=kept.record, model=kept.result.model.digest)


# ── browsers ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


class CdsOrigins:
    """Lets the web pages that the site names ask from a browser (CORS), and for these paths only.

    Parameters
    ----------
    app
        What answers.
    origins
        `https://ehr.example.org`: scheme, host and port. None by default: record systems ask from their servers.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._app, self._origins = app, frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the question that a browser asks before it asks, and say in answers whose page may read them."""
        if scope["type"] != "http" or not _is_ours(scope["path"]):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        allowed = origin if origin in self._origins else None
        if allowed and scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await Response(status_code=HTTPStatus.NO_CONTENT, headers={**_ALLOWED, **_to(allowed)})(scope, receive, send)
            return

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered = MutableHeaders(scope=message)
                answered.add_vary_header("Origin")
                if allowed:
                    answered["Access-Control-Allow-Origin"] = allowed
            await send(message)

        await self._app(scope, receive, told if self._origins else send)


def _is_ours(path: str) -> bool:
    return path == DISCOVERY_PATH or path.startswith(DISCOVERY_PATH + "/")


def _to(origin: str) -> dict[str, str]:
    return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
