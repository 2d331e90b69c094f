"""Rows out of files, a few at a time, whatever the size of the file or of a line in it."""

from __future__ import annotations

import csv
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from ..errors import BGEError, ConfigError
from .documents import html_text, pdf_text, plain_text
from .parquet_shards import need_pyarrow
from .rows import ID, Columns, Fields, Row, RowParser
from .sources import DOCUMENTS, HTML, LINES, PDF, TABLES, TEXTS, BytesRead, input_kind, open_input, open_seekable

ROW_BYTES = 1 << 24
"""A line or text file of more is not held in memory: it is a bad row."""

_BLOCK = 1 << 20
_PDF_BYTES = 1 << 28
_TOO_LONG = f"longer than {ROW_BYTES >> 20} MiB"
_NO_OBJECT = "not a JSON object"
_BOM = b"\xef\xbb\xbf"
_LAST = "\0the end\0"
_CANNOT = (OSError, EOFError, ValueError, OverflowError, NotImplementedError, lzma.LZMAError, zlib.error, csv.Error)

Numbered = Iterator[tuple[int, Fields]]


def read_rows(files: Sequence[str], parser: RowParser, tally: BytesRead | None = None) -> Iterator[Row]:
    """Yield the rows of all files in order, those that cannot be embedded too.

    Raises:
        ConfigError: a file cannot be read, or has no such column.
    """
    number, whole, tally = 0, 0, tally or BytesRead()
    for file in files:
        kind, name = _text_kind(file), _written(file)
        for line, fields in read_fields(file, parser, tally):
            for part in parser.chunks(name, kind, whole, fields):
                yield parser.row(name, line, number, part)
                number += 1
            whole += 1


def _written(file: str) -> str:
    """Return a file's name as it is written into rows: valid UTF-8, and without the full URL of a remote file."""
    return str(file).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _text_kind(file: str) -> str:
    """Return how a file's texts are split: HTML has become Markdown."""
    kind = input_kind(file)
    return ".md" if kind in HTML else kind


def read_fields(file: str, parser: RowParser, tally: BytesRead) -> Numbered:
    """Yield the fields of a file's rows with their line, or why there are none.

    Raises:
        ConfigError: the file cannot be read, or has no such column.
    """
    try:
        yield from _READERS[input_kind(file)](file, parser, tally)
    except BGEError:
        raise
    except _CANNOT as error:
        raise ConfigError(f"{file!r} cannot be read: {' '.join(str(error).split())}") from error


def read_lines(stream: IO[bytes], tally: BytesRead, limit: int = ROW_BYTES) -> Iterator[bytes | None]:
    """Yield the lines of a stream without their newlines, and None for each that is longer than ``limit`` bytes."""
    rest, skipping, head = b"", False, _BOM
    while block := stream.read(_BLOCK):
        lines = (rest + block.removeprefix(head)).split(b"\n")
        rest, head = lines.pop(), b""
        begin, ahead = tally.read, tally.taken - tally.read
        for count, line in enumerate(lines, 1):
            tally.read = begin + ahead * count // len(lines)  # a line's share: Report.total is asked between lines
            yield None if skipping or len(line) > limit else line
            skipping = False
        tally.settle()
        if skipping or len(rest) > limit:
            rest, skipping = b"", True
    if rest or skipping:
        yield None if skipping else rest
    tally.settle()


# JSON lines


def _jsonl(file: str, parser: RowParser, tally: BytesRead) -> Numbered:
    del parser
    with open_input(file, tally) as stream:
        for number, line in enumerate(read_lines(stream, tally), 1):
            if line is None:
                yield number, _TOO_LONG
            elif number == 1 and line.lstrip()[:1] == b"[":
                raise ConfigError(f"{file!r} is a JSON array, not one object per line: convert it with jq -c '.[]'")
            elif line.strip():
                yield number, _fields(line)


def _fields(line: bytes) -> Fields:
    import orjson

    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        return _loosely(line)
    return found if isinstance(found, dict) else _NO_OBJECT


