"""What HTTP costs: our server against its own encoder, and beside a plain FastAPI service, at rest and under abuse.

    python benchmarks/server.py                 the tables, and results/server.json
    python benchmarks/server.py --seconds 1 --soak 5    a quick look, written nowhere

The model is bge-small-en-v1.5's architecture with random weights, since speed does not depend on the values. Each
server is a process of its own; the clients run here and share its cores, so the ratios are on the low side. All
contestants take turns in each round; the medians of the rounds count.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import orjson

RESULTS = Path(__file__).parent / "results" / "server.json"
VOCABULARY = "the model reads a text and gives back numbers that stand for what it means so that texts compare"
WORDS = VOCABULARY.split()
INSTRUCTION = "Represent this sentence for searching relevant passages: "


def texts_of(count: int, words: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [f"{i} " + " ".join(draw.choices(WORDS, k=words)) for i in range(count)]


SHORT, PASSAGES = texts_of(512, 12, 1), texts_of(512, 80, 2)


# --- the contestants


def make_model(folder: Path) -> None:
    """Write a model of bge-small-en-v1.5's shape with random weights and the bundled tokenizer."""
    import torch
    from transformers import BertConfig, BertModel

    from bge_integrations.catalog import find_model

    demo = Path(find_model("demo").folder or "")
    shutil.copytree(demo, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json", "README.md"))
    shutil.copytree(demo / "1_Pooling", folder / "1_Pooling", dirs_exist_ok=True)
    shutil.copytree(demo / "2_Normalize", folder / "2_Normalize", dirs_exist_ok=True)
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    for key in ("word_embedding_dimension", "embedding_dimension"):
        if key in pooling:
            pooling[key] = 384
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    torch.manual_seed(0)
    config = BertConfig(hidden_size=384, num_hidden_layers=12, num_attention_heads=12, intermediate_size=1536)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)


def serve_ours(folder: str, port: int) -> None:
    from bge_integrations import load_encoder
    from bge_integrations.server import serve

    serve(load_encoder(folder, query_instruction=INSTRUCTION), port=port)


def serve_plain(folder: str, port: int) -> None:
    """Serve as such services are commonly written: one ``encode`` per request."""
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel
    from sentence_transformers import SentenceTransformer

    app, model = FastAPI(), SentenceTransformer(folder, device="cpu")

    class Request(BaseModel):
        texts: str | list[str]
        normalize: bool = True
        is_query: bool = False

    def embed(request):
        texts = [request.texts] if isinstance(request.texts, str) else request.texts
        texts = [INSTRUCTION + text for text in texts] if request.is_query else texts
        vectors = model.encode(texts, normalize_embeddings=request.normalize)
        return {"embeddings": vectors.tolist(), "model": "plain", "dimension": 384}

    embed.__annotations__["request"] = Request
    app.post("/embed")(embed)
    app.get("/ready")(lambda: {"status": "ready"})
    uvicorn.run(app, port=port, log_level="warning")


@contextmanager
def server(kind: str, folder: Path):
    """Run one of the servers in a process of its own and give its port and process id."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = [sys.executable, __file__, "--serve", kind, str(folder), str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            asyncio.run(ready(port))
            yield port, process.pid
        finally:
            process.terminate()


async def ready(port: int) -> None:
    for _ in range(600):
        try:
            async with Client(port) as client:
                if (await client.ask(b"GET", "/ready"))[0] == 200:
                    return
        except OSError:
            pass
        await asyncio.sleep(0.1)
    raise TimeoutError("the server did not start")


# --- a client that costs as little as possible


class Client:
    """One connection that is kept."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def __aenter__(self):
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def ask(self, verb: bytes, path: str, body: bytes = b"") -> tuple[int, bytes]:
        self.writer.write(request_of(verb, path, body))
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        return int(head[9:12]), await self.reader.readexactly(length)

    async def embed(self, texts: list[str], *, is_query: bool = False) -> np.ndarray:
        status, body = await self.ask(b"POST", "/embed", orjson.dumps({"texts": texts, "is_query": is_query}))
        if status != 200:
            raise RuntimeError(f"{status}: {body[:200]!r}")
        return np.array(orjson.loads(body)["embeddings"], np.float32)


def request_of(verb: bytes, path: str, body: bytes) -> bytes:
    head = f" {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return verb + head.encode() + body


