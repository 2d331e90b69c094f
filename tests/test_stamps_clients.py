"""Stamps in stores that are known by a client and a name, and in LlamaIndex's store in memory.

SQLite, DuckDB, Milvus Lite, Redis and PostgreSQL are real. Elasticsearch and OpenSearch, which are no Python packages,
are their own clients against a host that answers as their "get mapping" and "update mapping" documentation says.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from http.server import ThreadingHTTPServer
from threading import Thread

import pytest

from bge_integrations.errors import ConfigError, SpaceMismatchError
from bge_integrations.verify import check_store, read_stamp, stamp_store
from encoders import CARD, HashEncoder
from json_handler import JSONHandler

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SIZE = CARD.dimensions


@contextmanager
def simple(folder, request):
    """LlamaIndex's store, saved and loaded again."""
    pytest.importorskip("llama_index.core")
    from llama_index.core.schema import TextNode
    from llama_index.core.vector_stores import SimpleVectorStore

    path = str(folder / "vectors.json")
    store = SimpleVectorStore()
    store.add([TextNode(text="a", embedding=[1.0] * SIZE)])

    def reopened():
        nonlocal store
        store.persist(path)
        store = SimpleVectorStore.from_persist_path(path)
        return store

    yield reopened


@contextmanager
def sqlite(folder, request):
    def opened():
        connection = sqlite3.connect(folder / "a.sqlite")
        request.addfinalizer(connection.close)
        return connection, "notes"

    with closing(sqlite3.connect(folder / "a.sqlite")) as connection:
        connection.execute("CREATE TABLE notes (text TEXT, text_embedding BLOB)")
    yield opened


@contextmanager
def langchain_sqlite_vec(folder, request):
    sqlite_vec = pytest.importorskip("sqlite_vec")
    if not hasattr(sqlite3.Connection, "enable_load_extension"):
        pytest.skip("this Python's sqlite3 loads no extensions")
    from langchain_community.vectorstores import SQLiteVec

    from bge_integrations.langchain import BGEEmbeddings

    def opened():
        connection = sqlite3.connect(folder / "a.sqlite")
        connection.row_factory = sqlite3.Row
        connection.enable_load_extension(True)
        sqlite_vec.load(connection)
        request.addfinalizer(connection.close)
        return SQLiteVec("notes", connection, BGEEmbeddings(encoder=HashEncoder()))

    opened().add_texts(["a"])
    yield opened


@contextmanager
def duckdb(folder, request):
    package = pytest.importorskip("duckdb")
    with closing(package.connect(folder / "a.duckdb")) as connection:
        connection.execute(f"CREATE TABLE notes (text VARCHAR, embedding FLOAT[{SIZE}])")
        connection.execute("COMMENT ON TABLE notes IS 'owner''s table'")
    held = []

    def opened():
        for each in held:
            each.close()
        held[:] = [package.connect(folder / "a.duckdb")]
        return held[0], "notes"

    yield opened
    comment = opened()[0].execute("SELECT comment FROM duckdb_tables()").fetchone()[0]
    assert comment.startswith("owner's table\n")
    held[0].close()


@contextmanager
def llama_index_duckdb(folder, request):
    package = pytest.importorskip("duckdb")
    pytest.importorskip("llama_index.vector_stores.duckdb")
    from llama_index.core.schema import TextNode
    from llama_index.vector_stores.duckdb import DuckDBVectorStore

    def opened():
        return DuckDBVectorStore("a.duckdb", table_name="notes", persist_dir=str(folder))

    try:
        opened().add([TextNode(text="a", embedding=[1.0] * SIZE)])
    except package.IOException as error:
        pytest.skip(f"it downloads extensions: {error}")
    yield opened


@contextmanager
def milvus(folder, request):
    pytest.importorskip("milvus_lite")
    package = pytest.importorskip("pymilvus")
    held = []

    def opened():
        for each in held:
            each.close()
        held[:] = [package.MilvusClient(str(folder / "a.db"))]
        return held[0], "notes"

    client, _ = opened()
    client.create_collection("notes", dimension=SIZE)
    client.insert("notes", [{"id": 1, "vector": [1.0] * SIZE, "text": "a"}])
    yield opened
    held[0].close()


