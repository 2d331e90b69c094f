"""Texts per second against a host that answers at once: this package, its peers, and the limit, side by side.

    python benchmarks/remote.py            the table, and results/remote.json
    python benchmarks/remote.py --memory   peak memory at 100,000 and 1,000,000 texts, streamed
    python benchmarks/remote.py --rerank   1,000 passages at a reranker like TEI's, 32 in each request

The host is a process of its own on loopback with canned 1024-dimensional answers (stub_server.py). All clients take
turns in each round, in an order that changes; the medians of the rounds count. Ratios say more than seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from peers import peak_mb
from stub_server import DIMENSIONS, stub, vectors

BATCH = 64
TEI_BATCH = 32
LIMIT = "limit: aiohttp, orjson"
KEY = "not-a-key"
RESULTS = Path(__file__).parent / "results" / "remote.json"
Run = Callable[[list[str]], Any]


def texts_of(count: int) -> list[str]:
    """Return texts of about 100 characters, no two alike."""
    return [
        f"passage {i}: what a text of a common length looks like when it is sent to be embedded, {i}"
        for i in range(count)
    ]


def ours(url: str, concurrency: int) -> dict[str, Run]:
    from bge_integrations import load_encoder
    from bge_integrations.langchain import BGEEmbeddings
    from bge_integrations.llama_index import BGEEmbedding

    options: Any = {
        "base_url": url, "api_key": KEY, "max_inputs": BATCH, "max_concurrency": concurrency, "show_progress": False
    }  # fmt: skip
    encoder = load_encoder("bge-large", **options)
    chain, index = BGEEmbeddings("bge-large", **options), BGEEmbedding("bge-large", **options)
    return {
        "ours, encoder": lambda texts: encoder.encode(texts, role="document"),
        "ours, encoder, .tolist()": lambda texts: encoder.encode(texts, role="document").tolist(),
        "ours, LangChain": chain.embed_documents,
        "ours, LlamaIndex": index.get_text_embedding_batch,
    }


def langchain(url: str, encoding: str) -> dict[str, Run]:
    from langchain_openai import OpenAIEmbeddings

    # Its own default counts with tiktoken, whose tables come over the network; the second is that default without it.
    common: Any = {"model": "bge-large", "base_url": url, "api_key": KEY, "check_embedding_ctx_length": False}
    more: Any = {"model_kwargs": {"encoding_format": "float"}} if encoding == "float" else {}
    return {
        "LangChain OpenAIEmbeddings, chunk 64": OpenAIEmbeddings(**common, **more, chunk_size=BATCH).embed_documents,
        "LangChain OpenAIEmbeddings, chunk 1000 (default)": OpenAIEmbeddings(**common, **more).embed_documents,
    }


def llama_index(url: str, encoding: str) -> dict[str, Run]:
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    more: Any = {"additional_kwargs": {"encoding_format": "float"}} if encoding == "float" else {}
    common: Any = {"model_name": "bge-large", "api_base": url, "api_key": KEY, **more}
    return {
        "LlamaIndex OpenAILikeEmbedding, batch 64": OpenAILikeEmbedding(
            **common, embed_batch_size=BATCH
        ).get_text_embedding_batch,
        "LlamaIndex OpenAILikeEmbedding, batch 10 (default)": OpenAILikeEmbedding(**common).get_text_embedding_batch,
    }


def parts(texts: list[str]) -> Iterator[list[str]]:
    for first in range(0, len(texts), BATCH):
        yield texts[first : first + BATCH]


def bare_openai(url: str, encoding: str, concurrency: int) -> dict[str, Run]:
    from openai import AsyncOpenAI

    async def run(texts: list[str]) -> list[list[float]]:
        gate = asyncio.Semaphore(concurrency)
        more: Any = {"encoding_format": "float"} if encoding == "float" else {}
        async with AsyncOpenAI(base_url=url, api_key=KEY) as client:

            async def one(part: list[str]) -> list[list[float]]:
                async with gate:
                    answer = await client.embeddings.create(model="bge-large", input=part, **more)
                return [row.embedding for row in answer.data]

            return [row for rows in await asyncio.gather(*map(one, parts(texts))) for row in rows]

    return {"AsyncOpenAI, gather": lambda texts: asyncio.run(run(texts))}


def read(body: bytes) -> np.ndarray:
    """Return the vectors of an answer, unchecked: the limit does nothing that it need not."""
    rows = [row["embedding"] for row in orjson.loads(body)["data"]]
    if isinstance(rows[0], str):
        return np.frombuffer(b"".join(map(base64.b64decode, rows)), np.float32).reshape(-1, DIMENSIONS)
    return np.array(rows, np.float32)


def limits(url: str, encoding: str, concurrency: int) -> dict[str, Run]:
    address = f"{url}/embeddings"
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}

    def request(part: list[str]) -> bytes:
        return orjson.dumps({"model": "bge-large", "input": part, "encoding_format": encoding})

    async def gathered(post: Callable[[bytes], Any], texts: list[str]) -> np.ndarray:
        gate = asyncio.Semaphore(concurrency)

        async def one(part: list[str]) -> np.ndarray:
            async with gate:
                return read(await post(request(part)))

        return np.concatenate(await asyncio.gather(*map(one, parts(texts))))

    async def with_aiohttp(texts: list[str]) -> np.ndarray:
        import aiohttp

        async with aiohttp.ClientSession() as session:

            async def post(data: bytes) -> bytes:
                async with session.post(address, data=data, headers=headers) as answer:
                    return await answer.read()

            return await gathered(post, texts)

    async def with_httpx(texts: list[str]) -> np.ndarray:
        import httpx

        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=concurrency), timeout=60) as client:

            async def post(data: bytes) -> bytes:
                return (await client.post(address, content=data, headers=headers)).content

            return await gathered(post, texts)

    return {
        "limit: aiohttp, orjson, numpy": lambda texts: asyncio.run(with_aiohttp(texts)),
        "limit: httpx, orjson, numpy": lambda texts: asyncio.run(with_httpx(texts)),
    }


def clients_of(url: str, encoding: str, concurrency: int) -> dict[str, Run]:
    return {
        **ours(url, concurrency),
        **langchain(url, encoding),
        **llama_index(url, encoding),
        **bare_openai(url, encoding, concurrency),
        **limits(url, encoding, concurrency),
    }


def check(name: str, result: Any) -> None:
    """Refuse to measure a client that is wrong."""
    if " 1000 " in name or " 10 " in name:
        return  # other batches, other rows
    rows = np.asarray(result, np.float32)
    expected = np.tile(vectors(BATCH), (len(rows) // BATCH, 1))
    assert rows.shape == expected.shape, (name, rows.shape)
    assert np.allclose(rows, expected, atol=1e-6), name


def measure(url: str, encoding: str, latency: int, arguments: argparse.Namespace) -> dict[str, Any]:
    kind = "both" if encoding == "base64" else "float"
    clients = clients_of(f"{url}/{latency}/{kind}/v1", encoding, arguments.concurrency)
    texts = texts_of(arguments.texts)
    seconds: dict[str, list[float]] = {name: [] for name in clients}
    for name, run in clients.items():
        for _ in range(2):  # connections are made, base64 is found out
            check(name, run(texts[: 16 * BATCH]))
    order = list(clients)
    for _ in range(arguments.rounds):
        random.Random(len(seconds[order[0]])).shuffle(order)
        for name in order:
            began = time.perf_counter()
            clients[name](texts)
            seconds[name].append(time.perf_counter() - began)
    rates = {name: round(len(texts) / statistics.median(taken)) for name, taken in seconds.items()}
    best = {name: round(len(texts) / min(taken)) for name, taken in seconds.items()}
    return {
        "encoding": encoding, "latency_ms": latency, "texts_per_second": rates, "best": best, "ratios": ratios(rates),
        "long_job": long_job(clients, arguments),
    }  # fmt: skip


def long_job(clients: dict[str, Run], arguments: argparse.Namespace) -> dict[str, float]:
    """Return what eight times as many texts give: of a short call, its first and last requests are a good part."""
    texts = texts_of(8 * arguments.texts)
    names = ["ours, encoder", *(name for name in clients if name.startswith("limit"))]
    rates = in_turns({name: partial(clients[name], texts) for name in names}, len(texts), arguments.rounds)
    others = {f"encoder / {name.split(',')[0]}": round(rates[names[0]] / rates[name], 2) for name in names[1:]}
    return {"texts": len(texts), **rates, **others}


def in_turns(runs: dict[str, Callable[[], Any]], count: int, rounds: int) -> dict[str, int]:
    """Return how many of ``count`` texts each does per second, by the median of rounds in which all take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds):
        for name in runs if turn % 2 else reversed(runs):
            began = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - began)
    return {name: round(count / statistics.median(taken)) for name, taken in seconds.items()}


