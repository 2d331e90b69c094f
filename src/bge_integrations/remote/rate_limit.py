"""Client-side rate limiter: paces requests and tokens per minute, and honours Retry-After for the whole encoder."""

from __future__ import annotations

import asyncio
import copy
import io
import pickle
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from ..errors import HostError

__all__ = ["PortableLimiter", "RateLimiter"]


@runtime_checkable
class TokenLimiter(Protocol):
    """A rate limiter that is asked for requests and tokens, as LlamaIndex's."""

    async def async_acquire(self, num_tokens: int = 0) -> None:
        """Wait."""


class RateLimiter:
    """Paces the requests of one encoder. Used on one event loop only.

    Args:
        requests_per_minute: pace of requests.
        tokens_per_minute: pace of tokens.
        limiter: asked before each request as well.
    """

    def __init__(
        self, requests_per_minute: float | None, tokens_per_minute: float | None, limiter: PortableLimiter | None
    ) -> None:
        self._paces = (requests_per_minute, tokens_per_minute)
        self._limiter = limiter
        self._next = [0.0, 0.0]  # when the next request, the next token may go
        self._resumes = 0.0
        self._reason: HostError | None = None
        # First come, first served. Only the first in the queue waits for the pace, and takes its place when it goes:
        # whoever gives up before has taken nothing.
        self._queue = asyncio.Lock()

    def pause(self, seconds: float, reason: HostError) -> None:
        """Pause all requests for ``seconds``."""
        resumes = time.monotonic() + seconds
        if resumes > self._resumes:
            self._resumes, self._reason = resumes, reason

    async def acquire(self, tokens: int, in_time: Callable[[float], bool] = lambda _: True) -> None:
        """Wait until one request with so many tokens may be sent.

        Args:
            tokens: of the request.
            in_time: whether so many seconds of waiting end before the call does; not asked where something else ends
                the waiting.

        Raises:
            HostError: the host asked for more time than the call has; what it said when it did.
        """
        await self._while_paused(in_time)
        if self._limiter is not None:
            await self._limiter.async_acquire(num_tokens=tokens)
        async with self._queue:
            if (wait := max(self._next) - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            await self._while_paused(in_time)  # again: a pause may have begun while this one waited
            now = time.monotonic()
            for i, (pace, amount) in enumerate(zip(self._paces, (1, tokens), strict=True)):
                if pace:  # what a sleep took too long is not lost
                    begin = self._next[i] if now - self._next[i] < 0.05 else now
                    self._next[i] = begin + 60.0 * amount / pace

    async def _while_paused(self, in_time: Callable[[float], bool]) -> None:
        while (wait := self._resumes - time.monotonic()) > 0:
            if self._reason is not None and not in_time(wait):
                error = copy.copy(self._reason)
                error.retry_after = wait
                raise error
            await asyncio.sleep(wait)


class PortableLimiter:
    """A rate limiter of LangChain or LlamaIndex that can be pickled and copied, asked in LlamaIndex's way.

    Theirs hold locks, which can be neither pickled nor copied. A copy shares the limiter; another process gets one
    with a pace of its own.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def acquire(self, num_tokens: int = 0) -> None:
        """Wait until one request may be sent."""
        by_tokens = isinstance(self.inner, TokenLimiter)
        inner: Any = self.inner
        inner.acquire(**({"num_tokens": num_tokens} if by_tokens else {"blocking": True}))

    async def async_acquire(self, num_tokens: int = 0) -> None:
        """Wait until one request may be sent, without blocking the event loop."""
        if isinstance(self.inner, TokenLimiter):
            await self.inner.async_acquire(num_tokens=num_tokens)
        else:
            await self.inner.aacquire(blocking=True)

    def __deepcopy__(self, memo: dict[int, Any]) -> PortableLimiter:
        return self

    def __getstate__(self) -> bytes:
        raw = io.BytesIO()
        _LockRebuilder(raw).dump(self.inner)
        return raw.getvalue()

    def __setstate__(self, state: bytes) -> None:
        self.inner = pickle.loads(state)


# The types of locks have no names in threading, and refuse to be pickled.
_LOCKS = {type(threading.Lock()): threading.Lock, type(threading.RLock()): threading.RLock}


class _LockRebuilder(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        factory = _LOCKS.get(type(obj))
        return NotImplemented if factory is None else (factory, ())
