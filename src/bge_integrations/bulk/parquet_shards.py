"""Parquet shards: a table whose schema holds the stamp."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.files import write_whole
from ..errors import ConfigError
from ..extras import require
from ..stamps.slots import KEY
from .part import Part, SparseRows
from .rows import Row
from .shard_format import IDS, NONE, WEIGHTS, Contents, ShardFormat, as_read, make_part

__all__ = ["PARQUET", "need_pyarrow", "parquet_schema", "parquet_stamp", "vector_column", "write_table"]

_CODES = b"bge_codes"  # in the metadata of a column of quantised vectors: their type


class _Parquet(ShardFormat):
    ending = ".parquet"

    def write(
        self, path: Path, rows: Sequence[Row], vectors: Any, contents: Contents, sparse: SparseRows | None = None
    ) -> None:
        table = _table(rows, vectors, contents)
        if sparse is not None:
            for name, numbers in ((IDS, sparse.indices), (WEIGHTS, sparse.values)):
                table = table.append_column(*_lists(name, sparse.starts, numbers))
        write_table(path, table)

    def read(self, path: Path, size: int, *, rows: bool, vectors: bool, sparse: bool, exact: bool) -> Iterator[Part]:
        parquet = need_pyarrow()
        wanted = {"embedding": vectors, IDS: sparse, WEIGHTS: sparse}
        with parquet.ParquetFile(path, memory_map=True) as file:
            there = file.schema_arrow.names
            for name in ["embedding", *(["id", "text"] if rows else []), *([WEIGHTS] if IDS in there else [])]:
                if name not in there:
                    raise ValueError(f"it has no column {name!r}")
            names = [name for name in there if wanted.get(name, rows)]
            for batch in file.iter_batches(batch_size=size, columns=names):
                columns = {name: batch.column(name) for name in names}
                field = file.schema_arrow.field("embedding")
                numbers = _numbers(columns.pop("embedding"), field) if vectors else NONE
                found = _sparse_rows(columns.pop(IDS), columns.pop(WEIGHTS)) if IDS in columns else None
                plain = {name: _python(column, exact=exact) for name, column in columns.items()}
                yield make_part(plain, numbers, found)

    def stored(self, values: list[Any], kind: Any) -> list[Any]:
        import pyarrow as pa

        return _python(_array(values, kind or pa.string()), exact=True)


PARQUET: ShardFormat = _Parquet()


def write_table(path: Path, table: Any) -> None:
    """Write a Parquet shard."""
    parquet = need_pyarrow()
    lists = ("embedding", IDS, WEIGHTS)
    # Numbers do not shrink (a tenth, for twice the time), and nobody asks for the least of them.
    counted = [name for name in table.column_names if name not in ("text", *lists)]
    squeezed = dict.fromkeys(("text", *counted), "zstd") | {"embedding.list.element": "none", "embedding": "none"}
    squeezed |= {f"{name}.list.element": "zstd" for name in lists[1:] if name in table.column_names}
    # Version 2.6 is the first whose timestamps keep nanoseconds.
    options = {"compression": squeezed, "write_statistics": counted, "use_dictionary": False, "version": "2.6"}
    write_whole(path, lambda file: parquet.write_table(table, file, **options))


def _python(column: Any, *, exact: bool) -> list[Any]:
    """Return an Arrow column as Python values.

    Python's own types hold no nanoseconds: these come as microseconds, or with ``exact`` as whole numbers.
    """
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
            raise ValueError(f"{cut} is not a whole number")
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
        return NONE
    if field.metadata and _CODES in field.metadata:
        codes = np.frombuffer(column.buffers()[1], field.metadata[_CODES].decode())
        width = column.type.byte_width
        return codes.reshape(-1, width)[column.offset : column.offset + len(column)]
    return as_read(column.flatten().to_numpy(zero_copy_only=False)).reshape(len(column), -1)


def _lists(name: str, starts: NDArray[np.int64], numbers: NDArray[Any]) -> tuple[Any, Any]:
    import pyarrow as pa

    values = pa.array(numbers)
    kind = pa.list_(pa.field("element", values.type, nullable=False))
    lists = pa.ListArray.from_arrays(pa.array(starts, pa.int32()), values, type=kind)
    return pa.field(name, kind, nullable=False), lists


def _sparse_rows(ids: Any, weights: Any) -> SparseRows:
    starts = ids.offsets.to_numpy().astype(np.int64)
    return SparseRows(starts - starts[0], ids.flatten().to_numpy(), weights.flatten().to_numpy())


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


def need_pyarrow() -> Any:
    """Return ``pyarrow.parquet``.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    return require("pyarrow.parquet", extra="bulk", purpose="Parquet")
