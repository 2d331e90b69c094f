"""BGEReranker in LangChain and LlamaIndex: order, scores, callbacks, async, and nobody's documents touched."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from typing import ClassVar

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import RetrieversIntegrationTests
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.schema import NodeWithScore, TextNode

import models
from bge_integrations import errors, langchain, llama_index, load_reranker
from rerank_host import RerankServer

# One of the texts is blank.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:1 blank passage")]

QUERY = "What is the capital of France?"
TEXTS = ["Paris is the capital of France.", "A plum", "Berlin", "", "Rome is old", "A plum"]


@pytest.fixture(scope="module")
def inner():
    with load_reranker(models.reranker("xlm-roberta")) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def expected(inner):
    return inner.rank(QUERY, TEXTS)


def documents():
    return [Document(text, id=str(i), metadata={"n": i, "relevance_score": "old"}) for i, text in enumerate(TEXTS)]


def nodes():
    return [NodeWithScore(node=TextNode(text=text, id_=str(i)), score=i / 10) for i, text in enumerate(TEXTS)]


def test_langchain_orders_documents_and_leaves_those_that_it_gets(inner, expected):
    mine = documents()
    before = copy.deepcopy(mine)
    found = langchain.BGEReranker(reranker=inner, top_n=3).compress_documents(mine, QUERY)
    assert [int(one.id) for one in found] == [position for position, _ in expected[:3]]
    assert [one.metadata["relevance_score"] for one in found] == [score for _, score in expected[:3]]
    assert all(type(one.metadata["relevance_score"]) is float for one in found)
    assert all(one.metadata["n"] == int(one.id) for one in found)
    assert mine == before
    json.dumps([one.model_dump() for one in found])


def test_langchain_async_is_native_and_the_same(inner, expected):
    reranker = langchain.BGEReranker(reranker=inner)
    found = asyncio.run(reranker.acompress_documents(documents(), QUERY))
    assert [int(one.id) for one in found] == [position for position, _ in expected]


@pytest.mark.parametrize(("top_n", "count"), [(None, 6), (0, 0), (2, 2), (99, 6)])
def test_top_n(inner, top_n, count):
    assert len(langchain.BGEReranker(reranker=inner, top_n=top_n).compress_documents(documents(), QUERY)) == count
    found = llama_index.BGEReranker(reranker=inner, top_n=top_n).postprocess_nodes(nodes(), query_str=QUERY)
    assert len(found) == count


@pytest.mark.parametrize("adapter", [langchain.BGEReranker, llama_index.BGEReranker])
def test_a_negative_top_n_and_unknown_options_are_refused(inner, adapter):
    with pytest.raises(errors.ConfigError, match="top_n"):
        adapter(reranker=inner, top_n=-1)
    with pytest.raises(errors.ConfigError, match="did you mean 'truncate'"):
        adapter("bge-reranker-base", truncat="error")
    with pytest.raises(errors.ConfigError, match="reranker= has been created already"):
        adapter(reranker=inner, truncate="error")


def test_langchain_cross_encoder_in_its_own_reranker(inner, expected):
    model = langchain.BGEReranker(reranker=inner)
    scores = model.score([(QUERY, text) for text in TEXTS])
    assert all(type(score) is float for score in scores)
    assert scores == pytest.approx([dict(expected)[i] for i in range(len(TEXTS))], abs=1e-5)
    assert asyncio.run(model.ascore([(QUERY, text) for text in TEXTS])) == pytest.approx(scores, abs=1e-5)
    theirs = CrossEncoderReranker(model=model, top_n=2).compress_documents(documents(), QUERY)
    assert [int(one.id) for one in theirs] == [position for position, _ in expected[:2]]


class Told(BaseCallbackHandler):
    def __init__(self):
        self.events = []

    def on_chain_start(self, serialized, inputs, **more):
        self.events.append(("start", more.get("name"), len(inputs["documents"])))

    def on_chain_end(self, outputs, **more):
        self.events.append(("end", len(outputs)))

    def on_chain_error(self, error, **more):
        self.events.append(("error", type(error).__name__))

    def on_retriever_end(self, documents, **more):
        self.events.append(("retrieved", len(documents)))


def test_langchain_callbacks_are_told(inner):
    told = Told()
    reranker = langchain.BGEReranker(reranker=inner, top_n=2)
    reranker.compress_documents(documents(), QUERY, callbacks=[told])
    assert told.events == [("start", "BGEReranker", 6), ("end", 2)]
    with pytest.raises(errors.InputError):
        asyncio.run(reranker.acompress_documents(documents(), " ", callbacks=[told]))
    assert told.events[2:] == [("start", "BGEReranker", 6), ("error", "InputError")]


def test_langchain_wrap_is_a_retriever_whose_callbacks_reach_both(inner, expected):
    told = Told()
    retriever = langchain.BGEReranker(reranker=inner, top_n=2).wrap(RunnableLambda(lambda query: documents()))
    assert isinstance(retriever, BaseRetriever)
    found = retriever.invoke(QUERY, {"callbacks": [told]})
    assert [int(one.id) for one in found] == [position for position, _ in expected[:2]]
    assert told.events[-1] == ("retrieved", 2)
    assert ("start", "BGEReranker", 6) in told.events
    assert [one.id for one in asyncio.run(retriever.ainvoke(QUERY))] == [one.id for one in found]
    assert langchain.BGEReranker(reranker=inner).wrap(RunnableLambda(lambda query: [])).invoke(QUERY) == []


def test_langchain_works_where_compressors_are_used(inner, expected):
    retriever = ContextualCompressionRetriever(
        base_compressor=langchain.BGEReranker(reranker=inner, top_n=2), base_retriever=_store().as_retriever()
    )
    assert len(retriever.invoke(QUERY)) == 2


def _store():
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    store.add_documents([Document(text or "-", id=str(i)) for i, text in enumerate(TEXTS)])
    return store


class TestTheRetrieverStandard(RetrieversIntegrationTests):
    @property
    def retriever_constructor(self):
        def make(**options):
            inner = load_reranker(models.reranker("xlm-roberta"))
            return langchain.BGEReranker(reranker=inner, **options).wrap(_store().as_retriever(search_kwargs={"k": 6}))

        return make

    @property
    def retriever_query_example(self):
        return QUERY

    @property
    def num_results_arg_name(self):
        return "top_n"


def test_llama_index_orders_nodes_and_leaves_those_that_it_gets(inner, expected):
    mine = nodes()
    before = [(one.score, dict(one.node.metadata)) for one in mine]
    reranker = llama_index.BGEReranker(reranker=inner, top_n=3, keep_retrieval_score=True)
    found = reranker.postprocess_nodes(mine, query_str=QUERY)
    assert [(int(one.node.node_id), one.score) for one in found] == [tuple(one) for one in expected[:3]]
    assert [one.node.metadata["retrieval_score"] for one in found] == [int(one.node.node_id) / 10 for one in found]
    assert [(one.score, dict(one.node.metadata)) for one in mine] == before
    json.loads(json.dumps([json.loads(one.model_dump_json()) for one in found]))
    assert "retrieval_score" not in found[0].node.get_content("llm")
    again = asyncio.run(reranker.apostprocess_nodes(mine, query_str=QUERY))
    assert [one.node.node_id for one in again] == [one.node.node_id for one in found]


def test_llama_index_reads_the_metadata_that_is_meant_for_embedding(inner):
    node = TextNode(text="text", metadata={"shown": "yes", "hidden": "no"}, excluded_embed_metadata_keys=["hidden"])
    (found,) = llama_index.BGEReranker(reranker=inner).postprocess_nodes([NodeWithScore(node=node)], query_str=QUERY)
    assert found.score == pytest.approx(inner.score(QUERY, [node.get_content("embed")])[0])
    assert "hidden" not in node.get_content("embed")


def test_llama_index_without_a_query_is_an_error_and_without_nodes_nothing(inner):
    reranker = llama_index.BGEReranker(reranker=inner)
    with pytest.raises(errors.InputError, match="query_str"):
        reranker.postprocess_nodes(nodes())
    assert reranker.postprocess_nodes([], query_str=QUERY) == []


class Events(BaseEventHandler):
    seen: ClassVar[list] = []

    @classmethod
    def class_name(cls):
        return "Events"

    def handle(self, event, **more):
        self.seen.append(event)


def test_llama_index_events_and_callbacks(inner):
    debug, events = LlamaDebugHandler(print_trace_on_end=False), Events()
    root = get_dispatcher()
    root.add_event_handler(events)
    try:
        reranker = llama_index.BGEReranker(reranker=inner, top_n=2, callback_manager=CallbackManager([debug]))
        reranker.postprocess_nodes(nodes(), query_str=QUERY)
    finally:
        root.event_handlers.remove(events)
    start, end = (one for one in events.seen if one.class_name().startswith("ReRank"))
    assert (start.query, start.top_n, start.model_name, len(start.nodes)) == (QUERY, 2, inner.card.id, 6)
    assert len(end.nodes) == 2
    ((begun, ended),) = debug.get_event_pairs(CBEventType.RERANKING)
    assert begun.payload["query_str"] == QUERY
    assert len(ended.payload["nodes"]) == 2


def test_both_travel_without_their_key():
    key = "sk-very-secret-0123456789"
    with RerankServer("tei") as host:
        options = {"base_url": host.url, "dialect": "tei", "api_key": key}
        for adapter in (langchain.BGEReranker, llama_index.BGEReranker):
            reranker = adapter("bge-reranker-v2-m3", top_n=2, **options)
            shown = repr(reranker) + str(reranker) + reranker.model_dump_json() + repr(reranker.reranker)
            assert key not in shown
            packed = pickle.dumps(reranker)
            assert key.encode() not in packed
            assert pickle.loads(packed).top_n == 2
            assert copy.deepcopy(reranker).reranker.score("a", ["b"]).shape == (1,)
        saved = llama_index.BGEReranker("bge-reranker-v2-m3", top_n=2, **options).to_dict()
        assert key not in json.dumps(saved)
        again = llama_index.BGEReranker.from_dict(saved)
        assert (again.top_n, again.reranker.base_url) == (2, host.url)
        assert len(again.postprocess_nodes(nodes(), query_str=QUERY)) == 2
