"""Between the routes and the encoder: bounds, counts, a deadline, and a bounded queue."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import Context
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

from ..catalog import PROVIDERS
from ..catalog.records import ModelCard, OutputName, RerankerCard, Role
from ..catalog.rerank_hosts import RERANK_HOSTS
from ..core.encoder import Encoder
from ..core.outputs import Dense, Output, Rows
from ..core.reranker import Reranker
from ..errors import BGEError, ConfigError, HostError, InputError
from .limits import APIError, Limits, RequestQueue
from .metrics import Metrics
from .responses import api_error, log_text

log = logging.getLogger("bge_integrations.server")
T = TypeVar("T")


@dataclass(frozen=True)
class Embedded:
    """The result of one request.

    Attributes:
        rows: one per text; vectors where dense output alone was asked for.
        tokens: tokens that the model read; 0 where nothing here can count them.
        truncated: positions of texts longer than the model reads.
    """

    rows: Rows
    tokens: int
    truncated: list[int]


class Service:
    """An encoder behind bounds.

    Args:
        encoder: what embeds.
        limits: bounds on requests and on what waits.
        metrics: where work is counted.
        names: further names of the model.
        on_fatal: called with the error where the model cannot be loaded and waiting will not help.
        reranker: what reranks, if anything.
    """

    def __init__(
        self,
        encoder: Encoder,
        limits: Limits,
        metrics: Metrics,
        names: Sequence[str] = (),
        on_fatal: Callable[[BGEError], None] | None = None,
        reranker: Reranker | None = None,
    ) -> None:
        self.encoder, self.reranker = encoder, reranker
        self.reranker_names = {*names_of_reranker(reranker.card), *map(str.lower, names)} if reranker else set()
        self.limits = limits
        self.metrics = metrics
        self.ready = False
        self.trouble = "the model is loading"
        self.counts_tokens: bool | None = None  # known after the first count
        self._names = known_names(encoder.card, names)
        self._on_fatal = on_fatal or self._explain
        self._queue = RequestQueue(limits, metrics.waiting.set)
        # One thread: counting of large requests waits for its turn instead of taking every core from the model.
        self._counting = ThreadPoolExecutor(1, "bge-tokens")
        self._warming: asyncio.Task[None] | None = None

    def check_model(self, name: str) -> str:
        """Return the model's id for any of its names; no answer is better than another model's vectors.

        Raises:
            APIError: 404.
        """
        if name.lower() in self._names:
            return self.encoder.card.id
        shown = name if len(name) <= 100 else f"{name[:100]}…"
        raise APIError(404, f"model {shown!r} is not served here; {self.encoder.card.id!r} is", param="model")

    async def embed(
        self, texts: Sequence[str], role: Role, names: Sequence[OutputName] = ("dense",), *, truncate: bool = True
    ) -> Embedded:
        """Embed the texts of one request into these outputs.

        Args:
            texts: without any instruction.
            role: of all of them.
            names: of the outputs.
            truncate: False refuses texts that are too long, where they can be counted before anything is computed.

        Raises:
            APIError: too much, too many waiting, a text that cannot be embedded, an output that is not given, or the
                encoder failed.
        """
        limit = self.encoder.card.max_tokens
        async with self.admitted(texts):
            output = self.encoder.output_for(names)
            counts = await self._count(texts, role) or []
            self.limits.check_tokens(counts, multivector="multivector" in names)
            long = [i for i, n in enumerate(counts) if n > limit]
            if not truncate:
                self._refuse(long)
            rows, reported = await self._encode(texts, role, output)
        truncated = sorted({*long, *reported})
        if not truncate:
            self._refuse(truncated)
        done = Embedded(rows, sum(min(n, limit) for n in counts), truncated)
        self._record(done, role)
        return done

    def _refuse(self, long: Sequence[int]) -> None:
        if long:
            card = self.encoder.card
            raise APIError(413, f"text {long[0]} is too long: {card.id!r} reads {card.max_tokens} tokens")

    async def count(self, texts: Sequence[str], role: Role) -> dict[str, Any]:
        """Count tokens and find where the model stops reading.

        Raises:
            APIError: too much for one request, too many waiting, or too slow.
        """
        limit = self.encoder.card.max_tokens
        read: list[int | None] = [None] * len(texts)
        stop = threading.Event()

        def count(parts: list[str]) -> list[int]:
            if stop.is_set():
                raise DroppedError
            return self.encoder.count_tokens(self.encoder.format(parts, role))

        try:
            async with self.admitted(texts):
                counts = await self._count(texts, role)
                for i in [i for i, n in enumerate(counts or []) if n > limit]:
                    read[i] = await self._on_thread(read_characters, texts[i], count, limit)
        finally:
            stop.set()
        return {"counts": counts, "max_tokens": limit, "read_characters": read}

    @asynccontextmanager
    async def admitted(self, texts: Sequence[str]) -> AsyncIterator[None]:
        """Check a request's size, give it a place in the queue and a deadline, and turn errors into responses."""
        self.limits.check_size(texts)
        with self._queue.place(len(texts)):
            try:
                async with asyncio.timeout(self.limits.answer_seconds):
                    yield
            except BGEError as error:
                if not isinstance(error, InputError):
                    log.warning("%s", log_text(error))
                raise api_error(error) from error
            except TimeoutError as error:
                message = f"the model did not answer within {self.limits.answer_seconds:g} s"
                raise APIError(504, message) from error

    async def _count(self, texts: Sequence[str], role: Role) -> list[int] | None:
        """Return each text's tokens as the model would get them, before truncation; None where nothing can count."""
        if self.counts_tokens is False or not texts:
            return None
        formatted = self.encoder.format(texts, role)
        # 20,000 characters take about 5 ms; the first text takes as long as the tokenizer takes to load.
        if self.counts_tokens and sum(map(len, formatted)) < 20_000:
            return self.encoder.count_tokens(formatted)
        if self.counts_tokens is None and not await self.find_counter():
            return None
        return await self._on_thread(self.encoder.count_tokens, formatted)

    async def find_counter(self) -> bool:
        """Return whether the model's tokenizer is on this machine."""
        if self.counts_tokens is None:
            try:
                await self._on_thread(self.encoder.count_tokens, ["a"])
                self.counts_tokens = True
            except ConfigError:
                self.counts_tokens = False
        return self.counts_tokens

    async def _on_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._counting, work, *arguments)

    async def _encode(self, texts: Sequence[str], role: Role, output: Output) -> tuple[Rows, list[int]]:
        """Return rows and the positions of texts that the encoder truncated."""
        if not texts:
            return output.empty(0), []
        truncated: list[int] = []
        future = self.encoder.submit_rows(
            texts, role=role, output=output, on_batch=self._on_batch, on_truncated=truncated.extend
        )
        rows = await asyncio.wrap_future(future)
        if not isinstance(output, Dense):
            return rows, truncated
        if rows.shape != (len(texts), output.dimensions) or not np.isfinite(rows).all():
            raise APIError(502, "the model did not return a finite vector for every text")
        return np.ascontiguousarray(rows, np.float32), truncated

    def _on_batch(self, indices: Sequence[int], _: Rows) -> None:
        self.metrics.batch_texts.observe(len(indices))

    def _record(self, done: Embedded, role: Role) -> None:
        self.ready = True
        self.metrics.request_texts.observe(len(done.rows))
        self.metrics.texts.labels(role).inc(len(done.rows))
        self.metrics.tokens.labels(role).inc(done.tokens)
        self.metrics.truncated.inc(len(done.truncated))

    async def info(self) -> dict[str, Any]:
        """Return what is served, and the limits, as plain data."""
        card, chosen = self.encoder.card, self.encoder.query_instruction
        self.start_warming()
        if self.encoder.remote:  # at once; a local model's tokenizer may first have to be downloaded
            await self.find_counter()
        return {
            "model": card.id,
            "revision": card.revision,
            "dimension": card.dimensions,
            "max_tokens": card.max_tokens,
            "pooling": card.pooling,
            "query_instruction": card.query_instruction if chosen is None else chosen,
            "space": self.encoder.space,
            "outputs": list(self.encoder.outputs),
            "counts_tokens": self.counts_tokens is not False,
            "trouble": None if self.ready else self.trouble,
            "limits": asdict(self.limits),
            **({} if self.reranker is None else self._about_reranking(self.reranker)),
        }

    def _about_reranking(self, reranker: Reranker) -> dict[str, Any]:
        # The last two are TEI's: by them its clients, and ours, know that /rerank speaks its dialect.
        return {
            "reranker": {"model": reranker.card.id, "max_tokens": reranker.card.max_tokens, "space": reranker.space},
            "max_client_batch_size": self.limits.items - 1,
            "model_type": {"embedding": {"pooling": self.encoder.card.pooling}, "reranker": {}},
        }

    def start_warming(self) -> None:
        """Begin to load the model, once; an app that is mounted in another one gets no start event."""
        if self._warming is None:
            self._warming = asyncio.create_task(self._warm_up(), context=Context())  # without the request's id

    async def stop_warming(self) -> None:
        """Stop loading the model; the app may be started again."""
        if self._warming is not None:
            self._warming.cancel()
            await asyncio.wait({self._warming})
            self._warming = None

    async def _warm_up(self) -> None:
        """Ask the model for one vector until it answers, with pauses of 1 to 60 seconds."""
        pause = 1.0
        while not self.ready:
            try:
                await self.encoder.aencode(["Are you there?"], role="document")
                if self.reranker is not None:
                    await self.reranker.ascore("Are you there?", ["Yes."])
                self.ready = True
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer to /ready
                # A host may come back; a missing extra, folder or key will not.
                if isinstance(error, BGEError) and not isinstance(error, HostError):
                    self._on_fatal(error)
                    break
                self._explain(error)
                await asyncio.sleep(pause)
                pause = min(60.0, 2 * pause)

    def _explain(self, error: Exception) -> None:
        trouble = f"the model does not answer ({type(error).__name__})"
        if trouble != self.trouble:
            log.warning("the model does not answer: %s", log_text(error))
        self.trouble = trouble


