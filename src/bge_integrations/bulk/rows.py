"""One row of an input: its text, its id, what is kept of it, or why it cannot be embedded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import ConfigError
from .chunking import Chunker
from .splitting import TextSplitter

Fields = Mapping[str, Any] | str
"""Of a row by name, or why there are none."""
RESERVED = ("id", "text", "embedding", "sparse_indices", "sparse_values")
_PLACE = "\0place "
ID = "\0id"
"""A field that text files give each part: its path, and behind the first part the part's number."""
PLACES = ("path", "position", "heading", "page")
"""Columns that say where in which document a chunk was."""
JSON = "json"
"""The kind of a kept column whose values stay as they are in JSON."""
SHARD_CHARACTERS = 64_000_000
"""A shard of long texts ends before it has ``shard_rows`` of them, so that memory stays bounded."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a row are its text, its id and kept; without ``id``, the number of the row is its id.

    Raises:
        ConfigError: a kept column would bear the name of one of the shard's own.
    """

    text: str = "text"
    id: str | None = None
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        taken = [name for name in self.keep if name in RESERVED]
        if taken or len(set(self.keep)) < len(self.keep):
            raise ConfigError(f"keep={self.keep!r} must name each column once, and none of {', '.join(RESERVED)}")

    @property
    def wanted(self) -> list[str]:
        """All of them, each once."""
        return list(dict.fromkeys([self.text, *([self.id] if self.id else []), *self.keep]))


class Row(NamedTuple):
    """One row; where ``reason`` is not empty it cannot be embedded.

    Attributes:
        source: the file.
        line: where in it: a line; a row of Parquet; 1 for a text file.
        id: from the column of ids, or the number of the row in the whole input.
        text: empty where there is a reason.
        kept: a value for each kept column.
        reason: why it cannot be embedded.
    """

    source: str
    line: int
    id: str | int
    text: str
    kept: tuple[Any, ...] = ()
    reason: str = ""

    def error(self) -> dict[str, Any]:
        """Return the line of ``.errors.jsonl``."""
        return {"source": self.source, "line": self.line, "id": self.id, "reason": self.reason}


@dataclass(frozen=True)
class RowParser:
    """Makes rows of fields.

    Attributes:
        columns: which fields.
        kinds: of each kept column, its Arrow type, or ``JSON`` for values as they are; None for a string.
        blank: whether blank texts are embedded.
        split: returns the parts of a text file, each a row.
        named: whether ids are strings: of a text file its path, of other rows their number.
        chunk: splits every text; the kept values of a row are then followed by its ``places``.
    """

    columns: Columns
    kinds: tuple[Any, ...] = ()
    blank: bool = False
    split: TextSplitter | None = None
    named: bool = False
    chunk: Chunker | None = None

    @property
    def places(self) -> tuple[str, ...]:
        """Columns of a chunk's place, without those that a column of the input takes the name of."""
        return tuple(name for name in PLACES if name not in self.columns.keep) if self.chunk else ()

    def chunks(self, file: str, kind: str, number: int, fields: Fields) -> Iterator[Fields]:
        """Yield the fields of each chunk of a row, with ids ``id#1``, ``id#2``, ...; all of a row that has no text."""
        text = None if isinstance(fields, str) else fields.get(self.columns.text)
        if self.chunk is None or isinstance(fields, str) or not isinstance(text, str) or not text.strip():
            yield fields
            return
        whole = fields.get(ID) or (fields.get(self.columns.id) if self.columns.id else number)
        for i, chunk in enumerate(self.chunk(text, kind), 1):
            names = {ID: f"{whole}#{i}"} if _is_id(whole) else {}
            place = {_PLACE + name: value for name, value in zip(PLACES, (file, *chunk[1:]), strict=True)}
            yield {**fields, **names, **place, self.columns.text: chunk.text}

    def row(self, source: str, line: int, number: int, fields: Fields) -> Row:
        """Return the row; ``fields`` that are a string are the reason why there are none."""
        columns = self.columns
        if isinstance(fields, str):
            return Row(source, line, number, "", reason=fields)
        text = fields.get(columns.text)
        # The common case first: this is computed for each of millions of rows.
        reason = "" if type(text) is str and text.strip() else self._wrong(text)
        name: str | int = str(number) if self.named else number
        ours = self.chunk is not None or columns.id in (None, "path")
        column = ID if self.named and ID in fields and ours else columns.id
        if column is not None:
            found = fields.get(column)
            if _is_id(found):
                name = str(found)
            else:
                reason = reason or f"its id in {columns.id!r} is {_kind(found)}"
        if reason or not isinstance(text, str):
            return Row(source, line, name, "", reason=reason)
        kept = self._kept(fields) if columns.keep else ()
        return Row(source, line, name, text, kept + tuple(fields.get(_PLACE + name) for name in self.places))

    def _wrong(self, text: object) -> str:
        if isinstance(text, str):
            return "" if self.blank else f"{self.columns.text!r} is blank"
        return f"{self.columns.text!r} is {_kind(text)}"

    def _kept(self, fields: Mapping[str, Any]) -> tuple[Any, ...]:
        kinds = self.kinds or (None,) * len(self.columns.keep)
        values = [fields.get(name) for name in self.columns.keep]
        return tuple(_plain(value) if kind is None else value for value, kind in zip(values, kinds, strict=True))


def _is_id(value: object) -> bool:
    # bool is a kind of int: a column of flags would give two ids for all rows.
    return isinstance(value, (str, int)) and not isinstance(value, bool) and value != ""


def _kind(value: object) -> str:
    if value is None:
        return "missing"
    return "blank" if value == "" else f"of type {type(value).__name__}"


def _plain(value: Any) -> str | None:
    import orjson

    if value is None or isinstance(value, str):
        return value
    return orjson.dumps(value, default=str, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS).decode()


@dataclass(frozen=True)
class Shard:
    """Rows that become one shard, the bad ones among them."""

    number: int
    rows: list[Row]

    @property
    def good(self) -> list[Row]:
        """Rows that can be embedded."""
        return [row for row in self.rows if not row.reason]

    @property
    def bad(self) -> list[Row]:
        """Rows that cannot."""
        return [row for row in self.rows if row.reason]

    def digest(self) -> str:
        """Return a digest of ids, texts, kept values and reasons."""
        import orjson

        rows = self.rows
        columns = [[row.id for row in rows], [row.text for row in rows], [row.reason for row in rows]]
        kept = [row.kept for row in rows]
        return hashlib.sha256(orjson.dumps([columns, kept], default=str, option=orjson.OPT_NON_STR_KEYS)).hexdigest()


def count_characters(values: Iterable[Any]) -> int:
    """Return the length of all strings among values."""
    return sum(len(value) for value in values if isinstance(value, (str, bytes)))


def cut_shards(
    rows: Iterable[Row], size: int, characters: int = SHARD_CHARACTERS, *, first: int = 0
) -> Iterator[Shard]:
    """Yield shards of ``size`` rows, or of fewer where texts are long; the same rows are always cut alike.

    Args:
        rows: in order.
        size: rows of a shard.
        characters: of the texts and kept values of a shard, about.
        first: number of the first shard.
    """
    # By rows and characters alone, never by time or memory: a job that resumes has to cut as before.
    number, part, room = first, list[Row](), characters
    for row in rows:
        part.append(row)
        room -= len(row.text) + count_characters(row.kept)
        if len(part) >= size or room <= 0:
            yield Shard(number, part)
            number, part, room = number + 1, [], characters
    if part:
        yield Shard(number, part)
