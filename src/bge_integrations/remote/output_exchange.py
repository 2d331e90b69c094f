"""One request for several outputs of bge-m3 and its answer: how the host is asked, and whether the rows can be true."""

from __future__ import annotations

import asyncio
from collections.abc import Container, Sequence
from typing import Any

from ..catalog.records import ModelCard
from ..core.outputs import Rows
from ..core.token_outputs import Several
from ..core.tokenizer import TextTokenizer
from ..core.usage import Usage
from ..errors import (
    BadAnswerError,
    HostError,
    NotServedError,
    RepairWarning,
    TooLargeError,
    warn,
)
from .endpoint import Endpoint
from .exchange import Exchange, check_model
from .host import OUTPUT_INPUTS, HostSession
from .identify import ask_server
from .output_rows import check_counts, check_words, map_of, most_tokens, paired, special_ids, without
from .protocols import OUTPUT_PROTOCOLS, OutputProtocol
from .protocols.output_wire import OutputAnswer, OutputPart, OutputRequest
from .protocols.sparse import parse_tokens, tokens_payload
from .requests import RequestLimits
from .responses import error_in, quote
from .vectors import read_answer, read_json, vectors_of

__all__ = ["OutputExchange", "givers"]

_MEANT = (400, 404, 405, 422, 424, 501)
"""Statuses of a server that was not started for what it is asked."""


def givers(name: str) -> str:
    """Say who gives an output of bge-m3."""
    hosts = [protocol.name for protocol in OUTPUT_PROTOCOLS.values() if name in protocol.outputs]
    named = {"bge": "`bge serve`", "vllm-plugin": "vllm with its plugin"}
    return f"{', '.join(named.get(host, host) for host in sorted(hosts))}, or this machine (provider='local')"


