"""``bge search``: search the shards of a folder."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import ConfigError
from .options import add_encoder_arguments, encoder_options, standard_input

if TYPE_CHECKING:
    from ..bulk.hybrid import Hybrid
    from ..bulk.search import Hit

_ID = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bge search``."""
    parser.add_argument("folder", metavar="FOLDER", help="output folder of bge embed or bge quantise")
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help="if omitted: one per line of standard input")
    parser.add_argument("-k", type=int, default=10, metavar="N", help="hits per question (default: 10)")
    parser.add_argument("--json", action="store_true", help="print one JSON line per question, with full texts")
    parser.add_argument(
        "--rescore",
        type=int,
        default=10,
        metavar="N",
        help="quantised shards only: candidates per hit to score again with the float shards (default: 10; 0: none)",
    )
    group = parser.add_argument_group("hybrid search, over shards embedded with --outputs dense,sparse")
    group.add_argument("--hybrid", action="store_true", help="search by dense and sparse vectors")
    group.add_argument(
        "--fusion", choices=("sum", "rrf"), help="combine by weighted sum of scores (default) or reciprocal rank fusion"
    )
    group.add_argument(
        "--weights",
        nargs=2,
        type=float,
        metavar=("DENSE", "SPARSE"),
        help="weights of the two (default: 0.4 0.2; with rrf 1 1)",
    )
    add_encoder_arguments(parser, default="the one that made the shards")


def run(parsed: argparse.Namespace) -> int:
    """Print what was found; 1 where nothing was asked."""
    from ..bulk.search import encoder_of, search_files

    questions = parsed.questions or [line.strip() for line in standard_input() if line.strip()]
    if not questions:
        print("bge: no question: pass one, or write one per line to standard input", file=sys.stderr)
        return 1
    hybrid = _hybrid(parsed)
    tell_unfinished(parsed.folder)
    with encoder_of(parsed.folder, parsed.model, **encoder_options(parsed)) as encoder:
        found = search_files(parsed.folder, questions, encoder, k=parsed.k, hybrid=hybrid, rescore=parsed.rescore)
    for question, hits in zip(questions, found, strict=True):
        if parsed.json:
            print(
                json.dumps({"question": question, "hits": [vars(hit) for hit in hits]}, ensure_ascii=False, default=str)
            )
        else:
            _show(question if len(questions) > 1 else "", hits)
    return 0


def _hybrid(parsed: argparse.Namespace) -> bool | Hybrid:
    from ..bulk.hybrid import Hybrid

    if not parsed.hybrid:
        if parsed.fusion or parsed.weights:
            raise ConfigError("--fusion and --weights are for --hybrid")
        return False
    return Hybrid(parsed.fusion or "sum", parsed.weights)


def tell_unfinished(folder: str) -> None:
    """Say that a job has not come to its end, which explains missing rows."""
    from ..bulk.folder import is_finished

    if not is_finished(folder):
        print(f"bge: the job of {folder!r} is not finished: only its finished shards are used", file=sys.stderr)


def _show(title: str, hits: Sequence[Hit]) -> None:
    if sys.stdout.isatty() and _show_table(title, hits):
        return
    if title:
        print(f"# {title}")
    for hit in hits:
        print(f"{hit.score:.4f}\t{hit.id}\t{beginning(hit.text)}")


def beginning(text: str, most: int = 120) -> str:
    """Return the beginning of a text on one line."""
    line = " ".join(text[: 4 * most].split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _show_table(title: str, hits: Sequence[Hit]) -> bool:
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    table = Table(title=Text(title) if title else None, title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("score", justify="right")
    table.add_column("id", overflow="fold", max_width=_ID)
    table.add_column("text")
    console, longest = Console(), max((len(str(hit.id)) for hit in hits), default=0)
    most = max(20, console.width - 12 - min(longest, _ID))
    for hit in hits:
        table.add_row(f"{hit.score:.4f}", Text(str(hit.id)), Text(beginning(hit.text, most)))
    console.print(table)
    return True
