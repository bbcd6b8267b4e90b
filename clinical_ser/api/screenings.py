"""Screenings over HTTP: a recording in; a result, a report, a bundle for the record system out; and the clinician's decision back in.

The one idea: the same request gives the same screening. A repeated key, or the same recording of the same person with the same model, finds the
answer that there is, and whoever gets it is in the trail.
"""

import contextlib
from dataclasses import replace
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import Path, Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from clinical_ser.api.access import Principal, Scope
from clinical_ser.api.bodies import Received, metadata_of, no_room, parsed, receive
from clinical_ser.api.counting import split
from clinical_ser.api.documenting import BINARY, IDEMPOTENCY_KEY, idempotency_header, json_body, screening_body, screening_headers
from clinical_ser.api.frames import Work
from clinical_ser.api.generation import Generation, Served
from clinical_ser.api.limits import unavailable
from clinical_ser.api.metrics import Outcome, Stage
from clinical_ser.api.negotiation import best_language, best_media
from clinical_ser.api.problems import Problem
from clinical_ser.api.routing import CLOSE, Routes, address_of, body_of, principal_of, service_of
from clinical_ser.api.service import ROOM_BYTES, Service, digest_of, new_id, told_by
from clinical_ser.api.spool import SpoolError
from clinical_ser.api.store import Failure, Kept, Metadata, Order, Reviewed, same_as
from clinical_ser.api.store import Outcome as KeptOutcome
from clinical_ser.api.workers import LOST, BusyError, WorkerLostError
from clinical_ser.audio import QualityReport
from clinical_ser.audit.answering import last_notice
from clinical_ser.audit.events import RECORD, Actor, Review, Role
from clinical_ser.audit.events import Outcome as RecordedOutcome
from clinical_ser.audit.log import Entry
from clinical_ser.errors import AuditError, InvalidValueError, ReportError, ServerError
from clinical_ser.interop.fhir import Audited, SubjectReference, fhir_bytes, screening_bundle
from clinical_ser.interop.fhir_words import Reviewed as FhirReview
from clinical_ser.screening.result import ScreeningResult
from clinical_ser.strict import Strict
from reports.clinician import html_report, pdf_report

routes = Routes("screenings")

HTML, PDF, FHIR = "text/html", "application/pdf", "application/fhir+json"
_MAX_KEY = 255
_JOB_WAIT_S = 5
_UNDER_OTHERS = "The audit log has the same answer, of the same recording, under another person: is one of the names wrong?"
"""As `screen` says it on the command line."""
_REFUSED = "The recording could not be answered"
_MAX_REVIEW_BYTES = 64 * 1024

Id = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$", description="The screening's id.", examples=["3f0c8a1e5b7d4c2f9a6e1d0b8c7f5a42"])]


class AuditPlace(Strict):
    """Where the trail has the answer."""

    index: int
    record: str


class Links(Strict):
    """Where the rest is."""

    self: str
    report: str | None
    fhir: str | None
    review: str | None


class ScreeningView(Strict):
    """A screening as clients see it."""

    id: str
    state: Literal["accepted", "running", "done", "failed"]
    accepted_at: datetime
    finished_at: datetime | None
    result: ScreeningResult | None
    failure: Failure | None
    audit: AuditPlace | None
    reviews: tuple[Reviewed, ...]
    notices: tuple[str, ...] = ()
    links: Links

    @classmethod
    def around(cls, kept: Kept, notices: tuple[str, ...] = ()) -> "ScreeningView":
        """Return what is shown of a screening around its result."""
        own = f"/v1/screenings/{kept.id}"
        answer = kept.outcome.answer
        done = answer is not None
        place = AuditPlace(index=kept.record, record=RECORD + answer.digest) if answer and kept.record is not None else None
        links = Links(
            self=own, report=f"{own}/report" if done else None, fhir=f"{own}/fhir" if done else None, review=f"{own}/review" if done else None
        )
        return cls(
            id=kept.id,
            state=kept.state,
            accepted_at=kept.accepted_at,
            finished_at=kept.finished_at,
            result=None,
            failure=kept.failure,
            audit=place,
            reviews=kept.reviews,
            notices=notices,
            links=links,
        )


class ReviewRequest(Strict):
    """What a clinician decided."""

    decision: Literal["agreed", "overridden", "undecided"] = Field(examples=["agreed"])
    reason: str = Field(min_length=1, max_length=10_000, examples=["Fits what she told me; PHQ-9 today."])


