"""Rows of bge-m3's sparse and multivector output as hosts give them: made whole, or refused as none of their text."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence, Set
from typing import Any

import numpy as np

from ..catalog.records import ModelCard
from ..core.tokenizer import TextTokenizer
from ..errors import BadAnswerError, SpaceMismatchError
from .protocols.output_wire import largest_weights

__all__ = ["check_counts", "check_words", "map_of", "most_tokens", "paired", "special_ids", "without"]

_M3_VOCABULARY, _M3_SPECIAL = 250_002, frozenset(range(4))


def special_ids(card: ModelCard, tokenizer: TextTokenizer | None) -> frozenset[int]:
    """Return the ids that bge-m3's formula leaves out; without the model's tokenizer, those of bge-m3 itself."""
    if tokenizer is not None:
        return tokenizer.special_ids
    return _M3_SPECIAL if card.vocabulary == _M3_VOCABULARY else frozenset()


def without(special: Set[int], row: dict[int, Any]) -> dict[int, Any]:
    """Return a sparse row without special tokens."""
    return {token: weight for token, weight in row.items() if token not in special}


def most_tokens(text: str) -> int:
    """Return as many tokens as a text can have: each takes a letter, and one stands before, two around it."""
    return len(unicodedata.normalize("NFKC", text)) + 3


def paired(rows: Sequence[Any], ids: Sequence[Sequence[int]]) -> list[dict[int, Any]]:
    """Return rows of one weight per token as maps; hosts leave out ``<s>`` and ``</s>``, or ``<s>`` alone, or none.

    Raises:
        BadAnswerError: another number of weights than of tokens, or one row with more special tokens than another:
            its weights would be its neighbours'.
    """
    left_out = [len(tokens) - len(row) for tokens, row in zip(ids, rows, strict=True)]
    usual = max(set(left_out), key=left_out.count)  # what a host leaves out, it leaves out of every row
    for position, left in enumerate(left_out):
        if left != usual or left not in (0, 1, 2):
            raise BadAnswerError(
                f"sparse vector {position} has {len(rows[position])} weights for a text of {len(ids[position])} tokens",
                positions=[position],
                retryable=True,
            )
    first = min(usual, 1)
    return [
        largest_weights(zip(tokens[first : first + len(row)], row, strict=True), position)
        for position, (tokens, row) in enumerate(zip(ids, rows, strict=True))
    ]


def map_of(row: Any, card: ModelCard, position: int) -> dict[int, Any]:
    """Return a sparse row as a map; one number per id of the vocabulary becomes one.

    Raises:
        BadAnswerError: it is neither.
    """
    if isinstance(row, dict):
        return row
    listed = isinstance(row, (list, np.ndarray))
    if not listed or len(row) != card.vocabulary:
        held = f"{len(row):,} numbers" if listed else "something else"
        raise BadAnswerError(
            f"sparse vector {position} is {held}: neither a map of ids to weights, nor one number for each of the "
            f"{card.vocabulary:,} ids of {card.id!r}",
            positions=[position],
        )
    numbers = row.tolist() if isinstance(row, np.ndarray) else row
    return largest_weights(((token, weight) for token, weight in enumerate(numbers) if weight != 0), position)


def check_words(row: dict[int, Any], text: str, ids: Sequence[int] | None, card: ModelCard, position: int) -> None:
    """Refuse ids that cannot be their text's: SPLADE adds words, bge-m3 never.

    Args:
        row: without special tokens.
        text: as it was sent.
        ids: the text's own where they are known.
        card: the model; ids beyond its vocabulary are refused elsewhere.
        position: of the text.

    Raises:
        SpaceMismatchError: so many that it is another kind of model's.
        BadAnswerError: a few.
    """
    if ids is None:
        foreign = len(row) - most_tokens(text)
        seen = f"{len(row)} ids for a text of {len(text)} characters"
    else:
        foreign = len([token for token in row.keys() - set(ids) if 0 <= token < card.vocabulary])
        seen = f"{foreign} of {len(row)} ids are not tokens of its text"
    if foreign > 0 and (ids is None or 4 * foreign > len(row)):
        raise SpaceMismatchError(
            f"these are not {card.id!r}'s sparse vectors: {seen}, as with SPLADE, which adds words, or "
            "with another tokenizer",
            model=card.id,
            verdict="SPLADE-shaped",
        )
    if foreign > 0:
        raise BadAnswerError(f"sparse vector {position}: {seen}", positions=[position], retryable=True)


def check_counts(rows: Sequence[Any], ids: Sequence[Sequence[int]]) -> None:
    """Refuse another number of vectors than tokens without ``<s>``.

    Raises:
        BadAnswerError: says what was kept, dropped or truncated.
    """
    causes = {1: "<s> has a vector too, which bge-m3 leaves out", -1: "</s> has none, which bge-m3 keeps"}
    for position, (row, tokens) in enumerate(zip(rows, ids, strict=True)):
        wanted = len(tokens) - 1
        if len(row) != wanted:
            cause = causes.get(len(row) - wanted, "the host truncates, or uses another tokenizer")
            raise BadAnswerError(
                f"{len(row)} vectors were returned for a text of {len(tokens)} tokens, not {wanted}: {cause}",
                positions=[position],
            )
