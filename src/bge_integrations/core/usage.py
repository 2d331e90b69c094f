"""What an encoder has done so far: texts, tokens, requests, time, money."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from .lock import Lock

__all__ = ["Usage"]


@dataclass
class Usage:
    """What an encoder has done so far.

    Attributes:
        texts: texts embedded; those found in a cache count in ``cache_hits`` instead.
        tokens: tokens as counted by the host or the tokenizer; 0 if neither did.
        requests: requests sent to a host, retries included.
        retries: requests that were retried.
        cache_hits: vectors found in a cache.
        seconds: time in which at least one call waited, summed over calls.
        usd: price of the tokens if the provider states one, else None.
        truncated: texts that were longer than the model reads.
    """

    texts: int = 0
    tokens: int = 0
    requests: int = 0
    retries: int = 0
    cache_hits: int = 0
    seconds: float = 0.0
    usd: float | None = None
    truncated: int = 0
    _lock: Lock = field(default_factory=Lock, init=False, repr=False, compare=False)

    def add(self, **amounts: float) -> None:
        """Add to the counters; safe from any thread."""
        with self._lock:
            for name, amount in amounts.items():
                setattr(self, name, (getattr(self, name) or 0) + amount)

    def to_dict(self) -> dict[str, Any]:
        """Return the counters as plain data."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.init}
