"""One call to a local engine, from its texts to its vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..core.encoder import OnBatch, Vectors
from .plan import Indices, slice_end


@dataclass(eq=False)
class Job:
    """One call.

    Attributes:
        texts: as the caller gave them.
        prepare: puts the instruction in front.
        report: told once which positions were cut; may raise.
        strict: whether ``report`` has to be told before anything is computed.
        count: told how many texts and tokens were embedded.
    """

    texts: list[str]
    dimensions: int
    prepare: Callable[[Sequence[str]], list[str]]
    report: Callable[[list[int]], None]
    count: Callable[[int, int], None]
    strict: bool = False
    on_batch: OnBatch | None = None
    future: Future[Vectors] = field(default_factory=Future)
    taken: int = 0
    tokens: int = 0
    cut: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.missing = len(self.texts)
        self.vectors: Vectors = np.empty((0, self.dimensions), np.float32)

    @property
    def alive(self) -> bool:
        """Whether somebody still waits for the vectors."""
        return not self.future.done()

    def take(self, texts: int, characters: int) -> tuple[range, list[str]]:
        """Return the next texts, ready for the model, and where they stand."""
        end = slice_end(self.texts, self.taken, texts, characters)
        part = range(self.taken, end)
        self.taken = end
        return part, self.prepare(self.texts[part.start : part.stop])

    def put(self, indices: Indices, rows: Vectors) -> None:
        """Keep finished rows, pass them on, and finish the call with the last one."""
        if not self.vectors.size:
            self.vectors = np.empty((len(self.texts), self.dimensions), np.float32)
        self.vectors[indices] = rows
        self.missing -= len(indices)
        try:
            if self.on_batch is not None:
                self.on_batch(indices.tolist(), rows)
        except BaseException as error:  # noqa: BLE001 - whatever the caller's function raised belongs to the caller
            self.fail(error)
        if not self.missing:
            self.finish()

    def finish(self) -> None:
        """Hand the vectors over."""
        self.count(len(self.texts), self.tokens)
        _settle(self.future, self.vectors, None)

    def fail(self, error: BaseException) -> None:
        """Give up, unless it was finished or cancelled meanwhile."""
        _settle(self.future, None, error)


def _settle(future: Future[Any], result: Any, error: BaseException | None) -> None:
    try:
        if future.done() or not future.set_running_or_notify_cancel():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
    except InvalidStateError:  # cancelled between the two lines
        return
