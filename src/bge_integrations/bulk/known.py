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
from .rows import SHARD_CHARACTERS, count_characters

__all__ = ["Known", "id_numbers", "row_digests", "text_digests"]

_PIECE = 4096
_DIGEST = "S16"  # NumPy drops NULs at the end, but of both sides of a comparison
_SMALL = 8  # shards of less than half the size, before they are merged


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
        truncated: of each of ``shards``, and of ``others`` as far as it is known, which rows had texts that were
            truncated.

    Attributes:
        ids: a number for the id of each row.
        present: which rows were seen by ``match`` and stay where they are.
        moved: which rows were seen, and come behind all others.
        truncated: which rows had texts that were truncated.
    """

    def __init__(self, shards: Sequence[Path], others: Sequence[Path], truncated: Sequence[Sequence[int]]) -> None:
        self.shards, self._files = shards, [*shards, *others]
        rows, texts, ids = (list[NDArray[Any]]() for _ in range(3))
        self._starts, self._characters = [0], [0] * len(shards)
        for number, path in enumerate(self._files):
            end = self._starts[-1]
            for part in read_part(path, _PIECE, vectors=False, exact=True):
                end += len(part.ids)
                texts.append(np.array(text_digests(part.texts), _DIGEST))
                if number < len(shards):
                    rows.append(np.array(row_digests(part.ids, part.texts, list(part.kept.values())), _DIGEST))
                    ids.append(id_numbers(part.ids))
                    self._characters[number] += sum(map(count_characters, [part.texts, *part.kept.values()]))
            self._starts.append(end)
        self.ids = np.concatenate([np.empty(0, np.int64), *ids])
        self._rows, self._row_order = _sorted(rows)
        self._texts, self._text_order = _sorted(texts)
        self._matched = np.zeros(len(self.ids), np.int32)
        self.present, self.moved = np.zeros((2, len(self.ids)), bool)
        self._merged = set[int]()
        self.truncated = np.zeros(self._starts[-1], bool)
        for start, places in zip(self._starts, truncated, strict=False):
            self.truncated[start + np.asarray(places, np.int64)] = True

    def match(self, digests: Sequence[bytes]) -> NDArray[np.int64]:
        """Return for each row the number of an equal one, each as often as it is there, or -1."""
        wanted = np.array(digests, _DIGEST)
        first, last = (np.searchsorted(self._rows, wanted, side) for side in ("left", "right"))
        numbers = np.full(len(wanted), -1, np.int64)
        for i, (begin, end) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
            if begin < end and begin + self._matched[begin] < end:
                numbers[i] = self._row_order[begin + self._matched[begin]]
                self._matched[begin] += 1
        self.present[numbers[numbers >= 0]] = True
        return numbers

    def find(self, digests: Sequence[bytes]) -> NDArray[np.int64]:
        """Return for each text the number of a row that has its vector, or -1."""
        wanted = np.array(digests, _DIGEST)
        if not len(self._texts) or not len(wanted):
            return np.full(len(wanted), -1, np.int64)
        places = np.minimum(np.searchsorted(self._texts, wanted), len(self._texts) - 1)
        return np.where(self._texts[places] == wanted, self._text_order[places], -1)

    def is_unchanged(self, shard: int) -> bool:
        """Tell whether a shard stays as it is: all of its rows were seen, and it is not merged with others."""
        return shard not in self._merged and bool(self.present[self._starts[shard] : self._starts[shard + 1]].all())

    def merge_small(self, rows: int) -> None:
        """Have small shards written anew, together, where there are many of them.

        Args:
            rows: of a full shard; one of long texts is full before it has as many.
        """
        sizes = np.diff(self._starts).tolist()
        small = {
            shard
            for shard, characters in enumerate(self._characters)
            if sizes[shard] < rows / 2 and characters < SHARD_CHARACTERS / 2 and self.is_unchanged(shard)
        }
        if len(small) > _SMALL:
            self._merged |= small

    def move_last(self, ids: NDArray[np.int64], numbers: NDArray[np.int64]) -> bool:
        """Have the last row of each repeated id come last in the folder too, since a store keeps the last.

        In the folder, shards that stay come first, then what is left of the others, then new rows, then ``moved`` ones.

        Args:
            ids: a number for the id of each row of the inputs, in their order.
            numbers: what ``match`` returned for these rows.

        Returns:
            Whether an id is repeated.
        """
        order = np.argsort(ids, kind="stable")
        is_first = np.append(True, np.diff(ids[order]) != 0)[: len(ids)]
        if is_first.all():
            return False
        starts, rows = np.flatnonzero(is_first), len(self.ids)
        last = order[np.append(starts[1:], len(ids)) - 1]
        numbers = numbers.copy()
        while True:  # a row that moves takes the shard that it was in apart, which may move others
            stays = np.array([self.is_unchanged(shard) for shard in range(len(self.shards))], bool)
            places = np.arange(rows) + rows * ~np.repeat(stays, np.diff(self._starts)[: len(stays)])
            places = np.where(numbers < 0, 2 * rows + np.arange(len(ids)), np.append(places, 0)[numbers])
            early = last[places[last] < np.maximum.reduceat(places[order], starts)]
            if not len(early):
                return True
            self.present[numbers[early]], self.moved[numbers[early]] = False, True
            numbers[early] = -1

    def dropped(self, ids: NDArray[np.int64], new: NDArray[np.int64], numbers: NDArray[np.int64]) -> int:
        """Return how many rows are gone: neither their id is in the inputs nor, under a new id, their text.

        Args:
            ids: a number for the id of each row of the inputs.
            new: those of rows of new shards.
            numbers: what ``find`` returned for these.
        """
        starts = np.flatnonzero(np.append(True, self._texts[1:] != self._texts[:-1])[: len(self._texts)])
        counts = np.diff(np.append(starts, len(self._texts)))
        same = np.empty(len(self._texts), np.int64)  # the first row of the same text
        same[self._text_order] = np.repeat(self._text_order[starts], counts)
        gone = same[: len(self.ids)][~np.isin(self.ids, ids)]
        renamed = numbers[~np.isin(new, self.ids) & (numbers >= 0)]
        left = np.bincount(gone, minlength=len(same)) - np.bincount(renamed, minlength=len(same))
        return int(left[left > 0].sum())

    def rows_of(self, shard: int, rows: NDArray[np.bool_]) -> Iterator[tuple[int, Any, str, tuple[Any, ...]]]:
        """Yield place, id, text and kept values of some rows of a shard; ``rows`` says of each row whether."""
        place = self._starts[shard]
        if not rows[place : self._starts[shard + 1]].any():
            return
        for part in read_part(self._files[shard], _PIECE, vectors=False, exact=True):
            columns = list(part.kept.values())
            for i, (key, text) in enumerate(zip(part.ids, part.texts, strict=True)):
                if rows[place + i]:
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
    """Return the digests sorted, and the place that each had before; equal ones stay in the order of the shards."""
    found = np.concatenate([np.empty(0, _DIGEST), *pieces])
    order = np.argsort(found, kind="stable")
    return found[order], order
