"""Types of kept columns, found before the first row is embedded."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from ..errors import ConfigError, warn
from .formats import Format
from .parquet_shards import need_pyarrow
from .readers import check_columns, read_fields
from .rows import JSON, Columns, RowParser
from .sources import LINES, STDIN, BytesRead, input_kind, open_seekable

__all__ = ["kept_kinds", "place_kinds"]

_SHOWN = 20
_EXACT = 1 << 53  # whole numbers up to it are exact as floats


def kept_kinds(files: Sequence[str], columns: Columns, format: Format = "parquet") -> tuple[Any, ...]:
    """Return the kind of each kept column: an Arrow type, ``JSON`` for values as they are, or None for strings.

    Values are strings where files are of several kinds, and in a Parquet shard where they do not agree or come from
    standard input, which is warned of. JSON lines are read once for their types: a hundredth of the time that embedding
    them takes.

    Raises:
        ConfigError: an input cannot be read, has no such column, or the format cannot hold it.
    """
    if not columns.keep:
        return ()
    of_files = {input_kind(file) for file in files}
    if of_files == {".parquet"}:
        schemas = [_schema(file, columns) for file in files]
        return tuple(
            _kind_of_table(name, [schema.field(name).type for schema in schemas], format) for name in columns.keep
        )
    seen = _seen([file for file in files if input_kind(file) in LINES and file != STDIN], columns)
    if not of_files <= set(LINES):
        return (None,) * len(columns.keep)
    if STDIN in files and format == "parquet":
        warn(
            "Parquet needs the type of each column before its first row, and standard input cannot be "
            "read twice: the kept columns become strings. To keep their types, read from a file, or use "
            "format='jsonl' (--format jsonl)"
        )
        return (None,) * len(columns.keep)
    return tuple(_number(names) if format == "parquet" else JSON for names in seen)


def place_kinds(places: Sequence[str], format: Format = "parquet") -> tuple[Any, ...]:
    """Return the kinds of the columns that say where a chunk was: numbers for position and page."""
    if format != "parquet" or not places:
        return (JSON,) * len(places)
    import pyarrow as pa

    return tuple(pa.int64() if name in ("position", "page") else None for name in places)


def _schema(file: str, columns: Columns) -> Any:
    parquet = need_pyarrow()
    try:
        with open_seekable(file) as (source, _):
            schema = parquet.read_schema(source)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file!r} cannot be read: {' '.join(str(error).split())}") from error
    check_columns(file, schema.names, columns)
    return schema


def _kind_of_table(name: str, found: Sequence[Any], format: Format) -> Any:
    import pyarrow as pa

    kind = found[0]
    plain = kind.num_fields == 0 and not (pa.types.is_dictionary(kind) or pa.types.is_null(kind))
    if format == "parquet" and plain and all(other == kind for other in found):
        return kind
    binary = [str(other) for other in found if "binary" in str(other)]
    if binary:
        raise ConfigError(
            f"the column {name!r} has type {binary[0]}, which cannot be kept: leave it out of keep= (--keep)"
        )
    number = pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return JSON if format != "parquet" and number else None


def _seen(files: Sequence[str], columns: Columns) -> list[set[str]]:
    """Return the types of each kept column's values in JSON lines."""
    seen: list[set[str]] = [set() for _ in columns.keep]
    present = dict[str, None]()
    for _, fields in chain.from_iterable(read_fields(file, RowParser(columns), BytesRead()) for file in files):
        if not isinstance(fields, str):
            if len(present) < _SHOWN:
                present.update(dict.fromkeys(fields))
            for types, name in zip(seen, columns.keep, strict=True):
                if name in fields:
                    types.add(_type(fields[name]))
    missing = [name for types, name in zip(seen, columns.keep, strict=True) if not types]
    if present and missing:
        shown = ", ".join(list(present)[:_SHOWN])
        raise ConfigError(
            f"no row of {files[0]!r} has the column {missing[0]!r} to keep; it has {' '.join(shown.split())}"
        )
    return seen


def _type(value: Any) -> str:
    if type(value) is not int or abs(value) <= _EXACT:
        return type(value).__name__
    return "int64" if -(1 << 63) <= value < 1 << 63 else "larger"


def _number(types: set[str]) -> Any:
    """Return the Arrow type of numbers and booleans; None for all else."""
    import pyarrow as pa

    found = types - {"NoneType"}
    for names, kind in (({"bool"}, pa.bool_()), ({"int", "int64"}, pa.int64()), ({"int", "float"}, pa.float64())):
        if found and found <= names:
            return kind
    return None
