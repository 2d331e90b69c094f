"""One request for scores and its answer: which server it is, on which scale it answers, and whether that is right."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..catalog.records import RerankerCard
from ..catalog.rerank_hosts import DIALECTS, RerankHost, Scale
from ..catalog.rerankers import known_reranker
from ..catalog.score_values import published_scores
from ..core.outputs import Rows, check_scores
from ..core.reranker import Pair
from ..core.score_scale import judge_scores, logits_of
from ..core.usage import Usage
from ..errors import (
    BadAnswerError,
    BGEWarning,
    ConfigError,
    HostError,
    NotServedError,
    SpaceMismatchError,
    UnverifiedWarning,
    warn,
)
from .endpoint import Endpoint
from .host import HostSession
from .identify import ask_server
from .protocols.rerank import RERANK_PROTOCOLS, RerankAnswer, RerankProtocol, ScoreRequest
from .responses import error_in, quote
from .vectors import read_json

__all__ = ["ScoreExchange"]

_TEMPLATED = ("vllm", "vllm-score")
"""Dialects of servers that read query and passage as they are, so that a template can be put in from here."""

Numbers = NDArray[np.float64]


class ScoreExchange:
    """Asks one host for scores, and keeps what is learned about it, for one session.

    Args:
        session: connections, limits and slots.
        endpoint: the host.
        card: the model.
        usage: counts requests.
        host: the record of its dialect; None to ask the host which server it is.
        truncate: whether the host is to truncate pairs that are too long.
        verify: compare two published pairs first, whatever is known about the host.

    Attributes:
        host: the record, once it is known.
        scale: of the host's scores; None until it is measured.
        counted: whether the tokens of pairs are counted here, or guessed.
    """

    def __init__(
        self,
        session: HostSession,
        endpoint: Endpoint,
        card: RerankerCard,
        usage: Usage,
        *,
        host: RerankHost | None,
        truncate: bool,
        verify: bool,
        counted: bool = False,
    ) -> None:
        self.counted = counted
        self.session, self.host = session, host
        self.scale: Scale | None = host.scale if host else None
        self._endpoint, self._card, self._usage = endpoint, card, usage
        self._truncate, self._verify = truncate, verify
        self._path = 0  # which of the dialect's paths the host answers at
        self._measured = False
        self._alone = False  # whether a pair's score is known not to depend on the others
        self._lock = asyncio.Lock()  # one call identifies and measures; others wait for what it finds

    @property
    def protocol(self) -> RerankProtocol:
        """How the host is spoken to, once that is known."""
        assert self.host is not None
        return RERANK_PROTOCOLS[self.host.dialect]

    async def prepare(self) -> None:
        """Find out how the host is spoken to and on which scale it answers, where that is not known.

        Raises:
            ConfigError: it is not said which server it is, and the host does not tell.
            NotServedError: the server cannot serve this model.
            SpaceMismatchError: its scores are not this model's.
        """
        async with self._lock:
            dialect = (await self.identify()).dialect
            if self._card.passage_template != "{text}" and dialect not in (*_TEMPLATED, "xinference"):
                raise NotServedError(f"{self._card.id!r} is served only by vLLM and Xinference, not by {dialect!r}")
            if not self._measured and (self._verify or self.scale is None):
                await self._measure()

    async def identify(self) -> RerankHost:
        """Return the record of the host's dialect; asks the host where it is not known."""
        if self.host is None:
            self.host = await self._find_dialect()
            self.scale = self.host.scale
        return self.host

    def templated(self, pair: Pair) -> Pair:
        """Return what is sent for a pair; Xinference puts a model's template in by itself."""
        query, passage = self._card.query_template, self._card.passage_template
        if query == passage == "{text}" or (self.host is not None and self.host.dialect == "xinference"):
            return pair
        return Pair(query.replace("{text}", pair.query), passage.replace("{text}", pair.passage))

    async def _find_dialect(self) -> RerankHost:
        """Ask a server which one it is, by what only it answers."""
        server, about = await ask_server(self.session.transport, self._endpoint.root, DIALECTS)
        if server is not None:
            if server == "tei":
                self._read_info(about)
            return DIALECTS[server]
        raise ConfigError(
            f"{self._endpoint.address} does not say which server it is: pass dialect=, one of {', '.join(DIALECTS)}"
        )

    def _read_info(self, info: dict[str, Any]) -> None:
        kind, cap = info.get("model_type"), info["max_client_batch_size"]
        if isinstance(kind, dict) and "reranker" not in kind and "classifier" not in kind:
            raise NotServedError(f"{self._endpoint.name} runs {info.get('model_id')!r}, which is not a reranker")
        if isinstance(cap, int) and 0 < cap < self.session.limits.inputs:
            self.session.limits.inputs = cap

    async def _measure(self) -> None:
        """Compare two published pairs with what the host gives for them.

        Raises:
            SpaceMismatchError: these are not the model's scores; none of the caller's texts was sent.
        """
        published = published_scores(self._card)
        if not published:
            if self._verify or self.scale is None:
                warn(
                    f"no scores of {self._card.id!r} are published: {self._endpoint.name} is used unverified, and its "
                    f"scores are taken as {self.scale or 'sigmoid'}s",
                    UnverifiedWarning,
                )
            self.scale, self._measured = self.scale or "sigmoid", True
            return
        pairs = [self.templated(Pair(published[0].query, passage)) for passage in published[0].passages]
        try:
            answer = await self.request(pairs[0].query, [pair.passage for pair in pairs])
            scores = check_scores(answer.scores, len(pairs)).tolist()
        except HostError as error:
            raise error.at([[]] * len(pairs)) from None  # these texts are none of the caller's
        found = judge_scores(self._card, scores)
        assert found is not None
        if found.scale is None:
            raise SpaceMismatchError(
                f"{self._endpoint.name} does not return {self._card.id!r}'s scores: {found.cause} (off by "
                f"{found.off:.2f} in the logit of two published pairs); `bge verify` tells more. None of your "
                "texts was sent",
                model=self._card.id,
                verdict=found.cause,
            )
        if found.cause:
            warn(f"{self._endpoint.name} serves {self._card.id!r} as {found.cause}", BGEWarning)
        self.scale, self._measured = found.scale, True

    async def send(self, query: str, passages: list[str], tokens: int) -> tuple[Rows, int]:
        """Return the logits of passages, and the tokens that the host counted."""
        answer = await self.request(query, passages, paced=True)
        try:
            scores = check_scores(answer.scores, len(passages))
        except BadAnswerError as error:
            error.retryable = True
            raise
        if bool(((scores >= 0) & (scores <= 1)).all()):
            await self._check_fractions(query, passages, scores)
        elif self.scale == "sigmoid":
            raise BadAnswerError(
                f"scores from {scores.min():.3g} to {scores.max():.3g} were returned, but this host is known "
                "to return 0 to 1: is dialect= right, and is the model a reranker?"
            )
        assert self.scale is not None
        counted = answer.tokens or (tokens if self.counted else 0)
        return logits_of(scores, self.scale).astype(np.float32), counted

    async def _check_fractions(self, query: str, passages: list[str], scores: Numbers) -> None:
        """Check scores between 0 and 1: is the assumed scale right, and are they not a softmax over the list?

        Raises:
            SpaceMismatchError: the host normalises over the list, or gives no reranker's scores.
        """
        if self.scale == "logit":
            async with self._lock:
                if not self._measured:  # older servers ignore the wish for raw scores
                    await self._measure()
        if self._alone or len(passages) < 2 or abs(scores.sum() - 1) > 1e-3:
            return
        # A passage alone has a softmax of 1, whatever it is: the lowest score would differ most.
        least = int(scores.argmin())
        again = await self.request(query, [passages[least]])
        alone = float(check_scores(again.scores, 1)[0])
        if abs(alone - scores[least]) > 0.02:
            raise SpaceMismatchError(
                f"{self._endpoint.name} normalises over the list (softmax): passage {least} scores "
                f"{scores[least]:.3f} among {len(passages)} and {alone:.3f} alone, so that scores of two "
                "requests cannot be compared; switch that off at the server, or use another host",
                model=self._card.id,
                verdict="softmax",
            )
        self._alone = True

    async def request(self, query: str, passages: list[str], *, paced: bool = False) -> RerankAnswer:
        """Send one request to the first of the dialect's paths that the host knows, and read the answer.

        Args:
            query: of all passages.
            passages: as they are sent.
            paced: the rate limiter has been asked already, as ``Call`` does.
        """
        request = ScoreRequest(query, passages, self._endpoint.wire_model, self._truncate)
        size = len(query.encode()) + sum(len(passage.encode()) for passage in passages)
        bound = 2**20 + 12 * size + 500 * len(passages)  # some send the passages back, each letter as \uXXXX
        missing: HostError | None = None
        for place in range(self._path, len(self.protocol.paths)):
            path = self.protocol.paths[place].replace("{model}", self._endpoint.wire_model)
            if not paced or missing:
                await self.session.rate_limiter.acquire(size // 4)
            self._count_request()
            try:
                body = await self.session.transport.send(path, self.protocol.payload(request), bound)
            except HostError as error:
                if error.status not in (404, 405):
                    raise
                missing = missing or error
                continue
            self._path = place
            return self._read(body, len(passages))
        assert missing is not None
        raise missing

    def _count_request(self) -> None:
        price = self.host.usd_per_thousand_requests if self.host else None
        self._usage.add(requests=1, **({"usd": price / 1000} if price else {}))

    def _read(self, body: bytes, count: int) -> RerankAnswer:
        content = read_json(body)
        try:
            answer = self.protocol.parse(content, count)
        except BadAnswerError as error:
            # The words of an error that came with status 200 say more than what is missing.
            said = error_in(content, body, self._endpoint)
            if said is not None:
                raise said from None
            raise (
                error if error.positions else error.add(f"; it begins with {quote(body, self._endpoint)!r}")
            ) from None
        served = known_reranker(answer.model) if isinstance(answer.model, str) else None
        if served is not None and answer.model != self._endpoint.wire_model and served.id != self._card.id:
            raise BadAnswerError(f"the response is from {served.id!r}, but {self._card.id!r} was requested")
        return answer
