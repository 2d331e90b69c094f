"""Is a store that exists filled by this model? Real stores, filled rightly, wrongly, and half of each."""

from __future__ import annotations

import json

import numpy as np
import pytest

import models
from bge_integrations import find_model, load_encoder
from bge_integrations.cli import main
from bge_integrations.errors import ConfigError
from bge_integrations.langchain import BGEEmbeddings
from bge_integrations.llama_index import BGEEmbedding
from bge_integrations.local.engine import LocalEngine
from bge_integrations.verify import stamp_store, table_of_store, verify_store

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Payload indexes have no effect")]

TEXTS = [f"Package number {i} serves {word} over the network" for i in range(8) for word in ("mail", "files", "music")]


def vectors(encoder, kind="right"):
    if kind == "as queries":
        return encoder.encode(TEXTS, role="query")
    if kind == "mean":
        with LocalEngine(find_model("demo"), pooling="mean") as other:
            return other.encode(TEXTS, role="document")
    if kind == "half":
        return np.concatenate([encoder.encode(TEXTS[:12], role="document"), encoder.encode(TEXTS[12:], role="query")])
    if kind == "noise":
        rows = np.random.default_rng(3).standard_normal((len(TEXTS), 256)).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return encoder.encode(TEXTS, role="document")


def chroma(path, rows):
    chromadb = pytest.importorskip("chromadb")
    collection = chromadb.PersistentClient(str(path)).create_collection("notes", embedding_function=None)
    collection.add(ids=[str(i) for i in range(len(TEXTS))], documents=TEXTS, embeddings=rows.tolist())
    return collection


@pytest.mark.parametrize(
    ("kind", "verdict", "cause"),
    [
        ("right", "same space", ""),
        ("as queries", "another space", "instruction was put in front of documents"),
        ("mean", "another space", "mean pooling"),
        ("half", "some rows are of another space", "instruction was put in front of documents"),
        ("noise", "another space", ""),
    ],
)
def test_a_store_is_told_by_its_own_texts(demo, tmp_path, kind, verdict, cause):
    report = verify_store(chroma(tmp_path, vectors(demo, kind)), demo, sample=24)
    assert report.verdict == verdict
    assert (report.cause is not None) == bool(cause)
    assert cause in (report.cause.name if report.cause else "")
    assert report.ok == (kind == "right")
    assert (report.rows, report.sampled) == (24, 24)
    assert report.agreeing == {"right": 24, "half": 12}.get(kind, 0)
    assert json.loads(json.dumps(report.to_dict()))["verdict"] == verdict
    assert table_of_store(report)[0][0] == ("ok" if report.ok else "!!")
    assert report.summary()


def test_a_sample_reaches_the_rows_that_came_last(demo, tmp_path):
    report = verify_store(chroma(tmp_path, vectors(demo, "half")), demo, sample=4)
    assert report.verdict == "some rows are of another space"


def test_another_models_dimension_is_said(demo, tmp_path):
    collection = chroma(tmp_path, vectors(demo))
    with load_encoder(models.folder("bge-small", layers=1), query_instruction="", show_progress=False) as other:
        report = verify_store(collection, other)
    assert not report.ok
    assert "256 dimensions" in report.cause.remedy


def langchain_qdrant(demo, tmp_path):
    pytest.importorskip("langchain_qdrant")
    from langchain_qdrant import QdrantVectorStore

    return QdrantVectorStore.from_texts(TEXTS, BGEEmbeddings(encoder=demo), location=":memory:", collection_name="c")


def langchain_chroma(demo, tmp_path):
    from langchain_chroma import Chroma

    store = Chroma("notes", BGEEmbeddings(encoder=demo), persist_directory=str(tmp_path))
    store.add_texts(TEXTS)
    return store


def langchain_faiss(demo, tmp_path):
    from langchain_community.vectorstores import FAISS

    return FAISS.from_texts(TEXTS, BGEEmbeddings(encoder=demo))


