"""Long texts in parts that a model reads whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from ..core.encoder import Encoder
from ..errors import ConfigError

__all__ = ["ENDS", "Count", "TextSplitter", "find_counter"]

Count = Callable[[Sequence[str]], list[int]]

# Behind paragraphs, lines, sentences (of Chinese and Japanese, too), words, and anything.
ENDS = tuple(map(re.compile, (r"\n\s*\n", r"\n", r"(?<=[.!?。！？])(?=\s|[^\x00-\x7f])", r"\s+", r"(?<=.)")))


def find_counter(encoder: Encoder) -> Count | None:
    """Return the encoder's way of counting tokens, or None where its tokenizer is not on this machine."""
    try:
        encoder.count_tokens([])
    except ConfigError:
        return None
    return encoder.count_tokens


class TextSplitter:
    """Splits at paragraphs, then lines, sentences and words; joined, the parts are the text, byte for byte.

    Args:
        count: counts tokens, special tokens included.
        limit: tokens of a part.
        ends: where to split, the best places first.
    """

    def __init__(self, count: Count, limit: int, ends: Sequence[re.Pattern[str]] = ENDS) -> None:
        self.count, self.limit, self.ends = count, limit, ends
        self._special = count([""])[0]

    def __call__(self, text: str) -> list[str]:
        """Return the parts, none of them blank."""
        return list(self._split(text, 0))

    def _split(self, text: str, level: int) -> Iterator[str]:
        if self.count([text])[0] <= self.limit:
            yield text
        elif level < len(self.ends):
            for part in self._join(_cut(text, self.ends[level])):
                yield from self._split(part, level + 1)
        else:  # pieces put together may have more tokens than alone
            halves = text[: len(text) // 2], text[len(text) // 2 :]
            whole = not all(half.strip() for half in halves)
            for part in (text,) if whole else halves:
                yield from (part,) if whole else self._split(part, level)

    def _join(self, pieces: list[str]) -> list[str]:
        """Join neighbours while there is room; a blank piece goes to the part before it."""
        parts, room = list[str](), 0
        for piece, tokens in zip(pieces, self.count(pieces), strict=True):
            tokens -= self._special
            if (parts and (tokens <= room or not piece.strip())) or (parts and not parts[-1].strip()):
                parts[-1] += piece
                room -= tokens
            else:
                parts.append(piece)
                room = self.limit - self._special - tokens
        return parts


def _cut(text: str, end: re.Pattern[str]) -> list[str]:
    places = [0, *(found.end() for found in end.finditer(text)), len(text)]
    return [text[first:last] for first, last in pairwise(places) if first < last]
