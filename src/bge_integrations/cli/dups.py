"""``bge dups``: near-duplicate rows in shards."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from .search import tell_unfinished
from .upload import tell_rate

if TYPE_CHECKING:
    from ..bulk import DuplicateGroup

_SHOWN = 5  # duplicates of a group


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bge dups``."""
    parser.add_argument("folder", metavar="SHARDS", help="output folder of bge embed")
    parser.add_argument(
        "--above", type=float, default=0.95, metavar="COSINE", help="minimum cosine similarity (default: 0.95)"
    )
    parser.add_argument(
        "--approximate",
        action="store_true",
        help="use a FAISS index: faster from about 100,000 rows, but misses a few duplicates",
    )
    parser.add_argument("-n", type=int, default=20, metavar="N", help="groups to print (default: 20)")
    parser.add_argument("--drop", metavar="FILE", help="write the ids of all but the first of each group, one per line")
    parser.add_argument("--json", action="store_true", help="print all groups as JSON lines")


def run(parsed: argparse.Namespace) -> int:
    """Print the groups, the largest first."""
    from ..bulk import near_duplicates

    tell_unfinished(parsed.folder)
    groups = near_duplicates(
        parsed.folder, above=parsed.above, approximate=parsed.approximate, on_rows=tell_rate("compared")
    )
    if parsed.drop:
        ids = [row.id for group in groups for row in group.duplicates]
        Path(parsed.drop).write_text("".join(f"{each}\n" for each in ids), "utf-8")
    if parsed.json:
        for group in groups:
            print(json.dumps(asdict(group), ensure_ascii=False))
        return 0
    for group in groups[: parsed.n]:
        _show(group)
    rows = sum(len(group.duplicates) for group in groups)
    print(f"{rows:,} near-duplicates in {len(groups):,} groups, cosine at least {parsed.above:g}")
    return 0


def _show(group: DuplicateGroup) -> None:
    first = group.representative
    print(f"{first.id}  {_short(first.text)}")
    for row in group.duplicates[:_SHOWN]:
        print(f"  {row.score:.3f}  {row.id}  {_short(row.text)}")
    if len(group.duplicates) > _SHOWN:
        print(f"  and {len(group.duplicates) - _SHOWN:,} more")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else line[:79] + "…"
