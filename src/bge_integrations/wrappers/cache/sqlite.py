"""Rows in an SQLite file that many processes share; any of them may be killed at any time."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from ...core.files import network_filesystem
from ...environment import expand_user
from ...errors import CacheError
from .database import bytes_used, connect, create, inode, prepare, read, refuse_foreign, shrink, transaction

__all__ = ["MEMORY", "SQLiteStore"]

MEMORY = ":memory:"  # no file, as everywhere in SQLite

T = TypeVar("T")
_KEYS_PER_QUERY = 900  # SQLite before 3.32 takes at most 999 variables
_TOUCH_AFTER = 60  # seconds; a row's time of use is no finer than this, so that hot rows cost no writes
# What lies outside the file and may pass; any other code of SQLite's means that the file is damaged.
_OUTSIDE = {
    sqlite3.SQLITE_BUSY: "another process is writing to it, try again",
    sqlite3.SQLITE_LOCKED: "another process is writing to it, try again",
    sqlite3.SQLITE_FULL: "free some disk space",
    sqlite3.SQLITE_CANTOPEN: "check that the file and its folder can be read and written",
    sqlite3.SQLITE_IOERR: "check the disk",
    sqlite3.SQLITE_NOMEM: "free some memory",
    sqlite3.SQLITE_PERM: "check the file's permissions",
    sqlite3.SQLITE_READONLY: "check that the file and its folder can be written",
    sqlite3.SQLITE_PROTOCOL: "check that the disk supports file locks",
}

_stores: weakref.WeakSet[SQLiteStore] = weakref.WeakSet()
_damaged: dict[Path, tuple[tuple[int, int] | None, str]] = {}  # so that all encoders of a process agree


class SQLiteStore:
    """Keys and rows in one file, opened at first use; reopened after a fork, pickling, ``close``, or its deletion.

    A file that is not a cache of this package is never opened for writing. A damaged one is left as it is, and not
    used again in this process until it has been deleted.

    Args:
        path: the file; its folder is made. A new file can be read by its owner alone.
        max_bytes: least recently used rows go when the rows take more than this.
        busy_timeout: seconds to wait for another process that writes.

    Raises:
        CacheError: there is something else at ``path``.
    """

    def __init__(self, path: str | Path, *, max_bytes: int | None = None, busy_timeout: float = 10.0) -> None:
        if str(path) == MEMORY:
            raise CacheError(f"{MEMORY!r} names no file: pass it as cache=, or a path here")
        self.path = expand_user(path).absolute()
        self.max_bytes = max_bytes
        self.busy_timeout = busy_timeout
        self._reset()
        with suppress(sqlite3.Error, ValueError):  # what cannot be read now may be readable at first use
            refuse_foreign(self.path)

    def _reset(self) -> None:
        self.lock = threading.RLock()  # guards all below; held while SQLite works, and by a fork
        self._db: sqlite3.Connection | None = None
        self._inode: tuple[int, int] | None = None
        self._end: weakref.finalize[..., Any] | None = None
        self._seen: set[int] = set()  # rows whose times of use are to be written
        with _forking:
            _stores.add(self)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the row of each key, or None where there is none.

        Raises:
            CacheError: the file is not ours, is damaged, or cannot be read.
        """
        with self.using() as db:
            now, rows = int(time.time()), {}
            for first in range(0, len(keys), _KEYS_PER_QUERY):
                part = keys[first : first + _KEYS_PER_QUERY]
                marks = ",".join("?" * len(part))
                for key, value, number, used in db.execute(
                    f"SELECT key, value, id, used FROM vectors LEFT JOIN uses USING (id) WHERE key IN ({marks})", part
                ):
                    if isinstance(value, bytes):  # in a damaged file, anything
                        rows[key] = value
                    # Later than now: the clock was wrong then, and the row would never be the oldest.
                    if not isinstance(used, int) or not now - _TOUCH_AFTER <= used <= now:
                        self._seen.add(number)
            return [rows.get(key) for key in keys]

    def put_many(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        """Store rows in one transaction, in place of those that were there, and make room where a bound is set.

        Raises:
            CacheError: as ``get_many``; or the file cannot be written, or the disk is full.
        """
        with self.using() as db:
            now = int(time.time())
            with transaction(db):
                # Rows that are replaced get new numbers, so their old uses go first.
                db.executemany(
                    "DELETE FROM uses WHERE id = (SELECT id FROM vectors WHERE key = ?)", [(key,) for key, _ in pairs]
                )
                first = db.execute("SELECT coalesce(max(id), 0) + 1 FROM vectors").fetchone()[0]
                db.executemany(
                    "INSERT OR REPLACE INTO vectors (id, key, value) VALUES (?, ?, ?)",
                    [(number, key, value) for number, (key, value) in enumerate(pairs, first)],
                )
                db.executemany(
                    "INSERT OR REPLACE INTO uses (id, used) VALUES (?, ?)",
                    [(number, now) for number in range(first, first + len(pairs))],
                )
            if self.max_bytes is not None and bytes_used(db) > self.max_bytes:
                shrink(db, int(self.max_bytes * 0.9))  # a tenth less, so that not every write has to delete

    def settle(self) -> None:
        """Write down which rows were used; called when nobody waits.

        Raises:
            CacheError: as ``put_many``.
        """
        if self._seen:
            with self.using() as db:
                seen, self._seen, now = self._seen, set(), int(time.time())
                with transaction(db):
                    db.executemany("UPDATE uses SET used = ? WHERE id = ?", [(now, number) for number in seen])

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self.lock:
            self.disconnect()

    def disconnect(self) -> None:
        """Close the connection; the caller holds the lock."""
        self._db = None
        if self._end is not None:
            with suppress(sqlite3.Error):
                self._end()

    @contextmanager
    def using(self) -> Iterator[sqlite3.Connection]:
        """Lend the connection, under the lock.

        Raises:
            CacheError: whatever SQLite raises meanwhile.
        """
        with self.lock, self._explained():
            yield self._opened()

    def read(self, ask: Callable[[sqlite3.Connection], T]) -> T:
        """Return what ``ask`` reads from the file, which is not opened for writing.

        Raises:
            CacheError: the file is not there, is not ours, is damaged, or cannot be read.
        """
        with self.lock, self._explained():
            refuse_foreign(self.path)
            return read(self.path, ask)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except CacheError:
            self.disconnect()
            raise
        except (sqlite3.Error, OSError, ValueError) as error:  # ValueError: SQLite quotes a schema that is no UTF-8
            self.disconnect()
            raise self._typed(error) from error

    def _typed(self, error: Exception) -> CacheError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _OUTSIDE or isinstance(error, (OSError, sqlite3.ProgrammingError)):
            advice = _OUTSIDE.get(code, "check that the file and its folder can be read and written")
            return CacheError(f"the cache {str(self.path)!r} cannot be used ({error}): {advice}")
        message = f"the cache {str(self.path)!r} is damaged ({error}): delete it, if nothing else needs it"
        _damaged[self.path] = inode(self.path), message
        return CacheError(message)

    def _opened(self) -> sqlite3.Connection:
        here = inode(self.path)
        # The finalizer also runs when the interpreter ends, and the connection is closed then.
        if self._db is not None and self._end is not None and self._end.alive and self._inode == here:
            return self._db
        self.disconnect()
        if here is not None and _damaged.get(self.path, (None, ""))[0] == here:
            raise CacheError(_damaged[self.path][1])
        if kind := network_filesystem(self.path):
            raise CacheError(
                f"the cache {str(self.path)!r} lies on {kind}, where SQLite cannot share a file between processes: "
                "pass a path on a local disk"
            )
        refuse_foreign(self.path)
        create(self.path)
        _damaged.pop(self.path, None)
        db = self.connect()
        self._end = weakref.finalize(self, db.close)  # before prepare: if that fails, this closes the connection
        prepare(db, self.path)
        self._db, self._inode = db, inode(self.path)
        return db

    def connect(self) -> sqlite3.Connection:
        """Return a connection that another thread may close."""
        return connect(self.path, "mode=rw", self.busy_timeout)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "max_bytes": self.max_bytes, "busy_timeout": self.busy_timeout}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __repr__(self) -> str:
        return f"SQLiteStore({str(self.path)!r})"


# A connection must not reach a forked child, not even to be closed there, and a lock that another thread holds would
# stay held (https://sqlite.org/howtocorrupt.html, 2.6): before a fork all files are closed, to be opened at next use.
_forking = threading.Lock()  # held from before a fork until after it; a store that is made meanwhile waits
_locked: list[SQLiteStore] = []
_held = threading.local()


def _before_fork() -> None:
    _forking.acquire()
    _held.forking = True
    for store in list(_stores):
        store.lock.acquire()
        _locked.append(store)
        store.disconnect()


def _after_fork() -> None:
    if not _held.__dict__.pop("forking", False):  # a fork was waiting when this module was imported
        return
    while _locked:
        _locked.pop().lock.release()
    _forking.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
