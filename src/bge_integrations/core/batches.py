"""Batches of one call, and the stream that takes them from an engine through the wrappers to the caller."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from ..errors import BGEError
from .outputs import Output, Rows, Vectors

__all__ = ["Batch", "OnBatch", "OnTruncated", "Placed", "Relay", "Stream"]

OnBatch: TypeAlias = Callable[[Sequence[int], Vectors], None]
"""Called with the caller's indices and their vectors as each part is finished, from the encoder's own thread."""

OnTruncated: TypeAlias = Callable[[Sequence[int]], None]
"""Called once with the caller's positions of texts that were longer than the model reads."""


@dataclass(frozen=True)
class Batch:
    """Finished rows of one call, with what is known about them.

    Attributes:
        positions: where their texts stand in the list that the encoder was passed.
        rows: one row per position, in that order.
        tokens: tokens that were computed for them.
        truncated: those positions whose texts were longer than the model reads.
        computed: texts that were computed: fewer than positions where equal texts share a row, 0 for rows of a cache;
            all of them when None.
    """

    positions: Sequence[int]
    rows: Rows
    tokens: int = 0
    truncated: Sequence[int] = ()
    computed: int | None = None

    def at(self, places: Sequence[Sequence[int]]) -> Batch:
        """Return this batch of a part of a list as one of the whole list.

        Args:
            places: for each text of the part, all its positions in the whole list.
        """
        counts = [len(places[i]) for i in self.positions]
        return replace(
            self,
            positions=[place for i in self.positions for place in places[i]],
            rows=self.rows if max(counts, default=1) == 1 else np.repeat(self.rows, counts, axis=0),
            truncated=[place for i in self.truncated for place in places[i]],
            computed=len(self.positions) if self.computed is None else self.computed,
        )


class Stream(ABC):
    """The receiving end of one call: takes batches, then its end.

    Whoever embeds calls ``put`` for each batch, from any thread but one at a time, then ``finish`` or ``fail`` once.

    Attributes:
        output: the kind of rows that the caller wants.
    """

    output: Output

    @property
    @abstractmethod
    def cancelled(self) -> bool:
        """Whether nobody waits any more: given up, or ended already."""

    @abstractmethod
    def on_cancel(self, stop: Callable[[], object]) -> None:
        """Have ``stop`` called if the caller gives up; at once if that has happened."""

    @abstractmethod
    def put(self, batch: Batch) -> None:
        """Take a finished batch."""

    @abstractmethod
    def finish(self) -> None:
        """End the call; every position has been put."""

    @abstractmethod
    def fail(self, error: BaseException) -> None:
        """End the call with an error; what was put before counts as finished."""


class Relay(Stream):
    """A stream that passes everything on to another one; wrappers override what they change."""

    def __init__(self, outer: Stream) -> None:
        self.outer, self.output = outer, outer.output

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits any more."""
        return self.outer.cancelled

    def on_cancel(self, stop: Callable[[], object]) -> None:
        """Have ``stop`` called if the caller gives up."""
        self.outer.on_cancel(stop)

    def put(self, batch: Batch) -> None:
        """Pass a batch on."""
        self.outer.put(batch)

    def finish(self) -> None:
        """End the outer stream."""
        self.outer.finish()

    def fail(self, error: BaseException) -> None:
        """End the outer stream with an error."""
        self.outer.fail(error)


class Placed(Relay):
    """Passes the batches of a part of a call on, with the positions of the whole.

    Args:
        outer: the stream of the whole.
        places: for each text or pair of the part, all its positions in the whole.
    """

    def __init__(self, outer: Stream, places: list[list[int]]) -> None:
        super().__init__(outer)
        self._places = places

    def put(self, batch: Batch) -> None:
        """Pass a batch on to all positions of its texts."""
        self.outer.put(batch.at(self._places))

    def fail(self, error: BaseException) -> None:
        """End the outer stream with an error about the whole."""
        self.outer.fail(error.at(self._places) if isinstance(error, BGEError) else error)
