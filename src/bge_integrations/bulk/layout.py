"""How shards are written: ids, texts, kept columns and vectors in files that are there whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from ..core.encoder import Vectors
from ..errors import MissingExtraError
from ..stamps.slots import KEY
from .rows import Columns, Row

Format = Literal["parquet", "numpy", "jsonl"]
ENDINGS: dict[Format, str] = {"parquet": ".parquet", "numpy": ".npy", "jsonl": ".jsonl"}
ROWS = ".rows.jsonl"  # beside an .npy file: all that is not a vector


@dataclass(frozen=True)
class Layout:
    """How shards are written.

    Attributes:
        columns: names of text, id and kept columns in the input.
        stamp: of the encoder.
        format: of the files.
        half: float16 instead of float32.
        kinds: the Arrow type of each kept column; None for a string.
    """

    columns: Columns
    stamp: dict[str, Any]
    format: Format = "parquet"
    half: bool = False
    kinds: tuple[Any, ...] = ()

    @property
    def dtype(self) -> Any:
        """Type of the numbers in the file."""
        return np.float16 if self.half else np.float32

    def name(self, number: int) -> str:
        """Return the name of a shard's file."""
        return f"part-{number:06}{ENDINGS[self.format]}"

    def write(self, folder: Path, number: int, rows: Sequence[Row], vectors: Vectors) -> int:
        """Write a shard and return its size in bytes; the same rows and vectors give the same bytes.

        Raises:
            OSError: the disk is full; nothing of the shard stays.
        """
        write = {"parquet": _write_parquet, "numpy": _write_numpy, "jsonl": _write_jsonl}[self.format]
        path = folder / self.name(number)
        write(path, rows, np.ascontiguousarray(vectors, self.dtype), self)
        return path.stat().st_size


def _write_parquet(path: Path, rows: Sequence[Row], vectors: Any, layout: Layout) -> None:
    import pyarrow.parquet as parquet

    # Numbers do not shrink (a tenth, for twice the time), and nobody asks for the least of them.
    squeezed = dict.fromkeys(("id", "text", *layout.columns.keep), "zstd") | {"embedding.list.element": "none"}
    table, counted = _table(rows, vectors, layout), ["id", *layout.columns.keep]
    _whole(
        path,
        lambda file: parquet.write_table(
            table, file, compression=squeezed, write_statistics=counted, use_dictionary=False, version="2.6"
        ),
    )


def _table(rows: Sequence[Row], vectors: Any, layout: Layout) -> Any:
    import pyarrow as pa

    numbers = pa.list_(
        pa.field("element", pa.float16() if layout.half else pa.float32(), nullable=False), _width(vectors)
    )
    fields = [
        pa.field("id", pa.string() if layout.columns.id else pa.int64(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        *(pa.field(name, layout.kinds[i] or pa.string()) for i, name in enumerate(layout.columns.keep)),
        pa.field("embedding", numbers, nullable=False),
    ]
    plain = [[row.id for row in rows], [row.text for row in rows]]
    plain += [[row.kept[i] for row in rows] for i in range(len(layout.columns.keep))]
    arrays = [pa.array(values, field.type) for values, field in zip(plain, fields, strict=False)]
    arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=numbers))
    return pa.table(arrays, pa.schema(fields, {KEY: json.dumps(layout.stamp, sort_keys=True)}))


def _width(vectors: Any) -> int:
    return int(vectors.shape[1])


def _write_numpy(path: Path, rows: Sequence[Row], vectors: Any, layout: Layout) -> None:
    _whole(path.with_suffix(ROWS), lambda file: file.writelines(_line(row, layout.columns.keep) for row in rows))
    _whole(path, lambda file: np.save(file, vectors))


def _write_jsonl(path: Path, rows: Sequence[Row], vectors: Any, layout: Layout) -> None:
    keep, plain = layout.columns.keep, vectors.astype(np.float32, copy=False)
    _whole(path, lambda file: file.writelines(_line(row, keep, plain[i]) for i, row in enumerate(rows)))


def _line(row: Row, keep: Sequence[str], vector: Any = None) -> bytes:
    import orjson

    fields = {"id": row.id, "text": row.text, **dict(zip(keep, row.kept, strict=True))}
    if vector is not None:
        fields["embedding"] = vector
    return orjson.dumps(fields, default=str, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)


def _whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file under another name, and give it its own when all of it is on the disk."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync(path.parent)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def _sync(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def need_pyarrow() -> None:
    """Say which extra is missing.

    Raises:
        MissingExtraError: there is no pyarrow.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise MissingExtraError("shards need pyarrow: pip install 'bge-integrations[bulk]'") from None
