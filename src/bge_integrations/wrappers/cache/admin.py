"""What a cache file holds, and making it smaller; plain data for the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .sqlite import SQLiteStore

__all__ = ["clear", "info", "prune"]


def info(path: str | Path) -> dict[str, Any]:
    """Return what a cache file holds: rows, bytes, times of use (seconds since 1970), files set aside.

    Raises:
        ConfigError: it is an SQLite file of another program.
        OSError: it is damaged; it has been set aside.
        sqlite3.Error: it cannot be read.
    """
    store = SQLiteStore(path)
    known: dict[str, Any] = {
        "path": str(store.path),
        "exists": store.path.exists(),
        "bytes_on_disk": _on_disk(store.path),
        "set_aside": sorted(str(kept) for kept in store.path.parent.glob(f"{store.path.name}.corrupt-*")),
    }
    empty = {"vectors": 0, "by_dimensions": {}, "bytes_used": 0, "oldest_use": None, "newest_use": None}
    if not known["exists"]:
        return known | empty
    try:
        return known | store.info()
    finally:
        store.close()


def prune(path: str | Path, *, max_bytes: int | None = None, older_than: float | None = None) -> dict[str, Any]:
    """Delete rows not used for ``older_than`` seconds, then least recently used ones down to ``max_bytes``.

    Returns:
        How many rows were removed, and the bytes on disk before and after.

    Raises:
        ConfigError: it is an SQLite file of another program.
        OSError: it is damaged; it has been set aside.
        sqlite3.Error: it cannot be written, or another process writes for too long.
    """
    store = SQLiteStore(path)
    before, removed = _on_disk(store.path), 0
    if store.path.exists():
        try:
            removed = store.prune(max_bytes=max_bytes, older_than=older_than)
        finally:
            store.close()
    return {"path": str(store.path), "removed": removed, "bytes_before": before, "bytes_after": _on_disk(store.path)}


def clear(path: str | Path) -> dict[str, Any]:
    """Delete all rows; what has been set aside stays.

    Returns:
        As ``prune``.

    Raises:
        ConfigError: it is an SQLite file of another program.
        OSError: it is damaged; it has been set aside.
        sqlite3.Error: it cannot be written, or another process writes for too long.
    """
    return prune(path, max_bytes=0)


def _on_disk(path: Path) -> int:
    files = (Path(f"{path}{ending}") for ending in ("", "-wal", "-shm"))
    return sum(file.stat().st_size for file in files if file.exists())
