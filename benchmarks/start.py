"""From ``python`` to the first vector: each engine in a new process, one after another, files in the disk's cache.

    python benchmarks/start.py                # 9 rounds, some 6 minutes on two cores
    python benchmarks/start.py --rounds 3

The model is ``local.py``'s: bge-small-en-v1.5's shape with random weights. What is measured is what a user writes: an
import, a model, one query. Both clocks are kept: the wall, which other processes of the machine disturb, and the
processor's, which they disturb less. A ratio is the median over rounds of the ratio within a round. Peers whose
versions clash with ours live in ``.venv-peers``, built by ``make bench-peers``. The limit is a program of the parts
that any such engine needs, with nothing around them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import local  # noqa: E402

OURS = (
    "from bge_integrations import load_encoder\n"
    "load_encoder({folder!r}, backend={backend!r}).encode({text!r}, role='query')"
)
LIMIT = "limit: onnxruntime, tokenizers"
ADAPTER = "from bge_integrations.{package} import {name}\n{name}({folder!r}, backend={backend!r}).{method}({text!r}[0])"
LANGCHAIN = {"package": "langchain", "name": "BGEEmbeddings", "method": "embed_query"}
LLAMA_INDEX = {"package": "llama_index", "name": "BGEEmbedding", "method": "get_query_embedding"}
PROGRAMS: dict[str, tuple[str, str | None, dict[str, str]]] = {
    # name: (program, environment, what is filled in)
    "ours onnx": (OURS, None, {"backend": "onnx"}),
    "fastembed": (
        "from fastembed import TextEmbedding\n"
        "from fastembed.common.model_description import ModelSource, PoolingType\n"
        "TextEmbedding.add_custom_model(model='a/b', pooling=PoolingType.CLS, normalization=True, "
        "sources=ModelSource(hf='a/b'), dim=384, model_file='onnx/model.onnx')\n"
        "list(TextEmbedding('a/b', specific_model_path={folder!r}).query_embed({text!r}))",
        "fastembed",
        {},
    ),
    LIMIT: (
        "import numpy, onnxruntime\n"
        "from tokenizers import Tokenizer\n"
        "tokenizer = Tokenizer.from_file({folder!r} + '/tokenizer.json')\n"
        "tokenizer.no_padding()\n"
        "session = onnxruntime.InferenceSession({folder!r} + '/onnx/model.onnx', providers=['CPUExecutionProvider'])\n"
        "ids = numpy.array([tokenizer.encode({text!r}[0]).ids])\n"
        "feed = dict(input_ids=ids, attention_mask=ids * 0 + 1, token_type_ids=ids * 0)\n"
        "row = session.run(None, feed)[0][0, 0]\n"
        "row / numpy.linalg.norm(row)",
        None,
        {},
    ),
    "ours torch": (OURS, None, {"backend": "torch"}),
    "sentence-transformers": (
        "from sentence_transformers import SentenceTransformer\n"
        "SentenceTransformer({folder!r}, device='cpu').encode({text!r})",
        None,
        {},
    ),
    "ours onnx, LangChain": (ADAPTER, None, {"backend": "onnx", **LANGCHAIN}),
    "ours torch, LangChain": (ADAPTER, None, {"backend": "torch", **LANGCHAIN}),
    "LangChain HuggingFaceEmbeddings": (
        "from langchain_huggingface import HuggingFaceEmbeddings\n"
        "HuggingFaceEmbeddings(model_name={folder!r}).embed_query({text!r}[0])",
        "frameworks",
        {},
    ),
    "ours onnx, LlamaIndex": (ADAPTER, None, {"backend": "onnx", **LLAMA_INDEX}),
    "ours torch, LlamaIndex": (ADAPTER, None, {"backend": "torch", **LLAMA_INDEX}),
    "LlamaIndex HuggingFaceEmbedding": (
        "from llama_index.embeddings.huggingface import HuggingFaceEmbedding\n"
        "HuggingFaceEmbedding({folder!r}, device='cpu').get_query_embedding({text!r}[0])",
        "frameworks",
        {},
    ),
}
RATIOS = (
    ("ours onnx", "fastembed"),
    ("ours onnx", LIMIT),
    (LIMIT, "fastembed"),
    ("ours torch", "sentence-transformers"),
    ("ours torch, LangChain", "LangChain HuggingFaceEmbeddings"),
    ("ours onnx, LangChain", "LangChain HuggingFaceEmbeddings"),
    ("ours torch, LlamaIndex", "LlamaIndex HuggingFaceEmbedding"),
    ("ours onnx, LlamaIndex", "LlamaIndex HuggingFaceEmbedding"),
)
END = "\nimport os\nos.write(1, b'first vector')\nos._exit(0)"
QUIET = {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "TOKENIZERS_PARALLELISM": "true"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", action="append", help="a program; may be given more than once")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "start.json")
    parsed = parser.parse_args()
    commands = commands_of(parsed.only or list(PROGRAMS), local.make_model())
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for turn in range(-1, parsed.rounds):  # the first round fills the disk's cache
        for name, command in commands.items():
            sample = start(command)
            print(f"{turn} {name:32} {sample['seconds']:.3f} s", file=sys.stderr)
            if turn >= 0:
                samples[name].append(sample)
    report = {"machine": local.machine(), "rounds": parsed.rounds, **summary(samples)}
    parsed.out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    print(table(report))


def commands_of(names: list[str], folder: Path) -> dict[str, list[str]]:
    commands = {}
    for name in names:
        program, environment, more = PROGRAMS[name]
        python = local.ROOT / ".venv-peers" / environment / "bin" / "python" if environment else Path(sys.executable)
        if not python.exists():
            print(f"{name}: no {python.relative_to(local.ROOT)}; run `make bench-peers`", file=sys.stderr)
            continue
        code = program.format(folder=str(folder), text=["which pump is it?"], **more)
        commands[name] = [str(python), "-c", code + END]
    return commands


def start(command: list[str]) -> dict[str, float]:
    """Return the seconds until the first vector, and those of processors, in all threads."""
    environment = os.environ | QUIET
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # what is installed was compiled by pip, and ours is not installed
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=HERE, env=environment)
    said = process.stdout.read(12)
    seconds = time.perf_counter() - begin
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if said != b"first vector":
        raise SystemExit(f"no vector from: {command}")
    return {"seconds": seconds, "processor": used.ru_utime + used.ru_stime}


def summary(samples: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    def ratio(ours: str, theirs: str, clock: str) -> float:
        pairs = zip(samples[ours], samples[theirs], strict=True)
        return statistics.median(a[clock] / b[clock] for a, b in pairs)

    return {
        "engines": {
            name: {key: round(statistics.median(sample[key] for sample in found), 3) for key in found[0]}
            | {"samples": [round(sample["seconds"], 3) for sample in found]}
            for name, found in samples.items()
        },
        "ratios": {
            f"{ours} / {theirs}": {clock: round(ratio(ours, theirs, clock), 3) for clock in ("seconds", "processor")}
            for ours, theirs in RATIOS
            if ours in samples and theirs in samples
        },
    }


def table(report: dict[str, Any]) -> str:
    lines = ["| from python to the first vector | s | processor s |", "|---|---|---|"]
    for name, found in report["engines"].items():
        lines.append(f"| {name} | {found['seconds']:.2f} | {found['processor']:.2f} |")
    lines += ["", "| ratio | wall | processor |", "|---|---|---|"]
    for name, found in report["ratios"].items():
        lines.append(f"| {name} | {found['seconds']:.2f} | {found['processor']:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
