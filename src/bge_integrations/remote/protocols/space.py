"""The BGE Embedding API Space: ``POST /embed {texts, normalize, is_query}``.

The server adds the instruction when ``is_query`` is true; the client then must not.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ...catalog.records import Role
from ...core.encoder import Vectors
from ...errors import BadAnswerError, BGEError, DeadlineError, HostError, HostUnavailableError
from ..engine import RemoteEngine
from ..host import Line
from ..transport import answer_bound
from ..vectors import check_count, check_no_error, read_answer, read_json, vectors_of

__all__ = ["SpaceEngine"]

HEALTH_SECONDS = 5.0


class SpaceEngine(RemoteEngine):
    """A Space, or this package's own server; with ``query_instruction=`` given, the client adds it instead."""

    def sent(self, texts: list[str], role: Role) -> list[str]:
        """Return what is sent for each text: without the instruction where the server adds it."""
        return texts if self._server_adds(role) else self.format(texts, role)

    def room(self, role: Role) -> int:
        """Return how many tokens of what is sent the model reads, less those that the server puts in front."""
        if not self._server_adds(role) or self.cutter is None:
            return self.card.max_tokens
        whole, alone = self.cutter.count([self.card.format("a", role), "a"])
        return self.card.max_tokens - (whole - alone)

    def _server_adds(self, role: Role) -> bool:
        return role == "query" and self.query_instruction is None

    async def ask(self, line: Line, texts: list[str], role: Role) -> tuple[Vectors, int]:
        """Send one request and return its unit vectors; a Space counts no tokens."""
        payload = {"texts": texts, "normalize": True, "is_query": self._server_adds(role)}
        body = await line.connection.send("/embed", payload, answer_bound(len(texts), self.card.dimensions))
        answer = read_answer(body)
        return vectors_of(self._rows(answer, len(texts)), self.card.dimensions), 0

    def _rows(self, answer: Any, count: int) -> list[Any]:
        check_no_error(answer, count)
        rows = answer.get("embeddings") if isinstance(answer, dict) else None
        if not isinstance(rows, list):
            raise BadAnswerError("the answer has no embeddings", positions=range(count), retryable=True)
        check_count(rows, count)
        self.check_model(answer.get("model"))
        stated = answer.get("dimension")
        if isinstance(stated, int) and stated != self.card.dimensions:
            raise BadAnswerError(
                f"the Space serves a model of {stated} dimensions, {self.card.id!r} has {self.card.dimensions}"
            )
        return rows

    async def explain(self, line: Line, error: HostError) -> HostError:
        """Say of a Space that does not answer whether it sleeps."""
        if not isinstance(error, (HostUnavailableError, BadAnswerError)) or isinstance(error, DeadlineError):
            return error
        try:
            async with asyncio.timeout(HEALTH_SECONDS):
                health = read_json(await line.connection.send("/health", None, 100_000))
        except (BGEError, TimeoutError):
            state = "its /health does not answer either: it may be asleep, building or paused; open its page to wake it"
        else:
            loaded = isinstance(health, dict) and health.get("model_loaded")
            state = "its /health says it is up" if loaded else "its /health says that the model is not loaded yet"
        return error.add(f"; {state}")
