"""Calls to the local engine, and how their texts are cut into slices and batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core.encoder import Batch, Stream
from ..core.outputs import Rows

Indices = NDArray[np.int64]

NOTHING: Indices = np.empty(0, np.int64)
SLICE_TEXTS = 4096
SLICE_CHARACTERS = 1_000_000  # some 250,000 tokens: what the tokenizer returns for each is about 100 bytes


@dataclass(eq=False)
class Job:
    """One call.

    Attributes:
        texts: as the caller passed them.
        prepare: puts the instruction in front.
        stream: where finished rows go.
        refuse: raises for texts that are longer than the model reads, before anything is computed; None to truncate.
        taken: texts that are in a slice already.
    """

    texts: list[str]
    prepare: Callable[[Sequence[str]], list[str]]
    stream: Stream
    refuse: Callable[[Sequence[int]], None] | None = None
    taken: int = 0

    def __post_init__(self) -> None:
        self.missing = len(self.texts)

    @property
    def alive(self) -> bool:
        """Whether somebody still waits for the rows."""
        return not self.stream.cancelled

    def take(self, texts: int, characters: int) -> tuple[range, list[str]]:
        """Return the next texts, ready for the model, and where they stand."""
        end = slice_end(self.texts, self.taken, texts, characters)
        part = range(self.taken, end)
        self.taken = end
        return part, self.prepare(self.texts[part.start : part.stop])

    def put(self, indices: Indices, rows: Rows, tokens: int, truncated: Sequence[int]) -> None:
        """Pass finished rows on, and finish the call with the last one."""
        self.missing -= len(indices)
        self.stream.put(Batch(indices.tolist(), rows, tokens, truncated))
        if not self.missing:
            self.stream.finish()

    def fail(self, error: BaseException) -> None:
        """Give up, unless it was finished or cancelled meanwhile."""
        if self.alive:
            self.stream.fail(error)


def cut_batches(lengths: Indices, budget: int, *, padded: bool) -> list[Indices]:
    """Cut texts into batches of at most ``budget`` tokens, longest first.

    Args:
        lengths: tokens of each text.
        budget: tokens of a batch; a text that is longer is a batch of its own.
        padded: whether every text of a batch costs as much as its longest.

    Returns:
        Indices into ``lengths`` of each batch; within and across batches longest first.
    """
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


def slice_end(texts: Sequence[str], start: int, room: int, characters: int) -> int:
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