def _nodes(demo, store):
    from llama_index.core import Document, StorageContext, VectorStoreIndex

    # Metadata is embedded with the text: without it the vectors would look like another model's.
    documents = [Document(text=text, metadata={"author": f"someone {i}"}) for i, text in enumerate(TEXTS)]
    VectorStoreIndex.from_documents(
        documents,
        embed_model=BGEEmbedding(encoder=demo),
        storage_context=StorageContext.from_defaults(vector_store=store),
    )
    return store


def llama_index_chroma(demo, tmp_path):
    import chromadb
    from llama_index.vector_stores.chroma import ChromaVectorStore

    return _nodes(demo, ChromaVectorStore(chromadb.PersistentClient(str(tmp_path)).create_collection("nodes")))


def llama_index_qdrant(demo, tmp_path):
    from llama_index.vector_stores.qdrant import QdrantVectorStore
    from qdrant_client import QdrantClient

    return _nodes(demo, QdrantVectorStore("nodes", client=QdrantClient(":memory:")))


def llama_index_lancedb(demo, tmp_path):
    from llama_index.vector_stores.lancedb import LanceDBVectorStore

    return _nodes(demo, LanceDBVectorStore(uri=str(tmp_path), table_name="nodes"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "make",
    [langchain_qdrant, langchain_chroma, langchain_faiss, llama_index_chroma, llama_index_qdrant, llama_index_lancedb],
)
def test_stores_of_both_frameworks(demo, tmp_path, make):
    report = verify_store(make(demo, tmp_path), demo, sample=10)
    assert report.verdict == "same space", report.summary()
    assert (report.rows, report.sampled) == (24, 10)


def test_pgvector_of_langchain(demo, socket_folder):
    pytest.importorskip("langchain_postgres")
    from langchain_postgres import PGEngine, PGVectorStore

    engine = PGEngine.from_connection_string(f"postgresql+psycopg://postgres@/postgres?host={socket_folder}")
    engine.init_vectorstore_table("verified", 256, overwrite_existing=True)
    store = PGVectorStore.create_sync(engine, BGEEmbeddings(encoder=demo), "verified")
    store.add_texts(TEXTS)
    try:
        report = verify_store(store, demo, sample=10)
    finally:
        engine._run_as_sync(engine.close())
    assert report.verdict == "same space", report.summary()
    assert (report.rows, report.sampled) == (24, 10)


def test_what_cannot_be_read_is_refused(demo, tmp_path):
    from langchain_core.vectorstores import InMemoryVectorStore

    with pytest.raises(ConfigError, match="InMemoryVectorStore cannot be read"):
        verify_store(InMemoryVectorStore(BGEEmbeddings(encoder=demo)), demo)
    with pytest.raises(ConfigError, match="at least 1"):
        verify_store(chroma(tmp_path / "a", vectors(demo)), demo, sample=0)
    chromadb = pytest.importorskip("chromadb")
    empty = chromadb.PersistentClient(str(tmp_path / "b")).create_collection("empty", embedding_function=None)
    with pytest.raises(ConfigError, match="0 rows"):
        verify_store(empty, demo)


def test_the_command_prints_a_table_and_ends_with_what_it_found(demo, tmp_path, capsys):
    collection = chroma(tmp_path / "right", vectors(demo))
    stamp_store(collection, demo)
    chroma(tmp_path / "wrong", vectors(demo, "as queries"))
    assert main(["verify", "--model", "demo", "--store", f"chroma:{tmp_path}/right/notes"]) == 0
    assert demo.document_space in capsys.readouterr().out
    assert main(["verify", "--model", "demo", "--store", f"chroma:{tmp_path}/wrong/notes", "--json"]) == 1
    assert "in front of documents" in json.loads(capsys.readouterr().out)["cause"]["name"]
    for named in ("chroma:nowhere/notes", "chroma:notes", "redis:x/y", f"chroma:{tmp_path}/right/other"):
        assert main(["verify", "--model", "demo", "--store", named]) == 2
        assert capsys.readouterr().err.count("\n") == 1
