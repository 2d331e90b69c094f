"""What goes back over the wire: vectors, pages, and errors in the shape that the path's clients expect."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from typing import Any

import orjson
from starlette.responses import Response

from ..core.encoder import Vectors
from ..core.token_outputs import Outputs
from ..errors import (
    BadAnswerError,
    BGEError,
    ConfigError,
    DeadlineError,
    HostError,
    HostUnavailableError,
    InputError,
    MissingExtraError,
    ModelLoadError,
    RateLimitError,
    TooLargeError,
)
from .limits import APIError

OPENAI_PREFIX = "/v1"
TRUNCATED_HEADER = "x-truncated-positions"
_STATUS: tuple[tuple[type[BGEError], int], ...] = (
    (InputError, 422),
    (ConfigError, 422),
    (RateLimitError, 429),
    (TooLargeError, 413),
    (DeadlineError, 504),
    (HostUnavailableError, 503),
    (BadAnswerError, 502),
    (ModelLoadError, 503),
    (HostError, 502),
)
_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


def api_error(error: BGEError) -> APIError:
    """Return the response to an encoder's error; details are left out where the client did not cause it."""
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    if isinstance(error, HostError):
        headers = {"retry-after": str(max(1, round(error.retry_after)))} if error.retry_after else {}
        return APIError(status, f"the model's host failed ({type(error).__name__})", headers=headers)
    if isinstance(error, InputError | ConfigError):
        return APIError(status, str(error))
    return APIError(status, f"the model failed ({type(error).__name__})")


def log_text(error: BaseException) -> str:
    """Describe an error for the operator's log, without words that may come from a text or hold a key."""
    if isinstance(error, HostError):
        return f"{type(error).__name__} at {error.provider or 'the host'}, status {error.status}"
    if isinstance(error, ModelLoadError | MissingExtraError | ConfigError):
        return f"{type(error).__name__}: {error}"
    return type(error).__name__


def error_response(path: str, error: APIError, detail: Any = None) -> Response:
    """Answer with an error in OpenAI's shape under ``/v1``, and as ``{"detail": ...}`` elsewhere.

    The JSON is pure ASCII, so that a lone surrogate in what a client sent cannot break it.
    """
    body: dict[str, Any]
    status = error.status
    if path.startswith(OPENAI_PREFIX):
        status = error.openai_status
        kind = "invalid_request_error" if status < 500 else "server_error"
        code = HTTPStatus(status).phrase.lower().replace(" ", "_")
        body = {"error": {"message": error.message, "type": kind, "param": error.param, "code": code}}
    else:
        body = {"detail": detail or error.message}
    return Response(json.dumps(body), status, error.headers, "application/json")


def json_response(content: Mapping[str, Any] | Sequence[Any], headers: Mapping[str, str] | None = None) -> Response:
    """Answer 200 with ``content``, which may hold numpy arrays."""
    return Response(
        orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), headers=headers, media_type="application/json"
    )


def output_columns(outputs: Outputs) -> dict[str, Any]:
    """Return what ``/embed`` answers for outputs; JSON has strings as keys."""
    columns: dict[str, Any] = {"embeddings": outputs.dense, "multivector": outputs.multivector}
    if outputs.sparse is not None:
        columns["sparse"] = [{str(token): weight for token, weight in row.items()} for row in outputs.sparse]
    return {name: column for name, column in columns.items() if column is not None}


def embedding_rows(vectors: Vectors, encoding: str | None) -> list[dict[str, Any]]:
    """Return OpenAI's ``data``: one object per vector, as numbers or as base64 of little-endian float32."""
    rows: Iterable[Any] = vectors
    if encoding == "base64":
        rows = [base64.b64encode(row).decode() for row in vectors.astype("<f4", copy=False)]
    return [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)]


def truncated_header(positions: Sequence[int]) -> dict[str, str]:
    """Return the header that names the texts which were truncated, the first 100 of them."""
    return {TRUNCATED_HEADER: ",".join(map(str, positions[:100]))} if positions else {}


@cache
def page_response(name: str) -> Response:
    """Return a page of this package, with a policy that lets it speak to this server only."""
    text = files(__package__).joinpath(name).read_text("utf-8")
    headers = {
        "content-security-policy": content_policy(text),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return Response(text, headers=headers, media_type="text/html; charset=utf-8")


def content_policy(page: str) -> str:
    """Allow the page's own script and style, by their hashes, and requests to where it came from."""
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, content in _INLINE.findall(page):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
    own = "; ".join(f"{kind}-src {' '.join(digests)}" for kind, digests in hashes.items())
    # Hugging Face shows a Space in a frame of huggingface.co; what its users write is on other origins.
    frames = "frame-ancestors 'self' https://huggingface.co"
    return (
        f"default-src 'none'; {own}; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; {frames}"
    )
