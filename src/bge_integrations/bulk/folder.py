"""A folder of shards, read: its manifest (the job, then a line for each finished shard) and its shards."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError
from .formats import FORMATS, read_part
from .json_shards import ROWS
from .parquet_shards import parquet_stamp
from .part import Part, SparseRows
from .quantise import is_quantised

__all__ = [
    "ERRORS",
    "MANIFEST",
    "SHARD",
    "FolderRecord",
    "check_float",
    "describes_shard",
    "is_finished",
    "parse_manifest",
    "read_manifest",
    "read_shards",
    "shard_files",
    "side_files",
    "stamp_of",
]

# Names that begin with a dot are no data to pyarrow, pandas, Spark and datasets, which read the folder as a table.
MANIFEST, ERRORS = ".manifest.jsonl", ".errors.jsonl"
_OLD = ("manifest.jsonl", "errors.jsonl")  # until version 0.1
SHARD = re.compile(r"part-(\d{6,})(\.parquet|\.npy|\.jsonl)")
_MANY = 1 << 30
_NOTED = {"bytes": int, "digest": str, "errors": int, "errors_bytes": int, "rows": int}
Line = dict[str, Any]


@dataclass
class FolderRecord:
    """What a manifest says.

    Attributes:
        job: inputs, options and stamp.
        shards: file, rows, errors, digest and bytes of each finished shard.
        complete: whether the job came to its end.
    """

    job: Line
    shards: list[Line] = field(default_factory=list)
    complete: bool = False


def side_files(folder: Path) -> tuple[Path, Path]:
    """Return where the manifest of a folder and its list of bad rows are, or would be: under old names if they are."""
    old, new = [folder / name for name in _OLD], (folder / MANIFEST, folder / ERRORS)
    is_old = (old[0].exists() or old[0].is_symlink()) and not new[0].exists()
    return (old[0], old[1]) if is_old else new


def read_manifest(folder: Path) -> FolderRecord | None:
    """Return what the manifest of a folder says, or None where there is none.

    Raises:
        ConfigError: it is damaged.
    """
    path = side_files(folder)[0]
    return parse_manifest(path, path.read_bytes()) if path.is_file() else None


def parse_manifest(path: Path, raw: bytes) -> FolderRecord | None:
    """Return what the bytes of a manifest say, or None where they hold no whole line.

    Raises:
        ConfigError: it is damaged.
    """
    try:
        # A last line without its end was being written when the job was killed: its shard is not finished.
        lines = [json.loads(line) for line in raw[: raw.rfind(b"\n") + 1].splitlines()]
        if not lines:
            return None
        if not isinstance(lines[0], dict) or not isinstance(lines[0]["stamp"], dict):
            raise ValueError("its first line does not describe a job")
        shards = [line for line in lines[1:] if "file" in line]
        for shard in shards:
            if not SHARD.fullmatch(shard["file"]) or not describes_shard(shard, _NOTED):
                raise ValueError(f"its line for {shard['file']!r} does not describe a shard")
        return FolderRecord(lines[0], shards, "complete" in lines[-1])
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{str(path)!r} is not a manifest of bge embed, or is damaged: {error}") from error


def describes_shard(line: Line, types: Mapping[str, type]) -> bool:
    """Tell whether a line has values of these types, and truncated rows, if any, that are among its rows."""
    truncated = line.get("truncated", [])
    return (
        all(isinstance(line.get(name), kind) for name, kind in types.items())
        and isinstance(truncated, list)
        and all(isinstance(row, int) and 0 <= row < line["rows"] for row in truncated)
    )


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
        # NumPy shards have their ids and texts in a second file, which ends in .jsonl like a shard of that format.
        files = [path for path in files if not path.name.endswith(ROWS)]
    missing = [path.name for path in files if not path.is_file()]
    if missing or not files:
        what = f"{missing[0]!r} is missing from {str(folder)!r}" if missing else f"{str(folder)!r} holds no shards"
        raise ConfigError(what)
    return files


def read_shards(folder: str | Path) -> Iterator[Part]:
    """Yield the finished shards of a folder, one at a time; quantised vectors as codes.

    They come in the order of the input; after an update, new rows last.

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
        raise ConfigError(f"{str(shard_files(folder)[0])!r} does not say which model its vectors come from")
    return stamp


def _stamp(folder: Path) -> dict[str, Any] | None:
    record = read_manifest(folder)
    if record is not None:
        return dict(record.job["stamp"])
    first = shard_files(folder)[0]
    return parquet_stamp(first) if first.suffix == ".parquet" else None


def check_float(folder: str | Path, purpose: str) -> None:
    """Refuse a folder of quantised vectors.

    Raises:
        ConfigError: names the folder that they were made of.
    """
    if is_quantised(_stamp(Path(folder))):
        record = read_manifest(Path(folder))
        made_of = record.job.get("inputs", {}).get("first") if record else None
        source = f" ({os.path.normpath(Path(folder) / made_of)!r})" if made_of else ""
        raise ConfigError(
            f"{str(folder)!r} holds quantised vectors, but {purpose} needs float vectors: pass the folder "
            f"that was quantised{source}"
        )


def is_finished(folder: str | Path) -> bool:
    """Tell whether the job of a folder came to its end, as far as the folder says."""
    record = read_manifest(Path(folder))
    return record is None or record.complete
