"""The three formats of shards: written whole or not at all, read back in pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from pathlib import Path
from typing import Any, Literal

from ..errors import BGEError, ConfigError
from .json_shards import JSON_LINES, NUMPY, ROWS, SPARSE
from .parquet_shards import PARQUET, need_pyarrow, parquet_schema
from .part import Part
from .rows import RESERVED
from .shard_format import NONE, ShardFormat

__all__ = ["FORMATS", "Format", "column_types", "read_part", "shard_parts"]

Format = Literal["parquet", "numpy", "jsonl"]
FORMATS: dict[Format, ShardFormat] = {"parquet": PARQUET, "numpy": NUMPY, "jsonl": JSON_LINES}


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
        raise ValueError("its sparse vectors have different numbers of token ids and weights")


def column_types(path: Path) -> dict[str, Any]:
    """Return the Arrow types of a shard's ids and kept columns; where its format has none, those of its first rows.

    Raises:
        ConfigError: the shard cannot be read.
    """
    need_pyarrow()
    import pyarrow as pa

    if path.suffix == ".parquet":
        return {field.name: field.type for field in parquet_schema(path) if field.name not in RESERVED[1:]}
    part = next(read_part(path, 1000, vectors=False), Part([], [], NONE, {}))
    kinds = {name: pa.array(values).type for name, values in {"id": part.ids, **part.kept}.items()}
    return {name: pa.string() if pa.types.is_null(kind) else kind for name, kind in kinds.items()}


def shard_parts(path: Path) -> list[Path]:
    """Return the files that a shard may consist of, the one that it is named after last."""
    beside = [path.with_suffix(ROWS), path.with_suffix(SPARSE)] if path.suffix == NUMPY.ending else []
    return [*beside, path]
