"""PostgreSQL with pgvector, in the layout of LangChain's ``PGVectorStore``, with ids as text.

Sparse vectors go into one column more, ``sparse``; ids count from 1 in pgvector's text, from 0 in its clients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import orjson

from ...errors import BGEWarning, warn
from ...extras import require
from ...stamps.slots import comment_slot
from .target import Key, Place, Target, UploadBatch, check_dimensions, pages

BATCH_ROWS = 2000
TAKES = ("url", "client")
PACKAGES = {"sqlalchemy": "sqlalchemy", "psycopg": "'psycopg[binary]'"}
MARKS: tuple[str, ...] = ()
SPARSE = True
LASTS = True
_SCHEMA = "public"
_COLUMNS = ("langchain_id", "content", "embedding", "langchain_metadata", "sparse")
_INDEXABLE, _STORABLE = 1000, 16_000  # elements; https://github.com/pgvector/pgvector#sparse-vectors


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""').replace("%", "%%") + '"'  # the driver reads a % as a parameter's mark


class _Target(Target):
    def __init__(self, engine: Any, place: Place) -> None:
        self.engine, self.table = engine, f"{_SCHEMA}.{_quoted(place.collection)}"
        self.stamped = comment_slot(self._run, place.collection, _SCHEMA)
        self.columns = _COLUMNS if place.vocabulary else _COLUMNS[:-1]
        self.vocabulary, self._warned = place.vocabulary, False

    def _run(self, work: Callable[[Any], str | None]) -> str | None:
        with self.engine.begin() as connection:
            return work(connection)

    def count(self) -> int:
        with self.engine.connect() as connection:
            return int(connection.exec_driver_sql(f"SELECT count(*) FROM {self.table}").scalar())

    def put(self, batch: UploadBatch) -> None:
        columns = ", ".join(map(_quoted, self.columns))
        changed = ", ".join(f"{name} = excluded.{name}" for name in map(_quoted, self.columns[1:]))
        self._warn(batch)
        with self.engine.begin() as connection:
            # A table of the target's own types takes the rows, since COPY itself cannot replace any.
            connection.exec_driver_sql(f"CREATE TEMP TABLE bge_rows (LIKE {self.table}) ON COMMIT DROP")
            with (
                connection.connection.cursor() as cursor,
                cursor.copy(f"COPY bge_rows ({columns}) FROM STDIN") as copy,
            ):
                for row in _rows(batch, self.vocabulary):
                    copy.write_row(row)
            connection.exec_driver_sql(
                f"INSERT INTO {self.table} ({columns}) SELECT {columns} FROM bge_rows "
                f'ON CONFLICT ("langchain_id") DO UPDATE SET {changed}'
            )

    def held(self) -> Iterator[list[tuple[Key, str | None]]]:
        with self.engine.connect().execution_options(stream_results=True) as connection:
            found = connection.exec_driver_sql(f'SELECT "langchain_id", "content" FROM {self.table}')
            for page in found.partitions(BATCH_ROWS):
                yield [(str(key), text) for key, text in page]

    def delete(self, keys: Sequence[Key]) -> None:
        with self.engine.begin() as connection:
            for page in pages(keys, BATCH_ROWS):
                query = f'DELETE FROM {self.table} WHERE "langchain_id" = ANY(%s)'
                connection.exec_driver_sql(query, (page,))

    def _warn(self, batch: UploadBatch) -> None:
        large = [key for key, (ids, _) in zip(batch.ids, batch.sparse or (), strict=False) if len(ids) > _INDEXABLE]
        if large and not self._warned:
            self._warned = True
            warn(
                f"row {large[0]!r} has more than {_INDEXABLE} sparse elements: pgvector stores up to {_STORABLE}, but "
                "an HNSW index on the column refuses such rows; use shorter chunks",
                BGEWarning,
            )


def _rows(batch: UploadBatch, vocabulary: int) -> Iterator[tuple[str, ...]]:
    sparse: list[tuple[str, ...]] = [(_sparse(ids, weights, vocabulary),) for ids, weights in batch.sparse or ()]
    sparse = sparse or [()] * len(batch.ids)
    rows = zip(batch.ids, batch.texts, batch.vectors, batch.metadata, sparse, strict=True)
    for key, text, vector, metadata, last in rows:
        # PostgreSQL's text cannot hold a NUL.
        yield (
            key,
            text.replace("\0", "\ufffd"),
            orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY).decode(),
            orjson.dumps(metadata).decode(),
            *last,
        )


def _sparse(ids: Any, weights: Any, vocabulary: int) -> str:
    elements = ",".join(f"{i + 1}:{weight!r}" for i, weight in zip(ids.tolist(), weights.tolist(), strict=True))
    return f"{{{elements}}}/{vocabulary}"


@contextmanager
def open_target(place: Place) -> Iterator[_Target]:
    """Open the table, made where it is missing, and the extension with it.

    Raises:
        MissingExtraError: there is no SQLAlchemy or psycopg.
        ConfigError: the table has vectors of another size.
    """
    sqlalchemy = require("sqlalchemy", install="sqlalchemy", purpose="the upload")
    require("psycopg", install="'psycopg[binary]'", purpose="the upload")
    engine = place.ready(lambda: sqlalchemy.create_engine(_url(place)))
    try:
        target = _Target(engine, place)
        with engine.begin() as connection:
            _ready(connection, target.table, place)
        yield target
    finally:
        if place.client is None:
            engine.dispose()


def _url(place: Place) -> Any:
    from sqlalchemy import make_url

    return make_url(place.url or "").set(drivername="postgresql+psycopg")


def _ready(connection: Any, table: str, place: Place) -> None:
    connection.exec_driver_sql("CREATE EXTENSION IF NOT EXISTS vector")
    connection.exec_driver_sql(
        f'CREATE TABLE IF NOT EXISTS {table} ("langchain_id" TEXT PRIMARY KEY, "content" TEXT NOT NULL, '
        f'"embedding" vector({place.dimensions}) NOT NULL, "langchain_metadata" JSON)'
    )
    if place.vocabulary:
        connection.exec_driver_sql(
            f'ALTER TABLE {table} ADD COLUMN IF NOT EXISTS "sparse" sparsevec({place.vocabulary})'
        )
    # pgvector keeps the size as the type's modifier.
    found = connection.exec_driver_sql(
        "SELECT atttypmod FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname = 'embedding'",
        (table.replace("%%", "%"),),
    ).scalar()
    check_dimensions(found if found and found > 0 else None, place)


def how_to_open(place: Place, model: str) -> str:
    """Return Python that opens the table."""
    url = _url(place).render_as_string(hide_password=True)
    sparse = (
        "The column \"sparse\" takes m3.sparse('pgvector').embed_query(...) of BGEM3: ORDER BY sparse <#> ...\n"
        if place.vocabulary
        else ""
    )
    return (
        f"PGVectorStore.create_sync(PGEngine.from_connection_string({url!r}), BGEEmbeddings({model!r}), "
        f"{place.collection!r})  # langchain_postgres\n"
        f"{sparse}LlamaIndex's PGVectorStore needs a table of its own layout and cannot read this one."
    )
