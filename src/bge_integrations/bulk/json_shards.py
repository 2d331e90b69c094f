"""JSON-lines shards, and NumPy's, whose rows are lines of JSON beside the vectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..core.encoder import Vectors
from ..core.files import write_whole
from .part import Part, SparseRows
from .rows import Row
from .shard_format import IDS, NONE, WEIGHTS, Contents, ShardFormat, as_read, make_part

__all__ = ["JSON_LINES", "NUMPY", "ROWS", "SPARSE"]

ROWS = ".rows.jsonl"  # beside an .npy file: all that is not a vector
SPARSE = ".sparse.npz"  # beside an .npy file, where there are sparse vectors: as scipy.sparse.load_npz reads it


class _Numpy(ShardFormat):
    ending = ".npy"

    def write(
        self, path: Path, rows: Sequence[Row], vectors: Any, contents: Contents, sparse: SparseRows | None = None
    ) -> None:
        keep = contents.columns.keep
        write_whole(path.with_suffix(ROWS), lambda file: file.writelines(_line(row, keep) for row in rows))
        if sparse is not None:
            arrays: Any = {"indices": sparse.indices, "indptr": sparse.starts, "data": sparse.values}
            about: Any = {"format": np.array("csr"), "shape": np.array([len(sparse), contents.stamp["vocabulary"]])}
            write_whole(path.with_suffix(SPARSE), lambda file: np.savez(file, **about, **arrays))
        write_whole(path, lambda file: np.save(file, vectors))  # last: where this file is, the others are

    def read(self, path: Path, size: int, *, rows: bool, vectors: bool, sparse: bool, exact: bool) -> Iterator[Part]:
        del exact  # JSON's values are exact
        numbers = np.load(path, mmap_mode="r")
        if getattr(numbers, "ndim", 0) != 2:
            raise ValueError("it holds no rows of vectors")
        lines = _lines(path.with_suffix(ROWS)) if rows else iter(())
        found = _load_sparse(path.with_suffix(SPARSE)) if sparse else None
        for first in range(0, len(numbers), size):
            part = numbers[first : first + size]
            found_rows = list(islice(lines, len(part)))
            if rows and len(found_rows) != len(part):
                raise ValueError(f"{path.with_suffix(ROWS).name!r} holds fewer rows than there are vectors")
            yield make_part(
                _columns(found_rows),
                as_read(part) if vectors else NONE,
                found and found.part(first, first + len(part)),
            )
        if next(lines, None) is not None:
            raise ValueError(f"{path.with_suffix(ROWS).name!r} holds more rows than there are vectors")

    def stored(self, values: list[Any], kind: Any) -> list[Any]:
        return _through_json(values, kind)


def _load_sparse(path: Path) -> SparseRows | None:
    if not path.is_file():
        return None
    with np.load(path) as arrays:
        return SparseRows(arrays["indptr"], arrays["indices"], arrays["data"])


class _JsonLines(ShardFormat):
    ending = ".jsonl"

    def write(
        self, path: Path, rows: Sequence[Row], vectors: Any, contents: Contents, sparse: SparseRows | None = None
    ) -> None:
        keep, plain = contents.columns.keep, vectors.astype(np.float32, copy=False)
        numbers: list[dict[str, Any]] = [{"embedding": vector} for vector in plain]
        for fields, (ids, weights) in zip(numbers, sparse or (), strict=sparse is not None):
            fields |= {IDS: ids, WEIGHTS: weights}
        lines = (_line(row, keep, fields) for row, fields in zip(rows, numbers, strict=True))
        write_whole(path, lambda file: file.writelines(lines))

    def read(self, path: Path, size: int, *, rows: bool, vectors: bool, sparse: bool, exact: bool) -> Iterator[Part]:
        del exact
        lines = _lines(path, "embedding")
        while part := list(islice(lines, size)):
            numbers = [row.pop("embedding") for row in part]
            ids, weights = ([row.pop(name) for row in part if name in row] for name in (IDS, WEIGHTS))
            yield make_part(
                _columns(part if rows else []),
                _floats(numbers) if vectors else NONE,
                SparseRows.from_lists(ids, weights) if sparse and ids else None,
            )

    def stored(self, values: list[Any], kind: Any) -> list[Any]:
        return _through_json(values, kind)


NUMPY: ShardFormat = _Numpy()
JSON_LINES: ShardFormat = _JsonLines()


def _through_json(values: list[Any], kind: Any) -> list[Any]:
    import orjson

    del kind  # a line of JSON holds any
    found: list[Any] = orjson.loads(orjson.dumps(values, default=str, option=orjson.OPT_SERIALIZE_NUMPY))
    return found


def _line(row: Row, keep: Sequence[str], numbers: Mapping[str, Any] | None = None) -> bytes:
    import orjson

    fields = {"id": row.id, "text": row.text, **dict(zip(keep, row.kept, strict=True)), **(numbers or {})}
    return orjson.dumps(fields, default=str, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)


def _lines(path: Path, *more: str) -> Iterator[dict[str, Any]]:
    import orjson

    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            row = orjson.loads(line)
            for name in ("id", "text", *more):
                if not isinstance(row, dict) or row.get(name) is None:
                    raise ValueError(f"line {number} of {path.name!r} is not a row with {name!r}")
            yield row


def _floats(rows: list[Any]) -> Vectors:
    if not all(isinstance(row, list) and len(row) == len(rows[0]) for row in rows):
        raise ValueError("its vectors are not lists of numbers, all of one length")
    vectors = np.array(rows, np.float32)
    if not np.isfinite(vectors).all():
        raise ValueError("one of its vectors holds null")
    return vectors


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    if any(row.keys() != rows[0].keys() for row in rows):
        raise ValueError("its rows have different fields")
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else {})}
