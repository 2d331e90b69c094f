"""Which rows shards hold already, and where the vector of a text is: by digests, about 150 bytes a row in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.encoder import Vectors
from .formats import read_part
from .part import SparseRows

__all__ = ["Known", "id_numbers", "row_digests", "text_digests"]

_PIECE = 4096
_DIGEST = "S16"


def text_digests(texts: Iterable[str]) -> list[bytes]:
    """Return a digest of each text."""
    return [hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts]


def row_digests(ids: Sequence[Any], texts: Sequence[str], kept: Sequence[Sequence[Any]]) -> list[bytes]:
    """Return a digest of each row.

    Args:
        ids: of the rows.
        texts: of the rows.
        kept: the values of each kept column, as they are read from a shard exactly.
    """
    import orjson

    return [
        hashlib.blake2b(orjson.dumps(row, default=str, option=orjson.OPT_NON_STR_KEYS), digest_size=16).digest()
        for row in zip(ids, texts, *kept, strict=True)
    ]


def id_numbers(ids: Iterable[str | int]) -> NDArray[np.int64]:
    """Return a number for each id: equal ones for equal ids, within one process."""
    return np.fromiter(map(hash, ids), np.int64)


class Known:
    """The rows of shards.

    Args:
        shards: whose rows are known.
        others: shards that give vectors of texts as well, but no rows.
        truncated: of each of ``shards``, which rows had texts that were truncated.

    Attributes:
        ids: a number for the id of each row.
        present: which rows were seen by ``match``.
        truncated: which rows had texts that were truncated.
    """

    def __init__(self, shards: Sequence[Path], others: Sequence[Path], truncated: Sequence[Sequence[int]]) -> None:
        self.shards, self._files = shards, [*shards, *others]
        rows, texts, ids = (list[NDArray[Any]]() for _ in range(3))
        self._starts = [0]
        for number, path in enumerate(self._files):
            end = self._starts[-1]
            for part in read_part(path, _PIECE, vectors=False, exact=True):
                end += len(part.ids)
                texts.append(np.array(text_digests(part.texts), _DIGEST))
                if number < len(shards):
                    rows.append(np.array(row_digests(part.ids, part.texts, list(part.kept.values())), _DIGEST))
                    ids.append(id_numbers(part.ids))
            self._starts.append(end)
        self.ids = np.concatenate([np.empty(0, np.int64), *ids])
        self._rows, self._row_order = _sorted(rows)
        self._texts, self._text_order = _sorted(texts)
        self._taken = np.zeros(len(self.ids), np.int32)
        self.present = np.zeros(len(self.ids), bool)
        self.truncated = np.zeros(self._starts[-1], bool)
        for start, places in zip(self._starts, truncated, strict=False):
            self.truncated[start + np.asarray(places, np.int64)] = True

    def match(self, digests: Sequence[bytes]) -> list[bool]:
        """Tell which rows are there, each as often as it is there."""
        wanted = np.array(digests, _DIGEST)
        first, last = (np.searchsorted(self._rows, wanted, side) for side in ("left", "right"))
        found = []
        for begin, end in zip(first.tolist(), last.tolist(), strict=True):
            there = begin < end and begin + self._taken[begin] < end
            if there:
                self.present[self._row_order[begin + self._taken[begin]]] = True
                self._taken[begin] += 1
            found.append(bool(there))
        return found

    def find(self, digests: Sequence[bytes]) -> NDArray[np.int64]:
        """Return for each text the number of a row that has its vector, or -1."""
        wanted = np.array(digests, _DIGEST)
        if not len(self._texts) or not len(wanted):
            return np.full(len(wanted), -1, np.int64)
        places = np.minimum(np.searchsorted(self._texts, wanted), len(self._texts) - 1)
        return np.where(self._texts[places] == wanted, self._text_order[places], -1)

    def is_unchanged(self, shard: int) -> bool:
        """Tell whether all rows of a shard were seen."""
        return bool(self.present[self._starts[shard] : self._starts[shard + 1]].all())

    def left(self, shard: int) -> Iterator[tuple[int, Any, str, tuple[Any, ...]]]:
        """Yield place, id, text and kept values of the rows of a shard that were seen."""
        place = self._starts[shard]
        for part in read_part(self._files[shard], _PIECE, vectors=False, exact=True):
            columns = list(part.kept.values())
            for i, (key, text) in enumerate(zip(part.ids, part.texts, strict=True)):
                if self.present[place + i]:
                    yield place + i - self._starts[shard], key, text, tuple(values[i] for values in columns)
            place += len(part.ids)

    def vectors(self, numbers: NDArray[np.int64], dimensions: int, *, sparse: bool) -> tuple[Vectors, list[SparseRows]]:
        """Return the vectors of rows in the order of their numbers; sparse ones in a list of one row each."""
        dense = np.empty((len(numbers), dimensions), np.float32)
        words: dict[int, SparseRows] = {}
        files = np.searchsorted(self._starts, numbers, "right") - 1
        for file in np.unique(files).tolist():
            start = self._starts[file]
            for part in read_part(self._files[file], _PIECE, rows=False, sparse=sparse):
                places = np.flatnonzero((start <= numbers) & (numbers < start + len(part.vectors)))
                dense[places] = part.vectors[numbers[places] - start]
                if part.sparse is not None:
                    rows = (numbers[places] - start).tolist()
                    words |= {
                        place: part.sparse.part(row, row + 1) for place, row in zip(places.tolist(), rows, strict=True)
                    }
                start += len(part.vectors)
        return dense, [words[i] for i in range(len(numbers))] if sparse else []


def _sorted(pieces: list[NDArray[Any]]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return digests in order, and at which place each was; equal ones in the order of the shards."""
    found = np.concatenate([np.empty(0, _DIGEST), *pieces])
    order = np.argsort(found, kind="stable")
    return found[order], order
