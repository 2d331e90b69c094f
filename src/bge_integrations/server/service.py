"""Between the routes and the encoder: bounds, counts, and no more waiting texts than agreed."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from time import monotonic
from typing import Any

import numpy as np

from ..catalog import PROVIDERS
from ..catalog.records import ModelCard, Role
from ..core.encoder import Encoder, Vectors
from ..errors import BGEError, ConfigError, InputError
from .answers import Refusal, refusal_of, trouble_of
from .limits import Limits
from .metrics import Metrics
from .tokens import read_characters, token_counter

log = logging.getLogger("bge_integrations.server")


@dataclass(frozen=True)
class Embedded:
    """What one request got.

    Attributes:
        vectors: one row per text.
        tokens: tokens that the model read; 0 where nothing here can count them.
        cut: positions of texts longer than the model reads.
    """

    vectors: Vectors
    tokens: int
    cut: list[int]


class Service:
    """An encoder behind bounds."""

    def __init__(self, encoder: Encoder, limits: Limits, metrics: Metrics, names: Sequence[str] = ()) -> None:
        self.encoder = encoder
        self.limits = limits
        self.metrics = metrics
        self.ready = False
        self.trouble = "the model has not answered yet"
        self._names = known_names(encoder.card, names)
        self._count = token_counter(encoder)
        self._waiting = 0
        self._pace: deque[tuple[float, int]] = deque(maxlen=64)

    def check_model(self, name: str) -> None:
        """Refuse a name that is not this model's: no answer is better than another model's vectors.

        Raises:
            Refusal: 404.
        """
        if name.lower() in self._names:
            return
        shown = name if len(name) <= 100 else f"{name[:100]}…"
        raise Refusal(404, f"model {shown!r} is not served here; {self.encoder.card.id!r} is", param="model")

    async def embed(self, texts: Sequence[str], role: Role) -> Embedded:
        """Embed the texts of one request.

        Raises:
            Refusal: too much, too many waiting, a text that cannot be embedded, or the encoder failed.
        """
        check_size(texts, self.limits)
        counts = await self.count(texts, role) or []
        if sum(counts) > self.limits.tokens:
            raise too_much(sum(counts), "tokens", self.limits.tokens)
        vectors = await self._encode(texts, role) if texts else np.empty((0, self.encoder.card.dimensions), np.float32)
        limit = self.encoder.card.max_tokens
        done = Embedded(vectors, sum(min(n, limit) for n in counts), [i for i, n in enumerate(counts) if n > limit])
        self._record(done, role)
        return done

    async def count(self, texts: Sequence[str], role: Role) -> list[int] | None:
        """Count each text's tokens as the model would get them, uncut; None where nothing here can count."""
        if self._count is None or not texts:
            return None
        formatted = self.format(texts, role)
        try:
            # 20,000 characters take about 5 ms, the first text of all the loading of the tokenizer: not on this loop.
            if self.ready and sum(map(len, formatted)) < 20_000:
                return self._count(formatted)
            return await asyncio.to_thread(self._count, formatted)
        except BGEError as error:
            raise self._refusal(error) from error

    def format(self, texts: Sequence[str], role: Role) -> list[str]:
        """Return what the model is to read for each text.

        Raises:
            Refusal: the model has no default query instruction.
        """
        instruction = getattr(self.encoder, "query_instruction", None)
        try:
            return [self.encoder.card.format(text, role, instruction) for text in texts]
        except ConfigError as error:
            raise refusal_of(error) from error

    async def count_and_cut(self, texts: Sequence[str], role: Role) -> dict[str, Any]:
        """Count tokens and find where the model stops reading.

        Raises:
            Refusal: too much for one request.
        """
        check_size(texts, self.limits)
        limit = self.encoder.card.max_tokens
        counts = await self.count(texts, role)
        over = [i for i, n in enumerate(counts or []) if n > limit]
        read: list[int | None] = [None] * len(texts)
        for i in over:
            read[i] = await asyncio.to_thread(read_characters, texts[i], partial(self._count_formatted, role), limit)
        return {"counts": counts, "max_tokens": limit, "read_characters": read}

    def _count_formatted(self, role: Role, texts: Sequence[str]) -> list[int]:
        return (self._count and self._count(self.format(texts, role))) or []

    def info(self) -> dict[str, Any]:
        """Return what is served, and the limits, as plain data."""
        card = self.encoder.card
        chosen = getattr(self.encoder, "query_instruction", None)
        return {
            "model": card.id,
            "revision": card.revision,
            "dimension": card.dimensions,
            "max_tokens": card.max_tokens,
            "pooling": card.pooling,
            "query_instruction": card.query_instruction if chosen is None else chosen,
            "space": self.encoder.space,
            "counts_tokens": self._count is not None,
            "limits": asdict(self.limits),
        }

    async def warm_up(self, pause: float = 5.0) -> None:
        """Ask the model for one vector until it answers."""
        while not self.ready:
            try:
                await self.encoder.aencode(["Are you there?"], role="document")
                self.ready = True
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer to /ready
                self.trouble = f"the model does not answer ({type(error).__name__})"
                log.warning("the model does not answer: %s", trouble_of(error))
                await asyncio.sleep(pause)

    async def _encode(self, texts: Sequence[str], role: Role) -> Vectors:
        self._admit(len(texts))
        try:
            async with asyncio.timeout(self.limits.answer_seconds):
                vectors = await self.encoder.aencode(texts, role=role, on_batch=self._on_batch)
        except BGEError as error:
            raise self._refusal(error) from error
        except TimeoutError as error:
            raise Refusal(504, f"the model did not answer within {self.limits.answer_seconds:g} s") from error
        finally:
            self._leave(len(texts))
        if vectors.shape != (len(texts), self.encoder.card.dimensions) or not np.isfinite(vectors).all():
            raise Refusal(502, "the model did not give a finite vector for every text")
        return np.ascontiguousarray(vectors, np.float32)

    def _refusal(self, error: BGEError) -> Refusal:
        if not isinstance(error, InputError):
            log.warning("%s", trouble_of(error))
        return refusal_of(error)

    def _admit(self, texts: int) -> None:
        if self._waiting and self._waiting + texts > self.limits.queued_texts:
            wait = retry_after(self._waiting, self._pace, monotonic())
            raise Refusal(429, f"{self._waiting} texts are waiting already", headers={"retry-after": str(wait)})
        self._waiting += texts
        self.metrics.waiting.set(self._waiting)

    def _leave(self, texts: int) -> None:
        self._waiting -= texts
        self._pace.append((monotonic(), texts))
        self.metrics.waiting.set(self._waiting)

    def _on_batch(self, indices: Sequence[int], _: Vectors) -> None:
        self.metrics.batch_texts.observe(len(indices))

    def _record(self, done: Embedded, role: Role) -> None:
        self.ready = True
        self.metrics.request_texts.observe(len(done.vectors))
        self.metrics.texts.labels(role).inc(len(done.vectors))
        self.metrics.tokens.labels(role).inc(done.tokens)
        self.metrics.cut.inc(len(done.cut))


