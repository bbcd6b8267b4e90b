"""The application: routes, who may use them, and what is said when something goes wrong.

The one idea: it is put together in one place and checked there, so that no route is reached that does not say who may use it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, cast

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, ExceptionHandler

from clinical_ser.api import audit, cds_hooks, models, page, probes, screenings
from clinical_ser.api.access import Open, Principal
from clinical_ser.api.cds_clients import CdsClients
from clinical_ser.api.cds_hooks import CdsOrigins
from clinical_ser.api.configuration import ServerConfiguration
from clinical_ser.api.documenting import described
from clinical_ser.api.jobs import Jobs
from clinical_ser.api.limits import unavailable
from clinical_ser.api.observing import Observing
from clinical_ser.api.problems import Problem
from clinical_ser.api.routing import GuardedRoute, Routes, drain, unauthenticated
from clinical_ser.api.security import Authenticating, Authenticator, Denials
from clinical_ser.api.service import Service
from clinical_ser.errors import AuditError, AuditTamperedError, ServerSetupError

_RETRY_S = 5
ROUTES: tuple[Routes, ...] = (screenings.routes, models.routes, audit.routes, cds_hooks.routes, probes.routes, page.routes)


class Application:
    """The server's ASGI application.

    Parameters
    ----------
    service
        What the routes work with; started.
    observing
        By which it is watched.

    Attributes
    ----------
    asgi
        To be served.
    api
        The part that has the routes.

    Raises
    ------
    ServerSetupError
        A route does not say who may use it, or an issuer, record system or sign-in service does not fit.
    """

    def __init__(self, service: Service, observing: Observing) -> None:
        self.service = service
        self._observing = observing
        self.api = _bare()
        self.api.state.service = service
        self.api.state.page = page.page_of(service.configuration, service.site)
        self.api.state.cds_clients = CdsClients.of(service.configuration.cds.clients)
        add_routes(self.api)
        if service.witness is not None:
            self.api.router.routes.extend(audit.witness_routes(service.witness).routes)
        check_guarded(self.api)
        self._denials = Denials(service)
        self._authenticator = Authenticator(service.configuration)
        guarded = Authenticating(self.api, service, self._authenticator, self._denials, observing)
        self._add_handlers(guarded)
        self.api.openapi = self._described  # type: ignore[method-assign]
        self._description: dict[str, Any] | None = None
        self.asgi: ASGIApp = observing.around(CdsOrigins(guarded, service.configuration.cds.origins))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Work on accepted recordings, and record denials, meanwhile."""
        jobs = Jobs(self.service)
        self.service.jobs = jobs
        await self.service.in_thread(self._authenticator.load_keys)
        await self.service.in_thread(self.api.state.cds_clients.load_keys)
        self._denials.start()
        left = await jobs.start()
        if left:
            await self.service.in_thread(self.service.recovered, left)
        self._keep_house()
        try:
            yield
        finally:
            self._keeping.remove_done_callback(self._housekeeping_ended)
            self._keeping.cancel()
            await asyncio.wait([self._keeping])
            await jobs.stop()
            await self._denials.stop()

    def _keep_house(self) -> None:
        self._keeping = asyncio.get_running_loop().create_task(self.service.keep_house())
        self._keeping.add_done_callback(self._housekeeping_ended)

    def _housekeeping_ended(self, task: "asyncio.Task[None]") -> None:
        """Begin again after a fault of ours: reviews, retention and gauges depend on it."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._observing.logs.write("housekeeping-failed", level="error", error=error)
            asyncio.get_running_loop().call_later(_RETRY_S, self._keep_house)

    def _described(self) -> dict[str, Any]:
        if self._description is None:
            self._description = described(self.api, self.service.configuration.public_url)
        return self._description

    def _add_handlers(self, guarded: Authenticating) -> None:
        def answered(make: Callable[[Request, Any], Problem]) -> ExceptionHandler:
            async def handle(request: Request, error: Exception) -> Response:
                problem = make(request, error)
                guarded.denied(request, problem)
                if "Connection" in problem.headers:
                    await drain(request)
                return problem.response(request)

            return cast(ExceptionHandler, handle)

        for kind, make in (
            (Problem, lambda _, error: error),
            (AuditError, lambda _, error: _of_log(error)),
            (RequestValidationError, lambda _, error: _of_parameters(error)),
            (HTTPException, _of_routing),
            (Exception, lambda _, __: Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", _FAILED)),
        ):
            self.api.add_exception_handler(kind, answered(make))


_FAILED = "The server failed; its log has more under this request's id."


def _bare() -> FastAPI:
    return FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False, version=version("clinical-ser"))


def description(configuration: ServerConfiguration) -> dict[str, Any]:
    """Return the description of the API without serving it."""
    api = _bare()
    add_routes(api)
    return described(api, configuration.public_url)


def add_routes(api: FastAPI) -> None:
    """Give an application its routes, each once and flat: what is mounted below is not seen by `check_guarded`."""
    for routes in ROUTES:
        api.router.routes.extend(routes.routes)


def check_guarded(api: FastAPI) -> None:
    """Refuse an application with a route that does not say who may use it."""
    for route in api.routes:
        if not isinstance(route, GuardedRoute):
            raise ServerSetupError("A route does not say who may use it; routes are made with `Routes.at`.")


def _of_log(error: AuditError) -> Problem:
    """Return what is said where the trail cannot do its part: then nothing is given out."""
    if isinstance(error, AuditTamperedError):
        detail = "The audit trail does not fit its signatures; nothing is answered until someone has looked at it."
        return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "log-tampered", detail)
    return unavailable("not-recorded", "The audit trail cannot take a record now, and nothing is answered without one.", _RETRY_S)


def _of_parameters(error: RequestValidationError) -> Problem:
    first = error.errors()[0]
    place, *names = (str(part) for part in first["loc"])
    if place == "path":
        return Problem(HTTPStatus.NOT_FOUND, "not-found", "There is nothing under this address.")
    return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "does-not-fit", f"The parameter {'.'.join(names)} does not fit: {first['msg'].lower()}.")


def _of_routing(request: Request, error: HTTPException) -> Problem:
    route = request.scope.get("route")
    told = isinstance(route, GuardedRoute) and route.access in {Open.PUBLIC, Open.CDS_CLIENT}
    if not told and not isinstance(request.scope["state"].get("principal"), Principal):
        return unauthenticated()
    status = HTTPStatus(error.status_code)
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        return Problem(status, "method", "This address does not take this method.", dict(error.headers or {}))
    if status is HTTPStatus.NOT_FOUND:
        return Problem(status, "not-found", "There is nothing under this address.")
    return Problem(status, "refused", status.phrase)
