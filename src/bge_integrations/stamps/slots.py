"""Where each kind of vector store keeps one line of text about itself; known by name, so that none is imported."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..core.files import write_atomic
from ..errors import ConfigError
from .databases import (
    comment_slot,
    duckdb_slot,
    pg_langchain,
    pg_llama_index,
    pg_slot,
    pgvector_slot,
    sqlite_slot,
)
from .servers import milvus_slot, qdrant_slot, redis_slot, search_engine_slot, waiting_search_engine_slot
from .slot import KEY, Slot

__all__ = ["KEY", "Slot", "comment_slot", "find_slot", "qdrant_slot"]


def find_slot(store: Any) -> Slot:
    """Return where a store keeps its line.

    Raises:
        ConfigError: no such kind of store, or one that cannot keep it.
    """
    if isinstance(store, Slot):
        return store
    if isinstance(store, (str, Path)):
        return _folder(Path(store))
    if isinstance(store, tuple) and len(store) == 2:
        return _of_pair(*store)
    make = _known(_KINDS, store)
    if make is not None:
        made: Slot = make(store)
        return made
    for name in ("vector_store", "vectorstore"):
        if getattr(store, name, None) is not None:
            return find_slot(getattr(store, name))
    known = ", ".join(sorted({name for _, name in _KINDS}))
    clients = ", ".join(sorted({name for _, name in _CLIENTS}))
    raise ConfigError(
        f"{type(store).__name__} cannot be stamped; known: {known}, folders of FAISS indexes, and a client with a name "
        f"({clients})"
    )


def _known(kinds: dict[tuple[str, str], Any], store: Any) -> Any:
    found = (kinds.get((kind.__module__.partition(".")[0], kind.__name__)) for kind in type(store).__mro__)
    return next(filter(None, found), None)


def _of_pair(client: Any, name: Any) -> Slot:
    make = _known(_CLIENTS, client)
    if make is None or not isinstance(name, str):
        known = ", ".join(sorted({each for _, each in _CLIENTS}))
        raise ConfigError(f"a pair is (client, name), with a client of {known}; not of {type(client).__name__}")
    made: Slot = make(client, name)
    return made


def _folder(folder: Path) -> Slot:
    if folder.is_file():  # one of the indexes in it
        folder = folder.parent
    if not folder.is_dir():
        raise ConfigError(f"{str(folder)!r} is not a folder: save the index first, then stamp its folder")
    path = folder / f"{KEY}.json"

    def write(line: str) -> None:
        write_atomic(path, line + "\n")
        for index in _faiss_indexes(folder):  # whoever may read the index may check it
            path.chmod(index.stat().st_mode & 0o666)

    def dimensions() -> set[int]:
        return set(_faiss_indexes(folder).values())

    def read() -> str | None:
        try:
            return path.read_text("utf-8") if path.exists() else None
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{str(path)!r} is not a readable stamp ({error}): move it away and stamp the store again"
            ) from error

    return Slot(read, write, dimensions)


def _faiss_indexes(folder: Path) -> dict[Path, int]:
    """Return the FAISS indexes in a folder and their dimensions, which are in the first eight bytes of each."""
    found: dict[Path, int] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file():
            with path.open("rb") as file:
                head = file.read(8)
            if re.match(rb"I[A-Za-z0-9]{3}....", head, re.DOTALL):
                found[path] = struct.unpack("<i", head[4:])[0]
    return found


def _faiss(store: Any) -> Slot:
    raise ConfigError(f"a {type(store).__name__} in memory keeps no stamp: save it and pass its folder")


def _simple(store: Any) -> Slot:
    """Return the slot among the metadata of LlamaIndex's ``SimpleVectorStore``, which ``persist`` writes with them."""

    def read() -> str | None:
        found = (store.data.metadata_dict or {}).get(KEY, {}).get(KEY)
        return None if found is None else str(found)

    def write(line: str) -> None:
        store.data.metadata_dict = {**(store.data.metadata_dict or {}), KEY: {KEY: line}}

    def dimensions() -> set[int]:
        return {len(vector) for vector in store.data.embedding_dict.values()}

    return Slot(read, write, dimensions, lambda: not store.data.embedding_dict)


def _chroma(collection: Any) -> Slot:
    def write(line: str) -> None:
        # Chroma refuses a change that names the distance, even the collection's own.
        kept = {key: value for key, value in (collection.metadata or {}).items() if not key.startswith("hnsw:")}
        collection.modify(metadata={**kept, KEY: line})

    def dimensions() -> set[int]:
        vectors = collection.get(limit=1, include=["embeddings"])["embeddings"]
        return {len(vector) for vector in vectors}

    def empty() -> bool:
        return int(collection.count()) == 0

    return Slot(lambda: (collection.metadata or {}).get(KEY), write, dimensions, empty)


