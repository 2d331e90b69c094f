"""One plain request to a host and its answer as it came, without the engine's repairs."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..catalog.records import ModelCard, Provider
from ..core.encoder import Encoder, Vectors
from ..errors import BadAnswerError, BGEError, HostError, InputError
from ..remote.engine import RemoteEngine

# A host that is busy says so for a while; what it says about a request comes after.
_BUSY = (429, 502, 503, 504)
_TRIES = 4


@dataclass(frozen=True)
class RawAnswer:
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
    """Sends texts as documents to the endpoint of a remote engine, over its own connections."""

    def __init__(self, engine: RemoteEngine) -> None:
        self._engine = engine
        self.card: ModelCard = engine.card
        self.provider: Provider = engine.endpoint.provider
        self.space = self.provider.protocol == "space"
        self.wire_model: str = engine.endpoint.wire_model
        self._reached = False

    def post(self, texts: Sequence[str], *, encoding: str = "float") -> RawAnswer:
        """Send one request; a busy host is asked again a few times, and nothing else is.

        Raises:
            HostError: the host has never answered yet: nothing can be said of it.
        """
        for attempt in range(_TRIES):
            answer = self._once(texts, encoding)
            if answer.status not in _BUSY:
                break
            time.sleep(0.2 * 2**attempt)
        return answer

    def _once(self, texts: Sequence[str], encoding: str) -> RawAnswer:
        start = time.perf_counter()
        try:
            raw = self._engine.post(list(texts), encoding=encoding)
        except HostError as error:
            if error.status is None and not self._reached:
                raise
            self._reached = True
            return RawAnswer(error.status or 0, None, time.perf_counter() - start, str(error)[:300])
        self._reached = True
        return RawAnswer(200, _json(raw), time.perf_counter() - start, raw[:200].decode("utf-8", "replace"))


class Direct:
    """The same questions to an encoder that has no endpoint."""

    space = True

    def __init__(self, encoder: Encoder) -> None:
        self.card, self._encoder = encoder.card, encoder
        self._reached = False

    def post(self, texts: Sequence[str], *, encoding: str = "float") -> RawAnswer:  # noqa: ARG002 - as Wire.post
        """Embed documents.

        Raises:
            BGEError: the model cannot be loaded: nothing can be said of it.
        """
        start = time.perf_counter()
        try:
            vectors = self._encoder.encode(texts, role="document")
        except BGEError as error:
            if not self._reached and not isinstance(error, (BadAnswerError, InputError)):
                raise
            self._reached = True
            return RawAnswer(0, None, time.perf_counter() - start, f"{type(error).__name__}: {error}"[:200])
        self._reached = True
        return RawAnswer(200, {"embeddings": vectors.tolist()}, time.perf_counter() - start)


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
