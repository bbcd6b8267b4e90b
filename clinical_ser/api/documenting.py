"""What the API says of itself: OpenAPI 3.1 for the parts that FastAPI cannot see, because a body of gigabytes is not parsed before it is read.

The one idea: the examples are made with the models that make the answers, so that none can be wrong.
"""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from clinical_ser.api.bodies import FRAMED, HEADER
from clinical_ser.api.store import Metadata

IDEMPOTENCY_KEY = "Idempotency-Key"
BINARY = {"type": "string", "format": "binary"}
_METADATA = {"subject": "MRN-0042", "sex": "female", "age": 54, "recorded_on": "2026-11-20", "purpose": "TREAT"}
_PROBLEM = {
    "type": "object",
    "description": "Problem details (RFC 9457). `type` is what programs go by; nothing of the request is in it.",
    "required": ["type", "title", "status", "detail", "request_id"],
    "additionalProperties": False,
    "properties": {
        "type": {"type": "string", "pattern": "^urn:clinical-ser:problem:[a-z-]+$"},
        "title": {"type": "string"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string"},
        "request_id": {"type": ["string", "null"]},
    },
    "examples": [
        {
            "type": "urn:clinical-ser:problem:not-audio",
            "title": "Unprocessable Entity",
            "status": 422,
            "detail": "The recording could not be answered. These bytes are not audio that any decoder here understands.",
            "request_id": "5b0f6e1c9d3a4f7e8b2c1d0e9f8a7b6c",
        }
    ],
}
_ABOUT = """\
Screening, never diagnosis. Every answer is recorded in the audit trail before it is given, and so is everyone who reads it.

Bearer tokens of the site's issuer, or API keys, in `Authorization`. Problems are `application/problem+json` (RFC 9457). Names of persons are never
part of an address: they would end up in logs."""


def screening_body() -> dict[str, Any]:
    """Return the body of a recording."""
    line = 'One line of JSON (the metadata), a line feed, then the recording: `{"subject": "MRN-0042"}\\n<bytes>`.'
    content = {
        "audio/wav": {"schema": BINARY},
        "audio/flac": {"schema": BINARY},
        "application/octet-stream": {"schema": BINARY},
        FRAMED: {"schema": {**BINARY, "description": line}},
    }
    return {
        "required": True,
        "description": f"The recording: WAV, FLAC, MP3, M4A, WebM …; its content decides. Bare with {HEADER}, or framed.",
        "content": content,
    }


def screening_headers() -> list[dict[str, Any]]:
    """Return the headers of a recording."""
    schema = Metadata.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    told = "What is said of a recording that is sent bare: JSON in ASCII. A proxy may log it; the framed body is better for names."
    return [
        {"name": HEADER, "in": "header", "description": told, "content": {"application/json": {"schema": schema, "example": _METADATA}}},
        idempotency_header(),
        {"name": "Prefer", "in": "header", "description": "`respond-async` (RFC 7240) to be answered later.", "schema": {"type": "string"}},
    ]


def idempotency_header() -> dict[str, Any]:
    """Return the header by which a request that is sent again is known."""
    key = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"}
    return {"name": IDEMPOTENCY_KEY, "in": "header", "description": "Asked again with it, the answer is the same one.", "schema": key}


def json_body(model: type[BaseModel], media: str = "application/json") -> dict[str, Any]:
    """Return the body that a model describes, with the models in it in their places: a description's references start at its own top."""
    schema = model.model_json_schema()
    parts = schema.pop("$defs", {})

    def whole(value: Any) -> Any:
        if isinstance(value, dict):
            name = value.get("$ref")
            return whole(parts[name.rpartition("/")[2]]) if isinstance(name, str) else {key: whole(each) for key, each in value.items()}
        return [whole(each) for each in value] if isinstance(value, list) else value

    return {"required": True, "content": {media: {"schema": whole(schema)}}}


def described(app: FastAPI, public_url: str) -> dict[str, Any]:
    """Return the description of the whole API."""
    found = get_openapi(
        title="clinical-ser", version=app.version, openapi_version="3.1.0", description=_ABOUT, routes=app.routes, servers=[{"url": public_url}]
    )
    components = found.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    schemas["Problem"] = _PROBLEM
    schemas |= Metadata.model_json_schema(ref_template="#/components/schemas/{model}").get("$defs", {})
    components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer", "description": "A token of the site's issuer, or an API key."}}
    for operations in found["paths"].values():
        for operation in operations.values():
            # FastAPI's own word for what it would refuse; here that is a problem too.
            for status, answer in operation["responses"].items():
                if status == str(HTTPStatus.UNPROCESSABLE_ENTITY.value) and "application/json" in answer.get("content", {}):
                    answer["content"] = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    return found
