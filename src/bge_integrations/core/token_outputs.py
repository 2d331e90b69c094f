"""What bge-m3 gives besides one dense vector: a weight per token id, a vector per token, and several at once.

Rows of several outputs are a structured array with one field per output, so that whoever carries rows (engines, the
scheduler, the cache) needs to know nothing of it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from ..catalog.records import ModelCard, OutputName
from ..errors import BadAnswerError, ConfigError, InputError
from .outputs import Dense, Output, Rows, Vectors, check_vectors

__all__ = [
    "Multivector",
    "Outputs",
    "Several",
    "Sparse",
    "SparseVector",
    "check_output_names",
    "max_sim",
    "output_of",
    "select",
    "sparse_arrays",
    "sparse_score",
]

SparseVector: TypeAlias = dict[int, float]
"""Token id to weight, weights above 0."""


@dataclass(frozen=True)
class Outputs:
    """A model's outputs for some texts, in their order; outputs that were not requested are None.

    Attributes:
        dense: float32, shape (n, dimensions), rows of length 1.
        sparse: for each text its token ids and their weights (above 0); a text may have none.
        multivector: for each text float32, shape (vectors, dimensions), rows of length 1.
    """

    dense: Vectors | None = None
    sparse: list[SparseVector] | None = None
    multivector: list[Vectors] | None = None

    @classmethod
    def of(cls, output: Output, rows: Rows) -> Outputs:
        """Return rows of an output in the form that users get."""
        if not isinstance(output, Several):
            return cls(dense=rows)
        held: dict[str, Any] = {
            name: np.ascontiguousarray(rows[name]) if name == "dense" else rows[name].tolist() for name in output.names
        }
        return cls(**held)


@dataclass(frozen=True)
class Sparse(Output):
    """One weight per token id; rows are dicts.

    Attributes:
        vocabulary: token ids are below it.
    """

    vocabulary: int
    name: ClassVar[str] = "sparse"

    def empty(self, count: int) -> Rows:
        """Return an array for ``count`` dicts."""
        return np.empty(count, object)

    def check(self, rows: object, count: int) -> Rows:
        """Return dicts of weights above 0.

        Raises:
            BadAnswerError: a wrong count, an id outside the vocabulary, or a weight that is negative or not finite.
        """
        checked = self.empty(count)
        for position, row in enumerate(_listed(rows, count, "sparse vectors")):
            checked[position] = self._checked(row, position)
        return checked

    def _checked(self, row: object, position: int) -> SparseVector:
        if not isinstance(row, Mapping):
            raise BadAnswerError(f"sparse vector {position} is not a mapping of ids to weights", positions=[position])
        try:
            ids, weights = np.array([*row], np.int64), np.array([*row.values()], np.float64)
        # Infinities, None and lists, which JSON can hold: reported below like ids out of range.
        except (TypeError, ValueError, OverflowError):
            ids, weights = np.array([-1]), np.array([0.0])
        wrong = (ids < 0) | (ids >= self.vocabulary)
        if wrong.any():
            raise BadAnswerError(
                f"sparse vector {position} has ids outside the model's vocabulary of {self.vocabulary:,} tokens",
                positions=[position],
            )
        if not ((weights >= 0) & (weights < _LARGEST)).all():
            raise BadAnswerError(
                f"sparse vector {position} has a weight that is negative or not finite", positions=[position]
            )
        kept = weights > 0
        return dict(zip(ids[kept].tolist(), weights[kept].tolist(), strict=True))

    def pack(self, row: SparseVector) -> bytes:
        """Return the ids in ascending order as little-endian uint32, then their weights as float32."""
        ids, weights = sparse_arrays(row)
        return ids.astype("<u4").tobytes() + weights.astype("<f4").tobytes()

    def unpack(self, packed: Sequence[bytes | memoryview]) -> Rows:
        """Return the dicts of packed rows."""
        rows = self.empty(len(packed))
        for position, row in enumerate(packed):
            half = len(row) // 2
            ids, weights = np.frombuffer(row[:half], "<u4"), np.frombuffer(row[half:], "<f4")
            rows[position] = dict(zip(ids.tolist(), weights.tolist(), strict=True))
        return rows

    def fits(self, size: int) -> bool:
        """Tell whether so many bytes are pairs of id and weight."""
        return size % 8 == 0


_LARGEST = 1e30  # float32 ends at 3e38


def sparse_arrays(row: Mapping[int, float]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return a sparse vector's ids, ascending, and their weights."""
    # Ascending, so that equal vectors have equal bytes.
    ids = np.fromiter(row, np.int64, len(row))
    order = np.argsort(ids)
    return ids[order], np.fromiter(row.values(), np.float32, len(row))[order]


@dataclass(frozen=True)
class Multivector(Output):
    """Some vectors of length 1 per text; rows are float32 arrays of shape (vectors, dimensions)."""

    dimensions: int
    name: ClassVar[str] = "multivector"

    def empty(self, count: int) -> Rows:
        """Return an array for ``count`` arrays."""
        return np.empty(count, object)

    def check(self, rows: object, count: int) -> Rows:
        """Return arrays of unit vectors.

        Raises:
            BadAnswerError: a wrong count, a text without vectors, or vectors that ``check_vectors`` refuses.
        """
        checked = self.empty(count)
        for position, row in enumerate(_listed(rows, count, "lists of vectors")):
            try:
                vectors = check_vectors(row, count=len(cast("Sized", row)), dimensions=self.dimensions)
            except (BadAnswerError, TypeError) as error:
                raise BadAnswerError(f"text {position}'s vectors: {error}", positions=[position]) from None
            if not len(vectors):
                raise BadAnswerError(f"text {position} has no token vectors", positions=[position])
            checked[position] = vectors
        return checked

    def pack(self, row: Vectors) -> bytes:
        """Return little-endian float32."""
        return row.astype("<f4", copy=False).tobytes()

    def unpack(self, packed: Sequence[bytes | memoryview]) -> Rows:
        """Return the arrays of little-endian float32."""
        rows = self.empty(len(packed))
        for position, row in enumerate(packed):
            rows[position] = np.frombuffer(row, "<f4").reshape(-1, self.dimensions).astype(np.float32)
        return rows

    def fits(self, size: int) -> bool:
        """Tell whether so many bytes are whole vectors."""
        return size > 0 and size % (4 * self.dimensions) == 0


