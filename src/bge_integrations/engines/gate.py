"""The one place that all requests of an encoder pass: it closes for a while when a host asks for time."""

from __future__ import annotations

import asyncio
import time
from typing import Any


class Gate:
    """Open, or closed until a moment; paces requests and tokens per minute. Used on one event loop only."""

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None, limiter: Any) -> None:
        self._paces = (requests_per_minute, tokens_per_minute)
        self._limiter = limiter
        self._opens = 0.0
        self._next = [0.0, 0.0]

    def close_for(self, seconds: float) -> None:
        """Hold every request back for so long."""
        self._opens = max(self._opens, time.monotonic() + seconds)

    def wait(self) -> float:
        """Return the seconds until the gate opens."""
        return max(self._opens - time.monotonic(), 0.0)

    async def enter(self, tokens: int) -> None:
        """Wait until one request with so many tokens may be sent."""
        await asyncio.sleep(self._reserve(tokens))
        while (wait := self.wait()) > 0:  # noqa: ASYNC110 - the gate may be closed again for longer meanwhile
            await asyncio.sleep(wait)
        if self._limiter is not None:
            await _acquire(self._limiter)

    def _reserve(self, tokens: int) -> float:
        now, start = time.monotonic(), 0.0
        for i, (pace, amount) in enumerate(zip(self._paces, (1, tokens), strict=True)):
            if pace:
                begin = max(self._next[i], now)
                self._next[i] = begin + 60.0 * amount / pace
                start = max(start, begin - now)
        return start


async def _acquire(limiter: Any) -> None:
    if hasattr(limiter, "async_acquire"):  # LlamaIndex
        await limiter.async_acquire()
    else:  # LangChain
        await limiter.aacquire(blocking=True)
