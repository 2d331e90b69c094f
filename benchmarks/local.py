"""Our local engine and its peers, side by side in one run.

    python benchmarks/local.py                               # everything; takes an hour on two cores
    python benchmarks/local.py --passages 160 --repeats 3    # a few minutes
    python benchmarks/local.py --only "ours torch" --only sentence-transformers

Every engine lives in a process of its own and is asked in turn, so that all see the same machine. Samples during which
other processes took more than a tenth of it are thrown away. All engines embed the first 300 passages three times;
ours, the baseline and the fastest peer then embed all of them. The model is made here: the shape of bge-small-en-v1.5
with random weights (speed does not depend on them). Text comes from the standard library's documentation and the
licences on the machine. Peers whose versions clash with ours live in ``.venv-peers``, built by ``make bench-peers``.

Where no other processor is at hand, torch's libraries can be kept from using the widest units of this one::

    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 python benchmarks/local.py \\
        --passages 160 --repeats 3 --only "ours torch" --only sentence-transformers --out local-AVX2.json
"""

from __future__ import annotations

import argparse
import json
import os
import pydoc_data.topics
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT / "tests")]

BASELINE = "sentence-transformers"
ENVIRONMENTS = {
    "LangChain HuggingFaceEmbeddings": "frameworks",
    "LlamaIndex HuggingFaceEmbedding": "frameworks",
    "FlagEmbedding": "flag",
    "fastembed": "fastembed",
    "sentence-transformers openvino": "openvino",
}
LONG = (BASELINE, "sentence-transformers openvino", "ours torch", "ours torch bf16", "ours onnx")
"""Engines that embed all passages; the others embed a few."""
LONG_SETS = ("mixed", "short")
FEW_PASSAGES, FEW_REPEATS = 300, 3
UNIT_LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
"""Environment variables that keep torch's libraries from using the processor's widest units."""
IMPORTS = {
    "ours": "import bge_integrations",
    "ours, torch engine": "import bge_integrations.local.backends.packed, torch, tokenizers, safetensors.torch",
    "ours, onnx engine": "import bge_integrations.local.backends.onnx, onnxruntime, tokenizers",
    "sentence-transformers": "import sentence_transformers",
    "LangChain HuggingFaceEmbeddings": "import langchain_huggingface, sentence_transformers",
    "LlamaIndex HuggingFaceEmbedding": "import llama_index.embeddings.huggingface",
}
DISTURBED = 0.1


def main() -> None:
    parsed = arguments()
    folder = make_model()
    few = make_texts(min(parsed.passages, FEW_PASSAGES), folder)
    many = make_texts(parsed.passages, folder)
    engines = start_engines(parsed.only, folder)
    rates = matrix_rates()
    parity = compare_vectors(engines, few["mixed"][:120])
    for engine in engines:  # thread pools, kernels
        engine.ask("query", few["query"][:40])
    runs = [Measurement(few, measure(engines, few, min(parsed.repeats, FEW_REPEATS)))]
    for engine in engines:
        engine.extra = engine.ask("memory") or {}
    if parsed.passages > FEW_PASSAGES:
        long = [engine for engine in engines if engine.name in LONG]
        runs.append(Measurement(many, measure(long, {name: many[name] for name in LONG_SETS}, parsed.repeats)))
    rows = {engine.name: describe(engine) | parity.get(engine.name, {}) for engine in engines}
    for run in runs:  # what was measured with more texts replaces what was measured with few
        floor = floors(folder, run.texts, rates)
        for name, row in rows.items():
            row |= summary(run, name, floor)
    for engine in engines:
        engine.close()
    report = {"machine": machine(), "gflops": rates, "imports_seconds": import_seconds(), "engines": rows}
    parsed.out.parent.mkdir(parents=True, exist_ok=True)
    parsed.out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    parsed.out.with_suffix(".svg").write_text(chart(report), "utf-8")
    print(table(report))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passages", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", action="append", help="an engine; may be given more than once")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "local.json")
    return parser.parse_args()


