"""Questions whose right passages are known: BEIR's and TREC's files, or pairs of a question and a passage."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ..bulk.parquet_shards import parquet_schema
from ..bulk.readers import read_fields, read_lines
from ..bulk.rows import ID, Columns, RowParser
from ..bulk.sources import LINES, STDIN, BytesRead, find_inputs, input_kind, open_input
from ..errors import ConfigError, warn

__all__ = ["Corpus", "Judged", "read_judged"]

_HIGHEST_GRADE = 1_000_000  # trec_eval counts by grade in C: of one near 2**31 it makes any number, or ends the process
_IDS, _QUESTIONS = ("_id", "id"), ("question", "query")


@dataclass(frozen=True)
class Corpus:
    """Passages that are searched; texts are read anew each time, so that they need not fit into memory.

    Attributes:
        ids: of the passages, each once.
        read: yields their texts, in that order; a title comes in front of its text, as BEIR has it.
    """

    ids: list[str]
    read: Callable[[], Iterator[str]]

    def texts(self) -> Iterator[str]:
        """Yield the texts.

        Raises:
            ConfigError: the files have changed since the ids were read.
        """
        count = 0
        for count, text in enumerate(self.read(), 1):  # noqa: B007 - counted for the check below
            yield text
        if count != len(self.ids):
            raise ConfigError(f"the corpus had {len(self.ids)} passages and now has {count}: run it again")

    def selected(self, rows: set[int]) -> dict[int, str]:
        """Return the texts of some rows by their number."""
        return {row: text for row, text in enumerate(self.texts()) if row in rows}


@dataclass(frozen=True)
class Judged:
    """A corpus and questions whose right passages are known.

    Attributes:
        corpus: what is searched.
        queries: text of each question by its id.
        qrels: for each question the grade of its judged passages by their id; right ones are above 0.
        own: for some questions the row of the passage that is the question itself; it is no answer.
    """

    corpus: Corpus
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    own: dict[str, int]


def read_judged(corpus: str | Path, queries: str | Path | None = None, qrels: str | Path | None = None) -> Judged:
    """Read a folder in BEIR's layout, its three files, a file of pairs, or a corpus and a file of pairs.

    Raises:
        ConfigError: a file is not there or not as it should be; names the file and the line.
    """
    judged = _read(str(corpus), queries, qrels)
    if not any(grade > 0 for grades in judged.qrels.values() for grade in grades.values()):
        raise ConfigError("no passage is judged relevant to any question: every measure would be 0")
    return judged


def _read(first: str, queries: str | Path | None, qrels: str | Path | None) -> Judged:
    if queries is None and Path(first).is_dir():
        return _of_files(*_files_of(Path(first)))
    if queries is None:
        return _of_pairs(first)
    return _of_corpus_and_pairs(first, str(queries)) if qrels is None else _of_files(first, str(queries), str(qrels))


def _files_of(folder: Path) -> tuple[str, str, str]:
    """Return the files of a folder in BEIR's layout."""
    return _only(folder, "corpus"), _only(folder, "queries"), _only(folder / "qrels", "test")


def _only(folder: Path, stem: str) -> str:
    found = sorted(folder.glob(f"{stem}.*"))
    if len(found) != 1:
        raise ConfigError(
            f"{str(folder)!r} has {len(found) or 'no'} files {stem}.*: a folder holds corpus.jsonl, queries.jsonl and "
            "qrels/test.tsv; other files are named one by one: CORPUS QUERIES QRELS"
        )
    return str(found[0])


# Files of rows


