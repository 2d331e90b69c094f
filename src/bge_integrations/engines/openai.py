"""Any host that answers ``POST {base_url}/embeddings`` as OpenAI's does."""

from __future__ import annotations

from typing import Any

from ..cards import Role
from ..catalog import find_model
from ..encoder import Vectors
from ..errors import BadAnswerError, RequestRefusedError, UnknownModelError
from .answer import embeddings_of, read_json, vectors_of
from .call import Line
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
        answer = await self._post(line, texts, base64=bool(line.base64))
        if line.base64 and not _in_base64(answer):
            line.base64 = False
        return self._read(answer, len(texts))

    async def _probe(self, line: Line, texts: list[str]) -> tuple[Vectors, int]:
        line.base64 = False  # others go on in floats meanwhile
        try:
            answer = await self._post(line, texts, base64=True)
            read = self._read(answer, len(texts))
        except (BadAnswerError, RequestRefusedError):
            self.usage.add(requests=1)
            return self._read(await self._post(line, texts, base64=False), len(texts))
        line.base64 = _in_base64(answer)
        return read

    async def _post(self, line: Line, texts: list[str], *, base64: bool) -> Any:
        payload = {
            "model": self.endpoint.wire_model,
            "input": texts,
            "encoding_format": "base64" if base64 else "float",
        }
        # A float in JSON takes up to some 25 bytes; the rest is room for what hosts add.
        bound = len(texts) * (self.card.dimensions * 40 + 2_000) + 100_000
        return read_json(await line.connection.send("/embeddings", payload, bound))

    def _read(self, answer: Any, count: int) -> tuple[Vectors, int]:
        rows = embeddings_of(answer, count)
        self._check_model(answer.get("model"))
        return vectors_of(rows, self.card.dimensions), _tokens(answer)

    def _check_model(self, named: object) -> None:
        """Refuse an answer that names another model of the catalogue; any other name is the host's own affair."""
        if not isinstance(named, str) or named == self.endpoint.wire_model:
            return
        try:
            served = find_model(named)
        except (UnknownModelError, OSError):
            return
        if served.id != self.card.id and served.folder is None:
            raise BadAnswerError(f"the answer is {served.id!r}'s, asked for was {self.card.id!r}")


def _in_base64(answer: Any) -> bool:
    return all(isinstance(row["embedding"], str) for row in answer["data"])


def _tokens(answer: Any) -> int:
    usage = answer.get("usage")
    counted = usage.get("prompt_tokens", usage.get("total_tokens")) if isinstance(usage, dict) else None
    return counted if isinstance(counted, int) else 0
