"""Real vector stores, chains and pipelines of both frameworks find what brute force finds, with the instruction on."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest

from bge_integrations import load_encoder
from bge_integrations.langchain import BGEEmbeddings
from bge_integrations.llama_index import BGEEmbedding
from encoders import HashEncoder

pytestmark = pytest.mark.slow

TEXTS = [
    "A web server that serves static files over HTTP and HTTPS.",
    "Tools to convert images between PNG, JPEG and TIFF formats.",
    "A relational database server with transactions and SQL.",
    "Library that compresses and decompresses data with zlib.",
    "A text editor for the terminal with syntax highlighting.",
    "Play music files in MP3, Ogg Vorbis and FLAC formats.",
    "A compiler for the C and C++ programming languages.",
    "Mail transfer agent that delivers email over SMTP.",
    "Draw plots and charts of numeric data from scripts.",
    "Firewall that filters network packets by rules.",
    "Translate messages of programs into many languages.",
    "Archive and back up files to remote machines every night.",
]
QUESTIONS = ["edit a text file", "how do I store tables and query them with SQL", "listen to songs", "send an email"]


@pytest.fixture(scope="module")
def brute(demo):
    """Ranking and scores of every question by the encoder itself."""
    scores = demo.encode(QUESTIONS, role="query") @ demo.encode(TEXTS, role="document").T
    return {q: [(TEXTS[i], row[i]) for i in np.argsort(-row)] for q, row in zip(QUESTIONS, scores, strict=True)}


@pytest.fixture(scope="module")
def wrong(demo):
    """The same with no instruction: what a store would find if queries were embedded as documents."""
    scores = demo.encode(QUESTIONS, role="document") @ demo.encode(TEXTS, role="document").T
    return {q: np.sort(row)[::-1] for q, row in zip(QUESTIONS, scores, strict=True)}


def check_hits(hits, wanted, unwanted, count=4):
    assert [text for text, _ in hits] == [text for text, _ in wanted[:count]]
    scores = np.array([score for _, score in hits])
    np.testing.assert_allclose(scores, [score for _, score in wanted[:count]], atol=1e-4)
    assert np.abs(scores - unwanted[:count]).max() > 1e-3


# ---- LangChain


def in_memory(embeddings):
    from langchain_core.vectorstores import InMemoryVectorStore

    return InMemoryVectorStore(embeddings), lambda score: score


def faiss(embeddings):
    import faiss as library
    from langchain_community.docstore.in_memory import InMemoryDocstore
    from langchain_community.vectorstores import FAISS

    index = library.IndexFlatIP(256)
    return FAISS(embeddings, index, InMemoryDocstore(), {}), lambda score: score


def chroma(embeddings):
    import chromadb
    from langchain_chroma import Chroma

    store = Chroma("bge", embeddings, client=chromadb.EphemeralClient(), collection_metadata={"hnsw:space": "cosine"})
    store.reset_collection()
    return store, lambda distance: 1 - distance


def qdrant(embeddings):
    from langchain_qdrant import QdrantVectorStore
    from qdrant_client import QdrantClient
    from qdrant_client.models import Distance, VectorParams

    client = QdrantClient(":memory:")
    client.create_collection("bge", VectorParams(size=256, distance=Distance.COSINE))
    return QdrantVectorStore(client, "bge", embeddings), lambda score: score


@pytest.fixture(params=[in_memory, faiss, chroma, qdrant], ids=lambda kind: kind.__name__)
def store_and_score(request):
    return request.param(BGEEmbeddings("demo"))


def test_a_langchain_store_finds_what_brute_force_finds(store_and_score, brute, wrong):
    store, score = store_and_score
    store.add_texts(TEXTS)
    for question in QUESTIONS:
        hits = store.similarity_search_with_score(question, k=4)
        check_hits([(doc.page_content, score(number)) for doc, number in hits], brute[question], wrong[question])


async def test_a_langchain_store_finds_the_same_in_async(store_and_score, brute):
    store, _ = store_and_score
    await store.aadd_texts(TEXTS)
    found = await asyncio.gather(*(store.asimilarity_search(question, k=3) for question in QUESTIONS))
    for question, hits in zip(QUESTIONS, found, strict=True):
        assert [hit.page_content for hit in hits] == [text for text, _ in brute[question][:3]]


async def test_a_retrieval_chain_puts_the_right_passages_before_the_model(brute):
    from langchain_core.language_models.fake_chat_models import FakeListChatModel
    from langchain_core.output_parsers import StrOutputParser
    from langchain_core.prompts import ChatPromptTemplate
    from langchain_core.runnables import RunnableLambda, RunnablePassthrough
    from langchain_core.vectorstores import InMemoryVectorStore

    store = InMemoryVectorStore.from_texts(TEXTS, BGEEmbeddings("demo"))
    read = []
    chain = (
        {"context": store.as_retriever(search_kwargs={"k": 2}), "question": RunnablePassthrough()}
        | ChatPromptTemplate.from_template("Context: {context}\nQuestion: {question}")
        | RunnableLambda(lambda prompt: read.append(prompt.to_string()) or prompt)
        | FakeListChatModel(responses=["from the passages"])
        | StrOutputParser()
    )
    assert chain.invoke(QUESTIONS[0]) == "from the passages"
    assert await chain.ainvoke(QUESTIONS[1]) == "from the passages"
    assert chain.batch(QUESTIONS[2:]) == ["from the passages"] * 2
    assert sorted(read) == sorted(read, key=lambda text: text)  # every question was asked once
    for question in QUESTIONS:
        (prompt,) = [text for text in read if f"Question: {question}" in text]
        assert all(text in prompt for text, _ in brute[question][:2])
        assert "Represent this" not in prompt


def test_a_store_over_http_finds_the_same(demo_url, brute):
    from langchain_core.vectorstores import InMemoryVectorStore

    for options in ({"base_url": f"{demo_url}/v1"}, {"provider": "space", "base_url": demo_url}):
        embeddings = BGEEmbeddings("demo", **options)
        with embeddings.encoder:
            store = InMemoryVectorStore.from_texts(TEXTS, embeddings)
            for question in QUESTIONS:
                hits = store.similarity_search(question, k=3)
                assert [hit.page_content for hit in hits] == [text for text, _ in brute[question][:3]]


def test_semantic_search_over_other_runnables_keeps_roles():
    from langchain_core.example_selectors import SemanticSimilarityExampleSelector
    from langchain_core.vectorstores import InMemoryVectorStore

    encoder = HashEncoder()
    selector = SemanticSimilarityExampleSelector.from_examples(
        [{"input": "first"}, {"input": "second"}], BGEEmbeddings(encoder=encoder), InMemoryVectorStore, k=1
    )
    selector.select_examples({"input": "first"})
    assert sorted(encoder.sent) == ["first", "first", "second"]


# ---- LlamaIndex


def documents():
    from llama_index.core import Document

    return [Document(text=text, id_=f"d{i}") for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def index():
    from llama_index.core import VectorStoreIndex

    return VectorStoreIndex.from_documents(documents(), embed_model=BGEEmbedding("demo"))


def test_an_index_finds_what_brute_force_finds(index, brute, wrong):
    retriever = index.as_retriever(similarity_top_k=4)
    for question in QUESTIONS:
        hits = [(hit.node.get_content(), hit.score) for hit in retriever.retrieve(question)]
        check_hits(hits, brute[question], wrong[question])


async def test_an_index_finds_the_same_in_async(index, brute):
    retriever = index.as_retriever(similarity_top_k=3)
    found = await asyncio.gather(*map(retriever.aretrieve, QUESTIONS))
    for question, hits in zip(QUESTIONS, found, strict=True):
        assert [hit.node.get_content() for hit in hits] == [text for text, _ in brute[question][:3]]


async def test_an_index_is_built_in_async(brute):
    from llama_index.core import VectorStoreIndex
    from llama_index.core.schema import TextNode

    nodes = [TextNode(text=text) for text in TEXTS]
    index = VectorStoreIndex(nodes, embed_model=BGEEmbedding("demo"), use_async=True)
    hits = await index.as_retriever(similarity_top_k=3).aretrieve(QUESTIONS[0])
    assert [hit.node.get_content() for hit in hits] == [text for text, _ in brute[QUESTIONS[0]][:3]]


def test_an_index_over_http_finds_the_same(demo_url, brute):
    from llama_index.core import VectorStoreIndex

    for options in ({"base_url": f"{demo_url}/v1"}, {"provider": "space", "base_url": demo_url}):
        model = BGEEmbedding("demo", **options)
        with model.encoder:
            index = VectorStoreIndex.from_documents(documents(), embed_model=model)
            hits = index.as_retriever(similarity_top_k=3).retrieve(QUESTIONS[0])
        assert [hit.node.get_content() for hit in hits] == [text for text, _ in brute[QUESTIONS[0]][:3]]


def test_an_index_is_saved_and_loaded(index, tmp_path, brute):
    from llama_index.core import StorageContext, load_index_from_storage

    index.storage_context.persist(tmp_path)
    loaded = load_index_from_storage(
        StorageContext.from_defaults(persist_dir=str(tmp_path)), embed_model=BGEEmbedding("demo")
    )
    hits = loaded.as_retriever(similarity_top_k=3).retrieve(QUESTIONS[0])
    assert [hit.node.get_content() for hit in hits] == [text for text, _ in brute[QUESTIONS[0]][:3]]


async def test_a_query_engine_reads_the_right_passages(index, brute):
    from llama_index.core.llms import MockLLM

    engine = index.as_query_engine(llm=MockLLM(), similarity_top_k=2)
    for question in QUESTIONS[:2]:
        for answer in (engine.query(question), await engine.aquery(question)):
            # The mock gives back the prompt that it read.
            assert all(text in str(answer) for text, _ in brute[question][:2])
            assert "Represent this" not in str(answer)


def test_the_default_model_of_the_settings_is_used(brute):
    from llama_index.core import Settings, VectorStoreIndex

    before = Settings._embed_model
    try:
        Settings.embed_model = BGEEmbedding("demo")
        hits = VectorStoreIndex.from_documents(documents()).as_retriever(similarity_top_k=1).retrieve(QUESTIONS[2])
        assert hits[0].node.get_content() == brute[QUESTIONS[2]][0][0]
    finally:
        Settings._embed_model = before


def pipeline(model, cache=None):
    from llama_index.core.ingestion import IngestionPipeline

    kept = {"cache": cache} if cache is not None else {"disable_cache": True}
    return IngestionPipeline(transformations=[BGEEmbedding("demo").splitter(chunk_size=100), model], **kept)


def test_a_pipelines_cache_saves_the_work_for_whoever_embeds_alike():
    from llama_index.core.ingestion import IngestionCache

    cache, first = IngestionCache(), BGEEmbedding("demo")
    nodes = pipeline(first, cache).run(documents=documents())
    assert first.encoder.usage.texts == len(TEXTS)
    for options in ({}, {"embed_batch_size": 3}, {"timeout": 7.0, "max_retries": 1}):
        again = BGEEmbedding("demo", **options)
        got = pipeline(again, cache).run(documents=documents())
        assert again.encoder.usage.texts == 0, options
        assert [node.embedding for node in got] == [node.embedding for node in nodes]
    other = BGEEmbedding("demo", query_instruction="another: ")
    pipeline(other, cache).run(documents=documents())
    assert other.encoder.usage.texts == len(TEXTS)


def test_a_pipeline_runs_in_two_spawned_processes(demo):
    # LlamaIndex spawns them whatever this program's own start method is.
    nodes = pipeline(BGEEmbedding("demo")).run(documents=documents(), num_workers=2)
    wanted = demo.encode([node.get_content("embed") for node in nodes], role="document")
    assert sorted(node.get_content() for node in nodes) == sorted(TEXTS)
    np.testing.assert_allclose([node.embedding for node in nodes], wanted, atol=1e-5)


async def test_a_pipeline_runs_in_async(demo):
    nodes = await pipeline(BGEEmbedding("demo")).arun(documents=documents())
    wanted = demo.encode([node.get_content("embed") for node in nodes], role="document")
    np.testing.assert_allclose([node.embedding for node in nodes], wanted, atol=1e-5)


def sentences(text):
    return [part.strip() + ". " for part in text.split(".") if part.strip()]


def test_a_semantic_splitter_splits_by_documents_vectors():
    from llama_index.core import Document
    from llama_index.core.node_parser import SemanticSplitterNodeParser

    encoder = HashEncoder()
    splitter = SemanticSplitterNodeParser(
        embed_model=BGEEmbedding(encoder=encoder), sentence_splitter=sentences, breakpoint_percentile_threshold=80
    )
    text = "".join(TEXTS)
    nodes = splitter.get_nodes_from_documents([Document(text=text)])
    assert len(nodes) > 1
    assert "".join(node.get_content() for node in nodes).replace(" ", "") == text.replace(" ", "")
    assert not [text for text in encoder.sent if "Represent" in text]
    # With the real model, a change of subject is where it splits.
    subjects = (
        "The cat sleeps. The cat purrs. The cat eats fish. A compiler reads C code. A compiler emits machine code."
    )
    splitter.embed_model = BGEEmbedding("demo")
    first, *_ = splitter.get_nodes_from_documents([Document(text=subjects)])
    assert "cat" in first.get_content()


def test_a_sentence_optimizer_keeps_the_sentences_that_answer(demo):
    from llama_index.core.postprocessor import SentenceEmbeddingOptimizer
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

    optimizer = SentenceEmbeddingOptimizer(
        embed_model=BGEEmbedding("demo"),
        percentile_cutoff=0.1,
        tokenizer_fn=sentences,
        context_before=0,
        context_after=0,
    )
    node = NodeWithScore(node=TextNode(text=" ".join(TEXTS)), score=1.0)
    (kept,) = optimizer.postprocess_nodes([node], query_bundle=QueryBundle(QUESTIONS[1]))
    scores = demo.encode([QUESTIONS[1]], role="query") @ demo.encode(sentences(" ".join(TEXTS)), role="document").T
    assert kept.node.get_content().strip() == sentences(" ".join(TEXTS))[int(scores.argmax())].strip()


def test_a_saved_pipeline_holds_no_key(tmp_path):
    from llama_index.core.ingestion import IngestionCache

    canary = "sk-canary-4242"
    model = BGEEmbedding("demo", api_key=canary)
    run = pipeline(model, IngestionCache())
    run.run(documents=documents()[:2])
    run.persist(str(tmp_path))
    written = "".join(path.read_text("utf-8") for path in tmp_path.iterdir())
    assert written
    assert canary not in written
    assert canary not in json.dumps(model.to_dict())


def test_what_both_frameworks_store_is_the_same(demo):
    langchain = BGEEmbeddings("demo").embed_documents(TEXTS)
    assert langchain == BGEEmbedding("demo").get_text_embedding_batch(TEXTS)
    np.testing.assert_array_equal(np.array(langchain, np.float32), load_encoder("demo").encode(TEXTS, role="document"))