class ReviewReceipt(Strict):
    """Where the decision is in the trail."""

    index: int
    time: str


def view(kept: Kept, status: HTTPStatus, notices: tuple[str, ...] = (), *, reviews: bool = True) -> Response:
    """Return a screening as an answer, with or without its `reviews`, which a key that only sends recordings may not read."""
    kept = kept if reviews else replace(kept, reviews=())
    headers = {"Location": f"/v1/screenings/{kept.id}"} if status is not HTTPStatus.OK else {}
    if kept.state in {"accepted", "running"}:
        headers["Retry-After"] = str(_JOB_WAIT_S)
    around = ScreeningView.around(kept, notices).model_dump_json().encode()
    # The result as it was checked: to read it and write it again takes longer than all the rest. Nothing that anyone chose stands before it.
    whole = around.replace(b'"result":null', b'"result":' + kept.outcome.json, 1) if kept.outcome.json else around
    return Response(whole, status, headers, "application/json")


_VIEW: dict[str, Any] = {"description": "The screening.", "model": ScreeningView}
_VIEWS: dict[int | str, dict[str, Any]] = {
    200: {**_VIEW, "description": "Answered before: the same key, or the same recording of the same person with the same model."},
    201: {**_VIEW, "description": "Answered."},
    202: {**_VIEW, "description": "Accepted, to be answered later; ask again under Location after Retry-After seconds."},
}


# ── a recording in ──────────────────────────────────────────────────────────────────────────────────────────────────────


@routes.at(
    "POST",
    "/v1/screenings",
    access=Scope.SCREEN,
    status_code=201,
    summary="Screen a recording",
    problems=(
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.CONFLICT,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
    ),
    responses=_VIEWS,
    openapi_extra={"requestBody": screening_body(), "parameters": screening_headers()},
)
async def screen(request: Request) -> Response:
    """Answer a short recording at once (201), accept a long one (202), and answer what was asked before from the store (200).

    The recording is the body as it is, and what is said of it the header Screening-Metadata; or both are the body: one line of JSON, then the bytes.
    """
    principal, service = principal_of(request), service_of(request)
    service.screening_rate.take(principal.client)
    with service.screenings_at_once.taken(principal.client):
        return await _screened(_Asked.by(request), service, principal, request)


class _Asked:
    """What the headers ask for."""

    def __init__(self, key: str | None, later: bool, actor: Actor) -> None:
        self.key, self.later, self.actor = key, later, actor

    @classmethod
    def by(cls, request: Request) -> "_Asked":
        """Read the headers; Problem 400 for a key that is none."""
        key = _idempotency_key(request)
        preferred = ",".join(request.headers.getlist("prefer")).lower().split(",")
        later = "respond-async" in {each.partition(";")[0].strip() for each in preferred}
        return cls(key, later, principal_of(request).actor(address_of(request)))


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get(IDEMPOTENCY_KEY)
    if key is not None and not (0 < len(key) <= _MAX_KEY and key.isascii() and key.isprintable()):
        detail = f"{IDEMPOTENCY_KEY} is 1 to {_MAX_KEY} visible ASCII characters."
        raise Problem(HTTPStatus.BAD_REQUEST, "idempotency-key", detail, CLOSE)
    return key


async def _screened(asked: _Asked, service: Service, principal: Principal, request: Request) -> Response:
    screening = new_id()
    repeat = None if asked.key is None else f"repeat\n{principal.client}\n{asked.key}"
    async with service.bodies:
        with service.observing.stage(Stage.READ_BODY):
            received = await receive(request, service.configuration.limits, service.spool, screening)
    try:
        with _alone(service, repeat), service.generation.taken() as generation:
            order, served = _order(received, generation, asked)
            digest = digest_of(received.metadata, received.digest.encode())
            known = await service.in_thread(_known, service, principal, order, served, repeat, digest)
            if known.kept is not None:
                status = HTTPStatus.ACCEPTED if known.kept.finished_at is None else HTTPStatus.OK
                return view(known.kept, status, known.notices, reviews=Scope.READ in principal.scopes)
            order = order.model_copy(update={"told_before": known.told_before})
            if service.configuration.require_notice and order.notice is None:
                detail = "The person has to be told of the system first: say in `notice` which version of the text they were given."
                raise Problem(HTTPStatus.FORBIDDEN, "no-notice", detail)
            bound = None if repeat is None else (repeat, digest)
            work = _Screening(service, generation, principal, screening, order, served, bound, known.same)
            answer = None if asked.later or received.spooled is not None else await work.at_once(received.parts)
            return answer or await work.accept(received)
    finally:
        received.abandon()


