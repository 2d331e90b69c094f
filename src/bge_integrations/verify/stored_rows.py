"""A sample of what a vector store holds: texts as they were embedded, and their vectors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError

__all__ = ["Sample", "read_sample"]


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
        store: of LangChain or LlamaIndex over Chroma, Qdrant, LanceDB, FAISS (LangChain's) or pgvector (LangChain's
            ``PGVectorStore``); a Chroma collection, a LanceDB table, or a pair of a Qdrant client and a collection.
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
    if isinstance(store, tuple) and len(store) == 2:
        return lambda count: _qdrant(*store, count)
    for base in type(store).__mro__:
        read = _KINDS.get((base.__module__.partition(".")[0], base.__name__))
        if read is not None:
            return lambda count: read(store, count)
    known = ", ".join(sorted({name for _, name in _KINDS}))
    raise ConfigError(
        f"rows of a {type(store).__name__} cannot be read; known: {known}, and (QdrantClient, collection)"
    )


def _places(rows: int, count: int) -> list[int]:
    """Return positions spread over all rows, so that what was added later is seen too."""
    return sorted({int(place) for place in np.linspace(0, max(rows - 1, 0), min(count, rows))}) if rows else []


def _chroma(collection: Any, count: int) -> Rows:
    rows = collection.count()
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


def _postgres(store: Any, count: int) -> Rows:
    from sqlalchemy import text

    inner, engine = store._PGVectorStore__vs, store._engine  # noqa: SLF001 - it has no public way to the table's name

    async def read() -> Rows:
        table = f'"{inner.schema_name}"."{inner.table_name}"'
        columns = f'"{inner.content_column}", "{inner.embedding_column}"::text'
        async with engine._pool.connect() as connection:  # noqa: SLF001
            total = (await connection.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one()
            query = text(f"SELECT {columns} FROM {table} ORDER BY random() LIMIT :count")
            rows = (await connection.execute(query, {"count": count})).all()
        return int(total), [(row[0], json.loads(row[1])) for row in rows]

    found: Rows = engine._run_as_sync(read())  # noqa: SLF001
    return found


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
    ("langchain_postgres", "PGVectorStore"): _postgres,
    ("langchain_qdrant", "QdrantVectorStore"): lambda store, count: _qdrant(store.client, store.collection_name, count),
    ("lancedb", "Table"): _lance,
    ("llama_index", "ChromaVectorStore"): lambda store, count: _chroma(store.client, count),
    ("llama_index", "LanceDBVectorStore"): lambda store, count: _lance(store.table, count),
    ("llama_index", "QdrantVectorStore"): lambda store, count: _qdrant(store.client, store.collection_name, count),
}
