"""Which models answer here, and their cards.

The one idea: what is said of a model is read from its verified bundle, byte for byte.
"""

from http import HTTPStatus
from typing import Annotated

from fastapi import Path
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from clinical_ser.api.access import Open, Scope
from clinical_ser.api.generation import Served
from clinical_ser.api.problems import Problem
from clinical_ser.api.routing import Routes, principal_of, service_of
from clinical_ser.evaluation.card import Card
from clinical_ser.strict import Strict

routes = Routes("models")

Name = Annotated[str, Path(pattern=r"^[a-zA-Z0-9_-]{1,64}$", description="The model's id.", examples=["depression-simulated"])]


class ModelView(Strict):
    """A model as clients see it."""

    id: str
    version: str
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    task: str
    classes: tuple[str, ...]
    simulated: bool
    """Trained on simulated speech: for trying things out, not for people."""
    signature: str
    default: bool
    """Answers where no model is asked for."""


class ModelsView(Strict):
    """The models that answer."""

    models: tuple[ModelView, ...]


class MeView(Strict):
    """Who asks, as the server sees it."""

    id: str
    name: str | None
    tenant: str
    role: str
    scopes: tuple[str, ...]


@routes.at("GET", "/v1/me", access=Open.SIGNED_IN, summary="Read who you are", responses={200: {"description": "You.", "model": MeView}})
async def me(request: Request) -> Response:
    """Return whom the token or key stands for, and what that may do."""
    asking = principal_of(request)
    found = MeView(id=asking.id, name=asking.name, tenant=asking.tenant, role=asking.role.value, scopes=tuple(sorted(asking.scopes)))
    return Response(found.model_dump_json(), media_type="application/json")


@routes.at("GET", "/v1/models", access=Scope.MODELS, summary="List the models", responses={200: {"description": "All.", "model": ModelsView}})
async def models(request: Request) -> Response:
    """Return the models that answer here, the one that does where none is asked for among them."""
    generation = service_of(request).generation
    first = next(iter(generation.models))
    answering = {name: each for name, each in generation.models.items() if not each.withdrawn}
    found = ModelsView(models=tuple(_view(each, default=name == first) for name, each in answering.items()))
    return Response(found.model_dump_json(), media_type="application/json")


@routes.at(
    "GET",
    "/v1/models/{model}/card",
    access=Scope.MODELS,
    summary="Read a model's card",
    problems=(HTTPStatus.NOT_FOUND,),
    responses={200: {"description": "What it is for, how it was tested, on whom.", "content": {"application/json": {"schema": {"type": "object"}}}}},
)
async def card(request: Request, model: Name) -> Response:
    """Return the card as it was signed with the model."""
    served = service_of(request).models.get(model)
    if served is None:
        raise Problem(HTTPStatus.NOT_FOUND, "not-found", "There is no such model here.")
    raw = served.bundle.files["card.json"]
    # Read once more, so that nothing but a card is given out as one.
    Card.from_json(raw)
    return Response(raw, media_type="application/json")


def _view(served: Served, *, default: bool) -> ModelView:
    manifest = served.bundle.manifest
    return ModelView(
        id=manifest.name,
        version=manifest.version,
        digest=served.digest,
        task=manifest.task.name,
        classes=manifest.task.classes,
        simulated=manifest.simulated,
        signature=served.bundle.signature.state.value,
        default=default,
    )
