"""What the engines for hosts share: requests in flight, one retry layer, caps that are learned, a deadline."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from ..catalog import known_model
from ..catalog.records import ModelCard
from ..core.checks import refuse_truncation
from ..core.encoder import Blank, Encoder, Role, Stream, Truncate, Usage, Vectors
from ..core.event_loop import BackgroundLoop
from ..core.tokenizer import TextTokenizer, find_tokenizer
from ..errors import BadAnswerError, HostError, HostUnavailableError
from .call import Call
from .endpoint import Endpoint, Limits
from .host import Line

__all__ = ["Endpoint", "Limits", "RemoteEngine"]

_LEFT_BEHIND: list[Line] = []
"""After a fork: the parent's connections, which the child must neither use nor close."""


class RemoteEngine(Encoder):
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
        self.usage = Usage(usd=0.0 if self.price else None)
        self._start()

    def _start(self) -> None:
        self._loop = BackgroundLoop("bge-remote")
        self._line: Line | None = None
        self._cutter: TextTokenizer | None = None
        self._looked = False

    def __getstate__(self) -> dict[str, Any]:
        made_here = {"_loop", "_line", "_cutter", "_looked"}
        return {name: value for name, value in self.__dict__.items() if name not in made_here}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.describe()})"

    remote = True

    @property
    def base_url(self) -> str:  # type: ignore[override]
        """The host's address."""
        return self.endpoint.base_url

    @property
    def key(self) -> str | None:
        """The host's key, or None."""
        return self.endpoint.key.value

    @property
    def max_concurrency(self) -> int:  # type: ignore[override]
        """Requests in flight."""
        return self.limits.max_concurrency

    @property
    def price(self) -> float | None:  # type: ignore[override]
        """USD per million tokens, where the host states it."""
        offer = self.endpoint.provider.offer(self.card.id)
        return offer.usd_per_million_tokens if offer else None

    def describe(self) -> dict[str, Any]:
        """Return where and as what the model is asked for, without secrets."""
        parts = urlsplit(self.endpoint.base_url)
        learned = {"max_inputs": self._line.caps.inputs, "base64": self._line.base64} if self._line else {}
        return {
            **super().describe(),
            "provider": self.endpoint.name,
            "host": parts.hostname,
            "base_url": parts._replace(query="").geturl(),
            "wire_model": self.endpoint.wire_model,
            **learned,
        }

    @property
    def cutter(self) -> TextTokenizer | None:
        """The model's tokenizer where it is on this machine; looked for once."""
        if not self._looked:
            self._cutter, self._looked = find_tokenizer(self.card, self.tokenizer), True
        return self._cutter

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens each text has for this model, special tokens included, before truncation.

        Raises:
            ConfigError: the model's tokenizer is not on this machine.
        """
        return self.cutter.count(texts) if self.cutter else super().count_tokens(texts)

    def batches(self, texts: list[str], role: Role, stream: Stream) -> None:
        """Begin to send checked texts and return at once.

        Raises:
            ConfigError: the model has no default query instruction and none was passed.
            MissingKeyError: the host needs a key and none was found.
        """
        self.format(texts[:1], role)
        self.endpoint.key()
        work = self._loop.run(self._embed(texts, role, stream))
        stream.on_cancel(work.cancel)

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

    async def _embed(self, texts: list[str], role: Role, stream: Stream) -> None:
        try:
            await self._send(texts, role, stream)
        except asyncio.CancelledError:
            stream.fail(HostUnavailableError(f"{self.endpoint.name}: the encoder was closed during the call"))
            raise
        except Exception as error:  # noqa: BLE001 - belongs to the caller
            stream.fail(error)
        else:
            stream.finish()

    async def _send(self, texts: list[str], role: Role, stream: Stream) -> None:
        line = self._here()
        sent, long, tokens = await self._cut(self.sent(texts, role), role)
        if self.truncate == "error":
            refuse_truncation(long, model=self.card.id, max_tokens=self.card.max_tokens)
        send, retried = partial(self._exchange, line, role), partial(self.usage.add, retries=1)
        call = Call(line, self.limits, sent, tokens, long, send, stream, retried=retried)
        try:
            await call.run()
        except HostError as error:
            raise self._complete(await self.explain(line, error)) from None

    async def _cut(self, texts: list[str], role: Role) -> tuple[list[str], list[int], list[int]]:
        if self.cutter is None:
            return texts, [], [len(text.encode()) // 4 + 2 for text in texts]
        return await asyncio.to_thread(self.cutter.cut, texts, self.room(role))

    def _here(self) -> Line:
        if self._line is None or self._line.loop is not asyncio.get_running_loop():
            if self._line is not None:
                _LEFT_BEHIND.append(self._line)
            self._line = Line(self.endpoint, self.limits, self.card, self.rate_limiter)
            self._loop.at_end(self._line.connection.close)
        return self._line

    async def _exchange(self, line: Line, role: Role, texts: list[str], tokens: int) -> tuple[Vectors, int]:
        self.usage.add(requests=1)
        vectors, counted = await self.ask(line, texts, role)
        return vectors, counted if counted or self.cutter is None else tokens

    def check_model(self, named: object) -> None:
        """Refuse an answer that names another model of the catalogue; any other name is the host's own affair.

        Raises:
            BadAnswerError: it names another model.
        """
        if not isinstance(named, str) or named == self.endpoint.wire_model:
            return
        served = known_model(named)
        if served is not None and served.id != self.card.id:
            raise BadAnswerError(f"the answer is {served.id!r}'s, asked for was {self.card.id!r}")

    async def explain(self, line: Line, error: HostError) -> HostError:
        """Return an error with what the host says when it is asked; asks nothing by default."""
        del line
        return error

    def _complete(self, error: HostError) -> HostError:
        """Return an error that says which host and model it is about, how long to wait, and no secret."""
        error.provider, error.model = self.endpoint.name, self.card.id
        message = error.message
        if not message.startswith(error.provider):
            message = f"{error.provider}, {error.model!r}: {message}"
        if error.retry_after:
            message = f"{message}; it asks to wait {error.retry_after:.0f} s"
        error.message = self.endpoint.scrub(message)
        error.args = (error.message,)
        error.__context__ = None  # the tries before it, with what the host said to them
        return error

    def close(self) -> None:
        """Close the connections and the loop, and end the calls under way; a later call makes them anew."""
        if self._line is not None:
            self._line.closing = True
        self._line = None
        self._loop.close()
