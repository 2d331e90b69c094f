"""``bge verify``: does this host really serve that model?"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from ..core.encoder import Encoder
from ..errors import ConfigError
from ..load import load_encoder
from ..stamps.places import KINDS, close_client, parse_place
from .options import add_encoder_arguments, make_encoder, make_reranker


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bge verify``."""
    parser.add_argument(
        "--against",
        metavar="MODEL",
        help="compare with 'local' (the same model on this machine) or with another model",
    )
    parser.add_argument(
        "--store",
        metavar="KIND:PLACE/NAME",
        help=f"check the vectors of a store: {', '.join(KINDS.values())}",
    )
    parser.add_argument("--sample", type=int, default=32, metavar="N", help="rows of the store to check (default: 32)")
    parser.add_argument(
        "--golden",
        metavar="FILE",
        help="reference values to compare with, instead of the package's; see --pin",
    )
    parser.add_argument("--pin", metavar="FILE", help="record the host's current vectors in FILE, and exit")
    parser.add_argument(
        "--no-behaviour",
        action="store_true",
        help="skip the checks of how the host handles long, blank and repeated texts",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    add_encoder_arguments(parser)


def run(parsed: argparse.Namespace) -> int:
    """Print the report; 0 where all is right, else 1."""
    from ..catalog.rerankers import is_reranker
    from ..verify import pin, table, verify

    if parsed.model and is_reranker(parsed.model):
        return _run_reranker(parsed)
    with make_encoder(parsed, show_progress=False) as encoder:
        if parsed.store:
            return _run_store(parsed, encoder)
        if parsed.pin:
            print(f"{pin(encoder, parsed.pin)} texts recorded in {parsed.pin}")
            return 0
        reference = None
        if parsed.against:
            model = parsed.model if parsed.against == "local" else parsed.against
            reference = load_encoder(
                model, provider="local", show_progress=False, query_instruction=parsed.query_instruction
            )
        with _bar() as on_step:
            report = verify(encoder, reference, parsed.golden, behaviour=not parsed.no_behaviour, on_step=on_step)
    return _show(parsed, report, table(report))


def _run_store(parsed: argparse.Namespace, encoder: Encoder) -> int:
    from ..verify import table_of_store, verify_store

    with _opened(parsed.store) as store:
        report = verify_store(store, encoder, sample=parsed.sample)
    return _show(parsed, report, table_of_store(report))


@contextmanager
def _opened(named: str) -> Iterator[Any]:
    """Yield the store that ``kind:place/name`` names, as ``verify_store`` takes it; it has to be there."""
    where = parse_place(named)
    client = where.client()
    try:
        yield where.stamped(client)
    finally:
        close_client(client)


def _run_reranker(parsed: argparse.Namespace) -> int:
    from ..verify import table_of_scores, verify_reranker

    if parsed.pin or parsed.against:
        raise ConfigError("--pin and --against are for embeddings: pass known scores of a reranker with --golden")
    with make_reranker(parsed) as reranker:
        report = verify_reranker(reranker, parsed.golden, behaviour=not parsed.no_behaviour)
    return _show(parsed, report, table_of_scores(report))


@contextmanager
def _bar() -> Iterator[Callable[[int, int, str], None] | None]:
    """Yield a function that moves a bar, which is removed at the end; None without a terminal, or without tqdm."""
    if not sys.stderr.isatty() or find_spec("tqdm") is None:
        yield None
        return
    with import_module("tqdm.auto").tqdm(total=1, unit="step", leave=False, dynamic_ncols=True) as bar:

        def show(done: int, total: int, what: str) -> None:
            bar.total, bar.n = total, done
            bar.set_description(what)

        yield show


def _show(parsed: argparse.Namespace, report: Any, rows: list[tuple[str, str, str]]) -> int:
    """Print a report and return the exit code."""
    if parsed.json:
        print(json.dumps(report.to_dict(), indent=1, ensure_ascii=False, default=str))
    else:
        _print_table(rows)
    return 0 if report.ok else 1


def _print_table(rows: list[tuple[str, str, str]]) -> None:
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        for row in rows:
            print("  ".join(row))
        return
    shown = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for row in rows:
        shown.add_row(*(part.replace("[", "\\[") for part in row))
    Console(soft_wrap=True).print(shown)
