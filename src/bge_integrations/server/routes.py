# No "from __future__ import annotations" here: FastAPI reads the routes' annotations, which name local things.
"""The routes: from a request to the service and back, and nothing else."""

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from ..catalog.records import Role
from . import schemas
from .answers import Refusal, cut_header, embedding_rows, json_response
from .service import Embedded, Service

BODY_PATHS = ("/embed", "/v1/embeddings", "/tokens")
PATHS = (*BODY_PATHS, "/", "/health", "/ready", "/info", "/metrics", "/v1/models", "/docs", "/openapi.json")


def add_routes(app: FastAPI, service: Service, *, locked: bool) -> None:
    """Give the app its routes."""
    _add_embedding(app, service, _errors(schemas.Detail))
    _add_openai(app, service, _errors(schemas.OpenAIError))
    _add_state(app, service, locked)


def _errors(model: Any) -> dict[int | str, dict[str, Any]]:
    openai = model is schemas.OpenAIError
    statuses = [400, 408, 413, 415, *([] if openai else [422]), 429, 502, 503, 504]
    statuses += [404] if openai else []
    return {status: {"model": model} for status in sorted(statuses)}


async def _embed(service: Service, request: Request, texts: list[str], role: Role) -> Embedded:
    done = await service.embed(texts, role)
    request.state.bge_texts = f", {len(texts)} texts ({role}), {done.tokens} tokens"
    return done


def _add_embedding(app: FastAPI, service: Service, errors: dict[int | str, dict[str, Any]]) -> None:
    card = service.encoder.card

    @app.post("/embed", response_model=schemas.EmbedResponse, responses=errors, summary="Embed texts")
    async def embed(body: schemas.EmbedRequest, request: Request) -> Response:
        role: Role = "query" if body.is_query else "document"
        done = await _embed(service, request, body.texts, role)
        answer = {"embeddings": done.vectors, "model": card.id, "dimension": card.dimensions}
        return json_response(answer, cut_header(done.cut))

    @app.post("/tokens", response_model=schemas.TokensResponse, responses=errors, summary="Count tokens")
    async def tokens(body: schemas.TokensRequest) -> Response:
        role: Role = "query" if body.is_query else "document"
        return json_response(await service.count_and_cut(body.texts, role))


def _add_openai(app: FastAPI, service: Service, errors: dict[int | str, dict[str, Any]]) -> None:
    card = service.encoder.card

    @app.post(
        "/v1/embeddings", response_model=schemas.EmbeddingsResponse, responses=errors, summary="Embed, OpenAI's way"
    )
    async def embeddings(body: schemas.EmbeddingsRequest, request: Request) -> Response:
        service.check_model(body.model)
        if body.dimensions not in (None, card.dimensions):
            raise Refusal(
                400, f"{card.id!r} has {card.dimensions} dimensions, not {body.dimensions}", param="dimensions"
            )
        done = await _embed(service, request, body.input, body.input_type or "document")
        answer = {
            "object": "list",
            "data": embedding_rows(done.vectors, body.encoding_format),
            "model": card.id,
            "usage": {"prompt_tokens": done.tokens, "total_tokens": done.tokens},
        }
        return json_response(answer, cut_header(done.cut))

    @app.get("/v1/models", summary="The model that is served")
    async def models() -> dict[str, Any]:
        model = {"id": card.id, "object": "model", "created": 0, "owned_by": card.id.partition("/")[0]}
        return {"object": "list", "data": [model]}


def _add_state(app: FastAPI, service: Service, locked: bool) -> None:
    encoder = service.encoder

    @app.get("/health", summary="Is the process alive?")
    async def health() -> schemas.Health:
        return schemas.Health(status="ok", model=encoder.card.id, model_loaded=service.ready)

    @app.get("/ready", summary="Has the model answered?", responses={503: {"model": schemas.Detail}})
    async def ready() -> Response:
        if service.ready:
            return JSONResponse({"status": "ready"})
        raise Refusal(503, service.trouble, headers={"retry-after": "2"})

    @app.get("/info", summary="What is served, and its limits")
    async def info() -> dict[str, Any]:
        return service.info() | {"needs_key": locked}

    @app.get("/metrics", summary="Counters for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)
