"""Pairs of query and passage as token ids, and as texts truncated by tokens.

Each text is tokenised by itself and the two are joined by the model's own template, so that a query is tokenised once
for all its passages, and a passage once for all queries that it comes up for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelLoadError, TextError
from .tokenizer import TextTokenizer, Tokens

if TYPE_CHECKING:
    from .reranker import Pair

__all__ = ["SECOND", "PairTokenizer", "longest_first"]

Ids = NDArray[np.int32]
_Key = tuple[str, bool]  # a text, and whether only an end of it is tokenised where it is huge

SECOND = 1 << 30
"""Added to the ids of tokens of token type 1 (BERT's second text); XLM-R has one type alone."""

_MEMO_TOKENS = 4_000_000  # 16 MB


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Return how many tokens of two texts are kept so that both fit, as the tokenizers library cuts: the longer first.

    The servers (TEI, Infinity, vLLM) and sentence-transformers cut so, too:
    https://github.com/huggingface/tokenizers/blob/main/tokenizers/src/utils/truncation.rs
    """
    if first + second <= room:
        return first, second
    short = min(first, second)
    short, long = (short, room - short) if short <= room - short else (room // 2, room - room // 2)
    return (short, long) if first <= second else (long, short)


class PairTokenizer(TextTokenizer):
    """A model's tokenizer for pairs; ``tokenize`` is for one thread.

    Args:
        tokenizer: a ``tokenizers.Tokenizer``, which is changed.
        side: which end of a text is lost.
        max_tokens: tokens of a pair, special tokens included.

    Attributes:
        longest: tokens of the longest pair so far.

    Raises:
        ModelLoadError: the tokenizer has no template for pairs, or ``max_tokens`` leaves no room.
    """

    def __init__(self, tokenizer: Any, *, side: str = "right", max_tokens: int | None = None) -> None:
        super().__init__(tokenizer, side=side)
        self.pair_tokens = max_tokens or 1 << 30
        self.longest = 0
        self._read_template()
        self._memo: OrderedDict[_Key, Ids] = OrderedDict()
        self._memo_tokens = 0

    @classmethod
    def of(cls, tokenizer: TextTokenizer, max_tokens: int) -> PairTokenizer:
        """Return a tokenizer of pairs on a tokenizer of texts."""
        return cls(tokenizer.library, side=tokenizer.side, max_tokens=max_tokens)

    @classmethod
    def read(cls, path: Path, max_tokens: int | None = None) -> PairTokenizer:
        """Return the tokenizer of a model's folder, or of a ``tokenizer.json``; raises as ``TextTokenizer.read``."""
        text = TextTokenizer.read(path)
        return cls(text.library, side=text.side, max_tokens=max_tokens)

    def _read_template(self) -> None:
        # Of a pair that was encoded, since a tokenizer.json has one of several kinds of post-processor.
        encoding = self._tokenizer.encode("a", "a")
        ids = np.array(encoding.ids, np.int32) + np.array(encoding.type_ids, np.int32) * SECOND
        owners = [-1 if owner is None else owner for owner in encoding.sequence_ids]
        if 0 not in owners or 1 not in owners:
            raise ModelLoadError("its tokenizer cannot encode pairs: is this a reranker's folder?")
        first, second = owners.index(0), owners.index(1)
        after = len(owners) - owners[::-1].index(1)
        middle = next(i for i in range(first, second + 1) if owners[i] != 0)
        self._parts: tuple[Ids, Ids, Ids] = ids[:first], ids[middle:second], ids[after:]
        self._types: tuple[int, int] = int(ids[first] & SECOND), int(ids[second] & SECOND)
        self.pair_special = sum(map(len, self._parts))
        if self.pair_tokens <= self.pair_special + 1:
            raise ModelLoadError(
                f"the model reads only {self.pair_tokens} tokens, too few for a pair: is its configuration right?"
            )

    def tokenize(self, texts: Sequence[Any]) -> Tokens:
        """Return the token ids of each ``Pair`` as int32 arrays, cut to what the model reads.

        Raises:
            TextError: the tokenizer fails at a pair.
        """
        pairs: Sequence[Pair] = texts
        keys = [self._keys(pair) for pair in pairs]
        ids = self._ids_of(keys)
        items, long = [], []
        for position, (first, second) in enumerate(keys):
            query, passage = ids[first], ids[second]
            kept = longest_first(len(query), len(passage), self.pair_tokens - self.pair_special)
            if kept != (len(query), len(passage)):
                long.append(position)
            items.append(self._join(self._cut(query, kept[0]), self._cut(passage, kept[1])))
        lengths = np.fromiter(map(len, items), np.int64, len(items))
        self.longest = max(self.longest, int(lengths.max(initial=0)))
        return Tokens(items, lengths, long)

    def _keys(self, pair: Pair) -> tuple[_Key, _Key]:
        """Return both texts as keys, each with whether tokenising an end of it is enough where it is huge.

        A query is tokenised whole, and so is a passage beside a query that may take more than half of the room: then
        ``longest_first`` depends on which of the two is longer.
        """
        short = len(pair.query.encode()) <= (self.pair_tokens - self.pair_special) // 2
        return (pair.query, False), (pair.passage, short)

    def _join(self, query: Ids, passage: Ids) -> Ids:
        head, middle, tail = self._parts
        return np.concatenate([head, query + self._types[0], middle, passage + self._types[1], tail], dtype=np.int32)

    def _cut(self, ids: Ids, keep: int) -> Ids:
        return ids[len(ids) - keep :] if self._side == "left" else ids[:keep]

    def _ids_of(self, keys: Sequence[tuple[_Key, _Key]]) -> dict[_Key, Ids]:
        """Return the ids of each text without special tokens, from the memo where they are there."""
        found: dict[_Key, Ids] = {}
        for key in dict.fromkeys(key for pair in keys for key in pair):
            ids = self._memo.get(key)
            if ids is not None:
                found[key] = ids
                self._memo.move_to_end(key)
        new = [key for key in dict.fromkeys(key for pair in keys for key in pair) if key not in found]
        try:
            encodings = self._encode([self._end_of(text, self.pair_tokens) if end else text for text, end in new],
                                     special=False)  # fmt: skip
        except TextError as error:
            bad = {new[i] for i in error.positions}
            where = [i for i, pair in enumerate(keys) if not bad.isdisjoint(pair)]
            raise TextError(error.message, positions=where) from None
        for key, encoding in zip(new, encodings, strict=True):
            found[key] = np.array(encoding.ids, np.int32)
            self._remember(key, found[key])
        return found

    def _remember(self, key: _Key, ids: Ids) -> None:
        self._memo[key] = ids
        self._memo_tokens += len(ids) + len(key[0]) // 4
        while self._memo_tokens > _MEMO_TOKENS and self._memo:
            old, gone = self._memo.popitem(last=False)
            self._memo_tokens -= len(gone) + len(old[0]) // 4

    def cut_pairs(self, pairs: Sequence[Pair]) -> tuple[list[Pair], list[int], list[int]]:
        """Truncate pairs that are sent as text, where the model would.

        Returns:
            The pairs, the positions of those that were longer, and a token count for each.

        Raises:
            TextError: the tokenizer fails at a pair.
        """
        queries = {query: self._length_of(query) for query in dict.fromkeys(pair.query for pair in pairs)}
        room = self.pair_tokens - self.pair_special
        cut, long, counts = list(pairs), [], []
        for i, pair in enumerate(pairs):
            passage = len(pair.passage) // 4 + 1
            # A token stands for a character or more: a short pair need not be counted exactly.
            if queries[pair.query] + len(pair.passage.encode()) > room:
                passage = self._length_of(pair.passage)
            kept = longest_first(queries[pair.query], passage, room)
            if kept != (queries[pair.query], passage):
                long.append(i)
                cut[i] = replace(pair, query=self._text(pair.query, kept[0]), passage=self._text(pair.passage, kept[1]))
            counts.append(sum(kept) + self.pair_special)
        return cut, long, counts

    def _length_of(self, text: str) -> int:
        return self.count([self._end_of(text, self.pair_tokens)])[0] - self._special

    def _text(self, text: str, tokens: int) -> str:
        end = self._end_of(text, self.pair_tokens)
        return text if self._length_of(text) <= tokens else self._shorten(end, tokens + self._special)[0]
