"""``bge rerank``: order the passages of files, or of standard input, by how well they answer a question."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..core.reranker import check_top_n
from ..errors import ConfigError
from .options import add_reranker_arguments, make_reranker, standard_input
from .search import beginning


class _Passage(NamedTuple):
    id: str
    text: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bge rerank``."""
    kinds = "JSON lines, CSV, TSV, Parquet; a text file is one passage; may be compressed: .gz, .bz2, .xz, .zst"
    parser.add_argument("question", metavar="QUESTION", help="question to rank the passages by")
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="FILE",
        help=f"file, glob or folder ({kinds}); if omitted, or -: standard input, one passage or JSON object per line",
    )
    parser.add_argument("--text", default="text", metavar="COLUMN", help="column with the passages (default: text)")
    parser.add_argument("--id", metavar="COLUMN", help="column with the ids (default: file and line)")
    parser.add_argument("--top-n", type=int, metavar="N", help="how many passages to print (default: all)")
    parser.add_argument("--json", action="store_true", help="print one JSON line per passage, with its full text")
    add_reranker_arguments(parser)


def run(parsed: argparse.Namespace) -> int:
    """Print the passages, best first; 1 where there was none."""
    most = check_top_n(parsed.top_n)
    passages = list(_read(parsed))
    if not passages:
        print("bge: no passages: name files, or write one per line to standard input", file=sys.stderr)
        return 1
    with make_reranker(parsed) as reranker:
        ranks = reranker.rank(parsed.question, [passage.text for passage in passages], top_n=most)
    for position, score in ranks:
        passage = passages[position]
        if parsed.json:
            row: dict[str, Any] = {"score": score, "position": position, **passage._asdict()}
            print(json.dumps(row, ensure_ascii=False))
        else:
            print(f"{score:.4f}\t{passage.id}\t{beginning(passage.text)}")
    return 0


def _read(parsed: argparse.Namespace) -> Iterator[_Passage]:
    """Yield passages in their order; what a folder or a pattern holds besides passages is skipped, with a line each.

    Raises:
        ConfigError: a file cannot be read, or a row of one that was named has no passage.
    """
    from ..bulk.readers import read_rows
    from ..bulk.rows import Columns, RowParser
    from ..bulk.sources import STDIN, find_inputs

    parser = RowParser(Columns(parsed.text, parsed.id), blank=True)
    for name in parsed.inputs or [STDIN]:
        if name == STDIN:
            yield from _lines(parser)
            continue
        named = Path(name).is_file()
        for row in read_rows(find_inputs(name), parser):
            if row.reason and not named:
                print(f"bge: {row.source}, line {row.line}: {row.reason}; skipped", file=sys.stderr)
            else:
                yield _passage(row, parsed.id)


def _lines(parser: Any) -> Iterator[_Passage]:
    """Yield the lines of standard input: objects where they are JSON objects, else passages as they are."""
    for number, line in enumerate(standard_input(), 1):
        text = line.rstrip("\r\n")
        if not text.lstrip().startswith("{"):
            if text.strip():
                yield _Passage(str(number), text)
            continue
        try:
            fields = json.loads(text)
        except ValueError:
            fields = "not JSON"
        yield _passage(parser.row("-", number, number, fields), parser.columns.id)


def _passage(row: Any, id_column: str | None) -> _Passage:
    if row.reason:
        raise ConfigError(f"{row.source}, line {row.line}: {row.reason}")
    return _Passage(str(row.id) if id_column else f"{row.source}:{row.line}", row.text)
