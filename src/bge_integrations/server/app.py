# No "from __future__ import annotations" here: FastAPI reads the routes' annotations, which name local things.
"""The FastAPI app: routes, middleware, and the answers to what goes wrong."""

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from ..catalog.records import OutputName, Role
from ..core.encoder import Encoder
from ..core.reranker import Reranker
from ..core.token_outputs import Outputs, check_output_names
from ..environment import variable
from ..errors import BGEError
from . import schemas
from .access import OPEN_PATHS, Authentication, Keys, LocalHosts, check_list
from .asgi import route_path
from .limits import APIError, Limits
from .logs import REQUEST_ID_HEADER, AccessLog
from .metrics import Metrics
from .middleware import BodyLimits, OnePath, check_root_path
from .rerank import RERANK_PATHS, add_reranking
from .responses import (
    TRUNCATED_HEADER,
    embedding_rows,
    error_response,
    json_response,
    output_columns,
    page_response,
    truncated_header,
)
from .service import Embedded, Service

JSON_PATHS = ("/embed", "/embed_sparse", "/v1/embeddings", "/tokens", *RERANK_PATHS)
_CORS: dict[str, Any] = {
    "allow_methods": ["GET", "POST"],
    "allow_headers": ["authorization", "content-type", REQUEST_ID_HEADER],
    "expose_headers": [TRUNCATED_HEADER, "retry-after", REQUEST_ID_HEADER],
}
PATHS = (*JSON_PATHS, "/", "/health", "/ready", "/info", "/metrics", "/v1/models", "/docs", "/openapi.json")


def build_app(
    encoder: Encoder,
    *,
    limits: Limits,
    api_keys: Sequence[str] | Keys = (),
    model_names: Sequence[str] = (),
    cors_origins: Sequence[str] = (),
    root_path: str = "",
    local_hosts_only: bool = False,
    metrics_folder: str | None = None,
    on_fatal: Callable[[BGEError], None] | None = None,
    reranker: Reranker | Callable[[], Reranker] | None = None,
) -> FastAPI:
    """Build the app; see ``create_app``.

    Args:
        encoder: what embeds.
        limits: bounds on requests and on what waits.
        api_keys: without any, everybody is let in.
        model_names: further names of the model.
        cors_origins: origins of web pages that may call.
        root_path: the prefix under which clients see the server.
        local_hosts_only: refuse requests under public host names, other than those of ``cors_origins``.
        metrics_folder: where the workers of one server keep their counters (default: ``PROMETHEUS_MULTIPROC_DIR``).
        on_fatal: called with the error where the model cannot be loaded and waiting will not help.
        reranker: what reranks, or a function that makes it; without one there is no ``/rerank``.

    Raises:
        ConfigError: a key is empty, a string stands where a list belongs, or the prefix is not one.
    """
    keys = api_keys if isinstance(api_keys, Keys) else Keys(api_keys)
    check_list("model_names", model_names)
    check_list("cors_origins", cors_origins)
    root_path = check_root_path(root_path, PATHS)
    metrics = Metrics(metrics_folder or variable("PROMETHEUS_MULTIPROC_DIR"))
    made = reranker if reranker is None or isinstance(reranker, Reranker) else reranker()
    service = Service(encoder, limits, metrics, model_names, on_fatal, made)
    app = FastAPI(
        title="BGE embeddings",
        version=version("bge-integrations"),
        summary=f"Unit vectors of {encoder.card.id}",
        lifespan=_lifespan(service),
        redirect_slashes=False,  # a redirect would go to whatever the Host header names
        # FastAPI's own pages load their scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
    )
    _add_embedding(app, service)
    _add_openai(app, service)
    if made is not None:
        add_reranking(app, service, made)
    _add_state(app, service, locked=bool(keys))
    schemas.complete_document(app.openapi(), encoder.card, limits, locked=bool(keys), open_paths=OPEN_PATHS)
    app.add_exception_handler(APIError, _on_api_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    # The last one added is the outermost.
    app.add_middleware(BodyLimits, limits=limits, metrics=metrics, json_paths=JSON_PATHS)
    if keys:
        app.add_middleware(Authentication, keys=keys)
    if local_hosts_only and "*" not in cors_origins:
        app.add_middleware(LocalHosts, origins=cors_origins)
    if cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=list(cors_origins), **_CORS)
    app.add_middleware(AccessLog, metrics=metrics, routes=PATHS)
    app.add_middleware(OnePath, root_path=root_path)
    return app


def _lifespan(service: Service) -> Any:
    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start_warming()
        yield
        await service.stop_warming()

    return lifespan


async def _embed(
    service: Service,
    request: Request,
    texts: list[str],
    role: Role,
    names: Sequence[OutputName] = ("dense",),
    *,
    truncate: bool = True,
) -> Embedded:
    done = await service.embed(texts, role, names, truncate=truncate)
    request.state.bge_work = {"texts": len(texts), "role": role, "tokens": done.tokens}
    return done


