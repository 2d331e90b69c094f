"""README's section on speed, made from what the benchmarks wrote: ``python scripts/readme_speed.py`` puts it there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"

_LOCAL = (
    ("ours, torch", "ours torch"),
    ("ours, ONNX Runtime", "ours onnx"),
    ('ours, torch, `precision="bfloat16"`', "ours torch bf16"),
    ("sentence-transformers", "sentence-transformers"),
    ("sentence-transformers, OpenVINO (bfloat16)", "sentence-transformers openvino"),
    ("LangChain HuggingFaceEmbeddings", "LangChain HuggingFaceEmbeddings"),
    ("LlamaIndex HuggingFaceEmbedding", "LlamaIndex HuggingFaceEmbedding"),
    ("FlagEmbedding", "FlagEmbedding"),
    ("fastembed", "fastembed"),
)
_REMOTE = (
    ("ours, arrays", "ours, encoder"),
    ("ours in LangChain", "ours, LangChain"),
    ("ours in LlamaIndex", "ours, LlamaIndex"),
    ("LangChain OpenAIEmbeddings", "LangChain OpenAIEmbeddings, chunk 64"),
    ("LlamaIndex OpenAILikeEmbedding", "LlamaIndex OpenAILikeEmbedding, batch 64"),
    ("openai SDK, 8 requests at once", "AsyncOpenAI, gather"),
)


def section(results: Path) -> str:
    """Return the section, without its title."""
    local, remote, server, soak = (_read(results / f"{name}.json") for name in ("local", "remote", "server", "soak"))
    return "\n".join([*_local(local), *_remote(remote), *_server(server), *_soak(soak), ""])


def _read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def _local(found: Mapping[str, Any]) -> list[str]:
    engines = found["engines"]
    base = engines["sentence-transformers"]

    def row(name: str, key: str) -> list[str]:
        engine = engines[key]
        times = [f"{base[text]['seconds'] / engine[text]['seconds']:.1f} ×" for text in ("mixed", "short")]
        together = engine.get("concurrent")
        return [
            name,
            *times,
            f"{engine['query']['seconds'] * 1000:.1f} ms",
            f"{together['seconds'] * 1000:.0f} ms" if together else "",
            f"{engine['peak_mb']:.0f} MB",
        ]

    machine = found["machine"]
    head = ["on this machine", "passages", "short texts", "one query", "64 queries at once", "memory"]
    return [
        f"Measured on {machine['cores']} cores ({machine['cpu']}), all engines in one run, the shape of "
        "bge-small-en-v1.5, as times the speed of sentence-transformers' default; a processor that MKL favours shows "
        "less.\n",
        *_table(head, [row(*pair) for pair in _LOCAL if pair[1] in engines]),
        "",
        "![Passages per second of each engine, sentence-transformers being 1](benchmarks/results/local.svg)",
        "",
    ]


def _remote(found: Mapping[str, Any]) -> list[str]:
    runs = [run for run in found["speed"] if run["latency_ms"] == 30 or run["encoding"] == "float"]
    head = ["at a host, texts/s"]
    head += [
        f"{'float JSON' if run['encoding'] == 'float' else run['encoding']}, {run['latency_ms']} ms" for run in runs
    ]
    rows = [[name, *(f"{run['texts_per_second'][key]:,}" for run in runs)] for name, key in _REMOTE]
    memory = "; ".join(f"{each['texts']:,} texts streamed: {each['peak_mb']} MB at most" for each in found["memory"])
    return [
        "Against a host on this machine that answers at once or after 30 ms, 1024 dimensions, 64 texts a request; "
        f"{memory}.\n",
        *_table(head, rows),
        "",
    ]


def _server(found: Mapping[str, Any]) -> list[str]:
    speed = found["speed"]
    batch, single = speed["one client, batch 32, passages"], speed["32 clients, one passage each"]
    abuse = found["abuse"]
    return [
        f"`bge serve` answers at {batch['ours']['÷ bare']:.0%} of the bare encoder's speed in batches of 32 and at "
        f"{single['ours']['÷ bare']:.0%} with 32 clients that send one passage each, where a plain FastAPI app over "
        f"`SentenceTransformer.encode` reaches {single['plain']['÷ bare']:.0%}. "
        f"{abuse['clients']} clients for {abuse['seconds']:.0f} s, one request in ten malformed or cut off: "
        f"{abuse['server errors']} server errors, {abuse['answers with a wrong row']} wrong rows.\n"
    ]


def _soak(found: Mapping[str, Any]) -> list[str]:
    return [
        f"{found['texts']:,} texts through a host that failed {found['failed_requests'] / found['requests']:.0%} of "
        f"its requests in {found['ways_to_fail']} ways, the job killed {found['kills']} times and begun again: "
        f"{found['wrong_vectors']} wrong vectors, {found['missing']} missing.",
        "\nAll figures, and how to measure them on your machine, are in the documentation's page of benchmarks, made "
        "from [`benchmarks/results/`](benchmarks/results).",
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def renewed(text: str, results: Path) -> str:
    """Return README's text with its section made anew."""
    made = f"## Speed\n{section(results)}\n## "
    return re.sub(r"## Speed\n.*?\n## ", lambda _: made, text, count=1, flags=re.DOTALL)


if __name__ == "__main__":
    README.write_text(renewed(README.read_text("utf-8"), ROOT / "benchmarks" / "results"), "utf-8")
