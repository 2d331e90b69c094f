"""A rate limiter that travels: LangChain's and LlamaIndex's hold a lock, which can be neither pickled nor copied."""

from __future__ import annotations

import io
import pickle
import threading
from typing import Any

__all__ = ["Limiter"]

_LOCKS = {type(threading.Lock()): threading.Lock, type(threading.RLock()): threading.RLock}


class Limiter:
    """Asks ``inner`` in LlamaIndex's way. A copy shares it; another process gets one that keeps its own pace."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def acquire(self, num_tokens: int = 0) -> None:
        """Wait until one request may be sent."""
        if hasattr(self.inner, "async_acquire"):
            self.inner.acquire(num_tokens=num_tokens)
        else:
            self.inner.acquire(blocking=True)

    async def async_acquire(self, num_tokens: int = 0) -> None:
        """Wait until one request may be sent, without blocking the event loop."""
        if hasattr(self.inner, "async_acquire"):
            await self.inner.async_acquire(num_tokens=num_tokens)
        else:
            await self.inner.aacquire(blocking=True)

    def __deepcopy__(self, memo: dict[int, Any]) -> Limiter:
        return self

    def __getstate__(self) -> bytes:
        raw = io.BytesIO()
        _LockRebuilder(raw).dump(self.inner)
        return raw.getvalue()

    def __setstate__(self, state: bytes) -> None:
        self.inner = pickle.loads(state)


class _LockRebuilder(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        factory = _LOCKS.get(type(obj))
        return NotImplemented if factory is None else (factory, ())
