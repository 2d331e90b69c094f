"""Shards: files of ids, texts, kept columns and vectors, which are there whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np

from ..encoder import Vectors
from ..errors import ConfigError, MissingExtraError
from ..stores import KEY
from .manifest import read_manifest
from .rows import Columns, Row

Format = Literal["parquet", "numpy", "jsonl"]
ENDINGS: dict[Format, str] = {"parquet": ".parquet", "numpy": ".npy", "jsonl": ".jsonl"}
_ROWS = ".rows.jsonl"  # beside an .npy file: all that is not a vector


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


# Writing


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
    _whole(path.with_suffix(_ROWS), lambda file: file.writelines(_line(row, layout.columns.keep) for row in rows))
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


# Reading


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
        files = [path for path in files if not path.name.endswith(_ROWS)]
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
    return _part(path.with_suffix(_ROWS), lambda _: np.load(path).astype(np.float32, copy=False))


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


def need_pyarrow() -> None:
    """Say which extra is missing.

    Raises:
        MissingExtraError: there is no pyarrow.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise MissingExtraError("shards need pyarrow: pip install 'bge-integrations[bulk]'") from None
