"""An encoder that remembers: texts it has seen in the same role and space are not embedded again."""

from __future__ import annotations

import contextvars
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from ...core.encoder import FutureEncoder, OnBatch, Role, Truncate, Vectors, on_cut, report_cut
from ...errors import BGEError
from ..base import WrappedEncoder
from .lookup import Call
from .rows import keyer, unpack
from .stores import Store, TolerantStore, as_store

__all__ = ["CachedEncoder"]


class CachedEncoder(WrappedEncoder):
    """An encoder around another one, with a memory that survives kills and is shared between processes.

    Each batch is committed as it is finished. A query and a document never share a row; nor do two models, revisions,
    poolings or instructions. Hosts of the same space do. A store that fails costs hits, not the job.

    Args:
        inner: the encoder that embeds what is not remembered.
        store: path of an SQLite file, a ``Store``, a ``ByteStore`` of LangChain or a ``BaseKVStore`` of LlamaIndex.
        max_bytes: of an SQLite file; least recently used rows go first.

    Raises:
        ConfigError: ``store`` is none of these.
    """

    def __init__(self, inner: FutureEncoder, store: Store | str | Path | Any, *, max_bytes: int | None = None) -> None:
        super().__init__(inner)
        self.store = TolerantStore(as_store(store, max_bytes=max_bytes))
        self._reset()

    def _reset(self) -> None:
        self._pid, self._lock = os.getpid(), threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._own_thread: set[int] = set()
        self._finished: deque[tuple[Call, list[int], Vectors]] = deque()

    def describe(self) -> dict[str, Any]:
        """Return how the inner encoder works, and where the cache is."""
        return {**self.inner.describe(), "cache": repr(self.store.store)}

    def start(self, texts: list[str], role: Role, on_batch: OnBatch | None) -> Future[Vectors]:
        """Begin to look texts up and to embed those that are not there; returns at once."""
        call = Call(texts, role, on_batch)
        self._do(call, contextvars.copy_context().run, self._look_up, call)
        return call.future

    def close(self) -> None:
        """Close the inner encoder, write what is finished, and close the store; a later call opens them again."""
        self.inner.close()
        pool, self._pool = self._pool, None
        if pool is not None and self._pid == os.getpid():
            pool.shutdown(wait=threading.get_ident() not in self._own_thread)
        self.store.close()

    def _do(self, call: Call, work: Callable[..., Any], *args: Any) -> None:
        """Run work on the cache's own thread, in the order of asking."""

        def guarded() -> None:
            try:
                work(*args)
            except BaseException as error:  # noqa: BLE001 - it belongs to the caller, who waits on the future
                call.fail(error)

        if self._pid != os.getpid():
            self._reset()
        with self._lock:
            if self._pool is None:
                self._own_thread = own = set()
                self._pool = ThreadPoolExecutor(1, "bge-cache", lambda: own.add(threading.get_ident()))
            self._pool.submit(guarded)

    def _look_up(self, call: Call) -> None:
        if call.future.cancelled():
            return
        call.key_with(map(keyer(self.inner, call.role), call.texts))
        call.found(unpack(call.keys, self.store.get_many(call.keys), self.card.dimensions))
        self.usage.add(cache_hits=call.hit_count)
        if call.cut and self._truncate == "error":
            self._report(call)
        if call.misses:
            self._send(call)
        else:
            self._finish(call, None)

    def _send(self, call: Call) -> None:
        def on_batch(sent: Sequence[int], vectors: Vectors) -> None:
            self._finished.append((call, list(sent), vectors.copy()))
            self._do(call, self._flush)
            call.batch(sent, vectors)

        def done(inner: Future[Vectors]) -> None:
            if inner.cancelled():
                call.future.cancel()
            elif (error := inner.exception()) is not None:
                self._do(call, call.fail, call.translate(error))
            else:
                self._do(call, self._finish, call, inner.result())

        on_cut.set(_listener(call, on_cut.get()))
        try:
            started = self.inner.start(call.to_send(), call.role, on_batch)
        except BGEError as error:
            call.fail(call.translate(error))
            return
        # Weakly: else the two futures hold each other, and with them the vectors, until Python collects cycles.
        running = weakref.ref(started)
        call.future.add_done_callback(lambda _: (still := running()) and still.cancel())
        started.add_done_callback(done)

    def _flush(self) -> None:
        """Commit every batch that waits, of all calls, in one transaction."""
        batches = [self._finished.popleft() for _ in range(len(self._finished))]
        if not batches:
            return
        self.store.put_many([row for call, sent, vectors in batches for row in call.rows(sent, vectors)])

    def _finish(self, call: Call, sent: Vectors | None) -> None:
        if sent is not None:
            # What no batch brought, and what was found to be cut only after it was stored.
            late = [j for j, i in enumerate(call.misses) if call.stored.get(j) is not (i in call.cut)]
            if late:
                self.store.put_many(call.rows(late, sent[late]))
        if call.cut and not call.reported:
            self._report(call)
        call.succeed(call.assemble(sent, self.card.dimensions))
        self.store.settle()

    def _report(self, call: Call) -> None:
        positions = sorted(call.positions(call.cut))
        report_cut(positions, model=self.card.id, max_tokens=self.card.max_tokens, truncate=self._truncate)

    @property
    def _truncate(self) -> Truncate:
        engine: Any = self.inner
        while (deeper := getattr(engine, "inner", None)) is not None:
            engine = deeper
        return cast("Truncate", getattr(engine, "truncate", "warn"))

    def __getstate__(self) -> dict[str, Any]:
        return {"inner": self.inner, "store": self.store}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()


def _listener(call: Call, outer: Callable[[Sequence[int]], Sequence[int]] | None) -> Callable[..., Sequence[int]]:
    """Return what translates the positions of cut texts; holds no call, since a timer may hold its context for long."""
    weak = weakref.ref(call)

    def told(sent: Sequence[int]) -> Sequence[int]:
        alive = weak()
        positions = sent if alive is None else alive.cut_positions(sent)
        return outer(positions) if outer else positions

    return told
