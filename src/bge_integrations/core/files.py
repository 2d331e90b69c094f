"""Files that are written whole or not at all, and the kind of disk that they lie on."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

__all__ = [
    "PARTIAL",
    "filesystem",
    "is_partial",
    "network_filesystem",
    "sync_folder",
    "write_atomic",
    "write_whole",
]

PARTIAL = ".bge-"
"""Every temporary file of this package begins with this and a token of hexadecimal digits."""


def is_partial(name: str) -> bool:
    """Tell whether a file is a temporary one of this package: of another ``.bge-…`` its user knows more."""
    return bool(_PARTIAL.match(name))


_PARTIAL = re.compile(r"\.bge-[0-9a-f]{16,32}-.")


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file in one step that lasts: readers see the old one or the new one, and a kill leaves no half.

    The new file has the permissions of the one it replaces, else those that the process gives to new files.

    Args:
        path: of the file.
        write: writes its contents into the open file that it is passed.

    Raises:
        OSError: the folder cannot be written, or the disk is full; the old file stays.
    """
    mode = path.stat().st_mode & 0o7777 if path.exists() else None
    # No reader of data takes this name for a file of its own.
    partial = path.with_name(f"{PARTIAL}{secrets.token_hex(8)}-{path.name[:200]}.partial")
    try:
        with partial.open("xb") as file:  # "x" follows no link that somebody may have put there
            write(file)
            file.flush()
            os.fsync(file.fileno())  # before the name: a power cut must not leave the name with half a file
        if mode is not None:
            partial.chmod(mode)
        partial.replace(path)
        sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write bytes or text in one step; otherwise as ``write_whole``."""
    raw = data.encode() if isinstance(data, str) else data
    write_whole(path, lambda file: file.write(raw))


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_NETWORK = ("nfs", "cifs", "smb", "9p", "fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "afs", "lustre")


def network_filesystem(path: Path) -> str | None:
    """Return the kind of network filesystem that a path lies on, where that is known (Linux)."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="replace")
    except OSError:
        return None
    kind = filesystem(os.path.realpath(path.parent), mounts)
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
