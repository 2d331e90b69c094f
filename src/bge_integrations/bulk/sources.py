"""Rows out of files: JSONL, CSV, Parquet, text; one row at a time, whatever the size."""

from __future__ import annotations

import bz2
import csv
import glob
import gzip
import hashlib
import io
import json
import lzma
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ..errors import ConfigError, MissingExtraError

STDIN = "-"


@dataclass(frozen=True)
class Columns:
    """Which columns of a row are its text, its id and kept; without ``id``, the number of the row is its id."""

    text: str = "text"
    id: str | None = None
    keep: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One row; where ``reason`` is not empty it cannot be embedded."""

    source: str
    line: int
    id: str | int
    text: str
    kept: tuple[str | None, ...] = ()
    reason: str = ""


def fingerprint(file: str) -> dict[str, Any]:
    """Return what tells whether a file has changed: its size and a digest of its two ends."""
    if file == STDIN:
        return {"path": STDIN}
    about = Path(file).stat()
    with Path(file).open("rb") as stream:
        digest = hashlib.sha256(stream.read(65536))
        stream.seek(max(0, about.st_size - 65536))
        digest.update(stream.read())
    return {"path": file, "bytes": about.st_size, "ends": digest.hexdigest()}


def digest_rows(rows: Sequence[Row]) -> str:
    """Return a digest of all that a shard is made of."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.id, row.text, row.kept, row.reason]).encode())
    return digest.hexdigest()


def find_inputs(inputs: Sequence[str]) -> list[str]:
    """Return the files that names, globs and folders stand for, sorted within each.

    Raises:
        ConfigError: nothing is there, or a file is of no known kind.
    """
    files = [file for given in inputs for file in _expand(given)]
    if not files:
        raise ConfigError("no input: name files, globs or folders, or - for standard input")
    for file in files:
        _reader(file)
    return files


def _expand(given: str) -> list[str]:
    if given == STDIN:
        return [given]
    if Path(given).is_dir():
        found = sorted(str(path) for path in Path(given).rglob("*") if path.is_file() and _kind(path.name) in _READERS)
    else:
        found = [given] if Path(given).is_file() else sorted(glob.glob(given, recursive=True))  # noqa: PTH207
    if not found:
        raise ConfigError(f"no input at {given!r}")
    return found


def read_rows(files: Sequence[str], columns: Columns) -> Iterator[Row]:
    """Yield the rows of all files in order, the ones that cannot be embedded too.

    Raises:
        ConfigError: a file cannot be read.
    """
    number = 0
    for file in files:
        try:
            for line, fields in _reader(file)(file):
                yield _row(file, line, number, fields, columns)
                number += 1
        except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
            if isinstance(error, (ConfigError, MissingExtraError)):
                raise
            raise ConfigError(f"{file!r} cannot be read: {error}") from error


def _row(file: str, line: int, number: int, fields: Any, columns: Columns) -> Row:
    if not isinstance(fields, dict):
        return Row(file, line, number, "", reason="the line is not a JSON object")
    text = fields.get(columns.text)
    named = fields.get(columns.id) if columns.id else number
    reason = _reason(text, columns.text)
    if named is None:
        reason = f"no id in {columns.id!r}"
    shown = str(named) if columns.id else number
    return Row(
        file, line, shown, text if not reason else "", tuple(_plain(fields.get(c)) for c in columns.keep), reason
    )


def _reason(text: object, column: str) -> str:
    if text is None:
        return f"no {column!r}"
    if not isinstance(text, str):
        return f"{column!r} is {type(text).__name__}, not text"
    return "" if text.strip() else f"{column!r} is blank"


def _plain(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


@contextmanager
def _open(file: str) -> Iterator[TextIO]:
    if file == STDIN:
        yield io.TextIOWrapper(sys.stdin.buffer, "utf-8", newline="")
        return
    with _opener(file)(file, "rt", encoding="utf-8-sig", newline="") as stream:
        yield stream


def _opener(file: str) -> Callable[..., Any]:
    return {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(Path(file).suffix.lower(), open)


def _jsonl(file: str) -> Iterator[tuple[int, Any]]:
    with _open(file) as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except ValueError:
                    yield number, None


def _csv(file: str) -> Iterator[tuple[int, Any]]:
    with _open(file) as stream:
        reader = csv.DictReader(stream, delimiter="\t" if _kind(file) == ".tsv" else ",")
        for fields in reader:
            yield reader.line_num, fields


def _parquet(file: str) -> Iterator[tuple[int, Any]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise MissingExtraError("Parquet needs pyarrow: pip install 'bge-integrations[bulk]'") from None
    number = 0
    with parquet.ParquetFile(file) as opened:
        for batch in opened.iter_batches(batch_size=1024):
            for number, fields in enumerate(batch.to_pylist(), number + 1):
                yield number, fields


def _text(file: str) -> Iterator[tuple[int, Any]]:
    with _open(file) as stream:
        yield 1, {"text": stream.read(), "path": file}


_READERS: dict[str, Callable[[str], Iterator[tuple[int, Any]]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
    ".txt": _text,
    ".md": _text,
}


def _kind(file: str) -> str:
    path = Path(file)
    return Path(path.stem if path.suffix.lower() in (".gz", ".bz2", ".xz") else path.name).suffix.lower()


def _reader(file: str) -> Callable[[str], Iterator[tuple[int, Any]]]:
    if file == STDIN:
        return _jsonl
    reader = _READERS.get(_kind(file))
    if reader is None:
        raise ConfigError(f"{file!r} is of no known kind: {', '.join(_READERS)}, also with .gz, .bz2 or .xz")
    return reader
