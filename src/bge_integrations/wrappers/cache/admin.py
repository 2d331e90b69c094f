"""What a cache file holds, and making it smaller; plain data for the command line."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from .database import bytes_used, delete, shrink, transaction
from .sqlite import SQLiteStore

__all__ = ["clear", "info", "prune"]

_EMPTY = {"vectors": 0, "by_dimensions": {}, "bytes_used": 0, "oldest_use": None, "newest_use": None}


def info(path: str | Path) -> dict[str, Any]:
    """Return what a cache file holds: rows, bytes, times of use (seconds since 1970). Writes nothing.

    Raises:
        CacheError: the file is not ours, is damaged, or cannot be read.
    """
    store = SQLiteStore(path)
    known = {
        "path": str(store.path),
        "exists": os.path.exists(store.path),  # noqa: PTH110 - Path.exists raises where the folder cannot be searched
        "bytes_on_disk": _on_disk(store.path),
        # Earlier versions renamed damaged files.
        "set_aside": sorted(str(kept) for kept in store.path.parent.glob(f"{store.path.name}.corrupt-*")),
    }
    return known | (store.read(_contents) if known["exists"] else _EMPTY)


def _contents(db: sqlite3.Connection) -> dict[str, Any]:
    if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        return _EMPTY
    # In a damaged file, a column may hold anything.
    vectors = "SELECT length(value), count(*) FROM vectors WHERE typeof(value) = 'blob' GROUP BY 1 ORDER BY 1"
    lengths = db.execute(vectors).fetchall()
    oldest, newest = db.execute("SELECT min(used), max(used) FROM uses WHERE typeof(used) = 'integer'").fetchone()
    return {
        "vectors": sum(count for _, count in lengths),
        "by_dimensions": {(length - 16) // 4: count for length, count in lengths},
        "bytes_used": bytes_used(db),
        "oldest_use": oldest,
        "newest_use": newest,
    }


def prune(path: str | Path, *, max_bytes: int | None = None, older_than: float | None = None) -> dict[str, Any]:
    """Delete rows not used for ``older_than`` seconds, then least recently used ones down to ``max_bytes``.

    Returns:
        How many rows were removed, and the bytes on disk before and after.

    Raises:
        CacheError: the file is not ours, is damaged, or cannot be written.
    """

    def work(db: sqlite3.Connection) -> None:
        if older_than is not None:
            delete(db, db.execute("SELECT id FROM uses WHERE used < ?", (time.time() - older_than,)).fetchall())
        if max_bytes is not None:
            shrink(db, max_bytes)
        db.executescript("PRAGMA incremental_vacuum")  # execute() would step once, and free one page

    return _reduce(path, work)


def clear(path: str | Path) -> dict[str, Any]:
    """Delete all rows.

    Returns:
        As ``prune``.

    Raises:
        CacheError: the file is not ours, is damaged, or cannot be written.
    """

    def work(db: sqlite3.Connection) -> None:
        with transaction(db):
            for table in ("vectors", "uses"):
                db.execute(f"DELETE FROM {table}")  # without WHERE, SQLite frees whole pages
        db.execute("VACUUM")  # of what is almost nothing; page by page, 100,000 rows would take seconds

    return _reduce(path, work)


def _reduce(path: str | Path, work: Callable[[sqlite3.Connection], None]) -> dict[str, Any]:
    store = SQLiteStore(path)
    before, removed = _on_disk(store.path), 0
    if _bytes(store.path):
        try:
            with store.using() as db:
                rows = _count(db)
                work(db)
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                removed = rows - _count(db)
        finally:
            store.close()
    return {"path": str(store.path), "removed": removed, "bytes_before": before, "bytes_after": _on_disk(store.path)}


def _count(db: sqlite3.Connection) -> int:
    return cast("int", db.execute("SELECT count(*) FROM vectors").fetchone()[0])


def _on_disk(path: Path) -> int:
    return sum(_bytes(Path(f"{path}{ending}")) for ending in ("", "-wal", "-shm"))


def _bytes(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0