@contextlib.contextmanager
def _alone(service: Service, repeat: str | None) -> Any:
    """Let one request with an idempotency key go on at a time."""
    if repeat is None:
        yield
        return
    if repeat in service.in_flight:
        detail = "A request with this Idempotency-Key is being worked on; ask again later."
        raise Problem(HTTPStatus.CONFLICT, "in-flight", detail, {"Retry-After": "1"})
    service.in_flight.add(repeat)
    try:
        yield
    finally:
        service.in_flight.discard(repeat)


def _order(received: Received, generation: Generation, asked: _Asked) -> tuple[Order, Served]:
    metadata: Metadata = metadata_of(received.metadata)
    served = _served(generation, metadata.model)
    if metadata.end is not None and metadata.end <= (metadata.start or 0.0):
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "does-not-fit", "The metadata does not fit: end: a time after the start is expected.")
    return Order(metadata=metadata, model=served.id, actor=asked.actor, body=received.digest, size=received.size), served


def _served(generation: Generation, model: str | None) -> Served:
    """Return the model that was asked for, the first where none was."""
    models = generation.models
    served = models.get(model) if model else next(iter(models.values()))
    if served is None:
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "no-model", f"There is no such model; there are {', '.join(models)}.")
    if served.withdrawn:
        raise unavailable("withdrawn", "This model was withdrawn; nothing answers in its place yet, and nothing was kept of this recording.", 3600)
    return served


class _Known:
    """What the store knows of a request before it is worked on."""

    def __init__(self, kept: Kept | None, same: str, told_before: str | None, notices: tuple[str, ...] = ()) -> None:
        self.kept, self.same, self.told_before, self.notices = kept, same, told_before, notices


def _known(service: Service, principal: Principal, order: Order, served: Served, repeat: str | None, digest: bytes) -> _Known:
    """Look for an answer that there is, and record that it is shown again."""
    subject = principal.subject(order.metadata.subject)
    same = same_as(principal.tenant, subject, order.body, served.digest, order.metadata)
    before = service.store.repeated(repeat) if repeat else None
    if before is not None and before[0] != service.store.bound(digest):
        detail = "This Idempotency-Key came with another request; a new request needs a new key."
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "idempotency-mismatch", detail)
    found = before[1] if before else service.store.same(same)
    kept = service.store.get(found, principal.tenant) if found else None
    if kept is not None:
        if kept.outcome.answer is not None:
            notices: list[Entry] = []
            if order.metadata.notice is not None:
                with service.reading() as reader:
                    notices = told_by(order.model_copy(update={"told_before": last_notice(reader, subject)}), subject)
            service.shown(kept, order.actor, "json", purpose=order.metadata.purpose, told=notices)
            service.observing.metrics.screening(Outcome.FROM_STORE)
        return _Known(kept, same, None, ("Answered from the store: the same recording was answered before.",))
    told = None
    if order.metadata.notice is None or service.configuration.require_notice:
        with service.reading() as reader:
            told = last_notice(reader, subject)
    return _Known(None, same, told)


