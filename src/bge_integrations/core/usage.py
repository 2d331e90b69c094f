"""What an encoder has done so far: texts, tokens, requests, time, money."""

from __future__ import annotations

import threading
from dataclasses import dataclass, fields
from typing import Any

from .tracing import add_tokens

__all__ = ["Usage"]


@dataclass
class Usage:
    """What an encoder has done so far.

    Attributes:
        texts: texts embedded; those found in a cache count in ``cache_hits`` instead.
        tokens: tokens as the host or the tokenizer counted them; 0 where nobody did.
        requests: requests sent to a host, retries included.
        retries: requests that were sent again.
        cache_hits: vectors that came out of a cache.
        seconds: time in which at least one call waited, summed over calls.
        usd: price of the tokens where the host states one, else None.
    """

    texts: int = 0
    tokens: int = 0
    requests: int = 0
    retries: int = 0
    cache_hits: int = 0
    seconds: float = 0.0
    usd: float | None = None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def add(self, **amounts: float) -> None:
        """Add to the counters; safe from any thread."""
        with self._lock:
            for name, amount in amounts.items():
                setattr(self, name, (getattr(self, name) or 0) + amount)
        if "tokens" in amounts:
            add_tokens(amounts["tokens"])

    def to_dict(self) -> dict[str, Any]:
        """Return the counters as plain data."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __getstate__(self) -> dict[str, Any]:
        return self.to_dict()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