def ratios(rates: dict[str, int]) -> dict[str, float]:
    """Return what the aims speak of."""
    pairs = {
        "encoder / limit with aiohttp": ("ours, encoder", "limit: aiohttp, orjson, numpy"),
        "encoder / limit with httpx": ("ours, encoder", "limit: httpx, orjson, numpy"),
        "encoder / AsyncOpenAI": ("ours, encoder", "AsyncOpenAI, gather"),
        "LangChain adapter / encoder": ("ours, LangChain", "ours, encoder"),
        "LlamaIndex adapter / encoder": ("ours, LlamaIndex", "ours, encoder"),
        "LangChain adapter / encoder with lists": ("ours, LangChain", "ours, encoder, .tolist()"),
        "LlamaIndex adapter / encoder with lists": ("ours, LlamaIndex", "ours, encoder, .tolist()"),
        "LangChain adapter / LangChain, chunk 64": ("ours, LangChain", "LangChain OpenAIEmbeddings, chunk 64"),
        "LlamaIndex adapter / LlamaIndex, batch 64": ("ours, LlamaIndex", "LlamaIndex OpenAILikeEmbedding, batch 64"),
    }
    return {name: round(rates[one] / rates[other], 2) for name, (one, other) in pairs.items()}


def show(result: dict[str, Any]) -> None:
    print(f"\n{result['encoding']}, {result['latency_ms']} ms")
    for name, rate in sorted(result["texts_per_second"].items(), key=lambda item: -item[1]):
        print(f"  {name:52} {rate:>8,} texts/s   (best {result['best'][name]:,})")
    for name, value in result["ratios"].items():
        print(f"  {name:52} {value:>8.2f} ×")
    print("  a long job:", ", ".join(f"{name} {value:,}" for name, value in result["long_job"].items()))


