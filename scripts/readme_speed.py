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
    ("this package, ONNX Runtime", "ours onnx"),
    ("this package, torch", "ours torch"),
    ('this package, torch, `precision="bfloat16"`', "ours torch bf16"),
    ("sentence-transformers", "sentence-transformers"),
    ("LangChain `HuggingFaceEmbeddings`", "LangChain HuggingFaceEmbeddings"),
    ("fastembed", "fastembed"),
)
_REMOTE = ("ours, LangChain", "LangChain OpenAIEmbeddings, chunk 64")


def section(results: Path) -> str:
    """Return the section, without its title."""
    local, remote, server, soak = (_read(results / f"{name}.json") for name in ("local", "remote", "server", "soak"))
    return "\n".join([*_local(local), f"{_remote(remote)}{_server(server)}{_soak(soak)}", ""])


def _read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def _local(found: Mapping[str, Any]) -> list[str]:
    engines = found["engines"]

    def row(name: str, key: str) -> list[str]:
        engine = engines[key]
        times = [f"{engine[text]['times_faster']:.1f} ×" for text in ("mixed", "short")]
        together = engine.get("concurrent")
        return [
            name,
            *times,
            f"{engine['query']['seconds'] * 1000:.1f} ms",
            f"{together['seconds'] * 1000:.0f} ms" if together else "",
            f"{engine['peak_mb']:.0f} MB",
        ]

    machine = found["machine"]
    where = f"{machine['cores']} cores ({machine['cpu']}; {machine['units']})"
    texts = " or ".join(f"{count:,}" for count in sorted({engine["mixed"]["texts"] for engine in engines.values()}))
    head = ["local, bge-small-en-v1.5's shape", "passages", "short texts", "one query", "64 queries at once", "memory"]
    return [
        f"Throughput relative to sentence-transformers' defaults on the same passages ({texts}), all libraries in one "
        f"run on {where}; expect a smaller gap on Intel CPUs.\n",
        *_table(head, [row(*pair) for pair in _LOCAL if pair[1] in engines]),
        "",
    ]


def _remote(found: Mapping[str, Any]) -> str:
    (run,) = (run for run in found["speed"] if run["latency_ms"] == 30 and run["encoding"] == "base64")
    ours, theirs = (run["texts_per_second"][key] for key in _REMOTE)
    return (
        f"Remote, against a local stub with 30 ms latency: {ours:,} texts/s in LangChain, where `OpenAIEmbeddings` "
        f"reaches {theirs:,}. "
    )


def _server(found: Mapping[str, Any]) -> str:
    speed = found["speed"]["one client, batch 32, passages"]
    return (
        f"`bge serve` runs at {speed['ours']['÷ bare']:.0%} of the bare encoder in batches of 32 (a plain FastAPI app "
        f"over `SentenceTransformer.encode`: {speed['plain']['÷ bare']:.0%}). "
    )


def _soak(found: Mapping[str, Any]) -> str:
    return (
        f"{found['texts']:,} texts through a host that failed {found['failed_requests'] / found['requests']:.0%} of "
        f"its requests in {found['ways_to_fail']} ways, with {found['kills']} kills: {found['wrong_vectors']} wrong "
        f"vectors, {found['missing']} missing. The benchmarks page of the docs has all figures and how to measure "
        "them; they are made from [`benchmarks/results/`](benchmarks/results)."
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def renewed(text: str, results: Path) -> str:
    """Return README's text with its section made anew."""
    made = f"## Speed\n{section(results)}\n## "
    return re.sub(r"## Speed\n.*?\n## ", lambda _: made, text, count=1, flags=re.DOTALL)


if __name__ == "__main__":
    README.write_text(renewed(README.read_text("utf-8"), ROOT / "benchmarks" / "results"), "utf-8")