def machine() -> dict[str, Any]:
    import platform

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), set())
    units = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    limited = {name: os.environ[name] for name in UNIT_LIMITS if name in os.environ}
    cores = len(os.sched_getaffinity(0))
    return {"cpu": name, "cores": cores, "units": ", ".join(units), "python": platform.python_version(), **limited}


# The model and the texts


def make_model() -> Path:
    import models
    from bge_integrations.catalog import find_model
    from bge_integrations.local.export import export_onnx

    folder = models.folder("bge-small", layers=12)
    export_onnx(find_model(str(folder)), folder)
    return folder


def make_texts(passages: int, folder: Path) -> dict[str, list[str]]:
    """Return the sets of texts; lengths in tokens, found by counting."""
    numbers = random.Random(7)
    words = corpus()

    def passage(tokens: float) -> str:
        length = max(3, round(tokens / per_word))
        start = numbers.randrange(len(words) - 1000)
        return " ".join(words[start : start + length])

    per_word = 1.0
    sample = " ".join(words[:4000])
    per_word = sum(count_tokens(folder, [sample])) / 4000
    skewed = [passage(min(520, numbers.lognormvariate(4.66, 0.85))) for _ in range(passages)]
    groups = (32, 96, 160, 256, 420)
    slab = [passage(length) for length in groups for _ in range(passages // len(groups))]
    return {
        "mixed": skewed,
        "slab": slab,
        "short": [passage(14) for _ in range(min(2000, max(100, passages * 3)))],
        "query": [passage(8) for _ in range(200)],
        "concurrent": [passage(8) for _ in range(64)],
    }


def corpus() -> list[str]:
    licences = [path.read_text("utf-8", "replace") for path in sorted(Path("/usr/share/common-licenses").glob("*"))]
    return " ".join([*pydoc_data.topics.topics.values(), *licences]).split()


def count_tokens(folder: Path, texts: list[str]) -> list[int]:
    from bge_integrations.core.tokenizer import TextTokenizer

    return TextTokenizer.read(folder, 512).tokenize(texts).lengths.tolist() if len(texts) > 1 else _uncut(folder, texts)


def _uncut(folder: Path, texts: list[str]) -> list[int]:
    from bge_integrations.core.tokenizer import TextTokenizer

    return TextTokenizer.read(folder).count(texts)


# The engines


@dataclass
class Peer:
    """An engine in its own process."""

    name: str
    process: subprocess.Popen[str]
    load_seconds: float = 0.0
    failed: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def ask(self, job: str, texts: list[str] | None = None) -> dict[str, Any] | None:
        if self.failed:
            return None
        try:
            self.process.stdin.write(json.dumps({"job": job, "texts": texts or []}) + "\n")
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline())
        except (ValueError, OSError) as error:
            self.failed = f"died: {error}"
            return None
        if answer and "error" in answer:
            print(f"{self.name}, {job}: {answer['error']}", file=sys.stderr)
            return None
        return answer

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(60)


def start_engines(only: list[str] | None, folder: Path) -> list[Peer]:
    import peers

    return start_all(list(only or peers.MAKERS), folder, HERE / "peers.py", ENVIRONMENTS)


def start_all(names: list[str], folder: Path, script: Path, environments: dict[str, str]) -> list[Peer]:
    """Start those engines whose environments are there."""
    engines = []
    for name in names:
        environment = environments.get(name)
        python = ROOT / ".venv-peers" / environment / "bin" / "python" if environment else Path(sys.executable)
        if not python.exists():
            print(f"{name}: no {python.relative_to(ROOT)}; run `make bench-peers`", file=sys.stderr)
            continue
        engines.append(start(name, python, folder, script))
    return [engine for engine in engines if not engine.failed]


def start(name: str, python: Path, folder: Path, script: Path) -> Peer:
    quiet = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true", "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(
        [str(python), str(script), name, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if "--quiet" in sys.argv else None,
        text=True,
        env=quiet,
    )
    peer = Peer(name, process)
    line = process.stdout.readline()
    if line:
        peer.load_seconds = json.loads(line)["load_seconds"]
        print(f"{name}: ready after {peer.load_seconds:.1f} s", file=sys.stderr)
    else:
        peer.failed = "did not start"
        print(f"{name}: did not start", file=sys.stderr)
    return peer


# Measuring


Samples = dict[str, dict[str, list[Any]]]
"""By engine and set of texts."""


@dataclass
class Measurement:
    """Sets of texts and what embedding them took."""

    texts: dict[str, list[str]]
    samples: Samples


def measure(engines: list[Peer], texts: dict[str, list[str]], repeats: int) -> Samples:
    samples: Samples = {engine.name: {name: [] for name in texts} for engine in engines}
    for turn in range(repeats):
        for name in texts:
            for engine in engines[turn % len(engines) :] + engines[: turn % len(engines)]:
                answer = engine.ask(name, texts[name])
                if answer is not None:
                    samples[engine.name][name].append(answer)
                    print(f"{turn} {name:10} {engine.name:32} {answer['seconds']:.4f} s", file=sys.stderr)
    return samples


def typical(samples: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the median, least and most of undisturbed samples; of all of them if there is none."""
    if not samples:
        return None
    shares = [sample["others"] / len(os.sched_getaffinity(0)) / max(sample["wall"], 0.1) for sample in samples]
    calm = [sample["seconds"] for sample, share in zip(samples, shares, strict=True) if share <= DISTURBED]
    used = calm or [sample["seconds"] for sample in samples]
    return {
        "seconds": statistics.median(used),
        "least": min(used),
        "most": max(used),
        "samples": len(used),
        "dropped": len(samples) - len(used),
        "calm": bool(calm),
        "foreign_share": statistics.median(shares),
    }


def describe(engine: Peer) -> dict[str, Any]:
    return {"load_seconds": engine.load_seconds, **engine.extra}


def summary(run: Measurement, engine: str, floor: dict[str, dict[str, float]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, samples in run.samples.get(engine, {}).items():
        found = typical(samples)
        if found is None:
            continue
        result[name] = {"texts": len(run.texts[name]), **found}
        base = typical(run.samples.get(BASELINE, {}).get(name, []))
        if base:
            result[name]["times_faster"] = base["seconds"] / found["seconds"]
        precision = "bfloat16" if "bf16" in engine or "openvino" in engine else "float32"
        if name in floor[precision] and "int8" not in engine:
            result[name]["of_the_matrix_rate"] = floor[precision][name] / found["seconds"]
    return result


def compare_vectors(engines: list[Peer], texts: list[str]) -> dict[str, dict[str, float]]:
    """Return each engine's cosines with sentence-transformers' vectors in float32."""
    import numpy as np

    answers = {engine.name: engine.ask("vectors", texts) for engine in engines}
    rows = {name: np.array(answer["vectors"]) for name, answer in answers.items() if answer}
    rows = {name: array / np.linalg.norm(array, axis=1, keepdims=True) for name, array in rows.items()}
    if BASELINE not in rows:
        return {}
    cosines = {name: (array * rows[BASELINE]).sum(1) for name, array in rows.items()}
    return {name: {"cosine_min": float(c.min()), "cosine_mean": float(c.mean())} for name, c in cosines.items()}


def import_seconds() -> dict[str, float]:
    found = {}
    for name, code in IMPORTS.items():
        environment = ENVIRONMENTS.get(name)
        python = ROOT / ".venv-peers" / environment / "bin" / "python" if environment else Path(sys.executable)
        if python.exists():
            found[name] = statistics.median(_seconds([str(python), "-c", code]) for _ in range(3))
    empty = statistics.median(_seconds([sys.executable, "-c", "pass"]) for _ in range(3))
    return {name: seconds - empty for name, seconds in found.items()}


def _seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=False, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


# The floor: what the machine's matrix unit needs for the products alone


def matrix_rates() -> dict[str, float]:
    """Return the best rate of matrix products of the model's own shapes, in GFLOP per second.

    By whichever of torch's two libraries is faster here: MKL leaves an AMD processor's widest units idle.
    """
    import torch
    from torch.nn.functional import linear

    from bge_integrations.local.backends.linear import fused_linear

    rates = {}
    for precision in ("float32", "bfloat16"):
        dtype = getattr(torch, precision)
        fused = fused_linear(dtype)
        best = 0.0
        for rows, columns in ((1536, 384), (384, 1536), (1152, 384), (1024, 1024)):
            x, weight, bias = (torch.randn(n, dtype=dtype) for n in (2048 * columns, rows * columns, rows))
            x, weight = x.view(2048, columns), weight.view(rows, columns)
            seconds = _quickest(partial(linear, x, weight, bias))
            if fused is not None:
                seconds = min(seconds, _quickest(partial(fused, x, weight, bias, "none", [], "")))
            best = max(best, 2 * 2048 * rows * columns / seconds / 1e9)
        rates[precision] = best
    return rates


def _quickest(work: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(30):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def flops(lengths: list[int], hidden: int = 384, inner: int = 1536, layers: int = 12) -> float:
    """Return the products that CLS pooling needs: the last layer's keys and values, all of the others."""
    tokens, texts = sum(lengths), len(lengths)
    whole = 2 * (4 * hidden * hidden + 2 * hidden * inner)
    last = 2 * 2 * hidden * hidden
    attention = sum(4 * length * length * hidden for length in lengths) * (layers - 1)
    first = texts * 2 * (2 * hidden * hidden + 2 * hidden * inner)
    return tokens * (whole * (layers - 1) + last) + attention + first


def floors(folder: Path, texts: dict[str, list[str]], rates: dict[str, float]) -> dict[str, dict[str, float]]:
    work = {name: flops(count_tokens(folder, texts[name])) for name in ("mixed", "slab", "short")}
    return {p: {name: n / rate / 1e9 for name, n in work.items()} for p, rate in rates.items()}


# Showing


def table(report: dict[str, Any]) -> str:
    lines = [
        "| engine | mixed × | of rate | slab × | short × | query ms | × | 64 at once ms | cosine min | MB | load s |"
    ]
    lines.append("|---" * 11 + "|")
    for name, result in report["engines"].items():
        cells = [
            name,
            cell(result, "mixed", "times_faster"),
            cell(result, "mixed", "of_the_matrix_rate"),
            cell(result, "slab", "times_faster"),
            cell(result, "short", "times_faster"),
            cell(result, "query", "seconds", 1000),
            cell(result, "query", "times_faster"),
            cell(result, "concurrent", "seconds", 1000),
            f"{result.get('cosine_min', float('nan')):.5f}",
            f"{result.get('peak_mb', 0):.0f}",
            f"{result['load_seconds']:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(result: dict[str, Any], name: str, key: str, scale: float = 1) -> str:
    if key not in result.get(name, {}):
        return "–"
    mark = "" if result[name]["calm"] else "?"
    return f"{result[name][key] * scale:.2f}{mark}"


def chart(report: dict[str, Any]) -> str:
    """Return bars of how many times faster than the baseline each engine is on ``mixed``, as SVG."""
    rows = [
        (n, r["mixed"]["times_faster"]) for n, r in report["engines"].items() if "times_faster" in r.get("mixed", {})
    ]
    rows.sort(key=lambda row: row[1])
    longest = max((value for _, value in rows), default=1.0)
    bar, left, width = 24, 250, 420
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 70}" height="{bar * len(rows) + 44}" '
        'font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="8" y="20" font-weight="bold">Passages per second, {BASELINE} = 1 '
        f"({report['machine']['cpu']}, {report['machine']['cores']} cores)</text>",
    ]
    for i, (name, value) in enumerate(rows):
        y = 34 + i * bar
        colour = "#2563eb" if name.startswith("ours") else "#9ca3af"
        size = value / longest * width
        parts.append(f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{name}</text>')
        parts.append(f'<rect x="{left}" y="{y}" width="{size:.1f}" height="{bar - 6}" fill="{colour}"/>')
        parts.append(f'<text x="{left + size + 6:.1f}" y="{y + 14}">{value:.2f}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
