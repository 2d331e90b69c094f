"""What an update of shards takes beside embedding everything anew: time, peak memory, and rows that were embedded.

    python benchmarks/update.py                     1,000,000 rows, and results/update.json
    python benchmarks/update.py --rows 20000 --dry  a smoke run

The vectors are synthetic: random numbers by the digest of a text, made in no time, so the times are those of reading,
comparing and writing alone; on a machine that does other work as well, CPU time says more than the clock. What an
update saves in embedding is the share of rows that it does not embed. Each case is a process of its own, over a copy of
the same folder: nothing changed; rows appended; some rows changed all over the file; some rows deleted; the kept column
of all rows changed.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE)]
RESULTS = HERE / "results" / "update.json"
SENTENCE = "a text of a common length says in some words what a reader of a handbook may want to look up one day"
CASES = ("full run", "nothing changed", "1 % appended", "1 % changed, anywhere", "1 % deleted, anywhere", "kept column")


def rows(count: int, case: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a case; those of a full run are what each other case changes."""
    step = 100
    for i in range(count):
        row = {"id": f"row-{i}", "text": f"{i} {SENTENCE}", "n": i}
        if case.startswith("1 % deleted") and i % step == 7:
            continue
        if case.startswith("1 % changed") and i % step == 7:
            row["text"] += " changed"
        if case == "kept column":
            row["n"] = i + 1
        yield row
    for i in range(count // step if case.startswith("1 % appended") else 0):
        yield {"id": f"new-{i}", "text": f"new {i} {SENTENCE}", "n": i}


def synthetic(dimensions: int) -> Any:
    """Return an encoder whose vectors are random, cost next to nothing, and depend on the text."""
    from bge_integrations.catalog import find_model
    from bge_integrations.core.encoder import Batch, Encoder, Usage

    table = np.random.default_rng(0).standard_normal((4096, dimensions)).astype(np.float32)
    table /= np.linalg.norm(table, axis=1, keepdims=True)

    class Synthetic(Encoder):
        def __init__(self) -> None:
            self.card, self.usage = replace(find_model("bge-small"), dimensions=dimensions), Usage()

        def batches(self, texts: list[str], role: Any, stream: Any) -> None:  # noqa: ARG002 - the seam's signature
            stream.put(Batch(range(len(texts)), table[[hash(text) % len(table) for text in texts]]))
            stream.finish()

    return Synthetic()


def weigh(source: str, out: str, dimensions: int) -> None:
    """Bring a folder up to date and print what it took in this process."""
    from peers import peak_mb

    from bge_integrations.bulk import Columns, embed_files

    began, cpu = time.perf_counter(), time.process_time()
    columns = Columns(id="id", keep=("n",))
    report = embed_files(source, out, synthetic(dimensions), columns=columns, update=True)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    found = {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "peak_mb": round(peak_mb())}
    counts = {"rows": report.rows, "embedded": report.embedded, "shards": report.shards, "untouched": report.resumed}
    print(json.dumps({**found, **counts}))


def measure(count: int, dimensions: int, folder: Path) -> list[dict[str, Any]]:
    """Return what each case takes, and its ratio to the full run."""
    found: list[dict[str, Any]] = []
    for case in CASES:
        source, out = folder / "rows.jsonl", folder / "out"
        with source.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows(count, case))
        if case != "full run":
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(folder / "base", out)
        command = [sys.executable, __file__, "--weigh", str(source), str(out), "--dimensions", str(dimensions)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        result = {"case": case, **json.loads(done.stdout.splitlines()[-1])}
        if case == "full run":
            out.rename(folder / "base")
        full = (found or [result])[0]
        result["seconds_of_a_full_run"] = round(result["seconds"] / full["seconds"], 2)
        result["cpu_of_a_full_run"] = round(result["cpu_seconds"] / full["cpu_seconds"], 2)
        found.append(result)
        shown = f"{result['seconds']} s ({result['seconds_of_a_full_run']} ×), CPU {result['cpu_seconds']} s"
        print(f"{case:22} {shown} ({result['cpu_of_a_full_run']} × a full run's), {result['peak_mb']} MB at most")
        print(f"{'':22} {result['embedded']:,} of {result['rows']:,} rows embedded", end="")
        print(f", {result['untouched']} of {result['shards']} shards untouched")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=64)
    parser.add_argument("--folder", help="for the shards, which take 0.5 GB twice (default: a temporary one)")
    parser.add_argument("--dry", action="store_true", help="do not write the results file")
    parser.add_argument("--weigh", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.weigh:
        weigh(*given.weigh, given.dimensions)
        return
    with tempfile.TemporaryDirectory(prefix="bge-update-", dir=given.folder) as folder:
        cases = measure(given.rows, given.dimensions, Path(folder))
    about = {"python": platform.python_version(), "machine": platform.machine()}
    if not given.dry:
        result = {"rows": given.rows, "dimensions": given.dimensions, "vectors": "synthetic", "cases": cases}
        RESULTS.write_text(json.dumps({**result, "machine": about}, indent=1) + "\n")


if __name__ == "__main__":
    main()
