"""One progress bar per call, updated as batches are finished."""

from __future__ import annotations

import sys
import time
from typing import Any

from ..core.encoder import Batch, Encoder, Relay, Role, Stream
from ..errors import MissingExtraError
from ..extras import require
from .base import Wrapper

__all__ = ["ProgressEncoder", "in_notebook"]

_PATIENCE = 2.0  # seconds of work before a bar that nobody asked for appears in a notebook


class ProgressEncoder(Wrapper):
    """An encoder around another one that shows a progress bar, in a terminal or a notebook.

    Args:
        inner: the encoder that does the work.
        show: True for a bar on every call of more than one text; None for one in a notebook, on calls of over two
            seconds; False for none.
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
        if len(texts) < 2 or not (in_notebook() if self.show is None else self.show):
            self.inner.batches(texts, role, stream)
            return
        relay = _BarRelay(stream, len(texts), patience=0.0 if self.show else _PATIENCE, leave=self.leave)
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
        self._done, self._began, self._closed = 0, time.time(), False
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
        bar.start_t = self._began
        return bar

    def put(self, batch: Batch) -> None:
        self._done += len(batch.positions)
        if self._bar is not None and not self._closed:
            self._bar.update(len(batch.positions))
        elif not self._closed and self._done < self._total and time.time() - self._began > self._patience:
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


def in_notebook() -> bool:
    """Return whether this program is a notebook's kernel, where a bar is a widget and not lines in a log."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return any(kind.__name__ == "ZMQInteractiveShell" for kind in type(shell).__mro__)


def _tqdm() -> Any:
    return require("tqdm.auto", extra="cli", purpose="show_progress=True").tqdm
