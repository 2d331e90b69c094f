"""Calls to the local engine, and how their texts are cut into slices and batches."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.encoder import Batch, Stream
from ..core.outputs import Output, Rows
from .backends.base import Backend

Indices = NDArray[np.int64]

SLICE_TEXTS = 4096  # also bounds how long a short call waits while a long one's texts are tokenised
SLICE_CHARACTERS = 1_000_000  # some 250,000 tokens: what the tokenizer returns for each is about 100 bytes
_LOG = logging.getLogger("bge_integrations")


@dataclass(eq=False)
class LocalCall:
    """One call.

    Attributes:
        texts: what the model is to read; pairs of texts for a reranker.
        stream: where finished rows go.
        refuse: raises for texts that are longer than the model reads, before anything is computed; None to truncate.
        taken: texts that are in a slice already.
        done: texts whose rows have been passed on.
        measured: texts whose length ``refuse`` needs and that have been measured.
        long: positions among them of those that are longer than the model reads.
    """

    texts: list[Any]
    stream: Stream
    refuse: Callable[[Sequence[int]], None] | None = None
    taken: int = 0
    done: int = 0
    measured: int = 0
    long: list[int] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        """Whether somebody still waits for the rows."""
        return not self.stream.cancelled

    def part(self, start: int, texts: int, characters: int) -> CallPart:
        """Return texts from ``start`` on, as many as fit but at least one."""
        end = slice_end(self.texts, start, texts, characters)
        return CallPart(self, range(start, end), self.texts[start:end])

    def put(self, indices: Indices, rows: Rows, tokens: int, truncated: Sequence[int]) -> None:
        """Pass finished rows on, and finish the call with the last one."""
        self.done += len(indices)
        try:
            self.stream.put(Batch(indices.tolist(), rows, tokens, truncated))
            if self.done == len(self.texts):
                self.stream.finish()
        except BaseException as error:  # noqa: BLE001 - what a stream raises must not end the worker thread
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Give up, unless it was finished or cancelled meanwhile."""
        try:
            if self.alive:
                self.stream.fail(error)
        except BaseException:  # noqa: BLE001 - as above
            _LOG.exception("an error could not be delivered to the call that waits for it")


@dataclass(frozen=True)
class CallPart:
    """Some texts of one call.

    Attributes:
        span: their positions in the call.
        texts: what the model is to read.
    """

    call: LocalCall
    span: range
    texts: list[Any]


@dataclass
class Slice:
    """Texts of one or more calls, tokenised together and cut into batches.

    Attributes:
        items: of each text, what the backend computes.
        owners: for each text, the position of its call in ``calls``.
        indices: for each text, its position in that call.
        lengths: tokens of each text.
        truncated: for each text, whether it was longer than the model reads.
        output: what all of them want.
    """

    calls: list[LocalCall]
    items: list[Any]
    owners: Indices
    indices: Indices
    lengths: Indices
    truncated: Any
    output: Output
    batches: deque[Indices]

    @classmethod
    def of(cls, parts: list[CallPart], backend: Backend) -> Slice:
        """Tokenise parts of calls.

        Raises:
            TextError: positions are those in all texts of the parts together.
        """
        calls: list[LocalCall] = []
        texts: list[Any] = []
        owners: list[int] = []
        indices: list[int] = []
        for owner, part in enumerate(parts):
            calls.append(part.call)
            texts += part.texts
            owners += [owner] * len(part.texts)
            indices += part.span
        tokens = backend.tokenize(texts)
        truncated = np.zeros(len(texts), bool)
        truncated[tokens.truncated] = True
        return cls(
            calls=calls,
            items=tokens.items,
            owners=np.array(owners),
            indices=np.array(indices),
            lengths=tokens.lengths,
            truncated=truncated,
            output=parts[0].call.stream.output,
            batches=deque(cut_batches(tokens.lengths, backend.budget, padded=backend.padded)),
        )

    def next_batch(self) -> Indices:
        """Return the texts of the next batch for which somebody still waits; may be none."""
        batch = self.batches.popleft()
        for owner, call in enumerate(self.calls):
            if not call.alive:
                batch = batch[self.owners[batch] != owner]
        return batch

    def deliver(self, texts: Indices, rows: Rows) -> None:
        """Give each call its rows."""
        for call, mine, chosen in self._by_call(texts):
            truncated = self.indices[mine[self.truncated[mine]]].tolist()
            call.put(self.indices[mine], rows[chosen], int(self.lengths[mine].sum()), truncated)

    def fail(self, texts: Indices, failed: Mapping[int, BaseException], backend: Backend, *, blame: bool) -> None:
        """Fail every call that has one of these texts.

        Args:
            texts: none of them has a row.
            failed: why, for those that were tried alone.
            backend: says what the error means.
            blame: whether the failure is the texts' own, so that errors name positions.
        """
        for call, mine, _ in self._by_call(texts):
            own = [text for text in mine.tolist() if text in failed]
            error = failed[own[0]] if own else next(iter(failed.values()))
            call.fail(backend.explain(error, self.indices[own].tolist() if own and blame else ()))

    def _by_call(self, texts: Indices) -> list[tuple[LocalCall, Indices, Any]]:
        if len(self.calls) == 1:
            return [(self.calls[0], texts, slice(None))]  # a view: the rows of a lone call are not copied
        owners = self.owners[texts]
        return [(self.calls[i], texts[owners == i], owners == i) for i in np.unique(owners).tolist()]


def cut_batches(lengths: Indices, budget: int, *, padded: bool) -> list[Indices]:
    """Cut texts into batches of at most ``budget`` tokens, longest first.

    Args:
        lengths: tokens of each text.
        budget: tokens of a batch; a text that is longer is a batch of its own.
        padded: whether every text of a batch costs as much as its longest.

    Returns:
        Indices into ``lengths`` of each batch; within and across batches longest first.
    """
    if len(lengths) == 1:
        return [np.zeros(1, np.int64)]
    order = np.argsort(-lengths, kind="stable")
    batches: list[Indices] = []
    start = total = 0
    for end, length in enumerate(lengths[order].tolist()):
        total = (end - start + 1) * int(lengths[order[start]]) if padded else total + length
        if total > budget and end > start:
            batches.append(order[start:end])
            start, total = end, length
    if len(order):
        batches.append(order[start:])
    return batches


def slice_end(texts: Sequence[Sized], start: int, room: int, characters: int) -> int:
    """Return where a slice that begins at ``start`` ends.

    Args:
        texts: all texts.
        start: the first that is still to be taken.
        room: texts that fit.
        characters: characters that fit; the first text is taken whatever its size.
    """
    end = start
    while end < len(texts) and end - start < room and (characters > 0 or end == start):
        characters -= len(texts[end])
        end += 1
    return end
