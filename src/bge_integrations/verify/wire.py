"""One plain request to a host and its answer as it came, without the engine's repairs."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

import numpy as np

from ..catalog.records import ModelCard, Provider
from ..core.encoder import Encoder, Vectors
from ..errors import BGEError
from ..remote.endpoint import is_loopback

# A host that is busy says so for a while; what it says about a request comes after.
_BUSY = (429, 502, 503, 504)
_TRIES = 4


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        status: HTTP status; 0 where there was no answer.
        body: the answer's JSON, or None.
        seconds: from the request's start to the answer's end.
        text: beginning of the body or of the error.
    """

    status: int
    body: Any
    seconds: float
    text: str = ""

    @property
    def rows(self) -> list[Any]:
        """The embeddings in the order of the texts: by ``index`` where the host gives one."""
        if not isinstance(self.body, Mapping):
            return []
        data = self.body.get("data", self.body.get("embeddings", []))
        if data and all(isinstance(row, Mapping) and isinstance(row.get("index"), int) for row in data):
            data = sorted(data, key=lambda row: row["index"])
        return [row.get("embedding") if isinstance(row, Mapping) else row for row in data]

    @property
    def in_order(self) -> bool:
        """Whether rows came in the order of their own indexes."""
        data = self.body.get("data", []) if isinstance(self.body, Mapping) else []
        indexes = [row.get("index", i) for i, row in enumerate(data) if isinstance(row, Mapping)]
        return indexes == sorted(indexes)

    @property
    def vectors(self) -> Vectors | None:
        """The embeddings as they came, or None where they are not rows of numbers of one length."""
        try:
            vectors = np.array(self.rows, np.float32)
        except (ValueError, TypeError):
            return None
        return vectors if vectors.ndim == 2 and vectors.size else None

    @property
    def prompt_tokens(self) -> int | None:
        """Tokens as the host counted them."""
        usage = self.body.get("usage") if isinstance(self.body, Mapping) else None
        tokens = usage.get("prompt_tokens") if isinstance(usage, Mapping) else None
        return tokens if isinstance(tokens, int) and tokens > 0 else None


class Wire:
    """Sends texts as documents to the endpoint of a remote engine."""

    def __init__(self, engine: Encoder, *, timeout: float = 60.0) -> None:
        endpoint: Any = engine.endpoint  # type: ignore[attr-defined]
        self.card: ModelCard = engine.card
        self.provider: Provider = endpoint.provider
        self.space = self.provider.protocol == "space"
        self.wire_model: str = endpoint.wire_model
        self._url = f"{endpoint.base_url.rstrip('/')}/{'embed' if self.space else 'embeddings'}"
        self._key = endpoint.key
        # A proxy of the network cannot reach this machine's own servers.
        local = is_loopback(urlsplit(endpoint.base_url).hostname or "")
        self._proxies = [ProxyHandler({})] if local else []
        self._timeout = timeout

    def post(self, texts: Sequence[str], *, encoding: str = "float") -> Answer:
        """Send one request; a busy host is asked again a few times, and nothing else is."""
        for attempt in range(_TRIES):
            answer = self._once(texts, encoding)
            if answer.status not in _BUSY:
                break
            time.sleep(0.2 * 2**attempt)
        return answer

    def _once(self, texts: Sequence[str], encoding: str) -> Answer:
        if self.space:
            payload: dict[str, Any] = {"texts": list(texts), "normalize": True, "is_query": False}
        else:
            payload = {"model": self.wire_model, "input": list(texts), "encoding_format": encoding}
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "bge-integrations"}
        if key := self._key():
            headers["Authorization"] = f"Bearer {key}"
        request = Request(self._url, json.dumps(payload).encode(), headers)
        start = time.perf_counter()
        try:
            with build_opener(_Stay, *self._proxies).open(request, timeout=self._timeout) as answer:
                status, raw = answer.status, answer.read()
        except HTTPError as error:
            status, raw = error.code, error.read()
        except (URLError, OSError) as error:
            status, raw = 0, f"{type(error).__name__}: {error}".encode()
        seconds = time.perf_counter() - start
        return Answer(status, _json(raw), seconds, raw[:200].decode("utf-8", "replace"))


class _Stay(HTTPRedirectHandler):
    """Follows no redirect: texts and key are for the host that was named."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Direct:
    """The same questions to an encoder that has no endpoint."""

    space = True

    def __init__(self, encoder: Encoder) -> None:
        self.card, self._encoder = encoder.card, encoder

    def post(self, texts: Sequence[str], *, encoding: str = "float") -> Answer:  # noqa: ARG002 - as Wire.post
        """Embed documents."""
        start = time.perf_counter()
        try:
            vectors = self._encoder.encode(texts, role="document")
        except BGEError as error:
            return Answer(0, None, time.perf_counter() - start, f"{type(error).__name__}: {error}"[:200])
        return Answer(200, {"embeddings": vectors.tolist()}, time.perf_counter() - start)


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return None


def decode(row: object) -> Vectors | None:
    """Read a base64 embedding, or None where it is not one."""
    if not isinstance(row, str):
        return None
    try:
        return np.frombuffer(base64.b64decode(row, validate=True), "<f4")
    except ValueError:
        return None