def _loosely(line: bytes) -> Fields:
    """Read what orjson does not: NaN becomes None, a lone surrogate U+FFFD as everywhere in this package."""
    try:
        found = json.loads(line, parse_constant=lambda _: None)
        text = json.dumps(found, ensure_ascii=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    except UnicodeDecodeError:
        return "not UTF-8"
    except (ValueError, RecursionError):
        return "not JSON"
    return json.loads(text) if isinstance(found, dict) else _NO_OBJECT


# Tables of text


def _csv(file: str, parser: RowParser, tally: BytesRead) -> Numbered:
    csv.field_size_limit(max(csv.field_size_limit(), ROW_BYTES))  # the whole process's: never made smaller
    with open_input(file, tally) as stream:
        lines = _Decoded(file, read_lines(stream, tally))
        reader = csv.reader(lines, delimiter="\t" if input_kind(file) == ".tsv" else ",")
        header = next(reader)
        if header == [_LAST]:
            return
        check_columns(file, header, parser.columns)
        begins = reader.line_num + 1
        for cells in reader:
            if cells == [_LAST]:
                return
            if cells:
                yield begins, _cells(header, cells, broken=lines.broken >= begins)
            begins = reader.line_num + 1


class _Decoded:
    """Lines of text; knows the last one that was not UTF-8. A mark after the last one shows an open quote."""

    def __init__(self, file: str, lines: Iterator[bytes | None]) -> None:
        self._file, self._lines = file, lines
        self._number = self.broken = 0

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self._number += 1
            if line is None:
                raise ConfigError(f"{self._file!r}: line {self._number} is {_TOO_LONG}: is it CSV?")
            yield self._text(line)
        yield _LAST

    def _text(self, line: bytes) -> str:
        try:
            return line.decode() + "\n"
        except UnicodeDecodeError:
            self.broken = self._number
            return line.decode("utf-8", "replace") + "\n"


def _cells(header: Sequence[str], cells: Sequence[str], *, broken: bool) -> Fields:
    if broken:
        return "not UTF-8"
    if cells[-1].endswith(_LAST):
        return "a quote that opens here is never closed"
    if len(cells) > len(header):
        return f"{len(cells)} cells, but the header has {len(header)}"
    return dict(zip(header, cells, strict=False))


def check_columns(file: str, present: list[str], columns: Columns) -> None:
    """Refuse a table without the wanted columns, or with one of them twice.

    Raises:
        ConfigError: names the column.
    """
    missing = [name for name in columns.wanted if name not in present]
    if missing:
        shown = ", ".join(present[:20]) + (", …" if len(present) > 20 else "")
        raise ConfigError(f"{file!r} has no column {missing[0]!r}; it has {' '.join(shown.split())}")
    twice = [name for name in columns.wanted if present.count(name) > 1]
    if twice:
        raise ConfigError(f"{file!r} has more than one column {twice[0]!r}: rename one of them")


# Parquet


def _parquet(file: str, parser: RowParser, tally: BytesRead) -> Numbered:
    parquet, wanted = need_pyarrow(), parser.columns.wanted
    # The buffer keeps whole columns of a large row group out of memory.
    with open_seekable(file) as (source, bytes_there), parquet.ParquetFile(source, buffer_size=_BLOCK) as opened:
        check_columns(file, opened.schema_arrow.names, parser.columns)
        begin, bytes_per_row = 0, bytes_there / max(opened.metadata.num_rows, 1)
        size = max(1, min(1024, int(ROW_BYTES / max(bytes_per_row, 1))))
        for batch in opened.iter_batches(batch_size=size, columns=wanted):
            values = [_values(column) for column in batch.columns]
            for line, cells in enumerate(zip(*values, strict=True), begin + 1):
                yield line, dict(zip(batch.schema.names, cells, strict=True))
            begin += batch.num_rows
            tally.taken += round(batch.num_rows * bytes_per_row)
            tally.settle()


def _values(column: Any) -> list[Any]:
    """Return an Arrow column as Python values; nanoseconds, which Python's own types do not hold, as whole numbers."""
    import pyarrow as pa

    nanoseconds = getattr(column.type, "unit", "") == "ns"
    values: list[Any] = (column.cast(pa.int64()) if nanoseconds else column).to_pylist()
    return values


# Text files


def _text(file: str, parser: RowParser, tally: BytesRead) -> Numbered:
    limit = _PDF_BYTES if input_kind(file) == PDF else ROW_BYTES
    with open_input(file, tally) as stream:
        raw = stream.read(limit + 1)
    if len(raw) > limit:
        yield 1, f"longer than {limit >> 20} MiB"
    else:
        try:
            text = _decoded(raw, input_kind(file))
        except ValueError as error:
            yield 1, str(error)
        else:
            yield from _parts(_written(file), text, parser)
    tally.settle()


def _decoded(raw: bytes, kind: str) -> str:
    if kind == PDF:
        return pdf_text(raw)
    return html_text(raw) if kind in HTML else plain_text(raw)


def _parts(file: str, text: str, parser: RowParser) -> Numbered:
    parts = parser.split(text) if parser.split and not parser.chunk and text.strip() else [text]
    for number, part in enumerate(parts, 1):
        name = file if number == 1 else f"{file}#{number}"
        yield number, {"path": file, parser.columns.text: part, ID: name}


_READERS: dict[str, Callable[[str, RowParser, BytesRead], Numbered]] = {
    **dict.fromkeys(LINES, _jsonl),
    **dict.fromkeys(TABLES, _csv),
    ".parquet": _parquet,
    **dict.fromkeys((*TEXTS, *DOCUMENTS), _text),
}
