"""Where each kind of vector store keeps one line of text about itself; known by name, so that none is imported."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ..core.files import write_atomic
from ..errors import ConfigError

KEY = "bge_stamp"


class Slot(NamedTuple):
    """Where one store keeps its line.

    Attributes:
        read: returns the line, or None.
        write: replaces it.
        dimensions: returns the lengths of the vectors that the store holds or is made for; empty where unknown.
    """

    read: Callable[[], str | None]
    write: Callable[[str], None]
    dimensions: Callable[[], set[int]] = set


def find_slot(store: Any) -> Slot:
    """Return where a store keeps its line.

    Raises:
        ConfigError: no such kind of store, or one that cannot keep it.
    """
    if isinstance(store, Slot):
        return store
    if isinstance(store, (str, Path)):
        return _folder(Path(store))
    for kind in type(store).__mro__:
        make = _KINDS.get((kind.__module__.partition(".")[0], kind.__name__))
        if make is not None:
            return make(store)
    for name in ("vector_store", "vectorstore"):
        if getattr(store, name, None) is not None:
            return find_slot(getattr(store, name))
    known = ", ".join(sorted({name for _, name in _KINDS}))
    raise ConfigError(f"{type(store).__name__} cannot be stamped; known: {known}, and folders of FAISS indexes")


def _folder(folder: Path) -> Slot:
    if not folder.is_dir():
        raise ConfigError(f"{str(folder)!r} is not a folder: save the index first, then stamp its folder")
    path = folder / f"{KEY}.json"

    def write(line: str) -> None:
        write_atomic(path, line + "\n")
        for index in _faiss_indexes(folder):  # whoever may read the index may check it
            path.chmod(index.stat().st_mode & 0o666)

    def dimensions() -> set[int]:
        return set(_faiss_indexes(folder).values())

    return Slot(lambda: path.read_text("utf-8") if path.exists() else None, write, dimensions)


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


def _chroma(collection: Any) -> Slot:
    def write(line: str) -> None:
        # Chroma refuses to hear again which distance it uses, even the same one.
        kept = {key: value for key, value in (collection.metadata or {}).items() if not key.startswith("hnsw:")}
        collection.modify(metadata={**kept, KEY: line})

    def dimensions() -> set[int]:
        vectors = collection.get(limit=1, include=["embeddings"])["embeddings"]
        return {len(vector) for vector in vectors}

    return Slot(lambda: (collection.metadata or {}).get(KEY), write, dimensions)


def _qdrant(store: Any) -> Slot:
    if store.client is None:
        raise ConfigError("the store has only an asynchronous Qdrant client: give it a synchronous one too")
    return qdrant_slot(store.client, store.collection_name)


def qdrant_slot(client: Any, name: str) -> Slot:
    """Return the slot that is in the metadata of a Qdrant collection."""

    def metadata() -> dict[str, Any]:
        return dict(getattr(client.get_collection(name).config, "metadata", None) or {})

    def write(line: str) -> None:
        client.update_collection(collection_name=name, metadata={**metadata(), KEY: line})

    def dimensions() -> set[int]:
        vectors = client.get_collection(name).config.params.vectors
        named = vectors.values() if isinstance(vectors, dict) else [vectors]  # one is not in a dictionary
        return {vector.size for vector in named if vector is not None}

    return Slot(lambda: metadata().get(KEY), write, dimensions)


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

    return Slot(read, write, dimensions)


def _pg_collection(store: Any) -> Slot:
    if store.async_mode:
        raise ConfigError("this PGVector store is asynchronous: stamp the collection through a synchronous one")

    def read() -> str | None:
        with store._make_sync_session() as session:  # noqa: SLF001 - langchain-postgres has no public way
            return (store.get_collection(session).cmetadata or {}).get(KEY)

    def write(line: str) -> None:
        with store._make_sync_session() as session:  # noqa: SLF001
            collection = store.get_collection(session)
            collection.cmetadata = {**(collection.cmetadata or {}), KEY: line}
            session.commit()

    def dimensions() -> set[int]:
        with store._make_sync_session() as session:  # noqa: SLF001
            rows = session.query(store.EmbeddingStore.embedding)
            row = rows.filter_by(collection_id=store.get_collection(session).uuid).first()
            return {len(row[0])} if row else set()

    return Slot(read, write, dimensions)


def _pg_llama_index(store: Any) -> Slot:
    store._initialize()  # noqa: SLF001 - otherwise the table is made at the first add
    table = store._table_class.__table__  # noqa: SLF001

    def run(work: Callable[[Any], str | None]) -> str | None:
        with store._engine.begin() as connection:  # noqa: SLF001
            return work(connection)

    return comment_slot(run, table.name, table.schema)


def _pg_langchain(store: Any) -> Slot:
    inner, engine = store._PGVectorStore__vs, store._engine  # noqa: SLF001 - it has no public way to the table's name

    async def begin(work: Callable[[Any], str | None]) -> Any:
        async with engine._pool.begin() as connection:  # noqa: SLF001
            return await connection.run_sync(work)

    return comment_slot(lambda work: engine._run_as_sync(begin(work)), inner.table_name, inner.schema_name)  # noqa: SLF001


_LINE = re.compile(rf"^{KEY}: (\{{.*\}})$", re.MULTILINE)


def comment_slot(run: Callable[[Callable[[Any], str | None]], str | None], table: str, schema: str | None) -> Slot:
    """Return the slot that is one line of a PostgreSQL table's comment, beside what else stands there.

    Args:
        run: does work with a SQLAlchemy connection, in a transaction.
        table: its name.
        schema: where it is not in the search path.
    """

    def text(connection: Any) -> str:
        from sqlalchemy import inspect

        return str(inspect(connection).get_table_comment(table, schema=schema)["text"] or "")

    def read(connection: Any) -> str | None:
        found = _LINE.search(text(connection))
        return found[1] if found else None

    def write(connection: Any, line: str) -> None:
        from sqlalchemy import MetaData, Table
        from sqlalchemy.schema import SetTableComment

        others = _LINE.sub("", text(connection)).strip()
        comment = f"{others}\n{KEY}: {line}".lstrip()
        connection.execute(SetTableComment(Table(table, MetaData(), schema=schema, comment=comment)))

    def sizes(connection: Any) -> str:
        from sqlalchemy import text as sql

        name = f'{schema}"."{table}' if schema else table
        query = sql(
            "SELECT atttypmod FROM pg_attribute WHERE attrelid = to_regclass(:name) AND atttypmod > 0 "
            "AND NOT attisdropped AND atttypid IN (SELECT oid FROM pg_type WHERE typname IN ('vector', 'halfvec'))"
        )
        return ",".join(str(row[0]) for row in connection.execute(query, {"name": f'"{name}"'}))

    def dimensions() -> set[int]:
        return {int(size) for size in (run(sizes) or "").split(",") if size}

    return Slot(lambda: run(read), lambda line: (run(lambda connection: write(connection, line)), None)[1], dimensions)


_KINDS: dict[tuple[str, str], Callable[[Any], Slot]] = {
    ("langchain_chroma", "Chroma"): lambda store: _chroma(store._collection),  # noqa: SLF001
    ("chromadb", "Collection"): _chroma,
    ("langchain_qdrant", "QdrantVectorStore"): _qdrant,
    ("langchain_postgres", "PGVector"): _pg_collection,
    ("langchain_postgres", "PGVectorStore"): _pg_langchain,
    ("langchain_community", "LanceDB"): lambda store: _lance(store.get_table()),
    ("langchain_community", "FAISS"): _faiss,
    ("lancedb", "Table"): _lance,
    ("llama_index", "ChromaVectorStore"): lambda store: _chroma(store.client),
    ("llama_index", "QdrantVectorStore"): _qdrant,
    ("llama_index", "PGVectorStore"): _pg_llama_index,
    ("llama_index", "LanceDBVectorStore"): lambda store: _lance(store.table),
    ("llama_index", "FaissVectorStore"): _faiss,
}
