# No "from __future__ import annotations" here: FastAPI reads the routes' annotations, which name local things.
"""The FastAPI app: routes, what stands in front of them, and the answers to what goes wrong."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from ..core.encoder import Encoder
from ..errors import ConfigError
from .answers import CUT_HEADER, Refusal, error_response
from .document import complete
from .gate import Bodies, Keys, Observed
from .limits import Limits
from .metrics import Metrics
from .pages import add_pages
from .routes import BODY_PATHS, PATHS, add_routes
from .service import Service


def build_app(
    encoder: Encoder,
    *,
    api_keys: Sequence[str] = (),
    limits: Limits,
    model_names: Sequence[str] = (),
    cors_origins: Sequence[str] = (),
) -> FastAPI:
    """Build the app; see ``create_app``.

    Raises:
        ConfigError: a key is empty.
    """
    if not all(key.strip() for key in api_keys):
        raise ConfigError("an empty key would let everybody in: leave it out, or give a real one")
    metrics = Metrics()
    service = Service(encoder, limits, metrics, model_names)
    app = FastAPI(
        title="BGE embeddings",
        version=version("bge-integrations"),
        summary=f"Unit vectors of {encoder.card.id}",
        lifespan=_lifespan(service),
        # FastAPI's own pages load their scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
    )
    add_routes(app, service, locked=bool(api_keys))
    add_pages(app)
    complete(app.openapi(), encoder.card, limits, locked=bool(api_keys))
    app.add_exception_handler(Refusal, _on_refusal)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    # The last one added is the first one met.
    app.add_middleware(Bodies, limits=limits, metrics=metrics, paths=BODY_PATHS)
    if api_keys:
        app.add_middleware(Keys, keys=list(api_keys))
    if cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
            expose_headers=[CUT_HEADER, "retry-after"],
        )
    app.add_middleware(Observed, metrics=metrics, routes=PATHS)
    return app


def _lifespan(service: Service) -> Any:
    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(service.warm_up())
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    return lifespan


async def _on_refusal(request: Request, refusal: Any) -> Response:
    return error_response(request.url.path, refusal)


async def _on_http(request: Request, error: Any) -> Response:
    return error_response(request.url.path, Refusal(error.status_code, str(error.detail), headers=error.headers or {}))


async def _on_invalid(request: Request, error: Any) -> Response:
    """Answer 422 without the input, which FastAPI would send back whole."""
    problems = [
        {"type": problem["type"], "loc": _location(problem["loc"]), "msg": problem["msg"]}
        for problem in error.errors()[:5]
    ]
    message = "; ".join(f"{'.'.join(map(str, p['loc'][1:])) or 'body'}: {p['msg']}" for p in problems)
    param = next((str(p["loc"][1]) for p in problems if len(p["loc"]) > 1), None)
    return error_response(request.url.path, Refusal(422, message, param=param), problems)


def _location(parts: Sequence[Any]) -> list[Any]:
    # A field's name is the client's to choose where it is one too many.
    return [part if isinstance(part, int) else json.dumps(part)[1:-1][:60] for part in parts]
