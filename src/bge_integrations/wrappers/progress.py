"""How far a call has come, told as batches are finished: a bar, or in a plain script some lines."""

from __future__ import annotations

import sys
import threading
import time
from datetime import timedelta
from typing import Any

from ..core.encoder import Batch, Encoder, Relay, Role, Stream
from ..errors import MissingExtraError
from ..extras import require
from .base import Wrapper

__all__ = ["ProgressEncoder", "in_notebook", "in_script"]

_PATIENCE = 2.0  # seconds of work before anything that nobody asked for is shown
_LINE_EVERY = 10.0  # seconds between two lines of a script


class ProgressEncoder(Wrapper):
    """An encoder around another one that shows how far a call has come.

    Args:
        inner: the encoder that does the work.
        show: True for a bar on every call of more than one text; False for nothing; None for calls of over two seconds:
            a bar in a notebook, and in a script a line on standard error every ten seconds, with rate, time left and
            cost. Calls from other threads than the main one, or from a running event loop, as in a server, show
            nothing.
        leave: whether a bar stays when it is finished.

    Raises:
        MissingExtraError: ``show=True`` and tqdm is not installed.
    """

    def __init__(self, inner: Encoder, show: bool | None = None, *, leave: bool = True) -> None:
        super().__init__(inner)
        self.show, self.leave = show, leave
        if show:
            _tqdm()

    def batches(self, texts: list[str], role: Role, stream: Stream) -> None:
        """Begin to embed, with a bar where one is due."""
        relay: _BarRelay | _LineRelay
        if len(texts) < 2 or self.show is False:
            self.inner.batches(texts, role, stream)
            return
        if self.show or in_notebook():
            relay = _BarRelay(stream, len(texts), patience=0.0 if self.show else _PATIENCE, leave=self.leave)
        elif in_script():
            relay = _LineRelay(stream, len(texts), self.inner.price)
        else:
            self.inner.batches(texts, role, stream)
            return
        try:
            self.inner.batches(texts, role, relay)
        except BaseException:
            relay.close()
            raise


class _BarRelay(Relay):
    """A stream with a bar that appears after ``patience`` seconds; no bar without tqdm."""

    def __init__(self, outer: Stream, total: int, *, patience: float, leave: bool) -> None:
        super().__init__(outer)
        self._total, self._patience, self._leave = total, patience, leave
        self._done, self._began, self._closed = 0, time.monotonic(), False
        self._bar = None if patience else self._new_bar()
        self.on_cancel(self.close)

    def _new_bar(self) -> Any:
        try:
            bar = _tqdm()(
                total=self._total,
                initial=self._done,
                unit="text",
                desc="Embedding",
                dynamic_ncols=True,
                leave=self._leave,
            )
        except MissingExtraError:
            self._closed = True
            return None
        bar.start_t = time.time() - (time.monotonic() - self._began)  # tqdm's own clock
        return bar

    def put(self, batch: Batch) -> None:
        self._done += len(batch.positions)
        if self._bar is not None and not self._closed:
            self._bar.update(len(batch.positions))
        elif not self._closed and self._done < self._total and time.monotonic() - self._began > self._patience:
            self._bar = self._new_bar()
        super().put(batch)

    def finish(self) -> None:
        self.close()
        super().finish()

    def fail(self, error: BaseException) -> None:
        self.close()
        super().fail(error)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._closed = True
        if self._bar is not None:
            self._bar.close()


class _LineRelay(Relay):
    """A stream that prints its progress on standard error, first after two seconds."""

    def __init__(self, outer: Stream, total: int, price: float | None) -> None:
        super().__init__(outer)
        self._total, self._price = total, price
        self._done = self._tokens = 0
        self._began = time.monotonic()
        self._next = self._began + _PATIENCE
        self._lock = threading.Lock()

    def put(self, batch: Batch) -> None:
        with self._lock:
            self._done, self._tokens = self._done + len(batch.positions), self._tokens + batch.tokens
            now = time.monotonic()
            due = now >= self._next and self._done < self._total
            if due:
                self._next = now + _LINE_EVERY
        if due:
            sys.stderr.write(self._line(now - self._began) + "\n")
            sys.stderr.flush()
        super().put(batch)

    def _line(self, seconds: float) -> str:
        rate = self._done / seconds
        left = timedelta(seconds=round((self._total - self._done) / rate))
        cost = f", ${self._tokens * self._price / 1e6:,.4f}" if self._price else ""
        return f"Embedding: {self._done:,} of {self._total:,} texts, {rate:,.0f} texts/s, {left} left{cost}"

    def close(self) -> None:
        """Leave the lines as they are."""


def in_script() -> bool:
    """Return whether a call comes from the main thread, outside any event loop: not from a server's."""
    import asyncio  # not at the top: a first query on this machine does not need it

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return sys.stderr is not None and threading.current_thread() is threading.main_thread()
    return False


def in_notebook() -> bool:
    """Return whether this program is a notebook's kernel, where a bar is a widget and not lines in a log."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return any(kind.__name__ == "ZMQInteractiveShell" for kind in type(shell).__mro__)


def _tqdm() -> Any:
    return require("tqdm.auto", extra="cli", purpose="show_progress=True").tqdm