class DroppedError(Exception):
    """The request that a count was for has ended."""


def known_names(card: ModelCard, more: Sequence[str] = ()) -> set[str]:
    """Return every spelling of a model, in lower case: its own, its short ones, those of hosts, and ``more``."""
    offers = (offer for provider in PROVIDERS for offer in provider.offers if offer.model == card.id)
    spellings = (spelling for offer in offers for spelling in (offer.wire, *offer.aliases))
    own = (card.id, card.id.rpartition("/")[2], *card.aliases)
    return {name.lower() for name in (*own, *spellings, *more)}


def names_of_reranker(card: RerankerCard) -> set[str]:
    """Return every spelling of a reranker, in lower case."""
    offers = (offer for host in RERANK_HOSTS for offer in host.offers if offer.model == card.id)
    own = (card.id, card.id.rpartition("/")[2], *card.aliases)
    return {name.lower() for name in (*own, *(offer.wire for offer in offers))}


def read_characters(text: str, count: Callable[[list[str]], list[int]], limit: int) -> int:
    """Return how many leading characters of ``text`` fit ``limit`` tokens, asking for 16 prefixes at a time.

    Begins with a short prefix and doubles it: the work depends on the limit, not on the length of the text.
    """
    low, high = 0, min(len(text), 8 * limit + 8)
    while high < len(text) and count([text[:high]])[0] <= limit:
        low, high = high, min(len(text), 2 * high)
    while high - low > 1:
        step = max(1, (high - low) // 16)
        ends = range(low + step, high, step)
        fits = [end for end, n in zip(ends, count([text[:end] for end in ends]), strict=True) if n <= limit]
        low = fits[-1] if fits else low
        high = min(high, low + step)
    return low