def _listed(rows: object, count: int, what: str) -> Iterable[object]:
    if not isinstance(rows, (Sequence, np.ndarray)) or len(rows) != count:
        held = len(rows) if isinstance(rows, Sized) else "no list of"
        raise BadAnswerError(f"{held} {what} were returned for {count} texts", positions=range(count))
    return rows


@dataclass(frozen=True)
class Several(Output):
    """Some outputs of one forward pass; rows are a structured array with a field of each name."""

    parts: tuple[Output, ...]
    name: ClassVar[str] = "several"

    @cached_property
    def names(self) -> tuple[OutputName, ...]:
        """Names of the parts."""
        return cast("tuple[OutputName, ...]", tuple(part.name for part in self.parts))

    @cached_property
    def _dtype(self) -> np.dtype[Any]:
        def field(part: Output) -> tuple[Any, ...]:
            return (part.name, np.float32, (part.dimensions,)) if isinstance(part, Dense) else (part.name, object)

        return np.dtype([field(part) for part in self.parts])

    def empty(self, count: int) -> Rows:
        """Return a structured array for ``count`` texts."""
        return np.empty(count, self._dtype)

    def check(self, rows: object, count: int) -> Rows:
        """Return columns by name (what backends and hosts give) as rows, as each part promises them.

        Raises:
            BadAnswerError: a column is missing, or as each part's ``check``.
        """
        if not isinstance(rows, Mapping) or not set(self.names) <= set(rows):
            raise BadAnswerError(f"the response does not hold {', '.join(self.names)}", positions=range(count))
        # A column more than asked for is no error: heads on this machine always give the dense one.
        checked = self.empty(count)
        for part in self.parts:
            checked[part.name] = part.check(rows[part.name], count)
        return checked

    def pack(self, row: Any) -> bytes:
        """Return the bytes of each part, after their lengths as little-endian uint32."""
        packed = [part.pack(row[part.name]) for part in self.parts]
        return struct.pack(f"<{len(packed)}I", *map(len, packed)) + b"".join(packed)

    def unpack(self, packed: Sequence[bytes | memoryview]) -> Rows:
        """Return rows from their bytes."""
        rows = self.empty(len(packed))
        split = [self._split(row) for row in packed]
        for index, part in enumerate(self.parts):
            rows[part.name] = part.unpack([pieces[index] for pieces in split])
        return rows

    def _split(self, row: bytes | memoryview) -> list[bytes | memoryview]:
        head = struct.Struct(f"<{len(self.parts)}I")
        ends = np.cumsum([head.size, *head.unpack_from(row)]).tolist()
        return [row[start:end] for start, end in pairwise(ends)]

    def fits(self, size: int) -> bool:
        """Tell whether so many bytes can be the lengths and what follows; a checksum holds the rest."""
        return size >= 4 * len(self.parts) and size % 4 == 0


def select(rows: Rows, wanted: Output) -> Rows:
    """Return of the rows of several outputs those that are wanted, fewer or the same."""
    if not isinstance(wanted, Several):
        return np.ascontiguousarray(rows["dense"])
    selected = wanted.empty(len(rows))
    for name in wanted.names:
        selected[name] = rows[name]
    return selected


NAMES: tuple[OutputName, ...] = ("dense", "sparse", "multivector")


def check_output_names(names: Iterable[str]) -> tuple[OutputName, ...]:
    """Return names of outputs, each once and in one order.

    Raises:
        ConfigError: none, or no such output.
    """
    asked = list(names) if isinstance(names, Iterable) and not isinstance(names, str) else [names]
    unknown = [name for name in asked if name not in NAMES]
    if unknown or not asked:
        raise ConfigError(f"outputs must be some of {', '.join(NAMES)}, not {unknown[0] if unknown else 'none'!r}")
    return tuple(name for name in NAMES if name in asked)


def output_of(card: ModelCard, names: Iterable[str]) -> Output:
    """Return the output of these names, as this model gives it.

    Raises:
        ConfigError: none, or no such output.
    """
    checked = check_output_names(names)
    parts: dict[OutputName, Output] = {
        "dense": Dense(card.dimensions),
        "sparse": Sparse(card.vocabulary),
        "multivector": Multivector(card.dimensions),
    }
    return parts["dense"] if checked == ("dense",) else Several(tuple(parts[name] for name in checked))


def max_sim(query: Vectors, passage: Vectors) -> float:
    """Return bge-m3's score of two multivectors: the mean over the query's vectors of the largest dot product.

    Qdrant's MaxSim and vLLM's late interaction are sums: divide them by the number of the query's vectors.

    Args:
        query: shape (vectors, dimensions), rows of length 1.
        passage: likewise.

    Raises:
        InputError: one of them has no vectors.
    """
    if not (len(query) and len(passage)):
        raise InputError("a multivector without vectors has no score")
    return float((query @ passage.T).max(axis=1).mean())


def sparse_score(query: SparseVector, passage: SparseVector) -> float:
    """Return the sum over common token ids of the products of their weights."""
    fewer, more = sorted((query, passage), key=len)
    return sum(weight * more[token] for token, weight in fewer.items() if token in more)
