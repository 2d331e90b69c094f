"""``bge eval``: how well do models, hosts, searches and rerankers find the right passages? In one table."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..evaluate import Evaluation, Progress

_PATIENCE, _EVERY = 2.0, 1.0  # seconds before the first line, and between lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bge eval``."""
    parser.epilog = (
        "A run is a comma-separated list of settings, such as model=bge-m3,hybrid,reranker=bge-reranker-v2-m3: "
        "model (or just its name, if first), name, dense | sparse | hybrid (hybrid=rrf, hybrid=0.4:0.2), "
        "instruction=on|off|TEXT, reranker, candidates (how many passages it reads), the options of bge embed "
        "(provider, base_url, precision, ...), and those of bge rerank prefixed with reranker_. Use JSON for a "
        'value with a comma: \'{"model": "demo", "instruction": "a, b"}\'.'
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="a folder in BEIR's layout; CORPUS QUERIES QRELS; PAIRS, a file with columns question and passage; "
        "or CORPUS PAIRS, where each passage is an id or a text of the corpus",
    )
    parser.add_argument(
        "--run",
        action="append",
        dest="runs",
        metavar="KEYS",
        help="one configuration, a row of the table (repeatable); all are compared with the first",
    )
    parser.add_argument("--top", type=int, default=100, metavar="N", help="passages kept per question (default: 100)")
    parser.add_argument(
        "--measures",
        nargs="+",
        default=[],
        metavar="NAME",
        help="measures of ir-measures (default: nDCG@10, R@TOP, RR@10)",
    )
    _add_places(parser)


def _add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", metavar="FILE", help="write all results as JSON, including those of each question")
    parser.add_argument("--json", action="store_true", help="print that JSON instead of the table")
    parser.add_argument(
        "--cache",
        metavar="FOLDER",
        help="cache of vectors and scores, from which an interrupted command resumes (default: the user's cache)",
    )
    parser.add_argument(
        "--no-cache", action="store_true", help="compute everything again, for instance if a host has changed"
    )


def run(parsed: argparse.Namespace) -> int:
    """Evaluate, and print the table."""
    from ..evaluate import evaluate

    if len(parsed.inputs) > 3:
        raise ConfigError(f"at most three inputs, CORPUS QUERIES QRELS, not {len(parsed.inputs)}")
    if parsed.no_cache and parsed.cache:
        raise ConfigError("pass --cache or --no-cache, not both")
    if parsed.output and not Path(parsed.output).parent.is_dir():
        raise ConfigError(f"the folder of {parsed.output!r} does not exist: create it first")
    evaluation = evaluate(
        *parsed.inputs,
        runs=parsed.runs or [""],
        top=parsed.top,
        measures=parsed.measures,
        cache=not parsed.no_cache if parsed.cache is None else parsed.cache,
        on_progress=_tell(),
    )
    _show(parsed, evaluation)
    return 0


def _show(parsed: argparse.Namespace, evaluation: Evaluation) -> None:
    text = json.dumps(evaluation.to_dict(), ensure_ascii=False, indent=1, default=str)
    if parsed.output:
        Path(parsed.output).write_text(text + "\n", "utf-8")
    print(text if parsed.json else evaluation)


def _tell() -> Callable[[Progress], None]:
    """Return a function that prints a run's progress on standard error, at most once a second."""
    stage: tuple[str, str] = ("", "")
    began = told = time.monotonic()

    def tell(progress: Progress) -> None:
        nonlocal stage, began, told
        now = time.monotonic()
        if stage != (progress.run, progress.stage):
            stage, began = (progress.run, progress.stage), now
            told = max(told, now + _PATIENCE - _EVERY)
        if now - told >= _EVERY and progress.done < progress.total:
            told = now
            print(_line(progress, now - began), file=sys.stderr)

    return tell


def _line(progress: Progress, seconds: float) -> str:
    rate = progress.done / max(seconds, 1e-9)
    left = timedelta(seconds=round((progress.total - progress.done) / rate))
    cost = "" if progress.usd is None else f", ${progress.usd:,.4f}"
    done = f"{progress.done:,} of {progress.total:,} {progress.stage}"
    return f"{progress.run}: {done}, {rate:,.0f} a second, {left} left{cost}"