def _rows(file: str, text: str, *others: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the fields of each row with its place, such as ``'a.jsonl', line 3``.

    Raises:
        ConfigError: the file cannot be read, or a row has no fields.
    """
    if file == STDIN:
        raise ConfigError("files are read more than once, so standard input cannot be used")
    if not Path(file).is_file():
        raise ConfigError(f"no file {file!r}")
    columns = Columns(text)
    if input_kind(file) == ".parquet":
        present = parquet_schema(file).names
        key = next((name for name in _IDS if name in present), None)
        columns = Columns(text, key, tuple(name for name in others if name in present and name not in _IDS))
    for line, fields in read_fields(file, RowParser(columns), BytesRead()):
        if isinstance(fields, str):
            raise ConfigError(f"{file!r}, line {line}: {fields}")
        yield f"{file!r}, line {line}", {"_id": fields[ID], **fields} if ID in fields else dict(fields)


def _string(place: str, fields: dict[str, Any], *names: str) -> str:
    """Return a field that holds a text or a number, as text; it has one of the names.

    Raises:
        ConfigError: there is none, or it is blank.
    """
    value = next((fields[name] for name in names if fields.get(name) is not None), None)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        raise ConfigError(f"{place}: {' or '.join(map(repr, names))} is missing, blank or of another type")
    return str(value)


def _passages(files: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yield place, id and text of each passage; a text may be blank."""
    for place, fields in chain.from_iterable(_rows(file, "text", *_IDS, "title") for file in files):
        text, title = fields.get("text") or "", fields.get("title") or ""
        if not isinstance(text, str) or not isinstance(title, str) or "text" not in fields:
            raise ConfigError(f"{place}: 'text' is missing, or it or 'title' is not a string")
        yield place, _string(place, fields, *_IDS), f"{title} {text}".strip()


def _of_files(corpus: str, queries: str, qrels: str) -> Judged:
    asked = {key: text for _, key, text in _queries(queries)}
    grades = _grades(qrels, asked)
    files = find_inputs(corpus)
    ids, own = list[str](), dict[str, int]()

    def look(key: str, text: str) -> None:
        if key in grades and key not in grades[key] and asked[key].strip() in text:
            own[key] = len(ids)

    _scan(files, ids, look)
    judged = {key for found in grades.values() for key in found}
    missing = judged - set(ids)
    if missing and len(missing) == len(judged):
        raise ConfigError(
            f"none of the passages that {qrels!r} judges is in {corpus!r}: do they belong to one data set?"
        )
    if missing:
        warn(f"{len(missing)} of {len(judged)} judged passages are not in {corpus!r}: they cannot be found")
    return Judged(Corpus(ids, lambda: _texts(files)), {key: asked[key] for key in grades}, grades, own)


def _scan(files: list[str], ids: list[str], look: Callable[[str, str], None]) -> None:
    """Read all passages once: append the ids of those with a text, and show id and text of each of these to ``look``.

    Raises:
        ConfigError: a row is not as it should be, or an id is there twice.
    """
    seen, blank = set[str](), 0
    for place, key, text in _passages(files):
        if key in seen:
            raise ConfigError(f"{place}: the id {key!r} was already used by an earlier passage")
        seen.add(key)
        blank += not text
        if text:
            look(key, text)
            ids.append(key)
    if not ids:
        raise ConfigError(f"{files[0]!r} has no passages")
    if blank:
        warn(f"{blank} passage(s) of {files[0]!r} are blank and were skipped")


def _texts(files: list[str]) -> Iterator[str]:
    return (text for _, _, text in _passages(files) if text)


def _queries(file: str) -> Iterator[tuple[str, str, str]]:
    """Yield place, id and text of each question."""
    seen = set[str]()
    for place, fields in _rows(file, "text", *_IDS):
        key, text = _string(place, fields, *_IDS), _string(place, fields, "text")
        if key in seen:
            raise ConfigError(f"{place}: the id {key!r} was already used by an earlier question")
        seen.add(key)
        yield place, key, text


# Judgements


def _grades(file: str, asked: dict[str, str]) -> dict[str, dict[str, int]]:
    """Return the grades of the questions that have any, in the order of the questions."""
    found: dict[str, dict[str, int]] = {}
    for place, query, passage, score in _judgements(file):
        found.setdefault(query, {})[passage] = _grade(place, score)
    unknown = [query for query in found if query not in asked]
    if len(unknown) == len(found):
        such = f": {unknown[0]!r} is not one of them" if unknown else ""
        raise ConfigError(f"{file!r} judges none of the questions{such}")
    if unknown:
        warn(f"{len(unknown)} question(s) that {file!r} judges do not exist (such as {unknown[0]!r}) and were skipped")
    return {query: found[query] for query in asked if query in found}


def _grade(place: str, score: Any) -> int:
    try:
        grade = float(score)
    except (TypeError, ValueError, OverflowError):
        grade = 0.5
    if not grade.is_integer() or abs(grade) > _HIGHEST_GRADE:
        raise ConfigError(f"{place}: the score must be a whole number of at most {_HIGHEST_GRADE:,}, not {score!r:.60}")
    return int(grade)


def _judgements(file: str) -> Iterator[tuple[str, str, str, Any]]:
    """Yield place, question, passage and score: rows of BEIR's three columns, or TREC's lines of four."""
    if Path(file.removesuffix(".gz")).suffix in (*LINES, ".csv", ".parquet"):
        for place, fields in _rows(file, "score", "query-id", "corpus-id"):
            yield place, _string(place, fields, "query-id"), _string(place, fields, "corpus-id"), fields.get("score")
        return
    try:
        with open_input(file, tally := BytesRead()) as stream:
            for number, line in enumerate(read_lines(stream, tally), 1):
                text = (b"too long" if line is None else line).decode("utf-8", "replace")
                yield from _judgement(f"{file!r}, line {number}", text, number)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{file!r} cannot be read: {error}") from error


def _judgement(place: str, line: str, number: int) -> Iterator[tuple[str, str, str, str]]:
    cells = [cell.strip() for cell in (line.split("\t") if "\t" in line else line.split())]
    if not any(cells) or (number == 1 and cells[0] in ("query-id", "query_id", "qid")):
        return
    if len(cells) not in (3, 4) or not all(cells):
        raise ConfigError(
            f"{place}: {len(cells)} columns: judgements are query-id, corpus-id, score (BEIR), or question, 0, "
            "passage, grade (TREC)"
        )
    yield place, cells[0], cells[-2], cells[-1]


# Pairs


def _pairs(file: str) -> Iterator[tuple[str, str, str]]:
    """Yield place, question and passage."""
    for place, fields in _rows(file, "passage", *_QUESTIONS):
        yield place, _string(place, fields, *_QUESTIONS), _string(place, fields, "passage")


def _of_pairs(file: str) -> Judged:
    ids: dict[str, str] = {}
    right: dict[str, dict[str, int]] = {}
    for _, question, passage in _pairs(file):
        right.setdefault(question, {})[ids.setdefault(passage, f"p{len(ids) + 1}")] = 1
    if not right:
        raise ConfigError(f"{file!r} has no pairs of a question and a passage")
    return _judged(Corpus(list(ids.values()), lambda: iter(ids)), right)


def _of_corpus_and_pairs(corpus: str, file: str) -> Judged:
    pairs = list(_pairs(file))
    wanted: dict[str, list[str]] = {form: [] for _, _, passage in pairs for form in (passage, _plain(passage))}
    files, ids = find_inputs(corpus), list[str]()

    def look(key: str, text: str) -> None:
        for form in dict.fromkeys((key, _plain(text))):
            if form in wanted:
                wanted[form].append(key)

    _scan(files, ids, look)
    right: dict[str, dict[str, int]] = {}
    for place, question, passage in pairs:
        found = wanted[passage] or wanted[_plain(passage)]
        if not found:
            raise ConfigError(f"{place}: no passage of {corpus!r} has this id or text: {passage[:60]!r}")
        right.setdefault(question, {}).update(dict.fromkeys(found, 1))
    if not right:
        raise ConfigError(f"{file!r} has no pairs of a question and a passage")
    return _judged(Corpus(ids, lambda: _texts(files)), right)


def _plain(text: str) -> str:
    return " ".join(text.split())


def _judged(corpus: Corpus, right: dict[str, dict[str, int]]) -> Judged:
    queries = {f"q{number}": question for number, question in enumerate(right, 1)}
    return Judged(corpus, queries, dict(zip(queries, right.values(), strict=True)), {})
