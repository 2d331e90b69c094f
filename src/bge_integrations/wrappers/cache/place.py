"""The file a cache lies in: who holds it, what disk it is on, and how a damaged one is set aside."""

from __future__ import annotations

import ctypes
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

    from .sqlite import SQLiteStore

__all__ = ["SetAsideError", "abandon", "filesystem", "inode", "network_filesystem", "set_aside", "stores_held"]

stores_held: weakref.WeakSet[SQLiteStore] = weakref.WeakSet()
_moving = threading.Lock()
_NETWORK = ("nfs", "cifs", "smb", "9p", "fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "afs", "lustre")
# Where SQLite itself locks, one byte range per connection: https://sqlite.org/src/file/src/os.h (SHARED_FIRST)
_SHARED_FIRST, _SHARED_SIZE = 0x40000002, 510


class SetAsideError(OSError):
    """The file was damaged and lies aside now; a new one can be begun at once."""


def inode(path: Path) -> tuple[int, int] | None:
    """Return what tells the file at ``path`` from another one there, or None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def abandon(db: sqlite3.Connection) -> None:
    """Never close a connection, not even when the interpreter ends."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(db))


def network_filesystem(path: Path) -> str | None:
    """Return the kind of network filesystem that a path lies on, where that is known (Linux)."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="replace")
    except OSError:
        return None
    kind = filesystem(str(path.parent.resolve()), mounts)
    return kind if kind.startswith(_NETWORK) else None


def filesystem(folder: str, mounts: str) -> str:
    """Return the kind of filesystem of a folder, by the text of ``/proc/self/mountinfo``."""
    best, kind = "", ""
    for mount in mounts.splitlines():
        fields, _, rest = mount.partition(" - ")
        point = fields.split()[4].replace("\\040", " ").rstrip("/") + "/"
        if f"{folder}/".startswith(point) and len(point) >= len(best):
            best, kind = point, rest.split()[0]
    return kind


def set_aside(store: SQLiteStore, reason: str) -> OSError:
    """Rename a damaged file, and return the error that says so; the next use starts a new file in its place.

    The file stays where it is while another process has it open: SQLite finds the ``-wal`` file by name, so a
    connection to a renamed file would work on the wrong one.
    """
    with _moving:
        _disconnect_all(store)
        with _alone(store.path) as alone:
            if not alone:
                return OSError(f"it is damaged ({reason}), and not set aside while another process has it open")
            kept = store.path.with_name(f"{store.path.name}.corrupt-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}")
            for ending in ("-wal", "-shm", ""):
                with suppress(FileNotFoundError):
                    Path(f"{store.path}{ending}").rename(f"{kept}{ending}")
    return SetAsideError(f"it was damaged ({reason}) and has been set aside as {kept.name!r}; a new one is begun")


def _disconnect_all(store: SQLiteStore) -> None:
    store.disconnect()
    for other in list(stores_held):
        if other is not store and other.path == store.path and other.lock.acquire(timeout=1):
            try:
                other.disconnect()
            finally:
                other.lock.release()


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    try:
        import fcntl
    except ImportError:  # Windows refuses by itself to rename a file that is open
        yield True
        return
    with path.open("rb+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, _SHARED_SIZE, _SHARED_FIRST)
        except OSError:
            yield False
        else:
            yield True


class _Held(threading.local):
    def __init__(self) -> None:
        self.stores: list[tuple[SQLiteStore, bool]] = []


_held = _Held()


def _hold() -> None:
    # A child must not inherit SQLite's own locks as another thread held them.
    _held.stores = [(store, store.lock.acquire(timeout=5)) for store in list(stores_held)]


def _release() -> None:
    for store, locked in _held.stores:
        if locked:
            store.lock.release()
    _held.stores = []


def _renew() -> None:
    for store in list(stores_held):
        store.renew()
    _held.stores = []


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_renew)
