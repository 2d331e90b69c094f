"""The cache around an encoder: a text is embedded once per role and space."""

from __future__ import annotations

import contextvars
from pathlib import Path
from typing import Any

from ...core.checks import refuse_truncation
from ...core.encoder import Batch, Encoder, Role, Stream
from ...errors import BGEError
from ..base import Wrapper
from .rows import keyer, unpack
from .stores import CircuitBreaker, Store, as_store
from .thread import CacheThread, Misses

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
        self._thread = CacheThread(self.store)

    def describe(self) -> dict[str, Any]:
        """Return how the inner encoder works, and where the cache is."""
        return {**self.inner.describe(), "cache": repr(self.store.store)}

    def batches(self, texts: list[str], role: Role, stream: Stream) -> None:
        """Begin to look texts up and to embed those that are not cached; return at once."""
        self._thread.run(stream.fail, contextvars.copy_context().run, self._look_up, texts, role, stream)

    def close(self) -> None:
        """Close the inner encoder, write finished rows, and close the store; a later call opens them again."""
        self.inner.close()  # first: the last rows of calls that this ends go to the cache's thread
        self._thread.close()

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
            misses = Misses(self._thread, stream, places)
            try:
                self.inner.batches([texts[first] for first, *_ in places.values()], role, misses)
            except BGEError as error:
                misses.fail(error)
        else:
            stream.finish()
            self.store.settle()

    def __getstate__(self) -> dict[str, Any]:
        return {"inner": self.inner, "store": self.store}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._thread = CacheThread(self.store)
