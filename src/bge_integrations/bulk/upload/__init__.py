"""Shards into a vector store, with their stamp and without embedding anything again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, cast, get_args
from urllib.parse import urlsplit

import numpy as np

from ...environment import named_path
from ...errors import BGEError, BGEWarning, ConfigError, warn
from ...extras import require_packages
from ...stamps.slots import find_slot
from ...stamps.stamp import check_store, read_stamp, stamp_store
from ..folder import check_float, shard_files, stamp_of
from ..formats import read_part
from ..part import Part
from .record import UploadRecord, open_record
from .target import Key, Place, StoreKind, Target, UploadBatch, check_folder

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
        unchanged: of an update, rows that were there already as they are.
        deleted: of an update, rows that were deleted, since the shards hold them no more.
        stayed: of an update, rows that the shards hold no more, and that stay since another program has changed them.
    """

    rows: int
    total: int
    collection: str
    stamp: dict[str, Any]
    opens: str
    unchanged: int = 0
    deleted: int = 0
    stayed: int = 0


def upload_files(
    folder: str | Path,
    into: Into,
    *,
    collection: str | None = None,
    url: str | None = None,
    path: str | Path | None = None,
    key: str | None = None,
    client: Any = None,
    update: bool = False,
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
        update: bring the collection to the state of the folder: write rows that it does not hold as they are, delete
            those that an earlier upload from this folder wrote and the shards no longer hold, and leave all others.
            Which rows these are, each upload notes in the folder, in ``.uploads``. Rows of other programs stay: those
            whose id no upload from this folder wrote, and those whose text is not the one that it wrote. The texts of
            the whole collection are read for that. Killed at any moment and called again, it ends as after one
            undisturbed call.
        on_batch: called with the number of rows written so far.

    Raises:
        ConfigError: no shards, no such store, it cannot be reached or refuses the rows, its collection has rows of
            unknown origin, ``path`` is a folder with other files, or of an update the folder's job is not finished.
        SpaceMismatchError: the collection is stamped with another space; nothing was written.
        MissingExtraError: the store's packages are not installed; it names all of them.

    Example:
        >>> upload_files("out/", "qdrant", url="http://localhost:6333", collection="wiki")  # doctest: +SKIP
    """
    check_float(folder, "an upload")
    stamp, files = stamp_of(folder), shard_files(folder)
    store = _store(into)
    vocabulary = int(stamp.get("vocabulary", 0))
    if vocabulary and not store.SPARSE:
        warn(
            f"only the dense vectors are uploaded into {into}; qdrant and pgvector take sparse vectors as well",
            BGEWarning,
        )
        vocabulary = 0
        stamp = {name: value for name, value in stamp.items() if name not in ("sparse_space", "vocabulary")}
    name = collection or ("index" if into == "faiss" else Path(folder).resolve().name)
    place = Place(name, int(stamp["dimensions"]), files[0], url, str(path) if path else None, key, client, vocabulary)
    _check_place(into, store, place)
    upload = _Upload(Path(folder), into, store, place, files, update, on_batch)
    with _said(into, place, lambda: upload.rows):
        return upload.run(stamp)


class _Upload:
    """One upload: what was written so far, and what the record says."""

    def __init__(
        self,
        folder: Path,
        into: str,
        store: StoreKind,
        place: Place,
        files: Sequence[Path],
        update: bool,
        on_batch: Callable[[int], None] | None,
    ) -> None:
        self.folder, self.into, self.store, self.place, self.files = folder, into, store, place, files
        self.update, self.on_batch = update, on_batch
        self.rows, self.unchanged, self.stayed = 0, 0, 0
        self.gone: list[Key] = []

    def run(self, stamp: dict[str, Any]) -> Loaded:
        """Write, then delete, so that nothing is missing meanwhile."""
        store, place = self.store, self.place
        with open_record(self.folder, self.into, place, update=self.update) as record:
            with store.open_target(place) as target:
                written = _stamped(target, stamp, place.collection)
                for batch in self._changed(record, target) if self.update and record else self._batches():
                    self._put(batch, record, target)
                if self.update and record:
                    self.gone, self.stayed = record.gone()
                    target.delete(self.gone)
                total = target.count()
            if record:
                record.confirm()
            if record and self.update:
                record.forget_gone()
        opens = "" if place.client is not None else store.how_to_open(place, str(stamp["model"]))
        counts = (self.unchanged, len(self.gone), self.stayed)
        return Loaded(self.rows, total, place.collection, written, opens, *counts)

    def _put(self, batch: UploadBatch, record: UploadRecord | None, target: Target) -> None:
        if record:
            # Before the rows: after a kill in between, the record names too many keys and never too few.
            record.intend(target.keys(batch.part), batch.part)
        target.put(batch)
        if record and self.store.LASTS:
            record.confirm()
        self.rows += len(batch.ids)
        if self.on_batch:
            self.on_batch(self.rows)

    def _batches(self) -> Iterator[UploadBatch]:
        for path in self.files:
            for part in read_part(path, self.store.BATCH_ROWS, sparse=bool(self.place.vocabulary)):
                yield UploadBatch(_each_once(part))

    def _changed(self, record: UploadRecord, target: Target) -> Iterator[UploadBatch]:
        record.compare(self.files, target)
        self.unchanged = record.current()
        for file, places in record.changed(len(self.files)):
            self.unchanged -= len(places)
            # Shard by shard, so that each file is read once and only one is in memory.
            yield from self._taken(self.files[file], places)

    def _taken(self, path: Path, places: Sequence[int]) -> Iterator[UploadBatch]:
        """Yield some rows of a shard; where none are wanted, it is not read."""
        first, wanted = 0, np.array(places, np.int64)
        for part in read_part(path, self.store.BATCH_ROWS, sparse=bool(self.place.vocabulary)) if places else ():
            rows = wanted[(first <= wanted) & (wanted < first + len(part.ids))] - first
            if len(rows):
                yield UploadBatch(part.take(rows.tolist()))
            first += len(part.ids)


def _store(into: str) -> StoreKind:
    if into not in _MODULES:
        raise ConfigError(f"no store {into!r}: {', '.join(get_args(Into))}")
    return cast("StoreKind", import_module(f".{_MODULES[into]}", __package__))


def _check_place(into: str, store: StoreKind, place: Place) -> None:
    given = [name for name in ("url", "path", "client") if getattr(place, name) is not None]
    if len(given) != 1 or given[0] not in store.TAKES:
        raise ConfigError(f"{into} needs one of {', '.join(store.TAKES)}, not {' and '.join(given) or 'none'}")
    require_packages(store.PACKAGES, purpose="the upload")
    if place.path is not None:
        check_folder(named_path(place.path), store.MARKS, into)


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


def _each_once(part: Part) -> Part:
    """Keep the last row of each id only, as writing them one after another would."""
    last = {key: i for i, key in enumerate(part.ids)}
    if len(last) == len(part.ids):
        return part
    return part.take(sorted(last.values()))


@contextmanager
def _said(into: str, place: Place, rows: Callable[[], int]) -> Iterator[None]:
    """Raise what a store's own package raises as an error of this one, without the password in its address."""
    try:
        yield
    except BGEError:
        raise
    except Exception as error:
        # Drivers quote their connection string, and HTTP clients a header that they refuse.
        secrets = [place.key, place.url and urlsplit(place.url).password]
        told = f"{type(error).__name__}: {error}"
        for secret in filter(None, secrets):
            told = told.replace(secret, "***")
        raise ConfigError(
            f"{into} {place.collection!r} after {rows()} rows: {told[:500]}; running it again is safe: "
            "rows are upserted by id"
        ) from error


load_files = upload_files
"""The first name of ``upload_files``."""
