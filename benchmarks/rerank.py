"""Rerankers on this machine, side by side in one run: ours and the peers that score the same pairs.

    python benchmarks/rerank.py                                            # 12 layers; an hour or two on two cores
    python benchmarks/rerank.py --layers 3 --candidates 20 --repeats 3     # some minutes

The model is made here: the shape of bge-reranker-base with random weights (speed does not depend on them). ``even``
passages have 1,000 characters, ``skewed`` ones 100 to 4,000. Every reranker lives in a process of its own and is asked
in turn, so that all see the same machine; what counts is the ratio to sentence-transformers' CrossEncoder in the same
turn, of which the median is shown. Peers whose versions clash with ours live in ``.venv-peers``, built by
``make bench-peers``.
"""

from __future__ import annotations

import argparse
import json
import pydoc_data.topics
import random
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT / "tests")]

import local  # noqa: E402
import rerank_peers  # noqa: E402

QUERY = "How does a class look up the attribute of its base?"
BASELINE = "sentence-transformers"
ENVIRONMENTS = {
    "FlagEmbedding": "flag",
    "rerankers": "rerankers",
    "fastembed": "fastembed",
    "sentence-transformers openvino": "openvino",
}


def make_model(layers: int) -> Path:
    """Write a reranker of base's width with random weights, and its ONNX file."""
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

    import models
    from bge_integrations.catalog.rerankers import find_reranker
    from bge_integrations.local.export import export_onnx

    donor = models.reranker("xlm-roberta")  # its tokenizer
    folder = models.root() / "reranker-of-base-width"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((donor / name).read_bytes())
    words = json.loads((donor / "config.json").read_text("utf-8"))["vocab_size"]
    torch.manual_seed(1)
    config = XLMRobertaConfig(
        vocab_size=words,
        num_hidden_layers=layers,
        num_labels=1,
        max_position_embeddings=514,
        type_vocab_size=1,
        initializer_range=0.05,
    )
    XLMRobertaForSequenceClassification(config).save_pretrained(folder)
    export_onnx(find_reranker(folder), folder)
    return folder


def make_passages(count: int, kind: str) -> list[str]:
    """Return passages of the standard library's documentation."""
    text = " ".join(" ".join(pydoc_data.topics.topics.values()).split())
    numbers = random.Random(7)
    sizes = [1000 if kind == "even" else int(100 * 40 ** numbers.random()) for _ in range(count)]
    starts = [numbers.randrange(len(text) - size) for size in sizes]
    return [text[start : start + size] for start, size in zip(starts, sizes, strict=True)]


def differences(engines: list[local.Peer]) -> dict[str, float]:
    """Return how far each reranker's logits are from the baseline's, at most, over twenty pairs of all lengths."""
    texts = [QUERY, *make_passages(20, "skewed")]
    answers = {engine.name: engine.ask("vectors", texts) for engine in engines}
    logits = {name: np.array(answer["vectors"])[:, 0] for name, answer in answers.items() if answer}
    return {name: float(np.abs(rows - logits[BASELINE]).max()) for name, rows in logits.items()}


def measure(engines: list[local.Peer], job: str, passages: list[str], repeats: int) -> dict[str, dict[str, Any]]:
    """Return each reranker's ratio to the baseline: the median over turns, the least and the most."""
    samples: dict[str, list[float]] = {engine.name: [] for engine in engines}
    for engine in engines:
        engine.ask(job, [QUERY, *passages[:8]])
    for turn in range(repeats):
        # A query of its own each turn: nobody's cache may answer.
        found = {engine.name: engine.ask(job, [f"{QUERY} {turn}", *passages]) for engine in engines}
        print(turn, {name: round(one["seconds"], 2) for name, one in found.items() if one}, file=sys.stderr)
        if found[BASELINE]:
            for name, one in found.items():
                if one:
                    samples[name].append(found[BASELINE]["seconds"] / one["seconds"])
    return {
        name: {"times_faster": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
        for name, ratios in samples.items()
        if ratios
    }


def start_engines(only: list[str] | None, folder: Path) -> list[local.Peer]:
    """Start the rerankers that are installed, the baseline first."""
    names = [BASELINE, *(name for name in only or rerank_peers.MAKERS if name != BASELINE)]
    return local.start_all(names, folder, HERE / "rerank_peers.py", ENVIRONMENTS)


def main() -> None:
    """Write the ratios of each set, and print them as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, nargs="+", default=[20, 50, 100])
    parser.add_argument("--at-once", type=int, nargs="+", default=[20], help="candidates of each of 8 queries at once")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", action="append", help="a reranker; may be given more than once")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "rerank.json")
    parsed = parser.parse_args()
    engines = start_engines(parsed.only, make_model(parsed.layers))
    off = differences(engines)
    report: dict[str, Any] = {
        "machine": local.machine(),
        "layers": parsed.layers,
        "repeats": parsed.repeats,
        "logits differ by at most": off,
    }
    for kind in ("even", "skewed"):
        for count in parsed.candidates:
            name = f"{count} candidates, {kind}"
            report[name] = measure(engines, "mixed", make_passages(count, kind), parsed.repeats)
        for count in parsed.at_once:
            name = f"8 × {count} candidates, {kind}"
            report[name] = measure(engines, "at_once", make_passages(8 * count, kind), parsed.repeats)
    for engine in engines:
        engine.close()
    parsed.out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    sets = [name for name in report if "candidates" in name]
    print("| reranker | " + " | ".join(sets) + " | logits differ |\n" + "|---" * (len(sets) + 2) + "|")
    for engine in engines:
        cells = [f"{report[name].get(engine.name, {}).get('times_faster', float('nan')):.2f}" for name in sets]
        print(f"| {engine.name} | {' | '.join(cells)} | {off.get(engine.name, float('nan')):.1e} |")


if __name__ == "__main__":
    main()
