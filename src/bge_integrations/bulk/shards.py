"""Shards read back: one at a time, with the stamp of their vectors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..core.encoder import Vectors
from ..errors import ConfigError
from ..stamps.slots import KEY
from .layout import ENDINGS, ROWS, need_pyarrow
from .manifest import read_manifest

__all__ = ["Part", "need_pyarrow", "read_shards", "shard_files", "stamp_of"]


class Part(NamedTuple):
    """One shard that was read: ``for ids, texts, vectors, kept in read_shards(folder)``.

    Attributes:
        ids: strings, or row numbers where the job named no column of ids.
        texts: what was embedded.
        vectors: float32, shape (n, dimensions), rows of length 1 (of float16 precision where the shard has that).
        kept: the values of each kept column.
    """

    ids: list[Any]
    texts: list[str]
    vectors: Vectors
    kept: dict[str, list[Any]]


def shard_files(folder: str | Path) -> list[Path]:
    """Return the finished shards of a folder, in order.

    Raises:
        ConfigError: there are none, or one that the manifest names is missing.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest is not None:
        files = [folder / shard["file"] for shard in manifest.shards]
    else:
        files = sorted(path for ending in ENDINGS.values() for path in folder.glob(f"part-*{ending}"))
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
    for path in shard_files(folder):
        try:
            yield _READERS[path.suffix](path)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{str(path)!r} cannot be read: {error}") from error


def stamp_of(folder: str | Path) -> dict[str, Any]:
    """Return the stamp of the vectors in a folder: of which model and space they are.

    Raises:
        ConfigError: no shards here, or none that says.
    """
    manifest = read_manifest(Path(folder))
    if manifest is not None:
        return dict(manifest.job["stamp"])
    first = shard_files(folder)[0]
    stamp = _parquet_stamp(first) if first.suffix == ".parquet" else None
    if stamp is None:
        raise ConfigError(f"{str(first)!r} does not say of which model its vectors are")
    return stamp


def _parquet_stamp(path: Path) -> dict[str, Any] | None:
    need_pyarrow()
    import pyarrow.parquet as parquet

    line = (parquet.read_schema(path).metadata or {}).get(KEY.encode())
    return dict(json.loads(line)) if line else None


def _read_parquet(path: Path) -> Part:
    need_pyarrow()
    import pyarrow.parquet as parquet

    table = parquet.read_table(path)
    column = table["embedding"].combine_chunks()
    flat = column.flatten().to_numpy(zero_copy_only=False)
    width = getattr(column.type, "list_size", None) or len(flat) // max(len(column), 1)
    kept = {name: table[name].to_pylist() for name in table.column_names if name not in ("id", "text", "embedding")}
    vectors = flat.reshape(-1, width).astype(np.float32, copy=False)
    return Part(table["id"].to_pylist(), table["text"].to_pylist(), vectors, kept)


def _read_numpy(path: Path) -> Part:
    return _part(path.with_suffix(ROWS), lambda _: np.load(path).astype(np.float32, copy=False))


def _read_jsonl(path: Path) -> Part:
    return _part(path, lambda rows: np.array([row.pop("embedding") for row in rows], np.float32))


def _part(path: Path, vectors: Callable[[list[dict[str, Any]]], Vectors]) -> Part:
    import orjson

    with path.open("rb") as file:
        rows = [orjson.loads(line) for line in file]
    numbers = vectors(rows)
    names = [name for name in (rows[0] if rows else {}) if name not in ("id", "text")]
    kept = {name: [row[name] for row in rows] for name in names}
    return Part([row["id"] for row in rows], [row["text"] for row in rows], numbers, kept)


_READERS: dict[str, Callable[[Path], Part]] = {
    ".parquet": _read_parquet,
    ".npy": _read_numpy,
    ".jsonl": _read_jsonl,
}
