"""Finished shards piece by piece, so that one of any size needs little memory; only what is wanted is read."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from ..core.encoder import Vectors
from ..errors import ConfigError
from .layout import ROWS
from .manifest import read_manifest
from .shards import Part, need_pyarrow

_NAMES = ("id", "text", "embedding")


def read_pieces(path: Path, size: int, *, rows: bool = True, vectors: bool = True) -> Iterator[Part]:
    """Yield a shard in pieces of at most ``size`` rows.

    Args:
        path: of the shard.
        size: rows per piece.
        rows: read ids, texts and kept columns; else they are empty.
        vectors: read vectors; else their shape is (0, 0).

    Raises:
        ConfigError: the shard cannot be read.
    """
    read = {".parquet": _parquet, ".npy": _numpy, ".jsonl": _jsonl}[path.suffix]
    try:
        yield from read(path, size, rows, vectors)
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{str(path)!r} cannot be read: {error}") from error


def is_finished(folder: str | Path) -> bool:
    """Tell whether the job of a folder came to its end, as far as the folder says."""
    contents = read_manifest(Path(folder))
    return contents is None or contents.complete


def kept_kinds(path: Path) -> dict[str, Any]:
    """Return the Arrow types of a shard's ids and kept columns; where its format has none, those of its first rows.

    Raises:
        ConfigError: the shard cannot be read.
    """
    need_pyarrow()
    import pyarrow as pa
    import pyarrow.parquet as parquet

    if path.suffix == ".parquet":
        return {field.name: field.type for field in parquet.read_schema(path) if field.name not in _NAMES[1:]}
    part = next(read_pieces(path, 1000, vectors=False), Part([], [], _NONE, {}))
    kinds = {name: pa.array(values).type for name, values in {"id": part.ids, **part.kept}.items()}
    return {name: pa.string() if pa.types.is_null(kind) else kind for name, kind in kinds.items()}


def _parquet(path: Path, size: int, rows: bool, vectors: bool) -> Iterator[Part]:
    need_pyarrow()
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path, memory_map=True) as file:
        names = [name for name in file.schema_arrow.names if (vectors if name == "embedding" else rows)]
        for batch in file.iter_batches(batch_size=size, columns=names):
            found = {name: batch.column(name) for name in names}
            numbers = _numbers(found.pop("embedding")) if vectors else _NONE
            yield _part({name: column.to_pylist() for name, column in found.items()}, numbers)


_NONE = np.empty((0, 0), np.float32)


def _numbers(column: Any) -> Vectors:
    flat = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    return flat.reshape(len(column), -1) if len(column) else _NONE


def _part(columns: dict[str, list[Any]], vectors: Vectors) -> Part:
    kept = {name: values for name, values in columns.items() if name not in _NAMES}
    return Part(columns.get("id", []), columns.get("text", []), vectors, kept)


def _numpy(path: Path, size: int, rows: bool, vectors: bool) -> Iterator[Part]:
    numbers = np.load(path, mmap_mode="r")
    lines = _lines(path.with_suffix(ROWS)) if rows else iter(())
    for first in range(0, len(numbers), size):
        part = numbers[first : first + size]
        found = np.asarray(part, np.float32) if vectors else _NONE
        yield _part(_columns(list(islice(lines, len(part)))), found)


def _jsonl(path: Path, size: int, rows: bool, vectors: bool) -> Iterator[Part]:
    lines = _lines(path)
    while part := list(islice(lines, size)):
        numbers = [row.pop("embedding") for row in part]
        yield _part(_columns(part if rows else []), np.array(numbers, np.float32) if vectors else _NONE)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for line in file:
            yield orjson.loads(line)


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else {})}
