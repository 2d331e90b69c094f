"""A reranker that remembers: a second question costs only the passages that it was not asked about."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from hashlib import blake2b
from operator import attrgetter
from pathlib import Path
from typing import Any

from ...core.batches import Batch, Stream
from ...core.checks import refuse_truncation
from ...core.reranker import Pair, Reranker
from ...errors import BGEError
from .rows import unpack
from .stores import CircuitBreaker, Store, as_store
from .thread import CacheThread, Misses

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
        self._thread = CacheThread(self.store)

    def describe(self) -> dict[str, Any]:
        """Return how the inner reranker works, and where the cache is."""
        return {**self.inner.describe(), "cache": repr(self.store.store)}

    def batches(self, pairs: list[Pair], stream: Stream) -> None:
        """Begin to look pairs up and to score those that are not there; returns at once."""
        self._thread.run(stream.fail, contextvars.copy_context().run, self._look_up, pairs, stream)

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
        places: dict[bytes, list[int]] = {}
        for position, key in enumerate(keys):
            if position not in found:
                places.setdefault(key, []).append(position)
        if not places:
            stream.finish()
            self.store.settle()
            return
        misses = Misses(self._thread, stream, places)
        try:
            self.inner.batches([pairs[first] for first, *_ in places.values()], misses)
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
        self.inner.close()  # first: the last rows of calls that this ends go to the cache's thread
        self._thread.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"inner": self.inner, "store": self.store}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._thread = CacheThread(self.store)
