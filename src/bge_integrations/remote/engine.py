"""The engine for hosts: formats and truncates texts, keeps one session per host, and reads answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from ..catalog import spellings
from ..catalog.records import ModelCard
from ..core.checks import refuse_truncation
from ..core.encoder import Blank, Encoder, Role, Stream, Truncate, Usage
from ..core.event_loop import BackgroundLoop
from ..core.tokenizer import TextTokenizer, find_tokenizer
from ..errors import (
    BadAnswerError,
    BGEError,
    DeadlineError,
    HostError,
    HostUnavailableError,
    MissingKeyError,
    TextError,
)
from .call import Call, Deadline
from .endpoint import Endpoint, Limits
from .exchange import Exchange
from .host import HostSession
from .protocols import PROTOCOLS, Request, WireProtocol
from .rate_limit import PortableLimiter
from .transport import answer_bound
from .vectors import read_json

__all__ = ["Endpoint", "Limits", "RemoteEngine"]

HEALTH_SECONDS = 5.0

_SLICE = 1024  # texts that are tokenised between two looks at the clock

_LEFT_BEHIND: list[HostSession] = []
"""After a fork: the parent's connections. The child shares their sockets and epoll; it must not use or close them."""

_PACES = ("requests_per_minute", "tokens_per_minute", "max_inputs")


