"""Rerankers on this machine, side by side in one run: ours and sentence-transformers' CrossEncoder.

    python benchmarks/rerank.py                                  # 20, 50 and 100 candidates; an hour on two cores
    python benchmarks/rerank.py --candidates 20 --layers 4       # a few minutes

The model is made here: the shape of bge-reranker-base with random weights (speed does not depend on them). Engines are
asked in turn, so that all see the same machine. ``even`` passages have 1,000 characters, ``skewed`` ones 100 to 4,000.
"""

from __future__ import annotations

import argparse
import json
import pydoc_data.topics
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests")]
QUERY = "How does a class look up the attribute of its base?"
Score = Callable[[str, list[str]], np.ndarray]


def make_model(layers: int) -> Path:
    """Write a reranker of base's width with random weights."""
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

    import models

    donor = models.reranker("xlm-roberta")  # its tokenizer
    folder = models.root() / "reranker-of-base-width"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((donor / name).read_bytes())
    words = json.loads((donor / "config.json").read_text("utf-8"))["vocab_size"]
    torch.manual_seed(1)
    config = XLMRobertaConfig(
        vocab_size=words, num_hidden_layers=layers, num_labels=1, max_position_embeddings=514, type_vocab_size=1
    )
    XLMRobertaForSequenceClassification(config).save_pretrained(folder)
    return folder


def make_passages(count: int, kind: str) -> list[str]:
    """Return passages of the standard library's documentation."""
    text = " ".join(" ".join(pydoc_data.topics.topics.values()).split())
    numbers = random.Random(7)
    sizes = [1000 if kind == "even" else int(100 * 40 ** numbers.random()) for _ in range(count)]
    starts = [numbers.randrange(len(text) - size) for size in sizes]
    return [text[start : start + size] for start, size in zip(starts, sizes, strict=True)]


def make_engines(folder: Path) -> dict[str, Score]:
    """Return what scores, by name; the first is what the others are compared with."""
    from sentence_transformers import CrossEncoder

    from bge_integrations import load_reranker

    theirs = CrossEncoder(str(folder), max_length=512, device="cpu")
    ours, half = load_reranker(folder), load_reranker(folder, precision="bfloat16")
    return {
        "sentence-transformers": lambda query, passages: np.asarray(
            theirs.predict([(query, passage) for passage in passages], show_progress_bar=False)
        ),
        "ours": lambda query, passages: ours.score(query, passages),
        "ours, bfloat16": lambda query, passages: half.score(query, passages),
    }


def measure(engines: dict[str, Score], passages: list[str], repeats: int, together: int) -> dict[str, float]:
    """Return the median seconds of each engine for so many queries at once."""
    samples: dict[str, list[float]] = {name: [] for name in engines}
    with ThreadPoolExecutor(together) as pool:
        for turn in range(repeats + 1):
            for name, score in engines.items():
                began = time.perf_counter()
                list(
                    pool.map(lambda i, score=score, turn=turn: score(f"{QUERY} {turn} {i}", passages), range(together))
                )
                if turn:  # the first warms up
                    samples[name].append(time.perf_counter() - began)
    return {name: statistics.median(times) for name, times in samples.items()}


def main() -> None:
    """Print a row for each number of candidates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, nargs="+", default=[20, 50, 100])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--together", type=int, nargs="+", default=[1, 8], help="queries at once")
    parsed = parser.parse_args()
    warnings.simplefilter("ignore")
    engines = make_engines(make_model(parsed.layers))
    scores = {name: score(QUERY, make_passages(20, "skewed")) for name, score in engines.items()}
    baseline, *_ = engines
    for name in engines:
        print(f"{name}: scores differ by at most {np.abs(scores[name] - scores[baseline]).max():.1e}")
    for kind in ("even", "skewed"):
        for count in parsed.candidates:
            for together in parsed.together:
                seconds = measure(engines, make_passages(count, kind), parsed.repeats, together)
                shown = ", ".join(
                    f"{name} {took:.2f} s ({seconds[baseline] / took:.2f} x)" for name, took in seconds.items()
                )
                print(f"{count} {kind}, {together} at once: {shown}", flush=True)


if __name__ == "__main__":
    main()
