"""One reranker in a process of its own: as ``peers.py``, which see; the first text of a job is the query.

Run by ``rerank.py`` with the interpreter of the reranker's own environment.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import peers

Score = Callable[[str, list[str]], Any]


def engine(score: Score) -> peers.Engine:
    """Return what answers ``peers.main``'s jobs: a row of one score for each passage."""
    return peers.Engine(lambda texts: [[float(one)] for one in score(texts[0], texts[1:] or texts)])


def at_once(engine: peers.Engine, texts: list[str]) -> dict[str, Any]:
    """Time eight threads, each with a query and an eighth of the passages."""
    query, *passages = texts
    parts = [[f"{query} {i}", *passages[i::8]] for i in range(8)]
    with ThreadPoolExecutor(8) as threads:
        return peers.timed(lambda: list(threads.map(engine.encode, parts)))


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def cross_encoder(folder: str, dtype: str = "float32") -> peers.Engine:
    import torch

    return make_cross_encoder(folder, model_kwargs={"dtype": getattr(torch, dtype)})


def openvino(folder: str) -> peers.Engine:
    return make_cross_encoder(folder, backend="openvino", model_kwargs={"export": True})


def make_cross_encoder(folder: str, **options: Any) -> peers.Engine:
    import torch
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(folder, max_length=512, device="cpu", **options)
    identity = torch.nn.Identity()
    return engine(
        lambda query, passages: model.predict(
            [(query, passage) for passage in passages], activation_fn=identity, show_progress_bar=False
        )
    )


def langchain(folder: str) -> peers.Engine:
    from langchain_community.cross_encoders import HuggingFaceCrossEncoder

    model = HuggingFaceCrossEncoder(model_name=folder, model_kwargs={"device": "cpu", "max_length": 512})
    return engine(lambda query, passages: map(logit, model.score([(query, passage) for passage in passages])))


def llama_index(folder: str) -> peers.Engine:
    from llama_index.core.postprocessor import SentenceTransformerRerank
    from llama_index.core.schema import NodeWithScore, TextNode

    model = SentenceTransformerRerank(model=folder, top_n=10_000, device="cpu")

    def score(query: str, passages: list[str]) -> list[float]:
        nodes = [NodeWithScore(node=TextNode(id_=str(i), text=text)) for i, text in enumerate(passages)]
        ranked = model.postprocess_nodes(nodes, query_str=query)
        return [logit(one.score) for one in sorted(ranked, key=lambda one: int(one.node.node_id))]

    return engine(score)


def flag_reranker(folder: str) -> peers.Engine:
    from FlagEmbedding import FlagReranker

    model = FlagReranker(folder, use_fp16=False, max_length=512, devices=["cpu"])
    return engine(lambda query, passages: model.compute_score([(query, passage) for passage in passages]))


def rerankers(folder: str) -> peers.Engine:
    from rerankers import Reranker

    model = Reranker(folder, model_type="cross-encoder", device="cpu", dtype="float32", verbose=0)

    def score(query: str, passages: list[str]) -> list[float]:
        ranked = model.rank(query=query, docs=passages, doc_ids=list(range(len(passages))))
        return [result.score for result in sorted(ranked.results, key=lambda result: result.doc_id)]

    return engine(score)


def fastembed(folder: str) -> peers.Engine:
    from fastembed.common.model_description import ModelSource
    from fastembed.rerank.cross_encoder import TextCrossEncoder

    TextCrossEncoder.add_custom_model(
        model="benchmark/model", model_file="onnx/model.onnx", sources=ModelSource(hf="benchmark/model")
    )
    model = TextCrossEncoder("benchmark/model", specific_model_path=folder)
    return engine(lambda query, passages: list(model.rerank(query, passages)))


def ours(folder: str, **options: Any) -> peers.Engine:
    from bge_integrations import load_reranker

    model = load_reranker(folder, **options)
    return engine(lambda query, passages: model.score(query, passages, scale="logit"))


MAKERS: dict[str, Callable[[str], peers.Engine]] = {
    "sentence-transformers": cross_encoder,
    "sentence-transformers bf16": lambda folder: cross_encoder(folder, "bfloat16"),
    "sentence-transformers openvino": openvino,
    "LangChain HuggingFaceCrossEncoder": langchain,
    "LlamaIndex SentenceTransformerRerank": llama_index,
    "FlagEmbedding": flag_reranker,
    "rerankers": rerankers,
    "fastembed": fastembed,
    "ours torch": lambda folder: ours(folder, backend="torch"),
    "ours torch bf16": lambda folder: ours(folder, backend="torch", precision="bfloat16"),
    "ours onnx": lambda folder: ours(folder, backend="onnx"),
}


if __name__ == "__main__":
    peers.main(MAKERS, at_once=at_once)
