"""Where an update's new shards wait until all of them are there, and how they come into the folder in one step.

A folder is in its old state until its manifest is replaced, and in its new one from then on:

1. New shards, and the list of bad rows, are written into the hidden folder ``.bge-update``, each noted in a journal.
   Nothing else changes: whoever reads the manifest or lists the folder sees the old shards.
2. When the input has been read to its end, a plan is written there: the new manifest, which shards come in, and which
   go. From here on, whoever writes into the folder next carries the plan out; before, a kill leaves the old state.
3. A marker comes in that no reader takes for data (``bge-update-not-finished.parquet``). Whoever lists the folder
   instead of reading the manifest (pandas, pyarrow, DuckDB) fails at it, and so cannot take old and new shards together
   for one state.
4. New shards come in, under numbers that were never used; then the manifest is replaced; then old shards go.
5. The marker goes, then ``.bge-update``.

Each of these steps may be repeated, so a kill between any two leaves nothing that the next run does not finish. Whoever
has read the manifest before step 4 and opens an old shard after it finds it missing, and says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.files import PARTIAL, sync_folder, write_atomic
from ..errors import ConfigError
from .disk import append_lines, open_to_append, to_lines
from .folder import SHARD, Line, describes_shard, side_files
from .formats import shard_parts

__all__ = ["STAGING", "Changes", "Staging", "discard", "finish_update", "staged_shards"]

STAGING = f"{PARTIAL}update"
_JOURNAL, _PLAN, _ERRORS = "journal.jsonl", "plan.json", "errors.jsonl"
_MARKER = "bge-update-not-finished"  # sorts before the shards, so that it is read first
_NOTED = {"bad": list, "bytes": int, "digest": str, "embedded": int, "rows": int, "truncated": list}
_WAITING = re.compile(r"[0-9a-f]{32}(\.parquet|\.npy|\.jsonl)")
_SAID = b"bge embed --update was ended while it replaced shards here: run it again.\n"


@dataclass(frozen=True)
class Changes:
    """What changes in a folder.

    Attributes:
        manifest: its lines.
        come: where each new shard waits, and its name in the folder.
        go: names of old shards.
    """

    manifest: list[Line]
    come: list[tuple[str, str]]
    go: list[str]


class Staging:
    """New shards of an update under way, by the digest of their rows; those of one that was killed are there still.

    Args:
        folder: of the shards; locked by the caller.
        job: what the update is to come to. Where it is another than the last one's, the shards of that are leftovers:
            their vectors can be used, for the same texts.

    Attributes:
        errors: where the new list of bad rows is.
        shards: lines of the shards that wait here, by digest.
        leftovers: lines of those of them that were made for another input.
    """

    def __init__(self, folder: Path, job: Line) -> None:
        self.folder, self.path = folder, folder / STAGING
        if self.path.is_symlink() or (self.path.exists() and not self.path.is_dir()):
            raise ConfigError(f"{str(self.path)!r} was not made by bge embed: remove it")
        self.path.mkdir(exist_ok=True)
        self._journal, self.errors = self.path / _JOURNAL, self.path / _ERRORS
        lines = _read_journal(self._journal)
        last = next((i for i in reversed(range(len(lines))) if "job" in lines[i]), None)
        if last is None or lines[last]["job"] != job:
            last = len(lines)
            self._note({"job": job})
        self.shards = {line["digest"]: line for line in lines if "digest" in line and self._is_whole(line)}
        self.leftovers = [line for line in lines[:last] if self.shards.get(line.get("digest")) is line]
        self.errors.write_bytes(b"")

    def _is_whole(self, line: Line) -> bool:
        path = self.path / line["file"]
        return path.is_file() and bool(path.stat().st_size == line["bytes"])

    def _note(self, line: Line) -> None:
        with open_to_append(self._journal) as file:
            append_lines(file, [line])

    def place(self, digest: str, ending: str) -> Path:
        """Return where a shard waits."""
        return self.path / f"{digest[:32]}{ending}"

    def keep(self, line: Line) -> None:
        """Note a shard that is on the disk."""
        self._note(line)
        self.shards[line["digest"]] = line

    def add_bad(self, errors: Iterable[Mapping[str, Any]]) -> None:
        """Write lines of the new list of bad rows; it is made anew by each run."""
        with self.errors.open("ab") as file:
            file.write(to_lines(list(errors)))

    def decide(self, changes: Changes) -> None:
        """Write down what is to happen; from here on it will."""
        with open_to_append(self.errors) as file:
            append_lines(file, [])
        write_atomic(self.path / _PLAN, json.dumps(vars(changes)))


def staged_shards(folder: Path) -> list[Path]:
    """Return the shards of an update that was killed before its end; nothing is touched."""
    staging = folder / STAGING
    if staging.is_symlink():
        return []
    lines = _read_journal(staging / _JOURNAL, repair=False)
    files = [(staging / line["file"], line["bytes"]) for line in lines if "file" in line]
    return [file for file, size in files if file.is_file() and file.stat().st_size == size]


def finish_update(folder: Path, replace: Callable[[Path, bytes], None]) -> None:
    """Carry out what an update decided, however often it was begun; nothing where none has.

    Args:
        folder: of the shards; locked by the caller.
        replace: replaces the manifest in one step.
    """
    staging = folder / STAGING
    path = staging / _PLAN
    if staging.is_symlink() or not path.is_file():
        return
    plan = _read_plan(path)
    with _marked(folder, plan):
        for waiting, name in plan.come:
            for source, target in zip(shard_parts(staging / waiting), shard_parts(folder / name), strict=True):
                if source.exists():
                    source.replace(target)
        sync_folder(folder)
        manifest, errors = side_files(folder)
        _replace_errors(staging / _ERRORS, errors)
        replace(manifest, to_lines(plan.manifest))
        for name in plan.go:
            for part in reversed(shard_parts(folder / name)):
                part.unlink(missing_ok=True)
    discard(staging)


@contextmanager
def _marked(folder: Path, plan: Changes) -> Iterator[None]:
    """Keep a marker in the folder, at which readers that list it fail, while old and new shards are both there."""
    names = [*(name for _, name in plan.come), *plan.go]
    if not names:
        yield
        return
    marker = folder / f"{_MARKER}{Path(names[0]).suffix}"
    if not marker.exists():
        write_atomic(marker, _SAID)
    yield  # an error leaves it there, as a kill does
    if marker.is_file() and marker.read_bytes() == _SAID:
        marker.unlink()
    sync_folder(folder)


def _replace_errors(new: Path, errors: Path) -> None:
    if not new.exists():  # it is in its place already
        return
    if new.stat().st_size:
        new.replace(errors)
    else:  # a job without bad rows has no list of them
        errors.unlink(missing_ok=True)


def discard(staging: Path) -> None:
    """Remove what an update left, the plan last but for the folder; a file that it did not make stays."""
    lines = _read_journal(staging / _JOURNAL)
    for name in dict.fromkeys(line["file"] for line in lines if "file" in line):
        for part in shard_parts(staging / name):
            part.unlink(missing_ok=True)
    for path in staging.glob(f"{PARTIAL}*"):
        path.unlink()
    for name in (_ERRORS, _JOURNAL, _PLAN):
        (staging / name).unlink(missing_ok=True)
    with suppress(OSError):
        staging.rmdir()


def _read_journal(path: Path, *, repair: bool = True) -> list[Line]:
    """Return the lines of a journal; ``repair`` cuts off the half line that a kill may have left at its end."""
    if path.is_symlink() or not path.is_file():
        return []
    with path.open("r+b" if repair else "rb") as file:
        raw = file.read()
        whole = raw[: raw.rfind(b"\n") + 1]
        if repair:
            file.truncate(len(whole))
    try:
        lines = [json.loads(line) for line in whole.splitlines()]
        shards = [line for line in lines if "job" not in line]
        if not all(_WAITING.fullmatch(line["file"]) and describes_shard(line, _NOTED) for line in shards):
            raise ValueError("one of its lines does not describe a shard")
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{str(path)!r} is damaged ({error}): remove its folder") from error
    return lines


def _read_plan(path: Path) -> Changes:
    try:
        plan = Changes(**json.loads(path.read_bytes()))
        named = [name for _, name in plan.come] + plan.go
        if not all(map(SHARD.fullmatch, named)) or not all(_WAITING.fullmatch(name) for name, _ in plan.come):
            raise ValueError("it names files that are not shards")
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{str(path)!r} is damaged ({error}): embed into another folder") from error
    return plan