@contextmanager
def redis(folder, request):
    package = pytest.importorskip("redis")
    if not shutil.which("redis-server"):
        pytest.skip("no redis-server")
    place = str(folder / "redis.sock")[-100:]
    server = subprocess.Popen(
        ["redis-server", "--port", "0", "--unixsocket", place, "--save", "", "--dir", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with package.Redis(unix_socket_path=place) as client:
            for _ in range(100):
                try:
                    client.ping()
                    break
                except package.exceptions.ConnectionError:
                    time.sleep(0.1)
        yield lambda: (package.Redis(unix_socket_path=place), "notes")
    finally:
        server.terminate()
        server.wait(20)


class Mapping(JSONHandler):
    """Get mapping and update mapping of one index.

    https://www.elastic.co/docs/api/doc/elasticsearch/operation/operation-indices-put-mapping
    https://docs.opensearch.org/latest/api-reference/index-apis/put-mapping/
    """

    def do_GET(self):
        self.reply(200, {"notes-000001": {"mappings": self.server.mapping}}, X_Elastic_Product="Elasticsearch")

    def do_PUT(self):
        change = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/notes/_mapping"
        self.server.mapping.update(change)
        self.reply(200, {"acknowledged": True}, X_Elastic_Product="Elasticsearch")


@contextmanager
def _index(field):
    host = ThreadingHTTPServer(("127.0.0.1", 0), Mapping)
    host.mapping = {"_meta": {"owner": "somebody"}, "properties": {"embedding": field, "text": {"type": "text"}}}
    thread = Thread(target=host.serve_forever)
    thread.start()
    try:
        yield host.server_port
        assert host.mapping["_meta"]["owner"] == "somebody"
    finally:
        host.shutdown()
        host.server_close()
        thread.join()


@contextmanager
def elasticsearch(folder, request):
    package = pytest.importorskip("elasticsearch")
    with _index({"type": "dense_vector", "dims": SIZE}) as port:
        yield lambda: (package.Elasticsearch(f"http://127.0.0.1:{port}"), "notes")


@contextmanager
def llama_index_elasticsearch(folder, request):
    package = pytest.importorskip("llama_index.vector_stores.elasticsearch")
    with _index({"type": "dense_vector", "dims": SIZE}) as port:
        opened = []

        def make():
            opened.append(package.ElasticsearchStore("notes", es_url=f"http://127.0.0.1:{port}"))
            return opened[-1]

        yield make
        for store in opened:
            store.close()


@contextmanager
def opensearch(folder, request):
    package = pytest.importorskip("opensearchpy")
    with _index({"type": "knn_vector", "dimension": SIZE}) as port:
        yield lambda: (package.OpenSearch(f"http://127.0.0.1:{port}"), "notes")


@contextmanager
def qdrant(folder, request):
    package = pytest.importorskip("qdrant_client")
    client = package.QdrantClient(":memory:")
    config = package.models.VectorParams(size=SIZE, distance=package.models.Distance.COSINE)
    client.create_collection("notes", vectors_config=config)
    yield lambda: (client, "notes")


@contextmanager
def pgvector_table(folder, request):
    sqlalchemy = pytest.importorskip("sqlalchemy")
    socket = request.getfixturevalue("socket_folder")
    engine = sqlalchemy.create_engine(f"postgresql+psycopg://postgres@/postgres?host={socket}")
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE IF EXISTS clients")
        connection.exec_driver_sql(f"CREATE TABLE clients (text TEXT, embedding vector({SIZE}))")
    yield lambda: (engine, "clients")
    engine.dispose()


STORES = [
    simple, sqlite, langchain_sqlite_vec, duckdb, llama_index_duckdb, milvus, redis, elasticsearch,
    llama_index_elasticsearch, opensearch, qdrant,
    pgvector_table,
]  # fmt: skip
WITHOUT_SIZE = {"redis", "sqlite"}


@pytest.fixture(params=STORES, ids=lambda make: make.__name__)
def store(request, tmp_path):
    with request.param(tmp_path, request) as opened:
        yield request.param.__name__, opened


def test_a_store_keeps_its_stamp_and_refuses_another_model(store):
    name, opened = store
    encoder, other = HashEncoder(), HashEncoder(replace(CARD, id="test/other", pooling="mean"))
    assert read_stamp(opened()) == {}
    with pytest.raises(ConfigError, match="no stamp"):
        check_store(opened(), encoder)
    held = opened()
    if name not in WITHOUT_SIZE:
        with pytest.raises(SpaceMismatchError, match=f"{SIZE} dimensions"):
            stamp_store(held, HashEncoder(replace(CARD, dimensions=8)))
    assert stamp_store(held, encoder) == encoder.stamp()
    assert check_store(opened(), encoder) == encoder.stamp()
    with pytest.raises(SpaceMismatchError) as caught:
        check_store(opened(), other)
    assert set(caught.value.differences) == {"model", "pooling"}
    odd = HashEncoder(query_instruction="it's 100 % :odd \\ {x}\n")
    stamp_store(opened(), odd)
    assert check_store(opened(), odd)["query_instruction"] == odd.query_instruction


def test_a_search_with_filters_passes_over_the_stamp_of_a_store_in_memory(tmp_path):
    pytest.importorskip("llama_index.core")
    from llama_index.core.schema import TextNode
    from llama_index.core.vector_stores import MetadataFilter, MetadataFilters, SimpleVectorStore, VectorStoreQuery

    store, encoder = SimpleVectorStore(), HashEncoder()
    rows = encoder.encode(["a", "b"], role="document").tolist()
    store.add(
        [
            TextNode(id_=text, text=text, embedding=row, metadata={"is": text})
            for text, row in zip("ab", rows, strict=True)
        ]
    )
    stamp_store(store, encoder)
    filters = MetadataFilters(filters=[MetadataFilter(key="is", value="b")])
    found = store.query(VectorStoreQuery(query_embedding=rows[0], similarity_top_k=5, filters=filters))
    assert found.ids == ["b"]
    store.delete_nodes(["a"])
    assert check_store(store, encoder)


def test_what_is_not_there_and_what_is_no_store(tmp_path):
    encoder = HashEncoder()
    connection = sqlite3.connect(tmp_path / "a.sqlite")
    with closing(connection), pytest.raises(ConfigError, match="no table 'notes'"):
        stamp_store((connection, "notes"), encoder)
    with pytest.raises(ConfigError, match=r"a pair is \(client, name\)"):
        stamp_store((object(), "notes"), encoder)
