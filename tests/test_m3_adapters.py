"""bge-m3 in real stores of both frameworks: hybrid search finds what brute force finds, from one pass a text."""

from __future__ import annotations

import asyncio
import json
import pickle
import subprocess
import sys
import threading
from contextlib import nullcontext
from importlib.util import find_spec

import numpy as np
import pytest

import models
from bge_integrations import errors, max_sim, sparse_score
from bge_integrations import langchain as lc
from bge_integrations import llama_index as li

pytest.importorskip("torch")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Payload indexes have no effect")]

TEXTS = [
    "A web server that serves static files over HTTP.",
    "Error E1234: the pump does not start.",
    "A relational database server with transactions.",
    "Error E9876: the valve is stuck.",
    "Play music files in many formats.",
    "Mail transfer agent that delivers email.",
]
QUESTIONS = ["what is E1234", "serve files", "music"]


@pytest.fixture(scope="module")
def m3():
    made = lc.BGEM3(models.m3(), show_progress=False)
    yield made
    made.encoder.close()


@pytest.fixture(scope="module")
def brute(m3):
    """All outputs of all texts and questions, by the encoder itself."""
    encoder = m3.encoder.inner
    return encoder.encode_outputs(TEXTS, role="document"), encoder.encode_outputs(QUESTIONS, role="query")


def passes(made) -> int:
    return made.encoder.describe()["forward_passes"]


# ---- LangChain


@pytest.fixture
def qdrant():
    pytest.importorskip("langchain_qdrant")
    from qdrant_client import QdrantClient

    client = QdrantClient(":memory:")
    yield client
    client.close()


def test_qdrant_hybrid_costs_one_pass_for_documents_and_one_for_a_query(m3, qdrant):
    from langchain_qdrant import QdrantVectorStore, RetrievalMode

    store = QdrantVectorStore.from_texts(
        [],
        embedding=m3.dense,
        sparse_embedding=m3.sparse("qdrant"),
        retrieval_mode=RetrievalMode.HYBRID,
        location=":memory:",
        collection_name="docs",
    )
    before = passes(m3)
    store.add_texts(TEXTS)
    assert passes(m3) == before + 1
    found = store.similarity_search(QUESTIONS[0], k=3)
    assert passes(m3) == before + 2
    assert {document.page_content for document in found} <= set(TEXTS)
    store.client.close()


def test_qdrant_sparse_finds_what_brute_force_finds(m3, brute, qdrant):
    from langchain_qdrant import QdrantVectorStore, RetrievalMode
    from qdrant_client import models as schema

    qdrant.create_collection(
        "docs", vectors_config={}, sparse_vectors_config={"langchain-sparse": schema.SparseVectorParams()}
    )
    store = QdrantVectorStore(qdrant, "docs", sparse_embedding=m3.sparse("qdrant"), retrieval_mode=RetrievalMode.SPARSE)
    store.add_texts(TEXTS)
    documents, questions = brute
    for question, asked in zip(QUESTIONS, questions.sparse, strict=True):
        scores = np.array([sparse_score(asked, row) for row in documents.sparse])
        hits = store.similarity_search_with_score(question, k=len(TEXTS))
        wanted = [TEXTS[i] for i in np.argsort(-scores, kind="stable") if scores[i] > 0]
        assert [document.page_content for document, _ in hits] == wanted
        np.testing.assert_allclose([score for _, score in hits], sorted(scores[scores > 0])[::-1], rtol=1e-4)


def test_async_sparse_does_not_use_a_thread_of_the_executor(m3):
    pytest.importorskip("langchain_qdrant")
    sparse, before = m3.sparse("qdrant"), set(threading.enumerate())

    async def both():
        rows = await sparse.aembed_query("what"), await sparse.aembed_documents(["what", "b"])
        return *rows, {thread.name for thread in threading.enumerate() if thread not in before}  # before the loop ends

    query, documents, threads = asyncio.run(both())
    assert query == sparse.embed_query("what")
    assert documents == sparse.embed_documents(["what", "b"])
    assert query.indices == sorted(query.indices)
    assert not [name for name in threads if name.startswith("asyncio")]


