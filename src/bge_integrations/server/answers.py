"""What goes back over the wire: vectors, and errors in the shape that the path's clients expect."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson
from starlette.responses import Response

from ..core.encoder import Vectors
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

OPENAI_PATHS = "/v1"
CUT_HEADER = "x-truncated-positions"
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


class Refusal(Exception):
    """A request that is not served, and why."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        openai_status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        # OpenAI's own code for what it cannot read is 400, not 422.
        self.openai_status = openai_status or (400 if status == 422 else status)
        self.headers = dict(headers or {})


def refusal_of(error: BGEError) -> Refusal:
    """Turn what the encoder raised into an answer; what is not the client's doing keeps its details to itself."""
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    if isinstance(error, HostError):
        again = {"retry-after": str(max(1, round(error.retry_after)))} if error.retry_after else {}
        return Refusal(status, f"the model's host failed ({type(error).__name__})", headers=again)
    if isinstance(error, InputError | ConfigError):
        return Refusal(status, str(error))
    return Refusal(status, f"the model failed ({type(error).__name__})")


def trouble_of(error: BaseException) -> str:
    """Describe an error for the operator's log, without words that may have come from a text or hold a key."""
    if isinstance(error, HostError):
        return f"{type(error).__name__} at {error.provider or 'the host'}, status {error.status}"
    if isinstance(error, ModelLoadError | MissingExtraError | ConfigError):
        return f"{type(error).__name__}: {error}"
    return type(error).__name__


def error_response(path: str, refusal: Refusal, detail: Any = None) -> Response:
    """Answer with an error in OpenAI's shape under /v1, and as ``{"detail": ...}`` elsewhere.

    The JSON is pure ASCII, so that a lone surrogate in what a client sent cannot break it.
    """
    body: dict[str, Any]
    status = refusal.status
    if path.startswith(OPENAI_PATHS):
        status = refusal.openai_status
        kind = "invalid_request_error" if status < 500 else "server_error"
        code = HTTPStatus(status).phrase.lower().replace(" ", "_")
        body = {"error": {"message": refusal.message, "type": kind, "param": refusal.param, "code": code}}
    else:
        body = {"detail": detail or refusal.message}
    return Response(json.dumps(body), status, refusal.headers, "application/json")


def json_response(content: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    """Answer 200 with ``content``, in which numpy arrays may stand."""
    return Response(
        orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), headers=headers, media_type="application/json"
    )


def embedding_rows(vectors: Vectors, encoding: str | None) -> list[dict[str, Any]]:
    """Return OpenAI's ``data``: one object per vector, as numbers or as base64 of little-endian float32."""
    rows: Iterable[Any] = vectors
    if encoding == "base64":
        rows = [base64.b64encode(row).decode() for row in vectors.astype("<f4", copy=False)]
    return [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)]


def cut_header(cut: Sequence[int]) -> dict[str, str]:
    """Name the texts that were longer than the model reads, so that a cut is not silent over the wire either."""
    return {CUT_HEADER: ",".join(map(str, cut[:100]))} if cut else {}
