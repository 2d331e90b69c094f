"""A cache file: whose it is, how it is made and opened, and how rows are deleted from it."""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar, cast

from ...errors import CacheError

__all__ = [
    "bytes_used",
    "connect",
    "create",
    "delete",
    "inode",
    "prepare",
    "read",
    "refuse_foreign",
    "shrink",
    "transaction",
]

T = TypeVar("T")
_APPLICATION = 0x42474543  # "BGEC" in the file's header: which files are ours
_LAYOUT = 1
_SCHEMA = (
    "CREATE TABLE vectors (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, value BLOB NOT NULL)",
    # Times of use lie apart, so that a use rewrites ten bytes and not a vector.
    "CREATE TABLE uses (id INTEGER PRIMARY KEY, used INTEGER NOT NULL)",
    f"PRAGMA application_id={_APPLICATION}",
    f"PRAGMA user_version={_LAYOUT}",
)
_ROWS_PER_DELETE = 10_000  # bounds how long other processes wait for the write lock


def refuse_foreign(path: Path) -> None:
    """Refuse what is not a cache of this package, without opening it for writing.

    Raises:
        CacheError: it is something else.
        sqlite3.Error: it cannot be read.
    """
    try:
        status = path.stat()
    except OSError:
        return  # nothing is there, or nothing that can be seen: opening it says which
    except ValueError as error:
        raise CacheError(f"{str(path)!r} cannot name a file ({error}): pass another path") from None
    if not stat.S_ISREG(status.st_mode):
        found = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
    elif status.st_size < 512:  # no SQLite file is smaller; a file of one byte counts as empty there
        found = "a file of another kind" if status.st_size else ""
    else:
        found = _foreign(path)
    if found:
        raise CacheError(
            f"{str(path)!r} is {found}, not a cache of vectors, and was left alone: move it away, or pass another path"
        )


def _foreign(path: Path) -> str:
    try:
        application, layout, tables = read(path, _header)
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_NOTADB:
            raise
        return "a file of another kind"
    if not (application or layout or tables):
        return ""  # holds nothing: we were killed, or the disk was full, when we made it
    if application != _APPLICATION:
        return "an SQLite file of another program"
    return "" if layout == _LAYOUT else "a file of another version of this package"


def read(path: Path, ask: Callable[[sqlite3.Connection], T]) -> T:
    """Return what ``ask`` reads from a file that is not opened for writing.

    Raises:
        sqlite3.Error: it is not there, or cannot be read.
    """
    # Even a read-only connection makes -wal and -shm files; an immutable one does not, but may read nonsense once
    # somebody writes. Plain open() would be wrong: closing the file drops all locks of this process on it
    # (https://sqlite.org/howtocorrupt.html, 2.2).
    while True:
        quiet = not _has_journal(path)
        db = connect(path, "mode=ro&immutable=1" if quiet else "mode=ro")
        try:
            return ask(db)
        except sqlite3.DatabaseError:
            if not quiet or not _has_journal(path):
                raise
        finally:
            db.close()


def _has_journal(path: Path) -> bool:
    real = os.path.realpath(path)
    return any(Path(f"{real}{ending}").exists() for ending in ("-wal", "-journal"))


def connect(path: Path, mode: str, busy_timeout: float = 10.0) -> sqlite3.Connection:
    """Return a connection that any thread may use, one at a time."""
    uri = f"{path.as_uri()}?{mode}"
    return sqlite3.connect(uri, uri=True, timeout=busy_timeout, isolation_level=None, check_same_thread=False)


def inode(path: Path) -> tuple[int, int] | None:
    """Return device and inode, or None where there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def create(path: Path) -> None:
    """Make an empty file that its owner alone can read, and its folder, where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):  # SQLite gives its -wal and -shm files the same permissions
        os.close(os.open(os.path.realpath(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def prepare(db: sqlite3.Connection, path: Path) -> None:
    """Make the tables in an empty file, and set how the connection works."""
    if _is_empty(db, path):
        db.execute("PRAGMA auto_vacuum=INCREMENTAL")
        with transaction(db):  # before WAL, so that the file's own header says at once whose it is
            for statement in _SCHEMA if _is_empty(db, path) else ():
                db.execute(statement)
    for attempt in range(50):
        try:
            db.execute("PRAGMA journal_mode=WAL").fetchall()
            break
        except sqlite3.OperationalError as error:
            # Two processes that both make the file: SQLite calls no busy handler while it changes the journal mode.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or attempt == 49:
                raise
            time.sleep(0.02)
    db.execute("PRAGMA synchronous=NORMAL")
    db.execute(f"PRAGMA journal_size_limit={64 << 20}")


def _is_empty(db: sqlite3.Connection, path: Path) -> bool:
    application, layout, tables = _header(db)
    if (application, layout) != (_APPLICATION, _LAYOUT) and (application or layout or tables):
        raise CacheError(f"another program has just written {str(path)!r}, which was left alone: pass another path")
    return not application


def _header(db: sqlite3.Connection) -> tuple[int, int, int]:
    tables = "(SELECT count(*) FROM sqlite_master)"  # one statement: another process may be making them
    question = f"SELECT application_id, user_version, {tables} FROM pragma_application_id, pragma_user_version"
    return cast("tuple[int, int, int]", db.execute(question).fetchone())


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Hold the write lock; commit at the end, or roll back."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            if db.in_transaction:
                db.execute("ROLLBACK")
        raise


def bytes_used(db: sqlite3.Connection) -> int:
    """Return the bytes of all pages that hold something."""
    question = "SELECT (page_count - freelist_count) * page_size FROM pragma_page_count, pragma_freelist_count"
    return cast("int", db.execute(f"{question}, pragma_page_size").fetchone()[0])


def shrink(db: sqlite3.Connection, target: int) -> None:
    """Delete least recently used rows until the rest takes at most ``target`` bytes."""
    while (used := bytes_used(db)) > target and (count := db.execute("SELECT count(*) FROM uses").fetchone()[0]):
        share = max(int(count * (1 - target / used)), count // 100, 1)  # so that few rounds sort all rows
        delete(db, db.execute("SELECT id FROM uses ORDER BY used, id LIMIT ?", (share,)).fetchall())


def delete(db: sqlite3.Connection, numbers: list[tuple[int]]) -> None:
    """Delete rows by their numbers, a bounded number at a time."""
    for first in range(0, len(numbers), _ROWS_PER_DELETE):
        with transaction(db):
            for table in ("vectors", "uses"):
                db.executemany(f"DELETE FROM {table} WHERE id = ?", numbers[first : first + _ROWS_PER_DELETE])
