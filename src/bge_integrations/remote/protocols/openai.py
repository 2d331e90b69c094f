"""Any host that answers ``POST {base_url}/embeddings`` as OpenAI's does."""

from __future__ import annotations

from typing import Any

from ...catalog.records import Role
from ...core.encoder import Vectors
from ...errors import BadAnswerError, HostError, RepairWarning, RequestRefusedError, TooLargeError, warn
from ..engine import RemoteEngine
from ..host import Line
from ..transport import answer_bound
from ..vectors import embeddings_of, read_answer, read_json, vectors_of

__all__ = ["OpenAIEngine"]

PROBE_AFTER = 2
"""Requests answered in floats before base64, two to four times as fast, is tried at a host that is not known."""


class OpenAIEngine(RemoteEngine):
    """An OpenAI-compatible host: raw strings, ``encoding_format`` always sent, ``dimensions`` never."""

    async def ask(self, line: Line, texts: list[str], role: Role) -> tuple[Vectors, int]:
        """Send one request and return its unit vectors and the tokens that the host counted."""
        del role
        if line.base64 is None and line.answered >= PROBE_AFTER and len(texts) > 1:
            return await self._try_base64(line, texts)
        if line.base64:
            return await self._in_base64(line, texts)
        return (await self._post(line, texts, "float"))[:2]

    async def _try_base64(self, line: Line, texts: list[str]) -> tuple[Vectors, int]:
        line.base64 = False  # others go on in floats meanwhile
        try:
            vectors, tokens, packed = await self._post(line, texts, "base64")
        except (BadAnswerError, RequestRefusedError) as error:
            if isinstance(error, TooLargeError):
                line.base64 = None  # says nothing about base64
                raise
            return await self._in_floats(line, texts)
        except HostError:
            line.base64 = None
            raise
        line.base64 = packed
        return vectors, tokens

    async def _in_base64(self, line: Line, texts: list[str]) -> tuple[Vectors, int]:
        try:
            vectors, tokens, packed = await self._post(line, texts, "base64")
        except (BadAnswerError, RequestRefusedError) as error:
            if isinstance(error, TooLargeError):
                raise
            found = await self._in_floats(line, texts)
            line.base64 = False  # floats went well where base64 did not
            return found
        line.base64 = packed
        return vectors, tokens

    async def _in_floats(self, line: Line, texts: list[str]) -> tuple[Vectors, int]:
        self.usage.add(requests=1)
        return (await self._post(line, texts, "float"))[:2]

    async def _post(self, line: Line, texts: list[str], encoding: str) -> tuple[Vectors, int, bool]:
        payload = {"model": self.endpoint.wire_model, "input": texts, "encoding_format": encoding}
        body = await line.connection.send("/embeddings", payload, answer_bound(len(texts), self.card.dimensions))
        return self._read(line, read_json(body) if encoding == "base64" else read_answer(body), len(texts))

    def _read(self, line: Line, answer: Any, count: int) -> tuple[Vectors, int, bool]:
        """Return unit vectors, the tokens that were counted, and whether they came in base64."""
        rows, numbered = embeddings_of(answer, count)
        self.check_model(answer.get("model"))
        packed = all(isinstance(row, str) for row in rows)
        vectors = vectors_of(rows, self.card.dimensions)
        if not numbered and count > 1 and not line.told_unnumbered:
            line.told_unnumbered = True
            warn(
                f"{self.endpoint.name} sends rows without an index: they are used in the order they came", RepairWarning
            )
        return vectors, _tokens(answer), packed


def _tokens(answer: Any) -> int:
    usage = answer.get("usage")
    found = (usage.get("prompt_tokens"), usage.get("total_tokens")) if isinstance(usage, dict) else ()
    return next((tokens for tokens in found if type(tokens) is int and tokens > 0), 0)
