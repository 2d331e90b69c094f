"""Files of JSON lines that grow, and last."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

__all__ = ["append_lines", "open_to_append", "to_lines"]


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
