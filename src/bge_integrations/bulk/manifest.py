"""The manifest of a job under way: who may write into a folder, and what was finished there."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Self

from ..core.files import PARTIAL
from ..errors import ConfigError, SpaceMismatchError
from .folder import SHARD, Line, Record, parse_manifest, side_files

__all__ = ["Manifest", "check_ours", "check_same"]

# Version 0.1 named unfinished files so.
_OLD_PARTIAL = re.compile(r"part-\d{6,}(\.parquet|\.npy|\.rows\.jsonl|\.jsonl)\.partial")
_BEGINNING = b'{"inputs": {'  # of a manifest, whose keys are sorted


class Manifest:
    """The manifest of a job under way; holds a lock on the folder until it is closed.

    Args:
        folder: of the shards; made where it is missing.
        job: inputs, options and stamp; all of it decides the bytes of the shards.

    Raises:
        ConfigError: the folder holds somebody's files or another job's shards, or another process is at work in it.
        SpaceMismatchError: its vectors are of another space.
    """

    def __init__(self, folder: Path, job: Mapping[str, Any]) -> None:
        self.folder = folder
        check_ours(folder)
        self.path, self.errors = side_files(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._file = _open(self.path)
        try:
            _lock(self._file, folder)
            self._begin(json.loads(json.dumps(job)))
        except BaseException:
            self._file.close()
            raise

    def _begin(self, job: Line) -> None:
        self._file.seek(0)
        raw = self._file.read()
        record = parse_manifest(self.path, raw)
        # A kill in the middle of a line leaves a part of it, which the next line must not follow.
        self._file.truncate(raw.rfind(b"\n") + 1)
        if record is None or (not record.shards and record.job != job):
            # Nothing was finished, so a corrected command may begin anew.
            self._file.truncate(0)
            _append(self._file, [job])
            record = Record(job)
        check_same(record.job, job, self.folder)
        self._clear(anew=not record.shards)
        self.job, self.shards, self.complete = record.job, record.shards, record.complete
        written = self.shards[-1]["errors_bytes"] if self.shards else 0
        if self.errors.exists() and self.errors.stat().st_size > written:
            with _open(self.errors) as file:
                file.truncate(written)

    def _clear(self, *, anew: bool) -> None:
        """Remove what a kill left: unfinished files, and the shard that was not noted yet."""
        for path in list(self.folder.iterdir()):
            unnoted = anew and path.name.startswith("part-000000.")
            if unnoted or path.name.startswith(PARTIAL) or _OLD_PARTIAL.fullmatch(path.name):
                path.unlink()

    def holds(self, number: int) -> bool:
        """Tell whether a shard was finished and its file still has the size that it had then."""
        if number >= len(self.shards):
            return False
        path = self.folder / self.shards[number]["file"]
        return path.is_file() and bool(path.stat().st_size == self.shards[number]["bytes"])

    def finish(self, shard: Mapping[str, Any], errors: Sequence[Mapping[str, Any]]) -> None:
        """Note a shard that is on the disk, its bad rows first."""
        if errors:
            with _open(self.errors) as file:
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


def check_ours(folder: Path) -> None:
    """Refuse to write among files that this package did not make: a folder is new, empty, or has our manifest.

    Raises:
        ConfigError: names one of the files; nothing was touched.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"cannot write into {str(folder)!r}: it is a file, name a folder")
    path, errors = side_files(folder)
    for each in (path, errors):
        if each.is_symlink() or (each.exists() and not each.is_file()):
            raise ConfigError(f"{str(each)!r} is a link or no file: name another folder")
    raw = path.read_bytes() if path.exists() else b""
    if parse_manifest(path, raw) is not None:
        return
    # A kill may have left the beginning of the first line.
    torn = {path.name} if raw.startswith(_BEGINNING) or _BEGINNING.startswith(raw) else set()
    others = sorted(each.name for each in folder.iterdir() if not each.name.startswith(PARTIAL) | (each.name in torn))
    if any(SHARD.fullmatch(name) for name in others):
        raise ConfigError(f"{str(folder)!r} holds shards without a manifest: name an empty folder")
    if others:
        raise ConfigError(
            f"{str(folder)!r} holds {others[0]!r}, which bge embed did not write: name a new or empty folder"
        )


def _open(path: Path) -> IO[bytes]:
    """Open a file to read and append, without following a link."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags, 0o666), "a+b")


def _append(file: IO[bytes], lines: Sequence[Mapping[str, Any]]) -> None:
    file.write(b"".join(json.dumps(line, sort_keys=True).encode() + b"\n" for line in lines))
    file.flush()
    os.fsync(file.fileno())


def _lock(file: IO[bytes], folder: Path) -> None:
    """Lock the open manifest; the system releases it when the process ends, however it ends."""
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
    """Refuse to resume with other inputs, options or vectors than the folder's.

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
        old, new = _flat(written.get(name, {})), _flat(job.get(name, {}))
        if old != new:
            raise ConfigError(
                f"{name} of the job in {str(folder)!r} have changed ({_changes(old, new)}): name another folder"
            )


def _changes(old: Line, new: Line) -> str:
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    names = [name for name in names if name != "kinds" or "keep" not in names]
    return "; ".join(f"{name}: {_shown(old.get(name))} there, {_shown(new.get(name))} now" for name in names)


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) or "none" if isinstance(value, list) else repr(value)


def _flat(options: Line) -> Line:
    # Where the files lie may change: what is in them decides.
    options = {key: value for key, value in options.items() if key != "first"}
    with suppress(KeyError):
        options = {**options.pop("columns"), **options}
    return options


def _space(job: Line) -> Line:
    # A newer version of this package may finish what an older one began; documents get no instruction.
    besides = ("package_version", "query_instruction", "space", "ranges")  # "quantised" has a digest of the ranges
    return {name: value for name, value in job.get("stamp", {}).items() if name not in besides}