def known_names(card: ModelCard, more: Sequence[str] = ()) -> set[str]:
    """Return every spelling of a model, in lower case: its own, its short ones, those of hosts, and ``more``."""
    offers = (offer for provider in PROVIDERS for offer in provider.offers if offer.model == card.id)
    spellings = (spelling for offer in offers for spelling in (offer.wire, *offer.aliases))
    own = (card.id, card.id.rpartition("/")[2], *card.aliases)
    return {name.lower() for name in (*own, *spellings, *more)}


def check_size(texts: Sequence[str], limits: Limits) -> None:
    """Refuse what is too much for one request.

    Raises:
        Refusal: with the limit.
    """
    if len(texts) > limits.items:
        raise too_much(len(texts), "texts", limits.items)
    characters = sum(map(len, texts))
    if characters > limits.characters:
        raise too_much(characters, "characters", limits.characters)


def too_much(count: int, what: str, limit: int) -> Refusal:
    """Say that a request holds too much; under /v1 as a 413, which tells a client to send less from a plain mistake."""
    return Refusal(422, f"{count} {what} in one request are too many: at most {limit}", openai_status=413)


def retry_after(waiting: int, pace: Sequence[tuple[float, int]], now: float) -> int:
    """Say after how many seconds, 1 to 60, what waits now will be done at the pace of late."""
    if not pace:
        return 1
    seconds = max(now - pace[0][0], 0.001)
    return int(min(60, max(1, waiting * seconds / max(1, sum(texts for _, texts in pace)))))
