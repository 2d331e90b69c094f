"""Any host that answers ``POST {base_url}/embeddings`` as OpenAI's does."""

from __future__ import annotations

from typing import Any

from ..cards import Role
from ..catalog import known_model
from ..encoder import Vectors
from ..errors import BadAnswerError, RequestRefusedError
from .answer import embeddings_of, read_json, vectors_of
from .line import Line
from .remote import RemoteEngine

__all__ = ["OpenAIEngine"]

PROBE_AFTER = 2
"""Requests answered in floats before base64, two to four times as fast, is tried at a host that is not known."""


class OpenAIEngine(RemoteEngine):
    """An OpenAI-compatible host: raw strings, ``encoding_format`` always sent, ``dimensions`` never."""

    async def ask(self, line: Line, texts: list[str], role: Role) -> tuple[Vectors, int]:
        """Send one request and return its unit vectors and the tokens that the host counted."""
        del role
        if line.base64 is None and line.answered >= PROBE_AFTER and len(texts) > 1:
            return await self._probe(line, texts)
        body = await self._post(line, texts, base64=bool(line.base64))
        vectors, tokens, packed = self._read(body, len(texts))
        line.base64 = line.base64 and packed
        return vectors, tokens

    async def _probe(self, line: Line, texts: list[str]) -> tuple[Vectors, int]:
        line.base64 = False  # others go on in floats meanwhile
        try:
            vectors, tokens, packed = self._read(await self._post(line, texts, base64=True), len(texts))
        except (BadAnswerError, RequestRefusedError):
            self.usage.add(requests=1)
            return self._read(await self._post(line, texts, base64=False), len(texts))[:2]
        line.base64 = packed
        return vectors, tokens

    async def _post(self, line: Line, texts: list[str], *, base64: bool) -> bytes:
        payload = {
            "model": self.endpoint.wire_model,
            "input": texts,
            "encoding_format": "base64" if base64 else "float",
        }
        # A float in JSON takes up to some 25 bytes; the rest is room for what hosts add.
        bound = len(texts) * (self.card.dimensions * 40 + 2_000) + 100_000
        return await line.connection.send("/embeddings", payload, bound)

    def _read(self, body: bytes, count: int) -> tuple[Vectors, int, bool]:
        """Return unit vectors, the tokens that were counted, and whether they came in base64."""
        answer = read_json(body)
        rows = embeddings_of(answer, count)
        self._check_model(answer.get("model"))
        packed = all(isinstance(row, str) for row in rows)
        return vectors_of(rows, self.card.dimensions, body=b"" if packed else body), _tokens(answer), packed

    def _check_model(self, named: object) -> None:
        """Refuse an answer that names another model of the catalogue; any other name is the host's own affair."""
        if not isinstance(named, str) or named == self.endpoint.wire_model:
            return
        served = known_model(named)
        if served is not None and served.id != self.card.id:
            raise BadAnswerError(f"the answer is {served.id!r}'s, asked for was {self.card.id!r}")


def _tokens(answer: Any) -> int:
    usage = answer.get("usage")
    counted = usage.get("prompt_tokens", usage.get("total_tokens")) if isinstance(usage, dict) else None
    return counted if isinstance(counted, int) else 0
