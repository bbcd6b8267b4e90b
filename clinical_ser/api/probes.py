"""Whether the server lives, whether it is ready, and what it is: for whoever keeps it running, and for programs that are written against it.

The one idea: ready means that a recording that came now would be answered and recorded.
"""

from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from clinical_ser.api.access import Open
from clinical_ser.api.routing import Routes, service_of

routes = Routes("probes")
_STATUS: dict[int | str, dict[str, Any]] = {200: {"description": "Yes.", "content": {"text/plain": {"schema": {"type": "string"}}}}}


@routes.at("GET", "/livez", access=Open.PUBLIC, summary="Whether the server lives", responses=_STATUS)
async def livez(request: Request) -> Response:  # noqa: ARG001
    """Answer."""
    return Response("ok\n", media_type="text/plain")


@routes.at("GET", "/readyz", access=Open.PUBLIC, summary="Whether the server is ready", responses=_STATUS)
async def readyz(request: Request) -> Response:
    """Say whether models are warm, workers run and the log has room; why not is in the server's own log and metrics, and not for everyone."""
    ready = service_of(request).is_ready()
    return Response("ready\n" if ready else "not ready\n", HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE, media_type="text/plain")


@routes.at(
    "GET",
    "/v1/openapi.json",
    access=Open.SIGNED_IN,
    summary="Read the description of this API",
    responses={200: {"description": "OpenAPI 3.1.", "content": {"application/json": {"schema": {"type": "object"}}}}},
)
async def openapi(request: Request) -> Response:
    """Return the description that this is part of."""
    return JSONResponse(request.app.openapi())