class _Screening:
    """One recording on its way."""

    def __init__(
        self,
        service: Service,
        generation: Generation,
        principal: Principal,
        screening: str,
        order: Order,
        served: Served,
        repeat: tuple[str, bytes] | None,
        same: str,
    ) -> None:
        self._service, self._generation, self._principal, self._id = service, generation, principal, screening
        self._order, self._served, self._repeat, self._same = order, served, repeat, same

    async def at_once(self, parts: list[bytes]) -> Response | None:
        """Answer; None where the recording is too long for that."""
        service, limits = self._service, self._service.configuration.limits
        options = self._order.metadata.options()
        work = Work(
            kind="screening",
            model=self._served.digest,
            options=options,
            longest_s=limits.at_once_s,
            decoded_s=limits.decoded_s,
            counted=service.counting.is_on,
        )
        timeout_s = service.configuration.work.at_once_timeout_s
        try:
            done, answer = await self._generation.workers.run(work, parts, self._order.size, lane="at_once", timeout_s=timeout_s)
        except BusyError as busy:
            service.observing.metrics.screening(Outcome.SHED)
            raise unavailable("busy", "Too many recordings wait for a worker; nothing was kept of this one.", busy.retry_after_s) from None
        except WorkerLostError as lost:
            raise await self._failed(lost.reason, LOST[lost.reason]) from None
        if done.kind == "longer":
            return None
        if done.kind != "result":
            raise await self._failed(done.code, done.detail)
        raw, cells = split(done, answer)
        try:
            outcome = service.checked(self._served, raw)
        except ServerError as error:
            raise await self._failed("failed", str(error)) from None
        with service.observing.stage(Stage.RECORD):
            kept, notices = await service.in_thread(self._keep, outcome)
        service.observing.metrics.screening(Outcome.ANSWERED)
        service.was_answered(kept, outcome, self._served, parts, cells)
        return view(kept, HTTPStatus.CREATED, notices)

    def _keep(self, outcome: KeptOutcome) -> tuple[Kept, tuple[str, ...]]:
        service = self._service
        kept = service.keep_answer(self._id, self._principal, self._order, outcome, repeat=self._repeat, same=self._same)
        return kept, (_UNDER_OTHERS,) if service.store.is_anothers(kept) else ()

    async def _failed(self, code: str, detail: str) -> Problem:
        """Record that a recording could not be answered, and return what to say."""
        service = self._service
        service.observing.metrics.screening(Outcome.FAILED, code)
        payload = service.failed(self._id, self._order, code)
        subject = self._principal.subject(self._order.metadata.subject)
        entry = Entry(payload, subject=subject, outcome=RecordedOutcome.FAILED, purpose=self._order.metadata.purpose)
        await service.in_thread(service.record, [entry])
        return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, code, f"{_REFUSED}. {detail}")

    async def accept(self, received: Received) -> Response:
        """Keep the recording, and answer later."""
        service = self._service
        if service.jobs.is_full:
            service.observing.metrics.screening(Outcome.SHED)
            raise unavailable("queue-full", "Too many accepted recordings wait; nothing was kept of this one.", 60)
        if service.spool.free_bytes < received.size + ROOM_BYTES:
            raise no_room()
        kept = await service.in_thread(self._accepted, received)
        service.jobs.add(kept)
        service.observing.metrics.screening(Outcome.ACCEPTED)
        return view(kept, HTTPStatus.ACCEPTED)

    def _accepted(self, received: Received) -> Kept:
        """See the recording on the disk, and then its row: a file without a row is swept up, a row without its file would be a lost job.

        From when the row is asked for, the file stays: that the log did not say in time that it has the row does not mean that it has not.
        """
        writer = received.spooled
        try:
            if writer is None:
                writer = received.spooled = self._service.spool.begin(self._id)
                for part in received.parts:
                    writer.write(part)
            writer.finish()
        except SpoolError:
            raise no_room() from None
        order = self._order.model_copy(update={"spooled": writer.key.hex()})
        received.spooled = None
        return self._service.keep_job(self._id, self._principal, order, repeat=self._repeat, same=self._same)


# ── what became of it ───────────────────────────────────────────────────────────────────────────────────────────────────


@routes.at(
    "GET", "/v1/screenings/{screening}", access=Scope.READ, summary="Read a screening", problems=(HTTPStatus.NOT_FOUND,), responses={200: _VIEW}
)
async def read_screening(request: Request, screening: Id) -> Response:
    """Return a screening: a finished one has its result, or the reason why there is none. That it was read is in the trail."""
    principal, service = principal_of(request), service_of(request)
    kept = await service.in_thread(_shown, service, principal, screening, address_of(request), "json")
    return view(kept, HTTPStatus.OK)


def _shown(service: Service, principal: Principal, screening: str, address: str | None, form: str | None) -> Kept:
    """Return a screening whose showing is recorded, if there is a result to show."""
    kept = service.store.get(screening, principal.tenant)
    if kept is None:
        raise _not_found(elsewhere=service.store.is_anothers_tenant(screening, principal.tenant))
    if form is not None and kept.outcome.answer is not None:
        service.shown(kept, principal.actor(address), form)
    return kept


def _not_found(*, elsewhere: bool) -> Problem:
    """Return one answer for what is not there and for what is another site's; the trail knows the difference."""
    detail = "There is no such screening: none was made under this id, or it was erased or is no longer kept."
    return Problem(HTTPStatus.NOT_FOUND, "not-found", detail, denial="another-tenants" if elsewhere else None)