def rerank(url: str, latency: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return passages per second of one query's 1,000 passages: ours, and the limit with as many requests in flight."""
    from bge_integrations import load_reranker

    root, query = f"{url}/{latency}/tei", "which is the best?"
    passages = [
        f"{(i * 613) % 1000} is the number of a passage, {'which has a common length, ' * 30}" for i in range(1000)
    ]
    ours = load_reranker("bge-reranker-v2-m3", base_url=root, dialect="tei", max_concurrency=arguments.concurrency)
    parts = [passages[at : at + TEI_BATCH] for at in range(0, len(passages), TEI_BATCH)]

    async def bare() -> np.ndarray:
        import aiohttp

        gate = asyncio.Semaphore(arguments.concurrency)
        async with aiohttp.ClientSession(headers={"content-type": "application/json"}) as session:

            async def one(part: list[str]) -> list[float]:
                body = orjson.dumps({"query": query, "texts": part, "raw_scores": True, "truncate": True})
                async with gate, session.post(f"{root}/rerank", data=body) as answer:
                    rows = orjson.loads(await answer.read())
                return [row["score"] for row in sorted(rows, key=lambda row: row["index"])]

            return np.concatenate(await asyncio.gather(*map(one, parts)))

    clients: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours.score(query, passages, scale="logit"),
        LIMIT: lambda: asyncio.run(bare()),
    }
    for name, run in clients.items():  # makes connections
        assert [round(score) for score in run()] == [(i * 613) % 1000 for i in range(1000)], name
    rates = in_turns(clients, len(passages), 3 * arguments.rounds)
    ours.close()
    found = {
        "latency_ms": latency,
        "passages_per_second": rates,
        "ours / limit": round(rates["ours"] / rates[LIMIT], 2),
    }
    print(found)
    return found


def stream_and_weigh(url: str, count: int) -> None:
    """Stream texts through an encoder and print the peak of this process's memory, in MB."""
    from bge_integrations import load_encoder
    from bge_integrations.core.encoder import stream

    with load_encoder("bge-large", base_url=url, api_key=KEY, max_inputs=BATCH, show_progress=False) as encoder:
        made = (f"passage {i}: a text of a common length, to be embedded and then forgotten" for i in range(count))
        began, total = time.perf_counter(), 0
        for part in stream(encoder, made, role="document"):
            total += len(part)
    assert total == count
    print(json.dumps({"texts": count, "peak_mb": round(peak_mb()), "seconds": round(time.perf_counter() - began, 1)}))


def memory(url: str, counts: list[int]) -> list[dict[str, Any]]:
    """Return the peak of each count, each in a process of its own."""
    found = []
    for count in counts:
        command = [sys.executable, __file__, "--weigh", str(count), "--url", f"{url}/0/both/v1"]
        found.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(f"  {count:>9,} texts: {found[-1]['peak_mb']} MB at most, {found[-1]['seconds']} s")
    return found


def versions() -> dict[str, str]:
    names = (
        "bge-integrations",
        "openai",
        "langchain-openai",
        "llama-index-embeddings-openai-like",
        "aiohttp",
        "httpx",
        "orjson",
    )
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def write(more: dict[str, Any]) -> None:
    """Add to the results file."""
    RESULTS.parent.mkdir(exist_ok=True)
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps({**known, **more}, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--latency", type=int, nargs="*", default=[0, 30])
    parser.add_argument("--encoding", nargs="*", default=["base64", "float"])
    parser.add_argument("--memory", action="store_true", help="measure memory instead of speed")
    parser.add_argument("--rerank", action="store_true", help="measure a reranker instead of embeddings")
    parser.add_argument("--counts", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--dry", action="store_true", help="do not write the results file")
    parser.add_argument("--weigh", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if arguments.weigh:
        stream_and_weigh(arguments.url, arguments.weigh)
        return
    with stub() as url:
        if arguments.memory:
            found: dict[str, Any] = {"memory": memory(url, arguments.counts)}
        elif arguments.rerank:
            found = {"rerank": [rerank(url, latency, arguments) for latency in arguments.latency]}
        else:
            speed = []
            for encoding in arguments.encoding:
                for latency in arguments.latency:
                    speed.append(measure(url, encoding, latency, arguments))
                    show(speed[-1])
            settings = {name: getattr(arguments, name) for name in ("texts", "rounds", "concurrency")}
            found = {"settings": {**settings, "batch": BATCH}, "versions": versions(), "speed": speed}
    if not arguments.dry:
        write(found)


if __name__ == "__main__":
    main()
