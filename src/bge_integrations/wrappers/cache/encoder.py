"""The cache around an encoder: a text is embedded once per role and space."""

from __future__ import annotations

import contextvars
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...core.checks import refuse_truncation
from ...core.encoder import Batch, Encoder, Relay, Role, Stream
from ...errors import BGEError
from ..base import Wrapper
from .rows import keyer, pack, unpack
from .stores import CircuitBreaker, Store, as_store

__all__ = ["CachedEncoder"]


class CachedEncoder(Wrapper):
    """A cache around an encoder; an SQLite file survives kills and is shared between processes.

    Each batch is committed as it is finished. A query and a document never share a row; nor do two models, revisions,
    poolings or instructions. Hosts of the same space do. A store that fails causes cache misses and one warning; calls
    succeed without it.

    Args:
        inner: the encoder that embeds what is not cached.
        store: path of an SQLite file, ``":memory:"``, a ``Store``, a ``ByteStore`` of LangChain or a ``BaseKVStore``
            of LlamaIndex.
        max_bytes: size limit of a file or of memory; least recently used rows are deleted first.

    Raises:
        CacheError: at the path is something else than a cache of this package.
        ConfigError: ``store`` is none of these.
    """

    def __init__(self, inner: Encoder, store: Store | str | Path | Any, *, max_bytes: int | None = None) -> None:
        super().__init__(inner)
        self.store = CircuitBreaker(as_store(store, max_bytes=max_bytes))
        self._reset()

    def _reset(self) -> None:
        self._pid, self._lock = os.getpid(), threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._own_thread: set[int] = set()
        self._queue: deque[tuple[bytes, bytes]] = deque()

    def describe(self) -> dict[str, Any]:
        """Return how the inner encoder works, and where the cache is."""
        return {**self.inner.describe(), "cache": repr(self.store.store)}

    def batches(self, texts: list[str], role: Role, stream: Stream) -> None:
        """Begin to look texts up and to embed those that are not cached; return at once."""
        self.run(stream.fail, contextvars.copy_context().run, self._look_up, texts, role, stream)

    def close(self) -> None:
        """Close the inner encoder, write finished rows, and close the store; a later call opens them again."""
        self.inner.close()
        pool, self._pool = self._pool, None
        if pool is not None and self._pid == os.getpid():
            pool.shutdown(wait=threading.get_ident() not in self._own_thread)
        self.store.close()

    def run(self, fail: Callable[[BaseException], object], work: Callable[..., object], *args: Any) -> None:
        """Run work on the cache's own thread, first in, first out; pass what it raises to ``fail``.

        Raises:
            BGEError: the thread cannot be started, or the interpreter is shutting down.
        """

        def guarded() -> None:
            try:
                work(*args)
            except BaseException as error:  # noqa: BLE001 - it belongs to the caller, who waits
                fail(error)

        if self._pid != os.getpid():
            self._reset()
        with self._lock:
            if self._pool is None:
                self._own_thread = own = set()
                self._pool = ThreadPoolExecutor(1, "bge-cache", lambda: own.add(threading.get_ident()))
            try:
                self._pool.submit(guarded)
            except RuntimeError as error:
                self._pool = None
                raise BGEError(
                    f"cannot start a thread for the cache ({error}): raise the limit of processes (ulimit -u, "
                    "pids.max) and call again, or encode before the interpreter shuts down"
                ) from error

    def _look_up(self, texts: list[str], role: Role, stream: Stream) -> None:
        if stream.cancelled:
            return
        places: dict[bytes, list[int]] = {}
        for position, key in enumerate(map(keyer(self.inner, role, stream.output), texts)):
            places.setdefault(key, []).append(position)
        keys = list(places)
        hits = unpack(keys, self.store.get_many(keys), stream.output)
        if hits.indices:
            where = list(places.values())
            stream.put(Batch(hits.indices, hits.rows, truncated=hits.truncated, computed=0).at(where))
            if self.truncate == "error":
                cut = sorted(place for i in hits.truncated for place in where[i])
                refuse_truncation(cut, model=self.card.id, max_tokens=self.card.max_tokens)
            for i in hits.indices:
                del places[keys[i]]
        if places:
            misses = _Misses(self, stream, places)
            try:
                self.inner.batches([texts[first] for first, *_ in places.values()], role, misses)
            except BGEError as error:
                misses.fail(error)
        else:
            stream.finish()
            self.store.settle()

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

    def __getstate__(self) -> dict[str, Any]:
        return {"inner": self.inner, "store": self.store}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()


class _Misses(Relay):
    """Stores the rows of cache misses and passes each on to all positions of its text."""

    def __init__(self, cache: CachedEncoder, outer: Stream, places: dict[bytes, list[int]]) -> None:
        super().__init__(outer)
        self._cache, self._keys, self._places = cache, list(places), list(places.values())
        self._not_stored: list[BaseException] = []

    def put(self, batch: Batch) -> None:
        truncated = set(batch.truncated)
        self._cache.keep(
            [
                (self._keys[i], pack(self._keys[i], self.output.pack(row), truncated=i in truncated))
                for i, row in zip(batch.positions, batch.rows, strict=True)
            ]
        )
        with suppress(BGEError):  # without a thread, rows wait until the end
            self._cache.run(self._not_stored.append, self._cache.flush)
        self.outer.put(batch.at(self._places))

    def finish(self) -> None:
        self._end(lambda: self.outer.fail(self._not_stored[0]) if self._not_stored else self.outer.finish())

    def fail(self, error: BaseException) -> None:
        placed = error.at(self._places) if isinstance(error, BGEError) else error
        self._end(lambda: self.outer.fail(placed))

    def _end(self, end: Callable[[], object]) -> None:
        # After the last flush, so that a caller who has its vectors finds them stored; and on the cache's thread, so
        # that the outer stream never ends on one thread while another is putting a batch into it.
        def ending() -> None:
            self._cache.flush()
            end()
            self._cache.store.settle()

        try:
            self._cache.run(self.outer.fail, ending)
        except BGEError:
            ending()
