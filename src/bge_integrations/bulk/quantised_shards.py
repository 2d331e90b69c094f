"""Shards of floats become shards of quantised vectors in another folder, one after the other, resumable."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import copyfileobj
from typing import Any

import numpy as np

from ..core.encoder import Vectors
from ..core.files import write_whole
from ..environment import named_path
from ..errors import BGEError, ConfigError, warn
from ..stamps.slots import KEY
from .folder import FolderRecord, check_float, read_manifest, shard_files, stamp_of
from .formats import read_part
from .json_shards import ROWS, SPARSE
from .manifest import Manifest, check_ours
from .parquet_shards import need_pyarrow, vector_column, write_table
from .quantise import Quantisation, quantise, quantised_stamp

__all__ = ["Quantised", "float_shards", "quantise_files"]

_PIECE = 2048


@dataclass(frozen=True)
class Quantised:
    """The result of quantising a folder.

    Attributes:
        rows: of all shards.
        bytes: of a vector before.
        small_bytes: of a vector now.
        folder_bytes: of all shards before, texts and all.
        small_folder_bytes: of all shards now.
        stamp: of the new folder.
    """

    rows: int
    bytes: int
    small_bytes: int
    folder_bytes: int
    small_folder_bytes: int
    stamp: dict[str, Any]


def quantise_files(
    folder: str | Path, out: str | Path, to: Quantisation, *, on_rows: Callable[[int], None] | None = None
) -> Quantised:
    """Write the shards of a folder again with quantised vectors; the same call again resumes.

    Ids, texts, kept columns and sparse vectors stay as they are. The new folder's stamp names the quantisation, so that
    its vectors are compared with no others, and holds the ranges of int8, which are those of all rows. ``search_files``
    reads it, and scores what it finds again by the floats where ``folder`` is still there.

    Args:
        folder: of ``embed_files``, finished, in Parquet or NumPy's format.
        out: a new or empty folder.
        to: as ``quantise`` takes it.
        on_rows: called with the number of rows written so far.

    Raises:
        ConfigError: no finished shards of floats, another kind, ``out`` holds other files or other shards, or the disk
            is full; finished shards stay.
    """
    source, target = named_path(folder), named_path(out)
    files, stamp = shard_files(source), stamp_of(source)
    record = read_manifest(source)
    _check(source, target, files, record)
    check_float(source, "quantise")
    assert record is not None
    ranges = _ranges(files) if to == "int8" else None
    quantise(np.zeros((0, 1), np.float32), to, ranges=None if to == "binary" else np.zeros((2, 1)))  # a wrong ``to``
    new = quantised_stamp(stamp, to, ranges)
    inputs = {"first": os.path.relpath(source, target), **_fingerprint(record)}
    try:
        rows = _write_all(target, {"inputs": inputs, "options": {"quantise": to}, "stamp": new}, files, record, on_rows)
    except OSError as error:
        raise ConfigError(
            f"cannot write into {str(out)!r}: {error.strerror or error}; finished shards are kept: repeat "
            "the call to resume"
        ) from error
    dimensions = int(stamp["dimensions"])
    wide = 2 if record.job.get("options", {}).get("half") else 4
    small = dimensions if to == "int8" else -(-dimensions // 8)
    return Quantised(rows, dimensions * wide, small, _size(source, files), _size(target, files), new)


def _write_all(
    target: Path,
    job: dict[str, Any],
    files: Sequence[Path],
    record: FolderRecord,
    on_rows: Callable[[int], None] | None,
) -> int:
    rows, to, ranges = 0, job["options"]["quantise"], job["stamp"].get("ranges")

    def small(vectors: Any) -> Any:
        return quantise(np.asarray(vectors, np.float32), to, ranges=ranges)

    with Manifest(target, job) as manifest:
        for number, (path, shard) in enumerate(zip(files, record.shards, strict=True)):
            if not manifest.holds(number):
                # A shard that is there whole but not in the manifest was written before a kill: it is written again.
                copy = _copy_parquet if path.suffix == ".parquet" else _copy_numpy
                copy(path, target / path.name, small, job["stamp"])
                if number >= len(manifest.shards):
                    size = (target / path.name).stat().st_size
                    line = {"file": path.name, "bytes": size, "digest": shard["digest"], "rows": shard["rows"]}
                    manifest.finish({**line, "errors": 0}, [])
            rows += int(shard["rows"])
            if on_rows:
                on_rows(rows)
        manifest.end()
    return rows


def _copy_parquet(path: Path, target: Path, change: Callable[[Any], Any], stamp: dict[str, Any]) -> None:
    table = need_pyarrow().read_table(path)
    place = table.schema.get_field_index("embedding")
    vectors = table.column(place).combine_chunks()
    numbers = vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(vectors), vectors.type.list_size)
    table = table.set_column(place, *vector_column(change(numbers)))
    write_table(target, table.replace_schema_metadata({KEY: json.dumps(stamp, sort_keys=True)}))


def _copy_numpy(path: Path, target: Path, change: Callable[[Any], Any], _: dict[str, Any]) -> None:
    for ending in (ROWS, SPARSE):
        if path.with_suffix(ending).is_file():
            with path.with_suffix(ending).open("rb") as beside:
                write_whole(target.with_suffix(ending), partial(copyfileobj, beside))
    write_whole(target, lambda file: np.save(file, change(np.load(path, mmap_mode="r"))))


def _check(source: Path, target: Path, files: Sequence[Path], record: FolderRecord | None) -> None:
    if source.resolve() == target.resolve():
        raise ConfigError(f"{str(target)!r} holds the float vectors themselves: choose another output folder")
    if record is None:
        raise ConfigError(f"{str(source)!r} has no manifest: pass a folder that bge embed wrote")
    if not record.complete:
        raise ConfigError(f"the job of {str(source)!r} is not finished: finish it first")
    if files[0].suffix == ".jsonl":
        raise ConfigError("JSON-lines shards cannot be quantised: embed with --format parquet or numpy")
    check_ours(target)


def _ranges(files: Sequence[Path]) -> Vectors:
    least: Any = np.inf
    largest: Any = -np.inf
    for path in files:
        # In pieces, and without the texts: a shard may be larger than the memory that is left.
        for piece in read_part(path, _PIECE, rows=False):
            if len(piece.vectors):
                least = np.minimum(least, piece.vectors.min(0))
                largest = np.maximum(largest, piece.vectors.max(0))
    if np.ndim(least) == 0:
        raise ConfigError("there are no rows to compute int8 ranges from")
    return np.stack([least, largest])


def _fingerprint(record: FolderRecord) -> dict[str, Any]:
    """Return what identifies the shards of a folder, so that a change is noticed."""
    lines = [[shard["file"], shard["digest"], shard["bytes"]] for shard in record.shards]
    told = json.dumps([lines, record.job["stamp"]], sort_keys=True).encode()
    return {"shards": len(lines), "digest": hashlib.sha256(told).hexdigest()}


def _size(folder: Path, files: Sequence[Path]) -> int:
    return sum(each.stat().st_size for path in files for each in folder.glob(f"{path.stem}.*"))


def float_shards(folder: str | Path) -> list[Path]:
    """Return the shards that those of a quantised folder were made of; empty where they are gone or have changed."""
    record = read_manifest(Path(folder))
    if record is None or "first" not in record.job.get("inputs", {}):
        return []
    inputs = record.job["inputs"]
    source = Path(folder) / inputs["first"]
    with suppress(BGEError, OSError):
        held = read_manifest(source)
        if held is not None and {**_fingerprint(held), "first": inputs["first"]} == inputs:
            return shard_files(source)
        if held is not None:
            warn(
                f"the shards in {str(source)!r} have changed since {str(folder)!r} was made of them, so hits "
                "are not rescored: quantise them into a new folder, or pass rescore=0 (--rescore 0)"
            )
    return []
