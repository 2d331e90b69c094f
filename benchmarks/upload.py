"""What each store's own way of ``bge upload`` saves against LangChain's ``add_texts`` with the same stored vectors.

    python benchmarks/upload.py                          20,000 rows of 384 dimensions, and results/upload.json
    python benchmarks/upload.py --rows 2000 --dry        a smoke run
    python benchmarks/upload.py --only chroma pgvector   beside what the file holds already

In each round both ways write the same batches into an empty store of their own, one after the other, in an order that
turns; the medians of the rounds' ratios count. Opening is not timed, saving FAISS's index is. The generic way hands
LangChain's class of the store an ``Embeddings`` that gives the vectors which are there already. "replaces" says whether
writing the first batch again leaves as many rows as before. PostgreSQL is a cluster of the tests' own, without fsync.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from langchain_core.embeddings import Embeddings

import sys  # isort: skip

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]
RESULTS = HERE / "results" / "upload.json"
STORES = ("chroma", "qdrant", "lancedb", "faiss", "pgvector")
WORDS = "a text of a common length says in some words what a reader of a handbook may want to look up one day"


class Stored(Embeddings):
    """Vectors that are there already, in the place of a model."""

    def __init__(self, dimensions: int) -> None:
        self.dimensions, self.vectors = dimensions, np.empty((0, dimensions), np.float32)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        if not len(self.vectors):  # stores embed a text to learn the dimensions
            return [self.embed_query(text) for text in texts]
        taken, self.vectors = self.vectors[: len(texts)], self.vectors[len(texts) :]
        return taken.tolist()

    def embed_query(self, text: str) -> list[float]:
        return [0.0] * (self.dimensions - 1) + [float(len(text) > 0)]


def batches(rows: int, dimensions: int, size: int) -> list[Any]:
    import bulk_vectors

    from bge_integrations.bulk.part import Part
    from bge_integrations.bulk.upload.target import UploadBatch

    vectors = bulk_vectors.unit_rows(rows, dimensions)
    texts = [f"{i} {WORDS}" for i in range(rows)]
    parts = (slice(first, first + size) for first in range(0, rows, size))
    return [
        UploadBatch(
            Part([f"row-{i}" for i in range(rows)[part]], texts[part], vectors[part], {"n": list(range(rows)[part])})
        )
        for part in parts
    ]


Way = tuple[Callable[[Any], None], Callable[[], int], Callable[[], None]]
"""Writes a batch; counts rows; makes it last."""


@contextlib.contextmanager
def own_way(into: str, place: Any) -> Iterator[Way]:
    from bge_integrations.bulk.upload import _store

    store = _store(into)
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(store.open_target(place))
        yield target.put, target.count, stack.close


@contextlib.contextmanager
def generic(into: str, place: Any) -> Iterator[Way]:
    from bge_integrations.bulk.upload.qdrant import point_id

    stored = Stored(place.dimensions)
    opened = OPENERS[into](stored, place)
    with opened as (store, count, save):

        def put(batch: Any) -> None:
            stored.vectors = batch.vectors
            ids = [point_id(key) for key in batch.ids] if into == "qdrant" else batch.ids
            metadata = [{**each} for each in batch.metadata]
            store.add_texts(batch.texts, metadatas=metadata, ids=ids)

        yield put, count, save


@contextlib.contextmanager
def open_chroma(stored: Stored, place: Any) -> Iterator[Any]:
    from langchain_chroma import Chroma

    store = Chroma(
        place.collection,
        stored,
        persist_directory=place.path,
        collection_configuration={"hnsw": {"space": "cosine"}},
    )
    yield store, store._collection.count, lambda: None  # noqa: SLF001


@contextlib.contextmanager
def open_qdrant(stored: Stored, place: Any) -> Iterator[Any]:
    from langchain_qdrant import QdrantVectorStore
    from qdrant_client import QdrantClient, models

    client = QdrantClient(path=place.path)
    config = models.VectorParams(size=place.dimensions, distance=models.Distance.COSINE)
    client.create_collection(place.collection, vectors_config=config)
    yield (
        QdrantVectorStore(client, place.collection, stored),
        lambda: client.count(place.collection).count,
        lambda: None,
    )
    client.close()


@contextlib.contextmanager
def open_lancedb(stored: Stored, place: Any) -> Iterator[Any]:
    import lancedb
    from langchain_community.vectorstores import LanceDB

    store = LanceDB(lancedb.connect(place.path), stored, table_name=place.collection, mode="append")
    yield store, lambda: store.get_table().count_rows(), lambda: None


@contextlib.contextmanager
def open_faiss(stored: Stored, place: Any) -> Iterator[Any]:
    import faiss
    from langchain_community.docstore.in_memory import InMemoryDocstore
    from langchain_community.vectorstores import FAISS

    store = FAISS(stored, faiss.IndexFlatL2(place.dimensions), InMemoryDocstore(), {})
    yield store, lambda: store.index.ntotal, lambda: store.save_local(place.path, place.collection)


@contextlib.contextmanager
def open_pgvector(stored: Stored, place: Any) -> Iterator[Any]:
    import sqlalchemy
    from langchain_postgres import Column, PGEngine, PGVectorStore

    url = place.url.replace("postgresql:", "postgresql+psycopg:")
    engine = PGEngine.from_connection_string(url)
    engine.init_vectorstore_table(place.collection, place.dimensions, id_column=Column("langchain_id", "TEXT"))
    counting = sqlalchemy.create_engine(url)

    def count() -> int:
        with counting.connect() as connection:
            return int(connection.exec_driver_sql(f'SELECT count(*) FROM "{place.collection}"').scalar() or 0)

    yield PGVectorStore.create_sync(engine, stored, place.collection), count, lambda: None
    counting.dispose()
    engine._run_as_sync(engine.close())  # noqa: SLF001


OPENERS = {
    "chroma": open_chroma,
    "qdrant": open_qdrant,
    "lancedb": open_lancedb,
    "faiss": open_faiss,
    "pgvector": open_pgvector,
}


def timed(way: Any, into: str, place: Any, written: list[Any]) -> tuple[float, bool]:
    """Return the seconds that writing takes, and whether the first batch is replaced when it is written again."""
    with way(into, place) as (put, count, save):
        began = time.perf_counter()
        for batch in written:
            put(batch)
        seconds = time.perf_counter() - began
        again = _replaces(put, count, written[0])
        began = time.perf_counter()
        save()
        return seconds + time.perf_counter() - began, again


def _replaces(put: Callable[[Any], None], count: Callable[[], int], batch: Any) -> bool:
    before = count()
    try:
        put(batch)
    except ValueError:  # FAISS of LangChain refuses an id that is there
        return False
    return count() == before


def compare(into: str, rows: int, dimensions: int, rounds: int, socket: str | None) -> dict[str, Any]:
    from bge_integrations.bulk.upload import _store
    from bge_integrations.bulk.upload.target import Place

    size = _store(into).BATCH_ROWS
    written = batches(rows, dimensions, size)
    seconds: dict[Any, list[float]] = {own_way: [], generic: []}
    replaces: dict[Any, bool] = {}
    with tempfile.TemporaryDirectory(prefix="bge-upload-", ignore_cleanup_errors=True) as scratch:
        shard = _first_shard(Path(scratch), dimensions)
        for number in range(rounds):
            for way in (own_way, generic) if number % 2 else (generic, own_way):
                name = f"t{number}{way.__name__}"
                where = {"url": f"postgresql://postgres@/postgres?host={socket}"} if into == "pgvector" else {}
                where = where or {"path": str(Path(scratch) / name)}
                taken, replaces[way] = timed(way, into, Place(name, dimensions, shard, **where), written)
                seconds[way].append(taken)
    ratios = [a / b for a, b in zip(seconds[generic], seconds[own_way], strict=True)]
    return {
        "store": into,
        "rows": rows,
        "dimensions": dimensions,
        "rounds": rounds,
        "rows a batch": size,
        "add_texts, of its own way's time": round(statistics.median(ratios), 2),
        "least": round(min(ratios), 2),
        "largest": round(max(ratios), 2),
        "own way, seconds": round(statistics.median(seconds[own_way]), 2),
        "own way replaces": replaces[own_way],
        "add_texts replaces": replaces[generic],
    }


def _first_shard(folder: Path, dimensions: int) -> Path:
    """Return a shard with the columns that the rows have."""
    from bge_integrations.bulk.formats import FORMATS
    from bge_integrations.bulk.rows import Columns, Row
    from bge_integrations.bulk.shard_format import Contents

    import pyarrow as pa  # isort: skip

    path = folder / "part-000000.parquet"
    contents = Contents(Columns(keep=("n",)), {"dimensions": dimensions}, kinds=(pa.int64(),), named=True)
    FORMATS["parquet"].write(path, [Row("", 1, "a", "a", (1,))], np.ones((1, dimensions), np.float32), contents)
    return path


def main() -> None:
    from postgres import find_postgres, postgres

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=STORES, default=STORES)
    parser.add_argument("--dry", action="store_true", help="do not write the results file")
    given = parser.parse_args()
    before = json.loads(RESULTS.read_text("utf-8"))["stores"] if RESULTS.exists() else []
    found = {each["store"]: each for each in before}
    for into in given.only:
        if into == "pgvector" and find_postgres() is None:
            print("pgvector: no PostgreSQL with pgvector is installed")
            continue
        with postgres() if into == "pgvector" else contextlib.nullcontext(None) as socket:
            found[into] = compare(into, given.rows, given.dimensions, given.rounds, socket)
        print(json.dumps(found[into]), flush=True)
        if not given.dry:
            about = {"python": platform.python_version(), "machine": platform.machine()}
            result = {"stores": [found[name] for name in STORES if name in found], "machine": about}
            RESULTS.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
