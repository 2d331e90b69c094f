"""The manifest of a job under way: who may write into a folder, and what was finished there."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Self

from ..core.files import PARTIAL, is_partial, sync_folder
from ..errors import ConfigError, SpaceMismatchError
from .disk import append_lines, open_to_append
from .folder import SHARD, FolderRecord, Line, parse_manifest, side_files
from .staging import Changes, Staging, finish_update

__all__ = ["Manifest", "check_ours", "check_same", "same_inputs"]

# Version 0.1 named unfinished files so.
_OLD_PARTIAL = re.compile(r"part-\d{6,}(\.parquet|\.npy|\.rows\.jsonl|\.jsonl)\.partial")
_BEGINNING = b'{"inputs": {'  # of a manifest, whose keys are sorted


class Manifest:
    """The manifest of a job under way; holds a lock on the folder until it is closed.

    Args:
        folder: of the shards; made where it is missing.
        job: inputs, options and stamp; all of it decides the bytes of the shards.
        update: whether the job brings the folder up to date; then its inputs may be others.

    Raises:
        ConfigError: the folder holds somebody's files or another job's shards, or another process is at work in it.
        SpaceMismatchError: its vectors are of another space.
    """

    def __init__(self, folder: Path, job: Mapping[str, Any], *, update: bool = False) -> None:
        self.folder = folder
        check_ours(folder)
        self.path, self.errors = side_files(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._file = _open_locked(self.path)
        try:
            finish_update(folder, self._replace)
            self._begin(json.loads(json.dumps(job)), update=update)  # as it is read again: tuples become lists
        except BaseException:
            self._file.close()
            raise

    def _begin(self, job: Line, *, update: bool) -> None:
        self._file.seek(0)
        raw = self._file.read()
        record = parse_manifest(self.path, raw)
        # A kill in the middle of a line leaves a part of it, which the next line must not follow.
        if not raw.endswith(b"\n"):
            self._file.truncate(raw.rfind(b"\n") + 1)
        empty = record is None or not any(line.get("rows") for line in record.shards)
        if record is None or (empty and record.job != job):
            # Nothing was finished, so a corrected command may begin anew.
            self._remove([line["file"] for line in record.shards] if record else [])
            self._file.truncate(0)
            append_lines(self._file, [job])
            record = FolderRecord(job)
        check_same(record.job, job, self.folder, update=update)
        self._clear(anew=not record.shards)
        self.job, self.shards, self.complete = record.job, record.shards, record.complete
        written = self.shards[-1]["errors_bytes"] if self.shards else 0
        if self.errors.exists() and self.errors.stat().st_size > written:
            with open_to_append(self.errors) as file:
                file.truncate(written)

    def _remove(self, shards: list[str]) -> None:
        stems = tuple(f"{name.partition('.')[0]}." for name in shards)
        for path in list(self.folder.iterdir()):
            if shards and path.name.startswith(stems):
                path.unlink()

    def _clear(self, *, anew: bool) -> None:
        """Remove what a kill left: unfinished files, and the shard that was not noted yet."""
        for path in list(self.folder.iterdir()):
            unnoted = anew and path.name.startswith("part-000000.")
            if unnoted or is_partial(path.name) or _OLD_PARTIAL.fullmatch(path.name):
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
            with open_to_append(self.errors) as file:
                append_lines(file, errors)
        size = self.errors.stat().st_size if self.errors.exists() else 0
        line = {**shard, "errors_bytes": size}
        append_lines(self._file, [line])
        self.shards.append(line)

    def update(self, changes: Changes, staging: Staging) -> None:
        """Bring new shards in and old ones out, and replace the manifest."""
        staging.decide(changes)
        finish_update(self.folder, self._replace)

    def _replace(self, path: Path, raw: bytes) -> None:
        """Replace the manifest in one step; the new file is locked before anybody can open it."""
        partial = path.with_name(f"{PARTIAL}{secrets.token_hex(8)}-{path.name.lstrip('.')}")
        new = open_to_append(partial)
        new.write(raw)
        new.flush()
        os.fsync(new.fileno())
        if os.name == "nt":  # open files cannot be renamed there, nor replaced
            new.close()
            self._file.close()
            partial.replace(path)
            new = _open_locked(path)
        else:
            _lock(new, self.folder)
            partial.replace(path)
            self._file.close()
        self._file = new
        sync_folder(self.folder)

    def end(self) -> None:
        """Note that all of the input is in the shards."""
        if not self.complete:
            append_lines(self._file, [{"complete": True, "shards": len(self.shards)}])
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
        raise ConfigError(f"cannot write into {str(folder)!r}: it is a file, pass a folder")
    path, errors = side_files(folder)
    for each in (path, errors):
        if each.is_symlink() or (each.exists() and not each.is_file()):
            raise ConfigError(f"{str(each)!r} is a link or not a regular file: use another folder")
    raw = path.read_bytes() if path.exists() else b""
    if parse_manifest(path, raw) is not None:
        return
    # A kill may have left the beginning of the first line.
    torn = {path.name} if raw.startswith(_BEGINNING) or _BEGINNING.startswith(raw) else set()
    others = sorted(each.name for each in folder.iterdir() if not is_partial(each.name) | (each.name in torn))
    if any(SHARD.fullmatch(name) for name in others):
        raise ConfigError(f"{str(folder)!r} holds shards without a manifest: choose an empty folder")
    if others:
        raise ConfigError(
            f"{str(folder)!r} holds {others[0]!r}, which bge embed did not write: choose a new or empty folder"
        )


def _open_locked(path: Path) -> IO[bytes]:
    """Open and lock the manifest; if an update has replaced it meanwhile, the new one."""
    while True:
        file = open_to_append(path)
        try:
            _lock(file, path.parent)
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _lock(file: IO[bytes], folder: Path) -> None:
    """Lock the open manifest; the system releases it when the process ends, however it ends."""
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(1 << 40)  # far behind the end, so that others may still read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            # Not lockf: its lock goes as soon as this process closes any other handle of the file.
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # flock's error, and msvcrt's
        raise ConfigError(
            f"another process is writing into {str(folder)!r}: wait for it, or use another folder"
        ) from None


def check_same(written: Line, job: Line, folder: Path, *, update: bool = False) -> None:
    """Refuse to resume with other inputs, options or vectors than the folder's; an update may have other inputs.

    Raises:
        SpaceMismatchError: the vectors would be of another space.
        ConfigError: inputs or options differ.
    """
    old, new = _space(written), _space(job)
    if old != new:
        raise SpaceMismatchError(
            f"{str(folder)!r} holds vectors of another space, according to its stamp "
            f"({_changes(old, new)}): use another folder"
        )
    if update:
        _check_instruction(written, job, folder)
    elif written.get("updated"):
        raise ConfigError(
            f"{str(folder)!r} was brought up to date by --update (update=True): pass it here too, or use another folder"
        )
    for name in ("options",) if update else ("inputs", "options"):
        old, new = _flat(written.get(name, {})), _flat(job.get(name, {}))
        if old != new:
            updates = name == "inputs" and "quantise" not in job["options"]  # quantised shards are made anew instead
            remedy = "--update (update=True) brings it up to date, or " if updates else ""
            raise ConfigError(
                f"{name} of the job in {str(folder)!r} have changed ({_changes(old, new)}): {remedy}use another folder"
            )


def same_inputs(written: Line, job: Line) -> bool:
    """Tell whether two jobs have the same inputs, wherever these lie."""
    return _flat(written.get("inputs", {})) == _flat(job["inputs"])


def _check_instruction(written: Line, job: Line, folder: Path) -> None:
    """Refuse another query instruction: no vector here depends on it, but whoever passes it expects it in searches."""
    old, new = (each["stamp"].get("query_instruction") or None for each in (written, job))
    if old != new:
        raise SpaceMismatchError(
            f"{str(folder)!r} is stamped with another query instruction ({old!r} there, {new!r} now): "
            "pass the one from there, or use another folder"
        )


def _changes(old: Line, new: Line) -> str:
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    names = [name for name in names if name != "kinds" or "keep" not in names]
    digests = ("digest", "ends")  # of contents, which say nothing to a reader
    return "; ".join(
        "other contents" if name in digests else f"{name}: {_shown(old.get(name))} there, {_shown(new.get(name))} now"
        for name in names
    )


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
