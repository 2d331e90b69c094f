"""Files that are written whole or not at all, and the kind of disk that they lie on."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

__all__ = ["PARTIAL", "filesystem", "is_partial", "network_filesystem", "write_atomic"]

PARTIAL = ".bge-"
"""Every temporary file of this package begins with this and a token of hexadecimal digits."""


def is_partial(name: str) -> bool:
    """Tell whether a file is a temporary one of this package: of another ``.bge-…`` its user knows more."""
    return bool(_PARTIAL.match(name))


_PARTIAL = re.compile(r"\.bge-[0-9a-f]{16,32}-.")


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file in one step: readers see the old one or the new one, and a kill leaves no half.

    The new file has the permissions of the one it replaces, else those that the process gives to new files.

    Raises:
        OSError: the folder cannot be written.
    """
    raw = data.encode() if isinstance(data, str) else data
    mode = path.stat().st_mode & 0o7777 if path.exists() else None
    partial = path.with_name(f"{PARTIAL}{secrets.token_hex(8)}-{path.name}"[:255])
    # O_EXCL follows no link that somebody may have put there.
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            partial.chmod(mode)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


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
