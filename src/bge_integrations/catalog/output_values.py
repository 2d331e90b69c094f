"""Published values of bge-m3's sparse and multivector output, and of the scores that are made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["OutputValues", "PairScores", "SparseValues", "VectorValues", "output_values"]


@dataclass(frozen=True)
class SparseValues:
    """The token ids and weights of a text, all of them."""

    text: str
    weights: Mapping[int, float]
    source: str = ""


@dataclass(frozen=True)
class VectorValues:
    """What is known about the token vectors of a text.

    Attributes:
        text: as the model reads it.
        count: of the vectors: tokens without ``<s>``; None where it was not published.
        at: (row, component) to value; negative numbers count from the end.
        source: where the values were read.
    """

    text: str
    count: int | None
    at: Mapping[tuple[int, int], float]
    source: str = ""


@dataclass(frozen=True)
class PairScores:
    """Scores of each query (rows) for each passage (columns)."""

    queries: tuple[str, ...]
    passages: tuple[str, ...]
    dense: tuple[float, ...]
    sparse: tuple[float, ...]
    multivector: tuple[float, ...]
    source: str = ""


@dataclass(frozen=True)
class OutputValues:
    """What a file holds about outputs."""

    sparse: tuple[SparseValues, ...] = ()
    vectors: tuple[VectorValues, ...] = ()
    scores: tuple[PairScores, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.sparse or self.vectors or self.scores)


def output_values(data: Mapping[str, Any]) -> OutputValues:
    """Return the entries ``m3_sparse``, ``m3_colbert`` and ``m3_scores`` of a file; those of int8 copies are left out.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: they are not in that format.
    """
    sparse = [entry for entry in data.get("m3_sparse", ()) if "weights" in entry and not _is_int8(entry)]
    scores = [entry for entry in data.get("m3_scores", ()) if str(entry.get("order", "")).startswith("all pairs")]
    return OutputValues(
        tuple(SparseValues(entry["text"], _numbers(entry["weights"]), entry.get("source", "")) for entry in sparse),
        tuple(_vectors(entry) for entry in data.get("m3_colbert", ()) if not _is_int8(entry)),
        tuple(_scores(entry) for entry in scores),
    )


def _is_int8(entry: Mapping[str, Any]) -> bool:
    return "int8" in str(entry.get("arithmetic", ""))


def _numbers(weights: Mapping[str, Any]) -> dict[int, float]:
    return {int(token): float(weight) for token, weight in weights.items()}


def _vectors(entry: Mapping[str, Any]) -> VectorValues:
    at: dict[tuple[int, int], float] = {}
    for row, parts in entry.get("rows", {}).items():
        first, last = parts.get("first3", ()), parts.get("last3", ())
        at.update({(int(row), place): float(value) for place, value in enumerate(first)})
        at.update({(int(row), place - len(last)): float(value) for place, value in enumerate(last)})
    return VectorValues(str(entry["text"]), entry.get("vectors"), at, entry.get("source", ""))


def _scores(entry: Mapping[str, Any]) -> PairScores:
    dense, sparse, multivector = (tuple(map(float, entry[name])) for name in ("dense", "sparse", "colbert"))
    return PairScores(
        tuple(entry["queries"]), tuple(entry["passages"]), dense, sparse, multivector, entry.get("source", "")
    )
