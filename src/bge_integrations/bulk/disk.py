"""Files that are written whole or not at all, and that last."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from ..core.files import PARTIAL

__all__ = ["append_lines", "open_to_append", "sync_folder", "write_whole"]


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file under a name of its own, and rename it when all of it is on the disk.

    Raises:
        OSError: the disk is full; nothing of the file stays.
    """
    partial = path.with_name(f"{PARTIAL}{secrets.token_hex(8)}-{path.name}.partial")
    try:
        with partial.open("xb") as file:  # "x" follows no link
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Have the names in a folder last."""
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_to_append(path: Path) -> IO[bytes]:
    """Open a file to read and append, without following a link."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags, 0o666), "a+b")


def append_lines(file: IO[bytes], lines: Sequence[Mapping[str, Any]]) -> None:
    """Write lines of JSON that last."""
    file.write(to_lines(lines))
    file.flush()
    os.fsync(file.fileno())


def to_lines(lines: Sequence[Mapping[str, Any]]) -> bytes:
    """Return lines of JSON."""
    return b"".join(json.dumps(line, sort_keys=True).encode() + b"\n" for line in lines)
