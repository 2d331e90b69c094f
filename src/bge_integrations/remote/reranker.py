"""The reranker at a host: truncates pairs, finds out how the host is spoken to, and brings its scores to one scale."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from ..catalog.records import RerankerCard
from ..catalog.rerank_hosts import RerankHost
from ..core.batches import Stream
from ..core.checks import Blank, Truncate, refuse_truncation
from ..core.outputs import check_scores
from ..core.pairs import PairTokenizer
from ..core.reranker import Pair, Placed, Reranker
from ..errors import (
    BGEError,
    HostError,
)
from .call import Call
from .deadline import Deadline
from .endpoint import Endpoint, HostLimits
from .host import HostSession
from .host_client import HostClient
from .score_exchange import ScoreExchange

__all__ = ["RemoteReranker"]

_SLICE = 256  # pairs that are tokenised between two looks at the clock


class RemoteReranker(HostClient, Reranker):
    """A reranker at a host.

    Args:
        card: the model.
        endpoint: the host.
        host: the record of its dialect; None to ask the host which server it is.
        limits: bounds on requests and on waiting.
        blank: ``"error"`` refuses a blank query.
        truncate: ``"warn"`` truncates over-long pairs, here where the tokenizer is on this machine; or ``"error"``.
        tokenizer: a ``tokenizer.json``, its folder, or a ``tokenizers.Tokenizer``.
        verify: compare two published pairs before the first request, whatever is known about the host.
        variant: what sets the scores apart from the model's own.
        rate_limiter: a rate limiter of LangChain or LlamaIndex.
    """

    def __init__(
        self,
        card: RerankerCard,
        endpoint: Endpoint,
        *,
        host: RerankHost | None = None,
        limits: HostLimits | None = None,
        blank: Blank = "error",
        truncate: Truncate = "warn",
        tokenizer: Any = None,
        verify: bool = False,
        variant: str = "",
        rate_limiter: Any = None,
    ) -> None:
        self.card: RerankerCard = card
        self.endpoint, self.limits = endpoint, limits or HostLimits()
        self.host, self.verify, self.variant = host, verify, variant
        self.blank, self.truncate = blank, truncate
        self.open(tokenizer, rate_limiter)

    def _start(self) -> None:
        super()._start()
        self._exchange: ScoreExchange | None = None
        self._pairs_cutter: PairTokenizer | None = None
        self.longest = 0

    def __repr__(self) -> str:
        return f"RemoteReranker({self.describe()})"

    def describe(self) -> dict[str, Any]:
        """Return where and as what the model is asked for, and on which scale the host answers, without secrets."""
        exchange = self._exchange
        host = exchange.host if exchange else self.host
        scale = exchange.scale if exchange else host and host.scale
        exact = {} if scale != "sigmoid" else {"note": "logits are taken back from sigmoids: 0.0 and 1.0 tie"}
        return {
            **super().describe(),
            "provider": self.endpoint.name,
            "dialect": host.dialect if host else "detected at first use",
            "scale": scale or "measured at first use",
            **exact,
            "host": urlsplit(self.endpoint.base_url).hostname,
            "base_url": self.endpoint.address,
            "wire_model": self.endpoint.wire_model,
            **({"verify": "first-use"} if self.verify else {}),
            **({"max_inputs": exchange.session.limits.inputs} if exchange else {}),
        }

    def batches(self, pairs: list[Pair], stream: Stream) -> None:
        """Begin to send checked pairs and return at once.

        Raises:
            MissingKeyError: the host needs a key and none was found.
            ConfigError: the key cannot be sent.
        """
        self.launch(partial(self._send, pairs, stream), stream)

    def raw_scores(self, query: str, passages: list[str]) -> list[float]:
        """Return a host's scores of one request as they came, on whatever scale, once and unjudged.

        Raises:
            HostError: the host could not be reached, refused, or gave no score for each passage.
        """

        async def ask() -> list[float]:
            exchange = self._exchange_of(self._here())
            async with Deadline(self.limits):
                await exchange.identify()
                pairs = [exchange.templated(Pair(query, passage)) for passage in passages]
                answer = await exchange.request(pairs[0].query, [pair.passage for pair in pairs])
            scores: list[float] = check_scores(answer.scores, len(passages)).tolist()
            return scores

        try:
            return self._loop.run(ask()).result()
        except HostError as error:
            raise self._complete(error) from None

    async def _send(self, pairs: list[Pair], stream: Stream) -> None:
        exchange = self._exchange_of(self._here())
        try:
            async with Deadline(self.limits) as deadline:
                cut, long, tokens = await self._truncated(pairs, deadline)
                if self.truncate == "error":
                    refuse_truncation(long, model=self.card.id, max_tokens=self.card.max_tokens)
                exchange.counted = self._pairs_cutter is not None
                await exchange.prepare()
                sent = [exchange.templated(pair) for pair in cut]
                await self._send_all(exchange, deadline, stream, sent, long, tokens)
        except HostError as error:
            raise self._complete(error) from None

    def _exchange_of(self, session: HostSession) -> ScoreExchange:
        if self._exchange is None or self._exchange.session is not session:
            self._exchange = ScoreExchange(
                session, self.endpoint, self.card, self.usage,
                host=self.host, truncate=self.truncate == "warn", verify=self.verify,
            )  # fmt: skip
        return self._exchange

    async def _send_all(
        self,
        exchange: ScoreExchange,
        deadline: Deadline,
        stream: Stream,
        pairs: list[Pair],
        long: list[int],
        tokens: list[int],
    ) -> None:
        """Send the pairs of each query, all queries at once; the session bounds the requests in flight.

        Raises:
            HostError: the host failed at one of them; the others were finished all the same.
        """
        queries: dict[str, list[int]] = {}
        for position, pair in enumerate(pairs):
            queries.setdefault(pair.query, []).append(position)
        was_long = set(long)

        async def send(query: str, places: list[int]) -> None:
            call = Call(
                exchange.session,
                self.limits,
                deadline,
                partial(exchange.send, query),
                Placed(stream, [[place] for place in places]),
                texts=[pairs[place].passage for place in places],
                tokens=[tokens[place] for place in places],
                truncated=[i for i, place in enumerate(places) if place in was_long],
                on_retry=partial(self.usage.add, retries=1),
            )
            try:
                await call.run()
            except BGEError as error:
                raise _without(query, error).at(places) from None

        # With return_exceptions, the other queries' requests are finished: they are paid for.
        results = await asyncio.gather(*(send(*one) for one in queries.items()), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _truncated(self, pairs: list[Pair], deadline: Deadline) -> tuple[list[Pair], list[int], list[int]]:
        """Return what is sent, the positions of pairs that were truncated, and tokens of each pair, or a guess."""
        cutter = self._pairs_cutter or await asyncio.to_thread(self._find_cutter)
        if cutter is None:
            return pairs, [], [len(pair) // 4 + 4 for pair in pairs]
        whole: list[Pair] = []
        long: list[int] = []
        tokens: list[int] = []
        for start in range(0, len(pairs), _SLICE):
            part, over, counts = await asyncio.to_thread(cutter.cut_pairs, pairs[start : start + _SLICE])
            whole += part  # in place: a sum would copy all slices so far, on the event loop
            long += [start + i for i in over]
            tokens += counts
            deadline.progress()
        self.longest = max(self.longest, *tokens)
        return whole, long, tokens

    def _find_cutter(self) -> PairTokenizer | None:
        text = self.cutter
        # A template adds tokens around both texts, which a tokenizer of plain pairs does not count.
        if text is not None and self.card.passage_template == "{text}":
            self._pairs_cutter = PairTokenizer.of(text, self.card.max_tokens)
        return self._pairs_cutter


def _without(query: str, error: BGEError) -> BGEError:
    """Return an error without the query, which a host may repeat in its message."""
    if len(query) < 8 or query not in error.message:
        return error
    other = error.add("")
    other.message = error.message.replace(query, "…")
    other.args = (other.message,)
    return other