def test_chroma_takes_the_function_and_makes_it_again(m3):
    pytest.importorskip("chromadb")
    from chromadb import K, Schema, SparseVectorIndexConfig
    from chromadb.utils.embedding_functions import sparse_known_embedding_functions

    function = m3.sparse("chroma")
    wanted = m3.encoder.inner.encode_outputs(["a text"], role="document").sparse[0]
    (vector,) = function(["a text"])  # through Chroma's own check: ascending ids, finite weights
    assert dict(zip(vector.indices, vector.values, strict=True)) == pytest.approx(wanted, abs=1e-5)
    assert function.embed_query(["a text"])[0].indices == vector.indices
    schema = Schema()
    schema.create_index(config=SparseVectorIndexConfig(embedding_function=function, source_key=K.DOCUMENT), key="s")
    assert str(models.m3()) in json.dumps(schema.serialize_to_json())
    again = sparse_known_embedding_functions[function.name()].build_from_config(function.get_config())
    assert again(["a text"])[0].indices == vector.indices
    again.encoder.close()


def test_chroma_keeps_the_bundled_models_name_and_no_folder_of_this_machine():
    pytest.importorskip("chromadb")
    function = lc.BGEM3("demo").sparse("chroma")
    assert function.get_config() == {"model": "demo"}
    assert function.build_from_config({"model": "demo"})(["a text"]) == function(["a text"])