def _finished(kept: Kept) -> ScreeningResult:
    if kept.result is not None:
        return kept.result
    if kept.state == "failed":
        raise Problem(HTTPStatus.CONFLICT, "failed", "This screening has no result, and so no report; the screening itself says why.")
    raise Problem(HTTPStatus.CONFLICT, "not-finished", "This screening has no result yet.", {"Retry-After": str(_JOB_WAIT_S)})


@routes.at(
    "GET",
    "/v1/screenings/{screening}/report",
    access=Scope.READ,
    summary="Read the clinician's report",
    problems=(HTTPStatus.NOT_FOUND, HTTPStatus.NOT_ACCEPTABLE, HTTPStatus.CONFLICT),
    responses={200: {"description": "By Accept: a page that loads nothing, or PDF/UA-1.", "content": {HTML: {}, PDF: {}}}},
)
async def read_report(request: Request, screening: Id) -> Response:
    """Return two pages, as HTML or PDF by Accept, in the language that Accept-Language asks for (en, zh, or the site's own)."""
    principal, service = principal_of(request), service_of(request)
    media = best_media(request.headers.get("accept"), (HTML, PDF))
    if media is None:
        raise Problem(HTTPStatus.NOT_ACCEPTABLE, "not-acceptable", f"A report comes as {HTML} or {PDF}.")
    language = best_language(request.headers.get("accept-language"), service.languages)
    kept = await service.in_thread(_shown, service, principal, screening, None, None)
    result = _finished(kept)
    try:
        with service.pages_at_once.taken(principal.client):
            content = await service.rendered(pdf_report if media == PDF else html_report, result, site=service.site, language=language)
    except ReportError as error:
        raise unavailable("no-report", f"The report cannot be made here: {error}", 3600) from None
    form = media.partition("/")[2]
    await service.in_thread(service.shown, kept, principal.actor(address_of(request)), form)
    raw = content.encode() if isinstance(content, str) else content
    headers = {
        "Content-Language": language or "en",
        "Vary": "Accept, Accept-Language",
        "Content-Disposition": f'inline; filename="{screening[:12]}.{form}"',
    }
    if media == HTML:
        # The page has a policy of its own, which allows its one style sheet by its digest.
        headers["Content-Security-Policy"] = "frame-ancestors 'self'; sandbox allow-scripts"
    return Response(raw, HTTPStatus.OK, headers, media)


@routes.at(
    "GET",
    "/v1/screenings/{screening}/fhir",
    access=Scope.READ,
    summary="Read a screening as FHIR R4",
    problems=(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT),
    responses={200: {"description": "A transaction Bundle, to be posted to a record system.", "content": {FHIR: {}}}},
)
async def read_fhir(request: Request, screening: Id, report: Annotated[bool, Query(description="With the report as PDF.")] = True) -> Response:
    """Return RiskAssessment (preliminary until reviewed), Observations, DiagnosticReport, DocumentReference, Device, Provenance and AuditEvent."""
    principal, service = principal_of(request), service_of(request)
    kept = await service.in_thread(_shown, service, principal, screening, None, None)
    result = _finished(kept)
    try:
        with service.pages_at_once.taken(principal.client):
            pdf = await service.rendered(pdf_report, result, site=service.site, language=None) if report else None
        bundle = await service.in_thread(_bundle, service, kept, result, pdf)
    except InvalidValueError as error:
        detail = f"The bundle cannot name this person as the site configured it (fhir.subject): {error.rule}."
        raise Problem(HTTPStatus.CONFLICT, "subject", detail) from None
    except ReportError as error:
        raise unavailable("no-report", f"The report cannot be made here: {error}", 3600) from None
    await service.in_thread(service.shown, kept, principal.actor(address_of(request)), "fhir")
    return Response(fhir_bytes(bundle), HTTPStatus.OK, media_type=FHIR)