class RemoteEngine(Encoder):
    """An encoder at a host.

    Args:
        card: the model.
        endpoint: the host; its provider's record names the protocol.
        limits: bounds on requests and on waiting.
        query_instruction: ``None`` for the model's own, ``""`` for none, other text as it is.
        blank: ``"error"`` refuses blank texts.
        truncate: ``"warn"`` truncates over-long texts where the tokenizer is on this machine; ``"error"`` refuses them.
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
        self.truncate, self.tokenizer = truncate, tokenizer
        known = rate_limiter is None or isinstance(rate_limiter, PortableLimiter)
        self.rate_limiter = rate_limiter if known else PortableLimiter(rate_limiter)
        self.usage = Usage(usd=0.0 if self.price else None)
        self._start()

    def _start(self) -> None:
        self._loop = BackgroundLoop("bge-remote")
        self._session: HostSession | None = None
        self._cutter: TextTokenizer | None = None
        self._looked = False

    def __getstate__(self) -> dict[str, Any]:
        made_here = {"_loop", "_session", "_cutter", "_looked"}
        return {name: value for name, value in self.__dict__.items() if name not in made_here}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.describe()})"

    remote = True

    @property
    def protocol(self) -> WireProtocol:
        """How the host is spoken to."""
        return PROTOCOLS[self.endpoint.provider.protocol]

    @property
    def base_url(self) -> str:  # type: ignore[override]
        """The host's address."""
        return self.endpoint.base_url

    @property
    def key(self) -> str | None:
        """The host's key, or None."""
        try:
            return self.endpoint.secret()
        except MissingKeyError:
            return None

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
        session = self._session
        return {
            **super().describe(),
            "provider": self.endpoint.name,
            "protocol": self.protocol.name,
            "host": urlsplit(self.endpoint.base_url).hostname,
            "base_url": self.endpoint.address,
            "wire_model": self.endpoint.wire_model,
            **{name: pace for name in _PACES if (pace := getattr(self.limits, name))},
            **({"max_inputs": session.limits.inputs, "base64": session.base64} if session else {}),
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
            ConfigError: the model has no default query instruction and none was passed; the key cannot be sent.
            MissingKeyError: the host needs a key and none was found.
        """
        self.format(texts[:1], role)
        if not self.endpoint.key_changes:
            self.endpoint.secret()
        work = self._loop.run(self._embed(texts, role, stream))
        stream.on_cancel(work.cancel)
        work.add_done_callback(partial(self._fail_unless_run, stream))

    def _fail_unless_run(self, stream: Stream, work: Future[None]) -> None:
        # Where the loop was closed before the coroutine's first step, nothing in it could end the stream.
        if work.cancelled() and not stream.cancelled:
            stream.fail(self._complete(_closed()))

    def post(self, texts: list[str], *, encoding: str | None = "float") -> bytes:
        """Send documents in one request as they are, once, and return the body of the answer, unread.

        Raises:
            HostError: the host could not be reached, or refused.
        """

        async def send() -> bytes:
            body = self.protocol.payload(Request(texts, self.endpoint.wire_model, encoding=encoding))
            bound = answer_bound(len(texts), self.card.dimensions)
            return await self._here().transport.send(self.protocol.path, body, bound)

        self.usage.add(requests=1)
        try:
            return self._loop.run(send()).result()
        except HostError as error:
            raise self._complete(error) from None

    async def _embed(self, texts: list[str], role: Role, stream: Stream) -> None:
        try:
            await self._send(texts, role, stream)
        except asyncio.CancelledError:
            stream.fail(self._complete(_closed()))
            raise
        except BGEError as error:
            stream.fail(error)
        except BaseException as error:  # noqa: BLE001 - also a panic in a tokenizer: raised here, it would end the loop
            failure = BGEError(f"{self.endpoint.name}, {self.card.id!r}: {type(error).__name__}: {error}")
            failure.__cause__ = error
            stream.fail(failure)
        else:
            stream.finish()

    async def _send(self, texts: list[str], role: Role, stream: Stream) -> None:
        session = self._here()
        try:
            async with Deadline(self.limits) as deadline:
                sent, long, tokens = await self._truncated(texts, role, deadline)
                if self.truncate == "error":
                    refuse_truncation(long, model=self.card.id, max_tokens=self.card.max_tokens)
                exchange = Exchange(
                    session, self.endpoint, self.protocol, self.card, self.usage,
                    instruct=self._server_instructs(role), counted=self.cutter is not None,
                )  # fmt: skip
                await Call(
                    session, self.limits, deadline, exchange.send, stream,
                    texts=sent, tokens=tokens, truncated=long, on_retry=partial(self.usage.add, retries=1),
                ).run()  # fmt: skip
        except HostError as error:
            raise self._complete(await self._explain(session, error)) from None

    async def _truncated(
        self, texts: list[str], role: Role, deadline: Deadline
    ) -> tuple[list[str], list[int], list[int]]:
        """Return what is sent, the positions of texts that were truncated, and tokens of each text, or a guess."""
        sent = texts if self._server_instructs(role) else self.format(texts, role)
        cutter = self._cutter if self._looked else await asyncio.to_thread(lambda: self.cutter)  # reads files
        if cutter is None:
            return sent, [], [len(text.encode()) // 4 + 2 for text in sent]
        room = self._room(role)
        whole: list[str] = []
        long: list[int] = []
        tokens: list[int] = []
        for start in range(0, len(sent), _SLICE):
            part, over, counts = await asyncio.to_thread(_cut, cutter, sent, start, room)
            whole, long, tokens = whole + part, long + [start + i for i in over], tokens + counts
            deadline.progress()
        return whole, long, tokens

    def _server_instructs(self, role: Role) -> bool:
        return self.protocol.instructs and role == "query" and self.query_instruction is None

    def _room(self, role: Role) -> int:
        """Return how many tokens of what is sent the model reads, less those that the server puts in front."""
        if not self._server_instructs(role) or self.cutter is None:
            return self.card.max_tokens
        whole, alone = self.cutter.count([self.card.format("a", role), "a"])
        return self.card.max_tokens - (whole - alone)

    def _here(self) -> HostSession:
        if self._session is None or self._session.loop is not asyncio.get_running_loop():
            if self._session is not None:
                _LEFT_BEHIND.append(self._session)
            self._session = HostSession(self.endpoint, self.limits, self.rate_limiter)
            self._loop.at_end(self._session.transport.close)
        return self._session

    async def _explain(self, session: HostSession, error: HostError) -> HostError:
        """Return an error with what the host says of itself when it is asked."""
        unwell = isinstance(error, (HostUnavailableError, BadAnswerError)) and not isinstance(error, DeadlineError)
        if self.protocol.health is None or not unwell:
            return error
        try:
            async with asyncio.timeout(HEALTH_SECONDS):
                health = read_json(await session.transport.send(self.protocol.health, None, 100_000))
        except (BGEError, TimeoutError):
            health = None
        return error.add(f"; {self.protocol.explain(health)}")

    def _complete(self, error: HostError) -> HostError:
        """Return an error that says which host and model it is about, what to do, how long to wait, and no secret."""
        error.provider, error.model = self.endpoint.name, self.card.id
        message = error.message
        if not message.startswith(error.provider):
            message = f"{error.provider}, {error.model!r}: {message}"
        if error.status == 404:
            message += self._other_names()
        if error.retry_after:
            message = f"{message}; it asks to wait {error.retry_after:.0f} s"
        error.message = self.endpoint.scrub(message)
        error.args = (error.message,)
        error.__context__ = None  # the tries before it, with what the host said to them
        return error

    def _other_names(self) -> str:
        offers = ", ".join(offer.wire for offer in self.endpoint.provider.offers)
        known = f"it is known to serve {offers}" if offers else f"hosts call it {', '.join(spellings(self.card)[:4])}"
        asked = f"{self.endpoint.wire_model!r} was asked for at {self.endpoint.address}"
        return f"; {asked}; {known}: wire_model= changes the name"

    def close(self) -> None:
        """Close the connections and the loop, and end the calls under way; a later call makes them anew."""
        if self._session is not None:
            self._session.closing = True
        self._session = None
        self._loop.close()


def _cut(cutter: TextTokenizer, texts: list[str], start: int, room: int) -> tuple[list[str], list[int], list[int]]:
    """Truncate one slice of the texts.

    Raises:
        TextError: the tokenizer fails at a text.
    """
    part = texts[start : start + _SLICE]
    try:
        return cutter.cut(part, room)
    except TextError as error:
        raise error.at(range(start, start + len(part))) from None


def _closed() -> HostUnavailableError:
    return HostUnavailableError("the encoder was closed during the call")