def _lance(table: Any) -> Slot:
    def vectors() -> Any:
        # Metadata of the column of vectors: it stays when rows and other columns come and go.
        fields = [field for field in table.schema if str(field.type).startswith(("fixed_size_list", "list<"))]
        if not fields:
            raise ConfigError(f"the LanceDB table {table.name!r} has no column of vectors")
        return fields[0]

    def read() -> str | None:
        line = (vectors().metadata or {}).get(KEY.encode())
        return line.decode() if line else None

    def write(line: str) -> None:
        if hasattr(table, "update_field_metadata"):
            table.update_field_metadata({"path": vectors().name, "metadata": {KEY: line}})
        else:
            table.replace_field_metadata(vectors().name, {KEY: line})

    def dimensions() -> set[int]:
        size = getattr(vectors().type, "list_size", 0)
        return {size} if size > 0 else set()

    return Slot(read, write, dimensions, lambda: int(table.count_rows()) == 0)


_KINDS: dict[tuple[str, str], Callable[[Any], Slot]] = {
    ("langchain_chroma", "Chroma"): lambda store: _chroma(store._collection),  # noqa: SLF001
    ("chromadb", "Collection"): _chroma,
    ("langchain_qdrant", "QdrantVectorStore"): lambda store: qdrant_slot(store.client, store.collection_name),
    ("langchain_postgres", "PGVector"): pgvector_slot,
    ("langchain_postgres", "PGVectorStore"): pg_langchain,
    ("langchain_community", "LanceDB"): lambda store: _lance(store.get_table()),
    ("langchain_community", "FAISS"): _faiss,
    ("langchain_community", "SQLiteVec"): lambda store: sqlite_slot(store._connection, store._table),  # noqa: SLF001
    ("langchain_community", "DuckDB"): lambda store: duckdb_slot(store._connection, store._table_name),  # noqa: SLF001
    ("langchain_community", "OpenSearchVectorSearch"): lambda store: search_engine_slot(store.client, store.index_name),
    ("langchain_elasticsearch", "ElasticsearchStore"): lambda store: search_engine_slot(
        store.client,
        store._store.index,  # noqa: SLF001
    ),
    ("langchain_milvus", "Milvus"): lambda store: milvus_slot(store.client, store.collection_name),
    ("langchain_redis", "RedisVectorStore"): lambda store: redis_slot(store.index.client, store.index.name),
    ("lancedb", "Table"): _lance,
    ("redisvl", "SearchIndex"): lambda index: redis_slot(index.client, index.name),
    ("llama_index", "ChromaVectorStore"): lambda store: _chroma(store.client),
    ("llama_index", "QdrantVectorStore"): lambda store: qdrant_slot(store.client, store.collection_name),
    ("llama_index", "PGVectorStore"): pg_llama_index,
    ("llama_index", "LanceDBVectorStore"): lambda store: _lance(store.table),
    ("llama_index", "FaissVectorStore"): _faiss,
    ("llama_index", "SimpleVectorStore"): _simple,
    ("llama_index", "MilvusVectorStore"): lambda store: milvus_slot(store.client, store.collection_name),
    ("llama_index", "DuckDBVectorStore"): lambda store: duckdb_slot(store.client, store.table_name),
    ("llama_index", "RedisVectorStore"): lambda store: redis_slot(store._index.client, store.index_name),  # noqa: SLF001
    ("llama_index", "ElasticsearchStore"): waiting_search_engine_slot,
    ("llama_index", "OpensearchVectorStore"): lambda store: search_engine_slot(
        store.client._os_client,  # noqa: SLF001
        store.client._index,  # noqa: SLF001
    ),
}

_CLIENTS: dict[tuple[str, str], Callable[[Any, str], Slot]] = {
    ("qdrant_client", "QdrantClient"): qdrant_slot,
    ("sqlalchemy", "Engine"): pg_slot,
    ("sqlite3", "Connection"): sqlite_slot,
    ("_duckdb", "DuckDBPyConnection"): duckdb_slot,  # by DuckDB's version, in one of two modules
    ("duckdb", "DuckDBPyConnection"): duckdb_slot,
    ("pymilvus", "MilvusClient"): milvus_slot,
    ("redis", "Redis"): redis_slot,
    ("elasticsearch", "Elasticsearch"): search_engine_slot,
    ("opensearchpy", "OpenSearch"): search_engine_slot,
}