def test_pgvector_ranks_as_brute_force_does(m3, brute, socket_folder):
    import psycopg

    sparse = m3.sparse("pgvector")
    documents, questions = brute
    with psycopg.connect(host=socket_folder, dbname="postgres", user="postgres", autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute(f"CREATE TEMP TABLE m3 (id int, weights sparsevec({sparse.dimensions}))")
        for number, vector in enumerate(sparse.embed_documents(TEXTS)):
            connection.execute("INSERT INTO m3 VALUES (%s, %s::sparsevec)", (number, vector.to_text()))
        for question, asked in zip(QUESTIONS, questions.sparse, strict=True):
            rows = connection.execute(
                "SELECT id, -(weights <#> %s::sparsevec) FROM m3", (sparse.embed_query(question).to_text(),)
            ).fetchall()
            wanted = [sparse_score(asked, row) for row in documents.sparse]
            assert [score for _, score in sorted(rows)] == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_pgvector_is_told_of_what_an_index_refuses(m3):
    pytest.importorskip("pgvector.utils")
    from bge_integrations.langchain.sparse.pgvector import Sparse

    class Large:
        card = m3.encoder.card

        def encode_outputs(self, texts, **_):
            from bge_integrations import Outputs

            return Outputs(sparse=[dict.fromkeys(range(4, 4 + n), 1.0) for n in map(int, texts)])

    sparse = Sparse(Large())
    assert len(sparse.embed_documents(["300"])) == 1
    with pytest.warns(errors.BGEWarning, match=r"1 sparse vector\(s\) have more than 1000.*text 1\b"):
        sparse.embed_documents(["10", "1001"])


@pytest.mark.parametrize("store", ["weaviate", "Qdrant", ""])
def test_another_store_is_refused_by_name(m3, store):
    with pytest.raises(errors.ConfigError, match="'qdrant', 'milvus'"):
        m3.sparse(store)


@pytest.mark.parametrize("store", ["milvus", "pinecone"])
def test_a_missing_package_is_named(m3, store):
    if find_spec(f"langchain_{store}"):
        assert len(m3.sparse(store).embed_documents(["a", "b"])) == 2
        return
    with pytest.raises(errors.MissingExtraError, match=f"pip install langchain-{store}"):
        m3.sparse(store)


def test_a_model_of_one_output_is_refused_when_it_is_loaded():
    with pytest.raises(errors.ConfigError, match=r"no sparse output.*BAAI/bge-m3"):
        lc.BGEM3("bge-small-en-v1.5", provider="local")


def test_adapters_travel(m3):
    pytest.importorskip("langchain_qdrant")
    sparse = pickle.loads(pickle.dumps(m3.sparse("qdrant")))
    assert sparse.embed_query("a text") == m3.sparse("qdrant").embed_query("a text")
    sparse.encoder.close()


def test_the_second_stage_of_langchain(m3, brute):
    from langchain_core.documents import Document

    documents = [Document(text) for text in TEXTS]
    best = m3.reranker(top_n=2).compress_documents(documents, QUESTIONS[0])
    vectors, asked = brute[0].multivector, brute[1].multivector[0]
    scores = [max_sim(asked, row) for row in vectors]
    order = np.argsort(-np.array(scores), kind="stable")[:2]
    assert [document.page_content for document in best] == [TEXTS[i] for i in order]
    assert best[0].metadata["relevance_score"] == pytest.approx(max(scores), abs=1e-4)
    with pytest.raises(errors.ConfigError, match="weights"):
        m3.reranker(weights=(1, 1))


# ---- LlamaIndex


@pytest.fixture(scope="module")
def li3():
    made = li.BGEM3(models.m3(), show_progress=False)
    yield made
    made.encoder.close()


def index_of(made, client, texts):
    from llama_index.core import StorageContext, VectorStoreIndex
    from llama_index.core.schema import TextNode
    from llama_index.vector_stores.qdrant import QdrantVectorStore

    clients = {"client": client[0], "aclient": client[1]} if isinstance(client, tuple) else {"client": client}
    store = QdrantVectorStore(
        "docs",
        **clients,
        enable_hybrid=True,
        sparse_doc_fn=made.sparse_documents,
        sparse_query_fn=made.sparse_queries,
    )
    nodes = [TextNode(text=text, id_=f"00000000-0000-0000-0000-{i:012}") for i, text in enumerate(texts)]
    return VectorStoreIndex(
        nodes, embed_model=made.dense, storage_context=StorageContext.from_defaults(vector_store=store)
    )


def test_llama_index_hybrid_costs_one_pass_a_text(li3, qdrant):
    pytest.importorskip("llama_index.vector_stores.qdrant")
    li3.dense.get_query_embedding("warm")
    texts = [f"{text} {i}" for i in range(20) for text in TEXTS]
    counted = li3.encoder.usage.texts
    index = index_of(li3, qdrant, texts)
    # 120 nodes are embedded before the store asks for the first sparse vector.
    assert li3.encoder.usage.texts == counted + len(texts)
    found = index.as_retriever(vector_store_query_mode="hybrid", sparse_top_k=5, similarity_top_k=3).retrieve("E1234")
    assert li3.encoder.usage.texts == counted + len(texts) + 1
    assert found


def test_an_async_hybrid_query_is_answered_from_the_memo_on_the_loop(li3):
    pytest.importorskip("llama_index.vector_stores.qdrant")
    from qdrant_client import AsyncQdrantClient, QdrantClient

    async def ask():
        plain, other = QdrantClient(":memory:"), AsyncQdrantClient(":memory:")
        # Two clients of a memory are two stores: the functions are what is under test.
        dense = await li3.dense.aget_query_embedding("a question that is new")
        counted = li3.encoder.usage.texts
        ids, weights = li3.sparse_queries(["a question that is new"])
        assert li3.encoder.usage.texts == counted
        plain.close()
        await other.close()
        return dense, ids, weights

    dense, ids, weights = asyncio.run(ask())
    wanted = li3.encoder.inner.encode_outputs(["a question that is new"], role="query")
    np.testing.assert_allclose(dense, wanted.dense[0], atol=1e-5)
    assert dict(zip(ids[0], weights[0], strict=True)) == pytest.approx(wanted.sparse[0], abs=1e-4)


def test_base_sparse_embedding(li3):
    sparse = li3.sparse()
    wanted = li3.encoder.inner.encode_outputs(["a", "b c"], role="document").sparse
    got = sparse.get_text_embedding_batch(["a", "b c"])
    assert got == [pytest.approx(row, abs=1e-4) for row in wanted]
    assert asyncio.run(sparse.aget_query_embedding("a")) == pytest.approx(sparse.get_query_embedding("a"), abs=1e-6)
    assert asyncio.run(sparse.aget_text_embedding_batch(["a", "b c"])) == [pytest.approx(r, abs=1e-4) for r in wanted]
    assert sparse.model_dump()["class_name"] == "BGESparseEmbedding"
    json.dumps(got[0])


def test_the_second_stage_of_llama_index(li3, brute):
    from llama_index.core.schema import NodeWithScore, TextNode

    nodes = [NodeWithScore(node=TextNode(text=text)) for text in TEXTS]
    best = li3.reranker(top_n=1).postprocess_nodes(nodes, query_str=QUESTIONS[1])
    scores = [max_sim(brute[1].multivector[1], row) for row in brute[0].multivector]
    assert best[0].node.text == TEXTS[int(np.argmax(scores))]
    assert best[0].score == pytest.approx(max(scores), abs=1e-4)


def test_milvus_wants_a_package(li3):
    wanted = pytest.raises(errors.MissingExtraError, match="pip install llama-index-vector-stores-milvus")
    if find_spec("llama_index.vector_stores.milvus"):
        wanted = nullcontext()
    with wanted:
        assert len(li3.sparse("milvus").encode_documents(["a", "b"])) == 2
    with pytest.raises(errors.ConfigError, match="sparse_documents"):
        li3.sparse("qdrant")


def test_importing_the_adapters_imports_no_store():
    code = (
        "import sys, bge_integrations.langchain, bge_integrations.llama_index\n"
        "print([name for name in ('qdrant_client', 'chromadb', 'pgvector', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"
