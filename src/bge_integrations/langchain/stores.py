"""LangChain's vector stores, opened only for an encoder of their own space."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from langchain_core.vectorstores import VectorStore

from ..extras import require
from ..stamps.databases import is_collection
from ..stamps.faiss_folder import read_faiss
from ..stamps.places import StorePlace, open_place
from ..stamps.stamp import check_or_stamp
from .embeddings import BGEEmbeddings

__all__ = ["open_store"]


def open_store(store: str | VectorStore, embeddings: BGEEmbeddings, **options: Any) -> VectorStore:
    """Open a vector store and check its stamp, so that only the model that filled it is used to query it.

    Args:
        store: ``"chroma:PATH_OR_URL/COLLECTION"``, ``"qdrant:PATH_OR_URL/COLLECTION"``,
            ``"lancedb:PATH_OR_URL/TABLE"``, ``"faiss:FOLDER/INDEX"`` or
            ``"pgvector:postgresql://USER@HOST/DATABASE/TABLE"``, which has to exist; or a store of LangChain that was
            already opened, of any kind that ``stamp_store`` takes.
        embeddings: what queries the store.
        **options: arguments of the store's class, such as ``vector_name="dense"`` of ``QdrantVectorStore``.

    Returns:
        The store. An empty one gets the stamp of ``embeddings``.

    Raises:
        SpaceMismatchError: its vectors are of another space.
        ConfigError: there is no such store, or it holds rows but no stamp: ``verify_store`` finds out
            which model made them, and ``stamp_store`` records it.
        MissingExtraError: the store's packages are not installed.

    Example:
        >>> store = open_store("chroma:store/notes", BGEEmbeddings("demo"))  # doctest: +SKIP
    """
    if not isinstance(store, str):
        check_or_stamp(store, embeddings)
        if isinstance(store.embeddings, BGEEmbeddings):  # what a ready store asks with may be another
            check_or_stamp(store, store.embeddings)
        return store
    opened: VectorStore = open_place(store, embeddings, _OPEN, options)
    return opened


def _chroma(where: StorePlace, client: Any, embeddings: BGEEmbeddings, options: dict[str, Any]) -> VectorStore:
    made = require("langchain_chroma", install="langchain-chroma").Chroma
    return made(where.name, embeddings, client=client, **options)  # type: ignore[no-any-return]


def _qdrant(where: StorePlace, client: Any, embeddings: BGEEmbeddings, options: dict[str, Any]) -> VectorStore:
    made = require("langchain_qdrant", install="langchain-qdrant").QdrantVectorStore
    return made(client, where.name, embeddings, **options)  # type: ignore[no-any-return]


def _lancedb(where: StorePlace, client: Any, embeddings: BGEEmbeddings, options: dict[str, Any]) -> VectorStore:
    # LangChain's own mode is "overwrite": the first text that is added would replace the table.
    made = require("langchain_community.vectorstores.lancedb", install="langchain-community").LanceDB
    return made(client, embeddings, table_name=where.name, **{"mode": "append", **options})  # type: ignore[no-any-return]


def _faiss(where: StorePlace, _: Any, embeddings: BGEEmbeddings, options: dict[str, Any]) -> VectorStore:
    made = require("langchain_community.vectorstores.faiss", install="langchain-community").FAISS
    docstore = require("langchain_community.docstore.in_memory", install="langchain-community").InMemoryDocstore
    saved = read_faiss(Path(where.place), where.name)
    return made(embeddings, saved.index, docstore(saved.documents), dict(enumerate(saved.ids)), **options)  # type: ignore[no-any-return]


def _pgvector(where: StorePlace, engine: Any, embeddings: BGEEmbeddings, options: dict[str, Any]) -> VectorStore:
    postgres = require("langchain_postgres", install="langchain-postgres")
    with engine.connect() as connection:
        in_collection = is_collection(connection, where.name)
    url = engine.url.render_as_string(hide_password=False)  # LangChain's classes make engines of their own
    engine.dispose()
    if in_collection:
        return postgres.PGVector(embeddings, connection=url, collection_name=where.name, **options)  # type: ignore[no-any-return]
    pool = postgres.PGEngine.from_connection_string(url)
    return postgres.PGVectorStore.create_sync(pool, embeddings, where.name, **options)  # type: ignore[no-any-return]


_OPEN: dict[str, Callable[[StorePlace, Any, BGEEmbeddings, dict[str, Any]], VectorStore]] = {
    "chroma": _chroma,
    "qdrant": _qdrant,
    "lancedb": _lancedb,
    "faiss": _faiss,
    "pgvector": _pgvector,
}
