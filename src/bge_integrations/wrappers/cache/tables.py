"""The tables of a cache file, and what is done to them."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import cast

from ...errors import ConfigError

__all__ = ["bytes_used", "count_rows", "delete", "prepare", "shrink", "transaction"]

_APPLICATION = 0x42474543  # "BGEC" in the file's header: which files are ours
_LAYOUT = 1
_SCHEMA = (
    "CREATE TABLE vectors (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, value BLOB NOT NULL)",
    # Times of use lie apart, so that a use rewrites ten bytes and not a vector.
    "CREATE TABLE uses (id INTEGER PRIMARY KEY, used INTEGER NOT NULL)",
    f"PRAGMA application_id={_APPLICATION}",
    f"PRAGMA user_version={_LAYOUT}",
)


def prepare(db: sqlite3.Connection) -> None:
    """Make the tables where there are none, and set how the connection works.

    Raises:
        ConfigError: the file belongs to another program.
        sqlite3.Error: it cannot be read, or not be made.
    """
    if not _ours(db):
        db.execute("PRAGMA auto_vacuum=INCREMENTAL")
    _retry_busy(db, "PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=NORMAL")
    db.execute(f"PRAGMA journal_size_limit={64 << 20}")
    if not _ours(db):
        with transaction(db):
            for statement in () if _ours(db) else _SCHEMA:
                db.execute(statement)


def _ours(db: sqlite3.Connection) -> bool:
    application, layout, tables = _header(db)
    if (application, layout) == (_APPLICATION, _LAYOUT):
        return True
    if application or layout or tables:
        raise ConfigError("it is an SQLite file of another program or version; it is left alone")
    return False


def _header(db: sqlite3.Connection) -> list[int]:
    questions = ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
    if db.in_transaction:
        return [db.execute(question).fetchone()[0] for question in questions]
    db.execute("BEGIN")  # one snapshot: another process may be making the tables
    try:
        return [db.execute(question).fetchone()[0] for question in questions]
    finally:
        db.execute("ROLLBACK")


def _retry_busy(db: sqlite3.Connection, statement: str, attempts: int = 50) -> None:
    # Two processes that both make the file: SQLite does not call its busy handler while it changes the journal mode.
    for attempt in range(attempts):
        try:
            db.execute(statement).fetchall()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or attempt == attempts - 1:
                raise
            time.sleep(0.02)
        else:
            return


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Hold the write lock; commit at the end, or take everything back."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            if db.in_transaction:
                db.execute("ROLLBACK")
        raise


def shrink(db: sqlite3.Connection, target: int) -> None:
    """Delete least recently used rows until the rest takes at most ``target`` bytes, a bounded number at a time."""
    while (used := bytes_used(db)) > target and (count := count_rows(db)):
        share = min(max(int(count * (1 - target / used)), 1), 10_000)
        with transaction(db):
            delete(db, "id IN (SELECT id FROM uses ORDER BY used, id LIMIT ?)", share)


def delete(db: sqlite3.Connection, which: str, value: float) -> None:
    """Delete the rows whose uses fulfil a condition."""
    db.execute(f"DELETE FROM vectors WHERE id IN (SELECT id FROM uses WHERE {which})", (value,))
    db.execute(f"DELETE FROM uses WHERE {which}", (value,))


def count_rows(db: sqlite3.Connection) -> int:
    """Return how many rows there are."""
    return cast("int", db.execute("SELECT count(*) FROM uses").fetchone()[0])


def bytes_used(db: sqlite3.Connection) -> int:
    """Return the bytes of all pages that hold something."""
    pages, free, size = (
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return cast("int", (pages - free) * size)