class OutputExchange:
    """Sends requests for several outputs and reads their answers.

    Args:
        session: what is known about the host.
        endpoint: the host.
        card: the model.
        usage: counts requests.
        dense: asks for dense vectors where the dialect has no way of its own.
        output: what is wanted.
        cutter: the model's tokenizer where it is on this machine: it tells the ids that a text has.
    """

    def __init__(
        self,
        session: HostSession,
        endpoint: Endpoint,
        card: ModelCard,
        usage: Usage,
        *,
        dense: Exchange,
        output: Several,
        cutter: TextTokenizer | None,
    ) -> None:
        self._session, self._endpoint, self._card, self._usage = session, endpoint, card, usage
        self._dense, self._output, self._cutter = dense, output, cutter
        self._lock = asyncio.Lock()  # one request of the call asks which server it is

    @property
    def limits(self) -> RequestLimits:
        """How much one request may hold."""
        protocol = OUTPUT_PROTOCOLS.get(self._session.output_dialect or "")
        most = (protocol.max_inputs if protocol else None) or OUTPUT_INPUTS
        return self._session.output_limits(multivector="multivector" in self._output.names, inputs=most)

    async def send(self, texts: list[str], tokens: int) -> tuple[Rows, int]:
        """Ask for all outputs of some texts.

        Returns:
            Rows, and the tokens that the host counted.

        Raises:
            NotServedError: the host does not give one of the outputs.
            SpaceMismatchError: sparse rows are another kind of model's.
            HostError: the host failed, or a row is none of its text.
        """
        protocol = await self._protocol()
        columns: dict[str, list[Any]] = {}
        counted = 0
        for part in protocol.parts:
            wanted = tuple(name for name in self._output.names if name in part.gives and name not in columns)
            if wanted:
                await self._pace(first=not columns)
                answer = await self._ask(protocol, part, OutputRequest(texts, self._endpoint.wire_model, wanted))
                columns, counted = {**columns, **answer.columns}, max(counted, answer.tokens)
        found: dict[str, Any] = {**columns}
        if "dense" in columns:
            found["dense"] = vectors_of(columns["dense"], self._card.dimensions)
        elif "dense" in self._output.names:
            await self._pace(first=not columns)
            found["dense"], dense_tokens = await self._dense.send(texts, tokens)
            counted = max(counted, dense_tokens)
        ids = await self._ids(protocol, texts, columns)
        if "sparse" in columns:
            found["sparse"] = self._sparse(protocol, columns["sparse"], texts, ids)
        try:
            rows = self._output.check(found, len(texts))
            if "multivector" in columns and ids:
                check_counts(columns["multivector"], ids)
        except BadAnswerError as error:
            error.retryable = True
            raise
        return rows, counted or (tokens if self._cutter else 0)

    async def _protocol(self) -> OutputProtocol:
        async with self._lock:
            if self._session.output_dialect is None:  # what a server does not tell may be a bad moment: not remembered
                server, _ = await ask_server(self._session.transport, self._endpoint.root, OUTPUT_PROTOCOLS)
                self._session.output_dialect = server
        protocol = OUTPUT_PROTOCOLS.get(self._session.output_dialect or "")
        missing = [name for name in self._output.names if protocol is None or name not in protocol.outputs]
        if protocol is None or missing:
            unknown = ", and does not say which server it is: pass dialect="
            how = f" ({protocol.needs})" if protocol else unknown
            raise NotServedError(
                f"{self._endpoint.name} returns no {missing[0]} output{how}; served by: {givers(missing[0])}"
            )
        return protocol

    async def _ask(self, protocol: OutputProtocol, part: OutputPart, request: OutputRequest) -> OutputAnswer:
        path = part.path.replace("{model}", request.model.removesuffix("-multi"))
        try:
            body = await self._post(path, part.payload(request), self._bound(request))
            content = read_answer(body)
        except HostError as error:
            raise _with_needs(error, protocol) from None
        try:
            failure = error_in(content, body, self._endpoint)
            if failure is not None:
                raise failure
            answer = part.parse(content, request)
        except BadAnswerError as error:
            if error.positions or error.status:
                raise
            raise error.add(f"; it begins with {quote(body, self._endpoint)!r}; {protocol.needs}") from None
        except HostError:
            raise
        except Exception as error:  # noqa: BLE001 - recursion, overflow: whatever a hostile answer leads to
            raise BadAnswerError(f"the response cannot be read ({type(error).__name__})") from None
        check_model(answer.model, self._endpoint, self._card)
        return answer

    async def _pace(self, *, first: bool) -> None:
        """Wait for the rate limiter, which ``Call`` has asked already for the first of these requests."""
        if not first:
            await self._session.rate_limiter.acquire(0)

    async def _post(self, path: str, payload: dict[str, Any], bound: int) -> bytes:
        self._usage.add(requests=1)
        return await self._session.transport.send(self._endpoint.root + path, payload, bound)

    def _bound(self, request: OutputRequest) -> int:
        """Return how many bytes an honest answer may have: 32 for a number, and a megabyte for the rest."""
        count, numbers = len(request.texts), 0
        if "dense" in request.names:
            numbers += 2 * count * self._card.dimensions
        if "sparse" in request.names:
            numbers += count * self._card.vocabulary
        if "multivector" in request.names:
            numbers += sum(map(most_tokens, request.texts)) * self._card.dimensions
        return 32 * numbers + 2**20

    async def _ids(self, protocol: OutputProtocol, texts: list[str], names: Container[str]) -> list[list[int]]:
        """Return the ids of each text; none where nobody needs them or knows them."""
        if self._cutter is not None:
            tokens = await asyncio.to_thread(self._cutter.tokenize, texts)
            return [ids.tolist() for ids in tokens.items]
        if not (protocol.weighs_tokens and "sparse" in names):
            return []
        # One after the other: this request holds one of the places that max_concurrency gives.
        ids = []
        for text in texts:
            await self._pace(first=False)
            payload = tokens_payload(self._endpoint.wire_model, text)
            ids.append(parse_tokens(read_json(await self._post("/tokenize", payload, 2**20 + 64 * most_tokens(text)))))
        return ids

    def _sparse(
        self, protocol: OutputProtocol, rows: Sequence[Any], texts: list[str], ids: list[list[int]]
    ) -> list[dict[int, Any]]:
        special = special_ids(self._card, self._cutter)
        if protocol.weighs_tokens:
            return [without(special, row) for row in paired(rows, ids)]
        whole = [map_of(row, self._card, i) for i, row in enumerate(rows)]
        if any(special & row.keys() for row in whole):
            self._note_special(protocol)
            whole = [without(special, row) for row in whole]
        for i, row in enumerate(whole):
            check_words(row, texts[i], ids[i] if ids else None, self._card, i)
        return whole

    def _note_special(self, protocol: OutputProtocol) -> None:
        known, self._session.keeps_special = self._session.keeps_special, True
        if protocol.keeps_special or known:
            return
        warn(
            f"{self._endpoint.name} returns special tokens in sparse vectors, so that any two texts would "
            "share terms: they are dropped here",
            RepairWarning,
        )


def _with_needs(error: HostError, protocol: OutputProtocol) -> HostError:
    """Return the error; if a server refuses what it was not started for, with what it needs."""
    if isinstance(error, TooLargeError) or error.status not in _MEANT:
        return error
    if error.status == 424 and "splade" not in error.message.lower():
        return error  # a TEI whose back-end failed
    told = error.add(f"; {protocol.needs}")
    told.retryable = False
    return told
