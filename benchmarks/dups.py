"""Near-duplicates: time and peak memory, exact and approximate, against the product of all vectors in memory.

    python benchmarks/dups.py [ROWS ...]          the table, and results/dups.json (20,000 and 100,000 rows)

Shards of random unit vectors, of which a fifth are near copies (cosine 0.95 to 1) of rows before them. Each way runs in
a process of its own; the product of all vectors only where its matrix has room. "found" is the share of the exact way's
duplicates that the approximate one finds. Beyond 150,000 rows only the approximate way
runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
DIMENSIONS, SHARE, ABOVE = 384, 0.2, 0.95
ROOM, PATIENCE = 25_000, 150_000  # rows at most for the product of all, and for the exact way
WAYS = ("product of all", "exact", "approximate")


def product(folder: Path) -> set[int]:
    """Return the rows that are near an earlier one, by one matrix of all cosines, as notebooks do it."""
    from bge_integrations.bulk import read_shards

    vectors = np.concatenate([part.vectors for part in read_shards(folder)])
    near = vectors @ vectors.T >= ABOVE
    return set(np.flatnonzero(np.triu(near, 1).any(0)).tolist())


def peak() -> int:
    """Return the most memory that the process has had; getrusage tells that of the parent, too, after a fork."""
    status = Path("/proc/self/status").read_text("utf-8")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def measured(way: str, folder: Path) -> dict[str, Any]:
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


def compare(rows: int) -> dict[str, Any]:
    import bulk_vectors

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "shards"
        vectors = bulk_vectors.with_duplicates(rows, DIMENSIONS, SHARE)
        stamp = {"space": "none", "model": "none", "dimensions": DIMENSIONS}
        bulk_vectors.write_shards(folder, vectors, stamp)
        del vectors
        seen: dict[str, dict[str, Any]] = {}
        for way in WAYS[(rows > ROOM) + (rows > PATIENCE) :]:
            command = [sys.executable, __file__, "--one", way, str(folder)]
            seen[way] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    base, truth = next(iter(seen.values())), set(seen.get("exact", {"found": []})["found"])
    return {
        "rows": rows,
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


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--one"]:
        print(json.dumps(measured(arguments[1], Path(arguments[2]))))
        return
    report = {"dimensions": DIMENSIONS, "share": SHARE, "above": ABOVE}
    runs = [compare(int(rows)) for rows in arguments or ("20000", "100000")]
    out = HERE / "results" / "dups.json"
    out.write_text(json.dumps({**report, "runs": runs}, indent=1) + "\n", "utf-8")
    print(out.read_text("utf-8"))


if __name__ == "__main__":
    main(sys.argv[1:])
