"""Near-duplicates among the rows of shards, block by block, so that memory does not grow with the vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.encoder import Vectors
from ..errors import ConfigError
from ..extras import require
from .folder import check_float, shard_files
from .formats import read_part

__all__ = ["Duplicate", "DuplicateGroup", "near_duplicates"]

_PIECE = 2048
_BLOCK = 8192  # rows that are compared with all before them in one pass over the shards
_PROBED = 8  # cells of an approximate comparison
_PER_CELL = 40  # rows that a cell is placed by; FAISS warns of fewer than 39
# Takes leaders so far, the first row of a block, the block, and its best cosines and their leaders to fill in.
Earlier = Callable[
    [NDArray[np.int64], int, Vectors, NDArray[np.float32], NDArray[np.int64]],
    None,
]


@dataclass(frozen=True)
class Duplicate:
    """A row that is a near-duplicate, or the first of its group.

    Attributes:
        row: its number in the shards, from 0.
        id: of the row.
        text: of the row.
        score: cosine with the group's representative; 1 for itself.
    """

    row: int
    id: str | int
    text: str
    score: float = 1.0


@dataclass(frozen=True)
class DuplicateGroup:
    """Rows that are near one row.

    Attributes:
        representative: the first of them in the input: the one to keep.
        duplicates: the others, in the order of the input.
    """

    representative: Duplicate
    duplicates: tuple[Duplicate, ...]


def near_duplicates(
    folder: str | Path,
    *,
    above: float = 0.95,
    approximate: bool = False,
    on_rows: Callable[[int], None] | None = None,
) -> list[DuplicateGroup]:
    """Return groups of rows whose vectors are nearly the same, the largest group first.

    Rows are taken in the order of the input. One whose cosine with an earlier representative is at least ``above``
    joins the nearest of them, else it is a representative itself: every duplicate is near its representative, and no
    two representatives are near each other. Groups of one are left out. All pairs that matter are compared, so time
    grows with the square of the rows; beside blocks of vectors, memory holds 12 bytes a row and the rows that are
    returned. ``approximate`` looks for a representative among the rows of a few cells of an index only: a duplicate may
    be missed and then stands as a representative, but what is returned is near. benchmarks/dups.py measures both.

    Args:
        folder: of ``embed_files``.
        above: least cosine of duplicates, over 0 and at most 1. What is near depends on the model: look at some groups.
        approximate: compare by an index of FAISS, which holds the vectors of all representatives.
        on_rows: called with the number of rows compared so far.

    Raises:
        ConfigError: no shards, one cannot be read, or ``above`` is out of range.
        MissingExtraError: ``approximate`` without FAISS.

    Example:
        >>> near_duplicates("out/", above=0.97)[0].representative.text  # doctest: +SKIP
        'ls lists a folder'
    """
    if not 0 < above <= 1:
        raise ConfigError(f"above must be over 0 and at most 1, not {above!r}")
    check_float(folder, "a comparison of all rows")
    files = shard_files(folder)
    earlier = _index(files) if approximate else partial(_compare_with_earlier, files)
    leaders, scores = _leaders(files, above, earlier, _PIECE if approximate else _BLOCK, on_rows)
    followers = np.flatnonzero(leaders != np.arange(len(leaders)))
    wanted = np.unique(np.concatenate([followers, leaders[followers]]))
    groups: dict[int, list[Duplicate]] = {}
    for row, key, text in _rows(files, wanted):
        groups.setdefault(int(leaders[row]), []).append(Duplicate(row, key, text, float(scores[row])))
    found = [DuplicateGroup(first, tuple(others)) for first, *others in groups.values()]
    return sorted(found, key=lambda group: -len(group.duplicates))


def _leaders(
    files: Sequence[Path], above: float, earlier: Earlier, size: int, on_rows: Callable[[int], None] | None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return for each row its representative (often itself) and the cosine with it."""
    least = above - 1e-6  # rows of the same text have a cosine of 1 but for rounding
    leaders, scores = np.empty(0, np.int64), np.empty(0, np.float32)
    for start, block in _blocks(files, size):
        best, leader = np.full(len(block), -1, np.float32), np.full(len(block), -1, np.int64)
        if start:
            earlier(leaders, start, block, best, leader)
        near = best >= least
        leader[~near] = -1
        _compare_within(start, block, least, best, leader)
        leaders, scores = np.concatenate([leaders, leader]), np.concatenate([scores, np.minimum(best, 1)])
        if on_rows:
            on_rows(len(leaders))
    return leaders, scores


