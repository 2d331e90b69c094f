"""LanceDB, in LangChain's layout: ``vector``, ``id``, ``text`` and a struct ``metadata``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ...errors import ConfigError
from ...extras import require
from ..formats import column_types
from ..part import Part
from .target import Key, Place, Target, UploadBatch, check_dimensions, pages

# A commit is a version and some files of its own, so few and large ones.
BATCH_ROWS = 10_000
TAKES = ("path", "url", "client")
PACKAGES = {"lancedb": "lancedb", "pyarrow": "pyarrow"}
MARKS: tuple[str, ...] = ("*.lance",)
SPARSE = False
LASTS = True


class _Target(Target):
    def __init__(self, table: Any) -> None:
        self.stamped = self.table = table
        self.kinds = {field.name: field.type for field in table.schema.field("metadata").type}

    def count(self) -> int:
        return int(self.table.count_rows())

    def put(self, batch: UploadBatch) -> None:
        rows = _layout(batch, self.kinds)
        self.table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(rows)

    def held(self) -> Iterator[list[tuple[Key, str | None]]]:
        for batch in self.table.search().select(["id", "text"]).to_batches():
            yield list(zip(batch["id"].to_pylist(), batch["text"].to_pylist(), strict=True))

    def delete(self, keys: Sequence[Key]) -> None:
        for page in pages(keys, BATCH_ROWS):
            names = ", ".join("'" + str(key).replace("'", "''") + "'" for key in page)
            self.table.delete(f"id IN ({names})")


def _layout(batch: UploadBatch, kinds: dict[str, Any]) -> Any:
    import pyarrow as pa

    vectors = np.ascontiguousarray(batch.vectors)
    columns = {"id": batch.part.ids, **batch.part.kept}
    unknown = sorted(columns.keys() - kinds.keys())
    if unknown:
        raise ConfigError(f"the table's metadata has no {', '.join(map(repr, unknown))}: name another --collection")
    metadata = [pa.array(columns.get(name, [None] * len(batch.ids)), kind) for name, kind in kinds.items()]
    return pa.table(
        {
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1]),
            "id": pa.array(batch.ids, pa.string()),
            "text": pa.array(batch.texts, pa.string()),
            "metadata": pa.StructArray.from_arrays(metadata, list(kinds)),
        }
    )


@contextmanager
def open_target(place: Place) -> Iterator[_Target]:
    """Open the table, made where it is missing.

    Raises:
        MissingExtraError: there is no lancedb.
        ConfigError: the table has vectors of another size.
    """
    lancedb = require("lancedb", install="lancedb", purpose="the upload")
    given = {"api_key": place.key} if place.key else {}
    connection = place.ready(lambda: lancedb.connect(place.path or place.url, **given))
    table = _table(connection, place)
    check_dimensions(getattr(table.schema.field("vector").type, "list_size", None), place)
    yield _Target(table)


def _table(connection: Any, place: Place) -> Any:
    try:
        return connection.open_table(place.collection)
    except (ValueError, FileNotFoundError):  # one of these, by LanceDB's version, says that there is no such table
        none = UploadBatch(Part([], [], np.empty((0, place.dimensions), np.float32), {}))
        return connection.create_table(place.collection, schema=_layout(none, column_types(place.shard)).schema)


def how_to_open(place: Place, model: str) -> str:
    """Return Python that opens the table."""
    uri, name = place.path or place.url, place.collection
    return (
        f"LanceDB(lancedb.connect({uri!r}), BGEEmbeddings({model!r}), table_name={name!r})"
        "  # langchain_community.vectorstores\n"
        f"LanceDBVectorStore({uri!r}, {name!r}, doc_id_key='id')  # llama_index.vector_stores.lancedb"
    )
