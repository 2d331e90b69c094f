"""``bge cache``: inspect, prune or clear the cache of vectors."""

from __future__ import annotations

import argparse

from ..environment import cache_path
from ..errors import CacheError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bge cache``."""
    parser.add_argument(
        "action", choices=("info", "prune", "clear"), help="show sizes, delete old rows, or delete everything"
    )
    parser.add_argument("--path", metavar="FILE", help="the SQLite file (default: BGE_CACHE, or the user's cache)")
    parser.add_argument(
        "--max-mb", type=float, metavar="N", help="prune: keep the most recently used vectors up to this size"
    )
    parser.add_argument(
        "--older-than-days", type=float, metavar="N", help="prune: drop vectors not used for this many days"
    )


def run(parsed: argparse.Namespace) -> int:
    """Run the action and print what the cache holds afterwards."""
    from ..wrappers import cache

    path = parsed.path or cache_path()
    if parsed.action == "clear":
        result = cache.clear(path)
    elif parsed.action == "prune":
        days = parsed.older_than_days
        result = cache.prune(
            path,
            max_bytes=None if parsed.max_mb is None else int(parsed.max_mb * 1_000_000),
            older_than=None if days is None else days * 86_400,
        )
    else:
        result = cache.info(path)
        if not result["exists"]:
            raise CacheError(f"no cache at {result['path']!r}: pass --path, or set BGE_CACHE")
    for name, value in result.items():
        print(f"{name:16} {value}")
    return 0