# --- speed


async def load(port: int, texts: list[str], *, clients: int, batch: int, seconds: float, probe: bool = False):
    """Return texts per second and the latencies in ms: those of all requests, or of single queries beside them."""
    stop, done, latencies = time.perf_counter() + seconds, 0, []

    async def work(number: int) -> None:
        nonlocal done
        draw = random.Random(number)
        async with Client(port) as client:
            while (begun := time.perf_counter()) < stop:
                await client.embed(draw.sample(texts, batch))
                done += batch
                if not probe:
                    latencies.append(1000 * (time.perf_counter() - begun))

    async def ask_single() -> None:
        async with Client(port) as client:
            for i in range(10**9):
                if (begun := time.perf_counter()) >= stop:
                    return
                await client.embed([SHORT[i % len(SHORT)]], is_query=True)
                latencies.append(1000 * (time.perf_counter() - begun))
                await asyncio.sleep(0.03)

    begun = time.perf_counter()
    await asyncio.gather(*(work(i) for i in range(clients)), *([ask_single()] if probe else []))
    return done / (time.perf_counter() - begun), latencies


def bare(encode, texts: list[str], batch: int, seconds: float) -> float:
    """Return the texts per second of an encoder by itself."""
    draw, begun, done = random.Random(0), time.perf_counter(), 0
    while time.perf_counter() < begun + seconds:
        encode(draw.sample(texts, batch))
        done += batch
    return done / (time.perf_counter() - begun)


SCENES = {
    "one client, batch 32, passages": {"texts": PASSAGES, "clients": 1, "batch": 32},
    "four clients, batch 32, passages": {"texts": PASSAGES, "clients": 4, "batch": 32},
    "32 clients, one passage each": {"texts": PASSAGES, "clients": 32, "batch": 1},
    "32 clients, one short text each": {"texts": SHORT, "clients": 32, "batch": 1},
    "single queries beside four clients, batch 32": {"texts": PASSAGES, "clients": 4, "batch": 32, "probe": True},
}


def speed(folder: Path, seconds: float, rounds: int) -> dict:
    from bge_integrations import load_encoder

    rates: dict[tuple[str, str], list[float]] = {}
    latencies: dict[tuple[str, str], list[float]] = {}
    encoder = load_encoder(folder, query_instruction=INSTRUCTION)
    encode = lambda texts: encoder.encode(texts, role="document")  # noqa: E731
    encode(PASSAGES[:32])
    with server("ours", folder) as (ours, _), server("plain", folder) as (plain, _):
        ports = {"ours": ours, "plain": plain}
        for _ in range(rounds):
            for name, texts in (("passages", PASSAGES), ("short", SHORT)):
                rates.setdefault(("bare", name), []).append(bare(encode, texts, 32, seconds))
            for scene, options in SCENES.items():
                for kind, port in ports.items():
                    rate, took = asyncio.run(load(port, seconds=seconds, **options))
                    rates.setdefault((kind, scene), []).append(rate)
                    latencies.setdefault((kind, scene), []).extend(took)
    engine = encoder.describe()
    encoder.close()
    return {"engine": {name: engine[name] for name in ("backend", "precision", "device")}, **tables(rates, latencies)}


def tables(rates, latencies) -> dict:
    median = {key: statistics.median(values) for key, values in rates.items()}
    found: dict = {"bare encoder, batch 32, texts/s": {n: round(v, 1) for (k, n), v in median.items() if k == "bare"}}
    for scene, options in SCENES.items():
        limit = median["bare", "short" if options["texts"] is SHORT else "passages"]
        found[scene] = {
            kind: {
                "texts/s": round(median[kind, scene], 1),
                "÷ bare": round(median[kind, scene] / limit, 3),
                **{f"p{p} ms": round(float(np.percentile(latencies[kind, scene], p)), 1) for p in (50, 95, 99)},
            }
            for kind in ("ours", "plain")
        }
    return found


# --- abuse

