"""Exact search over the shards of a folder, by dense vectors or by both: all are looked at, none are kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from ..catalog import find_model
from ..catalog.records import ModelCard
from ..core.encoder import Encoder, Vectors, held_encoder
from ..errors import ConfigError, UnknownModelError
from ..load import Options, load_encoder
from ..stamps.stamp import check_stamp
from .folder import shard_files, stamp_of
from .formats import read_part
from .hybrid import Best, Hybrid, merged, top
from .part import Part
from .quantise import float_stamp, floats_of
from .quantised_shards import float_shards

_PIECE = 2048


@dataclass(frozen=True)
class Hit:
    """A row that was found.

    Attributes:
        score: cosine of the angle between query and row; in hybrid search the sum that ``Hybrid`` says.
        id: of the row.
        text: of the row.
        kept: its kept columns.
    """

    score: float
    id: str | int
    text: str
    kept: dict[str, Any] = field(default_factory=dict)


def search_files(
    folder: str | Path,
    queries: str | Sequence[str],
    encoder: Any = None,
    *,
    k: int = 10,
    hybrid: bool | Hybrid = False,
    rescore: int = 10,
) -> list[list[Hit]]:
    """Return the rows that are nearest to each query, exactly, best first.

    Shards are read piece by piece, so memory does not grow with the folder; FAISS does the counting where it is
    installed, else NumPy. Over quantised shards every row is scored by the query in full precision, and the best are
    scored again by the float shards where these are still there.

    Args:
        folder: of ``embed_files`` or ``quantise_files``.
        queries: questions without any instruction; they get the model's.
        encoder: an encoder or an adapter that holds one; made from the folder's stamp when None, on this machine or
            where ``BGE_PROVIDER`` and ``BGE_BASE_URL`` say.
        k: rows for each query.
        hybrid: search by dense and sparse vectors, which ``outputs=("dense", "sparse")`` wrote; a ``Hybrid`` says how
            their scores become one. Over quantised shards nothing is scored again then.
        rescore: over quantised shards, candidates per hit that the float shards score again; 0 leaves these unread.

    Returns:
        For each query, at most ``k`` hits. Scores by binary shards alone are cosines with vectors of signs, which are
        smaller than those with the vectors themselves.

    Raises:
        ConfigError: no shards, no ``encoder`` can be made from their stamp, or no sparse vectors in hybrid search.
        SpaceMismatchError: the encoder's vectors are of another space than the shards'.
        InputError: a query is blank.

    Example:
        >>> search_files("out/", "how do I list files?", k=3)[0][0].text  # doctest: +SKIP
        'ls lists a folder'
    """
    if k < 1 or rescore < 0:
        raise ConfigError(f"k must be at least 1 and rescore at least 0, not {k!r} and {rescore!r}")
    asked = [queries] if isinstance(queries, str) else list(queries)
    written = stamp_of(folder)
    shards = _Shards(shard_files(folder), written, float_shards(folder) if rescore else [], rescore)
    how = (hybrid if isinstance(hybrid, Hybrid) else Hybrid()) if hybrid else None
    if how and "sparse_space" not in written:
        raise ConfigError(f"the shards in {str(folder)!r} have no sparse vectors: embed with --outputs dense,sparse")
    if encoder is not None:
        check_stamp(float_stamp(written), encoder)
        return _ask(shards, held_encoder(encoder), asked, k, how)
    with encoder_of(folder) as made:
        return _ask(shards, made, asked, k, how)


class _Shards(NamedTuple):
    files: Sequence[Path]
    stamp: dict[str, Any]
    floats: Sequence[Path]  # that quantised ones were made of
    rescore: int

    def pieces(self, starts: list[int], *, sparse: bool = False) -> Iterator[Part]:
        """Yield all shards in pieces, and note at which row each shard starts."""
        row = 0
        for path in self.files:
            starts.append(row)
            for piece in read_part(path, _PIECE, rows=False, sparse=sparse):
                if len(piece.vectors):
                    yield Part(piece.ids, piece.texts, floats_of(piece.vectors, self.stamp), piece.kept, piece.sparse)
                row += len(piece.vectors)

    def rescored(self, queries: Vectors, starts: Sequence[int], best: Best, k: int) -> Best:
        """Return the k best of the rows that were found, by the vectors that theirs were made of."""
        # Sorted and once each: several queries find the same rows, and shards are read from front to back.
        numbers = np.unique(best[1])
        found = np.empty((len(numbers), queries.shape[1]), np.float32)
        for path, start, end in _with_rows(self.floats, starts, set(numbers.tolist())):
            row = start
            if path.suffix == ".npy":  # of which single rows are read
                first, last = np.searchsorted(numbers, [start, end])
                found[first:last] = np.load(path, mmap_mode="r")[numbers[first:last] - start]
                continue
            for piece in read_part(path, _PIECE, rows=False):
                first, last = np.searchsorted(numbers, [row, min(row + len(piece.vectors), end)])
                found[first:last] = piece.vectors[numbers[first:last] - row]
                row += len(piece.vectors)
        scores = np.einsum("qd,qkd->qk", queries, found[np.searchsorted(numbers, best[1])])
        return merged(_none(len(queries)), (scores, best[1]), k)


def _ask(shards: _Shards, encoder: Encoder, asked: list[str], k: int, how: Hybrid | None) -> list[list[Hit]]:
    starts: list[int] = []
    if how is None:
        vectors = encoder.encode(asked, role="query")
        best = nearest(shards.pieces(starts), vectors, k * shards.rescore if shards.floats else k)
        if shards.floats and best[1].size:
            best = shards.rescored(vectors, starts, best, k)
        return _hits(shards.files, starts, best)
    queries = encoder.encode_outputs(asked, role="query", outputs=("dense", "sparse"))
    assert queries.dense is not None
    assert queries.sparse is not None
    pieces = shards.pieces(starts, sparse=True)
    best = how.search(pieces, queries.dense, queries.sparse, encoder.card.vocabulary, k)
    return _hits(shards.files, starts, best)


def encoder_of(folder: str | Path, model: str | None = None, **options: Any) -> Encoder:
    """Return an encoder of the space that the shards in a folder are of.

    Args:
        folder: of ``embed_files``.
        model: instead of the stamp's, where that was a folder.
        **options: of ``load_encoder``; what the stamp says is the default.

    Raises:
        ConfigError: the stamp's model is not in the catalogue and no ``model`` was given.
        SpaceMismatchError: ``model`` or ``options`` are of another space.
    """
    written = float_stamp(stamp_of(folder))
    given = {name: value for name, value in options.items() if value is not None}
    name = model or _model(written, folder)
    options = {"show_progress": False, **_of_stamp(written, find_model(name)), **given}
    made = load_encoder(name, **cast("Options", options))
    try:
        check_stamp(written, made)
    except BaseException:
        made.close()
        raise
    return made


def _model(stamp: dict[str, Any], folder: str | Path) -> str:
    name = str(stamp["model"])
    try:
        return find_model(name).id
    except UnknownModelError:
        raise ConfigError(
            f"the shards in {str(folder)!r} were embedded by {name!r}, which is not in the catalogue: "
            "pass the model's folder as model= (--model)"
        ) from None


def _of_stamp(stamp: dict[str, Any], card: ModelCard) -> dict[str, Any]:
    options: dict[str, Any] = {"query_instruction": stamp.get("query_instruction")}
    if stamp.get("variant") == "int8":
        options["precision"] = "int8"
    if stamp.get("pooling") != card.pooling:
        options["accept_space"] = stamp.get("pooling")
    return options


def nearest(pieces: Iterable[Part], queries: Vectors, k: int) -> Best:
    """Return the nearest rows of all pieces, which are read one after the other.

    Args:
        pieces: with dense vectors.
        queries: their vectors.
        k: rows per query.
    """
    counted = _faiss if find_spec("faiss") else _numpy
    best = _none(len(queries))
    row = 0
    for piece in pieces if len(queries) else ():
        scores, numbers = counted(queries, piece.vectors, min(k, len(piece.vectors)))
        best = merged(best, (scores, numbers + row), k)
        row += len(piece.vectors)
    return best


def _hits(files: Sequence[Path], starts: Sequence[int], best: Best) -> list[list[Hit]]:
    # Texts are read now, for the hits alone: the search itself reads vectors and nothing else.
    rows = _rows(files, starts, set(best[1].ravel().tolist()))
    return [
        [Hit(score, *rows[number]) for score, number in zip(scores, numbers, strict=True)]
        for scores, numbers in zip(best[0].tolist(), best[1].tolist(), strict=True)
    ]


def _none(queries: int) -> Best:
    return np.empty((queries, 0), np.float32), np.empty((queries, 0), np.int64)


def _faiss(queries: Vectors, vectors: Vectors, k: int) -> Best:
    import faiss

    queries, vectors = np.ascontiguousarray(queries), np.ascontiguousarray(vectors)
    knn = partial(faiss.knn, metric=faiss.METRIC_INNER_PRODUCT)
    if k == len(vectors):
        return cast("Best", knn(queries, vectors, k))
    # Of equal scores at the last place, FAISS returns any: one row more tells where that is so.
    scores, rows = knn(queries, vectors, k + 1)
    tied = scores[:, k] == scores[:, k - 1]
    scores, rows = scores[:, :k], rows[:, :k]
    if tied.any():
        whole = knn(queries[tied], vectors, len(vectors))
        scores[tied], rows[tied] = merged(_none(int(tied.sum())), whole, k)
    return scores, rows


def _numpy(queries: Vectors, vectors: Vectors, k: int) -> Best:
    return top(queries @ vectors.T, k)


def _with_rows(files: Sequence[Path], starts: Sequence[int], wanted: set[int]) -> Iterator[tuple[Path, int, int]]:
    """Yield the shards that hold wanted rows, each with its first row and the row after its last."""
    ends = chain(starts[1:], [max(wanted, default=0) + 1])
    for path, start, end in zip(files, starts, ends, strict=False):
        if any(start <= number < end for number in wanted):
            yield path, start, end


def _rows(files: Sequence[Path], starts: Sequence[int], wanted: set[int]) -> dict[int, tuple[Any, str, dict[str, Any]]]:
    found: dict[int, tuple[Any, str, dict[str, Any]]] = {}
    for path, start, _ in _with_rows(files, starts, wanted):
        found |= _rows_of(path, start, wanted)
    return found


def _rows_of(path: Path, start: int, wanted: set[int]) -> dict[int, tuple[Any, str, dict[str, Any]]]:
    found = {}
    for piece in read_part(path, _PIECE, vectors=False):
        for i, (name, text) in enumerate(zip(piece.ids, piece.texts, strict=True)):
            if start + i in wanted:
                found[start + i] = (name, text, {column: values[i] for column, values in piece.kept.items()})
        start += len(piece.ids)
    return found
