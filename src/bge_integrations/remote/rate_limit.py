"""The one place that all requests of an encoder pass: it closes for a while when a host asks for time."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable
from typing import Any

from ..errors import HostError


class Gate:
    """Open, or closed until a moment; paces requests and tokens per minute. Used on one event loop only."""

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None, limiter: Any) -> None:
        self._paces = (requests_per_minute, tokens_per_minute)
        self._limiter = limiter
        self._opens = 0.0
        self._why: HostError | None = None
        self._next = [0.0, 0.0]

    def close_for(self, seconds: float, why: HostError) -> None:
        """Hold every request back for so long."""
        opens = time.monotonic() + seconds
        if opens > self._opens:
            self._opens, self._why = opens, why

    async def enter(self, tokens: int, in_time: Callable[[float], bool]) -> None:
        """Wait until one request with so many tokens may be sent.

        Raises:
            HostError: the host asked for more time than the call has; what it said when it did.
        """
        if (pause := self._reserve(tokens)) > 0:
            await asyncio.sleep(pause)
        while (wait := self._opens - time.monotonic()) > 0:
            if self._why is not None and not in_time(wait):
                raise _again(self._why, wait)
            await asyncio.sleep(wait)
        if self._limiter is not None:
            await _acquire(self._limiter, tokens)

    def _reserve(self, tokens: int) -> float:
        """Take the next free time of both paces and return the seconds until then."""
        now, start = time.monotonic(), 0.0
        for i, (pace, amount) in enumerate(zip(self._paces, (1, tokens), strict=True)):
            if pace:
                begin = max(self._next[i], now)
                self._next[i] = begin + 60.0 * amount / pace
                start = max(start, begin - now)
        return start


def _again(why: HostError, wait: float) -> HostError:
    error = copy.copy(why)
    error.retry_after = wait
    return error


async def _acquire(limiter: Any, tokens: int) -> None:
    if hasattr(limiter, "async_acquire"):  # LlamaIndex
        await limiter.async_acquire(num_tokens=tokens)
    else:  # LangChain
        await limiter.aacquire(blocking=True)
