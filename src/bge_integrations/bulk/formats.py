"""The three formats of shards, one class each: written whole or not at all, read back in pieces."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ..core.encoder import Vectors
from ..core.files import write_whole
from ..errors import BGEError, ConfigError
from ..extras import require
from ..stamps.slots import KEY
from .part import Part, SparseRows
from .rows import RESERVED, Columns, Row

__all__ = [
    "FORMATS",
    "ROWS",
    "SPARSE",
    "Contents",
    "Format",
    "column_types",
    "need_pyarrow",
    "parquet_schema",
    "parquet_stamp",
    "read_part",
    "shard_parts",
    "vector_column",
    "write_table",
]

Format = Literal["parquet", "numpy", "jsonl"]
ROWS = ".rows.jsonl"  # beside an .npy file: all that is not a vector
SPARSE = ".sparse.npz"  # beside an .npy file, where there are sparse vectors: as scipy.sparse.load_npz reads it
_CODES = b"bge_codes"  # in the metadata of a column of quantised vectors: their type
_IDS, _WEIGHTS = "sparse_indices", "sparse_values"
_NONE = np.empty((0, 0), np.float32)


@dataclass(frozen=True)
class Contents:
    """What shards are made of.

    Attributes:
        columns: names of text, id and kept columns in the input.
        stamp: of the encoder.
        half: float16 instead of float32.
        kinds: the Arrow type of each kept column; None for a string.
        named: whether ids are strings; else numbers of rows.
    """

    columns: Columns
    stamp: dict[str, Any]
    half: bool = False
    kinds: tuple[Any, ...] = ()
    named: bool = False


class ShardFormat(ABC):
    """How shards are written and read; the same rows and vectors give the same bytes."""

    ending: ClassVar[str]

    @abstractmethod
    def write(
        self, path: Path, rows: Sequence[Row], vectors: Any, contents: Contents, sparse: SparseRows | None = None
    ) -> None:
        """Write a shard; ``vectors`` have the type that they get in the file, sparse weights are float32.

        Raises:
            OSError: the disk is full; nothing of the shard stays.
        """

    @abstractmethod
    def read(self, path: Path, size: int, *, rows: bool, vectors: bool, sparse: bool, exact: bool) -> Iterator[Part]:
        """Yield a shard in pieces of at most ``size`` rows, of which only what is wanted is read."""

    @abstractmethod
    def stored(self, values: list[Any], kind: Any) -> list[Any]:
        """Return values of a kept column as they are read from a shard, exactly.

        Raises:
            ValueError: or TypeError or OverflowError: the shards' type does not hold one of them.
        """


class _Parquet(ShardFormat):
    ending = ".parquet"

    def write(
        self, path: Path, rows: Sequence[Row], vectors: Any, contents: Contents, sparse: SparseRows | None = None
    ) -> None:
        table = _table(rows, vectors, contents)
        if sparse is not None:
            for name, numbers in ((_IDS, sparse.indices), (_WEIGHTS, sparse.values)):
                table = table.append_column(*_lists(name, sparse.starts, numbers))
        write_table(path, table)

    def read(self, path: Path, size: int, *, rows: bool, vectors: bool, sparse: bool, exact: bool) -> Iterator[Part]:
        parquet = need_pyarrow()
        wanted = {"embedding": vectors, _IDS: sparse, _WEIGHTS: sparse}
        with parquet.ParquetFile(path, memory_map=True) as file:
            there = file.schema_arrow.names
            for name in ["embedding", *(["id", "text"] if rows else []), *([_WEIGHTS] if _IDS in there else [])]:
                if name not in there:
                    raise ValueError(f"it has no column {name!r}")
            names = [name for name in there if wanted.get(name, rows)]
            for batch in file.iter_batches(batch_size=size, columns=names):
                columns = {name: batch.column(name) for name in names}
                field = file.schema_arrow.field("embedding")
                numbers = _numbers(columns.pop("embedding"), field) if vectors else _NONE
                found = _sparse_rows(columns.pop(_IDS), columns.pop(_WEIGHTS)) if _IDS in columns else None
                plain = {name: _python(column, exact=exact) for name, column in columns.items()}
                yield _part(plain, numbers, found)

    def stored(self, values: list[Any], kind: Any) -> list[Any]:
        import pyarrow as pa

        return _python(_array(values, kind or pa.string()), exact=True)


def write_table(path: Path, table: Any) -> None:
    """Write a Parquet shard."""
    parquet = need_pyarrow()
    lists = ("embedding", _IDS, _WEIGHTS)
    # Numbers do not shrink (a tenth, for twice the time), and nobody asks for the least of them.
    counted = [name for name in table.column_names if name not in ("text", *lists)]
    squeezed = dict.fromkeys(("text", *counted), "zstd") | {"embedding.list.element": "none", "embedding": "none"}
    squeezed |= {f"{name}.list.element": "zstd" for name in lists[1:] if name in table.column_names}
    options = {"compression": squeezed, "write_statistics": counted, "use_dictionary": False, "version": "2.6"}
    write_whole(path, lambda file: parquet.write_table(table, file, **options))


def _python(column: Any, *, exact: bool) -> list[Any]:
    """Return Python's values of an Arrow column; of nanoseconds, which these do not hold, microseconds or the count."""
    if getattr(column.type, "unit", "") == "ns":
        import pyarrow as pa

        column = column.cast(pa.int64()) if exact else column.cast(_microseconds(column.type), safe=False)
    values: list[Any] = column.to_pylist()
    return values


