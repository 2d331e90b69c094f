"""Near-duplicates: time and peak memory, exact and approximate, against the product of all vectors in memory.

    python benchmarks/dups.py                                      20,000 and 100,000 rows, and results/dups.json
    python benchmarks/dups.py --rows 1000000 --dimensions 128      beside what the file holds already
    python benchmarks/dups.py --rows 5000 --dry                    a smoke run

Shards of random unit vectors, of which a fifth are near copies (cosine 0.95 to 1) of rows before them. Each way runs in
a process of its own; the product of all vectors only where its matrix has room. "found" is the share of the exact way's
duplicates that the approximate one finds. Beyond 150,000 rows only the approximate way runs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
SHARE, ABOVE = 0.2, 0.95
ROOM, PATIENCE = 25_000, 150_000  # rows at most for the product of all, and for the exact way
WAYS = ("product of all", "exact", "approximate")


def product(folder: Path) -> set[int]:
    """Return the rows that are near an earlier one, by one matrix of all cosines, as notebooks do it."""
    from bge_integrations.bulk import read_shards

    vectors = np.concatenate([part.vectors for part in read_shards(folder)])
    near = vectors @ vectors.T >= ABOVE
    return set(np.flatnonzero(np.triu(near, 1).any(0)).tolist())


def measured(way: str, folder: Path) -> dict[str, Any]:
    from bulk_vectors import peak

    from bge_integrations.bulk import near_duplicates

    if way == "approximate":
        __import__("faiss")
    before, began = peak(), time.perf_counter()
    if way == "product of all":
        found = product(folder)
    else:
        groups = near_duplicates(folder, above=ABOVE, approximate=way == "approximate")
        found = {row.row for group in groups for row in group.duplicates}
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "bytes": peak() - before, "found": sorted(found)}


def compare(rows: int, dimensions: int) -> dict[str, Any]:
    import bulk_vectors

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "shards"
        vectors = bulk_vectors.with_duplicates(rows, dimensions, SHARE)
        stamp = {"space": "none", "model": "none", "dimensions": dimensions}
        bulk_vectors.write_shards(folder, vectors, stamp)
        del vectors
        seen: dict[str, dict[str, Any]] = {}
        for way in WAYS[(rows > ROOM) + (rows > PATIENCE) :]:
            command = [sys.executable, __file__, "--one", way, str(folder)]
            seen[way] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    base, truth = next(iter(seen.values())), set(seen.get("exact", {"found": []})["found"])
    return {
        "rows": rows,
        "dimensions": dimensions,
        "against": next(iter(seen)),
        **{
            way: {
                "seconds": round(each["seconds"], 1),
                "times as fast": round(base["seconds"] / each["seconds"], 2),
                "peak MB over the start": round(each["bytes"] / 1e6),
                "memory, of the other's": round(each["bytes"] / base["bytes"], 3),
                **({"found": round(len(truth & set(each["found"])) / len(truth), 4)} if truth else {}),
            }
            for way, each in seen.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--dry", action="store_true", help="do not write the results file")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measured(given.one[0], Path(given.one[1]))))
        return
    out = HERE / "results" / "dups.json"
    before = json.loads(out.read_text("utf-8"))["runs"] if out.exists() else []
    runs = {(run["rows"], run["dimensions"]): run for run in before}
    for rows in given.rows:
        runs[rows, given.dimensions] = run = compare(rows, given.dimensions)
        print(json.dumps(run, indent=1), flush=True)
    if not given.dry:
        report = {"share": SHARE, "above": ABOVE, "runs": [runs[key] for key in sorted(runs)]}
        out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
