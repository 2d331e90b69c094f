"""What a folder holds: the job on the manifest's first line, then a line for each finished shard."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

from ..errors import ConfigError, SpaceMismatchError

MANIFEST, ERRORS = "manifest.jsonl", "errors.jsonl"
Line = dict[str, Any]


@dataclass
class Contents:
    """What a manifest says.

    Attributes:
        job: inputs, options and stamp.
        shards: file, rows, errors, digest and bytes of each finished shard.
        complete: whether the job came to its end.
    """

    job: Line
    shards: list[Line] = field(default_factory=list)
    complete: bool = False


def read_manifest(folder: Path) -> Contents | None:
    """Return what the manifest of a folder says, or None where there is none.

    Raises:
        ConfigError: it is damaged.
    """
    path = folder / MANIFEST
    return _parse(path, path.read_bytes()) if path.is_file() else None


def _parse(path: Path, raw: bytes) -> Contents | None:
    try:
        lines = [json.loads(line) for line in raw[: raw.rfind(b"\n") + 1].splitlines()]
        if not lines:
            return None
        if not isinstance(lines[0], dict) or "stamp" not in lines[0]:
            raise ValueError("its first line names no job")
        shards = [line for line in lines[1:] if "file" in line]
        return Contents(lines[0], shards, "complete" in lines[-1])
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{str(path)!r} is damaged: {error}") from error


class Manifest:
    """The manifest of a job under way; holds a lock on the folder until it is closed.

    Args:
        folder: of the shards; made where it is missing.
        job: inputs, options and stamp; all of it decides the bytes of the shards.

    Raises:
        ConfigError: the folder holds another job's shards, or another process is at work in it.
        SpaceMismatchError: its vectors are of another space.
    """

    def __init__(self, folder: Path, job: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.path, self.errors = folder, folder / MANIFEST, folder / ERRORS
        if not self.path.exists() and any(folder.glob("part-*")):
            raise ConfigError(f"{str(folder)!r} holds shards without a manifest: name an empty folder")
        self._file = self.path.open("a+b")
        try:
            _lock(self._file, folder)
            self._open(json.loads(json.dumps(job)))
        except BaseException:
            self._file.close()
            raise

    def _open(self, job: Line) -> None:
        self._file.seek(0)
        raw = self._file.read()
        contents = _parse(self.path, raw)
        # A kill in the middle of a line leaves a part of it, which the next line must not follow.
        os.truncate(self.path, raw.rfind(b"\n") + 1)
        if contents is None:
            contents = Contents(job)
            _append(self._file, [job])
        check_same(contents.job, job, self.folder)
        self.job, self.shards, self.complete = contents.job, contents.shards, contents.complete
        written = self.shards[-1]["errors_bytes"] if self.shards else 0
        if self.errors.exists() and self.errors.stat().st_size > written:
            os.truncate(self.errors, written)
        for left in self.folder.glob("*.partial"):
            left.unlink()

    def holds(self, number: int) -> bool:
        """Tell whether a shard was finished and its file still has the size that it had then."""
        if number >= len(self.shards):
            return False
        path = self.folder / self.shards[number]["file"]
        return path.is_file() and bool(path.stat().st_size == self.shards[number]["bytes"])

    def finish(self, shard: Mapping[str, Any], errors: Sequence[Mapping[str, Any]]) -> None:
        """Note a shard that is on the disk, its bad rows first."""
        if errors:
            with self.errors.open("ab") as file:
                _append(file, errors)
        size = self.errors.stat().st_size if self.errors.exists() else 0
        line = {**shard, "errors_bytes": size}
        _append(self._file, [line])
        self.shards.append(line)

    def end(self) -> None:
        """Note that all of the input is in the shards."""
        if not self.complete:
            _append(self._file, [{"complete": True, "shards": len(self.shards)}])
            self.complete = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _append(file: IO[bytes], lines: Sequence[Mapping[str, Any]]) -> None:
    file.write(b"".join(json.dumps(line, sort_keys=True).encode() + b"\n" for line in lines))
    file.flush()
    os.fsync(file.fileno())


def _lock(file: IO[bytes], folder: Path) -> None:
    """Lock the open manifest; the system lets go of it when the process ends, however it ends."""
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(1 << 40)  # far behind the end, so that others may still read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise ConfigError(
            f"another process is writing into {str(folder)!r}: wait for it, or name another folder"
        ) from None


def check_same(written: Line, job: Line, folder: Path) -> None:
    """Refuse to go on with other inputs, options or vectors than the folder's.

    Raises:
        SpaceMismatchError: the vectors would be of another space.
        ConfigError: inputs or options differ.
    """
    old, new = _space(written), _space(job)
    if old != new:
        raise SpaceMismatchError(
            f"{str(folder)!r} holds vectors of another space by their stamp ({_changes(old, new)}): name another folder"
        )
    for name in ("inputs", "options"):
        old, new = _named(written, name), _named(job, name)
        if old != new:
            raise ConfigError(
                f"{name} of the job in {str(folder)!r} have changed ({_changes(old, new)}): name another folder"
            )


def _changes(old: Line, new: Line) -> str:
    return "; ".join(
        f"{name}: {old.get(name)!r} there, {new[name]!r} now" for name in new if old.get(name) != new[name]
    )


def _named(job: Line, name: str) -> Line:
    # Where the files lie may change: what is in them decides.
    return {key: value for key, value in job.get(name, {}).items() if key != "first"}


def _space(job: Line) -> Line:
    # A newer version of this package may finish what an older one began; documents get no instruction.
    besides = ("package_version", "query_instruction", "space")
    return {name: value for name, value in job.get("stamp", {}).items() if name not in besides}
