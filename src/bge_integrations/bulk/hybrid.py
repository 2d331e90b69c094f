"""Two rankings become one: by a weighted sum of scores, or by the ranks alone (reciprocal rank fusion)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from ..core.encoder import Vectors
from ..errors import ConfigError
from .part import Part

__all__ = ["Best", "Fusion", "Hybrid", "merged", "top"]

Fusion = Literal["sum", "rrf"]
Best: TypeAlias = tuple[Any, Any]
"""Scores and row numbers, each of shape (queries, at most k), best first."""

_WEIGHTS = {"sum": (0.4, 0.2), "rrf": (1.0, 1.0)}  # 0.4 and 0.2: bge-m3's model card
_RANK = 60  # https://plg.uwaterloo.ca/~gvcormac/cormacksigir09-rrf.pdf
_DEPTH = 100


@dataclass(frozen=True)
class Hybrid:
    """How dense and sparse scores are combined.

    Attributes:
        fusion: ``"sum"`` adds the weighted scores; ``"rrf"`` adds ``weight / (60 + rank)`` of both rankings.
        weights: of dense and of sparse.

    Raises:
        ConfigError: no such fusion, or the weights are no two numbers of at least 0.
    """

    fusion: Fusion = "sum"
    weights: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.fusion not in get_args(Fusion):
            raise ConfigError(f"fusion must be one of {', '.join(get_args(Fusion))}, not {self.fusion!r}")
        try:
            dense, sparse = map(float, _WEIGHTS[self.fusion] if self.weights is None else self.weights)
        except (TypeError, ValueError):
            dense = sparse = -1.0
        if not (isfinite(dense + sparse) and min(dense, sparse) >= 0 < dense + sparse):
            raise ConfigError(
                f"weights must be two numbers of at least 0, for dense and sparse scores, not {self.weights!r}"
            )
        object.__setattr__(self, "weights", (dense, sparse))

    def search(
        self, parts: Iterable[Part], queries: Vectors, sparse: Sequence[dict[int, float]], vocabulary: int, k: int
    ) -> Best:
        """Return the best rows of all parts, read one after the other.

        Args:
            parts: with dense and sparse vectors.
            queries: their dense vectors.
            sparse: their sparse vectors.
            vocabulary: token ids are below it.
            k: rows per query.
        """
        dense_weight, sparse_weight = self.weights or (0.0, 0.0)

        def scored(part: Part) -> tuple[Vectors, Vectors]:
            assert part.sparse is not None
            return queries @ part.vectors.T, part.sparse.scores(sparse, vocabulary)

        if self.fusion == "sum":
            sums = ((dense_weight * dense + sparse_weight * words,) for dense, words in map(scored, parts))
            return _best(sums, len(queries), 1, k)[0]
        depth = max(_DEPTH, 10 * k)
        by_dense, by_sparse = _best(map(scored, parts), len(queries), 2, depth)
        return _fused([(by_dense, dense_weight), (by_sparse, sparse_weight)], k)


def _best(scores: Any, queries: int, rankings: int, k: int) -> list[Best]:
    """Return the best rows of each ranking."""
    best: list[Best] = [(np.empty((queries, 0), np.float32), np.empty((queries, 0), np.int64))] * rankings
    row = 0
    for found in scores:
        for number, each in enumerate(found):
            values, places = top(each, min(k, each.shape[1]))
            best[number] = merged(best[number], (values, places + row), k)
        row += found[0].shape[1]
    return best


def _fused(rankings: Sequence[tuple[Best, float]], k: int) -> Best:
    queries = len(rankings[0][0][0])
    fused: list[list[tuple[float, int]]] = []
    for query in range(queries):
        sums: dict[int, float] = {}
        for place, ((scores, rows), weight) in enumerate(rankings):
            for rank, (score, row) in enumerate(zip(scores[query].tolist(), rows[query].tolist(), strict=True), 1):
                if place == 0 or score > 0:  # without a common word there is no rank
                    sums[row] = sums.get(row, 0.0) + weight / (_RANK + rank)
        fused.append(sorted(((-score, row) for row, score in sums.items()))[:k])
    width = min(map(len, fused), default=0)
    rows = np.array([[row for _, row in each[:width]] for each in fused], np.int64).reshape(queries, width)
    scores = np.array([[-score for score, _ in each[:width]] for each in fused], np.float64).reshape(queries, width)
    return scores, rows


def top(scores: Any, k: int) -> Best:
    """Return the k best of each line of scores, and their places, in no order; among equals the earlier places."""
    count = scores.shape[1]
    if k < count:
        places = np.argpartition(scores, count - k, axis=1)[:, count - k :]  # the first of them is the k-th best
        tied = (scores >= np.take_along_axis(scores, places[:, :1], axis=1)).sum(axis=1) > k
        if tied.any():  # sorting every line takes far longer
            places[tied] = np.argsort(-scores[tied], axis=1, kind="stable")[:, :k]
    else:
        places = np.broadcast_to(np.arange(count), scores.shape)
    return np.take_along_axis(scores, places, axis=1), places


def merged(first: Best, second: Best, k: int) -> Best:
    """Return the k best of two, best first; among equals the earlier row comes first."""
    scores, rows = (np.concatenate(pair, axis=1) for pair in zip(first, second, strict=True))
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
