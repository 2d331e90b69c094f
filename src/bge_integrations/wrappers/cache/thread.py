"""The cache's own thread, which looks keys up and stores rows, and the stream that has computed rows stored."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from ...core.batches import Batch, Placed, Stream
from ...core.lock import Lock
from ...errors import BGEError, no_thread
from .rows import pack
from .stores import CircuitBreaker

__all__ = ["CacheThread", "Misses"]


class CacheThread:
    """One thread that works on a store, first in, first out; started at first use, and anew after fork and close."""

    def __init__(self, store: CircuitBreaker) -> None:
        self.store = store
        self._lock = Lock()  # guards _pid and _pool
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._pool: ThreadPoolExecutor | None = None
        self._own_thread: set[int] = set()
        self._queue: deque[tuple[bytes, bytes]] = deque()  # threads append and pop without a lock

    def run(self, fail: Callable[[BaseException], object], work: Callable[..., object], *args: Any) -> None:
        """Run work on the thread; pass what it raises to ``fail``.

        Raises:
            BGEError: the thread cannot be started, or the interpreter is shutting down.
        """

        def guarded() -> None:
            try:
                work(*args)
            except BaseException as error:  # noqa: BLE001 - it belongs to the caller, who waits
                fail(error)

        with self._lock:
            if self._pid != os.getpid():
                self._reset()
            if self._pool is None:
                self._own_thread = own = set()
                self._pool = ThreadPoolExecutor(1, "bge-cache", lambda: own.add(threading.get_ident()))
            try:
                self._pool.submit(guarded)
            except RuntimeError as error:
                # The pool keeps work that no thread took, and would do it at the next call.
                self._pool = None
                raise no_thread("the cache", error).add(", or call before the interpreter shuts down") from error

    def keep(self, rows: list[tuple[bytes, bytes]]) -> None:
        """Queue rows for the next flush."""
        self._queue.extend(rows)

    def flush(self) -> None:
        """Commit the queued rows of all calls in one transaction."""
        rows = []
        with suppress(IndexError):
            while True:
                rows.append(self._queue.popleft())
        if rows:
            self.store.put_many(rows)

    def close(self) -> None:
        """Do what is queued, end the thread and close the store; a later ``run`` opens them again."""
        with self._lock:
            pool, self._pool, own = self._pool, None, self._own_thread
            here = self._pid == os.getpid()
        if pool is not None and here:
            # A callback of a call may close the cache, on its thread, which cannot wait for itself.
            pool.shutdown(wait=threading.get_ident() not in own)
        self.store.close()


class Misses(Placed):
    """Stores the rows of cache misses, and passes each on to all its positions.

    Args:
        thread: of the cache.
        outer: the stream of the whole call.
        places: by key, all positions of what was missed.
    """

    def __init__(self, thread: CacheThread, outer: Stream, places: dict[bytes, list[int]]) -> None:
        super().__init__(outer, list(places.values()))
        self._thread, self._keys = thread, list(places)
        self._not_stored: list[BaseException] = []

    def put(self, batch: Batch) -> None:
        """Queue a batch's rows for the store, and pass it on."""
        truncated = set(batch.truncated)
        self._thread.keep(
            [
                (self._keys[i], pack(self._keys[i], self.output.pack(row), truncated=i in truncated))
                for i, row in zip(batch.positions, batch.rows, strict=True)
            ]
        )
        with suppress(BGEError):  # without a thread, rows wait until the end
            self._thread.run(self._not_stored.append, self._thread.flush)
        super().put(batch)

    def finish(self) -> None:
        """End the outer stream, after the last row is stored."""
        self._end(lambda: self.outer.fail(self._not_stored[0]) if self._not_stored else self.outer.finish())

    def fail(self, error: BaseException) -> None:
        """End the outer stream with an error about the whole, after the last row is stored."""
        self._end(lambda: Placed.fail(self, error))

    def _end(self, end: Callable[[], object]) -> None:
        # After the last flush, so that a caller who has its rows finds them stored; and on the cache's thread, so
        # that the outer stream never ends on one thread while another is putting a batch into it.
        def ending() -> None:
            self._thread.flush()
            end()
            self._thread.store.settle()

        try:
            self._thread.run(self.outer.fail, ending)
        except BGEError:
            try:
                ending()
            except BaseException as error:  # noqa: BLE001 - a warning of the store, where warnings are errors
                self.outer.fail(error)
