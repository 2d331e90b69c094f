"""A reranker that remembers: a second question costs only the passages that it was not asked about."""

from __future__ import annotations

import contextvars
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from operator import attrgetter
from pathlib import Path
from typing import Any

from ...core.batches import Batch, Relay, Stream
from ...core.checks import refuse_truncation
from ...core.reranker import Pair, Placed, Reranker
from ...errors import BGEError
from .rows import pack, unpack
from .stores import CircuitBreaker, Store, as_store

__all__ = ["CachedReranker"]


def _inner(name: str) -> Any:
    return property(attrgetter(f"inner.{name}"))


class CachedReranker(Reranker):
    """A reranker around another one, whose logits lie in the same file as vectors do.

    A row depends on model, revision, length, variant, query and passage. A store that fails costs hits, not the call.

    Args:
        inner: the reranker that scores what is not remembered.
        store: as ``CachedEncoder`` takes it.
        max_bytes: of an SQLite file.

    Raises:
        ConfigError: ``store`` is no store.
    """

    card = _inner("card")
    usage = _inner("usage")
    blank = _inner("blank")
    truncate = _inner("truncate")
    variant = _inner("variant")
    remote = _inner("remote")
    base_url = _inner("base_url")
    price = _inner("price")
    max_concurrency = _inner("max_concurrency")
    longest = _inner("longest")
    engine: Reranker = _inner("engine")
    key: str | None = _inner("key")

    def __init__(self, inner: Reranker, store: Store | str | Path | Any, *, max_bytes: int | None = None) -> None:
        self.inner = inner
        self.store = CircuitBreaker(as_store(store, max_bytes=max_bytes))
        self._reset()

    def _reset(self) -> None:
        self._pid, self._lock = os.getpid(), threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def describe(self) -> dict[str, Any]:
        """Return how the inner reranker works, and where the cache is."""
        return {**self.inner.describe(), "cache": repr(self.store.store)}

    def batches(self, pairs: list[Pair], stream: Stream) -> None:
        """Begin to look pairs up and to score those that are not there; returns at once."""
        self.run(stream, contextvars.copy_context().run, self._look_up, pairs, stream)

    def run(self, stream: Stream, work: Callable[..., Any], *args: Any) -> None:
        """Run work on the cache's own thread, in the order of asking; what it raises fails the stream.

        Raises:
            BGEError: the thread cannot be started.
        """

        def guarded() -> None:
            try:
                work(*args)
            except BaseException as error:  # noqa: BLE001 - it belongs to the caller, who waits
                stream.fail(error)

        if self._pid != os.getpid():
            self._reset()
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, "bge-cache")
            try:
                self._pool.submit(guarded)
            except RuntimeError as error:
                self._pool = None
                raise BGEError(f"the cache's thread cannot be started ({error}): call again") from error

    def _look_up(self, pairs: list[Pair], stream: Stream) -> None:
        if stream.cancelled:
            return
        keys = list(map(self._key_of(), pairs))
        hits = unpack(keys, self.store.get_many(keys), stream.output)
        if hits.indices:
            if self.truncate == "error":
                refuse_truncation(hits.truncated, model=self.card.id, max_tokens=self.card.max_tokens)
            stream.put(Batch(hits.indices, hits.rows, truncated=hits.truncated, computed=0))
        found = set(hits.indices)
        missing = [i for i in range(len(pairs)) if i not in found]
        if not missing:
            stream.finish()
            return
        misses = _Misses(self, stream, missing, [keys[i] for i in missing])
        try:
            self.inner.batches([pairs[i] for i in missing], misses)
        except BGEError as error:
            misses.fail(error)

    def _key_of(self) -> Callable[[Pair], bytes]:
        start = blake2b(digest_size=20, person=b"bge-score")
        start.update(self.inner.space.encode("utf-8", "surrogatepass") + b"\0")

        def key(pair: Pair) -> bytes:
            hashed = start.copy()
            query = pair.query.encode("utf-8", "surrogatepass")
            hashed.update(b"%d:" % len(query) + query + pair.passage.encode("utf-8", "surrogatepass"))
            return hashed.digest()

        return key

    def close(self) -> None:
        """Close the inner reranker, write what is finished, and close the store; a later call opens them again."""
        self.inner.close()
        pool, self._pool = self._pool, None
        if pool is not None and self._pid == os.getpid():
            pool.shutdown()
        self.store.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"inner": self.inner, "store": self.store}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()


class _Misses(Relay):
    """Stores the logits of pairs that were not in the cache, before the call ends."""

    def __init__(self, cache: CachedReranker, outer: Stream, positions: list[int], keys: list[bytes]) -> None:
        super().__init__(Placed(outer, [[position] for position in positions]))
        self._cache, self._keys = cache, keys

    def put(self, batch: Batch) -> None:
        truncated = set(batch.truncated)
        rows = [
            (self._keys[i], pack(self._keys[i], self.output.pack(row), truncated=i in truncated))
            for i, row in zip(batch.positions, batch.rows, strict=True)
        ]
        self._cache.run(self.outer, self._cache.store.put_many, rows)
        self.outer.put(batch)

    def finish(self) -> None:
        # After the last row: a caller that has its scores finds them stored.
        self._cache.run(self.outer, self._end)

    def _end(self) -> None:
        self.outer.finish()
        self._cache.store.settle()

    def fail(self, error: BaseException) -> None:
        self._cache.run(self.outer, self.outer.fail, error)
