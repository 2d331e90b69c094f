"""Rows in an SQLite file that many processes share and that any of them may be killed over."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .place import abandon, inode, network_filesystem, set_aside, stores_held
from .tables import bytes_used, count_rows, delete, prepare, shrink, transaction

__all__ = ["SQLiteStore"]

_CHUNK = 900  # SQLite before 3.32 takes at most 999 variables
_TOUCH_AFTER = 60  # seconds; a row's time of use is no finer than this, so that hot rows cost no writes


class SQLiteStore:
    """Keys and rows in one file. Opened at first use; reopened after fork, pickling, ``close``, and a lost file.

    Args:
        path: the file; its folder is made.
        max_bytes: least recently used rows go when the rows take more than this.
        busy_timeout: seconds to wait for another process that writes.
    """

    def __init__(self, path: str | Path, *, max_bytes: int | None = None, busy_timeout: float = 10.0) -> None:
        self.path = Path(path).expanduser().absolute()
        self.max_bytes = max_bytes
        self.busy_timeout = busy_timeout
        self._reset()

    def _reset(self) -> None:
        self.lock = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._inode: tuple[int, int] | None = None
        self._end: Callable[[], Any] | None = None
        self._seen: set[int] = set()
        stores_held.add(self)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the row of each key, or None where there is none.

        Raises:
            sqlite3.Error: the file cannot be read.
            OSError: the file was damaged and has been set aside, or its folder cannot be made.
        """
        with self._using() as db:
            stale, found = int(time.time()) - _TOUCH_AFTER, {}
            for first in range(0, len(keys), _CHUNK):
                part = keys[first : first + _CHUNK]
                marks = ",".join("?" * len(part))
                rows = db.execute(
                    f"SELECT key, value, id, used FROM vectors LEFT JOIN uses USING (id) WHERE key IN ({marks})", part
                )
                for key, value, number, used in rows:
                    found[key] = value
                    if used is None or used < stale:
                        self._seen.add(number)
            return [found.get(key) for key in keys]

    def put_many(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        """Store rows in one transaction, in place of those that were there, and make room where a bound is set.

        Raises:
            sqlite3.Error: the file cannot be written, or the disk is full.
            OSError: as ``get_many``.
        """
        with self._using() as db:
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
                shrink(db, int(self.max_bytes * 0.9))

    def settle(self) -> None:
        """Write down which rows were used; called when nobody waits.

        Raises:
            sqlite3.Error: the file cannot be written.
        """
        if not self._seen:
            return
        with self._using() as db:
            seen, self._seen, now = self._seen, set(), int(time.time())
            with transaction(db):
                db.executemany("UPDATE uses SET used = ? WHERE id = ?", [(now, number) for number in seen])

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self.lock:
            self.disconnect()

    def disconnect(self) -> None:
        """Let go of the connection."""
        self._db = None
        if self._end is not None:
            self._end()

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        with self.lock:
            try:
                yield self._opened()
            except sqlite3.DatabaseError as error:
                if _damaged(error):
                    raise set_aside(self, str(error)) from error
                self.disconnect()
                raise

    def renew(self) -> None:
        """Start anew in a forked process, where the parent's connection must neither be used nor closed."""
        self.disconnect()
        self._reset()

    def _opened(self) -> sqlite3.Connection:
        if self._db is not None and self._inode == inode(self.path):
            return self._db
        self.disconnect()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if kind := network_filesystem(self.path):
            raise OSError(f"it lies on {kind}, where SQLite cannot share a file between processes")
        db = self.connect()
        try:
            prepare(db)
        except BaseException:
            db.close()
            raise
        self._db, self._inode = db, inode(self.path)
        self._end = weakref.finalize(self, _close, db, os.getpid(), self.path, self._inode)
        return db

    def connect(self) -> sqlite3.Connection:
        """Return a connection that another thread may close."""
        return sqlite3.connect(
            self.path, timeout=self.busy_timeout, isolation_level=None, check_same_thread=False, cached_statements=64
        )

    def info(self) -> dict[str, Any]:
        """Return what the file holds.

        Raises:
            sqlite3.Error: the file cannot be read.
        """
        with self._using() as db:
            sizes = db.execute("SELECT length(value), count(*) FROM vectors GROUP BY 1 ORDER BY 1").fetchall()
            oldest, newest = db.execute("SELECT min(used), max(used) FROM uses").fetchone()
            return {
                "vectors": sum(count for _, count in sizes),
                "by_dimensions": {(size - 16) // 4: count for size, count in sizes},
                "bytes_used": bytes_used(db),
                "oldest_use": oldest,
                "newest_use": newest,
            }

    def prune(self, *, max_bytes: int | None = None, older_than: float | None = None) -> int:
        """Delete rows not used for ``older_than`` seconds, then least recently used ones down to ``max_bytes``.

        Returns:
            How many rows went; the room that they took is given back to the disk.

        Raises:
            sqlite3.Error: the file cannot be written.
        """
        with self._using() as db:
            before = count_rows(db)
            if older_than is not None:
                with transaction(db):
                    delete(db, "used < ?", time.time() - older_than)
            if max_bytes is not None:
                shrink(db, max_bytes)
            db.executescript("PRAGMA incremental_vacuum")  # execute() would step once, and free one page
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            return before - count_rows(db)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "max_bytes": self.max_bytes, "busy_timeout": self.busy_timeout}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __repr__(self) -> str:
        return f"SQLiteStore({str(self.path)!r})"


def _close(db: sqlite3.Connection, pid: int, path: Path, opened: tuple[int, int] | None) -> None:
    if pid != os.getpid() or opened != inode(path):
        # The parent's, or to a file that is gone: closing would unlink the -wal file by name, which is another's now.
        abandon(db)
    else:
        db.close()


def _damaged(error: sqlite3.DatabaseError) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    lost = str(error).startswith(("unsupported file format", "no such table", "no such column"))
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or (code == sqlite3.SQLITE_ERROR and lost)
