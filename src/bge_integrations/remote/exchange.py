"""One request for embeddings and its answer: which encoding is asked for, and whether the answer is the right one."""

from __future__ import annotations

import asyncio
import re

from ..catalog import known_model
from ..catalog.records import ModelCard
from ..core.checks import Truncate
from ..core.encoder import Usage, Vectors
from ..core.tokenizer import TextTokenizer
from ..errors import (
    BadAnswerError,
    BGEError,
    HostError,
    HostUnavailableError,
    RepairWarning,
    RequestRefusedError,
    TooLargeError,
    TruncationWarning,
    warn,
)
from .endpoint import Endpoint
from .host import HostSession
from .protocols import Answer, Request, WireProtocol
from .responses import error_in, quote
from .transport import answer_bound
from .vectors import read_answer, read_json, vectors_of

_SPECIAL = 2  # tokens per text that hosts count or not
_LEAST_LIMIT = 128
_MOST_COUNTED = 4096  # texts counted exactly to find out; a host that truncates shows it sooner

# An optional field that the host does not know.
_FORMAT_REFUSED = re.compile(
    r"encoding.?format|base64|(extra|unknown|unexpected|unrecogni[sz]ed|unsupported|additional)\W+(\w+\W+){0,3}?"
    r"(field|param|argument|input|propert|key)",
    re.IGNORECASE,
)
_FORMAT_UNKNOWN = re.compile(r"encoding_format")  # a server of Python answers 500 to an argument that it does not know


