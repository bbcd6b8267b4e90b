"""What the server says when it does not do what was asked: problem details (RFC 9457).

The one idea: a problem is one of a fixed list, with fixed words; nothing of the request is in it but the id that the server gave it.
"""

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

TYPE = "urn:clinical-ser:problem:"
MEDIA_TYPE = "application/problem+json"


class Problem(Exception):  # noqa: N818  # RFC 9457's word
    """Ends a request with problem details.

    Parameters
    ----------
    status
        The HTTP status.
    kind
        The last part of the problem's `type`: what programs go by.
    detail
        For people: what was wrong and what would have been right, without a word of what was sent.
    headers
        Further headers, as Retry-After.
    denial
        What it is in the trail and in the metrics, where whoever asked must not hear that: what is another site's is not there.
    """

    def __init__(self, status: HTTPStatus, kind: str, detail: str, headers: dict[str, str] | None = None, *, denial: str | None = None) -> None:
        super().__init__(kind)
        self.status, self.kind, self.detail, self.headers, self.denial = status, kind, detail, headers or {}, denial or kind

    def response(self, request: Request) -> JSONResponse:
        """Return the answer."""
        return problem_response(self.status, self.kind, self.detail, request_id_of(request), self.headers)


def problem_response(status: HTTPStatus, kind: str, detail: str, request_id: str | None, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return problem details as an answer."""
    body = {"type": TYPE + kind, "title": status.phrase, "status": status.value, "detail": detail, "request_id": request_id}
    return JSONResponse(body, status, headers=headers, media_type=MEDIA_TYPE)


def request_id_of(request: Request) -> str | None:
    """Return the id that the server gave a request."""
    return request.scope.get("state", {}).get("request_id")


@dataclass(frozen=True)
class Documented:
    """The problems that a route may answer with, for OpenAPI."""

    statuses: tuple[HTTPStatus, ...] = field(default=())

    def responses(self) -> dict[int | str, dict[str, Any]]:
        """Return what FastAPI takes as `responses`."""
        content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
        return {status.value: {"description": status.phrase, "content": content} for status in self.statuses}
