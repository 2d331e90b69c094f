"""Slots in databases: PostgreSQL, DuckDB and SQLite, whose tables hold the vectors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from ..errors import ConfigError
from .slot import KEY, Slot

__all__ = [
    "PG_COLLECTIONS",
    "PG_ROWS",
    "comment_slot",
    "duckdb_slot",
    "is_collection",
    "pg_langchain",
    "pg_llama_index",
    "pg_slot",
    "pgvector_slot",
    "sqlite_slot",
]

_LINE = re.compile(rf"^{KEY}: (\{{.*\}})$", re.MULTILINE)
PG_COLLECTIONS, PG_ROWS = "langchain_pg_collection", "langchain_pg_embedding"  # the tables of LangChain's PGVector


def _line_of(comment: str) -> str | None:
    found = _LINE.search(comment)
    return found[1] if found else None


def _with_line(comment: str, line: str) -> str:
    """Return a comment with the line in it; what else the comment says stays."""
    return f"{_LINE.sub('', comment).strip()}\n{KEY}: {line}".lstrip()


# ---- PostgreSQL, through SQLAlchemy


def pg_slot(engine: Any, name: str) -> Slot:
    """Return the slot of a table, or of a collection of LangChain's ``PGVector``.

    Args:
        engine: a synchronous SQLAlchemy engine.
        name: of the table or collection; LlamaIndex's table is ``data_`` and the name that it was given.
    """

    def run(work: Callable[[Any], Any]) -> Any:
        with engine.begin() as connection:
            return work(connection)

    if run(lambda connection: is_collection(connection, name)):
        return _collection_slot(run, name)
    return comment_slot(run, name, None)


def is_collection(connection: Any, name: str) -> bool:
    """Tell whether this is a collection of LangChain's ``PGVector`` and no table."""
    from sqlalchemy import inspect, text

    has_table = inspect(connection).has_table
    if has_table(name) or not has_table(PG_COLLECTIONS):
        return False
    query = text(f"SELECT 1 FROM {PG_COLLECTIONS} WHERE name = :name")
    return connection.execute(query, {"name": name}).first() is not None


def pgvector_slot(store: Any) -> Slot:
    """Return the slot in the metadata of LangChain's ``PGVector`` collection."""
    if store.async_mode:
        raise ConfigError("this PGVector store is asynchronous: stamp the collection through a synchronous one")

    def run(work: Callable[[Any], Any]) -> Any:
        with store._engine.begin() as connection:  # noqa: SLF001 - langchain-postgres has no public way
            return work(connection)

    return _collection_slot(run, store.collection_name)


def _collection_slot(run: Callable[[Callable[[Any], Any]], Any], name: str) -> Slot:
    from sqlalchemy import text

    of_rows = f"FROM {PG_ROWS} JOIN {PG_COLLECTIONS} c ON c.uuid = collection_id WHERE c.name = :name LIMIT 1"

    def first(query: str, **values: str) -> Any:
        row = run(lambda connection: connection.execute(text(query), {"name": name, **values}).first())
        return row and row[0]

    def metadata() -> dict[str, Any]:
        # It may be SQL's NULL or JSON's.
        return json.loads(first(f"SELECT cmetadata::text FROM {PG_COLLECTIONS} WHERE name = :name") or "null") or {}

    def write(line: str) -> None:
        changed = json.dumps({**metadata(), KEY: line})
        first(
            f"UPDATE {PG_COLLECTIONS} SET cmetadata = CAST(:changed AS json) WHERE name = :name RETURNING 1",
            changed=changed,
        )

    def dimensions() -> set[int]:
        size = first(f"SELECT vector_dims(embedding) {of_rows}")
        return {size} if size else set()

    return Slot(
        lambda: metadata().get(KEY),
        write,
        dimensions,
        lambda: first(f"SELECT 1 {of_rows}") is None,
    )


def pg_llama_index(store: Any) -> Slot:
    """Return the slot in the comment of the table of LlamaIndex's ``PGVectorStore``."""
    store._initialize()  # noqa: SLF001 - otherwise the table is made at the first add
    table = store._table_class.__table__  # noqa: SLF001

    def run(work: Callable[[Any], Any]) -> Any:
        with store._engine.begin() as connection:  # noqa: SLF001
            return work(connection)

    return comment_slot(run, table.name, table.schema)


def pg_langchain(store: Any) -> Slot:
    """Return the slot in the comment of the table of LangChain's ``PGVectorStore``."""
    inner, engine = store._PGVectorStore__vs, store._engine  # noqa: SLF001 - it has no public way to the table's name

    async def begin(work: Callable[[Any], Any]) -> Any:
        async with engine._pool.begin() as connection:  # noqa: SLF001
            return await connection.run_sync(work)

    return comment_slot(lambda work: engine._run_as_sync(begin(work)), inner.table_name, inner.schema_name)  # noqa: SLF001


