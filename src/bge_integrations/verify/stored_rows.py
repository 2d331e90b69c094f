"""A sample of what a vector store holds: texts as they were embedded, and their vectors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..stamps.databases import PG_COLLECTIONS, PG_ROWS, is_collection
from ..stamps.faiss_folder import read_faiss

__all__ = ["Sample", "read_sample"]

_TEXT_COLUMNS = ("content", "text", "document", "page_content", "chunk", "body")


@dataclass(frozen=True)
class Sample:
    """Rows of a store, spread over all of it.

    Attributes:
        rows: how many the store holds.
        texts: of the sampled rows, as they were embedded.
        vectors: float32, shape (n, dimensions), as they are stored.
    """

    rows: int
    texts: list[str]
    vectors: NDArray[np.float32]


def read_sample(store: Any, count: int) -> Sample:
    """Return at most ``count`` rows of a store; those without a text are left out.

    Args:
        store: of LangChain or LlamaIndex over Chroma, Qdrant, LanceDB, pgvector or FAISS (LangChain's); a Chroma
            collection, a LanceDB table, the folder or file of a saved FAISS index (``Path``), or a pair of a client and
            a name: ``(QdrantClient, collection)``, ``(sqlalchemy.Engine, table)``.
        count: of rows.

    Raises:
        ConfigError: another kind of store, or no row with a text and a vector.
    """
    total, rows = _reader(store)(count)
    kept = [(text, vector) for text, vector in rows if text and vector is not None]
    if not kept:
        raise ConfigError(f"the store holds {total} rows, and none of those looked at has a text and a vector")
    return Sample(total, [text for text, _ in kept], np.array([vector for _, vector in kept], np.float32))


Rows = tuple[int, Iterable[tuple[str | None, Any]]]


def _reader(store: Any) -> Callable[[int], Rows]:
    if isinstance(store, Path):
        return lambda count: _faiss_folder(store, count)
    pair = isinstance(store, tuple) and len(store) == 2
    kinds: dict[tuple[str, str], Any] = _CLIENTS if pair else _KINDS
    # By name, so that no store's package is imported to look at what was passed.
    for base in type(store[0] if pair else store).__mro__:
        read = kinds.get((base.__module__.partition(".")[0], base.__name__))
        if read is not None:
            return partial(read, *store) if pair else partial(read, store)
    known = ", ".join(sorted({name for _, name in _KINDS}))
    raise ConfigError(
        f"rows of a {type(store[0] if pair else store).__name__} cannot be read; known: {known}, the Path of a saved "
        "FAISS index, (QdrantClient, collection) and (sqlalchemy.Engine, table)"
    )


def _places(rows: int, count: int) -> list[int]:
    """Return positions spread over all rows, so that what was added later is seen too."""
    return sorted({int(place) for place in np.linspace(0, max(rows - 1, 0), min(count, rows))}) if rows else []


def _chroma(collection: Any, count: int) -> Rows:
    rows = collection.count()
    # One by one: Chroma cannot return a random sample.
    parts = [
        collection.get(limit=1, offset=place, include=["embeddings", "documents", "metadatas"])
        for place in _places(rows, count)
    ]
    return rows, [
        (_text(dict(part["metadatas"][0] or {}), part["documents"][0]), part["embeddings"][0])
        for part in parts
        if part["ids"]
    ]


def _qdrant(client: Any, name: str, count: int) -> Rows:
    from qdrant_client.models import Sample as Kind
    from qdrant_client.models import SampleQuery

    rows = client.count(name).count
    answer = client.query_points(
        name, query=SampleQuery(sample=Kind.RANDOM), limit=count, with_vectors=True, with_payload=True
    )
    return rows, [(_text(point.payload or {}), _dense(point.vector)) for point in answer.points]


def _dense(vector: Any) -> Any:
    """Return the dense one of a Qdrant point's vectors, which may have names."""
    if isinstance(vector, Mapping):
        # A list of lists is a multivector; of several dense ones nothing says which is meant.
        lists = [value for value in vector.values() if isinstance(value, Sequence) and not isinstance(value[0], list)]
        return lists[0] if len(lists) == 1 else None
    return vector


def _lance(table: Any, count: int) -> Rows:
    rows = table.count_rows()
    name = next(
        (field.name for field in table.schema if str(field.type).startswith(("fixed_size_list", "list<"))), None
    )
    if name is None:
        raise ConfigError(f"the LanceDB table {table.name!r} has no column of vectors")
    found = []
    for place in _places(rows, count):
        found += table.search().offset(place).limit(1).to_list()
    return rows, [(_text(row.get("metadata") or {}, row.get("text")), row.get(name)) for row in found]


def _faiss(store: Any, count: int) -> Rows:
    rows = store.index.ntotal
    found = []
    for place in _places(rows, count):
        document = store.docstore.search(store.index_to_docstore_id[place])
        found.append((getattr(document, "page_content", None), store.index.reconstruct(place)))
    return rows, found


def _faiss_folder(path: Path, count: int) -> Rows:
    saved = read_faiss(path) if path.is_dir() else read_faiss(path.parent, _faiss_name(path))
    places = _places(saved.index.ntotal, count)
    return saved.index.ntotal, [
        (_content(saved.documents.get(saved.ids[place])), saved.index.reconstruct(place)) for place in places
    ]


def _faiss_name(path: Path) -> str:
    # LangChain saves NAME.faiss, LlamaIndex NAME__vector_store.json.
    return path.name.removesuffix(".faiss").removesuffix("__vector_store.json")


def _content(document: Any) -> str | None:
    """Return what was embedded of LangChain's document or LlamaIndex's node."""
    if hasattr(document, "get_content"):
        from llama_index.core.schema import MetadataMode

        return str(document.get_content(metadata_mode=MetadataMode.EMBED))
    return getattr(document, "page_content", None)


def _postgres(engine: Any, name: str, count: int, schema: str | None = None) -> Rows:
    """Read a table, or a collection of LangChain's ``PGVector``."""
    with engine.connect() as connection:
        if schema is None and is_collection(connection, name):
            rows = f"{PG_ROWS} JOIN {PG_COLLECTIONS} c ON c.uuid = collection_id AND c.name = :name"
            return _query(connection, rows, ("document", "embedding", None), {"name": name, "count": count})
        columns = _pg_columns(connection, name, schema)
        table = f'"{schema}"."{name}"' if schema else f'"{name}"'
        return _query(connection, table, columns, {"count": count})


def _query(connection: Any, rows: str, columns: tuple[str, str, str | None], values: dict[str, Any]) -> Rows:
    from sqlalchemy import text

    total = connection.execute(text(f"SELECT count(*) FROM {rows}"), values).scalar_one()
    # As text: what psycopg returns for a vector depends on whether pgvector's adapter is registered.
    wanted = ", ".join(f'"{column}"::text' if column else "NULL" for column in columns)
    found = connection.execute(text(f"SELECT {wanted} FROM {rows} ORDER BY random() LIMIT :count"), values).all()
    return int(total), [
        (_text(json.loads(metadata) if metadata else {}, content), json.loads(vector) if vector else None)
        for content, vector, metadata in found
    ]


def _pg_columns(connection: Any, table: str, schema: str | None) -> tuple[str, str, str | None]:
    """Return the columns of text, vector and LlamaIndex's metadata."""
    from sqlalchemy import text

    query = text(
        "SELECT attname, typname FROM pg_attribute JOIN pg_type t ON t.oid = atttypid "
        "WHERE attrelid = to_regclass(:table) AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
    )
    named = f'"{schema}"."{table}"' if schema else f'"{table}"'
    kinds = {row[0]: row[1] for row in connection.execute(query, {"table": named})}
    if not kinds:
        raise ConfigError(f"no table or collection {table!r} in this database; LlamaIndex puts data_ in front of names")
    vectors = [name for name, kind in kinds.items() if kind in ("vector", "halfvec")]
    texts = [name for name in _TEXT_COLUMNS if kinds.get(name) in ("text", "varchar")]
    if len(vectors) != 1 or not texts:
        raise ConfigError(
            f"the table {table!r} needs one column of type vector or halfvec (it has {len(vectors)}) and one of text "
            f"named {', '.join(_TEXT_COLUMNS)}"
        )
    return texts[0], vectors[0], "metadata_" if "metadata_" in kinds else None


def _pg_langchain(store: Any, count: int) -> Rows:
    inner, engine = store._PGVectorStore__vs, store._engine  # noqa: SLF001 - it has no public way to the table's name

    async def read() -> Rows:
        table = f'"{inner.schema_name}"."{inner.table_name}"'
        columns = (inner.content_column, inner.embedding_column, None)
        async with engine._pool.connect() as connection:  # noqa: SLF001
            return cast("Rows", await connection.run_sync(_query, table, columns, {"count": count}))

    found: Rows = engine._run_as_sync(read())  # noqa: SLF001
    return found


def _pg_llama_index(store: Any, count: int) -> Rows:
    store._initialize()  # noqa: SLF001 - otherwise there is no engine before the first query
    table = store._table_class.__table__  # noqa: SLF001
    return _postgres(store._engine, table.name, count, table.schema)  # noqa: SLF001


def _text(payload: Mapping[str, Any], text: str | None = None) -> str | None:
    """Return what was embedded of a row: LlamaIndex embeds some metadata with the text, and keeps the node."""
    if payload.get("_node_content"):
        from llama_index.core.schema import MetadataMode
        from llama_index.core.vector_stores.utils import metadata_dict_to_node

        node = metadata_dict_to_node(dict(payload), text=text)
        return str(node.get_content(metadata_mode=MetadataMode.EMBED))
    found = text if text is not None else payload.get("page_content", payload.get("text"))
    return found if isinstance(found, str) else None


_KINDS: dict[tuple[str, str], Callable[[Any, int], Rows]] = {
    ("chromadb", "Collection"): _chroma,
    ("langchain_chroma", "Chroma"): lambda store, count: _chroma(store._collection, count),  # noqa: SLF001
    ("langchain_community", "FAISS"): _faiss,
    ("langchain_community", "LanceDB"): lambda store, count: _lance(store.get_table(), count),
    ("langchain_postgres", "PGVector"): lambda store, count: _postgres(store._engine, store.collection_name, count),  # noqa: SLF001
    ("langchain_postgres", "PGVectorStore"): _pg_langchain,
    ("langchain_qdrant", "QdrantVectorStore"): lambda store, count: _qdrant(store.client, store.collection_name, count),
    ("lancedb", "Table"): _lance,
    ("llama_index", "ChromaVectorStore"): lambda store, count: _chroma(store.client, count),
    ("llama_index", "LanceDBVectorStore"): lambda store, count: _lance(store.table, count),
    ("llama_index", "PGVectorStore"): _pg_llama_index,
    ("llama_index", "QdrantVectorStore"): lambda store, count: _qdrant(store.client, store.collection_name, count),
}

_CLIENTS: dict[tuple[str, str], Callable[[Any, str, int], Rows]] = {
    ("qdrant_client", "QdrantClient"): _qdrant,
    ("sqlalchemy", "Engine"): _postgres,
}