BAD = {
    "malformed": request_of(b"POST", "/embed", b'{"texts": ["a"'),
    "wrong type": request_of(b"POST", "/embed", b'{"texts": [1, 2, {"a": NaN}]}'),
    "surrogate": request_of(b"POST", "/v1/embeddings", b'{"model": "x", "input": "\\ud800"}'),
    "too many": request_of(b"POST", "/embed", orjson.dumps({"texts": ["a"] * 3000})),
    "over-sized": request_of(b"POST", "/embed", b'{"texts": "' + b"a" * 5_000_000 + b'"}'),
    "cut off in its body": request_of(b"POST", "/embed", orjson.dumps({"texts": PASSAGES[:8]}))[:600],
    "cut off before its answer": request_of(b"POST", "/embed", orjson.dumps({"texts": PASSAGES[:8]})),
}


def resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


async def abuse(port: int, pid: int, seconds: float, clients: int, truth: dict) -> dict:
    """Send for a while, one request in ten bad, and report statuses, wrong rows and the server's memory."""
    stop, statuses, wrong, memory = time.perf_counter() + seconds, Counter(), 0, []

    async def good(client: Client, draw: random.Random) -> None:
        nonlocal wrong
        picked, is_query = draw.sample(range(len(SHORT)), draw.randint(1, 8)), draw.random() < 0.5
        rows = await client.embed([SHORT[i] for i in picked], is_query=is_query)
        statuses["200"] += 1
        wrong += not np.allclose(rows, truth[is_query][picked], atol=1e-4)

    async def bad(draw: random.Random) -> None:
        kind = draw.choice(list(BAD))
        async with Client(port) as client:
            client.writer.write(BAD[kind])
            if kind.startswith("cut off"):
                await asyncio.sleep(draw.random() * 0.05)
                statuses[kind] += 1
                return
            try:
                head = await client.reader.readuntil(b"\r\n\r\n")
                statuses[f"{kind}: {int(head[9:12])}"] += 1
            except (ConnectionError, asyncio.IncompleteReadError):
                statuses[f"{kind}: reset"] += 1

    async def work(number: int) -> None:
        draw = random.Random(number)
        async with Client(port) as client:
            while time.perf_counter() < stop:
                await (bad(draw) if draw.random() < 0.1 else good(client, draw))

    async def watch() -> None:
        while time.perf_counter() < stop:
            memory.append(resident_mib(pid))
            await asyncio.sleep(min(1.0, seconds / 20))

    await asyncio.gather(watch(), *(work(i) for i in range(clients)))
    third = len(memory) // 3
    return {
        "clients": clients,
        "seconds": seconds,
        "answers": dict(sorted(statuses.items())),
        "server errors": sum(count for name, count in statuses.items() if name[-3:].startswith("5")),
        "answers with a wrong row": wrong,
        "memory MiB": {
            "start": round(memory[0]),
            "second third, mean": round(statistics.mean(memory[third : 2 * third])),
            "last third, mean": round(statistics.mean(memory[2 * third :])),
            "peak": round(max(memory)),
        },
    }


def soak(folder: Path, seconds: float, clients: int) -> dict:
    from bge_integrations import load_encoder

    with load_encoder(folder, query_instruction=INSTRUCTION) as encoder:
        truth = {asked: encoder.encode(SHORT, role="query" if asked else "document") for asked in (True, False)}
    with server("ours", folder) as (port, pid):
        return asyncio.run(abuse(port, pid, seconds, clients, truth))


def machine() -> dict:
    names = ("torch", "onnxruntime", "sentence-transformers", "fastapi", "uvicorn")
    return {
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "processor": next(
            (
                line.partition(": ")[2]
                for line in Path("/proc/cpuinfo").read_text().splitlines()
                if "model name" in line
            ),
            platform.machine(),
        ),
        **{name: version(name) for name in names},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="per scene and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--soak", type=float, default=60.0, help="seconds of abuse")
    parser.add_argument("--clients", type=int, default=64, help="clients of the abuse")
    parser.add_argument("--serve", nargs=3, metavar=("KIND", "FOLDER", "PORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        kind, folder, port = options.serve
        return {"ours": serve_ours, "plain": serve_plain}[kind](folder, int(port))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        make_model(folder)
        found = {"machine": machine(), "abuse": soak(folder, options.soak, options.clients)}
        found["speed"] = speed(folder, options.seconds, options.rounds)
    text = json.dumps(found, indent=2, ensure_ascii=False)
    print(text)
    if options.seconds >= 5 and options.soak >= 60:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(text + "\n")
    return None


if __name__ == "__main__":
    main()
