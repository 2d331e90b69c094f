"""Where rows lie: an SQLite file, or what the user already has from LangChain or LlamaIndex."""

from __future__ import annotations

import base64
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ...core.event_loop import BackgroundLoop
from ...core.lock import Lock
from ...errors import BGEError, ConfigError, RepairWarning
from .sqlite import MEMORY, SQLiteStore

__all__ = ["ByteStoreRows", "CircuitBreaker", "KVStoreRows", "MemoryStore", "Store", "as_store"]

_PAUSE = 60.0  # seconds before a store that failed is tried again
_warned: set[str] = set()  # errors of this package, which name their file: one warning for all encoders of a process


@runtime_checkable
class Store(Protocol):
    """Rows by key. ``settle`` and ``close`` are called too, where there are such methods."""

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the row of each key, or None where there is none."""
        ...

    def put_many(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        """Store rows, in place of those that were there."""
        ...


def as_store(store: object, *, max_bytes: int | None = None) -> Store:
    """Return a store for a path, ``":memory:"``, a ``Store``, a ``ByteStore`` or a ``BaseKVStore``.

    Raises:
        CacheError: at the path is a file that is not ours.
        ConfigError: it is none of these, or a bound is asked for that a store of the user's cannot keep.
    """
    if isinstance(store, (str, Path)):
        return MemoryStore(max_bytes=max_bytes) if str(store) == MEMORY else SQLiteStore(store, max_bytes=max_bytes)
    if max_bytes is not None:
        raise ConfigError("max_bytes limits an SQLite file; a store of your own has its own limits")
    if isinstance(store, Store):
        return store
    if callable(getattr(store, "mget", None)) and callable(getattr(store, "mset", None)):
        return ByteStoreRows(store)
    if callable(getattr(store, "get", None)) and callable(getattr(store, "put", None)):
        return KVStoreRows(store)
    raise ConfigError(
        f"cache= takes a path, a ByteStore of LangChain or a KVStore of LlamaIndex, not {type(store).__name__}"
    )


class MemoryStore:
    """Rows in the memory of this process; ``close``, pickling and copying leave an empty one.

    Args:
        max_bytes: least recently used rows go when the rows take more than this.
    """

    def __init__(self, *, max_bytes: int | None = None) -> None:
        self.max_bytes = max_bytes
        self._lock = Lock()
        self.close()

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the row of each key, or None where there is none."""
        with self._lock:
            for key in keys:
                if key in self._rows:
                    self._rows.move_to_end(key)
            return [self._rows.get(key) for key in keys]

    def put_many(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        """Store rows, and make room where a bound is set."""
        with self._lock:
            for key, row in pairs:
                self._used += len(row) - len(self._rows.pop(key, b""))
                self._rows[key] = row
            while self.max_bytes is not None and self._used > self.max_bytes:
                self._used -= len(self._rows.popitem(last=False)[1])

    def close(self) -> None:
        """Forget all rows."""
        with self._lock:
            self._rows: OrderedDict[bytes, bytes] = OrderedDict()
            self._used = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(MemoryStore, max_bytes=self.max_bytes), ()

    def __repr__(self) -> str:
        return "MemoryStore()"


class _Foreign:
    """Another package's store, called by its plain methods, or by their async twins where it has no others."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self._loop = BackgroundLoop("bge-cache-store")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.store).__name__})"  # a store's own repr may hold a password

    def either(self, plain: Callable[[], Any], twin: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Call ``plain``, or run ``twin`` where there is no such thing."""
        try:
            return plain()
        except NotImplementedError:  # what the frameworks' stores raise that have async methods alone
            return self._loop.run(twin()).result()


class ByteStoreRows(_Foreign):
    """Rows in a LangChain ``ByteStore`` (``mget`` and ``mset``)."""

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the row of each key, or None where there is none."""
        names = [_name(key) for key in keys]
        rows = self.either(lambda: self.store.mget(names), lambda: self.store.amget(names))
        return [row if isinstance(row, bytes) else None for row in rows]

    def put_many(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        """Store rows."""
        named = [(_name(key), row) for key, row in pairs]
        self.either(lambda: self.store.mset(named), lambda: self.store.amset(named))


class KVStoreRows(_Foreign):
    """Rows in a LlamaIndex ``BaseKVStore`` (``get`` and ``put``), in a collection of their own."""

    collection = "bge_vectors"

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the row of each key, or None where there is none."""
        return [self._get(_name(key)) for key in keys]

    def _get(self, name: str) -> bytes | None:
        got = self.either(
            lambda: self.store.get(name, collection=self.collection),
            lambda: self.store.aget(name, collection=self.collection),
        )
        row = got.get("row") if isinstance(got, dict) else None
        try:
            return base64.b64decode(row) if isinstance(row, str) else None
        except ValueError:
            return None

    def put_many(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        """Store rows."""
        for key, row in pairs:
            name, value = _name(key), {"row": base64.b64encode(row).decode("ascii")}  # values become JSON there
            self._put(name, value)

    def _put(self, name: str, value: dict[str, str]) -> None:
        self.either(
            lambda: self.store.put(name, value, collection=self.collection),
            lambda: self.store.aput(name, value, collection=self.collection),
        )


def _name(key: bytes) -> str:
    return f"bge-{key.hex()}"


class CircuitBreaker:
    """A store around another one whose failures become cache misses: one warning, and no call for 60 s after an error.

    Reading and writing fail apart, since a full disk can still be read.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._warned = False
        self._open_until = {"read": 0.0, "write": 0.0}

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the row of each key; None for all where the store fails."""
        rows = self._try("read", lambda: self.store.get_many(keys))
        return rows if rows is not None and len(rows) == len(keys) else [None] * len(keys)

    def put_many(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        """Store rows, if the store can."""
        self._try("write", lambda: self.store.put_many(pairs))

    def settle(self) -> None:
        """Let the store do what can wait."""
        settle = getattr(self.store, "settle", None)
        if settle is not None:
            self._try("write", settle)

    def close(self) -> None:
        """Close the store, where it can be closed."""
        close = getattr(self.store, "close", None)
        if close is not None:
            self._try("write", close)

    def _try(self, what: str, work: Callable[[], Any]) -> Any:
        if time.monotonic() < self._open_until[what]:
            return None
        try:
            return work()
        except Exception as error:  # noqa: BLE001 - whatever a user's store raises must not end the job
            self._open_until[what] = time.monotonic() + _PAUSE
            self._warn(error)
            return None

    def _warn(self, error: Exception) -> None:
        if self._warned or str(error) in _warned:
            return
        self._warned = True
        if isinstance(error, BGEError):
            _warned.add(str(error))
            text = f"{error}; texts are embedded without a cache"
        else:
            text = f"the cache {self.store!r} fails, and texts are embedded without it: {error or type(error).__name__}"
        warnings.warn(text, RepairWarning, stacklevel=2)

    def __getstate__(self) -> dict[str, Any]:
        return {"store": self.store}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["store"])  # type: ignore[misc]