def _microseconds(kind: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    return pa.duration("us") if pa.types.is_duration(kind) else pa.time64("us")


def _table(rows: Sequence[Row], vectors: Any, contents: Contents) -> Any:
    import pyarrow as pa

    embedding, numbers = vector_column(vectors)
    keep = contents.columns.keep
    fields = [
        pa.field("id", pa.string() if contents.named else pa.int64(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        *(pa.field(name, contents.kinds[i] or pa.string()) for i, name in enumerate(keep)),
        embedding,
    ]
    plain: list[list[Any]] = [[row.id for row in rows], [row.text for row in rows]]
    plain += [[row.kept[i] for row in rows] for i in range(len(keep))]
    arrays = [_array(values, field.type) for values, field in zip(plain, fields, strict=False)]
    arrays.append(numbers)
    return pa.table(arrays, pa.schema(fields, {KEY: json.dumps(contents.stamp, sort_keys=True)}))


def _array(values: Sequence[Any], kind: Any) -> Any:
    """Return an Arrow array of a kind.

    Raises:
        ValueError: a value would be another one in it; pyarrow drops a fraction without a word.
    """
    import pyarrow as pa

    if pa.types.is_integer(kind):
        cut = next((value for value in values if isinstance(value, (float, Decimal)) and value % 1 != 0), None)
        if cut is not None:
            raise ValueError(f"{cut} is no whole number")
    return pa.array(values, kind)


def vector_column(vectors: Any) -> tuple[Any, Any]:
    """Return the column of vectors: its field and its values.

    Floats become lists. Codes become strings of bytes, since Parquet stores an integer of a byte in four.
    """
    import pyarrow as pa

    width = int(vectors.shape[1])
    if vectors.dtype.itemsize == 1:
        packed = np.ascontiguousarray(vectors)
        codes = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(packed), [None, pa.py_buffer(packed)])
        return pa.field("embedding", codes.type, nullable=False, metadata={_CODES: str(vectors.dtype)}), codes
    values = pa.array(vectors.reshape(-1))
    kind = pa.list_(pa.field("element", values.type, nullable=False), width)
    return pa.field("embedding", kind, nullable=False), pa.FixedSizeListArray.from_arrays(values, type=kind)


def _numbers(column: Any, field: Any) -> Any:
    if not len(column):
        return _NONE
    if field.metadata and _CODES in field.metadata:
        codes = np.frombuffer(column.buffers()[1], field.metadata[_CODES].decode())
        width = column.type.byte_width
        return codes.reshape(-1, width)[column.offset : column.offset + len(column)]
    return _as_read(column.flatten().to_numpy(zero_copy_only=False)).reshape(len(column), -1)


def _as_read(numbers: Any) -> Any:
    """Return floats as float32, and bytes, which are quantised, as they are."""
    return np.asarray(numbers) if numbers.dtype.itemsize == 1 else np.asarray(numbers, np.float32)


def _lists(name: str, starts: NDArray[np.int64], numbers: NDArray[Any]) -> tuple[Any, Any]:
    import pyarrow as pa

    values = pa.array(numbers)
    kind = pa.list_(pa.field("element", values.type, nullable=False))
    lists = pa.ListArray.from_arrays(pa.array(starts, pa.int32()), values, type=kind)
    return pa.field(name, kind, nullable=False), lists


def _sparse_rows(ids: Any, weights: Any) -> SparseRows:
    starts = ids.offsets.to_numpy().astype(np.int64)
    return SparseRows(starts - starts[0], ids.flatten().to_numpy(), weights.flatten().to_numpy())


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
        write_whole(path, lambda file: np.save(file, vectors))

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
            yield _part(
                _columns(found_rows),
                _as_read(part) if vectors else _NONE,
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
            fields |= {_IDS: ids, _WEIGHTS: weights}
        lines = (_line(row, keep, fields) for row, fields in zip(rows, numbers, strict=True))
        write_whole(path, lambda file: file.writelines(lines))

    def read(self, path: Path, size: int, *, rows: bool, vectors: bool, sparse: bool, exact: bool) -> Iterator[Part]:
        del exact
        lines = _lines(path, "embedding")
        while part := list(islice(lines, size)):
            numbers = [row.pop("embedding") for row in part]
            ids, weights = ([row.pop(name) for row in part if name in row] for name in (_IDS, _WEIGHTS))
            yield _part(
                _columns(part if rows else []),
                _floats(numbers) if vectors else _NONE,
                SparseRows.from_lists(ids, weights) if sparse and ids else None,
            )

    def stored(self, values: list[Any], kind: Any) -> list[Any]:
        return _through_json(values, kind)


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
                    raise ValueError(f"line {number} of {path.name!r} is no row with {name!r}")
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


def _part(columns: dict[str, list[Any]], vectors: Vectors, sparse: SparseRows | None) -> Part:
    kept = {name: values for name, values in columns.items() if name not in RESERVED}
    return Part(columns.get("id", []), columns.get("text", []), vectors, kept, sparse)


FORMATS: dict[Format, ShardFormat] = {"parquet": _Parquet(), "numpy": _Numpy(), "jsonl": _JsonLines()}


def read_part(
    path: Path, size: int, *, rows: bool = True, vectors: bool = True, sparse: bool = False, exact: bool = False
) -> Iterator[Part]:
    """Yield a shard in pieces of at most ``size`` rows, so that one of any size needs little memory.

    Args:
        path: of the shard.
        size: rows per piece.
        rows: read ids, texts and kept columns; else they are empty.
        vectors: read vectors; else their shape is (0, 0).
        sparse: read sparse vectors, where there are any.
        exact: kept values as they were written: of nanoseconds, which Python's types do not hold, the count.

    Raises:
        ConfigError: the shard cannot be read.
        MissingExtraError: it is Parquet and pyarrow is not installed.
    """
    reader = next(each for each in FORMATS.values() if each.ending == path.suffix)
    try:
        for part in reader.read(path, size, rows=rows, vectors=vectors, sparse=sparse, exact=exact):
            _check(part, rows=rows, vectors=vectors)
            yield part
    except BGEError:
        raise
    except Exception as error:  # a damaged file raises whatever NumPy's, orjson's and pyarrow's readers run into
        raise ConfigError(f"{str(path)!r} cannot be read: {' '.join(str(error).split())}") from error


def _check(part: Part, *, rows: bool, vectors: bool) -> None:
    if vectors and part.vectors.ndim != 2:
        raise ValueError("it holds no rows of vectors")
    columns: list[Sized] = [part.ids, part.texts, *part.kept.values()] if rows else []
    columns += [part.vectors] if vectors else []
    columns += [part.sparse] if part.sparse is not None else []
    if len(set(map(len, columns))) > 1:
        raise ValueError("it does not hold the same number of ids, texts and vectors")
    if part.sparse is not None and not part.sparse.starts[-1] == len(part.sparse.indices) == len(part.sparse.values):
        raise ValueError("its sparse vectors have not as many weights as token ids")


def column_types(path: Path) -> dict[str, Any]:
    """Return the Arrow types of a shard's ids and kept columns; where its format has none, those of its first rows.

    Raises:
        ConfigError: the shard cannot be read.
    """
    need_pyarrow()
    import pyarrow as pa

    if path.suffix == ".parquet":
        return {field.name: field.type for field in parquet_schema(path) if field.name not in RESERVED[1:]}
    part = next(read_part(path, 1000, vectors=False), Part([], [], _NONE, {}))
    kinds = {name: pa.array(values).type for name, values in {"id": part.ids, **part.kept}.items()}
    return {name: pa.string() if pa.types.is_null(kind) else kind for name, kind in kinds.items()}


def parquet_schema(path: str | Path) -> Any:
    """Return the schema of a Parquet file.

    Raises:
        ConfigError: it is none, or cannot be read.
    """
    parquet = need_pyarrow()
    try:
        return parquet.read_schema(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {' '.join(str(error).split())}") from error


def parquet_stamp(path: Path) -> dict[str, Any] | None:
    """Return the stamp in a Parquet file's schema, or None."""
    line = (parquet_schema(path).metadata or {}).get(KEY.encode())
    return dict(json.loads(line)) if line else None


def shard_parts(path: Path) -> list[Path]:
    """Return the files that a shard may consist of, the one that it is named after last."""
    beside = [path.with_suffix(ROWS), path.with_suffix(SPARSE)] if path.suffix == _Numpy.ending else []
    return [*beside, path]


def need_pyarrow() -> Any:
    """Return ``pyarrow.parquet``.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    return require("pyarrow.parquet", extra="bulk", purpose="Parquet")
