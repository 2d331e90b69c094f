"""A folder of shards: its manifest (the job, then a line for each finished shard), and who may write there."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from ..core.files import PARTIAL
from ..errors import ConfigError, SpaceMismatchError
from .formats import FORMATS, ROWS, parquet_stamp, read_part
from .part import Part, SparseRows

__all__ = ["Manifest", "is_finished", "read_manifest", "read_shards", "shard_files", "stamp_of"]

MANIFEST, ERRORS = "manifest.jsonl", "errors.jsonl"
_SHARD = re.compile(r"part-\d{6,}(\.parquet|\.npy|\.jsonl)")
# Version 0.1 named unfinished files so.
_OLD_PARTIAL = re.compile(r"part-\d{6,}(\.parquet|\.npy|\.rows\.jsonl|\.jsonl)\.partial")
_BEGINNING = b'{"inputs": {'  # of a manifest, whose keys are sorted
_MANY = 1 << 30
_NOTED = {"bytes", "digest", "errors", "errors_bytes", "rows"}
Line = dict[str, Any]


@dataclass
class Record:
    """What a manifest says.

    Attributes:
        job: inputs, options and stamp.
        shards: file, rows, errors, digest and bytes of each finished shard.
        complete: whether the job came to its end.
    """

    job: Line
    shards: list[Line] = field(default_factory=list)
    complete: bool = False


def read_manifest(folder: Path) -> Record | None:
    """Return what the manifest of a folder says, or None where there is none.

    Raises:
        ConfigError: it is damaged.
    """
    path = folder / MANIFEST
    return _parse(path, path.read_bytes()) if path.is_file() else None


def _parse(path: Path, raw: bytes) -> Record | None:
    try:
        lines = [json.loads(line) for line in raw[: raw.rfind(b"\n") + 1].splitlines()]
        if not lines:
            return None
        if not isinstance(lines[0], dict) or not isinstance(lines[0]["stamp"], dict):
            raise ValueError("its first line names no job")
        shards = [line for line in lines[1:] if "file" in line]
        for shard in shards:
            if not _SHARD.fullmatch(shard["file"]) or not shard.keys() >= _NOTED:
                raise ValueError(f"its line of {shard['file']!r} is not one of a shard")
        return Record(lines[0], shards, "complete" in lines[-1])
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{str(path)!r} is not a manifest of bge embed, or is damaged: {error}") from error


def shard_files(folder: str | Path) -> list[Path]:
    """Return the finished shards of a folder, in order.

    Raises:
        ConfigError: there are none, or one that the manifest names is missing.
    """
    folder = Path(folder)
    record = read_manifest(folder)
    if record is not None:
        files = [folder / shard["file"] for shard in record.shards]
    else:
        files = sorted(path for each in FORMATS.values() for path in folder.glob(f"part-*{each.ending}"))
        files = [path for path in files if not path.name.endswith(ROWS)]
    missing = [path.name for path in files if not path.is_file()]
    if missing or not files:
        raise ConfigError(f"{str(folder)!r}: " + (f"{missing[0]!r} is missing" if missing else "no shards here"))
    return files


def read_shards(folder: str | Path) -> Iterator[Part]:
    """Yield the finished shards of a folder, one at a time, in the order of the input.

    Raises:
        ConfigError: there are none, or one cannot be read.
    """
    width = int(stamp["dimensions"]) if (stamp := _stamp(Path(folder))) else 0
    for path in shard_files(folder):
        pieces = list(read_part(path, _MANY, sparse=True)) or [Part([], [], np.empty((0, width), np.float32), {})]
        yield pieces[0] if len(pieces) == 1 else _joined(pieces)


def _joined(pieces: Sequence[Part]) -> Part:
    kept = {name: [value for piece in pieces for value in piece.kept[name]] for name in pieces[0].kept}
    ids, texts = ([value for piece in pieces for value in piece[i]] for i in (0, 1))
    sparse = [piece.sparse for piece in pieces if piece.sparse is not None]
    joined = SparseRows.joined(sparse) if sparse else None
    return Part(ids, texts, np.concatenate([piece.vectors for piece in pieces]), kept, joined)


def stamp_of(folder: str | Path) -> dict[str, Any]:
    """Return the stamp of the vectors in a folder: of which model and space they are.

    Raises:
        ConfigError: no shards here, or none that says.
    """
    stamp = _stamp(Path(folder))
    if stamp is None:
        raise ConfigError(f"{str(shard_files(folder)[0])!r} does not say of which model its vectors are")
    return stamp


def _stamp(folder: Path) -> dict[str, Any] | None:
    record = read_manifest(folder)
    if record is not None:
        return dict(record.job["stamp"])
    first = shard_files(folder)[0]
    return parquet_stamp(first) if first.suffix == ".parquet" else None


def is_finished(folder: str | Path) -> bool:
    """Tell whether the job of a folder came to its end, as far as the folder says."""
    record = read_manifest(Path(folder))
    return record is None or record.complete


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
        self.folder, self.path, self.errors = folder, folder / MANIFEST, folder / ERRORS
        check_ours(folder)
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
        record = _parse(self.path, raw)
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
    for path in (folder / MANIFEST, folder / ERRORS):
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise ConfigError(f"{str(path)!r} is a link or no file: name another folder")
    path = folder / MANIFEST
    raw = path.read_bytes() if path.exists() else b""
    if _parse(path, raw) is not None:
        return
    # A kill may have left the beginning of the first line.
    torn = {MANIFEST} if raw.startswith(_BEGINNING) or _BEGINNING.startswith(raw) else set()
    others = sorted(each.name for each in folder.iterdir() if not each.name.startswith(PARTIAL) | (each.name in torn))
    if any(_SHARD.fullmatch(name) for name in others):
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
    besides = ("package_version", "query_instruction", "space")
    return {name: value for name, value in job.get("stamp", {}).items() if name not in besides}
