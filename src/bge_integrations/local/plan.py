"""Which texts are computed together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

SLICE_TEXTS = 4096
SLICE_CHARACTERS = 1_000_000  # some 250,000 tokens: what the tokenizer says of each is about 100 bytes


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
