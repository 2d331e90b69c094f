"""What users write, read by mypy and pyright and never run: the public names have the types that they say."""

from __future__ import annotations

from typing import assert_type

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import NodeWithScore
from numpy.typing import NDArray

from bge_integrations import Encoder, Outputs, Reranker, load_encoder, load_reranker, max_sim
from bge_integrations.langchain import BGEM3, BGEEmbeddings, BGEReranker
from bge_integrations.llama_index import BGEM3 as LlamaM3
from bge_integrations.llama_index import BGEEmbedding
from bge_integrations.llama_index import BGEReranker as LlamaReranker


def encoders() -> None:
    encoder = load_encoder("bge-m3", provider="deepinfra", timeout=30, cache=True)
    assert_type(encoder, Encoder)
    assert_type(encoder.encode(["a"], role="query"), NDArray[np.float32])
    outputs = encoder.encode_outputs(["a"], role="document", outputs=["sparse"])
    assert_type(outputs, Outputs)
    assert_type(outputs.sparse, list[dict[int, float]] | None)
    assert_type(encoder.count_tokens(["a"]), list[int])
    encoder.encode(["a"], role="passage")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    load_encoder("bge-m3", timout=30)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def rerankers() -> None:
    reranker = load_reranker("bge-m3", weights=(0.4, 0.2, 0.4))
    assert_type(reranker, Reranker)
    assert_type(reranker.rank("q", ["a"])[0].position, int)
    assert_type(max_sim(np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32)), float)


async def langchain(retriever: BaseRetriever) -> None:
    embeddings: Embeddings = BGEEmbeddings("bge-small-en-v1.5")
    assert_type(await embeddings.aembed_query("a"), list[float])
    reranking: BaseRetriever = BGEReranker(top_n=5).wrap(retriever)
    assert_type(await reranking.ainvoke("a"), list[Document])
    dense: Embeddings = BGEM3().dense
    assert_type(dense.embed_documents(["a"]), list[list[float]])


def llama_index(nodes: list[NodeWithScore]) -> None:
    model: BaseEmbedding = BGEEmbedding("bge-small-en-v1.5")
    assert_type(model.get_query_embedding("a"), list[float])
    assert_type(LlamaReranker(top_n=5).postprocess_nodes(nodes, query_str="a"), list[NodeWithScore])
    assert_type(LlamaM3().sparse_queries(["a"]), tuple[list[list[int]], list[list[float]]])