def _add_embedding(app: FastAPI, service: Service) -> None:
    card, errors = service.encoder.card, schemas.errors(schemas.Detail)

    @app.post("/embed", response_model=schemas.EmbedResponse, responses=errors, summary="Embed texts")
    async def embed(body: schemas.EmbedRequest, request: Request) -> Response:
        role: Role = "query" if body.is_query else "document"
        names = check_output_names(body.outputs or ["dense"])
        done = await _embed(service, request, body.texts, role, names)
        found = Outputs.of(service.encoder.output_for(names), done.rows)
        answer = {**output_columns(found), "model": card.id, "dimension": card.dimensions}
        return json_response(answer, truncated_header(done.truncated))

    @app.post(
        "/embed_sparse",
        response_model=list[list[schemas.SparseValue]],
        responses=errors,
        summary="Embed into token weights, in TEI's format",
        include_in_schema="sparse" in card.outputs,
    )
    async def embed_sparse(body: schemas.EmbedSparseRequest, request: Request) -> Response:
        role, truncate = body.prompt_name or "document", body.truncate is not False
        done = await _embed(service, request, body.inputs, role, ("sparse",), truncate=truncate)
        rows = [[{"index": token, "value": weight} for token, weight in row.items()] for row in done.rows["sparse"]]
        return json_response(rows, truncated_header(done.truncated))

    @app.post("/tokens", response_model=schemas.TokensResponse, responses=errors, summary="Count tokens")
    async def tokens(body: schemas.TokensRequest) -> Response:
        return json_response(await service.count(body.texts, "query" if body.is_query else "document"))


def _add_openai(app: FastAPI, service: Service) -> None:
    card, errors = service.encoder.card, schemas.errors(schemas.OpenAIError)
    model = {"id": card.id, "object": "model", "created": 0, "owned_by": card.id.partition("/")[0]}

    @app.post(
        "/v1/embeddings", response_model=schemas.EmbeddingsResponse, responses=errors, summary="Embed, OpenAI's way"
    )
    async def embeddings(body: schemas.EmbeddingsRequest, request: Request) -> Response:
        service.check_model(body.model)
        if body.dimensions not in (None, card.dimensions):
            message = f"{card.id!r} has {card.dimensions} dimensions, not {body.dimensions}"
            raise APIError(400, message, param="dimensions")
        done = await _embed(service, request, body.input, body.input_type or "document")
        answer = {
            "object": "list",
            "data": embedding_rows(done.rows, body.encoding_format),
            "model": card.id,
            "usage": {"prompt_tokens": done.tokens, "total_tokens": done.tokens},
        }
        return json_response(answer, truncated_header(done.truncated))

    @app.get("/v1/models", summary="The model that is served")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    # Not in the document: an id holds a slash, which OpenAPI does not allow in a path parameter.
    @app.get("/v1/models/{name:path}", include_in_schema=False)
    async def one_model(name: str) -> dict[str, Any]:
        service.check_model(name)
        return model


def _add_state(app: FastAPI, service: Service, locked: bool) -> None:
    @app.get("/", include_in_schema=False)
    async def playground() -> Response:
        return page_response("page.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return page_response("docs.html")

    @app.get("/health", summary="Is the process alive?")
    async def health() -> schemas.Health:
        return schemas.Health(status="ok", model=service.encoder.card.id, model_loaded=service.ready)

    @app.get("/ready", summary="Has the model answered?", responses={503: {"model": schemas.Detail}})
    async def ready() -> Response:
        service.start_warming()
        if service.ready:
            return JSONResponse({"status": "ready"})
        raise APIError(503, service.trouble, headers={"retry-after": "2"})

    @app.get("/info", summary="What is served, and its limits")
    async def info() -> dict[str, Any]:
        return await service.info() | {"needs_key": locked}

    @app.get("/metrics", summary="Counters for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


async def _on_api_error(request: Request, error: Any) -> Response:
    return error_response(route_path(request.scope), error)


async def _on_http(request: Request, error: Any) -> Response:
    return error_response(
        route_path(request.scope), APIError(error.status_code, str(error.detail), headers=error.headers)
    )


async def _on_invalid(request: Request, error: Any) -> Response:
    """Answer 422 without the input, which FastAPI would send back whole."""
    problems = [
        {"type": problem["type"], "loc": _location(problem["loc"]), "msg": problem["msg"]}
        for problem in error.errors()[:5]
    ]
    message = "; ".join(f"{'.'.join(map(str, p['loc'][1:])) or 'body'}: {p['msg']}" for p in problems)
    param = next((str(p["loc"][1]) for p in problems if len(p["loc"]) > 1), None)
    return error_response(route_path(request.scope), APIError(422, message, param=param), problems)


def _location(parts: Sequence[Any]) -> list[Any]:
    # The name of an unknown field is the client's to choose.
    return [part if isinstance(part, int) else json.dumps(part)[1:-1][:60] for part in parts]