def comment_slot(run: Callable[[Callable[[Any], Any]], Any], table: str, schema: str | None) -> Slot:
    """Return the slot that is one line of a PostgreSQL table's comment, beside what else stands there.

    Args:
        run: does work with a SQLAlchemy connection, in a transaction.
        table: its name.
        schema: where it is not in the search path.
    """
    whole = f'"{schema}"."{table}"' if schema else f'"{table}"'

    def text(connection: Any) -> str:
        from sqlalchemy import inspect

        return str(inspect(connection).get_table_comment(table, schema=schema)["text"] or "")

    def write(connection: Any, line: str) -> None:
        from sqlalchemy import MetaData, Table
        from sqlalchemy.schema import SetTableComment

        comment = _with_line(text(connection), line)
        connection.execute(SetTableComment(Table(table, MetaData(), schema=schema, comment=comment)))

    def sizes(connection: Any) -> set[int]:
        from sqlalchemy import text as sql

        query = sql(
            "SELECT atttypmod FROM pg_attribute WHERE attrelid = to_regclass(:name) AND atttypmod > 0 "
            "AND NOT attisdropped AND atttypid IN (SELECT oid FROM pg_type WHERE typname IN ('vector', 'halfvec'))"
        )
        return {int(row[0]) for row in connection.execute(query, {"name": whole})}

    def empty(connection: Any) -> bool:
        from sqlalchemy import text as sql

        return connection.execute(sql(f"SELECT 1 FROM {whole} LIMIT 1")).first() is None

    return Slot(
        lambda: _line_of(run(text)),
        lambda line: run(lambda connection: write(connection, line)),
        lambda: run(sizes),
        lambda: bool(run(empty)),
    )


# ---- DuckDB and SQLite


def duckdb_slot(connection: Any, table: str) -> Slot:
    """Return the slot that is one line of a DuckDB table's comment.

    Args:
        connection: to the database.
        table: its name, in the current schema.
    """
    here = "table_name = ? AND schema_name = current_schema() AND database_name = current_database()"
    quoted = '"' + table.replace('"', '""') + '"'

    def comment() -> str:
        row = connection.execute(f"SELECT comment FROM duckdb_tables() WHERE {here}", [table]).fetchone()
        if row is None:
            raise ConfigError(f"no table {table!r} in this DuckDB")
        return str(row[0] or "")

    def write(line: str) -> None:
        value = _with_line(comment(), line).replace("'", "''")
        connection.execute(f"COMMENT ON TABLE {quoted} IS '{value}'")

    def dimensions() -> set[int]:
        kinds = connection.execute(f"SELECT column_name, data_type FROM duckdb_columns() WHERE {here}", [table])
        sizes = [_duckdb_size(connection, quoted, name, kind) for name, kind in kinds.fetchall()]
        return {size for size in sizes if size}

    def empty() -> bool:
        return connection.execute(f"SELECT 1 FROM {quoted} LIMIT 1").fetchone() is None

    return Slot(lambda: _line_of(comment()), write, dimensions, empty)


def _duckdb_size(connection: Any, table: str, name: str, kind: str) -> int:
    """Return the length of a column of vectors; 0 of any other column, or where there is no row to measure."""
    found = re.fullmatch(r"(?:FLOAT|DOUBLE)\[(\d*)\]", kind)
    if found is None or found[1]:
        return int(found[1]) if found else 0
    column = '"' + name.replace('"', '""') + '"'
    row = connection.execute(f"SELECT len({column}) FROM {table} WHERE {column} IS NOT NULL LIMIT 1").fetchone()
    return int(row[0]) if row else 0


def sqlite_slot(connection: Any, table: str) -> Slot:
    """Return the slot that is a row of the table ``bge_stamp``, beside the table of the vectors (sqlite-vec).

    Args:
        connection: of ``sqlite3``; writing commits what is open in it.
        table: its name; LangChain's ``SQLiteVec`` keeps vectors in ``TABLE_vec``.
    """

    def read() -> str | None:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [KEY]).fetchone():
            return None
        row = connection.execute(f"SELECT line FROM {KEY} WHERE name = ?", [table]).fetchone()
        return str(row[0]) if row else None

    def write(line: str) -> None:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [table]).fetchone():
            raise ConfigError(f"no table {table!r} in this SQLite database")
        with connection:
            connection.execute(f"CREATE TABLE IF NOT EXISTS {KEY} (name TEXT PRIMARY KEY, line TEXT NOT NULL)")
            connection.execute(f"INSERT OR REPLACE INTO {KEY} VALUES (?, ?)", [table, line])

    def dimensions() -> set[int]:
        query = "SELECT sql FROM sqlite_master WHERE name IN (?, ?) AND sql LIKE '%vec0%'"
        made = connection.execute(query, [table, f"{table}_vec"]).fetchall()
        return {int(size) for (sql,) in made for size in re.findall(r"(?:float|int8|bit)\[(\d+)\]", sql)}

    def empty() -> bool:
        quoted = '"' + table.replace('"', '""') + '"'
        return connection.execute(f"SELECT 1 FROM {quoted} LIMIT 1").fetchone() is None

    return Slot(read, write, dimensions, empty)
