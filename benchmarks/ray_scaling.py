"""One worker of one core against two, on Ray, side by side in one cluster.

    python benchmarks/ray_scaling.py --out ray.json                              # bulk.py runs it, too
    python benchmarks/ray_scaling.py --out ray.json --passages 60 --repeats 1    # does it run

Both ways of using Ray: ``embed_dataset`` (Ray Data reads, embeds, writes) and ``bge embed --on ray`` (shards are
embedded on the cluster). Every worker has one thread. One and two workers take turns. The model is made here, in the
shape of bge-small-en-v1.5, and so are the passages, mixed lengths up to its limit. Two figures for each: rows over
the whole
job, its start and the loading of the model included, and rows over what comes after the first files, which is what a
job of millions tends to.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]
# Before any of them is imported, here and in the workers.
os.environ.update(OMP_NUM_THREADS="1", RAYON_NUM_THREADS="1", RAY_USAGE_STATS_ENABLED="0")

AIM = 1.8


def main() -> None:
    parsed = arguments()
    from local import machine, make_model, make_texts

    folder = make_model()
    texts = make_texts(parsed.passages, folder)["mixed"]
    block = parsed.block or max(1, len(texts) // 40)
    runs = {"embed_dataset": over_dataset(folder, texts, block), "bge embed --on ray": over_files(folder, texts, block)}
    start_ray()
    samples: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
    for _ in range(parsed.repeats):
        for name, run in runs.items():
            samples[name].append(pair(run))
    report = {
        "machine": machine(),
        "passages": len(texts),
        "block_rows": block,
        "repeats": parsed.repeats,
        "aim": AIM,
        "ratio": {name: {kind: ratio(found, kind) for kind in ("whole", "steady")} for name, found in samples.items()},
        "samples": samples,
    }
    parsed.out.parent.mkdir(parents=True, exist_ok=True)
    parsed.out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    print(json.dumps({"ratio": report["ratio"], "aim": AIM}))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--block", type=int, help="rows per block (default: a fortieth of all)")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def start_ray() -> None:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=500_000_000)
    ray.data.DataContext.get_current().enable_progress_bars = False


def pair(run: Callable[[int], dict[str, float]]) -> dict[str, Any]:
    """Measure one worker and two right after each other."""
    return {"load_before": os.getloadavg()[0], "1": run(1), "2": run(2)}


def ratio(samples: list[dict[str, Any]], kind: str) -> float:
    return round(statistics.median(sample["2"][kind] / sample["1"][kind] for sample in samples), 3)


def over_dataset(folder: Path, texts: list[str], block: int) -> Callable[[int], dict[str, float]]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    source = Path(tempfile.mkdtemp()) / "rows.parquet"
    parquet.write_table(pa.table({"id": range(len(texts)), "text": texts}), source)

    def run(workers: int) -> dict[str, float]:
        import ray

        from bge_integrations.ray import embed_dataset

        def job(out: str) -> None:
            embed_dataset(
                ray.data.read_parquet(str(source)),
                out,
                model=str(folder),
                block_rows=block,
                workers=workers,
                num_cpus=0,
                query_instruction="",
            )

        return timed(job, len(texts), block, files=workers)

    return run


def over_files(folder: Path, texts: list[str], block: int) -> Callable[[int], dict[str, float]]:
    source = Path(tempfile.mkdtemp()) / "rows.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")

    def run(workers: int) -> dict[str, float]:
        from bge_integrations import load_encoder
        from bge_integrations.bulk import embed_files
        from bge_integrations.ray import RayShards

        encoder = load_encoder(folder, query_instruction="", show_progress=False)
        on = partial(RayShards, workers=workers)

        def job(out: str) -> None:
            embed_files(str(source), out, encoder, shard_rows=block, on=on)

        return timed(job, len(texts), block, files=workers)

    return run


def timed(job: Callable[[str], Any], rows: int, block: int, *, files: int) -> dict[str, float]:
    """Return rows per second of the whole job, and of all that came after the first files."""
    out = tempfile.mkdtemp()
    began = time.time()
    job(out)
    ended = time.time()
    times = sorted(path.stat().st_mtime for path in Path(out).glob("part-*.parquet"))
    shutil.rmtree(out)
    left = rows - files * block
    return {"whole": round(rows / (ended - began), 2), "steady": round(left / (times[-1] - times[files - 1]), 2)}


if __name__ == "__main__":
    main()
