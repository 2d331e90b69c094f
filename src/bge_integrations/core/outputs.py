"""What a model gives for a text: the shape of its rows, how they are checked, and how one row is stored.

Rows of every output are a numpy array whose first axis is the texts, so that engines, the scheduler and the cache
select, repeat and place rows without knowing what is in them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import BadAnswerError

__all__ = ["Dense", "Output", "Rows", "Score", "Vectors", "check_scores", "check_vectors"]

Vectors: TypeAlias = NDArray[np.float32]
"""float32, shape (n, dimensions), rows of length 1, in the order of the texts."""

Rows: TypeAlias = NDArray[Any]
"""One row per text; its type is the output's affair."""


class Output(ABC):
    """One kind of output."""

    name: ClassVar[str]

    @property
    def names(self) -> tuple[str, ...]:
        """What is in a row; its own name where it is no combination."""
        return (self.name,)

    @abstractmethod
    def empty(self, count: int) -> Rows:
        """Return an array for the rows of ``count`` texts."""

    @abstractmethod
    def check(self, rows: object, count: int) -> Rows:
        """Return rows as the output promises them, or say what is wrong.

        Raises:
            BadAnswerError: ``positions`` are those of the rows concerned.
        """

    @abstractmethod
    def pack(self, row: Any) -> bytes:
        """Return one row as bytes."""

    @abstractmethod
    def unpack(self, packed: Sequence[bytes | memoryview]) -> Rows:
        """Return rows from their bytes."""

    @abstractmethod
    def fits(self, size: int) -> bool:
        """Tell whether a packed row of ``size`` bytes can be of this output."""


@dataclass(frozen=True)
class Dense(Output):
    """One vector of length 1 per text."""

    dimensions: int
    name: ClassVar[str] = "dense"

    def empty(self, count: int) -> Vectors:
        """Return float32 of shape (count, dimensions), not filled."""
        return np.empty((count, self.dimensions), np.float32)

    def check(self, rows: object, count: int) -> Vectors:
        """Return rows as unit vectors.

        Raises:
            BadAnswerError: as ``check_vectors``.
        """
        return check_vectors(rows, count=count, dimensions=self.dimensions)

    def pack(self, row: Vectors) -> bytes:
        """Return little-endian float32."""
        return row.astype("<f4", copy=False).tobytes()

    def unpack(self, packed: Sequence[bytes | memoryview]) -> Vectors:
        """Return the vectors of little-endian float32."""
        flat = np.frombuffer(b"".join(packed), "<f4")
        return flat.reshape(len(packed), self.dimensions).astype(np.float32)

    def fits(self, size: int) -> bool:
        """Tell whether so many bytes are one vector."""
        return size == 4 * self.dimensions


@dataclass(frozen=True)
class Score(Output):
    """One logit per pair of query and passage, as float32."""

    name: ClassVar[str] = "score"

    def empty(self, count: int) -> Rows:
        """Return float32 of shape (count,), not filled."""
        return np.empty(count, np.float32)

    def check(self, rows: object, count: int) -> Rows:
        """Return logits.

        Raises:
            BadAnswerError: a wrong count, or what is no finite number.
        """
        return check_scores(rows, count).astype(np.float32)

    def pack(self, row: Any) -> bytes:
        """Return one little-endian float32."""
        return np.array(row, "<f4").tobytes()

    def unpack(self, packed: Sequence[bytes | memoryview]) -> Rows:
        """Return the logits of little-endian float32."""
        return np.frombuffer(b"".join(packed), "<f4").astype(np.float32)

    def fits(self, size: int) -> bool:
        """Tell whether so many bytes are one logit."""
        return size == 4


def check_scores(rows: object, count: int) -> NDArray[np.float64]:
    """Return scores, on whatever scale, as float64.

    Raises:
        BadAnswerError: a wrong count, or what is no finite number; ``positions`` are those concerned.
    """
    if isinstance(rows, Sized) and len(rows) != count:
        raise BadAnswerError(f"{len(rows)} scores were returned for {count} passages", positions=range(count))
    numbers = rows.tolist() if isinstance(rows, np.ndarray) and rows.dtype.kind not in "fiu" else rows
    if isinstance(numbers, list):
        numbers = [x if isinstance(x, (int, float)) and not isinstance(x, bool) else np.nan for x in numbers]
    array = np.asarray(numbers, np.float64)
    if array.shape != (count,):
        raise BadAnswerError("the scores in the response are not one number each", positions=range(count))
    bad = np.flatnonzero(~(np.abs(array) < _LARGEST_LOGIT)).tolist()
    if bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise BadAnswerError(f"score {bad[0]} is not a finite number{more}", positions=bad)
    return array


_LARGEST_LOGIT = 1e30  # float32 ends at 3e38


def check_vectors(rows: object, *, count: int, dimensions: int) -> Vectors:
    """Return rows as unit vectors, or say what is wrong with them.

    Norms are computed in float64: the squares of float32 numbers under 1e-20 or over 1e19 leave float32's range.

    Raises:
        BadAnswerError: wrong count or dimension, not finite, or zero; ``positions`` are those of the rows concerned,
            or all where the rows cannot be told apart.
    """
    everything = range(count)
    try:
        array = np.asarray(rows)
    except ValueError:
        array = np.empty((0,), object)
    if isinstance(rows, Sized) and len(rows) != count:
        raise BadAnswerError(f"{len(rows)} vectors were returned for {count} texts", positions=everything)
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        wrong = _odd_rows(rows, dimensions)
        raise BadAnswerError(
            f"the vectors in the response are not {dimensions} numbers each", positions=wrong or everything
        )
    if array.shape[1] != dimensions:
        raise BadAnswerError(
            f"vectors of {array.shape[1]} dimensions were returned, the model has {dimensions}", positions=everything
        )
    return _normalized(array)


def _normalized(array: NDArray[Any]) -> Vectors:
    vectors = array if array.dtype == np.float32 else _narrowed(array)
    # After a forward pass, NumPy's code is no longer in the CPU's caches, and each call costs a single query several
    # microseconds: as few as possible. einsum raises no warning on overflow.
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    if all(1e-15 < norm < 1e18 for norm in norms.tolist()):
        return cast("Vectors", vectors / norms[:, None])
    wide = vectors.astype(np.float64)
    exact = np.linalg.norm(wide, axis=1)
    bad = np.flatnonzero(~np.isfinite(exact) | (exact == 0)).tolist()
    if bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise BadAnswerError(f"vector {bad[0]} is not finite or is zero{more}", positions=bad)
    return cast("Vectors", (wide / exact[:, None]).astype(np.float32))


def _narrowed(array: NDArray[Any]) -> Vectors:
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _odd_rows(rows: object, dimensions: int) -> list[int]:
    def odd(row: object) -> bool:
        if not isinstance(row, Sequence) or len(row) != dimensions:
            return True
        return any(isinstance(x, bool) or not isinstance(x, (int, float)) for x in row)

    return [i for i, row in enumerate(rows) if odd(row)] if isinstance(rows, Sequence) else []
