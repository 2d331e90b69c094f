"""One embedding engine in a process of its own: reads jobs from standard input, answers with seconds.

Run by ``local.py`` with the interpreter of the engine's own environment; imports nothing of this repository unless the
engine is ours.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Encode = Callable[[list[str]], Any]


class Engine:
    """What a peer offers: documents, one query, and queries at once where it has such a call."""

    def __init__(self, encode: Encode, query: Encode | None = None, aquery: Any = None, note: str = "") -> None:
        self.encode = encode
        self.query = query or encode
        self.aquery = aquery
        self.note = note


def sentence_transformers(folder: str, **options: Any) -> Engine:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu", **options)
    return Engine(lambda texts: model.encode(texts, show_progress_bar=False))


def sentence_transformers_bf16(folder: str) -> Engine:
    import torch

    return sentence_transformers(folder, model_kwargs={"dtype": torch.bfloat16})


def sentence_transformers_openvino(folder: str) -> Engine:
    return sentence_transformers(folder, backend="openvino", model_kwargs={"export": True})


def langchain(folder: str) -> Engine:
    from langchain_huggingface import HuggingFaceEmbeddings

    model = HuggingFaceEmbeddings(model_name=folder, encode_kwargs={"normalize_embeddings": True})
    return Engine(model.embed_documents, lambda texts: model.embed_query(texts[0]), model.aembed_query)


def llama_index(folder: str) -> Engine:
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    model = HuggingFaceEmbedding(folder, device="cpu", query_instruction="", text_instruction="")
    return Engine(
        model.get_text_embedding_batch, lambda texts: model.get_query_embedding(texts[0]), model.aget_query_embedding
    )


def flag_embedding(folder: str) -> Engine:
    from FlagEmbedding import FlagModel

    model = FlagModel(folder, use_fp16=False, batch_size=32, pooling_method="cls", devices=["cpu"])
    return Engine(lambda texts: model.encode(texts))


def flag_embedding_m3(folder: str) -> Engine:
    from FlagEmbedding import BGEM3FlagModel

    model = BGEM3FlagModel(folder, use_fp16=False, batch_size=32, devices=["cpu"])
    return Engine(
        lambda texts: model.encode(texts, return_dense=True, return_sparse=True, return_colbert_vecs=True)["dense_vecs"]
    )


def fastembed(folder: str) -> Engine:
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    TextEmbedding.add_custom_model(
        model="benchmark/model",
        pooling=PoolingType.CLS,
        normalization=True,
        sources=ModelSource(hf="benchmark/model"),
        dim=384,
        model_file="onnx/model.onnx",
    )
    model = TextEmbedding("benchmark/model", specific_model_path=folder)
    return Engine(lambda texts: list(model.embed(texts, batch_size=32)))


def ours(folder: str, **options: Any) -> Engine:
    from bge_integrations import load_encoder

    encoder = load_encoder(folder, query_instruction="", show_progress=False, **options)
    return Engine(
        lambda texts: encoder.encode(texts, role="document"),
        lambda texts: encoder.encode(texts, role="query"),
        lambda text: encoder.aencode([text], role="query"),
    )


def ours_m3(folder: str, **options: Any) -> Engine:
    from bge_integrations import load_encoder

    encoder = load_encoder(folder, query_instruction="", show_progress=False, **options)
    return Engine(lambda texts: encoder.encode_outputs(texts, role="document").dense)


def ours_langchain(folder: str) -> Engine:
    from bge_integrations.langchain import BGEEmbeddings

    model = BGEEmbeddings(folder, query_instruction="", backend="torch", show_progress=False)
    return Engine(model.embed_documents, lambda texts: model.embed_query(texts[0]), model.aembed_query)


def ours_llama_index(folder: str) -> Engine:
    from bge_integrations.llama_index import BGEEmbedding

    model = BGEEmbedding(folder, query_instruction="", backend="torch", show_progress=False)
    return Engine(
        model.get_text_embedding_batch, lambda texts: model.get_query_embedding(texts[0]), model.aget_query_embedding
    )


MAKERS: dict[str, Callable[[str], Engine]] = {
    "sentence-transformers": sentence_transformers,
    "sentence-transformers bf16": sentence_transformers_bf16,
    "sentence-transformers openvino": sentence_transformers_openvino,
    "LangChain HuggingFaceEmbeddings": langchain,
    "LlamaIndex HuggingFaceEmbedding": llama_index,
    "FlagEmbedding": flag_embedding,
    "fastembed": fastembed,
    "ours torch": lambda folder: ours(folder, backend="torch"),
    "ours torch bf16": lambda folder: ours(folder, backend="torch", precision="bfloat16"),
    "ours onnx": lambda folder: ours(folder, backend="onnx"),
    "ours onnx int8": lambda folder: ours(folder, backend="onnx", precision="int8"),
    "ours torch, LangChain": ours_langchain,
    "ours torch, LlamaIndex": ours_llama_index,
}
M3: dict[str, Callable[[str], Engine]] = {
    "sentence-transformers, dense": sentence_transformers,
    "FlagEmbedding, all three": flag_embedding_m3,
    "ours, dense": lambda folder: ours(folder, backend="torch"),
    "ours, all three": lambda folder: ours_m3(folder, backend="torch"),
    "ours bf16, dense": lambda folder: ours(folder, backend="torch", precision="bfloat16"),
    "ours bf16, all three": lambda folder: ours_m3(folder, backend="torch", precision="bfloat16"),
}
"""Of ``m3.py``."""


def jiffies() -> tuple[float, float]:
    """Return the seconds that all processes and that this one have computed so far."""
    fields = [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    everybody = sum(fields) - fields[3] - fields[4]  # all but idle and waiting for a disk
    times = resource.getrusage(resource.RUSAGE_SELF)
    return everybody / 100, times.ru_utime + times.ru_stime


def timed(work: Callable[[], Any]) -> dict[str, Any]:
    """Return the seconds that ``work`` took, and the seconds that other processes computed meanwhile."""
    all_before, own_before = jiffies()
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    everybody, own = jiffies()
    others = max(0.0, (everybody - all_before) - (own - own_before))
    return {"seconds": seconds, "wall": seconds, "others": others}


def documents(engine: Engine, texts: list[str]) -> dict[str, Any]:
    return timed(lambda: engine.encode(texts))


def queries(engine: Engine, texts: list[str]) -> dict[str, Any]:
    each: list[float] = []

    def run() -> None:
        for text in texts:
            start = time.perf_counter()
            engine.query([text])
            each.append(time.perf_counter() - start)

    result = timed(run)
    return result | {"seconds": sorted(each)[len(each) // 2]}


def concurrent(engine: Engine, texts: list[str]) -> dict[str, Any] | None:
    if engine.aquery is None:
        return None

    async def run() -> None:
        await asyncio.gather(*(engine.aquery(text) for text in texts))

    return timed(lambda: asyncio.run(run()))


def vectors(engine: Engine, texts: list[str]) -> dict[str, Any]:
    return {"vectors": [[float(x) for x in row] for row in engine.encode(texts)]}


def memory(*_: Any) -> dict[str, Any]:
    return {"peak_mb": peak_mb()}


def peak_mb() -> float:
    """Return the most memory that this process has held, in MB.

    Not ru_maxrss, which begins at what the process that started this one had.
    """
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def main(makers: dict[str, Callable[[str], Engine]], **more: Callable[[Engine, list[str]], Any]) -> None:
    """Load the engine, say how long it took, then answer jobs until the input ends; ``more`` adds kinds of jobs."""
    name, folder = sys.argv[1:3]
    answers = sys.stdout
    sys.stdout = sys.stderr  # what a library prints must not stand between the answers
    start = time.perf_counter()
    engine = makers[name](folder)
    engine.encode(["to load it"])
    print(json.dumps({"load_seconds": time.perf_counter() - start}), file=answers, flush=True)
    jobs = {"mixed": documents, "slab": documents, "short": documents, "query": queries, "concurrent": concurrent}
    jobs |= {"vectors": vectors, "memory": memory} | more
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = jobs[job["job"]](engine, job["texts"])
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(MAKERS | M3)
