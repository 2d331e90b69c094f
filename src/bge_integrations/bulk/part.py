"""Rows that were read from a shard, and how their sparse vectors are kept: one after the other, in three arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..core.encoder import Vectors
from ..core.token_outputs import SparseVector, sparse_arrays

__all__ = ["Part", "SparseRows"]


@dataclass(frozen=True)
class SparseRows:
    """Sparse vectors of some rows; iterating yields ids and weights of each.

    Attributes:
        starts: int64, shape (n + 1,): the first is 0; row i's numbers are from ``starts[i]`` up to ``starts[i + 1]``.
        indices: uint32, token ids, ascending within a row.
        values: float32, their weights, above 0.
    """

    starts: NDArray[np.int64]
    indices: NDArray[np.uint32]
    values: NDArray[np.float32]

    @classmethod
    def of(cls, rows: Sequence[SparseVector]) -> SparseRows:
        """Return dicts as arrays."""
        arrays = [sparse_arrays(row) for row in rows]
        return cls.from_lists([ids for ids, _ in arrays], [weights for _, weights in arrays])

    @classmethod
    def from_lists(cls, indices: Sequence[ArrayLike], values: Sequence[ArrayLike]) -> SparseRows:
        """Return lists of ids and of weights as arrays."""
        return cls(
            np.cumsum([0, *(np.size(row) for row in indices)], dtype=np.int64),
            np.concatenate([np.empty(0, np.uint32), *(np.asarray(row, np.uint32) for row in indices)]),
            np.concatenate([np.empty(0, np.float32), *(np.asarray(row, np.float32) for row in values)]),
        )

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __iter__(self) -> Iterator[tuple[NDArray[np.uint32], NDArray[np.float32]]]:
        for row in range(len(self)):
            one = self.part(row, row + 1)
            yield one.indices, one.values

    def part(self, first: int, last: int) -> SparseRows:
        """Return the rows from ``first`` up to ``last``."""
        starts = self.starts[first : last + 1]
        numbers = slice(int(starts[0]), int(starts[-1]))
        return SparseRows(starts - starts[0], self.indices[numbers], self.values[numbers])

    @classmethod
    def joined(cls, parts: Sequence[SparseRows]) -> SparseRows:
        """Return the rows of all parts, one after the other."""
        lengths = np.concatenate([np.empty(0, np.int64), *(np.diff(part.starts) for part in parts)])
        return cls(
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            np.concatenate([np.empty(0, np.uint32), *(part.indices for part in parts)]),
            np.concatenate([np.empty(0, np.float32), *(part.values for part in parts)]),
        )

    def scores(self, queries: Sequence[Mapping[int, float]], vocabulary: int) -> NDArray[np.float32]:
        """Return for each query (rows) and each row (columns) the sum of products over their common ids."""
        rows = np.repeat(np.arange(len(self)), np.diff(self.starts))
        scores = np.empty((len(queries), len(self)), np.float32)
        weights = np.zeros(vocabulary, np.float32)
        for line, query in zip(scores, queries, strict=True):
            ids, wanted = sparse_arrays(query)
            weights[ids] = wanted
            line[:] = np.bincount(rows, self.values * weights[self.indices], len(self))
            weights[ids] = 0
        return scores


class _Part(NamedTuple):
    ids: list[Any]
    texts: list[str]
    vectors: Vectors
    kept: dict[str, list[Any]]


class Part(_Part):
    """Rows of one shard that were read: ``for ids, texts, vectors, kept in read_shards(folder)``.

    Attributes:
        ids: strings, or row numbers where the job named no column of ids.
        texts: what was embedded.
        vectors: float32, shape (n, dimensions), rows of length 1 (of float16 precision where the shard has that); in a
            folder of ``quantise_files`` its codes, int8 or uint8.
        kept: the values of each kept column.
        sparse: sparse vectors, or None where the shard has none or they were not read; not among the four.
    """

    sparse: SparseRows | None

    def __new__(
        cls,
        ids: list[Any],
        texts: list[str],
        vectors: Vectors,
        kept: dict[str, list[Any]],
        sparse: SparseRows | None = None,
    ) -> Self:
        """Make a tuple of four that also has ``sparse``."""
        part = super().__new__(cls, ids, texts, vectors, kept)
        part.sparse = sparse
        return part

    def take(self, rows: Sequence[int]) -> Part:
        """Return some of the rows, in the order of their numbers here."""
        kept = {name: [values[i] for i in rows] for name, values in self.kept.items()}
        sparse = self.sparse and SparseRows.joined([self.sparse.part(i, i + 1) for i in rows])
        vectors = self.vectors[np.asarray(rows, np.int64)]
        return Part([self.ids[i] for i in rows], [self.texts[i] for i in rows], vectors, kept, sparse)
