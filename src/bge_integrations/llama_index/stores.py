"""LlamaIndex's vector stores, opened only for an encoder of their own space."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, overload

from llama_index.core.vector_stores.types import BasePydanticVectorStore

from ..errors import ConfigError
from ..extras import require
from ..stamps.faiss_folder import find_index
from ..stamps.places import StorePlace, open_place
from ..stamps.stamp import check_or_stamp
from .embeddings import BGEEmbedding

__all__ = ["open_store"]

Opened = TypeVar("Opened")
_PREFIX = "data_"  # of the tables of PGVectorStore


@overload
def open_store(store: str, embed_model: BGEEmbedding, **options: Any) -> BasePydanticVectorStore: ...
@overload
def open_store(store: Opened, embed_model: BGEEmbedding, **options: Any) -> Opened: ...


def open_store(store: Any, embed_model: BGEEmbedding, **options: Any) -> Any:
    """Open a vector store and check its stamp, so that only the model that filled it is used to query it.

    Args:
        store: ``"chroma:PATH_OR_URL/COLLECTION"``, ``"qdrant:PATH_OR_URL/COLLECTION"``,
            ``"lancedb:PATH_OR_URL/TABLE"``, ``"faiss:FOLDER/INDEX"`` or
            ``"pgvector:postgresql://USER@HOST/DATABASE/TABLE"``, which has to exist; or a vector store or index of
            LlamaIndex that was opened already, of any kind that ``stamp_store`` takes.
        embed_model: what queries the store.
        **options: arguments of the store's class, such as ``text_key="page_content"`` of ``QdrantVectorStore``.

    Returns:
        The vector store, for ``VectorStoreIndex.from_vector_store(store, embed_model=embed_model)``; what was opened
        already as it is. An empty store gets the stamp of ``embed_model``.

    Raises:
        SpaceMismatchError: its vectors are of another space.
        ConfigError: there is no such store, or it holds rows but no stamp: ``verify_store`` finds out
            which model made them, and ``stamp_store`` records it.
        MissingExtraError: the store's packages are not installed.

    Example:
        >>> store = open_store("chroma:store/notes", BGEEmbedding("demo"))  # doctest: +SKIP
    """
    if not isinstance(store, str):
        check_or_stamp(store, embed_model)
        return store
    return open_place(store, embed_model, _OPEN, options)


def _chroma(where: StorePlace, client: Any, _: BGEEmbedding, options: dict[str, Any]) -> Any:
    module = require("llama_index.vector_stores.chroma", install="llama-index-vector-stores-chroma")
    return module.ChromaVectorStore(client.get_collection(where.name), **options)


def _qdrant(where: StorePlace, client: Any, _: BGEEmbedding, options: dict[str, Any]) -> Any:
    module = require("llama_index.vector_stores.qdrant", install="llama-index-vector-stores-qdrant")
    # LangChain's layout, which `bge upload` writes too, has the text under another key than LlamaIndex's.
    points = client.scroll(where.name, limit=1)[0]
    langchain = {"text_key": "page_content"} if points and "page_content" in (points[0].payload or {}) else {}
    return module.QdrantVectorStore(where.name, client=client, **{**langchain, **options})


def _lancedb(where: StorePlace, client: Any, _: BGEEmbedding, options: dict[str, Any]) -> Any:
    module = require("llama_index.vector_stores.lancedb", install="llama-index-vector-stores-lancedb")
    columns = client.open_table(where.name).schema.names
    chosen = {"mode": "append", **({} if "doc_id" in columns else {"doc_id_key": "id"}), **options}
    return module.LanceDBVectorStore(where.place, table_name=where.name, **chosen)


def _faiss(where: StorePlace, _: Any, __: BGEEmbedding, options: dict[str, Any]) -> Any:
    module = require("llama_index.vector_stores.faiss", install="llama-index-vector-stores-faiss")
    path = find_index(Path(where.place), where.name)
    if path.suffix == ".faiss":
        raise ConfigError(
            f"{str(path)!r} was saved by LangChain, and LlamaIndex cannot read its texts: open it with LangChain"
        )
    return module.FaissVectorStore.from_persist_path(str(path), **options)


def _pgvector(where: StorePlace, engine: Any, embed_model: BGEEmbedding, options: dict[str, Any]) -> Any:
    module = require("llama_index.vector_stores.postgres", install="llama-index-vector-stores-postgres")
    if not where.name.startswith(_PREFIX):
        raise ConfigError(
            f"LlamaIndex's tables begin with {_PREFIX}, so {where.name!r} has another layout: open it with LangChain"
        )
    url = engine.url
    engine.dispose()
    return module.PGVectorStore.from_params(
        connection_string=url,
        async_connection_string=url.set(drivername="postgresql+asyncpg"),
        table_name=where.name.removeprefix(_PREFIX),
        embed_dim=embed_model.encoder.card.dimensions,
        **options,
    )


_OPEN: dict[str, Callable[[StorePlace, Any, BGEEmbedding, dict[str, Any]], Any]] = {
    "chroma": _chroma,
    "qdrant": _qdrant,
    "lancedb": _lancedb,
    "faiss": _faiss,
    "pgvector": _pgvector,
}