@routes.at(
    "POST",
    "/v1/screenings/{screening}/review",
    access=Scope.REVIEW,
    status_code=201,
    summary="Record a clinician's review",
    problems=(
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.CONFLICT,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    ),
    responses={201: {"description": "Recorded.", "model": ReviewReceipt}},
    openapi_extra={"requestBody": json_body(ReviewRequest), "parameters": [idempotency_header()]},
)
async def review(request: Request, screening: Id) -> Response:
    """Record a decision in the trail. It is with the screening from then on; one of another clinician, or a later one, is added to it."""
    principal, service = principal_of(request), service_of(request)
    told = parsed(ReviewRequest, await body_of(request, _MAX_REVIEW_BYTES), "The review")
    key = _idempotency_key(request)
    receipt = await service.in_thread(_reviewed, service, principal, screening, address_of(request), told, key)
    return Response(receipt.model_dump_json(), HTTPStatus.CREATED, {"Location": f"/v1/screenings/{screening}"}, "application/json")


def _bundle(service: Service, kept: Kept, result: ScreeningResult, pdf: bytes | None) -> dict[str, Any]:
    named = service.configuration.fhir
    if named.subject == "reference":
        subject = SubjectReference(reference=f"Patient/{kept.subject.removeprefix('Patient/')}")
    else:
        subject = SubjectReference(system=named.subject_system, value=kept.subject)
    with service.reading() as reader:
        assert kept.record is not None
        audit = Audited(reader.record(kept.record), reader.origin)
    return screening_bundle(
        result,
        screening_id=kept.id,
        subject=subject,
        recorded=kept.finished_at or kept.accepted_at,
        base=service.configuration.public_url,
        reviews=[
            FhirReview(decision=each.decision, reason=each.reason, name=each.name, role=Role(each.role), time=datetime.fromisoformat(each.time))
            for each in kept.reviews
        ],
        report_pdf=pdf,
        audit=audit,
        author=kept.order.actor.name,
    )


def _reviewed(service: Service, principal: Principal, screening: str, address: str | None, told: ReviewRequest, key: str | None) -> ReviewReceipt:
    kept = _shown(service, principal, screening, address, None)
    result = _finished(kept)
    payload = Review(actor=principal.actor(address), result=result.digest, decision=told.decision, reason=told.reason)
    repeat = None if key is None else f"review {screening}\n{principal.client}\n{key}"
    [receipt] = service.record([Entry(payload, like=kept.record, model=result.model.digest)], idempotency_key=repeat)
    # It is recorded; that it cannot be shown yet is no reason to have it signed again.
    with contextlib.suppress(AuditError):
        service.store.take_in_reviews()
    return ReviewReceipt(index=receipt.index, time=receipt.time)


# ── the gate alone ──────────────────────────────────────────────────────────────────────────────────────────────────────


@routes.at(
    "POST",
    "/v1/quality",
    access=Scope.SCREEN,
    summary="Ask the gate alone",
    problems=(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_TIMEOUT),
    responses={200: {"description": "Each check with its value, limits and verdict.", "model": QualityReport}},
    openapi_extra={"requestBody": {"required": True, "content": {"audio/wav": {"schema": BINARY}, "application/octet-stream": {"schema": BINARY}}}},
)
async def quality(
    request: Request, model: Annotated[str | None, Query(max_length=200, description="The model whose gate; the default one's.")] = None
) -> Response:
    """Tell whether a recording, or what there is of it so far, would be usable. Nothing is screened, kept or recorded."""
    principal, service = principal_of(request), service_of(request)
    _served(service.generation, model)
    limits = service.configuration.limits
    service.screening_rate.take(principal.client)
    with service.screenings_at_once.taken(principal.client):
        body = await body_of(request, limits.at_once_bytes)
        if not body:
            raise Problem(HTTPStatus.BAD_REQUEST, "empty", "The body holds no recording.")
        timeout_s = service.configuration.work.at_once_timeout_s
        try:
            with service.generation.taken() as generation:
                served = _served(generation, model)
                work = Work(kind="quality", model=served.digest, decoded_s=limits.decoded_s, longest_s=limits.at_once_s)
                done, answer = await generation.workers.run(work, [body], len(body), lane="at_once", timeout_s=timeout_s)
        except BusyError as busy:
            raise unavailable("busy", "Too many recordings wait for a worker.", busy.retry_after_s) from None
        except WorkerLostError as lost:
            raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, lost.reason, LOST[lost.reason]) from None
    if done.kind == "longer":
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "too-long", f"The gate is asked about {limits.at_once_s:g} s at most.")
    if done.kind != "quality":
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, done.code, done.detail)
    return Response(answer, HTTPStatus.OK, media_type="application/json")
