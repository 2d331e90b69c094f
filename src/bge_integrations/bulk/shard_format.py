"""What a format of shards can do, and what the formats share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..core.encoder import Vectors
from .part import Part, SparseRows
from .rows import RESERVED, Columns, Row

__all__ = ["IDS", "NONE", "WEIGHTS", "Contents", "ShardFormat", "as_read", "make_part"]

IDS, WEIGHTS = "sparse_indices", "sparse_values"
NONE = np.empty((0, 0), np.float32)


@dataclass(frozen=True)
class Contents:
    """What shards are made of.

    Attributes:
        columns: names of text, id and kept columns in the input.
        stamp: of the encoder.
        half: float16 instead of float32.
        kinds: the Arrow type of each kept column; None for a string.
        named: whether ids are strings; else numbers of rows.
    """

    columns: Columns
    stamp: dict[str, Any]
    half: bool = False
    kinds: tuple[Any, ...] = ()
    named: bool = False


class ShardFormat(ABC):
    """How shards are written and read; the same rows and vectors give the same bytes."""

    ending: ClassVar[str]

    @abstractmethod
    def write(
        self, path: Path, rows: Sequence[Row], vectors: Any, contents: Contents, sparse: SparseRows | None = None
    ) -> None:
        """Write a shard; ``vectors`` have the type that they get in the file, sparse weights are float32.

        Raises:
            OSError: the disk is full; nothing of the shard stays.
        """

    @abstractmethod
    def read(self, path: Path, size: int, *, rows: bool, vectors: bool, sparse: bool, exact: bool) -> Iterator[Part]:
        """Yield a shard in pieces of at most ``size`` rows, of which only what is wanted is read."""

    @abstractmethod
    def stored(self, values: list[Any], kind: Any) -> list[Any]:
        """Return values of a kept column as they are read from a shard, exactly.

        Raises:
            ValueError: or TypeError or OverflowError: the shards' type does not hold one of them.
        """


def make_part(columns: dict[str, list[Any]], vectors: Vectors, sparse: SparseRows | None) -> Part:
    """Return what was read of a shard; ``columns`` are all but vectors, or none."""
    kept = {name: values for name, values in columns.items() if name not in RESERVED}
    return Part(columns.get("id", []), columns.get("text", []), vectors, kept, sparse)


def as_read(numbers: Any) -> Any:
    """Return floats as float32, and bytes, which are quantised, as they are."""
    return np.asarray(numbers) if numbers.dtype.itemsize == 1 else np.asarray(numbers, np.float32)
