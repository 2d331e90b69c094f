"""The receiving end of a call: batches become its result, its usage and its truncation warning; and the wait for it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import numpy as np

from ..errors import BGEError, HostError, shorten
from .batches import Batch, OnBatch, OnTruncated, Stream
from .outputs import Output, Rows
from .tracing import Described, span
from .usage import Usage

__all__ = ["Collector", "refuse_endless_wait", "waited_for"]


class Computes(Described, Protocol):
    """What a collector asks of its encoder."""

    usage: Usage
    price: float | None

    @property
    def engine(self) -> Any:
        """The encoder under all wrappers."""
        ...

    @property
    def output(self) -> Output:
        """The kind of rows."""
        ...


class _Delivering(threading.local):
    engine: Any = None


delivering = _Delivering()  # the engine whose thread is in a caller's on_batch


def refuse_endless_wait(encoder: Computes) -> None:
    """Refuse a call whose end could never come.

    Raises:
        BGEError: called from ``on_batch`` of the same engine, or while the interpreter ends.
    """
    # Its own thread would have to finish the batch in hand first, or is frozen already.
    if delivering.engine is not None and delivering.engine is encoder.engine:
        raise BGEError("encode() inside on_batch would wait for itself: use submit(), or call it afterwards")
    if sys.is_finalizing():
        raise BGEError("the interpreter is shutting down: encode earlier")


@contextmanager
def waited_for(
    encoder: Computes, begin: Callable[[], Collector], role: str, items: object, operation: str = "embeddings"
) -> Iterator[Collector]:
    """Begin a call that the enclosed code waits for; cancel it where the waiting ends early; count seconds and tokens.

    Raises:
        BGEError: the wait would be endless.
    """
    refuse_endless_wait(encoder)
    began = time.perf_counter()
    try:
        with span(encoder, role, items, operation=operation) as set_tokens:
            call = begin()
            try:
                yield call
            except BaseException:
                call.future.cancel()
                raise
            finally:
                set_tokens(call.tokens)
    finally:
        encoder.usage.add(seconds=time.perf_counter() - began)


class Collector(Stream):
    """Collects the batches of one call into its result, its usage and its truncation warning."""

    def __init__(
        self,
        encoder: Computes,
        count: int,
        on_batch: OnBatch | None,
        on_truncated: OnTruncated | None = None,
        output: Output | None = None,
    ) -> None:
        self.output = output or encoder.output
        self.future: Future[Rows] = Future()
        self.tokens = 0
        self.truncated: list[int] = []
        self._encoder, self._count, self._on_batch, self._on_truncated = encoder, count, on_batch, on_truncated
        self._rows: Rows | None = None
        self._done = np.zeros(count, bool)
        # The future keeps its callbacks: one that held this object would make a cycle, and the result would live until
        # Python next collects.
        self._stops: list[Callable[[], object]] = []
        self.future.add_done_callback(partial(_stop_if_cancelled, self._stops))

    @property
    def cancelled(self) -> bool:
        """Whether the call has ended, or was given up."""
        return self.future.done()

    def on_cancel(self, stop: Callable[[], object]) -> None:
        """Have ``stop`` called if the caller cancels the future or its ``on_batch`` fails."""
        self._stops.append(stop)
        if self.future.done():
            stop()

    def put(self, batch: Batch) -> None:
        """Keep a batch, count it, and hand it to ``on_batch``; what that raises ends the call."""
        if self.future.done():
            return
        self._keep(batch)
        self._count_usage(batch)
        if self._on_batch is not None:
            outer, delivering.engine = delivering.engine, self._encoder.engine
            try:
                self._on_batch(batch.positions, batch.rows)
            except BaseException as error:  # noqa: BLE001 - whatever the caller's function raises belongs to the caller
                stops = self._stops[:]  # ending the call forgets them
                self.fail(error)
                _stop_all(stops)
            finally:
                delivering.engine = outer

    def _keep(self, batch: Batch) -> None:
        positions = batch.positions
        if len(positions) == self._count and (self._count == 1 or list(positions) == list(range(self._count))):
            self._rows = batch.rows  # one batch for all: nothing to put together
        else:
            if self._rows is None:
                self._rows = self.output.empty(self._count)
            self._rows[positions] = batch.rows
        self._done[positions] = True
        self.tokens += batch.tokens
        self.truncated += batch.truncated

    def _count_usage(self, batch: Batch) -> None:
        computed = len(batch.positions) if batch.computed is None else batch.computed
        usage, price = self._encoder.usage, self._encoder.price
        counts: dict[str, float] = {"texts": computed, "tokens": batch.tokens, "truncated": len(batch.truncated)}
        if not computed:
            counts["cache_hits"] = len(batch.positions)
        if price:
            counts["usd"] = batch.tokens * price / 1e6
        usage.add(**counts)

    def finish(self) -> None:
        """Set the future's result."""
        if not self._done.all():
            lost = np.flatnonzero(~self._done).tolist()
            self.fail(BGEError(f"{type(self._encoder).__name__} returned no vector for text {shorten(lost)}"))
            return
        try:
            if self.truncated and self._on_truncated is not None:
                self._on_truncated(sorted(self.truncated))
        except BaseException as error:  # noqa: BLE001 - also a warning that is an error in the caller's program
            self.fail(error)
            return
        self._settle(rows=self.output.empty(0) if self._rows is None else self._rows)

    def fail(self, error: BaseException) -> None:
        """Set the future's error; a host's says what was finished."""
        if isinstance(error, HostError):
            error = error.after(np.flatnonzero(self._done).tolist(), np.flatnonzero(~self._done).tolist())
        self._settle(error=error)

    def _settle(self, rows: Any = None, error: BaseException | None = None) -> None:
        future = self.future
        try:
            if future.done() or not future.set_running_or_notify_cancel():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(rows)
        except InvalidStateError:  # cancelled between the two lines
            return
        finally:
            self._rows, self._on_batch, self._on_truncated = None, None, None
            self._stops.clear()


def _stop_if_cancelled(stops: list[Callable[[], object]], future: Future[Rows]) -> None:
    if future.cancelled():
        _stop_all(stops)


def _stop_all(stops: list[Callable[[], object]]) -> None:
    while True:
        try:
            stop = stops.pop()
        except IndexError:  # all called, or forgotten meanwhile by the thread that ended the call
            return
        stop()
