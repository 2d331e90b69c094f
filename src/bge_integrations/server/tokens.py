"""Counting tokens with the encoder's own tokenizer, and finding where the model stops reading."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

CountTokens = Callable[[Sequence[str]], list[int] | None]


def token_counter(encoder: Any) -> CountTokens | None:
    """Find the tokenizer of an encoder, or of the one that it wraps."""
    while encoder is not None:
        count: CountTokens | None = getattr(encoder, "count_tokens", None)
        if count is not None:
            return count
        encoder = getattr(encoder, "inner", None)
    return None


def read_characters(text: str, count: CountTokens, limit: int) -> int:
    """Find how many leading characters of ``text`` still fit ``limit`` tokens, asking for 16 prefixes at a time."""
    low, high = 0, len(text)
    while high - low > 1:
        step = max(1, (high - low) // 16)
        ends = range(low + step, high, step)
        fits = [end for end, n in zip(ends, count([text[:end] for end in ends]) or [], strict=False) if n <= limit]
        low = fits[-1] if fits else low
        high = min(high, low + step)
    return low
