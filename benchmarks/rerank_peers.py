"""One reranker in a process of its own: as ``peers.py``, which see; the first text of a job is the query.

Run by ``rerank.py`` with the interpreter of the reranker's own environment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peers

Score = Callable[[str, list[str]], Any]


def engine(score: Score) -> peers.Engine:
    """Return what answers ``peers.main``'s jobs: a row of one score for each passage."""
    return peers.Engine(lambda texts: [[float(one)] for one in score(texts[0], texts[1:] or texts)])


def cross_encoder(folder: str, dtype: str = "float32") -> peers.Engine:
    import torch
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(folder, max_length=512, device="cpu", model_kwargs={"dtype": getattr(torch, dtype)})
    identity = torch.nn.Identity()
    return engine(
        lambda query, passages: model.predict(
            [(query, passage) for passage in passages], activation_fn=identity, show_progress_bar=False
        )
    )


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
    "FlagEmbedding": flag_reranker,
    "rerankers": rerankers,
    "fastembed": fastembed,
    "ours torch": lambda folder: ours(folder, backend="torch"),
    "ours torch bf16": lambda folder: ours(folder, backend="torch", precision="bfloat16"),
    "ours onnx": lambda folder: ours(folder, backend="onnx"),
}


if __name__ == "__main__":
    peers.main(MAKERS)
