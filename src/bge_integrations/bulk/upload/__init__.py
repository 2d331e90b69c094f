"""Shards into a vector store, with their stamp and without embedding anything again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, cast, get_args
from urllib.parse import urlsplit

from ...errors import BGEError, BGEWarning, ConfigError, warn
from ...extras import require_packages
from ...stamps.slots import find_slot
from ...stamps.stamp import check_store, read_stamp, stamp_store
from ..folder import shard_files, stamp_of
from ..formats import read_part
from ..part import Part, SparseRows
from .target import Batch, Place, Store, Target, check_folder

__all__ = ["Into", "Loaded", "load_files", "upload_files"]

Into = Literal["qdrant", "chroma", "lancedb", "pgvector", "faiss"]
_MODULES: dict[str, str] = {
    "qdrant": "qdrant",
    "chroma": "chroma",
    "lancedb": "lance",
    "pgvector": "pgvector",
    "faiss": "faiss_folder",
}


@dataclass(frozen=True)
class Loaded:
    """The result of an upload.

    Attributes:
        rows: rows that were written.
        total: rows that the collection holds now.
        collection: its name.
        stamp: that the collection has.
        opens: Python that opens it, for LangChain and for LlamaIndex.
    """

    rows: int
    total: int
    collection: str
    stamp: dict[str, Any]
    opens: str


def upload_files(
    folder: str | Path,
    into: Into,
    *,
    collection: str | None = None,
    url: str | None = None,
    path: str | Path | None = None,
    key: str | None = None,
    client: Any = None,
    on_batch: Callable[[int], None] | None = None,
) -> Loaded:
    """Write the rows of shards into a vector store, with their stamp; nothing is embedded again.

    Rows are laid out as LangChain's store classes expect by default: the text, the vector, and as metadata the row's
    ``id`` and its kept columns. A row whose id is there already is replaced, so the same call again is idempotent.
    Sparse vectors go into Qdrant (vectors named ``dense`` and ``sparse``) and pgvector (a ``sparsevec`` column
    ``sparse``); the other stores get the dense ones alone, with a warning.

    Args:
        folder: of ``embed_files``.
        into: ``"qdrant"``, ``"chroma"``, ``"lancedb"``, ``"pgvector"`` or ``"faiss"``. LlamaIndex reads Chroma's as it
            is, Qdrant's with ``text_key="page_content"``, LanceDB's with ``doc_id_key="id"``, the others not.
        collection: name of the collection, table or index; made where it is missing. The folder's name when None, for
            FAISS ``"index"``.
        url: of the server; ``postgresql://...`` for pgvector.
        path: of a folder on this machine: Qdrant's local mode, Chroma, LanceDB, FAISS.
        key: of the server, for Qdrant, Chroma and LanceDB.
        client: a ready Qdrant or Chroma client, LanceDB connection, or SQLAlchemy engine over psycopg, instead of all
            three. It stays open.
        on_batch: called with the number of rows written so far.

    Raises:
        ConfigError: no shards, no such store, it cannot be reached or refuses the rows, its collection has rows of
            unknown origin, or ``path`` is a folder with other files.
        SpaceMismatchError: the collection is stamped with another space; nothing was written.
        MissingExtraError: the store's packages are not installed; it names all of them.

    Example:
        >>> upload_files("out/", "qdrant", url="http://localhost:6333", collection="wiki")  # doctest: +SKIP
    """
    stamp, files = stamp_of(folder), shard_files(folder)
    store = _store(into)
    vocabulary = int(stamp.get("vocabulary", 0))
    if vocabulary and not store.SPARSE:
        warn(f"{into} gets the dense vectors alone: sparse ones are uploaded into qdrant and pgvector", BGEWarning)
        vocabulary = 0
        stamp = {name: value for name, value in stamp.items() if name not in ("sparse_space", "vocabulary")}
    name = collection or ("index" if into == "faiss" else Path(folder).resolve().name)
    place = Place(name, int(stamp["dimensions"]), files[0], url, str(path) if path else None, key, client, vocabulary)
    _check_place(into, store, place)
    rows = 0
    with _said(into, place, lambda: rows), store.open_target(place) as target:
        written = _stamped(target, stamp, name)
        for batch in _batches(files, store.BATCH_ROWS, sparse=bool(vocabulary)):
            target.put(batch)
            rows += len(batch.ids)
            if on_batch:
                on_batch(rows)
        total = target.count()
    opens = "" if client is not None else store.how_to_open(place, str(stamp["model"]))
    return Loaded(rows, total, name, written, opens)


def _store(into: str) -> Store:
    if into not in _MODULES:
        raise ConfigError(f"no store {into!r}: {', '.join(get_args(Into))}")
    return cast("Store", import_module(f".{_MODULES[into]}", __package__))


def _check_place(into: str, store: Store, place: Place) -> None:
    given = [name for name in ("url", "path", "client") if getattr(place, name) is not None]
    if len(given) != 1 or given[0] not in store.TAKES:
        raise ConfigError(f"{into} wants one of {', '.join(store.TAKES)}, not {' and '.join(given) or 'none'}")
    require_packages(store.PACKAGES, purpose="the upload")
    if place.path is not None:
        check_folder(Path(place.path), store.MARKS, into)


def _stamped(target: Target, stamp: dict[str, Any], name: str) -> dict[str, Any]:
    written = read_stamp(target.stamped)
    if not written:
        rows = target.count()
        if rows:
            raise ConfigError(
                f"{name!r} holds {rows} rows without a stamp, so the model behind them is unknown. Name another "
                "collection; or, if you know the model, call stamp_store(store, encoder)"
            )
        return stamp_store(find_slot(target.stamped), stamp)
    # No instruction goes into documents, so the store may keep its own.
    return check_store(target.stamped, {**stamp, "query_instruction": written.get("query_instruction")})


def _batches(files: Sequence[Path], size: int, *, sparse: bool) -> Iterator[Batch]:
    for path in files:
        for part in read_part(path, size, sparse=sparse):
            yield Batch(_each_once(part))


def _each_once(part: Part) -> Part:
    """Leave the last row of each id, as writing them one after the other would."""
    last = {key: i for i, key in enumerate(part.ids)}
    if len(last) == len(part.ids):
        return part
    rows = sorted(last.values())
    kept = {name: [values[i] for i in rows] for name, values in part.kept.items()}
    sparse = part.sparse and SparseRows.joined([part.sparse.part(i, i + 1) for i in rows])
    return Part([part.ids[i] for i in rows], [part.texts[i] for i in rows], part.vectors[rows], kept, sparse)


@contextmanager
def _said(into: str, place: Place, rows: Callable[[], int]) -> Iterator[None]:
    """Raise what a store's own package raises as an error of this one, without the password in its address."""
    try:
        yield
    except BGEError:
        raise
    except Exception as error:
        secrets = [place.key, place.url and urlsplit(place.url).password]
        told = f"{type(error).__name__}: {error}"
        for secret in filter(None, secrets):
            told = told.replace(secret, "***")
        raise ConfigError(
            f"{into} {place.collection!r} after {rows()} rows: {told[:500]}; the same call again doubles no row"
        ) from error


load_files = upload_files
"""The first name of ``upload_files``."""
