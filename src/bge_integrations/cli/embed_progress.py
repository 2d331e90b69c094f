"""How far ``bge embed`` has come: a bar on a terminal, else a line for each shard."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from ..bulk import Report
    from ..core.encoder import Encoder, Usage

_EVERY = 0.25  # seconds between two changes of the bar
Watchers: TypeAlias = "tuple[Callable[[Report], None], Callable[[Report], None]]"


@contextmanager
def watch(encoder: Encoder) -> Iterator[Watchers]:
    """Yield what ``embed_files`` calls after each shard, and as rows are finished."""
    began = time.monotonic()
    bar = _bar() if sys.stderr.isatty() else None

    def told(report: Report) -> str:
        nonlocal began
        if not report.embedded:  # finished shards are passed over; that is not the encoder's time
            began = time.monotonic()
        return progress_line(report, encoder.usage, time.monotonic() - began)

    if bar is None:
        yield (lambda report: print(told(report), file=sys.stderr)), (lambda _: None)
        return
    task, shown = bar.add_task("", told="", total=None), -_EVERY

    def show(report: Report, *, now: bool = False) -> None:
        nonlocal shown
        if now or time.monotonic() - shown > _EVERY:
            shown = time.monotonic()
            bar.update(task, completed=rows_done(report), total=report.total, told=told(report))

    with bar:
        yield (lambda report: show(report, now=True)), show


def _bar() -> Any:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
    except ImportError:
        return None
    return Progress(
        BarColumn(20), TextColumn("{task.fields[told]}"), console=Console(stderr=True), refresh_per_second=4
    )


def rows_done(report: Report) -> int:
    """Return how many rows are embedded, those of shards that were there included."""
    return min(report.read, report.resumed_rows + report.embedded)


def progress_line(report: Report, usage: Usage, seconds: float) -> str:
    """Return rows, rates, what is left, retries, bad rows and cost so far in one line."""
    rate = report.embedded / seconds if seconds > 0 else 0.0
    parts = [
        f"{rows_done(report):,}" + (f" of ~{report.total:,} rows" if report.total else " rows"),
        f"{rate:,.0f} rows/s",
    ]
    if usage.tokens:
        parts.append(f"{usage.tokens / max(seconds, 1e-9):,.0f} tokens/s")
    if report.total and rate:
        left = max(report.total - rows_done(report) - report.errors, 0) / rate
        parts.append(f"{timedelta(seconds=round(left))} left")
    if usage.requests:
        parts.append(f"{usage.retries:,} retries")
    if report.errors:
        parts.append(f"{report.errors:,} bad")
    if usage.usd is not None:
        parts.append(f"${usage.usd:,.4f}")
    return ", ".join(parts)