def _compare_with_earlier(
    files: Sequence[Path],
    leaders: NDArray[np.int64],
    end: int,
    block: Vectors,
    best: NDArray[np.float32],
    leader: NDArray[np.int64],
) -> None:
    for first, piece in _blocks(files, _PIECE):
        if first >= end:
            return
        rows = np.arange(first, min(first + len(piece), end))
        rows = rows[leaders[rows] == rows]
        if not len(rows):
            continue
        cosines = block @ piece[rows - first].T
        nearest = cosines.argmax(1)
        values = cosines[np.arange(len(block)), nearest]
        better = values > best
        best[better], leader[better] = values[better], rows[nearest[better]]


def _index(files: Sequence[Path]) -> Earlier:
    """Return a function that compares a block with earlier representatives by FAISS's index of cells (IVF)."""
    faiss = require("faiss", install="faiss-cpu", purpose="approximate=True")
    sample, rows = _sample(files)
    if not rows:
        return partial(_compare_with_earlier, files)
    # Some rows a cell, of which a query looks into a few: near-duplicates are in the same one or in a neighbour.
    cells, width = max(1, len(sample) // _PER_CELL), sample.shape[1]
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, cells, faiss.METRIC_INNER_PRODUCT)
    index.train(sample)
    index.nprobe = _PROBED
    # The block before this one becomes known with its leaders; its vectors are kept until then.
    held: list[tuple[int, Vectors]] = [next(_blocks(files, _PIECE))]

    def compare(
        leaders: NDArray[np.int64], start: int, block: Vectors, best: NDArray[np.float32], leader: NDArray[np.int64]
    ) -> None:
        first, vectors = held.pop()
        numbers = np.arange(first, start)
        chosen = leaders[first:start] == numbers
        index.add_with_ids(np.ascontiguousarray(vectors[chosen]), numbers[chosen])
        held.append((start, block))
        scores, found = index.search(np.ascontiguousarray(block), 1)
        best[:], leader[:] = np.where(found[:, 0] < 0, -1, scores[:, 0]), found[:, 0]

    return compare


def _sample(files: Sequence[Path]) -> tuple[Vectors, int]:
    """Return rows from all over the shards, which the index learns its cells from, and how many rows there are."""
    rows = sum(len(piece.ids) for path in files for piece in read_part(path, _PIECE, vectors=False))
    step = max(1, int(rows**0.5 / (2 * _PER_CELL)))  # for 2 sqrt(rows) cells
    taken = [block[-start % step :: step] for start, block in _blocks(files, _BLOCK)]
    return np.ascontiguousarray(np.concatenate(taken)) if taken else np.empty((0, 0), np.float32), rows


def _compare_within(
    start: int, block: Vectors, least: float, best: NDArray[np.float32], leader: NDArray[np.int64]
) -> None:
    """Compare the rows of a block with each other, in order; a row without a representative becomes one."""
    for first in range(0, len(block), _PIECE):
        cosines = block[first : first + _PIECE] @ block[first:].T
        near = cosines >= least
        for i in range(len(cosines)):
            row = first + i
            if leader[row] >= 0:
                continue
            leader[row], best[row] = start + row, 1
            after = first + i + 1 + np.flatnonzero(near[i, i + 1 :])
            closer = after[(cosines[i, after - first] > best[after]) | (leader[after] < 0)]
            leader[closer], best[closer] = start + row, cosines[i, closer - first]


def _blocks(files: Sequence[Path], size: int) -> Iterator[tuple[int, Vectors]]:
    """Yield the vectors of all shards in blocks of ``size`` rows, and the number of the first row of each."""
    start, held, parts = 0, 0, list[Vectors]()
    for path in files:
        for piece in read_part(path, _PIECE, rows=False):
            parts.append(np.asarray(piece.vectors))
            held += len(piece.vectors)
            if held >= size:
                yield start, np.concatenate(parts)
                start, held, parts = start + held, 0, []
    if held:
        yield start, np.concatenate(parts)


def _rows(files: Sequence[Path], wanted: NDArray[np.int64]) -> Iterator[tuple[int, Any, str]]:
    chosen, row = set(wanted.tolist()), 0
    for path in files if chosen else ():
        for piece in read_part(path, _PIECE, vectors=False):
            for key, text in zip(piece.ids, piece.texts, strict=True):
                if row in chosen:
                    yield row, key, text
                row += 1
