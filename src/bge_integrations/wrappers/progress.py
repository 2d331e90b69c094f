"""One progress bar per call, with the right total, moved as batches are finished."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from importlib import import_module
from typing import Any

from ..core.encoder import FutureEncoder, OnBatch, Role, Vectors
from ..errors import MissingExtraError
from .base import WrappedEncoder

__all__ = ["ProgressEncoder", "in_notebook"]

_PATIENCE = 2.0  # seconds of work before a bar that nobody asked for appears in a notebook


class ProgressEncoder(WrappedEncoder):
    """An encoder around another one that shows how far a call has come, in a terminal or a notebook.

    Args:
        inner: the encoder that does the work.
        show: True for a bar on every call of more than one text; None for one in a notebook, on calls of over two
            seconds; False for none.
        leave: whether a bar stays when it is finished.

    Raises:
        MissingExtraError: ``show=True`` and tqdm is not installed.
    """

    def __init__(self, inner: FutureEncoder, show: bool | None = None, *, leave: bool = True) -> None:
        super().__init__(inner)
        self.show, self.leave = show, leave
        if show:
            _tqdm()

    def start(self, texts: list[str], role: Role, on_batch: OnBatch | None) -> Future[Vectors]:
        """Begin to embed, with a bar where one is due."""
        if len(texts) < 2 or not (in_notebook() if self.show is None else self.show):
            return self.inner.start(texts, role, on_batch)
        bar = _Bar(len(texts), patience=0.0 if self.show else _PATIENCE, leave=self.leave)

        def moved(indices: Sequence[int], vectors: Vectors) -> None:
            bar.advance(len(indices))
            if on_batch is not None:
                on_batch(indices, vectors)

        try:
            future = self.inner.start(texts, role, moved)
        except BaseException:
            bar.close()
            raise
        future.add_done_callback(lambda _: bar.close())
        return future


class _Bar:
    """A bar that appears once ``patience`` is over, and stays away if tqdm is missing and nobody asked for it."""

    def __init__(self, total: int, *, patience: float, leave: bool) -> None:
        self._total, self._patience, self._done = total, patience, 0
        self._look: dict[str, Any] = {"unit": "text", "desc": "Embedding", "dynamic_ncols": True, "leave": leave}
        self._began = time.time()
        self._lock = threading.Lock()
        self._closed = False
        self._bar: Any = None if patience else self._made()

    def _made(self) -> Any:
        try:
            bar = _tqdm()(total=self._total, initial=self._done, **self._look)
        except MissingExtraError:
            self._closed = True
            return None
        bar.start_t = self._began
        return bar

    def advance(self, count: int) -> None:
        """Move the bar by ``count`` texts."""
        with self._lock:
            if self._closed:
                return
            self._done += count
            if self._bar is not None:
                self._bar.update(count)
            elif self._done < self._total and time.time() - self._began > self._patience:
                self._bar = self._made()

    def close(self) -> None:
        """Leave the bar as it stands."""
        with self._lock:
            self._closed = True
            if self._bar is not None:
                self._bar.close()


def in_notebook() -> bool:
    """Tell whether this program is a notebook's kernel, which is where a bar is a picture and not lines in a log."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return any(kind.__name__ == "ZMQInteractiveShell" for kind in type(shell).__mro__)


def _tqdm() -> Any:
    try:
        return import_module("tqdm.auto").tqdm
    except ImportError as error:
        raise MissingExtraError(
            'show_progress=True needs tqdm: pip install "bge-integrations[cli]", or pass show_progress=None'
        ) from error
