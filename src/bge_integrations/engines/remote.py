"""What the engines for hosts share: requests in flight, one retry layer, caps that are learned, a deadline."""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from concurrent.futures import Future
from typing import Any

from ..background import BackgroundLoop
from ..cards import ModelCard, Role
from ..encoder import Blank, FutureEncoder, OnBatch, Truncate, Usage, Vectors, report_cut
from ..errors import (
    BadAnswerError,
    DeadlineError,
    HostError,
    TooLargeError,
)
from .call import Call, Line, retrying
from .cutter import TokenCutter, find_tokenizer
from .endpoint import Endpoint, Limits
from .plan_requests import RequestPlan

__all__ = ["Endpoint", "Limits", "RemoteEngine"]

log = logging.getLogger("bge_integrations.remote")


class RemoteEngine(FutureEncoder):
    """An encoder at a host; subclasses say what is sent and how the answer is read.

    Args:
        card: the model.
        endpoint: the host.
        limits: bounds on requests and on waiting.
        query_instruction: ``None`` for the model's own, ``""`` for none, other text as it is.
        blank: ``"error"`` refuses blank texts.
        truncate: ``"warn"`` cuts over-long texts where the tokenizer is on this machine; ``"error"`` refuses them.
        tokenizer: a ``tokenizer.json``, its folder, or a ``tokenizers.Tokenizer``.
        variant: what sets the vectors apart from the model's own.
        rate_limiter: a rate limiter of LangChain or LlamaIndex.
    """

    def __init__(
        self,
        card: ModelCard,
        endpoint: Endpoint,
        *,
        limits: Limits | None = None,
        query_instruction: str | None = None,
        blank: Blank = "error",
        truncate: Truncate = "warn",
        tokenizer: Any = None,
        variant: str = "",
        rate_limiter: Any = None,
    ) -> None:
        self.card, self.endpoint, self.limits = card, endpoint, limits or Limits()
        self.query_instruction, self.blank, self.variant = query_instruction, blank, variant
        self.truncate, self.tokenizer, self.rate_limiter = truncate, tokenizer, rate_limiter
        self.usage = Usage(usd=0.0 if self._price else None)
        self._start()

    def _start(self) -> None:
        self._loop = BackgroundLoop("bge-remote")
        self._line: Line | None = None
        self._cutter: TokenCutter | None = None
        self._looked = False

    def __getstate__(self) -> dict[str, Any]:
        made_here = {"_loop", "_line", "_cutter", "_looked"}
        return {name: value for name, value in self.__dict__.items() if name not in made_here}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.describe()})"

    @property
    def _price(self) -> float | None:
        offer = self.endpoint.provider.offer(self.card.id)
        return offer.usd_per_million_tokens if offer else None

    def describe(self) -> dict[str, Any]:
        """Return where and as what the model is asked for, without secrets."""
        at = {
            "provider": self.endpoint.name,
            "base_url": self.endpoint.base_url,
            "wire_model": self.endpoint.wire_model,
        }
        return {**super().describe(), **at}

    @property
    def cutter(self) -> TokenCutter | None:
        """The model's tokenizer where it is on this machine; looked for once."""
        if not self._looked:
            self._cutter, self._looked = find_tokenizer(self.card, self.tokenizer), True
        return self._cutter

    def start(self, texts: list[str], role: Role, on_batch: OnBatch | None) -> Future[Vectors]:
        """Begin to embed checked texts and return at once."""
        return self._loop.run(self._embed(self.sent(texts, role), role, on_batch))

    def sent(self, texts: list[str], role: Role) -> list[str]:
        """Return what is sent for each text, before it is cut."""
        return self.format(texts, role)

    def room(self, role: Role) -> int:
        """Return how many tokens of what is sent the model reads."""
        del role
        return self.card.max_tokens

    @abstractmethod
    async def ask(self, line: Line, texts: list[str], role: Role) -> tuple[Vectors, int]:
        """Send one request and return its unit vectors and the tokens that the host counted."""

    async def _embed(self, texts: list[str], role: Role, on_batch: OnBatch | None) -> Vectors:
        texts, tokens = self._cut(texts, role)
        call = Call(texts, tokens, role, self.card.dimensions, self.limits, on_batch)
        try:
            async with asyncio.timeout(self.limits.timeout):
                await self._work(call)
        except TimeoutError as error:
            if isinstance(error, HostError):
                raise call.mark(error) from None
            raise call.mark(self._late()) from None
        except HostError as error:
            raise call.mark(error) from None
        return call.rows

    def _cut(self, texts: list[str], role: Role) -> tuple[list[str], list[int]]:
        if self.cutter is None:
            return texts, [len(text.encode()) // 4 + 2 for text in texts]
        cut, long, counts = self.cutter.cut(texts, self.room(role))
        report_cut(long, model=self.card.id, max_tokens=self.card.max_tokens, truncate=self.truncate)
        return cut, counts

    def _here(self) -> Line:
        if self._line is None or self._line.loop is not asyncio.get_running_loop():
            self._line = Line(self.endpoint, self.limits, self.card, self.rate_limiter)
            self._loop.at_end(self._line.connection.close)
        return self._line

    async def _work(self, call: Call) -> None:
        line = self._here()
        plan = RequestPlan(
            [len(text.encode()) for text in call.texts], call.tokens, self.limits.max_bytes, self.limits.max_tokens
        )
        if not line.answered:
            # One request goes ahead: a wrong key or a small cap is learned once, not by all at a time.
            async with line.first:
                if not line.answered:
                    await self._step(line, call, plan)
        workers = min(self.limits.max_concurrency, len(call.texts))
        await asyncio.gather(*(self._worker(line, call, plan) for _ in range(workers)))
        if call.failure is not None:
            raise call.failure

    async def _worker(self, line: Line, call: Call, plan: RequestPlan) -> None:
        while await self._step(line, call, plan):
            pass

    async def _step(self, line: Line, call: Call, plan: RequestPlan) -> bool:
        # After a failure, what is under way ends (it is paid for) and so do the neighbours of a text that cannot be
        # embedded; a second failure says that it is the host, not the text.
        part = plan.take(line.max_inputs, begun=call.failure is not None)
        if part is None:
            return False
        try:
            await self._send(line, call, plan, part)
        except Exception as error:  # noqa: BLE001 - kept and raised when all workers are done
            of_a_text = len(part) == 1 and isinstance(error, (BadAnswerError, TooLargeError))
            if call.failure is not None or not of_a_text:
                plan.forget()
            call.failure = call.failure or error
        return True

    async def _send(self, line: Line, call: Call, plan: RequestPlan, part: list[int]) -> None:
        try:
            vectors = await self._retrying(line, call, part)
        except TooLargeError as error:
            self._shrink(line, plan, part, error)
        except BadAnswerError as error:
            if len(part) == 1 or not getattr(error, "broken", False):
                raise self._placed(error, part) from None
            plan.split(part)
        except HostError as error:
            raise self._placed(error, part) from None
        else:
            line.answered += 1
            call.finish(part, vectors)

    def _shrink(self, line: Line, plan: RequestPlan, part: list[int], error: HostError) -> None:
        if len(part) == 1:
            raise self._placed(error, part) from None
        line.max_inputs = min(line.max_inputs, max(len(part) // 2, 1))
        log.info(
            "%s refused %d texts as too many: at most %d from now on", self.endpoint.name, len(part), line.max_inputs
        )
        plan.split(part)

    def _placed(self, error: HostError, part: list[int]) -> HostError:
        """Turn positions within a request into those of the caller."""
        inside = [i for i in error.positions if i < len(part)] or range(len(part))
        error.positions = tuple(part[i] for i in inside)
        error.provider, error.model = self.endpoint.name, self.card.id
        if isinstance(error, (BadAnswerError, TooLargeError)):
            shown = ", ".join(map(str, error.positions[:5])) + (", …" if len(error.positions) > 5 else "")
            prefix = "" if error.message.startswith(self.endpoint.name) else f"{self.endpoint.name}, {self.card.id!r}: "
            error.message = f"{prefix}{error.message} (text {shown})"
            error.args = (error.message,)
        return error

    async def _retrying(self, line: Line, call: Call, part: list[int]) -> Vectors:
        texts = [call.texts[i] for i in part]
        tokens = sum(call.tokens[i] for i in part)
        attempts = retrying(line, call, self.limits, self.endpoint.name, lambda: self.usage.add(retries=1))
        return await attempts(self._one, line, call, texts, tokens)

    async def _one(self, line: Line, call: Call, texts: list[str], tokens: int) -> Vectors:
        async with line.slots:
            await line.gate.enter(tokens)
            self.usage.add(requests=1)
            vectors, counted = await self.ask(line, texts, call.role)
        self.usage.add(texts=len(texts), tokens=counted)
        if self._price:
            self.usage.add(usd=counted * self._price / 1e6)
        return vectors

    def _late(self) -> DeadlineError:
        return DeadlineError(
            f"{self.endpoint.name} did not finish {self.card.id!r} within timeout={self.limits.timeout} s",
            provider=self.endpoint.name,
            model=self.card.id,
        )

    def close(self) -> None:
        """Close the connections and the loop; a later call makes them anew."""
        self._line = None
        self._loop.close()
