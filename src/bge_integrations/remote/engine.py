"""The engine for hosts: formats and truncates texts, keeps one session per host, and reads answers."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from ..catalog.records import ModelCard, OutputName
from ..core.checks import refuse_truncation
from ..core.encoder import Blank, Encoder, Role, Stream, Truncate
from ..core.token_outputs import Several
from ..core.tokenizer import TextTokenizer
from ..errors import (
    BadAnswerError,
    BGEError,
    DeadlineError,
    HostError,
    HostUnavailableError,
    TextError,
)
from .call import Call
from .deadline import Deadline
from .endpoint import Endpoint, HostLimits
from .exchange import Exchange
from .host import HostSession
from .host_client import HostClient
from .output_exchange import OutputExchange, givers
from .protocols import OUTPUT_PROTOCOLS, PROTOCOLS, Request, WireProtocol
from .protocols.rerank import parse_rows
from .transport import answer_bound
from .vectors import read_json

__all__ = ["Endpoint", "HostLimits", "RemoteEngine"]

HEALTH_SECONDS = 5.0

_SLICE = 1024  # texts that are tokenised between two looks at the clock


_PACES = ("requests_per_minute", "tokens_per_minute", "max_inputs")


class RemoteEngine(HostClient, Encoder):
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
        limits: HostLimits | None = None,
        query_instruction: str | None = None,
        blank: Blank = "error",
        truncate: Truncate = "warn",
        tokenizer: Any = None,
        variant: str = "",
        rate_limiter: Any = None,
    ) -> None:
        self.card, self.endpoint, self.limits = card, endpoint, limits or HostLimits()
        self.query_instruction, self.blank, self.variant = query_instruction, blank, variant
        self.truncate = truncate
        self.open(tokenizer, rate_limiter)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.describe()})"

    @property
    def protocol(self) -> WireProtocol:
        """How the host is spoken to."""
        return PROTOCOLS[self.endpoint.provider.protocol]

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
            **self._about_outputs(),
            **({"max_inputs": session.limits.inputs, "base64": session.base64} if session else {}),
        }

    @property
    def outputs(self) -> tuple[OutputName, ...]:
        """What the host gives of the model's outputs; all of them while it is not known which server it is."""
        dialect = self._output_dialect
        if dialect is None or len(self.card.outputs) == 1:
            return self.card.outputs
        given = OUTPUT_PROTOCOLS[dialect].outputs if dialect else ("dense",)
        return tuple(name for name in self.card.outputs if name in given)

    @property
    def _output_dialect(self) -> str | None:
        return (self._session or self.endpoint.provider).output_dialect

    def _about_outputs(self) -> dict[str, Any]:
        if len(self.card.outputs) == 1:
            return {}
        dialect = self._output_dialect
        shown = {} if dialect == "" else {"dialect": dialect or "detected at first use"}
        session = self._session
        special = {"special_tokens": "dropped here"} if session and session.keeps_special else {}
        return {"outputs": list(self.outputs), **shown, **special}

    def why_not(self, name: str) -> str:
        """Return why the host does not give an output, and who does."""
        if name not in self.card.outputs:
            return super().why_not(name)
        dialect = self._output_dialect
        needs = f" ({OUTPUT_PROTOCOLS[dialect].needs})" if dialect else ""
        return f"{self.endpoint.name} returns only {', '.join(self.outputs)} output{needs}; served by: {givers(name)}"

    def tokenizer(self) -> TextTokenizer:
        """Return the model's tokenizer, which was passed or found on this machine.

        Raises:
            ConfigError: the model's tokenizer is not on this machine.
        """
        return self.cutter or super().tokenizer()

    def batches(self, texts: list[str], role: Role, stream: Stream) -> None:
        """Begin to send checked texts and return at once.

        Raises:
            ConfigError: the model has no default query instruction and none was passed; the key cannot be sent.
            MissingKeyError: the host needs a key and none was found.
        """
        own = role == "query" and self.query_instruction is None  # the instruction is the model's own
        instruct = self.protocol.instructs and own and not isinstance(stream.output, Several)
        formatted = self.format(texts, role)
        self.launch(partial(self._send, texts if instruct else formatted, stream, instruct=instruct), stream)

    def post(self, texts: list[str], *, encoding: str | None = "float") -> bytes:
        """Send documents in one request as they are, once, and return the body of the answer, unread.

        Raises:
            HostError: the host could not be reached, or refused.
        """
        body = self.protocol.payload(Request(texts, self.endpoint.wire_model, encoding=encoding))
        return self._ask(self.protocol.path, body, answer_bound(len(texts), self.card.dimensions))

    def pair_score(self, query: str, passage: str) -> float | None:
        """Return what the server's ``/score`` gives for two texts, once; None where it has no such thing.

        Raises:
            HostError: the host could not be reached.
        """
        body = {"model": self.endpoint.wire_model, "text_1": query, "text_2": [passage]}
        try:
            answer = read_json(self._ask(f"{self.endpoint.root}/score", body, 2**20))
            return float(parse_rows(answer, 1).scores[0])
        except (HostError, TypeError) as error:
            if isinstance(error, HostUnavailableError) and error.status is None:
                raise
            return None

    def _ask(self, path: str, body: dict[str, Any], bound: int) -> bytes:
        async def send() -> bytes:
            session = self._here()
            async with Deadline(self.limits) as deadline:
                await session.rate_limiter.acquire(0, deadline.allows)
                return await session.transport.send(path, body, bound)

        self.usage.add(requests=1)
        try:
            return self._loop.run(send()).result()
        except HostError as error:
            raise self._complete(error) from None

    async def _send(self, texts: list[str], stream: Stream, *, instruct: bool) -> None:
        session, output = self._here(), stream.output
        try:
            async with Deadline(self.limits) as deadline:
                sent, long, tokens = await self._truncated(texts, deadline, instruct=instruct)
                if self.truncate == "error":
                    refuse_truncation(long, model=self.card.id, max_tokens=self.card.max_tokens)
                exchange = Exchange(
                    session, self.endpoint, self.protocol, self.card, self.usage,
                    instruct=instruct, cutter=self.cutter, truncate=self.truncate,
                )  # fmt: skip
                several = self._several(session, exchange, output) if isinstance(output, Several) else None
                if "multivector" in output.names and self.cutter is not None:
                    tokens = await asyncio.to_thread(self.cutter.count, sent)  # exact: each has a vector in the answer
                await Call(
                    session, self.limits, deadline, several.send if several else exchange.send, stream,
                    texts=sent, tokens=tokens, truncated=long, on_retry=partial(self.usage.add, retries=1),
                    request_limits=several.limits if several else None,
                ).run()  # fmt: skip
        except HostError as error:
            raise self._complete(await self._explain(session, error)) from None

    def _several(self, session: HostSession, dense: Exchange, output: Several) -> OutputExchange:
        return OutputExchange(
            session, self.endpoint, self.card, self.usage, dense=dense, output=output, cutter=self.cutter
        )

    async def _truncated(
        self, texts: list[str], deadline: Deadline, *, instruct: bool
    ) -> tuple[list[str], list[int], list[int]]:
        """Return what is sent, the positions of texts that were truncated, and tokens of each text, or a guess."""
        cutter = self._cutter if self._looked else await asyncio.to_thread(lambda: self.cutter)  # reads files
        if cutter is None:
            return texts, [], [len(text.encode()) // 4 + 2 for text in texts]
        room = self.card.max_tokens
        if instruct:  # the server puts the instruction in front
            whole_tokens, text_tokens = cutter.count([self.card.format("a", "query"), "a"])
            room -= whole_tokens - text_tokens
        whole: list[str] = []
        long: list[int] = []
        tokens: list[int] = []
        for start in range(0, len(texts), _SLICE):
            part, over, counts = await asyncio.to_thread(_cut, cutter, texts, start, room)
            whole += part  # in place: a sum would copy all slices so far, on the event loop
            long += [start + i for i in over]
            tokens += counts
            deadline.progress()
        return whole, long, tokens

    async def _explain(self, session: HostSession, error: HostError) -> HostError:
        """Return an error with what the host's health path says, where it has one."""
        unwell = isinstance(error, (HostUnavailableError, BadAnswerError)) and not isinstance(error, DeadlineError)
        if self.protocol.health is None or not unwell:
            return error
        try:
            async with asyncio.timeout(HEALTH_SECONDS):
                health = read_json(await session.transport.send(self.protocol.health, None, 100_000))
        except (BGEError, TimeoutError):
            health = None
        return error.add(f"; {self.protocol.explain(health)}")


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