class Exchange:
    """Sends requests for embeddings and reads their answers.

    Args:
        session: what is known about the host; what is learned about encodings goes there.
        endpoint: the host.
        protocol: how it is spoken to.
        card: the model.
        usage: counts requests.
        instruct: the server is to add the query instruction.
        cutter: the model's tokenizer, where it is on this machine.
        truncate: what becomes of texts that the host truncates: a warning or an error.
    """

    def __init__(
        self,
        session: HostSession,
        endpoint: Endpoint,
        protocol: WireProtocol,
        card: ModelCard,
        usage: Usage,
        *,
        instruct: bool,
        cutter: TextTokenizer | None,
        truncate: Truncate = "warn",
    ) -> None:
        self._session, self._endpoint, self._protocol = session, endpoint, protocol
        self._card, self._usage = card, usage
        self._instruct, self._cutter, self._truncate = instruct, cutter, truncate

    async def send(self, texts: list[str], tokens: int) -> tuple[Vectors, int]:
        """Send one request in the best encoding that the host is known to answer well."""
        encoding = "base64" if self._session.base64 else "float"
        try:
            vectors, counted, packed = await self._request(texts, encoding)
        except (BadAnswerError, RequestRefusedError, HostUnavailableError) as error:
            words = _FORMAT_UNKNOWN if isinstance(error, HostUnavailableError) else _FORMAT_REFUSED
            refused = not isinstance(error, BadAnswerError) and words.search(error.message)
            if isinstance(error, HostUnavailableError) and not refused:
                raise
            if isinstance(error, TooLargeError) or not self._protocol.encodings or self._session.no_format:
                raise
            if not (refused or (self._session.base64 and not self._session.base64_works)):
                raise
            await self._session.rate_limiter.acquire(tokens)
            vectors, counted, packed = await self._without_base64(texts, error)
        if encoding == "base64" and not packed:  # the host ignores encoding_format
            self._session.base64 = False
        self._session.base64_works |= packed
        if counted and not self._session.warned_truncating:
            await self._compare_counts(texts, tokens, counted)
        if self._protocol.encodings and len(texts) > 1 and self._session.may_probe(len(texts)):
            self._session.spawn(self._probe_base64(texts[:1], vectors[:1], tokens // len(texts)))
        return vectors, counted or (tokens if self._cutter is not None else 0)

    async def _compare_counts(self, texts: list[str], guess: int, counted: int) -> None:
        """Notice by its own count a host that truncates silently, as llama-cpp-python's server does at its n_batch.

        Raises:
            TooLargeError: it has, where truncation is an error.
        """
        session, of_texts = self._session, _SPECIAL * len(texts)
        if session.counts_tokens and guess - counted <= of_texts:
            return
        if self._cutter is None or (self._truncate == "warn" and session.counted_texts > _MOST_COUNTED):
            return
        session.counted_texts += len(texts)
        tokens = sum(await asyncio.to_thread(self._cutter.count, texts))
        if abs(tokens - counted) <= of_texts:
            session.counts_tokens = True
        # Some hosts guess at tokens: those that have counted as we do are believed, and a limit is a power of two.
        is_limit = len(texts) == 1 and counted >= _LEAST_LIMIT and counted.bit_count() == 1
        if tokens - counted <= of_texts + tokens // 50 or not (is_limit or session.counts_tokens):
            return
        said = (
            f"{self._endpoint.name} read {counted} of the {tokens} tokens of {len(texts)} text(s): it "
            f"truncates texts that {self._card.id!r} would read in full; raise the server's limit "
            "(llama.cpp: n_ctx, n_batch and n_ubatch)"
        )
        if self._truncate == "error":
            raise TooLargeError(said, status=200)
        if not session.warned_truncating:
            session.warned_truncating = True
            warn(said, TruncationWarning)

    async def _without_base64(self, texts: list[str], error: HostError) -> tuple[Vectors, int, bool]:
        """Ask once more in floats, or without ``encoding_format``; what goes well is remembered."""
        encoding = "float" if self._session.base64 else None
        try:
            answer = await self._request(texts, encoding)
        except (BadAnswerError, RequestRefusedError, HostUnavailableError):
            raise error from None  # it was not the encoding
        self._session.base64, self._session.no_format = False, encoding is None
        return answer

    async def _probe_base64(self, texts: list[str], vectors: Vectors, tokens: int) -> None:
        """Learn whether the host answers base64: only where it equals the floats of the same text."""
        try:
            async with self._session.slots:
                await self._session.rate_limiter.acquire(tokens)
                again, _, packed = await self._request(texts, "base64")
        except (BadAnswerError, RequestRefusedError):
            return
        except BGEError:
            self._session.base64 = None  # a busy moment says nothing about base64
            return
        self._session.base64 = self._session.base64_works = packed and float((again * vectors).sum()) > 0.9999

    async def _request(self, texts: list[str], encoding: str | None) -> tuple[Vectors, int, bool]:
        """Return unit vectors, the tokens that the host counted, and whether rows came in base64."""
        self._usage.add(requests=1)
        encoding = None if self._session.no_format else encoding
        request = Request(texts, self._endpoint.wire_model, self._instruct, encoding)
        bound = answer_bound(len(texts), self._card.dimensions)
        body = await self._session.transport.send(self._protocol.path, self._protocol.payload(request), bound)
        try:
            answer = self._read(body, len(texts), lazy=encoding != "base64")
            vectors = vectors_of(answer.rows, self._card.dimensions)
        except BadAnswerError as error:
            raise self._with_answer(error, body) from None
        except HostError:
            raise
        except Exception as error:  # noqa: BLE001 - recursion, overflow: whatever a hostile answer leads to
            kind = type(error).__name__
            raise self._with_answer(BadAnswerError(f"the response cannot be read ({kind})"), body) from None
        if not answer.numbered and len(texts) > 1 and not self._session.warned_unnumbered:
            self._session.warned_unnumbered = True
            warn(
                f"{self._endpoint.name} sends rows without an index: they are used in the order of the response",
                RepairWarning,
            )
        return vectors, answer.tokens, isinstance(answer.rows[0], str)

    def _read(self, body: bytes, count: int, *, lazy: bool) -> Answer:
        content = read_answer(body) if lazy else read_json(body)
        error = error_in(content, body, self._endpoint)
        if error is not None:
            raise error
        answer = self._protocol.parse(content, count)
        check_model(answer.model, self._endpoint, self._card)
        return answer

    def _with_answer(self, error: BadAnswerError, body: bytes) -> BadAnswerError:
        """Add the beginning of the answer to an error that is about no row in particular."""
        if error.positions or error.status:
            return error
        return error.add(f"; it begins with {quote(body, self._endpoint)!r}")


def check_model(name: object, endpoint: Endpoint, card: ModelCard) -> None:
    """Refuse an answer that is another model's of the catalogue; any other name is the host's own affair.

    Raises:
        BadAnswerError: names both.
    """
    if not isinstance(name, str) or name == endpoint.wire_model:
        return
    served = known_model(name)
    if served is not None and served.id != card.id:
        raise BadAnswerError(f"the response is from {served.id!r}, but {card.id!r} was requested")
